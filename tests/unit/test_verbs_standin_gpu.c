/* The stand-in for libibverbs and memory of GPUs: what the tests of the backend rely on when they
 * say that a flush is missing or that other memory was found out. */
#include "verbs_gpu_rig.h"

#include "transport/verbs/verbs_priv.h"

struct bench {
	struct side s;
	struct ibv_pd *pd;
	struct verbs_pair pair;
	struct gpu_alloc *one, *two; /* of GPU 1 and of GPU 2 */
	struct ibv_mr *one_mr, *two_mr;
};

#define ALL (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ)

static void start(struct bench *b)
{
	struct kvx_verbs_conf conf = rig_conf();

	memset(b, 0, sizeof(*b));
	rig_reset();
	side_dom(&b->s, "fake0:1", &conf);
	gpu_rig_init();
	b->pd = verbs_dom_pd(b->s.dom, 0);
	cr_assert_eq(verbs_pair_make(b->s.dom, b->pd, NULL, 8, ALL, &b->pair), 0);
	b->one = gpu_alloc(1, 8192, 0);
	b->two = gpu_alloc(2, 8192, 0);
	b->one_mr = ibv_reg_dmabuf_mr(b->pd, 0, 8192, 0, b->one->fd, ALL);
	b->two_mr = ibv_reg_mr(b->pd, b->two->addr, 8192, ALL);
	cr_assert(b->one_mr != NULL && b->two_mr != NULL);
}

static void finish(struct bench *b)
{
	fake_verbs_gpu_delay(false);
	verbs_mr_end(b->s.dom, b->one_mr);
	verbs_mr_end(b->s.dom, b->two_mr);
	verbs_pair_end(b->s.dom, &b->pair);
	side_close(&b->s);
	gpu_rig_fini();
	FAKE_VERBS_END();
	KVX_TEST_END();
}

/* 16 bytes between the begin of the page and remote memory; done when it returns. */
static void post(struct bench *b, enum ibv_wr_opcode opcode, uint64_t remote, uint32_t rkey)
{
	struct ibv_sge sge = {
	    .addr = (uintptr_t)b->pair.page, .length = 16, .lkey = b->pair.page_mr->lkey};
	struct ibv_send_wr wr = {.sg_list = &sge,
				 .num_sge = 1,
				 .opcode = opcode,
				 .send_flags = IBV_SEND_SIGNALED,
				 .wr.rdma = {.remote_addr = remote, .rkey = rkey}};
	struct ibv_send_wr *bad;
	struct ibv_wc wc;

	cr_assert_eq(ibv_post_send(b->pair.qps[0], &wr, &bad), 0);
	cr_assert_eq(ibv_poll_cq(b->pair.cq, 1, &wc), 1);
	cr_assert_eq(wc.status, IBV_WC_SUCCESS);
}

Test(verbs_standin_gpu, address_of_a_gpu_leads_to_its_bytes)
{
	struct bench b;

	start(&b);
	memset(b.pair.page, 0x5a, 16);
	post(&b, IBV_WR_RDMA_WRITE, (uintptr_t)b.two->addr + 100, b.two_mr->rkey);
	cr_assert_eq(b.two->bytes[99], 0);
	cr_assert_eq(b.two->bytes[100], 0x5a);
	cr_assert_eq(b.two->bytes[116], 0);
	finish(&b);
}

Test(verbs_standin_gpu, address_needs_peer_memory)
{
	struct bench b;

	start(&b);
	fake_verbs_dev(0)->has_peermem = false;
	cr_assert_null(ibv_reg_mr(b.pd, b.one->addr, 4096, ALL));
	cr_assert_eq(errno, EFAULT);
	finish(&b);
}

Test(verbs_standin_gpu, dmabuf_shows_memory_further_on)
{
	struct bench b;
	struct ibv_mr *mr;

	start(&b);
	fake_verbs_dev(0)->dmabuf_off = 64;
	mr = ibv_reg_dmabuf_mr(b.pd, 0, 4096, 0, b.one->fd, ALL);
	memset(b.pair.page, 0x5a, 16);
	post(&b, IBV_WR_RDMA_WRITE, 0, mr->rkey);
	cr_assert_eq(b.one->bytes[63], 0);
	cr_assert_eq(b.one->bytes[64], 0x5a);
	verbs_mr_end(b.s.dom, mr);
	finish(&b);
}

Test(verbs_standin_gpu, write_is_visible_once_the_same_gpu_was_read)
{
	struct bench b;

	start(&b);
	fake_verbs_gpu_delay(true);
	memset(b.pair.page, 0x5a, 16);
	post(&b, IBV_WR_RDMA_WRITE, 0, b.one_mr->rkey);
	cr_assert_eq(b.one->bytes[0], 0);
	cr_assert_eq(fake_verbs_gpu_waiting(), 16);
	post(&b, IBV_WR_RDMA_READ, (uintptr_t)b.two->addr, b.two_mr->rkey);
	cr_assert_eq(b.one->bytes[0], 0, "another GPU");
	post(&b, IBV_WR_RDMA_READ, (uintptr_t)b.pair.page + 64, b.pair.page_mr->rkey);
	cr_assert_eq(b.one->bytes[0], 0, "host memory");
	post(&b, IBV_WR_RDMA_READ, 4096, b.one_mr->rkey);
	cr_assert_eq(b.one->bytes[0], 0x5a);
	cr_assert_eq(fake_verbs_gpu_waiting(), 0);
	finish(&b);
}

Test(verbs_standin_gpu, reading_to_send_counts_too)
{
	struct bench b;
	struct ibv_sge sge;
	struct ibv_send_wr wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE};
	struct ibv_send_wr *bad;

	start(&b);
	fake_verbs_gpu_delay(true);
	memset(b.pair.page, 0x5a, 16);
	post(&b, IBV_WR_RDMA_WRITE, 0, b.one_mr->rkey);
	sge = (struct ibv_sge){.addr = 4096, .length = 16, .lkey = b.one_mr->lkey};
	wr.wr.rdma.remote_addr = (uintptr_t)b.pair.page + 64;
	wr.wr.rdma.rkey = b.pair.page_mr->rkey;
	cr_assert_eq(ibv_post_send(b.pair.qps[0], &wr, &bad), 0);
	cr_assert_eq(b.one->bytes[0], 0x5a);
	finish(&b);
}
