/* Helpers: threads of a worker for calls of the transport that block (KVX_CAP_BLOCKING_CONTROL),
 * one for registering memory, one for taking that back, one for setting endpoints up, one for
 * fencing them. What concerns endpoints comes from the worker thread, which hands a command over
 * and goes on with data, and goes back to it: what follows the call runs there. What concerns
 * memory comes from the loop and goes back to the loop (worker_mem.c): a worker that does not
 * return from a call of its transport holds up no registration. Memory of a GPU (cmd->gpu), whose
 * driver may hang in such a call, has helpers of its own, for each GPU, made when they are first
 * needed: it holds up neither host memory nor other GPUs. The helper runs the call and nothing
 * else. Rings in both directions, so that nobody waits for a helper. A helper without work sleeps
 * in its semaphore. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/thread.h"
#include "worker/worker_priv.h"

/* The four that are always there, and up to two for each GPU behind them. */
#define MAX_HELPERS (WORKER_HELPERS + 2 * KVX_GPU_MAX)

struct worker_helper {
	struct kvx_worker *worker;
	enum worker_helper_kind kind;
	unsigned gpu;              /* 0: all memory that is no GPU's */
	struct kvx_ring *todo;     /* whose it is -> helper */
	struct kvx_ring *returned; /* helper -> whose it is */
	sem_t filled;              /* how many are in todo; one more than there are: the end */
	pthread_t thread;
	bool has_thread;
};

static const char *const helper_names[WORKER_HELPERS] = {"reg", "dereg", "up", "cut"};

static bool helper_is_memory(enum worker_helper_kind kind)
{
	return kind == WORKER_HELPER_REG || kind == WORKER_HELPER_DEREG;
}

static struct kvx_cmd *helper_wait(struct worker_helper *helper)
{
	while (sem_wait(&helper->filled) < 0)
		kvx_assert(errno == EINTR);
	return kvx_ring_pop(helper->todo);
}

static void *helper_main(void *arg)
{
	struct worker_helper *helper = arg;
	struct kvx_worker *worker = helper->worker;
	struct kvx_cmd *cmd;
	kvx_role_set_worker();
	while ((cmd = helper_wait(helper)) != NULL) {
		cmd->call.run(worker, cmd);
		bool pushed = kvx_ring_push(helper->returned, cmd);
		kvx_assert(pushed); /* has room for everything in flight */
		if (helper_is_memory(helper->kind)) {
			atomic_exchange_explicit(&worker->mem_returned, true, memory_order_acq_rel);
			kvx_worker_ring_loop(worker);
		} else {
			atomic_exchange_explicit(&worker->calls_returned, true,
						 memory_order_acq_rel);
		}
		kvx_worker_wake(
		    worker); /* for memory, too: what it arms depends on what there is */
	}
	return NULL;
}

static void helper_stop(struct worker_helper *helper)
{
	if (helper->has_thread) {
		sem_post(&helper->filled);
		pthread_join(helper->thread, NULL);
		kvx_assert(kvx_ring_empty(helper->returned));
	}
	kvx_ring_destroy(helper->returned);
	kvx_ring_destroy(helper->todo);
	sem_destroy(&helper->filled);
}

static void helper_name(const struct worker_helper *helper, char name[16])
{
	const char *of = helper->worker->conf.name, *kind = helper_names[helper->kind];
	if (helper->gpu == 0)
		snprintf(name, 16, "%.9s-%s", of, kind);
	else
		snprintf(name, 16, "%.8s-%.3s-%u", of, kind, (helper->gpu - 1) % KVX_GPU_MAX);
}

/* Appends one. Worker thread while it starts, then loop. */
static int helper_start(struct kvx_worker *worker, enum worker_helper_kind kind, unsigned gpu)
{
	struct worker_helper *helper = &worker->helpers[worker->n_helpers];
	char name[16];
	kvx_assert(worker->n_helpers < MAX_HELPERS);
	*helper = (struct worker_helper){.worker = worker, .kind = kind, .gpu = gpu};
	sem_init(&helper->filled, 0, 0);
	int err = kvx_ring_create(worker->conf.ring_depth, &helper->todo);
	if (err == 0)
		err = kvx_ring_create(worker->conf.ring_depth, &helper->returned);
	if (err == 0) {
		helper_name(helper, name);
		err = kvx_thread_start(&helper->thread, name, helper_main, helper);
	}
	helper->has_thread = err == 0;
	if (err < 0)
		helper_stop(helper);
	else
		worker->n_helpers++;
	return err;
}

int kvx_worker_helpers_start(struct kvx_worker *worker, struct kvx_why *why)
{
	if (!(worker->ops->caps & KVX_CAP_BLOCKING_CONTROL))
		return 0;
	int err = -ENOMEM;
	worker->helpers = calloc(MAX_HELPERS, sizeof(worker->helpers[0]));
	if (worker->helpers == NULL)
		goto err_say;
	for (enum worker_helper_kind kind = 0; kind < WORKER_HELPERS; kind++) {
		err = helper_start(worker, kind, 0);
		if (err < 0)
			goto err_stop;
	}
	return 0;

err_stop:
	kvx_worker_helpers_stop(worker);
err_say:
	return kvx_why(why, err, "worker %s: cannot start its helper threads: %s",
		       worker->conf.name, strerror(-err));
}

void kvx_worker_helpers_stop(struct kvx_worker *worker)
{
	if (worker->helpers == NULL)
		return;
	for (unsigned i = 0; i < worker->n_helpers; i++)
		helper_stop(&worker->helpers[i]);
	worker->n_helpers = 0;
	free(worker->helpers);
	worker->helpers = NULL;
}

/* Of a GPU's memory: its own, made now if need be. Where there is no thread to be had for it, the
 * one of all other memory is better than none: what has been registered must be taken back. */
static struct worker_helper *helper_of_memory(struct kvx_worker *worker,
					      enum worker_helper_kind kind, unsigned gpu)
{
	if (gpu == 0)
		return &worker->helpers[kind];
	kvx_assert(gpu <= KVX_GPU_MAX);
	for (unsigned i = WORKER_HELPERS; i < worker->n_helpers; i++)
		if (worker->helpers[i].gpu == gpu && worker->helpers[i].kind == kind)
			return &worker->helpers[i];
	if (helper_start(worker, kind, gpu) < 0)
		return &worker->helpers[kind];
	return &worker->helpers[worker->n_helpers - 1];
}

static void helper_give(struct worker_helper *helper, struct kvx_cmd *cmd)
{
	bool pushed = kvx_ring_push(helper->todo, cmd);
	kvx_assert(pushed); /* has room for everything in flight */
	sem_post(&helper->filled);
}

/* ---- memory: loop */

void kvx_worker_helper_give(struct kvx_worker *worker, struct kvx_cmd *cmd,
			    enum worker_helper_kind kind,
			    void (*run)(struct kvx_worker *worker, struct kvx_cmd *cmd))
{
	cmd->call = (struct kvx_call){.run = run};
	helper_give(helper_of_memory(worker, kind, cmd->gpu), cmd);
}

struct kvx_cmd *kvx_worker_helper_take(struct kvx_worker *worker)
{
	for (unsigned i = 0; i < worker->n_helpers; i++) {
		struct worker_helper *helper = &worker->helpers[i];
		struct kvx_cmd *cmd =
		    helper_is_memory(helper->kind) ? kvx_ring_pop(helper->returned) : NULL;
		if (cmd != NULL)
			return cmd;
	}
	return NULL;
}

/* ---- endpoints: worker thread */

void kvx_worker_call(struct kvx_worker *worker, struct kvx_cmd *cmd, enum worker_helper_kind kind,
		     void (*run)(struct kvx_worker *worker, struct kvx_cmd *cmd),
		     void (*back)(struct kvx_worker *worker, struct kvx_cmd *cmd))
{
	kvx_assert(!helper_is_memory(kind));
	cmd->call = (struct kvx_call){.run = run, .back = back};
	if (worker->helpers == NULL) {
		run(worker, cmd);
		back(worker, cmd);
		return;
	}
	helper_give(&worker->helpers[kind], cmd);
}

unsigned kvx_worker_calls_finish(struct kvx_worker *worker)
{
	static const enum worker_helper_kind kinds[] = {WORKER_HELPER_SETUP, WORKER_HELPER_FENCE};
	unsigned n = 0;
	/* Before the first pop: what comes after this is announced again. */
	if (!kvx_worker_calls_returned(worker) ||
	    !atomic_exchange_explicit(&worker->calls_returned, false, memory_order_acq_rel))
		return 0;
	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct kvx_cmd *cmd;
		while ((cmd = kvx_ring_pop(worker->helpers[kinds[i]].returned)) != NULL) {
			cmd->call.back(worker, cmd);
			n++;
		}
	}
	return n;
}

bool kvx_worker_calls_returned(const struct kvx_worker *worker)
{
	return atomic_load_explicit(&worker->calls_returned, memory_order_acquire);
}
