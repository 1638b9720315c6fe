/* rdma_bench: how fast transfers are, in the guests in which perftest was just run. Two roles:
 *
 *   rdma_bench target --socket S --region BYTES
 *     prints "descriptor HEX"; ends when its standard input is closed
 *   rdma_bench mover --socket S --region BYTES --descriptor HEX [--require TRANSPORT]
 *     reads lines "write|read BLOCK_BYTES BLOCKS TRANSFERS WINDOW": so many transfers of so many
 *     scattered blocks, WINDOW of them in flight; prints "seconds TOTAL first FIRST", FIRST being
 *     that of the first transfer alone, from its submission to its event
 *
 * What arrives is checked by the other programs; here a transfer must end OK, by the transport that
 * was asked for. Main thread only. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "drv.h"
#include "kvxfer/client.h"

#define WAIT_MS 30000

/* One plane for each block size; they cover the same bytes. */
static const uint64_t block_sizes[] = {4096, 16384, 65536, 262144, 1048576};
#define N_PLANES (sizeof(block_sizes) / sizeof(block_sizes[0]))

struct bench {
	const char *socket, *require;
	uint64_t region_bytes;
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	struct kvxfer_import *import_;
	struct drv_random random;
	uint32_t *blocks[2]; /* local, remote: permutations of all blocks of one size */
	uint32_t n_blocks;
	unsigned n_running;
	uint64_t n_ended, first_ns, start_ns;
};

/* The transfers of one line. */
struct run {
	int op;
	uint32_t plane;
	uint32_t n_blocks;
	uint64_t n_transfers, window;
};

static void bench_open(struct bench *b, struct drv_args *args, const char *name)
{
	struct kvxfer_plane planes[N_PLANES];
	struct kvxfer_layout layout = {.planes = planes, .n_planes = N_PLANES};
	struct kvxfer_client_options options = {
	    .struct_bytes = sizeof(options), .name = name, .timeout_ms = WAIT_MS};
	struct kvxfer_region_options region = {
	    .struct_bytes = sizeof(region),
	    .name = "bench",
	    .access = KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE,
	    .layout = &layout,
	};

	memset(planes, 0, sizeof(planes));
	for (unsigned i = 0; i < N_PLANES; i++) {
		planes[i].block_stride = planes[i].block_bytes = block_sizes[i];
		planes[i].name = "";
	}
	options.socket_path = drv_arg_str(args, "--socket", NULL);
	b->region_bytes = drv_arg_u64(args, "--region", 64u << 20);
	b->require = drv_arg_str(args, "--require", "verbs");
	b->random.state = drv_arg_u64(args, "--seed", 1);
	if (kvxfer_client_open(&options, &b->client) != 0)
		drv_die("%s", kvxfer_open_error());
	if (kvxfer_region_alloc(b->client, b->region_bytes, &region, &b->region) != 0)
		drv_die("region: %s", kvxfer_client_error(b->client));
	memset(kvxfer_region_data(b->region), 0x5a, b->region_bytes);
}

/* ---- target */

static void on_target(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
}

/* Takes the arrivals, so that none piles up, until the harness closes the input. */
static int target_main(struct bench *b)
{
	uint8_t descriptor[KVXFER_DESCRIPTOR_MAX];
	int n = kvxfer_region_export(b->region, descriptor, sizeof(descriptor));
	struct pollfd fds[2] = {{.fd = STDIN_FILENO, .events = POLLIN},
				{.fd = kvxfer_client_fd(b->client), .events = POLLIN}};
	char byte;

	if (n <= 0)
		drv_die("export: %s", kvxfer_client_error(b->client));
	printf("descriptor ");
	for (int i = 0; i < n; i++)
		printf("%02x", descriptor[i]);
	printf("\n");
	fflush(stdout);
	for (;;) {
		if (poll(fds, 2, -1) < 0)
			drv_die("poll: %s", strerror(errno));
		if (fds[0].revents != 0 && read(STDIN_FILENO, &byte, 1) <= 0)
			return 0;
		if (fds[1].revents != 0 && kvxfer_client_dispatch(b->client, on_target, NULL) < 0)
			drv_die("dispatch: %s", kvxfer_client_error(b->client));
	}
}

/* ---- mover */

static void import_open(struct bench *b, const char *hex)
{
	uint8_t descriptor[KVXFER_DESCRIPTOR_MAX];
	size_t n = hex != NULL ? strlen(hex) / 2 : 0;

	if (n == 0 || n > sizeof(descriptor))
		drv_die("--descriptor: what the target printed");
	for (size_t i = 0; i < n; i++) {
		unsigned value;

		if (sscanf(hex + 2 * i, "%2x", &value) != 1)
			drv_die("--descriptor: not hexadecimal");
		descriptor[i] = (uint8_t)value;
	}
	if (kvxfer_import_open(b->client, descriptor, n, NULL, &b->import_) != 0)
		drv_die("import: %s", kvxfer_client_error(b->client));
}

static void shuffle(struct bench *b, uint32_t *blocks)
{
	for (uint32_t i = 0; i < b->n_blocks; i++)
		blocks[i] = i;
	for (uint32_t i = b->n_blocks - 1; i > 0; i--) {
		uint32_t j = (uint32_t)drv_random_below(&b->random, i + 1);
		uint32_t kept = blocks[i];

		blocks[i] = blocks[j];
		blocks[j] = kept;
	}
}

/* False: the line makes no sense. */
static bool run_parse(struct bench *b, const char *line, struct run *run)
{
	char op[8];
	uint64_t block_bytes;

	if (sscanf(line, "%7s %lu %u %lu %lu", op, &block_bytes, &run->n_blocks, &run->n_transfers,
		   &run->window) != 5)
		return false;
	run->op = strcmp(op, "read") == 0 ? KVXFER_READ : KVXFER_WRITE;
	for (run->plane = 0; run->plane < N_PLANES; run->plane++)
		if (block_sizes[run->plane] == block_bytes)
			break;
	if (run->plane == N_PLANES || run->n_blocks == 0 || run->window == 0)
		return false;
	b->n_blocks = (uint32_t)(b->region_bytes / block_bytes);
	if (b->n_blocks < run->n_blocks * run->window)
		drv_die("the region is too small for %lu x %u blocks", run->window, run->n_blocks);
	shuffle(b, b->blocks[0]);
	shuffle(b, b->blocks[1]);
	return true;
}

static void on_mover(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct bench *b = arg;

	if (event->type != KVXFER_EVENT_TERMINAL)
		drv_die("event %d: %s", event->type, event->text);
	if (event->status != KVXFER_OK)
		drv_die("transfer: %s: %s", kvxfer_status_name(event->status), event->text);
	if (strcmp(event->transport, b->require) != 0)
		drv_die("transfer went by %s", event->transport);
	if (b->n_ended++ == 0)
		b->first_ns = drv_now_ns() - b->start_ns;
	b->n_running--;
}

/* Transfers in flight never share a block: each takes its own part of the permutations. */
static void run_submit(struct bench *b, const struct run *run, uint64_t number)
{
	uint64_t parts = b->n_blocks / run->n_blocks;
	uint64_t at = number % parts * run->n_blocks;
	struct kvxfer_blocks blocks = {
	    .local_plane = run->plane,
	    .remote_plane = run->plane,
	    .n_planes = 1,
	    .n_blocks = run->n_blocks,
	    .local_blocks = b->blocks[0] + at,
	    .remote_blocks = b->blocks[1] + at,
	};
	struct kvxfer_transfer transfer = {
	    .struct_bytes = sizeof(transfer),
	    .op = run->op,
	    .region = b->region,
	    .import_ = b->import_,
	    .blocks = &blocks,
	    .require = b->require,
	    .tag = number,
	};

	if (kvxfer_transfer_submit(b->client, &transfer, NULL) != 0)
		drv_die("submit: %s", kvxfer_client_error(b->client));
	b->n_running++;
}

static void run_measure(struct bench *b, const struct run *run)
{
	uint64_t submitted = 0;

	b->n_ended = 0;
	b->start_ns = drv_now_ns();
	while (b->n_ended < run->n_transfers) {
		while (submitted < run->n_transfers && b->n_running < run->window)
			run_submit(b, run, submitted++);
		if (kvxfer_client_wait(b->client, WAIT_MS, on_mover, b) <= 0)
			drv_die("no event in %d ms: %s", WAIT_MS, kvxfer_client_error(b->client));
	}
	printf("seconds %.6f first %.6f\n", (double)(drv_now_ns() - b->start_ns) / 1e9,
	       (double)b->first_ns / 1e9);
	fflush(stdout);
}

static int mover_main(struct bench *b, const char *descriptor)
{
	char line[128];
	struct run run;

	import_open(b, descriptor);
	for (unsigned i = 0; i < 2; i++) {
		b->blocks[i] = calloc(b->region_bytes / block_sizes[0], sizeof(uint32_t));
		if (b->blocks[i] == NULL)
			drv_die("out of memory");
	}
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) != NULL) {
		if (!run_parse(b, line, &run))
			drv_die("not understood: %s", line);
		run_measure(b, &run);
	}
	free(b->blocks[0]);
	free(b->blocks[1]);
	return 0;
}

int main(int argc, char **argv)
{
	struct bench b = {.n_ended = 0};
	struct drv_args args;
	const char *descriptor;
	bool target;
	int rc;

	if (argc < 2 || (strcmp(argv[1], "target") != 0 && strcmp(argv[1], "mover") != 0)) {
		fprintf(stderr, "usage: rdma_bench target|mover --socket S --region BYTES ...\n");
		return DRV_UNUSABLE;
	}
	target = strcmp(argv[1], "target") == 0;
	drv_args_init(&args, argc - 2, argv + 2);
	bench_open(&b, &args, target ? "bench target" : "bench mover");
	descriptor = drv_arg_str(&args, "--descriptor", NULL);
	drv_args_end(&args);
	rc = target ? target_main(&b) : mover_main(&b, descriptor);
	kvxfer_client_close(b.client);
	return rc;
}
