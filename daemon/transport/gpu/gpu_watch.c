/* Is the device still there? Who copies finds out by its copies; where only RDMA devices reach the
 * memory nobody would, and they would go on with memory of a device that is gone. So an idle device
 * with clients' memory is asked every second: for an event, and a second later what became of that.
 * An answer that is slow proves nothing, engines may keep the device busy for long: only errors
 * that do not pass count. Asked for by the worker, asked on the control thread. */
#include <errno.h>
#include <stddef.h>

#include "base/clock.h"
#include "transport/gpu/gpu_priv.h"

static struct kvx_dom *dom_of_watch(struct gpu_call *call)
{
	return (struct kvx_dom *)(void *)((char *)call - offsetof(struct kvx_dom, watch_call));
}

static int watch_run(struct gpu_call *call)
{
	struct kvx_dom *dom = dom_of_watch(call);
	const struct kvx_gpu_ops *ops = dom->gpu->ops;

	if (!gpu_dom_enter(dom))
		return -ENODEV;
	int err = ops->event_query(dom->gpu, dom->watch_event);
	if (err == 0)
		err = ops->event_record(dom->gpu, dom->watch_event, dom->control_stream);
	if (err == -ENODEV)
		gpu_dom_lose(dom, kvx_gpu_code(), "the device answers only errors");
	gpu_dom_leave(dom);
	return err;
}

static void watch_late(struct gpu_call *call)
{
	atomic_store(&dom_of_watch(call)->watch_out, false);
}

static bool watch_is_wanted(struct kvx_dom *dom)
{
	return dom->n_out == 0 && atomic_load_explicit(&dom->n_homes, memory_order_relaxed) > 0 &&
	       !atomic_load_explicit(&dom->lost, memory_order_relaxed);
}

uint64_t gpu_watch_tick_ns(struct kvx_dom *dom)
{
	return watch_is_wanted(dom) ? GPU_WATCH_NS : 0;
}

void gpu_watch(struct kvx_dom *dom)
{
	if (!watch_is_wanted(dom)) {
		dom->watch_due_ns = 0;
		return;
	}
	uint64_t now = kvx_now_ns();
	if (dom->watch_due_ns == 0)
		dom->watch_due_ns = now + GPU_WATCH_NS;
	if (now < dom->watch_due_ns || atomic_load(&dom->watch_out))
		return;
	dom->watch_due_ns = now + GPU_WATCH_NS;
	atomic_store(&dom->watch_out, true);
	dom->watch_call = (struct gpu_call){.run = watch_run, .late = watch_late};
	gpu_control_send(dom->control, &dom->watch_call, dom->call_timeout_ns);
}
