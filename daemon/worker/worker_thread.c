/* The thread of a worker: turns as long as there is something to do, then a spin, then sleep until
 * the loop's doorbell or the transport's event fd. */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/worker_priv.h"

#define PAUSES         4u  /* between two looks */
#define YIELD_EVERY    16u /* looks: some 5 us */
#define CHORES_TICK_MS 1

int kvx_worker_dom_open(struct kvx_worker *worker, struct kvx_why *why)
{
	return worker->ops->open(&worker->conf.dom, &worker->dom, &worker->limits, why);
}

void kvx_worker_dom_close(struct kvx_worker *worker)
{
	struct worker_ep *wep, *next;
	HASH_ITER (hh, worker->eps, wep, next) {
		kvx_warn("worker %s: an endpoint was left open, closing it", worker->conf.name);
		worker->ops->fence(wep->ep);
		worker->ops->ep_close(wep->ep);
		kvx_worker_ep_forget(worker, wep);
	}
	worker->ops->close(worker->dom);
	worker->dom = NULL;
}

/* Loop and helpers. The exchanges on `sleeping` are ordered: either the worker's look at the rings
 * comes after this push, or this sees that it sleeps. */
void kvx_worker_wake(struct kvx_worker *worker)
{
	const uint64_t one = 1;
	if (!atomic_exchange_explicit(&worker->sleeping, false, memory_order_acq_rel))
		return;
	ssize_t n = write(worker->wake_fd, &one, sizeof(one));
	kvx_assert(n == (ssize_t)sizeof(one));
}

static void spin_pause(unsigned n_looks)
{
#if defined(__x86_64__)
	for (unsigned i = 0; i < PAUSES; i++)
		__builtin_ia32_pause();
#endif
	/* Whoever this worker waits for may need this very core. */
	if (n_looks % YIELD_EVERY == 0)
		sched_yield();
}

/* For who looks at it, a part of a turn: it is a call, too. */
static int worker_arm(struct kvx_worker *worker)
{
	atomic_store_explicit(&worker->turn_began_ns, kvx_now_ns(), memory_order_relaxed);
	int err = worker->ops->arm(worker->dom);
	atomic_store_explicit(&worker->turn_began_ns, 0, memory_order_relaxed);
	return err;
}

static void worker_sleep(struct kvx_worker *worker)
{
	struct pollfd fds[2] = {{.fd = worker->wake_fd, .events = POLLIN},
				{.fd = worker->limits.event_fd, .events = POLLIN}};
	uint64_t count;
	atomic_exchange_explicit(&worker->sleeping, true, memory_order_acq_rel);
	if (kvx_ring_empty(worker->submit) && !kvx_worker_calls_returned(worker) &&
	    worker_arm(worker) == 0 && !atomic_load_explicit(&worker->stop, memory_order_acquire)) {
		kvx_counter_add(&worker->stats.sleeps, 1);
		poll(fds, 2, kvx_worker_has_chores(worker) ? CHORES_TICK_MS : -1);
	}
	/* Nobody rings for a worker that is awake; a ring that came before stays in the eventfd for
	 * one useless look, unless it is read here. */
	if (atomic_exchange_explicit(&worker->sleeping, false, memory_order_acq_rel))
		return;
	ssize_t n = read(worker->wake_fd, &count, sizeof(count));
	(void)n; /* the ring may still be on its way: then the next sleep ends at once */
}

static void worker_loop(struct kvx_worker *worker)
{
	uint64_t spin_ns = (uint64_t)worker->conf.spin_us * 1000;
	uint64_t idle_since = 0;
	unsigned n_looks = 0;
	while (!atomic_load_explicit(&worker->stop, memory_order_acquire)) {
		if (kvx_worker_turn(worker)) {
			idle_since = 0;
			continue;
		}
		uint64_t now_ns = kvx_now_ns();
		if (idle_since == 0)
			idle_since = now_ns;
		if (now_ns - idle_since < spin_ns) {
			spin_pause(++n_looks);
			continue;
		}
		worker_sleep(worker);
		idle_since = 0;
	}
}

void *kvx_worker_main(void *arg)
{
	struct kvx_worker *worker = arg;
	kvx_role_set_worker();
	int err = kvx_worker_dom_open(worker, &worker->open_why);
	if (err == 0) {
		err = kvx_worker_helpers_start(worker, &worker->open_why);
		if (err < 0)
			kvx_worker_dom_close(worker);
	}
	worker->open_err = err;
	sem_post(&worker->started); /* after a failure the worker may be gone at once */
	if (err < 0)
		return NULL;
	worker_loop(worker);
	kvx_worker_helpers_stop(worker);
	kvx_worker_dom_close(worker);
	return NULL;
}
