/* The helpers for common KV caches, against the formulas of client.h. */
#include <criterion/criterion.h>

#include "kvxfer/client.h"
#include "test_end.h"

Test(client_layout, split_kv_planes_follow_each_other)
{
	struct kvxfer_plane planes[6];

	cr_assert_eq(kvxfer_layout_split_kv(100, 3, 10, 64, planes), 6 * 10 * 64);
	for (unsigned p = 0; p < 6; p++) {
		cr_assert_str_eq(planes[p].name, p % 2 == 0 ? "k" : "v");
		cr_assert_eq(planes[p].offset, 100 + p * 640);
		cr_assert_eq(planes[p].block_stride, 64);
		cr_assert_eq(planes[p].block_bytes, 64);
		cr_assert_eq(planes[p].n_blocks, 10);
	}
	KVX_TEST_END();
}

/* [layer][block][K|V] */
Test(client_layout, interleaved_kv_alternates_k_and_v)
{
	struct kvxfer_plane planes[4];

	cr_assert_eq(kvxfer_layout_interleaved_kv(0, 2, 10, 64, planes), 4 * 10 * 64);
	for (unsigned l = 0; l < 2; l++)
		for (unsigned kv = 0; kv < 2; kv++) {
			const struct kvxfer_plane *plane = &planes[2 * l + kv];

			cr_assert_str_eq(plane->name, kv == 0 ? "k" : "v");
			cr_assert_eq(plane->offset, l * 10 * 2 * 64 + kv * 64);
			cr_assert_eq(plane->block_stride, 128);
			cr_assert_eq(plane->block_bytes, 64);
			cr_assert_eq(plane->n_blocks, 10);
		}
	KVX_TEST_END();
}

Test(client_layout, mla_has_one_plane_per_layer)
{
	struct kvxfer_plane planes[61];

	cr_assert_eq(kvxfer_layout_mla(4096, 61, 1000, 1152, planes), 61ull * 1000 * 1152);
	for (unsigned l = 0; l < 61; l++) {
		cr_assert_str_eq(planes[l].name, "kv");
		cr_assert_eq(planes[l].offset, 4096 + l * 1000ull * 1152);
		cr_assert_eq(planes[l].block_stride, 1152);
	}
	KVX_TEST_END();
}

Test(client_layout, zero_sizes_and_overflow_give_zero)
{
	struct kvxfer_plane planes[2];

	cr_assert_eq(kvxfer_layout_split_kv(0, 0, 1, 1, planes), 0);
	cr_assert_eq(kvxfer_layout_split_kv(0, 1, 0, 1, planes), 0);
	cr_assert_eq(kvxfer_layout_split_kv(0, 1, 1, 0, planes), 0);
	cr_assert_eq(kvxfer_layout_mla(0, 1, 2, UINT64_MAX, planes), 0);
	cr_assert_eq(kvxfer_layout_interleaved_kv(0, 1, 1, UINT64_MAX / 2 + 1, planes), 0);
	cr_assert_eq(kvxfer_layout_mla(UINT64_MAX - 10, 1, 1, 64, planes), 0);
	cr_assert_eq(kvxfer_layout_split_kv(0, UINT32_MAX, UINT32_MAX, 64, planes), 0);
	KVX_TEST_END();
}
