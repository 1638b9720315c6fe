/* The fake transport's script: what its link is like and what goes wrong on it. Tests put a pointer
 * to one into kvx_dom_conf.test; domains with the same script reach each other. Time is virtual:
 * nothing completes until kvx_fake_advance() (or auto_advance). One thread for everything that
 * shares a script. */
#ifndef KVX_FAKE_H
#define KVX_FAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "transport/transport.h"

/* Slots that can fail. */
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
	KVX_FAKE_SLOTS
};

struct kvx_fake_fault {
	unsigned nth; /* which call fails, from 1; 0: none */
	int err;      /* -errno */
};

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
	unsigned queue_ops; /* open ops per ep; read by listen(); 0: 256 */
	struct kvx_transport_limits limits; /* fields that are 0 get a default */

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
	struct kvx_dom *doms;                   /* fake.c's */
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

#endif
