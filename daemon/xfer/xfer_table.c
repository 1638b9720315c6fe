/* All transfers: the table, the counts per client, cancelling by client, region, target and lane,
 * who waits for ends, the ring of ended ones and the numbers. Loop thread. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/assert.h"
#include "xfer/xfer_priv.h"

int kvx_xfers_create(const struct kvx_xfers_conf *conf, struct kvx_xfers **out_xfers)
{
	struct kvx_xfers *all = calloc(1, sizeof(*all));
	if (all == NULL)
		return -ENOMEM;
	all->conf = *conf;
	if (conf->history > 0) {
		all->past.rows = calloc(conf->history, sizeof(*all->past.rows));
		all->refused.rows = calloc(conf->history, sizeof(*all->refused.rows));
		if (all->past.rows == NULL || all->refused.rows == NULL) {
			kvx_xfers_destroy(all);
			return -ENOMEM;
		}
	}
	*out_xfers = all;
	return 0;
}

void kvx_xfers_destroy(struct kvx_xfers *all)
{
	if (all == NULL)
		return;
	kvx_assert(all->n_live == 0 && all->done == NULL && all->watches == NULL);
	free(all->past.rows);
	free(all->refused.rows);
	free(all);
}

static struct xfer_owner *owner_find(const struct kvx_xfers *all, uint64_t client)
{
	struct xfer_owner *owner;
	HASH_FIND(hh, all->owners, &client, sizeof(client), owner);
	return owner;
}

static struct xfer_owner *owner_get(struct kvx_xfers *all, uint64_t client)
{
	struct xfer_owner *owner = owner_find(all, client);
	if (owner != NULL)
		return owner;
	owner = calloc(1, sizeof(*owner));
	if (owner == NULL)
		return NULL;
	owner->client = client;
	HASH_ADD(hh, all->owners, client, sizeof(owner->client), owner);
	if (owner->hh.tbl == NULL) { /* uthash had no memory */
		free(owner);
		return NULL;
	}
	return owner;
}

int xfers_link(struct kvx_xfers *all, struct kvx_xfer *xfer)
{
	struct xfer_owner *owner = owner_get(all, xfer->client);
	if (owner == NULL)
		return -ENOMEM;
	owner->n++;
	xfer->owner = owner;
	DL_APPEND2(owner->xfers, xfer, owner_prev, owner_next);
	DL_PREPEND(all->live, xfer);
	all->n_live++;
	return 0;
}

void xfers_unlink(struct kvx_xfers *all, struct kvx_xfer *xfer)
{
	struct xfer_owner *owner = xfer->owner;
	owner->list_bytes -= xfer->list_bytes;
	DL_DELETE2(owner->xfers, xfer, owner_prev, owner_next);
	DL_DELETE(all->live, xfer);
	all->n_live--;
	if (--owner->n > 0)
		return;
	HASH_DELETE(hh, all->owners, owner);
	free(owner);
}

void xfers_count_lists(struct kvx_xfer *xfer)
{
	uint64_t now = kvx_plan_list_bytes(xfer->plan);
	xfer->owner->list_bytes += now - xfer->list_bytes;
	xfer->list_bytes = now;
}

unsigned kvx_xfers_cancel_client(struct kvx_xfers *all, uint64_t client, int status,
				 const char *text)
{
	struct xfer_owner *owner = owner_find(all, client);
	struct kvx_xfer *xfer;
	if (owner == NULL)
		return 0;
	DL_FOREACH2(owner->xfers, xfer, owner_next)
	{
		xfer_fail_status(xfer, status, text);
	}
	return owner->n;
}

unsigned kvx_xfers_cancel_region(struct kvx_xfers *all, const struct kvx_region *region, int status,
				 const char *text)
{
	struct kvx_xfer *xfer;
	unsigned n = 0;
	if (region->n_users == 0)
		return 0;
	DL_FOREACH (all->live, xfer) {
		if (xfer->region != region && xfer->target->region != region &&
		    !xfer_waits_in(xfer, region))
			continue;
		xfer_fail_status(xfer, status, text);
		n++;
	}
	return n;
}

unsigned kvx_xfers_cancel_target(struct kvx_xfers *all, const struct kvx_target *target, int status,
				 const char *text)
{
	struct kvx_xfer *xfer;
	unsigned n = 0;
	DL_FOREACH (all->live, xfer) {
		if (xfer->target != target)
			continue;
		xfer_fail_status(xfer, status, text);
		n++;
	}
	return n;
}

unsigned kvx_xfers_cancel_lane(struct kvx_xfers *all, const struct kvx_lane *lane, int status,
			       const char *text)
{
	struct kvx_xfer *xfer;
	unsigned n = 0;
	DL_FOREACH (all->live, xfer) {
		if (xfer->lane != lane)
			continue;
		xfer_fail_status(xfer, status, text);
		n++;
	}
	return n;
}

void kvx_xfers_watch(struct kvx_xfers *all, struct kvx_xfers_watch *watch)
{
	DL_APPEND(all->watches, watch);
}

void kvx_xfers_unwatch(struct kvx_xfers *all, struct kvx_xfers_watch *watch)
{
	if (all->next_told == watch)
		all->next_told = watch->next;
	DL_DELETE(all->watches, watch);
	watch->prev = NULL;
	watch->next = NULL;
}

unsigned kvx_xfers_count(const struct kvx_xfers *all)
{
	return all->n_live;
}

unsigned kvx_xfers_count_client(const struct kvx_xfers *all, uint64_t client)
{
	const struct xfer_owner *owner = owner_find(all, client);
	return owner == NULL ? 0 : owner->n;
}

uint64_t kvx_xfers_list_bytes(const struct kvx_xfers *all, uint64_t client)
{
	const struct xfer_owner *owner = owner_find(all, client);
	return owner == NULL ? 0 : owner->list_bytes;
}

void xfer_describe(const struct kvx_xfer *xfer, struct kvx_xfer_row *row)
{
	*row = (struct kvx_xfer_row){
	    .end =
		{
		    .xfer = xfer->number,
		    .client = xfer->client,
		    .tag = xfer->tag,
		    .op = xfer->op,
		    .status = 1,
		    .text = xfer->why.text,
		    .bytes = xfer->bytes_done,
		    .transport = xfer->lane->ops->name,
		    .submit_ns = xfer->submit_ns,
		    .first_ns = xfer->first_ns,
		    .last_ns = xfer->last_ns,
		},
	    .region = xfer->region->id,
	    .remote_region = xfer->target->region_id,
	    .peer = xfer->target->peer_name != NULL ? xfer->target->peer_name : "",
	    .label = xfer->label,
	    .tenant = xfer->region->tenant,
	    .state = kvx_sm_name(&xfer->sm),
	    .bytes_planned = kvx_plan_bytes(xfer->plan),
	    .pieces = kvx_plan_pieces(xfer->plan),
	    .retries = xfer->n_retries,
	    .waits_for = kvx_wait_name(xfer_waits_for(xfer)),
	    .n_waits = xfer->n_waits,
	};
}

static void ring_put(struct kvx_xfers *all, struct xfer_ring *ring, const struct kvx_xfer_row *row)
{
	unsigned size = all->conf.history;
	if (size == 0)
		return;
	struct xfer_past *past = &ring->rows[ring->at];
	ring->at = (ring->at + 1) % size;
	if (ring->n < size)
		ring->n++;
	past->row = *row;
	snprintf(past->text, sizeof(past->text), "%s", row->end.text);
	snprintf(past->peer, sizeof(past->peer), "%s", row->peer);
	snprintf(past->label, sizeof(past->label), "%s", row->label);
	past->row.end.text = past->text;
	past->row.peer = past->peer;
	past->row.label = past->label;
}

void xfers_remember(struct kvx_xfers *all, const struct kvx_xfer *xfer,
		    const struct kvx_xfer_end *end)
{
	struct kvx_xfer_row row;
	xfer_describe(xfer, &row);
	row.end = *end;
	ring_put(all, &all->past, &row);
}

void kvx_xfers_refused(struct kvx_xfers *all, const struct kvx_xfer_row *row)
{
	struct kvx_xfer_row refused = *row;
	refused.state = "refused";
	refused.waits_for = "";
	ring_put(all, &all->refused, &refused);
}

/* The i-th newest; NULL: there are not so many. */
static const struct kvx_xfer_row *ring_row(const struct kvx_xfers *all,
					   const struct xfer_ring *ring, unsigned i)
{
	unsigned size = all->conf.history;
	return i < ring->n ? &ring->rows[(ring->at + size - 1 - i) % size].row : NULL;
}

void kvx_xfers_walk(const struct kvx_xfers *all,
		    void (*cb)(void *arg, const struct kvx_xfer_row *row), void *arg)
{
	const struct kvx_xfer *xfer;
	struct kvx_xfer_row row;
	unsigned n_past = 0, n_refused = 0;
	DL_FOREACH (all->live, xfer) {
		xfer_describe(xfer, &row);
		cb(arg, &row);
	}
	for (;;) {
		const struct kvx_xfer_row *past = ring_row(all, &all->past, n_past);
		const struct kvx_xfer_row *refused = ring_row(all, &all->refused, n_refused);
		if (past == NULL && refused == NULL)
			break;
		if (refused == NULL || (past != NULL && past->end.end_ns >= refused->end.end_ns)) {
			cb(arg, past);
			n_past++;
		} else {
			cb(arg, refused);
			n_refused++;
		}
	}
}

void xfers_count_end(struct kvx_xfers *all, const struct kvx_xfer *xfer,
		     const struct kvx_xfer_end *end)
{
	struct kvx_xfers_stats *stats = &all->stats;
	stats->pieces += kvx_plan_pieces(xfer->plan);
	stats->ops += xfer->n_ops;
	if (xfer->first_ns > xfer->submit_ns)
		kvx_hist_add(&stats->queue_ns, xfer->first_ns - xfer->submit_ns);
	if (end->status == 0) {
		stats->ok++;
		stats->bytes_ok += end->bytes;
		kvx_hist_add(&stats->latency_ns, end->end_ns - end->submit_ns);
	} else if (end->status == -ECANCELED) {
		stats->cancelled++;
	} else if (end->status == -ETIMEDOUT) {
		stats->deadline++;
	} else {
		stats->failed++;
	}
}

const struct kvx_xfers_stats *kvx_xfers_stats(const struct kvx_xfers *all)
{
	return &all->stats;
}
