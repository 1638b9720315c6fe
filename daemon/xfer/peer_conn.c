/* Sockets of the peer channel: dialing (numeric addresses at once, names through libuv's
 * look-up), frames in and out, closing. Loop thread; peer.c dials, peer_listen.c brings accepted
 * sockets, peer_hello.c takes over once hello has come. A failed connection is only marked here:
 * its peer closes it in peer_step(). Never blocks; a connection's memory is freed from the kick,
 * so that callbacks may close the one they run in. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utlist.h>

#include "base/log.h"

/* sockets in the loop */

static void sock_on_closed(uv_handle_t *handle)
{
	struct peer_sock *sock = handle->data;

	sock->peers->n_handles--;
	peers_kick(sock->peers);
	free(sock);
}

/* Takes fd, also on failure. */
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

/* making and closing */

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

static void conn_drop_addrs(struct peer_conn *conn)
{
	if (conn->addrs != NULL) {
		if (conn->addrs_by_uv)
			uv_freeaddrinfo(conn->addrs);
		else
			freeaddrinfo(conn->addrs);
	}
	conn->addrs = NULL;
	conn->next_addr = NULL;
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
	if (conn->lookup != NULL) {
		conn->lookup->conn = NULL;
		uv_cancel((uv_req_t *)&conn->lookup->req);
		conn->lookup = NULL;
	}
	conn_drop_addrs(conn);
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

/* frames */

static void conn_on_poll(uv_poll_t *poll, int status, int events);

static KVX_ON_LOOP int conn_poll(struct peer_conn *conn, int events)
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

/* dialing */

static void conn_try_next(struct peer_conn *conn);

static KVX_ON_LOOP void conn_on_connected(struct peer_conn *conn)
{
	int err = 0;
	socklen_t len = sizeof(err);

	if (getsockopt(conn->sock->fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
		err = errno;
	if (err != 0) {
		sock_close(conn->sock);
		conn->sock = NULL;
		snprintf(conn->try_text, sizeof(conn->try_text), "connect to %s: %s", conn->addr,
			 strerror(err));
		conn_try_next(conn);
		return;
	}
	conn_drop_addrs(conn);
	conn->state = CONN_HELLO;
	if (conn_start_tls(conn) < 0 || conn_poll(conn, UV_READABLE) < 0)
		return;
	conn->hello_sent_ns = peer_now(conn->peers);
	if (hello_send(conn) < 0)
		conn_fail(conn, -ENOMEM, "out of memory");
}

void conn_take_fd(struct peer_conn *conn, int fd)
{
	int err = sock_open(conn->peers, fd, conn, &conn->sock);

	if (err < 0)
		conn_fail(conn, err, "%s: %s", conn->addr, strerror(-err));
	else if (conn_start_tls(conn) == 0)
		conn_poll(conn, UV_READABLE);
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
		conn_on_connected(conn);
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

/* Starts connecting to one address. 0, or -errno: try the next. */
static KVX_ON_LOOP int conn_connect(struct peer_conn *conn, const struct addrinfo *ai)
{
	int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	const int one = 1;
	int err;

	if (fd < 0)
		return -errno;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (connect(fd, ai->ai_addr, ai->ai_addrlen) < 0 && errno != EINPROGRESS) {
		err = -errno;
		close(fd);
		return err;
	}
	err = sock_open(conn->peers, fd, conn, &conn->sock);
	if (err < 0)
		return err;
	conn->state = CONN_CONNECTING;
	conn_poll(conn, UV_WRITABLE); /* an error there has failed the connection */
	return 0;
}

static KVX_ON_LOOP void conn_try_next(struct peer_conn *conn)
{
	int err = -EHOSTUNREACH;

	while (conn->next_addr != NULL) {
		const struct addrinfo *ai = conn->next_addr;

		conn->next_addr = ai->ai_next;
		if (!peers_may_leave_node(conn->peers) && !addr_is_loopback(ai->ai_addr)) {
			err = -EPERM;
			snprintf(conn->try_text, sizeof(conn->try_text),
				 "%s is not loopback: refused without authentication: set "
				 "peer.secret_file, or --insecure-peers on a trusted network",
				 conn->addr);
			continue;
		}
		err = conn_connect(conn, ai);
		if (err == 0)
			return;
		snprintf(conn->try_text, sizeof(conn->try_text), "connect to %s: %s", conn->addr,
			 strerror(-err));
	}
	conn_fail(conn, err == -EPERM ? -EACCES : -EHOSTUNREACH, "%s", conn->try_text);
}

static void conn_on_lookup(uv_getaddrinfo_t *req, int status, struct addrinfo *res)
{
	struct peer_lookup *lookup = req->data;
	struct peer_conn *conn = lookup->conn;

	kvx_assert_on_loop();
	lookup->peers->n_handles--;
	peers_kick(lookup->peers);
	free(lookup);
	if (conn == NULL) {
		uv_freeaddrinfo(res);
		return;
	}
	conn->lookup = NULL;
	if (status < 0) {
		conn_fail(conn, -EHOSTUNREACH, "%s: %s", conn->addr, uv_strerror(status));
		return;
	}
	conn->addrs = res;
	conn->addrs_by_uv = true;
	conn->next_addr = res;
	conn_try_next(conn);
}

static int conn_start_lookup(struct peer_conn *conn, const char *host, const char *port)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
	struct peer_lookup *lookup = calloc(1, sizeof(*lookup));
	int err;

	if (lookup == NULL)
		return -ENOMEM;
	lookup->peers = conn->peers;
	lookup->conn = conn;
	lookup->req.data = lookup;
	err = uv_getaddrinfo(conn->peers->conf.loop, &lookup->req, conn_on_lookup, host, port,
			     &hints);
	if (err < 0) {
		free(lookup);
		return err;
	}
	conn->peers->n_handles++;
	conn->lookup = lookup;
	return 0;
}

/* A numeric address is tried at once, a name is looked up by libuv's pool. */
static KVX_ON_LOOP int conn_start(struct peer_conn *conn, const char *host, const char *port)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
				       .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
	int err = getaddrinfo(host, port, &hints, &conn->addrs);

	if (err == EAI_NONAME) {
		conn->addrs = NULL;
		return conn_start_lookup(conn, host, port);
	}
	if (err != 0) {
		conn->addrs = NULL;
		return err == EAI_MEMORY ? -ENOMEM : -EHOSTUNREACH;
	}
	conn->next_addr = conn->addrs;
	conn_try_next(conn);
	return 0;
}

int conn_dial(struct kvx_peers *peers, struct kvx_peer *peer, const char *addr,
	      struct peer_conn **out_conn, struct kvx_why *why)
{
	char host[KVX_PEER_ADDR_BYTES], port[8];
	struct peer_conn *conn;
	int err;

	if (addr_split(addr, host, sizeof(host), port, sizeof(port)) < 0)
		return kvx_why(why, -EINVAL, "\"%s\" is not HOST:PORT", addr);
	if (peers->n_dialing >= PEER_HALF_OPEN_MAX)
		return kvx_why(why, -EBUSY, "%u connections are being made already",
			       peers->n_dialing);
	err = conn_create(peers, addr, &conn);
	if (err < 0)
		return kvx_why(why, err, "out of memory");
	conn->dialed = true;
	conn->probe = peer == NULL;
	conn->peer = peer;
	peers->n_dialing++;
	if (peer != NULL)
		peer->dial = conn;
	*out_conn = conn;
	err = conn_start(conn, host, port);
	if (err < 0)
		conn_fail(conn, err, "dial %s: %s", addr, strerror(-err));
	return 0;
}
