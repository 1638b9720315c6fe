/* The queue between threads that may block. */
#include "base/queue.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

#include "base/clock.h"
#include "fault_alloc.h"
#include "test_end.h"

struct item {
	struct kvx_queue_node node; /* first */
	unsigned n;
};

Test(queue, keeps_order_and_says_when_it_was_empty)
{
	struct item items[3] = {{.n = 0}, {.n = 1}, {.n = 2}};
	struct kvx_queue *queue;

	cr_assert_eq(kvx_queue_create(&queue), 0);
	cr_assert_null(kvx_queue_pop(queue));
	cr_assert(kvx_queue_push(queue, &items[0].node));
	cr_assert_not(kvx_queue_push(queue, &items[1].node));
	cr_assert_eq(kvx_queue_pop(queue), &items[0].node);
	cr_assert_not(kvx_queue_push(queue, &items[2].node));
	cr_assert_eq(kvx_queue_pop_wait(queue), &items[1].node);
	cr_assert_eq(kvx_queue_pop(queue), &items[2].node);
	cr_assert(kvx_queue_push(queue, &items[0].node));
	kvx_queue_close(queue);
	cr_assert_eq(kvx_queue_pop_wait(queue), &items[0].node); /* closed, but not empty */
	cr_assert_null(kvx_queue_pop_wait(queue));
	kvx_queue_destroy(queue);
	kvx_queue_destroy(NULL);
	KVX_TEST_END();
}

static void *sum_until_closed(void *arg)
{
	struct kvx_queue_node *node;
	uintptr_t sum = 0;

	while ((node = kvx_queue_pop_wait(arg)) != NULL)
		sum += ((struct item *)(void *)node)->n;
	return (void *)sum;
}

Test(queue, threads_get_every_node_once)
{
	enum { N = 5000, READERS = 3 };
	static struct item items[N];
	struct kvx_queue *queue;
	pthread_t readers[READERS];
	uintptr_t sum = 0;

	cr_assert_eq(kvx_queue_create(&queue), 0);
	for (unsigned i = 0; i < READERS; i++)
		cr_assert_eq(pthread_create(&readers[i], NULL, sum_until_closed, queue), 0);
	for (unsigned i = 0; i < N; i++) {
		items[i].n = i;
		kvx_queue_push(queue, &items[i].node);
	}
	kvx_queue_close(queue);
	for (unsigned i = 0; i < READERS; i++) {
		void *part;

		pthread_join(readers[i], &part);
		sum += (uintptr_t)part;
	}
	cr_assert_eq(sum, (uintptr_t)N * (N - 1) / 2);
	kvx_queue_destroy(queue);
	KVX_TEST_END();
}

Test(queue, node_is_taken_out_from_anywhere)
{
	struct item items[4] = {{.n = 0}, {.n = 1}, {.n = 2}, {.n = 3}};
	struct kvx_queue *queue;

	cr_assert_eq(kvx_queue_create(&queue), 0);
	cr_assert_not(kvx_queue_remove(queue, &items[0].node));
	for (unsigned i = 0; i < 4; i++)
		kvx_queue_push(queue, &items[i].node);
	cr_assert(kvx_queue_remove(queue, &items[1].node));
	cr_assert(kvx_queue_remove(queue, &items[3].node)); /* the last one */
	cr_assert_not(kvx_queue_remove(queue, &items[3].node));
	cr_assert_not(kvx_queue_push(queue, &items[1].node));
	cr_assert(kvx_queue_remove(queue, &items[0].node));
	cr_assert_eq(kvx_queue_pop(queue), &items[2].node);
	cr_assert_not(kvx_queue_remove(queue, &items[2].node));
	cr_assert(kvx_queue_remove(queue, &items[1].node)); /* the only one */
	cr_assert(kvx_queue_push(queue, &items[3].node));
	cr_assert_eq(kvx_queue_pop(queue), &items[3].node);
	kvx_queue_destroy(queue);
	KVX_TEST_END();
}

static void *push_soon(void *arg)
{
	static struct item item;
	const struct timespec nap = {.tv_nsec = 20000000};

	nanosleep(&nap, NULL);
	kvx_queue_push(arg, &item.node);
	return NULL;
}

Test(queue, pop_waits_no_longer_than_it_is_told)
{
	struct kvx_queue *queue;
	pthread_t thread;

	cr_assert_eq(kvx_queue_create(&queue), 0);
	uint64_t begin = kvx_now_ns();
	cr_assert_null(kvx_queue_pop_for(queue, 30 * KVX_MS));
	cr_assert_geq(kvx_now_ns() - begin, 30 * KVX_MS);
	cr_assert_eq(pthread_create(&thread, NULL, push_soon, queue), 0);
	cr_assert_not_null(kvx_queue_pop_for(queue, 20 * KVX_SEC));
	pthread_join(thread, NULL);
	kvx_queue_close(queue);
	cr_assert_null(kvx_queue_pop_for(queue, 20 * KVX_SEC));
	cr_assert_lt(kvx_now_ns() - begin, 20 * KVX_SEC);
	kvx_queue_destroy(queue);
	KVX_TEST_END();
}

Test(queue, create_without_memory)
{
	struct kvx_queue *queue;

	fault_alloc_arm(1);
	cr_assert_eq(kvx_queue_create(&queue), -ENOMEM);
	cr_assert(fault_alloc_disarm());
	KVX_TEST_END();
}
