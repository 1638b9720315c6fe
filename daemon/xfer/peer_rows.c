/* Peers and their lanes as rows, for people and for counts. Loop thread; called by
 * kvx_peers_walk()'s and kvx_peers_walk_lanes()'s users in control. Changes nothing. */
#include "xfer/peer_priv.h"

#include <string.h>

static const char *peer_state(const struct kvx_peer *peer)
{
	if (peer->conn != NULL)
		return "up";
	if (peer->dial != NULL)
		return peer->dial->state == CONN_HELLO ? "hello" : "connecting";
	return "lost";
}

/* Lanes that there could be: others have never done anything. */
static bool lane_is_shown(const struct peer_lane *lane)
{
	return lane->wanted || lane->wire_generation != 0;
}

static const char *lane_transport(const struct peer_lane *lane)
{
	return lane->wire_generation != 0 && lane->lane.ops != NULL ? lane->lane.ops->name : "";
}

static void row_add_lane(struct kvx_peer_row *row, const struct peer_lane *lane)
{
	row->n_lanes += lane_is_shown(lane);
	row->n_lanes_up += lane->lane.state == KVX_LANE_UP;
	row->lane_bytes += lane->lane.n_bytes;
	row->lane_ops += lane->lane.n_ops;
	row->lane_batches += lane->lane.n_batches;
	row->lane_resets += lane->lane.n_resets;
}

void kvx_peers_walk(const struct kvx_peers *peers,
		    void (*cb)(void *arg, const struct kvx_peer_row *row), void *arg)
{
	const struct kvx_peer *peer;

	for (peer = peers->table; peer != NULL; peer = peer->hh.next) {
		const struct peer_lane *first = peer->lanes[0];
		struct kvx_peer_row row = {
		    .addr = peer->addr,
		    .state = peer_state(peer),
		    .epoch = peer->epoch,
		    .up_ns = peer->up_ns,
		    .rtt_ns = peer->rtt_ns,
		    .lane_transport = lane_transport(first),
		    .lane_state = lane_state_name(first),
		    .lane_generation = first->wire_generation,
		    .n_targets = remote_count(peer),
		    .n_inbound = inbound_count(peer),
		    .n_stale_dropped = peer->n_stale,
		    .n_connects = peer->n_connects,
		    .n_lost = peer->n_lost,
		    .last_error = peer->last_error,
		};

		memcpy(row.node_id, peer->name, sizeof(row.node_id));
		for (unsigned i = 0; i < peer->n_lanes; i++)
			row_add_lane(&row, peer->lanes[i]);
		cb(arg, &row);
	}
}

static const struct kvx_outlet *leg_outlet(const struct peer_leg *leg)
{
	const struct kvx_lane *lane = &leg->lane->lane;

	for (unsigned i = 0; i < lane->n_outlets; i++)
		if (lane->outlets[i].ep == leg->ep)
			return &lane->outlets[i];
	return NULL;
}

static void lane_row_add_leg(struct kvx_lane_row *row, const struct peer_leg *leg,
			     const struct peer_leg_addr *remote)
{
	const struct kvx_outlet *outlet = leg_outlet(leg);
	struct kvx_leg_row *out = &row->legs[row->n_legs++];

	*out = (struct kvx_leg_row){.rail = leg_rail_name(leg), .remote_rail = remote->rail};
	row->queue_batches = kvx_worker_limits(leg->rail->worker)->queue_batches;
	if (outlet == NULL)
		return;
	out->batches_in_flight = outlet->batches_in_flight;
	out->bytes_in_flight = outlet->bytes_in_flight;
}

static void lane_row(const struct peer_lane *lane, struct kvx_lane_row *row)
{
	*row = (struct kvx_lane_row){
	    .peer = lane->peer->name,
	    .tenant = lane_tenant_name(lane),
	    .any_memory = lane->any_memory,
	    .transport = lane_transport(lane),
	    .state = lane_state_name(lane),
	    .generation = lane->wire_generation,
	    .up_ns = lane->up_ns,
	    .n_batches = lane->lane.n_batches,
	    .n_ops = lane->lane.n_ops,
	    .n_bytes = lane->lane.n_bytes,
	    .n_errors = lane->lane.n_errors,
	    .n_resets = lane->lane.n_resets,
	    .n_failed = lane->n_failed,
	    .n_fallback = lane->n_fallback,
	    .last_error = lane->last_error,
	};
	for (unsigned i = 0; i < lane->n_slots; i++)
		if (leg_is_live(&lane->legs[i]))
			lane_row_add_leg(row, &lane->legs[i], &lane->remote[i]);
}

void kvx_peers_walk_lanes(const struct kvx_peers *peers,
			  void (*cb)(void *arg, const struct kvx_lane_row *row), void *arg)
{
	const struct kvx_peer *peer;
	struct kvx_lane_row row;

	for (peer = peers->table; peer != NULL; peer = peer->hh.next) {
		for (unsigned i = 0; i < peer->n_lanes; i++) {
			if (!lane_is_shown(peer->lanes[i]))
				continue;
			lane_row(peer->lanes[i], &row);
			cb(arg, &row);
		}
	}
}
