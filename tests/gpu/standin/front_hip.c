/* libamdhip64.so.N of the GPU stand-in: HIP's functions as ROCm N has them (GS_HIP_MAJOR, 5 to 7),
 * with what differs between them: the numbers of memory types, and what is not there yet in an
 * older one. Handles are the stand-in's own. */
#include <stdio.h>
#include <string.h>

#include "gs.h"

struct ipc_handle {
	uint8_t bytes[GS_HANDLE_BYTES];
};
enum { KIND_DEFAULT = 4 };
enum { FLAG_EVENT_NO_TIMING = 2, FLAG_EVENT_IPC = 4 };
#if GS_HIP_MAJOR >= 6
enum { TYPE_UNKNOWN = 0, TYPE_HOST = 1, TYPE_DEVICE = 2 };
#else
enum { TYPE_HOST = 0, TYPE_DEVICE = 1 };
#endif

/* hipPointerAttribute_t */
struct pointer_attributes {
	int type, device;
	void *device_pointer, *host_pointer;
	int managed;
	unsigned flags;
};

__attribute__((constructor)) static void front_init(void)
{
	gs_set_flavor(GS_HIP);
}

static __thread int last_error;

static int keep(int err)
{
	if (err != 0 && err != STANDIN_NOT_READY)
		last_error = err;
	return err;
}

int hipGetLastError(void)
{
	int err = last_error;

	last_error = 0;
	return err;
}

int hipInit(unsigned flags)
{
	return flags != 0 ? STANDIN_INVALID_VALUE : gs_enter(STANDIN_INIT);
}

int hipRuntimeGetVersion(int *version)
{
#if GS_HIP_MAJOR >= 7
	*version = 70125424;
#elif GS_HIP_MAJOR == 6
	*version = 60240093;
#else
	*version = 50221153;
#endif
	return 0;
}

int hipDriverGetVersion(int *version)
{
	return hipRuntimeGetVersion(version);
}

int hipGetDeviceCount(int *n)
{
	return keep(gs_device_count(n));
}

int hipDeviceGetName(char *name, int len, int dev)
{
	size_t bytes;
	int err = gs_device_bytes(dev, &bytes);

	if (err == 0)
		snprintf(name, (size_t)len, "GPU stand-in (HIP)");
	return keep(err);
}

int hipDeviceGetPCIBusId(char *pci, int len, int dev)
{
	return keep(gs_device_pci(dev, pci, (size_t)len));
}

#if GS_HIP_MAJOR >= 6
int hipDeviceGetUuid(uint8_t uuid[16], int dev)
{
	return keep(gs_device_uuid(dev, uuid));
}
#endif

int hipDeviceTotalMem(size_t *bytes, int dev)
{
	return keep(gs_device_bytes(dev, bytes));
}

int hipDeviceGetAttribute(int *value, int attr, int dev)
{
	size_t bytes;
	int err = gs_device_bytes(dev, &bytes);

	if (err != 0)
		return keep(err);
	switch (attr) {
	case 2: /* copy engines */
		return gs_device_attr(dev, GS_ATTR_COPY_ENGINES, value);
	case 23: /* compute capability 9.4 */
		*value = 9;
		return 0;
	case 61:
		*value = 4;
		return 0;
	case 63: /* multiprocessors */
		return gs_device_attr(dev, GS_ATTR_SMS, value);
	case 87: /* lanes of a wave */
		*value = 64;
		return 0;
	default:
		return keep(STANDIN_INVALID_VALUE);
	}
}

int hipSetDevice(int dev)
{
	return keep(gs_device_set(dev));
}

int hipGetDevice(int *dev)
{
	return keep(gs_device_get(dev));
}

int hipDeviceSynchronize(void)
{
	return keep(gs_device_sync());
}

int hipDeviceReset(void)
{
	int dev;
	int err = gs_device_get(&dev);

	return keep(err != 0 ? err : gs_device_reset(dev));
}

int hipMemGetInfo(size_t *free_bytes, size_t *total)
{
	return keep(gs_mem_info(free_bytes, total));
}

int hipDeviceCanAccessPeer(int *can, int dev, int peer)
{
	return keep(gs_peer_can(dev, peer, can));
}

int hipDeviceEnablePeerAccess(int peer, unsigned flags)
{
	(void)flags;
	return keep(gs_peer_enable(peer));
}

int hipDeviceDisablePeerAccess(int peer)
{
	return keep(gs_peer_disable(peer));
}

int hipExtGetLinkTypeAndHopCount(int dev, int peer, uint32_t *type, uint32_t *hops)
{
	int can = 0;
	int err = gs_peer_can(dev, peer, &can);

	if (err != 0)
		return keep(err);
	*type = can ? 4 : 2; /* xGMI, PCIe */
	*hops = can ? 1 : 2;
	return 0;
}

/* --- memory */

int hipMalloc(void **out_ptr, size_t bytes)
{
	return keep(gs_malloc(bytes, out_ptr));
}

int hipFree(void *ptr)
{
	return keep(gs_free(ptr));
}

int hipHostMalloc(void **out_ptr, size_t bytes, unsigned flags)
{
	(void)flags;
	return keep(gs_host_alloc(bytes, out_ptr));
}

int hipHostFree(void *ptr)
{
	return keep(gs_host_free(ptr));
}

int hipHostRegister(void *ptr, size_t bytes, unsigned flags)
{
	(void)flags;
	return keep(gs_host_register(ptr, bytes));
}

int hipHostUnregister(void *ptr)
{
	return keep(gs_host_unregister(ptr));
}

int hipHostGetDevicePointer(void **out_ptr, void *host, unsigned flags)
{
	(void)flags;
	return keep(gs_host_pointer(host, out_ptr));
}

int hipMemGetAddressRange(void **out_base, size_t *out_bytes, void *ptr)
{
	return keep(gs_address_range(ptr, out_base, out_bytes));
}

int hipPointerGetAttribute(void *data, int attr, void *ptr)
{
	struct gs_pointer p;
	int err = gs_pointer_info(ptr, &p);

	if (err == 0 && p.kind == GS_UNKNOWN)
		err = STANDIN_INVALID_VALUE;
	if (err != 0)
		return keep(err);
	switch (attr) {
	case 2: /* memory type */
		*(int *)data = p.kind == GS_HOST ? TYPE_HOST : TYPE_DEVICE;
		return 0;
	case 9: /* device */
		*(int *)data = p.dev;
		return 0;
	case 11: /* start and size of its allocation */
		*(void **)data = p.base;
		return 0;
	case 12:
		*(size_t *)data = p.bytes;
		return 0;
	default:
		return keep(STANDIN_INVALID_VALUE);
	}
}

int hipPointerGetAttributes(struct pointer_attributes *out, const void *ptr)
{
	struct gs_pointer p;
	int err = gs_pointer_info(ptr, &p);

	if (err == 0 && p.kind == GS_UNKNOWN)
		err = STANDIN_INVALID_VALUE;
	if (err != 0)
		return keep(err);
	*out = (struct pointer_attributes){.device = p.dev};
	out->type = p.kind == GS_HOST ? TYPE_HOST : TYPE_DEVICE;
	out->device_pointer = (void *)(uintptr_t)ptr;
	if (p.kind == GS_HOST)
		out->host_pointer = out->device_pointer;
	return 0;
}

#if GS_HIP_MAJOR >= 7
int hipMemGetHandleForAddressRange(void *handle, void *ptr, size_t bytes, int type,
				   unsigned long long flags)
{
	uint64_t offset;
	int fd;
	int err;

	(void)flags;
	if (type != 1)
		return keep(STANDIN_INVALID_VALUE);
	err = gs_dmabuf(ptr, bytes, &fd, &offset);
	if (err == 0)
		*(int *)handle = fd; /* of the whole allocation: the caller asks for its range */
	return keep(err);
}
#endif

int hipMemRetainAllocationHandle(void **handle, void *ptr)
{
	struct gs_pointer p;
	int err = gs_pointer_info(ptr, &p);

	if (err == 0 && p.kind != GS_VMM)
		err = STANDIN_INVALID_VALUE;
	if (err == 0)
		*handle = p.base;
	return keep(err);
}

int hipMemRelease(void *handle)
{
	(void)handle;
	return 0;
}

int hipIpcGetMemHandle(struct ipc_handle *handle, void *ptr)
{
	return keep(gs_ipc_get(ptr, handle->bytes));
}

int hipIpcOpenMemHandle(void **out_ptr, struct ipc_handle handle, unsigned flags)
{
	(void)flags;
	return keep(gs_ipc_open(handle.bytes, out_ptr));
}

int hipIpcCloseMemHandle(void *ptr)
{
	return keep(gs_ipc_close(ptr));
}

/* --- copies */

static enum gs_direction direction_of(int kind)
{
	return kind >= 0 && kind < KIND_DEFAULT ? (enum gs_direction)kind : GS_ANY;
}

int hipMemcpyAsync(void *dst, const void *src, size_t bytes, int kind, void *stream)
{
	struct gs_copy copy = {.dst = dst, .src = src, .bytes = bytes, .rows = 1};

	return keep(gs_copy_async(STANDIN_COPY, &copy, 1, direction_of(kind), stream));
}

int hipMemcpy(void *dst, const void *src, size_t bytes, int kind)
{
	struct gs_copy copy = {.dst = dst, .src = src, .bytes = bytes, .rows = 1};

	return keep(gs_copy_sync(&copy, direction_of(kind)));
}

int hipMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
		     size_t height, int kind, void *stream)
{
	struct gs_copy copy = {.dst = dst,
			       .src = src,
			       .bytes = width,
			       .rows = height,
			       .dst_pitch = dst_pitch,
			       .src_pitch = src_pitch};

	return keep(gs_copy_async(STANDIN_COPY_2D, &copy, 1, direction_of(kind), stream));
}

#if GS_HIP_MAJOR >= 7
int hipMemcpyBatchAsync(void **dsts, void **srcs, size_t *sizes, size_t n, void *attrs,
			size_t *attr_idxs, size_t n_attrs, size_t *fail_idx, void *stream)
{
	int err = STANDIN_INVALID_VALUE;

	if (attrs != NULL && n_attrs > 0 && attr_idxs != NULL && attr_idxs[0] == 0)
		err = gs_copy_batch((const unsigned long long *)dsts,
				    (const unsigned long long *)srcs, sizes, n, stream);
	if (err != 0 && fail_idx != NULL)
		*fail_idx = SIZE_MAX;
	return keep(err);
}
#endif

int hipMemset(void *ptr, int value, size_t bytes)
{
	return keep(gs_memset(ptr, value, bytes, NULL, 1));
}

int hipMemsetAsync(void *ptr, int value, size_t bytes, void *stream)
{
	return keep(gs_memset(ptr, value, bytes, stream, 0));
}

/* --- streams, events */

int hipStreamCreateWithFlags(void **out_stream, unsigned flags)
{
	(void)flags;
	return keep(gs_stream_create((struct gs_stream **)out_stream));
}

int hipStreamDestroy(void *stream)
{
	return keep(gs_stream_destroy(stream));
}

int hipStreamQuery(void *stream)
{
	return keep(gs_stream_query(stream));
}

int hipStreamSynchronize(void *stream)
{
	return keep(gs_stream_sync(stream));
}

int hipStreamWaitEvent(void *stream, void *event, unsigned flags)
{
	(void)flags;
	return keep(gs_stream_wait(stream, event));
}

int hipEventCreateWithFlags(void **out_event, unsigned flags)
{
	if ((flags & FLAG_EVENT_IPC) && !(flags & FLAG_EVENT_NO_TIMING))
		return keep(STANDIN_INVALID_VALUE);
	return keep(gs_event_create(flags & FLAG_EVENT_IPC ? GS_EVENT_IPC : 0,
				    (struct gs_event **)out_event));
}

int hipEventRecord(void *event, void *stream)
{
	return keep(gs_event_record(event, stream));
}

int hipEventQuery(void *event)
{
	return keep(gs_event_query(event));
}

int hipEventSynchronize(void *event)
{
	return keep(gs_event_sync(event));
}

int hipEventElapsedTime(float *ms, void *start, void *end)
{
	return keep(gs_event_elapsed(ms, start, end));
}

int hipEventDestroy(void *event)
{
	return keep(gs_event_destroy(event));
}

int hipIpcGetEventHandle(struct ipc_handle *handle, void *event)
{
	return keep(gs_ipc_event_get(event, handle->bytes));
}

int hipIpcOpenEventHandle(void **out_event, struct ipc_handle handle)
{
	return keep(gs_ipc_event_open(handle.bytes, (struct gs_event **)out_event));
}

/* --- kernels */

int hipModuleLoadData(void **out_module, const void *image)
{
	return keep(gs_module_load(image, (struct gs_module **)out_module));
}

int hipModuleUnload(void *module)
{
	return keep(gs_module_unload(module));
}

int hipModuleGetFunction(void **out_function, void *module, const char *name)
{
	return keep(gs_module_function(module, name, out_function));
}

int hipModuleLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
			  unsigned by, unsigned bz, unsigned shared, void *stream, void **params,
			  void **extra)
{
	(void)shared;
	if (gx * gy * gz == 0 || bx * by * bz == 0 || bx * by * bz > 1024 || extra != NULL)
		return keep(STANDIN_INVALID_VALUE);
	return keep(gs_launch(function, params, stream));
}

const char *hipGetErrorName(int err)
{
	return gs_error_name(err);
}

const char *hipGetErrorString(int err)
{
	return gs_error_text(err);
}
