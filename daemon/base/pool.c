/* One allocation cut into equal, cache-line aligned objects and a stack of those that are in. One
 * thread per pool. get and put never allocate; put checks that the object is of this pool and out.
 */
#include "base/pool.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

#define CACHE_LINE 64u

struct kvx_pool {
	uint8_t *mem;
	size_t stride;
	unsigned n_objs;
	unsigned n_free;
	uint8_t *is_out;
	void *free_objs[]; /* stack of n_free */
};

int kvx_pool_create(size_t obj_bytes, unsigned n_objs, struct kvx_pool **out_pool)
{
	struct kvx_pool *pool;
	size_t stride, total;

	if (obj_bytes == 0 || n_objs == 0 || obj_bytes > SIZE_MAX - CACHE_LINE)
		return -EINVAL;
	stride = (obj_bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
	if (__builtin_mul_overflow(stride, n_objs, &total))
		return -EINVAL;
	pool = calloc(1, sizeof(*pool) + n_objs * sizeof(pool->free_objs[0]));
	if (pool == NULL)
		return -ENOMEM;
	pool->is_out = calloc(n_objs, 1);
	if (pool->is_out == NULL)
		goto err_free_pool;
	pool->mem = aligned_alloc(CACHE_LINE, total);
	if (pool->mem == NULL)
		goto err_free_is_out;
	memset(pool->mem, 0, total);
	pool->stride = stride;
	pool->n_objs = pool->n_free = n_objs;
	for (unsigned i = 0; i < n_objs; i++) /* the first object on top */
		pool->free_objs[i] = pool->mem + (n_objs - 1 - i) * stride;
	*out_pool = pool;
	return 0;

err_free_is_out:
	free(pool->is_out);
err_free_pool:
	free(pool);
	return -ENOMEM;
}

void kvx_pool_destroy(struct kvx_pool *pool)
{
	if (pool == NULL)
		return;
	kvx_assert(pool->n_free == pool->n_objs);
	free(pool->mem);
	free(pool->is_out);
	free(pool);
}

static size_t pool_index(const struct kvx_pool *pool, const void *obj)
{
	return (size_t)((const uint8_t *)obj - pool->mem) / pool->stride;
}

void *kvx_pool_get(struct kvx_pool *pool)
{
	void *obj;

	if (pool->n_free == 0)
		return NULL;
	obj = pool->free_objs[--pool->n_free];
	pool->is_out[pool_index(pool, obj)] = 1;
	return obj;
}

void kvx_pool_put(struct kvx_pool *pool, void *obj)
{
	size_t i = pool_index(pool, obj);

	kvx_assert((uint8_t *)obj >= pool->mem && i < pool->n_objs);
	kvx_assert((uint8_t *)obj == pool->mem + i * pool->stride);
	kvx_assert(pool->is_out[i]);
	pool->is_out[i] = 0;
	pool->free_objs[pool->n_free++] = obj;
}

unsigned kvx_pool_available(const struct kvx_pool *pool)
{
	return pool->n_free;
}
