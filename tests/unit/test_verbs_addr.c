/* The address of an endpoint as it travels: what was encoded comes back, anything else is refused.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "test_end.h"
#include "test_memory.h"
#include "transport/verbs/verbs_priv.h"

static struct verbs_addr random_addr(uint64_t *seed)
{
	struct verbs_addr addr = {
	    .ethernet = test_random(seed, 2) != 0,
	    .mtu = (enum ibv_mtu)(IBV_MTU_256 + test_random(seed, 5)),
	    .lid = (uint16_t)test_random(seed, 65536),
	    .max_reads = (uint8_t)test_random(seed, 256),
	    .flush_addr = test_random(seed, 1ull << 47),
	    .flush_rkey = (uint32_t)test_random(seed, 1ull << 32),
	    .n_qps = (uint32_t)(1 + test_random(seed, VERBS_MAX_QPS)),
	};

	for (unsigned i = 0; i < sizeof(addr.gid); i++)
		addr.gid[i] = (uint8_t)test_random(seed, 256);
	for (unsigned i = 0; i < addr.n_qps; i++) {
		addr.qps[i].qpn = (uint32_t)test_random(seed, 1u << 24);
		addr.qps[i].psn = (uint32_t)test_random(seed, 1u << 24);
	}
	return addr;
}

static void expect_equal(const struct verbs_addr *a, const struct verbs_addr *b)
{
	cr_assert_eq(a->ethernet, b->ethernet);
	cr_assert_eq(a->mtu, b->mtu);
	cr_assert_eq(a->lid, b->lid);
	cr_assert_eq(a->max_reads, b->max_reads);
	cr_assert_eq(a->flush_addr, b->flush_addr);
	cr_assert_eq(a->flush_rkey, b->flush_rkey);
	cr_assert_arr_eq(a->gid, b->gid, sizeof(a->gid));
	cr_assert_eq(a->n_qps, b->n_qps);
	for (unsigned i = 0; i < a->n_qps; i++) {
		cr_assert_eq(a->qps[i].qpn, b->qps[i].qpn);
		cr_assert_eq(a->qps[i].psn, b->qps[i].psn);
	}
}

Test(verbs_addr, comes_back_as_it_was)
{
	uint8_t buf[KVX_TRANSPORT_ADDR_MAX];
	uint64_t seed = 11;

	for (unsigned i = 0; i < 1000; i++) {
		struct verbs_addr addr = random_addr(&seed), back;
		size_t len = verbs_addr_encode(&addr, buf);

		cr_assert_leq(len, sizeof(buf));
		cr_assert_eq(verbs_addr_decode(buf, len, &back), 0);
		expect_equal(&addr, &back);
	}
	KVX_TEST_END();
}

Test(verbs_addr, every_other_length_is_refused)
{
	uint8_t buf[KVX_TRANSPORT_ADDR_MAX + 1] = {0};
	uint64_t seed = 12;
	struct verbs_addr addr = random_addr(&seed), back;
	size_t len = verbs_addr_encode(&addr, buf);

	for (size_t n = 0; n <= sizeof(buf); n++)
		if (n != len)
			cr_assert_eq(verbs_addr_decode(buf, n, &back), -EINVAL, "%zu bytes", n);
	KVX_TEST_END();
}

Test(verbs_addr, another_version_is_told_apart)
{
	uint8_t buf[KVX_TRANSPORT_ADDR_MAX];
	uint64_t seed = 13;
	struct verbs_addr addr = random_addr(&seed), back;
	size_t len = verbs_addr_encode(&addr, buf);

	buf[0]++;
	cr_assert_eq(verbs_addr_decode(buf, len, &back), -EPROTONOSUPPORT);
	KVX_TEST_END();
}

/* Whatever is accepted is in range, and is what encode would have written. */
Test(verbs_addr, random_bytes_do_no_harm)
{
	uint8_t buf[KVX_TRANSPORT_ADDR_MAX], again[KVX_TRANSPORT_ADDR_MAX];
	uint64_t seed = 14;
	unsigned n_accepted = 0;

	for (unsigned i = 0; i < 200000; i++) {
		struct verbs_addr addr = random_addr(&seed), back;
		size_t len = verbs_addr_encode(&addr, buf);

		for (unsigned k = 0; k < 1 + test_random(&seed, 3); k++)
			buf[test_random(&seed, len)] = (uint8_t)test_random(&seed, 256);
		if (verbs_addr_decode(buf, len, &back) != 0)
			continue;
		n_accepted++;
		cr_assert(back.n_qps >= 1 && back.n_qps <= VERBS_MAX_QPS);
		cr_assert_eq(verbs_addr_encode(&back, again), len);
		cr_assert_arr_eq(again, buf, len);
	}
	cr_assert_gt(n_accepted, 1000);
	KVX_TEST_END();
}
