/* Ops become a flight: checked once more, turned into addresses of this process, cut where a region
 * made of several allocations needs it, and handed to one stream. A flight has a bounded number of
 * pieces under way, so that no memory that a client makes up of crumbs can make a device slow to
 * run dry: an op of more goes out by parts. Worker thread; the way of every op: no allocation, no
 * lock, no log. */
#include <errno.h>

#include "transport/gpu/gpu_priv.h"

static bool range_fits(uint64_t offset, uint64_t len, uint64_t have)
{
	return offset <= have && len <= have - offset;
}

/* The last check before bytes move: whatever is above got it wrong, nothing outside is touched. */
static int op_check(const struct kvx_op *op)
{
	const struct kvx_mr *remote = op->remote->mr;
	uint32_t right = op->kind == KVX_OP_READ ? KVX_ACCESS_READ : KVX_ACCESS_WRITE;

	if ((op->kind != KVX_OP_READ && op->kind != KVX_OP_WRITE) || op->len_bytes == 0)
		return -EINVAL;
	if (!range_fits(op->local_offset, op->len_bytes, op->local->len_bytes) ||
	    !range_fits(op->remote_offset, op->len_bytes, remote->len_bytes))
		return -ERANGE;
	return (remote->rights & right) ? 0 : -EACCES;
}

/* Address of a byte of mr, and how many follow it there. */
static inline uint64_t mr_addr(const struct kvx_mr *mr, uint64_t offset, uint64_t *out_room)
{
	if (mr->addr != 0) {
		*out_room = mr->len_bytes - offset;
		return mr->addr + offset;
	}
	return kvx_gpu_mem_addr(mr->segments, offset, out_room);
}

/* See struct gpu_shared. */
static int flight_visit(struct gpu_flight *flight, int device)
{
	struct gpu_shared *shared = gpu_shared();
	uint32_t bit = 1u << (unsigned)device;

	if (!(flight->visits & bit)) {
		flight->visits |= bit;
		atomic_fetch_add(&shared->n_visits[device], 1);
	}
	return atomic_load(&shared->lost) & bit ? -ENODEV : 0;
}

void gpu_flight_leave(struct gpu_flight *flight)
{
	while (flight->visits != 0) {
		unsigned device = (unsigned)__builtin_ctz(flight->visits);

		flight->visits &= flight->visits - 1;
		atomic_fetch_sub(&gpu_shared()->n_visits[device], 1);
	}
}

/* Host memory that another device has page-locked: the reset of that one takes the lock away, and
 * waits for those who are there. Once it has, the memory is like any other: plain copies go on. */
static int flight_note_host(struct kvx_dom *dom, struct gpu_flight *flight, int pinner)
{
	dom->build.host = true;
	if (pinner == dom->device || flight_visit(flight, pinner) == 0)
		return 0;
	if (!(atomic_load(&gpu_shared()->lost_resets) & 1u << (unsigned)pinner))
		return -ENODEV;
	dom->build.unlocked = true;
	return 0;
}

/* What kinds of memory the flight is about; -ENODEV: that of a device that is lost. */
static int flight_note_end(struct kvx_dom *dom, struct gpu_flight *flight, const struct kvx_mr *mr)
{
	if (!mr->on_device)
		return flight_note_host(dom, flight, mr->pinner);
	if (mr->device == dom->device)
		return 0;
	dom->build.peer = true;
	return flight_visit(flight, mr->device);
}

static inline void build_add(struct kvx_dom *dom, struct gpu_flight *flight,
			     struct gpu_stream *stream, uint64_t dst, uint64_t src, uint64_t len)
{
	struct gpu_build *build = &dom->build;

	if (build->n == GPU_FLIGHT_COPIES)
		gpu_flight_flush(dom, flight, stream);
	build->dst[build->n] = dst;
	build->src[build->n] = src;
	build->len[build->n++] = len;
	flight->n_pieces++;
}

/* An op between two single ranges is one piece; one that runs over the end of a segment is cut
 * there. What the flight has no room for is left for its next part. */
static void op_add(struct kvx_dom *dom, struct gpu_flight *flight, struct gpu_stream *stream,
		   const struct kvx_op *op)
{
	uint64_t local = op->local_offset, remote = op->remote_offset, left = op->len_bytes;
	bool read = op->kind == KVX_OP_READ;

	while (left > 0 && flight->n_pieces < GPU_FLIGHT_PIECES) {
		uint64_t local_room, remote_room, len = left;
		uint64_t here = mr_addr(op->local, local, &local_room);
		uint64_t there = mr_addr(op->remote->mr, remote, &remote_room);

		len = len < local_room ? len : local_room;
		len = len < remote_room ? len : remote_room;
		build_add(dom, flight, stream, read ? here : there, read ? there : here, len);
		local += len;
		remote += len;
		left -= len;
	}
	if (left > 0) {
		flight->rest = *op;
		flight->rest.local_offset = local;
		flight->rest.remote_offset = remote;
		flight->rest.len_bytes = left;
	}
}

static void flight_take(struct kvx_dom *dom, struct gpu_flight *flight, struct gpu_stream *stream,
			const struct kvx_op *op)
{
	int err = op_check(op);

	if (err == 0)
		err = flight_note_end(dom, flight, op->local);
	if (err == 0)
		err = flight_note_end(dom, flight, op->remote->mr);
	if (err == 0)
		op_add(dom, flight, stream, op);
	else if (flight->status == 0)
		flight->status = err;
}

static void flight_begin(struct kvx_dom *dom, struct gpu_flight *flight)
{
	flight->n_pieces = flight->n_listed = 0;
	flight->rest.len_bytes = 0;
	dom->build.n = 0;
	dom->build.host = dom->build.peer = dom->build.unlocked = false;
}

/* The stream with the fewest flights, and of these the one that waits longest. */
static struct gpu_stream *stream_choose(struct kvx_dom *dom)
{
	struct gpu_stream *best = &dom->streams[dom->next_stream];

	for (unsigned i = 1; i < dom->n_streams && best->n > 0; i++) {
		struct gpu_stream *stream = &dom->streams[(dom->next_stream + i) % dom->n_streams];
		if (stream->n < best->n)
			best = stream;
	}
	dom->next_stream = (unsigned)(best - dom->streams + 1) % dom->n_streams;
	return best;
}

int gpu_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n)
{
	struct kvx_dom *dom = ep->dom;
	struct gpu_flight *flight = dom->free_flights;
	unsigned taken = 0;

	if (atomic_load_explicit(&ep->fenced, memory_order_relaxed))
		return -ESHUTDOWN;
	if (flight == NULL || n == 0)
		return 0;
	if (!gpu_dom_enter(dom))
		return -ENODEV;
	struct gpu_stream *stream = stream_choose(dom);
	dom->free_flights = flight->next;
	flight->ep = ep;
	flight->cookie = ops[0].cookie;
	flight->status = flight->vendor_code = 0;
	flight->visits = 0;
	flight_begin(dom, flight);
	for (; taken < n && ops[taken].cookie == flight->cookie &&
	       flight->n_pieces < GPU_FLIGHT_PIECES;
	     taken++)
		flight_take(dom, flight, stream, &ops[taken]);
	flight->n_ops = taken;
	ep->n_open++;
	dom->n_out++;
	gpu_flight_send(dom, flight, stream);
	gpu_dom_leave(dom);
	return (int)taken;
}

bool gpu_flight_go_on(struct kvx_dom *dom, struct gpu_flight *flight, struct gpu_stream *stream)
{
	struct kvx_ep *ep = flight->ep;
	const struct kvx_op op = flight->rest;

	if (op.len_bytes == 0 || flight->status < 0)
		return false;
	atomic_store(&ep->sending, true); /* a fence waits for it, or has been there */
	bool may = !atomic_load(&ep->fenced);
	if (may) {
		flight_begin(dom, flight);
		flight_take(dom, flight, stream, &op);
		gpu_flight_send(dom, flight, stream);
	}
	atomic_store(&ep->sending, false);
	return may;
}
