/* All lanes of a peer, and what the node says of the rails that they use: a lost endpoint or
 * device, a port that is up again, a transfer that did not end in time. Loop thread; called by
 * peer.c and by the node's hooks. */
#include "xfer/peer_priv.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"

int lanes_create(struct kvx_peer *peer)
{
	int err = 0;

	for (unsigned i = 0; i < peer->peers->n_tenants && err == 0; i++)
		err = lane_create(peer, i, &peer->lanes[i]);
	return err;
}

void lanes_destroy(struct kvx_peer *peer)
{
	for (unsigned i = 0; i < peer->peers->n_tenants; i++)
		lane_destroy(peer->lanes[i]);
}

bool lanes_are_idle(const struct kvx_peer *peer)
{
	for (unsigned i = 0; i < peer->peers->n_tenants; i++)
		if (!lane_is_idle(peer->lanes[i]))
			return false;
	return true;
}

bool lanes_inbound_is_stopped(const struct kvx_peer *peer)
{
	for (unsigned i = 0; i < peer->peers->n_tenants; i++)
		if (!lane_inbound_is_stopped(peer->lanes[i]))
			return false;
	return true;
}

void lanes_down(struct kvx_peer *peer, int status, const char *text)
{
	for (unsigned i = 0; i < peer->peers->n_tenants; i++)
		lane_down(peer->lanes[i], status, text);
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
	for (unsigned i = 0; i < peer->peers->n_tenants; i++)
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
	for (unsigned i = 0; i < peer->peers->n_tenants; i++) {
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
