/* What both demo engines have in common: opening, events, the small messages with which they agree
 * on blocks. Runs in an engine process. */
#include "demo.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* A message between the engines: block ids of a request, in pieces that fit, or its release. */
enum note_kind { NOTE_BLOCKS = 1, NOTE_RELEASE = 2 };
struct note {
	uint32_t kind, request, first, n_blocks;
	uint32_t blocks[(KVXFER_PAYLOAD_MAX - 16) / 4];
};
#define NOTE_BLOCKS_MAX ((KVXFER_PAYLOAD_MAX - 16u) / 4u)
#define NOTE_HDR        16u

int kvx_demo_fail(struct kvx_demo_engine *engine, const char *fmt, ...)
{
	va_list args;

	if (!engine->result->ok)
		return -1;
	engine->result->ok = 0;
	va_start(args, fmt);
	vsnprintf(engine->result->text, sizeof(engine->result->text), fmt, args);
	va_end(args);
	return -1;
}

static void on_note(struct kvx_demo_engine *engine, const struct kvxfer_event *event)
{
	struct note note = {0};
	uint32_t n_blocks = engine->run->n_blocks;

	memcpy(&note, event->payload,
	       event->payload_bytes < sizeof(note) ? event->payload_bytes : sizeof(note));
	if (note.request >= engine->run->n_requests) {
		kvx_demo_fail(engine, "a message names request %u", note.request);
	} else if (note.kind == NOTE_RELEASE) {
		engine->released[note.request] = 1;
	} else if (note.kind == NOTE_BLOCKS && note.first <= n_blocks &&
		   note.n_blocks <= n_blocks - note.first && note.n_blocks <= NOTE_BLOCKS_MAX) {
		memcpy(engine->remote_blocks + note.first, note.blocks, note.n_blocks * 4);
		engine->n_remote_blocks = note.first + note.n_blocks;
		engine->remote_request = note.request;
	} else {
		kvx_demo_fail(engine, "a message that makes no sense came");
	}
}

static void on_arrival(struct kvx_demo_engine *engine, const struct kvxfer_event *event)
{
	uint64_t request = UINT64_MAX;

	if (event->payload_bytes == sizeof(request))
		memcpy(&request, event->payload, sizeof(request));
	if (event->status != KVXFER_OK)
		kvx_demo_fail(engine, "arrival of request %llu: %s: %s",
			      (unsigned long long)event->tag, kvxfer_status_name(event->status),
			      event->text);
	else if (request != event->tag || request >= engine->run->n_requests)
		kvx_demo_fail(engine, "arrival of request %llu with another request's payload",
			      (unsigned long long)event->tag);
	else
		engine->arrived[request] = 1;
}

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct kvx_demo_engine *engine = arg;

	switch (event->type) {
	case KVXFER_EVENT_TERMINAL:
		engine->n_terminal++;
		engine->last_terminal = *event;
		snprintf(engine->last_transport, sizeof(engine->last_transport), "%s",
			 event->transport);
		snprintf(engine->last_text, sizeof(engine->last_text), "%s", event->text);
		break;
	case KVXFER_EVENT_ARRIVAL:
		on_arrival(engine, event);
		break;
	case KVXFER_EVENT_MESSAGE:
		on_note(engine, event);
		break;
	default:
		kvx_demo_fail(engine, "unexpected event %d: %s", event->type, event->text);
	}
}

int kvx_demo_wait(struct kvx_demo_engine *engine,
		  bool (*done)(const struct kvx_demo_engine *engine), const char *what)
{
	uint64_t deadline = kvx_now_ns() + KVX_DEMO_TIMEOUT_MS * 1000000ull;

	while (engine->result->ok && !done(engine)) {
		int rc = kvxfer_client_wait(engine->client, 1000, on_event, engine);

		if (rc < 0)
			return kvx_demo_fail(engine, "waiting for %s: %s", what,
					     kvxfer_client_error(engine->client));
		if (kvx_now_ns() > deadline)
			return kvx_demo_fail(engine, "no %s within %d s", what,
					     KVX_DEMO_TIMEOUT_MS / 1000);
	}
	return engine->result->ok ? 0 : -1;
}

static int note_send(struct kvx_demo_engine *engine, const struct note *note)
{
	int rc = kvxfer_message_send(engine->remote, note, NOTE_HDR + note->n_blocks * 4);

	return rc == 0 ? 0
		       : kvx_demo_fail(engine, "message: %s", kvxfer_client_error(engine->client));
}

int kvx_demo_send_blocks(struct kvx_demo_engine *engine, uint32_t request)
{
	const uint32_t *blocks = engine->order + request * engine->run->n_blocks;
	struct note note = {.kind = NOTE_BLOCKS, .request = request};

	while (note.first < engine->run->n_blocks) {
		uint32_t left = engine->run->n_blocks - note.first;

		note.n_blocks = left < NOTE_BLOCKS_MAX ? left : NOTE_BLOCKS_MAX;
		memcpy(note.blocks, blocks + note.first, note.n_blocks * 4);
		if (note_send(engine, &note) != 0)
			return -1;
		note.first += note.n_blocks;
	}
	return 0;
}

int kvx_demo_send_release(struct kvx_demo_engine *engine, uint32_t request)
{
	struct note note = {.kind = NOTE_RELEASE, .request = request};

	return note_send(engine, &note);
}

static void plan_blocks(struct kvx_demo_engine *engine)
{
	const struct kvx_demo_run *run = engine->run;
	struct kvx_random random = {.state = run->seed ^ (engine->is_prefill ? 11 : 22)};
	uint32_t n_used = run->n_requests * run->n_blocks;

	engine->order = kvx_random_order(&random, run->n_pool_blocks);
	engine->owner = kvx_tool_alloc(run->n_pool_blocks * sizeof(uint32_t));
	engine->index = kvx_tool_alloc(run->n_pool_blocks * sizeof(uint32_t));
	engine->remote_blocks = kvx_tool_alloc(run->n_blocks * sizeof(uint32_t));
	for (uint32_t i = 0; i < n_used; i++) {
		engine->owner[engine->order[i]] = i / run->n_blocks + 1;
		engine->index[engine->order[i]] = i % run->n_blocks;
	}
}

static int region_open(struct kvx_demo_engine *engine)
{
	const struct kvx_demo_run *run = engine->run;
	uint32_t n_planes = kvx_geometry_planes(&run->geometry);
	struct kvxfer_plane *planes = kvx_tool_alloc(n_planes * sizeof(*planes));
	struct kvxfer_layout layout = {.planes = planes, .n_planes = n_planes};
	struct kvxfer_region_options options = {
	    .struct_bytes = sizeof(options),
	    .name = engine->is_prefill ? "prefill kv" : "decode kv",
	    .access = engine->is_prefill ? KVXFER_ACCESS_READ : KVXFER_ACCESS_WRITE,
	    .layout = &layout,
	};
	/* One plane per tensor, dense, one after the other: what split K/V and MLA caches look
	 * like. */
	uint64_t bytes =
	    kvxfer_layout_mla(0, n_planes, run->n_pool_blocks, run->geometry.block_bytes, planes);
	int rc = kvxfer_region_alloc(engine->client, bytes, &options, &engine->region);

	free(planes);
	if (rc != 0)
		return kvx_demo_fail(engine, "region of %llu bytes: %s", (unsigned long long)bytes,
				     kvxfer_client_error(engine->client));
	engine->data = kvxfer_region_data(engine->region);
	return 0;
}

/* The engines' own control path carries the descriptors, as a router would. */
static int import_remote(struct kvx_demo_engine *engine, struct kvx_chan *chan)
{
	struct kvxfer_import_options options = {.struct_bytes = sizeof(options),
						.compare = engine->region};
	uint8_t descriptor[KVXFER_DESCRIPTOR_MAX];
	const void *theirs;
	size_t len;
	int n = kvxfer_region_export(engine->region, descriptor, sizeof(descriptor));

	if (n < 0)
		return kvx_demo_fail(engine, "export: %s", kvxfer_client_error(engine->client));
	if (kvx_chan_send(chan, descriptor, (size_t)n) != 0)
		return kvx_demo_fail(engine, "the other engine is gone");
	theirs = kvx_chan_wait(chan, KVX_DEMO_TIMEOUT_MS, &len);
	if (!theirs)
		return kvx_demo_fail(engine, "no descriptor from the other engine");
	if (kvxfer_import_open(engine->client, theirs, len, &options, &engine->remote) != 0)
		return kvx_demo_fail(engine, "import: %s", kvxfer_client_error(engine->client));
	/* Messages may go both ways once both have imported. */
	kvx_chan_send(chan, "ready", 5);
	if (!kvx_chan_wait(chan, KVX_DEMO_TIMEOUT_MS, &len))
		return kvx_demo_fail(engine, "the other engine did not become ready");
	return 0;
}

int kvx_demo_open(struct kvx_demo_engine *engine, struct kvx_demo_run *run, bool is_prefill,
		  struct kvx_demo_result *result)
{
	struct kvxfer_client_options options = {
	    .struct_bytes = sizeof(options),
	    .socket_path = is_prefill ? run->prefill_socket : run->decode_socket,
	    .name = is_prefill ? "demo prefill" : "demo decode",
	    .timeout_ms = 30000,
	};

	memset(engine, 0, sizeof(*engine));
	memset(result, 0, sizeof(*result));
	result->ok = 1;
	engine->run = run;
	engine->is_prefill = is_prefill;
	engine->result = result;
	engine->remote_request = UINT32_MAX;
	plan_blocks(engine);
	if (kvxfer_client_open(&options, &engine->client) != 0)
		return kvx_demo_fail(engine, "%s", kvxfer_open_error());
	if (region_open(engine) != 0)
		return -1;
	kvx_demo_fill(engine);
	return import_remote(engine, is_prefill ? &run->prefill_chan : &run->decode_chan);
}

void kvx_demo_close(struct kvx_demo_engine *engine)
{
	kvxfer_client_close(engine->client);
	free(engine->order);
	free(engine->owner);
	free(engine->index);
	free(engine->remote_blocks);
}
