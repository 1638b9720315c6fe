/* Data calls and events of the client library: what is refused, what is sent, and that every event
 * comes once, in order, however it was received. */
#include "client_fixture.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "fault_alloc.h"
#include "libclient/client_priv.h"
#include "test_end.h"

Test(client_transfer, bad_arguments_are_refused)
{
	const uint64_t offsets[2] = {0, 4096}, lens[2] = {4096, 0};
	const uint32_t ids[1] = {0};
	struct kvxfer_slice slice = {.bytes = 8, .count = 2, .local_stride = 4, .remote_stride = 8};
	struct kvxfer_ops ops = {2, offsets, offsets, NULL, 4096};
	struct kvxfer_blocks blocks = {0, 0, 1, 1, ids, ids, NULL};
	struct kvxfer_transfer good, t;
	struct fake_daemon d;
	struct pair pair, other;

	fake_daemon_init(&d);
	struct fake_daemon d2 = d;
	fake_daemon_start(&d);
	fake_daemon_start(&d2);
	pair = open_pair(&d, 2000);
	other = open_pair(&d2, 2000);
	good = (struct kvxfer_transfer){.struct_bytes = sizeof(good),
					.op = KVXFER_READ,
					.region = pair.region,
					.import_ = pair.import_,
					.ops = &ops};
#define refused(err, change)                                                                       \
	do {                                                                                       \
		t = good;                                                                          \
		change;                                                                            \
		cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, NULL), err, "%s", #change);   \
		cr_assert_neq(kvxfer_client_error(pair.client)[0], '\0');                          \
	} while (0)
	refused(-EINVAL, t.struct_bytes = 0);
	refused(-EINVAL, t.struct_bytes = 1 << 20);
	refused(-EINVAL, t.op = 3);
	refused(-EINVAL, t.region = NULL);
	refused(-EINVAL, t.import_ = NULL);
	refused(-EINVAL, t.region = other.region);
	refused(-EINVAL, t.import_ = other.import_);
	refused(-EINVAL, t.ops = NULL);
	refused(-EINVAL, t.blocks = &blocks);
	refused(-EINVAL, t.streaming = 2);
	refused(-EINVAL, t.payload_bytes = 5);
	refused(-EMSGSIZE, t.payload = offsets; t.payload_bytes = 4097);
	refused(-EINVAL, t.require = "");
	refused(-EINVAL, t.require = "a transport with a name that is too long");
	refused(-EINVAL, ops.len = 0);
	ops.lens = lens;
	refused(-EINVAL, (void)0);
	ops.n_ops = 0;
	refused(-EINVAL, (void)0);
	ops.n_ops = 32769;
	refused(-EMSGSIZE, (void)0);
	good.ops = NULL;
	good.blocks = &blocks;
	refused(-EINVAL, blocks.n_planes = 0);
	refused(-EINVAL, blocks.n_planes = UINT32_MAX; blocks.local_plane = 1);
	blocks = (struct kvxfer_blocks){0, 0, 1, 1, ids, ids, &slice};
	refused(-EINVAL, (void)0);
	refused(-EINVAL, slice.count = 0);
	blocks.slice = NULL;
	refused(-EINVAL, blocks.remote_blocks = NULL);
	blocks.remote_blocks = ids;
	refused(-EMSGSIZE, blocks.n_blocks = 32769);
#undef refused
	cr_assert_eq(kvxfer_transfer_submit(pair.client, NULL, NULL), -EINVAL);
	cr_assert_eq(kvxfer_transfer_submit(NULL, &good, NULL), -EINVAL);
	kvxfer_client_close(pair.client);
	kvxfer_client_close(other.client);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT], 0);
	fake_daemon_stop(&d);
	fake_daemon_stop(&d2);
	KVX_TEST_END();
}

/* More than one frame may hold, though each count is within its limit. */
Test(client_transfer, frame_over_the_daemons_limit_is_emsgsize)
{
	uint64_t *offsets = calloc(32768, sizeof(*offsets));
	struct kvxfer_ops ops = {32768, offsets, offsets, NULL, 8};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t), .op = KVXFER_READ, .ops = &ops};
	struct fake_daemon d;
	struct pair pair;

	fake_daemon_init(&d);
	d.hello.max_frame_bytes = 65536;
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
	t.region = pair.region;
	t.import_ = pair.import_;
	cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, NULL), -EMSGSIZE);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	free(offsets);
	KVX_TEST_END();
}

Test(client_transfer, each_ends_once_with_its_tag)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	uint64_t ids[100];

	fake_daemon_init(&d);
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
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
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
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

Test(client_transfer, duplicates_strangers_and_unknown_types_are_dropped)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};

	fake_daemon_init(&d);
	d.hook = say_it_twice;
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
	cr_assert_eq(submit_one(&pair, 7, NULL), 0);
	wait_events(pair.client, &seen, 2);
	cr_assert_eq(seen.events[0].type, KVXFER_EVENT_TERMINAL);
	cr_assert_eq(seen.events[0].tag, 7);
	cr_assert_eq(seen.events[1].type, KVXFER_EVENT_DRAINING);
	cr_assert_eq(kvxfer_client_wait(pair.client, 50, seen_event, &seen), 0);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
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
Test(client_transfer, events_during_a_set_up_call_are_kept_and_polled)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	char *json;

	fake_daemon_init(&d);
	d.hook = send_events_before_reply;
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
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
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
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

Test(client_transfer, callbacks_may_submit_but_not_wait)
{
	struct fake_daemon d;
	struct nested nested = {0};

	fake_daemon_init(&d);
	fake_daemon_start(&d);
	nested.pair = open_pair(&d, 2000);
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

Test(client_transfer, streaming_takes_appends_until_sealed)
{
	const uint32_t ids[2] = {3, 4};
	struct kvxfer_blocks blocks = {0, 0, 2, 2, ids, ids, NULL};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t), .op = KVXFER_WRITE, .streaming = 1};
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	uint64_t transfer;

	fake_daemon_init(&d);
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
	t.region = pair.region;
	t.import_ = pair.import_;
	cr_assert_eq(kvxfer_transfer_append(pair.client, 1, &blocks, NULL), -ENOENT);
	cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, &transfer), 0);
	cr_assert_eq(kvxfer_transfer_append(pair.client, transfer, NULL, NULL), -EINVAL);
	cr_assert_eq(kvxfer_transfer_append(pair.client, transfer, &blocks, NULL), 0);
	cr_assert_eq(kvxfer_transfer_append(pair.client, transfer, &blocks, NULL), 0);
	cr_assert_eq(kvxfer_transfer_seal(pair.client, transfer, NULL, 3), -EINVAL);
	cr_assert_eq(kvxfer_transfer_seal(pair.client, transfer, "done", 4), 0);
	cr_assert_eq(kvxfer_transfer_append(pair.client, transfer, &blocks, NULL), -ENOENT);
	cr_assert_eq(kvxfer_transfer_seal(pair.client, transfer, NULL, 0), -ENOENT);
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_XFER_APPEND], 2);
	cr_assert_eq(kvxfer_transfer_cancel(pair.client, transfer), -ENOENT);
	cr_assert_eq(submit_one(&pair, 1, &transfer), 0);
	cr_assert_eq(kvxfer_transfer_append(pair.client, transfer, &blocks, NULL), -ENOENT);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

/* The daemon stops reading until released: what the socket does not take waits in the library. */
static enum fake_answer stop_reading(struct fake_daemon *d, uint16_t type)
{
	_Atomic int *gate = d->arg;

	while (type == KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT && *gate == 1)
		usleep(1000);
	return FAKE_DEFAULT;
}

Test(client_transfer, full_socket_keeps_order_and_loses_nothing)
{
	enum { N_OPS = 16384, N = 100 };
	uint64_t *offsets = calloc(N_OPS, sizeof(*offsets));
	struct kvxfer_ops ops = {N_OPS, offsets, offsets, NULL, 8};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t), .op = KVXFER_READ, .ops = &ops};
	_Atomic int gate = 1;
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};

	fake_daemon_init(&d);
	d.hook = stop_reading;
	d.arg = &gate;
	fake_daemon_start(&d);
	pair = open_pair(&d, 5000);
	t.region = pair.region;
	t.import_ = pair.import_;
	for (t.tag = 0; t.tag < N; t.tag++) /* 26 MB: more than any socket buffer */
		cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, NULL), 0);
	cr_assert_not(is_readable(kvxfer_client_fd(pair.client), 50));
	gate = 0;
	while (seen.n < N) { /* only by polling: the fd must tell when there is room to send */
		cr_assert(is_readable(kvxfer_client_fd(pair.client), 5000), "%u", seen.n);
		cr_assert_geq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 0);
	}
	for (unsigned i = 0; i < N; i++)
		cr_assert_eq(seen.events[i].tag, i);
	cr_assert_not(is_readable(kvxfer_client_fd(pair.client), 0));
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	free(offsets);
	KVX_TEST_END();
}

Test(client_transfer, backlog_is_bounded)
{
	enum { N_OPS = 32768 };
	uint64_t *offsets = calloc(N_OPS, sizeof(*offsets));
	struct kvxfer_ops ops = {N_OPS, offsets, offsets, NULL, 8};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t), .op = KVXFER_READ, .ops = &ops};
	_Atomic int gate = 1;
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	unsigned n = 0;
	int err;

	fake_daemon_init(&d);
	d.hook = stop_reading;
	d.arg = &gate;
	fake_daemon_start(&d);
	pair = open_pair(&d, 5000);
	t.region = pair.region;
	t.import_ = pair.import_;
	while ((err = kvxfer_transfer_submit(pair.client, &t, NULL)) == 0)
		cr_assert_lt(++n, 1000);
	cr_assert_eq(err, -EAGAIN);
	gate = 0;
	wait_events(pair.client, &seen, n);
	cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, NULL), 0);
	wait_events(pair.client, &seen, n + 1);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	free(offsets);
	KVX_TEST_END();
}

Test(client_transfer, steady_state_allocates_nothing)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	int pid;

	fake_daemon_init(&d);
	pid = fake_daemon_fork(&d);
	pair = open_pair(&d, 2000);
	for (unsigned i = 0; i < 32; i++) {
		cr_assert_eq(submit_one(&pair, i, NULL), 0);
		wait_events(pair.client, &seen, i + 1);
	}
	fault_alloc_arm(1);
	for (unsigned i = 32; i < 300; i++) {
		cr_assert_eq(submit_one(&pair, i, NULL), 0);
		while (seen.n <= i && kvxfer_client_wait(pair.client, 2000, seen_event, &seen) > 0)
			;
	}
	cr_assert_not(fault_alloc_disarm());
	cr_assert_eq(seen.n, 300);
	kvxfer_client_close(pair.client);
	fake_daemon_reap(pid);
	KVX_TEST_END();
}

static enum fake_answer refuse_message(struct fake_daemon *d, uint16_t type)
{
	if (type != KVXP__FRAME_TYPE__FRAME_MESSAGE_SEND || *(_Atomic int *)d->arg == 0)
		return FAKE_DEFAULT;
	fake_reply(d, fake_request_id(d), KVXFER_CLIENT_LOST, "", 0);
	return FAKE_DONE;
}

Test(client_transfer, messages_are_acknowledged_or_refused)
{
	uint8_t longer[KVXFER_PAYLOAD_MAX + 1] = {0};
	_Atomic int refuse = 0;
	struct fake_daemon d;
	struct pair pair;

	fake_daemon_init(&d);
	d.hook = refuse_message;
	d.arg = &refuse;
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
	cr_assert_eq(kvxfer_message_send(pair.import_, "hi", 2), 0);
	cr_assert_eq(kvxfer_message_send(pair.import_, "hi", 0), -EINVAL);
	cr_assert_eq(kvxfer_message_send(pair.import_, NULL, 1), -EINVAL);
	cr_assert_eq(kvxfer_message_send(pair.import_, longer, sizeof(longer)), -EMSGSIZE);
	refuse = 1;
	cr_assert_eq(kvxfer_message_send(pair.import_, "hi", 2), -EPIPE);
	cr_assert_neq(kvxfer_client_error(pair.client)[0], '\0');
	kvxfer_client_close(pair.client);
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

Test(client_transfer, failure_carries_its_cause_however_long)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};

	fake_daemon_init(&d);
	d.hook = long_text_at_submit;
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
	cr_assert_eq(submit_one(&pair, 1, NULL), 0);
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(seen.events[0].status, KVXFER_TRANSPORT);
	cr_assert_eq(seen.events[0].scope, KVXFER_SCOPE_PEER);
	cr_assert_str_eq(seen.events[0].transport, "");
	cr_assert_eq(strlen(seen.events[0].text), sizeof(seen.events[0].text) - 1);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

static enum fake_answer keep_query(struct fake_daemon *d, uint16_t type)
{
	Kvxp__Query *query;

	if (type != KVXP__FRAME_TYPE__FRAME_QUERY)
		return FAKE_DEFAULT;
	query = kvxp__query__unpack(NULL, d->len_bytes, d->body);
	fake_reply(d, query->request_id, strcmp(query->verb, "ping") == 0 ? 0 : KVXFER_UNSUPPORTED,
		   query->arg, 0);
	kvxp__query__free_unpacked(query, NULL);
	return FAKE_DONE;
}

Test(client_transfer, queries_pass_verb_and_argument)
{
	char longer[300], *json = NULL;
	struct fake_daemon d;
	struct pair pair;

	memset(longer, 'q', sizeof(longer));
	longer[299] = '\0';
	fake_daemon_init(&d);
	d.hook = keep_query;
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
	cr_assert_eq(kvxfer_client_query(pair.client, "ping", "node-b:7", &json), 0);
	cr_assert_str_eq(json, "node-b:7");
	free(json);
	json = NULL;
	cr_assert_eq(kvxfer_client_query(pair.client, "dance", NULL, &json), -EOPNOTSUPP);
	cr_assert_eq(kvxfer_client_query(pair.client, longer, NULL, &json), -EINVAL);
	cr_assert_eq(kvxfer_client_query(pair.client, "ping", longer, &json), -EINVAL);
	cr_assert_eq(kvxfer_client_query(pair.client, NULL, NULL, &json), -EINVAL);
	cr_assert_eq(kvxfer_client_query(pair.client, "ping", NULL, NULL), -EINVAL);
	cr_assert_null(json);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

Test(client_transfer, wait_keeps_its_time)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	struct timespec a, b;
	long ms;

	fake_daemon_init(&d);
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
	clock_gettime(CLOCK_MONOTONIC, &a);
	cr_assert_eq(kvxfer_client_wait(pair.client, 80, seen_event, &seen), 0);
	clock_gettime(CLOCK_MONOTONIC, &b);
	ms = (b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000;
	cr_assert_geq(ms, 79);
	cr_assert_eq(kvxfer_client_wait(pair.client, 0, seen_event, &seen), 0);
	cr_assert_eq(kvxfer_client_wait(pair.client, 0, NULL, NULL), -EINVAL);
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

/* ---- waits */

Test(client_transfer, waits_that_cannot_be_are_refused)
{
	const uint32_t ids[1] = {0};
	struct kvxfer_blocks blocks = {0, 0, 1, 1, ids, ids, NULL};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t), .op = KVXFER_WRITE, .streaming = 1};
	struct kvxfer_wait flag, wait;
	struct fake_daemon d;
	struct pair pair;
	uint64_t id;

	fake_daemon_init(&d);
	d.hello.max_waits = 16;
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
	t.region = pair.region;
	t.import_ = pair.import_;
	cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, &id), 0);
	flag = (struct kvxfer_wait){.struct_bytes = sizeof(flag),
				    .kind = KVXFER_WAIT_FLAG,
				    .region = pair.region,
				    .offset = 8,
				    .value = 1};
#define wait_is(err, says, change)                                                                 \
	do {                                                                                       \
		wait = flag;                                                                       \
		change;                                                                            \
		cr_assert_eq(kvxfer_transfer_append_after(pair.client, id, &blocks, NULL, &wait),  \
			     err, "%s", #change);                                                  \
		cr_assert(strstr(kvxfer_client_error(pair.client), says) != NULL, "%s: %s",        \
			  #change, kvxfer_client_error(pair.client));                              \
	} while (0)
	wait_is(-EINVAL, "struct_bytes", wait.struct_bytes = 0);
	wait_is(-EINVAL, "wait_kind", wait.kind = 3);
	wait_is(-EINVAL, "flag needs the region", wait.region = NULL);
	wait_is(-EINVAL, "multiple of 8", wait.offset = 4);
	wait_is(-EINVAL, "multiple of 8", wait.offset = 1 << 20);
	wait_is(-EINVAL, "event is empty", wait.kind = KVXFER_WAIT_EVENT);
	wait_is(-EINVAL, "not in memory of the GPU", wait.kind = KVXFER_WAIT_EVENT;
		wait.event[0] = 1);
	uint64_t region_id = pair.region->id;
	pair.region->id = 0; /* as while the daemon does not have it */
	wait_is(-EINVAL, "does not have the region", wait.kind = KVXFER_WAIT_EVENT;
		wait.event[0] = 1);
	pair.region->id = region_id;
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_XFER_APPEND], 0);
	wait_is(0, "", (void)0);
	wait_is(0, "", wait.offset = (1 << 20) - 8);
	wait_is(0, "", wait.kind = KVXFER_WAIT_NONE);
#undef wait_is
	t.wait = &flag;
	cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, &id), -EINVAL);
	cr_assert_not_null(strstr(kvxfer_client_error(pair.client), "without blocks"));
	cr_assert_eq(kvxfer_wait_for_event(pair.client, &d, &wait), -EOPNOTSUPP); /* no runtime */
	cr_assert_eq(kvxfer_wait_for_event(pair.client, NULL, &wait), -EINVAL);
	wait.struct_bytes = 0;
	cr_assert_eq(kvxfer_wait_for_event(pair.client, &d, &wait), -EINVAL);
	cr_assert_not_null(strstr(kvxfer_client_error(pair.client), "struct_bytes"));
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}

/* It would move the bytes at once. */
Test(client_transfer, daemon_that_knows_no_waits_is_asked_for_none)
{
	const uint32_t ids[1] = {0};
	struct kvxfer_blocks blocks = {0, 0, 1, 1, ids, ids, NULL};
	struct kvxfer_wait wait = {
	    .struct_bytes = sizeof(wait), .kind = KVXFER_WAIT_FLAG, .offset = 8};
	struct kvxfer_transfer t = {
	    .struct_bytes = sizeof(t), .op = KVXFER_WRITE, .blocks = &blocks, .wait = &wait};
	struct fake_daemon d;
	struct pair pair;

	fake_daemon_init(&d);
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
	t.region = wait.region = pair.region;
	t.import_ = pair.import_;
	cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, NULL), -EOPNOTSUPP);
	cr_assert_not_null(strstr(kvxfer_client_error(pair.client), "too old"));
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
	KVX_TEST_END();
}
