/* Single producer, single consumer ring of pointers. Each side owns one index and a cached copy of
 * the other's, on its own cache line: a push or pop touches the other side's line only when the
 * cached value says full or empty. Never blocks, never allocates after creation. */
#include "base/ring.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/assert.h"

#define CACHE_LINE   64
#define MAX_CAPACITY (1u << 30)

struct kvx_ring {
	/* producer */
	_Alignas(CACHE_LINE) _Atomic unsigned tail; /* next to write */
	unsigned cached_head;
	/* consumer */
	_Alignas(CACHE_LINE) _Atomic unsigned head; /* next to read */
	unsigned cached_tail;
	/* both, read only */
	_Alignas(CACHE_LINE) unsigned mask;
	_Alignas(CACHE_LINE) void *slots[];
};

int kvx_ring_create(unsigned capacity, struct kvx_ring **out_ring)
{
	struct kvx_ring *ring;
	unsigned n = 1;
	size_t bytes;

	if (capacity == 0 || capacity > MAX_CAPACITY)
		return -EINVAL;
	while (n < capacity)
		n *= 2;
	bytes = sizeof(*ring) + n * sizeof(void *);
	bytes = (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
	ring = aligned_alloc(CACHE_LINE, bytes);
	if (ring == NULL)
		return -ENOMEM;
	atomic_init(&ring->tail, 0);
	atomic_init(&ring->head, 0);
	ring->cached_head = ring->cached_tail = 0;
	ring->mask = n - 1;
	*out_ring = ring;
	return 0;
}

void kvx_ring_destroy(struct kvx_ring *ring)
{
	free(ring);
}

bool kvx_ring_push(struct kvx_ring *ring, void *ptr)
{
	unsigned tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);

	kvx_assert(ptr != NULL);
	if (tail - ring->cached_head > ring->mask) {
		ring->cached_head = atomic_load_explicit(&ring->head, memory_order_acquire);
		if (tail - ring->cached_head > ring->mask)
			return false;
	}
	ring->slots[tail & ring->mask] = ptr;
	atomic_store_explicit(&ring->tail, tail + 1, memory_order_release);
	return true;
}

void *kvx_ring_pop(struct kvx_ring *ring)
{
	unsigned head = atomic_load_explicit(&ring->head, memory_order_relaxed);
	void *ptr;

	if (head == ring->cached_tail) {
		ring->cached_tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
		if (head == ring->cached_tail)
			return NULL;
	}
	ptr = ring->slots[head & ring->mask];
	atomic_store_explicit(&ring->head, head + 1, memory_order_release);
	return ptr;
}

bool kvx_ring_empty(const struct kvx_ring *ring)
{
	return atomic_load_explicit(&ring->tail, memory_order_acquire) ==
	       atomic_load_explicit(&ring->head, memory_order_acquire);
}
