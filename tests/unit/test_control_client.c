/* Clients over a real node: what they may do, what they are told, and that nothing of them stays.
 */
#include "control_fixture.h"

/* ---- HELLO */

Test(client, hello_tells_limits_and_hands_over_the_pidfd)
{
	Kvxp__Hello hello = KVXP__HELLO__INIT;
	Kvxp__HelloReply *reply;

	rig_open(&rig, NULL);
	cr_assert_eq(rig_client_open(&rig, &a), 0);
	hello.version_min = 1;
	hello.version_max = 7;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_HELLO, &hello.base, -1);

	cr_assert_eq(a.n_frames, 1);
	cr_assert_eq(a.frames[0].type, KVXP__FRAME_TYPE__FRAME_HELLO_REPLY);
	cr_assert(a.frames[0].has_fd);
	reply = kvxp__hello_reply__unpack(NULL, a.frames[0].len, a.frames[0].body);
	cr_assert_eq(reply->version, 1);
	cr_assert_eq(reply->max_ops, rig.config.ops);
	cr_assert_eq(reply->epoch, 77);
	cr_assert_eq(reply->node_id.len, 16);
	cr_assert_eq(a.max_body, rig.config.frame_bytes);
	kvxp__hello_reply__free_unpacked(reply, NULL);
	rig_client_close(&a);
	rig_end(&rig);
	KVX_TEST_END();
}

Test(client, hello_of_other_versions_is_refused_naming_both_ranges)
{
	Kvxp__Hello hello = KVXP__HELLO__INIT;

	rig_open(&rig, NULL);
	cr_assert_eq(rig_client_open(&rig, &a), 0);
	hello.version_min = 2;
	hello.version_max = 3;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_HELLO, &hello.base, -1);

	error_is(&a, KVX_STATUS_VERSION, "2 to 3, this daemon 1 to 1");
	rig_client_close(&a);
	rig_end(&rig);
	KVX_TEST_END();
}

Test(client, first_frame_that_is_not_hello_ends_it)
{
	rig_open(&rig, NULL);
	cr_assert_eq(rig_client_open(&rig, &a), 0);
	rig_send_raw(&a, KVXP__FRAME_TYPE__FRAME_QUERY, "", 0, -1);

	error_is(&a, KVX_STATUS_PROTOCOL, "first frame must be HELLO");
	rig_client_close(&a);
	rig_end(&rig);
	KVX_TEST_END();
}

Test(client, silence_before_hello_ends_it)
{
	rig_open(&rig, NULL);
	cr_assert_eq(rig_client_open(&rig, &a), 0);
	rig.clock_ns += KVX_HELLO_TIMEOUT_NS;
	rig_turn(&rig);
	cr_assert(a.closing);
	error_is(((void)(kvx_client_destroy(a.client), a.client = NULL), &a), KVX_STATUS_PROTOCOL,
		 "no HELLO within 10 s");
	rig_client_close(&a);
	rig_end(&rig);
	KVX_TEST_END();
}

Test(client, over_the_limit_is_refused_by_name_and_counted_back)
{
	struct kvx_config config;
	Kvxp__Hello hello = KVXP__HELLO__INIT;

	kvx_config_defaults(&config);
	config.clients = 1;
	rig_open(&rig, &config);
	rig_client_hello(&rig, &a);
	cr_assert_eq(rig_client_open(&rig, &b), 0);
	hello.version_min = hello.version_max = 1;
	rig_send(&b, KVXP__FRAME_TYPE__FRAME_HELLO, &hello.base, -1);
	error_is(&b, KVX_STATUS_QUOTA, "client limit 1 reached ([limits] clients)");
	rig_client_close(&b);

	rig_client_close(&a); /* now there is room again */
	rig_client_hello(&rig, &b);
	all_gone();
	KVX_TEST_END();
}

Test(client, unknown_frame_type_is_answered_unsupported)
{
	two_clients();
	rig_send_raw(&a, 77, "", 0, -1);
	error_is(&a, KVX_STATUS_UNSUPPORTED, "77");
	all_gone();
	KVX_TEST_END();
}

Test(client, file_descriptor_where_none_belongs_ends_it_and_is_closed)
{
	Kvxp__Query query = KVXP__QUERY__INIT;

	two_clients();
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_QUERY, &query.base, rig_memfd(4096));
	error_is(&a, KVX_STATUS_PROTOCOL, "QUERY carries 1 file descriptors");
	all_gone();
	KVX_TEST_END();
}

Test(client, body_that_is_no_message_ends_it)
{
	two_clients();
	rig_send_raw(&a, KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT, "\xff\xff\xff", 3, -1);
	error_is(&a, KVX_STATUS_PROTOCOL, "not a XferSubmit");
	all_gone();
	KVX_TEST_END();
}

/* ---- regions */

Test(client, register_without_fd_is_refused)
{
	Kvxp__RegionRegister req = KVXP__REGION_REGISTER__INIT;

	two_clients();
	req.request_id = 5;
	req.kind = KVX_MEM_HOST;
	req.len = 4096;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, &req.base, -1);
	reply_is(&a, 5, KVX_STATUS_BAD_FD, "exactly one file descriptor");
	all_gone();
	KVX_TEST_END();
}

Test(client, register_of_unknown_kind_is_refused)
{
	Kvxp__RegionRegister req = KVXP__REGION_REGISTER__INIT;

	two_clients();
	req.request_id = 5;
	req.kind = 99;
	req.len = 4096;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, &req.base, rig_memfd(4096));
	reply_is(&a, 5, KVX_STATUS_UNSUPPORTED, "kind 99");
	all_gone();
	KVX_TEST_END();
}

Test(client, regions_over_the_quota_are_refused_by_name)
{
	struct kvx_config config;
	Kvxp__RegionRegister req = KVXP__REGION_REGISTER__INIT;

	kvx_config_defaults(&config);
	config.regions_per_client = 1;
	rig_open(&rig, &config);
	rig_client_hello(&rig, &a);
	rig_client_hello(&rig, &b);
	rig_register(&a, 1, KVX_ACCESS_READ);
	req.request_id = 6;
	req.kind = KVX_MEM_HOST;
	req.len = 4096;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, &req.base, rig_memfd(4096));
	reply_is(&a, 6, KVX_STATUS_QUOTA, "regions_per_client");
	all_gone();
	KVX_TEST_END();
}

Test(client, region_of_another_client_is_not_found)
{
	uint64_t region;

	two_clients();
	region = rig_register(&a, 4, KVX_ACCESS_READ);
	unregister(&b, region);
	reply_is(&b, 9, KVX_STATUS_NOT_FOUND, NULL);
	cr_assert_eq(kvx_regions_count(kvx_node_regions(rig.node)), 1);
	all_gone();
	KVX_TEST_END();
}

Test(client, unregister_gives_the_quota_back)
{
	uint64_t region;

	two_clients();
	region = rig_register(&a, 4, 0);
	cr_assert_eq(a.client->region_bytes, 4 * 4096);
	unregister(&a, region);
	reply_is(&a, 9, KVX_STATUS_OK, NULL);
	cr_assert_eq(a.client->region_bytes, 0);
	cr_assert_eq(a.client->n_regions, 0);
	unregister(&a, region);
	reply_is(&a, 9, KVX_STATUS_NOT_FOUND, NULL);
	all_gone();
	KVX_TEST_END();
}

Test(client, export_without_access_is_refused)
{
	Kvxp__RegionExport req = KVXP__REGION_EXPORT__INIT;

	two_clients();
	req.request_id = 8;
	req.region = rig_register(&a, 1, 0);
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_REGION_EXPORT, &req.base, -1);
	reply_is(&a, 8, KVX_STATUS_ACCESS, NULL);
	all_gone();
	KVX_TEST_END();
}

/* ---- imports */

static void import_desc(struct rig_client *rc, struct kvx_desc *desc, uint64_t check_region)
{
	Kvxp__Import req = KVXP__IMPORT__INIT;
	uint8_t bytes[KVX_DESC_BYTES];

	kvx_desc_pack(desc, bytes);
	req.request_id = 11;
	req.descriptor = (ProtobufCBinaryData){sizeof(bytes), bytes};
	req.check_region = check_region;
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_IMPORT, &req.base, -1);
}

static struct kvx_desc desc_of(uint64_t region_id)
{
	struct kvx_region *region = kvx_region_find(kvx_node_regions(rig.node), region_id);
	struct kvx_desc desc = {.epoch = 77, .region = region_id};

	memset(desc.node_id, 0x4e, sizeof(desc.node_id));
	desc.len_bytes = region->mem.len_bytes;
	desc.access = region->access;
	desc.mem_kind = KVX_MEM_HOST;
	memcpy(desc.token, region->token, sizeof(desc.token));
	return desc;
}

Test(client, import_checks_epoch_region_and_token)
{
	struct kvx_desc desc;

	two_clients();
	desc = desc_of(rig_register(&b, 4, KVX_ACCESS_READ));
	desc.epoch = 76;
	import_desc(&a, &desc, 0);
	reply_is(&a, 11, KVX_STATUS_STALE, "earlier start");
	desc.epoch = 77;
	desc.region++;
	import_desc(&a, &desc, 0);
	reply_is(&a, 11, KVX_STATUS_NOT_FOUND, "gone");
	desc.region--;
	desc.token[15] ^= 1;
	import_desc(&a, &desc, 0);
	reply_is(&a, 11, KVX_STATUS_ACCESS, "token");
	desc.token[15] ^= 1;
	desc.node_id[0] ^= 1;
	import_desc(&a, &desc, 0);
	reply_is(&a, 11, KVX_STATUS_PEER_UNREACHABLE, "another node");
	desc.node_id[0] ^= 1;
	import_desc(&a, &desc, 0);
	reply_is(&a, 11, KVX_STATUS_OK, NULL);
	cr_assert_eq(kvx_idmap_count(a.client->imports), 1, "refused imports leave nothing");
	all_gone();
	KVX_TEST_END();
}

Test(client, import_with_another_layout_is_refused_in_words)
{
	Kvxp__RegionRegister req = KVXP__REGION_REGISTER__INIT;
	Kvxp__Layout layout = KVXP__LAYOUT__INIT;
	Kvxp__Plane plane = KVXP__PLANE__INIT;
	Kvxp__Plane *planes = &plane;
	struct kvx_desc desc;
	Kvxp__Reply *reply;

	two_clients();
	plane.name = (char *)(uintptr_t) "kv";
	plane.block_stride = plane.block_bytes = 8192;
	layout.n_planes = 1;
	layout.planes = &planes;
	req.request_id = 4;
	req.kind = KVX_MEM_HOST;
	req.len = 8192 * 4;
	req.access = KVX_ACCESS_WRITE;
	req.layout = &layout;
	rig_send(&b, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, &req.base, rig_memfd(req.len));
	reply = rig_take_reply(&b);
	desc = desc_of(reply->id);
	kvxp__reply__free_unpacked(reply, NULL);

	import_desc(&a, &desc, rig_register(&a, 4, 0));

	reply_is(&a, 11, KVX_STATUS_LAYOUT, "block_bytes 4096 here, 8192 there");
	all_gone();
	KVX_TEST_END();
}

Test(client, imports_over_the_limit_are_refused_by_name)
{
	struct kvx_config config;
	struct kvx_desc desc;

	kvx_config_defaults(&config);
	config.imports_per_client = 1;
	rig_open(&rig, &config);
	rig_client_hello(&rig, &a);
	rig_client_hello(&rig, &b);
	desc = desc_of(rig_register(&b, 4, KVX_ACCESS_READ));
	import_desc(&a, &desc, 0);
	reply_is(&a, 11, KVX_STATUS_OK, NULL);
	import_desc(&a, &desc, 0);
	reply_is(&a, 11, KVX_STATUS_QUOTA, "imports_per_client");
	all_gone();
	KVX_TEST_END();
}

Test(client, import_is_lost_once_when_the_region_is_unregistered)
{
	Kvxp__Event *event;
	uint64_t region, import;

	two_clients();
	region = rig_register(&b, 4, KVX_ACCESS_WRITE);
	import = rig_import(&a, &b, region);
	unregister(&b, region);
	reply_is(&b, 9, KVX_STATUS_OK, NULL);
	event = rig_take_event(&a, KVXP__EVENT_TYPE__EVENT_IMPORT_LOST);
	cr_assert_neq(event, NULL);
	cr_assert_eq(event->import, import);
	cr_assert_eq(event->status, KVX_STATUS_REGION_LOST);
	kvxp__event__free_unpacked(event, NULL);
	cr_assert_eq(rig_count(&a, KVXP__FRAME_TYPE__FRAME_EVENT), 0, "told twice");
	all_gone();
	KVX_TEST_END();
}

/* ---- messages, queries, drain, the end */

Test(client, one_that_does_not_read_is_disconnected_and_the_others_are_not)
{
	uint64_t region, import;

	two_clients();
	region = rig_register(&a, 4, 0);
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	b.pending_bytes = rig.config.events_bytes + 1;
	submit_blocks(
	    &a, (struct submit){.number = 1, .region = region, .import = import, .n_blocks = 1});
	terminal_is(&a, 1, KVX_STATUS_OK, NULL);
	cr_assert(b.closing);
	kvx_client_destroy(b.client);
	b.client = NULL;
	error_is(&b, KVX_STATUS_QUOTA, "events_bytes");
	cr_assert(kvx_client_takes_frames(a.client));
	cr_assert_eq(rig.control->stats.slow_readers, 1);
	all_gone();
	KVX_TEST_END();
}

Test(client, drain_is_told_once_and_refuses_new_transfers)
{
	uint64_t region, import;
	Kvxp__Event *event;

	two_clients();
	region = rig_register(&a, 4, 0);
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	query(&b, "drain");
	reply_is(&b, 20, KVX_STATUS_OK, "draining");
	query(&b, "drain");
	reply_is(&b, 20, KVX_STATUS_OK, "draining");
	event = rig_take_event(&a, KVXP__EVENT_TYPE__EVENT_DRAINING);
	cr_assert_neq(event, NULL);
	kvxp__event__free_unpacked(event, NULL);
	submit_blocks(
	    &a, (struct submit){.number = 1, .region = region, .import = import, .n_blocks = 1});
	terminal_is(&a, 1, KVX_STATUS_DRAINING, NULL);
	cr_assert_eq(rig.control->stats.refused_xfers, 1);
	cr_assert_eq(a.n_frames, 0);
	query(&b, "undrain");
	submit_blocks(
	    &a, (struct submit){.number = 2, .region = region, .import = import, .n_blocks = 1});
	terminal_is(&a, 2, KVX_STATUS_OK, NULL);
	cr_assert_eq(rig.n_draining, 2);
	all_gone();
	KVX_TEST_END();
}

Test(client, admin_verbs_are_refused_to_other_users)
{
	two_clients();
	a.client->uid = 12345;
	if (getuid() == 12345)
		cr_skip_test("the user of this test is the one it pretends not to be");
	query(&a, "drain");
	reply_is(&a, 20, KVX_STATUS_ACCESS, "you are uid 12345");
	cr_assert_not(kvx_control_is_draining(rig.control));
	query(&a, "status");
	reply_is(&a, 20, KVX_STATUS_OK, NULL);
	all_gone();
	KVX_TEST_END();
}

Test(client, message_reaches_the_owner_of_the_region)
{
	Kvxp__MessageSend req = KVXP__MESSAGE_SEND__INIT;
	Kvxp__Event *event;
	uint64_t remote;

	two_clients();
	remote = rig_register(&b, 4, KVX_ACCESS_WRITE);
	req.request_id = 30;
	req.import = rig_import(&a, &b, remote);
	req.data = (ProtobufCBinaryData){7, (uint8_t *)(uintptr_t) "release"};
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_MESSAGE_SEND, &req.base, -1);
	reply_is(&a, 30, KVX_STATUS_OK, NULL);
	event = rig_take_event(&b, KVXP__EVENT_TYPE__EVENT_MESSAGE);
	cr_assert_neq(event, NULL);
	cr_assert_eq(event->region, remote);
	cr_assert_eq(event->payload.len, 7);
	kvxp__event__free_unpacked(event, NULL);
	b.pending_bytes = rig.config.events_bytes + 1;
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_MESSAGE_SEND, &req.base, -1);
	reply_is(&a, 30, KVX_STATUS_QUOTA, "does not read");
	cr_assert(kvx_client_takes_frames(b.client), "a sender cannot end the receiver");
	all_gone();
	KVX_TEST_END();
}

Test(client, every_query_gives_an_object_with_its_names)
{
	static const char *const expect[][2] = {
	    {"status", "\"state\":\"running\""}, {"clients", "\"name\":\"rig\""},
	    {"regions", "\"access\":\"rw\""},    {"transfers", "\"live\":[{"},
	    {"peers", "\"peers\":[]"},           {"stats", "\"xfers_accepted\":1"},
	    {"devices", "\"devices\":["},        {"config", "\"limits.clients\""},
	};
	uint64_t region, import;

	two_clients();
	rig_register(&b, 1, KVX_ACCESS_READ | KVX_ACCESS_WRITE);
	open_stream(&region, &import);
	for (size_t i = 0; i < sizeof(expect) / sizeof(expect[0]); i++) {
		Kvxp__Reply *reply;
		struct json_object *root;

		query(&a, expect[i][0]);
		reply = rig_take_reply(&a);
		cr_assert_neq(reply, NULL);
		root = json_tokener_parse(reply->text);
		cr_assert(json_object_is_type(root, json_type_object), "%s", expect[i][0]);
		json_object_put(root);
		cr_assert(strstr(reply->text, expect[i][1]) != NULL, "%s: %s", expect[i][0],
			  reply->text);
		kvxp__reply__free_unpacked(reply, NULL);
	}
	query(&a, "sing");
	reply_is(&a, 20, KVX_STATUS_UNSUPPORTED, "status, clients");
	all_gone();
	KVX_TEST_END();
}

Test(client, names_are_made_printable)
{
	Kvxp__Hello hello = KVXP__HELLO__INIT;

	rig_open(&rig, NULL);
	cr_assert_eq(rig_client_open(&rig, &a), 0);
	hello.version_min = hello.version_max = 1;
	hello.name = (char *)(uintptr_t) "a\x1b[2J\"\xc3\xa9\xff";
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_HELLO, &hello.base, -1);
	cr_assert_str_eq(a.client->name, "a?[2J\"\xc3\xa9?");
	rig_client_clear(&a);
	rig_client_close(&a);
	rig_end(&rig);
	KVX_TEST_END();
}
