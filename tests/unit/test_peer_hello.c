/* The hello of a peer: what is answered, what is refused in words, and what a connection that has
 * not said it may cost. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "peer_rig.h"
#include "proto/kvx_err.h"
#include "test_end.h"

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

Test(peer_hello, hello_of_another_version_is_refused_in_words)
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

Test(peer_hello, hello_that_covers_our_version_is_answered)
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

Test(peer_hello, malformed_hellos_are_refused)
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

Test(peer_hello, own_node_id_is_refused)
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

Test(peer_hello, garbage_before_hello_ends_the_connection_only)
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

Test(peer_hello, silent_connection_is_closed_after_the_hello_deadline)
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

Test(peer_hello, half_open_connections_are_bounded)
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

Test(peer_hello, more_peers_than_allowed_are_refused)
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
