/* GPU memory over RDMA: real daemons, whose RDMA devices and GPUs are stand-ins, and engines of
 * their own with regions of several allocations. Byte for byte, while what lands in GPU memory is
 * held back until it is flushed; engines that are killed, devices that are lost, memory that RDMA
 * does not reach. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "direct_rig.h"

#define WAIT_MS 20000

struct rig {
	struct direct_rig daemons;
	struct gpu_engine a, b; /* of node 0 and of node 1 */
	struct kvxfer_import *to_b;
};

static bool begin(struct rig *r, const char *marks)
{
	memset(r, 0, sizeof(*r));
	return direct_start(&r->daemons, NULL, marks);
}

static struct gpu_engine_conf engine_conf(int dev, unsigned n_segments, uint64_t block_bytes)
{
	return (struct gpu_engine_conf){.name = "direct",
					.dev = dev,
					.n_segments = n_segments,
					.n_planes = 3,
					.n_blocks = 40,
					.block_bytes = block_bytes,
					.offset = 4096};
}

static void engines_open(struct rig *r, const struct gpu_engine_conf *a,
			 const struct gpu_engine_conf *b)
{
	gpu_engine_open(&r->a, &r->daemons.nodes[0], a);
	gpu_engine_open(&r->b, &r->daemons.nodes[1], b);
	r->to_b = test_engine_import(&r->a.e, &r->b.e);
}

static void engines_close(struct rig *r)
{
	gpu_engine_close(&r->a);
	gpu_engine_close(&r->b);
}

static struct test_event submit(struct rig *r, int op, const struct kvxfer_blocks *blocks)
{
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = op,
				    .region = r->a.e.region,
				    .import_ = r->to_b,
				    .blocks = blocks,
				    .tag = 9,
				    .require = "verbs"};
	uint64_t id;
	int rc = kvxfer_transfer_submit(r->a.e.client, &t, &id);

	cr_assert_eq(rc, 0, "%s", kvxfer_client_error(r->a.e.client));
	return test_wait(&r->a.e, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
}

/* Blocks of every plane from one side to the other, in an order of no neighbours; then every byte
 * of the destination is what it should be. */
static void move(struct rig *r, int op)
{
	struct gpu_engine *src = op == KVXFER_WRITE ? &r->a : &r->b;
	struct gpu_engine *dst = op == KVXFER_WRITE ? &r->b : &r->a;
	uint32_t from[20], to[20], n = 20;
	struct kvxfer_blocks blocks = {.n_planes = dst->e.n_planes,
				       .n_blocks = n,
				       .local_blocks = op == KVXFER_WRITE ? from : to,
				       .remote_blocks = op == KVXFER_WRITE ? to : from};
	struct test_event ev;

	for (uint32_t i = 0; i < n; i++) {
		from[i] = (2 * i + 1) % dst->e.n_blocks;
		to[i] = i < n / 2 ? 39 - 2 * i : i - n / 2; /* half of them neighbours */
	}
	test_fill(&src->e, 3);
	gpu_engine_put(src);
	memset(dst->e.data, TEST_CANARY, dst->e.bytes);
	gpu_engine_put(dst);
	ev = submit(r, op, &blocks);
	cr_assert_eq(ev.status, KVXFER_OK, "%s %s", kvxfer_status_name(ev.status), ev.text);
	cr_assert_str_eq(ev.transport, "verbs");
	gpu_engine_expect(dst, 3, to, from, n);
}

static void between(int dev_a, int dev_b, const char *marks)
{
	struct gpu_engine_conf a = engine_conf(dev_a, dev_a < 0 ? 1 : 7, 9216);
	struct gpu_engine_conf b = engine_conf(dev_b, dev_b < 0 ? 1 : 5, 9216);
	struct rig r;

	if (!begin(&r, marks))
		return;
	engines_open(&r, &a, &b);
	for (unsigned i = 0; i < 3; i++) {
		move(&r, KVXFER_WRITE);
		move(&r, KVXFER_READ);
	}
	engines_close(&r);
	direct_stop(&r.daemons);
}

Test(direct, gpu_to_gpu_both_ways)
{
	between(0, 1, "d");
}

Test(direct, gpu_to_host_both_ways)
{
	between(0, -1, "d");
}

Test(direct, host_to_gpu_both_ways)
{
	between(-1, 1, "d");
}

Test(direct, gpu_memory_by_address_where_there_is_no_dmabuf)
{
	between(0, 1, "db");
}

#define N_AT_ONCE 20u

static uint64_t submit_one(struct rig *r, int op, const uint32_t *block)
{
	struct kvxfer_blocks blocks = {.n_planes = r->a.e.n_planes,
				       .n_blocks = 1,
				       .local_blocks = block,
				       .remote_blocks = block};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = op,
				    .region = r->a.e.region,
				    .import_ = r->to_b,
				    .blocks = &blocks,
				    .require = "verbs"};
	uint64_t id;
	int rc = kvxfer_transfer_submit(r->a.e.client, &t, &id);

	cr_assert_eq(rc, 0, "%s", kvxfer_client_error(r->a.e.client));
	return id;
}

/* Block i goes to b, block N_AT_ONCE + i comes from there, all at the same time; every byte is
 * looked at when its own transfer ends. */
static void round_trip(struct rig *r)
{
	uint64_t ids[2 * N_AT_ONCE];
	uint32_t blocks[2 * N_AT_ONCE];

	test_fill(&r->a.e, 3);
	test_fill(&r->b.e, 4);
	gpu_engine_put(&r->a);
	gpu_engine_put(&r->b);
	for (uint32_t i = 0; i < 2 * N_AT_ONCE; i++) {
		blocks[i] = i % 2 * N_AT_ONCE + i / 2;
		ids[i] = submit_one(r, i % 2 == 0 ? KVXFER_WRITE : KVXFER_READ, &blocks[i]);
	}
	for (uint32_t i = 0; i < 2 * N_AT_ONCE; i++) {
		struct test_event ev = test_wait(&r->a.e, KVXFER_EVENT_TERMINAL, ids[i], WAIT_MS);
		struct gpu_engine *dst = i % 2 == 0 ? &r->b : &r->a;

		cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
		gpu_engine_get(dst);
		for (uint32_t p = 0; p < dst->e.n_planes; p++)
			cr_assert(
			    test_block_is(&dst->e, i % 2 == 0 ? 3 : 4, p, blocks[i], blocks[i]),
			    "plane %u block %u", p, blocks[i]);
	}
}

Test(direct, many_transfers_both_ways_at_once)
{
	struct gpu_engine_conf a = engine_conf(0, 7, 20000), b = engine_conf(1, 9, 20000);
	struct rig r;

	if (!begin(&r, "dw"))
		return;
	engines_open(&r, &a, &b);
	for (unsigned i = 0; i < 5; i++)
		round_trip(&r);
	engines_close(&r);
	direct_stop(&r.daemons);
}

/* Transfers of blocks of their own, while queue pairs fail if so told: how many went well. Those
 * are there. */
static unsigned round_of(struct rig *r, uint64_t seed, bool faults)
{
	uint32_t blocks[2 * N_AT_ONCE];
	uint64_t ids[2 * N_AT_ONCE];
	unsigned n_ok = 0;

	test_fill(&r->a.e, seed);
	test_fill(&r->b.e, seed + 1000);
	gpu_engine_put(&r->a);
	gpu_engine_put(&r->b);
	for (uint32_t i = 0; i < 2 * N_AT_ONCE; i++) {
		blocks[i] = i % 2 * N_AT_ONCE + i / 2;
		ids[i] = submit_one(r, i % 2 == 0 ? KVXFER_WRITE : KVXFER_READ, &blocks[i]);
		if (faults && i % 10 == 5)
			direct_tell(&r->daemons, "x");
	}
	for (uint32_t i = 0; i < 2 * N_AT_ONCE; i++) {
		struct test_event ev = test_wait(&r->a.e, KVXFER_EVENT_TERMINAL, ids[i], WAIT_MS);
		struct gpu_engine *dst = i % 2 == 0 ? &r->b : &r->a;

		if (ev.status != KVXFER_OK)
			continue;
		n_ok++;
		gpu_engine_get(dst);
		for (uint32_t p = 0; p < dst->e.n_planes; p++)
			cr_assert(test_block_is(&dst->e, i % 2 == 0 ? seed : seed + 1000, p,
						blocks[i], blocks[i]),
				  "plane %u block %u", p, blocks[i]);
	}
	return n_ok;
}

Test(direct, what_is_done_is_there_while_queue_pairs_fail)
{
	struct gpu_engine_conf a = engine_conf(0, 7, 20000), b = engine_conf(1, 9, 20000);
	unsigned n_ok = 0, n = 0;
	struct rig r;

	if (!begin(&r, "dw"))
		return;
	engines_open(&r, &a, &b);
	for (; n < 6; n++)
		n_ok += round_of(&r, 10 + n, true);
	cr_assert_gt(n_ok, 0);
	cr_assert_eq(direct_tell(&r.daemons, "f"), 'y', "no fault has hit anything");
	/* The last fault that was asked for may still be to come. */
	for (n = 0; n < 20 && round_of(&r, 90 + n, false) < 2 * N_AT_ONCE; n++)
		;
	cr_assert_lt(n, 20, "it does not come to rest");
	engines_close(&r);
	direct_stop(&r.daemons);
}

/* Is the engine's memory known to a peer by RDMA? Its import says no, or the transfer does. */
static bool reached_by_rdma(struct rig *r)
{
	uint32_t zero = 0;
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 1, .local_blocks = &zero, .remote_blocks = &zero};
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	int len = kvxfer_region_export(r->b.e.region, desc, sizeof(desc));

	cr_assert_gt(len, 0);
	if (kvxfer_import_open(r->a.e.client, desc, (size_t)len, NULL, &r->to_b) != 0)
		return false;
	return submit(r, KVXFER_WRITE, &blocks).status == KVXFER_OK;
}

static void not_reached(const char *marks)
{
	struct gpu_engine_conf conf = engine_conf(0, 3, 9216);
	struct rig r;

	if (!begin(&r, marks))
		return;
	conf.dev = -1;
	gpu_engine_open(&r.a, &r.daemons.nodes[0], &conf);
	conf.dev = 1;
	gpu_engine_open(&r.b, &r.daemons.nodes[1], &conf);
	cr_assert_eq(direct_tell(&r.daemons, "l"), 'a', "no device is told of it");
	cr_assert_not(reached_by_rdma(&r));
	engines_close(&r);
	direct_stop(&r.daemons);
}

Test(direct, memory_that_no_device_reaches_is_not_told_to_peers)
{
	not_reached("bp");
}

Test(direct, dmabuf_that_shows_other_memory_is_not_told_to_peers)
{
	not_reached("op");
}

/* The node has the region, and gives its memory back when its owner is killed amid transfers. */
Test(direct, killed_engine_leaves_nothing)
{
	struct rig_victim_conf conf = {
	    .dev = 1, .n_planes = 3, .n_blocks = 40, .block_bytes = 9216, .fill = 7};
	struct gpu_engine_conf mine = engine_conf(0, 7, 9216);
	struct rig_victim v;
	struct rig r;

	if (!begin(&r, "d"))
		return;
	gpu_engine_open(&r.a, &r.daemons.nodes[0], &mine);
	for (unsigned round = 0; round < 3; round++) {
		char line[RIG_LINE], hex[RIG_MAX_DESC];

		rig_victim_start(&v, &r.daemons.nodes[1], &conf);
		cr_assert_neq(v.desc[0], '\0', "%s", v.answer);
		rig_hex(r.a.e.region, hex);
		snprintf(line, sizeof(line), "storm %s", hex);
		cr_assert_eq(strncmp(rig_victim_ask(&v, line), "on", 2), 0, "%s", v.answer);
		rig_sleep_ms(20 * (long)round);
		rig_victim_end(&v, SIGKILL);
	}
	/* Its node is as good as new. */
	gpu_engine_open(&r.b, &r.daemons.nodes[1], &mine);
	r.to_b = test_engine_import(&r.a.e, &r.b.e);
	move(&r, KVXFER_WRITE);
	move(&r, KVXFER_READ);
	engines_close(&r);
	for (unsigned i = 0; i < 1000 && standin_usage(1).n_maps > 0; i++)
		rig_sleep_ms(10);
	cr_assert_eq(standin_usage(1).orphan_bytes, 0, "memory of the dead is kept");
	cr_assert_eq(standin_usage(1).n_maps, 0);
	direct_stop(&r.daemons);
}

/* What was submitted ends, once each, whatever becomes of the other side's memory. */
static void expect_all_end(struct rig *r, const uint64_t *ids, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		(void)test_wait(&r->a.e, KVXFER_EVENT_TERMINAL, ids[i], WAIT_MS);
	rig_sleep_ms(50);
	for (unsigned i = 0; i < n; i++)
		cr_assert_eq(test_count(&r->a.e, KVXFER_EVENT_TERMINAL, ids[i]), 0, "twice");
}

static void submit_many(struct rig *r, uint64_t *ids, uint32_t *blocks, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		blocks[i] = i % 40;
		ids[i] = submit_one(r, i % 3 == 0 ? KVXFER_READ : KVXFER_WRITE, &blocks[i]);
	}
}

Test(direct, killed_owner_ends_the_transfers_into_its_memory)
{
	struct rig_victim_conf conf = {
	    .dev = 1, .n_planes = 3, .n_blocks = 40, .block_bytes = 20000, .fill = 7};
	struct gpu_engine_conf mine = engine_conf(0, 7, 20000);
	uint32_t blocks[60];
	uint64_t ids[60];
	struct rig_victim v;
	struct rig r;

	if (!begin(&r, "dw"))
		return;
	gpu_engine_open(&r.a, &r.daemons.nodes[0], &mine);
	for (unsigned round = 0; round < 3; round++) {
		rig_victim_start(&v, &r.daemons.nodes[1], &conf);
		r.to_b = rig_import(&r.a.e, v.desc);
		submit_many(&r, ids, blocks, 60);
		rig_sleep_ms(3 * (long)round);
		rig_victim_end(&v, SIGKILL);
		expect_all_end(&r, ids, 60);
		(void)test_wait(&r.a.e, KVXFER_EVENT_IMPORT_LOST, 0, WAIT_MS);
	}
	gpu_engine_close(&r.a);
	direct_stop(&r.daemons);
}

Test(direct, lost_gpu_ends_the_transfers_under_way)
{
	struct gpu_engine_conf a = engine_conf(-1, 1, 20000), b = engine_conf(1, 5, 20000);
	uint32_t blocks[60];
	uint64_t ids[60];
	struct rig r;

	if (!begin(&r, "dw"))
		return;
	engines_open(&r, &a, &b);
	submit_many(&r, ids, blocks, 60);
	standin_lose(1, STANDIN_ILLEGAL_ADDRESS);
	expect_all_end(&r, ids, 60);
	(void)test_wait(&r.a.e, KVXFER_EVENT_IMPORT_LOST, 0, WAIT_MS);
	test_engine_close(&r.b.e); /* its memory is the dead device's */
	gpu_engine_close(&r.a);
	direct_stop(&r.daemons);
}

Test(direct, lost_gpu_takes_its_own_transfers_along)
{
	struct gpu_engine_conf a = engine_conf(-1, 1, 9216), b = engine_conf(1, 5, 9216);
	struct gpu_engine_conf other = engine_conf(0, 3, 9216);
	struct rig r;

	if (!begin(&r, ""))
		return;
	engines_open(&r, &a, &b);
	move(&r, KVXFER_WRITE);
	standin_lose(1, STANDIN_ILLEGAL_ADDRESS);
	(void)test_wait(&r.b.e, KVXFER_EVENT_REGION_LOST, 0, WAIT_MS);
	(void)test_wait(&r.a.e, KVXFER_EVENT_IMPORT_LOST, 0, WAIT_MS);
	test_engine_close(&r.b.e); /* its memory is the dead device's */
	/* Memory of the other device goes on over the same RDMA devices. */
	gpu_engine_open(&r.b, &r.daemons.nodes[1], &other);
	r.to_b = test_engine_import(&r.a.e, &r.b.e);
	move(&r, KVXFER_WRITE);
	move(&r, KVXFER_READ);
	engines_close(&r);
	direct_stop(&r.daemons);
}
