/* What a plan takes and what it refuses: see plan_check.h. Loop thread, called by plan.c; touches
 * no memory of regions. */
#include "xfer/plan_check.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>

/* One side of a block list. */
struct list_side {
	const struct kvx_plan_side *side;
	const char *which; /* "local", "remote" */
	uint32_t first;    /* plane */
	const uint32_t *blocks;
	uint32_t max_at; /* index of the largest id in `blocks` */
	uint64_t slice_offset, slice_stride;
};

int plan_too_big(struct kvx_why *why)
{
	return kvx_why(why, -ERANGE, "more than 2^64 bytes in one transfer: submit less");
}

static uint32_t max_index(const uint32_t *blocks, uint32_t n)
{
	uint32_t best = 0;
	for (uint32_t i = 1; i < n; i++) {
		if (blocks[i] > blocks[best])
			best = i;
	}
	return best;
}

/* Does it have the planes? */
static int side_check(const struct list_side *s, uint32_t n_planes, struct kvx_why *why)
{
	const struct kvx_layout *layout = s->side->layout;
	if (layout == NULL)
		return kvx_why(why, -EINVAL,
			       "the %s region has no layout: register it with one, or use explicit "
			       "ops",
			       s->which);
	if (s->first >= layout->n_planes || n_planes > layout->n_planes - s->first)
		return kvx_why(why, -ERANGE,
			       "%" PRIu32 " planes from %s plane %" PRIu32
			       ": the layout has %" PRIu32,
			       n_planes, s->which, s->first, layout->n_planes);
	return 0;
}

/* The i-th of the list. */
static const struct kvx_plane *side_plane(const struct list_side *s, uint32_t i)
{
	return &s->side->layout->planes[s->first + i];
}

/* Does every block of the list exist in this plane, and lie in the region? */
static int side_check_plane(const struct list_side *s, uint32_t i, struct kvx_why *why)
{
	const struct kvx_plane *plane = side_plane(s, i);
	uint32_t block = s->blocks[s->max_at];
	uint64_t begin, end;
	if (block >= plane->n_blocks)
		return kvx_why(why, -ERANGE,
			       "%s block id %" PRIu32 " (index %" PRIu32
			       " of the list): plane %" PRIu32 " (%s) has %" PRIu32 " blocks",
			       s->which, block, s->max_at, s->first + i, plane->name,
			       plane->n_blocks);
	if (__builtin_mul_overflow((uint64_t)block, plane->block_stride, &begin) ||
	    __builtin_add_overflow(begin, plane->offset, &begin) ||
	    __builtin_add_overflow(begin, plane->block_bytes, &end) || end > s->side->len_bytes ||
	    plane->block_bytes == 0)
		return kvx_why(why, -ERANGE,
			       "%s block id %" PRIu32 " of plane %" PRIu32
			       " (%s) leaves the region of %" PRIu64 " bytes",
			       s->which, block, s->first + i, plane->name, s->side->len_bytes);
	return 0;
}

/* Does every piece of the slice lie in a block of this plane, without overlap? */
static int side_check_slice(const struct list_side *s, uint32_t i, const struct kvx_slice *slice,
			    struct kvx_why *why)
{
	const struct kvx_plane *plane = side_plane(s, i);
	uint64_t end;
	if (slice->count > 1 && s->slice_stride < slice->bytes)
		return kvx_why(why, -EINVAL,
			       "slice: %s_stride %" PRIu64 " is less than its %" PRIu64
			       " bytes: pieces would overlap",
			       s->which, s->slice_stride, slice->bytes);
	if (__builtin_mul_overflow((uint64_t)(slice->count - 1), s->slice_stride, &end) ||
	    __builtin_add_overflow(end, s->slice_offset, &end) ||
	    __builtin_add_overflow(end, slice->bytes, &end) || end > plane->block_bytes)
		return kvx_why(why, -EINVAL,
			       "slice: %" PRIu32 " pieces of %" PRIu64 " bytes at %" PRIu64
			       ", stride %" PRIu64 ", leave the %s block of %" PRIu64
			       " bytes (plane %s)",
			       slice->count, slice->bytes, s->slice_offset, s->slice_stride,
			       s->which, plane->block_bytes, plane->name);
	return 0;
}

static int planes_check(const struct list_side *local, const struct list_side *remote, uint32_t i,
			const struct kvx_slice *slice, struct kvx_why *why)
{
	const struct kvx_plane *here = side_plane(local, i), *there = side_plane(remote, i);
	int rc = side_check_plane(local, i, why);
	if (rc == 0)
		rc = side_check_plane(remote, i, why);
	if (rc != 0)
		return rc;
	if (slice == NULL && here->block_bytes != there->block_bytes)
		return kvx_why(why, -EMEDIUMTYPE,
			       "plane %" PRIu32 " (%s): block_bytes %" PRIu64 " here, %" PRIu64
			       " there: use a slice",
			       local->first + i, here->name, here->block_bytes, there->block_bytes);
	if (slice == NULL)
		return 0;
	rc = side_check_slice(local, i, slice, why);
	return rc == 0 ? side_check_slice(remote, i, slice, why) : rc;
}

int plan_check_blocks(const struct kvx_plan_side *local, const struct kvx_plan_side *remote,
		      const struct kvx_block_list *list, uint64_t *out_bytes, struct kvx_why *why)
{
	const struct kvx_slice *slice = list->slice;
	struct list_side here = {local, "local", list->local_plane, list->local_blocks, 0, 0, 0};
	struct list_side there = {remote, "remote", list->remote_plane, list->remote_blocks, 0,
				  0,      0};
	uint64_t bytes = 0;
	if (list->n_planes == 0 || list->n_blocks == 0)
		return kvx_why(why, -EINVAL,
			       "empty block list: it has %" PRIu32 " planes and %" PRIu32 " blocks",
			       list->n_planes, list->n_blocks);
	if (slice != NULL) {
		if (slice->bytes == 0 || slice->count == 0)
			return kvx_why(why, -EINVAL, "slice: bytes and count must be positive");
		here.slice_offset = slice->local_offset;
		here.slice_stride = slice->local_stride;
		there.slice_offset = slice->remote_offset;
		there.slice_stride = slice->remote_stride;
	}
	int rc = side_check(&here, list->n_planes, why);
	if (rc == 0)
		rc = side_check(&there, list->n_planes, why);
	if (rc != 0)
		return rc;
	here.max_at = max_index(list->local_blocks, list->n_blocks);
	there.max_at = max_index(list->remote_blocks, list->n_blocks);
	for (uint32_t i = 0; i < list->n_planes; i++) {
		rc = planes_check(&here, &there, i, slice, why);
		if (rc != 0)
			return rc;
		uint64_t each = slice == NULL ? side_plane(&here, i)->block_bytes
					      : slice->bytes * slice->count; /* <= block_bytes */
		if (__builtin_mul_overflow(each, (uint64_t)list->n_blocks, &each) ||
		    __builtin_add_overflow(bytes, each, &bytes))
			return plan_too_big(why);
	}
	*out_bytes = bytes;
	return 0;
}

static bool range_ok(uint64_t offset, uint64_t len, uint64_t limit)
{
	return offset <= limit && len <= limit - offset;
}

int plan_check_ops(const struct kvx_plan_side *local, const struct kvx_plan_side *remote,
		   const struct kvx_op_list *list, uint64_t *out_bytes, struct kvx_why *why)
{
	uint64_t bytes = 0;
	if (list->n_ops == 0)
		return kvx_why(why, -EINVAL, "empty op list");
	if (list->n_lens != list->n_ops && list->n_lens != 1)
		return kvx_why(why, -EINVAL,
			       "%" PRIu32 " ops with %" PRIu32 " lengths: give one each, or one",
			       list->n_ops, list->n_lens);
	for (uint32_t i = 0; i < list->n_ops; i++) {
		uint64_t len = list->lens[list->n_lens == 1 ? 0 : i];
		if (len == 0)
			return kvx_why(why, -EINVAL, "op %" PRIu32 " has length 0", i);
		if (!range_ok(list->local_offsets[i], len, local->len_bytes))
			return kvx_why(why, -ERANGE,
				       "op %" PRIu32 ": local offset %" PRIu64 " + %" PRIu64
				       " bytes leaves the region of %" PRIu64 " bytes",
				       i, list->local_offsets[i], len, local->len_bytes);
		if (!range_ok(list->remote_offsets[i], len, remote->len_bytes))
			return kvx_why(why, -ERANGE,
				       "op %" PRIu32 ": remote offset %" PRIu64 " + %" PRIu64
				       " bytes leaves the region of %" PRIu64 " bytes",
				       i, list->remote_offsets[i], len, remote->len_bytes);
		if (__builtin_add_overflow(bytes, len, &bytes))
			return plan_too_big(why);
	}
	*out_bytes = bytes;
	return 0;
}
