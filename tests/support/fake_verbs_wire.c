/* The verbs stand-in's wire: work requests are posted, checked as the two devices would, and their
 * bytes moved. Under the lock; the caller's thread, or the wire's own. */
#include "fake_verbs_priv.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define VENDOR_RETRY  0x81
#define VENDOR_ACCESS 0x88
#define VENDOR_LOCAL  0x33

static pthread_t wire_thread;
static volatile bool wire_runs;

static struct fv_qp *qp_of(struct fv_object *obj)
{
	return (struct fv_qp *)((uint8_t *)obj - offsetof(struct fv_qp, obj));
}

/* --- where a QP leads --- */

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
		if (obj->kind == FV_K_QP && qp_receives(qp_of(obj)) && qps_fit(qp, qp_of(obj)))
			qp->other = qp_of(obj);
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

/* --- checks --- */

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

/* --- moving --- */

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

bool fv_qp_step(struct fv_qp *qp)
{
	struct fv_wqe *w = &qp->sq[qp->moving % qp->cap.max_send_wr];
	struct verdict v;
	uint64_t len;

	if (qp->obj.dead || qp->qp.state != IBV_QPS_RTS || qp->moving == qp->posted)
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

/* --- posting --- */

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

/* --- the test's hand on it --- */

void fake_verbs_mode(enum fake_verbs_mode mode)
{
	fv_lock();
	fv.mode = mode;
	fv_unlock();
}

void fv_cq_step(struct fv_cq *cq)
{
	if (fv.mode != FV_AT_ONCE || fv.retry_ns == 0 || cq->n_open_wrs == 0)
		return;
	for (struct fv_object *obj = fv.objects; obj != NULL; obj = obj->next)
		if (obj->kind == FV_K_QP && !obj->dead && qp_of(obj)->qp.send_cq == &cq->cq)
			while (fv_qp_step(qp_of(obj)))
				;
}

void fake_verbs_retry(unsigned ms)
{
	fv_lock();
	fv.retry_ns = ms * UINT64_C(1000000);
	fv_unlock();
}

void fake_verbs_packet(uint32_t bytes)
{
	fv_lock();
	fv.packet_bytes = bytes;
	fv_unlock();
}

/* One packet of the k-th QP that has any, counted from the newest. */
static bool step_kth(uint64_t k)
{
	for (unsigned round = 0; round < 2; round++) {
		for (struct fv_object *obj = fv.objects; obj != NULL; obj = obj->next) {
			if (obj->kind != FV_K_QP || obj->dead)
				continue;
			if (k > 0)
				k--;
			else if (fv_qp_step(qp_of(obj)))
				return true;
		}
		k = 0;
	}
	return false;
}

unsigned fake_verbs_run(unsigned n)
{
	unsigned done = 0;

	fv_lock();
	while (done < n && step_kth(fv.count.qps == 0 ? 0 : fv.turn++ % fv.count.qps))
		done++;
	fv_unlock();
	return done;
}

bool fake_verbs_run_one(uint64_t random)
{
	bool moved;

	fv_lock();
	moved = step_kth(fv.count.qps == 0 ? 0 : random % fv.count.qps);
	fv_unlock();
	return moved;
}

static void *wire_main(void *arg)
{
	uint64_t state = (uint64_t)(uintptr_t)arg * 2654435761u + 1;
	struct timespec nap = {0, 20000};

	while (wire_runs) {
		state = state * 6364136223846793005u + 1442695040888963407u;
		if (!fake_verbs_run_one(state >> 33) || (state >> 40) % 16 == 0)
			nanosleep(&nap, NULL);
		if ((state >> 45) % 64 == 0)
			fake_verbs_land_late();
	}
	return NULL;
}

void fake_verbs_wire_start(uint64_t seed)
{
	wire_runs = true;
	if (pthread_create(&wire_thread, NULL, wire_main, (void *)(uintptr_t)seed) != 0)
		abort();
}

void fake_verbs_wire_stop(void)
{
	if (!wire_runs)
		return;
	wire_runs = false;
	pthread_join(wire_thread, NULL);
}

void fake_verbs_post_limit(unsigned n)
{
	fv_lock();
	fv.post_limit = n;
	fv_unlock();
}

void fake_verbs_break(unsigned nth, enum ibv_wc_status status, uint32_t vendor_err,
		      enum fake_verbs_land land)
{
	fv_lock();
	fv.brk = (struct fv_break){nth, status, vendor_err, land, false};
	fv_unlock();
}

bool fake_verbs_broken(void)
{
	bool fired;

	fv_lock();
	fired = fv.brk.fired;
	fv.brk = (struct fv_break){0};
	fv_unlock();
	return fired;
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
