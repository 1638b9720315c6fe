/* Memory of the host that GPUs are to reach: page-locked by its home, for all devices. Page tables
 * of gigabytes take their time, so those are locked and unlocked on a control thread of their own:
 * nobody else's call waits behind one. [mem] helpers. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "transport/gpu/gpu_priv.h"

#define TRIES 3u /* else it stays locked, in the way of what is mapped there next */

struct pin_call {
	struct gpu_call call; /* first */
	struct kvx_dom *dom;
	void *addr;
	uint64_t len_bytes;
	int code;
	bool done;
};

int gpu_dom_unpin(struct kvx_dom *dom, void *addr)
{
	int err = -EIO;

	for (unsigned i = 0; i < TRIES && err < 0 && err != -ENODEV; i++)
		err = dom->gpu->ops->host_unpin(dom->gpu, addr);
	return err;
}

/* A lock that could not be taken away when the memory before it was unmapped is none any more. */
static int pin(struct pin_call *p)
{
	const struct kvx_gpu_ops *ops = p->dom->gpu->ops;
	int err = ops->host_pin(p->dom->gpu, p->addr, p->len_bytes);

	if (err == -EEXIST && gpu_dom_unpin(p->dom, p->addr) == 0)
		err = ops->host_pin(p->dom->gpu, p->addr, p->len_bytes);
	return err;
}

struct gpu_control *gpu_pin_control(const struct kvx_dom *dom, uint64_t len_bytes)
{
	return len_bytes >= KVX_PIN_LONG_BYTES ? dom->pins : dom->control;
}

/* 1 GB/s on top. */
uint64_t gpu_pin_timeout_ns(const struct kvx_dom *dom, uint64_t len_bytes)
{
	return dom->call_timeout_ns + len_bytes;
}

int gpu_dom_enter_bound(struct kvx_dom *dom)
{
	int err = -EIO;

	if (!gpu_dom_enter(dom))
		return -ENODEV;
	for (unsigned i = 0; i < TRIES && err < 0 && err != -ENODEV; i++)
		err = dom->gpu->ops->bind(dom->gpu, dom->device, NULL);
	if (err == -ENODEV)
		gpu_dom_lose(dom, kvx_gpu_code(), "page-locking host memory");
	if (err < 0)
		gpu_dom_leave(dom);
	return err;
}

static int pin_run(struct gpu_call *call)
{
	struct pin_call *p = (struct pin_call *)(void *)call;
	int err = gpu_dom_enter_bound(p->dom);

	p->code = kvx_gpu_code();
	if (err < 0)
		return err;
	err = pin(p);
	p->code = kvx_gpu_code();
	p->done = err == 0;
	gpu_dom_leave(p->dom);
	return err;
}

/* The mapping may be gone by now, and with it what was locked: unlocking says so at worst. */
static void pin_late(struct gpu_call *call)
{
	struct pin_call *p = (struct pin_call *)(void *)call;

	if (p->done && gpu_dom_enter_bound(p->dom) == 0) {
		(void)gpu_dom_unpin(p->dom, p->addr);
		gpu_dom_leave(p->dom);
	}
	free(p);
}

int gpu_mr_pin(struct kvx_mr *mr, const struct kvx_mem *mem)
{
	struct kvx_dom *dom = mr->dom;
	struct pin_call *p = calloc(1, sizeof(*p));

	if (p == NULL)
		return -ENOMEM;
	p->call = (struct gpu_call){.run = pin_run, .late = pin_late};
	p->dom = dom;
	p->addr = mem->addr;
	p->len_bytes = mem->len_bytes;
	int err = gpu_control_call(gpu_pin_control(dom, mem->len_bytes), &p->call,
				   gpu_pin_timeout_ns(dom, mem->len_bytes));
	if (err == -ETIMEDOUT) {
		kvx_warn("gpu: %s: page-locking %" PRIu64 " bytes did not end in time: copies "
			 "between GPUs and this memory are refused",
			 dom->name, mem->len_bytes);
		return err;
	}
	if (err == 0)
		mr->pinned = mem->addr;
	else if (err == -EBUSY)
		kvx_warn("gpu: %s: page-locking %" PRIu64 " bytes: an earlier call hangs, or many "
			 "are in front: copies between GPUs and this memory are refused",
			 dom->name, mem->len_bytes);
	else
		kvx_warn("gpu: %s: page-locking %" PRIu64 " bytes: %s (%d): copies between GPUs "
			 "and this memory are refused",
			 dom->name, mem->len_bytes, kvx_gpu_code_name(dom->gpu, p->code), p->code);
	free(p);
	return err;
}
