/* One turn of a worker: take commands, post batches, make progress, pass on what happened. Worker
 * thread (or the loop, for a worker that has none). Blocking calls of the transport (registration)
 * happen here; the loop never waits for them. */
#include <errno.h>

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

/* One doorbell for all that came back since the loop last looked. */
static void worker_ring_doorbell(struct kvx_worker *worker)
{
	if (!worker->need_doorbell)
		return;
	worker->need_doorbell = false;
	if (worker->conf.doorbell == NULL)
		return;
	if (!atomic_exchange_explicit(&worker->rung, true, memory_order_acq_rel))
		worker->conf.doorbell(worker->conf.doorbell_arg);
}

static bool note_send(struct kvx_worker *worker, const struct kvx_tevent *event)
{
	struct kvx_cmd *note = kvx_ring_pop(worker->free_notes);
	if (note == NULL)
		return false;
	note->work.kind = KVX_CMD_NOTE;
	note->event = *event;
	kvx_worker_complete(worker, &note->work);
	return true;
}

/* A note that finds no room waits in its ep: none is lost. */
static void ep_note(struct kvx_worker *worker, struct worker_ep *wep, unsigned which,
		    const struct kvx_tevent *event)
{
	if (wep->notes_waiting == 0 && note_send(worker, event))
		return;
	if (wep->notes_waiting == 0)
		worker->n_notes_waiting++;
	wep->notes_waiting |= 1u << which;
	wep->notes[which] = *event;
}

static void ep_flush_notes(struct kvx_worker *worker, struct worker_ep *wep)
{
	if (wep->notes_waiting == 0)
		return;
	for (unsigned i = 0; i < WORKER_NOTES_PER_EP; i++) {
		if (!(wep->notes_waiting & (1u << i)))
			continue;
		if (!note_send(worker, &wep->notes[i]))
			return;
		wep->notes_waiting &= ~(1u << i);
	}
	worker->n_notes_waiting--;
}

static void worker_flush_notes(struct kvx_worker *worker)
{
	struct worker_ep *wep, *next;
	if (worker->lost_note_waiting && note_send(worker, &worker->lost_event)) {
		worker->lost_note_waiting = false;
		worker->n_notes_waiting--;
	}
	HASH_ITER (hh, worker->eps, wep, next)
		ep_flush_notes(worker, wep);
}

static void cmd_listen(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	struct kvx_ep *ep = NULL;
	struct worker_ep *wep;
	size_t len = sizeof(cmd->bytes);
	int err = worker->ops->listen(worker->dom, &ep, cmd->bytes, &len);
	if (err == 0) {
		err = kvx_worker_ep_add(worker, ep, &wep);
		if (err < 0) {
			worker->ops->fence(ep);
			worker->ops->ep_close(ep);
		}
	}
	if (err == 0) {
		cmd->ep = ep;
		cmd->len = len;
	}
	kvx_worker_cmd_done(worker, cmd, err);
}

static void cmd_connect(struct kvx_worker *worker, struct kvx_cmd *cmd, struct worker_ep *wep)
{
	int err;
	if (wep->refuse_status != 0)
		err = wep->refuse_status;
	else if (wep->connect != NULL)
		err = -EALREADY;
	else
		err = worker->ops->connect(wep->ep, cmd->bytes, cmd->len);
	if (err < 0)
		kvx_worker_cmd_done(worker, cmd, err);
	else
		wep->connect = cmd;
}

static void cmd_fence(struct kvx_worker *worker, struct kvx_cmd *cmd, struct worker_ep *wep)
{
	const struct kvx_tevent cause = {.status = -ECANCELED, .text = "endpoint fenced"};
	kvx_worker_ep_refuse(worker, wep, &cause);
	int err = worker->ops->fence(wep->ep);
	wep->fenced = wep->fenced || err == 0;
	kvx_worker_cmd_done(worker, cmd, err);
}

static void cmd_ep_close(struct kvx_worker *worker, struct kvx_cmd *cmd, struct worker_ep *wep)
{
	const struct kvx_tevent cause = {.status = -ECANCELED, .text = "endpoint closed"};
	if (wep->closing != NULL) {
		kvx_worker_cmd_done(worker, cmd, -EALREADY);
		return;
	}
	wep->closing = cmd;
	worker->n_closing++;
	kvx_worker_ep_refuse(worker, wep, &cause);
	kvx_worker_ep_close_step(worker, wep);
}

static void cmd_mem_reg(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	const struct kvx_transport_ops *ops = worker->ops;
	struct kvx_mr *mr = NULL;
	int err = ops->mem_reg(worker->dom, cmd->mem, cmd->rights, &mr);
	if (err == 0) {
		int len = ops->mkey_pack(mr, cmd->bytes, sizeof(cmd->bytes));
		if (len < 0) {
			ops->mem_dereg(mr);
			err = len;
		} else {
			cmd->mr = mr;
			cmd->len = (size_t)len;
		}
	}
	kvx_worker_cmd_done(worker, cmd, err);
}

/* Commands that name an ep. */
static void cmd_run_ep(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	struct worker_ep *wep = kvx_worker_ep_find(worker, cmd->ep);
	if (wep == NULL) {
		kvx_worker_cmd_done(worker, cmd, -ENOENT);
		return;
	}
	switch (cmd->work.kind) {
	case KVX_CMD_CONNECT:
		cmd_connect(worker, cmd, wep);
		return;
	case KVX_CMD_EP_CLOSE:
		cmd_ep_close(worker, cmd, wep);
		return;
	case KVX_CMD_FENCE:
		cmd_fence(worker, cmd, wep);
		return;
	case KVX_CMD_LEASE:
		worker->ops->lease(wep->ep, cmd->lease_ns);
		kvx_worker_cmd_done(worker, cmd, 0);
		return;
	default: /* KVX_CMD_RKEY_UNPACK */
		kvx_worker_cmd_done(
		    worker, cmd,
		    worker->ops->rkey_unpack(wep->ep, cmd->bytes, cmd->len, &cmd->rkey));
	}
}

static void worker_run(struct kvx_worker *worker, struct kvx_work *work)
{
	struct kvx_cmd *cmd = (struct kvx_cmd *)(void *)work; /* its first member */
	switch (work->kind) {
	case KVX_WORK_BATCH:
		kvx_worker_batch_begin(worker, (struct kvx_batch *)(void *)work);
		return;
	case KVX_CMD_LISTEN:
		cmd_listen(worker, cmd);
		return;
	case KVX_CMD_MEM_REG:
		cmd_mem_reg(worker, cmd);
		return;
	case KVX_CMD_MEM_DEREG:
		worker->ops->mem_dereg(cmd->mr);
		kvx_worker_cmd_done(worker, cmd, 0);
		return;
	case KVX_CMD_RKEY_FREE:
		worker->ops->rkey_free(cmd->rkey);
		kvx_worker_cmd_done(worker, cmd, 0);
		return;
	case KVX_CMD_CONNECT:
	case KVX_CMD_EP_CLOSE:
	case KVX_CMD_FENCE:
	case KVX_CMD_LEASE:
	case KVX_CMD_RKEY_UNPACK:
		cmd_run_ep(worker, cmd);
		return;
	case KVX_CMD_NOTE:
		break;
	}
	kvx_assert(work->kind != KVX_CMD_NOTE); /* the loop submits none */
}

static void worker_on_device_lost(struct kvx_worker *worker, const struct kvx_tevent *event)
{
	struct worker_ep *wep, *next;
	if (worker->device_lost)
		return;
	worker->device_lost = true;
	worker->lost_event = *event;
	worker->lost_event.kind = KVX_TEV_DEVICE_LOST;
	if (worker->lost_event.status == 0)
		worker->lost_event.status = -ENODEV;
	HASH_ITER (hh, worker->eps, wep, next)
		kvx_worker_ep_refuse(worker, wep, &worker->lost_event);
	if (!note_send(worker, &worker->lost_event)) {
		worker->lost_note_waiting = true;
		worker->n_notes_waiting++;
	}
}

static void worker_on_incoming(struct kvx_worker *worker, const struct kvx_tevent *event)
{
	struct worker_ep *wep;
	int err = kvx_worker_ep_add(worker, event->ep, &wep);
	if (err == 0) {
		ep_note(worker, wep, WORKER_NOTE_INCOMING, event);
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
			ep_note(worker, wep, WORKER_NOTE_DOWN, event);
		return;
	}
	wep->connect = NULL;
	if (connect != NULL)
		kvx_worker_cmd_done(worker, connect, 0);
	else
		ep_note(worker, wep, WORKER_NOTE_UP, event);
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
	HASH_ITER (hh, worker->eps, wep, next)
		if (wep->closing != NULL)
			kvx_worker_ep_close_step(worker, wep);
}

bool kvx_worker_has_chores(const struct kvx_worker *worker)
{
	return worker->ready != NULL || worker->n_closing > 0 || worker->n_notes_waiting > 0;
}

bool kvx_worker_turn(struct kvx_worker *worker)
{
	struct kvx_work *work;
	unsigned n = 0;
	while (n < TURN_COMMANDS && (work = kvx_ring_pop(worker->submit)) != NULL) {
		worker_run(worker, work);
		n++;
	}
	bool did = n > 0;
	if (worker->ready != NULL)
		did = kvx_worker_post_ready(worker) > 0 || did;
	/* The next call may copy for 100 us: what has come back already does not wait for it. */
	worker_ring_doorbell(worker);
	did = worker_progress(worker) || did;
	if (worker->n_closing > 0)
		worker_step_closing(worker);
	if (worker->n_notes_waiting > 0)
		worker_flush_notes(worker);
	worker_ring_doorbell(worker);
	return did;
}
