/* Scheduler of one lane: decides whose bytes go next. Clients (flows) take turns by deficit round
 * robin on bytes; the transfers of one client go in order of submission, as far as they may use the
 * same outlets: one whose outlets have no credit holds up nobody else. It pulls ops only when an
 * outlet has credit, so that what is in flight stays bounded and a small transfer never waits
 * behind all of a big one. All schedulers of the daemon share one pool of batches (kvx_scheds) and
 * take turns with it. A lane that is not UP is left alone: its items wait. Loop thread.
 *
 * Nothing happens but in kvx_scheds_pump(): enqueue and remove only note. batch_done() runs from
 * there (batches of the inline outlet), from kvx_worker_drain() and from kvx_sched_release(). */
#ifndef KVX_SCHED_H
#define KVX_SCHED_H

#include <stdbool.h>
#include <stdint.h>

#include "base/roles.h"
#include "xfer/lane.h"

struct kvx_sched_item;

/* What the scheduler asks of a transfer. */
struct kvx_sched_ops {
	/* Fills ops for this outlet: at most max, together at most max_bytes (one op may always be
	 * given when max_bytes > 0). Returns how many, 0: nothing left for now (the item leaves the
	 * queue until kvx_sched_enqueue). cookie is not set. May remove the item: then it gives 0.
	 */
	unsigned (*pull)(struct kvx_sched_item *item, const struct kvx_outlet *outlet,
			 struct kvx_op *ops, unsigned max, uint64_t max_bytes, uint64_t *out_bytes);
	/* A batch came back. batch is the scheduler's again when this returns. The item may have
	 * been removed from the queue; its memory must live until n_in_flight is 0. */
	void (*batch_done)(struct kvx_sched_item *item, const struct kvx_batch *batch);
	/* Bytes that pull could still give now: picks the inline outlet for small items and spreads
	 * the last bytes of a lone item over the outlets. */
	uint64_t (*backlog_bytes)(const struct kvx_sched_item *item);
};

/* Embedded in a transfer. */
struct kvx_sched_item {
	const struct kvx_sched_ops *ops;
	uint64_t flow_id;     /* whose turn it takes: the client's id */
	unsigned n_in_flight; /* batches out; the scheduler's */
	uint32_t outlets; /* bit set of indexes in lane->outlets: which ones it may use; 0: all */
	bool queued;      /* the scheduler's, like the rest */
	uint64_t number;  /* in the order of kvx_sched_enqueue() */
	struct kvx_sched *sched; /* set by enqueue */
	struct kvx_sched_flow *flow;
	struct kvx_sched_item *prev, *next; /* those of its flow with the same outlets, in order */
	struct kvx_sched_item *first_prev, *first_next; /* the first ones of each of these */
};

/* All schedulers of the daemon. quantum_bytes: what a client may send per turn; a turn may
 * overdraw it by less than one batch, which is taken off its next one. */
struct kvx_scheds;
int kvx_scheds_create(unsigned n_batches, uint64_t quantum_bytes, struct kvx_scheds **out_scheds);
void kvx_scheds_destroy(struct kvx_scheds *scheds); /* no scheduler is left, every batch is back */
/* Gives work to outlets that have credit, lane by lane in turn while batches last. A call from
 * inside a batch_done() adds nothing: the outer one goes on. */
void kvx_scheds_pump(struct kvx_scheds *scheds) KVX_ON_LOOP;
unsigned kvx_scheds_available(const struct kvx_scheds *scheds); /* batches not in flight */

int kvx_sched_create(struct kvx_lane *lane, struct kvx_scheds *scheds,
		     struct kvx_sched **out_sched);
/* Asserts that nothing is queued or in flight. Not from inside pull() or batch_done(). */
void kvx_sched_destroy(struct kvx_sched *sched);
/* Queues the item behind the others of its flow; no-op when it is queued. -ENOMEM (first item of a
 * flow). */
int kvx_sched_enqueue(struct kvx_sched *sched, struct kvx_sched_item *item) KVX_ON_LOOP;
/* Which outlets of its lane it may use, also while it is queued: it keeps its place. 0: all. */
void kvx_sched_set_outlets(struct kvx_sched_item *item, uint32_t outlets) KVX_ON_LOOP;
/* Takes it out; batches in flight still come back. */
void kvx_sched_remove(struct kvx_sched_item *item) KVX_ON_LOOP;
/* "There may be something to do": after the lane came up or got new outlets. Then pumps all. */
void kvx_sched_pump(struct kvx_sched *sched) KVX_ON_LOOP;
/* For lanes to other nodes: a batch that failed is kept back (in flight, for all that others see)
 * until kvx_sched_release(), and held runs when one is, so that whoever owns the lane can first
 * make sure that nothing of it lands any more. */
void kvx_sched_hold(struct kvx_sched *sched, void (*held)(void *arg), void *arg);
/* Gives back what was kept: batch_done() runs from here. */
void kvx_sched_release(struct kvx_sched *sched) KVX_ON_LOOP;
unsigned kvx_sched_queued(const struct kvx_sched *sched) KVX_ON_LOOP;
unsigned kvx_sched_in_flight(const struct kvx_sched *sched) KVX_ON_LOOP;

#endif
