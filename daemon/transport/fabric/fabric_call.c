/* Control calls of other threads: the worker's helpers, which may wait while data goes on
 * (KVX_CAP_BLOCKING_CONTROL). What a domain has is its worker thread's alone, so a call is handed
 * to that thread, which takes it up in its next turn. One that has to wait, for copies of GPU
 * memory that are under way, is looked at again in every turn, and its helper sleeps meanwhile; so
 * a device that does not answer holds up who waits for it and no data of others. On the worker
 * thread itself a call is made at once, and waits there: where there are no helpers. */
#include <errno.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/fabric/fabric_gpu.h"

#define PAUSE_NS 20000

/* ---- handing over */

int fab_calls_open(struct kvx_dom *dom)
{
	int err = kvx_queue_create(&dom->calls);

	if (err < 0)
		return err;
	dom->thread = pthread_self();
	dom->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (dom->call_fd >= 0)
		return 0;
	err = -errno;
	kvx_queue_destroy(dom->calls);
	dom->calls = NULL;
	return err;
}

void fab_calls_close(struct kvx_dom *dom)
{
	if (dom->calls == NULL)
		return;
	close(dom->call_fd);
	kvx_queue_destroy(dom->calls);
}

static void call_step(struct fab_call *call)
{
	call->over = call->step(call);
	call->begun = true;
}

static void call_make(struct kvx_dom *dom, struct fab_call *call)
{
	const struct timespec pause = {.tv_nsec = PAUSE_NS};
	const uint64_t one = 1;

	if (pthread_equal(pthread_self(), dom->thread)) {
		for (call_step(call); !call->over; call_step(call))
			nanosleep(&pause, NULL);
		return;
	}
	sem_init(&call->done, 0, 0);
	kvx_queue_push(dom->calls, &call->node);
	atomic_fetch_add(&dom->n_calls, 1);
	/* Last, see fab_calls_arm(). */
	ssize_t n = write(dom->call_fd, &one, sizeof(one));
	kvx_assert(n == (ssize_t)sizeof(one));
	while (sem_wait(&call->done) < 0)
		kvx_assert(errno == EINTR);
	sem_destroy(&call->done);
}

/* What was written is taken back first: a call that is not counted by now has its write to come. */
bool fab_calls_arm(struct kvx_dom *dom)
{
	uint64_t count;
	ssize_t n = read(dom->call_fd, &count, sizeof(count));

	(void)n; /* -EAGAIN: nothing was */
	return atomic_load(&dom->n_calls) == 0;
}

static void calls_take(struct kvx_dom *dom)
{
	struct kvx_queue_node *node;

	while (atomic_load(&dom->n_calls) > 0 && (node = kvx_queue_pop(dom->calls)) != NULL) {
		struct fab_call *call = (struct fab_call *)(void *)node; /* its first member */
		struct fab_call **at = &dom->waiting_calls;

		atomic_fetch_sub(&dom->n_calls, 1);
		while (*at != NULL)
			at = &(*at)->next;
		call->next = NULL;
		*at = call;
	}
}

void fab_calls_progress(struct kvx_dom *dom)
{
	struct fab_call **at = &dom->waiting_calls;

	if (atomic_load(&dom->n_calls) > 0)
		calls_take(dom);
	while (*at != NULL) {
		struct fab_call *call = *at;

		call_step(call);
		if (!call->over) {
			at = &call->next;
			continue;
		}
		*at = call->next;
		sem_post(&call->done); /* it is gone with this */
	}
}

/* ---- the calls */

struct reg_call {
	struct fab_call call; /* first, as in all of them */
	struct kvx_dom *dom;
	uint32_t tenant, rights;
	const struct kvx_mem *mem;
	struct kvx_mr **out_mr;
};

static bool reg_step(struct fab_call *call)
{
	struct reg_call *c = (struct reg_call *)(void *)call;

	call->status = fab_mr_register(c->dom, c->tenant, c->mem, c->rights, c->out_mr);
	return true;
}

int fabric_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem, uint32_t rights,
		   struct kvx_mr **out_mr)
{
	struct reg_call c = {.call.step = reg_step,
			     .dom = dom,
			     .tenant = tenant,
			     .rights = rights,
			     .mem = mem,
			     .out_mr = out_mr};

	call_make(dom, &c.call);
	return c.call.status;
}

struct listen_call {
	struct fab_call call;
	struct kvx_dom *dom;
	uint32_t tenant;
	struct kvx_ep **out_ep;
	void *addr;
	size_t *addr_len;
};

static bool listen_step(struct fab_call *call)
{
	struct listen_call *c = (struct listen_call *)(void *)call;

	call->status = fab_ep_listen(c->dom, c->tenant, c->out_ep, c->addr, c->addr_len);
	return true;
}

int fabric_listen(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
		  size_t *addr_len)
{
	struct listen_call c = {.call.step = listen_step,
				.dom = dom,
				.tenant = tenant,
				.out_ep = out_ep,
				.addr = addr,
				.addr_len = addr_len};

	call_make(dom, &c.call);
	return c.call.status;
}

struct connect_call {
	struct fab_call call;
	struct kvx_ep *ep;
	const void *addr;
	size_t addr_len;
};

static bool connect_step(struct fab_call *call)
{
	struct connect_call *c = (struct connect_call *)(void *)call;

	call->status = fab_ep_connect(c->ep, c->addr, c->addr_len);
	return true;
}

int fabric_connect(struct kvx_ep *ep, const void *addr, size_t addr_len)
{
	struct connect_call c = {
	    .call.step = connect_step, .ep = ep, .addr = addr, .addr_len = addr_len};

	call_make(ep->dom, &c.call);
	return c.call.status;
}

/* Those that wait for copies. */
struct cut_call {
	struct fab_call call;
	struct kvx_dom *dom;
	struct kvx_mr *mr; /* dereg */
	struct kvx_ep *ep; /* fence, stop */
	struct fab_cut cut;
};

static struct cut_call *cut_of(struct fab_call *call)
{
	return (struct cut_call *)(void *)call;
}

/* Nothing of it can land any more. However long that takes: see fabric_bounce_cut.c. */
static bool cut_is_over(struct cut_call *c)
{
	return c->dom->gpu == NULL || fab_bounce_look(c->dom->gpu, &c->cut) == 0;
}

static bool dereg_step(struct fab_call *call)
{
	struct cut_call *c = cut_of(call);

	if (!call->begun) {
		fab_mr_withdraw(c->mr);
		fab_cut_begin(&c->cut, c->dom);
		c->cut.mr = c->mr;
	}
	if (!cut_is_over(c))
		return false;
	fab_mr_free(c->mr);
	return true;
}

void fabric_mem_dereg(struct kvx_mr *mr)
{
	struct cut_call c = {.call.step = dereg_step, .mr = mr};

	if (mr == NULL)
		return;
	c.dom = mr->dom;
	call_make(c.dom, &c.call);
}

static bool fence_step(struct fab_call *call)
{
	struct cut_call *c = cut_of(call);

	if (!call->begun) {
		fab_ep_fence(c->ep);
		fab_cut_begin(&c->cut, c->dom);
		c->cut.ep = c->ep;
	}
	return cut_is_over(c);
}

int fabric_fence(struct kvx_ep *ep)
{
	struct cut_call c = {.call.step = fence_step, .dom = ep->dom, .ep = ep};

	call_make(c.dom, &c.call);
	return c.call.status;
}

/* What began before it must have landed when it returns. */
static bool stop_step(struct fab_call *call)
{
	struct cut_call *c = cut_of(call);

	if (!call->begun) {
		c->ep->lease_ns = 0;
		fab_cut_begin(&c->cut, c->dom);
		c->cut.ep = c->ep;
		c->cut.in_only = true;
	}
	return cut_is_over(c);
}

void fabric_lease(struct kvx_ep *ep, uint64_t deadline_ns)
{
	struct cut_call c = {.call.step = stop_step, .dom = ep->dom, .ep = ep};

	if (deadline_ns == 0)
		call_make(c.dom, &c.call);
	else
		ep->lease_ns = deadline_ns;
}
