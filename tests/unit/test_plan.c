/* Plan: properties over random layouts, block lists, slices, ops and limits, and each refusal. */
#include "xfer/plan.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fault_alloc.h"
#include "test_end.h"

#define REGION_BYTES (1u << 20)
#define MAX_PIECES   65536

static uint64_t rng_state;

static uint64_t rng(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state;
}

static uint32_t rng_below(uint32_t n)
{
	return (uint32_t)(rng() % n);
}

/* What a request means, piece by piece: written for being obvious, not fast. */
struct model {
	unsigned n;
	struct kvx_span pieces[MAX_PIECES];
};
static struct model model;

static void model_add(uint64_t local, uint64_t remote, uint64_t len)
{
	cr_assert_lt(model.n, MAX_PIECES);
	model.pieces[model.n++] = (struct kvx_span){local, remote, len};
}

static void model_add_blocks(const struct kvx_layout *here, const struct kvx_layout *there,
			     const struct kvx_block_list *list)
{
	for (uint32_t p = 0; p < list->n_planes; p++) {
		const struct kvx_plane *l = &here->planes[list->local_plane + p];
		const struct kvx_plane *r = &there->planes[list->remote_plane + p];
		for (uint32_t b = 0; b < list->n_blocks; b++) {
			uint64_t lo = l->offset + list->local_blocks[b] * l->block_stride;
			uint64_t ro = r->offset + list->remote_blocks[b] * r->block_stride;
			const struct kvx_slice *s = list->slice;
			if (s == NULL)
				model_add(lo, ro, l->block_bytes);
			for (uint32_t j = 0; s != NULL && j < s->count; j++)
				model_add(lo + s->local_offset + j * s->local_stride,
					  ro + s->remote_offset + j * s->remote_stride, s->bytes);
		}
	}
}

static struct kvx_layout *random_layout(uint32_t n_planes, uint64_t block_bytes)
{
	struct kvx_layout *layout = kvx_layout_create(n_planes);
	cr_assert_not_null(layout);
	uint64_t share = REGION_BYTES / n_planes;
	for (uint32_t p = 0; p < n_planes; p++) {
		struct kvx_plane *plane = &layout->planes[p];
		plane->block_bytes = block_bytes;
		/* Often dense, so that neighbours can be merged, across planes too. */
		plane->block_stride = block_bytes + (rng() % 2 ? 0 : rng_below(64));
		plane->offset = p * share;
		plane->n_blocks = (uint32_t)((share - block_bytes) / plane->block_stride + 1);
	}
	return layout;
}

static void random_blocks(uint32_t *ids, uint32_t n, uint32_t limit)
{
	uint32_t id = rng_below(limit);
	for (uint32_t i = 0; i < n; i++) {
		ids[i] = id;
		id = rng() % 3 == 0 ? rng_below(limit) : (id + 1) % limit;
	}
}

static uint32_t min_blocks(const struct kvx_layout *layout)
{
	uint32_t n = UINT32_MAX;
	for (uint32_t p = 0; p < layout->n_planes; p++)
		n = layout->planes[p].n_blocks < n ? layout->planes[p].n_blocks : n;
	return n;
}

/* Random slice that fits blocks of both sizes. */
static struct kvx_slice random_slice(uint64_t local_bytes, uint64_t remote_bytes)
{
	uint64_t small = local_bytes < remote_bytes ? local_bytes : remote_bytes;
	struct kvx_slice s = {.count = 1 + rng_below(4)};
	s.bytes = 1 + rng_below((uint32_t)(small / s.count));
	s.local_stride = s.bytes + (rng() % 2 ? 0 : (local_bytes / s.count - s.bytes));
	s.remote_stride = s.bytes + (rng() % 2 ? 0 : (remote_bytes / s.count - s.bytes));
	s.local_offset =
	    rng_below((uint32_t)(local_bytes - (s.count - 1) * s.local_stride - s.bytes + 1));
	s.remote_offset =
	    rng_below((uint32_t)(remote_bytes - (s.count - 1) * s.remote_stride - s.bytes + 1));
	return s;
}

struct limits {
	uint64_t max_span, max_bytes;
	unsigned max;
};

static struct limits random_limits(void)
{
	const uint64_t sizes[] = {1, 7, 100, 4096, 65536, 1u << 30, UINT64_MAX};
	return (struct limits){sizes[rng_below(7)], sizes[rng_below(7)], 1 + rng_below(128)};
}

struct walk {
	unsigned piece;
	uint64_t piece_at;
	uint64_t bytes;
	struct kvx_span last;
};

/* The spans must be the model's bytes, in its order. */
static void walk_span(struct walk *walk, const struct kvx_span *span)
{
	uint64_t left = span->len_bytes, at = 0;
	cr_assert_gt(left, 0);
	while (left > 0) {
		cr_assert_lt(walk->piece, model.n, "more bytes than asked for");
		const struct kvx_span *piece = &model.pieces[walk->piece];
		cr_assert_eq(span->local_offset + at, piece->local_offset + walk->piece_at);
		cr_assert_eq(span->remote_offset + at, piece->remote_offset + walk->piece_at);
		uint64_t n = piece->len_bytes - walk->piece_at;
		n = n < left ? n : left;
		walk->piece_at += n;
		at += n;
		left -= n;
		if (walk->piece_at == piece->len_bytes) {
			walk->piece++;
			walk->piece_at = 0;
		}
	}
	walk->bytes += span->len_bytes;
	walk->last = *span;
}

/* Takes spans until nothing comes; checks the limits. Returns the number of spans. */
static unsigned walk_all(struct walk *walk, struct kvx_plan *plan, const struct limits *fixed)
{
	struct kvx_span spans[128];
	unsigned total = 0;
	for (;;) {
		struct limits lim = fixed != NULL ? *fixed : random_limits();
		uint64_t sum = 0;
		unsigned n = kvx_plan_next(plan, lim.max_span, lim.max_bytes, spans, lim.max);
		cr_assert_leq(n, lim.max);
		if (n == 0)
			break;
		for (unsigned i = 0; i < n; i++) {
			cr_assert_leq(spans[i].len_bytes, lim.max_span);
			sum += spans[i].len_bytes;
			walk_span(walk, &spans[i]);
		}
		cr_assert_leq(sum, lim.max_bytes);
		total += n;
	}
	cr_assert(kvx_plan_is_drained(plan));
	cr_assert_eq(kvx_plan_backlog(plan), 0);
	return total;
}

struct sides {
	struct kvx_layout *here, *there;
	struct kvx_plan_side local, remote;
	uint32_t ids_l[512], ids_r[512];
	uint64_t offs_l[512], offs_r[512], lens[512];
};
static struct sides sides;

static void sides_init(uint32_t n_planes, uint64_t local_bytes, uint64_t remote_bytes)
{
	sides.here = random_layout(n_planes, local_bytes);
	sides.there = random_layout(n_planes, remote_bytes);
	sides.local = (struct kvx_plan_side){REGION_BYTES, sides.here};
	sides.remote = (struct kvx_plan_side){REGION_BYTES, sides.there};
	model.n = 0;
}

static void sides_fini(void)
{
	kvx_layout_destroy(sides.here);
	kvx_layout_destroy(sides.there);
}

static void add_random_blocks(struct kvx_plan *plan, uint32_t n_planes)
{
	struct kvx_slice slice;
	uint64_t l = sides.here->planes[0].block_bytes, r = sides.there->planes[0].block_bytes;
	struct kvx_block_list list = {.n_blocks = 1 + rng_below(64),
				      .local_blocks = sides.ids_l,
				      .remote_blocks = sides.ids_r};
	struct kvx_why why = {""};
	list.local_plane = rng_below(n_planes);
	list.remote_plane = rng_below(n_planes);
	uint32_t first =
	    list.local_plane > list.remote_plane ? list.local_plane : list.remote_plane;
	list.n_planes = 1 + rng_below(n_planes - first);
	random_blocks(sides.ids_l, list.n_blocks, min_blocks(sides.here));
	random_blocks(sides.ids_r, list.n_blocks, min_blocks(sides.there));
	if (l != r || rng() % 2) {
		slice = random_slice(l, r);
		list.slice = &slice;
	}
	model_add_blocks(sides.here, sides.there, &list);
	cr_assert_eq(kvx_plan_add_blocks(plan, &list, &why), 0, "%s", why.text);
	memset(sides.ids_l, 0xff, sizeof(sides.ids_l)); /* borrowed for the call only */
	memset(sides.ids_r, 0xff, sizeof(sides.ids_r));
}

static void add_random_ops(struct kvx_plan *plan)
{
	struct kvx_op_list list = {.n_ops = 1 + rng_below(256),
				   .local_offsets = sides.offs_l,
				   .remote_offsets = sides.offs_r,
				   .lens = sides.lens};
	bool one_len = rng() % 2;
	uint64_t l = rng_below(1000), r = rng_below(1000);
	list.n_lens = one_len ? 1 : list.n_ops;
	for (uint32_t i = 0; i < list.n_ops; i++) {
		sides.lens[i] = one_len && i > 0 ? sides.lens[0] : 1 + rng_below(2000);
		sides.offs_l[i] = l;
		sides.offs_r[i] = r;
		model_add(l, r, sides.lens[i]);
		l += sides.lens[i];
		r += sides.lens[i];
		if (rng() % 3 == 0 || l > REGION_BYTES - 2000)
			l = rng_below(REGION_BYTES - 2000);
		if (rng() % 3 == 0 || r > REGION_BYTES - 2000)
			r = rng_below(REGION_BYTES - 2000);
	}
	struct kvx_why why = {""};
	cr_assert_eq(kvx_plan_add_ops(plan, &list, &why), 0, "%s", why.text);
}

static uint64_t model_bytes(void)
{
	uint64_t sum = 0;
	for (unsigned i = 0; i < model.n; i++)
		sum += model.pieces[i].len_bytes;
	return sum;
}

/* Several lists, added at any time, walked with any limits: every byte once, in order. */
Test(plan, random_requests_give_every_byte_once_in_order)
{
	for (uint64_t seed = 1; seed <= 400; seed++) {
		struct walk walk = {0};
		struct kvx_plan *plan = NULL;
		rng_state = seed * 0x9e3779b97f4a7c15ull;
		uint32_t n_planes = 1 + rng_below(6);
		uint64_t l = 8 + rng_below(1500), r = rng() % 2 ? l : 8 + rng_below(1500);
		sides_init(n_planes, l, r);
		cr_assert_eq(kvx_plan_create(&sides.local, &sides.remote, &plan), 0);
		for (unsigned i = 0, n = 1 + rng_below(5); i < n; i++) {
			if (rng() % 3 == 0)
				add_random_ops(plan);
			else
				add_random_blocks(plan, n_planes);
			if (rng() % 2)
				walk_all(&walk, plan, NULL);
		}
		cr_assert_eq(kvx_plan_bytes(plan), model_bytes());
		cr_assert_eq(kvx_plan_pieces(plan), model.n);
		cr_assert_eq(kvx_plan_backlog(plan), model_bytes() - walk.bytes);
		walk_all(&walk, plan, NULL);
		cr_assert_eq(walk.piece, model.n);
		cr_assert_eq(walk.bytes, model_bytes());
		kvx_plan_destroy(plan);
		sides_fini();
	}
	KVX_TEST_END();
}

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

Test(plan, bad_block_lists_are_refused_and_change_nothing)
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
Test(plan, layout_larger_than_its_region_is_refused)
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

Test(plan, last_block_may_end_where_its_region_ends)
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

Test(plan, block_list_without_layout_is_refused)
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
Test(plan, random_ops_are_refused_exactly_when_outside)
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
Test(plan, random_block_lists_are_refused_exactly_when_outside)
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

Test(plan, wrong_number_of_lengths_is_refused)
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
