/* The copy lane: one outlet per copy worker and the inline one. Opened once; torn down and made
 * anew when a transfer does not end within the fence bound. Everything but opening and closing is a
 * state machine moved on by completed commands and by drains. Loop thread. */
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
static const struct kvx_sm_conf lane_sm_conf = {"copy lane", lane_states, 7};

static void lane_on_cmd(struct kvx_cmd *cmd)
{
	kvx_assert_on_loop();
	struct node_lane_cmd *c = (struct node_lane_cmd *)cmd;
	struct node_lane *copy = &c->node->copy;
	if (cmd->status != 0) {
		if (copy->status == 0)
			copy->status = cmd->status;
		kvx_warn("node: copy lane: command %d failed: %s", (int)cmd->work.kind,
			 cmd->text != NULL ? cmd->text : strerror(-cmd->status));
	} else if (cmd->work.kind == KVX_CMD_LISTEN) {
		c->outlet->ep = cmd->ep;
	}
	if (cmd->work.kind == KVX_CMD_EP_CLOSE)
		c->outlet->ep = NULL;
	copy->n_pending--;
	node_lane_step(c->node);
}

/* The same command to every outlet. */
static KVX_ON_LOOP void lane_command(struct kvx_node *node, enum kvx_work_kind kind)
{
	struct node_lane *copy = &node->copy;
	copy->status = 0;
	for (unsigned i = 0; i < copy->n_cmds; i++) {
		struct node_lane_cmd *c = &copy->cmds[i];
		if (kind != KVX_CMD_LISTEN && c->outlet->ep == NULL)
			continue;
		memset(&c->cmd, 0, sizeof(c->cmd));
		c->cmd.work.kind = kind;
		c->cmd.done = lane_on_cmd;
		c->cmd.ep = c->outlet->ep;
		copy->n_pending++;
		kvx_node_submit(node, c->outlet->worker, &c->cmd);
	}
}

static KVX_ON_LOOP void lane_set_up(struct kvx_node *node)
{
	struct node_lane *copy = &node->copy;
	if (copy->status != 0) {
		kvx_sm_move(&copy->sm, NODE_LANE_DOWN);
		copy->lane.state = KVX_LANE_DOWN;
		kvx_error("node: copy lane: no endpoints, same-node transfers are refused");
		kvx_xfers_cancel_lane(node->xfers, &copy->lane, -EIO,
				      "the copy lane could not be made anew");
		return;
	}
	kvx_sm_move(&copy->sm, NODE_LANE_UP);
	copy->lane.state = KVX_LANE_UP;
	node_targets_step(node);
	kvx_sched_pump(copy->lane.sched);
}

/* Moves on by at most one state; says whether it did. */
static KVX_ON_LOOP bool lane_advance(struct kvx_node *node)
{
	struct node_lane *copy = &node->copy;
	if (copy->n_pending > 0)
		return false;
	switch (copy->sm.state) {
	case NODE_LANE_FENCING:
		kvx_sm_move(&copy->sm, NODE_LANE_DRAINING);
		return true;
	case NODE_LANE_DRAINING:
		if (kvx_sched_in_flight(copy->lane.sched) > 0)
			return false;
		kvx_sm_move(&copy->sm, NODE_LANE_KEYS);
		return true;
	case NODE_LANE_KEYS:
		if (node_targets_step(node) > 0)
			return false;
		kvx_sm_move(&copy->sm, NODE_LANE_CLOSING);
		lane_command(node, KVX_CMD_EP_CLOSE);
		return true;
	case NODE_LANE_CLOSING:
		if (copy->lane.state == KVX_LANE_CLOSING) {
			kvx_sm_move(&copy->sm, NODE_LANE_DOWN);
			return false;
		}
		kvx_sm_move(&copy->sm, NODE_LANE_LISTENING);
		lane_command(node, KVX_CMD_LISTEN);
		return true;
	case NODE_LANE_LISTENING:
		lane_set_up(node);
		return false;
	default:
		return false;
	}
}

void node_lane_step(struct kvx_node *node)
{
	struct node_lane *copy = &node->copy;
	if (copy->stepping)
		return;
	copy->stepping = true;
	while (lane_advance(node))
		;
	copy->stepping = false;
}

void node_lane_reset(struct kvx_node *node, const char *cause)
{
	struct node_lane *copy = &node->copy;
	struct kvx_why why;
	if (copy->sm.state != NODE_LANE_UP)
		return;
	kvx_why(&why, 0, "the %s lane was reset: %s", copy->lane.ops->name, cause);
	kvx_warn("node: %s", why.text);
	copy->lane.state = KVX_LANE_CONNECTING;
	copy->lane.generation++;
	copy->lane.n_resets++;
	kvx_xfers_fail_lane(node->xfers, &copy->lane, -EIO, 0, why.text);
	kvx_sm_move(&copy->sm, NODE_LANE_FENCING);
	lane_command(node, KVX_CMD_FENCE);
}

static void lane_add(struct node_lane *copy, struct kvx_outlet *outlet, struct kvx_node *node,
		     unsigned dom)
{
	outlet->worker = node->doms[dom].worker;
	outlet->dom_index = dom;
	copy->cmds[copy->n_cmds].node = node;
	copy->cmds[copy->n_cmds].outlet = outlet;
	copy->n_cmds++;
}

static bool lane_settled(struct kvx_node *node)
{
	return node->copy.n_pending == 0 &&
	       (node->copy.sm.state == NODE_LANE_UP || node->copy.sm.state == NODE_LANE_DOWN);
}

static bool lane_closable(struct kvx_node *node)
{
	return lane_settled(node) && node->targets == NULL;
}

int node_lane_open(struct kvx_node *node, struct kvx_why *why)
{
	struct node_lane *copy = &node->copy;
	struct kvx_lane *lane = &copy->lane;
	int rc = kvx_sched_create(lane, node->scheds, &lane->sched);
	if (rc != 0)
		return kvx_why(why, rc, "no memory for a scheduler");
	lane->ops = kvx_worker_ops(node->doms[0].worker);
	lane->state = KVX_LANE_CONNECTING;
	lane->generation = 1;
	for (unsigned i = 0; i < node->conf.copy_workers; i++)
		lane_add(copy, &lane->outlets[lane->n_outlets++], node, i);
	if (node->inline_dom >= 0) {
		lane_add(copy, &copy->inline_outlet, node, (unsigned)node->inline_dom);
		lane->inline_outlet = &copy->inline_outlet;
		lane->inline_max_bytes = node->conf.copy_inline_max_bytes;
	}
	kvx_sm_init(&copy->sm, &lane_sm_conf, NODE_LANE_LISTENING);
	lane_command(node, KVX_CMD_LISTEN);
	node_wait(node, lane_settled);
	if (lane->state == KVX_LANE_UP)
		return 0;
	rc = copy->status;
	node_lane_close(node);
	return kvx_why(why, rc, "%s: no endpoint for same-node transfers", lane->ops->name);
}

void node_lane_close(struct kvx_node *node)
{
	struct node_lane *copy = &node->copy;
	node_wait(node, lane_closable);
	copy->lane.state = KVX_LANE_CLOSING;
	if (copy->sm.state == NODE_LANE_UP) {
		kvx_sm_move(&copy->sm, NODE_LANE_FENCING);
		kvx_sm_move(&copy->sm, NODE_LANE_DRAINING);
		kvx_sm_move(&copy->sm, NODE_LANE_KEYS);
	}
	kvx_sm_move(&copy->sm, NODE_LANE_CLOSING);
	lane_command(node, KVX_CMD_EP_CLOSE);
	node_wait(node, lane_settled);
	kvx_sched_destroy(copy->lane.sched);
}
