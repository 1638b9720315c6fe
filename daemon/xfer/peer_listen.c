/* The listening socket of the peer channel: which addresses are allowed, accepting, what is
 * advertised. Loop thread; called by peer_table.c. Accepted sockets become connections of
 * peer_conn.c. At start-up a name to listen on is looked up in place: the only call here that may
 * block. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <utlist.h>

#include "base/log.h"

#define ACCEPT_PAUSE_NS (100 * KVX_MS)

static void listen_on_poll(uv_poll_t *poll, int status, int events);

static void listen_on_resume(struct kvx_timer *timer)
{
	struct kvx_peers *peers =
	    (struct kvx_peers *)((char *)timer - offsetof(struct kvx_peers, accept_timer));

	if (peers->listener != NULL)
		uv_poll_start(&peers->listener->poll, UV_READABLE, listen_on_poll);
}

/* Without fds the socket would stay readable for ever: look away for a while. */
static void listen_pause(struct kvx_peers *peers, int err)
{
	kvx_warn("peer: accept: %s; pausing", strerror(-err));
	if (kvx_timer_start(peers->conf.timers, &peers->accept_timer, ACCEPT_PAUSE_NS,
			    listen_on_resume) == 0)
		uv_poll_stop(&peers->listener->poll);
}

/* Who has said nothing for longest goes: so idle connections cannot keep others out. */
static KVX_ON_LOOP void listen_make_room(struct kvx_peers *peers)
{
	struct peer_conn *conn;

	if (peers->n_accepted_half_open < PEER_HALF_OPEN_MAX)
		return;
	DL_FOREACH (peers->conns, conn) { /* oldest first */
		if (conn->dialed || conn->peer != NULL)
			continue;
		conn_fail(conn, -EBUSY, "%s: no hello, and others wait", conn->addr);
		return;
	}
}

static KVX_ON_LOOP void listen_take(struct kvx_peers *peers, int fd, const struct sockaddr *from)
{
	char text[KVX_PEER_ADDR_BYTES];
	struct peer_conn *conn;
	const int one = 1;

	addr_format(from, text, sizeof(text));
	listen_make_room(peers);
	if (peers->n_accepted_half_open >= PEER_HALF_OPEN_MAX ||
	    (!peers_may_leave_node(peers) && !addr_is_loopback(from)) ||
	    conn_create(peers, text, &conn) < 0) {
		kvx_debug("peer: connection from %s turned away", text);
		close(fd);
		return;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	peers->n_accepted_half_open++;
	conn->state = CONN_HELLO;
	conn_take_fd(conn, fd);
}

static void listen_on_poll(uv_poll_t *poll, int status, int events)
{
	struct peer_sock *sock = poll->data;
	struct kvx_peers *peers = sock->peers;

	kvx_assert_on_loop();
	for (unsigned i = 0; i < 32 && peers->listener == sock; i++) {
		struct sockaddr_storage from;
		socklen_t len = sizeof(from);
		int fd =
		    accept4(sock->fd, (struct sockaddr *)&from, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0)
			listen_take(peers, fd, (const struct sockaddr *)&from);
		else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
			listen_pause(peers, -errno);
		if (fd < 0 && errno != ECONNABORTED && errno != EINTR)
			return;
	}
}

static KVX_ON_LOOP int listen_bind(struct kvx_peers *peers, const struct addrinfo *ai)
{
	int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	const int one = 1;
	int err;

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, 256) < 0) {
		err = -errno;
		close(fd);
		return err;
	}
	return sock_open(peers, fd, NULL, &peers->listener);
}

/* What descriptors and hellos carry: the configured host or host:port, else where we listen. */
static int listen_advertise(struct kvx_peers *peers, struct kvx_why *why)
{
	struct sockaddr_storage bound;
	socklen_t len = sizeof(bound);
	char host[KVX_PEER_ADDR_BYTES], port[8];
	const char *want = peers->conf.advertise;
	unsigned actual;
	int n;

	if (getsockname(peers->listener->fd, (struct sockaddr *)&bound, &len) < 0)
		return kvx_why(why, -errno, "getsockname: %s", strerror(errno));
	if (want == NULL || want[0] == '\0') {
		if (addr_is_any((const struct sockaddr *)&bound))
			return kvx_why(why, -EINVAL,
				       "listening for peers on every address (%s): say in "
				       "peer.advertise which one peers shall use",
				       peers->conf.listen);
		addr_format((const struct sockaddr *)&bound, peers->address,
			    sizeof(peers->address));
		return 0;
	}
	actual = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
						   : ((struct sockaddr_in *)&bound)->sin_port);
	if (addr_split(want, host, sizeof(host), port, sizeof(port)) == 0 && strcmp(port, "0") != 0)
		n = snprintf(peers->address, sizeof(peers->address), "%s", want);
	else if (addr_split(want, host, sizeof(host), port, sizeof(port)) == 0)
		n = snprintf(peers->address, sizeof(peers->address), "%.*s:%u",
			     (int)(strrchr(want, ':') - want), want, actual);
	else
		n = snprintf(peers->address, sizeof(peers->address), "%s:%u", want, actual);
	if (n >= (int)sizeof(peers->address) ||
	    addr_split(peers->address, host, sizeof(host), port, sizeof(port)) < 0) {
		peers->address[0] = '\0';
		return kvx_why(why, -EINVAL, "peer.advertise \"%s\" is not HOST or HOST:PORT",
			       want);
	}
	return 0;
}

static KVX_ON_LOOP int listen_try(struct kvx_peers *peers, const struct addrinfo *res,
				  struct kvx_why *why)
{
	int err = -EADDRNOTAVAIL;

	for (const struct addrinfo *ai = res; ai != NULL; ai = ai->ai_next) {
		if (!peers_may_leave_node(peers) && !addr_is_loopback(ai->ai_addr))
			return kvx_why(why, -EPERM,
				       "peer.listen %s is not a loopback address: refused without "
				       "authentication: set peer.secret_file (or peer.tls_*), or "
				       "--insecure-peers on a trusted network",
				       peers->conf.listen);
		err = listen_bind(peers, ai);
		if (err == 0)
			return 0;
	}
	return kvx_why(why, err, "listening for peers on %s: %s", peers->conf.listen,
		       strerror(-err));
}

int conn_listen(struct kvx_peers *peers, struct kvx_why *why)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
				       .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
	char host[KVX_PEER_ADDR_BYTES], port[8];
	struct addrinfo *res;
	int err;

	if (addr_split(peers->conf.listen, host, sizeof(host), port, sizeof(port)) < 0)
		return kvx_why(why, -EINVAL, "peer.listen \"%s\" is not HOST:PORT",
			       peers->conf.listen);
	err = getaddrinfo(host, port, &hints, &res);
	if (err != 0)
		return kvx_why(why, -EADDRNOTAVAIL, "peer.listen %s: %s", peers->conf.listen,
			       gai_strerror(err));
	err = listen_try(peers, res, why);
	freeaddrinfo(res);
	if (err < 0)
		return err;
	err = listen_advertise(peers, why);
	if (err == 0) {
		err = uv_poll_start(&peers->listener->poll, UV_READABLE, listen_on_poll);
		if (err < 0)
			kvx_why(why, err, "peer.listen: %s", uv_strerror(err));
	}
	if (err < 0)
		conn_listen_stop(peers);
	return err;
}

void conn_listen_stop(struct kvx_peers *peers)
{
	kvx_timer_stop(peers->conf.timers, &peers->accept_timer);
	sock_close(peers->listener);
	peers->listener = NULL;
}
