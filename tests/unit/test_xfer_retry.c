/* Transfers whose lane is reset under them, on the fake transport with virtual time. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "test_end.h"
#include "xfer/node_priv.h"
#include "xfer_pair.h"

static void pattern_fill(void)
{
	uint8_t *from = pair.local->mem.addr, *to = pair.remote->mem.addr;
	for (uint64_t i = 0; i < pair.local->mem.len_bytes; i++) {
		from[i] = (uint8_t)(i * 31 + (i >> 12));
		to[i] = 0;
	}
}

static bool pattern_arrived(uint64_t bytes)
{
	return memcmp(pair.local->mem.addr, pair.remote->mem.addr, bytes) == 0;
}

static void lane_lose(void)
{
	node_lane_reset(&pair.rig.node->lanes[0], "cable pulled");
}

static void retry_open(unsigned lane_retries, uint64_t latency_ns)
{
	rig_init(&pair.rig);
	pair.rig.conf.xfers.lane_retries = lane_retries;
	pair.rig.script.latency_ns = latency_ns;
	pair_open(8 * MIB);
	pattern_fill();
}

static struct kvx_xfer_row last_row;

static void row_take(void *arg, const struct kvx_xfer_row *row)
{
	last_row = *row;
}

Test(xfer_retry, transfer_goes_on_with_the_next_generation)
{
	retry_open(1, 1000000);
	rig_submit(&pair.rig, &pair.req, 8 * MIB);
	rig_turn(&pair.rig, 1500000); /* some of it is done, some in flight */
	cr_assert_eq(pair.rig.n_ends, 0);
	lane_lose();
	cr_assert(rig_until_ends(&pair.rig, 1, 100000));
	pair_expect_end(0, 0);
	cr_assert_eq(pair.rig.ends[0].end.bytes, 8 * MIB);
	cr_assert(pattern_arrived(8 * MIB));
	cr_assert_eq(kvx_node_copy_lane(pair.rig.node)->n_resets, 1);
	cr_assert_eq(kvx_xfers_stats(pair_xfers())->retries, 1);
	kvx_xfers_walk(pair_xfers(), row_take, NULL);
	cr_assert_eq(last_row.retries, 1);
	cr_assert_eq(pair.rig.n_ends, 1);
	cr_assert_eq(pair.rig.n_arrivals, 1);
	pair_close();
	KVX_TEST_END();
}

Test(xfer_retry, second_loss_fails_it)
{
	retry_open(1, 1000000);
	rig_submit(&pair.rig, &pair.req, 8 * MIB);
	for (unsigned i = 0; i < 2; i++) {
		rig_turn(&pair.rig, 500000);
		cr_assert_eq(pair.rig.n_ends, 0);
		lane_lose();
		rig_turn(&pair.rig, 1000);
	}
	cr_assert(rig_until_ends(&pair.rig, 1, 100000));
	pair_expect_end(0, -EIO);
	cr_assert_not_null(strstr(pair.rig.ends[0].text, "lane was reset"));
	cr_assert_eq(kvx_node_copy_lane(pair.rig.node)->n_resets, 2);
	pair_close();
	KVX_TEST_END();
}

Test(xfer_retry, nothing_is_retried_when_told_so)
{
	retry_open(0, 1000000);
	rig_submit(&pair.rig, &pair.req, MIB);
	rig_turn(&pair.rig, 500000);
	lane_lose();
	cr_assert(rig_until_ends(&pair.rig, 1, 100000));
	pair_expect_end(0, -EIO);
	cr_assert_eq(kvx_xfers_stats(pair_xfers())->retries, 0);
	pair_close();
	KVX_TEST_END();
}

/* What the other side refuses is refused the second time as well. */
Test(xfer_retry, refusal_is_final)
{
	retry_open(1, 1000000);
	rig_submit(&pair.rig, &pair.req, MIB);
	rig_turn(&pair.rig, 500000);
	cr_assert_eq(kvx_xfers_fail_lane(pair_xfers(), kvx_node_copy_lane(pair.rig.node), -EACCES,
					 10, "remote access error"),
		     1);
	cr_assert(rig_until_ends(&pair.rig, 1, 100000));
	pair_expect_end(0, -EACCES);
	cr_assert_eq(pair.rig.ends[0].end.vendor_code, 10);
	pair_close();
	KVX_TEST_END();
}

Test(xfer_retry, cancel_and_deadline_hold_while_it_waits)
{
	retry_open(1, 1000000);
	pair.req.deadline_ns = 3000000;
	rig_submit(&pair.rig, &pair.req, MIB);
	rig_turn(&pair.rig, 500000);
	lane_lose();
	pair.rig.script.drop_nth_op = (unsigned)pair.rig.script.n_ops + 1;
	pair.rig.script.drop_ops = 1000;
	cr_assert(rig_until_ends(&pair.rig, 1, 100000));
	pair_expect_end(0, -ETIMEDOUT);
	pair_close();
	KVX_TEST_END();
}

/* Losses at any moment: each transfer ends once, and what ended well arrived whole. */
Test(xfer_retry, random_losses_never_lose_bytes, .timeout = 100)
{
	unsigned n_ok = 0;
	for (unsigned seed = 1; seed <= 40; seed++) {
		retry_open(2, 200000);
		pair.rig.script.jitter_ns = 300000;
		pair.rig.script.seed = seed;
		pair.rig.script.reorder = seed % 2 == 0;
		rig_submit(&pair.rig, &pair.req, 8 * MIB);
		for (unsigned i = 0; i < seed % 4; i++) {
			rig_turn(&pair.rig, 37000 * seed % 1100000);
			lane_lose();
		}
		cr_assert(rig_until_ends(&pair.rig, 1, 1000000));
		cr_assert_eq(pair.rig.n_ends, 1);
		if (pair.rig.ends[0].end.status == 0) {
			cr_assert_eq(pair.rig.ends[0].end.bytes, 8 * MIB);
			cr_assert(pattern_arrived(8 * MIB), "seed %u", seed);
			n_ok++;
		}
		pair_close();
	}
	cr_assert_gt(n_ok, 20, "only %u of 40 transfers ended well", n_ok);
	KVX_TEST_END();
}
