/* See rdma_gpus.h. On the thread that registers memory or moves bytes. */
#include "rdma_gpus.h"

#include "standin.h"

static unsigned gpu_of_fd(int fd)
{
	return (unsigned)(standin_device_of_dmabuf(fd) + 1);
}

static unsigned gpu_of_addr(const void *addr, uint8_t **out_bytes)
{
	int dev = standin_device_of(addr);

	if (dev >= 0)
		*out_bytes = standin_bytes(addr);
	return (unsigned)(dev + 1);
}

const struct fake_verbs_gpus test_rdma_gpus = {gpu_of_fd, gpu_of_addr};
