/* Two nodes on the fake transport, moved by hand, and what tests of it look at. One thread. */
#ifndef KVX_FAKE_PAIR_H
#define KVX_FAKE_PAIR_H

#include <criterion/criterion.h>

#include "mem/region.h"
#include "test_memory.h"
#include "transport/fake/fake.h"

#define BYTES      8192u
#define ALL_RIGHTS (KVX_ACCESS_READ | KVX_ACCESS_WRITE)

static const struct kvx_transport_ops *const ops = &kvx_fake_ops;

/* One node: a domain, an ep, memory that others may use. */
struct side {
	struct kvx_fake_script *script;
	struct kvx_dom *dom;
	struct kvx_transport_limits limits;
	struct kvx_ep *ep;
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t addr_len;
	uint8_t bytes[BYTES];
	struct kvx_mr *mr;
	struct kvx_rkey *rkey; /* of the other side */
};

static inline void side_open(struct side *s, struct kvx_fake_script *script, uint64_t seed)
{
	struct kvx_dom_conf conf = {.test = script};
	struct kvx_mem mem = {.addr = s->bytes, .len_bytes = BYTES, .fd = -1};

	s->script = script;
	s->rkey = NULL;
	s->addr_len = sizeof(s->addr);
	struct kvx_rail rail;
	cr_assert_eq(ops->probe(&conf, &rail, 1, NULL), 1);
	cr_assert_eq(ops->open(&conf, &s->dom, &s->limits, NULL), 0);
	cr_assert_eq(ops->listen(s->dom, 0, &s->ep, s->addr, &s->addr_len), 0);
	test_fill(s->bytes, BYTES, seed);
	cr_assert_eq(ops->mem_reg(s->dom, 0, &mem, ALL_RIGHTS, &s->mr), 0);
}

static inline void side_learn_key(struct side *s, const struct side *other)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	int len = ops->mkey_pack(other->mr, mkey, sizeof(mkey));

	cr_assert_gt(len, 0);
	cr_assert_eq(ops->rkey_unpack(s->ep, mkey, (size_t)len, &s->rkey), 0);
}

static inline void side_close(struct side *s)
{
	if (s->rkey != NULL)
		ops->rkey_free(s->rkey);
	cr_assert_eq(ops->fence(s->ep), 0);
	ops->ep_close(s->ep);
	ops->mem_dereg(s->mr);
	ops->close(s->dom);
}

static inline void expect_nothing_left(const struct kvx_fake_script *script)
{
	cr_assert_eq(script->n_doms, 0);
	cr_assert_eq(script->n_eps, 0);
	cr_assert_eq(script->n_mrs, 0);
	cr_assert_eq(script->n_rkeys, 0);
	cr_assert_eq(script->n_open_ops, 0);
}

static inline struct kvx_op op_make(const struct side *s, enum kvx_op_kind kind, uint64_t at,
				    uint64_t len, uint64_t cookie)
{
	return (struct kvx_op){.local = s->mr,
			       .remote = s->rkey,
			       .local_offset = at,
			       .remote_offset = at,
			       .len_bytes = len,
			       .cookie = cookie,
			       .kind = kind};
}

static inline int post_one(struct side *s, enum kvx_op_kind kind, uint64_t at, uint64_t len,
			   uint64_t cookie)
{
	struct kvx_op op = op_make(s, kind, at, len, cookie);

	return ops->post(s->ep, &op, 1);
}

/* The next event; kind -1 when there is none. */
static inline struct kvx_tevent next_event(struct side *s)
{
	struct kvx_tevent event;

	if (ops->progress(s->dom, &event, 1) == 1)
		return event;
	return (struct kvx_tevent){.kind = (enum kvx_tevent_kind) - 1};
}

static inline void expect_done(struct side *s, uint64_t cookie, int status)
{
	struct kvx_tevent event = next_event(s);

	cr_assert_eq(event.kind, KVX_TEV_OP_DONE, "kind %d", (int)event.kind);
	cr_assert_eq(event.cookie, cookie, "cookie %lu", event.cookie);
	cr_assert_eq(event.status, status, "status %d", event.status);
	cr_assert_eq(event.n_ops, 1);
}

static inline void expect_quiet(struct side *s)
{
	cr_assert_eq(next_event(s).kind, (enum kvx_tevent_kind) - 1);
}

static inline void pair_open(struct side *a, struct side *b, struct kvx_fake_script *script)
{
	side_open(a, script, 1);
	side_open(b, script, 2);
	cr_assert_eq(ops->connect(a->ep, b->addr, b->addr_len), 0);
	cr_assert_eq(ops->connect(b->ep, a->addr, a->addr_len), 0);
	kvx_fake_advance(script, script->latency_ns);
	cr_assert_eq(next_event(a).kind, KVX_TEV_EP_UP);
	cr_assert_eq(next_event(b).kind, KVX_TEV_EP_UP);
	side_learn_key(a, b);
	side_learn_key(b, a);
}

#endif
