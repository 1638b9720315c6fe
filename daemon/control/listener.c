/* The listener: takes connections on the sockets of all tenants and makes a conn of each, of the
 * tenant whose socket it came by. On the loop. When the process has no file descriptors left it
 * answers with a spare one instead of spinning on a backlog that it cannot take. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "control/control_priv.h"
#include "control/listen_sockets.h"

#define LISTENER_MAGIC   0x6b766c73u /* "kvls" */
#define ACCEPTS_PER_TURN 64
#define PAUSE_NS         (100 * KVX_MS) /* without fds: how long before the next try */
#define WARN_EVERY_NS    (5 * KVX_SEC)

struct kvx_listener {
	uint32_t magic;
	struct kvx_control *control;
	unsigned n_sockets;
	unsigned n_open; /* polls not closed yet */
	uv_poll_t polls[KVX_LISTEN_SOCKETS];
	struct kvx_listen_socket sockets[KVX_LISTEN_SOCKETS];
	int spare_fd;
	struct kvx_timer pause;
	uint64_t warned_ns;
};

static void listener_on_poll(uv_poll_t *poll, int status, int events);

static void listener_start(struct kvx_listener *listener)
{
	unsigned i;

	for (i = 0; i < listener->n_sockets; i++)
		uv_poll_start(&listener->polls[i], UV_READABLE, listener_on_poll);
}

static void listener_on_pause_over(struct kvx_timer *timer)
{
	struct kvx_listener *listener =
	    (struct kvx_listener *)((char *)timer - offsetof(struct kvx_listener, pause));

	kvx_assert_on_loop();
	KVX_CHECK_MAGIC(listener, LISTENER_MAGIC);
	if (listener->spare_fd < 0)
		listener->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	listener_start(listener);
}

static void listener_pause(struct kvx_listener *listener)
{
	unsigned i;

	if (kvx_timer_start(listener->control->conf.timers, &listener->pause, PAUSE_NS,
			    listener_on_pause_over) < 0)
		return; /* then it spins until there is memory again */
	for (i = 0; i < listener->n_sockets; i++)
		uv_poll_stop(&listener->polls[i]);
}

/* Says why on a connection that becomes no client. What fits into a fresh socket's buffer is taken
 * at once; nothing is waited for. */
static void connection_refuse(int fd, int status, const char *text)
{
	struct kvx_writer *writer;
	Kvxp__Error error = KVXP__ERROR__INIT;
	uint8_t body[256];

	error.status = kvx_status_from_errno(status);
	error.text = (char *)(uintptr_t)text;
	if (kvxp__error__get_packed_size(&error) <= sizeof(body) &&
	    kvx_writer_create(&writer) == 0) {
		uint32_t len = (uint32_t)kvxp__error__pack(&error, body);

		if (kvx_writer_put(writer, KVXP__FRAME_TYPE__FRAME_ERROR, body, len, NULL, 0) == 0)
			kvx_writer_flush(writer, fd);
		kvx_writer_destroy(writer);
	}
}

/* No fd is left: the spare one makes room to tell one client so. */
static void listener_use_spare(struct kvx_listener *listener, int listen_fd)
{
	uint64_t now = kvx_now_ns();
	int fd;

	kvx_assert_on_loop();
	if (now - listener->warned_ns > WARN_EVERY_NS || listener->warned_ns == 0) {
		listener->warned_ns = now;
		kvx_error("control: no file descriptors left (%u clients): raise LimitNOFILE",
			  listener->control->n_clients);
	}
	listener->control->stats.refused_connects++;
	if (listener->spare_fd >= 0) {
		close(listener->spare_fd);
		fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0) {
			connection_refuse(fd, -EDQUOT,
					  "the daemon has no file descriptors left (LimitNOFILE)");
			kvx_closer_give_conn(listener->control->closer, NULL, fd);
		}
		listener->spare_fd = -1; /* there will be one when that is closed */
	}
	listener_pause(listener);
}

static void socket_credentials(int fd, struct kvx_client_origin *origin)
{
	struct ucred cred = {.pid = 0, .uid = (uid_t)-1, .gid = (gid_t)-1};
	socklen_t len = sizeof(cred);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		kvx_warn("control: no credentials of a new client: %s", strerror(errno));
	origin->uid = cred.uid;
	origin->pid = cred.pid;
}

/* Why there is no room for one more client of this origin; false: there is. */
static KVX_ON_LOOP bool control_is_full(const struct kvx_control *control,
					const struct kvx_client_origin *origin, char *text,
					size_t text_bytes)
{
	const struct kvx_closer_user user = {.tenant = origin->tenant, .uid = origin->uid};
	unsigned n = kvx_closer_user_count(control->closer, &user);

	if (control->n_clients >= control->conf.config->clients + KVX_CLIENTS_OVER_LIMIT)
		snprintf(text, text_bytes, "client limit %u reached ([limits] clients)",
			 control->conf.config->clients);
	else if (n >= KVX_USER_CLOSING_MAX)
		snprintf(text, text_bytes,
			 "%u file descriptors that clients of user %u sent wait to be closed: "
			 "closing one takes long, so it is no memory; connect again once it is "
			 "closed, and send those of memory only",
			 n, (unsigned)user.uid);
	else
		return false;
	return true;
}

/* false: nothing more to take now. */
static KVX_ON_LOOP bool listener_accept(struct kvx_listener *listener,
					const struct kvx_listen_socket *sock)
{
	struct kvx_control *control = listener->control;
	struct kvx_client_origin origin = {.tenant = sock->tenant};
	int fd = accept4(sock->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	char text[240]; /* and fits into a frame of connection_refuse() */
	int err;

	if (fd < 0) {
		err = errno;
		if (err == EMFILE || err == ENFILE || err == ENOMEM || err == ENOBUFS)
			listener_use_spare(listener, sock->fd);
		return err == EINTR || err == ECONNABORTED;
	}
	socket_credentials(fd, &origin);
	if (control_is_full(control, &origin, text, sizeof(text))) {
		control->stats.refused_connects++;
		connection_refuse(fd, -EDQUOT, text);
		kvx_closer_give_conn(control->closer, NULL, fd);
		return true;
	}
	err = kvx_conn_open(control, fd, &origin);
	if (err < 0)
		kvx_warn("control: a new connection could not be taken: %s", strerror(-err));
	return true;
}

static void listener_on_poll(uv_poll_t *poll, int status, int events)
{
	struct kvx_listener *listener = poll->data;
	unsigned i;

	kvx_assert_on_loop();
	KVX_CHECK_MAGIC(listener, LISTENER_MAGIC);
	for (i = 0; i < ACCEPTS_PER_TURN &&
		    listener_accept(listener, &listener->sockets[poll - listener->polls]);
	     i++)
		;
}

/* ---- opening and closing */

int kvx_listener_open(struct kvx_control *control, struct kvx_listener **out_listener,
		      struct kvx_why *why)
{
	struct kvx_listener *listener = calloc(1, sizeof(*listener));
	unsigned i;
	int n;

	if (listener == NULL) {
		for (i = 0; i < control->conf.n_listen_fds; i++)
			close(control->conf.listen_fds[i].fd);
		return -ENOMEM;
	}
	n = kvx_listen_sockets_open(control, listener->sockets, why);
	if (n < 0) {
		free(listener);
		return n;
	}
	listener->magic = LISTENER_MAGIC;
	listener->control = control;
	listener->n_sockets = (unsigned)n;
	listener->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	for (i = 0; i < listener->n_sockets; i++) {
		const struct kvx_listen_socket *sock = &listener->sockets[i];
		int err = uv_poll_init(control->conf.loop, &listener->polls[i], sock->fd);

		kvx_assert(err == 0); /* only fails for what is no socket */
		listener->polls[i].data = listener;
		listener->n_open++;
		kvx_info("control: clients%s%s at %s%s", sock->tenant > 0 ? " of tenant " : "",
			 sock->tenant > 0 ? control->tenants[sock->tenant].name : "", sock->path,
			 sock->handed_over ? " (socket activation)" : "");
	}
	listener_start(listener);
	*out_listener = listener;
	return 0;
}

static void listener_on_closed(uv_handle_t *handle)
{
	struct kvx_listener *listener = handle->data;
	struct kvx_control *control = listener->control;

	kvx_assert_on_loop();
	KVX_CHECK_MAGIC(listener, LISTENER_MAGIC);
	if (--listener->n_open > 0)
		return;
	listener->magic = 0;
	free(listener);
	control->listener = NULL;
	kvx_control_front_gone(control);
}

void kvx_listener_close(struct kvx_listener *listener)
{
	unsigned i;

	kvx_timer_stop(listener->control->conf.timers, &listener->pause);
	for (i = 0; i < listener->n_sockets; i++)
		uv_close((uv_handle_t *)&listener->polls[i], listener_on_closed);
	kvx_listen_sockets_close(listener->sockets, listener->n_sockets);
	if (listener->spare_fd >= 0)
		close(listener->spare_fd);
	listener->spare_fd = -1;
}

const char *kvx_listener_path(const struct kvx_listener *listener, uint32_t tenant)
{
	unsigned i;

	for (i = 0; listener != NULL && i < listener->n_sockets; i++)
		if (listener->sockets[i].tenant == tenant)
			return listener->sockets[i].path;
	return "";
}
