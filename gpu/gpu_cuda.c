/* The GPU runtime table on CUDA, by its driver API alone: libcuda.so.1 is there wherever an NVIDIA
 * driver is, its calls keep their form, and no toolkit is needed. What is declared here follows
 * cuda.h of CUDA 13.0; the call that has two forms (batched copies, 12.8 and 13) is taken in
 * either. Each device is used by its primary context, which engines' runtimes use, too. Any thread.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "gpu/gpu_cuda_priv.h"

#define NEED(field, name)                                                                          \
	{                                                                                          \
		name, offsetof(struct cuda_calls, field), true, NULL                               \
	}
#define NEED_OR(field, name, old)                                                                  \
	{                                                                                          \
		name, offsetof(struct cuda_calls, field), true, old                                \
	}
#define MAY(field, name)                                                                           \
	{                                                                                          \
		name, offsetof(struct cuda_calls, field), false, NULL                              \
	}

static const struct gpu_symbol cuda_symbols[] = {
    NEED(init, "cuInit"),
    NEED(driver_version, "cuDriverGetVersion"),
    NEED(device_count, "cuDeviceGetCount"),
    NEED(device_get, "cuDeviceGet"),
    NEED(device_name, "cuDeviceGetName"),
    NEED_OR(device_uuid, "cuDeviceGetUuid_v2", "cuDeviceGetUuid"),
    NEED(device_pci, "cuDeviceGetPCIBusId"),
    NEED(device_mem, "cuDeviceTotalMem_v2"),
    NEED(device_attr, "cuDeviceGetAttribute"),
    NEED(ctx_retain, "cuDevicePrimaryCtxRetain"),
    NEED_OR(ctx_release, "cuDevicePrimaryCtxRelease_v2", "cuDevicePrimaryCtxRelease"),
    NEED_OR(ctx_reset, "cuDevicePrimaryCtxReset_v2", "cuDevicePrimaryCtxReset"),
    NEED(ctx_set, "cuCtxSetCurrent"),
    NEED(ctx_get, "cuCtxGetCurrent"),
    NEED(mem_alloc, "cuMemAlloc_v2"),
    NEED(mem_free, "cuMemFree_v2"),
    NEED(host_alloc, "cuMemHostAlloc"),
    NEED(host_free, "cuMemFreeHost"),
    NEED(host_register, "cuMemHostRegister_v2"),
    NEED(host_unregister, "cuMemHostUnregister"),
    NEED(range, "cuMemGetAddressRange_v2"),
    NEED(pointer_attr, "cuPointerGetAttribute"),
    NEED(ipc_get, "cuIpcGetMemHandle"),
    NEED(ipc_open, "cuIpcOpenMemHandle_v2"),
    NEED(ipc_close, "cuIpcCloseMemHandle"),
    NEED(queue.ipc_open_event, "cuIpcOpenEventHandle"),
    NEED(copy, "cuMemcpyAsync"),
    NEED(copy_2d, "cuMemcpy2DAsync_v2"),
    NEED(queue.stream_create, "cuStreamCreate"),
    NEED(queue.stream_destroy, "cuStreamDestroy_v2"),
    NEED(queue.stream_sync, "cuStreamSynchronize"),
    NEED(queue.event_create, "cuEventCreate"),
    NEED(queue.event_destroy, "cuEventDestroy_v2"),
    NEED(queue.event_record, "cuEventRecord"),
    NEED(queue.event_query, "cuEventQuery"),
    NEED(peer_can, "cuDeviceCanAccessPeer"),
    NEED(peer_enable, "cuCtxEnablePeerAccess"),
    NEED(error_name, "cuGetErrorName"),
    MAY(ctx_state, "cuDevicePrimaryCtxGetState"),
    MAY(queue.ipc_get_event, "cuIpcGetEventHandle"),
    MAY(copy_batch_13, "cuMemcpyBatchAsync_v2"),
    MAY(copy_batch_12, "cuMemcpyBatchAsync"),
    MAY(range_handle, "cuMemGetHandleForAddressRange"),
    MAY(vmm_retain, "cuMemRetainAllocationHandle"),
    MAY(vmm_release, "cuMemRelease"),
    MAY(module_load, "cuModuleLoadData"),
    MAY(module_function, "cuModuleGetFunction"),
    MAY(launch, "cuLaunchKernel"),
};

/* ---- devices */

static int cuda_version(struct kvx_gpu *gpu, int *out_version)
{
	return gpu_err(calls_of(gpu)->driver_version(out_version));
}

static int cuda_count(struct kvx_gpu *gpu, int *out_n)
{
	return gpu_err(calls_of(gpu)->device_count(out_n));
}

static int cuda_describe(struct kvx_gpu *gpu, int device, struct kvx_gpu_device *out)
{
	const struct cuda_calls *calls = calls_of(gpu);
	struct kvx_gpu_device d = {.id.pci = ""};
	char pci[32] = "";
	size_t bytes = 0;
	int dev, units = 0, dmabuf = 0, direct = 0;

	int code = calls->device_get(&dev, device);
	if (code == 0)
		code = calls->device_name(d.name, sizeof(d.name), dev);
	if (code == 0)
		code = calls->device_mem(&bytes, dev);
	if (code == 0)
		code = calls->device_uuid((char *)d.id.uuid, dev);
	if (code == 0)
		code = calls->device_pci(pci, sizeof(pci), dev);
	if (code == 0)
		code = calls->device_attr(&units, ATTR_UNITS, dev);
	if (code != 0)
		return gpu_err(code);
	if (calls->range_handle != NULL)
		calls->device_attr(&dmabuf, ATTR_DMABUF, dev);
	calls->device_attr(&direct, ATTR_HOST_POINTER, dev);
	kvx_gpu_pci_normalise(pci, d.id.pci);
	d.total_bytes = bytes;
	d.n_units = units > 0 ? (unsigned)units : 1;
	d.dmabuf = dmabuf != 0;
	d.host_direct = direct != 0;
	*out = d;
	return 0;
}

static int cuda_open_device(struct kvx_gpu *gpu, int device)
{
	struct cuda *cuda = cuda_of(gpu);
	void *ctx = NULL;
	int dev, code;

	if (device < 0 || device >= KVX_GPU_MAX)
		return -EINVAL;
	code = cuda->calls.device_get(&dev, device);
	if (code == 0)
		code = cuda->calls.ctx_retain(&ctx, dev);
	if (code != 0)
		return gpu_err(code);
	atomic_store(&cuda->ctx[device], ctx); /* of one device always the same */
	atomic_fetch_add(&cuda->n_open[device], 1);
	return 0;
}

static int cuda_close_device(struct kvx_gpu *gpu, int device)
{
	struct cuda *cuda = cuda_of(gpu);
	int dev;

	if (atomic_fetch_sub(&cuda->n_open[device], 1) == 1)
		atomic_store(&cuda->ctx[device], NULL);
	int code = cuda->calls.device_get(&dev, device);
	if (code == 0)
		code = cuda->calls.ctx_release(dev);
	return gpu_err(code);
}

static void *cuda_ctx(struct kvx_gpu *gpu, int device)
{
	if (device < 0 || device >= KVX_GPU_MAX)
		return NULL;
	return atomic_load(&cuda_of(gpu)->ctx[device]);
}

static int cuda_bind(struct kvx_gpu *gpu, int device, struct kvx_gpu_bound *out_before)
{
	const struct cuda_calls *calls = calls_of(gpu);
	void *ctx = cuda_ctx(gpu, device), *before = NULL;

	if (ctx == NULL)
		return -EINVAL;
	if (out_before != NULL) {
		int code = calls->ctx_get(&before);
		if (code != 0)
			return gpu_err(code);
		*out_before = (struct kvx_gpu_bound){.ctx = before};
	}
	return gpu_err(calls->ctx_set(ctx));
}

static void cuda_unbind(struct kvx_gpu *gpu, const struct kvx_gpu_bound *before)
{
	calls_of(gpu)->ctx_set(before->ctx);
}

static int cuda_reset(struct kvx_gpu *gpu, int device)
{
	int dev;
	const struct cuda_calls *calls = calls_of(gpu);
	int code = calls->device_get(&dev, device);

	if (code != 0)
		return gpu_err(code);
	code = calls->ctx_reset(dev);
	/* Which may be the error of an earlier call: is there a context left? */
	unsigned flags;
	int active = 1;
	if (code != 0 && calls->ctx_state != NULL && calls->ctx_state(dev, &flags, &active) == 0 &&
	    active == 0)
		return 0;
	return gpu_err(code);
}

/* ---- peers */

static int cuda_peer_can(struct kvx_gpu *gpu, int device, int peer, bool *out_can)
{
	const struct cuda_calls *calls = calls_of(gpu);
	int dev, peer_dev, can = 0;

	int code = calls->device_get(&dev, device);
	if (code == 0)
		code = calls->device_get(&peer_dev, peer);
	if (code == 0)
		code = calls->peer_can(&can, dev, peer_dev);
	if (code != 0)
		return gpu_err(code);
	*out_can = can != 0;
	return 0;
}

static int cuda_peer_enable(struct kvx_gpu *gpu, int peer)
{
	void *ctx = cuda_ctx(gpu, peer);

	if (ctx == NULL)
		return -EINVAL;
	int code = calls_of(gpu)->peer_enable(ctx, 0);
	return code == GPU_PEER_ENABLED_ALREADY ? 0 : gpu_err(code);
}

/* The driver ranks the ways between two devices: 0 is the best one there is, which is NVLink only
 * where there is any. It does not name them. */
static int cuda_link(struct kvx_gpu *gpu, int device, int peer, enum kvx_gpu_link *out_link,
		     unsigned *out_hops)
{
	*out_link = KVX_GPU_LINK_UNKNOWN;
	*out_hops = 0;
	return 0;
}

static const struct kvx_gpu_ops cuda_ops = {
    .kind = KVX_GPU_CUDA,
    .name = "cuda",
    .version = cuda_version,
    .count = cuda_count,
    .describe = cuda_describe,
    .open = cuda_open_device,
    .close = cuda_close_device,
    .bind = cuda_bind,
    .unbind = cuda_unbind,
    .reset = cuda_reset,
    .mem_alloc = gpu_cuda_mem_alloc,
    .mem_free = gpu_cuda_mem_free,
    .host_alloc = gpu_cuda_host_alloc,
    .host_free = gpu_cuda_host_free,
    .host_pin = gpu_cuda_host_pin,
    .host_unpin = gpu_cuda_host_unpin,
    .owner = gpu_cuda_owner,
    .range = gpu_cuda_range,
    .ipc_export = gpu_cuda_ipc_export,
    .ipc_open = gpu_cuda_ipc_open,
    .ipc_close = gpu_cuda_ipc_close,
    .dmabuf_export = gpu_cuda_dmabuf_export,
    .stream_create = gpu_stream_create,
    .stream_destroy = gpu_stream_destroy,
    .stream_sync = gpu_stream_sync,
    .event_create = gpu_event_create,
    .event_destroy = gpu_event_destroy,
    .event_record = gpu_event_record,
    .event_query = gpu_event_query,
    .event_export = gpu_event_export,
    .event_open = gpu_event_open,
    .copy = gpu_cuda_copy,
    .copy_rect = gpu_cuda_copy_rect,
    .copy_batch = gpu_cuda_copy_batch,
    .kernel_load = gpu_cuda_kernel_load,
    .kernel_run = gpu_cuda_kernel_run,
    .peer_can = cuda_peer_can,
    .peer_enable = cuda_peer_enable,
    .link = cuda_link,
};

const char *gpu_cuda_code_name(struct kvx_gpu *gpu, int code)
{
	const char *name = NULL;

	if (calls_of(gpu)->error_name(code, &name) != 0 || name == NULL)
		return "unknown CUDA error";
	return name;
}

static int cuda_start(struct cuda *cuda, struct kvx_why *why)
{
	int n = 0;
	int code = cuda->calls.init(0);

	if (code == 0)
		code = cuda->calls.device_count(&n);
	if (code == 100 || (code == 0 && n == 0))
		return kvx_why(why, -ENODEV, "%s has no device that this process may use",
			       cuda->gpu.library);
	if (code != 0)
		return kvx_why(why, gpu_err(code), "%s does not start: %s (%d): see nvidia-smi",
			       cuda->gpu.library, gpu_cuda_code_name(&cuda->gpu, code), code);
	if (cuda->calls.copy_batch_13 != NULL || cuda->calls.copy_batch_12 != NULL)
		cuda->gpu.caps |= KVX_GPU_CAP_BATCH;
	if (cuda->calls.module_load != NULL && cuda->calls.launch != NULL)
		cuda->gpu.caps |= KVX_GPU_CAP_KERNEL;
	if (cuda->calls.range_handle != NULL)
		cuda->gpu.caps |= KVX_GPU_CAP_DMABUF;
	return 0;
}

int gpu_cuda_open(const struct kvx_gpu_find *find, struct kvx_gpu **out_gpu, struct kvx_why *why)
{
	static const char *const names[] = {"libcuda.so.1", NULL};
	static const char *const dirs[] = {"/usr/local/nvidia/lib64", NULL};
	const struct gpu_library library = {names, dirs};
	struct cuda *cuda = calloc(1, sizeof(*cuda));

	if (cuda == NULL)
		return kvx_why(why, -ENOMEM, "no memory for the GPU runtime's table");
	cuda->gpu.ops = &cuda_ops;
	int err = -ENOENT;
	void *handle =
	    gpu_library_open(&library, find, cuda->gpu.library, sizeof(cuda->gpu.library), why);
	if (handle == NULL)
		goto err_free;
	err = gpu_symbols_load(handle, cuda_symbols, sizeof(cuda_symbols) / sizeof(cuda_symbols[0]),
			       &cuda->calls, cuda->gpu.library, why);
	if (err == 0)
		err = cuda_start(cuda, why);
	if (err < 0)
		goto err_free;
	*out_gpu = &cuda->gpu;
	return 0;

err_free:
	free(cuda);
	return err;
}
