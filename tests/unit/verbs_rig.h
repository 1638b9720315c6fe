/* Two verbs domains in one process on the stand-in for libibverbs, devices "fake0" and "fake1",
 * pumped by hand: what the tests of the verbs backend share. a posts, b is reached, unless a test
 * says otherwise. */
#ifndef VERBS_RIG_H
#define VERBS_RIG_H

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/log.h"
#include "fake_verbs.h"
#include "mem/guard.h"
#include "mem/region.h"
#include "test_end.h"
#include "test_memory.h"
#include "transport/transport.h"

#define REGION_BYTES (1u << 20)
#define WAIT_NS      (10 * KVX_SEC)
#define COOKIES      4096u

static const struct kvx_transport_ops *const T = &kvx_verbs_ops;

struct side {
	struct kvx_dom_conf conf;
	struct kvx_rail rail;
	struct kvx_dom *dom;
	struct kvx_transport_limits limits;
	struct kvx_ep *ep;
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t addr_len;
	struct kvx_mem mem;
	struct kvx_mr *mr;
	struct kvx_rkey *rkey; /* of the other side's mr */
	bool up, lost, device_up;
	unsigned n_downs;
	int down_status, down_vendor;
	const char *down_text;
	unsigned n_done;   /* ops reported */
	unsigned n_failed; /* of these */
	int status;        /* of the last OP_DONE that failed; 0: none */
	int vendor;
	const char *text;
	unsigned done[COOKIES]; /* ops reported, by cookie */
	unsigned failed[COOKIES];
};
struct rig {
	struct side a, b;
};

static inline struct kvx_verbs_conf rig_conf(void)
{
	return (struct kvx_verbs_conf){
	    .gid_index = -1,
	    .qps_per_lane = 2,
	    .sq_depth = 64,
	    .post_batch = 16,
	    .stripe_bytes = 64 << 10,
	    .max_rd_atomic = 16,
	    .timeout = 14,
	    .retry_count = 7,
	    .rnr_retry = 7,
	    .min_rnr_timer = 12,
	    .hop_limit = 64,
	    .flush = true,
	    .settle_ms = 1,
	};
}

static inline void side_rail(struct side *s, const char *name)
{
	struct kvx_rail rails[KVX_MAX_RAILS];
	struct kvx_why why = {{0}};
	int n = T->probe(&s->conf, rails, KVX_MAX_RAILS, &why);

	cr_assert_gt(n, 0, "%s", why.text);
	for (int i = 0; i < n; i++)
		if (strcmp(rails[i].name, name) == 0)
			s->rail = rails[i];
	cr_assert(s->rail.usable, "%s: %s", name, s->rail.reason);
	s->conf.rail = &s->rail;
}

static inline void side_dom(struct side *s, const char *rail, const struct kvx_verbs_conf *conf)
{
	struct kvx_why why = {{0}};

	s->conf = (struct kvx_dom_conf){.verbs = *conf,
					.mem_kinds = 1u << KVX_MEM_HOST};
	side_rail(s, rail);
	cr_assert_eq(T->open(&s->conf, &s->dom, &s->limits, &why), 0, "%s", why.text);
}

static inline void side_listen(struct side *s, uint32_t tenant)
{
	s->addr_len = sizeof(s->addr);
	cr_assert_eq(T->listen(s->dom, tenant, &s->ep, s->addr, &s->addr_len), 0);
}

static inline void side_map(struct side *s, uint32_t tenant, uint32_t rights, uint64_t seed)
{
	void *p =
	    mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	cr_assert_neq(p, MAP_FAILED);
	s->mem = (struct kvx_mem){.ops = &kvx_mem_host_ops,
				  .fd = -1,
				  .addr = p,
				  .len_bytes = REGION_BYTES,
				  .page_bytes = 4096};
	test_fill(s->mem.addr, REGION_BYTES, seed);
	cr_assert_eq(T->mem_reg(s->dom, tenant, &s->mem, rights, &s->mr), 0);
}

static inline void side_take_done(struct side *s, const struct kvx_tevent *ev)
{
	cr_assert_gt(ev->n_ops, 0);
	cr_assert_lt(ev->cookie, COOKIES);
	s->n_done += ev->n_ops;
	s->done[ev->cookie] += ev->n_ops;
	if (ev->status == 0)
		return;
	s->n_failed += ev->n_ops;
	s->failed[ev->cookie] += ev->n_ops;
	s->status = ev->status;
	s->vendor = ev->vendor_code;
	s->text = ev->text;
}

static inline void side_take(struct side *s, const struct kvx_tevent *ev)
{
	switch (ev->kind) {
	case KVX_TEV_EP_UP:
		cr_assert_eq(ev->ep, s->ep);
		cr_assert(!s->up && s->n_downs == 0, "up once, and before down");
		s->up = true;
		break;
	case KVX_TEV_EP_DOWN:
		cr_assert_eq(ev->ep, s->ep);
		cr_assert_lt(ev->status, 0);
		cr_assert_not_null(ev->text);
		s->n_downs++;
		s->down_status = ev->status;
		s->down_vendor = ev->vendor_code;
		s->down_text = ev->text;
		break;
	case KVX_TEV_OP_DONE:
		side_take_done(s, ev);
		break;
	case KVX_TEV_DEVICE_LOST:
		s->lost = true;
		break;
	case KVX_TEV_DEVICE_UP:
		s->device_up = true;
		break;
	default:
		cr_assert_fail("event %d", ev->kind);
	}
}

#define SIDES struct rig
#include "two_sides.h"

static inline void rig_settle(struct rig *r)
{
	for (unsigned i = 0; i < 50; i++) {
		fake_verbs_run(1000);
		pump(r);
	}
}

static inline void rig_open_conf(struct rig *r, const struct kvx_verbs_conf *conf)
{
	const uint32_t rights = KVX_ACCESS_READ | KVX_ACCESS_WRITE;

	memset(r, 0, sizeof(*r));
	cr_assert_eq(kvx_guard_install(), 0);
	side_dom(&r->a, "fake0:1", conf);
	side_dom(&r->b, "fake1:1", conf);
	side_listen(&r->a, 0);
	side_listen(&r->b, 0);
	sides_connect(r);
	side_map(&r->a, 0, rights, 1);
	side_map(&r->b, 0, rights, 2);
	side_import(&r->a, &r->b);
	side_import(&r->b, &r->a);
}

static inline void rig_reset(void)
{
	fake_verbs_reset();
	fake_verbs_add("fake1");
	kvx_log_set_level(KVX_LOG_WARN);
}

static inline void rig_open(struct rig *r)
{
	struct kvx_verbs_conf conf = rig_conf();

	rig_reset();
	rig_open_conf(r, &conf);
}

static inline void side_end_ep(struct side *s)
{
	if (s->ep == NULL)
		return;
	if (s->rkey != NULL)
		T->rkey_free(s->rkey);
	s->rkey = NULL;
	cr_assert_eq(T->fence(s->ep), 0);
	T->ep_close(s->ep);
	s->ep = NULL;
}

static inline void side_close(struct side *s)
{
	side_end_ep(s);
	if (s->mr != NULL)
		T->mem_dereg(s->mr);
	T->close(s->dom);
	if (s->mem.addr != NULL)
		munmap(s->mem.addr, REGION_BYTES);
}

/* Ends a test: everything back, nothing done wrong. */
static inline void rig_close(struct rig *r)
{
	side_close(&r->a);
	side_close(&r->b);
	FAKE_VERBS_END();
}

#endif
