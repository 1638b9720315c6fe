/* What the daemon must refuse: ops outside of regions, wrong ids, too much of anything. Each
 * refusal has its name, and a neighbour that goes on working as if nothing had been. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pair.h"
#include "test_raw.h"

#define WAIT_MS 10000

static void expect_ops_refused(struct pair *p, uint64_t local, uint64_t remote, uint64_t len,
			       int op)
{
	struct kvxfer_ops ops = {
	    .n_ops = 1, .local_offsets = &local, .remote_offsets = &remote, .len = len};
	struct kvxfer_transfer t = op == KVXFER_WRITE ? pair_write(p) : pair_read(p);
	struct test_engine *e = op == KVXFER_WRITE ? &p->prefill : &p->decode;
	struct test_event ev;
	uint64_t id = 0;
	int rc;

	t.ops = &ops;
	rc = kvxfer_transfer_submit(e->client, &t, &id);
	if (rc != 0) {
		cr_assert(rc == -ERANGE || rc == -EINVAL, "%d", rc);
		return;
	}
	ev = test_wait(e, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert(ev.status == KVXFER_RANGE || ev.status == KVXFER_INVALID,
		  "%s: local %llx remote %llx len %llx", kvxfer_status_name(ev.status),
		  (unsigned long long)local, (unsigned long long)remote, (unsigned long long)len);
	cr_assert_eq(ev.bytes, 0);
	cr_assert_neq(ev.text[0], '\0');
}

/* The neighbour: an ordinary write still works. */
static void expect_works(struct pair *p)
{
	uint32_t block = 2;
	struct kvxfer_blocks blocks = {
	    .n_planes = 2, .n_blocks = 1, .local_blocks = &block, .remote_blocks = &block};
	struct kvxfer_transfer t = pair_write(p);
	struct test_event ev;
	uint64_t id = 0;

	t.blocks = &blocks;
	cr_assert_eq(kvxfer_transfer_submit(p->prefill.client, &t, &id), 0);
	ev = test_wait(&p->prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	cr_assert(test_block_is(&p->decode, 1, 1, 2, 2));
}

static void out_of_range(bool cross)
{
	static struct pair p;
	uint64_t end;
	static const uint64_t huge[] = {1ull << 63, UINT64_MAX, UINT64_MAX - 4095,
					(1ull << 63) + 4096};

	pair_open(&p, cross, NULL, 2, 8, 4096);
	end = p.decode.bytes;
	for (int op = KVXFER_READ; op <= KVXFER_WRITE; op++) {
		expect_ops_refused(&p, 0, end, 1, op);
		expect_ops_refused(&p, end, 0, 1, op);
		expect_ops_refused(&p, 0, end - 4095, 4096, op);
		expect_ops_refused(&p, end - 4095, 0, 4096, op);
		expect_ops_refused(&p, 0, 0, end + 1, op);
		expect_ops_refused(&p, 0, 0, 0, op);
		for (unsigned i = 0; i < 4; i++) {
			expect_ops_refused(&p, huge[i], 0, 4096, op);
			expect_ops_refused(&p, 0, huge[i], 4096, op);
			expect_ops_refused(&p, 4096, 4096, huge[i], op);
			expect_ops_refused(&p, huge[i], huge[i], huge[i], op);
		}
	}
	for (uint32_t plane = 0; plane < 2; plane++)
		for (uint32_t b = 0; b < 8; b++)
			cr_assert(test_block_is_canary(&p.decode, plane, b));
	expect_works(&p);
	pair_close(&p);
}

Test(refuse, ops_outside_of_the_region_same_node)
{
	out_of_range(false);
}

Test(refuse, ops_outside_of_the_region_two_nodes)
{
	out_of_range(true);
}

Test(refuse, one_bad_op_among_good_ones_moves_nothing)
{
	static struct pair p;
	uint64_t local[3] = {0, 4096, 8192}, remote[3] = {0, 1ull << 40, 8192};
	struct kvxfer_ops ops = {
	    .n_ops = 3, .local_offsets = local, .remote_offsets = remote, .len = 4096};
	struct kvxfer_transfer t;
	struct test_event ev;
	uint64_t id = 0;

	pair_open(&p, false, NULL, 2, 8, 4096);
	t = pair_write(&p);
	t.ops = &ops;
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
	ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_RANGE, "%s", ev.text);
	cr_assert_neq(strstr(ev.text, "op 1"), NULL, "%s", ev.text);
	cr_assert(test_block_is_canary(&p.decode, 0, 0));
	pair_close(&p);
}

Test(refuse, block_ids_planes_and_slices_outside_of_the_layout)
{
	static struct pair p;
	uint32_t good = 1, bad = 8, worst = UINT32_MAX;
	struct kvxfer_slice slices[] = {
	    {.bytes = 4097, .count = 1},
	    {.local_offset = 4000, .bytes = 97, .count = 1},
	    {.bytes = 64, .count = 65, .local_stride = 64, .remote_stride = 64},
	    {.bytes = 64, .count = UINT32_MAX, .local_stride = 1ull << 60, .remote_stride = 64},
	    {.local_offset = UINT64_MAX, .bytes = 1, .count = 1},
	};
	struct kvxfer_blocks cases[] = {
	    {.n_planes = 1, .n_blocks = 1, .local_blocks = &bad, .remote_blocks = &good},
	    {.n_planes = 1, .n_blocks = 1, .local_blocks = &good, .remote_blocks = &worst},
	    {.n_planes = 3, .n_blocks = 1, .local_blocks = &good, .remote_blocks = &good},
	    {.local_plane = 2,
	     .n_planes = 1,
	     .n_blocks = 1,
	     .local_blocks = &good,
	     .remote_blocks = &good},
	    {.remote_plane = UINT32_MAX,
	     .n_planes = 1,
	     .n_blocks = 1,
	     .local_blocks = &good,
	     .remote_blocks = &good},
	    {.n_planes = UINT32_MAX, .n_blocks = 1, .local_blocks = &good, .remote_blocks = &good},
	};
	struct kvxfer_transfer t;

	pair_open(&p, false, NULL, 2, 8, 4096);
	for (unsigned i = 0; i < 6 + 5; i++) {
		struct kvxfer_blocks with_slice = {.n_planes = 1,
						   .n_blocks = 1,
						   .local_blocks = &good,
						   .remote_blocks = &good,
						   .slice = i >= 6 ? &slices[i - 6] : NULL};
		struct test_event ev;
		uint64_t id = 0;
		int rc;

		t = pair_write(&p);
		t.blocks = i < 6 ? &cases[i] : &with_slice;
		rc = kvxfer_transfer_submit(p.prefill.client, &t, &id);
		if (rc != 0) {
			cr_assert(rc == -EINVAL || rc == -ERANGE, "case %u: %d", i, rc);
			continue;
		}
		ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
		cr_assert(ev.status == KVXFER_RANGE || ev.status == KVXFER_INVALID, "case %u: %s",
			  i, kvxfer_status_name(ev.status));
	}
	cr_assert(test_block_is_canary(&p.decode, 0, 1));
	expect_works(&p);
	pair_close(&p);
}

Test(refuse, limits_have_names)
{
	const char *sets[] = {"limits.regions_per_client=2", "limits.bytes_per_client=1M",
			      "limits.planes=8", NULL};
	struct kvxfer_region_options opt = {.struct_bytes = sizeof(opt)};
	struct kvxfer_plane planes[9];
	struct kvxfer_layout layout = {planes, 9};
	struct kvxfer_region *region = NULL;
	struct test_node node;
	struct kvxfer_client *client;

	test_node_start(&node, sets);
	client = test_node_client(&node, "greedy");
	cr_assert_eq(kvxfer_region_alloc(client, 2u << 20, NULL, &region), -EDQUOT);
	cr_assert_neq(strstr(kvxfer_client_error(client), "bytes_per_client"), NULL, "%s",
		      kvxfer_client_error(client));
	kvxfer_layout_mla(0, 9, 1, 4096, planes);
	opt.layout = &layout;
	cr_assert_eq(kvxfer_region_alloc(client, 9 * 4096, &opt, &region), -EMSGSIZE, "%s",
		     kvxfer_client_error(client));
	for (int i = 0; i < 2; i++)
		cr_assert_eq(kvxfer_region_alloc(client, 4096, NULL, &region), 0);
	cr_assert_eq(kvxfer_region_alloc(client, 4096, NULL, &region), -EDQUOT);
	cr_assert_neq(strstr(kvxfer_client_error(client), "regions_per_client"), NULL, "%s",
		      kvxfer_client_error(client));
	cr_assert_eq(kvxfer_region_unregister(region), 0);
	cr_assert_eq(kvxfer_region_alloc(client, 4096, NULL, &region), 0, "%s",
		     kvxfer_client_error(client));
	kvxfer_client_close(client);
	test_node_fini(&node);
}

Test(refuse, descriptors_that_are_not)
{
	static struct pair p;
	struct kvxfer_import *import_ = NULL;
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	uint8_t bad[KVXFER_DESCRIPTOR_MAX];
	int len;

	pair_open(&p, true, NULL, 2, 4, 4096);
	len = kvxfer_region_export(p.decode.region, desc, sizeof(desc));
	for (int i = 0; i < len; i++) {
		int rc;

		memcpy(bad, desc, (size_t)len);
		bad[i] ^= 0x40;
		rc = kvxfer_import_open(p.prefill.client, bad, (size_t)len, NULL, &import_);
		cr_assert_lt(rc, 0, "byte %d changed, and taken", i);
	}
	for (int i = 0; i < len; i++)
		cr_assert_lt(kvxfer_import_open(p.prefill.client, desc, (size_t)i, NULL, &import_),
			     0);
	expect_works(&p);
	pair_close(&p);
}

/* Ids of another client: found by guessing, refused as unknown. */
Test(refuse, ids_of_other_clients)
{
	struct test_node node;
	struct test_engine victim;
	struct test_raw raw;
	char text[256];

	test_node_start(&node, NULL);
	test_engine_open(&victim, &node, "victim", 1, 4, 4096, KVXFER_ACCESS_READ);
	test_raw_open(&raw, &node);
	for (uint64_t id = 0; id < 64; id++) {
		Kvxp__RegionExport export = KVXP__REGION_EXPORT__INIT;
		Kvxp__RegionUnregister unregister = KVXP__REGION_UNREGISTER__INIT;

		export.region = unregister.region = (id >> 4) << 32 | (id & 15);
		test_raw_send(&raw, KVXP__FRAME_TYPE__FRAME_REGION_EXPORT, &export.base, NULL, 0);
		cr_assert_eq(test_raw_reply(&raw, text, sizeof(text)), KVXFER_NOT_FOUND, "%s",
			     text);
		test_raw_send(&raw, KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER, &unregister.base,
			      NULL, 0);
		cr_assert_eq(test_raw_reply(&raw, text, sizeof(text)), KVXFER_NOT_FOUND, "%s",
			     text);
	}
	test_raw_close(&raw);
	cr_assert_eq(test_node_number(&node, "status", "regions"), 1);
	test_engine_close(&victim);
	test_node_fini(&node);
}
