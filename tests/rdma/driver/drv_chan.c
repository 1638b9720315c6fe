/* Framed messages over TCP: u32 length, u32 type, body. Keeps what the socket does not take, so two
 * programs that send at the same time cannot block each other. */
#include "drv_chan.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "drv.h"

#define HDR     8u
#define MSG_MAX 65536u

static struct addrinfo *resolve(const char *addr, int flags)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
	const char *colon = strrchr(addr, ':');
	struct addrinfo *list = NULL;
	char host[64];

	if (colon == NULL)
		drv_die("%s: not HOST:PORT", addr);
	snprintf(host, sizeof(host), "%.*s", (int)(colon - addr), addr);
	if (getaddrinfo(host, colon + 1, &hints, &list) != 0)
		drv_die("%s: cannot be resolved", addr);
	return list;
}

int drv_chan_listen(const char *addr)
{
	struct addrinfo *list = resolve(addr, AI_PASSIVE | AI_NUMERICHOST);
	int fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (fd < 0 || bind(fd, list->ai_addr, list->ai_addrlen) != 0 || listen(fd, 64) != 0)
		drv_die("listen on %s: %s", addr, strerror(errno));
	freeaddrinfo(list);
	return fd;
}

static void chan_init(struct drv_chan *chan, int fd)
{
	unsigned silence_ms = 30000; /* scenarios let machines stand still for 12 s */
	int one = 1;

	memset(chan, 0, sizeof(*chan));
	chan->fd = fd;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	/* After an outage the next packet must not wait for a long back-off: the tests measure how
	 * soon transfers go again. */
	setsockopt(fd, IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, &one, sizeof(one));
	/* A machine that was switched off says nothing. */
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &silence_ms, sizeof(silence_ms));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &one, sizeof(one));
}

int drv_chan_connect(struct drv_chan *chan, const char *addr, int timeout_ms)
{
	struct addrinfo *list = resolve(addr, AI_NUMERICHOST);
	int fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct pollfd pfd = {.fd = fd, .events = POLLOUT};
	int error = 0;
	socklen_t len = sizeof(error);

	if (fd < 0)
		drv_die("socket: %s", strerror(errno));
	if (connect(fd, list->ai_addr, list->ai_addrlen) != 0 && errno != EINPROGRESS)
		error = errno;
	else if (poll(&pfd, 1, timeout_ms) != 1)
		error = ETIMEDOUT;
	else
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len);
	freeaddrinfo(list);
	if (error != 0) {
		close(fd);
		return -error;
	}
	chan_init(chan, fd);
	return 0;
}

void drv_chan_accept(struct drv_chan *chan, int listen_fd)
{
	int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	memset(chan, 0, sizeof(*chan));
	chan->fd = -1;
	if (fd >= 0)
		chan_init(chan, fd);
}

void drv_chan_close(struct drv_chan *chan)
{
	if (chan->fd >= 0)
		close(chan->fd);
	free(chan->in);
	free(chan->out);
	memset(chan, 0, sizeof(*chan));
	chan->fd = -1;
}

static void grow(uint8_t **mem, size_t *max, size_t need)
{
	if (need <= *max)
		return;
	*max = need > 2 * *max ? need : 2 * *max;
	*mem = realloc(*mem, *max);
	if (*mem == NULL)
		drv_die("no memory for %zu bytes of messages", *max);
}

void drv_chan_send(struct drv_chan *chan, enum drv_msg type, const void *data, size_t len)
{
	uint32_t hdr[2] = {(uint32_t)len, type};

	if (chan->fd < 0)
		return;
	grow(&chan->out, &chan->out_max, chan->out_len + HDR + len);
	memcpy(chan->out + chan->out_len, hdr, HDR);
	if (len > 0)
		memcpy(chan->out + chan->out_len + HDR, data, len);
	chan->out_len += HDR + len;
}

static bool chan_flush(struct drv_chan *chan)
{
	while (chan->out_len > 0) {
		ssize_t n = send(chan->fd, chan->out, chan->out_len, MSG_NOSIGNAL);

		if (n < 0)
			return errno == EAGAIN || errno == EINTR;
		chan->out_len -= (size_t)n;
		memmove(chan->out, chan->out + n, chan->out_len);
	}
	return true;
}

bool drv_chan_pump(struct drv_chan *chan)
{
	ssize_t n;

	if (chan->fd < 0 || !chan_flush(chan))
		return false;
	if (chan->in_used > 0)
		memmove(chan->in, chan->in + chan->in_used, chan->in_len - chan->in_used);
	chan->in_len -= chan->in_used;
	chan->in_used = 0;
	grow(&chan->in, &chan->in_max, chan->in_len + MSG_MAX);
	n = recv(chan->fd, chan->in + chan->in_len, chan->in_max - chan->in_len, 0);
	if (n > 0)
		chan->in_len += (size_t)n;
	return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

short drv_chan_events(const struct drv_chan *chan)
{
	return (short)(POLLIN | (chan->out_len > 0 ? POLLOUT : 0));
}

const void *drv_chan_next(struct drv_chan *chan, enum drv_msg *out_type, size_t *out_len)
{
	const uint8_t *at = chan->in + chan->in_used;
	uint32_t hdr[2];

	if (chan->fd < 0 || chan->in_len - chan->in_used < HDR)
		return NULL;
	memcpy(hdr, at, HDR);
	if (hdr[0] > MSG_MAX - HDR)
		drv_die("a message of %u bytes", hdr[0]);
	if (chan->in_len - chan->in_used < HDR + hdr[0])
		return NULL;
	chan->in_used += HDR + hdr[0];
	*out_type = (enum drv_msg)hdr[1];
	*out_len = hdr[0];
	return at + HDR;
}

void drv_chan_pump_out(struct drv_chan *chan)
{
	if (chan->fd >= 0)
		chan_flush(chan); /* an error shows at the next pump */
}
