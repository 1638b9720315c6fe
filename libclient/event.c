/* Events: from frames (or from the loss of the daemon) to the user's callback. The user's thread,
 * inside dispatch and wait; while a set-up call waits for its reply events are kept here.
 * A transfer's terminal event takes it from the table, so that a second one finds nothing. */
#include "libclient/client_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utlist.h>

/* A read that brought less has emptied the socket: no second call to hear so. */
#define SHORT_READ_BYTES 4096
/* Reads of one dispatch: a daemon that never stops must not keep the caller for ever. */
#define MAX_READS 64

/* ---- memory of unpacked events: one bump arena, so that an event costs no allocation */

static void *arena_alloc(void *data, size_t size)
{
	struct kvx_cl_arena *arena = data;
	size_t need = (size + 16) & ~(size_t)15; /* never 0: the place tells whose it is */
	void *place;

	if (need < size || need > sizeof(arena->bytes) - arena->used)
		return malloc(size);
	place = arena->bytes + arena->used;
	arena->used += need;
	return place;
}

static void arena_free(void *data, void *pointer)
{
	struct kvx_cl_arena *arena = data;
	uintptr_t at = (uintptr_t)pointer, begin = (uintptr_t)arena->bytes;

	if (at < begin || at >= begin + sizeof(arena->bytes))
		free(pointer);
}

/* ---- delivering */

static void event_deliver(struct kvxfer_client *client, const struct kvxfer_event *event)
{
	struct kvx_cl_sink *sink = client->sink;

	if (event->type == KVXFER_EVENT_IMPORT_LOST)
		event->import_->lost = true;
	sink->n++;
	client->in_callback = true;
	sink->cb(client, event, sink->arg);
	client->in_callback = false;
}

static struct kvxfer_region *find_region(const struct kvxfer_client *client, uint64_t id)
{
	struct kvxfer_region *region = NULL;

	if (id != 0)
		DL_SEARCH_SCALAR(client->regions, region, id, id);
	return region;
}

static struct kvxfer_import *find_import(const struct kvxfer_client *client, uint64_t id)
{
	struct kvxfer_import *import_ = NULL;

	if (id != 0)
		DL_SEARCH_SCALAR(client->imports, import_, id, id);
	return import_;
}

/* What its type names; false: it concerns nothing that the client (still) has. */
static bool event_fill(struct kvxfer_client *client, const Kvxp__Event *e,
		       struct kvxfer_event *event)
{
	struct kvx_cl_xfer xfer;

	switch ((int)e->type) {
	case KVXFER_EVENT_TERMINAL:
		if (!kvx_cl_table_take(&client->xfers, e->xfer, &xfer))
			return false;
		event->transfer = xfer.id;
		event->tag = xfer.tag;
		event->op = xfer.op;
		event->bytes = e->bytes;
		event->submit_ns = e->t_submit_ns;
		event->first_ns = e->t_first_ns;
		event->last_ns = e->t_last_ns;
		event->end_ns = e->t_end_ns;
		return true;
	case KVXFER_EVENT_ARRIVAL:
		event->tag = e->tag;
		event->op = (int)e->op;
		event->bytes = e->bytes;
		event->region = find_region(client, e->region);
		break;
	case KVXFER_EVENT_MESSAGE:
		event->region = find_region(client, e->region);
		break;
	case KVXFER_EVENT_IMPORT_LOST:
		event->import_ = find_import(client, e->import);
		return event->import_ != NULL;
	case KVXFER_EVENT_REGION_LOST:
		event->region = find_region(client, e->region);
		return event->region != NULL;
	case KVXFER_EVENT_DRAINING:
		return true;
	default: /* of a newer daemon */
		return false;
	}
	event->payload = e->payload.len > 0 ? e->payload.data : NULL;
	event->payload_bytes = e->payload.len;
	return true;
}

static void event_unpack(struct kvxfer_client *client, const uint8_t *body, uint32_t len_bytes)
{
	ProtobufCAllocator allocator = {arena_alloc, arena_free, &client->arena};
	struct kvxfer_event event = {0};
	Kvxp__Event *e;

	client->arena.used = 0;
	e = kvxp__event__unpack(&allocator, len_bytes, body);
	if (e == NULL) {
		kvx_cl_quit(client, KVXFER_PROTOCOL, "an event of the daemon cannot be decoded");
		return;
	}
	if (e->payload.len > KVXFER_PAYLOAD_MAX) {
		kvx_cl_quit(client, KVXFER_PROTOCOL, "an event has a payload of %zu bytes",
			    e->payload.len);
	} else {
		event.type = (int)e->type;
		event.status = (int)e->status;
		event.scope = (int)e->scope;
		event.vendor_code = e->vendor_code;
		event.text = e->text;
		event.transport = e->transport;
		if (event_fill(client, e, &event))
			event_deliver(client, &event);
	}
	kvxp__event__free_unpacked(e, &allocator);
}

static void found_unpack(struct kvxfer_client *client, const uint8_t *body, uint32_t len_bytes)
{
	ProtobufCAllocator allocator = {arena_alloc, arena_free, &client->arena};
	struct kvxfer_event event;
	Kvxp__Reply *reply;

	client->arena.used = 0;
	reply = kvxp__reply__unpack(&allocator, len_bytes, body);
	if (reply == NULL) {
		kvx_cl_quit(client, KVXFER_PROTOCOL, "a reply of the daemon cannot be decoded");
		return;
	}
	if (reply->data.len > KVXFER_PAYLOAD_MAX)
		kvx_cl_quit(client, KVXFER_PROTOCOL, "a region has a note of %zu bytes",
			    reply->data.len);
	else if (kvx_cl_find_event(client, reply, &event))
		event_deliver(client, &event);
	kvxp__reply__free_unpacked(reply, &allocator);
}

static void frame_tell(struct kvxfer_client *client, uint16_t type, const uint8_t *body,
		       uint32_t len_bytes)
{
	if (type == KVXP__FRAME_TYPE__FRAME_REPLY)
		found_unpack(client, body, len_bytes);
	else
		event_unpack(client, body, len_bytes);
}

/* ---- keeping */

static void event_keep(struct kvxfer_client *client, uint16_t type, const uint8_t *body,
		       uint32_t len_bytes)
{
	struct kvx_cl_kept *kept = NULL;

	if (client->kept_bytes + len_bytes <= KVX_CL_KEPT_MAX_BYTES)
		kept = malloc(sizeof(*kept) + len_bytes);
	if (kept == NULL) {
		/* An event must not be lost in silence: all transfers end instead. */
		kvx_cl_quit(client, KVXFER_NO_MEMORY, "no memory to keep an event");
		return;
	}
	kept->type = type;
	kept->len_bytes = len_bytes;
	memcpy(kept->body, body, len_bytes);
	DL_APPEND(client->kept, kept);
	client->kept_bytes += len_bytes;
	kvx_cl_wake(client);
}

void kvx_cl_on_event(struct kvxfer_client *client, uint16_t type, const uint8_t *body,
		     uint32_t len_bytes)
{
	if (client->sink != NULL)
		frame_tell(client, type, body, len_bytes);
	else
		event_keep(client, type, body, len_bytes);
}

static void deliver_kept(struct kvxfer_client *client)
{
	while (client->kept != NULL) {
		struct kvx_cl_kept *kept = client->kept;

		DL_DELETE(client->kept, kept);
		client->kept_bytes -= kept->len_bytes;
		frame_tell(client, kept->type, kept->body, kept->len_bytes);
		free(kept);
	}
}

void kvx_cl_drop_kept(struct kvxfer_client *client)
{
	struct kvx_cl_kept *kept, *next;

	DL_FOREACH_SAFE (client->kept, kept, next) {
		DL_DELETE(client->kept, kept);
		free(kept);
	}
	client->kept_bytes = 0;
}

/* ---- losses */

static void deliver_imports_lost(struct kvxfer_client *client)
{
	struct kvxfer_import *import_;

	if (client->n_imports_lost == 0)
		return;
	/* No callback can close an import, so that the list holds still. */
	DL_FOREACH (client->imports, import_) {
		struct kvxfer_event event = {.type = KVXFER_EVENT_IMPORT_LOST};

		if (import_->lost_status == KVXFER_OK)
			continue;
		event.status = (int)import_->lost_status;
		event.scope = (int)kvx_status_scope(import_->lost_status);
		event.text = import_->lost_text;
		event.transport = "";
		event.import_ = import_;
		import_->lost_status = KVXFER_OK;
		event_deliver(client, &event);
	}
	client->n_imports_lost = 0;
}

static void deliver_loss(struct kvxfer_client *client)
{
	struct kvxfer_event event = {.type = KVXFER_EVENT_TERMINAL,
				     .status = KVXFER_DAEMON_LOST,
				     .scope = KVXFER_SCOPE_DAEMON,
				     .text = client->lost_text,
				     .transport = ""};

	/* Not before: events that were kept are told first, and take from the table. */
	kvx_cl_table_line_up(&client->xfers);
	while (client->loss_told < client->xfers.n) {
		const struct kvx_cl_xfer *xfer = &client->xfers.slots[client->loss_told++];

		event.transfer = xfer->id;
		event.tag = xfer->tag;
		event.op = xfer->op;
		event_deliver(client, &event);
	}
	kvx_cl_table_clear(&client->xfers);
	client->loss_unread = false;
	event.type = KVXFER_EVENT_DAEMON_LOST;
	event.status = client->lost_status;
	event.transfer = event.tag = 0;
	event.op = 0;
	event_deliver(client, &event);
}

/* ---- the two calls */

static void dispatch_reads(struct kvxfer_client *client)
{
	for (int i = 0; i < MAX_READS && client->state == KVX_CL_UP; i++) {
		int n = kvx_cl_read(client);

		if (n < SHORT_READ_BYTES)
			break;
	}
	if (client->state == KVX_CL_UP && (client->out_armed || client->out_retry_ns != 0))
		kvx_cl_flush(client);
}

static int client_dispatch(struct kvxfer_client *client, kvxfer_event_cb cb, void *arg)
{
	struct kvx_cl_sink sink = {.cb = cb, .arg = arg};
	uint64_t count;

	if (client->state == KVX_CL_LOST && !client->loss_unread)
		return kvx_cl_fail(client, -ECONNRESET,
				   "the daemon is gone (%s): call kvxfer_client_reconnect()",
				   client->lost_text);
	client->sink = &sink;
	if (client->woken && read(client->wake, &count, sizeof(count)) > 0)
		client->woken = false;
	deliver_kept(client);
	deliver_imports_lost(client);
	dispatch_reads(client);
	kvx_cl_check_loss(client);
	if (client->state == KVX_CL_LOST && client->loss_unread)
		deliver_loss(client);
	if (client->woken && client->state != KVX_CL_EOF &&
	    read(client->wake, &count, sizeof(count)) > 0)
		client->woken = false;
	client->sink = NULL;
	return sink.n;
}

static int dispatch_enter(struct kvxfer_client *client, kvxfer_event_cb cb)
{
	if (client == NULL)
		return -EINVAL;
	if (kvx_cl_forked(client))
		return kvx_cl_enter_data(client);
	if (cb == NULL)
		return kvx_cl_fail(client, -EINVAL, "the event callback is NULL");
	if (client->in_callback)
		return kvx_cl_fail(client, -EBUSY,
				   "dispatch and wait cannot be called from inside "
				   "an event callback");
	return 0;
}

int kvxfer_client_dispatch(struct kvxfer_client *client, kvxfer_event_cb cb, void *arg)
{
	int err = dispatch_enter(client, cb);

	return err < 0 ? err : client_dispatch(client, cb, arg);
}

int kvxfer_client_wait(struct kvxfer_client *client, int timeout_ms, kvxfer_event_cb cb, void *arg)
{
	uint64_t deadline_ns = UINT64_MAX;
	int n = dispatch_enter(client, cb);

	if (n < 0)
		return n;
	n = client_dispatch(client, cb, arg);
	if (n != 0 || timeout_ms == 0)
		return n;
	if (timeout_ms > 0)
		deadline_ns = kvx_cl_now_ns() + (uint64_t)timeout_ms * KVX_CL_MSEC;
	do {
		if (kvx_cl_poll(client, deadline_ns) < 0)
			return 0;
		n = client_dispatch(client, cb, arg);
	} while (n == 0);
	return n;
}
