/* Peers: the second lane of a tenant, with a peer by hand: one that knows nothing of it, and one
 * that says of it what no daemon would. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "peer_ways.h"
#include "proto/kvx_err.h"
#include "test_end.h"
#include "xfer/peer_priv.h"

static struct rig_raw raw;

struct hello_conf {
	uint8_t id; /* below 0x0a: a waits for its offers; above: a offers */
	bool any_memory;
	unsigned gpus;
};

static KVX_ON_LOOP void raw_start(const struct hello_conf *conf)
{
	static char *transports[] = {(char *)"best", (char *)"any"};
	uint8_t id[16], buf[4096];
	Kvxp__PeerHello hello = rig_raw_hello_message(id, 5), *answer;
	size_t len;

	memset(id, conf->id, sizeof(id));
	rig_init(&rig);
	ways_init();
	rig_start(&rig);
	hello.transports = transports;
	hello.n_transports = 2;
	hello.any_memory = conf->any_memory;
	hello.gpus = conf->gpus;
	rig_raw_open(&rig, &rig.a, &raw);
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_HELLO, &hello);
	cr_assert_eq(rig_raw_recv(&raw, buf, sizeof(buf), &len), KVXP__PEER_FRAME_TYPE__PEER_HELLO);
	answer = kvxp__peer_hello__unpack(NULL, len, buf);
	cr_assert_not_null(answer);
	cr_assert(answer->any_memory);
	cr_assert_eq(answer->gpus, 1);
	kvxp__peer_hello__free_unpacked(answer, NULL);
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

/* How many lanes a offers, and how many of them are second ones. */
static KVX_ON_LOOP void raw_count_offers(unsigned *out_n, unsigned *out_n_any)
{
	uint8_t buf[4096];
	size_t len;

	*out_n = *out_n_any = 0;
	while (*out_n < 2 &&
	       rig_raw_wait(&raw, KVXP__PEER_FRAME_TYPE__PEER_LANE, buf, sizeof(buf), &len)) {
		Kvxp__PeerLane *lane = kvxp__peer_lane__unpack(NULL, len, buf);

		cr_assert_not_null(lane);
		cr_assert_str_eq(lane->tenant, "default");
		cr_assert_str_eq(lane->transport, lane->any_memory ? "any" : "best");
		(*out_n)++;
		*out_n_any += lane->any_memory != 0;
		kvxp__peer_lane__free_unpacked(lane, NULL);
	}
}

Test(peer_way_hello, older_daemon_is_offered_one_lane)
{
	const struct hello_conf conf = {.id = 0x0c};
	unsigned n, n_any;

	raw_start(&conf);
	raw_beat();
	raw_count_offers(&n, &n_any);
	cr_assert_geq(n, 1);
	cr_assert_eq(n_any, 0);
	raw_stop();
	KVX_TEST_END();
}

Test(peer_way_hello, daemon_that_knows_of_it_is_offered_two)
{
	const struct hello_conf conf = {.id = 0x0c, .any_memory = true};
	unsigned n, n_any;

	raw_start(&conf);
	raw_beat();
	raw_count_offers(&n, &n_any);
	cr_assert_eq(n, 2);
	cr_assert_eq(n_any, 1);
	raw_stop();
	KVX_TEST_END();
}

/* What transfers that require it are compared with. */
Test(peer_way_hello, second_lane_is_by_its_own_transport_before_it_is_set_up)
{
	const struct hello_conf conf = {.id = 0x09, .any_memory = true};

	raw_start(&conf);
	rig_pass(&rig, 5);
	cr_assert_eq(rig.a.peers->table->n_lanes, 2);
	cr_assert_eq(rig.a.peers->table->lanes[0]->lane.ops, BEST);
	cr_assert_eq(rig.a.peers->table->lanes[1]->lane.ops, ANY);
	raw_stop();
	KVX_TEST_END();
}

static KVX_ON_LOOP void raw_offer(uint64_t generation, const char *transport, bool any_memory)
{
	/* An endpoint of the fake transport that does not exist. */
	static uint64_t addr[3] = {0x6b7666616b653031, 1, 4711};
	Kvxp__PeerLane lane = KVXP__PEER_LANE__INIT;
	Kvxp__PeerLeg leg = KVXP__PEER_LEG__INIT, *legs[] = {&leg};

	leg.address.data = (uint8_t *)addr;
	leg.address.len = sizeof(addr);
	lane.transport = (char *)(uintptr_t)transport;
	lane.generation = generation;
	lane.tenant = (char *)"default";
	lane.legs = legs;
	lane.n_legs = 1;
	lane.any_memory = any_memory;
	rig_raw_send(&raw, KVXP__PEER_FRAME_TYPE__PEER_LANE, &lane);
	rig_pass(&rig, 5);
}

Test(peer_way_hello, offer_of_a_second_lane_that_is_not_expected_is_ignored)
{
	const struct hello_conf conf = {.id = 9};
	struct kvx_lane_row row;

	raw_start(&conf);
	raw_beat();
	raw_offer(1, "any", true);
	cr_assert(rig_is_up(&rig.a), "a device may have been lost between the hellos");
	cr_assert_not(ways_lane(&rig.a, true, &row));
	raw_offer(2, "best", false);
	cr_assert(rig_is_up(&rig.a));
	cr_assert(ways_lane(&rig.a, false, &row));
	cr_assert_eq(row.generation, 2);
	raw_stop();
	KVX_TEST_END();
}

Test(peer_way_hello, two_lanes_of_a_tenant_are_told_apart)
{
	const struct hello_conf conf = {.id = 9, .any_memory = true};
	struct kvx_lane_row row;

	raw_start(&conf);
	raw_beat();
	raw_offer(8, "any", true);
	raw_offer(7, "best", false);
	cr_assert(rig_is_up(&rig.a));
	cr_assert(ways_lane(&rig.a, false, &row));
	cr_assert_eq(row.generation, 7);
	cr_assert(ways_lane(&rig.a, true, &row));
	cr_assert_eq(row.generation, 8);
	raw_stop();
	KVX_TEST_END();
}

Test(peer_way_hello, second_lane_by_another_kind_of_transport_ends_the_connection)
{
	const struct hello_conf conf = {.id = 9, .any_memory = true};

	raw_start(&conf);
	raw_beat();
	raw_offer(8, "best", true);
	cr_assert_not(rig_is_up(&rig.a));
	raw_stop();
	KVX_TEST_END();
}

Test(peer_way_hello, one_generation_cannot_be_of_both)
{
	const struct hello_conf conf = {.id = 9, .any_memory = true};

	raw_start(&conf);
	raw_beat();
	raw_offer(7, "best", false);
	cr_assert(rig_is_up(&rig.a));
	raw_offer(7, "any", true);
	cr_assert_not(rig_is_up(&rig.a));
	raw_stop();
	KVX_TEST_END();
}
