/* GPU memory of a client: what it told of it, and where it is once the device's domain has mapped
 * it. Owned by its struct kvx_mem. Made on the loop; `addr` of the bases is written by the one
 * domain that maps them, before anybody else is given the region. */
#ifndef KVX_MEM_GPU_H
#define KVX_MEM_GPU_H

#include "gpu/gpu.h"
#include "mem/gpu_access.h"
#include "mem/mem.h"

#define KVX_GPU_WITNESS_BYTES 16
#define KVX_GPU_MAX_WITNESSES 16

/* From so much host memory on locking its pages takes so long that what is short must not wait
 * behind it. */
#define KVX_PIN_LONG_BYTES (64ull << 20)

/* An allocation of the client's, exported whole. */
struct kvx_gpu_base {
	uint8_t ipc[KVX_GPU_IPC_BYTES];
	uint64_t len_bytes; /* as the client says */
	uint64_t addr;      /* in this process; 0: not mapped */
	int fd;             /* dma-buf of it, owned; -1: none */
	uint64_t fd_offset; /* where the allocation begins in the dma-buf */
};

/* [start, start + len) of the region is [offset, offset + len) of bases[base]. Segments follow each
 * other without gaps. */
struct kvx_gpu_segment {
	uint64_t start;
	uint64_t len_bytes;
	uint64_t offset;
	uint32_t base;
};

/* What the client read at an offset of the region, for comparison. */
struct kvx_gpu_witness {
	uint64_t offset;
	uint8_t bytes[KVX_GPU_WITNESS_BYTES];
};

struct kvx_gpu_mem {
	struct kvx_gpu_id id; /* of the device */
	uint32_t n_bases, n_segments, n_witnesses;
	struct kvx_gpu_base *bases;
	struct kvx_gpu_segment *segments;
	struct kvx_gpu_witness witnesses[KVX_GPU_MAX_WITNESSES];
	struct kvx_why why; /* why its home could not map it; "": no more than the error says */
	/* What else its device can do; set by its home. NULL: it is not mapped. */
	const struct kvx_gpu_access *access;
	void *device; /* for access */
};

/* Bases without fds, all else 0. NULL: no memory. The counts are bounded by the caller's limits. */
struct kvx_gpu_mem *kvx_gpu_mem_create(uint32_t n_bases, uint32_t n_segments);
void kvx_gpu_mem_destroy(struct kvx_gpu_mem *gpu); /* closes fds: may block. NULL is fine */
/* Its dma-bufs are not needed any more: who registered them holds the memory. May block. */
void kvx_gpu_mem_close_fds(struct kvx_gpu_mem *gpu);
/* Are its fds dma-bufs? Asks no file system and no exporter, but the kernel once for each. -EBADF,
 * -EDQUOT (no fd was left to find out) with the reason: then they may be anything, and closing them
 * may take for ever. Any thread but the loop's. */
int kvx_gpu_mem_check_fds(const struct kvx_gpu_mem *gpu, struct kvx_why *why);
/* Index of the segment that holds the byte at `offset`, which is in the region. */
uint32_t kvx_gpu_mem_find(const struct kvx_gpu_mem *gpu, uint64_t offset);
/* Address in this process of the byte at `offset`, and how many follow it in its segment. Mapped
 * memory only. */
uint64_t kvx_gpu_mem_addr(const struct kvx_gpu_mem *gpu, uint64_t offset, uint64_t *out_room);

extern const struct kvx_mem_ops kvx_mem_hip_ops;
extern const struct kvx_mem_ops kvx_mem_cuda_ops;

#endif
