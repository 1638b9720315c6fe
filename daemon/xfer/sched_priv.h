/* What the two parts of the scheduler share: what is queued (sched_queue.c), and whose turn it is
 * (sched.c). Loop thread. */
#ifndef KVX_SCHED_PRIV_H
#define KVX_SCHED_PRIV_H

/* Without memory HASH_ADD adds nothing and leaves hh.tbl NULL. */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>
#include <utlist.h>

#include "base/pool.h"
#include "xfer/sched.h"

struct sched_batch;

struct kvx_sched_flow {
	uint64_t id;
	int64_t balance;
	/* The first item of each set of outlets, which leads those behind it; never empty while the
	 * flow is in the table. */
	struct kvx_sched_item *firsts;
	struct kvx_sched_flow *prev, *next; /* of the turns; next: of the spare ones */
	UT_hash_handle hh;
};

struct kvx_sched {
	struct kvx_scheds *all;
	struct kvx_lane *lane;
	struct kvx_sched_flow *by_id;
	struct kvx_sched_flow *turns;      /* circular: the head is whose turn it is */
	struct sched_batch *unsent;        /* filled, but the worker's ring was full */
	struct kvx_work *held, *held_last; /* failed batches that are kept back */
	void (*on_held)(void *arg);        /* NULL: none are */
	void *on_held_arg;
	unsigned n_queued, n_in_flight;
	uint64_t n_enqueued; /* ever */
	bool awake;          /* in all->awake */
	struct kvx_sched *prev, *next;
};

struct kvx_scheds {
	struct kvx_pool *batches;
	int64_t quantum_bytes;
	struct kvx_sched *awake; /* may have something to do; the head goes next */
	unsigned n_awake;
	struct kvx_sched_flow *spare;
	unsigned n_spare, n_scheds;
	bool pumping;
};

/* There may be something to do. */
static inline void sched_wake(struct kvx_sched *sched)
{
	if (sched->awake)
		return;
	sched->awake = true;
	sched->all->n_awake++;
	DL_APPEND(sched->all->awake, sched);
}

/* sched_queue.c */
void scheds_free_spare(struct kvx_scheds *all);

#endif
