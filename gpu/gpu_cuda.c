/* The GPU runtime table on CUDA, by its driver API alone: libcuda.so.1 is there wherever an NVIDIA
 * driver is, its calls keep their form, and no toolkit is needed. What is declared here follows
 * cuda.h of CUDA 13.0; the call that has two forms (batched copies, 12.8 and 13) is taken in
 * either. Each device is used by its primary context, which engines' runtimes use, too. Any thread.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/gpu_priv.h"

/* cuda.h */
enum {
	ATTR_UNITS = 16,
	ATTR_HOST_POINTER = 91, /* ..._CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM */
	ATTR_DMABUF = 124,
	POINTER_IPC_CAPABLE = 10,
	MEMORY_DEVICE = 2,
	MEMORY_UNIFIED = 4,
};

struct copy_2d { /* CUDA_MEMCPY2D */
	size_t src_x, src_y;
	unsigned src_type;
	const void *src_host;
	uint64_t src_device;
	void *src_array;
	size_t src_pitch;
	size_t dst_x, dst_y;
	unsigned dst_type;
	void *dst_host;
	uint64_t dst_device;
	void *dst_array;
	size_t dst_pitch;
	size_t width, height;
};
_Static_assert(sizeof(struct copy_2d) == 128, "as cuda.h has it");

struct cuda_calls {
	struct gpu_queue_calls queue; /* first: see struct gpu_adapter */
	int (*init)(unsigned flags);
	int (*driver_version)(int *version);
	int (*device_count)(int *n);
	int (*device_get)(int *dev, int ordinal);
	int (*device_name)(char *name, int len, int dev);
	int (*device_uuid)(char uuid[KVX_GPU_UUID_BYTES], int dev);
	int (*device_pci)(char *pci, int len, int dev);
	int (*device_mem)(size_t *bytes, int dev);
	int (*device_attr)(int *value, int attr, int dev);
	int (*ctx_retain)(void **ctx, int dev);
	int (*ctx_release)(int dev);
	int (*ctx_reset)(int dev);
	int (*ctx_set)(void *ctx);
	int (*ctx_get)(void **ctx);
	int (*mem_alloc)(uint64_t *addr, size_t bytes);
	int (*mem_free)(uint64_t addr);
	int (*host_alloc)(void **addr, size_t bytes, unsigned flags);
	int (*host_free)(void *addr);
	int (*host_register)(void *addr, size_t bytes, unsigned flags);
	int (*host_unregister)(void *addr);
	int (*range)(uint64_t *base, size_t *bytes, uint64_t addr);
	int (*pointer_attr)(void *value, int attr, uint64_t addr);
	int (*ipc_get)(struct gpu_ipc_handle *ipc, uint64_t addr);
	int (*ipc_open)(uint64_t *addr, struct gpu_ipc_handle ipc, unsigned flags);
	int (*ipc_close)(uint64_t addr);
	int (*copy)(uint64_t dst, uint64_t src, size_t bytes, void *stream);
	int (*copy_2d)(const struct copy_2d *copy, void *stream);
	int (*peer_can)(int *can, int dev, int peer);
	int (*peer_enable)(void *peer_ctx, unsigned flags);
	int (*error_name)(int code, const char **name);
	/* NULL where the driver has none */
	int (*copy_batch_13)(uint64_t *dsts, uint64_t *srcs, size_t *lens, size_t n,
			     struct gpu_copy_attributes *attrs, size_t *attr_starts, size_t n_attrs,
			     void *stream);
	int (*copy_batch_12)(uint64_t *dsts, uint64_t *srcs, size_t *lens, size_t n,
			     struct gpu_copy_attributes *attrs, size_t *attr_starts, size_t n_attrs,
			     size_t *failed, void *stream);
	int (*range_handle)(void *out_handle, uint64_t addr, size_t bytes, int type,
			    unsigned long long flags);
	int (*vmm_retain)(unsigned long long *out_handle, void *addr);
	int (*vmm_release)(unsigned long long handle);
	int (*module_load)(void **module, const void *image);
	int (*module_function)(void **function, void *module, const char *name);
	int (*launch)(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
		      unsigned by, unsigned bz, unsigned shared_bytes, void *stream, void **params,
		      void **extra);
};

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
    MAY(copy_batch_13, "cuMemcpyBatchAsync_v2"),
    MAY(copy_batch_12, "cuMemcpyBatchAsync"),
    MAY(range_handle, "cuMemGetHandleForAddressRange"),
    MAY(vmm_retain, "cuMemRetainAllocationHandle"),
    MAY(vmm_release, "cuMemRelease"),
    MAY(module_load, "cuModuleLoadData"),
    MAY(module_function, "cuModuleGetFunction"),
    MAY(launch, "cuLaunchKernel"),
};

struct cuda {
	struct kvx_gpu gpu;
	struct cuda_calls calls;
	_Atomic(void *) ctx[KVX_GPU_MAX]; /* primary contexts; NULL: not open */
	_Atomic unsigned n_open[KVX_GPU_MAX];
};

_Static_assert(offsetof(struct cuda, calls.queue) == offsetof(struct gpu_adapter, queue),
	       "it begins as every adapter");

static struct cuda *cuda_of(struct kvx_gpu *gpu)
{
	return (struct cuda *)gpu; /* its first member */
}

static const struct cuda_calls *calls_of(struct kvx_gpu *gpu)
{
	return &cuda_of(gpu)->calls;
}

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
	int code = calls_of(gpu)->device_get(&dev, device);

	if (code == 0)
		code = calls_of(gpu)->ctx_reset(dev);
	return gpu_err(code);
}

/* ---- memory */

static int cuda_mem_alloc(struct kvx_gpu *gpu, uint64_t bytes, uint64_t *out_addr)
{
	return gpu_err(calls_of(gpu)->mem_alloc(out_addr, bytes));
}

static int cuda_mem_free(struct kvx_gpu *gpu, uint64_t addr)
{
	return gpu_err(calls_of(gpu)->mem_free(addr));
}

static int cuda_host_alloc(struct kvx_gpu *gpu, uint64_t bytes, void **out_addr)
{
	return gpu_err(
	    calls_of(gpu)->host_alloc(out_addr, bytes, GPU_HOST_PORTABLE | GPU_HOST_MAPPED));
}

static int cuda_host_free(struct kvx_gpu *gpu, void *addr)
{
	return gpu_err(calls_of(gpu)->host_free(addr));
}

static int cuda_host_pin(struct kvx_gpu *gpu, void *addr, uint64_t bytes)
{
	return gpu_err(
	    calls_of(gpu)->host_register(addr, bytes, GPU_HOST_PORTABLE | GPU_HOST_MAPPED));
}

static int cuda_host_unpin(struct kvx_gpu *gpu, void *addr)
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

static int cuda_owner(struct kvx_gpu *gpu, uint64_t addr, int *out_device)
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

static int cuda_range(struct kvx_gpu *gpu, uint64_t addr, struct kvx_gpu_range *out)
{
	const struct cuda_calls *calls = calls_of(gpu);
	struct kvx_gpu_range range = {.device = -1};
	size_t bytes = 0;

	int err = cuda_owner(gpu, addr, &range.device);
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

static int cuda_ipc_export(struct kvx_gpu *gpu, uint64_t base, uint8_t out_ipc[KVX_GPU_IPC_BYTES])
{
	struct gpu_ipc_handle ipc;
	int code = calls_of(gpu)->ipc_get(&ipc, base);

	if (code != 0)
		return gpu_err(code);
	memcpy(out_ipc, ipc.bytes, sizeof(ipc.bytes));
	return 0;
}

static int cuda_ipc_open(struct kvx_gpu *gpu, const uint8_t bytes[KVX_GPU_IPC_BYTES],
			 uint64_t *out_addr)
{
	struct gpu_ipc_handle ipc;

	memcpy(ipc.bytes, bytes, sizeof(ipc.bytes));
	return gpu_err(calls_of(gpu)->ipc_open(out_addr, ipc, GPU_IPC_LAZY_PEER_ACCESS));
}

static int cuda_ipc_close(struct kvx_gpu *gpu, uint64_t addr)
{
	return gpu_err(calls_of(gpu)->ipc_close(addr));
}

static int cuda_dmabuf_export(struct kvx_gpu *gpu, uint64_t addr, uint64_t bytes, int *out_fd,
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

static int cuda_copy(struct kvx_gpu *gpu, uint64_t dst, uint64_t src, uint64_t bytes, void *stream)
{
	return gpu_err(calls_of(gpu)->copy(dst, src, bytes, stream));
}

static int cuda_copy_rect(struct kvx_gpu *gpu, const struct kvx_gpu_rect *rect, void *stream)
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

static int cuda_copy_batch(struct kvx_gpu *gpu, uint64_t *dsts, uint64_t *srcs, size_t *lens,
			   size_t n, void *stream)
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

static int cuda_kernel_load(struct kvx_gpu *gpu, void **out_kernel)
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

static int cuda_kernel_run(struct kvx_gpu *gpu, void *kernel, uint64_t pieces, uint32_t n,
			   void *stream)
{
	void *params[] = {&pieces, &n};

	return gpu_err(calls_of(gpu)->launch(kernel, n, 1, 1, GPU_KERNEL_THREADS, 1, 1, 0, stream,
					     params, NULL));
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
    .mem_alloc = cuda_mem_alloc,
    .mem_free = cuda_mem_free,
    .host_alloc = cuda_host_alloc,
    .host_free = cuda_host_free,
    .host_pin = cuda_host_pin,
    .host_unpin = cuda_host_unpin,
    .owner = cuda_owner,
    .range = cuda_range,
    .ipc_export = cuda_ipc_export,
    .ipc_open = cuda_ipc_open,
    .ipc_close = cuda_ipc_close,
    .dmabuf_export = cuda_dmabuf_export,
    .stream_create = gpu_stream_create,
    .stream_destroy = gpu_stream_destroy,
    .stream_sync = gpu_stream_sync,
    .event_create = gpu_event_create,
    .event_destroy = gpu_event_destroy,
    .event_record = gpu_event_record,
    .event_query = gpu_event_query,
    .event_open = gpu_event_open,
    .copy = cuda_copy,
    .copy_rect = cuda_copy_rect,
    .copy_batch = cuda_copy_batch,
    .kernel_load = cuda_kernel_load,
    .kernel_run = cuda_kernel_run,
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
