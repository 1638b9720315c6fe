/* Streams, events and copies of gpu_fake.h: a copy is made when somebody asks for an event behind
 * it. Any thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"
#include "gpu_fake.h"
#include "gpu_fake_priv.h"

struct copy {
	struct copy *next;
	uint64_t dst, src, bytes;
	void *event; /* instead: is reached */
	uint64_t seq;
};
struct stream {
	int device;
	struct copy *first, **last;
};
struct event {
	int device;
	uint64_t recorded, reached;
};

static struct stream *all_streams[64];
static struct event *all_events[256];

static void copy_run(struct copy *copy)
{
	if (copy->event != NULL)
		((struct event *)copy->event)->reached = copy->seq;
	else
		memcpy((void *)(uintptr_t)copy->dst, (const void *)(uintptr_t)copy->src,
		       copy->bytes);
	free(copy);
}

/* With the lock. */
static void stream_run(struct stream *stream)
{
	while (stream->first != NULL) {
		struct copy *copy = stream->first;

		stream->first = copy->next;
		if (stream->first == NULL)
			stream->last = &stream->first;
		copy_run(copy);
	}
}

/* Up to the first event; false: there is none. With the lock. */
static bool stream_step(struct stream *stream)
{
	while (stream->first != NULL) {
		struct copy *copy = stream->first;
		bool was_event = copy->event != NULL;

		stream->first = copy->next;
		if (stream->first == NULL)
			stream->last = &stream->first;
		copy_run(copy);
		if (was_event)
			return true;
	}
	return false;
}

static void streams_step(void)
{
	for (unsigned i = 0; i < 64; i++)
		while (fake.let_through > 0 && all_streams[i] != NULL &&
		       stream_step(all_streams[i]))
			fake.let_through--;
}

static void stream_put(void *to, const struct copy *what)
{
	struct stream *stream = to;
	struct copy *copy = malloc(sizeof(*copy));

	*copy = *what;
	copy->next = NULL;
	pthread_mutex_lock(&fake_lock);
	*stream->last = copy;
	stream->last = &copy->next;
	pthread_mutex_unlock(&fake_lock);
}

static int fake_stream_create(struct kvx_gpu *gpu, void **out_stream)
{
	int err = fake_enter(FAKE_STREAM_CREATE);
	struct stream *stream;

	if (err < 0)
		return err;
	stream = calloc(1, sizeof(*stream));
	stream->device = fake_bound;
	stream->last = &stream->first;
	pthread_mutex_lock(&fake_lock);
	for (unsigned i = 0; i < 64; i++)
		if (all_streams[i] == NULL) {
			all_streams[i] = stream;
			break;
		}
	pthread_mutex_unlock(&fake_lock);
	fake.n_streams++;
	*out_stream = stream;
	return 0;
}

static int fake_stream_destroy(struct kvx_gpu *gpu, void *stream)
{
	pthread_mutex_lock(&fake_lock);
	stream_run(stream);
	for (unsigned i = 0; i < 64; i++)
		if (all_streams[i] == stream)
			all_streams[i] = NULL;
	pthread_mutex_unlock(&fake_lock);
	fake.n_streams--;
	free(stream);
	return 0;
}

static int fake_stream_sync(struct kvx_gpu *gpu, void *stream)
{
	int err = fake_enter(FAKE_STREAM_SYNC);

	if (err < 0)
		return err;
	pthread_mutex_lock(&fake_lock);
	stream_run(stream);
	pthread_mutex_unlock(&fake_lock);
	return 0;
}

static int event_add(void **out_event)
{
	struct event *event = calloc(1, sizeof(*event));

	event->device = fake_bound;
	pthread_mutex_lock(&fake_lock);
	unsigned i = 0;
	while (all_events[i] != NULL)
		kvx_assert(++i < 256);
	all_events[i] = event;
	pthread_mutex_unlock(&fake_lock);
	fake.n_events++;
	*out_event = event;
	return 0;
}

static int fake_event_create(struct kvx_gpu *gpu, void **out_event)
{
	int err = fake_enter(FAKE_EVENT_CREATE);

	return err < 0 ? err : event_add(out_event);
}

static int fake_event_destroy(struct kvx_gpu *gpu, void *event)
{
	while (fake.hang_destroy && sem_wait(&fake.let_go) != 0)
		;
	pthread_mutex_lock(&fake_lock);
	for (unsigned i = 0; i < 256; i++)
		if (all_events[i] == event)
			all_events[i] = NULL;
	pthread_mutex_unlock(&fake_lock);
	fake.n_events--;
	free(event);
	return 0;
}

static int fake_event_record(struct kvx_gpu *gpu, void *event, void *stream)
{
	int err = fake_enter(FAKE_EVENT_RECORD);

	if (err < 0)
		return err;
	stream_put(stream,
		   &(struct copy){.event = event, .seq = ++((struct event *)event)->recorded});
	return 0;
}

static int fake_event_query(struct kvx_gpu *gpu, void *event)
{
	const struct event *e = event;
	int err = fake_enter(FAKE_EVENT_QUERY);

	if (err < 0)
		return err;
	pthread_mutex_lock(&fake_lock);
	streams_step();
	bool reached = e->reached >= e->recorded;
	for (unsigned i = 0; !reached && !fake.hold && i < 64; i++)
		if (all_streams[i] != NULL)
			stream_run(all_streams[i]);
	pthread_mutex_unlock(&fake_lock);
	return reached ? 0 : -EAGAIN;
}

static int fake_event_open(struct kvx_gpu *gpu, const uint8_t ipc[KVX_GPU_IPC_BYTES],
			   void **out_event)
{
	int err = fake_enter(FAKE_EVENT_OPEN);

	return err < 0 ? err : event_add(out_event); /* never recorded: reached */
}

static void be_slow(enum fake_slow which)
{
	const struct timespec ms = {.tv_nsec = 1000000};

	if (fake_slow == which)
		nanosleep(&ms, NULL);
}

static int fake_copy(struct kvx_gpu *gpu, uint64_t dst, uint64_t src, uint64_t bytes, void *stream)
{
	int err = fake_enter(FAKE_COPY);

	if (err == 0)
		stream_put(stream, &(struct copy){.dst = dst, .src = src, .bytes = bytes});
	return err;
}

static int fake_copy_rect(struct kvx_gpu *gpu, const struct kvx_gpu_rect *rect, void *stream)
{
	int err = fake_enter(FAKE_COPY_RECT);

	for (uint64_t i = 0; err == 0 && i < rect->height; i++)
		stream_put(stream, &(struct copy){.dst = rect->dst + i * rect->dst_pitch,
						  .src = rect->src + i * rect->src_pitch,
						  .bytes = rect->width});
	fake.n_pieces[FAKE_COPY_RECT] += (unsigned)rect->height;
	return err;
}

static int fake_copy_batch(struct kvx_gpu *gpu, uint64_t *dsts, uint64_t *srcs, size_t *lens,
			   size_t n, void *stream)
{
	int err = fake_enter(FAKE_COPY_BATCH);

	be_slow(FAKE_SLOW_COPIES);
	for (size_t i = 0; err == 0 && i < n; i++)
		stream_put(stream,
			   &(struct copy){.dst = dsts[i], .src = srcs[i], .bytes = lens[i]});
	fake.n_pieces[FAKE_COPY_BATCH] += (unsigned)n;
	return err;
}

static int fake_kernel_load(struct kvx_gpu *gpu, void **out_kernel)
{
	*out_kernel = &fake;
	return fake_enter(FAKE_KERNEL_LOAD);
}

static int fake_kernel_run(struct kvx_gpu *gpu, void *kernel, uint64_t list, uint32_t n,
			   void *stream)
{
	const struct kvx_gpu_piece *pieces = (const void *)(uintptr_t)list;
	int err = fake_enter(FAKE_KERNEL_RUN);

	be_slow(FAKE_SLOW_KERNEL);
	for (uint32_t i = 0; err == 0 && i < n; i++)
		stream_put(stream, &(struct copy){.dst = pieces[i].dst,
						  .src = pieces[i].src,
						  .bytes = pieces[i].len_bytes});
	fake.n_pieces[FAKE_KERNEL_RUN] += n;
	return err;
}

static void stream_drop(struct stream *stream)
{
	while (stream->first != NULL) {
		struct copy *copy = stream->first;

		stream->first = copy->next;
		free(copy);
	}
	free(stream);
	fake.n_streams--;
}

void fake_copy_reset(int device)
{
	for (unsigned i = 0; i < 64; i++)
		if (all_streams[i] != NULL && all_streams[i]->device == device) {
			stream_drop(all_streams[i]);
			all_streams[i] = NULL;
		}
	for (unsigned i = 0; i < 256; i++)
		if (all_events[i] != NULL && all_events[i]->device == device) {
			free(all_events[i]);
			all_events[i] = NULL;
			fake.n_events--;
		}
}

void fake_copy_fill(struct kvx_gpu_ops *ops)
{
	ops->stream_create = fake_stream_create;
	ops->stream_destroy = fake_stream_destroy;
	ops->stream_sync = fake_stream_sync;
	ops->event_create = fake_event_create;
	ops->event_destroy = fake_event_destroy;
	ops->event_record = fake_event_record;
	ops->event_query = fake_event_query;
	ops->event_open = fake_event_open;
	ops->copy = fake_copy;
	ops->copy_rect = fake_copy_rect;
	ops->copy_batch = fake_copy_batch;
	ops->kernel_load = fake_kernel_load;
	ops->kernel_run = fake_kernel_run;
}
