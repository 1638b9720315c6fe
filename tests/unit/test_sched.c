/* Scheduler on the fake transport: order, turns, credits, lanes going down and up, the inline
 * outlet, the shared pool. Time is virtual; workers are turned by hand. */
#include "sched_rig.h"

#include <errno.h>

#include "fault_alloc.h"
#include "test_rng.h"

Test(sched, everything_comes_back_once)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 3000 * KIB + 5};
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 2, .n_batches = 16, .quantum = 256 * KIB});
	load_start(&rig, &load, 0, 1);
	run_out(&rig);
	cr_assert_eq(load.done, load.total);
	cr_assert_eq(load.item.n_in_flight, 0);
	cr_assert_not(load.item.queued);
	cr_assert_eq(kvx_scheds_available(rig.scheds), 16);
	cr_assert_eq(rig.lanes[0].lane.n_bytes, load.total);
	cr_assert_eq(rig.lanes[0].lane.outlets[0].bytes_in_flight, 0);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, items_of_a_flow_go_in_order)
{
	struct rig rig = {.n_lanes = 0};
	struct load loads[5] = {{.total = 0}};
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 2, .n_batches = 16, .quantum = 64 * KIB});
	for (unsigned i = 0; i < 5; i++) {
		loads[i].total = 700 * KIB;
		load_start(&rig, &loads[i], 0, 9);
	}
	kvx_scheds_pump(rig.scheds);
	for (unsigned turn = 0; loads[4].done < loads[4].total; turn++) {
		cr_assert_lt(turn, 1000);
		for (unsigned i = 1; i < 5; i++)
			cr_assert(loads[i].given == 0 || loads[i - 1].given == loads[i - 1].total,
				  "item %u began before item %u was given out", i, i - 1);
		rig_turn(&rig, 700);
	}
	rig_close(&rig);
	KVX_TEST_END();
}

/* Between flows that all have something to send, no one is ahead by more than a quantum and what
 * one batch overdraws. */
Test(sched, flows_get_equal_bytes_within_a_quantum)
{
	enum { FLOWS = 5 };
	for (uint64_t seed = 1; seed <= 30; seed++) {
		struct rig rig = {.script = {.latency_ns = 5000, .jitter_ns = 4000, .seed = seed}};
		struct load loads[FLOWS] = {{.total = 0}};
		uint64_t slack;
		rng_state = seed * 77777;
		uint64_t quantum = 16 * KIB + rng() % (512 * KIB);
		rig.script.limits.batch_bytes = 8 * KIB + rng() % (256 * KIB);
		rig_open(&rig, &(struct rig_conf){.n_lanes = 1,
						  .n_outlets = 1 + rng() % 2,
						  .n_batches = 8,
						  .quantum = quantum});
		slack = quantum + rig.script.limits.batch_bytes + 64 * KIB;
		for (unsigned i = 0; i < FLOWS; i++) {
			loads[i].total = 64ull * KIB * KIB;
			loads[i].op_bytes = 1 + rng() % (64 * KIB);
			load_start(&rig, &loads[i], 0, 100 + i);
		}
		kvx_scheds_pump(rig.scheds);
		for (unsigned turn = 0; turn < 400; turn++) {
			uint64_t least = UINT64_MAX, most = 0;
			rig_turn(&rig, 1 + rng() % 5000);
			for (unsigned i = 0; i < FLOWS; i++) {
				least = loads[i].given < least ? loads[i].given : least;
				most = loads[i].given > most ? loads[i].given : most;
			}
			cr_assert_leq(most - least, slack, "seed %lu turn %u: %lu ahead",
				      (unsigned long)seed, turn, (unsigned long)(most - least));
		}
		cr_assert_gt(loads[0].given, 0);
		for (unsigned i = 0; i < FLOWS; i++) {
			kvx_sched_remove(&loads[i].item);
			cr_assert_not(loads[i].item.queued);
		}
		run_out(&rig);
		for (unsigned i = 0; i < FLOWS; i++)
			cr_assert_eq(loads[i].done, loads[i].given);
		rig_close(&rig);
	}
	KVX_TEST_END();
}

Test(sched, small_item_does_not_wait_behind_a_big_one)
{
	struct rig rig = {.script = {.latency_ns = 1000}};
	struct load big = {.total = 512ull * KIB * KIB, .op_bytes = 64 * KIB};
	struct load small = {.total = 4 * KIB};
	rig.script.limits.batch_bytes = 128 * KIB;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 32, .quantum = 256 * KIB});
	load_start(&rig, &big, 0, 1);
	kvx_scheds_pump(rig.scheds);
	rig_turn(&rig, 1000);
	uint64_t before = big.given;
	load_start(&rig, &small, 0, 2);
	for (unsigned i = 0; small.done == 0; i++) {
		cr_assert_lt(i, 10);
		rig_turn(&rig, 1000);
	}
	cr_assert_leq(big.given - before, 2 * (256 + 128) * KIB + 4 * 128 * KIB);
	kvx_sched_remove(&big.item);
	run_out(&rig);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, lane_that_is_not_up_gives_nothing_out)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 100 * KIB};
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 8, .quantum = 64 * KIB});
	rig.lanes[0].lane.state = KVX_LANE_CONNECTING;
	load_start(&rig, &load, 0, 1);
	for (unsigned i = 0; i < 5; i++)
		rig_turn(&rig, 1000);
	cr_assert_eq(load.n_pulls, 0);
	cr_assert_eq(kvx_sched_queued(rig.lanes[0].lane.sched), 1);
	rig.lanes[0].lane.state = KVX_LANE_UP;
	kvx_sched_pump(rig.lanes[0].lane.sched);
	cr_assert_gt(load.given, 0);
	run_out(&rig);
	cr_assert_eq(load.done, load.total);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, down_lane_keeps_order_until_it_is_up)
{
	struct rig rig = {.n_lanes = 0};
	struct load loads[3] = {{.total = 10 * KIB}, {.total = 10 * KIB}, {.total = 10 * KIB}};
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 8, .quantum = 64 * KIB});
	rig.lanes[0].lane.state = KVX_LANE_DOWN;
	pull_clock = 0;
	for (unsigned i = 0; i < 3; i++)
		load_start(&rig, &loads[i], 0, 4);
	kvx_scheds_pump(rig.scheds);
	rig.lanes[0].lane.state = KVX_LANE_UP;
	kvx_sched_pump(rig.lanes[0].lane.sched);
	run_out(&rig);
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(loads[i].first_pull, i + 1);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, batches_go_to_the_least_loaded_outlet)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 96 * KIB, .op_bytes = 32 * KIB};
	rig.script.limits.batch_bytes = 32 * KIB;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 2, .n_batches = 8, .quantum = 64 * KIB});
	const struct kvx_outlet *o = rig.lanes[0].lane.outlets;
	load_start(&rig, &load, 0, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(o[0].batches_in_flight, 2);
	cr_assert_eq(o[1].batches_in_flight, 1);
	cr_assert_eq(o[0].bytes_in_flight, 64 * KIB);
	run_out(&rig);
	rig_close(&rig);
	KVX_TEST_END();
}

/* Where the CPU copies, a lone item that would fit into one batch is shared out. */
Test(sched, lone_item_is_spread_over_copying_outlets)
{
	struct kvx_transport_ops copying = kvx_fake_ops;
	struct rig rig = {.n_lanes = 0};
	struct load a = {.total = 512 * KIB}, b = {.total = 512 * KIB}, c = {.total = 64 * KIB};
	copying.caps |= KVX_CAP_CPU_COPY;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 2, .n_batches = 8, .quantum = 1024 * KIB});
	rig.lanes[0].lane.ops = &copying;
	const struct kvx_outlet *o = rig.lanes[0].lane.outlets;
	load_start(&rig, &a, 0, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(o[0].bytes_in_flight, 256 * KIB);
	cr_assert_eq(o[1].bytes_in_flight, 256 * KIB);
	run_out(&rig);
	load_start(&rig, &c, 0, 1); /* too small to be worth it */
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(o[0].bytes_in_flight + o[1].bytes_in_flight, 64 * KIB);
	cr_assert_eq(c.n_pulls, 1);
	run_out(&rig);
	a = (struct load){.total = 512 * KIB};
	load_start(&rig, &a, 0, 1); /* not alone: whole batches */
	load_start(&rig, &b, 0, 2);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(a.n_pulls, 1);
	run_out(&rig);
	rig_close(&rig);
	KVX_TEST_END();
}

/* Two lanes and fewer batches than either could use: both go on. */
Test(sched, lanes_share_the_pool_fairly)
{
	struct rig rig = {.script = {.latency_ns = 1000}};
	struct load a = {.total = 64ull * KIB * KIB}, b = {.total = 64ull * KIB * KIB};
	rig.script.limits.queue_batches = 16;
	rig.script.limits.batch_bytes = 32 * KIB;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 2, .n_outlets = 1, .n_batches = 3, .quantum = 1024 * KIB});
	load_start(&rig, &a, 0, 1);
	load_start(&rig, &b, 1, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(kvx_scheds_available(rig.scheds), 0);
	for (unsigned i = 0; i < 100; i++) {
		rig_turn(&rig, 1000);
		uint64_t ahead = a.given > b.given ? a.given - b.given : b.given - a.given;
		cr_assert_leq(ahead, 3 * 32 * KIB);
	}
	cr_assert_gt(a.done, 64 * 32 * KIB);
	kvx_sched_remove(&a.item);
	kvx_sched_remove(&b.item);
	run_out(&rig);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, full_ring_is_tried_again)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 5000 * KIB};
	rig.script.limits.queue_batches = 8;
	rig_open(&rig, &(struct rig_conf){.n_lanes = 1,
					  .n_outlets = 1,
					  .n_batches = 16,
					  .ring_depth = 2,
					  .quantum = 64 * KIB});
	load_start(&rig, &load, 0, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(kvx_worker_in_flight(rig.lanes[0].workers[0]), 2);
	run_out(&rig);
	cr_assert_eq(load.done, load.total);
	rig_close(&rig);
	KVX_TEST_END();
}

static struct rig *again_rig;
static struct load again_load;

/* From inside batch_done: another item, and a pump that must not recurse. */
static void submit_again(struct load *load)
{
	if (again_load.item.ops != NULL)
		return;
	load_start(again_rig, &again_load, 0, 2);
	unsigned pulls = again_load.n_pulls;
	kvx_scheds_pump(again_rig->scheds);
	cr_assert_eq(again_load.n_pulls, pulls);
}

Test(sched, inline_item_is_over_when_pump_returns)
{
	struct rig rig = {.script = {.auto_advance = true}};
	struct load small = {.total = 16 * KIB, .on_done = submit_again};
	struct load big = {.total = 16 * KIB + 1};
	rig_open(&rig, &(struct rig_conf){.n_lanes = 1,
					  .n_outlets = 1,
					  .n_batches = 8,
					  .quantum = 64 * KIB,
					  .inline_max = 16 * KIB});
	again_rig = &rig;
	again_load = (struct load){.total = 100};
	load_start(&rig, &small, 0, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(small.done, small.total);
	cr_assert_eq(again_load.done, again_load.total);
	load_start(&rig, &big, 0, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(big.done, 0); /* its worker has not had a turn */
	cr_assert_eq(rig.lanes[0].lane.outlets[0].batches_in_flight, 1);
	run_out(&rig);
	cr_assert_eq(big.done, big.total);
	rig_close(&rig);
	KVX_TEST_END();
}

/* The last bytes of a big item are not copied on the loop while the rest is on its way. */
Test(sched, tail_of_a_big_item_is_not_inline)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 40 * KIB};
	rig.script.limits.batch_bytes = 32 * KIB;
	rig_open(&rig, &(struct rig_conf){.n_lanes = 1,
					  .n_outlets = 1,
					  .n_batches = 8,
					  .quantum = 64 * KIB,
					  .inline_max = 16 * KIB});
	load_start(&rig, &load, 0, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(rig.lanes[0].lane.outlets[0].batches_in_flight, 2);
	cr_assert_eq(rig.lanes[0].inline_outlet.batches_in_flight, 0);
	run_out(&rig);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, removed_item_gets_its_batches_back)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 100ull * KIB * KIB};
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 8, .quantum = 64 * KIB});
	load_start(&rig, &load, 0, 1);
	kvx_scheds_pump(rig.scheds);
	uint64_t given = load.given;
	cr_assert_gt(load.item.n_in_flight, 0);
	kvx_sched_remove(&load.item);
	kvx_sched_remove(&load.item); /* no-op */
	run_out(&rig);
	cr_assert_eq(load.given, given);
	cr_assert_eq(load.done, given);
	cr_assert_eq(load.item.n_in_flight, 0);
	rig_close(&rig);
	KVX_TEST_END();
}

static void on_held(void *arg)
{
	++*(unsigned *)arg;
}

Test(sched, failed_batch_is_held_until_it_is_released)
{
	struct rig rig = {.script = {.fail_nth_op = 3, .fail_err = -EIO}};
	struct load load = {.total = 400 * KIB, .op_bytes = 4 * KIB, .fail_err = -EIO};
	unsigned n_held = 0;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 8, .quantum = 64 * KIB});
	struct kvx_sched *sched = rig.lanes[0].lane.sched;
	kvx_sched_hold(sched, on_held, &n_held);
	load_start(&rig, &load, 0, 1);
	kvx_scheds_pump(rig.scheds);
	for (unsigned i = 0; i < 100; i++)
		rig_turn(&rig, 1000);
	cr_assert_eq(n_held, 1);
	cr_assert_eq(load.n_failed, 0);
	cr_assert_eq(load.item.n_in_flight, 1);
	cr_assert_eq(kvx_sched_in_flight(sched), 1, "what is held is in flight");
	cr_assert_eq(load.given, load.total, "the others go on");
	kvx_sched_release(sched);
	cr_assert_eq(load.n_failed, 1);
	cr_assert_eq(kvx_sched_in_flight(sched), 0);
	kvx_sched_release(sched); /* no-op */
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, what_a_fence_brings_back_is_held_too)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 64 * KIB, .op_bytes = 4 * KIB, .fail_err = -ECANCELED};
	unsigned n_held = 0;
	rig.script.limits.batch_bytes = 4 * KIB;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 8, .quantum = 64 * KIB});
	struct kvx_sched *sched = rig.lanes[0].lane.sched;
	kvx_sched_hold(sched, on_held, &n_held);
	rig.script.drop_nth_op = 1;
	rig.script.drop_ops = 100;
	load_start(&rig, &load, 0, 1);
	kvx_scheds_pump(rig.scheds);
	unsigned n_out = load.item.n_in_flight;
	cr_assert_gt(n_out, 1);
	rig.lanes[0].lane.state = KVX_LANE_CLOSING;
	struct kvx_cmd fence = {.ep = rig.lanes[0].lane.outlets[0].ep};
	command(rig.lanes[0].workers[0], &fence, KVX_CMD_FENCE);
	rig_turn(&rig, 1000);
	cr_assert_eq(n_held, n_out);
	cr_assert_eq(load.n_failed, 0);
	kvx_sched_release(sched);
	cr_assert_eq(load.n_failed, n_out);
	cr_assert_eq(kvx_sched_in_flight(sched), 0);
	kvx_sched_remove(&load.item);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, every_allocation_may_fail)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 4 * KIB};
	int rc = -1;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 4, .quantum = 64 * KIB});
	load.item.ops = &load_ops;
	load.lane = &rig.lanes[0];
	load.op_bytes = 1024;
	for (unsigned n = 1; n < 20; n++) {
		fault_alloc_arm(n);
		rc = kvx_sched_enqueue(rig.lanes[0].lane.sched, &load.item);
		if (!fault_alloc_disarm())
			break;
		cr_assert_eq(rc, -ENOMEM);
		cr_assert_eq(kvx_sched_queued(rig.lanes[0].lane.sched), 0);
	}
	cr_assert_eq(rc, 0);
	run_out(&rig);
	cr_assert_eq(load.done, load.total);
	rig_close(&rig);
	for (unsigned n = 1; n < 20; n++) {
		struct kvx_scheds *scheds = NULL;
		fault_alloc_arm(n);
		rc = kvx_scheds_create(4, 1, &scheds);
		if (!fault_alloc_disarm()) {
			kvx_scheds_destroy(scheds);
			break;
		}
		cr_assert_eq(rc, -ENOMEM);
	}
	cr_assert_eq(rc, 0);
	KVX_TEST_END();
}
