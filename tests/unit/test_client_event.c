/* Events of the client library: every one comes once, in order, with what it is about, however it
 * was received. */
#include "client_fixture.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "test_end.h"

Test(client_event, each_ends_once_with_its_tag)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	uint64_t ids[100];

	pair = start_pair(&d, NULL, NULL, 2000);
	for (uint64_t i = 0; i < 100; i++)
		cr_assert_eq(submit_one(&pair, 1000 + i, &ids[i]), 0);
	wait_events(pair.client, &seen, 100);
	for (unsigned i = 0; i < 100; i++) {
		const struct seen_event *e = &seen.events[i];

		cr_assert_eq(e->type, KVXFER_EVENT_TERMINAL);
		cr_assert_eq(e->status, KVXFER_OK);
		cr_assert_eq(e->transfer, ids[i]);
		cr_assert_eq(e->tag, 1000 + i);
		cr_assert_eq(e->op, KVXFER_WRITE);
		cr_assert_eq(e->bytes, FAKE_BYTES_PER_TRANSFER);
		cr_assert_str_eq(e->transport, "copy");
	}
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 0);
	cr_assert_not(is_readable(kvxfer_client_fd(pair.client), 0));
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

static enum fake_answer say_it_twice(struct fake_daemon *d, uint16_t type)
{
	if (type != KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT)
		return FAKE_DEFAULT;
	fake_terminal(d, 999, 0); /* never was */
	fake_terminal(d, 1, 0);
	fake_terminal(d, 1, 0);
	fake_event(d, (Kvxp__EventType)4711, 1, 1, NULL); /* a type of the future */
	fake_event(d, KVXP__EVENT_TYPE__EVENT_IMPORT_LOST, 4711, 0, NULL);
	fake_event(d, KVXP__EVENT_TYPE__EVENT_REGION_LOST, 4711, 0, NULL);
	fake_event(d, KVXP__EVENT_TYPE__EVENT_DRAINING, 0, 0, NULL);
	return FAKE_DONE;
}

Test(client_event, duplicates_strangers_and_unknown_types_are_dropped)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};

	pair = start_pair(&d, say_it_twice, NULL, 2000);
	cr_assert_eq(submit_one(&pair, 7, NULL), 0);
	wait_events(pair.client, &seen, 2);
	cr_assert_eq(seen.events[0].type, KVXFER_EVENT_TERMINAL);
	cr_assert_eq(seen.events[0].tag, 7);
	cr_assert_eq(seen.events[1].type, KVXFER_EVENT_DRAINING);
	cr_assert_eq(kvxfer_client_wait(pair.client, 50, seen_event, &seen), 0);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

/* Region 1 and import 2 are those of open_pair(). */
static enum fake_answer send_events_before_reply(struct fake_daemon *d, uint16_t type)
{
	if (type != KVXP__FRAME_TYPE__FRAME_QUERY)
		return FAKE_DEFAULT;
	fake_event(d, KVXP__EVENT_TYPE__EVENT_ARRIVAL, 1, 11, "ready");
	fake_event(d, KVXP__EVENT_TYPE__EVENT_MESSAGE, 1, 0, "hello");
	fake_answer_plainly(d, type);
	fake_event(d, KVXP__EVENT_TYPE__EVENT_IMPORT_LOST, 2, 0, NULL);
	fake_event(d, KVXP__EVENT_TYPE__EVENT_REGION_LOST, 1, 0, NULL);
	fake_event(d, KVXP__EVENT_TYPE__EVENT_ARRIVAL, 99, 12, NULL);
	return FAKE_DONE;
}

/* Whoever only polls must hear of events that came while another call was waiting. */
Test(client_event, events_during_a_set_up_call_are_kept_and_polled)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	char *json;

	pair = start_pair(&d, send_events_before_reply, NULL, 2000);
	cr_assert_eq(kvxfer_client_query(pair.client, "status", NULL, &json), 0);
	cr_assert_str_eq(json, "{}");
	free(json);
	while (seen.n < 5) {
		cr_assert(is_readable(kvxfer_client_fd(pair.client), 2000), "%u events", seen.n);
		cr_assert_geq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 0);
	}
	cr_assert_eq(seen.events[0].type, KVXFER_EVENT_ARRIVAL);
	cr_assert_eq(seen.events[0].tag, 11);
	cr_assert_eq(seen.events[0].region, pair.region);
	cr_assert_str_eq(seen.events[0].payload, "ready");
	cr_assert_eq(seen.events[1].type, KVXFER_EVENT_MESSAGE);
	cr_assert_str_eq(seen.events[1].payload, "hello");
	cr_assert_eq(seen.events[1].tag, 0);
	cr_assert_eq(seen.events[2].type, KVXFER_EVENT_IMPORT_LOST);
	cr_assert_eq(seen.events[2].import_, pair.import_);
	cr_assert_eq(seen.events[3].type, KVXFER_EVENT_REGION_LOST);
	cr_assert_eq(seen.events[3].region, pair.region);
	cr_assert_eq(seen.events[4].type, KVXFER_EVENT_ARRIVAL);
	cr_assert_null(seen.events[4].region);
	cr_assert_not(is_readable(kvxfer_client_fd(pair.client), 0));
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

struct nested {
	struct pair pair;
	int n;
	int submit, cancel, dispatch, wait, query, unregister, reconnect;
};

static void nested_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct nested *nested = arg;
	struct seen seen = {0};
	uint64_t transfer;
	char *json;

	if (nested->n++ > 0)
		return;
	nested->submit = submit_one(&nested->pair, 2, &transfer);
	nested->cancel = kvxfer_transfer_cancel(client, transfer);
	nested->dispatch = kvxfer_client_dispatch(client, seen_event, &seen);
	nested->wait = kvxfer_client_wait(client, 10, seen_event, &seen);
	nested->query = kvxfer_client_query(client, "status", NULL, &json);
	nested->unregister = kvxfer_region_unregister(nested->pair.region);
	nested->reconnect = kvxfer_client_reconnect(client);
	kvxfer_client_close(client);
}

Test(client_event, callbacks_may_submit_but_not_wait)
{
	struct fake_daemon d;
	struct nested nested = {0};

	nested.pair = start_pair(&d, NULL, NULL, 2000);
	cr_assert_eq(submit_one(&nested.pair, 1, NULL), 0);
	while (nested.n < 2)
		cr_assert_gt(kvxfer_client_wait(nested.pair.client, 2000, nested_event, &nested),
			     0);
	cr_assert_eq(nested.submit, 0);
	cr_assert_eq(nested.cancel, 0);
	cr_assert_eq(nested.dispatch, -EBUSY);
	cr_assert_eq(nested.wait, -EBUSY);
	cr_assert_eq(nested.query, -EBUSY);
	cr_assert_eq(nested.unregister, -EBUSY);
	cr_assert_eq(nested.reconnect, -EBUSY);
	kvxfer_client_close(nested.pair.client);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_XFER_CANCEL], 1);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

static enum fake_answer long_text_at_submit(struct fake_daemon *d, uint16_t type)
{
	static char text[40000];
	Kvxp__Event event = KVXP__EVENT__INIT;

	if (type != KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT)
		return FAKE_DEFAULT;
	memset(text, 'x', sizeof(text) - 1);
	event.type = KVXP__EVENT_TYPE__EVENT_TERMINAL;
	event.xfer = 1;
	event.status = KVXFER_TRANSPORT;
	event.scope = KVXFER_SCOPE_PEER;
	event.vendor_code = -7;
	event.text = text;
	fake_send(d, KVXP__FRAME_TYPE__FRAME_EVENT, &event.base, -1);
	return FAKE_DONE;
}

Test(client_event, failure_carries_its_cause_however_long)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};

	pair = start_pair(&d, long_text_at_submit, NULL, 2000);
	cr_assert_eq(submit_one(&pair, 1, NULL), 0);
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(seen.events[0].status, KVXFER_TRANSPORT);
	cr_assert_eq(seen.events[0].scope, KVXFER_SCOPE_PEER);
	cr_assert_str_eq(seen.events[0].transport, "");
	cr_assert_eq(strlen(seen.events[0].text), sizeof(seen.events[0].text) - 1);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

Test(client_event, wait_keeps_its_time)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	struct timespec a, b;
	long ms;

	pair = start_pair(&d, NULL, NULL, 2000);
	clock_gettime(CLOCK_MONOTONIC, &a);
	cr_assert_eq(kvxfer_client_wait(pair.client, 80, seen_event, &seen), 0);
	clock_gettime(CLOCK_MONOTONIC, &b);
	ms = (b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000;
	cr_assert_geq(ms, 79);
	cr_assert_eq(kvxfer_client_wait(pair.client, 0, seen_event, &seen), 0);
	cr_assert_eq(kvxfer_client_wait(pair.client, 0, NULL, NULL), -EINVAL);
	stop_pair(&d, &pair);
	KVX_TEST_END();
}
