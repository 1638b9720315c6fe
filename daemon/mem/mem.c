/* Memory kinds by number, and the life of one piece of client memory. Init runs on the loop, fini
 * on the job thread (unmapping gigabytes blocks). Knows no kind from the inside. */
#include "mem/mem.h"

#include <unistd.h>

#include "base/assert.h"
#include "mem/gpu.h"

static const struct kvx_mem_ops *const all_kinds[] = {&kvx_mem_host_ops, &kvx_mem_hip_ops,
						      &kvx_mem_cuda_ops};

const struct kvx_mem_ops *kvx_mem_ops_find(enum kvx_mem_kind kind)
{
	for (unsigned i = 0; i < sizeof(all_kinds) / sizeof(all_kinds[0]); i++)
		if (all_kinds[i]->kind == kind)
			return all_kinds[i];
	return NULL;
}

const char *kvx_mem_kind_name(uint32_t kind)
{
	switch (kind) {
	case KVX_MEM_HOST:
		return "host";
	case KVX_MEM_DMABUF:
		return "dmabuf";
	case KVX_MEM_HIP:
		return "hip";
	case KVX_MEM_CUDA:
		return "cuda";
	default:
		return "unknown";
	}
}

void kvx_mem_init(struct kvx_mem *mem, const struct kvx_mem_ops *ops, int fd, uint64_t fd_offset,
		  uint64_t len_bytes)
{
	kvx_assert(ops != NULL);
	*mem =
	    (struct kvx_mem){.ops = ops, .fd = fd, .fd_offset = fd_offset, .len_bytes = len_bytes};
}

void kvx_mem_fini(struct kvx_mem *mem)
{
	if (mem->ops != NULL)
		mem->ops->unmap(mem);
	if (mem->fd >= 0)
		close(mem->fd);
	mem->fd = -1;
	kvx_gpu_mem_destroy(mem->gpu);
	mem->gpu = NULL;
}
