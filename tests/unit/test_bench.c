/* What the benchmark's judgements rest on: patterns that show every wrong byte, percentiles, block
 * orders that visit everything once, copies that copy, messages that stay whole. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "limit.h"
#include "test_end.h"

Test(bench, pattern_shows_any_changed_byte_at_any_alignment)
{
	uint8_t mem[200];
	struct kvx_random random = {.state = 3};

	for (unsigned i = 0; i < 2000; i++) {
		uint64_t from = kvx_random_below(&random, 100);
		uint64_t len = 1 + kvx_random_below(&random, sizeof(mem) - 1);
		uint64_t seed = kvx_random_next(&random), at = kvx_random_below(&random, len);

		kvx_pattern_fill(mem, from, len, seed);
		cr_assert_eq(kvx_pattern_check(mem, from, len, seed), len);
		mem[at] ^= (uint8_t)(1 + kvx_random_below(&random, 255));
		cr_assert_eq(kvx_pattern_check(mem, from, len, seed), at);
	}
	KVX_TEST_END();
}

Test(bench, pattern_of_a_part_is_the_part_of_the_pattern)
{
	uint8_t whole[300], part[300];

	kvx_pattern_fill(whole, 0, sizeof(whole), 77);
	for (uint64_t from = 0; from < 40; from++) {
		kvx_pattern_fill(part, from, 100, 77);
		cr_assert_arr_eq(part, whole + from, 100);
	}
	cr_assert_neq(kvx_pattern_seed(1, 2, 3), kvx_pattern_seed(1, 3, 2));
	cr_assert_lt(kvx_pattern_check(whole, 8, 64, 77), 64, "a shifted block is wrong");
	KVX_TEST_END();
}

Test(bench, samples_give_median_and_nearest_rank)
{
	struct kvx_samples samples = {0};

	cr_assert_eq(kvx_samples_median(&samples), 0);
	for (unsigned i = 100; i >= 1; i--)
		kvx_samples_add(&samples, i);
	cr_assert_eq(kvx_samples_median(&samples), 50.5);
	cr_assert_eq(kvx_samples_at(&samples, 0), 1);
	cr_assert_eq(kvx_samples_at(&samples, 0.5), 50);
	cr_assert_eq(kvx_samples_at(&samples, 0.99), 99);
	cr_assert_eq(kvx_samples_at(&samples, 1), 100);
	kvx_samples_add(&samples, 0);
	cr_assert_eq(kvx_samples_at(&samples, 0), 0, "sorted again after an addition");
	cr_assert_eq(kvx_samples_median(&samples), 50);
	kvx_samples_fini(&samples);
	KVX_TEST_END();
}

Test(bench, geometries_are_those_of_the_models)
{
	const struct kvx_geometry *qwen = kvx_geometry_find("qwen3-235b-tp4");
	const struct kvx_geometry *mla = kvx_geometry_find("deepseek-v3-mla");
	const struct kvx_geometry *llama = kvx_geometry_find("llama-3.1-8b");

	cr_assert_eq(kvx_geometry_planes(qwen) * kvx_geometry_blocks(qwen, 2000), 23500);
	cr_assert_eq(kvx_geometry_block_total(qwen) * kvx_geometry_blocks(qwen, 2000), 96256000);
	cr_assert_eq(mla->block_bytes / mla->block_tokens, 1152);
	cr_assert_eq(kvx_geometry_planes(mla), 61);
	cr_assert_eq(kvx_geometry_planes(llama), 64);
	cr_assert_eq(kvx_geometry_blocks(llama, 17), 2);
	cr_assert_null(kvx_geometry_find("gpt"));
	KVX_TEST_END();
}

Test(bench, scatter_visits_every_block_once_before_any_comes_again)
{
	struct kvx_scatter scatter;
	uint8_t seen_src[64] = {0}, seen_dst[64] = {0};

	kvx_scatter_init(&scatter, NULL, NULL, 64 * 16, 16, 5);
	for (unsigned i = 0; i < 8; i++) {
		struct kvx_blocks_view view = kvx_scatter_next(&scatter, 8);

		for (unsigned k = 0; k < 8; k++) {
			seen_src[view.src[k]]++;
			seen_dst[view.dst[k]]++;
		}
	}
	for (unsigned i = 0; i < 64; i++) {
		cr_assert_eq(seen_src[i], 1);
		cr_assert_eq(seen_dst[i], 1);
	}
	kvx_scatter_fini(&scatter);
	KVX_TEST_END();
}

/* Copies through one limit and gives 1 + the first block that differs. */
static uint32_t copy_differs(uint64_t region, uint64_t block, uint32_t n, int how)
{
	uint8_t *src = malloc(region), *dst = malloc(region);
	struct kvx_scatter scatter;
	struct kvx_stream *stream = NULL;
	uint32_t differ;

	kvx_pattern_fill(src, 0, region, 1);
	kvx_pattern_fill(dst, 0, region, 2);
	kvx_scatter_init(&scatter, src, dst, region, block, 9);
	struct kvx_blocks_view view = kvx_scatter_next(&scatter, n);

	cr_assert_eq(kvx_blocks_differ(&view), 1, "nothing was copied yet");
	if (how < 4) {
		kvx_limit_copy(&view, how & 1 ? 2 : 1, how & 2 ? KVX_LIMIT_NT : KVX_LIMIT_MEMCPY);
	} else {
		cr_assert_eq(kvx_stream_start(&stream), 0);
		cr_assert_gt(kvx_stream_run(stream, &view, true), 0);
		kvx_stream_stop(stream);
	}
	differ = kvx_blocks_differ(&view);
	kvx_scatter_fini(&scatter);
	free(src);
	free(dst);
	return differ;
}

Test(bench, limits_copy_all_blocks)
{
	for (int how = 0; how < 5; how++) {
		cr_assert_eq(copy_differs(4 << 20, 4096, 700, how), 0, "4 KiB, %d", how);
		cr_assert_eq(copy_differs(4 << 20, 1001, 333, how), 0, "odd blocks, %d", how);
		cr_assert_eq(copy_differs(4 << 20, 1 << 20, 3, how), 0, "1 MiB, %d", how);
	}
	KVX_TEST_END();
}

Test(bench, shapes_that_do_not_fit_are_refused)
{
	struct kvx_shape shapes[KVX_MAX_SHAPES];
	unsigned n = 0;

	cr_assert_eq(kvx_shapes_parse("4K,1M", 0, 1 << 30, shapes, &n), 0);
	cr_assert_eq(n, 2);
	cr_assert_eq(shapes[0].n_blocks, 16384);
	cr_assert_eq(shapes[1].n_blocks, 64);
	cr_assert_eq(kvx_shapes_parse("4K", 100, 65536, shapes, &n), KVX_BENCH_USAGE);
	cr_assert_eq(kvx_shapes_parse("0", 1, 65536, shapes, &n), KVX_BENCH_USAGE);
	cr_assert_eq(kvx_shapes_parse("", 1, 65536, shapes, &n), KVX_BENCH_USAGE);
	KVX_TEST_END();
}

Test(bench, channel_keeps_messages_whole_when_both_ends_only_send)
{
	struct kvx_chan a, b;
	size_t big = 1 << 20, len;
	uint8_t *data = malloc(big);

	kvx_pattern_fill(data, 0, big, 4);
	cr_assert_eq(kvx_chan_pair(&a, &b), 0);
	/* Far more than a socket holds, in both directions, before anyone reads. */
	for (unsigned i = 0; i < 3; i++) {
		cr_assert_eq(kvx_chan_send(&a, data, big - i), 0);
		cr_assert_eq(kvx_chan_send(&b, data, big - i), 0);
	}
	for (unsigned i = 0; i < 3; i++) {
		const void *got = NULL;

		while (!(got = kvx_chan_next(&b, &len))) {
			cr_assert_eq(kvx_chan_pump(&a, 0), 0);
			cr_assert_eq(kvx_chan_pump(&b, 0), 0);
		}
		cr_assert_eq(len, big - i);
		cr_assert_eq(kvx_pattern_check(got, 0, len, 4), len);
	}
	kvx_chan_fini(&a);
	cr_assert_null(kvx_chan_wait(&b, 50, &len), "the other end is gone");
	kvx_chan_fini(&b);
	free(data);
	KVX_TEST_END();
}
