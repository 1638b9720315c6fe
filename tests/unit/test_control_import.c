/* Imports by name, messages that are posted, and the order in which the end of a client is told. */
#include "control_fixture.h"

static void publish(struct rig_client *rc, const char *name, const char *note, uint32_t access)
{
	Kvxp__RegionRegister req = KVXP__REGION_REGISTER__INIT;

	req.request_id = 1;
	req.kind = KVX_MEM_HOST;
	req.len = 4096;
	req.access = access;
	req.publish = (char *)(uintptr_t)name;
	req.note = (ProtobufCBinaryData){strlen(note), (uint8_t *)(uintptr_t)note};
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, &req.base, rig_memfd(req.len));
}

static uint64_t publish_ok(struct rig_client *rc, const char *name, const char *note)
{
	Kvxp__Reply *reply;
	uint64_t id;

	publish(rc, name, note, KVX_ACCESS_WRITE);
	reply = rig_take_reply(rc);
	cr_assert_neq(reply, NULL);
	cr_assert_eq(reply->status, KVX_STATUS_OK, "%s", reply->text);
	id = reply->id;
	kvxp__reply__free_unpacked(reply, NULL);
	return id;
}

static void find_at(struct rig_client *rc, const char *address, const char *name, uint64_t check)
{
	Kvxp__ImportFind req = KVXP__IMPORT_FIND__INIT;

	req.request_id = 5;
	req.address = (char *)(uintptr_t)address;
	req.name = (char *)(uintptr_t)name;
	req.check_region = check;
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_IMPORT_FIND, &req.base, -1);
}

static uint64_t find_ok(struct rig_client *rc, const char *name, const char *note)
{
	Kvxp__Reply *reply;
	uint64_t id;

	find_at(rc, "", name, 0);
	reply = rig_take_reply(rc);
	cr_assert_neq(reply, NULL);
	cr_assert_eq(reply->request_id, 5);
	cr_assert_eq(reply->status, KVX_STATUS_OK, "%s", reply->text);
	cr_assert_eq(reply->len, 4096);
	cr_assert_eq(reply->data.len, strlen(note));
	cr_assert(note[0] == '\0' || memcmp(reply->data.data, note, strlen(note)) == 0);
	id = reply->id;
	kvxp__reply__free_unpacked(reply, NULL);
	return id;
}

/* ---- names */

Test(control_import, published_region_is_found_with_its_note)
{
	two_clients();
	publish_ok(&b, "engine-1/tp0", "four heads");
	find_ok(&a, "engine-1/tp0", "four heads");
	all_gone();
	KVX_TEST_END();
}

Test(control_import, name_that_nobody_has_published_is_not_found)
{
	two_clients();
	publish_ok(&b, "engine-1/tp0", "");
	find_at(&a, "", "engine-1/tp1", 0);
	reply_is(&a, 5, KVX_STATUS_NOT_FOUND, "nobody has published engine-1/tp1");
	all_gone();
	KVX_TEST_END();
}

Test(control_import, name_is_free_again_once_its_region_is_unregistered)
{
	uint64_t region;

	two_clients();
	region = publish_ok(&b, "x", "old");
	publish(&a, "x", "new", KVX_ACCESS_WRITE);
	reply_is(&a, 1, KVX_STATUS_EXISTS, "published as x");
	unregister(&b, region);
	reply_is(&b, 9, KVX_STATUS_OK, NULL);
	find_at(&b, "", "x", 0);
	reply_is(&b, 5, KVX_STATUS_NOT_FOUND, NULL);
	publish_ok(&a, "x", "new");
	find_ok(&b, "x", "new");
	all_gone();
	KVX_TEST_END();
}

/* Its end is settled later in the turn of the loop in which the new engine comes. */
Test(control_import, name_of_a_client_that_is_gone_is_free_at_once)
{
	two_clients();
	publish_ok(&b, "x", "old");
	kvx_client_lost(b.client, "killed");
	publish_ok(&a, "x", "new");
	find_ok(&a, "x", "new");
	all_gone();
	KVX_TEST_END();
}

Test(control_import, bad_names_and_notes_are_refused)
{
	static char long_name[131], long_note[4098];

	two_clients();
	memset(long_name, 'n', sizeof(long_name) - 1);
	memset(long_note, 'n', sizeof(long_note) - 1);
	publish(&a, "two words", "", KVX_ACCESS_WRITE);
	reply_is(&a, 1, KVX_STATUS_INVALID, "printable ASCII");
	publish(&a, "line\n", "", KVX_ACCESS_WRITE);
	reply_is(&a, 1, KVX_STATUS_INVALID, "printable ASCII");
	publish(&a, long_name, "", KVX_ACCESS_WRITE);
	reply_is(&a, 1, KVX_STATUS_INVALID, "1 to 128 characters");
	publish(&a, "x", long_note, KVX_ACCESS_WRITE);
	reply_is(&a, 1, KVX_STATUS_TOO_BIG, NULL);
	publish(&a, "", "note", KVX_ACCESS_WRITE);
	reply_is(&a, 1, KVX_STATUS_INVALID, "without a name");
	publish(&a, "x", "", 0);
	reply_is(&a, 1, KVX_STATUS_ACCESS, "cannot be published");
	find_at(&a, "", "", 0);
	reply_is(&a, 5, KVX_STATUS_INVALID, "1 to 128 characters");
	long_name[128] = '\0';
	publish_ok(&b, long_name, "");
	find_ok(&a, long_name, "");
	all_gone();
	KVX_TEST_END();
}

Test(control_import, other_tenant_has_names_of_its_own)
{
	struct kvx_config config;

	kvx_config_defaults(&config);
	snprintf(config.tenants, sizeof(config.tenants), "blue=@kvxrig-import-%d", (int)getpid());
	rig_open(&rig, &config);
	rig_client_hello_of(&rig, &a, 0);
	rig_client_hello_of(&rig, &b, 1);
	publish_ok(&a, "x", "default's");
	find_at(&b, "", "x", 0);
	reply_is(&b, 5, KVX_STATUS_NOT_FOUND, NULL);
	publish_ok(&b, "x", "blue's");
	find_ok(&a, "x", "default's");
	find_ok(&b, "x", "blue's");
	all_gone();
	KVX_TEST_END();
}

Test(control_import, found_region_is_compared_like_an_imported_one)
{
	uint64_t own;

	two_clients();
	publish_ok(&b, "x", "");
	own = rig_register(&a, 4, 0);
	find_at(&a, "", "x", own);
	reply_is(&a, 5, KVX_STATUS_LAYOUT, "the remote region has no layout");
	cr_assert_eq(kvx_idmap_count(a.client->imports), 0);
	all_gone();
	KVX_TEST_END();
}

Test(control_import, other_node_cannot_be_asked_without_peers)
{
	two_clients();
	find_at(&a, "10.0.0.1:7717", "x", 0);
	reply_is(&a, 5, KVX_STATUS_PEER_UNREACHABLE, "no peers");
	cr_assert_eq(kvx_idmap_count(a.client->imports), 0);
	all_gone();
	KVX_TEST_END();
}

/* ---- posted messages */

Test(control_import, posted_messages_arrive_in_order_and_unanswered)
{
	uint64_t import;
	Kvxp__Event *event;

	two_clients();
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	post(&a, import, "one");
	post(&a, import, "two");
	cr_assert_eq(a.n_frames, 0, "something was answered");
	for (const char **want = (const char *[]){"one", "two", NULL}; *want != NULL; want++) {
		event = rig_take_event(&b, KVXP__EVENT_TYPE__EVENT_MESSAGE);
		cr_assert_neq(event, NULL);
		cr_assert_eq(event->payload.len, 3);
		cr_assert_eq(memcmp(event->payload.data, *want, 3), 0);
		kvxp__event__free_unpacked(event, NULL);
	}
	all_gone();
	KVX_TEST_END();
}

Test(control_import, posted_message_comes_after_the_arrival_of_a_transfer_that_had_ended)
{
	uint64_t local, import;

	two_clients();
	local = rig_register(&a, 4, 0);
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	submit_blocks(
	    &a, (struct submit){.number = 1, .region = local, .import = import, .n_blocks = 4});
	terminal_is(&a, 1, KVX_STATUS_OK, NULL);
	post(&a, import, "done");
	cr_assert_str_eq(event_letters(&b), "AM");
	all_gone();
	KVX_TEST_END();
}

Test(control_import, post_to_a_client_that_does_not_read_ends_the_import)
{
	uint64_t local, import;

	two_clients();
	local = rig_register(&a, 4, 0);
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	b.pending_bytes = rig.config.events_bytes + 1;
	post(&a, import, "lost");
	rig_run_clock(&rig, KVX_POSTS_STUCK_NS - KVX_SEC);
	cr_assert_eq(a.n_frames, 0, "it may still read");
	rig_run_clock(&rig, 2 * KVX_SEC);
	b.pending_bytes = 0;
	lost_is(&a, import, KVX_STATUS_QUOTA, "does not read its events");
	cr_assert(kvx_client_takes_frames(b.client), "a sender cannot end the receiver");
	/* Nothing goes through it any more: what came later would be out of order. */
	post(&a, import, "later");
	submit_blocks(
	    &a, (struct submit){.number = 1, .region = local, .import = import, .n_blocks = 1});
	terminal_is(&a, 1, KVX_STATUS_QUOTA, "the import has ended");
	cr_assert_eq(a.n_frames + b.n_frames, 0, "told twice, or delivered after a gap");
	all_gone();
	KVX_TEST_END();
}

Test(control_import, undeliverable_post_ends_the_import_after_its_transfers)
{
	static char big[4098];
	uint64_t local, import;

	two_clients();
	memset(big, 'b', sizeof(big) - 1);
	local = rig_register(&a, 4, 0);
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	submit_blocks(
	    &a, (struct submit){.number = 1, .region = local, .import = import, .streaming = true});
	post(&a, import, big);
	cr_assert_str_eq(event_letters(&a), "TL");
	terminal_is(&a, 1, KVX_STATUS_TOO_BIG, "was not delivered");
	lost_is(&a, import, KVX_STATUS_TOO_BIG, "4096");
	cr_assert_str_eq(event_letters(&b), "A");
	all_gone();
	KVX_TEST_END();
}

Test(control_import, empty_post_ends_the_import)
{
	uint64_t import;

	two_clients();
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	post(&a, import, "");
	lost_is(&a, import, KVX_STATUS_INVALID, "0 bytes");
	cr_assert_eq(b.n_frames, 0);
	all_gone();
	KVX_TEST_END();
}

Test(control_import, post_through_a_released_import_is_counted_and_dropped)
{
	Kvxp__ImportRelease req = KVXP__IMPORT_RELEASE__INIT;
	uint64_t import;

	two_clients();
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	req.request_id = 6;
	req.import = import;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE, &req.base, -1);
	reply_is(&a, 6, KVX_STATUS_OK, NULL);
	post(&a, import, "late");
	cr_assert_eq(rig.control->stats.stale_requests, 1);
	cr_assert_eq(a.n_frames + b.n_frames, 0);
	all_gone();
	KVX_TEST_END();
}

/* ---- limits */

Test(control_import, names_asked_for_at_other_nodes_are_bounded)
{
	two_clients();
	publish_ok(&b, "engine-1", "");
	a.client->n_finds = KVX_CLIENT_FINDS_MAX - 1;
	find_at(&a, "127.0.0.1:1", "engine-1", 0);
	reply_is(&a, 5, KVX_STATUS_PEER_UNREACHABLE, "no peers");
	a.client->n_finds = KVX_CLIENT_FINDS_MAX;
	find_at(&a, "127.0.0.1:1", "engine-1", 0);
	reply_is(&a, 5, KVX_STATUS_QUOTA, "wait for answers");
	find_ok(&a, "engine-1", ""); /* here: answered at once */
	a.client->n_finds = 0;
	all_gone();
	KVX_TEST_END();
}

/* ---- an import that has ended */

/* A receiver's daemon says that its client is gone, and never takes the region back. */
Test(control_import, import_of_a_receiver_that_never_goes_ends_by_itself)
{
	uint64_t local, import;

	two_clients();
	local = rig_register(&a, 4, 0);
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	submit_blocks(
	    &a, (struct submit){.number = 1, .region = local, .import = import, .streaming = true});
	kvx_import_fail(kvx_client_import(a.client, import), -EPIPE, "the client is gone");
	rig.clock_ns += KVX_IMPORT_LOSS_NS - KVX_SEC;
	rig_turn(&rig);
	cr_assert_eq(a.n_frames, 0, "the loss of the target comes with its fences");
	rig.clock_ns += 2 * KVX_SEC;
	rig_turn(&rig);
	cr_assert_str_eq(event_letters(&a), "TL");
	terminal_is(&a, 1, KVX_STATUS_CLIENT_LOST, "was not delivered");
	lost_is(&a, import, KVX_STATUS_CLIENT_LOST, "the client is gone");
	all_gone();
	KVX_TEST_END();
}

Test(control_import, nothing_is_sent_through_an_import_that_has_ended)
{
	uint64_t import;

	two_clients();
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	send_message(&a, import, "before");
	reply_is(&a, 9, KVX_STATUS_OK, NULL);
	post(&a, import, "");
	lost_is(&a, import, KVX_STATUS_INVALID, "0 bytes");
	send_message(&a, import, "behind");
	reply_is(&a, 9, KVX_STATUS_INVALID, "the import has ended");
	cr_assert_str_eq(event_letters(&b), "M");
	all_gone();
	KVX_TEST_END();
}

/* ---- the order in which an end is told */

/* a writes into b's memory with one region, b has imported another one. */
static void crossed(uint64_t *out_import_of_b)
{
	uint64_t local;

	local = rig_register(&a, 4, 0);
	*out_import_of_b = rig_import(&b, &a, rig_register(&a, 4, KVX_ACCESS_WRITE));
	submit_blocks(
	    &a, (struct submit){.number = 1,
				.region = local,
				.import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE)),
				.streaming = true});
	cr_assert_eq(a.client->xfers.n, 1);
}

Test(control_import, loss_of_a_client_is_told_after_the_arrivals_of_its_transfers)
{
	uint64_t import;
	Kvxp__Event *event;

	two_clients();
	crossed(&import);
	kvx_client_lost(a.client, "killed");
	rig_turn(&rig);
	cr_assert_str_eq(event_letters(&b), "AL");
	event = rig_take_event(&b, KVXP__EVENT_TYPE__EVENT_ARRIVAL);
	cr_assert_eq(event->status, KVX_STATUS_CLIENT_LOST);
	kvxp__event__free_unpacked(event, NULL);
	lost_is(&b, import, KVX_STATUS_CLIENT_LOST, "killed");
	all_gone();
	KVX_TEST_END();
}

Test(control_import, goodbye_of_a_client_is_told_in_the_same_order)
{
	uint64_t import;

	two_clients();
	crossed(&import);
	rig_send_raw(&a, KVXP__FRAME_TYPE__FRAME_GOODBYE, "", 0, -1);
	cr_assert_str_eq(event_letters(&b), "AL");
	kvxp__event__free_unpacked(rig_take_event(&b, KVXP__EVENT_TYPE__EVENT_ARRIVAL), NULL);
	lost_is(&b, import, KVX_STATUS_CLIENT_LOST, "closed");
	all_gone();
	KVX_TEST_END();
}

/* The receiver has gone, but its end is not told yet: the post adds no loss of its own. */
Test(control_import, post_to_a_client_that_is_gone_ends_the_import_once)
{
	uint64_t import;

	two_clients();
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	kvx_client_lost(b.client, "killed");
	post(&a, import, "late");
	cr_assert_str_eq(event_letters(&a), "L");
	lost_is(&a, import, KVX_STATUS_CLIENT_LOST, "killed");
	all_gone();
	KVX_TEST_END();
}

/* ---- labels */

static void submit_labelled(uint64_t number, uint64_t region, uint64_t import, const char *label)
{
	Kvxp__XferSubmit req = KVXP__XFER_SUBMIT__INIT;

	req.xfer = number;
	req.op = KVXP__OP__OP_WRITE;
	req.region = region;
	req.import = import;
	req.streaming = true;
	req.label = (char *)(uintptr_t)label;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT, &req.base, -1);
}

Test(control_import, labels_are_shown_while_and_after_they_run)
{
	static char too_long[KVX_LABEL_BYTES + 1];
	uint64_t region, import;
	Kvxp__Reply *reply;

	two_clients();
	memset(too_long, 'l', sizeof(too_long) - 1);
	region = rig_register(&a, 1, 0);
	import = rig_import(&a, &b, rig_register(&b, 1, KVX_ACCESS_WRITE));
	submit_labelled(1, region, import, "cmpl-17\x07");
	submit_labelled(2, region, import, too_long);
	terminal_is(&a, 2, KVX_STATUS_INVALID, "label is 65 bytes long");
	for (int ended = 0; ended < 2; ended++) {
		query(&a, "transfers");
		reply = rig_take_reply(&a);
		cr_assert_neq(reply, NULL);
		cr_assert(strstr(reply->text, "\"label\":\"cmpl-17?\"") != NULL, "%s", reply->text);
		kvxp__reply__free_unpacked(reply, NULL);
		if (ended)
			break;
		unregister(&a, region);
		reply_is(&a, 9, KVX_STATUS_OK, NULL);
	}
	all_gone();
	KVX_TEST_END();
}
