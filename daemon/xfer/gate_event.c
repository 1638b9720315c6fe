/* Events of clients that watchers keep open: those that gates wait for, and up to GATE_EVENTS_IDLE
 * of a client that none does, because engines record the same ones again and again. A watcher's
 * thread; the device's domain opens and closes them, which may block up to its deadline. */
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

static void event_free(struct gate_watcher *w, struct gate_event *event)
{
	kvx_assert(event->n_gates == 0);
	gate_call_begin(w);
	w->access->event_close(event->event);
	gate_call_end(w);
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
	event_free(w, event);
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

/* Others' calls are in the way: that is no fault of the event. 1, 0, or negative. */
static int event_open(struct gate_watcher *w, struct kvx_gate *gate, struct kvx_gpu_event **out)
{
	struct gate_client *client = gate->line->client;

	if (client->n_opens >= GATE_TURN_OPENS || kvx_now_ns() < w->open_after_ns)
		return 0;
	client->n_opens++;
	gate_call_begin(w);
	int err = w->access->event_open(w->device, gate->ipc, out);
	gate_call_end(w);
	if (err == -EBUSY) {
		w->open_after_ns = kvx_now_ns() + OPEN_AGAIN_NS;
		return 0;
	}
	if (err < 0)
		gate_fail_event(gate, err);
	return err < 0 ? err : 1;
}

static int event_make(struct gate_watcher *w, struct kvx_gate *gate, struct gate_event **out_event)
{
	struct gate_client *client = gate->line->client;
	struct gate_event *event = calloc(1, sizeof(*event));

	if (event == NULL) {
		gate_fail_event(gate, -ENOMEM);
		return -ENOMEM;
	}
	int rc = event_open(w, gate, &event->event);
	if (rc <= 0) {
		free(event);
		return rc;
	}
	memcpy(event->ipc, gate->ipc, sizeof(event->ipc));
	unsigned n = HASH_COUNT(client->events);
	HASH_ADD(hh, client->events, ipc, sizeof(event->ipc), event);
	if (HASH_COUNT(client->events) == n) {
		event_free(w, event);
		gate_fail_event(gate, -ENOMEM);
		return -ENOMEM;
	}
	*out_event = event;
	return 1;
}

int gate_event_take(struct gate_watcher *w, struct kvx_gate *gate)
{
	struct gate_client *client = gate->line->client;
	struct gate_event *event;

	HASH_FIND(hh, client->events, gate->ipc, sizeof(gate->ipc), event);
	if (event == NULL) {
		int rc = event_make(w, gate, &event);

		if (rc <= 0)
			return rc;
	} else if (event->n_gates == 0) {
		idle_remove(client, event);
	}
	event->n_gates++;
	gate->event = event;
	return 1;
}

int gate_event_look(struct gate_watcher *w, struct kvx_gate *gate)
{
	struct gate_event *event = gate->event;

	if (event->bad || event->looked_turn == w->turn)
		return event->looked;
	event->looked_turn = w->turn;
	gate_call_begin(w);
	event->looked = w->access->event_query(event->event);
	gate_call_end(w);
	if (event->looked < 0) { /* who comes now gets one that is opened anew */
		event->bad = true;
		HASH_DELETE(hh, gate->line->client->events, event);
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
	if (event->bad) {
		event_free(w, event);
		return;
	}
	DL_APPEND(client->idle, event);
	if (++client->n_idle > GATE_EVENTS_IDLE)
		idle_close(w, client, client->idle);
}
