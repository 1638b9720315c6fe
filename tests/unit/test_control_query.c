/* What queries say of devices, lanes, refused transfers and lists that wait. */
#include "control_fixture.h"

#include <json-c/json.h>

static struct json_object *answer(struct rig_client *rc, const char *verb)
{
	struct json_object *root;
	Kvxp__Reply *reply;

	query(rc, verb);
	reply = rig_take_reply(rc);
	cr_assert_neq(reply, NULL);
	cr_assert_eq(reply->status, KVX_STATUS_OK, "%s", reply->text);
	root = json_tokener_parse(reply->text);
	cr_assert_neq(root, NULL);
	kvxp__reply__free_unpacked(reply, NULL);
	return root;
}

static struct json_object *member(struct json_object *obj, const char *name)
{
	struct json_object *value = NULL;

	cr_assert(json_object_object_get_ex(obj, name, &value), "no %s in %s", name,
		  json_object_to_json_string(obj));
	return value;
}

static const char *text_of(struct json_object *obj, const char *name)
{
	return json_object_get_string(member(obj, name));
}

/* Row i of a list. */
static struct json_object *row_of(struct json_object *root, const char *list, size_t i)
{
	struct json_object *row = json_object_array_get_idx(member(root, list), i);

	cr_assert_neq(row, NULL, "%s has no row %zu: %s", list, i,
		      json_object_to_json_string(root));
	return row;
}

/* ---- devices and lanes */

static struct kvx_fake_script script;

static void with_rails(unsigned n, uint32_t bad)
{
	script = (struct kvx_fake_script){.n_rails = n, .bad_rails = bad};
	rig_open_with(&rig, &(struct rig_conf){.script = &script});
	rig_client_hello(&rig, &a);
}

static void one_gone(void)
{
	rig_client_close(&a);
	rig_end(&rig);
}

Test(query, devices_are_listed_used_or_not_with_the_reason)
{
	struct json_object *root, *row;

	with_rails(2, 1u << 1);
	root = answer(&a, "devices");
	row = row_of(root, "devices", 0);
	cr_assert_str_eq(text_of(row, "name"), "fake0");
	cr_assert_str_eq(text_of(row, "state"), "usable");
	cr_assert_str_eq(text_of(row, "reason"), "");
	cr_assert_eq(json_object_get_int64(member(row, "speed_mbps")), 100000);
	cr_assert_eq(json_object_get_int(member(row, "numa_node")), -1);
	cr_assert_eq(json_object_get_int(member(row, "lanes")), 0);
	cr_assert_neq(text_of(row, "worker")[0], '\0');
	member(row, "queue_batches");
	row = row_of(root, "devices", 1);
	cr_assert_str_eq(text_of(row, "name"), "fake1");
	cr_assert_str_eq(text_of(row, "state"), "unusable");
	cr_assert(strstr(text_of(row, "reason"), "as scripted") != NULL);
	cr_assert_str_eq(text_of(row, "worker"), "");
	row = row_of(root, "devices", 2);
	cr_assert_str_eq(text_of(row, "transport"), "copy", "behind them what copies here");
	json_object_put(root);
	one_gone();
	KVX_TEST_END();
}

Test(query, lost_device_says_what_to_do)
{
	struct json_object *root, *row;

	with_rails(1, 0);
	kvx_fake_device_lose(&script, NULL);
	rig_turn(&rig);
	root = answer(&a, "devices");
	row = row_of(root, "devices", 0);
	cr_assert_str_eq(text_of(row, "state"), "lost");
	cr_assert(strstr(text_of(row, "reason"), "restart") != NULL);
	json_object_put(root);
	one_gone();
	KVX_TEST_END();
}

/* The row of a transport in the status. */
static struct json_object *transport_row(struct json_object *root, const char *name)
{
	struct json_object *list = member(root, "transports");

	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_object *row = json_object_array_get_idx(list, i);

		if (strcmp(text_of(row, "name"), name) == 0)
			return row;
	}
	cr_assert_fail("no %s in %s", name, json_object_to_json_string(root));
	return NULL;
}

static void transport_is(const char *name, bool usable, const char *reason)
{
	struct json_object *root = answer(&a, "status"), *row = transport_row(root, name);

	cr_assert_eq(json_object_get_boolean(member(row, "usable")), usable, "%s", name);
	cr_assert(strstr(text_of(row, "reason"), reason) != NULL, "%s", text_of(row, "reason"));
	json_object_put(root);
}

Test(query, what_is_switched_off_or_not_there_is_not_usable)
{
	with_rails(1, 0);
	transport_is("copy", true, "");
	transport_is("gpu", false, "");
	transport_is("verbs", false, "");
	rig.config.gpu_enable = false;
	transport_is("gpu", false, "disabled ([gpu] enable)");
	one_gone();
	KVX_TEST_END();
}

Test(query, lanes_are_none_without_peers)
{
	struct json_object *root;

	with_rails(1, 0);
	root = answer(&a, "lanes");
	cr_assert_eq(json_object_array_length(member(root, "lanes")), 0);
	json_object_put(root);
	one_gone();
	KVX_TEST_END();
}

/* ---- refused transfers */

Test(query, refused_transfer_is_listed_with_its_cause)
{
	struct json_object *root, *row;
	uint64_t region, remote, import;
	char text[32];

	two_clients();
	region = rig_register(&a, 4, 0);
	remote = rig_register(&b, 4, KVX_ACCESS_READ);
	import = rig_import(&a, &b, remote);
	submit_blocks(
	    &a, (struct submit){.number = 1, .region = region, .import = import, .n_blocks = 1});
	terminal_is(&a, 1, KVX_STATUS_ACCESS, NULL);
	root = answer(&a, "transfers");
	cr_assert_eq(json_object_array_length(member(root, "live")), 0);
	row = row_of(root, "ended", 0);
	cr_assert_str_eq(text_of(row, "state"), "refused");
	cr_assert_str_eq(text_of(row, "status"), "ACCESS");
	cr_assert(strstr(text_of(row, "text"), "does not allow writing") != NULL);
	cr_assert_str_eq(text_of(row, "tag"), "4711");
	snprintf(text, sizeof(text), "%llu", (unsigned long long)remote);
	cr_assert_str_eq(text_of(row, "remote_region"), text);
	json_object_put(root);
	all_gone();
	KVX_TEST_END();
}

Test(query, refused_ones_do_not_push_out_those_that_ran)
{
	struct json_object *root;
	uint64_t region, import;

	two_clients();
	region = rig_register(&a, 4, 0);
	import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	submit_blocks(
	    &a, (struct submit){.number = 1, .region = region, .import = import, .n_blocks = 1});
	terminal_is(&a, 1, KVX_STATUS_OK, NULL);
	for (uint64_t i = 2; i < 30; i++) { /* the rig keeps 8 */
		submit_blocks(&a, (struct submit){.number = i, .region = region, .n_blocks = 1});
		terminal_is(&a, i, KVX_STATUS_NOT_FOUND, NULL);
	}
	root = answer(&a, "transfers");
	cr_assert_eq(json_object_array_length(member(root, "ended")), 9);
	cr_assert_str_eq(text_of(row_of(root, "ended", 0), "id"), "29", "newest first");
	cr_assert_str_eq(text_of(row_of(root, "ended", 8), "id"), "1");
	cr_assert_str_eq(text_of(row_of(root, "ended", 8), "state"), "ended");
	json_object_put(root);
	all_gone();
	KVX_TEST_END();
}

/* ---- lists that wait */

#define LIST_OPS 4096u /* of 24 bytes */

/* A list of explicit ops, as a submit of a stream or as what is appended to it. */
static void send_ops(struct rig_client *rc, uint64_t number, uint64_t region, uint64_t import,
		     bool append)
{
	static uint64_t offsets[LIST_OPS], lens[LIST_OPS];
	Kvxp__OpList ops = KVXP__OP_LIST__INIT;
	Kvxp__XferSubmit submit = KVXP__XFER_SUBMIT__INIT;
	Kvxp__XferAppend more = KVXP__XFER_APPEND__INIT;

	for (unsigned i = 0; i < LIST_OPS; i++)
		lens[i] = 1;
	ops.n_local_offsets = ops.n_remote_offsets = ops.n_lens = LIST_OPS;
	ops.local_offsets = ops.remote_offsets = offsets;
	ops.lens = lens;
	if (append) {
		more.xfer = number;
		more.ops = &ops;
		rig_send(rc, KVXP__FRAME_TYPE__FRAME_XFER_APPEND, &more.base, -1);
		return;
	}
	submit.xfer = number;
	submit.op = KVXP__OP__OP_WRITE;
	submit.region = region;
	submit.import = import;
	submit.ops = &ops;
	submit.streaming = true;
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT, &submit.base, -1);
}

/* Clients whose transfers cannot move: the lane that they share has no credit. */
static void stuck_lane(uint64_t *out_region, uint64_t *out_import)
{
	struct kvx_config config;

	kvx_config_defaults(&config);
	config.queued_bytes_per_client = 2 * LIST_OPS * 24 + 4096;
	config.ops = LIST_OPS;
	config.blocks = LIST_OPS;
	rig_open(&rig, &config);
	rig_client_hello(&rig, &a);
	rig_client_hello(&rig, &b);
	*out_region = rig_register(&a, 4, 0);
	*out_import = rig_import(&a, &b, rig_register(&b, 4, KVX_ACCESS_WRITE));
	kvx_node_copy_lane(rig.node)->state = KVX_LANE_CONNECTING;
}

static void lane_moves(void)
{
	struct kvx_lane *lane = kvx_node_copy_lane(rig.node);

	lane->state = KVX_LANE_UP;
	kvx_sched_pump(lane->sched);
	rig_turn(&rig);
}

Test(query, lists_over_the_limit_are_refused_by_name)
{
	uint64_t region, import;
	struct json_object *root;

	stuck_lane(&region, &import);
	send_ops(&a, 1, region, import, false);
	send_ops(&a, 1, region, import, true);
	root = answer(&a, "clients");
	cr_assert_geq(json_object_get_int64(member(row_of(root, "clients", 0), "queued_bytes")),
		      2 * LIST_OPS * 24);
	json_object_put(root);
	send_ops(&a, 2, region, import, false);
	terminal_is(&a, 2, KVX_STATUS_QUOTA, "queued_bytes_per_client");
	send_ops(&a, 1, region, import, true);
	terminal_is(&a, 1, KVX_STATUS_QUOTA, "queued_bytes_per_client");
	lane_moves();
	all_gone();
	KVX_TEST_END();
}

Test(query, lists_that_were_walked_make_room)
{
	uint64_t region, import;

	stuck_lane(&region, &import);
	send_ops(&a, 1, region, import, false);
	send_ops(&a, 1, region, import, true);
	lane_moves();
	cr_assert_eq(kvx_xfers_list_bytes(kvx_node_xfers(rig.node), a.client->id), 0);
	for (unsigned i = 0; i < 5; i++)
		send_ops(&a, 1, region, import, true);
	cr_assert_eq(a.client->xfers.n, 1, "the stream goes on");
	all_gone();
	KVX_TEST_END();
}
