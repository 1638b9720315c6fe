/* kvxfer-bench demo: two daemons as two nodes, a prefill and a decode process per row of the table;
 * KV caches of models move by streamed WRITE and by READ, on one node and between the two, every
 * byte of both pools compared. Runs in the first process. */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "demo.h"

#define ROWS_PER_MODEL 4u
#define ROW_TIMEOUT_NS 300000000000ull
#define MAX_MODELS     8u

struct demo_options {
	struct kvx_geometry_options geometry;
	uint64_t requests, tokens, seed, copy_workers;
	const char *binary;
	bool json, verbose, spoil, quick;
};
struct demo {
	struct demo_options options;
	struct kvx_geometry models[MAX_MODELS];
	unsigned n_models;
	struct kvx_daemon nodes[2];
	struct kvx_table *table;
	struct json_object *rows;
	struct kvx_progress progress;
	unsigned n_failed;
};

static const struct kvx_column columns[] = {
    {"MODEL", KVX_LEFT, KVX_CUT},      {"MODE", KVX_LEFT, KVX_KEEP},   {"PATH", KVX_LEFT, KVX_KEEP},
    {"REQUESTS", KVX_RIGHT, KVX_KEEP}, {"BYTES", KVX_RIGHT, KVX_KEEP}, {"OPS", KVX_RIGHT, KVX_HIDE},
    {"GB/S", KVX_RIGHT, KVX_KEEP},     {"P50", KVX_RIGHT, KVX_KEEP},   {"P99", KVX_RIGHT, KVX_KEEP},
    {"VERIFIED", KVX_LEFT, KVX_KEEP},
};

/* Reads what a process wrote until its end of the pipe closes; false: less than a whole result. */
static bool result_read(int fd, uint64_t deadline_ns, struct kvx_demo_result *out_result)
{
	char *at = (char *)out_result;
	size_t got = 0;

	while (got < sizeof(*out_result)) {
		struct pollfd pfd = {.fd = fd, .events = POLLIN};
		uint64_t now = kvx_now_ns();
		ssize_t n;

		if (now >= deadline_ns)
			return false;
		if (poll(&pfd, 1, (int)((deadline_ns - now) / 1000000) + 1) <= 0)
			continue;
		n = read(fd, at + got, sizeof(*out_result) - got);
		if (n == 0 || (n < 0 && errno != EINTR))
			return false;
		got += n > 0 ? (size_t)n : 0;
	}
	return true;
}

static void row_report(struct demo *demo, const struct kvx_demo_run *run,
		       const struct kvx_demo_result *mover, uint64_t checked, const char *error)
{
	const char *mode = run->op == KVXFER_WRITE ? "write, streamed" : "read";
	struct json_object *row = json_object_new_object();
	struct kvx_samples samples = {0};
	char buf[KVX_UNIT_BYTES];
	char *path = kvx_tool_printf("%s: %s", run->two_nodes ? "two nodes" : "same node",
				     *mover->transport ? mover->transport : "-");

	for (uint32_t i = 0; i < mover->n_latencies; i++)
		kvx_samples_add(&samples, (double)mover->latency_ns[i]);
	double seconds = kvx_samples_sum(&samples) / 1e9;
	double rate = seconds > 0 ? (double)mover->moved_bytes / seconds : 0;
	uint64_t p50 = (uint64_t)kvx_samples_median(&samples);
	uint64_t p99 = (uint64_t)kvx_samples_at(&samples, 0.99);

	kvx_table_cell(demo->table, "%s", run->geometry.title);
	kvx_table_cell(demo->table, "%s", mode);
	kvx_table_cell(demo->table, "%s", path);
	kvx_table_cell(demo->table, "%u", mover->n_latencies);
	kvx_table_cell(demo->table, "%s", kvx_unit_bytes(buf, mover->moved_bytes));
	kvx_table_cell(demo->table, "%s",
		       kvx_unit_count(buf, (uint64_t)mover->n_latencies * run->n_blocks *
					       kvx_geometry_planes(&run->geometry)));
	kvx_table_cell(demo->table, "%.2f", rate / 1e9);
	kvx_table_cell(demo->table, "%s", kvx_unit_ns(buf, p50));
	kvx_table_cell(demo->table, "%s", kvx_unit_ns(buf, p99));
	if (error)
		kvx_table_cell(demo->table, "FAILED");
	else
		kvx_table_cell(demo->table, "all of %s", kvx_unit_bytes(buf, checked));
	kvx_table_color(demo->table, error ? KVX_COLOR_RED : KVX_COLOR_GREEN);
	kvx_json_set_str(row, "model", run->geometry.name);
	kvx_json_set_str(row, "mode", run->op == KVXFER_WRITE ? "write" : "read");
	kvx_json_set_bool(row, "two_nodes", run->two_nodes);
	kvx_json_set_str(row, "transport", mover->transport);
	kvx_json_set_u64(row, "requests", mover->n_latencies);
	kvx_json_set_u64(row, "bytes", mover->moved_bytes);
	kvx_json_set_double(row, "bytes_per_second", rate);
	kvx_json_set_u64(row, "p50_ns", p50);
	kvx_json_set_u64(row, "p99_ns", p99);
	kvx_json_set_u64(row, "checked_bytes", checked);
	kvx_json_set_bool(row, "verified", !error);
	kvx_json_set_str(row, "error", error ? error : "");
	json_object_array_add(demo->rows, row);
	kvx_samples_fini(&samples);
	free(path);
}

/* What one engine of a row has to say for itself; NULL: nothing is wrong. */
static char *engine_error(const char *name, bool whole, int status,
			  const struct kvx_demo_result *result)
{
	if (!whole)
		return kvx_tool_printf("the %s process ended (%d) without a result", name, status);
	if (!result->ok)
		return kvx_tool_printf("%s: %s", name, result->text);
	if (status != 0)
		return kvx_tool_printf("the %s process ended with %d", name, status);
	return NULL;
}

/* Waits for both engines of a row; what went wrong, or NULL. */
static char *row_await(const pid_t pids[2], const int fds[2], struct kvx_demo_result *results)
{
	static const char *const names[] = {"prefill", "decode"};
	uint64_t deadline = kvx_now_ns() + ROW_TIMEOUT_NS;
	char *errors[2], *both;

	for (unsigned i = 0; i < 2; i++) {
		bool whole = result_read(fds[i], deadline, &results[i]);
		int status =
		    kvx_engine_wait(pids[i], whole ? deadline : kvx_now_ns() + 1000000000ull);

		errors[i] = engine_error(names[i], whole, status, &results[i]);
	}
	if (!errors[0] || !errors[1])
		return errors[0] ? errors[0] : errors[1];
	both = kvx_tool_printf("%s; %s", errors[0], errors[1]);
	free(errors[0]);
	free(errors[1]);
	return both;
}

static void row_judge(struct demo *demo, const struct kvx_demo_run *run, const pid_t pids[2],
		      const int fds[2])
{
	struct kvx_demo_result *results = kvx_tool_alloc(2 * sizeof(*results));
	char *error = row_await(pids, fds, results);
	const struct kvx_demo_result *mover = &results[run->op == KVXFER_WRITE ? 0 : 1];

	if (!error && mover->n_latencies != run->n_requests)
		error =
		    kvx_tool_printf("%u of %u requests moved", mover->n_latencies, run->n_requests);
	if (error) {
		demo->n_failed++;
		kvx_progress_end(&demo->progress);
		kvx_tool_error("%s, %s, %s: %s", run->geometry.title,
			       run->op == KVXFER_WRITE ? "write" : "read",
			       run->two_nodes ? "two nodes" : "same node", error);
	}
	row_report(demo, run, mover, results[0].checked_bytes + results[1].checked_bytes, error);
	free(error);
	free(results);
}

static void row_run(struct demo *demo, struct kvx_demo_run *run)
{
	int pipes[2][2], fds[2];
	pid_t pids[2];

	if (pipe2(pipes[0], O_CLOEXEC) != 0 || pipe2(pipes[1], O_CLOEXEC) != 0 ||
	    kvx_chan_pair(&run->prefill_chan, &run->decode_chan) != 0) {
		kvx_tool_error("pipe: %s", strerror(errno));
		exit(KVX_BENCH_FAILED);
	}
	run->prefill_result = pipes[0][1];
	run->decode_result = pipes[1][1];
	pids[0] = kvx_engine_fork(kvx_demo_prefill, run);
	pids[1] = kvx_engine_fork(kvx_demo_decode, run);
	for (unsigned i = 0; i < 2; i++) {
		close(pipes[i][1]);
		fds[i] = pipes[i][0];
	}
	kvx_chan_fini(&run->prefill_chan);
	kvx_chan_fini(&run->decode_chan);
	row_judge(demo, run, pids, fds);
	close(fds[0]);
	close(fds[1]);
}

static void model_run(struct demo *demo, const struct kvx_geometry *geometry)
{
	uint32_t n_blocks = kvx_geometry_blocks(geometry, demo->options.tokens);

	for (unsigned i = 0; i < ROWS_PER_MODEL; i++) {
		struct kvx_demo_run run = {
		    .geometry = *geometry,
		    .op = i % 2 == 0 ? KVXFER_WRITE : KVXFER_READ,
		    .two_nodes = i >= 2,
		    .prefill_socket = demo->nodes[0].socket,
		    .decode_socket = demo->nodes[i >= 2].socket,
		    .n_requests = (uint32_t)demo->options.requests,
		    .n_blocks = n_blocks,
		    /* A third of the pool belongs to nobody and must stay as it is. */
		    .n_pool_blocks = (uint32_t)demo->options.requests * n_blocks * 3 / 2 + 1,
		    .seed = demo->options.seed + i,
		    .spoil = demo->options.spoil,
		};

		kvx_progress_step(&demo->progress, "%s, %s, %s", geometry->title,
				  run.op == KVXFER_WRITE ? "write streamed layer by layer" : "read",
				  run.two_nodes ? "between two nodes" : "same node");
		row_run(demo, &run);
	}
}

static int demo_models(struct demo *demo)
{
	struct kvx_geometry_options *g = &demo->options.geometry;
	const struct kvx_geometry *model;

	if (strcmp(g->model, "all") != 0 || g->planes || g->block_bytes) {
		demo->n_models = 1;
		return kvx_geometry_choose(g, &demo->models[0]);
	}
	while ((model = kvx_geometry_at(demo->n_models)) && demo->n_models < MAX_MODELS)
		demo->models[demo->n_models++] = *model;
	return 0;
}

static void demo_print(struct demo *demo)
{
	struct json_object *obj;

	kvx_progress_end(&demo->progress);
	if (!demo->options.json) {
		kvx_table_print(demo->table, stdout);
		printf("%s\n", demo->n_failed
				   ? "FAILED"
				   : "Every byte of every request arrived, and no other byte of "
				     "either engine's memory changed.");
		return;
	}
	obj = json_object_new_object();
	json_object_object_add(obj, "machine", kvx_machine_json());
	json_object_object_add(obj, "rows", json_object_get(demo->rows));
	kvx_json_set_bool(obj, "verified", demo->n_failed == 0);
	kvx_json_print(obj, stdout);
	json_object_put(obj);
}

static int demo_parse(struct demo_options *o, int argc, char **argv)
{
	const struct kvx_option options[] = {
	    {"model", KVX_OPT_STR, &o->geometry.model, "NAME", "geometry, or all", 0, 0},
	    {"planes", KVX_OPT_U64, &o->geometry.planes, "N", "own geometry: planes", 1, 4096},
	    {"block-bytes", KVX_OPT_BYTES, &o->geometry.block_bytes, "BYTES",
	     "own geometry: bytes of a block of one plane", 1, 1e9},
	    {"block-tokens", KVX_OPT_U64, &o->geometry.block_tokens, "N",
	     "own geometry: tokens of a block", 1, 65536},
	    {"requests", KVX_OPT_U64, &o->requests, "N", "requests of each row", 1,
	     KVX_DEMO_MAX_REQUESTS},
	    {"tokens", KVX_OPT_U64, &o->tokens, "N", "tokens of each request", 1, 1e6},
	    {"quick", KVX_OPT_FLAG, &o->quick, NULL, "2 requests of 200 tokens in each row", 0, 0},
	    {"seed", KVX_OPT_U64, &o->seed, "N", "of block ids and contents", 0, 0},
	    {"copy-workers", KVX_OPT_U64, &o->copy_workers, "N", "of the daemons; 0: their default",
	     0, 64},
	    {"kvxferd", KVX_OPT_STR, &o->binary, "PATH", "the daemon's binary", 0, 0},
	    {"json", KVX_OPT_FLAG, &o->json, NULL, "print JSON", 0, 0},
	    {"verbose", KVX_OPT_FLAG, &o->verbose, NULL, "show the daemons' logs", 0, 0},
	    {"self-test", KVX_OPT_FLAG, &o->spoil, NULL,
	     "spoil two bytes after each row: the demo must fail", 0, 0},
	    {0},
	};

	int rc = kvx_options_parse(options, "demo", argc, argv);

	if (rc == 0 && o->quick) {
		o->requests = 2;
		o->tokens = 200;
	}
	return rc;
}

int kvx_bench_demo(int argc, char **argv)
{
	struct demo demo = {
	    .options = {.geometry = {.model = "all", .block_tokens = 16},
			.requests = 4,
			.tokens = 1000,
			.seed = 1},
	};
	int rc = demo_parse(&demo.options, argc, argv);

	if (rc == 0)
		rc = demo_models(&demo);
	if (rc != 0)
		return rc < 0 ? KVX_BENCH_OK : rc;
	struct kvx_daemon_conf conf = {.binary = demo.options.binary,
				       .copy_workers = demo.options.copy_workers,
				       .verbose = demo.options.verbose};

	rc = kvx_daemon_start(&conf, "node-a", &demo.nodes[0]);
	if (rc == KVX_BENCH_OK)
		rc = kvx_daemon_start(&conf, "node-b", &demo.nodes[1]);
	if (rc != KVX_BENCH_OK)
		return rc;
	demo.table = kvx_table_create(columns, sizeof(columns) / sizeof(columns[0]));
	demo.rows = json_object_new_array();
	demo.progress.total = demo.n_models * ROWS_PER_MODEL;
	for (unsigned i = 0; i < demo.n_models; i++)
		model_run(&demo, &demo.models[i]);
	demo_print(&demo);
	kvx_daemon_stop(&demo.nodes[0]);
	kvx_daemon_stop(&demo.nodes[1]);
	kvx_table_destroy(demo.table);
	json_object_put(demo.rows);
	return demo.n_failed ? KVX_BENCH_FAILED : KVX_BENCH_OK;
}
