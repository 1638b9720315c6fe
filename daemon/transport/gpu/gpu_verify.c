/* Does a mapping show the memory that its owner meant? The owner has said what stands at some
 * places of it; the same places are read through the mapping and compared. A runtime that opens the
 * wrong memory, as some have, is found out before a byte is copied. Control thread. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "transport/gpu/gpu_priv.h"

#define SYNC_TRIES 3u

/* Also after a failure: the mapping may be closed behind this, and the scratch is used again. */
static int verify_end(struct kvx_dom *dom)
{
	struct kvx_gpu *gpu = dom->gpu;
	int err = -EIO;

	for (unsigned i = 0; i < SYNC_TRIES && err < 0 && err != -ENODEV; i++)
		err = gpu->ops->stream_sync(gpu, dom->control_stream);
	if (err < 0)
		gpu_dom_lose(dom, kvx_gpu_code(), "copies of mapped memory do not end");
	return err < 0 ? -ENODEV : 0;
}

int gpu_verify(struct kvx_dom *dom, const struct gpu_look *looks, uint32_t n, struct kvx_why *why)
{
	struct kvx_gpu *gpu = dom->gpu;
	int err = 0;

	for (uint32_t i = 0; err == 0 && i < n; i++)
		err = gpu->ops->copy(gpu, (uintptr_t)(dom->scratch + i * KVX_GPU_WITNESS_BYTES),
				     looks[i].addr, KVX_GPU_WITNESS_BYTES, dom->control_stream);
	if (n > 0) {
		int sync_err = verify_end(dom);
		if (err == 0)
			err = sync_err;
	}
	if (err < 0)
		return kvx_why(why, err, "%s: reading the mapped memory: %s (%d)", dom->name,
			       kvx_gpu_code_name(gpu, kvx_gpu_code()), kvx_gpu_code());
	for (uint32_t i = 0; i < n; i++)
		if (memcmp(dom->scratch + i * KVX_GPU_WITNESS_BYTES, looks[i].bytes,
			   KVX_GPU_WITNESS_BYTES) != 0)
			return kvx_why(why, -EFAULT,
				       "%s: the mapped memory is not what its owner sees (place "
				       "%" PRIu32 " of %" PRIu32
				       "): was it written meanwhile? else the runtime has mapped "
				       "other memory: update it",
				       dom->name, i + 1, n);
	return 0;
}
