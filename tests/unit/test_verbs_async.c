/* What a device says unasked, which the soft device cannot be made to say: failed queue pairs,
 * completion queues and devices, ports that go and come. */
#include <poll.h>

#include "verbs_rig.h"

/* Asynchronous events wake a sleeper; who is awake looks now and then. */
static void sleep_and_pump(struct rig *r)
{
	for (unsigned i = 0; i < 20; i++) {
		(void)T->arm(r->a.dom);
		(void)T->arm(r->b.dom);
		pump(r);
	}
}

static bool wakes(struct side *s)
{
	struct pollfd pfd = {.fd = s->limits.event_fd, .events = POLLIN};

	return poll(&pfd, 1, 0) == 1;
}

static void post_one(struct rig *r, uint64_t cookie)
{
	struct kvx_op op = make_op(&r->a, KVX_OP_WRITE, 0, 0, 8192);

	op.cookie = cookie;
	cr_assert_eq(T->post(r->a.ep, &op, 1), 1);
}

static void expect_qp_event(enum ibv_event_type type)
{
	struct rig r;

	rig_open(&r);
	fake_verbs_mode(FV_HELD);
	post_one(&r, 1);
	fake_verbs_raise_qp(fake_verbs_qp(0), type);
	sleep_and_pump(&r);
	cr_assert_eq(r.a.n_downs, 1);
	cr_assert_lt(r.a.down_status, 0);
	cr_assert_eq(r.a.n_done, 0);
	cr_assert_eq(r.b.n_downs, 0);
	cr_assert_eq(T->fence(r.a.ep), 0);
	sleep_and_pump(&r);
	cr_assert_eq(r.a.failed[1], 1);
	rig_close(&r);
}

Test(verbs_async, failed_queue_pair_ends_the_lane)
{
	expect_qp_event(IBV_EVENT_QP_FATAL);
	expect_qp_event(IBV_EVENT_QP_ACCESS_ERR);
	expect_qp_event(IBV_EVENT_QP_REQ_ERR);
	KVX_TEST_END();
}

Test(verbs_async, failed_queue_pair_wakes_a_sleeper)
{
	struct rig r;

	rig_open(&r);
	sleep_and_pump(&r);
	cr_assert_eq(T->arm(r.a.dom), 0);
	cr_assert(!wakes(&r.a));
	fake_verbs_raise_qp(fake_verbs_qp(0), IBV_EVENT_QP_FATAL);
	cr_assert(wakes(&r.a));
	pump(&r);
	cr_assert_eq(r.a.n_downs, 1);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_async, who_is_awake_looks_too)
{
	struct rig r;

	rig_open(&r);
	fake_verbs_raise_qp(fake_verbs_qp(0), IBV_EVENT_QP_FATAL);
	PUMP_UNTIL(&r, r.a.n_downs == 1);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_async, other_events_change_nothing)
{
	struct kvx_op op;
	struct rig r;

	rig_open(&r);
	fake_verbs_raise_qp(fake_verbs_qp(0), IBV_EVENT_COMM_EST);
	fake_verbs_raise_qp(fake_verbs_qp(0), IBV_EVENT_SQ_DRAINED);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_LID_CHANGE);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_CLIENT_REREGISTER);
	fake_verbs_raise_port(fake_verbs_dev(0), 2, IBV_EVENT_PORT_ERR);
	sleep_and_pump(&r);
	cr_assert_eq(r.a.n_downs, 0);
	op = make_op(&r.a, KVX_OP_WRITE, 0, 0, 4096);
	run_ops(&r, &op, 1);
	cr_assert_eq(r.a.n_failed, 0);
	cr_assert_eq(kvx_counter_get(&r.a.limits.counters->async_events), 5);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_async, port_that_goes_down_ends_its_lanes)
{
	struct rig r;

	rig_open(&r);
	kvx_log_set_level(KVX_LOG_ERROR);
	fake_verbs_mode(FV_HELD);
	post_one(&r, 1);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ERR);
	sleep_and_pump(&r);
	cr_assert_eq(r.a.n_downs, 1);
	cr_assert_eq(r.a.down_status, -EHOSTUNREACH);
	cr_assert_not_null(strstr(r.a.down_text, "port"));
	cr_assert(!r.a.lost);
	cr_assert_eq(T->fence(r.a.ep), 0);
	sleep_and_pump(&r);
	cr_assert_eq(r.a.failed[1], 1);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_async, no_lane_while_the_port_is_down_one_after_it_came_back)
{
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t len = sizeof(addr);
	struct kvx_ep *ep;
	struct rig r;

	rig_open(&r);
	kvx_log_set_level(KVX_LOG_ERROR);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ERR);
	sleep_and_pump(&r);
	side_end_ep(&r.a);
	side_end_ep(&r.b);
	cr_assert_eq(T->listen(r.a.dom, 0, &ep, addr, &len), -ENETDOWN);
	cr_assert(!r.a.device_up);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ACTIVE);
	sleep_and_pump(&r);
	cr_assert(r.a.device_up);
	r.a.up = r.b.up = false;
	r.a.n_downs = 0;
	side_listen(&r.a, 0);
	side_listen(&r.b, 0);
	sides_connect(&r);
	rig_close(&r);
	KVX_TEST_END();
}

/* No event says when a call that failed would succeed again. */
static void expect_asked_again(enum fake_verbs_fn fn)
{
	struct rig r;

	rig_open(&r);
	kvx_log_set_level(KVX_LOG_ERROR);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ERR);
	sleep_and_pump(&r);
	side_end_ep(&r.a);
	fake_verbs_fail(fn, 1, ENOMEM);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ACTIVE);
	PUMP_UNTIL(&r, r.a.device_up);
	cr_assert(fake_verbs_fired());
	side_listen(&r.a, 0);
	rig_close(&r);
}

Test(verbs_async, port_that_cannot_be_asked_for_a_moment_is_asked_again)
{
	expect_asked_again(FV_QUERY_PORT);
	expect_asked_again(FV_QUERY_GID);
	KVX_TEST_END();
}

/* The news may be dropped by who does not know the ep yet; so connecting it must fail. */
Test(verbs_async, ep_that_broke_before_it_was_connected_does_not_connect)
{
	struct rig r;

	rig_open(&r);
	kvx_log_set_level(KVX_LOG_ERROR);
	side_end_ep(&r.a);
	side_end_ep(&r.b);
	r.a.up = r.b.up = false;
	side_listen(&r.a, 0);
	side_listen(&r.b, 0);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ERR);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ACTIVE);
	sleep_and_pump(&r);
	cr_assert_eq(r.a.n_downs, 1);
	cr_assert_lt(T->connect(r.a.ep, r.b.addr, r.b.addr_len), 0);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_async, lost_completion_queue_is_replaced_once_its_lanes_are_gone)
{
	struct ibv_cq *cq;
	struct kvx_op op;
	struct rig r;

	rig_open(&r);
	kvx_log_set_level(KVX_LOG_ERROR);
	fake_verbs_mode(FV_HELD);
	post_one(&r, 1);
	cq = fake_verbs_qp(0)->send_cq;
	fake_verbs_raise_cq(cq);
	sleep_and_pump(&r);
	cr_assert_eq(r.a.n_downs, 1);
	cr_assert(!r.a.lost);
	cr_assert(!r.a.device_up);
	cr_assert_eq(T->fence(r.a.ep), 0);
	sleep_and_pump(&r);
	cr_assert_eq(r.a.failed[1], 1);
	side_end_ep(&r.a);
	side_end_ep(&r.b);
	sleep_and_pump(&r);
	cr_assert(r.a.device_up, "lanes may be made anew");
	fake_verbs_mode(FV_AT_ONCE);
	r.a.up = r.b.up = false;
	r.a.n_downs = 0;
	side_listen(&r.a, 0);
	side_listen(&r.b, 0);
	sides_connect(&r);
	side_import(&r.a, &r.b);
	cr_assert_neq(fake_verbs_qp(0)->send_cq, cq);
	op = make_op(&r.a, KVX_OP_WRITE, 0, 0, 4096);
	run_ops(&r, &op, 1);
	cr_assert_eq(r.a.n_failed, 0);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_async, no_lane_on_a_lost_completion_queue)
{
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t len = sizeof(addr);
	struct kvx_ep *ep;
	struct rig r;

	rig_open(&r);
	kvx_log_set_level(KVX_LOG_ERROR);
	fake_verbs_raise_cq(fake_verbs_qp(0)->send_cq);
	sleep_and_pump(&r);
	cr_assert_lt(T->listen(r.a.dom, 0, &ep, addr, &len), 0);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_async, replacing_a_completion_queue_is_tried_again_when_memory_is_short)
{
	struct rig r;

	rig_open(&r);
	kvx_log_set_level(KVX_LOG_ERROR);
	fake_verbs_raise_cq(fake_verbs_qp(0)->send_cq);
	sleep_and_pump(&r);
	fake_verbs_fail(FV_CREATE_CQ, 1, ENOMEM);
	side_end_ep(&r.a);
	sleep_and_pump(&r);
	cr_assert(fake_verbs_fired());
	cr_assert(!r.a.lost);
	cr_assert_eq(fake_verbs_count().cqs, 1, "there is none for now");
	while (T->arm(r.a.dom) != 0)
		side_pump(&r.a);
	cr_assert(!wakes(&r.a), "sleeps until it is time");
	PUMP_UNTIL(&r, r.a.device_up);
	cr_assert_eq(fake_verbs_count().cqs, 2);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_async, completion_queue_that_cannot_be_replaced_is_a_lost_device)
{
	struct rig r;

	rig_open(&r);
	kvx_log_set_level(KVX_LOG_ERROR);
	fake_verbs_raise_cq(fake_verbs_qp(0)->send_cq);
	sleep_and_pump(&r);
	fake_verbs_fail(FV_CREATE_CQ, 1, EIO);
	side_end_ep(&r.a);
	sleep_and_pump(&r);
	cr_assert(fake_verbs_fired());
	cr_assert(r.a.lost);
	rig_close(&r);
	KVX_TEST_END();
}

static void expect_device_lost(bool silently)
{
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t len = sizeof(addr);
	struct kvx_ep *ep;
	struct rig r;

	rig_open(&r);
	kvx_log_set_level(KVX_LOG_ERROR);
	fake_verbs_mode(FV_HELD);
	fake_verbs_dev(0)->dies_silently = silently;
	post_one(&r, 1);
	fake_verbs_raise_fatal(fake_verbs_dev(0));
	sleep_and_pump(&r);
	cr_assert(r.a.lost);
	cr_assert_eq(r.a.n_downs, 1);
	cr_assert_eq(r.a.n_done, 0);
	cr_assert_eq(T->fence(r.a.ep), 0);
	sleep_and_pump(&r);
	cr_assert_eq(r.a.failed[1], 1);
	cr_assert_lt(r.a.status, 0);
	cr_assert_lt(T->listen(r.a.dom, 0, &ep, addr, &len), 0);
	rig_close(&r);
}

Test(verbs_async, fatal_error_of_the_device_is_told_and_can_be_closed)
{
	expect_device_lost(false);
	expect_device_lost(true);
	KVX_TEST_END();
}

/* A device that goes on talking after its end must not keep the worker awake. */
Test(verbs_async, lost_device_lets_the_worker_sleep)
{
	struct rig r;

	rig_open(&r);
	kvx_log_set_level(KVX_LOG_ERROR);
	fake_verbs_raise_fatal(fake_verbs_dev(0));
	sleep_and_pump(&r);
	fake_verbs_raise_port(fake_verbs_dev(0), 1, IBV_EVENT_PORT_ERR);
	sleep_and_pump(&r);
	cr_assert_eq(T->fence(r.a.ep), 0);
	sleep_and_pump(&r);
	cr_assert_eq(T->arm(r.a.dom), 0);
	cr_assert(!wakes(&r.a));
	rig_close(&r);
	KVX_TEST_END();
}

/* Events of a lane that is gone already find nobody. */
Test(verbs_async, event_of_a_dead_queue_pair_hits_no_other_lane)
{
	struct rig r;

	rig_open(&r);
	fake_verbs_raise_qp(fake_verbs_qp(0), IBV_EVENT_QP_FATAL);
	side_end_ep(&r.a);
	side_end_ep(&r.b);
	r.a.up = r.b.up = false;
	side_listen(&r.a, 0);
	side_listen(&r.b, 0);
	sides_connect(&r);
	sleep_and_pump(&r);
	cr_assert_eq(r.a.n_downs, 0);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_async, traffic_of_a_cut_cable_ends_by_itself)
{
	struct rig r;

	rig_open(&r);
	fake_verbs_cut(fake_verbs_dev(1), 1, true);
	post_one(&r, 1);
	PUMP_UNTIL(&r, r.a.n_downs == 1);
	cr_assert_eq(r.a.down_status, -EHOSTUNREACH);
	cr_assert_eq(r.b.n_downs, 0, "the passive side sees nothing");
	rig_close(&r);
	KVX_TEST_END();
}
