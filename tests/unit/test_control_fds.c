/* Descriptors whose close(2) blocks: whatever way a client hands them over and control gets rid of
 * them, nobody else waits. */
#include "control_rig.h"
#include "test_end.h"
#include "test_linger.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <time.h>

#include "base/clock.h"
#include "base/idmap.h"

#define LINGER_S 8

static struct rig rig;
static struct linger_pair lingering;

/* Every thread that closes stands still in front of its next one. */
static _Atomic bool closer_is_held;
/* Only one does: who comes first. */
static _Atomic bool first_is_held;
static _Atomic pid_t first;
/* Whose connections there are from now on, not to need a second user. 0: the true one's. */
static uid_t dial_as;

int __real_setsockopt(int fd, int level, int name, const void *value, socklen_t len);
int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t len);

int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	const struct timespec nap = {.tv_nsec = 1000000};

	pid_t nobody = 0;

	if (name == SO_LINGER && first_is_held)
		atomic_compare_exchange_strong(&first, &nobody, gettid());
	while (name == SO_LINGER && (closer_is_held || (first_is_held && first == gettid())))
		nanosleep(&nap, NULL);
	return __real_setsockopt(fd, level, name, value, len);
}

int __real_getsockopt(int fd, int level, int name, void *value, socklen_t *len);
int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *len);

int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	int rc = __real_getsockopt(fd, level, name, value, len);

	if (name == SO_PEERCRED && dial_as != 0)
		((struct ucred *)value)->uid = dial_as;
	return rc;
}

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

/* A registration that is refused, with n_fds duplicates of a descriptor. */
static void send_many(int socket, int fd, unsigned n_fds)
{
	Kvxp__RegionRegister req = KVXP__REGION_REGISTER__INIT;
	uint8_t body[64];

	req.request_id = 1;
	req.kind = 99;
	req.len = 4096;
	send_frame(socket, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, body,
		   (uint32_t)kvxp__region_register__pack(&req, body), fd, n_fds);
	rig_turn(&rig);
}

/* So many of one client wait, then it is ended, and they outlive it. */
Test(control_fds, thousands_that_wait_to_be_closed_end_their_client)
{
	struct rlimit files;
	char told[65536];
	int fd = open_all(), null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	size_t n_told = 0;
	ssize_t n;

	getrlimit(RLIMIT_NOFILE, &files);
	if (files.rlim_max < 3000)
		cr_skip_test("at most %lu open files", (unsigned long)files.rlim_max);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	closer_is_held = true;
	for (unsigned i = 0; i < 8; i++)
		send_many(fd, null, KVX_WIRE_MAX_FDS);
	cr_assert_eq(rig.control->stats.kicked, 0, "2,000 may wait");
	send_many(fd, null, 1);
	cr_assert_eq(rig.control->stats.kicked, 1);
	cr_assert_eq(kvx_control_clients(rig.control), 0, "its end waits for its descriptors");
	while ((n = recv(fd, told + n_told, sizeof(told) - n_told, MSG_DONTWAIT)) > 0)
		n_told += (size_t)n;
	cr_assert_not_null(memmem(told, n_told, "wait to be closed", 17));
	close(null);
	closer_is_held = false;
	expect_no_wait(fd); /* and finds them all closed */
}

static int come_as(uid_t uid)
{
	int fd;

	dial_as = uid;
	fd = dial();
	rig_turn(&rig);
	return fd;
}

static bool is_told(int fd, const char *what)
{
	char told[65536];
	ssize_t n = recv(fd, told, sizeof(told), MSG_DONTWAIT);

	return n > 0 && memmem(told, (size_t)n, what, strlen(what)) != NULL;
}

static unsigned regions_of(uid_t uid)
{
	const struct kvx_client *client;
	uint32_t cursor = 0;
	unsigned n = 0;

	while ((client = kvx_idmap_next(rig.control->clients, &cursor)) != NULL)
		n += client->uid == uid ? client->n_regions : 0;
	return n;
}

/* Whoever comes back again and again after having been cut off. */
Test(control_fds, of_a_user_are_bounded_and_hold_up_no_other_user)
{
	const struct kvx_closer_user bad = {.uid = 1001}, good = {.uid = 1002};
	struct rlimit files;
	int fd = open_all(), null = open("/dev/null", O_RDONLY | O_CLOEXEC), quiet, other, mem;

	getrlimit(RLIMIT_NOFILE, &files);
	if (files.rlim_max < 8000)
		cr_skip_test("at most %lu open files", (unsigned long)files.rlim_max);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	quiet = come_as(bad.uid);
	send_hello(quiet);
	rig_turn(&rig);
	cr_assert(is_told(quiet, "default"), "the tenant, in HELLO_REPLY");
	first_is_held = true;
	for (unsigned i = 0; i < 20; i++) {
		int again = come_as(bad.uid);

		if (rig.control->stats.refused_connects == 0) {
			send_hello(again);
			rig_turn(&rig);
			for (unsigned k = 0; k < 9 && kvx_control_clients(rig.control) == 3; k++)
				send_many(again, null, KVX_WIRE_MAX_FDS);
		} else {
			cr_assert(is_told(again, "of user 1001 sent wait to be closed"));
		}
		close(again);
		rig_turn(&rig);
	}
	cr_assert_geq(rig.control->stats.refused_connects, 17);
	cr_assert_leq(kvx_closer_user_count(rig.control->closer, &bad),
		      KVX_USER_CLOSING_MAX + 2 * KVX_WIRE_MAX_FDS);

	other = come_as(good.uid);
	send_hello(other);
	rig_turn(&rig);
	cr_assert(is_told(other, "default"));
	send_many(other, null, KVX_WIRE_MAX_FDS);
	for (unsigned i = 0; i < 500 && kvx_closer_user_count(rig.control->closer, &good) > 0; i++)
		usleep(10000);
	cr_assert_eq(kvx_closer_user_count(rig.control->closer, &good), 0);
	mem = memfd_create("m", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	cr_assert_eq(posix_fallocate(mem, 0, 4096), 0);
	fcntl(mem, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	send_register(other, KVX_MEM_HOST, mem);
	rig_turn(&rig);
	cr_assert_eq(regions_of(good.uid), 1);
	cr_assert_eq(kvx_control_clients(rig.control), 3, "nor was the quiet one cut off");

	first_is_held = false; /* and what hung goes on */
	for (unsigned i = 0; i < 500 && kvx_closer_user_count(rig.control->closer, &bad) > 0; i++)
		usleep(10000);
	close(other);
	other = come_as(bad.uid);
	send_hello(other);
	rig_turn(&rig);
	cr_assert(is_told(other, "default"));
	close(other);
	close(quiet);
	close(null);
	close(mem);
	expect_no_wait(fd);
}

/* The same, and it leaves by itself. */
Test(control_fds, that_wait_to_be_closed_hold_up_no_end)
{
	int fd = open_all(), null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	closer_is_held = true;
	for (unsigned i = 0; i < 2; i++)
		send_many(fd, null, KVX_WIRE_MAX_FDS);
	shutdown(fd, SHUT_WR);
	rig_turn(&rig);
	cr_assert_eq(kvx_control_clients(rig.control), 0);
	cr_assert_eq(rig.control->stats.kicked, 0);
	close(null);
	closer_is_held = false;
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
