/* Memory of the device that RDMA devices read to flush what they wrote there: made when somebody
 * first asks, for as long as the domain. All of it happens on the control thread, so that nobody
 * else ever touches it; who asks waits, not for ever. It is readable from other nodes, so it is
 * cleared, but for a mark to know it by, before anybody is told of it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/log.h"
#include "transport/gpu/gpu_priv.h"

/* What devices map at once: less would lie beside other allocations. Shown is one page of it. */
#define FLUSH_ALLOC_BYTES (2u << 20)
#define SCRATCH_BYTES     (KVX_GPU_MAX_WITNESSES * KVX_GPU_WITNESS_BYTES)
#define SYNC_TRIES        3u

struct flush_call {
	struct gpu_call call; /* first */
	struct kvx_dom *dom;
	struct kvx_gpu_flush flush; /* out */
};

static struct flush_call *flush_of(struct gpu_call *call)
{
	return (struct flush_call *)(void *)call;
}

/* Also after a failure: what runs still writes into the page, or reads the scratch. */
static int flush_sync(struct kvx_dom *dom)
{
	const struct kvx_gpu_ops *ops = dom->gpu->ops;
	int err = -EIO;

	for (unsigned i = 0; i < SYNC_TRIES && err < 0 && err != -ENODEV; i++)
		err = ops->stream_sync(dom->gpu, dom->control_stream);
	if (err == 0)
		return 0;
	gpu_dom_lose(dom, kvx_gpu_code(), "clearing memory to flush by does not end");
	return -ENODEV;
}

/* The device reads the scratch until the sync. */
static int flush_fill(struct kvx_dom *dom, uint64_t page, uint64_t len_bytes)
{
	const struct kvx_gpu_ops *ops = dom->gpu->ops;
	int err = 0;

	for (uint64_t at = 0; err == 0 && at < len_bytes; at += SCRATCH_BYTES)
		err = ops->copy(dom->gpu, page + at, (uintptr_t)dom->scratch, SCRATCH_BYTES,
				dom->control_stream);
	int sync_err = flush_sync(dom);
	return sync_err < 0 ? sync_err : err;
}

static int flush_clear(struct kvx_dom *dom, const struct kvx_gpu_flush *flush)
{
	memset(dom->scratch, 0, SCRATCH_BYTES);
	int err = flush_fill(dom, flush->addr, flush->len_bytes);
	if (err < 0)
		return err;
	memcpy(dom->scratch, flush->mark, sizeof(flush->mark));
	return flush_fill(dom, flush->addr, SCRATCH_BYTES);
}

/* -1 where it cannot be exported: it may still be read by way of its address. */
static void flush_export(const struct kvx_dom *dom, struct kvx_gpu_flush *flush)
{
	uint64_t offset = 0;
	int fd = -1;

	if ((dom->gpu->caps & KVX_GPU_CAP_DMABUF) != 0 &&
	    dom->gpu->ops->dmabuf_export(dom->gpu, flush->addr, flush->len_bytes, &fd, &offset) ==
		0) {
		flush->fd = fd;
		flush->fd_offset = offset;
		return;
	}
	kvx_debug("gpu: %s: memory to flush by has no dma-buf", dom->name);
}

static int flush_make(struct kvx_dom *dom)
{
	const struct kvx_gpu_ops *ops = dom->gpu->ops;
	const uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	struct kvx_gpu_flush flush = {.len_bytes = page_bytes, .fd = -1};
	uint64_t base = 0;

	if (getrandom(flush.mark, sizeof(flush.mark), 0) != sizeof(flush.mark))
		return -EIO;
	int err = ops->mem_alloc(dom->gpu, FLUSH_ALLOC_BYTES, &base);
	if (err < 0)
		return err;
	flush.addr = (base + page_bytes - 1) / page_bytes * page_bytes;
	err = flush_clear(dom, &flush);
	if (err < 0) {
		if (err != -ENODEV)
			ops->mem_free(dom->gpu, base);
		return err;
	}
	flush_export(dom, &flush);
	dom->flush_base = base;
	dom->flush = flush;
	return 0;
}

static int flush_run(struct gpu_call *call)
{
	struct flush_call *f = flush_of(call);
	struct kvx_dom *dom = f->dom;
	int err = 0;

	if (!gpu_dom_enter(dom))
		return -ENODEV;
	if (dom->flush_base == 0)
		err = flush_make(dom);
	f->flush = dom->flush;
	if (err < 0)
		kvx_warn("gpu: %s: there is no memory to flush by: %s (%d)", dom->name,
			 kvx_gpu_code_name(dom->gpu, kvx_gpu_code()), kvx_gpu_code());
	if (err == -ENODEV)
		gpu_dom_lose(dom, kvx_gpu_code(), "memory to flush by cannot be made");
	gpu_dom_leave(dom);
	return err;
}

/* It is the domain's, whoever asked for it. */
static void flush_late(struct gpu_call *call)
{
	free(flush_of(call));
}

int gpu_flush_memory(void *device, struct kvx_gpu_flush *out_flush)
{
	struct kvx_dom *dom = device;
	struct flush_call *f = calloc(1, sizeof(*f));

	KVX_CHECK_MAGIC(dom, GPU_DOM_MAGIC);
	if (f == NULL)
		return -ENOMEM;
	f->call = (struct gpu_call){.run = flush_run, .late = flush_late};
	f->dom = dom;
	int err = atomic_load(&dom->lost)
		      ? -ENODEV
		      : gpu_control_call(dom->control, &f->call, dom->call_timeout_ns);
	if (err == 0)
		*out_flush = f->flush;
	if (err != -ETIMEDOUT) /* then it is the control thread's */
		free(f);
	return err;
}

void gpu_flush_unmake(struct kvx_dom *dom)
{
	if (dom->flush_base == 0)
		return;
	if (dom->flush.fd >= 0)
		close(dom->flush.fd);
	if (!atomic_load(&dom->lost)) /* else it went with the reset */
		dom->gpu->ops->mem_free(dom->gpu, dom->flush_base);
	dom->flush_base = 0;
}
