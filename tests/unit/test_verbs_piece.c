/* Pieces of a region without a device: how segments become registrations and pieces, how an offset
 * finds its piece; and keys of many pieces, also those that no daemon would send. */
#include <criterion/criterion.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault_alloc.h"
#include "test_end.h"
#include "test_memory.h"
#include "transport/verbs/verbs_priv.h"

#define MAX_SEGMENTS 200u
#define KEY_HEAD     32u
#define KEY_PIECE    20u

struct plan {
	struct kvx_gpu_mem gpu;
	struct kvx_gpu_base bases[8];
	struct kvx_gpu_segment segments[MAX_SEGMENTS];
	struct verbs_gpu_span spans[VERBS_MAX_PIECES];
	struct verbs_piece pieces[VERBS_MAX_PIECES];
	uint64_t len_bytes;
	int n_spans, n_pieces;
};

/* Segments anywhere in their allocations, now and then right behind the one before. */
static void segments_random(struct plan *p, uint64_t *seed)
{
	uint32_t n = 1 + (uint32_t)test_random(seed, MAX_SEGMENTS);

	memset(p, 0, sizeof(*p));
	p->gpu.bases = p->bases;
	p->gpu.segments = p->segments;
	p->gpu.n_bases = 1 + (uint32_t)test_random(seed, 8);
	p->gpu.n_segments = n;
	for (uint32_t i = 0; i < n; i++) {
		struct kvx_gpu_segment *s = &p->segments[i];

		*s = (struct kvx_gpu_segment){
		    .start = p->len_bytes,
		    .len_bytes = 1 + test_random(seed, test_random(seed, 2) == 0 ? 9 : 9000),
		    .offset = test_random(seed, 40000),
		    .base = (uint32_t)test_random(seed, p->gpu.n_bases)};
		if (i > 0 && test_random(seed, 2) == 0) {
			s->base = s[-1].base;
			s->offset = s[-1].offset + s[-1].len_bytes;
		}
		p->len_bytes += s->len_bytes;
	}
}

/* Each byte of the region: in exactly one piece, whose registration covers it where it is. */
static void expect_right(const struct plan *p, uint64_t max_mr)
{
	struct verbs_piece hit = p->pieces[0];
	uint64_t at = 0;

	for (int i = 0; i < p->n_spans; i++)
		cr_assert(p->spans[i].begin < p->spans[i].end &&
			  p->spans[i].end - p->spans[i].begin <= max_mr);
	for (int i = 0; i < p->n_pieces; i++) {
		const struct verbs_gpu_span *span = &p->spans[p->pieces[i].mr];
		uint64_t begin = p->pieces[i].start + p->pieces[i].delta;

		cr_assert_eq(p->pieces[i].start, at);
		at += p->pieces[i].len_bytes;
		cr_assert(begin >= span->begin && begin + p->pieces[i].len_bytes <= span->end);
	}
	cr_assert_eq(at, p->len_bytes);
	for (uint64_t byte = 0; byte < p->len_bytes; byte += 1 + byte % 7) {
		const struct kvx_gpu_segment *s = &p->segments[kvx_gpu_mem_find(&p->gpu, byte)];

		verbs_piece_find(&hit, p->pieces, (uint32_t)p->n_pieces, byte);
		cr_assert(verbs_piece_has(&hit, byte, 1));
		cr_assert_eq(byte + hit.delta, s->offset + (byte - s->start));
		cr_assert_eq(p->spans[hit.mr].base, s->base);
	}
}

Test(verbs_piece, every_byte_of_random_segments_is_where_it_should_be)
{
	static struct plan p;
	uint64_t seed = 12;

	for (unsigned round = 0; round < 500; round++) {
		uint64_t max_mr = test_random(&seed, 2) == 0 ? 1ull << 40 : 8192;

		segments_random(&p, &seed);
		p.n_spans = verbs_spans_plan(&p.gpu, max_mr, p.spans, VERBS_MAX_PIECES);
		cr_assert_gt(p.n_spans, 0);
		p.n_pieces = verbs_pieces_plan(&p.gpu, p.spans, (uint32_t)p.n_spans, p.pieces,
					       VERBS_MAX_PIECES);
		cr_assert_gt(p.n_pieces, 0);
		expect_right(&p, max_mr);
	}
	KVX_TEST_END();
}

Test(verbs_piece, neighbours_in_one_allocation_are_one_piece)
{
	static struct plan p;

	memset(&p, 0, sizeof(p));
	p.gpu.bases = p.bases;
	p.gpu.segments = p.segments;
	p.gpu.n_bases = 2;
	p.gpu.n_segments = 4;
	for (uint32_t i = 0; i < 4; i++)
		p.segments[i] = (struct kvx_gpu_segment){
		    .start = i * 100, .len_bytes = 100, .offset = i * 100, .base = i / 2};
	p.len_bytes = 400;
	p.n_spans = verbs_spans_plan(&p.gpu, UINT64_MAX, p.spans, VERBS_MAX_PIECES);
	cr_assert_eq(p.n_spans, 2);
	p.n_pieces = verbs_pieces_plan(&p.gpu, p.spans, 2, p.pieces, VERBS_MAX_PIECES);
	cr_assert_eq(p.n_pieces, 2, "two of one allocation, not those of two");
	cr_assert_eq(verbs_pieces_plan(&p.gpu, p.spans, 2, p.pieces, 1), -EMSGSIZE);
	cr_assert_eq(verbs_spans_plan(&p.gpu, UINT64_MAX, p.spans, 1), -EMSGSIZE);
	cr_assert_eq(verbs_spans_plan(&p.gpu, 4095, p.spans, 9), -EMSGSIZE, "less than a page");
	KVX_TEST_END();
}

/* --- keys */

struct keyed {
	struct kvx_mr mr;
	struct verbs_flush flush;
	struct ibv_mr ibmr[4], flush_mr;
	struct ibv_mr *mrs[4];
	struct verbs_piece pieces[VERBS_MAX_PIECES];
	uint8_t key[KVX_TRANSPORT_MKEY_MAX];
	int len;
};

static void key_make(struct keyed *k, uint32_t n_pieces, uint32_t rights, bool own_flush)
{
	uint64_t seed = n_pieces;

	memset(k, 0, sizeof(*k));
	k->mr = (struct kvx_mr){.flush = &k->flush,
				.rights = rights,
				.n_pieces = n_pieces,
				.n_mrs = 4,
				.pieces = k->pieces,
				.mrs = k->mrs};
	k->flush = (struct verbs_flush){
	    .addr = 0x7000, .rkey = 0x55, .mr = own_flush ? &k->flush_mr : NULL};
	for (uint32_t i = 0; i < 4; i++) {
		k->ibmr[i].rkey = 0x100 + i;
		k->mrs[i] = &k->ibmr[i];
	}
	for (uint32_t i = 0; i < n_pieces; i++) {
		k->pieces[i] = (struct verbs_piece){.start = k->mr.len_bytes,
						    .len_bytes = 1 + test_random(&seed, 100000),
						    .delta = 0x10000 + test_random(&seed, 1 << 30),
						    .mr = i % 4};
		k->mr.len_bytes += k->pieces[i].len_bytes;
	}
	k->len = verbs_mkey_pack(&k->mr, k->key, sizeof(k->key));
}

static int unpack(const void *key, size_t len, struct kvx_rkey **out_rkey)
{
	/* Exactly as long as it is, for the address sanitizer. */
	uint8_t *copy = malloc(len > 0 ? len : 1);
	int rc;

	memcpy(copy, key, len);
	rc = verbs_rkey_unpack(NULL, copy, len, out_rkey);
	free(copy);
	return rc;
}

Test(verbs_piece, key_of_a_thousand_pieces_comes_back_as_it_was_packed)
{
	static struct keyed k;
	struct kvx_rkey *rkey;

	key_make(&k, VERBS_MAX_PIECES, KVX_ACCESS_WRITE, true);
	cr_assert_eq(k.len, KEY_HEAD + KEY_PIECE * VERBS_MAX_PIECES);
	cr_assert_eq(verbs_mkey_pack(&k.mr, k.key, (size_t)k.len - 1), -ENOSPC);
	cr_assert_eq(unpack(k.key, (size_t)k.len, &rkey), 0);
	cr_assert_eq(rkey->len_bytes, k.mr.len_bytes);
	cr_assert_eq(rkey->rights, KVX_ACCESS_WRITE);
	cr_assert_eq(rkey->flush_by, VERBS_FLUSH_MEMORY);
	cr_assert_eq(rkey->flush_addr, 0x7000);
	cr_assert_eq(rkey->flush_rkey, 0x55);
	for (uint32_t i = 0; i < VERBS_MAX_PIECES; i++) {
		cr_assert_eq(rkey->pieces[i].start, k.pieces[i].start);
		cr_assert_eq(rkey->pieces[i].len_bytes, k.pieces[i].len_bytes);
		cr_assert_eq(rkey->pieces[i].delta, k.pieces[i].delta);
		cr_assert_eq(rkey->pieces[i].key, 0x100 + i % 4);
	}
	verbs_rkey_free(rkey);
	KVX_TEST_END();
}

static void put(struct keyed *k, size_t at, uint64_t value, size_t bytes)
{
	value = htole64(value);
	memcpy(k->key + at, &value, bytes);
}

/* A sound key with one thing wrong. */
#define EXPECT_REFUSED(at, value, bytes)                                                           \
	do {                                                                                       \
		struct kvx_rkey *rkey_ = NULL;                                                     \
                                                                                                   \
		key_make(&k, 3, KVX_ACCESS_READ | KVX_ACCESS_WRITE, true);                         \
		put(&k, at, value, bytes);                                                         \
		cr_assert_eq(unpack(k.key, (size_t)k.len, &rkey_), -EINVAL);                       \
		cr_assert_null(rkey_);                                                             \
	} while (0)

Test(verbs_piece, key_that_no_daemon_would_send_is_refused)
{
	static struct keyed k;
	struct kvx_rkey *rkey = NULL;

	EXPECT_REFUSED(0, 0, 1);              /* version */
	EXPECT_REFUSED(0, 1, 1);              /* that of the other form */
	EXPECT_REFUSED(0, 3, 1);              /* of the future */
	EXPECT_REFUSED(1, 4, 1);              /* rights that there are not */
	EXPECT_REFUSED(2, VERBS_FLUSH_EP, 1); /* flushed as host memory */
	EXPECT_REFUSED(2, 3, 1);
	EXPECT_REFUSED(2, VERBS_FLUSH_SELF, 1); /* with a place to flush by */
	EXPECT_REFUSED(3, 1, 1);
	EXPECT_REFUSED(28, 1, 4);
	EXPECT_REFUSED(4, 0, 4); /* pieces */
	EXPECT_REFUSED(4, 2, 4);
	EXPECT_REFUSED(4, 4, 4);
	EXPECT_REFUSED(4, UINT32_MAX, 4);
	EXPECT_REFUSED(8, 0, 8); /* length of the region */
	EXPECT_REFUSED(8, k.mr.len_bytes - 1, 8);
	EXPECT_REFUSED(8, k.mr.len_bytes + 1, 8);
	EXPECT_REFUSED(8, UINT64_MAX, 8);
	EXPECT_REFUSED(16, UINT64_MAX - 3, 8);   /* place to flush by */
	EXPECT_REFUSED(KEY_HEAD, 0, 8);          /* length of a piece */
	EXPECT_REFUSED(KEY_HEAD, UINT64_MAX, 8); /* sum over all addresses */
	EXPECT_REFUSED(KEY_HEAD, 1ull << 63, 8);
	EXPECT_REFUSED(KEY_HEAD + 8, UINT64_MAX, 8); /* a piece over all addresses */
	key_make(&k, 2, KVX_ACCESS_READ, true);      /* a sum that comes right by running over */
	put(&k, KEY_HEAD, k.mr.len_bytes + 100, 8);
	put(&k, KEY_HEAD + KEY_PIECE, 0 - (uint64_t)100, 8);
	put(&k, KEY_HEAD + KEY_PIECE + 8, 0, 8);
	cr_assert_eq(unpack(k.key, (size_t)k.len, &rkey), -EINVAL);
	key_make(&k, 3, KVX_ACCESS_WRITE, false); /* nothing to flush by, and not to be read */
	cr_assert_eq(unpack(k.key, (size_t)k.len, &rkey), -EINVAL);
	for (int len = 0; len < k.len; len++) {
		key_make(&k, 3, KVX_ACCESS_READ, true);
		cr_assert_eq(unpack(k.key, (size_t)len, &rkey), -EINVAL, "cut at %d", len);
	}
	key_make(&k, 3, KVX_ACCESS_READ, true);
	cr_assert_eq(unpack(k.key, (size_t)k.len + 1, &rkey), -EINVAL, "one byte too many");
	KVX_TEST_END();
}

/* Whatever is taken is sound: the pieces are the region from its first to its last byte. */
static void expect_sound(const struct kvx_rkey *rkey)
{
	uint64_t at = 0;

	cr_assert(rkey->n_pieces > 0 && rkey->n_pieces <= VERBS_MAX_PIECES);
	for (uint32_t i = 0; i < rkey->n_pieces; i++) {
		const struct verbs_piece *piece = &rkey->pieces[i];

		cr_assert_eq(piece->start, at);
		cr_assert_gt(piece->len_bytes, 0);
		at += piece->len_bytes;
		cr_assert_leq(piece->start + piece->delta, UINT64_MAX - piece->len_bytes);
	}
	cr_assert_eq(at, rkey->len_bytes);
	cr_assert(rkey->len_bytes > 0 && rkey->len_bytes <= UINT64_MAX / 2);
	cr_assert(rkey->flush_by != VERBS_FLUSH_SELF || (rkey->rights & KVX_ACCESS_READ) != 0);
}

Test(verbs_piece, random_keys_do_no_harm)
{
	static struct keyed k;
	static uint8_t bytes[KVX_TRANSPORT_MKEY_MAX];
	unsigned n_taken = 0;
	uint64_t seed = 33;

	for (unsigned i = 0; i < 200000; i++) {
		struct kvx_rkey *rkey;
		size_t len;

		if (i % 100 == 0)
			key_make(&k, 1 + (uint32_t)test_random(&seed, 20),
				 KVX_ACCESS_READ | KVX_ACCESS_WRITE, test_random(&seed, 2) == 0);
		len = (size_t)k.len;
		memcpy(bytes, k.key, sizeof(bytes));
		for (unsigned n = 0; n < 1 + test_random(&seed, 3); n++)
			bytes[test_random(&seed, i % 2 == 0 ? KEY_HEAD : len)] =
			    (uint8_t)test_random(&seed, 256);
		if (i % 8 == 0)
			len = test_random(&seed, 600);
		if (i % 16 == 0) { /* nothing but noise behind the version */
			for (size_t n = 1; n < len; n++)
				bytes[n] = (uint8_t)test_random(&seed, 256);
			bytes[0] = (uint8_t)(1 + test_random(&seed, 2));
		}
		if (unpack(bytes, len, &rkey) != 0)
			continue;
		n_taken++;
		expect_sound(rkey);
		verbs_rkey_free(rkey);
	}
	cr_assert_gt(n_taken, 1000);
	KVX_TEST_END();
}

Test(verbs_piece, key_without_memory_for_it_is_refused)
{
	static struct keyed k;
	struct kvx_rkey *rkey = NULL;

	key_make(&k, 9, KVX_ACCESS_READ, true);
	fault_alloc_arm(1);
	cr_assert_eq(verbs_rkey_unpack(NULL, k.key, (size_t)k.len, &rkey), -ENOMEM);
	cr_assert(fault_alloc_disarm());
	cr_assert_null(rkey);
	KVX_TEST_END();
}
