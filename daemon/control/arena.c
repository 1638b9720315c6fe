/* Owns a first block that stays and a list of further ones that live until the next reset. The loop
 * uses one for all clients, because a message is dealt with before the next is unpacked. It never
 * frees single objects. */
#include "control/arena.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#define ALIGN 16u

struct block {
	struct block *next;
	size_t len;
	_Alignas(ALIGN) uint8_t data[];
};

struct kvx_arena {
	ProtobufCAllocator allocator;
	struct block *first;
	struct block *blocks; /* newest first; the last is first */
	uint8_t *pos, *end;   /* of the newest block */
	size_t limit;
	size_t used;
	bool exhausted;
};

static void *arena_alloc_cb(void *data, size_t len)
{
	return kvx_arena_alloc(data, len);
}

static void arena_free_cb(void *data, void *ptr)
{
}

static struct block *block_create(size_t len)
{
	struct block *block = malloc(sizeof(*block) + len);

	if (block != NULL) {
		block->next = NULL;
		block->len = len;
	}
	return block;
}

int kvx_arena_create(size_t base_bytes, struct kvx_arena **out_arena)
{
	struct kvx_arena *arena = calloc(1, sizeof(*arena));

	if (arena == NULL)
		return -ENOMEM;
	arena->first = block_create(base_bytes);
	if (arena->first == NULL) {
		free(arena);
		return -ENOMEM;
	}
	arena->blocks = arena->first;
	arena->allocator = (ProtobufCAllocator){
	    .alloc = arena_alloc_cb, .free = arena_free_cb, .allocator_data = arena};
	kvx_arena_reset(arena, base_bytes);
	*out_arena = arena;
	return 0;
}

void kvx_arena_reset(struct kvx_arena *arena, size_t limit_bytes)
{
	while (arena->blocks != arena->first) {
		struct block *next = arena->blocks->next;

		free(arena->blocks);
		arena->blocks = next;
	}
	arena->pos = arena->first->data;
	arena->end = arena->first->data + arena->first->len;
	arena->limit = limit_bytes;
	arena->used = 0;
	arena->exhausted = false;
}

void kvx_arena_destroy(struct kvx_arena *arena)
{
	if (arena == NULL)
		return;
	kvx_arena_reset(arena, 0);
	free(arena->first);
	free(arena);
}

/* The next block is large enough for len and no smaller than all before, so that their number stays
 * small whatever the sizes. */
static void *arena_grow(struct kvx_arena *arena, size_t len)
{
	size_t want = arena->used > arena->first->len ? arena->used : arena->first->len;
	struct block *block = block_create(want > len ? want : len);

	if (block == NULL) {
		arena->exhausted = true;
		return NULL;
	}
	block->next = arena->blocks;
	arena->blocks = block;
	arena->pos = block->data + len;
	arena->end = block->data + block->len;
	arena->used += len;
	return block->data;
}

void *kvx_arena_alloc(struct kvx_arena *arena, size_t len)
{
	void *ptr = arena->pos;

	if (len > SIZE_MAX - ALIGN)
		len = SIZE_MAX - ALIGN;
	len = (len + ALIGN - 1) & ~(size_t)(ALIGN - 1);
	if (len > arena->limit - arena->used) {
		arena->exhausted = true;
		return NULL;
	}
	if (len > (size_t)(arena->end - arena->pos))
		return arena_grow(arena, len);
	arena->pos += len;
	arena->used += len;
	return ptr;
}

bool kvx_arena_is_exhausted(const struct kvx_arena *arena)
{
	return arena->exhausted;
}

size_t kvx_arena_used(const struct kvx_arena *arena)
{
	return arena->used;
}

ProtobufCAllocator *kvx_arena_allocator(struct kvx_arena *arena)
{
	return &arena->allocator;
}
