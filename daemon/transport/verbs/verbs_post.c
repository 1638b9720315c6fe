/* Posting: ops become chains of work requests (verbs_build.c), each chain goes to the least loaded
 * queue pair of the ep with one doorbell and completes once. Data thread. Never allocates, locks or
 * logs; the only wait is the device's doorbell.
 *
 * Room is counted exactly, so that neither queue can overflow. The send queue of a queue pair holds
 * sq_depth work requests, and a chain leaves it when its completion was taken. The completion queue
 * holds as many entries as all send queues together (listen() refuses an ep beyond that): each work
 * request makes at most one, also when it fails or is flushed. */
#include <errno.h>

#include "transport/verbs/verbs_chain.h"
#include "transport/verbs/verbs_priv.h"

/* What a work request weighs beside its bytes when the load of queue pairs is compared. */
#define WR_WEIGHT_BYTES 4096u

static uint64_t fifo_load(const struct verbs_fifo *fifo)
{
	return fifo->bytes_open + (uint64_t)fifo->wrs_open * WR_WEIGHT_BYTES;
}

/* The least loaded one with that much room; NULL: none. */
static struct verbs_qp *ep_pick_qp(struct kvx_ep *ep, uint32_t room)
{
	struct verbs_qp *best = NULL;
	uint64_t best_load = UINT64_MAX;

	for (uint32_t i = 0; i < ep->n_used; i++) {
		const struct verbs_fifo *fifo = &ep->qps[i].fifo;
		uint64_t load = fifo_load(fifo);

		if (load < best_load && verbs_fifo_room(fifo) >= room) {
			best = &ep->qps[i];
			best_load = load;
		}
	}
	return best;
}

/* A short read of the other side's memory, whose answer cannot overtake the writes before it. Host
 * memory: of the ep's page. */
static void wr_fill_flush(const struct kvx_ep *ep, struct ibv_send_wr *wr)
{
	wr->sg_list[0] = (struct ibv_sge){
	    .addr = (uintptr_t)ep->flush_page + VERBS_FLUSH_BYTES,
	    .length = VERBS_FLUSH_READ_BYTES,
	    .lkey = ep->flush_mr->lkey,
	};
	wr->num_sge = 1;
	wr->opcode = IBV_WR_RDMA_READ;
	wr->send_flags = 0;
	wr->wr.rdma.remote_addr = ep->remote_flush_addr;
	wr->wr.rdma.rkey = ep->remote_flush_rkey;
}

/* GPU memory: of memory of the same GPU, the region's own where there is no other. */
static void wr_aim_flush(const struct kvx_rkey *rkey, const struct ibv_send_wr *last,
			 struct ibv_send_wr *wr)
{
	uint64_t bytes = 0;

	if (rkey->flush_by == VERBS_FLUSH_MEMORY) {
		wr->wr.rdma.remote_addr = rkey->flush_addr;
		wr->wr.rdma.rkey = rkey->flush_rkey;
		return;
	}
	for (int i = 0; i < last->num_sge; i++)
		bytes += last->sg_list[i].length;
	if (bytes < VERBS_FLUSH_READ_BYTES)
		wr->sg_list[0].length = (uint32_t)bytes;
	wr->wr.rdma.remote_addr = last->wr.rdma.remote_addr + bytes - wr->sg_list[0].length;
	wr->wr.rdma.rkey = last->wr.rdma.rkey;
}

/* Posts the first n_wrs of the scratch as one chain. *out_posted: how many of them the device has
 * taken; 0 or -errno. */
static int qp_post(struct kvx_ep *ep, struct verbs_qp *qp, uint32_t n_wrs, uint32_t *out_posted)
{
	struct ibv_send_wr *wrs = ep->dom->build.wrs;
	struct ibv_send_wr *last = &wrs[n_wrs - 1];
	struct ibv_send_wr *after = last->next;
	struct ibv_send_wr *bad = NULL;
	uint64_t wr_id = verbs_wr_id(ep, (unsigned)(qp - ep->qps), verbs_fifo_next(&qp->fifo));
	int err;

	for (uint32_t i = 0; i < n_wrs; i++)
		wrs[i].wr_id = wr_id;
	last->send_flags |= IBV_SEND_SIGNALED;
	last->next = NULL;
	err = ibv_post_send(atomic_load_explicit(&qp->ibqp, memory_order_relaxed), wrs, &bad);
	last->next = after;
	if (err == 0) {
		*out_posted = n_wrs;
		return 0;
	}
	/* Who does not say where it stopped may have taken all of them. */
	*out_posted = bad >= wrs && bad <= last ? (uint32_t)(bad - wrs) : n_wrs;
	return verbs_err(err > 0 ? err : EIO);
}

static void count_chain(struct kvx_dom *dom, uint32_t n_wrs, unsigned n_inlined, bool flush)
{
	struct kvx_dom_counters *counters = &dom->counters;

	kvx_counter_add(&counters->wrs, n_wrs);
	kvx_counter_add(&counters->doorbells, 1);
	kvx_counter_add(&counters->signaled, 1);
	if (dom->build.n_gathered > 0)
		kvx_counter_add(&counters->gathered, dom->build.n_gathered);
	if (n_inlined > 0)
		kvx_counter_add(&counters->inlined, n_inlined);
	if (flush)
		kvx_counter_add(&counters->flushes, 1);
}

/* An op that must not be posted is taken and reported as failed; those of one cookie at a time. */
static int ep_refuse_op(struct kvx_ep *ep, const struct kvx_op *op, int status)
{
	if (ep->refused_n > 0 && (ep->refused_cookie != op->cookie || ep->refused_status != status))
		return 0;
	ep->refused_cookie = op->cookie;
	ep->refused_status = status;
	ep->refused_n++;
	ep->dom->scan_due = true;
	return 1;
}

/* The chain, or a part of it, was not taken. How many ops count as posted: 0 or all of the chain;
 * -errno: the ep is down and has none of them. */
static int post_failed(struct kvx_ep *ep, struct verbs_qp *qp, const struct verbs_chain *chain,
		       uint32_t n_posted, int err)
{
	/* No room after all: there will be when what is open completes. */
	if (n_posted == 0 && err == -ENOMEM && qp->fifo.wrs_open > 0)
		return 0;
	verbs_ep_break(ep, err, 0, "the device refused work requests (see the kernel's log)");
	if (n_posted == 0)
		return err;
	/* A part is under way and will never complete aloud: reported after the fence. */
	verbs_fifo_push(&qp->fifo, chain);
	return (int)chain->n_ops;
}

/* One chain of the first of these ops: how many it took; 0: no room; -errno: the ep is down. */
static int post_chain(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n)
{
	struct kvx_dom *dom = ep->dom;
	struct verbs_build *build = &dom->build;
	bool is_write = ops[0].kind == KVX_OP_WRITE;
	bool to_gpu = is_write && ops[0].remote->flush_by != VERBS_FLUSH_EP;
	bool flush = to_gpu || (is_write && dom->conf.flush);
	uint32_t want = n < build->limits.max_wrs ? n : build->limits.max_wrs;
	struct verbs_qp *qp = ep_pick_qp(ep, want + flush);
	struct verbs_chain chain;
	uint32_t n_posted;
	unsigned n_inlined = 0;
	int status;

	if (qp == NULL) /* waits rather than post short chains, each with a completion */
		return 0;
	if (verbs_build_chain(build, ep, ops, n, verbs_fifo_room(&qp->fifo) - flush, &status) == 0)
		return status < 0 ? ep_refuse_op(ep, &ops[0], status) : 0;
	if (is_write)
		n_inlined = verbs_build_inline(build);
	if (flush)
		wr_fill_flush(ep, &build->wrs[build->n_wrs]);
	if (to_gpu)
		wr_aim_flush(ops[0].remote, &build->wrs[build->n_wrs - 1],
			     &build->wrs[build->n_wrs]);
	chain = (struct verbs_chain){.cookie = ops[0].cookie,
				     .bytes = build->bytes,
				     .n_ops = build->n_ops,
				     .n_wrs = build->n_wrs + flush,
				     .flush = is_write ? NULL : ops[0].local->flush};
	status = qp_post(ep, qp, chain.n_wrs, &n_posted);
	if (status < 0)
		return post_failed(ep, qp, &chain, n_posted, status);
	verbs_fifo_push(&qp->fifo, &chain);
	count_chain(dom, chain.n_wrs, n_inlined, flush);
	return (int)chain.n_ops;
}

int verbs_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n)
{
	unsigned taken = 0;
	int rc = 0;

	if (ep->state == VERBS_EP_DOWN)
		return ep->down_status;
	if (ep->state != VERBS_EP_UP)
		return -EHOSTDOWN;
	if (!verbs_ep_enter(ep))
		return -ECANCELED;
	while (taken < n && ep->state == VERBS_EP_UP) {
		rc = post_chain(ep, ops + taken, n - taken);
		if (rc <= 0)
			break;
		taken += (unsigned)rc;
	}
	verbs_ep_leave(ep);
	return taken > 0 || rc == 0 ? (int)taken : rc;
}

/* Reads that show that both ends of a queue pair know each other. */
int verbs_post_proofs(struct kvx_ep *ep)
{
	const struct verbs_chain chain = {.n_wrs = 1};
	struct verbs_build *build = &ep->dom->build;
	uint32_t n_posted;
	int err = 0;

	if (!verbs_ep_enter(ep))
		return -ECANCELED;
	build->n_gathered = 0;
	for (uint32_t i = 0; i < ep->n_used && err == 0; i++) {
		wr_fill_flush(ep, &build->wrs[0]);
		err = qp_post(ep, &ep->qps[i], 1, &n_posted);
		if (err == 0) {
			verbs_fifo_push(&ep->qps[i].fifo, &chain);
			count_chain(ep->dom, 1, 0, true);
		}
	}
	verbs_ep_leave(ep);
	return err;
}
