/* GPU memory in a verbs domain whose GPU is busy, does not answer, or hangs in its driver: what is
 * tried again, what is said of whom, and whom it does not hold up. */
#include <pthread.h>

#include "test_worker.h"
#include "transport/verbs/verbs_priv.h"
#include "verbs_gpu_rig.h"

static void start(struct side *s)
{
	struct kvx_verbs_conf conf = rig_conf();

	rig_reset();
	memset(s, 0, sizeof(*s));
	side_dom(s, "fake0:1", &conf);
	gpu_rig_init();
}

static void finish(struct side *s)
{
	side_close(s);
	gpu_rig_fini();
	FAKE_VERBS_END();
	KVX_TEST_END();
}

/* --- busy with calls of others: that passes --- */

/* Of more allocations than the owner has told places of: its home is asked. */
Test(verbs_gpu_hang, home_that_is_busy_is_asked_again)
{
	struct gmem g;
	struct side s;

	start(&s);
	gmem_make(&g, 1, 40, 40, 64);
	for (unsigned n = 1; n < 6; n++) {
		gpu_busy = n;
		cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), 0, "%u times busy", n);
		cr_assert_eq(gpu_busy, 0);
		gmem_dereg(&g);
	}
	gmem_free(&g);
	finish(&s);
}

/* A region that may not be read has no memory of its own to flush by. */
Test(verbs_gpu_hang, memory_to_flush_by_is_asked_for_again)
{
	struct gmem g;
	struct side s;

	start(&s);
	gmem_make(&g, 1, 1, 1, 0);
	gpu_busy = 3;
	cr_assert_eq(gmem_reg(&g, &s, 0, KVX_ACCESS_WRITE), 0);
	cr_assert_eq(n_flush_asked, 1);
	gmem_dereg(&g);
	gmem_free(&g);
	finish(&s);
}

/* Not for ever, and what does not pass is not waited for. */
Test(verbs_gpu_hang, home_that_stays_busy_is_given_up)
{
	struct gmem g;
	struct side s;
	uint64_t begin;

	start(&s);
	gmem_make(&g, 1, 20, 20, 64);
	begin = kvx_now_ns();
	gpu_copier_error = -ETIMEDOUT;
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), -EOPNOTSUPP);
	cr_assert_lt(kvx_now_ns() - begin, 4 * KVX_SEC);
	begin = kvx_now_ns();
	gpu_copier_error = -EBUSY;
	cr_assert_eq(gmem_reg(&g, &s, 0, GPU_RW), -EOPNOTSUPP);
	cr_assert_gt(kvx_now_ns() - begin, 4 * KVX_SEC);
	gmem_free(&g);
	finish(&s);
}

/* --- two threads that want memory to flush by at the same moment --- */

static struct side shared;
static pthread_barrier_t both;

static int flush_of_both(void *device, struct kvx_gpu_flush *out_flush)
{
	int err = gpu_rig_flush(device, out_flush);

	pthread_barrier_wait(&both);
	return err;
}

static void *reg_main(void *arg)
{
	struct gmem *g = arg;

	return gmem_reg(g, &shared, 0, GPU_RW) == 0 ? g : NULL;
}

Test(verbs_gpu_hang, threads_that_register_at_once_share_the_memory_to_flush_by)
{
	static struct kvx_gpu_access access;
	struct gmem g[2];
	pthread_t threads[2];
	void *done;

	start(&shared);
	gpu_rig_flush((void *)1, &(struct kvx_gpu_flush){0}); /* allocates */
	access = gpu_rig_access;
	access.flush_memory = flush_of_both;
	pthread_barrier_init(&both, NULL, 2);
	for (unsigned i = 0; i < 2; i++) {
		gmem_make(&g[i], 1, 1, 1, 0);
		g[i].mem.gpu->access = &access;
	}
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, reg_main, &g[i]), 0);
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(threads[i], &done);
		cr_assert_eq(done, &g[i]);
	}
	cr_assert_eq(g[0].mr->flush, g[1].mr->flush);
	cr_assert_eq(fake_verbs_count().mrs, 4, "two regions, one to flush by, a loop's page");
	for (unsigned i = 0; i < 2; i++)
		gmem_dereg(&g[i]);
	cr_assert_null(shared.dom->flushes);
	for (unsigned i = 0; i < 2; i++)
		gmem_free(&g[i]);
	pthread_barrier_destroy(&both);
	finish(&shared);
}

/* --- memory that does not answer the device --- */

/* It is not the port: memory of others is taken at once. */
Test(verbs_gpu_hang, memory_that_does_not_answer_is_not_put_down_to_the_port)
{
	struct gmem bad, good;
	struct side s;
	uint64_t begin;

	start(&s);
	gmem_make(&bad, 1, 1, 1, 0);
	gmem_make(&good, 2, 1, 1, 0);
	fake_verbs_gpu_mute(1);
	cr_assert_eq(gmem_reg(&bad, &s, 0, GPU_RW), -EOPNOTSUPP);
	begin = kvx_now_ns();
	cr_assert_eq(gmem_reg(&good, &s, 0, GPU_RW), 0);
	cr_assert_lt(kvx_now_ns() - begin, KVX_SEC);
	fake_verbs_gpu_mute(0);
	cr_assert_eq(gmem_reg(&bad, &s, 0, GPU_RW), 0, "nor is it held against the GPU");
	gmem_dereg(&bad);
	gmem_dereg(&good);
	gmem_free(&bad);
	gmem_free(&good);
	finish(&s);
}

/* --- a driver that hangs --- */

static struct test_worker t;

static void worker_start(void)
{
	static struct kvx_rail rail = {.port = 1, .gid_index = 3, .usable = true};
	struct kvx_worker_conf conf = {
	    .name = "kvx-verbs",
	    .ops = &kvx_verbs_ops,
	    .dom = {.verbs = rig_conf(), .mem_kinds = 1u << KVX_MEM_HOST, .rail = &rail},
	    .ring_depth = 64,
	    .spin_us = 20,
	    .threaded = true,
	    .doorbell = test_worker_on_doorbell,
	    .doorbell_arg = &t,
	    .note = test_worker_on_note,
	    .note_arg = &t,
	};
	struct kvx_why why = {{0}};

	rig_reset();
	t.threaded = true;
	strcpy(rail.device, "fake0");
	strcpy(rail.name, "fake0:1");
	cr_assert_eq(kvx_worker_open(&conf, &t.worker, &why), 0, "%s", why.text);
	gpu_rig_init();
}

static void reg_begin(struct test_cmd *tc, const struct kvx_mem *mem, uint32_t gpu)
{
	tc->cmd.mem = mem;
	tc->cmd.rights = GPU_RW;
	tc->cmd.gpu = gpu;
	test_cmd_submit(&t, tc, KVX_CMD_MEM_REG);
}

static void reg_end(struct test_cmd *tc)
{
	free(tc->cmd.mkey);
	cr_assert_eq(test_cmd_run(&t, tc, KVX_CMD_MEM_DEREG), 0);
}

Test(verbs_gpu_hang, driver_that_hangs_holds_up_neither_host_memory_nor_other_gpus)
{
	struct test_cmd hung = {0}, host = {0}, other = {0};
	struct gmem g[2];
	uint64_t end = kvx_now_ns() + 5 * KVX_SEC;

	worker_start();
	gmem_make(&g[0], 1, 1, 1, 0);
	gmem_make(&g[1], 2, 1, 1, 0);
	/* The other GPU's memory goes by its address, and has none to flush by. */
	gmem_drop_fds(&g[1]);
	fake_verbs_dev(0)->has_peermem = true;
	gpu_has_flush = false;
	test_mem_make(&t.local_mem, 1 << 20);
	fake_verbs_hang(FV_REG_DMABUF_MR, true);
	reg_begin(&hung, &g[0].mem, 1);
	while (fake_verbs_hanging(FV_REG_DMABUF_MR) == 0 && kvx_now_ns() < end)
		test_worker_turn(&t);
	cr_assert_eq(fake_verbs_hanging(FV_REG_DMABUF_MR), 1);
	reg_begin(&host, &t.local_mem, 0);
	cr_assert(test_cmd_wait(&t, &host), "host memory waits");
	cr_assert_eq(host.cmd.status, 0);
	reg_begin(&other, &g[1].mem, 2);
	cr_assert(test_cmd_wait(&t, &other), "another GPU waits");
	cr_assert_eq(other.cmd.status, 0);
	reg_end(&host);
	reg_end(&other);
	cr_assert_eq(hung.n_done, 0);
	fake_verbs_hang(FV_REG_DMABUF_MR, false);
	cr_assert(test_cmd_wait(&t, &hung));
	cr_assert_eq(hung.cmd.status, 0);
	reg_end(&hung);
	kvx_worker_close(t.worker);
	kvx_mem_fini(&t.local_mem);
	gmem_free(&g[0]);
	gmem_free(&g[1]);
	gpu_rig_fini();
	FAKE_VERBS_END();
	KVX_TEST_END();
}
