/* More lanes, keys and devices between the two domains of a gpu_pair. Include after fabric_cut.h.
 */
#ifndef FABRIC_LANE_H
#define FABRIC_LANE_H

static inline struct kvx_rkey *know(struct kvx_ep *ep, struct kvx_mr *mr)
{
	uint8_t key[64];
	int len = T->mkey_pack(mr, key, sizeof(key));
	struct kvx_rkey *rkey;

	cr_assert_eq(T->rkey_unpack(ep, key, (size_t)len, &rkey), 0);
	return rkey;
}

/* Another one between the same domains. */
struct lane {
	struct kvx_ep *a, *b;
	struct kvx_rkey *rkey; /* of b's memory */
};

static inline void lane_open(struct gpu_pair *g, struct lane *lane)
{
	uint8_t a[KVX_TRANSPORT_ADDR_MAX], b[KVX_TRANSPORT_ADDR_MAX];
	size_t a_len = sizeof(a), b_len = sizeof(b);

	cr_assert_eq(T->listen(g->p.a.dom, 0, &lane->a, a, &a_len), 0);
	cr_assert_eq(T->listen(g->p.b.dom, 0, &lane->b, b, &b_len), 0);
	g->p.a.up = g->p.b.up = false;
	cr_assert_eq(T->connect(lane->a, b, b_len), 0);
	cr_assert_eq(T->connect(lane->b, a, a_len), 0);
	PUMP_UNTIL(&g->p, g->p.a.up && g->p.b.up);
	lane->rkey = know(lane->a, g->rb.mr);
}

static inline void lane_close(struct lane *lane)
{
	T->rkey_free(lane->rkey);
	T->fence(lane->a);
	T->fence(lane->b);
	T->ep_close(lane->a);
	T->ep_close(lane->b);
}

#endif
