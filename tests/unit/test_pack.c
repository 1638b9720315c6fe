/* The packed-message format: what the encoder writes the decoder reads back, and nothing else. */
#include "transport/pack.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "test_end.h"

#define SECRET 0x1122334455667788ull

static const struct kvx_pack_key key_a = {7, 0xaaaa};
static const struct kvx_pack_key key_b = {8, 0xbbbb};

/* A WRITE of two ops, 3 and 5 bytes; returns its length. */
static size_t make_write(uint8_t *buf)
{
	struct kvx_pack_writer w;
	uint32_t head;

	kvx_pack_begin(&w, buf, KVX_PACK_MAX_OPS, 1000);
	cr_assert_eq(kvx_pack_add(&w, &key_a, 100, 3), 0);
	cr_assert_eq(kvx_pack_add(&w, &key_b, UINT64_MAX, 5), 0);
	head = kvx_pack_end(&w, KVX_PACK_WRITE, SECRET, 42);
	memcpy(buf + head, "abcdefgh", 8);
	return head + 8;
}

Test(pack, write_comes_back_as_it_was)
{
	uint8_t buf[KVX_PACK_HEAD_BYTES + 8];
	size_t len = make_write(buf);
	struct kvx_pack_msg msg;
	struct kvx_pack_op op;
	struct kvx_pack_key key;

	cr_assert_eq(kvx_pack_decode(buf, len, &msg), 0);
	cr_assert_eq(msg.type, KVX_PACK_WRITE);
	cr_assert_eq(msg.secret, SECRET);
	cr_assert_eq(msg.id, 42);
	cr_assert_eq(msg.n_ops, 2);
	cr_assert_eq(msg.n_keys, 2);
	cr_assert_eq(msg.data_bytes, 8);
	cr_assert_arr_eq(msg.data, "abcdefgh", 8);
	kvx_pack_get_op(&msg, 1, &op);
	cr_assert_eq(op.offset, UINT64_MAX);
	cr_assert_eq(op.len_bytes, 5);
	kvx_pack_get_key(&msg, op.key, &key);
	cr_assert_eq(key.id, key_b.id);
	cr_assert_eq(key.nonce, key_b.nonce);
	KVX_TEST_END();
}

Test(pack, read_carries_no_data)
{
	uint8_t buf[KVX_PACK_HEAD_BYTES];
	struct kvx_pack_writer w;
	struct kvx_pack_msg msg;
	uint32_t len;

	kvx_pack_begin(&w, buf, 4, 1000);
	cr_assert_eq(kvx_pack_add(&w, &key_a, 0, 1000), 0);
	len = kvx_pack_end(&w, KVX_PACK_READ, SECRET, 1);
	cr_assert_eq(kvx_pack_decode(buf, len, &msg), 0);
	cr_assert_eq(msg.data_bytes, 1000);
	cr_assert_null(msg.data);
	len = kvx_pack_end(&w, KVX_PACK_WRITE_AHEAD, SECRET, 1);
	cr_assert_eq(kvx_pack_decode(buf, len, &msg), 0);
	cr_assert_null(msg.data);
	KVX_TEST_END();
}

Test(pack, same_key_is_sent_once)
{
	uint8_t buf[KVX_PACK_HEAD_BYTES];
	struct kvx_pack_writer w;

	kvx_pack_begin(&w, buf, KVX_PACK_MAX_OPS, 1 << 20);
	for (unsigned i = 0; i < 100; i++)
		cr_assert_eq(kvx_pack_add(&w, i % 2 ? &key_a : &key_b, i * 64, 64), 0);
	cr_assert_eq(w.n_keys, 2);
	cr_assert_eq(kvx_pack_end(&w, KVX_PACK_READ, SECRET, 1),
		     KVX_PACK_HDR_BYTES + 100 * KVX_PACK_OP_BYTES + 2 * KVX_PACK_KEY_BYTES);
	KVX_TEST_END();
}

Test(pack, largest_head_fits_its_buffer)
{
	uint8_t buf[KVX_PACK_HEAD_BYTES];
	struct kvx_pack_writer w;
	struct kvx_pack_msg msg;
	uint32_t n = 0, len;

	kvx_pack_begin(&w, buf, UINT32_MAX, UINT64_MAX);
	while (1) {
		struct kvx_pack_key key = {n < KVX_PACK_MAX_KEYS ? n : 0, 1};

		if (kvx_pack_add(&w, &key, n, 1) == -ENOSPC)
			break;
		n++;
	}
	cr_assert_eq(n, KVX_PACK_MAX_OPS);
	len = kvx_pack_end(&w, KVX_PACK_READ, SECRET, 1);
	cr_assert_leq(len, KVX_PACK_HEAD_BYTES);
	cr_assert_eq(kvx_pack_decode(buf, len, &msg), 0);
	KVX_TEST_END();
}

Test(pack, op_that_does_not_fit_is_not_added)
{
	uint8_t buf[KVX_PACK_HEAD_BYTES];
	struct kvx_pack_writer w;

	kvx_pack_begin(&w, buf, 2, 100);
	cr_assert_eq(kvx_pack_add(&w, &key_a, 0, 101), -ENOSPC);
	cr_assert_eq(kvx_pack_add(&w, &key_a, 0, 0), -EINVAL);
	cr_assert_eq(kvx_pack_add(&w, &key_a, 0, 1ull << 32), -EINVAL);
	cr_assert_eq(kvx_pack_add(&w, &key_a, 0, 60), 0);
	cr_assert_eq(kvx_pack_add(&w, &key_a, 0, 41), -ENOSPC);
	cr_assert_eq(kvx_pack_add(&w, &key_a, 0, 40), 0);
	cr_assert_eq(w.n_ops, 2);
	cr_assert_eq(w.bytes, 100);
	KVX_TEST_END();
}

Test(pack, too_many_keys_end_the_message)
{
	uint8_t buf[KVX_PACK_HEAD_BYTES];
	struct kvx_pack_writer w;

	kvx_pack_begin(&w, buf, KVX_PACK_MAX_OPS, 1000);
	for (uint64_t i = 0; i < KVX_PACK_MAX_KEYS; i++) {
		struct kvx_pack_key key = {i, i};

		cr_assert_eq(kvx_pack_add(&w, &key, 0, 1), 0);
	}
	cr_assert_eq(kvx_pack_add(&w, &(struct kvx_pack_key){99, 99}, 0, 1), -ENOSPC);
	cr_assert_eq(kvx_pack_add(&w, &(struct kvx_pack_key){3, 3}, 0, 1), 0);
	KVX_TEST_END();
}

Test(pack, acks_hello_and_data_come_back)
{
	uint8_t buf[KVX_PACK_HEAD_BYTES];
	struct kvx_pack_ack acks[3] = {{1, 0}, {0xffffffff, 7}, {5, 22}};
	struct kvx_pack_hello hello = {16, 262144, 200, 0};
	struct kvx_pack_ack ack;
	struct kvx_pack_msg msg;
	uint32_t len;

	len = kvx_pack_acks(buf, sizeof(buf), SECRET, acks, 3);
	cr_assert_eq(kvx_pack_decode(buf, len, &msg), 0);
	cr_assert_eq(msg.n_ops, 3);
	kvx_pack_get_ack(&msg, 1, &ack);
	cr_assert_eq(ack.id, 0xffffffff);
	cr_assert_eq(ack.status, 7);
	cr_assert_eq(kvx_pack_acks(buf, 32 + 23, SECRET, acks, 3), 0, "does not fit");

	len = kvx_pack_hello(buf, SECRET, &hello);
	cr_assert_eq(kvx_pack_decode(buf, len, &msg), 0);
	cr_assert_eq(msg.hello.queue, 16);
	cr_assert_eq(msg.hello.message_bytes, 262144);
	cr_assert_eq(msg.hello.max_ops, 200);

	len = kvx_pack_data(buf, KVX_PACK_DATA, SECRET, 9, 4);
	memcpy(buf + len, "wxyz", 4);
	cr_assert_eq(kvx_pack_decode(buf, len + 4, &msg), 0);
	cr_assert_eq(msg.id, 9);
	cr_assert_arr_eq(msg.data, "wxyz", 4);

	len = kvx_pack_data(buf, KVX_PACK_DATA_AHEAD, SECRET, 9, 1 << 20);
	cr_assert_eq(kvx_pack_decode(buf, len, &msg), 0);
	cr_assert_eq(msg.data_bytes, 1 << 20);
	cr_assert_null(msg.data);
	cr_assert_eq(kvx_pack_decode(buf, len + 1, &msg), -EPROTO, "its data comes alone");
	KVX_TEST_END();
}

/* Each length but the right one, in a buffer of exactly that size so that a sanitizer sees a read
 * past it. */
Test(pack, any_other_length_is_refused)
{
	uint8_t whole[KVX_PACK_HEAD_BYTES + 8];
	size_t len = make_write(whole);
	struct kvx_pack_msg msg;

	for (size_t n = 0; n < len; n++) {
		uint8_t *cut = malloc(n + 1);

		memcpy(cut, whole, n);
		cr_assert_eq(kvx_pack_decode(cut, n, &msg), -EPROTO, "%zu of %zu", n, len);
		free(cut);
	}
	cr_assert_eq(kvx_pack_decode(whole, len + 1, &msg), -EPROTO);
	KVX_TEST_END();
}

/* Fields of the header at their offsets, and of the first op, set to what cannot be. */
Test(pack, inconsistent_messages_are_refused)
{
	static const struct {
		const char *what;
		size_t offset;
		uint32_t value;
	} cases[] = {
	    {"magic and version", 0, 0},
	    {"type 99", 0, 0x6301584b},
	    {"version 2", 0, 0x0202584b},
	    {"no ops", 4, 0},
	    {"one op less", 4, 1},
	    {"one op more", 4, 3},
	    {"ops that wrap", 4, 0x10000000},
	    {"no keys", 20, 0},
	    {"keys that wrap", 20, 0x10000000},
	    {"one key less", 20, 1},
	    {"data less", 24, 7},
	    {"data more", 24, 9},
	    {"all data", 24, 0xffffffff},
	    {"last field", 28, 1},
	    {"op without bytes", 32 + 8, 0},
	    {"op of all bytes", 32 + 8, 0xffffffff},
	    {"key that is not there", 32 + 12, 2},
	};
	uint8_t good[KVX_PACK_HEAD_BYTES + 8];
	size_t len = make_write(good);
	struct kvx_pack_msg msg;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint8_t bad[sizeof(good)];

		memcpy(bad, good, len);
		memcpy(bad + cases[i].offset, &cases[i].value, 4);
		cr_assert_eq(kvx_pack_decode(bad, len, &msg), -EPROTO, "%s", cases[i].what);
	}
	KVX_TEST_END();
}

Test(pack, ack_count_must_match_its_length)
{
	uint8_t buf[64];
	struct kvx_pack_ack acks[2] = {{1, 0}, {2, 0}};
	uint32_t len = kvx_pack_acks(buf, sizeof(buf), SECRET, acks, 2);
	uint32_t huge = 0x20000002; /* times 8 wraps to the right length in 32 bits */
	struct kvx_pack_msg msg;

	memcpy(buf + 4, &huge, 4);
	cr_assert_eq(kvx_pack_decode(buf, len, &msg), -EPROTO);
	KVX_TEST_END();
}
