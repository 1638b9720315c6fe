/* A worker for tests, with one local and one remote region on a loopback ep: commands that run to
 * their end, batches that are made in one line. Works for threaded workers and for those that are
 * pumped, on the copy and on the fake transport. */
#ifndef KVX_TEST_WORKER_H
#define KVX_TEST_WORKER_H

#include <criterion/criterion.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "mem/region.h"
#include "test_memory.h"
#include "transport/fake/fake.h"
#include "worker/worker.h"

#define TEST_RIGHTS (KVX_ACCESS_READ | KVX_ACCESS_WRITE)

struct test_worker {
	struct kvx_worker *worker;
	bool threaded;
	struct kvx_ep *ep;
	struct kvx_mem local_mem, remote_mem;
	struct kvx_mr *local, *remote;
	struct kvx_rkey *rkey;
	unsigned n_notes;
	struct kvx_tevent note; /* the last one */
	unsigned n_cmds_done, n_batches_done, n_batches_failed;
	_Atomic unsigned n_rings;
};

static inline void test_worker_on_doorbell(void *arg)
{
	((struct test_worker *)arg)->n_rings++;
}

static inline void test_worker_on_note(void *arg, const struct kvx_tevent *event)
{
	struct test_worker *t = arg;

	t->n_notes++;
	t->note = *event;
}

static inline int test_worker_start(struct test_worker *t, const struct kvx_transport_ops *ops,
				    bool threaded, unsigned depth, struct kvx_fake_script *script)
{
	struct kvx_worker_conf conf = {
	    .name = "kvx-test",
	    .ops = ops,
	    .dom = {.copy_nt_min_bytes = 16384, .test = script},
	    .ring_depth = depth,
	    .spin_us = 20,
	    .threaded = threaded,
	    .doorbell = test_worker_on_doorbell,
	    .doorbell_arg = t,
	    .note = test_worker_on_note,
	    .note_arg = t,
	};
	struct kvx_why why;

	memset(t, 0, sizeof(*t));
	t->threaded = threaded;
	return kvx_worker_open(&conf, &t->worker, &why);
}

/* Lets the worker work, and drains it. */
static inline void test_worker_turn(struct test_worker *t)
{
	if (!t->threaded)
		kvx_worker_pump(t->worker);
	if (kvx_worker_drain(t->worker) == 0 && t->threaded)
		sched_yield();
}

struct test_cmd {
	struct kvx_cmd cmd; /* first */
	struct test_worker *owner;
	unsigned n_done;
};

static inline void test_cmd_on_done(struct kvx_cmd *cmd)
{
	struct test_cmd *tc = (struct test_cmd *)(void *)cmd;

	tc->n_done++;
	tc->owner->n_cmds_done++;
}

static inline void test_cmd_submit(struct test_worker *t, struct test_cmd *tc,
				   enum kvx_work_kind kind)
{
	tc->owner = t;
	tc->n_done = 0;
	tc->cmd.work.kind = kind;
	tc->cmd.done = test_cmd_on_done;
	cr_assert_eq(kvx_worker_submit(t->worker, &tc->cmd), 0);
	cr_assert_eq(tc->n_done, 0);
}

/* Turns until the command is done; false when it is not within a few seconds. */
static inline bool test_cmd_wait(struct test_worker *t, struct test_cmd *tc)
{
	uint64_t end = kvx_now_ns() + 5 * KVX_SEC;

	while (tc->n_done == 0 && kvx_now_ns() < end)
		test_worker_turn(t);
	return tc->n_done == 1;
}

static inline int test_cmd_run(struct test_worker *t, struct test_cmd *tc, enum kvx_work_kind kind)
{
	test_cmd_submit(t, tc, kind);
	cr_assert(test_cmd_wait(t, tc), "command %d does not come back", (int)kind);
	return tc->cmd.status;
}

/* The key is the caller's. */
static inline int test_worker_reg(struct test_worker *t, const struct kvx_mem *mem,
				  struct test_cmd *tc)
{
	tc->cmd.mem = mem;
	tc->cmd.rights = TEST_RIGHTS;
	return test_cmd_run(t, tc, KVX_CMD_MEM_REG);
}

/* An ep and both regions; the first error, with what was made kept for test_worker_teardown(). */
static inline int test_worker_setup(struct test_worker *t, size_t region_bytes)
{
	struct test_cmd tc = {0};
	int err;

	test_mem_make(&t->local_mem, region_bytes);
	test_mem_make(&t->remote_mem, region_bytes);
	test_fill(t->local_mem.addr, region_bytes, 1);
	test_fill(t->remote_mem.addr, region_bytes, 2);
	err = test_cmd_run(t, &tc, KVX_CMD_LISTEN);
	if (err < 0)
		return err;
	t->ep = tc.cmd.ep;
	err = test_worker_reg(t, &t->local_mem, &tc);
	if (err < 0)
		return err;
	t->local = tc.cmd.mr;
	free(tc.cmd.mkey);
	err = test_worker_reg(t, &t->remote_mem, &tc);
	if (err < 0)
		return err;
	t->remote = tc.cmd.mr;
	tc.cmd.ep = t->ep;
	err = test_cmd_run(t, &tc, KVX_CMD_RKEY_UNPACK);
	free(tc.cmd.mkey);
	if (err < 0)
		return err;
	t->rkey = tc.cmd.rkey;
	return 0;
}

static inline void test_worker_teardown(struct test_worker *t)
{
	struct test_cmd tc = {0};

	if (t->rkey != NULL) {
		tc.cmd.rkey = t->rkey;
		cr_assert_eq(test_cmd_run(t, &tc, KVX_CMD_RKEY_FREE), 0);
	}
	if (t->ep != NULL) {
		tc.cmd.ep = t->ep;
		test_cmd_run(t, &tc, KVX_CMD_EP_CLOSE); /* may say that the fence failed */
	}
	tc.cmd.mr = t->local;
	if (t->local != NULL)
		cr_assert_eq(test_cmd_run(t, &tc, KVX_CMD_MEM_DEREG), 0);
	tc.cmd.mr = t->remote;
	if (t->remote != NULL)
		cr_assert_eq(test_cmd_run(t, &tc, KVX_CMD_MEM_DEREG), 0);
	cr_assert_eq(kvx_worker_in_flight(t->worker), 0);
	kvx_worker_close(t->worker);
	if (t->local_mem.ops != NULL)
		kvx_mem_fini(&t->local_mem);
	if (t->remote_mem.ops != NULL)
		kvx_mem_fini(&t->remote_mem);
}

static inline void test_batch_on_done(struct kvx_batch *batch)
{
	struct test_worker *t = batch->owner;

	t->n_batches_done++;
	t->n_batches_failed += batch->status != 0;
	batch->bytes = 0; /* marks it as back; each comes back once */
}

static inline bool test_batch_is_back(const struct kvx_batch *batch)
{
	return batch->bytes == 0;
}

/* n ops of len bytes each, one after another from offset at in both regions. */
static inline void test_batch_fill(struct test_worker *t, struct kvx_batch *batch,
				   enum kvx_op_kind kind, uint64_t at, unsigned n, uint64_t len)
{
	memset(batch, 0, offsetof(struct kvx_batch, ops));
	batch->ep = t->ep;
	batch->owner = t;
	batch->done = test_batch_on_done;
	batch->n_ops = n;
	batch->bytes = n * len;
	for (unsigned i = 0; i < n; i++)
		batch->ops[i] = (struct kvx_op){.local = t->local,
						.remote = t->rkey,
						.local_offset = at + i * len,
						.remote_offset = at + i * len,
						.len_bytes = len,
						.kind = kind};
}

static inline bool test_batches_wait(struct test_worker *t, unsigned n_done)
{
	uint64_t end = kvx_now_ns() + 10 * KVX_SEC;

	while (t->n_batches_done < n_done && kvx_now_ns() < end)
		test_worker_turn(t);
	return t->n_batches_done == n_done;
}

#endif
