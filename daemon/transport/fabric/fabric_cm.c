/* How the two ends of a lane find each other. Called by the worker thread through listen(),
 * connect() and progress().
 *
 * Connection-oriented providers: one passive endpoint per domain listens for all eps. Both sides
 * know both secrets before they start, and the one with the smaller secret connects; its request
 * names both, and a request that does not is rejected. Connectionless providers: each ep has its
 * own address, both sides insert the other's. Either way the ep is up when both hellos went
 * through. */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/fabric/fabric_priv.h"

/* Travels in a connection request; little-endian. Small enough for every provider. */
struct wire_connreq {
	uint64_t to;   /* secret of the ep that is meant */
	uint64_t from; /* secret of the ep that asks */
};
_Static_assert(sizeof(struct wire_connreq) == 16, "connection request data is 16 bytes");

#define EQ_ROUNDS 16

static int cm_open_ep(struct kvx_ep *ep, struct fi_info *info)
{
	struct kvx_dom *dom = ep->dom;
	struct fid *queue = dom->connected_eps ? &dom->eq->fid : &dom->av->fid;
	int rc;

	rc = fi_endpoint(dom->domain, info, &ep->fid, NULL);
	if (rc != 0) {
		ep->fid = NULL;
		return fabric_err(rc);
	}
	rc = fi_ep_bind(ep->fid, queue, 0);
	if (rc == 0)
		rc = fi_ep_bind(ep->fid, &dom->cq->fid, FI_TRANSMIT | FI_RECV);
	if (rc == 0)
		rc = fi_enable(ep->fid);
	return fabric_err(rc);
}

static int cm_post_all_rx(struct kvx_ep *ep)
{
	int rc = 0;

	/* With placing, what comes next is known only after what came last: one at a time. */
	for (unsigned i = 0; i < (ep->dom->placing ? 1 : FAB_N_RX) && rc == 0; i++)
		rc = fab_ep_post_rx(ep, i);
	return rc;
}

int fab_cm_listen(struct kvx_ep *ep, void *addr, size_t *addr_len)
{
	struct kvx_dom *dom = ep->dom;
	struct fid *fid;
	int rc;

	ep->peer = FI_ADDR_UNSPEC;
	if (dom->connected_eps) {
		fid = &dom->pep->fid;
	} else {
		rc = cm_open_ep(ep, dom->info);
		if (rc < 0)
			goto err_close;
		fid = &ep->fid->fid;
	}
	rc = fi_getname(fid, addr, addr_len);
	if (rc == -FI_ETOOSMALL)
		rc = -ENOSPC;
	else
		rc = fabric_err(rc);
	if (rc == 0)
		return 0;

err_close:
	if (ep->fid != NULL)
		fi_close(&ep->fid->fid);
	ep->fid = NULL;
	return rc;
}

static int cm_connect_active(struct kvx_ep *ep, const void *addr, size_t addr_len)
{
	struct wire_connreq req = {htole64(ep->peer_secret), htole64(ep->secret)};
	struct fi_info *info = fi_dupinfo(ep->dom->info);
	int rc;

	if (info == NULL)
		return -ENOMEM;
	free(info->dest_addr);
	info->dest_addr = malloc(addr_len);
	info->dest_addrlen = addr_len;
	rc = -ENOMEM;
	if (info->dest_addr == NULL)
		goto out;
	memcpy(info->dest_addr, addr, addr_len);
	rc = cm_open_ep(ep, info);
	if (rc == 0)
		rc = cm_post_all_rx(ep);
	if (rc == 0)
		rc = fabric_err(fi_connect(ep->fid, addr, &req, sizeof(req)));
out:
	fi_freeinfo(info);
	return rc;
}

/* The request is there and connect() was called: let it in. */
static int cm_accept(struct kvx_ep *ep)
{
	struct fi_info *info = ep->connreq;
	int rc;

	ep->connreq = NULL;
	rc = cm_open_ep(ep, info);
	if (rc == 0)
		rc = cm_post_all_rx(ep);
	if (rc == 0)
		rc = fabric_err(fi_accept(ep->fid, NULL, 0));
	if (ep->fid == NULL)
		(void)fi_reject(ep->dom->pep, info->handle, NULL, 0);
	fi_freeinfo(info);
	return rc;
}

static int cm_connect_rdm(struct kvx_ep *ep, const void *addr)
{
	int rc;

	if (fi_av_insert(ep->dom->av, addr, 1, &ep->peer, 0, NULL) != 1)
		return -EHOSTUNREACH;
	ep->connected = true;
	rc = cm_post_all_rx(ep);
	if (rc == 0)
		fab_cm_send_hello(ep);
	return rc;
}

/* An address is the peer's input: its length must be what the format says. */
static bool cm_addr_ok(const struct kvx_dom *dom, size_t addr_len)
{
	return addr_len == dom->info->src_addrlen && addr_len > 0;
}

int fab_cm_connect(struct kvx_ep *ep, const void *addr, size_t addr_len)
{
	if (!cm_addr_ok(ep->dom, addr_len))
		return -EINVAL;
	if (!ep->dom->connected_eps)
		return cm_connect_rdm(ep, addr);
	if (ep->secret < ep->peer_secret)
		return cm_connect_active(ep, addr, addr_len);
	if (ep->connreq == NULL)
		return 0;
	return ep->connreq_from == ep->peer_secret ? cm_accept(ep) : -EACCES;
}

static void cm_try_up(struct kvx_ep *ep)
{
	if (ep->state != FAB_EP_CONNECTING || !ep->connected || !ep->hello_sent || !ep->hello_got)
		return;
	ep->state = FAB_EP_UP;
	ep->dom->n_connecting--;
	ep->news_up = true;
	fab_ep_news(ep);
}

void fab_cm_send_hello(struct kvx_ep *ep)
{
	const struct kvx_dom *dom = ep->dom;
	struct kvx_pack_hello hello = {
	    .queue = dom->queue,
	    .message_bytes = (uint32_t)dom->message_bytes,
	    .max_ops = KVX_PACK_MAX_OPS,
	    .placed_ops = dom->placing ? dom->rx_iov_limit : 0,
	};
	uint8_t buf[KVX_PACK_HDR_BYTES + KVX_PACK_HELLO_BYTES];
	uint32_t len = kvx_pack_hello(buf, ep->peer_secret, &hello);
	int rc = fabric_err(fi_inject(ep->fid, buf, len, ep->peer));

	if (rc == 0)
		ep->hello_sent = true;
	else if (rc != -EAGAIN)
		fab_ep_break(ep, rc, 0, "greeting the peer failed");
}

static struct kvx_ep *cm_find_fid(struct kvx_dom *dom, const struct fid *fid)
{
	for (unsigned i = 0; i < dom->n_eps; i++) {
		struct kvx_ep *ep = dom->eps[i];

		if (ep != NULL && ep->fid != NULL && &ep->fid->fid == fid)
			return ep;
	}
	return NULL;
}

/* Is the connection request that of the side which is to connect? */
static bool cm_is_from_peer(const struct kvx_ep *ep)
{
	return ep->state == FAB_EP_CONNECTING && ep->connreq_from == ep->peer_secret &&
	       ep->peer_secret < ep->secret;
}

/* Whom does a connection request mean? NULL: nobody who may be asked. */
static struct kvx_ep *cm_find_target(struct kvx_dom *dom, const void *data, size_t len)
{
	struct wire_connreq req;

	if (len < sizeof(req))
		return NULL;
	memcpy(&req, data, sizeof(req));
	for (unsigned i = 0; i < dom->n_eps; i++) {
		struct kvx_ep *ep = dom->eps[i];

		if (ep == NULL || ep->secret != le64toh(req.to))
			continue;
		if (ep->fid != NULL || ep->connreq != NULL)
			return NULL;
		ep->connreq_from = le64toh(req.from);
		if (ep->state == FAB_EP_LISTENING || cm_is_from_peer(ep))
			return ep;
		return NULL;
	}
	return NULL;
}

static void cm_on_connreq(struct kvx_dom *dom, struct fi_info *info, const void *data, size_t len)
{
	struct kvx_ep *ep = cm_find_target(dom, data, len);
	int rc;

	if (ep == NULL) {
		dom->n_bad++;
		(void)fi_reject(dom->pep, info->handle, NULL, 0);
		fi_freeinfo(info);
		return;
	}
	ep->connreq = info;
	if (ep->state != FAB_EP_CONNECTING)
		return;
	rc = cm_accept(ep);
	if (rc < 0)
		fab_ep_break(ep, rc, 0, "accepting the peer's connection failed");
}

static void cm_on_error(struct kvx_dom *dom)
{
	struct fi_eq_err_entry err = {0};
	struct kvx_ep *ep;
	int rc;

	if (fi_eq_readerr(dom->eq, &err, 0) <= 0)
		return;
	ep = cm_find_fid(dom, err.fid);
	if (ep == NULL)
		return;
	rc = ep->state == FAB_EP_CONNECTING ? -EHOSTUNREACH : -EHOSTDOWN;
	fab_ep_break(ep, rc, err.prov_errno != 0 ? err.prov_errno : err.err,
		     ep->state == FAB_EP_CONNECTING ? "the peer refused or cannot be reached"
						    : "the connection to the peer broke");
}

static void cm_read_eq(struct kvx_dom *dom)
{
	union {
		struct fi_eq_cm_entry cm;
		uint8_t bytes[sizeof(struct fi_eq_cm_entry) + 256];
	} buf;

	for (unsigned i = 0; i < EQ_ROUNDS; i++) {
		uint32_t event;
		ssize_t n = fi_eq_read(dom->eq, &event, &buf, sizeof(buf), 0);
		struct kvx_ep *ep;

		if (n == -FI_EAVAIL) {
			cm_on_error(dom);
			continue;
		}
		if (n < (ssize_t)sizeof(buf.cm))
			return;
		if (event == FI_CONNREQ) {
			cm_on_connreq(dom, buf.cm.info, buf.cm.data, (size_t)n - sizeof(buf.cm));
			continue;
		}
		ep = cm_find_fid(dom, buf.cm.fid);
		if (ep == NULL)
			continue;
		if (event == FI_CONNECTED)
			ep->connected = true;
		else if (event == FI_SHUTDOWN)
			fab_ep_break(ep, -EHOSTDOWN, 0, "the peer closed the connection");
	}
}

void fab_cm_progress(struct kvx_dom *dom)
{
	dom->eq_due = false;
	if (dom->eq != NULL)
		cm_read_eq(dom);
	if (dom->n_connecting == 0)
		return;
	for (unsigned i = 0; i < dom->n_eps; i++) {
		struct kvx_ep *ep = dom->eps[i];

		if (ep == NULL || ep->state != FAB_EP_CONNECTING || !ep->connected)
			continue;
		if (!ep->hello_sent)
			fab_cm_send_hello(ep);
		cm_try_up(ep);
	}
}
