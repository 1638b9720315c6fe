/* Memory of the stand-in's libamdhip64.so.N, see front_hip.h. */
#include "front_hip.h"

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

int hipMalloc(void **out_ptr, size_t bytes)
{
	return front_keep(gs_malloc(bytes, out_ptr));
}

int hipFree(void *ptr)
{
	return front_keep(gs_free(ptr));
}

int hipHostMalloc(void **out_ptr, size_t bytes, unsigned flags)
{
	(void)flags;
	return front_keep(gs_host_alloc(bytes, out_ptr));
}

int hipHostFree(void *ptr)
{
	return front_keep(gs_host_free(ptr));
}

int hipHostRegister(void *ptr, size_t bytes, unsigned flags)
{
	(void)flags;
	return front_keep(gs_host_register(ptr, bytes));
}

int hipHostUnregister(void *ptr)
{
	return front_keep(gs_host_unregister(ptr));
}

int hipHostGetDevicePointer(void **out_ptr, void *host, unsigned flags)
{
	(void)flags;
	return front_keep(gs_host_pointer(host, out_ptr));
}

int hipMemGetAddressRange(void **out_base, size_t *out_bytes, void *ptr)
{
	return front_keep(gs_address_range(ptr, out_base, out_bytes));
}

int hipPointerGetAttribute(void *data, int attr, void *ptr)
{
	struct gs_pointer p;
	int err = gs_pointer_info(ptr, &p);

	if (err == 0 && p.kind == GS_UNKNOWN)
		err = STANDIN_INVALID_VALUE;
	if (err != 0)
		return front_keep(err);
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
		return front_keep(STANDIN_INVALID_VALUE);
	}
}

int hipPointerGetAttributes(struct pointer_attributes *out, const void *ptr)
{
	struct gs_pointer p;
	int err = gs_pointer_info(ptr, &p);

	if (err == 0 && p.kind == GS_UNKNOWN)
		err = STANDIN_INVALID_VALUE;
	if (err != 0)
		return front_keep(err);
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
		return front_keep(STANDIN_INVALID_VALUE);
	err = gs_dmabuf(ptr, bytes, &fd, &offset);
	if (err == 0)
		*(int *)handle = fd; /* of the whole allocation: the caller asks for its range */
	return front_keep(err);
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
	return front_keep(err);
}

int hipMemRelease(void *handle)
{
	(void)handle;
	return 0;
}

int hipIpcGetMemHandle(struct ipc_handle *handle, void *ptr)
{
	return front_keep(gs_ipc_get(ptr, handle->bytes));
}

int hipIpcOpenMemHandle(void **out_ptr, struct ipc_handle handle, unsigned flags)
{
	(void)flags;
	return front_keep(gs_ipc_open(handle.bytes, out_ptr));
}

int hipIpcCloseMemHandle(void *ptr)
{
	return front_keep(gs_ipc_close(ptr));
}
