/* A connection: the socket front of one client. Owns the socket, its poll handle, the reader and
 * the writer. On the loop; libuv calls it when the socket is ready, control when there are frames
 * to send. It knows frames, never what they mean, and never blocks. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <utlist.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "control/control_priv.h"

#define CONN_MAGIC      0x6b76636eu /* "kvcn" */
#define READS_PER_TURN  16          /* then the others have their turn */
#define READ_MORE_BYTES 4096        /* a read that gave less has emptied the socket */
#define LINGER_NS       (1 * KVX_SEC)
/* Descriptors of a client that wait to be closed: far more than who behaves ever has. */
#define CLOSING_FDS_MAX (8 * KVX_WIRE_MAX_FDS)
/* And while its user has KVX_USER_CLOSING_MAX: one frame's, so that others of the user stay. */
#define CLOSING_FDS_FEW KVX_WIRE_MAX_FDS

struct kvx_conn {
	struct kvx_front front; /* first */
	uint32_t magic;
	struct kvx_control *control;
	struct kvx_client *client;
	uv_poll_t poll;
	int events; /* that poll waits for */
	int fd;
	struct kvx_reader *reader;
	struct kvx_writer *writer;
	bool reading;
	bool closing; /* sends what is left, then closes */
	bool closed;
	bool dirty;
	struct kvx_timer linger;
	struct kvx_conn *prev, *next; /* of the dirty ones */
};

static struct kvx_conn *conn_of(const struct kvx_front *front)
{
	struct kvx_conn *conn = (struct kvx_conn *)(uintptr_t)front;

	KVX_CHECK_MAGIC(conn, CONN_MAGIC);
	return conn;
}

static void conn_on_poll(uv_poll_t *poll, int status, int events);

static void conn_want(struct kvx_conn *conn, int events)
{
	if (conn->closed || events == conn->events)
		return;
	conn->events = events;
	if (events == 0)
		uv_poll_stop(&conn->poll);
	else
		uv_poll_start(&conn->poll, events, conn_on_poll);
}

static void conn_mark_dirty(struct kvx_conn *conn)
{
	if (conn->dirty || conn->closed)
		return;
	conn->dirty = true;
	DL_APPEND(conn->control->dirty, conn);
}

/* ---- the end */

static void conn_on_closed(uv_handle_t *handle)
{
	struct kvx_conn *conn = handle->data;
	struct kvx_control *control = conn->control;

	kvx_assert_on_loop();
	KVX_CHECK_MAGIC(conn, CONN_MAGIC);
	kvx_reader_destroy(conn->reader);
	kvx_writer_destroy(conn->writer);
	kvx_client_destroy(conn->client);
	kvx_closer_tab_destroy(conn->front.closing);
	conn->magic = 0;
	free(conn);
	kvx_control_front_gone(control);
}

static void conn_shut(struct kvx_conn *conn)
{
	kvx_assert_on_loop();
	if (conn->closed)
		return;
	conn->closed = true;
	kvx_timer_stop(conn->control->conf.timers, &conn->linger);
	if (conn->dirty)
		DL_DELETE(conn->control->dirty, conn);
	conn->dirty = false;
	uv_close((uv_handle_t *)&conn->poll, conn_on_closed);
	kvx_closer_give_conn(conn->control->closer, conn->front.closing, conn->fd);
	conn->fd = -1;
}

static void conn_on_linger(struct kvx_timer *timer)
{
	struct kvx_conn *conn =
	    (struct kvx_conn *)((char *)timer - offsetof(struct kvx_conn, linger));

	kvx_assert_on_loop();
	KVX_CHECK_MAGIC(conn, CONN_MAGIC);
	conn_shut(conn);
}

/* ---- front */

static uint8_t *conn_reserve(struct kvx_front *front, uint16_t type, uint32_t body_bytes)
{
	struct kvx_conn *conn = conn_of(front);

	conn_mark_dirty(conn);
	return kvx_writer_reserve(conn->writer, type, body_bytes);
}

static int conn_put_fd(struct kvx_front *front, uint16_t type, const void *body,
		       uint32_t body_bytes, int fd)
{
	struct kvx_conn *conn = conn_of(front);

	conn_mark_dirty(conn);
	return kvx_writer_put(conn->writer, type, body, body_bytes, &fd, fd >= 0 ? 1 : 0);
}

static size_t conn_pending_bytes(const struct kvx_front *front)
{
	return kvx_writer_pending_bytes(conn_of(front)->writer);
}

static void conn_set_max(struct kvx_front *front, uint32_t max_body_bytes)
{
	struct kvx_conn *conn = conn_of(front);

	kvx_reader_set_max(conn->reader, max_body_bytes);
	kvx_reader_allow_fds(conn->reader, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER);
}

static void conn_stop(struct kvx_front *front)
{
	struct kvx_conn *conn = conn_of(front);

	conn->reading = false;
	conn_want(conn, conn->events & UV_WRITABLE);
}

static void conn_close(struct kvx_front *front)
{
	struct kvx_conn *conn = conn_of(front);

	conn->closing = true;
	conn_mark_dirty(conn); /* the flush goes on from here */
}

static const struct kvx_front_ops conn_front_ops = {
    .reserve = conn_reserve,
    .put_fd = conn_put_fd,
    .pending_bytes = conn_pending_bytes,
    .set_max = conn_set_max,
    .stop = conn_stop,
    .close = conn_close,
};

/* ---- sending */

static KVX_ON_LOOP void conn_flush(struct kvx_conn *conn)
{
	int err = kvx_writer_flush(conn->writer, conn->fd);

	if (err == -EAGAIN) {
		conn_want(conn, conn->events | UV_WRITABLE);
		if (conn->closing && !kvx_timer_is_running(&conn->linger) &&
		    kvx_timer_start(conn->control->conf.timers, &conn->linger, LINGER_NS,
				    conn_on_linger) < 0)
			conn_shut(conn);
		return;
	}
	conn_want(conn, conn->events & ~UV_WRITABLE);
	if (conn->closing)
		conn_shut(conn);
	else if (err < 0)
		kvx_client_lost(conn->client, strerror(-err));
}

/* The client that waits for an answer comes before those that are told of it. */
static KVX_ON_LOOP void conn_flush_first(struct kvx_conn *conn)
{
	if (!conn->dirty)
		return;
	DL_DELETE(conn->control->dirty, conn);
	conn->dirty = false;
	conn_flush(conn);
}

void kvx_conn_flush_all(struct kvx_control *control)
{
	struct kvx_conn *conn;

	while ((conn = control->dirty) != NULL) {
		DL_DELETE(control->dirty, conn);
		conn->dirty = false;
		conn_flush(conn);
	}
}

/* ---- receiving */

/* Of the reader: descriptors that no frame took. */
static void conn_on_discard(void *arg, int fd)
{
	struct kvx_conn *conn = arg;

	kvx_assert_on_loop();
	kvx_closer_give_on(conn->control->closer, conn->front.closing, fd);
}

static KVX_ON_LOOP void conn_check_closing(struct kvx_conn *conn)
{
	const struct kvx_client *client = conn->client;
	const struct kvx_closer_user user = {.tenant = client->tenant, .uid = client->uid};
	unsigned n = kvx_closer_tab_count(conn->front.closing);
	unsigned n_user;

	if (n <= CLOSING_FDS_FEW)
		return;
	n_user = kvx_closer_user_count(conn->control->closer, &user);
	if (n > CLOSING_FDS_MAX || n_user >= KVX_USER_CLOSING_MAX)
		kvx_client_fail(conn->client, -EDQUOT,
				"%u of its file descriptors (%u of all clients of user %u) wait to "
				"be closed: closing one takes long, so it is no memory; send those "
				"of memory only",
				n, n_user, (unsigned)client->uid);
}

/* The same for those of a frame that nobody wanted. */
static KVX_ON_LOOP void conn_drop_fds(struct kvx_conn *conn, struct kvx_msg *msg)
{
	for (unsigned i = 0; i < msg->n_fds; i++) {
		int fd = kvx_msg_take_fd(msg, i);

		if (fd >= 0)
			kvx_closer_give_on(conn->control->closer, conn->front.closing, fd);
	}
	conn_check_closing(conn);
}

/* All whole frames that have arrived. */
static KVX_ON_LOOP void conn_take_frames(struct kvx_conn *conn)
{
	uint32_t limit = conn->client->sm.state == KVX_CLIENT_NEW
			     ? KVX_HELLO_FRAME_BYTES
			     : conn->control->conf.config->frame_bytes;
	struct kvx_msg msg;
	int rc = 0;

	while (kvx_client_takes_frames(conn->client) &&
	       (rc = kvx_reader_next(conn->reader, &msg)) > 0) {
		kvx_client_frame(conn->client, &msg);
		conn_drop_fds(conn, &msg);
	}
	if (rc == -EMSGSIZE)
		kvx_client_fail(conn->client, rc,
				"a frame of more than %u bytes ([limits] frame_bytes)", limit);
	else if (rc < 0)
		kvx_client_fail(conn->client, rc,
				"malformed frame: more than %u file descriptors (REGION_REGISTER: "
				"%u), or announced and sent ones do not agree",
				KVX_WIRE_FEW_FDS, KVX_WIRE_MAX_FDS);
}

static KVX_ON_LOOP void conn_read_failed(struct kvx_conn *conn, int err)
{
	struct kvx_client *client = conn->client;
	unsigned most = client->sm.state == KVX_CLIENT_NEW ? KVX_WIRE_FEW_FDS : KVX_WIRE_MAX_FDS;

	switch (err) {
	case -EPROTO:
		kvx_client_fail(client, err, "more than %u file descriptors came at once", most);
		return;
	case -EDQUOT:
		kvx_client_fail(client, err,
				"more file descriptors in frames that are not whole yet than two "
				"frames may carry (%u each)",
				most);
		return;
	case -ENOMEM:
		kvx_client_fail(client, err, "no memory for its frames");
		return;
	default:
		kvx_client_lost(client, strerror(-err));
		return;
	}
}

static KVX_ON_LOOP void conn_read(struct kvx_conn *conn)
{
	unsigned i;

	for (i = 0; i < READS_PER_TURN && conn->reading; i++) {
		int n = kvx_reader_fill(conn->reader, conn->fd);

		if (n == -EAGAIN)
			break;
		if (n > 0)
			conn_take_frames(conn);
		else if (n == 0)
			kvx_client_lost(conn->client, "it closed the connection");
		else
			conn_read_failed(conn, n);
		if (n < READ_MORE_BYTES)
			break;
	}
}

static void conn_on_poll(uv_poll_t *poll, int status, int events)
{
	struct kvx_conn *conn = poll->data;
	struct kvx_control *control;

	kvx_assert_on_loop();
	KVX_CHECK_MAGIC(conn, CONN_MAGIC);
	control = conn->control;
	if (conn->closed)
		return;
	if (status < 0) {
		/* libuv tells of any error of the socket as UV_EBADF; reading says which one, after
		 * what had come before it. */
		conn_want(conn, 0);
		if (conn->reading)
			conn_read(conn);
		kvx_client_lost(conn->client, "the connection broke");
	}
	if ((events & UV_READABLE) != 0 && conn->reading)
		conn_read(conn);
	if ((events & UV_WRITABLE) != 0)
		conn_mark_dirty(conn);
	/* What can be done at once is done at once: small transfers are copied and their events
	 * leave within this callback. */
	kvx_node_drain(control->conf.node);
	conn_flush_first(conn);
	kvx_control_settle(control);
}

/* ---- making one */

/* The poll handle of a connection that never had a client. */
static void conn_on_aborted(uv_handle_t *handle)
{
	struct kvx_conn *conn = handle->data;

	kvx_assert_on_loop();
	kvx_reader_destroy(conn->reader);
	kvx_writer_destroy(conn->writer);
	kvx_closer_tab_destroy(conn->front.closing);
	free(conn);
}

int kvx_conn_open(struct kvx_control *control, int fd, const struct kvx_client_origin *origin)
{
	const struct kvx_closer_user user = {.tenant = origin->tenant, .uid = origin->uid};
	struct kvx_conn *conn = calloc(1, sizeof(*conn));
	int err = -ENOMEM;

	if (conn == NULL)
		goto err_fd;
	conn->front.ops = &conn_front_ops;
	conn->magic = CONN_MAGIC;
	conn->control = control;
	conn->fd = fd;
	conn->reading = true;
	conn->front.closing = kvx_closer_tab_create(control->closer, &user);
	if (conn->front.closing == NULL)
		goto err_free;
	err = kvx_reader_create(KVX_HELLO_FRAME_BYTES, &conn->reader);
	if (err < 0)
		goto err_free;
	kvx_reader_set_discard(conn->reader, conn_on_discard, conn);
	err = kvx_writer_create(&conn->writer);
	if (err < 0)
		goto err_free;
	err = uv_poll_init(control->conf.loop, &conn->poll, fd);
	if (err < 0)
		goto err_free;
	conn->poll.data = conn;
	err = kvx_client_create(control, &conn->front, origin, &conn->client);
	if (err < 0)
		goto err_poll;
	control->n_fronts++;
	conn_want(conn, UV_READABLE);
	return 0;

err_poll:
	uv_close((uv_handle_t *)&conn->poll, conn_on_aborted);
	goto err_fd;
err_free:
	kvx_reader_destroy(conn->reader);
	kvx_writer_destroy(conn->writer);
	kvx_closer_tab_destroy(conn->front.closing);
	free(conn);
err_fd:
	kvx_closer_give_conn(control->closer, NULL, fd);
	return err;
}
