/* kvxfer-bench submit: how long kvxfer_transfer_submit() keeps the engine's thread, for a block
 * list over all planes of a model and for explicit ops; beside it the CPU time that the whole
 * transfer costs that thread. Same node. */
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "pair.h"

struct submit {
	struct kvx_node_options nodes;
	struct kvx_geometry_options geometry_options;
	struct kvx_geometry geometry;
	uint64_t tokens, ops, runs, seed;
	bool json;
	struct kvx_pair pair;
	uint32_t n_blocks, n_pool_blocks;
	struct kvx_random random;
};
struct submit_row {
	const char *what;
	uint64_t n_ops;
	struct kvx_samples submit_ns, cpu_ns, total_ns;
};

static int pair_open(struct submit *submit, const struct kvx_nodes *nodes)
{
	uint32_t n_planes = kvx_geometry_planes(&submit->geometry);
	struct kvxfer_plane *planes = kvx_tool_alloc(n_planes * sizeof(*planes));
	struct kvx_pair_conf conf = {
	    .mover_socket = nodes->daemon[0].socket,
	    .target_socket = nodes->daemon[0].socket,
	    .planes = planes,
	    .n_planes = n_planes,
	};
	int rc;

	submit->n_blocks = kvx_geometry_blocks(&submit->geometry, submit->tokens);
	submit->n_pool_blocks = 2 * submit->n_blocks;
	conf.region_bytes = kvxfer_layout_mla(0, n_planes, submit->n_pool_blocks,
					      submit->geometry.block_bytes, planes);
	rc = kvx_pair_open(&submit->pair, &conf);
	free(planes);
	return rc;
}

static int row_add(struct submit *submit, struct kvxfer_transfer *transfer, struct submit_row *row,
		   bool counted)
{
	struct kvx_pair_times times;

	if (kvx_pair_run(&submit->pair, transfer, &times) != 0)
		return KVX_BENCH_FAILED;
	if (counted) {
		kvx_samples_add(&row->submit_ns, (double)times.submit_ns);
		kvx_samples_add(&row->cpu_ns, (double)times.cpu_ns);
		kvx_samples_add(&row->total_ns, (double)times.total_ns);
	}
	return KVX_BENCH_OK;
}

static int blocks_run(struct submit *submit, struct submit_row *row)
{
	int rc = KVX_BENCH_OK;

	for (uint64_t r = 0; r < submit->runs + 3 && rc == KVX_BENCH_OK; r++) {
		uint32_t *local = kvx_random_order(&submit->random, submit->n_pool_blocks);
		uint32_t *remote = kvx_random_order(&submit->random, submit->n_pool_blocks);
		struct kvxfer_blocks blocks = {
		    .n_planes = kvx_geometry_planes(&submit->geometry),
		    .n_blocks = submit->n_blocks,
		    .local_blocks = local,
		    .remote_blocks = remote,
		};
		struct kvxfer_transfer transfer = {.op = KVXFER_WRITE, .blocks = &blocks};

		rc = row_add(submit, &transfer, row, r >= 3);
		free(local);
		free(remote);
	}
	row->what = "block list";
	row->n_ops = (uint64_t)submit->n_blocks * kvx_geometry_planes(&submit->geometry);
	return rc;
}

/* Explicit ops of one block each, over the whole region: what an engine without layouts would send.
 */
static int ops_run(struct submit *submit, struct submit_row *row)
{
	uint64_t len = submit->geometry.block_bytes;
	uint32_t n_slots = (uint32_t)(kvxfer_region_bytes(submit->pair.region) / len);
	uint32_t n = submit->ops < n_slots ? (uint32_t)submit->ops : n_slots;
	uint64_t *offsets[2] = {kvx_tool_alloc(n * sizeof(uint64_t)),
				kvx_tool_alloc(n * sizeof(uint64_t))};
	int rc = KVX_BENCH_OK;

	for (uint64_t r = 0; r < submit->runs + 3 && rc == KVX_BENCH_OK; r++) {
		struct kvxfer_ops ops = {.n_ops = n,
					 .local_offsets = offsets[0],
					 .remote_offsets = offsets[1],
					 .len = len};
		struct kvxfer_transfer transfer = {.op = KVXFER_WRITE, .ops = &ops};

		for (unsigned side = 0; side < 2; side++) {
			uint32_t *order = kvx_random_order(&submit->random, n_slots);

			for (uint32_t i = 0; i < n; i++)
				offsets[side][i] = order[i] * len;
			free(order);
		}
		rc = row_add(submit, &transfer, row, r >= 3);
	}
	row->what = "explicit ops";
	row->n_ops = n;
	free(offsets[0]);
	free(offsets[1]);
	return rc;
}

static void rows_print(const struct submit *submit, struct submit_row *rows, unsigned n)
{
	static const struct kvx_column columns[] = {
	    {"REQUEST", KVX_LEFT, KVX_KEEP},     {"OPS", KVX_RIGHT, KVX_KEEP},
	    {"SUBMIT P50", KVX_RIGHT, KVX_KEEP}, {"MIN", KVX_RIGHT, KVX_KEEP},
	    {"P99", KVX_RIGHT, KVX_KEEP},        {"PER OP", KVX_RIGHT, KVX_KEEP},
	    {"THREAD CPU", KVX_RIGHT, KVX_KEEP}, {"TO THE EVENT", KVX_RIGHT, KVX_KEEP},
	};
	struct kvx_table *table = kvx_table_create(columns, 8);
	char unit[KVX_UNIT_BYTES];

	for (unsigned i = 0; i < n; i++) {
		double p50 = kvx_samples_median(&rows[i].submit_ns);

		kvx_table_cell(table, "%s", rows[i].what);
		kvx_table_cell(table, "%s", kvx_unit_count(unit, rows[i].n_ops));
		kvx_table_cell(table, "%s", kvx_unit_ns(unit, (uint64_t)p50));
		kvx_table_cell(table, "%s",
			       kvx_unit_ns(unit, (uint64_t)kvx_samples_at(&rows[i].submit_ns, 0)));
		kvx_table_cell(
		    table, "%s",
		    kvx_unit_ns(unit, (uint64_t)kvx_samples_at(&rows[i].submit_ns, 0.99)));
		kvx_table_cell(table, "%.2f ns", p50 / (double)rows[i].n_ops);
		kvx_table_cell(table, "%s",
			       kvx_unit_ns(unit, (uint64_t)kvx_samples_median(&rows[i].cpu_ns)));
		kvx_table_cell(table, "%s",
			       kvx_unit_ns(unit, (uint64_t)kvx_samples_median(&rows[i].total_ns)));
	}
	kvx_machine_print(stdout);
	printf(
	    "%s, %llu tokens; medians of %llu runs; thread CPU: of the engine's thread, submit to "
	    "event\n\n",
	    submit->geometry.title, (unsigned long long)submit->tokens,
	    (unsigned long long)submit->runs);
	kvx_table_print(table, stdout);
	kvx_table_destroy(table);
}

static void rows_print_json(const struct submit *submit, struct submit_row *rows, unsigned n)
{
	struct json_object *obj = json_object_new_object(), *list = json_object_new_array();

	for (unsigned i = 0; i < n; i++) {
		struct json_object *row = json_object_new_object();

		kvx_json_set_str(row, "request", rows[i].what);
		kvx_json_set_u64(row, "ops", rows[i].n_ops);
		json_object_object_add(row, "submit_ns", kvx_samples_json(&rows[i].submit_ns));
		kvx_json_set_double(row, "submit_ns_per_op",
				    kvx_samples_median(&rows[i].submit_ns) / (double)rows[i].n_ops);
		json_object_object_add(row, "thread_cpu_ns", kvx_samples_json(&rows[i].cpu_ns));
		json_object_object_add(row, "total_ns", kvx_samples_json(&rows[i].total_ns));
		json_object_array_add(list, row);
	}
	json_object_object_add(obj, "machine", kvx_machine_json());
	kvx_json_set_str(obj, "model", submit->geometry.name);
	json_object_object_add(obj, "rows", list);
	kvx_json_print(obj, stdout);
	json_object_put(obj);
}

static int submit_run(struct submit *submit)
{
	struct submit_row rows[2] = {0};
	struct kvx_nodes nodes;
	int rc = kvx_nodes_start(&nodes, &submit->nodes, 1);

	if (rc != KVX_BENCH_OK)
		return rc;
	rc = pair_open(submit, &nodes);
	if (rc == KVX_BENCH_OK) {
		rc = blocks_run(submit, &rows[0]);
		if (rc == KVX_BENCH_OK)
			rc = ops_run(submit, &rows[1]);
		kvx_pair_close(&submit->pair);
	}
	kvx_nodes_stop(&nodes);
	if (rc == KVX_BENCH_OK && submit->json)
		rows_print_json(submit, rows, 2);
	else if (rc == KVX_BENCH_OK)
		rows_print(submit, rows, 2);
	for (unsigned i = 0; i < 2; i++) {
		kvx_samples_fini(&rows[i].submit_ns);
		kvx_samples_fini(&rows[i].cpu_ns);
		kvx_samples_fini(&rows[i].total_ns);
	}
	return rc;
}

int kvx_bench_submit(int argc, char **argv)
{
	struct submit submit = {
	    .geometry_options = {.model = "qwen3-235b-tp4", .block_tokens = 16},
	    .tokens = 2000,
	    .ops = 16384,
	    .runs = 50,
	    .seed = 1,
	};
	const struct kvx_option options[] = {
	    {"model", KVX_OPT_STR, &submit.geometry_options.model, "NAME", "geometry", 0, 0},
	    {"planes", KVX_OPT_U64, &submit.geometry_options.planes, "N", "own geometry: planes", 1,
	     4096},
	    {"block-bytes", KVX_OPT_BYTES, &submit.geometry_options.block_bytes, "BYTES",
	     "own geometry: bytes of a block of one plane", 1, 1e9},
	    {"block-tokens", KVX_OPT_U64, &submit.geometry_options.block_tokens, "N",
	     "own geometry: tokens of a block", 1, 65536},
	    {"tokens", KVX_OPT_U64, &submit.tokens, "N", "tokens of the block list", 1, 1e6},
	    {"explicit-ops", KVX_OPT_U64, &submit.ops, "N", "explicit ops of one request", 1,
	     262144},
	    {"runs", KVX_OPT_U64, &submit.runs, "N", "runs of each", 1, 100000},
	    {"seed", KVX_OPT_U64, &submit.seed, "N", "of the block ids", 0, 0},
	    {"socket", KVX_OPT_STR, &submit.nodes.socket, "PATH", "use this running daemon", 0, 0},
	    {"kvxferd", KVX_OPT_STR, &submit.nodes.conf.binary, "PATH", "the daemon's binary", 0,
	     0},
	    {"json", KVX_OPT_FLAG, &submit.json, NULL, "print JSON", 0, 0},
	    {0},
	};
	int rc = kvx_options_parse(options, "submit", argc, argv);

	if (rc == 0)
		rc = kvx_geometry_choose(&submit.geometry_options, &submit.geometry);
	if (rc != 0)
		return rc < 0 ? KVX_BENCH_OK : rc;
	submit.random.state = submit.seed;
	return submit_run(&submit);
}
