/* How fast kvxfer moves GPU memory, against the runtime's own copies of the same blocks.
 *
 * usage: bench_gpu --probe        says which runtime and devices there are; exit status 1: none
 *        bench_gpu SOCKET [MIB]   measures through the daemon there; MIB: bytes of a transfer;
 *                                 exit status 3: a target was missed
 *
 * Of each shape: GB/s of one large copy by the runtime, of the blocks copied one by one by the
 * runtime, of kvxfer (from submit to the terminal event), and the ratio of kvxfer to the large
 * copy; medians. Between GPUs with the target and whether it is met. On the stand-in the numbers
 * say nothing about a GPU, nothing is judged, and the output says so. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kvxfer/client.h"
#include "test_gpu.h"

#define MIB     (1ull << 20)
#define RUNS    9
#define N_PINGS 1000

/* Between GPUs: of one large copy; beside the runtime's copy and the socket's round trip. */
#define TARGET_BLOCKS       0.95 /* from TARGET_BLOCKS_BYTES on */
#define TARGET_BLOCKS_BYTES 65536u
#define TARGET_SMALL        0.6 /* N_SMALL blocks of SMALL_BYTES */
#define SMALL_BYTES         4096u
#define N_SMALL             16384u
#define TARGET_LATENCY_NS   10000.0

static const char *socket_path;
static uint64_t total_bytes;
static unsigned n_missed;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static uint64_t median(uint64_t *ns, unsigned n)
{
	qsort(ns, n, sizeof(*ns), by_value);
	return ns[n / 2];
}

static void must(int rc, const char *what, const char *why)
{
	if (rc >= 0)
		return;
	fprintf(stderr, "bench_gpu: %s: %d %s\n", what, rc, why);
	exit(1);
}

/* ---- an engine: memory of a device, or (dev < 0) of the host */

struct side {
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	void *memory;
	void *twin; /* dev < 0: page-locked memory for the runtime's own copies */
	int dev;
	uint32_t n_ended;
	int status;
};

static void side_open(struct side *s, int dev, uint32_t n_blocks, uint64_t block_bytes)
{
	struct kvxfer_client_options opt = {
	    .struct_bytes = sizeof(opt), .socket_path = socket_path, .timeout_ms = 60000};
	struct kvxfer_plane plane = {
	    .block_stride = block_bytes, .block_bytes = block_bytes, .n_blocks = n_blocks};
	struct kvxfer_layout layout = {&plane, 1};
	struct kvxfer_region_options region = {.struct_bytes = sizeof(region),
					       .access = KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE,
					       .layout = &layout};
	struct kvxfer_gpu_segment segment = {.len_bytes = n_blocks * block_bytes};
	int rc;

	memset(s, 0, sizeof(*s));
	s->dev = dev;
	must(kvxfer_client_open(&opt, &s->client), "open", kvxfer_open_error());
	if (dev < 0) {
		rc = kvxfer_region_alloc(s->client, segment.len_bytes, &region, &s->region);
		must(rc, "register", kvxfer_client_error(s->client));
		s->memory = kvxfer_region_data(s->region);
		must(-test_gpu_host_alloc(segment.len_bytes, &s->twin), "page-locked memory", "");
		return;
	}
	s->memory = s->twin = segment.ptr = test_gpu_alloc(dev, segment.len_bytes);
	rc = kvxfer_region_register_gpu(s->client, &segment, 1, &region, &s->region);
	must(rc, "register", kvxfer_client_error(s->client));
}

static void side_close(struct side *s)
{
	kvxfer_client_close(s->client);
	if (s->dev >= 0)
		test_gpu_free(s->memory);
	else
		test_gpu_host_free(s->twin);
}

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *ev, void *arg)
{
	struct side *s = arg;

	(void)client;
	if (ev->type != KVXFER_EVENT_TERMINAL)
		return;
	s->n_ended++;
	s->status = ev->status;
	if (ev->status != KVXFER_OK)
		must(-1, kvxfer_status_name(ev->status), ev->text);
}

static struct kvxfer_import *import_of(struct side *who, struct side *whose)
{
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	struct kvxfer_import *import_ = NULL;
	int len = kvxfer_region_export(whose->region, desc, sizeof(desc));

	must(len, "export", kvxfer_client_error(whose->client));
	must(kvxfer_import_open(who->client, desc, (size_t)len, NULL, &import_), "import",
	     kvxfer_client_error(who->client));
	return import_;
}

/* ---- one measure */

struct shape {
	uint32_t n_blocks;
	uint64_t block_bytes;
};
struct measure {
	struct side from, to;
	struct kvxfer_import *import_;
	uint32_t *src, *dst; /* block ids */
	struct shape shape;
	void *stream;
};

static uint64_t time_kvxfer(struct measure *m)
{
	struct kvxfer_blocks blocks = {.n_planes = 1,
				       .n_blocks = m->shape.n_blocks,
				       .local_blocks = m->src,
				       .remote_blocks = m->dst};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = KVXFER_WRITE,
				    .region = m->from.region,
				    .import_ = m->import_,
				    .blocks = &blocks};
	uint32_t before = m->from.n_ended;
	uint64_t begun = now_ns();

	must(kvxfer_transfer_submit(m->from.client, &t, NULL), "submit",
	     kvxfer_client_error(m->from.client));
	while (m->from.n_ended == before)
		must(kvxfer_client_wait(m->from.client, -1, on_event, &m->from), "wait", "");
	return now_ns() - begun;
}

static uint64_t time_blocks(struct measure *m)
{
	uint64_t bytes = m->shape.block_bytes, begun = now_ns();

	for (uint32_t i = 0; i < m->shape.n_blocks; i++)
		must(-test_gpu_try_copy((char *)m->to.twin + m->dst[i] * bytes,
					(char *)m->from.twin + m->src[i] * bytes, bytes, m->stream),
		     "copy", "");
	must(-test_gpu_stream_sync(m->stream), "copy", "");
	return now_ns() - begun;
}

static uint64_t time_large(struct measure *m)
{
	uint64_t begun = now_ns();

	must(-test_gpu_try_copy(m->to.twin, m->from.twin, m->shape.n_blocks * m->shape.block_bytes,
				m->stream),
	     "copy", "");
	must(-test_gpu_stream_sync(m->stream), "copy", "");
	return now_ns() - begun;
}

static uint64_t time_median(struct measure *m, uint64_t (*time)(struct measure *m), unsigned runs)
{
	uint64_t *ns = malloc(runs * sizeof(*ns));
	uint64_t result;

	(void)time(m); /* the first one warms up */
	for (unsigned i = 0; i < runs; i++)
		ns[i] = time(m);
	result = median(ns, runs);
	free(ns);
	return result;
}

/* Every block of twice as many once at most, no two neighbours, different on both sides. */
static void scatter(struct measure *m)
{
	uint32_t n = m->shape.n_blocks;

	m->src = malloc(n * sizeof(*m->src));
	m->dst = malloc(n * sizeof(*m->dst));
	for (uint32_t i = 0; i < n; i++) {
		m->src[i] = 2 * i;
		m->dst[i] = 2 * (n - 1 - i) + 1;
	}
	for (uint32_t i = n; i-- > 1;) {
		uint32_t j = (uint32_t)((i * 2654435761ull) % (i + 1)), keep = m->src[i];

		m->src[i] = m->src[j];
		m->src[j] = keep;
	}
}

static void measure_open(struct measure *m, int from, int to, struct shape shape)
{
	int dev = from >= 0 ? from : to;

	memset(m, 0, sizeof(*m));
	m->shape = shape;
	side_open(&m->from, from, 2 * shape.n_blocks, shape.block_bytes);
	side_open(&m->to, to, 2 * shape.n_blocks, shape.block_bytes);
	m->import_ = import_of(&m->from, &m->to);
	m->stream = test_gpu_stream(dev >= 0 ? dev : 0);
	scatter(m);
}

static void measure_close(struct measure *m)
{
	test_gpu_stream_end(m->stream);
	side_close(&m->from);
	side_close(&m->to);
	free(m->src);
	free(m->dst);
}

static double gbps(const struct shape *shape, uint64_t ns)
{
	return (double)(shape->n_blocks * shape->block_bytes) / (double)ns;
}

/* The last block must be there: a fast copy of nothing is no copy. */
static void check_moved(struct measure *m)
{
	uint64_t bytes = m->shape.block_bytes, at = m->dst[m->shape.n_blocks - 1] * bytes;
	uint8_t seen = 0;

	if (m->from.dev >= 0)
		test_gpu_fill(m->from.memory, 0x6b, 2 * m->shape.n_blocks * bytes);
	else
		memset(m->from.memory, 0x6b, 2 * m->shape.n_blocks * bytes);
	(void)time_kvxfer(m);
	if (m->to.dev >= 0)
		test_gpu_get(&seen, (char *)m->to.memory + at + bytes - 1, 1);
	else
		seen = ((uint8_t *)m->to.memory)[at + bytes - 1];
	must(seen == 0x6b ? 0 : -1, "the bytes have not arrived", "");
}

static const char *judge(bool met)
{
	if (test_gpu_is_standin())
		return "stand-in: not judged";
	n_missed += !met;
	return met ? "met" : "MISSED";
}

static void judge_shape(int from, int to, const struct shape *shape, double ratio)
{
	bool is_small = shape->block_bytes == SMALL_BYTES && shape->n_blocks == N_SMALL;
	double target = is_small ? TARGET_SMALL : TARGET_BLOCKS;

	if (from >= 0 && to >= 0 && (is_small || shape->block_bytes >= TARGET_BLOCKS_BYTES))
		printf("   >= %.2f: %s", target, judge(ratio >= target));
	printf("\n");
	fflush(stdout);
}

static void run_shape(const char *way, int from, int to, struct shape shape)
{
	struct measure m;
	uint64_t large, blocks, ours;

	measure_open(&m, from, to, shape);
	check_moved(&m);
	large = time_median(&m, time_large, RUNS);
	blocks = time_median(&m, time_blocks, RUNS);
	ours = time_median(&m, time_kvxfer, RUNS);
	printf("%-14s %7u x %8llu B %10.2f %10.2f %10.2f %8.3f", way, shape.n_blocks,
	       (unsigned long long)shape.block_bytes, gbps(&shape, large), gbps(&shape, blocks),
	       gbps(&shape, ours), (double)large / (double)ours);
	judge_shape(from, to, &shape, (double)large / (double)ours);
	measure_close(&m);
}

static void run_latency(const char *way, int from, int to)
{
	struct shape one = {1, SMALL_BYTES};
	struct measure m, host;
	uint64_t bare, ours, round_trip;

	measure_open(&m, from, to, one);
	measure_open(&host, -1, -1, one);
	bare = time_median(&m, time_blocks, N_PINGS);
	ours = time_median(&m, time_kvxfer, N_PINGS);
	round_trip = time_median(&host, time_kvxfer, N_PINGS);
	printf("%-14s 1 x 4 KiB: runtime %.1f us, kvxfer %.1f us, kvxfer between host memory (the "
	       "round trip) %.1f us",
	       way, (double)bare / 1e3, (double)ours / 1e3, (double)round_trip / 1e3);
	if (from >= 0 && to >= 0) {
		double more = (double)ours - (double)bare - (double)round_trip;

		printf("; %.1f us more than both, <= %.0f: %s", more / 1e3, TARGET_LATENCY_NS / 1e3,
		       judge(more <= TARGET_LATENCY_NS));
	}
	printf("\n");
	measure_close(&m);
	measure_close(&host);
}

static void run_way(const char *way, int from, int to)
{
	static const uint64_t sizes[] = {64 * MIB, MIB, 65536, 16384, 4096};

	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		uint64_t n = total_bytes / sizes[i];

		if (n > 0)
			run_shape(way, from, to, (struct shape){(uint32_t)n, sizes[i]});
	}
	run_shape(way, from, to, (struct shape){N_SMALL, SMALL_BYTES});
	run_latency(way, from, to);
}

static int probe(void)
{
	const char *why;
	char pci[32];
	int n;

	if (test_gpu_start(&why) != 0) {
		printf("%s\n", why);
		return 1;
	}
	n = test_gpu_count();
	for (int i = 0; i < n; i++) {
		test_gpu_pci(i, pci);
		printf("%s device %d at %s%s\n", test_gpu_runtime(), i, pci,
		       test_gpu_is_standin() ? " (STAND-IN)" : "");
	}
	return n > 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
	if (argc < 2) {
		fprintf(stderr, "usage: bench_gpu --probe | SOCKET [MIB]\n");
		return 2;
	}
	if (probe() != 0)
		return 1;
	if (strcmp(argv[1], "--probe") == 0)
		return 0;
	socket_path = argv[1];
	total_bytes = (argc > 2 ? strtoull(argv[2], NULL, 10) : 1024) * MIB;
	if (test_gpu_is_standin())
		printf("STAND-IN runtime: these numbers say nothing about a GPU\n");
	printf("%-14s %7s   %10s %10s %10s %10s %8s\n", "GB/s", "blocks", "", "one copy",
	       "one by one", "kvxfer", "of one");
	run_way("within gpu0", 0, 0);
	if (test_gpu_count() > 1) {
		(void)test_gpu_peer(0, 1); /* for the runtime's own copies; -1: it cannot */
		run_way("gpu0 to gpu1", 0, 1);
	}
	run_way("host to gpu0", -1, 0);
	run_way("gpu0 to host", 0, -1);
	if (n_missed > 0)
		printf("%u target(s) missed\n", n_missed);
	return n_missed > 0 ? 3 : 0;
}
