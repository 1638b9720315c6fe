/* Many transfers at once between GPUs and host memory, on streams whose copies take each another
 * time and are done in two halves: whatever is told as OK is there, nothing is touched that was not
 * asked for, and after an end, good or bad, nothing lands any more. On a real GPU the
 * same, but it cannot be made to wait. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_rig.h"

#define N_BLOCKS  48
#define N_PLANES  3
#define N_ENGINES 4
#define ROUNDS    60

static struct test_node node;
static struct gpu_engine engines[N_ENGINES];
static struct kvxfer_import *imports[N_ENGINES][N_ENGINES]; /* [who][whose] */
static uint64_t random_state;

static uint32_t below(uint32_t n)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(random_state >> 33) % n;
}

static uint64_t seed_of_run(void)
{
	const char *text = getenv("KVX_GPU_SEED");
	uint64_t seed = text != NULL ? strtoull(text, NULL, 10) : 20261121;

	fprintf(stderr, "# seed %llu\n", (unsigned long long)seed);
	return seed;
}

/* Two devices, one of them twice, and host memory. */
static void open_engines(uint64_t block_bytes)
{
	const int devs[N_ENGINES] = {0, rig_second(), rig_second(), -1};
	static const unsigned segments[N_ENGINES] = {1, 5, 1, 1};

	for (unsigned i = 0; i < N_ENGINES; i++) {
		struct gpu_engine_conf conf = {.name = "engine",
					       .dev = devs[i],
					       .n_segments = segments[i],
					       .n_planes = N_PLANES,
					       .n_blocks = N_BLOCKS,
					       .block_bytes = block_bytes};

		gpu_engine_open(&engines[i], &node, &conf);
	}
	for (unsigned i = 0; i < N_ENGINES; i++)
		for (unsigned j = 0; j < N_ENGINES; j++)
			if (i != j)
				imports[i][j] = test_engine_import(&engines[i].e, &engines[j].e);
}

/* Different blocks on each side, each once. */
static void pick_blocks(uint32_t *ids, uint32_t n)
{
	uint32_t all[N_BLOCKS];

	for (uint32_t i = 0; i < N_BLOCKS; i++)
		all[i] = i;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t j = i + below(N_BLOCKS - i), keep = all[i];

		all[i] = all[j];
		all[j] = keep;
		ids[i] = all[i];
	}
}

static void set_canary(struct gpu_engine *g)
{
	memset(g->e.data, TEST_CANARY, g->e.bytes);
	gpu_engine_put(g);
}

struct one {
	unsigned from, to, plane, n_planes;
	uint32_t n, src[N_BLOCKS], dst[N_BLOCKS];
	bool write, cancel;
	uint64_t seed, id;
};

static struct test_engine *submitter(const struct one *o)
{
	return &engines[o->write ? o->from : o->to].e;
}

static void submit(struct one *o)
{
	struct kvxfer_blocks blocks = {.local_plane = o->plane,
				       .remote_plane = o->plane,
				       .n_planes = o->n_planes,
				       .n_blocks = o->n,
				       .local_blocks = o->write ? o->src : o->dst,
				       .remote_blocks = o->write ? o->dst : o->src};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = o->write ? KVXFER_WRITE : KVXFER_READ,
				    .region = submitter(o)->region,
				    .import_ = o->write ? imports[o->from][o->to]
							: imports[o->to][o->from],
				    .blocks = &blocks};

	cr_assert_eq(kvxfer_transfer_submit(submitter(o)->client, &t, &o->id), 0);
}

static void check(const struct one *o, bool ok)
{
	struct gpu_engine *g = &engines[o->to];

	gpu_engine_get(g);
	for (uint32_t p = 0; p < N_PLANES; p++)
		for (uint32_t b = 0; b < N_BLOCKS; b++) {
			uint32_t i = 0;

			while (i < o->n && o->dst[i] != b)
				i++;
			if (i == o->n || p < o->plane || p >= o->plane + o->n_planes)
				cr_assert(test_block_is_canary(&g->e, p, b),
					  "plane %u block %u touched", p, b);
			else if (ok)
				cr_assert(test_block_is(&g->e, o->seed, p, b, o->src[i]),
					  "plane %u block %u is wrong", p, b);
		}
}

static void random_one(struct one *o)
{
	memset(o, 0, sizeof(*o));
	o->from = below(N_ENGINES);
	do
		o->to = below(N_ENGINES);
	while (o->to == o->from || (engines[o->from].dev < 0 && engines[o->to].dev < 0));
	o->plane = below(N_PLANES);
	o->n_planes = 1 + below(N_PLANES - o->plane);
	o->n = 1 + below(N_BLOCKS - 1);
	pick_blocks(o->src, o->n);
	pick_blocks(o->dst, o->n);
	o->write = below(2) != 0;
	o->cancel = below(4) == 0;
	o->seed = random_state | 1;
}

/* One after the other, each looked at as a whole. */
static unsigned run_rounds(unsigned *out_cancelled)
{
	unsigned n_ok = 0;

	for (unsigned round = 0; round < ROUNDS; round++) {
		struct test_event ev;
		struct one o;

		random_one(&o);
		test_fill(&engines[o.from].e, o.seed);
		gpu_engine_put(&engines[o.from]);
		set_canary(&engines[o.to]);
		submit(&o);
		if (o.cancel) {
			rig_sleep_ms(below(12));
			(void)kvxfer_transfer_cancel(submitter(&o)->client, o.id);
		}
		ev = test_wait(submitter(&o), KVXFER_EVENT_TERMINAL, o.id, RIG_WAIT_MS);
		cr_assert(ev.status == KVXFER_OK || (o.cancel && ev.status == KVXFER_CANCELLED),
			  "%s %s", kvxfer_status_name(ev.status), ev.text);
		check(&o, ev.status == KVXFER_OK);
		n_ok += ev.status == KVXFER_OK;
		*out_cancelled += ev.status == KVXFER_CANCELLED;
		if (ev.status == KVXFER_OK)
			continue;
		set_canary(&engines[o.to]);
		rig_sleep_ms(20);
		gpu_engine_get(&engines[o.to]);
		for (uint32_t b = 0; b < N_BLOCKS * N_PLANES; b++)
			cr_assert(
			    test_block_is_canary(&engines[o.to].e, b / N_BLOCKS, b % N_BLOCKS),
			    "landed after the end");
	}
	return n_ok;
}

static void run(uint64_t block_bytes, const char *const *sets)
{
	unsigned n_cancelled = 0, n_ok;
	struct rig_base before;

	if (!rig_any())
		return;
	random_state = seed_of_run();
	test_node_start(&node, sets);
	rig_measure(&node, &before);
	open_engines(block_bytes);
	standin_set_delay(500, 6000, random_state);
	standin_set_torn(true);
	n_ok = run_rounds(&n_cancelled);
	fprintf(stderr, "# %u went well, %u were cancelled in time\n", n_ok, n_cancelled);
	cr_assert_gt(n_ok, ROUNDS / 2);
	if (test_gpu_is_standin())
		cr_assert_gt(n_cancelled, 0, "no cancel was in time");
	standin_set_delay(0, 0, 0);
	for (unsigned i = 0; i < N_ENGINES; i++)
		gpu_engine_close(&engines[i]);
	rig_expect_base(&node, &before);
	rig_expect_good_manners(&node);
	test_node_fini(&node);
	rig_end();
}

Test(gpu_random, blocks_of_16_kib, .timeout = 120)
{
	static const char *const sets[] = {"gpu.gather_max_bytes=0", NULL};

	run(16384, sets);
}

Test(gpu_random, small_blocks_by_the_kernel, .timeout = 120)
{
	static const char *const sets[] = {"gpu.gather_max_bytes=4096", NULL};

	run(1152, sets);
}

Test(gpu_random, one_stream, .timeout = 120)
{
	static const char *const sets[] = {"gpu.streams=1", NULL};

	run(4096, sets);
}

/* Many at once into different places: none takes another's bytes or end. */
Test(gpu_random, many_at_once, .timeout = 120)
{
	enum { N = 24 };
	static struct one all[N];

	if (!rig_any())
		return;
	random_state = seed_of_run();
	test_node_start(&node, NULL);
	open_engines(4096);
	standin_set_delay(200, 3000, random_state);
	test_fill(&engines[0].e, 7);
	gpu_engine_put(&engines[0]);
	for (unsigned turn = 0; turn < 4; turn++) {
		set_canary(&engines[1]);
		for (uint32_t i = 0; i < N; i++) {
			all[i] = (struct one){.from = 0,
					      .to = 1,
					      .n_planes = N_PLANES,
					      .n = 2,
					      .write = i % 2 == 0,
					      .seed = 7};
			all[i].src[0] = all[i].dst[1] = 2 * i;
			all[i].src[1] = all[i].dst[0] = 2 * i + 1;
			submit(&all[i]);
		}
		for (unsigned i = 0; i < N; i++) {
			struct test_event ev = test_wait(submitter(&all[i]), KVXFER_EVENT_TERMINAL,
							 all[i].id, RIG_WAIT_MS);

			cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
			gpu_engine_get(&engines[1]);
			for (uint32_t p = 0; p < N_PLANES; p++)
				for (unsigned b = 0; b < 2; b++)
					cr_assert(test_block_is(&engines[1].e, 7, p, all[i].dst[b],
								all[i].src[b]));
		}
	}
	standin_set_delay(0, 0, 0);
	for (unsigned i = 0; i < N_ENGINES; i++)
		gpu_engine_close(&engines[i]);
	rig_expect_good_manners(&node);
	test_node_fini(&node);
	rig_end();
}
