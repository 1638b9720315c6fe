/* Packed requests: ops become WRITE and READ messages, answers end them. Called by post() and by
 * fabric_serve.c when an answer has come, on the worker thread. A request holds ops of one cookie
 * only, so that its status is theirs. Owns nothing: requests belong to the ep. Never allocates and
 * never waits: what does not go now is not taken. */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "proto/kvx_err.h"
#include "transport/fabric/fabric_gpu.h"

/* A place of at least this size is sent from where it is; below, copying it into the message costs
 * less than one more iov. */
#define DIRECT_MIN_BYTES 8192u

unsigned fab_out_n_direct(const struct kvx_ep *ep, const struct fab_place *places, uint32_t n)
{
	/* Connectionless endpoints are a layer that may copy with the CPU, outside of a guard. */
	unsigned max = ep->dom->connected_eps ? ep->dom->iov_limit - 1 : 0;
	unsigned k = 0;

	while (k < max && k < n && places[n - 1 - k].len_bytes >= DIRECT_MIN_BYTES)
		k++;
	return k;
}

int fab_out_send(const struct fab_out *out, unsigned n_direct)
{
	struct kvx_ep *ep = out->ep;
	uint32_t n_copied = out->n_places - n_direct;
	struct iovec iov[FAB_IOV_MAX];
	void *desc[FAB_IOV_MAX];
	struct fi_msg msg = {
	    .msg_iov = iov, .desc = desc, .iov_count = 1 + n_direct, .addr = ep->peer};
	ssize_t rc;

	kvx_assert(n_copied == 0 || out->room);
	if (fab_place_settle(ep) < 0)
		return -EAGAIN;
	if (fab_gather(out->head + out->head_len, out->places, n_copied) < 0)
		return -EFAULT;
	iov[0].iov_base = out->head;
	iov[0].iov_len = out->head_len;
	desc[0] = ep->chunk_desc;
	for (uint32_t i = 0; i < n_copied; i++)
		iov[0].iov_len += out->places[i].len_bytes;
	for (unsigned i = 0; i < n_direct; i++) {
		const struct fab_place *p = &out->places[n_copied + i];

		if (fab_touch(p) < 0)
			return -EFAULT;
		iov[1 + i].iov_base = p->mr->addr + p->offset;
		iov[1 + i].iov_len = p->len_bytes;
		desc[1 + i] = p->mr->desc;
	}
	msg.context = out->ctx;
	rc = fi_sendmsg(ep->fid, &msg, FI_COMPLETION);
	return fabric_err(rc);
}

/* Puts the first ops that fit together into req; returns the length of its head. Large ops (place)
 * and small ones do not go together. */
static uint32_t msg_fill(struct fab_req *req, const struct kvx_op *ops, unsigned n, bool place)
{
	struct kvx_ep *ep = req->ep;
	struct kvx_pack_writer w;
	enum kvx_pack_type type = ops->kind == KVX_OP_READ ? KVX_PACK_READ : KVX_PACK_WRITE;
	uint32_t head_len, i;

	kvx_pack_begin(&w, req->head, place ? ep->limits.placed_ops : ep->limits.max_ops,
		       ep->limits.message_bytes);
	for (i = 0; i < n; i++) {
		const struct kvx_op *op = &ops[i];

		if (op->cookie != ops->cookie || op->kind != ops->kind || fab_op_check(op) < 0 ||
		    fab_rma_wants(ep, op) || fab_place_wants(ep, op->len_bytes) != place)
			break;
		if (place && op->remote != ops->remote) /* one key: the head is to stay short */
			break;
		if (op->local->dev != ops->local->dev)
			break;
		if (kvx_pack_add(&w, &op->remote->key, op->remote_offset, op->len_bytes) < 0)
			break;
		req->places[i].mr = op->local;
		req->places[i].offset = op->local_offset;
		req->places[i].len_bytes = op->len_bytes;
	}
	if (place && type == KVX_PACK_WRITE)
		type = KVX_PACK_WRITE_AHEAD;
	head_len = kvx_pack_end(&w, type, ep->peer_secret, fab_req_id(req));
	req->n_ops = i;
	req->n_places = i;
	req->bytes = (uint32_t)w.bytes;
	return head_len;
}

static int msg_send(struct fab_req *req, uint32_t head_len, bool place)
{
	struct kvx_ep *ep = req->ep;
	struct fab_out out = {
	    .ep = ep, .head = req->head, .head_len = head_len, .places = req->places};
	unsigned n_direct = 0;

	out.ctx = fab_ctx(ep, FAB_CTX_REQ, req->index);
	if (req->kind == FAB_REQ_WRITE) {
		out.n_places = req->n_places;
		if (place)
			return fab_place_send(&out);
		n_direct = fab_out_n_direct(ep, req->places, req->n_places);
		if (n_direct < req->n_places) {
			if (ep->n_free_tx == 0)
				return -EAGAIN;
			req->buf = ep->free_tx[--ep->n_free_tx];
			memcpy(req->buf, req->head, head_len);
			out.head = req->buf;
			out.room = true;
		}
	}
	return fab_out_send(&out, n_direct);
}

int fab_msg_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n)
{
	bool read = ops->kind == KVX_OP_READ;
	bool place = fab_place_wants(ep, ops->len_bytes);
	struct fab_req *req = fab_req_get(ep, ops, read ? FAB_REQ_READ : FAB_REQ_WRITE);
	uint32_t head_len;
	int taken, rc;

	if (req == NULL)
		return 0;
	rc = fab_op_check(ops);
	if (rc < 0) {
		req->n_ops = 1;
		fab_req_fail(req, rc);
		return 1;
	}
	req->bounced = ops->local->dev != NULL;
	head_len = msg_fill(req, ops, n, place);
	if (req->n_ops == 0) { /* the peer takes less in one message than we do */
		req->n_ops = 1;
		fab_req_fail(req, -EMSGSIZE);
		return 1;
	}
	taken = (int)req->n_ops;
	if (req->bounced && !read) {
		rc = fab_bounce_write(req, head_len, place);
		if (rc == 0)
			return taken; /* it is sent when its data is copied */
	} else {
		rc = msg_send(req, head_len, place);
		if (rc == 0) {
			req->sending = true;
			return taken;
		}
	}
	if (rc == -EFAULT || (req->bounced && !read && rc != -EAGAIN)) {
		fab_req_fail(req, rc);
		return taken;
	}
	fab_req_put(req);
	if (rc == -EAGAIN)
		return 0;
	fab_ep_break(ep, rc, 0, "sending to the peer failed");
	return rc;
}

int fab_msg_on_data(struct kvx_ep *ep, const struct kvx_pack_msg *msg)
{
	struct fab_req *req = fab_req_find(ep, msg->id);
	int rc;

	if (req == NULL || req->kind != FAB_REQ_READ || msg->data_bytes != req->bytes)
		return -EPROTO;
	if (req->bounced && !req->dead) {
		rc = fab_bounce_fill(req, msg);
		if (rc == 0 || rc == -EAGAIN)
			return rc;
	} else if (req->dead)
		rc = -ECANCELED;
	else
		rc = fab_scatter(ep, msg->data, req->places, req->n_places);
	fab_req_answer(req, rc);
	return 0;
}

int fab_msg_on_ack(struct kvx_ep *ep, const struct kvx_pack_msg *msg)
{
	for (uint32_t i = 0; i < msg->n_ops; i++) {
		struct kvx_pack_ack ack;
		struct fab_req *req;

		kvx_pack_get_ack(msg, i, &ack);
		req = fab_req_find(ep, ack.id);
		if (req == NULL || (req->kind == FAB_REQ_READ && ack.status == KVX_STATUS_OK))
			return -EPROTO;
		fab_req_answer(req, kvx_status_to_errno(ack.status));
	}
	return 0;
}
