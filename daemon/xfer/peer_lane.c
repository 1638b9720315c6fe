/* The life of a lane to a peer: when a generation of it begins, when one is made anew, when there
 * is no way to have it. Loop thread; steps run from peer_step(). Set-up is in peer_lane_up.c,
 * tear-down in peer_lane_down.c. Retries with back-off for as long as the connection is there. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

struct peer_lane *lane_of(struct kvx_lane *lane)
{
	struct peer_lane *pl =
	    (struct peer_lane *)((char *)lane - offsetof(struct peer_lane, lane));

	KVX_CHECK_MAGIC(pl, LANE_MAGIC);
	return pl;
}

const char *lane_tenant_name(const struct peer_lane *lane)
{
	return lane->peer->peers->tenants[lane->tenant];
}

const char *lane_kind_name(const struct peer_lane *lane)
{
	return lane->any_memory ? "bounce lane" : "lane";
}

void lane_note_error(struct peer_lane *lane, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(lane->last_error, sizeof(lane->last_error), fmt, args);
	va_end(args);
	peer_note_error(lane->peer, "%s: %s", lane_kind_name(lane), lane->last_error);
}

/* A batch has failed: what becomes of it is seen in a step. */
static void lane_on_held(void *arg)
{
	struct peer_lane *lane = arg;

	kvx_assert_on_loop();
	KVX_CHECK_MAGIC(lane, LANE_MAGIC);
	if (lane->held_ns == 0)
		lane->held_ns = peer_now(lane->peer->peers);
	peer_wake(lane->peer);
}

int lane_create(struct kvx_peer *peer, unsigned index, struct peer_lane **out_lane)
{
	const struct kvx_peers *peers = peer->peers;
	struct peer_lane *lane = calloc(1, sizeof(*lane));
	int err;

	if (lane == NULL)
		return -ENOMEM;
	lane->magic = LANE_MAGIC;
	lane->peer = peer;
	lane->index = index;
	lane->tenant = index % peers->n_tenants;
	lane->any_memory = index >= peers->n_tenants;
	lane->lane.state = KVX_LANE_DOWN;
	lane->lane.generation = 1;
	lane->lane.ops = kvx_node_peer_transports(peers->conf.node)[0];
	legs_clear(lane);
	lane_pick_reset(lane);
	err = kvx_sched_create(&lane->lane, kvx_node_scheds(peers->conf.node), &lane->lane.sched);
	if (err < 0) {
		free(lane);
		return err;
	}
	kvx_sched_hold(lane->lane.sched, lane_on_held, lane);
	*out_lane = lane;
	return 0;
}

void lane_destroy(struct peer_lane *lane)
{
	if (lane == NULL)
		return;
	kvx_sched_destroy(lane->lane.sched);
	lane->magic = 0;
	free(lane);
}

bool lane_is_idle(const struct peer_lane *lane)
{
	return lane->phase == LANE_IDLE && !legs_are_busy(lane);
}

bool lane_inbound_is_stopped(const struct peer_lane *lane)
{
	return lane->phase == LANE_IDLE || lane->phase > LANE_STOPPING;
}

bool lane_has_stopped_since(const struct peer_lane *lane, uint64_t stops)
{
	return lane->n_stops != stops || lane_inbound_is_stopped(lane);
}

const char *lane_state_name(const struct peer_lane *lane)
{
	if (lane->phase == LANE_UP)
		return "up";
	if (lane->phase >= LANE_STOPPING || lane->down_wanted)
		return "closing";
	return lane->lane.state == KVX_LANE_DOWN ? "down" : "connecting";
}

void lane_extend(struct peer_lane *lane)
{
	const struct kvx_peer *peer = lane->peer;

	if (lane->phase > LANE_LISTENING && lane->phase < LANE_STOPPING && !lane->down_wanted)
		legs_lease(lane, peer->lease_base_ns + peer->lease_ns);
}

void lane_on_conn(struct peer_lane *lane, bool new_epoch)
{
	lane->told_down = false;
	lane->retry_ns = 0;
	lane->n_failed = lane->n_broken = 0;
	lane_pick_reset(lane);
	if (new_epoch) {
		lane->last_offer = 0;
		lane->offer_generation = 0;
		lane->remote_dead = true;
	} else {
		lane_tell_down(lane);
	}
	if (lane->any_memory)
		return; /* nothing waits for it yet */
	if (lane->n_common == 0)
		remote_fail_waiting(lane, -ENETUNREACH,
				    "the two nodes have no transport in common");
	else if (!lane->wanted)
		remote_fail_waiting(lane, -EACCES, "the region's node does not have this tenant");
}

void lane_on_device_up(struct peer_lane *lane, const struct kvx_node_rail *rail)
{
	lane_pick_device_up(lane, rail);
	lane->retry_ns = 0;
	peer_wake(lane->peer);
}

/* There is no way to have it: who waits for it is told. */
static KVX_ON_LOOP void lane_give_up(struct peer_lane *lane)
{
	struct kvx_peer *peer = lane->peer;

	if (lane->lane.state == KVX_LANE_DOWN)
		return;
	lane->lane.state = KVX_LANE_DOWN;
	if (peer->conn == NULL || peer->conn->fail_status != 0 || peer->peers->closing)
		return; /* the loss of the peer is told instead */
	kvx_xfers_cancel_lane(kvx_node_xfers(peer->peers->conf.node), &lane->lane, -ENETUNREACH,
			      "no device is left to reach the peer by");
	remote_fail_waiting(lane, -ENETUNREACH, "no device is left to reach the peer by");
}

static KVX_ON_LOOP void step_idle(struct peer_lane *lane)
{
	struct kvx_peer *peer = lane->peer;
	const struct kvx_transport_ops *ops;

	if (peer->conn == NULL || peer->conn->fail_status != 0 || peer->peers->closing ||
	    !lane->wanted || !lane_has_transport(lane)) {
		lane_give_up(lane);
		return;
	}
	lane->lane.state = KVX_LANE_CONNECTING;
	/* Without an answered heartbeat there is no lease, and nothing may land. */
	if (legs_are_busy(lane) || peer->lease_base_ns == 0)
		return;
	if (!peer_is_lower(peer)) { /* the other side waits between its tries */
		if (lane->offer_generation != 0)
			lane_begin(lane, lane->offer_ops);
	} else if (peer_now(peer->peers) >= lane->retry_ns) {
		ops = lane_pick_transport(lane);
		if (ops != NULL)
			lane_begin(lane, ops);
		else
			lane_note_unusable(lane, lane->common[0]);
	}
}

/* Has nobody used it for a while? */
static KVX_ON_LOOP bool lane_is_quiet(struct peer_lane *lane)
{
	const struct kvx_sched *sched = lane->lane.sched;
	uint64_t now = peer_now(lane->peer->peers);
	uint64_t activity = lane->lane.n_batches + lane->n_inbound_opened;

	if (kvx_sched_in_flight(sched) > 0 || kvx_sched_queued(sched) > 0 || lane->n_inbound > 0 ||
	    activity != lane->seen_activity) {
		lane->seen_activity = activity;
		lane->quiet_ns = now;
	}
	return now - lane->quiet_ns >= LANE_QUIET_NS;
}

/* Makes a lane anew that could be better: when it has been quiet for a while; at once when a port
 * has come up; or when it is never quiet. First it gives out no more, so that little is in flight;
 * the transfers that have some go on with the next generation. */
static KVX_ON_LOOP void step_renew(struct peer_lane *lane)
{
	uint64_t now = peer_now(lane->peer->peers);
	bool due;

	if (lane->pause_ns == 0) {
		if (!lane_could_be_better(lane)) {
			lane->renew_now = false;
			return;
		}
		due = now >= lane->renew_ns &&
		      (lane_is_quiet(lane) || now - lane->renew_ns >= LANE_OVERDUE_NS);
		if (!due && !lane->renew_now)
			return;
		lane->pause_ns = now;
		lane->lane.state = KVX_LANE_CONNECTING;
	}
	if (kvx_sched_in_flight(lane->lane.sched) > 0 && now - lane->pause_ns < LANE_PAUSE_NS)
		return;
	lane_pick_renew(lane);
	lane_renew(lane);
}

/* A batch has failed and the lane is still up: perhaps the news that its ep is lost is on its way.
 */
static KVX_ON_LOOP void step_held(struct peer_lane *lane)
{
	if (lane->held_ns == 0 || peer_now(lane->peer->peers) - lane->held_ns < LANE_POLL_NS)
		return;
	lane->held_ns = 0;
	kvx_sched_release(lane->lane.sched);
}

void lane_step(struct peer_lane *lane)
{
	uint64_t now = peer_now(lane->peer->peers);

	if (lane->phase >= LANE_OFFERED && lane->phase < LANE_UP && now >= lane->setup_deadline_ns)
		lane_break(lane, -EIO, 0, "set-up timed out");
	if (lane->phase == LANE_UP) {
		step_held(lane);
		step_renew(lane);
	}
	if (lane->phase >= LANE_STOPPING)
		lane_step_down(lane);
	if (lane->phase == LANE_IDLE)
		step_idle(lane);
}

static uint64_t up_next_ns(const struct peer_lane *lane)
{
	uint64_t quiet_ns = lane->quiet_ns + LANE_QUIET_NS;

	if (lane->held_ns != 0)
		return lane->held_ns + LANE_POLL_NS;
	if (lane->pause_ns != 0)
		return peer_now(lane->peer->peers) + LANE_POLL_NS;
	if (!lane_could_be_better(lane))
		return UINT64_MAX;
	return lane->renew_ns > quiet_ns ? lane->renew_ns : quiet_ns;
}

uint64_t lane_next_ns(const struct peer_lane *lane)
{
	const struct kvx_peer *peer = lane->peer;

	switch (lane->phase) {
	case LANE_IDLE: /* past its time it waits for something else than time */
		return peer->conn != NULL && peer_is_lower(peer) &&
			       lane->retry_ns > peer_now(peer->peers)
			   ? lane->retry_ns
			   : UINT64_MAX;
	case LANE_OFFERED:
	case LANE_CONNECTING:
	case LANE_WAIT_UP:
		return lane->setup_deadline_ns;
	case LANE_UP:
		return up_next_ns(lane);
	default:
		return lane_down_next_ns(lane);
	}
}
