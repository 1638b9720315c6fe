/* What the subcommands of kvxfer-bench share: options, samples, progress, geometries, patterns,
 * child processes, channels between them. One thread unless a function says otherwise. */
#ifndef KVX_BENCH_H
#define KVX_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "common/tool.h"

struct json_object;

/* Documented in kvxfer-bench(1). */
enum kvx_bench_exit {
	KVX_BENCH_OK = 0,
	KVX_BENCH_FAILED = 1, /* a byte was wrong, a transfer failed, a process died */
	KVX_BENCH_USAGE = 2,
	KVX_BENCH_NO_DAEMON = 3, /* no daemon could be started or reached */
};

/* ---- options */
enum kvx_option_kind { KVX_OPT_FLAG, KVX_OPT_U64, KVX_OPT_BYTES, KVX_OPT_DOUBLE, KVX_OPT_STR };
struct kvx_option {
	const char *name; /* without the dashes */
	enum kvx_option_kind kind;
	void *out;         /* bool, uint64_t, uint64_t, double, const char * */
	const char *label; /* of the value, for the help */
	const char *help;
	double min, max; /* of numbers; both 0: any */
};
/* options ends with a NULL name. 0; -1: end with KVX_BENCH_OK (help was printed); KVX_BENCH_USAGE.
 */
int kvx_options_parse(const struct kvx_option *options, const char *command, int argc, char **argv);

/* ---- time and samples */
uint64_t kvx_now_ns(void);
struct kvx_samples {
	double *values;
	unsigned n, max;
	bool sorted;
};
void kvx_samples_add(struct kvx_samples *samples, double value);
void kvx_samples_fini(struct kvx_samples *samples);
/* q in 0..1, nearest rank; 0 without samples. The sorting is done at the first call. */
double kvx_samples_at(struct kvx_samples *samples, double q);
double kvx_samples_median(struct kvx_samples *samples); /* mean of the two middle ones */
double kvx_samples_sum(const struct kvx_samples *samples);
/* {median, min, max, p25, p75, p99, n} */
struct json_object *kvx_samples_json(struct kvx_samples *samples);

/* ---- random numbers: small, fast, the same for the same seed */
struct kvx_random {
	uint64_t state;
};
uint64_t kvx_random_next(struct kvx_random *random);
uint64_t kvx_random_below(struct kvx_random *random, uint64_t n); /* n > 0 */
/* A random order of 0..n-1; free(3). */
uint32_t *kvx_random_order(struct kvx_random *random, uint32_t n);

/* ---- progress, on stderr: a bar on a terminal, a line a step elsewhere */
struct kvx_progress {
	unsigned total, done;
	bool quiet;
};
void kvx_progress_step(struct kvx_progress *progress, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void kvx_progress_end(struct kvx_progress *progress);

/* ---- geometries: what the KV cache of a model looks like */
struct kvx_geometry {
	const char *name;
	const char *title;
	uint32_t n_layers;
	uint32_t planes_per_layer;
	uint32_t block_tokens;
	uint64_t block_bytes; /* of one plane */
};
const struct kvx_geometry *kvx_geometry_at(unsigned i); /* NULL past the last */
const struct kvx_geometry *kvx_geometry_find(const char *name);
uint32_t kvx_geometry_planes(const struct kvx_geometry *geometry);
uint64_t kvx_geometry_block_total(const struct kvx_geometry *geometry); /* of all planes */
uint32_t kvx_geometry_blocks(const struct kvx_geometry *geometry, uint64_t tokens);
/* The options that name a geometry. */
struct kvx_geometry_options {
	const char *model;
	uint64_t planes, block_bytes, block_tokens;
};
/* The custom one where planes and block_bytes are given, else the model's. 0 or KVX_BENCH_USAGE. */
int kvx_geometry_choose(const struct kvx_geometry_options *options,
			struct kvx_geometry *out_geometry);

/* ---- patterns: a stream of bytes per seed; equal bytes at two places are as unlikely as in noise
 */
uint64_t kvx_pattern_seed(uint64_t a, uint64_t b, uint64_t c);
/* Bytes [from, from + len) of the stream. */
void kvx_pattern_fill(void *mem, uint64_t from, uint64_t len, uint64_t seed);
/* len when all are right, else the index of the first wrong byte. */
uint64_t kvx_pattern_check(const void *mem, uint64_t from, uint64_t len, uint64_t seed);

/* ---- processes */
#define KVX_BENCH_PATH 256
struct kvx_daemon_conf {
	const char *binary;    /* NULL: found beside this program, then in $PATH */
	uint64_t copy_workers; /* 0: the daemon's default */
	const char *extra;     /* more lines of the config file, NULL: none */
	bool verbose;          /* the daemon's log goes to stderr */
};
struct kvx_daemon {
	pid_t pid; /* 0: not ours: it ran before */
	char socket[KVX_BENCH_PATH];
	char log[KVX_BENCH_PATH];
};
/* Starts a daemon as a node of its own under the temporary directory and waits until it answers.
 * KVX_BENCH_OK or KVX_BENCH_NO_DAEMON with the reason and the end of its log printed. */
int kvx_daemon_start(const struct kvx_daemon_conf *conf, const char *name,
		     struct kvx_daemon *out_daemon);
/* SIGTERM, and SIGKILL when that does not end it in 5 s. Safe for one that never started. */
void kvx_daemon_stop(struct kvx_daemon *daemon);
/* The temporary directory of this run; removed, and daemons still running stopped, when the program
 * ends. NULL: cannot be made (said). */
const char *kvx_bench_dir(void);
/* CPU time that a process has used, in ns; 0 when it is gone. */
uint64_t kvx_process_cpu_ns(pid_t pid);
/* Number of "key:" in /proc/PID/status; 0 when it is not there. Memory is in KiB. */
uint64_t kvx_process_status(pid_t pid, const char *key);
/* Voluntary context switches of all threads: how often the process went to sleep. */
uint64_t kvx_process_sleeps(pid_t pid);
/* Forks an engine: runs main(arg) and exits with its result. The child dies with this process. */
pid_t kvx_engine_fork(int (*main)(void *arg), void *arg);
/* Waits for a child until the deadline; kills it then. Its exit status, or 128 + signal, or -1. */
int kvx_engine_wait(pid_t pid, uint64_t deadline_ns);

/* ---- channel: whole messages over a socket pair, as an engine's own control path; never blocks on
 * sending */
struct kvx_chan {
	int fd;
	uint8_t *out, *in;
	size_t out_len, out_max, in_len, in_max, in_used;
};
int kvx_chan_pair(struct kvx_chan *a, struct kvx_chan *b);
void kvx_chan_fini(struct kvx_chan *chan);
int kvx_chan_send(struct kvx_chan *chan, const void *data, size_t len);
/* Moves bytes both ways, waiting at most timeout_ms for something to come; 0 or -errno, -ECONNRESET
 * when the other end is gone and nothing is left to read. */
int kvx_chan_pump(struct kvx_chan *chan, int timeout_ms);
/* The next whole message, valid until the next pump; NULL: none yet. */
const void *kvx_chan_next(struct kvx_chan *chan, size_t *out_len);
/* Waits for the next message. NULL: none within timeout_ms, or the other end is gone. */
const void *kvx_chan_wait(struct kvx_chan *chan, int timeout_ms, size_t *out_len);

/* What this machine is, for reports. */
struct json_object *kvx_machine_json(void);
void kvx_machine_print(FILE *f);

int kvx_bench_demo(int argc, char **argv);
int kvx_bench_sweep(int argc, char **argv);
int kvx_bench_limits(int argc, char **argv);
int kvx_bench_submit(int argc, char **argv);
int kvx_bench_latency(int argc, char **argv);
int kvx_bench_idle(int argc, char **argv);
int kvx_bench_replay(int argc, char **argv);

#endif
