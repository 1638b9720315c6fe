/* GPU memory over RDMA: bytes move between regions of many pieces, and what is reported as done is
 * visible, although the stand-in holds back what lands in memory of a GPU until that is read. */
#include <poll.h>

#include "verbs_gpu_pair.h"

Test(verbs_flush, writes_into_gpu_memory_are_visible_when_done)
{
	static struct grig g;

	start(&g);
	fake_verbs_gpu_delay(true);
	move_all(&g, KVX_OP_WRITE, 3000);
	cr_assert_eq(fake_verbs_gpu_waiting(), 0);
	finish(&g);
}

Test(verbs_flush, reads_into_gpu_memory_are_visible_when_done)
{
	static struct grig g;

	start(&g);
	fake_verbs_gpu_delay(true);
	move_all(&g, KVX_OP_READ, 3000);
	cr_assert_eq(fake_verbs_gpu_waiting(), 0);
	finish(&g);
}

Test(verbs_flush, verbs_flush_off_is_for_host_memory_only)
{
	static struct grig g;
	struct kvx_verbs_conf conf = rig_conf();

	conf.flush = false;
	start_conf(&g, &conf);
	reg_both(&g, GPU_RW);
	fake_verbs_gpu_delay(true);
	move_all(&g, KVX_OP_WRITE, 5000);
	finish(&g);
}

Test(verbs_flush, region_is_its_own_memory_to_flush_by)
{
	static struct grig g;
	struct kvx_verbs_conf conf = rig_conf();
	struct kvx_op op;

	start_conf(&g, &conf);
	gpu_has_flush = false;
	reg_both(&g, GPU_RW);
	cr_assert_eq(g.b.rkey->flush_by, VERBS_FLUSH_SELF);
	fake_verbs_gpu_delay(true);
	move_all(&g, KVX_OP_WRITE, 3000);
	*gmem_at(&g.a, 0) ^= 0xff;
	op = gop(&g, KVX_OP_WRITE, 0, 0, 1); /* nothing before it may be read */
	run_ops(&g.r, &op, 1);
	cr_assert_eq(g.r.a.n_failed, 0, "%s", g.r.a.text);
	expect_same(&g.b, 0, &g.a, 0, 1);
	gmem_fill(&g.b, 99);
	move_all(&g, KVX_OP_READ, 3000);
	finish(&g);
}

/* One batch into memory of both kinds, in turn; a chain has one flush only. */
static void write_mixed(struct grig *g, unsigned first)
{
	struct kvx_op ops[6];

	for (unsigned i = 0; i < 6; i++) {
		ops[i] = gop(g, KVX_OP_WRITE, i * 4096, i * 4096, 4096);
		if (i % 2 != first)
			ops[i].remote = g->r.a.rkey;
	}
	run_ops(&g->r, ops, 6);
	for (unsigned i = 0; i < 6; i++) {
		if (i % 2 == first) {
			expect_same(&g->b, i * 4096, &g->a, i * 4096, 4096);
			continue;
		}
		for (unsigned k = 0; k < 4096; k++)
			cr_assert_eq(g->r.b.mem.addr[i * 4096 + k], *gmem_at(&g->a, i * 4096 + k));
	}
}

Test(verbs_flush, batch_into_host_and_gpu_memory_is_flushed_in_both)
{
	static struct grig g;

	start(&g);
	fake_verbs_gpu_delay(true);
	fake_verbs_lazy_writes(true);
	write_mixed(&g, 0);
	gmem_fill(&g.a, 55);
	write_mixed(&g, 1);
	fake_verbs_lazy_writes(false);
	finish(&g);
}

/* The same for reads: half of them into host memory. */
Test(verbs_flush, batch_out_of_one_region_into_memory_of_both_kinds)
{
	static struct grig g;
	struct kvx_op ops[6];

	start(&g);
	fake_verbs_gpu_delay(true);
	for (unsigned first = 0; first < 2; first++) {
		gmem_fill(&g.b, 70 + first);
		for (unsigned i = 0; i < 6; i++) {
			ops[i] = gop(&g, KVX_OP_READ, i * 4096, i * 4096, 4096);
			if (i % 2 != first)
				ops[i].local = g.r.a.mr;
		}
		run_ops(&g.r, ops, 6);
		for (unsigned i = first; i < 6; i += 2)
			expect_same(&g.a, i * 4096, &g.b, i * 4096, 4096);
	}
	finish(&g);
}

/* Reads are released as fast as they come, and something else is to be told. */
Test(verbs_flush, news_finds_room_beside_reads_that_never_end)
{
	static struct grig g;
	unsigned turn, flying = 0;
	bool told = false;

	start(&g);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ACTIVE);
	T->arm(g.r.a.dom);
	for (turn = 0; turn < 300 && !told; turn++) {
		struct kvx_tevent events[64];
		int n;

		for (unsigned i = 0; i < 130; i++) {
			struct kvx_op op = gop(&g, KVX_OP_READ, i * 64 % 4096, i * 64 % 4096, 8);

			op.cookie = turn * 130 + i;
			if (T->post(g.r.a.ep, &op, 1) != 1)
				break;
			flying++;
		}
		n = T->progress(g.r.a.dom, events, 64);
		for (int i = 0; i < n; i++) {
			flying -= events[i].kind == KVX_TEV_OP_DONE ? events[i].n_ops : 0;
			told = told || events[i].kind == KVX_TEV_DEVICE_UP;
		}
	}
	cr_assert(told);
	while (flying > 0) {
		struct kvx_tevent events[64];
		int n = T->progress(g.r.a.dom, events, 64);

		for (int i = 0; i < n; i++)
			flying -= events[i].kind == KVX_TEV_OP_DONE ? events[i].n_ops : 0;
	}
	finish(&g);
}

/* Reads of the side that flush its own GPU: not those of the chains. */
static unsigned n_loop_reads(const struct grig *g)
{
	unsigned n = 0;

	for (unsigned i = 0; i < fake_verbs_n_wrs(); i++)
		n += fake_verbs_wr(i).rkey == g->a.mr->flush->rkey;
	return n;
}

Test(verbs_flush, one_read_is_enough_for_all_chains_that_completed_before_it)
{
	static struct grig g;
	struct kvx_op ops[8];
	unsigned taken = 0;

	start(&g);
	fake_verbs_trace(true);
	fake_verbs_hold_completions(true);
	for (unsigned i = 0; i < 8; i++) {
		ops[i] = gop(&g, KVX_OP_READ, i * 8192, i * 8192, 1000);
		ops[i].cookie = i;
		taken += (unsigned)T->post(g.r.a.ep, &ops[i], 1);
	}
	cr_assert_eq(taken, 8);
	fake_verbs_release(UINT32_MAX);
	fake_verbs_hold_completions(false);
	PUMP_UNTIL(&g.r, g.r.a.n_done == 8);
	cr_assert_eq(n_loop_reads(&g), 1);
	finish(&g);
}

/* A chain that completes while the read is on its way needs the next one. */
Test(verbs_flush, read_that_was_posted_before_does_not_count)
{
	static struct grig g;
	struct kvx_op ops[2];

	start(&g);
	fake_verbs_gpu_delay(true);
	fake_verbs_trace(true);
	ops[0] = gop(&g, KVX_OP_READ, 0, 0, 1000);
	ops[1] = gop(&g, KVX_OP_READ, 8192, 8192, 1000);
	ops[1].cookie = 6;
	cr_assert_eq(T->post(g.r.a.ep, &ops[0], 1), 1);
	fake_verbs_mode(FV_HELD); /* the flush read is posted and stays */
	side_pump(&g.r.a);
	cr_assert_eq(n_loop_reads(&g), 1);
	fake_verbs_run(1); /* done, and its completion not yet taken */
	cr_assert_eq(T->post(g.r.a.ep, &ops[1], 1), 1);
	fake_verbs_run(100);
	/* The chain's completion is taken before the read's. */
	side_pump(&g.r.a);
	cr_assert_eq(g.r.a.done[5], 1);
	expect_same(&g.a, 0, &g.b, 0, 1000);
	cr_assert_eq(g.r.a.done[6], 0);
	fake_verbs_run(100);
	PUMP_UNTIL(&g.r, (fake_verbs_run(100), g.r.a.done[6] == 1));
	expect_same(&g.a, 8192, &g.b, 8192, 1000);
	cr_assert_eq(n_loop_reads(&g), 2);
	fake_verbs_mode(FV_AT_ONCE);
	finish(&g);
}

Test(verbs_flush, sleeping_worker_is_woken_by_the_flush)
{
	static struct grig g;
	struct kvx_op op;
	struct pollfd fd;

	start(&g);
	op = gop(&g, KVX_OP_READ, 0, 0, 1000);
	cr_assert_eq(T->post(g.r.a.ep, &op, 1), 1);
	fake_verbs_mode(FV_HELD);
	side_pump(&g.r.a);
	cr_assert_eq(g.r.a.n_done, 0);
	fd = (struct pollfd){.fd = g.r.a.limits.event_fd, .events = POLLIN};
	for (unsigned i = 0; i < 4; i++) { /* what came before may wake it once more */
		if (T->arm(g.r.a.dom) == 0 && poll(&fd, 1, 0) == 0)
			break;
		side_pump(&g.r.a);
	}
	cr_assert_eq(poll(&fd, 1, 0), 0);
	fake_verbs_run(10);
	cr_assert_eq(poll(&fd, 1, 1000), 1);
	side_pump(&g.r.a);
	cr_assert_eq(g.r.a.n_done, 1);
	fake_verbs_mode(FV_AT_ONCE);
	finish(&g);
}

/* --- ops of many pieces --- */

Test(verbs_flush, op_over_more_pieces_than_a_chain_has_requests_goes_whole)
{
	static struct grig g;
	struct kvx_verbs_conf conf = rig_conf();
	struct kvx_op op;

	conf.post_batch = 2;
	conf.sq_depth = 20;
	rig_reset();
	rig_open_conf(&g.r, &conf);
	gpu_rig_init();
	gmem_make(&g.a, 1, 4, 60, 64);
	gmem_make(&g.b, 2, 3, 60, 64);
	/* Else they would not be taken; nodes whose configurations differ get that far. */
	g.r.a.dom->limits.max_op_bytes = g.r.b.dom->limits.max_op_bytes = 8192;
	reg_both(&g, GPU_RW);
	fake_verbs_gpu_delay(true);
	op = gop(&g, KVX_OP_WRITE, 100, 5000, 30000); /* some 7 pieces on either side */
	run_ops(&g.r, &op, 1);
	cr_assert_eq(g.r.a.n_failed, 0, "%s", g.r.a.text);
	expect_same(&g.b, 5000, &g.a, 100, 30000);
	op = gop(&g, KVX_OP_WRITE, 0, 5000, 65536);
	run_ops(&g.r, &op, 1);
	cr_assert_eq(g.r.a.n_failed, 1, "more than the queue holds");
	cr_assert_eq(g.r.a.status, -EMSGSIZE);
	move_all(&g, KVX_OP_READ, 4000);
	finish(&g);
}

Test(verbs_flush, random_ops_reach_their_place_and_no_other)
{
	static uint8_t want[GPU_BYTES];
	static struct grig g;
	uint64_t seed = 5;

	start(&g);
	fake_verbs_gpu_delay(true);
	for (unsigned round = 0; round < 40; round++) {
		struct gmem *to = round % 2 == 0 ? &g.b : &g.a, *from = to == &g.b ? &g.a : &g.b;
		struct kvx_op ops[100];
		uint64_t at = 0;
		unsigned n = 0;

		gmem_fill(from, round);
		for (uint64_t i = 0; i < GPU_BYTES; i++)
			want[i] = *gmem_at(to, i);
		while (n < 100 && at < GPU_BYTES - 9000) {
			uint64_t len =
			    1 + test_random(&seed, test_random(&seed, 4) == 0 ? 9000 : 600);
			uint64_t src = test_random(&seed, GPU_BYTES - len);

			ops[n++] = round % 2 == 0 ? gop(&g, KVX_OP_WRITE, src, at, len)
						  : gop(&g, KVX_OP_READ, at, src, len);
			for (uint64_t i = 0; i < len; i++)
				want[at + i] = *gmem_at(from, src + i);
			at += len + test_random(&seed, 2) * test_random(&seed, 3000);
		}
		run_ops(&g.r, ops, n);
		cr_assert_eq(g.r.a.n_failed, 0, "%s", g.r.a.text);
		for (uint64_t i = 0; i < GPU_BYTES; i++)
			cr_assert_eq(*gmem_at(to, i), want[i], "round %u byte %llu", round,
				     (unsigned long long)i);
	}
	finish(&g);
}
