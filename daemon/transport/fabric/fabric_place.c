/* Placing: large ops of packed messages, received where they belong. An *_AHEAD message says what
 * the next message brings; once its ops are checked, a receive into their places is posted, and the
 * library puts the data there without a copy of ours. Used on connection-oriented endpoints, which
 * keep the order, and instead of RMA: every op is checked by us.
 *
 * Called by fabric_msg.c, fabric_serve.c and the completion loop on the worker thread. While data
 * is being placed the library holds pointers into a region: unregistering it, or a lease that ends,
 * closes the endpoint (see ep_uses_mr() and check_leases()). What is for GPU memory is received
 * into a page-locked buffer instead. Never allocates, never waits. */
#include <errno.h>
#include <string.h>

#include "mem/region.h"
#include "transport/fabric/fabric_gpu.h"

/* Below, the two messages cost more than the copies that they spare. */
#define PLACE_MIN_BYTES (64u << 10)

bool fab_place_wants(const struct kvx_ep *ep, uint64_t len_bytes)
{
	return ep->limits.placed_ops > 0 && len_bytes >= PLACE_MIN_BYTES;
}

int fab_place_settle(struct kvx_ep *ep)
{
	struct fab_owed *owed = &ep->owed;
	struct fi_msg msg = {.msg_iov = owed->iov,
			     .desc = owed->desc,
			     .iov_count = owed->n,
			     .addr = ep->peer,
			     .context = owed->ctx};
	int rc;

	if (!owed->active)
		return 0;
	rc = fabric_err(fi_sendmsg(ep->fid, &msg, FI_COMPLETION));
	if (rc == 0)
		owed->active = false;
	return rc;
}

/* The head; what owed->iov and owed->desc say follows it, now or as soon as it goes. */
static int place_announce(struct kvx_ep *ep, const uint8_t *head, uint32_t head_len, unsigned n,
			  void *ctx)
{
	struct fab_owed *owed = &ep->owed;
	int rc = fabric_err(fi_inject(ep->fid, head, head_len, ep->peer));

	if (rc < 0)
		return rc;
	owed->n = n;
	owed->ctx = ctx;
	owed->active = true;
	rc = fab_place_settle(ep);
	if (rc == -EAGAIN) {
		fab_ep_dirty(ep);
		rc = 0;
	}
	return rc;
}

int fab_place_send(const struct fab_out *out)
{
	struct kvx_ep *ep = out->ep;
	struct fab_owed *owed = &ep->owed;
	int rc = fab_place_settle(ep);

	if (rc < 0)
		return rc;
	kvx_assert(out->n_places <= ep->dom->iov_limit);
	for (uint32_t i = 0; i < out->n_places; i++) {
		const struct fab_place *p = &out->places[i];

		if (fab_touch(p) < 0)
			return -EFAULT;
		owed->iov[i].iov_base = p->mr->addr + p->offset;
		owed->iov[i].iov_len = p->len_bytes;
		owed->desc[i] = p->mr->desc;
	}
	return place_announce(ep, out->head, out->head_len, out->n_places, out->ctx);
}

int fab_place_send_run(const struct fab_run *run)
{
	struct kvx_ep *ep = run->ep;
	struct fab_owed *owed = &ep->owed;
	int rc = fab_place_settle(ep);

	if (rc < 0)
		return rc;
	if (!run->ahead)
		return fabric_err(fi_send(ep->fid, run->head, run->head_len + run->data_bytes,
					  run->desc, ep->peer, run->ctx));
	owed->iov[0].iov_base = run->head + run->head_len;
	owed->iov[0].iov_len = run->data_bytes;
	owed->desc[0] = run->desc;
	return place_announce(ep, run->head, run->head_len, 1, run->ctx);
}

/* Posts the receive for what was announced: into the places or the bounce's buffer, or to be
 * dropped. */
static void place_start(struct kvx_ep *ep, const struct fab_place *places, uint32_t n, int status)
{
	struct fab_placing *pl = &ep->placing;
	struct iovec iov[FAB_IOV_MAX];
	void *desc[FAB_IOV_MAX];
	struct fi_msg msg = {.msg_iov = iov, .desc = desc, .addr = FI_ADDR_UNSPEC};
	int rc;

	if (pl->bounce != NULL || pl->sunk > 0)
		n = 0;
	for (uint32_t i = 0; status == 0 && i < n; i++) {
		iov[i].iov_base = places[i].mr->addr + places[i].offset;
		iov[i].iov_len = places[i].len_bytes;
		desc[i] = places[i].mr->desc;
		pl->mrs[i] = places[i].mr;
		if (fab_touch(&places[i]) < 0)
			status = -EFAULT;
	}
	pl->n_mrs = n;
	if (pl->bounce != NULL) {
		n = 1;
		iov[0].iov_base = fab_buf_data(pl->bounce->buf);
		iov[0].iov_len = pl->data_bytes;
		desc[0] = pl->bounce->buf->desc;
	} else if (pl->sunk > 0) {
		n = 1;
		iov[0].iov_base = ep->rx[FAB_RX_SINK] + pl->sunk;
		iov[0].iov_len = pl->data_bytes;
		desc[0] = ep->chunk_desc;
	} else if (status < 0) {
		pl->n_mrs = 0;
		n = 1;
		iov[0].iov_base = ep->rx[FAB_RX_SINK];
		iov[0].iov_len = ep->rx_bytes;
		desc[0] = ep->chunk_desc;
	}
	pl->status = status;
	msg.iov_count = n;
	msg.context = fab_ctx(ep, FAB_CTX_PLACE, 0);
	rc = fabric_err(fi_recvmsg(ep->fid, &msg, FI_COMPLETION));
	if (rc < 0) {
		fab_ep_break(ep, rc, 0, "posting a receive buffer failed");
		return;
	}
	pl->active = true;
	ep->dom->n_placing++;
}

/* What cannot be placed must still be taken off the connection, within what we said we take. */
static bool place_too_big(const struct kvx_ep *ep, const struct kvx_pack_msg *msg)
{
	return !ep->dom->placing || msg->n_ops > ep->dom->rx_iov_limit ||
	       msg->data_bytes > ep->dom->message_bytes;
}

/* Its data is received behind its head, as if both were one message: see fab_place_done(). */
static uint32_t place_sink(struct kvx_ep *ep, const uint8_t *raw, size_t len)
{
	memcpy(ep->rx[FAB_RX_SINK], raw, len);
	kvx_pack_join(ep->rx[FAB_RX_SINK]);
	return (uint32_t)len;
}

int fab_place_on_write(struct kvx_ep *ep, const struct kvx_pack_msg *msg, const uint8_t *raw,
		       size_t len)
{
	struct fab_place places[KVX_PACK_MAX_OPS];
	struct fab_bounce *bounce = NULL;
	uint32_t sunk = 0;
	int rc;

	if (place_too_big(ep, msg))
		return -EPROTO;
	rc = fab_serve_resolve(ep, msg, KVX_ACCESS_WRITE, places);
	if (rc == 0 && fab_ep_lease_over(ep))
		rc = -EHOSTDOWN;
	if (rc == 0 && ep->dom->gpu != NULL && fab_places_bounce(places, msg->n_ops)) {
		if (fab_bounce_scarce(ep))
			sunk = place_sink(ep, raw, len);
		else
			rc = fab_bounce_receive(ep, msg, NULL, places, &bounce);
	}
	if (rc == -EAGAIN)
		return rc;
	ep->placing.sunk = sunk;
	ep->placing.id = msg->id;
	ep->placing.req = NULL;
	ep->placing.bounce = bounce;
	ep->placing.data_bytes = msg->data_bytes;
	place_start(ep, places, msg->n_ops, rc);
	return 0;
}

int fab_place_on_data(struct kvx_ep *ep, const struct kvx_pack_msg *msg, const uint8_t *raw,
		      size_t len)
{
	struct fab_req *req = fab_req_find(ep, msg->id);
	struct fab_bounce *bounce = NULL;
	uint32_t sunk = 0;
	int rc = 0;

	if (place_too_big(ep, msg) || req == NULL || req->kind != FAB_REQ_READ ||
	    req->bytes != msg->data_bytes || req->n_places > ep->dom->rx_iov_limit)
		return -EPROTO;
	if (req->dead)
		rc = -ECANCELED;
	else if (fab_ep_lease_over(ep))
		rc = -EHOSTDOWN;
	else if (req->bounced && fab_bounce_scarce(ep))
		sunk = place_sink(ep, raw, len);
	else if (req->bounced)
		rc = fab_bounce_receive(ep, msg, req, req->places, &bounce);
	if (rc == -EAGAIN)
		return rc;
	ep->placing.sunk = sunk;
	ep->placing.req = req;
	ep->placing.bounce = bounce;
	ep->placing.data_bytes = msg->data_bytes;
	place_start(ep, req->places, req->n_places, rc);
	return 0;
}

void fab_place_done(struct kvx_ep *ep, size_t len)
{
	struct fab_placing *pl = &ep->placing;

	kvx_assert(pl->active);
	pl->active = false;
	ep->dom->n_placing--;
	if (len != pl->data_bytes)
		fab_serve_bad(ep, "announced data of the peer has another length");
	else if (pl->sunk > 0)
		fab_serve_rx(ep, FAB_RX_SINK, pl->sunk + len);
	else if (pl->bounce != NULL)
		fab_bounce_copy(pl->bounce);
	else if (pl->req != NULL)
		fab_req_answer(pl->req, pl->status);
	else
		fab_serve_ack(ep, pl->id, pl->status);
}

bool fab_place_uses(const struct kvx_ep *ep, const struct kvx_mr *mr)
{
	for (uint32_t i = 0; ep->placing.active && i < ep->placing.n_mrs; i++)
		if (ep->placing.mrs[i] == mr)
			return true;
	return false;
}
