/* A GPU runtime inside of the test: a table of calls (gpu/gpu.h) over host memory, with two
 * devices. Copies wait in their stream until somebody asks for an event behind them, counts and
 * failures are the test's. For what is above the runtime; the runtimes' own calls are tested with
 * the stand-in (tests/gpu). */
#ifndef KVX_TEST_GPU_FAKE_H
#define KVX_TEST_GPU_FAKE_H

#include <semaphore.h>
#include <stdatomic.h>

#include "gpu/gpu.h"

#define FAKE_DEVICES 2

enum fake_call {
	FAKE_OPEN,
	FAKE_BIND,
	FAKE_RESET,
	FAKE_MEM_ALLOC,
	FAKE_HOST_ALLOC,
	FAKE_HOST_PIN,
	FAKE_HOST_UNPIN,
	FAKE_RANGE,
	FAKE_DMABUF,
	FAKE_IPC_OPEN,
	FAKE_IPC_CLOSE,
	FAKE_STREAM_CREATE,
	FAKE_STREAM_SYNC,
	FAKE_EVENT_CREATE,
	FAKE_EVENT_RECORD,
	FAKE_EVENT_QUERY,
	FAKE_EVENT_OPEN,
	FAKE_COPY,
	FAKE_COPY_RECT,
	FAKE_COPY_BATCH,
	FAKE_KERNEL_LOAD,
	FAKE_KERNEL_RUN,
	FAKE_PEER_CAN,
	FAKE_PEER_ENABLE,
	FAKE_CALLS,
};

struct fake_gpu {
	struct kvx_gpu gpu; /* first */
	_Atomic unsigned n[FAKE_CALLS];
	_Atomic unsigned n_pieces[FAKE_CALLS]; /* of batches, rects (rows) and kernels */
	_Atomic unsigned n_maps, n_pins, n_hosts, n_allocs, n_streams, n_events;
	/* The call fails from its n-th time on, so many times. */
	_Atomic unsigned fail_at[FAKE_CALLS], fail_times[FAKE_CALLS];
	_Atomic int fail_err[FAKE_CALLS];
	_Atomic int fail_code[FAKE_CALLS]; /* the runtime's own; 0: none */
	_Atomic uint64_t last_alloc;       /* what mem_alloc() gave */
	_Atomic bool hold;                 /* copies stay in their streams */
	_Atomic unsigned let_through;      /* but so many events, with what is before them */
	_Atomic uint64_t hang_pin_bytes;   /* host_pin() of so many or more hangs; 0: none */
	_Atomic int last_pin_device;       /* which the thread was bound to; -1: none yet */
	_Atomic bool no_peers;             /* no device reaches the other */
	/* ipc_open(), reset() and event_destroy() wait here while they are to hang. */
	_Atomic bool hang_ipc, hang_reset, hang_destroy;
	sem_t let_go;
	/* The call does not return as long; one that a reset meets in it finds its device gone. */
	_Atomic bool hang[FAKE_CALLS];
	_Atomic unsigned n_resets;
};
extern struct fake_gpu fake;
/* Which way takes a millisecond longer, for who measures. Set before the domain is opened. */
enum fake_slow { FAKE_SLOW_NONE, FAKE_SLOW_KERNEL, FAKE_SLOW_COPIES };
extern enum fake_slow fake_slow;

/* Makes it anew; what kvx_gpu_open() gives from now on, with the test's -Wl,--wrap of it. */
void fake_gpu_init(uint32_t caps);
/* Memory of a device, as a client has it: of another process. */
uint8_t *fake_client_alloc(int device, uint64_t bytes, uint8_t out_ipc[KVX_GPU_IPC_BYTES]);
void fake_client_free(uint8_t *addr);
void fake_fail(enum fake_call call, unsigned nth, unsigned times, int err);

#endif
