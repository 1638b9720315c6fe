/* What the parts of a worker share: worker.c (loop side), worker_thread.c (thread and sleep),
 * worker_turn.c (one turn, events), worker_note.c (news for the loop), worker_cmd.c (commands),
 * worker_ep_cmd.c (those that name an endpoint, in order), worker_ep.c (endpoints and batches),
 * worker_helper.c (threads for calls that block), worker_mem.c (memory, past the thread). */
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

#define WORKER_NOTES       64u /* notes on their way to the loop; more wait where they arose */
#define WORKER_COOKIE_NONE UINT32_MAX

/* Batches that the worker has, by the index in their cookie. The generation tells a late OP_DONE
 * from one of the batch that has the slot now. */
struct worker_slot {
	struct kvx_batch *batch; /* NULL: free */
	uint32_t generation;
	uint32_t next_free;
};

/* News of an endpoint, and of the device. */
enum { WORKER_NOTE_INCOMING, WORKER_NOTE_UP, WORKER_NOTE_DOWN };
enum { WORKER_NOTE_LOST, WORKER_NOTE_DEVICE_UP };
#define WORKER_NOTE_KINDS 3

struct worker_notes {
	uint32_t waiting; /* bit set: found no room on their way */
	struct kvx_tevent events[WORKER_NOTE_KINDS];
};

/* What kvx_worker_call() can be given to; each runs one call at a time, in order. */
enum worker_helper_kind {
	WORKER_HELPER_REG,
	WORKER_HELPER_DEREG,
	WORKER_HELPER_SETUP,
	WORKER_HELPER_FENCE,
	WORKER_HELPERS
};
struct worker_helper;

struct worker_ep {
	struct kvx_ep *ep; /* key */
	UT_hash_handle hh;
	struct kvx_work *queue_head; /* batches not fully posted; only the first may be begun */
	struct kvx_work *queue_tail;
	struct worker_ep *ready_prev, *ready_next;
	bool ready;        /* in worker->ready: has a queue, and post() may be called */
	unsigned n_open;   /* batches that were begun and have not come back */
	int refuse_status; /* 0, or what every batch that was not begun ends with */
	int refuse_vendor;
	const char *refuse_text;
	struct kvx_cmd *connect; /* waiting for connect(), then for EP_UP */
	bool up_early;           /* EP_UP came before connect() had returned */

	/* One call of an ep at a time. */
	struct kvx_cmd *call;          /* whose call runs now: nobody else touches the ep */
	struct kvx_work *waiting_head; /* commands that came meanwhile */
	struct kvx_work *waiting_tail;
	unsigned n_stops; /* LEASE with 0 that have not come back */

	struct kvx_cmd *closing;
	struct worker_ep *closing_prev, *closing_next;
	bool stepping; /* in worker->closing: the next step of closing it is the worker's */
	bool fenced;
	unsigned fence_tries;
	struct worker_notes notes;
};

struct kvx_worker {
	uint64_t magic;
	struct kvx_worker_conf conf;
	char name[16]; /* conf.name is this copy: the caller's may be gone when it is logged */
	const struct kvx_transport_ops *ops;
	struct kvx_transport_limits limits;
	struct kvx_worker_stats stats;

	/* Both sides. Each flag changes only by exchange: who sees it set has to act. */
	struct kvx_ring *submit;     /* loop -> worker */
	struct kvx_ring *complete;   /* worker -> loop: depth + notes, so that it is never full */
	struct kvx_ring *free_notes; /* loop -> worker */
	_Alignas(64) _Atomic bool sleeping; /* the worker needs the eventfd to wake */
	_Alignas(64) _Atomic bool rung;     /* the loop was told and has not looked yet */
	_Atomic bool
	    mem_returned; /* commands that did not pass the worker are there for the loop */
	_Atomic bool stop;
	int wake_fd; /* -1 when not threaded */
	struct worker_helper
	    *helpers; /* NULL: no call blocks. Made before the worker has started */

	/* Loop side. */
	_Alignas(64) unsigned in_flight;        /* with the worker */
	unsigned n_mem;                         /* past it */
	unsigned n_helpers;                     /* more come when they are needed */
	struct kvx_work *keys_head, *keys_tail; /* done, to be delivered */
	pthread_t thread;
	bool has_thread;

	/* Worker side. */
	_Alignas(64) struct kvx_dom *dom;
	_Atomic uint64_t turn_began_ns; /* in a turn since then; 0: in none. Read by the loop */
	_Atomic bool calls_returned;    /* a helper has endpoints' commands for it */
	struct worker_ep *eps;          /* hash */
	struct worker_ep *ready;        /* list */
	struct worker_ep *closing;      /* list */
	struct worker_slot *slots;
	uint32_t free_slot;
	unsigned n_notes_waiting; /* eps and the device with a note that found no room */
	bool device_lost;
	bool progress_failed; /* progress() itself gave an error: it may never report the rest */
	struct worker_notes device_notes;
	bool need_doorbell;
	struct kvx_cmd notes[WORKER_NOTES];

	/* Start-up only. */
	sem_t started;
	int open_err;
	struct kvx_why open_why;
};

/* worker_turn.c: one look at everything. Returns whether it did anything. */
bool kvx_worker_turn(struct kvx_worker *worker);
void kvx_worker_ring_loop(struct kvx_worker *worker); /* worker thread and helpers */
/* Is there something that only another turn moves on, whatever the transport says? */
bool kvx_worker_has_chores(const struct kvx_worker *worker);
void kvx_worker_complete(struct kvx_worker *worker, struct kvx_work *work);
void kvx_worker_cmd_done(struct kvx_worker *worker, struct kvx_cmd *cmd, int status);

/* worker_note.c. None is lost: what finds no room on its way waits, once per kind. */
void kvx_worker_note(struct kvx_worker *worker, struct worker_notes *notes, unsigned which,
		     const struct kvx_tevent *event);
void kvx_worker_notes_flush(struct kvx_worker *worker);

/* worker_cmd.c */
void kvx_worker_cmd_run(struct kvx_worker *worker, struct kvx_cmd *cmd);

/* worker_ep_cmd.c */
void kvx_worker_ep_cmd(struct kvx_worker *worker, struct kvx_cmd *cmd);
/* Of an ep in worker->closing. It may be gone after that. */
void kvx_worker_ep_close_step(struct kvx_worker *worker, struct worker_ep *wep);
void kvx_worker_fence_run(struct kvx_worker *worker, struct kvx_cmd *cmd); /* a call's run */

/* worker_ep.c */
int kvx_worker_ep_add(struct kvx_worker *worker, struct kvx_ep *ep, struct worker_ep **out_wep);
struct worker_ep *kvx_worker_ep_find(const struct kvx_worker *worker, struct kvx_ep *ep);
void kvx_worker_ep_forget(struct kvx_worker *worker, struct worker_ep *wep);
/* Puts it into the lists of what to post and what to close, or takes it out, as its state says. */
void kvx_worker_ep_update(struct kvx_worker *worker, struct worker_ep *wep);
void kvx_worker_ep_refuse(struct kvx_worker *worker, struct worker_ep *wep,
			  const struct kvx_tevent *cause);
/* Gives back what is open, cancelled, of an ep that could not say what became of it. */
void kvx_worker_ep_cancel_open(struct kvx_worker *worker, struct worker_ep *wep);
void kvx_worker_batch_begin(struct kvx_worker *worker, struct kvx_batch *batch);
/* Posts what waits. Returns how many ops the transport took. */
unsigned kvx_worker_post_ready(struct kvx_worker *worker);
void kvx_worker_on_op_done(struct kvx_worker *worker, const struct kvx_tevent *event,
			   uint64_t now_ns);

/* worker_helper.c. Helpers exist only where the transport's calls may block and the worker has a
 * thread. */
int kvx_worker_helpers_start(struct kvx_worker *worker, struct kvx_why *why);
void kvx_worker_helpers_stop(struct kvx_worker *worker); /* nothing is with them */
/* Of endpoints: run, on the helper, then back, here; where there are no helpers both happen before
 * it returns. */
void kvx_worker_call(struct kvx_worker *worker, struct kvx_cmd *cmd, enum worker_helper_kind kind,
		     void (*run)(struct kvx_worker *worker, struct kvx_cmd *cmd),
		     void (*back)(struct kvx_worker *worker, struct kvx_cmd *cmd));
/* Goes on with the calls that have returned. Returns how many. */
unsigned kvx_worker_calls_finish(struct kvx_worker *worker);
bool kvx_worker_calls_returned(const struct kvx_worker *worker);
/* Of memory: run on the helper (for cmd->gpu: its own), then it is for the other one to take. */
void kvx_worker_helper_give(struct kvx_worker *worker, struct kvx_cmd *cmd,
			    enum worker_helper_kind kind,
			    void (*run)(struct kvx_worker *worker,
					struct kvx_cmd *cmd)) KVX_ON_LOOP;
/* NULL: none has come back. */
struct kvx_cmd *kvx_worker_helper_take(struct kvx_worker *worker) KVX_ON_LOOP;

/* worker_mem.c */
/* Does it go past the worker? */
bool kvx_worker_mem_is_past(const struct kvx_worker *worker, enum kvx_work_kind kind);
void kvx_worker_mem_give(struct kvx_worker *worker, struct kvx_cmd *cmd) KVX_ON_LOOP;
/* One that is done; NULL: none. */
struct kvx_cmd *kvx_worker_mem_take(struct kvx_worker *worker) KVX_ON_LOOP;
/* Of those that do not go past it; worker thread. It is done. */
void kvx_worker_mem_run(struct kvx_worker *worker, struct kvx_cmd *cmd);

/* worker_thread.c */
void *kvx_worker_main(void *arg);
int kvx_worker_dom_open(struct kvx_worker *worker, struct kvx_why *why);
void kvx_worker_dom_close(struct kvx_worker *worker);
void kvx_worker_wake(struct kvx_worker *worker); /* loop and helpers */

#endif
