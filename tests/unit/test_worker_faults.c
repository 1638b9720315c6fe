/* Sweeps: whatever call of the transport fails, and whatever allocation, every command and every
 * batch comes back exactly once and nothing is left behind. */
#include "fault_alloc.h"
#include "test_end.h"
#include "test_worker.h"

#define REGION    (64u * 1024u)
#define N_BATCHES 12u

/* A whole life of a worker, as far as the fault lets it go. Returns whether it opened. */
static bool life(struct kvx_fake_script *script, const struct kvx_transport_ops *ops)
{
	static struct kvx_batch batches[N_BATCHES];
	struct test_worker t;

	if (test_worker_start(&t, ops, false, 16, script) < 0)
		return false;
	if (test_worker_setup(&t, REGION) == 0) {
		for (unsigned i = 0; i < N_BATCHES; i++) {
			test_batch_fill(&t, &batches[i], i % 2 ? KVX_OP_READ : KVX_OP_WRITE,
					i * 4096, 16, 256);
			cr_assert_eq(kvx_worker_submit_batch(t.worker, &batches[i]), 0);
		}
		for (unsigned i = 0; i < 100; i++) {
			test_worker_turn(&t);
			kvx_fake_advance(script, 50);
		}
	}
	test_worker_teardown(&t);
	cr_assert(t.n_batches_done == 0 || t.n_batches_done == N_BATCHES, "%u batches back",
		  t.n_batches_done);
	for (unsigned i = 0; i < t.n_batches_done; i++)
		cr_assert(test_batch_is_back(&batches[i]), "batch %u", i);
	return true;
}

static void expect_clean(const struct kvx_fake_script *script)
{
	cr_assert_eq(script->n_doms, 0);
	cr_assert_eq(script->n_eps, 0);
	cr_assert_eq(script->n_mrs, 0);
	cr_assert_eq(script->n_rkeys, 0);
	cr_assert_eq(script->n_open_ops, 0);
}

static struct kvx_fake_script script_of(unsigned seed)
{
	return (struct kvx_fake_script){.latency_ns = 100,
					.jitter_ns = seed % 2 ? 300 : 0,
					.reorder = seed % 3 == 1,
					.split = seed % 5 == 2,
					.post_max = seed % 4 == 3 ? 5 : 0,
					.queue_ops = seed % 2 ? 24 : 0,
					.seed = seed};
}

Test(worker_faults, nth_call_of_every_slot)
{
	unsigned n_runs = 0;

	for (enum kvx_fake_slot slot = KVX_FAKE_OPEN; slot < KVX_FAKE_SLOTS; slot++) {
		for (unsigned nth = 1; nth < 400; nth++) {
			struct kvx_fake_script script = script_of(nth);

			script.faults[slot] = (struct kvx_fake_fault){nth, -EIO};
			life(&script, &kvx_fake_ops);
			expect_clean(&script);
			n_runs++;
			if (script.calls[slot] < nth)
				break; /* it was not called so often: the sweep is over */
		}
	}
	cr_assert_gt(n_runs, 50);
	KVX_TEST_END();
}

Test(worker_faults, a_fence_that_never_works_still_ends)
{
	struct kvx_fake_script script = script_of(1);
	struct test_worker t;
	static struct kvx_batch batch;
	struct test_cmd tc = {0};

	cr_assert_eq(test_worker_start(&t, &kvx_fake_ops, false, 16, &script), 0);
	cr_assert_eq(test_worker_setup(&t, REGION), 0);
	test_batch_fill(&t, &batch, KVX_OP_WRITE, 0, 16, 256);
	cr_assert_eq(kvx_worker_submit_batch(t.worker, &batch), 0);
	kvx_worker_pump(t.worker);
	script.faults[KVX_FAKE_FENCE] = (struct kvx_fake_fault){1, -EIO};
	script.more_faults[KVX_FAKE_FENCE] = UINT32_MAX;
	tc.cmd.ep = t.ep;
	test_cmd_submit(&t, &tc, KVX_CMD_EP_CLOSE);
	for (unsigned i = 0; i < 10; i++)
		test_worker_turn(&t);
	cr_assert_eq(tc.n_done, 1);
	cr_assert_eq(tc.cmd.status, -EIO);
	cr_assert_eq(t.n_batches_done, 1);
	cr_assert_eq(batch.status, -ECANCELED);
	t.ep = NULL;
	kvx_fake_advance(&script, 10000);
	cr_assert_eq(t.remote_mem.addr[0], test_byte(2, 0)); /* fenced by the close all the same */
	test_worker_teardown(&t);
	expect_clean(&script);
	KVX_TEST_END();
}

Test(worker_faults, nth_op_lost_failed_or_fatal)
{
	for (unsigned nth = 1; nth <= 40; nth++)
		for (unsigned what = 0; what < 5; what++) {
			struct kvx_fake_script script = script_of(nth + what);

			script.fail_nth_op = what == 0 ? nth : 0;
			script.fail_err = -EREMOTEIO;
			script.drop_nth_op = what == 1 || what == 2 ? nth : 0;
			script.drop_lands = what == 2;
			script.ep_down_at_op = what == 3 ? nth : 0;
			script.device_lost_at_op = what == 4 ? nth : 0;
			cr_assert(life(&script, &kvx_fake_ops));
			expect_clean(&script);
		}
	KVX_TEST_END();
}

Test(worker_faults, nth_allocation)
{
	static const struct kvx_transport_ops *const both[] = {&kvx_fake_ops, &kvx_copy_ops};

	for (unsigned i = 0; i < 2; i++) {
		unsigned n;

		for (n = 1;; n++) {
			struct kvx_fake_script script = script_of(n);

			fault_alloc_arm(n);
			life(&script, both[i]);
			bool hit = fault_alloc_disarm();
			expect_clean(&script);
			if (!hit)
				break;
		}
		cr_assert_gt(n, 8);
	}
	KVX_TEST_END();
}
