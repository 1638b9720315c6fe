/* Queries that list things: clients, regions, transfers, peers, lanes. Loop thread; reads only. */

#include <string.h>

#include "base/clock.h"
#include "base/idmap.h"
#include "control/query.h"
#include "mem/gpu.h"

static const char *tenant_name(const struct kvx_query *query, uint32_t tenant)
{
	const struct kvx_control *control = query->control;

	return tenant < control->n_tenants ? control->tenants[tenant].name : "";
}

static KVX_ON_LOOP void client_fill(const struct kvx_query *query, const struct kvx_client *client,
				    struct json_object *row)
{
	kvx_json_id(row, "id", client->id);
	kvx_json_text(row, "name", client->name);
	kvx_json_u64(row, "pid", (uint64_t)client->pid);
	kvx_json_u64(row, "uid", client->uid);
	kvx_json_text(row, "tenant", tenant_name(query, client->tenant));
	kvx_json_text(row, "library", client->library);
	kvx_json_text(row, "state", kvx_sm_name(&client->sm));
	kvx_json_u64(row, "connected_ns", client->connected_ns);
	kvx_json_u64(row, "regions", client->n_regions);
	kvx_json_u64(row, "region_bytes", client->region_bytes);
	kvx_json_u64(row, "imports",
		     client->imports != NULL ? kvx_idmap_count(client->imports) : 0);
	kvx_json_u64(row, "transfers", client->xfers.n);
	kvx_json_u64(row, "transfers_total", client->n_xfers_total);
	kvx_json_u64(row, "bytes_total", client->bytes_total);
	kvx_json_u64(row, "queued_bytes",
		     kvx_xfers_list_bytes(kvx_node_xfers(query->control->conf.node), client->id));
	kvx_json_u64(row, "posted_bytes", client->posted_bytes);
	kvx_json_u64(row, "events_pending_bytes", client->front->ops->pending_bytes(client->front));
}

void kvx_query_clients(const struct kvx_query *query, struct json_object *out)
{
	struct json_object *list = kvx_json_list(out, "clients");
	const struct kvx_client *client;
	uint64_t omitted = 0;
	uint32_t cursor = 0;

	while ((client = kvx_idmap_next(query->control->clients, &cursor)) != NULL) {
		struct json_object *row;

		if (!kvx_query_sees(query, client->tenant))
			continue;
		row = kvx_json_row(list, &omitted);
		if (row != NULL)
			client_fill(query, client, row);
	}
	kvx_json_omitted(out, omitted);
}

static const char *region_state_name(enum kvx_region_state state)
{
	switch (state) {
	case KVX_REGION_MAPPING:
		return "mapping";
	case KVX_REGION_LIVE:
		return "live";
	case KVX_REGION_FAILED:
		return "failed";
	case KVX_REGION_CLOSING:
		return "closing";
	}
	return "unknown";
}

/* As the devices query names it; "": memory of the host. */
static const char *region_gpu(const struct kvx_query *query, const struct kvx_region *region)
{
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(query->control->conf.node, &n);

	for (unsigned i = 0; region->mem.gpu != NULL && i < n; i++)
		if (kvx_gpu_id_same(&rails[i].rail.gpu, &region->mem.gpu->id))
			return rails[i].rail.name;
	return "";
}

static void region_fill(const struct kvx_query *query, const struct kvx_region *region,
			struct json_object *row)
{
	static const char *const access[] = {"-", "r", "w", "rw"};

	kvx_json_id(row, "id", region->id);
	kvx_json_id(row, "owner", region->owner);
	kvx_json_text(row, "tenant", tenant_name(query, region->tenant));
	kvx_json_text(row, "name", region->name);
	kvx_json_text(row, "published", kvx_region_published_name(region));
	kvx_json_text(row, "kind", region->mem.ops->name);
	kvx_json_text(row, "gpu", region_gpu(query, region));
	kvx_json_u64(row, "bytes", region->mem.len_bytes);
	kvx_json_u64(row, "page_bytes", region->mem.page_bytes);
	kvx_json_text(row, "access", access[region->access & 3u]);
	kvx_json_text(row, "state", region_state_name(region->state));
	kvx_json_u64(row, "planes", region->layout != NULL ? region->layout->n_planes : 0);
	kvx_json_u64(row, "users", region->n_users);
}

void kvx_query_regions(const struct kvx_query *query, struct json_object *out)
{
	const struct kvx_regions *regions = kvx_node_regions(query->control->conf.node);
	struct json_object *list = kvx_json_list(out, "regions");
	const struct kvx_region *region;
	uint64_t omitted = 0;
	uint32_t cursor = 0;

	while ((region = kvx_region_next(regions, &cursor)) != NULL) {
		struct json_object *row;

		if (!kvx_query_sees(query, region->tenant))
			continue;
		row = kvx_json_row(list, &omitted);
		if (row != NULL)
			region_fill(query, region, row);
	}
	kvx_json_omitted(out, omitted);
}

struct xfer_lists {
	const struct kvx_query *query;
	struct json_object *live, *ended, *inbound;
	uint64_t omitted;
	uint64_t now_ns;
};

static void xfer_fill(const struct kvx_query *query, const struct kvx_xfer_row *x,
		      struct json_object *row)
{
	const struct kvx_xfer_end *end = &x->end;
	bool ended = end->status <= 0;

	kvx_json_id(row, "id", end->xfer);
	kvx_json_id(row, "client", end->client);
	kvx_json_text(row, "tenant", tenant_name(query, x->tenant));
	kvx_json_id(row, "tag", end->tag);
	kvx_json_text(row, "label", x->label);
	kvx_json_text(row, "op", end->op == KVX_OP_READ ? "read" : "write");
	kvx_json_text(row, "state", x->state);
	kvx_json_text(row, "status",
		      ended ? kvx_status_name(kvx_status_from_errno(end->status)) : "RUNNING");
	kvx_json_text(row, "text", end->text);
	kvx_json_text(row, "scope", kvx_scope_name(end->scope));
	kvx_json_int(row, "vendor_code", end->vendor_code);
	kvx_json_u64(row, "bytes", end->bytes);
	kvx_json_u64(row, "bytes_planned", x->bytes_planned);
	kvx_json_u64(row, "pieces", x->pieces);
	kvx_json_u64(row, "retries", x->retries);
	kvx_json_text(row, "waits_for", x->waits_for);
	kvx_json_u64(row, "waits", x->n_waits);
	kvx_json_text(row, "transport", end->transport);
	kvx_json_text(row, "peer", x->peer);
	kvx_json_id(row, "region", x->region);
	kvx_json_id(row, "remote_region", x->remote_region);
	kvx_json_u64(row, "submit_ns", end->submit_ns);
	kvx_json_u64(row, "first_ns", end->first_ns);
	kvx_json_u64(row, "last_ns", end->last_ns);
	kvx_json_u64(row, "end_ns", end->end_ns);
}

static void xfer_row(void *arg, const struct kvx_xfer_row *x)
{
	struct xfer_lists *lists = arg;
	struct json_object *row;

	if (!kvx_query_sees(lists->query, x->tenant))
		return;
	row = kvx_json_row(x->end.status <= 0 ? lists->ended : lists->live, &lists->omitted);
	if (row == NULL)
		return;
	xfer_fill(lists->query, x, row);
	kvx_json_u64(row, "now_ns", lists->now_ns);
}

static void inbound_row(void *arg, const struct kvx_inbound_row *in)
{
	struct xfer_lists *lists = arg;
	struct json_object *row;

	if (!kvx_query_sees(lists->query, in->tenant))
		return;
	row = kvx_json_row(lists->inbound, &lists->omitted);
	if (row == NULL)
		return;
	kvx_json_text(row, "tenant", tenant_name(lists->query, in->tenant));
	kvx_json_id(row, "tag", in->tag);
	kvx_json_text(row, "label", in->label);
	kvx_json_text(row, "op", in->op == KVX_OP_READ ? "read" : "write");
	kvx_json_text(row, "peer", in->peer);
	kvx_json_id(row, "region", in->region);
	kvx_json_u64(row, "open_ns", in->open_ns);
	kvx_json_u64(row, "now_ns", lists->now_ns);
}

void kvx_query_transfers(const struct kvx_query *query, struct json_object *out)
{
	struct xfer_lists lists = {
	    .query = query,
	    .live = kvx_json_list(out, "live"),
	    .ended = kvx_json_list(out, "ended"),
	    .inbound = kvx_json_list(out, "inbound"),
	    .now_ns = kvx_now_ns(),
	};

	kvx_xfers_walk(kvx_node_xfers(query->control->conf.node), xfer_row, &lists);
	if (query->control->conf.peers != NULL)
		kvx_peers_walk_inbound(query->control->conf.peers, inbound_row, &lists);
	kvx_json_omitted(out, lists.omitted);
}

struct peer_list {
	struct json_object *peers;
	uint64_t omitted;
};

static void peer_row(void *arg, const struct kvx_peer_row *peer)
{
	struct peer_list *list = arg;
	struct json_object *row = kvx_json_row(list->peers, &list->omitted);
	struct json_object *lane;

	if (row == NULL)
		return;
	kvx_json_text(row, "node_id", peer->node_id);
	kvx_json_text(row, "address", peer->addr);
	kvx_json_text(row, "state", peer->state);
	kvx_json_id(row, "epoch", peer->epoch);
	kvx_json_u64(row, "up_ns", peer->up_ns);
	kvx_json_u64(row, "rtt_ns", peer->rtt_ns);
	kvx_json_u64(row, "lanes", peer->n_lanes);
	kvx_json_u64(row, "lanes_up", peer->n_lanes_up);
	lane = kvx_json_object(row, "lane");
	kvx_json_text(lane, "transport", peer->lane_transport);
	kvx_json_text(lane, "state", peer->lane_state);
	kvx_json_u64(lane, "generation", peer->lane_generation);
	kvx_json_u64(lane, "bytes", peer->lane_bytes);
	kvx_json_u64(lane, "ops", peer->lane_ops);
	kvx_json_u64(lane, "batches", peer->lane_batches);
	kvx_json_u64(lane, "resets", peer->lane_resets);
	kvx_json_u64(row, "targets", peer->n_targets);
	kvx_json_u64(row, "inbound", peer->n_inbound);
	kvx_json_u64(row, "stale_dropped", peer->n_stale_dropped);
	kvx_json_u64(row, "connects", peer->n_connects);
	kvx_json_u64(row, "lost", peer->n_lost);
	kvx_json_text(row, "last_error", peer->last_error);
}

void kvx_query_peers(const struct kvx_query *query, struct json_object *out)
{
	const struct kvx_peers *peers = query->control->conf.peers;
	struct peer_list list = {.peers = kvx_json_list(out, "peers")};

	if (peers != NULL)
		kvx_peers_walk(peers, peer_row, &list);
	kvx_json_omitted(out, list.omitted);
}

/* ---- lanes */

struct lane_list {
	const struct kvx_query *query;
	struct json_object *lanes;
	uint64_t omitted;
};

static void leg_fill(const struct kvx_leg_row *leg, struct json_object *row)
{
	kvx_json_text(row, "rail", leg->rail);
	kvx_json_text(row, "remote_rail", leg->remote_rail);
	kvx_json_u64(row, "batches_in_flight", leg->batches_in_flight);
	kvx_json_u64(row, "bytes_in_flight", leg->bytes_in_flight);
}

static void lane_fill(const struct kvx_lane_row *lane, struct json_object *row)
{
	struct json_object *legs;
	uint64_t omitted = 0;

	kvx_json_text(row, "peer", lane->peer);
	kvx_json_text(row, "tenant", lane->tenant);
	kvx_json_bool(row, "bounce", lane->any_memory);
	kvx_json_text(row, "transport", lane->transport);
	kvx_json_text(row, "state", lane->state);
	kvx_json_u64(row, "generation", lane->generation);
	kvx_json_u64(row, "up_ns", lane->up_ns);
	legs = kvx_json_list(row, "legs");
	for (unsigned i = 0; i < lane->n_legs; i++) {
		struct json_object *leg = kvx_json_row(legs, &omitted);

		if (leg != NULL)
			leg_fill(&lane->legs[i], leg);
	}
	kvx_json_u64(row, "queue_batches", lane->queue_batches);
	kvx_json_u64(row, "batches", lane->n_batches);
	kvx_json_u64(row, "ops", lane->n_ops);
	kvx_json_u64(row, "bytes", lane->n_bytes);
	kvx_json_u64(row, "errors", lane->n_errors);
	kvx_json_u64(row, "resets", lane->n_resets);
	kvx_json_u64(row, "failed", lane->n_failed);
	kvx_json_u64(row, "fallback", lane->n_fallback);
	kvx_json_text(row, "last_error", lane->last_error);
}

static void lane_row(void *arg, const struct kvx_lane_row *lane)
{
	struct lane_list *list = arg;
	const struct kvx_query *query = list->query;
	struct json_object *row;

	if (!query->admin && strcmp(lane->tenant, tenant_name(query, query->tenant)) != 0)
		return;
	row = kvx_json_row(list->lanes, &list->omitted);
	if (row != NULL)
		lane_fill(lane, row);
}

static const char *lane_state_name(enum kvx_lane_state state)
{
	static const char *const names[] = {"down", "connecting", "up", "closing"};

	return names[state];
}

/* What the GPUs of this node move within it, for all tenants: lanes without a peer. */
static KVX_ON_LOOP void own_lane_rows(struct lane_list *list)
{
	struct kvx_node *node = list->query->control->conf.node;
	const struct kvx_lane *lane;

	for (unsigned i = 1; (lane = kvx_node_own_lane(node, i)) != NULL; i++) {
		const struct kvx_outlet *outlet = &lane->outlets[0];
		struct kvx_lane_row row = {
		    .peer = "",
		    .tenant = "",
		    .transport = lane->ops->name,
		    .state = lane_state_name(lane->state),
		    .generation = lane->generation,
		    .up_ns = kvx_node_own_lane_up_ns(node, i),
		    .n_legs = 1,
		    .queue_batches = kvx_worker_limits(outlet->worker)->queue_batches,
		    .n_batches = lane->n_batches,
		    .n_ops = lane->n_ops,
		    .n_bytes = lane->n_bytes,
		    .n_errors = lane->n_errors,
		    .n_resets = lane->n_resets,
		    .last_error = "",
		};
		struct json_object *json = kvx_json_row(list->lanes, &list->omitted);

		if (json == NULL)
			return;
		row.legs[0] = (struct kvx_leg_row){.remote_rail = "",
						   .batches_in_flight = outlet->batches_in_flight,
						   .bytes_in_flight = outlet->bytes_in_flight};
		kvx_node_worker(node, outlet->dom_index, &row.legs[0].rail);
		lane_fill(&row, json);
	}
}

void kvx_query_lanes(const struct kvx_query *query, struct json_object *out)
{
	const struct kvx_peers *peers = query->control->conf.peers;
	struct lane_list list = {.query = query, .lanes = kvx_json_list(out, "lanes")};

	if (peers != NULL)
		kvx_peers_walk_lanes(peers, lane_row, &list);
	if (query->admin)
		own_lane_rows(&list);
	kvx_json_omitted(out, list.omitted);
}
