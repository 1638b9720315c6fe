/* The daemon's start on a node whose GPU runtime is broken or whose devices hang: it starts all the
 * same, in time, serves host memory, and says what is wrong. On the stand-in only. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu_rig.h"

static struct test_node node;

static bool log_has(const char *words)
{
	char line[1024];
	FILE *f = fopen(node.log, "re");
	bool has = false;

	cr_assert_not_null(f);
	while (!has && fgets(line, sizeof(line), f) != NULL)
		has = strstr(line, words) != NULL;
	fclose(f);
	return has;
}

static int register_gpu(struct kvxfer_client *client, int dev)
{
	struct kvxfer_gpu_segment segment = {.len_bytes = 4096};
	struct kvxfer_region_options opt = {.struct_bytes = sizeof(opt), .name = "x"};
	struct kvxfer_region *region = NULL;

	test_gpu_use(dev);
	segment.ptr = test_gpu_alloc(dev, 4096);
	int rc = kvxfer_region_register_gpu(client, &segment, 1, &opt, &region);
	if (rc == 0)
		kvxfer_region_unregister(region);
	test_gpu_free(segment.ptr);
	return rc;
}

/* Starts the daemon with another folder of libraries; engines keep theirs. */
static void start_with(const char *libraries, const char *const *sets, long limit_ms)
{
	char *mine = strdup(getenv("LD_LIBRARY_PATH"));

	setenv("LD_LIBRARY_PATH", libraries, 1);
	test_node_start_within(&node, sets, limit_ms);
	setenv("LD_LIBRARY_PATH", mine, 1);
	free(mine);
}

/* The daemon is there, serves no GPU memory with these words as the reason, and ends well. */
static void expect_no_gpu(const char *words)
{
	struct kvxfer_client *client = test_node_client(&node, "engine");
	struct kvxfer_region_options opt = {.struct_bytes = sizeof(opt), .name = "host"};
	struct kvxfer_region *region = NULL;

	cr_assert_lt(register_gpu(client, 0), 0);
	cr_assert_not_null(strstr(kvxfer_client_error(client), words), "%s",
			   kvxfer_client_error(client));
	cr_assert_eq(kvxfer_region_alloc(client, 4096, &opt, &region), 0, "%s",
		     kvxfer_client_error(client));
	kvxfer_client_close(client);
	test_node_fini(&node);
	rig_end();
}

static void expect_broken(const char *does, long limit_ms, const char *words)
{
	if (!rig_standin())
		return;
	setenv("KVX_TEST_BROKEN_GPU", does, 1);
	start_with(getenv("KVX_TEST_BROKEN_DIR"), NULL, limit_ms);
	cr_assert(log_has(words));
	expect_no_gpu(words);
}

Test(gpu_start, a_runtime_that_crashes_is_not_loaded)
{
	expect_broken("crash", 20000, "CUDA crashes when it is started (Segmentation fault)");
}

Test(gpu_start, a_runtime_that_exits_is_not_loaded)
{
	expect_broken("exit", 20000,
		      "CUDA ends the program when it is started: libcuda: no kernel module");
}

Test(gpu_start, a_runtime_that_hangs_is_not_loaded)
{
	long begin = rig_now_ms();

	expect_broken("hang", 60000, "CUDA does not return when it is started");
	cr_assert_lt(rig_now_ms() - begin, 60000);
}

/* While a runtime hangs the start can be ended, as by systemctl stop. */
Test(gpu_start, a_start_that_waits_for_a_runtime_ends_at_once)
{
	const char *bin = getenv("KVXFERD");
	char name[64];
	long begin;
	int status = 0;

	snprintf(name, sizeof(name), "@kvxfer-test-start-%d", (int)getpid());
	setenv("KVX_TEST_BROKEN_GPU", "hang", 1);
	setenv("LD_LIBRARY_PATH", getenv("KVX_TEST_BROKEN_DIR"), 1);
	pid_t pid = fork();
	if (pid == 0) {
		execl(bin, bin, "--socket", name, "--set", "peer.enable=false", (char *)NULL);
		_exit(127);
	}
	rig_sleep_ms(1000);
	begin = rig_now_ms();
	cr_assert_eq(waitpid(pid, &status, WNOHANG), 0);
	kill(pid, SIGTERM);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert_lt(rig_now_ms() - begin, 5000);
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "status %#x", status);
}

/* Of two runtimes the one that works is used. */
Test(gpu_start, beside_a_runtime_that_crashes_the_other_one_is_used)
{
	char path[256], libraries[1024];

	if (!rig_standin())
		return;
	snprintf(path, sizeof(path), "%.240s/../hip7", getenv("KVX_TEST_GPU_DIR"));
	if (access(path, X_OK) != 0)
		cr_skip_test("no HIP 7 stand-in");
	snprintf(libraries, sizeof(libraries), "%.256s:%s:%s/..", getenv("KVX_TEST_BROKEN_DIR"),
		 path, path);
	setenv("KVX_TEST_BROKEN_GPU", "crash", 1);
	start_with(libraries, NULL, 20000);
	cr_assert(log_has("CUDA crashes when it is started (Segmentation fault)"));
	cr_assert(log_has("gpu: gpu1 is "));
	test_node_fini(&node);
	rig_end();
}

/* ---- libraries that are no good, in the folder of the configuration */

static void make_library(char dir[64], const char *from, off_t bytes)
{
	char path[128], buf[4096] = {0};
	int in = from != NULL ? open(from, O_RDONLY | O_CLOEXEC) : -1;

	snprintf(dir, 64, "/tmp/kvxfer-start-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/libcuda.so.1", dir);
	int out = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0700);
	cr_assert_geq(out, 0);
	if (bytes > 0) {
		cr_assert_eq(read(in, buf, (size_t)bytes), bytes);
		cr_assert_eq(write(out, buf, (size_t)bytes), bytes);
	}
	if (in >= 0)
		close(in);
	close(out);
}

static void remove_library(const char *dir)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/libcuda.so.1", dir);
	unlink(path);
	rmdir(dir);
}

static void expect_bad_library(const char *from, off_t bytes, const char *words)
{
	char dir[64], set[128];
	const char *const sets[] = {set, "gpu.runtime=cuda", NULL};

	if (!rig_standin())
		return;
	make_library(dir, from, bytes);
	snprintf(set, sizeof(set), "gpu.library_dir=%s", dir);
	start_with("/nowhere", sets, 20000);
	expect_no_gpu(words);
	remove_library(dir);
}

/* A page of it: the loader maps what is not in the file. */
Test(gpu_start, a_library_that_is_cut_is_not_loaded)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/libcuda.so.1", getenv("KVX_TEST_GPU_DIR"));
	expect_bad_library(path, 4096, "CUDA crashes when it is started (Bus error)");
}

Test(gpu_start, the_reason_of_a_library_in_the_named_folder_is_told)
{
	expect_bad_library(NULL, 0, "libcuda.so.1: file too short");
}

Test(gpu_start, a_named_folder_that_is_not_there_is_told)
{
	static const char *const sets[] = {"gpu.library_dir=/nowhere/at/all", "gpu.runtime=hip",
					   NULL};

	if (!rig_standin())
		return;
	start_with("/nowhere", sets, 20000);
	expect_no_gpu("libamdhip64.so.7, libamdhip64.so.6 or libamdhip64.so.5 was not found "
		      "(/nowhere/at/all: No such file or directory)");
}

/* The system's library does: a word to whoever named the folder. */
Test(gpu_start, a_named_folder_without_a_library_is_told_when_another_is_used)
{
	static const char *const sets[] = {"gpu.library_dir=/nowhere/at/all", NULL};
	struct kvxfer_client *client;

	if (!rig_standin())
		return;
	test_node_start(&node, sets);
	cr_assert(log_has("library_dir /nowhere/at/all: No such file or directory"));
	client = test_node_client(&node, "engine");
	cr_assert_eq(register_gpu(client, 0), 0, "%s", kvxfer_client_error(client));
	kvxfer_client_close(client);
	test_node_fini(&node);
	rig_end();
}

/* ---- devices that hang */

/* Two that hang cost the start what one does. */
Test(gpu_start, devices_that_hang_hold_the_start_up_once)
{
	struct kvxfer_client *client;
	long begin = rig_now_ms();

	if (!rig_standin())
		return;
	standin_block(STANDIN_CONTEXT, 0, true);
	test_node_start_within(&node, NULL, 45000);
	cr_assert_lt(rig_now_ms() - begin, 45000);
	cr_assert(log_has("gpu0: the device does not answer within 30 s"));
	cr_assert(log_has("gpu1: the device does not answer within 30 s"));
	standin_block(STANDIN_CONTEXT, 0, false);
	client = test_node_client(&node, "engine");
	cr_assert_lt(register_gpu(client, 0), 0);
	kvxfer_client_close(client);
	test_node_fini(&node);
	rig_end();
}

/* One hangs: the other one is served. */
Test(gpu_start, a_device_that_hangs_is_its_own_affair)
{
	struct kvxfer_client *client;

	if (!rig_standin())
		return;
	standin_block_on(STANDIN_STREAM_CREATE, 0, 0, true);
	test_node_start_within(&node, NULL, 45000);
	standin_block_on(STANDIN_STREAM_CREATE, 0, 0, false);
	client = test_node_client(&node, "engine");
	cr_assert_lt(register_gpu(client, 0), 0);
	cr_assert_eq(register_gpu(client, 1), 0, "%s", kvxfer_client_error(client));
	kvxfer_client_close(client);
	test_node_fini(&node);
	rig_end();
}
