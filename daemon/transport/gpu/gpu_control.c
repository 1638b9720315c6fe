/* Calls of the GPU runtime that may hang (an IPC handle whose memory is gone, a driver that waits
 * for a device), made on a thread of their own: whoever needs one waits for it, or looks now and
 * then, but not for ever. A call that was begun and does not come back in time is left to the
 * thread, which undoes it if it ever does; until then the device takes no further ones. One that
 * was not begun in time is taken back: others were in front of it, and nothing is wrong with it.
 * So a hang costs this device its registrations, and nobody else anything. A device has two: one
 * for calls that are short, one for page-locking much memory, which takes long. Callers are
 * helpers of workers and watchers. */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "transport/gpu/gpu_priv.h"

#define WAIT_STEP_NS (10 * KVX_MS)
#define STOP_WAIT_NS (5 * KVX_SEC)

struct gpu_control {
	struct kvx_queue *todo;
	int device;
	pthread_t thread;
	sem_t ended;
	_Atomic uint64_t until_ns; /* when the call that runs should have returned; 0: none does */
	_Atomic uint64_t allowed_ns; /* what it was given from its begin */
	_Atomic bool put_off;        /* its end was, once */
	struct gpu_control *beside;  /* NULL, or whose long calls may hold these up in the driver */
	bool patient;                /* waits in the queue as long as nothing hangs */
	_Atomic bool parted; /* thread and owner need each other no more; the second frees */
};

static void control_free(struct gpu_control *control)
{
	kvx_queue_destroy(control->todo);
	sem_destroy(&control->ended);
	free(control);
}

/* ---- the thread */

static void call_end(struct gpu_control *control, struct gpu_call *call)
{
	bool left = atomic_load(&call->parted); /* in the queue: it need not even begin */

	call->status = left ? -ETIMEDOUT : call->run(call);
	if (!atomic_exchange(&call->parted, true)) {
		atomic_store(&control->until_ns, 0);
		sem_post(&call->done);
		return;
	}
	sem_destroy(&call->done);
	if (!left)
		kvx_warn("gpu: device %d: a call that was given up has returned (%d): calls that "
			 "may hang go on",
			 control->device, call->status);
	call->late(call);
	atomic_store(&control->until_ns, 0);
}

static void control_run(struct gpu_control *control, struct gpu_call *call)
{
	uint64_t now = kvx_now_ns();

	atomic_store(&control->put_off, false);
	atomic_store(&control->allowed_ns, call->timeout_ns);
	atomic_store(&control->until_ns,
		     call->timeout_ns < UINT64_MAX - now ? now + call->timeout_ns : UINT64_MAX);
	if (call->waited) {
		atomic_store(&call->begun, true);
		call_end(control, call);
		return;
	}
	call->status = call->run(call);
	call->late(call);
	atomic_store(&control->until_ns, 0);
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

/* ---- its owner */

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

void gpu_control_pair(struct gpu_control *control, struct gpu_control *slow)
{
	control->beside = slow;
	slow->patient = true;
}

void gpu_control_unpair(struct gpu_control *control)
{
	control->beside = NULL;
}

/* The call that runs is past its time. A driver may let no call in while it page-locks memory:
 * that is waited for, once. */
static bool control_hangs(struct gpu_control *control)
{
	uint64_t now = kvx_now_ns(), until = atomic_load(&control->until_ns), slow;

	if (until == 0 || now <= until)
		return false;
	slow = control->beside != NULL ? atomic_load(&control->beside->until_ns) : 0;
	if (slow <= now || atomic_load(&control->put_off))
		return true;
	if (atomic_compare_exchange_strong(&control->until_ns, &until,
					   slow + atomic_load(&control->allowed_ns)))
		atomic_store(&control->put_off, true);
	return false;
}

static bool control_wait_ended(struct gpu_control *control)
{
	uint64_t end = kvx_now_ns() + STOP_WAIT_NS;

	while (!control_hangs(control)) {
		if (kvx_sem_wait_step(&control->ended, WAIT_STEP_NS))
			return true;
		if (kvx_now_ns() >= end)
			return false;
	}
	return false;
}

bool gpu_control_destroy(struct gpu_control *control)
{
	pthread_t thread = control->thread; /* the control may be gone before it is detached */
	int device = control->device;

	kvx_queue_close(control->todo);
	if (!control_wait_ended(control) && !atomic_exchange(&control->parted, true)) {
		kvx_warn("gpu: device %d: a call into the runtime does not return, leaving its "
			 "thread",
			 device);
		pthread_detach(thread);
		return false;
	}
	pthread_join(thread, NULL);
	control_free(control);
	return true;
}

/* ---- calls */

void gpu_control_send(struct gpu_control *control, struct gpu_call *call, uint64_t timeout_ns)
{
	call->waited = false;
	call->control = control;
	call->timeout_ns = timeout_ns;
	kvx_queue_push(control->todo, &call->node);
}

static void call_push(struct gpu_control *control, struct gpu_call *call, uint64_t timeout_ns)
{
	sem_init(&call->done, 0, 0);
	atomic_store(&call->parted, false);
	atomic_store(&call->begun, false);
	call->waited = true;
	call->control = control;
	call->timeout_ns = timeout_ns;
	call->sent_ns = kvx_now_ns();
	kvx_queue_push(control->todo, &call->node);
}

int gpu_control_begin(struct gpu_control *control, struct gpu_call *call, uint64_t timeout_ns)
{
	if (control_hangs(control))
		return -EBUSY;
	call->stays = false;
	call_push(control, call, timeout_ns);
	return 0;
}

static int call_ended(struct gpu_call *call)
{
	sem_destroy(&call->done);
	return call->status;
}

/* Nobody waits any longer; who is second finds the other's mark. */
static bool call_part(struct gpu_call *call)
{
	if (!atomic_exchange(&call->parted, true))
		return true;
	while (sem_wait(&call->done) < 0)
		kvx_assert(errno == EINTR);
	return false;
}

static bool call_is_overdue(struct gpu_call *call)
{
	struct gpu_control *control = call->control;

	if (control_hangs(control)) /* in this call, or in one before it */
		return true;
	return !atomic_load(&call->begun) && !control->patient &&
	       kvx_now_ns() >= call->sent_ns + call->timeout_ns;
}

bool gpu_control_has_ended(struct gpu_call *call, int *out_status)
{
	int device = call->control->device;

	if (sem_trywait(&call->done) == 0) {
		*out_status = call_ended(call);
		return true;
	}
	if (!call_is_overdue(call))
		return false;
	bool begun = atomic_load(&call->begun);
	if (!begun && !call->stays) {
		if (!kvx_queue_remove(call->control->todo, &call->node))
			return false; /* it begins just now, and has its time */
		sem_destroy(&call->done);
		*out_status = -EBUSY;
		return true;
	}
	if (!call_part(call)) {
		*out_status = call_ended(call);
		return true;
	}
	if (begun)
		kvx_error("gpu: device %d: a call into the runtime does not return: the device "
			  "takes no more registrations until it does",
			  device);
	*out_status = -ETIMEDOUT;
	return true;
}

bool gpu_control_leave(struct gpu_call *call)
{
	if (sem_trywait(&call->done) != 0 && !kvx_queue_remove(call->control->todo, &call->node) &&
	    call_part(call))
		return false;
	sem_destroy(&call->done);
	return true;
}

static int call_wait(struct gpu_call *call)
{
	int status;

	while (!gpu_control_has_ended(call, &status))
		if (kvx_sem_wait_step(&call->done, WAIT_STEP_NS))
			return call_ended(call);
	return status;
}

int gpu_control_call(struct gpu_control *control, struct gpu_call *call, uint64_t timeout_ns)
{
	int err = gpu_control_begin(control, call, timeout_ns);

	return err < 0 ? err : call_wait(call);
}

int gpu_control_call_always(struct gpu_control *control, struct gpu_call *call, uint64_t timeout_ns)
{
	call->stays = true;
	call_push(control, call, timeout_ns);
	return call_wait(call);
}
