/* GPU runtimes: the one table of calls that kvxfer makes to one, filled from the library that is
 * found while running (CUDA by its driver API, or HIP). Nothing of a runtime is linked or included;
 * what is declared of it is in gpu_cuda_priv.h and gpu_hip_priv.h. Used by the daemon and by the
 * client library; knows nothing of either.
 *
 * Addresses are those of the unified address space of this process. Every call returns 0 or -errno:
 *   -EAGAIN      not done yet (queries only)
 *   -ENODEV      the device is lost: it answers every further call so
 *   -ENOMEM, -EINVAL, -EOPNOTSUPP (the runtime or the device cannot), -EBADF (not a valid handle)
 *   -EEXIST      host memory is page-locked already (host_pin)
 *   -EIO         anything else
 * kvx_gpu_code() has the runtime's own code. Any thread; calls that need a device work on the one
 * that this thread is bound to. Any call may block for long, whatever its name says, when a device
 * or its driver is unwell. */
#ifndef KVX_GPU_H
#define KVX_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/kvx_err.h"

#define KVX_GPU_IPC_BYTES  64
#define KVX_GPU_UUID_BYTES 16
#define KVX_GPU_PCI_BYTES  16
#define KVX_GPU_MAX        16 /* devices of a node */

/* As enum kvx_mem_kind and the wire have them. */
enum kvx_gpu_kind { KVX_GPU_HIP = 3, KVX_GPU_CUDA = 4 };

/* Which device it is, the same in every process, whatever each one is shown of them. */
struct kvx_gpu_id {
	uint8_t uuid[KVX_GPU_UUID_BYTES]; /* all 0: the runtime has none */
	char pci[KVX_GPU_PCI_BYTES];      /* "0000:c1:00.0", lower case; "": unknown */
};

struct kvx_gpu_device {
	struct kvx_gpu_id id;
	char name[64];
	uint64_t total_bytes;
	unsigned n_units; /* multiprocessors, compute units */
	bool dmabuf;      /* its memory can be exported as a dma-buf */
	bool host_direct; /* its kernels reach page-locked memory by the address it has here */
};

/* What an address is. */
struct kvx_gpu_range {
	int device;
	uint64_t base;  /* of the allocation it lies in */
	uint64_t bytes; /* of the allocation */
	bool on_device; /* else it is host memory that the runtime knows */
	bool mapped;    /* made of the virtual memory calls or a pool: no IPC handle can be had */
};

/* `height` rows of `width` bytes. */
struct kvx_gpu_rect {
	uint64_t dst, src;
	uint64_t dst_pitch, src_pitch;
	uint64_t width, height;
};

/* What the gather kernel is given: an array of these, readable by the device. */
struct kvx_gpu_piece {
	uint64_t dst, src, len_bytes;
};
#define KVX_GPU_KERNEL "kvx_copy_list"

enum kvx_gpu_link {
	KVX_GPU_LINK_UNKNOWN,
	KVX_GPU_LINK_PCIE,
	KVX_GPU_LINK_XGMI,
	KVX_GPU_LINK_NVLINK
};

/* What cannot be assumed of a runtime of any version. */
enum kvx_gpu_caps {
	KVX_GPU_CAP_BATCH = 1u << 0,  /* copy_batch */
	KVX_GPU_CAP_KERNEL = 1u << 1, /* kernel_load may succeed */
	KVX_GPU_CAP_DMABUF = 1u << 2, /* dmabuf_export may succeed */
};

struct kvx_gpu;
struct kvx_gpu_bound {
	void *ctx;
	int device;
};

struct kvx_gpu_ops {
	enum kvx_gpu_kind kind;
	const char *name; /* "cuda", "hip" */

	int (*version)(struct kvx_gpu *gpu, int *out_version); /* as the runtime writes it: 13000 */
	int (*count)(struct kvx_gpu *gpu, int *out_n);
	int (*describe)(struct kvx_gpu *gpu, int device, struct kvx_gpu_device *out);
	/* Makes a device usable in this process, once for each close. Slow. */
	int (*open)(struct kvx_gpu *gpu, int device);
	int (*close)(struct kvx_gpu *gpu, int device);
	/* This thread works on `device` from now on; out_before (NULL: not wanted) is for
	 * unbind(). */
	int (*bind)(struct kvx_gpu *gpu, int device, struct kvx_gpu_bound *out_before);
	void (*unbind)(struct kvx_gpu *gpu, const struct kvx_gpu_bound *before);
	/* Ends everything that the bound device does for this process: streams, mappings and
	 * allocations are gone. */
	int (*reset)(struct kvx_gpu *gpu, int device);

	int (*mem_alloc)(struct kvx_gpu *gpu, uint64_t bytes, uint64_t *out_addr);
	int (*mem_free)(struct kvx_gpu *gpu, uint64_t addr);
	/* Page-locked memory that every device reaches. */
	int (*host_alloc)(struct kvx_gpu *gpu, uint64_t bytes, void **out_addr);
	int (*host_free)(struct kvx_gpu *gpu, void *addr);
	/* Page-locks memory that is there already, for every device. */
	int (*host_pin)(struct kvx_gpu *gpu, void *addr, uint64_t bytes);
	int (*host_unpin)(struct kvx_gpu *gpu, void *addr);
	/* Whose memory an address is: a device, or -1 for host memory that the runtime knows.
	 * -EINVAL: it knows no such address. Needs no bound device. */
	int (*owner)(struct kvx_gpu *gpu, uint64_t addr, int *out_device);
	/* The allocation that an address lies in, of whatever device. */
	int (*range)(struct kvx_gpu *gpu, uint64_t addr, struct kvx_gpu_range *out);

	int (*ipc_export)(struct kvx_gpu *gpu, uint64_t base, uint8_t out_ipc[KVX_GPU_IPC_BYTES]);
	int (*ipc_open)(struct kvx_gpu *gpu, const uint8_t ipc[KVX_GPU_IPC_BYTES],
			uint64_t *out_addr);
	int (*ipc_close)(struct kvx_gpu *gpu, uint64_t addr);
	/* Page-aligned addr and bytes. The fd is the caller's. */
	int (*dmabuf_export)(struct kvx_gpu *gpu, uint64_t addr, uint64_t bytes, int *out_fd,
			     uint64_t *out_offset);

	int (*stream_create)(struct kvx_gpu *gpu, void **out_stream);
	int (*stream_destroy)(struct kvx_gpu *gpu, void *stream);
	int (*stream_sync)(struct kvx_gpu *gpu, void *stream);
	int (*event_create)(struct kvx_gpu *gpu, void **out_event);
	int (*event_destroy)(struct kvx_gpu *gpu, void *event);
	int (*event_record)(struct kvx_gpu *gpu, void *event, void *stream);
	int (*event_query)(struct kvx_gpu *gpu, void *event); /* 0: reached, or never recorded */
	/* Of this process, made for several: for event_open() in another one. -EOPNOTSUPP. */
	int (*event_export)(struct kvx_gpu *gpu, void *event, uint8_t out_ipc[KVX_GPU_IPC_BYTES]);
	/* Of another process. */
	int (*event_open)(struct kvx_gpu *gpu, const uint8_t ipc[KVX_GPU_IPC_BYTES],
			  void **out_event);

	int (*copy)(struct kvx_gpu *gpu, uint64_t dst, uint64_t src, uint64_t bytes, void *stream);
	int (*copy_rect)(struct kvx_gpu *gpu, const struct kvx_gpu_rect *rect, void *stream);
	/* n copies in any order; they must not depend on each other. */
	int (*copy_batch)(struct kvx_gpu *gpu, uint64_t *dsts, uint64_t *srcs, size_t *lens,
			  size_t n, void *stream);
	/* The gather kernel, for the bound device; it lives as long as that is open. */
	int (*kernel_load)(struct kvx_gpu *gpu, void **out_kernel);
	int (*kernel_run)(struct kvx_gpu *gpu, void *kernel, uint64_t pieces, uint32_t n,
			  void *stream);

	int (*peer_can)(struct kvx_gpu *gpu, int device, int peer, bool *out_can);
	/* The bound device may reach the peer's memory directly; fine when it may already. */
	int (*peer_enable)(struct kvx_gpu *gpu, int peer);
	int (*link)(struct kvx_gpu *gpu, int device, int peer, enum kvx_gpu_link *out_link,
		    unsigned *out_hops);
};

struct kvx_gpu {
	const struct kvx_gpu_ops *ops;
	uint32_t caps;
	char library[128]; /* the file that was loaded, as it was asked for */
};

/* How a runtime's library is looked for. */
struct kvx_gpu_find {
	enum kvx_gpu_kind kind;
	bool loaded_only; /* take it only if this process has it loaded already */
	const char *dir;  /* look here first; NULL, "": nowhere in particular */
};

/* Loads a runtime and starts it. May block for seconds. -ENOENT: there is no such library (or it is
 * not loaded); -ENODEV: it says that there is no device; -ENOSYS: it lacks calls (too old); -EIO
 * and others: it does not start. The reason is in *why. What was loaded is never unloaded. */
int kvx_gpu_open(const struct kvx_gpu_find *find, struct kvx_gpu **out_gpu, struct kvx_why *why);
void kvx_gpu_close(struct kvx_gpu *gpu);

/* The runtime's own code of this thread's last failed call, and its name; the name lives as long
 * as the process. */
int kvx_gpu_code(void);
const char *kvx_gpu_code_name(struct kvx_gpu *gpu, int code);

/* ---- gpu_tell.c: a runtime that is tried in a child process, where it may crash, hang or exit */
#define KVX_GPU_TOLD_BYTES 1024
struct kvx_gpu_told {
	int err; /* 0; else -errno of kvx_gpu_open(), and only `why` is filled */
	char why[KVX_WHY_BYTES];
	char file[128];
	int version, n_devices;
	uint32_t caps;
};
/* In the child: opens the runtime of `find` (struct kvx_gpu_find *) and writes one line to fd, of
 * less than KVX_GPU_TOLD_BYTES. Its exit status: 0 when the runtime works. */
int kvx_gpu_tell(int fd, void *find);
/* In the parent. false: that is no such line, the runtime has ended the child before. */
bool kvx_gpu_told(const char *line, struct kvx_gpu_told *out_told);

/* ---- gpu_id.c: pure */
/* Lower case, four digits of domain; "" when it is no PCI address. */
void kvx_gpu_pci_normalise(const char *text, char out_pci[KVX_GPU_PCI_BYTES]);
/* By UUID where both have one, else by PCI address; two unknown ones are never the same. */
bool kvx_gpu_id_same(const struct kvx_gpu_id *a, const struct kvx_gpu_id *b);
bool kvx_gpu_uuid_known(const struct kvx_gpu_id *id);
/* NUMA node of a PCI device; -1: unknown. Reads sysfs. */
int kvx_gpu_numa_node(const struct kvx_gpu_id *id);

#endif
