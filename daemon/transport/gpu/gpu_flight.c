/* A flight goes to a stream, in the form that costs least: small pieces by the gather kernel, rows
 * of equal distance as one two-dimensional copy, the rest as one batch where the runtime takes
 * batches, else one by one. Worker thread; no allocation, no lock. */
#include <errno.h>

#include "transport/gpu/gpu_priv.h"

#define RUN_MIN      8u /* rows from which on a two-dimensional copy is worth it */
#define RECORD_TRIES 3u
#define PITCH_MAX    0x7fffffffu /* what every runtime takes */

/* The first failure of handing over decides; what is on the stream already is waited for. */
static bool flight_check(struct kvx_dom *dom, struct gpu_flight *flight, int err)
{
	if (err == 0)
		return true;
	if (flight->status == 0) {
		flight->status = err;
		flight->vendor_code = kvx_gpu_code();
	}
	if (err == -ENODEV)
		gpu_dom_lose(dom, kvx_gpu_code(), "the device answers only errors");
	return false;
}

/* ---- the kernel */

static bool build_can_gather(const struct kvx_dom *dom, const struct gpu_flight *flight)
{
	const struct gpu_build *build = &dom->build;

	if (dom->gather_max_bytes == 0 || (build->host && !dom->host_direct))
		return false;
	if (build->unlocked) /* plain copies go on, a kernel would not survive it */
		return false;
	/* Memory of a device that this one does not reach by itself: the runtime copies around. */
	uint32_t direct = atomic_load_explicit(&dom->peers_direct, memory_order_relaxed) |
			  1u << (unsigned)dom->device;
	return !build->peer || (flight->visits & ~direct) == 0;
}

/* Takes the small pieces out of the build and gives them to the kernel. */
static void flight_gather(struct kvx_dom *dom, struct gpu_flight *flight, struct gpu_stream *stream)
{
	struct gpu_build *build = &dom->build;
	struct kvx_gpu_piece *list = flight->list + flight->n_listed;
	unsigned n = 0, left = 0, room = GPU_FLIGHT_COPIES - flight->n_listed;

	for (unsigned i = 0; i < build->n; i++) {
		if (build->len[i] <= dom->gather_max_bytes && n < room) {
			list[n++] =
			    (struct kvx_gpu_piece){build->dst[i], build->src[i], build->len[i]};
			continue;
		}
		build->dst[left] = build->dst[i];
		build->src[left] = build->src[i];
		build->len[left++] = build->len[i];
	}
	build->n = left;
	if (n == 0)
		return;
	flight->n_listed += n;
	kvx_counter_add(&dom->counters.gathered, n);
	flight_check(
	    dom, flight,
	    dom->gpu->ops->kernel_run(dom->gpu, dom->kernel, (uintptr_t)list, n, stream->stream));
}

/* ---- rows */

/* How many pieces from `at` on have the same length and the same distances as the first two. */
static unsigned build_run(const struct gpu_build *build, unsigned at)
{
	unsigned i = at + 1;
	uint64_t len = build->len[at];

	if (i >= build->n || build->len[i] != len)
		return 1;
	uint64_t dst_pitch = build->dst[i] - build->dst[at];
	uint64_t src_pitch = build->src[i] - build->src[at];
	if (dst_pitch < len || src_pitch < len || dst_pitch > PITCH_MAX || src_pitch > PITCH_MAX)
		return 1;
	for (i++; i < build->n; i++)
		if (build->len[i] != len || build->dst[i] - build->dst[i - 1] != dst_pitch ||
		    build->src[i] - build->src[i - 1] != src_pitch)
			break;
	return i - at;
}

/* Takes rows out of the build. Between two devices only plain copies are sure to take the direct
 * way. */
static bool flight_rows(struct kvx_dom *dom, struct gpu_flight *flight, struct gpu_stream *stream)
{
	struct gpu_build *build = &dom->build;
	unsigned left = 0;

	for (unsigned i = 0; i < build->n;) {
		unsigned n = build_run(build, i);

		if (n >= RUN_MIN) {
			const struct kvx_gpu_rect rect = {
			    .dst = build->dst[i],
			    .src = build->src[i],
			    .dst_pitch = build->dst[i + 1] - build->dst[i],
			    .src_pitch = build->src[i + 1] - build->src[i],
			    .width = build->len[i],
			    .height = n,
			};
			if (!flight_check(
				dom, flight,
				dom->gpu->ops->copy_rect(dom->gpu, &rect, stream->stream)))
				return false;
			kvx_counter_add(&dom->counters.wrs, 1);
			i += n;
			continue;
		}
		build->dst[left] = build->dst[i];
		build->src[left] = build->src[i];
		build->len[left++] = build->len[i++];
	}
	build->n = left;
	return true;
}

/* ---- the rest */

static void flight_copies(struct kvx_dom *dom, struct gpu_flight *flight, struct gpu_stream *stream)
{
	const struct kvx_gpu_ops *ops = dom->gpu->ops;
	struct gpu_build *build = &dom->build;

	if (dom->batch && build->n > 1) {
		int err = ops->copy_batch(dom->gpu, build->dst, build->src, build->len, build->n,
					  stream->stream);
		if (err != -EOPNOTSUPP) {
			kvx_counter_add(&dom->counters.wrs, build->n);
			flight_check(dom, flight, err);
			return;
		}
		dom->batch = false; /* the call is there, but not for this device */
	}
	for (unsigned i = 0; i < build->n; i++) {
		if (!flight_check(dom, flight,
				  ops->copy(dom->gpu, build->dst[i], build->src[i], build->len[i],
					    stream->stream)))
			return;
		kvx_counter_add(&dom->counters.wrs, 1);
	}
}

void gpu_flight_flush(struct kvx_dom *dom, struct gpu_flight *flight, struct gpu_stream *stream)
{
	struct gpu_build *build = &dom->build;

	if (flight->status == 0 && build_can_gather(dom, flight))
		flight_gather(dom, flight, stream);
	if (flight->status == 0 && (build->peer || flight_rows(dom, flight, stream)))
		flight_copies(dom, flight, stream);
	build->n = 0;
}

/* Without the event nobody knows when what was handed over is through. */
static void flight_record(struct kvx_dom *dom, struct gpu_flight *flight, struct gpu_stream *stream)
{
	int err = -EIO;

	if (atomic_load(&dom->lost))
		return;
	for (unsigned i = 0; i < RECORD_TRIES && err < 0 && err != -ENODEV; i++)
		err = dom->gpu->ops->event_record(dom->gpu, flight->event, stream->stream);
	if (err < 0)
		gpu_dom_lose(dom, kvx_gpu_code(), "an event cannot be recorded");
}

void gpu_flight_send(struct kvx_dom *dom, struct gpu_flight *flight, struct gpu_stream *stream)
{
	gpu_flight_flush(dom, flight, stream);
	kvx_counter_add(&dom->counters.doorbells, 1);
	flight_record(dom, flight, stream);
	flight->next = NULL;
	if (stream->last != NULL)
		stream->last->next = flight;
	else
		stream->first = flight;
	stream->last = flight;
	stream->n++;
}
