/* Node: opening whole or not at all, regions in, targets, commands that find a full ring; once with
 * real threads and real copies. */
#include "xfer/node.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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

Test(node, target_is_shared_and_freed_with_its_last_reference)
{
	rig_init(&rig);
	rig_start(&rig);
	struct kvx_region *region = rig_region(&rig, 1, MIB, 3, NULL);
	struct kvx_target *a = rig_target(&rig, region), *b = rig_target(&rig, region);
	cr_assert_eq(a, b);
	cr_assert_eq(a->n_refs, 2);
	rig_turn(&rig, 0);
	cr_assert_eq(rig.script.n_rkeys, 2);
	cr_assert_eq(a->lane_generation, kvx_node_copy_lane(rig.node)->generation);
	kvx_target_unref(a);
	rig_turn(&rig, 0);
	cr_assert_eq(rig.script.n_rkeys, 2);
	kvx_target_unref(b);
	struct kvx_target *c = rig_target(&rig, region); /* while the old one goes */
	rig_turn(&rig, 0);
	cr_assert_eq(rig.script.n_rkeys, 2);
	kvx_target_unref(c);
	rig_turn(&rig, 0);
	cr_assert_eq(rig.script.n_rkeys, 0);
	kvx_target_unref(rig_target(&rig, region)); /* gone before it had keys */
	rig_region_close(&rig, region);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(node, target_needs_access_and_memory)
{
	struct kvx_target *target = NULL;
	struct kvx_why why = {""};
	rig_init(&rig);
	rig_start(&rig);
	struct kvx_region *none = rig_region(&rig, 1, MIB, 0, NULL);
	cr_assert_eq(kvx_node_target_open(rig.node, none, &target, &why), -EACCES);
	struct kvx_layout *layout = kvx_layout_create(1);
	layout->planes[0] = (struct kvx_plane){0, 4096, 4096, 16, "k"};
	struct kvx_region *region = rig_region(&rig, 1, MIB, 1, layout);
	int rc = -1;
	for (unsigned n = 1; n < 10; n++) {
		fault_alloc_arm(n);
		rc = kvx_node_target_open(rig.node, region, &target, &why);
		if (!fault_alloc_disarm())
			break;
		cr_assert_eq(rc, -ENOMEM);
	}
	cr_assert_eq(rc, 0);
	cr_assert_eq(target->layout->planes[0].block_bytes, 4096);
	cr_assert_neq(target->layout, region->layout);
	kvx_target_unref(target);
	rig_region_close(&rig, none);
	rig_region_close(&rig, region);
	rig_stop(&rig);
	KVX_TEST_END();
}

static unsigned n_lost;
static int lost_status;

static void on_lost(struct kvx_target_watch *watch, int status, const char *text)
{
	n_lost++;
	lost_status = status;
}

Test(node, target_without_keys_is_lost_and_its_transfers_fail)
{
	struct kvx_target_watch watch = {.lost = on_lost};
	rig_init(&rig);
	rig_start(&rig);
	struct kvx_region *local = rig_region(&rig, 1, MIB, 0, NULL);
	struct kvx_region *remote = rig_region(&rig, 2, MIB, 3, NULL);
	rig.script.faults[KVX_FAKE_RKEY_UNPACK] = (struct kvx_fake_fault){.nth = 2, .err = -ENOKEY};
	struct kvx_target *target = rig_target(&rig, remote);
	struct kvx_xfer_req req = {.client = 1,
				   .number = 1,
				   .op = KVX_OP_WRITE,
				   .region = local,
				   .target = target,
				   .require = ""};
	kvx_target_watch(target, &watch);
	rig_submit(&rig, &req, 100);
	cr_assert(rig_until_ends(&rig, 1, 1000));
	cr_assert_eq(rig.ends[0].end.status, -ENOKEY);
	cr_assert_eq(n_lost, 1);
	cr_assert_eq(lost_status, -ENOKEY);
	cr_assert(target->lost);
	rig_turn(&rig, 0);
	cr_assert_eq(rig.script.n_rkeys, 0);
	/* The next import tries again. */
	struct kvx_target *again = rig_target(&rig, remote);
	cr_assert_neq(again, target);
	req.target = again;
	rig_submit(&rig, &req, 100);
	cr_assert(rig_until_ends(&rig, 2, 1000));
	cr_assert_eq(rig.ends[1].end.status, 0);
	kvx_target_unwatch(target, &watch);
	kvx_target_unref(target);
	kvx_target_unref(again);
	rig_region_close(&rig, local);
	rig_region_close(&rig, remote);
	rig_stop(&rig);
	KVX_TEST_END();
}

static unsigned n_cmds_back;
static bool cmds_in_order;

struct numbered {
	struct kvx_cmd cmd;
	unsigned number;
};

static void count_cmd(struct kvx_cmd *cmd)
{
	if (((struct numbered *)cmd)->number != n_cmds_back)
		cmds_in_order = false;
	n_cmds_back++;
}

Test(node, commands_beyond_the_ring_are_kept_in_order)
{
	enum { N = 3000 };
	struct numbered *cmds = calloc(N, sizeof(*cmds));
	const char *name;
	rig_init(&rig);
	rig_start(&rig);
	struct kvx_worker *worker = kvx_node_worker(rig.node, 0, &name);
	cmds_in_order = true;
	for (unsigned i = 0; i < N; i++) {
		cmds[i].number = i;
		cmds[i].cmd.work.kind = KVX_CMD_LEASE;
		cmds[i].cmd.ep = kvx_node_copy_lane(rig.node)->outlets[0].ep;
		cmds[i].cmd.lease_ns = UINT64_MAX;
		cmds[i].cmd.done = count_cmd;
		kvx_node_submit(rig.node, worker, &cmds[i].cmd);
		if (i == N / 2) { /* room in the ring must not let later ones overtake */
			kvx_worker_pump(worker);
			kvx_worker_drain(worker);
		}
	}
	rig_turn(&rig, 0);
	cr_assert_eq(n_cmds_back, N);
	cr_assert(cmds_in_order);
	rig_stop(&rig);
	free(cmds);
	KVX_TEST_END();
}

/* An endpoint that is lost by itself is made anew, and its targets get new keys. */
Test(node, lost_endpoint_is_made_anew)
{
	rig_init(&rig);
	rig_start(&rig);
	struct kvx_region *local = rig_region(&rig, 1, MIB, 0, NULL);
	struct kvx_region *remote = rig_region(&rig, 2, MIB, 3, NULL);
	struct kvx_target *target = rig_target(&rig, remote);
	const struct kvx_lane *lane = kvx_node_copy_lane(rig.node);
	struct kvx_xfer_req req = {.client = 1,
				   .number = 1,
				   .op = KVX_OP_WRITE,
				   .region = local,
				   .target = target,
				   .require = ""};
	rig_turn(&rig, 0);
	kvx_fake_ep_lose(lane->outlets[1].ep, -EIO);
	rig_turn(&rig, 0);
	rig_turn(&rig, 0);
	cr_assert_eq(lane->n_resets, 1);
	cr_assert_eq(lane->state, KVX_LANE_UP);
	cr_assert_eq(target->lane_generation, 2);
	rig_submit(&rig, &req, MIB);
	cr_assert(rig_until_ends(&rig, 1, 1000));
	cr_assert_eq(rig.ends[0].end.status, 0);
	kvx_target_unref(target);
	rig_region_close(&rig, local);
	rig_region_close(&rig, remote);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(node, lost_device_refuses_transfers_and_still_closes)
{
	rig_init(&rig);
	rig_start(&rig);
	struct kvx_region *local = rig_region(&rig, 1, MIB, 0, NULL);
	struct kvx_region *remote = rig_region(&rig, 2, MIB, 3, NULL);
	struct kvx_target *target = rig_target(&rig, remote);
	struct kvx_xfer_req req = {.client = 1,
				   .number = 1,
				   .op = KVX_OP_WRITE,
				   .region = local,
				   .target = target,
				   .require = ""};
	rig_submit(&rig, &req, MIB);
	rig_turn(&rig, 100);
	kvx_fake_device_lose(&rig.script, NULL);
	cr_assert(rig_until_ends(&rig, 1, 10000));
	cr_assert_lt(rig.ends[0].end.status, 0);
	for (unsigned i = 0; i < 10; i++)
		rig_turn(&rig, 1000);
	kvx_target_unref(target);
	rig_region_close(&rig, local);
	rig_region_close(&rig, remote);
	rig_stop(&rig);
	KVX_TEST_END();
}

static _Atomic unsigned n_rings;

static void count_ring(void *arg)
{
	atomic_fetch_add(&n_rings, 1);
}

/* Real threads, real copies: the loop sleeps until the doorbell rings. */
static void drain_until(const unsigned *counter, unsigned want)
{
	const struct timespec nap = {.tv_nsec = 20000};
	unsigned seen = atomic_load(&n_rings);
	kvx_node_drain(rig.node);
	for (unsigned i = 0; *counter < want; i++) {
		cr_assert_lt(i, 500000, "the doorbell did not ring");
		nanosleep(&nap, NULL);
		if (atomic_load(&n_rings) == seen)
			continue;
		seen = atomic_load(&n_rings);
		kvx_node_drain(rig.node);
	}
}

static void open_threaded(void)
{
	rig_init(&rig);
	rig.conf.copy_ops = NULL;
	rig.conf.threaded = true;
	rig.conf.doorbell = count_ring;
	rig.conf.copy_inline_max_bytes = 32768;
	rig.conf.spin_us = 10;
	rig.conf.xfers.default_deadline_ns = 60000000000;
	cr_assert_eq(kvx_timers_create(NULL, NULL, &rig.timers), 0);
	rig.conf.timers = rig.timers;
	cr_assert_eq(kvx_node_open(&rig.conf, &rig.node, NULL), 0);
}

Test(node, real_threads_copy_real_bytes)
{
	enum { BYTES = 16 * MIB, N = 40 };
	open_threaded();
	struct kvx_region *local = rig_region_add(&rig, 1, BYTES, 0, NULL);
	struct kvx_region *remote = rig_region_add(&rig, 2, BYTES, 3, NULL);
	cr_assert_eq(kvx_node_region_open(rig.node, local, rig_on_opened, &rig), 0);
	cr_assert_eq(kvx_node_region_open(rig.node, remote, rig_on_opened, &rig), 0);
	drain_until(&rig.n_opened, 2);
	for (unsigned i = 0; i < BYTES; i++)
		local->mem.addr[i] = (uint8_t)(i * 13 + (i >> 11));
	struct kvx_target *target = rig_target(&rig, remote);
	struct kvx_xfer_req req = {
	    .client = 1, .op = KVX_OP_WRITE, .region = local, .target = target, .require = "copy"};
	for (unsigned i = 0; i < N; i++) {
		uint64_t at = (uint64_t)i * BYTES / N, len = BYTES / N - i % 2 * 400000;
		struct kvx_op_list ops = {1, 1, &at, &at, &len};
		req.number = i;
		req.ops = &ops;
		rig_submit(&rig, &req, 0);
	}
	drain_until(&rig.n_ends, N);
	for (unsigned i = 0; i < N; i++) {
		uint64_t at = (uint64_t)i * BYTES / N, len = BYTES / N - i % 2 * 400000;
		cr_assert_eq(rig.ends[i].end.status, 0, "%s", rig.ends[i].text);
		cr_assert_arr_eq(local->mem.addr + at, remote->mem.addr + at, len);
		if (len < BYTES / N)
			cr_assert_eq(remote->mem.addr[at + len], 0);
	}
	kvx_target_unref(target);
	cr_assert_eq(kvx_node_region_close(rig.node, local, -1, "", rig_on_closed, &rig), 0);
	cr_assert_eq(kvx_node_region_close(rig.node, remote, -1, "", rig_on_closed, &rig), 0);
	drain_until(&rig.n_closed, 2);
	rig_stop(&rig);
	KVX_TEST_END();
}
