/* Round trips between two processes that block: what a message to the daemon and its answer cannot
 * be faster than. */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "limit.h"

#define MESSAGE_BYTES 64u

struct echo {
	int in, out;
	size_t bytes;
};

static int echo_main(void *arg)
{
	struct echo *echo = arg;
	char message[MESSAGE_BYTES];

	for (;;) {
		ssize_t n = read(echo->in, message, echo->bytes);

		if (n <= 0 || write(echo->out, message, (size_t)n) != n)
			return 0;
		/* The last word over an eventfd, which has no end of file. */
		uint64_t value;

		memcpy(&value, message, sizeof(value));
		if (value == UINT32_MAX)
			return 0;
	}
}

int kvx_ping_start(struct kvx_ping *ping, enum kvx_ping_kind kind)
{
	struct echo echo = {.bytes = kind == KVX_PING_UNIX ? MESSAGE_BYTES : 8};
	int pair[2];

	ping->kind = kind;
	if (kind == KVX_PING_UNIX) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
			return -errno;
		ping->fds[0] = ping->fds[1] = pair[0];
		echo.in = echo.out = pair[1];
	} else {
		ping->fds[0] = echo.in = eventfd(0, EFD_CLOEXEC);
		ping->fds[1] = echo.out = eventfd(0, EFD_CLOEXEC);
		if (echo.in < 0 || echo.out < 0)
			return -errno;
	}
	ping->child = kvx_engine_fork(echo_main, &echo);
	if (kind == KVX_PING_UNIX)
		close(echo.in);
	return ping->child < 0 ? -errno : 0;
}

static bool ping_once(struct kvx_ping *ping, uint64_t value)
{
	char message[MESSAGE_BYTES] = {0};
	size_t bytes = ping->kind == KVX_PING_UNIX ? MESSAGE_BYTES : 8;

	memcpy(message, &value, sizeof(value));
	return write(ping->fds[0], message, bytes) == (ssize_t)bytes &&
	       read(ping->fds[1], message, bytes) == (ssize_t)bytes;
}

void kvx_ping_run(struct kvx_ping *ping, unsigned n, struct kvx_samples *out_ns)
{
	for (unsigned i = 0; i < n; i++) {
		uint64_t start = kvx_now_ns();

		if (!ping_once(ping, 1))
			return;
		kvx_samples_add(out_ns, (double)(kvx_now_ns() - start));
	}
}

void kvx_ping_stop(struct kvx_ping *ping)
{
	if (ping->child <= 0)
		return;
	ping_once(ping, UINT32_MAX);
	kvx_engine_wait(ping->child, kvx_now_ns() + 1000000000ull);
	close(ping->fds[0]);
	if (ping->fds[1] != ping->fds[0])
		close(ping->fds[1]);
	ping->child = 0;
}
