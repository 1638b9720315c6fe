/* The transport domains of a node and their workers: copy workers, the inline one, one for each
 * GPU, and one for each usable rail of each transport that peers are reached by. Opened and closed
 * with the node; in between, a rail whose device is lost stays in its place and is used no more.
 * Loop thread. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "xfer/node_priv.h"

/* Commands that may be in a worker's rings beside all batches; more are kept by the node. */
#define RING_COMMANDS 1024

/* A worker whose turn lasts longer stands in a call. */
#define TURN_NS_MAX (1000 * KVX_MS)

#define MAX_FOUND (KVX_GPU_MAX > KVX_MAX_RAILS ? KVX_GPU_MAX : KVX_MAX_RAILS)

/* Same-node eps report to nobody: a lost one is made anew. */
static void copy_note(void *arg, const struct kvx_tevent *event)
{
	kvx_assert_on_loop();
	const struct node_dom *dom = arg;
	const char *text = event->text != NULL ? event->text : "endpoint lost";
	if (event->kind == KVX_TEV_EP_DOWN || event->kind == KVX_TEV_DEVICE_LOST)
		node_lane_reset(&dom->node->lanes[0], text);
}

/* A GPU's ep is lost with its device alone. */
static void gpu_note(void *arg, const struct kvx_tevent *event)
{
	kvx_assert_on_loop();
	struct node_dom *dom = arg;
	const char *text = event->text != NULL ? event->text : "the device is lost";
	if (event->kind == KVX_TEV_DEVICE_LOST && !dom->rail->lost)
		node_gpu_lost(dom, event->status, text);
}

static void rail_note(void *arg, const struct kvx_tevent *event)
{
	kvx_assert_on_loop();
	const struct node_dom *dom = arg;
	struct kvx_node *node = dom->node;
	if (event->kind == KVX_TEV_DEVICE_LOST && !dom->rail->lost) {
		dom->rail->lost = true;
		kvx_error("node: %s is lost: %s", dom->name,
			  event->text != NULL ? event->text : strerror(-event->status));
	}
	node_near_update(node);
	if (node->peers.note != NULL)
		node->peers.note(node->peers.arg, (unsigned)(dom - node->doms), event);
}

/* Whose notes go where, and how long its worker polls. */
static void dom_conf(const struct kvx_node *node, const struct kvx_node_rail *rail,
		     struct kvx_worker_conf *worker)
{
	const struct kvx_node_conf *conf = &node->conf;
	bool is_gpu = rail != NULL && rail->ops == node->conf.gpu_ops;

	worker->note = rail == NULL ? copy_note : is_gpu ? gpu_note : rail_note;
	worker->spin_us = conf->spin_us;
	if (is_gpu)
		worker->spin_us = conf->gpu_spin_us;
	else if (rail != NULL && rail->rail.name[0] != '\0')
		worker->spin_us = conf->device_spin_us;
}

/* Starts the worker of a domain that dom_finish() appends; rail NULL: one of the copy domains. */
static KVX_ON_LOOP int dom_begin(struct kvx_node *node, const char *name,
				 const struct kvx_transport_ops *ops, struct kvx_node_rail *rail,
				 bool threaded, struct kvx_worker **out_worker, struct kvx_why *why)
{
	const struct kvx_node_conf *conf = &node->conf;
	char thread_name[16];
	snprintf(thread_name, sizeof(thread_name), "kvx-%.11s", name);
	struct kvx_worker_conf worker = {
	    .name = thread_name,
	    .ops = ops,
	    .dom = conf->dom,
	    .ring_depth = conf->n_batches + RING_COMMANDS,
	    .threaded = threaded,
	    .doorbell = threaded ? node_doorbell : NULL,
	    .doorbell_arg = node,
	};
	dom_conf(node, rail, &worker);
	worker.dom.rail = rail != NULL ? &rail->rail : NULL;
	return kvx_worker_begin(&worker, out_worker, why);
}

static KVX_ON_LOOP int dom_finish(struct kvx_node *node, const char *name,
				  struct kvx_node_rail *rail, bool threaded,
				  struct kvx_worker *worker, struct kvx_why *why)
{
	struct node_dom *dom = &node->doms[node->n_doms];
	bool full = node->n_doms == KVX_MAX_DOMAINS;
	int rc = kvx_worker_finish(worker, full ? NULL : dom, why);
	if (rc != 0)
		return rc;
	if (full) {
		kvx_worker_close(worker);
		return kvx_why(why, -ENOSPC, "more than %d transport domains", KVX_MAX_DOMAINS);
	}
	snprintf(dom->name, sizeof(dom->name), "%s", name);
	dom->node = node;
	dom->rail = rail;
	dom->threaded = threaded;
	dom->worker = worker;
	if (rail != NULL) {
		rail->worker = worker;
		rail->dom_index = node->n_doms;
	}
	node->n_doms++;
	return 0;
}

static KVX_ON_LOOP int dom_open(struct kvx_node *node, const char *name,
				const struct kvx_transport_ops *ops, bool threaded,
				struct kvx_why *why)
{
	struct kvx_worker *worker;
	int rc = dom_begin(node, name, ops, NULL, threaded, &worker, why);
	return rc != 0 ? rc : dom_finish(node, name, NULL, threaded, worker, why);
}

static KVX_ON_LOOP int copy_open(struct kvx_node *node, struct kvx_why *why)
{
	const struct kvx_node_conf *conf = &node->conf;
	const struct kvx_transport_ops *ops =
	    conf->copy_ops != NULL ? conf->copy_ops : &kvx_copy_ops;
	char name[16];
	for (unsigned i = 0; i < conf->copy_workers; i++) {
		snprintf(name, sizeof(name), "copy%u", i);
		int rc = dom_open(node, name, ops, conf->threaded, why);
		if (rc != 0)
			return rc;
	}
	if (conf->copy_inline_max_bytes == 0)
		return 0;
	node->inline_dom = (int)node->n_doms;
	return dom_open(node, "inline", ops, false, why);
}

static const char *rail_name(const struct kvx_node_rail *rail)
{
	return rail->rail.name[0] != '\0' ? rail->rail.name : rail->ops->name;
}

/* A rail that cannot be opened is as good as one that probe() said cannot be used. */
static KVX_ON_LOOP void rail_refuse(struct kvx_node_rail *rail, int rc, const struct kvx_why *why)
{
	if (rail->rail.usable) {
		rail->rail.usable = false;
		snprintf(rail->rail.reason, sizeof(rail->rail.reason), "%s",
			 why->text[0] != '\0' ? why->text : strerror(-rc));
	}
	/* What the configuration leaves out is as wanted. */
	enum kvx_log_level level =
	    strncmp(rail->rail.reason, "left out", 8) == 0 ? KVX_LOG_INFO : KVX_LOG_WARN;
	kvx_log(level, "node: %s: %s is not used: %s", rail->ops->name, rail_name(rail),
		rail->rail.reason);
}

/* NULL: it is not used. */
static KVX_ON_LOOP struct kvx_worker *rail_begin(struct kvx_node *node, struct kvx_node_rail *rail)
{
	struct kvx_worker *worker = NULL;
	struct kvx_why why = {.text = ""};
	int rc = 0;
	if (rail->rail.usable)
		rc = dom_begin(node, rail_name(rail), rail->ops, rail, node->conf.threaded, &worker,
			       &why);
	if (rc != 0 || !rail->rail.usable) {
		rail_refuse(rail, rc, &why);
		return NULL;
	}
	return worker;
}

static KVX_ON_LOOP void rail_finish(struct kvx_node *node, struct kvx_node_rail *rail,
				    struct kvx_worker *worker)
{
	struct kvx_why why = {.text = ""};
	if (worker == NULL)
		return;
	int rc = dom_finish(node, rail_name(rail), rail, node->conf.threaded, worker, &why);
	if (rc != 0)
		rail_refuse(rail, rc, &why);
}

/* A row without a name says why, for people. */
static KVX_ON_LOOP void transport_note_unusable(struct kvx_node *node,
						const struct kvx_transport_ops *ops,
						const char *reason)
{
	struct kvx_node_rail *rail = &node->rails[node->n_rails++];
	size_t len = strlen(node->peer_why.text);
	if (reason[0] == '\0')
		reason = "no device was found";
	*rail = (struct kvx_node_rail){.ops = ops, .rail.numa_node = -1};
	snprintf(rail->rail.reason, sizeof(rail->rail.reason), "%s", reason);
	kvx_info("node: %s is not usable: %s", ops->name, reason);
	if (ops == node->conf.gpu_ops)
		return;
	snprintf(node->peer_why.text + len, sizeof(node->peer_why.text) - len, "%s%s: %s",
		 len > 0 ? "; " : "", ops->name, reason);
}

/* Returns how many rails of it can be used. GPUs are opened all at once: each that hangs has the
 * same deadline, and the start waits for one of them. */
static KVX_ON_LOOP unsigned transport_open(struct kvx_node *node,
					   const struct kvx_transport_ops *ops)
{
	struct kvx_rail rails[MAX_FOUND];
	struct kvx_worker *workers[MAX_FOUND];
	struct kvx_why why = {.text = ""};
	struct kvx_node_rail *first = &node->rails[node->n_rails];
	unsigned n_open = 0;
	bool at_once = ops == node->conf.gpu_ops;
	unsigned most = at_once ? KVX_GPU_MAX : KVX_MAX_RAILS;
	int n = ops->probe(&node->conf.dom, rails, most, &why);
	if (n <= 0) {
		transport_note_unusable(node, ops, why.text);
		return 0;
	}
	for (int i = 0; i < n; i++) {
		struct kvx_node_rail *rail = &node->rails[node->n_rails++];
		*rail = (struct kvx_node_rail){.ops = ops, .rail = rails[i]};
		workers[i] = rail_begin(node, rail);
		if (!at_once)
			rail_finish(node, rail, workers[i]);
	}
	for (int i = 0; i < n; i++) {
		if (at_once)
			rail_finish(node, &first[i], workers[i]);
		n_open += first[i].worker != NULL;
	}
	return n_open;
}

/* A node without GPUs, or with unwell ones, is a node all the same. */
static KVX_ON_LOOP void gpus_open(struct kvx_node *node)
{
	const struct kvx_transport_ops *ops = node->conf.gpu_ops;
	unsigned row = node->n_rails;
	if (ops == NULL) {
		kvx_why(&node->gpu_why, 0, "GPUs are turned off ([gpu] enable)");
		return;
	}
	if (transport_open(node, ops) > 0)
		node->gpu_ops = ops;
	else
		kvx_why(&node->gpu_why, 0, "%s", node->rails[row].rail.reason);
}

int node_doms_open(struct kvx_node *node, struct kvx_why *why)
{
	const struct kvx_transport_ops *const *ops = node->conf.peer_ops;
	unsigned n = 0;
	int rc = copy_open(node, why);
	if (rc != 0) {
		node_doms_close(node);
		return rc;
	}
	gpus_open(node);
	for (unsigned i = 0; i < KVX_NODE_TRANSPORTS && ops[i] != NULL; i++)
		if (transport_open(node, ops[i]) > 0)
			node->peer_transports[n++] = ops[i];
	node_near_open(node);
	if (n > 0)
		return 0;
	if (ops[0] == NULL)
		kvx_why(&node->peer_why, 0, "no transport for peers is turned on");
	else if (node->peer_why.text[0] == '\0')
		kvx_why(&node->peer_why, 0, "no device of any transport can be used");
	/* Without one the node still serves its own clients. */
	if (ops[0] != NULL)
		kvx_warn("node: other nodes cannot be reached: %s", node->peer_why.text);
	return 0;
}

void node_doms_close(struct kvx_node *node)
{
	node_near_close(node);
	while (node->n_doms > 0) {
		struct kvx_worker *worker = node->doms[--node->n_doms].worker;
		/* What hangs may use any GPU, and its own worker. */
		bool left = atomic_load(&node->left) && (kvx_worker_ops(worker) == node->gpu_ops ||
							 kvx_worker_in_flight(worker) > 0);

		if (!left)
			kvx_worker_close(worker);
	}
}

const struct kvx_node_rail *kvx_node_rails(const struct kvx_node *node, unsigned *out_n)
{
	*out_n = node->n_rails;
	return node->rails;
}

const char *kvx_node_rail_waits(const struct kvx_node_rail *rail)
{
	const struct kvx_dom_port *port =
	    rail->worker != NULL ? kvx_worker_limits(rail->worker)->port : NULL;
	return port != NULL ? atomic_load(&port->waits) : NULL;
}

bool kvx_node_rail_hangs(const struct kvx_node_rail *rail)
{
	return rail->worker != NULL && kvx_worker_turn_ns(rail->worker) > TURN_NS_MAX;
}

const struct kvx_transport_ops *const *kvx_node_peer_transports(const struct kvx_node *node)
{
	return node->peer_transports;
}

const char *kvx_node_peer_error(const struct kvx_node *node)
{
	return node->peer_transports[0] != NULL ? "" : node->peer_why.text;
}
