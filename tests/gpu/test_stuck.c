/* A call of the data path that does not return: transfers of its device wait for it, and nobody
 * else waits for anything; regions come and go on the whole node. On the stand-in for a GPU runtime
 * only. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_rig.h"

#define N_BLOCKS    16
#define N_PLANES    2
#define BLOCK_BYTES 16384u
#define QUICK_MS    2000
#define SHOWN_MS    10000

static uint32_t ids[N_BLOCKS];
static const struct kvxfer_blocks everything = {
    .n_planes = N_PLANES, .n_blocks = N_BLOCKS, .local_blocks = ids, .remote_blocks = ids};

static struct test_node node;
static struct gpu_engine from, to; /* on device 0 */

static void open_on(struct gpu_engine *g, int dev)
{
	const struct gpu_engine_conf conf = {.name = "engine",
					     .dev = dev,
					     .n_planes = N_PLANES,
					     .n_blocks = N_BLOCKS,
					     .block_bytes = BLOCK_BYTES};

	gpu_engine_open(g, &node, &conf);
}

static uint64_t submit(struct test_engine *e, struct kvxfer_import *import_)
{
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = KVXFER_WRITE,
				    .region = e->region,
				    .import_ = import_,
				    .blocks = &everything};
	uint64_t id = 0;

	cr_assert_eq(kvxfer_transfer_submit(e->client, &t, &id), 0);
	return id;
}

static void block(enum standin_call call, bool on)
{
	standin_block_on(call, node.pid, 0, on);
	if (call == STANDIN_COPY_BATCH) /* or what takes its place; single copies verify mappings */
		standin_block_on(STANDIN_LAUNCH, node.pid, 0, on);
}

static unsigned n_blocked(enum standin_call call)
{
	unsigned n = standin_blocked(call);

	if (call == STANDIN_COPY_BATCH)
		n += standin_blocked(STANDIN_LAUNCH);
	return n;
}

/* Comes, writes, goes: between two of its own kind. */
static void expect_life_on(int dev)
{
	static struct gpu_engine a, b;
	long begun = rig_now_ms();
	struct test_event ev;

	open_on(&a, dev);
	open_on(&b, dev);
	memset(a.e.data, 0x5a, a.e.bytes);
	gpu_engine_put(&a);
	ev = test_wait(&a.e, KVXFER_EVENT_TERMINAL, submit(&a.e, test_engine_import(&a.e, &b.e)),
		       RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	gpu_engine_get(&b);
	cr_assert_eq(memcmp(a.e.data, b.e.data, a.e.bytes), 0);
	gpu_engine_close(&a);
	gpu_engine_close(&b);
	cr_assert_lt(rig_now_ms() - begun, QUICK_MS, "GPU %d is held up", dev);
}

static void expect_host_life(void)
{
	static struct test_engine a, b;
	long begun = rig_now_ms();
	struct test_event ev;

	test_engine_open(&a, &node, "a", N_PLANES, N_BLOCKS, BLOCK_BYTES,
			 KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE);
	test_engine_open(&b, &node, "b", N_PLANES, N_BLOCKS, BLOCK_BYTES,
			 KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE);
	ev = test_wait(&a, KVXFER_EVENT_TERMINAL, submit(&a, test_engine_import(&a, &b)),
		       RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	test_engine_close(&a);
	test_engine_close(&b);
	cr_assert_lt(rig_now_ms() - begun, QUICK_MS, "host memory is held up");
}

/* Registered, imported and given back on the device that hangs. */
static void expect_regions_on_it(void)
{
	static struct gpu_engine a, b;
	long begun = rig_now_ms();

	open_on(&a, 0);
	open_on(&b, 0);
	test_engine_import(&a.e, &b.e);
	gpu_engine_close(&b);
	gpu_engine_close(&a);
	cr_assert_lt(rig_now_ms() - begun, QUICK_MS, "regions of GPU 0 are held up");
}

/* Regions that have moved bytes by way of the device before, and do nothing now. */
static struct gpu_engine idle_from, idle_to;
static struct test_engine idle_host;

static void idle_write(struct kvxfer_import *import_)
{
	struct test_event ev = test_wait(&idle_from.e, KVXFER_EVENT_TERMINAL,
					 submit(&idle_from.e, import_), RIG_WAIT_MS);

	cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
}

static void idle_open(void)
{
	open_on(&idle_from, 0);
	open_on(&idle_to, 0);
	test_engine_open(&idle_host, &node, "host", N_PLANES, N_BLOCKS, BLOCK_BYTES,
			 KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE);
	idle_write(test_engine_import(&idle_from.e, &idle_to.e));
	idle_write(test_engine_import(&idle_from.e, &idle_host));
}

static void expect_idle_go(void)
{
	long begun = rig_now_ms();
	int64_t n = test_node_number(&node, "status", "regions");

	test_engine_close(&idle_host);
	gpu_engine_close(&idle_to);
	gpu_engine_close(&idle_from);
	cr_assert_eq(test_node_wait_number(&node, "status", "regions", n - 3, RIG_WAIT_MS), n - 3,
		     "regions that did nothing wait for the device");
	cr_assert_lt(rig_now_ms() - begun, QUICK_MS);
}

/* Not before it has lasted for a second. */
static void expect_shown(const char *what, const char *text)
{
	static char out[16384];
	const char *argv[] = {getenv("KVXFERCTL"), "--socket", node.socket, what, NULL};
	long end = rig_now_ms() + SHOWN_MS;

	for (;;) {
		cr_assert_eq(test_run(argv, out, sizeof(out)), 0, "%s", out);
		if (strstr(out, text) != NULL)
			return;
		cr_assert_lt(rig_now_ms(), end, "%s", out);
		rig_sleep_ms(100);
	}
}

static void hang_in(enum standin_call call)
{
	struct kvxfer_import *import_;
	struct rig_base before;
	struct test_event ev;
	uint64_t id;
	long limit;

	if (!rig_standin())
		return;
	for (uint32_t i = 0; i < N_BLOCKS; i++)
		ids[i] = i * 5 % N_BLOCKS; /* no neighbours: a batch */
	test_node_start(&node, NULL);
	open_on(&from, 0);
	open_on(&to, 0);
	import_ = test_engine_import(&from.e, &to.e);
	memset(from.e.data, 0x42, from.e.bytes);
	gpu_engine_put(&from);
	rig_measure(&node, &before);
	idle_open();
	block(call, true);
	id = submit(&from.e, import_);
	limit = rig_now_ms() + RIG_WAIT_MS;
	while (n_blocked(call) == 0 && rig_now_ms() < limit)
		rig_sleep_ms(1);
	cr_assert_eq(n_blocked(call), 1);
	for (unsigned i = 0; i < 3; i++) {
		expect_life_on(1);
		expect_host_life();
		expect_regions_on_it();
	}
	expect_idle_go();
	expect_shown("devices", "hanging");
	expect_shown("status", "does not return");
	cr_assert_eq(n_blocked(call), 1, "it was over too soon");
	cr_assert(!test_wait_maybe(&from.e, KVXFER_EVENT_TERMINAL, id, 1, &ev));
	block(call, false);
	ev = test_wait(&from.e, KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	gpu_engine_get(&to);
	cr_assert_eq(memcmp(from.e.data, to.e.data, to.e.bytes), 0);
	rig_expect_base(&node, &before);
	rig_expect_good_manners(&node);
	gpu_engine_close(&from);
	gpu_engine_close(&to);
	test_node_fini(&node);
	rig_end();
}

Test(gpu_stuck, a_copy_that_is_not_taken, .timeout = 60)
{
	hang_in(STANDIN_COPY_BATCH);
}

Test(gpu_stuck, an_end_that_is_not_told, .timeout = 60)
{
	hang_in(STANDIN_EVENT_QUERY);
}
