/* Data calls of the client library, messages and queries: what is refused, and what is sent. */
#include "client_fixture.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

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
	stop_pair(&d, &pair);
	free(offsets);
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

	pair = start_pair(&d, NULL, NULL, 2000);
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
	stop_pair(&d, &pair);
	KVX_TEST_END();
}

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
	stop_pair(&d, &pair);
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

	pair = start_pair(&d, NULL, NULL, 2000);
	t.region = wait.region = pair.region;
	t.import_ = pair.import_;
	cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, NULL), -EOPNOTSUPP);
	cr_assert_not_null(strstr(kvxfer_client_error(pair.client), "too old"));
	stop_pair(&d, &pair);
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

	pair = start_pair(&d, refuse_message, &refuse, 2000);
	cr_assert_eq(kvxfer_message_send(pair.import_, "hi", 2), 0);
	cr_assert_eq(kvxfer_message_send(pair.import_, "hi", 0), -EINVAL);
	cr_assert_eq(kvxfer_message_send(pair.import_, NULL, 1), -EINVAL);
	cr_assert_eq(kvxfer_message_send(pair.import_, longer, sizeof(longer)), -EMSGSIZE);
	refuse = 1;
	cr_assert_eq(kvxfer_message_send(pair.import_, "hi", 2), -EPIPE);
	cr_assert_neq(kvxfer_client_error(pair.client)[0], '\0');
	stop_pair(&d, &pair);
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
	pair = start_pair(&d, keep_query, NULL, 2000);
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
	stop_pair(&d, &pair);
	KVX_TEST_END();
}
