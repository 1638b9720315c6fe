/* Lanes of the node to itself: the copy lane, with one outlet per copy worker and the inline one,
 * and one lane for each GPU. Opened once; torn down and made anew when a transfer does not end
 * within the fence bound. Everything but opening and closing is a state machine moved on by
 * completed commands and by drains. Loop thread. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "xfer/node_priv.h"

#define BIT(state) (1u << (state))

static const struct kvx_sm_state lane_states[] = {
    [NODE_LANE_UP] = {"up", BIT(NODE_LANE_FENCING)},
    [NODE_LANE_FENCING] = {"fencing", BIT(NODE_LANE_DRAINING)},
    [NODE_LANE_DRAINING] = {"draining", BIT(NODE_LANE_KEYS)},
    [NODE_LANE_KEYS] = {"freeing keys", BIT(NODE_LANE_CLOSING)},
    [NODE_LANE_CLOSING] = {"closing", BIT(NODE_LANE_LISTENING) | BIT(NODE_LANE_DOWN)},
    [NODE_LANE_LISTENING] = {"listening", BIT(NODE_LANE_UP) | BIT(NODE_LANE_DOWN)},
    [NODE_LANE_DOWN] = {"down", BIT(NODE_LANE_CLOSING)},
};
static const struct kvx_sm_conf lane_sm_conf = {"node lane", lane_states, 7};

static void lane_on_cmd(struct kvx_cmd *cmd)
{
	kvx_assert_on_loop();
	struct node_lane_cmd *c = (struct node_lane_cmd *)cmd;
	struct node_lane *nl = c->nl;
	if (cmd->status != 0) {
		if (nl->status == 0)
			nl->status = cmd->status;
		kvx_warn("node: %s lane: command %d failed: %s", nl->lane.ops->name,
			 (int)cmd->work.kind,
			 cmd->text != NULL ? cmd->text : strerror(-cmd->status));
	} else if (cmd->work.kind == KVX_CMD_LISTEN) {
		c->outlet->ep = cmd->ep;
	}
	if (cmd->work.kind == KVX_CMD_EP_CLOSE)
		c->outlet->ep = NULL;
	nl->n_pending--;
	node_lane_step(nl);
}

/* The same command to every outlet. */
static KVX_ON_LOOP void lane_command(struct node_lane *nl, enum kvx_work_kind kind)
{
	nl->status = 0;
	for (unsigned i = 0; i < nl->n_cmds; i++) {
		struct node_lane_cmd *c = &nl->cmds[i];
		if (kind != KVX_CMD_LISTEN && c->outlet->ep == NULL)
			continue;
		memset(&c->cmd, 0, sizeof(c->cmd));
		c->cmd.work.kind = kind;
		c->cmd.done = lane_on_cmd;
		c->cmd.ep = c->outlet->ep;
		nl->n_pending++;
		kvx_node_submit(nl->node, c->outlet->worker, &c->cmd);
	}
}

static KVX_ON_LOOP void lane_set_up(struct node_lane *nl)
{
	if (nl->status != 0) {
		kvx_sm_move(&nl->sm, NODE_LANE_DOWN);
		nl->lane.state = KVX_LANE_DOWN;
		kvx_error("node: %s lane: no endpoints, its transfers are refused",
			  nl->lane.ops->name);
		kvx_xfers_cancel_lane(nl->node->xfers, &nl->lane, -EIO,
				      "the lane could not be made anew");
		return;
	}
	kvx_sm_move(&nl->sm, NODE_LANE_UP);
	nl->lane.state = nl->lost ? KVX_LANE_DOWN : KVX_LANE_UP;
	nl->up_ns = nl->lost ? 0 : kvx_timers_now(nl->node->conf.timers);
	node_targets_step(nl);
	kvx_sched_pump(nl->lane.sched);
}

/* Moves on by at most one state; says whether it did. */
static KVX_ON_LOOP bool lane_advance(struct node_lane *nl)
{
	if (nl->n_pending > 0)
		return false;
	switch (nl->sm.state) {
	case NODE_LANE_FENCING:
		kvx_sm_move(&nl->sm, NODE_LANE_DRAINING);
		return true;
	case NODE_LANE_DRAINING:
		if (kvx_sched_in_flight(nl->lane.sched) > 0)
			return false;
		kvx_sm_move(&nl->sm, NODE_LANE_KEYS);
		return true;
	case NODE_LANE_KEYS:
		if (node_targets_step(nl) > 0)
			return false;
		kvx_sm_move(&nl->sm, NODE_LANE_CLOSING);
		lane_command(nl, KVX_CMD_EP_CLOSE);
		return true;
	case NODE_LANE_CLOSING:
		if (nl->lane.state == KVX_LANE_CLOSING) {
			kvx_sm_move(&nl->sm, NODE_LANE_DOWN);
			return false;
		}
		kvx_sm_move(&nl->sm, NODE_LANE_LISTENING);
		lane_command(nl, KVX_CMD_LISTEN);
		return true;
	case NODE_LANE_LISTENING:
		lane_set_up(nl);
		return false;
	default:
		return false;
	}
}

void node_lane_step(struct node_lane *nl)
{
	if (nl->stepping)
		return;
	nl->stepping = true;
	while (lane_advance(nl))
		;
	nl->stepping = false;
}

void node_lane_reset(struct node_lane *nl, const char *cause)
{
	struct kvx_why why;
	if (nl->sm.state != NODE_LANE_UP)
		return;
	kvx_why(&why, 0, "the %s lane was reset: %s", nl->lane.ops->name, cause);
	kvx_warn("node: %s", why.text);
	nl->lane.state = nl->lost ? KVX_LANE_DOWN : KVX_LANE_CONNECTING;
	nl->up_ns = 0;
	nl->lane.generation++;
	nl->lane.n_resets++;
	kvx_xfers_fail_lane(nl->node->xfers, &nl->lane, -EIO, 0, why.text);
	kvx_sm_move(&nl->sm, NODE_LANE_FENCING);
	lane_command(nl, KVX_CMD_FENCE);
}

void node_lane_lose(struct node_lane *nl, int status, const char *text)
{
	if (nl->lost)
		return;
	nl->lost = true;
	nl->up_ns = 0;
	nl->lane.state = KVX_LANE_DOWN;
	kvx_xfers_cancel_lane(nl->node->xfers, &nl->lane, status, text);
}

static void lane_add(struct node_lane *nl, struct kvx_outlet *outlet, unsigned dom)
{
	outlet->worker = nl->node->doms[dom].worker;
	outlet->dom_index = dom;
	nl->cmds[nl->n_cmds].nl = nl;
	nl->cmds[nl->n_cmds].outlet = outlet;
	nl->n_cmds++;
}

static bool lanes_settled(struct kvx_node *node)
{
	for (unsigned i = 0; i < node->n_lanes; i++) {
		const struct node_lane *nl = &node->lanes[i];

		if (nl->n_pending > 0 ||
		    (nl->sm.state != NODE_LANE_UP && nl->sm.state != NODE_LANE_DOWN))
			return false;
	}
	return true;
}

static bool lanes_closable(struct kvx_node *node)
{
	return lanes_settled(node) && node->targets == NULL;
}

/* Of the domains [first, first + n). */
static KVX_ON_LOOP int lane_create(struct kvx_node *node, unsigned first, unsigned n,
				   struct node_lane **out_nl)
{
	struct node_lane *nl = &node->lanes[node->n_lanes];
	struct kvx_lane *lane = &nl->lane;
	int rc = kvx_sched_create(lane, node->scheds, &lane->sched);
	if (rc != 0)
		return rc;
	nl->node = node;
	nl->index = node->n_lanes++;
	lane->ops = kvx_worker_ops(node->doms[first].worker);
	lane->state = KVX_LANE_CONNECTING;
	lane->generation = 1;
	for (unsigned i = 0; i < n; i++)
		lane_add(nl, &lane->outlets[lane->n_outlets++], first + i);
	kvx_sm_init(&nl->sm, &lane_sm_conf, NODE_LANE_LISTENING);
	*out_nl = nl;
	return 0;
}

static KVX_ON_LOOP int lanes_create(struct kvx_node *node)
{
	struct node_lane *nl;
	int rc = lane_create(node, 0, node->conf.copy_workers, &nl);
	if (rc != 0)
		return rc;
	if (node->inline_dom >= 0) {
		lane_add(nl, &nl->inline_outlet, (unsigned)node->inline_dom);
		nl->lane.inline_outlet = &nl->inline_outlet;
		nl->lane.inline_max_bytes = node->conf.copy_inline_max_bytes;
	}
	for (unsigned i = 0; rc == 0 && i < node->n_doms; i++)
		if (node->gpu_ops != NULL && kvx_worker_ops(node->doms[i].worker) == node->gpu_ops)
			rc = lane_create(node, i, 1, &node->doms[i].lane);
	return rc;
}

int node_lanes_open(struct kvx_node *node, struct kvx_why *why)
{
	const struct node_lane *copy = &node->lanes[0];
	int rc = lanes_create(node);
	if (rc != 0) {
		while (node->n_lanes > 0)
			kvx_sched_destroy(node->lanes[--node->n_lanes].lane.sched);
		return kvx_why(why, rc, "no memory for a scheduler");
	}
	for (unsigned i = 0; i < node->n_lanes; i++)
		lane_command(&node->lanes[i], KVX_CMD_LISTEN);
	node_wait(node, lanes_settled);
	if (copy->lane.state == KVX_LANE_UP)
		return 0;
	rc = copy->status;
	const char *name = copy->lane.ops->name;
	node_lanes_close(node);
	return kvx_why(why, rc, "%s: no endpoint for same-node transfers", name);
}

void node_lanes_close(struct kvx_node *node)
{
	node_wait(node, lanes_closable);
	for (unsigned i = 0; i < node->n_lanes; i++) {
		struct node_lane *nl = &node->lanes[i];

		nl->lane.state = KVX_LANE_CLOSING;
		if (nl->sm.state == NODE_LANE_UP) {
			kvx_sm_move(&nl->sm, NODE_LANE_FENCING);
			kvx_sm_move(&nl->sm, NODE_LANE_DRAINING);
			kvx_sm_move(&nl->sm, NODE_LANE_KEYS);
		}
		kvx_sm_move(&nl->sm, NODE_LANE_CLOSING);
		lane_command(nl, KVX_CMD_EP_CLOSE);
	}
	node_wait(node, lanes_settled);
	while (node->n_lanes > 0)
		kvx_sched_destroy(node->lanes[--node->n_lanes].lane.sched);
}
