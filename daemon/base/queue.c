/* A list under a mutex, with a condition for who waits for its first node. The only mutex of the
 * daemon: it is held for a few instructions, and never on the data path. */
#include "base/queue.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/assert.h"

struct kvx_queue {
	pthread_mutex_t lock;
	pthread_cond_t filled;
	struct kvx_queue_node *head;
	struct kvx_queue_node **tail; /* where the next node goes */
	bool closed;
};

int kvx_queue_create(struct kvx_queue **out_queue)
{
	struct kvx_queue *queue = calloc(1, sizeof(*queue));
	if (queue == NULL)
		return -ENOMEM;
	pthread_mutex_init(&queue->lock, NULL); /* cannot fail on Linux with default attributes */
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&queue->filled, &attr);
	pthread_condattr_destroy(&attr);
	queue->tail = &queue->head;
	*out_queue = queue;
	return 0;
}

void kvx_queue_destroy(struct kvx_queue *queue)
{
	if (queue == NULL)
		return;
	kvx_assert(queue->head == NULL);
	pthread_cond_destroy(&queue->filled);
	pthread_mutex_destroy(&queue->lock);
	free(queue);
}

bool kvx_queue_push(struct kvx_queue *queue, struct kvx_queue_node *node)
{
	node->next = NULL;
	pthread_mutex_lock(&queue->lock);
	bool was_empty = queue->head == NULL;
	*queue->tail = node;
	queue->tail = &node->next;
	pthread_cond_signal(&queue->filled);
	pthread_mutex_unlock(&queue->lock);
	return was_empty;
}

/* With the lock held. */
static struct kvx_queue_node *queue_take(struct kvx_queue *queue)
{
	struct kvx_queue_node *node = queue->head;
	if (node == NULL)
		return NULL;
	queue->head = node->next;
	if (queue->head == NULL)
		queue->tail = &queue->head;
	node->next = NULL;
	return node;
}

struct kvx_queue_node *kvx_queue_pop(struct kvx_queue *queue)
{
	pthread_mutex_lock(&queue->lock);
	struct kvx_queue_node *node = queue_take(queue);
	pthread_mutex_unlock(&queue->lock);
	return node;
}

struct kvx_queue_node *kvx_queue_pop_wait(struct kvx_queue *queue)
{
	pthread_mutex_lock(&queue->lock);
	while (queue->head == NULL && !queue->closed)
		pthread_cond_wait(&queue->filled, &queue->lock);
	struct kvx_queue_node *node = queue_take(queue);
	pthread_mutex_unlock(&queue->lock);
	return node;
}

struct kvx_queue_node *kvx_queue_pop_for(struct kvx_queue *queue, uint64_t timeout_ns)
{
	struct timespec until;
	int err = 0;
	clock_gettime(CLOCK_MONOTONIC, &until);
	uint64_t ns = (uint64_t)until.tv_nsec + timeout_ns;
	until.tv_sec += (time_t)(ns / 1000000000u);
	until.tv_nsec = (long)(ns % 1000000000u);
	pthread_mutex_lock(&queue->lock);
	while (queue->head == NULL && !queue->closed && err == 0)
		err = pthread_cond_timedwait(&queue->filled, &queue->lock, &until);
	struct kvx_queue_node *node = queue_take(queue);
	pthread_mutex_unlock(&queue->lock);
	return node;
}

bool kvx_queue_remove(struct kvx_queue *queue, struct kvx_queue_node *node)
{
	struct kvx_queue_node **at = &queue->head;
	pthread_mutex_lock(&queue->lock);
	while (*at != NULL && *at != node)
		at = &(*at)->next;
	bool found = *at != NULL;
	if (found) {
		*at = node->next;
		if (queue->tail == &node->next)
			queue->tail = at;
		node->next = NULL;
	}
	pthread_mutex_unlock(&queue->lock);
	return found;
}

void kvx_queue_close(struct kvx_queue *queue)
{
	pthread_mutex_lock(&queue->lock);
	queue->closed = true;
	pthread_cond_broadcast(&queue->filled);
	pthread_mutex_unlock(&queue->lock);
}
