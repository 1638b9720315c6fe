/* Copies, streams, events and kernels of the stand-in's libamdhip64.so.N, see front_hip.h. */
#include "front_hip.h"

enum { KIND_DEFAULT = 4 };
enum { FLAG_EVENT_NO_TIMING = 2, FLAG_EVENT_IPC = 4 };

static enum gs_direction direction_of(int kind)
{
	return kind >= 0 && kind < KIND_DEFAULT ? (enum gs_direction)kind : GS_ANY;
}

int hipMemcpyAsync(void *dst, const void *src, size_t bytes, int kind, void *stream)
{
	struct gs_copy copy = {.dst = dst, .src = src, .bytes = bytes, .rows = 1};

	return front_keep(gs_copy_async(STANDIN_COPY, &copy, 1, direction_of(kind), stream));
}

int hipMemcpy(void *dst, const void *src, size_t bytes, int kind)
{
	struct gs_copy copy = {.dst = dst, .src = src, .bytes = bytes, .rows = 1};

	return front_keep(gs_copy_sync(&copy, direction_of(kind)));
}

int hipMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
		     size_t height, int kind, void *stream)
{
	struct gs_copy copy = {.dst = dst,
			       .src = src,
			       .bytes = width,
			       .rows = height,
			       .dst_pitch = dst_pitch,
			       .src_pitch = src_pitch};

	return front_keep(gs_copy_async(STANDIN_COPY_2D, &copy, 1, direction_of(kind), stream));
}

#if GS_HIP_MAJOR >= 7
int hipMemcpyBatchAsync(void **dsts, void **srcs, size_t *sizes, size_t n, void *attrs,
			size_t *attr_idxs, size_t n_attrs, size_t *fail_idx, void *stream)
{
	int err = STANDIN_INVALID_VALUE;

	if (attrs != NULL && n_attrs > 0 && attr_idxs != NULL && attr_idxs[0] == 0)
		err = gs_copy_batch((const unsigned long long *)dsts,
				    (const unsigned long long *)srcs, sizes, n, stream);
	if (err != 0 && fail_idx != NULL)
		*fail_idx = SIZE_MAX;
	return front_keep(err);
}
#endif

int hipMemset(void *ptr, int value, size_t bytes)
{
	return front_keep(gs_memset(ptr, value, bytes, NULL, 1));
}

int hipMemsetAsync(void *ptr, int value, size_t bytes, void *stream)
{
	return front_keep(gs_memset(ptr, value, bytes, stream, 0));
}

int hipStreamCreateWithFlags(void **out_stream, unsigned flags)
{
	(void)flags;
	return front_keep(gs_stream_create((struct gs_stream **)out_stream));
}

int hipStreamDestroy(void *stream)
{
	return front_keep(gs_stream_destroy(stream));
}

int hipStreamQuery(void *stream)
{
	return front_keep(gs_stream_query(stream));
}

int hipStreamSynchronize(void *stream)
{
	return front_keep(gs_stream_sync(stream));
}

int hipStreamWaitEvent(void *stream, void *event, unsigned flags)
{
	(void)flags;
	return front_keep(gs_stream_wait(stream, event));
}

int hipEventCreateWithFlags(void **out_event, unsigned flags)
{
	if ((flags & FLAG_EVENT_IPC) && !(flags & FLAG_EVENT_NO_TIMING))
		return front_keep(STANDIN_INVALID_VALUE);
	return front_keep(gs_event_create(flags & FLAG_EVENT_IPC ? GS_EVENT_IPC : 0,
					  (struct gs_event **)out_event));
}

int hipEventRecord(void *event, void *stream)
{
	return front_keep(gs_event_record(event, stream));
}

int hipEventQuery(void *event)
{
	return front_keep(gs_event_query(event));
}

int hipEventSynchronize(void *event)
{
	return front_keep(gs_event_sync(event));
}

int hipEventElapsedTime(float *ms, void *start, void *end)
{
	return front_keep(gs_event_elapsed(ms, start, end));
}

int hipEventDestroy(void *event)
{
	return front_keep(gs_event_destroy(event));
}

int hipIpcGetEventHandle(struct ipc_handle *handle, void *event)
{
	return front_keep(gs_ipc_event_get(event, handle->bytes));
}

int hipIpcOpenEventHandle(void **out_event, struct ipc_handle handle)
{
	return front_keep(gs_ipc_event_open(handle.bytes, (struct gs_event **)out_event));
}

int hipModuleLoadData(void **out_module, const void *image)
{
	return front_keep(gs_module_load(image, (struct gs_module **)out_module));
}

int hipModuleUnload(void *module)
{
	return front_keep(gs_module_unload(module));
}

int hipModuleGetFunction(void **out_function, void *module, const char *name)
{
	return front_keep(gs_module_function(module, name, out_function));
}

int hipModuleLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
			  unsigned by, unsigned bz, unsigned shared, void *stream, void **params,
			  void **extra)
{
	(void)shared;
	if (gx * gy * gz == 0 || bx * by * bz == 0 || bx * by * bz > 1024 || extra != NULL)
		return front_keep(STANDIN_INVALID_VALUE);
	return front_keep(gs_launch(function, params, stream));
}
