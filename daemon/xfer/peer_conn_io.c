/* Bytes of a connection: polling its socket, frames in and out, in the clear or through TLS. Loop
 * thread; frames go to peer_frame.c, a connection that is being made to peer_dial.c. A failure is
 * only marked here. Never blocks. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <string.h>
#include <utlist.h>

static void conn_on_poll(uv_poll_t *poll, int status, int events);

int conn_poll(struct peer_conn *conn, int events)
{
	int err;

	if (conn->sock == NULL || conn->sock->events == events)
		return 0;
	conn->sock->events = events;
	err = uv_poll_start(&conn->sock->poll, events, conn_on_poll);
	if (err < 0)
		conn_fail(conn, err, "%s: poll: %s", conn->addr, uv_strerror(err));
	return err;
}

static KVX_ON_LOOP void conn_fail_io(struct peer_conn *conn, const char *what, int err)
{
	if (err == -EPROTO && conn->tls != NULL)
		conn_fail(conn, -EACCES, "%s: %s", conn->addr, peer_tls_error(conn->tls));
	else
		conn_fail(conn, -EHOSTDOWN, "%s: %s: %s", conn->addr, what, strerror(-err));
}

void conn_flush(struct peer_conn *conn)
{
	int err;

	conn->dirty = false;
	if (conn->sock == NULL || conn->fail_status != 0 ||
	    (conn->state != CONN_HELLO && conn->state != CONN_UP))
		return;
	err = conn->tls != NULL ? peer_tls_flush(conn->tls, conn->writer)
				: kvx_writer_flush(conn->writer, conn->sock->fd);
	if (err == -EAGAIN)
		conn_poll(conn, UV_READABLE | UV_WRITABLE);
	else if (err == 0 || err == -EINPROGRESS) /* after the handshake's next frame */
		conn_poll(conn, UV_READABLE);
	else
		conn_fail_io(conn, "send", err);
}

static void conns_on_idle(uv_idle_t *idle)
{
	struct kvx_peers *peers = idle->data;
	struct peer_conn *conn, *tmp;

	kvx_assert_on_loop();
	uv_idle_stop(idle);
	DL_FOREACH_SAFE (peers->conns, conn, tmp)
		if (conn->dirty)
			conn_flush(conn);
}

/* Frames of one turn of the loop leave with one call. An idle handle, because the loop does not
 * sleep while one is active: what is sent from a prepare callback leaves at once, too. */
void conn_dirty(struct peer_conn *conn)
{
	conn->dirty = true;
	uv_idle_start(&conn->peers->flush, conns_on_idle);
}

/* Handles the frames that the reader holds. */
void conn_receive(struct peer_conn *conn)
{
	struct kvx_msg msg;
	int n = 0;

	while (conn->fail_status == 0 && conn->state != CONN_CLOSED) {
		n = kvx_reader_next(conn->reader, &msg);
		if (n <= 0)
			break;
		if (msg.n_fds > 0)
			conn_fail(conn, -EPROTO, "%s: a frame announced fds", conn->addr);
		else
			frame_dispatch(conn, &msg);
		kvx_msg_fini(&msg);
	}
	if (n == -EMSGSIZE)
		conn_refuse(conn, -EMSGSIZE, "frame too long");
	else if (n < 0)
		conn_fail(conn, n, "%s: bad frame: %s", conn->addr, strerror(-n));
}

void conn_read(struct peer_conn *conn)
{
	/* Bounded: one peer that never stops sending must not keep the loop. */
	for (unsigned i = 0; i < 16 && conn->fail_status == 0 && conn->sock != NULL; i++) {
		int n = conn->tls != NULL ? peer_tls_fill(conn->tls, conn->reader)
					  : kvx_reader_fill(conn->reader, conn->sock->fd);

		if (n == -EAGAIN)
			break;
		if (n == 0)
			conn_fail(conn, -EHOSTDOWN, "%s closed the connection", conn->addr);
		else if (n < 0)
			conn_fail_io(conn, "receive", n);
		else
			conn_receive(conn);
	}
	if (conn->tls == NULL || conn->fail_status != 0 || conn->sock == NULL)
		return;
	if (peer_tls_wants_write(conn->tls))
		conn_poll(conn, UV_READABLE | UV_WRITABLE);
	else if (kvx_writer_pending_bytes(conn->writer) > 0)
		conn_dirty(conn); /* the handshake may have come to its end */
}

static void conn_on_poll(uv_poll_t *poll, int status, int events)
{
	struct peer_sock *sock = poll->data;
	struct peer_conn *conn = sock->conn;

	kvx_assert_on_loop();
	if (conn == NULL)
		return;
	KVX_CHECK_MAGIC(conn, CONN_MAGIC);
	if (conn->state == CONN_CONNECTING) {
		dial_on_connected(conn);
		return;
	}
	if (status < 0) {
		/* libuv tells of any error of the socket as UV_EBADF; reading says which one, after
		 * the frames that had come before it. */
		conn_read(conn);
		conn_fail(conn, -EHOSTDOWN, "%s: the connection broke", conn->addr);
		return;
	}
	if ((events & UV_READABLE) != 0 || (conn->tls != NULL && peer_tls_wants_write(conn->tls)))
		conn_read(conn);
	if ((events & UV_WRITABLE) != 0 && conn->fail_status == 0)
		conn_flush(conn);
}

/* The socket is there: from now on its bytes are TLS's, when that is configured. */
static KVX_ON_LOOP int conn_start_tls(struct peer_conn *conn)
{
	int err;

	if (conn->peers->tls == NULL)
		return 0;
	err = peer_tls_create(conn->peers->tls, conn->sock->fd, conn->dialed, &conn->tls);
	if (err < 0)
		conn_fail(conn, err, "%s: TLS: %s", conn->addr, strerror(-err));
	return err;
}

int conn_start(struct peer_conn *conn)
{
	int err = conn_start_tls(conn);

	return err < 0 ? err : conn_poll(conn, UV_READABLE);
}

void conn_take_fd(struct peer_conn *conn, int fd)
{
	int err = sock_open(conn->peers, fd, conn, &conn->sock);

	if (err < 0)
		conn_fail(conn, err, "%s: %s", conn->addr, strerror(-err));
	else
		conn_start(conn);
}
