/* The fake transport fails as scripted, and sees who breaks the promises of a worker. */
#include <errno.h>
#include <string.h>

#include "fake_pair.h"
#include "test_end.h"

Test(fake_faults, dropped_ops_come_back_from_the_fence_only)
{
	for (unsigned lands = 0; lands < 2; lands++) {
		struct kvx_fake_script script = {
		    .latency_ns = 10, .drop_nth_op = 2, .drop_lands = lands != 0};
		static struct side a, b;

		pair_open(&a, &b, &script);
		for (unsigned i = 0; i < 3; i++)
			cr_assert_eq(post_one(&a, KVX_OP_WRITE, i * 10, 10, i), 1);
		kvx_fake_advance(&script, 1000000);
		expect_done(&a, 0, 0);
		expect_done(&a, 2, 0);
		expect_quiet(&a);
		cr_assert_eq(b.bytes[10], test_byte(lands ? 1 : 2, 10));
		cr_assert_eq(ops->fence(a.ep), 0);
		expect_done(&a, 1, -ECANCELED);
		side_close(&a);
		side_close(&b);
		expect_nothing_left(&script);
	}
	KVX_TEST_END();
}

Test(fake_faults, nothing_lands_after_the_fence)
{
	struct kvx_fake_script script = {.latency_ns = 1000};
	static struct side a, b;

	pair_open(&a, &b, &script);
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, BYTES, 1), 1);
	cr_assert_eq(post_one(&b, KVX_OP_WRITE, 0, BYTES, 2), 1); /* inbound for a */
	cr_assert_eq(ops->fence(a.ep), 0);
	kvx_fake_advance(&script, 1000000);
	for (unsigned i = 0; i < BYTES; i++) {
		cr_assert_eq(a.bytes[i], test_byte(1, i));
		cr_assert_eq(b.bytes[i], test_byte(2, i));
	}
	expect_done(&a, 1, -ECANCELED);
	expect_done(&b, 2, -EHOSTDOWN);
	cr_assert_eq(next_event(&b).kind, KVX_TEV_EP_DOWN);
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 8, 3), -ESHUTDOWN);
	cr_assert_eq(post_one(&b, KVX_OP_WRITE, 0, 8, 3), -EHOSTDOWN);
	side_close(&a);
	side_close(&b);
	expect_nothing_left(&script);
	KVX_TEST_END();
}

Test(fake_faults, scripted_losses_at_the_nth_op)
{
	struct kvx_fake_script script = {
	    .latency_ns = 100, .fail_nth_op = 1, .fail_err = -EIO, .ep_down_at_op = 3};
	static struct side a, b;

	pair_open(&a, &b, &script);
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 100, 1), 1);
	kvx_fake_advance(&script, 100);
	expect_done(&a, 1, -EIO);
	cr_assert_eq(b.bytes[49], test_byte(1, 49)); /* half of it landed */
	cr_assert_eq(b.bytes[50], test_byte(2, 50));
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 200, 10, 2), 1);
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 300, 10, 3), 1);
	expect_done(&a, 2, -EHOSTDOWN);
	expect_done(&a, 3, -EHOSTDOWN);
	cr_assert_eq(next_event(&a).kind, KVX_TEV_EP_DOWN);
	cr_assert_eq(next_event(&b).kind, KVX_TEV_EP_DOWN);
	kvx_fake_advance(&script, 1000);
	cr_assert_eq(b.bytes[200], test_byte(2, 200));
	side_close(&a);
	side_close(&b);
	expect_nothing_left(&script);
	KVX_TEST_END();
}

Test(fake_faults, lost_device_reports_its_ops_after_the_fence)
{
	struct kvx_fake_script script = {.latency_ns = 100, .device_lost_at_op = 1};
	static struct side a, b;

	pair_open(&a, &b, &script);
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 100, 1), 1);
	kvx_fake_advance(&script, 1000);
	cr_assert_eq(next_event(&a).kind, KVX_TEV_DEVICE_LOST);
	expect_quiet(&a);
	cr_assert_eq(b.bytes[0], test_byte(2, 0));
	cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 100, 1), -ENODEV);
	cr_assert_eq(ops->fence(a.ep), 0);
	expect_done(&a, 1, -ECANCELED);
	side_close(&a);
	side_close(&b);
	KVX_TEST_END();
}

Test(fake_faults, each_slot_fails_at_its_nth_call)
{
	struct kvx_fake_script script = {0};
	struct kvx_dom_conf conf = {.test = &script};
	struct kvx_transport_limits limits;
	struct kvx_tevent event;
	struct kvx_dom *dom;
	struct kvx_ep *ep;
	struct kvx_why why;
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t len = sizeof(addr);

	script.faults[KVX_FAKE_OPEN] = (struct kvx_fake_fault){2, -ENODEV};
	script.faults[KVX_FAKE_LISTEN] = (struct kvx_fake_fault){1, -EADDRINUSE};
	script.faults[KVX_FAKE_PROGRESS] = (struct kvx_fake_fault){3, -EIO};
	cr_assert_eq(ops->open(&conf, &dom, &limits, &why), 0);
	struct kvx_dom *second;
	cr_assert_eq(ops->open(&conf, &second, &limits, &why), -ENODEV);
	cr_assert_neq(why.text[0], '\0');
	cr_assert_eq(ops->listen(dom, 0, &ep, addr, &len), -EADDRINUSE);
	cr_assert_eq(ops->progress(dom, &event, 1), 0);
	cr_assert_eq(ops->progress(dom, &event, 1), 0);
	cr_assert_eq(ops->progress(dom, &event, 1), -EIO);
	cr_assert_eq(ops->progress(dom, &event, 1), 0);
	cr_assert_eq(script.calls[KVX_FAKE_PROGRESS], 4);
	ops->close(dom);
	cr_assert_eq(ops->open(&(struct kvx_dom_conf){0}, &dom, &limits, &why), -EINVAL);
	KVX_TEST_END();
}

Test(fake_faults, a_device_that_is_up_again_says_so_once)
{
	struct kvx_fake_script script = {0};
	static struct side s;

	side_open(&s, &script, 1);
	kvx_fake_device_up(&script, s.dom);
	cr_assert_eq(ops->arm(s.dom), -EAGAIN);
	cr_assert_eq(next_event(&s).kind, KVX_TEV_DEVICE_UP);
	expect_quiet(&s);
	side_close(&s);
	KVX_TEST_END();
}

/* What was under way at the fence lands within settle_ns, or until the other side stops it. */
Test(fake_faults, late_writes_land_until_they_have_settled)
{
	enum { LATE, TOO_LATE, STOPPED, FENCED, N_CASES };

	for (unsigned i = 0; i < N_CASES; i++) {
		struct kvx_fake_script script = {.latency_ns = 1000,
						 .late_writes = true,
						 .limits.settle_ns = i == TOO_LATE ? 500 : 1000};
		static struct side a, b;

		pair_open(&a, &b, &script);
		cr_assert_eq(a.limits.settle_ns, script.limits.settle_ns);
		cr_assert_eq(post_one(&a, KVX_OP_WRITE, 0, 8, 1), 1);
		cr_assert_eq(ops->fence(a.ep), 0);
		expect_done(&a, 1, -ECANCELED);
		if (i == STOPPED)
			ops->lease(b.ep, 0);
		if (i == FENCED)
			cr_assert_eq(ops->fence(b.ep), 0);
		kvx_fake_advance(&script, 999);
		cr_assert_eq(b.bytes[0], test_byte(2, 0));
		kvx_fake_advance(&script, 1);
		cr_assert_eq(b.bytes[0], test_byte(i == LATE ? 1 : 2, 0), "case %u", i);
		cr_assert_eq(script.n_late, i == LATE);
		side_close(&a);
		side_close(&b);
		expect_nothing_left(&script);
	}
	KVX_TEST_END();
}

Test(fake_faults, what_breaks_the_promises_of_a_worker_is_counted)
{
	const struct kvx_transport_ops *blocking = &kvx_fake_blocking_ops;
	struct kvx_fake_script script = {0};
	struct kvx_dom_conf conf = {.test = &script};
	struct kvx_transport_limits limits;
	struct kvx_op op = {.len_bytes = 8, .kind = KVX_OP_WRITE};
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t len = sizeof(addr);
	struct kvx_dom *dom;
	struct kvx_ep *ep;
	struct kvx_why why;

	cr_assert(blocking->caps & KVX_CAP_BLOCKING_CONTROL);
	cr_assert_eq(blocking->open(&conf, &dom, &limits, &why), -EINVAL);
	cr_assert_eq(kvx_fake_gates_open(&script), 0);
	cr_assert_eq(blocking->open(&conf, &dom, &limits, &why), 0);
	cr_assert_eq(blocking->listen(dom, 0, &ep, addr, &len), 0);
	script.faults[KVX_FAKE_FENCE] = (struct kvx_fake_fault){1, -EIO};
	cr_assert_eq(blocking->fence(ep), -EIO);
	cr_assert_eq(script.n_violations, 0);
	cr_assert_eq(blocking->post(ep, &op, 0), 0); /* its fence has begun */
	cr_assert_eq(script.n_violations, 1);
	cr_assert_not_null(script.violation);
	cr_assert_eq(blocking->fence(ep), 0);
	blocking->ep_close(ep);
	blocking->close(dom);
	kvx_fake_gates_close(&script);
	expect_nothing_left(&script);
	KVX_TEST_END();
}
