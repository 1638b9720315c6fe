/* Workers without a thread: commands, batches, order, losses, fences; on the fake and the copy
 * transport. */
#include "worker/worker.h"

#include "test_end.h"
#include "test_worker.h"

#define REGION (256u * 1024u)

static void open_fake(struct test_worker *t, struct kvx_fake_script *script)
{
	cr_assert_eq(test_worker_start(t, &kvx_fake_ops, false, 64, script), 0);
	cr_assert_eq(test_worker_setup(t, REGION), 0);
}

static void close_fake(struct test_worker *t, const struct kvx_fake_script *script)
{
	test_worker_teardown(t);
	cr_assert_eq(script->n_doms + script->n_eps + script->n_mrs + script->n_rkeys, 0);
	cr_assert_eq(script->n_open_ops, 0);
}

static void submit(struct test_worker *t, struct kvx_batch *batch)
{
	unsigned before = t->n_batches_done;

	cr_assert_eq(kvx_worker_submit_batch(t->worker, batch), 0);
	cr_assert_eq(t->n_batches_done, before);
}

Test(worker, batch_moves_its_bytes_and_comes_back_once)
{
	static const struct kvx_transport_ops *const both[] = {&kvx_copy_ops, &kvx_fake_ops};

	for (unsigned i = 0; i < 2; i++) {
		struct kvx_fake_script script = {0};
		static struct kvx_batch batch;
		struct test_worker t;

		cr_assert_eq(test_worker_start(&t, both[i], false, 8, &script), 0);
		cr_assert_eq(kvx_worker_ops(t.worker), both[i]);
		cr_assert_gt(kvx_worker_limits(t.worker)->batch_bytes, 0);
		cr_assert_eq(test_worker_setup(&t, REGION), 0);
		test_batch_fill(&t, &batch, KVX_OP_WRITE, 100, 40, 3000);
		submit(&t, &batch);
		cr_assert_eq(kvx_worker_in_flight(t.worker), 1);
		cr_assert(test_batches_wait(&t, 1));
		cr_assert_eq(kvx_worker_in_flight(t.worker), 0);
		cr_assert_eq(batch.status, 0);
		cr_assert_eq(batch.n_done, 40);
		cr_assert_gt(batch.first_ns, 0);
		cr_assert_geq(batch.last_ns, batch.first_ns);
		for (unsigned b = 0; b < REGION; b++)
			cr_assert_eq(t.remote_mem.addr[b],
				     test_byte(b >= 100 && b < 120100 ? 1 : 2, b));
		const struct kvx_worker_stats *stats = kvx_worker_stats(t.worker);
		cr_assert_eq(kvx_counter_get(&stats->ops), 40);
		cr_assert_eq(kvx_counter_get(&stats->bytes), 120000);
		cr_assert_eq(kvx_counter_get(&stats->batches), 1);
		cr_assert_eq(kvx_counter_get(&stats->errors), 0);
		test_worker_teardown(&t);
	}
	KVX_TEST_END();
}

Test(worker, ring_depth_bounds_what_is_in_flight)
{
	struct kvx_fake_script script = {.latency_ns = 1000};
	static struct kvx_batch batches[5];
	struct test_worker t;

	cr_assert_eq(test_worker_start(&t, &kvx_fake_ops, false, 4, &script), 0);
	cr_assert_eq(test_worker_setup(&t, REGION), 0);
	for (unsigned i = 0; i < 5; i++)
		test_batch_fill(&t, &batches[i], KVX_OP_READ, 0, 1, 64);
	for (unsigned i = 0; i < 4; i++)
		submit(&t, &batches[i]);
	cr_assert_eq(kvx_worker_submit_batch(t.worker, &batches[4]), -EAGAIN);
	kvx_worker_pump(t.worker);
	kvx_fake_advance(&script, 1000);
	cr_assert(test_batches_wait(&t, 4));
	submit(&t, &batches[4]);
	kvx_worker_pump(t.worker);
	kvx_fake_advance(&script, 1000);
	cr_assert(test_batches_wait(&t, 5));
	close_fake(&t, &script);
	KVX_TEST_END();
}

Test(worker, short_posts_are_retried_in_order)
{
	struct kvx_fake_script script = {.latency_ns = 100, .post_max = 3, .queue_ops = 7};
	static struct kvx_batch batches[6];
	struct test_worker t;
	uint64_t last_ns = 0;

	open_fake(&t, &script);
	for (unsigned i = 0; i < 6; i++) {
		test_batch_fill(&t, &batches[i], KVX_OP_WRITE, i * 1000, 10, 100);
		submit(&t, &batches[i]);
	}
	for (unsigned i = 0; i < 200 && t.n_batches_done < 6; i++) {
		test_worker_turn(&t);
		kvx_fake_advance(&script, 100);
	}
	cr_assert_eq(t.n_batches_done, 6);
	cr_assert_eq(t.n_batches_failed, 0);
	for (unsigned i = 0; i < 6; i++) {
		cr_assert_geq(batches[i].last_ns, last_ns);
		last_ns = batches[i].last_ns;
	}
	cr_assert_eq(memcmp(t.remote_mem.addr, t.local_mem.addr, 6000), 0);
	cr_assert_gt(kvx_counter_get(&kvx_worker_stats(t.worker)->short_posts), 5);
	close_fake(&t, &script);
	KVX_TEST_END();
}

Test(worker, first_error_of_a_batch_is_kept_and_the_rest_is_not_posted)
{
	struct kvx_fake_script script = {
	    .latency_ns = 100, .post_max = 2, .fail_nth_op = 2, .fail_err = -EIO};
	static struct kvx_batch bad, good;
	struct test_worker t;

	open_fake(&t, &script);
	test_batch_fill(&t, &bad, KVX_OP_WRITE, 0, 100, 10);
	test_batch_fill(&t, &good, KVX_OP_WRITE, 5000, 2, 10);
	submit(&t, &bad);
	submit(&t, &good);
	for (unsigned i = 0; i < 50 && t.n_batches_done < 2; i++) {
		test_worker_turn(&t);
		kvx_fake_advance(&script, 100);
	}
	cr_assert_eq(t.n_batches_done, 2);
	cr_assert_eq(bad.status, -EIO);
	cr_assert_eq(bad.vendor_code, 4711);
	cr_assert_str_eq(bad.text, "fake");
	cr_assert_lt(bad.n_posted, 100);
	cr_assert_eq(good.status, 0);
	cr_assert_eq(kvx_counter_get(&kvx_worker_stats(t.worker)->errors), 1);
	close_fake(&t, &script);
	KVX_TEST_END();
}

Test(worker, ep_close_cancels_queued_and_open_batches_first)
{
	struct kvx_fake_script script = {.latency_ns = 100, .queue_ops = 15};
	static struct kvx_batch batches[4];
	struct test_worker t;
	struct test_cmd tc = {0};

	open_fake(&t, &script);
	for (unsigned i = 0; i < 4; i++) { /* one and a half are posted, the rest waits */
		test_batch_fill(&t, &batches[i], KVX_OP_WRITE, i * 1000, 10, 100);
		submit(&t, &batches[i]);
	}
	kvx_worker_pump(t.worker);
	cr_assert_eq(script.n_open_ops, 15);
	tc.cmd.ep = t.ep;
	test_cmd_submit(&t, &tc, KVX_CMD_EP_CLOSE);
	kvx_worker_pump(t.worker);
	kvx_worker_drain(t.worker);
	cr_assert_eq(t.n_batches_done, 4);
	cr_assert_eq(t.n_batches_failed, 4);
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(batches[i].status, -ECANCELED);
	cr_assert(test_cmd_wait(&t, &tc));
	cr_assert_eq(tc.cmd.status, 0);
	t.ep = NULL;
	kvx_fake_advance(&script, 1000);
	cr_assert_eq(t.remote_mem.addr[0], test_byte(2, 0));
	close_fake(&t, &script);
	KVX_TEST_END();
}

Test(worker, fence_keeps_the_ep_and_refuses_later_batches)
{
	struct kvx_fake_script script = {.latency_ns = 100};
	static struct kvx_batch before, after;
	struct test_worker t;
	struct test_cmd tc = {0};

	open_fake(&t, &script);
	test_batch_fill(&t, &before, KVX_OP_WRITE, 0, 10, 100);
	submit(&t, &before);
	kvx_worker_pump(t.worker);
	tc.cmd.ep = t.ep;
	cr_assert_eq(test_cmd_run(&t, &tc, KVX_CMD_FENCE), 0);
	cr_assert(test_batches_wait(&t, 1));
	cr_assert_eq(before.status, -ECANCELED);
	test_batch_fill(&t, &after, KVX_OP_WRITE, 0, 10, 100);
	submit(&t, &after);
	cr_assert(test_batches_wait(&t, 2));
	cr_assert_eq(after.status, -ECANCELED);
	cr_assert_eq(test_cmd_run(&t, &tc, KVX_CMD_FENCE), 0);
	close_fake(&t, &script);
	KVX_TEST_END();
}

Test(worker, lost_ep_fails_its_batches_and_is_noted)
{
	struct kvx_fake_script script = {.latency_ns = 100, .queue_ops = 5, .ep_down_at_op = 4};
	static struct kvx_batch batches[3];
	struct test_worker t;

	open_fake(&t, &script);
	for (unsigned i = 0; i < 3; i++) {
		test_batch_fill(&t, &batches[i], KVX_OP_WRITE, 0, 3, 100);
		submit(&t, &batches[i]);
	}
	cr_assert(test_batches_wait(&t, 3));
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(batches[i].status, -EHOSTDOWN);
	cr_assert_eq(t.n_notes, 1);
	cr_assert_eq(t.note.kind, KVX_TEV_EP_DOWN);
	cr_assert_eq(t.note.ep, t.ep);
	test_batch_fill(&t, &batches[0], KVX_OP_WRITE, 0, 3, 100);
	submit(&t, &batches[0]);
	cr_assert(test_batches_wait(&t, 4));
	cr_assert_eq(batches[0].status, -EHOSTDOWN);
	cr_assert_eq(t.n_notes, 1);
	close_fake(&t, &script);
	KVX_TEST_END();
}

Test(worker, lost_device_is_noted_once_and_can_be_closed)
{
	struct kvx_fake_script script = {.latency_ns = 100, .device_lost_at_op = 2};
	static struct kvx_batch open, later;
	struct test_worker t;

	open_fake(&t, &script);
	test_batch_fill(&t, &open, KVX_OP_WRITE, 0, 10, 100);
	test_batch_fill(&t, &later, KVX_OP_WRITE, 0, 10, 100);
	submit(&t, &open);
	test_worker_turn(&t);
	test_worker_turn(&t);
	cr_assert_eq(t.n_notes, 1);
	cr_assert_eq(t.note.kind, KVX_TEV_DEVICE_LOST);
	cr_assert_eq(t.note.status, -ENODEV);
	submit(&t, &later);
	test_worker_turn(&t);
	cr_assert_eq(t.n_batches_done, 1);
	cr_assert_eq(later.status, -ENODEV);
	close_fake(&t, &script); /* closes the ep: the open batch comes back */
	cr_assert_eq(t.n_batches_done, 2);
	cr_assert_eq(open.status, -ENODEV);
	KVX_TEST_END();
}

/* More eps are lost at once than there are notes: none may be forgotten. */
Test(worker, no_note_is_lost)
{
	enum { N_EPS = 150 };
	struct kvx_fake_script script = {0};
	static struct kvx_ep *eps[N_EPS];
	struct test_worker t;
	struct test_cmd tc = {0};

	cr_assert_eq(test_worker_start(&t, &kvx_fake_ops, false, 4, &script), 0);
	for (unsigned i = 0; i < N_EPS; i++) {
		cr_assert_eq(test_cmd_run(&t, &tc, KVX_CMD_LISTEN), 0);
		eps[i] = tc.cmd.ep;
	}
	for (unsigned i = 0; i < N_EPS; i++)
		kvx_fake_ep_lose(eps[i], -EHOSTDOWN);
	for (unsigned i = 0; i < 10; i++)
		kvx_worker_pump(t.worker); /* nobody drains */
	kvx_fake_device_lose(&script, NULL);
	for (unsigned i = 0; i < 10; i++)
		kvx_worker_pump(t.worker);
	for (unsigned i = 0; i < 10; i++)
		test_worker_turn(&t);
	cr_assert_eq(t.n_notes, N_EPS + 1);
	for (unsigned i = 0; i < N_EPS; i++) {
		tc.cmd.ep = eps[i];
		cr_assert_eq(test_cmd_run(&t, &tc, KVX_CMD_EP_CLOSE), 0);
	}
	close_fake(&t, &script);
	KVX_TEST_END();
}

/* Of many news of one kind that nobody has taken the last one is kept. */
Test(worker, a_device_that_is_up_again_is_noted_until_it_is_lost)
{
	struct kvx_fake_script script = {0};
	struct test_worker t;

	open_fake(&t, &script);
	kvx_fake_device_up(&script, NULL);
	test_worker_turn(&t);
	cr_assert_eq(t.n_notes, 1);
	cr_assert_eq(t.note.kind, KVX_TEV_DEVICE_UP);
	for (unsigned i = 0; i < 200; i++) {
		kvx_fake_device_up(&script, NULL);
		kvx_worker_pump(t.worker); /* nobody drains */
	}
	for (unsigned i = 0; i < 10; i++)
		test_worker_turn(&t);
	cr_assert_eq(t.n_notes, 1 + 64 + 1);
	kvx_fake_device_lose(&script, NULL);
	test_worker_turn(&t);
	kvx_fake_device_up(&script, NULL);
	test_worker_turn(&t);
	cr_assert_eq(t.n_notes, 67);
	cr_assert_eq(t.note.kind, KVX_TEV_DEVICE_LOST);
	close_fake(&t, &script);
	KVX_TEST_END();
}

Test(worker, commands_for_an_unknown_ep_are_refused)
{
	static const enum kvx_work_kind kinds[] = {KVX_CMD_CONNECT, KVX_CMD_EP_CLOSE, KVX_CMD_FENCE,
						   KVX_CMD_LEASE, KVX_CMD_RKEY_UNPACK};
	struct kvx_fake_script script = {0};
	static struct kvx_batch batch;
	struct test_worker t;
	struct test_cmd tc = {0};

	open_fake(&t, &script);
	for (unsigned i = 0; i < 5; i++) {
		tc.cmd.ep = (struct kvx_ep *)(void *)&tc;
		cr_assert_eq(test_cmd_run(&t, &tc, kinds[i]), -ENOENT);
	}
	test_batch_fill(&t, &batch, KVX_OP_WRITE, 0, 1, 100);
	batch.ep = (struct kvx_ep *)(void *)&tc;
	submit(&t, &batch);
	cr_assert(test_batches_wait(&t, 1));
	cr_assert_eq(batch.status, -EHOSTDOWN);
	close_fake(&t, &script);
	KVX_TEST_END();
}

Test(worker, copy_worker_survives_memory_that_was_taken_away)
{
	struct kvx_mem torn = {.ops = &kvx_mem_host_ops, .fd = -1, .page_bytes = 4096};
	static struct kvx_batch bad, good;
	struct test_worker t;
	struct test_cmd tc = {0};
	int fd = test_memfd(REGION, 0);

	torn.len_bytes = REGION;
	torn.addr = mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert_eq(ftruncate(fd, 0), 0);
	cr_assert_eq(test_worker_start(&t, &kvx_copy_ops, false, 8, NULL), 0);
	cr_assert_eq(test_worker_setup(&t, REGION), 0);
	cr_assert_eq(test_worker_reg(&t, &torn, &tc), 0);
	free(tc.cmd.mkey);
	test_batch_fill(&t, &bad, KVX_OP_WRITE, 0, 20, 4096);
	for (unsigned i = 0; i < 20; i++)
		bad.ops[i].local = tc.cmd.mr;
	test_batch_fill(&t, &good, KVX_OP_WRITE, 100000, 20, 4096);
	submit(&t, &bad);
	submit(&t, &good);
	cr_assert(test_batches_wait(&t, 2));
	cr_assert_eq(bad.status, -EFAULT);
	cr_assert_not_null(bad.text);
	cr_assert_eq(good.status, 0);
	cr_assert_eq(memcmp(t.remote_mem.addr + 100000, t.local_mem.addr + 100000, 20 * 4096), 0);
	cr_assert_eq(test_cmd_run(&t, &tc, KVX_CMD_MEM_DEREG), 0);
	test_worker_teardown(&t);
	munmap(torn.addr, REGION);
	close(fd);
	KVX_TEST_END();
}
