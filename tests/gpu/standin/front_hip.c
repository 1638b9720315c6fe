/* Devices and errors of the stand-in's libamdhip64.so.N, see front_hip.h. */
#include "front_hip.h"

#include <stdio.h>

__attribute__((constructor)) static void front_init(void)
{
	gs_set_flavor(GS_HIP);
}

static __thread int last_error;

int front_keep(int err)
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
	return front_keep(gs_device_count(n));
}

int hipDeviceGetName(char *name, int len, int dev)
{
	size_t bytes;
	int err = gs_device_bytes(dev, &bytes);

	if (err == 0)
		snprintf(name, (size_t)len, "GPU stand-in (HIP)");
	return front_keep(err);
}

int hipDeviceGetPCIBusId(char *pci, int len, int dev)
{
	return front_keep(gs_device_pci(dev, pci, (size_t)len));
}

#if GS_HIP_MAJOR >= 6
int hipDeviceGetUuid(uint8_t uuid[16], int dev)
{
	return front_keep(gs_device_uuid(dev, uuid));
}
#endif

int hipDeviceTotalMem(size_t *bytes, int dev)
{
	return front_keep(gs_device_bytes(dev, bytes));
}

int hipDeviceGetAttribute(int *value, int attr, int dev)
{
	size_t bytes;
	int err = gs_device_bytes(dev, &bytes);

	if (err != 0)
		return front_keep(err);
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
		return front_keep(STANDIN_INVALID_VALUE);
	}
}

int hipSetDevice(int dev)
{
	return front_keep(gs_device_set(dev));
}

int hipGetDevice(int *dev)
{
	return front_keep(gs_device_get(dev));
}

int hipDeviceSynchronize(void)
{
	return front_keep(gs_device_sync());
}

int hipDeviceReset(void)
{
	int dev;
	int err = gs_device_get(&dev);

	return front_keep(err != 0 ? err : gs_device_reset(dev));
}

int hipMemGetInfo(size_t *free_bytes, size_t *total)
{
	return front_keep(gs_mem_info(free_bytes, total));
}

int hipDeviceCanAccessPeer(int *can, int dev, int peer)
{
	return front_keep(gs_peer_can(dev, peer, can));
}

int hipDeviceEnablePeerAccess(int peer, unsigned flags)
{
	(void)flags;
	return front_keep(gs_peer_enable(peer));
}

int hipDeviceDisablePeerAccess(int peer)
{
	return front_keep(gs_peer_disable(peer));
}

int hipExtGetLinkTypeAndHopCount(int dev, int peer, uint32_t *type, uint32_t *hops)
{
	int can = 0;
	int err = gs_peer_can(dev, peer, &can);

	if (err != 0)
		return front_keep(err);
	*type = can ? 4 : 2; /* xGMI, PCIe */
	*hops = can ? 1 : 2;
	return 0;
}

const char *hipGetErrorName(int err)
{
	return gs_error_name(err);
}

const char *hipGetErrorString(int err)
{
	return gs_error_text(err);
}
