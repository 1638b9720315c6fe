/* Calls of the GPU runtime that may hang (an IPC handle whose memory is gone, a driver that waits
 * for a device), made on a thread of their own: whoever needs one waits for it, but not for ever. A
 * call that does not come back in time is left to the thread, which undoes it if it ever does;
 * until then the device takes no further ones. So a hang costs this device its registrations, and
 * nobody else anything. One control thread per device; callers are helpers of the device's worker.
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
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

/* The state of a call: who comes second to `parted` knows that the other one has been there. */
struct call_sync {
	sem_t done;
	_Atomic bool parted;
	_Atomic bool begun;
};

static void control_free(struct gpu_control *control)
{
	kvx_queue_destroy(control->todo);
	sem_destroy(&control->ended);
	free(control);
}

static void call_sync_free(struct gpu_call *call)
{
	struct call_sync *sync = call->sync;

	sem_destroy(&sync->done);
	free(sync);
	call->sync = NULL;
}

static void control_run(struct gpu_control *control, struct gpu_call *call)
{
	struct call_sync *sync = call->sync;

	if (sync == NULL) {
		call->status = call->run(call);
		call->late(call);
		return;
	}

	atomic_store(&sync->begun, true);
	call->status = atomic_load(&sync->parted) ? -ETIMEDOUT : call->run(call);
	if (!atomic_exchange(&sync->parted, true)) {
		sem_post(&sync->done);
		return;
	}
	call_sync_free(call);
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

/* Signals are the loop's; faults stay where they arise. */
static int control_start(struct gpu_control *control, const char *name)
{
	static const int faults[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS};
	sigset_t all, before;

	sigfillset(&all);
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
		sigdelset(&all, faults[i]);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int err = pthread_create(&control->thread, NULL, control_main, control);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err == 0)
		pthread_setname_np(control->thread, name); /* for people: it may fail */
	return -err;
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
	err = control_start(control, name);
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
	call->sync = NULL;
	call->control = control;
	kvx_queue_push(control->todo, &call->node);
}

void gpu_control_leave(struct gpu_control *control)
{
	pthread_detach(control->thread);
	atomic_store(&control->parted, true);
	kvx_queue_close(control->todo);
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
static int call_give_up(struct gpu_control *control, struct call_sync *sync)
{
	bool begun = atomic_load(&sync->begun);

	atomic_fetch_add(&control->n_stuck, 1);
	if (!atomic_exchange(&sync->parted, true)) {
		if (begun)
			kvx_error("gpu: device %d: a call into the runtime does not return: the "
				  "device takes no more registrations until it does",
				  control->device);
		return -ETIMEDOUT;
	}
	atomic_fetch_sub(&control->n_stuck, 1);
	while (sem_wait(&sync->done) < 0)
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
	struct call_sync *sync = calloc(1, sizeof(*sync));
	bool stuck = atomic_load(&control->n_stuck) > 0;

	kvx_assert(sync != NULL); /* some bytes; what gives back has no other way */
	sem_init(&sync->done, 0, 0);
	call->sync = sync;
	call->control = control;
	kvx_queue_push(control->todo, &call->node);
	if (stuck) /* there is no hope that it comes to this one in time */
		timeout_ns = 0;
	if (!wait_until(&sync->done, timeout_ns) && call_give_up(control, sync) < 0)
		return -ETIMEDOUT;
	call_sync_free(call);
	return call->status;
}
