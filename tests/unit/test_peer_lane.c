/* Peers: transfers over the lane, its tear-down and recovery, and withdrawal of regions. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "fault_alloc.h"
#include "peer_pair.h"
#include "test_end.h"

Test(peer_lane, write_ends_with_an_arrival_at_the_owner)
{
	rig_init(&rig);
	pair_start();
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 1000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals == 1, 1000));
	cr_assert_eq(rig.a.n_ends, 1);
	cr_assert_eq(rig.a.ends[0].end.status, 0);
	cr_assert_str_eq(rig.a.ends[0].end.transport, "fake");
	cr_assert_eq(rig.b.arrivals[0].arrival.status, 0);
	cr_assert_eq(rig.b.arrivals[0].arrival.bytes, LEN);
	cr_assert_eq(rig.b.arrivals[0].arrival.owner, 7);
	cr_assert_eq(rig.b.arrivals[0].arrival.region, there->id);
	cr_assert_eq(rig.b.arrivals[0].arrival.tag, 0x7a6);
	cr_assert_eq(rig.b.arrivals[0].arrival.op, KVX_OP_WRITE);
	cr_assert_eq(rig.b.arrivals[0].arrival.payload_bytes, 7);
	cr_assert_eq(memcmp(rig.b.arrivals[0].payload, "payload", 7), 0);
	cr_assert(pair_all_are(there->mem.addr, 0x11));
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane, read_brings_the_bytes_and_tells_the_owner)
{
	rig_init(&rig);
	pair_start();
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_READ, here, target, LEN, 1000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals == 1, 1000));
	cr_assert_eq(rig.a.ends[0].end.status, 0);
	cr_assert_eq(rig.b.arrivals[0].arrival.op, KVX_OP_READ);
	cr_assert(pair_all_are(here->mem.addr, 0x22));
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane, both_directions_share_one_lane)
{
	struct rig_answer back;
	struct kvx_desc desc;

	rig_init(&rig);
	pair_start();
	desc = rig_desc(&rig.a, here);
	back = rig_resolve(&rig.b, &desc);
	cr_assert_eq(back.status, 0, "%s", back.text);
	cr_assert_eq(rig_submit(&rig.b, KVX_OP_WRITE, there, back.target, LEN, 1000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_arrivals == 1, 1000));
	cr_assert(pair_all_are(here->mem.addr, 0x22));
	cr_assert_eq(rig_lane_generation(&rig.a), rig_lane_generation(&rig.b));
	kvx_target_unref(back.target);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane, reset_fails_what_is_in_flight_and_recovers_with_a_new_generation)
{
	uint64_t generation;

	rig_init(&rig);
	pair_start();
	generation = rig_lane_generation(&rig.a);
	rig.script.latency_ns = 500 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 10000), 0);
	rig_pass(&rig, 20);
	kvx_peers_lane_reset(rig.a.peers, target->lane, "the test says so");
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1 && rig.b.n_arrivals == 1, 1000));
	cr_assert_eq(rig.a.ends[0].end.status, -EIO);
	cr_assert_not_null(strstr(rig.a.ends[0].text, "the test says so"));
	cr_assert_eq(rig.b.arrivals[0].arrival.status, -EIO);
	cr_assert(pair_all_are(there->mem.addr, 0x22), "bytes landed after the fence");
	rig.script.latency_ns = 0;
	cr_assert(RIG_UNTIL(&rig, rig_lane_is_up(&rig.a) && rig_lane_is_up(&rig.b), 2000));
	cr_assert_gt(rig_lane_generation(&rig.a), generation);
	cr_assert_eq(rig_lane_generation(&rig.a), rig_lane_generation(&rig.b));
	cr_assert_not(target->lost);
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane, reset_by_the_higher_node_recovers_too)
{
	struct rig_answer back;
	struct kvx_desc desc;
	uint64_t generation;

	rig_init(&rig);
	pair_start();
	desc = rig_desc(&rig.a, here);
	back = rig_resolve(&rig.b, &desc);
	generation = rig_lane_generation(&rig.a);
	kvx_peers_lane_reset(rig.b.peers, back.target->lane, "the test says so");
	cr_assert(RIG_UNTIL(&rig, rig_lane_generation(&rig.a) > generation, 1000));
	cr_assert(RIG_UNTIL(&rig, rig_lane_is_up(&rig.a) && rig_lane_is_up(&rig.b), 2000));
	pair_assert_write_works();
	kvx_target_unref(back.target);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane, lost_endpoint_recovers_and_waiting_transfers_go_on)
{
	rig_init(&rig);
	pair_start();
	rig.script.ep_down_at_op = (unsigned)rig.script.n_ops + 1;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 10000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 2000));
	cr_assert_lt(rig.a.ends[0].end.status, 0);
	rig.script.ep_down_at_op = 0;
	while (rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 10000) == -EHOSTDOWN)
		rig_turn(&rig); /* the lane may wait for the other side's fence */
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 2, 2000));
	cr_assert_eq(rig.a.ends[1].end.status, 0, "%s", rig.a.ends[1].text);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane, lost_completion_ends_at_the_deadline_and_the_lane_recovers)
{
	rig_init(&rig);
	pair_start();
	rig.script.drop_nth_op = (unsigned)rig.script.n_ops + 1;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 100), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 2000), "no end");
	cr_assert_eq(rig.a.ends[0].end.status, -ETIMEDOUT);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals == 1, 1000));
	cr_assert_eq(rig.b.arrivals[0].arrival.status, -ETIMEDOUT);
	rig.script.drop_nth_op = 0;
	cr_assert(RIG_UNTIL(&rig, rig_lane_is_up(&rig.a), 2000));
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane, failed_set_ups_are_tried_again)
{
	rig_init(&rig);
	rig.script.faults[KVX_FAKE_LISTEN].nth = 4; /* 1 and 2 are the copy lanes */
	rig.script.faults[KVX_FAKE_LISTEN].err = -ENOMEM;
	rig.script.faults[KVX_FAKE_CONNECT].nth = 2;
	rig.script.faults[KVX_FAKE_CONNECT].err = -EIO;
	pair_start();
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

/* Whatever allocation fails on the way, the transfer ends once, and the next one succeeds. */
Test(peer_lane, write_survives_every_failed_allocation)
{
	bool faulted = true;
	unsigned n;

	rig_init(&rig);
	rig.a.conf.reconnect_max_ms = rig.b.conf.reconnect_max_ms = 20;
	pair_start();
	for (n = 1; faulted; n++) {
		int err;

		rig_pass(&rig, 10); /* the arrival of the write before */
		rig.a.n_ends = rig.b.n_arrivals = 0;
		fault_alloc_arm(n);
		err = rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 500);
		cr_assert(RIG_UNTIL(&rig, err < 0 || rig.a.n_ends > 0, 3000), "no end");
		rig_pass(&rig, 30);
		faulted = fault_alloc_disarm();
		cr_assert_leq(rig.a.n_ends, 1);
		cr_assert_leq(rig.b.n_arrivals, 1);
		if (target->lost) {
			cr_assert(RIG_UNTIL(&rig, rig_lane_is_up(&rig.a), 2000));
			pair_resolve_again();
		}
		cr_assert(RIG_UNTIL(&rig, rig_lane_is_up(&rig.a), 2000));
		pair_assert_write_works();
	}
	cr_assert_gt(n, 3);
	pair_stop();
	KVX_TEST_END();
}

struct lost_watch {
	struct kvx_target_watch watch;
	unsigned n;
	int status;
};

static void on_lost(struct kvx_target_watch *watch, int status, const char *text)
{
	struct lost_watch *lost = (struct lost_watch *)watch;

	lost->n++;
	lost->status = status;
}

Test(peer_lane, unregistered_region_is_withdrawn_after_its_transfers_were_fenced)
{
	struct lost_watch lost = {.watch.lost = on_lost};
	unsigned before;

	rig_init(&rig);
	pair_start();
	kvx_target_watch(target, &lost.watch);
	rig.script.latency_ns = 50 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 10000), 0);
	rig_pass(&rig, 10);
	before = rig.b.n_region_events;
	rig_region_close(&rig.b, there);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_region_events > before, 1000), "does not close");
	cr_assert_eq(rig.a.n_ends, 1, "closed before the transfer had ended");
	cr_assert_eq(rig.a.ends[0].end.status, -EOWNERDEAD, "%d", rig.a.ends[0].end.status);
	cr_assert_eq(lost.n, 1);
	cr_assert_eq(lost.status, -EOWNERDEAD);
	cr_assert_eq(rig.b.n_arrivals, 1);
	cr_assert(rig_lane_is_up(&rig.a), "the lane is fine");
	kvx_target_unwatch(target, &lost.watch);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane, unused_target_is_withdrawn_at_once)
{
	unsigned before;

	rig_init(&rig);
	pair_start();
	kvx_target_unref(target);
	target = NULL;
	before = rig.b.n_region_events;
	rig_region_close(&rig.b, there);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_region_events > before, 100));
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane, peer_that_does_not_let_go_is_fenced)
{
	unsigned before;
	uint64_t begin;

	rig_init(&rig);
	rig.b.conf.lost_ms = rig.a.conf.lost_ms = 5000;
	rig_wire_b(&rig);
	pair_start();
	rig_pass(&rig, 200);
	rig.wire_held = true;
	before = rig.b.n_region_events;
	begin = rig.script.now_ns;
	rig_region_close(&rig.b, there);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_region_events > before, 2000), "does not close");
	cr_assert_geq(rig.script.now_ns - begin, 200 * KVX_MS);
	cr_assert_leq(rig.script.now_ns - begin, 250 * KVX_MS);
	/* What a sends now does not land: the region is not there, the lane is fenced. */
	rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 300);
	rig_pass(&rig, 100);
	cr_assert(rig.a.n_ends == 0 || rig.a.ends[0].end.status < 0);
	rig.wire_held = false;
	cr_assert(RIG_UNTIL(&rig, target->lost, 2000));
	pair_stop();
	KVX_TEST_END();
}
