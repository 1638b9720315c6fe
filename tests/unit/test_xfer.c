/* Transfers on a node with the fake transport: what is accepted, what is refused, that every byte
 * moves, and who is told of it, in which order. */
#include "xfer/xfer.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault_alloc.h"
#include "test_end.h"
#include "xfer_pair.h"

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
	pair_expect_end(0, 0);
	const struct kvx_xfer_end *end = &pair.rig.ends[0].end;
	cr_assert(end->xfer == 1 && end->client == ALICE && end->tag == 77);
	cr_assert_eq(end->bytes, MIB);
	cr_assert_str_eq(end->transport, "fake");
	cr_assert_leq(end->submit_ns, end->end_ns);
	cr_assert(end->first_ns > 0 && end->first_ns <= end->last_ns);
	cr_assert_arr_eq(pair.local->mem.addr, pair.remote->mem.addr, MIB);
	cr_assert_eq(pair.rig.n_arrivals, 1);
	const struct kvx_arrival *a = &pair.rig.arrivals[0].arrival;
	cr_assert(a->owner == BOB && a->region == pair.remote->id && a->status == 0);
	cr_assert(a->payload_bytes == 5 && memcmp(pair.rig.arrivals[0].payload, "hello", 5) == 0);
	cr_assert_not_null(strstr(pair.rig.log, "AT")); /* the remote engine first */
	cr_assert_eq(pair.local->n_users + pair.remote->n_users, 0);
	cr_assert_eq(kvx_xfers_count(pair_xfers()), 0);
	cr_assert_eq(kvx_xfers_stats(pair_xfers())->ok, 1);
	cr_assert_eq(kvx_xfers_stats(pair_xfers())->bytes_ok, MIB);
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
	pair_expect_end(0, 0);
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
	pair_expect_end(0, 0);
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

static void expect_refused(const struct kvx_xfer_req *req, int err, const char *says)
{
	static const uint64_t zero, len = 16;
	struct kvx_op_list ops = {1, 1, &zero, &zero, &len};
	struct kvx_xfer_req full = *req;
	struct kvx_xfer *xfer = NULL;
	struct kvx_why why = {""};
	if (full.ops == NULL && full.blocks == NULL)
		full.ops = &ops;
	int rc = kvx_xfer_submit(pair_xfers(), &full, &xfer, &why);
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
	cr_assert_eq(kvx_xfers_stats(pair_xfers())->refused, 9);
	cr_assert(rig_until_ends(&pair.rig, 3, 1000));
	rig_turn(&pair.rig, 100000000);
	cr_assert_eq(pair.rig.n_ends, 3);
	pair_close();
	KVX_TEST_END();
}

static void append(struct kvx_xfer *xfer, uint64_t at, uint64_t len, int want)
{
	struct kvx_op_list ops = {1, 1, &at, &at, &len};
	struct kvx_why why = {""};
	int rc = kvx_xfer_append(xfer, NULL, &ops, NULL, &why);
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
	pair_expect_end(0, 0);
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
	pair_expect_end(0, 0);
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
	pair_expect_end(0, -ERANGE);
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
	pair_expect_end(0, -EINVAL);
	rig_turn(&pair.rig, 10000000);
	cr_assert_eq(pair.rig.n_ends, 1);
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
	kvx_xfers_pump(pair_xfers());
	pair_expect_end(0, 0);
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
	cr_assert_eq(kvx_xfers_count(pair_xfers()), 1);
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
		pair_expect_end(i, i > 0 && i % 5 == 0 ? -ECANCELED : 0);
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
	kvx_xfers_walk(pair_xfers(), count_row, NULL);
	cr_assert_eq(n_rows, 1 + 8);
	cr_assert_eq(n_running, 1);
	cr_assert_eq(first_ended, 20);
	cr_assert(rig_until_ends(&pair.rig, 21, 10000));
	pair_close();
	KVX_TEST_END();
}

/* A target on "another node": it goes over the same lane, but its owner is told through hooks. */
struct far {
	struct kvx_target target;
	uint64_t uid[8];
	unsigned n_open, n_end;
	struct kvx_arrival end;
	char text[KVX_WHY_BYTES];
};
static struct far far;

static void far_open(void *arg, struct kvx_target *target, uint64_t uid, int op, uint64_t tag,
		     const char *label)
{
	cr_assert(arg == &far && target == &far.target && op == KVX_OP_WRITE && tag == 77);
	cr_assert_str_eq(label, "request 1");
	cr_assert_eq(pair.rig.script.n_ops, 0, "told after the first byte");
	far.uid[far.n_open++] = uid;
	rig_log(&pair.rig, 'o');
}

static void far_end(void *arg, struct kvx_target *target, uint64_t uid,
		    const struct kvx_arrival *end)
{
	cr_assert_lt(far.n_end, far.n_open);
	cr_assert(arg == &far && target == &far.target);
	far.end = *end;
	strncpy(far.text, end->text, sizeof(far.text) - 1);
	far.n_end++;
	rig_log(&pair.rig, 'e');
}

static void far_release(struct kvx_target *target)
{
	rig_log(&pair.rig, 'r');
}

static void far_setup(void)
{
	static const struct kvx_node_peer_hooks hooks = {
	    .arg = &far, .remote_open = far_open, .remote_end = far_end};
	rig_init(&pair.rig);
	pair_open(MIB);
	rig_turn(&pair.rig, 0); /* keys */
	kvx_node_set_peers(pair.rig.node, &hooks);
	memset(&far, 0, sizeof(far));
	far.target = *pair.target;
	far.target.n_refs = 1;
	far.target.region = NULL;
	far.target.peer = (struct kvx_peer *)&far;
	far.target.peer_name = "0123456789abcdef0123456789abcdef";
	far.target.release = far_release;
	pair.req.target = &far.target;
	pair.req.label = "request 1";
	memset(pair.rig.log, 0, sizeof(pair.rig.log));
}

Test(xfer, other_node_hears_of_a_transfer_before_and_after)
{
	far_setup();
	pair.req.payload = "done";
	pair.req.payload_bytes = 4;
	rig_submit(&pair.rig, &pair.req, 4096);
	cr_assert_eq(far.n_open, 0); /* from the pump only */
	cr_assert(rig_until_ends(&pair.rig, 1, 1000));
	pair_expect_end(0, 0);
	cr_assert_str_eq(pair.rig.log, "oeT");
	cr_assert(far.end.status == 0 && far.end.bytes == 4096 && far.end.payload_bytes == 4);
	cr_assert_str_eq(far.end.transport, "fake");
	kvx_target_unref(&far.target);
	cr_assert_str_eq(pair.rig.log, "oeTr");
	pair_close();
	KVX_TEST_END();
}

Test(xfer, other_node_hears_of_a_transfer_that_never_began)
{
	far_setup();
	struct kvx_xfer *xfer = rig_submit(&pair.rig, &pair.req, 4096);
	kvx_xfer_cancel(xfer, -ECANCELED, "changed my mind");
	kvx_target_unref(&far.target); /* the transfer's own reference holds it */
	cr_assert_str_eq(pair.rig.log, "");
	rig_turn(&pair.rig, 0);
	pair_expect_end(0, -ECANCELED);
	cr_assert_str_eq(pair.rig.log, "oeTr");
	cr_assert_str_eq(far.text, "changed my mind");
	cr_assert_eq(pair.rig.script.n_ops, 0);
	pair_close();
	KVX_TEST_END();
}

Test(xfer, transfers_wait_for_keys_of_the_new_generation)
{
	far_setup();
	far.target.lane_generation = 99;
	rig_submit(&pair.rig, &pair.req, 4096);
	pair.req.number = 2;
	rig_submit(&pair.rig, &pair.req, 4096);
	for (unsigned i = 0; i < 5; i++)
		rig_turn(&pair.rig, 100000);
	cr_assert_eq(pair.rig.n_ends, 0);
	cr_assert_eq(pair.rig.script.n_ops, 0);
	far.target.lane_generation = kvx_node_copy_lane(pair.rig.node)->generation;
	kvx_node_set_peers(pair.rig.node, NULL);
	kvx_xfers_kick_target(pair_xfers(), &far.target);
	cr_assert(rig_until_ends(&pair.rig, 2, 10000));
	pair_expect_end(0, 0);
	pair_expect_end(1, 0);
	kvx_target_unref(&far.target);
	pair_close();
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
		rc = kvx_xfer_submit(pair_xfers(), &pair.req, &xfer, NULL);
		if (!fault_alloc_disarm())
			break;
		cr_assert_eq(rc, -ENOMEM, "allocation %u: %d", n, rc);
		cr_assert_eq(kvx_xfers_count(pair_xfers()), 0);
		cr_assert_eq(pair.local->n_users, 0);
	}
	cr_assert_eq(rc, 0);
	cr_assert(rig_until_ends(&pair.rig, 1, 10000));
	pair_expect_end(0, 0);
	pair_close();
	KVX_TEST_END();
}
