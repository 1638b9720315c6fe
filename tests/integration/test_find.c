/* Engines that need no channel of their own: one publishes its region, the other finds it by name,
 * transfers, and posts messages; on one node and on two. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pair.h"

#define WAIT_MS 15000

struct log {
	unsigned n_up, n_lost, n_arrivals, n_messages;
	int lost_status;
	uint32_t next;    /* message that is to come */
	unsigned n_early; /* messages before the arrival of the same number */
	uint64_t arrived; /* highest tag */
	char note[32], lost_text[200];
};

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct log *log = arg;
	uint32_t number;

	switch (event->type) {
	case KVXFER_EVENT_IMPORT_UP:
		log->n_up++;
		cr_assert_lt(event->payload_bytes, sizeof(log->note));
		memcpy(log->note, event->payload, event->payload_bytes);
		break;
	case KVXFER_EVENT_IMPORT_LOST:
		log->n_lost++;
		log->lost_status = event->status;
		snprintf(log->lost_text, sizeof(log->lost_text), "%s", event->text);
		break;
	case KVXFER_EVENT_ARRIVAL:
		log->n_arrivals++;
		log->arrived = event->tag;
		break;
	case KVXFER_EVENT_MESSAGE:
		cr_assert_geq(event->payload_bytes, sizeof(number));
		memcpy(&number, event->payload, sizeof(number));
		cr_assert_eq(number, log->next, "message %u came, %u is missing", number,
			     log->next);
		log->next++;
		log->n_messages++;
		log->n_early += log->arrived < number;
		break;
	default:
		break;
	}
}

static void until(struct kvxfer_client *client, struct log *log, const unsigned *count, unsigned n)
{
	for (int i = 0; *count < n; i++) {
		cr_assert_lt(i, WAIT_MS / 50, "%u of %u", *count, n);
		cr_assert_geq(kvxfer_client_wait(client, 50, on_event, log), 0);
	}
}

/* Two nodes or one, an engine on each; what the second one's daemon is called. */
struct scene {
	bool cross;
	struct test_node node[2];
	struct test_engine here, there;
	char address[128];
};
static struct scene scene;

static void ask_address(const struct test_node *node, char *out, size_t size)
{
	struct kvxfer_client *client = test_node_client(node, "asks");
	const char *name = "\"peer_address\":\"", *at;
	char *json = NULL;

	cr_assert_eq(kvxfer_client_query(client, "status", NULL, &json), 0);
	at = strstr(json, name);
	cr_assert_not_null(at);
	at += strlen(name);
	snprintf(out, size, "%.*s", (int)strcspn(at, "\""), at);
	free(json);
	kvxfer_client_close(client);
}

static void open_scene(bool cross, const char *const *sets)
{
	scene.cross = cross;
	test_node_start(&scene.node[0], sets);
	if (cross)
		test_node_start(&scene.node[1], sets);
	ask_address(&scene.node[cross ? 1 : 0], scene.address, sizeof(scene.address));
	test_engine_open(&scene.here, &scene.node[0], "here", 1, 64, 4096, KVXFER_ACCESS_READ);
	test_engine_open(&scene.there, &scene.node[cross ? 1 : 0], "there", 1, 64, 4096,
			 KVXFER_ACCESS_READ);
	test_fill(&scene.here, 1);
}

static void close_scene(void)
{
	test_engine_close(&scene.here);
	test_engine_close(&scene.there);
	test_node_fini(&scene.node[0]);
	if (scene.cross)
		test_node_fini(&scene.node[1]);
}

static struct kvxfer_region *publish(struct test_engine *e, const char *name)
{
	struct kvxfer_plane plane = {.block_stride = 4096, .block_bytes = 4096};
	const struct kvxfer_layout layout = {&plane, 1};
	const struct kvxfer_region_options options = {.struct_bytes = sizeof(options),
						      .access =
							  KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE,
						      .layout = &layout,
						      .publish = name,
						      .note = "64 blocks",
						      .note_bytes = 9};
	struct kvxfer_region *region = NULL;

	cr_assert_eq(kvxfer_region_alloc(e->client, 64 * 4096, &options, &region), 0, "%s",
		     kvxfer_client_error(e->client));
	return region;
}

static struct kvxfer_import *find(const char *name, struct log *log)
{
	struct kvxfer_import *import_ = NULL;

	memset(log, 0, sizeof(*log));
	cr_assert_eq(kvxfer_import_find(scene.here.client, scene.address, name, NULL, &import_), 0,
		     "%s", kvxfer_client_error(scene.here.client));
	while (log->n_up + log->n_lost == 0)
		cr_assert_gt(kvxfer_client_wait(scene.here.client, WAIT_MS, on_event, log), 0);
	return import_;
}

static struct kvxfer_import *find_ok(const char *name)
{
	struct log log;
	struct kvxfer_import *import_ = find(name, &log);

	cr_assert_eq(log.n_up, 1, "%s: %s", kvxfer_status_name(log.lost_status), log.lost_text);
	cr_assert_str_eq(log.note, "64 blocks");
	return import_;
}

static void write_block(struct kvxfer_import *import_, uint64_t tag)
{
	const uint32_t id = (uint32_t)(tag % 64);
	const struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 1, .local_blocks = &id, .remote_blocks = &id};
	const struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
					  .op = KVXFER_WRITE,
					  .region = scene.here.region,
					  .import_ = import_,
					  .blocks = &blocks,
					  .tag = tag,
					  .label = "request 7"};
	struct test_event event;
	uint64_t transfer = 0;

	cr_assert_eq(kvxfer_transfer_submit(scene.here.client, &t, &transfer), 0);
	event = test_wait(&scene.here, KVXFER_EVENT_TERMINAL, transfer, WAIT_MS);
	cr_assert_eq(event.status, KVXFER_OK, "%s", event.text);
}

static int post(struct kvxfer_import *import_, uint32_t number, size_t bytes)
{
	static uint8_t data[KVXFER_PAYLOAD_MAX];

	memcpy(data, &number, sizeof(number));
	return kvxfer_message_post(import_, data, bytes);
}

static void both(void (*run)(void))
{
	open_scene(false, NULL);
	run();
	close_scene();
	open_scene(true, NULL);
	run();
	close_scene();
}

static void find_and_write(void)
{
	struct kvxfer_import *import_;
	struct kvxfer_region *region;
	struct log log;

	import_ = find("engine/tp0", &log);
	cr_assert_eq(log.lost_status, KVXFER_NOT_FOUND, "%s", log.lost_text);
	cr_assert_eq(kvxfer_import_close(import_), 0);
	region = publish(&scene.there, "engine/tp0"); /* now its engine is up */
	import_ = find_ok("engine/tp0");
	cr_assert_eq(kvxfer_import_bytes(import_), 64 * 4096);
	cr_assert_eq(kvxfer_import_planes(import_), 1);
	cr_assert_str_eq(kvxfer_import_transport(import_), scene.cross ? "fabric" : "copy");
	write_block(import_, 5);
	cr_assert_eq(memcmp((uint8_t *)kvxfer_region_data(region) + 5 * 4096,
			    test_block(&scene.here, 0, 5), 4096),
		     0);
	cr_assert_eq(kvxfer_region_unregister(region), 0);
	memset(&log, 0, sizeof(log));
	until(scene.here.client, &log, &log.n_lost, 1);
	cr_assert_eq(log.lost_status, KVXFER_REGION_LOST);
	cr_assert_eq(kvxfer_import_close(import_), 0);
}

Test(find, region_is_found_once_it_is_published)
{
	both(find_and_write);
}

static void many_posts(void)
{
	enum { N = 3000 };
	struct kvxfer_import *import_;
	struct log log = {0};

	publish(&scene.there, "x");
	import_ = find_ok("x");
	for (uint32_t i = 0; i < N; i++)
		cr_assert_eq(post(import_, i, 256), 0);
	until(scene.there.client, &log, &log.n_messages, N);
}

Test(find, posted_messages_come_once_and_in_order)
{
	both(many_posts);
}

/* More than may be unconfirmed, and far more than the receiver may leave unread, before it reads
 * anything; the sender's other requests go on meanwhile. */
static void posts_without_a_pause(void)
{
	enum { N = 12000 };
	struct kvxfer_import *import_;
	struct log log = {0};
	unsigned n = 0;

	publish(&scene.there, "x");
	import_ = find_ok("x");
	for (uint32_t i = 0; i < N; i++)
		cr_assert_eq(post(import_, i, KVXFER_PAYLOAD_MAX), 0);
	write_block(import_, 7);
	while (log.n_messages < N) { /* each within WAIT_MS */
		cr_assert_gt(kvxfer_client_wait(scene.there.client, WAIT_MS, on_event, &log), 0,
			     "%u of %u", log.n_messages, N);
		n++;
	}
	cr_assert_gt(n, 1);
	cr_assert_eq(log.n_arrivals, 1, "who has it is not told of the block");
}

Test(find, flood_of_posts_waits_for_its_receiver_and_loses_nothing)
{
	both(posts_without_a_pause);
}

static void posts_and_writes(void)
{
	struct kvxfer_import *import_;
	struct log log = {0};

	publish(&scene.there, "x");
	import_ = find_ok("x");
	for (uint32_t i = 1; i <= 200; i++) {
		write_block(import_, i);
		cr_assert_eq(post(import_, i, 64), 0);
	}
	log.next = 1;
	until(scene.there.client, &log, &log.n_messages, 200);
	cr_assert_eq(log.n_arrivals, 200);
	cr_assert_eq(log.n_early, 0, "messages before the arrivals of what had ended");
}

Test(find, posted_message_comes_after_the_arrivals_of_what_had_ended)
{
	both(posts_and_writes);
}

/* The receiver reads some of them meanwhile: what it sees has no gap. */
static void deaf_receiver(bool cross)
{
	static const char *const sets[] = {"limits.events_bytes=65536",
					   "limits.posted_bytes_per_client=1M", NULL};
	struct kvxfer_import *import_;
	struct log mine = {0}, theirs = {0};
	unsigned n_posted = 0;

	open_scene(cross, sets);
	publish(&scene.there, "x");
	import_ = find_ok("x");
	while (mine.n_lost == 0 && n_posted < 20000) {
		if (post(import_, n_posted, KVXFER_PAYLOAD_MAX) == 0)
			n_posted++;
		kvxfer_client_dispatch(scene.here.client, on_event, &mine);
		if (n_posted % 100 == 50 && n_posted > 300)
			kvxfer_client_dispatch(scene.there.client, on_event, &theirs);
	}
	cr_assert_eq(mine.n_lost, 1, "%u messages nobody reads", n_posted);
	cr_assert_eq(mine.lost_status, KVXFER_QUOTA, "%s", mine.lost_text);
	cr_assert_eq(post(import_, 0, 64), -EPIPE);
	for (int i = 0; i < 20; i++) /* on_event() finds gaps */
		cr_assert_geq(kvxfer_client_wait(scene.there.client, 20, on_event, &theirs), 0,
			      "a sender cannot end the receiver");
	cr_assert_gt(theirs.n_messages, 0);
	cr_assert_lt(theirs.n_messages, n_posted);
	cr_assert_eq(kvxfer_import_close(import_), 0);
	import_ = find_ok("x"); /* and it is found again */
	theirs.next = 0;
	cr_assert_eq(post(import_, 0, 64), 0);
	until(scene.there.client, &theirs, &theirs.n_messages, theirs.n_messages + 1);
	close_scene();
}

Test(find, post_to_a_receiver_that_does_not_read_ends_the_import_same_node)
{
	deaf_receiver(false);
}

Test(find, post_to_a_receiver_that_does_not_read_ends_the_import_two_nodes)
{
	deaf_receiver(true);
}

/* ---- what people see */

static void ctl(const struct test_node *node, const char *what, char *out, size_t size)
{
	const char *argv[] = {getenv("KVXFERCTL"), "--socket", node->socket, "--json", what, NULL};

	cr_assert_eq(test_run(argv, out, size), 0, "%s", out);
}

static void shown(void)
{
	static char out[1 << 16];
	struct kvxfer_import *import_;

	publish(&scene.there, "engine/tp0");
	import_ = find_ok("engine/tp0");
	write_block(import_, 3);
	ctl(&scene.node[scene.cross ? 1 : 0], "regions", out, sizeof(out));
	cr_assert_not_null(strstr(out, "engine/tp0"), "%s", out);
	ctl(&scene.node[0], "transfers", out, sizeof(out));
	cr_assert_not_null(strstr(out, "request 7"), "%s", out);
}

Test(find, published_names_and_labels_are_shown)
{
	both(shown);
}

/* The other node shows a transfer to its memory while it runs. */
Test(find, label_is_shown_on_the_other_node_while_it_runs)
{
	static char out[1 << 16];
	struct kvxfer_transfer t = {
	    .struct_bytes = sizeof(t), .op = KVXFER_WRITE, .streaming = 1, .label = "request 8"};
	const uint64_t offset = 0;
	const struct kvxfer_ops ops = {
	    .n_ops = 1, .local_offsets = &offset, .remote_offsets = &offset, .len = 4096};
	struct timespec pause = {0, 20000000};

	open_scene(true, NULL);
	publish(&scene.there, "x");
	t.region = scene.here.region;
	t.import_ = find_ok("x");
	t.ops = &ops; /* its first byte announces it */
	cr_assert_eq(kvxfer_transfer_submit(scene.here.client, &t, NULL), 0);
	for (int i = 0; i < WAIT_MS / 20; i++) {
		ctl(&scene.node[1], "transfers", out, sizeof(out));
		if (strstr(out, "request 8") != NULL)
			break;
		nanosleep(&pause, NULL);
	}
	cr_assert_not_null(strstr(out, "request 8"), "%s", out);
	close_scene();
}
