/* Two verbs domains with a region of GPU memory each, joined as verbs_rig.h joins them. One thread,
 * pumped by hand. */
#ifndef KVX_VERBS_GPU_PAIR_H
#define KVX_VERBS_GPU_PAIR_H

#include "verbs_gpu_rig.h"

#include "transport/verbs/verbs_priv.h"

struct grig {
	struct rig r;
	struct gmem a, b; /* of GPU 1 at side a, of GPU 2 at side b */
};

static inline void start_conf(struct grig *g, const struct kvx_verbs_conf *conf)
{
	rig_reset();
	rig_open_conf(&g->r, conf);
	gpu_rig_init();
	gmem_make(&g->a, 1, 3, 13, 64);
	gmem_make(&g->b, 2, 2, 9, 128);
}

static inline void reg_both(struct grig *g, uint32_t rights)
{
	cr_assert_eq(gmem_reg(&g->a, &g->r.a, 0, rights), 0);
	cr_assert_eq(gmem_reg(&g->b, &g->r.b, 0, rights), 0);
	gmem_import(&g->b, &g->r.a);
}

static inline void start(struct grig *g)
{
	struct kvx_verbs_conf conf = rig_conf();

	start_conf(g, &conf);
	reg_both(g, GPU_RW);
}

static inline void finish(struct grig *g)
{
	fake_verbs_gpu_delay(false);
	if (g->b.rkey != NULL)
		gmem_forget(&g->b);
	gmem_dereg(&g->a);
	gmem_dereg(&g->b);
	gmem_free(&g->a);
	gmem_free(&g->b);
	side_close(&g->r.a);
	side_close(&g->r.b);
	gpu_rig_fini();
	FAKE_VERBS_END();
	KVX_TEST_END();
}

static inline struct kvx_op gop(const struct grig *g, enum kvx_op_kind kind, uint64_t local,
				uint64_t remote, uint64_t len)
{
	return (struct kvx_op){.local = g->a.mr,
			       .remote = g->b.rkey,
			       .local_offset = local,
			       .remote_offset = remote,
			       .len_bytes = len,
			       .cookie = 5,
			       .kind = kind};
}

static inline void expect_same(const struct gmem *to, uint64_t to_at, const struct gmem *from,
			       uint64_t from_at, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		cr_assert_eq(*gmem_at(to, to_at + i), *gmem_at(from, from_at + i),
			     "byte %llu is not visible", (unsigned long long)i);
}

/* The whole region in ops that run over the ends of pieces on both sides. */
static inline void move_all(struct grig *g, enum kvx_op_kind kind, uint64_t len)
{
	struct kvx_op ops[GPU_BYTES / 1024];
	unsigned n = 0;

	for (uint64_t at = 0; at < GPU_BYTES; at += len)
		ops[n++] = gop(g, kind, at, at, len < GPU_BYTES - at ? len : GPU_BYTES - at);
	run_ops(&g->r, ops, n);
	cr_assert_eq(g->r.a.n_failed, 0, "%s", g->r.a.text);
	expect_same(&g->b, 0, &g->a, 0, GPU_BYTES);
}

/* In steps, for tests that do something between them: the lane's end, */
static inline void end_lane(struct grig *g)
{
	gmem_forget(&g->b);
	side_end_ep(&g->r.a);
	side_end_ep(&g->r.b);
	g->r.a.up = g->r.b.up = false;
	g->r.a.n_downs = g->r.b.n_downs = 0;
}

/* and, when a listens again, the rest of the next one. */
static inline void join_lane(struct grig *g)
{
	side_listen(&g->r.b, 0);
	sides_connect(&g->r);
	gmem_import(&g->b, &g->r.a);
}

static inline void relisten(struct grig *g)
{
	end_lane(g);
	side_listen(&g->r.a, 0);
	join_lane(g);
}

#endif
