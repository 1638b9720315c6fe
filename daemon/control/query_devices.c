/* The devices query: what the node could use to reach other nodes, used or not and why, and the
 * domains that copy within it. Loop thread; reads only. */
#include <arpa/inet.h>
#include <string.h>

#include "control/query.h"

static const char *link_name(enum kvx_rail_link link)
{
	switch (link) {
	case KVX_RAIL_LINK_NONE:
		return "";
	case KVX_RAIL_LINK_ETHERNET:
		return "ethernet";
	case KVX_RAIL_LINK_INFINIBAND:
		return "infiniband";
	}
	return "";
}

void kvx_query_dom_counters(const struct kvx_worker *worker, struct json_object *row)
{
	const struct kvx_dom_counters *c = kvx_worker_limits(worker)->counters;
	struct json_object *out;

	if (c == NULL)
		return;
	const struct {
		const char *name;
		const struct kvx_counter *value;
	} counters[] = {
	    {"wrs", &c->wrs},
	    {"doorbells", &c->doorbells},
	    {"signaled", &c->signaled},
	    {"completions", &c->completions},
	    {"inlined", &c->inlined},
	    {"gathered", &c->gathered},
	    {"flushes", &c->flushes},
	    {"errors", &c->errors},
	    {"async_events", &c->async_events},
	    {"eps_made", &c->eps_made},
	    {"eps_lost", &c->eps_lost},
	    {"regs", &c->regs},
	    {"reg_bytes", &c->reg_bytes},
	    {"bounced_ops", &c->bounced_ops},
	    {"bounced_bytes", &c->bounced_bytes},
	};

	out = kvx_json_object(row, "counters");
	for (size_t i = 0; i < sizeof(counters) / sizeof(counters[0]); i++)
		kvx_json_u64(out, counters[i].name, kvx_counter_get(counters[i].value));
}

/* ---- lanes of a rail */

struct lane_count {
	const struct kvx_node_rail *rail;
	unsigned n;
};

static void lane_count_row(void *arg, const struct kvx_lane_row *lane)
{
	struct lane_count *count = arg;

	if (strcmp(lane->transport, count->rail->ops->name) != 0 || strcmp(lane->state, "up") != 0)
		return;
	for (unsigned i = 0; i < lane->n_legs; i++) {
		if (strcmp(lane->legs[i].rail, count->rail->rail.name) == 0) {
			count->n++;
			return;
		}
	}
}

static bool rail_is_gpu(const struct kvx_node_rail *rail)
{
	return rail->rail.gpu.pci[0] != '\0' || kvx_gpu_uuid_known(&rail->rail.gpu);
}

static KVX_ON_LOOP unsigned rail_lanes(const struct kvx_control *control,
				       const struct kvx_node_rail *rail)
{
	struct lane_count count = {.rail = rail};

	if (rail_is_gpu(rail))
		return 1; /* of the node to itself */
	if (control->conf.peers != NULL)
		kvx_peers_walk_lanes(control->conf.peers, lane_count_row, &count);
	return count.n;
}

/* ---- rows */

static void limits_fill(const struct kvx_worker *worker, struct json_object *row)
{
	const struct kvx_transport_limits *limits = kvx_worker_limits(worker);

	kvx_json_u64(row, "max_op_bytes", limits->max_op_bytes);
	kvx_json_u64(row, "batch_bytes", limits->batch_bytes);
	kvx_json_u64(row, "batch_ops", limits->batch_ops);
	kvx_json_u64(row, "queue_batches", limits->queue_batches);
	kvx_query_dom_counters(worker, row);
}

static const char *worker_name(const struct kvx_control *control, const struct kvx_worker *worker)
{
	const struct kvx_worker *each;
	const char *name = "";

	for (unsigned i = 0; (each = kvx_node_worker(control->conf.node, i, &name)) != NULL; i++)
		if (each == worker)
			return name;
	return "";
}

/* What it is like now; what has never been up has no address yet. */
static void port_fill(const struct kvx_node_rail *rail, struct json_object *row)
{
	const struct kvx_dom_port *now =
	    rail->worker != NULL ? kvx_worker_limits(rail->worker)->port : NULL;
	const struct kvx_rail *r = &rail->rail;
	uint64_t raw[2] = {0}, speed_mbps = 0;
	char gid[INET6_ADDRSTRLEN] = "";

	if (now == NULL) {
		kvx_json_u64(row, "speed_mbps", r->speed_mbps);
		kvx_json_u64(row, "mtu_bytes", r->mtu_bytes);
		kvx_json_text(row, "gid", r->gid);
		kvx_json_u64(row, "gid_index", r->gid_index);
		return;
	}
	raw[0] = atomic_load(&now->gid[0]);
	raw[1] = atomic_load(&now->gid[1]);
	if (raw[0] != 0 || raw[1] != 0)
		(void)inet_ntop(AF_INET6, raw, gid, sizeof(gid));
	speed_mbps = atomic_load(&now->speed_mbps);
	kvx_json_u64(row, "speed_mbps", speed_mbps != 0 ? speed_mbps : r->speed_mbps);
	kvx_json_u64(row, "mtu_bytes", atomic_load(&now->mtu_bytes));
	kvx_json_text(row, "gid", gid);
	kvx_json_u64(row, "gid_index", atomic_load(&now->gid_index));
}

static const char *rail_state(const struct kvx_node_rail *rail, bool hangs)
{
	if (rail->lost)
		return "lost";
	if (rail->worker == NULL)
		return "unusable";
	if (hangs)
		return "hanging";
	return kvx_node_rail_waits(rail) != NULL ? "waiting" : "usable";
}

static const char *rail_reason(const struct kvx_node_rail *rail, bool hangs)
{
	const char *waits = kvx_node_rail_waits(rail);

	if (rail->lost)
		return "the device is lost: restart the daemon once it is back";
	if (rail->worker == NULL)
		return rail->rail.reason;
	if (hangs)
		return "a call into its driver does not return: what uses it waits for that";
	return waits != NULL ? waits : "";
}

/* The RDMA device that a GPU's memory goes to other nodes by; "": any. */
static const char *near_name(const struct kvx_node *node, const struct kvx_gpu_id *gpu)
{
	uint64_t near = kvx_node_near_rails(node, gpu);
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(node, &n);

	for (unsigned i = 0; i < n; i++)
		if (rails[i].worker != NULL && near & 1ull << rails[i].dom_index)
			return rails[i].rail.device;
	return "";
}

static KVX_ON_LOOP void rail_fill(const struct kvx_control *control,
				  const struct kvx_node_rail *rail, struct json_object *row)
{
	const struct kvx_rail *r = &rail->rail;
	bool usable = kvx_node_rail_is_usable(rail), hangs = kvx_node_rail_hangs(rail);

	kvx_json_text(row, "name", r->name);
	kvx_json_text(row, "transport", rail->ops->name);
	kvx_json_text(row, "state", rail_state(rail, hangs));
	kvx_json_text(row, "reason", rail_reason(rail, hangs));
	kvx_json_text(row, "device", r->device);
	if (rail_is_gpu(rail)) {
		kvx_json_text(row, "pci", r->gpu.pci);
		kvx_json_text(row, "near", near_name(control->conf.node, &r->gpu));
	}
	kvx_json_u64(row, "port", r->port);
	kvx_json_text(row, "link", link_name(r->link));
	port_fill(rail, row);
	kvx_json_int(row, "numa_node", r->numa_node);
	kvx_json_text(row, "netdev", r->netdev);
	kvx_json_text(row, "firmware", r->firmware);
	kvx_json_u64(row, "lanes", usable ? rail_lanes(control, rail) : 0);
	kvx_json_text(row, "worker",
		      rail->worker != NULL ? worker_name(control, rail->worker) : "");
	if (rail->worker != NULL)
		limits_fill(rail->worker, row);
}

static bool worker_has_rail(const struct kvx_worker *worker, const struct kvx_node_rail *rails,
			    unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (rails[i].worker == worker)
			return true;
	return false;
}

void kvx_query_devices(const struct kvx_query *query, struct json_object *out)
{
	struct kvx_node *node = query->control->conf.node;
	struct json_object *list = kvx_json_list(out, "devices"), *row;
	const struct kvx_worker *worker;
	const char *name = "";
	uint64_t omitted = 0;
	unsigned n_rails;
	const struct kvx_node_rail *rails = kvx_node_rails(node, &n_rails);

	for (unsigned i = 0; i < n_rails; i++) {
		row = kvx_json_row(list, &omitted);
		if (row != NULL)
			rail_fill(query->control, &rails[i], row);
	}
	/* those of no rail copy within the node */
	for (unsigned i = 0; (worker = kvx_node_worker(node, i, &name)) != NULL; i++) {
		if (worker_has_rail(worker, rails, n_rails))
			continue;
		row = kvx_json_row(list, &omitted);
		if (row == NULL)
			continue;
		kvx_json_text(row, "name", "");
		kvx_json_text(row, "transport", kvx_worker_ops(worker)->name);
		kvx_json_text(row, "state", "usable");
		kvx_json_text(row, "worker", name);
		limits_fill(worker, row);
	}
}
