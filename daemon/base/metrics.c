/* Log-linear latency histograms: a fixed array, no allocation. One thread writes a histogram.
 * Values below 16 have a bucket each; above, every power of two is cut into 16 equal parts. */
#include "base/metrics.h"

#define SUB_BITS 4u
#define N_SUB    (1u << SUB_BITS)

static unsigned hist_index(uint64_t value)
{
	unsigned exponent, index;

	if (value < N_SUB)
		return (unsigned)value;
	exponent = 63u - (unsigned)__builtin_clzll(value);
	index = (exponent - SUB_BITS + 1) * N_SUB +
		(unsigned)((value >> (exponent - SUB_BITS)) & (N_SUB - 1));
	return index < KVX_HIST_BUCKETS ? index : KVX_HIST_BUCKETS - 1;
}

/* Largest value that falls into the bucket. */
static uint64_t hist_upper(unsigned index)
{
	unsigned shift;

	if (index < N_SUB)
		return index;
	shift = index / N_SUB - 1;
	return ((uint64_t)(N_SUB + index % N_SUB + 1) << shift) - 1;
}

void kvx_hist_add(struct kvx_hist *h, uint64_t value)
{
	if (h->n == 0 || value < h->min)
		h->min = value;
	if (value > h->max)
		h->max = value;
	h->n++;
	h->sum += value;
	h->bucket[hist_index(value)]++;
}

/* How many of n values the share q stands for: rounded up, 1 at least. */
static uint64_t hist_rank(uint64_t n, double q)
{
	double exact;
	uint64_t rank;

	if (!(q > 0))
		return 1;
	if (q >= 1)
		return n;
	exact = q * (double)n;
	rank = (uint64_t)exact;
	if ((double)rank < exact)
		rank++;
	return rank == 0 ? 1 : rank;
}

uint64_t kvx_hist_quantile(const struct kvx_hist *h, double q)
{
	uint64_t rank, seen = 0, value = h->max;

	if (h->n == 0)
		return 0;
	rank = hist_rank(h->n, q);
	for (unsigned i = 0; i < KVX_HIST_BUCKETS - 1; i++) {
		seen += h->bucket[i];
		if (seen >= rank) {
			value = hist_upper(i);
			break;
		}
	}
	if (value < h->min)
		return h->min;
	return value > h->max ? h->max : value;
}
