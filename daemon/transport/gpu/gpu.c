/* The gpu backend: same-node copies from and to GPU memory, made by one device. This file is its
 * table, and the opening and closing of a domain; see gpu_priv.h for the files and who runs what on
 * which thread. Opening is a call of the control thread, as all that may hang. */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "transport/gpu/gpu_priv.h"

/* All devices are opened at once. The service manager waits 90 s for all of the start. */
#define OPEN_TIMEOUT_NS (30 * KVX_SEC)

/* 64 MiB take some milliseconds at the speed of PCIe. */
#define MAX_OP_BYTES  (64ull << 20)
#define BATCH_BYTES   (64ull << 20)
#define QUEUE_BATCHES 8u

/* ---- opening and closing, on the control thread */

struct open_call {
	struct gpu_call call; /* first */
	struct kvx_dom *dom;
	int gather_max_bytes;
	struct kvx_why why;
};

static int open_failed(struct open_call *o, int err, const char *what)
{
	struct kvx_gpu *gpu = o->dom->gpu;

	return kvx_why(&o->why, err, "%s: %s: %s (%d)", o->dom->name, what,
		       kvx_gpu_code_name(gpu, kvx_gpu_code()), kvx_gpu_code());
}

static int dom_make_flights(struct kvx_dom *dom)
{
	const struct kvx_gpu_ops *ops = dom->gpu->ops;
	size_t list_bytes = GPU_FLIGHT_COPIES * sizeof(struct kvx_gpu_piece);
	void *lists;
	int err = ops->host_alloc(dom->gpu, GPU_FLIGHTS * list_bytes, &lists);

	if (err < 0)
		return err;
	dom->lists = lists;
	for (unsigned i = 0; i < GPU_FLIGHTS; i++) {
		struct gpu_flight *flight = &dom->flights[i];

		flight->list = (struct kvx_gpu_piece *)lists + (size_t)i * GPU_FLIGHT_COPIES;
		err = ops->event_create(dom->gpu, &flight->event);
		if (err < 0)
			return err;
		flight->next = dom->free_flights;
		dom->free_flights = flight;
	}
	return 0;
}

static int dom_make_streams(struct kvx_dom *dom)
{
	const struct kvx_gpu_ops *ops = dom->gpu->ops;
	int err = ops->stream_create(dom->gpu, &dom->control_stream);

	if (err == 0)
		err = ops->event_create(dom->gpu, &dom->watch_event);
	for (unsigned i = 0; err == 0 && i < dom->n_streams; i++) {
		err = ops->stream_create(dom->gpu, &dom->streams[i].stream);
		if (err == 0)
			err = ops->event_create(dom->gpu, &dom->fence_events[i]);
	}
	return err;
}

/* Also of a domain that was made in part. */
static void dom_unmake(struct kvx_dom *dom)
{
	struct kvx_gpu *gpu = dom->gpu;
	const struct kvx_gpu_ops *ops = gpu->ops;

	kvx_gpu_maps_destroy(dom->maps);
	dom->maps = NULL;
	gpu_flush_unmake(dom);
	if (atomic_load(&dom->lost)) { /* with the reset all of it is gone */
		ops->close(gpu, dom->device);
		return;
	}
	for (unsigned i = 0; i < GPU_FLIGHTS; i++)
		if (dom->flights[i].event != NULL)
			ops->event_destroy(gpu, dom->flights[i].event);
	for (unsigned i = 0; i < dom->n_streams; i++) {
		if (dom->fence_events[i] != NULL)
			ops->event_destroy(gpu, dom->fence_events[i]);
		if (dom->streams[i].stream != NULL)
			ops->stream_destroy(gpu, dom->streams[i].stream);
	}
	if (dom->watch_event != NULL)
		ops->event_destroy(gpu, dom->watch_event);
	if (dom->control_stream != NULL)
		ops->stream_destroy(gpu, dom->control_stream);
	if (dom->lists != NULL)
		ops->host_free(gpu, dom->lists);
	if (dom->scratch != NULL)
		ops->host_free(gpu, dom->scratch);
	if (dom->opened)
		ops->close(gpu, dom->device);
}

static int dom_make(struct open_call *o)
{
	struct kvx_dom *dom = o->dom;
	const struct kvx_gpu_ops *ops = dom->gpu->ops;
	void *scratch = NULL;
	int err = ops->open(dom->gpu, dom->device);

	if (err < 0)
		return open_failed(o, err, "opening the device");
	dom->opened = true;
	err = ops->bind(dom->gpu, dom->device, NULL);
	if (err == 0)
		err = ops->host_alloc(dom->gpu, KVX_GPU_MAX_WITNESSES * KVX_GPU_WITNESS_BYTES,
				      &scratch);
	if (err < 0)
		return open_failed(o, err, "allocating page-locked memory");
	dom->scratch = scratch;
	err = dom_make_streams(dom);
	if (err == 0)
		err = dom_make_flights(dom);
	if (err < 0)
		return open_failed(o, err, "making streams and events");
	err = kvx_gpu_maps_create(dom->gpu, dom->device, &dom->maps);
	if (err < 0)
		return kvx_why(&o->why, err, "%s: no memory for its mappings", dom->name);
	gpu_gather_choose(dom, o->gather_max_bytes);
	return 0;
}

static int open_run(struct gpu_call *call)
{
	struct open_call *o = (struct open_call *)(void *)call;
	int err = dom_make(o);

	if (err < 0)
		dom_unmake(o->dom);
	return err;
}

static void dom_free(struct kvx_dom *dom)
{
	if (dom->reset_control != NULL)
		gpu_control_destroy(dom->reset_control);
	if (dom->timer_fd >= 0)
		close(dom->timer_fd);
	dom->magic = 0;
	free(dom);
}

static void open_late(struct gpu_call *call)
{
	struct open_call *o = (struct open_call *)(void *)call;

	if (call->status == 0)
		dom_unmake(o->dom);
	dom_free(o->dom);
	free(o);
}

static int close_run(struct gpu_call *call)
{
	dom_unmake((struct kvx_dom *)(void *)((char *)call - offsetof(struct kvx_dom, close_call)));
	return 0;
}

/* The process ends soon: what is not given back now goes with it. */
static void close_late(struct gpu_call *call)
{
}

/* ---- the domain, as workers know it */

static int dom_create(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
		      struct kvx_why *why)
{
	const struct gpu_shared *shared = gpu_shared();
	struct kvx_dom *dom;

	if (shared == NULL || conf->rail == NULL)
		return kvx_why(why, -ENODEV, "no GPU runtime was started");
	int device = gpu_device_find(shared, &conf->rail->gpu);
	if (device < 0)
		return kvx_why(why, -ENODEV, "%s: the device is not there any more",
			       conf->rail->name);
	dom = calloc(1, sizeof(*dom));
	if (dom == NULL)
		return kvx_why(why, -ENOMEM, "%s: no memory for the domain", conf->rail->name);
	dom->magic = GPU_DOM_MAGIC;
	dom->gpu = shared->gpu;
	dom->device = device;
	dom->id = conf->rail->gpu;
	dom->host_direct = shared->devices[device].host_direct;
	dom->batch = (dom->gpu->caps & KVX_GPU_CAP_BATCH) != 0;
	dom->call_timeout_ns = conf->gpu.call_timeout_ms * KVX_MS;
	dom->fence_timeout_ns = conf->gpu.fence_timeout_ms * KVX_MS;
	dom->n_streams = conf->gpu.streams;
	if (dom->n_streams < 1 || dom->n_streams > GPU_MAX_STREAMS)
		dom->n_streams = 4;
	snprintf(dom->name, sizeof(dom->name), "%s", conf->rail->name);
	dom->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (dom->timer_fd < 0) {
		int err = -errno;
		dom_free(dom);
		return kvx_why(why, err, "%s: timerfd: %s", conf->rail->name, strerror(-err));
	}
	int err = gpu_reset_prepare(dom);
	if (err < 0) {
		dom_free(dom);
		return kvx_why(why, err, "%s: no thread to reset the device", conf->rail->name);
	}
	*out_dom = dom;
	return 0;
}

static int dom_make_controls(struct kvx_dom *dom, struct gpu_control **out_control,
			     struct gpu_control **out_pins)
{
	char name[16];

	snprintf(name, sizeof(name), "kvx-%.6s-ctl", dom->name);
	int err = gpu_control_create(name, dom->device, out_control);
	if (err < 0)
		return err;
	snprintf(name, sizeof(name), "kvx-%.6s-pin", dom->name);
	err = gpu_control_create(name, dom->device, out_pins);
	if (err < 0) {
		gpu_control_destroy(*out_control);
		return err;
	}
	gpu_control_pair(*out_control, *out_pins);
	dom->control = *out_control;
	dom->pins = *out_pins;
	return 0;
}

/* Takes dom, also on failure. */
static int dom_start(struct kvx_dom *dom, const struct kvx_dom_conf *conf, struct kvx_why *why)
{
	struct open_call *o = calloc(1, sizeof(*o));
	struct gpu_control *control, *pins; /* dom may be the thread's before they end */

	if (o == NULL) {
		dom_free(dom);
		return kvx_why(why, -ENOMEM, "no memory to open a GPU");
	}
	o->call = (struct gpu_call){.run = open_run, .late = open_late};
	o->dom = dom;
	o->gather_max_bytes = conf->gpu.gather_max_bytes;
	int err = dom_make_controls(dom, &control, &pins);
	if (err < 0) {
		kvx_why(why, err, "%s: no thread for its calls", dom->name);
		goto err_free;
	}
	err = gpu_control_call(control, &o->call, OPEN_TIMEOUT_NS);
	if (err == 0) {
		free(o);
		return 0;
	}
	if (err == -ETIMEDOUT)
		kvx_why(why, err,
			"%s: the device does not answer within 30 s: see nvidia-smi or "
			"rocm-smi; it is not used until the daemon starts anew",
			conf->rail->name);
	else
		*why = o->why;
	gpu_control_destroy(control);
	gpu_control_destroy(pins);
	if (err == -ETIMEDOUT)
		return err;

err_free:
	free(o);
	dom_free(dom);
	return err;
}

static int gpu_open(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
		    struct kvx_transport_limits *out_limits, struct kvx_why *why)
{
	struct kvx_dom *dom = NULL;
	int err = dom_create(conf, &dom, why);

	if (err == 0)
		err = dom_start(dom, conf, why);
	if (err < 0)
		return err;
	err = dom->gpu->ops->bind(dom->gpu, dom->device, NULL); /* this is the worker's thread */
	if (err < 0)
		gpu_dom_lose(dom, kvx_gpu_code(), "the worker cannot use the device");
	*out_limits = (struct kvx_transport_limits){
	    .max_op_bytes = MAX_OP_BYTES,
	    .batch_bytes = BATCH_BYTES,
	    .batch_ops = GPU_BATCH_OPS,
	    .queue_batches = QUEUE_BATCHES,
	    .event_fd = dom->timer_fd,
	    .counters = &dom->counters,
	};
	kvx_info("gpu: %s is %s at %s: %u streams, %s, pieces up to %" PRIu64 " bytes by the "
		 "gather kernel",
		 dom->name, conf->rail->device, dom->id.pci, dom->n_streams,
		 dom->batch ? "batched copies" : "single copies", dom->gather_max_bytes);
	*out_dom = dom;
	return 0;
}

static void gpu_close(struct kvx_dom *dom)
{
	KVX_CHECK_MAGIC(dom, GPU_DOM_MAGIC);
	kvx_assert(dom->n_eps == 0 && dom->n_rkeys == 0 && dom->n_out == 0);
	struct gpu_control *control = dom->control;
	if (atomic_load(&dom->lost) && !gpu_dom_wait_reset(dom)) {
		kvx_warn("gpu: %s: its reset does not return, leaving it", dom->name);
		return; /* the thread uses the domain when it does */
	}
	gpu_control_unpair(control);
	if (!gpu_control_destroy(dom->pins)) { /* a call has hold of it */
		gpu_control_destroy(control);
		return;
	}
	dom->close_call = (struct gpu_call){.run = close_run, .late = close_late};
	int err = gpu_control_call_always(control, &dom->close_call, dom->call_timeout_ns);
	if (err == -ETIMEDOUT) { /* dom is the thread's */
		gpu_control_destroy(control);
		return;
	}
	/* Else a call that hangs has hold of it. */
	if (gpu_control_destroy(control) && atomic_load(&dom->n_inside) == 0)
		dom_free(dom);
}

static int gpu_listen(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
		      size_t *addr_len)
{
	KVX_CHECK_MAGIC(dom, GPU_DOM_MAGIC);
	struct kvx_ep *ep = calloc(1, sizeof(*ep));

	if (ep == NULL)
		return -ENOMEM;
	ep->dom = dom;
	kvx_counter_add_shared(&dom->counters.eps_made, 1);
	atomic_fetch_add(&dom->n_eps, 1);
	*addr_len = 0; /* nobody connects to a loopback */
	*out_ep = ep;
	return 0;
}

static int gpu_connect(struct kvx_ep *ep, const void *addr, size_t addr_len)
{
	return -EOPNOTSUPP;
}

static void gpu_ep_close(struct kvx_ep *ep)
{
	kvx_assert(ep->n_open == 0);
	atomic_fetch_sub(&ep->dom->n_eps, 1);
	free(ep);
}

static void gpu_lease(struct kvx_ep *ep, uint64_t deadline_ns)
{
	/* Nothing arrives from other nodes. */
}

const struct kvx_transport_ops kvx_gpu_transport_ops = {
    .name = "gpu",
    .caps = KVX_CAP_SAME_NODE | KVX_CAP_EVENT_FD | KVX_CAP_BLOCKING_CONTROL | KVX_CAP_KEYS_ON_LOOP,
    .probe = gpu_probe,
    .open = gpu_open,
    .close = gpu_close,
    .listen = gpu_listen,
    .connect = gpu_connect,
    .ep_close = gpu_ep_close,
    .mem_reg = gpu_mem_reg,
    .mem_dereg = gpu_mem_dereg,
    .mkey_pack = gpu_mkey_pack,
    .rkey_unpack = gpu_rkey_unpack,
    .rkey_free = gpu_rkey_free,
    .post = gpu_post,
    .progress = gpu_progress,
    .arm = gpu_arm,
    .fence = gpu_fence,
    .lease = gpu_lease,
};
