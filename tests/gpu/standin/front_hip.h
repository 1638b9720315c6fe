/* What the files of the stand-in's libamdhip64.so.N share: front_hip.c (devices), front_hip_mem.c
 * (memory) and front_hip_work.c (copies, streams, events, kernels). HIP's functions as ROCm N has
 * them (GS_HIP_MAJOR, 5 to 7), with what differs between them: the numbers of memory types, and
 * what is not there yet in an older one. Handles are the stand-in's own. */
#ifndef KVX_FRONT_HIP_H
#define KVX_FRONT_HIP_H

#include "gs.h"

struct ipc_handle {
	uint8_t bytes[GS_HANDLE_BYTES];
};

/* Every call ends with it: an error is kept for hipGetLastError(). */
__attribute__((visibility("hidden"))) int front_keep(int err);

#endif
