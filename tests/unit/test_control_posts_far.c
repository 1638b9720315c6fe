/* Messages to another node, whose daemon is this test, that cannot go at once: beyond what may be
 * unconfirmed, to a receiver that is full, and by a connection that takes no more. */
#include "control_posts.h"

#include <errno.h>

#define CALLS_MAX 8192

struct sent {
	uint32_t number; /* what the message says */
	uint64_t stream;
	kvx_peer_reply_cb cb; /* NULL: answered or abandoned */
	void *arg;
};
static struct sent sent[CALLS_MAX];
static unsigned n_sent, n_answered, n_abandoned;
static int refuse_at_once; /* what kvx_peers_message() returns; 0: it takes the message */

int __wrap_kvx_peers_message(struct kvx_peers *peers, struct kvx_target *to,
			     const struct kvx_peer_message *message, uint64_t timeout_ns,
			     kvx_peer_reply_cb cb, void *arg, struct kvx_peer_call **out_call);
void __wrap_kvx_peer_call_abandon(struct kvx_peer_call *call);

int __wrap_kvx_peers_message(struct kvx_peers *peers, struct kvx_target *to,
			     const struct kvx_peer_message *message, uint64_t timeout_ns,
			     kvx_peer_reply_cb cb, void *arg, struct kvx_peer_call **out_call)
{
	char text[8] = "";

	if (refuse_at_once != 0)
		return refuse_at_once;
	cr_assert_lt(n_sent, CALLS_MAX);
	cr_assert_lt(message->len, sizeof(text));
	memcpy(text, message->data, message->len);
	sent[n_sent] = (struct sent){(uint32_t)atoi(text), message->stream, cb, arg};
	*out_call = (struct kvx_peer_call *)(uintptr_t)&sent[n_sent++];
	return 0;
}

void __wrap_kvx_peer_call_abandon(struct kvx_peer_call *call)
{
	((struct sent *)(uintptr_t)call)->cb = NULL;
	n_abandoned++;
}

/* Answers the oldest one that has no answer. */
static void answer(int status)
{
	struct sent *one = &sent[n_answered++];

	cr_assert_lt(n_answered, n_sent + 1);
	cr_assert(one->cb != NULL);
	one->cb(one->arg, status, "");
	rig_turn(&rig);
}

static void open_remote(void)
{
	open_import(NULL);
	target->peer = (struct kvx_peer *)(uintptr_t)sent; /* nobody looks at it */
}

Test(control_posts_far, beyond_what_may_be_unconfirmed_go_when_it_is_confirmed)
{
	open_remote();
	for (unsigned i = 1; i <= 5000; i++)
		post_number(i);
	cr_assert_lt(n_sent, 5000, "nothing bounds what is under way");
	cr_assert_eq(a.n_frames, 0);
	while (n_answered < n_sent)
		answer(0);
	cr_assert_eq(n_sent, 5000);
	for (unsigned i = 0; i < n_sent; i++) {
		cr_assert_eq(sent[i].number, i + 1);
		cr_assert_eq(sent[i].stream, sent[0].stream);
	}
	cr_assert_eq(a.n_frames, 0);
	cr_assert_eq(a.client->posted_bytes, 0);
	close_all();
}

/* Own memory stands for a receiver that reads: the bytes that wait are those of the other one. */
Test(control_posts_far, receiver_that_takes_nothing_ends_before_one_that_does)
{
	struct kvx_config config;
	unsigned n = 0;
	uint64_t own;

	kvx_config_defaults(&config);
	config.posted_bytes_per_client = 64 * 1024;
	open_import(&config);
	target->peer = (struct kvx_peer *)(uintptr_t)sent;
	own = rig_import(&a, &a, rig_register(&a, 4, KVX_ACCESS_WRITE));
	struct kvx_import *imp = kvx_client_import(a.client, own);
	imp->target->peer = (struct kvx_peer *)(uintptr_t)sent;
	while (a.client->posted_bytes + 600 <= config.posted_bytes_per_client)
		post_number(++n);
	cr_assert_eq(a.n_frames, 0);
	rig_run_clock(&rig, KVX_SEC);
	post(&a, own, "1");
	lost_is(&a, import, KVX_STATUS_QUOTA, "posted_bytes_per_client");
	cr_assert_eq(n_abandoned, n, "what waited goes with its import");
	cr_assert_eq(n_sent, n + 1);
	cr_assert_eq(imp->posts.n_sent, 1);
	n_answered = n;
	answer(0);
	cr_assert_eq(a.n_frames, 0);
	imp->target->peer = NULL;
	close_all();
}

/* As a peer answers whose client is full: the first one so, all behind it as refused with it. */
Test(control_posts_far, refused_by_a_full_receiver_are_sent_again_in_order)
{
	open_remote();
	for (unsigned i = 1; i <= 6; i++)
		post_number(i);
	cr_assert_eq(n_sent, 6);
	answer(0);
	answer(-EDQUOT);
	post_number(7);
	cr_assert_eq(n_sent, 6, "behind a refused one");
	for (unsigned i = 3; i <= 6; i++)
		answer(-ECANCELED);
	cr_assert_eq(n_sent, 6, "without a pause");
	rig_run_clock(&rig, 200 * KVX_MS);
	cr_assert_eq(n_sent, 7, "one at first");
	cr_assert_eq(sent[6].number, 2);
	cr_assert_eq(sent[6].stream, 0, "nothing can be refused with it");
	while (n_answered < n_sent)
		answer(0);
	cr_assert_eq(n_sent, 12);
	cr_assert_neq(sent[7].stream, 0);
	cr_assert_neq(sent[7].stream, sent[0].stream, "the peer refuses that one for good");
	for (unsigned i = 7; i < 12; i++) {
		cr_assert_eq(sent[i].number, i - 4);
		cr_assert_eq(sent[i].stream, sent[7].stream);
	}
	cr_assert_eq(a.n_frames, 0);
	cr_assert_eq(a.client->posted_bytes, 0);
	close_all();
}

Test(control_posts_far, receiver_that_refuses_for_ever_is_given_up)
{
	unsigned n;

	open_remote();
	post_number(1);
	for (n = 0; a.n_frames == 0; n++) {
		while (n_answered < n_sent)
			answer(-EDQUOT);
		rig_run_clock(&rig, 200 * KVX_MS);
		cr_assert_lt(n, 200);
	}
	cr_assert_geq(n, 100, "20 s");
	cr_assert_leq(n_sent, 250, "it is asked again and again: %u", n_sent);
	lost_is(&a, import, KVX_STATUS_QUOTA, "does not read its events");
	close_all();
}

Test(control_posts_far, connection_that_takes_no_more_is_waited_for)
{
	open_remote();
	post_number(1);
	refuse_at_once = -EDQUOT;
	post_number(2);
	post_number(3);
	rig_run_clock(&rig, KVX_SEC);
	cr_assert_eq(n_sent, 1);
	refuse_at_once = 0;
	rig_run_clock(&rig, 200 * KVX_MS);
	cr_assert_eq(n_sent, 3);
	cr_assert_eq(sent[2].number, 3);
	cr_assert_eq(sent[2].stream, sent[0].stream);
	while (n_answered < n_sent)
		answer(0);
	cr_assert_eq(a.n_frames, 0);
	close_all();
}

Test(control_posts_far, failure_of_one_ends_the_import_and_takes_all_with_it)
{
	open_remote();
	for (unsigned i = 1; i <= 5; i++)
		post_number(i);
	answer(0);
	answer(-EACCES);
	lost_is(&a, import, KVX_STATUS_ACCESS, "was not delivered");
	cr_assert_eq(n_abandoned, 3);
	cr_assert_eq(a.client->posted_bytes, 0);
	post_number(6);
	cr_assert_eq(n_sent, 5);
	close_all();
}

/* CANCELED says "behind a refused one": alone it is a failure like others. */
Test(control_posts_far, refusal_without_a_cause_ends_the_import)
{
	open_remote();
	post_number(1);
	answer(-ECANCELED);
	lost_is(&a, import, KVX_STATUS_CANCELLED, "was not delivered");
	close_all();
}

/* A peer that has forgotten a refusal has delivered one after a gap. */
Test(control_posts_far, delivery_behind_a_refusal_ends_the_import)
{
	open_remote();
	post_number(1);
	post_number(2);
	answer(-EDQUOT);
	answer(0);
	lost_is(&a, import, KVX_STATUS_PROTOCOL, "a later message came before it");
	rig_run_clock(&rig, KVX_SEC);
	cr_assert_eq(n_sent, 2);
	close_all();
}

Test(control_posts_far, no_memory_for_a_call_ends_the_import)
{
	open_remote();
	refuse_at_once = -ENOMEM;
	post_number(1);
	lost_is(&a, import, KVX_STATUS_NO_MEMORY, "was not delivered");
	cr_assert_eq(a.client->posted_bytes, 0);
	close_all();
}

Test(control_posts_far, under_way_when_the_client_ends_are_abandoned)
{
	open_remote();
	for (unsigned i = 1; i <= 5; i++)
		post_number(i);
	target->peer = NULL;
	rig_client_close(&a);
	cr_assert_eq(n_abandoned, 5);
	rig_client_close(&b);
	rig_end(&rig);
	KVX_TEST_END();
}
