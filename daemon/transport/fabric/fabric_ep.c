/* Endpoints of a domain: their life from listen() to ep_close(), their buffers, the fence and the
 * lease. Owns struct kvx_ep. Called by the worker thread; how two ends find each other is in
 * fabric_cm.c, what they say in fabric_msg.c and fabric_serve.c. */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/fabric/fabric_gpu.h"

#define ADDR_VERSION 1u

/* What listen() gives: this header, and the library's address after it. Little-endian. */
struct wire_addr {
	uint8_t version;
	uint8_t connected; /* 1: FI_EP_MSG */
	uint16_t addr_len;
	uint32_t zero;
	uint64_t secret;
};
_Static_assert(sizeof(struct wire_addr) == 16, "address header is 16 bytes on the wire");

struct kvx_ep *fab_ep_find(struct kvx_dom *dom, uint16_t index, uint16_t gen)
{
	if (index >= dom->n_eps || dom->eps[index] == NULL || dom->eps[index]->gen != gen)
		return NULL;
	return dom->eps[index];
}

static int eps_grow(struct kvx_dom *dom)
{
	unsigned n = dom->n_eps == 0 ? 16 : dom->n_eps * 2;
	struct kvx_ep **eps;
	uint16_t *gens;

	if (n > FAB_MAX_EPS)
		return -EDQUOT;
	eps = realloc(dom->eps, n * sizeof(*eps));
	if (eps == NULL)
		return -ENOMEM;
	dom->eps = eps;
	gens = realloc(dom->gens, n * sizeof(*gens));
	if (gens == NULL)
		return -ENOMEM;
	dom->gens = gens;
	memset(eps + dom->n_eps, 0, (n - dom->n_eps) * sizeof(*eps));
	memset(gens + dom->n_eps, 0, (n - dom->n_eps) * sizeof(*gens));
	dom->n_eps = n;
	return 0;
}

static int eps_add(struct kvx_dom *dom, struct kvx_ep *ep)
{
	unsigned i = 0;
	int rc;

	while (i < dom->n_eps && dom->eps[i] != NULL)
		i++;
	if (i == dom->n_eps) {
		rc = eps_grow(dom);
		if (rc < 0)
			return rc;
	}
	ep->index = (uint16_t)i;
	ep->gen = ++dom->gens[i];
	dom->eps[i] = ep;
	return 0;
}

int fab_ep_listen(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
		  size_t *addr_len)
{
	struct wire_addr wire = {.version = ADDR_VERSION, .connected = dom->connected_eps};
	size_t room = *addr_len;
	size_t len;
	struct kvx_ep *ep;
	int rc;

	if (room < sizeof(wire))
		return -ENOSPC;
	ep = calloc(1, sizeof(*ep));
	if (ep == NULL)
		return -ENOMEM;
	ep->dom = dom;
	ep->tenant = tenant;
	ep->state = FAB_EP_LISTENING;
	ep->lease_ns = UINT64_MAX;
	rc = fabric_random(&ep->secret, sizeof(ep->secret));
	if (rc == 0)
		rc = eps_add(dom, ep);
	if (rc < 0)
		goto err_free;
	len = room - sizeof(wire);
	rc = fab_cm_listen(ep, (uint8_t *)addr + sizeof(wire), &len);
	if (rc < 0)
		goto err_remove;
	wire.addr_len = htole16((uint16_t)len);
	wire.secret = htole64(ep->secret);
	memcpy(addr, &wire, sizeof(wire));
	*addr_len = sizeof(wire) + len;
	*out_ep = ep;
	return 0;

err_remove:
	dom->eps[ep->index] = NULL;
err_free:
	free(ep);
	return rc;
}

/* One mapping for everything, so that one registration does; pages come with use. */
static int ep_map_chunk(struct kvx_ep *ep)
{
	const struct kvx_dom *dom = ep->dom;
	size_t one = KVX_PACK_HEAD_BYTES + ((dom->message_bytes + 4095) & ~(size_t)4095);
	size_t bytes =
	    (FAB_N_RX + FAB_N_TX + FAB_N_REPLY) * one + (size_t)dom->queue * KVX_PACK_HEAD_BYTES;
	uint8_t *p;
	int rc;

	ep->rx_bytes = KVX_PACK_HEAD_BYTES + dom->message_bytes;
	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return -ENOMEM;
	if (dom->mr_local) {
		rc = fi_mr_reg(dom->domain, p, bytes, FI_SEND | FI_RECV, 0, ep->secret, 0,
			       &ep->chunk_mr, NULL);
		if (rc != 0) {
			munmap(p, bytes);
			return fabric_err(rc);
		}
		ep->chunk_desc = fi_mr_desc(ep->chunk_mr);
	}
	ep->chunk = p;
	ep->chunk_bytes = bytes;
	for (unsigned i = 0; i < FAB_N_RX; i++, p += one)
		ep->rx[i] = p;
	for (unsigned i = 0; i < FAB_N_TX; i++, p += one)
		ep->free_tx[ep->n_free_tx++] = p;
	for (unsigned i = 0; i < FAB_N_REPLY; i++, p += one)
		ep->replies[i].buf = p;
	for (uint32_t i = 0; i < dom->queue; i++, p += KVX_PACK_HEAD_BYTES)
		ep->reqs[i].head = p;
	return 0;
}

static void ep_free_buffers(struct kvx_ep *ep)
{
	if (ep->chunk_mr != NULL)
		fi_close(&ep->chunk_mr->fid);
	if (ep->chunk != NULL)
		munmap(ep->chunk, ep->chunk_bytes);
	free(ep->reqs);
	free(ep->acks);
	free(ep->waiting);
	ep->chunk_mr = NULL;
	ep->chunk = NULL;
	ep->reqs = NULL;
	ep->acks = NULL;
	ep->waiting = NULL;
}

static int ep_alloc_buffers(struct kvx_ep *ep)
{
	uint32_t queue = ep->dom->queue;

	ep->reqs = calloc(queue, sizeof(*ep->reqs));
	ep->acks = calloc(queue, sizeof(*ep->acks));
	ep->waiting = calloc(queue, sizeof(*ep->waiting));
	if (ep->reqs == NULL || ep->acks == NULL || ep->waiting == NULL)
		return -ENOMEM;
	for (uint32_t i = queue; i-- > 0;) {
		ep->reqs[i].ep = ep;
		ep->reqs[i].index = (uint16_t)i;
		ep->reqs[i].next = ep->free_reqs;
		ep->free_reqs = &ep->reqs[i];
	}
	return ep_map_chunk(ep);
}

int fab_ep_post_rx(struct kvx_ep *ep, unsigned i)
{
	ssize_t rc = fi_recv(ep->fid, ep->rx[i], ep->rx_bytes, ep->chunk_desc, FI_ADDR_UNSPEC,
			     fab_ctx(ep, FAB_CTX_RX, i));

	return fabric_err(rc);
}

int fab_ep_connect(struct kvx_ep *ep, const void *addr, size_t addr_len)
{
	struct wire_addr wire;
	int rc;

	if (ep->state != FAB_EP_LISTENING)
		return -EINVAL;
	if (addr_len < sizeof(wire) || addr_len > KVX_TRANSPORT_ADDR_MAX)
		return -EINVAL;
	memcpy(&wire, addr, sizeof(wire));
	if (wire.version != ADDR_VERSION || wire.zero != 0 ||
	    le16toh(wire.addr_len) != addr_len - sizeof(wire) || wire.secret == 0 ||
	    le64toh(wire.secret) == ep->secret)
		return -EINVAL;
	if (wire.connected != ep->dom->connected_eps)
		return -EOPNOTSUPP;
	ep->peer_secret = le64toh(wire.secret);
	rc = ep_alloc_buffers(ep);
	if (rc < 0) {
		ep_free_buffers(ep);
		return rc;
	}
	ep->state = FAB_EP_CONNECTING;
	ep->dom->n_connecting++;
	rc = fab_cm_connect(ep, (const uint8_t *)addr + sizeof(wire), addr_len - sizeof(wire));
	if (rc < 0)
		fab_ep_break(ep, rc, 0, "connecting to the peer failed");
	return 0;
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

void fab_ep_on_hello(struct kvx_ep *ep, const struct kvx_pack_hello *hello)
{
	const struct kvx_dom *dom = ep->dom;

	ep->limits.queue = min_u32(hello->queue, dom->queue);
	ep->limits.message_bytes = min_u32(hello->message_bytes, (uint32_t)dom->message_bytes);
	ep->limits.max_ops = min_u32(hello->max_ops, KVX_PACK_MAX_OPS);
	ep->limits.placed_ops = 0;
	if (dom->placing)
		ep->limits.placed_ops = min_u32(hello->placed_ops, dom->placed_ops);
	ep->hello_got = true;
}

/* Everything that is open is over, but for what hold keeps for the fence: the other side may still
 * have bytes of our WRITEs to read, though the connection is closed here. */
static void ep_end_reqs(struct kvx_ep *ep, int status, int vendor_code, bool hold)
{
	for (uint32_t i = 0; ep->reqs != NULL && i < ep->dom->queue; i++) {
		struct fab_req *req = &ep->reqs[i];

		if (!req->open || (req->answered && !req->sending))
			continue;
		req->sending = false;
		req->buf = NULL;
		if (!req->answered) {
			req->status = status;
			req->vendor_code = vendor_code;
			req->answered = true;
			req->held = hold && req->kind != FAB_REQ_READ && req->bounce == NULL;
		}
		if (!req->held && req->bounce == NULL) /* else it waits for its copies */
			fab_req_done(req);
	}
}

static void ep_release_held(struct kvx_ep *ep)
{
	for (uint32_t i = 0; ep->reqs != NULL && i < ep->dom->queue; i++) {
		if (!ep->reqs[i].held)
			continue;
		ep->reqs[i].held = false;
		fab_req_done(&ep->reqs[i]);
	}
}

/* Takes everything back from the library. After it nothing moves through this ep. */
static void ep_shut(struct kvx_ep *ep, int status, int vendor_code, bool hold)
{
	int rc;

	if (ep->fid != NULL) {
		rc = fi_close(&ep->fid->fid);
		if (rc != 0)
			kvx_error("fabric: closing endpoint %u failed: %s", ep->index,
				  fi_strerror(-rc));
		ep->fid = NULL;
	}
	if (ep->connreq != NULL) {
		(void)fi_reject(ep->dom->pep, ep->connreq->handle, NULL, 0);
		fi_freeinfo(ep->connreq);
		ep->connreq = NULL;
	}
	if (ep->state == FAB_EP_CONNECTING)
		ep->dom->n_connecting--;
	ep->connected = false;
	ep->state = FAB_EP_DOWN;
	ep->down_status = status;
	ep->down_vendor = vendor_code;
	ep->n_acks = 0;
	ep->n_waiting = 0;
	ep->owed.active = false;
	if (ep->placing.active)
		ep->dom->n_placing--;
	ep->placing.active = false;
	for (unsigned i = 0; i < FAB_N_REPLY; i++)
		ep->replies[i].sending = false;
	fab_bounce_shut(ep);
	ep_end_reqs(ep, status, vendor_code, hold);
}

void fab_ep_break(struct kvx_ep *ep, int status, int vendor_code, const char *text)
{
	/* What the other side has closed it reads no more; what we close it still may. */
	bool ours = status != -EHOSTDOWN || fab_ep_lease_over(ep);

	if (ep->state == FAB_EP_DOWN)
		return;
	kvx_debug("fabric: endpoint %u: %s (%d, code %d)", ep->index, text, status, vendor_code);
	ep_shut(ep, status, vendor_code, ours);
	ep->down_text = text;
	ep->news_up = false;
	ep->news_down = true;
	fab_ep_news(ep);
}

void fab_ep_fence(struct kvx_ep *ep)
{
	bool connecting = ep->state == FAB_EP_CONNECTING;

	if (ep->state == FAB_EP_DOWN)
		ep_release_held(ep);
	else if (connecting)
		fab_ep_break(ep, -ECANCELED, 0, "fenced while connecting");
	else
		ep_shut(ep, -ECANCELED, 0, false);
}

static void list_drop_ep(struct kvx_dom *dom, struct kvx_ep *ep)
{
	struct kvx_ep **dirty = &dom->dirty_head;
	struct kvx_ep **news = &dom->news_head;
	struct fab_req **done = &dom->done_head;

	while (*dirty != NULL && *dirty != ep)
		dirty = &(*dirty)->dirty_next;
	if (*dirty != NULL)
		*dirty = ep->dirty_next;
	while (*news != NULL && *news != ep)
		news = &(*news)->news_next;
	if (*news != NULL) {
		*news = ep->news_next;
		if (dom->news_tail == &ep->news_next)
			dom->news_tail = news;
	}
	while (*done != NULL) {
		if ((*done)->ep == ep)
			*done = (*done)->next;
		else
			done = &(*done)->next;
	}
	dom->done_tail = done;
}

void fabric_ep_close(struct kvx_ep *ep)
{
	struct kvx_dom *dom;

	if (ep == NULL)
		return;
	dom = ep->dom;
	if (ep->state != FAB_EP_DOWN)
		ep_shut(ep, -ECANCELED, 0, false);
	fab_bounce_leave(ep);
	list_drop_ep(dom, ep);
	if (dom->av != NULL && ep->peer != FI_ADDR_UNSPEC)
		(void)fi_av_remove(dom->av, &ep->peer, 1, 0);
	dom->eps[ep->index] = NULL;
	ep_free_buffers(ep);
	free(ep);
}

bool fab_ep_lease_over(const struct kvx_ep *ep)
{
	return ep->lease_ns != UINT64_MAX && kvx_now_ns() > ep->lease_ns;
}
