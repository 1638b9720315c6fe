/* GPU memory over fabric when a device does not answer: its own messages end and say so, those of
 * other devices and of the host go on, on the same lane, and whoever has to wait for the device
 * waits on a thread of its own. */
#include "fabric_pair.h"

#include <poll.h>

#include "fabric_gpu_fake.h"

#include "fabric_cut.h"
#include "fabric_lane.h"
#include "test_end.h"

#define HANG_MS 1500 /* after so long a device counts as one that hangs */
#define MOST_MS 1200 /* what does not wait for it takes less, on a busy machine */

/* b, or a (own), has two devices; the second one is `second`. */
struct hang_pair {
	struct gpu_pair g;
	struct fake_gpu second;
	struct gpu_region other;
	struct kvx_rkey *rkey; /* of `other`, where it is b's */
};

static void hang_open(struct hang_pair *h, bool own, unsigned slots)
{
	memset(&h->second, 0, sizeof(h->second));
	pthread_mutex_init(&h->second.lock, NULL);
	gpu_pair_conf(&h->g, "tcp");
	h->g.p.conf.gpu.fence_timeout_ms = HANG_MS;
	h->g.p.conf.gpu.bounce_slots = slots;
	gpu_pair_open(&h->g, own, !own, 3);
	gpu_region_open(&h->other, own ? h->g.p.a.dom : h->g.p.b.dom, &h->second, 2, 7);
	h->rkey = own ? NULL : know(h->g.p.a.ep, h->other.mr);
	warm(&h->g);
}

static void hang_close(struct hang_pair *h)
{
	if (h->rkey != NULL)
		T->rkey_free(h->rkey);
	gpu_region_close(&h->other);
	gpu_pair_close(&h->g);
	cr_assert_eq(h->second.n_hosts + h->second.n_copiers, 0);
}

static struct kvx_op other_op(struct hang_pair *h, enum kvx_op_kind kind, uint64_t at)
{
	struct kvx_op op = gpu_op(&h->g, kind, at, 4096);

	if (h->rkey != NULL)
		op.remote = h->rkey;
	else
		op.local = h->other.mr;
	return op;
}

/* How long it took; -1: not that status. */
static long run_ms(struct gpu_pair *g, struct kvx_op op, int status)
{
	static uint64_t n_run;
	uint64_t since = kvx_now_ns();
	const struct side *a = &g->p.a;
	unsigned n_good = a->n_done - a->n_failed;

	op.cookie = 1000 + ++n_run; /* another one may fail in the same turn */
	PUMP_UNTIL(&g->p, T->post(a->ep, &op, 1) == 1);
	PUMP_UNTIL(&g->p, a->cookie == op.cookie || a->n_done - a->n_failed > n_good);
	bool as_wanted = status == 0 ? a->n_done - a->n_failed > n_good : a->status == status;
	return as_wanted ? (long)((kvx_now_ns() - since) / KVX_MS) : -1;
}

static void expect_quick(struct gpu_pair *g, struct kvx_op op, int status)
{
	long ms = run_ms(g, op, status);

	cr_assert_geq(ms, 0, "status %d", g->p.a.status);
	cr_assert_lt(ms, MOST_MS);
}

/* ---- what leaves a device that hangs */

static void source_hangs(enum kvx_op_kind kind)
{
	bool own = kind == KVX_OP_WRITE;
	struct hang_pair h;
	struct fake_gpu *gpu = own ? &h.g.ga : &h.g.gb;
	unsigned n_hosts, n_started;
	uint64_t since;

	hang_open(&h, own, 4);
	for (unsigned i = 0; i < 20; i++) /* the second one's buffers */
		(void)run_ms(&h.g, other_op(&h, kind, 8192), 0);
	uint8_t *before = gpu_region_image(own ? &h.g.rb : &h.g.ra);
	h.g.p.a.n_done = 0;
	post_and_hold(&h.g, gpu, kind, 4096);
	since = kvx_now_ns();
	n_hosts = gpu->n_hosts;
	n_started = gpu->n_started;
	PUMP_UNTIL(&h.g.p, h.g.p.a.n_done == 1);
	cr_assert_eq(h.g.p.a.status, -EBUSY, "status %d", h.g.p.a.status);
	cr_assert_geq(kvx_now_ns() - since, (HANG_MS - 100) * KVX_MS, "too soon");
	expect_quick(&h.g, gpu_op(&h.g, kind, 0, 4096), -EBUSY);
	expect_quick(&h.g, gpu_op(&h.g, kind, 0, BIG), -EBUSY);
	expect_quick(&h.g, other_op(&h, kind, 8192), 0);
	cr_assert_eq(gpu->n_started, n_started, "a copy began all the same");
	cr_assert_eq(gpu->n_out, 1);
	cr_assert_eq(gpu->n_hosts, n_hosts, "a buffer went under a copy");
	cr_assert_eq(gpu->n_cuts, 0, "it may answer again");
	cr_assert_not(h.g.p.a.down || h.g.p.b.down);
	fake_release(gpu);
	PUMP_UNTIL(&h.g.p, gpu->n_out == 0);
	uint8_t *now = gpu_region_image(own ? &h.g.rb : &h.g.ra);
	cr_assert_arr_eq(now, before, 4096, "it was sent all the same");
	cr_assert_geq(run_ms(&h.g, gpu_op(&h.g, kind, 0, 4096), 0), 0);
	free(before);
	free(now);
	hang_close(&h);
}

Test(fabric_bounce_hang, ops_out_of_a_device_that_hangs_end, .timeout = 60)
{
	source_hangs(KVX_OP_WRITE);
	source_hangs(KVX_OP_READ);
	KVX_TEST_END();
}

/* The process, or its machine, stands still; then a copy has not hung, and may have ended. */
Test(fabric_bounce_hang, time_in_which_nobody_looks_is_not_the_devices, .timeout = 60)
{
	struct hang_pair h;

	hang_open(&h, true, 4);
	for (unsigned ended = 0; ended < 2; ended++) {
		h.g.p.a.n_done = 0;
		h.g.p.a.n_failed = 0;
		post_and_hold(&h.g, &h.g.ga, KVX_OP_WRITE, 4096);
		if (ended)
			fake_release(&h.g.ga);
		pause_ms(HANG_MS + 300);
		struct kvx_op op = gpu_op(&h.g, KVX_OP_WRITE, 8192, 4096);
		int n = T->post(h.g.p.a.ep, &op, 1);
		for (unsigned i = 0; i < 20; i++)
			pump(&h.g.p);
		fake_release(&h.g.ga);
		PUMP_UNTIL(&h.g.p, n == 1 || (n = T->post(h.g.p.a.ep, &op, 1)) == 1);
		PUMP_UNTIL(&h.g.p, h.g.p.a.n_done == 2);
		cr_assert_eq(h.g.p.a.n_failed, 0, "status %d", h.g.p.a.status);
	}
	cr_assert_eq(h.g.ga.n_cuts, 0);
	hang_close(&h);
	KVX_TEST_END();
}

/* The copy that was left is waited for by whoever takes its memory back. */
Test(fabric_bounce_hang, unregistering_waits_for_a_copy_that_was_left)
{
	struct hang_pair h;

	hang_open(&h, true, 4);
	post_and_hold(&h.g, &h.g.ga, KVX_OP_WRITE, 4096);
	PUMP_UNTIL(&h.g.p, h.g.p.a.n_done == 1);
	fake_hold_ms(&h.g.ga, 60);
	T->mem_dereg(h.g.ra.mr);
	h.g.ra.mr = NULL;
	cr_assert_eq(h.g.ga.n_out, 0, "a copy is under way in memory that is gone");
	hang_close(&h);
	KVX_TEST_END();
}

/* The lane goes first, then the copy. */
Test(fabric_bounce_hang, a_fence_does_not_wait_for_what_is_never_sent)
{
	struct hang_pair h;
	uint64_t since;

	hang_open(&h, true, 4);
	post_and_hold(&h.g, &h.g.ga, KVX_OP_WRITE, 4096);
	PUMP_UNTIL(&h.g.p, h.g.p.a.n_done == 1);
	since = kvx_now_ns();
	cr_assert_eq(T->fence(h.g.p.a.ep), 0);
	cr_assert_lt(kvx_now_ns() - since, MOST_MS * KVX_MS);
	cr_assert_eq(h.g.ga.n_cuts, 0);
	fake_release(&h.g.ga);
	hang_close(&h);
	KVX_TEST_END();
}

/* ---- what comes into one */

static void target_hangs(enum kvx_op_kind kind)
{
	bool own = kind == KVX_OP_READ;
	struct hang_pair h;
	struct fake_gpu *gpu = own ? &h.g.ga : &h.g.gb;

	hang_open(&h, own, 4);
	for (unsigned i = 0; i < 20; i++)
		(void)run_ms(&h.g, other_op(&h, kind, 8192), 0);
	h.g.p.a.n_done = 0;
	post_and_hold(&h.g, gpu, kind, 4096);
	for (uint64_t end = kvx_now_ns() + 2 * HANG_MS * KVX_MS; kvx_now_ns() < end;)
		pump(&h.g.p);
	cr_assert_eq(h.g.p.a.n_done, 0, "it may land still");
	expect_quick(&h.g, gpu_op(&h.g, kind, 0, 4096), -EBUSY);
	expect_quick(&h.g, gpu_op(&h.g, kind, 0, BIG), -EBUSY);
	expect_quick(&h.g, other_op(&h, kind, 8192), 0);
	cr_assert_eq(gpu->n_out, 1);
	fake_release(gpu);
	PUMP_UNTIL(&h.g.p, h.g.p.a.n_done == 4);
	cr_assert_eq(h.g.p.a.status, 0, "status %d", h.g.p.a.status);
	cr_assert_not(h.g.p.a.down || h.g.p.b.down);
	hang_close(&h);
}

Test(fabric_bounce_hang, ops_into_a_device_that_hangs_wait_and_others_are_refused, .timeout = 60)
{
	target_hangs(KVX_OP_WRITE);
	target_hangs(KVX_OP_READ);
	KVX_TEST_END();
}

/* It was waited for as long already: the fence gives it up at once. */
Test(fabric_bounce_hang, a_fence_gives_a_device_up_at_once_that_has_hung_for_long)
{
	struct hang_pair h;
	uint64_t since;

	hang_open(&h, false, 4);
	post_and_hold(&h.g, &h.g.gb, KVX_OP_WRITE, 4096);
	for (uint64_t end = kvx_now_ns() + 2 * HANG_MS * KVX_MS; kvx_now_ns() < end;)
		pump(&h.g.p);
	since = kvx_now_ns();
	cr_assert_eq(T->fence(h.g.p.b.ep), 0);
	cr_assert_lt(kvx_now_ns() - since, MOST_MS * KVX_MS);
	cr_assert_eq(h.g.gb.n_cuts, 1);
	hang_close(&h);
	KVX_TEST_END();
}

/* ---- slots */

static void slots_are_of_a_device(enum kvx_op_kind kind, bool own)
{
	struct hang_pair h;
	struct fake_gpu *gpu = own ? &h.g.ga : &h.g.gb;
	struct kvx_op op;

	hang_open(&h, own, 2);
	for (unsigned i = 0; i < 20; i++)
		(void)run_ms(&h.g, other_op(&h, kind, 8192), 0);
	fake_hold(gpu);
	for (unsigned i = 0; i < 2; i++) {
		op = gpu_op(&h.g, kind, i * 4096, 4096);
		op.cookie = i;
		PUMP_UNTIL(&h.g.p, T->post(h.g.p.a.ep, &op, 1) == 1);
	}
	PUMP_UNTIL(&h.g.p, gpu->n_out == 2);
	op = other_op(&h, kind, 8192);
	cr_assert_lt(run_ms(&h.g, op, 0), HANG_MS - 20, "it waited for the one that hangs");
	cr_assert_geq(run_ms(&h.g, op, 0), 0, "status %d", h.g.p.a.status);
	fake_release(gpu);
	PUMP_UNTIL(&h.g.p, gpu->n_out == 0);
	hang_close(&h);
}

Test(fabric_bounce_hang, a_device_fills_its_own_slots, .timeout = 60)
{
	slots_are_of_a_device(KVX_OP_WRITE, true);
	slots_are_of_a_device(KVX_OP_READ, true);
	slots_are_of_a_device(KVX_OP_WRITE, false);
	slots_are_of_a_device(KVX_OP_READ, false);
	KVX_TEST_END();
}

/* ---- calls of other threads */

struct helper {
	pthread_t thread;
	struct kvx_dom *dom;
	struct kvx_ep *ep; /* is fenced; NULL: mr is unregistered, or all calls are made */
	struct kvx_mr *mr;
	struct gpu_region *region;
	bool stop; /* the ep's lease is ended for good, not fenced */
	int status;
	_Atomic bool over;
};

static void *helper_main(void *arg)
{
	struct helper *h = arg;

	if (h->ep != NULL && h->stop)
		T->lease(h->ep, 0);
	else if (h->ep != NULL)
		h->status = T->fence(h->ep);
	else
		T->mem_dereg(h->mr);
	atomic_store(&h->over, true);
	return NULL;
}

static void helper_start(struct helper *h, void *(*run)(void *arg))
{
	cr_assert_eq(pthread_create(&h->thread, NULL, run, h), 0);
}

/* While a helper waits for a copy of b's device, host memory goes to b as ever. */
static void waits_alone(struct helper *h, struct gpu_pair *g, struct kvx_op op)
{
	long most = 0;

	h->dom = g->p.b.dom;
	helper_start(h, helper_main);
	for (unsigned i = 0; i < 50; i++) {
		long ms = run_ms(g, op, 0);

		cr_assert_geq(ms, 0, "status %d", g->p.a.status);
		most = ms > most ? ms : most;
	}
	cr_assert_lt(most, 2000, "one took %ld ms", most); /* the device is given up after 5 s */
	cr_assert_not(atomic_load(&h->over), "it did not wait");
	fake_release(&g->gb);
	PUMP_UNTIL(&g->p, atomic_load(&h->over));
	cr_assert_eq(g->gb.n_out, 0);
	pthread_join(h->thread, NULL);
	cr_assert_eq(h->status, 0);
}

enum wait_for { FENCE, STOP, DEREG };

static void helper_waits(enum wait_for what)
{
	struct gpu_region host;
	struct gpu_pair g;
	struct lane second;
	struct kvx_op op;
	struct helper h = {.stop = what == STOP};

	gpu_pair_open_default(&g, false, true);
	gpu_region_open(&host, g.p.b.dom, NULL, 1, 5);
	lane_open(&g, &second);
	warm(&g);
	fake_hold(&g.gb);
	op = gpu_op(&g, KVX_OP_WRITE, 0, 4096);
	op.remote = second.rkey;
	PUMP_UNTIL(&g.p, T->post(second.a, &op, 1) == 1);
	PUMP_UNTIL(&g.p, g.gb.n_out == 1);
	op.remote = know(g.p.a.ep, host.mr);
	if (what == DEREG)
		h.mr = g.rb.mr;
	else
		h.ep = second.b;
	waits_alone(&h, &g, op);
	if (what == DEREG)
		g.rb.mr = NULL;
	T->rkey_free(op.remote);
	lane_close(&second);
	gpu_region_close(&host);
	gpu_pair_close(&g);
}

Test(fabric_bounce_hang, who_waits_for_a_device_holds_up_no_data, .timeout = 60)
{
	helper_waits(FENCE);
	helper_waits(STOP);
	helper_waits(DEREG);
	KVX_TEST_END();
}

/* As a worker's helpers make them, while the worker sleeps. */
static void *all_calls_main(void *arg)
{
	struct helper *h = arg;

	for (unsigned i = 0; i < 20; i++) {
		uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
		size_t len = sizeof(addr);
		struct kvx_mr *mr = NULL;
		struct kvx_ep *ep = NULL;

		h->status |= T->mem_reg(h->dom, 0, &h->region->mem, KVX_ACCESS_READ, &mr);
		T->mem_dereg(mr);
		h->status |= T->listen(h->dom, 0, &ep, addr, &len);
		h->status |= T->connect(ep, "short", 5) == -EINVAL ? 0 : -1;
		T->lease(ep, 0);
		h->status |= T->fence(ep);
		if (h->ep == NULL)
			h->ep = ep; /* ep_close() is the worker's */
	}
	atomic_store(&h->over, true);
	return NULL;
}

Test(fabric_bounce_hang, a_sleeping_worker_wakes_for_calls)
{
	struct gpu_pair g;
	struct helper h = {.status = 0};
	uint64_t since;

	gpu_pair_open_default(&g, true, false);
	since = kvx_now_ns();
	h.dom = g.p.a.dom;
	h.region = &g.ra;
	helper_start(&h, all_calls_main);
	while (!atomic_load(&h.over)) {
		struct pollfd fd = {.fd = g.p.a.limits.event_fd, .events = POLLIN};

		cr_assert_lt(kvx_now_ns() - since, WAIT_NS);
		if (T->arm(g.p.a.dom) == 0)
			poll(&fd, 1, 1000);
		side_pump(&g.p.a);
	}
	pthread_join(h.thread, NULL);
	cr_assert_eq(h.status, 0);
	cr_assert_lt(kvx_now_ns() - since, 5 * KVX_SEC, "nobody wakes it");
	for (unsigned i = 0; i < g.p.a.dom->n_eps; i++)
		if (g.p.a.dom->eps[i] != NULL && g.p.a.dom->eps[i] != g.p.a.ep)
			T->ep_close(g.p.a.dom->eps[i]);
	for (unsigned n = 0; T->arm(g.p.a.dom) != 0; n++)
		side_pump(&g.p.a);
	struct pollfd fd = {.fd = g.p.a.limits.event_fd, .events = POLLIN};
	side_pump(&g.p.a);
	cr_assert_eq(T->arm(g.p.a.dom), 0);
	cr_assert_eq(poll(&fd, 1, 50), 0, "nothing happened, yet it woke");
	gpu_pair_close(&g);
	KVX_TEST_END();
}
