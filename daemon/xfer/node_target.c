/* Targets of regions of this node: one per region while somebody imports it. Makes their rkeys, one
 * per outlet of the copy lane, while transfers already wait for them, and frees them when nobody
 * needs them, when the region closes, or when the lane is reset. Loop thread. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/assert.h"
#include "base/log.h"
#include "xfer/node_priv.h"

static struct kvx_layout *layout_copy(const struct kvx_layout *layout)
{
	struct kvx_layout *copy = kvx_layout_create(layout->n_planes);
	if (copy != NULL)
		memcpy(copy->planes, layout->planes, layout->n_planes * sizeof(copy->planes[0]));
	return copy;
}

static KVX_ON_LOOP void target_on_keys(struct node_target *nt)
{
	struct kvx_node *node = nt->node;
	if (nt->status != 0) {
		const char *text = nt->text != NULL ? nt->text : "no key for the copy lane";
		kvx_warn("node: region %" PRIu64 ": no rkey: %s", nt->target.region_id, text);
		nt->failed = true;
		if (nt->nr != NULL && nt->nr->target == nt)
			nt->nr->target = NULL; /* the next import tries again */
		kvx_xfers_cancel_target(node->xfers, &nt->target, nt->status, text);
		kvx_target_lose(&nt->target, nt->status, text);
	} else { /* keys that are out of date already are seen by their generation */
		nt->target.lane_generation = nt->key_generation;
		kvx_xfers_kick_target(node->xfers, &nt->target);
	}
}

static void target_on_unpack(struct kvx_cmd *cmd)
{
	kvx_assert_on_loop();
	struct node_target_cmd *c = (struct node_target_cmd *)cmd;
	struct node_target *nt = c->nt;
	if (cmd->status == 0) {
		nt->target.rkey[c->dom] = cmd->rkey;
	} else if (nt->status == 0) {
		nt->status = cmd->status;
		nt->text = cmd->text;
	}
	if (--nt->n_pending > 0)
		return;
	if (nt->dying) {
		node_target_step(nt);
		return;
	}
	kvx_target_ref(&nt->target); /* who is told that it is lost may drop the last one */
	target_on_keys(nt);
	node_target_step(nt);
	kvx_target_unref(&nt->target);
}

static void target_command(struct node_target *nt, unsigned i, enum kvx_work_kind kind)
{
	struct kvx_node *node = nt->node;
	const struct kvx_outlet *outlet = node->copy.cmds[i].outlet;
	struct node_target_cmd *c = &nt->cmds[i];
	memset(&c->cmd, 0, sizeof(c->cmd));
	c->nt = nt;
	c->dom = outlet->dom_index;
	c->cmd.work.kind = kind;
	c->cmd.ep = outlet->ep;
	nt->n_pending++;
}

static KVX_ON_LOOP void target_unpack(struct node_target *nt)
{
	struct kvx_node *node = nt->node;
	nt->have_keys = true;
	nt->key_generation = node->copy.lane.generation;
	nt->status = 0;
	nt->text = NULL;
	for (unsigned i = 0; i < node->copy.n_cmds; i++) {
		struct kvx_cmd *cmd = &nt->cmds[i].cmd;
		const struct kvx_outlet *outlet = node->copy.cmds[i].outlet;
		const struct kvx_reg *reg = nt->nr->region->reg[outlet->dom_index];
		target_command(nt, i, KVX_CMD_RKEY_UNPACK);
		cmd->done = target_on_unpack;
		cmd->len = reg->mkey_len;
		memcpy(cmd->bytes, reg->mkey, reg->mkey_len);
		kvx_node_submit(node, outlet->worker, cmd);
	}
}

static void target_on_free(struct kvx_cmd *cmd)
{
	kvx_assert_on_loop();
	struct node_target *nt = ((struct node_target_cmd *)cmd)->nt;
	struct kvx_node *node = nt->node;
	if (--nt->n_pending > 0)
		return;
	nt->have_keys = false;
	node_target_step(nt);
	node_lane_step(node);
}

/* Whether there was anything to free. */
static KVX_ON_LOOP bool target_free_keys(struct node_target *nt)
{
	struct kvx_node *node = nt->node;
	nt->target.lane_generation = 0;
	for (unsigned i = 0; i < node->copy.n_cmds; i++) {
		const struct kvx_outlet *outlet = node->copy.cmds[i].outlet;
		struct kvx_rkey *rkey = nt->target.rkey[outlet->dom_index];
		if (rkey == NULL)
			continue;
		nt->target.rkey[outlet->dom_index] = NULL;
		target_command(nt, i, KVX_CMD_RKEY_FREE);
		nt->cmds[i].cmd.rkey = rkey;
		nt->cmds[i].cmd.done = target_on_free;
		kvx_node_submit(node, outlet->worker, &nt->cmds[i].cmd);
	}
	if (nt->n_pending == 0)
		nt->have_keys = false;
	return nt->n_pending > 0;
}

/* Without keys and not wanted: lets go of the region, and is freed once nobody refers to it. */
static KVX_ON_LOOP void target_detach(struct node_target *nt)
{
	struct node_region *nr = nt->nr;
	nt->nr = NULL;
	nt->target.region = NULL;
	if (nr != NULL) {
		if (nr->target == nt)
			nr->target = NULL;
		nr->n_targets--;
	}
	if (nt->dying) {
		DL_DELETE(nt->node->targets, &nt->target);
		kvx_layout_destroy(nt->target.layout);
		free(nt);
	}
	if (nr != NULL)
		node_region_step(nr);
}

void node_target_step(struct node_target *nt)
{
	const struct node_lane *copy = &nt->node->copy;
	bool want = !nt->dying && !nt->closing && !nt->failed;
	if (nt->n_pending > 0)
		return;
	if (nt->have_keys) {
		/* Keys of a lane that is being reset may be in use until it has drained. */
		bool stale =
		    nt->key_generation != copy->lane.generation && copy->sm.state == NODE_LANE_KEYS;
		if ((want && !stale) || target_free_keys(nt))
			return;
	}
	if (want && copy->sm.state == NODE_LANE_UP)
		target_unpack(nt);
	else if (nt->dying || nt->closing)
		target_detach(nt);
}

unsigned node_targets_step(struct kvx_node *node)
{
	struct kvx_target *target;
	unsigned n = 0;
	DL_FOREACH (node->targets, target) {
		struct node_target *nt = (struct node_target *)target;
		/* Those that are on their way out get there by their own completions. */
		if (!nt->dying && !nt->closing)
			node_target_step(nt);
		n += nt->have_keys || nt->n_pending > 0;
	}
	return n;
}

static void target_release(struct kvx_target *target)
{
	kvx_assert_on_loop();
	struct node_target *nt = (struct node_target *)target;
	nt->dying = true;
	if (nt->nr != NULL && nt->nr->target == nt)
		nt->nr->target = NULL;
	node_target_step(nt);
}

static struct node_target *target_make(struct kvx_node *node, struct node_region *nr)
{
	struct kvx_region *region = nr->region;
	struct node_target *nt = calloc(1, sizeof(*nt));
	if (nt == NULL)
		return NULL;
	if (region->layout != NULL) {
		nt->target.layout = layout_copy(region->layout);
		if (nt->target.layout == NULL) {
			free(nt);
			return NULL;
		}
	}
	nt->node = node;
	nt->nr = nr;
	nt->target.region_id = region->id;
	memcpy(nt->target.token, region->token, sizeof(region->token));
	nt->target.len_bytes = region->mem.len_bytes;
	nt->target.access = region->access;
	nt->target.region = region;
	nt->target.lane = &node->copy.lane;
	nt->target.release = target_release;
	DL_APPEND(node->targets, &nt->target);
	nr->target = nt;
	nr->n_targets++;
	return nt;
}

int kvx_node_target_open(struct kvx_node *node, struct kvx_region *region,
			 struct kvx_target **out_target, struct kvx_why *why)
{
	struct node_region *nr = region->retire;
	if (region->state != KVX_REGION_LIVE || nr == NULL)
		return kvx_why(why, -EOWNERDEAD, "region %" PRIu64 " is not usable (any more)",
			       region->id);
	if ((region->access & (KVX_ACCESS_READ | KVX_ACCESS_WRITE)) == 0)
		return kvx_why(why, -EACCES,
			       "region %" PRIu64
			       " allows others nothing: its owner must register it with access",
			       region->id);
	if (nr->target == NULL) {
		struct node_target *nt = target_make(node, nr);
		if (nt == NULL)
			return kvx_why(why, -ENOMEM, "no memory for an import");
		*out_target = kvx_target_ref(&nt->target);
		node_target_step(nt);
		return 0;
	}
	*out_target = kvx_target_ref(&nr->target->target);
	return 0;
}
