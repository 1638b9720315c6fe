/* Helpers: threads of a worker for calls of the transport that block (KVX_CAP_BLOCKING_CONTROL),
 * one for registering memory, one for taking that back, one for setting endpoints up, one for
 * fencing them. The worker thread hands a
 * command over and goes on with data; the helper runs the call and nothing else; what follows the
 * call runs on the worker thread again. Rings in both directions, so that the worker never waits
 * for a helper. A helper without work sleeps in its semaphore. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/thread.h"
#include "worker/worker_priv.h"

struct worker_helper {
	struct kvx_worker *worker;
	struct kvx_ring *todo;     /* worker -> helper */
	struct kvx_ring *returned; /* helper -> worker */
	sem_t filled;              /* how many are in todo; one more than there are: the end */
	pthread_t thread;
	bool has_thread;
};

static const char *const helper_names[WORKER_HELPERS] = {"reg", "dereg", "up", "cut"};

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
		kvx_worker_wake(worker);
	}
	return NULL;
}

static int helper_start(struct kvx_worker *worker, enum worker_helper_kind kind)
{
	struct worker_helper *helper = &worker->helpers[kind];
	char name[16];
	helper->worker = worker;
	sem_init(&helper->filled, 0, 0);
	int err = kvx_ring_create(worker->conf.ring_depth, &helper->todo);
	if (err == 0)
		err = kvx_ring_create(worker->conf.ring_depth, &helper->returned);
	if (err < 0)
		return err;
	snprintf(name, sizeof(name), "%.9s-%s", worker->conf.name, helper_names[kind]);
	err = kvx_thread_start(&helper->thread, name, helper_main, helper);
	helper->has_thread = err == 0;
	return err;
}

int kvx_worker_helpers_start(struct kvx_worker *worker, struct kvx_why *why)
{
	if (!(worker->ops->caps & KVX_CAP_BLOCKING_CONTROL))
		return 0;
	int err = -ENOMEM;
	worker->helpers = calloc(WORKER_HELPERS, sizeof(worker->helpers[0]));
	if (worker->helpers == NULL)
		goto err_say;
	for (enum worker_helper_kind kind = 0; kind < WORKER_HELPERS; kind++) {
		err = helper_start(worker, kind);
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
	for (enum worker_helper_kind kind = 0; kind < WORKER_HELPERS; kind++) {
		struct worker_helper *helper = &worker->helpers[kind];
		if (helper->worker == NULL)
			continue; /* start never came to it */
		if (helper->has_thread) {
			sem_post(&helper->filled);
			pthread_join(helper->thread, NULL);
			kvx_assert(kvx_ring_empty(helper->returned));
		}
		kvx_ring_destroy(helper->returned);
		kvx_ring_destroy(helper->todo);
		sem_destroy(&helper->filled);
	}
	free(worker->helpers);
	worker->helpers = NULL;
}

void kvx_worker_call(struct kvx_worker *worker, struct kvx_cmd *cmd, enum worker_helper_kind kind,
		     void (*run)(struct kvx_worker *worker, struct kvx_cmd *cmd),
		     void (*back)(struct kvx_worker *worker, struct kvx_cmd *cmd))
{
	cmd->call = (struct kvx_call){.run = run, .back = back};
	if (worker->helpers == NULL) {
		run(worker, cmd);
		back(worker, cmd);
		return;
	}
	struct worker_helper *helper = &worker->helpers[kind];
	bool pushed = kvx_ring_push(helper->todo, cmd);
	kvx_assert(pushed); /* has room for everything in flight */
	sem_post(&helper->filled);
}

unsigned kvx_worker_calls_finish(struct kvx_worker *worker)
{
	unsigned n = 0;
	if (worker->helpers == NULL)
		return 0;
	for (enum worker_helper_kind kind = 0; kind < WORKER_HELPERS; kind++) {
		struct kvx_cmd *cmd;
		while ((cmd = kvx_ring_pop(worker->helpers[kind].returned)) != NULL) {
			cmd->call.back(worker, cmd);
			n++;
		}
	}
	return n;
}

bool kvx_worker_calls_returned(const struct kvx_worker *worker)
{
	if (worker->helpers == NULL)
		return false;
	for (enum worker_helper_kind kind = 0; kind < WORKER_HELPERS; kind++)
		if (!kvx_ring_empty(worker->helpers[kind].returned))
			return true;
	return false;
}
