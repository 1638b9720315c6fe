/* Workers with helpers under everything at once: random commands, batches, losses and held calls;
 * the n-th call and the n-th allocation failing. Every command and batch comes back exactly once,
 * nothing is left, and the worker keeps its promises to the transport. */
#include "fault_alloc.h"
#include "test_end.h"
#include "test_helpers.h"

#define N_EPS     12u
#define N_CMDS    40u
#define N_BATCHES 20u
#define N_SENT    1500u

/* A lane as the loop sees it. Nothing is submitted for it once EP_CLOSE was. */
struct lane {
	struct kvx_ep *ep; /* NULL: none, or LISTEN is on its way */
	struct kvx_rkey *rkey;
	bool making, closing, unpacking, freeing, fencing;
	unsigned n_busy; /* commands and batches on their way */
};

struct storm_cmd {
	struct test_cmd tc; /* first: its done callback is the same */
	struct lane *lane;
	bool busy;
};

struct storm {
	struct kvx_fake_script script;
	struct test_worker t;
	struct test_far far;
	uint64_t rng;
	struct lane lanes[N_EPS];
	struct storm_cmd cmds[N_CMDS];
	struct kvx_batch batches[N_BATCHES];
	struct lane *batch_lanes[N_BATCHES]; /* NULL: the batch is here */
	struct kvx_mr *extra;                /* registered on the side */
	bool extra_busy;
	unsigned n_sent;
};

static struct storm_cmd *storm_send(struct storm *s, enum kvx_work_kind kind, struct lane *lane,
				    const struct kvx_cmd *args)
{
	struct storm_cmd *cmd = NULL;

	for (unsigned i = 0; i < N_CMDS && cmd == NULL; i++)
		if (!s->cmds[i].busy)
			cmd = &s->cmds[i];
	if (cmd == NULL)
		return NULL;
	memset(cmd, 0, sizeof(*cmd));
	cmd->tc.cmd = *args;
	cmd->lane = lane;
	cmd->busy = true;
	if (lane != NULL)
		lane->n_busy++;
	s->n_sent++;
	test_cmd_submit(&s->t, &cmd->tc, kind);
	return cmd;
}

static void storm_take(struct storm *s, struct storm_cmd *cmd)
{
	const struct kvx_cmd *c = &cmd->tc.cmd;
	struct lane *lane = cmd->lane;

	cr_assert_eq(cmd->tc.n_done, 1, "command %d came back %u times", (int)c->work.kind,
		     cmd->tc.n_done);
	cmd->busy = false;
	if (lane != NULL)
		lane->n_busy--;
	switch (c->work.kind) {
	case KVX_CMD_LISTEN:
		lane->making = false;
		lane->ep = c->status == 0 ? c->ep : NULL;
		return;
	case KVX_CMD_EP_CLOSE:
		cr_assert_eq(lane->n_busy, 0); /* everything of it was back before */
		memset(lane, 0, sizeof(*lane));
		return;
	case KVX_CMD_RKEY_UNPACK:
		lane->unpacking = false;
		lane->rkey = c->status == 0 ? c->rkey : NULL;
		return;
	case KVX_CMD_RKEY_FREE:
		lane->freeing = false;
		lane->rkey = NULL;
		return;
	case KVX_CMD_FENCE:
		lane->fencing = false;
		return;
	case KVX_CMD_MEM_REG:
	case KVX_CMD_MEM_DEREG:
		free(c->mkey); /* NULL unless it was registered */
		s->extra_busy = false;
		s->extra = c->work.kind == KVX_CMD_MEM_REG && c->status == 0 ? c->mr : NULL;
		return;
	default:
		return;
	}
}

static void storm_turn(struct storm *s)
{
	test_worker_turn(&s->t);
	for (unsigned i = 0; i < N_BATCHES; i++) {
		if (s->batch_lanes[i] == NULL || !test_batch_is_back(&s->batches[i]))
			continue;
		s->batch_lanes[i]->n_busy--;
		s->batch_lanes[i] = NULL;
	}
	for (unsigned closes = 0; closes < 2; closes++) /* they look at all others */
		for (unsigned i = 0; i < N_CMDS; i++)
			if (s->cmds[i].busy && s->cmds[i].tc.n_done > 0 &&
			    (s->cmds[i].tc.cmd.work.kind == KVX_CMD_EP_CLOSE) == (closes == 1))
				storm_take(s, &s->cmds[i]);
}

static void storm_batch(struct storm *s, struct lane *lane)
{
	for (unsigned i = 0; i < N_BATCHES; i++) {
		struct kvx_batch *batch = &s->batches[i];

		if (s->batch_lanes[i] != NULL)
			continue;
		test_batch_fill(&s->t, batch, KVX_OP_WRITE, i * 2048,
				1 + (unsigned)test_random(&s->rng, 16), 128);
		batch->ep = lane->ep;
		for (unsigned j = 0; j < batch->n_ops; j++)
			batch->ops[j].remote = lane->rkey;
		s->batch_lanes[i] = lane;
		lane->n_busy++;
		s->n_sent++;
		cr_assert_eq(kvx_worker_submit_batch(s->t.worker, batch), 0);
		return;
	}
}

static bool lane_has_batches(const struct storm *s, const struct lane *lane)
{
	for (unsigned i = 0; i < N_BATCHES; i++)
		if (s->batch_lanes[i] == lane)
			return true;
	return false;
}

/* One step of it: fence, so that all batches come back; free the key; close. */
static void storm_close(struct storm *s, struct lane *lane)
{
	const struct kvx_cmd args = {.ep = lane->ep, .rkey = lane->rkey};

	if (lane->unpacking || lane->freeing || lane->fencing)
		return;
	if (lane->rkey != NULL && lane_has_batches(s, lane)) {
		lane->fencing = storm_send(s, KVX_CMD_FENCE, lane, &args) != NULL;
		return;
	}
	if (lane->rkey != NULL) {
		lane->freeing = storm_send(s, KVX_CMD_RKEY_FREE, lane, &args) != NULL;
		if (!lane->freeing)
			return;
	}
	lane->closing = storm_send(s, KVX_CMD_EP_CLOSE, lane, &args) != NULL;
}

static void storm_lane_step(struct storm *s, struct lane *lane, uint64_t what)
{
	struct kvx_cmd args = {.ep = lane->ep};

	if (lane->ep == NULL) {
		if (!lane->making)
			lane->making = storm_send(s, KVX_CMD_LISTEN, lane, &args) != NULL;
		return;
	}
	if (lane->closing || lane->freeing)
		return;
	if (what < 40) {
		if (lane->rkey != NULL)
			storm_batch(s, lane);
		else if (!lane->unpacking) {
			args.mkey = s->far.mkey;
			args.mkey_len = s->far.mkey_len;
			lane->unpacking = storm_send(s, KVX_CMD_RKEY_UNPACK, lane, &args) != NULL;
		}
	} else if (what < 60) {
		args.len = s->far.addr_len;
		memcpy(args.bytes, s->far.addr, args.len);
		storm_send(s, KVX_CMD_CONNECT, lane, &args);
	} else if (what < 70) {
		args.lease_ns = what % 3 == 0 ? 0 : 1000000000;
		storm_send(s, KVX_CMD_LEASE, lane, &args);
	} else if (what < 78) {
		storm_send(s, KVX_CMD_FENCE, lane, &args);
	} else if (what < 82) {
		kvx_fake_ep_lose(lane->ep, -EHOSTDOWN);
	} else if (what < 95) {
		storm_close(s, lane);
	}
}

static void storm_side_step(struct storm *s)
{
	static const enum kvx_fake_slot slots[] = {KVX_FAKE_LISTEN,  KVX_FAKE_CONNECT,
						   KVX_FAKE_MEM_REG, KVX_FAKE_MEM_DEREG,
						   KVX_FAKE_FENCE,   KVX_FAKE_LEASE_STOP};
	struct kvx_cmd args = {.mem = &s->t.local_mem, .rights = TEST_RIGHTS, .mr = s->extra};

	kvx_fake_gate(&s->script, slots[test_random(&s->rng, 6)],
		      test_random(&s->rng, 3) == 0
			  ? KVX_FAKE_GATE_BEFORE
			  : (enum kvx_fake_gate)(test_random(&s->rng, 2) * KVX_FAKE_GATE_AFTER));
	if (!s->extra_busy)
		s->extra_busy = storm_send(s, s->extra ? KVX_CMD_MEM_DEREG : KVX_CMD_MEM_REG, NULL,
					   &args) != NULL;
	kvx_fake_advance(&s->script, test_random(&s->rng, 3000));
}

static void storm_open_gates(struct storm *s)
{
	for (enum kvx_fake_slot slot = 0; slot < KVX_FAKE_SLOTS; slot++)
		kvx_fake_gate(&s->script, slot, KVX_FAKE_GATE_OPEN);
}

static void storm_end(struct storm *s)
{
	uint64_t end = kvx_now_ns() + 20 * KVX_SEC;
	bool left = true;

	storm_open_gates(s);
	while (left && kvx_now_ns() < end) {
		storm_turn(s);
		kvx_fake_advance(&s->script, 1000);
		left = s->extra_busy;
		for (unsigned i = 0; i < N_EPS; i++) {
			struct lane *lane = &s->lanes[i];

			left |= lane->ep != NULL || lane->making;
			if (lane->ep != NULL && !lane->closing && !lane->freeing)
				storm_close(s, lane);
		}
	}
	cr_assert_not(left, "something does not come back");
	if (s->extra != NULL)
		storm_send(s, KVX_CMD_MEM_DEREG, NULL, &(struct kvx_cmd){.mr = s->extra});
	while (kvx_worker_in_flight(s->t.worker) > 0 && kvx_now_ns() < end)
		storm_turn(s);
	cr_assert_eq(s->t.n_cmds_done + s->t.n_batches_done, s->n_sent);
}

static void storm_run(bool threaded, uint64_t seed)
{
	static struct storm s;
	struct test_cmd tc = {0};

	memset(&s, 0, sizeof(s));
	s.rng = seed;
	s.script = (struct kvx_fake_script){.latency_ns = 1000,
					    .jitter_ns = 2000,
					    .queue_ops = 24,
					    .post_max = 5,
					    .late_writes = true,
					    .seed = seed};
	test_helpers_open(&s.t, &s.script, threaded);
	test_far_open(&s.far, &s.script);
	test_mem_make(&s.t.local_mem, HELPERS_REGION);
	cr_assert_eq(test_worker_reg(&s.t, &s.t.local_mem, &tc), 0);
	free(tc.cmd.mkey);
	s.t.local = tc.cmd.mr;
	s.t.n_cmds_done = 0;
	uint64_t end = kvx_now_ns() + 10 * KVX_SEC;
	while (s.n_sent < N_SENT && kvx_now_ns() < end) {
		storm_lane_step(&s, &s.lanes[test_random(&s.rng, N_EPS)], test_random(&s.rng, 100));
		if (threaded && test_random(&s.rng, 8) == 0)
			storm_side_step(&s);
		else if (!threaded)
			kvx_fake_advance(&s.script, test_random(&s.rng, 1000));
		storm_turn(&s);
	}
	storm_end(&s);
	cr_assert_geq(s.n_sent, N_SENT, "%u sent", s.n_sent);
	test_worker_teardown(&s.t);
	test_far_close(&s.far);
	test_helpers_expect_clean(&s.script);
}

Test(worker_storm, everything_comes_back_once, .timeout = 120)
{
	for (uint64_t seed = 1; seed <= 12; seed++)
		storm_run(true, seed);
	KVX_TEST_END();
}

Test(worker_storm, and_without_threads)
{
	for (uint64_t seed = 1; seed <= 5; seed++)
		storm_run(false, seed);
	KVX_TEST_END();
}

/* A whole life of a worker with helpers, as far as the fault lets it go. */
static void life(struct kvx_fake_script *script, bool threaded)
{
	static struct kvx_batch batches[12];
	struct test_cmd fence = {0};
	struct test_worker t;

	cr_assert_eq(kvx_fake_gates_open(script), 0);
	if (test_worker_start(&t, &kvx_fake_blocking_ops, threaded, 16, script) == 0) {
		if (test_worker_setup(&t, HELPERS_REGION) == 0)
			for (unsigned i = 0; i < 12; i++) {
				test_batch_fill(&t, &batches[i], KVX_OP_WRITE, i * 4096, 16, 256);
				cr_assert_eq(kvx_worker_submit_batch(t.worker, &batches[i]), 0);
			}
		fence.cmd.ep = t.ep; /* from here no key is needed */
		test_cmd_run(&t, &fence, KVX_CMD_FENCE);
		test_worker_teardown(&t);
		cr_assert(t.n_batches_done == 0 || t.n_batches_done == 12, "%u batches back",
			  t.n_batches_done);
	}
	test_helpers_expect_clean(script);
}

Test(worker_storm, nth_call_of_every_slot, .timeout = 120)
{
	for (enum kvx_fake_slot slot = KVX_FAKE_OPEN; slot <= KVX_FAKE_FENCE; slot++)
		for (unsigned nth = 1; nth <= 6; nth++)
			for (unsigned threaded = 0; threaded < 2; threaded++) {
				struct kvx_fake_script script = {
				    .latency_ns = 100, .auto_advance = true, .post_max = 5};

				script.faults[slot] = (struct kvx_fake_fault){nth, -EIO};
				script.more_faults[slot] = nth % 2 ? 0 : UINT32_MAX;
				life(&script, threaded != 0);
			}
	KVX_TEST_END();
}

Test(worker_storm, nth_allocation, .timeout = 120)
{
	unsigned n;

	for (n = 1;; n++) {
		struct kvx_fake_script script = {.auto_advance = true};
		struct test_worker t;

		cr_assert_eq(kvx_fake_gates_open(&script), 0);
		fault_alloc_arm(n);
		int err = test_worker_start(&t, &kvx_fake_blocking_ops, true, 16, &script);
		if (err == 0)
			test_worker_setup(&t, HELPERS_REGION);
		bool hit = fault_alloc_disarm();
		if (err == 0)
			test_worker_teardown(&t);
		test_helpers_expect_clean(&script);
		if (!hit)
			break;
		cr_assert(err == 0 || err == -ENOMEM, "allocation %u: %d", n, err);
	}
	cr_assert_gt(n, 15, "%u allocations", n);
	KVX_TEST_END();
}
