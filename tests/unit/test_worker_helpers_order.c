/* Workers whose transport's control calls block: of one ep they run one at a time, in order, and
 * nothing is posted to an ep that is being fenced. */
#include <poll.h>

#include "test_end.h"
#include "test_helpers.h"

Test(worker_helpers_order, a_fence_waits_for_the_connect_of_its_ep_and_refuses_at_once)
{
	struct kvx_fake_script script = {0};
	static struct kvx_batch before, after;
	struct test_cmd connect = {0}, fence = {0};
	struct test_worker t;
	struct test_far far;

	test_helpers_open(&t, &script, true);
	test_far_open(&far, &script);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	kvx_fake_gate(&script, KVX_FAKE_CONNECT, KVX_FAKE_GATE_BEFORE);
	test_connect_submit(&t, &connect, &far);
	test_gate_wait(&t, &script, KVX_FAKE_CONNECT, 1);
	test_batch_fill(&t, &before, KVX_OP_WRITE, 0, 8, 512);
	cr_assert_eq(kvx_worker_submit_batch(t.worker, &before), 0);
	test_ep_submit(&t, &fence, KVX_CMD_FENCE);
	test_batch_fill(&t, &after, KVX_OP_WRITE, 0, 8, 512);
	cr_assert_eq(kvx_worker_submit_batch(t.worker, &after), 0);
	cr_assert(test_batches_wait(&t, 2));
	cr_assert_eq(before.status, -ECANCELED);
	cr_assert_eq(after.status, -ECANCELED);
	poll(NULL, 0, 20);
	test_worker_turn(&t);
	cr_assert_eq(connect.n_done + fence.n_done, 0);
	cr_assert_eq(test_calls(&script, KVX_FAKE_FENCE), 0);
	kvx_fake_gate(&script, KVX_FAKE_CONNECT, KVX_FAKE_GATE_OPEN);
	cr_assert(test_cmd_wait(&t, &fence));
	cr_assert_eq(connect.n_done, 1);
	cr_assert_eq(connect.cmd.status, -ECANCELED);
	cr_assert_str_eq(connect.cmd.text, "endpoint fenced");
	cr_assert_eq(fence.cmd.status, 0);
	test_worker_teardown(&t);
	test_far_close(&far);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

/* Up or down may be reported before connect() has returned. */
Test(worker_helpers_order, news_of_an_ep_may_come_before_its_connect_has_returned)
{
	for (unsigned lost = 0; lost < 2; lost++) {
		struct kvx_fake_script script = {.latency_ns = 1000};
		static struct kvx_batch batch;
		struct test_cmd connect = {0}, unpack = {0};
		struct test_worker t;
		struct test_far far;

		test_helpers_open(&t, &script, true);
		test_far_open(&far, &script);
		cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
		kvx_fake_gate(&script, KVX_FAKE_CONNECT, KVX_FAKE_GATE_AFTER);
		test_connect_submit(&t, &connect, &far);
		test_gate_wait(&t, &script, KVX_FAKE_CONNECT, 1);
		if (lost)
			kvx_fake_ep_lose(far.ep, -EHOSTDOWN);
		kvx_fake_advance(&script, 1000);
		test_progress_wait(&t, &script);
		unpack.cmd.mkey = far.mkey;
		unpack.cmd.mkey_len = far.mkey_len;
		test_ep_submit(&t, &unpack, KVX_CMD_RKEY_UNPACK);
		test_batch_fill(&t, &batch, KVX_OP_WRITE, 0, 8, 512);
		cr_assert_eq(kvx_worker_submit_batch(t.worker, &batch), 0);
		test_progress_wait(&t, &script);
		cr_assert_eq(connect.n_done + unpack.n_done, 0);
		kvx_fake_gate(&script, KVX_FAKE_CONNECT, KVX_FAKE_GATE_OPEN);
		cr_assert(test_cmd_wait(&t, &connect));
		cr_assert(test_cmd_wait(&t, &unpack));
		test_progress_wait(&t, &script); /* posts */
		kvx_fake_advance(&script, 1000);
		cr_assert(test_batches_wait(&t, 1));
		cr_assert_eq(connect.cmd.status, lost ? -EHOSTUNREACH : 0);
		cr_assert_eq(unpack.cmd.status, lost ? -EHOSTDOWN : 0);
		cr_assert_eq(batch.status, lost ? -EHOSTUNREACH : 0);
		if (!lost)
			cr_assert_eq(test_cmd_run(&t, &unpack, KVX_CMD_RKEY_FREE), 0);
		cr_assert_eq(t.n_notes, 0); /* the command said it */
		test_worker_teardown(&t);
		test_far_close(&far);
		test_helpers_expect_clean(&script);
	}
	KVX_TEST_END();
}

Test(worker_helpers_order, leases_are_extended_at_once_and_stopped_in_order)
{
	struct kvx_fake_script script = {0};
	struct test_cmd connect = {0}, longer = {0}, stop = {0}, again = {0};
	struct test_worker t;
	struct test_far far;

	test_helpers_open(&t, &script, true);
	test_far_open(&far, &script);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	kvx_fake_gate(&script, KVX_FAKE_CONNECT, KVX_FAKE_GATE_BEFORE);
	test_connect_submit(&t, &connect, &far);
	test_gate_wait(&t, &script, KVX_FAKE_CONNECT, 1);
	longer.cmd.lease_ns = 1000;
	longer.cmd.ep = t.ep;
	cr_assert_eq(test_cmd_run(&t, &longer, KVX_CMD_LEASE), 0);
	test_ep_submit(&t, &stop, KVX_CMD_LEASE);
	again.cmd.lease_ns = 2000;
	test_ep_submit(&t, &again, KVX_CMD_LEASE);
	test_progress_wait(&t, &script);
	cr_assert_eq(stop.n_done + again.n_done, 0);
	cr_assert_eq(test_calls(&script, KVX_FAKE_LEASE), 1);
	cr_assert_eq(test_calls(&script, KVX_FAKE_LEASE_STOP), 0);
	kvx_fake_gate(&script, KVX_FAKE_LEASE_STOP, KVX_FAKE_GATE_AFTER);
	kvx_fake_gate(&script, KVX_FAKE_CONNECT, KVX_FAKE_GATE_OPEN);
	test_gate_wait(&t, &script, KVX_FAKE_LEASE_STOP, 1);
	test_progress_wait(&t, &script);
	cr_assert_eq(stop.n_done + again.n_done, 0);
	kvx_fake_gate(&script, KVX_FAKE_LEASE_STOP, KVX_FAKE_GATE_OPEN);
	cr_assert(test_cmd_wait(&t, &again));
	cr_assert_eq(stop.n_done, 1);
	cr_assert(test_cmd_wait(&t, &connect));
	cr_assert_eq(test_calls(&script, KVX_FAKE_LEASE), 2);
	test_worker_teardown(&t);
	test_far_close(&far);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

/* What the ep had queued while its inbound side is stopped goes on after that. */
Test(worker_helpers_order, a_stopped_lease_holds_posts_but_does_not_refuse_them)
{
	struct kvx_fake_script script = {.auto_advance = true};
	static struct kvx_batch batch;
	struct test_cmd stop = {0};
	struct test_worker t;

	test_helpers_open(&t, &script, true);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	kvx_fake_gate(&script, KVX_FAKE_LEASE_STOP, KVX_FAKE_GATE_BEFORE);
	test_ep_submit(&t, &stop, KVX_CMD_LEASE);
	test_gate_wait(&t, &script, KVX_FAKE_LEASE_STOP, 1);
	test_batch_fill(&t, &batch, KVX_OP_WRITE, 0, 8, 512);
	cr_assert_eq(kvx_worker_submit_batch(t.worker, &batch), 0);
	test_progress_wait(&t, &script);
	cr_assert_eq(t.n_batches_done, 0);
	kvx_fake_gate(&script, KVX_FAKE_LEASE_STOP, KVX_FAKE_GATE_OPEN);
	cr_assert(test_cmd_wait(&t, &stop));
	cr_assert(test_batches_wait(&t, 1));
	cr_assert_eq(batch.status, 0);
	test_worker_teardown(&t);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

Test(worker_helpers_order, ep_close_comes_after_a_fence_that_runs_and_needs_no_second_one)
{
	struct kvx_fake_script script = {.latency_ns = 1000};
	static struct kvx_batch batch;
	struct test_cmd fence = {0}, close = {0}, twice = {0}, unpack = {0};
	struct test_worker t;

	test_helpers_open(&t, &script, true);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	test_batch_fill(&t, &batch, KVX_OP_WRITE, 0, 8, 512);
	cr_assert_eq(kvx_worker_submit_batch(t.worker, &batch), 0);
	while (test_calls(&script, KVX_FAKE_POST) == 0)
		test_worker_turn(&t);
	kvx_fake_gate(&script, KVX_FAKE_FENCE, KVX_FAKE_GATE_AFTER);
	test_ep_submit(&t, &fence, KVX_CMD_FENCE);
	test_ep_submit(&t, &close, KVX_CMD_EP_CLOSE);
	test_ep_submit(&t, &unpack, KVX_CMD_RKEY_UNPACK);
	test_ep_submit(&t, &twice, KVX_CMD_EP_CLOSE);
	test_gate_wait(&t, &script, KVX_FAKE_FENCE, 1);
	cr_assert(test_cmd_wait(&t, &twice));
	cr_assert_eq(twice.cmd.status, -EALREADY);
	cr_assert_eq(fence.n_done + close.n_done + unpack.n_done, 0);
	cr_assert_eq(t.n_batches_done, 0); /* its bytes may land until the fence is over */
	kvx_fake_gate(&script, KVX_FAKE_FENCE, KVX_FAKE_GATE_OPEN);
	cr_assert(test_cmd_wait(&t, &close));
	cr_assert_eq(close.cmd.status, 0);
	cr_assert_eq(fence.n_done, 1);
	cr_assert_eq(unpack.cmd.status, -ECANCELED);
	cr_assert_eq(t.n_batches_done, 1);
	cr_assert_eq(batch.status, -ECANCELED);
	cr_assert_eq(script.calls[KVX_FAKE_FENCE], 1);
	t.ep = NULL;
	test_worker_teardown(&t);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

Test(worker_helpers_order, an_ep_whose_fence_never_works_is_closed_all_the_same)
{
	struct kvx_fake_script script = {.latency_ns = 1000};
	static struct kvx_batch batch;
	struct test_cmd close = {0};
	struct test_worker t;

	test_helpers_open(&t, &script, true);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	test_batch_fill(&t, &batch, KVX_OP_WRITE, 0, 8, 512);
	cr_assert_eq(kvx_worker_submit_batch(t.worker, &batch), 0);
	while (test_calls(&script, KVX_FAKE_POST) == 0)
		test_worker_turn(&t);
	kvx_fake_lock(&script);
	script.faults[KVX_FAKE_FENCE] = (struct kvx_fake_fault){1, -EIO};
	script.more_faults[KVX_FAKE_FENCE] = UINT32_MAX;
	kvx_fake_unlock(&script);
	test_ep_submit(&t, &close, KVX_CMD_EP_CLOSE);
	cr_assert(test_cmd_wait(&t, &close));
	cr_assert_eq(close.cmd.status, -EIO);
	cr_assert_eq(t.n_batches_done, 1);
	cr_assert_eq(batch.status, -ECANCELED);
	t.ep = NULL;
	test_worker_teardown(&t);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

Test(worker_helpers_order, a_device_lost_during_calls_is_noted_at_once)
{
	struct kvx_fake_script script = {0};
	struct test_cmd connect = {0}, reg = {0}, listen = {0};
	struct test_worker t;
	struct test_far far;

	test_helpers_open(&t, &script, true);
	test_far_open(&far, &script);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	kvx_fake_gate(&script, KVX_FAKE_CONNECT, KVX_FAKE_GATE_BEFORE);
	kvx_fake_gate(&script, KVX_FAKE_MEM_REG, KVX_FAKE_GATE_BEFORE);
	test_connect_submit(&t, &connect, &far);
	test_cmd_submit(&t, &listen, KVX_CMD_LISTEN);
	reg.cmd.mem = &t.local_mem;
	test_cmd_submit(&t, &reg, KVX_CMD_MEM_REG);
	test_gate_wait(&t, &script, KVX_FAKE_CONNECT, 1);
	test_gate_wait(&t, &script, KVX_FAKE_MEM_REG, 1);
	kvx_fake_device_lose(&script, NULL);
	test_progress_wait(&t, &script);
	cr_assert_eq(t.n_notes, 1);
	cr_assert_eq(t.note.kind, KVX_TEV_DEVICE_LOST);
	cr_assert_eq(connect.n_done + reg.n_done + listen.n_done, 0);
	kvx_fake_gate(&script, KVX_FAKE_CONNECT, KVX_FAKE_GATE_OPEN);
	kvx_fake_gate(&script, KVX_FAKE_MEM_REG, KVX_FAKE_GATE_OPEN);
	cr_assert(test_cmd_wait(&t, &connect));
	cr_assert(test_cmd_wait(&t, &reg));
	cr_assert(test_cmd_wait(&t, &listen));
	cr_assert_eq(connect.cmd.status, -ENODEV);
	cr_assert_eq(reg.cmd.status, -ENODEV);
	cr_assert_eq(listen.cmd.status, 0);
	test_connect_submit(&t, &connect, &far);
	cr_assert(test_cmd_wait(&t, &connect));
	cr_assert_eq(connect.cmd.status, -ENODEV);
	cr_assert_eq(test_cmd_run(&t, &listen, KVX_CMD_EP_CLOSE), 0);
	test_worker_teardown(&t);
	test_far_close(&far);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

Test(worker_helpers_order, a_key_that_cannot_be_packed_undoes_the_registration)
{
	struct kvx_fake_script script = {0};
	struct test_cmd reg = {0};
	struct test_worker t;

	script.faults[KVX_FAKE_MKEY_PACK] = (struct kvx_fake_fault){3, -ENOSPC};
	test_helpers_open(&t, &script, true);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	cr_assert_eq(test_worker_reg(&t, &t.local_mem, &reg), -ENOSPC);
	cr_assert_null(reg.cmd.mr);
	cr_assert_eq(script.elsewhere[KVX_FAKE_MEM_DEREG], 1);
	test_worker_teardown(&t);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}
