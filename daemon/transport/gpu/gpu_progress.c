/* What has landed: the events of the flights, looked at in the order of each stream, never waited
 * for. While flights are out and the worker sleeps, a timer has it look again. And the fence: the
 * streams run dry, or the device is reset. Worker thread; the fence on the worker's helper. The
 * fence has its deadline from one flight that lands to the next: what a flight is at most is fixed,
 * how many there are is not the device's fault. */
#include <errno.h>
#include <sys/timerfd.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/gpu/gpu_priv.h"

#define FENCE_PAUSE_NS 50000
#define TICK_LOST_NS   1000000
#define QUERY_TRIES    3u

static struct gpu_flight *stream_pop(struct gpu_stream *stream)
{
	struct gpu_flight *flight = stream->first;

	stream->first = flight->next;
	if (stream->first == NULL)
		stream->last = NULL;
	stream->n--;
	return flight;
}

static const char *flight_text(struct kvx_dom *dom, const struct gpu_flight *flight, int status)
{
	if (status == -ENODEV)
		return atomic_load(&dom->lost) ? atomic_load(&dom->lost_text)
					       : "the device of the other memory is lost";
	return flight->vendor_code != 0 ? kvx_gpu_code_name(dom->gpu, flight->vendor_code) : NULL;
}

/* It is on no stream any more. */
static void flight_report(struct kvx_dom *dom, struct gpu_flight *flight, int status,
			  struct kvx_tevent *event)
{
	if (status == 0 && flight->rest.len_bytes > 0)
		status = -ECANCELED; /* the fence came between */
	*event = (struct kvx_tevent){
	    .kind = KVX_TEV_OP_DONE,
	    .status = status,
	    .vendor_code = flight->vendor_code,
	    .n_ops = flight->n_ops,
	    .cookie = flight->cookie,
	    .ep = flight->ep,
	};
	if (status < 0) {
		kvx_counter_add(&dom->counters.errors, 1);
		event->text = flight_text(dom, flight, status);
	}
	kvx_counter_add(&dom->counters.completions, 1);
	gpu_flight_leave(flight);
	flight->ep->n_open--;
	dom->n_out--;
	flight->ep = NULL;
	flight->next = dom->free_flights;
	dom->free_flights = flight;
}

/* What is at the head of the stream and has landed. */
static unsigned stream_look(struct kvx_dom *dom, struct gpu_stream *stream,
			    struct kvx_tevent *events, unsigned max)
{
	unsigned n = 0;

	while (stream->first != NULL && n < max && !atomic_load(&dom->lost_begun)) {
		struct gpu_flight *flight = stream->first;
		int err = dom->gpu->ops->event_query(dom->gpu, flight->event);

		if (err == -EAGAIN)
			break;
		if (err < 0 && err != -ENODEV && ++stream->n_tries < QUERY_TRIES)
			break;
		if (err < 0) { /* nobody knows what became of it: so nothing is known */
			flight->vendor_code = kvx_gpu_code();
			gpu_dom_lose(dom, kvx_gpu_code(), "copies have failed");
			break;
		}
		stream->n_tries = 0;
		stream_pop(stream);
		atomic_fetch_add(&flight->ep->n_landed, 1);
		if (!gpu_flight_go_on(dom, flight, stream))
			flight_report(dom, flight, flight->status, &events[n++]);
	}
	return n;
}

/* Its flights are over once it was reset. */
static unsigned dom_report_lost(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max)
{
	unsigned n = 0;

	if (!dom->lost_told && max > 0) {
		dom->lost_told = true;
		events[n++] = (struct kvx_tevent){
		    .kind = KVX_TEV_DEVICE_LOST,
		    .status = -ENODEV,
		    .vendor_code = atomic_load(&dom->lost_code),
		    .text = atomic_load(&dom->lost_text),
		};
	}
	if (atomic_load(&dom->reset) != GPU_RESET_DONE)
		return n;
	for (unsigned i = 0; i < dom->n_streams; i++)
		while (dom->streams[i].first != NULL && n < max)
			flight_report(dom, stream_pop(&dom->streams[i]), -ENODEV, &events[n++]);
	return n;
}

int gpu_progress(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max)
{
	unsigned n = 0;

	if (dom->n_out > 0 && gpu_dom_enter(dom)) {
		for (unsigned i = 0; i < dom->n_streams && n < max; i++)
			n += stream_look(dom, &dom->streams[i], events + n, max - n);
		gpu_dom_leave(dom);
	}
	if (atomic_load_explicit(&dom->lost, memory_order_relaxed))
		n += dom_report_lost(dom, events + n, max - n);
	gpu_watch(dom);
	return (int)n;
}

int gpu_arm(struct kvx_dom *dom)
{
	struct itimerspec tick = {.it_value.tv_nsec = 0}; /* off */

	if (dom->n_out > 0)
		tick.it_value.tv_nsec = atomic_load(&dom->lost) ? TICK_LOST_NS : GPU_TICK_US * 1000;
	else
		tick.it_value.tv_sec = (time_t)(gpu_watch_tick_ns(dom) / KVX_SEC);
	/* Setting it takes back what it has fired: the word of a loss too, which therefore is
	 * looked for behind it. */
	if (timerfd_settime(dom->timer_fd, 0, &tick, NULL) < 0)
		return -EAGAIN;
	return atomic_load(&dom->lost) && !dom->lost_told ? -EAGAIN : 0;
}

/* ---- the fence */

/* How long a fence waits: anew with every flight that lands. */
struct patience {
	struct kvx_ep *ep;
	uint64_t until;
	unsigned n_landed;
};

static void patience_begin(struct patience *p, struct kvx_ep *ep)
{
	*p = (struct patience){ep, kvx_now_ns() + ep->dom->fence_timeout_ns,
			       atomic_load(&ep->n_landed)};
}

/* A moment. 0; -ETIMEDOUT, -ENODEV. */
static int patience_wait(struct patience *p)
{
	const struct timespec pause = {.tv_nsec = FENCE_PAUSE_NS};

	if (atomic_load(&p->ep->dom->lost))
		return -ENODEV;
	if (atomic_load(&p->ep->n_landed) != p->n_landed)
		patience_begin(p, p->ep);
	if (kvx_now_ns() >= p->until)
		return -ETIMEDOUT;
	nanosleep(&pause, NULL);
	return 0;
}

static int event_wait(struct kvx_dom *dom, void *event, struct patience *p)
{
	int err;

	while ((err = dom->gpu->ops->event_query(dom->gpu, event)) == -EAGAIN) {
		err = patience_wait(p);
		if (err < 0)
			return err;
	}
	return err < 0 ? -ENODEV : 0;
}

/* Everything that was on the streams when the fence began is through. -ETIMEDOUT. */
static int dom_drain(struct kvx_ep *ep)
{
	struct kvx_dom *dom = ep->dom;
	struct patience p;
	int err = 0;

	patience_begin(&p, ep);
	while (err == 0 && atomic_load(&ep->sending))
		err = patience_wait(&p);
	if (err < 0)
		return err;
	dom->gpu->ops->bind(dom->gpu, dom->device, NULL);
	for (unsigned i = 0; i < dom->n_streams; i++)
		if (dom->gpu->ops->event_record(dom->gpu, dom->fence_events[i],
						dom->streams[i].stream) < 0)
			return -ENODEV;
	for (unsigned i = 0; err == 0 && i < dom->n_streams; i++)
		err = event_wait(dom, dom->fence_events[i], &p);
	return err;
}

static int dom_drain_inside(struct kvx_ep *ep)
{
	int err = dom_drain(ep);

	gpu_dom_leave(ep->dom);
	return err;
}

int gpu_fence(struct kvx_ep *ep)
{
	struct kvx_dom *dom = ep->dom;

	atomic_store(&ep->fenced, true);
	if (!atomic_load(&dom->lost)) {
		int err = gpu_dom_enter(dom) ? dom_drain_inside(ep) : -ENODEV;

		if (err == 0)
			return 0;
		gpu_dom_lose(dom, err == -ENODEV ? kvx_gpu_code() : 0,
			     err == -ENODEV ? "it failed while copies were drained"
					    : "its copies do not end");
	}
	if (gpu_dom_wait_reset(dom))
		return 0;
	kvx_error(
	    "gpu: %s: copies neither end nor can be stopped: their transfers do not end until "
	    "the runtime answers, or the daemon is killed",
	    dom->name);
	return -EIO;
}
