/* Plan: neighbours are merged, what is long is cut; no memory. */
#include "xfer/plan.h"

#include <criterion/criterion.h>
#include <errno.h>

#include "fault_alloc.h"
#include "test_end.h"

#define REGION_BYTES (1u << 20)

static struct kvx_plan *ops_plan(const uint64_t *l, const uint64_t *r, uint32_t n, uint64_t len)
{
	struct kvx_plan_side side = {REGION_BYTES, NULL};
	struct kvx_op_list list = {n, 1, l, r, &len};
	struct kvx_plan *plan = NULL;
	cr_assert_eq(kvx_plan_create(&side, &side, &plan), 0);
	cr_assert_eq(kvx_plan_add_ops(plan, &list, NULL), 0);
	return plan;
}

Test(plan, neighbours_on_both_sides_are_merged)
{
	const uint64_t l[] = {0, 100, 200, 300, 500};
	const uint64_t r[] = {1000, 1100, 1200, 1400, 1500};
	struct kvx_plan *plan = ops_plan(l, r, 5, 100);
	struct kvx_span s[8];
	cr_assert_eq(kvx_plan_next(plan, UINT64_MAX, UINT64_MAX, s, 8), 3);
	cr_assert(s[0].local_offset == 0 && s[0].remote_offset == 1000 && s[0].len_bytes == 300);
	cr_assert(s[1].local_offset == 300 && s[1].remote_offset == 1400 && s[1].len_bytes == 100);
	cr_assert(s[2].local_offset == 500 && s[2].remote_offset == 1500 && s[2].len_bytes == 100);
	kvx_plan_destroy(plan);
	KVX_TEST_END();
}

Test(plan, dense_planes_are_merged_across_planes)
{
	struct kvx_layout *layout = kvx_layout_create(4);
	uint32_t ids[16];
	struct kvx_plan *plan = NULL;
	struct kvx_span s[8];
	for (uint32_t p = 0; p < 4; p++)
		layout->planes[p] = (struct kvx_plane){.offset = p * 16 * 4096,
						       .block_stride = 4096,
						       .block_bytes = 4096,
						       .n_blocks = 16};
	for (uint32_t i = 0; i < 16; i++)
		ids[i] = i;
	struct kvx_plan_side side = {REGION_BYTES, layout};
	struct kvx_block_list list = {0, 0, 4, 16, ids, ids, NULL};
	cr_assert_eq(kvx_plan_create(&side, &side, &plan), 0);
	cr_assert_eq(kvx_plan_add_blocks(plan, &list, NULL), 0);
	cr_assert_eq(kvx_plan_next(plan, UINT64_MAX, UINT64_MAX, s, 8), 1);
	cr_assert_eq(s[0].len_bytes, 4 * 16 * 4096);
	kvx_plan_destroy(plan);
	kvx_layout_destroy(layout);
	KVX_TEST_END();
}

Test(plan, long_ops_are_cut_at_the_limits)
{
	const uint64_t at[] = {0};
	struct kvx_plan *plan = ops_plan(at, at, 1, 1000000);
	struct kvx_span s[8];
	cr_assert_eq(kvx_plan_next(plan, 300000, 500000, s, 8), 2);
	cr_assert_eq(s[0].len_bytes, 300000);
	cr_assert_eq(s[1].len_bytes, 200000);
	cr_assert_eq(s[1].local_offset, 300000);
	cr_assert_eq(kvx_plan_backlog(plan), 500000);
	kvx_plan_destroy(plan);
	KVX_TEST_END();
}

/* Limits that nothing exceeds: a piece that does not fit any more is left whole. */
Test(plan, pieces_are_not_cut_at_the_end_of_a_batch)
{
	const uint64_t l[] = {0, 10000, 20000}, r[] = {0, 10000, 20000};
	struct kvx_plan *plan = ops_plan(l, r, 3, 4000);
	struct kvx_span s[8];
	cr_assert_eq(kvx_plan_next(plan, UINT64_MAX, 6000, s, 8), 1);
	cr_assert_eq(s[0].len_bytes, 4000);
	cr_assert_eq(kvx_plan_next(plan, UINT64_MAX, 8000, s, 8), 2);
	cr_assert_eq(s[1].len_bytes, 4000);
	kvx_plan_destroy(plan);
	KVX_TEST_END();
}

Test(plan, every_allocation_may_fail)
{
	struct kvx_plan_side side = {REGION_BYTES, NULL};
	const uint64_t at = 0, len = 10;
	struct kvx_op_list list = {1, 1, &at, &at, &len};
	int rc = -1;
	for (unsigned n = 1; n < 10; n++) {
		struct kvx_plan *plan = NULL;
		fault_alloc_arm(n);
		rc = kvx_plan_create(&side, &side, &plan);
		if (rc == 0)
			rc = kvx_plan_add_ops(plan, &list, NULL);
		bool failed = fault_alloc_disarm();
		kvx_plan_destroy(plan);
		if (!failed)
			break;
		cr_assert_eq(rc, -ENOMEM);
	}
	cr_assert_eq(rc, 0);
	KVX_TEST_END();
}
