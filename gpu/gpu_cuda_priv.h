/* Inside the adapter on CUDA: what is declared of the runtime, and what gpu_cuda.c (loading,
 * devices, peers) and gpu_cuda_mem.c (memory and copies) share. */
#ifndef KVX_GPU_CUDA_PRIV_H
#define KVX_GPU_CUDA_PRIV_H

#include <stdatomic.h>

#include "gpu/gpu_priv.h"

/* cuda.h */
enum {
	ATTR_UNITS = 16,
	ATTR_HOST_POINTER = 91, /* ..._CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM */
	ATTR_DMABUF = 124,
	POINTER_IPC_CAPABLE = 10,
	MEMORY_DEVICE = 2,
	MEMORY_UNIFIED = 4,
};

struct copy_2d { /* CUDA_MEMCPY2D */
	size_t src_x, src_y;
	unsigned src_type;
	const void *src_host;
	uint64_t src_device;
	void *src_array;
	size_t src_pitch;
	size_t dst_x, dst_y;
	unsigned dst_type;
	void *dst_host;
	uint64_t dst_device;
	void *dst_array;
	size_t dst_pitch;
	size_t width, height;
};
_Static_assert(sizeof(struct copy_2d) == 128, "as cuda.h has it");

struct cuda_calls {
	struct gpu_queue_calls queue; /* first: see struct gpu_adapter */
	int (*init)(unsigned flags);
	int (*driver_version)(int *version);
	int (*device_count)(int *n);
	int (*device_get)(int *dev, int ordinal);
	int (*device_name)(char *name, int len, int dev);
	int (*device_uuid)(char uuid[KVX_GPU_UUID_BYTES], int dev);
	int (*device_pci)(char *pci, int len, int dev);
	int (*device_mem)(size_t *bytes, int dev);
	int (*device_attr)(int *value, int attr, int dev);
	int (*ctx_retain)(void **ctx, int dev);
	int (*ctx_release)(int dev);
	int (*ctx_reset)(int dev);
	int (*ctx_state)(int dev, unsigned *flags, int *active); /* may be NULL */
	int (*ctx_set)(void *ctx);
	int (*ctx_get)(void **ctx);
	int (*mem_alloc)(uint64_t *addr, size_t bytes);
	int (*mem_free)(uint64_t addr);
	int (*host_alloc)(void **addr, size_t bytes, unsigned flags);
	int (*host_free)(void *addr);
	int (*host_register)(void *addr, size_t bytes, unsigned flags);
	int (*host_unregister)(void *addr);
	int (*range)(uint64_t *base, size_t *bytes, uint64_t addr);
	int (*pointer_attr)(void *value, int attr, uint64_t addr);
	int (*ipc_get)(struct gpu_ipc_handle *ipc, uint64_t addr);
	int (*ipc_open)(uint64_t *addr, struct gpu_ipc_handle ipc, unsigned flags);
	int (*ipc_close)(uint64_t addr);
	int (*copy)(uint64_t dst, uint64_t src, size_t bytes, void *stream);
	int (*copy_2d)(const struct copy_2d *copy, void *stream);
	int (*peer_can)(int *can, int dev, int peer);
	int (*peer_enable)(void *peer_ctx, unsigned flags);
	int (*error_name)(int code, const char **name);
	/* NULL where the driver has none */
	int (*copy_batch_13)(uint64_t *dsts, uint64_t *srcs, size_t *lens, size_t n,
			     struct gpu_copy_attributes *attrs, size_t *attr_starts, size_t n_attrs,
			     void *stream);
	int (*copy_batch_12)(uint64_t *dsts, uint64_t *srcs, size_t *lens, size_t n,
			     struct gpu_copy_attributes *attrs, size_t *attr_starts, size_t n_attrs,
			     size_t *failed, void *stream);
	int (*range_handle)(void *out_handle, uint64_t addr, size_t bytes, int type,
			    unsigned long long flags);
	int (*vmm_retain)(unsigned long long *out_handle, void *addr);
	int (*vmm_release)(unsigned long long handle);
	int (*module_load)(void **module, const void *image);
	int (*module_function)(void **function, void *module, const char *name);
	int (*launch)(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
		      unsigned by, unsigned bz, unsigned shared_bytes, void *stream, void **params,
		      void **extra);
};

struct cuda {
	struct kvx_gpu gpu;
	struct cuda_calls calls;
	_Atomic(void *) ctx[KVX_GPU_MAX]; /* primary contexts; NULL: not open */
	_Atomic unsigned n_open[KVX_GPU_MAX];
};

_Static_assert(offsetof(struct cuda, calls.queue) == offsetof(struct gpu_adapter, queue),
	       "it begins as every adapter");

static inline struct cuda *cuda_of(struct kvx_gpu *gpu)
{
	return (struct cuda *)gpu; /* its first member */
}

static inline const struct cuda_calls *calls_of(struct kvx_gpu *gpu)
{
	return &cuda_of(gpu)->calls;
}

/* gpu_cuda_mem.c: as in struct kvx_gpu_ops */
int gpu_cuda_mem_alloc(struct kvx_gpu *gpu, uint64_t bytes, uint64_t *out_addr);
int gpu_cuda_mem_free(struct kvx_gpu *gpu, uint64_t addr);
int gpu_cuda_host_alloc(struct kvx_gpu *gpu, uint64_t bytes, void **out_addr);
int gpu_cuda_host_free(struct kvx_gpu *gpu, void *addr);
int gpu_cuda_host_pin(struct kvx_gpu *gpu, void *addr, uint64_t bytes);
int gpu_cuda_host_unpin(struct kvx_gpu *gpu, void *addr);
int gpu_cuda_owner(struct kvx_gpu *gpu, uint64_t addr, int *out_device);
int gpu_cuda_range(struct kvx_gpu *gpu, uint64_t addr, struct kvx_gpu_range *out);
int gpu_cuda_ipc_export(struct kvx_gpu *gpu, uint64_t base, uint8_t out_ipc[KVX_GPU_IPC_BYTES]);
int gpu_cuda_ipc_open(struct kvx_gpu *gpu, const uint8_t bytes[KVX_GPU_IPC_BYTES],
		      uint64_t *out_addr);
int gpu_cuda_ipc_close(struct kvx_gpu *gpu, uint64_t addr);
int gpu_cuda_dmabuf_export(struct kvx_gpu *gpu, uint64_t addr, uint64_t bytes, int *out_fd,
			   uint64_t *out_offset);
int gpu_cuda_copy(struct kvx_gpu *gpu, uint64_t dst, uint64_t src, uint64_t bytes, void *stream);
int gpu_cuda_copy_rect(struct kvx_gpu *gpu, const struct kvx_gpu_rect *rect, void *stream);
int gpu_cuda_copy_batch(struct kvx_gpu *gpu, uint64_t *dsts, uint64_t *srcs, size_t *lens, size_t n,
			void *stream);
int gpu_cuda_kernel_load(struct kvx_gpu *gpu, void **out_kernel);
int gpu_cuda_kernel_run(struct kvx_gpu *gpu, void *kernel, uint64_t pieces, uint32_t n,
			void *stream);

#endif
