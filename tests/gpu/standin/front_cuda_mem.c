/* Memory of the stand-in's libcuda.so.1, see front_cu.h. */
#include "front_cu.h"

#include <unistd.h>

int cuMemAlloc_v2(devptr *out_ptr, size_t bytes)
{
	void *ptr = NULL;
	int err = front_context_missing();

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
	int err = front_context_missing();

	(void)flags;
	return err != 0 ? err : gs_host_alloc(bytes, out_ptr);
}

int cuMemFreeHost(void *ptr)
{
	return gs_host_free(ptr);
}

int cuMemHostRegister_v2(void *ptr, size_t bytes, unsigned flags)
{
	int err = front_context_missing();

	(void)flags;
	return err != 0 ? err : gs_host_register(ptr, bytes);
}

int cuMemHostUnregister(void *ptr)
{
	int err = front_context_missing();

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
	int err = front_context_missing();

	if (err == 0)
		err = flags != 1 ? STANDIN_INVALID_VALUE : gs_ipc_open(handle.bytes, &ptr);
	if (err == 0)
		*out_ptr = (devptr)(uintptr_t)ptr;
	return err;
}

int cuIpcCloseMemHandle(devptr ptr)
{
	int err = front_context_missing();

	return err != 0 ? err : gs_ipc_close(ptr_of(ptr));
}
