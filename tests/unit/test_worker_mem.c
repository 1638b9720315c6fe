/* Commands for memory that do not pass the worker's thread: none is lost on its way back, one drain
 * ends, and what cannot be given a key is taken back. */
#include <poll.h>
#include <sched.h>
#include <stdlib.h>

#include "test_end.h"
#include "test_helpers.h"
#include "worker/worker_priv.h"

#define N_CHAINS 12u
#define N_TURNS  1500u

/* Registered and taken back in turn, from its own done(); the last ones are the worker's. */
struct chain {
	struct kvx_cmd cmd; /* first */
	struct test_worker *t;
	unsigned left;
	unsigned *n_over;
};

static void chain_done(struct kvx_cmd *cmd)
{
	struct chain *chain = (struct chain *)cmd;

	cr_assert_eq(cmd->status, 0);
	if (cmd->work.kind == KVX_CMD_MEM_REG) {
		free(cmd->mkey);
		cmd->work.kind = KVX_CMD_MEM_DEREG;
	} else if (--chain->left == 0) {
		++*chain->n_over;
		return;
	} else if (cmd->work.kind == KVX_CMD_MEM_DEREG) {
		cmd->work.kind = KVX_CMD_MEM_REG;
	}
	cr_assert_eq(kvx_worker_submit(chain->t->worker, cmd), 0);
}

static void chain_begin(struct chain *chain, struct test_worker *t, unsigned i, unsigned *n_over)
{
	*chain = (struct chain){.t = t, .left = N_TURNS, .n_over = n_over};
	chain->cmd.work.kind = i + 2 < N_CHAINS ? KVX_CMD_MEM_REG : KVX_CMD_LEASE;
	chain->cmd.mem = &t->local_mem;
	chain->cmd.rights = TEST_RIGHTS;
	chain->cmd.gpu = i % 4;
	chain->cmd.ep = t->ep;
	chain->cmd.lease_ns = UINT64_MAX;
	chain->cmd.done = chain_done;
	cr_assert_eq(kvx_worker_submit(t->worker, &chain->cmd), 0);
}

/* The loop looks only when it was told to. */
Test(worker_mem, nothing_is_lost_between_helpers_worker_and_loop, .timeout = 60)
{
	struct kvx_fake_script script = {.auto_advance = true};
	static struct chain chains[N_CHAINS];
	unsigned n_over = 0, seen = 0;
	uint64_t moved_ns = kvx_now_ns();
	struct test_worker t;

	test_helpers_open(&t, &script, true);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	for (unsigned i = 0; i < N_CHAINS; i++)
		chain_begin(&chains[i], &t, i, &n_over);
	while (n_over < N_CHAINS) {
		unsigned rung = t.n_rings;

		cr_assert_lt(kvx_now_ns() - moved_ns, 20 * KVX_SEC, "%u are over", n_over);
		if (rung == seen) {
			sched_yield();
			continue;
		}
		seen = rung;
		kvx_worker_drain(t.worker);
		moved_ns = kvx_now_ns();
	}
	cr_assert_eq(kvx_worker_in_flight(t.worker), 0);
	test_worker_teardown(&t);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

/* A helper as fast as the loop does not keep it in there. */
Test(worker_mem, a_drain_ends)
{
	enum { RING = 64 }; /* of test_helpers_open() */
	struct kvx_fake_script script = {.auto_advance = true};
	static struct chain chain;
	unsigned n_over = 0, most = 0;
	struct test_worker t;

	test_helpers_open(&t, &script, true);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	chain_begin(&chain, &t, 0, &n_over);
	for (uint64_t end = kvx_now_ns() + 20 * KVX_SEC; n_over == 0 && kvx_now_ns() < end;) {
		unsigned n = kvx_worker_drain(t.worker);

		most = n > most ? n : most;
	}
	cr_assert_eq(n_over, 1);
	cr_assert_leq(most, RING + WORKER_NOTES);
	test_worker_teardown(&t);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

/* It may have to watch over what is there now. */
Test(worker_mem, a_sleeping_worker_looks_again_when_memory_comes_and_goes)
{
	static const enum kvx_work_kind kinds[] = {KVX_CMD_MEM_REG, KVX_CMD_MEM_DEREG};
	struct kvx_fake_script script = {0};
	struct test_cmd tc = {0};
	struct test_worker t;

	test_helpers_open(&t, &script, true);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	tc.cmd.mem = &t.local_mem;
	tc.cmd.rights = TEST_RIGHTS;
	for (unsigned i = 0; i < 2; i++) {
		uint64_t end = kvx_now_ns() + 5 * KVX_SEC;
		unsigned before;

		do { /* until it sleeps */
			before = test_calls(&script, KVX_FAKE_PROGRESS);
			poll(NULL, 0, 50);
		} while (test_calls(&script, KVX_FAKE_PROGRESS) != before && kvx_now_ns() < end);
		cr_assert_eq(test_cmd_run(&t, &tc, kinds[i]), 0);
		while (test_calls(&script, KVX_FAKE_PROGRESS) == before)
			cr_assert_lt(kvx_now_ns(), end, "it goes on sleeping");
	}
	free(tc.cmd.mkey);
	test_worker_teardown(&t);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

Test(worker_mem, memory_of_a_gpu_that_gets_no_key_is_taken_back)
{
	struct kvx_fake_script script = {0};
	struct test_cmd reg = {.cmd.gpu = 2};
	struct test_worker t;

	script.faults[KVX_FAKE_MKEY_PACK] = (struct kvx_fake_fault){3, -ENOSPC};
	test_helpers_open(&t, &script, true);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	cr_assert_eq(test_worker_reg(&t, &t.local_mem, &reg), -ENOSPC);
	cr_assert_null(reg.cmd.mr);
	cr_assert_not_null(reg.cmd.text);
	cr_assert_eq(script.n_mrs, 2, "those of the setup");
	test_worker_teardown(&t);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}
