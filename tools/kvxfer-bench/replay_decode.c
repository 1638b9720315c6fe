/* The decode engine of a replay: finds room for each announced request, takes what its prefix cache
 * does not have (pulls in READ mode, asks prefill for it in WRITE mode), checks what came and
 * releases. One process, one thread. */
#include <stdlib.h>
#include <string.h>

#include "replay.h"

/* An announced request that waits for room, first come first served. */
struct waiting {
	uint32_t *words;
	size_t n_words;
	struct waiting *next;
};
struct decode {
	struct kvx_replay_engine engine; /* first: events come with it */
	struct waiting *first, *last;
	bool end;
};

/* Checks a request whose entries are all there, and releases it on both sides. */
static int request_finish(struct kvx_replay_engine *engine, struct kvx_live *live)
{
	uint32_t done[2] = {KVX_REPLAY_DONE, live->request};
	uint64_t per_block = kvx_geometry_block_total(&engine->replay->geometry);

	for (uint32_t i = 0; i < live->n_entries; i++) {
		bool all = engine->replay->check_all && live->is_new[i];

		if (kvx_entry_check(engine, live->entries[i], all) != 0)
			return kvx_replay_fail(engine, "request %u", live->request);
		if (!live->is_new[i])
			engine->side->cached_bytes += live->entries[i]->n_blocks * per_block;
	}
	if (kvx_chan_send(engine->chan, done, sizeof(done)) != 0)
		return kvx_replay_fail(engine, "the other engine is gone");
	engine->side->n_requests++;
	engine->replay->shared->n_done++;
	kvx_live_close(engine, live);
	return 0;
}

static bool live_ready(const struct kvx_live *live)
{
	for (uint32_t i = 0; i < live->n_entries; i++)
		if (!live->entries[i]->ready)
			return false;
	return live->moved;
}

static int finish_ready(struct kvx_replay_engine *engine)
{
	struct kvx_live *live = engine->live, *next;

	for (; live; live = next) {
		next = live->next;
		if (live_ready(live) && request_finish(engine, live) != 0)
			return -1;
	}
	return 0;
}

/* The transfer of a request has ended well: its new entries hold what they should. */
static void mark_moved(struct kvx_replay_engine *engine, struct kvx_live *live)
{
	live->moved = true;
	for (uint32_t i = 0; i < live->n_entries; i++)
		if (live->is_new[i])
			live->entries[i]->ready = true;
	if (engine->replay->spoil && live->n_new > 0)
		for (uint32_t i = 0; i < live->n_entries; i++)
			if (live->is_new[i])
				engine->data[live->entries[i]->blocks[0] *
					     engine->replay->geometry.block_bytes] ^= 1;
}

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct kvx_replay_engine *engine = arg;
	struct kvx_live *live = NULL;
	uint64_t request = UINT64_MAX;

	if (event->type == KVXFER_EVENT_TERMINAL && engine->replay->op == KVXFER_READ) {
		live = kvx_replay_on_terminal(engine, event);
	} else if (event->type == KVXFER_EVENT_ARRIVAL && event->status == KVXFER_OK) {
		if (event->payload_bytes == sizeof(request))
			memcpy(&request, event->payload, sizeof(request));
		live = kvx_live_find(engine, request);
		if (!live)
			kvx_replay_fail(engine, "arrival of request %llu, which is not under way",
					(unsigned long long)request);
	} else {
		kvx_replay_fail(engine, "event %d: %s: %s", event->type,
				kvxfer_status_name(event->status), event->text);
	}
	if (live)
		mark_moved(engine, live);
}

/* WRITE: tells prefill which blocks take the new entries. */
static int want_send(struct kvx_replay_engine *engine, const struct kvx_live *live)
{
	uint32_t *words = kvx_tool_alloc((2 + live->n_new + live->n_entries) * sizeof(uint32_t));
	uint32_t n = 2;
	int rc;

	words[0] = KVX_REPLAY_WANT;
	words[1] = live->request;
	for (uint32_t i = 0; i < live->n_entries; i++) {
		const struct kvx_entry *entry = live->entries[i];

		if (!live->is_new[i])
			continue;
		words[n++] = i;
		memcpy(words + n, entry->blocks, entry->n_blocks * sizeof(uint32_t));
		n += entry->n_blocks;
	}
	rc = kvx_chan_send(engine->chan, words, n * sizeof(uint32_t));
	free(words);
	return rc == 0 ? 0 : kvx_replay_fail(engine, "the other engine is gone");
}

/* READ: pulls the new entries from the blocks that prefill named. */
static int pull(struct kvx_replay_engine *engine, struct kvx_live *live, const uint32_t *theirs)
{
	uint32_t *local = kvx_tool_alloc(live->n_new * sizeof(uint32_t));
	uint32_t *remote = kvx_tool_alloc(live->n_new * sizeof(uint32_t));
	uint32_t n = 0;
	int rc;

	for (uint32_t i = 0; i < live->n_entries; i++) {
		const struct kvx_entry *entry = live->entries[i];

		if (live->is_new[i]) {
			memcpy(local + n, entry->blocks, entry->n_blocks * sizeof(uint32_t));
			memcpy(remote + n, theirs, entry->n_blocks * sizeof(uint32_t));
			n += entry->n_blocks;
		}
		theirs += entry->n_blocks;
	}
	rc = kvx_replay_submit(engine, live, local, remote, n);
	free(local);
	free(remote);
	return rc;
}

/* 1: under way; 0: no room now; -1: failed. */
static int request_start(struct kvx_replay_engine *engine, const uint32_t *words)
{
	struct kvx_live *live = kvx_live_open(engine, words[1]);
	int rc = 0;

	if (!live)
		return 0;
	if (live->n_new == 0)
		live->moved = true;
	else if (engine->replay->op == KVXFER_WRITE)
		rc = want_send(engine, live);
	else
		rc = pull(engine, live, words + 2);
	return rc == 0 ? 1 : -1;
}

static int on_message(struct decode *decode, const uint32_t *words, size_t n_words)
{
	const struct kvx_replay *replay = decode->engine.replay;
	struct waiting *waiting;

	if (n_words == 1 && words[0] == KVX_REPLAY_END) {
		decode->end = true;
		return 0;
	}
	if (n_words < 2 || words[0] != KVX_REPLAY_REQUEST || words[1] >= replay->trace.n_requests ||
	    n_words != 2 + kvx_replay_total_blocks(replay, words[1]))
		return kvx_replay_fail(&decode->engine, "a message that makes no sense came");
	waiting = kvx_tool_alloc(sizeof(*waiting));
	waiting->words = kvx_tool_alloc(n_words * sizeof(uint32_t));
	memcpy(waiting->words, words, n_words * sizeof(uint32_t));
	waiting->n_words = n_words;
	if (decode->last)
		decode->last->next = waiting;
	else
		decode->first = waiting;
	decode->last = waiting;
	return 0;
}

static int start_waiting(struct decode *decode)
{
	while (decode->first) {
		struct waiting *waiting = decode->first;
		int rc = request_start(&decode->engine, waiting->words);

		if (rc <= 0)
			return rc;
		decode->first = waiting->next;
		if (!decode->first)
			decode->last = NULL;
		free(waiting->words);
		free(waiting);
	}
	return 0;
}

static int decode_loop(struct decode *decode)
{
	struct kvx_replay_engine *engine = &decode->engine;

	while (!decode->end || engine->n_live > 0 || decode->first) {
		const uint32_t *words;
		size_t bytes;

		if (kvx_replay_poll(engine, 1000, on_event) != 0)
			return -1;
		while ((words = kvx_chan_next(engine->chan, &bytes)))
			if (on_message(decode, words, bytes / sizeof(uint32_t)) != 0)
				return -1;
		/* Requests that are all cached are ready as soon as they start. */
		if (finish_ready(engine) != 0 || start_waiting(decode) != 0 ||
		    finish_ready(engine) != 0)
			return -1;
	}
	return 0;
}

int kvx_replay_decode(void *arg)
{
	struct decode decode = {0};
	struct kvx_replay *replay = arg;
	uint32_t end = KVX_REPLAY_END;
	int rc;

	kvx_chan_fini(&replay->prefill_chan);
	if (kvx_replay_open(&decode.engine, replay, false) == 0)
		decode_loop(&decode);
	while (decode.first) {
		struct waiting *waiting = decode.first;

		decode.first = waiting->next;
		free(waiting->words);
		free(waiting);
	}
	rc = kvx_replay_close(&decode.engine);
	kvx_chan_send(&replay->decode_chan, &end, sizeof(end));
	return rc;
}
