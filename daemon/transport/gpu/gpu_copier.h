/* The host_* and copier_* entries of struct kvx_gpu_access, see mem/gpu_access.h; device is the
 * domain. */
#ifndef KVX_GPU_COPIER_H
#define KVX_GPU_COPIER_H

#include "transport/gpu/gpu_priv.h"

int gpu_host_alloc(void *device, size_t bytes, void **out_addr);
void gpu_host_free(void *device, void *addr);

int gpu_copier_open(void *device, unsigned n_tickets, struct kvx_gpu_copier **out_copier);
void gpu_copier_close(struct kvx_gpu_copier *copier);
int gpu_copier_start(struct kvx_gpu_copier *copier, const struct kvx_gpu_piece *pieces, unsigned n,
		     unsigned *out_ticket);
int gpu_copier_poll(struct kvx_gpu_copier *copier, unsigned ticket);
void gpu_copier_cut(struct kvx_gpu_copier *copier);

#endif
