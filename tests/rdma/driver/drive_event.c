/* The ends of transfers: each is counted once, what was read is checked, its memory is made to show
 * late bytes, and the marks of the harness are kept. */
#include "drive.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct drive_xfer *xfer_find(struct drive *d, uint64_t tag)
{
	for (unsigned i = 0; i < d->n_xfers; i++)
		if (d->xfers[i].state != DRIVE_FREE && d->xfers[i].tag == tag)
			return &d->xfers[i];
	return NULL;
}

void drive_mark(struct drive *d, const char *name)
{
	struct drive_mark *mark;

	if (d->n_marks == DRIVE_MAX_MARKS)
		drv_die("more than %d marks", DRIVE_MAX_MARKS);
	mark = &d->marks[d->n_marks++];
	snprintf(mark->name, sizeof(mark->name), "%s", name);
	mark->at_ns = drv_now_ns();
	mark->outstanding = d->n_in_flight;
}

static void mark_failure(struct drive_mark *mark, const struct drive_xfer *x, uint64_t now)
{
	uint64_t took = now - (x->submit_ns > mark->at_ns ? x->submit_ns : mark->at_ns);

	if (mark->first_fail_ns == 0)
		mark->first_fail_ns = now;
	if (took > mark->worst_ns)
		mark->worst_ns = took;
	mark->fails++;
}

static void marks_note(struct drive *d, const struct drive_xfer *x, int status, uint64_t now)
{
	for (unsigned i = 0; i < d->n_marks; i++) {
		struct drive_mark *mark = &d->marks[i];

		if (x->submit_ns <= mark->at_ns) {
			mark->ended++;
			mark->failed += status != KVXFER_OK;
			mark->last_ns = now;
			mark->last_fail_ns = status != KVXFER_OK ? now : mark->last_fail_ns;
		} else if (status == KVXFER_OK && mark->first_ok_ns == 0) {
			mark->first_ok_ns = now;
			drv_say("event=ok_after mark=%s after_ms=%.1f", mark->name,
				drv_as_ms(now - mark->at_ns));
		}
		if (status != KVXFER_OK)
			mark_failure(mark, x, now);
	}
}

/* Did it end before? Grows the table. */
static bool ended_before(struct drive *d, uint64_t tag)
{
	uint64_t seq = drv_tag_seq(tag);
	bool was;

	if (seq >= d->n_ended) {
		uint64_t n = 2 * seq + 1024;

		d->ended = realloc(d->ended, n);
		if (d->ended == NULL)
			drv_die("no memory for %llu tags", (unsigned long long)n);
		memset(d->ended + d->n_ended, 0, n - d->n_ended);
		d->n_ended = n;
	}
	was = d->ended[seq];
	d->ended[seq] = 1;
	return was;
}

static void count_verdict(struct drive *d, enum drv_verdict verdict, const struct drive_xfer *x,
			  unsigned i, uint64_t now)
{
	static const char *const names[] = {"good", "missing", "misplaced", "corrupt"};
	static const char *const forms[] = {"ops", "blocks", "large", "stream"};
	const struct drv_ext *ext = &x->local[i];
	char what[DRV_TELL_MAX];

	if (verdict == DRV_GOOD)
		return;
	d->fig.missing += verdict == DRV_MISSING;
	d->fig.misplaced += verdict == DRV_MISPLACED;
	d->fig.corrupt += verdict == DRV_CORRUPT;
	drv_source_tell(what, sizeof(what), d->mem.data + drv_ext_offset(ext), ext->len,
			d->desc.source_seed, x->remote_offset[i] - d->desc.source_offset);
	drv_say("bad=content verdict=%s tag=%llx op=read form=%s extent=%u of %u len=%u to=%llu "
		"from=%llu %s took_ms=%.1f ended_ms_ago=%.1f generation=%llu imports=%llu",
		names[verdict], (unsigned long long)x->tag, forms[x->form], i, x->plan.n, ext->len,
		(unsigned long long)drv_ext_offset(ext), (unsigned long long)x->remote_offset[i],
		what, drv_as_ms(now - x->submit_ns), drv_as_ms(drv_now_ns() - now),
		(unsigned long long)x->plan.generation, (unsigned long long)d->fig.imports);
}

static void check_read(struct drive *d, const struct drive_xfer *x, uint64_t now)
{
	for (unsigned i = 0; i < x->plan.n; i++) {
		const struct drv_ext *ext = &x->local[i];

		count_verdict(d,
			      drv_source_check(d->mem.data + drv_ext_offset(ext), ext->len,
					       d->desc.source_seed,
					       x->remote_offset[i] - d->desc.source_offset),
			      x, i, now);
		d->fig.verified_bytes += ext->len;
	}
	d->fig.verified++;
}

/* Around its extents nothing may have landed, however it ended. */
static void check_read_edges(struct drive *d, const struct drive_xfer *x)
{
	for (unsigned i = 0; i < x->plan.n; i++) {
		const struct drv_ext *ext = &x->local[i];
		const uint8_t *first = d->mem.data + (uint64_t)ext->cell * DRV_CELL;
		const uint8_t *end = first + (uint64_t)drv_ext_cells(ext) * DRV_CELL;
		const uint8_t *after = first + ext->edge + ext->len;
		uint64_t bad =
		    drv_canary_bad(first, ext->edge) + drv_canary_bad(after, (size_t)(end - after));

		d->fig.edge_bytes += bad;
		if (bad != 0)
			drv_say("bad=edge tag=%llx extent=%u bytes=%llu",
				(unsigned long long)x->tag, i, (unsigned long long)bad);
	}
}

static void local_fill(struct drive *d, const struct drive_xfer *x, int byte)
{
	for (unsigned i = 0; i < x->plan.n; i++)
		memset(d->mem.data + (uint64_t)x->local[i].cell * DRV_CELL, byte,
		       (size_t)drv_ext_cells(&x->local[i]) * DRV_CELL);
}

static void local_give(struct drive *d, const struct drive_xfer *x)
{
	for (unsigned i = 0; i < x->plan.n; i++)
		drv_cells_give(&d->local, x->local[i].cell, drv_ext_cells(&x->local[i]));
}

static void end_read(struct drive *d, struct drive_xfer *x, int status, uint64_t now)
{
	bool same_source = x->plan.generation == d->desc.generation || d->desc.source_seed != 0;

	check_read_edges(d, x);
	if (status == KVXFER_OK && same_source)
		check_read(d, x, now);
	local_fill(d, x, DRV_CANARY);
	x->due_ns = now + drv_ms(d->watch_ms);
	x->state = DRIVE_WATCHED;
	d->n_watched++;
}

static void end_write(struct drive *d, struct drive_xfer *x, int status)
{
	const struct drv_note note = {.tag = x->tag, .status = status, .op = KVXFER_WRITE};

	/* Overwritten at once: what is still read from here shows at the other side. */
	local_fill(d, x, DRV_SPENT);
	local_give(d, x);
	drv_chan_send(&d->chan, DRV_MSG_NOTE, &note, sizeof(note));
	drv_chan_pump_out(&d->chan);
	x->state = d->chan.fd >= 0 ? DRIVE_HELD : DRIVE_FREE;
}

static void count_transport(struct drive *d, const char *name)
{
	for (unsigned i = 0; i < DRIVE_TRANSPORTS && name[0] != '\0'; i++) {
		if (d->fig.transports[i].n != 0 && strcmp(d->fig.transports[i].name, name) != 0)
			continue;
		snprintf(d->fig.transports[i].name, sizeof(d->fig.transports[i].name), "%s", name);
		d->fig.transports[i].n++;
		return;
	}
}

static void count_end(struct drive *d, const struct drive_xfer *x, const struct kvxfer_event *ev,
		      uint64_t now)
{
	bool ok = ev->status == KVXFER_OK;

	d->fig.completed++;
	d->fig.by_status[ev->status >= 0 && ev->status < DRIVE_STATUSES ? ev->status
									: DRIVE_STATUSES - 1]++;
	d->fig.bytes_ok += ok ? x->bytes : 0;
	d->fig.wrong_bytes += ok && ev->bytes != x->bytes;
	d->fig.reads_ok += ok && !drv_tag_write(x->tag);
	d->fig.writes_ok += ok && drv_tag_write(x->tag);
	d->fig.overdue += now > x->submit_ns + x->limit_ns + drv_ms(3000);
	drv_samples_add(ok ? &d->ok_ms : &d->failed_ms, drv_as_ms(now - x->submit_ns));
	count_transport(d, ev->transport);
	if (x->cancelled)
		drv_samples_add(&d->cancel_ms, drv_as_ms(now - x->cancel_ns));
	marks_note(d, x, ev->status, now);
	if (!ok && ev->status != KVXFER_CANCELLED && ev->status != KVXFER_DEADLINE) {
		d->next_submit_ns = now + drv_ms(d->fail_gap_ms);
		if (d->fig.completed - d->fig.by_status[0] < 40)
			drv_say("failed tag=%llx status=%s vendor=%d after_ms=%.1f text=%s",
				(unsigned long long)x->tag, kvxfer_status_name(ev->status),
				ev->vendor_code, drv_as_ms(now - x->submit_ns), ev->text);
	}
}

static void on_terminal(struct drive *d, const struct kvxfer_event *ev)
{
	struct drive_xfer *x = xfer_find(d, ev->tag);
	uint64_t now = drv_now_ns();

	if (ended_before(d, ev->tag) || x == NULL || x->state != DRIVE_IN_FLIGHT ||
	    x->id != ev->transfer) {
		d->fig.duplicated++;
		drv_say("bad=terminal_twice tag=%llx", (unsigned long long)ev->tag);
		return;
	}
	d->n_in_flight--;
	count_end(d, x, ev, now);
	if (drv_tag_write(x->tag))
		end_write(d, x, ev->status);
	else
		end_read(d, x, ev->status, now);
}

void drive_on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct drive *d = arg;

	switch (event->type) {
	case KVXFER_EVENT_TERMINAL:
		on_terminal(d, event);
		break;
	case KVXFER_EVENT_IMPORT_LOST:
		drive_import_lost(d, event->text);
		break;
	case KVXFER_EVENT_DAEMON_LOST:
		drv_say("event=daemon_lost in_flight=%u", d->n_in_flight);
		d->fig.daemon_losses++;
		d->daemon_gone = true;
		d->import_good = false;
		break;
	default:
		drv_say("event=%d status=%s text=%s", event->type,
			kvxfer_status_name(event->status), event->text);
		break;
	}
}

void drive_on_free(struct drive *d, uint64_t tag)
{
	struct drive_xfer *x = xfer_find(d, tag);

	if (x == NULL || x->state != DRIVE_HELD)
		return; /* of an earlier registration */
	for (unsigned i = 0; i < x->plan.n; i++)
		drv_cells_give(&d->remote, x->plan.exts[i].cell, drv_ext_cells(&x->plan.exts[i]));
	x->state = DRIVE_FREE;
}

/* A new registration: its zone is empty. */
void drive_forget_held(struct drive *d)
{
	for (unsigned i = 0; i < d->n_xfers; i++)
		if (d->xfers[i].state == DRIVE_HELD)
			d->xfers[i].state = DRIVE_FREE;
}

static void watched(struct drive *d, struct drive_xfer *x)
{
	uint64_t late = 0;

	for (unsigned i = 0; i < x->plan.n; i++)
		late += drv_canary_bad(d->mem.data + (uint64_t)x->local[i].cell * DRV_CELL,
				       (uint64_t)drv_ext_cells(&x->local[i]) * DRV_CELL);
	if (late != 0) {
		d->fig.late_transfers++;
		d->fig.late_bytes += late;
		drv_say("bad=late tag=%llx op=read bytes=%llu extents=%u first_offset=%llu "
			"watched_ms=%.1f",
			(unsigned long long)x->tag, (unsigned long long)late, x->plan.n,
			(unsigned long long)drv_ext_offset(&x->local[0]),
			drv_as_ms(drv_now_ns() - x->due_ns + drv_ms(d->watch_ms)));
	}
	local_give(d, x);
	x->state = DRIVE_FREE;
	d->n_watched--;
}

void drive_xfers_tick(struct drive *d, uint64_t now)
{
	for (unsigned i = 0; i < d->n_xfers; i++) {
		struct drive_xfer *x = &d->xfers[i];

		if (x->state == DRIVE_IN_FLIGHT && x->cancel_ns != 0 && !x->cancelled &&
		    now >= x->cancel_ns) {
			x->cancelled = true;
			x->cancel_ns = now;
			d->fig.cancels_sent++;
			kvxfer_transfer_cancel(d->client, x->id);
		}
		if (x->state == DRIVE_WATCHED && now >= x->due_ns)
			watched(d, x);
	}
}
