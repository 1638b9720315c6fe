/* GPU memory between two nodes without RDMA: two real daemons over fabric's tcp, whose messages are
 * copied between page-locked buffers and the devices of the stand-in GPU runtime (or real ones).
 * Byte for byte in every direction and form; and when engines, a daemon or a device go in the
 * middle, everybody is told, nothing more lands, and all that was held is given back. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_rig.h"

#define N_BLOCKS 64
#define N_PLANES 4
#define KIB      1024u
#define MIB      (1024u * KIB)
#define IDLE_MS  5000 /* within which a daemon gives back what nobody uses */

/* Two nodes: prefill is on the first, decode on the second. */
static struct test_node near_node, far_node;
static struct gpu_engine prefill, decode;
static struct kvxfer_import *to_decode, *to_prefill;
static struct rig_base near_base, far_base;

static const char *const plain[] = {"gpu.bounce_bytes=16M", NULL};
static const char *const quick[] = {"gpu.call_timeout_ms=400ms", "gpu.fence_timeout_ms=300ms",
				    NULL};

static void open_engines(int dev_a, int dev_b, unsigned n_segments, uint64_t block_bytes)
{
	struct gpu_engine_conf conf = {.name = "prefill",
				       .dev = dev_a,
				       .n_segments = n_segments,
				       .n_planes = N_PLANES,
				       .n_blocks = N_BLOCKS,
				       .block_bytes = block_bytes,
				       .offset = 4096};

	gpu_engine_open(&prefill, &near_node, &conf);
	conf.name = "decode";
	conf.dev = dev_b;
	conf.offset = 0;
	gpu_engine_open(&decode, &far_node, &conf);
	test_fill(&prefill.e, 1);
	gpu_engine_put(&prefill);
	to_decode = test_engine_import(&prefill.e, &decode.e);
	to_prefill = test_engine_import(&decode.e, &prefill.e);
}

static void close_engines(void)
{
	gpu_engine_close(&prefill);
	gpu_engine_close(&decode);
}

static void scatter(uint32_t *local, uint32_t *remote, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		local[i] = (2 * i + 1) % N_BLOCKS;
		remote[i] = N_BLOCKS - 1 - (3 * i) % N_BLOCKS;
	}
}

static struct kvxfer_transfer make_transfer(int op)
{
	bool write = op == KVXFER_WRITE;

	return (struct kvxfer_transfer){
	    .struct_bytes = sizeof(struct kvxfer_transfer),
	    .op = op,
	    .region = write ? prefill.e.region : decode.e.region,
	    .import_ = write ? to_decode : to_prefill,
	};
}

static struct test_engine *submitter(int op)
{
	return op == KVXFER_WRITE ? &prefill.e : &decode.e;
}

static void expect_ok(const struct test_event *ev, uint64_t bytes)
{
	cr_assert_eq(ev->status, KVXFER_OK, "%s %s", kvxfer_status_name(ev->status), ev->text);
	cr_assert_eq(ev->bytes, bytes);
	cr_assert_str_eq(ev->transport, "fabric");
}

/* From prefill to decode, by that op of either. */
static void move_blocks(int op, uint32_t n)
{
	bool write = op == KVXFER_WRITE;
	struct kvxfer_transfer t = make_transfer(op);
	uint32_t from[N_BLOCKS], to[N_BLOCKS];
	uint64_t id, bytes = (uint64_t)n * N_PLANES * decode.e.block_bytes;
	struct kvxfer_blocks blocks = {.n_planes = N_PLANES,
				       .n_blocks = n,
				       .local_blocks = write ? from : to,
				       .remote_blocks = write ? to : from};

	scatter(from, to, n);
	t.blocks = &blocks;
	t.tag = 77;
	t.payload = "req-1";
	t.payload_bytes = 5;
	cr_assert_eq(kvxfer_transfer_submit(submitter(op)->client, &t, &id), 0);
	struct test_event ev = test_wait(submitter(op), KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	expect_ok(&ev, bytes);
	ev = test_wait(write ? &decode.e : &prefill.e, KVXFER_EVENT_ARRIVAL, 77, RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK);
	cr_assert_eq(ev.payload_bytes, 5);
	gpu_engine_expect(&decode, 1, to, from, n);
}

/* Buffers and copiers go after the region, one after the other: when three looks find the same, and
 * no buffers. */
static void measure_idle(const struct test_node *node, struct rig_base *out_base)
{
	const struct standin_process *now = &out_base->daemon;
	long end = rig_now_ms() + IDLE_MS;
	struct standin_process before;

	rig_measure(node, out_base);
	for (unsigned n_same = 0; n_same < 3 && rig_now_ms() < end;) {
		before = *now;
		rig_sleep_ms(50);
		rig_measure(node, out_base);
		if (now->host_bytes < MIB && now->host_bytes == before.host_bytes &&
		    now->n_streams == before.n_streams && now->n_events == before.n_events)
			n_same++;
		else
			n_same = 0;
	}
	cr_assert_lt(now->host_bytes, MIB, "buffers are kept without regions");
}

/* Once around, so that what stays (lanes, their connections) is there: the base. */
static bool begin(const char *const *sets, bool standin_only)
{
	if (standin_only ? !rig_standin() : !rig_any())
		return false;
	test_node_start(&near_node, sets);
	test_node_start(&far_node, sets);
	open_engines(0, rig_second(), 1, 4096);
	move_blocks(KVXFER_WRITE, 4);
	close_engines();
	for (unsigned i = 0; i < 2; i++) {
		const struct test_node *node = i == 0 ? &near_node : &far_node;
		cr_assert_eq(test_node_wait_number(node, "status", "regions", 0, RIG_WAIT_MS), 0);
	}
	measure_idle(&near_node, &near_base);
	measure_idle(&far_node, &far_base);
	return true;
}

static void end(void)
{
	if (near_node.pid > 0) {
		rig_expect_base(&near_node, &near_base);
		rig_expect_good_manners(&near_node);
	}
	rig_expect_base(&far_node, &far_base);
	rig_expect_good_manners(&far_node);
	if (near_node.pid > 0)
		test_node_fini(&near_node);
	test_node_fini(&far_node);
	rig_end();
}

static void between(int dev_a, int dev_b, unsigned n_segments, uint64_t block_bytes, int op)
{
	open_engines(dev_a, dev_b, n_segments, block_bytes);
	move_blocks(op, 32);
	close_engines();
}

Test(gpu_bounce, every_direction_and_size_arrives_byte_for_byte, .timeout = 240)
{
	static const uint64_t sizes[] = {1152, 16 * KIB, 96 * KIB, 300 * KIB};

	if (!begin(plain, false))
		return;
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		for (int op = KVXFER_READ; op <= KVXFER_WRITE; op++) {
			between(0, rig_second(), 1, sizes[i], op);
			between(0, -1, 1, sizes[i], op);
			between(-1, 0, 1, sizes[i], op);
		}
	}
	end();
}

Test(gpu_bounce, regions_of_many_allocations, .timeout = 120)
{
	if (!begin(plain, false))
		return;
	for (int op = KVXFER_READ; op <= KVXFER_WRITE; op++) {
		between(0, rig_second(), 13, 16 * KIB, op);
		between(0, rig_second(), 64, 1152, op);
		between(-1, 0, 13, 96 * KIB, op);
	}
	end();
}

Test(gpu_bounce, explicit_ops_move_exactly_their_bytes)
{
	uint64_t local[4] = {5, 70000, 4096, 200001}, remote[4] = {1, 90001, 300000, 600000},
		 lens[4] = {1, 12345, 65536, 300000}, sum = 0;
	struct kvxfer_ops ops = {
	    .n_ops = 4, .local_offsets = local, .remote_offsets = remote, .lens = lens};

	if (!begin(plain, false))
		return;
	open_engines(0, rig_second(), 5, 4096);
	uint8_t *want = malloc(decode.e.bytes);
	memset(want, TEST_CANARY, decode.e.bytes);
	for (int i = 0; i < 4; i++) {
		memcpy(want + remote[i], prefill.e.data + local[i], lens[i]);
		sum += lens[i];
	}
	struct kvxfer_transfer t = make_transfer(KVXFER_WRITE);
	uint64_t id;
	t.ops = &ops;
	cr_assert_eq(kvxfer_transfer_submit(prefill.e.client, &t, &id), 0);
	struct test_event ev = test_wait(&prefill.e, KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	expect_ok(&ev, sum);
	gpu_engine_get(&decode);
	cr_assert_arr_eq(decode.e.data, want, decode.e.bytes);
	free(want);
	close_engines();
	end();
}

/* Plane after plane, as a prefill makes them. */
Test(gpu_bounce, a_stream_arrives_layer_by_layer)
{
	uint32_t from[32], to[32];
	uint64_t id;

	if (!begin(plain, false))
		return;
	open_engines(0, rig_second(), 3, 16 * KIB);
	scatter(from, to, 32);
	struct kvxfer_transfer t = make_transfer(KVXFER_WRITE);
	t.streaming = 1;
	cr_assert_eq(kvxfer_transfer_submit(prefill.e.client, &t, &id), 0);
	for (uint32_t p = 0; p < N_PLANES; p++) {
		struct kvxfer_blocks blocks = {.local_plane = p,
					       .remote_plane = p,
					       .n_planes = 1,
					       .n_blocks = 32,
					       .local_blocks = from,
					       .remote_blocks = to};
		cr_assert_eq(kvxfer_transfer_append(prefill.e.client, id, &blocks, NULL), 0);
		rig_sleep_ms(5);
	}
	cr_assert_eq(kvxfer_transfer_seal(prefill.e.client, id, NULL, 0), 0);
	struct test_event ev = test_wait(&prefill.e, KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	expect_ok(&ev, 32ull * N_PLANES * 16 * KIB);
	gpu_engine_expect(&decode, 1, to, from, 32);
	close_engines();
	end();
}

static uint64_t submit_all(int op)
{
	static uint32_t ids[N_BLOCKS];
	struct kvxfer_blocks all = {
	    .n_planes = N_PLANES, .n_blocks = N_BLOCKS, .local_blocks = ids, .remote_blocks = ids};
	struct kvxfer_transfer t = make_transfer(op);
	uint64_t id;

	for (uint32_t i = 0; i < N_BLOCKS; i++)
		ids[i] = i;
	t.blocks = &all;
	cr_assert_eq(kvxfer_transfer_submit(submitter(op)->client, &t, &id), 0);
	return id;
}

static uint64_t moved_by(const struct test_node *node)
{
	struct standin_process daemon;

	return standin_process(node->pid, &daemon) ? daemon.bytes : 0;
}

/* A transfer that device 0 (the first node's) or 1 (the second's) has begun to copy and cannot end:
 * its streams stand still from now on, with half of the bytes or more to go. What a stream is at is
 * still done. */
static uint64_t submit_and_stall(int op, unsigned dev)
{
	const struct test_node *node = dev == 0 ? &near_node : &far_node;
	long end = rig_now_ms() + RIG_WAIT_MS;

	for (;;) {
		uint64_t before = moved_by(node), id = submit_all(op);

		while (moved_by(node) == before && rig_now_ms() < end)
			rig_sleep_ms(1);
		standin_stall(dev, true);
		if (moved_by(node) > before && moved_by(node) - before <= decode.e.bytes / 2)
			return id;
		cr_assert_lt(rig_now_ms(), end, "no transfer is seen in its middle");
		standin_stall(dev, false);
		test_wait(submitter(op), KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	}
}

/* After its terminal event a cancelled transfer changes nothing any more. */
Test(gpu_bounce, cancelled_transfers_end_and_nothing_lands_after, .timeout = 120)
{
	if (!begin(plain, true))
		return;
	standin_set_delay(200, 1500, 11);
	for (unsigned round = 0; round < 12; round++) {
		int op = round % 2 ? KVXFER_READ : KVXFER_WRITE;
		open_engines(0, 1, 2, 16 * KIB);
		uint64_t id = submit_all(op);
		rig_sleep_ms((long)(round * 3 % 14));
		cr_assert_eq(kvxfer_transfer_cancel(submitter(op)->client, id), 0);
		struct test_event ev =
		    test_wait(submitter(op), KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
		cr_assert(ev.status == KVXFER_CANCELLED || ev.status == KVXFER_OK, "%s %s",
			  kvxfer_status_name(ev.status), ev.text);
		standin_set_delay(0, 0, 0);
		memset(decode.e.data, 0x42, decode.e.bytes);
		gpu_engine_put(&decode);
		rig_sleep_ms(20);
		gpu_engine_get(&decode);
		for (uint64_t i = 0; i < decode.e.bytes; i++)
			cr_assert_eq(decode.e.data[i], 0x42, "byte %llu landed after the end",
				     (unsigned long long)i);
		standin_set_delay(200, 1500, round);
		close_engines();
	}
	standin_set_delay(0, 0, 0);
	end();
}

static void expect_works(void)
{
	open_engines(0, 1, 1, 16 * KIB);
	move_blocks(KVXFER_WRITE, 16);
	close_engines();
}

Test(gpu_bounce, engines_killed_while_they_write_leave_nothing, .timeout = 120)
{
	static const struct rig_victim_conf conf = {.dev = 0,
						    .n_planes = N_PLANES,
						    .n_blocks = N_BLOCKS,
						    .block_bytes = 16 * KIB,
						    .fill = 5};
	static char hex[RIG_MAX_DESC], line[RIG_LINE];

	if (!begin(plain, true))
		return;
	standin_set_delay(50, 400, 7);
	for (unsigned round = 0; round < 8; round++) {
		static struct rig_victim v;
		bool far_dies = round % 2;

		open_engines(0, 1, 1, 16 * KIB);
		rig_victim_start(&v, far_dies ? &far_node : &near_node, &conf);
		cr_assert_neq(v.desc[0], '\0', "%s", v.answer);
		rig_hex(far_dies ? prefill.e.region : decode.e.region, hex);
		snprintf(line, sizeof(line), "storm %s", hex);
		rig_victim_ask(&v, line);
		rig_sleep_ms((long)(round * 7));
		rig_victim_end(&v, SIGKILL);
		close_engines();
	}
	standin_set_delay(0, 0, 0);
	expect_works();
	end();
}

Test(gpu_bounce, a_daemon_that_is_killed_ends_the_others_transfers, .timeout = 120)
{
	if (!begin(plain, true))
		return;
	standin_set_delay(3000, 6000, 3);
	open_engines(0, 1, 1, 16 * KIB);
	uint64_t id = submit_and_stall(KVXFER_READ, 0); /* decode's daemon is the one that lives */
	test_node_signal(&near_node, SIGKILL);
	struct test_event ev = test_wait(&decode.e, KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	cr_assert_neq(ev.status, KVXFER_OK);
	standin_stall(0, false);
	standin_set_delay(0, 0, 0);
	memset(decode.e.data, 0x42, decode.e.bytes);
	gpu_engine_put(&decode);
	rig_sleep_ms(20);
	gpu_engine_get(&decode);
	for (uint64_t i = 0; i < decode.e.bytes; i++)
		cr_assert_eq(decode.e.data[i], 0x42);
	close_engines();
	test_node_restart(&near_node, plain);
	expect_works();
	rig_measure(&near_node, &near_base);
	end();
}

/* A device is lost in the middle: that transfer ends so, host memory goes on. */
static void lose_device_in_the_middle(unsigned dev, int op)
{
	if (!begin(quick, true))
		return;
	standin_set_delay(3000, 6000, 3);
	open_engines(0, 1, 1, 16 * KIB);
	uint64_t id = submit_and_stall(op, dev);
	standin_lose(dev, STANDIN_LAUNCH_FAILURE);
	struct test_event ev = test_wait(submitter(op), KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	cr_assert_neq(ev.status, KVXFER_OK);
	fprintf(stderr, "# ended with %s: %s\n", kvxfer_status_name(ev.status), ev.text);
	standin_stall(dev, false);
	standin_set_delay(0, 0, 0);
	(dev == 0 ? &prefill : &decode)->n_segments = 0; /* nothing there can be freed */
	close_engines();
	open_engines(-1, dev == 0 ? 1 : -1, 1, 16 * KIB);
	move_blocks(KVXFER_WRITE, 16);
	close_engines();
	for (unsigned i = 0; i < 2; i++) {
		const struct test_node *node = i == 0 ? &near_node : &far_node;
		cr_assert_eq(test_node_wait_number(node, "status", "regions", 0, RIG_WAIT_MS), 0);
		cr_assert_eq(standin_usage(i).mapped_bytes, 0);
	}
	cr_expect_eq(standin_n_violations(), 0, "%s", standin_violation());
	test_node_fini(&near_node);
	test_node_fini(&far_node);
	rig_end();
}

Test(gpu_bounce, the_sources_device_is_lost_in_the_middle, .timeout = 60)
{
	lose_device_in_the_middle(0, KVXFER_WRITE);
}

Test(gpu_bounce, the_targets_device_is_lost_in_the_middle, .timeout = 60)
{
	lose_device_in_the_middle(1, KVXFER_WRITE);
}

Test(gpu_bounce, a_reads_device_is_lost_in_the_middle, .timeout = 60)
{
	lose_device_in_the_middle(1, KVXFER_READ);
}
