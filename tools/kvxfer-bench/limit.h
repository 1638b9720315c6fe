/* What the machine can do without kvxfer: copies, round trips, a TCP stream, of the same scattered
 * blocks. Main thread, except for the threads and processes that they start themselves and end. */
#ifndef KVX_LIMITS_H
#define KVX_LIMITS_H

#include "bench.h"

/* Scattered blocks of one length in two mappings: block ids, drawn from a random order so that a
 * block comes again only after all others: the memory is cold. */
struct kvx_scatter {
	uint8_t *src, *dst;
	uint64_t block_bytes;
	uint32_t n_slots; /* blocks in each mapping */
	uint32_t *src_order, *dst_order;
	uint32_t at;
	struct kvx_random random;
};
void kvx_scatter_init(struct kvx_scatter *scatter, uint8_t *src, uint8_t *dst,
		      uint64_t region_bytes, uint64_t block_bytes, uint64_t seed);
void kvx_scatter_fini(struct kvx_scatter *scatter);
/* The next n block ids of each side, n <= n_slots; valid until the next call. */
struct kvx_blocks_view {
	const struct kvx_scatter *scatter;
	const uint32_t *src, *dst;
	uint32_t n;
};
struct kvx_blocks_view kvx_scatter_next(struct kvx_scatter *scatter, uint32_t n);
/* 0 when the destination blocks hold what the source blocks hold, else 1 + index of the first that
 * does not. */
uint32_t kvx_blocks_differ(const struct kvx_blocks_view *view);

enum kvx_limit_kernel { KVX_LIMIT_MEMCPY, KVX_LIMIT_NT };
/* Seconds to copy the blocks with n_threads threads (1 or more), each bound to nothing. */
double kvx_limit_copy(const struct kvx_blocks_view *view, unsigned n_threads,
		      enum kvx_limit_kernel kernel);

/* Ping-pong with another process. */
enum kvx_ping_kind { KVX_PING_UNIX, KVX_PING_EVENTFD };
struct kvx_ping {
	enum kvx_ping_kind kind;
	int fds[2]; /* to write to, to read from; equal for the socket */
	pid_t child;
};
int kvx_ping_start(struct kvx_ping *ping, enum kvx_ping_kind kind);
/* n round trips of 64 bytes (eventfd: 8), blocking; nanoseconds each are added. */
void kvx_ping_run(struct kvx_ping *ping, unsigned n, struct kvx_samples *out_ns);
void kvx_ping_stop(struct kvx_ping *ping);

/* One TCP connection over loopback. The sender gathers the blocks with writev(2); the receiver, a
 * thread, scatters them with readv(2), or reads them into one small buffer. */
struct kvx_stream;
int kvx_stream_start(struct kvx_stream **out_stream);
/* Seconds until the receiver has everything and has said so. */
double kvx_stream_run(struct kvx_stream *stream, const struct kvx_blocks_view *view, bool scatter);
void kvx_stream_stop(struct kvx_stream *stream);

/* The shapes of the KV pattern: blocks of one size, together 64 MiB, or single ones. */
struct kvx_shape {
	const char *name;
	uint64_t block_bytes;
	uint32_t n_blocks;
};
#define KVX_MAX_SHAPES 64u
/* The standard shapes a to g. Returns how many. */
unsigned kvx_shapes_standard(struct kvx_shape *shapes);
/* "4K,64K" and a batch (0: as many as make 64 MiB) -> shapes. 0 or KVX_BENCH_USAGE. */
int kvx_shapes_parse(const char *sizes, uint64_t batch, uint64_t region_bytes,
		     struct kvx_shape *shapes, unsigned *out_n);
/* One block is measured as latency, more as throughput. */
bool kvx_shape_is_latency(const struct kvx_shape *shape);
char *kvx_shape_text(char *buf, const struct kvx_shape *shape); /* "1024 x 64 KiB" */
#define KVX_SHAPE_TEXT 80

#endif
