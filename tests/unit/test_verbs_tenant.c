/* Tenants apart, and peers that lie: what is not granted is neither read nor written, whatever the
 * other side claims of its keys. */
#include "verbs_rig.h"

struct second {
	struct kvx_ep *a, *b;
	struct kvx_mr *a_mr, *b_mr;
	bool a_up, b_up;
};

static void pump_second(struct rig *r, struct second *s)
{
	struct kvx_tevent ev[8];
	int n = T->progress(r->a.dom, ev, 8);

	for (int i = 0; i < n; i++)
		if (ev[i].ep == s->a && ev[i].kind == KVX_TEV_EP_UP)
			s->a_up = true;
		else
			side_take(&r->a, &ev[i]);
	n = T->progress(r->b.dom, ev, 8);
	for (int i = 0; i < n; i++)
		if (ev[i].ep == s->b && ev[i].kind == KVX_TEV_EP_UP)
			s->b_up = true;
		else
			side_take(&r->b, &ev[i]);
}

/* A lane of tenant 1 beside that of tenant 0, and memory of tenant 1 at both ends. */
static void second_open(struct rig *r, struct second *s)
{
	const uint32_t rights = KVX_ACCESS_READ | KVX_ACCESS_WRITE;
	uint8_t a_addr[KVX_TRANSPORT_ADDR_MAX], b_addr[KVX_TRANSPORT_ADDR_MAX];
	size_t a_len = sizeof(a_addr), b_len = sizeof(b_addr);

	memset(s, 0, sizeof(*s));
	cr_assert_eq(T->listen(r->a.dom, 1, &s->a, a_addr, &a_len), 0);
	cr_assert_eq(T->listen(r->b.dom, 1, &s->b, b_addr, &b_len), 0);
	cr_assert_eq(T->connect(s->a, b_addr, b_len), 0);
	cr_assert_eq(T->connect(s->b, a_addr, a_len), 0);
	for (uint64_t end = kvx_now_ns() + WAIT_NS; !(s->a_up && s->b_up);) {
		cr_assert_lt(kvx_now_ns(), end);
		pump_second(r, s);
	}
	cr_assert_eq(T->mem_reg(r->a.dom, 1, &r->a.mem, rights, &s->a_mr), 0);
	cr_assert_eq(T->mem_reg(r->b.dom, 1, &r->b.mem, rights, &s->b_mr), 0);
}

static void second_close(struct second *s)
{
	T->mem_dereg(s->a_mr);
	T->mem_dereg(s->b_mr);
	cr_assert_eq(T->fence(s->a), 0);
	cr_assert_eq(T->fence(s->b), 0);
	T->ep_close(s->a);
	T->ep_close(s->b);
}

static void expect_untouched(const struct rig *r)
{
	for (unsigned i = 0; i < REGION_BYTES; i++) {
		cr_assert_eq(r->a.mem.addr[i], test_byte(1, i));
		cr_assert_eq(r->b.mem.addr[i], test_byte(2, i));
	}
}

static void expect_refused_by_device(enum kvx_op_kind kind)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	struct kvx_rkey *stolen;
	struct second s;
	struct kvx_op op;
	struct rig r;
	int len;

	rig_open(&r);
	second_open(&r, &s);
	/* Tenant 0 has come by the key of tenant 1's memory. */
	len = T->mkey_pack(s.b_mr, mkey, sizeof(mkey));
	cr_assert_eq(T->rkey_unpack(r.a.ep, mkey, (size_t)len, &stolen), 0);
	op = make_op(&r.a, kind, 0, 0, 4096);
	op.remote = stolen;
	cr_assert_eq(T->post(r.a.ep, &op, 1), 1);
	for (unsigned i = 0; i < 100; i++)
		pump_second(&r, &s);
	cr_assert_eq(r.a.n_downs, 1);
	cr_assert_eq(r.a.down_status, -EIO);
	expect_untouched(&r);
	T->rkey_free(stolen);
	second_close(&s);
	rig_close(&r);
}

Test(verbs_tenant, key_of_another_tenant_opens_nothing)
{
	expect_refused_by_device(KVX_OP_WRITE);
	expect_refused_by_device(KVX_OP_READ);
	KVX_TEST_END();
}

Test(verbs_tenant, own_memory_of_another_tenant_is_refused_before_it_is_posted)
{
	struct second s;
	struct kvx_op op;
	struct rig r;

	rig_open(&r);
	second_open(&r, &s);
	op = make_op(&r.a, KVX_OP_WRITE, 0, 0, 4096);
	op.local = s.a_mr;
	run_ops(&r, &op, 1);
	cr_assert_eq(r.a.status, -EACCES);
	cr_assert_eq(r.a.n_downs, 0);
	expect_untouched(&r);
	second_close(&s);
	rig_close(&r);
	KVX_TEST_END();
}

/* The lane of one tenant ends; that of the other goes on. */
Test(verbs_tenant, end_of_one_lane_leaves_the_other)
{
	struct second s;
	struct kvx_op op;
	struct rig r;

	rig_open(&r);
	second_open(&r, &s);
	cr_assert_eq(T->fence(s.a), 0);
	cr_assert_eq(T->fence(s.b), 0);
	op = make_op(&r.a, KVX_OP_WRITE, 0, 0, 4096);
	run_ops(&r, &op, 1);
	cr_assert_eq(r.a.n_failed, 0);
	second_close(&s);
	rig_close(&r);
	KVX_TEST_END();
}

/* The other side packs a key, a liar changes it on the way: byte `at` becomes `value`. */
static struct kvx_rkey *rkey_forge(struct rig *r, unsigned at, uint8_t value)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	int len = T->mkey_pack(r->b.mr, mkey, sizeof(mkey));
	struct kvx_rkey *rkey;

	mkey[at] = value;
	cr_assert_eq(T->rkey_unpack(r->a.ep, mkey, (size_t)len, &rkey), 0);
	return rkey;
}

static void expect_forged_refused(unsigned at, uint8_t value, enum kvx_op_kind kind,
				  uint64_t remote)
{
	struct kvx_rkey *forged;
	struct kvx_op op;
	struct rig r;

	rig_open(&r);
	T->mem_dereg(r.b.mr);
	cr_assert_eq(T->mem_reg(r.b.dom, 0, &r.b.mem, KVX_ACCESS_READ, &r.b.mr), 0);
	forged = rkey_forge(&r, at, value);
	op = make_op(&r.a, kind, 0, remote, 4096);
	op.remote = forged;
	cr_assert_eq(T->post(r.a.ep, &op, 1), 1);
	PUMP_UNTIL(&r, r.a.n_downs == 1);
	expect_untouched(&r);
	T->rkey_free(forged);
	rig_close(&r);
}

Test(verbs_tenant, forged_rights_open_nothing)
{
	expect_forged_refused(1, KVX_ACCESS_READ | KVX_ACCESS_WRITE, KVX_OP_WRITE, 0);
	KVX_TEST_END();
}

Test(verbs_tenant, forged_length_opens_nothing_beyond_the_end)
{
	expect_forged_refused(12, 1, KVX_OP_READ, REGION_BYTES - 4095);
	expect_forged_refused(12, 1, KVX_OP_READ, 1ull << 32);
	KVX_TEST_END();
}

Test(verbs_tenant, forged_key_opens_nothing)
{
	for (unsigned value = 0; value < 256; value += 5)
		expect_forged_refused(17, (uint8_t)(value | 0x80), KVX_OP_READ, 0);
	KVX_TEST_END();
}

/* What an ep gives away for flushing is its own page, read-only, and nothing of a client. */
Test(verbs_tenant, flush_memory_cannot_be_written)
{
	struct fake_verbs_wr flush;
	struct kvx_op op;
	struct rig r;

	rig_open(&r);
	op = make_op(&r.a, KVX_OP_WRITE, 0, 0, 8);
	fake_verbs_trace(true);
	run_ops(&r, &op, 1);
	flush = fake_verbs_wr(1);
	cr_assert_eq(flush.opcode, IBV_WR_RDMA_READ);
	cr_assert_eq(fake_verbs_access_of_key(flush.rkey) & IBV_ACCESS_REMOTE_WRITE, 0);
	rig_close(&r);
	KVX_TEST_END();
}
