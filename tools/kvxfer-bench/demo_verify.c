/* What must lie where in a demo engine's pool: the pattern of a request in its blocks, a canary in
 * all others. Fills and compares all of it. */
#include "demo.h"

#include <stdlib.h>

#define CANARY_PREFILL 0x6b76786665726100ull
#define CANARY_DECODE  0x6b76786665726200ull

bool kvx_demo_is_source(const struct kvx_demo_engine *engine)
{
	/* The KV cache is prefill's, whoever moves it. */
	return engine->is_prefill;
}

static uint64_t canary_seed(const struct kvx_demo_engine *engine)
{
	return engine->run->seed ^ (engine->is_prefill ? CANARY_PREFILL : CANARY_DECODE);
}

static uint64_t block_seed(const struct kvx_demo_engine *engine, uint32_t request, uint32_t plane,
			   uint32_t index)
{
	return kvx_pattern_seed(engine->run->seed + request, plane, index);
}

static uint64_t block_offset(const struct kvx_demo_engine *engine, uint32_t plane, uint32_t block)
{
	return ((uint64_t)plane * engine->run->n_pool_blocks + block) *
	       engine->run->geometry.block_bytes;
}

void kvx_demo_fill(struct kvx_demo_engine *engine)
{
	const struct kvx_demo_run *run = engine->run;
	uint32_t n_planes = kvx_geometry_planes(&run->geometry);
	uint64_t bytes = run->geometry.block_bytes;

	for (uint32_t plane = 0; plane < n_planes; plane++) {
		for (uint32_t block = 0; block < run->n_pool_blocks; block++) {
			uint64_t at = block_offset(engine, plane, block);
			uint32_t owner = engine->owner[block];

			if (owner && kvx_demo_is_source(engine))
				kvx_pattern_fill(
				    engine->data + at, 0, bytes,
				    block_seed(engine, owner - 1, plane, engine->index[block]));
			else
				kvx_pattern_fill(engine->data + at, at, bytes, canary_seed(engine));
		}
	}
}

/* Index of the first wrong byte of a block; its length when there is none. */
static uint64_t block_check(const struct kvx_demo_engine *engine, uint32_t plane, uint32_t block)
{
	uint64_t at = block_offset(engine, plane, block);
	uint64_t bytes = engine->run->geometry.block_bytes;
	uint32_t owner = engine->owner[block];

	if (owner)
		return kvx_pattern_check(
		    engine->data + at, 0, bytes,
		    block_seed(engine, owner - 1, plane, engine->index[block]));
	return kvx_pattern_check(engine->data + at, at, bytes, canary_seed(engine));
}

int kvx_demo_check_request(struct kvx_demo_engine *engine, uint32_t request)
{
	const struct kvx_demo_run *run = engine->run;
	uint32_t n_planes = kvx_geometry_planes(&run->geometry);

	for (uint32_t plane = 0; plane < n_planes; plane++) {
		for (uint32_t i = 0; i < run->n_blocks; i++) {
			uint32_t block = engine->order[request * run->n_blocks + i];
			uint64_t right = block_check(engine, plane, block);

			if (right < run->geometry.block_bytes)
				return kvx_demo_fail(
				    engine,
				    "request %u was reported as complete, but byte "
				    "%llu of plane %u, block %u is wrong",
				    request, (unsigned long long)right, plane, block);
		}
	}
	return 0;
}

int kvx_demo_check_region(struct kvx_demo_engine *engine)
{
	const struct kvx_demo_run *run = engine->run;
	uint32_t n_planes = kvx_geometry_planes(&run->geometry);
	struct kvx_demo_result *result = engine->result;
	int rc = 0;

	for (uint32_t plane = 0; plane < n_planes; plane++) {
		for (uint32_t block = 0; block < run->n_pool_blocks; block++) {
			uint64_t right = block_check(engine, plane, block);

			result->checked_bytes += run->geometry.block_bytes;
			if (right == run->geometry.block_bytes)
				continue;
			result->wrong_bytes++;
			rc = kvx_demo_fail(engine, "byte %llu of plane %u, block %u is wrong: %s",
					   (unsigned long long)right, plane, block,
					   engine->owner[block] ? "a request owns it"
								: "no request owns it");
		}
	}
	return rc;
}

void kvx_demo_spoil(struct kvx_demo_engine *engine)
{
	const struct kvx_demo_run *run = engine->run;
	uint32_t n_used = run->n_requests * run->n_blocks;

	engine->data[block_offset(engine, 0, engine->order[0])] ^= 1;
	if (n_used < run->n_pool_blocks)
		engine->data[block_offset(engine, 0, engine->order[n_used])] ^= 1;
}
