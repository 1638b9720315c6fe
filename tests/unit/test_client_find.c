/* Finding with the client library: what came of it is told once, in its place among the events,
 * whatever happened to the import meanwhile. */
#include <errno.h>

#include "client_script.h"
#include "fault_alloc.h"
#include "test_end.h"

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
