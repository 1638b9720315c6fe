/* File descriptors for tests: sent by hand, as whoever does not use the writer could, and a process
 * that has room for few. */
#ifndef KVX_TEST_FDS_H
#define KVX_TEST_FDS_H

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define TEST_SCM_MAX 253 /* the kernel's limit */

/* Sends bytes with fds in one sendmsg. */
static inline void test_send_fds(int socket, const void *bytes, size_t len, const int *fds,
				 unsigned n_fds)
{
	char control[CMSG_SPACE(TEST_SCM_MAX * sizeof(int))] = {0};
	struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};

	if (n_fds > 0) {
		struct cmsghdr *c;

		mh.msg_control = control;
		mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	}
	cr_assert_eq(sendmsg(socket, &mh, MSG_NOSIGNAL), (ssize_t)len);
}

/* From now on this process can open n more, if it closes none; what the limit was. */
static inline struct rlimit test_leave_fds(unsigned n)
{
	struct rlimit before, now;
	int lowest = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);

	cr_assert_geq(lowest, 0);
	close(lowest);
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
	now = before;
	now.rlim_cur = (rlim_t)lowest + n;
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &now), 0);
	return before;
}

#endif
