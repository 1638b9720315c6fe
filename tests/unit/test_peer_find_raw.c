/* Regions by name between nodes: what a peer that says nonsense achieves, and what it is told.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "peer_find_rig.h"
#include "proto/kvx_err.h"
#include "test_end.h"

#define RAW_ADDRESS "127.0.0.1:9"

/* One that a knows by that address. */
static KVX_ON_LOOP void raw_peer(struct rig_raw *raw)
{
	uint8_t id[16], buf[4096];
	Kvxp__PeerHello hello = rig_raw_hello_message(id, 1);
	size_t len;

	start();
	memset(id, 9, sizeof(id));
	hello.address = (char *)(uintptr_t)RAW_ADDRESS;
	rig_raw_open(&rig, &rig.a, raw);
	rig_raw_send(raw, KVXP__PEER_FRAME_TYPE__PEER_HELLO, &hello);
	cr_assert_eq(rig_raw_recv(raw, buf, sizeof(buf), &len), KVXP__PEER_FRAME_TYPE__PEER_HELLO);
	rig_pass(&rig, 5);
}

static KVX_ON_LOOP uint64_t raw_asked(struct rig_raw *raw)
{
	uint8_t buf[4096];
	size_t len;
	uint64_t request_id;
	Kvxp__PeerFind *msg;

	cr_assert(rig_raw_wait(raw, KVXP__PEER_FRAME_TYPE__PEER_FIND, buf, sizeof(buf), &len));
	msg = kvxp__peer_find__unpack(NULL, len, buf);
	cr_assert_not_null(msg);
	cr_assert_str_eq(msg->name, "engine/tp0");
	cr_assert_str_eq(msg->tenant, "default");
	request_id = msg->request_id;
	kvxp__peer_find__free_unpacked(msg, NULL);
	return request_id;
}

static void desc_of_raw(uint8_t node, uint8_t out[KVX_DESC_BYTES])
{
	struct kvx_desc desc = {.epoch = 1, .region = 7, .len_bytes = 4096, .access = RW};

	memset(desc.node_id, node, sizeof(desc.node_id));
	kvx_desc_pack(&desc, out);
}

Test(peer_find_raw, answers_that_make_no_sense_fail_the_find_only)
{
	static uint8_t note[KVX_PAYLOAD_MAX + 1];
	uint8_t desc[KVX_DESC_BYTES];
	struct rig_raw raw;

	raw_peer(&raw);
	for (unsigned i = 0; i < 3; i++) {
		Kvxp__PeerFound found = KVXP__PEER_FOUND__INIT;
		struct answer answer = {0};
		struct kvx_find *one;

		cr_assert_eq(start_find(RAW_ADDRESS, 0, &answer, &one), 0);
		found.request_id = raw_asked(&raw);
		desc_of_raw(i == 0 ? 0x55 : 9, desc);
		desc[40] ^= i == 1; /* damaged */
		found.descriptor = (ProtobufCBinaryData){sizeof(desc) - (i == 2), desc};
		rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_FOUND, &found);
		cr_assert(RIG_UNTIL(&rig, answer.n > 0, 1000));
		cr_assert_eq(answer.status, i == 0 ? -EPROTO : -EINVAL, "%u: %s", i, answer.text);
		cr_assert(rig_is_up(&rig.a));
	}
	Kvxp__PeerFound found = KVXP__PEER_FOUND__INIT;
	found.note = (ProtobufCBinaryData){sizeof(note), note};
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_FOUND, &found);
	cr_assert(RIG_UNTIL(&rig, !rig_is_up(&rig.a), 1000), "a note of 4097 bytes");
	rig_raw_close(&raw);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find_raw, answer_to_another_question_is_dropped)
{
	Kvxp__PeerFound found = KVXP__PEER_FOUND__INIT;
	struct answer answer = {0};
	struct kvx_peer_row row;
	struct kvx_find *one;
	struct rig_raw raw;

	raw_peer(&raw);
	cr_assert_eq(start_find(RAW_ADDRESS, 0, &answer, &one), 0);
	found.request_id = raw_asked(&raw) + 1;
	found.status = KVX_STATUS_NOT_FOUND;
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_FOUND, &found);
	found.request_id = 0;
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_FOUND, &found);
	rig_pass(&rig, 20);
	cr_assert_eq(answer.n, 0);
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_stale_dropped, 2);
	kvx_find_abandon(one);
	rig_raw_close(&raw);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find_raw, peer_that_goes_while_it_is_asked_fails_the_find)
{
	struct answer answer = {0};
	struct kvx_find *one;
	struct rig_raw raw;

	raw_peer(&raw);
	cr_assert_eq(start_find(RAW_ADDRESS, 0, &answer, &one), 0);
	raw_asked(&raw);
	rig_raw_close(&raw);
	cr_assert(RIG_UNTIL(&rig, answer.n > 0, 1000));
	cr_assert_eq(answer.status, -EHOSTDOWN);
	rig_stop(&rig);
	KVX_TEST_END();
}

static KVX_ON_LOOP enum kvx_status raw_ask(struct rig_raw *raw, const char *tenant,
					   const char *name)
{
	Kvxp__PeerFind msg = KVXP__PEER_FIND__INIT;
	Kvxp__PeerFound *found;
	enum kvx_status status;
	uint8_t buf[8192];
	size_t len;

	msg.request_id = 3;
	msg.tenant = (char *)(uintptr_t)tenant;
	msg.name = (char *)(uintptr_t)name;
	rig_raw_send(raw, KVXP__PEER_FRAME_TYPE__PEER_FIND, &msg);
	cr_assert(rig_raw_wait(raw, KVXP__PEER_FRAME_TYPE__PEER_FOUND, buf, sizeof(buf), &len));
	found = kvxp__peer_found__unpack(NULL, len, buf);
	cr_assert_not_null(found);
	cr_assert_eq(found->request_id, 3);
	status = found->status;
	cr_assert_eq(found->descriptor.len, status == KVX_STATUS_OK ? KVX_DESC_BYTES : 0);
	kvxp__peer_found__free_unpacked(found, NULL);
	return status;
}

Test(peer_find_raw, descriptors_are_told_for_tenants_that_the_peer_has_only)
{
	static const char *const tenants[] = {"default", "blue", NULL};
	static char endless[5000];
	struct rig_raw raw;

	rig_init(&rig);
	rig.a.conf.tenants = tenants;
	rig_start(&rig);
	publish(&rig.a, 0, "engine/tp0", "");
	publish(&rig.a, 1, "engine/tp0", "");
	rig_raw_open(&rig, &rig.a, &raw); /* of the default tenant: it names none */
	cr_assert_eq(rig_raw_hello(&raw, 9, 1), KVXP__PEER_FRAME_TYPE__PEER_HELLO);
	memset(endless, 'x', sizeof(endless) - 1);
	cr_assert_eq(raw_ask(&raw, "default", "engine/tp0"), KVX_STATUS_OK);
	cr_assert_eq(raw_ask(&raw, "blue", "engine/tp0"), KVX_STATUS_ACCESS);
	cr_assert_eq(raw_ask(&raw, "", "engine/tp0"), KVX_STATUS_ACCESS);
	cr_assert_eq(raw_ask(&raw, "default", ""), KVX_STATUS_NOT_FOUND);
	cr_assert_eq(raw_ask(&raw, "default", endless), KVX_STATUS_NOT_FOUND);
	rig_raw_close(&raw);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* Only a probe may come from the node itself. */
Test(peer_find_raw, hello_of_the_own_node_is_refused_unless_it_is_a_probe)
{
	struct rig_raw raw;
	uint8_t id[16], buf[4096];
	Kvxp__PeerHello hello;
	size_t len;

	start();
	memcpy(id, rig.a.conf.node_id, sizeof(id));
	for (unsigned i = 0; i < 3; i++) {
		uint8_t keep[16];

		hello = rig_raw_hello_message(keep, 5);
		memcpy(keep, id, sizeof(keep));
		hello.who = i > 0;
		hello.probe = i == 2;
		rig_raw_open(&rig, &rig.a, &raw);
		rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_HELLO, &hello);
		cr_assert_eq(rig_raw_recv(&raw, buf, sizeof(buf), &len),
			     i == 2 ? KVXP__PEER_FRAME_TYPE__PEER_HELLO
				    : KVXP__PEER_FRAME_TYPE__PEER_BYE,
			     "case %u", i);
		rig_raw_close(&raw);
	}
	rig_stop(&rig);
	KVX_TEST_END();
}
