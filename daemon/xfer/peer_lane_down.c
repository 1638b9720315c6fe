/* Tear-down of a lane, in the order that keeps the guarantees: stop inbound (LEASE 0), tell the
 * other side; once it has stopped, too, or its lease is over for certain, or nothing of ours is in
 * flight, fence (what is in flight comes back), free the keys, close the ep. So no transfer is
 * reported as ended while bytes of it may still land at the other side. Loop thread; steps run from
 * peer_step(), waiting is by commands' ends and a millisecond's poll. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"

static struct kvx_peer *peer_of_down(struct kvx_cmd *cmd)
{
	struct kvx_peer *peer =
	    (struct kvx_peer *)((char *)cmd - offsetof(struct kvx_peer, lane.cmd_down));

	KVX_CHECK_MAGIC(peer, PEER_MAGIC);
	return peer;
}

/* From any phase but idle; a second call adds nothing. Acts in peer_step(). */
void lane_down(struct kvx_peer *peer, int status, const char *text)
{
	struct peer_lane *lane = &peer->lane;

	if (lane->phase == LANE_IDLE || lane->phase >= LANE_STOPPING || lane->down_wanted)
		return;
	peer_note_error(peer, "lane: %s", text);
	if (lane->phase == LANE_UP && peer->conn != NULL && !peer->peers->closing)
		kvx_warn("peer %s: lane generation %llu down: %s", peer->name,
			 (unsigned long long)lane->wire_generation, text);
	lane->down_status = status;
	snprintf(lane->down_text, sizeof(lane->down_text), "%s", text);
	if (lane->phase == LANE_UP) {
		lane->lane.n_resets++;
		lane->retry_ns = 0;
	} else {
		lane->retry_ns =
		    peer_now(peer->peers) + peer_backoff_ns(peer->peers, lane->n_failed++);
	}
	lane->lane.state = KVX_LANE_CLOSING;
	lane->lane.generation++;
	lane->down_wanted = true;
	if (lane->phase != LANE_LISTENING)
		lane->phase = LANE_STOPPING; /* else when there is an ep to stop */
	peer_wake(peer);
}

/* "Nothing of wire_generation lands here any more", once per connection. */
void lane_tell_down(struct kvx_peer *peer)
{
	struct peer_lane *lane = &peer->lane;
	Kvxp__PeerLaneDown msg = KVXP__PEER_LANE_DOWN__INIT;

	if (peer->conn == NULL || lane->told_down || lane->remote_dead || !lane->announced ||
	    !lane_inbound_is_stopped(peer))
		return;
	lane->told_down = true;
	msg.generation = lane->wire_generation;
	msg.status = (uint32_t)kvx_status_from_errno(lane->down_status);
	msg.text = lane->down_text;
	peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_LANE_DOWN, &msg);
}

static KVX_ON_LOOP void down_submit(struct kvx_peer *peer, enum kvx_work_kind kind,
				    kvx_cmd_done_cb done)
{
	struct peer_lane *lane = &peer->lane;

	lane->cmd_down = (struct kvx_cmd){.work.kind = kind, .done = done, .ep = lane->ep};
	kvx_node_submit(peer->peers->conf.node, peer->peers->worker, &lane->cmd_down);
}

static KVX_ON_LOOP void close_on_done(struct kvx_cmd *cmd)
{
	struct kvx_peer *peer = peer_of_down(cmd);
	struct peer_lane *lane = &peer->lane;

	lane->ep = NULL;
	lane->lane.n_outlets = 0;
	memset(&lane->lane.outlets[0], 0, sizeof(lane->lane.outlets[0]));
	lane->phase = LANE_IDLE;
	peer_wake(peer);
}

static KVX_ON_LOOP void fence_on_done(struct kvx_cmd *cmd)
{
	struct kvx_peer *peer = peer_of_down(cmd);

	peer->lane.phase = LANE_DRAINING;
	peer_wake(peer);
}

/* Inbound is stopped: what waited for that goes on. */
static KVX_ON_LOOP void down_stopped(struct kvx_peer *peer)
{
	struct peer_lane *lane = &peer->lane;

	lane->phase = LANE_STOPPED;
	lane->stop_deadline_ns = peer_now(peer->peers) + peer->lease_ns;
	lane_tell_down(peer);
}

/* Can anything that we have sent still land at the other side? */
static KVX_ON_LOOP bool down_is_safe(struct kvx_peer *peer)
{
	const struct peer_lane *lane = &peer->lane;
	uint64_t now = peer_now(peer->peers);

	if (lane->remote_down || kvx_sched_in_flight(lane->lane.sched) == 0)
		return true;
	if (peer->conn == NULL || lane->remote_dead)
		return now >= peer->remote_safe_ns;
	if (now >= lane->stop_deadline_ns)
		conn_fail(peer->conn, -EHOSTDOWN, "it does not answer the tear-down of the lane");
	return false;
}

static KVX_ON_LOOP void step_stopping(struct kvx_peer *peer)
{
	struct peer_lane *lane = &peer->lane;
	bool again = peer->conn != NULL && !peer->peers->closing;

	if (lane->lane.state == KVX_LANE_CLOSING) {
		kvx_xfers_cancel_lane(kvx_node_xfers(peer->peers->conf.node), &lane->lane,
				      lane->down_status, lane->down_text);
		remote_stale_keys(peer);
		/* From now on transfers may wait for the next generation. */
		lane->lane.state = again ? KVX_LANE_CONNECTING : KVX_LANE_DOWN;
	}
	if (lane->lease_zeroed)
		down_stopped(peer);
	else if (lane->lease_ns != 0 || !lane->lease_busy)
		lane_lease(peer, 0);
}

void lane_step_down(struct kvx_peer *peer)
{
	struct peer_lane *lane = &peer->lane;

	if (lane->phase == LANE_STOPPING)
		step_stopping(peer);
	if (lane->phase == LANE_STOPPED && down_is_safe(peer)) {
		lane->phase = LANE_FENCING;
		down_submit(peer, KVX_CMD_FENCE, fence_on_done);
	}
	if (lane->phase == LANE_DRAINING && kvx_sched_in_flight(lane->lane.sched) == 0 &&
	    !lane->setup_busy && !lane->lease_busy && lane->n_keys_busy == 0) {
		lane->phase = LANE_CLOSING;
		remote_free_keys(peer); /* the worker takes commands in order */
		down_submit(peer, KVX_CMD_EP_CLOSE, close_on_done);
	}
}
