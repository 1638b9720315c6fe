/* Leases, and sleeping until there is something to do, on the stand-in. */
#include <poll.h>
#include <unistd.h>

#include "verbs_rig.h"

static bool wakes_within(struct side *s, int ms)
{
	struct pollfd pfd = {.fd = s->limits.event_fd, .events = POLLIN};

	return poll(&pfd, 1, ms) == 1;
}

/* As a worker does before it sleeps. */
static void fall_asleep(struct side *s)
{
	for (unsigned i = 0; i < 1000; i++) {
		side_pump(s);
		if (T->arm(s->dom) == 0 && !wakes_within(s, 0))
			return;
	}
	cr_assert_fail("no sleep is found");
}

static void post_one(struct rig *r, enum kvx_op_kind kind, uint64_t cookie)
{
	struct kvx_op op = make_op(&r->a, kind, 0, 0, 8192);

	op.cookie = cookie;
	cr_assert_eq(T->post(r->a.ep, &op, 1), 1);
}

static void expect_untouched(const struct side *s, uint64_t seed)
{
	for (unsigned i = 0; i < REGION_BYTES; i++)
		cr_assert_eq(s->mem.addr[i], test_byte(seed, i), "byte %u", i);
}

Test(verbs_lease, over_lets_nothing_land_or_be_read)
{
	struct rig r;

	rig_open(&r);
	T->lease(r.b.ep, kvx_now_ns() - 1);
	side_pump(&r.b);
	cr_assert_eq(r.b.n_downs, 1);
	cr_assert_eq(r.b.down_status, -ETIMEDOUT);
	post_one(&r, KVX_OP_WRITE, 1);
	post_one(&r, KVX_OP_READ, 2);
	PUMP_UNTIL(&r, r.a.n_downs == 1);
	cr_assert_eq(r.a.down_status, -EHOSTUNREACH);
	expect_untouched(&r.b, 2);
	expect_untouched(&r.a, 1);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_lease, extended_in_time_goes_on)
{
	struct kvx_op op;
	struct rig r;

	rig_open(&r);
	for (unsigned i = 0; i < 20; i++) {
		T->lease(r.b.ep, kvx_now_ns() + KVX_SEC);
		op = make_op(&r.a, KVX_OP_WRITE, 0, i, 4096);
		run_ops(&r, &op, 1);
		cr_assert_eq(r.a.n_failed, 0);
	}
	T->lease(r.b.ep, UINT64_MAX);
	side_pump(&r.b);
	cr_assert_eq(r.b.n_downs, 0);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_lease, taken_back_lets_nothing_land_on_return)
{
	struct rig r;

	rig_open(&r);
	fake_verbs_mode(FV_HELD);
	fake_verbs_late(true);
	post_one(&r, KVX_OP_WRITE, 1);
	T->lease(r.b.ep, 0);
	while (fake_verbs_run(100) > 0)
		;
	fake_verbs_land_late();
	expect_untouched(&r.b, 2);
	side_pump(&r.b);
	cr_assert_eq(r.b.n_downs, 1);
	cr_assert_eq(r.b.down_status, -ECANCELED);
	PUMP_UNTIL(&r, r.a.n_downs == 1);
	T->lease(r.b.ep, 0);
	T->lease(r.b.ep, kvx_now_ns() + KVX_SEC);
	cr_assert_eq(T->fence(r.b.ep), 0);
	T->lease(r.b.ep, kvx_now_ns() + KVX_SEC);
	side_pump(&r.b);
	cr_assert_eq(r.b.n_downs, 1);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_lease, own_ops_are_reported_after_the_fence)
{
	struct rig r;

	rig_open(&r);
	fake_verbs_mode(FV_HELD);
	post_one(&r, KVX_OP_WRITE, 1);
	T->lease(r.a.ep, kvx_now_ns() - 1);
	rig_settle(&r);
	cr_assert_eq(r.a.n_downs, 1);
	cr_assert_eq(r.a.n_done, 0);
	cr_assert_eq(T->fence(r.a.ep), 0);
	rig_settle(&r);
	cr_assert_eq(r.a.failed[1], 1);
	cr_assert_eq(r.a.status, -ETIMEDOUT);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_lease, end_wakes_a_sleeper)
{
	uint64_t begin;
	struct rig r;

	rig_open(&r);
	begin = kvx_now_ns();
	T->lease(r.b.ep, begin + KVX_SEC); /* falling asleep may take a while */
	fall_asleep(&r.b);
	cr_assert(!wakes_within(&r.b, 10));
	cr_assert(wakes_within(&r.b, 5000));
	cr_assert_geq(kvx_now_ns(), begin + KVX_SEC);
	side_pump(&r.b);
	cr_assert_eq(r.b.down_status, -ETIMEDOUT);
	fall_asleep(&r.b);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_lease, earliest_of_several_counts)
{
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t len = sizeof(addr);
	struct kvx_tevent ev[4];
	struct kvx_ep *other;
	struct rig r;
	int n = 0;

	rig_open(&r);
	cr_assert_eq(T->listen(r.b.dom, 0, &other, addr, &len), 0);
	T->lease(other, kvx_now_ns() + 500 * KVX_MS);
	T->lease(r.b.ep, kvx_now_ns() + 60 * KVX_SEC);
	fall_asleep(&r.b);
	cr_assert(wakes_within(&r.b, 5000));
	for (unsigned i = 0; i < 100 && n == 0; i++)
		n = T->progress(r.b.dom, ev, 4);
	cr_assert_eq(n, 1);
	cr_assert_eq(ev[0].kind, KVX_TEV_EP_DOWN);
	cr_assert_eq(ev[0].ep, other);
	cr_assert_eq(T->fence(other), 0);
	T->ep_close(other);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_lease, completion_wakes_a_sleeper)
{
	struct rig r;

	rig_open(&r);
	fake_verbs_mode(FV_HELD);
	for (unsigned i = 0; i < 100; i++) {
		post_one(&r, KVX_OP_READ, i);
		fall_asleep(&r.a);
		fake_verbs_run(100);
		cr_assert(wakes_within(&r.a, 0), "round %u", i);
		side_pump(&r.a);
		cr_assert_eq(r.a.done[i], 1);
	}
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_lease, completion_that_is_there_forbids_sleep)
{
	struct rig r;

	rig_open(&r);
	fall_asleep(&r.a);
	side_pump(&r.a);
	post_one(&r, KVX_OP_READ, 1);
	cr_assert_eq(T->arm(r.a.dom), -EAGAIN);
	cr_assert_eq(T->arm(r.a.dom), -EAGAIN, "what was found is not forgotten");
	side_pump(&r.a);
	cr_assert_eq(r.a.done[1], 1);
	rig_close(&r);
	KVX_TEST_END();
}

/* More than one look of arm() finds, and more than progress() may give back at once. */
Test(verbs_lease, what_arm_found_is_reported_with_the_rest_in_order)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct kvx_tevent ev;
	struct rig r;
	uint64_t next = 0;

	conf.qps_per_lane = 1;
	rig_reset();
	rig_open_conf(&r, &conf);
	for (unsigned i = 0; i < 40; i++)
		post_one(&r, KVX_OP_READ, i);
	cr_assert_eq(T->arm(r.a.dom), -EAGAIN);
	for (unsigned i = 0; i < 1000 && next < 40; i++)
		if (T->progress(r.a.dom, &ev, 1) == 1)
			cr_assert_eq(ev.cookie, next++);
	cr_assert_eq(next, 40);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_lease, fence_wakes_a_sleeper)
{
	struct rig r;

	rig_open(&r);
	fake_verbs_mode(FV_HELD);
	post_one(&r, KVX_OP_READ, 1);
	fall_asleep(&r.a);
	cr_assert_eq(T->fence(r.a.ep), 0);
	cr_assert(wakes_within(&r.a, 0));
	rig_settle(&r);
	cr_assert_eq(r.a.failed[1], 1);
	rig_close(&r);
	KVX_TEST_END();
}
