/* GPU memory of this process, as the daemon is told of it: whose it is, which allocations it lies
 * in, and the handles by which another process maps those. Asks the runtime that the process has
 * loaded already: a pointer to GPU memory cannot come from another one. The user's thread, whose
 * current device is the same afterwards. */
#include "libclient/gpu_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Found once, for all clients of the process; never given back. */
static _Atomic(struct kvx_gpu *) runtimes[2];

static struct kvx_gpu *runtime_get(unsigned i)
{
	static const enum kvx_gpu_kind kinds[] = {KVX_GPU_CUDA, KVX_GPU_HIP};
	const struct kvx_gpu_find find = {.kind = kinds[i], .loaded_only = true};
	struct kvx_gpu *gpu = atomic_load(&runtimes[i]), *none = NULL;
	struct kvx_why why;

	if (gpu != NULL || kvx_gpu_open(&find, &gpu, &why) < 0)
		return gpu;
	if (atomic_compare_exchange_strong(&runtimes[i], &none, gpu))
		return gpu;
	kvx_gpu_close(gpu); /* another thread was faster */
	return none;
}

/* That of its regions, so that a runtime which is loaded beside it is not asked for what is not its
 * own. */
int kvx_cl_gpu_runtime(struct kvxfer_client *client, struct kvx_gpu **out_gpu)
{
	struct kvx_gpu *found[2] = {NULL, NULL};

	for (const struct kvxfer_region *r = client->regions; r != NULL; r = r->next) {
		if (r->gpu == NULL)
			continue;
		*out_gpu = r->gpu->gpu;
		return 0;
	}
	for (unsigned i = 0; i < 2; i++)
		found[i] = runtime_get(i);
	if (found[0] != NULL && found[1] != NULL)
		return kvx_cl_fail(client, -EINVAL,
				   "this process has loaded CUDA and HIP: register GPU memory "
				   "first, so that it is known whose event it is");
	*out_gpu = found[0] != NULL ? found[0] : found[1];
	if (*out_gpu == NULL)
		return kvx_cl_fail(client, -EOPNOTSUPP,
				   "this process has loaded neither libcuda.so.1 nor "
				   "libamdhip64.so");
	return 0;
}

/* Whose memory is it? 0, or the reason is written. */
static int pointer_find(struct kvxfer_client *client, const void *ptr, struct kvx_gpu **out_gpu,
			int *out_device)
{
	bool any = false;

	for (unsigned i = 0; i < 2; i++) {
		struct kvx_gpu *gpu = runtime_get(i);
		int device;

		if (gpu == NULL)
			continue;
		any = true;
		if (gpu->ops->owner(gpu, (uintptr_t)ptr, &device) < 0)
			continue;
		if (device < 0)
			return kvx_cl_fail(client, -EFAULT,
					   "%p is host memory that a GPU runtime knows: register "
					   "memory of kvxfer_region_alloc() instead",
					   ptr);
		*out_gpu = gpu;
		*out_device = device;
		return 0;
	}
	return kvx_cl_fail(client, -EFAULT, "%p is not memory of a GPU%s", ptr,
			   any ? ""
			       : ": this process has loaded neither libcuda.so.1 nor "
				 "libamdhip64.so");
}

static int runtime_failed(struct kvxfer_client *client, struct kvx_gpu *gpu, int err,
			  const char *what)
{
	return kvx_cl_fail(client, err, "%s: %s (%d)", what, kvx_gpu_code_name(gpu, kvx_gpu_code()),
			   kvx_gpu_code());
}

/* ---- allocations */

static int base_add(struct kvxfer_client *client, struct kvx_cl_gpu *g,
		    const struct kvx_gpu_range *range, uint32_t *out_base)
{
	struct kvx_cl_gpu_base *base = &g->bases[g->n_bases];

	if (range->mapped)
		return kvx_cl_fail(
		    client, -EOPNOTSUPP,
		    "the memory was made by the virtual memory calls or a memory pool, "
		    "which cannot be mapped by another process: with PyTorch set "
		    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False (HIP: "
		    "PYTORCH_HIP_ALLOC_CONF), else allocate it with %s",
		    g->gpu->ops->kind == KVX_GPU_CUDA ? "cudaMalloc" : "hipMalloc");
	*base = (struct kvx_cl_gpu_base){.addr = range->base, .len_bytes = range->bytes};
	int err = g->gpu->ops->ipc_export(g->gpu, range->base, base->ipc);
	if (err < 0)
		return runtime_failed(client, g->gpu, err == -ENODEV ? err : -EOPNOTSUPP,
				      "the memory cannot be exported to another process");
	*out_base = g->n_bases++;
	return 0;
}

static int segment_add(struct kvxfer_client *client, struct kvx_cl_gpu *g,
		       const struct kvxfer_gpu_segment *from)
{
	uint64_t addr = (uintptr_t)from->ptr;
	struct kvx_gpu_range range;
	uint32_t base = 0;

	int err = g->gpu->ops->range(g->gpu, addr, &range);
	if (err == -EINVAL || (err == 0 && !range.on_device))
		return kvx_cl_fail(client, -EFAULT,
				   "piece %" PRIu32 " at 0x%" PRIx64 " is not memory of a GPU",
				   g->n_segments, addr);
	if (err < 0)
		return runtime_failed(client, g->gpu, -EFAULT, "asking for the allocation");
	if (range.device != g->device)
		return kvx_cl_fail(client, -EINVAL,
				   "piece %" PRIu32 " is memory of device %d, the first one of "
				   "device %d: register a region for each device",
				   g->n_segments, range.device, g->device);
	if (from->len_bytes == 0 || from->len_bytes > range.base + range.bytes - addr)
		return kvx_cl_fail(client, -EINVAL,
				   "piece %" PRIu32 ": %" PRIu64 " bytes at offset %" PRIu64
				   " of an allocation of %" PRIu64 " bytes",
				   g->n_segments, from->len_bytes, addr - range.base, range.bytes);
	while (base < g->n_bases && g->bases[base].addr != range.base)
		base++;
	if (base == g->n_bases)
		err = base_add(client, g, &range, &base);
	if (err < 0)
		return err;
	g->segments[g->n_segments++] = (struct kvx_cl_gpu_segment){
	    .addr = addr, .start = g->len_bytes, .len_bytes = from->len_bytes, .base = base};
	if (__builtin_add_overflow(g->len_bytes, from->len_bytes, &g->len_bytes))
		return kvx_cl_fail(client, -EINVAL, "the pieces have more than 2^64 bytes");
	return 0;
}

/* ---- the whole */

void kvx_cl_gpu_destroy(struct kvx_cl_gpu *gpu)
{
	if (gpu == NULL)
		return;
	if (gpu->opened)
		gpu->gpu->ops->close(gpu->gpu, gpu->device);
	free(gpu->bases);
	free(gpu->segments);
	free(gpu);
}

int kvx_cl_gpu_enter(struct kvxfer_client *client, struct kvx_cl_gpu *g,
		     struct kvx_gpu_bound *out_before)
{
	int err = 0;

	if (!g->opened)
		err = g->gpu->ops->open(g->gpu, g->device);
	if (err == 0) {
		g->opened = true;
		err = g->gpu->ops->bind(g->gpu, g->device, out_before);
	}
	return err < 0 ? runtime_failed(client, g->gpu, err, "using the device of the memory") : 0;
}

void kvx_cl_gpu_leave(struct kvx_cl_gpu *g, const struct kvx_gpu_bound *before)
{
	g->gpu->ops->unbind(g->gpu, before);
}

static int segments_read(struct kvxfer_client *client, struct kvx_cl_gpu *g,
			 const struct kvxfer_gpu_segment *segments, uint32_t n_segments)
{
	struct kvx_gpu_device device;
	int err = g->gpu->ops->describe(g->gpu, g->device, &device);

	if (err < 0)
		return runtime_failed(client, g->gpu, err, "describing the device of the memory");
	g->id = device.id;
	g->dmabuf = device.dmabuf;
	for (uint32_t i = 0; err == 0 && i < n_segments; i++)
		err = segment_add(client, g, &segments[i]);
	return err;
}

int kvx_cl_gpu_create(struct kvxfer_client *client, const struct kvxfer_gpu_segment *segments,
		      uint32_t n_segments, struct kvx_cl_gpu **out_gpu, uint64_t *out_bytes)
{
	struct kvx_gpu_bound before;
	struct kvx_cl_gpu *g;

	if (segments == NULL || n_segments == 0)
		return kvx_cl_fail(client, -EINVAL, "a region of no pieces");
	g = calloc(1, sizeof(*g));
	if (g != NULL) {
		g->bases = calloc(n_segments, sizeof(*g->bases));
		g->segments = calloc(n_segments, sizeof(*g->segments));
	}
	if (g == NULL || g->bases == NULL || g->segments == NULL) {
		kvx_cl_gpu_destroy(g);
		return kvx_cl_fail(client, -ENOMEM, "out of memory");
	}
	int err = pointer_find(client, segments[0].ptr, &g->gpu, &g->device);
	if (err == 0)
		err = kvx_cl_gpu_enter(client, g, &before);
	if (err == 0) {
		err = segments_read(client, g, segments, n_segments);
		kvx_cl_gpu_leave(g, &before);
	}
	if (err < 0) {
		kvx_cl_gpu_destroy(g);
		return err;
	}
	*out_gpu = g;
	*out_bytes = g->len_bytes;
	return 0;
}

/* ---- the message */

/* Everything of it is in one allocation. NULL: out of memory. */
static Kvxp__GpuMemory *message_make(const struct kvx_cl_gpu *g)
{
	size_t n = g->n_bases + g->n_segments + g->n_witnesses;
	size_t bytes =
	    sizeof(Kvxp__GpuMemory) + n * sizeof(void *) + g->n_bases * sizeof(Kvxp__GpuBase) +
	    g->n_segments * sizeof(Kvxp__GpuSegment) + g->n_witnesses * sizeof(Kvxp__GpuWitness);
	Kvxp__GpuMemory *pb = malloc(bytes);
	if (pb == NULL)
		return NULL;
	void **rows = (void **)(pb + 1);
	Kvxp__GpuBase *bases = (Kvxp__GpuBase *)(void *)(rows + n);
	Kvxp__GpuSegment *segments = (Kvxp__GpuSegment *)(void *)(bases + g->n_bases);
	Kvxp__GpuWitness *witnesses = (Kvxp__GpuWitness *)(void *)(segments + g->n_segments);

	kvxp__gpu_memory__init(pb);
	pb->n_bases = g->n_bases;
	pb->bases = (Kvxp__GpuBase **)(void *)rows;
	pb->n_segments = g->n_segments;
	pb->segments = (Kvxp__GpuSegment **)(void *)(rows + g->n_bases);
	pb->n_witnesses = g->n_witnesses;
	pb->witnesses = (Kvxp__GpuWitness **)(void *)(rows + g->n_bases + g->n_segments);
	for (uint32_t i = 0; i < g->n_bases; i++) {
		kvxp__gpu_base__init(&bases[i]);
		pb->bases[i] = &bases[i];
	}
	for (uint32_t i = 0; i < g->n_segments; i++) {
		kvxp__gpu_segment__init(&segments[i]);
		pb->segments[i] = &segments[i];
	}
	for (uint32_t i = 0; i < g->n_witnesses; i++) {
		kvxp__gpu_witness__init(&witnesses[i]);
		pb->witnesses[i] = &witnesses[i];
	}
	return pb;
}

/* Borrows from g. */
static void message_fill(Kvxp__GpuMemory *pb, struct kvx_cl_gpu *g)
{
	if (kvx_gpu_uuid_known(&g->id))
		pb->uuid = (ProtobufCBinaryData){sizeof(g->id.uuid), g->id.uuid};
	pb->pci = g->id.pci;
	pb->no_dmabuf = g->no_dmabuf;
	for (uint32_t i = 0; i < g->n_bases; i++) {
		pb->bases[i]->ipc = (ProtobufCBinaryData){KVX_GPU_IPC_BYTES, g->bases[i].ipc};
		pb->bases[i]->len = g->bases[i].len_bytes;
		pb->bases[i]->fd = g->bases[i].fd;
		pb->bases[i]->fd_offset = g->bases[i].fd_offset;
	}
	for (uint32_t i = 0; i < g->n_segments; i++) {
		const struct kvx_cl_gpu_segment *segment = &g->segments[i];

		pb->segments[i]->allocation = segment->base;
		pb->segments[i]->offset = segment->addr - g->bases[segment->base].addr;
		pb->segments[i]->len = segment->len_bytes;
	}
	for (uint32_t i = 0; i < g->n_witnesses; i++) {
		pb->witnesses[i]->offset = g->witnesses[i].offset;
		pb->witnesses[i]->bytes =
		    (ProtobufCBinaryData){KVX_CL_WITNESS_BYTES, g->witnesses[i].shown};
	}
}

/* Memory that is in use may change between the look here and the daemon's. */
#define IN_USE_TRIES 4

static int announce_once(struct kvxfer_region *region, bool in_use)
{
	struct kvx_cl_gpu *g = region->gpu;
	const struct kvx_cl_memory memory = {
	    .kind = g->gpu->ops->kind, .fds = g->fds, .n_fds = g->n_fds};
	struct kvx_cl_memory with = memory;

	int err = kvx_cl_witnesses_show(region->client, g, in_use);
	if (err < 0)
		return err;
	with.gpu = message_make(g);
	if (with.gpu != NULL) {
		message_fill(with.gpu, g);
		err = kvx_cl_region_send(region, &with);
	} else {
		err = kvx_cl_fail(region->client, -ENOMEM, "out of memory");
	}
	free(with.gpu);
	int put_back = kvx_cl_witnesses_hide(region->client, g);
	return err < 0 ? err : put_back;
}

/* Sending them takes as many fds once more, of this process and of the system. */
static int announce_try(struct kvxfer_region *region, bool in_use)
{
	struct kvx_cl_gpu *g = region->gpu;

	int err = announce_once(region, in_use);
	if (err != -EMFILE || g->n_fds == 0 || region->client->state != KVX_CL_UP)
		return err;
	kvx_cl_dmabufs_drop(g);
	return announce_once(region, in_use);
}

int kvx_cl_gpu_announce(struct kvxfer_region *region, bool in_use)
{
	struct kvxfer_client *client = region->client;
	struct kvx_gpu_bound before;
	int err = kvx_cl_gpu_enter(client, region->gpu, &before);

	if (err < 0)
		return err;
	kvx_cl_dmabufs_export(client, region->gpu);
	for (unsigned i = 0; i < (in_use ? IN_USE_TRIES : 1); i++) {
		err = announce_try(region, in_use);
		if (err != -EFAULT)
			break;
	}
	kvx_cl_dmabufs_close(region->gpu);
	kvx_cl_gpu_leave(region->gpu, &before);
	return err;
}
