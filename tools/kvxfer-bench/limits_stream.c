/* A TCP stream over loopback that carries scattered blocks: the sender, in the caller's thread,
 * gathers with writev(2), the receiver is a thread of its own. One connection, blocking, the
 * system's congestion control. Every run ends with a byte back, so that the time holds until the
 * bytes lie in place. */
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "limit.h"

#define GATHER_BYTES (1u << 20)
#define SINK_BYTES   (256u << 10)

struct kvx_stream {
	int tx, rx;
	pthread_t receiver;
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	const struct kvx_blocks_view *view; /* of the run under way, under mutex; NULL: none */
	bool scatter, quit;
	uint8_t *sink;
};

/* One span of the list: gathers as many blocks as one call should carry. Returns how many iovs. */
static int iov_fill(const struct kvx_blocks_view *view, bool src, uint64_t at, struct iovec *iov)
{
	const struct kvx_scatter *s = view->scatter;
	uint64_t total = (uint64_t)view->n * s->block_bytes, sum = 0;
	int n = 0;

	while (at < total && n < IOV_MAX && sum < GATHER_BYTES) {
		uint64_t block = at / s->block_bytes, skip = at % s->block_bytes;
		uint64_t len = s->block_bytes - skip;
		uint8_t *base = src ? s->src + view->src[block] * s->block_bytes
				    : s->dst + view->dst[block] * s->block_bytes;

		len = len < GATHER_BYTES - sum ? len : GATHER_BYTES - sum;
		iov[n++] = (struct iovec){.iov_base = base + skip, .iov_len = len};
		at += len;
		sum += len;
	}
	return n;
}

static int stream_receive(struct kvx_stream *stream)
{
	const struct kvx_blocks_view *view = stream->view;
	uint64_t total = (uint64_t)view->n * view->scatter->block_bytes, at = 0;
	static _Thread_local struct iovec iov[IOV_MAX];

	while (at < total) {
		ssize_t n;

		if (stream->scatter)
			n = readv(stream->rx, iov, iov_fill(view, false, at, iov));
		else
			n = read(stream->rx, stream->sink,
				 total - at < SINK_BYTES ? total - at : SINK_BYTES);
		if (n <= 0)
			return -1;
		at += (uint64_t)n;
	}
	return write(stream->rx, "", 1) == 1 ? 0 : -1;
}

static void *receiver_main(void *arg)
{
	struct kvx_stream *stream = arg;
	int rc = 0;

	pthread_mutex_lock(&stream->mutex);
	while (rc == 0) {
		while (!stream->view && !stream->quit)
			pthread_cond_wait(&stream->changed, &stream->mutex);
		if (stream->quit)
			break;
		pthread_mutex_unlock(&stream->mutex);
		rc = stream_receive(stream);
		pthread_mutex_lock(&stream->mutex);
		stream->view = NULL;
		pthread_cond_signal(&stream->changed);
	}
	pthread_mutex_unlock(&stream->mutex);
	return NULL;
}

static int stream_connect(struct kvx_stream *stream)
{
	struct sockaddr_in addr = {.sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(addr);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, rc = 0;

	stream->tx = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	stream->rx = -1;
	if (listener < 0 || stream->tx < 0 || bind(listener, (struct sockaddr *)&addr, len) != 0 ||
	    listen(listener, 1) != 0 ||
	    getsockname(listener, (struct sockaddr *)&addr, &len) != 0 ||
	    connect(stream->tx, (struct sockaddr *)&addr, len) != 0)
		rc = -errno;
	if (rc == 0)
		stream->rx = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (rc == 0 && stream->rx < 0)
		rc = -errno;
	if (listener >= 0)
		close(listener);
	if (rc == 0) {
		setsockopt(stream->tx, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		setsockopt(stream->rx, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	}
	return rc;
}

int kvx_stream_start(struct kvx_stream **out_stream)
{
	struct kvx_stream *stream = kvx_tool_alloc(sizeof(*stream));
	int rc = stream_connect(stream);

	stream->sink = kvx_tool_alloc(SINK_BYTES);
	pthread_mutex_init(&stream->mutex, NULL);
	pthread_cond_init(&stream->changed, NULL);
	if (rc == 0)
		rc = -pthread_create(&stream->receiver, NULL, receiver_main, stream);
	if (rc != 0) {
		if (stream->tx >= 0)
			close(stream->tx);
		if (stream->rx >= 0)
			close(stream->rx);
		free(stream->sink);
		free(stream);
		return rc;
	}
	*out_stream = stream;
	return 0;
}

double kvx_stream_run(struct kvx_stream *stream, const struct kvx_blocks_view *view, bool scatter)
{
	uint64_t total = (uint64_t)view->n * view->scatter->block_bytes, at = 0;
	static struct iovec iov[IOV_MAX];
	uint64_t start;
	char byte;

	pthread_mutex_lock(&stream->mutex);
	stream->view = view;
	stream->scatter = scatter;
	pthread_cond_signal(&stream->changed);
	pthread_mutex_unlock(&stream->mutex);
	/* The receiver is to sleep in its first read when the clock starts. */
	usleep(200);
	start = kvx_now_ns();
	while (at < total) {
		ssize_t n = writev(stream->tx, iov, iov_fill(view, true, at, iov));

		if (n <= 0)
			return 0;
		at += (uint64_t)n;
	}
	if (read(stream->tx, &byte, 1) != 1)
		return 0;
	uint64_t end = kvx_now_ns();

	pthread_mutex_lock(&stream->mutex);
	while (stream->view)
		pthread_cond_wait(&stream->changed, &stream->mutex);
	pthread_mutex_unlock(&stream->mutex);
	return (double)(end - start) / 1e9;
}

void kvx_stream_stop(struct kvx_stream *stream)
{
	if (!stream)
		return;
	pthread_mutex_lock(&stream->mutex);
	stream->quit = true;
	pthread_cond_signal(&stream->changed);
	pthread_mutex_unlock(&stream->mutex);
	shutdown(stream->tx, SHUT_RDWR);
	pthread_join(stream->receiver, NULL);
	close(stream->tx);
	close(stream->rx);
	free(stream->sink);
	free(stream);
}
