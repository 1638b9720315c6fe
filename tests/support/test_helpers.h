/* A worker with helper threads on the fake transport with gates, and another node that it can reach
 * (its domain belongs to the test's thread). */
#ifndef KVX_TEST_HELPERS_H
#define KVX_TEST_HELPERS_H

#include "test_worker.h"

#define HELPERS_REGION 65536u

struct test_far {
	struct kvx_dom *dom;
	struct kvx_ep *ep;
	struct kvx_mem mem;
	struct kvx_mr *mr;
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t addr_len;
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	size_t mkey_len;
};

static inline void test_far_open(struct test_far *far, struct kvx_fake_script *script)
{
	const struct kvx_transport_ops *ops = &kvx_fake_blocking_ops;
	struct kvx_dom_conf conf = {.test = script};
	struct kvx_transport_limits limits;
	int len;

	far->addr_len = sizeof(far->addr);
	test_mem_make(&far->mem, HELPERS_REGION);
	cr_assert_eq(ops->open(&conf, &far->dom, &limits, NULL), 0);
	cr_assert_eq(ops->listen(far->dom, 0, &far->ep, far->addr, &far->addr_len), 0);
	cr_assert_eq(ops->mem_reg(far->dom, 0, &far->mem, TEST_RIGHTS, &far->mr), 0);
	len = ops->mkey_pack(far->mr, far->mkey, sizeof(far->mkey));
	cr_assert_gt(len, 0);
	far->mkey_len = (size_t)len;
}

static inline void test_far_close(struct test_far *far)
{
	const struct kvx_transport_ops *ops = &kvx_fake_blocking_ops;

	ops->mem_dereg(far->mr);
	cr_assert_eq(ops->fence(far->ep), 0);
	ops->ep_close(far->ep);
	ops->close(far->dom);
	kvx_mem_fini(&far->mem);
}

static inline void test_connect_submit(struct test_worker *t, struct test_cmd *tc,
				       const struct test_far *far)
{
	tc->cmd.ep = t->ep;
	tc->cmd.len = far->addr_len;
	memcpy(tc->cmd.bytes, far->addr, far->addr_len);
	test_cmd_submit(t, tc, KVX_CMD_CONNECT);
}

static inline void test_ep_submit(struct test_worker *t, struct test_cmd *tc,
				  enum kvx_work_kind kind)
{
	tc->cmd.ep = t->ep;
	test_cmd_submit(t, tc, kind);
}

static inline unsigned test_calls(struct kvx_fake_script *script, enum kvx_fake_slot slot)
{
	kvx_fake_lock(script);
	unsigned n = script->calls[slot];
	kvx_fake_unlock(script);
	return n;
}

/* Turns until n calls stand at the gate of a slot. */
static inline void test_gate_wait(struct test_worker *t, struct kvx_fake_script *script,
				  enum kvx_fake_slot slot, unsigned n)
{
	uint64_t end = kvx_now_ns() + 5 * KVX_SEC;

	while (kvx_fake_gate_waiting(script, slot) < n && kvx_now_ns() < end)
		test_worker_turn(t);
	cr_assert_geq(kvx_fake_gate_waiting(script, slot), n, "slot %d is not called", (int)slot);
}

/* Until the worker has made progress twice more: what was ready before that has been reported. A
 * command that has nothing to do wakes it if it sleeps. */
static inline void test_progress_wait(struct test_worker *t, struct kvx_fake_script *script)
{
	unsigned before = test_calls(script, KVX_FAKE_PROGRESS);
	uint64_t end = kvx_now_ns() + 5 * KVX_SEC;

	while (test_calls(script, KVX_FAKE_PROGRESS) < before + 2 && kvx_now_ns() < end) {
		struct test_cmd nothing = {0};

		test_cmd_run(t, &nothing, KVX_CMD_FENCE);
	}
	test_worker_turn(t); /* takes what it has sent */
}

static inline void test_helpers_open(struct test_worker *t, struct kvx_fake_script *script,
				     bool threaded)
{
	cr_assert_eq(kvx_fake_gates_open(script), 0);
	cr_assert_eq(test_worker_start(t, &kvx_fake_blocking_ops, threaded, 64, script), 0);
}

/* What every test of helpers ends with: nothing is left, and the worker kept its promises. */
static inline void test_helpers_expect_clean(struct kvx_fake_script *script)
{
	cr_assert_eq(script->n_doms + script->n_eps + script->n_mrs + script->n_rkeys, 0);
	cr_assert_eq(script->n_open_ops, 0);
	cr_assert_eq(script->n_violations, 0, "%u times: %s", script->n_violations,
		     script->violation);
	kvx_fake_gates_close(script);
}

#endif
