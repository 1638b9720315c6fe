/* Endpoints and batches on the worker's side: first in, first out per ep, posted as the transport
 * takes them, each given back exactly once. Worker thread. Allocates when an ep appears, never on
 * the way of a batch. */
#include <errno.h>
#include <stdlib.h>

#include <utlist.h>

#include "base/assert.h"
#include "base/clock.h"
#include "worker/worker_priv.h"

int kvx_worker_ep_add(struct kvx_worker *worker, struct kvx_ep *ep, struct worker_ep **out_wep)
{
	struct worker_ep *wep = calloc(1, sizeof(*wep));
	if (wep == NULL)
		return -ENOMEM;
	wep->ep = ep;
	HASH_ADD_PTR(worker->eps, ep, wep);
	if (wep->hh.tbl == NULL) { /* how uthash says that it had no memory */
		free(wep);
		return -ENOMEM;
	}
	if (worker->device_lost)
		wep->refuse_status = -ENODEV;
	*out_wep = wep;
	return 0;
}

struct worker_ep *kvx_worker_ep_find(const struct kvx_worker *worker, struct kvx_ep *ep)
{
	struct worker_ep *wep;
	HASH_FIND_PTR(worker->eps, &ep, wep);
	return wep;
}

void kvx_worker_ep_update(struct kvx_worker *worker, struct worker_ep *wep)
{
	bool ready = wep->queue_head != NULL && wep->call == NULL;
	bool stepping = wep->closing != NULL && wep->call == NULL;
	if (ready != wep->ready) {
		wep->ready = ready;
		if (ready)
			DL_APPEND2(worker->ready, wep, ready_prev, ready_next);
		else
			DL_DELETE2(worker->ready, wep, ready_prev, ready_next);
	}
	if (stepping != wep->stepping) {
		wep->stepping = stepping;
		if (stepping)
			DL_APPEND2(worker->closing, wep, closing_prev, closing_next);
		else
			DL_DELETE2(worker->closing, wep, closing_prev, closing_next);
	}
}

void kvx_worker_ep_forget(struct kvx_worker *worker, struct worker_ep *wep)
{
	kvx_assert(wep->queue_head == NULL && wep->n_open == 0 && wep->connect == NULL);
	kvx_assert(wep->call == NULL && wep->waiting_head == NULL);
	if (wep->notes.waiting != 0)
		worker->n_notes_waiting--;
	wep->closing = NULL;
	kvx_worker_ep_update(worker, wep);
	HASH_DEL(worker->eps, wep);
	free(wep);
}

static struct kvx_batch *batch_of(struct kvx_work *work)
{
	return (struct kvx_batch *)(void *)work; /* its first member */
}

static void slot_take(struct kvx_worker *worker, struct kvx_batch *batch)
{
	uint32_t index = worker->free_slot;
	kvx_assert(index != WORKER_COOKIE_NONE); /* in_flight never exceeds the number of slots */
	struct worker_slot *slot = &worker->slots[index];
	worker->free_slot = slot->next_free;
	slot->batch = batch;
	uint64_t cookie = ((uint64_t)slot->generation << 32) | index;
	for (uint32_t i = 0; i < batch->n_ops; i++)
		batch->ops[i].cookie = cookie;
}

static struct worker_slot *slot_find(const struct kvx_worker *worker, uint64_t cookie)
{
	uint32_t index = (uint32_t)cookie;
	if (index >= worker->conf.ring_depth)
		return NULL;
	struct worker_slot *slot = &worker->slots[index];
	if (slot->batch == NULL || slot->generation != (uint32_t)(cookie >> 32))
		return NULL;
	return slot;
}

static void slot_give_back(struct kvx_worker *worker, struct worker_slot *slot)
{
	slot->batch = NULL;
	slot->generation++;
	slot->next_free = worker->free_slot;
	worker->free_slot = (uint32_t)(slot - worker->slots);
}

/* Gives a batch back. It is in no queue and none of its ops is open. */
static void batch_finish(struct kvx_worker *worker, struct kvx_batch *batch, uint64_t now_ns)
{
	struct kvx_worker_stats *stats = &worker->stats;
	slot_give_back(worker, slot_find(worker, batch->ops[0].cookie));
	batch->last_ns = now_ns;
	kvx_counter_add(&stats->batches, 1);
	if (batch->status == 0) {
		kvx_counter_add(&stats->ops, batch->n_ops);
		kvx_counter_add(&stats->bytes, batch->bytes);
	} else {
		kvx_counter_add(&stats->errors, 1);
	}
	kvx_worker_complete(worker, &batch->work);
}

static void batch_fail(struct kvx_batch *batch, int status, int vendor_code, const char *text)
{
	if (batch->status != 0)
		return; /* the first error counts */
	batch->status = status;
	batch->vendor_code = vendor_code;
	batch->text = text;
}

/* The batch was begun: it goes back when the last of its ops is done. */
static void batch_check_finished(struct kvx_worker *worker, struct worker_ep *wep,
				 struct kvx_batch *batch, uint64_t now_ns)
{
	bool queued = wep->queue_head == &batch->work;
	if (queued || batch->n_done < batch->n_posted)
		return;
	wep->n_open--;
	batch_finish(worker, batch, now_ns);
}

static void queue_pop(struct kvx_worker *worker, struct worker_ep *wep)
{
	struct kvx_work *head = wep->queue_head;
	wep->queue_head = head->next;
	head->next = NULL;
	if (wep->queue_head == NULL) {
		wep->queue_tail = NULL;
		kvx_worker_ep_update(worker, wep);
	}
}

/* Takes the first batch out of the queue, failed. */
static void queue_fail_head(struct kvx_worker *worker, struct worker_ep *wep)
{
	struct kvx_batch *batch = batch_of(wep->queue_head);
	bool begun = batch->n_posted > 0;
	queue_pop(worker, wep);
	if (begun)
		batch_check_finished(worker, wep, batch, kvx_now_ns());
	else
		batch_finish(worker, batch, kvx_now_ns());
}

void kvx_worker_batch_begin(struct kvx_worker *worker, struct kvx_batch *batch)
{
	struct worker_ep *wep = kvx_worker_ep_find(worker, batch->ep);
	kvx_assert(batch->n_ops > 0 && batch->n_ops <= KVX_BATCH_OPS);
	batch->n_posted = batch->n_done = 0;
	batch->status = batch->vendor_code = 0;
	batch->text = NULL;
	batch->first_ns = batch->last_ns = 0;
	batch->work.next = NULL;
	slot_take(worker, batch);
	if (wep == NULL || wep->refuse_status != 0) {
		batch_fail(batch, wep ? wep->refuse_status : -EHOSTDOWN,
			   wep ? wep->refuse_vendor : 0, wep ? wep->refuse_text : NULL);
		batch_finish(worker, batch, kvx_now_ns());
		return;
	}
	if (wep->queue_tail != NULL)
		wep->queue_tail->next = &batch->work;
	else
		wep->queue_head = &batch->work;
	wep->queue_tail = &batch->work;
	kvx_worker_ep_update(worker, wep);
}

/* Offers the first batch to the transport. Returns how many ops it took; 0: it takes no more now.
 */
static unsigned queue_post_head(struct kvx_worker *worker, struct worker_ep *wep)
{
	struct kvx_batch *batch = batch_of(wep->queue_head);
	bool begun = batch->n_posted > 0;
	unsigned n_left = batch->n_ops - batch->n_posted;
	int n = worker->ops->post(wep->ep, batch->ops + batch->n_posted, n_left);
	if (n == -EAGAIN)
		n = 0;
	if (n < 0) {
		batch_fail(batch, n, 0, NULL);
		queue_fail_head(worker, wep);
		return 1; /* it is out of the way: go on with the next */
	}
	if (n > 0 && !begun) {
		wep->n_open++;
		batch->first_ns = kvx_now_ns();
	}
	kvx_assert((unsigned)n <= n_left);
	batch->n_posted += (unsigned)n;
	if ((unsigned)n < n_left)
		kvx_counter_add(&worker->stats.short_posts, 1);
	else
		queue_pop(worker, wep);
	return (unsigned)n;
}

static unsigned queue_post(struct kvx_worker *worker, struct worker_ep *wep)
{
	unsigned n_posted = 0;
	while (wep->queue_head != NULL) {
		struct kvx_batch *batch = batch_of(wep->queue_head);
		if (batch->status != 0) { /* an op of its first part failed: the rest stays here */
			queue_fail_head(worker, wep);
			continue;
		}
		unsigned n = queue_post_head(worker, wep);
		n_posted += n;
		if (n == 0 || wep->queue_head == &batch->work)
			break;
	}
	return n_posted;
}

unsigned kvx_worker_post_ready(struct kvx_worker *worker)
{
	struct worker_ep *wep, *next;
	unsigned n = 0;
	DL_FOREACH_SAFE2(worker->ready, wep, next, ready_next)
	n += queue_post(worker, wep);
	return n;
}

void kvx_worker_on_op_done(struct kvx_worker *worker, const struct kvx_tevent *event,
			   uint64_t now_ns)
{
	struct worker_slot *slot = slot_find(worker, event->cookie);
	if (slot == NULL) {
		kvx_counter_add(&worker->stats.late_dones, 1);
		return;
	}
	struct kvx_batch *batch = slot->batch;
	struct worker_ep *wep = kvx_worker_ep_find(worker, batch->ep);
	kvx_assert(wep != NULL && event->n_ops <= batch->n_posted - batch->n_done);
	batch->n_done += event->n_ops;
	if (event->status < 0)
		batch_fail(batch, event->status, event->vendor_code, event->text);
	batch_check_finished(worker, wep, batch, now_ns);
}

void kvx_worker_ep_refuse(struct kvx_worker *worker, struct worker_ep *wep,
			  const struct kvx_tevent *cause)
{
	int status = cause->status != 0 ? cause->status : -EHOSTDOWN;
	wep->refuse_status = status;
	wep->refuse_vendor = cause->vendor_code;
	wep->refuse_text = cause->text;
	while (wep->queue_head != NULL) {
		batch_fail(batch_of(wep->queue_head), status, cause->vendor_code, cause->text);
		queue_fail_head(worker, wep);
	}
	if (wep->connect == NULL || wep->call == wep->connect)
		return; /* none, or with a helper: it comes back refused */
	struct kvx_cmd *connect = wep->connect;
	wep->connect = NULL;
	connect->vendor_code = cause->vendor_code;
	connect->text = cause->text;
	kvx_worker_cmd_done(worker, connect, status);
}

void kvx_worker_ep_cancel_open(struct kvx_worker *worker, struct worker_ep *wep)
{
	uint64_t now_ns = kvx_now_ns();
	for (uint32_t i = 0; i < worker->conf.ring_depth && wep->n_open > 0; i++) {
		struct kvx_batch *batch = worker->slots[i].batch;
		if (batch == NULL || batch->ep != wep->ep)
			continue;
		batch_fail(batch, -ECANCELED, 0, NULL);
		batch->n_done = batch->n_posted;
		batch_check_finished(worker, wep, batch, now_ns);
	}
}
