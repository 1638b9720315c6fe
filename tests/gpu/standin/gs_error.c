/* Names and words of the GPU stand-in's errors. */
#include "gs.h"

static const struct {
	int err;
	const char *name, *text;
} errors[] = {
    {STANDIN_OK, "SUCCESS", "no error"},
    {STANDIN_INVALID_VALUE, "INVALID_VALUE", "invalid argument"},
    {STANDIN_OUT_OF_MEMORY, "OUT_OF_MEMORY", "out of memory"},
    {STANDIN_NOT_INITIALIZED, "NOT_INITIALIZED", "initialization error"},
    {STANDIN_INVALID_PITCH, "INVALID_PITCH", "invalid pitch argument"},
    {STANDIN_INVALID_POINTER, "INVALID_DEVICE_POINTER", "invalid device pointer"},
    {STANDIN_INVALID_DIRECTION, "INVALID_COPY_DIRECTION", "invalid copy direction"},
    {STANDIN_NO_DEVICE, "NO_DEVICE", "no GPU is detected"},
    {STANDIN_INVALID_DEVICE, "INVALID_DEVICE", "invalid device ordinal"},
    {STANDIN_INVALID_CONTEXT, "INVALID_CONTEXT", "invalid device context"},
    {STANDIN_MAP_FAILED, "MAP_FAILED", "mapping of buffer object failed"},
    {STANDIN_ECC, "ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {STANDIN_PEER_UNSUPPORTED, "PEER_ACCESS_UNSUPPORTED",
     "peer access is not supported between these two devices"},
    {STANDIN_INVALID_HANDLE, "INVALID_HANDLE", "invalid resource handle"},
    {STANDIN_NOT_FOUND, "NOT_FOUND", "named symbol not found"},
    {STANDIN_NOT_READY, "NOT_READY", "device not ready"},
    {STANDIN_ILLEGAL_ADDRESS, "ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {STANDIN_PEER_ALREADY, "PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled"},
    {STANDIN_PEER_NOT_ENABLED, "PEER_ACCESS_NOT_ENABLED", "peer access has not been enabled"},
    {STANDIN_HOST_ALREADY, "HOST_MEMORY_ALREADY_REGISTERED",
     "part or all of the requested memory range is already mapped"},
    {STANDIN_HOST_NOT_REGISTERED, "HOST_MEMORY_NOT_REGISTERED",
     "pointer does not correspond to a registered memory region"},
    {STANDIN_LAUNCH_FAILURE, "LAUNCH_FAILED", "unspecified launch failure"},
    {STANDIN_NOT_SUPPORTED, "NOT_SUPPORTED", "operation not supported"},
    {STANDIN_UNKNOWN, "UNKNOWN", "unknown error"},
};

static unsigned find(int err)
{
	unsigned n = sizeof(errors) / sizeof(errors[0]);

	for (unsigned i = 0; i < n; i++)
		if (errors[i].err == err)
			return i;
	return n - 1;
}

const char *gs_error_name(int err)
{
	return errors[find(err)].name;
}

const char *gs_error_text(int err)
{
	return errors[find(err)].text;
}
