/* Peers: lanes of several legs: which rails go together, rails that are down, unreachable or lost,
 * and what becomes of a lane when one of its legs breaks. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "fault_alloc.h"
#include "peer_pair.h"
#include "test_end.h"

#define FAKE (&test_fake_ops)

static KVX_ON_LOOP void start_rails(unsigned n_a, unsigned n_b)
{
	rig_init(&rig);
	rig.a.n_rails = n_a;
	rig.b.n_rails = n_b;
}

/* Many small batches, so that all legs have something to do. */
static void small_batches(void)
{
	rig.script.limits.max_op_bytes = rig.script.limits.batch_bytes = 4096;
}

Test(peer_legs, each_pair_of_rails_is_a_leg_and_all_carry_data)
{
	struct kvx_lane_row row;

	start_rails(2, 2);
	small_batches();
	pair_start();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 2));
	rig.script.latency_ns = 10 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 10000), 0);
	rig_pass(&rig, 2);
	cr_assert(rig_lane(&rig.a, "default", &row));
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_str_eq(row.legs[i].rail, i == 0 ? "fake0" : "fake1");
		cr_assert_str_eq(row.legs[i].remote_rail, row.legs[i].rail);
		cr_assert_eq(row.legs[i].batches_in_flight, row.queue_batches);
		cr_assert_gt(row.legs[i].bytes_in_flight, 0);
	}
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 2000));
	cr_assert_eq(rig.a.ends[0].end.status, 0, "%s", rig.a.ends[0].text);
	cr_assert(pair_all_are(there->mem.addr, 0x11));
	rig.script.latency_ns = 0;
	pair_stop();
	KVX_TEST_END();
}

Test(peer_legs, node_with_fewer_rails_answers_with_fewer_legs)
{
	start_rails(3, 1);
	pair_start();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	cr_assert_eq(rig.script.n_eps, 2 + 2, "endpoints that are over are not closed");
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_legs, node_with_fewer_rails_offers_fewer_legs)
{
	start_rails(1, 3);
	pair_start();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	cr_assert_eq(test_rail(FAKE, 1, 1)->n_listens, 0, "an endpoint for nobody");
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_legs, rails_of_the_same_name_go_together)
{
	struct kvx_lane_row row;

	start_rails(2, 2);
	rig.b.bad_rails = 1u << 0;
	pair_start();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	cr_assert(rig_lane(&rig.a, "default", &row));
	cr_assert_str_eq(row.legs[0].rail, "fake1");
	cr_assert_str_eq(row.legs[0].remote_rail, "fake1");
	pair_stop();
	KVX_TEST_END();
}

Test(peer_legs, rails_of_other_names_go_together_where_there_are_no_better)
{
	start_rails(2, 2);
	rig.a.bad_rails = 1u << 0;
	rig.b.bad_rails = 1u << 1;
	pair_start();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

/* Either side may have the port that is down. */
static KVX_ON_LOOP void port_comes_back(unsigned node)
{
	struct test_rail *rail;
	uint64_t generation;

	start_rails(2, 2);
	rig_start(&rig);
	rail = test_rail(FAKE, node, 1);
	rail->down = true;
	rig_close_side(&rig.a);
	rig_close_side(&rig.b);
	rig_start_side(&rig.a);
	rig_start_side(&rig.b);
	here = rig_region(&rig.a, LEN, RW, NULL);
	there = rig_region(&rig.b, LEN, RW, NULL);
	memset(here->mem.addr, 0x11, LEN);
	target = NULL;
	pair_resolve_again();
	cr_assert(RIG_UNTIL(&rig, rig_lanes_are(&rig, "default", "fake", 1), 1000));
	generation = rig_lane_generation(&rig.a);
	pair_assert_write_works();
	rail->down = false;
	rig_pass(&rig, 100);
	cr_assert_eq(rig_lane_generation(&rig.a), generation, "made anew for no reason");
	kvx_fake_device_up(&rig.script, rail->dom);
	cr_assert(RIG_UNTIL(&rig, rig_lanes_are(&rig, "default", "fake", 2), 100));
	pair_assert_write_works();
	generation = rig_lane_generation(&rig.a);
	rig_pass(&rig, 2000);
	cr_assert_eq(rig_lane_generation(&rig.a), generation, "it is complete");
}

Test(peer_legs, port_that_is_down_is_left_out_until_it_is_up)
{
	port_comes_back(0);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_legs, port_of_the_other_side_that_is_down_is_left_out_until_it_is_up)
{
	port_comes_back(1);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_legs, lane_that_lacks_a_rail_is_made_anew_after_a_while)
{
	pair_init_slow();
	rig.a.n_rails = 2;
	rig_start(&rig);
	test_rail(FAKE, 0, 1)->down = true;
	here = rig_region(&rig.a, LEN, RW, NULL);
	there = rig_region(&rig.b, LEN, RW, NULL);
	memset(here->mem.addr, 0x11, LEN);
	pair_resolve_again();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	test_rail(FAKE, 0, 1)->down = false;
	pair_leap(40);
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1), "too soon");
	pair_leap(30);
	cr_assert(rig_lanes_are(&rig, "default", "fake", 2));
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

/* There is nothing to gain: so it stays as it is. */
Test(peer_legs, lane_to_a_node_with_fewer_rails_is_complete)
{
	uint64_t generation;

	pair_init_slow();
	rig.a.n_rails = 3;
	rig.b.n_rails = 2;
	pair_start();
	generation = rig_lane_generation(&rig.a);
	pair_leap(80);
	cr_assert_eq(rig_lane_generation(&rig.a), generation);
	cr_assert(rig_lanes_are(&rig, "default", "fake", 2));
	pair_stop();
	KVX_TEST_END();
}

Test(peer_legs, lane_waits_for_its_only_port)
{
	struct kvx_lane_row row;

	start_rails(1, 1);
	pair_start();
	test_rail(FAKE, 0, 0)->down = true;
	kvx_peers_lane_reset(rig.a.peers, target->lane, "the test says so");
	rig_pass(&rig, 1000);
	cr_assert(rig_lane(&rig.a, "default", &row));
	cr_assert_str_eq(row.state, "connecting");
	cr_assert_gt(row.n_failed, 3);
	cr_assert_lt(row.n_failed, 60, "without back-off");
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 10000), 0);
	rig_pass(&rig, 100);
	cr_assert_eq(rig.a.n_ends, 0, "it waits for the lane");
	test_rail(FAKE, 0, 0)->down = false;
	kvx_fake_device_up(&rig.script, NULL);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 20), "it does not wait for its back-off");
	cr_assert_eq(rig.a.ends[0].end.status, 0, "%s", rig.a.ends[0].text);
	pair_stop();
	KVX_TEST_END();
}

/* A rail whose port is known to be down is not tried, and not missed, until it is up. */
Test(peer_legs, waiting_rail_is_not_tried_and_not_missed)
{
	struct test_rail *rail;
	uint64_t generation;

	pair_init_slow();
	rig.a.n_rails = rig.b.n_rails = 2;
	rig_start(&rig);
	rail = test_rail(FAKE, 0, 1);
	test_rail_wait(rail, true);
	here = rig_region(&rig.a, LEN, RW, NULL);
	there = rig_region(&rig.b, LEN, RW, NULL);
	memset(here->mem.addr, 0x11, LEN);
	target = NULL;
	pair_resolve_again();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	generation = rig_lane_generation(&rig.a);
	pair_leap(80);
	cr_assert_eq(rig_lane_generation(&rig.a), generation);
	cr_assert_eq(rail->n_listens, 0);
	test_rail_wait(rail, false);
	kvx_fake_device_up(&rig.script, rail->dom);
	cr_assert(RIG_UNTIL(&rig, rig_lanes_are(&rig, "default", "fake", 2), 2000));
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_legs, lane_waits_for_a_port_without_trying)
{
	struct kvx_lane_row row;
	struct test_rail *rail;
	unsigned n_listens;

	start_rails(1, 1);
	pair_start();
	rail = test_rail(FAKE, 0, 0);
	n_listens = rail->n_listens;
	test_rail_wait(rail, true);
	kvx_peers_lane_reset(rig.a.peers, target->lane, "the test says so");
	rig_pass(&rig, 1000);
	cr_assert(rig_lane(&rig.a, "default", &row));
	cr_assert_str_eq(row.state, "connecting");
	cr_assert_not_null(strstr(row.last_error, "port is down"), "%s", row.last_error);
	cr_assert_eq(rail->n_listens, n_listens);
	cr_assert_eq(row.n_failed, 0);
	test_rail_wait(rail, false);
	kvx_fake_device_up(&rig.script, rail->dom);
	cr_assert(RIG_UNTIL(&rig, rig_lanes_are(&rig, "default", "fake", 1), 20));
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_legs, broken_leg_takes_the_whole_lane_down)
{
	uint64_t generation;

	start_rails(2, 2);
	small_batches();
	pair_start();
	generation = rig_lane_generation(&rig.a);
	rig.script.latency_ns = 100 * KVX_MS;
	rig.script.ep_down_at_op = (unsigned)rig.script.n_ops + 6;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 10000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1 && rig.b.n_arrivals == 1, 1000));
	cr_assert_lt(rig.a.ends[0].end.status, 0);
	cr_assert_not_null(strstr(rig.a.ends[0].text, "endpoint lost"), "%s", rig.a.ends[0].text);
	cr_assert(pair_all_are(there->mem.addr, 0x22), "bytes landed after the end");
	rig.script.latency_ns = 0;
	cr_assert(RIG_UNTIL(&rig, rig_lanes_are(&rig, "default", "fake", 2), 1000));
	cr_assert_gt(rig_lane_generation(&rig.a), generation);
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_legs, transfer_goes_on_with_the_next_generation_where_that_is_allowed)
{
	start_rails(2, 2);
	rig.a.node_conf.xfers.lane_retries = 1;
	small_batches();
	pair_start();
	rig.script.latency_ns = 10 * KVX_MS;
	rig.script.ep_down_at_op = (unsigned)rig.script.n_ops + 6;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 10000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1 && rig.b.n_arrivals == 1, 2000));
	cr_assert_eq(rig.a.ends[0].end.status, 0, "%s", rig.a.ends[0].text);
	cr_assert_eq(rig.b.arrivals[0].arrival.status, 0);
	cr_assert(pair_all_are(there->mem.addr, 0x11));
	cr_assert_eq(kvx_xfers_stats(kvx_node_xfers(rig.a.node))->retries, 1);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_legs, lost_device_is_done_without)
{
	start_rails(2, 2);
	pair_start();
	kvx_fake_device_lose(&rig.script, test_rail(FAKE, 1, 0)->dom);
	cr_assert(RIG_UNTIL(&rig, rig_lanes_are(&rig, "default", "fake", 1), 1000));
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_legs, last_device_lost_is_said_so)
{
	struct rig_answer answer;
	struct kvx_lane_row row;
	struct kvx_desc desc;

	start_rails(2, 2);
	pair_start();
	desc = rig_desc(&rig.b, there);
	kvx_fake_device_lose(&rig.script, test_rail(FAKE, 0, 0)->dom);
	kvx_fake_device_lose(&rig.script, test_rail(FAKE, 0, 1)->dom);
	rig_pass(&rig, 100);
	cr_assert(rig_lane(&rig.a, "default", &row));
	cr_assert_str_eq(row.state, "down");
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 100), -EHOSTDOWN);
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -ENETUNREACH);
	cr_assert_not_null(strstr(answer.text, "lost"), "%s", answer.text);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_legs, rail_that_does_not_reach_the_other_side_is_left_out)
{
	start_rails(2, 2);
	rig_start(&rig);
	here = rig_region(&rig.a, LEN, RW, NULL);
	there = rig_region(&rig.b, LEN, RW, NULL);
	memset(here->mem.addr, 0x11, LEN);
	test_rail(FAKE, 0, 0)->cut = true;
	pair_resolve_again();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	cr_assert_eq(test_rail(FAKE, 0, 0)->n_connects, 2, "tried twice, then left out");
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

/* Whatever allocation fails while the lane with its legs is made and the region resolved, the
 * resolve is answered once, and the next one succeeds. */
Test(peer_legs, set_up_survives_every_failed_allocation)
{
	bool faulted = true;

	start_rails(2, 2);
	rig.a.conf.reconnect_max_ms = rig.b.conf.reconnect_max_ms = 20;
	rig_start(&rig);
	for (unsigned n = 1; faulted; n++) {
		struct rig_answer answer;
		struct kvx_desc desc;

		there = rig_region(&rig.b, LEN, RW, NULL);
		desc = rig_desc(&rig.b, there);
		fault_alloc_arm(n);
		answer = rig_resolve(&rig.a, &desc);
		rig_pass(&rig, 20);
		faulted = fault_alloc_disarm();
		kvx_target_unref(answer.target);
		answer = rig_resolve(&rig.a, &desc);
		for (unsigned i = 0; i < 3 && answer.status != 0; i++) {
			rig_pass(&rig, 400);
			answer = rig_resolve(&rig.a, &desc);
		}
		cr_assert_eq(answer.status, 0, "allocation %u: %d %s", n, answer.status,
			     answer.text);
		kvx_target_unref(answer.target);
		cr_assert(RIG_UNTIL(&rig,
				    rig_lanes_are(&rig, "default", "fake", 2) ||
					rig_lanes_are(&rig, "default", "fake", 1),
				    1000),
			  "allocation %u", n);
		rig_close_side(&rig.a);
		rig_start_side(&rig.a);
		rig_region_close(&rig.b, there);
		rig_pass(&rig, 50);
	}
	rig_stop(&rig);
	KVX_TEST_END();
}
