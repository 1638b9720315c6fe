/* Frames of lanes: LANE (an offer or its answer), LANE_UP and LANE_DOWN, out and in. A generation
 * names its lane; what is said of one that is over is dropped and counted. Loop thread; frames come
 * from peer_frame.c. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <string.h>

/* out */

void lane_send(struct peer_lane *lane, bool answer)
{
	Kvxp__PeerLane msg = KVXP__PEER_LANE__INIT;
	Kvxp__PeerLeg legs[KVX_MAX_RAILS], *list[KVX_MAX_RAILS];

	for (unsigned i = 0; i < lane->n_slots; i++) {
		struct peer_leg *leg = &lane->legs[i];

		kvxp__peer_leg__init(&legs[i]);
		list[i] = &legs[i];
		if (!leg_is_live(leg) || (answer && lane->remote[i].addr_len == 0))
			continue;
		legs[i].address.data = leg->cmd_setup.bytes; /* of its LISTEN */
		legs[i].address.len = leg->cmd_setup.len;
		legs[i].rail = (char *)(uintptr_t)leg_rail_name(leg);
	}
	msg.transport = (char *)(uintptr_t)lane->lane.ops->name;
	msg.generation = lane->wire_generation;
	msg.legs = list;
	msg.n_legs = lane->n_slots;
	msg.answer = answer;
	msg.tenant = (char *)(uintptr_t)lane_tenant_name(lane);
	msg.any_memory = lane->any_memory;
	lane->announced = true;
	peer_send(lane->peer, KVXP__PEER_FRAME_TYPE__PEER_LANE, &msg);
}

void lane_send_up(struct peer_lane *lane)
{
	Kvxp__PeerLaneUp up = KVXP__PEER_LANE_UP__INIT;

	up.generation = lane->wire_generation;
	peer_send(lane->peer, KVXP__PEER_FRAME_TYPE__PEER_LANE_UP, &up);
}

void lane_tell_down(struct peer_lane *lane)
{
	struct kvx_peer *peer = lane->peer;
	Kvxp__PeerLaneDown msg = KVXP__PEER_LANE_DOWN__INIT;

	if (peer->conn == NULL || lane->told_down || lane->remote_dead || !lane->announced ||
	    !lane_inbound_is_stopped(lane))
		return;
	lane->told_down = true;
	msg.generation = lane->wire_generation;
	msg.status = (uint32_t)kvx_status_from_errno(lane->down_status);
	msg.text = lane->down_text;
	msg.renew = lane->down_to_renew;
	peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_LANE_DOWN, &msg);
}

/* in */

/* The lane that a generation names; NULL, counted: it is over, or not known here. */
static struct peer_lane *lane_by_generation(struct kvx_peer *peer, uint64_t generation)
{
	for (unsigned i = 0; i < peer->n_lanes; i++) {
		struct peer_lane *lane = peer->lanes[i];

		if (generation != 0 && lane->wire_generation == generation && !lane->remote_dead)
			return lane;
	}
	peer->n_stale++;
	return NULL;
}

/* One that both hellos want. */
static struct peer_lane *lane_by_name(const struct kvx_peer *peer, const Kvxp__PeerLane *msg)
{
	for (unsigned i = 0; i < peer->n_lanes; i++) {
		struct peer_lane *lane = peer->lanes[i];

		if (lane->wanted && lane->any_memory == msg->any_memory &&
		    strcmp(lane_tenant_name(lane), msg->tenant) == 0)
			return lane;
	}
	return NULL;
}

/* At least one leg with an address, none with one that is too long. */
static bool legs_are_sound(const Kvxp__PeerLane *msg)
{
	unsigned n = 0;

	if (msg->n_legs > KVX_MAX_RAILS)
		return false;
	for (size_t i = 0; i < msg->n_legs; i++) {
		if (msg->legs[i]->address.len > KVX_TRANSPORT_ADDR_MAX)
			return false;
		n += msg->legs[i]->address.len > 0;
	}
	return n > 0;
}

static void lane_take_legs(struct peer_lane *lane, const Kvxp__PeerLane *msg)
{
	lane->n_remote = (unsigned)msg->n_legs;
	for (unsigned i = 0; i < lane->n_remote; i++) {
		const Kvxp__PeerLeg *leg = msg->legs[i];
		struct peer_leg_addr *remote = &lane->remote[i];

		remote->addr_len = leg->address.len;
		if (remote->addr_len > 0)
			memcpy(remote->addr, leg->address.data, remote->addr_len);
		peer_text(remote->rail, sizeof(remote->rail), leg->rail);
	}
}

static const struct kvx_transport_ops *common_find(const struct peer_lane *lane, const char *name)
{
	for (unsigned i = 0; i < lane->n_common; i++)
		if (strcmp(lane->common[i]->name, name) == 0)
			return lane->common[i];
	return NULL;
}

/* A generation is of one lane only. */
static bool generation_is_taken(const struct kvx_peer *peer, const struct peer_lane *lane,
				uint64_t generation)
{
	for (unsigned i = 0; i < peer->n_lanes; i++) {
		const struct peer_lane *other = peer->lanes[i];

		if (other != lane && !other->remote_dead &&
		    (other->wire_generation == generation || other->last_offer == generation))
			return true;
	}
	return false;
}

static KVX_ON_LOOP int lane_on_offer(struct peer_lane *lane, const Kvxp__PeerLane *msg)
{
	struct kvx_peer *peer = lane->peer;

	if (peer_is_lower(peer) || generation_is_taken(peer, lane, msg->generation))
		return -EPROTO;
	if (msg->generation <= lane->last_offer) {
		peer->n_stale++;
		return 0;
	}
	lane->last_offer = msg->generation;
	lane->offer_generation = msg->generation;
	lane->offer_ops = common_find(lane, msg->transport);
	lane_take_legs(lane, msg);
	if (lane->phase != LANE_IDLE) {
		/* It offers a new one only after it has closed the old one. */
		lane->remote_down = true;
		lane_down(lane, -EIO, "the other side has reset the lane");
	}
	peer_wake(peer);
	return 0;
}

/* It answers legs that were offered, with what was offered. */
static bool answer_is_sound(const struct peer_lane *lane, const Kvxp__PeerLane *msg)
{
	if (strcmp(msg->transport, lane->lane.ops->name) != 0 || msg->n_legs > lane->n_slots)
		return false;
	for (size_t i = 0; i < msg->n_legs; i++)
		if (msg->legs[i]->address.len > 0 && !leg_is_live(&lane->legs[i]))
			return false;
	return true;
}

int lane_on_lane(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerLane *msg = (const Kvxp__PeerLane *)message;
	struct peer_lane *lane = lane_by_name(peer, msg), *named;

	if (lane == NULL && msg->any_memory) {
		peer->n_ignored++; /* a device that one of us has lost, or a GPU, between hellos */
		return 0;
	}
	if (lane == NULL || common_find(lane, msg->transport) == NULL || msg->generation == 0 ||
	    !legs_are_sound(msg))
		return -EPROTO;
	if (!msg->answer)
		return lane_on_offer(lane, msg);
	if (!peer_is_lower(peer))
		return -EPROTO;
	named = lane_by_generation(peer, msg->generation);
	if (named == NULL)
		return 0;
	if (named != lane)
		return -EPROTO;
	if (lane->phase != LANE_OFFERED)
		return 0; /* torn down since: LANE_DOWN is on its way to it */
	if (!answer_is_sound(lane, msg))
		return -EPROTO;
	lane_take_legs(lane, msg);
	lane_on_answer(lane);
	return 0;
}

int lane_on_up(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerLaneUp *msg = (const Kvxp__PeerLaneUp *)message;
	struct peer_lane *lane = lane_by_generation(peer, msg->generation);

	if (lane == NULL)
		return 0;
	lane->remote_up = true;
	lane_check_up(lane);
	return 0;
}

/* Of a generation that is not known here (any more, or not yet) nothing lands: who waits for that
 * is told. An answer to such an answer there is not. */
static KVX_ON_LOOP void unknown_on_down(struct kvx_peer *peer, const Kvxp__PeerLaneDown *down)
{
	Kvxp__PeerLaneDown msg = KVXP__PEER_LANE_DOWN__INIT;

	for (unsigned i = 0; i < peer->n_lanes; i++)
		if (peer->lanes[i]->offer_generation == down->generation)
			peer->lanes[i]->offer_generation = 0;
	if (down->status == (uint32_t)KVX_STATUS_STALE)
		return;
	msg.generation = down->generation;
	msg.status = (uint32_t)KVX_STATUS_STALE;
	msg.text = (char *)(uintptr_t) "this generation of the lane is over";
	peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_LANE_DOWN, &msg);
}

int lane_on_down(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerLaneDown *msg = (const Kvxp__PeerLaneDown *)message;
	struct peer_lane *lane = lane_by_generation(peer, msg->generation);
	char text[KVX_WHY_BYTES];
	int err = kvx_status_to_errno(msg->status);

	if (lane == NULL) {
		unknown_on_down(peer, msg);
		return 0;
	}
	lane->remote_down = true;
	peer_text(text, sizeof(text), msg->text);
	if (msg->renew) {
		lane->renew_now = true; /* with all tries */
		lane_pick_renew(lane);
		lane_down(lane, err < 0 ? err : -EIO, text);
	} else if (lane->phase != LANE_IDLE)
		lane_break(lane, err < 0 ? err : -EIO, 0, text);
	peer_wake(peer);
	return 0;
}
