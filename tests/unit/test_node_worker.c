/* Node: its workers: commands that find a full ring; and once real threads with real copies. */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "node_rig.h"
#include "test_end.h"
#include "worker/worker_priv.h"

#define MIB (1u << 20)

static struct node_rig rig;

static unsigned n_cmds_back;
static bool cmds_in_order;

struct numbered {
	struct kvx_cmd cmd;
	unsigned number;
};

static void count_cmd(struct kvx_cmd *cmd)
{
	if (((struct numbered *)cmd)->number != n_cmds_back)
		cmds_in_order = false;
	n_cmds_back++;
}

Test(node_worker, commands_beyond_the_ring_are_kept_in_order)
{
	enum { N = 3000 };
	struct numbered *cmds = calloc(N, sizeof(*cmds));
	const char *name;
	rig_init(&rig);
	rig_start(&rig);
	struct kvx_worker *worker = kvx_node_worker(rig.node, 0, &name);
	cmds_in_order = true;
	for (unsigned i = 0; i < N; i++) {
		cmds[i].number = i;
		cmds[i].cmd.work.kind = KVX_CMD_LEASE;
		cmds[i].cmd.ep = kvx_node_copy_lane(rig.node)->outlets[0].ep;
		cmds[i].cmd.lease_ns = UINT64_MAX;
		cmds[i].cmd.done = count_cmd;
		kvx_node_submit(rig.node, worker, &cmds[i].cmd);
		if (i == N / 2) { /* room in the ring must not let later ones overtake */
			kvx_worker_pump(worker);
			kvx_worker_drain(worker);
		}
	}
	rig_turn(&rig, 0);
	cr_assert_eq(n_cmds_back, N);
	cr_assert(cmds_in_order);
	rig_stop(&rig);
	free(cmds);
	KVX_TEST_END();
}

static unsigned n_others_back;

static void count_other(struct kvx_cmd *cmd)
{
	n_others_back++;
}

static void lease(struct kvx_cmd *cmd, unsigned outlet, kvx_cmd_done_cb done)
{
	const struct kvx_outlet *out = &kvx_node_copy_lane(rig.node)->outlets[outlet];

	memset(cmd, 0, sizeof(*cmd));
	cmd->work.kind = KVX_CMD_LEASE;
	cmd->ep = out->ep;
	cmd->lease_ns = UINT64_MAX;
	cmd->done = done;
	kvx_node_submit(rig.node, out->worker, cmd);
}

/* The first one stands still, and has more than its ring holds. */
Test(node_worker, a_worker_that_is_full_holds_up_no_other)
{
	enum { N = 3000 };
	struct numbered *cmds = calloc(N, sizeof(*cmds));
	struct kvx_worker *other;
	struct kvx_cmd cmd;

	rig_init(&rig);
	rig_start(&rig);
	cr_assert_eq(kvx_node_copy_lane(rig.node)->n_outlets, 2);
	other = kvx_node_copy_lane(rig.node)->outlets[1].worker;
	cmds_in_order = true;
	for (unsigned i = 0; i < N; i++) {
		cmds[i].number = i;
		lease(&cmds[i].cmd, 0, count_cmd);
	}
	n_others_back = 0;
	for (unsigned i = 1; i <= 3; i++) {
		lease(&cmd, 1, count_other);
		kvx_node_drain(rig.node);
		kvx_worker_pump(other);
		kvx_node_drain(rig.node);
		cr_assert_eq(n_others_back, i, "it waits for the one that is full");
	}
	cr_assert_eq(n_cmds_back, 0);
	rig_turn(&rig, 0);
	cr_assert_eq(n_cmds_back, N);
	cr_assert(cmds_in_order);
	rig_stop(&rig);
	free(cmds);
	KVX_TEST_END();
}

static _Atomic unsigned n_rings;

static void count_ring(void *arg)
{
	atomic_fetch_add(&n_rings, 1);
}

/* Real threads, real copies: the loop sleeps until the doorbell rings. */
static void drain_until(const unsigned *counter, unsigned want)
{
	const struct timespec nap = {.tv_nsec = 20000};
	unsigned seen = atomic_load(&n_rings);
	kvx_node_drain(rig.node);
	for (unsigned i = 0; *counter < want; i++) {
		cr_assert_lt(i, 500000, "the doorbell did not ring");
		nanosleep(&nap, NULL);
		if (atomic_load(&n_rings) == seen)
			continue;
		seen = atomic_load(&n_rings);
		kvx_node_drain(rig.node);
	}
}

static void open_threaded(void)
{
	rig_init(&rig);
	rig.conf.copy_ops = NULL;
	rig.conf.threaded = true;
	rig.conf.doorbell = count_ring;
	rig.conf.copy_inline_max_bytes = 32768;
	rig.conf.spin_us = 10;
	rig.conf.xfers.default_deadline_ns = 60000000000;
	cr_assert_eq(kvx_timers_create(NULL, NULL, &rig.timers), 0);
	rig.conf.timers = rig.timers;
	cr_assert_eq(kvx_node_open(&rig.conf, &rig.node, NULL), 0);
}

Test(node_worker, real_threads_copy_real_bytes)
{
	enum { BYTES = 16 * MIB, N = 40 };
	open_threaded();
	struct kvx_region *local = rig_region_add(&rig, 1, BYTES, 0, NULL);
	struct kvx_region *remote = rig_region_add(&rig, 2, BYTES, 3, NULL);
	cr_assert_eq(kvx_node_region_open(rig.node, local, rig_on_opened, &rig), 0);
	cr_assert_eq(kvx_node_region_open(rig.node, remote, rig_on_opened, &rig), 0);
	drain_until(&rig.n_opened, 2);
	for (unsigned i = 0; i < BYTES; i++)
		local->mem.addr[i] = (uint8_t)(i * 13 + (i >> 11));
	struct kvx_target *target = rig_target(&rig, remote);
	struct kvx_xfer_req req = {
	    .client = 1, .op = KVX_OP_WRITE, .region = local, .target = target, .require = "copy"};
	for (unsigned i = 0; i < N; i++) {
		uint64_t at = (uint64_t)i * BYTES / N, len = BYTES / N - i % 2 * 400000;
		struct kvx_op_list ops = {1, 1, &at, &at, &len};
		req.number = i;
		req.ops = &ops;
		rig_submit(&rig, &req, 0);
	}
	drain_until(&rig.n_ends, N);
	for (unsigned i = 0; i < N; i++) {
		uint64_t at = (uint64_t)i * BYTES / N, len = BYTES / N - i % 2 * 400000;
		cr_assert_eq(rig.ends[i].end.status, 0, "%s", rig.ends[i].text);
		cr_assert_arr_eq(local->mem.addr + at, remote->mem.addr + at, len);
		if (len < BYTES / N)
			cr_assert_eq(remote->mem.addr[at + len], 0);
	}
	kvx_target_unref(target);
	cr_assert_eq(kvx_node_region_close(rig.node, local, -1, "", rig_on_closed, &rig), 0);
	cr_assert_eq(kvx_node_region_close(rig.node, remote, -1, "", rig_on_closed, &rig), 0);
	drain_until(&rig.n_closed, 2);
	rig_stop(&rig);
	KVX_TEST_END();
}
