/* All lanes of a peer, and what the node says of the rails that they use: a lost endpoint or
 * device, a port that is up again, a transfer that did not end in time; and the wait for the end of
 * inbound by both lanes of a tenant. Loop thread; called by peer.c and by the node's hooks. */
#include "xfer/peer_priv.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"

/* Is there ever to be a bounce lane? Only where there is a transport for it, and one that may have
 * to do without it. */
static bool lanes_may_bounce(const struct kvx_node *node)
{
	const struct kvx_transport_ops *const *ops = kvx_node_peer_transports(node);
	unsigned n = 0, n_any = 0;

	for (; *ops != NULL; ops++) {
		n++;
		n_any += ((*ops)->caps & KVX_CAP_ANY_MEMORY) != 0;
	}
	return n_any > 0 && n_any < n;
}

int lanes_create(struct kvx_peer *peer)
{
	const struct kvx_peers *peers = peer->peers;
	int err = 0;

	peer->n_lanes = peers->n_tenants * (lanes_may_bounce(peers->conf.node) ? 2 : 1);
	for (unsigned i = 0; i < peer->n_lanes && err == 0; i++)
		err = lane_create(peer, i, &peer->lanes[i]);
	return err;
}

void lanes_destroy(struct kvx_peer *peer)
{
	for (unsigned i = 0; i < peer->n_lanes; i++)
		lane_destroy(peer->lanes[i]);
}

bool lanes_are_idle(const struct kvx_peer *peer)
{
	for (unsigned i = 0; i < peer->n_lanes; i++)
		if (!lane_is_idle(peer->lanes[i]))
			return false;
	return true;
}

bool lanes_inbound_is_stopped(const struct kvx_peer *peer)
{
	for (unsigned i = 0; i < peer->n_lanes; i++)
		if (!lane_inbound_is_stopped(peer->lanes[i]))
			return false;
	return true;
}

void lanes_down(struct kvx_peer *peer, int status, const char *text)
{
	for (unsigned i = 0; i < peer->n_lanes; i++)
		lane_down(peer->lanes[i], status, text);
}

/* both lanes of a tenant */

struct peer_lane *lane_sibling(const struct peer_lane *lane)
{
	const struct kvx_peer *peer = lane->peer;
	unsigned n = peer->peers->n_tenants;

	if (lane->any_memory)
		return peer->lanes[lane->index - n];
	return lane->index + n < peer->n_lanes ? peer->lanes[lane->index + n] : NULL;
}

struct peer_lane *lane_bounce(const struct peer_lane *lane)
{
	struct peer_lane *sibling = lane->any_memory ? NULL : lane_sibling(lane);

	return sibling != NULL && sibling->wanted ? sibling : NULL;
}

static const struct peer_lane *lane_of_pair(const struct peer_lane *lane, unsigned any_memory)
{
	return lane->any_memory == (any_memory != 0) ? lane : lane_sibling(lane);
}

void lanes_fence_begin(const struct peer_lane *lane, unsigned lanes, struct lane_fence *fence)
{
	fence->open = 0;
	for (unsigned i = 0; i < 2; i++) {
		const struct peer_lane *one = lane_of_pair(lane, i);

		if (!(lanes & 1u << i) || one == NULL || lane_inbound_is_stopped(one))
			continue;
		fence->open |= 1u << i;
		fence->stops[i] = one->n_stops;
	}
}

bool lanes_fence_is_over(const struct peer_lane *lane, struct lane_fence *fence)
{
	for (unsigned i = 0; i < 2; i++)
		if (fence->open & 1u << i &&
		    lane_has_stopped_since(lane_of_pair(lane, i), fence->stops[i]))
			fence->open &= ~(1u << i);
	return fence->open == 0;
}

static KVX_ON_LOOP void lane_lose(struct peer_lane *lane, int status, const char *text,
				  uint64_t safe_ns)
{
	lane_down(lane, status, text);
	if (lane->lost_safe_ns == 0 || safe_ns < lane->lost_safe_ns)
		lane->lost_safe_ns = safe_ns;
	kvx_xfers_cancel_lane(kvx_node_xfers(lane->peer->peers->conf.node), &lane->lane, status,
			      text);
	lane->lane.state = KVX_LANE_DOWN;
}

void lanes_lose(struct kvx_peer *peer, int status, const char *text, uint64_t safe_ns)
{
	for (unsigned i = 0; i < peer->n_lanes; i++)
		lane_lose(peer->lanes[i], status, text, safe_ns);
}

/* the node's hooks */

void kvx_peers_lane_reset(void *peers, struct kvx_lane *lane, const char *cause)
{
	lane_down(lane_of(lane), -EIO, cause);
}

bool peers_have_transport(const struct kvx_peers *peers)
{
	const struct kvx_transport_ops *const *ops = kvx_node_peer_transports(peers->conf.node);

	for (; *ops != NULL; ops++)
		if (transport_has_rail(peers->conf.node, *ops))
			return true;
	return false;
}

static KVX_ON_LOOP void lane_note(struct peer_lane *lane, unsigned dom_index,
				  const struct kvx_tevent *event)
{
	const struct peer_leg *leg = legs_find(lane, dom_index);
	const char *cause = event->status < 0 ? strerror(-event->status) : "the endpoint is lost";
	const char *what = event->text != NULL ? event->text : cause;
	const char *rail = leg != NULL ? leg_rail_name(leg) : "";
	char text[KVX_WHY_BYTES];

	if (leg == NULL || (event->kind == KVX_TEV_EP_DOWN && leg->ep != event->ep))
		return;
	snprintf(text, sizeof(text), "%s%s%s", rail, rail[0] != '\0' ? ": " : "", what);
	lane_break(lane, event->status, event->vendor_code, text);
}

/* The lanes that use a rail of which something is said. */
static KVX_ON_LOOP void peer_on_note(struct kvx_peer *peer, const struct kvx_node_rail *rail,
				     const struct kvx_tevent *event)
{
	for (unsigned i = 0; i < peer->n_lanes; i++) {
		if (event->kind == KVX_TEV_DEVICE_UP)
			lane_on_device_up(peer->lanes[i], rail);
		else
			lane_note(peer->lanes[i], rail->dom_index, event);
	}
}

void kvx_peers_note(void *arg, unsigned dom_index, const struct kvx_tevent *event)
{
	struct kvx_peers *peers = arg;
	struct kvx_peer *peer, *tmp;
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(peers->conf.node, &n);

	if (event->kind != KVX_TEV_EP_DOWN && event->kind != KVX_TEV_DEVICE_LOST &&
	    event->kind != KVX_TEV_DEVICE_UP)
		return;
	for (unsigned i = 0; i < n; i++) {
		if (rails[i].worker == NULL || rails[i].dom_index != dom_index)
			continue;
		HASH_ITER (hh, peers->table, peer, tmp)
			peer_on_note(peer, &rails[i], event);
	}
	if (event->kind == KVX_TEV_DEVICE_LOST && !peers_have_transport(peers))
		kvx_error("peers: no device is left to reach other nodes by; restart the daemon");
}
