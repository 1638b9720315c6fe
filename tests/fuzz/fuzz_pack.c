/* The decoder of packed messages: whatever comes, nothing outside of it is read, and what decodes
 * holds what it says: each op has bytes, a key that is there, and the ops add up to the data. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "transport/pack.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(int condition)
{
	if (!condition)
		abort();
}

static void check_request(const struct kvx_pack_msg *msg, const uint8_t *end)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < msg->n_ops; i++) {
		struct kvx_pack_op op;
		struct kvx_pack_key key;

		kvx_pack_get_op(msg, i, &op);
		expect(op.len_bytes > 0 && op.key < msg->n_keys);
		kvx_pack_get_key(msg, op.key, &key);
		sum += op.len_bytes;
	}
	expect(sum == msg->data_bytes);
	if (msg->type == KVX_PACK_WRITE)
		expect(msg->data + msg->data_bytes == end);
}

/* Encoding what was decoded gives the same head, if its keys are in the order of their first use.
 */
static void check_again(const struct kvx_pack_msg *msg, const uint8_t *buf)
{
	uint8_t head[KVX_PACK_HEAD_BYTES];
	struct kvx_pack_writer w;
	struct kvx_pack_msg again;
	uint32_t len;

	kvx_pack_begin(&w, head, msg->n_ops, msg->data_bytes);
	for (uint32_t i = 0; i < msg->n_ops; i++) {
		struct kvx_pack_op op;
		struct kvx_pack_key key;

		kvx_pack_get_op(msg, i, &op);
		kvx_pack_get_key(msg, op.key, &key);
		expect(kvx_pack_add(&w, &key, op.offset, op.len_bytes) == 0);
	}
	len = kvx_pack_end(&w, KVX_PACK_READ, msg->secret, msg->id);
	expect(kvx_pack_decode(head, len, &again) == 0);
	expect(again.n_ops == msg->n_ops && again.n_keys <= msg->n_keys);
	expect(again.data_bytes == msg->data_bytes);
	expect(memcmp(again.ops, buf + KVX_PACK_HDR_BYTES, 12) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kvx_pack_msg msg;
	uint64_t sum = 0;

	if (kvx_pack_decode(data, size, &msg) != 0)
		return 0;
	switch (msg.type) {
	case KVX_PACK_WRITE:
	case KVX_PACK_WRITE_AHEAD:
	case KVX_PACK_READ:
		check_request(&msg, data + size);
		check_again(&msg, data);
		break;
	case KVX_PACK_ACK:
		for (uint32_t i = 0; i < msg.n_ops; i++) {
			struct kvx_pack_ack ack;

			kvx_pack_get_ack(&msg, i, &ack);
			sum += ack.status;
		}
		break;
	case KVX_PACK_DATA:
		expect(msg.data + msg.data_bytes == data + size);
		for (uint32_t i = 0; i < msg.data_bytes; i++)
			sum += msg.data[i];
		break;
	case KVX_PACK_DATA_AHEAD:
		expect(msg.data == NULL && msg.data_bytes > 0);
		break;
	case KVX_PACK_HELLO:
		expect(msg.hello.queue > 0 && msg.hello.message_bytes > 0);
		break;
	}
	return sum == UINT64_MAX;
}
