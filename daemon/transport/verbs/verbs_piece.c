/* Where the bytes of a region are: how host memory is cut into chunks that a device takes, how the
 * segments of GPU memory become registrations and pieces, and which piece an offset is in. Pure;
 * any thread. */
#include <errno.h>

#include "transport/verbs/verbs_mem.h"
#include "transport/verbs/verbs_priv.h"

#define MIN_CHUNK_SHIFT 12u /* a page */

void verbs_piece_find(struct verbs_piece *hit, const struct verbs_piece *pieces, uint32_t n,
		      uint64_t offset)
{
	uint32_t low = 0, high = n;

	if (verbs_piece_has(hit, offset, 1))
		return;
	while (high - low > 1) {
		uint32_t mid = low + (high - low) / 2;

		if (pieces[mid].start <= offset)
			low = mid;
		else
			high = mid;
	}
	*hit = pieces[low];
}

int verbs_chunks_plan(uint64_t max_mr_bytes, uint64_t span, uint32_t *out_shift)
{
	uint32_t shift = VERBS_WHOLE_SHIFT;
	uint64_t n = 1;

	if (span > max_mr_bytes) {
		if (max_mr_bytes >> MIN_CHUNK_SHIFT == 0)
			return -EMSGSIZE;
		shift = 63u - (uint32_t)__builtin_clzll(max_mr_bytes);
		n = ((span - 1) >> shift) + 1;
	}
	if (n > VERBS_MAX_CHUNKS)
		return -EMSGSIZE;
	*out_shift = shift;
	return (int)n;
}

void verbs_chunks_fill(struct verbs_piece *pieces, uint32_t n, uint64_t len_bytes, uint32_t base,
		       uint32_t shift)
{
	uint64_t at = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t end = i + 1 < n ? ((uint64_t)(i + 1) << shift) - base : len_bytes;

		pieces[i] = (struct verbs_piece){
		    .start = at, .len_bytes = end - at, .delta = base, .mr = i};
		at = end;
	}
}

static uint64_t segment_end(const struct kvx_gpu_segment *segment)
{
	return segment->offset + segment->len_bytes;
}

/* What the segments use of each allocation, into one span for each; allocations without segments
 * have begin > end. */
static void spans_gather(const struct kvx_gpu_mem *gpu, struct verbs_gpu_span *spans)
{
	for (uint32_t i = 0; i < gpu->n_bases; i++)
		spans[i] = (struct verbs_gpu_span){.base = i, .begin = UINT64_MAX};
	for (uint32_t i = 0; i < gpu->n_segments; i++) {
		const struct kvx_gpu_segment *s = &gpu->segments[i];
		struct verbs_gpu_span *span = &spans[s->base];

		span->begin = s->offset < span->begin ? s->offset : span->begin;
		span->end = segment_end(s) > span->end ? segment_end(s) : span->end;
	}
}

/* Leaves out those of nothing; how many are left. */
static uint32_t spans_compact(struct verbs_gpu_span *spans, uint32_t n)
{
	uint32_t left = 0;

	for (uint32_t i = 0; i < n; i++)
		if (spans[i].begin < spans[i].end)
			spans[left++] = spans[i];
	return left;
}

static uint64_t span_cuts(const struct verbs_gpu_span *span, uint64_t most)
{
	return (span->end - span->begin - 1) / most + 1;
}

int verbs_spans_plan(const struct kvx_gpu_mem *gpu, uint64_t max_mr_bytes,
		     struct verbs_gpu_span *spans, uint32_t max)
{
	uint64_t most = max_mr_bytes & ~(uint64_t)VERBS_PAGE_MASK, n = 0;
	uint32_t n_whole, at;

	if (gpu->n_bases > max || most == 0)
		return -EMSGSIZE;
	spans_gather(gpu, spans);
	n_whole = spans_compact(spans, gpu->n_bases);
	for (uint32_t i = 0; i < n_whole; i++) {
		n += span_cuts(&spans[i], most);
		if (n > max)
			return -EMSGSIZE;
	}
	/* From the back, so that none is overwritten before it was cut. */
	at = (uint32_t)n;
	for (uint32_t i = n_whole; i-- > 0;) {
		const struct verbs_gpu_span whole = spans[i];

		for (uint64_t k = span_cuts(&whole, most); k-- > 0;) {
			struct verbs_gpu_span *span = &spans[--at];

			*span = whole;
			span->begin = whole.begin + k * most;
			if (whole.end - span->begin > most)
				span->end = span->begin + most;
		}
	}
	return (int)n;
}

uint64_t verbs_pieces_shortest_op(const struct verbs_piece *pieces, uint32_t n, uint32_t most)
{
	uint64_t shortest = UINT64_MAX;

	for (uint32_t i = 0; i + most < n; i++) {
		uint64_t end = pieces[i].start + pieces[i].len_bytes;
		/* A byte of the first one, a byte of the last one, and all between. */
		uint64_t len = pieces[i + most].start - end + 2;

		shortest = len < shortest ? len : shortest;
	}
	return shortest;
}

/* The spans are sorted by allocation and offset, and cover every segment. */
static uint32_t span_find(const struct verbs_gpu_span *spans, uint32_t n, uint32_t base,
			  uint64_t offset)
{
	uint32_t low = 0, high = n;

	while (high - low > 1) {
		uint32_t mid = low + (high - low) / 2;
		const struct verbs_gpu_span *s = &spans[mid];

		if (s->base < base || (s->base == base && s->begin <= offset))
			low = mid;
		else
			high = mid;
	}
	return low;
}

int verbs_pieces_plan(const struct kvx_gpu_mem *gpu, const struct verbs_gpu_span *spans,
		      uint32_t n_spans, struct verbs_piece *pieces, uint32_t max)
{
	struct verbs_piece *last = NULL;
	uint32_t n = 0;

	for (uint32_t i = 0; i < gpu->n_segments; i++) {
		const struct kvx_gpu_segment *s = &gpu->segments[i];
		uint64_t at = s->offset, end = segment_end(s);

		while (at < end) {
			uint32_t mr = span_find(spans, n_spans, s->base, at);
			uint64_t stop = end < spans[mr].end ? end : spans[mr].end;
			uint64_t start = s->start + (at - s->offset);

			if (last != NULL && last->mr == mr && start + last->delta == at) {
				last->len_bytes += stop - at;
			} else if (n == max) {
				return -EMSGSIZE;
			} else {
				last = &pieces[n++];
				*last = (struct verbs_piece){.start = start,
							     .len_bytes = stop - at,
							     .delta = at - start,
							     .mr = mr};
			}
			at = stop;
		}
	}
	return (int)n;
}
