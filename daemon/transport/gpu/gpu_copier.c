/* Copies between page-locked host memory and the device, for a thread that is none of the domain's:
 * transports that reach host memory only go through it. A copier is a stream and its tickets; a
 * ticket is one set of copies with the event behind it. open and close may wait for the control
 * thread, up to the deadline; start, poll and cut never do. One copier is used by one thread at a
 * time. */
#include "transport/gpu/gpu_copier.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"

#define COPIER_MAGIC   0x6b7667636f707931ull
#define MAX_TICKETS    256u
#define TICKET_PIECES  128u /* of one ticket, by the kernel */
#define TRIES          3u
#define CLOSE_PAUSE_NS 50000

/* ---- opening and closing a copier */

struct ticket {
	void *event;
	struct kvx_gpu_piece *list; /* page-locked, TICKET_PIECES long: the kernel's */
	bool out;
	int status; /* of handing it to the runtime */
	unsigned n_tries;
};

struct kvx_gpu_copier {
	struct gpu_call call; /* first: that opens or closes it */
	uint64_t magic;
	struct kvx_dom *dom;
	void *stream;
	void *lists;
	bool batch;
	unsigned n_tickets, n_out;
	struct ticket tickets[MAX_TICKETS];
};

static struct kvx_gpu_copier *copier_of(struct gpu_call *call)
{
	return (struct kvx_gpu_copier *)(void *)call;
}

/* A call that fails is made again: what it is about would stay as long as the daemon. */
static void give_back(struct kvx_dom *dom, int (*call)(struct kvx_gpu *gpu, void *what), void *what)
{
	int err = what == NULL ? 0 : -EIO;

	for (unsigned i = 0; i < TRIES && err < 0 && err != -ENODEV; i++)
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
	size_t list_bytes = TICKET_PIECES * sizeof(struct kvx_gpu_piece);
	int err = ops->stream_create(gpu, &copier->stream);

	if (err == 0)
		err = ops->host_alloc(gpu, copier->n_tickets * list_bytes, &copier->lists);
	for (unsigned i = 0; err == 0 && i < copier->n_tickets; i++) {
		struct ticket *t = &copier->tickets[i];

		t->list = (struct kvx_gpu_piece *)copier->lists + (size_t)i * TICKET_PIECES;
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
	free(copier);
}

static void copier_open_late(struct gpu_call *call)
{
	if (call->status == 0)
		copier_unmake(copier_of(call));
	copier_free(copier_of(call));
}

int gpu_copier_open(void *device, unsigned n_tickets, struct kvx_gpu_copier **out_copier)
{
	struct kvx_dom *dom = device;

	KVX_CHECK_MAGIC(dom, GPU_DOM_MAGIC);
	if (n_tickets == 0 || n_tickets > MAX_TICKETS)
		return -EINVAL;
	struct kvx_gpu_copier *copier = calloc(1, sizeof(*copier));
	if (copier == NULL)
		return -ENOMEM;
	copier->magic = COPIER_MAGIC;
	copier->dom = dom;
	copier->n_tickets = n_tickets;
	copier->batch = (dom->gpu->caps & KVX_GPU_CAP_BATCH) != 0;
	copier->call = (struct gpu_call){.run = copier_open_run, .late = copier_open_late};
	int err = gpu_control_call(dom->control, &copier->call, dom->call_timeout_ns);
	if (err == -ETIMEDOUT)
		return err; /* it is the control thread's */
	if (err < 0) {
		copier_free(copier);
		return err;
	}
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

/* false: copies neither end nor can be stopped. */
static bool copier_drain(struct kvx_gpu_copier *copier)
{
	const struct timespec pause = {.tv_nsec = CLOSE_PAUSE_NS};
	uint64_t until = kvx_now_ns() + copier->dom->fence_timeout_ns;
	bool cut = false;

	while (copier->n_out > 0) {
		for (unsigned i = 0; i < copier->n_tickets; i++)
			if (copier->tickets[i].out)
				(void)gpu_copier_poll(copier, i);
		if (copier->n_out == 0)
			break;
		if (!cut && kvx_now_ns() >= until) {
			gpu_copier_cut(copier);
			cut = true;
			if (!gpu_dom_wait_reset(copier->dom))
				return false;
		}
		nanosleep(&pause, NULL);
	}
	return true;
}

void gpu_copier_close(struct kvx_gpu_copier *copier)
{
	if (copier == NULL)
		return;
	KVX_CHECK_MAGIC(copier, COPIER_MAGIC);
	struct kvx_dom *dom = copier->dom;
	if (!copier_drain(copier)) {
		kvx_error("gpu: %s: copies between it and host memory do not end, leaving them",
			  dom->name);
		return;
	}
	copier->call = (struct gpu_call){.run = copier_close_run, .late = copier_close_late};
	if (gpu_control_call_always(dom->control, &copier->call, dom->call_timeout_ns) ==
	    -ETIMEDOUT)
		return; /* it is the control thread's */
	copier_free(copier);
}

/* ---- copies */

/* The first failure of handing over decides; what is on the stream already is waited for. */
static bool ticket_check(struct kvx_dom *dom, struct ticket *t, int err)
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
	uint64_t dst[TICKET_PIECES];
	uint64_t src[TICKET_PIECES];
	size_t len[TICKET_PIECES];
};

static void ticket_copy_set(struct kvx_gpu_copier *copier, struct ticket *t, struct copy_set *set)
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

static void ticket_send(struct kvx_gpu_copier *copier, struct ticket *t,
			const struct kvx_gpu_piece *pieces, unsigned n)
{
	struct kvx_dom *dom = copier->dom;
	uint64_t small = copier_can_gather(dom) ? dom->gather_max_bytes : 0;
	struct copy_set set = {.n = 0};
	unsigned n_listed = 0;

	for (unsigned i = 0; i < n && t->status == 0; i++) {
		if (pieces[i].len_bytes <= small && n_listed < TICKET_PIECES) {
			t->list[n_listed++] = pieces[i];
			continue;
		}
		set.dst[set.n] = pieces[i].dst;
		set.src[set.n] = pieces[i].src;
		set.len[set.n++] = pieces[i].len_bytes;
		if (set.n == TICKET_PIECES) {
			ticket_copy_set(copier, t, &set);
			set.n = 0;
		}
	}
	if (n_listed > 0 && t->status == 0)
		ticket_check(dom, t,
			     dom->gpu->ops->kernel_run(dom->gpu, dom->kernel, (uintptr_t)t->list,
						       n_listed, copier->stream));
	if (set.n > 0 && t->status == 0)
		ticket_copy_set(copier, t, &set);
}

/* Without the event nobody knows when what was handed over is through. */
static void ticket_record(struct kvx_gpu_copier *copier, struct ticket *t)
{
	struct kvx_dom *dom = copier->dom;
	int err = -EIO;

	if (atomic_load(&dom->lost))
		return;
	for (unsigned i = 0; i < TRIES && err < 0 && err != -ENODEV; i++)
		err = dom->gpu->ops->event_record(dom->gpu, t->event, copier->stream);
	if (err < 0)
		gpu_dom_lose(dom, kvx_gpu_code(), "an event cannot be recorded");
}

int gpu_copier_start(struct kvx_gpu_copier *copier, const struct kvx_gpu_piece *pieces, unsigned n,
		     unsigned *out_ticket)
{
	struct kvx_dom *dom = copier->dom;
	struct kvx_gpu_bound before;
	unsigned i = 0;

	KVX_CHECK_MAGIC(copier, COPIER_MAGIC);
	while (i < copier->n_tickets && copier->tickets[i].out)
		i++;
	if (i == copier->n_tickets)
		return -EAGAIN;
	if (!gpu_dom_enter(dom))
		return -ENODEV;
	struct ticket *t = &copier->tickets[i];
	t->status = 0;
	t->n_tries = 0;
	int err = dom->gpu->ops->bind(dom->gpu, dom->device, &before);
	if (err == 0) {
		t->out = true;
		copier->n_out++;
		ticket_send(copier, t, pieces, n);
		ticket_record(copier, t);
		dom->gpu->ops->unbind(dom->gpu, &before);
		*out_ticket = i;
	} else if (err == -ENODEV) {
		gpu_dom_lose(dom, kvx_gpu_code(), "the device answers only errors");
	}
	gpu_dom_leave(dom);
	return err;
}

static int ticket_end(struct kvx_gpu_copier *copier, struct ticket *t, int status)
{
	t->out = false;
	copier->n_out--;
	return status < 0 ? status : 1;
}

int gpu_copier_poll(struct kvx_gpu_copier *copier, unsigned ticket)
{
	struct kvx_dom *dom = copier->dom;
	struct ticket *t = &copier->tickets[ticket];

	KVX_CHECK_MAGIC(copier, COPIER_MAGIC);
	kvx_assert(ticket < copier->n_tickets && t->out);
	if (!gpu_dom_enter(dom)) {
		/* An error of a lost device proves nothing: what is under way ends with its reset.
		 */
		bool over = atomic_load(&dom->reset) == GPU_RESET_DONE;
		return over ? ticket_end(copier, t, -ENODEV) : 0;
	}
	struct kvx_gpu_bound before;
	int err = dom->gpu->ops->bind(dom->gpu, dom->device, &before);
	if (err == 0) {
		err = dom->gpu->ops->event_query(dom->gpu, t->event);
		dom->gpu->ops->unbind(dom->gpu, &before);
	}
	if (err < 0 && err != -EAGAIN && (err == -ENODEV || ++t->n_tries >= TRIES))
		gpu_dom_lose(dom, kvx_gpu_code(), "copies between it and host memory have failed");
	gpu_dom_leave(dom);
	return err < 0 ? 0 : ticket_end(copier, t, t->status);
}

void gpu_copier_cut(struct kvx_gpu_copier *copier)
{
	KVX_CHECK_MAGIC(copier, COPIER_MAGIC);
	gpu_dom_lose(copier->dom, 0, "its copies between it and host memory do not end");
}
