/* Layouts: every plane inside of the region or refused in words, whatever the numbers. */
#include "mem/layout.h"

#include <errno.h>
#include <string.h>

#include "fault_alloc.h"
#include "test_end.h"
#include "test_memory.h"

static struct kvx_layout *one_plane(uint64_t offset, uint64_t stride, uint64_t bytes, uint32_t n)
{
	struct kvx_layout *layout = kvx_layout_create(1);

	cr_assert_not_null(layout);
	layout->planes[0] = (struct kvx_plane){.offset = offset,
					       .block_stride = stride,
					       .block_bytes = bytes,
					       .n_blocks = n,
					       .name = "k"};
	return layout;
}

static int check_one(uint64_t offset, uint64_t stride, uint64_t bytes, uint32_t n, uint64_t region,
		     struct kvx_why *why)
{
	struct kvx_layout *layout = one_plane(offset, stride, bytes, n);
	int err = kvx_layout_check(layout, region, why);

	kvx_layout_destroy(layout);
	return err;
}

Test(layout, fills_the_number_of_blocks)
{
	struct kvx_layout *layout = one_plane(100, 64, 32, 0);

	cr_assert_eq(kvx_layout_check(layout, 100 + 64 * 3 + 32, NULL), 0);
	cr_assert_eq(layout->planes[0].n_blocks, 4); /* the last one needs no whole stride */
	layout->planes[0].n_blocks = 0;
	cr_assert_eq(kvx_layout_check(layout, 100 + 64 * 3 + 31, NULL), 0);
	cr_assert_eq(layout->planes[0].n_blocks, 3);
	kvx_layout_destroy(layout);
	KVX_TEST_END();
}

Test(layout, refuses_in_words)
{
	struct kvx_why why;

	cr_assert_eq(check_one(0, 64, 0, 1, 4096, &why), -EINVAL);
	cr_assert_str_eq(why.text, "plane 0 (k): block_bytes is 0, must be at least 1");
	cr_assert_eq(check_one(0, 31, 32, 1, 4096, &why), -EINVAL);
	cr_assert_not_null(strstr(why.text, "block_stride 31"), "%s", why.text);
	cr_assert_eq(check_one(4090, 32, 32, 0, 4096, &why), -ERANGE);
	cr_assert_not_null(strstr(why.text, "first block"), "%s", why.text);
	cr_assert_eq(check_one(0, 64, 32, 65, 4096, &why), -ERANGE);
	cr_assert_not_null(strstr(why.text, "64 fit"), "%s", why.text);
	KVX_TEST_END();
}

/* Right by another road: 128-bit numbers cannot wrap here. */
static bool fits(uint64_t offset, uint64_t stride, uint64_t bytes, uint32_t n, uint64_t region)
{
	unsigned __int128 end = (unsigned __int128)(n == 0 ? 0 : n - 1) * stride;

	return end + offset + bytes <= region;
}

Test(layout, no_numbers_wrap)
{
	static const uint64_t corner[] = {
	    0, 1, 2, 4096, UINT32_MAX, 1ull << 32, 1ull << 63, UINT64_MAX - 1, UINT64_MAX};
	uint64_t rng = 11, n_good = 0;

	for (unsigned i = 0; i < 200000; i++) {
		uint64_t v[4];

		for (unsigned k = 0; k < 4; k++)
			v[k] = corner[test_random(&rng, 9)] - test_random(&rng, 3);
		uint32_t n = (uint32_t)(corner[test_random(&rng, 9)] - test_random(&rng, 2));
		bool good = v[2] > 0 && v[1] >= v[2] && fits(v[0], v[1], v[2], n, v[3]);
		int err = check_one(v[0], v[1], v[2], n, v[3], NULL);

		n_good += good;
		cr_assert_eq(err == 0, good, "offset %lu stride %lu bytes %lu n %u region %lu: %d",
			     v[0], v[1], v[2], n, v[3], err);
	}
	cr_assert_gt(n_good, 1000);
	KVX_TEST_END();
}

Test(layout, compare_names_the_difference)
{
	struct kvx_layout *here = kvx_layout_create(4), *there = kvx_layout_create(4);
	struct kvx_layout *few = kvx_layout_create(3);
	struct kvx_why why;

	for (unsigned i = 0; i < 4; i++) {
		here->planes[i].block_bytes = there->planes[i].block_bytes = 4096;
		here->planes[i].block_stride = 4096;
		there->planes[i].block_stride = 8192; /* may differ */
	}
	cr_assert_eq(kvx_layout_compare(here, there, &why), 0);
	strcpy(here->planes[3].name, "k");
	there->planes[3].block_bytes = 8192;
	cr_assert_eq(kvx_layout_compare(here, there, &why), -EMEDIUMTYPE);
	cr_assert_str_eq(why.text, "plane 3 (k): block_bytes 4096 here, 8192 there");
	cr_assert_eq(kvx_layout_compare(here, few, &why), -EMEDIUMTYPE);
	cr_assert_str_eq(why.text, "4 planes here, 3 there");
	kvx_layout_destroy(here);
	kvx_layout_destroy(there);
	kvx_layout_destroy(few);
	KVX_TEST_END();
}

Test(layout, create_without_memory_is_null)
{
	fault_alloc_arm(1);
	cr_assert_null(kvx_layout_create(2));
	cr_assert(fault_alloc_disarm());
	kvx_layout_destroy(NULL);
	KVX_TEST_END();
}
