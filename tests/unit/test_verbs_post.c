/* Posting on the stand-in: what reaches the device, how often it completes aloud, and that the
 * bytes are where they belong when an op is said to be done. */
#include "verbs_rig.h"

/* n blocks of len bytes, from every place in turn to every place in reverse. */
static void run_blocks(struct rig *r, enum kvx_op_kind kind, uint64_t len, unsigned n)
{
	struct kvx_op *ops = calloc(n, sizeof(*ops));
	const struct side *src = kind == KVX_OP_WRITE ? &r->a : &r->b;
	const struct side *dst = kind == KVX_OP_WRITE ? &r->b : &r->a;

	for (unsigned i = 0; i < n; i++)
		ops[i] = make_op(&r->a, kind, i * len, (n - 1 - i) * len, len);
	run_ops(r, ops, n);
	cr_assert_eq(r->a.n_failed, 0, "status %d %s", r->a.status, r->a.text);
	for (unsigned i = 0; i < n; i++) {
		uint64_t from = kind == KVX_OP_WRITE ? ops[i].local_offset : ops[i].remote_offset;
		uint64_t to = kind == KVX_OP_WRITE ? ops[i].remote_offset : ops[i].local_offset;

		cr_assert_arr_eq(dst->mem.addr + to, src->mem.addr + from, len, "block %u", i);
	}
	free(ops);
}

Test(verbs_post, all_sizes_move_both_ways)
{
	struct rig r;

	rig_open(&r);
	run_blocks(&r, KVX_OP_WRITE, 1, 1);
	run_blocks(&r, KVX_OP_WRITE, 256, 3000);
	run_blocks(&r, KVX_OP_WRITE, 4096, 250);
	run_blocks(&r, KVX_OP_WRITE, 65536, 16);
	run_blocks(&r, KVX_OP_READ, 1, 1);
	run_blocks(&r, KVX_OP_READ, 333, 3000);
	run_blocks(&r, KVX_OP_READ, 4096, 250);
	run_blocks(&r, KVX_OP_READ, 65536, 16);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_post, connecting_proves_every_queue_pair_with_a_read)
{
	struct rig r;

	rig_open(&r);
	cr_assert_eq(fake_verbs_count().reads, 4, "two queue pairs, two directions");
	cr_assert_eq(fake_verbs_count().writes, 0);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_post, one_completion_for_a_chain_of_writes_and_its_flush)
{
	struct kvx_op ops[16];
	struct rig r;

	rig_open(&r);
	for (unsigned i = 0; i < 16; i++)
		ops[i] = make_op(&r.a, KVX_OP_WRITE, i * 8192, i * 8192, 4096);
	fake_verbs_trace(true);
	run_ops(&r, ops, 16);
	cr_assert_eq(fake_verbs_n_wrs(), 17);
	for (unsigned i = 0; i < 16; i++) {
		struct fake_verbs_wr wr = fake_verbs_wr(i);

		cr_assert_eq(wr.opcode, IBV_WR_RDMA_WRITE);
		cr_assert_eq(wr.flags & IBV_SEND_SIGNALED, 0);
		cr_assert_eq(wr.post, fake_verbs_wr(0).post, "one doorbell");
	}
	cr_assert_eq(fake_verbs_wr(16).opcode, IBV_WR_RDMA_READ);
	cr_assert_eq(fake_verbs_wr(16).len_bytes, 8);
	cr_assert(fake_verbs_wr(16).flags & IBV_SEND_SIGNALED);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_post, reads_need_no_flush)
{
	struct kvx_op ops[16];
	struct rig r;

	rig_open(&r);
	for (unsigned i = 0; i < 16; i++)
		ops[i] = make_op(&r.a, KVX_OP_READ, i * 8192, i * 8192, 4096);
	fake_verbs_trace(true);
	run_ops(&r, ops, 16);
	cr_assert_eq(fake_verbs_n_wrs(), 16);
	cr_assert(fake_verbs_wr(15).flags & IBV_SEND_SIGNALED);
	cr_assert_eq(fake_verbs_wr(14).flags & IBV_SEND_SIGNALED, 0);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_post, without_flush_the_last_write_completes)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct kvx_op op;
	struct rig r;

	conf.flush = false;
	rig_reset();
	rig_open_conf(&r, &conf);
	op = make_op(&r.a, KVX_OP_WRITE, 0, 0, 4096);
	fake_verbs_trace(true);
	run_ops(&r, &op, 1);
	cr_assert_eq(fake_verbs_n_wrs(), 1);
	cr_assert(fake_verbs_wr(0).flags & IBV_SEND_SIGNALED);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_post, scattered_blocks_to_one_place_share_requests)
{
	struct kvx_op ops[64];
	struct rig r;

	rig_open(&r);
	for (unsigned i = 0; i < 64; i++)
		ops[i] = make_op(&r.a, KVX_OP_WRITE, i * 8192, i * 512, 512);
	fake_verbs_trace(true);
	run_ops(&r, ops, 64);
	cr_assert_eq(fake_verbs_n_wrs(), 64 / 8 + 1, "eight pieces each, and a flush");
	cr_assert_eq(fake_verbs_wr(0).n_sge, 8);
	cr_assert_eq(kvx_counter_get(&r.a.limits.counters->gathered), 56);
	cr_assert_arr_eq(r.b.mem.addr + 512 * 63, r.a.mem.addr + 8192 * 63, 512);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_post, one_place_read_to_scattered_blocks_shares_requests)
{
	struct kvx_op ops[64];
	struct rig r;

	rig_open(&r);
	for (unsigned i = 0; i < 64; i++)
		ops[i] = make_op(&r.a, KVX_OP_READ, i * 8192, i * 512, 512);
	fake_verbs_trace(true);
	run_ops(&r, ops, 64);
	cr_assert_eq(fake_verbs_n_wrs(), 64 / 8);
	cr_assert_arr_eq(r.a.mem.addr + 8192 * 63, r.b.mem.addr + 512 * 63, 512);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_post, at_most_one_completion_in_32_ops_of_a_long_batch)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct kvx_op *ops = calloc(4096, sizeof(*ops));
	uint64_t signaled;
	struct rig r;

	conf.sq_depth = 1024;
	conf.post_batch = 64;
	rig_reset();
	rig_open_conf(&r, &conf);
	for (unsigned i = 0; i < 4096; i++)
		ops[i] = make_op(&r.a, KVX_OP_WRITE, i * 256, (i * 7 % 4096) * 256, 256);
	signaled = fake_verbs_count().signaled;
	run_ops(&r, ops, 4096);
	cr_assert_leq(fake_verbs_count().signaled - signaled, 4096 / 32);
	free(ops);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_post, long_ops_are_spread_over_the_queue_pairs)
{
	struct kvx_op ops[8];
	uint32_t first, n_first = 0;
	struct rig r;

	rig_open(&r);
	fake_verbs_mode(FV_HELD);
	for (unsigned i = 0; i < 8; i++)
		ops[i] = make_op(&r.a, KVX_OP_READ, i << 16, i << 16, 1 << 16);
	fake_verbs_trace(true);
	cr_assert_eq(T->post(r.a.ep, ops, 8), 8);
	first = fake_verbs_wr(0).qp_num;
	for (unsigned i = 0; i < 8; i++)
		n_first += fake_verbs_wr(i).qp_num == first;
	cr_assert_eq(n_first, 4);
	rig_settle(&r);
	cr_assert_eq(r.a.n_done, 8);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_post, short_writes_go_inline)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct kvx_op ops[4];
	struct rig r;

	conf.inline_bytes = 128;
	rig_reset();
	rig_open_conf(&r, &conf);
	for (unsigned i = 0; i < 4; i++)
		ops[i] = make_op(&r.a, KVX_OP_WRITE, i * 1000, i * 2000, 126 + i);
	fake_verbs_trace(true);
	run_ops(&r, ops, 4);
	cr_assert_eq(r.a.n_failed, 0);
	cr_assert_eq(kvx_counter_get(&r.a.limits.counters->inlined), 3);
	cr_assert_eq(fake_verbs_count().inlined, 3);
	for (unsigned i = 0; i < 4; i++)
		cr_assert_arr_eq(r.b.mem.addr + i * 2000, r.a.mem.addr + i * 1000, 126 + i);
	rig_close(&r);
	KVX_TEST_END();
}

/* The device's own buffers may hold what it has acknowledged: the read behind it brings it out. */
Test(verbs_post, done_means_visible)
{
	struct kvx_op ops[40];
	struct rig r;

	rig_open(&r);
	fake_verbs_lazy_writes(true);
	for (unsigned i = 0; i < 40; i++)
		ops[i] = make_op(&r.a, KVX_OP_WRITE, i * 4096, i * 8192, 4096);
	run_ops(&r, ops, 40);
	for (unsigned i = 0; i < 40; i++)
		cr_assert_arr_eq(r.b.mem.addr + i * 8192, r.a.mem.addr + i * 4096, 4096);
	fake_verbs_lazy_writes(false);
	rig_close(&r);
	KVX_TEST_END();
}

/* The test above can fail: without the flush it would. */
Test(verbs_post, without_flush_done_does_not_mean_visible)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct kvx_op op;
	struct rig r;

	conf.flush = false;
	rig_reset();
	rig_open_conf(&r, &conf);
	fake_verbs_lazy_writes(true);
	op = make_op(&r.a, KVX_OP_WRITE, 0, 0, 4096);
	run_ops(&r, &op, 1);
	cr_assert_neq(memcmp(r.b.mem.addr, r.a.mem.addr, 4096), 0);
	fake_verbs_lazy_writes(false);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_post, full_queues_take_no_more_and_go_on_later)
{
	struct kvx_op ops[400];
	unsigned posted = 0;
	struct rig r;
	int rc;

	rig_open(&r);
	fake_verbs_mode(FV_HELD);
	for (unsigned i = 0; i < 400; i++)
		ops[i] = make_op(&r.a, KVX_OP_WRITE, i * 1024, (399 - i) * 1024, 512);
	while ((rc = T->post(r.a.ep, ops + posted, 400 - posted)) > 0)
		posted += (unsigned)rc;
	cr_assert_eq(rc, 0, "no room is no error");
	cr_assert(posted >= 64 && posted <= 128, "%u", posted);
	cr_assert_eq(r.a.n_done, 0);
	PUMP_UNTIL(&r, ({
		fake_verbs_run(10);
		rc = T->post(r.a.ep, ops + posted, 400 - posted);
		cr_assert_geq(rc, 0);
		posted += (unsigned)rc;
		r.a.n_done == 400;
	}));
	cr_assert_eq(r.a.n_failed, 0);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_post, no_room_in_the_device_is_tried_again)
{
	struct kvx_op ops[2];
	struct rig r;

	rig_open(&r);
	fake_verbs_mode(FV_HELD);
	ops[0] = make_op(&r.a, KVX_OP_READ, 0, 0, 512);
	ops[1] = make_op(&r.a, KVX_OP_READ, 8192, 8192, 512);
	cr_assert_eq(T->post(r.a.ep, &ops[0], 1), 1);
	cr_assert_eq(T->post(r.a.ep, &ops[0], 1), 1, "the other queue pair");
	fake_verbs_fail(FV_POST_SEND, 1, ENOMEM);
	cr_assert_eq(T->post(r.a.ep, &ops[1], 1), 0);
	cr_assert(fake_verbs_fired());
	cr_assert_eq(T->post(r.a.ep, &ops[1], 1), 1);
	rig_settle(&r);
	cr_assert_eq(r.a.n_done, 3);
	cr_assert_eq(r.a.n_failed, 0);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_post, op_that_is_not_allowed_fails_alone)
{
	struct kvx_op ops[3];
	struct rig r;

	rig_open(&r);
	for (unsigned i = 0; i < 3; i++) {
		ops[i] = make_op(&r.a, KVX_OP_WRITE, i * 4096, i * 8192, 4096);
		ops[i].cookie = i;
	}
	ops[1].remote_offset = REGION_BYTES - 1;
	run_ops(&r, ops, 3);
	cr_assert_eq(r.a.n_failed, 1);
	cr_assert_eq(r.a.failed[1], 1);
	cr_assert_eq(r.a.status, -ERANGE);
	cr_assert_not_null(r.a.text);
	cr_assert_eq(r.a.n_downs, 0, "the lane stays");
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_post, regions_in_chunks_move_whole)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct rig r;

	rig_reset();
	fake_verbs_dev(0)->attr.max_mr_size = REGION_BYTES / 8;
	fake_verbs_dev(1)->attr.max_mr_size = REGION_BYTES / 16 + 4096;
	rig_open_conf(&r, &conf);
	run_blocks(&r, KVX_OP_WRITE, 5000, 200);
	run_blocks(&r, KVX_OP_READ, 60000, 17);
	rig_close(&r);
	KVX_TEST_END();
}
