/* One turn of a worker: take commands, go on with calls that have returned, post batches, make
 * progress, pass on what happened. Worker thread (or the loop, for a worker that has none). */
#include <errno.h>

#include <utlist.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/worker_priv.h"

#define TURN_COMMANDS 64u
#define TURN_EVENTS   64u

void kvx_worker_complete(struct kvx_worker *worker, struct kvx_work *work)
{
	bool pushed = kvx_ring_push(worker->complete, work);
	kvx_assert(pushed); /* has room for everything in flight and all notes */
	worker->need_doorbell = true;
}

void kvx_worker_cmd_done(struct kvx_worker *worker, struct kvx_cmd *cmd, int status)
{
	cmd->status = status;
	kvx_worker_complete(worker, &cmd->work);
}

/* One doorbell for all that came back since the loop last looked. Helpers, too. */
void kvx_worker_ring_loop(struct kvx_worker *worker)
{
	if (worker->conf.doorbell == NULL)
		return;
	if (!atomic_exchange_explicit(&worker->rung, true, memory_order_acq_rel))
		worker->conf.doorbell(worker->conf.doorbell_arg);
}

static void worker_ring_doorbell(struct kvx_worker *worker)
{
	if (!worker->need_doorbell)
		return;
	worker->need_doorbell = false;
	kvx_worker_ring_loop(worker);
}

static void worker_run(struct kvx_worker *worker, struct kvx_work *work)
{
	/* Each begins with the work. */
	if (work->kind == KVX_WORK_BATCH)
		kvx_worker_batch_begin(worker, (struct kvx_batch *)(void *)work);
	else
		kvx_worker_cmd_run(worker, (struct kvx_cmd *)(void *)work);
}

static void worker_on_device_lost(struct kvx_worker *worker, const struct kvx_tevent *event)
{
	struct kvx_tevent lost = *event;
	struct worker_ep *wep, *next;
	if (worker->device_lost)
		return;
	worker->device_lost = true;
	lost.kind = KVX_TEV_DEVICE_LOST;
	if (lost.status == 0)
		lost.status = -ENODEV;
	HASH_ITER (hh, worker->eps, wep, next)
		kvx_worker_ep_refuse(worker, wep, &lost);
	kvx_worker_note(worker, &worker->device_notes, WORKER_NOTE_LOST, &lost);
}

static void worker_on_incoming(struct kvx_worker *worker, const struct kvx_tevent *event)
{
	struct worker_ep *wep;
	int err = kvx_worker_ep_add(worker, event->ep, &wep);
	if (err == 0) {
		kvx_worker_note(worker, &wep->notes, WORKER_NOTE_INCOMING, event);
		return;
	}
	kvx_error("worker %s: no memory for an incoming endpoint, closing it", worker->conf.name);
	worker->ops->fence(event->ep);
	worker->ops->ep_close(event->ep);
}

static void worker_on_ep_event(struct kvx_worker *worker, const struct kvx_tevent *event)
{
	struct worker_ep *wep = kvx_worker_ep_find(worker, event->ep);
	if (wep == NULL || wep->closing != NULL)
		return;
	struct kvx_cmd *connect = wep->connect;
	if (event->kind == KVX_TEV_EP_DOWN) {
		/* After a fence or a lost device it is no news. */
		bool news = connect == NULL && wep->refuse_status == 0;
		kvx_worker_ep_refuse(worker, wep, event);
		if (news)
			kvx_worker_note(worker, &wep->notes, WORKER_NOTE_DOWN, event);
		return;
	}
	if (connect == NULL) {
		kvx_worker_note(worker, &wep->notes, WORKER_NOTE_UP, event);
		return;
	}
	if (wep->call == connect) {
		wep->up_early = true;
		return;
	}
	wep->connect = NULL;
	kvx_worker_cmd_done(worker, connect, 0);
}

static void worker_on_event(struct kvx_worker *worker, const struct kvx_tevent *event,
			    uint64_t now_ns)
{
	switch (event->kind) {
	case KVX_TEV_OP_DONE:
		kvx_worker_on_op_done(worker, event, now_ns);
		return;
	case KVX_TEV_EP_UP:
	case KVX_TEV_EP_DOWN:
		worker_on_ep_event(worker, event);
		return;
	case KVX_TEV_EP_INCOMING:
		worker_on_incoming(worker, event);
		return;
	case KVX_TEV_DEVICE_LOST:
		worker_on_device_lost(worker, event);
		return;
	case KVX_TEV_DEVICE_UP:
		if (!worker->device_lost)
			kvx_worker_note(worker, &worker->device_notes, WORKER_NOTE_DEVICE_UP,
					event);
		return;
	}
}

static bool worker_progress(struct kvx_worker *worker)
{
	struct kvx_tevent events[TURN_EVENTS];
	int n = worker->ops->progress(worker->dom, events, TURN_EVENTS);
	if (n == 0)
		return false;
	if (n < 0) {
		const struct kvx_tevent event = {.kind = KVX_TEV_DEVICE_LOST,
						 .status = n,
						 .text = "the transport's progress failed"};
		bool news = !worker->progress_failed;
		worker->progress_failed = true;
		worker_on_device_lost(worker, &event);
		return news;
	}
	uint64_t now_ns = kvx_now_ns();
	for (int i = 0; i < n; i++)
		worker_on_event(worker, &events[i], now_ns);
	return true;
}

static void worker_step_closing(struct kvx_worker *worker)
{
	struct worker_ep *wep, *next;
	DL_FOREACH_SAFE2(worker->closing, wep, next, closing_next)
	kvx_worker_ep_close_step(worker, wep);
}

bool kvx_worker_has_chores(const struct kvx_worker *worker)
{
	return worker->ready != NULL || worker->closing != NULL || worker->n_notes_waiting > 0;
}

bool kvx_worker_turn(struct kvx_worker *worker)
{
	struct kvx_work *work;
	unsigned n = 0;
	atomic_store_explicit(&worker->turn_began_ns, kvx_now_ns(), memory_order_relaxed);
	while (n < TURN_COMMANDS && (work = kvx_ring_pop(worker->submit)) != NULL) {
		worker_run(worker, work);
		n++;
	}
	bool did = n > 0;
	did = kvx_worker_calls_finish(worker) > 0 || did;
	if (worker->ready != NULL)
		did = kvx_worker_post_ready(worker) > 0 || did;
	/* The next call may copy for 100 us: what has come back already does not wait for it. */
	worker_ring_doorbell(worker);
	did = worker_progress(worker) || did;
	if (worker->closing != NULL)
		worker_step_closing(worker);
	if (worker->n_notes_waiting > 0)
		kvx_worker_notes_flush(worker);
	worker_ring_doorbell(worker);
	atomic_store_explicit(&worker->turn_began_ns, 0, memory_order_relaxed);
	return did;
}
