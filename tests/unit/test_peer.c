/* Peers: where they listen, what ends a connection that has said hello, and its loss. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fault_alloc.h"
#include "peer_rig.h"
#include "test_end.h"

#define RW (KVX_ACCESS_READ | KVX_ACCESS_WRITE)

static struct peer_rig rig;

static KVX_ON_LOOP int try_listen(const char *listen, const char *advertise, bool insecure,
				  char *text)
{
	struct kvx_peers_conf conf = rig.a.conf;
	struct rig_side side = {.rig = &rig};
	struct kvx_why why = {""};
	int err;

	conf.node = rig.a.node;
	conf.timers = rig.timers;
	conf.listen = listen;
	conf.advertise = advertise;
	conf.insecure = insecure;
	err = kvx_peers_open(&conf, &side.peers, &why);
	snprintf(text, KVX_WHY_BYTES, "%s", err < 0 ? why.text : kvx_peers_address(side.peers));
	if (err == 0)
		rig_close_side(&side);
	return err;
}

Test(peer, listening_beyond_loopback_is_refused_in_words)
{
	char text[KVX_WHY_BYTES], *end;

	rig_init(&rig);
	rig_start(&rig);
	rig_close_side(&rig.a);
	cr_assert_eq(try_listen("0.0.0.0:0", "", false, text), -EPERM);
	cr_assert_not_null(strstr(text, "--insecure-peers"), "%s", text);
	cr_assert_eq(try_listen("0.0.0.0:0", "", true, text), -EINVAL);
	cr_assert_not_null(strstr(text, "peer.advertise"), "%s", text);
	cr_assert_eq(try_listen("0.0.0.0:0", "node7", true, text), 0, "%s", text);
	end = strchr(text, ':');
	cr_assert_eq(strncmp(text, "node7:", 6), 0);
	cr_assert_gt(atoi(end + 1), 0);
	cr_assert_eq(try_listen("0.0.0.0:0", "node7:99", true, text), 0);
	cr_assert_str_eq(text, "node7:99");
	cr_assert_eq(try_listen("127.0.0.1", "", false, text), -EINVAL);
	cr_assert_eq(try_listen(kvx_peers_address(rig.b.peers), "", false, text), -EADDRINUSE);
	cr_assert_eq(try_listen("", "", false, text), 0);
	cr_assert_str_eq(text, "");
	rig_pass(&rig, 5);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, open_survives_every_failed_allocation)
{
	unsigned n;

	rig_init(&rig);
	rig_start(&rig);
	rig_close_side(&rig.a);
	for (n = 1; n < 1000; n++) {
		struct kvx_why why;
		int err;

		rig.a.conf.node = rig.a.node;
		fault_alloc_arm(n);
		err = kvx_peers_open(&rig.a.conf, &rig.a.peers, &why);
		if (!fault_alloc_disarm()) {
			cr_assert_eq(err, 0);
			break;
		}
		cr_assert_eq(err, -ENOMEM);
	}
	cr_assert_gt(n, 1);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* Says hello as node 9 and sends one frame; does a close the connection? */
static KVX_ON_LOOP bool frame_ends_connection(uint16_t type, const void *body, size_t body_len)
{
	const struct kvx_wire_hdr hdr = {.len_bytes = (uint32_t)body_len, .type = type};
	static uint64_t epoch = 100;
	uint8_t head[KVX_WIRE_HDR_BYTES], buf[4096];
	struct rig_raw raw;
	bool closed;
	size_t len;

	rig_raw_open(&rig, &rig.a, &raw);
	cr_assert_eq(rig_raw_hello(&raw, 9, epoch++), KVXP__PEER_FRAME_TYPE__PEER_HELLO);
	kvx_wire_hdr_pack(&hdr, head);
	rig_raw_bytes(&raw, head, sizeof(head));
	if (body_len > 0)
		rig_raw_bytes(&raw, body, body_len);
	rig_pass(&rig, 20);
	closed = !rig_is_up(&rig.a);
	cr_assert_eq(rig_raw_wait(&raw, KVXP__PEER_FRAME_TYPE__PEER_BYE, buf, sizeof(buf), &len),
		     closed, "type %u", type);
	rig_raw_close(&raw);
	rig_pass(&rig, 20);
	return closed;
}

Test(peer, garbage_after_hello_ends_the_connection_unknown_types_do_not)
{
	static const uint8_t junk[4] = {0xff, 0xff, 0xff, 0xff};
	static const uint8_t second_hello[1] = {0};

	rig_init(&rig);
	rig_start(&rig);
	cr_assert(frame_ends_connection(KVXP__PEER_FRAME_TYPE__PEER_HEARTBEAT, junk, 4));
	cr_assert(frame_ends_connection(KVXP__PEER_FRAME_TYPE__PEER_RESOLVE, junk, 4));
	cr_assert(frame_ends_connection(KVXP__PEER_FRAME_TYPE__PEER_HELLO, second_hello, 0));
	cr_assert(frame_ends_connection(KVXP__PEER_FRAME_TYPE__PEER_RESOLVE, NULL, 0)); /* token */
	cr_assert(frame_ends_connection(KVXP__PEER_FRAME_TYPE__PEER_XFER_OPEN, NULL, 0)); /* op */
	cr_assert(frame_ends_connection(KVXP__PEER_FRAME_TYPE__PEER_MESSAGE, NULL, 0));
	cr_assert(frame_ends_connection(KVXP__PEER_FRAME_TYPE__PEER_LANE, NULL, 0));
	cr_assert_not(frame_ends_connection(4711, junk, 4));
	cr_assert_not(frame_ends_connection(KVXP__PEER_FRAME_TYPE__PEER_RESOLVED, NULL, 0));
	cr_assert_not(frame_ends_connection(KVXP__PEER_FRAME_TYPE__PEER_XFER_END, NULL, 0));
	cr_assert_not(frame_ends_connection(KVXP__PEER_FRAME_TYPE__PEER_WITHDRAWN, NULL, 0));
	cr_assert_not(frame_ends_connection(KVXP__PEER_FRAME_TYPE__PEER_RELEASE, NULL, 0));
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, messages_without_addressee_are_dropped_and_counted)
{
	struct rig_raw raw;
	struct kvx_peer_row row;
	Kvxp__PeerLaneDown down = KVXP__PEER_LANE_DOWN__INIT;
	Kvxp__PeerXferEnd end = KVXP__PEER_XFER_END__INIT;
	Kvxp__PeerResolved resolved = KVXP__PEER_RESOLVED__INIT;

	rig_init(&rig);
	rig_start(&rig);
	rig_raw_open(&rig, &rig.a, &raw);
	cr_assert_eq(rig_raw_hello(&raw, 9, 1), KVXP__PEER_FRAME_TYPE__PEER_HELLO);
	down.generation = 77;
	end.xfer = 5;
	resolved.request_id = 6;
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_LANE_DOWN, &down);
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_XFER_END, &end);
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_RESOLVED, &resolved);
	rig_pass(&rig, 10);
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_str_eq(row.state, "up");
	cr_assert_eq(row.n_stale_dropped, 3);
	cr_assert_eq(rig.a.n_arrivals, 0);
	rig_raw_close(&raw);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, silence_loses_the_peer_within_the_bound)
{
	struct rig_raw raw;
	uint64_t begin;

	rig_init(&rig);
	rig_start(&rig);
	rig_raw_open(&rig, &rig.a, &raw);
	cr_assert_eq(rig_raw_hello(&raw, 9, 1), KVXP__PEER_FRAME_TYPE__PEER_HELLO);
	begin = rig.script.now_ns;
	cr_assert(rig_is_up(&rig.a));
	rig_pass(&rig, 250);
	cr_assert(rig_is_up(&rig.a));
	cr_assert(RIG_UNTIL(&rig, !rig_is_up(&rig.a), 1000));
	cr_assert_leq(rig.script.now_ns - begin, 310 * KVX_MS);
	rig_raw_close(&raw);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* After a stop of this daemon timers come before sockets; and time passes while it reads. */
Test(peer, what_waits_to_be_read_is_a_sign_of_life)
{
	Kvxp__PeerHeartbeat beat = KVXP__PEER_HEARTBEAT__INIT;
	struct rig_raw raw;

	rig_init(&rig);
	rig_start(&rig);
	rig_raw_open(&rig, &rig.a, &raw);
	cr_assert_eq(rig_raw_hello(&raw, 9, 1), KVXP__PEER_FRAME_TYPE__PEER_HELLO);
	rig_pass(&rig, 10);
	beat.seq = 1;
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_HEARTBEAT, &beat);
	kvx_fake_advance(&rig.script, 400 * KVX_MS); /* the bound is 300 */
	rig_clock_tick_ns = 1000;
	kvx_timers_run(rig.timers);
	rig_clock_tick_ns = 0;
	rig_pass(&rig, 10);
	cr_assert(rig_is_up(&rig.a));
	rig_raw_close(&raw);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, new_epoch_replaces_the_old_connection_at_the_first_try)
{
	struct rig_raw old, new;
	struct kvx_peer_row row;
	uint8_t buf[4096];
	size_t len;

	rig_init(&rig);
	rig_start(&rig);
	rig_raw_open(&rig, &rig.a, &old);
	cr_assert_eq(rig_raw_hello(&old, 9, 1), KVXP__PEER_FRAME_TYPE__PEER_HELLO);
	rig_raw_open(&rig, &rig.a, &new);
	cr_assert_eq(rig_raw_hello(&new, 9, 2), KVXP__PEER_FRAME_TYPE__PEER_HELLO);
	cr_assert_not(
	    rig_raw_wait(&old, KVXP__PEER_FRAME_TYPE__PEER_HELLO, buf, sizeof(buf), &len));
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_str_eq(row.state, "up");
	cr_assert_eq(row.epoch, 2);
	cr_assert_eq(row.n_lost, 1);
	cr_assert_eq(row.n_connects, 2);
	rig_raw_close(&old);
	rig_raw_close(&new);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, simultaneous_dials_leave_one_connection)
{
	struct rig_answer to_b = {0}, to_a = {0};
	struct kvx_resolve *resolve;
	struct kvx_desc of_a, of_b;
	struct kvx_peer_row row;
	struct kvx_why why;

	rig_init(&rig);
	rig_start(&rig);
	of_a = rig_desc(&rig.a, rig_region(&rig.a, 4096, RW, NULL));
	of_b = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	cr_assert_eq(kvx_peers_resolve(rig.a.peers, &of_b, 0, KVX_SEC, rig_on_resolved, &to_b,
				       &resolve, &why),
		     0);
	cr_assert_eq(kvx_peers_resolve(rig.b.peers, &of_a, 0, KVX_SEC, rig_on_resolved, &to_a,
				       &resolve, &why),
		     0);
	cr_assert(RIG_UNTIL(&rig, to_a.done && to_b.done, 2000));
	cr_assert_eq(to_a.status, 0, "%s", to_a.text);
	cr_assert_eq(to_b.status, 0, "%s", to_b.text);
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_connects, 1);
	cr_assert_eq(row.n_lost, 0);
	cr_assert(rig_row(&rig.b, &row));
	cr_assert_eq(row.n_connects, 1);
	cr_assert_eq(row.n_lost, 0);
	kvx_target_unref(to_a.target);
	kvx_target_unref(to_b.target);
	rig_stop(&rig);
	KVX_TEST_END();
}
