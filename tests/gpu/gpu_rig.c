/* Rig of the GPU tests. Only ever signals processes that it started. */
#include "gpu_rig.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A real runtime keeps a little of its own. */
#define REAL_SLACK (16u << 20)

long rig_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

void rig_sleep_ms(long ms)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

bool rig_any(void)
{
	const char *why;

	if (test_gpu_is_standin())
		standin_create(2, RIG_VRAM);
	if (test_gpu_start(&why) < 0) {
		cr_skip_test("%s", why);
		return false;
	}
	return true;
}

bool rig_standin(void)
{
	if (!test_gpu_is_standin()) {
		cr_skip_test("only the stand-in can be disturbed like this");
		return false;
	}
	return rig_any();
}

void rig_end(void)
{
	standin_set_delay(0, 0, 0);
	if (test_gpu_is_standin())
		standin_destroy();
}

int rig_second(void)
{
	return test_gpu_count() > 1 ? 1 : 0;
}

/* Connections that have just ended are closed a little later: until three looks find the same. */
static long settled_fds(pid_t pid)
{
	long fds = test_count_fds(pid);
	unsigned n_same = 1;

	for (unsigned turn = 0; n_same < 3 && turn < 50; turn++) {
		long before = fds;

		rig_sleep_ms(20);
		fds = test_count_fds(pid);
		n_same = fds == before ? n_same + 1 : 1;
	}
	return fds;
}

/* The lowest of three looks: one may still count who has asked before it, and who is there is in
 * each. */
static int64_t settled_clients(const struct test_node *node)
{
	int64_t lowest = test_node_number(node, "status", "clients");

	for (unsigned i = 1; i < 3; i++) {
		int64_t n = test_node_number(node, "status", "clients");

		lowest = n < lowest ? n : lowest;
	}
	return lowest;
}

void rig_measure(const struct test_node *node, struct rig_base *out_base)
{
	memset(out_base, 0, sizeof(*out_base));
	out_base->clients = settled_clients(node);
	out_base->regions = test_node_number(node, "status", "regions");
	out_base->transfers = test_node_number(node, "status", "transfers");
	out_base->fds = settled_fds(node->pid);
	if (!test_gpu_is_standin()) {
		out_base->free_bytes[0] = test_gpu_free_bytes(0);
		out_base->free_bytes[1] = test_gpu_free_bytes(rig_second());
		return;
	}
	for (unsigned dev = 0; dev < 2; dev++)
		out_base->usage[dev] = standin_usage(dev);
	standin_process(node->pid, &out_base->daemon);
}

static bool same(const struct rig_base *a, const struct rig_base *b)
{
	for (unsigned dev = 0; dev < 2; dev++) {
		const struct standin_usage *x = &a->usage[dev], *y = &b->usage[dev];

		if (x->alloc_bytes != y->alloc_bytes || x->orphan_bytes != y->orphan_bytes ||
		    x->mapped_bytes != y->mapped_bytes || x->n_maps != y->n_maps)
			return false;
		if (b->free_bytes[dev] + REAL_SLACK < a->free_bytes[dev])
			return false;
	}
	return a->daemon.n_maps == b->daemon.n_maps &&
	       a->daemon.host_bytes == b->daemon.host_bytes &&
	       a->daemon.n_streams == b->daemon.n_streams &&
	       a->daemon.n_events == b->daemon.n_events && b->fds <= a->fds &&
	       a->clients == b->clients && a->regions == b->regions && a->transfers == b->transfers;
}

static void print_base(const char *when, const struct rig_base *base)
{
	for (unsigned dev = 0; dev < 2; dev++) {
		const struct standin_usage *u = &base->usage[dev];

		fprintf(stderr, "# %s: GPU %u: %llu allocated, %llu orphaned, %llu mapped by %u\n",
			when, dev, (unsigned long long)u->alloc_bytes,
			(unsigned long long)u->orphan_bytes, (unsigned long long)u->mapped_bytes,
			u->n_maps);
		fprintf(stderr, "# %s: GPU %u: %zu free\n", when, dev, base->free_bytes[dev]);
	}
	fprintf(stderr,
		"# %s: daemon: %d mappings, %llu bytes page-locked, %d streams, %d events, %ld "
		"fds, %lld clients, %lld regions, %lld transfers\n",
		when, base->daemon.n_maps, (unsigned long long)base->daemon.host_bytes,
		base->daemon.n_streams, base->daemon.n_events, base->fds, (long long)base->clients,
		(long long)base->regions, (long long)base->transfers);
}

void rig_expect_base(const struct test_node *node, const struct rig_base *before)
{
	long end = rig_now_ms() + RIG_WAIT_MS;
	struct rig_base now;

	for (;;) {
		rig_measure(node, &now);
		if (same(before, &now))
			return;
		if (rig_now_ms() > end)
			break;
		rig_sleep_ms(20);
	}
	print_base("before", before);
	print_base("now", &now);
	cr_assert_fail("not everything is as it was");
}

void rig_expect_good_manners(const struct test_node *node)
{
	struct standin_process daemon = {0};

	if (!test_gpu_is_standin())
		return;
	cr_expect_eq(standin_n_violations(), 0, "%s", standin_violation());
	if (node->pid <= 0 || !standin_process(node->pid, &daemon))
		return;
	cr_expect_eq(daemon.blocking_on_main, 0, "the daemon's loop makes calls that may block");
	cr_expect_eq(daemon.pageable_copies, 0, "copies of memory that is not page-locked");
}

/* ---- victims */

static void victim_exec(const struct test_node *node, const struct rig_victim_conf *conf)
{
	char dev[16], planes[16], blocks[16], bytes[24], fill[8];
	const char *argv[] = {
	    getenv("KVX_GPU_VICTIM"), node->socket, dev, planes, blocks, bytes, fill, NULL};

	snprintf(dev, sizeof(dev), "%d", conf->dev);
	snprintf(planes, sizeof(planes), "%u", conf->n_planes);
	snprintf(blocks, sizeof(blocks), "%u", conf->n_blocks);
	snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)conf->block_bytes);
	snprintf(fill, sizeof(fill), "%u", conf->fill);
	if (conf->visible != NULL) {
		setenv("CUDA_VISIBLE_DEVICES", conf->visible, 1);
		setenv("HIP_VISIBLE_DEVICES", conf->visible, 1);
	}
	execv(argv[0], (char *const *)(uintptr_t)argv);
	_exit(127);
}

void rig_victim_start(struct rig_victim *v, const struct test_node *node,
		      const struct rig_victim_conf *conf)
{
	int to[2], from[2];

	memset(v, 0, sizeof(*v));
	cr_assert_neq(getenv("KVX_GPU_VICTIM"), NULL, "KVX_GPU_VICTIM names the program");
	cr_assert_eq(pipe2(to, O_CLOEXEC), 0);
	cr_assert_eq(pipe2(from, O_CLOEXEC), 0);
	v->pid = fork();
	if (v->pid == 0) {
		dup2(to[0], STDIN_FILENO);
		dup2(from[1], STDOUT_FILENO);
		victim_exec(node, conf);
	}
	cr_assert_gt(v->pid, 0);
	close(to[0]);
	close(from[1]);
	v->in = to[1];
	v->out = from[0];
	if (conf->no_wait)
		return;
	cr_assert(rig_victim_hear(v, RIG_WAIT_MS), "the engine says nothing");
	(void)sscanf(v->answer, "desc %1024s", v->desc);
}

bool rig_victim_hear(struct rig_victim *v, int timeout_ms)
{
	struct pollfd fd = {.fd = v->out, .events = POLLIN};
	size_t n = 0;

	while (n + 1 < sizeof(v->answer)) {
		char c;

		if (poll(&fd, 1, timeout_ms) <= 0 || read(v->out, &c, 1) != 1)
			return false;
		if (c == '\n')
			break;
		v->answer[n++] = c;
	}
	v->answer[n] = '\0';
	return true;
}

void rig_victim_say(struct rig_victim *v, const char *line)
{
	cr_assert_gt(dprintf(v->in, "%s\n", line), 0);
}

const char *rig_victim_ask(struct rig_victim *v, const char *line)
{
	rig_victim_say(v, line);
	cr_assert(rig_victim_hear(v, RIG_WAIT_MS), "no answer to %.20s", line);
	return v->answer;
}

void rig_victim_end(struct rig_victim *v, int signo)
{
	int status;

	if (signo != 0)
		kill(v->pid, signo);
	close(v->in);
	cr_assert_eq(waitpid(v->pid, &status, 0), v->pid);
	close(v->out);
	if (signo == 0)
		cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0,
			  "the engine ended with %#x", (unsigned)status);
}

void rig_hex(struct kvxfer_region *region, char out_hex[RIG_MAX_DESC])
{
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	int len = kvxfer_region_export(region, desc, sizeof(desc));

	cr_assert_gt(len, 0);
	for (int i = 0; i < len; i++)
		snprintf(out_hex + 2 * i, 3, "%02x", desc[i]);
}

struct kvxfer_import *rig_import(struct test_engine *e, const char *hex)
{
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	struct kvxfer_import *import_ = NULL;
	size_t len = 0;
	unsigned byte;

	while (sscanf(hex + 2 * len, "%2x", &byte) == 1)
		desc[len++] = (uint8_t)byte;
	cr_assert_eq(kvxfer_import_open(e->client, desc, len, NULL, &import_), 0, "%s",
		     kvxfer_client_error(e->client));
	return import_;
}
