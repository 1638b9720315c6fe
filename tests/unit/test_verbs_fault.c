/* What the verbs backend makes of errors: the lane is down at once and said to be so once, what it
 * had taken is reported exactly once and only when a fence has made sure that nothing lands any
 * more. */
#include "verbs_rig.h"

#define N_OPS 8u

/* Posts ops of cookies 0.. one by one, none of them done yet. */
static void post_held(struct rig *r, enum kvx_op_kind kind)
{
	fake_verbs_mode(FV_HELD);
	for (unsigned i = 0; i < N_OPS; i++) {
		struct kvx_op op = make_op(&r->a, kind, i * 16384, i * 32768, 8192);

		op.cookie = i;
		cr_assert_eq(T->post(r->a.ep, &op, 1), 1);
	}
}

/* How many of the cookies were reported; each at most once. */
static unsigned count_reported(const struct side *s)
{
	unsigned n = 0;

	for (unsigned i = 0; i < N_OPS; i++) {
		cr_assert_leq(s->done[i], 1, "op %u reported %u times", i, s->done[i]);
		n += s->done[i];
	}
	return n;
}

/* The ep is down: it takes nothing, reports nothing until the fence, then all, and nothing lands.
 */
static void expect_fenced_end(struct rig *r)
{
	uint8_t *before = malloc(REGION_BYTES);
	struct kvx_op op = make_op(&r->a, KVX_OP_READ, 0, 0, 8);
	unsigned n_before = count_reported(&r->a);

	rig_settle(r);
	cr_assert_eq(r->a.n_downs, 1);
	cr_assert_eq(T->post(r->a.ep, &op, 1), r->a.down_status);
	cr_assert_eq(r->a.n_failed, 0, "bytes may still land: nothing has failed yet");
	cr_assert_eq(T->fence(r->a.ep), 0);
	memcpy(before, r->a.mem.addr, REGION_BYTES);
	rig_settle(r);
	fake_verbs_land_late();
	cr_assert_eq(count_reported(&r->a), N_OPS);
	cr_assert_eq(r->a.n_failed, N_OPS - n_before);
	if (r->a.n_failed > 0) {
		cr_assert_eq(r->a.status, r->a.down_status);
		cr_assert_eq(r->a.vendor, r->a.down_vendor);
		cr_assert_eq(r->a.text, r->a.down_text);
	}
	cr_assert_arr_eq(r->a.mem.addr, before, REGION_BYTES, "landed after the fence");
	cr_assert_eq(r->a.n_downs, 1);
	free(before);
}

static void expect_broken(enum kvx_op_kind kind, enum ibv_wc_status status, unsigned nth, int want)
{
	struct rig r;

	rig_open(&r);
	fake_verbs_late(true);
	post_held(&r, kind);
	fake_verbs_break(nth, status, 0x1234, FV_LAND_HALF);
	rig_settle(&r);
	cr_assert(fake_verbs_broken());
	cr_assert_eq(r.a.n_downs, 1);
	cr_assert_eq(r.a.down_status, want, "status %d is %d", (int)status, r.a.down_status);
	cr_assert_eq(r.a.down_vendor, 0x1234);
	cr_assert_gt(strlen(r.a.down_text), 10);
	expect_fenced_end(&r);
	rig_close(&r);
}

Test(verbs_fault, every_error_completion_ends_the_lane)
{
	for (int status = IBV_WC_LOC_LEN_ERR; status <= IBV_WC_GENERAL_ERR; status++) {
		int want = -EIO;

		if (status == IBV_WC_RETRY_EXC_ERR || status == IBV_WC_RNR_RETRY_EXC_ERR ||
		    status == IBV_WC_RESP_TIMEOUT_ERR)
			want = -EHOSTUNREACH;
		if (status == IBV_WC_REM_ABORT_ERR)
			want = -EHOSTDOWN;
		if (status == IBV_WC_FATAL_ERR)
			want = -ENODEV;
		expect_broken(KVX_OP_WRITE, (enum ibv_wc_status)status, 3, want);
	}
	KVX_TEST_END();
}

Test(verbs_fault, whichever_request_fails_each_op_is_reported_once)
{
	for (unsigned nth = 1; nth <= 2 * N_OPS; nth++)
		expect_broken(KVX_OP_WRITE, IBV_WC_RETRY_EXC_ERR, nth, -EHOSTUNREACH);
	for (unsigned nth = 1; nth <= N_OPS; nth++)
		expect_broken(KVX_OP_READ, IBV_WC_RETRY_EXC_ERR, nth, -EHOSTUNREACH);
	KVX_TEST_END();
}

Test(verbs_fault, lost_acknowledgement_is_no_success)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct rig r;

	conf.qps_per_lane = 1;
	rig_reset();
	rig_open_conf(&r, &conf);
	post_held(&r, KVX_OP_WRITE);
	fake_verbs_break(1, IBV_WC_RETRY_EXC_ERR, 0x81, FV_LAND_ALL);
	rig_settle(&r);
	cr_assert_eq(r.a.done[0], 0);
	expect_fenced_end(&r);
	cr_assert_eq(r.a.failed[0], 1);
	rig_close(&r);
	KVX_TEST_END();
}

/* What the fence is for: without it, the bytes of reads land in memory that was given back. */
Test(verbs_fault, late_reads_do_not_land_after_the_fence)
{
	struct rig r;

	rig_open(&r);
	fake_verbs_late(true);
	post_held(&r, KVX_OP_READ);
	fake_verbs_raise_qp(fake_verbs_qp(0), IBV_EVENT_QP_FATAL);
	fake_verbs_raise_qp(fake_verbs_qp(1), IBV_EVENT_QP_FATAL);
	cr_assert_eq(T->fence(r.a.ep), 0);
	memset(r.a.mem.addr, 0xee, REGION_BYTES);
	fake_verbs_land_late();
	rig_settle(&r);
	for (unsigned i = 0; i < REGION_BYTES; i++)
		cr_assert_eq(r.a.mem.addr[i], 0xee, "byte %u landed after the fence", i);
	cr_assert_gt(fake_verbs_late_dropped(), 0, "there were late bytes");
	cr_assert_eq(count_reported(&r.a), N_OPS);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_fault, late_writes_do_not_land_after_the_receivers_fence)
{
	struct rig r;

	rig_open(&r);
	fake_verbs_late(true);
	post_held(&r, KVX_OP_WRITE);
	fake_verbs_raise_qp(fake_verbs_qp(0), IBV_EVENT_QP_FATAL);
	fake_verbs_raise_qp(fake_verbs_qp(1), IBV_EVENT_QP_FATAL);
	cr_assert_eq(T->fence(r.b.ep), 0);
	memset(r.b.mem.addr, 0xee, REGION_BYTES);
	fake_verbs_land_late();
	for (unsigned i = 0; i < REGION_BYTES; i++)
		cr_assert_eq(r.b.mem.addr[i], 0xee, "byte %u landed after the fence", i);
	cr_assert_gt(fake_verbs_late_dropped(), 0, "there were late bytes");
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_fault, deregistration_is_a_fence_of_its_own)
{
	struct rig r;

	rig_open(&r);
	post_held(&r, KVX_OP_WRITE);
	fake_verbs_run(3);
	T->mem_dereg(r.b.mr);
	r.b.mr = NULL;
	memset(r.b.mem.addr, 0xee, REGION_BYTES);
	rig_settle(&r);
	for (unsigned i = 0; i < REGION_BYTES; i++)
		cr_assert_eq(r.b.mem.addr[i], 0xee, "byte %u landed after deregistration", i);
	cr_assert_eq(r.a.down_status, -EIO);
	cr_assert_not_null(strstr(r.a.down_text, "withdrawn"), "%s", r.a.down_text);
	expect_fenced_end(&r);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_fault, fence_with_ops_in_flight_cancels_them)
{
	struct rig r;

	rig_open(&r);
	post_held(&r, KVX_OP_READ);
	fake_verbs_run(3);
	cr_assert_eq(T->fence(r.a.ep), 0);
	cr_assert_eq(T->fence(r.a.ep), 0, "idempotent");
	rig_settle(&r);
	cr_assert_eq(count_reported(&r.a), N_OPS);
	cr_assert_gt(r.a.n_failed, 0);
	cr_assert_eq(r.a.status, -ECANCELED);
	cr_assert_eq(r.a.n_downs, 0, "who fences knows");
	rig_close(&r);
	KVX_TEST_END();
}

/* A completion that is in the queue when the fence comes is a success: the bytes are there. */
Test(verbs_fault, what_was_complete_before_the_fence_is_a_success)
{
	for (int keeps_dead = 0; keeps_dead < 2; keeps_dead++) {
		struct rig r;

		rig_open(&r);
		fake_verbs_dev(0)->keeps_dead = keeps_dead != 0;
		post_held(&r, KVX_OP_READ);
		while (fake_verbs_run(100) > 0)
			;
		cr_assert_eq(T->fence(r.a.ep), 0);
		rig_settle(&r);
		cr_assert_eq(count_reported(&r.a), N_OPS);
		if (keeps_dead)
			cr_assert_eq(r.a.n_failed, 0);
		for (unsigned i = 0; i < N_OPS; i++)
			if (r.a.failed[i] == 0)
				cr_assert_arr_eq(r.a.mem.addr + i * 16384, r.b.mem.addr + i * 32768,
						 8192);
		rig_close(&r);
	}
	KVX_TEST_END();
}

Test(verbs_fault, completions_that_come_up_after_the_end_are_dropped)
{
	struct rig r;

	rig_open(&r);
	fake_verbs_dev(0)->keeps_dead = true;
	post_held(&r, KVX_OP_READ);
	fake_verbs_hold_completions(true);
	while (fake_verbs_run(100) > 0)
		;
	cr_assert_eq(T->fence(r.a.ep), 0);
	rig_settle(&r);
	cr_assert_eq(count_reported(&r.a), N_OPS);
	cr_assert_eq(r.a.n_failed, N_OPS);
	fake_verbs_hold_completions(false);
	fake_verbs_release(1000);
	rig_settle(&r);
	cr_assert_eq(count_reported(&r.a), N_OPS);
	side_end_ep(&r.a);
	rig_settle(&r);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_fault, fence_that_fails_says_so_and_reports_nothing)
{
	struct rig r;

	rig_open(&r);
	kvx_log_set_level(KVX_LOG_ERROR);
	post_held(&r, KVX_OP_READ);
	fake_verbs_fail_all(FV_DESTROY_QP, EBUSY);
	cr_assert_eq(T->fence(r.a.ep), -EBUSY);
	fake_verbs_fail_all(FV_DESTROY_QP, 0);
	pump(&r);
	pump(&r);
	cr_assert_eq(count_reported(&r.a), 0, "its queue pair still works");
	cr_assert_eq(T->fence(r.a.ep), 0, "again");
	rig_settle(&r);
	cr_assert_eq(count_reported(&r.a), N_OPS);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_fault, part_of_a_chain_that_was_posted_is_reported_after_the_fence)
{
	for (unsigned limit = 0; limit < N_OPS; limit++) {
		struct kvx_op ops[N_OPS];
		struct rig r;
		int rc;

		rig_open(&r);
		fake_verbs_mode(FV_HELD);
		for (unsigned i = 0; i < N_OPS; i++) {
			ops[i] = make_op(&r.a, KVX_OP_WRITE, i * 16384, i * 32768, 8192);
			ops[i].cookie = 1;
		}
		fake_verbs_post_limit(limit);
		rc = T->post(r.a.ep, ops, N_OPS);
		rig_settle(&r);
		cr_assert_eq(r.a.n_downs, 1);
		cr_assert_eq(r.a.n_done, 0);
		cr_assert_eq(rc, limit == 0 ? r.a.down_status : (int)N_OPS);
		cr_assert_eq(T->fence(r.a.ep), 0);
		rig_settle(&r);
		cr_assert_eq(r.a.done[1], limit == 0 ? 0 : N_OPS);
		cr_assert_eq(r.a.n_failed, r.a.done[1]);
		rig_close(&r);
	}
	KVX_TEST_END();
}

Test(verbs_fault, request_that_the_device_refuses_ends_the_lane)
{
	struct kvx_op op;
	struct rig r;

	rig_open(&r);
	op = make_op(&r.a, KVX_OP_WRITE, 0, 0, 8192);
	fake_verbs_fail(FV_POST_SEND, 1, EINVAL);
	cr_assert_eq(T->post(r.a.ep, &op, 1), -EINVAL);
	cr_assert_eq(T->post(r.a.ep, &op, 1), -EINVAL);
	rig_settle(&r);
	cr_assert_eq(r.a.n_downs, 1);
	cr_assert_eq(r.a.n_done, 0);
	rig_close(&r);
	KVX_TEST_END();
}

/* The other side's queue pairs are gone, as after a kill: no event tells, only the next op. */
Test(verbs_fault, dead_peer_is_noticed_by_the_next_op)
{
	struct kvx_op op;
	struct rig r;

	rig_open(&r);
	side_end_ep(&r.b);
	rig_settle(&r);
	cr_assert_eq(r.a.n_downs, 0);
	op = make_op(&r.a, KVX_OP_WRITE, 0, 0, 8192);
	cr_assert_eq(T->post(r.a.ep, &op, 1), 1);
	rig_settle(&r);
	cr_assert_eq(r.a.down_status, -EHOSTUNREACH);
	cr_assert_eq(r.a.down_vendor, 0x81);
	rig_close(&r);
	KVX_TEST_END();
}

/* A lane that ended is made anew with other numbers, and works. */
Test(verbs_fault, new_lane_after_each_error)
{
	struct rig r;

	rig_open(&r);
	for (unsigned i = 0; i < 200; i++) {
		struct kvx_op op = make_op(&r.a, KVX_OP_WRITE, 0, i, 8192);
		uint32_t qpn = fake_verbs_qp(0)->qp_num;

		fake_verbs_break(1, IBV_WC_RETRY_EXC_ERR, 1, FV_LAND_NOTHING);
		cr_assert_eq(T->post(r.a.ep, &op, 1), 1);
		PUMP_UNTIL(&r, r.a.n_downs == 1);
		side_end_ep(&r.a);
		side_end_ep(&r.b);
		r.a.up = r.b.up = false;
		r.a.n_downs = 0;
		side_listen(&r.a, 0);
		side_listen(&r.b, 0);
		sides_connect(&r);
		side_import(&r.a, &r.b);
		side_import(&r.b, &r.a);
		cr_assert_neq(fake_verbs_qp(0)->qp_num, qpn);
		op = make_op(&r.a, KVX_OP_WRITE, 0, i, 8192);
		run_ops(&r, &op, 1);
		cr_assert_eq(r.a.n_failed, 0);
		cr_assert_arr_eq(r.b.mem.addr + i, r.a.mem.addr, 8192);
	}
	rig_close(&r);
	KVX_TEST_END();
}
