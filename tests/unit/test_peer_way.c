/* Peers: the two lanes of a tenant where a node has GPUs, and which of them a region or a transfer
 * goes by. "best" stands for a transport that does not reach all memory, "any" for one that does.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "fault_alloc.h"
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

/* which lanes there are */

Test(peer_way, second_lane_comes_up_where_one_node_has_a_gpu)
{
	struct kvx_peer_row row;

	start();
	cr_assert(rig_row(&rig.b, &row));
	cr_assert_eq(row.n_lanes, 2);
	cr_assert_eq(row.n_lanes_up, 2);
	pair_assert_write_works();
	cr_assert_str_eq(rig.a.ends[0].end.transport, "best");
	pair_stop();
	KVX_TEST_END();
}

Test(peer_way, second_lane_comes_up_where_only_the_other_node_has_a_gpu)
{
	rig_init(&rig);
	ways_init();
	rig.a.node_conf.gpu_ops = NULL;
	rig.b.node_conf.gpu_ops = &test_gpu_ops;
	ways_start();
	cr_assert(RIG_UNTIL(&rig, ways_are_up(), 1000));
	pair_stop();
	KVX_TEST_END();
}

Test(peer_way, no_second_lane_without_gpus)
{
	struct kvx_peer_row row;
	struct kvx_lane_row lane;

	rig_init(&rig);
	ways_init();
	rig.a.node_conf.gpu_ops = NULL;
	ways_start();
	rig_pass(&rig, 500);
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_lanes, 1);
	cr_assert_not(ways_lane(&rig.a, true, &lane));
	cr_assert_eq(test_rail(ANY, 0, 0)->n_listens + test_rail(ANY, 1, 0)->n_listens, 0);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_way, no_second_lane_where_the_first_one_reaches_all)
{
	struct kvx_lane_row lane;

	rig_init(&rig);
	ways_init();
	rig.b.node_conf.peer_ops[0] = ANY;
	rig.b.node_conf.peer_ops[1] = NULL;
	ways_start();
	rig_pass(&rig, 500);
	cr_assert(ways_lane_is(&rig.a, false, "any"));
	cr_assert_not(ways_lane(&rig.a, true, &lane));
	cr_assert_not(ways_lane(&rig.b, true, &lane));
	pair_stop();
	KVX_TEST_END();
}

/* which one carries what */

Test(peer_way, region_out_of_reach_goes_by_the_second_lane_and_others_by_the_first)
{
	struct kvx_region *far;
	struct kvx_target *import;

	start();
	far = ways_far_region(&rig.b, 0x44);
	import = ways_import(far);
	cr_assert_eq(import->len_bytes, LEN);
	cr_assert_eq(import->access, RW);
	cr_assert_str_eq(import->lane->ops->name, "any", "what its transfers go by");
	rig.script.latency_ns = 20 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, import, LEN, 5000), 0);
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 5000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 2, 1000));
	rig.script.latency_ns = 0;
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(rig.a.ends[i].end.status, 0, "%s", rig.a.ends[i].text);
	cr_assert_leq(rig.a.ends[1].at_ns - rig.a.ends[0].at_ns, 5 * KVX_MS, "at the same time");
	cr_assert(pair_all_are(far->mem.addr, 0x11));
	cr_assert(pair_all_are(there->mem.addr, 0x11));
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals == 2, 100));
	kvx_target_unref(import);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_way, read_of_a_region_out_of_reach_brings_its_bytes)
{
	struct kvx_region *far;
	struct kvx_target *import;

	start();
	far = ways_far_region(&rig.b, 0x44);
	import = ways_import(far);
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_READ, here, import, LEN, 5000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 1000));
	cr_assert_eq(rig.a.ends[0].end.status, 0, "%s", rig.a.ends[0].text);
	cr_assert(pair_all_are(here->mem.addr, 0x44));
	kvx_target_unref(import);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_way, local_region_out_of_reach_goes_by_the_second_lane)
{
	struct kvx_region *far;

	start();
	far = ways_far_region(&rig.a, 0x55);
	ways_assert_write(far, target, there, "any");
	ways_assert_write(here, target, there, "best");
	ways_assert_write(far, target, there, "any");
	pair_stop();
	KVX_TEST_END();
}

Test(peer_way, required_transport_is_taken_or_refused_by_name)
{
	struct kvx_region *far, *far_here;
	struct kvx_target *import;

	start();
	far = ways_far_region(&rig.b, 0x44);
	far_here = ways_far_region(&rig.a, 0x55);
	import = ways_import(far);
	cr_assert_eq(rig_submit_by(&rig.a, "any", KVX_OP_WRITE, here, target, LEN, 5000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 1000));
	cr_assert_str_eq(rig.a.ends[0].end.transport, "any", "%s", rig.a.ends[0].text);
	cr_assert_eq(rig_submit_by(&rig.a, "best", KVX_OP_WRITE, here, target, LEN, 5000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 2, 1000));
	cr_assert_str_eq(rig.a.ends[1].end.transport, "best", "%s", rig.a.ends[1].text);
	cr_assert_eq(rig_submit_by(&rig.a, "best", KVX_OP_WRITE, here, import, LEN, 5000),
		     -ENETUNREACH);
	cr_assert_eq(rig_submit_by(&rig.a, "best", KVX_OP_WRITE, far_here, target, LEN, 5000),
		     -ENETUNREACH);
	cr_assert_eq(rig_submit_by(&rig.a, "other", KVX_OP_WRITE, here, target, LEN, 5000),
		     -ENETUNREACH);
	kvx_target_unref(import);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_way, region_that_no_lane_reaches_is_refused)
{
	struct kvx_region *far, *far_here;
	struct rig_answer answer;

	start();
	test_rail(ANY, 0, 0)->refuses = test_rail(ANY, 1, 0)->refuses = true;
	far = ways_far_region(&rig.b, 0x44);
	far_here = ways_far_region(&rig.a, 0x55);
	answer = ways_resolve(&rig.a, far);
	cr_assert_eq(answer.status, -ENETUNREACH, "%d %s", answer.status, answer.text);
	cr_assert(strstr(answer.text, "not registered for any") != NULL, "%s", answer.text);
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, far_here, target, LEN, 5000), -ENETUNREACH);
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_way, second_lane_without_a_device_refuses_and_leaves_the_first_alone)
{
	struct kvx_region *far, *far_here;
	struct rig_answer answer;

	start();
	far_here = ways_far_region(&rig.a, 0x55);
	far = ways_far_region(&rig.b, 0x44);
	rig.script.latency_ns = 20 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, far_here, target, LEN, 5000), 0);
	rig_pass(&rig, 3);
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 5000), 0);
	rig_pass(&rig, 3);
	kvx_fake_device_lose(&rig.script, test_rail(ANY, 0, 0)->dom);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 2, 2000));
	rig.script.latency_ns = 0;
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(rig.a.ends[i].end.status == 0,
			     strcmp(rig.a.ends[i].end.transport, "best") == 0, "%s",
			     rig.a.ends[i].text);
	cr_assert(ways_lane_is(&rig.a, false, "best"));
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, far_here, target, LEN, 5000), -ENETUNREACH);
	answer = ways_resolve(&rig.a, far);
	cr_assert_eq(answer.status, -ENETUNREACH, "%d %s", answer.status, answer.text);
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_way, without_a_second_lane_the_refusal_is_as_before)
{
	struct kvx_region *far, *far_here;
	struct rig_answer answer;

	rig_init(&rig);
	ways_init();
	rig.a.node_conf.gpu_ops = NULL;
	ways_start();
	far = ways_far_region(&rig.b, 0x44);
	far_here = ways_far_region(&rig.a, 0x55);
	answer = ways_resolve(&rig.a, far);
	cr_assert_eq(answer.status, -ENETUNREACH, "%d %s", answer.status, answer.text);
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, far_here, target, LEN, 5000), -ENETUNREACH);
	pair_stop();
	KVX_TEST_END();
}

/* what one lane does to the other */

static KVX_ON_LOOP void tear_down_one(bool any_memory)
{
	struct kvx_region *far;
	struct kvx_target *import, *stays, *goes;
	struct kvx_lane_row row;

	start();
	far = ways_far_region(&rig.b, 0x44);
	import = ways_import(far);
	stays = any_memory ? target : import;
	goes = any_memory ? import : target;
	rig.script.latency_ns = 30 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, stays, LEN, 5000), 0);
	rig_pass(&rig, 5);
	kvx_peers_lane_reset(rig.a.peers, goes->lane, "a test");
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, goes, LEN, 5000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 200));
	cr_assert_eq(rig.a.ends[0].end.status, 0, "%s", rig.a.ends[0].text);
	cr_assert_str_eq(rig.a.ends[0].end.transport, any_memory ? "best" : "any");
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 2, 2000), "it waits for the next generation");
	cr_assert_eq(rig.a.ends[1].end.status, 0, "%s", rig.a.ends[1].text);
	cr_assert_str_eq(rig.a.ends[1].end.transport, any_memory ? "any" : "best");
	cr_assert(ways_lane(&rig.a, !any_memory, &row));
	cr_assert_eq(row.n_resets, 0);
	cr_assert(ways_lane(&rig.a, any_memory, &row));
	cr_assert_eq(row.n_resets, 1);
	cr_assert(ways_lane(&rig.b, !any_memory, &row));
	cr_assert_eq(row.n_resets, 0);
	rig.script.latency_ns = 0;
	kvx_target_unref(import);
	pair_stop();
}

Test(peer_way, second_lane_goes_on_when_the_first_is_torn_down)
{
	tear_down_one(false);
	KVX_TEST_END();
}

Test(peer_way, first_lane_goes_on_when_the_second_is_torn_down)
{
	tear_down_one(true);
	KVX_TEST_END();
}

/* legs */

/* Of "best". */
static unsigned dom_index(const struct rig_side *side, unsigned rail)
{
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(side->node, &n);

	for (unsigned i = 0; i < n; i++)
		if (rails[i].ops == BEST && rail-- == 0)
			return rails[i].dom_index;
	cr_assert_fail("no such rail");
	return 0;
}

/* Of two rails one does not know a region: what goes to or from it goes by the other one. */
static KVX_ON_LOOP void leg_out_of_reach(struct rig_side *side)
{
	struct kvx_region *region;
	struct test_rail *rail;
	struct kvx_lane_row row;

	rig_init(&rig);
	ways_init();
	rig.a.n_rails = rig.b.n_rails = 2;
	rig_start(&rig);
	rail = test_rail(BEST, side == &rig.b, 1);
	rail->refuses = true;
	region = rig_region(side, LEN, RW, NULL);
	rail->refuses = false;
	here = side == &rig.a ? region : rig_region(&rig.a, LEN, RW, NULL);
	there = side == &rig.b ? region : rig_region(&rig.b, LEN, RW, NULL);
	memset(here->mem.addr, 0x11, LEN);
	target = ways_import(there);
	for (unsigned i = 0; i < 4; i++)
		ways_assert_write(here, target, there, "best");
	cr_assert(ways_lane(&rig.a, false, &row));
	cr_assert_eq(row.n_legs, 2);
	cr_assert_not_null(target->rkey[dom_index(&rig.a, 0)]);
	cr_assert_eq(target->rkey[dom_index(&rig.a, 1)] == NULL, side == &rig.b);
	pair_stop();
}

Test(peer_way, leg_that_does_not_know_the_local_region_is_left_out)
{
	leg_out_of_reach(&rig.a);
	KVX_TEST_END();
}

Test(peer_way, leg_that_has_no_key_is_left_out)
{
	leg_out_of_reach(&rig.b);
	KVX_TEST_END();
}

static struct kvx_layout *two_planes(void)
{
	struct kvx_layout *layout = kvx_layout_create(2);

	for (unsigned i = 0; i < 2; i++)
		layout->planes[i] = (struct kvx_plane){.offset = i * LEN / 2,
						       .block_stride = 4096,
						       .block_bytes = 4096,
						       .n_blocks = LEN / 2 / 4096,
						       .name = {(char)('a' + i)}};
	return layout;
}

/* The first transfer that needs the second way makes it, with all that is known of the region. */
Test(peer_way, submit_survives_every_failed_allocation)
{
	struct kvx_region *far;
	unsigned n_refused = 0;
	bool faulted = true;

	start();
	far = ways_far_region(&rig.a, 0x55);
	for (unsigned n = 1; faulted; n++) {
		struct kvx_region *at = rig_region(&rig.b, LEN, RW, two_planes());
		struct kvx_target *import = ways_import(at);
		int err;

		fault_alloc_arm(n);
		err = rig_submit(&rig.a, KVX_OP_WRITE, far, import, LEN, 1000);
		faulted = fault_alloc_disarm();
		cr_assert_eq(err, faulted ? -ENOMEM : 0, "allocation %u: %d", n, err);
		n_refused += err < 0;
		rig_pass(&rig, 400); /* its end, and the way anew where it was lost */
		ways_assert_write(far, import, at, "any");
		kvx_target_unref(import);
		rig_region_close(&rig.b, at);
		rig_pass(&rig, 50);
		cr_assert_lt(n, 30);
	}
	cr_assert_gt(n_refused, 2);
	pair_stop();
	KVX_TEST_END();
}

/* Whatever allocation fails on the way, the resolve is answered once, nothing crashes, and the next
 * one succeeds. */
Test(peer_way, resolve_survives_every_failed_allocation)
{
	bool faulted = true;

	start();
	for (unsigned n = 1; faulted; n++) {
		struct kvx_region *far = ways_far_region(&rig.b, 0x44);
		struct rig_answer answer;

		fault_alloc_arm(n);
		answer = ways_resolve(&rig.a, far);
		rig_pass(&rig, 20);
		faulted = fault_alloc_disarm();
		if (answer.status == 0)
			kvx_target_unref(answer.target);
		answer = ways_resolve(&rig.a, far);
		for (unsigned i = 0; i < 3 && answer.status != 0; i++) {
			rig_pass(&rig, 400);
			answer = ways_resolve(&rig.a, far);
		}
		cr_assert_eq(answer.status, 0, "allocation %u: %d %s", n, answer.status,
			     answer.text);
		kvx_target_unref(answer.target);
		rig_region_close(&rig.b, far);
		rig_pass(&rig, 50);
	}
	pair_stop();
	KVX_TEST_END();
}
