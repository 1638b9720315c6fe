/* The job thread: in order, results on the loop, nothing forgotten at the end. */
#include "worker/jobs.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "fault_alloc.h"
#include "test_end.h"

#define N 50u

struct counted {
	struct kvx_job job; /* first */
	struct kvx_jobs *jobs;
	pthread_t ran_on;
	unsigned ran_as, done_as;
	struct counted *then; /* submitted by done() */
};

static unsigned n_ran, n_done;
static _Atomic unsigned n_rings;

static void on_run(struct kvx_job *job)
{
	struct counted *c = (struct counted *)(void *)job;

	c->ran_on = pthread_self();
	c->ran_as = ++n_ran;
}

static void on_done(struct kvx_job *job)
{
	struct counted *c = (struct counted *)(void *)job;

	c->done_as = ++n_done;
	if (c->then != NULL)
		kvx_jobs_submit(c->jobs, &c->then->job);
}

static void on_doorbell(void *arg)
{
	n_rings++;
}

static void submit(struct kvx_jobs *jobs, struct counted *c)
{
	c->job = (struct kvx_job){.run = on_run, .done = on_done};
	c->jobs = jobs;
	kvx_jobs_submit(jobs, &c->job);
}

Test(jobs, run_in_order_on_the_thread_and_finish_on_the_loop)
{
	static struct counted jobs_of[N];
	struct kvx_jobs *jobs;

	cr_assert_eq(kvx_jobs_open(true, on_doorbell, NULL, &jobs), 0);
	for (unsigned i = 0; i < N; i++)
		submit(jobs, &jobs_of[i]);
	while (n_done < N) {
		unsigned before = n_rings;

		if (kvx_jobs_drain(jobs) == 0)
			while (n_rings == before && n_done < N) /* a ring for what comes later */
				sched_yield();
	}
	for (unsigned i = 0; i < N; i++) {
		cr_assert_eq(jobs_of[i].ran_as, i + 1);
		cr_assert_eq(jobs_of[i].done_as, i + 1);
		cr_assert_not(pthread_equal(jobs_of[i].ran_on, pthread_self()));
	}
	kvx_jobs_close(jobs);
	KVX_TEST_END();
}

Test(jobs, without_a_thread_they_run_in_drain)
{
	static struct counted one;
	struct kvx_jobs *jobs;

	cr_assert_eq(kvx_jobs_open(false, NULL, NULL, &jobs), 0);
	submit(jobs, &one);
	cr_assert_eq(one.ran_as, 0);
	cr_assert_eq(kvx_jobs_drain(jobs), 1);
	cr_assert_eq(one.done_as, 1);
	cr_assert(pthread_equal(one.ran_on, pthread_self()));
	cr_assert_eq(kvx_jobs_drain(jobs), 0);
	kvx_jobs_close(jobs);
	KVX_TEST_END();
}

Test(jobs, close_runs_what_is_queued_and_what_that_submits)
{
	for (unsigned threaded = 0; threaded < 2; threaded++) {
		static struct counted first[10], second;
		struct kvx_jobs *jobs;

		n_ran = n_done = 0;
		cr_assert_eq(kvx_jobs_open(threaded, on_doorbell, NULL, &jobs), 0);
		second.job = (struct kvx_job){.run = on_run, .done = on_done};
		first[9].then = &second;
		for (unsigned i = 0; i < 10; i++)
			submit(jobs, &first[i]);
		kvx_jobs_close(jobs);
		cr_assert_eq(n_done, 11);
		cr_assert_eq(second.done_as, 11);
	}
	KVX_TEST_END();
}

Test(jobs, open_without_memory_leaves_nothing)
{
	struct kvx_jobs *jobs;
	unsigned n;
	int err;

	for (n = 1;; n++) {
		fault_alloc_arm(n);
		err = kvx_jobs_open(false, NULL, NULL, &jobs);
		if (!fault_alloc_disarm())
			break;
		cr_assert_eq(err, -ENOMEM);
	}
	cr_assert_eq(err, 0);
	cr_assert_eq(n, 4);
	kvx_jobs_close(jobs);
	kvx_jobs_close(NULL);
	KVX_TEST_END();
}
