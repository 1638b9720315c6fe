/* The sending side: frames are queued in chunks and sent as the socket takes them. Owns the chunks
 * and duplicates of the fds that are still to be sent. One thread; never blocks.
 *
 * Small frames share a chunk; a large one has a chunk of its own size, in which its body is encoded
 * in place and from which it is sent. A frame with fds always begins a chunk, and a chunk with fds
 * always begins a sendmsg(2), because the kernel ties fds to the first byte of the call.
 */
#include "proto/kvx_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHUNK_BYTES 8192u
#define MAX_IOV     64

struct chunk {
	struct chunk *next;
	size_t capacity;
	size_t len;
	size_t sent;
	unsigned n_fds; /* not yet sent; they go with the first byte */
	int *fds;       /* NULL: none */
	uint8_t bytes[];
};

struct kvx_writer {
	struct chunk *head, *tail;
	struct chunk *spare; /* one empty chunk of CHUNK_BYTES */
	size_t pending_bytes;
};

int kvx_writer_create(struct kvx_writer **out_writer)
{
	struct kvx_writer *writer = calloc(1, sizeof(*writer));

	if (writer == NULL)
		return -ENOMEM;
	*out_writer = writer;
	return 0;
}

static void fds_destroy(int *fds, unsigned n_fds)
{
	for (unsigned i = 0; i < n_fds; i++)
		close(fds[i]);
	free(fds);
}

static void chunk_close_fds(struct chunk *chunk)
{
	fds_destroy(chunk->fds, chunk->n_fds);
	chunk->fds = NULL;
	chunk->n_fds = 0;
}

void kvx_writer_destroy(struct kvx_writer *writer)
{
	if (writer == NULL)
		return;
	while (writer->head != NULL) {
		struct chunk *chunk = writer->head;

		writer->head = chunk->next;
		chunk_close_fds(chunk);
		free(chunk);
	}
	free(writer->spare);
	free(writer);
}

/* An empty chunk for at least need bytes, at the end of the queue. */
static struct chunk *writer_add_chunk(struct kvx_writer *writer, size_t need)
{
	size_t capacity = need > CHUNK_BYTES ? need : CHUNK_BYTES;
	struct chunk *chunk = writer->spare;

	if (capacity == CHUNK_BYTES && chunk != NULL) {
		writer->spare = NULL;
	} else {
		chunk = malloc(sizeof(*chunk) + capacity);
		if (chunk == NULL)
			return NULL;
	}
	memset(chunk, 0, sizeof(*chunk));
	chunk->capacity = capacity;
	if (writer->tail != NULL)
		writer->tail->next = chunk;
	else
		writer->head = chunk;
	writer->tail = chunk;
	return chunk;
}

static void writer_drop_head(struct kvx_writer *writer)
{
	struct chunk *chunk = writer->head;

	writer->head = chunk->next;
	if (writer->head == NULL)
		writer->tail = NULL;
	if (chunk->capacity == CHUNK_BYTES && writer->spare == NULL)
		writer->spare = chunk;
	else
		free(chunk);
}

static uint8_t *writer_add(struct kvx_writer *writer, const struct kvx_wire_hdr *hdr)
{
	size_t need = (size_t)KVX_WIRE_HDR_BYTES + hdr->len_bytes;
	struct chunk *chunk = writer->tail;
	uint8_t *place;

	if (chunk == NULL || hdr->n_fds > 0 || chunk->capacity - chunk->len < need) {
		chunk = writer_add_chunk(writer, need);
		if (chunk == NULL)
			return NULL;
	}
	place = chunk->bytes + chunk->len;
	kvx_wire_hdr_pack(hdr, place);
	chunk->len += need;
	writer->pending_bytes += need;
	return place + KVX_WIRE_HDR_BYTES;
}

uint8_t *kvx_writer_reserve(struct kvx_writer *writer, uint16_t type, uint32_t body_bytes)
{
	struct kvx_wire_hdr hdr = {.len_bytes = body_bytes, .type = type};

	return writer_add(writer, &hdr);
}

static int fds_dup(const int *fds, unsigned n_fds, int **out_fds)
{
	int *dups = NULL;

	if (n_fds > 0) {
		dups = malloc(n_fds * sizeof(int));
		if (dups == NULL)
			return -ENOMEM;
	}
	for (unsigned i = 0; i < n_fds; i++) {
		dups[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
		if (dups[i] < 0) {
			int err = -errno;

			fds_destroy(dups, i);
			return err;
		}
	}
	*out_fds = dups;
	return 0;
}

int kvx_writer_put(struct kvx_writer *writer, uint16_t type, const void *body, uint32_t body_bytes,
		   const int *fds, unsigned n_fds)
{
	struct kvx_wire_hdr hdr = {.len_bytes = body_bytes, .type = type, .n_fds = (uint16_t)n_fds};
	uint8_t *place;
	int *dups = NULL, err;

	if (n_fds > KVX_WIRE_MAX_FDS)
		return -EINVAL;
	err = fds_dup(fds, n_fds, &dups);
	if (err < 0)
		return err;
	place = writer_add(writer, &hdr);
	if (place == NULL) {
		fds_destroy(dups, n_fds);
		return -ENOMEM;
	}
	if (body_bytes > 0)
		memcpy(place, body, body_bytes);
	if (n_fds > 0) {
		writer->tail->fds = dups;
		writer->tail->n_fds = n_fds;
	}
	return 0;
}

/* Such a frame begins its chunk, and its fds go with its first byte. */
bool kvx_writer_unput(struct kvx_writer *writer)
{
	struct chunk *last = writer->tail, *before = NULL;
	struct kvx_wire_hdr hdr;

	if (last == NULL || last->n_fds == 0)
		return false;
	kvx_wire_hdr_unpack(last->bytes, &hdr);
	if (last->len != (size_t)KVX_WIRE_HDR_BYTES + hdr.len_bytes)
		return false; /* another one was put behind it */
	for (struct chunk *c = writer->head; c != last; c = c->next)
		before = c;
	writer->tail = before;
	if (before != NULL)
		before->next = NULL;
	else
		writer->head = NULL;
	writer->pending_bytes -= last->len;
	chunk_close_fds(last);
	free(last);
	return true;
}

/* The pieces that may go in one call: up to the next chunk that has fds of its own. */
static size_t writer_gather(const struct kvx_writer *writer, struct iovec iov[MAX_IOV])
{
	size_t n = 0;

	for (struct chunk *c = writer->head; c != NULL && n < MAX_IOV; c = c->next) {
		if (n > 0 && c->n_fds > 0)
			break;
		iov[n].iov_base = c->bytes + c->sent;
		iov[n].iov_len = c->len - c->sent;
		n++;
	}
	return n;
}

static void writer_advance(struct kvx_writer *writer, size_t n)
{
	writer->pending_bytes -= n;
	if (n > 0)
		chunk_close_fds(writer->head);
	while (n > 0) {
		struct chunk *chunk = writer->head;
		size_t left = chunk->len - chunk->sent;

		if (n < left) {
			chunk->sent += n;
			return;
		}
		n -= left;
		writer_drop_head(writer);
	}
}

static ssize_t writer_send(struct kvx_writer *writer, int fd)
{
	union {
		char bytes[CMSG_SPACE(KVX_WIRE_MAX_FDS * sizeof(int))];
		struct cmsghdr align;
	} control;
	const struct chunk *head = writer->head;
	struct iovec iov[MAX_IOV];
	struct msghdr mh = {.msg_iov = iov};
	ssize_t n;

	mh.msg_iovlen = writer_gather(writer, iov);
	if (head->n_fds > 0) {
		size_t bytes = head->n_fds * sizeof(int);
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		mh.msg_control = control.bytes;
		mh.msg_controllen = CMSG_SPACE(bytes);
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(bytes);
		memcpy(CMSG_DATA(c), head->fds, bytes);
	}
	do {
		n = sendmsg(fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EWOULDBLOCK ? -EAGAIN : -errno;
	return n;
}

int kvx_writer_flush(struct kvx_writer *writer, int fd)
{
	while (writer->head != NULL) {
		ssize_t n = writer_send(writer, fd);

		if (n < 0)
			return (int)n;
		writer_advance(writer, (size_t)n);
	}
	return 0;
}

bool kvx_writer_peek(const struct kvx_writer *writer, const void **out_bytes, size_t *out_len)
{
	const struct chunk *chunk = writer->head;

	if (chunk == NULL)
		return false;
	*out_bytes = chunk->bytes + chunk->sent;
	*out_len = chunk->len - chunk->sent;
	return true;
}

void kvx_writer_consume(struct kvx_writer *writer, size_t len)
{
	writer_advance(writer, len);
}

size_t kvx_writer_pending_bytes(const struct kvx_writer *writer)
{
	return writer->pending_bytes;
}
