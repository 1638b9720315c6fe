/* A bump allocator for the unpacked form of one message at a time: no malloc for messages of usual
 * size, a hard limit for those that unpack into much more than they are, and nothing to free piece
 * by piece. One thread. */
#ifndef KVX_ARENA_H
#define KVX_ARENA_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>

struct kvx_arena;

/* base_bytes are kept for good; more is taken as needed and given back by reset. -ENOMEM. */
int kvx_arena_create(size_t base_bytes, struct kvx_arena **out_arena);
void kvx_arena_destroy(struct kvx_arena *arena);
/* Forgets everything that was allocated. From now on at most limit_bytes. */
void kvx_arena_reset(struct kvx_arena *arena, size_t limit_bytes);
void *kvx_arena_alloc(struct kvx_arena *arena, size_t len); /* 16-byte aligned; NULL */
/* Was an allocation refused since the last reset? */
bool kvx_arena_is_exhausted(const struct kvx_arena *arena);
size_t kvx_arena_used(const struct kvx_arena *arena);
/* For protobuf-c; its free does nothing. */
ProtobufCAllocator *kvx_arena_allocator(struct kvx_arena *arena);

#endif
