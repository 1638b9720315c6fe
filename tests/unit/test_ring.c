/* The ring between two threads: order, bounds, and nothing lost under real concurrency. */
#include "base/ring.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>

#include "fault_alloc.h"
#include "test_end.h"

static void *ptr_of(uintptr_t n)
{
	return (void *)(n * 8 + 8);
}

Test(ring, keeps_order_and_refuses_when_full)
{
	struct kvx_ring *ring;

	cr_assert_eq(kvx_ring_create(5, &ring), 0);
	cr_assert(kvx_ring_empty(ring));
	for (uintptr_t i = 0; i < 8; i++) /* rounded up to 8 */
		cr_assert(kvx_ring_push(ring, ptr_of(i)), "push %zu", (size_t)i);
	cr_assert_not(kvx_ring_push(ring, ptr_of(8)));
	cr_assert_not(kvx_ring_empty(ring));
	for (uintptr_t i = 0; i < 8; i++)
		cr_assert_eq(kvx_ring_pop(ring), ptr_of(i));
	cr_assert_null(kvx_ring_pop(ring));
	cr_assert(kvx_ring_empty(ring));
	kvx_ring_destroy(ring);
	KVX_TEST_END();
}

Test(ring, wraps_many_times)
{
	struct kvx_ring *ring;
	uintptr_t pushed = 0, popped = 0;

	cr_assert_eq(kvx_ring_create(4, &ring), 0);
	for (unsigned round = 0; round < 10000; round++) {
		for (unsigned i = 0; i < round % 5; i++)
			if (kvx_ring_push(ring, ptr_of(pushed)))
				pushed++;
		for (unsigned i = 0; i < (round * 7) % 4; i++) {
			void *ptr = kvx_ring_pop(ring);

			if (ptr == NULL)
				break;
			cr_assert_eq(ptr, ptr_of(popped));
			popped++;
		}
	}
	cr_assert_gt(popped, 10000);
	kvx_ring_destroy(ring);
	KVX_TEST_END();
}

Test(ring, wrong_capacities_are_refused)
{
	struct kvx_ring *ring = NULL;

	cr_assert_eq(kvx_ring_create(0, &ring), -EINVAL);
	cr_assert_eq(kvx_ring_create(UINT32_MAX, &ring), -EINVAL);
	fault_alloc_arm(1);
	cr_assert_eq(kvx_ring_create(8, &ring), -ENOMEM);
	fault_alloc_disarm();
	cr_assert_null(ring);
	kvx_ring_destroy(NULL);
	KVX_TEST_END();
}

enum { N_ITEMS = 300000 };

struct item {
	uint64_t payload; /* plain memory: the ring must publish it */
};

static struct item items[N_ITEMS];

static void *producer_main(void *arg)
{
	struct kvx_ring *ring = arg;

	for (uint64_t i = 0; i < N_ITEMS; i++) {
		items[i].payload = i * 3 + 1;
		while (!kvx_ring_push(ring, &items[i]))
			sched_yield();
	}
	return NULL;
}

Test(ring, two_threads_lose_nothing)
{
	struct kvx_ring *ring;
	pthread_t producer;
	uint64_t n = 0;

	cr_assert_eq(kvx_ring_create(64, &ring), 0);
	cr_assert_eq(pthread_create(&producer, NULL, producer_main, ring), 0);
	while (n < N_ITEMS) {
		const struct item *item = kvx_ring_pop(ring);

		if (item == NULL) {
			sched_yield();
			continue;
		}
		cr_assert_eq(item, &items[n]);
		cr_assert_eq(item->payload, n * 3 + 1);
		n++;
	}
	pthread_join(producer, NULL);
	cr_assert_null(kvx_ring_pop(ring));
	kvx_ring_destroy(ring);
	KVX_TEST_END();
}
