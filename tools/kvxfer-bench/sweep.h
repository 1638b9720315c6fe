/* The parts of `kvxfer-bench sweep`: one row is a shape, an op, a path and a number of copy
 * workers, measured in turns with the limits that it is compared to. One thread. */
#ifndef KVX_SWEEP_H
#define KVX_SWEEP_H

#include "limit.h"
#include "pair.h"

struct kvx_sweep_options {
	struct kvx_node_options nodes;
	const char *ops, *paths, *sizes, *workers;
	uint64_t region_bytes, runs, batch, seed;
	bool explicit_ops, json, csv;
};
/* What one row is about. */
struct kvx_sweep_case {
	struct kvx_shape shape;
	uint32_t plane; /* of the regions' layout, with the shape's block size */
	int op;
	bool fabric;
	unsigned workers; /* 0: not known or not used */
};
/* Limits measured in turns with the transfers; LIMIT_ONE is another name of the first. */
enum {
	KVX_SWEEP_MEMCPY,
	KVX_SWEEP_NT,
	KVX_SWEEP_TCP,
	KVX_SWEEP_TCP_SINK,
	KVX_SWEEP_PING,
	KVX_SWEEP_N_LIMITS
};
struct kvx_sweep_row {
	struct kvx_sweep_case of;
	char transport[32];
	struct kvx_samples total;                      /* seconds a batch */
	struct kvx_samples submit;                     /* seconds */
	struct kvx_samples engine_cpu;                 /* seconds of the engine's thread */
	struct kvx_samples limits[KVX_SWEEP_N_LIMITS]; /* seconds */
	uint64_t bytes;                                /* a batch */
	double cpu_per_gib;                            /* CPU seconds of all processes */
};
/* Everything that rows of one path and one number of workers share. */
struct kvx_sweep_bed {
	struct kvx_nodes nodes;
	struct kvx_pair pair;
	struct kvx_stream *stream;
	struct kvx_ping ping;
	uint64_t seed, runs, region_bytes;
	bool explicit_ops;
};

/* 0 or an exit code, the reason printed. */
int kvx_sweep_measure(struct kvx_sweep_bed *bed, const struct kvx_sweep_case *which,
		      struct kvx_sweep_row *out_row);
void kvx_sweep_row_fini(struct kvx_sweep_row *row);

/* The limit that a row is compared to: name, and GB/s (latency: ns). */
double kvx_sweep_limit(struct kvx_sweep_row *row, const char **out_name);
/* The row's own number in the same unit. */
double kvx_sweep_value(struct kvx_sweep_row *row);
void kvx_sweep_print(struct kvx_sweep_row *rows, unsigned n, FILE *f);
void kvx_sweep_print_csv(struct kvx_sweep_row *rows, unsigned n, FILE *f);
void kvx_sweep_print_json(struct kvx_sweep_row *rows, unsigned n,
			  const struct kvx_sweep_options *options, FILE *f);

#endif
