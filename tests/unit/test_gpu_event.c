/* Events of engines on a device whose calls are slow or hang: whoever opens or closes one waits for
 * nothing, is told to try again when others were in the way, and only the one whose own call hangs
 * that it does. */
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "base/clock.h"
#include "gpu_rig.h"
#include "test_end.h"
#include "transport/gpu/gpu_priv.h"

static const uint8_t ipc[KVX_GPU_IPC_BYTES] = {1};
static struct rig r;
static struct rig_mem m;
static unsigned n_events; /* the domain's own */

static void sleep_ms(long ms)
{
	const struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

static void setup(void)
{
	rig_open_patient(&r, 0, 0, 2000); /* who waits for a call waits as long */
	n_events = fake.n_events;
}

/* What is closed is closed by and by. */
static void teardown(void)
{
	for (unsigned i = 0; i < 2000 && fake.n_events > n_events; i++)
		sleep_ms(1);
	cr_assert_eq(fake.n_events, n_events, "an event is open yet");
	rig_close(&r);
	KVX_TEST_END();
}

static int until_ready(struct kvx_gpu_event *event)
{
	int rc;

	while ((rc = gpu_event_ready_ipc(event)) == 0)
		sleep_ms(1);
	return rc;
}

/* As who is told to try again. */
static struct kvx_gpu_event *until_open(void)
{
	struct kvx_gpu_event *event = NULL;
	int rc = -EBUSY;

	for (unsigned i = 0; rc == -EBUSY; i++) {
		cr_assert_lt(i, 1000);
		sleep_ms(5);
		rc = gpu_event_open_ipc(r.dom, ipc, &event);
		if (rc == 0)
			rc = until_ready(event);
	}
	cr_assert_eq(rc, 1, "%d", rc);
	return event;
}

static void until_called(enum fake_call call, unsigned n)
{
	for (unsigned i = 0; i < 5000 && fake.n[call] < n; i++)
		sleep_ms(1);
	cr_assert_geq(fake.n[call], n);
}

static void *register_main(void *arg)
{
	struct kvx_mr *mr;

	kvx_role_set_worker();
	cr_assert_eq(T->mem_reg(r.dom, 0, &m.mem, 0, &mr), -ETIMEDOUT);
	return NULL;
}

Test(gpu_event, is_opened_asked_and_closed)
{
	setup();
	struct kvx_gpu_event *event = until_open();
	cr_assert_eq(gpu_event_ready_ipc(event), 1);
	cr_assert_eq(gpu_event_query_ipc(event), 1);
	gpu_event_close_ipc(event);
	fake_fail(FAKE_EVENT_OPEN, 1, 1, -EINVAL);
	cr_assert_eq(gpu_event_open_ipc(r.dom, ipc, &event), 0);
	cr_assert_eq(until_ready(event), -EINVAL);
	teardown();
}

Test(gpu_event, open_behind_a_call_that_hangs_is_to_be_tried_again)
{
	struct kvx_gpu_event *event, *later;
	pthread_t thread;

	setup();
	rig_gpu_mem(&m, 0, 1);
	fake.hang_ipc = true;
	cr_assert_eq(pthread_create(&thread, NULL, register_main, NULL), 0);
	until_called(FAKE_IPC_OPEN, 1);
	uint64_t begin = kvx_now_ns();
	cr_assert_eq(gpu_event_open_ipc(r.dom, ipc, &event), 0);
	cr_assert_eq(gpu_event_open_ipc(r.dom, ipc, &later), 0);
	cr_assert_eq(gpu_event_ready_ipc(event), 0);
	gpu_event_close_ipc(later);
	cr_assert_lt(kvx_now_ns() - begin, KVX_SEC, "it has waited");
	cr_assert_eq(until_ready(event), -EBUSY, "it was not even begun");
	pthread_join(thread, NULL);
	cr_assert_eq(gpu_event_open_ipc(r.dom, ipc, &event), -EBUSY, "at once");
	fake.hang_ipc = false;
	sem_post(&fake.let_go);
	event = until_open();
	cr_assert_eq(fake.n[FAKE_EVENT_OPEN], 1u);
	gpu_event_close_ipc(event);
	rig_mem_free(&m);
	teardown();
}

Test(gpu_event, open_that_hangs_says_so_and_is_undone_when_it_returns)
{
	struct kvx_gpu_event *event, *other;

	setup();
	fake.hang[FAKE_EVENT_OPEN] = true;
	cr_assert_eq(gpu_event_open_ipc(r.dom, ipc, &event), 0);
	cr_assert_eq(until_ready(event), -ETIMEDOUT);
	cr_assert_eq(gpu_event_open_ipc(r.dom, ipc, &other), -EBUSY);
	fake.hang[FAKE_EVENT_OPEN] = false;
	gpu_event_close_ipc(until_open());
	cr_assert_eq(fake.n[FAKE_EVENT_OPEN], 2u);
	teardown();
}

Test(gpu_event, close_waits_for_neither_its_own_opening_nor_others)
{
	struct kvx_gpu_event *event, *open;

	setup();
	open = until_open();
	fake.hang[FAKE_EVENT_OPEN] = true;
	cr_assert_eq(gpu_event_open_ipc(r.dom, ipc, &event), 0);
	until_called(FAKE_EVENT_OPEN, 2);
	uint64_t begin = kvx_now_ns();
	gpu_event_close_ipc(event);
	gpu_event_close_ipc(open);
	cr_assert_lt(kvx_now_ns() - begin, KVX_SEC, "it has waited");
	cr_assert_gt(fake.n_events, n_events);
	fake.hang[FAKE_EVENT_OPEN] = false;
	teardown();
}
