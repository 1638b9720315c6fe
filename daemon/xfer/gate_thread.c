/* Threads of watchers: see gate.h. A thread that hangs in a call into the GPU runtime when the
 * daemon ends is left there: it is asleep for ever should the call return, because what it works on
 * is gone. Created and destroyed by the loop thread. */
#include <errno.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "xfer/gate_priv.h"

/* Between two looks: a part of the time for which nothing has come, so that what is soon there is
 * soon seen, and what is not costs little. */
#define LOOK_NS      20000u
#define LOOK_SLOW_NS 1000000u
#define LOOK_PART    256u
#define NAP_NS       100000u /* from here on it is woken by what is sent */
#define SLACK_NS     1000ul
#define WAIT_STEP_NS (KVX_SEC / 2)
#define WAIT_CALL_NS KVX_MS

/* ---- the thread */

void gate_call_begin(struct gate_watcher *w)
{
	atomic_store(&w->call, GATE_CALL_INSIDE); /* it is left only inside of a call */
}

void gate_call_end(struct gate_watcher *w)
{
	int inside = GATE_CALL_INSIDE;

	while (!atomic_compare_exchange_strong(&w->call, &inside, GATE_CALL_NONE)) {
		pause();
		inside = GATE_CALL_INSIDE;
	}
}

/* What was sent meanwhile, if it was a long one. */
static struct kvx_queue_node *watcher_nap(struct gate_watcher *w, uint64_t quiet_ns)
{
	uint64_t nap_ns = quiet_ns / LOOK_PART;

	if (nap_ns < LOOK_NS)
		nap_ns = LOOK_NS;
	if (nap_ns > LOOK_SLOW_NS)
		nap_ns = LOOK_SLOW_NS;
	if (nap_ns >= NAP_NS)
		return kvx_queue_pop_for(w->todo, nap_ns);
	const struct timespec nap = {.tv_nsec = (long)nap_ns};
	nanosleep(&nap, NULL);
	return kvx_queue_pop(w->todo);
}

static void *watcher_main(void *arg)
{
	struct gate_watcher *w = arg;
	uint64_t since_ns = kvx_now_ns(); /* nothing has come */

	kvx_role_set_worker();
	prctl(PR_SET_TIMERSLACK, SLACK_NS); /* else a nap takes three times as long */
	while (!atomic_load(&w->stop)) {
		struct kvx_queue_node *node = w->waiting == NULL
						  ? kvx_queue_pop_wait(w->todo)
						  : watcher_nap(w, kvx_now_ns() - since_ns);
		bool any = node != NULL;

		for (; node != NULL; node = kvx_queue_pop(w->todo))
			gate_watcher_take(w, node);
		any |= gate_watcher_look(w);
		if (any)
			since_ns = kvx_now_ns();
	}
	gate_watcher_end(w);
	sem_post(&w->ended);
	return NULL;
}

/* ---- the loop */

void gate_watcher_turn(struct gate_watcher *w)
{
	struct kvx_queue_node *node;

	while ((node = kvx_queue_pop(w->todo)) != NULL)
		gate_watcher_take(w, node);
	gate_watcher_look(w);
}

void gate_watcher_send(struct gate_watcher *w, struct gate_msg *msg)
{
	kvx_queue_push(w->todo, &msg->node);
}

static void watcher_free(struct gate_watcher *w)
{
	kvx_queue_destroy(w->todo);
	sem_destroy(&w->ended);
	free(w);
}

int gate_watcher_create(struct kvx_gates *gates, const char *name, void *device,
			const struct kvx_gpu_access *access, struct gate_watcher **out_watcher)
{
	struct gate_watcher *w = calloc(1, sizeof(*w));

	if (w == NULL)
		return -ENOMEM;
	w->gates = gates;
	w->device = device;
	w->access = access;
	w->threaded = gates->conf.threaded;
	sem_init(&w->ended, 0, 0);
	int err = kvx_queue_create(&w->todo);
	if (err < 0) {
		sem_destroy(&w->ended);
		free(w);
		return err;
	}
	if (w->threaded)
		err = kvx_thread_start(&w->thread, name, watcher_main, w);
	if (err < 0) {
		watcher_free(w);
		return err;
	}
	*out_watcher = w;
	return 0;
}

/* After the deadline it is left in the next call that it is found in: outside of one it comes to
 * its end, or to another call, by itself. */
static bool wait_ended(struct gate_watcher *w, uint64_t until_ns)
{
	for (;;) {
		uint64_t now = kvx_now_ns();
		uint64_t left = now < until_ns ? until_ns - now : WAIT_CALL_NS;
		int inside = GATE_CALL_INSIDE;

		if (kvx_sem_wait_step(&w->ended, left < WAIT_STEP_NS ? left : WAIT_STEP_NS))
			return true;
		if (kvx_now_ns() >= until_ns &&
		    atomic_compare_exchange_strong(&w->call, &inside, GATE_CALL_LEFT))
			return false;
	}
}

void gate_watcher_stop(struct gate_watcher *w)
{
	if (!w->threaded)
		return;
	atomic_store(&w->stop, true);
	kvx_queue_close(w->todo);
}

bool gate_watcher_destroy(struct gate_watcher *w, uint64_t until_ns)
{
	if (w->threaded && !wait_ended(w, until_ns)) {
		kvx_warn("gates: a call into the GPU runtime does not return, leaving its thread");
		pthread_detach(w->thread);
		return false;
	}
	if (w->threaded)
		pthread_join(w->thread, NULL);
	else
		gate_watcher_end(w);
	watcher_free(w);
	return true;
}
