/* The completion loop of a domain: reads libfabric's queues, lets requests and peers' messages go
 * on, and hands out what is over as events. Called by progress() and arm() on the worker thread.
 * Owns the lists of finished requests and of eps with news. Never blocks, never allocates. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/fabric/fabric_gpu.h"

#define CQ_BATCH  16
#define CQ_ROUNDS 4
#define EQ_EVERY  64u /* turns; sooner when something hints at it */

void fab_req_done(struct fab_req *req)
{
	struct kvx_dom *dom = req->ep->dom;

	req->next = NULL;
	*dom->done_tail = req;
	dom->done_tail = &req->next;
}

void fab_ep_news(struct kvx_ep *ep)
{
	struct kvx_dom *dom = ep->dom;

	if (ep->in_news)
		return;
	ep->in_news = true;
	ep->news_next = NULL;
	*dom->news_tail = ep;
	dom->news_tail = &ep->news_next;
}

void fab_ep_dirty(struct kvx_ep *ep)
{
	if (ep->dirty)
		return;
	ep->dirty = true;
	ep->dirty_next = ep->dom->dirty_head;
	ep->dom->dirty_head = ep;
}

static void on_sent(struct kvx_ep *ep, enum fab_ctx_kind kind, unsigned slot)
{
	if (kind == FAB_CTX_REPLY) {
		kvx_assert(slot < FAB_N_REPLY);
		ep->replies[slot].sending = false;
		if (ep->n_waiting > 0)
			fab_ep_dirty(ep);
		return;
	}
	if (kind == FAB_CTX_BOUNCE) {
		fab_bounce_out_sent(fab_bounce_find(ep, slot));
		return;
	}
	kvx_assert(kind == FAB_CTX_REQ && slot < ep->dom->queue);
	if (ep->reqs[slot].kind == FAB_REQ_RMA) /* its completion is the delivery */
		ep->reqs[slot].answered = true;
	fab_req_sent(&ep->reqs[slot]);
}

static struct kvx_ep *ctx_find(struct kvx_dom *dom, void *ctx, enum fab_ctx_kind *out_kind,
			       unsigned *out_slot)
{
	uint64_t v = (uint64_t)(uintptr_t)ctx;
	struct kvx_ep *ep = fab_ep_find(dom, (uint16_t)(v >> 32), (uint16_t)(v >> 48));

	*out_kind = (enum fab_ctx_kind)((v >> 24) & 0xff);
	*out_slot = (unsigned)(v & 0xffffff);
	return ep != NULL && ep->fid != NULL ? ep : NULL;
}

static void on_completion(struct kvx_dom *dom, const struct fi_cq_msg_entry *entry)
{
	enum fab_ctx_kind kind;
	unsigned slot;
	struct kvx_ep *ep = ctx_find(dom, entry->op_context, &kind, &slot);

	if (ep == NULL)
		return;
	if (kind == FAB_CTX_RX) {
		kvx_assert(slot < FAB_N_RX);
		fab_serve_rx(ep, slot, entry->len);
	} else if (kind == FAB_CTX_PLACE) {
		fab_place_done(ep, entry->len);
	} else {
		on_sent(ep, kind, slot);
	}
}

/* A broken connection flushes everything with "cancelled": for us that is a lost peer. */
static int break_status(int fi_error)
{
	int rc = fabric_err(-fi_error);

	if (rc == -ECANCELED || rc == -EHOSTUNREACH)
		return -EHOSTDOWN;
	return rc == -EHOSTDOWN ? rc : -EIO;
}

static void on_cq_error(struct kvx_dom *dom)
{
	struct fi_cq_err_entry err = {0};
	enum fab_ctx_kind kind;
	unsigned slot;
	struct kvx_ep *ep;

	dom->eq_due = true;
	if (fi_cq_readerr(dom->cq, &err, 0) <= 0)
		return;
	ep = ctx_find(dom, err.op_context, &kind, &slot);
	if (ep != NULL)
		fab_ep_break(ep, break_status(err.err), err.prov_errno,
			     "the connection to the peer broke");
}

/* Sends what the eps have to say; one that could not say all of it stays on the list. */
static void flush_dirty(struct kvx_dom *dom)
{
	struct kvx_ep *next = dom->dirty_head;

	dom->dirty_head = NULL;
	while (next != NULL) {
		struct kvx_ep *ep = next;

		next = ep->dirty_next;
		ep->dirty = true; /* what comes up while it is flushed is flushed too */
		fab_serve_flush(ep);
		ep->dirty = false;
		if (ep->fid != NULL && fab_serve_stuck(ep))
			fab_ep_dirty(ep);
	}
}

static void read_cq(struct kvx_dom *dom)
{
	struct fi_cq_msg_entry entries[CQ_BATCH];

	/* Set again unless the queue is found empty: the provider may hold bytes that it has read
	 * from the connection already, and its wait fd knows nothing of them. */
	dom->cq_left = true;
	for (unsigned round = 0; round < CQ_ROUNDS; round++) {
		ssize_t n = fi_cq_read(dom->cq, entries, CQ_BATCH);

		if (n == -FI_EAVAIL) {
			on_cq_error(dom);
			continue;
		}
		if (n < 0 && n != -FI_EAGAIN && !dom->lost) {
			kvx_error("fabric: reading completions failed: %s", fi_strerror((int)-n));
			dom->lost = true;
		}
		if (n <= 0) {
			dom->cq_left = false;
			return;
		}
		for (ssize_t i = 0; i < n; i++)
			on_completion(dom, &entries[i]);
		flush_dirty(dom);
	}
}

/* By RMA, and where data is placed, bytes land inside fi_cq_read() itself: an ep whose lease is
 * over must be gone before. */
static void check_leases(struct kvx_dom *dom)
{
	for (unsigned i = 0; i < dom->n_eps; i++) {
		struct kvx_ep *ep = dom->eps[i];

		if (ep != NULL && ep->state == FAB_EP_UP && (dom->rma || ep->placing.active) &&
		    fab_ep_lease_over(ep))
			fab_ep_break(ep, -EHOSTDOWN, 0, "lease over: endpoint closed");
	}
}

static const char *req_text(const struct fab_req *req)
{
	return req->text != NULL ? req->text : req->ep->down_text;
}

static unsigned emit_done(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max)
{
	unsigned n = 0;

	while (n < max && dom->done_head != NULL) {
		struct fab_req *req = dom->done_head;

		dom->done_head = req->next;
		if (dom->done_head == NULL)
			dom->done_tail = &dom->done_head;
		events[n++] = (struct kvx_tevent){
		    .kind = KVX_TEV_OP_DONE,
		    .status = req->status,
		    .vendor_code = req->vendor_code,
		    .n_ops = req->n_ops,
		    .cookie = req->cookie,
		    .ep = req->ep,
		    .text = req->status < 0 ? req_text(req) : NULL,
		};
		fab_req_put(req);
	}
	return n;
}

static unsigned emit_news(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max)
{
	unsigned n = 0;

	while (n < max && dom->news_head != NULL) {
		struct kvx_ep *ep = dom->news_head;

		dom->news_head = ep->news_next;
		if (dom->news_head == NULL)
			dom->news_tail = &dom->news_head;
		ep->in_news = false;
		events[n] = (struct kvx_tevent){.kind = KVX_TEV_EP_UP, .ep = ep};
		if (ep->news_down)
			events[n] = (struct kvx_tevent){.kind = KVX_TEV_EP_DOWN,
							.status = ep->down_status,
							.vendor_code = ep->down_vendor,
							.text = ep->down_text,
							.ep = ep};
		ep->news_up = false;
		ep->news_down = false;
		n++;
	}
	if (n < max && dom->lost && !dom->lost_told) {
		dom->lost_told = true;
		events[n++] = (struct kvx_tevent){.kind = KVX_TEV_DEVICE_LOST,
						  .status = -ENODEV,
						  .text = "the completion queue failed"};
	}
	return n;
}

int fabric_progress(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max)
{
	unsigned n;

	if (!dom->lost) {
		if (dom->rma || dom->n_placing > 0)
			check_leases(dom);
		read_cq(dom);
	}
	if (dom->gpu != NULL) /* copies end, and are reported, without the library */
		fab_bounce_progress(dom->gpu);
	if (dom->waiting_calls != NULL || atomic_load(&dom->n_calls) > 0)
		fab_calls_progress(dom);
	if (!dom->lost) {
		if (dom->dirty_head != NULL)
			flush_dirty(dom);
		/* After the completions: what came before a connection ended still counts. */
		if (dom->eq_due || dom->n_connecting > 0 || ++dom->turns % EQ_EVERY == 0)
			fab_cm_progress(dom);
	}
	n = emit_done(dom, events, max);
	if (n < max)
		n += emit_news(dom, events + n, max - n);
	return (int)n;
}

int fabric_arm(struct kvx_dom *dom)
{
	struct fid *fids[2] = {&dom->cq->fid, NULL};
	int n_fids = 1;

	if (dom->cq_left || dom->done_head != NULL || dom->news_head != NULL ||
	    dom->dirty_head != NULL || (dom->lost && !dom->lost_told) || !fab_calls_arm(dom))
		return -EAGAIN;
	if (dom->lost)
		return dom->gpu != NULL ? fab_gpu_arm(dom->gpu) : 0;
	for (unsigned i = 0; i < dom->n_eps; i++) {
		struct kvx_ep *ep = dom->eps[i];

		if (ep == NULL || ep->fid == NULL)
			continue;
		if (fab_serve_stuck(ep) || (ep->connected && !ep->hello_sent)) {
			fab_ep_dirty(ep);
			return -EAGAIN;
		}
	}
	if (dom->gpu != NULL && fab_gpu_arm(dom->gpu) < 0)
		return -EAGAIN;
	if (dom->eq != NULL)
		fids[n_fids++] = &dom->eq->fid;
	/* What wakes us may be in either queue. */
	dom->eq_due = true;
	return fi_trywait(dom->fabric, fids, n_fids) == 0 ? 0 : -EAGAIN;
}
