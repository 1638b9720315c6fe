/* MESSAGE_SEND, MESSAGE_POST and pings: small things that go to another client or node. On this
 * node a message is an event of the region's owner at once; to another it goes by the peer channel,
 * after all that was said there before, the ends of transfers too. What was sent is answered; what
 * was posted ends its import when it is not delivered; posts.c keeps what cannot go at once. Owns
 * the calls that wait for a peer. Loop thread. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/clock.h"
#include "base/idmap.h"
#include "base/log.h"
#include "control/control_priv.h"
#include "control/decode.h"

#define CALL_TIMEOUT_NS (5 * KVX_SEC)

int kvx_client_deliver_message(struct kvx_client *owner, const struct kvx_region *region,
			       const void *data, uint32_t len)
{
	Kvxp__Event event = KVXP__EVENT__INIT;

	if (owner == NULL || owner->sm.state != KVX_CLIENT_READY)
		return -EPIPE;
	if (kvx_client_is_full(owner))
		return -EDQUOT;
	event.type = KVXP__EVENT_TYPE__EVENT_MESSAGE;
	event.region = region->id;
	event.payload = (ProtobufCBinaryData){len, (uint8_t *)(uintptr_t)data};
	owner->control->stats.messages++;
	kvx_client_event(owner, &event);
	return 0;
}

/* ---- calls to peers */

static int calls_check(const struct kvx_client *client, struct kvx_why *why)
{
	if (client->n_calls < KVX_CLIENT_CALLS_MAX)
		return 0;
	return kvx_why(why, -EDQUOT, "%u messages and pings are unanswered, the limit",
		       KVX_CLIENT_CALLS_MAX);
}

static struct kvx_client_call *call_create(struct kvx_client *client, uint32_t request_id,
					   struct kvx_why *why, int *out_err)
{
	struct kvx_client_call *call;

	*out_err = calls_check(client, why);
	if (*out_err < 0)
		return NULL;
	call = calloc(1, sizeof(*call));
	if (call == NULL) {
		*out_err = -ENOMEM;
		return NULL;
	}
	call->client = client;
	call->request_id = request_id;
	DL_APPEND(client->calls, call);
	client->n_calls++;
	return call;
}

static void call_destroy(struct kvx_client_call *call)
{
	struct kvx_client *client = call->client;

	DL_DELETE(client->calls, call);
	client->n_calls--;
	free(call);
}

static void message_on_reply(void *arg, int status, const char *text)
{
	struct kvx_client_call *call = arg;

	kvx_assert_on_loop();
	kvx_client_reply_error(call->client, call->request_id, status, text);
	call_destroy(call);
}

void kvx_client_abandon_calls(struct kvx_client *client)
{
	struct kvx_client_call *call, *tmp;

	DL_FOREACH_SAFE (client->calls, call, tmp) {
		kvx_peer_call_abandon(call->peer_call);
		call_destroy(call);
	}
}

/* ---- messages */

int kvx_message_local(struct kvx_control *control, const struct kvx_target *target,
		      const ProtobufCBinaryData *data, struct kvx_why *why)
{
	int err;

	if (target->region == NULL)
		return kvx_why(why, -EPIPE, "the client that owns the region is gone");
	err = kvx_client_deliver_message(kvx_control_client(control, target->region->owner),
					 target->region, data->data, (uint32_t)data->len);
	if (err == -EPIPE)
		return kvx_why(why, err, "the client that owns the region is gone");
	if (err == -EDQUOT)
		return kvx_why(why, err, "the receiver does not read its events");
	return err;
}

static int message_why(int err, struct kvx_why *why)
{
	if (err == -EDQUOT)
		return kvx_why(why, err,
			       "the other node has not read what was sent to it before: wait for "
			       "its answers");
	return err;
}

static KVX_ON_LOOP int message_remote(struct kvx_client *client, const Kvxp__MessageSend *req,
				      struct kvx_target *target, struct kvx_why *why)
{
	const struct kvx_peer_message message = {req->data.data, (uint32_t)req->data.len, 0};
	struct kvx_client_call *call;
	int err = 0;

	call = call_create(client, req->request_id, why, &err);
	if (call == NULL)
		return err;
	err = kvx_peers_message(client->control->conf.peers, target, &message, CALL_TIMEOUT_NS,
				message_on_reply, call, &call->peer_call);
	if (err < 0)
		call_destroy(call);
	return message_why(err, why);
}

/* 0: answered, or it will be. */
static KVX_ON_LOOP int message_send(struct kvx_import *imp, const Kvxp__MessageSend *req,
				    struct kvx_why *why)
{
	struct kvx_client *client = imp->client;
	int err;

	if (imp->posts.first != NULL) { /* it goes behind them */
		err = calls_check(client, why);
		return err < 0 ? err : kvx_posts_add(imp, &req->data, &req->request_id, why);
	}
	if (imp->target->peer != NULL)
		return message_remote(client, req, imp->target, why);
	err = kvx_message_local(client->control, imp->target, &req->data, why);
	if (err == 0)
		kvx_client_reply_error(client, req->request_id, 0, NULL);
	return err;
}

void kvx_handle_message_send(struct kvx_client *client, struct kvx_msg *msg)
{
	struct kvx_why why = {""};
	Kvxp__MessageSend *req;
	struct kvx_import *imp;
	int err;

	req = kvx_client_decode(client, &kvxp__message_send__descriptor, msg);
	if (req == NULL)
		return;
	imp = kvx_client_import(client, req->import);
	if (imp == NULL)
		err = kvx_why(&why, -ENOENT, "the import is not one of this client");
	else if (req->data.len == 0)
		err = kvx_why(&why, -EINVAL, "a message of 0 bytes");
	else
		err = kvx_decode_payload(&req->data, &why);
	if (err == 0 && imp->target->lost)
		err = kvx_why(&why, imp->target->lost_status, "the remote region is gone");
	else if (err == 0 && imp->loss_status != 0) /* it would be out of order */
		err = kvx_why(&why, imp->loss_status, "the import has ended: %s",
			      imp->loss_text != NULL ? imp->loss_text : "import the region anew");
	if (err == 0)
		err = message_send(imp, req, &why);
	if (err != 0)
		kvx_client_reply_error(client, req->request_id, err, why.text);
}

/* ---- posted messages */

void kvx_handle_message_post(struct kvx_client *client, struct kvx_msg *msg)
{
	struct kvx_why why = {""};
	Kvxp__MessagePost *req;
	struct kvx_import *imp;
	int err;

	req = kvx_client_decode(client, &kvxp__message_post__descriptor, msg);
	if (req == NULL)
		return;
	imp = kvx_client_import(client, req->import);
	if (imp == NULL) {
		client->control->stats.stale_requests++;
		return;
	}
	/* Its loss has been told, or is about to be: with it this message. */
	if (imp->target->lost || imp->loss_status != 0)
		return;
	err = req->data.len > 0 ? kvx_decode_payload(&req->data, &why)
				: kvx_why(&why, -EINVAL, "a message of 0 bytes");
	if (err == 0 && imp->target->peer == NULL && imp->posts.first == NULL) {
		err = kvx_message_local(client->control, imp->target, &req->data, &why);
		if (err == -EDQUOT)
			err = kvx_posts_add(imp, &req->data, NULL, &why);
	} else if (err == 0) {
		err = kvx_posts_add(imp, &req->data, NULL, &why);
	}
	if (err < 0)
		kvx_import_fail(imp, err, why.text);
}

/* ---- pings */

static void ping_on_reply(void *arg, int status, const char *text)
{
	struct kvx_client_call *call = arg;
	Kvxp__Reply reply = KVXP__REPLY__INIT;
	char json[192];

	kvx_assert_on_loop();
	if (status < 0) {
		kvx_client_reply_error(call->client, call->request_id, status, text);
	} else {
		snprintf(json, sizeof(json), "{\"peer\":\"%s\",\"rtt_ns\":%llu}", call->who,
			 strtoull(text, NULL, 10));
		reply.request_id = call->request_id;
		reply.text = json;
		kvx_client_reply(call->client, &reply);
	}
	call_destroy(call);
}

/* whom: only what a node id or an address can be made of, so that it needs no quoting in JSON. */
static bool ping_who_is_plain(const char *who)
{
	size_t n = strspn(who, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			       ".:-[]_%");

	return n > 0 && who[n] == '\0';
}

int kvx_client_ping(struct kvx_client *client, uint32_t request_id, const char *who,
		    struct kvx_why *why)
{
	struct kvx_client_call *call;
	int err = 0;

	if (client->control->conf.peers == NULL)
		return kvx_why(why, -EHOSTUNREACH, "this daemon has no peers ([peer] enable)");
	if (strlen(who) >= sizeof(call->who) || !ping_who_is_plain(who))
		return kvx_why(why, -EINVAL, "ping whom? a node id or HOST:PORT");
	call = call_create(client, request_id, why, &err);
	if (call == NULL)
		return err;
	snprintf(call->who, sizeof(call->who), "%s", who);
	err = kvx_peers_ping(client->control->conf.peers, who, CALL_TIMEOUT_NS, ping_on_reply, call,
			     &call->peer_call, why);
	if (err < 0)
		call_destroy(call);
	return err;
}
