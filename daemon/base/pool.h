/* Fixed-size objects made once, handed out and taken back without malloc. Cache-line aligned. One
 * thread at a time. */
#ifndef KVX_POOL_H
#define KVX_POOL_H

#include <stddef.h>

struct kvx_pool;

/* Objects are zeroed once, at creation, and keep their content between put and get. -ENOMEM,
 * -EINVAL. */
int kvx_pool_create(size_t obj_bytes, unsigned n_objs, struct kvx_pool **out_pool);
void kvx_pool_destroy(struct kvx_pool *pool); /* asserts that every object is back */
void *kvx_pool_get(struct kvx_pool *pool);    /* NULL when all are out */
void kvx_pool_put(struct kvx_pool *pool, void *obj);
unsigned kvx_pool_available(const struct kvx_pool *pool);

#endif
