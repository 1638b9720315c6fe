/* Two fabric domains in one process over the loopback address, pumped by hand: what the tests of
 * the fabric backend share. a posts, b serves, unless a test says otherwise. */
#ifndef FABRIC_PAIR_H
#define FABRIC_PAIR_H

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/log.h"
#include "mem/guard.h"
#include "mem/region.h"
#include "transport/transport.h"

#define REGION_BYTES (4u << 20)
#define WAIT_NS      (10 * KVX_SEC)

static const struct kvx_transport_ops *const T = &kvx_fabric_ops;

struct side {
	struct kvx_dom *dom;
	struct kvx_transport_limits limits;
	struct kvx_ep *ep;
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t addr_len;
	struct kvx_mem mem;
	struct kvx_mr *mr;
	struct kvx_rkey *rkey; /* of the other side's mr */
	bool up, down;
	int down_status;
	unsigned n_done;   /* ops */
	unsigned n_failed; /* ops, of these */
	int status;        /* of the last OP_DONE */
	uint64_t cookie;
};
struct pair {
	struct kvx_dom_conf conf;
	struct side a, b;
};

static inline void side_open(struct side *s, const struct kvx_dom_conf *conf)
{
	struct kvx_why why = {{0}};

	cr_assert_eq(T->open(conf, &s->dom, &s->limits, &why), 0, "%s", why.text);
	s->addr_len = sizeof(s->addr);
	cr_assert_eq(T->listen(s->dom, 0, &s->ep, s->addr, &s->addr_len), 0);
}

static inline void side_map(struct side *s, uint32_t rights, int seed)
{
	void *p =
	    mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	cr_assert_neq(p, MAP_FAILED);
	s->mem.ops = &kvx_mem_host_ops;
	s->mem.fd = -1;
	s->mem.addr = p;
	s->mem.len_bytes = REGION_BYTES;
	s->mem.page_bytes = 4096;
	for (size_t i = 0; i < REGION_BYTES; i++)
		s->mem.addr[i] = (uint8_t)((i * 2654435761u >> 13) + (unsigned)seed);
	cr_assert_eq(T->mem_reg(s->dom, 0, &s->mem, rights, &s->mr), 0);
}

static inline void side_take(struct side *s, const struct kvx_tevent *ev)
{
	switch (ev->kind) {
	case KVX_TEV_EP_UP:
		s->up = true;
		break;
	case KVX_TEV_EP_DOWN:
		s->down = true;
		s->down_status = ev->status;
		break;
	case KVX_TEV_OP_DONE:
		s->n_done += ev->n_ops;
		s->n_failed += ev->status < 0 ? ev->n_ops : 0;
		s->status = ev->status;
		s->cookie = ev->cookie;
		break;
	default:
		cr_assert_fail("event %d", ev->kind);
	}
}

#define SIDES struct pair
#include "two_sides.h"

static inline void pair_open_conf(struct pair *p)
{
	cr_assert_eq(kvx_guard_install(), 0);
	side_open(&p->a, &p->conf);
	side_open(&p->b, &p->conf);
	sides_connect(p);
	side_map(&p->a, KVX_ACCESS_READ | KVX_ACCESS_WRITE, 1);
	side_map(&p->b, KVX_ACCESS_READ | KVX_ACCESS_WRITE, 2);
	side_import(&p->a, &p->b);
	side_import(&p->b, &p->a);
}

static inline void pair_conf(struct pair *p, const char *provider, uint64_t rma_min_bytes)
{
	*p = (struct pair){.conf = {.bind_host = "127.0.0.1",
				    .provider = provider,
				    .fabric_message_bytes = 256 << 10,
				    .fabric_queue = 4,
				    .fabric_rma_min_bytes = rma_min_bytes,
				    .mem_kinds = 1u << KVX_MEM_HOST}};
}

static inline void pair_open(struct pair *p)
{
	pair_conf(p, "tcp", UINT64_MAX);
	pair_open_conf(p);
}

static inline void side_close(struct side *s)
{
	T->rkey_free(s->rkey);
	T->mem_dereg(s->mr);
	T->fence(s->ep);
	T->ep_close(s->ep);
	T->close(s->dom);
	if (s->mem.addr != NULL)
		munmap(s->mem.addr, REGION_BYTES);
}

static inline void pair_close(struct pair *p)
{
	side_close(&p->a);
	side_close(&p->b);
}

/* n blocks of len bytes, from every place in turn to every place in reverse. */
static inline void run_blocks(struct pair *p, enum kvx_op_kind kind, uint64_t len, unsigned n)
{
	struct kvx_op *ops = calloc(n, sizeof(*ops));
	const struct side *src = kind == KVX_OP_WRITE ? &p->a : &p->b;
	const struct side *dst = kind == KVX_OP_WRITE ? &p->b : &p->a;

	for (unsigned i = 0; i < n; i++)
		ops[i] = make_op(&p->a, kind, i * len, (n - 1 - i) * len, len);
	run_ops(p, ops, n);
	cr_assert_eq(p->a.n_failed, 0, "status %d", p->a.status);
	for (unsigned i = 0; i < n; i++) {
		uint64_t from = kind == KVX_OP_WRITE ? ops[i].local_offset : ops[i].remote_offset;
		uint64_t to = kind == KVX_OP_WRITE ? ops[i].remote_offset : ops[i].local_offset;

		cr_assert_arr_eq(dst->mem.addr + to, src->mem.addr + from, len, "block %u", i);
	}
	free(ops);
}

static inline void run_all_sizes(struct pair *p)
{
	run_blocks(p, KVX_OP_WRITE, 1, 1);
	run_blocks(p, KVX_OP_WRITE, 256, 1000);
	run_blocks(p, KVX_OP_WRITE, 4096, 500);
	run_blocks(p, KVX_OP_WRITE, 16384, 200);
	run_blocks(p, KVX_OP_WRITE, 65536, 60);
	run_blocks(p, KVX_OP_READ, 1, 1);
	run_blocks(p, KVX_OP_READ, 333, 1000);
	run_blocks(p, KVX_OP_READ, 4096, 500);
	run_blocks(p, KVX_OP_READ, 16384, 200);
	run_blocks(p, KVX_OP_READ, 65536, 60);
}

#endif
