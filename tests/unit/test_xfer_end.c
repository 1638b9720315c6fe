/* Every way for a transfer to end: each in exactly one terminal event, and no byte after it. */
#include "xfer/xfer.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "test_end.h"
#include "test_rng.h"
#include "xfer_pair.h"

Test(xfer_end, failed_op_fails_the_transfer_with_its_cause)
{
	rig_init(&pair.rig);
	pair_open(8 * MIB);
	pair.rig.script.fail_nth_op = 3;
	pair.rig.script.fail_err = -EREMOTEIO;
	pair.req.payload = "secret";
	pair.req.payload_bytes = 6;
	rig_submit(&pair.rig, &pair.req, 8 * MIB);
	cr_assert(rig_until_ends(&pair.rig, 1, 1000));
	pair_expect_end(0, -EIO); /* the transport's own codes mean other things to a client */
	cr_assert_not_null(strstr(pair.rig.ends[0].text, "fake: Remote I/O error"));
	const struct kvx_xfer_end *end = &pair.rig.ends[0].end;
	cr_assert_eq(end->vendor_code, 4711);
	cr_assert_lt(end->bytes, 8 * MIB);
	cr_assert_eq(pair.rig.arrivals[0].arrival.status, -EIO);
	cr_assert_eq(pair.rig.arrivals[0].arrival.payload_bytes, 0);
	cr_assert_eq(kvx_xfers_stats(pair_xfers())->failed, 1);
	pair_close();
	KVX_TEST_END();
}

Test(xfer_end, transport_timeout_is_not_the_deadline)
{
	rig_init(&pair.rig);
	pair_open(MIB);
	pair.rig.script.fail_nth_op = 1;
	pair.rig.script.fail_err = -ETIMEDOUT;
	rig_submit(&pair.rig, &pair.req, 4096);
	cr_assert(rig_until_ends(&pair.rig, 1, 1000));
	pair_expect_end(0, -EIO);
	cr_assert_eq(kvx_xfers_stats(pair_xfers())->deadline, 0);
	pair.rig.script.fail_nth_op = 2;
	pair.rig.script.fail_err = -EHOSTDOWN;
	rig_submit(&pair.rig, &pair.req, 4096);
	cr_assert(rig_until_ends(&pair.rig, 2, 1000));
	pair_expect_end(1, -EHOSTDOWN);
	cr_assert_eq(pair.rig.ends[1].end.scope, KVX_SCOPE_PEER);
	pair_close();
	KVX_TEST_END();
}

Test(xfer_end, memory_fault_names_both_regions_and_spares_them)
{
	rig_init(&pair.rig);
	pair_open(MIB);
	pair.rig.script.fail_nth_op = 1;
	pair.rig.script.fail_err = -EFAULT;
	rig_submit(&pair.rig, &pair.req, 4096);
	cr_assert(rig_until_ends(&pair.rig, 1, 1000));
	pair_expect_end(0, -EFAULT);
	cr_assert_not_null(strstr(pair.rig.ends[0].text, "cannot be accessed"));
	rig_submit(&pair.rig, &pair.req, 4096);
	cr_assert(rig_until_ends(&pair.rig, 2, 1000));
	pair_expect_end(1, 0);
	pair_close();
	KVX_TEST_END();
}

/* What the destination looked like when the terminal event came. */
static uint8_t *snapshot;

static void take_snapshot(struct node_rig *rig, const struct kvx_xfer_end *end)
{
	memcpy(snapshot, pair.remote->mem.addr, pair.remote->mem.len_bytes);
}

static void expect_no_late_byte(uint64_t bytes)
{
	rig_turn(&pair.rig, 10ull * 1000 * 1000 * 1000);
	cr_assert_arr_eq(snapshot, pair.remote->mem.addr, bytes);
	free(snapshot);
}

Test(xfer_end, cancel_ends_after_what_was_in_flight_and_nothing_lands_later)
{
	rig_init(&pair.rig);
	pair.rig.script.latency_ns = 500000;
	pair.rig.script.jitter_ns = 400000;
	pair.rig.script.bytes_per_us = 20000;
	pair.rig.on_end = take_snapshot;
	snapshot = malloc(16 * MIB);
	pair_open(16 * MIB);
	struct kvx_xfer *xfer = rig_submit(&pair.rig, &pair.req, 16 * MIB);
	rig_turn(&pair.rig, 1000);
	cr_assert_gt(pair.rig.script.n_open_ops, 0);
	kvx_xfer_cancel(xfer, -ECANCELED, "enough");
	kvx_xfer_cancel(xfer, -EINVAL, "twice");
	cr_assert_eq(pair.rig.n_ends, 0);
	rig_turn(&pair.rig, 1000);
	cr_assert_eq(pair.rig.n_ends, 0, "ended with ops in flight");
	cr_assert(rig_until_ends(&pair.rig, 1, 10000));
	pair_expect_end(0, -ECANCELED);
	cr_assert_str_eq(pair.rig.ends[0].text, "enough");
	cr_assert_eq(pair.rig.arrivals[0].arrival.status, -ECANCELED);
	cr_assert_eq(pair.rig.script.n_open_ops, 0);
	cr_assert_eq(kvx_node_copy_lane(pair.rig.node)->n_resets, 0);
	expect_no_late_byte(16 * MIB);
	cr_assert_eq(pair.rig.n_ends, 1);
	pair_close();
	KVX_TEST_END();
}

/* Ops that never complete although their bytes may land: only the fence ends them. */
Test(xfer_end, dropped_ops_end_by_deadline_fence_bound_and_lane_reset)
{
	rig_init(&pair.rig);
	pair.rig.script.latency_ns = 3000000;
	pair.rig.script.drop_nth_op = 2;
	pair.rig.script.drop_ops = 100;
	pair.rig.script.drop_lands = true;
	pair.rig.on_end = take_snapshot;
	snapshot = malloc(4 * MIB);
	pair_open(4 * MIB);
	pair.req.deadline_ns = 2500000;
	rig_submit(&pair.rig, &pair.req, 4 * MIB);
	rig_turn(&pair.rig, 2400000);
	cr_assert_eq(pair.rig.n_ends, 0);
	rig_turn(&pair.rig, 200000); /* deadline */
	cr_assert_eq(pair.rig.n_ends, 0, "ended with ops in flight");
	rig_turn(&pair.rig, 1100000); /* fence bound */
	pair_expect_end(0, -ETIMEDOUT);
	cr_assert_not_null(strstr(pair.rig.ends[0].text, "deadline of 2 ms"));
	const struct kvx_lane *lane = kvx_node_copy_lane(pair.rig.node);
	cr_assert_eq(lane->n_resets, 1);
	expect_no_late_byte(4 * MIB);
	/* The lane is as good as new. */
	pair.rig.script.drop_nth_op = 0;
	pair.rig.on_end = NULL;
	pair.req.deadline_ns = 0;
	cr_assert_eq(lane->state, KVX_LANE_UP);
	cr_assert_eq(lane->generation, 2);
	rig_submit(&pair.rig, &pair.req, 4096);
	cr_assert(rig_until_ends(&pair.rig, 2, 1000));
	pair_expect_end(1, 0);
	cr_assert_eq(kvx_xfers_stats(pair_xfers())->deadline, 1);
	pair_close();
	KVX_TEST_END();
}

/* The order of a reset: no key is freed while a batch is out, no ep closed while it has keys. */
static void checked_rkey_free(struct kvx_rkey *rkey)
{
	cr_assert_eq(kvx_sched_in_flight(kvx_node_copy_lane(pair.rig.node)->sched), 0);
	kvx_fake_ops.rkey_free(rkey);
}

static void checked_ep_close(struct kvx_ep *ep)
{
	cr_assert_eq(pair.rig.script.n_rkeys, 0);
	kvx_fake_ops.ep_close(ep);
}

/* A device that takes its time to report what a fence has cut. */
static unsigned n_silent;

static int slow_fence(struct kvx_ep *ep)
{
	n_silent = 40;
	return kvx_fake_ops.fence(ep);
}

static int slow_progress(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max)
{
	if (n_silent > 0) {
		n_silent--;
		return 0;
	}
	return kvx_fake_ops.progress(dom, events, max);
}

Test(xfer_end, lane_reset_frees_keys_only_after_the_last_batch)
{
	struct kvx_transport_ops ops = kvx_fake_ops;
	ops.fence = slow_fence;
	ops.progress = slow_progress;
	ops.rkey_free = checked_rkey_free;
	ops.ep_close = checked_ep_close;
	rig_init(&pair.rig);
	pair.rig.conf.copy_ops = &ops;
	pair.rig.script.drop_nth_op = 1;
	pair.rig.script.drop_ops = 3;
	pair_open(8 * MIB);
	pair.req.deadline_ns = 100000;
	rig_submit(&pair.rig, &pair.req, 8 * MIB);
	cr_assert(rig_until_ends(&pair.rig, 1, 50000));
	pair_expect_end(0, -ETIMEDOUT);
	cr_assert_eq(kvx_node_copy_lane(pair.rig.node)->n_resets, 1);
	pair_close();
	KVX_TEST_END();
}

/* Somebody else's reset: not "cancelled", which only the submitter may say; what waits goes on. */
Test(xfer_end, bystander_of_a_lane_reset_fails_or_waits)
{
	rig_init(&pair.rig);
	pair.rig.script.latency_ns = 100000;
	pair.rig.script.limits.queue_batches = 1;
	pair.rig.script.drop_nth_op = 1;
	pair_open(8 * MIB);
	pair.req.deadline_ns = 200000;
	pair.req.number = 1; /* stuck on one outlet */
	rig_submit(&pair.rig, &pair.req, 4096);
	rig_turn(&pair.rig, 1000);
	pair.rig.script.latency_ns = 50000000;
	pair.req.deadline_ns = 0;
	pair.req.client = 33;
	pair.req.number = 2; /* slow on the other outlet */
	rig_submit(&pair.rig, &pair.req, 8192);
	rig_turn(&pair.rig, 1000);
	pair.req.number = 3; /* waits for credit */
	rig_submit(&pair.rig, &pair.req, 4096);
	rig_turn(&pair.rig, 300000);
	pair.rig.script.latency_ns = 1000;
	cr_assert(rig_until_ends(&pair.rig, 3, 10000));
	cr_assert_eq(kvx_node_copy_lane(pair.rig.node)->n_resets, 1);
	for (unsigned i = 0; i < 3; i++) {
		const struct kvx_xfer_end *end = &pair.rig.ends[i].end;
		int want = end->xfer == 1 ? -ETIMEDOUT : end->xfer == 2 ? -EIO : 0;
		cr_assert_eq(end->status, want, "transfer %d: %s", (int)end->xfer, end->text);
		if (end->xfer == 2)
			cr_assert_not_null(strstr(end->text, "lane was reset"));
	}
	pair_close();
	KVX_TEST_END();
}

Test(xfer_end, deadline_passes_in_the_queue)
{
	rig_init(&pair.rig);
	pair_open(MIB);
	kvx_node_copy_lane(pair.rig.node)->state = KVX_LANE_CONNECTING;
	pair.req.deadline_ns = 5000000;
	rig_submit(&pair.rig, &pair.req, 4096);
	rig_turn(&pair.rig, 4900000);
	cr_assert_eq(pair.rig.n_ends, 0);
	rig_turn(&pair.rig, 200000);
	pair_expect_end(0, -ETIMEDOUT);
	cr_assert_not_null(strstr(pair.rig.ends[0].text, "the lane is not up"));
	cr_assert_str_eq(pair.rig.ends[0].end.transport, "");
	cr_assert_eq(pair.rig.n_arrivals, 1);
	kvx_node_copy_lane(pair.rig.node)->state = KVX_LANE_UP;
	pair_close();
	KVX_TEST_END();
}

struct waiter {
	struct kvx_xfers_watch watch;
	unsigned n_told;
};

static void waiter_told(struct kvx_xfers_watch *watch)
{
	struct waiter *w = (struct waiter *)watch;
	w->n_told++;
	if (kvx_xfers_cancel_client(pair_xfers(), ALICE, -EPIPE, "gone") == 0)
		kvx_xfers_unwatch(pair_xfers(), watch);
}

Test(xfer_end, cancel_client_takes_its_own_and_tells_when_fenced)
{
	struct waiter w = {.watch.ended = waiter_told};
	rig_init(&pair.rig);
	pair.rig.script.latency_ns = 500000;
	pair_open(8 * MIB);
	for (unsigned i = 0; i < 6; i++) {
		pair.req.client = i % 2 ? 33 : ALICE;
		pair.req.number = i;
		rig_submit(&pair.rig, &pair.req, MIB);
	}
	rig_turn(&pair.rig, 1000);
	cr_assert_eq(kvx_xfers_count_client(pair_xfers(), ALICE), 3);
	cr_assert_eq(kvx_xfers_cancel_client(pair_xfers(), 99, -EPIPE, "who"), 0);
	cr_assert_eq(kvx_xfers_cancel_client(pair_xfers(), ALICE, -EPIPE, "gone"), 3);
	kvx_xfers_watch(pair_xfers(), &w.watch);
	cr_assert(rig_until_ends(&pair.rig, 6, 10000));
	for (unsigned i = 0; i < 6; i++)
		pair_expect_end(i, pair.rig.ends[i].end.client == ALICE ? -EPIPE : 0);
	cr_assert_gt(w.n_told, 0);
	cr_assert_null(w.watch.next);
	cr_assert_eq(kvx_xfers_count_client(pair_xfers(), ALICE), 0);
	pair_close();
	KVX_TEST_END();
}

Test(xfer_end, cancel_by_region_target_and_lane)
{
	rig_init(&pair.rig);
	pair.rig.script.latency_ns = 500000;
	pair_open(MIB);
	struct kvx_region *other = rig_region(&pair.rig, BOB, MIB, 3, NULL);
	struct kvx_target *target = rig_target(&pair.rig, other);
	const struct kvx_lane *lane = kvx_node_copy_lane(pair.rig.node);
	rig_submit(&pair.rig, &pair.req, 4096);
	pair.req.target = target;
	pair.req.number = 2;
	rig_submit(&pair.rig, &pair.req, 4096);
	rig_turn(&pair.rig, 1000);
	cr_assert_eq(kvx_xfers_cancel_region(pair_xfers(), other, -EOWNERDEAD, "r"), 1);
	cr_assert_eq(kvx_xfers_cancel_target(pair_xfers(), pair.target, -ESTALE, "t"), 1);
	cr_assert_eq(kvx_xfers_cancel_lane(pair_xfers(), lane, -EIO, "l"), 2);
	cr_assert_eq(kvx_xfers_cancel_region(pair_xfers(), pair.local, -EIO, "l"), 2);
	cr_assert(rig_until_ends(&pair.rig, 2, 10000));
	for (unsigned i = 0; i < 2; i++)
		pair_expect_end(i, pair.rig.ends[i].end.xfer == 2 ? -EOWNERDEAD : -ESTALE);
	cr_assert_eq(kvx_xfers_cancel_lane(pair_xfers(), lane, -EIO, "l"), 0);
	kvx_target_unref(target);
	rig_region_close(&pair.rig, other);
	pair_close();
	KVX_TEST_END();
}

#define STORM 40

static struct kvx_xfer *storm_live[STORM];

static void storm_end(struct node_rig *rig, const struct kvx_xfer_end *end)
{
	cr_assert_not_null(storm_live[end->xfer], "second terminal event of %d", (int)end->xfer);
	storm_live[end->xfer] = NULL;
}

static void storm_faults(struct kvx_fake_script *script)
{
	script->latency_ns = 1000 + rng() % 300000;
	script->jitter_ns = rng() % 200000;
	script->reorder = rng() % 2;
	script->split = rng() % 2;
	script->fail_nth_op = rng() % 3 ? 1 + (unsigned)(rng() % 300) : 0;
	script->fail_err = -EIO;
	script->drop_nth_op = rng() % 3 ? 1 + (unsigned)(rng() % 300) : 0;
	script->drop_ops = (unsigned)(rng() % 3);
	script->drop_lands = rng() % 2;
	script->post_max = (unsigned)(rng() % 4);
	script->limits.queue_batches = 1 + (unsigned)(rng() % 4);
	script->limits.batch_ops = 1 + (uint32_t)(rng() % 16);
	script->limits.batch_bytes = 4096 + rng() % 100000;
}

static void storm_step(unsigned *n)
{
	unsigned pick = (unsigned)(rng() % STORM);
	uint64_t len = 1 + rng() % (MIB - 1);
	switch (rng() % 6) {
	case 0:
	case 1:
	case 2:
		if (*n == STORM)
			break;
		pair.req.number = *n;
		pair.req.client = 30 + rng() % 3;
		pair.req.op = rng() % 2 ? KVX_OP_READ : KVX_OP_WRITE;
		pair.req.streaming = rng() % 4 == 0;
		pair.req.deadline_ns = 100000 + rng() % 20000000;
		storm_live[*n] =
		    rig_submit(&pair.rig, &pair.req, pair.req.streaming && rng() % 2 ? 0 : len);
		(*n)++;
		break;
	case 3:
		if (storm_live[pick] != NULL)
			kvx_xfer_cancel(storm_live[pick], -ECANCELED, "storm");
		break;
	case 4:
		if (storm_live[pick] != NULL) { /* of a sealed one: fails it */
			static const uint64_t zero;
			struct kvx_op_list ops = {1, 1, &zero, &zero, &len};
			kvx_xfer_append(storm_live[pick], NULL, &ops, NULL, NULL);
		}
		break;
	case 5:
		if (storm_live[pick] != NULL)
			kvx_xfer_seal(storm_live[pick], NULL, 0, NULL);
		break;
	}
}

/* Any mix of faults and requests: each transfer ends once, within its deadline and the fence bound,
 * and leaves nothing behind. */
Test(xfer_end, random_storms_end_every_transfer_exactly_once)
{
	uint64_t n_ok = 0, n_failed = 0, n_cancelled = 0, n_deadline = 0, n_resets = 0;
	for (uint64_t seed = 1; seed <= 150; seed++) {
		unsigned n = 0;
		rng_state = seed * 0x9e3779b97f4a7c15ull;
		rig_init(&pair.rig);
		pair.rig.script.seed = seed;
		storm_faults(&pair.rig.script);
		pair.rig.conf.copy_inline_max_bytes = rng() % 2 ? 16384 : 0;
		pair.rig.conf.n_batches = 2 + (unsigned)(rng() % 8);
		pair.rig.on_end = storm_end;
		pair_open(MIB);
		while (n < STORM) {
			storm_step(&n);
			if (rng() % 2)
				rig_turn(&pair.rig, rng() % 100000);
		}
		rig_turn(&pair.rig, 20100000); /* all deadlines */
		for (unsigned i = 0; i < 4; i++)
			rig_turn(&pair.rig, 1000001); /* fence bounds */
		cr_assert_eq(pair.rig.n_ends, STORM, "seed %d: %u of %u ended", (int)seed,
			     pair.rig.n_ends, STORM);
		cr_assert_eq(pair.rig.n_arrivals, STORM);
		cr_assert_eq(kvx_xfers_count(pair_xfers()), 0);
		cr_assert_eq(kvx_scheds_available(kvx_node_scheds(pair.rig.node)),
			     pair.rig.conf.n_batches);
		cr_assert_eq(pair.local->n_users + pair.remote->n_users, 0);
		const struct kvx_xfers_stats *stats = kvx_xfers_stats(pair_xfers());
		cr_assert_eq(stats->ok + stats->failed + stats->cancelled + stats->deadline, STORM);
		n_ok += stats->ok;
		n_failed += stats->failed;
		n_cancelled += stats->cancelled;
		n_deadline += stats->deadline;
		n_resets += kvx_node_copy_lane(pair.rig.node)->n_resets;
		pair_close();
	}
	/* The storms were such that everything happened. */
	cr_assert(n_ok > 100 && n_failed > 100 && n_cancelled > 100 && n_deadline > 100 &&
		      n_resets > 20,
		  "%d ok %d failed %d cancelled %d deadline %d resets", (int)n_ok, (int)n_failed,
		  (int)n_cancelled, (int)n_deadline, (int)n_resets);
	KVX_TEST_END();
}
