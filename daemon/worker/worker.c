/* A worker as the loop sees it: opening and closing, the two rings, the doorbells. Everything here
 * runs on the loop and never waits, but for opening and closing. */
#include "worker/worker.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/thread.h"
#include "worker/worker_priv.h"

#define WORKER_MAGIC 0x6b7677726b303031ull

static void worker_free(struct kvx_worker *worker)
{
	if (worker->wake_fd >= 0)
		close(worker->wake_fd);
	sem_destroy(&worker->started);
	kvx_ring_destroy(worker->free_notes);
	kvx_ring_destroy(worker->complete);
	kvx_ring_destroy(worker->submit);
	free(worker->slots);
	worker->magic = 0;
	free(worker);
}

static int worker_make_rings(struct kvx_worker *worker)
{
	unsigned depth = worker->conf.ring_depth;
	int err = kvx_ring_create(depth, &worker->submit);
	if (err == 0)
		err = kvx_ring_create(depth + WORKER_NOTES, &worker->complete);
	if (err == 0)
		err = kvx_ring_create(WORKER_NOTES, &worker->free_notes);
	if (err < 0)
		return err;
	for (unsigned i = 0; i < WORKER_NOTES; i++)
		kvx_ring_push(worker->free_notes, &worker->notes[i]);
	worker->slots = calloc(depth, sizeof(worker->slots[0]));
	if (worker->slots == NULL)
		return -ENOMEM;
	for (uint32_t i = 0; i < depth; i++)
		worker->slots[i].next_free = i + 1 < depth ? i + 1 : WORKER_COOKIE_NONE;
	return 0;
}

static int worker_create(const struct kvx_worker_conf *conf, struct kvx_worker **out_worker)
{
	size_t bytes = (sizeof(struct kvx_worker) + 63) / 64 * 64;
	struct kvx_worker *worker = aligned_alloc(64, bytes);
	if (worker == NULL)
		return -ENOMEM;
	memset(worker, 0, bytes);
	worker->magic = WORKER_MAGIC;
	worker->conf = *conf;
	snprintf(worker->name, sizeof(worker->name), "%s", conf->name);
	worker->conf.name = worker->name;
	worker->ops = conf->ops;
	worker->wake_fd = -1;
	sem_init(&worker->started, 0, 0);
	int err = worker_make_rings(worker);
	if (err == 0 && conf->threaded) {
		worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		err = worker->wake_fd < 0 ? -errno : 0;
	}
	if (err < 0) {
		worker_free(worker);
		return err;
	}
	*out_worker = worker;
	return 0;
}

static int worker_start_thread(struct kvx_worker *worker, struct kvx_why *why)
{
	int err = kvx_thread_start(&worker->thread, worker->conf.name, kvx_worker_main, worker);
	if (err < 0)
		return kvx_why(why, err, "worker %s: cannot start its thread: %s",
			       worker->conf.name, strerror(-err));
	return 0;
}

static int worker_await_thread(struct kvx_worker *worker, struct kvx_why *why)
{
	while (sem_wait(&worker->started) < 0)
		kvx_assert(errno == EINTR);
	if (worker->open_err < 0) {
		pthread_join(worker->thread, NULL);
		return kvx_why(why, worker->open_err, "%s", worker->open_why.text);
	}
	worker->has_thread = true;
	return 0;
}

int kvx_worker_begin(const struct kvx_worker_conf *conf, struct kvx_worker **out_worker,
		     struct kvx_why *why)
{
	struct kvx_worker *worker;
	kvx_assert(conf->ops != NULL && conf->ring_depth > 0 && conf->name != NULL);
	int err = worker_create(conf, &worker);
	if (err < 0)
		return kvx_why(why, err, "worker %s: %s", conf->name, strerror(-err));
	if (conf->threaded)
		err = worker_start_thread(worker, why);
	else
		err = kvx_worker_dom_open(worker, why);
	if (err < 0) {
		worker_free(worker);
		return err;
	}
	*out_worker = worker;
	return 0;
}

int kvx_worker_finish(struct kvx_worker *worker, void *note_arg, struct kvx_why *why)
{
	KVX_CHECK_MAGIC(worker, WORKER_MAGIC);
	worker->conf.note_arg = note_arg;
	int err = worker->conf.threaded ? worker_await_thread(worker, why) : 0;
	if (err < 0)
		worker_free(worker);
	return err;
}

int kvx_worker_open(const struct kvx_worker_conf *conf, struct kvx_worker **out_worker,
		    struct kvx_why *why)
{
	struct kvx_worker *worker;
	int err = kvx_worker_begin(conf, &worker, why);
	if (err == 0)
		err = kvx_worker_finish(worker, conf->note_arg, why);
	if (err == 0)
		*out_worker = worker;
	return err;
}

void kvx_worker_close(struct kvx_worker *worker)
{
	if (worker == NULL)
		return;
	KVX_CHECK_MAGIC(worker, WORKER_MAGIC);
	kvx_assert(worker->in_flight + worker->n_mem == 0);
	if (worker->has_thread) {
		atomic_store_explicit(&worker->stop, true, memory_order_release);
		kvx_worker_wake(worker);
		pthread_join(worker->thread, NULL);
	} else {
		kvx_worker_dom_close(worker);
	}
	worker_free(worker);
}

static int worker_push(struct kvx_worker *worker, struct kvx_work *work)
{
	if (worker->in_flight == worker->conf.ring_depth)
		return -EAGAIN;
	work->next = NULL;
	bool pushed = kvx_ring_push(worker->submit, work);
	kvx_assert(pushed); /* has room for ring_depth */
	worker->in_flight++;
	if (worker->has_thread)
		kvx_worker_wake(worker);
	return 0;
}

int kvx_worker_submit(struct kvx_worker *worker, struct kvx_cmd *cmd)
{
	KVX_CHECK_MAGIC(worker, WORKER_MAGIC);
	cmd->worker = worker;
	cmd->status = cmd->vendor_code = 0;
	cmd->text = NULL;
	if (!kvx_worker_mem_is_past(worker, cmd->work.kind))
		return worker_push(worker, &cmd->work);
	/* Counted apart: a worker that stands still takes nothing any more. */
	if (worker->n_mem == worker->conf.ring_depth)
		return -EAGAIN;
	cmd->work.next = NULL;
	worker->n_mem++;
	kvx_worker_mem_give(worker, cmd);
	return 0;
}

int kvx_worker_submit_batch(struct kvx_worker *worker, struct kvx_batch *batch)
{
	KVX_CHECK_MAGIC(worker, WORKER_MAGIC);
	batch->worker = worker;
	batch->work.kind = KVX_WORK_BATCH;
	return worker_push(worker, &batch->work);
}

static void worker_deliver(struct kvx_worker *worker, struct kvx_work *work)
{
	if (work->kind == KVX_CMD_NOTE) {
		struct kvx_cmd *note = (struct kvx_cmd *)(void *)work;
		struct kvx_tevent event = note->event;
		kvx_ring_push(worker->free_notes, note);
		if (worker->conf.note != NULL)
			worker->conf.note(worker->conf.note_arg, &event);
		return;
	}
	worker->in_flight--;
	if (work->kind == KVX_WORK_BATCH) {
		struct kvx_batch *batch = (struct kvx_batch *)(void *)work;
		batch->done(batch);
	} else {
		struct kvx_cmd *cmd = (struct kvx_cmd *)(void *)work;
		cmd->done(cmd);
	}
}

static KVX_ON_LOOP unsigned worker_deliver_mem(struct kvx_worker *worker, unsigned most)
{
	struct kvx_cmd *cmd;
	unsigned n = 0;
	if (!atomic_load_explicit(&worker->mem_returned, memory_order_relaxed) ||
	    !atomic_exchange_explicit(&worker->mem_returned, false, memory_order_acq_rel))
		return 0;
	while (n < most && (cmd = kvx_worker_mem_take(worker)) != NULL) {
		worker->n_mem--;
		n++;
		cmd->done(cmd);
	}
	if (n == most) /* there may be more */
		atomic_exchange_explicit(&worker->mem_returned, true, memory_order_acq_rel);
	return n;
}

unsigned kvx_worker_drain(struct kvx_worker *worker)
{
	struct kvx_work *work;
	unsigned n = 0, most = worker->conf.ring_depth + WORKER_NOTES;
	KVX_CHECK_MAGIC(worker, WORKER_MAGIC);
	/* Before the first pop: what comes after this is announced again. */
	atomic_exchange_explicit(&worker->rung, false, memory_order_acq_rel);
	n += worker_deliver_mem(worker, most);
	while (n < most && (work = kvx_ring_pop(worker->complete)) != NULL) {
		worker_deliver(worker, work);
		n++;
	}
	/* A worker as fast as this could keep the loop here for ever: the rest comes next time. */
	if (n == most && worker->conf.doorbell != NULL)
		worker->conf.doorbell(worker->conf.doorbell_arg);
	return n;
}

bool kvx_worker_pump(struct kvx_worker *worker)
{
	KVX_CHECK_MAGIC(worker, WORKER_MAGIC);
	kvx_assert(!worker->has_thread);
	return kvx_worker_turn(worker);
}

const struct kvx_transport_ops *kvx_worker_ops(const struct kvx_worker *worker)
{
	return worker->ops;
}

const struct kvx_transport_limits *kvx_worker_limits(const struct kvx_worker *worker)
{
	return &worker->limits;
}

unsigned kvx_worker_in_flight(const struct kvx_worker *worker)
{
	return worker->in_flight + worker->n_mem;
}

uint64_t kvx_worker_turn_ns(const struct kvx_worker *worker)
{
	uint64_t began = atomic_load_explicit(&worker->turn_began_ns, memory_order_relaxed);
	uint64_t now = kvx_now_ns();
	return began != 0 && now > began ? now - began : 0;
}

const struct kvx_worker_stats *kvx_worker_stats(const struct kvx_worker *worker)
{
	return &worker->stats;
}
