/* Memory of the host that GPUs are to reach: page-locked by its home, for all devices. A call of
 * the control thread, since page tables of gigabytes take their time. [mem] helpers. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "transport/gpu/gpu_priv.h"

struct pin_call {
	struct gpu_call call; /* first */
	struct kvx_dom *dom;
	void *addr;
	uint64_t len_bytes;
	int code;
	bool done;
};

static int pin_run(struct gpu_call *call)
{
	struct pin_call *p = (struct pin_call *)(void *)call;
	struct kvx_gpu *gpu = p->dom->gpu;

	if (!gpu_dom_enter(p->dom))
		return -ENODEV;
	int err = gpu->ops->host_pin(gpu, p->addr, p->len_bytes);
	p->code = kvx_gpu_code();
	p->done = err == 0;
	gpu_dom_leave(p->dom);
	return err;
}

/* The mapping may be gone by now, and with it what was locked: unlocking says so at worst. */
static void pin_late(struct gpu_call *call)
{
	struct pin_call *p = (struct pin_call *)(void *)call;

	if (p->done && gpu_dom_enter(p->dom)) {
		p->dom->gpu->ops->host_unpin(p->dom->gpu, p->addr);
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
	/* Page tables of many gigabytes take their time: 1 GB/s on top. */
	int err = gpu_control_call(dom->control, &p->call, dom->call_timeout_ns + mem->len_bytes);
	if (err == -ETIMEDOUT) {
		kvx_warn("gpu: %s: page-locking %" PRIu64 " bytes did not end in time: copies "
			 "between GPUs and this memory are refused",
			 dom->name, mem->len_bytes);
		return err;
	}
	if (err == 0)
		mr->pinned = mem->addr;
	else
		kvx_warn("gpu: %s: page-locking %" PRIu64 " bytes: %s (%d): copies between GPUs "
			 "and this memory are refused",
			 dom->name, mem->len_bytes, kvx_gpu_code_name(dom->gpu, p->code), p->code);
	free(p);
	return err;
}
