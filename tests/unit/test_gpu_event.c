/* Events of engines on a device whose calls hang: who comes behind a call that hangs is told to try
 * again, and only the one whose own call hangs that it does. */
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "base/clock.h"
#include "gpu_rig.h"
#include "test_end.h"
#include "transport/gpu/gpu_priv.h"

static struct rig r;
static struct rig_mem m;

static void *register_main(void *arg)
{
	struct kvx_mr *mr;

	kvx_role_set_worker();
	cr_assert_eq(T->mem_reg(r.dom, 0, &m.mem, 0, &mr), -ETIMEDOUT);
	return NULL;
}

static void sleep_ms(long ms)
{
	const struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

/* call_timeout_ms is 200 in the rig. */
Test(gpu_event, open_behind_a_call_that_hangs_is_to_be_tried_again)
{
	const uint8_t ipc[KVX_GPU_IPC_BYTES] = {1};
	struct kvx_gpu_event *event;
	pthread_t thread;

	rig_open_as(&r, 0, 0);
	rig_gpu_mem(&m, 0, 1);
	fake.hang_ipc = true;
	cr_assert_eq(pthread_create(&thread, NULL, register_main, NULL), 0);
	sleep_ms(50);
	cr_assert_eq(gpu_event_open_ipc(r.dom, ipc, &event), -EBUSY, "it was not even begun");
	pthread_join(thread, NULL);
	cr_assert_eq(gpu_event_open_ipc(r.dom, ipc, &event), -EBUSY, "at once");
	fake.hang_ipc = false;
	sem_post(&fake.let_go);
	for (unsigned i = 0; gpu_event_open_ipc(r.dom, ipc, &event) == -EBUSY; i++) {
		cr_assert_lt(i, 1000);
		sleep_ms(5);
	}
	rig_close(&r);
	rig_mem_free(&m);
	KVX_TEST_END();
}

/* The control itself: a call that was begun, and one behind it. */
struct test_call {
	struct gpu_call call; /* first */
	bool begun;
	int status;
};
static sem_t let_go;

static int call_run(struct gpu_call *call)
{
	sem_wait(&let_go);
	return 0;
}
static void call_late(struct gpu_call *call)
{
}

static void *second_main(void *arg)
{
	struct test_call *second = arg;

	sleep_ms(50);
	second->status = gpu_control_call(second->call.control, &second->call, 300 * KVX_MS);
	return NULL;
}

Test(gpu_event, call_that_times_out_says_whether_it_had_begun)
{
	static struct test_call first, second;
	struct gpu_control *control;
	pthread_t thread;

	sem_init(&let_go, 0, 0);
	first.call =
	    (struct gpu_call){.run = call_run, .late = call_late, .out_begun = &first.begun};
	second.call = first.call;
	second.call.out_begun = &second.begun;
	second.begun = true;
	cr_assert_eq(gpu_control_create("kvx-test", 0, &control), 0);
	second.call.control = control;
	cr_assert_eq(pthread_create(&thread, NULL, second_main, &second), 0);
	cr_assert_eq(gpu_control_call(control, &first.call, 200 * KVX_MS), -ETIMEDOUT);
	pthread_join(thread, NULL);
	cr_assert_eq(second.status, -ETIMEDOUT);
	cr_assert(first.begun);
	cr_assert_not(second.begun);
	sem_post(&let_go);
	sem_post(&let_go);
	sleep_ms(50);
	cr_assert(gpu_control_destroy(control));
	KVX_TEST_END();
}
