/* A device that is lost: it has answered an error that does not pass, or its copies do not end. No
 * copy of it may land after its transfers have ended, and an error proves nothing of the kind: the
 * device is reset for this process, and only then its flights are given back. Where the reset
 * hangs, they stay out, and with them their transfers: nothing else would be true. Copies that
 * other devices make from or to its memory end before the reset takes that memory away. Any thread;
 * the reset has one of its own. */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "transport/gpu/gpu_priv.h"

#define PAUSE_NS       1000000
#define OTHERS_WAIT_NS (2 * KVX_SEC)
#define RESET_WAIT_NS  (10 * KVX_SEC)

struct reset_call {
	struct gpu_call call; /* first */
	struct kvx_dom *dom;
	struct gpu_control *control;
};

static void pause_a_moment(void)
{
	const struct timespec pause = {.tv_nsec = PAUSE_NS};

	nanosleep(&pause, NULL);
}

/* Others' copies end by themselves, or with an error of their own device; and calls that are under
 * way return, but for one that hangs. */
static void reset_wait_for_others(struct kvx_dom *dom)
{
	struct gpu_shared *shared = gpu_shared();
	uint64_t until = kvx_now_ns() + OTHERS_WAIT_NS;

	while (
	    (atomic_load(&shared->n_visits[dom->device]) > 0 || atomic_load(&dom->n_inside) > 0) &&
	    kvx_now_ns() < until)
		pause_a_moment();
}

static int reset_run(struct gpu_call *call)
{
	struct kvx_dom *dom = ((struct reset_call *)(void *)call)->dom;
	int err;

	reset_wait_for_others(dom);
	while ((err = dom->gpu->ops->reset(dom->gpu, dom->device)) < 0 && err != -ENODEV) {
		kvx_error("gpu: %s: resetting the device failed: %s (%d), trying again: transfers "
			  "that use it do not end before",
			  dom->name, kvx_gpu_code_name(dom->gpu, kvx_gpu_code()), kvx_gpu_code());
		for (unsigned i = 0; i < 1000; i++)
			pause_a_moment();
	}
	kvx_info("gpu: %s: the device was reset: nothing of its copies lands any more", dom->name);
	return 0;
}

/* The control goes with its last call: nobody waits for it. */
static void reset_late(struct gpu_call *call)
{
	struct reset_call *r = (struct reset_call *)(void *)call;

	gpu_control_leave(r->control);
	atomic_store(&r->dom->reset, GPU_RESET_DONE); /* the domain may be gone from here on */
	free(r);
}

static void reset_start(struct kvx_dom *dom)
{
	struct reset_call *r = calloc(1, sizeof(*r));
	int err =
	    r == NULL ? -ENOMEM : gpu_control_create("kvx-gpu-reset", dom->device, &r->control);

	if (err < 0) {
		kvx_error("gpu: %s: no thread to reset the device: its transfers do not end",
			  dom->name);
		free(r);
		return;
	}
	r->call = (struct gpu_call){.run = reset_run, .late = reset_late};
	r->dom = dom;
	gpu_control_send(r->control, &r->call);
}

void gpu_dom_lose(struct kvx_dom *dom, int code, const char *text)
{
	if (atomic_exchange(&dom->lost_begun, true))
		return;
	atomic_store(&dom->lost_text, text);
	atomic_store(&dom->lost_code, code);
	atomic_fetch_or(&gpu_shared()->lost, 1u << (unsigned)dom->device);
	atomic_store(&dom->reset, GPU_RESET_RUNS);
	atomic_store(&dom->lost, true);
	kvx_gpu_maps_abandon(dom->maps);
	kvx_error("gpu: %s (%s) is lost: %s: %s (%d)", dom->name, dom->id.pci, text,
		  code != 0 ? kvx_gpu_code_name(dom->gpu, code) : "no code", code);
	reset_start(dom);
}

bool gpu_dom_wait_reset(struct kvx_dom *dom)
{
	uint64_t until = kvx_now_ns() + RESET_WAIT_NS;

	while (atomic_load(&dom->reset) != GPU_RESET_DONE) {
		if (kvx_now_ns() >= until)
			return false;
		pause_a_moment();
	}
	return true;
}
