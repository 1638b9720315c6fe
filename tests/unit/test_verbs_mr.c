/* Memory of a verbs domain: rights, chunks, keys and tenants, dma-bufs; and what comes as a key
 * from another node. */
#include "fault_alloc.h"
#include "verbs_rig.h"

#include "transport/verbs/verbs_priv.h"

static void mr_rig(struct side *s)
{
	struct kvx_verbs_conf conf = rig_conf();

	memset(s, 0, sizeof(*s));
	side_dom(s, "fake0:1", &conf);
	kvx_log_set_level(KVX_LOG_ERROR);
}

static void start(struct side *s)
{
	rig_reset();
	mr_rig(s);
}

static void finish(struct side *s)
{
	side_close(s);
	FAKE_VERBS_END();
}

static unsigned access_of(const struct kvx_mr *mr)
{
	return fake_verbs_access(mr->mrs[0]);
}

static void expect_access(struct side *s, uint32_t rights, unsigned want)
{
	side_map(s, 0, rights, 1);
	cr_assert_eq(access_of(s->mr), want);
	T->mem_dereg(s->mr);
	s->mr = NULL;
	munmap(s->mem.addr, REGION_BYTES);
	s->mem.addr = NULL;
}

Test(verbs_mr, remote_ends_get_the_rights_of_the_region_and_no_more)
{
	struct side s;

	start(&s);
	expect_access(&s, 0, IBV_ACCESS_LOCAL_WRITE);
	expect_access(&s, KVX_ACCESS_READ, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ);
	expect_access(&s, KVX_ACCESS_WRITE, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	expect_access(&s, KVX_ACCESS_READ | KVX_ACCESS_WRITE,
		      IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE);
	finish(&s);
	KVX_TEST_END();
}

Test(verbs_mr, region_is_cut_where_the_device_takes_no_more)
{
	struct side s;

	rig_reset();
	fake_verbs_dev(0)->attr.max_mr_size = (REGION_BYTES >> 2) + 5;
	mr_rig(&s);
	side_map(&s, 0, KVX_ACCESS_READ, 1);
	cr_assert_eq(s.mr->n_pieces, 4);
	cr_assert_eq(s.mr->chunk_shift, 18);
	cr_assert_eq(fake_verbs_count().mrs, 4);
	cr_assert_eq(kvx_counter_get(&s.limits.counters->regs), 1);
	cr_assert_eq(kvx_counter_get(&s.limits.counters->reg_bytes), REGION_BYTES);
	T->mem_dereg(s.mr);
	s.mr = NULL;
	cr_assert_eq(fake_verbs_count().mrs, 0);
	cr_assert_eq(kvx_counter_get(&s.limits.counters->regs), 0);
	cr_assert_eq(kvx_counter_get(&s.limits.counters->reg_bytes), 0);
	finish(&s);
	KVX_TEST_END();
}

Test(verbs_mr, region_of_too_many_chunks_is_refused)
{
	struct side s;
	struct kvx_mr *mr = NULL;

	rig_reset();
	fake_verbs_dev(0)->attr.max_mr_size = REGION_BYTES / 32;
	mr_rig(&s);
	kvx_log_set_level(KVX_LOG_ERROR);
	s.mem = (struct kvx_mem){
	    .ops = &kvx_mem_host_ops, .fd = -1, .addr = s.addr, .len_bytes = REGION_BYTES};
	cr_assert_eq(T->mem_reg(s.dom, 0, &s.mem, 0, &mr), -EMSGSIZE);
	cr_assert_null(mr);
	s.mem.addr = NULL;
	finish(&s);
	KVX_TEST_END();
}

Test(verbs_mr, key_comes_back_as_it_was_packed)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	struct kvx_rkey *rkey;
	struct side s;
	int len;

	rig_reset();
	fake_verbs_dev(0)->attr.max_mr_size = REGION_BYTES / 16;
	mr_rig(&s);
	side_map(&s, 0, KVX_ACCESS_WRITE, 1);
	len = T->mkey_pack(s.mr, mkey, sizeof(mkey));
	cr_assert_gt(len, 0);
	cr_assert_eq(T->mkey_pack(s.mr, mkey, (size_t)len - 1), -ENOSPC);
	cr_assert_eq(T->rkey_unpack(NULL, mkey, (size_t)len, &rkey), 0);
	cr_assert_eq(rkey->len_bytes, REGION_BYTES);
	cr_assert_eq(rkey->rights, KVX_ACCESS_WRITE);
	cr_assert_eq(rkey->n_pieces, 16);
	for (unsigned i = 0; i < 16; i++) {
		cr_assert_eq(rkey->pieces[i].key, s.mr->mrs[i]->rkey);
		cr_assert_eq(rkey->pieces[i].start, s.mr->pieces[i].start);
		cr_assert_eq(rkey->pieces[i].delta, s.mr->pieces[i].delta);
	}
	T->rkey_free(rkey);
	finish(&s);
	KVX_TEST_END();
}

/* Whatever is taken is sound: the pieces are the region from its first to its last byte, and none
 * runs over the end of all addresses. */
static void expect_sound(const struct kvx_rkey *rkey)
{
	uint64_t at = 0;

	cr_assert(rkey->len_bytes > 0 && rkey->n_pieces > 0);
	cr_assert_leq(rkey->n_pieces, VERBS_MAX_PIECES);
	for (uint32_t i = 0; i < rkey->n_pieces; i++) {
		const struct verbs_piece *piece = &rkey->pieces[i];

		cr_assert_eq(piece->start, at);
		cr_assert_gt(piece->len_bytes, 0);
		at += piece->len_bytes;
		cr_assert_leq(piece->start + piece->delta, UINT64_MAX - piece->len_bytes);
	}
	cr_assert_eq(at, rkey->len_bytes);
}

Test(verbs_mr, random_keys_do_no_harm)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX], bytes[KVX_TRANSPORT_MKEY_MAX + 8];
	uint64_t seed = 21;
	unsigned n_taken = 0;
	struct side s;
	int len;

	rig_reset();
	fake_verbs_dev(0)->attr.max_mr_size = REGION_BYTES / 4;
	mr_rig(&s);
	side_map(&s, 0, KVX_ACCESS_READ, 1);
	len = T->mkey_pack(s.mr, mkey, sizeof(mkey));
	for (unsigned i = 0; i < 200000; i++) {
		size_t n = i % 8 == 0 ? test_random(&seed, sizeof(bytes)) : (size_t)len;
		struct kvx_rkey *rkey;

		memset(bytes, 0, sizeof(bytes));
		memcpy(bytes, mkey, (size_t)len);
		for (unsigned k = 0; k < 1 + test_random(&seed, 3); k++)
			bytes[test_random(&seed, 16)] = (uint8_t)test_random(&seed, 256);
		if (T->rkey_unpack(NULL, bytes, n, &rkey) != 0)
			continue;
		n_taken++;
		expect_sound(rkey);
		T->rkey_free(rkey);
	}
	cr_assert_gt(n_taken, 100);
	finish(&s);
	KVX_TEST_END();
}

Test(verbs_mr, each_tenant_has_a_protection_domain_of_its_own)
{
	struct kvx_mr *mrs[3];
	struct side s;

	start(&s);
	side_map(&s, 0, 0, 1);
	for (uint32_t i = 0; i < 3; i++)
		cr_assert_eq(T->mem_reg(s.dom, i, &s.mem, 0, &mrs[i]), 0);
	cr_assert_eq(fake_verbs_count().pds, 3);
	cr_assert_eq(mrs[0]->mrs[0]->pd, s.mr->mrs[0]->pd);
	cr_assert_neq(mrs[0]->mrs[0]->pd, mrs[1]->mrs[0]->pd);
	cr_assert_neq(mrs[1]->mrs[0]->pd, mrs[2]->mrs[0]->pd);
	for (unsigned i = 0; i < 3; i++)
		T->mem_dereg(mrs[i]);
	finish(&s);
	KVX_TEST_END();
}

Test(verbs_mr, failing_registration_takes_its_chunks_back)
{
	struct kvx_mr *mr = NULL;
	struct side s;

	rig_reset();
	fake_verbs_dev(0)->attr.max_mr_size = REGION_BYTES / 8;
	mr_rig(&s);
	side_map(&s, 0, 0, 1);
	for (unsigned n = 1; n <= 8; n++) {
		fake_verbs_fail(FV_REG_MR, n, ENOMEM);
		cr_assert_eq(T->mem_reg(s.dom, 0, &s.mem, 0, &mr), -ENOMEM);
		cr_assert(fake_verbs_fired());
		cr_assert_null(mr);
		cr_assert_eq(fake_verbs_count().mrs, 8, "those of before");
	}
	finish(&s);
	KVX_TEST_END();
}

Test(verbs_mr, deregistration_that_fails_is_tried_again)
{
	struct side s;

	start(&s);
	side_map(&s, 0, 0, 1);
	fake_verbs_fail(FV_DEREG_MR, 1, EBUSY);
	T->mem_dereg(s.mr);
	s.mr = NULL;
	cr_assert(fake_verbs_fired());
	cr_assert_eq(fake_verbs_count().mrs, 0);
	finish(&s);
	KVX_TEST_END();
}

Test(verbs_mr, memory_of_a_kind_that_was_not_offered_is_refused)
{
	static const struct kvx_mem_ops hip_ops = {.kind = KVX_MEM_HIP, .name = "hip"};
	struct kvx_mr *mr = NULL;
	struct kvx_mem mem = {.ops = &hip_ops, .fd = -1, .len_bytes = 4096};
	struct side s;

	start(&s);
	cr_assert_eq(T->mem_reg(s.dom, 0, &mem, 0, &mr), -EOPNOTSUPP);
	finish(&s);
	KVX_TEST_END();
}

Test(verbs_mr, failing_allocations_leave_nothing)
{
	struct side s;
	int rc;

	start(&s);
	side_map(&s, 0, 0, 1);
	T->mem_dereg(s.mr);
	for (unsigned n = 1;; n++) {
		s.mr = NULL;
		fault_alloc_arm(n);
		rc = T->mem_reg(s.dom, 1, &s.mem, 0, &s.mr);
		if (!fault_alloc_disarm())
			break;
		cr_assert_eq(rc, -ENOMEM);
		cr_assert_eq(fake_verbs_count().mrs, 0);
	}
	cr_assert_eq(rc, 0);
	finish(&s);
	KVX_TEST_END();
}
