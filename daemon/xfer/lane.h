/* Lanes: where batches go. A lane joins this node to one peer for one tenant (or to itself, for
 * all) by one transport; it has one outlet per worker and endpoint that it may use. It is the unit
 * that is torn down on error: a new set-up is a new generation, perhaps by another transport. */
#ifndef KVX_LANE_H
#define KVX_LANE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/roles.h"
#include "worker/worker.h"

#define KVX_LANE_OUTLETS 16

/* UP: takes ops. CONNECTING: being made or rebuilt; transfers wait for it in the queue. DOWN,
 * CLOSING: transfers are refused (-EHOSTDOWN). Who owns the lane sets the state and calls
 * kvx_sched_pump() when it becomes UP; and counts `generation` up before it makes rkeys of targets
 * invalid: transfers pull nothing while target->lane_generation differs. */
enum kvx_lane_state { KVX_LANE_DOWN, KVX_LANE_CONNECTING, KVX_LANE_UP, KVX_LANE_CLOSING };

struct kvx_outlet {
	struct kvx_worker *worker;
	struct kvx_ep *ep;
	unsigned dom_index; /* which slot of region->reg and target->rkey belongs to this worker's
			       domain */
	unsigned batches_in_flight;
	uint64_t bytes_in_flight;
};

struct kvx_sched;

struct kvx_lane {
	const struct kvx_transport_ops *ops; /* changes with the generation only */
	enum kvx_lane_state state;
	uint64_t generation;
	unsigned n_outlets;
	struct kvx_outlet outlets[KVX_LANE_OUTLETS];
	struct kvx_outlet
	    *inline_outlet; /* copy: batches small enough are copied on the loop; NULL: none */
	uint64_t inline_max_bytes;
	struct kvx_sched *sched; /* this lane's scheduler */
	/* totals, for people */
	uint64_t n_batches, n_ops, n_bytes, n_errors, n_resets;
};

#endif
