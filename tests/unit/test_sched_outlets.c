/* Scheduler: items that may use some of their lane's outlets only. */
#include "sched_rig.h"

#include <errno.h>

#include "test_rng.h"

#define BATCH (32 * KIB)

/* A lane of so many outlets that take two batches each. */
static void lane_open(struct rig *rig, unsigned n_outlets)
{
	rig->script.limits.batch_bytes = BATCH;
	rig->script.limits.queue_batches = 2;
	rig_open(rig,
		 &(struct rig_conf){
		     .n_lanes = 1, .n_outlets = n_outlets, .n_batches = 64, .quantum = 64 * KIB});
}

static void start_on(struct rig *rig, struct load *load, uint32_t outlets, uint64_t flow)
{
	kvx_sched_set_outlets(&load->item, outlets);
	load_start(rig, load, 0, flow);
}

Test(sched_outlets, item_uses_its_own_outlets_only)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 10 * BATCH};
	lane_open(&rig, 3);
	const struct kvx_outlet *o = rig.lanes[0].lane.outlets;
	start_on(&rig, &load, 1u << 1, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(o[0].batches_in_flight, 0);
	cr_assert_eq(o[1].batches_in_flight, 2);
	cr_assert_eq(o[2].batches_in_flight, 0);
	run_out(&rig);
	cr_assert_eq(load.done, load.total);
	rig_close(&rig);
	KVX_TEST_END();
}

/* Of its own client's items, too. */
static void one_that_finds_no_credit(uint64_t other_flow)
{
	struct rig rig = {.n_lanes = 0};
	struct load blocked = {.total = 10 * BATCH}, other = {.total = 2 * BATCH};
	lane_open(&rig, 2);
	const struct kvx_outlet *o = rig.lanes[0].lane.outlets;
	start_on(&rig, &blocked, 1u << 0, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(o[0].batches_in_flight, 2);
	start_on(&rig, &other, 1u << 1, other_flow);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(o[1].batches_in_flight, 2, "held up");
	cr_assert_eq(other.given, other.total);
	run_out(&rig);
	cr_assert_eq(blocked.done, blocked.total);
	cr_assert_eq(other.done, other.total);
	rig_close(&rig);
}

Test(sched_outlets, item_without_credit_does_not_hold_up_other_clients)
{
	one_that_finds_no_credit(2);
	KVX_TEST_END();
}

Test(sched_outlets, item_without_credit_does_not_hold_up_its_own_client)
{
	one_that_finds_no_credit(1);
	KVX_TEST_END();
}

Test(sched_outlets, items_of_one_client_on_one_outlet_stay_in_order)
{
	struct rig rig = {.n_lanes = 0};
	struct load loads[6] = {{.total = 0}};
	lane_open(&rig, 2);
	for (unsigned i = 0; i < 6; i++) {
		loads[i].total = 5 * BATCH + i;
		start_on(&rig, &loads[i], 1u << (i % 2), 7);
	}
	kvx_scheds_pump(rig.scheds);
	for (unsigned turn = 0; loads[4].done + loads[5].done < loads[4].total + loads[5].total;
	     turn++) {
		cr_assert_lt(turn, 1000);
		for (unsigned i = 2; i < 6; i++)
			cr_assert(loads[i].given == 0 || loads[i - 2].given == loads[i - 2].total);
		rig_turn(&rig, 1000);
	}
	run_out(&rig);
	rig_close(&rig);
	KVX_TEST_END();
}

/* Oldest first, whatever their outlets are, where all find credit. */
Test(sched_outlets, items_of_a_client_go_in_order_of_submission_where_they_can)
{
	struct rig rig = {.n_lanes = 0};
	struct load loads[4] = {{.total = 0}};
	static const uint32_t outlets[4] = {2, 0, 1, 2};
	lane_open(&rig, 2);
	pull_clock = 0;
	for (unsigned i = 0; i < 4; i++) {
		loads[i].total = 1 * KIB;
		start_on(&rig, &loads[i], outlets[i], 7);
	}
	kvx_scheds_pump(rig.scheds);
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(loads[i].first_pull, i + 1);
	run_out(&rig);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched_outlets, queued_item_keeps_its_place_when_its_outlets_change)
{
	struct rig rig = {.n_lanes = 0};
	struct load loads[5] = {{.total = 0}};
	lane_open(&rig, 2);
	rig.lanes[0].lane.state = KVX_LANE_CONNECTING;
	pull_clock = 0;
	for (unsigned i = 0; i < 5; i++) {
		loads[i].total = 1 * KIB;
		start_on(&rig, &loads[i], i == 2 ? 1 : 2, 7);
	}
	kvx_scheds_pump(rig.scheds);
	for (unsigned i = 5; i-- > 0;) /* newest first, into the middle and to the front */
		kvx_sched_set_outlets(&loads[i].item, 1);
	kvx_sched_set_outlets(&loads[3].item, 2);
	kvx_sched_set_outlets(&loads[3].item, 1);
	kvx_sched_set_outlets(&loads[0].item, 0);
	kvx_sched_set_outlets(&loads[0].item, 1);
	rig.lanes[0].lane.state = KVX_LANE_UP;
	kvx_sched_pump(rig.lanes[0].lane.sched);
	run_out(&rig);
	for (unsigned i = 0; i < 5; i++)
		cr_assert_eq(loads[i].first_pull, i + 1, "item %u", i);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched_outlets, new_outlets_are_used_at_once)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 10 * BATCH};
	lane_open(&rig, 2);
	const struct kvx_outlet *o = rig.lanes[0].lane.outlets;
	start_on(&rig, &load, 1u << 0, 1);
	kvx_scheds_pump(rig.scheds);
	kvx_sched_set_outlets(&load.item, 0);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(o[1].batches_in_flight, 2);
	run_out(&rig);
	rig_close(&rig);
	KVX_TEST_END();
}

/* Is there an item that could go by an outlet that has credit? */
static bool something_waits(const struct rig *rig, const struct load *loads, unsigned n)
{
	const struct kvx_lane *lane = &rig->lanes[0].lane;

	for (unsigned i = 0; i < n; i++) {
		const struct load *load = &loads[i];
		if (!load->item.queued || load->given == load->total)
			continue;
		for (unsigned o = 0; o < lane->n_outlets; o++)
			if ((load->item.outlets == 0 || load->item.outlets & 1u << o) &&
			    lane->outlets[o].batches_in_flight < 2)
				return true;
	}
	return false;
}

/* Clients that have the same outlets get the same, nobody starves, and no outlet is idle while
 * somebody could use it. */
Test(sched_outlets, turns_are_fair_among_those_that_share_outlets)
{
	enum { FLOWS = 8 };
	for (uint64_t seed = 1; seed <= 30; seed++) {
		struct rig rig = {.script = {.latency_ns = 5000, .jitter_ns = 4000, .seed = seed}};
		struct load loads[FLOWS] = {{.total = 0}};
		uint64_t slack = 64 * KIB + BATCH + 64 * KIB, sum = 0;
		rng_state = seed * 77777;
		lane_open(&rig, 3);
		for (unsigned i = 0; i < FLOWS; i++) {
			loads[i].total = 1024ull * KIB * KIB;
			loads[i].op_bytes = 1 + rng() % (16 * KIB);
			start_on(&rig, &loads[i], i / 2 < 3 ? 1u << i / 2 : 0, 100 + i);
		}
		kvx_scheds_pump(rig.scheds);
		for (unsigned turn = 0; turn < 1000; turn++) {
			rig_turn(&rig, 1 + rng() % 5000);
			cr_assert_not(something_waits(&rig, loads, FLOWS), "seed %lu turn %u",
				      (unsigned long)seed, turn);
			for (unsigned i = 0; i < FLOWS; i += 2) {
				uint64_t a = loads[i].given, b = loads[i + 1].given;
				cr_assert_leq(a > b ? a - b : b - a, slack, "seed %lu turn %u",
					      (unsigned long)seed, turn);
			}
		}
		for (unsigned i = 0; i < FLOWS; i++)
			sum += loads[i].given;
		for (unsigned i = 0; i < FLOWS; i++)
			cr_assert_geq(loads[i].given, sum / FLOWS / 2, "seed %lu: %u starves",
				      (unsigned long)seed, i);
		for (unsigned i = 0; i < FLOWS; i++)
			kvx_sched_remove(&loads[i].item);
		run_out(&rig);
		rig_close(&rig);
	}
	KVX_TEST_END();
}

/* Items come, go, change and leave: whatever was given out comes back, and the rest is there. */
Test(sched_outlets, random_changes_lose_nothing)
{
	enum { ITEMS = 40 };
	for (uint64_t seed = 1; seed <= 50; seed++) {
		struct rig rig = {.script = {.latency_ns = 3000, .seed = seed}};
		struct load loads[ITEMS] = {{.total = 0}};
		rng_state = seed * 4711;
		lane_open(&rig, 4);
		for (unsigned step = 0; step < 600; step++) {
			struct load *load = &loads[rng() % ITEMS];
			switch (rng() % 4) {
			case 0:
				load->total += 1 + rng() % (4 * BATCH);
				load_start(&rig, load, 0, 1 + (load - loads) % 5);
				break;
			case 1:
				kvx_sched_set_outlets(&load->item, (uint32_t)(rng() % 16));
				break;
			case 2:
				kvx_sched_remove(&load->item);
				break;
			default:
				rig_turn(&rig, rng() % 4000);
				break;
			}
		}
		for (unsigned i = 0; i < ITEMS; i++)
			load_start(&rig, &loads[i], 0, 1 + i % 5);
		run_out(&rig);
		for (unsigned i = 0; i < ITEMS; i++)
			cr_assert_eq(loads[i].done, loads[i].total, "seed %lu item %u",
				     (unsigned long)seed, i);
		rig_close(&rig);
	}
	KVX_TEST_END();
}
