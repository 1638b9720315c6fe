/* The fake transport keeps the contract that all others are held to, and fails as scripted. */
#include "transport/fake/fake.h"

#include <errno.h>
#include <string.h>

#include "fault_alloc.h"
#include "mem/region.h"
#include "test_end.h"
#include "test_memory.h"

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

static void side_open(struct side *s, struct kvx_fake_script *script, uint64_t seed)
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

static void side_learn_key(struct side *s, const struct side *other)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	int len = ops->mkey_pack(other->mr, mkey, sizeof(mkey));

	cr_assert_gt(len, 0);
	cr_assert_eq(ops->rkey_unpack(s->ep, mkey, (size_t)len, &s->rkey), 0);
}

static void side_close(struct side *s)
{
	if (s->rkey != NULL)
		ops->rkey_free(s->rkey);
	cr_assert_eq(ops->fence(s->ep), 0);
	ops->ep_close(s->ep);
	ops->mem_dereg(s->mr);
	ops->close(s->dom);
}

static void expect_nothing_left(const struct kvx_fake_script *script)
{
	cr_assert_eq(script->n_doms, 0);
	cr_assert_eq(script->n_eps, 0);
	cr_assert_eq(script->n_mrs, 0);
	cr_assert_eq(script->n_rkeys, 0);
	cr_assert_eq(script->n_open_ops, 0);
}

static struct kvx_op op_make(const struct side *s, enum kvx_op_kind kind, uint64_t at, uint64_t len,
			     uint64_t cookie)
{
	return (struct kvx_op){.local = s->mr,
			       .remote = s->rkey,
			       .local_offset = at,
			       .remote_offset = at,
			       .len_bytes = len,
			       .cookie = cookie,
			       .kind = kind};
}

static int post_one(struct side *s, enum kvx_op_kind kind, uint64_t at, uint64_t len,
		    uint64_t cookie)
{
	struct kvx_op op = op_make(s, kind, at, len, cookie);

	return ops->post(s->ep, &op, 1);
}

/* The next event; kind -1 when there is none. */
static struct kvx_tevent next_event(struct side *s)
{
	struct kvx_tevent event;

	if (ops->progress(s->dom, &event, 1) == 1)
		return event;
	return (struct kvx_tevent){.kind = (enum kvx_tevent_kind) - 1};
}

static void expect_done(struct side *s, uint64_t cookie, int status)
{
	struct kvx_tevent event = next_event(s);

	cr_assert_eq(event.kind, KVX_TEV_OP_DONE, "kind %d", (int)event.kind);
	cr_assert_eq(event.cookie, cookie, "cookie %lu", event.cookie);
	cr_assert_eq(event.status, status, "status %d", event.status);
	cr_assert_eq(event.n_ops, 1);
}

static void expect_quiet(struct side *s)
{
	cr_assert_eq(next_event(s).kind, (enum kvx_tevent_kind) - 1);
}

static void pair_open(struct side *a, struct side *b, struct kvx_fake_script *script)
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

Test(fake, loopback_moves_bytes_at_the_virtual_moment)
{
	struct kvx_fake_script script = {.latency_ns = 1000};
	static struct side s;
	struct kvx_mem mem = {.fd = -1};
	uint8_t target[64] = {0}, mkey[KVX_TRANSPORT_MKEY_MAX];
	struct kvx_mr *mr;

	side_open(&s, &script, 1);
	mem.addr = target;
	mem.len_bytes = sizeof(target);
	cr_assert_eq(ops->mem_reg(s.dom, 0, &mem, ALL_RIGHTS, &mr), 0);
	int len = ops->mkey_pack(mr, mkey, sizeof(mkey));
	cr_assert_eq(ops->rkey_unpack(s.ep, mkey, (size_t)len, &s.rkey), 0);
	cr_assert_eq(ops->arm(s.dom), 0);
	cr_assert_eq(post_one(&s, KVX_OP_WRITE, 0, 64, 9), 1);
	cr_assert_eq(ops->arm(s.dom), -EAGAIN);
	cr_assert_eq(kvx_fake_next_ns(&script), 1000);
	kvx_fake_advance(&script, 999);
	expect_quiet(&s);
	cr_assert_eq(target[0], 0);
	kvx_fake_advance(&script, 1);
	cr_assert_eq(memcmp(target, s.bytes, 64), 0); /* landed before anyone asked */
	expect_done(&s, 9, 0);
	cr_assert_eq(kvx_fake_next_ns(&script), UINT64_MAX);
	ops->mem_dereg(mr);
	side_close(&s);
	expect_nothing_left(&script);
	KVX_TEST_END();
}

Test(fake, two_domains_read_and_write_each_other)
{
	struct kvx_fake_script script = {.latency_ns = 500};
	static struct side a, b;

	pair_open(&a, &b, &script);
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 100, 50, 1), 1);
	cr_assert_eq(post_one(&b, KVX_OP_READ, 1000, 50, 2), 1);
	kvx_fake_advance(&script, 500);
	expect_done(&a, 1, 0);
	expect_done(&b, 2, 0);
	for (unsigned i = 0; i < 50; i++) {
		cr_assert_eq(b.bytes[100 + i], test_byte(1, 100 + i));
		cr_assert_eq(b.bytes[1000 + i], test_byte(1, 1000 + i));
	}
	cr_assert_eq(b.bytes[150], test_byte(2, 150));
	side_close(&a);
	side_close(&b);
	expect_nothing_left(&script);
	KVX_TEST_END();
}

Test(fake, bandwidth_is_shared_by_the_ops_of_an_ep)
{
	struct kvx_fake_script script = {.latency_ns = 100, .bytes_per_us = 1000};
	static struct side a, b;

	pair_open(&a, &b, &script);
	uint64_t start = script.now_ns;
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(post_one(&a, KVX_OP_WRITE, i * 2000, 2000, i), 1);
	for (unsigned i = 0; i < 3; i++) {
		cr_assert_eq(kvx_fake_next_ns(&script), start + (i + 1) * 2000 + 100);
		kvx_fake_advance(&script, kvx_fake_next_ns(&script) - script.now_ns);
		expect_done(&a, i, 0);
	}
	side_close(&a);
	side_close(&b);
	KVX_TEST_END();
}

Test(fake, connect_to_nobody_ends_in_ep_down)
{
	struct kvx_fake_script script = {.latency_ns = 100};
	static struct side a, b;

	side_open(&a, &script, 1);
	side_open(&b, &script, 2);
	side_close(&b);
	cr_assert_eq(ops->connect(a.ep, b.addr, b.addr_len), 0);
	expect_quiet(&a);
	kvx_fake_advance(&script, 100);
	struct kvx_tevent event = next_event(&a);
	cr_assert_eq(event.kind, KVX_TEV_EP_DOWN);
	cr_assert_eq(event.status, -EHOSTUNREACH);
	cr_assert_eq(event.ep, a.ep);
	cr_assert_eq(ops->connect(a.ep, "x", 1), -EISCONN);
	side_close(&a);
	expect_nothing_left(&script);
	KVX_TEST_END();
}

Test(fake, in_order_unless_reordering_is_scripted)
{
	struct kvx_fake_script script = {.latency_ns = 10, .jitter_ns = 100000, .seed = 3};
	static struct side a, b;
	unsigned n_swapped = 0;

	pair_open(&a, &b, &script);
	for (unsigned i = 0; i < 20; i++)
		cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 8, i), 1);
	kvx_fake_advance(&script, 1000000);
	for (unsigned i = 0; i < 20; i++)
		expect_done(&a, i, 0);
	script.reorder = true;
	for (unsigned i = 0; i < 20; i++)
		cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 8, i), 1);
	kvx_fake_advance(&script, 1000000);
	uint64_t seen = 0;
	for (unsigned i = 0; i < 20; i++) {
		struct kvx_tevent event = next_event(&a);

		cr_assert_eq(event.kind, KVX_TEV_OP_DONE);
		cr_assert_not(seen & 1ull << event.cookie);
		seen |= 1ull << event.cookie;
		n_swapped += event.cookie != i;
	}
	cr_assert_eq(seen, (1ull << 20) - 1);
	cr_assert_gt(n_swapped, 5);
	side_close(&a);
	side_close(&b);
	KVX_TEST_END();
}

Test(fake, short_posts_and_a_full_queue)
{
	struct kvx_fake_script script = {.latency_ns = 10, .post_max = 3, .queue_ops = 5};
	static struct side a, b;
	struct kvx_op many[8];

	pair_open(&a, &b, &script);
	for (unsigned i = 0; i < 8; i++)
		many[i] = op_make(&a, KVX_OP_WRITE, i * 10, 10, 6);
	cr_assert_eq(ops->post(a.ep, many, 8), 3);
	cr_assert_eq(ops->post(a.ep, many + 3, 5), 2);
	cr_assert_eq(ops->post(a.ep, many + 5, 3), 0);
	kvx_fake_advance(&script, 10);
	struct kvx_tevent event = next_event(&a);
	cr_assert_eq(event.n_ops, 5); /* coalesced */
	cr_assert_eq(ops->post(a.ep, many + 5, 3), 3);
	side_close(&a);
	side_close(&b);
	expect_nothing_left(&script);
	KVX_TEST_END();
}

Test(fake, dropped_ops_come_back_from_the_fence_only)
{
	for (unsigned lands = 0; lands < 2; lands++) {
		struct kvx_fake_script script = {
		    .latency_ns = 10, .drop_nth_op = 2, .drop_lands = lands != 0};
		static struct side a, b;

		pair_open(&a, &b, &script);
		for (unsigned i = 0; i < 3; i++)
			cr_assert_eq(post_one(&a, KVX_OP_WRITE, i * 10, 10, i), 1);
		kvx_fake_advance(&script, 1000000);
		expect_done(&a, 0, 0);
		expect_done(&a, 2, 0);
		expect_quiet(&a);
		cr_assert_eq(b.bytes[10], test_byte(lands ? 1 : 2, 10));
		cr_assert_eq(ops->fence(a.ep), 0);
		expect_done(&a, 1, -ECANCELED);
		side_close(&a);
		side_close(&b);
		expect_nothing_left(&script);
	}
	KVX_TEST_END();
}

Test(fake, nothing_lands_after_the_fence)
{
	struct kvx_fake_script script = {.latency_ns = 1000};
	static struct side a, b;

	pair_open(&a, &b, &script);
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, BYTES, 1), 1);
	cr_assert_eq(post_one(&b, KVX_OP_WRITE, 0, BYTES, 2), 1); /* inbound for a */
	cr_assert_eq(ops->fence(a.ep), 0);
	kvx_fake_advance(&script, 1000000);
	for (unsigned i = 0; i < BYTES; i++) {
		cr_assert_eq(a.bytes[i], test_byte(1, i));
		cr_assert_eq(b.bytes[i], test_byte(2, i));
	}
	expect_done(&a, 1, -ECANCELED);
	expect_done(&b, 2, -EHOSTDOWN);
	cr_assert_eq(next_event(&b).kind, KVX_TEV_EP_DOWN);
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 8, 3), -ESHUTDOWN);
	cr_assert_eq(post_one(&b, KVX_OP_WRITE, 0, 8, 3), -EHOSTDOWN);
	side_close(&a);
	side_close(&b);
	expect_nothing_left(&script);
	KVX_TEST_END();
}

Test(fake, lease_holds_inbound_ops_until_it_is_extended)
{
	struct kvx_fake_script script = {.latency_ns = 100};
	static struct side a, b;

	pair_open(&a, &b, &script);
	ops->lease(b.ep, script.now_ns + 50);
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 10, 1), 1);
	cr_assert_eq(post_one(&b, KVX_OP_WRITE, 500, 10, 2), 1); /* own ops of b go on */
	kvx_fake_advance(&script, 1000);
	expect_quiet(&a);
	expect_done(&b, 2, 0);
	cr_assert_eq(b.bytes[0], test_byte(2, 0));
	ops->lease(b.ep, UINT64_MAX);
	kvx_fake_advance(&script, 0);
	expect_done(&a, 1, 0);
	cr_assert_eq(b.bytes[0], test_byte(1, 0));
	side_close(&a);
	side_close(&b);
	KVX_TEST_END();
}

Test(fake, dereg_of_the_target_stops_what_is_on_its_way)
{
	struct kvx_fake_script script = {.latency_ns = 100};
	struct kvx_mem mem = {.fd = -1, .len_bytes = 16};
	static struct side a, b;
	uint8_t target[16] = {0}, mkey[KVX_TRANSPORT_MKEY_MAX];
	struct kvx_mr *mr;

	pair_open(&a, &b, &script);
	mem.addr = target;
	cr_assert_eq(ops->mem_reg(b.dom, 0, &mem, ALL_RIGHTS, &mr), 0);
	ops->rkey_free(a.rkey);
	int len = ops->mkey_pack(mr, mkey, sizeof(mkey));
	cr_assert_eq(ops->rkey_unpack(a.ep, mkey, (size_t)len, &a.rkey), 0);
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 16, 1), 1);
	ops->mem_dereg(mr);
	kvx_fake_advance(&script, 100);
	expect_done(&a, 1, -EOWNERDEAD);
	cr_assert_eq(target[0], 0);
	struct kvx_rkey *none;
	cr_assert_eq(ops->rkey_unpack(a.ep, mkey, (size_t)len, &none), -EINVAL);
	side_close(&a);
	side_close(&b);
	expect_nothing_left(&script);
	KVX_TEST_END();
}

Test(fake, scripted_losses_at_the_nth_op)
{
	struct kvx_fake_script script = {
	    .latency_ns = 100, .fail_nth_op = 1, .fail_err = -EIO, .ep_down_at_op = 3};
	static struct side a, b;

	pair_open(&a, &b, &script);
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 100, 1), 1);
	kvx_fake_advance(&script, 100);
	expect_done(&a, 1, -EIO);
	cr_assert_eq(b.bytes[49], test_byte(1, 49)); /* half of it landed */
	cr_assert_eq(b.bytes[50], test_byte(2, 50));
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 200, 10, 2), 1);
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 300, 10, 3), 1);
	expect_done(&a, 2, -EHOSTDOWN);
	expect_done(&a, 3, -EHOSTDOWN);
	cr_assert_eq(next_event(&a).kind, KVX_TEV_EP_DOWN);
	cr_assert_eq(next_event(&b).kind, KVX_TEV_EP_DOWN);
	kvx_fake_advance(&script, 1000);
	cr_assert_eq(b.bytes[200], test_byte(2, 200));
	side_close(&a);
	side_close(&b);
	expect_nothing_left(&script);
	KVX_TEST_END();
}

Test(fake, lost_device_reports_its_ops_after_the_fence)
{
	struct kvx_fake_script script = {.latency_ns = 100, .device_lost_at_op = 1};
	static struct side a, b;

	pair_open(&a, &b, &script);
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 100, 1), 1);
	kvx_fake_advance(&script, 1000);
	cr_assert_eq(next_event(&a).kind, KVX_TEV_DEVICE_LOST);
	expect_quiet(&a);
	cr_assert_eq(b.bytes[0], test_byte(2, 0));
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 100, 1), -ENODEV);
	cr_assert_eq(ops->fence(a.ep), 0);
	expect_done(&a, 1, -ECANCELED);
	side_close(&a);
	side_close(&b);
	KVX_TEST_END();
}

Test(fake, each_slot_fails_at_its_nth_call)
{
	struct kvx_fake_script script = {0};
	struct kvx_dom_conf conf = {.test = &script};
	struct kvx_transport_limits limits;
	struct kvx_tevent event;
	struct kvx_dom *dom;
	struct kvx_ep *ep;
	struct kvx_why why;
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t len = sizeof(addr);

	script.faults[KVX_FAKE_OPEN] = (struct kvx_fake_fault){2, -ENODEV};
	script.faults[KVX_FAKE_LISTEN] = (struct kvx_fake_fault){1, -EADDRINUSE};
	script.faults[KVX_FAKE_PROGRESS] = (struct kvx_fake_fault){3, -EIO};
	cr_assert_eq(ops->open(&conf, &dom, &limits, &why), 0);
	struct kvx_dom *second;
	cr_assert_eq(ops->open(&conf, &second, &limits, &why), -ENODEV);
	cr_assert_neq(why.text[0], '\0');
	cr_assert_eq(ops->listen(dom, 0, &ep, addr, &len), -EADDRINUSE);
	cr_assert_eq(ops->progress(dom, &event, 1), 0);
	cr_assert_eq(ops->progress(dom, &event, 1), 0);
	cr_assert_eq(ops->progress(dom, &event, 1), -EIO);
	cr_assert_eq(ops->progress(dom, &event, 1), 0);
	cr_assert_eq(script.calls[KVX_FAKE_PROGRESS], 4);
	ops->close(dom);
	cr_assert_eq(ops->open(&(struct kvx_dom_conf){0}, &dom, &limits, &why), -EINVAL);
	KVX_TEST_END();
}

Test(fake, the_same_seed_gives_the_same_run)
{
	uint64_t order[2][16];

	for (unsigned run = 0; run < 2; run++) {
		struct kvx_fake_script script = {
		    .latency_ns = 10, .jitter_ns = 5000, .seed = 77, .reorder = true};
		static struct side a, b;

		pair_open(&a, &b, &script);
		for (unsigned i = 0; i < 16; i++)
			cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 8, i), 1);
		kvx_fake_advance(&script, 100000);
		for (unsigned i = 0; i < 16; i++)
			order[run][i] = next_event(&a).cookie;
		side_close(&a);
		side_close(&b);
	}
	cr_assert_eq(memcmp(order[0], order[1], sizeof(order[0])), 0);
	KVX_TEST_END();
}

Test(fake, rails_are_found_and_opened_by_name)
{
	struct kvx_fake_script script = {.n_rails = 3, .bad_rails = 1u << 1};
	struct kvx_rail rails[KVX_MAX_RAILS];
	struct kvx_dom_conf conf = {.test = &script};
	struct kvx_transport_limits limits;
	struct kvx_dom *dom;
	struct kvx_why why;

	cr_assert_eq(ops->probe(&conf, rails, 2, &why), 2); /* no more than there is room for */
	cr_assert_eq(ops->probe(&conf, rails, KVX_MAX_RAILS, &why), 3);
	cr_assert_str_eq(rails[2].name, "fake2");
	for (unsigned i = 0; i < 3; i++) {
		cr_assert_eq(rails[i].usable, i != 1);
		cr_assert_eq(rails[i].reason[0] == '\0', i != 1);
		conf.rail = &rails[i];
		cr_assert_eq(ops->open(&conf, &dom, &limits, &why), i == 1 ? -ENODEV : 0);
		if (i != 1)
			ops->close(dom);
	}
	expect_nothing_left(&script);
	KVX_TEST_END();
}

Test(fake, a_device_that_is_up_again_says_so_once)
{
	struct kvx_fake_script script = {0};
	static struct side s;

	side_open(&s, &script, 1);
	kvx_fake_device_up(&script, s.dom);
	cr_assert_eq(ops->arm(s.dom), -EAGAIN);
	cr_assert_eq(next_event(&s).kind, KVX_TEV_DEVICE_UP);
	expect_quiet(&s);
	side_close(&s);
	KVX_TEST_END();
}

/* An ep of tenant 1 between two nodes; each has memory of tenant 1 and of tenant 0. */
static void tenants_open(struct side *a, struct side *b, struct kvx_fake_script *script,
			 struct kvx_mr *mrs[2])
{
	struct side *sides[] = {a, b};

	side_open(a, script, 1);
	side_open(b, script, 2);
	for (unsigned i = 0; i < 2; i++) {
		struct side *s = sides[i];
		struct kvx_mem mem = {.addr = s->bytes, .len_bytes = BYTES, .fd = -1};

		cr_assert_eq(ops->fence(s->ep), 0);
		ops->ep_close(s->ep);
		cr_assert_eq(ops->listen(s->dom, 1, &s->ep, s->addr, &s->addr_len), 0);
		cr_assert_eq(ops->mem_reg(s->dom, 1, &mem, ALL_RIGHTS, &mrs[i]), 0);
	}
	cr_assert_eq(ops->connect(a->ep, b->addr, b->addr_len), 0);
	cr_assert_eq(ops->connect(b->ep, a->addr, a->addr_len), 0);
	cr_assert_eq(next_event(a).kind, KVX_TEV_EP_UP);
}

Test(fake, an_ep_to_another_node_reaches_memory_of_its_own_tenant_only)
{
	struct kvx_fake_script script = {0};
	static struct side a, b;
	struct kvx_mr *mrs[2];

	tenants_open(&a, &b, &script, mrs);
	for (unsigned bad = 0; bad < 4; bad++) { /* bit 0: local, bit 1: remote */
		uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
		int len = ops->mkey_pack(bad & 2 ? b.mr : mrs[1], mkey, sizeof(mkey));

		cr_assert_eq(ops->rkey_unpack(a.ep, mkey, (size_t)len, &a.rkey), 0);
		struct kvx_op op = op_make(&a, KVX_OP_WRITE, 0, 8, bad);
		op.local = bad & 1 ? a.mr : mrs[0];
		cr_assert_eq(ops->post(a.ep, &op, 1), 1);
		expect_done(&a, bad, bad == 0 ? 0 : -EACCES);
		cr_assert_eq(script.n_landed, 1);
		ops->rkey_free(a.rkey);
	}
	a.rkey = NULL;
	for (unsigned i = 0; i < 2; i++)
		ops->mem_dereg(mrs[i]);
	side_close(&a);
	side_close(&b);
	expect_nothing_left(&script);
	KVX_TEST_END();
}

/* What was under way at the fence lands within settle_ns, or until the other side stops it. */
Test(fake, late_writes_land_until_they_have_settled)
{
	enum { LATE, TOO_LATE, STOPPED, FENCED, N_CASES };

	for (unsigned i = 0; i < N_CASES; i++) {
		struct kvx_fake_script script = {.latency_ns = 1000,
						 .late_writes = true,
						 .limits.settle_ns = i == TOO_LATE ? 500 : 1000};
		static struct side a, b;

		pair_open(&a, &b, &script);
		cr_assert_eq(a.limits.settle_ns, script.limits.settle_ns);
		cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 8, 1), 1);
		cr_assert_eq(ops->fence(a.ep), 0);
		expect_done(&a, 1, -ECANCELED);
		if (i == STOPPED)
			ops->lease(b.ep, 0);
		if (i == FENCED)
			cr_assert_eq(ops->fence(b.ep), 0);
		kvx_fake_advance(&script, 999);
		cr_assert_eq(b.bytes[0], test_byte(2, 0));
		kvx_fake_advance(&script, 1);
		cr_assert_eq(b.bytes[0], test_byte(i == LATE ? 1 : 2, 0), "case %u", i);
		cr_assert_eq(script.n_late, i == LATE);
		side_close(&a);
		side_close(&b);
		expect_nothing_left(&script);
	}
	KVX_TEST_END();
}

Test(fake, what_breaks_the_promises_of_a_worker_is_counted)
{
	const struct kvx_transport_ops *blocking = &kvx_fake_blocking_ops;
	struct kvx_fake_script script = {0};
	struct kvx_dom_conf conf = {.test = &script};
	struct kvx_transport_limits limits;
	struct kvx_op op = {.len_bytes = 8, .kind = KVX_OP_WRITE};
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t len = sizeof(addr);
	struct kvx_dom *dom;
	struct kvx_ep *ep;
	struct kvx_why why;

	cr_assert(blocking->caps & KVX_CAP_BLOCKING_CONTROL);
	cr_assert_eq(blocking->open(&conf, &dom, &limits, &why), -EINVAL);
	cr_assert_eq(kvx_fake_gates_open(&script), 0);
	cr_assert_eq(blocking->open(&conf, &dom, &limits, &why), 0);
	cr_assert_eq(blocking->listen(dom, 0, &ep, addr, &len), 0);
	script.faults[KVX_FAKE_FENCE] = (struct kvx_fake_fault){1, -EIO};
	cr_assert_eq(blocking->fence(ep), -EIO);
	cr_assert_eq(script.n_violations, 0);
	cr_assert_eq(blocking->post(ep, &op, 0), 0); /* its fence has begun */
	cr_assert_eq(script.n_violations, 1);
	cr_assert_not_null(script.violation);
	cr_assert_eq(blocking->fence(ep), 0);
	blocking->ep_close(ep);
	blocking->close(dom);
	kvx_fake_gates_close(&script);
	expect_nothing_left(&script);
	KVX_TEST_END();
}
