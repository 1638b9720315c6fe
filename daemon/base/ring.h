/* Bounded ring of pointers from one producer thread to one consumer thread: how threads of the
 * daemon talk. Neither side ever blocks. push publishes everything written before it (release), pop
 * acquires it. */
#ifndef KVX_RING_H
#define KVX_RING_H

#include <stdbool.h>

struct kvx_ring;

/* Capacity is rounded up to a power of two. -ENOMEM, -EINVAL. */
int kvx_ring_create(unsigned capacity, struct kvx_ring **out_ring);
void kvx_ring_destroy(struct kvx_ring *ring);
bool kvx_ring_push(struct kvx_ring *ring, void *ptr); /* producer; false: full */
void *kvx_ring_pop(struct kvx_ring *ring);            /* consumer; NULL: empty */
bool kvx_ring_empty(const struct kvx_ring *ring);     /* either side; a hint for the producer */

#endif
