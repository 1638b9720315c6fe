/* Targets of regions of this node: one per region while somebody imports it, and one more for each
 * other lane that its transfers take. Makes their rkeys, one per outlet of the lane, while
 * transfers already wait for them, and frees them when nobody needs them, when the region closes,
 * or when the lane is reset. Loop thread. */
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

/* Whoever keeps it lets it go: the next transfer by that lane tries again. */
static KVX_ON_LOOP void target_leave_first(struct node_target *nt)
{
	if (nt->first == NULL)
		return;
	nt->first->others[nt->nl->index] = NULL;
	nt->first = NULL;
	kvx_target_unref(&nt->target);
}

static KVX_ON_LOOP void target_on_keys(struct node_target *nt)
{
	struct kvx_node *node = nt->node;
	if (nt->status != 0) {
		const char *text = nt->text != NULL ? nt->text : "no key for its lane";
		kvx_warn("node: region %" PRIu64 ": no rkey: %s", nt->target.region_id, text);
		nt->failed = true;
		if (nt->nr != NULL && nt->nr->target == nt)
			nt->nr->target = NULL; /* the next import tries again */
		target_leave_first(nt);
		kvx_xfers_cancel_target(node->xfers, &nt->target, nt->status, text);
		kvx_target_lose(&nt->target, nt->status, text);
		kvx_target_tell(&nt->target);
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
	const struct kvx_outlet *outlet = nt->nl->cmds[i].outlet;
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
	nt->key_generation = nt->nl->lane.generation;
	nt->status = 0;
	nt->text = NULL;
	for (unsigned i = 0; i < nt->nl->n_cmds; i++) {
		struct kvx_cmd *cmd = &nt->cmds[i].cmd;
		const struct kvx_outlet *outlet = nt->nl->cmds[i].outlet;
		const struct kvx_reg *reg = nt->nr->region->reg[outlet->dom_index];
		kvx_assert(reg != NULL); /* looked at when the target was made */
		target_command(nt, i, KVX_CMD_RKEY_UNPACK);
		cmd->done = target_on_unpack;
		cmd->mkey = reg->mkey; /* it stays as long as this target has the region */
		cmd->mkey_len = reg->mkey_len;
		kvx_node_submit(node, outlet->worker, cmd);
	}
}

static void target_on_free(struct kvx_cmd *cmd)
{
	kvx_assert_on_loop();
	struct node_target *nt = ((struct node_target_cmd *)cmd)->nt;
	struct node_lane *nl = nt->nl;
	if (--nt->n_pending > 0)
		return;
	nt->have_keys = false;
	node_target_step(nt);
	node_lane_step(nl);
}

/* Whether there was anything to free. */
static KVX_ON_LOOP bool target_free_keys(struct node_target *nt)
{
	struct kvx_node *node = nt->node;
	nt->target.lane_generation = 0;
	for (unsigned i = 0; i < nt->nl->n_cmds; i++) {
		const struct kvx_outlet *outlet = nt->nl->cmds[i].outlet;
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
	const struct node_lane *nl = nt->nl;
	bool want = !nt->dying && !nt->closing && !nt->failed;
	if (nt->n_pending > 0)
		return;
	if (nt->have_keys) {
		/* Keys of a lane that is being reset may be in use until it has drained. */
		bool stale =
		    nt->key_generation != nl->lane.generation && nl->sm.state == NODE_LANE_KEYS;
		if ((want && !stale) || target_free_keys(nt))
			return;
	}
	if (want && nl->sm.state == NODE_LANE_UP)
		target_unpack(nt);
	else if (nt->dying || nt->closing)
		target_detach(nt);
}

unsigned node_targets_step(struct node_lane *nl)
{
	struct kvx_target *target;
	unsigned n = 0;
	DL_FOREACH (nl->node->targets, target) {
		struct node_target *nt = (struct node_target *)target;
		if (nt->nl != nl)
			continue;
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
	for (unsigned i = 0; i < NODE_MAX_LANES; i++)
		if (nt->others[i] != NULL)
			target_leave_first(nt->others[i]);
	nt->dying = true;
	if (nt->nr != NULL && nt->nr->target == nt)
		nt->nr->target = NULL;
	node_target_step(nt);
}

static int target_route(struct kvx_target *target, const struct kvx_route_ask *ask,
			struct kvx_target **out_target, struct kvx_why *why);

/* With no reference yet. */
static struct node_target *target_make(struct kvx_node *node, struct node_region *nr,
				       struct node_lane *nl)
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
	nt->nl = nl;
	nt->target.region_id = region->id;
	memcpy(nt->target.token, region->token, sizeof(region->token));
	nt->target.len_bytes = region->mem.len_bytes;
	nt->target.access = region->access;
	nt->target.region = region;
	nt->target.lane = &nl->lane;
	nt->target.release = target_release;
	nt->target.route = target_route;
	DL_APPEND(node->targets, &nt->target);
	nr->n_targets++;
	return nt;
}

/* Can this region's bytes go by that lane at all? */
static bool lane_knows(const struct node_lane *nl, const struct kvx_region *region)
{
	for (unsigned i = 0; i < nl->n_cmds; i++)
		if (region->reg[nl->cmds[i].outlet->dom_index] == NULL)
			return false;
	return true;
}

static int lane_refuses(const struct kvx_node *node, const struct node_lane *nl,
			const struct kvx_region *region, struct kvx_why *why)
{
	if (kvx_mem_kind_is_gpu(region->mem.ops->kind))
		return kvx_why(why, -ENETUNREACH,
			       "region %" PRIu64 " is memory of a GPU that is not reached by the "
			       "%s lane",
			       region->id, nl->lane.ops->name);
	return kvx_why(
	    why, -ENETUNREACH,
	    "region %" PRIu64 " is host memory that GPUs cannot copy from and to: %s", region->id,
	    node->conf.gpu_pin_host ? "the daemon's log says why it was not page-locked"
				    : "[gpu] pin_host is false in the daemon's configuration");
}

/* What goes by another lane than most of the region's transfers gets a target of its own. */
static int target_route(struct kvx_target *target, const struct kvx_route_ask *ask,
			struct kvx_target **out_target, struct kvx_why *why)
{
	kvx_assert_on_loop();
	const struct kvx_region *local = ask->local;
	struct node_target *nt = (struct node_target *)target;
	if (nt->nr == NULL) { /* it is lost, and says so itself */
		*out_target = target;
		return 0;
	}
	const struct kvx_region *region = nt->nr->region;
	struct node_lane *nl = node_gpu_lane(nt->node, local, region, ask->op);
	if (!lane_knows(nl, local) || !lane_knows(nl, region))
		return lane_refuses(nt->node, nl, lane_knows(nl, local) ? region : local, why);
	if (nl == nt->nl) {
		*out_target = target;
		return 0;
	}
	struct node_target *other = nt->others[nl->index];
	if (other == NULL) {
		other = target_make(nt->node, nt->nr, nl);
		if (other == NULL)
			return kvx_why(why, -ENOMEM, "no memory for a way to the region");
		other->first = nt;
		nt->others[nl->index] = other;
		kvx_target_ref(&other->target);
		node_target_step(other);
	}
	*out_target = &other->target;
	return 0;
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
		struct node_lane *nl = node_region_lane(node, region);
		if (!lane_knows(nl, region))
			return lane_refuses(node, nl, region, why);
		struct node_target *nt = target_make(node, nr, nl);
		if (nt == NULL)
			return kvx_why(why, -ENOMEM, "no memory for an import");
		nr->target = nt;
		*out_target = kvx_target_ref(&nt->target);
		node_target_step(nt);
		return 0;
	}
	*out_target = kvx_target_ref(&nr->target->target);
	return 0;
}
