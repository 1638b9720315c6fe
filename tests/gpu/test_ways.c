/* Two daemons that reach each other by RDMA and by fabric, where the RDMA devices reach no GPU
 * memory: what is in host memory goes by the one, and what is in GPU memory by the other, at the
 * same time. RDMA devices and GPUs are stand-ins. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "direct_rig.h"

#define WAIT_MS 20000
#define BLOCKS  32u
#define PLANES  3u

enum end { A_HOST, A_GPU, B_HOST, B_GPU, ENDS };

struct rig {
	struct direct_rig daemons;
	struct gpu_engine ends[ENDS];
};

static bool end_is_gpu(enum end end)
{
	return end == A_GPU || end == B_GPU;
}

static void engines_open(struct rig *r)
{
	static const char *const names[ENDS] = {"a-host", "a-gpu", "b-host", "b-gpu"};

	for (unsigned i = 0; i < ENDS; i++) {
		const struct gpu_engine_conf conf = {.name = names[i],
						     .dev = !end_is_gpu(i) ? -1
							    : i == A_GPU   ? 0
									   : 1,
						     .n_segments = 3,
						     .n_planes = PLANES,
						     .n_blocks = BLOCKS,
						     .block_bytes = 20000,
						     .offset = 4096};

		gpu_engine_open(&r->ends[i], &r->daemons.nodes[i >= B_HOST], &conf);
	}
}

static void engines_close(struct rig *r)
{
	for (unsigned i = 0; i < ENDS; i++)
		gpu_engine_close(&r->ends[i]);
}

/* The daemons, and RDMA devices that reach no GPU memory. */
static bool rig_open(struct rig *r, const char *marks)
{
	memset(r, 0, sizeof(*r));
	if (!direct_start(&r->daemons, "verbs fabric", marks))
		return false;
	engines_open(r);
	return true;
}

static void rig_close(struct rig *r)
{
	engines_close(r);
	direct_stop(&r->daemons);
}

/* One transfer of part of the blocks of a pair of ends, by the engine of node 0. */
struct move {
	enum end local, remote;
	int op;
	uint32_t first, n; /* blocks at both sides */
	struct kvxfer_import *import_;
	uint64_t id;
};

static int move_submit(struct rig *r, struct move *m, const char *require)
{
	struct test_engine *e = &r->ends[m->local].e;
	uint32_t blocks[BLOCKS];
	struct kvxfer_blocks list = {
	    .n_planes = PLANES, .n_blocks = m->n, .local_blocks = blocks, .remote_blocks = blocks};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = m->op,
				    .region = e->region,
				    .import_ = m->import_,
				    .blocks = &list,
				    .tag = 7,
				    .require = require};

	for (uint32_t i = 0; i < m->n; i++)
		blocks[i] = m->first + i;
	return kvxfer_transfer_submit(e->client, &t, &m->id);
}

static struct test_event move_end(struct rig *r, const struct move *m)
{
	return test_wait(&r->ends[m->local].e, KVXFER_EVENT_TERMINAL, m->id, WAIT_MS);
}

static void move_expect(struct rig *r, const struct move *m, const char *transport)
{
	struct test_event ev = move_end(r, m);

	cr_assert_eq(ev.status, KVXFER_OK, "%u to %u: %s %s", m->local, m->remote,
		     kvxfer_status_name(ev.status), ev.text);
	cr_assert_str_eq(ev.transport, transport, "%u to %u", m->local, m->remote);
}

static void engine_fill(struct gpu_engine *g, uint64_t seed)
{
	test_fill(&g->e, seed);
	gpu_engine_put(g);
}

/* Blocks [first, first + n) are those of the source; the others are untouched. */
static void expect_blocks(struct gpu_engine *dst, uint64_t seed, uint32_t first, uint32_t n)
{
	gpu_engine_get(dst);
	for (uint32_t p = 0; p < PLANES; p++)
		for (uint32_t b = 0; b < BLOCKS; b++)
			if (b >= first && b < first + n)
				cr_assert(test_block_is(&dst->e, seed, p, b, b),
					  "plane %u block %u", p, b);
			else
				cr_assert(test_block_is_canary(&dst->e, p, b),
					  "plane %u block %u touched", p, b);
}

static const char *way_of(enum end local, enum end remote)
{
	return end_is_gpu(local) || end_is_gpu(remote) ? "fabric" : "verbs";
}

/* From both regions of node 0 into both of node 1, all at the same time: each into its half. */
static void write_all_ways(struct rig *r, const char *(*way)(enum end, enum end))
{
	struct move moves[4];

	engine_fill(&r->ends[A_HOST], 1);
	engine_fill(&r->ends[A_GPU], 1);
	for (unsigned i = 0; i < 4; i++) {
		struct move *m = &moves[i];

		*m = (struct move){.op = KVXFER_WRITE,
				   .local = i % 2 ? A_GPU : A_HOST,
				   .remote = i / 2 ? B_GPU : B_HOST,
				   .first = i % 2 * BLOCKS / 2,
				   .n = BLOCKS / 2};
		m->import_ = test_engine_import(&r->ends[m->local].e, &r->ends[m->remote].e);
	}
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(move_submit(r, &moves[i], NULL), 0, "%s",
			     kvxfer_client_error(r->ends[moves[i].local].e.client));
	for (unsigned i = 0; i < 4; i++)
		move_expect(r, &moves[i], way(moves[i].local, moves[i].remote));
	expect_blocks(&r->ends[B_HOST], 1, 0, BLOCKS);
	expect_blocks(&r->ends[B_GPU], 1, 0, BLOCKS);
	for (unsigned i = 0; i < 4; i++)
		kvxfer_import_close(moves[i].import_);
}

Test(ways, host_memory_goes_by_rdma_and_gpu_memory_by_fabric_at_the_same_time)
{
	struct rig r;

	if (!rig_open(&r, "bp"))
		return;
	write_all_ways(&r, way_of);
	rig_close(&r);
}

static const char *way_of_direct(enum end local, enum end remote)
{
	(void)local;
	(void)remote;
	return "verbs";
}

Test(ways, all_goes_by_rdma_where_its_devices_reach_gpu_memory)
{
	struct rig r;

	if (!rig_open(&r, "BP"))
		return;
	write_all_ways(&r, way_of_direct);
	rig_close(&r);
}

Test(ways, reads_take_the_same_ways)
{
	static const enum end pairs[][2] = {
	    {A_HOST, B_HOST}, {A_GPU, B_HOST}, {A_HOST, B_GPU}, {A_GPU, B_GPU}};
	struct rig r;

	if (!rig_open(&r, "bp"))
		return;
	engine_fill(&r.ends[B_HOST], 4);
	engine_fill(&r.ends[B_GPU], 4);
	for (unsigned i = 0; i < 4; i++) {
		struct move m = {.op = KVXFER_READ,
				 .local = pairs[i][0],
				 .remote = pairs[i][1],
				 .first = 5,
				 .n = 20};
		struct gpu_engine *dst = &r.ends[m.local];

		memset(dst->e.data, TEST_CANARY, dst->e.bytes);
		gpu_engine_put(dst);
		m.import_ = test_engine_import(&dst->e, &r.ends[m.remote].e);
		cr_assert_eq(move_submit(&r, &m, NULL), 0);
		move_expect(&r, &m, way_of(m.local, m.remote));
		expect_blocks(dst, 4, 5, 20);
		kvxfer_import_close(m.import_);
	}
	rig_close(&r);
}

Test(ways, required_transport_is_taken_or_refused)
{
	struct move host = {.op = KVXFER_WRITE, .local = A_HOST, .remote = B_HOST, .n = 3};
	struct move gpu = {.op = KVXFER_WRITE, .local = A_GPU, .remote = B_HOST, .n = 3};
	struct test_event ev;
	struct rig r;

	if (!rig_open(&r, "bp"))
		return;
	host.import_ = test_engine_import(&r.ends[A_HOST].e, &r.ends[B_HOST].e);
	gpu.import_ = test_engine_import(&r.ends[A_GPU].e, &r.ends[B_HOST].e);
	cr_assert_eq(move_submit(&r, &host, "fabric"), 0);
	move_expect(&r, &host, "fabric");
	cr_assert_eq(move_submit(&r, &host, "verbs"), 0);
	move_expect(&r, &host, "verbs");
	cr_assert_eq(move_submit(&r, &gpu, "verbs"), 0);
	ev = move_end(&r, &gpu);
	cr_assert_neq(ev.status, KVXFER_OK);
	cr_assert(strstr(ev.text, "verbs") != NULL, "%s", ev.text);
	kvxfer_import_close(host.import_);
	kvxfer_import_close(gpu.import_);
	rig_close(&r);
}

/* A region that goes away while transfers of both ways are under way: they end, its importers are
 * told after that, and what else there is goes on. */
Test(ways, unregistered_region_is_told_after_its_transfers_by_both_lanes)
{
	struct move moves[40];
	struct rig r;

	if (!rig_open(&r, "bp"))
		return;
	for (unsigned i = 0; i < 40; i++) {
		struct move *m = &moves[i];

		*m = (struct move){.op = KVXFER_WRITE,
				   .local = i % 2 ? A_GPU : A_HOST,
				   .remote = B_HOST,
				   .n = BLOCKS};
		m->import_ = i < 2 ? test_engine_import(&r.ends[m->local].e, &r.ends[B_HOST].e)
				   : moves[i % 2].import_;
		cr_assert_eq(move_submit(&r, m, NULL), 0);
	}
	cr_assert_eq(kvxfer_region_unregister(r.ends[B_HOST].e.region), 0);
	r.ends[B_HOST].e.region = NULL;
	for (unsigned i = 0; i < 2; i++) {
		struct test_engine *e = &r.ends[moves[i].local].e;

		test_wait(e, KVXFER_EVENT_IMPORT_LOST, 0, WAIT_MS);
		for (unsigned k = i; k < 40; k += 2)
			cr_assert_eq(test_count(e, KVXFER_EVENT_TERMINAL, moves[k].id), 1,
				     "told before transfer %u had ended", k);
	}
	for (unsigned i = 0; i < 2; i++)
		kvxfer_import_close(moves[i].import_);
	rig_close(&r);
}

/* What was submitted ends, once each. Returns how many went well. */
static unsigned expect_all_end(struct rig *r, const struct move *moves, unsigned n)
{
	unsigned n_ok = 0;

	for (unsigned i = 0; i < n; i++)
		n_ok += move_end(r, &moves[i]).status == KVXFER_OK;
	rig_sleep_ms(50);
	for (unsigned i = 0; i < n; i++)
		cr_assert_eq(
		    test_count(&r->ends[moves[i].local].e, KVXFER_EVENT_TERMINAL, moves[i].id), 0,
		    "twice");
	return n_ok;
}

/* Into `gpu`, which is about to go, by fabric; and into host memory, which stays, by RDMA. */
static void submit_both(struct rig *r, struct move *moves, unsigned n, struct kvxfer_import *gpu,
			struct kvxfer_import *host)
{
	for (unsigned i = 0; i < n; i++) {
		moves[i] = (struct move){.op = i % 3 == 0 ? KVXFER_READ : KVXFER_WRITE,
					 .local = A_HOST,
					 .remote = i % 2 ? B_GPU : B_HOST,
					 .first = i % BLOCKS,
					 .n = 1,
					 .import_ = i % 2 ? gpu : host};
		cr_assert_eq(move_submit(r, &moves[i], NULL), 0);
	}
}

static void expect_host_moves_went_well(struct rig *r, const struct move *moves, unsigned n)
{
	struct move host[64];
	unsigned n_host = 0;

	for (unsigned i = 0; i < n; i++)
		if (moves[i].remote == B_HOST)
			host[n_host++] = moves[i];
	cr_assert_eq(expect_all_end(r, host, n_host), n_host, "the other lane was disturbed");
}

static void expect_gpu_moves_ended(struct rig *r, const struct move *moves, unsigned n)
{
	struct move gpu[64];
	unsigned n_gpu = 0;

	for (unsigned i = 0; i < n; i++)
		if (moves[i].remote == B_GPU)
			gpu[n_gpu++] = moves[i];
	expect_all_end(r, gpu, n_gpu);
}

Test(ways, killed_owner_of_gpu_memory_does_not_disturb_the_other_lane)
{
	const struct rig_victim_conf conf = {
	    .dev = 1, .n_planes = PLANES, .n_blocks = BLOCKS, .block_bytes = 20000, .fill = 7};
	struct kvxfer_import *host, *gpu;
	struct move moves[64];
	struct rig_victim v;
	struct rig r;

	if (!rig_open(&r, "bp"))
		return;
	host = test_engine_import(&r.ends[A_HOST].e, &r.ends[B_HOST].e);
	for (unsigned round = 0; round < 3; round++) {
		rig_victim_start(&v, &r.daemons.nodes[1], &conf);
		gpu = rig_import(&r.ends[A_HOST].e, v.desc);
		submit_both(&r, moves, 64, gpu, host);
		rig_sleep_ms(5 * (long)round);
		rig_victim_end(&v, SIGKILL);
		(void)test_wait(&r.ends[A_HOST].e, KVXFER_EVENT_IMPORT_LOST, 0, WAIT_MS);
		for (unsigned i = 1; i < 64; i += 2)
			cr_assert_eq(
			    test_count(&r.ends[A_HOST].e, KVXFER_EVENT_TERMINAL, moves[i].id), 1,
			    "told before transfer %u had ended", i);
		expect_gpu_moves_ended(&r, moves, 64);
		expect_host_moves_went_well(&r, moves, 64);
		kvxfer_import_close(gpu);
	}
	kvxfer_import_close(host);
	rig_close(&r);
}

/* Its transfers go from its GPU memory into host memory: by its second target of that region. */
Test(ways, killed_submitter_leaves_nothing)
{
	const struct rig_victim_conf conf = {
	    .dev = 1, .n_planes = PLANES, .n_blocks = BLOCKS, .block_bytes = 20000, .fill = 7};
	struct rig_victim v;
	struct rig r;

	if (!rig_open(&r, "bp"))
		return;
	gpu_engine_close(&r.ends[B_GPU]);
	for (unsigned round = 0; round < 3; round++) {
		char line[RIG_LINE], hex[RIG_MAX_DESC];

		rig_victim_start(&v, &r.daemons.nodes[1], &conf);
		cr_assert_neq(v.desc[0], '\0', "%s", v.answer);
		rig_hex(r.ends[A_HOST].e.region, hex);
		snprintf(line, sizeof(line), "storm %s", hex);
		cr_assert_eq(strncmp(rig_victim_ask(&v, line), "on", 2), 0, "%s", v.answer);
		rig_sleep_ms(20 * (long)round);
		rig_victim_end(&v, SIGKILL);
	}
	for (unsigned i = 0; i < 1000 && standin_usage(1).n_maps > 0; i++)
		rig_sleep_ms(10);
	cr_assert_eq(standin_usage(1).n_maps, 0);
	cr_assert_eq(standin_usage(1).orphan_bytes, 0, "memory of the dead is kept");
	for (unsigned i = 0; i < B_GPU; i++)
		gpu_engine_close(&r.ends[i]);
	direct_stop(&r.daemons);
}

Test(ways, lost_gpu_does_not_disturb_the_other_lane)
{
	struct kvxfer_import *host, *gpu;
	struct move moves[64];
	struct rig r;

	if (!rig_open(&r, "bp"))
		return;
	host = test_engine_import(&r.ends[A_HOST].e, &r.ends[B_HOST].e);
	gpu = test_engine_import(&r.ends[A_HOST].e, &r.ends[B_GPU].e);
	submit_both(&r, moves, 64, gpu, host);
	standin_lose(1, STANDIN_ILLEGAL_ADDRESS);
	expect_gpu_moves_ended(&r, moves, 64);
	expect_host_moves_went_well(&r, moves, 64);
	(void)test_wait(&r.ends[A_HOST].e, KVXFER_EVENT_IMPORT_LOST, 0, WAIT_MS);
	kvxfer_import_close(host);
	kvxfer_import_close(gpu);
	test_engine_close(&r.ends[B_GPU].e); /* its memory is the dead device's */
	for (unsigned i = 0; i < B_GPU; i++)
		gpu_engine_close(&r.ends[i]);
	direct_stop(&r.daemons);
}

/* Many at once, both ways and both directions, blocks picked at random: each transfer has blocks
 * of its own on both sides, and whatever is there in the end is what was sent there last. */
Test(ways, many_at_once_mix_nothing_up)
{
	enum { PER_PAIR = 8, ROUNDS = 6 };
	struct kvxfer_import *imports[4];
	struct move moves[4 * PER_PAIR];
	struct rig r;

	if (!rig_open(&r, "bp"))
		return;
	for (unsigned i = 0; i < 4; i++)
		imports[i] = test_engine_import(&r.ends[i % 2 ? A_GPU : A_HOST].e,
						&r.ends[i / 2 ? B_GPU : B_HOST].e);
	for (unsigned round = 0; round < ROUNDS; round++) {
		int op = round % 2 ? KVXFER_READ : KVXFER_WRITE;

		for (unsigned i = 0; i < ENDS; i++)
			engine_fill(&r.ends[i], 10 + round + ((op == KVXFER_READ) == (i < B_HOST)));
		for (unsigned i = 0; i < 4 * PER_PAIR; i++) {
			unsigned pair = i % 4, slot = i / 4;

			moves[i] = (struct move){
			    .op = op,
			    .local = pair % 2 ? A_GPU : A_HOST,
			    .remote = pair / 2 ? B_GPU : B_HOST,
			    .first =
				(2 * slot + (op == KVXFER_READ ? pair / 2 : pair % 2)) % BLOCKS,
			    .n = 1,
			    .import_ = imports[pair]};
			cr_assert_eq(move_submit(&r, &moves[i], NULL), 0);
		}
		for (unsigned i = 0; i < 4 * PER_PAIR; i++) {
			struct move *m = &moves[i];
			struct gpu_engine *dst = &r.ends[op == KVXFER_READ ? m->local : m->remote];

			move_expect(&r, m, way_of(m->local, m->remote));
			gpu_engine_get(dst);
			for (uint32_t p = 0; p < PLANES; p++)
				cr_assert(test_block_is(&dst->e, 10 + round, p, m->first, m->first),
					  "round %u pair %u plane %u block %u", round, i % 4, p,
					  m->first);
		}
	}
	for (unsigned i = 0; i < 4; i++)
		kvxfer_import_close(imports[i]);
	rig_close(&r);
}

static unsigned count_bounce_lanes(const char *json)
{
	static const char key[] = "\"bounce\"";
	unsigned n = 0;

	for (const char *at = json; (at = strstr(at, key)) != NULL;) {
		at += strlen(key);
		n += strncmp(at + strspn(at, ": "), "true", 4) == 0;
	}
	return n;
}

Test(ways, kvxferctl_lanes_shows_both)
{
	struct rig r;
	char out[8192];

	if (!rig_open(&r, "bp"))
		return;
	kvxfer_import_close(test_engine_import(&r.ends[A_GPU].e, &r.ends[B_GPU].e));
	kvxfer_import_close(test_engine_import(&r.ends[A_HOST].e, &r.ends[B_HOST].e));
	for (unsigned i = 0; i < 2; i++) {
		const char *const argv[] = {getenv("KVXFERCTL"),
					    "--socket",
					    r.daemons.nodes[i].socket,
					    "--json",
					    "lanes",
					    NULL};

		cr_assert_eq(test_run(argv, out, sizeof(out)), 0, "%s", out);
		cr_assert_eq(count_bounce_lanes(out), 1, "%s", out);
	}
	rig_close(&r);
}
