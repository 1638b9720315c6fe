/* Node: opening whole or not at all, with the rails that there are, and regions in. */
#include "xfer/node.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "fault_alloc.h"
#include "node_rig.h"
#include "test_end.h"
#include "worker/worker_priv.h"

#define MIB (1u << 20)

static struct node_rig rig;

Test(node, opens_and_closes_with_every_kind_of_worker)
{
	const struct kvx_node_rail *rails;
	unsigned n_rails = 99;
	const char *name = NULL;
	rig_init(&rig);
	rig.script.n_rails = 2;
	rig.conf.copy_inline_max_bytes = 32768;
	rig.conf.peer_ops[0] = &kvx_fake_ops;
	rig_start(&rig);
	rails = kvx_node_rails(rig.node, &n_rails);
	cr_assert_eq(n_rails, 2);
	cr_assert(rails[0].dom_index == 3 && rails[1].dom_index == 4);
	cr_assert(rails[0].worker != NULL && rails[0].worker != rails[1].worker);
	cr_assert_eq(kvx_node_peer_transports(rig.node)[0], &kvx_fake_ops);
	cr_assert_null(kvx_node_peer_transports(rig.node)[1]);
	cr_assert_str_eq(kvx_node_peer_error(rig.node), "");
	const char *want[] = {"copy0", "copy1", "inline", "fake0", "fake1"};
	for (unsigned i = 0; i < 5; i++) {
		cr_assert_not_null(kvx_node_worker(rig.node, i, &name));
		cr_assert_str_eq(name, want[i]);
	}
	cr_assert_null(kvx_node_worker(rig.node, 5, &name));
	cr_assert_eq(kvx_node_copy_lane(rig.node)->state, KVX_LANE_UP);
	cr_assert_eq(kvx_node_copy_lane(rig.node)->n_outlets, 2);
	cr_assert_eq(rig.script.n_eps, 3);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(node, runs_on_without_other_nodes_and_says_why)
{
	const struct kvx_node_rail *rails;
	unsigned n_rails;
	rig_init(&rig);
	rig.conf.peer_ops[0] = &kvx_fake_ops;
	rig.script.faults[KVX_FAKE_OPEN] = (struct kvx_fake_fault){.nth = 3, .err = -ENODATA};
	rig_start(&rig);
	cr_assert_null(kvx_node_peer_transports(rig.node)[0]);
	cr_assert_gt(strlen(kvx_node_peer_error(rig.node)), 0);
	rails = kvx_node_rails(rig.node, &n_rails);
	cr_assert_eq(n_rails, 1);
	cr_assert(rails[0].worker == NULL && !rails[0].rail.usable);
	cr_assert_gt(strlen(rails[0].rail.reason), 0);
	rig_stop(&rig);
	rig_init(&rig);
	rig_start(&rig);
	cr_assert_null(kvx_node_peer_transports(rig.node)[0]);
	cr_assert_not_null(strstr(kvx_node_peer_error(rig.node), "turned on"));
	rig_stop(&rig);
	KVX_TEST_END();
}

static void expect_nothing_left(void)
{
	cr_assert_eq(rig.script.n_doms + rig.script.n_eps + rig.script.n_mrs + rig.script.n_rkeys,
		     0);
}

Test(node, any_failing_call_fails_open_and_leaves_nothing)
{
	const enum kvx_fake_slot slots[] = {KVX_FAKE_OPEN, KVX_FAKE_LISTEN};
	for (unsigned s = 0; s < 2; s++) {
		for (unsigned nth = 1; nth <= 3; nth++) {
			struct kvx_why why = {""};
			rig_init(&rig);
			rig.conf.copy_inline_max_bytes = 4096;
			rig.script.faults[slots[s]] =
			    (struct kvx_fake_fault){.nth = nth, .err = -ENXIO};
			cr_assert_eq(kvx_timers_create(NULL, NULL, &rig.timers), 0);
			rig.conf.timers = rig.timers;
			cr_assert_eq(kvx_node_open(&rig.conf, &rig.node, &why), -ENXIO);
			cr_assert_gt(strlen(why.text), 0);
			expect_nothing_left();
			kvx_timers_destroy(rig.timers);
		}
	}
	KVX_TEST_END();
}

Test(node, every_allocation_of_open_may_fail)
{
	int rc = -1;
	for (unsigned n = 1; n < 200; n++) {
		rig_init(&rig);
		rig.conf.copy_inline_max_bytes = 4096;
		cr_assert_eq(kvx_timers_create(NULL, NULL, &rig.timers), 0);
		rig.conf.timers = rig.timers;
		fault_alloc_arm(n);
		rc = kvx_node_open(&rig.conf, &rig.node, NULL);
		bool failed = fault_alloc_disarm();
		if (rc == 0)
			kvx_node_close(rig.node);
		expect_nothing_left();
		kvx_timers_destroy(rig.timers);
		if (!failed)
			break;
		cr_assert_eq(rc, -ENOMEM, "allocation %u: %d", n, rc);
	}
	cr_assert_eq(rc, 0);
	KVX_TEST_END();
}

Test(node, wrong_number_of_copy_workers_is_refused)
{
	struct kvx_why why = {""};
	rig_init(&rig);
	rig.conf.copy_workers = 0;
	cr_assert_eq(kvx_node_open(&rig.conf, &rig.node, &why), -EINVAL);
	rig.conf.copy_workers = 9;
	cr_assert_eq(kvx_node_open(&rig.conf, &rig.node, &why), -EINVAL);
	cr_assert_not_null(strstr(why.text, "copy.workers is 9"));
	KVX_TEST_END();
}

Test(node, region_is_mapped_and_registered_in_every_domain)
{
	const void *mkey = NULL;
	size_t len = 0;
	rig_init(&rig);
	rig.conf.peer_ops[0] = &kvx_fake_ops;
	rig_start(&rig);
	struct kvx_region *region = rig_region(&rig, 1, MIB, 3, NULL);
	cr_assert_eq(rig.script.n_mrs, 3);
	cr_assert_eq(rig.n_mapped, 1);
	for (unsigned dom = 0; dom < 3; dom++) {
		cr_assert_eq(kvx_node_region_mkey(region, dom, &mkey, &len), 0);
		cr_assert(mkey != NULL && len > 0);
	}
	cr_assert_eq(kvx_node_region_mkey(region, 3, &mkey, &len), -ENOENT);
	cr_assert_eq(kvx_node_region_mkey(region, 1000, &mkey, &len), -ENOENT);
	rig_region_close(&rig, region);
	cr_assert_eq(rig.script.n_mrs, 0);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(node, runs_on_with_the_rails_that_are_left)
{
	const struct kvx_node_rail *rails;
	unsigned n_rails;
	rig_init(&rig);
	rig.conf.peer_ops[0] = &kvx_fake_ops;
	rig.script.n_rails = 3;
	rig.script.faults[KVX_FAKE_OPEN] = (struct kvx_fake_fault){.nth = 4, .err = -EIO};
	rig_start(&rig);
	rails = kvx_node_rails(rig.node, &n_rails);
	cr_assert_eq(n_rails, 3);
	cr_assert(rails[0].worker != NULL && rails[1].worker == NULL && rails[2].worker != NULL);
	cr_assert_eq(rails[2].dom_index, 3);
	struct kvx_region *region = rig_region(&rig, 1, MIB, 3, NULL);
	cr_assert_eq(rig.script.n_mrs, 4);
	rig_region_close(&rig, region);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* What only a rail cannot take does not keep a region from being used on the others. */
Test(node, region_that_a_rail_does_not_take_is_live_without_it)
{
	const void *mkey = NULL;
	size_t len = 0;
	rig_init(&rig);
	rig.conf.peer_ops[0] = &kvx_fake_ops;
	rig_start(&rig);
	rig.script.faults[KVX_FAKE_MEM_REG] = (struct kvx_fake_fault){.nth = 3, .err = -EOPNOTSUPP};
	struct kvx_region *region = rig_region(&rig, 1, MIB, 3, NULL);
	cr_assert_eq(region->state, KVX_REGION_LIVE);
	cr_assert_eq(rig.script.n_mrs, 2);
	cr_assert_eq(kvx_node_region_mkey(region, 1, &mkey, &len), 0);
	cr_assert_eq(kvx_node_region_mkey(region, 2, &mkey, &len), -ENOENT);
	rig_region_close(&rig, region);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* Whatever a lost device answers. */
Test(node, region_is_live_without_the_rail_that_is_lost)
{
	const struct kvx_node_rail *rails;
	unsigned n_rails;
	rig_init(&rig);
	rig.conf.peer_ops[0] = &kvx_fake_ops;
	rig_start(&rig);
	rails = kvx_node_rails(rig.node, &n_rails);
	kvx_fake_device_lose(&rig.script, rails[0].worker->dom);
	rig_turn(&rig, 1000);
	cr_assert(rails[0].lost);
	rig.script.faults[KVX_FAKE_MEM_REG] = (struct kvx_fake_fault){.nth = 3, .err = -EIO};
	struct kvx_region *region = rig_region(&rig, 1, MIB, 3, NULL);
	cr_assert_not_null(region, "%s", rig.open_text);
	cr_assert_eq(region->state, KVX_REGION_LIVE);
	cr_assert_eq(rig.script.n_mrs, 2);
	rig_region_close(&rig, region);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(node, region_that_cannot_be_had_is_undone_whole)
{
	const enum kvx_fake_slot slots[] = {KVX_FAKE_MEM_REG, KVX_FAKE_MKEY_PACK};
	rig_init(&rig);
	rig_start(&rig);
	rig.map_error = -EIO;
	cr_assert_null(rig_region(&rig, 1, MIB, 3, NULL));
	cr_assert_eq(rig.open_status, -EIO);
	cr_assert_str_eq(rig.open_text, "test: no mapping");
	for (unsigned s = 0; s < 2; s++) {
		for (unsigned nth = 1; nth <= 2; nth++) {
			rig.script.faults[slots[s]] = (struct kvx_fake_fault){
			    .nth = rig.script.calls[slots[s]] + nth, .err = -ENOSPC};
			cr_assert_null(rig_region(&rig, 1, MIB, 3, NULL));
			cr_assert_eq(rig.open_status, -ENOSPC);
			cr_assert_not_null(strstr(rig.open_text, "registering"));
			cr_assert_eq(rig.script.n_mrs + rig.n_mapped, 0);
		}
	}
	cr_assert_eq(kvx_regions_count(kvx_node_regions(rig.node)), 0);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(node, region_open_without_memory_runs_no_callback)
{
	rig_init(&rig);
	rig_start(&rig);
	struct kvx_region *region = rig_region_add(&rig, 1, MIB, 3, NULL);
	fault_alloc_arm(1);
	cr_assert_eq(kvx_node_region_open(rig.node, region, rig_on_opened, &rig), -ENOMEM);
	cr_assert(fault_alloc_disarm());
	for (unsigned i = 0; i < 5; i++)
		rig_turn(&rig, 1000);
	cr_assert_eq(rig.n_opened, 0);
	kvx_region_remove(kvx_node_regions(rig.node), region);
	rig_stop(&rig);
	KVX_TEST_END();
}
