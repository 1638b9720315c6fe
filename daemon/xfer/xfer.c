/* Transfers: see xfer.h. This file takes a transfer from its request to its last op: checks, plan,
 * queue, ops for batches. How it ends is in xfer_end.c, the table of all in xfer_table.c. Loop
 * thread; called by control (requests) and by the scheduler (pull, batch_done). It touches no bytes
 * of regions and retries nothing. */
#include "xfer/xfer.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "xfer/reg.h"
#include "xfer/route.h"
#include "xfer/xfer_priv.h"

static const struct kvx_sm_state xfer_states[] = {
    [XFER_OPEN] = {"open", 1u << XFER_RUNNING | 1u << XFER_ENDING},
    [XFER_RUNNING] = {"running", 1u << XFER_ENDING | 1u << XFER_ENDED},
    [XFER_ENDING] = {"ending", 1u << XFER_ENDED},
    [XFER_ENDED] = {"ended", 0},
};
static const struct kvx_sm_conf xfer_sm_conf = {"xfer", xfer_states, 4};

static struct kvx_xfer *xfer_of(struct kvx_sched_item *item)
{
	struct kvx_xfer *xfer = (struct kvx_xfer *)((char *)item - offsetof(struct kvx_xfer, item));
	KVX_CHECK_MAGIC(xfer, KVX_XFER_MAGIC);
	return xfer;
}

static unsigned xfer_pull(struct kvx_sched_item *item, const struct kvx_outlet *outlet,
			  struct kvx_op *ops, unsigned max, uint64_t max_bytes, uint64_t *out_bytes)
{
	kvx_assert_on_loop();
	struct kvx_xfer *xfer = xfer_of(item);
	const struct kvx_target *target = xfer->target;
	struct kvx_span spans[KVX_BATCH_OPS];
	uint64_t bytes = 0;
	if (target->lane_generation != xfer->lane->generation || xfer->retrying)
		return 0; /* until kvx_xfers_kick_target() */
	if (xfer->required != NULL && xfer->required != xfer->lane->ops) {
		xfer_fail_status(xfer, -ENETUNREACH,
				 "the lane now goes by another transport than the required one");
		return 0;
	}
	const struct kvx_reg *reg = xfer->region->reg[outlet->dom_index];
	struct kvx_rkey *rkey = target->rkey[outlet->dom_index];
	if (reg == NULL && kvx_mem_kind_is_gpu(xfer->region->mem.ops->kind)) {
		kvx_why(&xfer->why, 0, "GPU memory cannot go by the transport %s",
			xfer->lane->ops->name);
		xfer_fail_status(xfer, -ENETUNREACH, xfer->why.text);
		return 0;
	}
	if (reg == NULL || rkey == NULL) {
		xfer_fail_status(xfer, -ENOTRECOVERABLE,
				 reg == NULL ? "the local region is not registered for this lane"
					     : "no key of the remote region for this lane");
		return 0;
	}
	xfer_tell_open(xfer);
	if (xfer->sm.state == XFER_ENDING)
		return 0;
	uint64_t max_span = kvx_worker_limits(outlet->worker)->max_op_bytes;
	if (max > KVX_BATCH_OPS)
		max = KVX_BATCH_OPS;
	unsigned n = xfer->retry.n > 0 ? xfer_retry_next(xfer, max_span, max_bytes, spans, max)
				       : kvx_plan_next(xfer->plan, max_span, max_bytes, spans, max);
	for (unsigned i = 0; i < n; i++) {
		ops[i].local = reg->mr;
		ops[i].remote = rkey;
		ops[i].local_offset = spans[i].local_offset;
		ops[i].remote_offset = spans[i].remote_offset;
		ops[i].len_bytes = spans[i].len_bytes;
		ops[i].kind = (uint32_t)xfer->op;
		ops[i].flags = 0;
		bytes += spans[i].len_bytes;
	}
	xfers_count_lists(xfer);
	xfer->n_ops += n;
	xfer->transport = xfer->lane->ops->name;
	*out_bytes = bytes;
	return n;
}

static void xfer_batch_done(struct kvx_sched_item *item, const struct kvx_batch *batch)
{
	kvx_assert_on_loop();
	struct kvx_xfer *xfer = xfer_of(item);
	if (batch->first_ns != 0 && (xfer->first_ns == 0 || batch->first_ns < xfer->first_ns))
		xfer->first_ns = batch->first_ns;
	if (batch->last_ns > xfer->last_ns)
		xfer->last_ns = batch->last_ns;
	if (batch->status == 0)
		xfer->bytes_done += batch->bytes;
	else if (!xfer_retry_keep(xfer, batch))
		xfer_fail_batch(xfer, batch);
	xfer_retry_back(xfer);
	xfer_settle(xfer);
}

static uint64_t xfer_backlog(const struct kvx_sched_item *item)
{
	const struct kvx_xfer *xfer =
	    (const struct kvx_xfer *)((const char *)item - offsetof(struct kvx_xfer, item));
	return xfer->retry.bytes + kvx_plan_backlog(xfer->plan);
}

static const struct kvx_sched_ops xfer_sched_ops = {
    .pull = xfer_pull,
    .batch_done = xfer_batch_done,
    .backlog_bytes = xfer_backlog,
};

static int check_sides_live(const struct kvx_xfer_req *req, struct kvx_why *why)
{
	const struct kvx_region *region = req->region;
	if (region->state == KVX_REGION_FAILED && kvx_mem_kind_is_gpu(region->mem.ops->kind))
		return kvx_why(why, -ENODEV,
			       "the GPU of region %" PRIu64 " is lost: unregister the region",
			       region->id);
	if (region->state != KVX_REGION_LIVE)
		return kvx_why(
		    why, -EOWNERDEAD, "region %" PRIu64 " is not usable: it is %s", region->id,
		    region->state == KVX_REGION_CLOSING ? "being unregistered" : "not mapped");
	if (req->target->lost)
		return kvx_why(why, req->target->lost_status,
			       "the imported region is gone: import it again when its owner has "
			       "registered it again");
	return 0;
}

static int check_sides(const struct kvx_xfer_req *req, struct kvx_why *why)
{
	const struct kvx_target *target = req->target;
	uint32_t need = req->op == KVX_OP_READ ? KVX_ACCESS_READ : KVX_ACCESS_WRITE;
	if ((target->access & need) == 0)
		return kvx_why(why, -EACCES,
			       "the owner of the imported region does not allow %s: register it "
			       "with that access",
			       req->op == KVX_OP_READ ? "reading" : "writing");
	if (target->lane == NULL || target->lane->state == KVX_LANE_DOWN ||
	    target->lane->state == KVX_LANE_CLOSING)
		return kvx_why(why, -EHOSTDOWN, "no connection to the node of the imported region");
	return 0;
}

static int check_route(const struct kvx_xfer_req *req, struct kvx_why *why)
{
	const struct kvx_transport_ops *lane_ops = req->target->lane->ops;
	const struct kvx_transport_ops *usable[] = {lane_ops, NULL}, *chosen;
	const char *const names[] = {lane_ops->name, NULL};
	struct kvx_route_in in = {
	    .same_node = req->target->peer == NULL,
	    .remote_transports = names,
	    .require = req->require,
	};
	return kvx_route_choose(&in, usable, &chosen, why);
}

static int check_request(const struct kvx_xfers *all, const struct kvx_xfer_req *req,
			 struct kvx_why *why)
{
	int rc;
	if (all->n_live >= all->conf.max_xfers)
		return kvx_why(why, -EDQUOT,
			       "limits.transfers: the daemon has %u unfinished transfers already",
			       all->n_live);
	if (req->op != KVX_OP_READ && req->op != KVX_OP_WRITE)
		return kvx_why(why, -EINVAL, "op %d is neither READ nor WRITE", req->op);
	if (req->blocks != NULL && req->ops != NULL)
		return kvx_why(why, -EINVAL, "both a block list and ops: give one of them");
	if (req->blocks == NULL && req->ops == NULL && !req->streaming)
		return kvx_why(why, -EINVAL, "neither a block list nor ops: nothing to transfer");
	if (req->wait != NULL && req->blocks == NULL && req->ops == NULL)
		return kvx_why(why, -EINVAL, "a wait without a block list or ops that it is for");
	if (req->payload_bytes > KVX_PAYLOAD_MAX)
		return kvx_why(why, -EMSGSIZE, "payload of %" PRIu32 " bytes, at most %d",
			       req->payload_bytes, KVX_PAYLOAD_MAX);
	rc = check_sides(req, why);
	return rc != 0 ? rc : check_route(req, why);
}

static KVX_ON_LOOP int list_add(struct kvx_xfer *xfer, const struct kvx_block_list *blocks,
				const struct kvx_op_list *ops, const struct kvx_wait *wait,
				struct kvx_why *why)
{
	int rc = 0;
	if (blocks != NULL)
		rc = kvx_plan_add_blocks(xfer->plan, blocks, why);
	else if (ops != NULL)
		rc = kvx_plan_add_ops(xfer->plan, ops, why);
	if (rc == 0 && wait != NULL)
		rc = xfer_waits_add(xfer, wait, why);
	return rc;
}

static int xfer_set_payload(struct kvx_xfer *xfer, const void *payload, uint32_t bytes)
{
	void *copy = NULL;
	if (bytes > 0) {
		copy = malloc(bytes);
		if (copy == NULL)
			return -ENOMEM;
		memcpy(copy, payload, bytes);
	}
	free(xfer->payload);
	xfer->payload = copy;
	xfer->payload_bytes = bytes;
	return 0;
}

/* Everything of a new transfer that is not yet known to anybody else. */
static KVX_ON_LOOP int xfer_make(struct kvx_xfers *all, const struct kvx_xfer_req *req,
				 struct kvx_xfer **out_xfer, struct kvx_why *why)
{
	struct kvx_plan_side local = {req->region->mem.len_bytes, req->region->layout};
	struct kvx_plan_side remote = {req->target->len_bytes, req->target->layout};
	struct kvx_xfer *xfer = calloc(1, sizeof(*xfer));
	int rc = -ENOMEM;
	if (xfer == NULL)
		return kvx_why(why, rc, "no memory for another transfer");
	xfer->magic = KVX_XFER_MAGIC;
	xfer->item.ops = &xfer_sched_ops;
	xfer->item.flow_id = req->client;
	xfer->all = all;
	xfer->client = req->client;
	xfer->number = req->number;
	xfer->tag = req->tag;
	xfer->op = req->op;
	xfer->region = req->region;
	xfer->target = req->target;
	xfer->lane = req->target->lane;
	xfer->required = req->require != NULL && req->require[0] != '\0' ? xfer->lane->ops : NULL;
	xfer->transport = "";
	xfer->submit_ns = kvx_timers_now(all->conf.timers);
	xfer->deadline_ns =
	    req->deadline_ns != 0 ? req->deadline_ns : all->conf.default_deadline_ns;
	if (req->label != NULL)
		snprintf(xfer->label, sizeof(xfer->label), "%s", req->label);
	kvx_sm_init(&xfer->sm, &xfer_sm_conf, req->streaming ? XFER_OPEN : XFER_RUNNING);
	if (xfer_set_payload(xfer, req->payload, req->payload_bytes) != 0) {
		kvx_why(why, rc, "no memory for a payload of %" PRIu32 " bytes",
			req->payload_bytes);
		goto err_free;
	}
	rc = kvx_plan_create(&local, &remote, &xfer->plan);
	if (rc != 0) {
		kvx_why(why, rc, "no memory for a plan");
		goto err_payload;
	}
	rc = list_add(xfer, req->blocks, req->ops, req->wait, why);
	if (rc != 0)
		goto err_plan;
	*out_xfer = xfer;
	return 0;

err_plan:
	kvx_plan_destroy(xfer->plan);
err_payload:
	free(xfer->payload);
err_free:
	free(xfer);
	return rc;
}

/* Into the timers, the table and the queue. */
static KVX_ON_LOOP int xfer_start(struct kvx_xfers *all, struct kvx_xfer *xfer)
{
	int rc =
	    kvx_timer_start(all->conf.timers, &xfer->timer, xfer->deadline_ns, xfer_on_deadline);
	if (rc != 0)
		return rc;
	rc = xfers_link(all, xfer);
	if (rc != 0)
		goto err_timer;
	xfer_set_outlets(xfer);
	rc = kvx_sched_enqueue(xfer->lane->sched, &xfer->item);
	if (rc != 0)
		goto err_unlink;
	xfers_count_lists(xfer);
	xfer->uid = ++all->next_uid;
	kvx_target_ref(xfer->target);
	xfer->region->n_users++;
	if (xfer->target->region != NULL)
		xfer->target->region->n_users++;
	return 0;

err_unlink:
	xfers_unlink(all, xfer);
err_timer:
	kvx_timer_stop(all->conf.timers, &xfer->timer);
	return rc;
}

int kvx_xfer_submit(struct kvx_xfers *xfers, const struct kvx_xfer_req *req,
		    struct kvx_xfer **out_xfer, struct kvx_why *why)
{
	struct kvx_xfer *xfer = NULL;
	struct kvx_xfer_req routed = *req;
	const struct kvx_route_ask ask = {
	    .local = req->region, .op = req->op, .require = req->require};
	int rc = check_sides_live(req, why);
	if (rc == 0 && req->target->route != NULL)
		rc = req->target->route(req->target, &ask, &routed.target, why);
	if (rc == 0)
		rc = check_request(xfers, &routed, why);
	if (rc == 0)
		rc = xfer_make(xfers, &routed, &xfer, why);
	if (rc != 0)
		goto err_count;
	rc = xfer_start(xfers, xfer);
	if (rc != 0) {
		kvx_why(why, rc, "no memory for another transfer");
		goto err_destroy;
	}
	xfers->stats.accepted++;
	*out_xfer = xfer;
	return 0;

err_destroy:
	xfer_waits_drop(xfer);
	kvx_plan_destroy(xfer->plan);
	free(xfer->payload);
	free(xfer);
err_count:
	xfers->stats.refused++;
	return rc;
}

int kvx_xfer_append(struct kvx_xfer *xfer, const struct kvx_block_list *blocks,
		    const struct kvx_op_list *ops, const struct kvx_wait *wait, struct kvx_why *why)
{
	struct kvx_why own, *said = why != NULL ? why : &own;
	int rc;
	if (xfer->sm.state == XFER_ENDING)
		return 0;
	if (xfer->sm.state != XFER_OPEN)
		rc = kvx_why(said, -EINVAL, "append to a transfer that is sealed");
	else if ((blocks == NULL) == (ops == NULL))
		rc = kvx_why(said, -EINVAL, "append needs a block list or ops, one of them");
	else
		rc = list_add(xfer, blocks, ops, wait, said);
	if (rc == 0) {
		xfers_count_lists(xfer);
		rc = kvx_sched_enqueue(xfer->lane->sched, &xfer->item);
		if (rc != 0)
			kvx_why(said, rc, "no memory to queue the transfer again");
	}
	if (rc != 0)
		xfer_fail_status(xfer, rc, said->text);
	return rc;
}

int kvx_xfer_seal(struct kvx_xfer *xfer, const void *payload, uint32_t payload_bytes,
		  struct kvx_why *why)
{
	struct kvx_why own, *said = why != NULL ? why : &own;
	int rc = 0;
	if (xfer->sm.state == XFER_ENDING)
		return 0;
	if (xfer->sm.state != XFER_OPEN)
		rc = kvx_why(said, -EINVAL, "seal of a transfer that is sealed already");
	else if (payload_bytes > KVX_PAYLOAD_MAX)
		rc = kvx_why(said, -EMSGSIZE, "payload of %" PRIu32 " bytes, at most %d",
			     payload_bytes, KVX_PAYLOAD_MAX);
	else if (payload_bytes > 0 && xfer_set_payload(xfer, payload, payload_bytes) != 0)
		rc = kvx_why(said, -ENOMEM, "no memory for a payload of %" PRIu32 " bytes",
			     payload_bytes);
	if (rc != 0) {
		xfer_fail_status(xfer, rc, said->text);
		return rc;
	}
	kvx_sm_move(&xfer->sm, XFER_RUNNING);
	xfer_settle(xfer);
	return 0;
}

void kvx_xfer_cancel(struct kvx_xfer *xfer, int status, const char *text)
{
	xfer_fail_status(xfer, status, text);
}

struct kvx_region *kvx_xfer_region(const struct kvx_xfer *xfer)
{
	return xfer->region;
}
