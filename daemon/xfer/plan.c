/* Plan: see plan.h. Owns copies of the block lists and op lists of one transfer, as segments in
 * order of addition, and a cursor over them; a segment that has been walked to its end is freed at
 * once. Everything is checked when it is added (plan_check.c), so that walking checks nothing. Loop
 * thread, called by xfer; touches no memory of regions. */
#include "xfer/plan.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "xfer/plan_check.h"

#define CUT_MIN_BYTES 4096

struct plan_blocks {
	uint32_t local_plane, remote_plane, n_planes, n_blocks;
	bool whole; /* else: slice */
	struct kvx_slice slice;
	const uint32_t *local_blocks, *remote_blocks; /* into the segment's data */
	uint32_t plane, block, piece;                 /* cursor */
	/* of the current plane */
	uint64_t local_base, remote_base, local_stride, remote_stride, bytes;
};

struct plan_ops {
	uint32_t n_ops;
	bool one_len;
	const uint64_t *local_offsets, *remote_offsets, *lens; /* into the segment's data */
	uint32_t at;                                           /* cursor */
};

struct plan_seg {
	struct plan_seg *next;
	size_t alloc_bytes; /* of the whole segment */
	uint64_t bytes;     /* that it asks for */
	bool is_ops;
	bool closed; /* it must not be walked yet, nor what follows */
	union {
		struct plan_blocks blocks;
		struct plan_ops ops;
	};
	uint64_t data[];
};

struct kvx_plan {
	struct kvx_plan_side local, remote;
	struct plan_seg *head, *tail;
	struct kvx_span run; /* being merged; len 0: none */
	uint64_t bytes, pieces, given_bytes;
	uint64_t open_bytes;     /* before the first closed segment */
	struct plan_seg *closed; /* that one; NULL: none is */
	uint64_t list_bytes;
};

int kvx_plan_create(const struct kvx_plan_side *local, const struct kvx_plan_side *remote,
		    struct kvx_plan **out_plan)
{
	struct kvx_plan *plan = calloc(1, sizeof(*plan));
	if (plan == NULL)
		return -ENOMEM;
	plan->local = *local;
	plan->remote = *remote;
	*out_plan = plan;
	return 0;
}

void kvx_plan_destroy(struct kvx_plan *plan)
{
	if (plan == NULL)
		return;
	while (plan->head != NULL) {
		struct plan_seg *seg = plan->head;
		plan->head = seg->next;
		free(seg);
	}
	free(plan);
}

/* Adds to the totals and appends. The totals bound everything that is summed while walking. */
static void plan_append(struct kvx_plan *plan, struct plan_seg *seg, uint64_t bytes,
			uint64_t pieces)
{
	plan->bytes += bytes;
	plan->pieces += pieces;
	plan->list_bytes += seg->alloc_bytes;
	if (plan->closed == NULL)
		plan->open_bytes += bytes;
	seg->bytes = bytes;
	seg->closed = false;
	seg->next = NULL;
	if (plan->head == NULL)
		plan->head = seg;
	else
		plan->tail->next = seg;
	plan->tail = seg;
}

static int totals_fit(const struct kvx_plan *plan, uint64_t bytes, uint64_t pieces,
		      struct kvx_why *why)
{
	uint64_t sum;
	if (__builtin_add_overflow(plan->bytes, bytes, &sum) ||
	    __builtin_add_overflow(plan->pieces, pieces, &sum))
		return plan_too_big(why);
	return 0;
}

static void blocks_load_plane(const struct kvx_plan *plan, struct plan_blocks *b)
{
	const struct kvx_plane *here = &plan->local.layout->planes[b->local_plane + b->plane];
	const struct kvx_plane *there = &plan->remote.layout->planes[b->remote_plane + b->plane];
	b->local_base = here->offset;
	b->remote_base = there->offset;
	b->local_stride = here->block_stride;
	b->remote_stride = there->block_stride;
	b->bytes = here->block_bytes;
	if (!b->whole) {
		b->local_base += b->slice.local_offset;
		b->remote_base += b->slice.remote_offset;
		b->bytes = b->slice.bytes;
	}
}

/* A slice without gaps on either side is one longer piece. */
static void slice_normalise(struct kvx_slice *slice)
{
	if (slice->count > 1 && slice->local_stride == slice->bytes &&
	    slice->remote_stride == slice->bytes) {
		slice->bytes *= slice->count;
		slice->count = 1;
	}
}

int kvx_plan_add_blocks(struct kvx_plan *plan, const struct kvx_block_list *list,
			struct kvx_why *why)
{
	uint64_t bytes = 0, pieces;
	int rc = plan_check_blocks(&plan->local, &plan->remote, list, &bytes, why);
	if (rc != 0)
		return rc;
	pieces = (uint64_t)list->n_planes * list->n_blocks;
	if (__builtin_mul_overflow(pieces, (uint64_t)(list->slice ? list->slice->count : 1),
				   &pieces))
		pieces = UINT64_MAX;
	rc = totals_fit(plan, bytes, pieces, why);
	if (rc != 0)
		return rc;
	size_t ids_bytes = (size_t)list->n_blocks * sizeof(uint32_t);
	size_t alloc_bytes = sizeof(struct plan_seg) + 2 * ids_bytes;
	struct plan_seg *seg = malloc(alloc_bytes);
	if (seg == NULL)
		return kvx_why(why, -ENOMEM, "no memory for %" PRIu32 " block ids", list->n_blocks);
	struct plan_blocks *b = &seg->blocks;
	uint32_t *ids = (uint32_t *)seg->data;
	seg->alloc_bytes = alloc_bytes;
	seg->is_ops = false;
	memset(b, 0, sizeof(*b));
	memcpy(ids, list->local_blocks, ids_bytes);
	memcpy(ids + list->n_blocks, list->remote_blocks, ids_bytes);
	b->local_blocks = ids;
	b->remote_blocks = ids + list->n_blocks;
	b->local_plane = list->local_plane;
	b->remote_plane = list->remote_plane;
	b->n_planes = list->n_planes;
	b->n_blocks = list->n_blocks;
	b->whole = list->slice == NULL;
	b->slice.count = 1;
	if (!b->whole) {
		b->slice = *list->slice;
		slice_normalise(&b->slice);
	}
	blocks_load_plane(plan, b);
	plan_append(plan, seg, bytes, pieces);
	return 0;
}

int kvx_plan_add_ops(struct kvx_plan *plan, const struct kvx_op_list *list, struct kvx_why *why)
{
	uint64_t bytes = 0;
	int rc = plan_check_ops(&plan->local, &plan->remote, list, &bytes, why);
	if (rc == 0)
		rc = totals_fit(plan, bytes, list->n_ops, why);
	if (rc != 0)
		return rc;
	size_t n = list->n_ops;
	size_t alloc_bytes = sizeof(struct plan_seg) + (2 * n + list->n_lens) * sizeof(uint64_t);
	struct plan_seg *seg = malloc(alloc_bytes);
	if (seg == NULL)
		return kvx_why(why, -ENOMEM, "no memory for %" PRIu32 " ops", list->n_ops);
	memcpy(seg->data, list->local_offsets, n * sizeof(uint64_t));
	memcpy(seg->data + n, list->remote_offsets, n * sizeof(uint64_t));
	memcpy(seg->data + 2 * n, list->lens, list->n_lens * sizeof(uint64_t));
	seg->alloc_bytes = alloc_bytes;
	seg->is_ops = true;
	seg->ops = (struct plan_ops){
	    .n_ops = list->n_ops,
	    .one_len = list->n_lens == 1,
	    .local_offsets = seg->data,
	    .remote_offsets = seg->data + n,
	    .lens = seg->data + 2 * n,
	};
	plan_append(plan, seg, bytes, list->n_ops);
	return 0;
}

void kvx_plan_close_last(struct kvx_plan *plan)
{
	struct plan_seg *seg = plan->tail;

	kvx_assert(plan->head != NULL && !seg->closed);
	seg->closed = true;
	if (plan->closed != NULL)
		return;
	plan->closed = seg;
	plan->open_bytes -= seg->bytes;
}

void kvx_plan_open_first(struct kvx_plan *plan)
{
	struct plan_seg *seg = plan->closed;

	kvx_assert(seg != NULL);
	seg->closed = false;
	for (; seg != NULL && !seg->closed; seg = seg->next)
		plan->open_bytes += seg->bytes;
	plan->closed = seg;
}

/* The piece at the segment's cursor. */
static inline struct kvx_span seg_peek(const struct plan_seg *seg)
{
	if (seg->is_ops) {
		const struct plan_ops *o = &seg->ops;
		return (struct kvx_span){o->local_offsets[o->at], o->remote_offsets[o->at],
					 o->lens[o->one_len ? 0 : o->at]};
	}
	const struct plan_blocks *b = &seg->blocks;
	struct kvx_span piece = {b->local_base + b->local_blocks[b->block] * b->local_stride,
				 b->remote_base + b->remote_blocks[b->block] * b->remote_stride,
				 b->bytes};
	if (b->piece > 0) {
		piece.local_offset += b->piece * b->slice.local_stride;
		piece.remote_offset += b->piece * b->slice.remote_stride;
	}
	return piece;
}

/* Moves the cursor; false: that was the last piece. */
static inline bool seg_advance(const struct kvx_plan *plan, struct plan_seg *seg)
{
	if (seg->is_ops)
		return ++seg->ops.at < seg->ops.n_ops;
	struct plan_blocks *b = &seg->blocks;
	if (++b->piece < b->slice.count)
		return true;
	b->piece = 0;
	if (++b->block < b->n_blocks)
		return true;
	b->block = 0;
	if (++b->plane >= b->n_planes)
		return false;
	blocks_load_plane(plan, b);
	return true;
}

static inline bool span_continues(const struct kvx_span *run, const struct kvx_span *piece)
{
	return run->local_offset + run->len_bytes == piece->local_offset &&
	       run->remote_offset + run->len_bytes == piece->remote_offset;
}

/* One call's output. */
struct plan_out {
	struct kvx_span *spans;
	unsigned n, max;
	uint64_t left, max_span, max_bytes;
};

/* As much of the run as the limits allow becomes a span; false: nothing more fits. */
static inline bool out_put(struct plan_out *out, struct kvx_span *run)
{
	uint64_t take = run->len_bytes;
	if (out->n == out->max || out->left == 0)
		return false;
	/* What fits whole into the next call is not cut, nor is a crumb cut off. */
	if (take > out->left && out->n > 0 && (take <= out->max_bytes || out->left < CUT_MIN_BYTES))
		return false;
	take = take < out->max_span ? take : out->max_span;
	take = take < out->left ? take : out->left;
	out->spans[out->n++] = (struct kvx_span){run->local_offset, run->remote_offset, take};
	run->local_offset += take;
	run->remote_offset += take;
	run->len_bytes -= take;
	out->left -= take;
	return true;
}

/* A run is made as long as its neighbours allow, but only up to what this call can give out: so a
 * run of any length costs no more per call than what comes of it. */
unsigned kvx_plan_next(struct kvx_plan *plan, uint64_t max_span, uint64_t max_bytes,
		       struct kvx_span *out_spans, unsigned max)
{
	struct plan_out out = {out_spans, 0, max, max_bytes, max_span, max_bytes};
	struct kvx_span run = plan->run;
	struct plan_seg *seg;
	kvx_assert(max_span > 0);
	while ((seg = plan->head) != NULL && !seg->closed) {
		struct kvx_span piece = seg_peek(seg);
		if (run.len_bytes == 0)
			run = piece;
		else if (run.len_bytes < max_span && run.len_bytes < out.left &&
			 span_continues(&run, &piece))
			run.len_bytes += piece.len_bytes;
		else if (!out_put(&out, &run))
			break;
		else if (run.len_bytes == 0)
			run = piece;
		else
			continue; /* there is more of the run to give out first */
		if (!seg_advance(plan, seg)) {
			plan->head = seg->next;
			plan->list_bytes -= seg->alloc_bytes;
			free(seg);
		}
	}
	/* Only the end of all that may be walked ends a run that has not met its limit. */
	while (plan->head == plan->closed && run.len_bytes > 0 && out_put(&out, &run))
		;
	plan->run = run;
	plan->given_bytes += max_bytes - out.left;
	return out.n;
}

bool kvx_plan_is_drained(const struct kvx_plan *plan)
{
	return plan->given_bytes == plan->bytes;
}

uint64_t kvx_plan_bytes(const struct kvx_plan *plan)
{
	return plan->bytes;
}

uint64_t kvx_plan_backlog(const struct kvx_plan *plan)
{
	return plan->open_bytes - plan->given_bytes;
}

uint64_t kvx_plan_list_bytes(const struct kvx_plan *plan)
{
	return plan->list_bytes;
}

uint64_t kvx_plan_pieces(const struct kvx_plan *plan)
{
	return plan->pieces;
}
