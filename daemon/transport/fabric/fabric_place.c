/* Placing: large ops of packed messages, received where they belong. An *_AHEAD message says what
 * the next message brings; once its ops are checked, a receive into their places is posted, and the
 * library puts the data there without a copy of ours. Used on connection-oriented endpoints, which
 * keep the order, and instead of RMA: every op is checked by us.
 *
 * Called by fabric_msg.c, fabric_serve.c and the completion loop on the worker thread. While data
 * is being placed the library holds pointers into a region: unregistering it, or a lease that ends,
 * closes the endpoint (see ep_uses_mr() and check_leases()). Never allocates, never waits. */
#include <errno.h>

#include "mem/region.h"
#include "transport/fabric/fabric_priv.h"

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
	rc = fabric_err(fi_inject(ep->fid, out->head, out->head_len, ep->peer));
	if (rc < 0)
		return rc;
	owed->n = out->n_places;
	owed->ctx = out->ctx;
	owed->active = true;
	rc = fab_place_settle(ep);
	if (rc == -EAGAIN) {
		fab_ep_dirty(ep);
		rc = 0;
	}
	return rc;
}

/* Posts the receive for what was announced: into the places, or to be dropped. */
static void place_start(struct kvx_ep *ep, const struct fab_place *places, uint32_t n, int status)
{
	struct fab_placing *pl = &ep->placing;
	struct iovec iov[FAB_IOV_MAX];
	void *desc[FAB_IOV_MAX];
	struct fi_msg msg = {.msg_iov = iov, .desc = desc, .addr = FI_ADDR_UNSPEC};
	int rc;

	for (uint32_t i = 0; status == 0 && i < n; i++) {
		iov[i].iov_base = places[i].mr->addr + places[i].offset;
		iov[i].iov_len = places[i].len_bytes;
		desc[i] = places[i].mr->desc;
		pl->mrs[i] = places[i].mr;
		if (fab_touch(&places[i]) < 0)
			status = -EFAULT;
	}
	pl->n_mrs = n;
	if (status < 0) {
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

void fab_place_on_write(struct kvx_ep *ep, const struct kvx_pack_msg *msg)
{
	struct fab_place places[KVX_PACK_MAX_OPS];
	int rc;

	if (place_too_big(ep, msg)) {
		fab_serve_bad(ep, "more announced by the peer than it was allowed");
		return;
	}
	rc = fab_serve_resolve(ep, msg, KVX_ACCESS_WRITE, places);
	if (rc == 0 && fab_ep_lease_over(ep))
		rc = -EHOSTDOWN;
	ep->placing.id = msg->id;
	ep->placing.req = NULL;
	ep->placing.data_bytes = msg->data_bytes;
	place_start(ep, places, msg->n_ops, rc);
}

int fab_place_on_data(struct kvx_ep *ep, const struct kvx_pack_msg *msg)
{
	struct fab_req *req = fab_req_find(ep, msg->id);
	int rc = 0;

	if (place_too_big(ep, msg) || req == NULL || req->kind != FAB_REQ_READ ||
	    req->bytes != msg->data_bytes || req->n_places > ep->dom->rx_iov_limit)
		return -EPROTO;
	if (req->dead)
		rc = -ECANCELED;
	else if (fab_ep_lease_over(ep))
		rc = -EHOSTDOWN;
	ep->placing.req = req;
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
