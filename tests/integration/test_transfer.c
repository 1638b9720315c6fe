/* What transfers do when all goes well: every mode, on one node and between two, byte for byte. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pair.h"

#define WAIT_MS 10000

#define ON_BOTH_PATHS(name)                                                                        \
	static void name(bool cross);                                                              \
	Test(transfer, name##_same_node)                                                           \
	{                                                                                          \
		name(false);                                                                       \
	}                                                                                          \
	Test(transfer, name##_two_nodes)                                                           \
	{                                                                                          \
		name(true);                                                                        \
	}                                                                                          \
	static void name(bool cross)

/* Scattered, and different on the two sides: local block i is 2i + 1, remote block is n - 1 - 3i.
 */
static void scatter(uint32_t *local, uint32_t *remote, uint32_t n, uint32_t n_blocks)
{
	for (uint32_t i = 0; i < n; i++) {
		local[i] = (2 * i + 1) % n_blocks;
		remote[i] = n_blocks - 1 - (3 * i) % n_blocks;
	}
}

/* dst's blocks to[i] of planes [first, +n_planes) hold src's from[i]; all else is canary. */
static void check_blocks(struct test_engine *dst, uint32_t first, uint32_t n_planes,
			 const uint32_t *to, const uint32_t *from, uint32_t n)
{
	for (uint32_t p = 0; p < dst->n_planes; p++) {
		for (uint32_t b = 0; b < dst->n_blocks; b++) {
			uint32_t i = 0;

			while (i < n && to[i] != b)
				i++;
			if (i < n && p >= first && p < first + n_planes)
				cr_assert(test_block_is(dst, 1, p, b, from[i]), "plane %u block %u",
					  p, b);
			else
				cr_assert(test_block_is_canary(dst, p, b),
					  "plane %u block %u touched", p, b);
		}
	}
}

static void expect_ok(const struct pair *p, const struct test_event *ev, uint64_t bytes)
{
	cr_assert_eq(ev->status, KVXFER_OK, "%s %s", kvxfer_status_name(ev->status), ev->text);
	cr_assert_eq(ev->bytes, bytes);
	cr_assert_str_eq(ev->transport, pair_transport(p));
}

ON_BOTH_PATHS(write_block_list_arrives_with_tag_and_payload)
{
	static struct pair p;
	uint32_t local[8], remote[8];
	struct kvxfer_blocks blocks = {.local_plane = 1,
				       .remote_plane = 1,
				       .n_planes = 3,
				       .n_blocks = 8,
				       .local_blocks = local,
				       .remote_blocks = remote};
	struct kvxfer_transfer t;
	struct test_event ev;
	uint64_t id = 0;

	pair_open(&p, cross, NULL, 5, 32, 4096);
	scatter(local, remote, 8, 32);
	t = pair_write(&p);
	t.blocks = &blocks;
	t.tag = 0xfeedfacecafef00dull;
	t.payload = "done 17";
	t.payload_bytes = 8;
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
	ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	expect_ok(&p, &ev, 3 * 8 * 4096);
	cr_assert_eq(ev.tag, t.tag);
	ev = test_wait(&p.decode, KVXFER_EVENT_ARRIVAL, t.tag, WAIT_MS);
	expect_ok(&p, &ev, 3 * 8 * 4096);
	cr_assert_eq(ev.op, KVXFER_WRITE);
	cr_assert_eq(ev.region, p.decode.region);
	cr_assert_eq(ev.payload_bytes, 8);
	cr_assert_arr_eq(ev.payload, "done 17", 8);
	check_blocks(&p.decode, 1, 3, remote, local, 8);
	pair_close(&p);
}

ON_BOTH_PATHS(read_block_list_pulls_and_tells_the_owner)
{
	static struct pair p;
	uint32_t local[8], remote[8];
	struct kvxfer_blocks blocks = {
	    .n_planes = 5, .n_blocks = 8, .local_blocks = local, .remote_blocks = remote};
	struct kvxfer_transfer t;
	struct test_event ev;
	uint64_t id = 0;

	pair_open(&p, cross, NULL, 5, 32, 16384);
	scatter(local, remote, 8, 32);
	t = pair_read(&p);
	t.blocks = &blocks;
	t.tag = 7;
	cr_assert_eq(kvxfer_transfer_submit(p.decode.client, &t, &id), 0);
	ev = test_wait(&p.decode, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	expect_ok(&p, &ev, 5 * 8 * 16384);
	ev = test_wait(&p.prefill, KVXFER_EVENT_ARRIVAL, 7, WAIT_MS);
	expect_ok(&p, &ev, 5 * 8 * 16384);
	cr_assert_eq(ev.op, KVXFER_READ);
	check_blocks(&p.decode, 0, 5, local, remote, 8);
	pair_close(&p);
}

ON_BOTH_PATHS(explicit_ops_move_exactly_their_bytes)
{
	static struct pair p;
	uint64_t local[3] = {5, 70000, 4096}, remote[3] = {1, 90001, 300000},
		 lens[3] = {1, 12345, 65536};
	struct kvxfer_ops ops = {
	    .n_ops = 3, .local_offsets = local, .remote_offsets = remote, .lens = lens};
	struct kvxfer_transfer t;
	struct test_event ev;
	uint8_t *want;
	uint64_t id = 0;

	pair_open(&p, cross, NULL, 2, 64, 4096);
	want = malloc(p.decode.bytes);
	memset(want, TEST_CANARY, p.decode.bytes);
	for (int i = 0; i < 3; i++)
		memcpy(want + remote[i], p.prefill.data + local[i], lens[i]);
	t = pair_write(&p);
	t.ops = &ops;
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
	ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	expect_ok(&p, &ev, 1 + 12345 + 65536);
	cr_assert_eq(memcmp(want, p.decode.data, p.decode.bytes), 0);
	free(want);
	pair_close(&p);
}

ON_BOTH_PATHS(large_ops_with_one_length)
{
	static struct pair p;
	uint64_t local[2] = {0, 8u << 20}, remote[2] = {4u << 20, 16u << 20};
	struct kvxfer_ops ops = {
	    .n_ops = 2, .local_offsets = local, .remote_offsets = remote, .len = 4u << 20};
	struct kvxfer_transfer t;
	struct test_event ev;
	uint64_t id = 0;

	pair_open(&p, cross, NULL, 1, 32, 1u << 20);
	t = pair_read(&p);
	t.ops = &ops;
	cr_assert_eq(kvxfer_transfer_submit(p.decode.client, &t, &id), 0);
	ev = test_wait(&p.decode, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	expect_ok(&p, &ev, 8u << 20);
	for (int i = 0; i < 2; i++)
		cr_assert_eq(memcmp(p.decode.data + local[i], p.prefill.data + remote[i], ops.len),
			     0);
	cr_assert(test_block_is_canary(&p.decode, 0, 4));
	pair_close(&p);
}

/* Prefill holds 8 heads of 64 B per token, decode only heads 2..3 (TP1 to TP4): 16 tokens a block.
 */
ON_BOTH_PATHS(slices_pick_heads_out_of_every_token)
{
	static struct pair p;
	uint32_t local[2] = {3, 1}, remote[2] = {0, 2};
	struct kvxfer_slice slice = {.local_offset = 2 * 64,
				     .remote_offset = 0,
				     .bytes = 128,
				     .count = 16,
				     .local_stride = 8 * 64,
				     .remote_stride = 128};
	struct kvxfer_blocks blocks = {.n_planes = 2,
				       .n_blocks = 2,
				       .local_blocks = local,
				       .remote_blocks = remote,
				       .slice = &slice};
	static struct test_engine narrow;
	struct kvxfer_transfer t;
	struct test_event ev;
	uint64_t id = 0;

	pair_open(&p, cross, NULL, 2, 4, 16 * 8 * 64);
	test_engine_open(&narrow, pair_node(&p, 1), "narrow", 2, 4, 16 * 128, KVXFER_ACCESS_WRITE);
	t = pair_write(&p);
	t.import_ = test_engine_import(&p.prefill, &narrow);
	t.blocks = &blocks;
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
	ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	expect_ok(&p, &ev, 2 * 2 * 16 * 128);
	for (uint32_t plane = 0; plane < 2; plane++) {
		for (int b = 0; b < 2; b++)
			for (uint64_t token = 0; token < 16; token++)
				cr_assert_eq(
				    memcmp(test_block(&narrow, plane, remote[b]) + token * 128,
					   test_block(&p.prefill, plane, local[b]) + token * 512 +
					       128,
					   128),
				    0);
		cr_assert(test_block_is_canary(&narrow, plane, 1));
		cr_assert(test_block_is_canary(&narrow, plane, 3));
	}
	test_engine_close(&narrow);
	pair_close(&p);
}

ON_BOTH_PATHS(streaming_layer_by_layer_ends_once)
{
	static struct pair p;
	uint32_t local[4] = {0, 5, 2, 7}, remote[4] = {9, 1, 8, 3};
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 4, .local_blocks = local, .remote_blocks = remote};
	struct kvxfer_transfer t;
	struct test_event ev;
	uint64_t id = 0;

	pair_open(&p, cross, NULL, 12, 10, 8192);
	t = pair_write(&p);
	t.streaming = 1;
	t.tag = 99;
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
	for (uint32_t layer = 0; layer < 12; layer++) {
		blocks.local_plane = blocks.remote_plane = layer;
		cr_assert_eq(kvxfer_transfer_append(p.prefill.client, id, &blocks, NULL), 0);
	}
	cr_assert_not(test_wait_maybe(&p.prefill, KVXFER_EVENT_TERMINAL, id, 100, &ev),
		      "ended before its seal");
	cr_assert_eq(kvxfer_transfer_seal(p.prefill.client, id, "sealed", 6), 0);
	ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	expect_ok(&p, &ev, 12 * 4 * 8192);
	ev = test_wait(&p.decode, KVXFER_EVENT_ARRIVAL, 99, WAIT_MS);
	cr_assert_eq(ev.payload_bytes, 6);
	check_blocks(&p.decode, 0, 12, remote, local, 4);
	cr_assert_eq(kvxfer_transfer_append(p.prefill.client, id, &blocks, NULL), -ENOENT);
	cr_assert_not(test_wait_maybe(&p.prefill, KVXFER_EVENT_TERMINAL, 0, 100, &ev),
		      "a second terminal event");
	pair_close(&p);
}

ON_BOTH_PATHS(many_transfers_each_end_once)
{
	enum { N = 500 };
	static struct pair p;
	static bool ended[N + 1];
	struct kvxfer_transfer t;
	uint64_t first = 0;

	pair_open(&p, cross, NULL, 4, 64, 4096);
	for (uint32_t i = 0; i < N; i++) {
		uint32_t block = i % 64;
		struct kvxfer_blocks blocks = {
		    .n_planes = 4, .n_blocks = 1, .local_blocks = &block, .remote_blocks = &block};
		uint64_t id = 0;

		t = pair_write(&p);
		t.blocks = &blocks;
		t.tag = i + 1;
		cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
		first = i == 0 ? id : first;
	}
	for (uint32_t i = 0; i < N; i++) {
		struct test_event ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, 0, WAIT_MS);

		expect_ok(&p, &ev, 4 * 4096);
		cr_assert_not(ended[ev.tag]);
		ended[ev.tag] = true;
	}
	for (uint32_t i = 0; i < N; i++) {
		struct test_event ev = test_wait(&p.decode, KVXFER_EVENT_ARRIVAL, i + 1, WAIT_MS);

		cr_assert_eq(ev.status, KVXFER_OK);
	}
	for (uint32_t b = 0; b < 64; b++)
		cr_assert(test_block_is(&p.decode, 1, 3, b, b));
	pair_close(&p);
}

ON_BOTH_PATHS(messages_arrive_in_order)
{
	static struct pair p;

	pair_open(&p, cross, NULL, 1, 4, 4096);
	for (int i = 0; i < 50; i++)
		cr_assert_eq(kvxfer_message_send(p.to_decode, &i, sizeof(i)), 0, "%s",
			     kvxfer_client_error(p.prefill.client));
	for (int i = 0; i < 50; i++) {
		struct test_event ev = test_wait(&p.decode, KVXFER_EVENT_MESSAGE, 0, WAIT_MS);

		cr_assert_eq(ev.payload_bytes, sizeof(i));
		cr_assert_arr_eq(ev.payload, &i, sizeof(i));
		cr_assert_eq(ev.region, p.decode.region);
	}
	pair_close(&p);
}

ON_BOTH_PATHS(require_holds_or_refuses)
{
	static struct pair p;
	uint32_t block = 0;
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 1, .local_blocks = &block, .remote_blocks = &block};
	struct kvxfer_transfer t;
	struct test_event ev;
	uint64_t id = 0;

	pair_open(&p, cross, NULL, 1, 4, 4096);
	t = pair_write(&p);
	t.blocks = &blocks;
	t.require = pair_transport(&p);
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
	ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	expect_ok(&p, &ev, 4096);
	t.require = cross ? "copy" : "fabric";
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
	ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_NO_PATH, "%s", ev.text);
	cr_assert_neq(ev.text[0], '\0');
	pair_close(&p);
}

ON_BOTH_PATHS(layouts_are_compared_in_words)
{
	static struct pair p;
	static struct test_engine other;
	struct kvxfer_import_options opt = {.struct_bytes = sizeof(opt)};
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	struct kvxfer_import *import_ = NULL;
	int len;

	pair_open(&p, cross, NULL, 3, 4, 4096);
	test_engine_open(&other, pair_node(&p, 1), "other", 3, 4, 8192, KVXFER_ACCESS_WRITE);
	len = kvxfer_region_export(other.region, desc, sizeof(desc));
	opt.compare = p.prefill.region;
	cr_assert_eq(kvxfer_import_open(p.prefill.client, desc, (size_t)len, &opt, &import_),
		     -EMEDIUMTYPE);
	cr_assert_neq(
	    strstr(kvxfer_client_error(p.prefill.client), "block_bytes 4096 here, 8192 there"),
	    NULL, "%s", kvxfer_client_error(p.prefill.client));
	opt.compare = NULL;
	cr_assert_eq(kvxfer_import_open(p.prefill.client, desc, (size_t)len, &opt, &import_), 0);
	cr_assert_eq(kvxfer_import_planes(import_), 3);
	cr_assert_eq(kvxfer_import_bytes(import_), 3 * 4 * 8192);
	cr_assert_str_eq(kvxfer_import_transport(import_), pair_transport(&p));
	test_engine_close(&other);
	pair_close(&p);
}

/* A region without access bits, and one that may only be read. */
ON_BOTH_PATHS(access_bits_are_kept)
{
	static struct pair p;
	static struct test_engine closed, readable;
	uint32_t block = 0;
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 1, .local_blocks = &block, .remote_blocks = &block};
	struct kvxfer_transfer t;
	struct test_event ev;
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	uint64_t id = 0;

	pair_open(&p, cross, NULL, 1, 4, 4096);
	test_engine_open(&closed, pair_node(&p, 1), "closed", 1, 4, 4096, 0);
	test_engine_open(&readable, pair_node(&p, 1), "readable", 1, 4, 4096, KVXFER_ACCESS_READ);
	cr_assert_eq(kvxfer_region_export(closed.region, desc, sizeof(desc)), -EACCES);
	t = pair_write(&p);
	t.import_ = test_engine_import(&p.prefill, &readable);
	t.blocks = &blocks;
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
	ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_ACCESS, "%s", ev.text);
	cr_assert(test_block_is_canary(&readable, 0, 0));
	test_engine_close(&closed);
	test_engine_close(&readable);
	pair_close(&p);
}
