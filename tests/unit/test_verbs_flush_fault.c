/* Reads into GPU memory when their flush fails, takes too long, or is overtaken by a fence, a lost
 * device, a port that goes down: nothing is done that is not visible, and the next lane works. */
#include "verbs_gpu_pair.h"

Test(verbs_flush_fault, failed_flush_ends_the_lane_and_the_next_one_works)
{
	static struct grig g;
	struct kvx_op op;

	start(&g);
	fake_verbs_gpu_delay(true);
	op = gop(&g, KVX_OP_READ, 0, 0, 1000);
	cr_assert_eq(T->post(g.r.a.ep, &op, 1), 1);
	fake_verbs_break(1, IBV_WC_RETRY_EXC_ERR, 0x81, FV_LAND_NOTHING);
	PUMP_UNTIL(&g.r, g.r.a.n_downs == 1);
	cr_assert(fake_verbs_broken());
	cr_assert_eq(g.r.a.down_status, -EIO);
	cr_assert_eq(g.r.a.n_done, 0, "nothing is said of the op before the fence");
	cr_assert_eq(T->fence(g.r.a.ep), 0);
	PUMP_UNTIL(&g.r, g.r.a.n_done == 1);
	cr_assert_eq(g.r.a.n_failed, 1);
	relisten(&g);
	move_all(&g, KVX_OP_READ, 3000);
	finish(&g);
}

Test(verbs_flush_fault, refused_flush_ends_the_lane)
{
	static struct grig g;
	struct kvx_op op;

	start(&g);
	op = gop(&g, KVX_OP_READ, 0, 0, 1000);
	cr_assert_eq(T->post(g.r.a.ep, &op, 1), 1);
	fake_verbs_fail(FV_POST_SEND, 1, EINVAL);
	PUMP_UNTIL(&g.r, g.r.a.n_downs == 1);
	relisten(&g);
	move_all(&g, KVX_OP_READ, 3000);
	finish(&g);
}

Test(verbs_flush_fault, fence_reports_what_waits_for_a_flush)
{
	static struct grig g;
	struct kvx_op op;

	start(&g);
	fake_verbs_mode(FV_HELD);
	op = gop(&g, KVX_OP_READ, 0, 0, 1000);
	cr_assert_eq(T->post(g.r.a.ep, &op, 1), 1);
	fake_verbs_run(100);
	side_pump(&g.r.a); /* completed: waits for the flush, which is held */
	cr_assert_eq(g.r.a.n_done, 0);
	cr_assert_eq(T->fence(g.r.a.ep), 0);
	side_pump(&g.r.a);
	cr_assert_eq(g.r.a.n_done, 1);
	cr_assert_eq(g.r.a.status, -ECANCELED);
	fake_verbs_mode(FV_AT_ONCE);
	rig_settle(&g.r);
	cr_assert_eq(g.r.a.n_done, 1, "once");
	finish(&g);
}

static void lose_device(bool silently)
{
	static struct grig g;
	struct kvx_op op;

	start(&g);
	fake_verbs_dev(0)->dies_silently = silently;
	fake_verbs_mode(FV_HELD);
	op = gop(&g, KVX_OP_READ, 0, 0, 1000);
	cr_assert_eq(T->post(g.r.a.ep, &op, 1), 1);
	fake_verbs_run(100);
	side_pump(&g.r.a);
	fake_verbs_raise_fatal(fake_verbs_dev(0));
	PUMP_UNTIL(&g.r, (T->arm(g.r.a.dom), g.r.a.lost));
	cr_assert_eq(T->fence(g.r.a.ep), 0);
	PUMP_UNTIL(&g.r, g.r.a.n_done == 1);
	cr_assert_eq(g.r.a.n_failed, 1);
	fake_verbs_mode(FV_AT_ONCE);
	finish(&g);
}

Test(verbs_flush_fault, lost_device_ends_what_waits_for_a_flush)
{
	lose_device(false);
}

Test(verbs_flush_fault, device_that_dies_without_a_word_ends_what_waits_for_a_flush)
{
	lose_device(true);
}

/* The read is on its way and never comes back. */
Test(verbs_flush_fault, flush_that_takes_too_long_ends_the_lane)
{
	static struct grig g;
	struct kvx_op op;

	start(&g);
	op = gop(&g, KVX_OP_READ, 0, 0, 1000);
	cr_assert_eq(T->post(g.r.a.ep, &op, 1), 1);
	fake_verbs_mode(FV_HELD);
	PUMP_UNTIL(&g.r, g.r.a.n_downs == 1); /* some seconds */
	fake_verbs_mode(FV_AT_ONCE);
	relisten(&g);
	move_all(&g, KVX_OP_READ, 3000);
	finish(&g);
}

/* The port may come back with another address: what was connected to the old one is made anew. */
Test(verbs_flush_fault, port_that_went_down_has_a_new_loop_when_it_is_back)
{
	static struct grig g;

	start(&g);
	move_all(&g, KVX_OP_READ, 3000);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ERR);
	PUMP_UNTIL(&g.r, (T->arm(g.r.a.dom), g.r.a.n_downs == 1));
	cr_assert_not(g.r.a.dom->loops[0]->ready);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ACTIVE);
	relisten(&g);
	gmem_fill(&g.b, 98);
	move_all(&g, KVX_OP_READ, 3000);
	cr_assert_eq(g.r.a.n_downs, 0);
	finish(&g);
}

/* The port was down, and when a listens again, that call fails: is there a loop then? Whether or
 * not, ops of that kind go on. */
static void loop_made_anew(enum fake_verbs_fn fails, int err, bool is_ready, enum kvx_op_kind kind)
{
	static struct grig g;

	start(&g);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ERR);
	PUMP_UNTIL(&g.r, (T->arm(g.r.a.dom), g.r.a.n_downs == 1));
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ACTIVE);
	end_lane(&g);
	fake_verbs_fail(fails, 1, err);
	side_listen(&g.r.a, 0);
	cr_assert(fake_verbs_fired());
	cr_assert_eq(g.r.a.dom->loops[0]->ready, is_ready);
	join_lane(&g);
	move_all(&g, kind, 3000);
	finish(&g);
}

/* The old one cannot be destroyed: it is left behind, and lanes are made. */
Test(verbs_flush_fault, loop_that_the_device_keeps_bars_no_lane)
{
	loop_made_anew(FV_DESTROY_QP, EBUSY, true, KVX_OP_READ);
}

/* No new one can be made now: all but reads into GPU memory goes on. */
Test(verbs_flush_fault, loop_that_cannot_be_made_bars_no_lane)
{
	loop_made_anew(FV_CREATE_CQ, ENOMEM, false, KVX_OP_WRITE);
}

/* Whatever call fails next: each op is reported once, and those that went well are visible. */
static void run_with_fault(struct grig *g, unsigned nth, enum kvx_op_kind kind)
{
	struct gmem *to = kind == KVX_OP_READ ? &g->a : &g->b;
	struct gmem *from = kind == KVX_OP_READ ? &g->b : &g->a;
	unsigned taken = 0;
	struct kvx_op ops[12];

	gmem_fill(from, nth);
	gmem_fill(to, nth + 1000);
	memset(g->r.a.done, 0, sizeof(g->r.a.done));
	memset(g->r.a.failed, 0, sizeof(g->r.a.failed));
	g->r.a.n_done = 0;
	fake_verbs_fail(FV_N_FNS, nth, EINVAL);
	while (taken < 12 && g->r.a.n_downs == 0) {
		ops[taken] = gop(g, kind, taken * 5000, taken * 5000, 5000);
		ops[taken].cookie = taken;
		if (T->post(g->r.a.ep, &ops[taken], 1) == 1)
			taken++;
		side_pump(&g->r.a);
	}
	if (g->r.a.n_downs == 0)
		rig_settle(&g->r);
	(void)fake_verbs_fired();
	if (g->r.a.n_downs > 0)
		cr_assert_eq(T->fence(g->r.a.ep), 0);
	PUMP_UNTIL(&g->r, g->r.a.n_done >= taken);
	rig_settle(&g->r);
	cr_assert_eq(g->r.a.n_done, taken);
	for (unsigned i = 0; i < taken; i++) {
		cr_assert_eq(g->r.a.done[i], 1);
		if (g->r.a.failed[i] == 0)
			expect_same(to, i * 5000, from, i * 5000, 5000);
	}
	if (g->r.a.n_downs > 0)
		relisten(g);
}

Test(verbs_flush_fault, every_call_fails_in_turn)
{
	static struct grig g;

	start(&g);
	fake_verbs_gpu_delay(true);
	for (unsigned nth = 1; nth < 40; nth++) {
		run_with_fault(&g, nth, KVX_OP_READ);
		run_with_fault(&g, nth, KVX_OP_WRITE);
	}
	finish(&g);
}

/* The same of what the wire says. */
Test(verbs_flush_fault, every_work_request_fails_in_turn)
{
	static struct grig g;
	unsigned n_fired = 0;

	start(&g);
	fake_verbs_gpu_delay(true);
	for (unsigned nth = 1; nth < 30; nth++) {
		fake_verbs_break(nth, IBV_WC_REM_OP_ERR, 0x8b, (enum fake_verbs_land)(nth % 3));
		run_with_fault(&g, 1000, nth % 2 == 0 ? KVX_OP_READ : KVX_OP_WRITE);
		n_fired += fake_verbs_broken();
	}
	cr_assert_gt(n_fired, 10);
	finish(&g);
}
