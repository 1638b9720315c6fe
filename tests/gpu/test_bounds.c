/* What a client can make up to keep a GPU busy is bounded: crumbs, thousands of pages that are no
 * neighbours, and cancels on top cost their own transfers and nobody the device. And what is shown
 * of GPUs. On the stand-in for a GPU runtime only. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_rig.h"

#define PAGE    4096u
#define N_PAGES 4096u /* [gpu] segments */
#define REGION  ((uint64_t)N_PAGES * PAGE)

/* One block of everything: its op runs over all pages. */
struct pages {
	struct test_engine e;
	char *base;
};

static struct test_node node;

static int pages_register(struct pages *p, uint32_t n, uint64_t bytes)
{
	static struct kvxfer_gpu_segment segments[N_PAGES];
	struct kvxfer_plane plane;
	struct kvxfer_layout layout = {&plane, 1};
	struct kvxfer_region_options opt = {.struct_bytes = sizeof(opt),
					    .name = "pages",
					    .access = KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE,
					    .layout = &layout};

	for (uint32_t i = 0; i < n; i++)
		segments[i] = (struct kvxfer_gpu_segment){.ptr = p->base + (n - 1 - i) * bytes,
							  .len_bytes = bytes};
	kvxfer_layout_mla(0, 1, 1, n * bytes, &plane);
	return kvxfer_region_register_gpu(p->e.client, segments, n, &opt, &p->e.region);
}

static void pages_open(struct pages *p, const char *name)
{
	memset(p, 0, sizeof(*p));
	p->e.client = test_node_client(&node, name);
	p->base = test_gpu_alloc(0, REGION);
	p->e.n_planes = p->e.n_blocks = 1;
	p->e.block_bytes = p->e.bytes = REGION;
	cr_assert_eq(pages_register(p, N_PAGES, PAGE), 0, "%s", kvxfer_client_error(p->e.client));
}

static void pages_close(struct pages *p)
{
	test_engine_close(&p->e);
	test_gpu_free(p->base);
}

static uint64_t submit(struct test_engine *e, struct kvxfer_import *import_)
{
	uint32_t zero = 0;
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 1, .local_blocks = &zero, .remote_blocks = &zero};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = KVXFER_WRITE,
				    .region = e->region,
				    .import_ = import_,
				    .blocks = &blocks};
	uint64_t id = 0;

	cr_assert_eq(kvxfer_transfer_submit(e->client, &t, &id), 0);
	return id;
}

static void finish(void)
{
	rig_expect_good_manners(&node);
	test_node_fini(&node);
	for (unsigned dev = 0; dev < 2; dev++)
		cr_assert_eq(standin_usage(dev).n_allocs + standin_usage(dev).n_maps, 0);
	rig_end();
}

/* More than a hundred thousand copies are asked for, which take seconds; what is under way when all
 * is cancelled ends within the bounds of fences. */
Test(gpu_bounds, pages_and_cancels_lose_no_device, .timeout = 120)
{
	static const char *const sets[] = {"gpu.fence_timeout_ms=500",
					   "transfer.fence_bound_ms=100", "gpu.streams=2",
					   "gpu.gather_max_bytes=0", NULL};
	struct kvxfer_import *import_;
	struct pages from, to;
	uint64_t ids[32];
	struct test_event ev;

	if (!rig_standin())
		return;
	test_node_start(&node, sets);
	pages_open(&from, "from");
	pages_open(&to, "to");
	import_ = test_engine_import(&from.e, &to.e);
	standin_set_delay(50, 50, 1);
	for (unsigned i = 0; i < 32; i++)
		ids[i] = submit(&from.e, import_);
	rig_sleep_ms(200);
	for (unsigned i = 0; i < 32; i++)
		kvxfer_transfer_cancel(from.e.client, ids[i]);
	for (unsigned i = 0; i < 32; i++) {
		ev = test_wait(&from.e, KVXFER_EVENT_TERMINAL, ids[i], RIG_WAIT_MS);
		cr_assert_neq(ev.status, KVXFER_DEVICE_LOST, "%s", ev.text);
	}
	standin_set_delay(0, 0, 0);
	ev = test_wait(&from.e, KVXFER_EVENT_TERMINAL, submit(&from.e, import_), RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s %s", kvxfer_status_name(ev.status), ev.text);
	pages_close(&from);
	pages_close(&to);
	finish();
}

Test(gpu_bounds, every_byte_of_thousands_of_pages_arrives)
{
	uint8_t *bytes = malloc(REGION), *back = malloc(REGION);
	struct kvxfer_import *import_;
	struct pages from, to;
	struct test_event ev;

	if (!rig_standin())
		return;
	test_node_start(&node, NULL);
	pages_open(&from, "from");
	pages_open(&to, "to");
	for (uint64_t i = 0; i < REGION; i++)
		bytes[i] = (uint8_t)(i * 31 + (i >> 12));
	test_gpu_use(0);
	test_gpu_put(from.base, bytes, REGION);
	import_ = test_engine_import(&from.e, &to.e);
	ev = test_wait(&from.e, KVXFER_EVENT_TERMINAL, submit(&from.e, import_), RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s %s", kvxfer_status_name(ev.status), ev.text);
	test_gpu_get(back, to.base, REGION);
	cr_assert_eq(memcmp(bytes, back, REGION), 0);
	pages_close(&from);
	pages_close(&to);
	free(bytes);
	free(back);
	finish();
}

/* From here on locking host memory has a thread of its own. */
#define LARGE_BLOCKS 16
#define LARGE_BLOCK  (4u << 20)

static struct test_engine large;

static void *large_main(void *arg)
{
	test_engine_open(&large, &node, "large", 1, LARGE_BLOCKS, LARGE_BLOCK,
			 KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE);
	return NULL;
}

Test(gpu_bounds, locking_much_host_memory_is_in_nobodys_way)
{
	static const char *const sets[] = {"gpu.call_timeout_ms=15000", NULL};
	struct standin_process before, after;
	struct kvxfer_import *import_;
	struct pages from, to;
	struct test_event ev;
	pthread_t thread;

	if (!rig_standin())
		return;
	test_node_start(&node, sets);
	cr_assert(standin_process(node.pid, &before));
	standin_block(STANDIN_HOST_REGISTER, node.pid, true);
	cr_assert_eq(pthread_create(&thread, NULL, large_main, NULL), 0);
	for (unsigned i = 0; i < 200 && standin_blocked(STANDIN_HOST_REGISTER) == 0; i++)
		rig_sleep_ms(20);
	cr_assert_eq(standin_blocked(STANDIN_HOST_REGISTER), 1);
	pages_open(&from, "from");
	pages_open(&to, "to");
	import_ = test_engine_import(&from.e, &to.e);
	ev = test_wait(&from.e, KVXFER_EVENT_TERMINAL, submit(&from.e, import_), RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s %s", kvxfer_status_name(ev.status), ev.text);
	pages_close(&from);
	pages_close(&to);
	cr_assert_eq(standin_blocked(STANDIN_HOST_REGISTER), 1, "it was over too soon");
	standin_block(STANDIN_HOST_REGISTER, node.pid, false);
	pthread_join(thread, NULL);
	cr_assert(standin_process(node.pid, &after));
	cr_assert_geq(after.host_bytes - before.host_bytes, LARGE_BLOCKS * (uint64_t)LARGE_BLOCK,
		      "it is not page-locked");
	test_engine_close(&large);
	finish();
}

Test(gpu_bounds, crumbs_are_refused_with_what_to_do)
{
	struct pages p = {.base = NULL};

	if (!rig_standin())
		return;
	test_node_start(&node, NULL);
	p.e.client = test_node_client(&node, "crumbs");
	p.base = test_gpu_alloc(0, REGION);
	cr_assert_eq(pages_register(&p, 65, 256), -EINVAL);
	cr_assert_not_null(strstr(kvxfer_client_error(p.e.client), "register the allocations"),
			   "%s", kvxfer_client_error(p.e.client));
	cr_assert_eq(pages_register(&p, 64, 256), 0, "%s", kvxfer_client_error(p.e.client));
	pages_close(&p);
	finish();
}

/* The runtime's answer to the first resets is the error that the device was lost with. */
Test(gpu_bounds, transfers_of_a_lost_device_wait_for_its_reset, .timeout = 60)
{
	struct kvxfer_import *import_;
	struct pages from, to;
	struct test_event ev;
	uint64_t id;

	if (!rig_standin())
		return;
	test_node_start(&node, NULL);
	pages_open(&from, "from");
	pages_open(&to, "to");
	import_ = test_engine_import(&from.e, &to.e);
	standin_block(STANDIN_DEVICE_RESET, node.pid, true);
	standin_stall(0, true);
	id = submit(&from.e, import_);
	rig_sleep_ms(100);
	standin_lose(0, STANDIN_LAUNCH_FAILURE);
	cr_assert_not(test_wait_maybe(&from.e, KVXFER_EVENT_TERMINAL, id, 1000, &ev),
		      "its copies may still land: %s", ev.text);
	standin_fail(STANDIN_DEVICE_RESET, node.pid, 1, STANDIN_LAUNCH_FAILURE);
	standin_block(STANDIN_DEVICE_RESET, node.pid, false);
	ev = test_wait(&from.e, KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_DEVICE_LOST, "%s", ev.text);
	standin_stall(0, false);
	test_engine_close(&from.e); /* their memory went with the device */
	test_engine_close(&to.e);
	test_node_fini(&node);
	rig_end();
}

static const char *ctl(const char *command, const char *more)
{
	static char out[16384];
	const char *argv[] = {getenv("KVXFERCTL"), "--socket", node.socket, command, more, NULL};

	cr_assert_eq(test_run(argv, out, sizeof(out)), 0, "%s", out);
	return out;
}

static void shows(const char *text, const char *what)
{
	cr_assert_not_null(strstr(text, what), "'%s' is not in:\n%s", what, text);
}

Test(gpu_bounds, lanes_and_devices_show_the_gpus)
{
	struct kvxfer_import *import_;
	struct pages from, to;
	struct test_event ev;
	const char *text;

	if (!rig_standin())
		return;
	test_node_start(&node, NULL);
	pages_open(&from, "from");
	pages_open(&to, "to");
	import_ = test_engine_import(&from.e, &to.e);
	ev = test_wait(&from.e, KVXFER_EVENT_TERMINAL, submit(&from.e, import_), RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK);
	text = ctl("lanes", NULL);
	fprintf(stderr, "%s", text);
	shows(text, "(this node)");
	shows(text, "gpu0");
	shows(text, "gpu1");
	shows(text, "16 MiB");
	text = ctl("devices", NULL);
	fprintf(stderr, "%s", text);
	shows(text, "gpu0");
	shows(text, "usable");
	text = ctl("regions", NULL);
	fprintf(stderr, "%s", text);
	shows(text, "gpu0");
	pages_close(&from);
	pages_close(&to);
	finish();
}

/* Not a word of "usable" for what is lost. */
Test(gpu_bounds, status_and_doctor_know_of_a_lost_gpu)
{
	struct kvxfer_import *import_;
	struct pages from, to;

	if (!rig_standin())
		return;
	test_node_start(&node, NULL);
	shows(ctl("status", NULL), "gpu");
	shows(ctl("doctor", NULL), "the daemon serves the memory of 2 GPU(s)");
	pages_open(&from, "from");
	pages_open(&to, "to");
	import_ = test_engine_import(&from.e, &to.e);
	standin_lose(0, STANDIN_LAUNCH_FAILURE);
	test_wait(&from.e, KVXFER_EVENT_TERMINAL, submit(&from.e, import_), RIG_WAIT_MS);
	shows(ctl("devices", NULL), "lost");
	shows(ctl("status", NULL), "gpu0: the device is lost");
	shows(ctl("doctor", NULL), "the daemon has lost gpu0");
	shows(ctl("doctor", NULL), "the daemon serves the memory of 1 GPU(s)");
	test_engine_close(&from.e);
	test_engine_close(&to.e);
	test_node_fini(&node);
	rig_end();
}

Test(gpu_bounds, host_memory_that_may_not_be_locked_says_which_key_it_is)
{
	static const char *const unlocked[] = {"gpu.pin_host=false", NULL};
	struct gpu_engine_conf conf = {
	    .name = "gpu", .n_planes = 1, .n_blocks = 2, .block_bytes = 4096};
	static struct gpu_engine gpu, host;
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t), .op = KVXFER_WRITE};
	uint32_t block = 0;
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 1, .local_blocks = &block, .remote_blocks = &block};
	struct test_event ev;
	uint64_t id = 0;

	if (!rig_standin())
		return;
	test_node_start(&node, unlocked);
	gpu_engine_open(&gpu, &node, &conf);
	conf.name = "host";
	conf.dev = -1;
	gpu_engine_open(&host, &node, &conf);
	t.region = host.e.region;
	t.import_ = test_engine_import(&host.e, &gpu.e);
	t.blocks = &blocks;
	cr_assert_eq(kvxfer_transfer_submit(host.e.client, &t, &id), 0);
	ev = test_wait(&host.e, KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_NO_PATH);
	shows(ev.text, "[gpu] pin_host is false");
	gpu_engine_close(&host);
	gpu_engine_close(&gpu);
	finish();
}

Test(gpu_bounds, a_piece_that_is_no_gpu_memory_is_named)
{
	struct kvxfer_region_options opt = {.struct_bytes = sizeof(opt)};
	struct kvxfer_gpu_segment pieces[2];
	struct kvxfer_client *client;
	struct kvxfer_region *region;

	if (!rig_standin())
		return;
	test_node_start(&node, NULL);
	client = test_node_client(&node, "mixed");
	pieces[0] = (struct kvxfer_gpu_segment){test_gpu_alloc(0, 65536), 65536};
	pieces[1] = (struct kvxfer_gpu_segment){malloc(65536), 65536};
	cr_assert_eq(kvxfer_region_register_gpu(client, pieces, 2, &opt, &region), -EFAULT);
	shows(kvxfer_client_error(client), "piece 1 at 0x");
	shows(kvxfer_client_error(client), "is not memory of a GPU");
	free((void *)(uintptr_t)pieces[1].ptr);
	test_gpu_free((void *)(uintptr_t)pieces[0].ptr);
	kvxfer_client_close(client);
	finish();
}
