/* Proof that the daemon's mapping of GPU memory is the memory that is meant: bytes at some places,
 * told to the daemon, which finds the same or refuses the region. Where nobody uses the memory yet
 * they are random, written for the moment and then put back; else they are what is there. The
 * user's thread. */
#include "libclient/gpu_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>

#define RESTORE_TRIES 3u

static int copies_failed(struct kvxfer_client *client, struct kvx_cl_gpu *g, int err)
{
	return kvx_cl_fail(client, err, "looking at the memory: %s (%d)",
			   kvx_gpu_code_name(g->gpu, kvx_gpu_code()), kvx_gpu_code());
}

enum witness_copy { WITNESS_KEEP, WITNESS_WRITE, WITNESS_RESTORE };

/* One copy for each place, on a stream of their own: nothing else of this process waits for them.
 * When it returns none is under way. */
static int witnesses_copy(struct kvx_cl_gpu *g, enum witness_copy what)
{
	const struct kvx_gpu_ops *ops = g->gpu->ops;
	int err = 0;

	for (uint32_t i = 0; err == 0 && i < g->n_witnesses; i++) {
		struct kvx_cl_witness *w = &g->witnesses[i];
		uint64_t host = (uintptr_t)(what == WITNESS_WRITE ? w->shown : w->kept);

		err = what == WITNESS_KEEP
			  ? ops->copy(g->gpu, host, w->addr, KVX_CL_WITNESS_BYTES, g->stream)
			  : ops->copy(g->gpu, w->addr, host, KVX_CL_WITNESS_BYTES, g->stream);
	}
	int sync_err = ops->stream_sync(g->gpu, g->stream);
	if (sync_err < 0 && sync_err != -ENODEV)
		sync_err = ops->stream_sync(g->gpu, g->stream);
	return err < 0 ? err : sync_err;
}

static void stream_end(struct kvx_cl_gpu *g)
{
	if (g->stream != NULL)
		g->gpu->ops->stream_destroy(g->gpu, g->stream);
	g->stream = NULL;
}

static int witnesses_restore(struct kvx_cl_gpu *g)
{
	int err = witnesses_copy(g, WITNESS_RESTORE);

	for (unsigned i = 0; err < 0 && i < RESTORE_TRIES; i++) {
		void *fresh;

		if (g->gpu->ops->stream_create(g->gpu, &fresh) < 0)
			continue;
		stream_end(g);
		g->stream = fresh;
		err = witnesses_copy(g, WITNESS_RESTORE);
	}
	return err;
}

/* The first and the last bytes of the region, and some between: none overlaps another, none runs
 * over a piece's end. */
static void witnesses_place(struct kvx_cl_gpu *g)
{
	uint64_t most = g->len_bytes / KVX_CL_WITNESS_BYTES, end = 0;
	uint32_t n = most < KVX_CL_MAX_WITNESSES ? (uint32_t)most : KVX_CL_MAX_WITNESSES;
	uint32_t segment = 0;

	g->n_witnesses = 0;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t step = n > 1 ? (g->len_bytes - KVX_CL_WITNESS_BYTES) / (n - 1) : 0;
		uint64_t at = i + 1 == n && n > 1 ? g->len_bytes - KVX_CL_WITNESS_BYTES : i * step;

		while (at - g->segments[segment].start >= g->segments[segment].len_bytes)
			segment++;
		const struct kvx_cl_gpu_segment *s = &g->segments[segment];
		if (s->len_bytes < KVX_CL_WITNESS_BYTES)
			continue;
		if (at - s->start > s->len_bytes - KVX_CL_WITNESS_BYTES)
			at = s->start + s->len_bytes - KVX_CL_WITNESS_BYTES;
		if (at < end)
			continue;
		end = at + KVX_CL_WITNESS_BYTES;
		g->witnesses[g->n_witnesses++] =
		    (struct kvx_cl_witness){.addr = s->addr + (at - s->start), .offset = at};
	}
}

static int witnesses_choose(struct kvxfer_client *client, struct kvx_cl_gpu *g, bool in_use)
{
	for (uint32_t i = 0; i < g->n_witnesses; i++) {
		struct kvx_cl_witness *w = &g->witnesses[i];

		memcpy(w->shown, w->kept, sizeof(w->shown));
		if (!in_use && getrandom(w->shown, sizeof(w->shown), 0) != sizeof(w->shown))
			return kvx_cl_fail(client, -EIO, "no random bytes");
	}
	return 0;
}

int kvx_cl_witnesses_show(struct kvxfer_client *client, struct kvx_cl_gpu *g, bool in_use)
{
	witnesses_place(g);
	int err = g->gpu->ops->stream_create(g->gpu, &g->stream);
	if (err < 0)
		return copies_failed(client, g, err);
	err = witnesses_copy(g, WITNESS_KEEP);
	if (err < 0) {
		copies_failed(client, g, err);
		goto err_stream;
	}
	err = witnesses_choose(client, g, in_use);
	if (err < 0)
		goto err_stream;
	if (in_use)
		return 0;
	g->written = true;
	err = witnesses_copy(g, WITNESS_WRITE);
	if (err < 0) {
		copies_failed(client, g, err);
		kvx_cl_witnesses_hide(client, g);
	}
	return err;

err_stream:
	stream_end(g);
	return err;
}

int kvx_cl_witnesses_hide(struct kvxfer_client *client, struct kvx_cl_gpu *g)
{
	int err = g->written ? witnesses_restore(g) : 0;

	stream_end(g);
	if (err < 0)
		kvx_cl_fail(client, err,
			    "%" PRIu32
			    " times %d bytes of the memory were overwritten to prove that "
			    "the daemon sees it, and could not be put back: %s (%d)",
			    g->n_witnesses, KVX_CL_WITNESS_BYTES,
			    kvx_gpu_code_name(g->gpu, kvx_gpu_code()), kvx_gpu_code());
	g->written = false;
	return err;
}
