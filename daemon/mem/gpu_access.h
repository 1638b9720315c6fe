/* What a device's domain lets other threads of the daemon do with it: copies between page-locked
 * host memory and the device (for transports that reach host memory only), events of engines that
 * transfers wait for, and a piece of the device's memory that RDMA devices read to flush what they
 * wrote there. The home of a region fills access and device of its struct kvx_gpu_mem; they are
 * good as long as any region of the device is registered, and what is made through them (copiers,
 * events, buffers) must be closed before the domain is: workers of other transports close first.
 *
 * A device that is lost answers -ENODEV to everything from then on, at once. What may hang with a
 * device runs on its control thread with the domain's deadline, and where it does not come about:
 *
 *   -EBUSY      somebody else's call is in front of it and has not come back, so this one was not
 *               even begun. Nothing is left behind, and it says nothing about the device: try
 *               again. After the deadline, or at once where a call in front is known to hang.
 *   -ETIMEDOUT  this very call was begun and does not return. What it makes is undone should it
 *               return; until then others are told -EBUSY.
 *
 * What closes and frees has no answer: it is queued whatever is in front, and is the control
 * thread's when it does not come about in time. Locking much memory of a client, which takes long
 * on a healthy device, is no call in front of these: it has a thread of its own. */
#ifndef KVX_MEM_GPU_ACCESS_H
#define KVX_MEM_GPU_ACCESS_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/gpu.h"

struct kvx_gpu_copier;
struct kvx_gpu_event;

#define KVX_GPU_FLUSH_MARK_BYTES 16
#define KVX_GPU_COPIER_PIECES    128u

/* Memory of the device that may be read by anybody and holds nothing but its mark. */
struct kvx_gpu_flush {
	uint64_t addr; /* in this process */
	uint64_t len_bytes;
	int fd; /* dma-buf of it, the domain's; -1: it cannot be exported */
	uint64_t fd_offset;
	uint8_t mark[KVX_GPU_FLUSH_MARK_BYTES]; /* random bytes that it begins with */
};

struct kvx_gpu_access {
	/* Page-locked host memory that every device reaches. May block up to the deadline. The
	 * memory stays valid for the CPU when the device is lost, until it is freed. */
	int (*host_alloc)(void *device, size_t bytes, void **out_addr);
	void (*host_free)(void *device, void *addr);

	/* A copier: up to n_tickets copies of one thread under way at once, on a stream of its own.
	 * open, close: may block up to the deadline; close waits until nothing is under way. */
	int (*copier_open)(void *device, unsigned n_tickets, struct kvx_gpu_copier **out_copier);
	void (*copier_close)(struct kvx_gpu_copier *copier);
	/* Starts one set of at most KVX_GPU_COPIER_PIECES copies, which need not outlive the call.
	 * 0 with the ticket; -EAGAIN: no ticket is free; -ENODEV. Like poll and cut it never waits:
	 * a thread of the copier's calls the runtime. */
	int (*copier_start)(struct kvx_gpu_copier *copier, const struct kvx_gpu_piece *pieces,
			    unsigned n, unsigned *out_ticket);
	/* 1: its bytes are there, the ticket is free; 0: not yet; negative: it failed, nothing of
	 * it lands any more, the ticket is free. */
	int (*copier_poll)(struct kvx_gpu_copier *copier, unsigned ticket);
	/* What is under way does not end: the device is given up, as lost. Polls say so once it was
	 * reset, and nothing lands any more. Does not wait. */
	void (*copier_cut)(struct kvx_gpu_copier *copier);

	/* An event of another process, for one thread. None of these waits. open: begins to open
	 * it; -EBUSY, -ENODEV, -ENOMEM: nothing was begun. ready: 1: it is open; 0: not yet;
	 * negative: it cannot be opened, as above, and the event is gone. close: open or not yet.
	 */
	int (*event_open)(void *device, const uint8_t ipc[KVX_GPU_IPC_BYTES],
			  struct kvx_gpu_event **out_event);
	int (*event_ready)(struct kvx_gpu_event *event);
	void (*event_close)(struct kvx_gpu_event *event);
	/* Of one that is open. 1: what was recorded last has been reached; 0: not yet. May hang
	 * with the device. */
	int (*event_query)(struct kvx_gpu_event *event);

	/* Made at the first call, lives as long as the domain. 0; -EOPNOTSUPP; may block. */
	int (*flush_memory)(void *device, struct kvx_gpu_flush *out_flush);
};

#endif
