/* What a submit costs the engine's thread: block lists and op lists to a daemon in another process
 * that drains the socket and answers. One line a case: median and 99th percentile of submit, and of
 * an idle dispatch. Not a test: numbers depend on the machine. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fake_daemon.h"
#include "kvxfer/client.h"

#define ROUNDS 400

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	if (event->status != KVXFER_OK)
		abort();
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void report(const char *what, uint64_t *ns, unsigned n_ops)
{
	qsort(ns, ROUNDS, sizeof(*ns), compare);
	printf("%-34s p50 %8.2f us  p99 %8.2f us", what, (double)ns[ROUNDS / 2] / 1e3,
	       (double)ns[ROUNDS * 99 / 100] / 1e3);
	if (n_ops > 0)
		printf("  %6.2f ns/op", (double)ns[ROUNDS / 2] / n_ops);
	printf("\n");
}

static void measure(struct kvxfer_client *client, struct kvxfer_transfer *t, const char *what,
		    unsigned n_ops)
{
	static uint64_t ns[ROUNDS];

	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t begin = now_ns();

		if (kvxfer_transfer_submit(client, t, NULL) != 0)
			abort();
		ns[i] = now_ns() - begin;
		if (kvxfer_client_wait(client, 5000, on_event, NULL) != 1)
			abort();
	}
	report(what, ns, n_ops);
}

static void measure_idle(struct kvxfer_client *client)
{
	static uint64_t ns[ROUNDS];

	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t begin = now_ns();

		for (unsigned j = 0; j < 100; j++)
			kvxfer_client_dispatch(client, on_event, NULL);
		ns[i] = (now_ns() - begin) / 100;
	}
	report("idle dispatch", ns, 0);
}

static void measure_all(struct kvxfer_client *client, struct kvxfer_transfer *t)
{
	static uint64_t offsets[16384], lens[16384];
	static uint32_t ids[125];
	struct kvxfer_blocks blocks = {0, 0, 188, 125, ids, ids, NULL};
	struct kvxfer_ops ops = {1, offsets, offsets, NULL, 4096};

	for (unsigned i = 0; i < 16384; i++) {
		offsets[i] = i * UINT64_C(8192);
		lens[i] = 4096 + i % 2;
	}
	for (unsigned i = 0; i < 125; i++)
		ids[i] = i * 7 % 125;
	t->blocks = &blocks;
	measure(client, t, "blocks 188 x 125 (23,500 ops)", 23500);
	t->blocks = NULL;
	t->ops = &ops;
	measure(client, t, "1 op", 0);
	ops.n_ops = 1024;
	measure(client, t, "1,024 ops, one length", 1024);
	ops.n_ops = 16384;
	measure(client, t, "16,384 ops, one length", 16384);
	ops.lens = lens;
	measure(client, t, "16,384 ops, own lengths", 16384);
}

int main(void)
{
	struct kvxfer_client_options options = {.struct_bytes = sizeof(options)};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t), .op = KVXFER_WRITE};
	struct kvxfer_client *client;
	struct fake_daemon d;
	int pid;

	fake_daemon_init(&d);
	pid = fake_daemon_fork(&d);
	options.socket_path = d.path;
	if (kvxfer_client_open(&options, &client) != 0 ||
	    kvxfer_region_alloc(client, 1 << 20, NULL, &t.region) != 0 ||
	    kvxfer_import_open(client, "x", 1, NULL, &t.import_) != 0)
		abort();
	measure_all(client, &t);
	measure_idle(client);
	kvxfer_client_close(client);
	fake_daemon_reap(pid);
	return 0;
}
