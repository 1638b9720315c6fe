/* Peers: connections, hello, epochs, heartbeats and loss, resolving, messages, pings. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fault_alloc.h"
#include "peer_rig.h"
#include "proto/kvx_err.h"
#include "test_end.h"

#define RW (KVX_ACCESS_READ | KVX_ACCESS_WRITE)

static struct peer_rig rig;

/* Unpacks a BYE and gives its status; its text to text. */
static int bye_status(const uint8_t *buf, size_t len, char *text, size_t size)
{
	Kvxp__PeerBye *bye = kvxp__peer_bye__unpack(NULL, len, buf);
	int status;

	cr_assert_not_null(bye);
	status = (int)bye->status;
	snprintf(text, size, "%s", bye->text);
	kvxp__peer_bye__free_unpacked(bye, NULL);
	return status;
}

/* Sends a hello that has to be refused; gives the BYE's status. */
static KVX_ON_LOOP int refused_hello(const Kvxp__PeerHello *hello, char *text, size_t size)
{
	struct rig_raw raw;
	uint8_t buf[4096];
	size_t len;
	int status;

	rig_raw_open(&rig, &rig.a, &raw);
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_HELLO, hello);
	cr_assert_eq(rig_raw_recv(&raw, buf, sizeof(buf), &len), KVXP__PEER_FRAME_TYPE__PEER_BYE);
	status = bye_status(buf, len, text, size);
	cr_assert_eq(rig_raw_recv(&raw, buf, sizeof(buf), &len), 0, "not closed");
	rig_raw_close(&raw);
	return status;
}

Test(peer, hello_of_another_version_is_refused_in_words)
{
	uint8_t id[16] = {9};
	Kvxp__PeerHello hello;
	char text[256];

	rig_init(&rig);
	rig_start(&rig);
	hello = rig_raw_hello_message(id, 5);
	hello.version_min = 7;
	hello.version_max = 9;
	cr_assert_eq(refused_hello(&hello, text, sizeof(text)), KVX_STATUS_VERSION);
	cr_assert_not_null(strstr(text, "7 to 9"), "%s", text);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, hello_that_covers_our_version_is_answered)
{
	struct rig_raw raw;
	uint8_t id[16] = {9}, buf[4096];
	Kvxp__PeerHello hello;
	size_t len;

	rig_init(&rig);
	rig_start(&rig);
	hello = rig_raw_hello_message(id, 5);
	hello.version_max = 9;
	rig_raw_open(&rig, &rig.a, &raw);
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_HELLO, &hello);
	cr_assert_eq(rig_raw_recv(&raw, buf, sizeof(buf), &len), KVXP__PEER_FRAME_TYPE__PEER_HELLO);
	rig_raw_close(&raw);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, malformed_hellos_are_refused)
{
	uint8_t id[16] = {9};
	char text[256], address[400];

	rig_init(&rig);
	rig_start(&rig);
	for (unsigned i = 0; i < 6; i++) {
		Kvxp__PeerHello hello = rig_raw_hello_message(id, 5);

		memset(address, 'x', sizeof(address) - 1);
		address[sizeof(address) - 1] = '\0';
		if (i == 0)
			hello.node_id.len = 15;
		else if (i == 1)
			hello.epoch = 0;
		else if (i == 2)
			hello.lost_ms = 0;
		else if (i == 3)
			hello.address = address;
		else if (i == 4)
			hello.address = (char *)"no port";
		else
			hello.version_max = 0;
		cr_assert_neq(refused_hello(&hello, text, sizeof(text)), KVX_STATUS_OK, "case %u",
			      i);
	}
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, own_node_id_is_refused)
{
	uint8_t id[16];
	Kvxp__PeerHello hello = rig_raw_hello_message(id, 5);
	char text[256];

	rig_init(&rig);
	rig_start(&rig);
	memcpy(id, rig.a.conf.node_id, 16);
	cr_assert_eq(refused_hello(&hello, text, sizeof(text)), KVX_STATUS_INVALID);
	cr_assert_not_null(strstr(text, "same node"), "%s", text);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* What a connection that has not said hello may not send. */
static KVX_ON_LOOP void assert_refused_before_hello(const void *bytes, size_t len)
{
	struct rig_raw raw;
	uint8_t buf[4096];
	size_t got;

	rig_raw_open(&rig, &rig.a, &raw);
	rig_raw_bytes(&raw, bytes, len);
	cr_assert_eq(rig_raw_recv(&raw, buf, sizeof(buf), &got), KVXP__PEER_FRAME_TYPE__PEER_BYE);
	cr_assert_eq(rig_raw_recv(&raw, buf, sizeof(buf), &got), 0, "not closed");
	rig_raw_close(&raw);
}

Test(peer, garbage_before_hello_ends_the_connection_only)
{
	static const uint8_t too_long[8] = {0x01, 0x10, 0, 0, 1, 0, 0, 0}; /* 4097 bytes */
	static const uint8_t not_hello[8] = {0, 0, 0, 0, 4, 0, 0, 0};
	static const uint8_t unknown[8] = {0, 0, 0, 0, 0x99, 0, 0, 0};
	static const uint8_t undecodable[10] = {2, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff};
	struct rig_raw raw;

	rig_init(&rig);
	rig_start(&rig);
	assert_refused_before_hello(too_long, sizeof(too_long));
	assert_refused_before_hello(not_hello, sizeof(not_hello));
	assert_refused_before_hello(unknown, sizeof(unknown));
	assert_refused_before_hello(undecodable, sizeof(undecodable));
	rig_raw_open(&rig, &rig.a, &raw);
	cr_assert_eq(rig_raw_hello(&raw, 9, 1), KVXP__PEER_FRAME_TYPE__PEER_HELLO);
	rig_raw_close(&raw);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, silent_connection_is_closed_after_the_hello_deadline)
{
	struct rig_raw raw;
	uint8_t buf[64];
	size_t len;
	uint64_t begin;

	rig_init(&rig);
	rig_start(&rig);
	rig_raw_open(&rig, &rig.a, &raw);
	begin = rig.script.now_ns;
	while (rig_raw_recv(&raw, buf, sizeof(buf), &len) == -1)
		;
	cr_assert_geq(rig.script.now_ns - begin, 4900 * KVX_MS);
	cr_assert_leq(rig.script.now_ns - begin, 7000 * KVX_MS);
	rig_raw_close(&raw);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, half_open_connections_are_bounded)
{
	struct rig_raw raw[65];
	uint8_t buf[64];
	size_t len;

	rig_init(&rig);
	rig_start(&rig);
	for (unsigned i = 0; i < 65; i++)
		rig_raw_open(&rig, &rig.a, &raw[i]);
	rig_pass(&rig, 10);
	cr_assert_eq(rig_raw_recv(&raw[0], buf, sizeof(buf), &len), 0, "the oldest is kept");
	/* Who comes last is heard all the same. */
	cr_assert_eq(rig_raw_hello(&raw[64], 9, 1), KVXP__PEER_FRAME_TYPE__PEER_HELLO);
	for (unsigned i = 0; i < 65; i++)
		rig_raw_close(&raw[i]);
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

Test(peer, more_peers_than_allowed_are_refused)
{
	struct rig_raw raw[3];

	rig_init(&rig);
	rig.a.conf.max_peers = 2;
	rig_start(&rig);
	for (unsigned i = 0; i < 3; i++) {
		rig_raw_open(&rig, &rig.a, &raw[i]);
		cr_assert_eq(rig_raw_hello(&raw[i], (uint8_t)(0x20 + i), 1),
			     i < 2 ? KVXP__PEER_FRAME_TYPE__PEER_HELLO
				   : KVXP__PEER_FRAME_TYPE__PEER_BYE);
	}
	for (unsigned i = 0; i < 3; i++)
		rig_raw_close(&raw[i]);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* resolving */

static struct kvx_layout *test_layout(void)
{
	struct kvx_layout *layout = kvx_layout_create(2);
	struct kvx_why why;

	for (unsigned i = 0; i < 2; i++) {
		layout->planes[i].offset = i * 4096;
		layout->planes[i].block_stride = 1024;
		layout->planes[i].block_bytes = 512;
		layout->planes[i].n_blocks = 4;
		snprintf(layout->planes[i].name, KVX_PLANE_NAME_BYTES, "plane%u", i);
	}
	cr_assert_eq(kvx_layout_check(layout, 8192, &why), 0);
	return layout;
}

Test(peer, resolve_gives_one_shared_target_with_the_layout)
{
	struct rig_answer one, two;
	struct kvx_region *region;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_start(&rig);
	region = rig_region(&rig.b, 8192, KVX_ACCESS_READ, test_layout());
	desc = rig_desc(&rig.b, region);
	one = rig_resolve(&rig.a, &desc);
	cr_assert_eq(one.status, 0, "%s", one.text);
	cr_assert_eq(one.target->len_bytes, 8192);
	cr_assert_eq(one.target->access, KVX_ACCESS_READ);
	cr_assert_not_null(one.target->peer);
	cr_assert_eq(one.target->layout->n_planes, 2);
	cr_assert_str_eq(one.target->layout->planes[1].name, "plane1");
	cr_assert_eq(one.target->layout->planes[1].offset, 4096);
	two = rig_resolve(&rig.a, &desc);
	cr_assert_eq(two.status, 0);
	cr_assert_eq(two.target, one.target);
	cr_assert(rig_lane_is_up(&rig.a));
	cr_assert(rig_lane_is_up(&rig.b));
	kvx_target_unref(one.target);
	kvx_target_unref(two.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, concurrent_resolves_are_all_answered_once)
{
	struct rig_answer answers[5] = {{0}};
	struct kvx_resolve *resolves[5];
	struct kvx_region *region;
	struct kvx_desc desc;
	struct kvx_why why;

	rig_init(&rig);
	rig_start(&rig);
	region = rig_region(&rig.b, 4096, RW, NULL);
	desc = rig_desc(&rig.b, region);
	for (unsigned i = 0; i < 5; i++)
		cr_assert_eq(kvx_peers_resolve(rig.a.peers, &desc, 0, KVX_SEC, rig_on_resolved,
					       &answers[i], &resolves[i], &why),
			     0);
	cr_assert_not(answers[0].done, "before the call returned");
	kvx_resolve_abandon(resolves[2]);
	rig_pass(&rig, 200);
	for (unsigned i = 0; i < 5; i++) {
		cr_assert_eq(answers[i].done, i != 2);
		cr_assert_eq(answers[i].status, 0, "%s", answers[i].text);
		kvx_target_unref(answers[i].target);
	}
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, refusals_of_the_owner_reach_the_importer)
{
	struct rig_answer answer;
	struct kvx_region *region, *closed;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_start(&rig);
	region = rig_region(&rig.b, 4096, RW, NULL);
	desc = rig_desc(&rig.b, region);
	desc.token[3] ^= 1;
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -EACCES, "%d %s", answer.status, answer.text);

	closed = rig_region(&rig.b, 4096, RW, NULL);
	desc = rig_desc(&rig.b, closed);
	rig_region_close(&rig.b, closed);
	rig_pass(&rig, 50);
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -ENOENT, "%d %s", answer.status, answer.text);

	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, 0, NULL));
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -EACCES, "%d %s", answer.status, answer.text);

	desc = rig_desc(&rig.b, region);
	desc.epoch--;
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -ESTALE, "%d %s", answer.status, answer.text);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, descriptor_of_an_earlier_start_is_stale_before_there_is_a_connection)
{
	struct rig_answer answer;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_start(&rig);
	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	desc.epoch--;
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -ESTALE, "%d %s", answer.status, answer.text);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, nodes_that_cannot_be_reached_are_said_so)
{
	struct rig_answer answer;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_start(&rig);
	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	desc.node_id[0] = 0x77;
	answer = rig_resolve(&rig.a, &desc); /* b answers, but is another node */
	cr_assert_eq(answer.status, -ESTALE, "%d %s", answer.status, answer.text);
	desc.node_id[0] = 0x78;
	strcpy(desc.addr, "127.0.0.1:1");
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -EHOSTUNREACH, "%d %s", answer.status, answer.text);
	desc.node_id[0] = 0x79;
	strcpy(desc.addr, "192.0.2.1:7717");
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -EACCES, "%d %s", answer.status, answer.text);
	cr_assert_not_null(strstr(answer.text, "--insecure-peers"), "%s", answer.text);
	desc.node_id[0] = 0x7a;
	strcpy(desc.addr, "nonsense");
	cr_assert_lt(rig_resolve(&rig.a, &desc).status, 0);
	desc.node_id[0] = 0x7b;
	desc.addr[0] = '\0';
	cr_assert_eq(rig_resolve(&rig.a, &desc).status, -EHOSTUNREACH);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer, resolve_times_out_when_the_wire_is_held)
{
	struct rig_answer answer;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_wire_b(&rig);
	rig_start(&rig);
	rig.wire_held = true;
	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	answer = rig_resolve(&rig.a, &desc);
	cr_assert_eq(answer.status, -ETIMEDOUT, "%d %s", answer.status, answer.text);
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

/* messages and pings */

Test(peer, message_reaches_the_owner_and_its_answer_comes_back)
{
	struct rig_answer target, reply = {0}, refused = {0};
	struct kvx_peer_call *call;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_start(&rig);
	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	target = rig_resolve(&rig.a, &desc);
	rig_pass(&rig, 5);
	cr_assert_eq(uv_backend_timeout(&rig.loop), -1, "an idle loop sleeps");
	cr_assert_eq(kvx_peers_message(rig.a.peers, target.target,
				       &(struct kvx_peer_message){"hello", 5, 0}, KVX_SEC,
				       rig_on_reply, &reply, &call),
		     0);
	cr_assert_eq(uv_backend_timeout(&rig.loop), 0, "the loop would sleep on a frame");
	cr_assert(RIG_UNTIL(&rig, reply.done, 1000));
	cr_assert_eq(reply.status, 0, "%s", reply.text);
	cr_assert_eq(rig.b.message_len, 5);
	cr_assert_eq(memcmp(rig.b.message, "hello", 5), 0);
	rig.b.message_status = -EPIPE;
	cr_assert_eq(kvx_peers_message(rig.a.peers, target.target,
				       &(struct kvx_peer_message){"x", 1, 0}, KVX_SEC, rig_on_reply,
				       &refused, &call),
		     0);
	cr_assert(RIG_UNTIL(&rig, refused.done, 1000));
	cr_assert_eq(refused.status, -EPIPE);
	cr_assert_eq(kvx_peers_message(rig.a.peers, target.target,
				       &(struct kvx_peer_message){"x", KVX_PAYLOAD_MAX + 1, 0},
				       KVX_SEC, rig_on_reply, &refused, &call),
		     -EMSGSIZE);
	kvx_target_unref(target.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* Posted ones: the second finds the receiver full, the third finds it with room again. */
Test(peer, message_behind_a_refused_one_of_its_stream_is_refused_too)
{
	struct rig_answer target, replies[5] = {{0}};
	struct kvx_peer_call *call;
	struct kvx_desc desc;

	rig_init(&rig);
	rig_start(&rig);
	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	target = rig_resolve(&rig.a, &desc);
	for (unsigned i = 0; i < 5; i++) {
		const uint64_t streams[] = {1, 1, 1, 2, 0};
		const struct kvx_peer_message message = {"x", 1, streams[i]};

		rig.b.message_status = i == 1 ? -EDQUOT : 0;
		cr_assert_eq(kvx_peers_message(rig.a.peers, target.target, &message, KVX_SEC,
					       rig_on_reply, &replies[i], &call),
			     0);
		cr_assert(RIG_UNTIL(&rig, replies[i].done, 1000));
	}
	cr_assert_eq(replies[0].status, 0);
	cr_assert_eq(replies[1].status, -EDQUOT);
	cr_assert_eq(replies[2].status, -ECANCELED);
	cr_assert_eq(replies[3].status, 0, "another stream");
	cr_assert_eq(replies[4].status, 0, "no stream");
	cr_assert_eq(rig.b.n_messages, 4, "the third was given to the owner");
	kvx_target_unref(target.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

static KVX_ON_LOOP struct rig_answer ping(const char *who)
{
	struct rig_answer answer = {0};
	struct kvx_peer_call *call;
	struct kvx_why why = {""};

	answer.status =
	    kvx_peers_ping(rig.a.peers, who, KVX_SEC, rig_on_reply, &answer, &call, &why);
	if (answer.status < 0) {
		snprintf(answer.text, sizeof(answer.text), "%s", why.text);
		answer.done = true;
	}
	cr_assert(RIG_UNTIL(&rig, answer.done, 3000));
	return answer;
}

Test(peer, ping_by_address_by_node_id_and_of_nobody)
{
	struct rig_answer target;
	struct kvx_desc desc;
	struct kvx_peer_row row;

	rig_init(&rig);
	rig_start(&rig);
	cr_assert_eq(ping(kvx_peers_address(rig.b.peers)).status, 0);
	cr_assert_not(rig_row(&rig.a, &row), "a probe makes no peer");
	cr_assert_eq(ping(kvx_peers_address(rig.a.peers)).status, -EINVAL, "own address");
	cr_assert_eq(ping("127.0.0.1:1").status, -EHOSTUNREACH);
	cr_assert_eq(ping("192.0.2.1:1").status, -EACCES);
	cr_assert_eq(ping("0b0b").status, -ENOENT);
	desc = rig_desc(&rig.b, rig_region(&rig.b, 4096, RW, NULL));
	target = rig_resolve(&rig.a, &desc);
	cr_assert_eq(ping("0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b").status, 0);
	cr_assert_eq(ping(kvx_peers_address(rig.b.peers)).status, 0);
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_connects, 1);
	kvx_target_unref(target.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* opening */

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

/* Whatever allocation fails on the way, the resolve is answered once, nothing crashes, and the next
 * one succeeds. */
Test(peer, resolve_survives_every_failed_allocation)
{
	struct kvx_region *region;
	bool faulted = true;

	rig_init(&rig);
	rig_start(&rig);
	for (unsigned n = 1; faulted; n++) {
		struct rig_answer answer;
		struct kvx_desc desc;

		region = rig_region(&rig.b, 8192, RW, test_layout());
		desc = rig_desc(&rig.b, region);
		fault_alloc_arm(n);
		answer = rig_resolve(&rig.a, &desc);
		rig_pass(&rig, 20);
		faulted = fault_alloc_disarm();
		if (answer.status == 0)
			kvx_target_unref(answer.target);
		answer = rig_resolve(&rig.a, &desc);
		for (unsigned i = 0; i < 3 && answer.status != 0; i++) {
			rig_pass(&rig, 400);
			answer = rig_resolve(&rig.a, &desc);
		}
		cr_assert_eq(answer.status, 0, "allocation %u: %d %s", n, answer.status,
			     answer.text);
		kvx_target_unref(answer.target);
		rig_region_close(&rig.b, region);
		rig_pass(&rig, 50);
		if (n % 2 == 0) { /* also from scratch */
			rig_close_side(&rig.a);
			rig_start_side(&rig.a);
			rig_pass(&rig, 50);
		}
	}
	rig_stop(&rig);
	KVX_TEST_END();
}
