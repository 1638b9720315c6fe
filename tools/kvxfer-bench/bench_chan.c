/* Whole messages over a socket pair: the control path that engines have beside kvxfer. Both ends
 * keep what the socket does not take, so two engines that send at the same time cannot block each
 * other. */
#include "bench.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HDR 4u

int kvx_chan_pair(struct kvx_chan *a, struct kvx_chan *b)
{
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0)
		return -errno;
	*a = (struct kvx_chan){.fd = fds[0]};
	*b = (struct kvx_chan){.fd = fds[1]};
	return 0;
}

void kvx_chan_fini(struct kvx_chan *chan)
{
	if (chan->fd >= 0)
		close(chan->fd);
	free(chan->in);
	free(chan->out);
	*chan = (struct kvx_chan){.fd = -1};
}

static void grow(uint8_t **mem, size_t *max, size_t need)
{
	if (need <= *max)
		return;
	*max = need > 2 * *max ? need : 2 * *max;
	*mem = kvx_tool_realloc(*mem, *max);
}

static int chan_flush(struct kvx_chan *chan)
{
	while (chan->out_len > 0) {
		ssize_t n = send(chan->fd, chan->out, chan->out_len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -errno;
		chan->out_len -= (size_t)n;
		memmove(chan->out, chan->out + n, chan->out_len);
	}
	return 0;
}

int kvx_chan_send(struct kvx_chan *chan, const void *data, size_t len)
{
	uint32_t hdr = (uint32_t)len;

	grow(&chan->out, &chan->out_max, chan->out_len + HDR + len);
	memcpy(chan->out + chan->out_len, &hdr, HDR);
	memcpy(chan->out + chan->out_len + HDR, data, len);
	chan->out_len += HDR + len;
	return chan_flush(chan);
}

static int chan_fill(struct kvx_chan *chan)
{
	ssize_t n;

	if (chan->in_used > 0)
		memmove(chan->in, chan->in + chan->in_used, chan->in_len - chan->in_used);
	chan->in_len -= chan->in_used;
	chan->in_used = 0;
	grow(&chan->in, &chan->in_max, chan->in_len + 65536);
	n = recv(chan->fd, chan->in + chan->in_len, chan->in_max - chan->in_len, 0);
	if (n > 0)
		chan->in_len += (size_t)n;
	if (n == 0)
		return -ECONNRESET;
	return n < 0 && errno != EAGAIN && errno != EINTR ? -errno : 0;
}

int kvx_chan_pump(struct kvx_chan *chan, int timeout_ms)
{
	struct pollfd pfd = {.fd = chan->fd, .events = POLLIN};
	int rc = chan_flush(chan);

	if (rc != 0)
		return rc;
	if (chan->out_len > 0)
		pfd.events |= POLLOUT;
	if (poll(&pfd, 1, timeout_ms) <= 0)
		return 0;
	if (pfd.revents & POLLOUT)
		rc = chan_flush(chan);
	if (rc == 0 && pfd.revents & (POLLIN | POLLHUP | POLLERR))
		rc = chan_fill(chan);
	return rc;
}

const void *kvx_chan_next(struct kvx_chan *chan, size_t *out_len)
{
	const uint8_t *at = chan->in + chan->in_used;
	uint32_t len;

	if (chan->in_len - chan->in_used < HDR)
		return NULL;
	memcpy(&len, at, HDR);
	if (chan->in_len - chan->in_used < HDR + (size_t)len)
		return NULL;
	chan->in_used += HDR + (size_t)len;
	*out_len = len;
	return at + HDR;
}

const void *kvx_chan_wait(struct kvx_chan *chan, int timeout_ms, size_t *out_len)
{
	uint64_t deadline = kvx_now_ns() + (uint64_t)timeout_ms * 1000000u;

	for (;;) {
		const void *msg = kvx_chan_next(chan, out_len);
		uint64_t now = kvx_now_ns();

		if (msg)
			return msg;
		if (now >= deadline ||
		    kvx_chan_pump(chan, (int)((deadline - now) / 1000000) + 1) != 0)
			return kvx_chan_next(chan, out_len);
	}
}
