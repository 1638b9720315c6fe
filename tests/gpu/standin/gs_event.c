/* The GPU stand-in's events: a number that counts recordings and one that counts how far their
 * streams have come; for events of several processes both lie in the node's shared state. Events
 * that were destroyed are kept, so that their use is noticed. Any thread. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gs_priv.h"

#define EVENT_MAGIC 0x67734556u
#define EVENT_DEAD  0xdead4556u
#define IPC_MAGIC   0x69706365ull

struct ipc_event {
	uint64_t magic, id;
	uint32_t index;
	pid_t pid;
};

/* Newest first: those that were destroyed, too. */
static struct gs_event *_Atomic events;

static _Atomic uint64_t *recorded_of(struct gs_event *event)
{
	return event->shared != NULL ? &event->shared->recorded : &event->own.recorded;
}

static _Atomic uint64_t *completed_of(struct gs_event *event)
{
	return event->shared != NULL ? &event->shared->completed : &event->own.completed;
}

static bool event_lives(const struct gs_event *event)
{
	if (event == NULL)
		return false;
	if (event->magic == EVENT_DEAD)
		gs_violate("an event of GPU %u is used after it was destroyed", event->dev);
	/* A reset of the device takes its events along. */
	return event->magic == EVENT_MAGIC && event->epoch == gs_dev_epoch(event->dev);
}

bool gs_event_hold(struct gs_event *event)
{
	if (!event_lives(event))
		return false;
	atomic_fetch_add(&event->n_refs, 1);
	return true;
}

/* How many events of this process stand for a shared one; with the node's lock. */
static uint32_t n_opens[GS_MAX_EVENTS];

static void shared_open(struct gs_shared_event *shared)
{
	n_opens[shared - gs_node()->events]++;
	shared->users |= 1ull << gs_self_index();
}

static void shared_close(struct gs_shared_event *shared)
{
	struct gs_node *node = gs_node();

	gs_lock(node);
	if (--n_opens[shared - node->events] == 0)
		shared->users &= ~(1ull << gs_self_index());
	if (shared->users == 0)
		shared->id = 0;
	gs_unlock(node);
}

void gs_event_put(struct gs_event *event)
{
	if (atomic_fetch_sub(&event->n_refs, 1) == 1 && event->shared != NULL)
		shared_close(event->shared);
}

uint64_t gs_event_recorded(struct gs_event *event)
{
	return atomic_load(recorded_of(event));
}

void gs_event_complete(struct gs_event *event, uint64_t seq)
{
	uint64_t before = atomic_load(completed_of(event));

	atomic_store(&event->completed_ns, gs_now_ns());
	while (before < seq && !atomic_compare_exchange_weak(completed_of(event), &before, seq))
		;
}

bool gs_event_reached(struct gs_event *event, uint64_t seq)
{
	return atomic_load(completed_of(event)) >= seq;
}

static struct gs_shared_event *shared_make(unsigned dev)
{
	struct gs_node *node = gs_node();
	struct gs_shared_event *found = NULL;

	gs_lock(node);
	gs_reap(node);
	for (unsigned i = 0; i < GS_MAX_EVENTS && found == NULL; i++)
		if (node->events[i].id == 0)
			found = &node->events[i];
	if (found != NULL) {
		atomic_store(&found->recorded, 0);
		atomic_store(&found->completed, 0);
		found->maker = gs_self_index();
		found->users = 0;
		found->dev = dev;
		found->id = node->next_id++;
		shared_open(found);
	}
	gs_unlock(node);
	return found;
}

static struct gs_event *event_make(unsigned dev, unsigned flags, struct gs_shared_event *shared)
{
	struct gs_event *event = calloc(1, sizeof(*event));

	if (event == NULL)
		abort();
	event->magic = EVENT_MAGIC;
	event->dev = dev;
	event->epoch = gs_dev_epoch(dev);
	event->flags = flags;
	event->n_refs = 1;
	event->shared = shared;
	event->next = atomic_load(&events);
	while (!atomic_compare_exchange_weak(&events, &event->next, event))
		;
	atomic_fetch_add(&gs_self()->n_events, 1);
	return event;
}

int gs_event_create(unsigned flags, struct gs_event **out_event)
{
	unsigned dev = gs_dev_current();
	int err = gs_enter_dev(STANDIN_EVENT_CREATE, dev);
	struct gs_shared_event *shared = NULL;

	if (err != 0)
		return err;
	if (flags & GS_EVENT_IPC) {
		shared = shared_make(dev);
		if (shared == NULL)
			return STANDIN_OUT_OF_MEMORY;
	}
	*out_event = event_make(dev, flags, shared);
	return 0;
}

int gs_event_destroy(struct gs_event *event)
{
	int err = gs_enter(STANDIN_EVENT_DESTROY);

	if (err != 0)
		return err;
	if (!event_lives(event))
		return STANDIN_INVALID_HANDLE;
	event->magic = EVENT_DEAD;
	atomic_fetch_sub(&gs_self()->n_events, 1);
	gs_event_put(event);
	return 0;
}

int gs_event_record(struct gs_event *event, struct gs_stream *stream)
{
	int err = gs_enter(STANDIN_EVENT_RECORD);
	struct gs_op *op;

	if (err != 0)
		return err;
	stream = gs_stream_get(stream);
	if (stream == NULL || !gs_event_hold(event))
		return STANDIN_INVALID_HANDLE;
	err = gs_dev_error(gs_stream_dev(stream));
	if (err == 0 && event->dev != gs_stream_dev(stream))
		err = STANDIN_INVALID_HANDLE;
	if (err != 0) {
		gs_event_put(event);
		return err;
	}
	op = gs_op_make(GS_OP_RECORD, 0);
	op->event = event;
	op->seq = atomic_fetch_add(recorded_of(event), 1) + 1;
	gs_stream_put_op(stream, op);
	return 0;
}

int gs_event_query(struct gs_event *event)
{
	int err = gs_enter(STANDIN_EVENT_QUERY);

	if (err != 0)
		return err;
	if (!event_lives(event))
		return STANDIN_INVALID_HANDLE;
	err = gs_dev_error(event->dev);
	if (err != 0)
		return err;
	return gs_event_reached(event, gs_event_recorded(event)) ? 0 : STANDIN_NOT_READY;
}

int gs_event_sync(struct gs_event *event)
{
	int err = gs_enter(STANDIN_EVENT_SYNC);

	if (err != 0)
		return err;
	if (!event_lives(event))
		return STANDIN_INVALID_HANDLE;
	while ((err = gs_dev_error(event->dev)) == 0 &&
	       !gs_event_reached(event, gs_event_recorded(event)))
		gs_wait_us(50);
	return err;
}

int gs_event_elapsed(float *out_ms, struct gs_event *start, struct gs_event *end)
{
	if (!event_lives(start) || !event_lives(end))
		return STANDIN_INVALID_HANDLE;
	*out_ms =
	    (float)(atomic_load(&end->completed_ns) - atomic_load(&start->completed_ns)) / 1e6f;
	return 0;
}

int gs_ipc_event_get(struct gs_event *event, uint8_t out_handle[GS_HANDLE_BYTES])
{
	int err = gs_enter(STANDIN_IPC_EVENT_GET);
	struct ipc_event handle = {.magic = IPC_MAGIC, .pid = getpid()};

	if (err != 0)
		return err;
	if (atomic_load(&gs_node()->lacks) & STANDIN_LACK_IPC_EVENTS)
		return STANDIN_NOT_SUPPORTED;
	if (!event_lives(event) || event->shared == NULL)
		return STANDIN_INVALID_HANDLE;
	handle.id = event->shared->id;
	handle.index = (uint32_t)(event->shared - gs_node()->events);
	memset(out_handle, 0, GS_HANDLE_BYTES);
	memcpy(out_handle, &handle, sizeof(handle));
	return 0;
}

int gs_ipc_event_open(const uint8_t handle[GS_HANDLE_BYTES], struct gs_event **out_event)
{
	unsigned dev = gs_dev_current();
	int err = gs_enter_dev(STANDIN_IPC_EVENT_OPEN, dev);
	struct gs_node *node = gs_node();
	struct gs_shared_event *shared = NULL;
	struct ipc_event ipc;

	if (err != 0)
		return err;
	if (atomic_load(&node->lacks) & STANDIN_LACK_IPC_EVENTS)
		return STANDIN_NOT_SUPPORTED;
	memcpy(&ipc, handle, sizeof(ipc));
	if (ipc.magic != IPC_MAGIC || ipc.index >= GS_MAX_EVENTS)
		return STANDIN_INVALID_VALUE;
	if (ipc.pid == getpid())
		return STANDIN_INVALID_CONTEXT;
	gs_lock(node);
	gs_reap(node);
	if (node->events[ipc.index].id == ipc.id) {
		shared = &node->events[ipc.index];
		shared_open(shared);
	}
	gs_unlock(node);
	if (shared == NULL)
		return STANDIN_INVALID_VALUE;
	*out_event = event_make(shared->dev, GS_EVENT_IPC, shared);
	return 0;
}
