/* Every call that kvxfer makes to a GPU runtime fails in turn, at each place where it is made: in
 * the daemon at its start, in the daemon while it works, in an engine that registers memory.
 * Whatever becomes of the transfer, one that is told as OK has brought the right bytes, nothing
 * else was touched, the node works afterwards, and what was held is given back to the byte. On the
 * stand-in for a GPU runtime only. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu_rig.h"

#define N_BLOCKS    32
#define N_PLANES    2
#define BLOCK_BYTES 4096u
#define MAX_NTH     40

/* A copy, and an event, take so long: what is ended too early is seen. */
#define MIN_DELAY_US 2000
#define MAX_DELAY_US 10000

static const char *const quick[] = {"gpu.call_timeout_ms=10s", "gpu.fence_timeout_ms=1s", NULL};

static struct test_node node;
static const struct gpu_engine_conf conf = {
    .name = "engine", .n_planes = N_PLANES, .n_blocks = N_BLOCKS, .block_bytes = BLOCK_BYTES};

/* What happened to one round. */
struct outcome {
	bool registered, moved;
	int err;    /* of the registration that failed */
	int status; /* of the transfer */
	char text[200];
};

static bool try_open(struct gpu_engine *g, int dev, struct outcome *out)
{
	struct gpu_engine_conf c = conf;

	c.dev = dev;
	if (dev < 0) { /* page-locking may fail: it is registered all the same */
		gpu_engine_open(g, &node, &c);
		return true;
	}
	gpu_engine_alloc(g, &c);
	g->e.client = test_node_client(&node, c.name);
	out->err = gpu_engine_register(g, &c);
	if (out->err == 0)
		return true;
	snprintf(out->text, sizeof(out->text), "%s", kvxfer_client_error(g->e.client));
	cr_assert_neq(out->text[0], '\0', "a refusal without a reason");
	return false;
}

/* Every second block, so that there is something that must not be touched. */
static void move_half(struct gpu_engine *a, struct gpu_engine *b, struct outcome *out)
{
	struct kvxfer_import *import_ = test_engine_import(&a->e, &b->e);
	uint32_t ids[N_BLOCKS / 2];
	struct kvxfer_blocks blocks = {.n_planes = N_PLANES,
				       .n_blocks = N_BLOCKS / 2,
				       .local_blocks = ids,
				       .remote_blocks = ids};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = KVXFER_WRITE,
				    .region = a->e.region,
				    .import_ = import_,
				    .blocks = &blocks};
	struct test_event ev;
	uint64_t id = 0;

	for (uint32_t i = 0; i < N_BLOCKS / 2; i++)
		ids[i] = 2 * i;
	test_fill(&a->e, 1);
	gpu_engine_put(a);
	cr_assert_eq(kvxfer_transfer_submit(a->e.client, &t, &id), 0);
	ev = test_wait(&a->e, KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	out->status = ev.status;
	out->moved = ev.status == KVXFER_OK;
	snprintf(out->text, sizeof(out->text), "%s", ev.text);
	cr_assert(out->moved || ev.text[0] != '\0', "a failure without a reason");
	gpu_engine_get(b);
	for (uint32_t p = 0; p < N_PLANES; p++)
		for (uint32_t n = 0; n < N_BLOCKS; n++)
			if (n % 2 == 1)
				cr_assert(test_block_is_canary(&b->e, p, n), "%u %u touched", p, n);
			else if (out->moved)
				cr_assert(test_block_is(&b->e, 1, p, n, n), "%u %u is wrong", p, n);
}

/* After the end of a transfer that failed no byte of it lands. */
static void expect_nothing_late(struct gpu_engine *b, const struct outcome *out)
{
	memset(b->e.data, TEST_CANARY, b->e.bytes);
	gpu_engine_put(b);
	rig_sleep_ms(3 * MAX_DELAY_US / 1000);
	gpu_engine_get(b);
	for (uint32_t p = 0; p < N_PLANES; p++)
		for (uint32_t n = 0; n < N_BLOCKS; n++)
			cr_assert(test_block_is_canary(&b->e, p, n),
				  "%u %u landed after the end: %s", p, n, out->text);
}

/* Two engines, one transfer, both gone again. */
static struct outcome one_round(int dev_a, int dev_b)
{
	static struct gpu_engine a, b;
	struct outcome out = {0};
	bool have_b;

	memset(&b, 0, sizeof(b));
	out.registered = try_open(&a, dev_a, &out);
	have_b = out.registered && try_open(&b, dev_b, &out);
	out.registered = have_b;
	if (have_b)
		move_half(&a, &b, &out);
	if (have_b && !out.moved)
		expect_nothing_late(&b, &out);
	if (b.n_segments > 0)
		gpu_engine_close(&b);
	gpu_engine_close(&a);
	return out;
}

static void expect_good_round(int dev_a, const char *when)
{
	struct outcome out = one_round(dev_a, 1);

	cr_assert(out.registered, "%s: %d %s", when, out.err, out.text);
	cr_assert(out.moved, "%s: %s %s", when, kvxfer_status_name(out.status), out.text);
}

static void restart(void)
{
	test_node_stop(&node);
	test_node_restart(&node, quick);
}

/* Calls that the daemon makes while it registers, moves and gives back. */
static const enum standin_call daemon_calls[] = {
    STANDIN_CONTEXT,       STANDIN_DEVICE_SET,    STANDIN_DEVICE_INFO,    STANDIN_DEVICE_COUNT,
    STANDIN_PEER_CAN,      STANDIN_PEER_ENABLE,   STANDIN_HOST_REGISTER,  STANDIN_HOST_UNREGISTER,
    STANDIN_POINTER_INFO,  STANDIN_ADDRESS_RANGE, STANDIN_IPC_OPEN,       STANDIN_IPC_CLOSE,
    STANDIN_STREAM_SYNC,   STANDIN_STREAM_CREATE, STANDIN_STREAM_DESTROY, STANDIN_EVENT_CREATE,
    STANDIN_EVENT_DESTROY, STANDIN_EVENT_RECORD,  STANDIN_EVENT_QUERY,    STANDIN_COPY,
    STANDIN_COPY_2D,       STANDIN_COPY_BATCH,    STANDIN_LAUNCH,         STANDIN_MODULE,
    STANDIN_HOST_ALLOC,    STANDIN_HOST_FREE,     STANDIN_MALLOC,         STANDIN_FREE,
};
#define N_DAEMON_CALLS (sizeof(daemon_calls) / sizeof(daemon_calls[0]))

static unsigned n_fired, n_failed, n_lost;

/* Memory of the host is page-locked only where it is a region. */
static int source_of(enum standin_call call)
{
	return call == STANDIN_HOST_REGISTER || call == STANDIN_HOST_UNREGISTER ? -1 : 0;
}

static bool says_lost(const struct outcome *out)
{
	return out->status == KVXFER_DEVICE_LOST || out->err == -ENODEV;
}

/* A call that gives back what the round had used fails when the round is over: the next one is told
 * of the device's loss. */
static bool is_lost_now(const struct outcome *out, enum standin_error err)
{
	struct outcome next;

	if (says_lost(out))
		return true;
	if (err != STANDIN_LAUNCH_FAILURE)
		return false;
	next = one_round(0, 1);
	return says_lost(&next);
}

/* The nth call of a running daemon fails; false: it was not made so often. */
static bool fail_running(enum standin_call call, unsigned nth, enum standin_error err)
{
	struct rig_base before;
	struct outcome out;

	rig_measure(&node, &before);
	standin_fail(call, node.pid, nth, err);
	out = one_round(source_of(call), 1);
	if (!standin_fired(call)) {
		cr_assert(out.moved, "%s", out.text);
		cr_assert(nth > 1 || source_of(call) == 0, "%s is never called",
			  standin_call_name(call));
		return false;
	}
	n_fired++;
	n_failed += !out.moved;
	fprintf(stderr, "# %s %u: %s%s%s\n", standin_call_name(call), nth,
		out.moved        ? "moved all the same"
		: out.registered ? kvxfer_status_name(out.status)
				 : "not registered",
		out.text[0] ? ": " : "", out.text);
	if (is_lost_now(&out, err)) {
		n_lost++;
		restart();
	} else {
		rig_expect_base(&node, &before);
	}
	expect_good_round(source_of(call), standin_call_name(call));
	return true;
}

static void sweep_running(enum standin_error err)
{
	if (!rig_standin())
		return;
	test_node_start(&node, quick);
	expect_good_round(0, "at first");
	standin_set_delay(MIN_DELAY_US, MAX_DELAY_US, 1);
	for (unsigned i = 0; i < N_DAEMON_CALLS; i++)
		for (unsigned nth = 1; nth <= MAX_NTH; nth += 1 + nth / 3)
			if (!fail_running(daemon_calls[i], nth, err))
				break;
	fprintf(stderr, "# %u faults: %u rounds failed, of those %u with the device lost\n",
		n_fired, n_failed, n_lost);
	cr_assert_gt(n_fired, 8, "hardly a call was hit");
	rig_expect_good_manners(&node);
	test_node_fini(&node);
	for (unsigned dev = 0; dev < 2; dev++)
		cr_assert_eq(standin_usage(dev).n_allocs + standin_usage(dev).n_maps, 0);
	rig_end();
}

Test(gpu_faults, each_call_of_a_working_daemon_fails_by_the_unknown, .timeout = 280)
{
	sweep_running(STANDIN_UNKNOWN);
}

Test(gpu_faults, each_call_of_a_working_daemon_fails_by_memory, .timeout = 280)
{
	sweep_running(STANDIN_OUT_OF_MEMORY);
}

Test(gpu_faults, each_call_of_a_working_daemon_loses_the_device, .timeout = 280)
{
	sweep_running(STANDIN_LAUNCH_FAILURE);
}

/* ---- the daemon's start: it comes up, whatever the runtime does */

static bool host_works(void)
{
	static struct test_engine a, b;
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t), .op = KVXFER_WRITE};
	uint32_t block = 0;
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 1, .local_blocks = &block, .remote_blocks = &block};
	struct test_event ev;
	uint64_t id = 0;

	test_engine_open(&a, &node, "a", 1, 4, 4096, KVXFER_ACCESS_READ);
	test_engine_open(&b, &node, "b", 1, 4, 4096, KVXFER_ACCESS_WRITE);
	test_fill(&a, 3);
	t.region = a.region;
	t.import_ = test_engine_import(&a, &b);
	t.blocks = &blocks;
	cr_assert_eq(kvxfer_transfer_submit(a.client, &t, &id), 0);
	ev = test_wait(&a, KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	test_engine_close(&a);
	test_engine_close(&b);
	return ev.status == KVXFER_OK;
}

static bool fail_start(enum standin_call call, unsigned nth)
{
	bool fired;

	standin_fail(call, 0, nth, STANDIN_UNKNOWN);
	test_node_restart(&node, quick);
	fired = standin_fired(call);
	cr_assert(host_works(), "%s %u: host memory does not move", standin_call_name(call), nth);
	test_node_stop(&node);
	for (unsigned dev = 0; dev < 2; dev++)
		cr_assert_eq(standin_usage(dev).n_allocs + standin_usage(dev).n_maps, 0,
			     "%s %u: left on the GPU", standin_call_name(call), nth);
	n_fired += fired;
	return fired;
}

Test(gpu_faults, a_daemon_starts_whatever_call_fails, .timeout = 280)
{
	if (!rig_standin())
		return;
	test_node_start(&node, quick);
	test_node_stop(&node);
	for (enum standin_call call = 0; call < STANDIN_N_CALLS; call++)
		for (unsigned nth = 1; nth <= 4; nth++)
			if (!fail_start(call, nth))
				break;
	fprintf(stderr, "# %u faults at the start\n", n_fired);
	cr_assert_gt(n_fired, 10, "hardly a call was hit");
	test_node_restart(&node, quick);
	expect_good_round(0, "after all");
	test_node_fini(&node);
	rig_end();
}

/* ---- an engine's calls */

static const enum standin_call client_calls[] = {
    STANDIN_CONTEXT,       STANDIN_DEVICE_SET,     STANDIN_DEVICE_INFO, STANDIN_POINTER_INFO,
    STANDIN_ADDRESS_RANGE, STANDIN_IPC_GET,        STANDIN_DMABUF,      STANDIN_STREAM_CREATE,
    STANDIN_STREAM_SYNC,   STANDIN_STREAM_DESTROY, STANDIN_COPY,
};

/* Registers; the first try may fail, the second must not. */
static bool fail_client(enum standin_call call, unsigned nth)
{
	static struct gpu_engine g;
	struct gpu_engine_conf c = conf;
	struct standin_process before, after;
	bool fired;
	int rc;

	gpu_engine_alloc(&g, &c);
	g.e.client = test_node_client(&node, c.name);
	cr_assert(standin_process(getpid(), &before));
	standin_fail(call, getpid(), nth, STANDIN_UNKNOWN);
	rc = gpu_engine_register(&g, &c);
	fired = standin_fired(call);
	fprintf(stderr, "# %s %u: %d %s\n", standin_call_name(call), nth, rc,
		rc < 0 ? kvxfer_client_error(g.e.client) : "");
	cr_assert(rc == 0 || kvxfer_client_error(g.e.client)[0] != '\0');
	gpu_engine_get(&g);
	for (uint32_t p = 0; p < N_PLANES; p++)
		for (uint32_t n = 0; n < N_BLOCKS; n++)
			cr_assert(test_block_is_canary(&g.e, p, n),
				  "%s %u: the engine's memory was changed", standin_call_name(call),
				  nth);
	if (rc != 0)
		cr_assert_eq(gpu_engine_register(&g, &c), 0, "%s", kvxfer_client_error(g.e.client));
	cr_assert(standin_process(getpid(), &after));
	cr_assert_eq(after.n_events, before.n_events);
	gpu_engine_close(&g);
	return fired;
}

Test(gpu_faults, each_call_of_an_engine_that_registers_fails, .timeout = 120)
{
	if (!rig_standin())
		return;
	test_node_start(&node, quick);
	for (unsigned i = 0; i < sizeof(client_calls) / sizeof(client_calls[0]); i++)
		for (unsigned nth = 1; nth <= MAX_NTH; nth++) {
			if (!fail_client(client_calls[i], nth))
				break;
			n_fired++;
		}
	cr_assert_gt(n_fired, 8, "hardly a call was hit");
	rig_expect_good_manners(&node);
	test_node_fini(&node);
	rig_end();
}
