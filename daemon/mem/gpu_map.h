/* Mappings of clients' GPU memory in this process: one for each allocation of one device, shared by
 * all regions that lie in it, closed with the last of them. The runtime is told to open no handle
 * twice, and trusted alone for what a mapping's size is. One table per device, one thread: the
 * control thread of the device's domain, since every call of it may hang. */
#ifndef KVX_MEM_GPU_MAP_H
#define KVX_MEM_GPU_MAP_H

#include "gpu/gpu.h"

struct kvx_gpu_maps;
struct kvx_gpu_map {
	uint8_t ipc[KVX_GPU_IPC_BYTES];
	uint64_t addr, len_bytes; /* as the runtime tells */
	unsigned n_refs;
	struct kvx_gpu_map *prev, *next;
};

/* device: what the calling thread is bound to. */
int kvx_gpu_maps_create(struct kvx_gpu *gpu, int device, struct kvx_gpu_maps **out_maps);
void kvx_gpu_maps_destroy(struct kvx_gpu_maps *maps); /* closes what is left */
/* The mapping of an allocation, opened if it is not, with a reference for the caller. at_least:
 * bytes that it must have. -ERANGE: it has fewer; -EXDEV: it is memory of another device; -EBADF:
 * the handle is of memory that is gone; or the runtime's errors. */
int kvx_gpu_map_ref(struct kvx_gpu_maps *maps, const uint8_t ipc[KVX_GPU_IPC_BYTES],
		    uint64_t at_least, struct kvx_gpu_map **out_map, struct kvx_why *why);
/* 0, or -EIO: the last one is gone, and the runtime does not close the mapping, whatever is tried:
 * only a reset of the device frees the memory. */
int kvx_gpu_map_unref(struct kvx_gpu_maps *maps, struct kvx_gpu_map *map);
/* The device was lost, and is being reset, which closes everything: nothing is asked of it any
 * more. Any thread. */
void kvx_gpu_maps_abandon(struct kvx_gpu_maps *maps);
unsigned kvx_gpu_maps_count(const struct kvx_gpu_maps *maps);

#endif
