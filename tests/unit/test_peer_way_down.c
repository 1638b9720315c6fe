/* Peers: regions of the second lane of a tenant where that lane is down, or does not know them
 * either: imports stay as long as the first lane has not lost them, and who fails is told why. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "peer_ways.h"
#include "test_end.h"
#include "xfer/peer_priv.h"

static KVX_ON_LOOP void start(void)
{
	rig_init(&rig);
	ways_init();
	ways_start();
	cr_assert(RIG_UNTIL(&rig, ways_are_up(), 1000));
}

/* Its lane has no device left when the first one is asked again: the region is there all the same.
 */
Test(peer_way_down, import_by_the_second_lane_survives_a_new_first_lane)
{
	struct kvx_target *import;
	struct kvx_region *far;

	start();
	far = ways_far_region(&rig.b, 0x44);
	import = ways_import(far);
	cr_assert_str_eq(import->lane->ops->name, "any");
	kvx_fake_device_lose(&rig.script, test_rail(ANY, 0, 0)->dom);
	rig_pass(&rig, 100);
	cr_assert_not(import->lost);
	lane_down(import->peer->lanes[0], -EIO, "the test wants it");
	cr_assert(RIG_UNTIL(&rig, !ways_lane_is(&rig.a, false, "best"), 100));
	cr_assert(RIG_UNTIL(&rig, ways_lane_is(&rig.a, false, "best"), 8000));
	rig_pass(&rig, 100);
	cr_assert_not(import->lost, "%d %s", import->lost_status, import->lost_text);
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, import, LEN, 5000), -ENETUNREACH);
	pair_assert_write_works();
	kvx_target_unref(import);
	pair_stop();
	KVX_TEST_END();
}

/* Neither lane reaches both sides: the transfer says what the region's owner has said. */
Test(peer_way_down, transfer_says_why_the_second_lane_does_not_reach_the_region)
{
	struct kvx_region *near, *far_here;
	struct kvx_target *import;

	start();
	test_rail(ANY, 1, 0)->refuses = true;
	near = rig_region(&rig.b, LEN, RW, NULL);
	test_rail(ANY, 1, 0)->refuses = false;
	far_here = ways_far_region(&rig.a, 0x55);
	import = ways_import(near);
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, far_here, import, LEN, 5000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 6000));
	cr_assert_eq(rig.a.ends[0].end.status, -ENETUNREACH, "%s", rig.a.ends[0].text);
	cr_assert_not_null(strstr(rig.a.ends[0].text, "not registered for any"), "%s",
			   rig.a.ends[0].text);
	cr_assert_not(import->lost);
	ways_assert_write(here, import, near, "best");
	kvx_target_unref(import);
	pair_stop();
	KVX_TEST_END();
}
