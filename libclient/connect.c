/* From a socket path to an agreed protocol version. The user's thread, inside open and reconnect;
 * blocks to a deadline. */
#include "libclient/client_priv.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <utlist.h>

/* As much as the system allows, so that a large op list is taken in one call. */
#define SEND_BUFFER_BYTES (8 * 1024 * 1024)
/* Nothing reasonable has a smaller limit: every set-up request must fit. */
#define MIN_FRAME_BYTES 4096u

int kvx_cl_set_address(struct kvxfer_client *client, const char *path)
{
	struct sockaddr_un *address = &client->address;
	size_t len = strlen(path);

	if (len == 0 || (path[0] == '@' && len == 1))
		return kvx_cl_fail(client, -EINVAL, "the socket path is empty");
	if (len >= sizeof(address->sun_path))
		return kvx_cl_fail(client, -EINVAL,
				   "the socket path is longer than %zu bytes: %.40s...",
				   sizeof(address->sun_path) - 1, path);
	memcpy(client->socket_path, path, len + 1);
	address->sun_family = AF_UNIX;
	memcpy(address->sun_path, path, len);
	client->address_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
	if (path[0] == '@')
		address->sun_path[0] = '\0';
	else
		client->address_bytes++;
	return 0;
}

static int connect_refused(struct kvxfer_client *client, int err)
{
	const char *path = client->socket_path;

	switch (err) {
	case -ENOENT:
		return kvx_cl_fail(client, err,
				   "no daemon listens on %s: there is no such socket; is kvxferd "
				   "running? See kvxferctl doctor",
				   path);
	case -ECONNREFUSED:
		return kvx_cl_fail(client, err,
				   "no daemon listens on %s: is kvxferd running? See kvxferctl "
				   "doctor",
				   path);
	case -EACCES:
	case -EPERM:
		return kvx_cl_fail(client, -EACCES,
				   "no permission to connect to %s: the socket's owner, group and "
				   "mode, or those of its directories, do not admit this user",
				   path);
	case -EAGAIN:
		return kvx_cl_fail(client, -ETIMEDOUT,
				   "%s does not accept connections: the daemon hangs or is "
				   "overloaded",
				   path);
	default:
		return kvx_cl_fail(client, err, "connect to %s: %s", path, strerror(-err));
	}
}

static int sock_connect(struct kvxfer_client *client, uint64_t deadline_ns)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int bytes = SEND_BUFFER_BYTES, err;

	if (fd < 0)
		return kvx_cl_fail(client, -errno, "socket: %s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
	do {
		uint64_t now_ns = kvx_cl_now_ns();
		uint64_t us = now_ns < deadline_ns ? (deadline_ns - now_ns) / 1000 : 0;
		struct timeval tv = {.tv_sec = (time_t)(us / 1000000),
				     .tv_usec = (suseconds_t)(us % 1000000)};

		if (us == 0) {
			err = -EAGAIN;
			break;
		}
		/* It bounds connect(2) when the daemon's backlog is full. */
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
		err = connect(fd, (struct sockaddr *)&client->address, client->address_bytes) == 0
			  ? 0
			  : -errno;
	} while (err == -EINTR);
	if (err < 0) {
		close(fd);
		return connect_refused(client, err);
	}
	client->sock = fd;
	return 0;
}

static int hello_send(struct kvxfer_client *client)
{
	Kvxp__Hello hello = KVXP__HELLO__INIT;

	hello.version_min = KVX_CL_PROTO_MIN;
	hello.version_max = KVX_CL_PROTO_MAX;
	hello.name = client->name;
	hello.pid = (uint32_t)getpid();
	hello.library = (char *)(uintptr_t)KVX_VERSION;
	client->max_frame_bytes = KVX_CL_HELLO_MAX_BYTES;
	return kvx_cl_put(client, KVXP__FRAME_TYPE__FRAME_HELLO, &hello.base, -1);
}

/* The daemon's first frame. A failing flush is left to the reading: the reason may be there. */
static int hello_receive(struct kvxfer_client *client, uint64_t deadline_ns,
			 struct kvx_msg *out_msg)
{
	for (;;) {
		int n = kvx_reader_next(client->reader, out_msg);

		if (n > 0)
			return 0;
		if (n == 0)
			n = kvx_reader_fill(client->reader, client->sock);
		if (n > 0)
			continue;
		if (n == 0 || n == -ECONNRESET)
			return kvx_cl_fail(
			    client, -ECONNRESET,
			    "the daemon at %s closed the connection before its hello",
			    client->socket_path);
		if (n != -EAGAIN)
			return kvx_cl_fail(client, -EPROTO,
					   "%s does not speak the kvxfer protocol: %s",
					   client->socket_path, strerror(-n));
		if (kvx_cl_poll_fd(client->sock, POLLIN, deadline_ns) == 0)
			return kvx_cl_fail(client, -ETIMEDOUT,
					   "the daemon at %s did not answer the hello within %d ms",
					   client->socket_path, client->timeout_ms);
	}
}

static int hello_refused(struct kvxfer_client *client, const struct kvx_msg *msg)
{
	Kvxp__Error *error = kvxp__error__unpack(NULL, msg->len_bytes, msg->body);
	int err;

	if (error == NULL)
		return kvx_cl_fail(client, -EPROTO, "the daemon refused the hello without a word");
	err = error->status != KVX_STATUS_OK ? kvx_status_to_errno(error->status) : -EPROTO;
	kvx_cl_fail(client, err, "the daemon refused the connection: %s",
		    error->text[0] != '\0' ? error->text : kvx_status_text(error->status));
	kvxp__error__free_unpacked(error, NULL);
	return err;
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static int hello_accept(struct kvxfer_client *client, struct kvx_msg *msg)
{
	Kvxp__HelloReply *reply = kvxp__hello_reply__unpack(NULL, msg->len_bytes, msg->body);
	int err = 0;

	if (reply == NULL)
		return kvx_cl_fail(client, -EPROTO, "the daemon's hello cannot be decoded");
	if (reply->version < KVX_CL_PROTO_MIN || reply->version > KVX_CL_PROTO_MAX) {
		err =
		    kvx_cl_fail(client, -EPROTONOSUPPORT,
				"the daemon (%.40s) speaks protocol version %u, this library (%s) "
				"%u to %u: update the older one",
				reply->daemon_version, reply->version, KVX_VERSION,
				KVX_CL_PROTO_MIN, KVX_CL_PROTO_MAX);
	} else if (msg->fds_lost) {
		err = kvx_cl_fail(client, -EMFILE,
				  "this process has no free file descriptor for the daemon's: "
				  "raise its limit (ulimit -n, RLIMIT_NOFILE)");
	} else if (reply->max_frame_bytes < MIN_FRAME_BYTES) {
		err = kvx_cl_fail(client, -EPROTO, "the daemon takes frames of %u bytes at most",
				  reply->max_frame_bytes);
	} else {
		client->max_frame_bytes = reply->max_frame_bytes;
		client->max_region_fds = min_u32(reply->max_region_fds, KVX_WIRE_MAX_FDS);
		client->limits = (struct kvxfer_limits){
		    .max_ops = reply->max_ops,
		    .max_blocks = reply->max_blocks,
		    .max_planes = reply->max_planes,
		    .max_payload_bytes = min_u32(reply->max_payload_bytes, KVXFER_PAYLOAD_MAX),
		    .max_transfers = reply->max_transfers,
		};
		client->max_waits = reply->max_waits;
		client->pidfd = kvx_msg_take_fd(msg, 0);
		kvx_reader_set_max(client->reader, KVX_CL_FRAME_MAX_BYTES);
	}
	kvxp__hello_reply__free_unpacked(reply, NULL);
	return err;
}

static int hello_exchange(struct kvxfer_client *client, uint64_t deadline_ns)
{
	struct kvx_msg msg;
	int err = hello_send(client);

	if (err < 0)
		return kvx_cl_fail(client, err, "out of memory");
	kvx_writer_flush(client->writer, client->sock);
	err = hello_receive(client, deadline_ns, &msg);
	if (err < 0)
		return err;
	if (msg.type == KVXP__FRAME_TYPE__FRAME_HELLO_REPLY)
		err = hello_accept(client, &msg);
	else if (msg.type == KVXP__FRAME_TYPE__FRAME_ERROR)
		err = hello_refused(client, &msg);
	else
		err = kvx_cl_fail(client, -EPROTO, "%s does not speak the kvxfer protocol",
				  client->socket_path);
	kvx_msg_fini(&msg);
	return err;
}

static int connect_steps(struct kvxfer_client *client, uint64_t deadline_ns)
{
	int err = sock_connect(client, deadline_ns);

	if (err < 0)
		return err;
	if (kvx_reader_create(KVX_CL_HELLO_MAX_BYTES, &client->reader) < 0 ||
	    kvx_writer_create(&client->writer) < 0)
		return kvx_cl_fail(client, -ENOMEM, "out of memory");
	err = hello_exchange(client, deadline_ns);
	if (err < 0)
		return err;
	return kvx_cl_watch(client, EPOLL_CTL_ADD, client->sock, EPOLLIN);
}

int kvx_cl_connect(struct kvxfer_client *client, uint64_t deadline_ns)
{
	int err;

	kvx_cl_close_conn(client);
	err = connect_steps(client, deadline_ns);
	if (err < 0) {
		kvx_cl_close_conn(client);
		return err;
	}
	client->state = KVX_CL_UP;
	client->lost_status = KVXFER_OK;
	client->lost_text[0] = '\0';
	kvx_cl_take_frames(client); /* what came together with the hello */
	return 0;
}

void kvx_cl_undo_connect(struct kvxfer_client *client)
{
	struct kvxfer_region *region;
	struct kvxfer_import *import_;

	kvx_cl_close_conn(client);
	kvx_cl_drop_requests(client);
	kvx_cl_drop_kept(client);
	client->state = KVX_CL_LOST;
	client->loss_unread = false;
	client->n_imports_lost = 0;
	snprintf(client->lost_text, sizeof(client->lost_text), "it could not be reconnected");
	DL_FOREACH (client->regions, region)
		region->id = 0;
	DL_FOREACH (client->imports, import_) {
		import_->id = 0;
		import_->lost_status = KVXFER_OK;
	}
}
