/* What a transfer costs the daemon on the CPU, from the client's frame to the doorbell and back:
 *two whole daemons in this process on the stand-in for libibverbs, one engine in another process
 *that asks for block lists of 4,096 ops. Run by itself it prints times; under callgrind it counts
 *only the measured transfers:
 *
 *	valgrind --tool=callgrind --callgrind-out-file=post.%p bench_verbs_post
 *	callgrind_split.py post.PID.* 4096 ...
 *
 * (measure_verbs_post.sh does both.) Not a test: numbers depend on the compiler. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "kvxfer/client.h"
#include "verbs_daemons.h"

#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#else
#define CALLGRIND_ZERO_STATS
#define CALLGRIND_DUMP_STATS_AT(what) ((void)(what))
#endif

#define N_OPS       4096u
#define BLOCK_BYTES 4096u
#define ROUNDS      20u

#define MUST(cond)                                                                                 \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			fprintf(stderr, "bench_verbs_post: line %d: %s\n", __LINE__, #cond);       \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

/* --- the engine, in a process of its own --- */

static unsigned n_events;

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	if (event->status != KVXFER_OK || strcmp(event->transport, "verbs") != 0)
		fprintf(stderr, "bench_verbs_post: %s by %s: %s\n",
			kvxfer_status_name(event->status), event->transport, event->text);
	MUST(event->status == KVXFER_OK);
	n_events++;
}

static struct kvxfer_client *client_open(const char *path)
{
	struct kvxfer_client_options options = {
	    .struct_bytes = sizeof(options), .socket_path = path, .timeout_ms = 600000};
	struct kvxfer_client *client = NULL;

	MUST(kvxfer_client_open(&options, &client) == 0);
	return client;
}

static struct kvxfer_region *region_make(struct kvxfer_client *client)
{
	struct kvxfer_plane plane = {.name = "kv",
				     .block_stride = BLOCK_BYTES,
				     .block_bytes = BLOCK_BYTES,
				     .n_blocks = 2 * N_OPS};
	struct kvxfer_layout layout = {&plane, 1};
	struct kvxfer_region_options options = {.struct_bytes = sizeof(options),
						.access = KVXFER_ACCESS_WRITE | KVXFER_ACCESS_READ,
						.layout = &layout};
	struct kvxfer_region *region = NULL;

	MUST(kvxfer_region_alloc(client, 2ull * N_OPS * BLOCK_BYTES, &options, &region) == 0);
	return region;
}

static void transfer_run(struct kvxfer_client *client, struct kvxfer_transfer *t)
{
	unsigned seen = n_events;

	MUST(kvxfer_transfer_submit(client, t, NULL) == 0);
	while (n_events == seen)
		MUST(kvxfer_client_wait(client, 600000, on_event, NULL) >= 0);
}

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* One case: some rounds to warm up, then the measured ones between two bytes to the daemons. */
static void measure(struct kvxfer_client *client, struct kvxfer_transfer *t, const char *what,
		    int mark_fd, int ack_fd)
{
	double begin;
	char c;

	for (unsigned i = 0; i < 3; i++)
		transfer_run(client, t);
	MUST(write(mark_fd, "b", 1) == 1 && read(ack_fd, &c, 1) == 1);
	begin = seconds();
	for (unsigned i = 0; i < ROUNDS; i++)
		transfer_run(client, t);
	begin = seconds() - begin;
	MUST(write(mark_fd, what, 1) == 1 && read(ack_fd, &c, 1) == 1);
	printf("%-40s %7.1f ns/op\n", what, begin / ROUNDS / N_OPS * 1e9);
	fflush(stdout);
}

/* From every second block to blocks in an order without neighbours; then to one place. */
static int engine_main(const char *path_a, const char *path_b, int mark_fd, int ack_fd)
{
	static uint32_t apart[N_OPS], mixed[N_OPS], row[N_OPS];
	struct kvxfer_blocks blocks = {.n_planes = 1, .n_blocks = N_OPS};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = KVXFER_WRITE,
				    .blocks = &blocks,
				    .deadline_ms = 600000,
				    .require = "verbs"};
	struct kvxfer_client *a = client_open(path_a), *b = client_open(path_b);
	unsigned char descriptor[KVXFER_DESCRIPTOR_MAX];
	int n = kvxfer_region_export(region_make(b), descriptor, sizeof(descriptor));

	MUST(n > 0);
	t.region = region_make(a);
	MUST(kvxfer_import_open(a, descriptor, (size_t)n, NULL, &t.import_) == 0);
	for (unsigned i = 0; i < N_OPS; i++) {
		apart[i] = 2 * i;
		mixed[i] = 2 * (i * 2731u % N_OPS);
		row[i] = i;
	}
	blocks.local_blocks = apart;
	blocks.remote_blocks = mixed;
	measure(a, &t, "write, nothing to merge", mark_fd, ack_fd);
	blocks.remote_blocks = row;
	measure(a, &t, "gathered writes, one place", mark_fd, ack_fd);
	t.op = KVXFER_READ;
	blocks.remote_blocks = mixed;
	measure(a, &t, "read, nothing to merge", mark_fd, ack_fd);
	kvxfer_client_close(a);
	kvxfer_client_close(b);
	return 0;
}

/* --- the daemons --- */

static void tune(struct kvx_config *config, unsigned i)
{
	config->spin_us = 0;
	config->verbs_spin_us = 0;
	config->lost_ms = 300000; /* all of this is slow under callgrind */
	config->heartbeat_ms = 60000;
	config->deadline_ms = 600000;
}

static void on_mark(struct verbs_daemons *d, char mark)
{
	if (mark == 'b')
		CALLGRIND_ZERO_STATS;
	else
		CALLGRIND_DUMP_STATS_AT("measured");
	MUST(write(d->ack_fd, "a", 1) == 1);
}

/* The engine is started anew, so that it runs outside of valgrind. */
static pid_t engine_start(const char *self, struct verbs_daemons *d)
{
	char mark[16], ack[16];
	pid_t pid = fork();

	MUST(pid >= 0);
	if (pid != 0)
		return pid;
	close(d->mark_fd);
	close(d->ack_fd);
	snprintf(mark, sizeof(mark), "%d", d->engine_mark_fd);
	snprintf(ack, sizeof(ack), "%d", d->engine_ack_fd);
	execl(self, self, d->dir, mark, ack, NULL);
	_exit(127);
}

int main(int argc, char **argv)
{
	static struct verbs_daemons d;
	char a[64], b[64];
	int status;
	pid_t pid;

	if (argc == 4) {
		verbs_daemons_wait(atoi(argv[3]));
		return engine_main(verbs_daemons_socket(argv[1], 0, a),
				   verbs_daemons_socket(argv[1], 1, b), atoi(argv[2]),
				   atoi(argv[3]));
	}
	verbs_daemons_prepare(&d);
	pid = engine_start(argv[0], &d);
	kvx_role_set_loop();
	kvx_assert_on_loop();
	kvx_log_init(KVX_LOG_WARN, false);
	fake_verbs_reset();
	fake_verbs_add("fake1");
	fake_verbs_retry(60000);
	fake_verbs_copy(false);
	d.on_mark = on_mark;
	verbs_daemons_open(&d, tune);
	verbs_daemons_run(&d);
	MUST(fake_verbs_n_violations() == 0);
	fake_verbs_fini();
	MUST(waitpid(pid, &status, 0) == pid);
	return status == 0 ? 0 : 1;
}
