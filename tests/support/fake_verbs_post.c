/* Work requests of the verbs stand-in: posted, counted, and kept for a test to see. The caller's
 * thread. */
#include "fake_verbs_priv.h"

#include <errno.h>
#include <stdlib.h>

static int wr_check(const struct fv_qp *qp, const struct ibv_send_wr *wr, uint64_t len)
{
	if (wr->opcode != IBV_WR_RDMA_WRITE && wr->opcode != IBV_WR_RDMA_READ)
		return EINVAL;
	if (wr->num_sge < 0 || (uint32_t)wr->num_sge > qp->cap.max_send_sge)
		return EINVAL;
	if (wr->opcode == IBV_WR_RDMA_READ &&
	    wr->num_sge > fv_dev_of(qp->qp.context)->attr.max_sge_rd)
		return EINVAL;
	if ((wr->send_flags & IBV_SEND_INLINE) &&
	    (wr->opcode != IBV_WR_RDMA_WRITE || len > qp->cap.max_inline_data))
		return EINVAL;
	return 0;
}

static void wqe_fill(struct fv_wqe *w, const struct ibv_send_wr *wr, uint64_t len)
{
	uint64_t at = 0;

	w->wr_id = wr->wr_id;
	w->opcode = wr->opcode;
	w->flags = wr->send_flags;
	w->remote_addr = wr->wr.rdma.remote_addr;
	w->rkey = wr->wr.rdma.rkey;
	w->n_sge = (uint32_t)wr->num_sge;
	w->len = len;
	w->moved = 0;
	w->tried_ns = 0;
	for (int i = 0; i < wr->num_sge; i++) {
		w->sge[i] = wr->sg_list[i];
		if (!(wr->send_flags & IBV_SEND_INLINE))
			continue;
		/* Inline: an address of this process, not of an MR. */
		memcpy(w->inlined + at, (const void *)(uintptr_t)wr->sg_list[i].addr,
		       wr->sg_list[i].length);
		at += wr->sg_list[i].length;
	}
}

static void wr_count(const struct fv_qp *qp, const struct fv_wqe *w)
{
	fv.count.wrs++;
	fv.count.sges += w->n_sge;
	fv.count.signaled += (w->flags & IBV_SEND_SIGNALED) != 0;
	fv.count.inlined += (w->flags & IBV_SEND_INLINE) != 0;
	fv.count.reads += w->opcode == IBV_WR_RDMA_READ;
	fv.count.writes += w->opcode == IBV_WR_RDMA_WRITE;
	if (!fv.tracing || fv.n_trace == FV_MAX_TRACE)
		return;
	fv.trace[fv.n_trace++] = (struct fake_verbs_wr){
	    .post = (unsigned)fv.count.posts,
	    .qp_num = qp->qp.qp_num,
	    .opcode = w->opcode,
	    .flags = w->flags,
	    .n_sge = w->n_sge,
	    .len_bytes = w->len,
	    .remote_addr = w->remote_addr,
	    .rkey = w->rkey,
	};
}

/* What is posted must have room whatever becomes of it: each work request can end in an error
 * completion. */
static void credits_check(const struct fv_cq *cq)
{
	if (cq->n_open_wrs + cq->n_stale > (uint64_t)cq->cq.cqe)
		fv_violate("CQ of %d entries could overflow: %llu work requests are open",
			   cq->cq.cqe, (unsigned long long)cq->n_open_wrs);
}

static int qp_post(struct fv_qp *qp, const struct ibv_send_wr *wr)
{
	struct fv_cq *cq = (struct fv_cq *)qp->qp.send_cq;
	struct fv_wqe *w;
	uint64_t len = 0;
	int err;

	for (int i = 0; i < wr->num_sge; i++)
		len += wr->sg_list[i].length;
	err = wr_check(qp, wr, len);
	if (err != 0) {
		fv_violate("post_send of a work request that is not valid: opcode %d, %d pieces, "
			   "%llu bytes, flags 0x%x",
			   (int)wr->opcode, wr->num_sge, (unsigned long long)len, wr->send_flags);
		return err;
	}
	if (fv.post_limit != UINT32_MAX && fv.post_limit-- == 0)
		return ENOMEM;
	if (qp->posted - qp->retired >= qp->cap.max_send_wr) {
		fv_violate("send queue of %u overflowed", qp->cap.max_send_wr);
		return ENOMEM;
	}
	w = &qp->sq[qp->posted % qp->cap.max_send_wr];
	wqe_fill(w, wr, len);
	qp->posted++;
	cq->n_open_wrs++;
	wr_count(qp, w);
	credits_check(cq);
	if (qp->qp.state == IBV_QPS_ERR)
		fv_cq_push(qp, qp->moving++, IBV_WC_WR_FLUSH_ERR, 0xf9);
	return 0;
}

int fv_post_send(struct ibv_qp *ibqp, struct ibv_send_wr *wr, struct ibv_send_wr **bad_wr)
{
	struct fv_qp *qp = (struct fv_qp *)ibqp;
	int err = fv_enter(FV_POST_SEND);

	*bad_wr = wr;
	if (!fv_alive(&qp->obj, FV_K_QP, "post_send"))
		return fv_leave(EINVAL);
	if (err == 0 && qp->qp.state != IBV_QPS_RTS && qp->qp.state != IBV_QPS_ERR)
		err = EINVAL;
	if (err != 0)
		return fv_leave(err);
	fv.count.posts++;
	for (; wr != NULL && err == 0; wr = wr->next) {
		err = qp_post(qp, wr);
		if (err != 0)
			*bad_wr = wr;
	}
	if (err != 0)
		fv.post_limit = UINT32_MAX;
	if (fv.mode == FV_AT_ONCE)
		while (fv_qp_step(qp))
			;
	return fv_leave(err);
}

/* The backend receives nothing. */
int fv_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad_wr)
{
	fv_lock();
	fv_violate("post_recv");
	*bad_wr = wr;
	return fv_leave(EINVAL);
}

void fake_verbs_post_limit(unsigned n)
{
	fv_lock();
	fv.post_limit = n;
	fv_unlock();
}

void fake_verbs_trace(bool on)
{
	fv_lock();
	if (fv.trace == NULL)
		fv.trace = calloc(FV_MAX_TRACE, sizeof(*fv.trace));
	if (fv.trace == NULL)
		abort();
	fv.tracing = on;
	if (on)
		fv.n_trace = 0;
	fv_unlock();
}

unsigned fake_verbs_n_wrs(void)
{
	unsigned n;

	fv_lock();
	n = fv.n_trace;
	fv_unlock();
	return n;
}

struct fake_verbs_wr fake_verbs_wr(unsigned i)
{
	struct fake_verbs_wr wr = {0};

	fv_lock();
	if (i < fv.n_trace)
		wr = fv.trace[i];
	fv_unlock();
	return wr;
}
