/* Counters and latency histograms. A histogram is written by one thread; counters are plain where
 * one thread owns them and kvx_counter where a worker writes and the loop reads. */
#ifndef KVX_METRICS_H
#define KVX_METRICS_H

#include <stdatomic.h>
#include <stdint.h>

struct kvx_counter {
	_Atomic uint64_t v;
};
static inline void kvx_counter_add(struct kvx_counter *c, uint64_t n) /* single writer */
{
	atomic_store_explicit(&c->v, atomic_load_explicit(&c->v, memory_order_relaxed) + n,
			      memory_order_relaxed);
}
static inline void kvx_counter_add_shared(struct kvx_counter *c, uint64_t n) /* any writers */
{
	atomic_fetch_add_explicit(&c->v, n, memory_order_relaxed);
}
static inline uint64_t kvx_counter_get(const struct kvx_counter *c)
{
	return atomic_load_explicit(&c->v, memory_order_relaxed);
}

/* Log-linear buckets: 16 per power of two (at most 6 % error), values 0..2^40. */
#define KVX_HIST_BUCKETS (16 * 38)
struct kvx_hist {
	uint64_t n;
	uint64_t sum;
	uint64_t min; /* valid when n > 0 */
	uint64_t max;
	uint64_t bucket[KVX_HIST_BUCKETS];
};
void kvx_hist_add(struct kvx_hist *h, uint64_t value);
/* Smallest value v such that a share q (0..1) of the values are <= v, to bucket precision, clamped
 * to [min, max]; 0 when empty. */
uint64_t kvx_hist_quantile(const struct kvx_hist *h, double q);

#endif
