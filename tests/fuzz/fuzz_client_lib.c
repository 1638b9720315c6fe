/* Fuzzes the client library with a hostile daemon: after a valid hello (or, when the first byte
 * says so, instead of it) the daemon sends the input, at each request that waits for a reply all up
 * to the next one, and hangs up. Whatever comes, every call returns, and each accepted transfer has
 * exactly one terminal event. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvxfer.pb-c.h"
#include "kvxfer/client.h"
#include "proto/kvx_wire.h"

#define N_TRANSFERS 3
#define QUIET_MS    5

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int listen_fd = -1;
static int dead_pidfd =
    -1; /* of a process that is gone: the loss of the daemon is proven at once */
static char path[64];
static const uint8_t *input;
static size_t input_bytes;
static sem_t served; /* the daemon is through with the input */

static void check(int ok)
{
	if (!ok)
		abort();
}

static void send_all(int fd, const uint8_t *bytes, size_t n)
{
	while (n > 0) {
		ssize_t sent = send(fd, bytes, n, MSG_NOSIGNAL);

		if (sent <= 0)
			return;
		bytes += sent;
		n -= (size_t)sent;
	}
}

static void send_hello(int fd)
{
	Kvxp__HelloReply hello = KVXP__HELLO_REPLY__INIT;
	struct kvx_writer *writer;
	uint8_t body[128];

	hello.version = 1;
	hello.max_frame_bytes = 1 << 20;
	hello.max_ops = hello.max_blocks = hello.max_planes = 16;
	hello.max_payload_bytes = 4096;
	check(kvx_writer_create(&writer) == 0);
	check(kvx_writer_put(writer, KVXP__FRAME_TYPE__FRAME_HELLO_REPLY, body,
			     (uint32_t)kvxp__hello_reply__pack(&hello, body), &dead_pidfd, 1) == 0);
	kvx_writer_flush(writer, fd);
	kvx_writer_destroy(writer);
}

/* The input, with an fd that its first frame announces: without one a loss would take the library's
 * grace time. */
static void send_input_with_fd(int fd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {{0}};
	uint8_t header[KVX_WIRE_HDR_BYTES];
	struct iovec iov = {.iov_base = header, .iov_len = sizeof(header)};
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control.bytes,
			    .msg_controllen = sizeof(control.bytes)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
	struct kvx_wire_hdr hdr;

	if (input_bytes < 1 + sizeof(header))
		return;
	kvx_wire_hdr_unpack(input + 1, &hdr);
	hdr.n_fds = 1;
	kvx_wire_hdr_pack(&hdr, header);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &dead_pidfd, sizeof(int));
	if (sendmsg(fd, &mh, MSG_NOSIGNAL) == (ssize_t)sizeof(header))
		send_all(fd, input + 1 + sizeof(header), input_bytes - 1 - sizeof(header));
}

/* How much of the input, from `at`, belongs to the next request: up to and with its next reply. */
static size_t next_part(size_t at)
{
	size_t end = at;

	while (input_bytes - end >= KVX_WIRE_HDR_BYTES) {
		struct kvx_wire_hdr hdr;

		kvx_wire_hdr_unpack(input + end, &hdr);
		end += KVX_WIRE_HDR_BYTES;
		if (hdr.len_bytes > input_bytes - end)
			break;
		end += hdr.len_bytes;
		if (hdr.type == KVXP__FRAME_TYPE__FRAME_REPLY)
			return end - at;
	}
	return input_bytes - at;
}

static bool wants_reply(uint16_t type)
{
	switch (type) {
	case KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT:
	case KVXP__FRAME_TYPE__FRAME_MESSAGE_POST:
	case KVXP__FRAME_TYPE__FRAME_GOODBYE:
		return false;
	default:
		return true;
	}
}

/* Sends the input bit by bit, as the client asks, and the rest when it asks nothing any more. */
static void serve_input(int fd)
{
	struct kvx_reader *reader;
	size_t at = input_bytes > 0 ? 1 : 0;
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	struct kvx_msg msg;

	check(kvx_reader_create(1 << 24, &reader) == 0);
	while (at < input_bytes && poll(&pfd, 1, QUIET_MS) == 1 &&
	       kvx_reader_fill(reader, fd) > 0) {
		while (kvx_reader_next(reader, &msg) > 0) {
			size_t n = wants_reply(msg.type) ? next_part(at) : 0;

			kvx_msg_fini(&msg);
			send_all(fd, input + at, n);
			at += n;
		}
	}
	kvx_reader_destroy(reader);
	send_all(fd, input + at, input_bytes - at);
}

/* The daemon: one connection per input. */
static void *daemon_main(void *arg)
{
	uint8_t scratch[4096];

	for (;;) {
		int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

		check(fd >= 0);
		check(recv(fd, scratch, sizeof(scratch), 0) > 0);
		if (input_bytes > 0 && (input[0] & 1) != 0) {
			send_input_with_fd(fd);
		} else {
			send_hello(fd);
			serve_input(fd);
		}
		shutdown(fd, SHUT_WR);
		while (recv(fd, scratch, sizeof(scratch), 0) > 0)
			;
		close(fd);
		sem_post(&served);
	}
	return NULL;
}

static void start_daemon(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	pthread_t thread;
	size_t len;
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	dead_pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	check(dead_pidfd >= 0);
	check(waitpid(pid, NULL, 0) == pid);
	snprintf(path, sizeof(path), "@kvxfer-fuzz-%d", (int)getpid());
	len = strlen(path);
	memcpy(address.sun_path, path, len);
	address.sun_path[0] = '\0';
	listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	check(bind(listen_fd, (struct sockaddr *)&address,
		   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) == 0);
	check(listen(listen_fd, 8) == 0);
	check(sem_init(&served, 0, 0) == 0);
	check(pthread_create(&thread, NULL, daemon_main, NULL) == 0);
}

struct told {
	unsigned n_terminals[N_TRANSFERS + 1];
	unsigned n_lost, n_up;
	struct kvxfer_import *found;
};

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct told *told = arg;

	check(event->text != NULL && event->transport != NULL);
	check(event->payload_bytes <= KVXFER_PAYLOAD_MAX);
	check(told->n_lost == 0);
	if (event->type == KVXFER_EVENT_TERMINAL) {
		check(event->transfer >= 1 && event->transfer <= N_TRANSFERS);
		check(event->tag == 1000 + event->transfer);
		check(told->n_terminals[event->transfer]++ == 0);
	}
	if (event->type == KVXFER_EVENT_IMPORT_UP) {
		check(event->import_ == told->found && event->status == KVXFER_OK);
		check(told->n_up++ == 0);
		kvxfer_message_post(event->import_, "p", 1);
	}
	check(event->type != KVXFER_EVENT_IMPORT_LOST || event->import_ != NULL);
	told->n_lost += event->type == KVXFER_EVENT_DAEMON_LOST;
}

/* Requests 1 and 2 are the registration and the import: an input that answers them gets further;
 * 5 is the find. */
static unsigned use_client(struct kvxfer_client *client, struct told *told)
{
	const uint64_t zero = 0;
	struct kvxfer_ops ops = {1, &zero, &zero, NULL, 8};
	struct kvxfer_region_options options = {.struct_bytes = sizeof(options), .access = 3};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t), .op = KVXFER_READ, .ops = &ops};
	uint8_t descriptor[KVXFER_DESCRIPTOR_MAX];
	struct kvxfer_plane plane;
	unsigned n = 0;
	char *json;

	if (kvxfer_region_alloc(client, 4096, &options, &t.region) != 0 ||
	    kvxfer_import_open(client, "d", 1, NULL, &t.import_) != 0)
		return 0;
	for (uint32_t i = 0; i < kvxfer_import_planes(t.import_); i++)
		check(kvxfer_import_plane(t.import_, i, &plane) == 0 && plane.name != NULL);
	for (; n < N_TRANSFERS; n++) {
		t.tag = 1001 + n;
		if (kvxfer_transfer_submit(client, &t, NULL) != 0)
			break;
	}
	kvxfer_region_export(t.region, descriptor, sizeof(descriptor));
	if (kvxfer_client_query(client, "status", NULL, &json) == 0)
		free(json);
	if (kvxfer_import_find(client, "10.0.0.1", "name", NULL, &told->found) == 0)
		check(kvxfer_import_bytes(told->found) == 0);
	kvxfer_client_dispatch(client, on_event, told);
	kvxfer_message_send(t.import_, "m", 1);
	kvxfer_import_close(t.import_);
	kvxfer_region_unregister(t.region);
	return n;
}

static void run_client(void)
{
	struct kvxfer_client_options options = {
	    .struct_bytes = sizeof(options), .socket_path = path, .timeout_ms = 1000};
	struct kvxfer_client *client;
	struct told told = {0};
	unsigned n;

	if (kvxfer_client_open(&options, &client) != 0) {
		check(kvxfer_open_error()[0] != '\0');
		return;
	}
	n = use_client(client, &told);
	while (kvxfer_client_wait(client, 5000, on_event, &told) > 0)
		;
	check(told.n_lost == 1);
	for (unsigned i = 1; i <= n; i++)
		check(told.n_terminals[i] == 1);
	kvxfer_client_close(client);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (listen_fd < 0)
		start_daemon();
	input = data;
	input_bytes = size;
	run_client();
	while (sem_wait(&served) != 0)
		;
	return 0;
}
