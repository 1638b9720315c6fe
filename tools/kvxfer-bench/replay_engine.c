/* What both replay engines have in common: client, region, pool, the requests under way. Runs in an
 * engine process. */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "replay.h"

#define TIMEOUT_MS 60000
#define ENDS_BYTES 16u

int kvx_replay_fail(struct kvx_replay_engine *engine, const char *fmt, ...)
{
	va_list args;

	if (engine->failed)
		return -1;
	engine->failed = true;
	va_start(args, fmt);
	vsnprintf(engine->side->text, sizeof(engine->side->text), fmt, args);
	va_end(args);
	return -1;
}

uint64_t kvx_replay_key(const struct kvx_replay *replay, uint32_t request, uint32_t i)
{
	const struct kvx_trace_request *r = &replay->trace.requests[request];
	uint64_t hash = replay->trace.hashes[r->first_hash + i];

	/* The last id may stand for fewer tokens than the same id elsewhere: another content. */
	if (replay->prefix_cache)
		return kvx_pattern_seed(hash, kvx_replay_blocks(replay, request, i), 1) | 1;
	return kvx_pattern_seed(request, i, 2) | 1;
}

uint32_t kvx_replay_blocks(const struct kvx_replay *replay, uint32_t request, uint32_t i)
{
	const struct kvx_trace_request *r = &replay->trace.requests[request];
	uint64_t tokens = i + 1 < r->n_hashes ? KVX_HASH_TOKENS : r->tokens - i * KVX_HASH_TOKENS;

	return kvx_geometry_blocks(&replay->geometry,
				   (tokens + replay->shrink - 1) / replay->shrink);
}

uint64_t kvx_replay_total_blocks(const struct kvx_replay *replay, uint32_t request)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < replay->trace.requests[request].n_hashes; i++)
		sum += kvx_replay_blocks(replay, request, i);
	return sum;
}

static uint8_t *block_at(const struct kvx_replay_engine *engine, uint32_t plane, uint32_t block)
{
	return engine->data + ((uint64_t)plane * engine->replay->n_pool_blocks + block) *
				  engine->replay->geometry.block_bytes;
}

void kvx_entry_fill(struct kvx_replay_engine *engine, const struct kvx_entry *entry)
{
	uint32_t n_planes = kvx_geometry_planes(&engine->replay->geometry);

	for (uint32_t plane = 0; plane < n_planes; plane++)
		for (uint32_t i = 0; i < entry->n_blocks; i++)
			kvx_pattern_fill(block_at(engine, plane, entry->blocks[i]), 0,
					 engine->replay->geometry.block_bytes,
					 kvx_pattern_seed(entry->key, plane, i));
}

static bool block_check(const struct kvx_replay_engine *engine, const uint8_t *block, uint64_t seed,
			bool all)
{
	uint64_t bytes = engine->replay->geometry.block_bytes;
	uint64_t end = bytes < ENDS_BYTES ? bytes : ENDS_BYTES;

	engine->side->checked_bytes += all ? bytes : 2 * end;
	if (all)
		return kvx_pattern_check(block, 0, bytes, seed) == bytes;
	return kvx_pattern_check(block, 0, end, seed) == end &&
	       kvx_pattern_check(block + bytes - end, bytes - end, end, seed) == end;
}

int kvx_entry_check(struct kvx_replay_engine *engine, const struct kvx_entry *entry, bool all)
{
	uint32_t n_planes = kvx_geometry_planes(&engine->replay->geometry);

	for (uint32_t plane = 0; plane < n_planes; plane++)
		for (uint32_t i = 0; i < entry->n_blocks; i++)
			if (!block_check(engine, block_at(engine, plane, entry->blocks[i]),
					 kvx_pattern_seed(entry->key, plane, i), all))
				return kvx_replay_fail(engine, "wrong bytes in plane %u, block %u",
						       plane, entry->blocks[i]);
	return 0;
}

static int region_open(struct kvx_replay_engine *engine)
{
	const struct kvx_replay *replay = engine->replay;
	uint32_t n_planes = kvx_geometry_planes(&replay->geometry);
	struct kvxfer_plane *planes = kvx_tool_alloc(n_planes * sizeof(*planes));
	struct kvxfer_layout layout = {.planes = planes, .n_planes = n_planes};
	struct kvxfer_region_options options = {
	    .struct_bytes = sizeof(options),
	    .name = "replay kv",
	    .access = KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE,
	    .layout = &layout,
	};
	uint64_t bytes = kvxfer_layout_mla(0, n_planes, replay->n_pool_blocks,
					   replay->geometry.block_bytes, planes);
	int rc = kvxfer_region_alloc(engine->client, bytes, &options, &engine->region);

	free(planes);
	if (rc != 0)
		return kvx_replay_fail(engine, "region: %s", kvxfer_client_error(engine->client));
	engine->data = kvxfer_region_data(engine->region);
	return 0;
}

int kvx_replay_open(struct kvx_replay_engine *engine, struct kvx_replay *replay, bool is_prefill)
{
	struct kvxfer_client_options options = {
	    .struct_bytes = sizeof(options),
	    .socket_path = is_prefill ? replay->prefill_socket : replay->decode_socket,
	    .name = is_prefill ? "replay prefill" : "replay decode",
	    .timeout_ms = 30000,
	};
	uint8_t descriptor[KVXFER_DESCRIPTOR_MAX];
	const void *theirs;
	size_t len;
	int n;

	memset(engine, 0, sizeof(*engine));
	engine->replay = replay;
	engine->is_prefill = is_prefill;
	engine->side = is_prefill ? &replay->shared->prefill : &replay->shared->decode;
	engine->chan = is_prefill ? &replay->prefill_chan : &replay->decode_chan;
	kvx_pool_init(&engine->pool, replay->n_pool_blocks, replay->seed + is_prefill);
	if (kvxfer_client_open(&options, &engine->client) != 0)
		return kvx_replay_fail(engine, "%s", kvxfer_open_error());
	if (region_open(engine) != 0)
		return -1;
	n = kvxfer_region_export(engine->region, descriptor, sizeof(descriptor));
	if (n < 0)
		return kvx_replay_fail(engine, "export: %s", kvxfer_client_error(engine->client));
	kvx_chan_send(engine->chan, descriptor, (size_t)n);
	theirs = kvx_chan_wait(engine->chan, TIMEOUT_MS, &len);
	if (!theirs)
		return kvx_replay_fail(engine, "no descriptor from the other engine");
	if (kvxfer_import_open(engine->client, theirs, len, NULL, &engine->remote) != 0)
		return kvx_replay_fail(engine, "import: %s", kvxfer_client_error(engine->client));
	return 0;
}

int kvx_replay_close(struct kvx_replay_engine *engine)
{
	while (engine->live)
		kvx_live_close(engine, engine->live);
	kvxfer_client_close(engine->client);
	kvx_pool_fini(&engine->pool);
	engine->side->ok = !engine->failed;
	return engine->failed ? KVX_BENCH_FAILED : KVX_BENCH_OK;
}

int kvx_replay_poll(struct kvx_replay_engine *engine, int timeout_ms, kvxfer_event_cb on_event)
{
	struct pollfd fds[2] = {
	    {.fd = kvxfer_client_fd(engine->client), .events = POLLIN},
	    {.fd = engine->chan->fd, .events = POLLIN},
	};
	int rc;

	if (engine->chan->out_len > 0)
		fds[1].events |= POLLOUT;
	poll(fds, 2, timeout_ms);
	rc = kvxfer_client_dispatch(engine->client, on_event, engine);
	if (rc < 0)
		return kvx_replay_fail(engine, "%s", kvxfer_client_error(engine->client));
	if (engine->failed)
		return -1;
	if (fds[1].revents && kvx_chan_pump(engine->chan, 0) != 0)
		return kvx_replay_fail(engine, "the other engine is gone");
	return 0;
}

struct kvx_live *kvx_live_open(struct kvx_replay_engine *engine, uint32_t request)
{
	uint32_t n = engine->replay->trace.requests[request].n_hashes;
	struct kvx_live *live = kvx_tool_alloc(sizeof(*live));

	live->request = request;
	live->entries = kvx_tool_alloc(n * sizeof(*live->entries));
	live->is_new = kvx_tool_alloc(n * sizeof(*live->is_new));
	live->next = engine->live;
	engine->live = live;
	engine->n_live++;
	for (uint32_t i = 0; i < n; i++) {
		live->entries[i] =
		    kvx_pool_take(&engine->pool, kvx_replay_key(engine->replay, request, i),
				  kvx_replay_blocks(engine->replay, request, i), &live->is_new[i]);
		if (!live->entries[i]) {
			kvx_live_close(engine, live);
			return NULL;
		}
		live->n_entries++;
		live->n_new += live->is_new[i] ? live->entries[i]->n_blocks : 0;
	}
	return live;
}

void kvx_live_close(struct kvx_replay_engine *engine, struct kvx_live *live)
{
	struct kvx_live **at = &engine->live;

	for (uint32_t i = 0; i < live->n_entries; i++)
		kvx_pool_release(&engine->pool, live->entries[i], engine->replay->prefix_cache);
	while (*at != live)
		at = &(*at)->next;
	*at = live->next;
	engine->n_live--;
	free(live->entries);
	free(live->is_new);
	free(live);
}

struct kvx_live *kvx_live_find(struct kvx_replay_engine *engine, uint64_t request)
{
	struct kvx_live *live = engine->live;

	while (live && live->request != request)
		live = live->next;
	return live;
}

int kvx_replay_submit(struct kvx_replay_engine *engine, struct kvx_live *live,
		      const uint32_t *local, const uint32_t *remote, uint32_t n)
{
	uint64_t payload = live->request;
	struct kvxfer_blocks blocks = {
	    .n_planes = kvx_geometry_planes(&engine->replay->geometry),
	    .n_blocks = n,
	    .local_blocks = local,
	    .remote_blocks = remote,
	};
	struct kvxfer_transfer transfer = {
	    .struct_bytes = sizeof(transfer),
	    .op = engine->replay->op,
	    .region = engine->region,
	    .import_ = engine->remote,
	    .blocks = &blocks,
	    .tag = live->request,
	    .payload = &payload,
	    .payload_bytes = sizeof(payload),
	};

	live->start_ns = kvx_now_ns();
	if (engine->n_moving++ == 0)
		engine->busy_since_ns = live->start_ns;
	if (engine->side->first_ns == 0)
		engine->side->first_ns = live->start_ns;
	if (kvxfer_transfer_submit(engine->client, &transfer, NULL) != 0)
		return kvx_replay_fail(engine, "submit: %s", kvxfer_client_error(engine->client));
	return 0;
}

struct kvx_live *kvx_replay_on_terminal(struct kvx_replay_engine *engine,
					const struct kvxfer_event *event)
{
	struct kvx_live *live = kvx_live_find(engine, event->tag);
	struct kvx_replay_side *side = engine->side;
	uint64_t now = kvx_now_ns(), want = 0;

	if (!live) {
		kvx_replay_fail(engine, "terminal event of request %llu, which is not under way",
				(unsigned long long)event->tag);
		return NULL;
	}
	want = live->n_new * kvx_geometry_block_total(&engine->replay->geometry);
	if (event->status != KVXFER_OK ||
	    (engine->replay->op == KVXFER_READ && event->bytes != want)) {
		kvx_replay_fail(engine, "request %u: %s, %llu bytes: %s", live->request,
				kvxfer_status_name(event->status), (unsigned long long)event->bytes,
				event->text);
		return NULL;
	}
	side->n_transfers++;
	side->moved_bytes += event->bytes;
	side->last_ns = now;
	snprintf(side->transport, sizeof(side->transport), "%s", event->transport);
	engine->replay->shared->latency_ns[live->request] = now - live->start_ns;
	if (--engine->n_moving == 0)
		side->busy_ns += now - engine->busy_since_ns;
	return live;
}
