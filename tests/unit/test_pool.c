/* The object pool: alignment, exhaustion, and that misuse ends the process. */
#include "base/pool.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>

#include "fault_alloc.h"
#include "test_end.h"

Test(pool, objects_are_aligned_apart_and_zeroed)
{
	struct kvx_pool *pool;
	uint8_t *objs[7];

	cr_assert_eq(kvx_pool_create(100, 7, &pool), 0);
	for (unsigned i = 0; i < 7; i++) {
		static const uint8_t zeros[100];

		objs[i] = kvx_pool_get(pool);
		cr_assert_not_null(objs[i]);
		cr_assert_eq((uintptr_t)objs[i] % 64, 0);
		cr_assert_arr_eq(objs[i], zeros, 100);
		memset(objs[i], (int)i + 1, 100);
	}
	for (unsigned i = 0; i < 7; i++)
		for (unsigned j = 0; j < 100; j++)
			cr_assert_eq(objs[i][j], i + 1);
	for (unsigned i = 0; i < 7; i++)
		kvx_pool_put(pool, objs[i]);
	kvx_pool_destroy(pool);
	KVX_TEST_END();
}

Test(pool, empty_pool_gives_null_until_one_is_back)
{
	struct kvx_pool *pool;
	void *a, *b;

	cr_assert_eq(kvx_pool_create(8, 2, &pool), 0);
	a = kvx_pool_get(pool);
	b = kvx_pool_get(pool);
	cr_assert_neq(a, b);
	cr_assert_eq(kvx_pool_available(pool), 0);
	cr_assert_null(kvx_pool_get(pool));
	kvx_pool_put(pool, a);
	cr_assert_eq(kvx_pool_available(pool), 1);
	cr_assert_eq(kvx_pool_get(pool), a);
	kvx_pool_put(pool, a);
	kvx_pool_put(pool, b);
	kvx_pool_destroy(pool);
	KVX_TEST_END();
}

Test(pool, impossible_sizes_and_failing_allocations_are_reported)
{
	struct kvx_pool *pool = NULL;
	int err;

	cr_assert_eq(kvx_pool_create(0, 1, &pool), -EINVAL);
	cr_assert_eq(kvx_pool_create(1, 0, &pool), -EINVAL);
	cr_assert_eq(kvx_pool_create(SIZE_MAX, 1, &pool), -EINVAL);
	cr_assert_eq(kvx_pool_create(SIZE_MAX / 2, 3, &pool), -EINVAL);
	for (unsigned n = 1;; n++) {
		fault_alloc_arm(n);
		err = kvx_pool_create(64, 4, &pool);
		if (!fault_alloc_disarm())
			break;
		cr_assert_eq(err, -ENOMEM);
		cr_assert_null(pool);
	}
	cr_assert_eq(err, 0);
	kvx_pool_destroy(pool);
	kvx_pool_destroy(NULL);
	KVX_TEST_END();
}

Test(pool, putting_twice_aborts, .signal = SIGABRT)
{
	struct kvx_pool *pool;
	void *a;

	cr_assert_eq(kvx_pool_create(8, 2, &pool), 0);
	a = kvx_pool_get(pool);
	kvx_pool_put(pool, a);
	kvx_pool_put(pool, a);
}

Test(pool, putting_a_stranger_aborts, .signal = SIGABRT)
{
	struct kvx_pool *pool;
	int stranger;

	cr_assert_eq(kvx_pool_create(8, 2, &pool), 0);
	kvx_pool_put(pool, &stranger);
}

Test(pool, destroying_with_an_object_out_aborts, .signal = SIGABRT)
{
	struct kvx_pool *pool;

	cr_assert_eq(kvx_pool_create(8, 2, &pool), 0);
	cr_assert_not_null(kvx_pool_get(pool));
	kvx_pool_destroy(pool);
}
