/* The stand-in for libibverbs itself: that it moves bytes, refuses what a device refuses, and sees
 * what must not happen. Without it the tests of the backend prove nothing. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "fake_verbs.h"
#include "test_end.h"

#define BYTES 65536u
#define DEPTH 16u
#define ALL   (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE)

struct end {
	struct ibv_context *context;
	struct ibv_comp_channel *channel;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	struct ibv_mr *mr;
	uint8_t *bytes;
};

static void end_open(struct end *e, int cqe, int access)
{
	struct ibv_qp_init_attr attr = {.qp_type = IBV_QPT_RC};
	struct ibv_device **list = ibv_get_device_list(NULL);

	e->context = ibv_open_device(list[0]);
	ibv_free_device_list(list);
	e->channel = ibv_create_comp_channel(e->context);
	fcntl(e->channel->fd, F_SETFL, O_NONBLOCK);
	fcntl(e->context->async_fd, F_SETFL, O_NONBLOCK);
	e->pd = ibv_alloc_pd(e->context);
	e->cq = ibv_create_cq(e->context, cqe, NULL, e->channel, 0);
	attr.send_cq = attr.recv_cq = e->cq;
	attr.cap.max_send_wr = DEPTH;
	attr.cap.max_send_sge = 4;
	attr.cap.max_inline_data = 64;
	e->qp = ibv_create_qp(e->pd, &attr);
	e->bytes = aligned_alloc(4096, BYTES);
	memset(e->bytes, 0, BYTES);
	e->mr = ibv_reg_mr_iova2(e->pd, e->bytes, BYTES, 0, (unsigned)access);
	cr_assert(e->qp != NULL && e->mr != NULL);
}

static void end_connect(struct end *e, const struct end *other)
{
	struct ibv_qp_attr attr = {
	    .qp_state = IBV_QPS_INIT,
	    .port_num = 1,
	    .qp_access_flags = IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE,
	    .path_mtu = IBV_MTU_1024,
	    .dest_qp_num = other->qp->qp_num,
	    .max_rd_atomic = 4,
	    .max_dest_rd_atomic = 4,
	    .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.sgid_index = 3, .hop_limit = 64}},
	};

	cr_assert_eq(ibv_query_gid(e->context, 1, 3, &attr.ah_attr.grh.dgid), 0);
	cr_assert_eq(
	    ibv_modify_qp(e->qp, &attr,
			  IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS),
	    0);
	attr.qp_state = IBV_QPS_RTR;
	cr_assert_eq(ibv_modify_qp(e->qp, &attr,
				   IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
				       IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
				       IBV_QP_MIN_RNR_TIMER),
		     0);
	attr.qp_state = IBV_QPS_RTS;
	cr_assert_eq(ibv_modify_qp(e->qp, &attr,
				   IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT |
				       IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
				       IBV_QP_MAX_QP_RD_ATOMIC),
		     0);
}

static void end_close(struct end *e)
{
	if (e->qp != NULL)
		cr_assert_eq(ibv_destroy_qp(e->qp), 0);
	if (e->mr != NULL)
		cr_assert_eq(ibv_dereg_mr(e->mr), 0);
	ibv_destroy_cq(e->cq);
	ibv_destroy_comp_channel(e->channel);
	ibv_dealloc_pd(e->pd);
	ibv_close_device(e->context);
	free(e->bytes);
}

struct ends {
	struct end a, b;
};

static void open_conf(struct ends *t, int cqe, int access)
{
	memset(t, 0, sizeof(*t));
	end_open(&t->a, cqe, ALL);
	end_open(&t->b, cqe, access);
	end_connect(&t->a, &t->b);
	end_connect(&t->b, &t->a);
	for (unsigned i = 0; i < BYTES; i++)
		t->a.bytes[i] = (uint8_t)(i * 31 + 7);
}

static void open_two(struct ends *t)
{
	fake_verbs_reset();
	open_conf(t, 64, ALL);
}

static void close_two(struct ends *t)
{
	end_close(&t->a);
	end_close(&t->b);
	FAKE_VERBS_END();
}

/* Posts one request of a to b's memory; 0 or errno. */
static int request(struct ends *t, enum ibv_wr_opcode opcode, uint64_t local, uint64_t remote,
		   uint32_t len, unsigned flags)
{
	struct ibv_sge sge = {local, len, t->a.mr->lkey};
	struct ibv_send_wr wr = {
	    .wr_id = 9, .sg_list = &sge, .num_sge = 1, .opcode = opcode, .send_flags = flags};
	struct ibv_send_wr *bad;

	wr.wr.rdma.remote_addr = remote;
	wr.wr.rdma.rkey = t->b.mr->rkey;
	return ibv_post_send(t->a.qp, &wr, &bad);
}

static enum ibv_wc_status poll_one(const struct end *e)
{
	struct ibv_wc wc;

	cr_assert_eq(ibv_poll_cq(e->cq, 1, &wc), 1, "no completion");
	return wc.status;
}

Test(verbs_standin, writes_and_reads_move_bytes)
{
	struct ends t;

	open_two(&t);
	cr_assert_eq(request(&t, IBV_WR_RDMA_WRITE, 100, 5000, 3000, IBV_SEND_SIGNALED), 0);
	cr_assert_eq(poll_one(&t.a), IBV_WC_SUCCESS);
	cr_assert_arr_eq(t.b.bytes + 5000, t.a.bytes + 100, 3000);
	memset(t.a.bytes + 100, 0, 3000);
	cr_assert_eq(request(&t, IBV_WR_RDMA_READ, 100, 5000, 3000, IBV_SEND_SIGNALED), 0);
	cr_assert_eq(poll_one(&t.a), IBV_WC_SUCCESS);
	cr_assert_arr_eq(t.b.bytes + 5000, t.a.bytes + 100, 3000);
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, pieces_and_packets_keep_their_order)
{
	struct ibv_sge sges[3];
	struct ibv_send_wr wr = {.sg_list = sges, .num_sge = 3, .send_flags = IBV_SEND_SIGNALED};
	struct ibv_send_wr *bad;
	struct ends t;

	open_two(&t);
	fake_verbs_mode(FV_HELD);
	fake_verbs_packet(100);
	sges[0] = (struct ibv_sge){50, 130, t.a.mr->lkey};
	sges[1] = (struct ibv_sge){1000, 1, t.a.mr->lkey};
	sges[2] = (struct ibv_sge){3000, 269, t.a.mr->lkey};
	wr.wr.rdma.remote_addr = 777;
	wr.wr.rdma.rkey = t.b.mr->rkey;
	cr_assert_eq(ibv_post_send(t.a.qp, &wr, &bad), 0);
	cr_assert_eq(fake_verbs_run(100), 4);
	cr_assert_eq(poll_one(&t.a), IBV_WC_SUCCESS);
	cr_assert_arr_eq(t.b.bytes + 777, t.a.bytes + 50, 130);
	cr_assert_eq(t.b.bytes[777 + 130], t.a.bytes[1000]);
	cr_assert_arr_eq(t.b.bytes + 777 + 131, t.a.bytes + 3000, 269);
	cr_assert_eq(t.b.bytes[777 + 400], 0);
	close_two(&t);
	KVX_TEST_END();
}

/* One wrong request; both ends are in error after those that the other side refuses. */
static void expect_status(struct ends *t, enum ibv_wr_opcode opcode, uint64_t local,
			  uint64_t remote, uint32_t len, enum ibv_wc_status want)
{
	cr_assert_eq(request(t, opcode, local, remote, len, 0), 0);
	cr_assert_eq(poll_one(&t->a), want);
	cr_assert_eq(t->a.qp->state, IBV_QPS_ERR);
	for (unsigned i = 0; i < BYTES; i++)
		cr_assert_eq(t->b.bytes[i], 0);
}

Test(verbs_standin, beyond_the_remote_end_is_refused)
{
	struct ends t;

	open_two(&t);
	expect_status(&t, IBV_WR_RDMA_WRITE, 0, BYTES - 10, 11, IBV_WC_REM_ACCESS_ERR);
	cr_assert_eq(t.b.qp->state, IBV_QPS_ERR);
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, right_that_was_not_given_is_refused)
{
	struct ends t;

	fake_verbs_reset();
	open_conf(&t, 64, IBV_ACCESS_REMOTE_READ);
	expect_status(&t, IBV_WR_RDMA_WRITE, 0, 0, 8, IBV_WC_REM_ACCESS_ERR);
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, memory_of_another_domain_is_refused)
{
	struct ends t;
	struct ibv_pd *pd;
	struct ibv_mr *mr;

	open_two(&t);
	pd = ibv_alloc_pd(t.b.context);
	mr = ibv_reg_mr_iova2(pd, t.b.bytes, BYTES, 0, ALL);
	ibv_dereg_mr(t.b.mr);
	t.b.mr = mr;
	expect_status(&t, IBV_WR_RDMA_WRITE, 0, 0, 8, IBV_WC_REM_ACCESS_ERR);
	ibv_dereg_mr(mr);
	t.b.mr = NULL;
	ibv_dealloc_pd(pd);
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, own_key_that_is_wrong_is_a_local_error)
{
	struct ends t;

	open_two(&t);
	expect_status(&t, IBV_WR_RDMA_WRITE, BYTES, 0, 8, IBV_WC_LOC_PROT_ERR);
	cr_assert_eq(t.b.qp->state, IBV_QPS_RTS);
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, dead_other_side_is_a_retry_error)
{
	struct ends t;

	open_two(&t);
	ibv_destroy_qp(t.b.qp);
	t.b.qp = NULL;
	expect_status(&t, IBV_WR_RDMA_WRITE, 0, 0, 8, IBV_WC_RETRY_EXC_ERR);
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, error_flushes_all_that_is_behind_it)
{
	struct ibv_wc wc[8];
	struct ends t;

	open_two(&t);
	fake_verbs_mode(FV_HELD);
	for (unsigned i = 0; i < 5; i++)
		cr_assert_eq(request(&t, IBV_WR_RDMA_WRITE, i * 100, i * 100, 100, 0), 0);
	fake_verbs_break(3, IBV_WC_RETRY_EXC_ERR, 0x81, FV_LAND_HALF);
	fake_verbs_run(100);
	cr_assert(fake_verbs_broken());
	cr_assert_eq(ibv_poll_cq(t.a.cq, 8, wc), 3, "unsignaled successes are silent");
	cr_assert_eq(wc[0].status, IBV_WC_RETRY_EXC_ERR);
	cr_assert_eq(wc[0].vendor_err, 0x81);
	cr_assert_eq(wc[1].status, IBV_WC_WR_FLUSH_ERR);
	cr_assert_eq(wc[2].status, IBV_WC_WR_FLUSH_ERR);
	cr_assert_arr_eq(t.b.bytes, t.a.bytes, 250);
	cr_assert_eq(t.b.bytes[250], 0);
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, late_bytes_land_after_error_but_not_after_destroy)
{
	struct ends t;

	open_two(&t);
	fake_verbs_mode(FV_HELD);
	fake_verbs_late(true);
	cr_assert_eq(request(&t, IBV_WR_RDMA_WRITE, 0, 0, 100, 0), 0);
	cr_assert_eq(request(&t, IBV_WR_RDMA_READ, 2000, 3000, 100, 0), 0);
	fake_verbs_raise_qp(t.a.qp, IBV_EVENT_QP_FATAL);
	ibv_destroy_qp(t.a.qp);
	t.a.qp = NULL;
	cr_assert_eq(fake_verbs_late_dropped(), 100, "what the destroyed one was to receive");
	cr_assert_eq(fake_verbs_land_late(), 100);
	cr_assert_arr_eq(t.b.bytes, t.a.bytes, 100, "a sent packet arrives all the same");
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, late_bytes_do_not_land_after_deregistration)
{
	struct ends t;

	open_two(&t);
	fake_verbs_mode(FV_HELD);
	fake_verbs_late(true);
	cr_assert_eq(request(&t, IBV_WR_RDMA_WRITE, 0, 0, 100, 0), 0);
	fake_verbs_raise_qp(t.a.qp, IBV_EVENT_QP_FATAL);
	ibv_dereg_mr(t.b.mr);
	t.b.mr = NULL;
	cr_assert_eq(fake_verbs_land_late(), 0);
	cr_assert_eq(t.b.bytes[0], 0);
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, lazy_writes_need_a_read)
{
	struct ends t;

	open_two(&t);
	fake_verbs_lazy_writes(true);
	cr_assert_eq(request(&t, IBV_WR_RDMA_WRITE, 0, 0, 100, IBV_SEND_SIGNALED), 0);
	cr_assert_eq(poll_one(&t.a), IBV_WC_SUCCESS);
	cr_assert_eq(t.b.bytes[0], 0);
	cr_assert_eq(request(&t, IBV_WR_RDMA_READ, 4000, 4000, 8, IBV_SEND_SIGNALED), 0);
	cr_assert_eq(poll_one(&t.a), IBV_WC_SUCCESS);
	cr_assert_arr_eq(t.b.bytes, t.a.bytes, 100);
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, slots_come_back_only_with_a_completion_taken)
{
	struct ends t;

	open_two(&t);
	for (unsigned i = 0; i + 1 < DEPTH; i++)
		cr_assert_eq(request(&t, IBV_WR_RDMA_WRITE, 0, 0, 8, 0), 0);
	cr_assert_eq(request(&t, IBV_WR_RDMA_WRITE, 0, 0, 8, IBV_SEND_SIGNALED), 0);
	cr_assert_eq(fake_verbs_n_violations(), 0);
	cr_assert_eq(request(&t, IBV_WR_RDMA_WRITE, 0, 0, 8, 0), ENOMEM);
	cr_assert_eq(fake_verbs_n_violations(), 1);
	fake_verbs_forgive();
	cr_assert_eq(poll_one(&t.a), IBV_WC_SUCCESS);
	cr_assert_eq(request(&t, IBV_WR_RDMA_WRITE, 0, 0, 8, 0), 0);
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, queue_that_could_overflow_is_seen)
{
	struct ends t;

	fake_verbs_reset();
	open_conf(&t, 4, ALL);
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(request(&t, IBV_WR_RDMA_WRITE, 0, 0, 8, 0), 0);
	cr_assert_eq(fake_verbs_n_violations(), 0);
	cr_assert_eq(request(&t, IBV_WR_RDMA_WRITE, 0, 0, 8, 0), 0);
	cr_assert_eq(fake_verbs_n_violations(), 1, "each of five could end in an error");
	fake_verbs_forgive();
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, notification_comes_once_and_only_for_what_comes_after)
{
	struct pollfd pfd;
	struct ibv_cq *cq;
	struct ends t;
	void *arg;

	open_two(&t);
	pfd = (struct pollfd){.fd = t.a.channel->fd, .events = POLLIN};
	request(&t, IBV_WR_RDMA_WRITE, 0, 0, 8, IBV_SEND_SIGNALED);
	cr_assert_eq(ibv_req_notify_cq(t.a.cq, 0), 0);
	cr_assert_eq(poll(&pfd, 1, 0), 0, "what was there before is not told");
	request(&t, IBV_WR_RDMA_WRITE, 0, 0, 8, IBV_SEND_SIGNALED);
	request(&t, IBV_WR_RDMA_WRITE, 0, 0, 8, IBV_SEND_SIGNALED);
	cr_assert_eq(poll(&pfd, 1, 0), 1);
	cr_assert_eq(ibv_get_cq_event(t.a.channel, &cq, &arg), 0);
	cr_assert_eq(cq, t.a.cq);
	cr_assert_neq(ibv_get_cq_event(t.a.channel, &cq, &arg), 0);
	ibv_ack_cq_events(cq, 1);
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, partial_post_says_which_one)
{
	struct ibv_send_wr wrs[3], *bad;
	struct ibv_sge sge;
	struct ends t;

	open_two(&t);
	fake_verbs_post_limit(2);
	sge = (struct ibv_sge){0, 8, t.a.mr->lkey};
	for (unsigned i = 0; i < 3; i++) {
		wrs[i] = (struct ibv_send_wr){.sg_list = &sge, .num_sge = 1};
		wrs[i].next = i < 2 ? &wrs[i + 1] : NULL;
		wrs[i].wr.rdma.rkey = t.b.mr->rkey;
	}
	cr_assert_eq(ibv_post_send(t.a.qp, wrs, &bad), ENOMEM);
	cr_assert_eq(bad, &wrs[2]);
	cr_assert_eq(fake_verbs_count().wrs, 2);
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, leftovers_and_wrong_order_are_seen)
{
	struct ends t;

	open_two(&t);
	cr_assert_eq(ibv_destroy_cq(t.a.cq), EBUSY);
	cr_assert_eq(ibv_dealloc_pd(t.a.pd), EBUSY);
	cr_assert_eq(fake_verbs_n_violations(), 2);
	cr_assert_eq(fake_verbs_count().qps, 2);
	fake_verbs_forgive();
	close_two(&t);
	KVX_TEST_END();
}

Test(verbs_standin, events_of_what_is_destroyed_are_not_delivered)
{
	struct ibv_async_event event;
	struct ends t;

	open_two(&t);
	fake_verbs_raise_qp(t.a.qp, IBV_EVENT_QP_FATAL);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ERR);
	ibv_destroy_qp(t.a.qp);
	t.a.qp = NULL;
	cr_assert_eq(ibv_get_async_event(t.a.context, &event), 0);
	cr_assert_eq(event.event_type, IBV_EVENT_PORT_ERR);
	ibv_ack_async_event(&event);
	cr_assert_neq(ibv_get_async_event(t.a.context, &event), 0);
	close_two(&t);
	KVX_TEST_END();
}
