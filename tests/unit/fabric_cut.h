/* What the tests of messages of GPU memory that end early share. Include after fabric_gpu_fake.h.
 */
#ifndef FABRIC_CUT_H
#define FABRIC_CUT_H

#include "transport/fabric/fabric_priv.h"

#define BIG 65536u /* large enough to be announced ahead */

static inline struct kvx_op gpu_op(struct gpu_pair *g, enum kvx_op_kind kind, uint64_t at,
				   uint64_t len)
{
	struct kvx_op op = make_op(&g->p.a, kind, at, at, len);

	op.local = g->ra.mr;
	return op;
}

/* Buffers and copiers are there, so that what follows is about copies. */
static inline void warm(struct gpu_pair *g)
{
	struct kvx_op op = gpu_op(g, KVX_OP_WRITE, REGION_BYTES - 64, 64);

	run_ops(&g->p, &op, 1);
	cr_assert_eq(g->p.a.status, 0);
	op.kind = KVX_OP_READ;
	run_ops(&g->p, &op, 1);
	cr_assert_eq(g->p.a.status, 0);
	g->p.a.n_done = g->p.a.n_failed = 0;
}

/* One op is posted, and its copy is under way at that device. */
static inline void post_and_hold(struct gpu_pair *g, struct fake_gpu *gpu, enum kvx_op_kind kind,
				 uint64_t len)
{
	struct kvx_op op = gpu_op(g, kind, 0, len);

	fake_hold(gpu);
	PUMP_UNTIL(&g->p, T->post(g->p.a.ep, &op, 1) == 1);
	PUMP_UNTIL(&g->p, gpu->n_out == 1);
}

/* A pair with one device, a's (own) or b's, where the copy of an op of a's is under way. */
static inline void open_and_hold(struct gpu_pair *g, bool own, enum kvx_op_kind kind, uint64_t len)
{
	gpu_pair_open_default(g, own, !own);
	warm(g);
	post_and_hold(g, own ? &g->ga : &g->gb, kind, len);
}

static inline void expect_untouched(struct gpu_region *r, const uint8_t *before)
{
	uint8_t *now = gpu_region_image(r);

	cr_assert_arr_eq(now, before, REGION_BYTES);
	free(now);
}

/* A message of a's that its backend would not send. */
static inline void raw_send(struct pair *p, const void *buf, size_t len)
{
	struct iovec iov = {(void *)(uintptr_t)buf, len};
	void *desc = NULL;
	struct fi_msg msg = {.msg_iov = &iov, .desc = &desc, .iov_count = 1, .addr = p->a.ep->peer};

	cr_assert_eq(fi_sendmsg(p->a.ep->fid, &msg, FI_COMPLETION), 0);
}

static inline uint32_t raw_write(struct pair *p, uint8_t *out, uint32_t id)
{
	struct kvx_pack_writer w;

	kvx_pack_begin(&w, out, KVX_PACK_MAX_OPS, UINT64_MAX);
	cr_assert_eq(kvx_pack_add(&w, &p->a.rkey->key, 0, 64), 0);
	uint32_t len = kvx_pack_end(&w, KVX_PACK_WRITE, p->a.ep->peer_secret, id);
	memset(out + len, 0x11, 64);
	return len + 64;
}

/* Says that data follows, and sends none. */
static inline void announce(struct kvx_ep *ep, const struct kvx_rkey *rkey)
{
	uint8_t buf[KVX_PACK_HEAD_BYTES];
	struct kvx_pack_writer w;

	kvx_pack_begin(&w, buf, KVX_PACK_MAX_OPS, UINT64_MAX);
	cr_assert_eq(kvx_pack_add(&w, &rkey->key, 0, BIG), 0);
	uint32_t len = kvx_pack_end(&w, KVX_PACK_WRITE_AHEAD, ep->peer_secret, 0x100);
	cr_assert_eq(fi_inject(ep->fid, buf, len, ep->peer), 0);
}

#endif
