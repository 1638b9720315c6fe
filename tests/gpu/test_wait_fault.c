/* Transfers that wait for the engine's GPU when what they wait for does not come: they are
 * cancelled or late, the device hangs or is lost, the engine goes, the runtime refuses. Nothing
 * lands, and what does not wait for it goes on. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wait_rig.h"

Test(wait, cancel_deadline_and_close_while_it_waits)
{
	struct kvxfer_blocks blocks = wait_planes(0, PLANES);
	struct gpu_engine_conf conf = {
	    .name = "stays", .n_planes = 1, .n_blocks = 1, .block_bytes = 4096};
	struct gpu_engine stays; /* so that the daemon keeps what it has on the device */
	struct kvxfer_wait wait;
	struct rig_base base;

	if (!wait_begin(NULL, 0, 1))
		return;
	gpu_engine_open(&stays, &rig.node, &conf);
	rig_measure(&rig.node, &base);
	void *event = wait_event_held(&wait);
	uint64_t cancelled = wait_submit(&blocks, &wait, 0),
		 late = wait_submit(&blocks, &wait, 300);
	cr_assert_eq(kvxfer_transfer_cancel(rig.prefill.e.client, cancelled), 0);
	wait_expect_end(cancelled, KVXFER_CANCELLED);
	struct test_event ev = wait_expect_end(late, KVXFER_DEADLINE);
	cr_assert_not_null(strstr(ev.text, "event"), "%s", ev.text);
	standin_stall(0, false);
	cr_assert_eq(test_gpu_stream_sync(rig.stream), 0);
	wait_expect_untouched();
	/* It works on as if nothing had been. */
	wait_stage(3, 0);
	wait_launch(0);
	cr_assert_eq(test_gpu_record(event, rig.stream), 0);
	wait_expect_end(wait_submit(&blocks, &wait, 0), KVXFER_OK);
	wait_expect_arrived(3, 0, 1);
	standin_stall(0, true);
	cr_assert_eq(test_gpu_record(event, rig.stream), 0);
	wait_submit(&blocks, &wait, 0);
	wait_until_waiting(1);
	kvxfer_client_close(rig.prefill.e.client); /* while it waits */
	rig.prefill.e.client = NULL;
	standin_stall(0, false);
	cr_assert_eq(
	    test_node_wait_number(&rig.node, "status", "clients", base.clients - 1, RIG_WAIT_MS),
	    base.clients - 1);
	cr_assert_eq(test_node_wait_number(&rig.node, "status", "transfers", 0, RIG_WAIT_MS), 0);
	test_gpu_event_end(event);
	struct standin_process daemon;
	for (long end_ms = rig_now_ms() + RIG_WAIT_MS;; rig_sleep_ms(10)) {
		standin_process(rig.node.pid, &daemon);
		if (daemon.n_events == base.daemon.n_events)
			break;
		cr_assert_lt(rig_now_ms(), end_ms, "%d events are open, %d before", daemon.n_events,
			     base.daemon.n_events);
	}
	gpu_engine_close(&stays);
	wait_end();
}

/* The event cannot be opened, because the device hangs: the transfer whose call it is fails, others
 * wait until their deadline, those of the other device go on, and when it comes back, so do its
 * own.
 */
Test(wait, device_that_hangs_holds_up_nobody_else)
{
	static const char *const sets[] = {"gpu.call_timeout_ms=1500ms", NULL};
	struct kvxfer_blocks blocks = wait_planes(0, 1);
	struct kvxfer_wait wait, wait1;

	if (!wait_begin(sets, 0, 1))
		return;
	void *event = wait_event_make(&wait);
	cr_assert_eq(test_gpu_record(event, rig.stream), 0);
	/* An engine on the other device, of the same process. */
	struct gpu_engine_conf conf = {.name = "second",
				       .dev = 1,
				       .n_planes = PLANES,
				       .n_blocks = BLOCKS,
				       .block_bytes = BLOCK};
	struct gpu_engine second;
	gpu_engine_open(&second, &rig.node, &conf);
	test_gpu_use(1);
	void *stream1 = test_gpu_stream(1), *event1 = test_gpu_event(true);
	wait1 = (struct kvxfer_wait){.struct_bytes = sizeof(wait1)};
	cr_assert_eq(kvxfer_wait_for_event(second.e.client, event1, &wait1), 0);
	cr_assert_eq(test_gpu_record(event1, stream1), 0);
	struct kvxfer_import *import1 = test_engine_import(&second.e, &rig.decode.e);

	standin_block_on(STANDIN_IPC_EVENT_OPEN, rig.node.pid, 0, true);
	uint64_t own = wait_submit(&blocks, &wait, 0),
		 by_deadline = wait_submit(&blocks, &wait, 400);
	for (unsigned i = 0; i < 20; i++) {
		struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
					    .op = KVXFER_WRITE,
					    .region = second.e.region,
					    .import_ = import1,
					    .blocks = &blocks,
					    .wait = &wait1};
		uint64_t id;

		cr_assert_eq(kvxfer_transfer_submit(second.e.client, &t, &id), 0);
		struct test_event ev = test_wait(&second.e, KVXFER_EVENT_TERMINAL, id, 3000);
		cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	}
	wait_expect_end(by_deadline, KVXFER_DEADLINE);
	struct test_event ev = wait_expect_end(own, KVXFER_TRANSPORT);
	cr_assert_not_null(strstr(ev.text, "hangs"), "%s", ev.text);
	/* The call still hangs, but it is not theirs. */
	wait_expect_end(wait_submit(&blocks, &wait, 400), KVXFER_DEADLINE);
	uint64_t later = wait_submit(&blocks, &wait, 0);
	rig_sleep_ms(300);
	standin_block_on(STANDIN_IPC_EVENT_OPEN, rig.node.pid, 0, false);
	wait_expect_end(later, KVXFER_OK);
	test_gpu_event_end(event);
	test_gpu_event_end(event1);
	test_gpu_stream_end(stream1);
	gpu_engine_close(&second);
	wait_end();
}

Test(wait, device_that_is_lost_while_it_is_waited_for)
{
	struct kvxfer_blocks blocks = wait_planes(0, 1);
	struct kvxfer_wait wait;

	if (!wait_begin(NULL, 0, 1))
		return;
	wait_event_held(&wait);
	uint64_t id = wait_submit(&blocks, &wait, 0);
	wait_until_waiting(1);
	standin_lose(0, STANDIN_LAUNCH_FAILURE);
	standin_stall(0, false);
	wait_expect_end(id, KVXFER_DEVICE_LOST);
	test_wait(&rig.prefill.e, KVXFER_EVENT_REGION_LOST, 0, RIG_WAIT_MS);
	wait_expect_untouched();
	/* What the engine had on the device went with it. */
	kvxfer_client_close(rig.prefill.e.client);
	free(rig.prefill.e.data);
	gpu_engine_close(&rig.decode);
	rig_expect_good_manners(&rig.node);
	test_node_fini(&rig.node);
	rig_end();
}

Test(wait, engine_that_is_killed_while_it_waits)
{
	const struct rig_victim_conf conf = {
	    .dev = 0, .n_planes = PLANES, .n_blocks = BLOCKS, .block_bytes = BLOCK, .fill = 0x77};
	char hex[RIG_MAX_DESC], line[RIG_LINE];
	struct rig_victim victim;
	struct rig_base base;

	if (!wait_begin(NULL, 0, 1))
		return;
	rig_measure(&rig.node, &base);
	rig_victim_start(&victim, &rig.node, &conf);
	standin_stall(0, true);
	rig_hex(rig.decode.e.region, hex);
	snprintf(line, sizeof(line), "later %s", hex);
	cr_assert_str_eq(rig_victim_ask(&victim, line), "on ");
	wait_until_waiting(1);
	rig_victim_end(&victim, SIGKILL);
	struct test_event ev = test_wait(&rig.decode.e, KVXFER_EVENT_ARRIVAL, 0, RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_CLIENT_LOST, "%s", ev.text);
	standin_stall(0, false);
	rig_expect_base(&rig.node, &base);
	wait_expect_untouched();
	wait_end();
}

Test(wait, events_that_cannot_be_waited_for)
{
	struct kvxfer_blocks blocks = wait_planes(0, 1);
	struct kvxfer_wait wait = {.struct_bytes = sizeof(wait), .kind = KVXFER_WAIT_EVENT};

	if (!wait_begin(NULL, 0, 1))
		return;
	void *own = test_gpu_event(false);
	cr_assert_eq(kvxfer_wait_for_event(rig.prefill.e.client, own, &wait), -EINVAL);
	cr_assert_not_null(strstr(kvxfer_client_error(rig.prefill.e.client), "interprocess"), "%s",
			   kvxfer_client_error(rig.prefill.e.client));
	test_gpu_event_end(own);
	memset(wait.event, 0x5a, sizeof(wait.event));
	struct test_event ev = wait_expect_end(wait_submit(&blocks, &wait, 0), KVXFER_INVALID);
	cr_assert_not_null(strstr(ev.text, "does not know the event"), "%s", ev.text);
	wait_expect_untouched();
	wait_end();
}

/* What the runtime says of an event decides: an error is never taken for "reached". */
Test(wait, calls_that_fail_fail_the_transfer_and_nothing_else)
{
	struct kvxfer_blocks blocks = wait_planes(0, 1);
	struct kvxfer_wait wait;

	if (!wait_begin(NULL, 0, 1))
		return;
	void *event = wait_kernel_held(2, &wait);
	standin_fail(STANDIN_IPC_EVENT_OPEN, rig.node.pid, 1, STANDIN_UNKNOWN);
	wait_expect_end(wait_submit(&blocks, &wait, 0), KVXFER_INVALID);
	cr_assert(standin_fired(STANDIN_IPC_EVENT_OPEN));
	uint64_t id = wait_submit(&blocks, &wait, 0);
	wait_until_waiting(1);
	standin_fail(STANDIN_EVENT_QUERY, rig.node.pid, 1, STANDIN_UNKNOWN);
	struct test_event ev = wait_expect_end(id, KVXFER_TRANSPORT);
	cr_assert_not_null(strstr(ev.text, "could not say"), "%s", ev.text);
	wait_expect_untouched();
	id = wait_submit(&blocks, &wait, 0);
	wait_until_waiting(1);
	standin_stall(0, false);
	wait_expect_end(id, KVXFER_OK);
	wait_expect_arrived(2, 0, 1);
	test_gpu_event_end(event);
	wait_end();
}

Test(wait, too_many_that_wait_are_refused)
{
	static const char *const sets[] = {"limits.waits_per_client=3", NULL};
	struct kvxfer_blocks blocks = wait_planes(0, 1);
	struct kvxfer_wait wait;
	uint64_t id[4];

	if (!wait_begin(sets, 0, 1))
		return;
	void *event = wait_event_held(&wait);
	for (unsigned i = 0; i < 4; i++)
		id[i] = wait_submit(&blocks, &wait, 0);
	struct test_event ev = wait_expect_end(id[3], KVXFER_QUOTA);
	cr_assert_not_null(strstr(ev.text, "waits_per_client"), "%s", ev.text);
	standin_stall(0, false);
	for (unsigned i = 0; i < 3; i++)
		wait_expect_end(id[i], KVXFER_OK);
	wait_expect_end(wait_submit(&blocks, &wait, 0), KVXFER_OK);
	test_gpu_event_end(event);
	wait_end();
}
