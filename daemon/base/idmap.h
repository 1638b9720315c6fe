/* Ids for objects that clients and peers name: index in the low, generation in the high 32 bits, so
 * that the id of a removed object is never found again. 0 is never an id. One thread at a time. */
#ifndef KVX_IDMAP_H
#define KVX_IDMAP_H

#include <stddef.h>
#include <stdint.h>

struct kvx_idmap;

int kvx_idmap_create(uint32_t max_ids, struct kvx_idmap **out_map); /* -ENOMEM, -EINVAL */
void kvx_idmap_destroy(struct kvx_idmap *map);
/* 0, -EDQUOT when max_ids are in use, -ENOMEM. obj must not be NULL. */
int kvx_idmap_add(struct kvx_idmap *map, void *obj, uint64_t *out_id);
void *kvx_idmap_find(const struct kvx_idmap *map, uint64_t id); /* NULL: not there (any more) */
void *kvx_idmap_remove(struct kvx_idmap *map, uint64_t id);     /* what was there, or NULL */
uint32_t kvx_idmap_count(const struct kvx_idmap *map);
/* Walks all objects: start with *cursor 0, NULL ends. The object just returned may be removed
 * between calls. */
void *kvx_idmap_next(const struct kvx_idmap *map, uint32_t *cursor);

#endif
