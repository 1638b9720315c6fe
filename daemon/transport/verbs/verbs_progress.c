/* The completion loop of a domain: takes completions, tells which ops are done, notices what helper
 * threads, the device and the clock have brought about, and sleeps well. Data thread. Never blocks,
 * but for an ep whose lease is over: its queue pairs are destroyed here, as nobody else may come in
 * time. */
#include <errno.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/verbs/verbs_chain.h"
#include "transport/verbs/verbs_priv.h"

#define POLL_BATCH  16u
#define POLL_ROUNDS 8u   /* completions that report nothing must not hold a turn up */
#define ASYNC_EVERY 256u /* turns between looks for device events, while awake: a system call */
#define SCAN_WAITS  16u  /* turns that a scan waits for an empty queue */

void verbs_dom_attention(struct kvx_dom *dom)
{
	const uint64_t one = 1;
	ssize_t n;

	atomic_store_explicit(&dom->attention, true, memory_order_release);
	n = write(dom->wake_fd, &one, sizeof(one)); /* full: it is readable anyway */
	(void)n;
}

/* The ep that a wr_id (or the context of a queue pair) names; NULL: it is gone. */
struct kvx_ep *verbs_ep_find(struct kvx_dom *dom, uint64_t wr_id)
{
	uint32_t index = (uint32_t)(wr_id >> 48);
	struct kvx_ep *ep;

	if (index >= VERBS_MAX_EPS)
		return NULL;
	ep = atomic_load_explicit(&dom->eps[index], memory_order_acquire);
	return ep != NULL && ep->generation == (uint16_t)(wr_id >> 32) ? ep : NULL;
}

static void ep_on_proof(struct kvx_ep *ep)
{
	if (ep->state != VERBS_EP_PROVING || ++ep->n_proven < ep->n_used)
		return;
	ep->state = VERBS_EP_UP;
	ep->news_up = true;
	ep->dom->scan_due = true;
}

unsigned verbs_event_add_done(struct kvx_tevent *events, unsigned n, uint64_t cookie,
			      uint32_t n_ops)
{
	struct kvx_tevent *last = n > 0 ? &events[n - 1] : NULL;

	if (last != NULL && last->cookie == cookie && last->kind == KVX_TEV_OP_DONE &&
	    last->status == 0) {
		last->n_ops += n_ops;
		return n;
	}
	events[n] = (struct kvx_tevent){.kind = KVX_TEV_OP_DONE, .cookie = cookie, .n_ops = n_ops};
	return n + 1;
}

/* Only the first error of an ep is news: what it had on its way is flushed after it. */
static void on_wc_error(struct kvx_dom *dom, struct kvx_ep *ep, const struct ibv_wc *wc)
{
	kvx_counter_add(&dom->counters.errors, 1);
	if (ep == NULL || ep->state == VERBS_EP_DOWN || verbs_ep_is_cut(ep))
		return;
	verbs_ep_break(ep, verbs_wc_err(wc->status),
		       wc->vendor_err != 0 ? (int)wc->vendor_err : (int)wc->status,
		       verbs_wc_text(wc->status));
}

/* Adds at most one event; how many there are then. */
static unsigned on_wc(struct kvx_dom *dom, const struct ibv_wc *wc, struct kvx_tevent *events,
		      unsigned n)
{
	struct kvx_ep *ep = verbs_ep_find(dom, wc->wr_id);
	uint32_t at = (uint32_t)(wc->wr_id >> 24) & 0xff;
	const struct verbs_chain *chain;
	struct verbs_fifo *fifo;

	if (wc->status != IBV_WC_SUCCESS) {
		on_wc_error(dom, ep, wc);
		return n;
	}
	if (ep == NULL || at >= ep->n_qps)
		return n;
	fifo = &ep->qps[at].fifo;
	if (!verbs_fifo_is_first(fifo, wc->wr_id)) {
		/* After a fence its chains were reported already. Else nothing that is known says
		 * what is done and what is not. */
		if (fifo->head != fifo->seen && ep->state != VERBS_EP_DOWN)
			verbs_ep_break(ep, -EIO, 0, "completions came out of order: device fault");
		return n;
	}
	if (!verbs_fifo_is_done(fifo)) {
		verbs_park(ep, verbs_fifo_see(fifo));
		return n;
	}
	chain = verbs_fifo_pop(fifo);
	if (chain->n_ops == 0) {
		ep_on_proof(ep);
		return n;
	}
	return verbs_event_add_done(events, n, chain->cookie, chain->n_ops);
}

static int cq_take(struct kvx_dom *dom, struct ibv_wc *wcs, unsigned max)
{
	int n;

	if (dom->n_stash > 0) {
		n = (int)(dom->n_stash < max ? dom->n_stash : max);
		memcpy(wcs, dom->stash + dom->stash_at, (size_t)n * sizeof(*wcs));
		dom->n_stash -= (uint32_t)n;
		dom->stash_at += (uint32_t)n;
		return n;
	}
	n = ibv_poll_cq(dom->cq, (int)max, wcs);
	if (n < 0)
		verbs_cq_break(dom, "the completion queue cannot be read");
	return n;
}

static void cq_on_empty(struct kvx_dom *dom)
{
	if (dom->cq_closing == 0)
		return;
	atomic_fetch_sub(&dom->cq_used, dom->cq_closing);
	dom->cq_closing = 0;
}

/* Whether the queue was seen empty. */
static bool cq_read(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max, unsigned *n)
{
	struct ibv_wc wcs[POLL_BATCH];

	if (atomic_load_explicit(&dom->cq_broken, memory_order_relaxed))
		return true;
	for (unsigned round = 0; round < POLL_ROUNDS && *n < max; round++) {
		unsigned want = max - *n < POLL_BATCH ? max - *n : POLL_BATCH;
		bool stashed = dom->n_stash > 0;
		int got = cq_take(dom, wcs, want);

		for (int i = 0; i < got; i++)
			*n = on_wc(dom, &wcs[i], events, *n);
		if (got > 0)
			kvx_counter_add(&dom->counters.completions, (uint64_t)got);
		if (got < (int)want && !stashed) {
			cq_on_empty(dom);
			return true;
		}
	}
	return false;
}

/* What woke a sleeper is taken away, so that it does not wake the next one. */
static void read_wakes(struct kvx_dom *dom)
{
	struct ibv_cq *cq;
	void *context;
	uint64_t v;
	ssize_t n;

	dom->armed = false;
	n = read(dom->wake_fd, &v, sizeof(v));
	n = read(dom->timer_fd, &v, sizeof(v));
	(void)n;
	while (ibv_get_cq_event(dom->channel, &cq, &context) == 0)
		ibv_ack_cq_events(cq, 1);
	verbs_async_read(dom);
}

/* A new look at what helper threads did, at events of the device and at the clock. */
static void look_around(struct kvx_dom *dom)
{
	if (dom->armed)
		read_wakes(dom);
	else if (++dom->turns % ASYNC_EVERY == 0)
		verbs_async_read(dom);
	if (atomic_load_explicit(&dom->attention, memory_order_relaxed) &&
	    atomic_exchange_explicit(&dom->attention, false, memory_order_acquire)) {
		dom->scan_due = true;
		if (atomic_exchange(&dom->port_doubt, false))
			verbs_port_check(dom);
	}
	if (dom->next_due_ns != UINT64_MAX && kvx_now_ns() >= dom->next_due_ns)
		verbs_on_time(dom);
}

int verbs_progress(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max)
{
	unsigned n = 0, most;
	bool empty;

	look_around(dom);
	/* News finds room in any case: a fence may depend on it. */
	most = dom->scan_due ? max - max / 4 : max;
	empty = cq_read(dom, events, most, &n);
	if (dom->busy != NULL || dom->release_due) {
		verbs_park_turn(dom);
		n = verbs_park_release(dom, events, n, most);
	}
	/* First what is known to have succeeded, then what a fence leaves: but a busy queue does
	 * not hold up news for long. */
	if (dom->scan_due && (empty || ++dom->scan_waits > SCAN_WAITS)) {
		dom->scan_waits = 0;
		n = verbs_scan(dom, events, n, max);
	}
	if (atomic_load_explicit(&dom->cq_broken, memory_order_relaxed))
		verbs_cq_mend(dom);
	return (int)n;
}

/* Asks for a wake-up at the next completion, then looks once more: one that came before would wake
 * nobody. 0: nothing there. */
static int arm_cq(struct kvx_dom *dom)
{
	int n;

	if (atomic_load_explicit(&dom->cq_broken, memory_order_relaxed))
		return 0;
	if (ibv_req_notify_cq(dom->cq, 0) != 0) {
		verbs_cq_break(dom, "the completion queue cannot be armed");
		return -EAGAIN;
	}
	n = ibv_poll_cq(dom->cq, (int)VERBS_STASH, dom->stash);
	if (n < 0) {
		verbs_cq_break(dom, "the completion queue cannot be read");
		return -EAGAIN;
	}
	dom->n_stash = (uint32_t)n;
	dom->stash_at = 0;
	if (n > 0)
		return -EAGAIN;
	cq_on_empty(dom);
	return 0;
}

static void arm_timer(struct kvx_dom *dom)
{
	struct itimerspec when = {0};

	if (dom->timer_ns == dom->next_due_ns)
		return;
	dom->timer_ns = dom->next_due_ns;
	if (dom->timer_ns != UINT64_MAX) {
		when.it_value.tv_sec = (time_t)(dom->timer_ns / KVX_SEC);
		when.it_value.tv_nsec = (long)(dom->timer_ns % KVX_SEC);
	}
	if (timerfd_settime(dom->timer_fd, TFD_TIMER_ABSTIME, &when, NULL) != 0)
		kvx_error("verbs: %s: the lease timer cannot be set: %s", dom->name,
			  strerror(errno));
}

int verbs_arm(struct kvx_dom *dom)
{
	if (dom->scan_due || dom->n_stash > 0 ||
	    atomic_load_explicit(&dom->attention, memory_order_acquire) || verbs_cq_can_mend(dom))
		return -EAGAIN;
	if (!dom->lost && arm_cq(dom) != 0)
		return -EAGAIN;
	if (dom->busy != NULL || dom->release_due)
		if (verbs_park_arm(dom) != 0)
			return -EAGAIN;
	arm_timer(dom);
	dom->armed = true;
	return 0;
}
