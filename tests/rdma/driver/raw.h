/* rdma_raw: verbs and packets without kvxfer, as an attacker or as a control sees them. Not linked
 * with the client library. Main thread only. */
#ifndef KVX_RDMA_RAW_H
#define KVX_RDMA_RAW_H

#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "drv.h"

struct raw_dev {
	struct ibv_context *ctx;
	union ibv_gid gid;
	int gid_index;
	enum ibv_mtu mtu;
};
/* --device, --gid-index: the first device, 1. */
void raw_dev_open(struct raw_dev *dev, struct drv_args *args);

/* One RC queue pair with its own completion queue. */
struct raw_qp {
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	uint32_t psn; /* of its first packet */
};
/* What the other side must know. */
struct raw_addr {
	union ibv_gid gid;
	uint32_t qpn, psn;
};
void raw_qp_open(struct raw_qp *rq, const struct raw_dev *dev, struct ibv_pd *pd, uint32_t depth);
void raw_qp_addr(const struct raw_qp *rq, const struct raw_dev *dev, struct raw_addr *addr);
void raw_qp_connect(struct raw_qp *rq, const struct raw_dev *dev, const struct raw_addr *other);
void raw_qp_close(struct raw_qp *rq);

struct raw_op {
	bool write;
	uint32_t lkey, rkey, len;
	void *local;
	uint64_t remote;
};
void raw_post(struct raw_qp *rq, const struct raw_op *op);
/* Status of the next completion; -1: none within timeout_ms. */
int raw_wait(struct raw_qp *rq, uint64_t timeout_ms);

int raw_late_main(struct drv_args *args);
int raw_victim_main(struct drv_args *args);
int raw_attack_main(struct drv_args *args);
int raw_forge_main(struct drv_args *args);

#endif
