/* Packed messages: many small ops in one message of a two-sided transport. Pure: bytes in, bytes
 * out; no transport, no memory tables. Little-endian on the wire.
 *
 *   header | ops | keys | data
 *
 *   WRITE  ops, the keys they name, and their bytes in op order; answered by one ack
 *   READ   ops and keys, data_bytes says how many bytes are asked for; answered by DATA or an ack
 *   DATA   the bytes of one READ in op order; id is that of the READ
 *   ACK    pairs of {id, status}, n_ops of them: WRITEs that are placed or refused, READs refused
 *   HELLO  what the sender can take; first message in each direction
 *   WRITE_AHEAD, DATA_AHEAD  as WRITE and DATA, but the data comes alone in the next message, so
 *          that the receiver can let the transport put it where it belongs; only over transports
 *          that keep the order of messages, and at most hello.placed_ops ops
 *
 * Every message carries the secret that its receiver gave out for this endpoint. A message that
 * does not decode is a framing error: nothing in it can be believed, the connection is to be
 * dropped.
 */
#ifndef KVX_TRANSPORT_PACK_H
#define KVX_TRANSPORT_PACK_H

#include <stddef.h>
#include <stdint.h>

#define KVX_PACK_HDR_BYTES   32u
#define KVX_PACK_OP_BYTES    16u
#define KVX_PACK_KEY_BYTES   16u
#define KVX_PACK_ACK_BYTES   8u
#define KVX_PACK_HELLO_BYTES 16u
#define KVX_PACK_MAX_KEYS    16u
/* Header, ops and keys of any message fit in this many bytes; the data comes on top. */
#define KVX_PACK_HEAD_BYTES 4096u
#define KVX_PACK_MAX_OPS                                                                           \
	((KVX_PACK_HEAD_BYTES - KVX_PACK_HDR_BYTES - KVX_PACK_MAX_KEYS * KVX_PACK_KEY_BYTES) /     \
	 KVX_PACK_OP_BYTES)

enum kvx_pack_type {
	KVX_PACK_HELLO = 1,
	KVX_PACK_WRITE = 2,
	KVX_PACK_READ = 3,
	KVX_PACK_DATA = 4,
	KVX_PACK_ACK = 5,
	KVX_PACK_WRITE_AHEAD = 6,
	KVX_PACK_DATA_AHEAD = 7,
};

/* Names memory of the receiver: the id of its table entry and a random number that goes with it. */
struct kvx_pack_key {
	uint64_t id;
	uint64_t nonce;
};
struct kvx_pack_op {
	uint64_t offset;
	uint32_t len_bytes; /* > 0 */
	uint32_t key;       /* index among the keys of the message */
};
struct kvx_pack_ack {
	uint32_t id;
	uint32_t status; /* enum kvx_status */
};
struct kvx_pack_hello {
	uint32_t queue;         /* requests without an answer that the sender takes */
	uint32_t message_bytes; /* data of one message that it takes */
	uint32_t max_ops;       /* ops of one message that it takes */
	uint32_t placed_ops;    /* ops of one *_AHEAD message that it takes; 0: it takes none */
};

/* Builds the head (header, ops, keys) of a WRITE, WRITE_AHEAD or READ. */
struct kvx_pack_writer {
	uint8_t *head;      /* KVX_PACK_HEAD_BYTES */
	uint64_t max_bytes; /* data of this message at most */
	uint64_t bytes;     /* of the ops so far */
	uint32_t max_ops;
	uint32_t n_ops;
	uint32_t n_keys;
	struct kvx_pack_key keys[KVX_PACK_MAX_KEYS];
};
/* max_ops is cut to KVX_PACK_MAX_OPS, max_bytes to what the format can say. */
void kvx_pack_begin(struct kvx_pack_writer *w, uint8_t *head, uint32_t max_ops, uint64_t max_bytes);
/* 0; -ENOSPC: does not fit any more, nothing was added; -EINVAL: len_bytes is 0 or above 4 GiB. */
int kvx_pack_add(struct kvx_pack_writer *w, const struct kvx_pack_key *key, uint64_t offset,
		 uint64_t len_bytes);
/* Returns the length of the head; the data of a WRITE follows it. */
uint32_t kvx_pack_end(struct kvx_pack_writer *w, enum kvx_pack_type type, uint64_t secret,
		      uint32_t id);

/* Whole messages without ops; they return their length. */
uint32_t kvx_pack_hello(uint8_t out[KVX_PACK_HDR_BYTES + KVX_PACK_HELLO_BYTES], uint64_t secret,
			const struct kvx_pack_hello *hello);
uint32_t kvx_pack_acks(uint8_t *out, size_t out_bytes, uint64_t secret,
		       const struct kvx_pack_ack *acks, uint32_t n_acks); /* 0: does not fit */
/* The header of DATA or DATA_AHEAD; data_bytes of data follow it. */
uint32_t kvx_pack_data(uint8_t out[KVX_PACK_HDR_BYTES], enum kvx_pack_type type, uint64_t secret,
		       uint32_t id, uint32_t data_bytes);
/* The *_AHEAD message at head and the data that has come behind it become one: WRITE or DATA. */
void kvx_pack_join(uint8_t *head);

/* A decoded message; it points into the buffer that was decoded. */
struct kvx_pack_msg {
	enum kvx_pack_type type;
	uint32_t id;
	uint64_t secret;
	uint32_t n_ops; /* WRITE, READ: ops; ACK: pairs */
	uint32_t n_keys;
	uint32_t data_bytes; /* READ: asked for; WRITE, DATA: contained, AHEAD: to follow */
	const uint8_t *ops;
	const uint8_t *keys;
	const uint8_t *data; /* WRITE, DATA; else NULL */
	struct kvx_pack_hello hello;
};
/* 0, or -EPROTO: not a whole, consistent message (wrong magic, version, type, length; an op without
 * bytes or with a key that is not there; ops that do not add up). Offsets and keys are only
 * numbers: checking them against memory is the caller's. */
int kvx_pack_decode(const void *buf, size_t len, struct kvx_pack_msg *out_msg);
/* i < n_ops, key < n_keys. */
void kvx_pack_get_op(const struct kvx_pack_msg *msg, uint32_t i, struct kvx_pack_op *out_op);
void kvx_pack_get_key(const struct kvx_pack_msg *msg, uint32_t key, struct kvx_pack_key *out_key);
void kvx_pack_get_ack(const struct kvx_pack_msg *msg, uint32_t i, struct kvx_pack_ack *out_ack);

#endif
