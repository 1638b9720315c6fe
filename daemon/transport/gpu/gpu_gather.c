/* From which size of pieces on plain copies beat the gather kernel: measured on the device, when it
 * is opened, with what a flight has. Below it a flight of small pieces is bound by what each copy
 * costs to begin, which the kernel saves. Control thread, once. */
#include <errno.h>
#include <inttypes.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/gpu/gpu_priv.h"

#define PIECES    GPU_BATCH_OPS
#define MAX_BYTES (16u * 1024u)
#define MIN_BYTES 512u
#define ROUNDS    5u
#define GAP       2u  /* pieces lie this many lengths apart, so that none is next to another */
#define WIN_SHARE 0.9 /* of the copies' time: below it the kernel is taken */

struct gather_try {
	struct kvx_dom *dom;
	uint64_t from, to; /* device memory */
	uint64_t dst[PIECES], src[PIECES];
	size_t len[PIECES];
};

static void try_fill(struct gather_try *t, struct kvx_gpu_piece *list, uint32_t bytes)
{
	for (unsigned i = 0; i < PIECES; i++) {
		t->src[i] = t->from + (uint64_t)i * GAP * bytes;
		t->dst[i] = t->to + (uint64_t)(PIECES - 1 - i) * GAP * bytes;
		t->len[i] = bytes;
		list[i] = (struct kvx_gpu_piece){t->dst[i], t->src[i], bytes};
	}
}

static int try_copies(struct gather_try *t)
{
	struct kvx_dom *dom = t->dom;
	const struct kvx_gpu_ops *ops = dom->gpu->ops;
	void *stream = dom->control_stream;

	if (dom->batch) {
		int err = ops->copy_batch(dom->gpu, t->dst, t->src, t->len, PIECES, stream);
		if (err != -EOPNOTSUPP)
			return err;
		dom->batch = false;
	}
	for (unsigned i = 0; i < PIECES; i++) {
		int err = ops->copy(dom->gpu, t->dst[i], t->src[i], t->len[i], stream);
		if (err < 0)
			return err;
	}
	return 0;
}

/* The best of some rounds, in nanoseconds; UINT64_MAX: it cannot be done. */
static uint64_t try_time(struct gather_try *t, bool kernel)
{
	struct kvx_dom *dom = t->dom;
	const struct kvx_gpu_ops *ops = dom->gpu->ops;
	uint64_t best = UINT64_MAX;

	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t begin = kvx_now_ns();
		int err =
		    kernel ? ops->kernel_run(dom->gpu, dom->kernel, (uintptr_t)dom->flights[0].list,
					     PIECES, dom->control_stream)
			   : try_copies(t);
		if (err == 0)
			err = ops->stream_sync(dom->gpu, dom->control_stream);
		uint64_t took = kvx_now_ns() - begin;
		if (err < 0)
			return UINT64_MAX;
		best = took < best ? took : best;
	}
	return best;
}

/* The largest size up to which the kernel wins, and at every smaller one. */
static uint64_t gather_measure(struct gather_try *t)
{
	uint64_t best = 0;

	for (uint32_t bytes = MIN_BYTES; bytes <= MAX_BYTES; bytes *= 2) {
		try_fill(t, t->dom->flights[0].list, bytes);
		uint64_t kernel = try_time(t, true), copies = try_time(t, false);

		kvx_debug("gpu: %s: %u pieces of %" PRIu32 " bytes: kernel %" PRIu64
			  " ns, copies %" PRIu64 " ns",
			  t->dom->name, PIECES, bytes, kernel, copies);
		if (kernel == UINT64_MAX || (double)kernel > WIN_SHARE * (double)copies)
			break;
		best = bytes;
	}
	return best;
}

static uint64_t gather_try_all(struct kvx_dom *dom)
{
	const struct kvx_gpu_ops *ops = dom->gpu->ops;
	struct gather_try t = {.dom = dom};
	uint64_t bytes = (uint64_t)PIECES * GAP * MAX_BYTES, best = 0;

	if (ops->mem_alloc(dom->gpu, bytes, &t.from) < 0)
		return 0;
	if (ops->mem_alloc(dom->gpu, bytes, &t.to) == 0) {
		best = gather_measure(&t);
		ops->mem_free(dom->gpu, t.to);
	}
	ops->mem_free(dom->gpu, t.from);
	return best;
}

void gpu_gather_choose(struct kvx_dom *dom, int wanted)
{
	dom->gather_max_bytes = 0;
	if (wanted == 0 || !(dom->gpu->caps & KVX_GPU_CAP_KERNEL))
		return;
	int err = dom->gpu->ops->kernel_load(dom->gpu, &dom->kernel);
	if (err < 0) {
		kvx_info("gpu: %s: no gather kernel: %s (%d): small pieces go by plain copies",
			 dom->name, kvx_gpu_code_name(dom->gpu, kvx_gpu_code()), kvx_gpu_code());
		return;
	}
	dom->gather_max_bytes = wanted < 0 ? gather_try_all(dom) : (uint64_t)wanted;
}
