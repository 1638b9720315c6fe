/* Messages through an import that cannot go at once: kept, in order, until the receiver has them.
 * One that is full (its client has more unread than it may have) refuses a message and, on another
 * node, all behind it of the same stream: they are sent again as a new stream once all answers are
 * there, after a pause. So nothing is lost and nothing comes twice, and neither the client's other
 * requests nor its other imports wait. A message that fails otherwise, or a receiver that takes
 * nothing for KVX_POSTS_STUCK_NS, ends the import. What one client may have waiting is bounded in
 * bytes. Loop thread; called by the handlers of messages and imports, by timers and by peers. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/assert.h"
#include "base/idmap.h"
#include "control/control_priv.h"

#define CALL_TIMEOUT_NS (5 * KVX_SEC)
#define PAUSE_FIRST_NS  (8 * KVX_MS)
#define PAUSE_MOST_NS   (128 * KVX_MS)
/* Sent to another node and unanswered, of one import. A refusal halves it. */
#define ROOM_MOST  4096u
#define ROOM_LEAST 64u
/* What one costs besides its bytes: itself, and the call to the other node. */
#define POST_BYTES 512u

struct kvx_post {
	struct kvx_import *import;
	struct kvx_peer_call *call; /* under way to the other node; NULL: not */
	bool answered;              /* MESSAGE_SEND: its client waits for a reply */
	uint32_t request_id;
	uint32_t len;
	struct kvx_post *prev, *next;
	uint8_t data[];
};

static void posts_go(struct kvx_import *import) KVX_ON_LOOP;

void kvx_posts_init(struct kvx_posts *posts)
{
	posts->room = ROOM_MOST;
	posts->room_max = ROOM_MOST;
	posts->pause_ns = PAUSE_FIRST_NS;
}

static KVX_ON_LOOP void posts_progress(struct kvx_import *import)
{
	import->posts.pause_ns = PAUSE_FIRST_NS;
	import->posts.progress_ns = kvx_timers_now(import->client->control->conf.timers);
}

static KVX_ON_LOOP void post_free(struct kvx_post *post)
{
	struct kvx_import *import = post->import;
	struct kvx_client *client = import->client;

	DL_DELETE(import->posts.first, post);
	client->posted_bytes -= POST_BYTES + post->len;
	client->n_calls -= post->answered ? 1 : 0;
	free(post);
}

/* Of MESSAGE_SEND; nobody waits for the others. */
static KVX_ON_LOOP void post_end(struct kvx_post *post, int status, const char *text)
{
	struct kvx_client *client = post->import->client;

	if (post->answered)
		kvx_client_reply_error(client, post->request_id, status, text);
	post_free(post);
}

void kvx_posts_drop(struct kvx_import *import, int status, const char *text)
{
	struct kvx_posts *posts = &import->posts;

	kvx_timer_stop(import->client->control->conf.timers, &posts->timer);
	while (posts->first != NULL) {
		if (posts->first->call != NULL)
			kvx_peer_call_abandon(posts->first->call);
		post_end(posts->first, status, text);
	}
	posts->unsent = NULL;
	posts->n_sent = 0;
	posts->refused = false;
}

static void posts_on_timer(struct kvx_timer *timer)
{
	struct kvx_import *import =
	    (struct kvx_import *)((char *)timer - offsetof(struct kvx_import, posts.timer));

	kvx_assert_on_loop();
	posts_go(import);
}

/* The receiver takes no more for now. */
static KVX_ON_LOOP void posts_pause(struct kvx_import *import, const char *why)
{
	struct kvx_timers *timers = import->client->control->conf.timers;
	struct kvx_posts *posts = &import->posts;

	if (kvx_timers_now(timers) - posts->progress_ns >= KVX_POSTS_STUCK_NS) {
		kvx_import_fail(import, -EDQUOT, why);
		return;
	}
	if (kvx_timer_start(timers, &posts->timer, posts->pause_ns, posts_on_timer) < 0) {
		kvx_import_fail(import, -ENOMEM, NULL);
		return;
	}
	posts->pause_ns *= 2;
	if (posts->pause_ns > PAUSE_MOST_NS)
		posts->pause_ns = PAUSE_MOST_NS;
}

/* All answers are there: what was refused goes again, the first one alone to begin with. */
static KVX_ON_LOOP void posts_begin_anew(struct kvx_import *import)
{
	struct kvx_posts *posts = &import->posts;

	posts->refused = false;
	posts->stream = 0;
	posts->unsent = posts->first;
	posts->room = 1;
	posts->room_max /= 2;
	if (posts->room_max < ROOM_LEAST)
		posts->room_max = ROOM_LEAST;
	posts_pause(import, "the receiver does not read its events");
}

static KVX_ON_LOOP void posts_confirmed(struct kvx_import *import, struct kvx_post *post)
{
	struct kvx_posts *posts = &import->posts;

	posts_progress(import);
	if (posts->room < posts->room_max)
		posts->room++;
	post_end(post, 0, NULL);
	if (posts->first == NULL)
		kvx_posts_init(posts);
}

static void post_on_reply(void *arg, int status, const char *text)
{
	struct kvx_post *post = arg;
	struct kvx_import *import = post->import;
	struct kvx_posts *posts = &import->posts;

	kvx_assert_on_loop();
	post->call = NULL;
	posts->n_sent--;
	if (status == 0 && posts->refused) {
		kvx_import_fail(import, -EPROTO, "a later message came before it");
		return;
	}
	if (status == 0) {
		posts_confirmed(import, post);
	} else if (status == -EDQUOT) {
		posts->refused = true;
	} else if (status != -ECANCELED || !posts->refused) { /* not only behind a refused one */
		kvx_import_fail(import, status, text);
		return;
	}
	if (!posts->refused)
		posts_go(import);
	else if (posts->n_sent == 0)
		posts_begin_anew(import);
}

static KVX_ON_LOOP int post_send_remote(struct kvx_post *post, struct kvx_why *why)
{
	struct kvx_import *import = post->import;
	struct kvx_control *control = import->client->control;
	struct kvx_posts *posts = &import->posts;
	struct kvx_peer_message message = {post->data, post->len, 0};
	int err;

	/* What goes alone has none behind it that would have to be refused with it. */
	if (posts->room > 1 && posts->stream == 0)
		posts->stream = ++control->n_post_streams;
	message.stream = posts->stream;
	err = kvx_peers_message(control->conf.peers, import->target, &message, CALL_TIMEOUT_NS,
				post_on_reply, post, &post->call);
	if (err == -EDQUOT)
		kvx_why(why, err, "the other node does not read what it is sent");
	if (err == 0)
		posts->n_sent++;
	return err;
}

/* Sends what may be sent. */
static void posts_go(struct kvx_import *import)
{
	struct kvx_posts *posts = &import->posts;
	struct kvx_why why = {""};
	int err = 0;

	while (posts->unsent != NULL && !posts->refused && posts->n_sent < posts->room &&
	       !kvx_timer_is_running(&posts->timer)) {
		struct kvx_post *post = posts->unsent;
		const ProtobufCBinaryData data = {post->len, post->data};

		err = import->target->peer != NULL
			  ? post_send_remote(post, &why)
			  : kvx_message_local(import->client->control, import->target, &data, &why);
		if (err < 0)
			break;
		posts->unsent = post->next;
		if (import->target->peer == NULL)
			posts_confirmed(import, post);
	}
	if (err == -EDQUOT)
		posts_pause(import, why.text);
	else if (err < 0)
		kvx_import_fail(import, err, why.text);
}

static int posts_check_room(const struct kvx_client *client, size_t len, struct kvx_why *why)
{
	uint64_t limit = client->control->conf.config->posted_bytes_per_client;

	if (client->posted_bytes + POST_BYTES + len <= limit)
		return 0;
	return kvx_why(why, -EDQUOT,
		       "%llu bytes of messages wait for receivers that do not take them, %llu are "
		       "allowed ([limits] posted_bytes_per_client)",
		       (unsigned long long)client->posted_bytes, (unsigned long long)limit);
}

/* The import whose receiver has taken nothing for the longest time. */
static KVX_ON_LOOP struct kvx_import *posts_stalest(const struct kvx_client *client)
{
	struct kvx_import *import, *stalest = NULL;
	uint32_t cursor = 0;

	while ((import = kvx_idmap_next(client->imports, &cursor)) != NULL)
		if (import->posts.first != NULL &&
		    (stalest == NULL || import->posts.progress_ns < stalest->posts.progress_ns))
			stalest = import;
	return stalest;
}

/* What is posted to a receiver that reads must not be lost for one that does not: that one's import
 * ends first. What is sent is refused instead, and nothing lost. */
static KVX_ON_LOOP int posts_make_room(const struct kvx_import *import, size_t len, bool sent,
				       struct kvx_why *why)
{
	int err;

	while ((err = posts_check_room(import->client, len, why)) < 0 && !sent) {
		struct kvx_import *stalest = posts_stalest(import->client);

		if (stalest == NULL || stalest == import)
			break;
		kvx_import_fail(stalest, err, why->text);
		kvx_assert(stalest->posts.first == NULL);
	}
	return err;
}

int kvx_posts_add(struct kvx_import *import, const ProtobufCBinaryData *data,
		  const uint32_t *request_id, struct kvx_why *why)
{
	struct kvx_client *client = import->client;
	struct kvx_posts *posts = &import->posts;
	struct kvx_post *post;
	int err = posts_make_room(import, data->len, request_id != NULL, why);

	if (err < 0)
		return err;
	post = malloc(sizeof(*post) + data->len);
	if (post == NULL)
		return -ENOMEM;
	*post = (struct kvx_post){.import = import, .len = (uint32_t)data->len};
	if (request_id != NULL) {
		post->answered = true;
		post->request_id = *request_id;
		client->n_calls++;
	}
	memcpy(post->data, data->data, data->len);
	client->posted_bytes += POST_BYTES + post->len;
	if (posts->first == NULL)
		posts_progress(import);
	DL_APPEND(posts->first, post);
	if (posts->unsent == NULL)
		posts->unsent = post;
	posts_go(import);
	return 0;
}
