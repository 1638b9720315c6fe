/* Timers on a virtual clock. */
#include "base/timer.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/clock.h"
#include "fault_alloc.h"
#include "test_end.h"

struct fixture {
	uint64_t now_ns;
	struct kvx_timers *timers;
};

/* The struct's first field is the timer, so that the callback finds the rest. */
struct alarm {
	struct kvx_timer timer;
	struct fixture *fixture;
	unsigned n_fired;
	uint64_t fired_ns;
	uint64_t restart_ns; /* UINT64_MAX: do not restart */
	struct alarm *stops; /* NULL, or a timer that this one stops */
};

static uint64_t clock_virtual(void *arg)
{
	return ((struct fixture *)arg)->now_ns;
}

static void alarm_on_timer(struct kvx_timer *timer)
{
	struct alarm *alarm = (struct alarm *)timer;

	alarm->n_fired++;
	alarm->fired_ns = alarm->fixture->now_ns;
	if (alarm->stops != NULL)
		kvx_timer_stop(alarm->fixture->timers, &alarm->stops->timer);
	if (alarm->restart_ns != UINT64_MAX)
		cr_assert_eq(kvx_timer_start(alarm->fixture->timers, timer, alarm->restart_ns,
					     alarm_on_timer),
			     0);
}

static void fixture_open(struct fixture *fixture, struct alarm *alarms, unsigned n)
{
	fixture->now_ns = 1000;
	cr_assert_eq(kvx_timers_create(clock_virtual, fixture, &fixture->timers), 0);
	for (unsigned i = 0; i < n; i++)
		alarms[i] = (struct alarm){.fixture = fixture, .restart_ns = UINT64_MAX};
}

static void alarm_start(struct alarm *alarm, uint64_t delay_ns)
{
	cr_assert_eq(
	    kvx_timer_start(alarm->fixture->timers, &alarm->timer, delay_ns, alarm_on_timer), 0);
}

Test(timer, runs_once_at_its_deadline_not_before)
{
	struct fixture f;
	struct alarm a;

	fixture_open(&f, &a, 1);
	alarm_start(&a, 50);
	cr_assert_eq(kvx_timers_next_ns(f.timers), 1050);
	f.now_ns = 1049;
	cr_assert_eq(kvx_timers_run(f.timers), 0);
	cr_assert(kvx_timer_is_running(&a.timer));
	f.now_ns = 1050;
	cr_assert_eq(kvx_timers_run(f.timers), 1);
	cr_assert_not(kvx_timer_is_running(&a.timer));
	f.now_ns = 9999;
	cr_assert_eq(kvx_timers_run(f.timers), 0);
	cr_assert_eq(a.n_fired, 1);
	cr_assert_eq(kvx_timers_next_ns(f.timers), UINT64_MAX);
	kvx_timers_destroy(f.timers);
	KVX_TEST_END();
}

Test(timer, starting_a_running_one_moves_it)
{
	struct fixture f;
	struct alarm a[2];

	fixture_open(&f, a, 2);
	alarm_start(&a[0], 50);
	alarm_start(&a[1], 60);
	alarm_start(&a[0], 500);
	f.now_ns = 1100;
	cr_assert_eq(kvx_timers_run(f.timers), 1);
	cr_assert_eq(a[0].n_fired, 0);
	alarm_start(&a[0], 0);
	cr_assert_eq(kvx_timers_run(f.timers), 1);
	cr_assert_eq(a[0].n_fired, 1);
	kvx_timers_destroy(f.timers);
	KVX_TEST_END();
}

Test(timer, callbacks_may_stop_and_restart)
{
	struct fixture f;
	struct alarm a[3];

	fixture_open(&f, a, 3);
	a[0].stops = &a[1];
	a[2].restart_ns = 0; /* would run for ever in one call */
	alarm_start(&a[0], 10);
	alarm_start(&a[1], 20);
	alarm_start(&a[2], 30);
	f.now_ns = 2000;
	cr_assert_leq(kvx_timers_run(f.timers), 3);
	cr_assert_eq(a[0].n_fired, 1);
	cr_assert_eq(a[1].n_fired, 0);
	cr_assert_geq(a[2].n_fired, 1);
	cr_assert(kvx_timer_is_running(&a[2].timer));
	kvx_timer_stop(f.timers, &a[2].timer);
	kvx_timer_stop(f.timers, &a[2].timer);
	kvx_timers_destroy(f.timers);
	KVX_TEST_END();
}

Test(timer, endless_delay_does_not_wrap)
{
	struct fixture f;
	struct alarm a;

	fixture_open(&f, &a, 1);
	alarm_start(&a, UINT64_MAX);
	f.now_ns = UINT64_MAX - 1;
	cr_assert_eq(kvx_timers_run(f.timers), 0);
	kvx_timer_stop(f.timers, &a.timer);
	kvx_timers_destroy(f.timers);
	KVX_TEST_END();
}

Test(timer, random_timers_run_in_order_of_deadline)
{
	enum { N = 500 };
	static struct alarm a[N];
	struct fixture f;
	uint64_t deadline[N];
	unsigned n_stopped = 0, n_fired = 0;

	srand(7);
	fixture_open(&f, a, N);
	for (unsigned i = 0; i < N; i++) {
		deadline[i] = f.now_ns + (uint64_t)rand() % 10000;
		alarm_start(&a[i], deadline[i] - f.now_ns);
	}
	for (unsigned i = 0; i < N; i += 3) {
		kvx_timer_stop(f.timers, &a[i].timer);
		n_stopped++;
	}
	while (kvx_timers_next_ns(f.timers) != UINT64_MAX) {
		f.now_ns = kvx_timers_next_ns(f.timers);
		n_fired += kvx_timers_run(f.timers);
	}
	cr_assert_eq(n_fired, N - n_stopped);
	for (unsigned i = 0; i < N; i++) {
		cr_assert_eq(a[i].n_fired, i % 3 == 0 ? 0 : 1);
		if (i % 3 != 0)
			cr_assert_eq(a[i].fired_ns, deadline[i]);
	}
	kvx_timers_destroy(f.timers);
	KVX_TEST_END();
}

Test(timer, failing_allocations_are_reported)
{
	struct fixture f = {.now_ns = 0};
	struct alarm a[40];
	bool failed;
	unsigned n = 0;

	do {
		int err;

		for (unsigned i = 0; i < 40; i++)
			a[i] = (struct alarm){.fixture = &f};
		fault_alloc_arm(++n);
		f.timers = NULL;
		err = kvx_timers_create(clock_virtual, &f, &f.timers);
		for (unsigned i = 0; i < 40 && err == 0; i++) {
			err = kvx_timer_start(f.timers, &a[i].timer, i, alarm_on_timer);
			cr_assert_eq(kvx_timer_is_running(&a[i].timer), err == 0);
		}
		failed = fault_alloc_disarm();
		cr_assert_eq(err, failed ? -ENOMEM : 0);
		for (unsigned i = 0; i < 40; i++)
			kvx_timer_stop(f.timers, &a[i].timer);
		kvx_timers_destroy(f.timers);
	} while (failed);
	cr_assert_geq(n, 4, "the sweep met no allocation");
	KVX_TEST_END();
}

Test(timer, default_clock_is_monotonic_time)
{
	struct kvx_timers *timers;
	uint64_t before = kvx_now_ns(), now;

	cr_assert_eq(kvx_timers_create(NULL, NULL, &timers), 0);
	now = kvx_timers_now(timers);
	cr_assert_geq(now, before);
	cr_assert_leq(now, kvx_now_ns());
	kvx_timers_destroy(timers);
	kvx_timers_destroy(NULL);
	KVX_TEST_END();
}

Test(timer, destroying_with_a_running_one_aborts, .signal = SIGABRT)
{
	struct fixture f;
	struct alarm a;

	fixture_open(&f, &a, 1);
	alarm_start(&a, 10);
	kvx_timers_destroy(f.timers);
}
