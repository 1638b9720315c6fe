/* Calls to peers that end in one reply: messages to the owners of their regions, and pings, to
 * known peers or to any address (a probe: a connection for one ping). Loop thread. Every call ends
 * exactly once: by its reply, its time-out, the loss of the peer, or its owner's abandoning it. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct kvx_peer_call {
	struct kvx_peers *peers;
	uint64_t request_id; /* key */
	struct kvx_peer *peer;
	struct peer_conn *probe; /* instead of peer */
	bool ping;
	bool sent;
	uint64_t sent_ns;
	struct kvx_timer timer;
	kvx_peer_reply_cb cb;
	void *arg;
	UT_hash_handle hh;
};

static KVX_ON_LOOP void call_free(struct kvx_peer_call *call)
{
	struct kvx_peers *peers = call->peers;
	struct peer_conn *probe = call->probe;

	HASH_DEL(peers->calls, call);
	kvx_timer_stop(peers->conf.timers, &call->timer);
	free(call);
	if (probe != NULL) {
		probe->probe_call = NULL;
		conn_close(probe);
	}
	peers_kick(peers); /* closing waits for calls, too */
}

static KVX_ON_LOOP void call_end(struct kvx_peer_call *call, int status, const char *text)
{
	kvx_peer_reply_cb cb = call->cb;
	void *arg = call->arg;

	call_free(call);
	cb(arg, status, text);
}

static void call_on_timer(struct kvx_timer *timer)
{
	struct kvx_peer_call *call =
	    (struct kvx_peer_call *)((char *)timer - offsetof(struct kvx_peer_call, timer));

	kvx_assert_on_loop();
	call_end(call, -ETIMEDOUT, call->sent ? "no answer in time" : "no connection in time");
}

static int call_create(struct kvx_peers *peers, uint64_t timeout_ns, kvx_peer_reply_cb cb,
		       void *arg, struct kvx_peer_call **out_call)
{
	struct kvx_peer_call *call = calloc(1, sizeof(*call));

	if (call == NULL)
		return -ENOMEM;
	call->peers = peers;
	call->request_id = ++peers->next_request;
	call->cb = cb;
	call->arg = arg;
	if (kvx_timer_start(peers->conf.timers, &call->timer, timeout_ns, call_on_timer) < 0)
		goto err_free;
	HASH_ADD(hh, peers->calls, request_id, sizeof(call->request_id), call);
	if (call->hh.tbl == NULL)
		goto err_timer;
	*out_call = call;
	return 0;

err_timer:
	kvx_timer_stop(peers->conf.timers, &call->timer);
err_free:
	free(call);
	return -ENOMEM;
}

void kvx_peer_call_abandon(struct kvx_peer_call *call)
{
	call_free(call);
}

static struct kvx_peer_call *call_find(const struct kvx_peers *peers, uint64_t request_id)
{
	struct kvx_peer_call *call;

	HASH_FIND(hh, peers->calls, &request_id, sizeof(request_id), call);
	return call;
}

/* Callbacks may end other calls: look anew after each. */
void calls_fail_all(struct kvx_peer *peer, int status, const char *text)
{
	struct kvx_peer_call *call = peer->peers->calls;

	while (call != NULL) {
		if (call->peer == peer) {
			call_end(call, status, text);
			call = peer->peers->calls;
		} else {
			call = call->hh.next;
		}
	}
}

bool calls_is_wanted(const struct kvx_peer *peer)
{
	const struct kvx_peer_call *call;

	for (call = peer->peers->calls; call != NULL; call = call->hh.next)
		if (call->peer == peer)
			return true;
	return false;
}

/* messages */

int kvx_peers_message(struct kvx_peers *peers, struct kvx_target *target,
		      const struct kvx_peer_message *message, uint64_t timeout_ns,
		      kvx_peer_reply_cb cb, void *arg, struct kvx_peer_call **out_call)
{
	Kvxp__PeerMessage msg = KVXP__PEER_MESSAGE__INIT;
	struct kvx_peer *peer = target->peer;
	struct kvx_peer_call *call;
	int err;

	if (target->lost)
		return target->lost_status;
	if (peer == NULL)
		return -EINVAL;
	if (message->len > KVX_PAYLOAD_MAX)
		return -EMSGSIZE;
	if (peer->conn == NULL || peer->conn->fail_status != 0)
		return -EHOSTDOWN;
	/* The rest is for what the nodes have to say to each other: messages cannot cost everybody
	 * the connection. */
	if (kvx_writer_pending_bytes(peer->conn->writer) > PEER_WRITE_MAX_BYTES / 4)
		return -EDQUOT;
	err = call_create(peers, timeout_ns, cb, arg, &call);
	if (err < 0)
		return err;
	call->peer = peer;
	call->sent = true;
	msg.request_id = call->request_id;
	msg.region = target->region_id;
	msg.token.data = target->token;
	msg.token.len = KVX_TOKEN_BYTES;
	msg.data.data = (uint8_t *)(uintptr_t)message->data;
	msg.data.len = message->len;
	msg.stream = message->stream;
	err = peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_MESSAGE, &msg);
	if (err < 0) {
		call_free(call);
		return err;
	}
	*out_call = call;
	return 0;
}

int calls_on_reply(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerMessageReply *msg = (const Kvxp__PeerMessageReply *)message;
	struct kvx_peer_call *call = call_find(peer->peers, msg->request_id);
	char text[KVX_WHY_BYTES];

	if (call == NULL || call->peer != peer || call->ping) {
		peer->n_stale++;
		return 0;
	}
	peer_text(text, sizeof(text), msg->text);
	call_end(call, kvx_status_to_errno(msg->status), text);
	return 0;
}

/* pings */

static KVX_ON_LOOP void ping_send(struct peer_conn *conn, struct kvx_peer_call *call)
{
	Kvxp__PeerPing ping = KVXP__PEER_PING__INIT;

	call->sent = true;
	call->sent_ns = peer_now(call->peers);
	ping.request_id = call->request_id;
	frame_send(conn, KVXP__PEER_FRAME_TYPE__PEER_PING, &ping);
}

void calls_on_ping(struct peer_conn *conn, const Kvxp__PeerPing *ping)
{
	Kvxp__PeerPing reply = KVXP__PEER_PING__INIT;
	struct kvx_peer_call *call;
	char text[32];

	if (!ping->reply) {
		reply.request_id = ping->request_id;
		reply.reply = true;
		frame_send(conn, KVXP__PEER_FRAME_TYPE__PEER_PING, &reply);
		return;
	}
	call = call_find(conn->peers, ping->request_id);
	if (call == NULL || !call->ping || !call->sent ||
	    (conn->peer != NULL ? call->peer != conn->peer : call->probe != conn))
		return; /* timed out, or never asked */
	snprintf(text, sizeof(text), "%" PRIu64, peer_now(conn->peers) - call->sent_ns);
	call_end(call, 0, text);
}

void calls_on_up(struct kvx_peer *peer)
{
	struct kvx_peer_call *call;

	for (call = peer->peers->calls; call != NULL; call = call->hh.next)
		if (call->peer == peer && call->ping && !call->sent)
			ping_send(peer->conn, call);
}

void calls_on_probe_up(struct peer_conn *conn)
{
	if (conn->probe_call != NULL)
		ping_send(conn, conn->probe_call);
}

void calls_on_probe_failed(struct peer_conn *conn)
{
	struct kvx_peer_call *call = conn->probe_call;

	conn->probe_call = NULL;
	call->probe = NULL; /* the caller closes it */
	call_end(call, conn->fail_status, conn->fail_text);
}

static struct kvx_peer *ping_find_peer(const struct kvx_peers *peers, const char *who)
{
	struct kvx_peer *peer;

	for (peer = peers->table; peer != NULL; peer = peer->hh.next)
		if (strcmp(peer->name, who) == 0 ||
		    (peer->conn != NULL && strcmp(peer->addr, who) == 0))
			return peer;
	return NULL;
}

static KVX_ON_LOOP int ping_start(struct kvx_peer_call *call, struct kvx_peer *peer,
				  const char *who, struct kvx_why *why)
{
	int err;

	if (peer != NULL) {
		call->peer = peer;
		if (peer->conn != NULL)
			ping_send(peer->conn, call);
		peer_wake(peer);
		return 0;
	}
	err = conn_dial(call->peers, NULL, who, &call->probe, why);
	if (err < 0) {
		call->probe = NULL;
		return err;
	}
	if (call->probe->state == CONN_CLOSED) { /* failed at once; buried by the next kick */
		err = kvx_why(why, call->probe->fail_status, "%s", call->probe->fail_text);
		call->probe = NULL;
		return err;
	}
	call->probe->probe_call = call;
	return 0;
}

int kvx_peers_ping(struct kvx_peers *peers, const char *who, uint64_t timeout_ns,
		   kvx_peer_reply_cb cb, void *arg, struct kvx_peer_call **out_call,
		   struct kvx_why *why)
{
	struct kvx_peer *peer = ping_find_peer(peers, who);
	struct kvx_peer_call *call;
	int err;

	if (peers->closing)
		return kvx_why(why, -ESHUTDOWN, "the daemon is closing");
	if (peer == NULL && strchr(who, ':') == NULL)
		return kvx_why(why, -ENOENT,
			       "no peer \"%s\": give 32 hex digits of a node id that "
			       "`peers` shows, or HOST:PORT",
			       who);
	if (peer != NULL && peer->conn == NULL && peer->addr[0] == '\0')
		return kvx_why(why, -EHOSTUNREACH, "the peer is not connected and does not listen");
	err = call_create(peers, timeout_ns, cb, arg, &call);
	if (err < 0)
		return kvx_why(why, err, "out of memory");
	call->ping = true;
	err = ping_start(call, peer, who, why);
	if (err < 0) {
		call_free(call);
		return err;
	}
	*out_call = call;
	return 0;
}
