/* Plan: each refusal, and random requests of any numbers: refused exactly when they are outside. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "test_end.h"
#include "test_rng.h"
#include "xfer/plan.h"

#define REGION_BYTES (1u << 20)

struct refusal {
	struct kvx_block_list list;
	int err;
	const char *says;
};

static void refusal_setup(struct kvx_layout **out_layout, struct kvx_plan **out_plan)
{
	struct kvx_layout *layout = kvx_layout_create(2);
	layout->planes[0] = (struct kvx_plane){0, 4096, 4096, 16, "k"};
	layout->planes[1] = (struct kvx_plane){65536, 8192, 8192, 8, "v"};
	struct kvx_plan_side side = {REGION_BYTES, layout};
	cr_assert_eq(kvx_plan_create(&side, &side, out_plan), 0);
	*out_layout = layout;
}

Test(plan_refuse, bad_block_lists_are_refused_and_change_nothing)
{
	const uint32_t ok[] = {0, 7}, big[] = {1, 16}, wild[] = {0, UINT32_MAX};
	const struct kvx_slice zero = {.bytes = 0, .count = 1}, wide = {.bytes = 4097, .count = 1},
			       wrap = {.bytes = 16,
				       .count = UINT32_MAX,
				       .local_stride = UINT64_MAX / 2,
				       .remote_stride = 16},
			       dense = {.bytes = 64,
					.count = 2,
					.local_stride = 63,
					.remote_stride = 64},
			       far = {.local_offset = UINT64_MAX - 8, .bytes = 16, .count = 1};
	const struct refusal refusals[] = {
	    {{0, 0, 0, 2, ok, ok, NULL}, -EINVAL, "empty"},
	    {{0, 0, 1, 0, ok, ok, NULL}, -EINVAL, "empty"},
	    {{1, 0, 2, 2, ok, ok, NULL}, -ERANGE, "local plane 1"},
	    {{0, UINT32_MAX, 2, 2, ok, ok, NULL}, -ERANGE, "remote plane"},
	    {{0, 0, UINT32_MAX, 2, ok, ok, NULL}, -ERANGE, "planes"},
	    {{0, 0, 1, 2, big, ok, NULL}, -ERANGE, "local block id 16 (index 1"},
	    {{0, 0, 1, 2, ok, wild, NULL}, -ERANGE, "remote block id 4294967295"},
	    {{0, 1, 1, 2, ok, ok, NULL}, -EMEDIUMTYPE, "block_bytes 4096 here, 8192 there"},
	    {{0, 0, 1, 2, ok, ok, &zero}, -EINVAL, "positive"},
	    {{0, 0, 1, 2, ok, ok, &wide}, -EINVAL, "leave the local block of 4096"},
	    {{0, 0, 1, 2, ok, ok, &wrap}, -EINVAL, "slice"},
	    {{0, 0, 1, 2, ok, ok, &dense}, -EINVAL, "overlap"},
	    {{0, 0, 1, 2, ok, ok, &far}, -EINVAL, "slice"},
	};
	struct kvx_layout *layout;
	struct kvx_plan *plan = NULL;
	struct kvx_span span;
	refusal_setup(&layout, &plan);
	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
		struct kvx_why why = {""};
		int rc = kvx_plan_add_blocks(plan, &refusals[i].list, &why);
		cr_assert_eq(rc, refusals[i].err, "case %zu: %d %s", i, rc, why.text);
		cr_assert_not_null(strstr(why.text, refusals[i].says), "case %zu: \"%s\"", i,
				   why.text);
	}
	cr_assert_eq(kvx_plan_bytes(plan), 0);
	cr_assert_eq(kvx_plan_next(plan, UINT64_MAX, UINT64_MAX, &span, 1), 0);
	kvx_plan_destroy(plan);
	kvx_layout_destroy(layout);
	KVX_TEST_END();
}

/* A layout that lies (as a peer's may) is found out by the region's length. */
Test(plan_refuse, layout_larger_than_its_region_is_refused)
{
	struct kvx_layout *layout = kvx_layout_create(1);
	const uint32_t ids[] = {UINT32_MAX - 1}, zero[] = {0};
	struct kvx_plan *plan = NULL;
	layout->planes[0] = (struct kvx_plane){64, 1ull << 40, 4096, UINT32_MAX, "k"};
	struct kvx_plan_side side = {REGION_BYTES, layout};
	struct kvx_block_list list = {0, 0, 1, 1, zero, ids, NULL};
	cr_assert_eq(kvx_plan_create(&side, &side, &plan), 0);
	cr_assert_eq(kvx_plan_add_blocks(plan, &list, NULL), -ERANGE);
	layout->planes[0].block_stride = UINT64_MAX;
	cr_assert_eq(kvx_plan_add_blocks(plan, &list, NULL), -ERANGE);
	layout->planes[0].offset = UINT64_MAX - 10;
	list.remote_blocks = zero;
	cr_assert_eq(kvx_plan_add_blocks(plan, &list, NULL), -ERANGE);
	kvx_plan_destroy(plan);
	kvx_layout_destroy(layout);
	KVX_TEST_END();
}

/* Also when nothing was asked for before. */
Test(plan_refuse, lists_of_2_to_the_64_bytes_are_refused)
{
	struct kvx_layout *layout = kvx_layout_create(1);
	const uint64_t at[] = {0, 0}, len = 1ull << 63;
	const uint32_t ids[] = {0, 0};
	layout->planes[0] = (struct kvx_plane){0, len, len, 1, "k"};
	struct kvx_plan_side side = {len, layout};
	struct kvx_op_list ops = {2, 1, at, at, &len};
	struct kvx_block_list blocks = {0, 0, 1, 2, ids, ids, NULL};
	struct kvx_plan *plan = NULL;
	cr_assert_eq(kvx_plan_create(&side, &side, &plan), 0);
	cr_assert_eq(kvx_plan_add_ops(plan, &ops, NULL), -ERANGE);
	cr_assert_eq(kvx_plan_add_blocks(plan, &blocks, NULL), -ERANGE);
	cr_assert(kvx_plan_is_drained(plan) && kvx_plan_list_bytes(plan) == 0);
	kvx_plan_destroy(plan);
	kvx_layout_destroy(layout);
	KVX_TEST_END();
}

Test(plan_refuse, last_block_may_end_where_its_region_ends)
{
	struct kvx_layout *layout = kvx_layout_create(1);
	const uint32_t ids[] = {3};
	struct kvx_block_list list = {0, 0, 1, 1, ids, ids, NULL};
	layout->planes[0] = (struct kvx_plane){10, 100, 90, 4, "k"};
	for (uint64_t len = 399; len <= 401; len++) {
		struct kvx_plan_side side = {len, layout};
		struct kvx_plan *plan = NULL;
		cr_assert_eq(kvx_plan_create(&side, &side, &plan), 0);
		cr_assert_eq(kvx_plan_add_blocks(plan, &list, NULL), len < 400 ? -ERANGE : 0);
		kvx_plan_destroy(plan);
	}
	kvx_layout_destroy(layout);
	KVX_TEST_END();
}

Test(plan_refuse, block_list_without_layout_is_refused)
{
	struct kvx_plan_side side = {REGION_BYTES, NULL};
	const uint32_t ids[] = {0};
	struct kvx_block_list list = {0, 0, 1, 1, ids, ids, NULL};
	struct kvx_plan *plan = NULL;
	struct kvx_why why = {""};
	cr_assert_eq(kvx_plan_create(&side, &side, &plan), 0);
	cr_assert_eq(kvx_plan_add_blocks(plan, &list, &why), -EINVAL);
	cr_assert_not_null(strstr(why.text, "no layout"));
	kvx_plan_destroy(plan);
	KVX_TEST_END();
}

/* Random ops, valid or not: accepted exactly when every byte lies inside, and then never outside.
 */
Test(plan_refuse, random_ops_are_refused_exactly_when_outside)
{
	const uint64_t edge[] = {
	    0,          1,  REGION_BYTES - 1, REGION_BYTES, REGION_BYTES + 1, UINT64_MAX - 1,
	    UINT64_MAX, 512};
	struct kvx_plan_side side = {REGION_BYTES, NULL};
	unsigned n_ok = 0;
	rng_state = 42;
	for (unsigned round = 0; round < 20000; round++) {
		uint64_t l = edge[rng_below(8)], r = edge[rng_below(8)], len = edge[rng_below(8)];
		struct kvx_op_list list = {1, 1, &l, &r, &len};
		bool inside = len > 0 && len <= REGION_BYTES && l <= REGION_BYTES - len &&
			      r <= REGION_BYTES - len;
		struct kvx_plan *plan = NULL;
		struct kvx_span s;
		cr_assert_eq(kvx_plan_create(&side, &side, &plan), 0);
		int rc = kvx_plan_add_ops(plan, &list, NULL);
		cr_assert_eq(rc == 0, inside);
		cr_assert(rc == 0 || rc == -ERANGE || (rc == -EINVAL && len == 0));
		if (rc == 0) {
			cr_assert_eq(kvx_plan_next(plan, UINT64_MAX, UINT64_MAX, &s, 1), 1);
			cr_assert_leq(s.local_offset + s.len_bytes, REGION_BYTES);
			n_ok++;
		}
		kvx_plan_destroy(plan);
	}
	cr_assert_gt(n_ok, 100);
	KVX_TEST_END();
}

static uint64_t any_number(void)
{
	const uint64_t edge[] = {
	    0,         1, 4096, 65536, REGION_BYTES, UINT32_MAX, UINT64_MAX / 2, UINT64_MAX - 1,
	    UINT64_MAX};
	return rng() % 3 ? rng_below(8192) : edge[rng_below(9)];
}

/* Does every piece of the list lie in its block, its plane and its region? In numbers that cannot
 * wrap. */
static bool list_fits(const struct kvx_layout *layout, const uint32_t *ids, uint32_t first,
		      const struct kvx_block_list *list, bool local)
{
	typedef unsigned __int128 big;
	const struct kvx_slice *s = list->slice;
	if ((big)first + list->n_planes > layout->n_planes)
		return false;
	for (uint32_t p = first; p < first + list->n_planes; p++) {
		const struct kvx_plane *plane = &layout->planes[p];
		for (uint32_t i = 0; i < list->n_blocks; i++) {
			big end =
			    (big)ids[i] * plane->block_stride + plane->offset + plane->block_bytes;
			if (ids[i] >= plane->n_blocks || end > REGION_BYTES)
				return false;
		}
		if (s == NULL)
			continue;
		big stride = local ? s->local_stride : s->remote_stride;
		big at = local ? s->local_offset : s->remote_offset;
		if (s->count > 1 && stride < s->bytes)
			return false;
		if (s->count == 0 || s->bytes == 0 ||
		    at + (big)(s->count - 1) * stride + s->bytes > plane->block_bytes)
			return false;
	}
	return true;
}

static bool sizes_equal(const struct kvx_layout *a, const struct kvx_layout *b,
			const struct kvx_block_list *list)
{
	for (uint32_t i = 0; list->slice == NULL && i < list->n_planes; i++) {
		if (a->planes[list->local_plane + i].block_bytes !=
		    b->planes[list->remote_plane + i].block_bytes)
			return false;
	}
	return true;
}

static void wild_layout(struct kvx_layout *layout)
{
	for (uint32_t p = 0; p < layout->n_planes; p++)
		layout->planes[p] = (struct kvx_plane){
		    .offset = any_number(),
		    .block_stride = any_number(),
		    .block_bytes = 1 + rng_below(2) * 63 + rng_below(64) * (rng() % 4 == 0),
		    .n_blocks = (uint32_t)any_number()};
}

/* Lists, slices and layouts of any numbers at all: accepted exactly when every piece is inside. */
Test(plan_refuse, random_block_lists_are_refused_exactly_when_outside)
{
	struct kvx_layout *here = kvx_layout_create(3), *there = kvx_layout_create(3);
	struct kvx_plan_side local = {REGION_BYTES, here}, remote = {REGION_BYTES, there};
	unsigned n_ok = 0, n_slices = 0;
	rng_state = 4711;
	for (unsigned round = 0; round < 60000; round++) {
		uint32_t l[3], r[3];
		struct kvx_slice slice = {any_number() % 80, any_number() % 80, any_number() % 40,
					  any_number(),      any_number(),      rng_below(4)};
		struct kvx_block_list list = {rng_below(4),
					      rng_below(4),
					      1 + rng_below(3),
					      1 + rng_below(3),
					      l,
					      r,
					      rng() % 2 ? &slice : NULL};
		struct kvx_plan *plan = NULL;
		struct kvx_span s;
		wild_layout(here);
		wild_layout(there);
		for (uint32_t i = 0; i < 3; i++) {
			l[i] = rng() % 8 ? rng_below(4) : (uint32_t)any_number();
			r[i] = rng() % 8 ? rng_below(4) : (uint32_t)any_number();
		}
		bool fits = list_fits(here, l, list.local_plane, &list, true) &&
			    list_fits(there, r, list.remote_plane, &list, false) &&
			    sizes_equal(here, there, &list);
		cr_assert_eq(kvx_plan_create(&local, &remote, &plan), 0);
		cr_assert_eq(kvx_plan_add_blocks(plan, &list, NULL) == 0, fits, "round %u", round);
		while (kvx_plan_next(plan, UINT64_MAX, UINT64_MAX, &s, 1) == 1) {
			cr_assert(s.len_bytes <= REGION_BYTES &&
				  s.local_offset <= REGION_BYTES - s.len_bytes &&
				  s.remote_offset <= REGION_BYTES - s.len_bytes);
		}
		n_ok += fits;
		n_slices += fits && list.slice != NULL;
		kvx_plan_destroy(plan);
	}
	cr_assert(n_ok > 300 && n_slices > 50, "%u accepted, %u slices", n_ok, n_slices);
	kvx_layout_destroy(here);
	kvx_layout_destroy(there);
	KVX_TEST_END();
}

Test(plan_refuse, wrong_number_of_lengths_is_refused)
{
	const uint64_t v[] = {0, 1, 2};
	struct kvx_plan_side side = {REGION_BYTES, NULL};
	struct kvx_plan *plan = NULL;
	struct kvx_op_list list = {3, 2, v, v, v};
	cr_assert_eq(kvx_plan_create(&side, &side, &plan), 0);
	cr_assert_eq(kvx_plan_add_ops(plan, &list, NULL), -EINVAL);
	list.n_ops = 0;
	list.n_lens = 0;
	cr_assert_eq(kvx_plan_add_ops(plan, &list, NULL), -EINVAL);
	kvx_plan_destroy(plan);
	KVX_TEST_END();
}
