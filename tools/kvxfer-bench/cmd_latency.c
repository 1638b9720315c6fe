/* kvxfer-bench latency: one block, from submit to the terminal event through the socket, in turns
 * with blocking Unix-socket round trips: the ratio of the two is what kvxfer adds. Same node or
 * two. */
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "limit.h"
#include "pair.h"

#define WARMUP 200u

struct latency {
	struct kvx_node_options nodes;
	uint64_t block_bytes, runs, region_bytes, seed;
	bool two_nodes, json;
};
struct latency_result {
	struct kvx_samples transfer_ns, ping_ns;
	char transport[32];
};

static int latency_one(struct kvx_pair *pair, struct kvx_scatter *scatter, uint64_t *out_ns)
{
	struct kvx_blocks_view view = kvx_scatter_next(scatter, 1);
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 1, .local_blocks = view.src, .remote_blocks = view.dst};
	struct kvxfer_transfer transfer = {.op = KVXFER_WRITE, .blocks = &blocks};
	struct kvx_pair_times times;

	if (kvx_pair_run(pair, &transfer, &times) != 0)
		return KVX_BENCH_FAILED;
	if (kvx_blocks_differ(&view) != 0) {
		kvx_tool_error("the block did not arrive as it was sent");
		return KVX_BENCH_FAILED;
	}
	*out_ns = times.total_ns;
	return KVX_BENCH_OK;
}

static int latency_measure(const struct latency *latency, struct kvx_pair *pair,
			   struct latency_result *result)
{
	struct kvx_scatter scatter;
	struct kvx_ping ping;
	int rc = KVX_BENCH_OK;

	if (kvx_ping_start(&ping, KVX_PING_UNIX) != 0) {
		kvx_tool_error("no socket for the round trips");
		return KVX_BENCH_FAILED;
	}
	kvx_scatter_init(&scatter, pair->data, pair->target_data, latency->region_bytes,
			 latency->block_bytes, latency->seed);
	for (uint64_t i = 0; i < latency->runs + WARMUP && rc == KVX_BENCH_OK; i++) {
		struct kvx_samples unused = {0};
		uint64_t ns;

		rc = latency_one(pair, &scatter, &ns);
		kvx_ping_run(&ping, 1, i < WARMUP ? &unused : &result->ping_ns);
		if (rc == KVX_BENCH_OK && i >= WARMUP)
			kvx_samples_add(&result->transfer_ns, (double)ns);
		kvx_samples_fini(&unused);
	}
	snprintf(result->transport, sizeof(result->transport), "%s", pair->transport);
	kvx_scatter_fini(&scatter);
	kvx_ping_stop(&ping);
	return rc;
}

static void latency_print(const struct latency *latency, struct latency_result *result)
{
	double p50 = kvx_samples_median(&result->transfer_ns);
	double ping = kvx_samples_median(&result->ping_ns);
	char a[KVX_UNIT_BYTES], b[KVX_UNIT_BYTES], size[KVX_UNIT_BYTES];

	if (latency->json) {
		struct json_object *obj = json_object_new_object();

		json_object_object_add(obj, "machine", kvx_machine_json());
		kvx_json_set_u64(obj, "block_bytes", latency->block_bytes);
		kvx_json_set_str(obj, "transport", result->transport);
		json_object_object_add(obj, "transfer_ns", kvx_samples_json(&result->transfer_ns));
		json_object_object_add(obj, "unix_socket_ns", kvx_samples_json(&result->ping_ns));
		kvx_json_set_double(obj, "ratio", ping > 0 ? p50 / ping : 0);
		kvx_json_print(obj, stdout);
		json_object_put(obj);
		return;
	}
	kvx_machine_print(stdout);
	printf("%s by %s: p50 %s, p99 %s\n", kvx_unit_bytes(size, latency->block_bytes),
	       result->transport, kvx_unit_ns(a, (uint64_t)p50),
	       kvx_unit_ns(b, (uint64_t)kvx_samples_at(&result->transfer_ns, 0.99)));
	printf("Unix-socket round trip: p50 %s, p99 %s\n", kvx_unit_ns(a, (uint64_t)ping),
	       kvx_unit_ns(b, (uint64_t)kvx_samples_at(&result->ping_ns, 0.99)));
	printf("ratio of the p50: %.2f\n", ping > 0 ? p50 / ping : 0);
}

static int latency_run(struct latency *latency)
{
	struct kvxfer_plane plane = {.block_bytes = latency->block_bytes,
				     .block_stride = latency->block_bytes};
	struct latency_result result = {0};
	struct kvx_nodes nodes;
	struct kvx_pair pair;
	int rc = kvx_nodes_start(&nodes, &latency->nodes, latency->two_nodes ? 2 : 1);

	if (rc != KVX_BENCH_OK)
		return rc;
	struct kvx_pair_conf conf = {
	    .mover_socket = nodes.daemon[0].socket,
	    .target_socket = nodes.daemon[latency->two_nodes].socket,
	    .region_bytes = latency->region_bytes,
	    .planes = &plane,
	    .n_planes = 1,
	};

	rc = kvx_pair_open(&pair, &conf);
	if (rc == KVX_BENCH_OK) {
		rc = latency_measure(latency, &pair, &result);
		kvx_pair_close(&pair);
	}
	kvx_nodes_stop(&nodes);
	if (rc == KVX_BENCH_OK)
		latency_print(latency, &result);
	kvx_samples_fini(&result.transfer_ns);
	kvx_samples_fini(&result.ping_ns);
	return rc;
}

int kvx_bench_latency(int argc, char **argv)
{
	struct latency latency = {
	    .block_bytes = 4096, .runs = 5000, .region_bytes = 256ull << 20, .seed = 1};
	const struct kvx_option options[] = {
	    {"block-bytes", KVX_OPT_BYTES, &latency.block_bytes, "BYTES", "size of the block", 1,
	     1e9},
	    {"two-nodes", KVX_OPT_FLAG, &latency.two_nodes, NULL, "between two nodes", 0, 0},
	    {"region", KVX_OPT_BYTES, &latency.region_bytes, "BYTES", "size of each region", 4096,
	     1e13},
	    {"runs", KVX_OPT_U64, &latency.runs, "N", "transfers", 1, 1e7},
	    {"seed", KVX_OPT_U64, &latency.seed, "N", "of the block ids", 0, 0},
	    {"socket", KVX_OPT_STR, &latency.nodes.socket, "PATH", "use this running daemon", 0, 0},
	    {"peer-socket", KVX_OPT_STR, &latency.nodes.peer_socket, "PATH",
	     "and this one as the other node", 0, 0},
	    {"kvxferd", KVX_OPT_STR, &latency.nodes.conf.binary, "PATH", "the daemon's binary", 0,
	     0},
	    {"json", KVX_OPT_FLAG, &latency.json, NULL, "print JSON", 0, 0},
	    {0},
	};
	int rc = kvx_options_parse(options, "latency", argc, argv);

	if (rc != 0)
		return rc < 0 ? KVX_BENCH_OK : rc;
	if (latency.block_bytes > latency.region_bytes) {
		kvx_tool_error("the block is larger than the region: use --region");
		return KVX_BENCH_USAGE;
	}
	return latency_run(&latency);
}
