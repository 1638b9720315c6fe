/* The packed-message format: encoder and decoder. Pure functions over caller's buffers, any thread.
 * Called by two-sided transports. The decoder believes nothing: lengths are checked against the
 * bytes that came, sums in 64 bits, every key index against the keys that are there. It never looks
 * at memory tables and never allocates. */
#include "transport/pack.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#include "base/assert.h"

#define PACK_MAGIC   0x584bu /* "KX" */
#define PACK_VERSION 1u

/* As on the wire; every field little-endian. */
struct wire_hdr {
	uint16_t magic;
	uint8_t version;
	uint8_t type;
	uint32_t n_ops;
	uint64_t secret;
	uint32_t id;
	uint32_t n_keys;
	uint32_t data_bytes;
	uint32_t zero;
};
_Static_assert(sizeof(struct wire_hdr) == KVX_PACK_HDR_BYTES, "header is 32 bytes on the wire");
_Static_assert(sizeof(struct kvx_pack_op) == KVX_PACK_OP_BYTES, "op is 16 bytes on the wire");
_Static_assert(sizeof(struct kvx_pack_key) == KVX_PACK_KEY_BYTES, "key is 16 bytes on the wire");
_Static_assert(sizeof(struct kvx_pack_ack) == KVX_PACK_ACK_BYTES, "ack is 8 bytes on the wire");
_Static_assert(sizeof(struct kvx_pack_hello) == KVX_PACK_HELLO_BYTES, "hello is 16 bytes");

static void hdr_put(uint8_t *out, enum kvx_pack_type type, uint64_t secret, uint32_t id)
{
	struct wire_hdr hdr = {
	    .magic = htole16(PACK_MAGIC),
	    .version = PACK_VERSION,
	    .type = (uint8_t)type,
	    .secret = htole64(secret),
	    .id = htole32(id),
	};

	memcpy(out, &hdr, sizeof(hdr));
}

static void hdr_set_counts(uint8_t *out, uint32_t n_ops, uint32_t n_keys, uint32_t data_bytes)
{
	struct wire_hdr hdr;

	memcpy(&hdr, out, sizeof(hdr));
	hdr.n_ops = htole32(n_ops);
	hdr.n_keys = htole32(n_keys);
	hdr.data_bytes = htole32(data_bytes);
	memcpy(out, &hdr, sizeof(hdr));
}

void kvx_pack_begin(struct kvx_pack_writer *w, uint8_t *head, uint32_t max_ops, uint64_t max_bytes)
{
	w->head = head;
	w->max_ops = max_ops < KVX_PACK_MAX_OPS ? max_ops : KVX_PACK_MAX_OPS;
	w->max_bytes = max_bytes < UINT32_MAX ? max_bytes : UINT32_MAX;
	w->bytes = 0;
	w->n_ops = 0;
	w->n_keys = 0;
}

/* Index of key among the keys so far, or n_keys. The newest first: runs of ops share their key. */
static uint32_t writer_find_key(const struct kvx_pack_writer *w, const struct kvx_pack_key *key)
{
	for (uint32_t i = w->n_keys; i-- > 0;)
		if (w->keys[i].id == key->id && w->keys[i].nonce == key->nonce)
			return i;
	return w->n_keys;
}

int kvx_pack_add(struct kvx_pack_writer *w, const struct kvx_pack_key *key, uint64_t offset,
		 uint64_t len_bytes)
{
	struct kvx_pack_op op;
	uint32_t k;

	if (len_bytes == 0 || len_bytes > UINT32_MAX)
		return -EINVAL;
	if (w->n_ops == w->max_ops || len_bytes > w->max_bytes - w->bytes)
		return -ENOSPC;
	k = writer_find_key(w, key);
	if (k == w->n_keys) {
		if (k == KVX_PACK_MAX_KEYS)
			return -ENOSPC;
		w->keys[w->n_keys++] = *key;
	}
	op.offset = htole64(offset);
	op.len_bytes = htole32((uint32_t)len_bytes);
	op.key = htole32(k);
	memcpy(w->head + KVX_PACK_HDR_BYTES + (size_t)w->n_ops * KVX_PACK_OP_BYTES, &op,
	       sizeof(op));
	w->n_ops++;
	w->bytes += len_bytes;
	return 0;
}

uint32_t kvx_pack_end(struct kvx_pack_writer *w, enum kvx_pack_type type, uint64_t secret,
		      uint32_t id)
{
	uint32_t len = KVX_PACK_HDR_BYTES + w->n_ops * KVX_PACK_OP_BYTES;

	for (uint32_t i = 0; i < w->n_keys; i++) {
		struct kvx_pack_key key = {htole64(w->keys[i].id), htole64(w->keys[i].nonce)};

		memcpy(w->head + len, &key, sizeof(key));
		len += KVX_PACK_KEY_BYTES;
	}
	hdr_put(w->head, type, secret, id);
	hdr_set_counts(w->head, w->n_ops, w->n_keys, (uint32_t)w->bytes);
	return len;
}

uint32_t kvx_pack_hello(uint8_t out[KVX_PACK_HDR_BYTES + KVX_PACK_HELLO_BYTES], uint64_t secret,
			const struct kvx_pack_hello *hello)
{
	struct kvx_pack_hello wire = {
	    .queue = htole32(hello->queue),
	    .message_bytes = htole32(hello->message_bytes),
	    .max_ops = htole32(hello->max_ops),
	    .placed_ops = htole32(hello->placed_ops),
	};

	hdr_put(out, KVX_PACK_HELLO, secret, 0);
	memcpy(out + KVX_PACK_HDR_BYTES, &wire, sizeof(wire));
	return KVX_PACK_HDR_BYTES + KVX_PACK_HELLO_BYTES;
}

uint32_t kvx_pack_acks(uint8_t *out, size_t out_bytes, uint64_t secret,
		       const struct kvx_pack_ack *acks, uint32_t n_acks)
{
	size_t len = KVX_PACK_HDR_BYTES + (size_t)n_acks * KVX_PACK_ACK_BYTES;

	if (len > out_bytes || len > KVX_PACK_HEAD_BYTES)
		return 0;
	hdr_put(out, KVX_PACK_ACK, secret, 0);
	hdr_set_counts(out, n_acks, 0, 0);
	for (uint32_t i = 0; i < n_acks; i++) {
		struct kvx_pack_ack ack = {htole32(acks[i].id), htole32(acks[i].status)};

		memcpy(out + KVX_PACK_HDR_BYTES + (size_t)i * KVX_PACK_ACK_BYTES, &ack,
		       sizeof(ack));
	}
	return (uint32_t)len;
}

uint32_t kvx_pack_data(uint8_t out[KVX_PACK_HDR_BYTES], enum kvx_pack_type type, uint64_t secret,
		       uint32_t id, uint32_t data_bytes)
{
	hdr_put(out, type, secret, id);
	hdr_set_counts(out, 0, 0, data_bytes);
	return KVX_PACK_HDR_BYTES;
}

void kvx_pack_join(uint8_t *head)
{
	struct wire_hdr hdr;

	memcpy(&hdr, head, sizeof(hdr));
	kvx_assert(hdr.type == KVX_PACK_WRITE_AHEAD || hdr.type == KVX_PACK_DATA_AHEAD);
	hdr.type = hdr.type == KVX_PACK_WRITE_AHEAD ? KVX_PACK_WRITE : KVX_PACK_DATA;
	memcpy(head, &hdr, sizeof(hdr));
}

void kvx_pack_get_op(const struct kvx_pack_msg *msg, uint32_t i, struct kvx_pack_op *out_op)
{
	struct kvx_pack_op op;

	kvx_assert(i < msg->n_ops);
	memcpy(&op, msg->ops + (size_t)i * KVX_PACK_OP_BYTES, sizeof(op));
	out_op->offset = le64toh(op.offset);
	out_op->len_bytes = le32toh(op.len_bytes);
	out_op->key = le32toh(op.key);
}

void kvx_pack_get_key(const struct kvx_pack_msg *msg, uint32_t key, struct kvx_pack_key *out_key)
{
	struct kvx_pack_key wire;

	kvx_assert(key < msg->n_keys);
	memcpy(&wire, msg->keys + (size_t)key * KVX_PACK_KEY_BYTES, sizeof(wire));
	out_key->id = le64toh(wire.id);
	out_key->nonce = le64toh(wire.nonce);
}

void kvx_pack_get_ack(const struct kvx_pack_msg *msg, uint32_t i, struct kvx_pack_ack *out_ack)
{
	struct kvx_pack_ack ack;

	kvx_assert(i < msg->n_ops);
	memcpy(&ack, msg->ops + (size_t)i * KVX_PACK_ACK_BYTES, sizeof(ack));
	out_ack->id = le32toh(ack.id);
	out_ack->status = le32toh(ack.status);
}

/* Ops and keys of a WRITE, WRITE_AHEAD or READ. The counts are bounded before they are multiplied.
 */
static int decode_request(const uint8_t *buf, size_t len, struct kvx_pack_msg *msg)
{
	size_t head;
	uint64_t sum = 0;

	if (msg->n_ops == 0 || msg->n_ops > KVX_PACK_MAX_OPS || msg->n_keys == 0 ||
	    msg->n_keys > KVX_PACK_MAX_KEYS)
		return -EPROTO;
	msg->ops = buf + KVX_PACK_HDR_BYTES;
	msg->keys = msg->ops + (size_t)msg->n_ops * KVX_PACK_OP_BYTES;
	head = KVX_PACK_HDR_BYTES + (size_t)msg->n_ops * KVX_PACK_OP_BYTES +
	       (size_t)msg->n_keys * KVX_PACK_KEY_BYTES;
	if (len < head)
		return -EPROTO;
	if (msg->type == KVX_PACK_WRITE) {
		msg->data = buf + head;
		head += msg->data_bytes;
	}
	if (len != head)
		return -EPROTO;
	for (uint32_t i = 0; i < msg->n_ops; i++) {
		struct kvx_pack_op op;

		kvx_pack_get_op(msg, i, &op);
		if (op.len_bytes == 0 || op.key >= msg->n_keys)
			return -EPROTO;
		sum += op.len_bytes;
	}
	return sum == msg->data_bytes ? 0 : -EPROTO;
}

static int decode_hello(const uint8_t *buf, size_t len, struct kvx_pack_msg *msg)
{
	struct kvx_pack_hello wire;

	if (len != KVX_PACK_HDR_BYTES + KVX_PACK_HELLO_BYTES || msg->n_ops != 0 ||
	    msg->n_keys != 0 || msg->data_bytes != 0)
		return -EPROTO;
	memcpy(&wire, buf + KVX_PACK_HDR_BYTES, sizeof(wire));
	msg->hello.queue = le32toh(wire.queue);
	msg->hello.message_bytes = le32toh(wire.message_bytes);
	msg->hello.max_ops = le32toh(wire.max_ops);
	msg->hello.placed_ops = le32toh(wire.placed_ops);
	if (msg->hello.queue == 0 || msg->hello.message_bytes == 0 || msg->hello.max_ops == 0)
		return -EPROTO;
	return 0;
}

static int decode_body(const uint8_t *buf, size_t len, struct kvx_pack_msg *msg)
{
	switch (msg->type) {
	case KVX_PACK_HELLO:
		return decode_hello(buf, len, msg);
	case KVX_PACK_WRITE:
	case KVX_PACK_WRITE_AHEAD:
	case KVX_PACK_READ:
		return decode_request(buf, len, msg);
	case KVX_PACK_DATA:
		if (msg->n_ops != 0 || msg->n_keys != 0 || msg->data_bytes == 0 ||
		    len - KVX_PACK_HDR_BYTES != msg->data_bytes)
			return -EPROTO;
		msg->data = buf + KVX_PACK_HDR_BYTES;
		return 0;
	case KVX_PACK_DATA_AHEAD:
		if (msg->n_ops != 0 || msg->n_keys != 0 || msg->data_bytes == 0 ||
		    len != KVX_PACK_HDR_BYTES)
			return -EPROTO;
		return 0;
	case KVX_PACK_ACK:
		if (msg->n_ops == 0 || msg->n_keys != 0 || msg->data_bytes != 0 ||
		    len - KVX_PACK_HDR_BYTES != (uint64_t)msg->n_ops * KVX_PACK_ACK_BYTES)
			return -EPROTO;
		msg->ops = buf + KVX_PACK_HDR_BYTES;
		return 0;
	}
	return -EPROTO;
}

int kvx_pack_decode(const void *buf, size_t len, struct kvx_pack_msg *out_msg)
{
	struct kvx_pack_msg msg = {0};
	struct wire_hdr hdr;
	int rc;

	if (len < sizeof(hdr))
		return -EPROTO;
	memcpy(&hdr, buf, sizeof(hdr));
	if (le16toh(hdr.magic) != PACK_MAGIC || hdr.version != PACK_VERSION || hdr.zero != 0)
		return -EPROTO;
	msg.type = (enum kvx_pack_type)hdr.type;
	msg.id = le32toh(hdr.id);
	msg.secret = le64toh(hdr.secret);
	msg.n_ops = le32toh(hdr.n_ops);
	msg.n_keys = le32toh(hdr.n_keys);
	msg.data_bytes = le32toh(hdr.data_bytes);
	rc = decode_body(buf, len, &msg);
	if (rc == 0)
		*out_msg = msg;
	return rc;
}
