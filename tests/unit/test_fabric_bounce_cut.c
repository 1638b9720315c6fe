/* GPU memory over fabric when something ends in the middle of its copies: endpoints, leases,
 * regions, devices. Whatever it is, no buffer goes while a copy uses it, nothing lands after it was
 * said to be over, and what has nothing to do with it goes on. */
#include "fabric_pair.h"

#include "fabric_gpu_fake.h"

#include "fabric_cut.h"
#include "test_end.h"

/* ---- the peer goes, or the connection breaks */

/* a's side is gone while b copies a's bytes into its device. */
static void peer_goes(uint64_t len)
{
	struct gpu_pair g;
	unsigned n_hosts;

	open_and_hold(&g, false, KVX_OP_WRITE, len);
	T->fence(g.p.a.ep);
	PUMP_UNTIL(&g.p, g.p.b.down);
	n_hosts = g.gb.n_hosts;
	for (unsigned i = 0; i < 200; i++)
		pump(&g.p);
	cr_assert_eq(g.gb.n_hosts, n_hosts, "a buffer went under a copy");
	cr_assert_eq(g.gb.n_out, 1);
	fake_release(&g.gb); /* the copy checks that its buffer is there */
	PUMP_UNTIL(&g.p, g.gb.n_out == 0);
	gpu_pair_close(&g);
}

Test(fabric_bounce_cut, a_peer_that_goes_leaves_copies_their_buffers)
{
	peer_goes(4096);
	peer_goes(BIG);
	KVX_TEST_END();
}

/* Our own op is not over before its copy is, though the ep is. */
static void own_op_waits(enum kvx_op_kind kind, uint64_t len)
{
	struct gpu_pair g;

	open_and_hold(&g, true, kind, len);
	T->fence(g.p.b.ep);
	PUMP_UNTIL(&g.p, g.p.a.down);
	for (unsigned i = 0; i < 200; i++)
		pump(&g.p);
	cr_assert_eq(g.p.a.n_done, 0, "over before its copy is");
	fake_release(&g.ga);
	PUMP_UNTIL(&g.p, g.p.a.n_done == 1);
	cr_assert_eq(g.p.a.status, -EHOSTDOWN, "status %d", g.p.a.status);
	gpu_pair_close(&g);
}

Test(fabric_bounce_cut, an_op_of_a_lost_ep_ends_after_its_copy)
{
	own_op_waits(KVX_OP_WRITE, 4096);
	own_op_waits(KVX_OP_READ, 4096);
	own_op_waits(KVX_OP_READ, BIG);
	KVX_TEST_END();
}

/* ---- the fence */

static void fence_waits(bool own, enum kvx_op_kind kind)
{
	struct gpu_pair g;
	struct fake_gpu *gpu;
	struct side *s;
	uint64_t since;

	open_and_hold(&g, own, kind, 4096);
	gpu = own ? &g.ga : &g.gb;
	s = own ? &g.p.a : &g.p.b;
	since = kvx_now_ns();
	fake_hold_ms(gpu, 100);
	cr_assert_eq(T->fence(s->ep), 0);
	cr_assert_geq(kvx_now_ns() - since, 95 * KVX_MS);
	cr_assert_eq(gpu->n_out, 0, "a copy is under way after the fence");
	cr_assert_eq(T->fence(s->ep), 0);
	PUMP_UNTIL(&g.p, g.p.a.n_done == 1);
	cr_assert_lt(g.p.a.status, 0);
	cr_assert_eq(gpu->n_cuts, 0);
	gpu_pair_close(&g);
}

Test(fabric_bounce_cut, a_fence_waits_for_copies)
{
	fence_waits(true, KVX_OP_WRITE);
	fence_waits(true, KVX_OP_READ);
	fence_waits(false, KVX_OP_WRITE);
	fence_waits(false, KVX_OP_READ);
	KVX_TEST_END();
}

Test(fabric_bounce_cut, a_fence_behind_a_broken_ep_waits_too)
{
	struct gpu_pair g;

	open_and_hold(&g, false, KVX_OP_WRITE, 4096);
	T->fence(g.p.a.ep);
	PUMP_UNTIL(&g.p, g.p.b.down);
	fake_hold_ms(&g.gb, 50);
	cr_assert_eq(T->fence(g.p.b.ep), 0);
	cr_assert_eq(g.gb.n_out, 0);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* The device hangs: it is given up, and the fence is over with its reset. */
Test(fabric_bounce_cut, a_fence_gives_a_device_up_that_hangs)
{
	struct gpu_pair g;
	uint64_t since;

	gpu_pair_conf(&g, "tcp");
	g.p.conf.gpu.fence_timeout_ms = 100;
	gpu_pair_open(&g, false, true, 1);
	warm(&g);
	uint8_t *before = gpu_region_image(&g.rb);
	g.gb.reset_takes_ns = 50 * KVX_MS;
	post_and_hold(&g, &g.gb, KVX_OP_WRITE, 4096);
	since = kvx_now_ns();
	cr_assert_eq(T->fence(g.p.b.ep), 0);
	cr_assert_geq(kvx_now_ns() - since, 145 * KVX_MS);
	cr_assert_lt(kvx_now_ns() - since, 3 * KVX_SEC);
	cr_assert_eq(g.gb.n_cuts, 1);
	cr_assert_eq(g.gb.n_out, 0);
	expect_untouched(&g.rb, before);
	free(before);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* ---- memory */

/* A region goes while its bytes are copied: that waits, nothing more is copied, the ep lives. */
static void dereg_waits(bool own, enum kvx_op_kind kind, uint64_t len, int status)
{
	struct gpu_pair g;
	struct fake_gpu *gpu;
	struct gpu_region *r;
	unsigned n_started;
	uint64_t since;

	gpu_pair_conf(&g, "tcp");
	gpu_pair_open(&g, own, !own, 2999);
	gpu = own ? &g.ga : &g.gb;
	r = own ? &g.ra : &g.rb;
	warm(&g);
	gpu->max_tickets = 1; /* there is more to copy than is under way */
	post_and_hold(&g, gpu, kind, len);
	n_started = gpu->n_started;
	since = kvx_now_ns();
	fake_hold_ms(gpu, 60);
	T->mem_dereg(r->mr);
	cr_assert_geq(kvx_now_ns() - since, 55 * KVX_MS);
	cr_assert_eq(gpu->n_out, 0, "a copy is under way in memory that is gone");
	r->mr = NULL;
	memset(r->bytes, 0x77, REGION_BYTES);
	PUMP_UNTIL(&g.p, g.p.a.n_done == 1);
	cr_assert_eq(g.p.a.status, status, "status %d", g.p.a.status);
	cr_assert_eq(gpu->n_started, n_started);
	cr_assert_not(g.p.a.down || g.p.b.down, "the ep has nothing to do with it");
	for (unsigned i = 0; i < REGION_BYTES; i++)
		cr_assert_eq(r->bytes[i], 0x77, "byte %u landed after that", i);
	gpu_pair_close(&g);
}

Test(fabric_bounce_cut, unregistering_waits_for_copies)
{
	dereg_waits(true, KVX_OP_WRITE, 4096, -ECANCELED);
	dereg_waits(true, KVX_OP_READ, 4096, -ECANCELED);
	dereg_waits(false, KVX_OP_WRITE, 4096, -EOWNERDEAD);
	dereg_waits(false, KVX_OP_READ, 4096, -EOWNERDEAD);
	dereg_waits(false, KVX_OP_WRITE, 262144, -EOWNERDEAD);
	KVX_TEST_END();
}

/* Its message is being received, or waits to be: no copy begins. */
Test(fabric_bounce_cut, unregistered_memory_is_out_of_reach_of_what_waits)
{
	struct gpu_pair g;
	struct kvx_op op;
	unsigned taken = 0;

	gpu_pair_conf(&g, "tcp");
	g.p.conf.gpu.bounce_slots = 1;
	gpu_pair_open(&g, false, true, 1);
	warm(&g);
	fake_hold(&g.gb);
	for (unsigned i = 0; i < 2000; i++) {
		op = gpu_op(&g, KVX_OP_WRITE, taken * BIG, taken % 2 ? BIG : 4096);
		op.cookie = taken;
		if (taken < 6)
			taken += (unsigned)T->post(g.p.a.ep, &op, 1);
		pump(&g.p);
	}
	cr_assert_eq(taken, 6);
	cr_assert_eq(g.gb.n_out, 1);
	fake_hold_ms(&g.gb, 20);
	T->mem_dereg(g.rb.mr);
	g.rb.mr = NULL;
	memset(g.rb.bytes, 0x77, REGION_BYTES);
	PUMP_UNTIL(&g.p, g.p.a.n_done == 6);
	cr_assert_eq(g.p.a.n_failed, 6);
	cr_assert_eq(g.p.a.status, -EOWNERDEAD);
	for (unsigned i = 0; i < REGION_BYTES; i++)
		cr_assert_eq(g.rb.bytes[i], 0x77);
	cr_assert_not(g.p.a.down || g.p.b.down);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* ---- the lease */

static void lease_ends(enum kvx_op_kind kind)
{
	struct gpu_pair g;
	struct kvx_op op;
	unsigned n_started;

	gpu_pair_conf(&g, "tcp");
	gpu_pair_open(&g, false, true, 2999);
	warm(&g);
	g.gb.max_tickets = 1;
	post_and_hold(&g, &g.gb, kind, 262144); /* more pieces than one copy */
	n_started = g.gb.n_started;
	T->lease(g.p.b.ep, kvx_now_ns() - 1);
	fake_release(&g.gb);
	PUMP_UNTIL(&g.p, g.p.a.n_done == 1);
	cr_assert_eq(g.p.a.status, -EHOSTDOWN, "status %d", g.p.a.status);
	cr_assert_eq(g.gb.n_started, n_started, "a copy began after the lease");
	op = gpu_op(&g, kind, 0, 4096);
	run_ops(&g.p, &op, 1);
	cr_assert_eq(g.p.a.status, -EHOSTDOWN);
	cr_assert_eq(g.gb.n_started, n_started);
	T->lease(g.p.b.ep, UINT64_MAX);
	run_ops(&g.p, &op, 1);
	cr_assert_eq(g.p.a.status, 0);
	gpu_pair_close(&g);
}

Test(fabric_bounce_cut, a_lease_that_is_over_lets_no_further_copy_begin)
{
	lease_ends(KVX_OP_WRITE);
	lease_ends(KVX_OP_READ);
	KVX_TEST_END();
}

/* What was copied for the peer in time is not sent after it. */
Test(fabric_bounce_cut, a_reply_is_not_sent_after_the_lease)
{
	struct gpu_pair g;

	gpu_pair_open_default(&g, false, true);
	warm(&g);
	uint8_t *before = gpu_region_image(&g.ra);
	post_and_hold(&g, &g.gb, KVX_OP_READ, 4096);
	T->lease(g.p.b.ep, kvx_now_ns() - 1);
	fake_release(&g.gb);
	PUMP_UNTIL(&g.p, g.p.a.n_done == 1);
	cr_assert_eq(g.p.a.status, -EHOSTDOWN);
	expect_untouched(&g.ra, before);
	free(before);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* ---- the device */

/* Ops of a device that is lost fail; those of another one, and of the host, go on. */
static void device_lost(bool own, enum kvx_op_kind kind)
{
	struct gpu_pair g;
	struct fake_gpu second = {.hold_until_ns = 0}, *gpu;
	struct gpu_region other;
	struct kvx_op op;

	pthread_mutex_init(&second.lock, NULL);
	gpu_pair_open_default(&g, own, !own);
	gpu = own ? &g.ga : &g.gb;
	gpu->reset_takes_ns = 500 * KVX_MS;
	gpu_region_open(&other, g.p.a.dom, &second, 2, 7);
	warm(&g);
	post_and_hold(&g, gpu, kind, 4096);
	fake_lose(gpu);
	for (unsigned i = 0; i < 100; i++)
		pump(&g.p);
	cr_assert_eq(g.p.a.n_done, 0, "over before the device was reset");
	PUMP_UNTIL(&g.p, g.p.a.n_done == 1);
	cr_assert_eq(g.p.a.status, -ENODEV, "status %d", g.p.a.status);
	op = gpu_op(&g, kind, 0, 4096);
	run_ops(&g.p, &op, 1);
	cr_assert_eq(g.p.a.status, -ENODEV);
	cr_assert_not(g.p.a.down || g.p.b.down, "the ep has nothing to do with it");
	PUMP_UNTIL(&g.p, gpu->n_hosts == 0);
	if (own) {
		op.local = other.mr;
		run_ops(&g.p, &op, 1);
		cr_assert_eq(g.p.a.status, 0, "another device: status %d", g.p.a.status);
	}
	gpu_region_close(&other);
	gpu_pair_close(&g);
}

Test(fabric_bounce_cut, a_lost_device_fails_its_own_ops_only)
{
	device_lost(true, KVX_OP_WRITE);
	device_lost(true, KVX_OP_READ);
	device_lost(false, KVX_OP_WRITE);
	device_lost(false, KVX_OP_READ);
	KVX_TEST_END();
}

/* A device that hangs for one message lets those of others pass, as long as there are slots. */
Test(fabric_bounce_cut, a_device_that_hangs_holds_up_its_own_messages)
{
	struct gpu_pair g;
	struct fake_gpu second = {.hold_until_ns = 0};
	struct gpu_region other;
	struct kvx_op op;

	pthread_mutex_init(&second.lock, NULL);
	gpu_pair_open_default(&g, true, false);
	gpu_region_open(&other, g.p.a.dom, &second, 2, 7);
	warm(&g);
	post_and_hold(&g, &g.ga, KVX_OP_WRITE, 4096);
	op = gpu_op(&g, KVX_OP_WRITE, 8192, 4096);
	op.local = other.mr;
	run_ops(&g.p, &op, 1);
	cr_assert_eq(g.p.a.status, 0);
	fake_release(&g.ga);
	PUMP_UNTIL(&g.p, g.p.a.n_done == 2);
	gpu_region_close(&other);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

static void copy_fails(bool own, enum kvx_op_kind kind)
{
	struct gpu_pair g;
	struct fake_gpu *gpu;
	struct kvx_op op;

	gpu_pair_open_default(&g, own, !own);
	gpu = own ? &g.ga : &g.gb;
	warm(&g);
	uint8_t *before = gpu_region_image(kind == KVX_OP_WRITE ? &g.rb : &g.ra);
	gpu->fail_copy = -EIO;
	op = gpu_op(&g, kind, 0, 4096);
	run_ops(&g.p, &op, 1);
	cr_assert_eq(g.p.a.status, -EIO, "status %d", g.p.a.status);
	expect_untouched(kind == KVX_OP_WRITE ? &g.rb : &g.ra, before);
	cr_assert_not(g.p.a.down || g.p.b.down);
	run_ops(&g.p, &op, 1);
	cr_assert_eq(g.p.a.status, 0);
	free(before);
	gpu_pair_close(&g);
}

Test(fabric_bounce_cut, a_copy_that_fails_is_no_success)
{
	copy_fails(true, KVX_OP_WRITE);
	copy_fails(true, KVX_OP_READ);
	copy_fails(false, KVX_OP_WRITE);
	copy_fails(false, KVX_OP_READ);
	KVX_TEST_END();
}

/* ---- a peer that lies */

/* Requests whose copies are under way are not answered: they count. */
Test(fabric_bounce_cut, more_requests_than_allowed_end_the_lane)
{
	struct gpu_pair g;
	uint8_t buf[9][KVX_PACK_HEAD_BYTES];

	gpu_pair_conf(&g, "tcp");
	g.p.conf.gpu.bounce_slots = 16;
	gpu_pair_open(&g, false, true, 1);
	warm(&g);
	fake_hold(&g.gb);
	for (unsigned i = 0; i < 8; i++)
		raw_send(&g.p, buf[i], raw_write(&g.p, buf[i], 0x100 + i));
	PUMP_UNTIL(&g.p, g.gb.n_out == 8);
	cr_assert_not(g.p.b.down, "so many are allowed");
	raw_send(&g.p, buf[8], raw_write(&g.p, buf[8], 0x108));
	PUMP_UNTIL(&g.p, g.p.b.down);
	cr_assert_eq(g.p.b.down_status, -EPROTO);
	fake_release(&g.gb);
	PUMP_UNTIL(&g.p, g.gb.n_out == 0);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* b writes out of its GPU; a says that it is done while b still copies. */
Test(fabric_bounce_cut, an_answer_before_the_question_ends_the_lane)
{
	struct gpu_pair g;
	uint8_t buf[64];
	struct kvx_pack_ack ack = {.status = 0};
	struct kvx_op op;

	gpu_pair_open_default(&g, false, true);
	warm(&g);
	fake_hold(&g.gb);
	op = make_op(&g.p.b, KVX_OP_WRITE, 0, 0, 4096);
	op.local = g.rb.mr;
	PUMP_UNTIL(&g.p, T->post(g.p.b.ep, &op, 1) == 1);
	cr_assert_eq(g.gb.n_out, 1);
	ack.id = fab_req_id(&g.p.b.ep->reqs[0]);
	raw_send(&g.p, buf, kvx_pack_acks(buf, sizeof(buf), g.p.a.ep->peer_secret, &ack, 1));
	PUMP_UNTIL(&g.p, g.p.b.down);
	cr_assert_eq(g.p.b.down_status, -EPROTO);
	cr_assert_eq(g.p.b.n_done, 0);
	fake_release(&g.gb);
	T->fence(g.p.b.ep);
	PUMP_UNTIL(&g.p, g.p.b.n_done == 1);
	cr_assert_lt(g.p.b.status, 0);
	gpu_pair_close(&g);
	KVX_TEST_END();
}
