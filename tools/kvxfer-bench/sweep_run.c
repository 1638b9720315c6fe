/* Measures one row of the sweep: transfers and limits take turns, each on blocks that were not
 * touched for long, and after every transfer the moved blocks are compared. Main thread. */
#include <stdlib.h>
#include <string.h>

#include "sweep.h"

#define WARMUP       2u
#define LATENCY_RUNS 100u /* latency rows: this many times as many runs */
#define PING_PER_RUN 2u

struct turn {
	struct kvx_sweep_bed *bed;
	const struct kvx_sweep_case *of;
	struct kvx_sweep_row *row;
	struct kvx_scatter out; /* source to destination of the transfers */
	uint64_t *offsets[2];   /* explicit ops: local, remote */
	bool counted;           /* not a warm-up round */
	uint64_t cpu_ns;
};

static void fill_offsets(struct turn *turn, const struct kvx_blocks_view *view)
{
	bool read = turn->of->op == KVXFER_READ;

	for (uint32_t i = 0; i < view->n; i++) {
		turn->offsets[read][i] = view->src[i] * turn->of->shape.block_bytes;
		turn->offsets[!read][i] = view->dst[i] * turn->of->shape.block_bytes;
	}
}

static int turn_transfer(struct turn *turn)
{
	bool read = turn->of->op == KVXFER_READ;
	struct kvx_blocks_view view = kvx_scatter_next(&turn->out, turn->of->shape.n_blocks);
	struct kvxfer_blocks blocks = {
	    .local_plane = turn->of->plane,
	    .remote_plane = turn->of->plane,
	    .n_planes = 1,
	    .n_blocks = view.n,
	    .local_blocks = read ? view.dst : view.src,
	    .remote_blocks = read ? view.src : view.dst,
	};
	struct kvxfer_ops ops = {
	    .n_ops = view.n,
	    .local_offsets = turn->offsets[0],
	    .remote_offsets = turn->offsets[1],
	    .len = turn->of->shape.block_bytes,
	};
	struct kvxfer_transfer transfer = {
	    .op = turn->of->op,
	    .blocks = turn->bed->explicit_ops ? NULL : &blocks,
	    .ops = turn->bed->explicit_ops ? &ops : NULL,
	    .require = turn->of->fabric ? "fabric" : "copy",
	};
	struct kvx_pair_times times;
	uint32_t wrong;

	if (turn->bed->explicit_ops)
		fill_offsets(turn, &view);
	uint64_t cpu = kvx_nodes_cpu_ns(&turn->bed->nodes);

	if (kvx_pair_run(&turn->bed->pair, &transfer, &times) != 0)
		return KVX_BENCH_FAILED;
	cpu = kvx_nodes_cpu_ns(&turn->bed->nodes) - cpu;
	wrong = kvx_blocks_differ(&view);
	if (wrong || turn->bed->pair.bytes != turn->row->bytes) {
		kvx_tool_error("%s of %u blocks: block %u did not arrive as it was sent",
			       read ? "read" : "write", view.n, wrong ? wrong - 1 : 0);
		return KVX_BENCH_FAILED;
	}
	if (turn->counted) {
		turn->cpu_ns += cpu;
		kvx_samples_add(&turn->row->total, (double)times.total_ns / 1e9);
		kvx_samples_add(&turn->row->submit, (double)times.submit_ns / 1e9);
		kvx_samples_add(&turn->row->engine_cpu, (double)times.cpu_ns / 1e9);
	}
	return KVX_BENCH_OK;
}

static int turn_limit(struct turn *turn, unsigned which)
{
	struct kvx_blocks_view view;
	unsigned threads = turn->of->workers > 1 ? turn->of->workers : 1;
	double seconds;

	view = kvx_scatter_next(&turn->out, turn->of->shape.n_blocks);
	if (which == KVX_SWEEP_MEMCPY || which == KVX_SWEEP_NT)
		seconds = kvx_limit_copy(&view, threads,
					 which == KVX_SWEEP_NT ? KVX_LIMIT_NT : KVX_LIMIT_MEMCPY);
	else
		seconds = kvx_stream_run(turn->bed->stream, &view, which == KVX_SWEEP_TCP);
	if (seconds <= 0) {
		kvx_tool_error("the TCP stream broke");
		return KVX_BENCH_FAILED;
	}
	if (turn->counted)
		kvx_samples_add(&turn->row->limits[which], seconds);
	return KVX_BENCH_OK;
}

static int turn_round(struct turn *turn)
{
	bool latency = kvx_shape_is_latency(&turn->of->shape);
	struct kvx_samples *ping = &turn->row->limits[KVX_SWEEP_PING];
	unsigned n_before = ping->n;
	int rc = turn_transfer(turn);

	if (latency) {
		kvx_ping_run(&turn->bed->ping, PING_PER_RUN, ping);
		/* Nanoseconds came; a warm-up round does not count. */
		for (unsigned i = n_before; i < ping->n; i++)
			ping->values[i] /= 1e9;
		if (!turn->counted)
			ping->n = n_before;
		return rc;
	}
	for (unsigned m = 0; m < KVX_SWEEP_PING && rc == KVX_BENCH_OK; m++)
		if ((m >= KVX_SWEEP_TCP) == turn->of->fabric)
			rc = turn_limit(turn, m);
	return rc;
}

int kvx_sweep_measure(struct kvx_sweep_bed *bed, const struct kvx_sweep_case *which,
		      struct kvx_sweep_row *out_row)
{
	bool read = which->op == KVXFER_READ;
	uint64_t rounds =
	    bed->runs * (kvx_shape_is_latency(&which->shape) ? LATENCY_RUNS : 1) + WARMUP;
	struct turn turn = {.bed = bed, .of = which, .row = out_row};
	int rc = KVX_BENCH_OK;

	memset(out_row, 0, sizeof(*out_row));
	out_row->of = *which;
	out_row->bytes = which->shape.block_bytes * which->shape.n_blocks;
	kvx_scatter_init(&turn.out, read ? bed->pair.target_data : bed->pair.data,
			 read ? bed->pair.data : bed->pair.target_data, bed->region_bytes,
			 which->shape.block_bytes, bed->seed);
	for (unsigned i = 0; i < 2; i++)
		turn.offsets[i] = kvx_tool_alloc(which->shape.n_blocks * sizeof(uint64_t));
	/* What an earlier row left in the destination must not pass for this row's work. */
	kvx_pattern_fill(turn.out.src, 0, bed->region_bytes, kvx_random_next(&turn.out.random));
	for (uint64_t r = 0; r < rounds && rc == KVX_BENCH_OK; r++) {
		turn.counted = r >= WARMUP;
		rc = turn_round(&turn);
	}
	snprintf(out_row->transport, sizeof(out_row->transport), "%s", bed->pair.transport);
	if (out_row->total.n > 0)
		out_row->cpu_per_gib = (double)turn.cpu_ns / 1e9 /
				       ((double)out_row->bytes * out_row->total.n / (1ull << 30));
	free(turn.offsets[0]);
	free(turn.offsets[1]);
	kvx_scatter_fini(&turn.out);
	return rc;
}

void kvx_sweep_row_fini(struct kvx_sweep_row *row)
{
	kvx_samples_fini(&row->total);
	kvx_samples_fini(&row->submit);
	kvx_samples_fini(&row->engine_cpu);
	for (unsigned m = 0; m < KVX_SWEEP_N_LIMITS; m++)
		kvx_samples_fini(&row->limits[m]);
}
