/* Copies of GPU memory that outlive what they were begun for: an endpoint that broke, a lease, a
 * failed message, a domain, a device. Memory is given back, and "stopped" said, only when nothing
 * lands any more; what cannot land is waited for once. */
#include "fabric_pair.h"

#include <poll.h>

#include "fabric_gpu_fake.h"

#include "fabric_cut.h"
#include "test_end.h"

/* b's memory goes; copies into it end in a while. */
static void dereg_and_look(struct gpu_pair *g)
{
	fake_hold_ms(&g->gb, 60);
	T->mem_dereg(g->rb.mr);
	g->rb.mr = NULL;
	cr_assert_eq(g->gb.n_out, 0, "a copy is under way in memory that is gone");
	memset(g->rb.bytes, 0x77, REGION_BYTES);
	for (unsigned i = 0; i < 100; i++) {
		pump(&g->p);
		pause_ms(1);
	}
	for (unsigned i = 0; i < REGION_BYTES; i++)
		cr_assert_eq(g->rb.bytes[i], 0x77, "byte %u landed after that", i);
	gpu_pair_close(g);
}

Test(fabric_bounce_late, unregistering_waits_for_copies_of_an_ep_that_broke)
{
	struct gpu_pair g;

	open_and_hold(&g, false, KVX_OP_WRITE, 4096);
	T->fence(g.p.a.ep);
	PUMP_UNTIL(&g.p, g.p.b.down);
	dereg_and_look(&g);
	KVX_TEST_END();
}

Test(fabric_bounce_late, unregistering_waits_for_copies_that_began_before_the_lease_was_over)
{
	struct gpu_pair g;

	gpu_pair_conf(&g, "tcp");
	gpu_pair_open(&g, false, true, 2999);
	warm(&g);
	g.gb.max_tickets = 1;
	post_and_hold(&g, &g.gb, KVX_OP_WRITE, 262144); /* more pieces than one copy */
	T->lease(g.p.b.ep, kvx_now_ns() - 1);
	for (unsigned i = 0; i < 10; i++)
		pump(&g.p);
	dereg_and_look(&g);
	KVX_TEST_END();
}

/* One copy of a message fails, the others of it are under way. */
Test(fabric_bounce_late, unregistering_waits_for_the_other_copies_of_a_failed_message)
{
	struct gpu_pair g;
	struct kvx_op op;

	gpu_pair_conf(&g, "tcp");
	gpu_pair_open(&g, false, true, 2999);
	warm(&g);
	fake_hold(&g.gb);
	op = gpu_op(&g, KVX_OP_WRITE, 0, 262144);
	PUMP_UNTIL(&g.p, T->post(g.p.a.ep, &op, 1) == 1);
	PUMP_UNTIL(&g.p, g.gb.n_out > 1);
	g.gb.fail_copy = -EIO;
	g.gb.n_may_end = 1;
	PUMP_UNTIL(&g.p, g.gb.fail_copy == 0);
	cr_assert_geq(g.gb.n_out, 1);
	dereg_and_look(&g);
	KVX_TEST_END();
}

/* Who asked for it says next that nothing lands any more. */
Test(fabric_bounce_late, a_lease_ended_for_good_waits_for_copies_into_the_device)
{
	struct gpu_pair g;
	uint64_t since;

	open_and_hold(&g, false, KVX_OP_WRITE, 4096);
	since = kvx_now_ns();
	fake_hold_ms(&g.gb, 50);
	T->lease(g.p.b.ep, 0);
	cr_assert_eq(g.gb.n_out, 0, "a copy is under way after it");
	cr_assert_geq(kvx_now_ns() - since, 45 * KVX_MS);
	uint8_t *before = gpu_region_image(&g.rb);
	for (unsigned i = 0; i < 50; i++) {
		side_pump(&g.p.b);
		pause_ms(1);
	}
	expect_untouched(&g.rb, before);
	free(before);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* The library fails under us: copies end, and our ops with them. */
Test(fabric_bounce_late, ops_of_a_lost_domain_end_with_their_copies)
{
	struct gpu_pair g;

	open_and_hold(&g, true, KVX_OP_WRITE, 4096);
	g.p.a.dom->lost = g.p.a.dom->lost_told = true;
	fake_hold_ms(&g.ga, 20);
	cr_assert_eq(T->fence(g.p.a.ep), 0);
	PUMP_UNTIL(&g.p, g.p.a.n_done == 1);
	cr_assert_lt(g.p.a.status, 0);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* Neither ends nor can be reset: that is found out once, however many ask. */
Test(fabric_bounce_late, a_dead_device_is_waited_for_once, .timeout = 60)
{
	struct gpu_pair g;
	struct kvx_op op;
	uint64_t since;

	gpu_pair_conf(&g, "tcp");
	g.p.conf.gpu.fence_timeout_ms = 1000; /* it takes no fourth message when it hangs by then */
	gpu_pair_open(&g, false, true, 1);
	warm(&g);
	g.gb.reset_takes_ns = 600 * KVX_SEC;
	fake_hold(&g.gb);
	op = gpu_op(&g, KVX_OP_READ, 0, 4096);
	for (unsigned i = 0; i < 4; i++) {
		op.cookie = i;
		PUMP_UNTIL(&g.p, T->post(g.p.a.ep, &op, 1) == 1);
	}
	PUMP_UNTIL(&g.p, g.gb.n_out == 4);
	since = kvx_now_ns();
	cr_assert_eq(T->fence(g.p.b.ep), 0);
	cr_assert_lt(kvx_now_ns() - since, 6 * KVX_SEC, "once for all");
	cr_assert_eq(g.gb.n_cuts, 1);
	since = kvx_now_ns();
	for (unsigned i = 0; i < 10; i++)
		cr_assert_eq(T->fence(g.p.b.ep), 0);
	cr_assert_lt(kvx_now_ns() - since, KVX_SEC, "and not again");
	cr_assert_eq(g.gb.n_out, 4);
	g.gb.reset_ns = 0;
	T->mem_dereg(g.rb.mr);
	g.rb.mr = NULL;
	PUMP_UNTIL(&g.p, g.gb.n_out == 0);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* A device that does not answer costs its worker little. */
Test(fabric_bounce_late, a_copy_that_takes_long_is_looked_at_less_often)
{
	uint64_t since, took_ms = 0;
	struct gpu_pair g;
	unsigned n_polls;

	gpu_pair_conf(&g, "tcp");
	g.p.conf.gpu.fence_timeout_ms = 60000;
	gpu_pair_open(&g, true, false, 3);
	warm(&g);
	post_and_hold(&g, &g.ga, KVX_OP_WRITE, 4096);
	n_polls = g.ga.n_polls;
	since = kvx_now_ns();
	while (took_ms < 300 || g.ga.n_polls - n_polls <= 50) {
		struct pollfd fd = {.fd = g.p.a.limits.event_fd, .events = POLLIN};

		cr_assert_lt(took_ms, 10000, "%u looks", g.ga.n_polls - n_polls);
		if (T->arm(g.p.a.dom) == 0)
			cr_assert_eq(poll(&fd, 1, 5000), 1, "nobody looks again");
		side_pump(&g.p.a);
		took_ms = (kvx_now_ns() - since) / KVX_MS;
	}
	cr_assert_lt(g.ga.n_polls - n_polls, 1000 * took_ms / 300, "%u looks",
		     g.ga.n_polls - n_polls);
	fake_release(&g.ga);
	PUMP_UNTIL(&g.p, g.p.a.n_done == 1);
	cr_assert_eq(g.p.a.status, 0);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* ---- between the buffer and the copy */

/* Its data comes when the device is lost: no copy begins, and the buffer goes back. */
Test(fabric_bounce_late, a_device_lost_before_the_data_has_come_takes_none)
{
	static uint8_t data[BIG];
	struct gpu_pair g;
	unsigned n_started;

	gpu_pair_open_default(&g, false, true);
	warm(&g);
	uint8_t *before = gpu_region_image(&g.rb);
	n_started = g.gb.n_started;
	announce(g.p.a.ep, g.p.a.rkey);
	PUMP_UNTIL(&g.p, g.p.b.ep->placing.active);
	cr_assert_not_null(g.p.b.ep->placing.bounce, "it has its buffer");
	fake_lose(&g.gb);
	raw_send(&g.p, data, sizeof(data));
	PUMP_UNTIL(&g.p, g.p.a.down); /* b answers what a's backend never asked */
	cr_assert_eq(g.gb.n_started, n_started);
	PUMP_UNTIL(&g.p, atomic_load(&g.gb.n_hosts) == 0);
	expect_untouched(&g.rb, before);
	free(before);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* ---- devices that are busy with others' calls */

static void *busy_main(void *arg)
{
	struct gpu_pair *g = arg;

	pause_ms(300);
	atomic_store(&g->ga.fail_open, 0);
	atomic_store(&g->gb.fail_open, 0);
	pause_ms(300);
	atomic_store(&g->ga.fail_alloc, 0);
	atomic_store(&g->gb.fail_alloc, 0);
	return NULL;
}

static void busy_open(struct gpu_pair *g, uint32_t fence_ms)
{
	gpu_pair_conf(g, "tcp");
	g->p.conf.gpu.fence_timeout_ms = fence_ms;
	g->ga.fail_open = g->gb.fail_open = -EBUSY;
	g->ga.fail_alloc = g->gb.fail_alloc = -EBUSY;
	gpu_pair_open(g, true, true, 3);
}

Test(fabric_bounce_late, ops_of_a_device_that_is_busy_wait_for_it)
{
	struct gpu_pair g;
	pthread_t thread;

	busy_open(&g, 20000);
	cr_assert_eq(pthread_create(&thread, NULL, busy_main, &g), 0);
	for (unsigned i = 0; i < 4; i++) {
		struct kvx_op op = gpu_op(&g, i % 2 ? KVX_OP_READ : KVX_OP_WRITE, i * 4096, 4096);

		run_ops(&g.p, &op, 1);
		cr_assert_eq(g.p.a.status, 0, "status %d", g.p.a.status);
	}
	pthread_join(thread, NULL);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

Test(fabric_bounce_late, ops_of_a_device_that_is_always_busy_fail_in_the_end)
{
	struct gpu_pair g;

	busy_open(&g, 200);
	struct kvx_op op = gpu_op(&g, KVX_OP_WRITE, 0, 4096);
	run_ops(&g.p, &op, 1);
	cr_assert_lt(g.p.a.status, 0);
	g.ga.fail_open = g.gb.fail_open = 0;
	g.ga.fail_alloc = g.gb.fail_alloc = 0;
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* ---- providers that want to know buffers */

/* Every buffer gets the same key: the provider takes one of them. */
static void few_keys(struct gpu_pair *g)
{
	gpu_pair_conf(g, "tcp");
	side_open(&g->p.a, &g->p.conf);
	side_open(&g->p.b, &g->p.conf);
	cr_assert_eq(kvx_guard_install(), 0);
	g->p.b.dom->info->domain_attr->mr_key_size = 0;
	sides_connect(&g->p);
	gpu_region_open(&g->ra, g->p.a.dom, NULL, 1, 1);
	gpu_region_open(&g->rb, g->p.b.dom, &g->gb, 3, 2);
	side_know(&g->p.a, &g->p.b, &g->rb);
	side_know(&g->p.b, &g->p.a, &g->ra);
	g->p.b.dom->mr_local = true; /* for buffers only: the lane has its own already */
}

static void write_many(struct gpu_pair *g, int status)
{
	for (unsigned i = 0; i < 20; i++) {
		struct kvx_op op = gpu_op(g, i % 2 ? KVX_OP_READ : KVX_OP_WRITE, i * BIG, BIG);

		run_ops(&g->p, &op, 1);
		cr_assert_eq(g->p.a.status, status, "status %d", g->p.a.status);
	}
}

Test(fabric_bounce_late, a_buffer_that_cannot_be_registered_is_given_back)
{
	struct gpu_pair g;

	few_keys(&g);
	write_many(&g, 0);
	cr_assert_eq(g.gb.n_hosts, 1, "one does");
	gpu_pair_close(&g);
	KVX_TEST_END();
}

Test(fabric_bounce_late, without_a_registered_buffer_ops_fail)
{
	static uint8_t page[4096];
	struct fid_mr *taken;
	struct gpu_pair g;

	few_keys(&g);
	cr_assert_eq(fi_mr_reg(g.p.b.dom->domain, page, sizeof(page), FI_SEND | FI_RECV, 0, 0, 0,
			       &taken, NULL),
		     0);
	write_many(&g, -EACCES);
	PUMP_UNTIL(&g.p, atomic_load(&g.gb.n_hosts) == 0);
	cr_assert_not(g.p.a.down || g.p.b.down);
	fi_close(&taken->fid);
	pause_ms(550); /* it is tried again by then */
	write_many(&g, 0);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* ---- resets that are late */

#define LATE_NS (6 * KVX_SEC) /* after which the device is reset */

/* A pair whose device, b's, is not reset for longer than a reset takes when all is well. */
static void open_without_reset(struct gpu_pair *g)
{
	gpu_pair_conf(g, "tcp");
	g->p.conf.gpu.fence_timeout_ms = 10;
	gpu_pair_open(g, false, true, 1);
	warm(g);
	g->gb.reset_takes_ns = LATE_NS;
}

static void fence_and_close(struct gpu_pair *g)
{
	cr_assert_eq(T->fence(g->p.b.ep), 0);
	T->rkey_free(g->p.b.rkey);
	T->ep_close(g->p.b.ep);
	g->p.b.ep = NULL;
}

/* Neither ends nor is the device reset in time: what may still land is waited for all the same. */
Test(fabric_bounce_late, a_copy_that_may_still_land_keeps_ep_and_memory, .timeout = 60)
{
	struct gpu_pair g;
	uint64_t since;

	open_without_reset(&g);
	post_and_hold(&g, &g.gb, KVX_OP_WRITE, 4096);
	since = kvx_now_ns();
	fence_and_close(&g);
	cr_assert_geq(kvx_now_ns() - since, LATE_NS, "a copy may land after the fence");
	cr_assert_eq(g.gb.n_out, 0);
	cr_assert_eq(g.gb.n_cuts, 1);
	T->mem_dereg(g.rb.mr);
	g.rb.mr = NULL;
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* The region alone goes: it is not given back before the copy has ended, in either direction. */
static void dereg_is_late(enum kvx_op_kind kind)
{
	struct gpu_pair g;
	uint64_t since;

	open_without_reset(&g);
	post_and_hold(&g, &g.gb, kind, 4096);
	since = kvx_now_ns();
	T->mem_dereg(g.rb.mr);
	g.rb.mr = NULL;
	cr_assert_geq(kvx_now_ns() - since, LATE_NS, "a copy uses memory that was given back");
	cr_assert_eq(g.gb.n_out, 0);
	gpu_pair_close(&g);
}

Test(fabric_bounce_late, unregistering_waits_for_a_late_reset, .timeout = 60)
{
	dereg_is_late(KVX_OP_WRITE);
	dereg_is_late(KVX_OP_READ);
	KVX_TEST_END();
}

/* What leaves the device for a lane that goes is sent to nobody: the fence does not wait as long,
 * the ep goes, and the buffer stays until the device is reset. */
Test(fabric_bounce_late, a_buffer_of_copies_that_do_not_end_is_not_given_back, .timeout = 60)
{
	struct gpu_pair g;
	uint64_t since;

	open_without_reset(&g);
	post_and_hold(&g, &g.gb, KVX_OP_READ, 4096);
	since = kvx_now_ns();
	fence_and_close(&g);
	cr_assert_lt(kvx_now_ns() - since, LATE_NS - KVX_SEC / 2);
	for (unsigned i = 0; i < 20; i++) {
		side_pump(&g.p.b);
		pause_ms(1);
	}
	cr_assert_eq(g.gb.n_hosts, 1, "the others are given back, this one is not");
	cr_assert_eq(g.gb.n_copiers, 2);
	cr_assert_eq(g.gb.n_out, 1);
	T->mem_dereg(g.rb.mr); /* waits for the reset */
	g.rb.mr = NULL;
	cr_assert_eq(g.gb.n_out, 0);
	for (uint64_t end = kvx_now_ns() + WAIT_NS; g.gb.n_hosts + g.gb.n_copiers > 0;) {
		cr_assert_lt(kvx_now_ns(), end, "nobody looks again");
		side_pump(&g.p.b);
		pause_ms(1);
	}
	gpu_pair_close(&g);
	KVX_TEST_END();
}
