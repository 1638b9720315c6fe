/* Events of clients that watchers keep open: those that gates wait for, and up to GATE_EVENTS_IDLE
 * of a client that none does, because engines record the same ones again and again. A watcher's
 * thread, which never waits for one that is being opened or closed: the device's domain does that,
 * in its time, and a look in a later turn finds it done. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/assert.h"
#include "base/clock.h"
#include "xfer/gate_priv.h"

#define OPEN_AGAIN_NS (5 * KVX_MS) /* when the device was busy with other calls */

struct gate_client *gate_client_get(struct gate_watcher *w, uint64_t id)
{
	struct gate_client *client;

	HASH_FIND(hh, w->clients, &id, sizeof(id), client);
	if (client != NULL)
		return client;
	client = calloc(1, sizeof(*client));
	if (client == NULL)
		return NULL;
	client->client = id;
	unsigned n = HASH_COUNT(w->clients);
	HASH_ADD(hh, w->clients, client, sizeof(client->client), client);
	if (HASH_COUNT(w->clients) == n) { /* uthash had no memory */
		free(client);
		return NULL;
	}
	return client;
}

static void event_free(struct gate_watcher *w, struct gate_client *client, struct gate_event *event)
{
	kvx_assert(event->n_gates == 0);
	client->n_opening -= event->event != NULL && !event->is_open;
	if (event->event != NULL)
		w->access->event_close(event->event);
	free(event);
}

static void idle_remove(struct gate_client *client, struct gate_event *event)
{
	DL_DELETE(client->idle, event);
	client->n_idle--;
}

static void idle_close(struct gate_watcher *w, struct gate_client *client, struct gate_event *event)
{
	idle_remove(client, event);
	HASH_DELETE(hh, client->events, event);
	event_free(w, client, event);
}

void gate_events_forget(struct gate_watcher *w, struct gate_client *client)
{
	while (client->idle != NULL)
		idle_close(w, client, client->idle);
	kvx_assert(client->events == NULL);
	HASH_DELETE(hh, w->clients, client);
	free(client);
}

/* What the transfer is told of an event that cannot be used. */
void gate_fail(struct kvx_gate *gate, int status, const char *text)
{
	gate->status = status;
	gate->text = text;
}

void gate_fail_event(struct kvx_gate *gate, int err)
{
	switch (err) {
	case -ENODEV:
		gate_fail(gate, -ENODEV, "the GPU of the event is lost");
		break;
	case -ENOMEM:
		gate_fail(gate, -ENOMEM, "no memory to open the event");
		break;
	case -ETIMEDOUT:
		gate_fail(gate, -EIO,
			  "the event could not be opened in time: its GPU, or the driver, hangs");
		break;
	case -EOPNOTSUPP:
		gate_fail(gate, -EOPNOTSUPP,
			  "the GPU runtime cannot share events between processes: wait for a flag, "
			  "or synchronise before submitting");
		break;
	default:
		gate_fail(gate, -EINVAL,
			  "the GPU runtime does not know the event: it must be made for several "
			  "processes (interprocess, without timing), on the device of the region, "
			  "and live until the transfer has ended");
		break;
	}
}

int gate_event_take(struct gate_watcher *w, struct kvx_gate *gate)
{
	struct gate_client *client = gate->line->client;
	struct gate_event *event;

	HASH_FIND(hh, client->events, gate->ipc, sizeof(gate->ipc), event);
	if (event == NULL) {
		event = calloc(1, sizeof(*event));
		if (event == NULL)
			return -ENOMEM;
		memcpy(event->ipc, gate->ipc, sizeof(event->ipc));
		unsigned n = HASH_COUNT(client->events);
		HASH_ADD(hh, client->events, ipc, sizeof(event->ipc), event);
		if (HASH_COUNT(client->events) == n) {
			free(event);
			return -ENOMEM;
		}
	} else if (event->n_gates == 0) {
		idle_remove(client, event);
	}
	event->n_gates++;
	gate->event = event;
	return 0;
}

/* Others' calls were in the way: that is no fault of the event. */
static int open_later(struct gate_watcher *w, int err)
{
	if (err != -EBUSY)
		return err;
	w->open_after_ns = kvx_now_ns() + OPEN_AGAIN_NS;
	return 0;
}

static int open_begin(struct gate_watcher *w, struct gate_client *client, struct gate_event *event)
{
	if (client->n_opens >= GATE_TURN_OPENS || client->n_opening >= GATE_OPENING ||
	    kvx_now_ns() < w->open_after_ns)
		return 0;
	client->n_opens++;
	int err = w->access->event_open(w->device, event->ipc, &event->event);
	if (err < 0) {
		event->event = NULL;
		return open_later(w, err);
	}
	client->n_opening++;
	return 1;
}

/* 1: it is open; 0: not yet; negative: it cannot be opened. */
static int event_open(struct gate_watcher *w, struct gate_client *client, struct gate_event *event)
{
	int rc = event->event != NULL ? 1 : open_begin(w, client, event);

	if (rc <= 0)
		return rc;
	rc = w->access->event_ready(event->event);
	if (rc == 0)
		return 0;
	client->n_opening--;
	event->is_open = rc > 0;
	if (rc < 0) {
		event->event = NULL;
		return open_later(w, rc);
	}
	return 1;
}

static int event_look(struct gate_watcher *w, struct gate_client *client, struct gate_event *event)
{
	int rc = event->is_open ? 1 : event_open(w, client, event);

	if (rc <= 0)
		return rc;
	gate_call_begin(w);
	rc = w->access->event_query(event->event);
	gate_call_end(w);
	return rc;
}

int gate_event_look(struct gate_watcher *w, struct kvx_gate *gate)
{
	struct gate_client *client = gate->line->client;
	struct gate_event *event = gate->event;

	if (event->bad || event->looked_turn == w->turn)
		return event->looked;
	event->looked_turn = w->turn;
	event->looked = event_look(w, client, event);
	if (event->looked < 0) { /* who comes now gets one that is opened anew */
		event->bad = true;
		HASH_DELETE(hh, client->events, event);
	}
	return event->looked;
}

void gate_event_leave(struct gate_watcher *w, struct kvx_gate *gate)
{
	struct gate_client *client = gate->line->client;
	struct gate_event *event = gate->event;

	gate->event = NULL;
	if (--event->n_gates > 0)
		return;
	if (event->bad || !event->is_open) {
		if (!event->bad)
			HASH_DELETE(hh, client->events, event);
		event_free(w, client, event);
		return;
	}
	DL_APPEND(client->idle, event);
	if (++client->n_idle > GATE_EVENTS_IDLE)
		idle_close(w, client, client->idle);
}
