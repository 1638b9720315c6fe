/* Copies between page-locked host memory and the device, for a thread that is none of the domain's:
 * transports that reach host memory only go through it. A copier is a stream, its tickets, and a
 * thread that calls the runtime for them (gpu_copier_run.c); a ticket is one set of copies with the
 * event behind it. open and close may wait for the control thread, up to the deadline; start, poll
 * and cut call nothing that could wait. One copier is used by one thread at a time. */
#include "transport/gpu/gpu_copier.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"

#define COPIER_MAGIC   0x6b7667636f707931ull
#define CLOSE_PAUSE_NS 50000

/* ---- opening and closing a copier */

static struct kvx_gpu_copier *copier_of(struct gpu_call *call)
{
	return (struct kvx_gpu_copier *)(void *)call;
}

/* A call that fails is made again: what it is about would stay as long as the daemon. */
static void give_back(struct kvx_dom *dom, int (*call)(struct kvx_gpu *gpu, void *what), void *what)
{
	int err = what == NULL ? 0 : -EIO;

	for (unsigned i = 0; i < COPIER_TRIES && err < 0 && err != -ENODEV; i++)
		err = call(dom->gpu, what);
	if (err == -ENODEV)
		gpu_dom_lose(dom, kvx_gpu_code(),
			     "what copies were made with cannot be given back");
	else if (err < 0)
		kvx_warn("gpu: %s: what copies were made with cannot be given back: %s (%d)",
			 dom->name, kvx_gpu_code_name(dom->gpu, kvx_gpu_code()), kvx_gpu_code());
}

/* Also of one that was made in part. */
static void copier_unmake(struct kvx_gpu_copier *copier)
{
	struct kvx_dom *dom = copier->dom;
	const struct kvx_gpu_ops *ops = dom->gpu->ops;

	if (!gpu_dom_enter(dom))
		return; /* with the reset all of it is gone */
	for (unsigned i = 0; i < copier->n_tickets; i++)
		give_back(dom, ops->event_destroy, copier->tickets[i].event);
	give_back(dom, ops->stream_destroy, copier->stream);
	give_back(dom, ops->host_free, copier->lists);
	gpu_dom_leave(dom);
}

static int copier_make(struct kvx_gpu_copier *copier)
{
	struct kvx_gpu *gpu = copier->dom->gpu;
	const struct kvx_gpu_ops *ops = gpu->ops;
	size_t list_bytes = KVX_GPU_COPIER_PIECES * sizeof(struct kvx_gpu_piece);
	int err = ops->stream_create(gpu, &copier->stream);

	if (err == 0)
		err = ops->host_alloc(gpu, copier->n_tickets * list_bytes, &copier->lists);
	for (unsigned i = 0; err == 0 && i < copier->n_tickets; i++) {
		struct gpu_ticket *t = &copier->tickets[i];

		t->list = (struct kvx_gpu_piece *)copier->lists + (size_t)i * KVX_GPU_COPIER_PIECES;
		err = ops->event_create(gpu, &t->event);
	}
	return err;
}

static int copier_open_run(struct gpu_call *call)
{
	struct kvx_gpu_copier *copier = copier_of(call);

	if (!gpu_dom_enter(copier->dom))
		return -ENODEV;
	int err = copier_make(copier);
	gpu_dom_leave(copier->dom);
	if (err < 0)
		copier_unmake(copier);
	return err;
}

static void copier_free(struct kvx_gpu_copier *copier)
{
	copier->magic = 0;
	sem_destroy(&copier->filled);
	kvx_ring_destroy(copier->todo);
	free(copier->pieces);
	free(copier);
}

static void copier_open_late(struct gpu_call *call)
{
	if (call->status == 0)
		copier_unmake(copier_of(call));
	copier_free(copier_of(call));
}

static int copier_create(struct kvx_dom *dom, unsigned n_tickets,
			 struct kvx_gpu_copier **out_copier)
{
	struct kvx_gpu_copier *copier = calloc(1, sizeof(*copier));
	int err;

	if (copier == NULL)
		return -ENOMEM;
	copier->pieces =
	    calloc((size_t)n_tickets * KVX_GPU_COPIER_PIECES, sizeof(struct kvx_gpu_piece));
	err = copier->pieces != NULL ? kvx_ring_create(n_tickets, &copier->todo) : -ENOMEM;
	if (err < 0) {
		free(copier->pieces);
		free(copier);
		return err;
	}
	sem_init(&copier->filled, 0, 0);
	copier->magic = COPIER_MAGIC;
	copier->dom = dom;
	copier->n_tickets = n_tickets;
	for (unsigned i = 0; i < n_tickets; i++)
		copier->tickets[i].pieces = copier->pieces + (size_t)i * KVX_GPU_COPIER_PIECES;
	copier->batch = (dom->gpu->caps & KVX_GPU_CAP_BATCH) != 0;
	copier->call = (struct gpu_call){.run = copier_open_run, .late = copier_open_late};
	*out_copier = copier;
	return 0;
}

static int copier_close_run(struct gpu_call *call)
{
	copier_unmake(copier_of(call));
	return 0;
}

static void copier_close_late(struct gpu_call *call)
{
	if (call->status == -ETIMEDOUT) /* it was not even begun */
		copier_unmake(copier_of(call));
	copier_free(copier_of(call));
}

/* Nothing of it is under way and it has no thread. */
static void copier_give_back(struct kvx_gpu_copier *copier)
{
	struct kvx_dom *dom = copier->dom;

	copier->call = (struct gpu_call){.run = copier_close_run, .late = copier_close_late};
	if (gpu_control_call_always(dom->control, &copier->call, dom->call_timeout_ns) ==
	    -ETIMEDOUT)
		return; /* it is the control thread's */
	copier_free(copier);
}

int gpu_copier_open(void *device, unsigned n_tickets, struct kvx_gpu_copier **out_copier)
{
	struct kvx_dom *dom = device;
	struct kvx_gpu_copier *copier;

	KVX_CHECK_MAGIC(dom, GPU_DOM_MAGIC);
	if (n_tickets == 0 || n_tickets > COPIER_MAX_TICKETS)
		return -EINVAL;
	int err = copier_create(dom, n_tickets, &copier);
	if (err < 0)
		return err;
	err = gpu_control_call(dom->control, &copier->call, dom->call_timeout_ns);
	if (err == -ETIMEDOUT)
		return err; /* it is the control thread's */
	if (err < 0) {
		copier_free(copier);
		return err;
	}
	err = kvx_thread_start(&copier->thread, "kvx-gpu-copy", gpu_copier_main, copier);
	if (err < 0) {
		copier_give_back(copier);
		return err;
	}
	*out_copier = copier;
	return 0;
}

static void pause_a_moment(void)
{
	const struct timespec pause = {.tv_nsec = CLOSE_PAUSE_NS};

	nanosleep(&pause, NULL);
}

static bool copier_is_dry(struct kvx_gpu_copier *copier)
{
	for (unsigned i = 0; i < copier->n_tickets; i++)
		if (copier->tickets[i].out)
			(void)gpu_copier_poll(copier, i);
	return copier->n_out == 0;
}

/* false: copies neither end nor can be stopped. */
static bool copier_drain(struct kvx_gpu_copier *copier)
{
	struct kvx_dom *dom = copier->dom;
	uint64_t until = kvx_now_ns() + dom->fence_timeout_ns;
	bool cut = false;

	while (!copier_is_dry(copier)) {
		if (kvx_now_ns() >= until) {
			if (cut) /* a call of the thread does not return */
				return false;
			gpu_copier_cut(copier);
			cut = true;
			if (!gpu_dom_wait_reset(dom))
				return false;
			until = kvx_now_ns() + dom->call_timeout_ns;
		}
		pause_a_moment();
	}
	return true;
}

/* false: a call does not return. */
static bool copier_stop(struct kvx_gpu_copier *copier)
{
	uint64_t until = kvx_now_ns() + copier->dom->call_timeout_ns;

	atomic_store(&copier->stop, true);
	sem_post(&copier->filled);
	while (!atomic_load(&copier->ended)) {
		if (kvx_now_ns() >= until) {
			pthread_detach(copier->thread);
			return false;
		}
		pause_a_moment();
	}
	pthread_join(copier->thread, NULL);
	return true;
}

void gpu_copier_close(struct kvx_gpu_copier *copier)
{
	if (copier == NULL)
		return;
	KVX_CHECK_MAGIC(copier, COPIER_MAGIC);
	bool drained = copier_drain(copier);
	/* In any case: the thread must not look at a device that is gone. */
	if (!copier_stop(copier) || !drained) {
		kvx_error("gpu: %s: copies between it and host memory do not end, leaving them",
			  copier->dom->name);
		return;
	}
	copier_give_back(copier);
}

/* ---- copies, for their user */

int gpu_copier_start(struct kvx_gpu_copier *copier, const struct kvx_gpu_piece *pieces, unsigned n,
		     unsigned *out_ticket)
{
	unsigned i = 0;

	KVX_CHECK_MAGIC(copier, COPIER_MAGIC);
	kvx_assert(n > 0 && n <= KVX_GPU_COPIER_PIECES);
	while (i < copier->n_tickets && copier->tickets[i].out)
		i++;
	if (i == copier->n_tickets)
		return -EAGAIN;
	if (atomic_load(&copier->dom->lost))
		return -ENODEV;
	struct gpu_ticket *t = &copier->tickets[i];
	memcpy(t->pieces, pieces, n * sizeof(*pieces));
	t->n_pieces = n;
	t->out = true;
	atomic_store(&t->over, false);
	copier->n_out++;
	bool pushed = kvx_ring_push(copier->todo, t);
	kvx_assert(pushed); /* has room for all tickets */
	sem_post(&copier->filled);
	*out_ticket = i;
	return 0;
}

static int ticket_end(struct kvx_gpu_copier *copier, struct gpu_ticket *t, int status)
{
	t->out = false;
	copier->n_out--;
	return status < 0 ? status : 1;
}

int gpu_copier_poll(struct kvx_gpu_copier *copier, unsigned ticket)
{
	struct gpu_ticket *t = &copier->tickets[ticket];

	KVX_CHECK_MAGIC(copier, COPIER_MAGIC);
	kvx_assert(ticket < copier->n_tickets && t->out);
	if (atomic_load(&t->over))
		return ticket_end(copier, t, t->status);
	/* Nothing lands any more, though a call of the thread may hang for ever. No ticket is used
	 * anew after this, and gpu_host_free() leaves it the memory that it may look at. */
	if (atomic_load(&copier->dom->reset) == GPU_RESET_DONE)
		return ticket_end(copier, t, -ENODEV);
	return 0;
}

void gpu_copier_cut(struct kvx_gpu_copier *copier)
{
	KVX_CHECK_MAGIC(copier, COPIER_MAGIC);
	gpu_dom_lose(copier->dom, 0, "its copies between it and host memory do not end");
}
