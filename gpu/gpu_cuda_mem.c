/* The adapter on CUDA: memory of devices and of the host, what is shared of it with other
 * processes, and copies. Any thread. */
#include <errno.h>
#include <string.h>

#include "gpu/gpu_cuda_priv.h"

/* ---- memory */

int gpu_cuda_mem_alloc(struct kvx_gpu *gpu, uint64_t bytes, uint64_t *out_addr)
{
	return gpu_err(calls_of(gpu)->mem_alloc(out_addr, bytes));
}

int gpu_cuda_mem_free(struct kvx_gpu *gpu, uint64_t addr)
{
	return gpu_err(calls_of(gpu)->mem_free(addr));
}

int gpu_cuda_host_alloc(struct kvx_gpu *gpu, uint64_t bytes, void **out_addr)
{
	return gpu_err(
	    calls_of(gpu)->host_alloc(out_addr, bytes, GPU_HOST_PORTABLE | GPU_HOST_MAPPED));
}

int gpu_cuda_host_free(struct kvx_gpu *gpu, void *addr)
{
	return gpu_err(calls_of(gpu)->host_free(addr));
}

int gpu_cuda_host_pin(struct kvx_gpu *gpu, void *addr, uint64_t bytes)
{
	return gpu_err(
	    calls_of(gpu)->host_register(addr, bytes, GPU_HOST_PORTABLE | GPU_HOST_MAPPED));
}

int gpu_cuda_host_unpin(struct kvx_gpu *gpu, void *addr)
{
	return gpu_err(calls_of(gpu)->host_unregister(addr));
}

/* Memory that cannot be exported by an IPC handle: that of the virtual memory calls is known by the
 * handle behind it, that of pools by what the driver says of it. */
static bool cuda_is_mapped(const struct cuda_calls *calls, uint64_t addr)
{
	unsigned long long handle;
	int capable = 1;

	if (calls->vmm_retain != NULL && calls->vmm_release != NULL &&
	    calls->vmm_retain(&handle, (void *)(uintptr_t)addr) == 0) {
		calls->vmm_release(handle);
		return true;
	}
	return calls->pointer_attr(&capable, POINTER_IPC_CAPABLE, addr) == 0 && capable == 0;
}

int gpu_cuda_owner(struct kvx_gpu *gpu, uint64_t addr, int *out_device)
{
	const struct cuda_calls *calls = calls_of(gpu);
	unsigned type = 0;
	int device = -1;

	int code = calls->pointer_attr(&type, GPU_POINTER_MEMORY_TYPE, addr);
	if (code == 0 && type == MEMORY_DEVICE)
		code = calls->pointer_attr(&device, GPU_POINTER_DEVICE, addr);
	if (code != 0)
		return gpu_err(code);
	*out_device = device;
	return 0;
}

int gpu_cuda_range(struct kvx_gpu *gpu, uint64_t addr, struct kvx_gpu_range *out)
{
	const struct cuda_calls *calls = calls_of(gpu);
	struct kvx_gpu_range range = {.device = -1};
	size_t bytes = 0;

	int err = gpu_cuda_owner(gpu, addr, &range.device);
	if (err < 0)
		return err;
	range.on_device = range.device >= 0;
	if (!range.on_device) {
		*out = range;
		return 0;
	}
	int code = calls->range(&range.base, &bytes, addr);
	if (code != 0)
		return gpu_err(code);
	range.bytes = bytes;
	range.mapped = cuda_is_mapped(calls, addr);
	*out = range;
	return 0;
}

int gpu_cuda_ipc_export(struct kvx_gpu *gpu, uint64_t base, uint8_t out_ipc[KVX_GPU_IPC_BYTES])
{
	struct gpu_ipc_handle ipc;
	int code = calls_of(gpu)->ipc_get(&ipc, base);

	if (code != 0)
		return gpu_err(code);
	memcpy(out_ipc, ipc.bytes, sizeof(ipc.bytes));
	return 0;
}

int gpu_cuda_ipc_open(struct kvx_gpu *gpu, const uint8_t bytes[KVX_GPU_IPC_BYTES],
		      uint64_t *out_addr)
{
	struct gpu_ipc_handle ipc;

	memcpy(ipc.bytes, bytes, sizeof(ipc.bytes));
	return gpu_err(calls_of(gpu)->ipc_open(out_addr, ipc, GPU_IPC_LAZY_PEER_ACCESS));
}

int gpu_cuda_ipc_close(struct kvx_gpu *gpu, uint64_t addr)
{
	return gpu_err(calls_of(gpu)->ipc_close(addr));
}

int gpu_cuda_dmabuf_export(struct kvx_gpu *gpu, uint64_t addr, uint64_t bytes, int *out_fd,
			   uint64_t *out_offset)
{
	int fd = -1;

	if (calls_of(gpu)->range_handle == NULL)
		return -EOPNOTSUPP;
	int code = calls_of(gpu)->range_handle(&fd, addr, bytes, GPU_RANGE_DMABUF_FD, 0);
	if (code != 0)
		return gpu_err(code);
	*out_fd = fd;
	*out_offset = 0;
	return 0;
}

/* ---- copies */

int gpu_cuda_copy(struct kvx_gpu *gpu, uint64_t dst, uint64_t src, uint64_t bytes, void *stream)
{
	return gpu_err(calls_of(gpu)->copy(dst, src, bytes, stream));
}

int gpu_cuda_copy_rect(struct kvx_gpu *gpu, const struct kvx_gpu_rect *rect, void *stream)
{
	const struct copy_2d copy = {
	    .src_type = MEMORY_UNIFIED,
	    .src_device = rect->src,
	    .src_pitch = rect->src_pitch,
	    .dst_type = MEMORY_UNIFIED,
	    .dst_device = rect->dst,
	    .dst_pitch = rect->dst_pitch,
	    .width = rect->width,
	    .height = rect->height,
	};

	return gpu_err(calls_of(gpu)->copy_2d(&copy, stream));
}

int gpu_cuda_copy_batch(struct kvx_gpu *gpu, uint64_t *dsts, uint64_t *srcs, size_t *lens, size_t n,
			void *stream)
{
	const struct cuda_calls *calls = calls_of(gpu);
	struct gpu_copy_attributes attrs = {.source_order = GPU_ORDER_STREAM};
	size_t start = 0, failed = 0;

	if (calls->copy_batch_13 != NULL)
		return gpu_err(
		    calls->copy_batch_13(dsts, srcs, lens, n, &attrs, &start, 1, stream));
	if (calls->copy_batch_12 != NULL)
		return gpu_err(
		    calls->copy_batch_12(dsts, srcs, lens, n, &attrs, &start, 1, &failed, stream));
	return -EOPNOTSUPP;
}

int gpu_cuda_kernel_load(struct kvx_gpu *gpu, void **out_kernel)
{
	const struct cuda_calls *calls = calls_of(gpu);
	void *module = NULL, *function = NULL;

	if (calls->module_load == NULL || calls->module_function == NULL || calls->launch == NULL)
		return -EOPNOTSUPP;
	int code = calls->module_load(&module, gpu_kernel_ptx);
	if (code == 0)
		code = calls->module_function(&function, module, KVX_GPU_KERNEL);
	if (code != 0)
		return gpu_err(code);
	*out_kernel = function;
	return 0;
}

int gpu_cuda_kernel_run(struct kvx_gpu *gpu, void *kernel, uint64_t pieces, uint32_t n,
			void *stream)
{
	void *params[] = {&pieces, &n};

	return gpu_err(calls_of(gpu)->launch(kernel, n, 1, 1, GPU_KERNEL_THREADS, 1, 1, 0, stream,
					     params, NULL));
}
