/* Copies, streams, events and kernels of the stand-in's libcuda.so.1, see front_cu.h. */
#include "front_cu.h"

enum { FLAG_EVENT_NO_TIMING = 2, FLAG_EVENT_IPC = 4 };

int cuMemcpyAsync(devptr dst, devptr src, size_t bytes, void *stream)
{
	struct gs_copy copy = {.dst = ptr_of(dst), .src = ptr_of(src), .bytes = bytes, .rows = 1};
	int err = front_context_missing();

	return err != 0 ? err : gs_copy_async(STANDIN_COPY, &copy, 1, GS_ANY, stream);
}

static int copy_now(void *dst, const void *src, size_t bytes, enum gs_direction direction)
{
	struct gs_copy copy = {.dst = dst, .src = src, .bytes = bytes, .rows = 1};
	int err = front_context_missing();

	return err != 0 ? err : gs_copy_sync(&copy, direction);
}

int cuMemcpy(devptr dst, devptr src, size_t bytes)
{
	return copy_now(ptr_of(dst), ptr_of(src), bytes, GS_ANY);
}

int cuMemcpyHtoD_v2(devptr dst, const void *src, size_t bytes)
{
	return copy_now(ptr_of(dst), src, bytes, GS_H2D);
}

int cuMemcpyDtoH_v2(void *dst, devptr src, size_t bytes)
{
	return copy_now(dst, ptr_of(src), bytes, GS_D2H);
}

int cuMemcpy2DAsync_v2(const struct cuda_copy_2d *p, void *stream)
{
	const uint8_t *src = p->src_type == TYPE_HOST ? p->src_host : ptr_of(p->src_device);
	uint8_t *dst = p->dst_type == TYPE_HOST ? p->dst_host : ptr_of(p->dst_device);
	struct gs_copy copy = {
	    .dst = dst + p->dst_y * p->dst_pitch + p->dst_x,
	    .src = src + p->src_y * p->src_pitch + p->src_x,
	    .bytes = p->width,
	    .rows = p->height,
	    .dst_pitch = p->dst_pitch,
	    .src_pitch = p->src_pitch,
	};
	int err = front_context_missing();

	if (err == 0)
		err = gs_copy_async(STANDIN_COPY_2D, &copy, 1, GS_ANY, stream);
	return err == STANDIN_INVALID_PITCH ? STANDIN_INVALID_VALUE : err;
}

#ifndef GS_OLD
int cuMemcpyBatchAsync_v2(devptr *dsts, devptr *srcs, size_t *sizes, size_t n, void *attrs,
			  size_t *attr_idxs, size_t n_attrs, void *stream)
{
	int err = front_context_missing();

	if (err == 0 && (attrs == NULL || n_attrs == 0 || attr_idxs == NULL || attr_idxs[0] != 0))
		err = STANDIN_INVALID_VALUE;
	return err != 0 ? err : gs_copy_batch(dsts, srcs, sizes, n, stream);
}

/* As release 12.8 has it. */
int cuMemcpyBatchAsync(devptr *dsts, devptr *srcs, size_t *sizes, size_t n, void *attrs,
		       size_t *attr_idxs, size_t n_attrs, size_t *fail_idx, void *stream)
{
	int err = cuMemcpyBatchAsync_v2(dsts, srcs, sizes, n, attrs, attr_idxs, n_attrs, stream);

	if (err != 0 && fail_idx != NULL)
		*fail_idx = SIZE_MAX;
	return err;
}
#endif

int cuMemsetD8_v2(devptr ptr, unsigned char value, size_t bytes)
{
	int err = front_context_missing();

	return err != 0 ? err : gs_memset(ptr_of(ptr), value, bytes, NULL, 1);
}

int cuMemsetD8Async(devptr ptr, unsigned char value, size_t bytes, void *stream)
{
	int err = front_context_missing();

	return err != 0 ? err : gs_memset(ptr_of(ptr), value, bytes, stream, 0);
}

int cuStreamCreate(void **out_stream, unsigned flags)
{
	int err = front_context_missing();

	(void)flags;
	return err != 0 ? err : gs_stream_create((struct gs_stream **)out_stream);
}

int cuStreamDestroy_v2(void *stream)
{
	return gs_stream_destroy(stream);
}

int cuStreamQuery(void *stream)
{
	return gs_stream_query(stream);
}

int cuStreamSynchronize(void *stream)
{
	return gs_stream_sync(stream);
}

int cuStreamWaitEvent(void *stream, void *event, unsigned flags)
{
	(void)flags;
	return gs_stream_wait(stream, event);
}

int cuEventCreate(void **out_event, unsigned flags)
{
	int err = front_context_missing();

	if (err == 0 && (flags & FLAG_EVENT_IPC) && !(flags & FLAG_EVENT_NO_TIMING))
		err = STANDIN_INVALID_VALUE;
	return err != 0 ? err
			: gs_event_create(flags & FLAG_EVENT_IPC ? GS_EVENT_IPC : 0,
					  (struct gs_event **)out_event);
}

int cuEventRecord(void *event, void *stream)
{
	return gs_event_record(event, stream);
}

int cuEventQuery(void *event)
{
	return gs_event_query(event);
}

int cuEventSynchronize(void *event)
{
	return gs_event_sync(event);
}

int cuEventElapsedTime(float *ms, void *start, void *end)
{
	return gs_event_elapsed(ms, start, end);
}

int cuEventDestroy_v2(void *event)
{
	return gs_event_destroy(event);
}

int cuIpcGetEventHandle(struct ipc_handle *handle, void *event)
{
	return gs_ipc_event_get(event, handle->bytes);
}

int cuIpcOpenEventHandle(void **out_event, struct ipc_handle handle)
{
	int err = front_context_missing();

	return err != 0 ? err : gs_ipc_event_open(handle.bytes, (struct gs_event **)out_event);
}

int cuModuleLoadData(void **out_module, const void *image)
{
	int err = front_context_missing();

	return err != 0 ? err : gs_module_load(image, (struct gs_module **)out_module);
}

int cuModuleUnload(void *module)
{
	return gs_module_unload(module);
}

int cuModuleGetFunction(void **out_function, void *module, const char *name)
{
	return gs_module_function(module, name, out_function);
}

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
		   unsigned bz, unsigned shared, void *stream, void **params, void **extra)
{
	int err = front_context_missing();

	(void)shared;
	if (err == 0 &&
	    (gx * gy * gz == 0 || bx * by * bz == 0 || bx * by * bz > 1024 || extra != NULL))
		err = STANDIN_INVALID_VALUE;
	return err != 0 ? err : gs_launch(function, params, stream);
}
