/* A TCP socket whose close(2) blocks for some seconds: it lingers, and its other end does not read.
 */
#ifndef KVX_TEST_LINGER_H
#define KVX_TEST_LINGER_H

#include <criterion/criterion.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct linger_pair {
	int fd;    /* closing it blocks; -1: taken */
	int other; /* closing it ends that */
};

static inline void test_linger_open(struct linger_pair *l, int seconds)
{
	const struct linger linger = {.l_onoff = 1, .l_linger = seconds};
	struct sockaddr_in addr = {.sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(addr);
	char junk[65536] = {0};
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	l->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert_eq(bind(listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
	cr_assert_eq(listen(listener, 1), 0);
	cr_assert_eq(getsockname(listener, (struct sockaddr *)&addr, &len), 0);
	cr_assert_eq(connect(l->fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	l->other = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	cr_assert_geq(l->other, 0);
	close(listener);
	cr_assert_eq(setsockopt(l->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
	while (send(l->fd, junk, sizeof(junk), MSG_DONTWAIT) > 0)
		;
}

static inline int test_linger_take(struct linger_pair *l)
{
	int fd = l->fd;

	l->fd = -1;
	return fd;
}

static inline void test_linger_close(struct linger_pair *l)
{
	close(l->other);
	if (l->fd >= 0)
		close(l->fd);
}

#endif
