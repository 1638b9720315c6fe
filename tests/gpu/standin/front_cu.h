/* What the files of the stand-in's libcuda.so.1 share: front_cuda.c (devices and contexts),
 * front_cuda_mem.c (memory) and front_cuda_work.c (copies, streams, events, kernels). CUDA's driver
 * functions by their exported names, as a release 13 driver has them; GS_OLD leaves out what came
 * after release 11.2. Handles are the stand-in's own. A call that needs a current context fails
 * without one, as in the real one. */
#ifndef KVX_FRONT_CU_H
#define KVX_FRONT_CU_H

#include "cu_abi.h"
#include "gs.h"

struct ipc_handle {
	uint8_t bytes[GS_HANDLE_BYTES];
};
enum { TYPE_HOST = 1, TYPE_DEVICE = 2 };

static inline void *ptr_of(devptr ptr)
{
	return (void *)(uintptr_t)ptr;
}

/* 0, or "no context is current". */
__attribute__((visibility("hidden"))) int front_context_missing(void);

#endif
