/* Commands that name an endpoint, in the order in which they came. Of one endpoint one call runs at
 * a time: while a helper has it, nothing is posted and other commands wait. What must not wait does
 * not: a fence refuses what is queued when it arrives, and an extended lease goes past. Worker
 * thread, but for the *_run functions: those may be on a helper. */
#include <errno.h>

#include "base/assert.h"
#include "base/log.h"
#include "worker/worker_priv.h"

#define FENCE_TRIES 3u

static void ep_call(struct kvx_worker *worker, struct worker_ep *wep, struct kvx_cmd *cmd,
		    enum worker_helper_kind kind,
		    void (*run)(struct kvx_worker *worker, struct kvx_cmd *cmd),
		    void (*back)(struct kvx_worker *worker, struct kvx_cmd *cmd))
{
	wep->call = cmd;
	kvx_worker_ep_update(worker, wep);
	kvx_worker_call(worker, cmd, kind, run, back);
}

/* The call has returned: the ep is the worker's again. */
static struct worker_ep *ep_call_end(struct kvx_worker *worker, const struct kvx_cmd *cmd)
{
	struct worker_ep *wep = kvx_worker_ep_find(worker, cmd->ep);
	kvx_assert(wep != NULL && wep->call == cmd); /* it cannot go while the call runs */
	wep->call = NULL;
	return wep;
}

static void connect_run(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	cmd->call.status = worker->ops->connect(cmd->ep, cmd->bytes, cmd->len);
}

void kvx_worker_fence_run(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	cmd->call.status = worker->ops->fence(cmd->ep);
}

static void lease_run(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	worker->ops->lease(cmd->ep, cmd->lease_ns);
}

static void ep_go_on(struct kvx_worker *worker, struct worker_ep *wep);

static void connect_refused(struct kvx_worker *worker, struct kvx_cmd *cmd,
			    const struct worker_ep *wep)
{
	cmd->vendor_code = wep->refuse_vendor;
	cmd->text = wep->refuse_text;
	kvx_worker_cmd_done(worker, cmd, wep->refuse_status);
}

static void connect_back(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	struct worker_ep *wep = ep_call_end(worker, cmd);
	bool failed = cmd->call.status < 0;
	if (failed || wep->refuse_status != 0 || wep->up_early) {
		wep->connect = NULL;
		if (failed || wep->refuse_status == 0)
			kvx_worker_cmd_done(worker, cmd, cmd->call.status);
		else
			connect_refused(worker, cmd, wep);
	}
	ep_go_on(worker, wep);
}

static void connect_begin(struct kvx_worker *worker, struct worker_ep *wep, struct kvx_cmd *cmd)
{
	if (wep->refuse_status != 0) {
		connect_refused(worker, cmd, wep);
		return;
	}
	if (wep->connect != NULL) {
		kvx_worker_cmd_done(worker, cmd, -EALREADY);
		return;
	}
	wep->connect = cmd;
	wep->up_early = false;
	ep_call(worker, wep, cmd, WORKER_HELPER_SETUP, connect_run, connect_back);
}

static void fence_back(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	struct worker_ep *wep = ep_call_end(worker, cmd);
	wep->fenced = wep->fenced || cmd->call.status == 0;
	kvx_worker_cmd_done(worker, cmd, cmd->call.status);
	ep_go_on(worker, wep);
}

static void stop_back(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	struct worker_ep *wep = ep_call_end(worker, cmd);
	wep->n_stops--;
	kvx_worker_cmd_done(worker, cmd, 0);
	ep_go_on(worker, wep);
}

static void unpack(struct kvx_worker *worker, const struct worker_ep *wep, struct kvx_cmd *cmd)
{
	int err = -ECANCELED; /* of an ep that is being closed: nobody would free it in time */
	if (wep->closing == NULL)
		err = worker->ops->rkey_unpack(wep->ep, cmd->mkey, cmd->mkey_len, &cmd->rkey);
	kvx_worker_cmd_done(worker, cmd, err);
}

/* Its turn has come: no call of this ep runs. */
static void cmd_begin(struct kvx_worker *worker, struct worker_ep *wep, struct kvx_cmd *cmd)
{
	switch (cmd->work.kind) {
	case KVX_CMD_CONNECT:
		connect_begin(worker, wep, cmd);
		return;
	case KVX_CMD_FENCE:
		ep_call(worker, wep, cmd, WORKER_HELPER_FENCE, kvx_worker_fence_run, fence_back);
		return;
	case KVX_CMD_LEASE:
		if (cmd->lease_ns == 0) {
			ep_call(worker, wep, cmd, WORKER_HELPER_FENCE, lease_run, stop_back);
			return;
		}
		worker->ops->lease(wep->ep, cmd->lease_ns);
		kvx_worker_cmd_done(worker, cmd, 0);
		return;
	default: /* KVX_CMD_RKEY_UNPACK */
		unpack(worker, wep, cmd);
	}
}

static void waiting_append(struct worker_ep *wep, struct kvx_cmd *cmd)
{
	cmd->work.next = NULL;
	if (wep->waiting_head != NULL)
		wep->waiting_tail->next = &cmd->work;
	else
		wep->waiting_head = &cmd->work;
	wep->waiting_tail = &cmd->work;
}

/* After a call: the commands that waited for it, until one of them is a call again. What is to be
 * closed goes on in the same turn, see kvx_worker_turn(). */
static void ep_go_on(struct kvx_worker *worker, struct worker_ep *wep)
{
	while (wep->call == NULL && wep->waiting_head != NULL) {
		struct kvx_work *work = wep->waiting_head;
		wep->waiting_head = work->next;
		work->next = NULL;
		cmd_begin(worker, wep, (struct kvx_cmd *)(void *)work); /* its first member */
	}
	kvx_worker_ep_update(worker, wep);
}

static void close_fence_back(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	struct worker_ep *wep = ep_call_end(worker, cmd);
	cmd->status = cmd->call.status;
	wep->fenced = wep->fenced || cmd->status == 0;
	if (cmd->status < 0 && ++wep->fence_tries == FENCE_TRIES)
		kvx_error("worker %s: fence failed %u times: %s, closing the endpoint",
			  worker->conf.name, wep->fence_tries,
			  kvx_status_name(kvx_status_from_errno(cmd->status)));
	ep_go_on(worker, wep);
}

static bool close_needs_fence(const struct worker_ep *wep)
{
	return !wep->fenced && wep->fence_tries < FENCE_TRIES;
}

/* Fence, wait until everything has come back, close. A backend that cannot fence is closed the hard
 * way: the end of an ep is a fence too, but then nobody reports its ops, so this does. */
void kvx_worker_ep_close_step(struct kvx_worker *worker, struct worker_ep *wep)
{
	struct kvx_cmd *cmd = wep->closing;
	if (close_needs_fence(wep))
		ep_call(worker, wep, cmd, WORKER_HELPER_FENCE, kvx_worker_fence_run,
			close_fence_back);
	if (wep->call != NULL || close_needs_fence(wep))
		return;
	if (wep->fenced && wep->n_open > 0 && !worker->progress_failed)
		return;
	int status = wep->fenced ? 0 : cmd->status;
	worker->ops->ep_close(wep->ep);
	kvx_worker_ep_cancel_open(worker, wep);
	kvx_worker_ep_forget(worker, wep);
	kvx_worker_cmd_done(worker, cmd, status);
}

static void close_begin(struct kvx_worker *worker, struct worker_ep *wep, struct kvx_cmd *cmd)
{
	const struct kvx_tevent cause = {.status = -ECANCELED, .text = "endpoint closed"};
	if (wep->closing != NULL) {
		kvx_worker_cmd_done(worker, cmd, -EALREADY);
		return;
	}
	wep->closing = cmd;
	kvx_worker_ep_refuse(worker, wep, &cause);
	kvx_worker_ep_update(worker, wep);
	if (wep->stepping)
		kvx_worker_ep_close_step(worker, wep);
}

/* What a command does at once, though its call may have to wait. Returns whether that was all. */
static bool cmd_arrive(struct kvx_worker *worker, struct worker_ep *wep, struct kvx_cmd *cmd)
{
	const struct kvx_tevent fenced = {.status = -ECANCELED, .text = "endpoint fenced"};
	switch (cmd->work.kind) {
	case KVX_CMD_FENCE:
		kvx_worker_ep_refuse(worker, wep, &fenced);
		return false;
	case KVX_CMD_LEASE:
		if (cmd->lease_ns == 0)
			wep->n_stops++;
		else if (wep->n_stops == 0) {
			worker->ops->lease(wep->ep, cmd->lease_ns);
			kvx_worker_cmd_done(worker, cmd, 0);
			return true;
		}
		return false;
	default:
		return false;
	}
}

void kvx_worker_ep_cmd(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	struct worker_ep *wep = kvx_worker_ep_find(worker, cmd->ep);
	if (wep == NULL) {
		kvx_worker_cmd_done(worker, cmd, -ENOENT);
		return;
	}
	if (cmd->work.kind == KVX_CMD_EP_CLOSE)
		close_begin(worker, wep, cmd);
	else if (!cmd_arrive(worker, wep, cmd)) {
		if (wep->call != NULL)
			waiting_append(wep, cmd);
		else
			cmd_begin(worker, wep, cmd);
	}
}
