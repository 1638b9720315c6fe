/* Dialing a peer: numeric addresses at once, names through libuv's look-up; one address after the
 * other until one answers. Loop thread; peer.c and probes dial, peer_conn_io.c goes on once the
 * connection is there. Never blocks. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A name look-up: lives until libuv has answered. */
struct peer_lookup {
	uv_getaddrinfo_t req;
	struct kvx_peers *peers;
	struct peer_conn *conn; /* NULL: no longer wanted */
};

static void dial_drop_addrs(struct peer_conn *conn)
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

void dial_stop(struct peer_conn *conn)
{
	if (conn->lookup != NULL) {
		conn->lookup->conn = NULL;
		uv_cancel((uv_req_t *)&conn->lookup->req);
		conn->lookup = NULL;
	}
	dial_drop_addrs(conn);
}

/* Starts connecting to one address. 0, or -errno: try the next. */
static KVX_ON_LOOP int dial_connect(struct peer_conn *conn, const struct addrinfo *ai)
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

static KVX_ON_LOOP void dial_next(struct peer_conn *conn)
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
		err = dial_connect(conn, ai);
		if (err == 0)
			return;
		snprintf(conn->try_text, sizeof(conn->try_text), "connect to %s: %s", conn->addr,
			 strerror(-err));
	}
	conn_fail(conn, err == -EPERM ? -EACCES : -EHOSTUNREACH, "%s", conn->try_text);
}

void dial_on_connected(struct peer_conn *conn)
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
		dial_next(conn);
		return;
	}
	dial_drop_addrs(conn);
	conn->state = CONN_HELLO;
	if (conn_start(conn) < 0)
		return;
	conn->hello_sent_ns = peer_now(conn->peers);
	if (hello_send(conn) < 0)
		conn_fail(conn, -ENOMEM, "out of memory");
}

static void dial_on_lookup(uv_getaddrinfo_t *req, int status, struct addrinfo *res)
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
	dial_next(conn);
}

static int dial_start_lookup(struct peer_conn *conn, const char *host, const char *port)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
	struct peer_lookup *lookup = calloc(1, sizeof(*lookup));
	int err;

	if (lookup == NULL)
		return -ENOMEM;
	lookup->peers = conn->peers;
	lookup->conn = conn;
	lookup->req.data = lookup;
	err = uv_getaddrinfo(conn->peers->conf.loop, &lookup->req, dial_on_lookup, host, port,
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
static KVX_ON_LOOP int dial_start(struct peer_conn *conn, const char *host, const char *port)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
				       .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
	int err = getaddrinfo(host, port, &hints, &conn->addrs);

	if (err == EAI_NONAME) {
		conn->addrs = NULL;
		return dial_start_lookup(conn, host, port);
	}
	if (err != 0) {
		conn->addrs = NULL;
		return err == EAI_MEMORY ? -ENOMEM : -EHOSTUNREACH;
	}
	conn->next_addr = conn->addrs;
	dial_next(conn);
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
	err = dial_start(conn, host, port);
	if (err < 0)
		conn_fail(conn, err, "dial %s: %s", addr, strerror(-err));
	return 0;
}
