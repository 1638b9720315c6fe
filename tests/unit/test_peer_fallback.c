/* Peers: which transport a lane goes by: the best that both nodes have, the next one when that does
 * not work, and back. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "peer_pair.h"
#include "test_end.h"

#define BEST (&test_best_ops)
#define FAKE (&test_fake_ops)

static void two_transports(struct rig_side *side)
{
	side->node_conf.peer_ops[0] = BEST;
	side->node_conf.peer_ops[1] = FAKE;
	side->conf.fallback = true;
}

static KVX_ON_LOOP void start_nodes(void)
{
	rig_start(&rig);
	here = rig_region(&rig.a, LEN, RW, NULL);
	there = rig_region(&rig.b, LEN, RW, NULL);
	memset(here->mem.addr, 0x11, LEN);
}

/* Both transports everywhere, in great steps of time. */
static KVX_ON_LOOP void start_both(void)
{
	pair_init_slow();
	two_transports(&rig.a);
	two_transports(&rig.b);
	start_nodes();
}

Test(peer_fallback, best_transport_of_both_is_taken)
{
	struct kvx_lane_row row;

	start_both();
	pair_resolve_again();
	cr_assert(rig_lanes_are(&rig, "default", "best", 1));
	cr_assert(rig_lane(&rig.a, "default", &row));
	cr_assert_eq(row.n_fallback, 0);
	pair_assert_write_works();
	cr_assert_str_eq(rig.a.ends[0].end.transport, "best");
	pair_stop();
	KVX_TEST_END();
}

Test(peer_fallback, transport_that_only_one_side_has_is_not_missed)
{
	struct kvx_lane_row row;
	uint64_t generation;

	pair_init_slow();
	two_transports(&rig.a);
	start_nodes();
	pair_resolve_again();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	cr_assert(rig_lane(&rig.a, "default", &row));
	cr_assert_eq(row.n_fallback, 0, "there is no better one");
	generation = rig_lane_generation(&rig.a);
	pair_leap(70);
	cr_assert_eq(rig_lane_generation(&rig.a), generation);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_fallback, next_transport_is_taken_after_three_failed_set_ups)
{
	struct kvx_lane_row row;

	start_both();
	test_rail(BEST, 0, 0)->cut = true;
	pair_resolve_again();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	cr_assert_eq(test_rail(BEST, 0, 0)->n_connects, 3);
	cr_assert(rig_lane(&rig.a, "default", &row));
	cr_assert_eq(row.n_fallback, 1);
	cr_assert_eq(row.n_failed, 0, "it is up");
	pair_assert_write_works();
	cr_assert_str_eq(rig.a.ends[0].end.transport, "fake");
	pair_stop();
	KVX_TEST_END();
}

Test(peer_fallback, waiting_best_is_passed_over_until_it_is_ready)
{
	struct test_rail *rail;
	uint64_t generation;

	start_both();
	rail = test_rail(BEST, 0, 0);
	test_rail_wait(rail, true);
	pair_resolve_again();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	generation = rig_lane_generation(&rig.a);
	pair_leap(80);
	cr_assert_eq(rig_lane_generation(&rig.a), generation, "made anew for nothing");
	cr_assert_eq(rail->n_listens, 0);
	test_rail_wait(rail, false);
	kvx_fake_device_up(&rig.script, rail->dom);
	cr_assert(RIG_UNTIL(&rig, rig_lanes_are(&rig, "default", "best", 1), 2000));
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_fallback, failures_of_the_other_side_count_too)
{
	start_both();
	test_rail(BEST, 1, 0)->down = true;
	pair_resolve_again();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	cr_assert_eq(test_rail(BEST, 1, 0)->n_listens, 3);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_fallback, lane_goes_back_to_the_best_when_idle)
{
	start_both();
	test_rail(BEST, 0, 0)->cut = true;
	pair_resolve_again();
	test_rail(BEST, 0, 0)->cut = false;
	pair_leap(50);
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1), "too soon");
	pair_leap(20);
	cr_assert(rig_lanes_are(&rig, "default", "best", 1));
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_fallback, busy_lane_stays_as_it_is)
{
	uint64_t generation;

	start_both();
	test_rail(BEST, 0, 0)->cut = true;
	pair_resolve_again();
	test_rail(BEST, 0, 0)->cut = false;
	generation = rig_lane_generation(&rig.a);
	for (unsigned i = 0; i < 60; i++) { /* something in every second */
		pair_leap(2);
		rig.a.n_ends = rig.b.n_arrivals = 0;
		rig.script.latency_ns = 1900 * KVX_MS;
		cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	}
	cr_assert_eq(rig_lane_generation(&rig.a), generation);
	rig.script.latency_ns = 0;
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends > 0, 5000));
	pair_stop();
	KVX_TEST_END();
}

/* The port of either side comes up under constant traffic: nothing of it fails. */
static KVX_ON_LOOP void port_comes_up_under_traffic(unsigned node)
{
	struct test_rail *rail;

	rig.a.node_conf.xfers.lane_retries = rig.b.node_conf.xfers.lane_retries = 1;
	start_nodes();
	rail = test_rail(BEST, node, 0);
	test_rail_wait(rail, true);
	pair_resolve_again();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	rig.script.latency_ns = 3 * KVX_MS;
	for (unsigned i = 0; i < 40; i++) {
		if (i == 10) {
			test_rail_wait(rail, false);
			kvx_fake_device_up(&rig.script, rail->dom);
		}
		cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 10000), 0);
		rig_pass(&rig, 2);
	}
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 40, 5000));
	for (unsigned i = 0; i < 40; i++)
		cr_assert_eq(rig.a.ends[i].end.status, 0, "%u: %s", i, rig.a.ends[i].text);
	cr_assert_str_eq(rig.a.ends[39].end.transport, "best");
	cr_assert(rig_lanes_are(&rig, "default", "best", 1));
	rig.script.latency_ns = 0;
	pair_stop();
}

Test(peer_fallback, busy_lane_goes_back_when_a_port_comes_up)
{
	pair_init_slow();
	two_transports(&rig.a);
	two_transports(&rig.b);
	port_comes_up_under_traffic(0);
	KVX_TEST_END();
}

Test(peer_fallback, busy_lane_goes_back_when_the_other_sides_port_comes_up)
{
	pair_init_slow();
	two_transports(&rig.a);
	two_transports(&rig.b);
	port_comes_up_under_traffic(1);
	KVX_TEST_END();
}

/* Without a word of the device it is tried under traffic too, but rarely. */
Test(peer_fallback, lane_that_is_never_quiet_goes_back_after_minutes)
{
	start_both();
	test_rail(BEST, 0, 0)->cut = true;
	pair_resolve_again();
	test_rail(BEST, 0, 0)->cut = false;
	for (unsigned i = 0; i < 330 && rig_lanes_are(&rig, "default", "fake", 1); i++) {
		rig.a.n_ends = rig.b.n_arrivals = 0;
		cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
		pair_leap(1);
	}
	rig_pass(&rig, 100);
	cr_assert(rig_lanes_are(&rig, "default", "best", 1));
	pair_stop();
	KVX_TEST_END();
}

/* One try, and then what works again; the next try comes later. */
Test(peer_fallback, vain_try_of_the_best_is_short_and_gets_rarer)
{
	unsigned n_connects;

	start_both();
	test_rail(BEST, 0, 0)->cut = true;
	pair_resolve_again();
	n_connects = test_rail(BEST, 0, 0)->n_connects;
	pair_leap(70);
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	cr_assert_eq(test_rail(BEST, 0, 0)->n_connects, n_connects + 1);
	pair_leap(70);
	cr_assert_eq(test_rail(BEST, 0, 0)->n_connects, n_connects + 1);
	pair_leap(70);
	cr_assert_eq(test_rail(BEST, 0, 0)->n_connects, n_connects + 2);
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_fallback, new_connection_begins_with_the_best)
{
	start_both();
	test_rail(BEST, 0, 0)->cut = true;
	pair_resolve_again();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	test_rail(BEST, 0, 0)->cut = false;
	rig_close_side(&rig.b);
	rig_start_side(&rig.b);
	pair_resolve_again();
	cr_assert(rig_lanes_are(&rig, "default", "best", 1));
	pair_stop();
	KVX_TEST_END();
}

Test(peer_fallback, without_it_the_lane_waits_for_the_best)
{
	struct kvx_lane_row row;

	start_both();
	rig_close_side(&rig.a);
	rig.a.conf.fallback = false;
	rig_start_side(&rig.a);
	pair_resolve_again();
	test_rail(BEST, 0, 0)->cut = true;
	kvx_peers_lane_reset(rig.a.peers, target->lane, "the test says so");
	rig_pass(&rig, 2000);
	cr_assert(rig_lane(&rig.a, "default", &row));
	cr_assert_str_eq(row.state, "connecting");
	cr_assert_str_eq(row.transport, "best");
	cr_assert_gt(row.n_failed, 3);
	test_rail(BEST, 0, 0)->cut = false;
	cr_assert(RIG_UNTIL(&rig, rig_lanes_are(&rig, "default", "best", 1), 1000));
	pair_stop();
	KVX_TEST_END();
}

/* It connects, but does not carry data. */
Test(peer_fallback, transport_that_breaks_again_and_again_is_given_up)
{
	start_both();
	pair_resolve_again();
	cr_assert(rig_lanes_are(&rig, "default", "best", 1));
	for (unsigned i = 0; i < 3; i++) {
		cr_assert(rig_lanes_are(&rig, "default", "best", 1), "after %u", i);
		rig.script.ep_down_at_op = (unsigned)rig.script.n_ops + 1;
		cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 10000), 0);
		cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == i + 1, 1000));
		cr_assert_lt(rig.a.ends[i].end.status, 0);
		rig_pass(&rig, 150);
	}
	rig.script.ep_down_at_op = 0;
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_fallback, required_transport_is_never_replaced)
{
	start_both();
	pair_resolve_again();
	cr_assert(rig_lanes_are(&rig, "default", "best", 1));
	/* One that waits for the best, and is then overtaken by the fallback. */
	test_rail(BEST, 0, 0)->cut = true;
	kvx_peers_lane_reset(rig.a.peers, target->lane, "the test says so");
	rig_pass(&rig, 2);
	cr_assert_eq(rig_submit_by(&rig.a, "best", KVX_OP_WRITE, here, target, LEN, 10000), 0);
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 10000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 2, 5000));
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	for (unsigned i = 0; i < 2; i++) {
		bool required = rig.a.ends[i].end.status != 0;

		cr_assert_eq(rig.a.ends[i].end.status, required ? -ENETUNREACH : 0, "%s",
			     rig.a.ends[i].text);
	}
	cr_assert_neq(rig.a.ends[0].end.status, rig.a.ends[1].end.status);
	cr_assert_eq(rig_submit_by(&rig.a, "best", KVX_OP_WRITE, here, target, LEN, 10000),
		     -ENETUNREACH);
	pair_stop();
	KVX_TEST_END();
}
