/* Inside gpu/: what the adapters (gpu_cuda.c, gpu_hip.c) and gpu.c share. */
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

int gpu_cuda_open(const struct kvx_gpu_find *find, struct kvx_gpu **out_gpu, struct kvx_why *why);
int gpu_hip_open(const struct kvx_gpu_find *find, struct kvx_gpu **out_gpu, struct kvx_why *why);
const char *gpu_cuda_code_name(struct kvx_gpu *gpu, int code);
const char *gpu_hip_code_name(struct kvx_gpu *gpu, int code);

/* The gather kernel (gpu_kernel.c). */
extern const char gpu_kernel_ptx[];
extern const char gpu_kernel_source[]; /* C++ as hiprtc takes it */
#define GPU_KERNEL_THREADS 256u

#endif
