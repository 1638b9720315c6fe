/* See fake_daemon.h. */
#include "fake_daemon.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define check(what)                                                                                \
	do {                                                                                       \
		if (!(what)) {                                                                     \
			fprintf(stderr, "fake daemon: %s:%d: %s\n", __FILE__, __LINE__, #what);    \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

void fake_daemon_init(struct fake_daemon *d)
{
	memset(d, 0, sizeof(*d));
	d->conn = d->listen_fd = d->stop_fd = -1;
	kvxp__hello_reply__init(&d->hello);
	d->hello.version = 1;
	d->hello.daemon_version = (char *)(uintptr_t) "fake";
	d->hello.max_frame_bytes = 1 << 20;
	d->hello.max_ops = 32768;
	d->hello.max_blocks = 32768;
	d->hello.max_planes = 256;
	d->hello.max_payload_bytes = 4096;
	d->hello.max_transfers = 4096;
	d->hello.client_id = 1;
	d->import_bytes = 1 << 20;
}

void fake_send_bytes(struct fake_daemon *d, const void *bytes, size_t len)
{
	const uint8_t *at = bytes;

	while (len > 0) {
		ssize_t n = send(d->conn, at, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return; /* the client is gone: its frames show it */
		at += n;
		len -= (size_t)n;
	}
}

void fake_send(struct fake_daemon *d, uint16_t type, const ProtobufCMessage *message, int fd)
{
	size_t bytes = protobuf_c_message_get_packed_size(message);
	uint8_t *body = malloc(bytes + 1);
	struct kvx_writer *writer;

	check(body != NULL);
	check(kvx_writer_create(&writer) == 0);
	protobuf_c_message_pack(message, body);
	check(kvx_writer_put(writer, type, body, (uint32_t)bytes, &fd, fd > 0) == 0);
	while (kvx_writer_flush(writer, d->conn) == -EAGAIN) {
		struct pollfd pfd = {.fd = d->conn, .events = POLLOUT};

		poll(&pfd, 1, -1);
	}
	kvx_writer_destroy(writer);
	free(body);
}

void fake_reply(struct fake_daemon *d, uint32_t request_id, uint32_t status, const char *text,
		uint64_t id)
{
	Kvxp__Reply reply = KVXP__REPLY__INIT;

	reply.request_id = request_id;
	reply.status = status;
	reply.text = (char *)(uintptr_t)text;
	reply.id = id;
	fake_send(d, KVXP__FRAME_TYPE__FRAME_REPLY, &reply.base, -1);
}

void fake_error(struct fake_daemon *d, uint32_t status, const char *text)
{
	Kvxp__Error error = KVXP__ERROR__INIT;

	error.status = status;
	error.text = (char *)(uintptr_t)text;
	fake_send(d, KVXP__FRAME_TYPE__FRAME_ERROR, &error.base, -1);
}

void fake_terminal(struct fake_daemon *d, uint64_t xfer, uint32_t status)
{
	Kvxp__Event event = KVXP__EVENT__INIT;

	event.type = KVXP__EVENT_TYPE__EVENT_TERMINAL;
	event.xfer = xfer;
	event.status = status;
	event.bytes = status == 0 ? FAKE_BYTES_PER_TRANSFER : 0;
	event.transport = (char *)(uintptr_t) "copy";
	event.t_end_ns = 4;
	fake_send(d, KVXP__FRAME_TYPE__FRAME_EVENT, &event.base, -1);
}

void fake_event(struct fake_daemon *d, Kvxp__EventType type, uint64_t id, uint64_t tag,
		const char *payload)
{
	Kvxp__Event event = KVXP__EVENT__INIT;

	event.type = type;
	event.region = event.import = id;
	event.tag = tag;
	event.op = KVXP__OP__OP_WRITE;
	if (payload != NULL) {
		event.payload.data = (uint8_t *)(uintptr_t)payload;
		event.payload.len = strlen(payload);
	}
	fake_send(d, KVXP__FRAME_TYPE__FRAME_EVENT, &event.base, -1);
}

uint32_t fake_request_id(const struct fake_daemon *d)
{
	uint32_t id = 0;

	check(d->len_bytes > 1 && d->body[0] == 0x08); /* field 1, a varint, comes first */
	for (unsigned i = 1, shift = 0; i < d->len_bytes && shift < 32; i++, shift += 7) {
		id |= (uint32_t)(d->body[i] & 0x7f) << shift;
		if ((d->body[i] & 0x80) == 0)
			break;
	}
	return id;
}

static void answer_hello(struct fake_daemon *d)
{
	fake_send(d, KVXP__FRAME_TYPE__FRAME_HELLO_REPLY, &d->hello.base, d->pidfd);
}

static void answer_import(struct fake_daemon *d)
{
	Kvxp__Reply reply = KVXP__REPLY__INIT;

	reply.request_id = fake_request_id(d);
	reply.id = ++d->next_id;
	reply.len = d->import_bytes;
	reply.layout = (Kvxp__Layout *)(uintptr_t)d->import_layout;
	reply.transport = (char *)(uintptr_t) "copy";
	fake_send(d, KVXP__FRAME_TYPE__FRAME_REPLY, &reply.base, -1);
}

static void answer_export(struct fake_daemon *d)
{
	Kvxp__Reply reply = KVXP__REPLY__INIT;

	reply.request_id = fake_request_id(d);
	reply.data.data = (uint8_t *)(uintptr_t) "a descriptor";
	reply.data.len = strlen("a descriptor");
	fake_send(d, KVXP__FRAME_TYPE__FRAME_REPLY, &reply.base, -1);
}

static void answer_submit(struct fake_daemon *d)
{
	Kvxp__XferSubmit *submit = kvxp__xfer_submit__unpack(NULL, d->len_bytes, d->body);

	check(submit != NULL);
	if (!submit->streaming)
		fake_terminal(d, submit->xfer, 0);
	kvxp__xfer_submit__free_unpacked(submit, NULL);
}

void fake_answer_plainly(struct fake_daemon *d, uint16_t type)
{
	Kvxp__XferSeal *seal;

	switch (type) {
	case KVXP__FRAME_TYPE__FRAME_HELLO:
		answer_hello(d);
		break;
	case KVXP__FRAME_TYPE__FRAME_REGION_REGISTER:
		check(d->n_fds == 1 || d->fds_lost);
		fake_reply(d, fake_request_id(d), 0, "", ++d->next_id);
		break;
	case KVXP__FRAME_TYPE__FRAME_REGION_EXPORT:
		answer_export(d);
		break;
	case KVXP__FRAME_TYPE__FRAME_IMPORT:
	case KVXP__FRAME_TYPE__FRAME_IMPORT_FIND:
		answer_import(d);
		break;
	case KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT:
		answer_submit(d);
		break;
	case KVXP__FRAME_TYPE__FRAME_XFER_SEAL:
		seal = kvxp__xfer_seal__unpack(NULL, d->len_bytes, d->body);
		check(seal != NULL);
		fake_terminal(d, seal->xfer, 0);
		kvxp__xfer_seal__free_unpacked(seal, NULL);
		break;
	case KVXP__FRAME_TYPE__FRAME_XFER_APPEND:
	case KVXP__FRAME_TYPE__FRAME_XFER_CANCEL:
	case KVXP__FRAME_TYPE__FRAME_MESSAGE_POST:
	case KVXP__FRAME_TYPE__FRAME_GOODBYE:
		break;
	case KVXP__FRAME_TYPE__FRAME_QUERY:
		fake_reply(d, fake_request_id(d), 0, "{}", 0);
		break;
	default:
		fake_reply(d, fake_request_id(d), 0, "", 0);
		break;
	}
}

/* false: hang up. */
static bool handle_frame(struct fake_daemon *d, struct kvx_msg *msg)
{
	enum fake_answer answer = FAKE_DEFAULT;

	d->body = msg->body;
	d->len_bytes = msg->len_bytes;
	d->n_fds = msg->n_fds;
	d->fds_lost = msg->fds_lost;
	memcpy(d->fds, msg->fds, msg->n_fds * sizeof(d->fds[0]));
	check(msg->type < sizeof(d->n_frames) / sizeof(d->n_frames[0]));
	atomic_fetch_add(&d->n_frames[msg->type], 1);
	if (d->hook != NULL)
		answer = d->hook(d, msg->type);
	if (answer == FAKE_DEFAULT)
		fake_answer_plainly(d, msg->type);
	memcpy(msg->fds, d->fds, msg->n_fds * sizeof(d->fds[0]));
	return answer != FAKE_HANG_UP && msg->type != KVXP__FRAME_TYPE__FRAME_GOODBYE;
}

/* Waits for fd or for the stop; false: stop. */
static bool wait_for(struct fake_daemon *d, int fd)
{
	struct pollfd pfds[2] = {{.fd = fd, .events = POLLIN},
				 {.fd = d->stop_fd, .events = POLLIN}};

	while (poll(pfds, 2, -1) < 0)
		check(errno == EINTR);
	return pfds[1].revents == 0;
}

/* One connection to its end; false: stop. */
static bool serve(struct fake_daemon *d)
{
	struct kvx_msg msg;
	bool go_on = true, open = true;
	int n;

	check(kvx_reader_create(1 << 24, &d->reader) == 0);
	while (open && go_on) {
		go_on = wait_for(d, d->conn);
		if (!go_on)
			break;
		n = kvx_reader_fill(d->reader, d->conn);
		if (n == -EAGAIN)
			continue;
		if (n <= 0)
			break;
		while (open && (n = kvx_reader_next(d->reader, &msg)) > 0) {
			open = handle_frame(d, &msg);
			kvx_msg_fini(&msg);
		}
		check(n >= 0);
	}
	kvx_reader_destroy(d->reader);
	close(d->conn);
	d->conn = -1;
	return go_on;
}

static void *daemon_main(void *arg)
{
	struct fake_daemon *d = arg;

	while (wait_for(d, d->listen_fd)) {
		d->conn = accept4(d->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		check(d->conn >= 0);
		atomic_fetch_add(&d->n_connections, 1);
		if (!serve(d))
			break;
	}
	return NULL;
}

static void daemon_listen(struct fake_daemon *d)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	static _Atomic unsigned n_started;
	size_t len;

	snprintf(d->path, sizeof(d->path), "@kvxfer-test-%d-%u", (int)getpid(),
		 atomic_fetch_add(&n_started, 1));
	len = strlen(d->path);
	memcpy(address.sun_path, d->path, len);
	address.sun_path[0] = '\0';
	d->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	check(d->listen_fd >= 0);
	check(bind(d->listen_fd, (struct sockaddr *)&address,
		   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) == 0);
	check(listen(d->listen_fd, 8) == 0);
	d->stop_fd = eventfd(0, EFD_CLOEXEC);
	check(d->stop_fd >= 0);
}

void fake_daemon_start(struct fake_daemon *d)
{
	daemon_listen(d);
	check(pthread_create(&d->thread, NULL, daemon_main, d) == 0);
}

void fake_daemon_stop(struct fake_daemon *d)
{
	uint64_t one = 1;

	check(write(d->stop_fd, &one, sizeof(one)) == sizeof(one));
	check(pthread_join(d->thread, NULL) == 0);
	close(d->stop_fd);
	close(d->listen_fd);
}

int fake_daemon_fork(struct fake_daemon *d)
{
	int pid;

	daemon_listen(d);
	pid = fork();
	check(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		daemon_main(d);
		_exit(0);
	}
	close(d->stop_fd);
	close(d->listen_fd);
	return pid;
}

void fake_daemon_reap(int pid)
{
	check(kill(pid, SIGKILL) == 0);
	check(waitpid(pid, NULL, 0) == pid);
}

void fake_process_start(struct fake_process *p)
{
	p->pid = fork();
	check(p->pid >= 0);
	if (p->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* no orphan of a failed test */
		for (;;)
			pause();
	}
	p->pidfd = (int)syscall(SYS_pidfd_open, p->pid, 0);
	check(p->pidfd >= 0);
}

void fake_process_kill(struct fake_process *p)
{
	check(kill(p->pid, SIGKILL) == 0);
	check(waitpid(p->pid, NULL, 0) == p->pid);
	p->pid = 0;
}

void fake_process_fini(struct fake_process *p)
{
	if (p->pid > 0)
		fake_process_kill(p);
	close(p->pidfd);
}
