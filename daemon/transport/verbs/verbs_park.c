/* Reads into GPU memory of this node: the completion of a chain says that the NIC has the bytes,
 * not that the GPU shows them. So such a chain waits in its queue pair's fifo until a read of that
 * GPU's memory, posted after the chain had completed, is back: one read for all chains of a device
 * that have completed before it. Chains behind it wait with it, as they leave a fifo in their
 * order. Data thread; never blocks, never allocates. The bytes of a chain that was fenced instead
 * are on the bus for microseconds at most, which verbs.settle_ms covers. */
#include <errno.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/verbs/verbs_chain.h"
#include "transport/verbs/verbs_priv.h"

#define POLL_BATCH 16
#define READ_NS    (5 * KVX_SEC) /* a loopback takes microseconds */

static bool loop_ready(const struct verbs_loop *loop)
{
	return atomic_load_explicit(&loop->ready, memory_order_acquire);
}

static void busy_add(struct verbs_flush *flush)
{
	struct kvx_dom *dom = flush->dom;

	if (atomic_load_explicit(&flush->busy, memory_order_relaxed))
		return;
	atomic_store_explicit(&flush->busy, true, memory_order_relaxed);
	flush->next_busy = dom->busy;
	dom->busy = flush;
}

/* From the moment that busy is false, a helper may free it. */
static void busy_sweep(struct kvx_dom *dom)
{
	struct verbs_flush **at = &dom->busy;

	while (*at != NULL) {
		struct verbs_flush *flush = *at;

		if (flush->wanted || flush->posted != flush->done) {
			at = &flush->next_busy;
			continue;
		}
		*at = flush->next_busy;
		atomic_store_explicit(&flush->busy, false, memory_order_release);
	}
}

void verbs_park(struct kvx_ep *ep, struct verbs_chain *chain)
{
	struct verbs_flush *flush = chain->flush;

	if (flush == NULL)
		return; /* it waits only for those before it */
	chain->need = flush->posted + 1;
	flush->wanted = true;
	busy_add(flush);
}

/* --- when it fails */

static bool ep_waits(const struct kvx_ep *ep)
{
	for (uint32_t i = 0; i < ep->n_qps; i++)
		if (ep->qps[i].fifo.seen != ep->qps[i].fifo.tail)
			return true;
	return false;
}

/* Whose chains wait for a read of a loop that does not work: what they have read is not known to be
 * there. A new ep finds a loop that was made anew, see verbs_listen(). */
static void loop_break(struct kvx_dom *dom, struct verbs_loop *loop, const char *text)
{
	uint32_t end = atomic_load_explicit(&dom->eps_end, memory_order_acquire);

	for (struct verbs_flush *flush = dom->busy; flush != NULL; flush = flush->next_busy) {
		if (flush->loop != loop)
			continue;
		flush->wanted = false;
		flush->posted = flush->done;
	}
	for (uint32_t i = 0; i < end; i++) {
		struct kvx_ep *ep = atomic_load_explicit(&dom->eps[i], memory_order_acquire);

		if (ep != NULL && ep_waits(ep) &&
		    atomic_load_explicit(&dom->loops[ep->tenant], memory_order_acquire) == loop)
			verbs_ep_break(ep, -EIO, 0, text);
	}
	if (!loop_ready(loop))
		return;
	kvx_debug("verbs: %s: loopback: %s", dom->name, text);
	loop->n_flying = 0;
	atomic_store_explicit(&loop->ready, false, memory_order_release);
}

#define READ_FAILED "the loopback read that makes reads into GPU memory visible has failed"

/* --- reads */

static void flush_post(struct verbs_flush *flush)
{
	struct kvx_dom *dom = flush->dom;
	struct verbs_loop *loop = flush->loop;
	struct ibv_sge sge = {.addr = (uintptr_t)loop->pair.page,
			      .length = VERBS_FLUSH_READ_BYTES,
			      .lkey = loop->pair.page_mr->lkey};
	struct ibv_send_wr wr = {.wr_id = flush->id,
				 .sg_list = &sge,
				 .num_sge = 1,
				 .opcode = IBV_WR_RDMA_READ,
				 .send_flags = IBV_SEND_SIGNALED,
				 .wr.rdma = {.remote_addr = flush->addr, .rkey = flush->rkey}};
	struct ibv_send_wr *bad;

	if (ibv_post_send(loop->pair.qps[0], &wr, &bad) != 0) {
		loop_break(dom, loop, "the loopback takes no more reads: " READ_FAILED);
		return;
	}
	flush->wanted = false;
	flush->posted++;
	if (loop->n_flying++ == 0)
		loop->due_ns = kvx_now_ns() + READ_NS;
	if (loop->due_ns < dom->next_due_ns)
		dom->next_due_ns = loop->due_ns;
	kvx_counter_add(&dom->counters.flushes, 1);
}

static void on_read(struct kvx_dom *dom, struct verbs_loop *loop, uint64_t id)
{
	struct verbs_flush *flush = dom->busy;

	while (flush != NULL && flush->id != id)
		flush = flush->next_busy;
	if (flush == NULL)
		return;
	flush->done = flush->posted;
	loop->n_flying--;
	loop->due_ns = kvx_now_ns() + READ_NS;
	dom->release_due = true;
}

/* How many have come back. */
static int loop_poll(struct kvx_dom *dom, struct verbs_loop *loop)
{
	struct ibv_wc wcs[POLL_BATCH];
	int n;

	if (!loop_ready(loop) || loop->n_flying == 0)
		return 0;
	n = ibv_poll_cq(loop->pair.cq, POLL_BATCH, wcs);
	for (int i = 0; i < n; i++) {
		if (wcs[i].status != IBV_WC_SUCCESS) {
			kvx_counter_add(&dom->counters.errors, 1);
			kvx_debug("verbs: %s: loopback: %s", dom->name,
				  verbs_wc_text(wcs[i].status));
			loop_break(dom, loop, READ_FAILED);
			break;
		}
		on_read(dom, loop, wcs[i].wr_id);
	}
	if (n < 0)
		loop_break(dom, loop, READ_FAILED);
	return n;
}

void verbs_park_turn(struct kvx_dom *dom)
{
	for (struct verbs_flush *flush = dom->busy; flush != NULL; flush = flush->next_busy)
		(void)loop_poll(dom, flush->loop);
	for (struct verbs_flush *flush = dom->busy; flush != NULL; flush = flush->next_busy) {
		if (!flush->wanted || flush->posted != flush->done)
			continue;
		if (!loop_ready(flush->loop))
			loop_break(dom, flush->loop, READ_FAILED);
		else if (flush->loop->n_flying < VERBS_LOOP_DEPTH)
			flush_post(flush);
	}
	busy_sweep(dom);
}

int verbs_park_arm(struct kvx_dom *dom)
{
	int n = dom->release_due;

	for (struct verbs_flush *flush = dom->busy; flush != NULL && n == 0;
	     flush = flush->next_busy) {
		if (flush->wanted && flush->posted == flush->done)
			n = 1;
		else if (loop_ready(flush->loop) && ibv_req_notify_cq(flush->loop->pair.cq, 0) != 0)
			loop_break(dom, flush->loop, READ_FAILED);
	}
	/* One that came before would wake nobody. */
	for (struct verbs_flush *flush = dom->busy; flush != NULL && n == 0;
	     flush = flush->next_busy)
		n = loop_poll(dom, flush->loop);
	busy_sweep(dom);
	return n == 0 && !dom->release_due && !dom->scan_due ? 0 : -EAGAIN;
}

void verbs_park_on_time(struct kvx_dom *dom, uint64_t now)
{
	for (struct verbs_flush *flush = dom->busy; flush != NULL; flush = flush->next_busy) {
		struct verbs_loop *loop = flush->loop;

		if (!loop_ready(loop) || loop->n_flying == 0)
			continue;
		if (now >= loop->due_ns)
			loop_break(dom, loop, READ_FAILED);
		else if (loop->due_ns < dom->next_due_ns)
			dom->next_due_ns = loop->due_ns;
	}
}

void verbs_park_break(struct kvx_dom *dom, const struct ibv_cq *cq, const char *text)
{
	for (unsigned i = 0; i < KVX_MAX_TENANTS; i++) {
		struct verbs_loop *loop =
		    atomic_load_explicit(&dom->loops[i], memory_order_acquire);

		if (loop != NULL && loop_ready(loop) && (cq == NULL || loop->pair.cq == cq))
			loop_break(dom, loop, text);
	}
	busy_sweep(dom);
}

/* --- what is done */

static bool chain_waits(const struct verbs_chain *chain)
{
	return chain->flush != NULL && chain->need > chain->flush->done;
}

/* False: the events are full. */
static bool fifo_release(struct verbs_fifo *fifo, struct kvx_tevent *events, unsigned *n,
			 unsigned max)
{
	while (fifo->seen != fifo->tail) {
		const struct verbs_chain *chain = verbs_fifo_first(fifo);

		if (chain_waits(chain))
			break;
		if (*n == max)
			return false;
		*n = verbs_event_add_done(events, *n, chain->cookie, chain->n_ops);
		(void)verbs_fifo_pop(fifo);
	}
	return true;
}

unsigned verbs_park_release(struct kvx_dom *dom, struct kvx_tevent *events, unsigned n,
			    unsigned max)
{
	uint32_t end = atomic_load_explicit(&dom->eps_end, memory_order_acquire);
	bool all = true;

	if (!dom->release_due)
		return n;
	for (uint32_t i = 0; i < end && all; i++) {
		struct kvx_ep *ep = atomic_load_explicit(&dom->eps[i], memory_order_acquire);

		for (uint32_t k = 0; ep != NULL && k < ep->n_qps && all; k++)
			all = fifo_release(&ep->qps[k].fifo, events, &n, max);
	}
	dom->release_due = !all;
	return n;
}
