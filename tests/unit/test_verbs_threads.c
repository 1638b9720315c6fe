/* The verbs backend as the daemon runs it: a worker thread and its helpers for each of two nodes, a
 * third thread that moves the bytes. Its value is in the ThreadSanitizer build: the stand-in's own
 * lock is hidden from it there. */
#include "test_worker.h"
#include "verbs_rig.h"

#define N_BATCHES 16u
#define BYTES     (1u << 20)

struct node {
	struct test_worker t;
	struct kvx_dom_conf dom;
	struct kvx_rail rail;
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t addr_len;
	uint8_t *mkey;
	size_t mkey_len;
	struct kvx_batch batches[N_BATCHES];
	unsigned n_sent;
};
struct nodes {
	struct node a, b;
	uint64_t seed;
};

static void node_start(struct node *n, const char *device, const struct kvx_verbs_conf *verbs)
{
	struct kvx_worker_conf conf = {
	    .name = "kvx-verbs",
	    .ops = &kvx_verbs_ops,
	    .dom = {.verbs = *verbs, .mem_kinds = 1u << KVX_MEM_HOST, .rail = &n->rail},
	    .ring_depth = 64,
	    .spin_us = 20,
	    .threaded = true,
	    .doorbell = test_worker_on_doorbell,
	    .doorbell_arg = &n->t,
	    .note = test_worker_on_note,
	    .note_arg = &n->t,
	};
	struct kvx_why why = {{0}};

	memset(n, 0, sizeof(*n));
	n->t.threaded = true;
	n->rail = (struct kvx_rail){.port = 1, .gid_index = 3, .usable = true};
	strcpy(n->rail.device, device);
	strcat(strcpy(n->rail.name, device), ":1");
	cr_assert_eq(kvx_worker_open(&conf, &n->t.worker, &why), 0, "%s", why.text);
	test_mem_make(&n->t.local_mem, BYTES);
	test_fill(n->t.local_mem.addr, BYTES, 1);
}

static void node_reg(struct node *n)
{
	struct test_cmd tc = {0};

	cr_assert_eq(test_worker_reg(&n->t, &n->t.local_mem, &tc), 0);
	n->t.local = tc.cmd.mr;
	n->mkey = tc.cmd.mkey;
	n->mkey_len = tc.cmd.mkey_len;
}

static void node_listen(struct node *n)
{
	struct test_cmd tc = {0};

	cr_assert_eq(test_cmd_run(&n->t, &tc, KVX_CMD_LISTEN), 0);
	n->t.ep = tc.cmd.ep;
	n->addr_len = tc.cmd.len;
	memcpy(n->addr, tc.cmd.bytes, tc.cmd.len);
}

static void node_connect(struct node *n, struct test_cmd *tc, const struct node *other)
{
	memset(tc, 0, sizeof(*tc));
	tc->cmd.ep = n->t.ep;
	tc->cmd.len = other->addr_len;
	memcpy(tc->cmd.bytes, other->addr, other->addr_len);
	test_cmd_submit(&n->t, tc, KVX_CMD_CONNECT);
}

static void node_import(struct node *n, const struct node *other)
{
	struct test_cmd tc = {0};

	tc.cmd.ep = n->t.ep;
	tc.cmd.mkey = other->mkey;
	tc.cmd.mkey_len = other->mkey_len;
	cr_assert_eq(test_cmd_run(&n->t, &tc, KVX_CMD_RKEY_UNPACK), 0);
	n->t.rkey = tc.cmd.rkey;
}

static void lane_up(struct nodes *w)
{
	struct test_cmd a, b;

	node_listen(&w->a);
	node_listen(&w->b);
	node_connect(&w->a, &a, &w->b);
	node_connect(&w->b, &b, &w->a);
	cr_assert(test_cmd_wait(&w->a.t, &a) && test_cmd_wait(&w->b.t, &b));
	cr_assert_eq(a.cmd.status, 0, "%s", a.cmd.text);
	cr_assert_eq(b.cmd.status, 0, "%s", b.cmd.text);
	node_import(&w->a, &w->b);
	node_import(&w->b, &w->a);
}

static void nodes_start(struct nodes *w)
{
	struct kvx_verbs_conf conf = rig_conf();

	conf.inline_bytes = 100;
	rig_reset();
	kvx_log_set_level(KVX_LOG_ERROR);
	fake_verbs_mode(FV_HELD);
	fake_verbs_packet(4096);
	fake_verbs_late(true);
	fake_verbs_retry(200);
	fake_verbs_wire_start(5);
	w->seed = 77;
	node_start(&w->a, "fake0", &conf);
	node_start(&w->b, "fake1", &conf);
	node_reg(&w->a);
	node_reg(&w->b);
	lane_up(w);
}

/* Sends what has come back, until n have come back from here. */
static void stream(struct nodes *w, struct node *n, unsigned target)
{
	uint64_t end = kvx_now_ns() + 60 * KVX_SEC;
	unsigned goal = n->t.n_batches_done + target, sent = 0;

	while (n->t.n_batches_done < goal && kvx_now_ns() < end) {
		for (unsigned i = 0; i < N_BATCHES && sent < target; i++) {
			if (!test_batch_is_back(&n->batches[i]))
				continue;
			test_batch_fill(&n->t, &n->batches[i],
					test_random(&w->seed, 2) ? KVX_OP_WRITE : KVX_OP_READ,
					i * (BYTES / N_BATCHES),
					1 + (unsigned)test_random(&w->seed, 40),
					1 + test_random(&w->seed, 1000));
			cr_assert_eq(kvx_worker_submit_batch(n->t.worker, &n->batches[i]), 0);
			sent++;
		}
		test_worker_turn(&w->a.t);
		test_worker_turn(&w->b.t);
	}
	cr_assert_geq(n->t.n_batches_done, goal);
}

/* Sends without waiting. */
static void burst(struct nodes *w, struct node *n)
{
	for (unsigned i = 0; i < N_BATCHES; i++) {
		cr_assert(test_batch_is_back(&n->batches[i]));
		test_batch_fill(&n->t, &n->batches[i], KVX_OP_READ, i * (BYTES / N_BATCHES), 32,
				1500);
		cr_assert_eq(kvx_worker_submit_batch(n->t.worker, &n->batches[i]), 0);
	}
}

static void batches_back(struct nodes *w, struct node *n)
{
	uint64_t end = kvx_now_ns() + 20 * KVX_SEC;
	unsigned n_back = 0;

	while (n_back < N_BATCHES && kvx_now_ns() < end) {
		test_worker_turn(&w->a.t);
		test_worker_turn(&w->b.t);
		n_back = 0;
		for (unsigned i = 0; i < N_BATCHES; i++)
			n_back += test_batch_is_back(&n->batches[i]);
	}
	cr_assert_eq(n_back, N_BATCHES);
}

/* As the daemon does: keys are given back when no op has them any more. */
static void lane_down(struct nodes *w, struct node *n)
{
	struct test_cmd tc = {0};

	tc.cmd.ep = n->t.ep;
	cr_assert_eq(test_cmd_run(&n->t, &tc, KVX_CMD_FENCE), 0);
	batches_back(w, n);
	tc.cmd.rkey = n->t.rkey;
	cr_assert_eq(test_cmd_run(&n->t, &tc, KVX_CMD_RKEY_FREE), 0);
	tc.cmd.ep = n->t.ep;
	cr_assert_eq(test_cmd_run(&n->t, &tc, KVX_CMD_EP_CLOSE), 0);
	n->t.ep = NULL;
	n->t.rkey = NULL;
}

static void nodes_stop(struct nodes *w)
{
	test_worker_teardown(&w->a.t);
	test_worker_teardown(&w->b.t);
	free(w->a.mkey);
	free(w->b.mkey);
	FAKE_VERBS_END();
}

Test(verbs_threads, stream_both_ways_beside_registrations, .timeout = 120)
{
	static struct nodes w;

	nodes_start(&w);
	for (unsigned i = 0; i < 10; i++) {
		struct test_cmd tc = {0};

		stream(&w, &w.a, 20);
		tc.cmd.mem = &w.a.t.local_mem;
		tc.cmd.rights = TEST_RIGHTS;
		test_cmd_submit(&w.a.t, &tc, KVX_CMD_MEM_REG);
		stream(&w, &w.b, 20);
		cr_assert(test_cmd_wait(&w.a.t, &tc));
		cr_assert_eq(tc.cmd.status, 0);
		free(tc.cmd.mkey);
		cr_assert_eq(test_cmd_run(&w.a.t, &tc, KVX_CMD_MEM_DEREG), 0);
	}
	cr_assert_eq(w.a.t.n_batches_failed, 0);
	cr_assert_eq(w.b.t.n_batches_failed, 0);
	cr_assert_eq(w.a.t.n_notes + w.b.t.n_notes, 0);
	nodes_stop(&w);
	KVX_TEST_END();
}

/* How a lane ends in the middle of traffic. */
enum end { END_FENCE, END_LEASE_0, END_LEASE_OVER, END_QP_FATAL, END_PEER, N_ENDS };

static void end_lane(struct nodes *w, enum end how)
{
	struct test_cmd tc = {0}, tc2 = {0};
	struct node *n = how == END_PEER ? &w->b : &w->a;

	tc.cmd.ep = tc2.cmd.ep = n->t.ep;
	switch (how) {
	case END_PEER:
	case END_LEASE_0:
	case END_LEASE_OVER:
		tc.cmd.lease_ns = how == END_LEASE_OVER ? kvx_now_ns() + KVX_MS : 0;
		test_cmd_submit(&n->t, &tc, KVX_CMD_LEASE);
		tc2.cmd.lease_ns = kvx_now_ns() + KVX_SEC; /* an extension that comes late */
		if (how == END_LEASE_0)
			test_cmd_submit(&n->t, &tc2, KVX_CMD_LEASE);
		cr_assert(test_cmd_wait(&n->t, &tc));
		cr_assert(how != END_LEASE_0 || test_cmd_wait(&n->t, &tc2));
		break;
	case END_QP_FATAL:
		fake_verbs_raise_qp(fake_verbs_qp(0), IBV_EVENT_QP_FATAL);
		break;
	default:
		break;
	}
}

Test(verbs_threads, lanes_end_in_the_middle_of_traffic_and_are_made_anew, .timeout = 120)
{
	static struct nodes w;
	unsigned n_done;

	nodes_start(&w);
	for (unsigned i = 0; i < 5 * N_ENDS; i++) {
		n_done = w.a.t.n_batches_done;
		burst(&w, &w.a);
		burst(&w, &w.b);
		end_lane(&w, (enum end)(i % N_ENDS));
		lane_down(&w, &w.a);
		lane_down(&w, &w.b);
		cr_assert_eq(w.a.t.n_batches_done, n_done + N_BATCHES);
		lane_up(&w);
	}
	stream(&w, &w.a, 20);
	nodes_stop(&w);
	KVX_TEST_END();
}

/* Calls that block hold up neither data nor fences. */
Test(verbs_threads, slow_device_does_not_stop_the_stream, .timeout = 120)
{
	uint64_t end = kvx_now_ns() + 5 * KVX_SEC;
	struct test_cmd tc = {0};
	static struct nodes w;

	nodes_start(&w);
	fake_verbs_hang(FV_REG_MR, true);
	tc.cmd.mem = &w.a.t.local_mem;
	tc.cmd.rights = TEST_RIGHTS;
	test_cmd_submit(&w.a.t, &tc, KVX_CMD_MEM_REG);
	while (fake_verbs_hanging(FV_REG_MR) == 0 && kvx_now_ns() < end)
		test_worker_turn(&w.a.t);
	cr_assert_eq(fake_verbs_hanging(FV_REG_MR), 1);
	stream(&w, &w.a, 11);
	cr_assert_eq(tc.n_done, 0);
	fake_verbs_hang(FV_REG_MR, false);
	cr_assert(test_cmd_wait(&w.a.t, &tc));
	cr_assert_eq(tc.cmd.status, 0);
	free(tc.cmd.mkey);
	cr_assert_eq(test_cmd_run(&w.a.t, &tc, KVX_CMD_MEM_DEREG), 0);
	fake_verbs_delay(FV_DESTROY_QP, 20);
	lane_down(&w, &w.a);
	fake_verbs_delay(FV_DESTROY_QP, 0);
	nodes_stop(&w);
	KVX_TEST_END();
}
