/* Peers: what becomes of regions and transfers when the first lane of a tenant goes by another
 * transport than before, which does not reach them. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "peer_ways.h"
#include "test_end.h"

/* The first lane begins by "any", which reaches all; then its best port comes up. */
static KVX_ON_LOOP void start_in_fallback(void)
{
	pair_init_slow();
	ways_init();
	rig.a.node_conf.xfers.lane_retries = 1;
	rig_start(&rig);
	test_rail_wait(test_rail(BEST, 0, 0), true);
	here = rig_region(&rig.a, LEN, RW, NULL);
	memset(here->mem.addr, 0x11, LEN);
}

static KVX_ON_LOOP void port_comes_up(void)
{
	struct test_rail *rail = test_rail(BEST, 0, 0);

	test_rail_wait(rail, false);
	kvx_fake_device_up(&rig.script, rail->dom);
	cr_assert(RIG_UNTIL(&rig, ways_are_up(), 2000));
}

Test(peer_way_move, region_moves_to_the_second_lane_when_the_first_goes_back_to_the_best)
{
	struct ways_watch lost = {.watch.lost = ways_on_lost};

	start_in_fallback();
	there = ways_far_region(&rig.b, 0x44);
	target = ways_import(there);
	kvx_target_watch(target, &lost.watch);
	ways_assert_write(here, target, there, "any");
	cr_assert(ways_lane_is(&rig.a, false, "any"));
	port_comes_up();
	ways_assert_write(here, target, there, "any");
	cr_assert(ways_lane_is(&rig.a, false, "best"));
	cr_assert_eq(lost.n, 0);
	kvx_target_unwatch(target, &lost.watch);
	pair_stop();
	KVX_TEST_END();
}

/* Nothing of what is submitted while it changes fails, whichever side is out of reach then. */
static KVX_ON_LOOP void move_under_traffic(bool far_remote)
{
	struct kvx_region *far;

	start_in_fallback();
	far = ways_far_region(&rig.a, 0x55);
	there = far_remote ? ways_far_region(&rig.b, 0x44) : rig_region(&rig.b, LEN, RW, NULL);
	target = ways_import(there);
	rig.script.latency_ns = 3 * KVX_MS;
	for (unsigned i = 0; i < 40; i++) {
		if (i == 10) {
			test_rail_wait(test_rail(BEST, 0, 0), false);
			kvx_fake_device_up(&rig.script, test_rail(BEST, 0, 0)->dom);
		}
		cr_assert_eq(
		    rig_submit(&rig.a, KVX_OP_WRITE, i % 2 ? far : here, target, LEN, 10000), 0);
		rig_pass(&rig, 2);
	}
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 40, 5000));
	for (unsigned i = 0; i < 40; i++)
		cr_assert_eq(rig.a.ends[i].end.status, 0, "%u: %s", i, rig.a.ends[i].text);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals == 40, 1000));
	cr_assert(ways_are_up());
	rig.script.latency_ns = 0;
	pair_stop();
}

Test(peer_way_move, transfers_that_wait_are_moved_where_the_remote_region_is_out_of_reach)
{
	move_under_traffic(true);
	KVX_TEST_END();
}

Test(peer_way_move, transfers_that_wait_are_moved_where_their_own_region_is_out_of_reach)
{
	move_under_traffic(false);
	KVX_TEST_END();
}

Test(peer_way_move, local_region_moves_too)
{
	struct kvx_region *far;

	start_in_fallback();
	far = ways_far_region(&rig.a, 0x55);
	there = rig_region(&rig.b, LEN, RW, NULL);
	target = ways_import(there);
	ways_assert_write(far, target, there, "any");
	port_comes_up();
	ways_assert_write(far, target, there, "any");
	ways_assert_write(here, target, there, "best");
	pair_stop();
	KVX_TEST_END();
}
