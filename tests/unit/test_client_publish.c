/* Publishing and posting with the client library, and labels: what is sent, in which order, what is
 * refused; and structs of before them. */
#include <errno.h>
#include <stddef.h>

#include "client_script.h"
#include "test_end.h"

static void post_inside(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	unsigned *n = arg;

	(*n)++;
	cr_assert_eq(kvxfer_message_post(pair.import_, "inside", 6), 0);
}

Test(client_publish, posts_are_sent_in_order_and_not_waited_for)
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

Test(client_publish, regions_are_published_with_their_note)
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

Test(client_publish, bad_publications_are_refused)
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

Test(client_publish, publication_is_renewed_by_a_reconnect)
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

Test(client_publish, labels_are_sent_and_bounded)
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
