/* What is seldom: eps that came up, went down or were fenced, leases, the device itself. One flag
 * of the domain (scan_due) says that there is something; then every ep is looked at, so that no
 * list has to be kept. Data thread. */
#include <errno.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/verbs/verbs_chain.h"
#include "transport/verbs/verbs_priv.h"

/* A read that comes before the other side is connected is lost, and sent again only after
 * verbs.timeout: a quarter of a second by default. This is what the other side mostly needs. */
#define PROVE_AFTER_NS (20 * KVX_MS)
/* Some devices (Soft-RoCE with verbs.retry_count 7) try for ever. */
#define PROVE_LIMIT_NS (5 * KVX_SEC)
#define LEASE_RETRY_NS (10 * KVX_MS)

/* Events that progress() gives back, as far as there is room. */
struct sink {
	struct kvx_tevent *events;
	unsigned n, max;
};

static struct kvx_ep *dom_ep(struct kvx_dom *dom, uint32_t i)
{
	return atomic_load_explicit(&dom->eps[i], memory_order_acquire);
}

void verbs_ep_break(struct kvx_ep *ep, int status, int vendor_code, const char *text)
{
	struct kvx_dom *dom = ep->dom;

	if (ep->state == VERBS_EP_DOWN)
		return;
	kvx_debug("verbs: %s: endpoint %u: %s (%d, code %d)", dom->name, ep->index, text, status,
		  vendor_code);
	if (ep->was_up)
		kvx_counter_add(&dom->counters.eps_lost, 1);
	ep->state = VERBS_EP_DOWN;
	ep->down_status = status;
	ep->down_vendor = vendor_code;
	ep->down_text = text;
	ep->news_up = false;
	ep->news_down = true;
	atomic_store_explicit(&ep->dead, status, memory_order_release);
	dom->scan_due = true;
}

static void dom_due(struct kvx_dom *dom, uint64_t when_ns)
{
	if (when_ns < dom->next_due_ns)
		dom->next_due_ns = when_ns;
}

/* Posts the reads that prove the queue pairs; called again, it is too late for their answers. */
static void ep_prove(struct kvx_ep *ep, uint64_t now)
{
	int err;

	ep->prove_ns = UINT64_MAX;
	if (ep->state != VERBS_EP_PROVING)
		return;
	if (ep->prove_posted) {
		verbs_ep_break(ep, -EHOSTUNREACH, 0,
			       "the other side does not answer reads (is UDP port 4791 open on "
			       "RoCE?)");
		return;
	}
	ep->prove_posted = true;
	ep->prove_ns = now + PROVE_LIMIT_NS;
	err = verbs_post_proofs(ep);
	if (err == -ECANCELED) /* cut just now: seen next time */
		ep->dom->scan_due = true;
	else if (err < 0)
		verbs_ep_break(ep, err, 0, "the first read could not be posted");
}

/* A fence was asked for: no news, but to who waits for connect() to end. */
static void ep_on_fence(struct kvx_ep *ep)
{
	bool connecting =
	    ep->state != VERBS_EP_UP && atomic_load_explicit(&ep->connected, memory_order_acquire);

	ep->state = VERBS_EP_DOWN;
	ep->down_status = -ECANCELED;
	ep->down_text = "the endpoint was fenced";
	ep->news_down = connecting;
	ep->news_up = false;
}

/* What other threads, or the state of the domain, mean for this ep. */
static void ep_take_news(struct kvx_ep *ep)
{
	struct kvx_dom *dom = ep->dom;

	if (ep->state == VERBS_EP_DOWN)
		return;
	if (dom->lost)
		verbs_ep_break(ep, -ENODEV, 0, dom->lost_text);
	else if (atomic_load_explicit(&dom->cq_broken, memory_order_relaxed))
		verbs_ep_break(ep, -EIO, 0, "the completion queue was lost");
	else if (atomic_load_explicit(&ep->stop, memory_order_acquire) == VERBS_STOP_FENCE)
		ep_on_fence(ep);
	else if (verbs_ep_is_cut(ep))
		verbs_ep_break(ep, -ECANCELED, 0, "access through the endpoint was ended");
	if (ep->state != VERBS_EP_LISTENING ||
	    !atomic_load_explicit(&ep->connected, memory_order_acquire))
		return;
	ep->state = VERBS_EP_PROVING;
	ep->prove_ns = kvx_now_ns() + PROVE_AFTER_NS;
	dom_due(dom, ep->prove_ns);
}

static bool sink_put(struct sink *sink, const struct kvx_tevent *event)
{
	if (sink->n == sink->max)
		return false;
	sink->events[sink->n++] = *event;
	return true;
}

/* The calls below: false when the events found no room. */
static bool ep_tell_state(struct kvx_ep *ep, struct sink *sink)
{
	struct kvx_tevent event = {.kind = KVX_TEV_EP_UP, .ep = ep};

	if (!ep->news_up && !ep->news_down)
		return true;
	if (ep->news_down)
		event = (struct kvx_tevent){.kind = KVX_TEV_EP_DOWN,
					    .status = ep->down_status,
					    .vendor_code = ep->down_vendor,
					    .text = ep->down_text,
					    .ep = ep};
	if (!sink_put(sink, &event))
		return false;
	if (ep->news_up) {
		ep->was_up = true;
		kvx_counter_add(&ep->dom->counters.eps_made, 1);
	}
	ep->news_up = ep->news_down = false;
	return true;
}

static bool ep_tell_refused(struct kvx_ep *ep, struct sink *sink)
{
	struct kvx_tevent event = {.kind = KVX_TEV_OP_DONE,
				   .status = ep->refused_status,
				   .cookie = ep->refused_cookie,
				   .n_ops = ep->refused_n,
				   .text = ep->refused_status == -EMSGSIZE
					       ? "the op is in more pieces of memory than a queue "
						 "pair takes at once (verbs.sq_depth less one, "
						 "256 at most): use larger allocations, or lower "
						 "verbs.stripe_bytes"
					       : "outside of what the region or its key allows"};

	if (ep->refused_n == 0)
		return true;
	if (!sink_put(sink, &event))
		return false;
	ep->refused_n = 0;
	return true;
}

/* Chains that a fence has left open: with what brought the ep down. */
static bool ep_tell_left(struct kvx_ep *ep, struct sink *sink)
{
	for (uint32_t i = 0; i < ep->n_qps; i++) {
		struct verbs_fifo *fifo = &ep->qps[i].fifo;
		const struct verbs_chain *chain;

		while ((chain = verbs_fifo_first(fifo)) != NULL) {
			struct kvx_tevent event = {.kind = KVX_TEV_OP_DONE,
						   .status = ep->down_status,
						   .vendor_code = ep->down_vendor,
						   .text = ep->down_text,
						   .cookie = chain->cookie,
						   .n_ops = chain->n_ops};

			if (chain->n_ops > 0 && !sink_put(sink, &event))
				return false;
			(void)verbs_fifo_pop(fifo);
		}
	}
	return true;
}

static bool ep_scan(struct kvx_ep *ep, struct sink *sink)
{
	ep_take_news(ep);
	if (!ep_tell_state(ep, sink) || !ep_tell_refused(ep, sink))
		return false;
	if (ep->state != VERBS_EP_DOWN || !atomic_load_explicit(&ep->fenced, memory_order_acquire))
		return true;
	return ep_tell_left(ep, sink);
}

static bool dom_tell_state(struct kvx_dom *dom, struct sink *sink)
{
	const struct kvx_tevent lost = {
	    .kind = KVX_TEV_DEVICE_LOST, .status = -ENODEV, .text = dom->lost_text};
	const struct kvx_tevent up = {.kind = KVX_TEV_DEVICE_UP};

	if (dom->lost && !dom->lost_told) {
		if (!sink_put(sink, &lost))
			return false;
		dom->lost_told = true;
	}
	if (dom->port_up_due) {
		if (!sink_put(sink, &up))
			return false;
		dom->port_up_due = false;
	}
	return true;
}

unsigned verbs_scan(struct kvx_dom *dom, struct kvx_tevent *events, unsigned n, unsigned max)
{
	struct sink sink = {events, n, max};
	uint32_t end = atomic_load_explicit(&dom->eps_end, memory_order_acquire);
	bool all = dom_tell_state(dom, &sink);

	dom->scan_due = false;
	for (uint32_t i = 0; i < end && all; i++) {
		struct kvx_ep *ep = dom_ep(dom, i);

		if (ep != NULL)
			all = ep_scan(ep, &sink);
	}
	if (!all)
		dom->scan_due = true;
	return sink.n;
}

/* Nobody else may come in time, so it happens here, though it takes milliseconds. */
static void ep_end_lease(struct kvx_ep *ep, uint64_t now)
{
	verbs_ep_break(ep, -ETIMEDOUT, 0, "its lease is over: the other side is silent");
	verbs_ep_cut(ep);
	/* What could not be destroyed is tried again. */
	ep->lease_ns = UINT64_MAX;
	if (atomic_load_explicit(&ep->n_alive, memory_order_acquire) > 0)
		ep->lease_ns = now + LEASE_RETRY_NS;
}

void verbs_on_time(struct kvx_dom *dom)
{
	uint32_t end = atomic_load_explicit(&dom->eps_end, memory_order_acquire);
	uint64_t now = kvx_now_ns();

	dom->next_due_ns = UINT64_MAX;
	for (uint32_t i = 0; i < end; i++) {
		struct kvx_ep *ep = dom_ep(dom, i);

		if (ep == NULL)
			continue;
		if (now >= ep->lease_ns)
			ep_end_lease(ep, now);
		if (now >= ep->prove_ns)
			ep_prove(ep, now);
		dom_due(dom, ep->lease_ns);
		dom_due(dom, ep->prove_ns);
	}
	verbs_park_on_time(dom, now);
	if (dom->mend_ns > now)
		dom_due(dom, dom->mend_ns);
	if (dom->look_ns != 0 && now >= dom->look_ns)
		verbs_port_check(dom);
	if (dom->look_ns != 0)
		dom_due(dom, dom->look_ns);
}

void verbs_dom_break_eps(struct kvx_dom *dom, int status, int vendor_code, const char *text)
{
	uint32_t end = atomic_load_explicit(&dom->eps_end, memory_order_acquire);

	for (uint32_t i = 0; i < end; i++) {
		struct kvx_ep *ep = dom_ep(dom, i);

		if (ep != NULL)
			verbs_ep_break(ep, status, vendor_code, text);
	}
}
