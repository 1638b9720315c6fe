/* Events of a GPU that is not there, for tests of gates: the test says what each one answers. */
#ifndef KVX_GATE_FAKE_H
#define KVX_GATE_FAKE_H

#include <stdatomic.h>

#include "mem/gpu.h"
#include "xfer/gate.h"

#define GATE_FAKE_EVENTS 512

struct gate_fake {
	_Atomic int
	    state[GATE_FAKE_EVENTS]; /* as event_query(): 0 not yet, 1 reached, or an error */
	_Atomic int open_error;      /* of the next event_open()s; 0: none */
	_Atomic int ready_error;     /* of the next event_ready()s; 0: none */
	_Atomic bool slow[GATE_FAKE_EVENTS]; /* it is not open as long */
	_Atomic int hang;                    /* 1: the next query does not return before it is 0 */
	_Atomic unsigned n_open, n_opened, n_tries, n_queries, n_hanging;
	void (*on_query)(void); /* NULL, or runs in each event_query() */
	struct kvx_gpu_mem gpu;
	struct kvx_region region; /* in its memory */
};

void gate_fake_init(struct gate_fake *fake);
/* A wait for its i-th event; borrows from static memory of 8 calls. */
const struct kvx_wait *gate_fake_event(struct gate_fake *fake, unsigned i);

#endif
