/* A stand-in for NVIDIA's NVML: the four functions that kvxferctl topology asks. KVX_TEST_NVML
 * names the PCI addresses of the GPUs that are joined by NVLink, or what is wrong with it: "crash",
 * "hang", "refuse". */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NVLINK = 2, OK = 0, NOT_SUPPORTED = 3, NO_DRIVER = 9 };

static const char *says(void)
{
	const char *text = getenv("KVX_TEST_NVML");

	return text != NULL ? text : "";
}

int nvmlInit_v2(void)
{
	if (strcmp(says(), "crash") == 0)
		raise(SIGSEGV);
	while (strcmp(says(), "hang") == 0)
		pause();
	return strcmp(says(), "refuse") == 0 ? NO_DRIVER : 0;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *pci, void **device)
{
	*device = strdup(pci); /* lives as long as the process */
	return *device != NULL ? 0 : 1;
}

int nvmlDeviceGetP2PStatus(void *a, void *b, int index, int *status)
{
	*status = index == NVLINK && strstr(says(), a) != NULL && strstr(says(), b) != NULL
		      ? OK
		      : NOT_SUPPORTED;
	return 0;
}
