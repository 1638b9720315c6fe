/* Clients over a real node: what they may do, what they are told, and that nothing of them stays.
 */
#include "control_rig.h"
#include "test_end.h"

#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

#include "base/idmap.h"
#include "control/query.h"

static struct rig rig;
static struct rig_client a, b;

static void two_clients(void)
{
	rig_open(&rig, NULL);
	rig_client_hello(&rig, &a);
	rig_client_hello(&rig, &b);
}

static void all_gone(void)
{
	rig_client_close(&a);
	rig_client_close(&b);
	cr_assert_eq(kvx_regions_count(kvx_node_regions(rig.node)), 0);
	cr_assert_eq(kvx_xfers_count(kvx_node_xfers(rig.node)), 0);
	cr_assert_eq(kvx_control_clients(rig.control), 0);
	rig_end(&rig);
}

/* Takes a reply and checks it. */
static void reply_is(struct rig_client *rc, uint32_t request_id, enum kvx_status status,
		     const char *text)
{
	Kvxp__Reply *reply = rig_take_reply(rc);

	cr_assert_neq(reply, NULL, "no reply");
	cr_assert_eq(reply->request_id, request_id);
	cr_assert_eq(reply->status, status, "%s: %s", kvx_status_name(reply->status), reply->text);
	cr_assert(text == NULL || strstr(reply->text, text) != NULL, "'%s' not in '%s'", text,
		  reply->text);
	kvxp__reply__free_unpacked(reply, NULL);
}

/* The client was told this and is gone. */
static void error_is(struct rig_client *rc, enum kvx_status status, const char *text)
{
	Kvxp__Error *error = rig_take_error(rc);

	cr_assert_neq(error, NULL, "no error frame");
	cr_assert_eq(error->status, status, "%s: %s", kvx_status_name(error->status), error->text);
	cr_assert(strstr(error->text, text) != NULL, "'%s' not in '%s'", text, error->text);
	kvxp__error__free_unpacked(error, NULL);
	cr_assert(rc->stopped && rc->client == NULL, "the client lives");
}

static void terminal_is(struct rig_client *rc, uint64_t xfer, enum kvx_status status,
			const char *text)
{
	Kvxp__Event *event = rig_take_event(rc, KVXP__EVENT_TYPE__EVENT_TERMINAL);

	cr_assert_neq(event, NULL, "no terminal event");
	cr_assert_eq(event->xfer, xfer);
	cr_assert_eq(event->status, status, "%s: %s", kvx_status_name(event->status), event->text);
	cr_assert(text == NULL || strstr(event->text, text) != NULL, "'%s' not in '%s'", text,
		  event->text);
	kvxp__event__free_unpacked(event, NULL);
}

struct submit {
	uint64_t number, region, import;
	uint32_t n_blocks;
	bool streaming;
	const char *payload;
	const char *require;
	int op;
};
#define MAX_SUBMIT_BLOCKS 512

static void submit_blocks(struct rig_client *rc, struct submit s)
{
	static uint32_t ids[MAX_SUBMIT_BLOCKS];
	Kvxp__XferSubmit req = KVXP__XFER_SUBMIT__INIT;
	Kvxp__BlockList list = KVXP__BLOCK_LIST__INIT;

	for (uint32_t i = 0; i < s.n_blocks; i++)
		ids[i] = i;
	list.n_planes = 1;
	list.n_local_blocks = s.n_blocks;
	list.n_remote_blocks = s.n_blocks;
	list.local_blocks = ids;
	list.remote_blocks = ids;
	req.xfer = s.number;
	req.op = s.op != 0 ? (Kvxp__Op)s.op : KVXP__OP__OP_WRITE;
	req.region = s.region;
	req.import = s.import;
	req.tag = 4711;
	req.streaming = s.streaming;
	req.blocks = s.n_blocks > 0 ? &list : NULL;
	if (s.require != NULL)
		req.require = (char *)(uintptr_t)s.require;
	if (s.payload != NULL)
		req.payload =
		    (ProtobufCBinaryData){strlen(s.payload), (uint8_t *)(uintptr_t)s.payload};
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT, &req.base, -1);
}

static void unregister(struct rig_client *rc, uint64_t region)
{
	Kvxp__RegionUnregister req = KVXP__REGION_UNREGISTER__INIT;

	req.request_id = 9;
	req.region = region;
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER, &req.base, -1);
}

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

/* ---- transfers */

Test(client, transfer_within_one_frame_ends_at_once_and_both_are_told)
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

Test(client, refused_submit_gets_exactly_one_terminal_event_with_the_reason)
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

Test(client, transfer_numbers_must_grow)
{
	two_clients();
	submit_blocks(&a, (struct submit){.number = 5, .region = 1, .import = 1, .n_blocks = 1});
	terminal_is(&a, 5, KVX_STATUS_NOT_FOUND, NULL);
	submit_blocks(&a, (struct submit){.number = 5, .region = 1, .import = 1, .n_blocks = 1});
	error_is(&a, KVX_STATUS_PROTOCOL, "number 5 after 5");
	all_gone();
	KVX_TEST_END();
}

Test(client, cancel_of_an_ended_transfer_is_ignored_and_of_one_that_never_was_is_not)
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

static void open_stream(uint64_t *out_region, uint64_t *out_import)
{
	*out_region = rig_register(&a, 4, 0);
	*out_import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	submit_blocks(
	    &a, (struct submit){
		    .number = 1, .region = *out_region, .import = *out_import, .streaming = true});
	cr_assert_eq(a.client->xfers.n, 1, "the stream is open");
}

Test(client, stream_ends_after_the_seal_with_its_payload)
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

Test(client, bad_append_ends_the_stream_with_the_reason)
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

Test(client, release_of_an_import_cancels_its_transfers_first)
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

Test(client, unregister_ends_the_transfers_of_others_and_answers_after_them)
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

Test(client, loss_of_a_client_is_told_to_the_other_side_and_frees_everything)
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

Test(client, owner_of_the_target_lost_fails_the_transfer_and_the_import)
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

Test(client, goodbye_ends_it_without_an_error_frame)
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

Test(client, transfers_over_the_limit_are_refused_by_name)
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

/* ---- drain, messages, queries */

static void query(struct rig_client *rc, const char *verb)
{
	Kvxp__Query req = KVXP__QUERY__INIT;

	req.request_id = 20;
	req.verb = (char *)(uintptr_t)verb;
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_QUERY, &req.base, -1);
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

Test(client, closing_the_control_tells_clients_and_ends_them)
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
