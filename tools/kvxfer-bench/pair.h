/* Two clients in this process, the mover and the target, on one daemon or on two: what sweep,
 * submit and latency measure with. One thread. */
#ifndef KVX_PAIR_H
#define KVX_PAIR_H

#include "bench.h"
#include "kvxfer/client.h"

struct kvx_pair_conf {
	const char *mover_socket, *target_socket; /* equal: same node */
	uint64_t region_bytes;
	const struct kvxfer_plane *planes; /* of both regions */
	uint32_t n_planes;
};
struct kvx_pair {
	struct kvxfer_client *mover, *target;
	struct kvxfer_region *region, *target_region;
	struct kvxfer_import *import_;
	uint8_t *data, *target_data;
	/* From events. */
	uint64_t ended_ns; /* when the mover saw the terminal event; 0: not yet */
	int status;
	uint64_t bytes;
	char transport[32], text[160];
	uint64_t n_arrivals;
};
struct kvx_pair_times {
	uint64_t submit_ns; /* inside kvxfer_transfer_submit() */
	uint64_t total_ns;  /* submit to terminal event, as the engine sees it */
	uint64_t cpu_ns;    /* CPU time of the engine's thread for all of it */
};

/* Fills both regions with different patterns. KVX_BENCH_OK, or the exit code; the reason was
 * printed. */
int kvx_pair_open(struct kvx_pair *pair, const struct kvx_pair_conf *conf);
void kvx_pair_close(struct kvx_pair *pair);
/* Submits, waits for the terminal event, then takes the target's events. 0, or -1 with the reason
 * printed. The transfer's region and import are filled in. */
int kvx_pair_run(struct kvx_pair *pair, struct kvxfer_transfer *transfer,
		 struct kvx_pair_times *out_times);

/* Daemons of a measurement: own ones, or those behind the sockets given. */
struct kvx_nodes {
	struct kvx_daemon daemon[2];
	unsigned n;
	pid_t pids[2]; /* also of daemons that are not ours; 0: unknown */
};
struct kvx_node_options {
	const char *socket, *peer_socket; /* NULL: own daemons */
	struct kvx_daemon_conf conf;
};
/* n: 1 or 2. */
int kvx_nodes_start(struct kvx_nodes *nodes, const struct kvx_node_options *options, unsigned n);
void kvx_nodes_stop(struct kvx_nodes *nodes);
/* CPU time of all daemons and of this process. */
uint64_t kvx_nodes_cpu_ns(const struct kvx_nodes *nodes);

#endif
