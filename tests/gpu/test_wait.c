/* Transfers that wait for the engine's GPU, by a real daemon: the bytes that a "kernel" writes
 * before its event are the bytes that arrive. The kernels are copies on streams of the stand-in
 * runtime, which can be slow or stand still. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "wait_rig.h"

Test(wait, bytes_before_the_event_arrive)
{
	struct kvxfer_blocks blocks = wait_planes(0, PLANES);
	struct kvxfer_wait wait;

	if (!wait_begin_any(0))
		return;
	void *event = wait_event_make(&wait);
	standin_set_delay(100, 400, 1); /* of each op: the kernel takes some 30 ms */
	for (uint64_t seed = 1; seed <= 5; seed++) {
		for (uint32_t p = 0; p < PLANES; p++) {
			wait_stage(seed, p);
			wait_launch(p);
		}
		/* The same one again and again. */
		cr_assert_eq(test_gpu_record(event, rig.stream), 0);
		wait_expect_end(wait_submit(&blocks, &wait, 0), KVXFER_OK);
		wait_expect_arrived(seed, 0, PLANES);
	}
	test_gpu_event_end(event);
	wait_end();
}

Test(wait, layers_are_appended_with_an_event_each)
{
	struct kvxfer_wait waits[PLANES];
	void *events[PLANES];

	if (!wait_begin_any(0))
		return;
	for (uint32_t p = 0; p < PLANES; p++)
		events[p] = wait_event_make(&waits[p]);
	standin_set_delay(50, 300, 2);
	for (uint64_t seed = 1; seed <= 4; seed++) {
		uint64_t id = wait_submit(NULL, NULL, 0);

		for (uint32_t p = 0; p < PLANES; p++) {
			struct kvxfer_blocks blocks = wait_planes(p, 1);

			wait_stage(seed, p);
			wait_launch(p);
			cr_assert_eq(test_gpu_record(events[p], rig.stream), 0);
			cr_assert_eq(kvxfer_transfer_append_after(rig.prefill.e.client, id, &blocks,
								  NULL, &waits[p]),
				     0);
		}
		cr_assert_eq(kvxfer_transfer_seal(rig.prefill.e.client, id, NULL, 0), 0);
		wait_expect_end(id, KVXFER_OK);
		wait_expect_arrived(seed, 0, PLANES);
	}
	for (uint32_t p = 0; p < PLANES; p++)
		test_gpu_event_end(events[p]);
	wait_end();
}

/* One event for all layers: recorded again on its stream while earlier lists wait for it, it stands
 * for the later record, which is later, but never too early. */
Test(wait, event_that_is_recorded_again_is_never_too_early)
{
	struct kvxfer_wait wait;

	if (!wait_begin_any(0))
		return;
	void *event = wait_event_make(&wait);
	standin_set_delay(50, 300, 3);
	uint64_t id = wait_submit(NULL, NULL, 0);
	for (uint32_t p = 0; p < PLANES; p++) {
		struct kvxfer_blocks blocks = wait_planes(p, 1);

		wait_stage(9, p);
		wait_launch(p);
		cr_assert_eq(test_gpu_record(event, rig.stream), 0);
		cr_assert_eq(
		    kvxfer_transfer_append_after(rig.prefill.e.client, id, &blocks, NULL, &wait),
		    0);
	}
	cr_assert_eq(kvxfer_transfer_seal(rig.prefill.e.client, id, NULL, 0), 0);
	wait_expect_end(id, KVXFER_OK);
	wait_expect_arrived(9, 0, PLANES);
	test_gpu_event_end(event);
	wait_end();
}

/* The local side is host memory: the wait names a region of the device. */
Test(wait, event_of_the_device_of_another_region)
{
	struct gpu_engine_conf conf = {
	    .name = "x", .dev = 0, .n_planes = 1, .n_blocks = 1, .block_bytes = 4096};
	struct kvxfer_blocks blocks = wait_planes(0, 1);
	struct gpu_engine other;
	struct kvxfer_wait wait;

	if (!wait_begin(NULL, -1, 1))
		return;
	gpu_engine_alloc(&other, &conf);
	other.e.client = rig.prefill.e.client;
	cr_assert_eq(gpu_engine_register(&other, &conf), 0);
	test_fill(&rig.prefill.e, 4);
	void *event = wait_event_held(&wait);
	struct test_event ev = wait_expect_end(wait_submit(&blocks, &wait, 0), KVXFER_INVALID);
	cr_assert_not_null(strstr(ev.text, "host memory"), "%s", ev.text);
	wait.region = other.e.region;
	uint64_t id = wait_submit(&blocks, &wait, 0);
	wait_until_waiting(1);
	standin_stall(0, false);
	wait_expect_end(id, KVXFER_OK);
	wait_expect_arrived(4, 0, 1);
	cr_assert_eq(kvxfer_region_unregister(other.e.region), 0);
	test_gpu_free(other.allocations[0]);
	free(other.e.data);
	test_gpu_event_end(event);
	wait_end();
}

static void check_ctl(void)
{
	char out[8192];
	const char *argv[] = {getenv("KVXFERCTL"), "--socket", rig.node.socket, "transfers", NULL};

	cr_assert_eq(test_run(argv, out, sizeof(out)), 0, "%s", out);
	cr_assert_not_null(strstr(out, "waits for event, and 1 more"), "%s", out);
}

Test(wait, what_it_waits_for_is_shown)
{
	struct kvxfer_blocks blocks = wait_planes(0, 1);
	struct kvxfer_wait wait;

	if (!wait_begin(NULL, 0, 1))
		return;
	void *event = wait_event_held(&wait);
	uint64_t id = wait_submit(NULL, NULL, 0);
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(
		    kvxfer_transfer_append_after(rig.prefill.e.client, id, &blocks, NULL, &wait),
		    0);
	wait_until_waiting(2);
	check_ctl();
	standin_stall(0, false);
	cr_assert_eq(kvxfer_transfer_seal(rig.prefill.e.client, id, NULL, 0), 0);
	wait_expect_end(id, KVXFER_OK);
	test_gpu_event_end(event);
	wait_end();
}

/* A program that was built before the struct had its last fields. */
Test(wait, event_is_told_to_a_shorter_struct)
{
	struct kvxfer_wait wait = {.struct_bytes = offsetof(struct kvxfer_wait, region),
				   .value = 0x5a5a};

	if (!wait_begin_any(0))
		return;
	void *event = test_gpu_event(true);
	cr_assert_eq(kvxfer_wait_for_event(rig.prefill.e.client, event, &wait), 0, "%s",
		     kvxfer_client_error(rig.prefill.e.client));
	cr_assert_eq(wait.struct_bytes, offsetof(struct kvxfer_wait, region));
	cr_assert_eq(wait.kind, KVXFER_WAIT_EVENT);
	cr_assert_eq(wait.value, 0x5a5a, "written behind its end");
	cr_assert_null(wait.region);
	test_gpu_event_end(event);
	wait_end();
}

Test(wait, two_thousand_transfers_of_one_event)
{
	enum { N = 2000 };
	static uint64_t id[N];
	struct kvxfer_blocks blocks = wait_planes(0, 1);
	struct kvxfer_wait wait;

	if (!wait_begin(NULL, 0, 1))
		return;
	void *event = wait_kernel_held(6, &wait);
	for (unsigned i = 0; i < N; i++)
		id[i] = wait_submit(&blocks, &wait, 0);
	cr_assert_eq(test_node_wait_number(&rig.node, "status", "transfers", N, RIG_WAIT_MS), N);
	standin_stall(0, false);
	for (unsigned i = 0; i < N; i++)
		wait_expect_end(id[i], KVXFER_OK);
	wait_expect_arrived(6, 0, 1);
	test_gpu_event_end(event);
	wait_end();
}

/* ---- flags */

static _Atomic(uint64_t *) flag_at;

static void *raise_flag(void *arg)
{
	rig_sleep_ms(30);
	test_fill(&rig.prefill.e, 8);
	atomic_store_explicit((_Atomic uint64_t *)(void *)atomic_load(&flag_at), 41,
			      memory_order_release);
	rig_sleep_ms(30);
	atomic_store_explicit((_Atomic uint64_t *)(void *)atomic_load(&flag_at), 42,
			      memory_order_release);
	return NULL;
}

Test(wait, flag_in_host_memory)
{
	struct kvxfer_blocks blocks = wait_planes(0, PLANES);
	struct kvxfer_region *flags;
	pthread_t thread;

	if (!wait_begin_any(-1))
		return;
	cr_assert_eq(kvxfer_region_alloc(rig.prefill.e.client, 4096, NULL, &flags), 0);
	struct kvxfer_wait wait = {.struct_bytes = sizeof(wait),
				   .kind = KVXFER_WAIT_FLAG,
				   .region = flags,
				   .offset = 72,
				   .value = 42};
	atomic_store(&flag_at, (uint64_t *)(void *)((char *)kvxfer_region_data(flags) + 72));
	cr_assert_eq(pthread_create(&thread, NULL, raise_flag, NULL), 0);
	wait_expect_end(wait_submit(&blocks, &wait, 0), KVXFER_OK);
	cr_assert_eq(*(uint64_t *)atomic_load(&flag_at), 42, "it did not wait for the value");
	pthread_join(thread, NULL);
	wait_expect_arrived(8, 0, PLANES);
	wait.value = 43;
	uint64_t id = wait_submit(&blocks, &wait, 0);
	wait_until_waiting(1);
	cr_assert_eq(kvxfer_region_unregister(flags), 0);
	wait_expect_end(id, KVXFER_REGION_LOST);
	wait_end();
}

/* ---- how long it takes from the event to the first copy */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t first_ns, last_end;

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *ev, void *arg)
{
	(void)client;
	(void)arg;
	if (ev->type != KVXFER_EVENT_TERMINAL)
		return;
	cr_assert_eq(ev->status, KVXFER_OK, "%s", ev->text);
	first_ns = ev->first_ns;
	last_end = ev->transfer;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

Test(wait, time_from_the_event_to_the_first_copy)
{
	enum { N = 200 };
	static uint64_t took[N];
	struct kvxfer_blocks blocks = wait_planes(0, 1);
	struct kvxfer_wait wait;

	if (!wait_begin(NULL, 0, 1))
		return;
	void *event = wait_event_make(&wait);
	for (unsigned i = 0; i < N; i++) {
		standin_stall(0, true);
		cr_assert_eq(test_gpu_record(event, rig.stream), 0);
		uint64_t id = wait_submit(&blocks, &wait, 0);
		rig_sleep_ms(1 + i % 3);
		standin_stall(0, false);
		while (test_gpu_event_query(event) == TEST_GPU_NOT_READY)
			;
		uint64_t reached = now_ns();
		while (last_end != id)
			cr_assert_geq(
			    kvxfer_client_wait(rig.prefill.e.client, RIG_WAIT_MS, on_event, NULL),
			    0);
		took[i] = first_ns > reached ? first_ns - reached : 0;
	}
	qsort(took, N, sizeof(took[0]), by_value);
	fprintf(stderr,
		"# stand-in runtime: event reached -> first copy posted: p50 %.0f us, p90 %.0f us, "
		"max %.0f us\n",
		(double)took[N / 2] / 1e3, (double)took[N * 9 / 10] / 1e3,
		(double)took[N - 1] / 1e3);
	cr_assert_lt(took[N / 2], 20000000u);
	test_gpu_event_end(event);
	wait_end();
}
