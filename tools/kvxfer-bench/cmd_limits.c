/* kvxfer-bench limits: what this machine can do at all. No daemon takes part. */
#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "limit.h"

enum { MEMCPY_1, MEMCPY_2, NT_1, NT_2, TCP_SCATTER, TCP_SINK, N_MEASURES };
static const char *const measure_names[N_MEASURES] = {
    "memcpy_1_thread", "memcpy_2_threads", "nt_1_thread",
    "nt_2_threads",    "tcp_scattered",    "tcp_sink",
};
static const struct kvx_column columns[] = {
    {"", KVX_LEFT, KVX_KEEP},           {"BLOCKS", KVX_LEFT, KVX_KEEP},
    {"MEMCPY x1", KVX_RIGHT, KVX_KEEP}, {"x2", KVX_RIGHT, KVX_KEEP},
    {"NT x1", KVX_RIGHT, KVX_KEEP},     {"x2", KVX_RIGHT, KVX_KEEP},
    {"TCP", KVX_RIGHT, KVX_KEEP},       {"TCP TO ONE BUFFER", KVX_RIGHT, KVX_KEEP},
};

struct limits {
	uint64_t region_bytes, runs, batch, seed;
	const char *sizes;
	bool json;
	uint8_t *src, *dst;
	struct kvx_stream *stream;
	struct kvx_progress progress;
	struct json_object *rows;
	struct kvx_table *table;
};

/* A shared mapping of a memfd with all pages there, as a region is. */
static uint8_t *map_region(uint64_t bytes, uint64_t seed)
{
	int fd = memfd_create("kvxfer-bench", MFD_CLOEXEC);
	uint8_t *mem = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0)
		mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (mem == MAP_FAILED)
		kvx_tool_error("mapping of %llu bytes: %s", (unsigned long long)bytes,
			       strerror(errno));
	else
		kvx_pattern_fill(mem, 0, bytes, seed);
	if (fd >= 0)
		close(fd);
	return mem == MAP_FAILED ? NULL : mem;
}

static double measure(struct limits *limits, unsigned which, const struct kvx_blocks_view *view)
{
	switch (which) {
	case MEMCPY_1:
		return kvx_limit_copy(view, 1, KVX_LIMIT_MEMCPY);
	case MEMCPY_2:
		return kvx_limit_copy(view, 2, KVX_LIMIT_MEMCPY);
	case NT_1:
		return kvx_limit_copy(view, 1, KVX_LIMIT_NT);
	case NT_2:
		return kvx_limit_copy(view, 2, KVX_LIMIT_NT);
	case TCP_SCATTER:
		return kvx_stream_run(limits->stream, view, true);
	default:
		return kvx_stream_run(limits->stream, view, false);
	}
}

static void shape_report(struct limits *limits, const struct kvx_shape *shape,
			 struct kvx_samples *samples)
{
	bool latency = kvx_shape_is_latency(shape);
	struct json_object *row = json_object_new_object();
	char text[KVX_SHAPE_TEXT], unit[KVX_UNIT_BYTES];

	kvx_json_set_str(row, "shape", shape->name);
	kvx_json_set_u64(row, "block_bytes", shape->block_bytes);
	kvx_json_set_u64(row, "blocks", shape->n_blocks);
	kvx_json_set_str(row, "unit", latency ? "ns" : "GB/s");
	kvx_table_cell(limits->table, "%s", shape->name);
	kvx_table_cell(limits->table, "%s", kvx_shape_text(text, shape));
	for (unsigned m = 0; m < N_MEASURES; m++) {
		double median = kvx_samples_median(&samples[m]);

		json_object_object_add(row, measure_names[m], kvx_samples_json(&samples[m]));
		if (samples[m].n == 0)
			kvx_table_cell(limits->table, "-");
		else if (latency)
			kvx_table_cell(limits->table, "%s", kvx_unit_ns(unit, (uint64_t)median));
		else
			kvx_table_cell(limits->table, "%.1f (%.1f-%.1f)", median,
				       kvx_samples_at(&samples[m], 0),
				       kvx_samples_at(&samples[m], 1));
	}
	json_object_array_add(limits->rows, row);
}

static int shape_run(struct limits *limits, const struct kvx_shape *shape)
{
	struct kvx_samples samples[N_MEASURES] = {0};
	struct kvx_scatter scatter;
	bool latency = kvx_shape_is_latency(shape);
	uint64_t rounds = latency ? 100 * limits->runs : limits->runs;
	char text[KVX_SHAPE_TEXT];
	int rc = KVX_BENCH_OK;

	kvx_progress_step(&limits->progress, "%s", kvx_shape_text(text, shape));
	kvx_scatter_init(&scatter, limits->src, limits->dst, limits->region_bytes,
			 shape->block_bytes, limits->seed);
	/* The first two rounds warm up: page tables, the TCP window. */
	for (uint64_t r = 0; r < rounds + 2 && rc == KVX_BENCH_OK; r++) {
		for (unsigned m = 0; m < N_MEASURES; m++) {
			struct kvx_blocks_view view = kvx_scatter_next(&scatter, shape->n_blocks);
			double seconds;

			/* Two threads for one small block make no sense. */
			if (latency && (m == MEMCPY_2 || m == NT_2))
				continue;
			seconds = measure(limits, m, &view);
			if (seconds <= 0 || (m != TCP_SINK && kvx_blocks_differ(&view) != 0)) {
				kvx_tool_error("%s: the copy is wrong", measure_names[m]);
				rc = KVX_BENCH_FAILED;
			}
			if (r >= 2)
				kvx_samples_add(&samples[m], latency ? seconds * 1e9
								     : (double)shape->block_bytes *
									   shape->n_blocks /
									   seconds / 1e9);
		}
	}
	if (rc == KVX_BENCH_OK)
		shape_report(limits, shape, samples);
	for (unsigned m = 0; m < N_MEASURES; m++)
		kvx_samples_fini(&samples[m]);
	kvx_scatter_fini(&scatter);
	return rc;
}

static struct json_object *pings_run(struct limits *limits)
{
	static const char *const names[] = {"unix_socket", "eventfd"};
	struct json_object *obj = json_object_new_object();

	for (unsigned kind = 0; kind < 2; kind++) {
		struct kvx_samples samples = {0};
		struct kvx_ping ping;

		kvx_progress_step(&limits->progress, "%s round trip", names[kind]);
		if (kvx_ping_start(&ping, kind) != 0)
			continue;
		kvx_ping_run(&ping, 20000, &samples);
		kvx_ping_stop(&ping);
		json_object_object_add(obj, names[kind], kvx_samples_json(&samples));
		kvx_samples_fini(&samples);
	}
	return obj;
}

static void limits_print(struct limits *limits, struct json_object *pings)
{
	static const char *const names[] = {"unix_socket", "eventfd"};
	char p50[KVX_UNIT_BYTES], p99[KVX_UNIT_BYTES];

	kvx_machine_print(stdout);
	printf("GB/s as median (lowest-highest) of %llu runs; scattered over %s; single blocks as "
	       "time\n\n",
	       (unsigned long long)limits->runs, kvx_unit_bytes(p50, limits->region_bytes));
	kvx_table_print(limits->table, stdout);
	printf("\n");
	for (unsigned i = 0; i < 2; i++) {
		struct json_object *ping = kvx_json_get(pings, names[i]);

		printf("%s round trip, two blocking processes: p50 %s, p99 %s\n", names[i],
		       kvx_unit_ns(p50, (uint64_t)kvx_json_double(ping, "median")),
		       kvx_unit_ns(p99, (uint64_t)kvx_json_double(ping, "p99")));
	}
}

static int limits_run(struct limits *limits, const struct kvx_shape *shapes, unsigned n_shapes)
{
	struct json_object *pings = pings_run(limits), *obj;
	int rc = KVX_BENCH_OK;

	for (unsigned i = 0; i < n_shapes && rc == KVX_BENCH_OK; i++)
		rc = shape_run(limits, &shapes[i]);
	kvx_progress_end(&limits->progress);
	if (rc == KVX_BENCH_OK && limits->json) {
		obj = json_object_new_object();
		json_object_object_add(obj, "machine", kvx_machine_json());
		kvx_json_set_u64(obj, "region_bytes", limits->region_bytes);
		kvx_json_set_u64(obj, "runs", limits->runs);
		json_object_object_add(obj, "round_trips_ns", json_object_get(pings));
		json_object_object_add(obj, "rows", json_object_get(limits->rows));
		kvx_json_print(obj, stdout);
		json_object_put(obj);
	} else if (rc == KVX_BENCH_OK) {
		limits_print(limits, pings);
	}
	json_object_put(pings);
	return rc;
}

int kvx_bench_limits(int argc, char **argv)
{
	struct limits limits = {.region_bytes = 1ull << 30, .runs = 9, .seed = 1};
	const struct kvx_option options[] = {
	    {"sizes", KVX_OPT_STR, &limits.sizes, "LIST",
	     "block sizes, as 4K,64K; default: shapes a-g", 0, 0},
	    {"batch", KVX_OPT_U64, &limits.batch, "N", "blocks a run with --sizes; 0: 64 MiB", 0,
	     1e9},
	    {"region", KVX_OPT_BYTES, &limits.region_bytes, "BYTES", "size of each mapping", 4096,
	     1e13},
	    {"runs", KVX_OPT_U64, &limits.runs, "N", "runs of each measurement", 1, 10000},
	    {"seed", KVX_OPT_U64, &limits.seed, "N", "of the block ids", 0, 0},
	    {"json", KVX_OPT_FLAG, &limits.json, NULL, "print JSON", 0, 0},
	    {0},
	};
	struct kvx_shape shapes[KVX_MAX_SHAPES];
	unsigned n_shapes = kvx_shapes_standard(shapes);
	int rc = kvx_options_parse(options, "limits", argc, argv);

	if (rc != 0)
		return rc < 0 ? KVX_BENCH_OK : rc;
	if (!limits.sizes && limits.region_bytes < 64 << 20) {
		kvx_tool_error("the standard shapes need --region 64M or more");
		return KVX_BENCH_USAGE;
	}
	if (limits.sizes && kvx_shapes_parse(limits.sizes, limits.batch, limits.region_bytes,
					     shapes, &n_shapes) != 0)
		return KVX_BENCH_USAGE;
	limits.progress.total = n_shapes + 2;
	limits.rows = json_object_new_array();
	limits.table = kvx_table_create(columns, sizeof(columns) / sizeof(columns[0]));
	limits.src = map_region(limits.region_bytes, 1);
	limits.dst = map_region(limits.region_bytes, 2);
	if (!limits.src || !limits.dst || kvx_stream_start(&limits.stream) != 0)
		rc = KVX_BENCH_FAILED;
	else
		rc = limits_run(&limits, shapes, n_shapes);
	kvx_stream_stop(limits.stream);
	kvx_table_destroy(limits.table);
	json_object_put(limits.rows);
	return rc;
}
