/* Frames and file descriptors over a stream socket, for both sides of the client socket and for
 * peer channels.
 *
 * A frame is an 8-byte little-endian header {u32 body length, u16 type, u16 number of fds} and the
 * body. The fds of a frame travel by SCM_RIGHTS with its first byte. Nothing here knows what a
 * message means, nothing blocks: the reader takes what the socket has, the writer keeps what the
 * socket does not take. One thread at a time per object.
 */
#ifndef KVX_WIRE_H
#define KVX_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVX_WIRE_HDR_BYTES 8u
#define KVX_WIRE_MAX_FDS   250u /* fds of one frame, of the type that may carry many */
#define KVX_WIRE_FEW_FDS   4u   /* of any other */

struct kvx_wire_hdr {
	uint32_t len_bytes;
	uint16_t type;
	uint16_t n_fds;
};
void kvx_wire_hdr_pack(const struct kvx_wire_hdr *hdr, uint8_t out[KVX_WIRE_HDR_BYTES]);
void kvx_wire_hdr_unpack(const uint8_t in[KVX_WIRE_HDR_BYTES], struct kvx_wire_hdr *out_hdr);

/* One received frame. body points into the reader and is valid until the next call on that reader;
 * fds belong to the message: take what you keep, kvx_msg_fini() closes the rest. */
struct kvx_msg {
	uint16_t type;
	uint32_t len_bytes;
	const uint8_t *body;
	bool fds_lost; /* it had fds, for which this process had no room (RLIMIT_NOFILE) */
	unsigned n_fds;
	int fds[KVX_WIRE_MAX_FDS]; /* n_fds of them are written */
};
/* Moves fd i out of the message (it becomes -1 there); -1 when there is none. */
int kvx_msg_take_fd(struct kvx_msg *msg, unsigned i);
void kvx_msg_fini(struct kvx_msg *msg);

struct kvx_reader;
/* max_body_bytes: a longer frame is refused by its header, before anything is allocated for it.
 * -ENOMEM. */
int kvx_reader_create(uint32_t max_body_bytes, struct kvx_reader **out_reader);
void kvx_reader_destroy(
    struct kvx_reader *reader); /* closes fds that no message took; NULL is fine */
/* Who gets the fds that no message took, instead of close(2): that may block for as long as their
 * sender likes. Those in a message are for who has the message. */
void kvx_reader_set_discard(struct kvx_reader *reader, void (*discard)(void *arg, int fd),
			    void *arg);
/* Frames of this type may carry KVX_WIRE_MAX_FDS fds from now on. Without this call no frame may
 * carry more than KVX_WIRE_FEW_FDS. */
void kvx_reader_allow_fds(struct kvx_reader *reader, uint16_t type);
/* One recvmsg. > 0: bytes read; 0: end of stream; -EAGAIN: nothing there now; -EPROTO: more fds
 * than any frame may carry; -EDQUOT: more in frames that were not taken yet than two frames may
 * carry (either way all are closed); -ENOMEM; else -errno of recvmsg(2). */
int kvx_reader_fill(struct kvx_reader *reader, int fd);
/* Feeds bytes from memory instead of a socket (tests, fuzzers). 0 or -ENOMEM. */
int kvx_reader_feed(struct kvx_reader *reader, const void *data, size_t len);
/* 1: *out_msg is the next whole frame; 0: none yet; -EMSGSIZE: body over the limit; -EPROTO: more
 * fds announced than allowed, or announced fds that were not sent. After an error the stream is
 * lost: close it. */
int kvx_reader_next(struct kvx_reader *reader, struct kvx_msg *out_msg);
/* Largest body accepted from now on (raised after HELLO). */
void kvx_reader_set_max(struct kvx_reader *reader, uint32_t max_body_bytes);

struct kvx_writer;
int kvx_writer_create(struct kvx_writer **out_writer);
void kvx_writer_destroy(struct kvx_writer *writer); /* closes duplicated fds still queued */
/* Makes room for one frame of body_bytes and returns where the body is to be written (NULL:
 * -ENOMEM). The frame is queued at once: write the body before the next call. */
uint8_t *kvx_writer_reserve(struct kvx_writer *writer, uint16_t type, uint32_t body_bytes);
/* Queues a frame, copying body. fds are duplicated (F_DUPFD_CLOEXEC), so the caller keeps its own.
 * 0, -ENOMEM, -EMFILE, -EINVAL (n_fds > KVX_WIRE_MAX_FDS). On error nothing is queued. */
int kvx_writer_put(struct kvx_writer *writer, uint16_t type, const void *body, uint32_t body_bytes,
		   const int *fds, unsigned n_fds);
/* Takes back the frame that was put last, if it has fds and nothing of it was sent. */
bool kvx_writer_unput(struct kvx_writer *writer);
/* Sends what the socket takes (MSG_NOSIGNAL | MSG_DONTWAIT). 0: all sent; -EAGAIN: some left;
 * -ETOOMANYREFS: more fds of this user are on their way than one process may have open; the frame
 * is still queued. Else -errno. */
int kvx_writer_flush(struct kvx_writer *writer, int fd);
/* For another way out than a socket (TLS); frames with fds cannot go that way. peek: the next bytes
 * to be sent, valid until the next call; false: there are none. consume: so many of them are sent.
 */
bool kvx_writer_peek(const struct kvx_writer *writer, const void **out_bytes, size_t *out_len);
void kvx_writer_consume(struct kvx_writer *writer, size_t len);
size_t kvx_writer_pending_bytes(const struct kvx_writer *writer);

#endif
