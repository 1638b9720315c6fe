/* Workers with a thread: nothing lost between the rings, the doorbells and sleep. Short: the value
 * is in the sanitizer builds. */
#include <poll.h>
#include <time.h>

#include "test_end.h"
#include "test_worker.h"

#define REGION    (1u << 20)
#define N_BATCHES 32u

Test(worker_threads, open_failure_comes_back_to_the_caller)
{
	struct kvx_fake_script script = {0};
	struct test_worker t;

	script.faults[KVX_FAKE_OPEN] = (struct kvx_fake_fault){1, -ENODEV};
	cr_assert_eq(test_worker_start(&t, &kvx_fake_ops, true, 8, &script), -ENODEV);
	cr_assert_eq(test_worker_start(&t, &kvx_fake_ops, true, 8, &script), 0);
	kvx_worker_close(t.worker);
	cr_assert_eq(script.n_doms, 0);
	KVX_TEST_END();
}

/* Keeps up to N_BATCHES in flight until n have come back; each moves its own stripe. */
static void stream(struct test_worker *t, unsigned n, uint64_t *rng)
{
	static struct kvx_batch batches[N_BATCHES];
	unsigned n_sent = 0, start = t->n_batches_done;
	uint64_t end = kvx_now_ns() + 60 * KVX_SEC;

	for (unsigned i = 0; i < N_BATCHES; i++)
		batches[i].bytes = 0; /* all are here */
	while (t->n_batches_done - start < n && kvx_now_ns() < end) {
		for (unsigned i = 0; i < N_BATCHES && n_sent < n; i++) {
			uint64_t len = 1 + test_random(rng, 250);

			if (!test_batch_is_back(&batches[i]))
				continue;
			test_batch_fill(t, &batches[i], KVX_OP_WRITE, i * 32768,
					1 + (unsigned)test_random(rng, 128), len);
			cr_assert_eq(kvx_worker_submit_batch(t->worker, &batches[i]), 0);
			n_sent++;
			if (test_random(rng, 16) == 0)
				poll(NULL, 0, 1); /* lets the worker fall asleep */
		}
		test_worker_turn(t);
	}
	cr_assert_eq(t->n_batches_done - start, n);
}

Test(worker_threads, copies_a_stream_of_batches, .timeout = 120)
{
	struct test_worker t;
	uint64_t rng = 9;

	cr_assert_eq(test_worker_start(&t, &kvx_copy_ops, true, 64, NULL), 0);
	cr_assert_eq(test_worker_setup(&t, REGION), 0);
	stream(&t, 2000, &rng);
	cr_assert_eq(t.n_batches_failed, 0);
	cr_assert_eq(kvx_counter_get(&kvx_worker_stats(t.worker)->batches), 2000);
	cr_assert_gt(kvx_counter_get(&kvx_worker_stats(t.worker)->sleeps), 0);
	/* Where something was copied it is the source's byte, elsewhere the target's own. */
	unsigned n_copied = 0;
	for (unsigned i = 0; i < REGION; i++) {
		bool copied = t.remote_mem.addr[i] == test_byte(1, i);

		cr_assert(copied || t.remote_mem.addr[i] == test_byte(2, i), "byte %u", i);
		n_copied += copied;
	}
	cr_assert_gt(n_copied, REGION / 4);
	test_worker_teardown(&t);
	KVX_TEST_END();
}

Test(worker_threads, fake_with_delays_and_commands_between, .timeout = 120)
{
	struct kvx_fake_script script = {.latency_ns = 1000,
					 .jitter_ns = 5000,
					 .reorder = true,
					 .auto_advance = true,
					 .post_max = 40};
	struct test_worker t;
	struct test_cmd tc = {0};
	uint64_t rng = 10;

	cr_assert_eq(test_worker_start(&t, &kvx_fake_ops, true, 64, &script), 0);
	cr_assert_eq(test_worker_setup(&t, REGION), 0);
	for (unsigned i = 0; i < 30; i++) {
		stream(&t, 20, &rng);
		cr_assert_eq(test_worker_reg(&t, &t.local_mem, &tc), 0);
		free(tc.cmd.mkey);
		cr_assert_eq(test_cmd_run(&t, &tc, KVX_CMD_MEM_DEREG), 0);
	}
	cr_assert_eq(t.n_batches_failed, 0);
	test_worker_teardown(&t);
	cr_assert_eq(script.n_doms + script.n_eps + script.n_mrs + script.n_open_ops, 0);
	KVX_TEST_END();
}

/* Each submit meets a worker that is just falling asleep, at a different moment every time. */
Test(worker_threads, no_wake_up_is_lost, .timeout = 120)
{
	static struct kvx_batch batch;
	struct test_worker t;
	uint64_t rng = 4;

	cr_assert_eq(test_worker_start(&t, &kvx_copy_ops, true, 4, NULL), 0);
	cr_assert_eq(test_worker_setup(&t, REGION), 0);
	for (unsigned i = 0; i < 2000; i++) {
		struct timespec pause = {.tv_nsec = (long)test_random(&rng, 60000)};
		uint64_t until = kvx_now_ns() + 10000 + test_random(&rng, 30000);

		if (i % 2)
			nanosleep(&pause, NULL);
		while (i % 2 == 0 && kvx_now_ns() < until)
			;
		test_batch_fill(&t, &batch, KVX_OP_READ, 0, 1, 64);
		cr_assert_eq(kvx_worker_submit_batch(t.worker, &batch), 0);
		cr_assert(test_batches_wait(&t, i + 1), "batch %u does not come back", i);
	}
	cr_assert_gt(kvx_counter_get(&kvx_worker_stats(t.worker)->sleeps), 10, "%lu sleeps",
		     kvx_counter_get(&kvx_worker_stats(t.worker)->sleeps));
	test_worker_teardown(&t);
	KVX_TEST_END();
}

/* The loop that waits for the doorbell, and only drains when it rang, gets everything. */
Test(worker_threads, doorbell_rings_for_all_but_not_for_each, .timeout = 120)
{
	static struct kvx_batch batches[N_BATCHES];
	struct test_worker t;
	unsigned n_done = 0;

	cr_assert_eq(test_worker_start(&t, &kvx_copy_ops, true, 64, NULL), 0);
	cr_assert_eq(test_worker_setup(&t, REGION), 0);
	unsigned seen = t.n_rings, n_drains = 0;
	kvx_worker_drain(t.worker); /* answers a ring that came after the last command */
	for (unsigned round = 0; round < 20; round++) {
		uint64_t end = kvx_now_ns() + 10 * KVX_SEC;

		for (unsigned i = 0; i < N_BATCHES; i++) {
			test_batch_fill(&t, &batches[i], KVX_OP_WRITE, i * 4096, 64, 64);
			cr_assert_eq(kvx_worker_submit_batch(t.worker, &batches[i]), 0);
		}
		n_done += N_BATCHES; /* all come back meanwhile: one ring is enough */
		while (kvx_counter_get(&kvx_worker_stats(t.worker)->batches) < n_done &&
		       kvx_now_ns() < end)
			poll(NULL, 0, 1);
		while (t.n_batches_done < n_done && kvx_now_ns() < end) {
			unsigned rings = t.n_rings;

			if (rings == seen) {
				sched_yield();
				continue;
			}
			seen = rings;
			n_drains++;
			kvx_worker_drain(t.worker);
		}
		cr_assert_eq(t.n_batches_done, n_done, "round %u", round);
	}
	cr_assert_lt(n_drains, 20 * N_BATCHES / 2);
	test_worker_teardown(&t);
	KVX_TEST_END();
}

Test(worker_threads, ep_close_in_the_middle_of_a_stream, .timeout = 120)
{
	static struct kvx_batch batches[N_BATCHES];

	for (unsigned round = 0; round < 30; round++) {
		struct test_worker t;
		struct test_cmd tc = {0};

		cr_assert_eq(test_worker_start(&t, &kvx_copy_ops, true, 64, NULL), 0);
		cr_assert_eq(test_worker_setup(&t, REGION), 0);
		for (unsigned i = 0; i < N_BATCHES; i++) {
			test_batch_fill(&t, &batches[i], KVX_OP_WRITE, i * 16384, 128, 128);
			cr_assert_eq(kvx_worker_submit_batch(t.worker, &batches[i]), 0);
		}
		tc.cmd.ep = t.ep;
		cr_assert_eq(test_cmd_run(&t, &tc, KVX_CMD_EP_CLOSE), 0);
		cr_assert_eq(t.n_batches_done, N_BATCHES); /* all before the command */
		for (unsigned i = 0; i < N_BATCHES; i++)
			cr_assert(batches[i].status == 0 || batches[i].status == -ECANCELED);
		t.ep = NULL;
		test_worker_teardown(&t);
	}
	KVX_TEST_END();
}
