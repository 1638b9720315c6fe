/* Transfers as a client asks for them: refusals, streams, cancels, and who is told what at the end.
 */
#include "control_fixture.h"

/* ---- transfers */

Test(control_xfer, transfer_within_one_frame_ends_at_once_and_both_are_told)
{
	uint64_t region, import, remote;
	Kvxp__Event *event;

	two_clients();
	region = rig_register(&a, 4, 0);
	remote = rig_register(&b, 4, KVX_ACCESS_WRITE);
	import = rig_import(&a, &b, remote);
	submit_blocks(&a, (struct submit){.number = 1,
					  .region = region,
					  .import = import,
					  .n_blocks = 4,
					  .payload = "blocks 0-3"});
	event = rig_take_event(&a, KVXP__EVENT_TYPE__EVENT_TERMINAL);
	cr_assert_neq(event, NULL);
	cr_assert_eq(event->status, KVX_STATUS_OK, "%s", event->text);
	cr_assert_eq(event->bytes, 4 * 4096);
	cr_assert_eq(event->tag, 4711);
	cr_assert_str_eq(event->transport, "copy");
	cr_assert(event->t_submit_ns <= event->t_end_ns && event->t_submit_ns > 0);
	kvxp__event__free_unpacked(event, NULL);
	event = rig_take_event(&b, KVXP__EVENT_TYPE__EVENT_ARRIVAL);
	cr_assert_neq(event, NULL);
	cr_assert_eq(event->region, remote);
	cr_assert_eq(event->tag, 4711);
	cr_assert_eq(event->payload.len, 10);
	cr_assert_eq(memcmp(event->payload.data, "blocks 0-3", 10), 0);
	kvxp__event__free_unpacked(event, NULL);
	cr_assert_eq(a.client->xfers.n, 0);
	all_gone();
	KVX_TEST_END();
}

Test(control_xfer, refused_submit_gets_exactly_one_terminal_event_with_the_reason)
{
	uint64_t region, import;

	two_clients();
	region = rig_register(&a, 4, 0);
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	submit_blocks(&a, (struct submit){
			      .number = 1, .region = region + 1, .import = import, .n_blocks = 1});
	terminal_is(&a, 1, KVX_STATUS_NOT_FOUND, "local region");
	submit_blocks(&a,
		      (struct submit){.number = 2, .region = region, .import = 99, .n_blocks = 1});
	terminal_is(&a, 2, KVX_STATUS_NOT_FOUND, "import");
	submit_blocks(
	    &a, (struct submit){.number = 3, .region = region, .import = import, .n_blocks = 5});
	terminal_is(&a, 3, KVX_STATUS_RANGE, NULL);
	submit_blocks(&a, (struct submit){.number = 4, .region = region, .import = import});
	terminal_is(&a, 4, KVX_STATUS_INVALID, "neither");
	submit_blocks(&a, (struct submit){.number = 5,
					  .region = region,
					  .import = import,
					  .n_blocks = 1,
					  .op = KVXP__OP__OP_READ});
	terminal_is(&a, 5, KVX_STATUS_ACCESS, NULL);
	submit_blocks(
	    &a,
	    (struct submit){
		.number = 6, .region = region, .import = import, .n_blocks = 1, .require = "warp"});
	terminal_is(&a, 6, KVX_STATUS_NO_PATH, NULL);
	submit_blocks(&a,
		      (struct submit){
			  .number = 7, .region = region, .import = import, .n_blocks = 1, .op = 9});
	terminal_is(&a, 7, KVX_STATUS_INVALID, "op 9");
	cr_assert_eq(rig_count(&a, KVXP__FRAME_TYPE__FRAME_EVENT), 0);
	cr_assert_eq(a.client->xfers.n, 0);
	all_gone();
	KVX_TEST_END();
}

Test(control_xfer, transfer_numbers_must_grow)
{
	two_clients();
	submit_blocks(&a, (struct submit){.number = 5, .region = 1, .import = 1, .n_blocks = 1});
	terminal_is(&a, 5, KVX_STATUS_NOT_FOUND, NULL);
	submit_blocks(&a, (struct submit){.number = 5, .region = 1, .import = 1, .n_blocks = 1});
	error_is(&a, KVX_STATUS_PROTOCOL, "number 5 after 5");
	all_gone();
	KVX_TEST_END();
}

Test(control_xfer, cancel_of_an_ended_transfer_is_ignored_and_of_one_that_never_was_is_not)
{
	Kvxp__XferCancel cancel = KVXP__XFER_CANCEL__INIT;

	two_clients();
	submit_blocks(&a, (struct submit){.number = 1, .region = 1, .import = 1, .n_blocks = 1});
	terminal_is(&a, 1, KVX_STATUS_NOT_FOUND, NULL);
	cancel.xfer = 1;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_XFER_CANCEL, &cancel.base, -1);
	cr_assert_eq(a.n_frames, 0);
	cr_assert_eq(rig.control->stats.stale_requests, 1);
	cancel.xfer = 2;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_XFER_CANCEL, &cancel.base, -1);
	error_is(&a, KVX_STATUS_PROTOCOL, "never was");
	all_gone();
	KVX_TEST_END();
}

Test(control_xfer, stream_ends_after_the_seal_with_its_payload)
{
	Kvxp__XferAppend append = KVXP__XFER_APPEND__INIT;
	Kvxp__BlockList list = KVXP__BLOCK_LIST__INIT;
	Kvxp__XferSeal seal = KVXP__XFER_SEAL__INIT;
	uint32_t local = 1, remote = 2;
	uint64_t region, import;
	Kvxp__Event *event;

	two_clients();
	open_stream(&region, &import);
	list.n_planes = 1;
	list.n_local_blocks = list.n_remote_blocks = 1;
	list.local_blocks = &local;
	list.remote_blocks = &remote;
	append.xfer = 1;
	append.blocks = &list;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_XFER_APPEND, &append.base, -1);
	cr_assert_eq(a.n_frames, 0);
	seal.xfer = 1;
	seal.payload = (ProtobufCBinaryData){4, (uint8_t *)(uintptr_t) "last"};
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_XFER_SEAL, &seal.base, -1);
	terminal_is(&a, 1, KVX_STATUS_OK, NULL);
	event = rig_take_event(&b, KVXP__EVENT_TYPE__EVENT_ARRIVAL);
	cr_assert_neq(event, NULL);
	cr_assert_eq(event->bytes, 4096);
	cr_assert_eq(event->payload.len, 4);
	kvxp__event__free_unpacked(event, NULL);
	all_gone();
	KVX_TEST_END();
}

Test(control_xfer, bad_append_ends_the_stream_with_the_reason)
{
	Kvxp__XferAppend append = KVXP__XFER_APPEND__INIT;
	uint64_t region, import;

	two_clients();
	open_stream(&region, &import);
	append.xfer = 1;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_XFER_APPEND, &append.base, -1);
	terminal_is(&a, 1, KVX_STATUS_INVALID, "neither");
	cr_assert_eq(a.client->xfers.n, 0);
	all_gone();
	KVX_TEST_END();
}

Test(control_xfer, release_of_an_import_cancels_its_transfers_first)
{
	Kvxp__ImportRelease release = KVXP__IMPORT_RELEASE__INIT;
	uint64_t region, import;

	two_clients();
	open_stream(&region, &import);
	release.request_id = 12;
	release.import = import;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE, &release.base, -1);
	cr_assert_eq(a.frames[0].type, KVXP__FRAME_TYPE__FRAME_EVENT, "event before reply");
	terminal_is(&a, 1, KVX_STATUS_CANCELLED, "released");
	reply_is(&a, 12, KVX_STATUS_OK, NULL);
	cr_assert_eq(kvx_idmap_count(a.client->imports), 0);
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE, &release.base, -1);
	reply_is(&a, 12, KVX_STATUS_NOT_FOUND, NULL);
	all_gone();
	KVX_TEST_END();
}

Test(control_xfer, unregister_ends_the_transfers_of_others_and_answers_after_them)
{
	uint64_t region, import;
	Kvxp__Event *event;

	two_clients();
	open_stream(&region, &import);
	unregister(&a, region);
	terminal_is(&a, 1, KVX_STATUS_REGION_LOST, NULL);
	reply_is(&a, 9, KVX_STATUS_OK, NULL);
	event = rig_take_event(&b, KVXP__EVENT_TYPE__EVENT_ARRIVAL);
	cr_assert_neq(event, NULL, "the other engine is told");
	cr_assert_eq(event->status, KVX_STATUS_REGION_LOST);
	kvxp__event__free_unpacked(event, NULL);
	all_gone();
	KVX_TEST_END();
}

Test(control_xfer, loss_of_a_client_is_told_to_the_other_side_and_frees_everything)
{
	uint64_t region, import;
	Kvxp__Event *event;

	two_clients();
	open_stream(&region, &import);
	rig_client_close(&a);
	event = rig_take_event(&b, KVXP__EVENT_TYPE__EVENT_ARRIVAL);
	cr_assert_neq(event, NULL);
	cr_assert_eq(event->status, KVX_STATUS_CLIENT_LOST);
	kvxp__event__free_unpacked(event, NULL);
	cr_assert_eq(kvx_regions_count(kvx_node_regions(rig.node)), 1, "only the other's region");
	all_gone();
	KVX_TEST_END();
}

Test(control_xfer, owner_of_the_target_lost_fails_the_transfer_and_the_import)
{
	uint64_t region, import;

	two_clients();
	open_stream(&region, &import);
	rig_client_close(&b);
	terminal_is(&a, 1, KVX_STATUS_CLIENT_LOST, NULL);
	cr_assert_eq(rig_count(&a, KVXP__FRAME_TYPE__FRAME_EVENT), 1, "import lost, once");
	all_gone();
	KVX_TEST_END();
}

Test(control_xfer, goodbye_ends_it_without_an_error_frame)
{
	uint64_t region, import;
	Kvxp__Event *event;

	two_clients();
	open_stream(&region, &import);
	rig_send_raw(&a, KVXP__FRAME_TYPE__FRAME_GOODBYE, "", 0, -1);
	cr_assert_eq(a.n_frames, 0);
	cr_assert_eq(a.client, NULL);
	event = rig_take_event(&b, KVXP__EVENT_TYPE__EVENT_ARRIVAL);
	cr_assert_eq(event->status, KVX_STATUS_CANCELLED);
	kvxp__event__free_unpacked(event, NULL);
	all_gone();
	KVX_TEST_END();
}

Test(control_xfer, transfers_over_the_limit_are_refused_by_name)
{
	struct kvx_config config;
	uint64_t region, import;

	kvx_config_defaults(&config);
	config.transfers_per_client = 1;
	rig_open(&rig, &config);
	rig_client_hello(&rig, &a);
	rig_client_hello(&rig, &b);
	open_stream(&region, &import);
	submit_blocks(
	    &a, (struct submit){.number = 2, .region = region, .import = import, .n_blocks = 1});
	terminal_is(&a, 2, KVX_STATUS_QUOTA, "transfers_per_client");
	all_gone();
	KVX_TEST_END();
}

Test(control_xfer, closing_the_control_tells_clients_and_ends_them)
{
	uint64_t region, import;

	two_clients();
	open_stream(&region, &import);
	for (unsigned i = 0; i < 2; i++)
		kvx_client_fail(i == 0 ? a.client : b.client, -ECONNRESET, "the daemon stops");
	rig_turn(&rig);
	cr_assert(a.closing && b.closing);
	cr_assert_eq(rig_count(&a, KVXP__FRAME_TYPE__FRAME_ERROR), 1);
	cr_assert_eq(rig_count(&b, KVXP__FRAME_TYPE__FRAME_ERROR), 1);
	all_gone();
	KVX_TEST_END();
}

/* ---- waits */

static void append_waiting(uint64_t number, uint64_t region, uint64_t offset)
{
	static uint32_t block;
	Kvxp__XferAppend append = KVXP__XFER_APPEND__INIT;
	Kvxp__BlockList list = KVXP__BLOCK_LIST__INIT;
	Kvxp__Wait wait = KVXP__WAIT__INIT;

	list.n_planes = 1;
	list.n_local_blocks = list.n_remote_blocks = 1;
	list.local_blocks = list.remote_blocks = &block;
	wait.kind = KVXP__WAIT_KIND__WAIT_FLAG;
	wait.region = region;
	wait.offset = offset;
	wait.value = 1;
	append.xfer = number;
	append.blocks = &list;
	append.wait = &wait;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_XFER_APPEND, &append.base, -1);
}

static uint64_t *flag_of(uint64_t region, uint64_t offset)
{
	const struct kvx_region *r = kvx_region_find(kvx_node_regions(rig.node), region);

	return (uint64_t *)(void *)(r->mem.addr + offset);
}

Test(control_xfer, list_that_waits_moves_when_its_flag_is_set)
{
	Kvxp__XferSeal seal = KVXP__XFER_SEAL__INIT;
	uint64_t region, import;

	two_clients();
	open_stream(&region, &import);
	append_waiting(1, region, 8192);
	seal.xfer = 1;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_XFER_SEAL, &seal.base, -1);
	cr_assert_eq(rig_count(&a, KVXP__FRAME_TYPE__FRAME_EVENT), 0);
	*flag_of(region, 8192) = 1;
	rig_turn(&rig);
	terminal_is(&a, 1, KVX_STATUS_OK, NULL);
	all_gone();
	KVX_TEST_END();
}

Test(control_xfer, waits_are_limited_and_of_own_regions)
{
	uint64_t region, import, remote;

	two_clients();
	rig.config.waits_per_client = 2;
	open_stream(&region, &import);
	remote = rig_register(&b, 1, 0);
	append_waiting(1, remote, 0);
	terminal_is(&a, 1, KVX_STATUS_NOT_FOUND, "not one of this client");
	for (uint64_t number = 2; number < 5; number++) {
		submit_blocks(&a, (struct submit){.number = number,
						  .region = region,
						  .import = import,
						  .streaming = true});
		append_waiting(number, region, 0);
	}
	terminal_is(&a, 4, KVX_STATUS_QUOTA, "waits_per_client");
	unregister(&a, region);
	terminal_is(&a, 3, KVX_STATUS_REGION_LOST, NULL);
	terminal_is(&a, 2, KVX_STATUS_REGION_LOST, NULL);
	reply_is(&a, 9, KVX_STATUS_OK, NULL);
	all_gone();
	KVX_TEST_END();
}
