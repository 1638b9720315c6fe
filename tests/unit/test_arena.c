/* The allocator of unpacked messages: limits, growth, and what reset gives back. */
#include "control/arena.h"

#include <criterion/criterion.h>
#include <stdint.h>
#include <string.h>

#include "test_end.h"

Test(arena, allocations_are_aligned_and_apart)
{
	struct kvx_arena *arena;
	uint8_t *p[100];

	cr_assert_eq(kvx_arena_create(256, &arena), 0);
	kvx_arena_reset(arena, 1 << 20);
	for (size_t i = 0; i < 100; i++) {
		p[i] = kvx_arena_alloc(arena, i + 1);
		cr_assert_neq(p[i], NULL);
		cr_assert_eq((uintptr_t)p[i] % 16, 0);
		memset(p[i], (int)i, i + 1);
	}
	for (size_t i = 0; i < 100; i++)
		cr_assert(p[i][0] == i && p[i][i] == i, "object %zu was overwritten", i);
	kvx_arena_destroy(arena);
	KVX_TEST_END();
}

Test(arena, over_the_limit_is_refused_until_reset)
{
	struct kvx_arena *arena;

	cr_assert_eq(kvx_arena_create(64, &arena), 0);
	kvx_arena_reset(arena, 1024);
	cr_assert_neq(kvx_arena_alloc(arena, 1008), NULL);
	cr_assert_not(kvx_arena_is_exhausted(arena));
	cr_assert_eq(kvx_arena_alloc(arena, 17), NULL);
	cr_assert(kvx_arena_is_exhausted(arena));
	cr_assert_neq(kvx_arena_alloc(arena, 16), NULL, "what still fits is given");
	kvx_arena_reset(arena, 1024);
	cr_assert_not(kvx_arena_is_exhausted(arena));
	cr_assert_eq(kvx_arena_used(arena), 0);
	kvx_arena_destroy(arena);
	KVX_TEST_END();
}

Test(arena, sizes_that_wrap_are_refused)
{
	struct kvx_arena *arena;

	cr_assert_eq(kvx_arena_create(64, &arena), 0);
	kvx_arena_reset(arena, 1024);
	cr_assert_eq(kvx_arena_alloc(arena, SIZE_MAX), NULL);
	cr_assert_eq(kvx_arena_alloc(arena, SIZE_MAX - 15), NULL);
	cr_assert_eq(kvx_arena_alloc(arena, SIZE_MAX / 2), NULL);
	kvx_arena_destroy(arena);
	KVX_TEST_END();
}

Test(arena, memory_of_the_first_block_is_used_again_after_reset)
{
	struct kvx_arena *arena;
	void *first;

	cr_assert_eq(kvx_arena_create(256, &arena), 0);
	kvx_arena_reset(arena, 4096);
	first = kvx_arena_alloc(arena, 32);
	cr_assert_neq(kvx_arena_alloc(arena, 3000), NULL); /* another block */
	kvx_arena_reset(arena, 4096);
	cr_assert_eq(kvx_arena_alloc(arena, 32), first);
	kvx_arena_destroy(arena);
	KVX_TEST_END();
}
