/* Ids with generations over a growing array of slots. Owns the slots, never the objects. One thread
 * per map. A free slot is chained by index; a slot whose generation is used up is retired instead
 * of wrapping, so that an id is never given twice. */
#include "base/idmap.h"

#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"

#define FIRST_SLOTS 16u
#define NO_SLOT     UINT32_MAX

struct slot {
	void *obj; /* NULL: free or retired */
	uint32_t generation;
	uint32_t next_free;
};

struct kvx_idmap {
	struct slot *slots;
	uint32_t n_slots; /* allocated */
	uint32_t n_used;  /* slots ever handed out; those above are untouched */
	uint32_t n_ids;   /* now in use */
	uint32_t max_ids;
	uint32_t free_head;
};

int kvx_idmap_create(uint32_t max_ids, struct kvx_idmap **out_map)
{
	struct kvx_idmap *map;

	if (max_ids == 0)
		return -EINVAL;
	map = calloc(1, sizeof(*map));
	if (map == NULL)
		return -ENOMEM;
	map->max_ids = max_ids;
	map->free_head = NO_SLOT;
	*out_map = map;
	return 0;
}

void kvx_idmap_destroy(struct kvx_idmap *map)
{
	if (map == NULL)
		return;
	free(map->slots);
	free(map);
}

static int idmap_grow(struct kvx_idmap *map)
{
	uint32_t n = map->n_slots == 0 ? FIRST_SLOTS : map->n_slots * 2;
	struct slot *slots;

	if (n <= map->n_slots) /* 2^32 slots: only after 2^63 ids */
		return -EDQUOT;
	slots = realloc(map->slots, n * sizeof(*slots));
	if (slots == NULL)
		return -ENOMEM;
	map->slots = slots;
	map->n_slots = n;
	return 0;
}

static int idmap_take_slot(struct kvx_idmap *map, uint32_t *out_index)
{
	int err;

	if (map->free_head != NO_SLOT) {
		*out_index = map->free_head;
		map->free_head = map->slots[*out_index].next_free;
		return 0;
	}
	if (map->n_used == map->n_slots) {
		err = idmap_grow(map);
		if (err < 0)
			return err;
	}
	*out_index = map->n_used++;
	map->slots[*out_index] = (struct slot){.generation = 0, .next_free = NO_SLOT};
	return 0;
}

int kvx_idmap_add(struct kvx_idmap *map, void *obj, uint64_t *out_id)
{
	uint32_t index;
	int err;

	kvx_assert(obj != NULL);
	if (map->n_ids == map->max_ids)
		return -EDQUOT;
	err = idmap_take_slot(map, &index);
	if (err < 0)
		return err;
	map->slots[index].obj = obj;
	map->slots[index].generation++; /* 1 is the first, so that 0 is never an id */
	map->n_ids++;
	*out_id = ((uint64_t)map->slots[index].generation << 32) | index;
	return 0;
}

static struct slot *idmap_slot(const struct kvx_idmap *map, uint64_t id)
{
	uint32_t index = (uint32_t)id;
	struct slot *slot;

	if (index >= map->n_used)
		return NULL;
	slot = &map->slots[index];
	if (slot->obj == NULL || slot->generation != (uint32_t)(id >> 32))
		return NULL;
	return slot;
}

void *kvx_idmap_find(const struct kvx_idmap *map, uint64_t id)
{
	const struct slot *slot = idmap_slot(map, id);

	return slot == NULL ? NULL : slot->obj;
}

void *kvx_idmap_remove(struct kvx_idmap *map, uint64_t id)
{
	struct slot *slot = idmap_slot(map, id);
	void *obj;

	if (slot == NULL)
		return NULL;
	obj = slot->obj;
	slot->obj = NULL;
	map->n_ids--;
	if (slot->generation != UINT32_MAX) { /* else retired for good */
		slot->next_free = map->free_head;
		map->free_head = (uint32_t)id;
	}
	return obj;
}

uint32_t kvx_idmap_count(const struct kvx_idmap *map)
{
	return map->n_ids;
}

void *kvx_idmap_next(const struct kvx_idmap *map, uint32_t *cursor)
{
	while (*cursor < map->n_used) {
		void *obj = map->slots[(*cursor)++].obj;

		if (obj != NULL)
			return obj;
	}
	return NULL;
}
