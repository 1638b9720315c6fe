/* Queries about the daemon as a whole: status, devices, config. Loop thread; reads only. */
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "control/query.h"

struct peer_count {
	unsigned up, all;
};

static void peer_count_row(void *arg, const struct kvx_peer_row *row)
{
	struct peer_count *count = arg;

	count->all++;
	count->up += strcmp(row->state, "up") == 0 ? 1 : 0;
}

/* What the registry has and whether it works here. */
static void transports_fill(struct kvx_control *control, struct json_object *out)
{
	const struct kvx_transport_ops *const *ops;
	struct json_object *list = kvx_json_list(out, "transports");
	struct kvx_worker *peer_worker;
	uint64_t omitted = 0;
	unsigned dom_index = 0;

	peer_worker = kvx_node_peer_worker(control->conf.node, &dom_index);
	for (ops = kvx_transport_registry(); *ops != NULL; ops++) {
		bool local = ((*ops)->caps & KVX_CAP_SAME_NODE) != 0;
		struct json_object *row = kvx_json_row(list, &omitted);

		if (row == NULL)
			continue;
		kvx_json_text(row, "name", (*ops)->name);
		kvx_json_bool(row, "usable",
			      local ||
				  (peer_worker != NULL && kvx_worker_ops(peer_worker) == *ops));
		kvx_json_text(row, "reason",
			      local || peer_worker != NULL
				  ? ""
				  : kvx_node_peer_worker_error(control->conf.node));
	}
}

static void limits_fill(const struct kvx_config *config, struct json_object *out)
{
	struct json_object *limits = kvx_json_object(out, "limits");

	kvx_json_u64(limits, "clients", config->clients);
	kvx_json_u64(limits, "regions", config->regions);
	kvx_json_u64(limits, "regions_per_client", config->regions_per_client);
	kvx_json_u64(limits, "bytes", config->bytes);
	kvx_json_u64(limits, "bytes_per_client", config->bytes_per_client);
	kvx_json_u64(limits, "imports_per_client", config->imports_per_client);
	kvx_json_u64(limits, "transfers", config->transfers);
	kvx_json_u64(limits, "transfers_per_client", config->transfers_per_client);
	kvx_json_u64(limits, "ops", config->ops);
	kvx_json_u64(limits, "blocks", config->blocks);
	kvx_json_u64(limits, "planes", config->planes);
	kvx_json_u64(limits, "frame_bytes", config->frame_bytes);
	kvx_json_u64(limits, "events_bytes", config->events_bytes);
	kvx_json_u64(limits, "peers", config->peers);
}

void kvx_query_status(struct kvx_control *control, struct json_object *out)
{
	const struct kvx_control_conf *conf = &control->conf;
	struct peer_count peers = {0, 0};

	if (conf->peers != NULL)
		kvx_peers_walk(conf->peers, peer_count_row, &peers);
	kvx_json_text(out, "version", conf->version);
	kvx_json_node_id(out, "node_id", conf->node_id);
	kvx_json_id(out, "epoch", conf->epoch);
	kvx_json_u64(out, "pid", (uint64_t)getpid());
	kvx_json_text(out, "state", control->draining ? "draining" : "running");
	kvx_json_u64(out, "uptime_ns", kvx_now_ns() - control->start_ns);
	kvx_json_text(out, "socket", kvx_control_socket(control));
	kvx_json_text(out, "peer_address",
		      conf->peers != NULL ? kvx_peers_address(conf->peers) : "");
	kvx_json_u64(out, "clients", control->n_clients);
	kvx_json_u64(out, "regions", kvx_regions_count(kvx_node_regions(conf->node)));
	kvx_json_u64(out, "region_bytes", kvx_regions_bytes(kvx_node_regions(conf->node)));
	kvx_json_u64(out, "transfers", kvx_xfers_count(kvx_node_xfers(conf->node)));
	kvx_json_u64(out, "peers_up", peers.up);
	kvx_json_u64(out, "peers", peers.all);
	transports_fill(control, out);
	limits_fill(conf->config, out);
}

/* Domains of transports: one per worker. */
void kvx_query_devices(struct kvx_control *control, struct json_object *out)
{
	struct json_object *list = kvx_json_list(out, "devices");
	struct kvx_worker *worker;
	const char *name = "";
	uint64_t omitted = 0;
	unsigned i;

	for (i = 0; (worker = kvx_node_worker(control->conf.node, i, &name)) != NULL; i++) {
		const struct kvx_transport_limits *limits = kvx_worker_limits(worker);
		struct json_object *row = kvx_json_row(list, &omitted);

		if (row == NULL)
			continue;
		kvx_json_text(row, "worker", name);
		kvx_json_text(row, "transport", kvx_worker_ops(worker)->name);
		kvx_json_u64(row, "max_op_bytes", limits->max_op_bytes);
		kvx_json_u64(row, "batch_bytes", limits->batch_bytes);
		kvx_json_u64(row, "batch_ops", limits->batch_ops);
		kvx_json_u64(row, "queue_batches", limits->queue_batches);
	}
}

static void config_add(void *arg, const char *name, const char *value)
{
	kvx_json_text(arg, name, value);
}

void kvx_query_config(struct kvx_control *control, struct json_object *out)
{
	kvx_config_visit(control->conf.config, config_add, kvx_json_object(out, "config"));
}
