/* Calls of the GPU runtime that may hang (an IPC handle whose memory is gone, a driver that waits
 * for a device), made on a thread of their own: whoever needs one waits for it, but not for ever. A
 * call that does not come back in time is left to the thread, which undoes it if it ever does;
 * until then the device takes no further ones. So a hang costs this device its registrations, and
 * nobody else anything. One control thread per device; callers are helpers of the device's worker.
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "transport/gpu/gpu_priv.h"

#define WAIT_STEP_NS (KVX_SEC / 2)

struct gpu_control {
	struct kvx_queue *todo;
	int device;
	pthread_t thread;
	sem_t ended;
	_Atomic unsigned
	    n_stuck;         /* calls that nobody waits for any more and that have not returned */
	_Atomic bool parted; /* thread and owner need each other no more; the second frees */
};

static void control_free(struct gpu_control *control)
{
	kvx_queue_destroy(control->todo);
	sem_destroy(&control->ended);
	free(control);
}

static void control_run(struct gpu_control *control, struct gpu_call *call)
{
	if (!call->waited) {
		call->status = call->run(call);
		call->late(call);
		return;
	}

	atomic_store(&call->begun, true);
	call->status = atomic_load(&call->parted) ? -ETIMEDOUT : call->run(call);
	if (!atomic_exchange(&call->parted, true)) {
		sem_post(&call->done);
		return;
	}
	sem_destroy(&call->done);
	kvx_warn("gpu: device %d: a call that was given up has returned (%d): registering memory "
		 "goes on",
		 control->device, call->status);
	call->late(call);
	atomic_fetch_sub(&control->n_stuck, 1);
}

static void *control_main(void *arg)
{
	struct gpu_control *control = arg;
	struct kvx_queue_node *node;

	kvx_role_set_worker();
	while ((node = kvx_queue_pop_wait(control->todo)) != NULL)
		control_run(control, (struct gpu_call *)(void *)node); /* its first member */
	sem_post(&control->ended);
	if (atomic_exchange(&control->parted, true))
		control_free(control);
	return NULL;
}

int gpu_control_create(const char *name, int device, struct gpu_control **out_control)
{
	struct gpu_control *control = calloc(1, sizeof(*control));

	if (control == NULL)
		return -ENOMEM;
	control->device = device;
	sem_init(&control->ended, 0, 0);
	int err = kvx_queue_create(&control->todo);
	if (err < 0)
		goto err_free;
	err = kvx_thread_start(&control->thread, name, control_main, control);
	if (err < 0)
		goto err_queue;
	*out_control = control;
	return 0;

err_queue:
	kvx_queue_destroy(control->todo);
err_free:
	sem_destroy(&control->ended);
	free(control);
	return err;
}

void gpu_control_send(struct gpu_control *control, struct gpu_call *call)
{
	call->waited = false;
	call->control = control;
	kvx_queue_push(control->todo, &call->node);
}

/* A step on the wall clock, which may be set meanwhile: the deadline is on the other one. */
static bool wait_step(sem_t *sem, uint64_t step_ns)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	uint64_t ns = (uint64_t)until.tv_nsec + step_ns;
	until.tv_sec += (time_t)(ns / KVX_SEC);
	until.tv_nsec = (long)(ns % KVX_SEC);
	return sem_timedwait(sem, &until) == 0;
}

static bool wait_until(sem_t *sem, uint64_t timeout_ns)
{
	uint64_t end = kvx_now_ns() + timeout_ns;

	for (;;) {
		uint64_t now = kvx_now_ns();
		uint64_t left = now < end ? end - now : 0;

		if (wait_step(sem, left < WAIT_STEP_NS ? left : WAIT_STEP_NS))
			return true;
		if (left == 0)
			return false;
	}
}

bool gpu_control_destroy(struct gpu_control *control)
{
	pthread_t thread = control->thread; /* the control may be gone before it is detached */
	int device = control->device;

	kvx_queue_close(control->todo);
	if (atomic_load(&control->n_stuck) > 0 || !wait_until(&control->ended, 5 * KVX_SEC)) {
		if (!atomic_exchange(&control->parted, true)) {
			kvx_warn("gpu: device %d: a call into the runtime does not return, "
				 "leaving its thread",
				 device);
			pthread_detach(thread);
			return false;
		}
	}
	pthread_join(thread, NULL);
	control_free(control);
	return true;
}

/* The caller does not wait any longer; who is second finds the other's mark. */
static int call_give_up(struct gpu_control *control, struct gpu_call *call)
{
	bool begun = atomic_load(&call->begun);

	if (call->out_begun != NULL)
		*call->out_begun = begun;
	atomic_fetch_add(&control->n_stuck, 1);
	if (!atomic_exchange(&call->parted, true)) {
		if (begun)
			kvx_error("gpu: device %d: a call into the runtime does not return: the "
				  "device takes no more registrations until it does",
				  control->device);
		return -ETIMEDOUT;
	}
	atomic_fetch_sub(&control->n_stuck, 1);
	while (sem_wait(&call->done) < 0)
		kvx_assert(errno == EINTR);
	return 0;
}

int gpu_control_call(struct gpu_control *control, struct gpu_call *call, uint64_t timeout_ns)
{
	if (atomic_load(&control->n_stuck) > 0)
		return -EBUSY;
	return gpu_control_call_always(control, call, timeout_ns);
}

int gpu_control_call_always(struct gpu_control *control, struct gpu_call *call, uint64_t timeout_ns)
{
	bool stuck = atomic_load(&control->n_stuck) > 0;

	sem_init(&call->done, 0, 0);
	atomic_store(&call->parted, false);
	atomic_store(&call->begun, false);
	call->waited = true;
	call->control = control;
	kvx_queue_push(control->todo, &call->node);
	if (stuck) /* there is no hope that it comes to this one in time */
		timeout_ns = 0;
	if (!wait_until(&call->done, timeout_ns) && call_give_up(control, call) < 0)
		return -ETIMEDOUT;
	sem_destroy(&call->done);
	return call->status;
}
