/* Workers: the data-plane threads. A worker owns one transport domain: it opens it, runs commands
 * against it, posts batches, makes progress and gives everything back through its completion ring.
 * The loop never waits for it.
 *
 * The loop submits commands (struct kvx_cmd, owned by the loop again once `done` runs) into the
 * submit ring; the worker returns each exactly once; kvx_worker_drain() runs `done` on the loop.
 * News that nobody asked for (an ep lost, a device lost) come as notes through the same ring.
 *
 * Where the transport's control calls may block (KVX_CAP_BLOCKING_CONTROL) they run on helper
 * threads of the worker, one for registering memory, one for taking that back, one for setting
 * endpoints up, one for fencing them, so that neither data nor a fence ever waits for a
 * registration or an address resolution. Commands for memory do not pass the worker's own thread
 * then, which may stand in a call of the transport that does not return (fabric makes them there
 * all the same: it calls no driver that hangs). Memory that a command says is a GPU's is registered
 * and taken back on threads of that GPU's own: its driver may hang in them. The order of commands
 * for one ep holds all the same; commands for different things may overtake each other.
 */
#ifndef KVX_WORKER_H
#define KVX_WORKER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/metrics.h"
#include "base/roles.h"
#include "transport/transport.h"

#define KVX_BATCH_OPS 128

enum kvx_work_kind {
	KVX_WORK_BATCH,      /* struct kvx_batch: post its ops; back when all are done */
	KVX_CMD_LISTEN,      /* tenant -> ep, bytes, len */
	KVX_CMD_CONNECT,     /* ep, bytes, len; done when EP_UP or EP_DOWN came: status */
	KVX_CMD_EP_CLOSE,    /* fence, complete its batches (and CONNECT) with -ECANCELED, close;
				status: what fence() said, the ep is gone in any case */
	KVX_CMD_FENCE,       /* fence only: the ep stays, its batches and CONNECT come back with
				-ECANCELED, as does every later one */
	KVX_CMD_LEASE,       /* ep, lease_ns; 0: stops all inbound access */
	KVX_CMD_MEM_REG,     /* tenant, mem, rights, gpu -> mr, mkey, mkey_len: the key is for the
				caller to free() */
	KVX_CMD_MEM_DEREG,   /* mr, gpu */
	KVX_CMD_RKEY_UNPACK, /* ep, mkey, mkey_len -> rkey; the key stays the caller's, who keeps it
				until the command is done */
	KVX_CMD_RKEY_FREE,   /* rkey */
	KVX_CMD_NOTE,        /* worker -> loop only: event */
};

/* What the rings carry: the first member of commands and batches. */
struct kvx_work {
	enum kvx_work_kind kind;
	struct kvx_work *next; /* the worker's, while it has the work */
};

struct kvx_cmd;
typedef void (*kvx_cmd_done_cb)(
    struct kvx_cmd *cmd); /* on the loop, once, never before submit has returned */

/* The part of a command that may block. The worker's, while it has the command. Memory's have only
 * run. */
struct kvx_worker;
struct kvx_call {
	void (*run)(struct kvx_worker *worker, struct kvx_cmd *cmd);  /* the call; on a helper */
	void (*back)(struct kvx_worker *worker, struct kvx_cmd *cmd); /* what follows it */
	int status;                                                   /* what run said */
};

struct kvx_cmd {
	struct kvx_work work;
	int status;       /* out: 0 or -errno */
	int vendor_code;  /* out */
	const char *text; /* out: static string or NULL */
	kvx_cmd_done_cb done;
	struct kvx_worker *worker; /* set by submit */
	/* in and out, by kind */
	struct kvx_ep *ep;
	struct kvx_mr *mr;
	struct kvx_rkey *rkey;
	const struct kvx_mem *mem;
	uint32_t tenant;
	uint32_t rights;
	uint32_t gpu; /* MEM_REG, MEM_DEREG: 1..KVX_GPU_MAX: it is memory of that GPU, whose driver
			 the call goes into; 0: none */
	uint64_t lease_ns;
	size_t len;                            /* of bytes[] in use */
	uint8_t bytes[KVX_TRANSPORT_ADDR_MAX]; /* address */
	uint8_t *mkey;                         /* heap, of exactly its length; NULL: none */
	size_t mkey_len;
	struct kvx_tevent event; /* NOTE */
	struct kvx_call call;
};

/* The unit of scheduling: ops of one transfer for one ep. From the scheduler's pool. */
struct kvx_batch {
	struct kvx_work work;
	struct kvx_worker *worker;
	struct kvx_ep *ep;
	void *owner;                           /* the scheduler's item */
	void (*done)(struct kvx_batch *batch); /* on the loop, once */
	uint64_t bytes;                        /* sum of the ops */
	uint32_t n_ops;
	uint32_t n_posted;                /* the worker's */
	uint32_t n_done;                  /* the worker's */
	int status;                       /* out: 0, or the first error */
	int vendor_code;                  /* out */
	const char *text;                 /* out */
	uint64_t first_ns;                /* out: first op taken by the transport */
	uint64_t last_ns;                 /* out: last op done */
	struct kvx_op ops[KVX_BATCH_OPS]; /* cookie: set by the worker */
};

struct kvx_worker_conf {
	const char *name; /* thread name, at most 15 bytes: "kvx-copy0" */
	const struct kvx_transport_ops *ops;
	struct kvx_dom_conf dom; /* what it points to need only last until open returns */
	unsigned ring_depth;     /* commands and batches in flight; sizes both rings */
	unsigned spin_us;        /* how long to poll after the last piece of work before sleeping */
	bool threaded; /* false: no thread, the owner calls kvx_worker_pump() (tests, inline copies)
			*/
	void (*doorbell)(void *arg); /* the worker's threads: "there is something to drain"; NULL
					when not threaded */
	void *doorbell_arg;
	void (*note)(void *arg, const struct kvx_tevent *event); /* on the loop, from drain */
	void *note_arg;
};

/* Starts the thread and opens the domain in it; returns when that is done (start-up only: it
 * blocks). */
int kvx_worker_open(const struct kvx_worker_conf *conf, struct kvx_worker **out_worker,
		    struct kvx_why *why) KVX_ON_LOOP;
/* Stops the thread and closes the domain. Everything submitted must have come back. */
void kvx_worker_close(struct kvx_worker *worker) KVX_ON_LOOP;
/* Opening in two halves, for several at once: begin starts the thread, finish waits until it has
 * opened the domain. Each that has begun must be finished; one that fails then is gone. note_arg
 * takes the place of the one in conf. A worker without a thread has its domain after begin. */
int kvx_worker_begin(const struct kvx_worker_conf *conf, struct kvx_worker **out_worker,
		     struct kvx_why *why) KVX_ON_LOOP;
int kvx_worker_finish(struct kvx_worker *worker, void *note_arg, struct kvx_why *why) KVX_ON_LOOP;

/* Neither blocks. 0, or -EAGAIN when ring_depth commands are in flight (those for memory and keys
 * that go past the worker's thread apart). Wakes the worker if it sleeps. */
int kvx_worker_submit(struct kvx_worker *worker, struct kvx_cmd *cmd) KVX_ON_LOOP;
int kvx_worker_submit_batch(struct kvx_worker *worker, struct kvx_batch *batch) KVX_ON_LOOP;
/* Runs the done callbacks of what came back. Returns how many. */
unsigned kvx_worker_drain(struct kvx_worker *worker) KVX_ON_LOOP;
/* Not threaded only: one turn of the worker (commands, post, progress). Returns whether it did
 * anything. */
bool kvx_worker_pump(struct kvx_worker *worker) KVX_ON_LOOP;

const struct kvx_transport_ops *kvx_worker_ops(const struct kvx_worker *worker);
const struct kvx_transport_limits *kvx_worker_limits(const struct kvx_worker *worker);
unsigned kvx_worker_in_flight(const struct kvx_worker *worker) KVX_ON_LOOP;
/* How long its turn has lasted: milliseconds, but for one that stands in a call of its transport
 * that takes long or does not return (or whose process stood still). 0: it is in none. Of its own
 * thread: calls on helpers do not count. */
uint64_t kvx_worker_turn_ns(const struct kvx_worker *worker) KVX_ON_LOOP;

/* Written by the worker, read by the loop. */
struct kvx_worker_stats {
	struct kvx_counter ops;
	struct kvx_counter bytes;
	struct kvx_counter batches;
	struct kvx_counter errors;
	struct kvx_counter sleeps;
	struct kvx_counter short_posts; /* post() took fewer than offered */
	struct kvx_counter late_dones;  /* OP_DONE for a batch that had come back already: dropped
					 */
};
const struct kvx_worker_stats *kvx_worker_stats(const struct kvx_worker *worker);

#endif
