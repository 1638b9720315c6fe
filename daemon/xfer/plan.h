/* Plan: turns what a transfer asks for (block lists, op lists) into spans, contiguous copies. Pure:
 * no memory is touched, no clock, no thread; the spans are made lazily, so that a list of any size
 * costs no more than itself. Neighbours that are contiguous on both sides are merged, spans over
 * the transport's limit are split; together the spans cover every byte asked for exactly once, in
 * list order. */
#ifndef KVX_PLAN_H
#define KVX_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "mem/layout.h"
#include "proto/kvx_err.h"

struct kvx_span {
	uint64_t local_offset;
	uint64_t remote_offset;
	uint64_t len_bytes;
};

struct kvx_slice {
	uint64_t local_offset, remote_offset, bytes, local_stride, remote_stride;
	uint32_t count;
};
/* One request's worth of input. Arrays are borrowed for the call and copied by kvx_plan_add_*(). */
struct kvx_block_list {
	uint32_t local_plane, remote_plane, n_planes, n_blocks;
	const uint32_t *local_blocks, *remote_blocks; /* [n_blocks] */
	const struct kvx_slice *slice;                /* NULL: whole blocks */
};
struct kvx_op_list {
	uint32_t n_ops, n_lens; /* n_lens: n_ops, or 1: one length for all */
	const uint64_t *local_offsets, *remote_offsets; /* [n_ops] */
	const uint64_t *lens;                           /* [n_lens] */
};
/* The two sides, as far as checking needs them. */
struct kvx_plan_side {
	uint64_t len_bytes;
	const struct kvx_layout *layout; /* NULL: none; must outlive the plan */
};

struct kvx_plan;

int kvx_plan_create(const struct kvx_plan_side *local, const struct kvx_plan_side *remote,
		    struct kvx_plan **out_plan);
void kvx_plan_destroy(struct kvx_plan *plan);
/* Check every span against both sides (no overflow, no wrap) and append. On error the plan is as
 * before. 0; -EINVAL (empty, no layout, bad slice), -ERANGE (block id or op outside), -EMEDIUMTYPE
 * (block_bytes differ, no slice), -EOVERFLOW never: sums that would wrap are -ERANGE; -ENOMEM. *why
 * names the index and the numbers. */
int kvx_plan_add_blocks(struct kvx_plan *plan, const struct kvx_block_list *list,
			struct kvx_why *why);
int kvx_plan_add_ops(struct kvx_plan *plan, const struct kvx_op_list *list, struct kvx_why *why);
/* The list that was added last, and all that follow it, are not walked before it is opened: for
 * lists whose bytes must wait for something. Lists are opened in the order in which they were
 * closed; at least one is closed. */
void kvx_plan_close_last(struct kvx_plan *plan);
void kvx_plan_open_first(struct kvx_plan *plan);
/* The next spans: at most max, together at most max_bytes, none longer than max_span; at least one
 * when there is anything left and max_bytes > 0. A piece is cut only where a limit demands it: one
 * that would fit whole into the next call is left for it. Returns how many; 0: all that was
 * added so far and is not behind a closed list has been given out. */
unsigned kvx_plan_next(struct kvx_plan *plan, uint64_t max_span, uint64_t max_bytes,
		       struct kvx_span *out_spans, unsigned max);
bool kvx_plan_is_drained(const struct kvx_plan *plan);
uint64_t kvx_plan_bytes(const struct kvx_plan *plan);      /* added so far */
uint64_t kvx_plan_backlog(const struct kvx_plan *plan);    /* that next() would give out now */
uint64_t kvx_plan_list_bytes(const struct kvx_plan *plan); /* memory of lists not walked yet */
uint64_t kvx_plan_pieces(
    const struct kvx_plan *plan); /* contiguous pieces asked for so far, before merging */

#endif
