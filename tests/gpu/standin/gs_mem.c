/* The GPU stand-in's memory: device memory is a memfd with a record in the node's table, so that it
 * is counted and can be mapped elsewhere; host memory is only noted down. Any thread. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gs_priv.h"

#define PAGE 4096u

static size_t whole_pages(size_t bytes)
{
	return (bytes + PAGE - 1) / PAGE * PAGE;
}

/* With the node's lock. */
static uint64_t dev_in_use(const struct gs_node *node, unsigned dev)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < GS_MAX_ALLOCS; i++)
		if (node->allocs[i].id != 0 && node->allocs[i].dev == dev)
			sum += node->allocs[i].bytes;
	return sum;
}

/* Books it; the index of the record or -1. */
static int alloc_book(unsigned dev, int fd, size_t bytes)
{
	struct gs_node *node = gs_node();
	struct stat st;
	int found = -1;

	if (fstat(fd, &st) != 0)
		return -1;
	gs_lock(node);
	gs_reap(node);
	for (int i = 0; i < GS_MAX_ALLOCS && found < 0; i++)
		if (node->allocs[i].id == 0)
			found = i;
	if (found >= 0 && dev_in_use(node, dev) + bytes > node->devs[dev].vram_bytes)
		found = -1;
	if (found >= 0) {
		struct gs_alloc *alloc = &node->allocs[found];

		*alloc = (struct gs_alloc){.bytes = bytes,
					   .ino = st.st_ino,
					   .pid = getpid(),
					   .proc = gs_self_index(),
					   .fd = fd,
					   .dev = dev,
					   .generation = node->devs[dev].generation,
					   .owned = true};
		alloc->id = node->next_id++;
	}
	gs_unlock(node);
	return found;
}

/* The owner has it no longer. */
void gs_alloc_leave(const struct gs_range *range)
{
	struct gs_node *node = gs_node();
	struct gs_alloc *alloc = &node->allocs[range->alloc];

	gs_lock(node);
	if (alloc->id != 0 &&
	    range->generation == atomic_load(&node->devs[range->dev].generation)) {
		close(alloc->fd);
		alloc->owned = false;
		gs_alloc_drop(node, alloc);
	}
	gs_unlock(node);
}

int gs_malloc(size_t bytes, void **out_ptr)
{
	unsigned dev = gs_dev_current();
	int err = gs_enter_dev(STANDIN_MALLOC, dev);
	struct gs_range *range;
	int fd, alloc;

	if (err != 0)
		return err;
	if (bytes == 0) {
		*out_ptr = NULL;
		return 0;
	}
	bytes = whole_pages(bytes);
	fd = memfd_create("kvx-gpu-standin", MFD_CLOEXEC);
	if (fd < 0)
		return STANDIN_OUT_OF_MEMORY;
	if (ftruncate(fd, (off_t)bytes) != 0 || (alloc = alloc_book(dev, fd, bytes)) < 0) {
		close(fd);
		return STANDIN_OUT_OF_MEMORY;
	}
	range = gs_range_add(GS_DEVICE, dev, bytes, fd);
	if (range == NULL) {
		struct gs_range none = {.dev = dev, .alloc = (uint32_t)alloc};

		none.generation = atomic_load(&gs_node()->devs[dev].generation);
		gs_alloc_leave(&none);
		return STANDIN_OUT_OF_MEMORY;
	}
	range->alloc = (uint32_t)alloc;
	*out_ptr = range->base;
	return 0;
}

/* The range that begins at ptr and is of one of two kinds; NULL: there is none. */
static struct gs_range *range_at(const void *ptr, enum gs_kind kind, enum gs_kind other)
{
	struct gs_range *range;

	gs_table_lock();
	range = gs_range_find(ptr, 1);
	if (range != NULL && (range->base != ptr || (range->kind != kind && range->kind != other)))
		range = NULL;
	gs_table_unlock();
	return range;
}

/* As the real one it waits for all that is queued on the device. */
int gs_free(void *ptr)
{
	int err = gs_enter(STANDIN_FREE);
	struct gs_range *range;

	if (err != 0 || ptr == NULL)
		return err;
	range = range_at(ptr, GS_DEVICE, GS_VMM);
	if (range == NULL)
		return STANDIN_INVALID_VALUE;
	gs_streams_drain(range->dev);
	gs_range_wait(range);
	err = gs_dev_error(range->dev);
	if (range->kind == GS_DEVICE)
		gs_alloc_leave(range);
	gs_range_remove(range);
	return err;
}

void *standin_vmm_alloc(unsigned dev, uint64_t bytes)
{
	struct gs_range *range;

	if (gs_enter(STANDIN_VMM) != 0)
		return NULL;
	range = gs_range_add(GS_VMM, dev, whole_pages(bytes), -1);
	return range != NULL ? range->base : NULL;
}

uint8_t *standin_bytes(const void *device_pointer)
{
	struct gs_range *range = gs_range_take(device_pointer, 1);
	uint8_t *bytes = range != NULL ? gs_range_at(range, device_pointer) : NULL;

	gs_range_put(range);
	return bytes;
}

int standin_device_of(const void *device_pointer)
{
	struct gs_range *range = gs_range_take(device_pointer, 1);
	int dev = range != NULL && range->kind != GS_HOST ? (int)range->dev : -1;

	gs_range_put(range);
	return dev;
}

int standin_device_of_dmabuf(int fd)
{
	struct gs_node *node = gs_node();
	struct stat st;
	int dev = -1;

	if (node == NULL || fstat(fd, &st) != 0)
		return -1;
	gs_lock(node);
	for (int i = 0; i < GS_MAX_ALLOCS && dev < 0; i++)
		if (node->allocs[i].id != 0 && node->allocs[i].ino == st.st_ino)
			dev = (int)node->allocs[i].dev;
	gs_unlock(node);
	return dev;
}

int gs_host_alloc(size_t bytes, void **out_ptr)
{
	unsigned dev = gs_dev_current();
	int err = gs_enter_dev(STANDIN_HOST_ALLOC, dev);
	struct gs_range *range;

	if (err != 0)
		return err;
	if (bytes == 0)
		return STANDIN_INVALID_VALUE;
	range = gs_range_add(GS_HOST, dev, whole_pages(bytes), -1);
	if (range == NULL)
		return STANDIN_OUT_OF_MEMORY;
	atomic_fetch_add(&gs_self()->host_bytes, range->len);
	*out_ptr = range->base;
	return 0;
}

/* A copy that still uses page-locked memory when it is taken away would go anywhere. */
static void host_remove(struct gs_range *range, const char *what)
{
	if (atomic_load(&range->n_ops) > 0)
		gs_violate("%s of host memory at %p under a copy", what, (void *)range->base);
	atomic_fetch_sub(&gs_self()->host_bytes, range->len);
	gs_range_remove(range);
}

int gs_host_free(void *ptr)
{
	int err = gs_enter(STANDIN_HOST_FREE);
	struct gs_range *range;

	if (err != 0 || ptr == NULL)
		return err;
	range = range_at(ptr, GS_HOST, GS_HOST);
	if (range == NULL || !range->own_pages)
		return STANDIN_INVALID_VALUE;
	gs_streams_drain(range->dev);
	host_remove(range, "freeing");
	return 0;
}

int gs_host_register(void *ptr, size_t bytes)
{
	unsigned dev = gs_dev_current();
	int err = gs_enter_dev(STANDIN_HOST_REGISTER, dev);
	struct gs_range *range;
	unsigned char there;

	if (err != 0)
		return err;
	if (bytes == 0 ||
	    mincore((void *)((uintptr_t)ptr & ~(uintptr_t)(PAGE - 1)), 1, &there) != 0)
		return STANDIN_INVALID_VALUE;
	range = calloc(1, sizeof(*range));
	if (range == NULL)
		return STANDIN_OUT_OF_MEMORY;
	*range = (struct gs_range){.base = ptr,
				   .bytes_at = ptr,
				   .len = bytes,
				   .kind = GS_HOST,
				   .dev = dev,
				   .generation = atomic_load(&gs_node()->devs[dev].generation)};
	if (!gs_range_insert(range)) {
		free(range);
		return STANDIN_HOST_ALREADY;
	}
	atomic_fetch_add(&gs_self()->host_bytes, bytes);
	return 0;
}

int gs_host_unregister(void *ptr)
{
	int err = gs_enter(STANDIN_HOST_UNREGISTER);
	struct gs_range *range;

	if (err != 0)
		return err;
	range = range_at(ptr, GS_HOST, GS_HOST);
	if (range == NULL || range->own_pages)
		return STANDIN_HOST_NOT_REGISTERED;
	host_remove(range, "unregistering");
	return 0;
}

int gs_host_pointer(void *host, void **out_ptr)
{
	int err = gs_enter(STANDIN_HOST_POINTER);
	struct gs_range *range;

	if (err != 0)
		return err;
	range = gs_range_take(host, 1);
	gs_range_put(range);
	if (range == NULL || range->kind != GS_HOST)
		return STANDIN_INVALID_VALUE;
	*out_ptr = host;
	return 0;
}

static void pointer_fill(const struct gs_range *range, struct gs_pointer *out_pointer)
{
	*out_pointer = (struct gs_pointer){.kind = range->kind,
					   .dev = gs_dev_here(range->dev),
					   .base = range->base,
					   .bytes = range->len,
					   .id = range->id};
}

int gs_pointer_info(const void *ptr, struct gs_pointer *out_pointer)
{
	int err = gs_enter(STANDIN_POINTER_INFO);
	struct gs_range *range;

	if (err != 0)
		return err;
	range = gs_range_take(ptr, 1);
	if (range == NULL) {
		*out_pointer = (struct gs_pointer){.dev = -1};
		return 0;
	}
	pointer_fill(range, out_pointer);
	err = range->kind == GS_HOST ? 0 : gs_dev_error(range->dev);
	gs_range_put(range);
	return err;
}

int gs_address_range(const void *ptr, void **out_base, size_t *out_bytes)
{
	int err = gs_enter(STANDIN_ADDRESS_RANGE);
	struct gs_range *range;

	if (err != 0)
		return err;
	range = gs_range_take(ptr, 1);
	if (range == NULL)
		return STANDIN_NOT_FOUND;
	*out_base = range->base;
	*out_bytes = range->len;
	gs_range_put(range);
	return 0;
}

int gs_dmabuf(const void *ptr, size_t bytes, int *out_fd, uint64_t *out_offset)
{
	int err = gs_enter(STANDIN_DMABUF);
	struct gs_range *range;

	if (err != 0)
		return err;
	if (atomic_load(&gs_node()->lacks) & STANDIN_LACK_DMABUF)
		return STANDIN_NOT_SUPPORTED;
	range = gs_range_take(ptr, bytes);
	if (range == NULL)
		return STANDIN_INVALID_VALUE;
	err = range->kind == GS_DEVICE ? gs_dev_error(range->dev) : STANDIN_NOT_SUPPORTED;
	if (err == 0) {
		*out_fd = fcntl(gs_node()->allocs[range->alloc].fd, F_DUPFD_CLOEXEC, 3);
		*out_offset = (uint64_t)((const uint8_t *)ptr - range->base);
		err = *out_fd >= 0 ? 0 : STANDIN_OUT_OF_MEMORY;
	}
	gs_range_put(range);
	return err;
}
