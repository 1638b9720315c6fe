/* One engine with GPU memory. */
#include "gpu_engine.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static uint64_t conf_bytes(const struct gpu_engine_conf *conf)
{
	return conf->planes != NULL ? conf->bytes
				    : (uint64_t)conf->n_planes * conf->n_blocks * conf->block_bytes;
}

/* Sizes that are no multiple of anything: what is cut, is cut within blocks. */
static uint64_t segment_bytes(uint64_t left, unsigned n_left)
{
	uint64_t part = left / n_left;

	return n_left == 1 ? left : part - part / 3 - 7 * n_left % 31;
}

void gpu_engine_alloc(struct gpu_engine *g, const struct gpu_engine_conf *conf)
{
	uint64_t left = conf_bytes(conf);
	unsigned n = conf->n_segments > 0 ? conf->n_segments : 1;

	memset(g, 0, sizeof(*g));
	g->dev = conf->dev;
	g->e.n_planes = conf->n_planes;
	g->e.n_blocks = conf->n_blocks;
	g->e.block_bytes = conf->block_bytes;
	g->e.bytes = left;
	g->e.data = malloc(left);
	memset(g->e.data, TEST_CANARY, left);
	cr_assert_leq(n, GPU_ENGINE_SEGMENTS);
	for (; n > 0; n--) {
		struct kvxfer_gpu_segment *s = &g->segments[g->n_segments];
		void *base;

		s->len_bytes = segment_bytes(left, n);
		base = test_gpu_alloc(conf->dev, conf->offset + s->len_bytes);
		s->ptr = (char *)base + conf->offset;
		g->allocations[g->n_segments++] = base;
		left -= s->len_bytes;
	}
	gpu_engine_put(g);
}

int gpu_engine_register(struct gpu_engine *g, const struct gpu_engine_conf *conf)
{
	struct kvxfer_plane *planes = calloc(conf->n_planes, sizeof(*planes));
	struct kvxfer_layout layout = {planes, conf->n_planes};
	struct kvxfer_region_options opt = {
	    .struct_bytes = sizeof(opt),
	    .name = conf->name,
	    .access = KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE,
	    .flags = conf->flags,
	    .layout = &layout,
	};

	if (conf->planes != NULL)
		memcpy(planes, conf->planes, conf->n_planes * sizeof(*planes));
	else
		kvxfer_layout_mla(0, conf->n_planes, conf->n_blocks, conf->block_bytes, planes);
	int rc =
	    kvxfer_region_register_gpu(g->e.client, g->segments, g->n_segments, &opt, &g->e.region);
	free(planes);
	return rc;
}

void gpu_engine_open(struct gpu_engine *g, const struct test_node *node,
		     const struct gpu_engine_conf *conf)
{
	if (conf->dev < 0) {
		memset(g, 0, sizeof(*g));
		g->dev = -1;
		test_engine_open(&g->e, node, conf->name, conf->n_planes, conf->n_blocks,
				 conf->block_bytes, KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE);
		return;
	}
	gpu_engine_alloc(g, conf);
	g->e.client = test_node_client(node, conf->name);
	cr_assert_eq(gpu_engine_register(g, conf), 0, "%s", kvxfer_client_error(g->e.client));
	cr_assert_eq(kvxfer_region_bytes(g->e.region), g->e.bytes);
	cr_assert_null(kvxfer_region_data(g->e.region));
}

void gpu_engine_close(struct gpu_engine *g)
{
	uint8_t *data = g->e.data;

	if (g->e.client != NULL)
		test_engine_close(&g->e);
	if (g->dev < 0)
		return;
	for (unsigned i = 0; i < g->n_segments; i++)
		test_gpu_free(g->allocations[i]);
	free(data);
}

void gpu_engine_put(struct gpu_engine *g)
{
	const uint8_t *at = g->e.data;

	if (g->dev < 0)
		return;
	test_gpu_use(g->dev);
	for (unsigned i = 0; i < g->n_segments; i++) {
		test_gpu_put(g->segments[i].ptr, at, g->segments[i].len_bytes);
		at += g->segments[i].len_bytes;
	}
}

void gpu_engine_get(struct gpu_engine *g)
{
	uint8_t *at = g->e.data;

	if (g->dev < 0)
		return;
	test_gpu_use(g->dev);
	for (unsigned i = 0; i < g->n_segments; i++) {
		test_gpu_get(at, g->segments[i].ptr, g->segments[i].len_bytes);
		at += g->segments[i].len_bytes;
	}
}

void gpu_engine_expect(struct gpu_engine *g, uint64_t seed, const uint32_t *to,
		       const uint32_t *from, uint32_t n)
{
	gpu_engine_get(g);
	for (uint32_t p = 0; p < g->e.n_planes; p++) {
		for (uint32_t b = 0; b < g->e.n_blocks; b++) {
			uint32_t i = 0;

			while (i < n && to[i] != b)
				i++;
			if (i < n)
				cr_assert(test_block_is(&g->e, seed, p, b, from[i]),
					  "plane %u block %u", p, b);
			else
				cr_assert(test_block_is_canary(&g->e, p, b),
					  "plane %u block %u touched", p, b);
		}
	}
}
