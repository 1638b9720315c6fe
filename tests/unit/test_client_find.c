/* Publishing, finding and posting with the client library: what is sent, and that what came of it
 * is told once, in its place among the events, whatever happened to the import meanwhile. */
#include "client_fixture.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

#include "fault_alloc.h"
#include "test_end.h"

/* A daemon that answers a find at the next query, and keeps what it was sent last. */
struct script {
	_Atomic uint32_t find_id; /* unanswered */
	_Atomic uint32_t status;
	uint64_t import;  /* made */
	const char *note; /* of the answer */
	uint32_t note_bytes;
	bool lose_it;       /* IMPORT_LOST right behind the answer */
	bool message_first; /* a message right before it */
	bool at_once;       /* without waiting for a query */
	char address[160], name[160], publish[160], label[80];
	char posted[8][16];
	_Atomic unsigned n_posted;
	char got_note[16];
};

static void answer_find(struct fake_daemon *d, struct script *s)
{
	Kvxp__Reply reply = KVXP__REPLY__INIT;
	Kvxp__Event lost = KVXP__EVENT__INIT;

	if (s->message_first)
		fake_event(d, KVXP__EVENT_TYPE__EVENT_MESSAGE, 1, 0, "first");
	reply.request_id = s->find_id;
	reply.status = s->status;
	s->find_id = 0;
	if (reply.status == 0) {
		s->import = 1000 + reply.request_id;
		reply.id = s->import;
		reply.len = 8192;
		reply.layout = (Kvxp__Layout *)(uintptr_t)d->import_layout;
		reply.transport = (char *)(uintptr_t) "copy";
		reply.data = (ProtobufCBinaryData){s->note_bytes, (uint8_t *)(uintptr_t)s->note};
	} else {
		reply.text = (char *)(uintptr_t) "nobody has published it";
	}
	fake_send(d, KVXP__FRAME_TYPE__FRAME_REPLY, &reply.base, -1);
	lost.type = KVXP__EVENT_TYPE__EVENT_IMPORT_LOST;
	lost.import = s->import;
	lost.status = KVXFER_CLIENT_LOST;
	if (s->lose_it)
		fake_send(d, KVXP__FRAME_TYPE__FRAME_EVENT, &lost.base, -1);
}

static void keep_find(struct fake_daemon *d, struct script *s)
{
	Kvxp__ImportFind *find = kvxp__import_find__unpack(NULL, d->len_bytes, d->body);

	snprintf(s->address, sizeof(s->address), "%s", find->address);
	snprintf(s->name, sizeof(s->name), "%s", find->name);
	s->find_id = find->request_id;
	kvxp__import_find__free_unpacked(find, NULL);
	if (s->at_once)
		answer_find(d, s);
}

static void keep_post(struct fake_daemon *d, struct script *s)
{
	Kvxp__MessagePost *post = kvxp__message_post__unpack(NULL, d->len_bytes, d->body);

	snprintf(s->posted[s->n_posted % 8], sizeof(s->posted[0]), "%.*s", (int)post->data.len,
		 (const char *)post->data.data);
	s->n_posted++;
	kvxp__message_post__free_unpacked(post, NULL);
}

static void keep_region(struct fake_daemon *d, struct script *s)
{
	Kvxp__RegionRegister *m = kvxp__region_register__unpack(NULL, d->len_bytes, d->body);

	snprintf(s->publish, sizeof(s->publish), "%s", m->publish);
	snprintf(s->got_note, sizeof(s->got_note), "%.*s", (int)m->note.len,
		 (const char *)m->note.data);
	kvxp__region_register__free_unpacked(m, NULL);
}

static void keep_label(struct fake_daemon *d, struct script *s)
{
	Kvxp__XferSubmit *m = kvxp__xfer_submit__unpack(NULL, d->len_bytes, d->body);

	snprintf(s->label, sizeof(s->label), "%s", m->label);
	kvxp__xfer_submit__free_unpacked(m, NULL);
}

static enum fake_answer scripted(struct fake_daemon *d, uint16_t type)
{
	struct script *s = d->arg;

	switch (type) {
	case KVXP__FRAME_TYPE__FRAME_IMPORT_FIND:
		keep_find(d, s);
		return FAKE_DONE;
	case KVXP__FRAME_TYPE__FRAME_MESSAGE_POST:
		keep_post(d, s);
		return FAKE_DONE;
	case KVXP__FRAME_TYPE__FRAME_REGION_REGISTER:
		keep_region(d, s);
		return FAKE_DEFAULT;
	case KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT:
		keep_label(d, s);
		return FAKE_DEFAULT;
	case KVXP__FRAME_TYPE__FRAME_QUERY:
		if (s->find_id != 0)
			answer_find(d, s);
		return FAKE_DEFAULT;
	default:
		return FAKE_DEFAULT;
	}
}

static struct fake_daemon d;
static struct script script;
static struct seen seen;
static struct pair pair;

static void start(void)
{
	fake_daemon_init(&d);
	d.hook = scripted;
	d.arg = &script;
	script.note = "four heads";
	script.note_bytes = 10;
	fake_daemon_start(&d);
	pair = open_pair(&d, 2000);
}

static void stop(void)
{
	kvxfer_client_close(pair.client);
	fake_daemon_stop(&d);
}

static struct kvxfer_import *find_it(void)
{
	struct kvxfer_import *import_ = NULL;

	cr_assert_eq(kvxfer_import_find(pair.client, "10.0.0.1:7717", "engine/tp0", NULL, &import_),
		     0, "%s", kvxfer_client_error(pair.client));
	cr_assert_not_null(import_);
	return import_;
}

/* A set-up call: the answer to the find comes before its own. */
static void query(void)
{
	char *json;

	cr_assert_eq(kvxfer_client_query(pair.client, "status", NULL, &json), 0);
	free(json);
}

/* ---- finding */

Test(client_find, up_is_told_with_the_note_and_the_import_is_filled)
{
	struct kvxfer_plane planes[2] = {{"k", 0, 4096, 4096, 1}, {"v", 4096, 4096, 4096, 1}};
	Kvxp__Plane pb[2] = {KVXP__PLANE__INIT, KVXP__PLANE__INIT}, *rows[2] = {&pb[0], &pb[1]};
	Kvxp__Layout layout = KVXP__LAYOUT__INIT;
	struct kvxfer_import *import_;

	for (int i = 0; i < 2; i++) {
		pb[i].name = (char *)(uintptr_t)planes[i].name;
		pb[i].offset = planes[i].offset;
		pb[i].block_stride = pb[i].block_bytes = 4096;
		pb[i].n_blocks = 1;
	}
	layout.n_planes = 2;
	layout.planes = rows;
	script.at_once = true;
	start();
	d.import_layout = &layout;
	import_ = find_it();
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(seen.events[0].type, KVXFER_EVENT_IMPORT_UP);
	cr_assert_eq(seen.events[0].status, KVXFER_OK);
	cr_assert_eq(seen.events[0].import_, import_);
	cr_assert_str_eq(seen.events[0].payload, "four heads");
	cr_assert_str_eq(script.address, "10.0.0.1:7717");
	cr_assert_str_eq(script.name, "engine/tp0");
	cr_assert_eq(kvxfer_import_bytes(import_), 8192);
	cr_assert_eq(kvxfer_import_planes(import_), 2);
	cr_assert_eq(kvxfer_import_plane(import_, 1, planes), 0);
	cr_assert_str_eq(planes[0].name, "v");
	cr_assert_str_eq(kvxfer_import_transport(import_), "copy");
	pair.import_ = import_;
	cr_assert_eq(submit_one(&pair, 1, NULL), 0);
	wait_events(pair.client, &seen, 2);
	cr_assert_eq(kvxfer_import_close(import_), 0);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE], 1);
	stop();
	KVX_TEST_END();
}

Test(client_find, import_is_refused_until_it_is_up)
{
	struct pair found;

	start();
	found = pair;
	found.import_ = find_it();
	cr_assert_eq(kvxfer_client_wait(pair.client, 50, seen_event, &seen), 0);
	cr_assert_eq(submit_one(&found, 1, NULL), -EAGAIN);
	cr_assert_eq(kvxfer_message_post(found.import_, "x", 1), -EAGAIN);
	cr_assert_eq(kvxfer_message_send(found.import_, "x", 1), -EAGAIN);
	cr_assert_eq(kvxfer_import_bytes(found.import_), 0);
	cr_assert_eq(kvxfer_import_planes(found.import_), 0);
	cr_assert_str_eq(kvxfer_import_transport(found.import_), "");
	query();
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(submit_one(&found, 1, NULL), 0);
	stop();
	KVX_TEST_END();
}

Test(client_find, answer_keeps_its_place_among_events_that_a_set_up_call_kept)
{
	struct kvxfer_import *import_;

	script.message_first = script.lose_it = true;
	start();
	import_ = find_it();
	query();
	cr_assert(is_readable(kvxfer_client_fd(pair.client), 0));
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 3);
	cr_assert_eq(seen.events[0].type, KVXFER_EVENT_MESSAGE);
	cr_assert_eq(seen.events[1].type, KVXFER_EVENT_IMPORT_UP);
	cr_assert_eq(seen.events[1].import_, import_);
	cr_assert_str_eq(seen.events[1].payload, "four heads");
	cr_assert_eq(seen.events[2].type, KVXFER_EVENT_IMPORT_LOST);
	cr_assert_eq(seen.events[2].import_, import_);
	cr_assert_eq(kvxfer_message_post(import_, "x", 1), -EPIPE, "it is lost");
	stop();
	KVX_TEST_END();
}

Test(client_find, refusal_is_told_as_a_loss)
{
	struct pair found;

	script.status = KVXFER_NOT_FOUND;
	script.at_once = true;
	start();
	found = pair;
	found.import_ = find_it();
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(seen.events[0].type, KVXFER_EVENT_IMPORT_LOST);
	cr_assert_eq(seen.events[0].status, KVXFER_NOT_FOUND);
	cr_assert_eq(seen.events[0].import_, found.import_);
	cr_assert_str_eq(seen.events[0].text, "nobody has published it");
	cr_assert_eq(submit_one(&found, 1, NULL), -EINVAL);
	cr_assert_eq(kvxfer_message_post(found.import_, "x", 1), -EPIPE);
	cr_assert_eq(kvxfer_import_close(found.import_), 0);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE], 0);
	stop();
	KVX_TEST_END();
}

Test(client_find, import_that_is_closed_before_its_answer_is_released_in_silence)
{
	start();
	cr_assert_eq(kvxfer_import_close(find_it()), 0);
	query(); /* the answer comes now */
	query();
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE], 1);
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 0);
	stop();
	KVX_TEST_END();
}

Test(client_find, import_that_is_closed_before_its_event_is_released_in_silence)
{
	struct kvxfer_import *import_;

	start();
	import_ = find_it();
	query(); /* the answer is kept for the next dispatch */
	cr_assert_eq(kvxfer_import_close(import_), 0);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE], 1);
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 0);
	stop();
	KVX_TEST_END();
}

Test(client_find, names_and_addresses_that_cannot_be_are_refused)
{
	static char long_name[130], long_address[200];
	struct kvxfer_import *import_ = NULL;

	start();
	memset(long_name, 'n', sizeof(long_name) - 1);
	memset(long_address, 'a', sizeof(long_address) - 1);
	cr_assert_eq(kvxfer_import_find(NULL, "", "x", NULL, &import_), -EINVAL);
	cr_assert_eq(kvxfer_import_find(pair.client, "", NULL, NULL, &import_), -EINVAL);
	cr_assert_eq(kvxfer_import_find(pair.client, "", "", NULL, &import_), -EINVAL);
	cr_assert_eq(kvxfer_import_find(pair.client, "", "two words", NULL, &import_), -EINVAL);
	cr_assert_eq(kvxfer_import_find(pair.client, "", "caf\xc3\xa9", NULL, &import_), -EINVAL);
	cr_assert_eq(kvxfer_import_find(pair.client, "", long_name, NULL, &import_), -EINVAL);
	cr_assert_eq(kvxfer_import_find(pair.client, long_address, "x", NULL, &import_), -EINVAL);
	cr_assert_eq(kvxfer_import_find(pair.client, "", "x", NULL, NULL), -EINVAL);
	cr_assert_null(import_);
	long_name[128] = '\0';
	cr_assert_eq(kvxfer_import_find(pair.client, NULL, long_name, NULL, &import_), 0);
	query();
	cr_assert_str_eq(script.name, long_name);
	cr_assert_str_eq(script.address, "");
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_IMPORT_FIND], 1);
	stop();
	KVX_TEST_END();
}

static void find_inside(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct kvxfer_import **import_ = arg;

	if (*import_ == NULL)
		cr_assert_eq(kvxfer_import_find(client, "", "x", NULL, import_), 0);
}

Test(client_find, callbacks_may_find)
{
	struct kvxfer_import *import_ = NULL;

	script.at_once = true;
	start();
	cr_assert_eq(submit_one(&pair, 1, NULL), 0);
	while (import_ == NULL)
		cr_assert_geq(kvxfer_client_wait(pair.client, 2000, find_inside, &import_), 0);
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(seen.events[0].import_, import_);
	stop();
	KVX_TEST_END();
}

Test(client_find, note_that_is_too_long_ends_the_connection)
{
	static char note[KVXFER_PAYLOAD_MAX + 1];

	script.at_once = true;
	start();
	script.note = note;
	script.note_bytes = sizeof(note);
	find_it();
	wait_events(pair.client, &seen, 1);
	cr_assert_eq(seen.events[0].type, KVXFER_EVENT_DAEMON_LOST);
	cr_assert_eq(seen.events[0].status, KVXFER_PROTOCOL);
	stop();
	KVX_TEST_END();
}

/* ---- loss of the daemon */

static enum fake_answer die_at_submit(struct fake_daemon *daemon, uint16_t type)
{
	if (type != KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT)
		return scripted(daemon, type);
	fake_error(daemon, KVXFER_INTERNAL, "restarting");
	return FAKE_HANG_UP;
}

/* One that is up, one that waits, one that was refused and told so: after the reconnect the first
 * two are lost, once, and no frame is sent for them. */
Test(client_find, found_imports_end_with_the_daemon)
{
	struct kvxfer_import *up, *waits, *refused;
	unsigned n_lost = 0;

	start();
	d.hook = die_at_submit;
	up = find_it();
	query();
	script.status = KVXFER_NOT_FOUND;
	refused = find_it();
	query();
	waits = find_it();
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 2);
	cr_assert_eq(submit_one(&pair, 1, NULL), 0);
	wait_events(pair.client, &seen, 4);
	cr_assert_eq(seen.events[3].type, KVXFER_EVENT_DAEMON_LOST);
	cr_assert_eq(kvxfer_client_reconnect(pair.client), 0, "%s",
		     kvxfer_client_error(pair.client));
	seen.n = 0;
	cr_assert_eq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 2);
	for (unsigned i = 0; i < seen.n; i++) {
		n_lost += seen.events[i].import_ == up || seen.events[i].import_ == waits;
		cr_assert_eq(seen.events[i].type, KVXFER_EVENT_IMPORT_LOST);
		cr_assert_eq(seen.events[i].status, KVXFER_DAEMON_LOST);
	}
	cr_assert_eq(n_lost, 2);
	cr_assert_eq(kvxfer_import_close(up), 0);
	cr_assert_eq(kvxfer_import_close(waits), 0);
	cr_assert_eq(kvxfer_import_close(refused), 0);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_IMPORT_FIND], 3);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE], 0);
	stop();
	KVX_TEST_END();
}

Test(client_find, every_failing_allocation_is_an_error_and_nothing_was_sent)
{
	struct kvxfer_import *import_;
	unsigned n = 0;
	int err;

	start();
	for (;;) {
		fault_alloc_arm(++n);
		err = kvxfer_import_find(pair.client, "", "x", NULL, &import_);
		if (!fault_alloc_disarm())
			break;
		cr_assert_eq(err, -ENOMEM, "allocation %u: %d", n, err);
	}
	cr_assert_eq(err, 0);
	cr_assert_gt(n, 2);
	query();
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_IMPORT_FIND], 1);
	stop();
	KVX_TEST_END();
}

/* ---- posting */

static void post_inside(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	unsigned *n = arg;

	(*n)++;
	cr_assert_eq(kvxfer_message_post(pair.import_, "inside", 6), 0);
}

Test(client_find, posts_are_sent_in_order_and_not_waited_for)
{
	static char big[KVXFER_PAYLOAD_MAX + 1];
	unsigned n = 0;

	start();
	cr_assert_eq(kvxfer_message_post(pair.import_, "one", 3), 0);
	cr_assert_eq(submit_one(&pair, 1, NULL), 0);
	while (n == 0)
		cr_assert_geq(kvxfer_client_wait(pair.client, 2000, post_inside, &n), 0);
	cr_assert_eq(kvxfer_message_post(pair.import_, "", 0), -EINVAL);
	cr_assert_eq(kvxfer_message_post(pair.import_, NULL, 3), -EINVAL);
	cr_assert_eq(kvxfer_message_post(NULL, "x", 1), -EINVAL);
	cr_assert_eq(kvxfer_message_post(pair.import_, big, sizeof(big)), -EMSGSIZE);
	query();
	cr_assert_eq(script.n_posted, 2);
	cr_assert_str_eq(script.posted[0], "one");
	cr_assert_str_eq(script.posted[1], "inside");
	stop();
	KVX_TEST_END();
}

/* ---- publishing and labels, and structs of before them */

Test(client_find, regions_are_published_with_their_note)
{
	struct kvxfer_region_options options = {.struct_bytes = sizeof(options),
						.access = KVXFER_ACCESS_READ,
						.publish = "engine/tp0",
						.note = "note",
						.note_bytes = 4};
	struct kvxfer_region *region;

	start();
	cr_assert_eq(kvxfer_region_alloc(pair.client, 4096, &options, &region), 0);
	cr_assert_str_eq(script.publish, "engine/tp0");
	cr_assert_str_eq(script.got_note, "note");
	options.struct_bytes = offsetof(struct kvxfer_region_options, publish);
	cr_assert_eq(kvxfer_region_alloc(pair.client, 4096, &options, &region), 0,
		     "what an older caller's struct has behind it is not looked at");
	cr_assert_str_eq(script.publish, "");
	cr_assert_str_eq(script.got_note, "");
	stop();
	KVX_TEST_END();
}

Test(client_find, bad_publications_are_refused)
{
	static const char note[KVXFER_PAYLOAD_MAX + 1];
	struct kvxfer_region_options good = {.struct_bytes = sizeof(good),
					     .access = KVXFER_ACCESS_READ,
					     .publish = "x"},
				     options;
	struct kvxfer_region *region;

	start();
#define refused(err, change)                                                                       \
	do {                                                                                       \
		options = good;                                                                    \
		change;                                                                            \
		cr_assert_eq(kvxfer_region_alloc(pair.client, 4096, &options, &region), err, "%s", \
			     #change);                                                             \
	} while (0)
	refused(-EINVAL, options.publish = "");
	refused(-EINVAL, options.publish = "a b");
	refused(-EINVAL, options.publish = NULL; options.note = note; options.note_bytes = 1);
	refused(-EINVAL, options.note_bytes = 1);
	refused(-EMSGSIZE, options.note = note; options.note_bytes = sizeof(note));
	refused(-EACCES, options.access = 0);
#undef refused
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_REGION_REGISTER], 1, "only the pair's");
	stop();
	KVX_TEST_END();
}

Test(client_find, publication_is_renewed_by_a_reconnect)
{
	struct kvxfer_region_options options = {.struct_bytes = sizeof(options),
						.access = KVXFER_ACCESS_READ,
						.publish = "engine/tp0",
						.note = "note",
						.note_bytes = 4};
	struct kvxfer_region *region;

	start();
	d.hook = die_at_submit;
	cr_assert_eq(kvxfer_region_alloc(pair.client, 4096, &options, &region), 0);
	script.publish[0] = script.got_note[0] = '\0';
	cr_assert_eq(submit_one(&pair, 1, NULL), 0);
	wait_events(pair.client, &seen, 2);
	cr_assert_eq(kvxfer_client_reconnect(pair.client), 0);
	cr_assert_str_eq(script.publish, "engine/tp0");
	cr_assert_str_eq(script.got_note, "note");
	stop();
	KVX_TEST_END();
}

Test(client_find, labels_are_sent_and_bounded)
{
	static char label[KVXFER_LABEL_MAX + 2];
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t), .op = KVXFER_WRITE, .streaming = 1};
	uint64_t id = 0;

	start();
	t.region = pair.region;
	t.import_ = pair.import_;
	t.label = label;
	memset(label, 'l', KVXFER_LABEL_MAX + 1);
	cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, &id), -EINVAL);
	label[KVXFER_LABEL_MAX] = '\0';
	cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, &id), 0);
	query();
	cr_assert_str_eq(script.label, label);
	t.struct_bytes = offsetof(struct kvxfer_transfer, label);
	cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, &id), 0);
	query();
	cr_assert_str_eq(script.label, "", "the label of a struct that had none");
	stop();
	KVX_TEST_END();
}
