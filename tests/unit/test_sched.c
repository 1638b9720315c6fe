/* Scheduler on the fake transport: order, turns, credits, lanes going down and up, the inline
 * outlet, the shared pool. Time is virtual; workers are turned by hand. */
#include "xfer/sched.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault_alloc.h"
#include "test_end.h"
#include "transport/fake/fake.h"

#define MEM_BYTES (1u << 20)
#define KIB       1024u

struct rig_lane {
	struct kvx_lane lane;
	struct kvx_outlet inline_outlet;
	struct kvx_worker *workers[3];
	struct kvx_mr *mr[3];
	struct kvx_rkey *rkey[3];
	unsigned n;
};

struct rig {
	struct kvx_fake_script script;
	struct kvx_scheds *scheds;
	struct rig_lane lanes[2];
	unsigned n_lanes;
	uint8_t *memory;
	struct kvx_mem mem;
};

static void nothing(struct kvx_cmd *cmd)
{
	cmd->work.next = NULL;
}

static void command(struct kvx_worker *worker, struct kvx_cmd *cmd, enum kvx_work_kind kind)
{
	cmd->work.kind = kind;
	cmd->done = nothing;
	cr_assert_eq(kvx_worker_submit(worker, cmd), 0);
	while (kvx_worker_drain(worker) == 0)
		kvx_worker_pump(worker);
	cr_assert_eq(cmd->status, 0);
}

static void outlet_open(struct rig *rig, struct rig_lane *l, struct kvx_outlet *outlet,
			unsigned ring_depth)
{
	struct kvx_worker_conf conf = {.name = "test",
				       .ops = &kvx_fake_ops,
				       .dom = {.test = &rig->script},
				       .ring_depth = ring_depth};
	struct kvx_worker *worker;
	struct kvx_cmd cmd = {.len = 0};
	unsigned i = l->n++;
	cr_assert_eq(kvx_worker_open(&conf, &worker, NULL), 0);
	command(worker, &cmd, KVX_CMD_LISTEN);
	outlet->worker = worker;
	outlet->ep = cmd.ep;
	outlet->dom_index = i;
	cmd = (struct kvx_cmd){.mem = &rig->mem, .rights = 3};
	command(worker, &cmd, KVX_CMD_MEM_REG);
	l->mr[i] = cmd.mr;
	cmd.ep = outlet->ep;
	command(worker, &cmd, KVX_CMD_RKEY_UNPACK);
	l->rkey[i] = cmd.rkey;
	l->workers[i] = worker;
}

static void outlet_close(struct rig_lane *l, struct kvx_outlet *outlet)
{
	struct kvx_cmd cmd = {.rkey = l->rkey[outlet->dom_index]};
	command(outlet->worker, &cmd, KVX_CMD_RKEY_FREE);
	cmd = (struct kvx_cmd){.mr = l->mr[outlet->dom_index]};
	command(outlet->worker, &cmd, KVX_CMD_MEM_DEREG);
	cmd = (struct kvx_cmd){.ep = outlet->ep};
	command(outlet->worker, &cmd, KVX_CMD_EP_CLOSE);
	kvx_worker_close(outlet->worker);
}

struct rig_conf {
	unsigned n_lanes, n_outlets, n_batches, ring_depth;
	uint64_t quantum, inline_max;
};

static void rig_open(struct rig *rig, const struct rig_conf *conf)
{
	if (rig->script.latency_ns == 0)
		rig->script.latency_ns = 1000;
	rig->script.queue_ops = 4096;
	rig->memory = calloc(1, MEM_BYTES);
	rig->mem = (struct kvx_mem){.fd = -1, .len_bytes = MEM_BYTES, .addr = rig->memory};
	rig->n_lanes = conf->n_lanes;
	cr_assert_eq(kvx_scheds_create(conf->n_batches, conf->quantum, &rig->scheds), 0);
	for (unsigned i = 0; i < conf->n_lanes; i++) {
		struct rig_lane *l = &rig->lanes[i];
		l->lane.ops = &kvx_fake_ops;
		l->lane.state = KVX_LANE_UP;
		l->lane.n_outlets = conf->n_outlets;
		for (unsigned o = 0; o < conf->n_outlets; o++)
			outlet_open(rig, l, &l->lane.outlets[o],
				    conf->ring_depth ? conf->ring_depth : 64);
		if (conf->inline_max > 0) {
			outlet_open(rig, l, &l->inline_outlet, 64);
			l->lane.inline_outlet = &l->inline_outlet;
			l->lane.inline_max_bytes = conf->inline_max;
		}
		cr_assert_eq(kvx_sched_create(&l->lane, rig->scheds, &l->lane.sched), 0);
	}
}

static void rig_close(struct rig *rig)
{
	for (unsigned i = 0; i < rig->n_lanes; i++) {
		struct rig_lane *l = &rig->lanes[i];
		kvx_sched_destroy(l->lane.sched);
		for (unsigned o = 0; o < l->lane.n_outlets; o++)
			outlet_close(l, &l->lane.outlets[o]);
		if (l->lane.inline_outlet != NULL)
			outlet_close(l, l->lane.inline_outlet);
	}
	kvx_scheds_destroy(rig->scheds);
	cr_assert_eq(rig->script.n_eps + rig->script.n_mrs + rig->script.n_rkeys, 0);
	free(rig->memory);
}

/* One turn: what is due completes, comes back, and makes room for more. */
static void rig_turn(struct rig *rig, uint64_t ns)
{
	kvx_fake_advance(&rig->script, ns);
	for (unsigned i = 0; i < rig->n_lanes; i++) {
		for (unsigned o = 0; o < rig->lanes[i].n; o++) {
			while (kvx_worker_pump(rig->lanes[i].workers[o]))
				;
			kvx_worker_drain(rig->lanes[i].workers[o]);
		}
	}
	kvx_scheds_pump(rig->scheds);
}

/* Something to send: total bytes in ops of op_bytes. */
struct load {
	struct kvx_sched_item item;
	struct rig_lane *lane;
	uint64_t total, given, done;
	uint64_t op_bytes;
	unsigned n_pulls, n_done, n_failed;
	uint64_t first_pull; /* clock of pulls */
	int fail_err;        /* that a batch may have; 0: none */
	void (*on_done)(struct load *load);
};
static uint64_t pull_clock;

static unsigned load_pull(struct kvx_sched_item *item, const struct kvx_outlet *outlet,
			  struct kvx_op *ops, unsigned max, uint64_t max_bytes, uint64_t *out_bytes)
{
	struct load *load = (struct load *)item;
	uint64_t bytes = 0;
	unsigned n = 0;
	if (load->first_pull == 0)
		load->first_pull = ++pull_clock;
	load->n_pulls++;
	cr_assert_lt(outlet->batches_in_flight, kvx_worker_limits(outlet->worker)->queue_batches);
	cr_assert_eq(load->lane->lane.state, KVX_LANE_UP);
	while (n < max && load->given < load->total) {
		uint64_t len = load->total - load->given;
		len = len < load->op_bytes ? len : load->op_bytes;
		if (n > 0 && bytes + len > max_bytes)
			break;
		ops[n++] = (struct kvx_op){.local = load->lane->mr[outlet->dom_index],
					   .remote = load->lane->rkey[outlet->dom_index],
					   .len_bytes = len,
					   .kind = KVX_OP_WRITE};
		bytes += len;
		load->given += len;
	}
	*out_bytes = bytes;
	return n;
}

static void load_batch_done(struct kvx_sched_item *item, const struct kvx_batch *batch)
{
	struct load *load = (struct load *)item;
	cr_assert(batch->status == 0 || batch->status == load->fail_err);
	if (batch->status == 0)
		load->done += batch->bytes;
	else
		load->n_failed++;
	load->n_done++;
	if (load->on_done != NULL)
		load->on_done(load);
}

static uint64_t load_backlog(const struct kvx_sched_item *item)
{
	const struct load *load = (const struct load *)item;
	return load->total - load->given;
}

static const struct kvx_sched_ops load_ops = {load_pull, load_batch_done, load_backlog};

static void load_start(struct rig *rig, struct load *load, unsigned lane, uint64_t flow)
{
	load->item.ops = &load_ops;
	load->item.flow_id = flow;
	load->lane = &rig->lanes[lane];
	if (load->op_bytes == 0)
		load->op_bytes = 4 * KIB;
	cr_assert_eq(kvx_sched_enqueue(load->lane->lane.sched, &load->item), 0);
}

static void run_out(struct rig *rig)
{
	for (unsigned i = 0; i < rig->n_lanes; i++) {
		struct kvx_sched *sched = rig->lanes[i].lane.sched;
		kvx_scheds_pump(rig->scheds);
		for (unsigned n = 0; kvx_sched_queued(sched) + kvx_sched_in_flight(sched) > 0;
		     n++) {
			cr_assert_lt(n, 100000, "does not end");
			rig_turn(rig, 1000);
		}
	}
}

Test(sched, everything_comes_back_once)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 3000 * KIB + 5};
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 2, .n_batches = 16, .quantum = 256 * KIB});
	load_start(&rig, &load, 0, 1);
	run_out(&rig);
	cr_assert_eq(load.done, load.total);
	cr_assert_eq(load.item.n_in_flight, 0);
	cr_assert_not(load.item.queued);
	cr_assert_eq(kvx_scheds_available(rig.scheds), 16);
	cr_assert_eq(rig.lanes[0].lane.n_bytes, load.total);
	cr_assert_eq(rig.lanes[0].lane.outlets[0].bytes_in_flight, 0);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, items_of_a_flow_go_in_order)
{
	struct rig rig = {.n_lanes = 0};
	struct load loads[5] = {{.total = 0}};
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 2, .n_batches = 16, .quantum = 64 * KIB});
	for (unsigned i = 0; i < 5; i++) {
		loads[i].total = 700 * KIB;
		load_start(&rig, &loads[i], 0, 9);
	}
	kvx_scheds_pump(rig.scheds);
	for (unsigned turn = 0; loads[4].done < loads[4].total; turn++) {
		cr_assert_lt(turn, 1000);
		for (unsigned i = 1; i < 5; i++)
			cr_assert(loads[i].given == 0 || loads[i - 1].given == loads[i - 1].total,
				  "item %u began before item %u was given out", i, i - 1);
		rig_turn(&rig, 700);
	}
	rig_close(&rig);
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

/* Between flows that all have something to send, no one is ahead by more than a quantum and what
 * one batch overdraws. */
Test(sched, flows_get_equal_bytes_within_a_quantum)
{
	enum { FLOWS = 5 };
	for (uint64_t seed = 1; seed <= 30; seed++) {
		struct rig rig = {.script = {.latency_ns = 5000, .jitter_ns = 4000, .seed = seed}};
		struct load loads[FLOWS] = {{.total = 0}};
		uint64_t slack;
		rng_state = seed * 77777;
		uint64_t quantum = 16 * KIB + rng() % (512 * KIB);
		rig.script.limits.batch_bytes = 8 * KIB + rng() % (256 * KIB);
		rig_open(&rig, &(struct rig_conf){.n_lanes = 1,
						  .n_outlets = 1 + rng() % 2,
						  .n_batches = 8,
						  .quantum = quantum});
		slack = quantum + rig.script.limits.batch_bytes + 64 * KIB;
		for (unsigned i = 0; i < FLOWS; i++) {
			loads[i].total = 64ull * KIB * KIB;
			loads[i].op_bytes = 1 + rng() % (64 * KIB);
			load_start(&rig, &loads[i], 0, 100 + i);
		}
		kvx_scheds_pump(rig.scheds);
		for (unsigned turn = 0; turn < 400; turn++) {
			uint64_t least = UINT64_MAX, most = 0;
			rig_turn(&rig, 1 + rng() % 5000);
			for (unsigned i = 0; i < FLOWS; i++) {
				least = loads[i].given < least ? loads[i].given : least;
				most = loads[i].given > most ? loads[i].given : most;
			}
			cr_assert_leq(most - least, slack, "seed %lu turn %u: %lu ahead",
				      (unsigned long)seed, turn, (unsigned long)(most - least));
		}
		cr_assert_gt(loads[0].given, 0);
		for (unsigned i = 0; i < FLOWS; i++) {
			kvx_sched_remove(&loads[i].item);
			cr_assert_not(loads[i].item.queued);
		}
		run_out(&rig);
		for (unsigned i = 0; i < FLOWS; i++)
			cr_assert_eq(loads[i].done, loads[i].given);
		rig_close(&rig);
	}
	KVX_TEST_END();
}

Test(sched, small_item_does_not_wait_behind_a_big_one)
{
	struct rig rig = {.script = {.latency_ns = 1000}};
	struct load big = {.total = 512ull * KIB * KIB, .op_bytes = 64 * KIB};
	struct load small = {.total = 4 * KIB};
	rig.script.limits.batch_bytes = 128 * KIB;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 32, .quantum = 256 * KIB});
	load_start(&rig, &big, 0, 1);
	kvx_scheds_pump(rig.scheds);
	rig_turn(&rig, 1000);
	uint64_t before = big.given;
	load_start(&rig, &small, 0, 2);
	for (unsigned i = 0; small.done == 0; i++) {
		cr_assert_lt(i, 10);
		rig_turn(&rig, 1000);
	}
	cr_assert_leq(big.given - before, 2 * (256 + 128) * KIB + 4 * 128 * KIB);
	kvx_sched_remove(&big.item);
	run_out(&rig);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, lane_that_is_not_up_gives_nothing_out)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 100 * KIB};
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 8, .quantum = 64 * KIB});
	rig.lanes[0].lane.state = KVX_LANE_CONNECTING;
	load_start(&rig, &load, 0, 1);
	for (unsigned i = 0; i < 5; i++)
		rig_turn(&rig, 1000);
	cr_assert_eq(load.n_pulls, 0);
	cr_assert_eq(kvx_sched_queued(rig.lanes[0].lane.sched), 1);
	rig.lanes[0].lane.state = KVX_LANE_UP;
	kvx_sched_pump(rig.lanes[0].lane.sched);
	cr_assert_gt(load.given, 0);
	run_out(&rig);
	cr_assert_eq(load.done, load.total);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, down_lane_keeps_order_until_it_is_up)
{
	struct rig rig = {.n_lanes = 0};
	struct load loads[3] = {{.total = 10 * KIB}, {.total = 10 * KIB}, {.total = 10 * KIB}};
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 8, .quantum = 64 * KIB});
	rig.lanes[0].lane.state = KVX_LANE_DOWN;
	pull_clock = 0;
	for (unsigned i = 0; i < 3; i++)
		load_start(&rig, &loads[i], 0, 4);
	kvx_scheds_pump(rig.scheds);
	rig.lanes[0].lane.state = KVX_LANE_UP;
	kvx_sched_pump(rig.lanes[0].lane.sched);
	run_out(&rig);
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(loads[i].first_pull, i + 1);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, batches_go_to_the_least_loaded_outlet)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 96 * KIB, .op_bytes = 32 * KIB};
	rig.script.limits.batch_bytes = 32 * KIB;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 2, .n_batches = 8, .quantum = 64 * KIB});
	const struct kvx_outlet *o = rig.lanes[0].lane.outlets;
	load_start(&rig, &load, 0, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(o[0].batches_in_flight, 2);
	cr_assert_eq(o[1].batches_in_flight, 1);
	cr_assert_eq(o[0].bytes_in_flight, 64 * KIB);
	run_out(&rig);
	rig_close(&rig);
	KVX_TEST_END();
}

/* Where the CPU copies, a lone item that would fit into one batch is shared out. */
Test(sched, lone_item_is_spread_over_copying_outlets)
{
	struct kvx_transport_ops copying = kvx_fake_ops;
	struct rig rig = {.n_lanes = 0};
	struct load a = {.total = 512 * KIB}, b = {.total = 512 * KIB}, c = {.total = 64 * KIB};
	copying.caps |= KVX_CAP_CPU_COPY;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 2, .n_batches = 8, .quantum = 1024 * KIB});
	rig.lanes[0].lane.ops = &copying;
	const struct kvx_outlet *o = rig.lanes[0].lane.outlets;
	load_start(&rig, &a, 0, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(o[0].bytes_in_flight, 256 * KIB);
	cr_assert_eq(o[1].bytes_in_flight, 256 * KIB);
	run_out(&rig);
	load_start(&rig, &c, 0, 1); /* too small to be worth it */
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(o[0].bytes_in_flight + o[1].bytes_in_flight, 64 * KIB);
	cr_assert_eq(c.n_pulls, 1);
	run_out(&rig);
	a = (struct load){.total = 512 * KIB};
	load_start(&rig, &a, 0, 1); /* not alone: whole batches */
	load_start(&rig, &b, 0, 2);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(a.n_pulls, 1);
	run_out(&rig);
	rig_close(&rig);
	KVX_TEST_END();
}

/* Two lanes and fewer batches than either could use: both go on. */
Test(sched, lanes_share_the_pool_fairly)
{
	struct rig rig = {.script = {.latency_ns = 1000}};
	struct load a = {.total = 64ull * KIB * KIB}, b = {.total = 64ull * KIB * KIB};
	rig.script.limits.queue_batches = 16;
	rig.script.limits.batch_bytes = 32 * KIB;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 2, .n_outlets = 1, .n_batches = 3, .quantum = 1024 * KIB});
	load_start(&rig, &a, 0, 1);
	load_start(&rig, &b, 1, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(kvx_scheds_available(rig.scheds), 0);
	for (unsigned i = 0; i < 100; i++) {
		rig_turn(&rig, 1000);
		uint64_t ahead = a.given > b.given ? a.given - b.given : b.given - a.given;
		cr_assert_leq(ahead, 3 * 32 * KIB);
	}
	cr_assert_gt(a.done, 64 * 32 * KIB);
	kvx_sched_remove(&a.item);
	kvx_sched_remove(&b.item);
	run_out(&rig);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, full_ring_is_tried_again)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 5000 * KIB};
	rig.script.limits.queue_batches = 8;
	rig_open(&rig, &(struct rig_conf){.n_lanes = 1,
					  .n_outlets = 1,
					  .n_batches = 16,
					  .ring_depth = 2,
					  .quantum = 64 * KIB});
	load_start(&rig, &load, 0, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(kvx_worker_in_flight(rig.lanes[0].workers[0]), 2);
	run_out(&rig);
	cr_assert_eq(load.done, load.total);
	rig_close(&rig);
	KVX_TEST_END();
}

static struct rig *again_rig;
static struct load again_load;

/* From inside batch_done: another item, and a pump that must not recurse. */
static void submit_again(struct load *load)
{
	if (again_load.item.ops != NULL)
		return;
	load_start(again_rig, &again_load, 0, 2);
	unsigned pulls = again_load.n_pulls;
	kvx_scheds_pump(again_rig->scheds);
	cr_assert_eq(again_load.n_pulls, pulls);
}

Test(sched, inline_item_is_over_when_pump_returns)
{
	struct rig rig = {.script = {.auto_advance = true}};
	struct load small = {.total = 16 * KIB, .on_done = submit_again};
	struct load big = {.total = 16 * KIB + 1};
	rig_open(&rig, &(struct rig_conf){.n_lanes = 1,
					  .n_outlets = 1,
					  .n_batches = 8,
					  .quantum = 64 * KIB,
					  .inline_max = 16 * KIB});
	again_rig = &rig;
	again_load = (struct load){.total = 100};
	load_start(&rig, &small, 0, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(small.done, small.total);
	cr_assert_eq(again_load.done, again_load.total);
	load_start(&rig, &big, 0, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(big.done, 0); /* its worker has not had a turn */
	cr_assert_eq(rig.lanes[0].lane.outlets[0].batches_in_flight, 1);
	run_out(&rig);
	cr_assert_eq(big.done, big.total);
	rig_close(&rig);
	KVX_TEST_END();
}

/* The last bytes of a big item are not copied on the loop while the rest is on its way. */
Test(sched, tail_of_a_big_item_is_not_inline)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 40 * KIB};
	rig.script.limits.batch_bytes = 32 * KIB;
	rig_open(&rig, &(struct rig_conf){.n_lanes = 1,
					  .n_outlets = 1,
					  .n_batches = 8,
					  .quantum = 64 * KIB,
					  .inline_max = 16 * KIB});
	load_start(&rig, &load, 0, 1);
	kvx_scheds_pump(rig.scheds);
	cr_assert_eq(rig.lanes[0].lane.outlets[0].batches_in_flight, 2);
	cr_assert_eq(rig.lanes[0].inline_outlet.batches_in_flight, 0);
	run_out(&rig);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, removed_item_gets_its_batches_back)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 100ull * KIB * KIB};
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 8, .quantum = 64 * KIB});
	load_start(&rig, &load, 0, 1);
	kvx_scheds_pump(rig.scheds);
	uint64_t given = load.given;
	cr_assert_gt(load.item.n_in_flight, 0);
	kvx_sched_remove(&load.item);
	kvx_sched_remove(&load.item); /* no-op */
	run_out(&rig);
	cr_assert_eq(load.given, given);
	cr_assert_eq(load.done, given);
	cr_assert_eq(load.item.n_in_flight, 0);
	rig_close(&rig);
	KVX_TEST_END();
}

static void on_held(void *arg)
{
	++*(unsigned *)arg;
}

Test(sched, failed_batch_is_held_until_it_is_released)
{
	struct rig rig = {.script = {.fail_nth_op = 3, .fail_err = -EIO}};
	struct load load = {.total = 400 * KIB, .op_bytes = 4 * KIB, .fail_err = -EIO};
	unsigned n_held = 0;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 8, .quantum = 64 * KIB});
	struct kvx_sched *sched = rig.lanes[0].lane.sched;
	kvx_sched_hold(sched, on_held, &n_held);
	load_start(&rig, &load, 0, 1);
	kvx_scheds_pump(rig.scheds);
	for (unsigned i = 0; i < 100; i++)
		rig_turn(&rig, 1000);
	cr_assert_eq(n_held, 1);
	cr_assert_eq(load.n_failed, 0);
	cr_assert_eq(load.item.n_in_flight, 1);
	cr_assert_eq(kvx_sched_in_flight(sched), 1, "what is held is in flight");
	cr_assert_eq(load.given, load.total, "the others go on");
	kvx_sched_release(sched);
	cr_assert_eq(load.n_failed, 1);
	cr_assert_eq(kvx_sched_in_flight(sched), 0);
	kvx_sched_release(sched); /* no-op */
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, what_a_fence_brings_back_is_held_too)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 64 * KIB, .op_bytes = 4 * KIB, .fail_err = -ECANCELED};
	unsigned n_held = 0;
	rig.script.limits.batch_bytes = 4 * KIB;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 8, .quantum = 64 * KIB});
	struct kvx_sched *sched = rig.lanes[0].lane.sched;
	kvx_sched_hold(sched, on_held, &n_held);
	rig.script.drop_nth_op = 1;
	rig.script.drop_ops = 100;
	load_start(&rig, &load, 0, 1);
	kvx_scheds_pump(rig.scheds);
	unsigned n_out = load.item.n_in_flight;
	cr_assert_gt(n_out, 1);
	rig.lanes[0].lane.state = KVX_LANE_CLOSING;
	struct kvx_cmd fence = {.ep = rig.lanes[0].lane.outlets[0].ep};
	command(rig.lanes[0].workers[0], &fence, KVX_CMD_FENCE);
	rig_turn(&rig, 1000);
	cr_assert_eq(n_held, n_out);
	cr_assert_eq(load.n_failed, 0);
	kvx_sched_release(sched);
	cr_assert_eq(load.n_failed, n_out);
	cr_assert_eq(kvx_sched_in_flight(sched), 0);
	kvx_sched_remove(&load.item);
	rig_close(&rig);
	KVX_TEST_END();
}

Test(sched, every_allocation_may_fail)
{
	struct rig rig = {.n_lanes = 0};
	struct load load = {.total = 4 * KIB};
	int rc = -1;
	rig_open(&rig, &(struct rig_conf){
			   .n_lanes = 1, .n_outlets = 1, .n_batches = 4, .quantum = 64 * KIB});
	load.item.ops = &load_ops;
	load.lane = &rig.lanes[0];
	load.op_bytes = 1024;
	for (unsigned n = 1; n < 20; n++) {
		fault_alloc_arm(n);
		rc = kvx_sched_enqueue(rig.lanes[0].lane.sched, &load.item);
		if (!fault_alloc_disarm())
			break;
		cr_assert_eq(rc, -ENOMEM);
		cr_assert_eq(kvx_sched_queued(rig.lanes[0].lane.sched), 0);
	}
	cr_assert_eq(rc, 0);
	run_out(&rig);
	cr_assert_eq(load.done, load.total);
	rig_close(&rig);
	for (unsigned n = 1; n < 20; n++) {
		struct kvx_scheds *scheds = NULL;
		fault_alloc_arm(n);
		rc = kvx_scheds_create(4, 1, &scheds);
		if (!fault_alloc_disarm()) {
			kvx_scheds_destroy(scheds);
			break;
		}
		cr_assert_eq(rc, -ENOMEM);
	}
	cr_assert_eq(rc, 0);
	KVX_TEST_END();
}
