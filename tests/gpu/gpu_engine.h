/* An engine whose KV cache is GPU memory: a test_engine whose `data` is what the test wants to be
 * in that memory, or has read from it. One node may have engines of both kinds. */
#ifndef KVX_TEST_GPU_ENGINE_H
#define KVX_TEST_GPU_ENGINE_H

#include "test_engine.h"
#include "test_gpu.h"

#define GPU_ENGINE_SEGMENTS 64

struct gpu_engine {
	struct test_engine e; /* e.data: host memory of the test's */
	int dev;              /* -1: host memory */
	unsigned n_segments;
	struct kvxfer_gpu_segment segments[GPU_ENGINE_SEGMENTS];
	void *allocations[GPU_ENGINE_SEGMENTS];
};

struct gpu_engine_conf {
	const char *name;
	int dev; /* -1: host memory, as test_engine_open() */
	unsigned
	    n_segments; /* 0, 1: one; else cut at odd places, each in an allocation of its own */
	uint32_t n_planes, n_blocks;
	uint64_t block_bytes;
	uint32_t flags;                    /* of the region */
	uint64_t offset;                   /* of each segment in its allocation */
	const struct kvxfer_plane *planes; /* n_planes of them; NULL: as test_engine_open() */
	uint64_t bytes;                    /* with planes: of the region */
};

/* Allocates, fills with TEST_CANARY, registers. */
void gpu_engine_open(struct gpu_engine *g, const struct test_node *node,
		     const struct gpu_engine_conf *conf);
/* Only the memory: no region yet. */
void gpu_engine_alloc(struct gpu_engine *g, const struct gpu_engine_conf *conf);
int gpu_engine_register(struct gpu_engine *g, const struct gpu_engine_conf *conf);
void gpu_engine_close(struct gpu_engine *g);
void gpu_engine_put(struct gpu_engine *g); /* e.data to the GPU */
void gpu_engine_get(struct gpu_engine *g); /* and back */
/* Blocks to[i] of every plane hold blocks from[i] of who was filled with this seed; all else is as
 * it was allocated. */
void gpu_engine_expect(struct gpu_engine *g, uint64_t seed, const uint32_t *to,
		       const uint32_t *from, uint32_t n);

#endif
