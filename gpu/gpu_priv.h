/* Inside gpu/: what the adapters (gpu_cuda*.c, gpu_hip*.c) and gpu.c share. */
#ifndef KVX_GPU_PRIV_H
#define KVX_GPU_PRIV_H

#include "gpu/gpu.h"

/* One call of a library: where its address goes, in a struct of function pointers. Some have an
 * older name that does as well. */
struct gpu_symbol {
	const char *name;
	size_t offset;
	bool needed;
	const char *instead; /* tried when name is not there; NULL: nothing */
};

/* A library that may carry the runtime, best first. */
struct gpu_library {
	const char *const *names; /* ended by NULL */
	const char *const *dirs;  /* where else it may be, ended by NULL */
};

/* dlopen() handle, or NULL with the reason in *why. */
void *gpu_library_open(const struct gpu_library *library, const struct kvx_gpu_find *find,
		       char *out_file, size_t file_bytes, struct kvx_why *why);
/* Fills the pointers in `calls`; those that are not needed may stay NULL. -ENOSYS. */
int gpu_symbols_load(void *library, const struct gpu_symbol *symbols, size_t n, void *calls,
		     const char *file, struct kvx_why *why);
/* The errno of a code that both runtimes number alike, remembered for kvx_gpu_code(). */
int gpu_err(int code);

/* What both runtimes declare alike. */
enum {
	GPU_POINTER_MEMORY_TYPE = 2,
	GPU_POINTER_DEVICE = 9,
	GPU_IPC_LAZY_PEER_ACCESS = 1,
	GPU_HOST_PORTABLE = 1,
	GPU_HOST_MAPPED = 2,
	GPU_RANGE_DMABUF_FD = 1,
	GPU_ORDER_STREAM = 1,
	GPU_PEER_ENABLED_ALREADY = 704,
};
struct gpu_ipc_handle {
	char bytes[KVX_GPU_IPC_BYTES];
};
struct gpu_copy_attributes { /* CUmemcpyAttributes, hipMemcpyAttributes */
	int source_order;
	int source_location[2], destination_location[2];
	unsigned flags;
};
_Static_assert(sizeof(struct gpu_copy_attributes) == 24, "as the runtimes have it");

/* Streams and events (gpu_queue.c): the calls are the same but for their names. An adapter's table
 * begins with them. */
struct gpu_queue_calls {
	int (*stream_create)(void **stream, unsigned flags);
	int (*stream_destroy)(void *stream);
	int (*stream_sync)(void *stream);
	int (*event_create)(void **event, unsigned flags);
	int (*event_destroy)(void *event);
	int (*event_record)(void *event, void *stream);
	int (*event_query)(void *event);
	int (*ipc_open_event)(void **event, struct gpu_ipc_handle ipc);
	int (*ipc_get_event)(struct gpu_ipc_handle *ipc,
			     void *event); /* NULL where it is missing */
};
/* How an adapter's own struct begins. */
struct gpu_adapter {
	struct kvx_gpu gpu;
	struct gpu_queue_calls queue;
};
int gpu_stream_create(struct kvx_gpu *gpu, void **out_stream);
int gpu_stream_destroy(struct kvx_gpu *gpu, void *stream);
int gpu_stream_sync(struct kvx_gpu *gpu, void *stream);
int gpu_event_create(struct kvx_gpu *gpu, void **out_event);
int gpu_event_destroy(struct kvx_gpu *gpu, void *event);
int gpu_event_record(struct kvx_gpu *gpu, void *event, void *stream);
int gpu_event_query(struct kvx_gpu *gpu, void *event);
int gpu_event_open(struct kvx_gpu *gpu, const uint8_t bytes[KVX_GPU_IPC_BYTES], void **out_event);
int gpu_event_export(struct kvx_gpu *gpu, void *event, uint8_t out_bytes[KVX_GPU_IPC_BYTES]);

int gpu_cuda_open(const struct kvx_gpu_find *find, struct kvx_gpu **out_gpu, struct kvx_why *why);
int gpu_hip_open(const struct kvx_gpu_find *find, struct kvx_gpu **out_gpu, struct kvx_why *why);
const char *gpu_cuda_code_name(struct kvx_gpu *gpu, int code);
const char *gpu_hip_code_name(struct kvx_gpu *gpu, int code);

/* The gather kernel (gpu_kernel.c). */
extern const char gpu_kernel_ptx[];
extern const char gpu_kernel_source[]; /* C++ as hiprtc takes it */
#define GPU_KERNEL_THREADS 256u

#endif
