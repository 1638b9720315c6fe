/* The two engines of the demo. WRITE: decode names its free blocks, prefill streams the request
 * into them layer by layer, decode checks every byte when the arrival comes and releases. READ:
 * prefill names the blocks that hold the request, decode pulls, checks and releases. Each in its
 * own process. */
#include "demo.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool have_terminal(const struct kvx_demo_engine *engine)
{
	return engine->n_terminal > 0;
}

static bool have_blocks(const struct kvx_demo_engine *engine)
{
	return engine->n_remote_blocks == engine->run->n_blocks;
}

/* One request at a time: what is waited for is that of the request under way. */
static bool have_arrival(const struct kvx_demo_engine *engine)
{
	return engine->arrived[engine->result->n_latencies];
}

static bool have_release(const struct kvx_demo_engine *engine)
{
	return engine->released[engine->result->n_latencies - 1];
}

static bool have_release_and_arrival(const struct kvx_demo_engine *engine)
{
	uint32_t request = engine->result->n_latencies;

	return engine->released[request] && engine->arrived[request];
}

static int take_blocks(struct kvx_demo_engine *engine, uint32_t request)
{
	if (kvx_demo_wait(engine, have_blocks, "blocks of the other engine") != 0)
		return -1;
	if (engine->remote_request != request)
		return kvx_demo_fail(engine, "blocks of request %u came instead of %u",
				     engine->remote_request, request);
	engine->n_remote_blocks = 0;
	return 0;
}

static int stream_layers(struct kvx_demo_engine *engine, uint32_t request, uint64_t transfer)
{
	const struct kvx_geometry *geometry = &engine->run->geometry;
	uint64_t payload = request;

	for (uint32_t layer = 0; layer < geometry->n_layers; layer++) {
		struct kvxfer_blocks blocks = {
		    .local_plane = layer * geometry->planes_per_layer,
		    .remote_plane = layer * geometry->planes_per_layer,
		    .n_planes = geometry->planes_per_layer,
		    .n_blocks = engine->run->n_blocks,
		    .local_blocks = engine->order + request * engine->run->n_blocks,
		    .remote_blocks = engine->remote_blocks,
		};

		if (kvxfer_transfer_append(engine->client, transfer, &blocks, NULL) != 0)
			return kvx_demo_fail(engine, "append of layer %u: %s", layer,
					     kvxfer_client_error(engine->client));
	}
	if (kvxfer_transfer_seal(engine->client, transfer, &payload, sizeof(payload)) != 0)
		return kvx_demo_fail(engine, "seal: %s", kvxfer_client_error(engine->client));
	return 0;
}

/* Checks the terminal event of a request and keeps its numbers. */
static int take_terminal(struct kvx_demo_engine *engine, uint32_t request, uint64_t start_ns)
{
	struct kvx_demo_result *result = engine->result;
	uint64_t want = engine->run->n_blocks * kvx_geometry_block_total(&engine->run->geometry);
	uint64_t end_ns;

	if (kvx_demo_wait(engine, have_terminal, "terminal event") != 0)
		return -1;
	end_ns = kvx_now_ns();
	engine->n_terminal = 0;
	if (engine->last_terminal.status != KVXFER_OK)
		return kvx_demo_fail(engine, "request %u: %s: %s", request,
				     kvxfer_status_name(engine->last_terminal.status),
				     engine->last_text);
	if (engine->last_terminal.bytes != want || engine->last_terminal.tag != request)
		return kvx_demo_fail(engine, "request %u ended with %llu bytes instead of %llu",
				     request, (unsigned long long)engine->last_terminal.bytes,
				     (unsigned long long)want);
	if (request > 0 && strcmp(result->transport, engine->last_transport) != 0)
		return kvx_demo_fail(engine, "request %u went by %s, the one before by %s", request,
				     engine->last_transport, result->transport);
	memcpy(result->transport, engine->last_transport, sizeof(result->transport));
	result->moved_bytes += want;
	result->latency_ns[result->n_latencies++] = end_ns - start_ns;
	return 0;
}

static int write_request(struct kvx_demo_engine *engine, uint32_t request)
{
	struct kvxfer_transfer transfer = {
	    .struct_bytes = sizeof(transfer),
	    .op = KVXFER_WRITE,
	    .region = engine->region,
	    .import_ = engine->remote,
	    .tag = request,
	    .streaming = 1,
	};
	uint64_t id, start_ns;

	if (take_blocks(engine, request) != 0)
		return -1;
	start_ns = kvx_now_ns();
	if (kvxfer_transfer_submit(engine->client, &transfer, &id) != 0)
		return kvx_demo_fail(engine, "submit: %s", kvxfer_client_error(engine->client));
	if (stream_layers(engine, request, id) != 0 ||
	    take_terminal(engine, request, start_ns) != 0)
		return -1;
	return kvx_demo_wait(engine, have_release, "release of the request");
}

static int read_request(struct kvx_demo_engine *engine, uint32_t request)
{
	uint64_t payload = request, start_ns;
	struct kvxfer_blocks blocks = {
	    .n_planes = kvx_geometry_planes(&engine->run->geometry),
	    .n_blocks = engine->run->n_blocks,
	    .local_blocks = engine->order + request * engine->run->n_blocks,
	    .remote_blocks = engine->remote_blocks,
	};
	struct kvxfer_transfer transfer = {
	    .struct_bytes = sizeof(transfer),
	    .op = KVXFER_READ,
	    .region = engine->region,
	    .import_ = engine->remote,
	    .blocks = &blocks,
	    .tag = request,
	    .payload = &payload,
	    .payload_bytes = sizeof(payload),
	};

	if (take_blocks(engine, request) != 0)
		return -1;
	start_ns = kvx_now_ns();
	if (kvxfer_transfer_submit(engine->client, &transfer, NULL) != 0)
		return kvx_demo_fail(engine, "submit: %s", kvxfer_client_error(engine->client));
	if (take_terminal(engine, request, start_ns) != 0 ||
	    kvx_demo_check_request(engine, request) != 0)
		return -1;
	return kvx_demo_send_release(engine, request);
}

static void result_send(int fd, const struct kvx_demo_result *result)
{
	const char *at = (const char *)result;
	size_t left = sizeof(*result);

	while (left > 0) {
		ssize_t n = write(fd, at, left);

		if (n <= 0)
			return;
		at += n;
		left -= (size_t)n;
	}
}

/* The end of both engines: the whole pool is compared, then the other is told, so that neither
 * takes its region away while the other still looks. */
static int engine_finish(struct kvx_demo_engine *engine, struct kvx_chan *chan, int fd)
{
	struct kvx_demo_result *result = engine->result;
	size_t len;

	if (result->ok)
		kvx_demo_check_region(engine);
	kvx_chan_send(chan, "done", 4);
	if (result->ok)
		kvx_chan_wait(chan, KVX_DEMO_TIMEOUT_MS, &len);
	kvx_demo_close(engine);
	result_send(fd, result);
	int rc = result->ok ? KVX_BENCH_OK : KVX_BENCH_FAILED;

	free(result);
	return rc;
}

int kvx_demo_prefill(void *arg)
{
	struct kvx_demo_run *run = arg;
	struct kvx_demo_result *result = kvx_tool_alloc(sizeof(*result));
	struct kvx_demo_engine engine;
	int rc;

	close(run->decode_chan.fd);
	rc = kvx_demo_open(&engine, run, true, result);
	for (uint32_t request = 0; rc == 0 && request < run->n_requests; request++) {
		if (run->op == KVXFER_WRITE) {
			rc = write_request(&engine, request);
			continue;
		}
		rc = kvx_demo_send_blocks(&engine, request);
		if (rc == 0)
			rc = kvx_demo_wait(&engine, have_release_and_arrival,
					   "release of the request");
		result->n_latencies++;
	}
	if (run->op == KVXFER_READ)
		result->n_latencies = 0;
	return engine_finish(&engine, &run->prefill_chan, run->prefill_result);
}

int kvx_demo_decode(void *arg)
{
	struct kvx_demo_run *run = arg;
	struct kvx_demo_result *result = kvx_tool_alloc(sizeof(*result));
	struct kvx_demo_engine engine;
	int rc;

	close(run->prefill_chan.fd);
	rc = kvx_demo_open(&engine, run, false, result);
	for (uint32_t request = 0; rc == 0 && request < run->n_requests; request++) {
		if (run->op == KVXFER_READ) {
			rc = read_request(&engine, request);
			continue;
		}
		rc = kvx_demo_send_blocks(&engine, request);
		if (rc == 0)
			rc = kvx_demo_wait(&engine, have_arrival, "arrival of the request");
		if (rc == 0)
			rc = kvx_demo_check_request(&engine, request);
		if (rc == 0)
			rc = kvx_demo_send_release(&engine, request);
		result->n_latencies++;
	}
	if (run->op == KVXFER_WRITE)
		result->n_latencies = 0;
	if (rc == 0 && run->spoil)
		kvx_demo_spoil(&engine);
	return engine_finish(&engine, &run->decode_chan, run->decode_result);
}
