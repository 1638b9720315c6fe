/* What is refused, hidden or missing: memory that cannot be exported, devices that an engine does
 * not see, runtimes that lack calls or are broken. Each with its reason; the rest of the node
 * works. On the stand-in for a GPU runtime only. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "gpu_rig.h"

#define N_BLOCKS    32
#define N_PLANES    2
#define BLOCK_BYTES 4096u
#define REGION      ((uint64_t)N_PLANES * N_BLOCKS * BLOCK_BYTES)

static struct test_node node;
static const struct gpu_engine_conf conf = {
    .name = "engine", .n_planes = N_PLANES, .n_blocks = N_BLOCKS, .block_bytes = BLOCK_BYTES};

static void move_all(struct test_engine *e, int op, struct kvxfer_import *import_)
{
	uint32_t ids[N_BLOCKS];
	struct kvxfer_blocks blocks = {
	    .n_planes = N_PLANES, .n_blocks = N_BLOCKS, .local_blocks = ids, .remote_blocks = ids};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = op,
				    .region = e->region,
				    .import_ = import_,
				    .blocks = &blocks};
	struct test_event ev;
	uint64_t id = 0;

	for (uint32_t i = 0; i < N_BLOCKS; i++)
		ids[i] = i;
	cr_assert_eq(kvxfer_transfer_submit(e->client, &t, &id), 0);
	ev = test_wait(e, KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s %s", kvxfer_status_name(ev.status), ev.text);
	cr_assert_str_eq(ev.transport, "gpu");
}

static void open_engine(struct gpu_engine *g, int dev)
{
	struct gpu_engine_conf c = conf;

	c.dev = dev;
	gpu_engine_open(g, &node, &c);
}

static void finish(void)
{
	rig_expect_good_manners(&node);
	test_node_fini(&node);
	for (unsigned dev = 0; dev < 2; dev++)
		cr_assert_eq(standin_usage(dev).n_allocs + standin_usage(dev).n_maps, 0);
	rig_end();
}

static int register_pointer(struct kvxfer_client *client, void *ptr, uint64_t bytes)
{
	struct kvxfer_gpu_segment segment = {.ptr = ptr, .len_bytes = bytes};
	struct kvxfer_region_options opt = {.struct_bytes = sizeof(opt), .name = "x"};
	struct kvxfer_region *region = NULL;

	return kvxfer_region_register_gpu(client, &segment, 1, &opt, &region);
}

Test(gpu_refuse, memory_of_expandable_segments_is_refused_with_what_to_do)
{
	struct kvxfer_client *client;
	void *ptr;

	if (!rig_standin())
		return;
	test_node_start(&node, NULL);
	client = test_node_client(&node, "engine");
	test_gpu_use(0);
	ptr = standin_vmm_alloc(0, 1 << 20);
	cr_assert_eq(register_pointer(client, ptr, 1 << 20), -EOPNOTSUPP);
	cr_assert_not_null(strstr(kvxfer_client_error(client), "expandable_segments"), "%s",
			   kvxfer_client_error(client));
	test_gpu_free(ptr);
	kvxfer_client_close(client);
	finish();
}

Test(gpu_refuse, what_is_no_gpu_memory_is_told_apart)
{
	struct kvxfer_client *client;
	void *ptr, *locked = NULL;
	char host[64];

	if (!rig_standin())
		return;
	test_node_start(&node, NULL);
	client = test_node_client(&node, "engine");
	ptr = test_gpu_alloc(0, 8192);
	cr_assert_eq(register_pointer(client, host, sizeof(host)), -EFAULT);
	cr_assert_eq(test_gpu_host_alloc(4096, &locked), 0);
	cr_assert_eq(register_pointer(client, locked, 4096), -EFAULT);
	cr_assert_not_null(strstr(kvxfer_client_error(client), "host memory"), "%s",
			   kvxfer_client_error(client));
	cr_assert_eq(register_pointer(client, ptr, 8193), -EINVAL, "it leaves its allocation");
	cr_assert_eq(register_pointer(client, (char *)ptr + 4096, 4097), -EINVAL);
	cr_assert_eq(register_pointer(client, ptr, 0), -EINVAL);
	cr_assert_eq(test_gpu_host_free(locked), 0);
	test_gpu_free(ptr);
	kvxfer_client_close(client);
	finish();
}

/* The engine sees one device and calls it 0; the daemon sees both and takes the right one. */
Test(gpu_refuse, a_device_that_is_hidden_from_an_engine_is_reached)
{
	struct rig_victim_conf hidden = {.dev = 0,
					 .n_planes = N_PLANES,
					 .n_blocks = N_BLOCKS,
					 .block_bytes = BLOCK_BYTES,
					 .fill = 0x5a,
					 .visible = "1"};
	static struct gpu_engine g;
	struct rig_victim v;
	char line[RIG_LINE], hex[RIG_MAX_DESC];

	if (!rig_standin())
		return;
	test_node_start(&node, NULL);
	open_engine(&g, 0);
	rig_victim_start(&v, &node, &hidden);
	cr_assert_neq(v.desc[0], '\0', "%s", v.answer);
	cr_assert_eq(standin_usage(1).mapped_bytes, REGION, "its device is the second one");
	move_all(&g.e, KVXFER_READ, rig_import(&g.e, v.desc));
	gpu_engine_get(&g);
	cr_assert_eq(g.e.data[0], 0x5a);
	cr_assert_eq(memcmp(g.e.data, g.e.data + 1, g.e.bytes - 1), 0);
	memset(g.e.data, 0x3c, g.e.bytes);
	gpu_engine_put(&g);
	rig_hex(g.e.region, hex);
	move_all(&g.e, KVXFER_WRITE, rig_import(&g.e, v.desc));
	cr_assert_str_eq(rig_victim_ask(&v, "look"), "look 3c");
	snprintf(line, sizeof(line), "write %s", hex);
	cr_assert_str_eq(rig_victim_ask(&v, line), "done 0");
	rig_victim_end(&v, 0);
	gpu_engine_close(&g);
	finish();
}

/* Two devices that do not reach each other: by way of host memory, and right. */
Test(gpu_refuse, devices_that_do_not_reach_each_other_are_joined_all_the_same)
{
	static struct gpu_engine a, b;

	if (!rig_standin())
		return;
	standin_set_reach(0, 1, false);
	standin_set_reach(1, 0, false);
	test_node_start(&node, NULL);
	open_engine(&a, 0);
	open_engine(&b, 1);
	memset(a.e.data, 0x21, a.e.bytes);
	gpu_engine_put(&a);
	move_all(&a.e, KVXFER_WRITE, test_engine_import(&a.e, &b.e));
	gpu_engine_get(&b);
	cr_assert_eq(b.e.data[0], 0x21);
	cr_assert_eq(memcmp(b.e.data, b.e.data + 1, b.e.bytes - 1), 0);
	gpu_engine_close(&a);
	gpu_engine_close(&b);
	finish();
}

static void expect_works_without(uint32_t lacks)
{
	static struct gpu_engine a, b;

	if (!rig_standin())
		return;
	standin_set_lacks(lacks);
	test_node_start(&node, NULL);
	open_engine(&a, 0);
	open_engine(&b, 1);
	memset(a.e.data, 0x31, a.e.bytes);
	gpu_engine_put(&a);
	move_all(&b.e, KVXFER_READ, test_engine_import(&b.e, &a.e));
	gpu_engine_get(&b);
	cr_assert_eq(memcmp(a.e.data, b.e.data, b.e.bytes), 0);
	gpu_engine_close(&a);
	gpu_engine_close(&b);
	finish();
}

Test(gpu_refuse, a_runtime_whose_batches_do_not_work_is_enough)
{
	expect_works_without(STANDIN_LACK_BATCH);
}

Test(gpu_refuse, a_runtime_without_kernels_is_enough)
{
	expect_works_without(STANDIN_LACK_KERNELS);
}

Test(gpu_refuse, a_runtime_without_dma_buf_is_enough)
{
	expect_works_without(STANDIN_LACK_DMABUF);
}

/* No memory of the runtime can be mapped: refused, and the daemon works. */
Test(gpu_refuse, a_runtime_without_ipc_is_refused)
{
	struct kvxfer_client *client;
	void *ptr;

	if (!rig_standin())
		return;
	standin_set_lacks(STANDIN_LACK_IPC);
	test_node_start(&node, NULL);
	client = test_node_client(&node, "engine");
	ptr = test_gpu_alloc(0, 4096);
	cr_assert_eq(register_pointer(client, ptr, 4096), -EOPNOTSUPP);
	cr_assert_neq(kvxfer_client_error(client)[0], '\0');
	test_gpu_free(ptr);
	kvxfer_client_close(client);
	finish();
}

/* More of a device's memory than there is: its own engine is refused by the runtime, nobody else
 * notices. */
Test(gpu_refuse, a_full_device_hurts_nobody)
{
	static struct gpu_engine a;
	void *most, *none = NULL;

	if (!rig_standin())
		return;
	test_node_start(&node, NULL);
	test_gpu_use(1);
	most = test_gpu_alloc(1, RIG_VRAM - standin_usage(1).alloc_bytes);
	cr_assert_eq(test_gpu_try_alloc(4096, &none), STANDIN_OUT_OF_MEMORY);
	open_engine(&a, 0);
	gpu_engine_close(&a);
	test_gpu_free(most);
	finish();
}

/* ---- the daemon's runtime is another matter than the engine's */

/* Runs the daemon with another folder of libraries; engines keep theirs. */
static void expect_daemon_without_gpu(const char *libraries, const char *does)
{
	struct kvxfer_client *client;
	char *mine;
	void *ptr;

	if (!rig_standin())
		return;
	mine = strdup(getenv("LD_LIBRARY_PATH"));
	if (does != NULL)
		setenv("KVX_TEST_BROKEN_GPU", does, 1);
	setenv("LD_LIBRARY_PATH", libraries, 1);
	test_node_start(&node, NULL);
	setenv("LD_LIBRARY_PATH", mine, 1);
	client = test_node_client(&node, "engine");
	ptr = test_gpu_alloc(0, 4096);
	cr_assert_lt(register_pointer(client, ptr, 4096), 0);
	fprintf(stderr, "# %s\n", kvxfer_client_error(client));
	cr_assert_neq(kvxfer_client_error(client)[0], '\0');
	test_gpu_free(ptr);
	kvxfer_client_close(client);
	free(mine);
	finish();
}

Test(gpu_refuse, a_daemon_without_a_runtime_says_so)
{
	expect_daemon_without_gpu("/nowhere", NULL);
}

Test(gpu_refuse, a_daemon_whose_runtime_lacks_calls_says_so)
{
	expect_daemon_without_gpu(getenv("KVX_TEST_BROKEN_DIR"), "lack");
}

Test(gpu_refuse, gpus_can_be_switched_off)
{
	static const char *const sets[] = {"gpu.enable=false", NULL};
	struct kvxfer_client *client;
	void *ptr;

	if (!rig_standin())
		return;
	test_node_start(&node, sets);
	client = test_node_client(&node, "engine");
	ptr = test_gpu_alloc(0, 4096);
	cr_assert_lt(register_pointer(client, ptr, 4096), 0);
	cr_assert_not_null(strstr(kvxfer_client_error(client), "turned off"), "%s",
			   kvxfer_client_error(client));
	test_gpu_free(ptr);
	kvxfer_client_close(client);
	finish();
}
