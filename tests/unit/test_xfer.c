/* Transfers on a node with the fake transport: every way to end, each in exactly one terminal
 * event, and no byte after it. */
#include "xfer/xfer.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault_alloc.h"
#include "node_rig.h"
#include "test_end.h"

#define MIB   (1u << 20)
#define ALICE 11
#define BOB   22

/* Two clients: Alice's region is the local side, Bob's the remote one. */
struct pair {
	struct node_rig rig;
	struct kvx_region *local, *remote;
	struct kvx_target *target;
	struct kvx_xfer_req req;
};
static struct pair pair;

static void pair_open(uint64_t bytes)
{
	rig_start(&pair.rig);
	pair.local = rig_region(&pair.rig, ALICE, bytes, 0, NULL);
	pair.remote = rig_region(&pair.rig, BOB, bytes, 3, NULL);
	pair.target = rig_target(&pair.rig, pair.remote);
	for (uint64_t i = 0; i < bytes; i++)
		pair.local->mem.addr[i] = (uint8_t)(i * 7 + (i >> 8) + 1);
	pair.req = (struct kvx_xfer_req){.client = ALICE,
					 .number = 1,
					 .op = KVX_OP_WRITE,
					 .region = pair.local,
					 .target = pair.target,
					 .tag = 77,
					 .require = ""};
}

static void pair_close(void)
{
	kvx_target_unref(pair.target);
	rig_region_close(&pair.rig, pair.local);
	rig_region_close(&pair.rig, pair.remote);
	rig_stop(&pair.rig);
}

static struct kvx_xfers *xfers(void)
{
	return kvx_node_xfers(pair.rig.node);
}

static void expect_end(unsigned i, int status)
{
	const struct kvx_xfer_end *end = &pair.rig.ends[i].end;
	cr_assert_gt(pair.rig.n_ends, i, "no terminal event");
	cr_assert_eq(end->status, status, "status %d \"%s\"", end->status, end->text);
	cr_assert_eq(end->text[0] == '\0', status == 0, "\"%s\"", end->text);
}

Test(xfer, write_moves_every_byte_then_tells_both)
{
	rig_init(&pair.rig);
	pair_open(MIB);
	pair.req.payload = "hello";
	pair.req.payload_bytes = 5;
	rig_submit(&pair.rig, &pair.req, MIB);
	cr_assert_eq(pair.local->n_users, 1);
	cr_assert_eq(pair.remote->n_users, 1);
	cr_assert(rig_until_ends(&pair.rig, 1, 1000));
	expect_end(0, 0);
	const struct kvx_xfer_end *end = &pair.rig.ends[0].end;
	cr_assert(end->xfer == 1 && end->client == ALICE && end->tag == 77);
	cr_assert_eq(end->bytes, MIB);
	cr_assert_str_eq(end->transport, "fake");
	cr_assert_leq(end->submit_ns, end->end_ns);
	cr_assert_arr_eq(pair.local->mem.addr, pair.remote->mem.addr, MIB);
	cr_assert_eq(pair.rig.n_arrivals, 1);
	const struct kvx_arrival *a = &pair.rig.arrivals[0].arrival;
	cr_assert(a->owner == BOB && a->region == pair.remote->id && a->status == 0);
	cr_assert(a->payload_bytes == 5 && memcmp(pair.rig.arrivals[0].payload, "hello", 5) == 0);
	cr_assert_not_null(strstr(pair.rig.log, "AT")); /* the remote engine first */
	cr_assert_eq(pair.local->n_users + pair.remote->n_users, 0);
	cr_assert_eq(kvx_xfers_count(xfers()), 0);
	cr_assert_eq(kvx_xfers_stats(xfers())->ok, 1);
	cr_assert_eq(kvx_xfers_stats(xfers())->bytes_ok, MIB);
	pair_close();
	KVX_TEST_END();
}

Test(xfer, read_moves_the_other_way)
{
	rig_init(&pair.rig);
	pair_open(64 * 1024);
	memset(pair.remote->mem.addr, 0x5c, 64 * 1024);
	pair.req.op = KVX_OP_READ;
	rig_submit(&pair.rig, &pair.req, 1000);
	cr_assert(rig_until_ends(&pair.rig, 1, 1000));
	expect_end(0, 0);
	cr_assert_eq(pair.local->mem.addr[999], 0x5c);
	cr_assert_eq(pair.local->mem.addr[1000], (uint8_t)(1000 * 7 + (1000 >> 8) + 1));
	pair_close();
	KVX_TEST_END();
}

Test(xfer, block_list_of_many_pieces_is_spread_over_outlets)
{
	struct kvx_layout *a = kvx_layout_create(8), *b = kvx_layout_create(8);
	uint32_t l[32], r[32];
	rig_init(&pair.rig);
	pair.rig.script.limits.batch_ops = 16;
	rig_start(&pair.rig);
	for (uint32_t p = 0; p < 8; p++) {
		a->planes[p] = (struct kvx_plane){p * 65536, 2048, 2000, 32, "p"};
		b->planes[p] = (struct kvx_plane){p * 65536, 2000, 2000, 32, "p"};
	}
	pair.local = rig_region(&pair.rig, ALICE, MIB, 0, a);
	pair.remote = rig_region(&pair.rig, BOB, MIB, KVX_ACCESS_WRITE, b);
	pair.target = rig_target(&pair.rig, pair.remote);
	memset(pair.local->mem.addr, 0xab, MIB);
	for (uint32_t i = 0; i < 32; i++) {
		l[i] = i;
		r[i] = 31 - i;
	}
	struct kvx_block_list blocks = {0, 0, 8, 32, l, r, NULL};
	pair.req = (struct kvx_xfer_req){.client = ALICE,
					 .number = 5,
					 .op = KVX_OP_WRITE,
					 .region = pair.local,
					 .target = pair.target,
					 .require = "fake",
					 .blocks = &blocks};
	rig_submit(&pair.rig, &pair.req, 0);
	cr_assert(rig_until_ends(&pair.rig, 1, 1000));
	expect_end(0, 0);
	cr_assert_eq(pair.rig.ends[0].end.bytes, 8 * 32 * 2000);
	for (uint32_t i = 0; i < MIB; i++)
		cr_assert_eq(pair.remote->mem.addr[i],
			     i / 65536 < 8 && i % 65536 < 64000 ? 0xab : 0, "byte %u", i);
	const struct kvx_lane *lane = kvx_node_copy_lane(pair.rig.node);
	cr_assert_eq(lane->n_batches, 8 * 32 / 16);
	for (unsigned i = 0; i < 2; i++)
		cr_assert_gt(kvx_counter_get(&kvx_worker_stats(lane->outlets[i].worker)->ops), 64);
	pair_close();
	KVX_TEST_END();
}

struct refusal {
	const char *says;
	int err;
};

static void expect_refused(const struct kvx_xfer_req *req, int err, const char *says)
{
	static const uint64_t zero, len = 16;
	struct kvx_op_list ops = {1, 1, &zero, &zero, &len};
	struct kvx_xfer_req full = *req;
	struct kvx_xfer *xfer = NULL;
	struct kvx_why why = {""};
	if (full.ops == NULL && full.blocks == NULL)
		full.ops = &ops;
	int rc = kvx_xfer_submit(xfers(), &full, &xfer, &why);
	cr_assert_eq(rc, err, "%d instead of %d: %s", rc, err, why.text);
	cr_assert_not_null(strstr(why.text, says), "\"%s\"", why.text);
	cr_assert_null(xfer);
}

Test(xfer, bad_requests_are_refused_and_nothing_starts)
{
	static const uint64_t at = MIB - 8, len = 16;
	struct kvx_op_list outside = {1, 1, &at, &at, &len};
	struct kvx_xfer_req req;
	rig_init(&pair.rig);
	pair.rig.conf.xfers.max_xfers = 3;
	pair_open(MIB);
	req = pair.req;
	req.op = 7;
	expect_refused(&req, -EINVAL, "neither READ nor WRITE");
	req = pair.req;
	req.require = "fabric";
	expect_refused(&req, -ENETUNREACH, "usable is fake");
	req = pair.req;
	req.payload_bytes = KVX_PAYLOAD_MAX + 1;
	expect_refused(&req, -EMSGSIZE, "payload of 4097");
	req = pair.req;
	req.ops = &outside;
	expect_refused(&req, -ERANGE, "leaves the region");
	struct kvx_block_list blocks = {.n_planes = 1};
	req.blocks = &blocks;
	expect_refused(&req, -EINVAL, "both");
	pair.target->access = KVX_ACCESS_READ;
	expect_refused(&pair.req, -EACCES, "writing");
	pair.target->access = KVX_ACCESS_READ | KVX_ACCESS_WRITE;
	pair.local->state = KVX_REGION_FAILED;
	expect_refused(&pair.req, -EOWNERDEAD, "not usable");
	pair.local->state = KVX_REGION_LIVE;
	kvx_node_copy_lane(pair.rig.node)->state = KVX_LANE_DOWN;
	expect_refused(&pair.req, -EHOSTDOWN, "no connection");
	kvx_node_copy_lane(pair.rig.node)->state = KVX_LANE_UP;
	for (unsigned i = 0; i < 3; i++)
		rig_submit(&pair.rig, &pair.req, 16);
	expect_refused(&pair.req, -EDQUOT, "limits.transfers");
	cr_assert_eq(kvx_xfers_stats(xfers())->refused, 9);
	cr_assert(rig_until_ends(&pair.rig, 3, 1000));
	rig_turn(&pair.rig, 100000000);
	cr_assert_eq(pair.rig.n_ends, 3);
	pair_close();
	KVX_TEST_END();
}

Test(xfer, failed_op_fails_the_transfer_with_its_cause)
{
	rig_init(&pair.rig);
	pair_open(8 * MIB);
	pair.rig.script.fail_nth_op = 3;
	pair.rig.script.fail_err = -EREMOTEIO;
	pair.req.payload = "secret";
	pair.req.payload_bytes = 6;
	rig_submit(&pair.rig, &pair.req, 8 * MIB);
	cr_assert(rig_until_ends(&pair.rig, 1, 1000));
	expect_end(0, -EREMOTEIO);
	const struct kvx_xfer_end *end = &pair.rig.ends[0].end;
	cr_assert_eq(end->vendor_code, 4711);
	cr_assert_lt(end->bytes, 8 * MIB);
	cr_assert_eq(pair.rig.arrivals[0].arrival.status, -EREMOTEIO);
	cr_assert_eq(pair.rig.arrivals[0].arrival.payload_bytes, 0);
	cr_assert_eq(kvx_xfers_stats(xfers())->failed, 1);
	pair_close();
	KVX_TEST_END();
}

Test(xfer, memory_fault_names_both_regions_and_spares_them)
{
	rig_init(&pair.rig);
	pair_open(MIB);
	pair.rig.script.fail_nth_op = 1;
	pair.rig.script.fail_err = -EFAULT;
	rig_submit(&pair.rig, &pair.req, 4096);
	cr_assert(rig_until_ends(&pair.rig, 1, 1000));
	expect_end(0, -EFAULT);
	cr_assert_not_null(strstr(pair.rig.ends[0].text, "cannot be accessed"));
	rig_submit(&pair.rig, &pair.req, 4096);
	cr_assert(rig_until_ends(&pair.rig, 2, 1000));
	expect_end(1, 0);
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

Test(xfer, cancel_ends_after_what_was_in_flight_and_nothing_lands_later)
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
	expect_end(0, -ECANCELED);
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
Test(xfer, dropped_ops_end_by_deadline_fence_bound_and_lane_reset)
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
	expect_end(0, -ETIMEDOUT);
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
	expect_end(1, 0);
	cr_assert_eq(kvx_xfers_stats(xfers())->deadline, 1);
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

Test(xfer, lane_reset_frees_keys_only_after_the_last_batch)
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
	expect_end(0, -ETIMEDOUT);
	cr_assert_eq(kvx_node_copy_lane(pair.rig.node)->n_resets, 1);
	pair_close();
	KVX_TEST_END();
}

/* Somebody else's reset: not "cancelled", which only the submitter may say; what waits goes on. */
Test(xfer, bystander_of_a_lane_reset_fails_or_waits)
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

Test(xfer, deadline_passes_in_the_queue)
{
	rig_init(&pair.rig);
	pair_open(MIB);
	kvx_node_copy_lane(pair.rig.node)->state = KVX_LANE_CONNECTING;
	pair.req.deadline_ns = 5000000;
	rig_submit(&pair.rig, &pair.req, 4096);
	rig_turn(&pair.rig, 4900000);
	cr_assert_eq(pair.rig.n_ends, 0);
	rig_turn(&pair.rig, 200000);
	expect_end(0, -ETIMEDOUT);
	cr_assert_not_null(strstr(pair.rig.ends[0].text, "the lane is not up"));
	cr_assert_str_eq(pair.rig.ends[0].end.transport, "");
	cr_assert_eq(pair.rig.n_arrivals, 1);
	kvx_node_copy_lane(pair.rig.node)->state = KVX_LANE_UP;
	pair_close();
	KVX_TEST_END();
}

static void append(struct kvx_xfer *xfer, uint64_t at, uint64_t len, int want)
{
	struct kvx_op_list ops = {1, 1, &at, &at, &len};
	struct kvx_why why = {""};
	int rc = kvx_xfer_append(xfer, NULL, &ops, &why);
	cr_assert_eq(rc, want, "%d %s", rc, why.text);
}

Test(xfer, streaming_ends_once_sealed_and_moved)
{
	rig_init(&pair.rig);
	pair_open(MIB);
	pair.req.streaming = true;
	struct kvx_xfer *xfer = rig_submit(&pair.rig, &pair.req, 0);
	for (uint64_t i = 0; i < 8; i++) {
		append(xfer, i * 65536, 65536, 0);
		if (i % 3 == 0)
			rig_turn(&pair.rig, 1000000); /* drained in between */
	}
	for (unsigned i = 0; i < 20; i++)
		rig_turn(&pair.rig, 1000000);
	cr_assert_eq(pair.rig.n_ends, 0, "ended before the seal");
	cr_assert_arr_eq(pair.local->mem.addr, pair.remote->mem.addr, 8 * 65536);
	cr_assert_eq(kvx_xfer_seal(xfer, "bye", 3, NULL), 0);
	cr_assert_eq(pair.rig.n_ends, 0);
	rig_turn(&pair.rig, 0);
	expect_end(0, 0);
	cr_assert_eq(pair.rig.ends[0].end.bytes, 8 * 65536);
	cr_assert_eq(pair.rig.arrivals[0].arrival.payload_bytes, 3);
	pair_close();
	KVX_TEST_END();
}

Test(xfer, sealed_without_any_op_succeeds_with_no_bytes)
{
	rig_init(&pair.rig);
	pair_open(MIB);
	pair.req.streaming = true;
	struct kvx_xfer *xfer = rig_submit(&pair.rig, &pair.req, 0);
	cr_assert_eq(kvx_xfer_seal(xfer, NULL, 0, NULL), 0);
	rig_turn(&pair.rig, 0);
	expect_end(0, 0);
	cr_assert_eq(pair.rig.ends[0].end.bytes, 0);
	pair_close();
	KVX_TEST_END();
}

Test(xfer, bad_append_fails_the_transfer)
{
	rig_init(&pair.rig);
	pair_open(MIB);
	pair.req.streaming = true;
	struct kvx_xfer *xfer = rig_submit(&pair.rig, &pair.req, 65536);
	rig_turn(&pair.rig, 1000);
	append(xfer, MIB, 1, -ERANGE);
	cr_assert_eq(pair.rig.n_ends, 0);
	append(xfer, 0, 1, 0); /* it is ending: nothing happens */
	cr_assert_eq(kvx_xfer_seal(xfer, NULL, 0, NULL), 0);
	cr_assert(rig_until_ends(&pair.rig, 1, 1000));
	expect_end(0, -ERANGE);
	cr_assert_not_null(strstr(pair.rig.ends[0].text, "leaves the region"));
	pair_close();
	KVX_TEST_END();
}

Test(xfer, second_seal_fails_the_transfer)
{
	rig_init(&pair.rig);
	pair.rig.script.latency_ns = 1000000;
	pair_open(MIB);
	pair.req.streaming = true;
	struct kvx_xfer *xfer = rig_submit(&pair.rig, &pair.req, 65536);
	rig_turn(&pair.rig, 0);
	cr_assert_eq(kvx_xfer_seal(xfer, NULL, 0, NULL), 0);
	cr_assert_eq(kvx_xfer_seal(xfer, NULL, 0, NULL), -EINVAL);
	cr_assert(rig_until_ends(&pair.rig, 1, 100000));
	expect_end(0, -EINVAL);
	rig_turn(&pair.rig, 10000000);
	cr_assert_eq(pair.rig.n_ends, 1);
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
	if (kvx_xfers_cancel_client(xfers(), ALICE, -EPIPE, "gone") == 0)
		kvx_xfers_unwatch(xfers(), watch);
}

Test(xfer, cancel_client_takes_its_own_and_tells_when_fenced)
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
	cr_assert_eq(kvx_xfers_count_client(xfers(), ALICE), 3);
	cr_assert_eq(kvx_xfers_cancel_client(xfers(), 99, -EPIPE, "who"), 0);
	cr_assert_eq(kvx_xfers_cancel_client(xfers(), ALICE, -EPIPE, "gone"), 3);
	kvx_xfers_watch(xfers(), &w.watch);
	cr_assert(rig_until_ends(&pair.rig, 6, 10000));
	for (unsigned i = 0; i < 6; i++)
		expect_end(i, pair.rig.ends[i].end.client == ALICE ? -EPIPE : 0);
	cr_assert_gt(w.n_told, 0);
	cr_assert_null(w.watch.next);
	cr_assert_eq(kvx_xfers_count_client(xfers(), ALICE), 0);
	pair_close();
	KVX_TEST_END();
}

Test(xfer, cancel_by_region_target_and_lane)
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
	cr_assert_eq(kvx_xfers_cancel_region(xfers(), other, -EOWNERDEAD, "r"), 1);
	cr_assert_eq(kvx_xfers_cancel_target(xfers(), pair.target, -ESTALE, "t"), 1);
	cr_assert_eq(kvx_xfers_cancel_lane(xfers(), lane, -EIO, "l"), 2);
	cr_assert_eq(kvx_xfers_cancel_region(xfers(), pair.local, -EIO, "l"), 2);
	cr_assert(rig_until_ends(&pair.rig, 2, 10000));
	for (unsigned i = 0; i < 2; i++)
		expect_end(i, pair.rig.ends[i].end.xfer == 2 ? -EOWNERDEAD : -ESTALE);
	cr_assert_eq(kvx_xfers_cancel_lane(xfers(), lane, -EIO, "l"), 0);
	kvx_target_unref(target);
	rig_region_close(&pair.rig, other);
	pair_close();
	KVX_TEST_END();
}

Test(xfer, small_transfer_is_over_within_one_pump)
{
	rig_init(&pair.rig);
	pair.rig.conf.copy_inline_max_bytes = 32768;
	pair_open(MIB);
	rig_turn(&pair.rig, 0);
	pair.rig.script.auto_advance = true;
	rig_submit(&pair.rig, &pair.req, 4096);
	kvx_xfers_pump(xfers());
	expect_end(0, 0);
	cr_assert_eq(pair.remote->mem.addr[4095], pair.local->mem.addr[4095]);
	cr_assert_eq(pair.remote->mem.addr[4096], 0);
	pair_close();
	KVX_TEST_END();
}

/* A terminal handler that submits the next one, and one that cancels: no recursion, no loss. */
static void submit_next(struct node_rig *rig, const struct kvx_xfer_end *end)
{
	if (rig->n_ends >= 50)
		return;
	pair.req.number = rig->n_ends + 1;
	struct kvx_xfer *xfer = rig_submit(rig, &pair.req, 64);
	kvx_node_drain(rig->node);
	if (rig->n_ends % 5 == 0)
		kvx_xfer_cancel(xfer, -ECANCELED, "never mind");
	cr_assert_eq(kvx_xfers_count(xfers()), 1);
}

Test(xfer, terminal_handler_may_submit_and_cancel)
{
	rig_init(&pair.rig);
	pair.rig.conf.copy_inline_max_bytes = 32768;
	pair.rig.on_end = submit_next;
	pair_open(MIB);
	pair.rig.script.auto_advance = true;
	rig_submit(&pair.rig, &pair.req, 64);
	cr_assert(rig_until_ends(&pair.rig, 50, 1000));
	for (unsigned i = 0; i < 50; i++) {
		cr_assert_eq(pair.rig.ends[i].end.xfer, i ? i + 1 : 1);
		expect_end(i, i > 0 && i % 5 == 0 ? -ECANCELED : 0);
	}
	pair_close();
	KVX_TEST_END();
}

static unsigned n_rows, n_running;
static uint64_t first_ended;

static void count_row(void *arg, const struct kvx_xfer_row *row)
{
	n_rows++;
	n_running += row->end.status == 1;
	if (row->end.status != 1 && first_ended == 0)
		first_ended = row->end.xfer;
	cr_assert_str_eq(row->peer, "");
	cr_assert_gt(row->bytes_planned, 0);
}

Test(xfer, walk_shows_live_then_newest_ended)
{
	rig_init(&pair.rig);
	pair_open(MIB);
	for (unsigned i = 1; i <= 20; i++) {
		pair.req.number = i;
		rig_submit(&pair.rig, &pair.req, 64);
		cr_assert(rig_until_ends(&pair.rig, i, 10000));
	}
	pair.req.number = 21;
	rig_submit(&pair.rig, &pair.req, 64);
	kvx_xfers_walk(xfers(), count_row, NULL);
	cr_assert_eq(n_rows, 1 + 8);
	cr_assert_eq(n_running, 1);
	cr_assert_eq(first_ended, 20);
	cr_assert(rig_until_ends(&pair.rig, 21, 10000));
	pair_close();
	KVX_TEST_END();
}

static uint64_t rng_state;
static uint64_t rng(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state;
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
			kvx_xfer_append(storm_live[pick], NULL, &ops, NULL);
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
Test(xfer, random_storms_end_every_transfer_exactly_once)
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
		cr_assert_eq(kvx_xfers_count(xfers()), 0);
		cr_assert_eq(kvx_scheds_available(kvx_node_scheds(pair.rig.node)),
			     pair.rig.conf.n_batches);
		cr_assert_eq(pair.local->n_users + pair.remote->n_users, 0);
		const struct kvx_xfers_stats *stats = kvx_xfers_stats(xfers());
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

/* Submit with each allocation failing in turn: refused whole, or accepted whole. */
Test(xfer, every_allocation_of_submit_may_fail)
{
	static const uint64_t zero, len = 64;
	struct kvx_op_list ops = {1, 1, &zero, &zero, &len};
	struct kvx_xfer *xfer;
	int rc = -1;
	rig_init(&pair.rig);
	pair_open(MIB);
	pair.req.ops = &ops;
	pair.req.payload = "x";
	pair.req.payload_bytes = 1;
	for (unsigned n = 1; n < 30; n++) {
		fault_alloc_arm(n);
		rc = kvx_xfer_submit(xfers(), &pair.req, &xfer, NULL);
		if (!fault_alloc_disarm())
			break;
		cr_assert_eq(rc, -ENOMEM, "allocation %u: %d", n, rc);
		cr_assert_eq(kvx_xfers_count(xfers()), 0);
		cr_assert_eq(pair.local->n_users, 0);
	}
	cr_assert_eq(rc, 0);
	cr_assert(rig_until_ends(&pair.rig, 1, 10000));
	expect_end(0, 0);
	pair_close();
	KVX_TEST_END();
}
