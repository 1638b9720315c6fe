/* Scattered blocks and the shapes that are measured. */
#include <stdlib.h>
#include <string.h>

#include "limit.h"

#define SHAPE_BYTES (64ull << 20)

void kvx_scatter_init(struct kvx_scatter *scatter, uint8_t *src, uint8_t *dst,
		      uint64_t region_bytes, uint64_t block_bytes, uint64_t seed)
{
	*scatter = (struct kvx_scatter){
	    .src = src,
	    .dst = dst,
	    .block_bytes = block_bytes,
	    .n_slots = (uint32_t)(region_bytes / block_bytes),
	    .random = {.state = seed},
	};
	scatter->src_order = kvx_random_order(&scatter->random, scatter->n_slots);
	scatter->dst_order = kvx_random_order(&scatter->random, scatter->n_slots);
}

void kvx_scatter_fini(struct kvx_scatter *scatter)
{
	free(scatter->src_order);
	free(scatter->dst_order);
}

struct kvx_blocks_view kvx_scatter_next(struct kvx_scatter *scatter, uint32_t n)
{
	if (scatter->at + n > scatter->n_slots) {
		/* The other pairing next time, or a missing copy would not show. */
		free(scatter->dst_order);
		scatter->dst_order = kvx_random_order(&scatter->random, scatter->n_slots);
		scatter->at = 0;
	}
	struct kvx_blocks_view view = {
	    .scatter = scatter,
	    .src = scatter->src_order + scatter->at,
	    .dst = scatter->dst_order + scatter->at,
	    .n = n,
	};

	scatter->at += n;
	return view;
}

uint32_t kvx_blocks_differ(const struct kvx_blocks_view *view)
{
	const struct kvx_scatter *s = view->scatter;

	for (uint32_t i = 0; i < view->n; i++)
		if (memcmp(s->src + view->src[i] * s->block_bytes,
			   s->dst + view->dst[i] * s->block_bytes, s->block_bytes) != 0)
			return i + 1;
	return 0;
}

unsigned kvx_shapes_standard(struct kvx_shape *shapes)
{
	static const struct kvx_shape standard[] = {
	    {"a", 64 << 20, 1},    {"b", 1 << 20, 64}, {"c", 64 << 10, 1024}, {"d", 16 << 10, 4096},
	    {"e", 4 << 10, 16384}, {"f", 4 << 10, 1},  {"g", 64 << 10, 1},
	};

	memcpy(shapes, standard, sizeof(standard));
	return sizeof(standard) / sizeof(standard[0]);
}

int kvx_shapes_parse(const char *sizes, uint64_t batch, uint64_t region_bytes,
		     struct kvx_shape *shapes, unsigned *out_n)
{
	char *copy = kvx_tool_strdup(sizes), *next, *word;
	unsigned n = 0;
	int rc = 0;

	for (word = strtok_r(copy, ",", &next); word && rc == 0;
	     word = strtok_r(NULL, ",", &next)) {
		uint64_t bytes, count;

		if (kvx_parse_bytes(word, &bytes) != 0 || bytes == 0 || n == KVX_MAX_SHAPES) {
			kvx_tool_error("--sizes: %s is not a block size, or there are too many",
				       word);
			rc = KVX_BENCH_USAGE;
			break;
		}
		count = batch ? batch : bytes < SHAPE_BYTES ? SHAPE_BYTES / bytes : 1;
		if (count > region_bytes / bytes || count > UINT32_MAX) {
			kvx_tool_error("%llu blocks of %s do not fit into the region: use --region",
				       (unsigned long long)count, word);
			rc = KVX_BENCH_USAGE;
		}
		shapes[n++] = (struct kvx_shape){"-", bytes, (uint32_t)count};
	}
	free(copy);
	*out_n = n;
	return n > 0 ? rc : KVX_BENCH_USAGE;
}

bool kvx_shape_is_latency(const struct kvx_shape *shape)
{
	return shape->n_blocks == 1 && shape->block_bytes <= 1 << 20;
}

char *kvx_shape_text(char *buf, const struct kvx_shape *shape)
{
	char unit[KVX_UNIT_BYTES];

	snprintf(buf, KVX_SHAPE_TEXT, "%u x %s", shape->n_blocks,
		 kvx_unit_bytes(unit, shape->block_bytes));
	return buf;
}
