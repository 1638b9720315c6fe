/* The receiving side: bytes of a stream socket into whole frames, fds with the frame that announced
 * them. Owns its buffer and the fds that no message took yet. Called by the thread that polls the
 * socket; never blocks, never allocates more than one announced and permitted frame needs.
 *
 * Linux ends a recvmsg(2) after the piece of the stream that carried fds, and hands them over with
 * that piece's first byte. So the fds of a frame come in the same call as its first byte: for each
 * fd the reader keeps which stretch of the stream came in that call, and a frame gets exactly those
 * whose stretch holds its first byte. Fds that no frame announced are an error, not a gift to the
 * next one. Where this process had no room for all fds of a call (MSG_CTRUNC) it keeps none of
 * them: a mark stands for them, and the frame comes without.
 */
#include "proto/kvx_wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BASE_BYTES   8192u
#define SHRINK_FILLS 64u /* fills without need of the large buffer before it is given back */
#define FEW_QUEUED   (4 * KVX_WIRE_FEW_FDS)
#define MANY_QUEUED  (2 * KVX_WIRE_MAX_FDS)
#define SCM_MOST_FDS 253u /* that one sendmsg(2) can pass */

struct queued_fd {
	int fd;              /* -1: the mark for all of the call */
	uint64_t begin, end; /* stream offsets of what came in the same call */
};

struct kvx_reader {
	uint8_t *buf;
	size_t capacity;
	size_t start, end;     /* unread bytes */
	uint64_t start_offset; /* stream offset of buf[start] */
	uint32_t max_body_bytes;
	unsigned n_small_fills;
	int err;   /* sticky: the stream is lost */
	bool many; /* frames of many_type may carry many fds */
	uint16_t many_type;
	unsigned n_fds, fds_capacity;
	struct queued_fd *fds; /* in order of arrival */
	void (*discard)(void *arg, int fd);
	void *discard_arg;
};

static void discard_close(void *arg, int fd)
{
	close(fd);
}

int kvx_reader_create(uint32_t max_body_bytes, struct kvx_reader **out_reader)
{
	struct kvx_reader *reader = calloc(1, sizeof(*reader));

	if (reader == NULL)
		return -ENOMEM;
	reader->max_body_bytes = max_body_bytes;
	reader->discard = discard_close;
	*out_reader = reader;
	return 0;
}

static void reader_close_fds(struct kvx_reader *reader)
{
	for (unsigned i = 0; i < reader->n_fds; i++)
		if (reader->fds[i].fd >= 0)
			reader->discard(reader->discard_arg, reader->fds[i].fd);
	reader->n_fds = 0;
}

void kvx_reader_set_discard(struct kvx_reader *reader, void (*discard)(void *arg, int fd),
			    void *arg)
{
	reader->discard = discard;
	reader->discard_arg = arg;
}

void kvx_reader_destroy(struct kvx_reader *reader)
{
	if (reader == NULL)
		return;
	reader_close_fds(reader);
	free(reader->fds);
	free(reader->buf);
	free(reader);
}

void kvx_reader_allow_fds(struct kvx_reader *reader, uint16_t type)
{
	reader->many = true;
	reader->many_type = type;
}

void kvx_reader_set_max(struct kvx_reader *reader, uint32_t max_body_bytes)
{
	reader->max_body_bytes = max_body_bytes;
}

static int reader_fail(struct kvx_reader *reader, int err)
{
	reader->err = err;
	reader_close_fds(reader);
	return err;
}

/* 1: *out_hdr is the header at start; 0: not all of it is there; or the refusal. */
static int reader_peek(const struct kvx_reader *reader, struct kvx_wire_hdr *out_hdr)
{
	struct kvx_wire_hdr hdr;

	if (reader->end - reader->start < KVX_WIRE_HDR_BYTES)
		return 0;
	kvx_wire_hdr_unpack(reader->buf + reader->start, &hdr);
	if (hdr.len_bytes > reader->max_body_bytes)
		return -EMSGSIZE;
	if (hdr.n_fds > KVX_WIRE_MAX_FDS ||
	    (hdr.n_fds > KVX_WIRE_FEW_FDS && !(reader->many && hdr.type == reader->many_type)))
		return -EPROTO;
	*out_hdr = hdr;
	return 1;
}

static void reader_compact(struct kvx_reader *reader)
{
	if (reader->start == 0)
		return;
	memmove(reader->buf, reader->buf + reader->start, reader->end - reader->start);
	reader->end -= reader->start;
	reader->start = 0;
}

/* Gives a buffer that a large frame needed back, once it was not needed for a while. */
static void reader_shrink(struct kvx_reader *reader, int was_large)
{
	uint8_t *buf;

	if (reader->capacity <= BASE_BYTES || was_large) {
		reader->n_small_fills = 0;
		return;
	}
	if (++reader->n_small_fills < SHRINK_FILLS)
		return;
	reader->n_small_fills = 0;
	buf = realloc(reader->buf, BASE_BYTES);
	if (buf == NULL)
		return;
	reader->buf = buf;
	reader->capacity = BASE_BYTES;
}

/* Room for at least min_bytes behind end. */
static int reader_reserve(struct kvx_reader *reader, size_t min_bytes)
{
	size_t need = reader->end - reader->start + min_bytes;
	uint8_t *buf;

	if (need < BASE_BYTES)
		need = BASE_BYTES;
	if (reader->capacity - reader->end >= min_bytes && reader->capacity >= BASE_BYTES)
		return 0;
	reader_compact(reader);
	if (need <= reader->capacity)
		return 0;
	buf = realloc(reader->buf, need);
	if (buf == NULL)
		return -ENOMEM;
	reader->buf = buf;
	reader->capacity = need;
	reader->n_small_fills = 0;
	return 0;
}

/* Room for the rest of the frame that has begun, or for a header. */
static int reader_prepare(struct kvx_reader *reader)
{
	struct kvx_wire_hdr hdr;
	size_t have = reader->end - reader->start, frame;
	int found;

	if (have == 0) {
		reader_shrink(reader, reader->end > BASE_BYTES);
		reader->start = reader->end = 0;
	} else if (have < BASE_BYTES) {
		reader_compact(reader); /* cheap, and leaves room for frames that follow */
	}
	found = reader_peek(reader, &hdr);
	if (found < 0)
		return reader_fail(reader, found);
	if (found == 0)
		return reader_reserve(reader, KVX_WIRE_HDR_BYTES - have);
	frame = (size_t)KVX_WIRE_HDR_BYTES + hdr.len_bytes;
	if (frame > have)
		return reader_reserve(reader, frame - have);
	if (reader->end == reader->capacity)
		reader_compact(reader);
	return reader->end < reader->capacity ? 0 : -ENOBUFS; /* whole frames wait to be taken */
}

/* Room for n more that are queued. */
static int reader_reserve_fds(struct kvx_reader *reader, size_t n)
{
	size_t need = reader->n_fds + n;
	struct queued_fd *fds;

	if (need > (reader->many ? MANY_QUEUED : FEW_QUEUED))
		return -EDQUOT;
	if (need <= reader->fds_capacity)
		return 0;
	if (need < FEW_QUEUED)
		need = FEW_QUEUED;
	fds = realloc(reader->fds, need * sizeof(*fds));
	if (fds == NULL)
		return -ENOMEM;
	reader->fds = fds;
	reader->fds_capacity = (unsigned)need;
	return 0;
}

/* The fds of one control message; they are discarded when they are not to be kept. */
static void reader_queue_fds(struct kvx_reader *reader, const struct cmsghdr *c, size_t n_fds,
			     const struct queued_fd *stretch)
{
	for (size_t i = 0; i < n_fds; i++) {
		struct queued_fd q = {-1, 0, 0};

		if (stretch != NULL)
			q = *stretch;
		memcpy(&q.fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
		if (stretch != NULL)
			reader->fds[reader->n_fds++] = q;
		else
			reader->discard(reader->discard_arg, q.fd);
	}
}

/* Queues the fds of one recvmsg that brought n bytes. */
static int reader_take_fds(struct kvx_reader *reader, struct msghdr *mh, size_t n)
{
	uint64_t begin = reader->start_offset + (reader->end - reader->start);
	const struct queued_fd stretch = {-1, begin, begin + n};
	bool lost = (mh->msg_flags & MSG_CTRUNC) != 0;
	int err = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c != NULL; c = CMSG_NXTHDR(mh, c)) {
		size_t n_fds;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		if (err == 0 && n_fds > (reader->many ? KVX_WIRE_MAX_FDS : KVX_WIRE_FEW_FDS))
			err = -EPROTO;
		if (err == 0 && !lost)
			err = reader_reserve_fds(reader, n_fds);
		reader_queue_fds(reader, c, n_fds, err == 0 && !lost ? &stretch : NULL);
	}
	if (err == 0 && lost) {
		err = reader_reserve_fds(reader, 1);
		if (err == 0)
			reader->fds[reader->n_fds++] = stretch;
	}
	return err < 0 ? reader_fail(reader, err) : 0;
}

int kvx_reader_fill(struct kvx_reader *reader, int fd)
{
	/* Room for all that can come, though more than KVX_WIRE_MAX_FDS are refused: what finds no
	 * room is closed by the kernel, here and now. */
	union {
		char bytes[CMSG_SPACE(SCM_MOST_FDS * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr mh = {.msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
	struct iovec iov;
	ssize_t n;
	int err;

	if (reader->err < 0)
		return reader->err;
	err = reader_prepare(reader);
	if (err < 0)
		return err;
	iov.iov_base = reader->buf + reader->end;
	iov.iov_len = reader->capacity - reader->end;
	mh.msg_iov = &iov;
	mh.msg_iovlen = 1;
	do {
		n = recvmsg(fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EWOULDBLOCK ? -EAGAIN : -errno;
	err = reader_take_fds(reader, &mh, (size_t)n);
	if (err < 0)
		return err;
	reader->end += (size_t)n;
	return (int)n;
}

int kvx_reader_feed(struct kvx_reader *reader, const void *data, size_t len)
{
	int err;

	if (len == 0)
		return 0;
	if (len > SIZE_MAX - reader->capacity)
		return -ENOMEM;
	err = reader_reserve(reader, len);
	if (err < 0)
		return err;
	memcpy(reader->buf + reader->end, data, len);
	reader->end += len;
	return 0;
}

/* Is there one that came before the frame at start? No frame has announced it. */
static bool reader_has_stray_fds(const struct kvx_reader *reader)
{
	return reader->n_fds > 0 && reader->fds[0].end <= reader->start_offset;
}

/* How many queued fds came in the call that brought the first byte of the frame at start. */
static unsigned reader_count_own_fds(const struct kvx_reader *reader)
{
	unsigned n = 0;

	while (n < reader->n_fds && reader->fds[n].begin <= reader->start_offset)
		n++;
	return n;
}

/* Those before n have a message. */
static void reader_shift_fds(struct kvx_reader *reader, unsigned n)
{
	if (n == 0)
		return;
	reader->n_fds -= n;
	memmove(reader->fds, reader->fds + n, reader->n_fds * sizeof(reader->fds[0]));
	if (reader->n_fds > 0 || reader->fds_capacity <= FEW_QUEUED)
		return;
	free(reader->fds);
	reader->fds = NULL;
	reader->fds_capacity = 0;
}

static int reader_give_fds(struct kvx_reader *reader, struct kvx_msg *msg, unsigned n_fds)
{
	unsigned n_own = reader_count_own_fds(reader);

	msg->fds_lost = n_fds > 0 && n_own > 0 && reader->fds[0].fd < 0;
	msg->n_fds = 0;
	if (msg->fds_lost) {
		reader_shift_fds(reader, 1);
		return 0;
	}
	if (n_own < n_fds)
		return -EPROTO;
	for (unsigned i = 0; i < n_fds; i++)
		msg->fds[i] = reader->fds[i].fd;
	msg->n_fds = n_fds;
	reader_shift_fds(reader, n_fds);
	return 0;
}

int kvx_reader_next(struct kvx_reader *reader, struct kvx_msg *out_msg)
{
	struct kvx_wire_hdr hdr;
	size_t frame;
	int err;

	if (reader->err < 0)
		return reader->err;
	err = reader_has_stray_fds(reader) ? -EPROTO : reader_peek(reader, &hdr);
	if (err < 0)
		return reader_fail(reader, err);
	if (err == 0)
		return 0;
	frame = (size_t)KVX_WIRE_HDR_BYTES + hdr.len_bytes;
	if (reader->end - reader->start < frame)
		return 0;
	err = reader_give_fds(reader, out_msg, hdr.n_fds);
	if (err < 0)
		return reader_fail(reader, err);
	out_msg->type = hdr.type;
	out_msg->len_bytes = hdr.len_bytes;
	out_msg->body = reader->buf + reader->start + KVX_WIRE_HDR_BYTES;
	reader->start += frame;
	reader->start_offset += frame;
	return 1;
}
