/* Set-up of a generation of a lane. The side with the lower node id listens and offers, the other
 * listens and answers, both connect; the lane is up when all legs are and both sides have said so.
 * Loop thread; legs and frames of the other side call. When one begins is for peer_lane.c to say.
 */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"

void lane_count_failure(struct peer_lane *lane)
{
	struct kvx_peers *peers = lane->peer->peers;
	unsigned n = lane->n_failed + lane->n_broken;

	lane->retry_ns = peer_now(peers) + peer_backoff_ns(peers, n > 0 ? n - 1 : 0);
	if (peer_is_lower(lane->peer))
		lane_pick_failed(lane);
}

static KVX_ON_LOOP void lane_set_up(struct peer_lane *lane)
{
	const struct kvx_peer *peer = lane->peer;

	lane->phase = LANE_UP;
	lane->n_failed = 0;
	lane->up_ns = peer_now(peer->peers);
	lane->pause_ns = 0;
	legs_set_outlets(lane);
	lane_pick_up(lane);
	lane->lane.state = KVX_LANE_UP;
	kvx_info("peer %s: %s of tenant %s up, %s, %u legs, generation %llu", peer->name,
		 lane_kind_name(lane), lane_tenant_name(lane), lane->lane.ops->name,
		 lane->lane.n_outlets, (unsigned long long)lane->wire_generation);
	kvx_sched_pump(lane->lane.sched);
}

void lane_check_up(struct peer_lane *lane)
{
	if (lane->phase != LANE_WAIT_UP || !lane->remote_up)
		return;
	lane_set_up(lane);
	peer_wake(lane->peer);
}

void lane_on_connected(struct peer_lane *lane, struct peer_leg *leg, const struct kvx_cmd *cmd)
{
	const char *rail = leg_rail_name(leg);
	char text[KVX_WHY_BYTES];

	peer_wake(lane->peer);
	if (lane->phase != LANE_CONNECTING)
		return; /* it is being torn down */
	if (cmd->status < 0) {
		snprintf(text, sizeof(text), "%s%sconnect: %s", rail, rail[0] != '\0' ? ": " : "",
			 cmd->text != NULL ? cmd->text : strerror(-cmd->status));
		lane_pick_rail_failed(lane, leg->rail);
		lane_break(lane, cmd->status, cmd->vendor_code, text);
		return;
	}
	if (!legs_are_up(lane))
		return;
	lane->phase = LANE_WAIT_UP;
	lane_send_up(lane);
	lane_check_up(lane);
}

void lane_on_answer(struct peer_lane *lane)
{
	lane->phase = LANE_CONNECTING;
	legs_connect(lane);
	if (legs_count(lane) == 0)
		lane_down(lane, -EIO, "the other side answers to none of the legs offered");
}

/* No leg could be made: there is nothing to tear down. */
static KVX_ON_LOOP void lane_listen_failed(struct peer_lane *lane)
{
	if (!lane->down_wanted) {
		snprintf(lane->down_text, sizeof(lane->down_text), "%s", lane->last_error);
		lane->n_failed++;
		lane_count_failure(lane);
		if (lane->n_failed == 1)
			kvx_warn("peer %s: %s of tenant %s: %s", lane->peer->name,
				 lane_kind_name(lane), lane_tenant_name(lane), lane->last_error);
	}
	lane->phase = LANE_IDLE;
	lane->n_stops++;
	lane->down_wanted = false;
	legs_clear(lane);
	lane_tell_down(lane);
}

/* A LISTEN is back. A slot whose rail cannot listen is given another one where there is one, else
 * it is left out. */
void lane_on_listened(struct peer_lane *lane)
{
	const struct kvx_peer *peer = lane->peer;

	peer_wake(lane->peer);
	kvx_assert(lane->phase == LANE_LISTENING);
	if (legs_busy_in_setup(lane))
		return;
	if (!lane->down_wanted && lane_pick_rails(lane) > 0) {
		legs_listen(lane);
		return;
	}
	if (legs_count(lane) == 0) {
		lane_listen_failed(lane);
		return;
	}
	if (lane->down_wanted) {
		lane->phase = LANE_STOPPING;
		return;
	}
	lane->phase = peer_is_lower(peer) ? LANE_OFFERED : LANE_CONNECTING;
	legs_lease(lane, peer->lease_base_ns + peer->lease_ns);
	lane_send(lane, !peer_is_lower(peer));
	if (!peer_is_lower(peer))
		legs_connect(lane);
}

/* No rail of the transport can be used now: most often it waits for its port. */
void lane_note_unusable(struct peer_lane *lane, const struct kvx_transport_ops *ops)
{
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(lane->peer->peers->conf.node, &n);

	for (unsigned i = 0; i < n; i++) {
		const char *waits = kvx_node_rail_waits(&rails[i]);

		if (rails[i].ops != ops || waits == NULL)
			continue;
		lane_note_error(lane, "%s: %s", rails[i].rail.name, waits);
		return;
	}
	lane_note_error(lane, "no device of transport %s can be used", ops->name);
}

void lane_begin(struct peer_lane *lane, const struct kvx_transport_ops *ops)
{
	struct kvx_peer *peer = lane->peer;
	bool lower = peer_is_lower(peer);

	lane->lane.ops = ops;
	lane->announced = !lower;
	lane->wire_generation = lower ? ++peer->peers->next_generation : lane->offer_generation;
	lane->offer_generation = 0;
	lane->remote_up = lane->remote_down = false;
	lane->told_down = lane->down_wanted = lane->remote_dead = lane->lease_stopped = false;
	lane->rails_tried = 0;
	lane->fenced_ns = lane->lost_safe_ns = 0;
	lane->n_fences = 0;
	lane->phase = LANE_LISTENING;
	lane->setup_deadline_ns = peer_now(peer->peers) + PEER_HELLO_NS + 2 * peer->lease_ns;
	lane->n_slots = lower ? lane_count_slots(lane) : lane->n_remote;
	if (lane_pick_rails(lane) > 0) {
		legs_listen(lane);
		return;
	}
	lane_note_unusable(lane, ops);
	lane->down_status = -ENODEV;
	lane_listen_failed(lane);
	peer_wake(peer);
}
