/* Tries the GPU runtimes of this node in child processes before one is loaded into the daemon: one
 * that crashes, exits or hangs there is not loaded here, and the daemon starts without GPUs. */
#ifndef KVX_GPU_TRY_H
#define KVX_GPU_TRY_H

#include "transport/transport.h"

/* Fills conf->tried and conf->refused. While this process has one thread. Takes as long as starting
 * a runtime, at most 43 s. Logs what is wrong with the node. */
void kvx_gpu_try(struct kvx_gpu_conf *conf);

#endif
