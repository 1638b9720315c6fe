/* The GPU runtime table on HIP (ROCm 5.2 and later). What is declared here follows
 * hip_runtime_api.h of ROCm 5.2 and 7.1, which agree on all of it but the numbers of memory types;
 * what only later ones have is optional. A dma-buf is had from HIP or, before it could, from the
 * HSA runtime below it. The gather kernel is compiled by hiprtc, where that is installed. Any
 * thread. */
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/gpu_priv.h"

/* hip_runtime_api.h */
enum {
	ATTR_UNITS = 63,
	MEMORY_DEVICE_5 = 1, /* before 6.0 */
	MEMORY_DEVICE = 2,
	VERSION_6 = 60000000,
	COPY_DEFAULT = 4,
	LINK_PCIE = 2, /* HSA_AMD_LINK_INFO_TYPE_* */
	LINK_XGMI = 4,
};

struct hip_calls {
	struct gpu_queue_calls queue; /* first: see struct gpu_adapter */
	int (*init)(unsigned flags);
	int (*version)(int *version);
	int (*device_count)(int *n);
	int (*device_name)(char *name, int len, int dev);
	int (*device_pci)(char *pci, int len, int dev);
	int (*device_mem)(size_t *bytes, int dev);
	int (*device_attr)(int *value, int attr, int dev);
	int (*device_set)(int dev);
	int (*device_current)(int *dev);
	int (*device_reset)(void);
	int (*mem_alloc)(void **addr, size_t bytes);
	int (*mem_free)(void *addr);
	int (*host_alloc)(void **addr, size_t bytes, unsigned flags);
	int (*host_free)(void *addr);
	int (*host_register)(void *addr, size_t bytes, unsigned flags);
	int (*host_unregister)(void *addr);
	int (*range)(void **base, size_t *bytes, void *addr);
	int (*pointer_attr)(void *value, int attr, void *addr);
	int (*ipc_get)(struct gpu_ipc_handle *ipc, void *addr);
	int (*ipc_open)(void **addr, struct gpu_ipc_handle ipc, unsigned flags);
	int (*ipc_close)(void *addr);
	int (*copy)(void *dst, const void *src, size_t bytes, int kind, void *stream);
	int (*copy_2d)(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
		       size_t height, int kind, void *stream);
	int (*peer_can)(int *can, int dev, int peer);
	int (*peer_enable)(int peer, unsigned flags);
	const char *(*error_name)(int code);
	/* NULL where the runtime has none */
	int (*device_uuid)(char uuid[KVX_GPU_UUID_BYTES], int dev);
	int (*link)(int dev, int peer, uint32_t *type, uint32_t *hops);
	int (*copy_batch)(void **dsts, void **srcs, size_t *lens, size_t n,
			  struct gpu_copy_attributes *attrs, size_t *attr_starts, size_t n_attrs,
			  size_t *failed, void *stream);
	int (*range_handle)(void *out_handle, void *addr, size_t bytes, int type,
			    unsigned long long flags);
	int (*vmm_retain)(void **out_handle, void *addr);
	int (*vmm_release)(void *handle);
	int (*module_load)(void **module, const void *image);
	int (*module_function)(void **function, void *module, const char *name);
	int (*launch)(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
		      unsigned by, unsigned bz, unsigned shared_bytes, void *stream, void **params,
		      void **extra);
};

/* Of libraries beside it; all or nothing. */
struct hiprtc_calls {
	int (*create)(void **program, const char *source, const char *name, int n_headers,
		      const char *const *headers, const char *const *header_names);
	int (*compile)(void *program, int n_options, const char *const *options);
	int (*code_bytes)(void *program, size_t *bytes);
	int (*code)(void *program, char *code);
	int (*destroy)(void **program);
};
struct hsa_calls {
	int (*export_dmabuf)(const void *addr, size_t bytes, int *fd, uint64_t *offset);
};

#define NEED(field, name)                                                                          \
	{                                                                                          \
		name, offsetof(struct hip_calls, field), true, NULL                                \
	}
#define MAY(field, name)                                                                           \
	{                                                                                          \
		name, offsetof(struct hip_calls, field), false, NULL                               \
	}

static const struct gpu_symbol hip_symbols[] = {
    NEED(init, "hipInit"),
    NEED(version, "hipRuntimeGetVersion"),
    NEED(device_count, "hipGetDeviceCount"),
    NEED(device_name, "hipDeviceGetName"),
    NEED(device_pci, "hipDeviceGetPCIBusId"),
    NEED(device_mem, "hipDeviceTotalMem"),
    NEED(device_attr, "hipDeviceGetAttribute"),
    NEED(device_set, "hipSetDevice"),
    NEED(device_current, "hipGetDevice"),
    NEED(device_reset, "hipDeviceReset"),
    NEED(mem_alloc, "hipMalloc"),
    NEED(mem_free, "hipFree"),
    NEED(host_alloc, "hipHostMalloc"),
    NEED(host_free, "hipHostFree"),
    NEED(host_register, "hipHostRegister"),
    NEED(host_unregister, "hipHostUnregister"),
    NEED(range, "hipMemGetAddressRange"),
    NEED(pointer_attr, "hipPointerGetAttribute"),
    NEED(ipc_get, "hipIpcGetMemHandle"),
    NEED(ipc_open, "hipIpcOpenMemHandle"),
    NEED(ipc_close, "hipIpcCloseMemHandle"),
    NEED(queue.ipc_open_event, "hipIpcOpenEventHandle"),
    NEED(copy, "hipMemcpyAsync"),
    NEED(copy_2d, "hipMemcpy2DAsync"),
    NEED(queue.stream_create, "hipStreamCreateWithFlags"),
    NEED(queue.stream_destroy, "hipStreamDestroy"),
    NEED(queue.stream_sync, "hipStreamSynchronize"),
    NEED(queue.event_create, "hipEventCreateWithFlags"),
    NEED(queue.event_destroy, "hipEventDestroy"),
    NEED(queue.event_record, "hipEventRecord"),
    NEED(queue.event_query, "hipEventQuery"),
    NEED(peer_can, "hipDeviceCanAccessPeer"),
    NEED(peer_enable, "hipDeviceEnablePeerAccess"),
    NEED(error_name, "hipGetErrorName"),
    MAY(device_uuid, "hipDeviceGetUuid"),
    MAY(link, "hipExtGetLinkTypeAndHopCount"),
    MAY(copy_batch, "hipMemcpyBatchAsync"),
    MAY(range_handle, "hipMemGetHandleForAddressRange"),
    MAY(vmm_retain, "hipMemRetainAllocationHandle"),
    MAY(vmm_release, "hipMemRelease"),
    MAY(module_load, "hipModuleLoadData"),
    MAY(module_function, "hipModuleGetFunction"),
    MAY(launch, "hipModuleLaunchKernel"),
};

#define NEED_RTC(field, name)                                                                      \
	{                                                                                          \
		name, offsetof(struct hiprtc_calls, field), true, NULL                             \
	}
static const struct gpu_symbol hiprtc_symbols[] = {
    NEED_RTC(create, "hiprtcCreateProgram"),   NEED_RTC(compile, "hiprtcCompileProgram"),
    NEED_RTC(code_bytes, "hiprtcGetCodeSize"), NEED_RTC(code, "hiprtcGetCode"),
    NEED_RTC(destroy, "hiprtcDestroyProgram"),
};
static const struct gpu_symbol hsa_symbols[] = {
    {"hsa_amd_portable_export_dmabuf", offsetof(struct hsa_calls, export_dmabuf), true, NULL},
};

struct hip {
	struct kvx_gpu gpu;
	struct hip_calls calls;
	struct hiprtc_calls rtc;
	struct hsa_calls hsa;
	bool have_rtc, have_hsa;
	unsigned memory_device; /* this version's number for memory of a device */
};

_Static_assert(offsetof(struct hip, calls.queue) == offsetof(struct gpu_adapter, queue),
	       "it begins as every adapter");

static struct hip *hip_of(struct kvx_gpu *gpu)
{
	return (struct hip *)gpu; /* its first member */
}

static const struct hip_calls *calls_of(struct kvx_gpu *gpu)
{
	return &hip_of(gpu)->calls;
}

static void *ptr(uint64_t addr)
{
	return (void *)(uintptr_t)addr;
}

/* ---- devices */

static int hip_version(struct kvx_gpu *gpu, int *out_version)
{
	return gpu_err(calls_of(gpu)->version(out_version));
}

static int hip_count(struct kvx_gpu *gpu, int *out_n)
{
	return gpu_err(calls_of(gpu)->device_count(out_n));
}

static int hip_describe(struct kvx_gpu *gpu, int device, struct kvx_gpu_device *out)
{
	const struct hip_calls *calls = calls_of(gpu);
	struct kvx_gpu_device d = {.id.pci = ""};
	char pci[32] = "";
	size_t bytes = 0;
	int units = 0;

	int code = calls->device_name(d.name, sizeof(d.name), device);
	if (code == 0)
		code = calls->device_mem(&bytes, device);
	if (code == 0)
		code = calls->device_pci(pci, sizeof(pci), device);
	if (code == 0)
		code = calls->device_attr(&units, ATTR_UNITS, device);
	if (code != 0)
		return gpu_err(code);
	if (calls->device_uuid == NULL || calls->device_uuid((char *)d.id.uuid, device) != 0)
		memset(d.id.uuid, 0, sizeof(d.id.uuid));
	kvx_gpu_pci_normalise(pci, d.id.pci);
	d.total_bytes = bytes;
	d.n_units = units > 0 ? (unsigned)units : 1;
	d.dmabuf = (gpu->caps & KVX_GPU_CAP_DMABUF) != 0;
	*out = d;
	return 0;
}

static int hip_open_device(struct kvx_gpu *gpu, int device)
{
	if (device < 0 || device >= KVX_GPU_MAX)
		return -EINVAL;
	return gpu_err(calls_of(gpu)->device_set(device));
}

/* HIP keeps no count of who uses a device in a process. */
static int hip_close_device(struct kvx_gpu *gpu, int device)
{
	return 0;
}

static int hip_bind(struct kvx_gpu *gpu, int device, struct kvx_gpu_bound *out_before)
{
	const struct hip_calls *calls = calls_of(gpu);
	int before = 0;

	if (out_before != NULL) {
		int code = calls->device_current(&before);
		if (code != 0)
			return gpu_err(code);
		*out_before = (struct kvx_gpu_bound){.device = before};
	}
	return gpu_err(calls->device_set(device));
}

static void hip_unbind(struct kvx_gpu *gpu, const struct kvx_gpu_bound *before)
{
	calls_of(gpu)->device_set(before->device);
}

static int hip_reset(struct kvx_gpu *gpu, int device)
{
	int code = calls_of(gpu)->device_set(device);

	if (code == 0)
		code = calls_of(gpu)->device_reset();
	return gpu_err(code);
}

/* ---- memory */

static int hip_mem_alloc(struct kvx_gpu *gpu, uint64_t bytes, uint64_t *out_addr)
{
	void *addr = NULL;
	int code = calls_of(gpu)->mem_alloc(&addr, bytes);

	if (code != 0)
		return gpu_err(code);
	*out_addr = (uintptr_t)addr;
	return 0;
}

static int hip_mem_free(struct kvx_gpu *gpu, uint64_t addr)
{
	return gpu_err(calls_of(gpu)->mem_free(ptr(addr)));
}

static int hip_host_alloc(struct kvx_gpu *gpu, uint64_t bytes, void **out_addr)
{
	return gpu_err(
	    calls_of(gpu)->host_alloc(out_addr, bytes, GPU_HOST_PORTABLE | GPU_HOST_MAPPED));
}

static int hip_host_free(struct kvx_gpu *gpu, void *addr)
{
	return gpu_err(calls_of(gpu)->host_free(addr));
}

static int hip_host_pin(struct kvx_gpu *gpu, void *addr, uint64_t bytes)
{
	return gpu_err(
	    calls_of(gpu)->host_register(addr, bytes, GPU_HOST_PORTABLE | GPU_HOST_MAPPED));
}

static int hip_host_unpin(struct kvx_gpu *gpu, void *addr)
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

static int hip_owner(struct kvx_gpu *gpu, uint64_t addr, int *out_device)
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

static int hip_range(struct kvx_gpu *gpu, uint64_t addr, struct kvx_gpu_range *out)
{
	const struct hip_calls *calls = calls_of(gpu);
	struct kvx_gpu_range range = {.device = -1};
	void *base = NULL;
	size_t bytes = 0;

	int err = hip_owner(gpu, addr, &range.device);
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

static int hip_ipc_export(struct kvx_gpu *gpu, uint64_t base, uint8_t out_ipc[KVX_GPU_IPC_BYTES])
{
	struct gpu_ipc_handle ipc;
	int code = calls_of(gpu)->ipc_get(&ipc, ptr(base));

	if (code != 0)
		return gpu_err(code);
	memcpy(out_ipc, ipc.bytes, sizeof(ipc.bytes));
	return 0;
}

static int hip_ipc_open(struct kvx_gpu *gpu, const uint8_t bytes[KVX_GPU_IPC_BYTES],
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

static int hip_ipc_close(struct kvx_gpu *gpu, uint64_t addr)
{
	return gpu_err(calls_of(gpu)->ipc_close(ptr(addr)));
}

static int hip_dmabuf_export(struct kvx_gpu *gpu, uint64_t addr, uint64_t bytes, int *out_fd,
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

static int hip_copy(struct kvx_gpu *gpu, uint64_t dst, uint64_t src, uint64_t bytes, void *stream)
{
	return gpu_err(calls_of(gpu)->copy(ptr(dst), ptr(src), bytes, COPY_DEFAULT, stream));
}

static int hip_copy_rect(struct kvx_gpu *gpu, const struct kvx_gpu_rect *rect, void *stream)
{
	return gpu_err(calls_of(gpu)->copy_2d(ptr(rect->dst), rect->dst_pitch, ptr(rect->src),
					      rect->src_pitch, rect->width, rect->height,
					      COPY_DEFAULT, stream));
}

_Static_assert(sizeof(void *) == sizeof(uint64_t), "addresses are handed over as they are");

static int hip_copy_batch(struct kvx_gpu *gpu, uint64_t *dsts, uint64_t *srcs, size_t *lens,
			  size_t n, void *stream)
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

static int hip_kernel_load(struct kvx_gpu *gpu, void **out_kernel)
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

static int hip_kernel_run(struct kvx_gpu *gpu, void *kernel, uint64_t pieces, uint32_t n,
			  void *stream)
{
	void *params[] = {&pieces, &n};

	return gpu_err(calls_of(gpu)->launch(kernel, n, 1, 1, GPU_KERNEL_THREADS, 1, 1, 0, stream,
					     params, NULL));
}

/* ---- peers */

static int hip_peer_can(struct kvx_gpu *gpu, int device, int peer, bool *out_can)
{
	int can = 0;
	int code = calls_of(gpu)->peer_can(&can, device, peer);

	if (code != 0)
		return gpu_err(code);
	*out_can = can != 0;
	return 0;
}

static int hip_peer_enable(struct kvx_gpu *gpu, int peer)
{
	int code = calls_of(gpu)->peer_enable(peer, 0);

	return code == GPU_PEER_ENABLED_ALREADY ? 0 : gpu_err(code);
}

static int hip_link(struct kvx_gpu *gpu, int device, int peer, enum kvx_gpu_link *out_link,
		    unsigned *out_hops)
{
	uint32_t type = 0, hops = 0;

	if (calls_of(gpu)->link == NULL)
		return -EOPNOTSUPP;
	int code = calls_of(gpu)->link(device, peer, &type, &hops);
	if (code != 0)
		return gpu_err(code);
	*out_link = type == LINK_XGMI   ? KVX_GPU_LINK_XGMI
		    : type == LINK_PCIE ? KVX_GPU_LINK_PCIE
					: KVX_GPU_LINK_UNKNOWN;
	*out_hops = hops;
	return 0;
}

static const struct kvx_gpu_ops hip_ops = {
    .kind = KVX_GPU_HIP,
    .name = "hip",
    .version = hip_version,
    .count = hip_count,
    .describe = hip_describe,
    .open = hip_open_device,
    .close = hip_close_device,
    .bind = hip_bind,
    .unbind = hip_unbind,
    .reset = hip_reset,
    .mem_alloc = hip_mem_alloc,
    .mem_free = hip_mem_free,
    .host_alloc = hip_host_alloc,
    .host_free = hip_host_free,
    .host_pin = hip_host_pin,
    .host_unpin = hip_host_unpin,
    .owner = hip_owner,
    .range = hip_range,
    .ipc_export = hip_ipc_export,
    .ipc_open = hip_ipc_open,
    .ipc_close = hip_ipc_close,
    .dmabuf_export = hip_dmabuf_export,
    .stream_create = gpu_stream_create,
    .stream_destroy = gpu_stream_destroy,
    .stream_sync = gpu_stream_sync,
    .event_create = gpu_event_create,
    .event_destroy = gpu_event_destroy,
    .event_record = gpu_event_record,
    .event_query = gpu_event_query,
    .event_open = gpu_event_open,
    .copy = hip_copy,
    .copy_rect = hip_copy_rect,
    .copy_batch = hip_copy_batch,
    .kernel_load = hip_kernel_load,
    .kernel_run = hip_kernel_run,
    .peer_can = hip_peer_can,
    .peer_enable = hip_peer_enable,
    .link = hip_link,
};

const char *gpu_hip_code_name(struct kvx_gpu *gpu, int code)
{
	const char *name = calls_of(gpu)->error_name(code);

	return name != NULL ? name : "unknown HIP error";
}

static const char *const rocm_dirs[] = {"/opt/rocm/lib", NULL};

/* What is beside HIP: without it, less is possible. */
static void hip_find_more(struct hip *hip, const struct kvx_gpu_find *find, void *library)
{
	static const char *const rtc_names[] = {"libhiprtc.so.7", "libhiprtc.so.6",
						"libhiprtc.so.5", NULL};
	static const char *const hsa_names[] = {"libhsa-runtime64.so.1", NULL};
	const struct gpu_library rtc = {rtc_names, rocm_dirs}, hsa = {hsa_names, rocm_dirs};
	char file[sizeof(hip->gpu.library)];
	void *handle =
	    find->loaded_only ? NULL : gpu_library_open(&rtc, find, file, sizeof(file), NULL);

	/* Some versions have hiprtc inside of HIP. */
	hip->have_rtc = gpu_symbols_load(handle != NULL ? handle : library, hiprtc_symbols,
					 sizeof(hiprtc_symbols) / sizeof(hiprtc_symbols[0]),
					 &hip->rtc, file, NULL) == 0;
	handle = gpu_library_open(&hsa, find, file, sizeof(file), NULL);
	hip->have_hsa =
	    handle != NULL && gpu_symbols_load(handle, hsa_symbols, 1, &hip->hsa, file, NULL) == 0;
}

static int hip_start(struct hip *hip, struct kvx_why *why)
{
	const struct hip_calls *calls = &hip->calls;
	int n = 0, version = 0;
	int code = calls->init(0);

	if (code == 0)
		code = calls->device_count(&n);
	if (code == 100 || (code == 0 && n == 0))
		return kvx_why(why, -ENODEV,
			       "%s has no device that this process may use: is it in the groups "
			       "render and video?",
			       hip->gpu.library);
	if (code == 0)
		code = calls->version(&version);
	if (code != 0)
		return kvx_why(why, gpu_err(code), "%s does not start: %s (%d): see rocminfo",
			       hip->gpu.library, gpu_hip_code_name(&hip->gpu, code), code);
	hip->memory_device = version < VERSION_6 ? MEMORY_DEVICE_5 : MEMORY_DEVICE;
	if (calls->copy_batch != NULL)
		hip->gpu.caps |= KVX_GPU_CAP_BATCH;
	if (hip->have_rtc && calls->module_load != NULL && calls->module_function != NULL &&
	    calls->launch != NULL)
		hip->gpu.caps |= KVX_GPU_CAP_KERNEL;
	if (calls->range_handle != NULL || hip->have_hsa)
		hip->gpu.caps |= KVX_GPU_CAP_DMABUF;
	return 0;
}

int gpu_hip_open(const struct kvx_gpu_find *find, struct kvx_gpu **out_gpu, struct kvx_why *why)
{
	static const char *const names[] = {"libamdhip64.so.7", "libamdhip64.so.6",
					    "libamdhip64.so.5", NULL};
	const struct gpu_library library = {names, rocm_dirs};
	struct hip *hip = calloc(1, sizeof(*hip));

	if (hip == NULL)
		return kvx_why(why, -ENOMEM, "no memory for the GPU runtime's table");
	hip->gpu.ops = &hip_ops;
	int err = -ENOENT;
	void *handle =
	    gpu_library_open(&library, find, hip->gpu.library, sizeof(hip->gpu.library), why);
	if (handle == NULL)
		goto err_free;
	err = gpu_symbols_load(handle, hip_symbols, sizeof(hip_symbols) / sizeof(hip_symbols[0]),
			       &hip->calls, hip->gpu.library, why);
	if (err < 0)
		goto err_free;
	hip_find_more(hip, find, handle);
	err = hip_start(hip, why);
	if (err < 0)
		goto err_free;
	*out_gpu = &hip->gpu;
	return 0;

err_free:
	free(hip);
	return err;
}
