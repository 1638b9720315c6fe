/* A device that is lost: it has answered an error that does not pass, or its copies do not end. No
 * copy of it may land after its transfers have ended, and an error proves nothing of the kind: the
 * device is reset for this process, and only then its flights are given back. Where the reset
 * hangs or fails, they stay out, and with them their transfers: nothing else would be true. Copies
 * that other devices make from or to its memory, or host memory that it has page-locked, end before
 * the reset takes that away. Any thread; the reset has one of its own, which is there from the
 * beginning: nothing about it can fail for want of memory. */
#include <stddef.h>
#include <sys/timerfd.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/gpu/gpu_priv.h"

#define PAUSE_NS       1000000
#define OTHERS_WAIT_NS (2 * KVX_SEC)
#define RESET_WAIT_NS  (10 * KVX_SEC)
#define RETRY_FIRST_MS 10u
#define RETRY_MOST_MS  60000u
#define CODE_DESTROYED 709 /* of both runtimes: the context has been destroyed */

static struct kvx_dom *dom_of_reset(struct gpu_call *call)
{
	return (struct kvx_dom *)(void *)((char *)call - offsetof(struct kvx_dom, reset_call));
}

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

/* That the device answers nothing but errors is no answer to whether its copies are over: done is
 * what the runtime says is done, or that there is nothing left that could be reset. */
static bool reset_is_done(int err)
{
	return err == 0 || kvx_gpu_code() == CODE_DESTROYED;
}

static int reset_run(struct gpu_call *call)
{
	struct kvx_dom *dom = dom_of_reset(call);
	unsigned retry_ms = RETRY_FIRST_MS;
	int err;

	reset_wait_for_others(dom);
	while (!reset_is_done(err = dom->gpu->ops->reset(dom->gpu, dom->device))) {
		kvx_error("gpu: %s: resetting the device failed: %s (%d): transfers that use it do "
			  "not end before; trying again in %u ms (if that goes on: restart the "
			  "daemon, or the node)",
			  dom->name, kvx_gpu_code_name(dom->gpu, kvx_gpu_code()), kvx_gpu_code(),
			  retry_ms);
		for (unsigned i = 0; i < retry_ms; i++)
			pause_a_moment();
		retry_ms = retry_ms * 4 < RETRY_MOST_MS ? retry_ms * 4 : RETRY_MOST_MS;
	}
	kvx_info("gpu: %s: the device was reset: nothing of its copies lands any more", dom->name);
	return 0;
}

static void reset_late(struct gpu_call *call)
{
	struct kvx_dom *dom = dom_of_reset(call);

	atomic_fetch_or(&gpu_shared()->lost_resets, 1u << (unsigned)dom->device);
	atomic_store(&dom->reset, GPU_RESET_DONE);
}

int gpu_reset_prepare(struct kvx_dom *dom)
{
	dom->reset_call = (struct gpu_call){.run = reset_run, .late = reset_late};
	return gpu_control_create("kvx-gpu-reset", dom->device, &dom->reset_control);
}

/* It may sleep, and who has found the loss may be another thread. */
static void worker_wake(const struct kvx_dom *dom)
{
	const struct itimerspec now = {.it_value.tv_nsec = 1};

	timerfd_settime(dom->timer_fd, 0, &now, NULL);
}

void gpu_dom_lose(struct kvx_dom *dom, int code, const char *text)
{
	if (atomic_exchange(&dom->lost_begun, true))
		return;
	atomic_store(&dom->lost_text, text);
	atomic_store(&dom->lost_code, code);
	atomic_fetch_or(&gpu_shared()->lost, 1u << (unsigned)dom->device);
	atomic_store(&dom->reset, GPU_RESET_RUNS);
	/* First: who finds that it is lost counts as nobody inside, and must close nothing any
	 * more while it is being reset. */
	kvx_gpu_maps_abandon(dom->maps);
	atomic_store(&dom->lost, true);
	kvx_error("gpu: %s (%s) is lost: %s: %s (%d)", dom->name, dom->id.pci, text,
		  code != 0 ? kvx_gpu_code_name(dom->gpu, code) : "no code", code);
	gpu_control_send(dom->reset_control, &dom->reset_call, UINT64_MAX);
	worker_wake(dom);
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
