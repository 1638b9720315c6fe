/* Workers whose transport's control calls block: such calls run elsewhere, on threads that cost
 * nothing else, and delay neither data nor one another. */
#include <dirent.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>

#include "test_end.h"
#include "test_helpers.h"

static const enum kvx_fake_slot blocking_slots[] = {KVX_FAKE_LISTEN,  KVX_FAKE_CONNECT,
						    KVX_FAKE_MEM_REG, KVX_FAKE_MEM_DEREG,
						    KVX_FAKE_FENCE,   KVX_FAKE_LEASE_STOP};
#define N_BLOCKING (sizeof(blocking_slots) / sizeof(blocking_slots[0]))

/* One life with every command. */
static void whole_life(struct test_worker *t, struct kvx_fake_script *script,
		       const struct test_far *far)
{
	static struct kvx_batch batch;
	struct test_cmd tc = {0};

	cr_assert_eq(test_worker_setup(t, HELPERS_REGION), 0);
	test_batch_fill(t, &batch, KVX_OP_WRITE, 0, 8, 512);
	cr_assert_eq(kvx_worker_submit_batch(t->worker, &batch), 0);
	cr_assert(test_batches_wait(t, 1));
	cr_assert_eq(batch.status, 0);
	test_connect_submit(t, &tc, far);
	cr_assert(test_cmd_wait(t, &tc));
	cr_assert_eq(tc.cmd.status, 0);
	tc.cmd.lease_ns = 0;
	cr_assert_eq(test_cmd_run(t, &tc, KVX_CMD_LEASE), 0);
	cr_assert_eq(test_cmd_run(t, &tc, KVX_CMD_FENCE), 0);
	test_worker_teardown(t);
}

Test(worker_helpers, calls_that_block_run_on_other_threads)
{
	struct kvx_fake_script script = {.auto_advance = true};
	struct test_worker t;
	struct test_far far;

	test_helpers_open(&t, &script, true);
	test_far_open(&far, &script);
	kvx_fake_lock(&script);
	memset(script.calls, 0, sizeof(script.calls));
	kvx_fake_unlock(&script);
	whole_life(&t, &script, &far);
	for (unsigned i = 0; i < N_BLOCKING; i++) {
		enum kvx_fake_slot slot = blocking_slots[i];

		cr_assert_gt(script.calls[slot], 0, "slot %d is not called", (int)slot);
		cr_assert_eq(script.elsewhere[slot], script.calls[slot], "slot %d", (int)slot);
	}
	test_far_close(&far);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

Test(worker_helpers, without_a_thread_they_run_inside_of_pump)
{
	struct kvx_fake_script script = {.auto_advance = true};
	struct test_worker t;
	struct test_far far;

	test_helpers_open(&t, &script, false);
	test_far_open(&far, &script);
	whole_life(&t, &script, &far);
	for (unsigned i = 0; i < N_BLOCKING; i++)
		cr_assert_eq(script.elsewhere[blocking_slots[i]], 0);
	test_far_close(&far);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

/* Threads of this process whose name ends so. */
static unsigned count_threads(const char *suffix, char path[300])
{
	DIR *dir = opendir("/proc/self/task");
	const struct dirent *entry;
	unsigned n = 0;

	cr_assert_not_null(dir);
	while ((entry = readdir(dir)) != NULL) {
		char name[300], comm[32] = "";
		FILE *file;

		snprintf(name, sizeof(name), "/proc/self/task/%.20s/comm", entry->d_name);
		file = fopen(name, "re");
		if (file == NULL)
			continue;
		if (fgets(comm, sizeof(comm), file) != NULL)
			comm[strcspn(comm, "\n")] = '\0';
		fclose(file);
		if (strncmp(comm, "kvx-test", 8) != 0 || strcmp(comm + 8, suffix) != 0)
			continue;
		n++;
		if (path != NULL)
			snprintf(path, 300, "/proc/self/task/%.20s/status", entry->d_name);
	}
	closedir(dir);
	return n;
}

enum { N_THREADS = 5 };
/* The worker and its helpers. */
static const char *const thread_names[N_THREADS] = {"", "-reg", "-dereg", "-up", "-cut"};

/* A thread that was joined is still listed for a moment. */
static void expect_threads(const char *suffix, unsigned n)
{
	unsigned now = count_threads(suffix, NULL);

	for (unsigned i = 0; i < 2000 && now != n; i++) {
		poll(NULL, 0, 1);
		now = count_threads(suffix, NULL);
	}
	cr_assert_eq(now, n, "%u, not %u threads '%s'", now, n, suffix);
}

Test(worker_helpers, exist_only_where_calls_block)
{
	struct kvx_fake_script plain = {0}, script = {0};
	struct test_worker t;

	cr_assert_eq(test_worker_start(&t, &kvx_fake_ops, true, 8, &plain), 0);
	for (unsigned i = 0; i < N_THREADS; i++)
		expect_threads(thread_names[i], i == 0);
	kvx_worker_close(t.worker);
	test_helpers_open(&t, &script, true);
	for (unsigned i = 0; i < N_THREADS; i++)
		expect_threads(thread_names[i], 1);
	kvx_worker_close(t.worker);
	for (unsigned i = 0; i < N_THREADS; i++)
		expect_threads(thread_names[i], 0);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

static long n_switches(const char *suffix)
{
	char path[300], line[128];
	long n = -1;
	FILE *file;

	cr_assert_eq(count_threads(suffix, path), 1);
	file = fopen(path, "re");
	cr_assert_not_null(file);
	while (fgets(line, sizeof(line), file) != NULL)
		if (sscanf(line, "voluntary_ctxt_switches: %ld", &n) == 1)
			break;
	fclose(file);
	return n;
}

static void all_switches(long out_n[N_THREADS])
{
	for (unsigned i = 0; i < N_THREADS; i++)
		out_n[i] = n_switches(thread_names[i]);
}

/* Until they have all come to rest: two looks 50 ms apart see the same. */
static void switches_at_rest(long out_n[N_THREADS])
{
	uint64_t end = kvx_now_ns() + 5 * KVX_SEC;
	long before[N_THREADS];

	all_switches(out_n);
	do {
		memcpy(before, out_n, sizeof(before));
		poll(NULL, 0, 50);
		all_switches(out_n);
	} while (memcmp(before, out_n, sizeof(before)) != 0 && kvx_now_ns() < end);
}

/* The worker sleeps, too, while a helper is busy: with an ep that is being closed. */
Test(worker_helpers, nobody_wakes_without_work)
{
	struct kvx_fake_script script = {0};
	struct test_cmd reg = {0}, close = {0};
	struct test_worker t;
	long before[N_THREADS], after[N_THREADS];

	test_helpers_open(&t, &script, true);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	kvx_fake_gate(&script, KVX_FAKE_MEM_REG, KVX_FAKE_GATE_BEFORE);
	kvx_fake_gate(&script, KVX_FAKE_FENCE, KVX_FAKE_GATE_BEFORE);
	reg.cmd.mem = &t.local_mem;
	test_cmd_submit(&t, &reg, KVX_CMD_MEM_REG);
	test_ep_submit(&t, &close, KVX_CMD_EP_CLOSE);
	test_gate_wait(&t, &script, KVX_FAKE_MEM_REG, 1);
	test_gate_wait(&t, &script, KVX_FAKE_FENCE, 1);
	switches_at_rest(before);
	poll(NULL, 0, 200);
	all_switches(after);
	for (unsigned i = 0; i < N_THREADS; i++)
		cr_assert_eq(after[i], before[i], "%s", thread_names[i]);
	kvx_fake_gate(&script, KVX_FAKE_MEM_REG, KVX_FAKE_GATE_OPEN);
	kvx_fake_gate(&script, KVX_FAKE_FENCE, KVX_FAKE_GATE_OPEN);
	cr_assert(test_cmd_wait(&t, &reg));
	free(reg.cmd.mkey);
	cr_assert(test_cmd_wait(&t, &close));
	t.ep = NULL;
	cr_assert_eq(test_cmd_run(&t, &reg, KVX_CMD_MEM_DEREG), 0);
	test_worker_teardown(&t);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

Test(worker_helpers, a_slow_registration_delays_neither_data_nor_lanes_nor_fences)
{
	struct kvx_fake_script script = {.auto_advance = true};
	static struct kvx_batch batch;
	struct test_cmd reg = {0}, dereg = {0}, other = {0};
	struct test_worker t;

	test_helpers_open(&t, &script, true);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	kvx_fake_gate(&script, KVX_FAKE_MEM_REG, KVX_FAKE_GATE_BEFORE);
	reg.cmd.mem = &t.local_mem;
	test_cmd_submit(&t, &reg, KVX_CMD_MEM_REG);
	test_gate_wait(&t, &script, KVX_FAKE_MEM_REG, 1);
	uint64_t until = kvx_now_ns() + KVX_SEC;
	unsigned n = 0;
	while (kvx_now_ns() < until) {
		test_batch_fill(&t, &batch, KVX_OP_WRITE, 0, 8, 512);
		cr_assert_eq(kvx_worker_submit_batch(t.worker, &batch), 0);
		cr_assert(test_batches_wait(&t, ++n));
		cr_assert_eq(batch.status, 0);
	}
	cr_assert_gt(n, 50, "%u batches in a second", n);
	cr_assert_eq(test_cmd_run(&t, &other, KVX_CMD_LISTEN), 0);
	cr_assert_eq(test_cmd_run(&t, &other, KVX_CMD_FENCE), 0);
	cr_assert_eq(test_cmd_run(&t, &other, KVX_CMD_EP_CLOSE), 0);
	dereg.cmd.mr = t.remote; /* a fence, too */
	test_cmd_submit(&t, &dereg, KVX_CMD_MEM_DEREG);
	cr_assert(test_cmd_wait(&t, &dereg));
	cr_assert_eq(reg.n_done, 0);
	kvx_fake_gate(&script, KVX_FAKE_MEM_REG, KVX_FAKE_GATE_OPEN);
	cr_assert(test_cmd_wait(&t, &reg));
	t.remote = reg.cmd.mr;
	free(reg.cmd.mkey);
	test_worker_teardown(&t);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

Test(worker_helpers, a_slow_connect_delays_no_fence_of_another_ep)
{
	struct kvx_fake_script script = {0};
	struct test_cmd connect = {0}, other = {0};
	struct test_worker t;
	struct test_far far;

	test_helpers_open(&t, &script, true);
	test_far_open(&far, &script);
	cr_assert_eq(test_cmd_run(&t, &other, KVX_CMD_LISTEN), 0);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	kvx_fake_gate(&script, KVX_FAKE_CONNECT, KVX_FAKE_GATE_BEFORE);
	test_connect_submit(&t, &connect, &far);
	test_gate_wait(&t, &script, KVX_FAKE_CONNECT, 1);
	cr_assert_eq(test_cmd_run(&t, &other, KVX_CMD_FENCE), 0);
	cr_assert_eq(test_cmd_run(&t, &other, KVX_CMD_EP_CLOSE), 0);
	cr_assert_eq(connect.n_done, 0);
	kvx_fake_gate(&script, KVX_FAKE_CONNECT, KVX_FAKE_GATE_OPEN);
	cr_assert(test_cmd_wait(&t, &connect));
	cr_assert_eq(connect.cmd.status, 0);
	test_worker_teardown(&t);
	test_far_close(&far);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

/* ---- memory of GPUs: calls for one region hang until they are told not to */

static struct kvx_transport_ops gpu_ops;
static _Atomic(const void *) held; /* the memory to (de)register, or whose progress */
static _Atomic unsigned n_held;

static void hold(const void *what)
{
	if (atomic_load(&held) != what)
		return;
	atomic_fetch_add(&n_held, 1);
	while (atomic_load(&held) == what)
		poll(NULL, 0, 1);
	atomic_fetch_sub(&n_held, 1);
}

static int held_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem,
		    uint32_t rights, struct kvx_mr **out_mr)
{
	hold(mem);
	return kvx_fake_blocking_ops.mem_reg(dom, tenant, mem, rights, out_mr);
}

static void held_dereg(struct kvx_mr *mr)
{
	hold(mr);
	kvx_fake_blocking_ops.mem_dereg(mr);
}

static int held_progress(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max)
{
	hold(&gpu_ops);
	return kvx_fake_blocking_ops.progress(dom, events, max);
}

static void hold_begin(struct test_worker *t, struct test_cmd *tc, enum kvx_work_kind kind,
		       const void *what)
{
	uint64_t end = kvx_now_ns() + 5 * KVX_SEC;

	atomic_store(&held, what);
	test_cmd_submit(t, tc, kind);
	while (atomic_load(&n_held) == 0 && kvx_now_ns() < end)
		test_worker_turn(t);
	cr_assert_eq(n_held, 1);
}

static void hold_end(struct test_worker *t, struct test_cmd *tc)
{
	atomic_store(&held, NULL);
	cr_assert(test_cmd_wait(t, tc));
}

/* In and out again. */
static void expect_life(struct test_worker *t, const struct kvx_mem *mem, uint32_t gpu)
{
	struct test_cmd tc = {.cmd.gpu = gpu};

	cr_assert_eq(test_worker_reg(t, mem, &tc), 0, "gpu %u", gpu);
	free(tc.cmd.mkey);
	cr_assert_eq(test_cmd_run(t, &tc, KVX_CMD_MEM_DEREG), 0);
}

Test(worker_helpers, memory_of_a_gpu_that_hangs_holds_up_no_other)
{
	struct kvx_fake_script script = {0};
	struct test_cmd hung = {.cmd.gpu = 1}, old = {.cmd.gpu = 1};
	struct kvx_mem mem;
	struct test_worker t;

	gpu_ops = kvx_fake_blocking_ops;
	gpu_ops.mem_reg = held_reg;
	gpu_ops.mem_dereg = held_dereg;
	cr_assert_eq(kvx_fake_gates_open(&script), 0);
	cr_assert_eq(test_worker_start(&t, &gpu_ops, true, 8, &script), 0);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	test_mem_make(&mem, 4096);
	cr_assert_eq(count_threads("-reg-0", NULL), 0, "made when it is needed");
	cr_assert_eq(test_worker_reg(&t, &mem, &old), 0);
	free(old.cmd.mkey);
	cr_assert_eq(count_threads("-reg-0", NULL), 1);
	/* While it is registered: host memory, another GPU, and what the GPU has already. */
	hung.cmd.mem = &mem;
	hold_begin(&t, &hung, KVX_CMD_MEM_REG, &mem);
	expect_life(&t, &t.local_mem, 0);
	expect_life(&t, &t.local_mem, KVX_GPU_MAX);
	cr_assert_eq(test_cmd_run(&t, &old, KVX_CMD_MEM_DEREG), 0);
	cr_assert_eq(hung.n_done, 0);
	hold_end(&t, &hung);
	cr_assert_eq(hung.cmd.status, 0);
	free(hung.cmd.mkey);
	/* While it is taken back. */
	hold_begin(&t, &hung, KVX_CMD_MEM_DEREG, hung.cmd.mr);
	expect_life(&t, &t.local_mem, 0);
	expect_life(&t, &t.local_mem, KVX_GPU_MAX);
	cr_assert_eq(hung.n_done, 0);
	hold_end(&t, &hung);
	test_worker_teardown(&t);
	kvx_mem_fini(&mem);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}

/* Nothing of memory passes the worker's own thread, what fails neither. */
Test(worker_helpers, a_worker_that_hangs_holds_up_no_memory)
{
	struct kvx_fake_script script = {.auto_advance = true};
	static struct kvx_batch batch;
	struct test_cmd none = {0};
	struct test_worker t;

	gpu_ops = kvx_fake_blocking_ops;
	gpu_ops.progress = held_progress;
	script.faults[KVX_FAKE_MKEY_PACK] = (struct kvx_fake_fault){5, -ENOSPC};
	cr_assert_eq(kvx_fake_gates_open(&script), 0);
	cr_assert_eq(test_worker_start(&t, &gpu_ops, true, 8, &script), 0);
	cr_assert_eq(test_worker_setup(&t, HELPERS_REGION), 0);
	atomic_store(&held, &gpu_ops);
	test_batch_fill(&t, &batch, KVX_OP_WRITE, 0, 8, 512);
	cr_assert_eq(kvx_worker_submit_batch(t.worker, &batch), 0);
	for (uint64_t end = kvx_now_ns() + 5 * KVX_SEC; n_held == 0 && kvx_now_ns() < end;)
		test_worker_turn(&t);
	cr_assert_eq(n_held, 1);
	expect_life(&t, &t.local_mem, 0);
	expect_life(&t, &t.local_mem, 1);
	cr_assert_eq(test_worker_reg(&t, &t.local_mem, &none), -ENOSPC);
	cr_assert_null(none.cmd.mr);
	poll(NULL, 0, 20);
	cr_assert_gt(kvx_worker_turn_ns(t.worker), 20 * KVX_MS);
	cr_assert_eq(batch.n_done, 0);
	atomic_store(&held, NULL);
	cr_assert(test_batches_wait(&t, 1));
	cr_assert_eq(batch.status, 0);
	test_worker_teardown(&t);
	test_helpers_expect_clean(&script);
	KVX_TEST_END();
}
