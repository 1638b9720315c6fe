/* Tear-down of a lane, of all legs together, in the order that keeps the guarantees: stop inbound
 * (LEASE 0) and tell the other side; fence; wait until nothing that was sent can land; give back
 * what was in flight; free the keys; close the endpoints. Nothing can land any more once the other
 * side has stopped, too, or its lease is over for certain, or, where the transport says how long a
 * packet may be under way (settle_ns), that long after the fence. Batches that come back from the
 * fence are held by the scheduler until that moment, so no transfer ends, and none is sent once
 * more, while bytes of it may still land. Loop thread; steps run from peer_step(), waiting is by
 * commands' ends and a millisecond's poll. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"

/* What is said of a lane's end must not be read as something else by transfers: that they were
 * cancelled, or too late. */
static int status_for_transfers(int status)
{
	switch (status) {
	case -ECANCELED:
	case -ETIMEDOUT:
	case -EPROTO:
	case -EPIPE:
	case -ECONNRESET:
		return -EIO;
	default:
		return status < 0 ? status : -EIO;
	}
}

enum down_kind { DOWN_WANTED, DOWN_BROKEN, DOWN_TO_RENEW };

/* A generation that was up for a while has shown that its transport works. */
static KVX_ON_LOOP void down_from_up(struct peer_lane *lane, enum down_kind kind)
{
	uint64_t now = peer_now(lane->peer->peers);
	bool stable = now - lane->up_ns >= LANE_STABLE_NS;

	lane->lane.n_resets++;
	lane->up_ns = 0;
	lane->retry_ns = 0;
	if (stable) {
		lane->n_broken = 0;
		lane->level_failed = 0;
	} else if (kind == DOWN_BROKEN) {
		lane->n_broken++;
		lane_count_failure(lane);
	}
}

static void down_log(struct peer_lane *lane, enum down_kind kind, const char *text)
{
	enum kvx_log_level level = kind == DOWN_TO_RENEW ? KVX_LOG_INFO : KVX_LOG_WARN;

	if (kind != DOWN_TO_RENEW)
		lane_note_error(lane, "%s", text);
	if (lane->phase == LANE_UP || lane->n_failed == 0)
		kvx_log_at(level, "peer %s: %s of tenant %s, %s, generation %llu down: %s",
			   lane->peer->name, lane_kind_name(lane), lane_tenant_name(lane),
			   lane->lane.ops->name, (unsigned long long)lane->wire_generation, text);
}

static KVX_ON_LOOP void lane_go_down(struct peer_lane *lane, int status, int vendor_code,
				     enum down_kind kind, const char *text)
{
	struct kvx_peer *peer = lane->peer;
	bool alone = peer->conn != NULL && !peer->peers->closing;

	if (lane->phase == LANE_IDLE || lane->phase >= LANE_STOPPING || lane->down_wanted)
		return;
	if (alone)
		down_log(lane, kind, text);
	lane->down_status = status_for_transfers(status);
	lane->down_to_renew = kind == DOWN_TO_RENEW;
	lane->down_vendor = vendor_code;
	snprintf(lane->down_text, sizeof(lane->down_text), "%s", text);
	if (lane->phase == LANE_UP) {
		down_from_up(lane, kind);
	} else if (alone) {
		lane->n_failed++;
		lane_count_failure(lane);
	}
	lane->lane.state = alone ? KVX_LANE_CONNECTING : KVX_LANE_DOWN; /* transfers may wait */
	lane->lane.generation++;
	lane->down_wanted = true;
	if (lane->phase != LANE_LISTENING)
		lane->phase = LANE_STOPPING; /* else when there is an ep to stop */
	peer_wake(peer);
}

void lane_down(struct peer_lane *lane, int status, const char *text)
{
	lane_go_down(lane, status, 0, DOWN_WANTED, text);
}

void lane_break(struct peer_lane *lane, int status, int vendor_code, const char *text)
{
	lane_go_down(lane, status, vendor_code, DOWN_BROKEN, text);
}

void lane_renew(struct peer_lane *lane)
{
	lane_go_down(lane, -EIO, 0, DOWN_TO_RENEW,
		     "it is made anew, as a better transport or another rail may work now");
}

/* steps */

static KVX_ON_LOOP void step_stopping(struct peer_lane *lane)
{
	struct kvx_peer *peer = lane->peer;
	struct kvx_xfers *xfers = kvx_node_xfers(peer->peers->conf.node);
	bool again = peer->conn != NULL && !peer->peers->closing;

	if (!lane->lease_stopped) {
		if (again)
			kvx_xfers_fail_lane(xfers, &lane->lane, lane->down_status,
					    lane->down_vendor, lane->down_text);
		else
			kvx_xfers_cancel_lane(xfers, &lane->lane, lane->down_status,
					      lane->down_text);
		remote_stale_keys(lane);
		legs_lease(lane, 0);
		lane->lease_stopped = true;
	}
	lane->held_ns = 0;
	kvx_sched_release(lane->lane.sched); /* failed before the fence: nothing of it lands */
	if (!legs_lease_is_zero(lane))
		return;
	/* Inbound is stopped: what waited for that goes on. */
	lane->phase = LANE_FENCING;
	lane->n_stops++;
	lane->stop_deadline_ns = peer_now(peer->peers) + peer->lease_ns;
	lane_tell_down(lane);
	legs_command(lane, KVX_CMD_FENCE);
}

/* Can nothing that we have sent land at the other side any more? */
static KVX_ON_LOOP bool down_is_safe(const struct peer_lane *lane)
{
	uint64_t now = peer_now(lane->peer->peers), settle_ns = legs_settle_ns(lane);

	if (lane->remote_down || kvx_sched_in_flight(lane->lane.sched) == 0)
		return true;
	if (lane->fenced_ns != 0 && settle_ns != UINT64_MAX && now - lane->fenced_ns >= settle_ns)
		return true;
	return lane->lost_safe_ns != 0 && now >= lane->lost_safe_ns;
}

/* The other side has to say that it has stopped, or be given up. Once it was lost its lease ends in
 * any case, as no connection after that extends it. */
static KVX_ON_LOOP void down_check_answer(struct peer_lane *lane)
{
	const struct kvx_peer *peer = lane->peer;

	if (peer->conn != NULL && lane->lost_safe_ns == 0 &&
	    peer_now(peer->peers) >= lane->stop_deadline_ns)
		conn_fail(peer->conn, -EHOSTDOWN, "it does not answer the tear-down of the lane");
}

static KVX_ON_LOOP void step_fencing(struct peer_lane *lane)
{
	bool all = true;

	if (legs_are_busy(lane))
		return;
	for (unsigned i = 0; i < lane->n_slots; i++)
		all = all && (lane->legs[i].fenced || !leg_is_live(&lane->legs[i]));
	if (!all && ++lane->n_fences < LANE_FENCES) {
		legs_command(lane, KVX_CMD_FENCE);
		return;
	}
	if (all)
		lane->fenced_ns = peer_now(lane->peer->peers);
	lane->phase = LANE_SETTLING;
}

static KVX_ON_LOOP void step_settling(struct peer_lane *lane)
{
	if (down_is_safe(lane))
		lane->phase = LANE_DRAINING;
	else if (lane->fenced_ns == 0 || legs_settle_ns(lane) == UINT64_MAX)
		down_check_answer(lane);
}

/* What could not be fenced comes back as its ep is closed. */
static KVX_ON_LOOP void step_draining(struct peer_lane *lane)
{
	kvx_sched_release(lane->lane.sched);
	if ((lane->fenced_ns != 0 && kvx_sched_in_flight(lane->lane.sched) > 0) ||
	    legs_are_busy(lane) || lane->n_keys_busy > 0)
		return;
	lane->phase = LANE_CLOSING;
	remote_free_keys(lane); /* workers take commands in order */
	legs_command(lane, KVX_CMD_EP_CLOSE);
}

static KVX_ON_LOOP void step_closing(struct peer_lane *lane)
{
	kvx_sched_release(lane->lane.sched);
	if (legs_are_busy(lane) || legs_count(lane) > 0 || lane->n_keys_busy > 0 ||
	    kvx_sched_in_flight(lane->lane.sched) > 0)
		return;
	legs_clear(lane);
	lane->phase = LANE_IDLE;
	lane->down_wanted = false;
}

void lane_step_down(struct peer_lane *lane)
{
	if (lane->phase == LANE_STOPPING)
		step_stopping(lane);
	if (lane->phase == LANE_FENCING)
		step_fencing(lane);
	if (lane->phase == LANE_SETTLING)
		step_settling(lane);
	if (lane->phase == LANE_DRAINING)
		step_draining(lane);
	if (lane->phase == LANE_CLOSING)
		step_closing(lane);
}

uint64_t lane_down_next_ns(const struct peer_lane *lane)
{
	switch (lane->phase) {
	case LANE_SETTLING:
	case LANE_DRAINING:
		return peer_now(lane->peer->peers) + LANE_POLL_NS;
	default:
		return UINT64_MAX; /* a command's end goes on */
	}
}
