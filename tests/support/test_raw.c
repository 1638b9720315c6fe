/* Frames by hand for integration tests. */
#include "test_raw.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define RAW_BODY_MAX (1u << 20)
#define RAW_WAIT_MS  5000

void test_raw_connect(struct test_raw *raw, const struct test_node *node)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", node->socket);
	raw->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert_geq(raw->fd, 0);
	cr_assert_eq(connect(raw->fd, (struct sockaddr *)&addr, sizeof(addr)), 0, "%s",
		     strerror(errno));
	cr_assert_eq(kvx_reader_create(RAW_BODY_MAX, &raw->reader), 0);
}

void test_raw_open(struct test_raw *raw, const struct test_node *node)
{
	Kvxp__Hello hello = KVXP__HELLO__INIT;
	char name[] = "raw";
	uint8_t body[4096];
	size_t len;

	test_raw_connect(raw, node);
	hello.version_min = 1;
	hello.version_max = 1;
	hello.name = name;
	test_raw_send(raw, KVXP__FRAME_TYPE__FRAME_HELLO, &hello.base, NULL, 0);
	cr_assert_eq(test_raw_recv(raw, RAW_WAIT_MS, body, sizeof(body), &len),
		     KVXP__FRAME_TYPE__FRAME_HELLO_REPLY);
}

void test_raw_close(struct test_raw *raw)
{
	close(raw->fd);
	kvx_reader_destroy(raw->reader);
	raw->fd = -1;
}

void test_raw_send_bytes(struct test_raw *raw, const void *bytes, size_t len)
{
	cr_assert_eq(send(raw->fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len, "%s", strerror(errno));
}

void test_raw_send(struct test_raw *raw, uint16_t type, const ProtobufCMessage *message,
		   const int *fds, unsigned n_fds)
{
	uint8_t body[16384];
	size_t len = message != NULL ? protobuf_c_message_get_packed_size(message) : 0;
	struct kvx_writer *writer;

	cr_assert_leq(len, sizeof(body));
	if (message != NULL)
		protobuf_c_message_pack(message, body);
	cr_assert_eq(kvx_writer_create(&writer), 0);
	cr_assert_eq(kvx_writer_put(writer, type, body, (uint32_t)len, fds, n_fds), 0);
	cr_assert_eq(kvx_writer_flush(writer, raw->fd), 0);
	kvx_writer_destroy(writer);
}

int test_raw_recv(struct test_raw *raw, int timeout_ms, void *buf, size_t buf_bytes,
		  size_t *out_len)
{
	for (;;) {
		struct pollfd pfd = {.fd = raw->fd, .events = POLLIN};
		struct kvx_msg msg;
		int rc = kvx_reader_next(raw->reader, &msg);

		cr_assert_geq(rc, 0);
		if (rc == 1) {
			int type = msg.type;

			cr_assert_leq(msg.len_bytes, buf_bytes);
			memcpy(buf, msg.body, msg.len_bytes);
			*out_len = msg.len_bytes;
			kvx_msg_fini(&msg);
			return type;
		}
		if (poll(&pfd, 1, timeout_ms) == 0)
			return -1;
		rc = kvx_reader_fill(raw->reader, raw->fd);
		if (rc == 0 || rc == -ECONNRESET || rc == -EPIPE)
			return 0;
		cr_assert(rc > 0 || rc == -EAGAIN, "recvmsg: %s", strerror(-rc));
	}
}

uint32_t test_raw_reply(struct test_raw *raw, char *text, size_t text_bytes)
{
	static uint8_t body[RAW_BODY_MAX];
	size_t len;
	int type;

	while ((type = test_raw_recv(raw, RAW_WAIT_MS, body, sizeof(body), &len)) ==
	       KVXP__FRAME_TYPE__FRAME_EVENT)
		;
	cr_assert_eq(type, KVXP__FRAME_TYPE__FRAME_REPLY, "frame type %d", type);
	Kvxp__Reply *reply = kvxp__reply__unpack(NULL, len, body);
	cr_assert_neq(reply, NULL);
	uint32_t status = reply->status;
	snprintf(text, text_bytes, "%s", reply->text);
	kvxp__reply__free_unpacked(reply, NULL);
	return status;
}

uint32_t test_raw_error(struct test_raw *raw, char *text, size_t text_bytes)
{
	uint8_t body[8192];
	size_t len;
	int type;

	while ((type = test_raw_recv(raw, RAW_WAIT_MS, body, sizeof(body), &len)) ==
		   KVXP__FRAME_TYPE__FRAME_EVENT ||
	       type == KVXP__FRAME_TYPE__FRAME_REPLY)
		;
	cr_assert_eq(type, KVXP__FRAME_TYPE__FRAME_ERROR, "frame type %d", type);
	Kvxp__Error *error = kvxp__error__unpack(NULL, len, body);
	cr_assert_neq(error, NULL);
	uint32_t status = error->status;
	snprintf(text, text_bytes, "%s", error->text);
	kvxp__error__free_unpacked(error, NULL);
	cr_assert(test_raw_closed(raw, RAW_WAIT_MS), "the connection stays open after an error");
	return status;
}

bool test_raw_closed(struct test_raw *raw, int timeout_ms)
{
	static uint8_t body[RAW_BODY_MAX];
	size_t len;
	int type;

	while ((type = test_raw_recv(raw, timeout_ms, body, sizeof(body), &len)) > 0)
		;
	return type == 0;
}
