/* The adapter on HIP: memory of devices and of the host, what is shared of it with other processes,
 * and copies. Any thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/gpu_hip_priv.h"

/* ---- memory */

int gpu_hip_mem_alloc(struct kvx_gpu *gpu, uint64_t bytes, uint64_t *out_addr)
{
	void *addr = NULL;
	int code = calls_of(gpu)->mem_alloc(&addr, bytes);

	if (code != 0)
		return gpu_err(code);
	*out_addr = (uintptr_t)addr;
	return 0;
}

int gpu_hip_mem_free(struct kvx_gpu *gpu, uint64_t addr)
{
	return gpu_err(calls_of(gpu)->mem_free(ptr(addr)));
}

int gpu_hip_host_alloc(struct kvx_gpu *gpu, uint64_t bytes, void **out_addr)
{
	return gpu_err(
	    calls_of(gpu)->host_alloc(out_addr, bytes, GPU_HOST_PORTABLE | GPU_HOST_MAPPED));
}

int gpu_hip_host_free(struct kvx_gpu *gpu, void *addr)
{
	return gpu_err(calls_of(gpu)->host_free(addr));
}

int gpu_hip_host_pin(struct kvx_gpu *gpu, void *addr, uint64_t bytes)
{
	return gpu_err(
	    calls_of(gpu)->host_register(addr, bytes, GPU_HOST_PORTABLE | GPU_HOST_MAPPED));
}

int gpu_hip_host_unpin(struct kvx_gpu *gpu, void *addr)
{
	return gpu_err(calls_of(gpu)->host_unregister(addr));
}

/* Only memory of the virtual memory calls has a handle to retain. To ask for its IPC handle is not
 * safe: some versions of the driver take that badly. */
static bool hip_is_mapped(const struct hip_calls *calls, uint64_t addr)
{
	void *handle = NULL;

	if (calls->vmm_retain == NULL || calls->vmm_release == NULL ||
	    calls->vmm_retain(&handle, ptr(addr)) != 0)
		return false;
	calls->vmm_release(handle);
	return true;
}

int gpu_hip_owner(struct kvx_gpu *gpu, uint64_t addr, int *out_device)
{
	const struct hip_calls *calls = calls_of(gpu);
	unsigned type = 0;
	int device = -1;

	int code = calls->pointer_attr(&type, GPU_POINTER_MEMORY_TYPE, ptr(addr));
	if (code == 0 && type == hip_of(gpu)->memory_device)
		code = calls->pointer_attr(&device, GPU_POINTER_DEVICE, ptr(addr));
	if (code != 0)
		return gpu_err(code);
	*out_device = device;
	return 0;
}

int gpu_hip_range(struct kvx_gpu *gpu, uint64_t addr, struct kvx_gpu_range *out)
{
	const struct hip_calls *calls = calls_of(gpu);
	struct kvx_gpu_range range = {.device = -1};
	void *base = NULL;
	size_t bytes = 0;

	int err = gpu_hip_owner(gpu, addr, &range.device);
	if (err < 0)
		return err;
	range.on_device = range.device >= 0;
	if (!range.on_device) {
		*out = range;
		return 0;
	}
	int code = calls->range(&base, &bytes, ptr(addr));
	if (code != 0)
		return gpu_err(code);
	range.base = (uintptr_t)base;
	range.bytes = bytes;
	range.mapped = hip_is_mapped(calls, addr);
	*out = range;
	return 0;
}

int gpu_hip_ipc_export(struct kvx_gpu *gpu, uint64_t base, uint8_t out_ipc[KVX_GPU_IPC_BYTES])
{
	struct gpu_ipc_handle ipc;
	int code = calls_of(gpu)->ipc_get(&ipc, ptr(base));

	if (code != 0)
		return gpu_err(code);
	memcpy(out_ipc, ipc.bytes, sizeof(ipc.bytes));
	return 0;
}

int gpu_hip_ipc_open(struct kvx_gpu *gpu, const uint8_t bytes[KVX_GPU_IPC_BYTES],
		     uint64_t *out_addr)
{
	struct gpu_ipc_handle ipc;
	void *addr = NULL;

	memcpy(ipc.bytes, bytes, sizeof(ipc.bytes));
	int code = calls_of(gpu)->ipc_open(&addr, ipc, GPU_IPC_LAZY_PEER_ACCESS);
	if (code != 0)
		return gpu_err(code);
	*out_addr = (uintptr_t)addr;
	return 0;
}

int gpu_hip_ipc_close(struct kvx_gpu *gpu, uint64_t addr)
{
	return gpu_err(calls_of(gpu)->ipc_close(ptr(addr)));
}

int gpu_hip_dmabuf_export(struct kvx_gpu *gpu, uint64_t addr, uint64_t bytes, int *out_fd,
			  uint64_t *out_offset)
{
	const struct hip *hip = hip_of(gpu);
	uint64_t offset = 0;
	int fd = -1, code = 801;

	if (hip->calls.range_handle != NULL)
		code = hip->calls.range_handle(&fd, ptr(addr), bytes, GPU_RANGE_DMABUF_FD, 0);
	if (code != 0 && hip->have_hsa) {
		code = hip->hsa.export_dmabuf(ptr(addr), bytes, &fd, &offset);
		if (code != 0) /* one of HSA's own numbers */
			return -EOPNOTSUPP;
	}
	if (code != 0)
		return gpu_err(code);
	*out_fd = fd;
	*out_offset = offset;
	return 0;
}

/* ---- copies */

int gpu_hip_copy(struct kvx_gpu *gpu, uint64_t dst, uint64_t src, uint64_t bytes, void *stream)
{
	return gpu_err(calls_of(gpu)->copy(ptr(dst), ptr(src), bytes, COPY_DEFAULT, stream));
}

int gpu_hip_copy_rect(struct kvx_gpu *gpu, const struct kvx_gpu_rect *rect, void *stream)
{
	return gpu_err(calls_of(gpu)->copy_2d(ptr(rect->dst), rect->dst_pitch, ptr(rect->src),
					      rect->src_pitch, rect->width, rect->height,
					      COPY_DEFAULT, stream));
}

_Static_assert(sizeof(void *) == sizeof(uint64_t), "addresses are handed over as they are");

int gpu_hip_copy_batch(struct kvx_gpu *gpu, uint64_t *dsts, uint64_t *srcs, size_t *lens, size_t n,
		       void *stream)
{
	const struct hip_calls *calls = calls_of(gpu);
	struct gpu_copy_attributes attrs = {.source_order = GPU_ORDER_STREAM};
	size_t start = 0, failed = 0;

	if (calls->copy_batch == NULL)
		return -EOPNOTSUPP;
	return gpu_err(calls->copy_batch((void **)(void *)dsts, (void **)(void *)srcs, lens, n,
					 &attrs, &start, 1, &failed, stream));
}

/* The code of the kernel for the bound device; free(3) it. NULL: hiprtc could not. */
static char *hip_kernel_compile(const struct hiprtc_calls *rtc)
{
	void *program = NULL;
	size_t bytes = 0;
	char *code = NULL;

	if (rtc->create(&program, gpu_kernel_source, KVX_GPU_KERNEL, 0, NULL, NULL) != 0)
		return NULL;
	if (rtc->compile(program, 0, NULL) == 0 && rtc->code_bytes(program, &bytes) == 0)
		code = malloc(bytes > 0 ? bytes : 1);
	if (code != NULL && rtc->code(program, code) != 0) {
		free(code);
		code = NULL;
	}
	rtc->destroy(&program);
	return code;
}

int gpu_hip_kernel_load(struct kvx_gpu *gpu, void **out_kernel)
{
	const struct hip *hip = hip_of(gpu);
	void *module = NULL, *function = NULL;

	if (!(gpu->caps & KVX_GPU_CAP_KERNEL))
		return -EOPNOTSUPP;
	char *image = hip_kernel_compile(&hip->rtc);
	if (image == NULL)
		return -EOPNOTSUPP;
	int code = hip->calls.module_load(&module, image);
	free(image);
	if (code == 0)
		code = hip->calls.module_function(&function, module, KVX_GPU_KERNEL);
	if (code != 0)
		return gpu_err(code);
	*out_kernel = function;
	return 0;
}

int gpu_hip_kernel_run(struct kvx_gpu *gpu, void *kernel, uint64_t pieces, uint32_t n, void *stream)
{
	void *params[] = {&pieces, &n};

	return gpu_err(calls_of(gpu)->launch(kernel, n, 1, 1, GPU_KERNEL_THREADS, 1, 1, 0, stream,
					     params, NULL));
}
