/* The parts of `kvxfer-bench replay`: a trace, a pool of KV blocks with a prefix cache for each
 * engine, the two engines. */
#ifndef KVX_REPLAY_H
#define KVX_REPLAY_H

#include <uthash.h>

#include "bench.h"
#include "kvxfer/client.h"

#define KVX_HASH_TOKENS 512u /* tokens that one hash id of a trace stands for */

/* ---- the trace */
struct kvx_trace_request {
	double at_ms;
	uint32_t tokens;
	uint32_t n_hashes;
	size_t first_hash;
};
struct kvx_trace {
	struct kvx_trace_request *requests;
	uint32_t n_requests, max_requests;
	uint64_t *hashes;
	size_t n_hashes, max_hashes;
};
/* Reads at most max_requests lines. 0, or -EINVAL with "FILE:LINE: reason" printed. */
int kvx_trace_load(const char *path, uint32_t max_requests, struct kvx_trace *out_trace);
void kvx_trace_fini(struct kvx_trace *trace);

/* ---- pools: blocks by prefix. An entry is what one hash id stands for. */
struct kvx_entry {
	uint64_t key; /* 0 is no key */
	uint32_t n_blocks;
	uint32_t n_pins;
	bool ready; /* its content is there */
	uint32_t *blocks;
	UT_hash_handle hh;
	struct kvx_entry *prev, *next; /* of the pool's list of those that may go, oldest first */
};
struct kvx_pool {
	uint32_t n_blocks, n_free;
	uint32_t *free_blocks;
	struct kvx_entry *entries;
	struct kvx_entry *unpinned;
	struct kvx_random random;
};
void kvx_pool_init(struct kvx_pool *pool, uint32_t n_blocks, uint64_t seed);
void kvx_pool_fini(struct kvx_pool *pool);
/* The pinned entry of a key; *out_new: it was not there, its blocks have to be filled. NULL: no
 * room until something is released. */
struct kvx_entry *kvx_pool_take(struct kvx_pool *pool, uint64_t key, uint32_t n_blocks,
				bool *out_new);
/* Unpins; an entry that is not ready, or not to be kept, is forgotten with its last pin. */
void kvx_pool_release(struct kvx_pool *pool, struct kvx_entry *entry, bool keep);

/* ---- the run, the same in all processes */
struct kvx_replay_side {
	int ok; /* set at the end of an engine that found nothing wrong */
	char text[200];
	uint64_t n_transfers, moved_bytes, cached_bytes, checked_bytes, n_requests;
	uint64_t busy_ns; /* with at least one transfer under way */
	uint64_t first_ns, last_ns;
	char transport[32];
};
struct kvx_replay_shared {
	struct kvx_replay_side prefill, decode;
	_Atomic uint32_t n_done; /* for the progress */
	uint64_t latency_ns[];   /* [n_requests] of transfers, by the mover; 0: nothing moved */
};
struct kvx_replay {
	struct kvx_trace trace;
	struct kvx_geometry geometry;
	int op;
	const char *prefill_socket, *decode_socket;
	double scale;
	uint64_t shrink;
	uint32_t concurrency;
	uint32_t n_pool_blocks;
	bool prefix_cache, check_all;
	uint64_t seed;
	bool spoil;
	struct kvx_chan prefill_chan, decode_chan;
	struct kvx_replay_shared *shared; /* in memory that all processes share */
};
/* What request i is made of: key and KV blocks of each hash id. */
uint64_t kvx_replay_key(const struct kvx_replay *replay, uint32_t request, uint32_t i);
uint32_t kvx_replay_blocks(const struct kvx_replay *replay, uint32_t request, uint32_t i);
uint64_t kvx_replay_total_blocks(const struct kvx_replay *replay, uint32_t request);
int kvx_replay_prefill(void *replay);
int kvx_replay_decode(void *replay);

/* ---- one engine */
struct kvx_live { /* a request under way */
	uint32_t request;
	uint32_t n_entries, n_new;
	struct kvx_entry **entries;
	bool *is_new;
	bool moved;    /* its own transfer has ended, or there was none */
	bool released; /* prefill: decode has checked it */
	uint64_t start_ns;
	struct kvx_live *next;
};
struct kvx_replay_engine {
	struct kvx_replay *replay;
	bool is_prefill;
	struct kvx_replay_side *side;
	struct kvx_chan *chan;
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	struct kvxfer_import *remote;
	uint8_t *data;
	struct kvx_pool pool;
	struct kvx_live *live;
	uint32_t n_live, n_moving;
	uint64_t busy_since_ns;
	bool failed;
};
int kvx_replay_fail(struct kvx_replay_engine *engine, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
int kvx_replay_open(struct kvx_replay_engine *engine, struct kvx_replay *replay, bool is_prefill);
int kvx_replay_close(struct kvx_replay_engine *engine);
/* Waits for events or messages, at most timeout_ms; calls on_event. 0 or -1. */
int kvx_replay_poll(struct kvx_replay_engine *engine, int timeout_ms, kvxfer_event_cb on_event);
/* Takes all entries of a request from the engine's pool. NULL: no room now. */
struct kvx_live *kvx_live_open(struct kvx_replay_engine *engine, uint32_t request);
void kvx_live_close(struct kvx_replay_engine *engine, struct kvx_live *live);
struct kvx_live *kvx_live_find(struct kvx_replay_engine *engine, uint64_t request);
/* Submits the blocks of new entries; ids: of this side and of the other, [n]. 0 or -1. */
int kvx_replay_submit(struct kvx_replay_engine *engine, struct kvx_live *live,
		      const uint32_t *local, const uint32_t *remote, uint32_t n);
/* The terminal event of a transfer of this engine: checks it and notes its time. */
struct kvx_live *kvx_replay_on_terminal(struct kvx_replay_engine *engine,
					const struct kvxfer_event *event);
void kvx_entry_fill(struct kvx_replay_engine *engine, const struct kvx_entry *entry);
/* Checks all bytes of an entry, or the ends of its blocks. 0 or -1. */
int kvx_entry_check(struct kvx_replay_engine *engine, const struct kvx_entry *entry, bool all);

/* Messages between the engines: u32 words. REQUEST {kind, request, block ids of every entry of
 * prefill...}; WANT {kind, request, block ids of decode for the new entries..., each entry led by
 * its index}; DONE {kind, request}; END {kind}. */
enum kvx_replay_message {
	KVX_REPLAY_REQUEST = 1,
	KVX_REPLAY_WANT,
	KVX_REPLAY_DONE,
	KVX_REPLAY_END
};

#endif
