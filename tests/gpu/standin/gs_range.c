/* The GPU stand-in's table of what a process can name: device memory, mappings, page-locked host
 * memory. Sorted by address. An op that is queued holds its ranges; a range goes when nobody holds
 * it. Any thread. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gs_priv.h"

#define MAX_RANGES (GS_MAX_ALLOCS + 4096)

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct gs_range *table[MAX_RANGES];
static unsigned n_ranges;
static uint64_t next_id = 1;

void gs_table_lock(void)
{
	pthread_mutex_lock(&table_lock);
}

void gs_table_unlock(void)
{
	pthread_mutex_unlock(&table_lock);
}

/* The first range that does not end at or before ptr. */
static unsigned range_slot(const uint8_t *ptr)
{
	unsigned low = 0, high = n_ranges;

	while (low < high) {
		unsigned mid = (low + high) / 2;

		if (table[mid]->base + table[mid]->len <= ptr)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

struct gs_range *gs_range_find(const void *ptr, size_t bytes)
{
	unsigned at = range_slot(ptr);
	struct gs_range *range = at < n_ranges ? table[at] : NULL;

	if (range == NULL || (const uint8_t *)ptr < range->base)
		return NULL;
	return bytes <= range->len - (size_t)((const uint8_t *)ptr - range->base) ? range : NULL;
}

struct gs_range *gs_range_nth(unsigned i)
{
	return i < n_ranges ? table[i] : NULL;
}

struct gs_range *gs_range_take(const void *ptr, size_t bytes)
{
	struct gs_range *range;

	gs_table_lock();
	range = gs_range_find(ptr, bytes);
	if (range != NULL)
		atomic_fetch_add(&range->n_ops, 1);
	gs_table_unlock();
	return range;
}

void gs_range_put(struct gs_range *range)
{
	if (range != NULL)
		atomic_fetch_sub(&range->n_ops, 1);
}

static void range_unmap(struct gs_range *range)
{
	if (range->kind != GS_HOST) {
		munmap(range->bytes_at, range->len);
		munmap(range->base, range->len);
	} else if (range->own_pages) {
		munmap(range->base, range->len);
	}
}

bool gs_range_insert(struct gs_range *range)
{
	unsigned at;

	gs_table_lock();
	at = range_slot(range->base);
	if (n_ranges == MAX_RANGES ||
	    (at < n_ranges && table[at]->base < range->base + range->len)) {
		gs_table_unlock();
		return false;
	}
	memmove(&table[at + 1], &table[at], (n_ranges - at) * sizeof(table[0]));
	range->id = next_id++;
	table[at] = range;
	n_ranges++;
	gs_table_unlock();
	return true;
}

struct gs_range *gs_range_add(enum gs_kind kind, unsigned dev, size_t len, int fd)
{
	struct gs_range *range = calloc(1, sizeof(*range));
	int flags = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;

	if (range == NULL)
		return NULL;
	*range = (struct gs_range){.len = len, .kind = kind, .dev = dev};
	range->generation = atomic_load(&gs_node()->devs[dev].generation);
	range->bytes_at = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (range->bytes_at == MAP_FAILED)
		goto err_free;
	range->base = range->bytes_at;
	if (kind != GS_HOST)
		range->base = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (range->base == MAP_FAILED)
		goto err_unmap;
	range->own_pages = true;
	if (gs_range_insert(range))
		return range;
	if (kind != GS_HOST)
		munmap(range->base, len);
err_unmap:
	munmap(range->bytes_at, len);
err_free:
	free(range);
	return NULL;
}

void gs_range_wait(struct gs_range *range)
{
	while (atomic_load(&range->n_ops) > 0)
		gs_wait_us(50);
}

void gs_range_remove(struct gs_range *range)
{
	unsigned at;

	gs_table_lock();
	at = range_slot(range->base);
	memmove(&table[at], &table[at + 1], (n_ranges - at - 1) * sizeof(table[0]));
	n_ranges--;
	gs_table_unlock();
	gs_range_wait(range); /* none is added any more */
	range_unmap(range);
	free(range);
}
