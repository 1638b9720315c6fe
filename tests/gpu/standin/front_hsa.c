/* libhsa-runtime64.so.1 of the GPU stand-in: the one call that gives device memory as a dma-buf. */
#include <unistd.h>

#include "gs.h"

enum { HSA_SUCCESS = 0, HSA_ERROR = 0x1000, HSA_INVALID_ARGUMENT = 0x1001 };

int hsa_amd_portable_export_dmabuf(const void *ptr, size_t bytes, int *out_fd, uint64_t *out_offset)
{
	int err = gs_dmabuf(ptr, bytes, out_fd, out_offset);

	return err == 0                       ? HSA_SUCCESS
	       : err == STANDIN_INVALID_VALUE ? HSA_INVALID_ARGUMENT
					      : HSA_ERROR;
}

int hsa_amd_portable_close_dmabuf(int fd)
{
	close(fd);
	return HSA_SUCCESS;
}
