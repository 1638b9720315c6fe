/* Node: see node.h. This file makes and ends the data plane of a daemon (workers, job thread,
 * batches, tables) and moves it on once per loop turn. Loop thread; nothing here waits but open and
 * close. */
#include "xfer/node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "xfer/node_priv.h"

#define NODE_DRAIN_ROUNDS 8

/* Any thread. */
void node_doorbell(void *arg)
{
	const struct kvx_node *node = arg;
	if (node->conf.doorbell != NULL && !atomic_load(&node->left))
		node->conf.doorbell(node->conf.doorbell_arg);
}

static void node_on_lane_reset(void *arg, struct kvx_lane *lane, const char *cause)
{
	kvx_assert_on_loop();
	struct kvx_node *node = arg;
	for (unsigned i = 0; i < node->n_lanes; i++) {
		if (lane != &node->lanes[i].lane)
			continue;
		node_lane_reset(&node->lanes[i], cause);
		return;
	}
	if (node->peers.lane_reset != NULL)
		node->peers.lane_reset(node->peers.arg, lane, cause);
}

static void node_on_remote_open(void *arg, struct kvx_target *target, uint64_t uid, int op,
				uint64_t tag, const char *label)
{
	struct kvx_node *node = arg;
	if (node->peers.remote_open != NULL)
		node->peers.remote_open(node->peers.arg, target, uid, op, tag, label);
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
	const struct kvx_gates_conf gates_conf = {
	    .threaded = node->conf.threaded,
	    .doorbell = node_doorbell,
	    .doorbell_arg = node,
	    .call_timeout_ns = node->conf.dom.gpu.call_timeout_ms * KVX_MS,
	};
	int rc = kvx_scheds_create(node->conf.n_batches, node->conf.quantum_bytes, &node->scheds);
	if (rc != 0)
		return rc;
	conf.timers = node->conf.timers;
	conf.scheds = node->scheds;
	conf.remote_arg = node;
	conf.remote_open = node_on_remote_open;
	conf.remote_end = node_on_remote_end;
	conf.lane_reset = node_on_lane_reset;
	conf.near_doms = node_near_doms;
	rc = kvx_gates_create(&gates_conf, &node->gates);
	if (rc != 0)
		goto err_scheds;
	conf.gates = node->gates;
	rc = kvx_xfers_create(&conf, &node->xfers);
	if (rc != 0)
		goto err_gates;
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
err_gates:
	kvx_gates_destroy(node->gates);
err_scheds:
	kvx_scheds_destroy(node->scheds);
	return rc;
}

static KVX_ON_LOOP void tables_destroy(struct kvx_node *node)
{
	kvx_jobs_close(node->jobs);
	kvx_regions_destroy(node->regions);
	kvx_xfers_destroy(node->xfers);
	kvx_gates_destroy(node->gates);
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
	kvx_role_set_worker(); /* it turns the inline worker, too */
	rc = tables_create(node);
	if (rc != 0) {
		kvx_why(why, rc, "no memory for batches and tables, or no thread");
		goto err_free;
	}
	rc = node_doms_open(node, why);
	if (rc != 0)
		goto err_tables;
	rc = node_lanes_open(node, why);
	if (rc != 0)
		goto err_doms;
	*out_node = node;
	return 0;

err_doms:
	node_doms_close(node);
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
	node_lanes_close(node);
	/* Events are of the domains: a thread that hangs in one of those goes on using it. */
	bool left = !kvx_gates_stop(node->gates);
	left |= !node_gpu_regs_stop(node);
	atomic_store(&node->left, left);
	node_doms_close(node);
	tables_destroy(node);
	if (!atomic_load(&node->left))
		free(node);
}

void kvx_node_set_peers(struct kvx_node *node, const struct kvx_node_peer_hooks *hooks)
{
	if (hooks != NULL)
		node->peers = *hooks;
	else
		memset(&node->peers, 0, sizeof(node->peers));
}

static KVX_ON_LOOP void node_keep(struct kvx_node *node, struct kvx_cmd *cmd)
{
	cmd->work.next = NULL;
	if (node->kept == NULL)
		node->kept = &cmd->work;
	else
		node->kept_last->next = &cmd->work;
	node->kept_last = &cmd->work;
}

void kvx_node_submit(struct kvx_node *node, struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	/* What was kept goes first: the order for each worker must hold. */
	if (node->kept == NULL && kvx_worker_submit(worker, cmd) == 0) {
		/* The inline worker runs only inside a drain: make sure that there is one. */
		if (node->inline_dom >= 0 && worker == node->doms[node->inline_dom].worker)
			node_doorbell(node);
		return;
	}
	cmd->worker = worker;
	node_keep(node, cmd);
	node_doorbell(node);
}

/* A worker that is full stays so for this round: what is kept for others goes past it. */
static KVX_ON_LOOP void node_submit_kept(struct kvx_node *node)
{
	struct kvx_work *work = node->kept, *next;
	node->kept = node->kept_last = NULL;
	for (; work != NULL; work = next) {
		struct kvx_cmd *cmd = (struct kvx_cmd *)work;
		next = work->next;
		if (kvx_worker_submit(cmd->worker, cmd) != 0)
			node_keep(node, cmd); /* each completion leads to another drain */
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
	for (unsigned i = 0; i < node->n_lanes; i++)
		node_lane_step(&node->lanes[i]);
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

struct kvx_gates *kvx_node_gates(struct kvx_node *node)
{
	return node->gates;
}

struct kvx_scheds *kvx_node_scheds(struct kvx_node *node)
{
	return node->scheds;
}

struct kvx_worker *kvx_node_worker(struct kvx_node *node, unsigned i, const char **out_name)
{
	if (i >= node->n_doms)
		return NULL;
	*out_name = node->doms[i].name;
	return node->doms[i].worker;
}

struct kvx_lane *kvx_node_own_lane(struct kvx_node *node, unsigned i)
{
	return i < node->n_lanes ? &node->lanes[i].lane : NULL;
}

uint64_t kvx_node_own_lane_up_ns(const struct kvx_node *node, unsigned i)
{
	return i < node->n_lanes ? node->lanes[i].up_ns : 0;
}

unsigned kvx_node_gpus(const struct kvx_node *node)
{
	return node->n_lanes - 1;
}

struct kvx_lane *kvx_node_copy_lane(struct kvx_node *node)
{
	return &node->lanes[0].lane;
}
