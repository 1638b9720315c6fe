/* Plan: random lists over random layouts, taken with random limits, against a model of them. */
#include <criterion/criterion.h>
#include <string.h>

#include "test_end.h"
#include "test_rng.h"
#include "xfer/plan.h"

#define REGION_BYTES (1u << 20)
#define MAX_PIECES   65536

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
Test(plan_random, random_requests_give_every_byte_once_in_order)
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
