/* From the wire's description of GPU memory to that of mem/gpu.h: counts and lengths are checked
 * here, whether segments fit their allocations by the memory kind. Pure. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "control/decode.h"
#include "mem/gpu.h"
#include "proto/kvx_wire.h"

static int decode_id(const Kvxp__GpuMemory *pb, struct kvx_gpu_id *out_id, struct kvx_why *why)
{
	if (pb->uuid.len != 0 && pb->uuid.len != KVX_GPU_UUID_BYTES)
		return kvx_why(why, -EINVAL, "the device's UUID has %zu bytes, not 16",
			       pb->uuid.len);
	if (pb->uuid.len > 0)
		memcpy(out_id->uuid, pb->uuid.data, pb->uuid.len);
	kvx_gpu_pci_normalise(pb->pci, out_id->pci);
	if (pb->pci[0] != '\0' && out_id->pci[0] == '\0')
		return kvx_why(why, -EINVAL, "the device's PCI address is none");
	return 0;
}

static int decode_bases(const Kvxp__GpuMemory *pb, const struct kvx_msg *msg,
			struct kvx_gpu_mem *gpu, struct kvx_why *why)
{
	bool used[KVX_WIRE_MAX_FDS + 1] = {false};

	for (uint32_t i = 0; i < gpu->n_bases; i++) {
		const Kvxp__GpuBase *from = pb->bases[i];
		struct kvx_gpu_base *base = &gpu->bases[i];

		if (from->ipc.len != KVX_GPU_IPC_BYTES)
			return kvx_why(why, -EINVAL,
				       "allocation %" PRIu32 ": its IPC handle has %zu bytes, not "
				       "%d",
				       i, from->ipc.len, KVX_GPU_IPC_BYTES);
		memcpy(base->ipc, from->ipc.data, KVX_GPU_IPC_BYTES);
		base->len_bytes = from->len;
		if (from->fd == 0 || msg->fds_lost)
			continue;
		if (from->fd > msg->n_fds || used[from->fd])
			return kvx_why(why, -EBADF,
				       "allocation %" PRIu32 " names file descriptor %" PRIu32
				       " of %u%s",
				       i, from->fd, msg->n_fds,
				       from->fd > msg->n_fds ? "" : ", and another one does");
		used[from->fd] = true;
		base->fd = (int)from->fd - 1;
		base->fd_offset = from->fd_offset;
	}
	return 0;
}

/* Only of less than a witness's bytes nothing can be shown. */
static bool needs_witnesses(const struct kvx_gpu_mem *gpu)
{
	uint64_t len = 0;

	for (uint32_t i = 0; i < gpu->n_segments; i++) {
		len += gpu->segments[i].len_bytes;
		if (len >= KVX_GPU_WITNESS_BYTES || len < gpu->segments[i].len_bytes)
			return true;
	}
	return false;
}

static int decode_witnesses(const Kvxp__GpuMemory *pb, struct kvx_gpu_mem *gpu, struct kvx_why *why)
{
	if (pb->n_witnesses == 0 && needs_witnesses(gpu))
		return kvx_why(why, -EINVAL,
			       "nothing of the memory is shown for comparison: update the client "
			       "library, or register segments of %d bytes at least",
			       KVX_GPU_WITNESS_BYTES);
	if (pb->n_witnesses > KVX_GPU_MAX_WITNESSES)
		return kvx_why(why, -EMSGSIZE, "%zu witnesses, at most %d", pb->n_witnesses,
			       KVX_GPU_MAX_WITNESSES);
	for (size_t i = 0; i < pb->n_witnesses; i++) {
		const Kvxp__GpuWitness *from = pb->witnesses[i];

		if (from->bytes.len != KVX_GPU_WITNESS_BYTES)
			return kvx_why(why, -EINVAL, "witness %zu has %zu bytes, not %d", i,
				       from->bytes.len, KVX_GPU_WITNESS_BYTES);
		gpu->witnesses[i].offset = from->offset;
		memcpy(gpu->witnesses[i].bytes, from->bytes.data, KVX_GPU_WITNESS_BYTES);
	}
	gpu->n_witnesses = (uint32_t)pb->n_witnesses;
	return 0;
}

int kvx_decode_gpu(const struct kvx_config *config, const Kvxp__GpuMemory *pb,
		   const struct kvx_msg *msg, struct kvx_gpu_mem **out_gpu, struct kvx_why *why)
{
	if (pb->n_segments == 0 || pb->n_bases == 0)
		return kvx_why(why, -EINVAL, "GPU memory of no segments");
	if (pb->n_segments > config->gpu_segments || pb->n_bases > pb->n_segments)
		return kvx_why(why, -EMSGSIZE,
			       "%zu segments of %zu allocations: at most %" PRIu32
			       " segments ([gpu] segments), and no allocation without one",
			       pb->n_segments, pb->n_bases, config->gpu_segments);
	struct kvx_gpu_mem *gpu =
	    kvx_gpu_mem_create((uint32_t)pb->n_bases, (uint32_t)pb->n_segments);
	if (gpu == NULL)
		return kvx_why(why, -ENOMEM, "no memory for the list of segments");
	for (uint32_t i = 0; i < gpu->n_segments; i++)
		gpu->segments[i] = (struct kvx_gpu_segment){
		    .base = pb->segments[i]->allocation,
		    .offset = pb->segments[i]->offset,
		    .len_bytes = pb->segments[i]->len,
		};
	int err = decode_id(pb, &gpu->id, why);
	if (err == 0)
		err = decode_bases(pb, msg, gpu, why);
	if (err == 0)
		err = decode_witnesses(pb, gpu, why);
	if (err == 0) {
		*out_gpu = gpu;
		return 0;
	}
	for (uint32_t i = 0; i < gpu->n_bases; i++)
		gpu->bases[i].fd = -1; /* indices, not ours to close */
	kvx_gpu_mem_destroy(gpu);
	return err;
}
