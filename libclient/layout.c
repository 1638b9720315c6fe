/* Layouts: the helpers for common KV caches, and copies of planes in the form that regions and
 * imports keep. Pure, but for memory. */
#include "libclient/client_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of n planes of n_blocks blocks of stride bytes; 0: a size is 0, or overflow past offset. */
static uint64_t kv_bytes(uint64_t offset, uint64_t n_planes, uint32_t n_blocks, uint64_t stride)
{
	uint64_t bytes, end;

	if (n_planes == 0 || n_blocks == 0 || stride == 0)
		return 0;
	if (__builtin_mul_overflow((uint64_t)n_blocks, stride, &bytes) ||
	    __builtin_mul_overflow(bytes, n_planes, &bytes) ||
	    __builtin_add_overflow(bytes, offset, &end))
		return 0;
	return bytes;
}

uint64_t kvxfer_layout_split_kv(uint64_t offset, uint32_t n_layers, uint32_t n_blocks,
				uint64_t block_bytes, struct kvxfer_plane *planes)
{
	uint64_t bytes = kv_bytes(offset, 2 * (uint64_t)n_layers, n_blocks, block_bytes);

	if (bytes == 0 || planes == NULL)
		return 0;
	for (uint64_t p = 0; p < 2 * (uint64_t)n_layers; p++)
		planes[p] = (struct kvxfer_plane){
		    .name = p % 2 == 0 ? "k" : "v",
		    .offset = offset + p * n_blocks * block_bytes,
		    .block_stride = block_bytes,
		    .block_bytes = block_bytes,
		    .n_blocks = n_blocks,
		};
	return bytes;
}

uint64_t kvxfer_layout_interleaved_kv(uint64_t offset, uint32_t n_layers, uint32_t n_blocks,
				      uint64_t block_bytes, struct kvxfer_plane *planes)
{
	uint64_t bytes = kv_bytes(offset, 2 * (uint64_t)n_layers, n_blocks, block_bytes);

	if (bytes == 0 || planes == NULL)
		return 0;
	for (uint64_t p = 0; p < 2 * (uint64_t)n_layers; p++)
		planes[p] = (struct kvxfer_plane){
		    .name = p % 2 == 0 ? "k" : "v",
		    .offset = offset + (p / 2 * 2 * n_blocks + p % 2) * block_bytes,
		    .block_stride = 2 * block_bytes,
		    .block_bytes = block_bytes,
		    .n_blocks = n_blocks,
		};
	return bytes;
}

uint64_t kvxfer_layout_mla(uint64_t offset, uint32_t n_layers, uint32_t n_blocks,
			   uint64_t block_bytes, struct kvxfer_plane *planes)
{
	uint64_t bytes = kv_bytes(offset, n_layers, n_blocks, block_bytes);

	if (bytes == 0 || planes == NULL)
		return 0;
	for (uint64_t p = 0; p < n_layers; p++)
		planes[p] = (struct kvxfer_plane){
		    .name = "kv",
		    .offset = offset + p * n_blocks * block_bytes,
		    .block_stride = block_bytes,
		    .block_bytes = block_bytes,
		    .n_blocks = n_blocks,
		};
	return bytes;
}

/* Room for n planes and their names, which follow them. */
static struct kvxfer_plane *planes_room(uint32_t n, size_t names_bytes, char **out_names)
{
	struct kvxfer_plane *planes = malloc(n * sizeof(*planes) + names_bytes);

	if (planes != NULL)
		*out_names = (char *)(planes + n);
	return planes;
}

/* Appends a name to the room and moves the room's end; at most KVX_CL_PLANE_NAME_MAX bytes. */
static const char *names_add(char **names, const char *name)
{
	size_t len = strnlen(name, KVX_CL_PLANE_NAME_MAX);
	char *place = *names;

	memcpy(place, name, len);
	place[len] = '\0';
	*names = place + len + 1;
	return place;
}

int kvx_cl_planes_copy(const struct kvxfer_layout *layout, struct kvx_cl_planes *out_planes)
{
	size_t room = (size_t)layout->n_planes * (KVX_CL_PLANE_NAME_MAX + 1);
	struct kvxfer_plane *planes;
	char *names;

	planes = planes_room(layout->n_planes, room, &names);
	if (planes == NULL)
		return -ENOMEM;
	for (uint32_t i = 0; i < layout->n_planes; i++) {
		const char *name = layout->planes[i].name;

		planes[i] = layout->planes[i];
		planes[i].name = names_add(&names, name != NULL ? name : "");
	}
	*out_planes = (struct kvx_cl_planes){planes, layout->n_planes};
	return 0;
}

int kvx_cl_planes_decode(const Kvxp__Layout *layout, struct kvx_cl_planes *out_planes)
{
	uint32_t n = layout != NULL ? (uint32_t)layout->n_planes : 0;
	struct kvxfer_plane *planes;
	char *names;

	if (n == 0) {
		*out_planes = (struct kvx_cl_planes){0};
		return 0;
	}
	planes = planes_room(n, (size_t)n * (KVX_CL_PLANE_NAME_MAX + 1), &names);
	if (planes == NULL)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		const Kvxp__Plane *plane = layout->planes[i];

		planes[i] = (struct kvxfer_plane){
		    .name = names_add(&names, plane->name),
		    .offset = plane->offset,
		    .block_stride = plane->block_stride,
		    .block_bytes = plane->block_bytes,
		    .n_blocks = plane->n_blocks,
		};
	}
	*out_planes = (struct kvx_cl_planes){planes, n};
	return 0;
}

bool kvx_cl_planes_equal(const struct kvx_cl_planes *a, const struct kvx_cl_planes *b)
{
	if (a->n_planes != b->n_planes)
		return false;
	for (uint32_t i = 0; i < a->n_planes; i++) {
		const struct kvxfer_plane *x = &a->planes[i], *y = &b->planes[i];

		if (x->offset != y->offset || x->block_stride != y->block_stride ||
		    x->block_bytes != y->block_bytes || x->n_blocks != y->n_blocks ||
		    strcmp(x->name, y->name) != 0)
			return false;
	}
	return true;
}

void kvx_cl_planes_fini(struct kvx_cl_planes *planes)
{
	free(planes->planes);
	*planes = (struct kvx_cl_planes){0};
}

Kvxp__Layout *kvx_cl_planes_encode(const struct kvx_cl_planes *planes)
{
	uint32_t n = planes->n_planes;
	struct {
		Kvxp__Layout layout;
		Kvxp__Plane *pointers[];
	} * room;
	Kvxp__Plane *messages;

	room = malloc(sizeof(*room) + n * (sizeof(Kvxp__Plane *) + sizeof(Kvxp__Plane)));
	if (room == NULL)
		return NULL;
	messages = (Kvxp__Plane *)(room->pointers + n);
	kvxp__layout__init(&room->layout);
	for (uint32_t i = 0; i < n; i++) {
		const struct kvxfer_plane *plane = &planes->planes[i];

		kvxp__plane__init(&messages[i]);
		messages[i].name = (char *)(uintptr_t)plane->name;
		messages[i].offset = plane->offset;
		messages[i].block_stride = plane->block_stride;
		messages[i].block_bytes = plane->block_bytes;
		messages[i].n_blocks = plane->n_blocks;
		room->pointers[i] = &messages[i];
	}
	room->layout.n_planes = n;
	room->layout.planes = room->pointers;
	return &room->layout;
}
