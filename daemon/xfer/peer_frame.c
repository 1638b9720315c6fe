/* Frames of the peer channel: from and to protobuf, and which part a frame belongs to. Loop
 * thread; called by peer_conn.c and by every part that sends. A frame is decoded within a bound of
 * memory; one that cannot be decoded, or whose handler refuses it, ends the connection. An unknown
 * type is ignored and counted. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

typedef int (*frame_fn)(struct kvx_peer *peer, const ProtobufCMessage *message);

static int bye_on_frame(struct kvx_peer *peer, const ProtobufCMessage *message);

static const struct frame_kind {
	const char *name;
	const ProtobufCMessageDescriptor *descriptor;
	frame_fn on_frame; /* NULL: hello and ping, which need no peer */
} frame_kinds[] = {
#define KIND(type, lower, fn)                                                                      \
	[KVXP__PEER_FRAME_TYPE__PEER_##type] = {#type, &kvxp__peer_##lower##__descriptor, fn}
    KIND(HELLO, hello, NULL),
    KIND(HEARTBEAT, heartbeat, beat_on_frame),
    KIND(LANE, lane, lane_on_lane),
    KIND(LANE_UP, lane_up, lane_on_up),
    KIND(LANE_DOWN, lane_down, lane_on_down),
    KIND(RESOLVE, resolve, answer_on_resolve),
    KIND(RESOLVED, resolved, resolve_on_resolved),
    KIND(RELEASE, release, export_on_release),
    KIND(WITHDRAW, withdraw, remote_on_withdraw),
    KIND(WITHDRAWN, withdrawn, export_on_withdrawn),
    KIND(XFER_OPEN, xfer_open, inbound_on_open),
    KIND(XFER_END, xfer_end, inbound_on_end),
    KIND(MESSAGE, message, message_on_frame),
    KIND(MESSAGE_REPLY, message_reply, calls_on_reply),
    KIND(FIND, find, find_on_find),
    KIND(FOUND, found, find_on_found),
    KIND(PING, ping, NULL),
    KIND(BYE, bye, bye_on_frame),
#undef KIND
};

static void *arena_alloc(void *arg, size_t size)
{
	struct kvx_peers *peers = arg;

	if (size > peers->unpack_left)
		return NULL;
	peers->unpack_left -= size;
	return malloc(size);
}

static void arena_free(void *arg, void *ptr)
{
	free(ptr);
}

void frame_allocator_init(struct kvx_peers *peers)
{
	peers->allocator.alloc = arena_alloc;
	peers->allocator.free = arena_free;
	peers->allocator.allocator_data = peers;
}

int frame_send(struct peer_conn *conn, uint16_t type, const void *message)
{
	const ProtobufCMessage *base = message;
	size_t len = protobuf_c_message_get_packed_size(base);
	uint8_t *body;

	if (conn->state == CONN_CLOSED || conn->fail_status != 0)
		return -EHOSTDOWN;
	if (kvx_writer_pending_bytes(conn->writer) + len > PEER_WRITE_MAX_BYTES) {
		conn_fail(conn, -EHOSTDOWN, "%s does not read what is sent to it", conn->addr);
		return -EHOSTDOWN;
	}
	body = len > UINT32_MAX ? NULL : kvx_writer_reserve(conn->writer, type, (uint32_t)len);
	if (body == NULL) {
		conn_fail(conn, -ENOMEM, "%s: out of memory", conn->addr);
		return -ENOMEM;
	}
	protobuf_c_message_pack(base, body);
	conn_dirty(conn);
	return 0;
}

/* To a peer after hello. What is sent is never lost without the peer being lost. */
int peer_send(struct kvx_peer *peer, uint16_t type, const void *message)
{
	if (peer->conn == NULL)
		return -EHOSTDOWN;
	return frame_send(peer->conn, type, message);
}

static KVX_ON_LOOP int bye_on_frame(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerBye *bye = (const Kvxp__PeerBye *)message;
	char text[KVX_WHY_BYTES];

	peer_text(text, sizeof(text), bye->text);
	peer->conn->said_fenced = bye->fenced;
	conn_fail(peer->conn, -EHOSTDOWN, "said goodbye: %s", text);
	return 0;
}

static KVX_ON_LOOP void bye_before_hello(struct peer_conn *conn, const Kvxp__PeerBye *bye)
{
	int err = kvx_status_to_errno(bye->status);
	char text[KVX_WHY_BYTES];

	peer_text(text, sizeof(text), bye->text);
	conn_fail(conn, err < 0 ? err : -EHOSTUNREACH, "%s refused: %s", conn->addr, text);
}

static KVX_ON_LOOP void frame_handle(struct peer_conn *conn, uint16_t type,
				     const ProtobufCMessage *message)
{
	const struct frame_kind *kind = &frame_kinds[type];
	struct kvx_peer *peer = conn->peer;
	int err;

	if (type == KVXP__PEER_FRAME_TYPE__PEER_HELLO && conn->state == CONN_HELLO) {
		hello_on_frame(conn, (const Kvxp__PeerHello *)message);
		return;
	}
	if (type == KVXP__PEER_FRAME_TYPE__PEER_BYE && conn->state != CONN_UP) {
		bye_before_hello(conn, (const Kvxp__PeerBye *)message);
		return;
	}
	if (type == KVXP__PEER_FRAME_TYPE__PEER_PING && conn->state == CONN_UP) {
		calls_on_ping(conn, (const Kvxp__PeerPing *)message);
		return;
	}
	if (conn->state != CONN_UP || peer == NULL || kind->on_frame == NULL) {
		if (conn->probe && type == KVXP__PEER_FRAME_TYPE__PEER_BYE)
			conn_fail(conn, -EHOSTDOWN, "%s said goodbye", conn->addr);
		else
			conn_refuse(conn, -EPROTO, "a frame out of its turn");
		return;
	}
	err = kind->on_frame(peer, message);
	if (err < 0 && peer->conn == conn) {
		kvx_warn("peer %s: refused its %s frame: %s", peer->name, kind->name,
			 strerror(-err));
		conn_refuse(conn, err, err == -EPROTO ? "malformed frame" : strerror(-err));
	}
}

void frame_dispatch(struct peer_conn *conn, const struct kvx_msg *msg)
{
	const struct frame_kind *kind;
	ProtobufCMessage *message;

	if (conn->peer != NULL && conn->state == CONN_UP)
		conn->peer->last_rx_ns = peer_now(conn->peers);
	if (msg->type >= sizeof(frame_kinds) / sizeof(frame_kinds[0]) ||
	    frame_kinds[msg->type].name == NULL) {
		if (conn->state != CONN_UP)
			conn_refuse(conn, -EPROTO, "the first frame must be HELLO");
		else if (conn->peer != NULL)
			conn->peer->n_ignored++;
		return;
	}
	kind = &frame_kinds[msg->type];
	conn->peers->unpack_left = PEER_UNPACK_MAX_BYTES;
	message = protobuf_c_message_unpack(kind->descriptor, &conn->peers->allocator,
					    msg->len_bytes, msg->body);
	if (message == NULL) {
		kvx_debug("peer: %s: %s frame of %u bytes cannot be decoded", conn->addr,
			  kind->name, msg->len_bytes);
		conn_refuse(conn, -EPROTO, "a frame cannot be decoded");
		return;
	}
	frame_handle(conn, msg->type, message);
	protobuf_c_message_free_unpacked(message, &conn->peers->allocator);
}
