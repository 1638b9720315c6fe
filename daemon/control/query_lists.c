/* Queries that list things: clients, regions, transfers, peers. Loop thread; reads only. */
#include <string.h>

#include "base/clock.h"
#include "base/idmap.h"
#include "control/query.h"

static void omitted_fill(struct json_object *out, uint64_t omitted)
{
	if (omitted > 0)
		kvx_json_u64(out, "omitted", omitted);
}

static void client_fill(const struct kvx_client *client, struct json_object *row)
{
	kvx_json_id(row, "id", client->id);
	kvx_json_text(row, "name", client->name);
	kvx_json_u64(row, "pid", (uint64_t)client->pid);
	kvx_json_u64(row, "uid", client->uid);
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
	kvx_json_u64(row, "events_pending_bytes", client->front->ops->pending_bytes(client->front));
}

void kvx_query_clients(struct kvx_control *control, struct json_object *out)
{
	struct json_object *list = kvx_json_list(out, "clients");
	const struct kvx_client *client;
	uint64_t omitted = 0;
	uint32_t cursor = 0;

	while ((client = kvx_idmap_next(control->clients, &cursor)) != NULL) {
		struct json_object *row = kvx_json_row(list, &omitted);

		if (row != NULL)
			client_fill(client, row);
	}
	omitted_fill(out, omitted);
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

static void region_fill(const struct kvx_region *region, struct json_object *row)
{
	static const char *const access[] = {"-", "r", "w", "rw"};

	kvx_json_id(row, "id", region->id);
	kvx_json_id(row, "owner", region->owner);
	kvx_json_text(row, "name", region->name);
	kvx_json_text(row, "kind", region->mem.ops->name);
	kvx_json_u64(row, "bytes", region->mem.len_bytes);
	kvx_json_u64(row, "page_bytes", region->mem.page_bytes);
	kvx_json_text(row, "access", access[region->access & 3u]);
	kvx_json_text(row, "state", region_state_name(region->state));
	kvx_json_u64(row, "planes", region->layout != NULL ? region->layout->n_planes : 0);
	kvx_json_u64(row, "users", region->n_users);
}

void kvx_query_regions(struct kvx_control *control, struct json_object *out)
{
	struct json_object *list = kvx_json_list(out, "regions");
	const struct kvx_region *region;
	uint64_t omitted = 0;
	uint32_t cursor = 0;

	while ((region = kvx_region_next(kvx_node_regions(control->conf.node), &cursor)) != NULL) {
		struct json_object *row = kvx_json_row(list, &omitted);

		if (row != NULL)
			region_fill(region, row);
	}
	omitted_fill(out, omitted);
}

struct xfer_lists {
	struct json_object *live, *ended;
	uint64_t omitted;
	uint64_t now_ns;
};

static void xfer_fill(const struct kvx_xfer_row *x, bool ended, struct json_object *row)
{
	const struct kvx_xfer_end *end = &x->end;

	kvx_json_id(row, "id", end->xfer);
	kvx_json_id(row, "client", end->client);
	kvx_json_id(row, "tag", end->tag);
	kvx_json_text(row, "op", end->op == KVX_OP_READ ? "read" : "write");
	kvx_json_text(row, "state", x->state);
	kvx_json_text(row, "status",
		      ended ? kvx_status_name(kvx_status_from_errno(end->status)) : "RUNNING");
	kvx_json_text(row, "text", end->text);
	kvx_json_text(row, "scope", kvx_scope_name(end->scope));
	json_object_object_add(row, "vendor_code", json_object_new_int(end->vendor_code));
	kvx_json_u64(row, "bytes", end->bytes);
	kvx_json_u64(row, "bytes_planned", x->bytes_planned);
	kvx_json_u64(row, "pieces", x->pieces);
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
	bool ended = strcmp(x->state, "ended") == 0;
	struct json_object *row = kvx_json_row(ended ? lists->ended : lists->live, &lists->omitted);

	if (row == NULL)
		return;
	xfer_fill(x, ended, row);
	kvx_json_u64(row, "now_ns", lists->now_ns);
}

void kvx_query_transfers(struct kvx_control *control, struct json_object *out)
{
	struct xfer_lists lists = {
	    .live = kvx_json_list(out, "live"),
	    .ended = kvx_json_list(out, "ended"),
	    .now_ns = kvx_now_ns(),
	};

	kvx_xfers_walk(kvx_node_xfers(control->conf.node), xfer_row, &lists);
	omitted_fill(out, lists.omitted);
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

void kvx_query_peers(struct kvx_control *control, struct json_object *out)
{
	struct peer_list list = {.peers = kvx_json_list(out, "peers")};

	if (control->conf.peers != NULL)
		kvx_peers_walk(control->conf.peers, peer_row, &list);
	omitted_fill(out, list.omitted);
}
