/* Hello and heartbeats: who is on a connection, which of two connections stays, whether the other
 * side is alive, and how long inbound data may land (the lease). Loop thread; frames come from
 * peer_frame.c, beat_step() from peer_step(). */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"

int hello_send(struct peer_conn *conn)
{
	const struct kvx_peers *peers = conn->peers;
	Kvxp__PeerHello hello = KVXP__PEER_HELLO__INIT;
	char *transports[KVX_NODE_TRANSPORTS];
	const struct kvx_transport_ops *const *ops = kvx_node_peer_transports(peers->conf.node);

	hello.version_min = PEER_VERSION_MIN;
	hello.version_max = PEER_VERSION_MAX;
	hello.node_id.data = (uint8_t *)peers->conf.node_id;
	hello.node_id.len = KVX_NODE_ID_BYTES;
	hello.epoch = peers->conf.epoch;
	hello.address = (char *)peers->address;
	hello.daemon_version = (char *)peers->version;
	hello.lost_ms = peers->conf.lost_ms;
	hello.probe = conn->probe;
	hello.who = conn->who;
	hello.transports = transports;
	for (; *ops != NULL; ops++)
		if (transport_has_rail(peers->conf.node, *ops))
			transports[hello.n_transports++] = (char *)(uintptr_t)(*ops)->name;
	hello.tenants = (char **)(uintptr_t)peers->tenants;
	hello.n_tenants = peers->n_tenants;
	hello.any_memory = true;
	hello.gpus = kvx_node_gpus(peers->conf.node);
	return frame_send(conn, KVXP__PEER_FRAME_TYPE__PEER_HELLO, &hello);
}

static int hello_check(const struct peer_conn *conn, const Kvxp__PeerHello *hello,
		       struct kvx_why *why)
{
	const struct kvx_peers *peers = conn->peers;
	char host[KVX_PEER_ADDR_BYTES], port[8], name[2 * KVX_NODE_ID_BYTES + 1];

	if (hello->version_min > PEER_VERSION_MAX || hello->version_max < PEER_VERSION_MIN)
		return kvx_why(why, -EPROTONOSUPPORT,
			       "this daemon speaks versions %u to %u of the peer protocol, the "
			       "other one %u to %u: upgrade the older one",
			       PEER_VERSION_MIN, PEER_VERSION_MAX, hello->version_min,
			       hello->version_max);
	if (hello->version_min > hello->version_max || hello->node_id.len != KVX_NODE_ID_BYTES ||
	    hello->epoch == 0 || hello->lost_ms == 0)
		return kvx_why(why, -EPROTO, "malformed hello");
	if (hello->address[0] != '\0' &&
	    (strlen(hello->address) >= KVX_PEER_ADDR_BYTES ||
	     addr_split(hello->address, host, sizeof(host), port, sizeof(port)) < 0))
		return kvx_why(why, -EPROTO, "hello with an address that is not HOST:PORT");
	if (memcmp(hello->node_id.data, peers->conf.node_id, KVX_NODE_ID_BYTES) == 0 &&
	    !(hello->probe && hello->who))
		return kvx_why(why, -EINVAL,
			       "both ends are the same node: two daemons use one node id, or the "
			       "address is this node's own");
	if (conn->tls == NULL)
		return 0;
	peer_name(hello->node_id.data, name);
	return peer_tls_check_node(conn->tls, name, why);
}

static bool name_is_listed(char *const *names, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(names[i], name) == 0)
			return true;
	return false;
}

static void common_add(struct kvx_peer *peer, const struct kvx_transport_ops *ops)
{
	for (unsigned i = 0; i < peer->n_common; i++)
		if (peer->common[i] == ops)
			return;
	peer->common[peer->n_common++] = ops;
}

/* What both nodes have, in the order of the one that offers lanes. */
static void hello_take_transports(struct kvx_peer *peer, const Kvxp__PeerHello *hello)
{
	const struct kvx_node *node = peer->peers->conf.node;
	const struct kvx_transport_ops *const *ours = kvx_node_peer_transports(node), *const * ops;

	peer->n_common = 0;
	if (peer_is_lower(peer)) {
		for (ops = ours; *ops != NULL; ops++)
			if (name_is_listed(hello->transports, hello->n_transports, (*ops)->name) &&
			    transport_has_rail(node, *ops))
				common_add(peer, *ops);
		return;
	}
	for (size_t i = 0; i < hello->n_transports; i++)
		for (ops = ours; *ops != NULL; ops++)
			if (strcmp(hello->transports[i], (*ops)->name) == 0 &&
			    transport_has_rail(node, *ops))
				common_add(peer, *ops);
}

/* A daemon that names no tenant has the default one only. */
static bool hello_has_tenant(const Kvxp__PeerHello *hello, const char *name)
{
	return hello->n_tenants > 0 ? name_is_listed(hello->tenants, hello->n_tenants, name)
				    : strcmp(name, "default") == 0;
}

/* Both sides find the same. */
static bool hello_wants_bounce(const struct kvx_peer *peer, const Kvxp__PeerHello *hello)
{
	return peer->any_memory && (hello->gpus > 0 || kvx_node_gpus(peer->peers->conf.node) > 0) &&
	       peer->n_common > 0 && !(peer->common[0]->caps & KVX_CAP_ANY_MEMORY);
}

/* Which lanes there are to be, and by which transports. */
static void hello_take_lanes(struct kvx_peer *peer, const Kvxp__PeerHello *hello)
{
	bool bounce;

	peer->any_memory = hello->any_memory;
	bounce = hello_wants_bounce(peer, hello);
	for (unsigned i = 0; i < peer->n_lanes; i++) {
		struct peer_lane *lane = peer->lanes[i];

		lane->n_common = 0;
		for (unsigned j = 0; j < peer->n_common; j++)
			if (!lane->any_memory || peer->common[j]->caps & KVX_CAP_ANY_MEMORY)
				lane->common[lane->n_common++] = peer->common[j];
		/* Until it is set up, this is what it would be by: transfers may require it. */
		if (lane->phase == LANE_IDLE && lane->n_common > 0)
			lane->lane.ops = lane->common[0];
		lane->wanted = hello_has_tenant(hello, lane_tenant_name(lane)) &&
			       (!lane->any_memory || (bounce && lane->n_common > 0));
	}
}

/* The connection becomes the peer's. */
static KVX_ON_LOOP void hello_adopt(struct peer_conn *conn, struct kvx_peer *peer,
				    const Kvxp__PeerHello *hello)
{
	const struct kvx_peers *peers = conn->peers;
	bool new_epoch = peer->epoch != hello->epoch;
	uint64_t now = peer_now(peers);
	uint64_t lost_ms =
	    hello->lost_ms < peers->conf.lost_ms ? hello->lost_ms : peers->conf.lost_ms;

	conn->peer = peer;
	peer->conn = conn;
	if (peer->dial == conn)
		peer->dial = NULL;
	conn_set_up(conn);
	peer->epoch = hello->epoch;
	hello_take_transports(peer, hello);
	hello_take_lanes(peer, hello);
	peer->lease_ns = lost_ms * KVX_MS;
	if (hello->address[0] != '\0')
		snprintf(peer->addr, sizeof(peer->addr), "%s", hello->address);
	peer->up_ns = now;
	peer->last_rx_ns = now;
	peer->last_beat_ns = now;
	peer->rtt_ns = 0;
	/* Numbers go on over connections: an echo of an older one never counts. */
	peer->beat_echoed = peer->beat_seq;
	peer->beat_seen = 0;
	peer->beat_due_ns = now;
	peer->lease_base_ns = conn->dialed ? conn->hello_sent_ns : 0;
	peer->n_failed = 0;
	peer->n_connects++;
	kvx_info("peer %s: up, address %s, epoch %llx, version %.31s", peer->name,
		 peer->addr[0] != '\0' ? peer->addr : "none", (unsigned long long)peer->epoch,
		 hello->daemon_version);
	if (!conn->dialed && hello_send(conn) < 0)
		return;
	remote_check_epoch(peer);
	for (unsigned i = 0; i < peer->n_lanes; i++)
		lane_on_conn(peer->lanes[i], new_epoch);
	calls_on_up(peer);
	find_on_up(peer);
	peer_wake(peer);
}

static KVX_ON_LOOP void hello_on_answer(struct peer_conn *conn, const Kvxp__PeerHello *hello)
{
	struct kvx_peer *peer = conn->peer;

	if (conn->who) {
		find_on_hello(conn, hello);
		conn_close(conn);
		return;
	}
	if (conn->probe) {
		conn_set_up(conn);
		calls_on_probe_up(conn);
		return;
	}
	if (memcmp(hello->node_id.data, peer->id, KVX_NODE_ID_BYTES) != 0) {
		conn_refuse(conn, -ESTALE, "another node answers at that address");
		return;
	}
	kvx_assert(peer->conn == NULL); /* accepting one closes the dial */
	hello_adopt(conn, peer, hello);
}

/* Which connection stays: the newest after a restart of the other node; else the one that the
 * lower node id dialed. Returns whether the accepted one does; the other one is gone then. */
static KVX_ON_LOOP bool hello_wins(struct kvx_peer *peer, const Kvxp__PeerHello *hello)
{
	if (peer->conn != NULL) {
		if (hello->epoch == peer->epoch && peer->conn->dialed && peer_is_lower(peer))
			return false;
		peer_lose(peer, -EHOSTDOWN,
			  hello->epoch != peer->epoch ? "the node has restarted"
						      : "the node has connected anew",
			  false);
	}
	if (peer->dial != NULL) {
		if (peer->dial->state == CONN_HELLO && peer_is_lower(peer))
			return false;
		conn_close(peer->dial);
	}
	return true;
}

static KVX_ON_LOOP void hello_on_request(struct peer_conn *conn, const Kvxp__PeerHello *hello)
{
	struct kvx_why why;
	struct kvx_peer *peer;
	int err;

	if (hello->probe) {
		conn->probe = true;
		conn->who = hello->who;
		conn_set_up(conn);
		hello_send(conn);
		return;
	}
	if (conn->peers->closing) {
		conn_refuse(conn, -ESHUTDOWN, "the daemon is closing");
		return;
	}
	err = peer_get(conn->peers, hello->node_id.data, hello->address, &peer, &why);
	if (err < 0) {
		conn_refuse(conn, err, why.text);
		return;
	}
	if (!hello_wins(peer, hello)) {
		conn_refuse(conn, -EBUSY, "connected already, or being connected from here");
		return;
	}
	hello_adopt(conn, peer, hello);
}

void hello_on_frame(struct peer_conn *conn, const Kvxp__PeerHello *hello)
{
	struct kvx_why why;
	int err = hello_check(conn, hello, &why);

	if (err < 0)
		conn_refuse(conn, err, why.text);
	else if (conn->dialed)
		hello_on_answer(conn, hello);
	else
		hello_on_request(conn, hello);
}

static KVX_ON_LOOP void beat_send(struct kvx_peer *peer, uint64_t seq)
{
	Kvxp__PeerHeartbeat beat = KVXP__PEER_HEARTBEAT__INIT;

	beat.seq = seq;
	beat.echo = peer->beat_seen;
	peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_HEARTBEAT, &beat);
}

int beat_on_frame(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerHeartbeat *beat = (const Kvxp__PeerHeartbeat *)message;
	uint64_t now = peer_now(peer->peers);

	if (beat->echo > peer->beat_seq)
		return -EPROTO;
	if (beat->echo > peer->beat_echoed && peer->beat_seq - beat->echo < PEER_HEARTBEATS) {
		peer->beat_echoed = beat->echo;
		peer->lease_base_ns = peer->beat_sent_ns[beat->echo % PEER_HEARTBEATS];
		peer->rtt_ns = now - peer->lease_base_ns;
		for (unsigned i = 0; i < peer->n_lanes; i++)
			lane_extend(peer->lanes[i]);
		peer_wake(peer); /* lanes wait for the first one */
	}
	if (beat->seq == 0)
		return 0;
	if (beat->seq > peer->beat_seen)
		peer->beat_seen = beat->seq;
	peer->last_beat_ns = now; /* before the answer leaves: the bound of their lease */
	beat_send(peer, 0);
	return 0;
}

void beat_step(struct kvx_peer *peer)
{
	const struct kvx_peers *peers = peer->peers;
	uint64_t now = peer_now(peers);

	if (peer->conn == NULL || peer->conn->fail_status != 0)
		return;
	if (now - peer->last_rx_ns >= peers->conf.lost_ms * KVX_MS) {
		/* Timers come before sockets in a turn of the loop: after a stop of this daemon
		 * what was said meanwhile, transfers above all, is still to be read. */
		conn_read(peer->conn);
		if (peer->conn == NULL || peer->conn->fail_status != 0)
			return;
		now = peer_now(peers); /* what was read came later than the time before */
	}
	if (now - peer->last_rx_ns >= peers->conf.lost_ms * KVX_MS) {
		conn_fail(peer->conn, -EHOSTDOWN, "no sign of life for %u ms", peers->conf.lost_ms);
		return;
	}
	if (now < peer->beat_due_ns)
		return;
	peer->beat_seq++;
	peer->beat_sent_ns[peer->beat_seq % PEER_HEARTBEATS] = now;
	peer->beat_due_ns = now + peers->conf.heartbeat_ms * KVX_MS;
	beat_send(peer, peer->beat_seq);
}

uint64_t beat_next_ns(const struct kvx_peer *peer)
{
	uint64_t lost_ns = peer->last_rx_ns + peer->peers->conf.lost_ms * KVX_MS;

	if (peer->conn == NULL)
		return UINT64_MAX;
	return lost_ns < peer->beat_due_ns ? lost_ns : peer->beat_due_ns;
}
