/* The lane to a peer: set-up of a generation, leases. The side with the lower node id listens and
 * offers, the other listens and answers, both connect; the lane is up when both have said so. Loop
 * thread; the endpoints live on the node's peer worker and are reached by commands only. Tear-down
 * is in peer_lane_down.c. Retries with back-off for as long as the connection is there. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"

static struct kvx_peer *peer_of_cmd(struct kvx_cmd *cmd, size_t offset)
{
	struct kvx_peer *peer = (struct kvx_peer *)((char *)cmd - offset);

	KVX_CHECK_MAGIC(peer, PEER_MAGIC);
	return peer;
}

int lane_init(struct kvx_peer *peer)
{
	struct peer_lane *lane = &peer->lane;
	struct kvx_peers *peers = peer->peers;

	lane->lane.state = KVX_LANE_DOWN;
	lane->lane.generation = 1;
	if (peers->worker == NULL)
		return 0;
	lane->lane.ops = kvx_worker_ops(peers->worker);
	return kvx_sched_create(&lane->lane, kvx_node_scheds(peers->conf.node), &lane->lane.sched);
}

void lane_fini(struct kvx_peer *peer)
{
	if (peer->lane.lane.sched != NULL)
		kvx_sched_destroy(peer->lane.lane.sched);
}

bool lane_is_idle(const struct kvx_peer *peer)
{
	return peer->lane.phase == LANE_IDLE && !peer->lane.lease_busy && !peer->lane.setup_busy;
}

bool lane_inbound_is_stopped(const struct kvx_peer *peer)
{
	return peer->lane.phase == LANE_IDLE || peer->lane.phase > LANE_STOPPING;
}

const char *lane_state_name(const struct kvx_peer *peer)
{
	switch (peer->lane.lane.state) {
	case KVX_LANE_UP:
		return "up";
	case KVX_LANE_CONNECTING:
		return "connecting";
	case KVX_LANE_CLOSING:
		return "closing";
	case KVX_LANE_DOWN:
	default:
		return "down";
	}
}

/* leases */

static KVX_ON_LOOP void lease_on_done(struct kvx_cmd *cmd)
{
	struct kvx_peer *peer = peer_of_cmd(cmd, offsetof(struct kvx_peer, lane.cmd_lease));
	struct peer_lane *lane = &peer->lane;

	lane->lease_busy = false;
	if (lane->lease_sent_ns == 0)
		lane->lease_zeroed = true;
	if (lane->lease_ns != lane->lease_sent_ns && lane->ep != NULL)
		lane_lease(peer, lane->lease_ns);
	peer_wake(peer);
}

/* One command at a time, the newest value wins; 0 stops all inbound. */
void lane_lease(struct kvx_peer *peer, uint64_t lease_ns)
{
	struct peer_lane *lane = &peer->lane;

	lane->lease_ns = lease_ns;
	if (lane->lease_busy)
		return;
	lane->lease_busy = true;
	lane->lease_zeroed = false;
	lane->lease_sent_ns = lease_ns;
	lane->cmd_lease = (struct kvx_cmd){
	    .work.kind = KVX_CMD_LEASE,
	    .done = lease_on_done,
	    .ep = lane->ep,
	    .lease_ns = lease_ns,
	};
	kvx_node_submit(peer->peers->conf.node, peer->peers->worker, &lane->cmd_lease);
}

void lane_extend(struct kvx_peer *peer)
{
	const struct peer_lane *lane = &peer->lane;

	if (lane->ep == NULL || lane->phase >= LANE_STOPPING || peer->lease_base_ns == 0)
		return;
	lane_lease(peer, peer->lease_base_ns + peer->lease_ns);
}

/* set-up */

static KVX_ON_LOOP void lane_send(struct kvx_peer *peer, const void *addr, size_t len, bool answer)
{
	Kvxp__PeerLane msg = KVXP__PEER_LANE__INIT;

	msg.transport = (char *)peer->lane.lane.ops->name;
	msg.generation = peer->lane.wire_generation;
	msg.address.data = (uint8_t *)addr;
	msg.address.len = len;
	msg.answer = answer;
	peer->lane.announced = true;
	peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_LANE, &msg);
}

static KVX_ON_LOOP void lane_set_up(struct kvx_peer *peer)
{
	struct peer_lane *lane = &peer->lane;
	struct kvx_outlet *outlet = &lane->lane.outlets[0];

	lane->phase = LANE_UP;
	lane->n_failed = 0;
	outlet->worker = peer->peers->worker;
	outlet->ep = lane->ep;
	outlet->dom_index = peer->peers->dom;
	lane->lane.n_outlets = 1;
	lane->lane.state = KVX_LANE_UP;
	kvx_info("peer %s: lane up, %s, generation %llu", peer->name, lane->lane.ops->name,
		 (unsigned long long)lane->wire_generation);
	kvx_sched_pump(lane->lane.sched);
}

static KVX_ON_LOOP void lane_check_up(struct kvx_peer *peer)
{
	struct peer_lane *lane = &peer->lane;

	if (lane->phase != LANE_WAIT_UP || !lane->remote_up)
		return;
	lane_set_up(peer);
	peer_wake(peer);
}

static KVX_ON_LOOP void connect_on_done(struct kvx_cmd *cmd)
{
	struct kvx_peer *peer = peer_of_cmd(cmd, offsetof(struct kvx_peer, lane.cmd_setup));
	struct peer_lane *lane = &peer->lane;
	Kvxp__PeerLaneUp up = KVXP__PEER_LANE_UP__INIT;
	char text[KVX_WHY_BYTES];

	lane->setup_busy = false;
	peer_wake(peer);
	if (lane->phase != LANE_CONNECTING)
		return; /* it is being torn down */
	if (cmd->status < 0) {
		snprintf(text, sizeof(text), "lane connect: %s",
			 cmd->text != NULL ? cmd->text : strerror(-cmd->status));
		lane_down(peer, cmd->status, text);
		return;
	}
	lane->own_up = true;
	lane->phase = LANE_WAIT_UP;
	up.generation = lane->wire_generation;
	peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_LANE_UP, &up);
	lane_check_up(peer);
}

static KVX_ON_LOOP void lane_submit_setup(struct kvx_peer *peer, enum kvx_work_kind kind,
					  kvx_cmd_done_cb done)
{
	struct peer_lane *lane = &peer->lane;

	lane->cmd_setup = (struct kvx_cmd){
	    .work.kind = kind,
	    .done = done,
	    .ep = lane->ep,
	};
	if (kind == KVX_CMD_CONNECT) {
		memcpy(lane->cmd_setup.bytes, lane->addr, lane->addr_len);
		lane->cmd_setup.len = lane->addr_len;
	}
	lane->setup_busy = true;
	kvx_node_submit(peer->peers->conf.node, peer->peers->worker, &lane->cmd_setup);
}

static KVX_ON_LOOP void listen_failed(struct kvx_peer *peer, const struct kvx_cmd *cmd)
{
	struct peer_lane *lane = &peer->lane;

	peer_note_error(peer, "lane listen: %s",
			cmd->text != NULL ? cmd->text : strerror(-cmd->status));
	kvx_warn("peer %s: %s", peer->name, peer->last_error);
	lane->phase = LANE_IDLE;
	lane->lane.state = peer->conn != NULL ? KVX_LANE_CONNECTING : KVX_LANE_DOWN;
	lane->down_wanted = false;
	lane->down_status = cmd->status;
	snprintf(lane->down_text, sizeof(lane->down_text), "%s", peer->last_error);
	lane->retry_ns = peer_now(peer->peers) + peer_backoff_ns(peer->peers, lane->n_failed++);
	lane_tell_down(peer);
}

static KVX_ON_LOOP void listen_on_done(struct kvx_cmd *cmd)
{
	struct kvx_peer *peer = peer_of_cmd(cmd, offsetof(struct kvx_peer, lane.cmd_setup));
	struct peer_lane *lane = &peer->lane;
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t len = cmd->len;

	lane->setup_busy = false;
	peer_wake(peer);
	if (cmd->status < 0) {
		listen_failed(peer, cmd);
		return;
	}
	kvx_assert(len <= sizeof(addr));
	memcpy(addr, cmd->bytes, len);
	lane->ep = cmd->ep;
	if (lane->down_wanted) {
		lane->phase = LANE_STOPPING;
		return;
	}
	lane_lease(peer, peer->lease_base_ns == 0 ? 0 : peer->lease_base_ns + peer->lease_ns);
	if (peer_is_lower(peer)) {
		lane->phase = LANE_OFFERED;
		lane_send(peer, addr, len, false);
		return;
	}
	lane->phase = LANE_CONNECTING;
	lane_submit_setup(peer, KVX_CMD_CONNECT, connect_on_done);
	lane_send(peer, addr, len, true);
}

/* A new generation; the higher node id waits for an offer. */
static KVX_ON_LOOP void lane_begin(struct kvx_peer *peer)
{
	struct peer_lane *lane = &peer->lane;

	if (!peer_is_lower(peer) && lane->offer_generation == 0)
		return;
	lane->announced = !peer_is_lower(peer);
	lane->wire_generation =
	    peer_is_lower(peer) ? ++peer->peers->next_generation : lane->offer_generation;
	lane->offer_generation = 0;
	lane->own_up = lane->remote_up = lane->remote_down = false;
	lane->told_down = lane->down_wanted = lane->remote_dead = lane->lease_zeroed = false;
	lane->phase = LANE_LISTENING;
	lane->lane.state = KVX_LANE_CONNECTING;
	lane->setup_deadline_ns = peer_now(peer->peers) + PEER_HELLO_NS + 2 * peer->lease_ns;
	lane_submit_setup(peer, KVX_CMD_LISTEN, listen_on_done);
}

void lane_on_conn(struct kvx_peer *peer, bool new_epoch)
{
	struct peer_lane *lane = &peer->lane;

	lane->told_down = false;
	lane->retry_ns = 0;
	lane->n_failed = 0;
	if (new_epoch) {
		lane->last_offer = 0;
		lane->offer_generation = 0;
		lane->remote_dead = true;
	} else {
		lane_tell_down(peer);
		if (lane->phase == LANE_STOPPED) /* it is asked only now */
			lane->stop_deadline_ns = peer_now(peer->peers) + peer->lease_ns;
	}
	if (!peer->has_transport || peer->peers->worker == NULL)
		remote_fail_waiting(peer, -ENETUNREACH,
				    "the two nodes have no transport in common");
}

/* frames */

static bool generation_is_old(struct kvx_peer *peer, uint64_t generation)
{
	if (generation == peer->lane.wire_generation && !peer->lane.remote_dead)
		return false;
	peer->n_stale++;
	return true;
}

static KVX_ON_LOOP int lane_on_offer(struct kvx_peer *peer, const Kvxp__PeerLane *msg)
{
	struct peer_lane *lane = &peer->lane;

	if (peer_is_lower(peer))
		return -EPROTO;
	if (msg->generation <= lane->last_offer) {
		peer->n_stale++;
		return 0;
	}
	lane->last_offer = msg->generation;
	lane->offer_generation = msg->generation;
	memcpy(lane->addr, msg->address.data, msg->address.len);
	lane->addr_len = msg->address.len;
	if (lane->phase != LANE_IDLE) {
		/* It offers a new one only after it has closed the old one. */
		lane->remote_down = true;
		lane_down(peer, -EIO, "the other side has reset the lane");
	}
	peer_wake(peer);
	return 0;
}

int lane_on_lane(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerLane *msg = (const Kvxp__PeerLane *)message;
	struct peer_lane *lane = &peer->lane;

	if (peer->peers->worker == NULL || !peer->has_transport)
		return -EPROTO;
	if (strcmp(msg->transport, lane->lane.ops->name) != 0 || msg->generation == 0 ||
	    msg->address.len == 0 || msg->address.len > KVX_TRANSPORT_ADDR_MAX)
		return -EPROTO;
	if (!msg->answer)
		return lane_on_offer(peer, msg);
	if (!peer_is_lower(peer))
		return -EPROTO;
	if (generation_is_old(peer, msg->generation))
		return 0;
	if (lane->phase != LANE_OFFERED)
		return 0; /* torn down since: LANE_DOWN is on its way to it */
	memcpy(lane->addr, msg->address.data, msg->address.len);
	lane->addr_len = msg->address.len;
	lane->phase = LANE_CONNECTING;
	lane_submit_setup(peer, KVX_CMD_CONNECT, connect_on_done);
	return 0;
}

int lane_on_up(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerLaneUp *msg = (const Kvxp__PeerLaneUp *)message;

	if (generation_is_old(peer, msg->generation))
		return 0;
	peer->lane.remote_up = true;
	lane_check_up(peer);
	return 0;
}

int lane_on_down(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerLaneDown *msg = (const Kvxp__PeerLaneDown *)message;
	struct peer_lane *lane = &peer->lane;
	char text[KVX_WHY_BYTES];
	int err = kvx_status_to_errno(msg->status);

	if (generation_is_old(peer, msg->generation))
		return 0;
	lane->remote_down = true;
	peer_text(text, sizeof(text), msg->text);
	if (lane->phase != LANE_IDLE)
		lane_down(peer, err < 0 ? err : -EIO, text);
	peer_wake(peer);
	return 0;
}

void lane_step(struct kvx_peer *peer)
{
	struct peer_lane *lane = &peer->lane;
	const struct kvx_peers *peers = peer->peers;
	uint64_t now = peer_now(peers);

	if (lane->phase >= LANE_OFFERED && lane->phase < LANE_UP && now >= lane->setup_deadline_ns)
		lane_down(peer, -ETIMEDOUT, "lane set-up timed out");
	if (lane->phase >= LANE_STOPPING)
		lane_step_down(peer);
	if (lane->phase != LANE_IDLE)
		return;
	if (peer->conn == NULL || peer->conn->fail_status != 0 || peers->closing ||
	    peers->worker == NULL || peers->device_lost || !peer->has_transport) {
		lane->lane.state = KVX_LANE_DOWN;
		return;
	}
	if (lane_is_idle(peer) && now >= lane->retry_ns)
		lane_begin(peer);
}

uint64_t lane_next_ns(const struct kvx_peer *peer)
{
	const struct peer_lane *lane = &peer->lane;
	uint64_t now = peer_now(peer->peers);

	switch (lane->phase) {
	case LANE_IDLE: /* past its time it waits for something else than time */
		return peer->conn != NULL && lane->retry_ns > now ? lane->retry_ns : UINT64_MAX;
	case LANE_OFFERED:
	case LANE_CONNECTING:
	case LANE_WAIT_UP:
		return lane->setup_deadline_ns;
	case LANE_STOPPED:
	case LANE_DRAINING:
		return now + PEER_POLL_NS;
	default:
		return UINT64_MAX; /* a command's end goes on */
	}
}
