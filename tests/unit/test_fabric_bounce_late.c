/* Copies of GPU memory that outlive what they were begun for: an endpoint that broke, a lease, a
 * failed message, a domain, a device. Memory is given back, and "stopped" said, only when nothing
 * lands any more; and nobody waits for a dead device twice. */
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
	g.p.conf.gpu.fence_timeout_ms = 10;
	gpu_pair_open(&g, false, true, 1);
	warm(&g);
	g.gb.reset_takes_ns = 600 * KVX_SEC;
	fake_hold(&g.gb);
	op = gpu_op(&g, KVX_OP_WRITE, 0, 4096);
	for (unsigned i = 0; i < 4; i++) {
		op.cookie = i;
		PUMP_UNTIL(&g.p, T->post(g.p.a.ep, &op, 1) == 1);
	}
	PUMP_UNTIL(&g.p, g.gb.n_out == 4);
	since = kvx_now_ns();
	cr_assert_eq(T->fence(g.p.b.ep), -EIO);
	cr_assert_lt(kvx_now_ns() - since, 6 * KVX_SEC, "once for all");
	cr_assert_eq(g.gb.n_cuts, 1);
	since = kvx_now_ns();
	for (unsigned i = 0; i < 10; i++)
		cr_assert_eq(T->fence(g.p.b.ep), -EIO);
	T->mem_dereg(g.rb.mr);
	g.rb.mr = NULL;
	cr_assert_lt(kvx_now_ns() - since, KVX_SEC, "and not again");
	g.gb.reset_ns = 0;
	PUMP_UNTIL(&g.p, g.gb.n_out == 0);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* A device that does not answer costs its worker little. */
Test(fabric_bounce_late, a_copy_that_takes_long_is_looked_at_less_often)
{
	struct gpu_pair g;
	unsigned n_polls;
	uint64_t end;

	open_and_hold(&g, true, KVX_OP_WRITE, 4096);
	n_polls = g.ga.n_polls;
	for (end = kvx_now_ns() + 300 * KVX_MS; kvx_now_ns() < end;) {
		struct pollfd fd = {.fd = g.p.a.limits.event_fd, .events = POLLIN};

		if (T->arm(g.p.a.dom) == 0)
			poll(&fd, 1, 100);
		side_pump(&g.p.a);
	}
	cr_assert_lt(g.ga.n_polls - n_polls, 1000, "%u looks", g.ga.n_polls - n_polls);
	cr_assert_gt(g.ga.n_polls - n_polls, 50);
	fake_release(&g.ga);
	PUMP_UNTIL(&g.p, g.p.a.n_done == 1);
	cr_assert_eq(g.p.a.status, 0);
	gpu_pair_close(&g);
	KVX_TEST_END();
}
