/* The thread that closes strangers' fds: everything is closed, nobody waits, not even for an fd
 * whose closing blocks. For that a socket that lingers stands in, while the closer's way to keep it
 * from lingering is taken away. */
#include "worker/closer.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
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

Test(closer, counts_what_waits)
{
	struct kvx_closer_tab *tab = kvx_closer_tab_create();
	struct kvx_closer *closer;
	struct linger_pair l;
	int pair[2];

	cr_assert_eq(kvx_closer_open(&closer), 0);
	cr_assert_eq(pipe2(pair, O_CLOEXEC), 0);
	test_linger_open(&l, 2);
	lingering_stays = true;
	kvx_closer_give_on(closer, tab, test_linger_take(&l));
	kvx_closer_give_on(closer, tab, pair[0]);
	kvx_closer_give(closer, pair[1]);
	cr_assert_eq(kvx_closer_tab_count(tab), 2, "it is busy with the first");
	for (unsigned i = 0; i < 1000 && kvx_closer_tab_count(tab) > 0; i++)
		usleep(10000);
	cr_assert_eq(kvx_closer_tab_count(tab), 0);
	kvx_closer_tab_unref(tab);
	kvx_closer_tab_unref(NULL);
	kvx_closer_close(closer);
	test_linger_close(&l);
	lingering_stays = false;
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
	kvx_closer_give_conn(closer, pair[0]);
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
