/* Mappings of clients' GPU memory: see gpu_map.h. A node has some dozens to some hundreds of them,
 * and registering is rare: a list will do. */
#include "mem/gpu_map.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <utlist.h>

#include "base/assert.h"
#include "base/log.h"

#define CLOSE_TRIES    5u
#define CLOSE_PAUSE_NS 20000000

struct kvx_gpu_maps {
	struct kvx_gpu *gpu;
	int device;
	unsigned n;
	_Atomic bool abandoned;
	struct kvx_gpu_map *list;
};

int kvx_gpu_maps_create(struct kvx_gpu *gpu, int device, struct kvx_gpu_maps **out_maps)
{
	struct kvx_gpu_maps *maps = calloc(1, sizeof(*maps));

	if (maps == NULL)
		return -ENOMEM;
	maps->gpu = gpu;
	maps->device = device;
	*out_maps = maps;
	return 0;
}

/* Memory of an engine that is gone stays where it is as long as it is mapped: worth some tries. */
static int map_close(struct kvx_gpu_maps *maps, struct kvx_gpu_map *map)
{
	const struct timespec pause = {.tv_nsec = CLOSE_PAUSE_NS};
	int err = -EIO;

	for (unsigned i = 0; i < CLOSE_TRIES && err < 0 && !atomic_load(&maps->abandoned); i++) {
		if (i > 0)
			nanosleep(&pause, NULL);
		err = maps->gpu->ops->ipc_close(maps->gpu, map->addr);
	}
	if (atomic_load(&maps->abandoned))
		err = 0;
	if (err < 0)
		kvx_error("gpu: device %d: a mapping of %" PRIu64
			  " bytes cannot be closed: %s (%d)",
			  maps->device, map->len_bytes,
			  kvx_gpu_code_name(maps->gpu, kvx_gpu_code()), kvx_gpu_code());
	DL_DELETE(maps->list, map);
	maps->n--;
	free(map);
	return err < 0 ? -EIO : 0;
}

void kvx_gpu_maps_abandon(struct kvx_gpu_maps *maps)
{
	atomic_store(&maps->abandoned, true);
}

void kvx_gpu_maps_destroy(struct kvx_gpu_maps *maps)
{
	if (maps == NULL)
		return;
	while (maps->list != NULL)
		map_close(maps, maps->list);
	free(maps);
}

static struct kvx_gpu_map *map_find(const struct kvx_gpu_maps *maps,
				    const uint8_t ipc[KVX_GPU_IPC_BYTES])
{
	struct kvx_gpu_map *map;

	DL_FOREACH (maps->list, map) {
		if (memcmp(map->ipc, ipc, KVX_GPU_IPC_BYTES) == 0)
			return map;
	}
	return NULL;
}

static int map_fail(const struct kvx_gpu_maps *maps, int err, const char *what, struct kvx_why *why)
{
	int code = kvx_gpu_code();

	return kvx_why(
	    why, err, "%s: %s (%d)%s", what, kvx_gpu_code_name(maps->gpu, code), code,
	    err == -EBADF || err == -EINVAL ? ": was the memory freed, or its process ended?" : "");
}

/* What the runtime says that was opened: the client's word for it is not enough. */
static int map_look(const struct kvx_gpu_maps *maps, struct kvx_gpu_map *map, struct kvx_why *why)
{
	struct kvx_gpu_range range;
	int err = maps->gpu->ops->range(maps->gpu, map->addr, &range);

	if (err < 0)
		return map_fail(maps, err, "asking for the mapping's size", why);
	if (!range.on_device || range.device != maps->device)
		return kvx_why(why, -EXDEV, "the handle opens memory of %s %d, not of device %d",
			       range.on_device ? "device" : "the host", range.device, maps->device);
	map->len_bytes = range.base + range.bytes - map->addr;
	return 0;
}

static int map_open(struct kvx_gpu_maps *maps, const uint8_t ipc[KVX_GPU_IPC_BYTES],
		    struct kvx_gpu_map **out_map, struct kvx_why *why)
{
	struct kvx_gpu_map *map = calloc(1, sizeof(*map));

	if (map == NULL)
		return kvx_why(why, -ENOMEM, "no memory for a mapping");
	memcpy(map->ipc, ipc, KVX_GPU_IPC_BYTES);
	int err = maps->gpu->ops->ipc_open(maps->gpu, ipc, &map->addr);
	if (err < 0) {
		map_fail(maps, err, "opening the IPC handle of the memory", why);
		goto err_free;
	}
	err = map_look(maps, map, why);
	if (err < 0)
		goto err_close;
	maps->n++;
	DL_APPEND(maps->list, map);
	*out_map = map;
	return 0;

err_close:
	maps->gpu->ops->ipc_close(maps->gpu, map->addr);
err_free:
	free(map);
	return err;
}

int kvx_gpu_map_ref(struct kvx_gpu_maps *maps, const uint8_t ipc[KVX_GPU_IPC_BYTES],
		    uint64_t at_least, struct kvx_gpu_map **out_map, struct kvx_why *why)
{
	struct kvx_gpu_map *map = map_find(maps, ipc);

	if (map == NULL) {
		int err = map_open(maps, ipc, &map, why);
		if (err < 0)
			return err;
	}
	map->n_refs++;
	if (map->len_bytes < at_least) {
		uint64_t have = map->len_bytes;

		kvx_gpu_map_unref(maps, map);
		return kvx_why(why, -ERANGE,
			       "the allocation has %" PRIu64 " bytes, the region needs %" PRIu64,
			       have, at_least);
	}
	*out_map = map;
	return 0;
}

int kvx_gpu_map_unref(struct kvx_gpu_maps *maps, struct kvx_gpu_map *map)
{
	kvx_assert(map->n_refs > 0);
	return --map->n_refs == 0 ? map_close(maps, map) : 0;
}

unsigned kvx_gpu_maps_count(const struct kvx_gpu_maps *maps)
{
	return maps->n;
}
