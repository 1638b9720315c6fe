/* Schedulers of lanes on the fake transport: time is virtual, workers are turned by hand; and
 * loads, items that only count their bytes. One thread. */
#ifndef KVX_SCHED_RIG_H
#define KVX_SCHED_RIG_H

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "test_end.h"
#include "transport/fake/fake.h"
#include "xfer/sched.h"

#define MEM_BYTES (1u << 20)
#define KIB       1024u

struct rig_lane {
	struct kvx_lane lane;
	struct kvx_outlet inline_outlet;
	struct kvx_worker *workers[4];
	struct kvx_mr *mr[4];
	struct kvx_rkey *rkey[4];
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

static inline void nothing(struct kvx_cmd *cmd)
{
	cmd->work.next = NULL;
}

static inline void command(struct kvx_worker *worker, struct kvx_cmd *cmd, enum kvx_work_kind kind)
{
	cmd->work.kind = kind;
	cmd->done = nothing;
	cr_assert_eq(kvx_worker_submit(worker, cmd), 0);
	while (kvx_worker_drain(worker) == 0)
		kvx_worker_pump(worker);
	cr_assert_eq(cmd->status, 0);
}

static inline void outlet_open(struct rig *rig, struct rig_lane *l, struct kvx_outlet *outlet,
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
	free(cmd.mkey);
	l->rkey[i] = cmd.rkey;
	l->workers[i] = worker;
}

static inline void outlet_close(struct rig_lane *l, struct kvx_outlet *outlet)
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

static inline void rig_open(struct rig *rig, const struct rig_conf *conf)
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

static inline void rig_close(struct rig *rig)
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
static inline void rig_turn(struct rig *rig, uint64_t ns)
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

static inline unsigned load_pull(struct kvx_sched_item *item, const struct kvx_outlet *outlet,
				 struct kvx_op *ops, unsigned max, uint64_t max_bytes,
				 uint64_t *out_bytes)
{
	struct load *load = (struct load *)item;
	uint64_t bytes = 0;
	unsigned n = 0;
	if (load->first_pull == 0)
		load->first_pull = ++pull_clock;
	load->n_pulls++;
	cr_assert_lt(outlet->batches_in_flight, kvx_worker_limits(outlet->worker)->queue_batches);
	cr_assert_eq(load->lane->lane.state, KVX_LANE_UP);
	cr_assert(item->outlets == 0 || outlet == load->lane->lane.inline_outlet ||
		  item->outlets & 1u << (outlet - load->lane->lane.outlets));
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

static inline void load_batch_done(struct kvx_sched_item *item, const struct kvx_batch *batch)
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

static inline uint64_t load_backlog(const struct kvx_sched_item *item)
{
	const struct load *load = (const struct load *)item;
	return load->total - load->given;
}

static const struct kvx_sched_ops load_ops = {load_pull, load_batch_done, load_backlog};

static inline void load_start(struct rig *rig, struct load *load, unsigned lane, uint64_t flow)
{
	load->item.ops = &load_ops;
	load->item.flow_id = flow;
	load->lane = &rig->lanes[lane];
	if (load->op_bytes == 0)
		load->op_bytes = 4 * KIB;
	cr_assert_eq(kvx_sched_enqueue(load->lane->lane.sched, &load->item), 0);
}

static inline void run_out(struct rig *rig)
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

#endif
