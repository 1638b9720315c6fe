/* The GPU runtime table on HIP (ROCm 5.2 and later). What is declared here follows
 * hip_runtime_api.h of ROCm 5.2 and 7.1, which agree on all of it but the numbers of memory types;
 * what only later ones have is optional. A dma-buf is had from HIP or, before it could, from the
 * HSA runtime below it. The gather kernel is compiled by hiprtc, where that is installed. Any
 * thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/gpu_hip_priv.h"

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
    MAY(queue.ipc_get_event, "hipIpcGetEventHandle"),
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
	const struct hip_calls *calls = calls_of(gpu);
	int now = -1;
	int code = calls->device_set(device); /* which may also tell an error of an earlier call */

	if (code != 0 && (calls->device_current(&now) != 0 || now != device))
		return gpu_err(code);
	return gpu_err(calls->device_reset());
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
    .mem_alloc = gpu_hip_mem_alloc,
    .mem_free = gpu_hip_mem_free,
    .host_alloc = gpu_hip_host_alloc,
    .host_free = gpu_hip_host_free,
    .host_pin = gpu_hip_host_pin,
    .host_unpin = gpu_hip_host_unpin,
    .owner = gpu_hip_owner,
    .range = gpu_hip_range,
    .ipc_export = gpu_hip_ipc_export,
    .ipc_open = gpu_hip_ipc_open,
    .ipc_close = gpu_hip_ipc_close,
    .dmabuf_export = gpu_hip_dmabuf_export,
    .stream_create = gpu_stream_create,
    .stream_destroy = gpu_stream_destroy,
    .stream_sync = gpu_stream_sync,
    .event_create = gpu_event_create,
    .event_destroy = gpu_event_destroy,
    .event_record = gpu_event_record,
    .event_query = gpu_event_query,
    .event_export = gpu_event_export,
    .event_open = gpu_event_open,
    .copy = gpu_hip_copy,
    .copy_rect = gpu_hip_copy_rect,
    .copy_batch = gpu_hip_copy_batch,
    .kernel_load = gpu_hip_kernel_load,
    .kernel_run = gpu_hip_kernel_run,
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
