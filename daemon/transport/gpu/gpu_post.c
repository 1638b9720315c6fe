/* Ops become a flight: checked once more, turned into addresses of this process, cut where a region
 * made of several allocations needs it, and handed to one stream. Worker thread; the way of every
 * op: no allocation, no lock, no log. */
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

	if (flight->visits & bit)
		return 0;
	flight->visits |= bit;
	atomic_fetch_add(&shared->n_visits[device], 1);
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

/* What kinds of memory the flight is about; -ENODEV: that of a device that is lost. */
static int flight_note_end(struct kvx_dom *dom, struct gpu_flight *flight, const struct kvx_mr *mr)
{
	if (!mr->on_device) {
		dom->build.host = true;
		return 0;
	}
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
}

/* An op between two single ranges is one piece; one that runs over the end of a segment is cut
 * there. */
static void op_add(struct kvx_dom *dom, struct gpu_flight *flight, struct gpu_stream *stream,
		   const struct kvx_op *op)
{
	uint64_t local = op->local_offset, remote = op->remote_offset, left = op->len_bytes;
	bool read = op->kind == KVX_OP_READ;

	while (left > 0) {
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
	flight->n_listed = 0;
	flight->visits = 0;
	dom->build.n = 0;
	dom->build.host = dom->build.peer = false;
	for (; taken < n && ops[taken].cookie == flight->cookie; taken++) {
		int err = op_check(&ops[taken]);

		if (err == 0)
			err = flight_note_end(dom, flight, ops[taken].local);
		if (err == 0)
			err = flight_note_end(dom, flight, ops[taken].remote->mr);
		if (err == 0)
			op_add(dom, flight, stream, &ops[taken]);
		else if (flight->status == 0)
			flight->status = err;
	}
	flight->n_ops = taken;
	ep->n_open++;
	dom->n_out++;
	gpu_flight_send(dom, flight, stream);
	gpu_dom_leave(dom);
	return (int)taken;
}
