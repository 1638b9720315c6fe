/* The connection once it is up: frames in and out, and how it ends. The user's thread.
 *
 * An end that the daemon announced (FRAME_ERROR) is the loss at once, since the daemon fences
 * first. The end of the stream alone proves nothing: a killed daemon's socket closes before its
 * last DMA is known to be over, so the loss waits for the daemon's pidfd. Nothing here delivers
 * events of a loss: that is dispatch's, which the polled fd calls for.
 */
#include "libclient/client_priv.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define OUT_RETRY_MS 10

int kvx_cl_watch(struct kvxfer_client *client, int op, int fd, uint32_t events)
{
	struct epoll_event event = {.events = events};

	if (epoll_ctl(client->epoll, op, fd, &event) != 0)
		return kvx_cl_fail(client, -errno, "epoll_ctl: %s", strerror(errno));
	return 0;
}

void kvx_cl_wake(struct kvxfer_client *client)
{
	uint64_t one = 1;

	if (client->woken)
		return;
	client->woken = write(client->wake, &one, sizeof(one)) == (ssize_t)sizeof(one);
}

int kvx_cl_put(struct kvxfer_client *client, uint16_t type, const ProtobufCMessage *message, int fd)
{
	return kvx_cl_put_fds(client, type, message, &fd, fd >= 0);
}

int kvx_cl_put_fds(struct kvxfer_client *client, uint16_t type, const ProtobufCMessage *message,
		   const int *fds, unsigned n_fds)
{
	size_t bytes = protobuf_c_message_get_packed_size(message);
	uint8_t *body;
	int err;

	if (bytes > client->max_frame_bytes)
		return -EMSGSIZE;
	body = malloc(bytes + 1);
	if (body == NULL)
		return -ENOMEM;
	protobuf_c_message_pack(message, body);
	err = kvx_writer_put(client->writer, type, body, (uint32_t)bytes, fds, n_fds);
	free(body);
	return err;
}

int kvx_cl_reserve(struct kvxfer_client *client, uint16_t type, size_t bytes, uint8_t **out_body)
{
	uint8_t *body;

	if (bytes > client->max_frame_bytes)
		return kvx_cl_fail(client, -EMSGSIZE,
				   "a request of %zu bytes: the daemon takes %u at most", bytes,
				   client->max_frame_bytes);
	if (kvx_writer_pending_bytes(client->writer) + bytes > KVX_CL_OUT_MAX_BYTES)
		return kvx_cl_fail(client, -EAGAIN,
				   "%zu bytes wait to be sent, the daemon does not read them: "
				   "dispatch, and try again",
				   kvx_writer_pending_bytes(client->writer));
	body = kvx_writer_reserve(client->writer, type, (uint32_t)bytes);
	if (body == NULL)
		return kvx_cl_fail(client, -ENOMEM, "out of memory");
	*out_body = body;
	return 0;
}

/* Not while a frame of the reader is in use. */
void kvx_cl_close_conn(struct kvxfer_client *client)
{
	int *fds[] = {&client->sock, &client->pidfd, &client->timer};

	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
		if (*fds[i] < 0)
			continue;
		/* By hand: a forked child may have a copy that would keep it in the set. In the
		 * child itself the set is the parent's, and left alone. */
		if (client->epoll >= 0 && !kvx_cl_forked(client))
			epoll_ctl(client->epoll, EPOLL_CTL_DEL, *fds[i], NULL);
		close(*fds[i]);
		*fds[i] = -1;
	}
	kvx_reader_destroy(client->reader);
	kvx_writer_destroy(client->writer);
	client->reader = NULL;
	client->writer = NULL;
	client->out_armed = client->out_dead = false;
	client->loss_at_ns = client->out_retry_ns = 0;
}

/* The fence is known: whatever is outstanding has ended. */
static void conn_lost(struct kvxfer_client *client)
{
	client->state = KVX_CL_LOST;
	client->loss_unread = true;
	client->loss_told = 0;
	kvx_cl_drop_requests(client);
	kvx_cl_wake(client);
}

/* ms 0: not at all. */
static bool conn_set_timer(struct kvxfer_client *client, int ms)
{
	struct itimerspec when = {
	    .it_value = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}};

	if (client->timer < 0) {
		client->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
		if (client->timer < 0 ||
		    kvx_cl_watch(client, EPOLL_CTL_ADD, client->timer, EPOLLIN) < 0)
			return false;
	}
	return timerfd_settime(client->timer, 0, &when, NULL) == 0;
}

static void conn_arm_timer(struct kvxfer_client *client)
{
	client->loss_at_ns = kvx_cl_now_ns() + KVX_CL_LOSS_GRACE_MS * KVX_CL_MSEC;
	if (!conn_set_timer(client, KVX_CL_LOSS_GRACE_MS))
		kvx_cl_wake(client); /* no sleep then, but the right time */
}

/* The stream has ended without FRAME_ERROR. */
static void conn_on_end(struct kvxfer_client *client)
{
	bool quit = client->state == KVX_CL_QUIT;
	int pidfd = client->pidfd;

	client->pidfd = -1;
	kvx_cl_close_conn(client);
	client->pidfd = pidfd;
	if (client->said_goodbye) {
		conn_lost(client);
		return;
	}
	client->state = KVX_CL_EOF;
	if (!quit) {
		client->lost_status = KVXFER_DAEMON_LOST;
		snprintf(client->lost_text, sizeof(client->lost_text),
			 "the daemon closed the connection without a word");
	}
	if (pidfd >= 0 && kvx_cl_watch(client, EPOLL_CTL_ADD, pidfd, EPOLLIN) < 0) {
		close(pidfd);
		client->pidfd = -1;
	}
	/* After GOODBYE the end of the stream either is the daemon's answer, or its death. */
	if (client->pidfd < 0 || quit)
		conn_arm_timer(client);
}

void kvx_cl_quit(struct kvxfer_client *client, int status, const char *fmt, ...)
{
	va_list args;

	if (client->state != KVX_CL_UP)
		return;
	va_start(args, fmt);
	vsnprintf(client->lost_text, sizeof(client->lost_text), fmt, args);
	va_end(args);
	client->lost_status = status;
	client->state = KVX_CL_QUIT;
	/* Out of memory the daemon is told by the end of the stream instead. */
	if (kvx_writer_reserve(client->writer, KVXP__FRAME_TYPE__FRAME_GOODBYE, 0) == NULL)
		shutdown(client->sock, SHUT_WR);
	kvx_cl_flush(client);
}

/* Why the daemon ends the connection, in its words; it has fenced. */
static void conn_on_error(struct kvxfer_client *client, const struct kvx_msg *msg)
{
	Kvxp__Error *error = kvxp__error__unpack(NULL, msg->len_bytes, msg->body);

	client->lost_status = KVXFER_DAEMON_LOST;
	if (error != NULL && error->status != KVX_STATUS_OK)
		client->lost_status = (int)error->status;
	snprintf(client->lost_text, sizeof(client->lost_text), "%s",
		 error != NULL && error->text[0] != '\0'
		     ? error->text
		     : kvx_status_text((uint32_t)client->lost_status));
	if (error != NULL)
		kvxp__error__free_unpacked(error, NULL);
	conn_lost(client);
}

static void conn_on_frame(struct kvxfer_client *client, const struct kvx_msg *msg)
{
	switch (msg->type) {
	case KVXP__FRAME_TYPE__FRAME_EVENT:
		kvx_cl_on_event(client, msg->type, msg->body, msg->len_bytes);
		break;
	case KVXP__FRAME_TYPE__FRAME_REPLY:
		kvx_cl_on_reply(client, msg->body, msg->len_bytes);
		break;
	case KVXP__FRAME_TYPE__FRAME_ERROR:
		conn_on_error(client, msg);
		break;
	default: /* of a newer daemon, and not vital: version negotiation has seen to that */
		break;
	}
}

void kvx_cl_take_frames(struct kvxfer_client *client)
{
	while (client->state == KVX_CL_UP) {
		struct kvx_msg msg;
		int n = kvx_reader_next(client->reader, &msg);

		if (n == 0)
			return;
		if (n < 0) {
			kvx_cl_quit(client, KVXFER_PROTOCOL, "a frame of the daemon is bad: %s",
				    strerror(-n));
			return;
		}
		conn_on_frame(client, &msg);
		kvx_msg_fini(&msg);
	}
	if (client->state == KVX_CL_LOST)
		kvx_cl_close_conn(client);
}

int kvx_cl_read(struct kvxfer_client *client)
{
	int n = kvx_reader_fill(client->reader, client->sock);

	if (n == -EAGAIN)
		return n;
	if (n == 0 || n == -ECONNRESET) {
		conn_on_end(client);
		return 0;
	}
	if (n < 0) {
		kvx_cl_quit(client, n == -ENOMEM ? KVXFER_NO_MEMORY : KVXFER_PROTOCOL,
			    "reading from the daemon: %s", strerror(-n));
		return 0;
	}
	kvx_cl_take_frames(client);
	return client->state == KVX_CL_UP ? n : 0;
}

/* Nothing tells when there is room: not the socket, which is writable all the time. */
static void conn_retry_later(struct kvxfer_client *client)
{
	client->out_retry_ns = kvx_cl_now_ns() + OUT_RETRY_MS * KVX_CL_MSEC;
	if (!conn_set_timer(client, OUT_RETRY_MS))
		kvx_cl_wake(client);
}

int kvx_cl_flush(struct kvxfer_client *client)
{
	bool more, later;
	int err;

	if (client->out_dead)
		return -EPIPE;
	err = kvx_writer_flush(client->writer, client->sock);
	more = err == -EAGAIN;
	later = err == -ENOBUFS || err == -ENOMEM || err == -ETOOMANYREFS;
	if (err < 0 && !more && !later)
		client->out_dead = true;
	if (later) {
		conn_retry_later(client);
	} else if (client->out_retry_ns != 0) {
		client->out_retry_ns = 0;
		conn_set_timer(client, 0);
	}
	if (more != client->out_armed && kvx_cl_watch(client, EPOLL_CTL_MOD, client->sock,
						      more ? EPOLLIN | EPOLLOUT : EPOLLIN) == 0)
		client->out_armed = more;
	return err;
}

int kvx_cl_poll_fd(int fd, short events, uint64_t deadline_ns)
{
	struct pollfd pfd = {.fd = fd, .events = events};

	for (;;) {
		uint64_t now_ns = kvx_cl_now_ns();
		uint64_t left_ns = now_ns < deadline_ns ? deadline_ns - now_ns : 0;
		struct timespec ts = {.tv_sec = (time_t)(left_ns / 1000000000),
				      .tv_nsec = (long)(left_ns % 1000000000)};
		int n = ppoll(&pfd, 1, deadline_ns == UINT64_MAX ? NULL : &ts, NULL);

		if (n > 0)
			return pfd.revents;
		if (n == 0 && left_ns == 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return POLLERR; /* no memory in the kernel: the caller tries again */
	}
}

int kvx_cl_poll(struct kvxfer_client *client, uint64_t deadline_ns)
{
	uint64_t until_ns = deadline_ns;
	short events = POLLIN;
	int fd = client->sock, revents;

	if (client->state == KVX_CL_LOST)
		return 0;
	if (client->state == KVX_CL_EOF) {
		fd = client->pidfd;
		if (client->loss_at_ns != 0 && client->loss_at_ns < until_ns)
			until_ns = client->loss_at_ns;
	} else if (client->out_retry_ns != 0) {
		if (client->out_retry_ns < until_ns)
			until_ns = client->out_retry_ns;
	} else if (!client->out_dead && kvx_writer_pending_bytes(client->writer) > 0) {
		events |= POLLOUT;
	}
	revents = kvx_cl_poll_fd(fd, events, until_ns);
	if ((revents & POLLOUT) != 0 ||
	    (client->out_retry_ns != 0 && kvx_cl_now_ns() >= client->out_retry_ns))
		kvx_cl_flush(client);
	return revents == 0 && until_ns == deadline_ns ? -ETIMEDOUT : 0;
}

/* QUIT: what the daemon still sends is of no interest, only its end. fds in it close themselves. */
static void conn_skip_input(struct kvxfer_client *client)
{
	uint8_t scratch[4096];
	ssize_t n;

	kvx_cl_flush(client);
	do {
		n = recv(client->sock, scratch, sizeof(scratch), MSG_DONTWAIT);
	} while (n > 0 || (n < 0 && errno == EINTR));
	if (n == 0 || errno != EAGAIN)
		conn_on_end(client);
}

void kvx_cl_check_loss(struct kvxfer_client *client)
{
	if (client->state == KVX_CL_QUIT)
		conn_skip_input(client);
	if (client->state != KVX_CL_EOF)
		return;
	if ((client->pidfd >= 0 && kvx_cl_poll_fd(client->pidfd, POLLIN, 0) != 0) ||
	    (client->loss_at_ns != 0 && kvx_cl_now_ns() >= client->loss_at_ns)) {
		kvx_cl_close_conn(client);
		conn_lost(client);
	}
}

int kvx_cl_wait_lost(struct kvxfer_client *client, uint64_t deadline_ns)
{
	for (;;) {
		kvx_cl_check_loss(client);
		if (client->state == KVX_CL_LOST)
			return 0;
		if (kvx_cl_poll(client, deadline_ns) < 0)
			return -ETIMEDOUT;
	}
}
