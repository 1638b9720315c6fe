/* The loss of the daemon and the way back: no transfer is declared over before the daemon's DMA is,
 * each ends once, and the same regions and imports work with the next daemon. */
#include "client_fixture.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
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

static void assert_loss(const struct seen *seen, unsigned n_transfers, int status)
{
	cr_assert_eq(seen->n, n_transfers + 1);
	for (unsigned i = 0; i < n_transfers; i++) {
		cr_assert_eq(seen->events[i].type, KVXFER_EVENT_TERMINAL);
		cr_assert_eq(seen->events[i].status, KVXFER_DAEMON_LOST);
		cr_assert_eq(seen->events[i].scope, KVXFER_SCOPE_DAEMON);
		cr_assert_eq(seen->events[i].tag, 100 + i);
		cr_assert_eq(seen->events[i].op, KVXFER_WRITE);
		cr_assert_eq(seen->events[i].bytes, 0);
		if (i > 0)
			cr_assert_gt(seen->events[i].transfer, seen->events[i - 1].transfer);
	}
	cr_assert_eq(seen->events[n_transfers].type, KVXFER_EVENT_DAEMON_LOST);
	cr_assert_eq(seen->events[n_transfers].status, status);
	cr_assert_neq(seen->events[n_transfers].text[0], '\0');
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
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
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
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
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

	fake_daemon_init(&d);
	d.hook = die_at_submit;
	d.arg = &left;
	fake_daemon_start(&d);
	pair = open_pair(&d, 1000);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	cr_assert_eq(kvxfer_client_wait(pair.client, 1000, seen_event, &seen), 0);
	cr_assert(is_readable(kvxfer_client_fd(pair.client), 3000));
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 2);
	assert_loss(&seen, 1, KVXFER_DAEMON_LOST);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
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

	fake_daemon_init(&d);
	d.hook = error_at_query;
	fake_daemon_start(&d);
	pair = open_pair(&d, 1000);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	cr_assert_eq(kvxfer_client_query(pair.client, "status", NULL, &json), -ECONNRESET);
	cr_assert_not_null(strstr(kvxfer_client_error(pair.client), "the daemon stops"));
	cr_assert_eq(kvxfer_client_reconnect(pair.client), -EBUSY);
	cr_assert(is_readable(kvxfer_client_fd(pair.client), 0));
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 2);
	assert_loss(&seen, 1, KVXFER_DRAINING);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
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

	fake_daemon_init(&d);
	d.hook = two_ends_and_an_error_at_query;
	fake_daemon_start(&d);
	pair = open_pair(&d, 1000);
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
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
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

	fake_daemon_init(&d);
	d.hook = garbage_at_submit;
	fake_daemon_start(&d);
	pair = open_pair(&d, 1000);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	wait_events(pair.client, &seen, 2);
	assert_loss(&seen, 1, KVXFER_PROTOCOL);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_GOODBYE], 1);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
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

	fake_daemon_init(&d);
	d.hook = huge_payload_at_submit;
	fake_daemon_start(&d);
	pair = open_pair(&d, 1000);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	wait_events(pair.client, &seen, 2);
	assert_loss(&seen, 1, KVXFER_PROTOCOL);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

/* ---- reconnect */

struct revival {
	_Atomic int alive;         /* 0: submits are answered with FRAME_ERROR */
	_Atomic int import_status; /* answer to imports */
	_Atomic int n_registered;  /* since alive */
	_Atomic int refuse_region; /* refuse registrations */
};

static enum fake_answer revive(struct fake_daemon *d, uint16_t type)
{
	struct revival *r = d->arg;

	if (type == KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT && !r->alive) {
		fake_error(d, KVXFER_INTERNAL, "restarting");
		return FAKE_HANG_UP;
	}
	if (type == KVXP__FRAME_TYPE__FRAME_REGION_REGISTER && r->alive) {
		r->n_registered++;
		if (r->refuse_region) {
			fake_reply(d, fake_request_id(d), KVXFER_QUOTA, "full", 0);
			return FAKE_DONE;
		}
	}
	if (type == KVXP__FRAME_TYPE__FRAME_IMPORT && r->import_status != 0) {
		fake_reply(d, fake_request_id(d), (uint32_t)r->import_status, "not any more", 0);
		return FAKE_DONE;
	}
	return FAKE_DEFAULT;
}

static struct pair start_revival(struct fake_daemon *d, struct revival *r, struct seen *seen)
{
	struct pair pair;

	fake_daemon_init(d);
	d->hook = revive;
	d->arg = r;
	fake_daemon_start(d);
	pair = open_pair(d, 1000);
	cr_assert_eq(kvxfer_client_reconnect(pair.client), -EALREADY);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	wait_events(pair.client, seen, 2);
	assert_loss(seen, 1, KVXFER_INTERNAL);
	seen->n = 0;
	r->alive = 1;
	return pair;
}

Test(client_loss, reconnect_brings_regions_and_imports_back)
{
	struct revival r = {0};
	struct fake_daemon d;
	struct seen seen = {0};
	struct pair pair = start_revival(&d, &r, &seen);
	int fd = kvxfer_client_fd(pair.client);
	char *data = kvxfer_region_data(pair.region);
	uint8_t descriptor[KVXFER_DESCRIPTOR_MAX];
	uint64_t transfer = 0;

	data[5] = 'k';
	cr_assert_eq(kvxfer_client_reconnect(pair.client), 0, "%s",
		     kvxfer_client_error(pair.client));
	cr_assert_eq(r.n_registered, 1);
	cr_assert_eq(kvxfer_client_fd(pair.client), fd);
	cr_assert_eq(kvxfer_region_data(pair.region), data);
	cr_assert_eq(data[5], 'k');
	cr_assert_eq(kvxfer_region_export(pair.region, descriptor, sizeof(descriptor)), 12);
	cr_assert_eq(submit_one(&pair, 55, &transfer), 0);
	cr_assert_eq(transfer, 2, "ids are never used again");
	cr_assert(is_readable(fd, 2000));
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(seen.events[0].status, KVXFER_OK);
	cr_assert_eq(seen.events[0].tag, 55);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

Test(client_loss, import_that_is_gone_is_reported_once)
{
	struct revival r = {.import_status = 0};
	struct fake_daemon d;
	struct seen seen = {0};
	struct pair pair = start_revival(&d, &r, &seen);

	r.import_status = KVXFER_STALE;
	cr_assert_eq(kvxfer_client_reconnect(pair.client), 0);
	cr_assert(is_readable(kvxfer_client_fd(pair.client), 0));
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 1);
	cr_assert_eq(seen.events[0].type, KVXFER_EVENT_IMPORT_LOST);
	cr_assert_eq(seen.events[0].status, KVXFER_STALE);
	cr_assert_eq(seen.events[0].import_, pair.import_);
	cr_assert_str_eq(seen.events[0].text, "not any more");
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 0);
	cr_assert_eq(submit_one(&pair, 1, NULL), -EINVAL);
	cr_assert_eq(kvxfer_message_send(pair.import_, "x", 1), -EPIPE);
	cr_assert_eq(kvxfer_import_close(pair.import_), 0);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE], 0);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

Test(client_loss, failed_reconnect_can_be_repeated)
{
	struct revival r = {0};
	struct fake_daemon d;
	struct seen seen = {0};
	struct pair pair = start_revival(&d, &r, &seen);

	r.refuse_region = 1;
	cr_assert_eq(kvxfer_client_reconnect(pair.client), -EDQUOT);
	cr_assert_str_eq(kvxfer_client_error(pair.client), "full");
	cr_assert_eq(submit_one(&pair, 1, NULL), -ECONNRESET);
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), -ECONNRESET);
	r.refuse_region = 0;
	cr_assert_eq(kvxfer_client_reconnect(pair.client), 0);
	cr_assert_eq(submit_one(&pair, 2, NULL), 0);
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(seen.events[0].tag, 2);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

Test(client_loss, import_that_changed_is_lost_one_that_did_not_is_kept)
{
	Kvxp__Plane plane = KVXP__PLANE__INIT, *planes[1] = {&plane};
	Kvxp__Layout layout = KVXP__LAYOUT__INIT;
	struct revival r = {0};
	struct fake_daemon d;
	struct seen seen = {0};
	struct pair pair;

	plane.name = (char *)(uintptr_t) "k";
	plane.block_bytes = plane.block_stride = 64;
	layout.n_planes = 1;
	layout.planes = planes;
	fake_daemon_init(&d);
	d.hook = revive;
	d.arg = &r;
	d.import_layout = &layout;
	fake_daemon_start(&d);
	pair = open_pair(&d, 1000);
	for (int round = 0; round < 2; round++) {
		r.alive = 0;
		cr_assert_eq(submit_one(&pair, 100, NULL), 0);
		wait_events(pair.client, &seen, 2);
		seen.n = 0;
		r.alive = 1;
		plane.block_bytes -= (uint64_t)round; /* the daemon thread waits for a request */
		cr_assert_eq(kvxfer_client_reconnect(pair.client), 0);
		if (round == 0)
			cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 0);
	}
	/* Closed before its event was delivered: the event is void. */
	cr_assert_eq(kvxfer_import_close(pair.import_), 0);
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 0);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

static enum fake_answer hang_up_at_import(struct fake_daemon *d, uint16_t type)
{
	_Atomic int *left = d->arg;

	if (type == KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT) {
		fake_error(d, KVXFER_INTERNAL, "restarting");
		return FAKE_HANG_UP;
	}
	if (type == KVXP__FRAME_TYPE__FRAME_IMPORT && --*left == 0)
		return FAKE_HANG_UP;
	return FAKE_DEFAULT;
}

Test(client_loss, daemon_lost_again_inside_reconnect)
{
	_Atomic int left = 2;
	struct fake_daemon d;
	struct seen seen = {0};
	struct pair pair;

	fake_daemon_init(&d);
	d.hook = hang_up_at_import;
	d.arg = &left;
	fake_daemon_start(&d);
	pair = open_pair(&d, 1000);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	wait_events(pair.client, &seen, 2);
	cr_assert_eq(kvxfer_client_reconnect(pair.client), -ECONNRESET);
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), -ECONNRESET);
	cr_assert_eq(kvxfer_client_reconnect(pair.client), 0);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
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
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
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

		fake_daemon_init(&d);
		d.hook = bad_frames_at_query;
		d.arg = &kind;
		fake_daemon_start(&d);
		pair = open_pair(&d, 1000);
		cr_assert_eq(kvxfer_client_query(pair.client, "status", NULL, &json), -ECONNRESET);
		wait_events(pair.client, &seen, 1);
		assert_loss(&seen, 0, KVXFER_PROTOCOL);
		kvxfer_client_close(pair.client);
		fake_daemon_stop(&d);
	}
	KVX_TEST_END();
}

/* A request that timed out is forgotten with the connection that it was made on. */
static enum fake_answer ignore_unregister(struct fake_daemon *d, uint16_t type)
{
	if (type == KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT) {
		fake_error(d, KVXFER_INTERNAL, "restarting");
		return FAKE_HANG_UP;
	}
	return type == KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER && *(_Atomic int *)d->arg
		   ? FAKE_DONE
		   : FAKE_DEFAULT;
}

Test(client_loss, unanswered_unregister_survives_a_reconnect)
{
	_Atomic int ignore = 1;
	struct fake_daemon d;
	struct seen seen = {0};
	struct pair pair;

	fake_daemon_init(&d);
	d.hook = ignore_unregister;
	d.arg = &ignore;
	fake_daemon_start(&d);
	pair = open_pair(&d, 500);
	cr_assert_eq(kvxfer_region_unregister(pair.region), -ETIMEDOUT);
	cr_assert_eq(submit_one(&pair, 100, NULL), 0);
	wait_events(pair.client, &seen, 2);
	cr_assert_eq(kvxfer_client_reconnect(pair.client), 0);
	ignore = 0;
	cr_assert_eq(kvxfer_region_unregister(pair.region), 0);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER], 2);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

/* ---- close */

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

	fake_daemon_init(&d);
	d.hook = ignore_goodbye;
	fake_daemon_start(&d);
	pair = open_pair(&d, 500);
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

	fake_daemon_init(&d);
	d.hook = die_at_submit; /* answers no submit */
	d.arg = &left;
	fake_daemon_start(&d);
	pair = open_pair(&d, 1000);
	for (uint64_t i = 0; i < 10; i++)
		cr_assert_eq(submit_one(&pair, i, NULL), 0);
	kvxfer_client_close(pair.client);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_GOODBYE], 1);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT], 10);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}
