/* GPU memory in a verbs domain: how it is registered, that it is looked at before it is told to
 * anybody, and what is not taken. */
#include "fault_alloc.h"
#include "verbs_gpu_rig.h"

#include "transport/verbs/verbs_priv.h"

static void start(struct side *s)
{
	struct kvx_verbs_conf conf = rig_conf();

	rig_reset();
	memset(s, 0, sizeof(*s));
	side_dom(s, "fake0:1", &conf);
	gpu_rig_init();
}

static void finish(struct side *s)
{
	side_close(s);
	gpu_rig_fini();
	FAKE_VERBS_END();
	KVX_TEST_END();
}

static void expect_nothing_left(struct side *s)
{
	unsigned loops = 0;

	for (unsigned i = 0; i < KVX_MAX_TENANTS; i++)
		loops += s->dom->loops[i] != NULL && s->dom->loops[i]->ready;
	cr_assert_null(s->dom->flushes);
	cr_assert_eq(fake_verbs_count().mrs, loops, "a loop has a page");
	cr_assert_eq(fake_verbs_count().qps, 2 * loops);
}

Test(verbs_gpu, dmabuf_is_registered_once_for_each_allocation)
{
	struct gmem g;
	struct side s;

	start(&s);
	gmem_make(&g, 1, 3, 12, 64);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), 0);
	cr_assert_eq(g.mr->n_mrs, 3);
	cr_assert_eq(g.mr->n_pieces, 12);
	cr_assert_eq(fake_verbs_calls(FV_REG_DMABUF_MR), 4, "and the memory to flush by");
	cr_assert_eq(g.mr->host, 0, "the CPU does not look into it");
	for (uint32_t i = 0; i < 3; i++)
		cr_assert_eq(fake_verbs_access(g.mr->mrs[i]), IBV_ACCESS_LOCAL_WRITE |
								  IBV_ACCESS_REMOTE_READ |
								  IBV_ACCESS_REMOTE_WRITE);
	cr_assert_eq(kvx_counter_get(&s.limits.counters->reg_bytes), GPU_BYTES);
	gmem_dereg(&g);
	expect_nothing_left(&s);
	gmem_free(&g);
	finish(&s);
}

Test(verbs_gpu, registration_covers_what_the_segments_use_and_no_more)
{
	struct gmem g;
	struct side s;

	start(&s);
	gmem_make(&g, 1, 1, 4, 0);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), 0);
	cr_assert_eq(g.mr->mrs[0]->length, GPU_BYTES, "not the 1 KiB beside it");
	cr_assert_eq(g.mr->n_pieces, 1, "neighbours are one piece");
	gmem_dereg(&g);
	gmem_free(&g);
	finish(&s);
}

Test(verbs_gpu, remote_ends_get_the_rights_of_the_region_and_no_more)
{
	struct gmem g;
	struct side s;

	start(&s);
	gmem_make(&g, 1, 1, 1, 0);
	cr_assert_eq(gmem_reg(&g, &s, 0, KVX_ACCESS_WRITE), 0);
	cr_assert_eq(fake_verbs_access(g.mr->mrs[0]),
		     IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	cr_assert_eq(fake_verbs_access(g.mr->flush->mr),
		     IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ);
	gmem_dereg(&g);
	gmem_free(&g);
	finish(&s);
}

Test(verbs_gpu, without_dmabuf_the_address_is_registered)
{
	struct gmem g;
	struct side s;

	start(&s);
	gmem_make(&g, 1, 2, 4, 64);
	gmem_drop_fds(&g);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), 0);
	cr_assert_eq(fake_verbs_calls(FV_REG_DMABUF_MR), 1, "the memory to flush by has one");
	cr_assert_eq(g.mr->n_mrs, 2);
	gmem_dereg(&g);
	gmem_free(&g);
	finish(&s);
}

Test(verbs_gpu, device_that_takes_no_dmabuf_takes_the_address)
{
	struct gmem g;
	struct side s;

	start(&s);
	fake_verbs_dev(0)->has_dmabuf = false;
	gmem_make(&g, 1, 2, 4, 64);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), 0);
	gmem_dereg(&g);
	gmem_free(&g);
	finish(&s);
}

Test(verbs_gpu, memory_that_the_device_reaches_in_no_way_goes_elsewhere)
{
	struct gmem g;
	struct side s;

	start(&s);
	fake_verbs_dev(0)->has_peermem = false;
	gmem_make(&g, 1, 2, 4, 64);
	gmem_drop_fds(&g);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), -EOPNOTSUPP);
	cr_assert_null(g.mr);
	expect_nothing_left(&s);
	gmem_free(&g);
	finish(&s);
}

Test(verbs_gpu, memory_that_its_home_has_not_mapped_is_refused)
{
	struct gmem g;
	struct side s;

	start(&s);
	gmem_make(&g, 1, 1, 1, 0);
	g.mem.gpu->access = NULL;
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), -EOPNOTSUPP);
	cr_assert_eq(fake_verbs_calls(FV_REG_DMABUF_MR), 0);
	gmem_free(&g);
	finish(&s);
}

/* The dma-buf leads to bytes `off` further on. */
static void expect_found_out(uint64_t off)
{
	struct gmem g;
	struct side s;

	start(&s);
	fake_verbs_dev(0)->dmabuf_off = off;
	gmem_make(&g, 1, 2, 5, 64);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), off == 0 ? 0 : -EFAULT);
	if (off == 0)
		gmem_dereg(&g);
	expect_nothing_left(&s);
	gmem_free(&g);
	side_close(&s);
	gpu_rig_fini();
	FAKE_VERBS_END();
}

Test(verbs_gpu, dmabuf_that_shows_other_memory_is_found_out)
{
	expect_found_out(0);
	expect_found_out(16);
	expect_found_out(4096);
	KVX_TEST_END();
}

Test(verbs_gpu, witness_over_the_end_of_a_registration_is_read_in_two)
{
	struct gmem g;
	struct side s;
	struct kvx_verbs_conf conf = rig_conf();
	struct kvx_gpu_witness *w;

	rig_reset();
	fake_verbs_dev(0)->attr.max_mr_size = 65536 + 100;
	memset(&s, 0, sizeof(s));
	side_dom(&s, "fake0:1", &conf);
	gpu_rig_init();
	gmem_make(&g, 1, 1, 1, 0);
	w = &g.mem.gpu->witnesses[5];
	w->offset = 65536 - 7;
	for (unsigned k = 0; k < KVX_GPU_WITNESS_BYTES; k++)
		w->bytes[k] = *gmem_at(&g, w->offset + k);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), 0);
	cr_assert_eq(g.mr->n_mrs, GPU_BYTES / 65536, "cut where the device takes no more");
	gmem_dereg(&g);
	w->bytes[KVX_GPU_WITNESS_BYTES - 1] ^= 1;
	gpu_copier_error = -EIO;
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), -EOPNOTSUPP);
	gmem_free(&g);
	finish(&s);
}

/* Its bytes are others than those that the owner has told of: the GPU itself is asked. */
Test(verbs_gpu, engine_that_is_at_work_keeps_its_region)
{
	struct gmem g;
	struct side s;

	start(&s);
	gmem_make(&g, 1, 2, 5, 64);
	for (uint32_t i = 0; i < g.mem.gpu->n_witnesses; i += 3)
		*gmem_at(&g, g.mem.gpu->witnesses[i].offset) ^= 0xff;
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), 0);
	gmem_dereg(&g);
	fake_verbs_dev(0)->dmabuf_off = 16;
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), -EFAULT, "the GPU does not agree");
	expect_nothing_left(&s);
	gmem_free(&g);
	finish(&s);
}

/* 16 witnesses are in 16 of 40 allocations. */
Test(verbs_gpu, registration_without_a_witness_is_looked_at_too)
{
	struct gmem g;
	struct side s;

	start(&s);
	gmem_make(&g, 1, 40, 40, 64);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), 0);
	cr_assert_eq(n_home_reads, 24);
	gmem_dereg(&g);
	g.mem.gpu->bases[1].fd_offset += 64;
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), -EFAULT);
	expect_nothing_left(&s);
	gmem_free(&g);
	finish(&s);
}

/* The port's own loopback is waited for once, not once for each region. */
Test(verbs_gpu, loopback_that_did_not_answer_is_not_asked_again_at_once)
{
	struct gmem g;
	struct side s;
	struct kvx_tevent events[8];
	unsigned n;

	start(&s);
	gmem_make(&g, 1, 1, 1, 0);
	fake_verbs_cut(fake_verbs_dev(0), 1, true);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), -EOPNOTSUPP);
	fake_verbs_cut(fake_verbs_dev(0), 1, false);
	n = fake_verbs_calls(FV_POST_SEND);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), -EOPNOTSUPP);
	cr_assert_eq(fake_verbs_calls(FV_POST_SEND), n);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ACTIVE);
	T->arm(s.dom);
	(void)T->progress(s.dom, events, 8);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), 0, "the port has told something");
	gmem_dereg(&g);
	gmem_free(&g);
	finish(&s);
}

/* An op could run over more of its pieces than a chain has room for, and would not be posted. */
Test(verbs_gpu, region_of_too_short_pieces_goes_elsewhere)
{
	struct gmem g;
	struct side s;
	uint32_t most;

	start(&s);
	most = s.dom->limits.op_wrs / 2;
	cr_assert_lt(GPU_BYTES / 60 * (most - 1), s.dom->limits.max_op_bytes * 2);
	gmem_make(&g, 1, 60, 60, 64);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), 0);
	gmem_dereg(&g);
	s.dom->limits.max_op_bytes *= 4;
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), -EOPNOTSUPP);
	expect_nothing_left(&s);
	gmem_free(&g);
	finish(&s);
}

Test(verbs_gpu, memory_that_cannot_be_verified_is_not_taken)
{
	struct gmem g;
	struct side s;

	start(&s);
	gmem_make(&g, 1, 1, 1, 0);
	g.mem.gpu->n_witnesses = 0;
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), -EOPNOTSUPP, "nothing to compare");
	gmem_witness(&g);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ERR);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), -EOPNOTSUPP, "the port is down");
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ACTIVE);
	fake_verbs_cut(fake_verbs_dev(0), 1, true);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), -EOPNOTSUPP, "the loopback carries nothing");
	gmem_free(&g);
	finish(&s);
}

/* --- memory to flush by --- */

/* Its dma-buf and its address lead elsewhere: the region's own memory is read instead. */
Test(verbs_gpu, memory_to_flush_by_that_is_other_memory_is_not_used)
{
	struct gmem g;
	struct side s;
	uint64_t addr;
	uint32_t rkey;

	start(&s);
	gpu_flush_off = 64;
	gmem_make(&g, 1, 1, 1, 0);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), 0);
	cr_assert(!verbs_flush_place(g.mr->flush, &addr, &rkey));
	gmem_dereg(&g);
	cr_assert_eq(gmem_reg(&g, &s, 0, KVX_ACCESS_WRITE), -EOPNOTSUPP);
	expect_nothing_left(&s);
	gmem_free(&g);
	finish(&s);
}

Test(verbs_gpu, regions_of_a_device_and_tenant_share_the_memory_to_flush_by)
{
	struct gmem g[4];
	struct side s;

	start(&s);
	gmem_make(&g[0], 1, 1, 1, 0);
	gmem_make(&g[1], 1, 1, 1, 0);
	gmem_make(&g[2], 2, 1, 1, 0); /* another device */
	gmem_make(&g[3], 1, 1, 1, 0); /* another tenant */
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(gmem_reg(&g[i], &s, i == 3, GPU_RW), 0);
	cr_assert_eq(g[0].mr->flush, g[1].mr->flush);
	cr_assert_neq(g[0].mr->flush, g[2].mr->flush);
	cr_assert_neq(g[0].mr->flush, g[3].mr->flush);
	cr_assert_neq(g[0].mr->flush->mr->pd, g[3].mr->flush->mr->pd);
	cr_assert_eq(n_flush_asked, 3);
	gmem_dereg(&g[0]);
	gmem_reg(&g[0], &s, 0, GPU_RW);
	cr_assert_eq(n_flush_asked, 3, "the other one has kept it");
	for (unsigned i = 0; i < 4; i++)
		gmem_dereg(&g[i]);
	expect_nothing_left(&s);
	for (unsigned i = 0; i < 4; i++)
		gmem_free(&g[i]);
	finish(&s);
}

Test(verbs_gpu, without_memory_to_flush_by_the_regions_own_does_if_it_may_be_read)
{
	struct gmem g;
	struct side s;
	uint64_t addr;
	uint32_t rkey;

	start(&s);
	gpu_has_flush = false;
	gmem_make(&g, 1, 1, 1, 0);
	cr_assert_eq(gmem_reg(&g, &s, 0, KVX_ACCESS_WRITE), -EOPNOTSUPP);
	expect_nothing_left(&s);
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), 0);
	cr_assert(!verbs_flush_place(g.mr->flush, &addr, &rkey));
	gmem_dereg(&g);
	expect_nothing_left(&s);
	gmem_free(&g);
	finish(&s);
}

/* --- nothing is left of what fails --- */

Test(verbs_gpu, nth_call_fails_and_leaves_nothing)
{
	struct gmem g;
	struct side s;
	unsigned n = 1;
	int rc = -1;

	start(&s);
	gmem_make(&g, 1, 2, 4, 64);
	for (; rc != 0; n++) {
		fake_verbs_fail(FV_N_FNS, n, EINVAL);
		rc = gmem_reg(&g, &s, 1, GPU_RW);
		if (rc == 0)
			break;
		cr_assert(fake_verbs_fired());
		cr_assert_null(g.mr);
		expect_nothing_left(&s);
	}
	/* A dma-buf that is refused is made up for: the first success is one of these. */
	cr_assert_gt(n, 1);
	(void)fake_verbs_fired();
	gmem_dereg(&g);
	expect_nothing_left(&s);
	gmem_free(&g);
	finish(&s);
}

/* The same, by number: also those that come after a fault that was made up for. */
Test(verbs_gpu, every_call_fails_in_turn)
{
	struct gmem g;
	struct side s;
	unsigned n_refused = 0;

	start(&s);
	gmem_make(&g, 1, 2, 4, 64);
	for (unsigned n = 1; n < 60; n++) {
		int rc;

		fake_verbs_fail(FV_N_FNS, n, ENOMEM);
		rc = gmem_reg(&g, &s, n % 3, GPU_RW);
		(void)fake_verbs_fired();
		n_refused += rc < 0;
		if (rc == 0)
			gmem_dereg(&g);
		expect_nothing_left(&s);
	}
	cr_assert_gt(n_refused, 10);
	gmem_free(&g);
	finish(&s);
}

Test(verbs_gpu, failing_allocations_leave_nothing)
{
	unsigned n_refused = 0;
	struct gmem g;
	struct side s;
	int rc;

	start(&s);
	gmem_make(&g, 1, 2, 4, 64);
	for (unsigned n = 1;; n++) {
		fault_alloc_arm(n);
		rc = gmem_reg(&g, &s, 1, GPU_RW);
		if (!fault_alloc_disarm())
			break;
		if (rc == 0) /* a dma-buf that is refused is made up for */
			gmem_dereg(&g);
		n_refused += rc < 0;
		expect_nothing_left(&s);
	}
	cr_assert_eq(rc, 0);
	cr_assert_gt(n_refused, 5);
	gmem_dereg(&g);
	gmem_free(&g);
	finish(&s);
}
