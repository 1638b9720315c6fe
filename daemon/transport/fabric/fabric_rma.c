/* Large ops by RMA: the provider moves the bytes itself and answers with a delivery completion.
 * Called by post() on the worker thread; completions come back through fab_req_sent(). The other
 * side's checks are the provider's (key, rights, range), so this is used only where
 * fabric_rma_min_bytes says so. */
#include <errno.h>

#include "transport/fabric/fabric_priv.h"

bool fab_rma_wants(const struct kvx_ep *ep, const struct kvx_op *op)
{
	const struct kvx_dom *dom = ep->dom;

	return dom->rma && op->remote->has_rma && op->len_bytes >= dom->rma_min_bytes &&
	       op->local->fid != NULL;
}

/* The first ops that go into one RMA operation; returns how many. */
static uint32_t rma_fill(struct fab_req *req, const struct kvx_op *ops, unsigned n,
			 struct iovec *iov, struct fi_rma_iov *rma_iov)
{
	const struct kvx_ep *ep = req->ep;
	uint64_t left = ep->dom->message_bytes;
	uint32_t i;

	if (n > ep->dom->rma_iov_limit)
		n = ep->dom->rma_iov_limit;
	for (i = 0; i < n; i++) {
		const struct kvx_op *op = &ops[i];

		if (op->cookie != ops->cookie || op->kind != ops->kind || fab_op_check(op) < 0 ||
		    !fab_rma_wants(ep, op) || op->len_bytes > left)
			break;
		left -= op->len_bytes;
		req->places[i].mr = op->local;
		req->places[i].offset = op->local_offset;
		req->places[i].len_bytes = op->len_bytes;
		iov[i].iov_base = op->local->addr + op->local_offset;
		iov[i].iov_len = op->len_bytes;
		rma_iov[i].addr = op->remote->rma_base + op->remote_offset;
		rma_iov[i].len = op->len_bytes;
		rma_iov[i].key = op->remote->rma_key;
	}
	req->n_ops = i;
	req->n_places = i;
	return i;
}

static int rma_send(struct fab_req *req, const struct kvx_op *ops, const struct iovec *iov,
		    const struct fi_rma_iov *rma_iov)
{
	struct kvx_ep *ep = req->ep;
	void *desc[FAB_IOV_MAX];
	struct fi_msg_rma msg = {
	    .msg_iov = iov,
	    .desc = desc,
	    .iov_count = req->n_ops,
	    .addr = ep->peer,
	    .rma_iov = rma_iov,
	    .rma_iov_count = req->n_ops,
	};

	msg.context = fab_ctx(ep, FAB_CTX_REQ, req->index);
	for (uint32_t i = 0; i < req->n_ops; i++) {
		if (fab_touch(&req->places[i]) < 0)
			return -EFAULT;
		desc[i] = req->places[i].mr->desc;
	}
	if (ops->kind == KVX_OP_READ)
		return fabric_err(fi_readmsg(ep->fid, &msg, FI_COMPLETION));
	return fabric_err(fi_writemsg(ep->fid, &msg, FI_COMPLETION | FI_DELIVERY_COMPLETE));
}

int fab_rma_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n)
{
	struct fab_req *req = fab_req_get(ep, ops, FAB_REQ_RMA);
	struct iovec iov[FAB_IOV_MAX];
	struct fi_rma_iov rma_iov[FAB_IOV_MAX];
	uint32_t taken;
	int rc;

	if (req == NULL)
		return 0;
	rc = fab_op_check(ops);
	if (rc < 0) {
		req->n_ops = 1;
		fab_req_fail(req, rc);
		return 1;
	}
	taken = rma_fill(req, ops, n, iov, rma_iov);
	rc = rma_send(req, ops, iov, rma_iov);
	if (rc == 0) {
		req->sending = true;
		return (int)taken;
	}
	if (rc == -EFAULT) {
		fab_req_fail(req, rc);
		return (int)taken;
	}
	fab_req_put(req);
	if (rc == -EAGAIN)
		return 0;
	fab_ep_break(ep, rc, 0, "sending to the peer failed");
	return rc;
}
