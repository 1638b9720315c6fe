/* Transfers: from an accepted request to its one terminal event.
 *
 * A transfer is submitted with both of its sides resolved; it is planned lazily, scheduled on its
 * target's lane, and ends when the last batch came back (the fence of the normal case), or, after a
 * failure, a cancel or its deadline, when everything that was in flight has come back or the lane
 * was torn down. Retry lives here and only here: see xfer_retry.c; it is counted and shown.
 *
 * Who is told: the submitter through on_terminal, exactly once and last; the remote engine through
 * the target: on the same node on_arrival, on another node remote_open and remote_end of the peer
 * channel. The remote engine is told first, and of success only after all bytes are visible. Both
 * are told of every transfer but one whose peer was lost before its first byte was due: its engine
 * never heard of it, and its memory was never touched. Loop thread.
 *
 * No callback ever runs from submit, append, seal, cancel or a timer: they only note. Everything
 * happens in kvx_xfers_pump(), which kvx_node_drain() calls; who submits, appends, seals or cancels
 * calls one of the two before the loop goes back to sleep. A transfer small enough for the lane's
 * inline outlet is over when that pump returns.
 *
 * Both sides may be the same memory. Where destination ranges of a transfer overlap its source
 * ranges, the destination holds undefined bytes afterwards; nothing outside of the destination
 * ranges is touched.
 *
 * A memory fault (a page that cannot be had while bytes are copied) fails the transfer with
 * -EFAULT; which side it was is not known. The regions stay usable.
 */
#ifndef KVX_XFER_H
#define KVX_XFER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/metrics.h"
#include "base/roles.h"
#include "base/timer.h"
#include "mem/region.h"
#include "xfer/gate.h"
#include "xfer/plan.h"
#include "xfer/sched.h"
#include "xfer/target.h"

#define KVX_PAYLOAD_MAX 4096
#define KVX_LABEL_BYTES 65 /* for people: the engine's name for a transfer, with the NUL */

struct kvx_xfer;
struct kvx_xfers;

/* How a transfer ended; borrowed for the call. */
struct kvx_xfer_end {
	uint64_t xfer;   /* the submitter's number */
	uint64_t client; /* the submitter */
	uint64_t tag;
	int op;     /* enum kvx_op_kind */
	int status; /* 0 or -errno */
	enum kvx_scope scope;
	int vendor_code;
	const char *text; /* "" on success */
	uint64_t bytes;
	const char *transport; /* "" when nothing was posted */
	uint64_t submit_ns, first_ns, last_ns, end_ns;
};
/* What the remote engine is told; borrowed for the call. */
struct kvx_arrival {
	uint64_t owner; /* client id of the region's owner */
	uint64_t region;
	uint64_t tag;
	int op;
	int status;
	const char *text;
	uint64_t bytes;
	const char *transport;
	const void *payload;
	uint32_t payload_bytes;
};

struct kvx_xfers_conf {
	struct kvx_timers *timers;
	struct kvx_scheds *scheds;
	struct kvx_gates *gates; /* what lists may wait behind; NULL: waits are refused */
	uint32_t max_xfers;      /* of the daemon */
	uint64_t default_deadline_ns;
	uint64_t fence_bound_ns; /* after a failure or cancel: how long to wait for what is in
				    flight before lane_reset */
	unsigned lane_retries;   /* how often a transfer may go on with another generation of its
				    lane after it had ops in flight on one that was torn down */
	unsigned history;        /* ended transfers kept for kvxferctl */
	void *arg;               /* for on_terminal and on_arrival */
	void (*on_terminal)(void *arg, const struct kvx_xfer_end *end);
	void (*on_arrival)(void *arg, const struct kvx_arrival *arrival); /* same-node targets */
	void *remote_arg; /* for the functions below; each may be NULL */
	/* Other-node targets: before the first byte; after the last (payload: NULL on failure).
	 * Each exactly once per transfer, in this order, also when it failed before anything was
	 * sent. */
	void (*remote_open)(void *arg, struct kvx_target *target, uint64_t xfer_uid, int op,
			    uint64_t tag, const char *label);
	void (*remote_end)(void *arg, struct kvx_target *target, uint64_t xfer_uid,
			   const struct kvx_arrival *end);
	/* Domains (bit set by index) of the rails that are nearest to a region's device; 0: none is
	 * nearer than the others. */
	uint64_t (*near_doms)(void *arg, const struct kvx_region *local);
	/* The fence bound has passed: tear the lane down, so that everything in flight on it comes
	 * back. Called again after each further bound: no-op while the reset is under way. Runs
	 * from a timer. */
	void (*lane_reset)(void *arg, struct kvx_lane *lane, const char *cause);
};

int kvx_xfers_create(const struct kvx_xfers_conf *conf, struct kvx_xfers **out_xfers);
void kvx_xfers_destroy(struct kvx_xfers *xfers); /* asserts that none is left */

struct kvx_xfer_req {
	uint64_t client;           /* submitter: flow of the scheduler */
	uint64_t number;           /* the submitter's number for it */
	int op;                    /* enum kvx_op_kind */
	struct kvx_region *region; /* local side, owned by the submitter */
	struct kvx_target *target; /* remote side */
	uint64_t tag;
	uint64_t deadline_ns; /* from now; 0: default */
	const char *require;  /* "" or a transport's name */
	const char *label;    /* for people, shorter than KVX_LABEL_BYTES; NULL: none; copied */
	const void *payload;  /* copied */
	uint32_t payload_bytes;
	bool streaming;
	const struct kvx_block_list
	    *blocks; /* at most one of the two; one is needed unless streaming */
	const struct kvx_op_list *ops;
	const struct kvx_wait *wait; /* no byte of the list moves before; NULL: none */
};
/* 0: it will end in on_terminal (never before this returns); *out_xfer is valid until then. Else
 * -errno with *why: nothing was started and no callback runs. -EACCES (target's
 * rights), -ENETUNREACH (require), -EOWNERDEAD (region not live), target's lost_status, -EDQUOT,
 * -EHOSTDOWN (lane down; one that is being rebuilt is waited for), -EMSGSIZE (payload), -EINVAL
 * (not exactly one of blocks and ops, ...), plan's errors, those of kvx_gate_create(). */
int kvx_xfer_submit(struct kvx_xfers *xfers, const struct kvx_xfer_req *req,
		    struct kvx_xfer **out_xfer, struct kvx_why *why) KVX_ON_LOOP;
/* A refused append ends the transfer as failed with that error; so does a second seal. Both are
 * no-ops (0) on one that is ending already: its terminal event says why. Lists go in the order of
 * their appends: one whose wait (NULL: none) is over goes behind an earlier one that still waits.
 */
int kvx_xfer_append(struct kvx_xfer *xfer, const struct kvx_block_list *blocks,
		    const struct kvx_op_list *ops, const struct kvx_wait *wait,
		    struct kvx_why *why) KVX_ON_LOOP;
int kvx_xfer_seal(struct kvx_xfer *xfer, const void *payload, uint32_t payload_bytes,
		  struct kvx_why *why) KVX_ON_LOOP;
struct kvx_region *kvx_xfer_region(const struct kvx_xfer *xfer); /* its local side */
/* Ends it early with status (negative): terminal after the fence. No-op once it is ending. */
void kvx_xfer_cancel(struct kvx_xfer *xfer, int status, const char *text) KVX_ON_LOOP;
/* Cancels all that match (a region: also those that wait for a flag in it); returns how many are
 * still unfinished (also of earlier cancels). n == 0: fenced. */
unsigned kvx_xfers_cancel_client(struct kvx_xfers *xfers, uint64_t client, int status,
				 const char *text) KVX_ON_LOOP;
unsigned kvx_xfers_cancel_region(struct kvx_xfers *xfers, const struct kvx_region *region,
				 int status, const char *text) KVX_ON_LOOP;
unsigned kvx_xfers_cancel_target(struct kvx_xfers *xfers, const struct kvx_target *target,
				 int status, const char *text) KVX_ON_LOOP;
unsigned kvx_xfers_cancel_lane(struct kvx_xfers *xfers, const struct kvx_lane *lane, int status,
			       const char *text) KVX_ON_LOOP;
/* The lane's generation is being torn down (state no longer UP, generation counted up): transfers
 * with ops in flight go on with the next generation where that is safe, else they fail; the others
 * just wait for it. Returns how many failed. Whoever brings the lane up again calls
 * kvx_xfers_kick_target() for its targets; who gives it up cancels its transfers. */
unsigned kvx_xfers_fail_lane(struct kvx_xfers *xfers, const struct kvx_lane *lane, int status,
			     int vendor_code, const char *text) KVX_ON_LOOP;
/* Somebody who waits for transfers to be over: `ended` runs from the pump after transfers have
 * ended (once for several), until unwatched; ask cancel_*() again there. It may unwatch itself. */
struct kvx_xfers_watch {
	void (*ended)(struct kvx_xfers_watch *watch);
	struct kvx_xfers_watch *prev, *next;
};
void kvx_xfers_watch(struct kvx_xfers *xfers, struct kvx_xfers_watch *watch) KVX_ON_LOOP;
void kvx_xfers_unwatch(struct kvx_xfers *xfers, struct kvx_xfers_watch *watch) KVX_ON_LOOP;
/* target has got rkeys of its lane's current generation: its transfers go on. */
void kvx_xfers_kick_target(struct kvx_xfers *xfers, const struct kvx_target *target) KVX_ON_LOOP;
/* Likewise, and perhaps that generation does not reach them all: each asks target->route() again,
 * and goes to the target that it is given, or fails. They have nothing in flight. */
void kvx_xfers_reroute_target(struct kvx_xfers *xfers, const struct kvx_target *target) KVX_ON_LOOP;
/* Pumps all schedulers and delivers the ends of what is over, until there is nothing to do. A call
 * from inside a callback adds nothing: the outer one goes on. */
void kvx_xfers_pump(struct kvx_xfers *xfers) KVX_ON_LOOP;
unsigned kvx_xfers_count(const struct kvx_xfers *xfers) KVX_ON_LOOP;
unsigned kvx_xfers_count_client(const struct kvx_xfers *xfers, uint64_t client) KVX_ON_LOOP;
/* Memory of the lists of a client's unfinished transfers that have not been walked yet. */
uint64_t kvx_xfers_list_bytes(const struct kvx_xfers *xfers, uint64_t client) KVX_ON_LOOP;

/* For kvxferctl: one row per live transfer, then per ended or refused one, newest first. */
struct kvx_xfer_row {
	struct kvx_xfer_end end; /* status: 1 while it runs */
	uint64_t region;
	uint64_t remote_region;
	const char *peer;  /* "" on the same node */
	const char *label; /* "": none */
	uint32_t tenant;
	const char *state; /* "open", "running", "ending", "ended", "refused" */
	uint64_t bytes_planned;
	uint64_t pieces;
	unsigned retries;      /* by further generations of its lane */
	const char *waits_for; /* the first list that waits: "event", "flag"; "": none does */
	unsigned n_waits;      /* lists that wait */
};
/* A submit that was refused is remembered, as far as row tells of it; those that ran keep their own
 * places in the history. row->state is set. */
void kvx_xfers_refused(struct kvx_xfers *xfers, const struct kvx_xfer_row *row) KVX_ON_LOOP;
void kvx_xfers_walk(const struct kvx_xfers *xfers,
		    void (*cb)(void *arg, const struct kvx_xfer_row *row), void *arg) KVX_ON_LOOP;

struct kvx_xfers_stats {
	uint64_t accepted, refused, ok, failed, cancelled, deadline;
	uint64_t retries; /* of transfers whose lane was torn down under them */
	uint64_t bytes_ok, pieces, ops;
	struct kvx_hist latency_ns; /* submit to end, OK only */
	struct kvx_hist queue_ns;   /* submit to first op */
	uint64_t waits;             /* of lists, that are over */
	struct kvx_hist wait_ns;    /* how long they took */
};
const struct kvx_xfers_stats *kvx_xfers_stats(const struct kvx_xfers *xfers) KVX_ON_LOOP;

#endif
