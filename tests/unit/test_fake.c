/* The fake transport keeps the contract that all others are held to. */
#include <errno.h>
#include <string.h>

#include "fake_pair.h"
#include "test_end.h"

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
