/* Devices and contexts of the stand-in's libcuda.so.1, see front_cu.h. */
#include "front_cu.h"

#include <stdio.h>

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

/* 0, or "no context is current". */
int front_context_missing(void)
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
	int err = front_context_missing();

	(void)flags;
	if (err == 0 && (context == NULL || context->n_retained == 0))
		err = STANDIN_INVALID_CONTEXT;
	return err != 0 ? err : gs_peer_enable(context->dev);
}

int cuCtxDisablePeerAccess(void *peer)
{
	const struct context *context = peer;
	int err = front_context_missing();

	return err != 0 ? err : gs_peer_disable(context->dev);
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
