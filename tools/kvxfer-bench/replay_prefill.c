/* The prefill engine of a replay: takes requests at their times, has their KV in its pool,
 * announces them to decode and, in WRITE mode, pushes what decode wants. One process, one thread.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "replay.h"

struct prefill {
	struct kvx_replay_engine engine; /* first: events come with it */
	uint32_t next;                   /* request to start */
	uint64_t start_ns;
};

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct kvx_replay_engine *engine = arg;
	struct kvx_live *live;

	if (event->type == KVXFER_EVENT_TERMINAL && engine->replay->op == KVXFER_WRITE) {
		live = kvx_replay_on_terminal(engine, event);
		if (live)
			live->moved = true;
	} else if (event->type != KVXFER_EVENT_ARRIVAL || event->status != KVXFER_OK) {
		kvx_replay_fail(engine, "event %d: %s", event->type, event->text);
	}
}

/* Finds the KV of a request in the pool or "computes" it, and tells decode where it lies. */
static bool request_start(struct prefill *prefill)
{
	struct kvx_replay_engine *engine = &prefill->engine;
	struct kvx_live *live = kvx_live_open(engine, prefill->next);
	uint32_t *words, n = 2;

	if (!live)
		return false;
	words = kvx_tool_alloc((2 + kvx_replay_total_blocks(engine->replay, live->request)) *
			       sizeof(uint32_t));
	words[0] = KVX_REPLAY_REQUEST;
	words[1] = live->request;
	for (uint32_t i = 0; i < live->n_entries; i++) {
		struct kvx_entry *entry = live->entries[i];

		if (!entry->ready)
			kvx_entry_fill(engine, entry);
		entry->ready = true;
		memcpy(words + n, entry->blocks, entry->n_blocks * sizeof(uint32_t));
		n += entry->n_blocks;
	}
	if (kvx_chan_send(engine->chan, words, n * sizeof(uint32_t)) != 0)
		kvx_replay_fail(engine, "the other engine is gone");
	free(words);
	prefill->next++;
	return true;
}

/* Decode wants the blocks of some entries, in its own blocks that it names. */
static int on_want(struct kvx_replay_engine *engine, struct kvx_live *live, const uint32_t *words,
		   size_t n_words)
{
	uint32_t *local = kvx_tool_alloc(n_words * sizeof(uint32_t));
	uint32_t *remote = kvx_tool_alloc(n_words * sizeof(uint32_t));
	uint32_t n = 0;
	size_t at = 0;
	int rc = 0;

	while (at < n_words && words[at] < live->n_entries) {
		const struct kvx_entry *entry = live->entries[words[at++]];

		if (entry->n_blocks > n_words - at)
			break;
		memcpy(local + n, entry->blocks, entry->n_blocks * sizeof(uint32_t));
		memcpy(remote + n, words + at, entry->n_blocks * sizeof(uint32_t));
		n += entry->n_blocks;
		at += entry->n_blocks;
	}
	if (at != n_words)
		rc = kvx_replay_fail(engine, "a message that makes no sense came");
	else if (n > 0)
		rc = kvx_replay_submit(engine, live, local, remote, n);
	free(local);
	free(remote);
	return rc;
}

static int on_message(struct kvx_replay_engine *engine, const uint32_t *words, size_t n_words)
{
	struct kvx_live *live = n_words >= 2 ? kvx_live_find(engine, words[1]) : NULL;

	if (!live)
		return kvx_replay_fail(engine, "a message names no request under way");
	if (words[0] == KVX_REPLAY_WANT)
		return on_want(engine, live, words + 2, n_words - 2);
	/* DONE: decode has checked every byte. In WRITE mode the terminal event may still be on its
	 * way. */
	if (engine->replay->op == KVXFER_WRITE && live->start_ns && !live->moved) {
		live->released = true;
		return 0;
	}
	kvx_live_close(engine, live);
	return 0;
}

/* Requests that decode released before their terminal event came. */
static void close_moved(struct kvx_replay_engine *engine)
{
	struct kvx_live *live = engine->live, *next;

	for (; live; live = next) {
		next = live->next;
		if (live->moved && live->released)
			kvx_live_close(engine, live);
	}
}

/* Milliseconds until the next request is due; 0: now; -1: nothing to start before something ends.
 */
static int next_due(const struct prefill *prefill)
{
	const struct kvx_replay *replay = prefill->engine.replay;
	uint64_t due, now = kvx_now_ns();

	if (prefill->next == replay->trace.n_requests ||
	    prefill->engine.n_live >= replay->concurrency)
		return -1;
	due = prefill->start_ns +
	      (uint64_t)(replay->trace.requests[prefill->next].at_ms * replay->scale * 1e6);
	return due <= now ? 0 : (int)((due - now + 999999) / 1000000);
}

static int prefill_loop(struct prefill *prefill)
{
	struct kvx_replay_engine *engine = &prefill->engine;

	prefill->start_ns = kvx_now_ns();
	while (prefill->next < engine->replay->trace.n_requests || engine->n_live > 0) {
		int due = next_due(prefill);
		const uint32_t *words;
		size_t bytes;

		if (due == 0 && !request_start(prefill))
			due = -1; /* no room in the pool until a request ends */
		if (kvx_replay_poll(engine, due < 0 || due > 1000 ? 1000 : due, on_event) != 0)
			return -1;
		while ((words = kvx_chan_next(engine->chan, &bytes)))
			if (on_message(engine, words, bytes / sizeof(uint32_t)) != 0)
				return -1;
		close_moved(engine);
	}
	return 0;
}

int kvx_replay_prefill(void *arg)
{
	struct prefill prefill = {0};
	struct kvx_replay *replay = arg;
	uint32_t end = KVX_REPLAY_END;
	size_t len;

	kvx_chan_fini(&replay->decode_chan);
	if (kvx_replay_open(&prefill.engine, replay, true) == 0 && prefill_loop(&prefill) == 0) {
		/* The region stays until decode has ended its own. */
		kvx_chan_send(&replay->prefill_chan, &end, sizeof(end));
		kvx_chan_wait(&replay->prefill_chan, 10000, &len);
	}
	return kvx_replay_close(&prefill.engine);
}
