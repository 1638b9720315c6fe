/* What the two parts of the copy backend share: its objects (copy.c), and the ring of ops and how
 * they move (copy_move.c). Everything belongs to the worker that owns the domain. */
#ifndef KVX_COPY_PRIV_H
#define KVX_COPY_PRIV_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/idmap.h"
#include "transport/transport.h"

#define COPY_MAX_OP_BYTES (512u * 1024u) /* no more than one turn copies */
#define COPY_RING_OPS     1024u          /* a power of two */

struct kvx_mr {
	struct kvx_dom *dom;
	uint8_t *addr;
	uint64_t len_bytes;
	uint64_t id; /* in dom->mrs; 0: deregistered, kept only for the ops and rkeys below */
	uint32_t rights;
	unsigned n_refs; /* registration, rkeys, ops in the ring */
};

struct kvx_rkey {
	struct kvx_mr *mr;
};

struct kvx_ep {
	struct kvx_dom *dom;
	unsigned n_open; /* ops in the ring */
	bool fenced;
};

enum copy_slot_state { COPY_SLOT_WAITING, COPY_SLOT_DONE };

struct copy_slot {
	struct kvx_op op;
	struct kvx_ep *ep;
	struct kvx_mr *remote; /* the rkey may be freed before the op is reported */
	int status;
	enum copy_slot_state state;
};

struct kvx_dom {
	uint64_t magic;
	uint64_t nt_min_bytes;
	struct kvx_idmap *mrs;
	unsigned n_eps;
	unsigned n_rkeys;
	/* Ring: [tail, copied) wait to be reported, [copied, head) to be copied. */
	uint32_t head, copied, tail;
	/* This turn, shared with the guarded function: volatile, as it may be left by a jump. */
	volatile uint32_t at, until;
	uint32_t one_by_one; /* ops up to this index are copied alone, to find the one that faults
			      */
	bool blame;          /* fault_cookie is set */
	uint64_t fault_cookie;
	struct copy_slot ring[COPY_RING_OPS];
};

static inline void copy_mr_unref(struct kvx_mr *mr)
{
	if (--mr->n_refs == 0)
		free(mr);
}

/* copy_move.c */
int copy_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n);
int copy_progress(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max);
int copy_arm(struct kvx_dom *dom);

#endif
