/* News for the loop that nobody asked for: an endpoint or the device was lost or has come up. They
 * travel through the completion ring as commands of the worker's own; when all of these are on
 * their way the news waits with the endpoint or device it is of. Worker thread. */
#include "worker/worker_priv.h"

static bool note_send(struct kvx_worker *worker, const struct kvx_tevent *event)
{
	struct kvx_cmd *note = kvx_ring_pop(worker->free_notes);
	if (note == NULL)
		return false;
	note->work.kind = KVX_CMD_NOTE;
	note->event = *event;
	kvx_worker_complete(worker, &note->work);
	return true;
}

void kvx_worker_note(struct kvx_worker *worker, struct worker_notes *notes, unsigned which,
		     const struct kvx_tevent *event)
{
	if (notes->waiting == 0 && note_send(worker, event))
		return;
	if (notes->waiting == 0)
		worker->n_notes_waiting++;
	notes->waiting |= 1u << which;
	notes->events[which] = *event;
}

static void notes_send(struct kvx_worker *worker, struct worker_notes *notes)
{
	if (notes->waiting == 0)
		return;
	for (unsigned i = 0; i < WORKER_NOTE_KINDS; i++) {
		if (!(notes->waiting & (1u << i)))
			continue;
		if (!note_send(worker, &notes->events[i]))
			return;
		notes->waiting &= ~(1u << i);
	}
	worker->n_notes_waiting--;
}

void kvx_worker_notes_flush(struct kvx_worker *worker)
{
	struct worker_ep *wep, *next;
	notes_send(worker, &worker->device_notes);
	HASH_ITER (hh, worker->eps, wep, next)
		notes_send(worker, &wep->notes);
}
