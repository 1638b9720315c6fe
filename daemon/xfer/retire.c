/* Regions out, in the one safe order: no new transfers, the running ones end behind their fence (of
 * a client that is gone: also those that it has with other regions), importers here are told, peers
 * stop using it, same-node keys are freed, every domain deregisters it, the job thread unmaps it,
 * the table forgets it. Each step begins only when the one before is over; nothing waits. Loop
 * thread. */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <utlist.h>

#include "base/assert.h"
#include "base/log.h"
#include "xfer/node_priv.h"

static void region_on_withdrawn(void *arg)
{
	kvx_assert_on_loop();
	struct node_region *nr = arg;
	kvx_assert(!nr->withdrawn);
	nr->withdrawn = true;
	node_region_step(nr);
}

static void region_on_xfers_ended(struct kvx_xfers_watch *watch)
{
	kvx_assert_on_loop();
	node_region_step(
	    (struct node_region *)((char *)watch - offsetof(struct node_region, watch)));
}

/* No transfer begins to use it any more, so one round of cancelling is enough. That the client is
 * gone must not be heard before its last transfer into memory of others has ended: from then on
 * they use that memory again. */
static KVX_ON_LOOP bool region_drained(struct node_region *nr)
{
	struct kvx_xfers *xfers = nr->node->xfers;
	if (!nr->cancelled)
		kvx_xfers_cancel_region(xfers, nr->region, nr->status, nr->why.text);
	nr->cancelled = true;
	if (nr->region->n_users > 0)
		return false;
	if (nr->status == -EPIPE && kvx_xfers_count_client(xfers, nr->region->owner) > 0)
		return false;
	kvx_xfers_unwatch(xfers, &nr->watch);
	return true;
}

void node_region_withdraw(struct node_region *nr, int status, const char *text)
{
	const struct kvx_node_peer_hooks *peers = &nr->node->peers;
	const struct kvx_withdrawal why = {status, text};
	if (nr->withdrawing)
		return;
	nr->withdrawing = true;
	if (peers->withdraw != NULL)
		peers->withdraw(peers->arg, nr->region, &why, region_on_withdrawn, nr);
	else
		nr->withdrawn = true;
}

/* Its targets let go of it: the one that is shared, and those whose keys could not be made. */
static KVX_ON_LOOP void region_close_targets(struct node_region *nr)
{
	struct kvx_target *target, *next;
	DL_FOREACH_SAFE (nr->node->targets, target, next) {
		struct node_target *nt = (struct node_target *)target;
		if (nt->nr != nr || nt->dying)
			continue;
		nt->closing = true;
		node_target_step(nt);
	}
}

/* Moves on by at most one state; says whether it did. */
static KVX_ON_LOOP bool region_advance(struct node_region *nr)
{
	switch (nr->sm.state) {
	case NODE_REGION_DRAINING:
		if (!region_drained(nr))
			return false;
		kvx_sm_move(&nr->sm, NODE_REGION_WITHDRAWING);
		if (nr->target != NULL)
			kvx_target_tell(&nr->target->target);
		node_region_withdraw(nr, nr->status, nr->why.text);
		return true;
	case NODE_REGION_WITHDRAWING:
		if (!nr->withdrawn)
			return false;
		kvx_sm_move(&nr->sm, NODE_REGION_KEYS);
		if (nr->n_targets > 0)
			region_close_targets(nr);
		return true;
	case NODE_REGION_KEYS:
		if (nr->n_targets > 0)
			return false;
		kvx_sm_move(&nr->sm, NODE_REGION_DEREG);
		return true;
	case NODE_REGION_DEREG:
		if (node_region_deregister(nr))
			return false;
		if (nr->n_late > 0) {
			node_region_leave(nr);
			return false;
		}
		kvx_sm_move(&nr->sm, NODE_REGION_UNMAPPING);
		node_region_unmap(nr);
		return false;
	default:
		return false;
	}
}

void node_region_step(struct node_region *nr)
{
	if (nr->stepping)
		return;
	nr->stepping = true;
	while (region_advance(nr))
		;
	nr->stepping = false;
}

int kvx_node_region_close(struct kvx_node *node, struct kvx_region *region, int status,
			  const char *text, kvx_region_closed_cb cb, void *arg)
{
	struct node_region *nr = region->retire;
	kvx_assert(region->state != KVX_REGION_MAPPING && nr != NULL);
	if (region->state == KVX_REGION_CLOSING)
		return -EALREADY;
	kvx_debug("node: region %" PRIu64 ": closing: %s", region->id, text);
	region->state = KVX_REGION_CLOSING;
	kvx_region_unpublish(node->regions, region);
	nr->status = status;
	kvx_why(&nr->why, 0, "%s", text);
	nr->closed_cb = cb;
	nr->closed_arg = arg;
	nr->watch.ended = region_on_xfers_ended;
	kvx_xfers_watch(node->xfers, &nr->watch);
	kvx_sm_move(&nr->sm, NODE_REGION_DRAINING);
	if (nr->target != NULL)
		kvx_target_lose(&nr->target->target, status, text);
	node_region_step(nr);
	return 0;
}
