/* What a device's domain lets other threads of the daemon do with it: copies between page-locked
 * host memory and the device (for transports that reach host memory only), events of engines that
 * transfers wait for, and a piece of the device's memory that RDMA devices read to flush what they
 * wrote there. The home of a region fills access and device of its struct kvx_gpu_mem; they are
 * good as long as any region of the device is registered, and what is made through them (copiers,
 * events, buffers) must be closed before the domain is: workers of other transports close first.
 *
 * A device that is lost answers -ENODEV to everything from then on, at once. What may hang with a
 * device runs with the domain's deadline and says -ETIMEDOUT. */
#ifndef KVX_MEM_GPU_ACCESS_H
#define KVX_MEM_GPU_ACCESS_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/gpu.h"

struct kvx_gpu_copier;
struct kvx_gpu_event;

#define KVX_GPU_FLUSH_MARK_BYTES 16

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
	/* Starts one set of copies; pieces need not outlive the call. 0 with the ticket; -EAGAIN:
	 * no ticket is free; -ENODEV. Never blocks but for the runtime's own queueing. */
	int (*copier_start)(struct kvx_gpu_copier *copier, const struct kvx_gpu_piece *pieces,
			    unsigned n, unsigned *out_ticket);
	/* 1: its bytes are there, the ticket is free; 0: not yet; negative: it failed, nothing of
	 * it is under way any more, the ticket is free. */
	int (*copier_poll)(struct kvx_gpu_copier *copier, unsigned ticket);
	/* What is under way does not end: the device is given up, as lost. Polls say so once it was
	 * reset, and nothing lands any more. Does not wait. */
	void (*copier_cut)(struct kvx_gpu_copier *copier);

	/* An event of another process. open, close: may block up to the deadline. open: -EBUSY:
	 * the device was busy with other calls all the time, try again; -ETIMEDOUT: this very call
	 * hangs. */
	int (*event_open)(void *device, const uint8_t ipc[KVX_GPU_IPC_BYTES],
			  struct kvx_gpu_event **out_event);
	void (*event_close)(struct kvx_gpu_event *event);
	/* 1: what was recorded last has been reached; 0: not yet. Any one thread. */
	int (*event_query)(struct kvx_gpu_event *event);

	/* Made at the first call, lives as long as the domain. 0; -EOPNOTSUPP; may block. */
	int (*flush_memory)(void *device, struct kvx_gpu_flush *out_flush);
};

#endif
