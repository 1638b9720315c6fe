/* What the parts of a worker share: worker.c (loop side), worker_thread.c (thread and sleep),
 * worker_turn.c (commands), worker_ep.c (endpoints and batches). */
#ifndef KVX_WORKER_PRIV_H
#define KVX_WORKER_PRIV_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

/* Out of memory is an answer here, not the end of the process. */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>

#include "base/ring.h"
#include "worker/worker.h"

#define WORKER_NOTES       64u /* notes on their way to the loop; more wait in their ep */
#define WORKER_COOKIE_NONE UINT32_MAX

/* Batches that the worker has, by the index in their cookie. The generation tells a late OP_DONE
 * from one of the batch that has the slot now. */
struct worker_slot {
	struct kvx_batch *batch; /* NULL: free */
	uint32_t generation;
	uint32_t next_free;
};

enum { WORKER_NOTE_INCOMING, WORKER_NOTE_UP, WORKER_NOTE_DOWN, WORKER_NOTES_PER_EP };

struct worker_ep {
	struct kvx_ep *ep; /* key */
	UT_hash_handle hh;
	struct kvx_work *queue_head; /* batches not fully posted; only the first may be begun */
	struct kvx_work *queue_tail;
	struct worker_ep *ready_prev, *ready_next;
	bool ready;        /* in worker->ready: has a queue */
	unsigned n_open;   /* batches that were begun and have not come back */
	int refuse_status; /* 0, or what every batch that was not begun ends with */
	int refuse_vendor;
	const char *refuse_text;
	struct kvx_cmd *connect; /* waiting for EP_UP */
	struct kvx_cmd *closing;
	bool fenced;
	unsigned fence_tries;
	uint32_t notes_waiting; /* bit set of WORKER_NOTE_* */
	struct kvx_tevent notes[WORKER_NOTES_PER_EP];
};

struct kvx_worker {
	uint64_t magic;
	struct kvx_worker_conf conf;
	const struct kvx_transport_ops *ops;
	struct kvx_transport_limits limits;
	struct kvx_worker_stats stats;

	/* Both sides. Each flag changes only by exchange: who sees it set has to act. */
	struct kvx_ring *submit;     /* loop -> worker */
	struct kvx_ring *complete;   /* worker -> loop: depth + notes, so that it is never full */
	struct kvx_ring *free_notes; /* loop -> worker */
	_Alignas(64) _Atomic bool sleeping; /* the worker needs the eventfd to wake */
	_Alignas(64) _Atomic bool rung;     /* the loop was told and has not looked yet */
	_Atomic bool stop;
	int wake_fd; /* -1 when not threaded */

	/* Loop side. */
	unsigned in_flight;
	pthread_t thread;
	bool has_thread;

	/* Worker side. */
	_Alignas(64) struct kvx_dom *dom;
	struct worker_ep *eps;   /* hash */
	struct worker_ep *ready; /* list */
	struct worker_slot *slots;
	uint32_t free_slot;
	unsigned n_closing;
	unsigned n_notes_waiting; /* eps and the device with a note that found no room */
	bool device_lost;
	bool progress_failed; /* progress() itself gave an error: it may never report the rest */
	bool lost_note_waiting;
	struct kvx_tevent lost_event;
	bool need_doorbell;
	struct kvx_cmd notes[WORKER_NOTES];

	/* Start-up only. */
	sem_t started;
	int open_err;
	struct kvx_why open_why;
};

/* worker_turn.c: one look at everything. Returns whether it did anything. */
bool kvx_worker_turn(struct kvx_worker *worker);
/* Is there something that only another turn moves on, whatever the transport says? */
bool kvx_worker_has_chores(const struct kvx_worker *worker);
void kvx_worker_complete(struct kvx_worker *worker, struct kvx_work *work);
void kvx_worker_cmd_done(struct kvx_worker *worker, struct kvx_cmd *cmd, int status);

/* worker_ep.c */
int kvx_worker_ep_add(struct kvx_worker *worker, struct kvx_ep *ep, struct worker_ep **out_wep);
struct worker_ep *kvx_worker_ep_find(const struct kvx_worker *worker, struct kvx_ep *ep);
void kvx_worker_ep_forget(struct kvx_worker *worker, struct worker_ep *wep);
void kvx_worker_ep_refuse(struct kvx_worker *worker, struct worker_ep *wep,
			  const struct kvx_tevent *cause);
void kvx_worker_ep_close_step(struct kvx_worker *worker, struct worker_ep *wep);
void kvx_worker_batch_begin(struct kvx_worker *worker, struct kvx_batch *batch);
/* Posts what waits. Returns how many ops the transport took. */
unsigned kvx_worker_post_ready(struct kvx_worker *worker);
void kvx_worker_on_op_done(struct kvx_worker *worker, const struct kvx_tevent *event,
			   uint64_t now_ns);

/* worker_thread.c */
int kvx_worker_thread_start(pthread_t *out_thread, const char *name, void *(*fn)(void *arg),
			    void *arg);
void *kvx_worker_main(void *arg);
int kvx_worker_dom_open(struct kvx_worker *worker, struct kvx_why *why);
void kvx_worker_dom_close(struct kvx_worker *worker);
void kvx_worker_wake(struct kvx_worker *worker);

#endif
