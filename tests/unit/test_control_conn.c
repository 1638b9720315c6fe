/* Real sockets into the listener: framing, broken clients, limits, and that descriptors come back.
 */
#include "control_rig.h"
#include "test_end.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct rig rig;

static int dial(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memcpy(addr.sun_path, rig.config.socket, strlen(rig.config.socket) + 1);
	cr_assert_geq(fd, 0);
	cr_assert_eq(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	rig_turn(&rig);
	return fd;
}

static void send_bytes(int fd, const void *data, size_t len)
{
	cr_assert_eq(send(fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT), (ssize_t)len);
	rig_turn(&rig);
}

static void send_frame(int fd, uint16_t type, const void *body, uint32_t len)
{
	uint8_t frame[4096];
	struct kvx_wire_hdr hdr = {.len_bytes = len, .type = type};

	kvx_wire_hdr_pack(&hdr, frame);
	memcpy(frame + KVX_WIRE_HDR_BYTES, body, len);
	send_bytes(fd, frame, KVX_WIRE_HDR_BYTES + len);
}

static void send_hello(int fd)
{
	Kvxp__Hello hello = KVXP__HELLO__INIT;
	uint8_t body[64];

	hello.version_min = hello.version_max = 1;
	hello.name = (char *)(uintptr_t) "dial";
	send_frame(fd, KVXP__FRAME_TYPE__FRAME_HELLO, body,
		   (uint32_t)kvxp__hello__pack(&hello, body));
}

/* Reads one frame; *out_type 0: end of the stream. */
static uint32_t read_frame(int fd, uint8_t *body, uint16_t *out_type)
{
	uint8_t head[KVX_WIRE_HDR_BYTES];
	struct kvx_wire_hdr hdr;
	ssize_t n = recv(fd, head, sizeof(head), MSG_DONTWAIT);

	*out_type = 0;
	if (n == 0)
		return 0;
	cr_assert_eq(n, (ssize_t)sizeof(head), "no frame: %s", strerror(errno));
	kvx_wire_hdr_unpack(head, &hdr);
	cr_assert_leq(hdr.len_bytes, 4096);
	cr_assert_eq(recv(fd, body, hdr.len_bytes, MSG_DONTWAIT), (ssize_t)hdr.len_bytes);
	*out_type = hdr.type;
	return hdr.len_bytes;
}

/* The stream holds exactly this error and its end. */
static void expect_error(int fd, enum kvx_status status, const char *text)
{
	uint8_t body[4096];
	uint16_t type;
	uint32_t len = read_frame(fd, body, &type);
	Kvxp__Error *error;

	cr_assert_eq(type, KVXP__FRAME_TYPE__FRAME_ERROR, "type %u", type);
	error = kvxp__error__unpack(NULL, len, body);
	cr_assert_eq(error->status, status, "%s", error->text);
	cr_assert(strstr(error->text, text) != NULL, "'%s' not in '%s'", text, error->text);
	kvxp__error__free_unpacked(error, NULL);
	read_frame(fd, body, &type);
	cr_assert_eq(type, 0, "the stream goes on");
	close(fd);
}

static int dial_hello(void)
{
	uint8_t body[4096];
	uint16_t type;
	int fd = dial();

	send_hello(fd);
	read_frame(fd, body, &type); /* the descriptor that came with it is dropped */
	cr_assert_eq(type, KVXP__FRAME_TYPE__FRAME_HELLO_REPLY);
	return fd;
}

static void nothing_left(void)
{
	rig_turn(&rig);
	cr_assert_eq(kvx_control_clients(rig.control), 0);
	rig_end(&rig);
}

Test(conn, hello_in_single_bytes_is_understood)
{
	Kvxp__Hello hello = KVXP__HELLO__INIT;
	uint8_t frame[64], body[4096];
	struct kvx_wire_hdr hdr = {.type = KVXP__FRAME_TYPE__FRAME_HELLO};
	uint16_t type;
	int fd;

	rig_open(&rig, NULL);
	hello.version_min = hello.version_max = 1;
	hdr.len_bytes = (uint32_t)kvxp__hello__pack(&hello, frame + KVX_WIRE_HDR_BYTES);
	kvx_wire_hdr_pack(&hdr, frame);
	fd = dial();
	for (uint32_t i = 0; i < KVX_WIRE_HDR_BYTES + hdr.len_bytes; i++)
		send_bytes(fd, frame + i, 1);
	read_frame(fd, body, &type);
	cr_assert_eq(type, KVXP__FRAME_TYPE__FRAME_HELLO_REPLY);
	close(fd);
	nothing_left();
	KVX_TEST_END();
}

Test(conn, oversized_first_frame_is_refused_before_it_is_read)
{
	uint8_t head[KVX_WIRE_HDR_BYTES];
	struct kvx_wire_hdr hdr = {.type = KVXP__FRAME_TYPE__FRAME_HELLO, .len_bytes = 1 << 30};
	int fd;

	rig_open(&rig, NULL);
	fd = dial();
	kvx_wire_hdr_pack(&hdr, head);
	send_bytes(fd, head, sizeof(head));
	expect_error(fd, KVX_STATUS_TOO_BIG, "more than 4096 bytes");
	nothing_left();
	KVX_TEST_END();
}

Test(conn, oversized_frame_names_the_limit)
{
	uint8_t head[KVX_WIRE_HDR_BYTES];
	struct kvx_wire_hdr hdr = {.type = KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT};
	int fd;

	rig_open(&rig, NULL);
	fd = dial_hello();
	hdr.len_bytes = rig.config.frame_bytes + 1;
	kvx_wire_hdr_pack(&hdr, head);
	send_bytes(fd, head, sizeof(head));
	expect_error(fd, KVX_STATUS_TOO_BIG, "[limits] frame_bytes");
	nothing_left();
	KVX_TEST_END();
}

Test(conn, announced_descriptor_that_does_not_come_ends_it)
{
	uint8_t head[KVX_WIRE_HDR_BYTES];
	struct kvx_wire_hdr hdr = {.type = KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, .n_fds = 1};
	int fd;

	rig_open(&rig, NULL);
	fd = dial_hello();
	kvx_wire_hdr_pack(&hdr, head);
	send_bytes(fd, head, sizeof(head));
	expect_error(fd, KVX_STATUS_PROTOCOL, "descriptors");
	nothing_left();
	KVX_TEST_END();
}

Test(conn, frames_before_the_error_are_answered_and_those_after_it_are_not)
{
	Kvxp__Query query = KVXP__QUERY__INIT;
	uint8_t frames[256], body[4096];
	struct kvx_wire_hdr hdr = {.type = KVXP__FRAME_TYPE__FRAME_QUERY};
	size_t len = 0;
	uint16_t type;
	int fd;

	rig_open(&rig, NULL);
	fd = dial_hello();
	query.verb = (char *)(uintptr_t) "sing";
	for (int i = 0; i < 3; i++) {
		hdr.type = i == 1 ? 99 : KVXP__FRAME_TYPE__FRAME_QUERY;
		hdr.len_bytes =
		    (uint32_t)kvxp__query__pack(&query, frames + len + KVX_WIRE_HDR_BYTES);
		kvx_wire_hdr_pack(&hdr, frames + len);
		len += KVX_WIRE_HDR_BYTES + hdr.len_bytes;
	}
	send_bytes(fd, frames, len);
	read_frame(fd, body, &type);
	cr_assert_eq(type, KVXP__FRAME_TYPE__FRAME_REPLY);
	expect_error(fd, KVX_STATUS_UNSUPPORTED, "99");
	nothing_left();
	KVX_TEST_END();
}

Test(conn, one_that_vanishes_half_way_through_a_frame_leaves_nothing)
{
	int fd;

	rig_open(&rig, NULL);
	fd = dial_hello();
	send_bytes(fd, "\x40\0\0\0\x14\0\0\0abc", 11);
	close(fd);
	nothing_left();
	KVX_TEST_END();
}

Test(conn, goodbye_is_followed_by_the_end_of_the_stream)
{
	uint8_t body[4096];
	uint16_t type;
	int fd;

	rig_open(&rig, NULL);
	fd = dial_hello();
	send_frame(fd, KVXP__FRAME_TYPE__FRAME_GOODBYE, "", 0);
	read_frame(fd, body, &type);
	cr_assert_eq(type, 0);
	close(fd);
	nothing_left();
	KVX_TEST_END();
}

Test(conn, far_over_the_client_limit_everybody_is_told_so)
{
	struct kvx_config config;
	int fds[KVX_CLIENTS_OVER_LIMIT + 3];
	int first;

	kvx_config_defaults(&config);
	config.clients = 1;
	rig_open(&rig, &config);
	first = dial_hello();
	for (unsigned i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		fds[i] = dial();
	for (unsigned i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
		if (i < KVX_CLIENTS_OVER_LIMIT)
			send_hello(fds[i]);
		expect_error(fds[i], KVX_STATUS_QUOTA, "client limit 1 reached");
	}
	close(first);
	nothing_left();
	KVX_TEST_END();
}

Test(conn, without_descriptors_a_client_is_told_and_the_listener_recovers)
{
	struct rlimit limit, low;
	int fd, last;

	rig_open(&rig, NULL);
	getrlimit(RLIMIT_NOFILE, &limit);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	last = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	low = (struct rlimit){(rlim_t)last, limit.rlim_max}; /* fd fits, nothing after it */
	close(last);
	{
		struct sockaddr_un addr = {.sun_family = AF_UNIX};

		memcpy(addr.sun_path, rig.config.socket, strlen(rig.config.socket) + 1);
		cr_assert_eq(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	}
	setrlimit(RLIMIT_NOFILE, &low);
	rig_turn(&rig);
	setrlimit(RLIMIT_NOFILE, &limit);
	expect_error(fd, KVX_STATUS_QUOTA, "LimitNOFILE");
	cr_assert_eq(rig.control->stats.refused_connects, 1);
	rig.clock_ns += KVX_SEC; /* the pause is over */
	rig_turn(&rig);
	close(dial_hello());
	nothing_left();
	KVX_TEST_END();
}

Test(conn, one_that_does_not_read_is_disconnected)
{
	struct kvx_config config;
	Kvxp__Query query = KVXP__QUERY__INIT;
	uint8_t body[64];
	uint32_t len;
	int fd;

	kvx_config_defaults(&config);
	config.events_bytes = 64 * 1024;
	rig_open(&rig, &config);
	fd = dial_hello();
	query.verb = (char *)(uintptr_t) "status";
	len = (uint32_t)kvxp__query__pack(&query, body);
	for (int i = 0; i < 2000 && rig.control->stats.slow_readers == 0; i++)
		send_frame(fd, KVXP__FRAME_TYPE__FRAME_QUERY, body, len);
	cr_assert_eq(rig.control->stats.slow_readers, 1);
	cr_assert_eq(kvx_control_clients(rig.control), 1, "it may still take what is there");
	rig.clock_ns += 2 * KVX_SEC; /* but not for long */
	rig_turn(&rig);
	cr_assert_eq(kvx_control_clients(rig.control), 0);
	close(fd);
	nothing_left();
	KVX_TEST_END();
}

Test(conn, closing_control_tells_clients_and_removes_the_socket)
{
	uint8_t body[4096];
	uint16_t type;
	int fd;

	rig_open(&rig, NULL);
	fd = dial_hello();
	rig_end(&rig);
	read_frame(fd, body, &type);
	cr_assert_eq(type, KVXP__FRAME_TYPE__FRAME_ERROR);
	close(fd);
	KVX_TEST_END();
}
