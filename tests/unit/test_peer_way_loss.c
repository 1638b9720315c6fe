/* Peers: a lost peer is told of after the fences of both lanes of the tenant, also where one of
 * them is up again before the other one has stopped. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "peer_ways.h"
#include "test_end.h"
#include "worker/worker.h"

static struct kvx_worker *held; /* does nothing while it is held: its LEASE 0 takes so long */

bool __real_kvx_worker_pump(struct kvx_worker *worker);
bool __wrap_kvx_worker_pump(struct kvx_worker *worker);

bool __wrap_kvx_worker_pump(struct kvx_worker *worker)
{
	return worker != held && __real_kvx_worker_pump(worker);
}

static void start(void)
{
	rig_init(&rig);
	ways_init();
	rig.a.conf.lost_ms = rig.b.conf.lost_ms = 60000;
	rig.a.conf.heartbeat_ms = rig.b.conf.heartbeat_ms = 5000;
	rig_wire_b(&rig);
	ways_start();
	cr_assert(RIG_UNTIL(&rig, ways_are_up(), 1000));
}

static struct kvx_worker *worker_of(const struct rig_side *side,
				    const struct kvx_transport_ops *ops)
{
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(side->node, &n);

	for (unsigned i = 0; i < n; i++)
		if (rails[i].ops == ops)
			return rails[i].worker;
	return NULL;
}

/* The wire is cut in a write by the first lane; b's `slow` lane takes long to stop. */
static KVX_ON_LOOP void lose_with_slow_lane(const struct kvx_transport_ops *slow)
{
	struct ways_watch lost = {.watch.lost = ways_on_lost};
	struct rig_answer answer;

	start();
	answer = ways_resolve(&rig.b, here);
	cr_assert_eq(answer.status, 0, "%s", answer.text);
	kvx_target_watch(answer.target, &lost.watch);
	rig.script.latency_ns = 100 * KVX_SEC;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 20);
	held = worker_of(&rig.b, slow);
	cr_assert_not_null(held);
	rig_wire_cut(&rig);
	rig.script.latency_ns = 0;
	rig_pass(&rig, 500);
	cr_assert(answer.target->lost, "it takes no new transfers");
	cr_assert_eq(rig.b.n_arrivals, 0, "told before the fence of the slow lane");
	cr_assert_eq(lost.n, 0, "told before the fence of the slow lane");
	held = NULL;
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals > 0, 8000));
	cr_assert(RIG_UNTIL(&rig, lost.n > 0, 100));
	cr_assert_eq(rig.b.n_arrivals, 1);
	cr_assert_eq(rig.b.arrivals[0].arrival.status, -EHOSTDOWN);
	cr_assert_str_eq(rig.b.arrivals[0].arrival.transport, "best");
	kvx_target_unwatch(answer.target, &lost.watch);
	kvx_target_unref(answer.target);
	cr_assert(RIG_UNTIL(&rig, ways_are_up(), 30000));
	pair_stop();
}

Test(peer_way_loss, owner_and_importer_are_told_after_the_fence_of_the_second_lane)
{
	lose_with_slow_lane(ANY);
	KVX_TEST_END();
}

Test(peer_way_loss, owner_and_importer_are_told_after_the_fence_of_the_first_lane)
{
	lose_with_slow_lane(BEST);
	KVX_TEST_END();
}

/* The region is resolved anew by the first lane while the second one still has to stop: it stays
 * exported when that is over. */
Test(peer_way_loss, region_that_is_resolved_anew_meanwhile_stays_exported)
{
	struct kvx_region *far;
	struct kvx_lane_row row;

	start();
	far = ways_far_region(&rig.a, 0x55);
	ways_assert_write(far, target, there, "any");
	held = worker_of(&rig.b, ANY);
	rig_wire_cut(&rig);
	cr_assert(RIG_UNTIL(&rig, target->lost, 1000));
	cr_assert(RIG_UNTIL(&rig, ways_lane_is(&rig.b, false, "best"), 8000));
	pair_resolve_again();
	cr_assert(ways_lane(&rig.b, true, &row));
	cr_assert_str_neq(row.state, "up");
	pair_assert_write_works();
	held = NULL;
	cr_assert(RIG_UNTIL(&rig, ways_are_up(), 8000));
	rig_pass(&rig, 100);
	ways_assert_write(here, target, there, "best"); /* with its arrival */
	rig_region_close(&rig.b, there);
	cr_assert(RIG_UNTIL(&rig, target->lost, 1000), "a was not told");
	cr_assert(RIG_UNTIL(&rig, kvx_regions_count(kvx_node_regions(rig.b.node)) == 0, 1000));
	pair_stop();
	KVX_TEST_END();
}

/* The same, and then nobody has it: the export ends with the fence. */
Test(peer_way_loss, region_that_is_not_resolved_anew_is_free_after_both_fences)
{
	struct kvx_region *far;

	start();
	far = ways_far_region(&rig.a, 0x55);
	ways_assert_write(far, target, there, "any");
	held = worker_of(&rig.b, ANY);
	rig_wire_cut(&rig);
	cr_assert(RIG_UNTIL(&rig, target->lost, 1000));
	cr_assert(RIG_UNTIL(&rig, ways_lane_is(&rig.b, false, "best"), 8000));
	rig_region_close(&rig.b, there);
	rig_pass(&rig, 100);
	cr_assert_eq(kvx_regions_count(kvx_node_regions(rig.b.node)), 1, "before the fence");
	held = NULL;
	cr_assert(RIG_UNTIL(&rig, kvx_regions_count(kvx_node_regions(rig.b.node)) == 0, 1000));
	pair_stop();
	KVX_TEST_END();
}
