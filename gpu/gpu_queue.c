/* Streams and events, which CUDA and HIP have with the same arguments under names of their own. Any
 * thread. */
#include <errno.h>
#include <string.h>

#include "gpu/gpu_priv.h"

enum { STREAM_NON_BLOCKING = 1, EVENT_DISABLE_TIMING = 2 };

static const struct gpu_queue_calls *calls_of(struct kvx_gpu *gpu)
{
	return &((struct gpu_adapter *)gpu)->queue; /* gpu is its first member */
}

int gpu_stream_create(struct kvx_gpu *gpu, void **out_stream)
{
	return gpu_err(calls_of(gpu)->stream_create(out_stream, STREAM_NON_BLOCKING));
}

int gpu_stream_destroy(struct kvx_gpu *gpu, void *stream)
{
	return gpu_err(calls_of(gpu)->stream_destroy(stream));
}

int gpu_stream_sync(struct kvx_gpu *gpu, void *stream)
{
	return gpu_err(calls_of(gpu)->stream_sync(stream));
}

int gpu_event_create(struct kvx_gpu *gpu, void **out_event)
{
	return gpu_err(calls_of(gpu)->event_create(out_event, EVENT_DISABLE_TIMING));
}

int gpu_event_destroy(struct kvx_gpu *gpu, void *event)
{
	return gpu_err(calls_of(gpu)->event_destroy(event));
}

int gpu_event_record(struct kvx_gpu *gpu, void *event, void *stream)
{
	return gpu_err(calls_of(gpu)->event_record(event, stream));
}

int gpu_event_query(struct kvx_gpu *gpu, void *event)
{
	return gpu_err(calls_of(gpu)->event_query(event));
}

int gpu_event_open(struct kvx_gpu *gpu, const uint8_t bytes[KVX_GPU_IPC_BYTES], void **out_event)
{
	struct gpu_ipc_handle ipc;

	memcpy(ipc.bytes, bytes, sizeof(ipc.bytes));
	return gpu_err(calls_of(gpu)->ipc_open_event(out_event, ipc));
}

int gpu_event_export(struct kvx_gpu *gpu, void *event, uint8_t out_bytes[KVX_GPU_IPC_BYTES])
{
	struct gpu_ipc_handle ipc;

	if (calls_of(gpu)->ipc_get_event == NULL)
		return -EOPNOTSUPP;
	int err = gpu_err(calls_of(gpu)->ipc_get_event(&ipc, event));
	if (err == 0)
		memcpy(out_bytes, ipc.bytes, sizeof(ipc.bytes));
	return err;
}
