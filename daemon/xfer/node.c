/* Node: see node.h. This file makes and ends the data plane of a daemon (workers, job thread,
 * batches, tables) and moves it on once per loop turn. Loop thread; nothing here waits but open and
 * close. */
#include "xfer/node.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"
#include "base/log.h"
#include "xfer/node_priv.h"

/* Commands that may be in a worker's rings beside all batches; more are kept here. */
#define NODE_RING_COMMANDS 1024
#define NODE_DRAIN_ROUNDS  8

/* Same-node eps report to nobody: a lost one is made anew. */
static void node_copy_note(void *arg, const struct kvx_tevent *event)
{
	kvx_assert_on_loop();
	struct kvx_node *node = arg;
	const char *text = event->text != NULL ? event->text : "endpoint lost";
	if (event->kind == KVX_TEV_EP_DOWN || event->kind == KVX_TEV_DEVICE_LOST)
		node_lane_reset(node, text);
}

static void node_peer_note(void *arg, const struct kvx_tevent *event)
{
	struct kvx_node *node = arg;
	if (node->peers.note != NULL)
		node->peers.note(node->peers.arg, event);
}

static void node_doorbell(void *arg)
{
	const struct kvx_node *node = arg;
	if (node->conf.doorbell != NULL)
		node->conf.doorbell(node->conf.doorbell_arg);
}

/* Appends a domain with its worker. */
static KVX_ON_LOOP int dom_open(struct kvx_node *node, const char *name,
				const struct kvx_transport_ops *ops, bool threaded,
				struct kvx_why *why)
{
	struct node_dom *dom = &node->doms[node->n_doms];
	bool is_peer = strcmp(name, "fabric") == 0;
	char thread_name[16];
	snprintf(dom->name, sizeof(dom->name), "%s", name);
	snprintf(thread_name, sizeof(thread_name), "kvx-%.10s", name);
	struct kvx_worker_conf conf = {
	    .name = thread_name,
	    .ops = ops,
	    .dom = node->conf.dom,
	    .ring_depth = node->conf.n_batches + NODE_RING_COMMANDS,
	    .spin_us = node->conf.spin_us,
	    .threaded = threaded,
	    .doorbell = threaded ? node_doorbell : NULL,
	    .doorbell_arg = node,
	    .note = is_peer ? node_peer_note : node_copy_note,
	    .note_arg = node,
	};
	int rc = kvx_worker_open(&conf, &dom->worker, why);
	if (rc != 0)
		return rc;
	dom->threaded = threaded;
	node->n_doms++;
	return 0;
}

static KVX_ON_LOOP void doms_close(struct kvx_node *node)
{
	while (node->n_doms > 0)
		kvx_worker_close(node->doms[--node->n_doms].worker);
}

static KVX_ON_LOOP int doms_open(struct kvx_node *node, struct kvx_why *why)
{
	const struct kvx_node_conf *conf = &node->conf;
	const struct kvx_transport_ops *copy =
	    conf->copy_ops != NULL ? conf->copy_ops : &kvx_copy_ops;
	const struct kvx_transport_ops *peer =
	    conf->peer_ops != NULL ? conf->peer_ops : &kvx_fabric_ops;
	char name[16];
	int rc;
	for (unsigned i = 0; i < conf->copy_workers; i++) {
		snprintf(name, sizeof(name), "copy%u", i);
		rc = dom_open(node, name, copy, conf->threaded, why);
		if (rc != 0)
			goto err_close;
	}
	if (conf->copy_inline_max_bytes > 0) {
		node->inline_dom = (int)node->n_doms;
		rc = dom_open(node, "inline", copy, false, why);
		if (rc != 0)
			goto err_close;
	}
	if (!conf->fabric) {
		kvx_why(&node->peer_why, 0, "turned off (fabric.enable)");
		return 0;
	}
	/* Without it the node still serves its own clients. */
	rc = dom_open(node, "fabric", peer, conf->threaded, &node->peer_why);
	if (rc == 0)
		node->peer_dom = (int)node->n_doms - 1;
	else
		kvx_warn("node: %s is not usable, other nodes cannot be reached: %s", peer->name,
			 node->peer_why.text);
	return 0;

err_close:
	doms_close(node);
	return rc;
}

static void node_on_lane_reset(void *arg, struct kvx_lane *lane, const char *cause)
{
	kvx_assert_on_loop();
	struct kvx_node *node = arg;
	if (lane == &node->copy.lane)
		node_lane_reset(node, cause);
	else if (node->peers.lane_reset != NULL)
		node->peers.lane_reset(node->peers.arg, lane, cause);
}

static void node_on_remote_open(void *arg, struct kvx_target *target, uint64_t uid, int op,
				uint64_t tag)
{
	struct kvx_node *node = arg;
	if (node->peers.remote_open != NULL)
		node->peers.remote_open(node->peers.arg, target, uid, op, tag);
}

static void node_on_remote_end(void *arg, struct kvx_target *target, uint64_t uid,
			       const struct kvx_arrival *end)
{
	struct kvx_node *node = arg;
	if (node->peers.remote_end != NULL)
		node->peers.remote_end(node->peers.arg, target, uid, end);
}

static KVX_ON_LOOP int tables_create(struct kvx_node *node)
{
	struct kvx_xfers_conf conf = node->conf.xfers;
	int rc = kvx_scheds_create(node->conf.n_batches, node->conf.quantum_bytes, &node->scheds);
	if (rc != 0)
		return rc;
	conf.timers = node->conf.timers;
	conf.scheds = node->scheds;
	conf.remote_arg = node;
	conf.remote_open = node_on_remote_open;
	conf.remote_end = node_on_remote_end;
	conf.lane_reset = node_on_lane_reset;
	rc = kvx_xfers_create(&conf, &node->xfers);
	if (rc != 0)
		goto err_scheds;
	rc = kvx_regions_create(&node->conf.region_limits, &node->regions);
	if (rc != 0)
		goto err_xfers;
	rc = kvx_jobs_open(node->conf.threaded, node_doorbell, node, &node->jobs);
	if (rc != 0)
		goto err_regions;
	return 0;

err_regions:
	kvx_regions_destroy(node->regions);
err_xfers:
	kvx_xfers_destroy(node->xfers);
err_scheds:
	kvx_scheds_destroy(node->scheds);
	return rc;
}

static KVX_ON_LOOP void tables_destroy(struct kvx_node *node)
{
	kvx_jobs_close(node->jobs);
	kvx_regions_destroy(node->regions);
	kvx_xfers_destroy(node->xfers);
	kvx_scheds_destroy(node->scheds);
}

int kvx_node_open(const struct kvx_node_conf *conf, struct kvx_node **out_node, struct kvx_why *why)
{
	struct kvx_node *node;
	int rc;
	if (conf->copy_workers < 1 || conf->copy_workers > NODE_MAX_COPY_WORKERS)
		return kvx_why(why, -EINVAL, "copy.workers is %u: 1 to %d", conf->copy_workers,
			       NODE_MAX_COPY_WORKERS);
	node = calloc(1, sizeof(*node));
	if (node == NULL)
		return kvx_why(why, -ENOMEM, "no memory for the node");
	node->conf = *conf;
	node->inline_dom = -1;
	node->peer_dom = -1;
	kvx_role_set_worker(); /* it turns the inline worker, too */
	rc = tables_create(node);
	if (rc != 0) {
		kvx_why(why, rc, "no memory for batches and tables, or no thread");
		goto err_free;
	}
	rc = doms_open(node, why);
	if (rc != 0)
		goto err_tables;
	rc = node_lane_open(node, why);
	if (rc != 0)
		goto err_doms;
	*out_node = node;
	return 0;

err_doms:
	doms_close(node);
err_tables:
	tables_destroy(node);
err_free:
	free(node);
	return rc;
}

void kvx_node_close(struct kvx_node *node)
{
	if (node == NULL)
		return;
	kvx_assert(kvx_regions_count(node->regions) == 0 && kvx_xfers_count(node->xfers) == 0);
	node_lane_close(node);
	doms_close(node);
	tables_destroy(node);
	free(node);
}

void kvx_node_set_peers(struct kvx_node *node, const struct kvx_node_peer_hooks *hooks)
{
	if (hooks != NULL)
		node->peers = *hooks;
	else
		memset(&node->peers, 0, sizeof(node->peers));
}

void kvx_node_submit(struct kvx_node *node, struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	/* What was kept goes first: order per worker must hold. */
	if (node->kept == NULL && kvx_worker_submit(worker, cmd) == 0) {
		/* The inline worker runs only inside a drain: make sure that there is one. */
		if (node->inline_dom >= 0 && worker == node->doms[node->inline_dom].worker)
			node_doorbell(node);
		return;
	}
	cmd->worker = worker;
	cmd->work.next = NULL;
	if (node->kept == NULL)
		node->kept = &cmd->work;
	else
		node->kept_last->next = &cmd->work;
	node->kept_last = &cmd->work;
	node_doorbell(node);
}

static KVX_ON_LOOP void node_submit_kept(struct kvx_node *node)
{
	while (node->kept != NULL) {
		struct kvx_cmd *cmd = (struct kvx_cmd *)node->kept;
		struct kvx_work *next = node->kept->next;
		if (kvx_worker_submit(cmd->worker, cmd) != 0)
			return; /* each completion of that worker leads to another drain */
		node->kept = next;
	}
}

static KVX_ON_LOOP unsigned node_drain_once(struct kvx_node *node)
{
	unsigned n = 0;
	node_submit_kept(node);
	if (node->inline_dom >= 0)
		while (kvx_worker_pump(node->doms[node->inline_dom].worker))
			;
	for (unsigned i = 0; i < node->n_doms; i++)
		n += kvx_worker_drain(node->doms[i].worker);
	n += kvx_jobs_drain(node->jobs);
	node_lane_step(node);
	kvx_xfers_pump(node->xfers);
	return n;
}

/* Completions make new commands for the inline worker, which nobody else would run: so it takes
 * some rounds, but not so many that busy workers keep the loop here. Returns how much came. */
static KVX_ON_LOOP unsigned node_drain(struct kvx_node *node)
{
	unsigned n, rounds = 0, sum = 0;
	if (node->draining) /* from a callback: the outer one goes on */
		return 0;
	node->draining = true;
	do {
		n = node_drain_once(node);
		sum += n;
	} while (n > 0 && (!node->conf.threaded || ++rounds < NODE_DRAIN_ROUNDS));
	node->draining = false;
	if (n > 0)
		node_doorbell(node);
	return sum;
}

void kvx_node_drain(struct kvx_node *node)
{
	node_drain(node);
}

static KVX_ON_LOOP unsigned node_in_flight(const struct kvx_node *node)
{
	unsigned n = 0;
	for (unsigned i = 0; i < node->n_doms; i++)
		n += kvx_worker_in_flight(node->doms[i].worker);
	return n;
}

bool kvx_node_pump(struct kvx_node *node)
{
	unsigned before = node_in_flight(node);
	bool did = false;
	for (unsigned i = 0; i < node->n_doms; i++) {
		if (!node->doms[i].threaded)
			did |= kvx_worker_pump(node->doms[i].worker);
	}
	did |= node_drain(node) > 0;
	return did || node_in_flight(node) != before;
}

void node_wait(struct kvx_node *node, bool (*done)(struct kvx_node *node))
{
	const struct timespec nap = {.tv_nsec = 50000};
	for (;;) {
		kvx_node_pump(node);
		if (done(node))
			return;
		if (node->conf.threaded)
			nanosleep(&nap, NULL);
	}
}

struct kvx_xfers *kvx_node_xfers(struct kvx_node *node)
{
	return node->xfers;
}

struct kvx_regions *kvx_node_regions(struct kvx_node *node)
{
	return node->regions;
}

struct kvx_scheds *kvx_node_scheds(struct kvx_node *node)
{
	return node->scheds;
}

struct kvx_worker *kvx_node_peer_worker(struct kvx_node *node, unsigned *out_dom_index)
{
	if (node->peer_dom < 0)
		return NULL;
	*out_dom_index = (unsigned)node->peer_dom;
	return node->doms[node->peer_dom].worker;
}

const char *kvx_node_peer_worker_error(const struct kvx_node *node)
{
	return node->peer_dom >= 0 ? "" : node->peer_why.text;
}

struct kvx_worker *kvx_node_worker(struct kvx_node *node, unsigned i, const char **out_name)
{
	if (i >= node->n_doms)
		return NULL;
	*out_name = node->doms[i].name;
	return node->doms[i].worker;
}

struct kvx_lane *kvx_node_copy_lane(struct kvx_node *node)
{
	return &node->copy.lane;
}
