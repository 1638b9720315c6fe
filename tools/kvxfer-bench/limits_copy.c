/* Copying scattered blocks with one or more threads, with the kernels that the daemon's copy
 * transport uses. The threads are started before the clock and take pieces from a shared counter,
 * so that a core that is slow for a moment does not hold the others up: this is the limit, not an
 * average. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "limit.h"
#include "transport/copy_kernels.h"

#define PIECE_BYTES (256u << 10)
#define QUAD_MAX    (16u << 10) /* blocks up to this are copied four at a time */
#define MAX_THREADS 64u

struct copy_work {
	const struct kvx_blocks_view *view;
	enum kvx_limit_kernel kernel;
	uint64_t piece_bytes;
	uint64_t n_pieces;
	_Atomic uint64_t next;
	atomic_uint ready, done;
	atomic_bool go;
};

static void blocks_nt(const struct kvx_blocks_view *view, uint32_t first, uint32_t n)
{
	const struct kvx_scatter *s = view->scatter;
	uint64_t len = s->block_bytes;
	uint32_t i = first, end = first + n;

	for (; len <= QUAD_MAX && i + 4 <= end; i += 4) {
		uint8_t *dst[4];
		const uint8_t *src[4];

		for (uint32_t k = 0; k < 4; k++) {
			dst[k] = s->dst + view->dst[i + k] * len;
			src[k] = s->src + view->src[i + k] * len;
		}
		kvx_copy_quad_nt(dst, src, len);
	}
	for (; i < end; i++)
		kvx_copy_nt(s->dst + view->dst[i] * len, s->src + view->src[i] * len, len);
}

/* Pieces are runs of whole blocks, or parts of one block that is longer than a piece. */
static void piece_copy(const struct copy_work *work, uint64_t piece)
{
	const struct kvx_blocks_view *view = work->view;
	const struct kvx_scatter *s = view->scatter;
	uint64_t len = s->block_bytes;

	if (len > work->piece_bytes) {
		uint64_t per_block = (len + work->piece_bytes - 1) / work->piece_bytes;
		uint64_t block = piece / per_block, at = piece % per_block * work->piece_bytes;
		uint64_t part = len - at < work->piece_bytes ? len - at : work->piece_bytes;
		uint8_t *dst = s->dst + view->dst[block] * len + at;
		const uint8_t *src = s->src + view->src[block] * len + at;

		if (work->kernel == KVX_LIMIT_NT)
			kvx_copy_nt(dst, src, part);
		else
			kvx_copy_memcpy(dst, src, part);
		return;
	}
	uint32_t per_piece = (uint32_t)(work->piece_bytes / len);
	uint32_t first = (uint32_t)(piece * per_piece);
	uint32_t n = view->n - first < per_piece ? view->n - first : per_piece;

	if (work->kernel == KVX_LIMIT_NT) {
		blocks_nt(view, first, n);
		return;
	}
	for (uint32_t i = first; i < first + n; i++)
		kvx_copy_memcpy(s->dst + view->dst[i] * len, s->src + view->src[i] * len, len);
}

static void work_run(struct copy_work *work)
{
	uint64_t piece;

	while ((piece = atomic_fetch_add_explicit(&work->next, 1, memory_order_relaxed)) <
	       work->n_pieces)
		piece_copy(work, piece);
	kvx_copy_fence();
}

static void *thread_main(void *arg)
{
	struct copy_work *work = arg;

	atomic_fetch_add(&work->ready, 1);
	while (!atomic_load_explicit(&work->go, memory_order_acquire))
		;
	work_run(work);
	atomic_fetch_add_explicit(&work->done, 1, memory_order_release);
	return NULL;
}

double kvx_limit_copy(const struct kvx_blocks_view *view, unsigned n_threads,
		      enum kvx_limit_kernel kernel)
{
	uint64_t len = view->scatter->block_bytes;
	struct copy_work work = {.view = view, .kernel = kernel, .piece_bytes = PIECE_BYTES};
	pthread_t threads[MAX_THREADS];
	unsigned n_started = 0;

	if (len > PIECE_BYTES)
		work.n_pieces = view->n * ((len + PIECE_BYTES - 1) / PIECE_BYTES);
	else
		work.n_pieces = (view->n + PIECE_BYTES / len - 1) / (PIECE_BYTES / len);
	if (n_threads > work.n_pieces)
		n_threads = (unsigned)work.n_pieces;
	while (n_started + 1 < n_threads && n_started < MAX_THREADS &&
	       pthread_create(&threads[n_started], NULL, thread_main, &work) == 0)
		n_started++;
	while (atomic_load(&work.ready) < n_started)
		;
	uint64_t start = kvx_now_ns();

	atomic_store_explicit(&work.go, true, memory_order_release);
	work_run(&work);
	while (atomic_load_explicit(&work.done, memory_order_acquire) < n_started)
		;
	uint64_t end = kvx_now_ns();

	for (unsigned i = 0; i < n_started; i++)
		pthread_join(threads[i], NULL);
	return (double)(end - start) / 1e9;
}
