/* Samples, random numbers and the clock. No state of its own. */
#include "bench.h"

#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <time.h>

uint64_t kvx_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

void kvx_samples_add(struct kvx_samples *samples, double value)
{
	if (samples->n == samples->max) {
		samples->max = samples->max ? 2 * samples->max : 64;
		samples->values =
		    kvx_tool_realloc(samples->values, samples->max * sizeof(*samples->values));
	}
	samples->values[samples->n++] = value;
	samples->sorted = false;
}

void kvx_samples_fini(struct kvx_samples *samples)
{
	free(samples->values);
	*samples = (struct kvx_samples){0};
}

static int double_compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void samples_sort(struct kvx_samples *samples)
{
	if (!samples->sorted && samples->n > 0)
		qsort(samples->values, samples->n, sizeof(*samples->values), double_compare);
	samples->sorted = true;
}

double kvx_samples_at(struct kvx_samples *samples, double q)
{
	double rank = ceil(q * samples->n);

	if (samples->n == 0)
		return 0;
	samples_sort(samples);
	return samples->values[rank < 1 ? 0 : (unsigned)rank - 1];
}

double kvx_samples_median(struct kvx_samples *samples)
{
	if (samples->n == 0)
		return 0;
	samples_sort(samples);
	return (samples->values[(samples->n - 1) / 2] + samples->values[samples->n / 2]) / 2;
}

double kvx_samples_sum(const struct kvx_samples *samples)
{
	double sum = 0;

	for (unsigned i = 0; i < samples->n; i++)
		sum += samples->values[i];
	return sum;
}

struct json_object *kvx_samples_json(struct kvx_samples *samples)
{
	struct json_object *obj = json_object_new_object();

	kvx_json_set_double(obj, "median", kvx_samples_median(samples));
	kvx_json_set_double(obj, "min", kvx_samples_at(samples, 0));
	kvx_json_set_double(obj, "p25", kvx_samples_at(samples, 0.25));
	kvx_json_set_double(obj, "p75", kvx_samples_at(samples, 0.75));
	kvx_json_set_double(obj, "p99", kvx_samples_at(samples, 0.99));
	kvx_json_set_double(obj, "max", kvx_samples_at(samples, 1));
	kvx_json_set_u64(obj, "n", samples->n);
	return obj;
}

/* splitmix64 */
uint64_t kvx_random_next(struct kvx_random *random)
{
	uint64_t z = (random->state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

uint64_t kvx_random_below(struct kvx_random *random, uint64_t n)
{
	return (uint64_t)(((unsigned __int128)kvx_random_next(random) * n) >> 64);
}

uint32_t *kvx_random_order(struct kvx_random *random, uint32_t n)
{
	uint32_t *order = kvx_tool_alloc(n * sizeof(*order));

	for (uint32_t i = 0; i < n; i++) {
		uint32_t j = (uint32_t)kvx_random_below(random, i + 1);

		order[i] = order[j];
		order[j] = i;
	}
	return order;
}
