/* Descriptors whose close(2) blocks: whatever way a client hands them over and control gets rid of
 * them, nobody else waits. */
#include "control_rig.h"
#include "test_end.h"
#include "test_linger.h"

#include <errno.h>
#include <string.h>
#include <sys/un.h>

#include "base/clock.h"

#define LINGER_S 8

static struct rig rig;
static struct linger_pair lingering;

static int dial(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memcpy(addr.sun_path, rig.config.socket, strlen(rig.config.socket) + 1);
	cr_assert_geq(fd, 0);
	cr_assert_eq(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

/* A frame with n_fds duplicates of one descriptor. */
static void send_frame(int socket, uint16_t type, const void *body, uint32_t len, int fd,
		       unsigned n_fds)
{
	char control[CMSG_SPACE(253 * sizeof(int))] = {0};
	uint8_t head[KVX_WIRE_HDR_BYTES];
	struct kvx_wire_hdr hdr = {.len_bytes = len, .type = type, .n_fds = (uint16_t)n_fds};
	struct iovec iov[2] = {{head, sizeof(head)}, {(void *)(uintptr_t)body, len}};
	struct msghdr mh = {.msg_iov = iov, .msg_iovlen = 2};

	if (n_fds > KVX_WIRE_MAX_FDS)
		hdr.n_fds = KVX_WIRE_MAX_FDS;
	kvx_wire_hdr_pack(&hdr, head);
	if (n_fds > 0) {
		struct cmsghdr *c = (struct cmsghdr *)(void *)control;

		mh.msg_control = control;
		mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		for (unsigned i = 0; i < n_fds; i++)
			memcpy(CMSG_DATA(c) + i * sizeof(int), &fd, sizeof(int));
	}
	cr_assert_eq(sendmsg(socket, &mh, MSG_NOSIGNAL | MSG_DONTWAIT),
		     (ssize_t)(sizeof(head) + len));
}

static void send_hello(int socket)
{
	Kvxp__Hello hello = KVXP__HELLO__INIT;
	uint8_t body[64];

	hello.version_min = hello.version_max = 1;
	hello.name = (char *)(uintptr_t) "fds";
	send_frame(socket, KVXP__FRAME_TYPE__FRAME_HELLO, body,
		   (uint32_t)kvxp__hello__pack(&hello, body), -1, 0);
}

static void send_register(int socket, uint32_t kind, int fd)
{
	Kvxp__RegionRegister req = KVXP__REGION_REGISTER__INIT;
	uint8_t body[256];

	req.request_id = 1;
	req.name = (char *)(uintptr_t) "r";
	req.kind = kind;
	req.len = 4096;
	send_frame(socket, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, body,
		   (uint32_t)kvxp__region_register__pack(&req, body), fd, 1);
}

/* The descriptor is on its way to control, and nobody else has it. */
static void gone_to_control(void)
{
	close(test_linger_take(&lingering));
}

static int open_all(void)
{
	int fd;

	rig_open(&rig, NULL);
	test_linger_open(&lingering, LINGER_S);
	fd = dial();
	send_hello(fd);
	rig_turn(&rig);
	cr_assert_eq(kvx_control_clients(rig.control), 1);
	return fd;
}

/* Control turns without waiting for the descriptor, and others come and go. */
static void expect_no_wait(int fd)
{
	uint64_t start = kvx_now_ns();
	char buf[4096];
	int other;

	rig_turn(&rig);
	other = dial();
	send_hello(other);
	rig_turn(&rig);
	cr_assert_gt(recv(other, buf, sizeof(buf), MSG_DONTWAIT), 0);
	send_frame(other, KVXP__FRAME_TYPE__FRAME_GOODBYE, "", 0, -1, 0);
	rig_turn(&rig);
	cr_assert_eq(recv(other, buf, sizeof(buf), MSG_DONTWAIT), 0, "%s", strerror(errno));
	close(other);
	close(fd);
	rig_turn(&rig);
	cr_assert_lt(kvx_now_ns() - start, 5 * KVX_SEC, "it waited %lu ms",
		     (kvx_now_ns() - start) / KVX_MS);
	cr_assert_eq(kvx_control_clients(rig.control), 0);
	test_linger_close(&lingering); /* now it can be closed */
	rig_end(&rig);
	KVX_TEST_END();
}

Test(control_fds, memory_that_is_none)
{
	int fd = open_all();

	send_register(fd, KVX_MEM_HOST, lingering.fd);
	gone_to_control();
	expect_no_wait(fd);
}

Test(control_fds, memory_of_a_kind_that_is_unknown)
{
	int fd = open_all();

	send_register(fd, 99, lingering.fd);
	gone_to_control();
	expect_no_wait(fd);
}

Test(control_fds, with_a_frame_that_takes_none)
{
	int fd = open_all();

	send_frame(fd, KVXP__FRAME_TYPE__FRAME_GOODBYE, "", 0, lingering.fd, 2);
	gone_to_control();
	expect_no_wait(fd);
}

Test(control_fds, more_than_a_frame_may_carry)
{
	int fd = open_all();

	send_frame(fd, KVXP__FRAME_TYPE__FRAME_QUERY, "", 0, lingering.fd, 100);
	gone_to_control();
	expect_no_wait(fd);
}

/* Behind a frame that ends the connection, so that nobody reads it. */
Test(control_fds, in_a_frame_that_is_never_read)
{
	int fd = open_all();

	send_frame(fd, KVXP__FRAME_TYPE__FRAME_GOODBYE, "", 0, -1, 0);
	send_frame(fd, KVXP__FRAME_TYPE__FRAME_QUERY, "", 0, lingering.fd, 1);
	gone_to_control();
	expect_no_wait(fd);
}

/* The rest of it does not come. */
Test(control_fds, with_half_a_frame)
{
	static const uint8_t half[] = {100, 0, 0, 0, 20, 0, 1, 0};
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = {(void *)(uintptr_t)half, sizeof(half)};
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control,
			    .msg_controllen = sizeof(control)};
	struct cmsghdr *c = (struct cmsghdr *)(void *)control;
	int fd = open_all();

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &lingering.fd, sizeof(int));
	cr_assert_eq(sendmsg(fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT), (ssize_t)sizeof(half));
	gone_to_control();
	rig_turn(&rig);
	shutdown(fd, SHUT_WR); /* it leaves */
	expect_no_wait(fd);
}

/* On a connection that is refused before anything is read. */
Test(control_fds, on_a_connection_over_the_limit)
{
	struct kvx_config config;
	int fds[KVX_CLIENTS_OVER_LIMIT + 1];
	uint64_t start;
	int last;

	kvx_config_defaults(&config);
	config.clients = 1;
	rig_open(&rig, &config);
	test_linger_open(&lingering, LINGER_S);
	for (unsigned i = 0; i <= KVX_CLIENTS_OVER_LIMIT; i++)
		fds[i] = dial();
	rig_turn(&rig);
	last = dial();
	send_frame(last, KVXP__FRAME_TYPE__FRAME_QUERY, "", 0, lingering.fd, 1);
	gone_to_control();
	start = kvx_now_ns();
	rig_turn(&rig);
	cr_assert_lt(kvx_now_ns() - start, 5 * KVX_SEC);
	cr_assert_eq(rig.control->stats.refused_connects, 1);
	for (unsigned i = 0; i <= KVX_CLIENTS_OVER_LIMIT; i++)
		close(fds[i]);
	close(last);
	test_linger_close(&lingering);
	rig_turn(&rig);
	rig_end(&rig);
	KVX_TEST_END();
}
