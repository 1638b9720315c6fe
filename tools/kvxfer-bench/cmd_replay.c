/* kvxfer-bench replay: a request trace between a prefill and a decode process through real daemons.
 * Reads the trace, starts daemons and engines, reports. Runs in the first process. */
#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "pair.h"
#include "replay.h"

struct replay_options {
	struct kvx_node_options nodes;
	struct kvx_geometry_options geometry;
	const char *trace, *mode, *verify;
	uint64_t requests, cache_bytes, concurrency, shrink, seed, timeout_s;
	double scale;
	bool two_nodes, no_prefix_cache, json, spoil;
};
struct replay_run {
	struct replay_options options;
	struct kvx_replay replay;
	uint32_t n_skipped;
	double seconds;
	char *error;
};

static int replay_parse(struct replay_options *o, int argc, char **argv)
{
	const struct kvx_option options[] = {
	    {"trace", KVX_OPT_STR, &o->trace, "FILE", "requests, JSON lines", 0, 0},
	    {"requests", KVX_OPT_U64, &o->requests, "N", "first requests of the trace", 1, 1e8},
	    {"scale", KVX_OPT_DOUBLE, &o->scale, "F",
	     "arrival times times F; 0: as fast as it goes", 0, 1e6},
	    {"shrink", KVX_OPT_U64, &o->shrink, "N", "prompt lengths divided by N", 1, 512},
	    {"mode", KVX_OPT_STR, &o->mode, "MODE", "write (prefill pushes) or read (decode pulls)",
	     0, 0},
	    {"two-nodes", KVX_OPT_FLAG, &o->two_nodes, NULL, "decode is on another node", 0, 0},
	    {"model", KVX_OPT_STR, &o->geometry.model, "NAME", "geometry", 0, 0},
	    {"planes", KVX_OPT_U64, &o->geometry.planes, "N", "own geometry: planes", 1, 4096},
	    {"block-bytes", KVX_OPT_BYTES, &o->geometry.block_bytes, "BYTES",
	     "own geometry: bytes of a block of one plane", 1, 1e9},
	    {"block-tokens", KVX_OPT_U64, &o->geometry.block_tokens, "N",
	     "own geometry: tokens of a block", 1, 65536},
	    {"cache-bytes", KVX_OPT_BYTES, &o->cache_bytes, "BYTES", "KV pool of each engine",
	     65536, 1e13},
	    {"no-prefix-cache", KVX_OPT_FLAG, &o->no_prefix_cache, NULL,
	     "move shared prefixes again", 0, 0},
	    {"concurrency", KVX_OPT_U64, &o->concurrency, "N", "requests under way at a time", 1,
	     4096},
	    {"verify", KVX_OPT_STR, &o->verify, "HOW", "full, or sample: both ends of every block",
	     0, 0},
	    {"timeout", KVX_OPT_U64, &o->timeout_s, "SEC", "longest run", 1, 1e6},
	    {"seed", KVX_OPT_U64, &o->seed, "N", "of the block ids", 0, 0},
	    {"socket", KVX_OPT_STR, &o->nodes.socket, "PATH", "use this running daemon", 0, 0},
	    {"peer-socket", KVX_OPT_STR, &o->nodes.peer_socket, "PATH",
	     "and this one as the other node", 0, 0},
	    {"kvxferd", KVX_OPT_STR, &o->nodes.conf.binary, "PATH", "the daemon's binary", 0, 0},
	    {"json", KVX_OPT_FLAG, &o->json, NULL, "print JSON", 0, 0},
	    {"verbose", KVX_OPT_FLAG, &o->nodes.conf.verbose, NULL, "show the daemons' logs", 0, 0},
	    {"self-test", KVX_OPT_FLAG, &o->spoil, NULL,
	     "spoil a byte of each request: the replay must fail", 0, 0},
	    {0},
	};

	return kvx_options_parse(options, "replay", argc, argv);
}

static int replay_check(const struct replay_options *o, struct kvx_replay *replay)
{
	if (!o->trace) {
		kvx_tool_error("replay needs --trace FILE");
		return KVX_BENCH_USAGE;
	}
	if (strcmp(o->mode, "write") != 0 && strcmp(o->mode, "read") != 0) {
		kvx_tool_error("--mode takes write or read");
		return KVX_BENCH_USAGE;
	}
	if (strcmp(o->verify, "full") != 0 && strcmp(o->verify, "sample") != 0) {
		kvx_tool_error("--verify takes full or sample");
		return KVX_BENCH_USAGE;
	}
	replay->op = o->mode[0] == 'w' ? KVXFER_WRITE : KVXFER_READ;
	replay->check_all = o->verify[0] == 'f';
	return kvx_geometry_choose(&o->geometry, &replay->geometry);
}

/* Leaves out, aloud, what no pool of this size can hold. */
static int trace_fit(struct replay_run *run)
{
	struct kvx_replay *replay = &run->replay;
	uint32_t n = 0;

	for (uint32_t i = 0; i < replay->trace.n_requests; i++) {
		if (kvx_replay_total_blocks(replay, i) > replay->n_pool_blocks)
			run->n_skipped++;
		else
			replay->trace.requests[n++] = replay->trace.requests[i];
	}
	replay->trace.n_requests = n;
	if (run->n_skipped)
		kvx_tool_error(
		    "%u of %u requests left out: larger than --cache-bytes (or use --shrink)",
		    run->n_skipped, run->n_skipped + n);
	return n > 0 ? 0 : KVX_BENCH_FAILED;
}

static int replay_prepare(struct replay_run *run)
{
	struct kvx_replay *replay = &run->replay;
	uint64_t pool = run->options.cache_bytes / kvx_geometry_block_total(&replay->geometry);
	size_t bytes;

	replay->scale = run->options.scale;
	replay->shrink = run->options.shrink;
	replay->concurrency = (uint32_t)run->options.concurrency;
	replay->prefix_cache = !run->options.no_prefix_cache;
	replay->seed = run->options.seed;
	replay->spoil = run->options.spoil;
	replay->n_pool_blocks = pool > UINT32_MAX ? UINT32_MAX : (uint32_t)pool;
	if (kvx_trace_load(run->options.trace, (uint32_t)run->options.requests, &replay->trace) !=
	    0)
		return KVX_BENCH_FAILED;
	if (trace_fit(run) != 0)
		return KVX_BENCH_FAILED;
	bytes = sizeof(*replay->shared) + replay->trace.n_requests * sizeof(uint64_t);
	replay->shared =
	    mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (replay->shared == MAP_FAILED ||
	    kvx_chan_pair(&replay->prefill_chan, &replay->decode_chan)) {
		kvx_tool_error("%s", strerror(errno));
		return KVX_BENCH_FAILED;
	}
	return KVX_BENCH_OK;
}

static void watch_progress(struct replay_run *run, pid_t pid, uint64_t deadline)
{
	struct kvx_progress progress = {.total = run->replay.trace.n_requests};
	struct timespec pause = {.tv_nsec = 100000000};

	progress.quiet = !isatty(STDERR_FILENO);
	/* The decode process is the last to end; its CPU clock is gone when it is. */
	while (kvx_now_ns() < deadline && kvx_process_status(pid, "VmRSS") > 0) {
		uint32_t n_done = run->replay.shared->n_done;

		if (n_done == progress.total)
			break;
		progress.done = n_done > 0 ? n_done - 1 : 0;
		if (!progress.quiet)
			kvx_progress_step(&progress, "requests");
		nanosleep(&pause, NULL);
	}
	kvx_progress_end(&progress);
}

static void replay_judge(struct replay_run *run, int prefill_status, int decode_status)
{
	struct kvx_replay_shared *shared = run->replay.shared;

	if (!shared->decode.ok)
		run->error = kvx_tool_printf("decode (%d): %s", decode_status, shared->decode.text);
	else if (!shared->prefill.ok)
		run->error =
		    kvx_tool_printf("prefill (%d): %s", prefill_status, shared->prefill.text);
	else if (shared->decode.n_requests != run->replay.trace.n_requests)
		run->error = kvx_tool_printf("%llu of %u requests were verified",
					     (unsigned long long)shared->decode.n_requests,
					     run->replay.trace.n_requests);
	if (run->error)
		kvx_tool_error("%s", run->error);
}

static int replay_run(struct replay_run *run)
{
	struct kvx_replay *replay = &run->replay;
	struct kvx_nodes nodes;
	uint64_t start, deadline;
	int rc = kvx_nodes_start(&nodes, &run->options.nodes, run->options.two_nodes ? 2 : 1);

	if (rc != KVX_BENCH_OK)
		return rc;
	replay->prefill_socket = nodes.daemon[0].socket;
	replay->decode_socket = nodes.daemon[run->options.two_nodes].socket;
	start = kvx_now_ns();
	deadline = start + run->options.timeout_s * 1000000000ull;
	pid_t prefill = kvx_engine_fork(kvx_replay_prefill, replay);
	pid_t decode = kvx_engine_fork(kvx_replay_decode, replay);

	kvx_chan_fini(&replay->prefill_chan);
	kvx_chan_fini(&replay->decode_chan);
	watch_progress(run, decode, deadline);
	int decode_status = kvx_engine_wait(decode, deadline);
	int prefill_status = kvx_engine_wait(prefill, kvx_now_ns() + 10000000000ull);

	run->seconds = (double)(kvx_now_ns() - start) / 1e9;
	replay_judge(run, prefill_status, decode_status);
	kvx_nodes_stop(&nodes);
	return run->error ? KVX_BENCH_FAILED : KVX_BENCH_OK;
}

static void report_json(const struct replay_run *run, struct kvx_samples *latency, double rate)
{
	const struct kvx_replay *replay = &run->replay;
	const struct kvx_replay_side *mover =
	    replay->op == KVXFER_WRITE ? &replay->shared->prefill : &replay->shared->decode;
	struct json_object *obj = json_object_new_object();

	json_object_object_add(obj, "machine", kvx_machine_json());
	kvx_json_set_str(obj, "model", replay->geometry.name);
	kvx_json_set_str(obj, "mode", run->options.mode);
	kvx_json_set_bool(obj, "two_nodes", run->options.two_nodes);
	kvx_json_set_str(obj, "transport", mover->transport);
	kvx_json_set_u64(obj, "requests", replay->trace.n_requests);
	kvx_json_set_u64(obj, "requests_left_out", run->n_skipped);
	kvx_json_set_u64(obj, "requests_verified", replay->shared->decode.n_requests);
	kvx_json_set_u64(obj, "transfers", mover->n_transfers);
	kvx_json_set_u64(obj, "moved_bytes", mover->moved_bytes);
	kvx_json_set_u64(obj, "cached_bytes", replay->shared->decode.cached_bytes);
	kvx_json_set_u64(obj, "checked_bytes", replay->shared->decode.checked_bytes);
	kvx_json_set_str(obj, "verify", run->options.verify);
	kvx_json_set_double(obj, "seconds", run->seconds);
	kvx_json_set_double(obj, "bytes_per_second_while_moving", rate);
	json_object_object_add(obj, "latency_ns", kvx_samples_json(latency));
	kvx_json_set_bool(obj, "verified", !run->error);
	kvx_json_set_str(obj, "error", run->error ? run->error : "");
	kvx_json_print(obj, stdout);
	json_object_put(obj);
}

static void report_text(const struct replay_run *run, struct kvx_samples *latency, double rate)
{
	const struct kvx_replay *replay = &run->replay;
	const struct kvx_replay_side *decode = &replay->shared->decode;
	const struct kvx_replay_side *mover =
	    replay->op == KVXFER_WRITE ? &replay->shared->prefill : decode;
	char a[KVX_UNIT_BYTES], b[KVX_UNIT_BYTES];

	printf("%s, %s, %s by %s, %.1f s\n", replay->geometry.title, run->options.mode,
	       run->options.two_nodes ? "two nodes" : "same node",
	       *mover->transport ? mover->transport : "nothing", run->seconds);
	printf("requests   %u, %llu of them verified, %u left out\n", replay->trace.n_requests,
	       (unsigned long long)decode->n_requests, run->n_skipped);
	printf("moved      %s in %llu transfers, %.2f GB/s while moving\n",
	       kvx_unit_bytes(a, mover->moved_bytes), (unsigned long long)mover->n_transfers,
	       rate / 1e9);
	printf("cached     %s were there and not moved again\n",
	       kvx_unit_bytes(a, decode->cached_bytes));
	printf("latency    p50 %s, p99 %s\n", kvx_unit_ns(a, (uint64_t)kvx_samples_median(latency)),
	       kvx_unit_ns(b, (uint64_t)kvx_samples_at(latency, 0.99)));
	printf("verified   %s compared (%s), %s\n", kvx_unit_bytes(a, decode->checked_bytes),
	       run->options.verify, run->error ? "FAILED" : "all right");
}

static void replay_report(const struct replay_run *run)
{
	const struct kvx_replay *replay = &run->replay;
	const struct kvx_replay_side *mover =
	    replay->op == KVXFER_WRITE ? &replay->shared->prefill : &replay->shared->decode;
	struct kvx_samples latency = {0};
	double rate =
	    mover->busy_ns ? (double)mover->moved_bytes / ((double)mover->busy_ns / 1e9) : 0;

	for (uint32_t i = 0; i < replay->trace.n_requests; i++)
		if (replay->shared->latency_ns[i])
			kvx_samples_add(&latency, (double)replay->shared->latency_ns[i]);
	if (run->options.json)
		report_json(run, &latency, rate);
	else
		report_text(run, &latency, rate);
	kvx_samples_fini(&latency);
}

int kvx_bench_replay(int argc, char **argv)
{
	struct replay_run run = {
	    .options = {.geometry = {.model = "qwen3-235b-tp4", .block_tokens = 16},
			.mode = "write",
			.verify = "full",
			.requests = 200,
			.cache_bytes = 2ull << 30,
			.concurrency = 8,
			.shrink = 1,
			.seed = 1,
			.timeout_s = 3600,
			.scale = 0.1},
	};
	int rc = replay_parse(&run.options, argc, argv);

	if (rc == 0)
		rc = replay_check(&run.options, &run.replay);
	if (rc != 0)
		return rc < 0 ? KVX_BENCH_OK : rc;
	rc = replay_prepare(&run);
	if (rc == KVX_BENCH_OK) {
		rc = replay_run(&run);
		if (rc != KVX_BENCH_NO_DAEMON && rc != KVX_BENCH_USAGE)
			replay_report(&run);
	}
	kvx_trace_fini(&run.replay.trace);
	free(run.error);
	return rc;
}
