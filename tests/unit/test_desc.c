/* Descriptors: what is packed is unpacked, and nothing else is. */
#include "xfer/desc.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "test_end.h"

static void fill(struct kvx_desc *desc, unsigned seed)
{
	memset(desc, 0, sizeof(*desc));
	srand(seed);
	for (unsigned i = 0; i < KVX_NODE_ID_BYTES; i++)
		desc->node_id[i] = (uint8_t)rand();
	for (unsigned i = 0; i < KVX_TOKEN_BYTES; i++)
		desc->token[i] = (uint8_t)rand();
	desc->epoch = (uint64_t)rand() << 32 | (unsigned)rand();
	desc->region = 1 + ((uint64_t)rand() << 32 | (unsigned)rand());
	desc->len_bytes = 1 + (uint64_t)rand();
	desc->access = (uint32_t)rand() & 3;
	desc->mem_kind = 1 + ((uint32_t)rand() & 3);
	unsigned n = (unsigned)rand() % KVX_PEER_ADDR_BYTES;
	for (unsigned i = 0; i < n; i++)
		desc->addr[i] = (char)('a' + rand() % 26);
}

Test(desc, round_trip_gives_the_same)
{
	for (unsigned seed = 0; seed < 500; seed++) {
		struct kvx_desc in, out;
		uint8_t bytes[KVX_DESC_BYTES];
		fill(&in, seed);
		kvx_desc_pack(&in, bytes);
		cr_assert_eq(kvx_desc_unpack(bytes, sizeof(bytes), &out, NULL), 0);
		cr_assert_arr_eq(&in, &out, sizeof(in));
	}
	KVX_TEST_END();
}

/* The wire format, pinned: these offsets are read by other releases. */
Test(desc, bytes_are_little_endian_at_fixed_offsets)
{
	struct kvx_desc in = {.epoch = 0x0102030405060708ull,
			      .region = 0x1112131415161718ull,
			      .len_bytes = 0x21,
			      .access = 3,
			      .mem_kind = 1,
			      .addr = "h:1"};
	uint8_t bytes[KVX_DESC_BYTES];
	kvx_desc_pack(&in, bytes);
	cr_assert_arr_eq(bytes, "KVXD\x01\x00\xe0\x00", 8);
	cr_assert_arr_eq(bytes + 24, "\x08\x07\x06\x05\x04\x03\x02\x01", 8);
	cr_assert_arr_eq(bytes + 32, "\x18\x17\x16\x15\x14\x13\x12\x11", 8);
	cr_assert_arr_eq(bytes + 72, "h:1\0", 4);
	KVX_TEST_END();
}

Test(desc, every_single_bit_of_damage_is_found)
{
	struct kvx_desc in, out;
	uint8_t bytes[KVX_DESC_BYTES];
	struct kvx_why why;
	fill(&in, 7);
	kvx_desc_pack(&in, bytes);
	memset(&out, 0x5a, sizeof(out));
	for (unsigned bit = 0; bit < KVX_DESC_BYTES * 8; bit++) {
		bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
		why.text[0] = '\0';
		cr_assert_eq(kvx_desc_unpack(bytes, sizeof(bytes), &out, &why), -EINVAL, "bit %u",
			     bit);
		cr_assert_neq(why.text[0], '\0');
		bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	cr_assert_eq(((uint8_t *)&out)[0], 0x5a); /* written only on success */
	KVX_TEST_END();
}

Test(desc, every_other_length_is_refused)
{
	struct kvx_desc in, out;
	uint8_t *bytes = calloc(1, KVX_DESC_BYTES + 8);
	fill(&in, 8);
	kvx_desc_pack(&in, bytes);
	for (size_t len = 0; len < KVX_DESC_BYTES + 8; len++) {
		uint8_t *exact = malloc(len > 0 ? len : 1); /* reads beyond len are found by ASan */
		memcpy(exact, bytes, len);
		cr_assert_eq(kvx_desc_unpack(exact, len, &out, NULL),
			     len == KVX_DESC_BYTES ? 0 : -EINVAL);
		free(exact);
	}
	free(bytes);
	KVX_TEST_END();
}

Test(desc, other_version_is_said)
{
	struct kvx_desc in, out;
	uint8_t bytes[KVX_DESC_BYTES];
	struct kvx_why why = {""};
	fill(&in, 9);
	kvx_desc_pack(&in, bytes);
	bytes[4] = 2;
	cr_assert_eq(kvx_desc_unpack(bytes, sizeof(bytes), &out, &why), -EINVAL);
	cr_assert_not_null(strstr(why.text, "version 2"));
	KVX_TEST_END();
}

Test(desc, random_bytes_are_refused)
{
	struct kvx_desc out;
	uint8_t bytes[KVX_DESC_BYTES];
	srand(11);
	for (unsigned round = 0; round < 20000; round++) {
		for (unsigned i = 0; i < sizeof(bytes); i++)
			bytes[i] = (uint8_t)rand();
		if (round % 2)
			memcpy(bytes, "KVXD\x01\x00\xe0\x00", 8);
		cr_assert_eq(kvx_desc_unpack(bytes, sizeof(bytes), &out, NULL), -EINVAL);
	}
	KVX_TEST_END();
}
