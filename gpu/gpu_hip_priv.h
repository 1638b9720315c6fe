/* Inside the adapter on HIP: what is declared of the runtime, and what gpu_hip.c (loading, devices,
 * peers) and gpu_hip_mem.c (memory and copies) share. */
#ifndef KVX_GPU_HIP_PRIV_H
#define KVX_GPU_HIP_PRIV_H

#include "gpu/gpu_priv.h"

/* hip_runtime_api.h */
enum {
	ATTR_UNITS = 63,
	MEMORY_DEVICE_5 = 1, /* before 6.0 */
	MEMORY_DEVICE = 2,
	VERSION_6 = 60000000,
	COPY_DEFAULT = 4,
	LINK_PCIE = 2, /* HSA_AMD_LINK_INFO_TYPE_* */
	LINK_XGMI = 4,
};

struct hip_calls {
	struct gpu_queue_calls queue; /* first: see struct gpu_adapter */
	int (*init)(unsigned flags);
	int (*version)(int *version);
	int (*device_count)(int *n);
	int (*device_name)(char *name, int len, int dev);
	int (*device_pci)(char *pci, int len, int dev);
	int (*device_mem)(size_t *bytes, int dev);
	int (*device_attr)(int *value, int attr, int dev);
	int (*device_set)(int dev);
	int (*device_current)(int *dev);
	int (*device_reset)(void);
	int (*mem_alloc)(void **addr, size_t bytes);
	int (*mem_free)(void *addr);
	int (*host_alloc)(void **addr, size_t bytes, unsigned flags);
	int (*host_free)(void *addr);
	int (*host_register)(void *addr, size_t bytes, unsigned flags);
	int (*host_unregister)(void *addr);
	int (*range)(void **base, size_t *bytes, void *addr);
	int (*pointer_attr)(void *value, int attr, void *addr);
	int (*ipc_get)(struct gpu_ipc_handle *ipc, void *addr);
	int (*ipc_open)(void **addr, struct gpu_ipc_handle ipc, unsigned flags);
	int (*ipc_close)(void *addr);
	int (*copy)(void *dst, const void *src, size_t bytes, int kind, void *stream);
	int (*copy_2d)(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
		       size_t height, int kind, void *stream);
	int (*peer_can)(int *can, int dev, int peer);
	int (*peer_enable)(int peer, unsigned flags);
	const char *(*error_name)(int code);
	/* NULL where the runtime has none */
	int (*device_uuid)(char uuid[KVX_GPU_UUID_BYTES], int dev);
	int (*link)(int dev, int peer, uint32_t *type, uint32_t *hops);
	int (*copy_batch)(void **dsts, void **srcs, size_t *lens, size_t n,
			  struct gpu_copy_attributes *attrs, size_t *attr_starts, size_t n_attrs,
			  size_t *failed, void *stream);
	int (*range_handle)(void *out_handle, void *addr, size_t bytes, int type,
			    unsigned long long flags);
	int (*vmm_retain)(void **out_handle, void *addr);
	int (*vmm_release)(void *handle);
	int (*module_load)(void **module, const void *image);
	int (*module_function)(void **function, void *module, const char *name);
	int (*launch)(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
		      unsigned by, unsigned bz, unsigned shared_bytes, void *stream, void **params,
		      void **extra);
};

/* Of libraries beside it; all or nothing. */
struct hiprtc_calls {
	int (*create)(void **program, const char *source, const char *name, int n_headers,
		      const char *const *headers, const char *const *header_names);
	int (*compile)(void *program, int n_options, const char *const *options);
	int (*code_bytes)(void *program, size_t *bytes);
	int (*code)(void *program, char *code);
	int (*destroy)(void **program);
};
struct hsa_calls {
	int (*export_dmabuf)(const void *addr, size_t bytes, int *fd, uint64_t *offset);
};

struct hip {
	struct kvx_gpu gpu;
	struct hip_calls calls;
	struct hiprtc_calls rtc;
	struct hsa_calls hsa;
	bool have_rtc, have_hsa;
	unsigned memory_device; /* this version's number for memory of a device */
};

_Static_assert(offsetof(struct hip, calls.queue) == offsetof(struct gpu_adapter, queue),
	       "it begins as every adapter");

static inline struct hip *hip_of(struct kvx_gpu *gpu)
{
	return (struct hip *)gpu; /* its first member */
}

static inline const struct hip_calls *calls_of(struct kvx_gpu *gpu)
{
	return &hip_of(gpu)->calls;
}

static inline void *ptr(uint64_t addr)
{
	return (void *)(uintptr_t)addr;
}

/* gpu_hip_mem.c: as in struct kvx_gpu_ops */
int gpu_hip_mem_alloc(struct kvx_gpu *gpu, uint64_t bytes, uint64_t *out_addr);
int gpu_hip_mem_free(struct kvx_gpu *gpu, uint64_t addr);
int gpu_hip_host_alloc(struct kvx_gpu *gpu, uint64_t bytes, void **out_addr);
int gpu_hip_host_free(struct kvx_gpu *gpu, void *addr);
int gpu_hip_host_pin(struct kvx_gpu *gpu, void *addr, uint64_t bytes);
int gpu_hip_host_unpin(struct kvx_gpu *gpu, void *addr);
int gpu_hip_owner(struct kvx_gpu *gpu, uint64_t addr, int *out_device);
int gpu_hip_range(struct kvx_gpu *gpu, uint64_t addr, struct kvx_gpu_range *out);
int gpu_hip_ipc_export(struct kvx_gpu *gpu, uint64_t base, uint8_t out_ipc[KVX_GPU_IPC_BYTES]);
int gpu_hip_ipc_open(struct kvx_gpu *gpu, const uint8_t bytes[KVX_GPU_IPC_BYTES],
		     uint64_t *out_addr);
int gpu_hip_ipc_close(struct kvx_gpu *gpu, uint64_t addr);
int gpu_hip_dmabuf_export(struct kvx_gpu *gpu, uint64_t addr, uint64_t bytes, int *out_fd,
			  uint64_t *out_offset);
int gpu_hip_copy(struct kvx_gpu *gpu, uint64_t dst, uint64_t src, uint64_t bytes, void *stream);
int gpu_hip_copy_rect(struct kvx_gpu *gpu, const struct kvx_gpu_rect *rect, void *stream);
int gpu_hip_copy_batch(struct kvx_gpu *gpu, uint64_t *dsts, uint64_t *srcs, size_t *lens, size_t n,
		       void *stream);
int gpu_hip_kernel_load(struct kvx_gpu *gpu, void **out_kernel);
int gpu_hip_kernel_run(struct kvx_gpu *gpu, void *kernel, uint64_t pieces, uint32_t n,
		       void *stream);

#endif
