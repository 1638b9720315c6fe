/* Memory kinds. A kind knows how to check what a client handed over, to make it reachable for the
 * daemon, and to undo that. Sole owner of received fds and of mappings made of them. check() is
 * quick and runs on the loop; map() and unmap() may block (page tables of gigabytes, GPU runtimes)
 * and run on the job thread. */
#ifndef KVX_MEM_H
#define KVX_MEM_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/kvx_err.h"

enum kvx_mem_kind { KVX_MEM_HOST = 1, KVX_MEM_DMABUF = 2, KVX_MEM_HIP = 3, KVX_MEM_CUDA = 4 };

struct kvx_mem_ops;
struct kvx_gpu_mem;
struct kvx_mr;

struct kvx_mem {
	const struct kvx_mem_ops *ops;
	int fd; /* owned; -1 when none */
	uint64_t fd_offset;
	uint64_t len_bytes;
	uint8_t *addr; /* host kinds: the daemon's mapping; NULL before map() and after unmap() */
	uint64_t page_bytes;     /* 4096, or the huge page size: filled by check() */
	struct kvx_gpu_mem *gpu; /* GPU kinds: what it is made of, see mem/gpu.h; NULL for others */
	struct kvx_mr *pinned;   /* host memory that GPUs may copy from and to: the entry of the
				    domain that has page-locked it for them; NULL: none has */
};

static inline bool kvx_mem_kind_is_gpu(enum kvx_mem_kind kind)
{
	return kind == KVX_MEM_HIP || kind == KVX_MEM_CUDA;
}

struct kvx_mem_ops {
	enum kvx_mem_kind kind;
	const char *name;
	/* Is this fd what the kind needs, and is [fd_offset, +len) in it? 0, or a named error with
	 * the reason in *why: -EBADF wrong type of fd, -EPERM seals missing, -ERANGE too short,
	 * -EINVAL alignment, or sparse. */
	int (*check)(struct kvx_mem *mem, struct kvx_why *why);
	int (*map)(struct kvx_mem *mem, struct kvx_why *why); /* 0; -ENOMEM, -EFAULT, -EIO */
	void (*unmap)(struct kvx_mem *mem); /* cannot fail; fine when not mapped */
};

/* The table of a kind; NULL when this build or node has none ("hip" without a GPU runtime). */
const struct kvx_mem_ops *kvx_mem_ops_find(enum kvx_mem_kind kind);
const char *kvx_mem_kind_name(uint32_t kind); /* "host", ...; "unknown" */

/* Takes ownership of fd, also on failure. */
void kvx_mem_init(struct kvx_mem *mem, const struct kvx_mem_ops *ops, int fd, uint64_t fd_offset,
		  uint64_t len_bytes);
void kvx_mem_fini(struct kvx_mem *mem); /* unmaps and closes: blocking */

extern const struct kvx_mem_ops kvx_mem_host_ops;

#endif
