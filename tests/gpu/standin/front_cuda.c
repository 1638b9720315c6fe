/* libcuda.so.1 of the GPU stand-in: CUDA's driver functions by their exported names, as a release
 * 13 driver has them; GS_OLD leaves out what came after release 11.2. Handles are the stand-in's
 * own. A call that needs a current context fails without one, as in the real one. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "gs.h"

typedef unsigned long long devptr;
struct ipc_handle {
	uint8_t bytes[GS_HANDLE_BYTES];
};
/* CUDA_MEMCPY2D */
struct copy_2d {
	size_t src_x, src_y;
	int src_type;
	const void *src_host;
	devptr src_device;
	void *src_array;
	size_t src_pitch;
	size_t dst_x, dst_y;
	int dst_type;
	void *dst_host;
	devptr dst_device;
	void *dst_array;
	size_t dst_pitch;
	size_t width, height;
};
enum { TYPE_HOST = 1, TYPE_DEVICE = 2 };
enum { FLAG_EVENT_NO_TIMING = 2, FLAG_EVENT_IPC = 4 };

/* A device's primary context; its address is the handle. */
static struct context {
	int dev, n_retained;
} contexts[STANDIN_MAX_DEVS];
static __thread struct context *current;

__attribute__((constructor)) static void front_init(void)
{
	gs_set_flavor(GS_CUDA);
	for (int i = 0; i < STANDIN_MAX_DEVS; i++)
		contexts[i].dev = i;
}

static void *ptr_of(devptr ptr)
{
	return (void *)(uintptr_t)ptr;
}

/* 0, or "no context is current". */
static int context_missing(void)
{
	return current != NULL ? 0 : STANDIN_INVALID_CONTEXT;
}

int cuInit(unsigned flags)
{
	int n;
	int err = flags != 0 ? STANDIN_INVALID_VALUE : gs_enter(STANDIN_INIT);

	return err != 0 ? err : gs_device_count(&n);
}

int cuDriverGetVersion(int *version)
{
#ifdef GS_OLD
	*version = 11020;
#else
	*version = 13000;
#endif
	return 0;
}

int cuDeviceGetCount(int *n)
{
	return gs_device_count(n);
}

int cuDeviceGet(int *dev, int ordinal)
{
	size_t bytes;
	int err = gs_device_bytes(ordinal, &bytes);

	if (err == 0)
		*dev = ordinal;
	return err;
}

int cuDeviceGetName(char *name, int len, int dev)
{
	size_t bytes;
	int err = gs_device_bytes(dev, &bytes);

	if (err == 0)
		snprintf(name, (size_t)len, "GPU stand-in (CUDA)");
	return err;
}

int cuDeviceGetUuid(uint8_t uuid[16], int dev)
{
	return gs_device_uuid(dev, uuid);
}

#ifndef GS_OLD
int cuDeviceGetUuid_v2(uint8_t uuid[16], int dev)
{
	return gs_device_uuid(dev, uuid);
}
#endif

int cuDeviceGetPCIBusId(char *pci, int len, int dev)
{
	return gs_device_pci(dev, pci, (size_t)len);
}

int cuDeviceTotalMem_v2(size_t *bytes, int dev)
{
	return gs_device_bytes(dev, bytes);
}

int cuDeviceGetAttribute(int *value, int attr, int dev)
{
	size_t bytes;
	int err = gs_device_bytes(dev, &bytes);

	if (err != 0)
		return err;
	switch (attr) {
	case 16: /* multiprocessors */
		return gs_device_attr(dev, GS_ATTR_SMS, value);
	case 40: /* copy engines */
		return gs_device_attr(dev, GS_ATTR_COPY_ENGINES, value);
	case 41: /* unified addressing */
		return gs_device_attr(dev, GS_ATTR_UVA, value);
	case 75: /* compute capability 9.0 */
		*value = 9;
		return 0;
	case 76:
		*value = 0;
		return 0;
#ifndef GS_OLD
	case 117: /* how to make remote writes visible: 1 by the host */
		*value = 1;
		return 0;
	case 124: /* dma-buf */
		return gs_device_attr(dev, GS_ATTR_DMABUF, value);
	case 125: /* interprocess events */
		return gs_device_attr(dev, GS_ATTR_IPC_EVENTS, value);
	case 134: /* NUMA node of the host */
		*value = 0;
		return 0;
#endif
	default:
		return STANDIN_INVALID_VALUE;
	}
}

int cuDevicePrimaryCtxRetain(void **ctx, int dev)
{
	int err = gs_enter(STANDIN_CONTEXT);

	if (err == 0)
		err = gs_device_set(dev);
	if (current != NULL)
		gs_device_set(current->dev);
	if (err != 0)
		return err;
	contexts[dev].n_retained++;
	*ctx = &contexts[dev];
	return 0;
}

int cuDevicePrimaryCtxRelease_v2(int dev)
{
	int err = gs_enter(STANDIN_CONTEXT);

	if (err != 0)
		return err;
	if (dev < 0 || dev >= STANDIN_MAX_DEVS || contexts[dev].n_retained == 0)
		return STANDIN_INVALID_CONTEXT;
	if (--contexts[dev].n_retained == 0)
		return gs_device_reset(dev);
	return 0;
}

int cuDevicePrimaryCtxReset_v2(int dev)
{
	return gs_device_reset(dev);
}

int cuCtxSetCurrent(void *ctx)
{
	struct context *context = ctx;
	int err = gs_enter(STANDIN_CONTEXT);

	if (err != 0)
		return err;
	if (context != NULL && context->n_retained == 0)
		return STANDIN_INVALID_CONTEXT;
	current = context;
	if (context != NULL)
		(void)gs_device_set(context->dev); /* a lost device says so at the next call */
	return 0;
}

int cuCtxGetCurrent(void **ctx)
{
	*ctx = current;
	return 0;
}

int cuCtxGetDevice(int *dev)
{
	if (current == NULL)
		return STANDIN_INVALID_CONTEXT;
	*dev = current->dev;
	return 0;
}

int cuCtxSynchronize(void)
{
	return current != NULL ? gs_device_sync() : STANDIN_INVALID_CONTEXT;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
	return current != NULL ? gs_mem_info(free_bytes, total) : STANDIN_INVALID_CONTEXT;
}

int cuDeviceCanAccessPeer(int *can, int dev, int peer)
{
	return gs_peer_can(dev, peer, can);
}

int cuDeviceGetP2PAttribute(int *value, int attr, int src, int dst)
{
	int can = 0;
	int err = gs_peer_can(src, dst, &can);

	if (err != 0)
		return err;
	*value = attr == 1 ? 0 : can; /* 1: rank, 0 is best; 2: access; 3: atomics */
	return 0;
}

int cuCtxEnablePeerAccess(void *peer, unsigned flags)
{
	const struct context *context = peer;
	int err = context_missing();

	(void)flags;
	if (err == 0 && (context == NULL || context->n_retained == 0))
		err = STANDIN_INVALID_CONTEXT;
	return err != 0 ? err : gs_peer_enable(context->dev);
}

int cuCtxDisablePeerAccess(void *peer)
{
	const struct context *context = peer;
	int err = context_missing();

	return err != 0 ? err : gs_peer_disable(context->dev);
}

/* --- memory */

int cuMemAlloc_v2(devptr *out_ptr, size_t bytes)
{
	void *ptr = NULL;
	int err = context_missing();

	if (err == 0)
		err = bytes == 0 ? STANDIN_INVALID_VALUE : gs_malloc(bytes, &ptr);
	if (err == 0)
		*out_ptr = (devptr)(uintptr_t)ptr;
	return err;
}

int cuMemFree_v2(devptr ptr)
{
	return gs_free(ptr_of(ptr));
}

int cuMemHostAlloc(void **out_ptr, size_t bytes, unsigned flags)
{
	int err = context_missing();

	(void)flags;
	return err != 0 ? err : gs_host_alloc(bytes, out_ptr);
}

int cuMemFreeHost(void *ptr)
{
	return gs_host_free(ptr);
}

int cuMemHostRegister_v2(void *ptr, size_t bytes, unsigned flags)
{
	int err = context_missing();

	(void)flags;
	return err != 0 ? err : gs_host_register(ptr, bytes);
}

int cuMemHostUnregister(void *ptr)
{
	int err = context_missing();

	return err != 0 ? err : gs_host_unregister(ptr);
}

int cuMemHostGetDevicePointer_v2(devptr *out_ptr, void *host, unsigned flags)
{
	void *ptr;
	int err = gs_host_pointer(host, &ptr);

	(void)flags;
	if (err == 0)
		*out_ptr = (devptr)(uintptr_t)ptr;
	return err;
}

int cuMemGetAddressRange_v2(devptr *out_base, size_t *out_bytes, devptr ptr)
{
	void *base;
	int err = gs_address_range(ptr_of(ptr), &base, out_bytes);

	if (err == 0 && out_base != NULL)
		*out_base = (devptr)(uintptr_t)base;
	return err;
}

int cuPointerGetAttribute(void *data, int attr, devptr ptr)
{
	struct gs_pointer p;
	int err = gs_pointer_info(ptr_of(ptr), &p);

	if (err != 0)
		return err;
	if (p.kind == GS_UNKNOWN)
		return STANDIN_INVALID_VALUE;
	switch (attr) {
	case 2: /* memory type */
		*(int *)data = p.kind == GS_HOST ? TYPE_HOST : TYPE_DEVICE;
		return 0;
	case 7: /* a number that no other allocation of this process ever has */
		*(uint64_t *)data = p.id;
		return 0;
	case 8: /* managed */
		*(int *)data = 0;
		return 0;
	case 9: /* device */
		*(int *)data = p.dev;
		return 0;
	case 10: /* can be exported by IPC */
		*(int *)data = p.kind == GS_DEVICE;
		return 0;
	case 11: /* start and size of its allocation */
		*(devptr *)data = (devptr)(uintptr_t)p.base;
		return 0;
	case 12:
		*(size_t *)data = p.bytes;
		return 0;
	default:
		return STANDIN_INVALID_VALUE;
	}
}

#ifndef GS_OLD
int cuMemGetHandleForAddressRange(void *handle, devptr ptr, size_t bytes, int type,
				  unsigned long long flags)
{
	uint64_t offset;
	int fd;
	int err;

	(void)flags;
	if (type != 1 || ptr % 4096 != 0 || bytes % 4096 != 0)
		return STANDIN_INVALID_VALUE;
	err = gs_dmabuf(ptr_of(ptr), bytes, &fd, &offset);
	if (err != 0)
		return err;
	if (offset != 0) { /* the file of a range begins with the range; a memfd cannot */
		close(fd);
		return STANDIN_NOT_SUPPORTED;
	}
	*(int *)handle = fd;
	return 0;
}
#endif

/* Only memory of the virtual-memory calls has such a handle. */
int cuMemRetainAllocationHandle(devptr *handle, void *ptr)
{
	struct gs_pointer p;
	int err = gs_pointer_info(ptr, &p);

	if (err != 0)
		return err;
	if (p.kind != GS_VMM)
		return STANDIN_INVALID_VALUE;
	*handle = p.id;
	return 0;
}

int cuMemRelease(devptr handle)
{
	(void)handle;
	return 0;
}

int cuIpcGetMemHandle(struct ipc_handle *handle, devptr ptr)
{
	return gs_ipc_get(ptr_of(ptr), handle->bytes);
}

int cuIpcOpenMemHandle_v2(devptr *out_ptr, struct ipc_handle handle, unsigned flags)
{
	void *ptr;
	int err = context_missing();

	if (err == 0)
		err = flags != 1 ? STANDIN_INVALID_VALUE : gs_ipc_open(handle.bytes, &ptr);
	if (err == 0)
		*out_ptr = (devptr)(uintptr_t)ptr;
	return err;
}

int cuIpcCloseMemHandle(devptr ptr)
{
	int err = context_missing();

	return err != 0 ? err : gs_ipc_close(ptr_of(ptr));
}

/* --- copies */

int cuMemcpyAsync(devptr dst, devptr src, size_t bytes, void *stream)
{
	struct gs_copy copy = {.dst = ptr_of(dst), .src = ptr_of(src), .bytes = bytes, .rows = 1};
	int err = context_missing();

	return err != 0 ? err : gs_copy_async(STANDIN_COPY, &copy, 1, GS_ANY, stream);
}

static int copy_now(void *dst, const void *src, size_t bytes, enum gs_direction direction)
{
	struct gs_copy copy = {.dst = dst, .src = src, .bytes = bytes, .rows = 1};
	int err = context_missing();

	return err != 0 ? err : gs_copy_sync(&copy, direction);
}

int cuMemcpy(devptr dst, devptr src, size_t bytes)
{
	return copy_now(ptr_of(dst), ptr_of(src), bytes, GS_ANY);
}

int cuMemcpyHtoD_v2(devptr dst, const void *src, size_t bytes)
{
	return copy_now(ptr_of(dst), src, bytes, GS_H2D);
}

int cuMemcpyDtoH_v2(void *dst, devptr src, size_t bytes)
{
	return copy_now(dst, ptr_of(src), bytes, GS_D2H);
}

int cuMemcpy2DAsync_v2(const struct copy_2d *p, void *stream)
{
	const uint8_t *src = p->src_type == TYPE_HOST ? p->src_host : ptr_of(p->src_device);
	uint8_t *dst = p->dst_type == TYPE_HOST ? p->dst_host : ptr_of(p->dst_device);
	struct gs_copy copy = {
	    .dst = dst + p->dst_y * p->dst_pitch + p->dst_x,
	    .src = src + p->src_y * p->src_pitch + p->src_x,
	    .bytes = p->width,
	    .rows = p->height,
	    .dst_pitch = p->dst_pitch,
	    .src_pitch = p->src_pitch,
	};
	int err = context_missing();

	if (err == 0)
		err = gs_copy_async(STANDIN_COPY_2D, &copy, 1, GS_ANY, stream);
	return err == STANDIN_INVALID_PITCH ? STANDIN_INVALID_VALUE : err;
}

#ifndef GS_OLD
int cuMemcpyBatchAsync_v2(devptr *dsts, devptr *srcs, size_t *sizes, size_t n, void *attrs,
			  size_t *attr_idxs, size_t n_attrs, void *stream)
{
	int err = context_missing();

	if (err == 0 && (attrs == NULL || n_attrs == 0 || attr_idxs == NULL || attr_idxs[0] != 0))
		err = STANDIN_INVALID_VALUE;
	return err != 0 ? err : gs_copy_batch(dsts, srcs, sizes, n, stream);
}

/* As release 12.8 has it. */
int cuMemcpyBatchAsync(devptr *dsts, devptr *srcs, size_t *sizes, size_t n, void *attrs,
		       size_t *attr_idxs, size_t n_attrs, size_t *fail_idx, void *stream)
{
	int err = cuMemcpyBatchAsync_v2(dsts, srcs, sizes, n, attrs, attr_idxs, n_attrs, stream);

	if (err != 0 && fail_idx != NULL)
		*fail_idx = SIZE_MAX;
	return err;
}
#endif

int cuMemsetD8_v2(devptr ptr, unsigned char value, size_t bytes)
{
	int err = context_missing();

	return err != 0 ? err : gs_memset(ptr_of(ptr), value, bytes, NULL, 1);
}

int cuMemsetD8Async(devptr ptr, unsigned char value, size_t bytes, void *stream)
{
	int err = context_missing();

	return err != 0 ? err : gs_memset(ptr_of(ptr), value, bytes, stream, 0);
}

/* --- streams, events */

int cuStreamCreate(void **out_stream, unsigned flags)
{
	int err = context_missing();

	(void)flags;
	return err != 0 ? err : gs_stream_create((struct gs_stream **)out_stream);
}

int cuStreamDestroy_v2(void *stream)
{
	return gs_stream_destroy(stream);
}

int cuStreamQuery(void *stream)
{
	return gs_stream_query(stream);
}

int cuStreamSynchronize(void *stream)
{
	return gs_stream_sync(stream);
}

int cuStreamWaitEvent(void *stream, void *event, unsigned flags)
{
	(void)flags;
	return gs_stream_wait(stream, event);
}

int cuEventCreate(void **out_event, unsigned flags)
{
	int err = context_missing();

	if (err == 0 && (flags & FLAG_EVENT_IPC) && !(flags & FLAG_EVENT_NO_TIMING))
		err = STANDIN_INVALID_VALUE;
	return err != 0 ? err
			: gs_event_create(flags & FLAG_EVENT_IPC ? GS_EVENT_IPC : 0,
					  (struct gs_event **)out_event);
}

int cuEventRecord(void *event, void *stream)
{
	return gs_event_record(event, stream);
}

int cuEventQuery(void *event)
{
	return gs_event_query(event);
}

int cuEventSynchronize(void *event)
{
	return gs_event_sync(event);
}

int cuEventElapsedTime(float *ms, void *start, void *end)
{
	return gs_event_elapsed(ms, start, end);
}

int cuEventDestroy_v2(void *event)
{
	return gs_event_destroy(event);
}

int cuIpcGetEventHandle(struct ipc_handle *handle, void *event)
{
	return gs_ipc_event_get(event, handle->bytes);
}

int cuIpcOpenEventHandle(void **out_event, struct ipc_handle handle)
{
	int err = context_missing();

	return err != 0 ? err : gs_ipc_event_open(handle.bytes, (struct gs_event **)out_event);
}

/* --- kernels */

int cuModuleLoadData(void **out_module, const void *image)
{
	int err = context_missing();

	return err != 0 ? err : gs_module_load(image, (struct gs_module **)out_module);
}

int cuModuleUnload(void *module)
{
	return gs_module_unload(module);
}

int cuModuleGetFunction(void **out_function, void *module, const char *name)
{
	return gs_module_function(module, name, out_function);
}

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
		   unsigned bz, unsigned shared, void *stream, void **params, void **extra)
{
	int err = context_missing();

	(void)shared;
	if (err == 0 &&
	    (gx * gy * gz == 0 || bx * by * bz == 0 || bx * by * bz > 1024 || extra != NULL))
		err = STANDIN_INVALID_VALUE;
	return err != 0 ? err : gs_launch(function, params, stream);
}

int cuGetErrorName(int err, const char **name)
{
	*name = gs_error_name(err);
	return 0;
}

int cuGetErrorString(int err, const char **text)
{
	*text = gs_error_text(err);
	return 0;
}
