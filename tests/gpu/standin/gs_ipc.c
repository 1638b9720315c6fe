/* The GPU stand-in's way from one process to another: a handle names an allocation of the node's
 * table, and whoever opens it maps the memfd of the process that made it. Memory that is mapped
 * stays, also when its owner frees it or dies, until the last mapping is closed. Any thread. */
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gs_priv.h"

#define IPC_MAGIC 0x6970637567ull

struct ipc_mem {
	uint64_t magic, id, offset;
	pid_t pid;
};
static_assert(sizeof(struct ipc_mem) <= GS_HANDLE_BYTES, "fits a handle");

/* HIP's handle is of the pointer itself, CUDA's of the allocation that it is in. */
int gs_ipc_get(void *ptr, uint8_t out_handle[GS_HANDLE_BYTES])
{
	int err = gs_enter(STANDIN_IPC_GET);
	struct ipc_mem handle = {.magic = IPC_MAGIC, .pid = getpid()};
	struct gs_range *range;

	if (err != 0)
		return err;
	if (atomic_load(&gs_node()->lacks) & STANDIN_LACK_IPC)
		return STANDIN_NOT_SUPPORTED;
	range = gs_range_take(ptr, 1);
	if (range == NULL)
		return STANDIN_INVALID_VALUE;
	err = range->kind == GS_DEVICE ? gs_dev_error(range->dev) : STANDIN_INVALID_VALUE;
	handle.id = gs_node()->allocs[range->alloc].id;
	if (gs_flavor() == GS_HIP)
		handle.offset = (uint64_t)((uint8_t *)ptr - range->base);
	gs_range_put(range);
	if (err != 0)
		return err;
	memset(out_handle, 0, GS_HANDLE_BYTES);
	memcpy(out_handle, &handle, sizeof(handle));
	return 0;
}

/* The memfd of another process; -1: that process, or what it was, is gone. */
static int memfd_of(const struct gs_alloc *alloc)
{
	char path[64];
	struct stat st;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)alloc->pid, alloc->fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0 && (fstat(fd, &st) != 0 || st.st_ino != alloc->ino)) {
		close(fd);
		return -1;
	}
	return fd;
}

static int alloc_of(const struct gs_node *node, uint64_t id)
{
	for (int i = 0; i < GS_MAX_ALLOCS; i++)
		if (node->allocs[i].id == id && node->allocs[i].owned)
			return i;
	return -1;
}

/* With the node's lock: notes that this process has the allocation. */
static int map_book(struct gs_node *node, int alloc)
{
	for (int i = 0; i < GS_MAX_MAPS; i++) {
		struct gs_map *map = &node->maps[i];

		if (map->alloc != 0)
			continue;
		map->proc = gs_self_index();
		map->alloc = (uint32_t)alloc + 1;
		node->allocs[alloc].n_maps++;
		return i;
	}
	return -1;
}

static void map_leave(uint32_t map, uint32_t alloc)
{
	struct gs_node *node = gs_node();

	gs_lock(node);
	if (node->maps[map].alloc == alloc + 1 && node->maps[map].proc == gs_self_index()) {
		node->maps[map].alloc = 0;
		node->allocs[alloc].n_maps--;
		gs_alloc_drop(node, &node->allocs[alloc]);
	}
	gs_unlock(node);
}

/* Memory that this process has open already: one more time. */
static struct gs_range *open_again(uint64_t id)
{
	struct gs_range *range = NULL;

	gs_table_lock();
	for (unsigned i = 0; (range = gs_range_nth(i)) != NULL; i++)
		if (range->kind == GS_IPC && range->alloc_id == id)
			break;
	if (range != NULL)
		range->n_opens++;
	gs_table_unlock();
	return range;
}

static int open_new(uint64_t id, struct gs_range **out_range)
{
	struct gs_node *node = gs_node();
	struct gs_range *range;
	struct gs_alloc alloc;
	int at, map = -1, fd = -1;

	gs_lock(node);
	gs_reap(node);
	at = alloc_of(node, id);
	if (at >= 0) {
		alloc = node->allocs[at];
		fd = memfd_of(&alloc);
		map = fd >= 0 ? map_book(node, at) : -1;
	}
	gs_unlock(node);
	if (map < 0) {
		if (fd >= 0)
			close(fd);
		return at < 0 || fd < 0 ? STANDIN_INVALID_VALUE : STANDIN_MAP_FAILED;
	}
	range = gs_range_add(GS_IPC, alloc.dev, alloc.bytes, fd);
	close(fd);
	if (range == NULL) {
		map_leave((uint32_t)map, (uint32_t)at);
		return STANDIN_MAP_FAILED;
	}
	range->alloc = (uint32_t)at;
	range->alloc_id = id;
	range->map = (uint32_t)map;
	range->n_opens = 1;
	*out_range = range;
	return 0;
}

int gs_ipc_open(const uint8_t handle[GS_HANDLE_BYTES], void **out_ptr)
{
	unsigned dev = gs_dev_current();
	int err = gs_enter_dev(STANDIN_IPC_OPEN, dev);
	struct gs_range *range;
	struct ipc_mem mem;

	if (err != 0)
		return err;
	if (atomic_load(&gs_node()->lacks) & STANDIN_LACK_IPC)
		return STANDIN_NOT_SUPPORTED;
	memcpy(&mem, handle, sizeof(mem));
	if (mem.magic != IPC_MAGIC)
		return STANDIN_INVALID_VALUE;
	if (mem.pid == getpid())
		return STANDIN_INVALID_CONTEXT;
	range = open_again(mem.id);
	err = range == NULL ? open_new(mem.id, &range) : 0;
	if (err != 0)
		return err;
	gs_dev_enable(dev, range->dev);
	*out_ptr = range->base + mem.offset;
	return 0;
}

int gs_ipc_close(void *ptr)
{
	int err = gs_enter(STANDIN_IPC_CLOSE);
	struct gs_range *range;
	bool last;

	if (err != 0)
		return err;
	gs_table_lock();
	range = gs_range_find(ptr, 1);
	if (range == NULL || range->kind != GS_IPC) {
		gs_table_unlock();
		return STANDIN_INVALID_VALUE;
	}
	last = --range->n_opens == 0;
	gs_table_unlock();
	err = gs_dev_error(range->dev);
	if (!last)
		return err;
	if (atomic_load(&range->n_ops) > 0)
		gs_violate("a mapping of GPU %u is closed under a copy", range->dev);
	map_leave(range->map, range->alloc);
	gs_range_remove(range);
	return err;
}

void gs_ipc_drop(struct gs_range *range)
{
	map_leave(range->map, range->alloc);
}
