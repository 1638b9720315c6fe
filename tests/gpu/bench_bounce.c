/* Do copies and the network overlap? Writes of 16 MiB from GPU to GPU between two nodes over
 * fabric, by a pair of daemons with one bounce slot and by one with four, in turn, so that both see
 * the same machine. On the stand-in GPU runtime, whose ops take as long as they are told. For
 * people: what it measures depends on the machine, so it is no test, only made like one.
 *
 * usage: bench_bounce, with the environment of the gpu tests */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "gpu_rig.h"

#define N_BLOCKS    64
#define N_PLANES    4
#define BLOCK_BYTES 65536u
#define N_TIMED     31

struct timed_pair {
	struct test_node near_node, far_node;
	struct gpu_engine prefill, decode;
	struct kvxfer_import *to_decode;
	double ms[N_TIMED];
};

static void pair_open(struct timed_pair *t, const char *const *sets)
{
	struct gpu_engine_conf conf = {.name = "prefill",
				       .n_planes = N_PLANES,
				       .n_blocks = N_BLOCKS,
				       .block_bytes = BLOCK_BYTES};

	test_node_start(&t->near_node, sets);
	test_node_start(&t->far_node, sets);
	gpu_engine_open(&t->prefill, &t->near_node, &conf);
	conf.name = "decode";
	conf.dev = rig_second();
	gpu_engine_open(&t->decode, &t->far_node, &conf);
	t->to_decode = test_engine_import(&t->prefill.e, &t->decode.e);
}

static void pair_close(struct timed_pair *t)
{
	gpu_engine_close(&t->prefill);
	gpu_engine_close(&t->decode);
	test_node_fini(&t->near_node);
	test_node_fini(&t->far_node);
}

static double pair_write_ms(struct timed_pair *t)
{
	static uint32_t ids[N_BLOCKS];
	struct kvxfer_blocks all = {
	    .n_planes = N_PLANES, .n_blocks = N_BLOCKS, .local_blocks = ids, .remote_blocks = ids};
	struct kvxfer_transfer transfer = {.struct_bytes = sizeof(transfer),
					   .op = KVXFER_WRITE,
					   .region = t->prefill.e.region,
					   .import_ = t->to_decode,
					   .blocks = &all};
	struct timespec from, to;
	uint64_t id;

	for (uint32_t i = 0; i < N_BLOCKS; i++)
		ids[i] = i;
	clock_gettime(CLOCK_MONOTONIC, &from);
	cr_assert_eq(kvxfer_transfer_submit(t->prefill.e.client, &transfer, &id), 0);
	struct test_event ev = test_wait(&t->prefill.e, KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	clock_gettime(CLOCK_MONOTONIC, &to);
	cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	return (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) / 1e6;
}

static int compare_doubles(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static double median(double *ms)
{
	qsort(ms, N_TIMED, sizeof(ms[0]), compare_doubles);
	return ms[N_TIMED / 2];
}

Test(bench_bounce, one_slot_and_four, .timeout = 600)
{
	static const char *const one[] = {"gpu.bounce_slots=1", NULL};
	static const char *const four[] = {"gpu.bounce_slots=4", NULL};
	static const uint32_t delays_us[] = {0, 100, 300, 1000};
	static struct timed_pair alone, together;

	if (!rig_standin())
		return;
	pair_open(&alone, one);
	pair_open(&together, four);
	for (unsigned d = 0; d < sizeof(delays_us) / sizeof(delays_us[0]); d++) {
		standin_set_delay(delays_us[d], delays_us[d], 1);
		for (unsigned i = 0; i < N_TIMED; i++) {
			alone.ms[i] = pair_write_ms(&alone);
			together.ms[i] = pair_write_ms(&together);
		}
		double a = median(alone.ms), b = median(together.ms);
		printf("16 MiB, stand-in GPU runtime, its ops take %4u us: %6.1f ms with 1 slot, "
		       "%6.1f ms with 4: %.2f times as fast\n",
		       delays_us[d], a, b, a / b);
	}
	standin_set_delay(0, 0, 0);
	pair_close(&alone);
	pair_close(&together);
	rig_end();
}
