/* Peers: the loss of the connection, of the other node or of this one's word in the middle of
 * transfers: they end when nothing of them can land any more, and not before. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "peer_pair.h"
#include "test_end.h"

Test(peer_lane_loss, connection_cut_in_a_write_ends_it_after_the_other_sides_lease)
{
	uint64_t begin;

	rig_init(&rig);
	rig_wire_b(&rig);
	pair_start();
	rig_pass(&rig, 150);
	rig.script.latency_ns = 5000 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 20);
	begin = rig.script.now_ns;
	rig_wire_cut(&rig);
	cr_assert(RIG_UNTIL(&rig, target->lost, 50), "a cut connection is seen at once");
	cr_assert_eq(target->lost_status, -EHOSTDOWN);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals == 1, 50), "inbound is fenced at once");
	cr_assert_eq(rig.b.arrivals[0].arrival.status, -EHOSTDOWN);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 1000), "no end");
	cr_assert_eq(rig.a.ends[0].end.status, -EHOSTDOWN);
	cr_assert_leq(rig.script.now_ns - begin, 330 * KVX_MS);
	rig.script.latency_ns = 0;
	cr_assert(pair_all_are(there->mem.addr, 0x22), "bytes landed after the end");
	pair_resolve_again();
	pair_assert_write_works();
	cr_assert_eq(rig.a.n_arrivals, 0);
	pair_stop();
	KVX_TEST_END();
}

/* Only our end of the connection is gone: the other node may still let things land. */
Test(peer_lane_loss, connection_cut_on_one_side_ends_a_write_only_after_the_other_sides_lease)
{
	uint64_t begin;

	rig_init(&rig);
	rig.a.conf.reconnect_min_ms = rig.a.conf.reconnect_max_ms = 5000;
	rig_wire_b(&rig);
	pair_start();
	rig.script.latency_ns = 5000 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 150);
	begin = rig.script.now_ns;
	rig_wire_cut_near(&rig);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 2000), "no end");
	cr_assert_geq(rig.script.now_ns - begin, 200 * KVX_MS);
	cr_assert_leq(rig.script.now_ns - begin, 340 * KVX_MS);
	cr_assert_eq(rig.a.ends[0].end.status, -EHOSTDOWN);
	rig.script.latency_ns = 0;
	rig_wire_cut(&rig);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane_loss, reconnection_tells_that_the_other_side_has_stopped)
{
	uint64_t begin;

	rig_init(&rig);
	rig.a.conf.lost_ms = rig.b.conf.lost_ms = 5000;
	rig_wire_b(&rig);
	pair_start();
	rig.script.latency_ns = 50000 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 150);
	begin = rig.script.now_ns;
	rig_wire_cut_near(&rig);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 2000), "no end");
	cr_assert_leq(rig.script.now_ns - begin, 500 * KVX_MS, "it waited for the whole lease");
	cr_assert_eq(rig.b.n_arrivals, 1);
	rig.script.latency_ns = 0;
	rig_wire_cut(&rig);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane_loss, reset_that_is_not_answered_ends_after_the_other_sides_lease)
{
	uint64_t begin;

	rig_init(&rig);
	rig_wire_b(&rig);
	pair_start();
	rig.script.latency_ns = 5000 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 150);
	rig.wire_held = true;
	begin = rig.script.now_ns;
	kvx_peers_lane_reset(rig.a.peers, target->lane, "the test says so");
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 2000), "no end");
	cr_assert_geq(rig.script.now_ns - begin, 200 * KVX_MS);
	cr_assert_leq(rig.script.now_ns - begin, 700 * KVX_MS);
	rig.script.latency_ns = 0;
	rig.wire_held = false;
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane_loss, dead_node_ends_a_write_only_when_its_lease_is_over)
{
	uint64_t begin;

	rig_init(&rig);
	rig_wire_b(&rig);
	pair_start();
	rig.script.latency_ns = 5000 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 150);
	/* The process is gone: it neither reads nor says anything, and nobody listens there. */
	begin = rig.script.now_ns;
	rig.wire_held = true;
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 2000), "no end");
	cr_assert_eq(rig.a.ends[0].end.status, -EHOSTDOWN);
	cr_assert_geq(rig.script.now_ns - begin, 200 * KVX_MS);
	cr_assert_leq(rig.script.now_ns - begin, 450 * KVX_MS);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals == 1, 500));
	cr_assert_eq(rig.b.arrivals[0].arrival.status, -EHOSTDOWN);
	rig.wire_held = false;
	pair_stop();
	KVX_TEST_END();
}

/* A node that was stopped (no heartbeat of it was answered for a while) lets nothing land: that is
 * what others rely on when they end their transfers. */
Test(peer_lane_loss, nothing_lands_after_the_lease)
{
	rig_init(&rig);
	rig.b.conf.lost_ms = rig.a.conf.lost_ms = 300;
	rig_wire_b(&rig);
	pair_start();
	rig_pass(&rig, 150);
	rig.wire_held = true;
	/* An op that is due after b's lease: b has not noticed anything when it arrives. */
	rig.script.latency_ns = 310 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	for (unsigned i = 0; i < 4; i++)
		kvx_node_pump(rig.a.node);
	kvx_fake_advance(&rig.script, 350 * KVX_MS); /* nobody's loop turns meanwhile */
	for (unsigned i = 0; i < 4; i++)
		kvx_node_pump(rig.b.node);
	cr_assert(pair_all_are(there->mem.addr, 0x22), "it landed after the lease");
	rig.script.latency_ns = 0;
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 2000));
	cr_assert_eq(rig.a.ends[0].end.status, -EHOSTDOWN);
	cr_assert(pair_all_are(there->mem.addr, 0x22));
	rig.wire_held = false;
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane_loss, idle_lane_lives_on_its_heartbeats)
{
	rig_init(&rig);
	pair_start();
	rig_pass(&rig, 2000);
	pair_assert_write_works();
	cr_assert_eq(rig.a.n_ends, 1);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane_loss, goodbye_ends_transfers_at_once)
{
	uint64_t begin;

	rig_init(&rig);
	pair_start();
	rig.script.latency_ns = 5000 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 60000), 0);
	rig_pass(&rig, 20);
	begin = rig.script.now_ns;
	rig_close_side(&rig.b);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 1, 1000));
	cr_assert_leq(rig.script.now_ns - begin, 100 * KVX_MS);
	cr_assert_lt(rig.a.ends[0].end.status, 0);
	cr_assert(target->lost);
	rig.script.latency_ns = 0;
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane_loss, restarted_node_is_met_again_with_a_new_epoch)
{
	struct rig_answer stale;
	struct kvx_desc old;

	rig_init(&rig);
	pair_start();
	old = rig_desc(&rig.b, there);
	rig_close_side(&rig.b);
	rig_pass(&rig, 50);
	rig.b.conf.epoch = 2002;
	rig_start_side(&rig.b);
	strcpy(old.addr, kvx_peers_address(rig.b.peers));
	stale = rig_resolve(&rig.a, &old);
	cr_assert_eq(stale.status, -ESTALE, "%d %s", stale.status, stale.text);
	pair_resolve_again();
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane_loss, lost_peer_is_dialed_again_while_its_regions_were_used)
{
	struct kvx_peer_row row;

	rig_init(&rig);
	rig_wire_b(&rig);
	pair_start();
	rig_wire_cut(&rig);
	cr_assert(RIG_UNTIL(&rig, !rig_is_up(&rig.a), 100));
	cr_assert(RIG_UNTIL(&rig, rig_is_up(&rig.a), 1000), "not dialed again");
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_connects, 2);
	cr_assert(RIG_UNTIL(&rig, rig_lane_is_up(&rig.a), 1000));
	pair_resolve_again();
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}

Test(peer_lane_loss, unused_target_is_given_back_after_a_while)
{
	struct kvx_peer_row row;

	pair_init_slow();
	pair_start();
	kvx_target_unref(target);
	rig_pass(&rig, 1000);
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_targets, 1, "not kept warm");
	pair_leap(90);
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_str_eq(row.state, "up");
	cr_assert_eq(row.n_targets, 0);
	target = NULL;
	pair_resolve_again();
	pair_assert_write_works();
	pair_stop();
	KVX_TEST_END();
}
