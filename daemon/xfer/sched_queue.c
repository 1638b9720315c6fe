/* What waits in a scheduler: its items by flow, those of a flow by the outlets that they may use,
 * each of these in order. A flow is there as long as it has items; some that are over are kept for
 * the next ones. Loop thread, called by whoever owns the items and by sched.c; sends nothing. No
 * malloc but for the first item of a new flow. */
#include "xfer/sched_priv.h"

#include <errno.h>
#include <stdlib.h>

#define SPARE_FLOWS 64

static struct kvx_sched_flow *flow_get(struct kvx_sched *sched, uint64_t id)
{
	struct kvx_scheds *all = sched->all;
	struct kvx_sched_flow *flow;
	HASH_FIND(hh, sched->by_id, &id, sizeof(id), flow);
	if (flow != NULL)
		return flow;
	flow = all->spare;
	if (flow != NULL) {
		all->spare = flow->next;
		all->n_spare--;
	} else {
		flow = malloc(sizeof(*flow));
		if (flow == NULL)
			return NULL;
	}
	flow->id = id;
	flow->balance = all->quantum_bytes;
	flow->firsts = NULL;
	HASH_ADD(hh, sched->by_id, id, sizeof(flow->id), flow);
	if (flow->hh.tbl == NULL) { /* uthash had no memory */
		free(flow);
		return NULL;
	}
	DL_APPEND(sched->turns, flow); /* behind all that wait */
	return flow;
}

static void flow_put(struct kvx_sched *sched, struct kvx_sched_flow *flow)
{
	struct kvx_scheds *all = sched->all;
	HASH_DELETE(hh, sched->by_id, flow);
	DL_DELETE(sched->turns, flow);
	if (all->n_spare >= SPARE_FLOWS) {
		free(flow);
		return;
	}
	flow->next = all->spare;
	all->spare = flow;
	all->n_spare++;
}

void scheds_free_spare(struct kvx_scheds *all)
{
	while (all->spare != NULL) {
		struct kvx_sched_flow *flow = all->spare;
		all->spare = flow->next;
		free(flow);
	}
}

/* The one that leads the items with these outlets; NULL: there are none. */
static struct kvx_sched_item *flow_first(const struct kvx_sched_flow *flow, uint32_t outlets)
{
	struct kvx_sched_item *first;
	for (first = flow->firsts; first != NULL; first = first->first_next)
		if (first->outlets == outlets)
			return first;
	return NULL;
}

/* By number: most often it is the last one. */
static void flow_link(struct kvx_sched_flow *flow, struct kvx_sched_item *item)
{
	struct kvx_sched_item *first = flow_first(flow, item->outlets), *at = first;
	if (first == NULL) {
		item->prev = item;
		item->next = NULL;
		DL_APPEND2(flow->firsts, item, first_prev, first_next);
		return;
	}
	if (first->prev->number < item->number) {
		DL_APPEND(first, item);
		return;
	}
	while (at->number < item->number)
		at = at->next;
	DL_PREPEND_ELEM(first, at, item);
	if (first == item)
		DL_REPLACE_ELEM2(flow->firsts, at, item, first_prev, first_next);
}

static void flow_unlink(struct kvx_sched_flow *flow, struct kvx_sched_item *item)
{
	struct kvx_sched_item *first = flow_first(flow, item->outlets), *next = item->next;
	if (first == item && next != NULL)
		DL_REPLACE_ELEM2(flow->firsts, item, next, first_prev, first_next);
	else if (first == item)
		DL_DELETE2(flow->firsts, item, first_prev, first_next);
	DL_DELETE(first, item);
}

int kvx_sched_enqueue(struct kvx_sched *sched, struct kvx_sched_item *item)
{
	if (item->queued)
		return 0;
	struct kvx_sched_flow *flow = flow_get(sched, item->flow_id);
	if (flow == NULL)
		return -ENOMEM;
	item->sched = sched;
	item->flow = flow;
	item->queued = true;
	item->number = ++sched->n_enqueued;
	flow_link(flow, item);
	sched->n_queued++;
	sched_wake(sched);
	return 0;
}

void kvx_sched_remove(struct kvx_sched_item *item)
{
	struct kvx_sched *sched = item->sched;
	if (!item->queued)
		return;
	flow_unlink(item->flow, item);
	if (item->flow->firsts == NULL)
		flow_put(sched, item->flow);
	item->flow = NULL;
	item->queued = false;
	sched->n_queued--;
}

void kvx_sched_set_outlets(struct kvx_sched_item *item, uint32_t outlets)
{
	if (item->outlets == outlets)
		return;
	if (item->queued)
		flow_unlink(item->flow, item);
	item->outlets = outlets;
	if (!item->queued)
		return;
	flow_link(item->flow, item);
	sched_wake(item->sched);
}

unsigned kvx_sched_queued(const struct kvx_sched *sched)
{
	return sched->n_queued;
}
