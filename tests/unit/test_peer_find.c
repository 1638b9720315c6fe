/* Regions by name between nodes: asking at an address, answering for a tenant, and what a peer that
 * says nonsense achieves. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "fault_alloc.h"
#include "peer_rig.h"
#include "proto/kvx_err.h"
#include "test_end.h"

#define RW (KVX_ACCESS_READ | KVX_ACCESS_WRITE)

static struct peer_rig rig;

struct answer {
	unsigned n;
	int status;
	bool own;
	char text[KVX_WHY_BYTES];
	char note[64];
	struct kvx_target *target;
};

static void on_found(void *arg, const struct kvx_found *found)
{
	struct answer *answer = arg;

	answer->n++;
	answer->status = found->status;
	answer->own = found->own;
	answer->target = found->target;
	snprintf(answer->text, sizeof(answer->text), "%s", found->text);
	if (found->note_bytes > 0)
		memcpy(answer->note, found->note, found->note_bytes);
	cr_assert_str_eq(found->name, "engine/tp0");
}

static KVX_ON_LOOP struct kvx_region *publish(struct rig_side *side, uint32_t tenant,
					      const char *name, const char *note)
{
	struct kvx_region *region = rig_region_of(side, tenant, 4096, RW, NULL);
	struct kvx_why why;

	cr_assert_eq(kvx_region_publish(kvx_node_regions(side->node), region, name, note,
					(uint32_t)strlen(note), &why),
		     0);
	return region;
}

static KVX_ON_LOOP int start_find(const char *address, uint32_t tenant, struct answer *answer,
				  struct kvx_find **out_find)
{
	const struct kvx_find_request request = {address, "engine/tp0", tenant};
	struct kvx_why why = {""};
	int err = kvx_peers_find(rig.a.peers, &request, KVX_SEC, on_found, answer, out_find, &why);

	if (err < 0)
		snprintf(answer->text, sizeof(answer->text), "%s", why.text);
	return err;
}

static KVX_ON_LOOP struct answer find_as(const char *address, uint32_t tenant)
{
	struct answer answer = {0};
	struct kvx_find *find;

	answer.status = start_find(address, tenant, &answer, &find);
	if (answer.status < 0)
		return answer;
	cr_assert_eq(answer.n, 0, "answered before it returned");
	cr_assert(RIG_UNTIL(&rig, answer.n > 0, 3000), "no answer");
	rig_pass(&rig, 20);
	cr_assert_eq(answer.n, 1);
	return answer;
}

static KVX_ON_LOOP struct answer find(const char *address)
{
	return find_as(address, 0);
}

static KVX_ON_LOOP void start(void)
{
	rig_init(&rig);
	rig_start(&rig);
}

Test(peer_find, published_region_is_found_with_its_note)
{
	struct kvx_region *region;
	struct answer first, again;
	struct kvx_peer_row row;

	start();
	region = publish(&rig.b, 0, "engine/tp0", "four heads");
	first = find(kvx_peers_address(rig.b.peers));
	cr_assert_eq(first.status, 0, "%s", first.text);
	cr_assert_eq(first.target->region_id, region->id);
	cr_assert_eq(first.target->len_bytes, 4096);
	cr_assert_str_eq(first.note, "four heads");
	again = find(kvx_peers_address(rig.b.peers));
	cr_assert_eq(again.target, first.target, "one target for all");
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_connects, 1);
	kvx_target_unref(first.target);
	kvx_target_unref(again.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, name_that_nobody_has_published_is_not_found)
{
	struct kvx_region *region;
	struct answer answer;

	start();
	publish(&rig.b, 0, "engine/tp1", "");
	answer = find(kvx_peers_address(rig.b.peers));
	cr_assert_eq(answer.status, -ENOENT);
	cr_assert_not_null(strstr(answer.text, "nobody has published"), "%s", answer.text);
	region = publish(&rig.b, 0, "engine/tp0", "");
	answer = find(kvx_peers_address(rig.b.peers));
	cr_assert_eq(answer.status, 0, "%s", answer.text);
	kvx_target_unref(answer.target);
	rig_region_close(&rig.b, region);
	answer = find(kvx_peers_address(rig.b.peers));
	cr_assert_eq(answer.status, -ENOENT, "a region that is closing");
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, own_address_by_any_name_is_told_as_such)
{
	char other_name[64];
	struct answer answer;

	start();
	cr_assert(kvx_peers_is_own(rig.a.peers, kvx_peers_address(rig.a.peers)));
	cr_assert_not(kvx_peers_is_own(rig.a.peers, kvx_peers_address(rig.b.peers)));
	answer = find(kvx_peers_address(rig.a.peers));
	cr_assert(answer.status == 0 && answer.own, "%d %s", answer.status, answer.text);
	snprintf(other_name, sizeof(other_name), "127.0.0.2%s",
		 strchr(kvx_peers_address(rig.a.peers), ':'));
	rig_close_side(&rig.a);
	rig.a.conf.listen = "0.0.0.0:0";
	rig.a.conf.advertise = "127.0.0.1";
	rig.a.conf.insecure = true;
	rig_start_side(&rig.a);
	snprintf(other_name, sizeof(other_name), "127.0.0.2%s",
		 strchr(kvx_peers_address(rig.a.peers), ':'));
	cr_assert_not(kvx_peers_is_own(rig.a.peers, other_name));
	answer = find(other_name);
	cr_assert(answer.status == 0 && answer.own, "%d %s", answer.status, answer.text);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, addresses_that_cannot_be_are_refused_at_once)
{
	static char endless[200];

	start();
	memset(endless, 'x', sizeof(endless) - 1);
	cr_assert_eq(find("::1").status, -EINVAL);
	cr_assert_eq(find("host:port").status, -EINVAL);
	cr_assert_eq(find(endless).status, -EINVAL);
	cr_assert_eq(find("127.0.0.1:1").status, -EHOSTUNREACH);
	cr_assert_eq(find("192.0.2.1:1").status, -EACCES, "beyond loopback, unauthenticated");
	rig_stop(&rig);
	KVX_TEST_END();
}

/* 7717 where none is named: nobody listens there but by chance, which is no peer then either. */
Test(peer_find, port_may_be_left_out)
{
	struct answer answer;

	start();
	answer = find("127.0.0.99");
	cr_assert_neq(answer.status, 0);
	cr_assert_not_null(strstr(answer.text, "127.0.0.99:7717"), "%s", answer.text);
	answer = find("[::1]");
	cr_assert_neq(answer.status, 0);
	cr_assert_not_null(strstr(answer.text, "[::1]:7717"), "%s", answer.text);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* More of them than connections may be dialed at once. */
Test(peer_find, finds_at_one_address_share_its_probe)
{
	static struct answer answers[200];
	struct kvx_find *one;

	start();
	publish(&rig.b, 0, "engine/tp0", "");
	for (unsigned i = 0; i < 200; i++)
		cr_assert_eq(start_find(kvx_peers_address(rig.b.peers), 0, &answers[i], &one), 0,
			     "find %u: %s", i, answers[i].text);
	for (unsigned i = 0; i < 200; i++) {
		cr_assert(RIG_UNTIL(&rig, answers[i].n > 0, 3000), "find %u", i);
		cr_assert_eq(answers[i].status, 0, "%s", answers[i].text);
		kvx_target_unref(answers[i].target);
	}
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, tenant_finds_what_its_own_clients_have_published)
{
	static const char *const ours[] = {"default", "blue", "green", NULL};
	static const char *const theirs[] = {"default", "blue", NULL};
	struct kvx_region *blue;
	struct answer answer;

	rig_init(&rig);
	rig.a.conf.tenants = ours;
	rig.b.conf.tenants = theirs;
	rig_start(&rig);
	blue = publish(&rig.b, 1, "engine/tp0", "blue");
	cr_assert_eq(find_as(kvx_peers_address(rig.b.peers), 0).status, -ENOENT);
	cr_assert_eq(find_as(kvx_peers_address(rig.b.peers), 2).status, -EACCES);
	answer = find_as(kvx_peers_address(rig.b.peers), 1);
	cr_assert_eq(answer.status, 0, "%s", answer.text);
	cr_assert_eq(answer.target->region_id, blue->id);
	kvx_target_unref(answer.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* ends */

Test(peer_find, time_is_over_when_nothing_answers)
{
	struct answer answer;

	rig_init(&rig);
	rig_wire_b(&rig);
	rig_start(&rig);
	publish(&rig.b, 0, "engine/tp0", "");
	rig.wire_held = true;
	answer = find(rig.wire_addr);
	cr_assert_eq(answer.status, -EHOSTUNREACH);
	cr_assert_not_null(strstr(answer.text, "no connection in time"), "%s", answer.text);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, abandoned_find_is_never_answered)
{
	struct answer answer = {0};
	struct kvx_find *one;

	start();
	publish(&rig.b, 0, "engine/tp0", "");
	for (unsigned turns = 0; turns < 12; turns++) { /* at every stage of it */
		cr_assert_eq(start_find(kvx_peers_address(rig.b.peers), 0, &answer, &one), 0);
		for (unsigned i = 0; i < turns && answer.n == 0; i++)
			rig_turn(&rig);
		if (answer.n > 0)
			break;
		kvx_find_abandon(one);
		rig_pass(&rig, 50);
		cr_assert_eq(answer.n, 0);
	}
	if (answer.n > 0)
		kvx_target_unref(answer.target);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, closing_ends_what_is_asked)
{
	struct answer answer = {0};
	struct kvx_find *one;

	rig_init(&rig);
	rig_wire_b(&rig);
	rig_start(&rig);
	rig.wire_held = true;
	cr_assert_eq(start_find(rig.wire_addr, 0, &answer, &one), 0);
	rig_pass(&rig, 5);
	rig_close_side(&rig.a);
	cr_assert_eq(answer.n, 1);
	cr_assert_eq(answer.status, -ESHUTDOWN);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_find, find_survives_every_failed_allocation)
{
	bool faulted = true;

	start();
	publish(&rig.b, 0, "engine/tp0", "a note");
	for (unsigned n = 1; faulted; n++) {
		struct answer answer;

		fault_alloc_arm(n);
		answer = find(kvx_peers_address(rig.b.peers));
		rig_pass(&rig, 20);
		faulted = fault_alloc_disarm();
		if (answer.status == 0)
			kvx_target_unref(answer.target);
		answer = find(kvx_peers_address(rig.b.peers));
		for (unsigned i = 0; i < 3 && answer.status != 0; i++) {
			rig_pass(&rig, 400);
			answer = find(kvx_peers_address(rig.b.peers));
		}
		cr_assert_eq(answer.status, 0, "allocation %u: %d %s", n, answer.status,
			     answer.text);
		cr_assert_str_eq(answer.note, "a note");
		kvx_target_unref(answer.target);
		if (n % 2 == 0) { /* also from scratch */
			rig_close_side(&rig.a);
			rig_start_side(&rig.a);
			rig_pass(&rig, 50);
		}
	}
	rig_stop(&rig);
	KVX_TEST_END();
}

/* a peer by hand */

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

Test(peer_find, answers_that_make_no_sense_fail_the_find_only)
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

Test(peer_find, answer_to_another_question_is_dropped)
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

Test(peer_find, peer_that_goes_while_it_is_asked_fails_the_find)
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

Test(peer_find, descriptors_are_told_for_tenants_that_the_peer_has_only)
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
Test(peer_find, hello_of_the_own_node_is_refused_unless_it_is_a_probe)
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
