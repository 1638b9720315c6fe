/* The verbs stand-in's wire: where a QP leads, what both devices check, and bytes that move. Under
 * the lock. */
#include "fake_verbs_priv.h"

#include <errno.h>
#include <stdlib.h>

#define VENDOR_RETRY  0x81
#define VENDOR_ACCESS 0x88
#define VENDOR_LOCAL  0x33

static bool gid_is_at(const struct fv_qp *qp, const union ibv_gid *gid)
{
	const struct fake_verbs_port *port =
	    &fv_dev_of(qp->qp.context)->ports[qp->attr.port_num - 1];

	for (unsigned i = 0; i < FAKE_VERBS_MAX_GIDS; i++)
		if (memcmp(&port->gids[i].gid, gid, sizeof(*gid)) == 0)
			return true;
	return false;
}

static const struct ibv_gid_entry *qp_sgid(const struct fv_qp *qp)
{
	const struct fake_verbs_port *port =
	    &fv_dev_of(qp->qp.context)->ports[qp->attr.port_num - 1];

	return &port->gids[qp->attr.ah_attr.grh.sgid_index];
}

static bool qp_points_at(const struct fv_qp *qp, const struct fv_qp *other)
{
	const struct ibv_ah_attr *ah = &qp->attr.ah_attr;

	if (qp->attr.dest_qp_num != other->qp.qp_num)
		return false;
	if (ah->is_global)
		return gid_is_at(other, &ah->grh.dgid);
	return fv_dev_of(other->qp.context)->ports[other->attr.port_num - 1].attr.lid == ah->dlid;
}

static bool qps_fit(const struct fv_qp *qp, const struct fv_qp *other)
{
	if (!qp_points_at(qp, other) || !qp_points_at(other, qp))
		return false;
	if (qp->attr.ah_attr.is_global && qp_sgid(qp)->gid_type != qp_sgid(other)->gid_type)
		return false;
	return qp->attr.sq_psn == other->attr.rq_psn;
}

static bool qp_receives(const struct fv_qp *qp)
{
	return !qp->obj.dead && (qp->qp.state == IBV_QPS_RTR || qp->qp.state == IBV_QPS_RTS);
}

static struct fv_qp *qp_other(struct fv_qp *qp)
{
	if (qp->other != NULL && qp_receives(qp->other))
		return qp->other;
	qp->other = NULL;
	for (struct fv_object *obj = fv.objects; obj != NULL; obj = obj->next)
		if (obj->kind == FV_K_QP && qp_receives(fv_qp_of(obj)) &&
		    qps_fit(qp, fv_qp_of(obj)))
			qp->other = fv_qp_of(obj);
	return qp->other;
}

static bool port_works(const struct fv_qp *qp)
{
	const struct fake_verbs_dev *dev = fv_dev_of(qp->qp.context);
	unsigned port = qp->attr.port_num - 1u;

	return !dev->fatal && dev->ports[port].attr.state == IBV_PORT_ACTIVE &&
	       !fv.cut[fv_dev_index(dev)][port];
}

void fake_verbs_cut(struct fake_verbs_dev *dev, unsigned port, bool cut)
{
	fv_lock();
	fv.cut[fv_dev_index(dev)][port - 1] = cut;
	fv_unlock();
}

struct verdict {
	enum ibv_wc_status status;
	uint32_t vendor_err;
	struct fv_qp *other; /* NULL: not reached */
	struct fv_mr *remote;
};

static struct fv_mr *local_mr(const struct fv_qp *qp, const struct ibv_sge *sge, bool written)
{
	struct fv_mr *mr = fv_key_find(sge->lkey, false);

	if (mr == NULL || mr->mr.pd != qp->qp.pd || sge->addr < mr->iova ||
	    sge->addr - mr->iova > mr->mr.length ||
	    sge->length > mr->mr.length - (sge->addr - mr->iova))
		return NULL;
	return written && !(mr->access & IBV_ACCESS_LOCAL_WRITE) ? NULL : mr;
}

static bool local_is_right(const struct fv_qp *qp, const struct fv_wqe *w)
{
	if (w->flags & IBV_SEND_INLINE)
		return true;
	for (unsigned i = 0; i < w->n_sge; i++)
		if (local_mr(qp, &w->sge[i], w->opcode == IBV_WR_RDMA_READ) == NULL)
			return false;
	return true;
}

static struct fv_mr *remote_mr(const struct fv_qp *other, const struct fv_wqe *w)
{
	int need = w->opcode == IBV_WR_RDMA_READ ? IBV_ACCESS_REMOTE_READ : IBV_ACCESS_REMOTE_WRITE;
	struct fv_mr *mr = fv_key_find(w->rkey, true);

	if (mr == NULL || mr->mr.pd != other->qp.pd || !(mr->access & need) ||
	    w->remote_addr < mr->iova || w->remote_addr - mr->iova > mr->mr.length ||
	    w->len > mr->mr.length - (w->remote_addr - mr->iova))
		return NULL;
	return mr;
}

static bool request_is_valid(const struct fv_qp *qp, const struct fv_qp *other,
			     const struct fv_wqe *w)
{
	unsigned need =
	    w->opcode == IBV_WR_RDMA_READ ? IBV_ACCESS_REMOTE_READ : IBV_ACCESS_REMOTE_WRITE;

	if (!(other->attr.qp_access_flags & need) || qp->attr.path_mtu > other->attr.path_mtu)
		return false;
	return w->opcode != IBV_WR_RDMA_READ ||
	       qp->attr.max_rd_atomic <= other->attr.max_dest_rd_atomic;
}

static struct verdict judge(struct fv_qp *qp, const struct fv_wqe *w)
{
	struct verdict v = {.status = IBV_WC_SUCCESS};

	if (!local_is_right(qp, w))
		return (struct verdict){IBV_WC_LOC_PROT_ERR, VENDOR_LOCAL, NULL, NULL};
	if (w->len > fv_dev_of(qp->qp.context)->ports[qp->attr.port_num - 1].attr.max_msg_sz)
		return (struct verdict){IBV_WC_LOC_LEN_ERR, VENDOR_LOCAL, NULL, NULL};
	v.other = qp_other(qp);
	if (v.other == NULL || !port_works(qp) || !port_works(v.other))
		return (struct verdict){IBV_WC_RETRY_EXC_ERR, VENDOR_RETRY, NULL, NULL};
	if (!request_is_valid(qp, v.other, w)) {
		v.status = IBV_WC_REM_INV_REQ_ERR;
		v.vendor_err = VENDOR_ACCESS;
		return v;
	}
	v.remote = w->len == 0 ? NULL : remote_mr(v.other, w);
	if (w->len > 0 && v.remote == NULL) {
		v.status = IBV_WC_REM_ACCESS_ERR;
		v.vendor_err = VENDOR_ACCESS;
	}
	return v;
}

/* Carries bytes [from, from + len) of a work request between its pieces and the remote memory. */
static void wqe_carry(struct fv_qp *qp, const struct fv_wqe *w, const struct verdict *v,
		      uint64_t from, uint64_t len, enum fv_when when)
{
	uint8_t *remote = v->remote->bytes + (w->remote_addr - v->remote->iova);
	uint64_t at = 0, to = from + len;
	bool is_read = w->opcode == IBV_WR_RDMA_READ;

	fv.count.bytes += when == FV_LATE ? 0 : len;
	if (w->flags & IBV_SEND_INLINE) {
		struct fv_late packet = {
		    .qp = v->other, .mr = v->remote, .to = remote + from, .len = len};

		fv_carry(&packet, w->inlined + from, when);
		return;
	}
	for (unsigned i = 0; i < w->n_sge; at += w->sge[i++].length) {
		uint64_t a = at > from ? at : from;
		uint64_t b = at + w->sge[i].length < to ? at + w->sge[i].length : to;
		struct fv_mr *mr = local_mr(qp, &w->sge[i], is_read);
		struct fv_late packet = {
		    .qp = v->other, .mr = v->remote, .to = remote + a, .len = b - a};
		uint8_t *local;

		if (a >= b)
			continue;
		local = mr->bytes + (w->sge[i].addr - mr->iova) + (a - at);
		if (is_read)
			packet = (struct fv_late){.qp = qp, .mr = mr, .to = local, .len = b - a};
		fv_carry(&packet, is_read ? remote + a : local, when);
	}
}

/* What was under way when the QP went to error. */
static void wqe_leave_late(struct fv_qp *qp, const struct fv_wqe *w)
{
	struct verdict v;

	if (!fv.late_on || w->len == w->moved)
		return;
	v = judge(qp, w);
	if (v.status == IBV_WC_SUCCESS)
		wqe_carry(qp, w, &v, w->moved, w->len - w->moved, FV_LATE);
}

void fv_qp_fail(struct fv_qp *qp)
{
	if (qp->qp.state == IBV_QPS_ERR)
		return;
	if (qp->qp.state == IBV_QPS_RTS)
		for (uint64_t i = qp->moving; i != qp->posted; i++)
			wqe_leave_late(qp, &qp->sq[i % qp->cap.max_send_wr]);
	qp->qp.state = IBV_QPS_ERR;
	while (qp->moving != qp->posted)
		fv_cq_push(qp, qp->moving++, IBV_WC_WR_FLUSH_ERR, 0xf9);
}

/* The other side has refused: it is in error too, and may say so. */
static void other_refuse(struct fv_qp *other)
{
	struct ibv_async_event event = {.element.qp = &other->qp,
					.event_type = IBV_EVENT_QP_ACCESS_ERR};

	fv_qp_fail(other);
	if (fv_dev_of(other->qp.context)->access_events)
		fv_event_push(fv_ctx_of(other->qp.context), &event);
}

static void wqe_fail(struct fv_qp *qp, const struct verdict *v)
{
	if (v->other != NULL)
		other_refuse(v->other);
	fv_cq_push(qp, qp->moving++, v->status, v->vendor_err);
	fv_qp_fail(qp);
}

/* The error that a test asked for. */
static bool wqe_break(struct fv_qp *qp, struct fv_wqe *w)
{
	struct verdict v = {fv.brk.status, fv.brk.vendor_err, NULL, NULL};
	struct verdict real;
	uint64_t len;

	if (w->moved > 0 || fv.brk.left == 0 || --fv.brk.left > 0)
		return false;
	fv.brk.fired = true;
	real = judge(qp, w);
	len = fv.brk.land == FV_LAND_ALL ? w->len : fv.brk.land == FV_LAND_HALF ? w->len / 2 : 0;
	if (real.status == IBV_WC_SUCCESS && len > 0)
		wqe_carry(qp, w, &real, 0, len, FV_NOW);
	w->moved = len;
	wqe_leave_late(qp, w);
	wqe_fail(qp, &v);
	return true;
}

/* The device sends again and again before it gives up. */
static bool wqe_waits(struct fv_wqe *w)
{
	uint64_t now;

	if (fv.retry_ns == 0)
		return false;
	now = fv_now_ns();
	if (w->tried_ns == 0)
		w->tried_ns = now;
	return now - w->tried_ns < fv.retry_ns;
}

/* Reading a memory lets what was written to it come through. */
static void device_reads(const struct fv_qp *qp, const struct fv_wqe *w, const struct verdict *v)
{
	if (w->opcode == IBV_WR_RDMA_READ)
		fv_land_before_read(v->other, v->remote);
	else if (!(w->flags & IBV_SEND_INLINE))
		for (unsigned i = 0; i < w->n_sge; i++)
			fv_land_before_read(NULL, local_mr(qp, &w->sge[i], false));
}

static bool key_is_mute(uint32_t key, bool remote)
{
	const struct fv_mr *mr = fv_key_find(key, remote);

	return mr != NULL && mr->gpu == fv.mute_gpu;
}

static bool wqe_is_mute(const struct fv_wqe *w)
{
	bool mute = key_is_mute(w->rkey, true);

	for (uint32_t i = 0; i < w->n_sge; i++)
		mute |= key_is_mute(w->sge[i].lkey, false);
	return mute;
}

bool fv_qp_step(struct fv_qp *qp)
{
	struct fv_wqe *w = &qp->sq[qp->moving % qp->cap.max_send_wr];
	struct verdict v;
	uint64_t len;

	if (qp->obj.dead || qp->qp.state != IBV_QPS_RTS || qp->moving == qp->posted)
		return false;
	if (fv.mute_gpu != 0 && wqe_is_mute(w))
		return false;
	if (wqe_break(qp, w))
		return true;
	v = judge(qp, w);
	if (v.status == IBV_WC_RETRY_EXC_ERR && wqe_waits(w))
		return false;
	if (v.status != IBV_WC_SUCCESS) {
		if (v.status == IBV_WC_RETRY_EXC_ERR)
			wqe_leave_late(qp, w);
		wqe_fail(qp, &v);
		return true;
	}
	device_reads(qp, w, &v);
	len = w->len - w->moved;
	if (fv.packet_bytes > 0 && len > fv.packet_bytes)
		len = fv.packet_bytes;
	if (len > 0)
		wqe_carry(qp, w, &v, w->moved, len,
			  fv.lazy_on && w->opcode != IBV_WR_RDMA_READ ? FV_LAZY : FV_NOW);
	w->moved += len;
	if (w->moved < w->len)
		return true;
	qp->moving++;
	if ((w->flags & IBV_SEND_SIGNALED) || qp->sig_all)
		fv_cq_push(qp, qp->moving - 1, IBV_WC_SUCCESS, 0);
	return true;
}
