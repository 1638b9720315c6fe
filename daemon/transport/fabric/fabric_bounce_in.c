/* Messages into GPU memory: the peer's WRITEs, and DATA of our READs. Their data is in a
 * page-locked buffer, received there when it was announced ahead, else moved there from the receive
 * buffer; the WRITE is acknowledged, the READ done, when the device has it. Worker thread; called
 * by what serves the peer and by the copies' end. */
#include <errno.h>
#include <string.h>

#include "transport/fabric/fabric_gpu.h"

int fab_bounce_receive(struct kvx_ep *ep, const struct kvx_pack_msg *msg, struct fab_req *req,
		       const struct fab_place *places, struct fab_bounce **out_bounce)
{
	enum fab_bounce_kind kind = req != NULL ? FAB_BOUNCE_FILL : FAB_BOUNCE_PLACE;
	struct fab_bounce *bounce;
	int rc =
	    fab_bounce_get(ep, kind, places, req != NULL ? req->n_places : msg->n_ops, &bounce);

	if (rc < 0)
		return rc;
	kvx_assert(msg->data_bytes <= ep->dom->gpu->buf_bytes - KVX_PACK_HEAD_BYTES);
	bounce->id = msg->id;
	bounce->data_bytes = msg->data_bytes;
	bounce->req = req;
	if (req != NULL)
		req->bounce = bounce;
	*out_bounce = bounce;
	return 0;
}

int fab_bounce_place(struct kvx_ep *ep, const struct kvx_pack_msg *msg,
		     const struct fab_place *places)
{
	struct fab_bounce *bounce;
	int rc = fab_bounce_receive(ep, msg, NULL, places, &bounce);

	if (rc < 0)
		return rc;
	memcpy(fab_buf_data(bounce->buf), msg->data, msg->data_bytes);
	fab_bounce_copy(bounce);
	return 0;
}

int fab_bounce_fill(struct fab_req *req, const struct kvx_pack_msg *msg)
{
	struct fab_bounce *bounce;
	int rc = fab_bounce_receive(req->ep, msg, req, req->places, &bounce);

	if (rc < 0)
		return rc;
	memcpy(fab_buf_data(bounce->buf), msg->data, msg->data_bytes);
	fab_bounce_copy(bounce);
	return 0;
}

static void fill_end(struct fab_bounce *bounce)
{
	struct fab_req *req = bounce->req;
	int status = bounce->status;

	req->text = bounce->text;
	fab_bounce_end(bounce);
	if (req->answered) /* the ep went meanwhile */
		fab_req_done(req);
	else
		fab_req_answer(req, status);
}

void fab_bounce_in_copied(struct fab_bounce *bounce)
{
	struct kvx_ep *ep = bounce->ep;
	uint32_t id = bounce->id;
	int status = bounce->status;

	if (bounce->req != NULL) {
		fill_end(bounce);
		return;
	}
	fab_bounce_end(bounce);
	if (ep->fid != NULL)
		fab_serve_ack(ep, id, status);
}
