/* Layouts: made and checked when a region is registered or imported, read by the planner
 * afterwards. Pure functions of their arguments; any thread. They never touch region memory. */
#include "mem/layout.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

struct kvx_layout *kvx_layout_create(uint32_t n_planes)
{
	struct kvx_layout *layout =
	    calloc(1, sizeof(*layout) + (size_t)n_planes * sizeof(layout->planes[0]));
	if (layout != NULL)
		layout->n_planes = n_planes;
	return layout;
}

void kvx_layout_destroy(struct kvx_layout *layout)
{
	free(layout);
}

/* "plane 3 (k)", or "plane 3" when it has no name. */
static const char *plane_label(uint32_t i, const struct kvx_plane *plane, char *buf, size_t len)
{
	if (plane->name[0] != '\0')
		snprintf(buf, len, "plane %" PRIu32 " (%.*s)", i, KVX_PLANE_NAME_BYTES - 1,
			 plane->name);
	else
		snprintf(buf, len, "plane %" PRIu32, i);
	return buf;
}

/* How many blocks fit from the plane's offset on. The caller has checked that one does. */
static uint64_t plane_max_blocks(const struct kvx_plane *plane, uint64_t region_bytes)
{
	uint64_t room = region_bytes - plane->offset;
	return 1 + (room - plane->block_bytes) / plane->block_stride;
}

static int plane_check(struct kvx_plane *plane, const char *label, uint64_t region_bytes,
		       struct kvx_why *why)
{
	if (plane->block_bytes == 0)
		return kvx_why(why, -EINVAL, "%s: block_bytes is 0, must be at least 1", label);
	if (plane->block_stride < plane->block_bytes)
		return kvx_why(why, -EINVAL,
			       "%s: block_stride %" PRIu64 " is less than block_bytes %" PRIu64
			       ": blocks would overlap",
			       label, plane->block_stride, plane->block_bytes);
	if (plane->offset > region_bytes || plane->block_bytes > region_bytes - plane->offset)
		return kvx_why(why, -ERANGE,
			       "%s: its first block (offset %" PRIu64 ", %" PRIu64
			       " bytes) ends after the region's %" PRIu64 " bytes",
			       label, plane->offset, plane->block_bytes, region_bytes);
	uint64_t most = plane_max_blocks(plane, region_bytes);
	if (plane->n_blocks == 0) {
		plane->n_blocks = most > UINT32_MAX ? UINT32_MAX : (uint32_t)most;
		return 0;
	}
	if (plane->n_blocks > most)
		return kvx_why(why, -ERANGE,
			       "%s: %" PRIu32 " blocks of stride %" PRIu64 " from offset %" PRIu64
			       " end after the region's %" PRIu64 " bytes; %" PRIu64 " fit",
			       label, plane->n_blocks, plane->block_stride, plane->offset,
			       region_bytes, most);
	return 0;
}

int kvx_layout_check(struct kvx_layout *layout, uint64_t region_bytes, struct kvx_why *why)
{
	char label[64];
	for (uint32_t i = 0; i < layout->n_planes; i++) {
		struct kvx_plane *plane = &layout->planes[i];
		plane->name[KVX_PLANE_NAME_BYTES - 1] = '\0';
		int err = plane_check(plane, plane_label(i, plane, label, sizeof(label)),
				      region_bytes, why);
		if (err < 0)
			return err;
	}
	return 0;
}

int kvx_layout_compare(const struct kvx_layout *here, const struct kvx_layout *there,
		       struct kvx_why *why)
{
	char label[64];
	if (here->n_planes != there->n_planes)
		return kvx_why(why, -EMEDIUMTYPE, "%" PRIu32 " planes here, %" PRIu32 " there",
			       here->n_planes, there->n_planes);
	for (uint32_t i = 0; i < here->n_planes; i++) {
		const struct kvx_plane *a = &here->planes[i], *b = &there->planes[i];
		if (a->block_bytes != b->block_bytes)
			return kvx_why(why, -EMEDIUMTYPE,
				       "%s: block_bytes %" PRIu64 " here, %" PRIu64 " there",
				       plane_label(i, a, label, sizeof(label)), a->block_bytes,
				       b->block_bytes);
	}
	return 0;
}
