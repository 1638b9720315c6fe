/* What a client may ask for: counts, combinations, names; every refusal says what is wrong. */
#include "control/decode.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mem/region.h"
#include "test_end.h"

static struct kvx_config config;
static struct kvx_why why;

static void defaults(void)
{
	kvx_config_defaults(&config);
	config.blocks = 4;
	config.ops = 4;
	config.planes = 3;
}

static void refused(int rc, int want, const char *text)
{
	cr_assert_eq(rc, want, "%d: %s", rc, why.text);
	cr_assert(strstr(why.text, text) != NULL, "'%s' not in '%s'", text, why.text);
}

Test(decode, block_list_borrows_the_arrays_of_the_message, .init = defaults)
{
	uint32_t local[] = {1, 2}, remote[] = {3, 4};
	Kvxp__BlockList pb = KVXP__BLOCK_LIST__INIT;
	struct kvx_block_list list;
	struct kvx_slice slice;

	pb.local_plane = 5;
	pb.n_planes = 6;
	pb.n_local_blocks = pb.n_remote_blocks = 2;
	pb.local_blocks = local;
	pb.remote_blocks = remote;
	cr_assert_eq(kvx_decode_blocks(&config, &pb, &list, &slice, &why), 0);
	cr_assert(list.local_blocks == local && list.remote_blocks == remote);
	cr_assert(list.n_blocks == 2 && list.local_plane == 5 && list.n_planes == 6);
	cr_assert_eq(list.slice, NULL);
	KVX_TEST_END();
}

Test(decode, waits, .init = defaults)
{
	uint8_t event[65] = {1};
	Kvxp__Wait pb = KVXP__WAIT__INIT;
	struct kvx_wait wait;
	uint64_t region;

	cr_assert_eq(kvx_decode_wait(NULL, &wait, &region, &why), 0);
	cr_assert(wait.kind == KVX_WAIT_NONE && region == 0);
	refused(kvx_decode_wait(&pb, &wait, &region, &why), -EINVAL, "kind 0");
	pb.kind = 3;
	refused(kvx_decode_wait(&pb, &wait, &region, &why), -EINVAL, "kind 3");
	pb.kind = KVXP__WAIT_KIND__WAIT_EVENT;
	refused(kvx_decode_wait(&pb, &wait, &region, &why), -EINVAL, "event of 0 bytes");
	for (pb.event.len = 63; pb.event.len <= 65; pb.event.len += 2) {
		pb.event.data = event;
		refused(kvx_decode_wait(&pb, &wait, &region, &why), -EINVAL, "it has 64");
	}
	pb.event.len = 64;
	cr_assert_eq(kvx_decode_wait(&pb, &wait, &region, &why), 0);
	cr_assert(wait.kind == KVX_WAIT_EVENT && wait.event == event && region == 0);
	pb.kind = KVXP__WAIT_KIND__WAIT_FLAG;
	refused(kvx_decode_wait(&pb, &wait, &region, &why), -EINVAL, "must name the region");
	pb.region = 5;
	pb.offset = 16;
	pb.value = 7;
	cr_assert_eq(kvx_decode_wait(&pb, &wait, &region, &why), 0);
	cr_assert(wait.kind == KVX_WAIT_FLAG && wait.offset == 16 && wait.value == 7);
	cr_assert_eq(region, 5);
	KVX_TEST_END();
}

Test(decode, block_lists_that_make_no_sense_are_refused, .init = defaults)
{
	uint32_t ids[8] = {0};
	Kvxp__BlockList pb = KVXP__BLOCK_LIST__INIT;
	Kvxp__Slice pb_slice = KVXP__SLICE__INIT;
	struct kvx_block_list list;
	struct kvx_slice slice;

	pb.local_blocks = pb.remote_blocks = ids;
	pb.n_planes = 1;
	refused(kvx_decode_blocks(&config, &pb, &list, &slice, &why), -EINVAL, "empty");
	pb.n_local_blocks = 2;
	pb.n_remote_blocks = 3;
	refused(kvx_decode_blocks(&config, &pb, &list, &slice, &why), -EINVAL,
		"2 local block ids, but 3 remote");
	pb.n_local_blocks = pb.n_remote_blocks = 5;
	refused(kvx_decode_blocks(&config, &pb, &list, &slice, &why), -EMSGSIZE,
		"5 block ids, at most 4 per list are allowed ([limits] blocks)");
	pb.n_local_blocks = pb.n_remote_blocks = 4;
	pb.n_planes = 0;
	refused(kvx_decode_blocks(&config, &pb, &list, &slice, &why), -EINVAL, "0 planes");
	pb.n_planes = 1;
	pb.slice = &pb_slice;
	pb_slice.bytes = 8;
	refused(kvx_decode_blocks(&config, &pb, &list, &slice, &why), -EINVAL, "count 0");
	pb_slice.count = 2;
	cr_assert_eq(kvx_decode_blocks(&config, &pb, &list, &slice, &why), 0);
	cr_assert(list.slice == &slice && slice.bytes == 8 && slice.count == 2);
	KVX_TEST_END();
}

Test(decode, op_lists_that_make_no_sense_are_refused, .init = defaults)
{
	uint64_t numbers[8] = {0};
	Kvxp__OpList pb = KVXP__OP_LIST__INIT;
	struct kvx_op_list list;

	pb.local_offsets = pb.remote_offsets = pb.lens = numbers;
	refused(kvx_decode_ops(&config, &pb, &list, &why), -EINVAL, "empty");
	pb.n_local_offsets = 2;
	pb.n_remote_offsets = 1;
	refused(kvx_decode_ops(&config, &pb, &list, &why), -EINVAL, "2 local offsets, but 1");
	pb.n_remote_offsets = 2;
	refused(kvx_decode_ops(&config, &pb, &list, &why), -EINVAL, "0 lengths for 2 ops");
	pb.n_lens = 3;
	refused(kvx_decode_ops(&config, &pb, &list, &why), -EINVAL, "3 lengths for 2 ops");
	pb.n_lens = 5;
	refused(kvx_decode_ops(&config, &pb, &list, &why), -EMSGSIZE, "[limits] ops");
	pb.n_lens = 1;
	cr_assert_eq(kvx_decode_ops(&config, &pb, &list, &why), 0);
	cr_assert(list.n_ops == 2 && list.n_lens == 1 && list.local_offsets == numbers);
	KVX_TEST_END();
}

Test(decode, a_request_has_one_list_unless_it_streams, .init = defaults)
{
	uint32_t id = 0;
	uint64_t number = 0;
	Kvxp__BlockList blocks = KVXP__BLOCK_LIST__INIT;
	Kvxp__OpList ops = KVXP__OP_LIST__INIT;
	struct kvx_decoded_lists lists;

	blocks.n_planes = 1;
	blocks.n_local_blocks = blocks.n_remote_blocks = 1;
	blocks.local_blocks = blocks.remote_blocks = &id;
	ops.n_local_offsets = ops.n_remote_offsets = ops.n_lens = 1;
	ops.local_offsets = ops.remote_offsets = ops.lens = &number;
	refused(kvx_decode_lists(&config, &blocks, &ops, true, &lists, &why), -EINVAL, "one of");
	refused(kvx_decode_lists(&config, NULL, NULL, false, &lists, &why), -EINVAL, "neither");
	cr_assert_eq(kvx_decode_lists(&config, NULL, NULL, true, &lists, &why), 0);
	cr_assert(lists.blocks == NULL && lists.ops == NULL);
	cr_assert_eq(kvx_decode_lists(&config, &blocks, NULL, false, &lists, &why), 0);
	cr_assert(lists.blocks == &lists.block_list && lists.ops == NULL);
	cr_assert_eq(kvx_decode_lists(&config, NULL, &ops, false, &lists, &why), 0);
	cr_assert(lists.ops == &lists.op_list && lists.blocks == NULL);
	KVX_TEST_END();
}

Test(decode, layout_is_copied_checked_and_limited, .init = defaults)
{
	Kvxp__Layout pb = KVXP__LAYOUT__INIT;
	Kvxp__Plane planes[4];
	Kvxp__Plane *rows[4];
	struct kvx_layout *layout;

	for (int i = 0; i < 4; i++) {
		kvxp__plane__init(&planes[i]);
		planes[i].name = (char *)(uintptr_t) "k\n";
		planes[i].block_stride = 4096;
		planes[i].block_bytes = 4096;
		planes[i].offset = i * 8192ull;
		planes[i].n_blocks = 2;
		rows[i] = &planes[i];
	}
	pb.planes = rows;
	cr_assert_eq(kvx_decode_layout(&config, NULL, 4096, &layout, &why), 0);
	cr_assert_eq(layout, NULL);
	pb.n_planes = 4;
	refused(kvx_decode_layout(&config, &pb, 1 << 20, &layout, &why), -EMSGSIZE,
		"4 planes, at most 3");
	pb.n_planes = 3;
	refused(kvx_decode_layout(&config, &pb, 8192, &layout, &why), -ERANGE, "plane");
	cr_assert_eq(kvx_decode_layout(&config, &pb, 3 * 8192, &layout, &why), 0, "%s", why.text);
	cr_assert_eq(layout->n_planes, 3);
	cr_assert_str_eq(layout->planes[2].name, "k?");
	kvx_layout_destroy(layout);
	planes[1].name = (char *)(uintptr_t) "a name of more than thirty-two bytes";
	refused(kvx_decode_layout(&config, &pb, 3 * 8192, &layout, &why), -EINVAL,
		"name of plane 1");
	KVX_TEST_END();
}

Test(decode, payload_of_4_kib_passes_and_one_byte_more_does_not)
{
	ProtobufCBinaryData data = {4096, NULL};

	cr_assert_eq(kvx_decode_payload(&data, &why), 0);
	data.len = 4097;
	refused(kvx_decode_payload(&data, &why), -EMSGSIZE, "4097 bytes, at most 4096");
	KVX_TEST_END();
}

static const char *shown(const char *text)
{
	static char out[33];

	cr_assert_eq(kvx_decode_text(text, "text", out, sizeof(out), &why), 0, "%s", why.text);
	return out;
}

Test(decode, text_keeps_utf8_and_loses_what_a_terminal_would_obey)
{
	cr_assert_str_eq(shown("prefill 0"), "prefill 0");
	cr_assert_str_eq(shown("\x1b[31m"), "?[31m");
	cr_assert_str_eq(shown("a\tb\x7f"), "a?b?");
	cr_assert_str_eq(shown("\xc3\xa9\xe2\x82\xac\xf1\x9f\x98\x80"),
			 "\xc3\xa9\xe2\x82\xac\xf1\x9f\x98\x80");
	cr_assert_str_eq(shown("\xe2\x82"), "??", "cut off");
	cr_assert_str_eq(shown("\xc0\xaf"), "??", "overlong");
	cr_assert_str_eq(shown("\xed\xa0\x80"), "???", "surrogate");
	cr_assert_str_eq(shown("\xc2\x9b"), "??", "C1 control");
	refused(kvx_decode_text("0123456789", "the name", (char[8]){0}, 8, &why), -EINVAL,
		"the name is 10 bytes long, at most 7");
	KVX_TEST_END();
}
