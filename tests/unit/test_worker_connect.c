/* Workers without a thread of two nodes: connecting, and news of the other node. */
#include "worker/worker.h"

#include "test_end.h"
#include "test_worker.h"

/* Two workers on one script: two nodes. */
struct nodes {
	struct kvx_fake_script script;
	struct test_worker a, b;
	struct test_cmd listen_a, listen_b;
};

static void nodes_open(struct nodes *n, uint64_t latency_ns)
{
	memset(n, 0, sizeof(*n));
	n->script.latency_ns = latency_ns;
	cr_assert_eq(test_worker_start(&n->a, &kvx_fake_ops, false, 16, &n->script), 0);
	cr_assert_eq(test_worker_start(&n->b, &kvx_fake_ops, false, 16, &n->script), 0);
	cr_assert_eq(test_cmd_run(&n->a, &n->listen_a, KVX_CMD_LISTEN), 0);
	cr_assert_eq(test_cmd_run(&n->b, &n->listen_b, KVX_CMD_LISTEN), 0);
	n->a.ep = n->listen_a.cmd.ep;
	n->b.ep = n->listen_b.cmd.ep;
}

static void nodes_close(struct nodes *n)
{
	test_worker_teardown(&n->a);
	test_worker_teardown(&n->b);
	cr_assert_eq(n->script.n_doms + n->script.n_eps, 0);
}

static void submit_connect(struct test_worker *t, struct test_cmd *tc, const struct test_cmd *to)
{
	tc->cmd.ep = t->ep;
	tc->cmd.len = to->cmd.len;
	memcpy(tc->cmd.bytes, to->cmd.bytes, to->cmd.len);
	test_cmd_submit(t, tc, KVX_CMD_CONNECT);
}

Test(worker_connect, connect_comes_back_when_the_ep_is_up)
{
	static struct nodes n;
	struct test_cmd a = {0};

	nodes_open(&n, 1000);
	submit_connect(&n.a, &a, &n.listen_b);
	test_worker_turn(&n.a);
	cr_assert_eq(a.n_done, 0);
	kvx_fake_advance(&n.script, 1000);
	cr_assert(test_cmd_wait(&n.a, &a));
	cr_assert_eq(a.cmd.status, 0);
	cr_assert_eq(n.a.n_notes, 0);
	nodes_close(&n);
	KVX_TEST_END();
}

Test(worker_connect, connect_to_nobody_comes_back_with_the_reason)
{
	static struct nodes n;
	struct test_cmd a = {0}, close_b = {0};

	nodes_open(&n, 1000);
	close_b.cmd.ep = n.b.ep;
	cr_assert_eq(test_cmd_run(&n.b, &close_b, KVX_CMD_EP_CLOSE), 0);
	n.b.ep = NULL;
	submit_connect(&n.a, &a, &n.listen_b);
	test_worker_turn(&n.a);
	kvx_fake_advance(&n.script, 1000);
	cr_assert(test_cmd_wait(&n.a, &a));
	cr_assert_eq(a.cmd.status, -EHOSTUNREACH);
	cr_assert_str_eq(a.cmd.text, "fake: endpoint lost");
	cr_assert_eq(n.a.n_notes, 0); /* the command said it */
	nodes_close(&n);
	KVX_TEST_END();
}

Test(worker_connect, fence_and_close_bring_a_waiting_connect_back)
{
	for (unsigned i = 0; i < 2; i++) {
		static struct nodes n;
		struct test_cmd a = {0}, stop = {0};

		nodes_open(&n, 1000);
		submit_connect(&n.a, &a, &n.listen_b);
		test_worker_turn(&n.a);
		stop.cmd.ep = n.a.ep;
		cr_assert_eq(test_cmd_run(&n.a, &stop, i ? KVX_CMD_EP_CLOSE : KVX_CMD_FENCE), 0);
		cr_assert_eq(a.n_done, 1);
		cr_assert_eq(a.cmd.status, -ECANCELED);
		if (i == 1)
			n.a.ep = NULL;
		nodes_close(&n);
	}
	KVX_TEST_END();
}

Test(worker_connect, loss_of_the_other_node_is_noted)
{
	static struct nodes n;
	struct test_cmd a = {0}, close_b = {0};

	nodes_open(&n, 10);
	submit_connect(&n.a, &a, &n.listen_b);
	test_worker_turn(&n.a);
	kvx_fake_advance(&n.script, 10);
	cr_assert(test_cmd_wait(&n.a, &a));
	kvx_fake_ep_lose(n.a.ep, -EHOSTDOWN);
	test_worker_turn(&n.a);
	cr_assert_eq(n.a.n_notes, 1);
	cr_assert_eq(n.a.note.kind, KVX_TEV_EP_DOWN);
	cr_assert_eq(n.a.note.status, -EHOSTDOWN);
	close_b.cmd.ep = n.b.ep;
	close_b.cmd.lease_ns = 5;
	cr_assert_eq(test_cmd_run(&n.b, &close_b, KVX_CMD_LEASE), 0);
	nodes_close(&n);
	KVX_TEST_END();
}
