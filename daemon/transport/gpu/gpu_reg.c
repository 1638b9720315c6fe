/* A region's entry in a domain. The first domain that a region comes to is its home, see
 * transport.h: for memory of this device that maps and verifies it, for memory of the host it
 * page-locks it; every other domain only notes where that is in this process, and makes sure that
 * its device reaches it. [mem] helpers. */
#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"
#include "transport/gpu/gpu_priv.h"

static int reg_device_memory(struct kvx_mr *mr, const struct kvx_mem *mem)
{
	const struct gpu_shared *shared = gpu_shared();
	struct kvx_gpu_mem *gpu = mem->gpu;
	struct kvx_dom *dom = mr->dom;

	mr->on_device = true;
	mr->device = gpu_device_find(shared, &gpu->id);
	if (mem->ops->kind != (enum kvx_mem_kind)dom->gpu->ops->kind) {
		kvx_why(&gpu->why, 0,
			"it is memory of %s, and the daemon uses %s ([gpu] runtime): both must be "
			"of one runtime",
			mem->ops->kind == KVX_MEM_HIP ? "HIP" : "CUDA",
			dom->gpu->ops->kind == KVX_GPU_HIP ? "HIP" : "CUDA");
		return -EOPNOTSUPP;
	}
	if (mr->device < 0)
		return -EOPNOTSUPP;
	if (mr->device == dom->device) {
		int err = gpu_mr_map(mr, gpu);
		if (err < 0)
			return err;
	} else {
		if (gpu->bases[0].addr == 0)
			return -EOPNOTSUPP; /* its home has not mapped it */
		gpu_dom_reach_peer(dom, mr->device);
	}
	mr->segments = gpu;
	if (gpu->n_segments == 1)
		mr->addr = gpu->bases[gpu->segments[0].base].addr + gpu->segments[0].offset;
	return 0;
}

static int reg_host_memory(struct kvx_mr *mr, const struct kvx_mem *mem)
{
	mr->device = -1;
	mr->pinner = mr->dom->device;
	mr->addr = (uintptr_t)mem->addr;
	if (mem->addr == NULL)
		return -EOPNOTSUPP;
	if (mem->pinned == NULL)
		return gpu_mr_pin(mr, mem);
	KVX_CHECK_MAGIC(mem->pinned, GPU_MR_MAGIC);
	mr->pinner = mem->pinned->pinner;
	return 0;
}

int gpu_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem, uint32_t rights,
		struct kvx_mr **out_mr)
{
	KVX_CHECK_MAGIC(dom, GPU_DOM_MAGIC);
	if (atomic_load(&dom->lost))
		return -ENODEV;
	struct kvx_mr *mr = calloc(1, sizeof(*mr));
	if (mr == NULL)
		return -ENOMEM;
	mr->magic = GPU_MR_MAGIC;
	mr->dom = dom;
	mr->len_bytes = mem->len_bytes;
	mr->rights = rights;
	int err = mem->gpu != NULL ? reg_device_memory(mr, mem) : reg_host_memory(mr, mem);
	if (err < 0) {
		gpu_mr_give_back(mr);
		return err;
	}
	kvx_counter_add_shared(&dom->counters.regs, 1);
	kvx_counter_add_shared(&dom->counters.reg_bytes, mr->len_bytes);
	atomic_fetch_add(&dom->n_homes, mr->n_maps > 0);
	*out_mr = mr;
	return 0;
}

void gpu_mem_dereg(struct kvx_mr *mr)
{
	KVX_CHECK_MAGIC(mr, GPU_MR_MAGIC);
	/* The counters wrap around to what is registered now. */
	kvx_counter_add_shared(&mr->dom->counters.regs, (uint64_t)-1);
	kvx_counter_add_shared(&mr->dom->counters.reg_bytes, (uint64_t)0 - mr->len_bytes);
	atomic_fetch_sub(&mr->dom->n_homes, mr->n_maps > 0);
	gpu_mr_give_back(mr);
}
