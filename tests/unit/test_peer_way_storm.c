/* Peers: both lanes of a tenant while everything happens at once: lanes that are reset by either
 * side, ports that come and go, wires that are cut, regions that are closed. Each transfer ends
 * exactly once, each import is told of its loss once and after its transfers, all regions close,
 * and in the end both lanes are up and carry data. Random, by seed, in virtual time. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "peer_ways.h"
#include "test_end.h"
#include "test_rng.h"

#define SEEDS   10u
#define STEPS   250u
#define REMOTES 4u

struct remote {
	struct kvx_region *region; /* of b */
	struct kvx_target *target; /* NULL: not imported */
	struct ways_watch watch;
};

static struct {
	struct kvx_region *local[2]; /* the second one is out of reach of "best" */
	struct remote remotes[REMOTES];
	unsigned n_accepted, n_ended, n_ok;
	bool port_down[2];
} storm;

static void take_ends(void)
{
	for (unsigned i = 0; i < rig.a.n_ends; i++)
		storm.n_ok += rig.a.ends[i].end.status == 0;
	storm.n_ended += rig.a.n_ends;
	cr_assert_leq(storm.n_ended, storm.n_accepted, "a transfer has ended twice");
	rig.a.n_ends = rig.b.n_arrivals = 0;
}

static KVX_ON_LOOP void pass(unsigned ms)
{
	rig_pass(&rig, ms);
	take_ends();
}

static KVX_ON_LOOP void remote_drop(struct remote *r)
{
	if (r->target == NULL)
		return;
	cr_assert_leq(r->watch.n, 1, "told twice");
	kvx_target_unwatch(r->target, &r->watch.watch);
	kvx_target_unref(r->target);
	r->target = NULL;
}

static KVX_ON_LOOP void remote_import(struct remote *r)
{
	struct rig_answer answer = ways_resolve(&rig.a, r->region);

	take_ends();
	if (answer.status != 0)
		return;
	r->target = answer.target;
	r->watch = (struct ways_watch){.watch.lost = ways_on_lost};
	kvx_target_watch(r->target, &r->watch.watch);
}

static KVX_ON_LOOP void remote_open(struct remote *r, unsigned i)
{
	r->region = i % 2 ? ways_far_region(&rig.b, 0x44) : rig_region(&rig.b, LEN, RW, NULL);
	take_ends();
}

static KVX_ON_LOOP void storm_submit(void)
{
	struct remote *r = &storm.remotes[rng_below(REMOTES)];
	unsigned before = rig.a.n_ends;

	if (r->target == NULL)
		return;
	if (rig_submit(&rig.a, rng_below(2) ? KVX_OP_WRITE : KVX_OP_READ, storm.local[rng_below(2)],
		       r->target, 1 + rng_below(LEN), 1 + rng_below(400)) == 0)
		storm.n_accepted++;
	cr_assert_eq(rig.a.n_ends, before, "an end before the submit has returned");
}

static KVX_ON_LOOP void storm_reset(void)
{
	const struct remote *r = &storm.remotes[rng_below(REMOTES)];

	if (r->target != NULL && !r->target->lost)
		kvx_peers_lane_reset(rig.a.peers, r->target->lane, "a storm");
}

static KVX_ON_LOOP void storm_port(unsigned node)
{
	struct test_rail *rail = test_rail(BEST, node, 0);

	storm.port_down[node] = !storm.port_down[node];
	test_rail_wait(rail, storm.port_down[node]);
	if (!storm.port_down[node])
		kvx_fake_device_up(&rig.script, rail->dom);
}

static KVX_ON_LOOP void storm_close(void)
{
	unsigned i = rng_below(REMOTES);
	struct remote *r = &storm.remotes[i];

	if (r->region->state == KVX_REGION_LIVE)
		rig_region_close(&rig.b, r->region);
	remote_drop(r);
	remote_open(r, i);
	remote_import(r);
}

static KVX_ON_LOOP void storm_step(void)
{
	unsigned what = rng_below(100);

	if (what < 55)
		storm_submit();
	else if (what < 75)
		pass(1 + rng_below(30));
	else if (what < 80)
		storm_reset();
	else if (what < 84)
		storm_port(rng_below(2));
	else if (what < 87)
		rig_wire_cut(&rig);
	else if (what < 90)
		storm_close();
	else if (what < 93)
		rig.script.drop_nth_op = (unsigned)rig.script.n_ops + 1 + rng_below(5);
	else if (storm.remotes[what % REMOTES].target != NULL &&
		 storm.remotes[what % REMOTES].target->lost)
		remote_drop(&storm.remotes[what % REMOTES]);
	else if (storm.remotes[what % REMOTES].target == NULL)
		remote_import(&storm.remotes[what % REMOTES]);
	take_ends();
}

static KVX_ON_LOOP void storm_calm_down(void)
{
	rig.script.latency_ns = 0;
	for (unsigned i = 0; i < 2; i++)
		if (storm.port_down[i])
			storm_port(i);
	rig_wire_cut(&rig); /* a new connection begins with the best again */
	cr_assert(RIG_UNTIL(&rig, (take_ends(), storm.n_ended == storm.n_accepted), 20000),
		  "%u of %u transfers have ended", storm.n_ended, storm.n_accepted);
	for (unsigned i = 0; i < REMOTES; i++) {
		struct remote *r = &storm.remotes[i];

		if (r->target != NULL && r->target->lost)
			cr_assert(RIG_UNTIL(&rig, r->watch.n == 1, 5000), "loss is not told");
		remote_drop(r);
		for (unsigned k = 0; k < 20 && r->target == NULL; k++) {
			remote_import(r);
			pass(100);
		}
		cr_assert_not_null(r->target);
	}
	cr_assert(RIG_UNTIL(&rig, ways_are_up(), 20000), "lanes do not come back");
}

/* Each local region into each remote one, by the way that it has to take. */
static KVX_ON_LOOP void storm_check(void)
{
	for (unsigned i = 0; i < REMOTES; i++) {
		for (unsigned k = 0; k < 2; k++) {
			struct remote *r = &storm.remotes[i];

			memset(storm.local[k]->mem.addr, 0x10 + (int)(2 * i + k), LEN);
			ways_assert_write(storm.local[k], r->target, r->region,
					  k == 1 || i % 2 ? "any" : "best");
		}
	}
}

Test(peer_way_storm, everything_ends_once_and_both_lanes_come_back)
{
	unsigned n_ok = 0;

	for (unsigned seed = 1; seed <= SEEDS; seed++) {
		memset(&storm, 0, sizeof(storm));
		rng_state = seed * 0x9e3779b97f4a7c15u;
		rig_init(&rig);
		ways_init();
		rig.a.node_conf.xfers.lane_retries = seed % 3;
		rig.script.seed = seed;
		rig.script.latency_ns = seed % 4 * 3 * KVX_MS;
		rig.script.jitter_ns = seed % 2 * 4 * KVX_MS;
		rig_wire_b(&rig);
		rig_start(&rig);
		storm.local[0] = rig_region(&rig.a, LEN, RW, NULL);
		storm.local[1] = ways_far_region(&rig.a, 0x55);
		for (unsigned i = 0; i < REMOTES; i++) {
			remote_open(&storm.remotes[i], i);
			remote_import(&storm.remotes[i]);
		}
		for (unsigned i = 0; i < STEPS; i++)
			storm_step();
		storm_calm_down();
		storm_check();
		n_ok += storm.n_ok;
		for (unsigned i = 0; i < REMOTES; i++)
			remote_drop(&storm.remotes[i]);
		rig_stop(&rig);
	}
	cr_assert_gt(n_ok, SEEDS * STEPS / 20, "hardly anything has succeeded: %u", n_ok);
	KVX_TEST_END();
}
