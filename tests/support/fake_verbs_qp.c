/* The verbs stand-in's queue pairs: made, moved through their states and destroyed, each step with
 * the checks that a kernel makes. Any thread. */
#include "fake_verbs_priv.h"

#include <errno.h>
#include <stdlib.h>

#define INIT_MASK (IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS)
#define RTR_MASK                                                                                   \
	(IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |            \
	 IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER)
#define RTS_MASK                                                                                   \
	(IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |     \
	 IBV_QP_MAX_QP_RD_ATOMIC)

static int qp_check(struct ibv_pd *pd, const struct ibv_qp_init_attr *attr)
{
	const struct fake_verbs_dev *dev = fv_dev_of(pd->context);
	const struct ibv_qp_cap *cap = &attr->cap;

	if (!fv_alive(&((struct fv_pd *)pd)->obj, FV_K_PD, "create_qp") ||
	    !fv_alive(&((struct fv_cq *)attr->send_cq)->obj, FV_K_CQ, "create_qp"))
		return EINVAL;
	if (dev->fatal)
		return EIO;
	if (attr->qp_type != IBV_QPT_RC || attr->recv_cq == NULL || attr->srq != NULL)
		return EINVAL;
	if (cap->max_send_wr < 1 || cap->max_send_wr > (uint32_t)dev->attr.max_qp_wr ||
	    cap->max_send_sge > (uint32_t)dev->attr.max_sge ||
	    cap->max_send_sge > FAKE_VERBS_MAX_SGE || cap->max_inline_data > FAKE_VERBS_INLINE)
		return EINVAL;
	return fv.count.qps >= (unsigned)dev->attr.max_qp ? ENOMEM : 0;
}

struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
	int err = fv_enter(FV_CREATE_QP);
	struct fv_qp *qp;

	if (err == 0)
		err = qp_check(pd, attr);
	if (err != 0)
		return fv_leave_null(err);
	qp = calloc(1, sizeof(*qp));
	if (qp != NULL)
		qp->sq = calloc(attr->cap.max_send_wr, sizeof(*qp->sq));
	if (qp == NULL || qp->sq == NULL) {
		free(qp);
		return fv_leave_null(ENOMEM);
	}
	fv.next_qpn += 1 + (fv.next_tag & 3);
	qp->cap = attr->cap;
	qp->sig_all = attr->sq_sig_all != 0;
	qp->qp.context = pd->context;
	qp->qp.qp_context = attr->qp_context;
	qp->qp.pd = pd;
	qp->qp.send_cq = attr->send_cq;
	qp->qp.recv_cq = attr->recv_cq;
	qp->qp.qp_num = fv.next_qpn & 0xffffff;
	qp->qp.qp_type = attr->qp_type;
	qp->qp.state = IBV_QPS_RESET;
	fv_object_init(&qp->obj, FV_K_QP);
	((struct fv_pd *)pd)->n_users++;
	((struct fv_cq *)attr->send_cq)->n_qps++;
	if (attr->recv_cq != attr->send_cq)
		((struct fv_cq *)attr->recv_cq)->n_qps++;
	fv.count.qps++;
	fv_unlock();
	return &qp->qp;
}

static int to_init(struct fv_qp *qp, const struct ibv_qp_attr *attr)
{
	const struct fake_verbs_dev *dev = fv_dev_of(qp->qp.context);

	if (attr->port_num < 1 || attr->port_num > dev->attr.phys_port_cnt ||
	    attr->pkey_index >= dev->attr.max_pkeys)
		return EINVAL;
	qp->attr.port_num = attr->port_num;
	qp->attr.qp_access_flags = attr->qp_access_flags;
	qp->attr.pkey_index = attr->pkey_index;
	return 0;
}

static int to_rtr(struct fv_qp *qp, const struct ibv_qp_attr *attr)
{
	const struct fake_verbs_dev *dev = fv_dev_of(qp->qp.context);
	const struct fake_verbs_port *port = &dev->ports[qp->attr.port_num - 1];
	bool is_eth = port->attr.link_layer == IBV_LINK_LAYER_ETHERNET;

	if (attr->ah_attr.port_num != qp->attr.port_num || attr->path_mtu < IBV_MTU_256 ||
	    attr->path_mtu > port->attr.active_mtu ||
	    attr->max_dest_rd_atomic > dev->attr.max_qp_rd_atom || attr->rq_psn > 0xffffff ||
	    attr->dest_qp_num > 0xffffff || attr->min_rnr_timer > 31 ||
	    (is_eth && !attr->ah_attr.is_global))
		return EINVAL;
	if (attr->ah_attr.is_global && (attr->ah_attr.grh.sgid_index >= FAKE_VERBS_MAX_GIDS ||
					attr->ah_attr.grh.hop_limit < 1))
		return EINVAL;
	/* A port that is down can still be connected on; its traffic goes nowhere. */
	qp->attr.ah_attr = attr->ah_attr;
	qp->attr.path_mtu = attr->path_mtu;
	qp->attr.dest_qp_num = attr->dest_qp_num;
	qp->attr.rq_psn = attr->rq_psn;
	qp->attr.max_dest_rd_atomic = attr->max_dest_rd_atomic;
	qp->attr.min_rnr_timer = attr->min_rnr_timer;
	return 0;
}

static int to_rts(struct fv_qp *qp, const struct ibv_qp_attr *attr)
{
	const struct fake_verbs_dev *dev = fv_dev_of(qp->qp.context);

	if (attr->max_rd_atomic > dev->attr.max_qp_init_rd_atom || attr->sq_psn > 0xffffff ||
	    attr->timeout > 31 || attr->retry_cnt > 7 || attr->rnr_retry > 7)
		return EINVAL;
	qp->attr.sq_psn = attr->sq_psn;
	qp->attr.timeout = attr->timeout;
	qp->attr.retry_cnt = attr->retry_cnt;
	qp->attr.rnr_retry = attr->rnr_retry;
	qp->attr.max_rd_atomic = attr->max_rd_atomic;
	return 0;
}

static int qp_move(struct fv_qp *qp, const struct ibv_qp_attr *attr, int mask)
{
	enum ibv_qp_state from = qp->qp.state, to = attr->qp_state;
	int err = EINVAL;

	if (to == IBV_QPS_ERR && mask == IBV_QP_STATE) {
		fv_qp_fail(qp);
		return 0;
	}
	if (from == IBV_QPS_RESET && to == IBV_QPS_INIT && mask == INIT_MASK)
		err = to_init(qp, attr);
	else if (from == IBV_QPS_INIT && to == IBV_QPS_RTR && mask == RTR_MASK)
		err = to_rtr(qp, attr);
	else if (from == IBV_QPS_RTR && to == IBV_QPS_RTS && mask == RTS_MASK)
		err = to_rts(qp, attr);
	else if (from != IBV_QPS_ERR) /* where it may have gone by itself */
		fv_violate("modify_qp from state %d to %d with mask 0x%x", (int)from, (int)to,
			   (unsigned)mask);
	if (err == 0)
		qp->qp.state = to;
	return err;
}

int ibv_modify_qp(struct ibv_qp *ibqp, struct ibv_qp_attr *attr, int attr_mask)
{
	struct fv_qp *qp = (struct fv_qp *)ibqp;
	int err = fv_enter(FV_MODIFY_QP);

	if (!fv_alive(&qp->obj, FV_K_QP, "modify_qp"))
		return fv_leave(EINVAL);
	if (err == 0 && fv_dev_of(ibqp->context)->fatal)
		err = EIO;
	return fv_leave(err != 0 ? err : qp_move(qp, attr, attr_mask));
}

int ibv_query_qp(struct ibv_qp *ibqp, struct ibv_qp_attr *attr, int attr_mask,
		 struct ibv_qp_init_attr *init_attr)
{
	struct fv_qp *qp = (struct fv_qp *)ibqp;
	int err = fv_enter(FV_QUERY_QP);

	if (!fv_alive(&qp->obj, FV_K_QP, "query_qp"))
		return fv_leave(EINVAL);
	if (err != 0)
		return fv_leave(err);
	*attr = qp->attr;
	attr->qp_state = ibqp->state;
	attr->cap = qp->cap;
	memset(init_attr, 0, sizeof(*init_attr));
	init_attr->cap = qp->cap;
	init_attr->qp_type = ibqp->qp_type;
	return fv_leave(0);
}

static bool qp_is_acked(void *arg)
{
	const struct fv_qp *qp = arg;

	return qp->async_got == qp->qp.events_completed;
}

/* On return nothing lands at this QP any more: that is the fence which the backend stands on. */
int ibv_destroy_qp(struct ibv_qp *ibqp)
{
	struct fv_qp *qp = (struct fv_qp *)ibqp;
	struct fv_cq *cq = (struct fv_cq *)ibqp->send_cq;
	int err = fv_enter(FV_DESTROY_QP);

	if (!fv_alive(&qp->obj, FV_K_QP, "destroy_qp"))
		return fv_leave(EINVAL);
	if (err != 0)
		return fv_leave(err);
	fv_events_purge(fv_ctx_of(ibqp->context), ibqp);
	if (!fv_wait(qp_is_acked, qp))
		fv_violate("destroy_qp would wait for ever: events not acked");
	fv_events_purge(fv_ctx_of(ibqp->context), ibqp); /* of while it waited */
	fv_wire_forget_qp(qp);
	fv_cq_drop_qp(cq, qp);
	cq->n_open_wrs -= qp->posted - qp->retired;
	cq->n_qps--;
	if (ibqp->recv_cq != ibqp->send_cq)
		((struct fv_cq *)ibqp->recv_cq)->n_qps--;
	((struct fv_pd *)ibqp->pd)->n_users--;
	fv.count.qps--;
	fv_object_end(&qp->obj);
	return fv_leave(0);
}

unsigned fake_verbs_n_qps(void)
{
	return fake_verbs_count().qps;
}

struct ibv_qp *fake_verbs_qp(unsigned i)
{
	struct ibv_qp *found = NULL;
	unsigned at;

	fv_lock();
	at = fv.count.qps;
	for (struct fv_object *obj = fv.objects; obj != NULL; obj = obj->next)
		if (obj->kind == FV_K_QP && !obj->dead && --at == i)
			found = (struct ibv_qp *)((uint8_t *)obj - offsetof(struct fv_qp, obj));
	fv_unlock();
	return found;
}
