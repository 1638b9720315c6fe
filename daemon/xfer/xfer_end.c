/* How transfers end. The first failure (or cancel, or the deadline) decides the status and stops
 * the pulling; the transfer is over when every batch in flight has come back, and when that takes
 * longer than the fence bound, the lane is reset to bring them back. What is over waits in the done
 * list; kvx_xfers_pump() tells the remote engine, then the submitter, and frees it. Loop thread. */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "xfer/xfer_priv.h"

static struct kvx_xfer *xfer_of_timer(struct kvx_timer *timer)
{
	struct kvx_xfer *xfer =
	    (struct kvx_xfer *)((char *)timer - offsetof(struct kvx_xfer, timer));
	KVX_CHECK_MAGIC(xfer, KVX_XFER_MAGIC);
	return xfer;
}

/* Batches did not come back within the bound: without the reset the transfer would not end. */
static void xfer_on_fence_bound(struct kvx_timer *timer)
{
	struct kvx_xfer *xfer = xfer_of_timer(timer);
	const struct kvx_xfers_conf *conf = &xfer->all->conf;
	kvx_warn("xfer: transfer %" PRIu64 " of client %" PRIu64
		 ": %u batches still in flight %" PRIu64 " ms after \"%s\", resetting the lane",
		 xfer->number, xfer->client, xfer->item.n_in_flight,
		 (uint64_t)(conf->fence_bound_ns / KVX_MS), xfer->why.text);
	kvx_timer_start(conf->timers, timer, conf->fence_bound_ns, xfer_on_fence_bound);
	if (conf->lane_reset != NULL)
		conf->lane_reset(conf->remote_arg, xfer->lane,
				 "a transfer did not end within the fence bound");
}

void xfer_fail(struct kvx_xfer *xfer, const struct xfer_failure *failure, const char *text)
{
	const struct kvx_xfers_conf *conf = &xfer->all->conf;
	kvx_assert(failure->status < 0);
	if (xfer->sm.state == XFER_ENDING || xfer->is_done)
		return;
	xfer->status = failure->status;
	xfer->scope = failure->scope;
	xfer->vendor_code = failure->vendor_code;
	kvx_why(&xfer->why, 0, "%s", text);
	kvx_sm_move(&xfer->sm, XFER_ENDING);
	xfer_waits_drop(xfer);
	kvx_sched_remove(&xfer->item);
	/* The timer runs (deadline), so starting it again takes no memory. */
	if (xfer->item.n_in_flight > 0)
		kvx_timer_start(conf->timers, &xfer->timer, conf->fence_bound_ns,
				xfer_on_fence_bound);
	xfer_settle(xfer);
}

void xfer_fail_status(struct kvx_xfer *xfer, int status, const char *text)
{
	struct xfer_failure failure = {.status = status,
				       .scope = kvx_status_scope(kvx_status_from_errno(status))};
	xfer_fail(xfer, &failure,
		  text != NULL && text[0] != '\0' ? text
						  : kvx_status_text(kvx_status_from_errno(status)));
}

/* What a transport may say of ops in the words of the error table. Other codes mean something else
 * there (-ETIMEDOUT: the deadline, -ECONNRESET: the daemon is gone, -EPIPE: a client is) and become
 * a transport error. */
static int status_of_transport(int status)
{
	static const int known[] = {EIO,    EFAULT, EHOSTDOWN,  EHOSTUNREACH, ENODEV,
				    EACCES, ERANGE, EOWNERDEAD, ENOMEM,       ENOTRECOVERABLE};
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		if (status == -known[i])
			return status;
	}
	return -EIO;
}

void xfer_fail_batch(struct kvx_xfer *xfer, const struct kvx_batch *batch)
{
	struct xfer_failure failure = {.status = status_of_transport(batch->status),
				       .vendor_code = batch->vendor_code};
	struct kvx_why why;
	const char *said = batch->text != NULL ? batch->text : "";
	if (batch->status == -ECANCELED) {
		/* Not by the submitter: somebody else's failure took the lane down. */
		kvx_why(&why, 0, "the %s lane was reset while ops were in flight%s%s",
			xfer->transport, said[0] != '\0' ? ": " : "", said);
	} else if (batch->status == -EFAULT) {
		kvx_why(&why, 0,
			"memory of region %" PRIu64 " or of the remote region %" PRIu64
			" cannot be accessed%s%s",
			xfer->region->id, xfer->target->region_id, said[0] != '\0' ? ": " : "",
			said);
	} else {
		kvx_why(&why, 0, "%s: %s%s%s", xfer->transport, strerror(-batch->status),
			said[0] != '\0' ? ": " : "", said);
	}
	failure.scope = kvx_status_scope(kvx_status_from_errno(failure.status));
	xfer_fail(xfer, &failure, why.text);
}

/* For people; "": nothing is known to be. */
static const char *what_is_missing(const struct kvx_xfer *xfer)
{
	switch (xfer_waits_for(xfer)) {
	case KVX_WAIT_EVENT:
		return ", it waits for an event of the engine's GPU";
	case KVX_WAIT_FLAG:
		return ", it waits for the engine's flag";
	case KVX_WAIT_NONE:
		break;
	}
	if (xfer->sm.state == XFER_OPEN)
		return ", not sealed";
	return xfer->lane->state != KVX_LANE_UP ? ", the lane is not up" : "";
}

void xfer_on_deadline(struct kvx_timer *timer)
{
	kvx_assert_on_loop();
	struct kvx_xfer *xfer = xfer_of_timer(timer);
	struct kvx_why why;
	kvx_why(&why, 0,
		"deadline of %" PRIu64 " ms passed with %" PRIu64 " of %" PRIu64 " bytes moved%s",
		(uint64_t)(xfer->deadline_ns / KVX_MS), xfer->bytes_done,
		kvx_plan_bytes(xfer->plan), what_is_missing(xfer));
	xfer_fail_status(xfer, -ETIMEDOUT, why.text);
}

void xfer_settle(struct kvx_xfer *xfer)
{
	struct kvx_xfers *all = xfer->all;
	if (xfer->is_done || xfer->item.n_in_flight > 0)
		return;
	if (xfer->sm.state != XFER_ENDING && (xfer->sm.state != XFER_RUNNING || xfer->retry.n > 0 ||
					      !kvx_plan_is_drained(xfer->plan)))
		return;
	xfer->is_done = true;
	kvx_timer_stop(all->conf.timers, &xfer->timer);
	kvx_sched_remove(&xfer->item);
	xfer->done_next = NULL;
	if (all->done == NULL)
		all->done = xfer;
	else
		all->done_last->done_next = xfer;
	all->done_last = xfer;
}

void xfer_tell_open(struct kvx_xfer *xfer)
{
	const struct kvx_xfers_conf *conf = &xfer->all->conf;
	if (xfer->told_open || xfer->target->peer == NULL)
		return;
	xfer->told_open = true;
	if (conf->remote_open != NULL)
		conf->remote_open(conf->remote_arg, xfer->target, xfer->uid, xfer->op, xfer->tag,
				  xfer->label);
}

static void end_fill(const struct kvx_xfer *xfer, struct kvx_xfer_end *end)
{
	*end = (struct kvx_xfer_end){
	    .xfer = xfer->number,
	    .client = xfer->client,
	    .tag = xfer->tag,
	    .op = xfer->op,
	    .status = xfer->status,
	    .scope = xfer->scope,
	    .vendor_code = xfer->vendor_code,
	    .text = xfer->why.text,
	    .bytes = xfer->bytes_done,
	    .transport = xfer->transport,
	    .submit_ns = xfer->submit_ns,
	    .first_ns = xfer->first_ns,
	    .last_ns = xfer->last_ns,
	    .end_ns = kvx_timers_now(xfer->all->conf.timers),
	};
}

static void tell_remote(struct kvx_xfer *xfer, const struct kvx_xfer_end *end)
{
	const struct kvx_xfers_conf *conf = &xfer->all->conf;
	const struct kvx_target *target = xfer->target;
	bool ok = end->status == 0;
	struct kvx_arrival arrival = {
	    .owner = target->region != NULL ? target->region->owner : 0,
	    .region = target->region_id,
	    .tag = end->tag,
	    .op = end->op,
	    .status = end->status,
	    .text = end->text,
	    .bytes = end->bytes,
	    .transport = end->transport,
	    .payload = ok ? xfer->payload : NULL,
	    .payload_bytes = ok ? xfer->payload_bytes : 0,
	};
	if (target->peer != NULL) {
		xfer_tell_open(xfer);
		if (conf->remote_end != NULL)
			conf->remote_end(conf->remote_arg, xfer->target, xfer->uid, &arrival);
	} else if (target->region != NULL) {
		conf->on_arrival(conf->arg, &arrival);
	}
}

static KVX_ON_LOOP void xfer_finish(struct kvx_xfer *xfer)
{
	struct kvx_xfers *all = xfer->all;
	struct kvx_xfer_end end;
	if (xfer->status == 0 && xfer->bytes_done != kvx_plan_bytes(xfer->plan)) {
		/* Fail closed: what cannot be accounted for is not success. */
		xfer->status = -ENOTRECOVERABLE;
		xfer->scope = KVX_SCOPE_DAEMON;
		kvx_why(&xfer->why, 0, "%" PRIu64 " of %" PRIu64 " bytes are accounted for",
			xfer->bytes_done, kvx_plan_bytes(xfer->plan));
		kvx_error("xfer: transfer %" PRIu64 " of client %" PRIu64 ": %s", xfer->number,
			  xfer->client, xfer->why.text);
	}
	kvx_sm_move(&xfer->sm, XFER_ENDED);
	end_fill(xfer, &end);
	xfers_unlink(all, xfer);
	xfers_count_end(all, xfer, &end);
	xfers_remember(all, xfer, &end);
	tell_remote(xfer, &end);
	xfer->region->n_users--;
	if (xfer->target->region != NULL)
		xfer->target->region->n_users--;
	all->conf.on_terminal(all->conf.arg, &end);
	kvx_target_unref(xfer->target);
	kvx_plan_destroy(xfer->plan);
	free(xfer->payload);
	free(xfer->retry.spans);
	xfer->magic = 0;
	free(xfer);
}

static void tell_watches(struct kvx_xfers *all)
{
	all->next_told = all->watches;
	while (all->next_told != NULL) {
		struct kvx_xfers_watch *watch = all->next_told;
		all->next_told = watch->next;
		watch->ended(watch);
	}
}

void kvx_xfers_pump(struct kvx_xfers *all)
{
	if (all->pumping)
		return;
	all->pumping = true;
	for (;;) {
		bool ended = all->conf.gates != NULL && kvx_gates_drain(all->conf.gates) > 0;
		kvx_scheds_pump(all->conf.scheds);
		while (all->done != NULL) {
			struct kvx_xfer *xfer = all->done;
			all->done = xfer->done_next;
			xfer_finish(xfer);
			ended = true;
		}
		if (!ended)
			break;
		tell_watches(all);
	}
	all->pumping = false;
}
