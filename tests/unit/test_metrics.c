/* Histograms: the promised precision over the whole range. */
#include "base/metrics.h"

#include <stdlib.h>
#include <string.h>

#include "test_end.h"

Test(metrics, empty_histogram_has_no_quantile)
{
	static struct kvx_hist h;

	cr_assert_eq(kvx_hist_quantile(&h, 0.5), 0);
	KVX_TEST_END();
}

Test(metrics, one_value_is_every_quantile)
{
	static const uint64_t values[] = {0,    1,         15,         16,        17,
					  1000, 123456789, 1ull << 40, UINT64_MAX};

	for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
		static struct kvx_hist h;

		memset(&h, 0, sizeof(h));
		kvx_hist_add(&h, values[i]);
		cr_assert_eq(kvx_hist_quantile(&h, 0), values[i]);
		cr_assert_eq(kvx_hist_quantile(&h, 0.5), values[i]);
		cr_assert_eq(kvx_hist_quantile(&h, 1), values[i]);
	}
	KVX_TEST_END();
}

/* What the histogram says of a value that is neither its smallest nor its largest. */
static uint64_t value_seen(uint64_t value)
{
	static struct kvx_hist h;

	memset(&h, 0, sizeof(h));
	kvx_hist_add(&h, 0);
	kvx_hist_add(&h, value);
	kvx_hist_add(&h, UINT64_MAX);
	return kvx_hist_quantile(&h, 0.6);
}

static void value_check(uint64_t value)
{
	uint64_t got = value_seen(value);

	cr_assert_geq(got, value);
	cr_assert(got == value || (got - value) * 16 < value, "%lu for %lu", got, value);
}

Test(metrics, each_value_is_found_within_a_sixteenth)
{
	for (uint64_t value = 0; value < 1ull << 40; value += 1 + value / 7)
		value_check(value);
	for (unsigned shift = 0; shift < 40; shift++) { /* both sides of a bucket's edge */
		value_check(1ull << shift);
		value_check((1ull << shift) - 1);
	}
	KVX_TEST_END();
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

Test(metrics, quantiles_match_the_sorted_values)
{
	enum { N = 10001 };
	static struct kvx_hist h;
	static uint64_t values[N];
	static const double qs[] = {0.001, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999};
	uint64_t sum = 0;

	srand(3);
	for (int i = 0; i < N; i++) {
		values[i] = (uint64_t)rand() << (rand() % 9);
		sum += values[i];
		kvx_hist_add(&h, values[i]);
	}
	qsort(values, N, sizeof(values[0]), compare_u64);
	for (size_t i = 0; i < sizeof(qs) / sizeof(qs[0]); i++) {
		uint64_t want = values[(size_t)(qs[i] * N)], got = kvx_hist_quantile(&h, qs[i]);

		cr_assert_geq(got, want, "q %f", qs[i]);
		cr_assert_leq(got, want + want / 15, "q %f: %lu for %lu", qs[i], got, want);
	}
	cr_assert_eq(kvx_hist_quantile(&h, 1), values[N - 1]);
	cr_assert_eq(h.n, N);
	cr_assert_eq(h.sum, sum);
	cr_assert_eq(h.min, values[0]);
	KVX_TEST_END();
}

Test(metrics, counters_add)
{
	struct kvx_counter c = {0};

	kvx_counter_add(&c, 5);
	kvx_counter_add(&c, 7);
	cr_assert_eq(kvx_counter_get(&c), 12);
	KVX_TEST_END();
}
