/* The GPU stand-in's streams: a thread each, which does what was queued in order, later. Nothing
 * orders two streams but events. Handles of streams that were destroyed are kept, so that their use
 * is noticed. Any thread. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "gs_priv.h"

#define STREAM_MAGIC 0x67735354u
#define STREAM_DEAD  0xdead5354u
#define STREAM_RESET 0xface5354u /* gone with all that the device had, or with the node */

struct gs_stream {
	_Atomic uint32_t magic;
	unsigned dev;
	pthread_mutex_t lock;
	pthread_cond_t more, idle;
	struct gs_op *first, **last;
	bool busy, own;       /* own: a device's, that NULL stands for */
	_Atomic bool dropped; /* what is queued is not done any more */
	uint64_t random;
	struct gs_stream *next; /* of all of this process */
};

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct gs_stream *streams;
static struct gs_stream *owns[STANDIN_MAX_DEVS];

struct gs_op *gs_op_make(enum gs_op_kind kind, size_t n_pieces)
{
	struct gs_op *op = calloc(1, sizeof(*op) + n_pieces * sizeof(op->pieces[0]));

	if (op == NULL)
		abort();
	op->kind = kind;
	op->n_pieces = n_pieces;
	return op;
}

void gs_op_drop(struct gs_op *op)
{
	for (size_t i = 0; i < op->n_pieces; i++) {
		gs_range_put(op->pieces[i].dst);
		gs_range_put(op->pieces[i].src);
	}
	if (op->event != NULL)
		gs_event_put(op->event);
	free(op);
}

/* How long this op lets others wait: between the two that the test named. */
static void stream_delay(struct gs_stream *stream)
{
	struct gs_node *node = gs_node();
	uint32_t min = atomic_load(&node->delay_min_us), max = atomic_load(&node->delay_max_us);

	if (max == 0)
		return;
	stream->random ^= stream->random << 13;
	stream->random ^= stream->random >> 7;
	stream->random ^= stream->random << 17;
	gs_wait_us(min + (max > min ? (uint32_t)(stream->random % (max - min + 1)) : 0));
}

bool gs_stream_dropped(const struct gs_stream *stream)
{
	return atomic_load(&stream->dropped);
}

static void stream_hold(const struct gs_stream *stream)
{
	const struct gs_dev *dev = &gs_node()->devs[stream->dev];

	while (atomic_load(&dev->stalled) && gs_dev_error(stream->dev) == 0 &&
	       !gs_stream_dropped(stream))
		gs_wait_us(500);
}

/* Of a device that is lost nothing is done any more, but its end is told. */
static void stream_run(struct gs_stream *stream, struct gs_op *op)
{
	int err;

	if (!gs_stream_dropped(stream)) {
		stream_delay(stream);
		stream_hold(stream);
	}
	if (gs_dev_error(stream->dev) == 0 && !gs_stream_dropped(stream)) {
		err = gs_op_run(op, stream);
		if (err != 0)
			gs_dev_ruin(stream->dev, err);
	}
	if (op->kind == GS_OP_RECORD)
		gs_event_complete(op->event, op->seq);
	gs_op_drop(op);
}

static void *stream_main(void *arg)
{
	struct gs_stream *stream = arg;

	pthread_mutex_lock(&stream->lock);
	for (;;) {
		struct gs_op *op = stream->first;

		if (op == NULL && atomic_load(&stream->magic) != STREAM_MAGIC)
			break;
		if (op == NULL) {
			pthread_cond_wait(&stream->more, &stream->lock);
			continue;
		}
		stream->first = op->next;
		if (stream->first == NULL)
			stream->last = &stream->first;
		stream->busy = true;
		pthread_mutex_unlock(&stream->lock);
		stream_run(stream, op);
		pthread_mutex_lock(&stream->lock);
		stream->busy = false;
		pthread_cond_broadcast(&stream->idle);
	}
	pthread_mutex_unlock(&stream->lock);
	return NULL;
}

static struct gs_stream *stream_make(unsigned dev, bool own)
{
	struct gs_stream *stream = calloc(1, sizeof(*stream));
	sigset_t all, before;
	pthread_t thread;
	int rc;

	if (stream == NULL)
		return NULL;
	*stream = (struct gs_stream){.magic = STREAM_MAGIC, .dev = dev, .own = own};
	stream->last = &stream->first;
	stream->random = (atomic_load(&gs_node()->seed) + 1) * 0x9e3779b97f4a7c15ull ^
			 (uint64_t)(uintptr_t)stream;
	pthread_mutex_init(&stream->lock, NULL);
	pthread_cond_init(&stream->more, NULL);
	pthread_cond_init(&stream->idle, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&thread, NULL, stream_main, stream);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (rc != 0) {
		free(stream);
		return NULL;
	}
	pthread_detach(thread);
	pthread_mutex_lock(&list_lock);
	stream->next = streams;
	streams = stream;
	pthread_mutex_unlock(&list_lock);
	return stream;
}

static struct gs_stream *stream_own(unsigned dev)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

	pthread_mutex_lock(&lock);
	if (owns[dev] == NULL || atomic_load(&owns[dev]->magic) != STREAM_MAGIC)
		owns[dev] = stream_make(dev, true);
	pthread_mutex_unlock(&lock);
	return owns[dev];
}

struct gs_stream *gs_stream_get(struct gs_stream *stream)
{
	uint32_t magic;

	if ((uintptr_t)stream <= 2) /* NULL, legacy, per thread */
		return stream_own(gs_dev_current());
	magic = atomic_load(&stream->magic);
	if (magic == STREAM_MAGIC)
		return stream;
	if (magic == STREAM_DEAD && gs_dev_error(stream->dev) == 0)
		gs_violate("a stream of GPU %u is used after it was destroyed", stream->dev);
	return NULL;
}

unsigned gs_stream_dev(const struct gs_stream *stream)
{
	return stream->dev;
}

void gs_stream_put_op(struct gs_stream *stream, struct gs_op *op)
{
	pthread_mutex_lock(&stream->lock);
	*stream->last = op;
	stream->last = &op->next;
	pthread_cond_signal(&stream->more);
	pthread_mutex_unlock(&stream->lock);
}

void gs_stream_drain(struct gs_stream *stream)
{
	pthread_mutex_lock(&stream->lock);
	while (stream->first != NULL || stream->busy)
		pthread_cond_wait(&stream->idle, &stream->lock);
	pthread_mutex_unlock(&stream->lock);
}

/* Streams are never taken off the list. */
void gs_streams_drain(unsigned dev)
{
	struct gs_stream *stream;

	pthread_mutex_lock(&list_lock);
	stream = streams;
	pthread_mutex_unlock(&list_lock);
	for (; stream != NULL; stream = stream->next)
		if (stream->dev == dev)
			gs_stream_drain(stream);
}

static void stream_end(struct gs_stream *stream, uint32_t magic)
{
	uint32_t live = STREAM_MAGIC;

	if (!atomic_compare_exchange_strong(&stream->magic, &live, magic))
		return;
	if (!stream->own)
		atomic_fetch_sub(&gs_self()->n_streams, 1);
	pthread_mutex_lock(&stream->lock);
	pthread_cond_signal(&stream->more);
	pthread_mutex_unlock(&stream->lock);
}

/* One that was destroyed before may still have ops. */
static void stream_drop(struct gs_stream *stream)
{
	atomic_store(&stream->dropped, true);
	stream_end(stream, STREAM_RESET);
}

void gs_streams_abort(unsigned dev)
{
	struct gs_stream *stream;

	pthread_mutex_lock(&list_lock);
	stream = streams;
	pthread_mutex_unlock(&list_lock);
	for (struct gs_stream *s = stream; s != NULL; s = s->next)
		if (s->dev == dev)
			stream_drop(s);
	gs_streams_drain(dev);
}

int gs_stream_create(struct gs_stream **out_stream)
{
	unsigned dev = gs_dev_current();
	int err = gs_enter_dev(STANDIN_STREAM_CREATE, dev);
	struct gs_stream *stream;

	if (err != 0)
		return err;
	stream = stream_make(dev, false);
	if (stream == NULL)
		return STANDIN_OUT_OF_MEMORY;
	atomic_fetch_add(&gs_self()->n_streams, 1);
	*out_stream = stream;
	return 0;
}

/* What is queued is still done. */
int gs_stream_destroy(struct gs_stream *stream)
{
	int err = gs_enter(STANDIN_STREAM_DESTROY);

	if (err != 0)
		return err;
	stream = gs_stream_get(stream);
	if (stream == NULL || stream->own)
		return STANDIN_INVALID_HANDLE;
	stream_end(stream, STREAM_DEAD);
	return gs_dev_error(stream->dev);
}

int gs_stream_query(struct gs_stream *stream)
{
	int err = gs_enter(STANDIN_STREAM_QUERY);
	bool busy;

	if (err != 0)
		return err;
	stream = gs_stream_get(stream);
	if (stream == NULL)
		return STANDIN_INVALID_HANDLE;
	pthread_mutex_lock(&stream->lock);
	busy = stream->first != NULL || stream->busy;
	pthread_mutex_unlock(&stream->lock);
	err = gs_dev_error(stream->dev);
	return err != 0 ? err : busy ? STANDIN_NOT_READY : 0;
}

int gs_stream_sync(struct gs_stream *stream)
{
	int err = gs_enter(STANDIN_STREAM_SYNC);

	if (err != 0)
		return err;
	stream = gs_stream_get(stream);
	if (stream == NULL)
		return STANDIN_INVALID_HANDLE;
	gs_stream_drain(stream);
	return gs_dev_error(stream->dev);
}

int gs_stream_wait(struct gs_stream *stream, struct gs_event *event)
{
	int err = gs_enter(STANDIN_STREAM_WAIT);
	struct gs_op *op;

	if (err != 0)
		return err;
	stream = gs_stream_get(stream);
	if (stream == NULL || !gs_event_hold(event))
		return STANDIN_INVALID_HANDLE;
	op = gs_op_make(GS_OP_WAIT, 0);
	op->event = event;
	op->seq = gs_event_recorded(event);
	gs_stream_put_op(stream, op);
	return gs_dev_error(stream->dev);
}
