/* Queries about the daemon as a whole: status, config. Loop thread; reads only. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/idmap.h"
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

/* One of its devices works, or it needs none and is there. */
static bool transport_is_used(struct kvx_node *node, const struct kvx_transport_ops *ops)
{
	const struct kvx_worker *worker;
	bool has_rails = false;
	const char *name;
	unsigned n_rails;
	const struct kvx_node_rail *rails = kvx_node_rails(node, &n_rails);

	for (unsigned i = 0; i < n_rails; i++) {
		if (rails[i].ops == ops && kvx_node_rail_is_usable(&rails[i]))
			return true;
		has_rails |= rails[i].ops == ops;
	}
	for (unsigned i = 0; !has_rails && (worker = kvx_node_worker(node, i, &name)) != NULL; i++)
		if (kvx_worker_ops(worker) == ops)
			return true;
	return false;
}

/* Is it switched on? false: by the keys that out names. */
static bool transport_is_on(const struct kvx_config *config, const struct kvx_transport_ops *ops,
			    char *out, size_t size)
{
	char names[KVX_CONFIG_TRANSPORTS][KVX_CONFIG_TRANSPORT_BYTES];
	unsigned n = kvx_config_transports(config, names), i = 0;

	if (!(ops->caps & KVX_CAP_CROSS_NODE)) {
		snprintf(out, size, "disabled ([%s] enable)", ops->name);
		return strcmp(ops->name, "gpu") != 0 || config->gpu_enable;
	}
	while (i < n && strcmp(names[i], ops->name) != 0)
		i++;
	snprintf(out, size, "disabled ([peer] enable, transports; [%s] enable)", ops->name);
	return config->peer_enable && i < n;
}

/* Why it cannot be used: what the first of its rails lacks, or why it has none. */
static void transport_reason(const struct kvx_control *control, const struct kvx_transport_ops *ops,
			     char *out, size_t size)
{
	unsigned n_rails;
	const struct kvx_node_rail *rails = kvx_node_rails(control->conf.node, &n_rails);

	if (!transport_is_on(control->conf.config, ops, out, size))
		return;
	snprintf(out, size, "%s", kvx_node_peer_error(control->conf.node));
	for (unsigned i = 0; i < n_rails; i++) {
		if (rails[i].ops != ops)
			continue;
		snprintf(out, size, "%s%s%s", rails[i].rail.name,
			 rails[i].rail.name[0] != '\0' ? ": " : "",
			 rails[i].lost ? "the device is lost" : rails[i].rail.reason);
		return;
	}
}

/* What it lacks though it is usable: a device that is lost, or hangs; or all that it has wait, for
 * what the first one does. */
static KVX_ON_LOOP void transport_lacks(const struct kvx_control *control,
					const struct kvx_transport_ops *ops, char *out, size_t size)
{
	const struct kvx_node_rail *lost = NULL, *hangs = NULL, *waits = NULL;
	bool ready = false;
	unsigned n_rails;
	const struct kvx_node_rail *rails = kvx_node_rails(control->conf.node, &n_rails);

	for (unsigned i = 0; i < n_rails; i++) {
		if (rails[i].ops != ops || rails[i].worker == NULL)
			continue;
		if (rails[i].lost)
			lost = lost != NULL ? lost : &rails[i];
		else if (kvx_node_rail_hangs(&rails[i]))
			hangs = hangs != NULL ? hangs : &rails[i];
		else if (kvx_node_rail_waits(&rails[i]) != NULL)
			waits = waits != NULL ? waits : &rails[i];
		else
			ready = true;
	}
	if (lost != NULL)
		snprintf(out, size, "%s: the device is lost", lost->rail.name);
	else if (hangs != NULL)
		snprintf(out, size, "%s: a call into its driver does not return", hangs->rail.name);
	else if (!ready && waits != NULL)
		snprintf(out, size, "%s waits: %s", waits->rail.name, kvx_node_rail_waits(waits));
}

/* What the registry has and whether it works here. */
static KVX_ON_LOOP void transports_fill(const struct kvx_control *control, struct json_object *out)
{
	const struct kvx_transport_ops *const *ops;
	struct json_object *list = kvx_json_list(out, "transports");
	uint64_t omitted = 0;

	for (ops = kvx_transport_registry(); *ops != NULL; ops++) {
		bool usable = transport_is_used(control->conf.node, *ops);
		struct json_object *row = kvx_json_row(list, &omitted);
		char reason[KVX_WHY_BYTES + KVX_RAIL_NAME_BYTES + 8] = "";

		if (row == NULL)
			continue;
		if (!usable)
			transport_reason(control, *ops, reason, sizeof(reason));
		else
			transport_lacks(control, *ops, reason, sizeof(reason));
		kvx_json_text(row, "name", (*ops)->name);
		kvx_json_bool(row, "usable", usable);
		kvx_json_text(row, "reason", reason);
	}
}

/* Those that may be seen, with the socket of each. */
static void tenants_fill(const struct kvx_query *query, struct json_object *out)
{
	const struct kvx_control *control = query->control;
	struct json_object *list = kvx_json_list(out, "tenants");
	unsigned n_clients[KVX_MAX_TENANTS] = {0};
	const struct kvx_client *client;
	uint64_t omitted = 0;
	uint32_t cursor = 0;

	while ((client = kvx_idmap_next(control->clients, &cursor)) != NULL)
		n_clients[client->tenant]++;
	for (uint32_t i = 0; i < control->n_tenants; i++) {
		struct json_object *row;

		if (!kvx_query_sees(query, i))
			continue;
		row = kvx_json_row(list, &omitted);
		if (row == NULL)
			continue;
		kvx_json_text(row, "name", control->tenants[i].name);
		kvx_json_text(row, "socket", kvx_listener_path(control->listener, i));
		kvx_json_u64(row, "clients", n_clients[i]);
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
	kvx_json_u64(limits, "queued_bytes_per_client", config->queued_bytes_per_client);
	kvx_json_u64(limits, "posted_bytes_per_client", config->posted_bytes_per_client);
	kvx_json_u64(limits, "waits_per_client", config->waits_per_client);
	kvx_json_u64(limits, "ops", config->ops);
	kvx_json_u64(limits, "blocks", config->blocks);
	kvx_json_u64(limits, "planes", config->planes);
	kvx_json_u64(limits, "frame_bytes", config->frame_bytes);
	kvx_json_u64(limits, "events_bytes", config->events_bytes);
	kvx_json_u64(limits, "peers", config->peers);
}

void kvx_query_status(const struct kvx_query *query, struct json_object *out)
{
	struct kvx_control *control = query->control;
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
	kvx_json_text(out, "tenant", control->tenants[query->tenant].name);
	tenants_fill(query, out);
	kvx_json_u64(out, "clients", control->n_clients);
	kvx_json_u64(out, "regions", kvx_regions_count(kvx_node_regions(conf->node)));
	kvx_json_u64(out, "region_bytes", kvx_regions_bytes(kvx_node_regions(conf->node)));
	kvx_json_u64(out, "transfers", kvx_xfers_count(kvx_node_xfers(conf->node)));
	kvx_json_u64(out, "waits", kvx_gates_count(kvx_node_gates(conf->node)));
	kvx_json_u64(out, "peers_up", peers.up);
	kvx_json_u64(out, "peers", peers.all);
	transports_fill(control, out);
	limits_fill(conf->config, out);
}

static void config_add(void *arg, const char *name, const char *value)
{
	kvx_json_text(arg, name, value);
}

void kvx_query_config(const struct kvx_query *query, struct json_object *out)
{
	kvx_config_visit(query->control->conf.config, config_add, kvx_json_object(out, "config"));
}
