/* The table of peers: opening, closing, and the kick, which runs whenever something of it has gone.
 * Loop thread. One peer's life is in peer.c. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

void peers_kick(struct kvx_peers *peers)
{
	if (peers->kick_open)
		uv_async_send(&peers->kick);
}

static void peers_on_handle_closed(uv_handle_t *handle)
{
	struct kvx_peers *peers = handle->data;
	void (*closed)(void *arg) = peers->closed;
	void *arg = peers->closed_arg;

	if (--peers->n_handles > 0)
		return;
	peer_tls_ctx_destroy(peers->tls);
	free(peers);
	if (closed != NULL)
		closed(arg);
}

static void peers_close_handles(struct kvx_peers *peers)
{
	peers->kick_open = false;
	peers->n_handles = 2;
	uv_close((uv_handle_t *)&peers->kick, peers_on_handle_closed);
	uv_close((uv_handle_t *)&peers->flush, peers_on_handle_closed);
}

/* Runs whenever something of the table has gone: buries connections, and ends a closing. */
static void peers_on_kick(uv_async_t *kick)
{
	struct kvx_peers *peers = kick->data;
	struct kvx_peer *peer, *tmp;

	kvx_assert_on_loop();
	conn_bury(peers);
	if (peers->steps_owed) {
		peers->steps_owed = false;
		HASH_ITER (hh, peers->table, peer, tmp)
			peer_step(peer);
	}
	if (!peers->closing || peers->table != NULL || peers->conns != NULL ||
	    peers->dead != NULL || peers->calls != NULL || peers->finds != NULL ||
	    peers->n_handles > 0)
		return;
	if (peers->installed)
		kvx_node_set_peers(peers->conf.node, NULL);
	peers_close_handles(peers);
}

static int peers_check(const struct kvx_peers_conf *conf, struct kvx_why *why)
{
	if (conf->heartbeat_ms == 0 || conf->lost_ms <= conf->heartbeat_ms ||
	    conf->reconnect_min_ms == 0 || conf->reconnect_max_ms < conf->reconnect_min_ms ||
	    conf->max_peers == 0)
		return kvx_why(why, -EINVAL,
			       "peer.heartbeat_ms must be > 0 and less than peer.lost_ms, "
			       "peer.reconnect_min_ms > 0 and at most peer.reconnect_max_ms, "
			       "limits.peers > 0");
	return 0;
}

static int peers_take_tenants(struct kvx_peers *peers, struct kvx_why *why)
{
	const char *const *names = peers->conf.tenants;

	if (names == NULL || names[0] == NULL) {
		peers->tenants[peers->n_tenants++] = "default";
		return 0;
	}
	for (; *names != NULL; names++) {
		if (peers->n_tenants == KVX_MAX_TENANTS)
			return kvx_why(why, -EINVAL, "more than %d tenants", KVX_MAX_TENANTS);
		peers->tenants[peers->n_tenants++] = *names;
	}
	return 0;
}

static int peers_init_handles(struct kvx_peers *peers)
{
	int err = uv_async_init(peers->conf.loop, &peers->kick, peers_on_kick);

	if (err < 0)
		return err;
	uv_idle_init(peers->conf.loop, &peers->flush); /* cannot fail */
	peers->kick.data = peers;
	peers->flush.data = peers;
	peers->kick_open = true;
	return 0;
}

static KVX_ON_LOOP void peers_install(struct kvx_peers *peers)
{
	const struct kvx_node_peer_hooks hooks = {
	    .arg = peers,
	    .withdraw = kvx_peers_withdraw,
	    .lane_reset = kvx_peers_lane_reset,
	    .note = kvx_peers_note,
	    .remote_open = kvx_peers_remote_open,
	    .remote_end = kvx_peers_remote_end,
	};

	kvx_node_set_peers(peers->conf.node, &hooks);
	peers->installed = true;
}

int kvx_peers_open(const struct kvx_peers_conf *conf, struct kvx_peers **out_peers,
		   struct kvx_why *why)
{
	struct kvx_peers *peers;
	int err = peers_check(conf, why);

	if (err < 0)
		return err;
	peers = calloc(1, sizeof(*peers));
	if (peers == NULL)
		return kvx_why(why, -ENOMEM, "out of memory");
	peers->conf = *conf;
	memcpy(&peers->random, conf->node_id, sizeof(peers->random));
	peers->random ^= conf->epoch;
	if (peers->conf.max_frame_bytes == 0)
		peers->conf.max_frame_bytes = PEER_FRAME_MAX_BYTES;
	snprintf(peers->version, sizeof(peers->version), "%s",
		 conf->version != NULL ? conf->version : "");
	frame_allocator_init(peers);
	err = peers_take_tenants(peers, why);
	if (err < 0) {
		free(peers);
		return err;
	}
	err = peers_init_handles(peers);
	if (err < 0) {
		free(peers);
		return kvx_why(why, err, "peers: %s", uv_strerror(err));
	}
	err = peer_tls_ctx_create(&conf->auth, &peers->tls, why);
	if (err == 0 && conf->listen != NULL && conf->listen[0] != '\0')
		err = conn_listen(peers, why);
	/* Borrowed for this call. */
	peers->conf.listen = peers->conf.advertise = NULL;
	peers->conf.auth = (struct kvx_peer_auth){.secret_file = NULL};
	if (err < 0) {
		kvx_peers_close(peers, NULL, NULL);
		return err;
	}
	peers_install(peers);
	*out_peers = peers;
	return 0;
}

void kvx_peers_close(struct kvx_peers *peers, void (*closed)(void *arg), void *arg)
{
	struct peer_conn *conn, *tmp_conn;
	struct kvx_peer *peer, *tmp;

	kvx_assert(!peers->closing);
	peers->closing = true;
	peers->closed = closed;
	peers->closed_arg = arg;
	conn_listen_stop(peers);
	DL_FOREACH_SAFE (peers->conns, conn, tmp_conn)
		if (conn->peer == NULL)
			conn_fail(conn, -ESHUTDOWN, "this daemon is closing");
	HASH_ITER (hh, peers->table, peer, tmp)
		peer_wake(peer);
	peers_kick(peers);
}

const char *kvx_peers_address(const struct kvx_peers *peers)
{
	return peers->address;
}

bool kvx_peers_is_own(const struct kvx_peers *peers, const char *address)
{
	char addr[KVX_PEER_ADDR_BYTES];

	return addr_complete(address, addr) == 0 && strcmp(addr, peers->address) == 0;
}
