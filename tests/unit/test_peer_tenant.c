/* Peers: one lane for each tenant that both nodes have, and nothing of one tenant by the lane of
 * another; what frames say of lanes that they must not. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "peer_pair.h"
#include "proto/kvx_err.h"
#include "test_end.h"

static const char *const names_a[] = {"default", "blue", "green", NULL};
static const char *const names_b[] = {"default", "red", "blue", NULL};
enum { A_BLUE = 1, A_GREEN = 2, B_RED = 1, B_BLUE = 2 };

static KVX_ON_LOOP void start_tenants(void)
{
	rig_init(&rig);
	rig.a.conf.tenants = names_a;
	rig.b.conf.tenants = names_b;
	pair_start();
}

static KVX_ON_LOOP struct rig_answer resolve(struct kvx_region *region, uint32_t tenant)
{
	struct kvx_desc desc = rig_desc(&rig.b, region);

	return rig_resolve_as(&rig.a, tenant, &desc);
}

Test(peer_tenant, each_tenant_of_both_nodes_has_a_lane)
{
	struct kvx_lane_row first, blue, none;
	struct kvx_peer_row row;

	start_tenants();
	cr_assert(rig_lanes_are(&rig, "default", "fake", 1));
	cr_assert(rig_lanes_are(&rig, "blue", "fake", 1));
	cr_assert(rig_lane(&rig.a, "default", &first));
	cr_assert(rig_lane(&rig.a, "blue", &blue));
	cr_assert_neq(first.generation, blue.generation, "a generation names its lane");
	cr_assert_not(rig_lane(&rig.a, "green", &none));
	cr_assert_not(rig_lane(&rig.b, "red", &none));
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_lanes, 2);
	cr_assert_eq(row.n_lanes_up, 2);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_tenant, tenants_are_matched_by_name)
{
	struct rig_answer answer;
	struct kvx_region *blue_here, *blue_there;
	struct kvx_lane_row row;

	start_tenants();
	blue_here = rig_region_of(&rig.a, A_BLUE, LEN, RW, NULL);
	blue_there = rig_region_of(&rig.b, B_BLUE, LEN, RW, NULL);
	memset(blue_here->mem.addr, 0x55, LEN);
	answer = resolve(blue_there, A_BLUE);
	cr_assert_eq(answer.status, 0, "%s", answer.text);
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, blue_here, answer.target, LEN, 1000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals == 1, 1000));
	cr_assert_eq(rig.a.ends[0].end.status, 0, "%s", rig.a.ends[0].text);
	cr_assert(pair_all_are(blue_there->mem.addr, 0x55));
	cr_assert(rig_lane(&rig.a, "blue", &row));
	cr_assert_eq(row.n_bytes, LEN);
	cr_assert(rig_lane(&rig.a, "default", &row));
	cr_assert_eq(row.n_bytes, 0);
	kvx_target_unref(answer.target);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_tenant, region_of_another_tenant_is_refused_by_its_owner)
{
	struct rig_answer answer;

	start_tenants();
	answer = resolve(there, A_BLUE);
	cr_assert_eq(answer.status, -EACCES);
	cr_assert_not_null(strstr(answer.text, "another tenant"), "%s", answer.text);
	answer = resolve(rig_region_of(&rig.b, B_BLUE, LEN, RW, NULL), 0);
	cr_assert_eq(answer.status, -EACCES);
	cr_assert_not_null(strstr(answer.text, "another tenant"), "%s", answer.text);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_tenant, tenant_that_the_other_node_lacks_is_refused_in_words)
{
	struct rig_answer answer;

	rig_init(&rig);
	rig.a.conf.tenants = names_a;
	rig.b.conf.tenants = names_b;
	rig_start(&rig);
	there = rig_region_of(&rig.b, B_RED, LEN, RW, NULL);
	for (unsigned i = 0; i < 2; i++) { /* before there is a connection, and after */
		answer = resolve(there, A_GREEN);
		cr_assert_eq(answer.status, -EACCES, "%d %s", answer.status, answer.text);
		cr_assert_not_null(strstr(answer.text, "does not have"), "%s", answer.text);
	}
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(peer_tenant, reset_of_one_lane_leaves_the_others_alone)
{
	struct rig_answer answer;
	struct kvx_region *blue_here;
	struct kvx_lane_row row;

	start_tenants();
	blue_here = rig_region_of(&rig.a, A_BLUE, LEN, RW, NULL);
	answer = resolve(rig_region_of(&rig.b, B_BLUE, LEN, RW, NULL), A_BLUE);
	rig.script.latency_ns = 50 * KVX_MS;
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 10000), 0);
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, blue_here, answer.target, LEN, 10000), 0);
	rig_pass(&rig, 10);
	kvx_peers_lane_reset(rig.a.peers, answer.target->lane, "the test says so");
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == 2, 1000));
	cr_assert_lt(rig.a.ends[0].end.status, 0);
	cr_assert_eq(rig.a.ends[1].end.status, 0, "%s", rig.a.ends[1].text);
	cr_assert(pair_all_are(there->mem.addr, 0x11));
	cr_assert(rig_lane(&rig.a, "default", &row));
	cr_assert_eq(row.n_resets, 0);
	rig.script.latency_ns = 0;
	cr_assert(RIG_UNTIL(&rig, rig_lanes_are(&rig, "blue", "fake", 1), 1000));
	kvx_target_unref(answer.target);
	pair_stop();
	KVX_TEST_END();
}

Test(peer_tenant, region_that_is_not_given_up_costs_its_own_lane_only)
{
	struct rig_answer answer;
	struct kvx_region *blue_there;
	struct kvx_lane_row row;
	unsigned before;

	rig_init(&rig);
	rig.a.conf.tenants = names_a;
	rig.b.conf.tenants = names_b;
	rig.a.conf.lost_ms = rig.b.conf.lost_ms = 5000;
	rig_wire_b(&rig);
	pair_start();
	blue_there = rig_region_of(&rig.b, B_BLUE, LEN, RW, NULL);
	answer = resolve(blue_there, A_BLUE);
	cr_assert_eq(answer.status, 0, "%s", answer.text);
	rig.wire_held = true;
	before = rig.b.n_region_events;
	rig_region_close(&rig.b, blue_there);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_region_events > before, 1000), "does not close");
	cr_assert(rig_lane(&rig.b, "default", &row));
	cr_assert_str_eq(row.state, "up");
	cr_assert_eq(row.n_resets, 0);
	cr_assert(rig_lane(&rig.b, "blue", &row));
	cr_assert_eq(row.n_resets, 1);
	rig.wire_held = false;
	cr_assert(RIG_UNTIL(&rig, answer.target->lost, 1000));
	kvx_target_unref(answer.target);
	pair_stop();
	KVX_TEST_END();
}

/* by hand: node 0x09 is lower than a, so that a waits for its offers */

static struct rig_raw raw;

static KVX_ON_LOOP void raw_start(bool names_tenants)
{
	char *tenants[] = {(char *)"default", (char *)"blue"};
	uint8_t id[16], buf[4096];
	Kvxp__PeerHello hello = rig_raw_hello_message(id, 5);
	size_t len;

	memset(id, 9, sizeof(id));
	rig_init(&rig);
	rig.a.conf.tenants = names_a;
	rig_start(&rig);
	hello.tenants = tenants;
	hello.n_tenants = names_tenants ? 2 : 0;
	rig_raw_open(&rig, &rig.a, &raw);
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_HELLO, &hello);
	cr_assert_eq(rig_raw_recv(&raw, buf, sizeof(buf), &len), KVXP__PEER_FRAME_TYPE__PEER_HELLO);
}

static KVX_ON_LOOP void raw_stop(void)
{
	rig_raw_close(&raw);
	rig_stop(&rig);
}

/* Answers one heartbeat, so that a has a lease. */
static KVX_ON_LOOP void raw_beat(void)
{
	Kvxp__PeerHeartbeat beat = KVXP__PEER_HEARTBEAT__INIT;

	rig_pass(&rig, 5);
	beat.seq = beat.echo = 1;
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_HEARTBEAT, &beat);
	rig_pass(&rig, 5);
}

static KVX_ON_LOOP void raw_offer(const char *tenant, uint64_t generation, unsigned n_legs,
				  size_t addr_len)
{
	/* An endpoint of the fake transport that does not exist. */
	static uint64_t addr[KVX_TRANSPORT_ADDR_MAX / 8 + 1] = {0x6b7666616b653031, 1, 4711};
	Kvxp__PeerLane lane = KVXP__PEER_LANE__INIT;
	Kvxp__PeerLeg leg = KVXP__PEER_LEG__INIT, *legs[16];

	for (unsigned i = 0; i < 16; i++)
		legs[i] = &leg;
	leg.address.data = (uint8_t *)addr;
	leg.address.len = addr_len;
	lane.transport = (char *)"fake";
	lane.generation = generation;
	lane.tenant = (char *)(uintptr_t)tenant;
	lane.legs = legs;
	lane.n_legs = n_legs;
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_LANE, &lane);
	rig_pass(&rig, 5);
}

static KVX_ON_LOOP bool raw_is_up(void)
{
	return rig_is_up(&rig.a);
}

Test(peer_tenant, daemon_that_names_no_tenants_has_the_default_one)
{
	struct kvx_peer_row row;

	raw_start(false);
	rig_pass(&rig, 5);
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_lanes, 1);
	raw_offer("blue", 1, 1, 24);
	cr_assert_not(raw_is_up(), "an offer for a tenant that it does not have");
	raw_stop();
	KVX_TEST_END();
}

Test(peer_tenant, offers_that_make_no_sense_end_the_connection)
{
	for (unsigned i = 0; i < 6; i++) {
		raw_start(true);
		raw_beat();
		cr_assert(raw_is_up());
		if (i == 0)
			raw_offer("green", 1, 1, 24);
		else if (i == 1)
			raw_offer("default", 0, 1, 24);
		else if (i == 2)
			raw_offer("default", 1, 0, 24);
		else if (i == 3)
			raw_offer("default", 1, 9, 24);
		else if (i == 4)
			raw_offer("default", 1, 1, 0);
		else
			raw_offer("default", 1, 1, KVX_TRANSPORT_ADDR_MAX + 1);
		cr_assert_not(raw_is_up(), "case %u", i);
		raw_stop();
	}
	KVX_TEST_END();
}

Test(peer_tenant, one_generation_cannot_be_of_two_lanes)
{
	raw_start(true);
	raw_beat();
	raw_offer("default", 7, 1, 24);
	cr_assert(raw_is_up());
	raw_offer("blue", 7, 1, 24);
	cr_assert_not(raw_is_up());
	raw_stop();
	KVX_TEST_END();
}

Test(peer_tenant, offers_of_two_lanes_may_come_in_any_order)
{
	struct kvx_lane_row row;

	raw_start(true);
	raw_beat();
	raw_offer("blue", 8, 1, 24);
	raw_offer("default", 7, 1, 24);
	cr_assert(raw_is_up());
	cr_assert(rig_lane(&rig.a, "default", &row));
	cr_assert_eq(row.generation, 7);
	cr_assert(rig_lane(&rig.a, "blue", &row));
	cr_assert_eq(row.generation, 8);
	raw_stop();
	KVX_TEST_END();
}

Test(peer_tenant, offer_before_there_is_a_lease_waits)
{
	struct kvx_lane_row row;

	raw_start(true);
	raw_offer("default", 1, 1, 24);
	cr_assert(rig_lane(&rig.a, "default", &row));
	cr_assert_eq(row.generation, 0);
	raw_beat();
	cr_assert(rig_lane(&rig.a, "default", &row));
	cr_assert_eq(row.generation, 1);
	raw_stop();
	KVX_TEST_END();
}

/* Says RESOLVE for a region of a with its right token; gives the answer's status. */
static KVX_ON_LOOP int raw_resolve(const struct kvx_region *region, uint64_t generation)
{
	Kvxp__PeerResolve msg = KVXP__PEER_RESOLVE__INIT;
	Kvxp__PeerResolved *reply;
	uint8_t buf[4096];
	size_t len;
	int status;

	msg.request_id = 1;
	msg.region = region->id;
	msg.token.data = (uint8_t *)(uintptr_t)region->token;
	msg.token.len = KVX_TOKEN_BYTES;
	msg.generation = generation;
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_RESOLVE, &msg);
	cr_assert(rig_raw_wait(&raw, KVXP__PEER_FRAME_TYPE__PEER_RESOLVED, buf, sizeof(buf), &len));
	reply = kvxp__peer_resolved__unpack(NULL, len, buf);
	cr_assert_not_null(reply);
	status = kvx_status_to_errno(reply->status);
	cr_assert_eq(reply->n_rkeys > 0, status == 0, "keys of a region that was refused");
	kvxp__peer_resolved__free_unpacked(reply, NULL);
	return status;
}

Test(peer_tenant, keys_are_given_for_the_lane_that_is_there_and_its_tenant)
{
	struct kvx_region *region, *blue;

	raw_start(true);
	raw_beat();
	rig.script.latency_ns = KVX_SEC; /* connecting takes time */
	region = rig_region(&rig.a, LEN, RW, NULL);
	blue = rig_region_of(&rig.a, A_BLUE, LEN, RW, NULL);
	cr_assert_eq(raw_resolve(region, 0), -EHOSTDOWN);
	cr_assert_eq(raw_resolve(region, 5), -EHOSTDOWN);
	raw_offer("blue", 5, 1, 24);
	raw_offer("default", 6, 1, 24);
	cr_assert_eq(raw_resolve(region, 4), -EHOSTDOWN);
	cr_assert_eq(raw_resolve(region, 5), -EACCES);
	cr_assert_eq(raw_resolve(blue, 6), -EACCES);
	rig.script.latency_ns = 0;
	raw_stop();
	KVX_TEST_END();
}

Test(peer_tenant, messages_to_regions_that_were_not_resolved_are_refused)
{
	Kvxp__PeerMessage msg = KVXP__PEER_MESSAGE__INIT;
	Kvxp__PeerMessageReply *reply;
	struct kvx_region *region;
	uint8_t buf[4096];
	size_t len;

	raw_start(true);
	region = rig_region(&rig.a, LEN, RW, NULL);
	msg.region = region->id;
	msg.token.data = region->token;
	msg.token.len = KVX_TOKEN_BYTES;
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_MESSAGE, &msg);
	cr_assert(
	    rig_raw_wait(&raw, KVXP__PEER_FRAME_TYPE__PEER_MESSAGE_REPLY, buf, sizeof(buf), &len));
	reply = kvxp__peer_message_reply__unpack(NULL, len, buf);
	cr_assert_not_null(reply);
	cr_assert_eq(kvx_status_to_errno(reply->status), -EACCES);
	kvxp__peer_message_reply__free_unpacked(reply, NULL);
	cr_assert_eq(rig.a.n_messages, 0);
	raw_stop();
	KVX_TEST_END();
}

/* Who waits for a generation to be over is told so, once, also when it is not known here. */
Test(peer_tenant, tear_down_of_an_unknown_generation_is_confirmed_once)
{
	Kvxp__PeerLaneDown down = KVXP__PEER_LANE_DOWN__INIT, *reply;
	struct kvx_peer_row row;
	uint8_t buf[4096];
	size_t len;

	raw_start(true);
	down.generation = 77;
	down.status = KVX_STATUS_TRANSPORT;
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_LANE_DOWN, &down);
	cr_assert(
	    rig_raw_wait(&raw, KVXP__PEER_FRAME_TYPE__PEER_LANE_DOWN, buf, sizeof(buf), &len));
	reply = kvxp__peer_lane_down__unpack(NULL, len, buf);
	cr_assert_not_null(reply);
	cr_assert_eq(reply->generation, 77);
	cr_assert_eq(reply->status, KVX_STATUS_STALE);
	kvxp__peer_lane_down__free_unpacked(reply, NULL);
	down.status = KVX_STATUS_STALE;
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_LANE_DOWN, &down);
	rig_pass(&rig, 5);
	cr_assert(rig_row(&rig.a, &row));
	cr_assert_eq(row.n_stale_dropped, 2);
	cr_assert_not(
	    rig_raw_wait(&raw, KVXP__PEER_FRAME_TYPE__PEER_LANE_DOWN, buf, sizeof(buf), &len));
	raw_stop();
	KVX_TEST_END();
}
