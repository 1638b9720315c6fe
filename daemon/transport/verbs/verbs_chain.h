/* The chains that are open on one queue pair, and the room they leave in its send queue. A reliable
 * connected queue pair completes its work requests in their order, and every chain ends in one that
 * completes aloud: so a completion belongs to the oldest chain without one, or something is wrong.
 * Pure; data thread. */
#ifndef KVX_VERBS_CHAIN_H
#define KVX_VERBS_CHAIN_H

#include "transport/verbs/verbs_priv.h"

static inline void verbs_fifo_init(struct verbs_fifo *fifo, struct verbs_chain *ring,
				   uint32_t n_ring, uint32_t depth)
{
	/* No chain is empty: as many as there is room for work requests are enough. */
	kvx_assert(n_ring >= depth && (n_ring & (n_ring - 1)) == 0);
	*fifo = (struct verbs_fifo){.ring = ring, .mask = n_ring - 1, .depth = depth};
}

/* Work requests for which the send queue has room. */
static inline uint32_t verbs_fifo_room(const struct verbs_fifo *fifo)
{
	return fifo->depth - fifo->wrs_open;
}

/* The number that the next chain will have. */
static inline uint32_t verbs_fifo_next(const struct verbs_fifo *fifo)
{
	return fifo->head & VERBS_CHAIN_MASK;
}

static inline void verbs_fifo_push(struct verbs_fifo *fifo, const struct verbs_chain *chain)
{
	kvx_assert(chain->n_wrs >= 1 && chain->n_wrs <= verbs_fifo_room(fifo));
	fifo->ring[fifo->head & fifo->mask] = *chain;
	fifo->head++;
	fifo->wrs_open += chain->n_wrs;
	fifo->bytes_open += chain->bytes;
}

/* The oldest open chain; NULL: none. */
static inline const struct verbs_chain *verbs_fifo_first(const struct verbs_fifo *fifo)
{
	return fifo->head == fifo->tail ? NULL : &fifo->ring[fifo->tail & fifo->mask];
}

/* Is this completion, by the number in its wr_id, that of the oldest chain that has none yet? */
static inline bool verbs_fifo_is_first(const struct verbs_fifo *fifo, uint64_t wr_id)
{
	return fifo->head != fifo->seen &&
	       ((uint32_t)wr_id & VERBS_CHAIN_MASK) == (fifo->seen & VERBS_CHAIN_MASK);
}

/* Does it wait for nothing, and nothing before it? */
static inline bool verbs_fifo_is_done(const struct verbs_fifo *fifo)
{
	return fifo->seen == fifo->tail && fifo->ring[fifo->tail & fifo->mask].flush == NULL;
}

/* That chain has completed, but is not done. */
static inline struct verbs_chain *verbs_fifo_see(struct verbs_fifo *fifo)
{
	return &fifo->ring[fifo->seen++ & fifo->mask];
}

/* Takes the oldest chain out. It stays readable until the next push. */
static inline const struct verbs_chain *verbs_fifo_pop(struct verbs_fifo *fifo)
{
	const struct verbs_chain *chain = &fifo->ring[fifo->tail & fifo->mask];

	if (fifo->seen == fifo->tail)
		fifo->seen++;
	fifo->tail++;
	fifo->wrs_open -= chain->n_wrs;
	fifo->bytes_open -= chain->bytes;
	return chain;
}

#endif
