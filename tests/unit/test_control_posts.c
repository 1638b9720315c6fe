/* Messages to a receiver on the same node that is full: they wait, in order, and nothing else does.
 */
#include "control_posts.h"
#include "fault_alloc.h"

Test(control_posts, to_a_receiver_that_is_full_wait_and_arrive_in_order)
{
	open_import(NULL);
	post_number(1);
	fill_receiver();
	for (unsigned i = 2; i <= 100; i++)
		post_number(i);
	rig_run_clock(&rig, 2 * KVX_SEC);
	arrived(1, 1);
	cr_assert_gt(a.client->posted_bytes, 99 * 512);
	b.pending_bytes = 0;
	post_number(101); /* there is room, but it is not its turn */
	rig_run_clock(&rig, KVX_SEC);
	arrived(2, 101);
	cr_assert_eq(a.n_frames, 0, "the sender was told something");
	cr_assert_eq(a.client->posted_bytes, 0);
	close_all();
}

/* Its own ends of transfers would end a client that is full to the brim with messages. */
Test(control_posts, leave_room_for_the_ends_of_transfers)
{
	uint64_t local;

	open_import(NULL);
	local = rig_register(&a, 4, 0);
	fill_receiver();
	post_number(1);
	submit_blocks(
	    &a, (struct submit){.number = 1, .region = local, .import = import, .n_blocks = 4});
	terminal_is(&a, 1, KVX_STATUS_OK, ""); /* a's other requests go on */
	cr_assert_str_eq(event_letters(&b), "A");
	rig_client_clear(&b);
	b.pending_bytes = 0;
	rig_run_clock(&rig, KVX_SEC);
	arrived(1, 1);
	close_all();
}

Test(control_posts, other_imports_of_the_client_do_not_wait)
{
	uint64_t own;

	open_import(NULL);
	own = rig_import(&a, &a, rig_register(&a, 4, KVX_ACCESS_WRITE));
	fill_receiver();
	post_number(1);
	post(&a, own, "2");
	cr_assert_str_eq(event_letters(&a), "M");
	rig_client_clear(&a);
	b.pending_bytes = 0;
	rig_run_clock(&rig, KVX_SEC);
	arrived(1, 1);
	close_all();
}

Test(control_posts, beyond_the_bound_of_bytes_end_their_import_alone)
{
	struct kvx_config config;
	uint64_t own;
	unsigned n = 0;

	kvx_config_defaults(&config);
	config.posted_bytes_per_client = 64 * 1024;
	open_import(&config);
	own = rig_import(&a, &a, rig_register(&a, 4, KVX_ACCESS_WRITE));
	fill_receiver();
	while (a.n_frames == 0) {
		post_number(++n);
		cr_assert_leq(n, 128);
	}
	cr_assert_gt(n, 100);
	lost_is(&a, import, KVX_STATUS_QUOTA, "posted_bytes_per_client");
	cr_assert_eq(a.client->posted_bytes, 0, "what waited goes with its import");
	post(&a, own, "own");
	cr_assert_str_eq(event_letters(&a), "M");
	b.pending_bytes = 0;
	rig_run_clock(&rig, KVX_SEC);
	arrived(1, 0);
	close_all();
}

Test(control_posts, receiver_that_reads_a_little_now_and_then_is_not_given_up)
{
	open_import(NULL);
	fill_receiver();
	for (unsigned i = 1; i <= 10; i++)
		post_number(i);
	for (unsigned i = 1; i <= 3; i++) {
		rig_run_clock(&rig, KVX_POSTS_STUCK_NS - KVX_SEC);
		cr_assert_eq(a.n_frames, 0, "given up");
		b.pending_bytes = 0;
		rig_run_clock(&rig, KVX_SEC / 2);
		fill_receiver();
		post_number(10 + i);
	}
	rig_run_clock(&rig, KVX_POSTS_STUCK_NS + KVX_SEC);
	lost_is(&a, import, KVX_STATUS_QUOTA, "does not read its events");
	arrived(1, 12);
	close_all();
}

Test(control_posts, message_that_is_sent_goes_behind_those_that_wait)
{
	open_import(NULL);
	fill_receiver();
	post_number(1);
	b.pending_bytes = 0;
	send_message(&a, import, "2");
	cr_assert_eq(a.n_frames + b.n_frames, 0, "it has overtaken the other");
	post_number(3);
	rig_run_clock(&rig, KVX_SEC);
	reply_is(&a, 9, KVX_STATUS_OK, NULL);
	arrived(1, 3);
	cr_assert_eq(a.client->n_calls, 0);
	close_all();
}

Test(control_posts, sent_messages_that_wait_are_bounded_too)
{
	open_import(NULL);
	fill_receiver();
	post_number(1);
	a.client->n_calls = KVX_CLIENT_CALLS_MAX;
	send_message(&a, import, "2");
	reply_is(&a, 9, KVX_STATUS_QUOTA, "messages and pings are unanswered");
	a.client->n_calls = 0;
	close_all();
}

Test(control_posts, released_import_drops_what_waits_and_answers_what_was_sent)
{
	Kvxp__ImportRelease req = KVXP__IMPORT_RELEASE__INIT;

	open_import(NULL);
	fill_receiver();
	post_number(1);
	send_message(&a, import, "2");
	req.request_id = 6;
	req.import = import;
	target = kvx_target_ref(target);
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE, &req.base, -1);
	reply_is(&a, 9, KVX_STATUS_CANCELLED, "released");
	reply_is(&a, 6, KVX_STATUS_OK, NULL);
	b.pending_bytes = 0;
	rig_run_clock(&rig, KVX_SEC);
	arrived(1, 0);
	cr_assert_eq(a.client->posted_bytes, 0);
	kvx_target_unref(target);
	all_gone();
	KVX_TEST_END();
}

Test(control_posts, client_that_ends_leaves_nothing_of_what_waits)
{
	open_import(NULL);
	fill_receiver();
	for (unsigned i = 1; i <= 100; i++)
		post_number(i);
	rig_client_close(&a);
	b.pending_bytes = 0;
	rig_run_clock(&rig, KVX_SEC);
	cr_assert_eq(b.n_frames, 0);
	rig_client_close(&b);
	rig_end(&rig);
	KVX_TEST_END();
}

/* The loss of the receiver is the loss of what waits for it, and is told once. */
Test(control_posts, wait_for_a_receiver_that_ends_no_longer)
{
	open_import(NULL);
	fill_receiver();
	post_number(1);
	send_message(&a, import, "2");
	rig_client_close(&b);
	rig_run_clock(&rig, KVX_SEC);
	reply_is(&a, 9, KVX_STATUS_CLIENT_LOST, NULL);
	lost_is(&a, import, KVX_STATUS_CLIENT_LOST, "the client is gone");
	cr_assert_eq(a.n_frames, 0);
	cr_assert_eq(a.client->posted_bytes, 0);
	rig_client_close(&a);
	rig_end(&rig);
	KVX_TEST_END();
}

Test(control_posts, memory_that_is_not_there_ends_the_import_at_once)
{
	Kvxp__MessagePost req = KVXP__MESSAGE_POST__INIT;
	bool faulted = true;
	uint8_t body[64];
	unsigned n;

	for (n = 1; faulted; n++) {
		open_import(NULL);
		fill_receiver();
		req.import = import;
		req.data = (ProtobufCBinaryData){1, (uint8_t *)(uintptr_t) "1"};
		fault_alloc_arm(n);
		rig_send_raw(&a, KVXP__FRAME_TYPE__FRAME_MESSAGE_POST, body,
			     (uint32_t)kvxp__message_post__pack(&req, body), -1);
		rig_run_clock(&rig, 100 * KVX_MS);
		faulted = fault_alloc_disarm();
		b.pending_bytes = 0;
		rig_run_clock(&rig, KVX_SEC);
		if (faulted && a.client != NULL)
			lost_is(&a, import, KVX_STATUS_NO_MEMORY, "was not delivered");
		cr_assert_eq(a.n_frames, 0);
		arrived(1, faulted ? 0 : 1);
		rig_client_close(&a);
		rig_client_close(&b);
		rig_close(&rig);
		cr_assert_lt(n, 20);
	}
	cr_assert_gt(n, 2, "no allocation was reached");
	uv_library_shutdown();
	KVX_TEST_END();
}
