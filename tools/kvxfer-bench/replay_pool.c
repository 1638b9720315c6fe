/* A pool of KV blocks with a prefix cache, as engines have: entries by key, those that nobody uses
 * go oldest first when room is needed. Blocks are handed out in a random order: they lie scattered.
 */
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "replay.h"

void kvx_pool_init(struct kvx_pool *pool, uint32_t n_blocks, uint64_t seed)
{
	memset(pool, 0, sizeof(*pool));
	pool->n_blocks = n_blocks;
	pool->n_free = n_blocks;
	pool->random.state = seed;
	pool->free_blocks = kvx_random_order(&pool->random, n_blocks);
}

static void entry_forget(struct kvx_pool *pool, struct kvx_entry *entry)
{
	for (uint32_t i = 0; i < entry->n_blocks; i++) {
		/* Back to a random place, or the pool would sort itself in time. */
		uint32_t at = (uint32_t)kvx_random_below(&pool->random, pool->n_free + 1);

		pool->free_blocks[pool->n_free] = pool->free_blocks[at];
		pool->free_blocks[at] = entry->blocks[i];
		pool->n_free++;
	}
	HASH_DEL(pool->entries, entry);
	free(entry->blocks);
	free(entry);
}

void kvx_pool_fini(struct kvx_pool *pool)
{
	struct kvx_entry *entry, *next;

	HASH_ITER (hh, pool->entries, entry, next) {
		HASH_DEL(pool->entries, entry);
		free(entry->blocks);
		free(entry);
	}
	free(pool->free_blocks);
	memset(pool, 0, sizeof(*pool));
}

static bool pool_make_room(struct kvx_pool *pool, uint32_t n_blocks)
{
	while (pool->n_free < n_blocks && pool->unpinned) {
		struct kvx_entry *oldest = pool->unpinned;

		DL_DELETE(pool->unpinned, oldest);
		entry_forget(pool, oldest);
	}
	return pool->n_free >= n_blocks;
}

struct kvx_entry *kvx_pool_take(struct kvx_pool *pool, uint64_t key, uint32_t n_blocks,
				bool *out_new)
{
	struct kvx_entry *entry;

	HASH_FIND(hh, pool->entries, &key, sizeof(key), entry);
	if (entry) {
		if (entry->n_pins++ == 0)
			DL_DELETE(pool->unpinned, entry);
		*out_new = false;
		return entry;
	}
	if (!pool_make_room(pool, n_blocks))
		return NULL;
	entry = kvx_tool_alloc(sizeof(*entry));
	entry->key = key;
	entry->n_blocks = n_blocks;
	entry->n_pins = 1;
	entry->blocks = kvx_tool_alloc(n_blocks * sizeof(uint32_t));
	pool->n_free -= n_blocks;
	memcpy(entry->blocks, pool->free_blocks + pool->n_free, n_blocks * sizeof(uint32_t));
	HASH_ADD(hh, pool->entries, key, sizeof(entry->key), entry);
	*out_new = true;
	return entry;
}

void kvx_pool_release(struct kvx_pool *pool, struct kvx_entry *entry, bool keep)
{
	if (--entry->n_pins > 0)
		return;
	if (entry->ready && keep)
		DL_APPEND(pool->unpinned, entry);
	else
		entry_forget(pool, entry);
}
