/* Transfers with GPU memory at one end or both, by a real daemon, byte for byte. On the stand-in
 * runtime, or on a real GPU where there is one. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_engine.h"
#include "standin.h"

#define MIB     (1ull << 20)
#define WAIT_MS 20000

struct rig {
	struct test_node node;
	struct gpu_engine prefill, decode;
	struct kvxfer_import *to_decode, *to_prefill;
};

/* A node of two devices, unless there is a real one: then what it has. */
static bool rig_begin(void)
{
	const char *why;

	if (getenv("KVX_TEST_REAL_GPU") == NULL)
		standin_create(2, 512 * MIB);
	if (test_gpu_start(&why) < 0) {
		cr_skip_test("%s", why);
		return false;
	}
	return true;
}

static int second_device(void)
{
	return test_gpu_count() > 1 ? 1 : 0;
}

static void rig_open(struct rig *r, const char *const *sets, const struct gpu_engine_conf *prefill,
		     const struct gpu_engine_conf *decode)
{
	test_node_start(&r->node, sets);
	gpu_engine_open(&r->prefill, &r->node, prefill);
	gpu_engine_open(&r->decode, &r->node, decode);
	test_fill(&r->prefill.e, 1);
	gpu_engine_put(&r->prefill);
	r->to_decode = test_engine_import(&r->prefill.e, &r->decode.e);
	r->to_prefill = test_engine_import(&r->decode.e, &r->prefill.e);
}

static void rig_close(struct rig *r)
{
	gpu_engine_close(&r->prefill);
	gpu_engine_close(&r->decode);
	if (getenv("KVX_TEST_REAL_GPU") == NULL) {
		for (unsigned dev = 0; dev < 2; dev++)
			cr_expect_eq(standin_usage(dev).mapped_bytes, 0,
				     "device %u: %u mappings are left", dev,
				     standin_usage(dev).n_maps);
		cr_expect_eq(standin_n_violations(), 0, "%s", standin_violation());
	}
	test_node_fini(&r->node);
	if (getenv("KVX_TEST_REAL_GPU") == NULL)
		standin_destroy();
}

/* Scattered, and different on the two sides. */
static void scatter(uint32_t *local, uint32_t *remote, uint32_t n, uint32_t n_blocks)
{
	for (uint32_t i = 0; i < n; i++) {
		local[i] = (2 * i + 1) % n_blocks;
		remote[i] = n_blocks - 1 - (3 * i) % n_blocks;
	}
}

static void move_blocks(struct rig *r, int op, uint32_t n)
{
	struct gpu_engine *dst = &r->decode;
	struct test_engine *submitter = op == KVXFER_WRITE ? &r->prefill.e : &r->decode.e;
	uint32_t from[64], to[64];
	struct kvxfer_blocks blocks = {
	    .n_planes = r->prefill.e.n_planes,
	    .n_blocks = n,
	    .local_blocks = op == KVXFER_WRITE ? from : to,
	    .remote_blocks = op == KVXFER_WRITE ? to : from,
	};
	struct kvxfer_transfer t = {
	    .struct_bytes = sizeof(t),
	    .op = op,
	    .region = submitter->region,
	    .import_ = op == KVXFER_WRITE ? r->to_decode : r->to_prefill,
	    .blocks = &blocks,
	    .tag = 77,
	    .payload = "req-1",
	    .payload_bytes = 5,
	};
	uint64_t id;

	scatter(from, to, n, dst->e.n_blocks);
	cr_assert_eq(kvxfer_transfer_submit(submitter->client, &t, &id), 0);
	struct test_event ev = test_wait(submitter, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s %s", kvxfer_status_name(ev.status), ev.text);
	cr_assert_eq(ev.bytes, (uint64_t)n * dst->e.n_planes * dst->e.block_bytes);
	cr_assert_str_eq(ev.transport, "gpu");
	ev = test_wait(op == KVXFER_WRITE ? &r->decode.e : &r->prefill.e, KVXFER_EVENT_ARRIVAL, 77,
		       WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK);
	cr_assert_eq(ev.payload_bytes, 5);
	gpu_engine_expect(dst, 1, to, from, n);
}

static void between(int dev_a, int dev_b, unsigned n_segments, uint64_t block_bytes, int op,
		    const char *const *sets)
{
	struct rig r;
	struct gpu_engine_conf prefill = {.name = "prefill",
					  .dev = dev_a,
					  .n_segments = n_segments,
					  .n_planes = 4,
					  .n_blocks = 64,
					  .block_bytes = block_bytes,
					  .offset = 4096};
	struct gpu_engine_conf decode = prefill;

	decode.name = "decode";
	decode.dev = dev_b;
	decode.offset = 0;
	rig_open(&r, sets, &prefill, &decode);
	move_blocks(&r, op, 32);
	rig_close(&r);
}

Test(gpu, write_within_one_device)
{
	if (rig_begin())
		between(0, 0, 1, 16384, KVXFER_WRITE, NULL);
}

Test(gpu, write_between_two_devices)
{
	if (rig_begin())
		between(0, second_device(), 1, 16384, KVXFER_WRITE, NULL);
}

Test(gpu, read_between_two_devices)
{
	if (rig_begin())
		between(0, second_device(), 1, 16384, KVXFER_READ, NULL);
}

Test(gpu, write_from_host_memory)
{
	if (rig_begin())
		between(-1, 0, 1, 16384, KVXFER_WRITE, NULL);
}

Test(gpu, write_to_host_memory)
{
	if (rig_begin())
		between(0, -1, 1, 16384, KVXFER_WRITE, NULL);
}

Test(gpu, read_from_host_memory)
{
	if (rig_begin())
		between(-1, 0, 1, 16384, KVXFER_READ, NULL);
}

Test(gpu, regions_of_many_allocations)
{
	if (rig_begin())
		between(0, second_device(), 13, 16384, KVXFER_WRITE, NULL);
}

Test(gpu, small_blocks_by_the_kernel)
{
	static const char *const sets[] = {"gpu.gather_max_bytes=4096", NULL};

	if (rig_begin())
		between(0, second_device(), 3, 1152, KVXFER_WRITE, sets);
}

Test(gpu, small_blocks_without_the_kernel)
{
	static const char *const sets[] = {"gpu.gather_max_bytes=0", NULL};

	if (rig_begin())
		between(0, 0, 3, 1152, KVXFER_READ, sets);
}
