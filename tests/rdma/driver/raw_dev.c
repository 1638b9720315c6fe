/* A device and single queue pairs. Every failure of set-up ends the program. */
#include "raw.h"

#include <errno.h>
#include <string.h>

#define PORT 1

void raw_dev_open(struct raw_dev *dev, struct drv_args *args)
{
	const char *name = drv_arg_str(args, "--device", NULL);
	struct ibv_device **list = ibv_get_device_list(NULL);
	struct ibv_port_attr port;

	memset(dev, 0, sizeof(*dev));
	dev->gid_index = (int)drv_arg_u64(args, "--gid-index", 1);
	for (unsigned i = 0; list != NULL && list[i] != NULL && dev->ctx == NULL; i++)
		if (name == NULL || strcmp(ibv_get_device_name(list[i]), name) == 0)
			dev->ctx = ibv_open_device(list[i]);
	if (dev->ctx == NULL)
		drv_die("no RDMA device %s", name != NULL ? name : "at all");
	ibv_free_device_list(list);
	if (ibv_query_port(dev->ctx, PORT, &port) != 0 ||
	    ibv_query_gid(dev->ctx, PORT, dev->gid_index, &dev->gid) != 0)
		drv_die("port and gid: %s", strerror(errno));
	dev->mtu = port.active_mtu;
}

void raw_qp_open(struct raw_qp *rq, const struct raw_dev *dev, struct ibv_pd *pd, uint32_t depth)
{
	struct ibv_qp_init_attr init = {
	    .qp_type = IBV_QPT_RC,
	    .cap = {.max_send_wr = depth, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1},
	};
	struct ibv_qp_attr attr = {
	    .qp_state = IBV_QPS_INIT,
	    .port_num = PORT,
	    .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
	};

	rq->cq = ibv_create_cq(dev->ctx, (int)depth + 8, NULL, NULL, 0);
	if (rq->cq == NULL)
		drv_die("create_cq: %s", strerror(errno));
	init.send_cq = rq->cq;
	init.recv_cq = rq->cq;
	rq->qp = ibv_create_qp(pd, &init);
	if (rq->qp == NULL || ibv_modify_qp(rq->qp, &attr,
					    IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT |
						IBV_QP_ACCESS_FLAGS) != 0)
		drv_die("create_qp: %s", strerror(errno));
	rq->psn = (uint32_t)drv_mix(drv_now_ns()) & 0xffffff;
}

void raw_qp_addr(const struct raw_qp *rq, const struct raw_dev *dev, struct raw_addr *addr)
{
	memset(addr, 0, sizeof(*addr));
	addr->gid = dev->gid;
	addr->qpn = rq->qp->qp_num;
	addr->psn = rq->psn;
}

void raw_qp_connect(struct raw_qp *rq, const struct raw_dev *dev, const struct raw_addr *other)
{
	struct ibv_qp_attr receive = {
	    .qp_state = IBV_QPS_RTR,
	    .path_mtu = dev->mtu,
	    .dest_qp_num = other->qpn,
	    .rq_psn = other->psn,
	    .max_dest_rd_atomic = 4,
	    .min_rnr_timer = 12,
	    .ah_attr = {.is_global = 1,
			.grh = {.dgid = other->gid,
				.sgid_index = (uint8_t)dev->gid_index,
				.hop_limit = 64},
			.port_num = PORT},
	};
	struct ibv_qp_attr send = {
	    .qp_state = IBV_QPS_RTS,
	    .timeout = 14,
	    .retry_cnt = 7,
	    .rnr_retry = 7,
	    .sq_psn = rq->psn,
	    .max_rd_atomic = 4,
	};

	if (ibv_modify_qp(rq->qp, &receive,
			  IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
			      IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) !=
		0 ||
	    ibv_modify_qp(rq->qp, &send,
			  IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
			      IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC) != 0)
		drv_die("modify_qp: %s", strerror(errno));
}

void raw_qp_close(struct raw_qp *rq)
{
	if (rq->qp != NULL)
		ibv_destroy_qp(rq->qp);
	if (rq->cq != NULL)
		ibv_destroy_cq(rq->cq);
	memset(rq, 0, sizeof(*rq));
}

void raw_post(struct raw_qp *rq, const struct raw_op *op)
{
	struct ibv_sge sge = {(uintptr_t)op->local, op->len, op->lkey};
	struct ibv_send_wr wr = {
	    .sg_list = &sge,
	    .num_sge = 1,
	    .opcode = op->write ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ,
	    .send_flags = IBV_SEND_SIGNALED,
	    .wr = {.rdma = {.remote_addr = op->remote, .rkey = op->rkey}},
	};
	struct ibv_send_wr *bad;
	int rc = ibv_post_send(rq->qp, &wr, &bad);

	if (rc != 0)
		drv_die("post_send: %s", strerror(rc));
}

int raw_wait(struct raw_qp *rq, uint64_t timeout_ms)
{
	uint64_t end = drv_now_ns() + drv_ms(timeout_ms);
	struct ibv_wc wc;
	int n;

	while ((n = ibv_poll_cq(rq->cq, 1, &wc)) == 0) {
		if (drv_now_ns() > end)
			return -1;
		drv_sleep_ms(1);
	}
	if (n < 0)
		drv_die("poll_cq says %d", n);
	return (int)wc.status;
}
