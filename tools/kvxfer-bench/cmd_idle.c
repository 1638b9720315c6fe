/* kvxfer-bench idle: what a daemon costs when nothing moves: wake-ups, CPU and memory with many
 * connected clients, alone and with a peer connected (heartbeats). */
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pair.h"

struct idle {
	struct kvx_node_options nodes;
	uint64_t clients;
	double seconds;
	bool json;
	struct kvxfer_client **open;
	struct json_object *rows;
	struct kvx_table *table;
};

static const struct kvx_column columns[] = {
    {"DAEMON", KVX_LEFT, KVX_KEEP},      {"CLIENTS", KVX_RIGHT, KVX_KEEP},
    {"WAKE-UPS/S", KVX_RIGHT, KVX_KEEP}, {"CPU", KVX_RIGHT, KVX_KEEP},
    {"RSS", KVX_RIGHT, KVX_KEEP},        {"WITHOUT REGIONS", KVX_RIGHT, KVX_KEEP},
    {"THREADS", KVX_RIGHT, KVX_KEEP},
};

static void pause_seconds(double seconds)
{
	struct timespec pause = {.tv_sec = (time_t)seconds,
				 .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};

	while (nanosleep(&pause, &pause) != 0)
		;
}

static int clients_open(struct idle *idle, const char *socket)
{
	struct kvxfer_client_options options = {
	    .struct_bytes = sizeof(options),
	    .socket_path = socket,
	    .name = "idle engine",
	    .timeout_ms = 10000,
	};

	for (uint64_t i = 0; i < idle->clients; i++) {
		if (kvxfer_client_open(&options, &idle->open[i]) != 0) {
			kvx_tool_error("client %llu: %s", (unsigned long long)i,
				       kvxfer_open_error());
			return KVX_BENCH_NO_DAEMON;
		}
	}
	return KVX_BENCH_OK;
}

static void idle_measure(struct idle *idle, pid_t pid, const char *what, uint64_t n_clients)
{
	uint64_t sleeps, cpu, start, rss, shmem;
	struct json_object *row = json_object_new_object();
	char unit[KVX_UNIT_BYTES];

	/* Let the spin window of what happened before pass. */
	pause_seconds(1);
	sleeps = kvx_process_sleeps(pid);
	cpu = kvx_process_cpu_ns(pid);
	start = kvx_now_ns();
	pause_seconds(idle->seconds);
	double took = (double)(kvx_now_ns() - start) / 1e9;
	double wakeups = (double)(kvx_process_sleeps(pid) - sleeps) / took;
	double used = (double)(kvx_process_cpu_ns(pid) - cpu) / 1e9 / took;

	rss = kvx_process_status(pid, "VmRSS") << 10;
	shmem = kvx_process_status(pid, "RssShmem") << 10;
	kvx_table_cell(idle->table, "%s", what);
	kvx_table_cell(idle->table, "%llu", (unsigned long long)n_clients);
	kvx_table_cell(idle->table, "%.2f", wakeups);
	kvx_table_cell(idle->table, "%.3f %%", 100 * used);
	kvx_table_cell(idle->table, "%s", kvx_unit_bytes(unit, rss));
	kvx_table_cell(idle->table, "%s", kvx_unit_bytes(unit, rss - shmem));
	kvx_table_cell(idle->table, "%llu", (unsigned long long)kvx_process_status(pid, "Threads"));
	kvx_json_set_str(row, "daemon", what);
	kvx_json_set_u64(row, "clients", n_clients);
	kvx_json_set_double(row, "seconds", took);
	kvx_json_set_double(row, "wakeups_per_second", wakeups);
	kvx_json_set_double(row, "cpu_share", used);
	kvx_json_set_u64(row, "rss_bytes", rss);
	kvx_json_set_u64(row, "rss_without_regions_bytes", rss - shmem);
	kvx_json_set_u64(row, "threads", kvx_process_status(pid, "Threads"));
	json_object_array_add(idle->rows, row);
}

/* Makes the two daemons peers: an import over the node's border connects them. */
static int with_peer(struct idle *idle, struct kvx_nodes *nodes)
{
	struct kvx_pair_conf conf = {
	    .mover_socket = nodes->daemon[0].socket,
	    .target_socket = nodes->daemon[1].socket,
	    .region_bytes = 1 << 20,
	};
	struct kvx_pair pair;
	int rc = kvx_pair_open(&pair, &conf);

	if (rc != KVX_BENCH_OK)
		return rc;
	idle_measure(idle, nodes->pids[0], "with a peer connected", idle->clients + 1);
	kvx_pair_close(&pair);
	return KVX_BENCH_OK;
}

static int idle_run(struct idle *idle, struct kvx_nodes *nodes)
{
	int rc;

	if (nodes->pids[0] <= 0) {
		kvx_tool_error("the daemon does not tell its pid");
		return KVX_BENCH_FAILED;
	}
	idle_measure(idle, nodes->pids[0], "alone", 0);
	rc = clients_open(idle, nodes->daemon[0].socket);
	if (rc == KVX_BENCH_OK)
		idle_measure(idle, nodes->pids[0], "with idle clients", idle->clients);
	if (rc == KVX_BENCH_OK && nodes->n == 2)
		rc = with_peer(idle, nodes);
	for (uint64_t i = 0; i < idle->clients; i++)
		kvxfer_client_close(idle->open[i]);
	return rc;
}

static void idle_print(struct idle *idle)
{
	if (idle->json) {
		struct json_object *obj = json_object_new_object();

		json_object_object_add(obj, "machine", kvx_machine_json());
		json_object_object_add(obj, "rows", json_object_get(idle->rows));
		kvx_json_print(obj, stdout);
		json_object_put(obj);
	} else {
		kvx_table_print(idle->table, stdout);
		printf("wake-ups: times any thread went to sleep\n");
	}
}

int kvx_bench_idle(int argc, char **argv)
{
	struct idle idle = {.clients = 100, .seconds = 5};
	const struct kvx_option options[] = {
	    {"clients", KVX_OPT_U64, &idle.clients, "N", "idle clients", 1, 100000},
	    {"seconds", KVX_OPT_DOUBLE, &idle.seconds, "SEC", "time of each measurement", 0.1,
	     86400},
	    {"socket", KVX_OPT_STR, &idle.nodes.socket, "PATH", "use this running daemon", 0, 0},
	    {"peer-socket", KVX_OPT_STR, &idle.nodes.peer_socket, "PATH",
	     "and this one as the other node", 0, 0},
	    {"kvxferd", KVX_OPT_STR, &idle.nodes.conf.binary, "PATH", "the daemon's binary", 0, 0},
	    {"json", KVX_OPT_FLAG, &idle.json, NULL, "print JSON", 0, 0},
	    {0},
	};
	struct kvx_nodes nodes;
	char limits[64];
	int rc = kvx_options_parse(options, "idle", argc, argv);

	if (rc != 0)
		return rc < 0 ? KVX_BENCH_OK : rc;
	snprintf(limits, sizeof(limits), "[limits]\nclients = %llu\n",
		 (unsigned long long)idle.clients + 16);
	idle.nodes.conf.extra = limits;
	rc = kvx_nodes_start(&nodes, &idle.nodes,
			     idle.nodes.socket && !idle.nodes.peer_socket ? 1 : 2);
	if (rc != KVX_BENCH_OK)
		return rc;
	idle.open = kvx_tool_alloc(idle.clients * sizeof(struct kvxfer_client *));
	idle.rows = json_object_new_array();
	idle.table = kvx_table_create(columns, sizeof(columns) / sizeof(columns[0]));
	rc = idle_run(&idle, &nodes);
	if (rc == KVX_BENCH_OK)
		idle_print(&idle);
	kvx_nodes_stop(&nodes);
	kvx_table_destroy(idle.table);
	json_object_put(idle.rows);
	free(idle.open);
	return rc;
}
