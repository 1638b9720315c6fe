/* The fake transport's script: what its link is like and what goes wrong on it. Tests put a pointer
 * to one into kvx_dom_conf.test; domains with the same script reach each other. Time is virtual:
 * nothing completes until kvx_fake_advance() (or auto_advance). One thread for everything that
 * shares a script, but for a script with gates: there any thread may call what is here, and looks
 * at the state between kvx_fake_lock() and kvx_fake_unlock().
 *
 * With gates (kvx_fake_blocking_ops) the transport has KVX_CAP_BLOCKING_CONTROL: a test can hold
 * calls of a slot for as long as it likes, and the fake sees to it that the worker keeps its
 * promises. */
#ifndef KVX_FAKE_H
#define KVX_FAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "transport/transport.h"

/* Slots. */
enum kvx_fake_slot {
	KVX_FAKE_PROBE,
	KVX_FAKE_OPEN,
	KVX_FAKE_LISTEN,
	KVX_FAKE_CONNECT,
	KVX_FAKE_MEM_REG,
	KVX_FAKE_MKEY_PACK,
	KVX_FAKE_RKEY_UNPACK,
	KVX_FAKE_POST,
	KVX_FAKE_PROGRESS,
	KVX_FAKE_ARM,
	KVX_FAKE_FENCE,
	/* These cannot fail. */
	KVX_FAKE_EP_CLOSE,
	KVX_FAKE_MEM_DEREG,
	KVX_FAKE_RKEY_FREE,
	KVX_FAKE_LEASE,
	KVX_FAKE_LEASE_STOP, /* lease(ep, 0) */
	KVX_FAKE_SLOTS
};

struct kvx_fake_fault {
	unsigned nth; /* which call fails, from 1; 0: none */
	int err;      /* -errno */
};

struct kvx_fake_gates;
struct kvx_fake_script {
	/* The link; may be changed at any time. All zero: everything completes at once. */
	uint64_t latency_ns;   /* of every op, and of connect() */
	uint64_t jitter_ns;    /* at most this much more, at random */
	uint64_t bytes_per_us; /* of each ep; 0: no limit */
	uint64_t seed;
	bool reorder;       /* completions come in order of time, not of post */
	bool split;         /* one event per op: OP_DONE is never coalesced */
	bool auto_advance;  /* progress() takes the clock to the next completion (threads) */
	unsigned post_max;  /* most ops that one post() takes; 0: what fits */
	unsigned n_rails;   /* that probe() finds: "fake0", ...; 0: one */
	uint32_t bad_rails; /* bit set of those that are not usable */
	unsigned queue_ops; /* open ops per ep; read by listen(); 0: 256 */
	struct kvx_transport_limits limits; /* fields that are 0 get a default */
	/* What an ep has under way when it is fenced lands all the same when it is due: within
	 * limits.settle_ns, or until the other side stops it or its lease is over. */
	bool late_writes;

	/* What goes wrong. Ops are counted from 1 over all posts; 0: never. */
	unsigned fail_nth_op; /* moves half of its bytes, then fails with fail_err */
	int fail_err;
	unsigned drop_nth_op; /* its completion never comes; fence() cancels it */
	unsigned drop_ops;    /* and so many ops after it */
	bool drop_lands;      /* the bytes of dropped ops land, as they may on real links */
	unsigned ep_down_at_op;
	unsigned device_lost_at_op;
	struct kvx_fake_fault faults[KVX_FAKE_SLOTS];
	unsigned more_faults[KVX_FAKE_SLOTS]; /* and so many calls after the nth */

	/* State, to look at. */
	uint64_t now_ns;
	unsigned calls[KVX_FAKE_SLOTS];
	uint64_t n_ops;                         /* posted */
	uint64_t n_landed;                      /* ops whose bytes arrived */
	unsigned n_doms, n_eps, n_mrs, n_rkeys; /* alive */
	unsigned n_open_ops;                    /* not reported yet */
	unsigned n_late;                        /* of n_landed, after the fence of their ep */
	unsigned elsewhere[KVX_FAKE_SLOTS];     /* gates: calls that were made on another thread
						   than the one that opened the domain */
	unsigned n_violations;                  /* gates: promises that the worker broke */
	const char *violation;                  /* the first of them */
	struct kvx_dom *doms;                   /* fake.c's */
	struct fake_late *late;                 /* fake_late.c's */
	struct kvx_fake_gates *gates;           /* fake_blocking.c's */
	uint64_t next_id;
};

/* Passes virtual time: what is due lands, in order of time, whether or not anyone calls progress().
 */
void kvx_fake_advance(struct kvx_fake_script *script, uint64_t ns);
/* When the next op or connection is due; UINT64_MAX: nothing is. */
uint64_t kvx_fake_next_ns(const struct kvx_fake_script *script);
/* Loses an ep, and its other end, now: open ops fail, EP_DOWN follows. */
void kvx_fake_ep_lose(struct kvx_ep *ep, int status);
/* Loses a device: DEVICE_LOST follows, open ops stay open until fence(). dom NULL: all of the
 * script. */
void kvx_fake_device_lose(struct kvx_fake_script *script, struct kvx_dom *dom);
/* DEVICE_UP follows. dom NULL: of all. */
void kvx_fake_device_up(struct kvx_fake_script *script, struct kvx_dom *dom);

/* Gates: before the first open() with kvx_fake_blocking_ops, after the last close(). -ENOMEM. */
int kvx_fake_gates_open(struct kvx_fake_script *script);
void kvx_fake_gates_close(struct kvx_fake_script *script);
/* Where calls of a slot that may block stop until the gate is opened: before they do anything, or
 * done, before they return. */
enum kvx_fake_gate { KVX_FAKE_GATE_OPEN, KVX_FAKE_GATE_BEFORE, KVX_FAKE_GATE_AFTER };
void kvx_fake_gate(struct kvx_fake_script *script, enum kvx_fake_slot slot,
		   enum kvx_fake_gate gate);
/* How many calls stand at the gate of a slot now. */
unsigned kvx_fake_gate_waiting(struct kvx_fake_script *script, enum kvx_fake_slot slot);
/* No-ops without gates. Not recursive, and the functions above take it, too. */
void kvx_fake_lock(struct kvx_fake_script *script);
void kvx_fake_unlock(struct kvx_fake_script *script);

extern const struct kvx_transport_ops kvx_fake_blocking_ops; /* tests only, like kvx_fake_ops */

#endif
