/* KV-cache geometries of models: layers, planes, block sizes. Constant data. */
#include "bench.h"

#include <string.h>

static const struct kvx_geometry geometries[] = {
    {"qwen3-235b-tp4", "Qwen3-235B TP4", 94, 2, 16, 4096},
    {"deepseek-v3-mla", "DeepSeek-V3 MLA", 61, 1, 16, 18432},
    {"llama-3.1-8b", "Llama-3.1-8B", 32, 2, 16, 32768},
};
#define N_GEOMETRIES (sizeof(geometries) / sizeof(geometries[0]))

const struct kvx_geometry *kvx_geometry_at(unsigned i)
{
	return i < N_GEOMETRIES ? &geometries[i] : NULL;
}

const struct kvx_geometry *kvx_geometry_find(const char *name)
{
	for (unsigned i = 0; i < N_GEOMETRIES; i++)
		if (strcmp(geometries[i].name, name) == 0)
			return &geometries[i];
	return NULL;
}

uint32_t kvx_geometry_planes(const struct kvx_geometry *geometry)
{
	return geometry->n_layers * geometry->planes_per_layer;
}

uint64_t kvx_geometry_block_total(const struct kvx_geometry *geometry)
{
	return kvx_geometry_planes(geometry) * geometry->block_bytes;
}

uint32_t kvx_geometry_blocks(const struct kvx_geometry *geometry, uint64_t tokens)
{
	return (uint32_t)((tokens + geometry->block_tokens - 1) / geometry->block_tokens);
}

int kvx_geometry_choose(const struct kvx_geometry_options *options,
			struct kvx_geometry *out_geometry)
{
	const struct kvx_geometry *found;

	if (options->planes || options->block_bytes) {
		if (!options->planes || !options->block_bytes) {
			kvx_tool_error("--planes and --block-bytes belong together");
			return KVX_BENCH_USAGE;
		}
		*out_geometry = (struct kvx_geometry){
		    .name = "custom",
		    .title = "custom",
		    .n_layers = (uint32_t)options->planes,
		    .planes_per_layer = 1,
		    .block_tokens = (uint32_t)options->block_tokens,
		    .block_bytes = options->block_bytes,
		};
		return 0;
	}
	found = kvx_geometry_find(options->model);
	if (!found) {
		kvx_tool_error("unknown model %s; known are:", options->model);
		for (unsigned i = 0; i < N_GEOMETRIES; i++)
			fprintf(stderr, "  %-16s %s\n", geometries[i].name, geometries[i].title);
		return KVX_BENCH_USAGE;
	}
	*out_geometry = *found;
	return 0;
}
