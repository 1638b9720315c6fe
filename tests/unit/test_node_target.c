/* Node: targets of its own regions, and what the loss of endpoints, keys and devices does to them.
 */
#include <criterion/criterion.h>
#include <errno.h>

#include "fault_alloc.h"
#include "test_end.h"
#include "worker/worker_priv.h"
#include "xfer_pair.h"

Test(node_target, target_is_shared_and_freed_with_its_last_reference)
{
	rig_init(&pair.rig);
	rig_start(&pair.rig);
	struct kvx_region *region = rig_region(&pair.rig, 1, MIB, 3, NULL);
	struct kvx_target *a = rig_target(&pair.rig, region), *b = rig_target(&pair.rig, region);
	cr_assert_eq(a, b);
	cr_assert_eq(a->n_refs, 2);
	rig_turn(&pair.rig, 0);
	cr_assert_eq(pair.rig.script.n_rkeys, 2);
	cr_assert_eq(a->lane_generation, kvx_node_copy_lane(pair.rig.node)->generation);
	kvx_target_unref(a);
	rig_turn(&pair.rig, 0);
	cr_assert_eq(pair.rig.script.n_rkeys, 2);
	kvx_target_unref(b);
	struct kvx_target *c = rig_target(&pair.rig, region); /* while the old one goes */
	rig_turn(&pair.rig, 0);
	cr_assert_eq(pair.rig.script.n_rkeys, 2);
	kvx_target_unref(c);
	rig_turn(&pair.rig, 0);
	cr_assert_eq(pair.rig.script.n_rkeys, 0);
	kvx_target_unref(rig_target(&pair.rig, region)); /* gone before it had keys */
	rig_region_close(&pair.rig, region);
	rig_stop(&pair.rig);
	KVX_TEST_END();
}

Test(node_target, target_needs_access_and_memory)
{
	struct kvx_target *target = NULL;
	struct kvx_why why = {""};
	rig_init(&pair.rig);
	rig_start(&pair.rig);
	struct kvx_region *none = rig_region(&pair.rig, 1, MIB, 0, NULL);
	cr_assert_eq(kvx_node_target_open(pair.rig.node, none, &target, &why), -EACCES);
	struct kvx_layout *layout = kvx_layout_create(1);
	layout->planes[0] = (struct kvx_plane){0, 4096, 4096, 16, "k"};
	struct kvx_region *region = rig_region(&pair.rig, 1, MIB, 1, layout);
	int rc = -1;
	for (unsigned n = 1; n < 10; n++) {
		fault_alloc_arm(n);
		rc = kvx_node_target_open(pair.rig.node, region, &target, &why);
		if (!fault_alloc_disarm())
			break;
		cr_assert_eq(rc, -ENOMEM);
	}
	cr_assert_eq(rc, 0);
	cr_assert_eq(target->layout->planes[0].block_bytes, 4096);
	cr_assert_neq(target->layout, region->layout);
	kvx_target_unref(target);
	rig_region_close(&pair.rig, none);
	rig_region_close(&pair.rig, region);
	rig_stop(&pair.rig);
	KVX_TEST_END();
}

static unsigned n_lost;
static int lost_status;

static void on_lost(struct kvx_target_watch *watch, int status, const char *text)
{
	n_lost++;
	lost_status = status;
}

Test(node_target, target_without_keys_is_lost_and_its_transfers_fail)
{
	struct kvx_target_watch watch = {.lost = on_lost};
	rig_init(&pair.rig);
	pair.rig.script.faults[KVX_FAKE_RKEY_UNPACK] =
	    (struct kvx_fake_fault){.nth = 2, .err = -ENOKEY};
	pair_open(MIB);
	struct kvx_target *target = pair.target;
	kvx_target_watch(target, &watch);
	rig_submit(&pair.rig, &pair.req, 100);
	cr_assert(rig_until_ends(&pair.rig, 1, 1000));
	cr_assert_eq(pair.rig.ends[0].end.status, -ENOKEY);
	cr_assert_eq(n_lost, 1);
	cr_assert_eq(lost_status, -ENOKEY);
	cr_assert(target->lost);
	rig_turn(&pair.rig, 0);
	cr_assert_eq(pair.rig.script.n_rkeys, 0);
	/* The next import tries again. */
	struct kvx_target *again = rig_target(&pair.rig, pair.remote);
	cr_assert_neq(again, target);
	pair.req.target = again;
	rig_submit(&pair.rig, &pair.req, 100);
	cr_assert(rig_until_ends(&pair.rig, 2, 1000));
	cr_assert_eq(pair.rig.ends[1].end.status, 0);
	kvx_target_unwatch(target, &watch);
	kvx_target_unref(again);
	pair_close();
	KVX_TEST_END();
}

/* An endpoint that is lost by itself is made anew, and its targets get new keys. */
Test(node_target, lost_endpoint_is_made_anew)
{
	rig_init(&pair.rig);
	pair_open(MIB);
	const struct kvx_lane *lane = kvx_node_copy_lane(pair.rig.node);
	rig_turn(&pair.rig, 0);
	kvx_fake_ep_lose(lane->outlets[1].ep, -EIO);
	rig_turn(&pair.rig, 0);
	rig_turn(&pair.rig, 0);
	cr_assert_eq(lane->n_resets, 1);
	cr_assert_eq(lane->state, KVX_LANE_UP);
	cr_assert_eq(pair.target->lane_generation, 2);
	rig_submit(&pair.rig, &pair.req, MIB);
	cr_assert(rig_until_ends(&pair.rig, 1, 1000));
	cr_assert_eq(pair.rig.ends[0].end.status, 0);
	pair_close();
	KVX_TEST_END();
}

Test(node_target, lost_device_refuses_transfers_and_still_closes)
{
	rig_init(&pair.rig);
	pair_open(MIB);
	rig_submit(&pair.rig, &pair.req, MIB);
	rig_turn(&pair.rig, 100);
	kvx_fake_device_lose(&pair.rig.script, NULL);
	cr_assert(rig_until_ends(&pair.rig, 1, 10000));
	cr_assert_lt(pair.rig.ends[0].end.status, 0);
	for (unsigned i = 0; i < 10; i++)
		rig_turn(&pair.rig, 1000);
	pair_close();
	KVX_TEST_END();
}
