/* Connections of the peer channel: making, failing, closing. Loop thread. A failed connection is
 * only marked here: its peer closes it in peer_step(). A connection's memory, like its socket's, is
 * freed later, so that callbacks may close the one they run in. Bytes come and go in
 * peer_conn_io.c. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <utlist.h>

#include "base/log.h"

static void sock_on_closed(uv_handle_t *handle)
{
	struct peer_sock *sock = handle->data;

	sock->peers->n_handles--;
	peers_kick(sock->peers);
	free(sock);
}

int sock_open(struct kvx_peers *peers, int fd, struct peer_conn *conn, struct peer_sock **out_sock)
{
	struct peer_sock *sock = calloc(1, sizeof(*sock));
	int err;

	if (sock == NULL) {
		close(fd);
		return -ENOMEM;
	}
	err = uv_poll_init(peers->conf.loop, &sock->poll, fd);
	if (err < 0) {
		close(fd);
		free(sock);
		return err;
	}
	sock->poll.data = sock;
	sock->fd = fd;
	sock->peers = peers;
	sock->conn = conn;
	peers->n_handles++;
	*out_sock = sock;
	return 0;
}

void sock_close(struct peer_sock *sock)
{
	if (sock == NULL)
		return;
	sock->conn = NULL;
	uv_close((uv_handle_t *)&sock->poll, sock_on_closed);
	close(sock->fd); /* the poll is inactive since uv_close() */
	sock->fd = -1;
}

static KVX_ON_LOOP void conn_on_deadline(struct kvx_timer *timer)
{
	struct peer_conn *conn =
	    (struct peer_conn *)((char *)timer - offsetof(struct peer_conn, timer));

	KVX_CHECK_MAGIC(conn, CONN_MAGIC);
	if (conn->state == CONN_LOOKUP)
		conn_fail(conn, -EHOSTUNREACH, "%s: no answer from the name service", conn->addr);
	else if (conn->state == CONN_CONNECTING)
		conn_fail(conn, -EHOSTUNREACH, "connect to %s: no answer", conn->addr);
	else
		conn_fail(conn, -EHOSTUNREACH, "%s: no hello", conn->addr);
}

int conn_create(struct kvx_peers *peers, const char *addr, struct peer_conn **out_conn)
{
	struct peer_conn *conn = calloc(1, sizeof(*conn));
	int err;

	if (conn == NULL)
		return -ENOMEM;
	conn->magic = CONN_MAGIC;
	conn->peers = peers;
	snprintf(conn->addr, sizeof(conn->addr), "%s", addr);
	err = kvx_reader_create(PEER_HELLO_MAX_BYTES, &conn->reader);
	if (err < 0)
		goto err_free;
	err = kvx_writer_create(&conn->writer);
	if (err < 0)
		goto err_reader;
	err = kvx_timer_start(peers->conf.timers, &conn->timer, PEER_HELLO_NS, conn_on_deadline);
	if (err < 0)
		goto err_writer;
	DL_APPEND(peers->conns, conn);
	*out_conn = conn;
	return 0;

err_writer:
	kvx_writer_destroy(conn->writer);
err_reader:
	kvx_reader_destroy(conn->reader);
err_free:
	free(conn);
	return err;
}

static bool conn_is_half_open(const struct peer_conn *conn)
{
	return conn->peer == NULL || conn->peer->conn != conn;
}

void conn_close(struct peer_conn *conn)
{
	struct kvx_peers *peers = conn->peers;

	if (conn->state == CONN_CLOSED)
		return;
	if (conn_is_half_open(conn)) {
		if (conn->dialed)
			peers->n_dialing--;
		else
			peers->n_accepted_half_open--;
	}
	conn->state = CONN_CLOSED;
	kvx_timer_stop(peers->conf.timers, &conn->timer);
	dial_stop(conn);
	peer_tls_destroy(conn->tls);
	conn->tls = NULL;
	sock_close(conn->sock);
	conn->sock = NULL;
	if (conn->peer != NULL && conn->peer->conn == conn)
		conn->peer->conn = NULL;
	if (conn->peer != NULL && conn->peer->dial == conn)
		conn->peer->dial = NULL;
	conn->peer = NULL;
	DL_DELETE(peers->conns, conn);
	DL_APPEND(peers->dead, conn);
	peers_kick(peers);
}

/* Frees what was closed: from the kick, when no callback of a connection is on the stack. */
void conn_bury(struct kvx_peers *peers)
{
	struct peer_conn *conn, *tmp;

	DL_FOREACH_SAFE (peers->dead, conn, tmp) {
		DL_DELETE(peers->dead, conn);
		kvx_reader_destroy(conn->reader);
		kvx_writer_destroy(conn->writer);
		conn->magic = 0;
		free(conn);
	}
}

void conn_fail(struct peer_conn *conn, int status, const char *fmt, ...)
{
	va_list args;

	if (conn->state == CONN_CLOSED || conn->fail_status != 0)
		return;
	conn->fail_status = status;
	va_start(args, fmt);
	vsnprintf(conn->fail_text, sizeof(conn->fail_text), fmt, args);
	va_end(args);
	if (conn->peer != NULL) {
		peer_wake(conn->peer);
		return;
	}
	if (conn->probe_call != NULL)
		calls_on_probe_failed(conn);
	else if (conn->dialed && conn->who)
		find_on_probe_failed(conn);
	else
		kvx_debug("peer: connection %s: %s", conn->addr, conn->fail_text);
	conn_close(conn);
}

void conn_say_bye(struct peer_conn *conn, int status, const char *text, bool fenced)
{
	Kvxp__PeerBye bye = KVXP__PEER_BYE__INIT;

	bye.status = (uint32_t)kvx_status_from_errno(status);
	bye.text = (char *)text;
	bye.fenced = fenced;
	if (frame_send(conn, KVXP__PEER_FRAME_TYPE__PEER_BYE, &bye) == 0)
		conn_flush(conn);
}

void conn_refuse(struct peer_conn *conn, int status, const char *text)
{
	char copy[KVX_WHY_BYTES]; /* text may lie in a peer that ends by this */

	peer_text(copy, sizeof(copy), text);
	conn_say_bye(conn, status, copy, false);
	conn_fail(conn, status, "%s", copy);
}

void conn_set_up(struct peer_conn *conn)
{
	struct kvx_peers *peers = conn->peers;

	conn->state = CONN_UP;
	kvx_reader_set_max(conn->reader, peers->conf.max_frame_bytes);
	if (conn->probe)
		return; /* the deadline holds for all of it, and it stays half-open */
	kvx_timer_stop(peers->conf.timers, &conn->timer);
	if (conn->dialed)
		peers->n_dialing--;
	else
		peers->n_accepted_half_open--;
}
