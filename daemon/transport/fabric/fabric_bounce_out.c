/* Messages out of GPU memory: our WRITEs, and DATA for the peer's READs. Their data is copied into
 * a page-locked buffer, behind the room for the head, and sent from there as one run of bytes.
 * Worker thread; called by post(), by what serves the peer, and by the copies' end. */
#include <errno.h>
#include <string.h>

#include "transport/fabric/fabric_gpu.h"

int fab_bounce_write(struct fab_req *req, uint32_t head_len, bool ahead)
{
	struct fab_bounce *bounce;
	int rc = fab_bounce_get(req->ep, FAB_BOUNCE_WRITE, req->places, req->n_places, &bounce);

	if (rc == -EBUSY)
		req->text = FAB_HANGS_TEXT;
	if (rc < 0)
		return rc;
	bounce->req = req;
	req->bounce = bounce;
	bounce->ahead = ahead;
	bounce->head_len = head_len;
	bounce->data_bytes = req->bytes;
	memcpy(fab_buf_data(bounce->buf) - head_len, req->head, head_len);
	fab_bounce_copy(bounce);
	return 0;
}

int fab_bounce_reply(struct kvx_ep *ep, const struct kvx_pack_msg *msg,
		     const struct fab_place *places, bool ahead)
{
	struct fab_bounce *bounce;
	int rc = fab_bounce_get(ep, FAB_BOUNCE_REPLY, places, msg->n_ops, &bounce);

	if (rc < 0)
		return rc;
	bounce->id = msg->id;
	bounce->ahead = ahead;
	bounce->data_bytes = msg->data_bytes;
	bounce->head_len = kvx_pack_data(fab_buf_data(bounce->buf) - KVX_PACK_HDR_BYTES,
					 ahead ? KVX_PACK_DATA_AHEAD : KVX_PACK_DATA,
					 ep->peer_secret, msg->id, msg->data_bytes);
	fab_bounce_copy(bounce);
	return 0;
}

/* Nothing of it was sent. */
static void out_refuse(struct fab_bounce *bounce)
{
	struct kvx_ep *ep = bounce->ep;
	struct fab_req *req = bounce->req;
	uint32_t id = bounce->id;
	int status = bounce->status;

	if (req != NULL)
		req->text = bounce->text;
	fab_bounce_end(bounce);
	if (req != NULL)
		fab_req_fail(req, status);
	else
		fab_serve_ack(ep, id, status);
}

void fab_bounce_out_leave(struct fab_bounce *bounce)
{
	struct kvx_ep *ep = bounce->ep;
	struct fab_req *req = bounce->req;

	fab_bounce_stuck(bounce);
	if (req != NULL && req->answered) { /* the ep went meanwhile: the req has its status */
		fab_req_done(req);
	} else if (req != NULL) {
		req->text = bounce->text;
		fab_req_fail(req, bounce->status);
	} else if (ep->fid != NULL) {
		fab_serve_ack(ep, bounce->id, bounce->status);
	}
}

void fab_bounce_out_copied(struct fab_bounce *bounce)
{
	struct fab_req *req = bounce->req;

	if (bounce->ep->fid == NULL) { /* the ep went meanwhile: the req has its status */
		fab_bounce_end(bounce);
		if (req != NULL)
			fab_req_done(req);
		return;
	}
	bounce->buf->dev->gpu->n_copying--;
	bounce->buf->dev->gpu->n_ready++;
	bounce->state = FAB_BOUNCE_READY;
	fab_bounce_out_send(bounce);
}

void fab_bounce_out_send(struct fab_bounce *bounce)
{
	struct kvx_ep *ep = bounce->ep;
	struct fab_run run = {
	    .ep = ep,
	    .ahead = bounce->ahead,
	    .head = fab_buf_data(bounce->buf) - bounce->head_len,
	    .head_len = bounce->head_len,
	    .data_bytes = bounce->data_bytes,
	    .desc = bounce->buf->desc,
	};
	int rc;

	if (bounce->status == 0 && bounce->kind == FAB_BOUNCE_REPLY && fab_ep_lease_over(ep))
		fab_bounce_fail(bounce, -EHOSTDOWN, NULL);
	if (bounce->status < 0) {
		out_refuse(bounce);
		return;
	}
	run.ctx = fab_ctx(ep, FAB_CTX_BOUNCE, bounce->index);
	rc = fab_place_send_run(&run);
	if (rc == -EAGAIN)
		return;
	if (rc < 0) { /* ends the bounce, too */
		fab_ep_break(ep, rc, 0, "sending to the peer failed");
		return;
	}
	bounce->buf->dev->gpu->n_ready--;
	bounce->state = FAB_BOUNCE_SENDING;
	ep->n_replies_sent += bounce->kind == FAB_BOUNCE_REPLY;
	if (bounce->req != NULL) {
		bounce->req->sending = true;
		bounce->req->bounce = NULL; /* from here on the peer may answer it */
	}
}

void fab_bounce_out_sent(struct fab_bounce *bounce)
{
	struct fab_req *req = bounce->req;

	fab_bounce_end(bounce);
	if (req != NULL)
		fab_req_sent(req);
}
