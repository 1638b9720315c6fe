/* kvxfer-bench sweep: block size x batch x op x path, each as a ratio to the limit measured in
 * turns with it. Starts daemons of its own, one pair for each path and number of copy workers, or
 * uses running ones. */
#include <stdlib.h>
#include <string.h>

#include "sweep.h"

#define MAX_WORKER_COUNTS 8u

struct sweep {
	struct kvx_sweep_options options;
	struct kvx_shape shapes[KVX_MAX_SHAPES];
	unsigned n_shapes;
	bool read, write, copy, fabric;
	unsigned workers[MAX_WORKER_COUNTS];
	unsigned n_workers;
	struct kvx_sweep_row *rows;
	unsigned n_rows;
	struct kvx_progress progress;
};

static bool list_has(const char *list, const char *word)
{
	size_t len = strlen(word);

	for (const char *at = list; (at = strstr(at, word)); at += len)
		if ((at == list || at[-1] == ',') && (at[len] == ',' || at[len] == '\0'))
			return true;
	return false;
}

static int parse_workers(struct sweep *sweep)
{
	char *copy = kvx_tool_strdup(sweep->options.workers), *next, *word;
	int rc = 0;

	for (word = strtok_r(copy, ",", &next); word && rc == 0;
	     word = strtok_r(NULL, ",", &next)) {
		uint64_t n;

		if (sweep->n_workers == MAX_WORKER_COUNTS || kvx_parse_u64(word, 1, 8, &n) != 0) {
			kvx_tool_error("--copy-workers: %s is not a number of workers, 1 to 8",
				       word);
			rc = KVX_BENCH_USAGE;
		} else {
			sweep->workers[sweep->n_workers++] = (unsigned)n;
		}
	}
	free(copy);
	return rc;
}

static int sweep_choose(struct sweep *sweep)
{
	struct kvx_sweep_options *o = &sweep->options;

	sweep->read = list_has(o->ops, "read");
	sweep->write = list_has(o->ops, "write");
	sweep->copy = list_has(o->paths, "copy");
	sweep->fabric = list_has(o->paths, "fabric");
	if ((!sweep->read && !sweep->write) || (!sweep->copy && !sweep->fabric)) {
		kvx_tool_error("--ops takes read,write; --paths takes copy,fabric");
		return KVX_BENCH_USAGE;
	}
	sweep->n_shapes = kvx_shapes_standard(sweep->shapes);
	if (o->sizes && kvx_shapes_parse(o->sizes, o->batch, o->region_bytes, sweep->shapes,
					 &sweep->n_shapes) != 0)
		return KVX_BENCH_USAGE;
	if (!o->sizes && o->region_bytes < 64 << 20) {
		kvx_tool_error("the standard shapes need --region 64M or more");
		return KVX_BENCH_USAGE;
	}
	if (o->nodes.socket) { /* a running daemon's workers are what they are */
		sweep->n_workers = 1;
		sweep->workers[0] = 0;
		return 0;
	}
	return parse_workers(sweep);
}

/* A plane per shape, all over the whole region: a block list needs the block size in the layout. */
static int bed_open(struct kvx_sweep_bed *bed, struct sweep *sweep, bool fabric, unsigned workers)
{
	struct kvxfer_plane planes[KVX_MAX_SHAPES] = {0};
	struct kvx_node_options nodes = sweep->options.nodes;
	struct kvx_pair_conf conf = {.region_bytes = sweep->options.region_bytes,
				     .planes = planes,
				     .n_planes = sweep->n_shapes};
	int rc;

	memset(bed, 0, sizeof(*bed));
	bed->seed = sweep->options.seed;
	bed->runs = sweep->options.runs;
	bed->region_bytes = sweep->options.region_bytes;
	bed->explicit_ops = sweep->options.explicit_ops;
	for (unsigned i = 0; i < sweep->n_shapes; i++) {
		planes[i].block_bytes = sweep->shapes[i].block_bytes;
		planes[i].block_stride = sweep->shapes[i].block_bytes;
	}
	nodes.conf.copy_workers = workers;
	rc = kvx_nodes_start(&bed->nodes, &nodes, fabric ? 2 : 1);
	if (rc != KVX_BENCH_OK)
		return rc;
	conf.mover_socket = bed->nodes.daemon[0].socket;
	conf.target_socket = bed->nodes.daemon[fabric].socket;
	if (kvx_ping_start(&bed->ping, KVX_PING_UNIX) != 0 || kvx_stream_start(&bed->stream) != 0) {
		kvx_tool_error("no sockets for the limits");
		return KVX_BENCH_FAILED;
	}
	return kvx_pair_open(&bed->pair, &conf);
}

static void bed_close(struct kvx_sweep_bed *bed)
{
	kvx_pair_close(&bed->pair);
	kvx_stream_stop(bed->stream);
	kvx_ping_stop(&bed->ping);
	kvx_nodes_stop(&bed->nodes);
}

static int bed_measure(struct kvx_sweep_bed *bed, struct sweep *sweep, bool fabric,
		       unsigned workers)
{
	int rc = KVX_BENCH_OK;

	for (unsigned i = 0; i < 2 * sweep->n_shapes && rc == KVX_BENCH_OK; i++) {
		struct kvx_sweep_case which = {
		    .shape = sweep->shapes[i / 2],
		    .plane = i / 2,
		    .op = i % 2 ? KVXFER_READ : KVXFER_WRITE,
		    .fabric = fabric,
		    .workers = fabric ? 0 : workers,
		};
		char text[KVX_SHAPE_TEXT];

		if (i % 2 ? !sweep->read : !sweep->write)
			continue;
		kvx_progress_step(&sweep->progress, "%s %s, %s, %u workers",
				  i % 2 ? "read" : "write", kvx_shape_text(text, &which.shape),
				  fabric ? "fabric" : "copy", workers);
		rc = kvx_sweep_measure(bed, &which, &sweep->rows[sweep->n_rows]);
		sweep->n_rows++;
	}
	return rc;
}

static int sweep_run(struct sweep *sweep)
{
	unsigned per_bed = sweep->n_shapes * ((unsigned)sweep->read + (unsigned)sweep->write);
	unsigned n_beds = (sweep->copy ? sweep->n_workers : 0) + sweep->fabric;
	int rc = KVX_BENCH_OK;

	sweep->progress.total = per_bed * n_beds;
	sweep->rows = kvx_tool_alloc(sweep->progress.total * sizeof(*sweep->rows));
	for (unsigned i = 0; i < n_beds && rc == KVX_BENCH_OK; i++) {
		bool fabric = i == n_beds - 1 && sweep->fabric;
		unsigned workers = fabric ? sweep->workers[0] : sweep->workers[i];
		struct kvx_sweep_bed bed;

		rc = bed_open(&bed, sweep, fabric, workers);
		if (rc == KVX_BENCH_OK)
			rc = bed_measure(&bed, sweep, fabric, workers);
		bed_close(&bed);
	}
	kvx_progress_end(&sweep->progress);
	return rc;
}

static void sweep_print(struct sweep *sweep)
{
	char unit[KVX_UNIT_BYTES];

	if (sweep->options.json) {
		kvx_sweep_print_json(sweep->rows, sweep->n_rows, &sweep->options, stdout);
	} else if (sweep->options.csv) {
		kvx_sweep_print_csv(sweep->rows, sweep->n_rows, stdout);
	} else {
		kvx_machine_print(stdout);
		printf("medians of %llu runs (single blocks: %llu), %s regions, blocks scattered "
		       "and cold, "
		       "%s\nratio: throughput to the limit's, single blocks: time to a Unix-socket "
		       "round "
		       "trip\n\n",
		       (unsigned long long)sweep->options.runs,
		       (unsigned long long)sweep->options.runs * 100,
		       kvx_unit_bytes(unit, sweep->options.region_bytes),
		       sweep->options.explicit_ops ? "explicit ops" : "block lists");
		kvx_sweep_print(sweep->rows, sweep->n_rows, stdout);
	}
}

int kvx_bench_sweep(int argc, char **argv)
{
	struct sweep sweep = {.options = {.ops = "write,read",
					  .paths = "copy,fabric",
					  .workers = "1,2",
					  .region_bytes = 1ull << 30,
					  .runs = 9,
					  .seed = 1}};
	struct kvx_sweep_options *o = &sweep.options;
	const struct kvx_option options[] = {
	    {"sizes", KVX_OPT_STR, &o->sizes, "LIST", "block sizes, as 4K,64K; default: shapes a-g",
	     0, 0},
	    {"batch", KVX_OPT_U64, &o->batch, "N", "blocks a transfer with --sizes; 0: 64 MiB", 0,
	     1e9},
	    {"ops", KVX_OPT_STR, &o->ops, "LIST", "write, read", 0, 0},
	    {"paths", KVX_OPT_STR, &o->paths, "LIST", "copy (same node), fabric (two nodes)", 0, 0},
	    {"copy-workers", KVX_OPT_STR, &o->workers, "LIST", "copy workers of the daemons", 0, 0},
	    {"explicit", KVX_OPT_FLAG, &o->explicit_ops, NULL,
	     "explicit ops instead of block lists", 0, 0},
	    {"region", KVX_OPT_BYTES, &o->region_bytes, "BYTES", "size of each region", 4096, 1e13},
	    {"runs", KVX_OPT_U64, &o->runs, "N", "runs of each row", 1, 10000},
	    {"seed", KVX_OPT_U64, &o->seed, "N", "of the block ids", 0, 0},
	    {"socket", KVX_OPT_STR, &o->nodes.socket, "PATH", "use this running daemon", 0, 0},
	    {"peer-socket", KVX_OPT_STR, &o->nodes.peer_socket, "PATH",
	     "and this one as the other node", 0, 0},
	    {"kvxferd", KVX_OPT_STR, &o->nodes.conf.binary, "PATH", "the daemon's binary", 0, 0},
	    {"json", KVX_OPT_FLAG, &o->json, NULL, "print JSON", 0, 0},
	    {"csv", KVX_OPT_FLAG, &o->csv, NULL, "print CSV", 0, 0},
	    {"verbose", KVX_OPT_FLAG, &o->nodes.conf.verbose, NULL, "show the daemons' logs", 0, 0},
	    {0},
	};
	int rc = kvx_options_parse(options, "sweep", argc, argv);

	if (rc == 0)
		rc = sweep_choose(&sweep);
	if (rc != 0)
		return rc < 0 ? KVX_BENCH_OK : rc;
	rc = sweep_run(&sweep);
	if (rc == KVX_BENCH_OK)
		sweep_print(&sweep);
	for (unsigned i = 0; i < sweep.n_rows; i++)
		kvx_sweep_row_fini(&sweep.rows[i]);
	free(sweep.rows);
	return rc;
}
