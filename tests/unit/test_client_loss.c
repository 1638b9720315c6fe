/* The loss of the daemon, and the client's own end: no transfer is declared over before the
 * daemon's DMA is, and each ends once. */
#include "client_fixture.h"

#include <errno.h>
#include <stdatomic.h>
#include <unistd.h>

#include "test_end.h"

/* Hangs up at the n-th submit; answers none. */
static enum fake_answer die_at_submit(struct fake_daemon *d, uint16_t type)
{
	_Atomic int *left = d->arg;

	if (type != KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT)
		return FAKE_DEFAULT;
	return --*left == 0 ? FAKE_HANG_UP : FAKE_DONE;
}

/* The end of the stream alone ends nothing: a dying daemon's DMA may go on until its pidfd says
 * that it is gone. */
Test(client_loss, transfers_end_only_when_the_process_is_gone)
{
	_Atomic int left = 3;
	struct fake_process process;
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};

	fake_process_start(&process);
	fake_daemon_init(&d);
	d.pidfd = process.pidfd;
	d.hook = die_at_submit;
	d.arg = &left;
	fake_daemon_start(&d);
	pair = open_pair(&d, 500);
	for (uint64_t i = 0; i < 3; i++)
		cr_assert_eq(submit_one(&pair, 100 + i, NULL), 0);
	cr_assert_eq(kvxfer_client_wait(pair.client, 300, seen_event, &seen), 0);
	cr_assert_eq(submit_one(&pair, 9, NULL), -ECONNRESET);
	cr_assert_eq(kvxfer_region_unregister(pair.region), -ETIMEDOUT);
	cr_assert_eq(kvxfer_client_reconnect(pair.client), -ETIMEDOUT);
	cr_assert_not(is_readable(kvxfer_client_fd(pair.client), 0));
	fake_process_kill(&process);
	cr_assert(is_readable(kvxfer_client_fd(pair.client), 2000));
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 4);
	assert_loss(&seen, 3, KVXFER_DAEMON_LOST);
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), -ECONNRESET);
	cr_assert_eq(kvxfer_client_wait(pair.client, 1000, seen_event, &seen), -ECONNRESET);
	cr_assert_not(is_readable(kvxfer_client_fd(pair.client), 0));
	stop_pair(&d, &pair);
	fake_process_fini(&process);
	KVX_TEST_END();
}

static enum fake_answer error_at_submit(struct fake_daemon *d, uint16_t type)
{
	if (type != KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT)
		return FAKE_DEFAULT;
	fake_error(d, KVXFER_PROTOCOL, "that was not a frame");
	return FAKE_HANG_UP;
}

/* The daemon fences before it sends FRAME_ERROR. */
Test(client_loss, announced_end_is_believed_at_once)
{
	struct fake_process process;
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};

	fake_process_start(&process);
	fake_daemon_init(&d);
	d.pidfd = process.pidfd;
	d.hook = error_at_submit;
	fake_daemon_start(&d);
	pair = open_pair(&d, 1000);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	wait_events(pair.client, &seen, 2);
	assert_loss(&seen, 1, KVXFER_PROTOCOL);
	cr_assert_str_eq(seen.events[1].text, "that was not a frame");
	cr_assert_eq(kvxfer_region_unregister(pair.region), -ECONNRESET);
	cr_assert_eq(kvxfer_import_close(pair.import_), -ECONNRESET);
	stop_pair(&d, &pair);
	fake_process_fini(&process);
	KVX_TEST_END();
}

/* A kernel without pidfds: after a time in which a killed process is long gone. */
Test(client_loss, without_pidfd_a_grace_period_passes)
{
	_Atomic int left = 1;
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};

	pair = start_pair(&d, die_at_submit, &left, 1000);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	cr_assert_eq(kvxfer_client_wait(pair.client, 1000, seen_event, &seen), 0);
	cr_assert(is_readable(kvxfer_client_fd(pair.client), 3000));
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 2);
	assert_loss(&seen, 1, KVXFER_DAEMON_LOST);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

static enum fake_answer error_at_query(struct fake_daemon *d, uint16_t type)
{
	if (type != KVXP__FRAME_TYPE__FRAME_QUERY)
		return type == KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT ? FAKE_DONE : FAKE_DEFAULT;
	fake_error(d, KVXFER_DRAINING, "the daemon stops");
	return FAKE_HANG_UP;
}

/* A set-up call that finds the daemon gone does not swallow the events of the loss. */
Test(client_loss, loss_inside_a_set_up_call_is_polled)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	char *json;

	pair = start_pair(&d, error_at_query, NULL, 1000);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	cr_assert_eq(kvxfer_client_query(pair.client, "status", NULL, &json), -ECONNRESET);
	cr_assert_not_null(strstr(kvxfer_client_error(pair.client), "the daemon stops"));
	cr_assert_eq(kvxfer_client_reconnect(pair.client), -EBUSY);
	cr_assert(is_readable(kvxfer_client_fd(pair.client), 0));
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 2);
	assert_loss(&seen, 1, KVXFER_DRAINING);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

/* Two of three transfers end, then the daemon does: all inside a set-up call. */
static enum fake_answer two_ends_and_an_error_at_query(struct fake_daemon *d, uint16_t type)
{
	if (type == KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT)
		return FAKE_DONE;
	if (type != KVXP__FRAME_TYPE__FRAME_QUERY)
		return FAKE_DEFAULT;
	fake_terminal(d, 1, KVXFER_OK);
	fake_terminal(d, 2, KVXFER_OK);
	fake_error(d, KVXFER_INTERNAL, "restarting");
	return FAKE_HANG_UP;
}

Test(client_loss, events_that_were_kept_are_told_before_the_loss_and_only_once)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	char *json;

	pair = start_pair(&d, two_ends_and_an_error_at_query, NULL, 1000);
	for (uint64_t tag = 101; tag <= 103; tag++)
		cr_assert_eq(submit_one(&pair, tag, NULL), 0);
	cr_assert_eq(kvxfer_client_query(pair.client, "status", NULL, &json), -ECONNRESET);
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 4);
	for (unsigned i = 0; i < 3; i++) {
		cr_assert_eq(seen.events[i].type, KVXFER_EVENT_TERMINAL);
		cr_assert_eq(seen.events[i].transfer, i + 1);
		cr_assert_eq(seen.events[i].status, i < 2 ? KVXFER_OK : KVXFER_DAEMON_LOST);
	}
	cr_assert_eq(seen.events[3].type, KVXFER_EVENT_DAEMON_LOST);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

/* What comes after a bad frame cannot be told; the library gives up, and believes the end only
 * after its GOODBYE was answered and the daemon had time to die. */
static enum fake_answer garbage_at_submit(struct fake_daemon *d, uint16_t type)
{
	static const uint8_t event[] = {2, 0, 0, 0, 102, 0, 0, 0, 0x08, 0x80}; /* half a number */

	if (type == KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT) {
		fake_send_bytes(d, event, sizeof(event));
		return FAKE_DONE;
	}
	return FAKE_DEFAULT;
}

Test(client_loss, undecodable_event_ends_the_connection_not_the_process)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};

	pair = start_pair(&d, garbage_at_submit, NULL, 1000);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	wait_events(pair.client, &seen, 2);
	assert_loss(&seen, 1, KVXFER_PROTOCOL);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_GOODBYE], 1);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

static enum fake_answer huge_payload_at_submit(struct fake_daemon *d, uint16_t type)
{
	Kvxp__Event event = KVXP__EVENT__INIT;
	static uint8_t bytes[KVXFER_PAYLOAD_MAX + 1];

	if (type != KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT)
		return FAKE_DEFAULT;
	event.type = KVXP__EVENT_TYPE__EVENT_ARRIVAL;
	event.payload.data = bytes;
	event.payload.len = sizeof(bytes);
	fake_send(d, KVXP__FRAME_TYPE__FRAME_EVENT, &event.base, -1);
	return FAKE_DONE;
}

Test(client_loss, oversized_payload_ends_the_connection)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};

	pair = start_pair(&d, huge_payload_at_submit, NULL, 1000);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	wait_events(pair.client, &seen, 2);
	assert_loss(&seen, 1, KVXFER_PROTOCOL);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

/* A submit that finds the socket closed was accepted all the same: it ends by its event. */
Test(client_loss, submits_to_a_dying_daemon_end_by_their_events)
{
	_Atomic int left = 1;
	struct fake_process process;
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};

	fake_process_start(&process);
	fake_daemon_init(&d);
	d.pidfd = process.pidfd;
	d.hook = die_at_submit;
	d.arg = &left;
	fake_daemon_start(&d);
	pair = open_pair(&d, 1000);
	fake_process_kill(&process);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	cr_assert(is_readable(kvxfer_client_fd(pair.client), 2000));
	cr_assert_eq(submit_one(&pair, 101, NULL), 0);
	cr_assert_eq(submit_one(&pair, 102, NULL), 0);
	wait_events(pair.client, &seen, 4);
	assert_loss(&seen, 3, KVXFER_DAEMON_LOST);
	stop_pair(&d, &pair);
	fake_process_fini(&process);
	KVX_TEST_END();
}

static enum fake_answer bad_frames_at_query(struct fake_daemon *d, uint16_t type)
{
	static const uint8_t huge[] = {0xff, 0xff, 0xff, 0x7f, 101, 0, 0, 0};
	static const uint8_t reply[] = {2, 0, 0, 0, 101, 0, 0, 0, 0x08, 0x80};

	if (type != KVXP__FRAME_TYPE__FRAME_QUERY)
		return FAKE_DEFAULT;
	if (*(int *)d->arg == 0)
		fake_send_bytes(d, huge, sizeof(huge));
	else
		fake_send_bytes(d, reply, sizeof(reply));
	return FAKE_DONE;
}

Test(client_loss, bad_frames_end_the_call_and_the_connection)
{
	for (int kind = 0; kind < 2; kind++) {
		struct fake_daemon d;
		struct pair pair;
		struct seen seen = {0};
		char *json;

		pair = start_pair(&d, bad_frames_at_query, &kind, 1000);
		cr_assert_eq(kvxfer_client_query(pair.client, "status", NULL, &json), -ECONNRESET);
		wait_events(pair.client, &seen, 1);
		assert_loss(&seen, 0, KVXFER_PROTOCOL);
		stop_pair(&d, &pair);
	}
	KVX_TEST_END();
}

static enum fake_answer ignore_goodbye(struct fake_daemon *d, uint16_t type)
{
	if (type == KVXP__FRAME_TYPE__FRAME_GOODBYE)
		usleep(1500 * 1000);
	return FAKE_DEFAULT;
}

/* The memory of a region that the daemon may still write to is not given back. */
Test(client_loss, close_without_an_answer_leaves_the_memory_mapped)
{
	struct fake_daemon d;
	struct pair pair;
	char *data;

	pair = start_pair(&d, ignore_goodbye, NULL, 500);
	data = kvxfer_region_data(pair.region);
	data[0] = 'm';
	kvxfer_client_close(pair.client);
	cr_assert_eq(data[0], 'm');
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

Test(client_loss, close_with_transfers_outstanding_waits_for_the_fence)
{
	_Atomic int left = 1000;
	struct fake_daemon d;
	struct pair pair;

	pair = start_pair(&d, die_at_submit, &left, 1000); /* answers no submit */
	for (uint64_t i = 0; i < 10; i++)
		cr_assert_eq(submit_one(&pair, i, NULL), 0);
	kvxfer_client_close(pair.client);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_GOODBYE], 1);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT], 10);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}
