/* One thread for calls that block: mapping and unmapping memory, closing strange fds. Jobs run in
 * order, results come back on the loop. */
#ifndef KVX_JOBS_H
#define KVX_JOBS_H

#include <stdbool.h>

#include "base/queue.h"
#include "base/roles.h"

struct kvx_job {
	void (*run)(struct kvx_job *job); /* on the job thread; may block */
	void (*done)(
	    struct kvx_job *job);   /* on the loop, once, from kvx_jobs_drain(); may free the job */
	struct kvx_queue_node node; /* the queue's */
};

struct kvx_jobs;

/* threaded false: run() happens inside kvx_jobs_drain() (tests). doorbell: job thread, "something
 * to drain". */
int kvx_jobs_open(bool threaded, void (*doorbell)(void *arg), void *arg,
		  struct kvx_jobs **out_jobs) KVX_ON_LOOP;
void kvx_jobs_close(struct kvx_jobs *jobs) KVX_ON_LOOP; /* runs what is queued, and its done */
void kvx_jobs_submit(struct kvx_jobs *jobs,
		     struct kvx_job *job) KVX_ON_LOOP; /* cannot fail: the job is the node */
unsigned kvx_jobs_drain(struct kvx_jobs *jobs) KVX_ON_LOOP;

#endif
