/* Copy kernels: every byte exactly once and none beside, for any length and alignment. */
#include "transport/copy_kernels.h"

#include <stdlib.h>
#include <string.h>

#include "test_end.h"
#include "test_memory.h"

#define ROOM  (96u * 1024u)
#define GUARD 0xa5u

static uint8_t *source;
static uint8_t *target;

static void setup(void)
{
	source = aligned_alloc(4096, ROOM);
	target = aligned_alloc(4096, ROOM);
	test_fill(source, ROOM, 1);
	memset(target, GUARD, ROOM);
}

static void teardown(void)
{
	free(source);
	free(target);
}

/* [at, at + len) holds the source from src_at on, and the 256 bytes around it nothing. Cleans up.
 */
static void expect_copied(size_t at, size_t src_at, size_t len)
{
	size_t low = at >= 256 ? at - 256 : 0, high = at + len + 256 < ROOM ? at + len + 256 : ROOM;

	for (size_t i = low; i < high; i++) {
		bool inside = i >= at && i < at + len;
		uint8_t want = inside ? source[src_at + i - at] : GUARD;

		cr_assert_eq(target[i], want, "len %zu to %zu from %zu: byte %zd", len, at, src_at,
			     (ssize_t)(i - at));
	}
	memset(target + at, GUARD, len);
}

static void run(void (*copy)(void *, const void *, size_t), size_t at, size_t src_at, size_t len)
{
	copy(target + at, source + src_at, len);
	kvx_copy_fence();
	expect_copied(at, src_at, len);
}

Test(copy_kernels, short_lengths_at_all_alignments)
{
	setup();
	for (size_t len = 0; len < 600; len += len < 140 ? 1 : 13)
		for (size_t at = 1024; at < 1024 + 64; at += 7)
			for (size_t src_at = 0; src_at < 64; src_at += 9) {
				run(kvx_copy_nt, at, src_at, len);
				run(kvx_copy_hot_nt, at, src_at, len);
				run(kvx_copy_memcpy, at, src_at, len);
			}
	teardown();
	KVX_TEST_END();
}

Test(copy_kernels, lengths_around_the_steps)
{
	static const size_t steps[] = {64, 256, 4096, 8192, 16384, 20480, 32768, 65536};

	setup();
	for (unsigned i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
		for (size_t len = steps[i] - 65; len < steps[i] + 66; len += 5)
			for (size_t at = 512; at < 512 + 64; at += 21) {
				run(kvx_copy_nt, at, at % 13, len);
				run(kvx_copy_hot_nt, at, at % 13, len);
			}
	teardown();
	KVX_TEST_END();
}

Test(copy_kernels, random_lengths_and_alignments)
{
	uint64_t rng = 5;

	setup();
	for (unsigned i = 0; i < 3000; i++) {
		size_t len = test_random(&rng, ROOM / 2), at = test_random(&rng, ROOM / 2);

		run(kvx_copy_nt, at, test_random(&rng, ROOM / 2), len);
	}
	teardown();
	KVX_TEST_END();
}

Test(copy_kernels, four_at_a_time)
{
	uint64_t rng = 6;

	setup();
	for (unsigned i = 0; i < 3000; i++) {
		size_t len = test_random(&rng, i % 2 ? 9000 : 200);
		uint8_t *dst[4];
		const uint8_t *src[4];

		for (unsigned k = 0; k < 4; k++) {
			dst[k] = target + k * 20000 + 300 + test_random(&rng, 5000);
			src[k] = source + test_random(&rng, ROOM - 9000);
		}
		kvx_copy_quad_nt(dst, src, len);
		kvx_copy_fence();
		for (unsigned k = 0; k < 4; k++)
			expect_copied((size_t)(dst[k] - target), (size_t)(src[k] - source), len);
	}
	teardown();
	KVX_TEST_END();
}

Test(copy_kernels, the_instruction_set_has_a_name)
{
	cr_assert_not_null(kvx_copy_isa());
	cr_assert_str_eq(kvx_copy_isa(), kvx_copy_isa());
	cr_assert_neq(kvx_copy_isa()[0], '\0');
	KVX_TEST_END();
}
