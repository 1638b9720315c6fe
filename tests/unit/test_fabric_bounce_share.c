/* Page-locked buffers of messages of GPU memory when there are few: devices and lanes leave each
 * other some, whatever a peer does or does not do, and no peer makes us write past one. */
#include "fabric_pair.h"

#include "fabric_gpu_fake.h"

#include "fabric_cut.h"
#include "fabric_lane.h"
#include "test_end.h"

#define BUF_BYTES ((256u << 10) + KVX_PACK_HEAD_BYTES)

/* ---- what a peer says */

static void too_large(bool gpu)
{
	static uint8_t buf[BUF_BYTES];
	struct kvx_pack_writer w;
	struct gpu_pair g;
	unsigned n_started;

	gpu_pair_open_default(&g, false, gpu);
	warm(&g);
	n_started = g.gb.n_started;
	kvx_pack_begin(&w, buf, KVX_PACK_MAX_OPS, UINT64_MAX);
	/* The receive buffer is filled to its end. */
	uint64_t n = sizeof(buf) - KVX_PACK_HDR_BYTES - KVX_PACK_OP_BYTES - KVX_PACK_KEY_BYTES;
	cr_assert_eq(kvx_pack_add(&w, &g.p.a.rkey->key, 0, n), 0);
	uint32_t len = kvx_pack_end(&w, KVX_PACK_WRITE, g.p.a.ep->peer_secret, 0x100);
	cr_assert_eq(len + n, sizeof(buf));
	uint8_t *before = gpu_region_image(&g.rb);
	raw_send(&g.p, buf, sizeof(buf));
	PUMP_UNTIL(&g.p, g.p.b.down);
	cr_assert_eq(g.p.b.down_status, -EPROTO);
	cr_assert_eq(g.gb.n_started, n_started);
	expect_untouched(&g.rb, before);
	free(before);
	gpu_pair_close(&g);
}

Test(fabric_bounce_share, a_message_larger_than_allowed_ends_the_lane)
{
	too_large(true);
	too_large(false);
	KVX_TEST_END();
}

Test(fabric_bounce_share, a_message_of_two_devices_is_refused)
{
	struct fake_gpu second = {.hold_until_ns = 0};
	struct gpu_region other;
	struct gpu_pair g;
	struct kvx_op ops[2];
	unsigned n_started;

	pthread_mutex_init(&second.lock, NULL);
	gpu_pair_open_default(&g, false, true);
	gpu_region_open(&other, g.p.b.dom, &second, 1, 7);
	warm(&g);
	n_started = g.gb.n_started;
	ops[0] = ops[1] = gpu_op(&g, KVX_OP_WRITE, 0, 4096);
	ops[1].remote = know(g.p.a.ep, other.mr);
	run_ops(&g.p, ops, 2);
	cr_assert_eq(g.p.a.n_failed, 2);
	cr_assert_eq(g.p.a.status, -EINVAL);
	cr_assert_eq(g.gb.n_started + second.n_started, n_started);
	cr_assert_not(g.p.a.down || g.p.b.down);
	run_ops(&g.p, &ops[1], 1);
	cr_assert_eq(g.p.a.status, 0, "each alone is taken");
	T->rkey_free(ops[1].remote);
	gpu_region_close(&other);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* ---- devices */

static void many_writes(struct gpu_pair *g, struct kvx_rkey *rkey)
{
	struct kvx_op op = gpu_op(g, KVX_OP_WRITE, 0, 4096);

	op.remote = rkey;
	for (unsigned i = 0; i < 100; i++) {
		run_ops(&g->p, &op, 1);
		cr_assert_eq(g->p.a.status, 0);
	}
}

/* A device that once waited for a buffer costs the others nothing from then on. */
Test(fabric_bounce_share, buffers_are_kept_once_nobody_waits_for_one)
{
	struct fake_gpu x = {.hold_until_ns = 0};
	struct gpu_region other;
	struct gpu_pair g;
	struct kvx_rkey *rkey;
	unsigned n_allocs;

	pthread_mutex_init(&x.lock, NULL);
	gpu_pair_conf(&g, "tcp");
	g.p.conf.gpu.bounce_bytes = 1; /* four buffers */
	g.p.conf.gpu.bounce_slots = 8;
	gpu_pair_open(&g, false, true, 1);
	gpu_region_open(&other, g.p.b.dom, &x, 1, 7);
	rkey = know(g.p.a.ep, other.mr);
	warm(&g);
	fake_hold(&x);
	fake_hold(&g.gb);
	for (unsigned i = 0; i < 5; i++) { /* the first is y's, then x has all, then y waits */
		struct kvx_op op = gpu_op(&g, KVX_OP_WRITE, 0, 4096);

		if (i != 0 && i != 4)
			op.remote = rkey;
		op.cookie = i;
		PUMP_UNTIL(&g.p, T->post(g.p.a.ep, &op, 1) == 1);
		if (i < 4)
			PUMP_UNTIL(&g.p, x.n_out + g.gb.n_out == i + 1);
		for (unsigned k = 0; k < 500; k++)
			pump(&g.p);
	}
	cr_assert_eq(x.n_out, 3);
	cr_assert_eq(g.gb.n_out, 1);
	fake_release(&g.gb);
	for (unsigned k = 0; k < 2000; k++)
		pump(&g.p);
	fake_release(&x);
	PUMP_UNTIL(&g.p, x.n_out + g.gb.n_out == 0 && g.p.a.n_done == 5);
	many_writes(&g, rkey);
	n_allocs = x.n_allocs;
	many_writes(&g, rkey);
	cr_assert_leq(x.n_allocs - n_allocs, 1, "%u buffers for 100 messages",
		      x.n_allocs - n_allocs);
	T->rkey_free(rkey);
	gpu_region_close(&other);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* ---- lanes */

static void run_on(struct gpu_pair *g, struct lane *lane, enum kvx_op_kind kind, uint64_t len)
{
	struct kvx_op op = gpu_op(g, kind, 0, len);

	op.remote = lane->rkey;
	g->p.a.n_done = 0;
	PUMP_UNTIL(&g->p, T->post(lane->a, &op, 1) == 1);
	PUMP_UNTIL(&g->p, g->p.a.n_done == 1);
	cr_assert_eq(g->p.a.status, 0, "status %d", g->p.a.status);
	uint8_t *here = gpu_region_image(&g->ra), *there = gpu_region_image(&g->rb);
	cr_assert_arr_eq(here, there, len);
	free(here);
	free(there);
}

/* As many as there are buffers announce data that never comes; who comes after them is served. */
static void stall(bool gpu_at_b)
{
	struct lane lanes[5];
	struct gpu_pair g;

	gpu_pair_conf(&g, "tcp");
	g.p.conf.gpu.bounce_bytes = 1; /* four buffers */
	gpu_pair_open(&g, !gpu_at_b, gpu_at_b, 3);
	warm(&g);
	for (unsigned i = 0; i < 5; i++)
		lane_open(&g, &lanes[i]);
	for (unsigned i = 0; i < 4; i++) {
		struct kvx_rkey *rkey = know(lanes[i].b, g.ra.mr);

		if (gpu_at_b)
			announce(lanes[i].a, lanes[i].rkey);
		else
			announce(lanes[i].b, rkey);
		T->rkey_free(rkey);
	}
	for (unsigned i = 0; i < 500; i++) {
		pump(&g.p);
		if (i % 64 == 0)
			pause_ms(1); /* helpers */
	}
	run_on(&g, &lanes[4], gpu_at_b ? KVX_OP_WRITE : KVX_OP_READ, 4096);
	run_on(&g, &lanes[4], gpu_at_b ? KVX_OP_WRITE : KVX_OP_READ, BIG);
	run_on(&g, &lanes[4], gpu_at_b ? KVX_OP_WRITE : KVX_OP_READ, 256 << 10);
	cr_assert_not(g.p.a.down || g.p.b.down);
	for (unsigned i = 0; i < 5; i++)
		lane_close(&lanes[i]);
	gpu_pair_close(&g);
}

Test(fabric_bounce_share, peers_that_announce_and_stall_leave_buffers_to_others)
{
	stall(true);
	stall(false);
	KVX_TEST_END();
}

/* What is sent waits for its peer: while copies hold, lanes take what others must have left. */
Test(fabric_bounce_share, a_lane_that_sends_leaves_buffers_to_others)
{
	unsigned n = 0;
	struct lane other;
	struct gpu_pair g;
	struct kvx_op op;

	gpu_pair_conf(&g, "tcp");
	g.p.conf.gpu.bounce_bytes = 8 * (BUF_BYTES + 4096); /* four may go out */
	g.p.conf.gpu.bounce_slots = 8;
	gpu_pair_open(&g, true, false, 3);
	lane_open(&g, &other);
	warm(&g);
	fake_hold(&g.ga);
	op = gpu_op(&g, KVX_OP_WRITE, 0, 4096);
	for (unsigned i = 0; i < 3000; i++) {
		op.cookie = n;
		n += (unsigned)T->post(g.p.a.ep, &op, 1);
		pump(&g.p);
		if (i % 64 == 0)
			pause_ms(1); /* helpers */
	}
	cr_assert_eq(n, 2, "%u of four are one lane's", n);
	op.remote = other.rkey;
	PUMP_UNTIL(&g.p, T->post(other.a, &op, 1) == 1);
	fake_release(&g.ga);
	PUMP_UNTIL(&g.p, g.p.a.n_done == 3);
	cr_assert_eq(g.p.a.n_failed, 0);
	lane_close(&other);
	gpu_pair_close(&g);
	KVX_TEST_END();
}
