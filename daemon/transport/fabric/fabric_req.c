/* Requests of an endpoint: taking one, and the two things that must both happen before it is over,
 * in either order: the peer's answer, and the provider letting go of its buffers. Called by
 * fabric_msg.c, fabric_rma.c and the completion loop, on the worker thread. Never allocates. */
#include <errno.h>

#include "transport/fabric/fabric_priv.h"

struct fab_req *fab_req_get(struct kvx_ep *ep, const struct kvx_op *op, enum fab_req_kind kind)
{
	struct fab_req *req = ep->free_reqs;

	if (req == NULL)
		return NULL;
	if (kind != FAB_REQ_RMA) {
		if (ep->n_asked >= ep->limits.queue)
			return NULL;
		ep->n_asked++;
	}
	ep->free_reqs = req->next;
	req->next = NULL;
	req->cookie = op->cookie;
	req->gen++;
	req->n_ops = 0;
	req->bytes = 0;
	req->n_places = 0;
	req->status = 0;
	req->vendor_code = 0;
	req->kind = (uint8_t)kind;
	req->open = true;
	req->sending = false;
	req->answered = false;
	req->dead = false;
	req->held = false;
	req->bounced = false;
	req->bounce = NULL;
	req->text = NULL;
	req->buf = NULL;
	return req;
}

static void req_give_back_buf(struct fab_req *req)
{
	struct kvx_ep *ep = req->ep;

	if (req->buf != NULL)
		ep->free_tx[ep->n_free_tx++] = req->buf;
	req->buf = NULL;
}

void fab_req_put(struct fab_req *req)
{
	struct kvx_ep *ep = req->ep;

	req_give_back_buf(req);
	if (req->kind != FAB_REQ_RMA)
		ep->n_asked--;
	req->open = false;
	req->next = ep->free_reqs;
	ep->free_reqs = req;
}

void fab_req_fail(struct fab_req *req, int status)
{
	req->status = status;
	req->answered = true;
	req->sending = false;
	fab_req_done(req);
}

void fab_req_answer(struct fab_req *req, int status)
{
	req->status = status;
	req->answered = true;
	if (!req->sending)
		fab_req_done(req);
}

void fab_req_sent(struct fab_req *req)
{
	req->sending = false;
	req_give_back_buf(req);
	if (req->answered)
		fab_req_done(req);
}

/* The generation in an id makes an answer that comes twice, or late, answer nothing. */
uint32_t fab_req_id(const struct fab_req *req)
{
	return (req->gen << 8) | req->index;
}
_Static_assert(FAB_MAX_QUEUE <= 256, "a request's index has 8 bits in its id");

struct fab_req *fab_req_find(struct kvx_ep *ep, uint32_t id)
{
	struct fab_req *req;

	if ((id & 0xff) >= ep->dom->queue)
		return NULL;
	req = &ep->reqs[id & 0xff];
	if (!req->open || req->answered || req->bounce != NULL || req->kind == FAB_REQ_RMA ||
	    fab_req_id(req) != id)
		return NULL;
	return req;
}

/* What xfer planned is checked there; this catches what cannot be packed, and our own mistakes
 * before they become somebody's memory. */
int fab_op_check(const struct kvx_op *op)
{
	const struct kvx_mr *mr = op->local;
	const struct kvx_rkey *rkey = op->remote;

	if (op->len_bytes == 0 || op->len_bytes > mr->dom->message_bytes)
		return -EINVAL;
	if (op->local_offset > mr->len_bytes || op->len_bytes > mr->len_bytes - op->local_offset)
		return -ERANGE;
	if (op->remote_offset > rkey->len_bytes ||
	    op->len_bytes > rkey->len_bytes - op->remote_offset)
		return -ERANGE;
	return 0;
}
