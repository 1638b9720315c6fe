/* Peers: withdrawal, loss and the end of use of regions that both lanes of a tenant have keys of.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "peer_ways.h"
#include "test_end.h"

static KVX_ON_LOOP void start(void)
{
	rig_init(&rig);
	ways_init();
	ways_start();
	cr_assert(RIG_UNTIL(&rig, ways_are_up(), 1000));
}

static void on_closed(void *arg, uint64_t region_id)
{
	(*(unsigned *)arg)++;
}

/* One transfer by each lane under way when the region is closed by its owner, or its client dies;
 * one of them ends before the other. */
static KVX_ON_LOOP void lose_while_busy(int status, bool first_ends_first)
{
	struct ways_watch lost = {.watch.lost = ways_on_lost};
	struct kvx_region *far;
	unsigned n_closed = 0;

	start();
	far = ways_far_region(&rig.a, 0x55);
	ways_assert_write(far, target, there, "any"); /* so that both have keys */
	rig.a.n_ends = 0;
	kvx_target_watch(target, &lost.watch);
	rig.script.latency_ns = 50 * KVX_MS;
	cr_assert_eq(
	    rig_submit(&rig.a, KVX_OP_WRITE, first_ends_first ? here : far, target, LEN, 10000), 0);
	rig_pass(&rig, 20);
	cr_assert_eq(
	    rig_submit(&rig.a, KVX_OP_WRITE, first_ends_first ? far : here, target, LEN, 10000), 0);
	rig_pass(&rig, 5);
	cr_assert_eq(kvx_node_region_close(rig.b.node, there, status, "gone", on_closed, &n_closed),
		     0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 200));
	rig_pass(&rig, 10);
	cr_assert_eq(lost.n, 0, "told before the fence of the other lane");
	cr_assert_eq(n_closed, 0, "closed before the fence of the other lane");
	cr_assert(RIG_UNTIL(&rig, lost.n > 0, 1000));
	cr_assert_eq(lost.ends_then, 2, "told before both have ended");
	cr_assert_eq(lost.status, status);
	cr_assert(RIG_UNTIL(&rig, n_closed == 1, 1000), "does not close");
	cr_assert(ways_are_up(), "both are fine");
	rig_pass(&rig, 500);
	cr_assert_eq(lost.n, 1);
	rig.script.latency_ns = 0;
	kvx_target_unwatch(target, &lost.watch);
	pair_stop();
}

Test(peer_way_withdraw, unregistered_region_is_told_after_the_fence_of_the_second_lane)
{
	lose_while_busy(-EOWNERDEAD, true);
	KVX_TEST_END();
}

Test(peer_way_withdraw, unregistered_region_is_told_after_the_fence_of_the_first_lane)
{
	lose_while_busy(-EOWNERDEAD, false);
	KVX_TEST_END();
}

Test(peer_way_withdraw, lost_client_is_told_after_both_fences)
{
	lose_while_busy(-EPIPE, true);
	KVX_TEST_END();
}

Test(peer_way_withdraw, unused_pair_is_given_back_once_and_for_all)
{
	struct kvx_peer_row row;
	struct kvx_region *far;
	unsigned before;

	pair_init_slow();
	ways_init();
	ways_start();
	cr_assert(RIG_UNTIL(&rig, ways_are_up(), 1000));
	far = ways_far_region(&rig.a, 0x55);
	ways_assert_write(far, target, there, "any");
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_targets, 2);
	kvx_target_unref(target);
	target = NULL;
	pair_leap(100);
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_targets, 0);
	before = rig.script.n_rkeys;
	cr_assert_eq(before, 0);
	rig_region_close(&rig.b, there);
	cr_assert(RIG_UNTIL(&rig, kvx_regions_count(kvx_node_regions(rig.b.node)) == 0, 100),
		  "it was exported still");
	pair_stop();
	KVX_TEST_END();
}

/* A transfer by the second lane keeps the target alone. */
Test(peer_way_withdraw, target_is_kept_while_only_its_second_one_is_used)
{
	struct kvx_region *far;

	pair_init_slow();
	ways_init();
	ways_start();
	cr_assert(RIG_UNTIL(&rig, ways_are_up(), 1000));
	far = ways_far_region(&rig.a, 0x55);
	ways_assert_write(far, target, there, "any");
	rig.a.n_ends = 0;
	rig.script.latency_ns = 150 * KVX_SEC;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, far, target, LEN, 300000), 0);
	rig_pass(&rig, 5);
	kvx_target_unref(target);
	target = NULL;
	pair_leap(160);
	cr_assert_eq(rig.a.n_ends, 1);
	cr_assert_eq(rig.a.ends[0].end.status, 0, "%s", rig.a.ends[0].text);
	rig.script.latency_ns = 0;
	pair_stop();
	KVX_TEST_END();
}

/* Only the lane that has had keys of it pays. */
Test(peer_way_withdraw, region_that_is_not_given_up_costs_its_own_lane_only)
{
	struct kvx_region *far;
	struct kvx_target *import;
	struct kvx_lane_row row;

	rig_init(&rig);
	ways_init();
	rig.a.conf.lost_ms = rig.b.conf.lost_ms = 5000;
	rig_wire_b(&rig);
	ways_start();
	cr_assert(RIG_UNTIL(&rig, ways_are_up(), 1000));
	far = ways_far_region(&rig.b, 0x44);
	import = ways_import(far);
	rig.wire_held = true;
	rig_region_close(&rig.b, far);
	cr_assert(RIG_UNTIL(&rig, kvx_regions_count(kvx_node_regions(rig.b.node)) == 1, 1000),
		  "does not close");
	cr_assert(ways_lane(&rig.b, false, &row));
	cr_assert_str_eq(row.state, "up");
	cr_assert_eq(row.n_resets, 0);
	cr_assert(ways_lane(&rig.b, true, &row));
	cr_assert_eq(row.n_resets, 1);
	rig.wire_held = false;
	cr_assert(RIG_UNTIL(&rig, import->lost, 1000));
	kvx_target_unref(import);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_way_withdraw, lost_peer_ends_the_transfers_of_both_lanes_and_both_come_back)
{
	struct ways_watch lost = {.watch.lost = ways_on_lost};
	struct kvx_region *far;

	rig_init(&rig);
	ways_init();
	rig_wire_b(&rig);
	ways_start();
	cr_assert(RIG_UNTIL(&rig, ways_are_up(), 1000));
	far = ways_far_region(&rig.a, 0x55);
	ways_assert_write(far, target, there, "any");
	rig.a.n_ends = rig.b.n_arrivals = 0;
	kvx_target_watch(target, &lost.watch);
	rig.script.latency_ns = 100 * KVX_SEC;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, far, target, LEN, 60000), 0);
	rig_pass(&rig, 10);
	rig_wire_cut(&rig);
	cr_assert(RIG_UNTIL(&rig, lost.n > 0, 5000));
	cr_assert_eq(lost.ends_then, 2);
	cr_assert_eq(lost.status, -EHOSTDOWN);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals == 2, 5000));
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(rig.b.arrivals[i].arrival.status, -EHOSTDOWN);
	kvx_target_unwatch(target, &lost.watch);
	rig.script.latency_ns = 0;
	cr_assert(RIG_UNTIL(&rig, ways_are_up(), 5000));
	pair_resolve_again();
	ways_assert_write(far, target, there, "any");
	ways_assert_write(here, target, there, "best");
	pair_stop();
	KVX_TEST_END();
}
