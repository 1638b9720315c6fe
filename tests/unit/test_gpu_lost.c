/* A GPU that is lost, or whose copies do not end: nothing is given back before it was reset, and
 * others go on. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <time.h>

#include "gpu_rig.h"
#include "transport/gpu/gpu_priv.h"

struct bench {
	struct rig rig;
	struct rig_mem a, b;
	struct kvx_mr *local, *remote;
	struct kvx_rkey *rkey;
};

static void bench_open(struct bench *x)
{
	rig_open_as(&x->rig, 0, 0);
	rig_gpu_mem(&x->a, 0, 1);
	rig_gpu_mem(&x->b, 0, 1);
	x->local = rig_reg(&x->rig, &x->a, 0);
	x->remote = rig_reg(&x->rig, &x->b, RIG_BOTH);
	x->rkey = rig_key(&x->rig, x->remote);
}

static void bench_close(struct bench *x)
{
	T->rkey_free(x->rkey);
	T->mem_dereg(x->local);
	T->mem_dereg(x->remote);
	rig_close(&x->rig);
	rig_mem_free(&x->a);
	rig_mem_free(&x->b);
	cr_assert_eq(fake.n_streams + fake.n_events + fake.n_hosts, 0u);
}

/* A copy of a page from a to b; how many were taken, or the error. */
static int post_one(struct bench *x)
{
	const struct kvx_op op = {.local = x->local,
				  .remote = x->rkey,
				  .len_bytes = 4096,
				  .cookie = 5,
				  .kind = KVX_OP_WRITE};

	return T->post(x->rig.ep, &op, 1);
}

/* Events until so many ops are done, and the device is told lost. */
struct seen {
	unsigned n_done, n_lost;
	int status;
	const char *text;
};

static void look(struct bench *x, struct seen *seen, unsigned n_done, unsigned n_lost)
{
	const struct timespec ms = {.tv_nsec = 1000000};

	for (unsigned i = 0; i < 3000 && (seen->n_done < n_done || seen->n_lost < n_lost); i++) {
		struct kvx_tevent events[8];
		int n = T->progress(x->rig.dom, events, 8);

		for (int e = 0; e < n; e++) {
			if (events[e].kind == KVX_TEV_DEVICE_LOST)
				seen->n_lost++;
			if (events[e].kind != KVX_TEV_OP_DONE)
				continue;
			seen->n_done += events[e].n_ops;
			seen->status = events[e].status;
			seen->text = events[e].text;
		}
		nanosleep(&ms, NULL);
	}
}

Test(gpu_lost, a_sticky_error_ends_flights_after_the_reset_alone)
{
	struct seen seen = {0};
	struct bench x;

	bench_open(&x);
	fake.hold = true;
	fake.hang_reset = true;
	cr_assert_eq(post_one(&x), 1);
	fake_fail(FAKE_EVENT_QUERY, 1, 100, -ENODEV);
	look(&x, &seen, 0, 1);
	cr_assert_eq(seen.n_lost, 1);
	const struct timespec wait = {.tv_nsec = 100000000};
	nanosleep(&wait, NULL);
	look(&x, &seen, 0, 0);
	cr_assert_eq(seen.n_done, 0, "the reset has not returned: its copy may still land");
	cr_assert_eq(post_one(&x), -ENODEV);
	fake.hang_reset = false;
	sem_post(&fake.let_go);
	look(&x, &seen, 1, 1);
	cr_assert_eq(seen.n_done, 1);
	cr_assert_eq(seen.status, -ENODEV);
	cr_assert_not_null(seen.text);
	cr_assert_eq(fake.n[FAKE_RESET], 1u);
	struct kvx_mr *mr = NULL;
	cr_assert_eq(T->mem_reg(x.rig.dom, 0, &x.a.mem, 0, &mr), -ENODEV);
	bench_close(&x);
	KVX_TEST_END();
}

Test(gpu_lost, one_query_that_fails_is_no_loss)
{
	struct seen seen = {0};
	struct bench x;

	bench_open(&x);
	fake_fail(FAKE_EVENT_QUERY, 1, 1, -EIO);
	cr_assert_eq(post_one(&x), 1);
	look(&x, &seen, 1, 0);
	cr_assert_eq(seen.n_done, 1);
	cr_assert_eq(seen.status, 0);
	cr_assert_eq(seen.n_lost, 0);
	fake_fail(FAKE_EVENT_RECORD, 1, 1, -EIO);
	cr_assert_eq(post_one(&x), 1);
	look(&x, &seen, 2, 0);
	cr_assert_eq(seen.status, 0);
	bench_close(&x);
	KVX_TEST_END();
}

Test(gpu_lost, an_event_that_cannot_be_recorded_is_one)
{
	struct seen seen = {0};
	struct bench x;

	bench_open(&x);
	fake_fail(FAKE_EVENT_RECORD, 1, 100, -EIO);
	cr_assert_eq(post_one(&x), 1);
	look(&x, &seen, 1, 1);
	cr_assert_eq(seen.n_done, 1);
	cr_assert_eq(seen.status, -ENODEV);
	bench_close(&x);
	KVX_TEST_END();
}

/* fence_timeout_ms is 200 in the rig. */
Test(gpu_lost, copies_that_do_not_end_are_ended_by_a_reset)
{
	struct seen seen = {0};
	struct bench x;

	bench_open(&x);
	memset(x.a.data[0], 0x55, RIG_BYTES);
	fake.hold = true;
	cr_assert_eq(post_one(&x), 1);
	cr_assert_eq(T->fence(x.rig.ep), 0);
	cr_assert_eq(fake.n[FAKE_RESET], 1u);
	look(&x, &seen, 1, 1);
	cr_assert_eq(seen.n_done, 1);
	cr_assert_eq(seen.status, -ENODEV);
	cr_assert_neq(x.b.data[0][0], 0x55, "what was reset away does not land");
	bench_close(&x);
	KVX_TEST_END();
}

Test(gpu_lost, a_fence_waits_until_all_has_landed)
{
	struct seen seen = {0};
	struct bench x;

	bench_open(&x);
	memset(x.a.data[0], 0x55, RIG_BYTES);
	cr_assert_eq(post_one(&x), 1);
	cr_assert_eq(T->fence(x.rig.ep), 0);
	cr_assert_eq(x.b.data[0][4095], 0x55);
	look(&x, &seen, 1, 0);
	cr_assert_eq(seen.status, 0);
	bench_close(&x);
	KVX_TEST_END();
}

Test(gpu_lost, a_mapping_that_never_closes_has_the_device_reset)
{
	struct seen seen = {0};
	struct rig_mem m;
	struct bench x;

	bench_open(&x);
	rig_gpu_mem(&m, 0, 1);
	struct kvx_mr *mr = rig_reg(&x.rig, &m, 0);
	fake_fail(FAKE_IPC_CLOSE, 1, 100, -EIO);
	T->mem_dereg(mr);
	look(&x, &seen, 0, 1);
	cr_assert_eq(seen.n_lost, 1, "memory of an engine that is gone must not stay");
	bench_close(&x);
	rig_mem_free(&m);
	KVX_TEST_END();
}

Test(gpu_lost, a_reset_that_fails_is_tried_again)
{
	struct seen seen = {0};
	struct bench x;

	bench_open(&x);
	fake_fail(FAKE_RESET, 1, 1, -EIO);
	fake_fail(FAKE_EVENT_RECORD, 1, 100, -ENODEV);
	cr_assert_eq(post_one(&x), 1);
	look(&x, &seen, 1, 1);
	cr_assert_eq(seen.n_done, 1);
	cr_assert_eq(fake.n[FAKE_RESET], 2u);
	bench_close(&x);
	KVX_TEST_END();
}

/* Every answer of a device that is lost is the same error: it proves nothing of its copies. */
Test(gpu_lost, an_error_of_the_loss_is_no_answer_of_the_reset)
{
	struct seen seen = {0};
	struct bench x;

	bench_open(&x);
	fake.hold = true;
	fake.fail_code[FAKE_RESET] = 719;
	fake_fail(FAKE_RESET, 1, 2, -ENODEV);
	fake_fail(FAKE_EVENT_QUERY, 1, 100, -ENODEV);
	cr_assert_eq(post_one(&x), 1);
	look(&x, &seen, 1, 1);
	cr_assert_eq(seen.n_done, 1);
	cr_assert_eq(seen.status, -ENODEV);
	cr_assert_eq(fake.n[FAKE_RESET], 3u);
	bench_close(&x);
	KVX_TEST_END();
}

Test(gpu_lost, that_there_is_no_context_any_more_is_one)
{
	struct seen seen = {0};
	struct bench x;

	bench_open(&x);
	fake.fail_code[FAKE_RESET] = 709;
	fake_fail(FAKE_RESET, 1, 1, -ENODEV);
	fake_fail(FAKE_EVENT_RECORD, 1, 100, -ENODEV);
	cr_assert_eq(post_one(&x), 1);
	look(&x, &seen, 1, 1);
	cr_assert_eq(seen.n_done, 1);
	cr_assert_eq(fake.n[FAKE_RESET], 1u);
	/* The fake has kept what a runtime would have taken away. */
	fake.gpu.ops->reset(&fake.gpu, 0);
	bench_close(&x);
	KVX_TEST_END();
}

/* Where RDMA devices alone reach its memory, nobody calls the runtime. */
Test(gpu_lost, an_idle_device_with_memory_of_clients_is_watched)
{
	struct seen seen = {0};
	struct bench x;

	bench_open(&x);
	struct pollfd bell = {.fd = x.rig.limits.event_fd, .events = POLLIN};
	look(&x, &seen, 0, 0);
	fake_fail(FAKE_EVENT_RECORD, 1, 100, -ENODEV);
	for (unsigned i = 0; i < 5 && seen.n_lost == 0; i++) {
		struct kvx_tevent event;

		if (T->arm(x.rig.dom) == 0)
			poll(&bell, 1, 2000);
		if (T->progress(x.rig.dom, &event, 1) == 1)
			seen.n_lost += event.kind == KVX_TEV_DEVICE_LOST;
	}
	cr_assert_eq(seen.n_lost, 1);
	bench_close(&x);
	KVX_TEST_END();
}

/* What a call that was given up finds when it returns, no worker has asked for. */
Test(gpu_lost, a_loss_that_another_thread_finds_wakes_the_worker)
{
	struct seen seen = {0};
	struct kvx_mr *mr = NULL;
	struct rig_mem m;
	struct bench x;

	bench_open(&x);
	rig_gpu_mem(&m, 0, 1);
	fake.hang_ipc = true;
	cr_assert_eq(T->mem_reg(x.rig.dom, 0, &m.mem, 0, &mr), -ETIMEDOUT);
	cr_assert_eq(T->arm(x.rig.dom), 0, "the worker may sleep");
	struct pollfd bell = {.fd = x.rig.limits.event_fd, .events = POLLIN};
	cr_assert_eq(poll(&bell, 1, 50), 0);
	fake_fail(FAKE_IPC_CLOSE, 1, 5, -EIO);
	fake.hang_ipc = false;
	sem_post(&fake.let_go);
	cr_assert_eq(poll(&bell, 1, 5000), 1, "nobody woke it");
	cr_assert_eq(T->arm(x.rig.dom), -EAGAIN);
	look(&x, &seen, 0, 1);
	cr_assert_eq(seen.n_lost, 1);
	cr_assert_eq(T->arm(x.rig.dom), 0);
	bench_close(&x);
	rig_mem_free(&m);
	KVX_TEST_END();
}

/* ---- a region that goes while its device is being lost: -Wl,--wrap=kvx_gpu_maps_abandon */

static struct kvx_mr *goes;
static struct kvx_dom *dom_of_goes;
static bool closed_uncounted;

static void *dereg_main(void *arg)
{
	kvx_role_set_worker();
	T->mem_dereg(goes);
	return NULL;
}

void __real_kvx_gpu_maps_abandon(struct kvx_gpu_maps *maps);
void __wrap_kvx_gpu_maps_abandon(struct kvx_gpu_maps *maps);
void __wrap_kvx_gpu_maps_abandon(struct kvx_gpu_maps *maps)
{
	const struct timespec ms = {.tv_nsec = 1000000};
	pthread_t thread;

	if (goes == NULL) {
		__real_kvx_gpu_maps_abandon(maps);
		return;
	}
	fake.hang[FAKE_IPC_CLOSE] = true;
	cr_assert_eq(pthread_create(&thread, NULL, dereg_main, NULL), 0);
	for (unsigned i = 0; i < 1000 && fake.n[FAKE_IPC_CLOSE] == 0; i++)
		nanosleep(&ms, NULL);
	cr_assert_eq(fake.n[FAKE_IPC_CLOSE], 1u);
	closed_uncounted = atomic_load(&dom_of_goes->n_inside) == 0;
	fake.hang[FAKE_IPC_CLOSE] = false;
	pthread_join(thread, NULL);
	__real_kvx_gpu_maps_abandon(maps);
}

/* The reset waits for those that are counted. */
Test(gpu_lost, mapping_is_closed_beside_no_reset)
{
	struct rig_mem mem;
	struct rig r;

	rig_open_as(&r, 0, 0);
	rig_gpu_mem(&mem, 0, 1);
	goes = rig_reg(&r, &mem, 0);
	dom_of_goes = r.dom;
	gpu_dom_lose(r.dom, 0, "the test says so");
	cr_assert_not(closed_uncounted, "a call is in the runtime that no reset waits for");
	cr_assert(gpu_dom_wait_reset(r.dom));
	rig_close(&r);
	rig_mem_free(&mem);
	KVX_TEST_END();
}
