/* Engines that are killed with GPU memory mapped by the daemon, runtimes that hang, devices that
 * are lost: everybody else goes on, is told once and in time, and what was held on the GPUs is
 * given back to the byte. What a real GPU cannot be
 * made to do runs on the stand-in for a GPU runtime only. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_rig.h"

#define N_BLOCKS    64
#define N_PLANES    4
#define BLOCK_BYTES 16384u
#define REGION      ((uint64_t)N_PLANES * N_BLOCKS * BLOCK_BYTES)

static uint32_t ids[N_BLOCKS];
static const struct kvxfer_blocks everything = {
    .n_planes = N_PLANES, .n_blocks = N_BLOCKS, .local_blocks = ids, .remote_blocks = ids};
static const char *const quick[] = {"gpu.call_timeout_ms=400ms", "gpu.fence_timeout_ms=300ms",
				    NULL};

static const struct gpu_engine_conf engine = {
    .name = "engine", .n_planes = N_PLANES, .n_blocks = N_BLOCKS, .block_bytes = BLOCK_BYTES};
static const struct rig_victim_conf victim = {
    .dev = 0, .n_planes = N_PLANES, .n_blocks = N_BLOCKS, .block_bytes = BLOCK_BYTES, .fill = 5};

/* A node with one engine on device 1, whose descriptor is in hex. */
static struct test_node node;
static struct gpu_engine decode;
static char decode_hex[RIG_MAX_DESC];

static void open_engine(struct gpu_engine *g, int dev)
{
	struct gpu_engine_conf conf = engine;

	conf.dev = dev;
	gpu_engine_open(g, &node, &conf);
}

static void begin_node(const char *const *sets)
{
	for (uint32_t i = 0; i < N_BLOCKS; i++)
		ids[i] = i;
	test_node_start(&node, sets);
	open_engine(&decode, rig_second());
	rig_hex(decode.e.region, decode_hex);
}

static bool begin(const char *const *sets)
{
	if (!rig_standin())
		return false;
	begin_node(sets);
	return true;
}

/* What a real GPU can be made to do, too. */
static bool begin_any(const char *const *sets)
{
	if (!rig_any())
		return false;
	begin_node(sets);
	return true;
}

static void end(void)
{
	rig_expect_good_manners(&node);
	gpu_engine_close(&decode);
	test_node_fini(&node);
	rig_end();
}

static struct test_event move(struct test_engine *e, int op, struct kvxfer_import *import_,
			      int timeout_ms)
{
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = op,
				    .region = e->region,
				    .import_ = import_,
				    .blocks = &everything};
	uint64_t id = 0;

	cr_assert_eq(kvxfer_transfer_submit(e->client, &t, &id), 0);
	return test_wait(e, KVXFER_EVENT_TERMINAL, id, timeout_ms);
}

static bool all_is(struct gpu_engine *g, uint8_t value)
{
	gpu_engine_get(g);
	return g->e.data[0] == value && memcmp(g->e.data, g->e.data + 1, g->e.bytes - 1) == 0;
}

/* An engine that the storm is not about moves its bytes within device 1. */
static void expect_neighbour_works(struct gpu_engine *neighbour, struct kvxfer_import *to_decode)
{
	struct test_event ev;

	memset(neighbour->e.data, 0x42, neighbour->e.bytes);
	gpu_engine_put(neighbour);
	ev = move(&neighbour->e, KVXFER_WRITE, to_decode, RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	cr_assert(all_is(&decode, 0x42));
}

/* On device 0, by the stand-in's books. */
static void expect_held(uint64_t mapped_bytes, uint64_t orphan_bytes)
{
	if (!test_gpu_is_standin())
		return;
	cr_assert_eq(standin_usage(0).mapped_bytes, mapped_bytes);
	cr_assert_eq(standin_usage(0).orphan_bytes, orphan_bytes);
}

/* ---- engines that die */

Test(gpu_storm, engines_killed_while_they_write_leave_nothing, .timeout = 120)
{
	enum { ROUNDS = 12, MOST_ROUNDS = 60 };
	static struct gpu_engine neighbour;
	struct kvxfer_import *to_decode;
	struct rig_base before;
	unsigned n_failed = 0;

	if (!begin_any(NULL))
		return;
	open_engine(&neighbour, rig_second());
	to_decode = test_engine_import(&neighbour.e, &decode.e);
	standin_set_delay(300, 3000, 7);
	rig_measure(&node, &before);
	/* Where a kill hits is chance: on until one hits a transfer. */
	for (int round = 0; round < ROUNDS || (n_failed == 0 && round < MOST_ROUNDS); round++) {
		struct rig_victim v;
		struct test_event ev;
		char line[RIG_LINE];

		rig_victim_start(&v, &node, &victim);
		cr_assert_neq(v.desc[0], '\0', "%s", v.answer);
		expect_held(REGION, 0);
		snprintf(line, sizeof(line), "storm %s", decode_hex);
		rig_victim_ask(&v, line);
		rig_sleep_ms(round % 5);
		rig_victim_end(&v, SIGKILL);
		while (test_wait_maybe(&decode.e, KVXFER_EVENT_ARRIVAL, 0, 400, &ev))
			n_failed += ev.status != KVXFER_OK;
		expect_neighbour_works(&neighbour, to_decode);
		while (test_wait_maybe(&decode.e, KVXFER_EVENT_ARRIVAL, 0, 50, &ev))
			;
		rig_expect_base(&node, &before);
	}
	fprintf(stderr, "# %u arrivals were told as failed\n", n_failed);
	if (test_gpu_is_standin())
		cr_assert_gt(n_failed, 0, "no kill hit a transfer");
	gpu_engine_close(&neighbour);
	end();
}

/* The daemon is in the middle of mapping its memory when the engine dies. */
Test(gpu_storm, engines_killed_while_they_register_leave_nothing, .timeout = 120)
{
	struct rig_victim_conf conf = victim;
	struct rig_base before;

	if (!begin(NULL))
		return;
	conf.no_wait = true;
	rig_measure(&node, &before);
	standin_delay(STANDIN_IPC_OPEN, 60000);
	for (int round = 0; round < 8; round++) {
		uint64_t opens = standin_calls(node.pid, STANDIN_IPC_OPEN);
		long limit = rig_now_ms() + RIG_WAIT_MS;
		struct rig_victim v;

		rig_victim_start(&v, &node, &conf);
		while (standin_calls(node.pid, STANDIN_IPC_OPEN) == opens && rig_now_ms() < limit)
			rig_sleep_ms(1);
		rig_sleep_ms(10 * round);
		rig_victim_end(&v, SIGKILL);
		rig_expect_base(&node, &before);
	}
	end();
}

/* Memory that its engine gave back to the runtime too early stays until the region is gone. */
Test(gpu_storm, memory_freed_under_a_region_goes_with_it)
{
	struct kvxfer_import *import_;
	struct rig_base before;
	struct rig_victim v;
	struct test_event ev;

	if (!begin_any(NULL))
		return;
	rig_measure(&node, &before);
	rig_victim_start(&v, &node, &victim);
	import_ = rig_import(&decode.e, v.desc);
	rig_victim_ask(&v, "free");
	expect_held(REGION, REGION);
	ev = move(&decode.e, KVXFER_READ, import_, RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	cr_assert(all_is(&decode, victim.fill));
	rig_victim_ask(&v, "unregister");
	expect_held(0, 0);
	rig_victim_end(&v, SIGKILL);
	rig_expect_base(&node, &before);
	end();
}

Test(gpu_storm, a_daemon_that_is_killed_gives_back_everything)
{
	static struct gpu_engine other;
	struct test_event ev;

	if (!begin_any(NULL))
		return;
	open_engine(&other, 0);
	expect_held(REGION, 0);
	test_node_signal(&node, SIGKILL);
	expect_held(0, 0);
	test_node_restart(&node, NULL);
	test_wait(&decode.e, KVXFER_EVENT_DAEMON_LOST, 0, RIG_WAIT_MS);
	cr_assert_eq(kvxfer_client_reconnect(decode.e.client), 0, "%s",
		     kvxfer_client_error(decode.e.client));
	test_wait(&other.e, KVXFER_EVENT_DAEMON_LOST, 0, RIG_WAIT_MS);
	cr_assert_eq(kvxfer_client_reconnect(other.e.client), 0);
	memset(other.e.data, 9, other.e.bytes);
	gpu_engine_put(&other);
	ev = move(&other.e, KVXFER_WRITE, test_engine_import(&other.e, &decode.e), RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	cr_assert(all_is(&decode, 9));
	gpu_engine_close(&other);
	end();
}

/* ---- a runtime that hangs */

Test(gpu_storm, a_mapping_that_never_returns_hurts_its_device_only, .timeout = 120)
{
	struct rig_victim_conf conf = victim;
	static struct gpu_engine live, late;
	struct kvxfer_import *import_;
	struct rig_victim stuck, refused;
	struct test_event ev;
	struct rig_base before;
	long begun;

	if (!begin(quick))
		return;
	open_engine(&live, 0);
	import_ = test_engine_import(&live.e, &decode.e);
	rig_measure(&node, &before);
	standin_block_on(STANDIN_IPC_OPEN, node.pid, 0, true);
	begun = rig_now_ms();
	rig_victim_start(&stuck, &node, &conf);
	cr_assert_eq(stuck.desc[0], '\0', "it was registered all the same");
	cr_assert_eq(atoi(stuck.answer + strlen("refused ")), -ETIMEDOUT, "%s", stuck.answer);
	cr_assert_lt(rig_now_ms() - begun, 5000, "%s", stuck.answer);
	cr_assert_eq(standin_blocked(STANDIN_IPC_OPEN), 1);
	/* The device takes no more, and says so at once; what is live goes on; so does the other.
	 */
	rig_victim_start(&refused, &node, &conf);
	cr_assert_eq(atoi(refused.answer + strlen("refused ")), -EBUSY, "%s", refused.answer);
	begun = rig_now_ms();
	test_node_number(&node, "status", "clients");
	cr_assert_lt(rig_now_ms() - begun, 2000, "the loop is held up");
	ev = move(&live.e, KVXFER_WRITE, import_, RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	open_engine(&late, 1);
	gpu_engine_close(&late);
	/* It returns after all: what it made is undone, and the device takes memory again. */
	standin_block(STANDIN_IPC_OPEN, 0, false);
	rig_victim_end(&stuck, 0);
	rig_victim_end(&refused, 0);
	rig_expect_base(&node, &before);
	open_engine(&late, 0);
	gpu_engine_close(&late);
	gpu_engine_close(&live);
	end();
}

Test(gpu_storm, an_engine_killed_while_its_mapping_hangs_leaves_nothing, .timeout = 120)
{
	struct rig_victim_conf conf = victim;
	struct rig_base before;
	struct rig_victim v;
	long limit;

	if (!begin(quick))
		return;
	rig_measure(&node, &before);
	conf.no_wait = true;
	standin_block_on(STANDIN_IPC_OPEN, node.pid, 0, true);
	rig_victim_start(&v, &node, &conf);
	limit = rig_now_ms() + RIG_WAIT_MS;
	while (standin_blocked(STANDIN_IPC_OPEN) == 0 && rig_now_ms() < limit)
		rig_sleep_ms(1);
	cr_assert_eq(standin_blocked(STANDIN_IPC_OPEN), 1);
	rig_victim_end(&v, SIGKILL);
	rig_sleep_ms(600);
	standin_block(STANDIN_IPC_OPEN, 0, false);
	rig_expect_base(&node, &before);
	end();
}

/* It is stopped while a call of the runtime does not return: no join holds it up. */
Test(gpu_storm, a_daemon_ends_with_a_call_that_hangs, .timeout = 120)
{
	struct rig_victim v;

	if (!begin(quick))
		return;
	standin_block_on(STANDIN_IPC_OPEN, node.pid, 0, true);
	rig_victim_start(&v, &node, &victim);
	cr_assert_eq(v.desc[0], '\0');
	rig_victim_end(&v, SIGKILL);
	gpu_engine_close(&decode);
	test_node_stop(&node);
	test_node_fini(&node);
	standin_block(STANDIN_IPC_OPEN, 0, false);
	cr_assert_eq(standin_usage(0).n_maps + standin_usage(1).n_maps, 0);
	rig_end();
}

/* ---- fences and lost devices */

/* A cancelled transfer whose copies do not end costs the device; no byte lands after the end. */
Test(gpu_storm, a_cancel_ends_although_the_device_hangs, .timeout = 120)
{
	static struct gpu_engine from;
	struct kvxfer_import *import_;
	struct kvxfer_transfer t;
	struct test_event ev;
	uint64_t id = 0;
	long begun;

	if (!begin(quick))
		return;
	open_engine(&from, 0);
	import_ = test_engine_import(&from.e, &decode.e);
	memset(from.e.data, 0x77, from.e.bytes);
	gpu_engine_put(&from);
	t = (struct kvxfer_transfer){.struct_bytes = sizeof(t),
				     .op = KVXFER_WRITE,
				     .region = from.e.region,
				     .import_ = import_,
				     .blocks = &everything};
	standin_stall(0, true);
	cr_assert_eq(kvxfer_transfer_submit(from.e.client, &t, &id), 0);
	rig_sleep_ms(100);
	begun = rig_now_ms();
	cr_assert_eq(kvxfer_transfer_cancel(from.e.client, id), 0);
	ev = test_wait(&from.e, KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	fprintf(stderr, "# ended as %s after %ld ms: %s\n", kvxfer_status_name(ev.status),
		rig_now_ms() - begun, ev.text);
	cr_assert_neq(ev.status, KVXFER_OK);
	cr_assert_lt(rig_now_ms() - begun, 8000);
	standin_stall(0, false);
	rig_sleep_ms(300);
	cr_assert(all_is(&decode, TEST_CANARY), "bytes landed after the end");
	gpu_engine_close(&from);
	end();
}

/* What the rest of the node does while device 0 is lost, and after it. */
static void lose_device(enum standin_error err)
{
	static struct gpu_engine neighbour;
	struct kvxfer_import *to_decode;
	struct rig_victim v;
	struct test_event ev;
	char line[RIG_LINE];
	unsigned n_failed = 0;
	struct rig_base before;

	if (!begin(quick))
		return;
	open_engine(&neighbour, 1);
	to_decode = test_engine_import(&neighbour.e, &decode.e);
	rig_measure(&node, &before);
	standin_set_delay(100, 300, 3);
	rig_victim_start(&v, &node, &victim);
	snprintf(line, sizeof(line), "storm %s", decode_hex);
	rig_victim_ask(&v, line);
	standin_lose(0, err);
	while (test_wait_maybe(&decode.e, KVXFER_EVENT_ARRIVAL, 0, n_failed > 0 ? 500 : 8000, &ev))
		n_failed += ev.status == KVXFER_DEVICE_LOST;
	cr_assert_gt(n_failed, 0, "nobody was told");
	expect_neighbour_works(&neighbour, to_decode);
	rig_victim_end(&v, SIGKILL);
	/* A device that is lost takes nothing more. */
	struct rig_victim_conf conf = victim;
	conf.no_wait = true;
	rig_victim_start(&v, &node, &conf);
	rig_victim_end(&v, SIGKILL);
	expect_neighbour_works(&neighbour, to_decode);
	cr_assert_eq(standin_usage(0).n_maps, 0);
	cr_assert_eq(standin_usage(1).n_maps, before.usage[1].n_maps);
	/* The device is reset, the daemon started anew: all as before. */
	gpu_engine_close(&neighbour);
	gpu_engine_close(&decode);
	test_node_stop(&node);
	standin_reset(0);
	standin_set_delay(0, 0, 0);
	test_node_restart(&node, NULL);
	rig_victim_start(&v, &node, &victim);
	cr_assert_neq(v.desc[0], '\0', "%s", v.answer);
	rig_victim_end(&v, 0);
	cr_assert_eq(standin_usage(0).n_maps + standin_usage(0).n_allocs, 0);
	test_node_fini(&node);
	rig_end();
}

Test(gpu_storm, a_lost_device_fails_its_own_transfers_only, .timeout = 120)
{
	lose_device(STANDIN_LAUNCH_FAILURE);
}

Test(gpu_storm, so_does_one_with_broken_memory, .timeout = 120)
{
	lose_device(STANDIN_ECC);
}

Test(gpu_storm, owners_hear_that_their_region_is_lost, .timeout = 120)
{
	struct kvxfer_import *import_;
	struct rig_victim v;
	struct test_event ev;

	if (!begin(quick))
		return;
	rig_victim_start(&v, &node, &victim);
	import_ = rig_import(&decode.e, v.desc);
	rig_victim_say(&v, "wait");
	standin_lose(0, STANDIN_LAUNCH_FAILURE);
	ev = move(&decode.e, KVXFER_READ, import_, RIG_WAIT_MS);
	cr_assert_neq(ev.status, KVXFER_OK);
	cr_assert(rig_victim_hear(&v, RIG_WAIT_MS), "the owner was not told");
	cr_assert_eq(strncmp(v.answer, "lost ", 5), 0, "%s", v.answer);
	fprintf(stderr, "# the owner was told: %s\n", v.answer + 5);
	rig_victim_end(&v, SIGKILL);
	end();
}
