/* Peers: what is under way when a lane is torn down. Where the transport says how long a packet may
 * live, transfers end that long after the fence, whatever the other side does; never before. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "peer_pair.h"
#include "test_end.h"

#define SETTLE_NS (50 * KVX_MS)

/* A write that is to land latency after it was sent, on a link that delivers what a fenced endpoint
 * has sent. */
static KVX_ON_LOOP void start_late(uint64_t settle_ns, uint64_t latency_ns)
{
	rig_init(&rig);
	cr_assert_eq(kvx_fake_gates_open(&rig.script), 0);
	rig.a.conf.reconnect_min_ms = rig.a.conf.reconnect_max_ms = 60000;
	rig.a.conf.lost_ms = rig.b.conf.lost_ms = 20000;
	rig.a.conf.heartbeat_ms = rig.b.conf.heartbeat_ms = 5000;
	rig.script.limits.settle_ns = settle_ns;
	rig.script.late_writes = true;
	rig_wire_b(&rig);
	pair_start();
	rig.script.latency_ns = latency_ns;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 2);
}

/* The other node is gone, but its memory can be written to until its lease ends. */
static KVX_ON_LOOP void lose_b(void)
{
	rig.b_stopped = true;
	rig_wire_cut_near(&rig);
}

static KVX_ON_LOOP void stop_late(void)
{
	rig.b_stopped = false;
	rig.script.latency_ns = 0;
	rig_wire_cut(&rig);
	kvx_target_unref(target);
	target = NULL;
	rig_stop(&rig);
	kvx_fake_gates_close(&rig.script);
}

/* After the end of the transfer its destination is the engine's again: does anything land? */
static KVX_ON_LOOP bool lands_after_the_end(void)
{
	memset(there->mem.addr, 0x44, LEN);
	rig_pass(&rig, 500);
	return !pair_all_are(there->mem.addr, 0x44);
}

Test(peer_settle, killed_peer_ends_transfers_soon_and_nothing_lands_later)
{
	uint64_t begin;

	start_late(SETTLE_NS, 30 * KVX_MS);
	begin = rig.script.now_ns;
	lose_b();
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 1000), "no end");
	cr_assert_eq(rig.a.ends[0].end.status, -EHOSTDOWN);
	cr_assert_geq(rig.script.now_ns - begin, SETTLE_NS);
	cr_assert_leq(rig.script.now_ns - begin, SETTLE_NS + 10 * KVX_MS);
	cr_assert_eq(rig.script.n_late, 1, "the link was to deliver it after the fence");
	cr_assert_not(lands_after_the_end());
	stop_late();
	KVX_TEST_END();
}

/* The test above sees it when the wait is too short for the link. */
Test(peer_settle, too_short_a_wait_is_seen)
{
	start_late(SETTLE_NS, 100 * KVX_MS);
	rig.script.limits.settle_ns = 200 * KVX_MS; /* of the link; the node knows the other one */
	lose_b();
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 1000), "no end");
	cr_assert(lands_after_the_end());
	stop_late();
	KVX_TEST_END();
}

Test(peer_settle, other_sides_word_makes_it_shorter)
{
	uint64_t begin;

	start_late(10 * KVX_SEC, 30 * KVX_MS);
	begin = rig.script.now_ns;
	kvx_peers_lane_reset(rig.a.peers, target->lane, "the test says so");
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 1000), "no end");
	cr_assert_leq(rig.script.now_ns - begin, 20 * KVX_MS);
	cr_assert_eq(rig.a.ends[0].end.status, -EIO);
	cr_assert_not(lands_after_the_end());
	stop_late();
	KVX_TEST_END();
}

Test(peer_settle, other_side_that_is_silent_is_not_waited_for)
{
	uint64_t begin;

	start_late(SETTLE_NS, 30 * KVX_MS);
	begin = rig.script.now_ns;
	rig.wire_held = true;
	kvx_peers_lane_reset(rig.a.peers, target->lane, "the test says so");
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 1000), "no end");
	cr_assert_geq(rig.script.now_ns - begin, SETTLE_NS);
	cr_assert_leq(rig.script.now_ns - begin, SETTLE_NS + 10 * KVX_MS);
	cr_assert_not(lands_after_the_end());
	rig.wire_held = false;
	stop_late();
	KVX_TEST_END();
}

/* The second try begins only when nothing of the first can land. */
Test(peer_settle, retried_transfer_is_not_overtaken_by_its_first_try)
{
	rig_init(&rig);
	cr_assert_eq(kvx_fake_gates_open(&rig.script), 0);
	rig.a.node_conf.xfers.lane_retries = 1;
	rig.script.limits.settle_ns = SETTLE_NS;
	rig.script.late_writes = true;
	pair_start();
	rig.script.latency_ns = 30 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 2);
	kvx_fake_ep_lose(target->lane->outlets[0].ep, -EHOSTDOWN);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 1000), "no end");
	cr_assert_eq(rig.a.ends[0].end.status, 0, "%s", rig.a.ends[0].text);
	cr_assert(pair_all_are(there->mem.addr, 0x11));
	cr_assert_not(lands_after_the_end());
	stop_late();
	KVX_TEST_END();
}

/* A fence that cannot be had settles nothing: then it is the other side's lease that counts. */
Test(peer_settle, failed_fence_is_no_fence)
{
	uint64_t begin;

	start_late(SETTLE_NS, 50 * KVX_SEC);
	rig.script.faults[KVX_FAKE_FENCE].nth = rig.script.calls[KVX_FAKE_FENCE] + 1;
	rig.script.faults[KVX_FAKE_FENCE].err = -EIO;
	rig.script.more_faults[KVX_FAKE_FENCE] = 2;
	begin = rig.script.now_ns;
	lose_b();
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 30000), "no end");
	cr_assert_geq(rig.script.now_ns - begin, 15 * KVX_SEC);
	cr_assert_lt(rig.a.ends[0].end.status, 0);
	stop_late();
	KVX_TEST_END();
}

Test(peer_settle, fence_that_works_at_the_second_try_will_do)
{
	uint64_t begin;

	start_late(SETTLE_NS, 30 * KVX_MS);
	rig.script.faults[KVX_FAKE_FENCE].nth = rig.script.calls[KVX_FAKE_FENCE] + 1;
	rig.script.faults[KVX_FAKE_FENCE].err = -EIO;
	begin = rig.script.now_ns;
	lose_b();
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 1000), "no end");
	cr_assert_geq(rig.script.now_ns - begin, SETTLE_NS);
	cr_assert_not(lands_after_the_end());
	stop_late();
	KVX_TEST_END();
}

Test(peer_settle, inbound_of_a_killed_peer_is_over_at_once)
{
	uint64_t begin;

	start_late(SETTLE_NS, 5000 * KVX_MS);
	begin = rig.script.now_ns;
	rig_wire_cut(&rig);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals == 1, 1000));
	cr_assert_leq(rig.script.now_ns - begin, 10 * KVX_MS);
	cr_assert_eq(rig.b.arrivals[0].arrival.status, -EHOSTDOWN);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 1000));
	cr_assert_not(lands_after_the_end());
	stop_late();
	KVX_TEST_END();
}

/* An engine that was told that the peer is lost may use its memory for something else at once: also
 * where the lane cannot be taken apart yet. */
Test(peer_settle, inbound_is_stopped_before_the_engine_is_told)
{
	struct rig_answer back;
	struct kvx_desc desc;

	rig_init(&rig);
	cr_assert_eq(kvx_fake_gates_open(&rig.script), 0);
	rig.a.conf.reconnect_min_ms = rig.a.conf.reconnect_max_ms = 60000;
	rig.b.conf.reconnect_min_ms = rig.b.conf.reconnect_max_ms = 60000;
	rig_wire_b(&rig);
	pair_start();
	desc = rig_desc(&rig.a, here);
	back = rig_resolve(&rig.b, &desc);
	cr_assert_eq(back.status, 0, "%s", back.text);
	rig.script.latency_ns = 50 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	cr_assert_eq(rig_submit(&rig.b, KVX_OP_WRITE, there, back.target, LEN, 60000), 0);
	rig_pass(&rig, 2);
	rig.script.faults[KVX_FAKE_FENCE].nth = rig.script.calls[KVX_FAKE_FENCE] + 1;
	rig.script.faults[KVX_FAKE_FENCE].err = -EIO;
	rig.script.more_faults[KVX_FAKE_FENCE] = 1000;
	rig_wire_cut(&rig);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals == 1, 20));
	cr_assert_eq(rig.b.arrivals[0].arrival.status, -EHOSTDOWN);
	cr_assert_not(lands_after_the_end());
	rig.script.faults[KVX_FAKE_FENCE].nth = 0;
	kvx_target_unref(back.target);
	stop_late();
	KVX_TEST_END();
}

/* Without a bound on packets it is the lease; a node that has forgotten us meanwhile, and cannot
 * say that it has stopped, does not make that any longer. */
Test(peer_settle, transfer_ends_though_the_other_node_has_forgotten_the_lane)
{
	uint64_t begin;

	rig_init(&rig);
	cr_assert_eq(kvx_fake_gates_open(&rig.script), 0);
	rig_wire_b(&rig);
	pair_start();
	rig_pass(&rig, 150);
	rig.script.latency_ns = 50000 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 20);
	begin = rig.script.now_ns;
	rig_wire_cut(&rig);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 1000), "no end");
	cr_assert_eq(rig.a.ends[0].end.status, -EHOSTDOWN);
	cr_assert_leq(rig.script.now_ns - begin, 330 * KVX_MS);
	stop_late();
	KVX_TEST_END();
}

Test(peer_settle, refused_batches_behind_a_lost_endpoint_are_retried_too)
{
	rig_init(&rig);
	cr_assert_eq(kvx_fake_gates_open(&rig.script), 0);
	rig.a.node_conf.xfers.lane_retries = 1;
	rig.script.limits.settle_ns = SETTLE_NS;
	rig.script.limits.max_op_bytes = rig.script.limits.batch_bytes = 4096;
	rig.script.queue_ops = 2; /* the other batches wait with the worker */
	pair_start();
	rig.script.latency_ns = 30 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 2);
	kvx_fake_ep_lose(target->lane->outlets[0].ep, -EHOSTDOWN);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 2000), "no end");
	cr_assert_eq(rig.a.ends[0].end.status, 0, "%s", rig.a.ends[0].text);
	cr_assert(pair_all_are(there->mem.addr, 0x11));
	stop_late();
	KVX_TEST_END();
}
