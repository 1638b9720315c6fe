/* The job thread: runs what may block, in order, and hands the results back to the loop. The loop
 * submits and drains; the thread touches nothing but the job it runs. Knows nothing of what jobs
 * do. */
#include "worker/jobs.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/thread.h"
#include "worker/worker_priv.h"

struct kvx_jobs {
	struct kvx_queue *todo;
	struct kvx_queue *done;
	bool threaded; /* there is a thread now */
	pthread_t thread;
	void (*doorbell)(void *arg);
	void *doorbell_arg;
};

static struct kvx_job *job_of(struct kvx_queue_node *node)
{
	return (struct kvx_job *)(void *)((char *)node - offsetof(struct kvx_job, node));
}

static void *jobs_main(void *arg)
{
	struct kvx_jobs *jobs = arg;
	struct kvx_queue_node *node;
	while ((node = kvx_queue_pop_wait(jobs->todo)) != NULL) {
		struct kvx_job *job = job_of(node);
		job->run(job);
		if (kvx_queue_push(jobs->done, node) && jobs->doorbell != NULL)
			jobs->doorbell(jobs->doorbell_arg);
	}
	return NULL;
}

int kvx_jobs_open(bool threaded, void (*doorbell)(void *arg), void *arg, struct kvx_jobs **out_jobs)
{
	struct kvx_jobs *jobs = calloc(1, sizeof(*jobs));
	if (jobs == NULL)
		return -ENOMEM;
	jobs->doorbell = doorbell;
	jobs->doorbell_arg = arg;
	int err = kvx_queue_create(&jobs->todo);
	if (err < 0)
		goto err_free;
	err = kvx_queue_create(&jobs->done);
	if (err < 0)
		goto err_todo;
	if (threaded) {
		err = kvx_thread_start(&jobs->thread, "kvx-jobs", jobs_main, jobs);
		if (err < 0)
			goto err_done;
		jobs->threaded = true;
	}
	*out_jobs = jobs;
	return 0;

err_done:
	kvx_queue_destroy(jobs->done);
err_todo:
	kvx_queue_destroy(jobs->todo);
err_free:
	free(jobs);
	return err;
}

void kvx_jobs_close(struct kvx_jobs *jobs)
{
	if (jobs == NULL)
		return;
	if (jobs->threaded) {
		kvx_queue_close(jobs->todo);
		pthread_join(jobs->thread, NULL);
		jobs->threaded = false;
	}
	/* A done callback may submit more: without the thread it runs in here. */
	while (kvx_jobs_drain(jobs) > 0)
		;
	kvx_queue_destroy(jobs->done);
	kvx_queue_destroy(jobs->todo);
	free(jobs);
}

void kvx_jobs_submit(struct kvx_jobs *jobs, struct kvx_job *job)
{
	kvx_queue_push(jobs->todo, &job->node);
}

unsigned kvx_jobs_drain(struct kvx_jobs *jobs)
{
	struct kvx_queue_node *node;
	unsigned n = 0;
	while (!jobs->threaded && (node = kvx_queue_pop(jobs->todo)) != NULL) {
		struct kvx_job *job = job_of(node);
		job->run(job);
		kvx_queue_push(jobs->done, node);
	}
	while ((node = kvx_queue_pop(jobs->done)) != NULL) {
		struct kvx_job *job = job_of(node);
		job->done(job);
		n++;
	}
	return n;
}
