/* The region table: quotas before anything is mapped, ids that never come back, tokens. */
#include "mem/region.h"

#include <errno.h>
#include <string.h>

#include "fault_alloc.h"
#include "test_end.h"
#include "test_memory.h"

#define PAGE 4096u

static struct kvx_regions *table(uint32_t regions, uint32_t per_client, uint64_t bytes,
				 uint64_t bytes_per_client)
{
	struct kvx_region_limits limits = {regions, per_client, bytes, bytes_per_client, bytes};
	struct kvx_regions *made;

	cr_assert_eq(kvx_regions_create(&limits, &made), 0);
	return made;
}

static struct kvx_region_request request_of(int fd, uint64_t len)
{
	return (struct kvx_region_request){.owner = 7,
					   .ops = &kvx_mem_host_ops,
					   .fd = fd,
					   .len_bytes = len,
					   .access = KVX_ACCESS_READ};
}

static int add(struct kvx_regions *regions, uint64_t len, uint32_t owner_regions,
	       uint64_t owner_bytes, struct kvx_region **out_region, struct kvx_why *why)
{
	struct kvx_region_request request = request_of(test_memfd(len, TEST_SEALS), len);

	request.owner_regions = owner_regions;
	request.owner_bytes = owner_bytes;
	request.layout = kvx_layout_create(1);
	int err = kvx_region_add(regions, &request, out_region, why);
	if (err < 0)
		close(request.fd);
	return err;
}

Test(region, life_of_one)
{
	struct kvx_regions *regions = table(10, 10, 1 << 20, 1 << 20);
	struct kvx_region *region;
	uint32_t cursor = 0;

	cr_assert_eq(add(regions, 2 * PAGE, 0, 0, &region, NULL), 0);
	cr_assert_eq(region->state, KVX_REGION_MAPPING);
	cr_assert_eq(region->owner, 7);
	cr_assert_eq(region->access, KVX_ACCESS_READ);
	cr_assert_neq(region->id, 0);
	cr_assert_eq(kvx_region_find(regions, region->id), region);
	cr_assert_eq(kvx_region_next(regions, &cursor), region);
	cr_assert_null(kvx_region_next(regions, &cursor));
	cr_assert_eq(kvx_regions_count(regions), 1);
	cr_assert_eq(kvx_regions_bytes(regions), 2 * PAGE);
	uint64_t id = region->id;
	kvx_region_remove(regions, region);
	cr_assert_null(kvx_region_find(regions, id));
	cr_assert_eq(kvx_regions_bytes(regions), 0);
	cr_assert_eq(add(regions, PAGE, 0, 0, &region, NULL), 0);
	cr_assert_neq(region->id, id);
	kvx_region_remove(regions, region);
	kvx_regions_destroy(regions);
	KVX_TEST_END();
}

/* Whatever is refused: the fd stays the caller's and the layout is freed, which KVX_TEST_END()
 * sees. */
Test(region, each_quota_is_named)
{
	struct kvx_regions *regions = table(2, 1, 3 * PAGE, 2 * PAGE);
	struct kvx_region *a, *b;
	struct kvx_why why;

	cr_assert_eq(add(regions, PAGE, 0, 0, &a, &why), 0);
	cr_assert_eq(add(regions, PAGE, 1, PAGE, &b, &why), -EDQUOT);
	cr_assert_not_null(strstr(why.text, "limit regions_per_client is 1"), "%s", why.text);
	cr_assert_eq(add(regions, 2 * PAGE, 0, PAGE, &b, &why), -EDQUOT);
	cr_assert_not_null(strstr(why.text, "limit bytes_per_client is 8192"), "%s", why.text);
	cr_assert_eq(add(regions, 3 * PAGE, 0, 0, &b, &why), -EDQUOT);
	cr_assert_not_null(strstr(why.text, "limit bytes is 12288"), "%s", why.text);
	cr_assert_eq(add(regions, PAGE, 0, 0, &b, &why), 0);
	struct kvx_region *c;
	cr_assert_eq(add(regions, PAGE, 0, 0, &c, &why), -EDQUOT);
	cr_assert_not_null(strstr(why.text, "limit regions is 2"), "%s", why.text);
	kvx_region_remove(regions, a);
	kvx_region_remove(regions, b);
	kvx_regions_destroy(regions);
	KVX_TEST_END();
}

Test(region, quota_sums_do_not_wrap)
{
	struct kvx_regions *regions = table(10, 10, UINT64_MAX, UINT64_MAX);
	struct kvx_region *region;
	struct kvx_why why;

	cr_assert_eq(add(regions, PAGE, 0, UINT64_MAX - 10, &region, &why), -EDQUOT);
	cr_assert_eq(add(regions, PAGE, 0, UINT64_MAX - PAGE, &region, &why), 0);
	kvx_region_remove(regions, region);
	kvx_regions_destroy(regions);
	KVX_TEST_END();
}

Test(region, lower_limits_hold_for_what_comes_after)
{
	struct kvx_regions *regions = table(10, 10, 1 << 20, 1 << 20);
	struct kvx_region_limits tight = {1, 1, PAGE, PAGE, 0};
	struct kvx_region *a, *b;

	cr_assert_eq(add(regions, 4 * PAGE, 0, 0, &a, NULL), 0);
	kvx_regions_set_limits(regions, &tight);
	cr_assert_eq(add(regions, PAGE, 0, 0, &b, NULL), -EDQUOT);
	tight.max_regions = 2;
	kvx_regions_set_limits(regions, &tight);
	cr_assert_eq(add(regions, PAGE, 0, 0, &b, NULL), -EDQUOT); /* 4 pages of 1 are in use */
	kvx_region_remove(regions, a);
	cr_assert_eq(add(regions, PAGE, 0, 0, &b, NULL), 0);
	kvx_region_remove(regions, b);
	kvx_regions_destroy(regions);
	KVX_TEST_END();
}

Test(region, bad_memory_is_refused_with_its_reason)
{
	struct kvx_regions *regions = table(10, 10, 1 << 20, 1 << 20);
	struct kvx_region *region;
	struct kvx_why why;
	struct kvx_region_request request = request_of(test_memfd(PAGE, 0), PAGE);

	cr_assert_eq(kvx_region_add(regions, &request, &region, &why), -EPERM);
	cr_assert_not_null(strstr(why.text, "F_SEAL_SHRINK"), "%s", why.text);
	cr_assert_eq(kvx_regions_count(regions), 0);
	cr_assert_eq(kvx_regions_bytes(regions), 0);
	cr_assert_eq(close(request.fd), 0);
	kvx_regions_destroy(regions);
	KVX_TEST_END();
}

Test(region, tokens_differ_and_are_compared_whole)
{
	struct kvx_regions *regions = table(10, 10, 1 << 20, 1 << 20);
	struct kvx_region *a, *b;
	uint8_t token[KVX_TOKEN_BYTES];

	cr_assert_eq(add(regions, PAGE, 0, 0, &a, NULL), 0);
	cr_assert_eq(add(regions, PAGE, 0, 0, &b, NULL), 0);
	cr_assert(kvx_region_token_equal(a, a->token));
	cr_assert_not(kvx_region_token_equal(a, b->token));
	for (unsigned i = 0; i < KVX_TOKEN_BYTES; i++) {
		memcpy(token, a->token, sizeof(token));
		token[i] ^= 0x80;
		cr_assert_not(kvx_region_token_equal(a, token), "byte %u", i);
	}
	kvx_region_remove(regions, a);
	kvx_region_remove(regions, b);
	kvx_regions_destroy(regions);
	KVX_TEST_END();
}

Test(region, out_of_memory_leaves_nothing_behind)
{
	struct kvx_region_limits limits = {10, 10, 1 << 20, 1 << 20, 0};
	struct kvx_regions *regions = NULL;
	struct kvx_region *region = NULL;
	unsigned n;
	int err;

	for (n = 1;; n++) {
		fault_alloc_arm(n);
		err = kvx_regions_create(&limits, &regions);
		if (!fault_alloc_disarm())
			break;
		cr_assert_eq(err, -ENOMEM);
	}
	cr_assert_eq(err, 0);
	for (n = 1;; n++) {
		struct kvx_region_request request = request_of(test_memfd(PAGE, TEST_SEALS), PAGE);

		fault_alloc_arm(n);
		err = kvx_region_add(regions, &request, &region, NULL);
		if (!fault_alloc_disarm())
			break;
		cr_assert_eq(err, -ENOMEM);
		close(request.fd);
	}
	cr_assert_eq(err, 0);
	cr_assert_gt(n, 1);
	kvx_region_remove(regions, region);
	kvx_regions_destroy(regions);
	KVX_TEST_END();
}
