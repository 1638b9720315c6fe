/* The threads that close strangers' fds: everything is closed, nobody waits for another one, not
 * even for an fd whose closing blocks. For that a socket that lingers stands in, while the closer's
 * way to keep it from lingering is taken away. */
#include "worker/closer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "fault_alloc.h"
#include "test_end.h"
#include "test_linger.h"

int __real_setsockopt(int fd, int level, int name, const void *value, socklen_t len);
int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t len);
static bool lingering_stays;

int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	if (lingering_stays && level == SOL_SOCKET && name == SO_LINGER)
		return 0;
	return __real_setsockopt(fd, level, name, value, len);
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

Test(closer, closes_what_it_was_given_before_it_ends)
{
	struct kvx_closer *closer;
	int pairs[40][2];

	cr_assert_eq(kvx_closer_open(&closer), 0);
	for (unsigned i = 0; i < 40; i++) {
		cr_assert_eq(pipe2(pairs[i], O_CLOEXEC), 0);
		kvx_closer_give(closer, pairs[i][0]);
		kvx_closer_give(closer, pairs[i][1]);
	}
	kvx_closer_close(closer);
	kvx_closer_close(NULL);
	for (unsigned i = 0; i < 40; i++)
		cr_assert_not(is_open(pairs[i][0]) || is_open(pairs[i][1]));
	KVX_TEST_END();
}

static const struct kvx_closer_user ada = {.tenant = 0, .uid = 1001};
static const struct kvx_closer_user bob = {.tenant = 0, .uid = 1002};

static void wait_closed(const struct kvx_closer *closer, const struct kvx_closer_user *user)
{
	for (unsigned i = 0; i < 1000 && kvx_closer_user_count(closer, user) > 0; i++)
		usleep(10000);
	cr_assert_eq(kvx_closer_user_count(closer, user), 0);
}

Test(closer, counts_what_waits)
{
	struct kvx_closer_tab *tab, *other;
	struct kvx_closer *closer;
	struct linger_pair l;
	int pair[2];

	cr_assert_eq(kvx_closer_open(&closer), 0);
	tab = kvx_closer_tab_create(closer, &ada);
	other = kvx_closer_tab_create(closer, &ada);
	cr_assert_eq(pipe2(pair, O_CLOEXEC), 0);
	test_linger_open(&l, 2);
	lingering_stays = true;
	kvx_closer_give_on(closer, tab, test_linger_take(&l));
	kvx_closer_give_on(closer, tab, pair[0]);
	kvx_closer_give_on(closer, other, pair[1]);
	cr_assert_eq(kvx_closer_tab_count(tab), 2, "it is busy with the first");
	cr_assert_eq(kvx_closer_tab_count(other), 1);
	kvx_closer_tab_destroy(tab);
	kvx_closer_tab_destroy(other);
	kvx_closer_tab_destroy(NULL);
	cr_assert_eq(kvx_closer_user_count(closer, &ada), 3, "also of those who are gone");
	cr_assert_eq(kvx_closer_user_count(closer, &bob), 0);
	wait_closed(closer, &ada);
	kvx_closer_close(closer);
	test_linger_close(&l);
	lingering_stays = false;
	KVX_TEST_END();
}

/* Of the same uid in another tenant, too. */
Test(closer, a_user_does_not_wait_for_another_one)
{
	const struct kvx_closer_user elsewhere = {.tenant = 1, .uid = ada.uid};
	struct kvx_closer_tab *tabs[3];
	struct kvx_closer *closer;
	struct linger_pair l;
	int pair[2];

	cr_assert_eq(kvx_closer_open(&closer), 0);
	tabs[0] = kvx_closer_tab_create(closer, &ada);
	tabs[1] = kvx_closer_tab_create(closer, &bob);
	tabs[2] = kvx_closer_tab_create(closer, &elsewhere);
	cr_assert_eq(pipe2(pair, O_CLOEXEC), 0);
	test_linger_open(&l, 30);
	lingering_stays = true;
	kvx_closer_give_on(closer, tabs[0], test_linger_take(&l));
	kvx_closer_give_on(closer, tabs[1], pair[0]);
	kvx_closer_give_on(closer, tabs[2], pair[1]);
	wait_closed(closer, &bob);
	wait_closed(closer, &elsewhere);
	cr_assert_not(is_open(pair[0]) || is_open(pair[1]));
	cr_assert_eq(kvx_closer_user_count(closer, &ada), 1);
	test_linger_close(&l);
	wait_closed(closer, &ada);
	for (unsigned i = 0; i < 3; i++)
		kvx_closer_tab_destroy(tabs[i]);
	kvx_closer_close(closer);
	KVX_TEST_END();
}

static unsigned count_threads(void)
{
	DIR *dir = opendir("/proc/self/task");
	unsigned n = 0;

	cr_assert_not_null(dir);
	while (readdir(dir) != NULL)
		n++;
	closedir(dir);
	return n - 2; /* . and .. */
}

/* A thread that was joined is still listed for a moment. */
static void expect_threads(unsigned n, const char *why)
{
	const struct timespec moment = {.tv_nsec = 1000000};
	unsigned now = count_threads();

	for (unsigned i = 0; i < 2000 && now != n; i++) {
		nanosleep(&moment, NULL);
		now = count_threads();
	}
	cr_assert_eq(now, n, "%u, not %u threads: %s", now, n, why);
}

Test(closer, threads_are_for_those_who_are_there_and_bounded)
{
	struct kvx_closer_tab *tabs[KVX_CLOSER_LINES + 6];
	struct kvx_closer *closer;
	unsigned n_before;

	cr_assert_eq(kvx_closer_open(&closer), 0);
	n_before = count_threads() - 1; /* a sanitizer may have one of its own by now */
	for (unsigned i = 0; i < 500; i++) {
		const struct kvx_closer_user user = {.uid = 2000 + i};

		kvx_closer_tab_destroy(kvx_closer_tab_create(closer, &user));
	}
	expect_threads(n_before + 2, "one after the other they take the same");
	for (unsigned i = 0; i < KVX_CLOSER_LINES + 6; i++) {
		const struct kvx_closer_user user = {.uid = 3000 + i};
		int pair[2];

		tabs[i] = kvx_closer_tab_create(closer, &user);
		cr_assert_eq(pipe2(pair, O_CLOEXEC), 0);
		kvx_closer_give_on(closer, tabs[i], pair[0]);
		kvx_closer_give_on(closer, tabs[i], pair[1]);
		wait_closed(closer, &user);
		cr_assert_not(is_open(pair[0]) || is_open(pair[1]));
	}
	expect_threads(n_before + KVX_CLOSER_LINES, "that is the most");
	for (unsigned i = 0; i < KVX_CLOSER_LINES + 6; i++)
		kvx_closer_tab_destroy(tabs[i]);
	kvx_closer_close(closer);
	expect_threads(n_before, "closed");
	KVX_TEST_END();
}

/* Whoever connects and leaves while the closer is busy leaves nothing there, unless there are fds
 * in what nobody has read. */
Test(closer, a_connection_without_fds_is_closed_at_once)
{
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = {.iov_base = "x", .iov_len = 1};
	struct msghdr mh = {.msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control,
			    .msg_controllen = sizeof(control)};
	struct cmsghdr *c = (struct cmsghdr *)(void *)control;
	struct kvx_closer_tab *tab;
	struct kvx_closer *closer;
	struct linger_pair l;
	int plain[2], laden[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, plain), 0);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, laden), 0);
	for (unsigned i = 0; i < 20; i++)
		cr_assert_eq(write(plain[1], (char[4000]){0}, 4000), 4000);
	cr_assert_eq(write(laden[1], "unread", 6), 6);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &plain[1], sizeof(int));
	cr_assert_eq(sendmsg(laden[1], &mh, 0), 1);

	cr_assert_eq(kvx_closer_open(&closer), 0);
	tab = kvx_closer_tab_create(closer, &ada);
	test_linger_open(&l, 30);
	lingering_stays = true;
	kvx_closer_give_on(closer, tab, test_linger_take(&l));
	kvx_closer_give_conn(closer, tab, plain[0]);
	cr_assert_not(is_open(plain[0]));
	kvx_closer_give_conn(closer, tab, laden[0]);
	cr_assert(is_open(laden[0]));
	cr_assert_eq(kvx_closer_user_count(closer, &ada), 2);
	cr_assert_eq(read(plain[1], (char[8]){0}, 8), 0, "its end, and no reset");
	test_linger_close(&l);
	wait_closed(closer, &ada);
	cr_assert_not(is_open(laden[0]));
	cr_assert_eq(read(laden[1], (char[8]){0}, 8), 0);
	close(plain[1]);
	close(laden[1]);
	kvx_closer_tab_destroy(tab);
	kvx_closer_close(closer);
	KVX_TEST_END();
}

/* A stream that ends, not one that is reset, though something of it was not read. */
Test(closer, the_other_end_of_a_connection_sees_its_end_at_once)
{
	struct linger_pair l;
	struct kvx_closer *closer;
	int pair[2];
	char buf[8];

	test_linger_open(&l, 1);
	lingering_stays = true;
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	cr_assert_eq(write(pair[1], "unread", 6), 6);
	cr_assert_eq(write(pair[0], "bye", 3), 3);
	cr_assert_eq(kvx_closer_open(&closer), 0);
	kvx_closer_give(closer, test_linger_take(&l)); /* it is busy with that now */
	kvx_closer_give_conn(closer, NULL, pair[0]);
	cr_assert_eq(read(pair[1], buf, sizeof(buf)), 3);
	cr_assert_eq(read(pair[1], buf, sizeof(buf)), 0);
	test_linger_close(&l);
	kvx_closer_close(closer);
	cr_assert_eq(read(pair[1], buf, sizeof(buf)), 0);
	close(pair[1]);
	KVX_TEST_END();
}

Test(closer, a_socket_does_not_linger)
{
	struct linger_pair l;
	struct kvx_closer *closer;
	uint64_t start = kvx_now_ns();
	int pair[2];

	test_linger_open(&l, 3);
	cr_assert_eq(pipe2(pair, O_CLOEXEC), 0);
	cr_assert_eq(kvx_closer_open(&closer), 0);
	kvx_closer_give(closer, test_linger_take(&l));
	kvx_closer_give(closer, pair[0]);
	kvx_closer_give(closer, pair[1]);
	kvx_closer_close(closer);
	cr_assert_not(is_open(pair[0]) || is_open(pair[1]));
	cr_assert_lt(kvx_now_ns() - start, KVX_SEC);
	test_linger_close(&l);
	KVX_TEST_END();
}

Test(closer, an_fd_whose_closing_blocks_holds_neither_giver_nor_end)
{
	struct linger_pair l;
	struct kvx_closer *closer;
	uint64_t start = kvx_now_ns(), given;
	int pair[2];

	test_linger_open(&l, 3);
	lingering_stays = true;
	cr_assert_eq(pipe2(pair, O_CLOEXEC), 0);
	cr_assert_eq(kvx_closer_open(&closer), 0);
	kvx_closer_give(closer, test_linger_take(&l));
	kvx_closer_give(closer, pair[0]);
	kvx_closer_give(closer, pair[1]);
	given = kvx_now_ns() - start;
	kvx_closer_close(closer);
	cr_assert_lt(given, KVX_SEC / 2, "giving took %lu ms", given / 1000000);
	cr_assert_lt(kvx_now_ns() - start, 2 * KVX_SEC);
	cr_assert(is_open(pair[0])); /* it still waits for the first one */
	test_linger_close(&l);       /* which can go now */
	for (unsigned i = 0; i < 500 && is_open(pair[1]); i++)
		poll(NULL, 0, 10);
	cr_assert_not(is_open(pair[1]));
	poll(NULL, 0, 50); /* it frees itself */
	KVX_TEST_END();
}

Test(closer, nth_allocation)
{
	struct kvx_closer *closer;
	int err, n = 0;

	do {
		fault_alloc_arm((unsigned)++n);
		err = kvx_closer_open(&closer);
		fault_alloc_disarm();
	} while (err == -ENOMEM);
	cr_assert_eq(err, 0);
	cr_assert_gt(n, 2);
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	fault_alloc_arm(1);
	kvx_closer_give(closer, fd);
	cr_assert(fault_alloc_disarm());
	cr_assert_not(is_open(fd));
	kvx_closer_close(closer);
	KVX_TEST_END();
}
