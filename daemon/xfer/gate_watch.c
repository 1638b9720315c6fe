/* What watchers do: see gate.h. A watcher owns the lines of gates that it was sent and the events
 * that it has opened (gate_event.c); it looks at the first closed gate of each line, at each event
 * at most once a turn, and gives back what is open, has failed, or was dropped. Clients take turns,
 * each with a bounded number of looks and opens; no call but a look at an event waits for its
 * device. Runs on the watcher's thread (gate_thread.c) or,
 * where there are no threads, inside of a drain; it knows nothing of transfers. */
#include <errno.h>
#include <stdlib.h>
#include <utlist.h>

#include "mem/guard.h"
#include "xfer/gate_priv.h"

/* ---- looking. Each says: 1 open, 0 not yet, negative: it failed, and the gate says how. */

static int look_at_event(struct gate_watcher *w, struct kvx_gate *gate)
{
	if (gate->event == NULL && gate_event_take(w, gate) < 0) {
		gate_fail_event(gate, -ENOMEM);
		return -ENOMEM;
	}
	int found = gate_event_look(w, gate);
	if (found < 0 && (found == -ENODEV || !gate->event->is_open))
		gate_fail_event(gate, found);
	else if (found < 0)
		gate_fail(gate, -EIO,
			  "the GPU runtime could not say whether the event was reached: was it "
			  "destroyed meanwhile?");
	return found;
}

struct flag_look {
	const uint64_t *flag;
	uint64_t found;
};

/* Inside of a guard. What was written before the flag is seen by whoever has seen it. */
static void flag_read(void *arg)
{
	struct flag_look *look = arg;

	look->found = __atomic_load_n(look->flag, __ATOMIC_ACQUIRE);
}

static int look_at_flag(struct kvx_gate *gate)
{
	struct flag_look look = {.flag = gate->flag};

	if (kvx_guard_run(flag_read, &look) == 0)
		return look.found >= gate->value;
	gate_fail(gate, -EFAULT, "the memory of the flag that it waits for cannot be accessed");
	return -1;
}

/* ---- lines */

static void give_back(struct gate_watcher *w, struct gate_msg *msg)
{
	const struct kvx_gates_conf *conf = &w->gates->conf;

	if (kvx_queue_push(w->gates->done, &msg->node) && conf->doorbell != NULL)
		conf->doorbell(conf->doorbell_arg);
}

/* It has its first line. */
static void client_wait(struct gate_watcher *w, struct gate_client *client)
{
	if (client->turn == w->turn) /* it has had its share of this turn */
		DL_APPEND(w->waiting, client);
	else
		DL_PREPEND(w->waiting, client);
}

static void line_take(struct gate_watcher *w, struct kvx_gate *gate)
{
	struct gate_line *line = gate->line;
	struct gate_client *client;

	gate->next = NULL;
	if (line->first != NULL) {
		line->last->next = gate;
		line->last = gate;
		return;
	}
	client = gate_client_get(w, gate->client);
	if (client == NULL) {
		gate_fail(gate, -ENOMEM, "no memory to wait for anything");
		give_back(w, &gate->msg);
		return;
	}
	line->client = client;
	line->first = line->last = gate;
	if (client->lines == NULL)
		client_wait(w, client);
	DL_APPEND(client->lines, line);
}

/* Its first gate goes back; the line itself is the loop's when it has none. */
static void line_pop(struct gate_watcher *w, struct gate_line *line)
{
	struct gate_client *client = line->client;
	struct kvx_gate *gate = line->first;

	if (gate->event != NULL)
		gate_event_leave(w, gate);
	line->first = gate->next;
	if (line->first == NULL) {
		DL_DELETE(client->lines, line);
		if (client->lines == NULL)
			DL_DELETE(w->waiting, client);
	}
	give_back(w, &gate->msg);
}

static bool gate_is_over(struct gate_watcher *w, struct kvx_gate *gate)
{
	if (atomic_load(&gate->dropped))
		return true;
	int found = w->device != NULL ? look_at_event(w, gate) : look_at_flag(gate);
	if (found > 0)
		gate->status = 0;
	return found != 0;
}

/* Gates of the line as long as they are over, and looks are left. Says how many came back. */
static unsigned line_look(struct gate_watcher *w, struct gate_line *line, unsigned *n_looks)
{
	unsigned n = 0;

	for (bool more = true; more && *n_looks > 0; n++) {
		(*n_looks)--;
		if (!gate_is_over(w, line->first))
			break;
		more = line->first->next != NULL; /* the last one may take the line along */
		line_pop(w, line);
	}
	return n;
}

/* Lines that were looked at go to the end: each comes to its turn, however many there are. */
static bool client_look(struct gate_watcher *w, struct gate_client *client)
{
	struct gate_line *line, *next, *last = client->lines->prev;
	unsigned n_looks = GATE_TURN_LOOKS;
	bool any = false, more = true;

	client->turn = w->turn;
	client->n_opens = 0;
	DL_DELETE(w->waiting, client);
	DL_APPEND(w->waiting, client);
	for (line = client->lines; more && n_looks > 0; line = next) {
		more = line != last;
		next = line->next;
		if (more) { /* the last one is where it belongs */
			DL_DELETE(client->lines, line);
			DL_APPEND(client->lines, line);
		}
		any |= line_look(w, line, &n_looks) > 0;
	}
	return any;
}

bool gate_watcher_look(struct gate_watcher *w)
{
	struct kvx_queue_node *node;
	bool any = false;

	w->turn++;
	while (w->waiting != NULL && w->waiting->turn != w->turn) {
		any |= client_look(w, w->waiting);
		while ((node = kvx_queue_pop(w->todo)) != NULL)
			gate_watcher_take(w, node);
	}
	return any;
}

/* All its gates are dropped. */
static void client_forget(struct gate_watcher *w, struct gate_client *client)
{
	while (client->lines != NULL)
		line_pop(w, client->lines);
	gate_events_forget(w, client);
}

void gate_watcher_take(struct gate_watcher *w, struct kvx_queue_node *node)
{
	struct gate_msg *msg = (struct gate_msg *)(void *)node; /* its first member */
	struct gate_client *client;

	if (msg->kind == GATE_MSG_GATE) {
		line_take(w, (struct kvx_gate *)(void *)msg);
		return;
	}
	const struct gate_forget *forget = (struct gate_forget *)(void *)msg;
	HASH_FIND(hh, w->clients, &forget->client, sizeof(forget->client), client);
	if (client != NULL)
		client_forget(w, client);
	give_back(w, msg);
}

void gate_watcher_end(struct gate_watcher *w)
{
	struct kvx_queue_node *node;
	struct gate_client *client, *next;

	while ((node = kvx_queue_pop(w->todo)) != NULL)
		gate_watcher_take(w, node);
	HASH_ITER (hh, w->clients, client, next)
		client_forget(w, client);
}
