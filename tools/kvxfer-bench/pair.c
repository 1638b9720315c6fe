/* The mover and the target of a measurement, and the daemons they use. Main thread. */
#include "pair.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TIMEOUT_NS 60000000000ull

static int client_open(const char *socket, const char *name, struct kvxfer_client **out_client)
{
	struct kvxfer_client_options options = {
	    .struct_bytes = sizeof(options),
	    .socket_path = socket,
	    .name = name,
	    .timeout_ms = 30000,
	};

	if (kvxfer_client_open(&options, out_client) == 0)
		return KVX_BENCH_OK;
	kvx_tool_error("%s", kvxfer_open_error());
	return KVX_BENCH_NO_DAEMON;
}

static int region_open(struct kvxfer_client *client, const struct kvx_pair_conf *conf,
		       struct kvxfer_region **out_region)
{
	struct kvxfer_layout layout = {.planes = conf->planes, .n_planes = conf->n_planes};
	struct kvxfer_region_options options = {
	    .struct_bytes = sizeof(options),
	    .name = "bench",
	    .access = KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE,
	    .layout = conf->n_planes ? &layout : NULL,
	};

	if (kvxfer_region_alloc(client, conf->region_bytes, &options, out_region) == 0)
		return KVX_BENCH_OK;
	kvx_tool_error("region of %llu bytes: %s", (unsigned long long)conf->region_bytes,
		       kvxfer_client_error(client));
	return KVX_BENCH_FAILED;
}

static int import_open(struct kvx_pair *pair)
{
	uint8_t descriptor[KVXFER_DESCRIPTOR_MAX];
	int n = kvxfer_region_export(pair->target_region, descriptor, sizeof(descriptor));

	if (n > 0 &&
	    kvxfer_import_open(pair->mover, descriptor, (size_t)n, NULL, &pair->import_) == 0)
		return KVX_BENCH_OK;
	kvx_tool_error("import: %s", kvxfer_client_error(n > 0 ? pair->mover : pair->target));
	return KVX_BENCH_FAILED;
}

int kvx_pair_open(struct kvx_pair *pair, const struct kvx_pair_conf *conf)
{
	int rc;

	memset(pair, 0, sizeof(*pair));
	rc = client_open(conf->mover_socket, "bench mover", &pair->mover);
	if (rc == KVX_BENCH_OK)
		rc = client_open(conf->target_socket, "bench target", &pair->target);
	if (rc == KVX_BENCH_OK)
		rc = region_open(pair->mover, conf, &pair->region);
	if (rc == KVX_BENCH_OK)
		rc = region_open(pair->target, conf, &pair->target_region);
	if (rc == KVX_BENCH_OK)
		rc = import_open(pair);
	if (rc != KVX_BENCH_OK) {
		kvx_pair_close(pair);
		return rc;
	}
	pair->data = kvxfer_region_data(pair->region);
	pair->target_data = kvxfer_region_data(pair->target_region);
	kvx_pattern_fill(pair->data, 0, conf->region_bytes, 1);
	kvx_pattern_fill(pair->target_data, 0, conf->region_bytes, 2);
	return KVX_BENCH_OK;
}

void kvx_pair_close(struct kvx_pair *pair)
{
	kvxfer_client_close(pair->mover);
	kvxfer_client_close(pair->target);
	memset(pair, 0, sizeof(*pair));
}

static void on_mover(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct kvx_pair *pair = arg;

	if (event->type == KVXFER_EVENT_TERMINAL) {
		pair->ended_ns = kvx_now_ns();
		pair->status = event->status;
		pair->bytes = event->bytes;
		snprintf(pair->transport, sizeof(pair->transport), "%s", event->transport);
	} else {
		pair->ended_ns = kvx_now_ns();
		pair->status = event->status ? event->status : KVXFER_INTERNAL;
	}
	snprintf(pair->text, sizeof(pair->text), "%s", event->text);
}

static void on_target(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct kvx_pair *pair = arg;

	if (event->type == KVXFER_EVENT_ARRIVAL)
		pair->n_arrivals++;
}

static uint64_t thread_cpu_ns(void)
{
	struct timespec used;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	return (uint64_t)used.tv_sec * 1000000000ull + (uint64_t)used.tv_nsec;
}

int kvx_pair_run(struct kvx_pair *pair, struct kvxfer_transfer *transfer,
		 struct kvx_pair_times *out_times)
{
	uint64_t cpu = thread_cpu_ns(), start, submitted, want = pair->n_arrivals + 1;

	transfer->struct_bytes = sizeof(*transfer);
	transfer->region = pair->region;
	transfer->import_ = pair->import_;
	pair->ended_ns = 0;
	start = kvx_now_ns();
	if (kvxfer_transfer_submit(pair->mover, transfer, NULL) != 0) {
		kvx_tool_error("submit: %s", kvxfer_client_error(pair->mover));
		return -1;
	}
	submitted = kvx_now_ns();
	while (pair->ended_ns == 0) {
		if (kvxfer_client_wait(pair->mover, 1000, on_mover, pair) < 0 ||
		    kvx_now_ns() > start + TIMEOUT_NS) {
			kvx_tool_error("no terminal event: %s", kvxfer_client_error(pair->mover));
			return -1;
		}
	}
	cpu = thread_cpu_ns() - cpu;
	if (pair->status != KVXFER_OK) {
		kvx_tool_error("transfer: %s: %s", kvxfer_status_name(pair->status), pair->text);
		return -1;
	}
	while (pair->n_arrivals < want) {
		if (kvxfer_client_wait(pair->target, 1000, on_target, pair) < 0 ||
		    kvx_now_ns() > start + TIMEOUT_NS) {
			kvx_tool_error("no arrival at the target: %s",
				       kvxfer_client_error(pair->target));
			return -1;
		}
	}
	*out_times = (struct kvx_pair_times){
	    .submit_ns = submitted - start, .total_ns = pair->ended_ns - start, .cpu_ns = cpu};
	return 0;
}

/* Pid of a daemon that was there before, from its own status. */
static pid_t daemon_pid(const char *socket)
{
	struct kvxfer_client *client;
	struct json_object *obj;
	char *text = NULL;
	pid_t pid = 0;

	if (client_open(socket, "kvxfer-bench", &client) != KVX_BENCH_OK)
		return -1;
	if (kvxfer_client_query(client, "status", NULL, &text) == 0) {
		obj = json_tokener_parse(text);
		pid = (pid_t)kvx_json_u64(obj, "pid");
		json_object_put(obj);
	}
	free(text);
	kvxfer_client_close(client);
	return pid;
}

int kvx_nodes_start(struct kvx_nodes *nodes, const struct kvx_node_options *options, unsigned n)
{
	static const char *const names[] = {"node-a", "node-b"};
	const char *sockets[] = {options->socket, options->peer_socket};
	int rc = KVX_BENCH_OK;

	memset(nodes, 0, sizeof(*nodes));
	nodes->n = n;
	if (options->socket && n == 2 && !options->peer_socket) {
		kvx_tool_error("two nodes need --socket and --peer-socket");
		return KVX_BENCH_USAGE;
	}
	for (unsigned i = 0; i < n && rc == KVX_BENCH_OK; i++) {
		if (options->socket) {
			snprintf(nodes->daemon[i].socket, sizeof(nodes->daemon[i].socket), "%s",
				 sockets[i]);
			nodes->pids[i] = daemon_pid(sockets[i]);
			rc = nodes->pids[i] < 0 ? KVX_BENCH_NO_DAEMON : KVX_BENCH_OK;
		} else {
			rc = kvx_daemon_start(&options->conf, names[i], &nodes->daemon[i]);
			nodes->pids[i] = nodes->daemon[i].pid;
		}
	}
	if (rc != KVX_BENCH_OK)
		kvx_nodes_stop(nodes);
	return rc;
}

void kvx_nodes_stop(struct kvx_nodes *nodes)
{
	for (unsigned i = 0; i < 2; i++)
		kvx_daemon_stop(&nodes->daemon[i]);
}

uint64_t kvx_nodes_cpu_ns(const struct kvx_nodes *nodes)
{
	uint64_t sum = kvx_process_cpu_ns(getpid());

	for (unsigned i = 0; i < nodes->n; i++)
		if (nodes->pids[i] > 0)
			sum += kvx_process_cpu_ns(nodes->pids[i]);
	return sum;
}
