/* Events of other processes, for who waits for them: opened and closed on the control thread, where
 * a call that hangs has a deadline, and asked for on the caller's own thread, which is nobody
 * else's. Nobody waits for either: opening is looked after, closing is only sent. An event is of
 * the process that made it: this one only ever asks whether it was reached. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "transport/gpu/gpu_priv.h"

#define EVENT_MAGIC 0x6b766765766e7431ull

/* The call that opens it and the one that closes it are never under way at once. */
struct kvx_gpu_event {
	struct gpu_call call; /* first */
	uint64_t magic;
	struct kvx_dom *dom;
	uint8_t ipc[KVX_GPU_IPC_BYTES];
	void *event;
	bool opening; /* the call is out */
};

static struct kvx_gpu_event *event_of(struct gpu_call *call)
{
	return (struct kvx_gpu_event *)(void *)call;
}

static int event_open_run(struct gpu_call *call)
{
	struct kvx_gpu_event *e = event_of(call);

	if (!gpu_dom_enter(e->dom))
		return -ENODEV;
	int err = e->dom->gpu->ops->event_open(e->dom->gpu, e->ipc, &e->event);
	if (err == -ENODEV)
		gpu_dom_lose(e->dom, kvx_gpu_code(), "an event of an engine cannot be opened");
	else if (err < 0)
		kvx_debug("gpu: %s: an event of an engine cannot be opened: %s (%d)", e->dom->name,
			  kvx_gpu_code_name(e->dom->gpu, kvx_gpu_code()), kvx_gpu_code());
	gpu_dom_leave(e->dom);
	return err;
}

static int event_close_run(struct gpu_call *call)
{
	struct kvx_gpu_event *e = event_of(call);

	if (!gpu_dom_enter(e->dom)) /* it went with the reset */
		return 0;
	int err = e->dom->gpu->ops->event_destroy(e->dom->gpu, e->event);
	if (err == -ENODEV)
		gpu_dom_lose(e->dom, kvx_gpu_code(), "an event of an engine cannot be closed");
	else if (err < 0)
		kvx_warn("gpu: %s: an event of an engine cannot be closed: %s (%d)", e->dom->name,
			 kvx_gpu_code_name(e->dom->gpu, kvx_gpu_code()), kvx_gpu_code());
	gpu_dom_leave(e->dom);
	return 0;
}

/* Nobody looks after it any more. */
static void event_open_late(struct gpu_call *call)
{
	if (call->status == 0)
		event_close_run(call);
	free(event_of(call));
}

static void event_close_late(struct gpu_call *call)
{
	free(event_of(call));
}

int gpu_event_open_ipc(void *device, const uint8_t ipc[KVX_GPU_IPC_BYTES],
		       struct kvx_gpu_event **out_event)
{
	struct kvx_dom *dom = device;

	KVX_CHECK_MAGIC(dom, GPU_DOM_MAGIC);
	if (atomic_load(&dom->lost))
		return -ENODEV;
	struct kvx_gpu_event *e = calloc(1, sizeof(*e));
	if (e == NULL)
		return -ENOMEM;
	e->call.run = event_open_run;
	e->call.late = event_open_late;
	e->magic = EVENT_MAGIC;
	e->dom = dom;
	e->opening = true;
	memcpy(e->ipc, ipc, sizeof(e->ipc));
	int err = gpu_control_begin(dom->control, &e->call, dom->call_timeout_ns);
	if (err < 0) {
		free(e);
		return err;
	}
	*out_event = e;
	return 0;
}

int gpu_event_ready_ipc(struct kvx_gpu_event *event)
{
	int status;

	KVX_CHECK_MAGIC(event, EVENT_MAGIC);
	if (!event->opening)
		return 1;
	if (!gpu_control_has_ended(&event->call, &status))
		return 0;
	if (status < 0) {
		if (status != -ETIMEDOUT) /* then it is the control thread's */
			free(event);
		return status;
	}
	event->opening = false;
	return 1;
}

void gpu_event_close_ipc(struct kvx_gpu_event *event)
{
	KVX_CHECK_MAGIC(event, EVENT_MAGIC);
	if (event->opening && !gpu_control_leave(&event->call))
		return; /* it is the control thread's */
	event->magic = 0;
	if (event->event == NULL) {
		free(event);
		return;
	}
	event->call = (struct gpu_call){.run = event_close_run, .late = event_close_late};
	gpu_control_send(event->dom->control, &event->call, event->dom->call_timeout_ns);
}

int gpu_event_query_ipc(struct kvx_gpu_event *event)
{
	struct kvx_dom *dom = event->dom;
	const struct kvx_gpu_ops *ops = dom->gpu->ops;

	KVX_CHECK_MAGIC(event, EVENT_MAGIC);
	if (!gpu_dom_enter(dom))
		return -ENODEV;
	int err = ops->bind(dom->gpu, dom->device, NULL);
	if (err == 0)
		err = ops->event_query(dom->gpu, event->event);
	if (err == -ENODEV)
		gpu_dom_lose(dom, kvx_gpu_code(), "asking for an event of an engine");
	else if (err < 0 && err != -EAGAIN)
		kvx_debug("gpu: %s: asking for an event of an engine: %s (%d)", dom->name,
			  kvx_gpu_code_name(dom->gpu, kvx_gpu_code()), kvx_gpu_code());
	gpu_dom_leave(dom);
	return err == 0 ? 1 : err == -EAGAIN ? 0 : err;
}
