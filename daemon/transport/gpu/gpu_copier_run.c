/* The thread of a copier: hands copies to the runtime and looks whether they are through. Nobody
 * else calls the runtime for them, so that a device whose calls do not return holds up this thread
 * and nobody else. It sleeps while there is nothing to copy. */
#include <errno.h>
#include <sys/prctl.h>
#include <time.h>

#include "base/assert.h"
#include "transport/gpu/gpu_copier.h"

#define LOOK_FIRST_NS 10000 /* longer and longer while nothing ends */
#define LOOK_MOST_NS  1000000
#define SLACK_NS      1000ul

/* The first failure of handing over decides; what is on the stream already is waited for. */
static bool ticket_check(struct kvx_dom *dom, struct gpu_ticket *t, int err)
{
	if (err == 0)
		return true;
	if (t->status == 0)
		t->status = err;
	if (err == -ENODEV)
		gpu_dom_lose(dom, kvx_gpu_code(), "the device answers only errors");
	return false;
}

static bool copier_can_gather(const struct kvx_dom *dom)
{
	/* Buffers may have been page-locked by a device that is lost, and are not any more: plain
	 * copies go on, a kernel would not survive it. */
	return dom->gather_max_bytes > 0 && dom->kernel != NULL && dom->host_direct &&
	       atomic_load_explicit(&gpu_shared()->lost, memory_order_relaxed) == 0;
}

/* What is left once the small pieces are with the kernel. */
struct copy_set {
	size_t n;
	uint64_t dst[KVX_GPU_COPIER_PIECES];
	uint64_t src[KVX_GPU_COPIER_PIECES];
	size_t len[KVX_GPU_COPIER_PIECES];
};

static void ticket_copy_set(struct kvx_gpu_copier *copier, struct gpu_ticket *t,
			    struct copy_set *set)
{
	struct kvx_gpu *gpu = copier->dom->gpu;

	if (copier->batch && set->n > 1) {
		int err =
		    gpu->ops->copy_batch(gpu, set->dst, set->src, set->len, set->n, copier->stream);
		if (err != -EOPNOTSUPP) {
			ticket_check(copier->dom, t, err);
			return;
		}
		copier->batch = false; /* the call is there, but not for this device */
	}
	for (size_t i = 0; i < set->n; i++)
		if (!ticket_check(
			copier->dom, t,
			gpu->ops->copy(gpu, set->dst[i], set->src[i], set->len[i], copier->stream)))
			return;
}

static void ticket_send(struct kvx_gpu_copier *copier, struct gpu_ticket *t)
{
	struct kvx_dom *dom = copier->dom;
	uint64_t small = copier_can_gather(dom) ? dom->gather_max_bytes : 0;
	struct copy_set set = {.n = 0};
	unsigned n_listed = 0;

	for (unsigned i = 0; i < t->n_pieces; i++) {
		const struct kvx_gpu_piece *piece = &t->pieces[i];

		if (piece->len_bytes <= small) {
			t->list[n_listed++] = *piece;
			continue;
		}
		set.dst[set.n] = piece->dst;
		set.src[set.n] = piece->src;
		set.len[set.n++] = piece->len_bytes;
	}
	if (n_listed > 0)
		ticket_check(dom, t,
			     dom->gpu->ops->kernel_run(dom->gpu, dom->kernel, (uintptr_t)t->list,
						       n_listed, copier->stream));
	if (set.n > 0 && t->status == 0)
		ticket_copy_set(copier, t, &set);
}

/* Without the event nobody knows when what was handed over is through. */
static void ticket_record(struct kvx_gpu_copier *copier, struct gpu_ticket *t)
{
	struct kvx_dom *dom = copier->dom;
	int err = -EIO;

	if (atomic_load(&dom->lost))
		return;
	for (unsigned i = 0; i < COPIER_TRIES && err < 0 && err != -ENODEV; i++)
		err = dom->gpu->ops->event_record(dom->gpu, t->event, copier->stream);
	if (err < 0)
		gpu_dom_lose(dom, kvx_gpu_code(), "an event cannot be recorded");
}

/* 0; else the runtime was given nothing. */
static int ticket_start(struct kvx_gpu_copier *copier, struct gpu_ticket *t)
{
	struct kvx_dom *dom = copier->dom;
	struct kvx_gpu_bound before;

	if (!gpu_dom_enter(dom))
		return -ENODEV;
	int err = dom->gpu->ops->bind(dom->gpu, dom->device, &before);
	if (err == 0) {
		ticket_send(copier, t);
		ticket_record(copier, t);
		dom->gpu->ops->unbind(dom->gpu, &before);
	} else if (err == -ENODEV) {
		gpu_dom_lose(dom, kvx_gpu_code(), "the device answers only errors");
	}
	gpu_dom_leave(dom);
	return err;
}

static void ticket_take(struct kvx_gpu_copier *copier, struct gpu_ticket *t)
{
	t->status = 0;
	t->n_tries = 0;
	t->next = NULL;
	int err = ticket_start(copier, t);
	if (err < 0) {
		t->status = err;
		atomic_store(&t->over, true);
		return;
	}
	if (copier->first == NULL)
		copier->first = t;
	else
		copier->last->next = t;
	copier->last = t;
}

/* Is it through? The status is set then. */
static bool ticket_look(struct kvx_gpu_copier *copier, struct gpu_ticket *t)
{
	struct kvx_dom *dom = copier->dom;
	struct kvx_gpu_bound before;

	if (!gpu_dom_enter(dom)) {
		/* An error of a lost device proves nothing: what is under way ends with its reset.
		 */
		t->status = -ENODEV;
		return atomic_load(&dom->reset) == GPU_RESET_DONE;
	}
	int err = dom->gpu->ops->bind(dom->gpu, dom->device, &before);
	if (err == 0) {
		err = dom->gpu->ops->event_query(dom->gpu, t->event);
		dom->gpu->ops->unbind(dom->gpu, &before);
	}
	if (err < 0 && err != -EAGAIN && (err == -ENODEV || ++t->n_tries >= COPIER_TRIES))
		gpu_dom_lose(dom, kvx_gpu_code(), "copies between it and host memory have failed");
	gpu_dom_leave(dom);
	return err >= 0;
}

/* A stream is worked off in order: only the first of it need be asked for. */
static bool copier_look(struct kvx_gpu_copier *copier)
{
	bool moved = false;

	while (copier->first != NULL && ticket_look(copier, copier->first)) {
		struct gpu_ticket *t = copier->first;

		copier->first = t->next;
		atomic_store(&t->over, true);
		moved = true;
	}
	return moved;
}

/* With nothing on the stream it waits for one. NULL: none, or it is to stop. */
static struct gpu_ticket *copier_next(struct kvx_gpu_copier *copier)
{
	if (copier->first != NULL) {
		if (sem_trywait(&copier->filled) < 0)
			return NULL;
	} else {
		while (sem_wait(&copier->filled) < 0)
			kvx_assert(errno == EINTR);
	}
	return kvx_ring_pop(copier->todo);
}

void *gpu_copier_main(void *arg)
{
	struct kvx_gpu_copier *copier = arg;
	struct timespec pause = {.tv_nsec = LOOK_FIRST_NS};

	kvx_role_set_worker();
	(void)prctl(PR_SET_TIMERSLACK, SLACK_NS);
	while (!atomic_load(&copier->stop)) {
		struct gpu_ticket *t = copier_next(copier);

		if (t != NULL) {
			ticket_take(copier, t);
			pause.tv_nsec = LOOK_FIRST_NS;
		} else if (copier_look(copier)) {
			pause.tv_nsec = LOOK_FIRST_NS;
		} else if (copier->first != NULL) {
			nanosleep(&pause, NULL);
			if (pause.tv_nsec < LOOK_MOST_NS)
				pause.tv_nsec += pause.tv_nsec / 8;
		}
	}
	atomic_store(&copier->ended, true);
	return NULL;
}
