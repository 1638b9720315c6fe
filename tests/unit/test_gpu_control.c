/* The threads for calls of a GPU runtime that may hang: what is only in the way of others makes
 * none of them fail, what hangs is found out, and who gives up knows whose the call is. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "test_end.h"
#include "transport/gpu/gpu_priv.h"

/* A call that takes some time, or until the test lets it go, or until another one has returned. */
struct test_call {
	struct gpu_call call; /* first */
	long takes_ms;        /* -1: until let_go */
	struct test_call *behind;
	_Atomic bool begun, returned, let_go;
	_Atomic int late; /* 0: no; else what its status was then, or 1 */
	/* of the thread that makes it */
	struct gpu_control *control;
	uint64_t timeout_ns;
	int status;
	pthread_t thread;
};

static struct gpu_control *control, *slow;
static struct test_call first, second, third;

static void sleep_ms(long ms)
{
	const struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

static int call_run(struct gpu_call *call)
{
	struct test_call *t = (struct test_call *)(void *)call;

	t->begun = true;
	while (t->behind != NULL && !t->behind->returned)
		sleep_ms(1);
	while (t->takes_ms < 0 && !t->let_go)
		sleep_ms(1);
	if (t->takes_ms > 0)
		sleep_ms(t->takes_ms);
	t->returned = true;
	return 0;
}

static void call_late(struct gpu_call *call)
{
	struct test_call *t = (struct test_call *)(void *)call;

	t->late = call->status != 0 ? call->status : 1;
}

static void call_init(struct test_call *t, struct gpu_control *where, long takes_ms)
{
	memset(t, 0, sizeof(*t));
	t->call = (struct gpu_call){.run = call_run, .late = call_late};
	t->takes_ms = takes_ms;
	t->control = where;
}

static void *call_main(void *arg)
{
	struct test_call *t = arg;

	t->status = gpu_control_call(t->control, &t->call, t->timeout_ns);
	return NULL;
}

/* Makes it on a thread, and waits until it was begun. */
static void call_start(struct test_call *t, uint64_t timeout_ms)
{
	t->timeout_ns = timeout_ms * KVX_MS;
	cr_assert_eq(pthread_create(&t->thread, NULL, call_main, t), 0);
	while (!t->begun)
		sleep_ms(1);
}

static int call_join(struct test_call *t)
{
	pthread_join(t->thread, NULL);
	return t->status;
}

/* One that nobody waits for any more. */
static void call_let_go(struct test_call *t)
{
	t->let_go = true;
	while (t->late == 0)
		sleep_ms(1);
	sleep_ms(20); /* the thread is out of it */
}

/* The thread has said that it has returned. */
static void call_wait_ended(struct test_call *t)
{
	int n_ended = 0;

	while (n_ended == 0) {
		sleep_ms(1);
		cr_assert_eq(sem_getvalue(&t->call.done, &n_ended), 0);
	}
}

static int call(struct test_call *t, uint64_t timeout_ms)
{
	return gpu_control_call(t->control, &t->call, timeout_ms * KVX_MS);
}

static void setup(void)
{
	cr_assert_eq(gpu_control_create("kvx-test", 0, &control), 0);
	cr_assert_eq(gpu_control_create("kvx-test-slow", 0, &slow), 0);
	gpu_control_pair(control, slow);
}

static void teardown(void)
{
	cr_assert(gpu_control_destroy(control));
	cr_assert(gpu_control_destroy(slow));
	KVX_TEST_END();
}

Test(gpu_control, call_that_does_not_come_to_its_turn_is_its_callers_again)
{
	setup();
	call_init(&first, control, -1);
	call_init(&second, control, 0);
	call_start(&first, 20000);
	cr_assert_eq(call(&second, 50), -EBUSY);
	cr_assert_not(second.begun);
	call_init(&third, control, 0);
	pthread_t thread;
	third.timeout_ns = 20 * KVX_SEC;
	cr_assert_eq(pthread_create(&thread, NULL, call_main, &third), 0);
	sleep_ms(50);
	first.let_go = true;
	pthread_join(thread, NULL);
	cr_assert_eq(third.status, 0, "one that was only waited for stopped the others");
	cr_assert_eq(call_join(&first), 0);
	cr_assert(!second.begun && second.late == 0);
	teardown();
}

Test(gpu_control, call_has_its_whole_time_from_its_begin)
{
	setup();
	call_init(&first, control, 1500);
	call_init(&second, control, 1500);
	call_start(&first, 20000);
	cr_assert_eq(call(&second, 2500), 0);
	cr_assert_eq(call_join(&first), 0);
	teardown();
}

Test(gpu_control, call_that_hangs_stops_the_others_until_it_returns)
{
	setup();
	call_init(&first, control, -1);
	call_init(&second, control, 0);
	cr_assert_eq(call(&first, 50), -ETIMEDOUT);
	uint64_t begin = kvx_now_ns();
	cr_assert_eq(call(&second, 20000), -EBUSY);
	cr_assert_lt(kvx_now_ns() - begin, 10 * KVX_SEC, "at once");
	cr_assert_not(second.begun);
	call_let_go(&first);
	cr_assert_eq(first.late, 1);
	int err;
	while ((err = call(&second, 20000)) == -EBUSY)
		sleep_ms(1);
	cr_assert_eq(err, 0);
	teardown();
}

/* And those that are in the queue already, whose time is not up. */
Test(gpu_control, call_behind_one_that_hangs_is_told)
{
	setup();
	call_init(&first, control, -1);
	call_init(&second, control, 0);
	call_start(&first, 50);
	uint64_t begin = kvx_now_ns();
	cr_assert_eq(call(&second, 20000), -EBUSY);
	cr_assert_lt(kvx_now_ns() - begin, 10 * KVX_SEC);
	cr_assert_eq(call_join(&first), -ETIMEDOUT);
	call_let_go(&first);
	teardown();
}

Test(gpu_control, what_gives_back_comes_to_its_turn_whatever_hangs)
{
	setup();
	call_init(&first, control, -1);
	call_init(&second, control, 0);
	cr_assert_eq(call(&first, 50), -ETIMEDOUT);
	cr_assert_eq(gpu_control_call_always(control, &second.call, 50 * KVX_MS), -ETIMEDOUT);
	cr_assert(!second.begun && second.late == 0);
	first.let_go = true;
	while (second.late == 0)
		sleep_ms(1);
	cr_assert_eq(second.late, -ETIMEDOUT);
	cr_assert_not(second.begun);
	teardown();
}

Test(gpu_control, long_calls_are_in_the_way_of_no_short_ones)
{
	setup();
	call_init(&first, slow, -1);
	call_init(&second, control, 0);
	call_start(&first, 20000);
	cr_assert_eq(call(&second, 5000), 0);
	cr_assert_not(first.returned);
	first.let_go = true;
	cr_assert_eq(call_join(&first), 0);
	teardown();
}

/* A driver may let no call in while it page-locks memory. */
Test(gpu_control, short_call_that_waits_in_the_driver_for_a_long_one_does_not_hang)
{
	setup();
	call_init(&first, slow, 1500);
	call_init(&second, control, 0);
	second.behind = &first;
	call_start(&first, 20000);
	cr_assert_eq(call(&second, 400), 0);
	cr_assert_eq(call_join(&first), 0);
	teardown();
}

static _Atomic bool enough;

static void *long_calls_main(void *arg)
{
	while (!enough) {
		call_init(&first, slow, 50);
		cr_assert_eq(call(&first, 2000), 0);
	}
	return NULL;
}

Test(gpu_control, short_call_that_hangs_is_found_out_beside_long_ones)
{
	pthread_t thread;

	setup();
	call_init(&second, control, -1);
	cr_assert_eq(pthread_create(&thread, NULL, long_calls_main, NULL), 0);
	sleep_ms(20);
	cr_assert_eq(call(&second, 400), -ETIMEDOUT);
	enough = true;
	pthread_join(thread, NULL);
	call_let_go(&second);
	teardown();
}

Test(gpu_control, long_calls_wait_for_each_other)
{
	setup();
	call_init(&first, slow, 500);
	call_init(&second, slow, 0);
	call_init(&third, slow, 0);
	call_start(&first, 20000);
	cr_assert_eq(call(&second, 200), 0);
	cr_assert_eq(call_join(&first), 0);
	call_init(&first, slow, -1);
	call_start(&first, 100);
	cr_assert_eq(call(&third, 20000), -EBUSY, "but not for one that hangs");
	cr_assert_eq(call_join(&first), -ETIMEDOUT);
	call_let_go(&first);
	teardown();
}

Test(gpu_control, who_looks_now_and_then_may_leave_at_any_time)
{
	int status = 1;

	setup();
	call_init(&first, control, -1);
	call_init(&second, control, 0);
	cr_assert_eq(gpu_control_begin(control, &first.call, 20 * KVX_SEC), 0);
	cr_assert_eq(gpu_control_begin(control, &second.call, 20 * KVX_SEC), 0);
	cr_assert_not(gpu_control_has_ended(&first.call, &status));
	cr_assert(gpu_control_leave(&second.call), "it never began");
	while (!first.begun)
		sleep_ms(1);
	cr_assert_not(gpu_control_leave(&first.call), "it is the thread's");
	call_let_go(&first);
	cr_assert(!second.begun && second.late == 0);

	call_init(&third, control, 0);
	cr_assert_eq(gpu_control_begin(control, &third.call, 20 * KVX_SEC), 0);
	call_wait_ended(&third);
	cr_assert(gpu_control_leave(&third.call), "it has returned");
	cr_assert_eq(third.late, 0);
	call_init(&third, control, 0);
	cr_assert_eq(gpu_control_begin(control, &third.call, 20 * KVX_SEC), 0);
	while (!gpu_control_has_ended(&third.call, &status))
		sleep_ms(1);
	cr_assert_eq(status, 0);
	teardown();
}
