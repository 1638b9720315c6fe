/* The parts of `kvxfer-bench demo`: a run is one row of its table, made by a prefill and a decode
 * process. Everything here runs in one thread of one of the three processes. */
#ifndef KVX_DEMO_H
#define KVX_DEMO_H

#include "bench.h"
#include "kvxfer/client.h"

#define KVX_DEMO_MAX_REQUESTS 1024u
#define KVX_DEMO_TEXT         200u
#define KVX_DEMO_TIMEOUT_MS   60000

/* What one row does; the same in all processes. */
struct kvx_demo_run {
	struct kvx_geometry geometry;
	int op; /* enum kvxfer_op */
	bool two_nodes;
	const char *prefill_socket, *decode_socket;
	uint32_t n_requests;
	uint32_t n_blocks;      /* of one request */
	uint32_t n_pool_blocks; /* of each engine's pool */
	uint64_t seed;
	bool spoil; /* self-test: wrong bytes on purpose, which must be found */
	struct kvx_chan prefill_chan, decode_chan; /* of the two engines, to each other */
	int prefill_result, decode_result;         /* write ends of pipes */
};

/* What an engine reports at its end. */
struct kvx_demo_result {
	int ok;
	char text[KVX_DEMO_TEXT]; /* the first thing that went wrong */
	char transport[32];       /* the submitter: taken by every transfer, from its events */
	uint32_t n_latencies;     /* the submitter: one per request */
	uint64_t latency_ns[KVX_DEMO_MAX_REQUESTS];
	uint64_t moved_bytes;
	uint64_t checked_bytes; /* bytes of the own region compared at the end: all of it */
	uint64_t wrong_bytes;
};

/* One engine: its client, pool and what has come to it. */
struct kvx_demo_engine {
	const struct kvx_demo_run *run;
	bool is_prefill;
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	struct kvxfer_import *remote;
	uint8_t *data;
	uint32_t *order; /* [n_pool_blocks]: request r owns order[r * n_blocks ...] */
	uint32_t *owner; /* [n_pool_blocks]: request + 1 or 0 */
	uint32_t *index; /* [n_pool_blocks]: which block of its request */
	struct kvx_demo_result *result;
	/* From events. */
	uint64_t n_terminal;
	struct kvxfer_event last_terminal; /* pointers void */
	char last_transport[32], last_text[KVX_DEMO_TEXT];
	uint8_t arrived[KVX_DEMO_MAX_REQUESTS]; /* 1: told OK with the right payload */
	uint8_t released[KVX_DEMO_MAX_REQUESTS];
	uint32_t *remote_blocks; /* [n_blocks]: of the request now under way */
	uint32_t n_remote_blocks, remote_request;
};

/* Both engines' main functions, for kvx_engine_fork(); arg is the run. */
int kvx_demo_prefill(void *run);
int kvx_demo_decode(void *run);

/* Notes the first failure and returns -1. */
int kvx_demo_fail(struct kvx_demo_engine *engine, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Client, region filled with what belongs there, the other's descriptor imported. 0 or -1. */
int kvx_demo_open(struct kvx_demo_engine *engine, struct kvx_demo_run *run, bool is_prefill,
		  struct kvx_demo_result *result);
void kvx_demo_close(struct kvx_demo_engine *engine);
/* Waits until done(engine) or the time is over (-1, noted with `what`). */
int kvx_demo_wait(struct kvx_demo_engine *engine,
		  bool (*done)(const struct kvx_demo_engine *engine), const char *what);
/* Tells the other engine which blocks of this one's pool hold (or take) a request. 0 or -1. */
int kvx_demo_send_blocks(struct kvx_demo_engine *engine, uint32_t request);
int kvx_demo_send_release(struct kvx_demo_engine *engine, uint32_t request);

/* Whether this side of the run holds the data before the transfers. */
bool kvx_demo_is_source(const struct kvx_demo_engine *engine);
/* Fills the pool: canary everywhere, and on the source the blocks of all requests. */
void kvx_demo_fill(struct kvx_demo_engine *engine);
/* Every byte of one request's blocks. 0 or -1, noted. */
int kvx_demo_check_request(struct kvx_demo_engine *engine, uint32_t request);
/* Every byte of the region: requests' blocks hold the requests, everything else is untouched. */
int kvx_demo_check_region(struct kvx_demo_engine *engine);
/* Flips one byte of the pool that no request owns, and one that request 0 owns. */
void kvx_demo_spoil(struct kvx_demo_engine *engine);

#endif
