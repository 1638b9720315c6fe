/* Unbounded queue between threads that may block: for calls off the data path. Nodes are embedded
 * in what is queued, so that push cannot fail. Any thread. */
#ifndef KVX_QUEUE_H
#define KVX_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

struct kvx_queue_node {
	struct kvx_queue_node *next; /* the queue's, while it has the node */
};

struct kvx_queue;

int kvx_queue_create(struct kvx_queue **out_queue); /* -ENOMEM */
void kvx_queue_destroy(struct kvx_queue *queue);    /* asserts that it is empty */
/* Appends. Returns whether the queue was empty before: then somebody may have to be told. */
bool kvx_queue_push(struct kvx_queue *queue, struct kvx_queue_node *node);
struct kvx_queue_node *kvx_queue_pop(struct kvx_queue *queue);      /* NULL: empty */
struct kvx_queue_node *kvx_queue_pop_wait(struct kvx_queue *queue); /* NULL: closed and empty */
/* NULL also when nothing has come for so long. */
struct kvx_queue_node *kvx_queue_pop_for(struct kvx_queue *queue, uint64_t timeout_ns);
/* Takes it out, wherever it is; false: somebody has popped it. Looks at all in front of it. */
bool kvx_queue_remove(struct kvx_queue *queue, struct kvx_queue_node *node);
void kvx_queue_close(struct kvx_queue *queue); /* pop_wait() no longer waits */

#endif
