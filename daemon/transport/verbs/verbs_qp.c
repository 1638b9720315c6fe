/* One queue pair: making it, taking it to INIT, towards the other side's to RTR and RTS with the
 * values of the configuration, destroying it. Any helper thread; destroying: any thread. A queue
 * pair is never put back into RESET: it is destroyed and another one made. */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "transport/verbs/verbs_priv.h"

#define PSN_MASK 0xffffffu

static int qp_to_init(const struct kvx_dom *dom, struct ibv_qp *ibqp)
{
	struct ibv_qp_attr attr = {
	    .qp_state = IBV_QPS_INIT,
	    .pkey_index = (uint16_t)dom->conf.pkey_index,
	    .port_num = dom->port,
	    .qp_access_flags = IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE,
	};

	return verbs_err(ibv_modify_qp(
	    ibqp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
}

/* Nothing is ever received into one: data goes by RDMA only. A few devices refuse a receive queue
 * of no entries, so it has one. */
static void qp_init_attr(const struct kvx_dom *dom, struct ibv_cq *cq, uint32_t depth,
			 struct ibv_qp_init_attr *out_attr)
{
	*out_attr = (struct ibv_qp_init_attr){
	    .send_cq = cq,
	    .recv_cq = cq,
	    .qp_type = IBV_QPT_RC,
	    .cap = {.max_send_wr = depth,
		    .max_recv_wr = 1,
		    .max_send_sge = dom->limits.max_sge,
		    .max_recv_sge = 1,
		    .max_inline_data = dom->limits.inline_bytes},
	};
}

int verbs_qp_make(struct kvx_dom *dom, struct ibv_pd *pd, struct ibv_cq *cq, uint32_t depth,
		  uint64_t context, struct ibv_qp **out_qp)
{
	struct ibv_qp_init_attr attr;
	struct ibv_qp *ibqp;
	int err;

	qp_init_attr(dom, cq, depth, &attr);
	attr.qp_context = (void *)(uintptr_t)context; /* a number, not a pointer */
	errno = 0;
	ibqp = ibv_create_qp(pd, &attr);
	if (ibqp == NULL)
		return verbs_err(errno != 0 ? errno : ENOMEM);
	err = qp_to_init(dom, ibqp);
	if (err < 0) {
		(void)verbs_qp_destroy(ibqp);
		return err;
	}
	*out_qp = ibqp;
	return 0;
}

int verbs_psn(uint32_t *out_psn)
{
	uint32_t psn;
	int err = verbs_random(&psn, sizeof(psn));

	if (err == 0)
		*out_psn = psn & PSN_MASK;
	return err;
}

int verbs_qp_create(struct kvx_ep *ep, struct verbs_qp *qp)
{
	struct kvx_dom *dom = ep->dom;
	struct ibv_qp *ibqp;
	int err = verbs_psn(&qp->psn);

	if (err == 0)
		err = verbs_qp_make(dom, ep->pd, dom->cq, dom->conf.sq_depth, verbs_wr_id(ep, 0, 0),
				    &ibqp);
	if (err < 0)
		return err;
	qp->qpn = ibqp->qp_num;
	atomic_store_explicit(&qp->ibqp, ibqp, memory_order_release);
	atomic_fetch_add_explicit(&ep->n_alive, 1, memory_order_relaxed);
	return 0;
}

static void qp_fill_path(const struct kvx_dom *dom, const struct verbs_end *mine,
			 const struct verbs_addr *remote, struct ibv_ah_attr *out_path)
{
	*out_path = (struct ibv_ah_attr){
	    .dlid = remote->lid,
	    .sl = (uint8_t)dom->conf.service_level,
	    .port_num = dom->port,
	    .is_global = dom->ethernet || memcmp(remote->gid, mine->gid, 8) != 0,
	    .grh = {.sgid_index = mine->gid_index,
		    .hop_limit = (uint8_t)dom->conf.hop_limit,
		    .traffic_class = (uint8_t)dom->conf.traffic_class},
	};
	memcpy(out_path->grh.dgid.raw, remote->gid, sizeof(remote->gid));
}

int verbs_qp_join(const struct kvx_dom *dom, struct ibv_qp *ibqp, const struct verbs_end *mine,
		  const struct verbs_addr *remote, const struct verbs_addr_qp *remote_qp)
{
	uint32_t reads = dom->conf.max_rd_atomic;
	struct ibv_qp_attr attr = {
	    .qp_state = IBV_QPS_RTR,
	    .path_mtu = remote->mtu < mine->mtu ? remote->mtu : mine->mtu,
	    .dest_qp_num = remote_qp->qpn,
	    .rq_psn = remote_qp->psn,
	    .max_dest_rd_atomic = (uint8_t)dom->max_dest_reads,
	    .min_rnr_timer = (uint8_t)dom->conf.min_rnr_timer,
	};
	int err;

	qp_fill_path(dom, mine, remote, &attr.ah_attr);
	err = verbs_err(ibv_modify_qp(ibqp, &attr,
				      IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
					  IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
					  IBV_QP_MIN_RNR_TIMER));
	if (err < 0)
		return err;
	/* More reads than that may be posted: the device starts no more of them at once, and what
	 * the other side can serve is in its address. */
	if (reads > remote->max_reads)
		reads = remote->max_reads;
	attr = (struct ibv_qp_attr){
	    .qp_state = IBV_QPS_RTS,
	    .sq_psn = mine->psn,
	    .timeout = (uint8_t)dom->conf.timeout,
	    .retry_cnt = (uint8_t)dom->conf.retry_count,
	    .rnr_retry = (uint8_t)dom->conf.rnr_retry,
	    .max_rd_atomic = (uint8_t)reads,
	};
	return verbs_err(ibv_modify_qp(ibqp, &attr,
				       IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT |
					   IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
					   IBV_QP_MAX_QP_RD_ATOMIC));
}

int verbs_qp_connect(struct kvx_ep *ep, struct verbs_qp *qp, const struct verbs_addr *remote,
		     const struct verbs_addr_qp *remote_qp)
{
	struct ibv_qp *ibqp = atomic_load_explicit(&qp->ibqp, memory_order_acquire);
	struct verbs_end mine = {.gid_index = ep->gid_index, .mtu = ep->mtu, .psn = qp->psn};

	memcpy(mine.gid, ep->gid, sizeof(mine.gid));
	return verbs_qp_join(ep->dom, ibqp, &mine, remote, remote_qp);
}

int verbs_qp_destroy(struct ibv_qp *ibqp)
{
	uint32_t qpn = ibqp->qp_num;
	struct ibv_context *context = ibqp->context;
	int err = verbs_err(ibv_destroy_qp(ibqp));

	if (err == -EIO && verbs_device_is_gone(context))
		return 0; /* the kernel has taken it down with the device */
	if (err < 0)
		kvx_error("verbs: queue pair %u cannot be destroyed: %s", qpn, strerror(-err));
	return err;
}

/* Inline space is known only from a queue pair that was made with it; its other values are the ones
 * that every ep will ask for. */
int verbs_qp_try(struct kvx_dom *dom, struct kvx_why *why)
{
	struct ibv_pd *pd = verbs_dom_pd(dom, 0);
	struct ibv_qp *ibqp = NULL;
	struct ibv_qp_init_attr attr;
	int err = ENOMEM;

	while (pd != NULL && ibqp == NULL) {
		qp_init_attr(dom, dom->cq, dom->conf.sq_depth, &attr);
		errno = 0;
		ibqp = ibv_create_qp(pd, &attr);
		err = errno;
		if (ibqp == NULL && (err != EINVAL || dom->limits.inline_bytes == 0))
			break;
		if (ibqp == NULL)
			dom->limits.inline_bytes /= 2;
	}
	if (ibqp == NULL)
		return kvx_why(
		    why, verbs_err(err != 0 ? err : ENOMEM),
		    "verbs: %s makes no queue pair of verbs.sq_depth %u, verbs.max_sge %u: "
		    "%s (is the memlock limit high enough?)",
		    dom->name, dom->conf.sq_depth, dom->limits.max_sge, strerror(err));
	if (dom->limits.inline_bytes > attr.cap.max_inline_data)
		dom->limits.inline_bytes = attr.cap.max_inline_data;
	if (dom->limits.inline_bytes < dom->conf.inline_bytes)
		kvx_info("verbs: %s: %u inline bytes instead of %u: the device has no more",
			 dom->name, dom->limits.inline_bytes, dom->conf.inline_bytes);
	err = verbs_qp_destroy(ibqp);
	return err == 0 ? 0 : kvx_why(why, err, "verbs: %s destroys no queue pair", dom->name);
}
