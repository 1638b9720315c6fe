/* Regions whose allocations all come with a dma-buf, as RDMA devices take them: the daemon has its
 * file descriptors back as soon as the region is there, or is not; and a process without room for
 * them goes on without. The daemon has one rail that takes dma-bufs. On the stand-in for a GPU
 * runtime only. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu_rig.h"
#include "test_fds.h"

#define N_BASES     60u
#define MOST        250u /* dma-bufs of one region */
#define PIECE_BYTES 65536u
#define CLOSED_MS   5000

static struct test_node node;
static struct rig_base base;
static const char *const sets[] = {"peer.transports=verbs", "daemon.log_level=debug", NULL};

/* An engine with n allocations. */
struct cache {
	unsigned n;
	struct kvxfer_gpu_segment segments[MOST + 50];
	struct kvxfer_client *client;
	struct kvxfer_region *region;
};

static void cache_alloc(struct cache *c, unsigned n)
{
	memset(c, 0, sizeof(*c));
	for (c->n = 0; c->n < n; c->n++)
		c->segments[c->n] = (struct kvxfer_gpu_segment){
		    .ptr = test_gpu_alloc(0, PIECE_BYTES), .len_bytes = PIECE_BYTES};
	c->client = test_node_client(&node, "cache");
}

static int cache_register(struct cache *c)
{
	struct kvxfer_region_options opt = {
	    .struct_bytes = sizeof(opt), .name = "cache", .access = KVXFER_ACCESS_READ};

	return kvxfer_region_register_gpu(c->client, c->segments, c->n, &opt, &c->region);
}

static void cache_close(struct cache *c)
{
	kvxfer_client_close(c->client);
	for (unsigned i = 0; i < c->n; i++)
		test_gpu_free(c->segments[i].ptr);
}

/* What the daemon makes for the first region it keeps: a connection of the fake devices with
 * themselves, memory to flush by. */
static void warm_up(void)
{
	static struct cache c;

	cache_alloc(&c, 1);
	cr_assert_eq(cache_register(&c), 0, "%s", kvxfer_client_error(c.client));
	cache_close(&c);
}

/* The base: no engine, and nothing on the GPUs that one had. */
static void measure_empty(void)
{
	long end = rig_now_ms() + RIG_WAIT_MS;

	cr_assert_eq(test_node_wait_number(&node, "status", "regions", 0, RIG_WAIT_MS), 0);
	do
		rig_measure(&node, &base);
	while ((base.clients > 1 || base.usage[0].n_maps + base.usage[0].n_orphans > 0) &&
	       rig_now_ms() < end);
	cr_assert_eq(base.clients, 1);
	cr_assert_eq(base.regions, 0);
	cr_assert_eq(base.usage[0].n_maps + base.usage[0].n_orphans, 0);
}

static bool start_with(const char *const *options)
{
	if (!rig_standin())
		return false;
	test_node_start(&node, options);
	rig_sleep_ms(50);
	warm_up();
	measure_empty();
	return true;
}

static bool start(void)
{
	return start_with(sets);
}

static void finish(void)
{
	rig_expect_base(&node, &base);
	rig_expect_good_manners(&node);
	test_node_fini(&node);
	rig_end();
}

static uint64_t exported(void)
{
	return standin_calls(getpid(), STANDIN_DMABUF);
}

static long daemon_fds(void)
{
	struct rig_base now;

	rig_measure(&node, &now);
	return now.fds;
}

/* A thread of the daemon's own closes them. */
static void expect_fds(long before)
{
	long end = rig_now_ms() + CLOSED_MS, now;

	while ((now = test_count_fds(node.pid)) > before && rig_now_ms() < end)
		rig_sleep_ms(10);
	cr_assert_leq(now, before);
}

static long own_fds(void)
{
	long n = 0;
	DIR *dir = opendir("/proc/self/fd");

	while (readdir(dir) != NULL)
		n++;
	closedir(dir);
	return n;
}

/* Does the daemon's log have a line with both words? */
static bool log_says(const char *word, const char *other)
{
	char line[1024];
	bool found = false;
	FILE *f = fopen(node.log, "re");

	while (!found && fgets(line, sizeof(line), f) != NULL)
		found = strstr(line, word) != NULL && strstr(line, other) != NULL;
	fclose(f);
	return found;
}

Test(gpu_dmabuf, sixty_are_given_back_when_the_region_is_there)
{
	static struct cache c;

	if (!start())
		return;
	cache_alloc(&c, N_BASES);
	long before = daemon_fds(), own = own_fds();
	uint64_t calls = exported();
	cr_assert_eq(cache_register(&c), 0, "%s", kvxfer_client_error(c.client));
	cr_assert_eq(exported() - calls, N_BASES);
	expect_fds(before);
	cr_assert_eq(own_fds(), own, "nor does the engine keep any");
	cr_assert_not(log_says("without (all) its dma-bufs", ""));
	cache_close(&c);
	finish();
}

Test(gpu_dmabuf, more_allocations_than_a_region_carries_are_registered)
{
	static struct cache c;

	if (!start())
		return;
	cache_alloc(&c, MOST + 50);
	uint64_t calls = exported();
	cr_assert_eq(cache_register(&c), 0, "%s", kvxfer_client_error(c.client));
	cr_assert_eq(exported() - calls, MOST);
	cr_assert(log_says("without (all) its dma-bufs", "register several regions"));
	cache_close(&c);
	finish();
}

Test(gpu_dmabuf, sixty_are_given_back_when_the_region_is_refused)
{
	static struct cache c;

	if (!start())
		return;
	cache_alloc(&c, N_BASES);
	long before = daemon_fds();
	for (unsigned nth = 1; nth <= N_BASES; nth += 29) {
		standin_fail(STANDIN_IPC_OPEN, node.pid, nth, STANDIN_INVALID_VALUE);
		cr_assert_neq(cache_register(&c), 0);
		cr_assert(standin_fired(STANDIN_IPC_OPEN));
		expect_fds(before);
	}
	cr_assert_eq(cache_register(&c), 0, "%s", kvxfer_client_error(c.client));
	cache_close(&c);
	finish();
}

/* Says when it begins to register a region, and when that is there. */
static void engine_of_many(int out)
{
	static struct cache c;

	cache_alloc(&c, N_BASES);
	if (write(out, "r", 1) == 1 && cache_register(&c) == 0 && write(out, "d", 1) == 1)
		pause();
	_exit(1);
}

/* While the region is being registered and, of each fourth engine, when it is there. */
Test(gpu_dmabuf, sixty_are_given_back_when_their_engine_is_killed)
{
	if (!test_gpu_is_standin()) {
		cr_skip_test("only the stand-in can be disturbed like this");
		return;
	}
	standin_create(2, RIG_VRAM); /* no runtime here before the last fork */
	test_node_start(&node, sets);
	for (unsigned i = 0; i < 24; i++) {
		int ready[2], status;
		char go;

		cr_assert_eq(pipe2(ready, O_CLOEXEC), 0);
		pid_t pid = fork();
		if (pid == 0)
			engine_of_many(ready[1]);
		cr_assert_gt(pid, 0);
		close(ready[1]);
		cr_assert_eq(read(ready[0], &go, 1), 1);
		if (i % 4 == 3)
			cr_assert(read(ready[0], &go, 1) == 1 && go == 'd');
		else
			usleep(1500 * i);
		cr_assert_eq(kill(pid, SIGKILL), 0);
		cr_assert_eq(waitpid(pid, &status, 0), pid);
		cr_assert(WIFSIGNALED(status), "status %#x", (unsigned)status);
		close(ready[0]);
		if (i == 3) /* it was registered whole: all is made that stays */
			measure_empty();
		if (i >= 3)
			rig_expect_base(&node, &base);
	}
	finish();
}

Test(gpu_dmabuf, without_a_rail_for_them_none_is_made)
{
	static struct cache c;

	if (!start_with((const char *const[]){"peer.transports=fabric", NULL}))
		return;
	cache_alloc(&c, N_BASES);
	uint64_t calls = exported();
	cr_assert_eq(cache_register(&c), 0, "%s", kvxfer_client_error(c.client));
	cr_assert_eq(exported() - calls, 0);
	cache_close(&c);
	finish();
}

/* ---- no room */

/* There is none at all, too few to export them, too few to send them. */
Test(gpu_dmabuf, an_engine_without_file_descriptors_goes_on_without_them)
{
	static const unsigned room[] = {0, 1, 30, 70, 119};
	static struct cache c;

	if (!start())
		return;
	cache_alloc(&c, N_BASES);
	for (unsigned i = 0; i < 5; i++) {
		long own = own_fds();
		struct rlimit limit = test_leave_fds(room[i]);
		int err = cache_register(&c);

		cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
		cr_assert_eq(err, 0, "%u left: %s", room[i], kvxfer_client_error(c.client));
		cr_assert_eq(own_fds(), own);
		cr_assert_eq(kvxfer_region_unregister(c.region), 0);
	}
	cr_assert(log_says("without (all) its dma-bufs", "the client has no file descriptors"));
	cache_close(&c);
	finish();
}

Test(gpu_dmabuf, a_daemon_without_file_descriptors_goes_on_without_them)
{
	struct rlimit limit, low;
	static struct cache c;
	long before;

	if (!start())
		return;
	cache_alloc(&c, N_BASES);
	before = daemon_fds();
	cr_assert_eq(prlimit(node.pid, RLIMIT_NOFILE, NULL, &limit), 0);
	low = limit;
	low.rlim_cur = (rlim_t)before + 20;
	cr_assert_eq(prlimit(node.pid, RLIMIT_NOFILE, &low, NULL), 0);
	int err = cache_register(&c);
	cr_assert_eq(prlimit(node.pid, RLIMIT_NOFILE, &limit, NULL), 0);
	cr_assert_eq(err, 0, "%s", kvxfer_client_error(c.client));
	cr_assert(log_says("without (all) its dma-bufs", "LimitNOFILE"));
	expect_fds(before);
	cr_assert_eq(kvxfer_region_unregister(c.region), 0);
	cr_assert_eq(cache_register(&c), 0, "%s", kvxfer_client_error(c.client));
	expect_fds(before);
	cache_close(&c);
	finish();
}

/* The daemon is started anew, and the region is made known to it again. */
Test(gpu_dmabuf, a_region_that_is_announced_again_brings_them_again)
{
	static struct test_engine e;
	static struct cache c;
	uint64_t calls;

	if (!start())
		return;
	cache_alloc(&c, N_BASES);
	cr_assert_eq(cache_register(&c), 0, "%s", kvxfer_client_error(c.client));
	long own = own_fds();
	test_node_signal(&node, SIGKILL);
	test_node_restart(&node, sets);
	calls = exported();
	e.client = c.client;
	test_wait(&e, KVXFER_EVENT_DAEMON_LOST, 0, RIG_WAIT_MS);
	cr_assert_eq(kvxfer_client_reconnect(c.client), 0, "%s", kvxfer_client_error(c.client));
	cr_assert_eq(exported() - calls, N_BASES);
	cr_assert_leq(own_fds(), own);
	cr_assert_eq(test_node_number(&node, "status", "regions"), 1);
	cache_close(&c);
	test_node_fini(&node);
	rig_end();
}
