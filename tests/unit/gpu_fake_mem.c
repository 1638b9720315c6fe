/* Memory of gpu_fake.h. Allocations are memfds that are mapped once for the client and once for
 * each ipc_open(), so that two addresses show the same bytes. Any thread. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "gpu_fake.h"
#include "gpu_fake_priv.h"

#define MAX_RANGES 256

struct range { /* mapped memory */
	uint64_t addr, bytes;
	int device, fd;
	bool mapping; /* by ipc_open() */
};
struct host {
	int device;
	void *addr;
};

static struct range ranges[MAX_RANGES];
static struct host all_hosts[64];

static int range_add(int device, int fd, uint64_t bytes, bool mapping, uint64_t *out_addr)
{
	void *addr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	kvx_assert(addr != MAP_FAILED);
	pthread_mutex_lock(&fake_lock);
	unsigned i = 0;
	while (ranges[i].addr != 0)
		kvx_assert(++i < MAX_RANGES);
	ranges[i] = (struct range){(uintptr_t)addr, bytes, device, fd, mapping};
	pthread_mutex_unlock(&fake_lock);
	*out_addr = (uintptr_t)addr;
	return 0;
}

static struct range *range_find(uint64_t addr)
{
	for (unsigned i = 0; i < MAX_RANGES; i++)
		if (ranges[i].addr != 0 && addr >= ranges[i].addr &&
		    addr - ranges[i].addr < ranges[i].bytes)
			return &ranges[i];
	return NULL;
}

static void range_drop(uint64_t addr)
{
	pthread_mutex_lock(&fake_lock);
	struct range *range = range_find(addr);
	kvx_assert(range != NULL && range->addr == addr);
	munmap((void *)(uintptr_t)addr, range->bytes);
	close(range->fd);
	range->addr = 0;
	pthread_mutex_unlock(&fake_lock);
}

/* The handle names the memory's device, length and file. */
struct handle {
	int device, fd;
	uint64_t bytes;
};

uint8_t *fake_client_alloc(int device, uint64_t bytes, uint8_t out_ipc[KVX_GPU_IPC_BYTES])
{
	int fd = memfd_create("fake-gpu", MFD_CLOEXEC);
	uint64_t addr;

	kvx_assert(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
	range_add(device, fd, bytes, false, &addr);
	memset(out_ipc, 0, KVX_GPU_IPC_BYTES);
	memcpy(out_ipc, &(struct handle){device, fd, bytes}, sizeof(struct handle));
	return (uint8_t *)(uintptr_t)addr;
}

void fake_client_free(uint8_t *addr)
{
	range_drop((uintptr_t)addr);
}

static int fake_ipc_open(struct kvx_gpu *gpu, const uint8_t ipc[KVX_GPU_IPC_BYTES],
			 uint64_t *out_addr)
{
	struct handle handle;
	int err = fake_enter(FAKE_IPC_OPEN);

	while (fake.hang_ipc && sem_wait(&fake.let_go) != 0)
		;
	if (err < 0)
		return err;
	memcpy(&handle, ipc, sizeof(handle));
	int fd = dup(handle.fd);
	if (fd < 0)
		return -EBADF;
	fake.n_maps++;
	return range_add(handle.device, fd, handle.bytes, true, out_addr);
}

static int fake_ipc_close(struct kvx_gpu *gpu, uint64_t addr)
{
	int err = fake_enter(FAKE_IPC_CLOSE);

	if (err < 0)
		return err;
	range_drop(addr);
	fake.n_maps--;
	return 0;
}

static int fake_owner(struct kvx_gpu *gpu, uint64_t addr, int *out_device)
{
	const struct range *range = range_find(addr);

	if (range == NULL)
		return -EINVAL;
	*out_device = range->device;
	return 0;
}

static int fake_range(struct kvx_gpu *gpu, uint64_t addr, struct kvx_gpu_range *out)
{
	const struct range *range = range_find(addr);
	int err = fake_enter(FAKE_RANGE);

	if (err < 0)
		return err;
	if (range == NULL)
		return -EINVAL;
	*out = (struct kvx_gpu_range){range->device, range->addr, range->bytes, true, false};
	return 0;
}

static int fake_mem_alloc(struct kvx_gpu *gpu, uint64_t bytes, uint64_t *out_addr)
{
	uint8_t ipc[KVX_GPU_IPC_BYTES];
	int err = fake_enter(FAKE_MEM_ALLOC);

	if (err < 0)
		return err;
	*out_addr = (uintptr_t)fake_client_alloc(0, bytes, ipc);
	fake.last_alloc = *out_addr;
	fake.n_allocs++;
	return 0;
}

static int fake_mem_free(struct kvx_gpu *gpu, uint64_t addr)
{
	range_drop(addr);
	fake.n_allocs--;
	return 0;
}

static int fake_host_alloc(struct kvx_gpu *gpu, uint64_t bytes, void **out_addr)
{
	int err = fake_enter(FAKE_HOST_ALLOC);

	if (err < 0)
		return err;
	*out_addr = calloc(1, bytes);
	fake.n_hosts++;
	pthread_mutex_lock(&fake_lock);
	unsigned i = 0;
	while (all_hosts[i].addr != NULL)
		kvx_assert(++i < 64);
	all_hosts[i] = (struct host){fake_bound, *out_addr};
	pthread_mutex_unlock(&fake_lock);
	return 0;
}

static int fake_host_free(struct kvx_gpu *gpu, void *addr)
{
	pthread_mutex_lock(&fake_lock);
	for (unsigned i = 0; i < 64; i++)
		if (all_hosts[i].addr == addr)
			all_hosts[i].addr = NULL;
	pthread_mutex_unlock(&fake_lock);
	free(addr);
	fake.n_hosts--;
	return 0;
}

static int fake_host_pin(struct kvx_gpu *gpu, void *addr, uint64_t bytes)
{
	const struct timespec pause = {.tv_nsec = 1000000};
	int err = fake_enter(FAKE_HOST_PIN);

	fake.last_pin_device = fake_bound;
	while (fake.hang_pin_bytes != 0 && bytes >= fake.hang_pin_bytes)
		nanosleep(&pause, NULL);
	fake.n_pins += err == 0;
	return err;
}

static int fake_host_unpin(struct kvx_gpu *gpu, void *addr)
{
	int err = fake_enter(FAKE_HOST_UNPIN);

	fake.n_pins -= err == 0;
	return err;
}

static int fake_none_export(struct kvx_gpu *gpu, uint64_t base, uint8_t ipc[KVX_GPU_IPC_BYTES])
{
	return -EOPNOTSUPP;
}

static int fake_dmabuf_export(struct kvx_gpu *gpu, uint64_t addr, uint64_t bytes, int *out_fd,
			      uint64_t *out_offset)
{
	int err = fake_enter(FAKE_DMABUF);

	for (unsigned i = 0; err == 0 && i < MAX_RANGES; i++) {
		if (addr < ranges[i].addr || addr + bytes > ranges[i].addr + ranges[i].bytes)
			continue;
		*out_fd = fcntl(ranges[i].fd, F_DUPFD_CLOEXEC, 3);
		*out_offset = addr - ranges[i].addr;
		return *out_fd >= 0 ? 0 : -errno;
	}
	return err < 0 ? err : -EINVAL;
}

void fake_mem_reset(int device)
{
	for (unsigned i = 0; i < 64; i++)
		if (all_hosts[i].addr != NULL && all_hosts[i].device == device) {
			free(all_hosts[i].addr);
			all_hosts[i].addr = NULL;
			fake.n_hosts--;
		}
	for (unsigned i = 0; i < MAX_RANGES; i++)
		if (ranges[i].addr != 0 && ranges[i].mapping && ranges[i].device == device) {
			munmap((void *)(uintptr_t)ranges[i].addr, ranges[i].bytes);
			close(ranges[i].fd);
			ranges[i].addr = 0;
			fake.n_maps--;
		}
}

void fake_mem_fill(struct kvx_gpu_ops *ops)
{
	ops->mem_alloc = fake_mem_alloc;
	ops->mem_free = fake_mem_free;
	ops->host_alloc = fake_host_alloc;
	ops->host_free = fake_host_free;
	ops->host_pin = fake_host_pin;
	ops->host_unpin = fake_host_unpin;
	ops->owner = fake_owner;
	ops->range = fake_range;
	ops->ipc_export = fake_none_export;
	ops->ipc_open = fake_ipc_open;
	ops->ipc_close = fake_ipc_close;
	ops->dmabuf_export = fake_dmabuf_export;
}
