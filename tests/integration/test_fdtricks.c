/* File descriptors that are not what they should be: each is refused by name, nothing leaks, nobody
 * else notices. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pair.h"
#include "test_raw.h"

#define LEN   (64u << 10)
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static int memfd(unsigned seals, off_t len, bool fill)
{
	int fd = memfd_create("trick", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, len), 0);
	if (fill)
		cr_assert_eq(posix_fallocate(fd, 0, len), 0);
	if (seals != 0)
		cr_assert_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static uint32_t offer(struct test_raw *raw, int fd, uint64_t offset, uint64_t len, char *text,
		      size_t text_bytes)
{
	Kvxp__RegionRegister reg = KVXP__REGION_REGISTER__INIT;

	reg.request_id = 1;
	reg.kind = 1;
	reg.fd_offset = offset;
	reg.len = len;
	test_raw_send(raw, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, &reg.base, &fd,
		      fd >= 0 ? 1 : 0);
	if (fd >= 0)
		close(fd);
	return test_raw_reply(raw, text, text_bytes);
}

Test(fdtricks, every_wrong_fd_is_refused_by_name)
{
	struct test_node node;
	struct test_node_base before, after;
	struct test_raw raw;
	char text[256];
	int fds[2];

	test_node_start(&node, NULL);
	test_node_measure(&node, &before);
	test_raw_open(&raw, &node);
#define REFUSED(fd, offset, len, word)                                                             \
	do {                                                                                       \
		uint32_t status_ = offer(&raw, fd, offset, len, text, sizeof(text));               \
		cr_expect_neq(status_, KVXFER_OK, "%s taken", #fd);                                \
		cr_expect_neq(strstr(text, word), NULL, "%s: \"%s\" lacks \"%s\"", #fd, text,      \
			      word);                                                               \
	} while (0)
	REFUSED(memfd(0, LEN, true), 0, LEN, "seal");
	REFUSED(memfd(F_SEAL_SHRINK, LEN, true), 0, LEN, "seal");
	REFUSED(memfd(F_SEAL_SHRINK | F_SEAL_GROW, LEN, true), 0, LEN, "seal");
	REFUSED(memfd(SEALS | F_SEAL_WRITE, LEN, true), 0, LEN, "F_SEAL_WRITE");
	REFUSED(memfd(SEALS, 4096, true), 0, LEN, "");
	REFUSED(memfd(SEALS, LEN, true), 4096, LEN, "");
	REFUSED(memfd(SEALS, LEN, true), UINT64_MAX - 4095, 8192, "");
	REFUSED(memfd(SEALS, LEN, true), 0, 1ull << 63, "");
	REFUSED(memfd(SEALS, LEN, true), 100, 4096, "multiple");
	REFUSED(memfd(SEALS, LEN, true), 0, 0, "");
	REFUSED(memfd(SEALS, 1ll << 40, false), 0, 1ull << 36, "");
	REFUSED(eventfd(0, EFD_CLOEXEC), 0, LEN, "memfd");
	REFUSED(open("/dev/zero", O_RDWR | O_CLOEXEC), 0, LEN, "memfd");
	REFUSED(open("/dev/null", O_RDWR | O_CLOEXEC), 0, LEN, "memfd");
	REFUSED(open("/proc/self/exe", O_RDONLY | O_CLOEXEC), 0, 4096, "memfd");
	REFUSED(open(node.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), 0, 4096, "memfd");
	cr_assert_eq(pipe2(fds, O_CLOEXEC), 0);
	REFUSED(fds[0], 0, LEN, "memfd");
	REFUSED(fds[1], 0, LEN, "memfd");
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	REFUSED(fds[0], 0, LEN, "memfd");
	close(fds[1]);
	REFUSED(-1, 0, LEN, "file descriptor");
	cr_expect_eq(offer(&raw, memfd(SEALS, LEN, true), 0, LEN, text, sizeof(text)), KVXFER_OK,
		     "%s", text);
	test_raw_close(&raw);
	test_node_measure_after(&node, &before, &after);
	cr_assert_eq(after.regions, 0);
	cr_assert_eq(after.fds, before.fds, "fds: %ld before, %ld after", before.fds, after.fds);
	test_node_fini(&node);
}

Test(fdtricks, read_only_memfd_is_refused)
{
	struct test_node node;
	struct test_raw raw;
	char path[64], text[256];
	int rw, ro;

	test_node_start(&node, NULL);
	test_raw_open(&raw, &node);
	rw = memfd(SEALS, LEN, true);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", rw);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	cr_assert_geq(ro, 0);
	close(rw);
	cr_assert_neq(offer(&raw, ro, 0, LEN, text, sizeof(text)), KVXFER_OK);
	test_raw_close(&raw);
	test_node_fini(&node);
}

Test(fdtricks, too_many_fds_close_the_connection_and_leak_nothing)
{
	struct test_node node;
	struct test_node_base before, after;
	struct test_raw raw;
	struct kvx_wire_hdr hdr = {
	    .len_bytes = 0, .type = KVXP__FRAME_TYPE__FRAME_REGION_REGISTER, .n_fds = 1};
	union {
		char buf[CMSG_SPACE(200 * sizeof(int))];
		struct cmsghdr align;
	} control;
	int fds[200];

	test_node_start(&node, NULL);
	test_node_measure(&node, &before);
	for (int i = 0; i < 200; i++)
		fds[i] = STDERR_FILENO;
	for (int round = 0; round < 20; round++) {
		uint8_t bytes[KVX_WIRE_HDR_BYTES];
		struct iovec iov = {bytes, sizeof(bytes)};
		struct msghdr msg = {.msg_iov = &iov,
				     .msg_iovlen = 1,
				     .msg_control = &control,
				     .msg_controllen = sizeof(control)};
		struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

		test_raw_open(&raw, &node);
		kvx_wire_hdr_pack(&hdr, bytes);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(fds));
		memcpy(CMSG_DATA(cmsg), fds, sizeof(fds));
		cr_assert_eq(sendmsg(raw.fd, &msg, MSG_NOSIGNAL), (ssize_t)sizeof(bytes));
		cr_assert(test_raw_closed(&raw, 5000));
		test_raw_close(&raw);
	}
	test_node_measure_after(&node, &before, &after);
	cr_assert_eq(after.fds, before.fds);
	test_node_fini(&node);
}

/* The client punches a hole into registered memory while transfers run: only its own bytes suffer.
 */
Test(fdtricks, punched_hole_kills_nobody)
{
	static struct pair p;
	uint32_t ids[64];
	struct kvxfer_blocks blocks = {
	    .n_planes = 2, .n_blocks = 64, .local_blocks = ids, .remote_blocks = ids};
	struct kvxfer_transfer t;

	pair_open(&p, false, NULL, 2, 64, 65536);
	for (uint32_t i = 0; i < 64; i++)
		ids[i] = i;
	for (int round = 0; round < 20; round++) {
		uint64_t id = 0;

		t = pair_write(&p);
		t.blocks = &blocks;
		cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
		cr_assert_eq(madvise(p.prefill.data, p.prefill.bytes, MADV_REMOVE), 0, "%s",
			     strerror(errno));
		test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, 10000);
	}
	cr_assert_eq(test_node_number(&p.node[0], "status", "clients"), 3);
	pair_close(&p);
}

/* A client cannot shrink what it registered: the seals that registration demands forbid it. */
Test(fdtricks, truncation_fails_at_the_client)
{
	int fd = memfd(SEALS, LEN, true);

	cr_assert_eq(ftruncate(fd, 4096), -1);
	cr_assert_eq(errno, EPERM);
	close(fd);
}

/* The library makes the pages of the part that is registered, and of no other. */
Test(fdtricks, part_of_a_sparse_memfd_is_taken)
{
	struct test_node node;
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	int fd = memfd(0, 1ll << 30, false);
	struct stat st;

	test_node_start(&node, NULL);
	client = test_node_client(&node, "sparse");
	cr_assert_eq(kvxfer_region_register(client, fd, LEN, LEN, NULL, &region), 0, "%s",
		     kvxfer_client_error(client));
	cr_assert_eq(fstat(fd, &st), 0);
	cr_assert_eq(st.st_blocks * 512, LEN, "%lld bytes made", (long long)st.st_blocks * 512);
	cr_assert_eq(kvxfer_region_unregister(region), 0);
	kvxfer_client_close(client);
	close(fd);
	test_node_fini(&node);
}
