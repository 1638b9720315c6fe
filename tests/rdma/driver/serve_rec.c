/* What becomes of each announced WRITE: plan, arrival and note of its end come in any order; the
 * content is checked once, then the cells are watched (serve_check.c), and once more when the drive
 * was told of the end only after that. */
#include "serve.h"

#include <stdlib.h>
#include <string.h>

static struct serve_rec *rec_find(struct serve_conn *conn, uint64_t tag)
{
	for (struct serve_rec *rec = conn->recs; rec != NULL; rec = rec->next)
		if (rec->tag == tag)
			return rec;
	return NULL;
}

static struct serve_rec *rec_get(struct serve_conn *conn, uint64_t tag)
{
	struct serve_rec *rec = rec_find(conn, tag);

	if (rec != NULL)
		return rec;
	rec = calloc(1, sizeof(*rec));
	if (rec == NULL)
		drv_die("no memory for a record");
	rec->tag = tag;
	rec->next = conn->recs;
	conn->recs = rec;
	conn->n_recs++;
	return rec;
}

static void rec_remove(struct serve_conn *conn, struct serve_rec *rec)
{
	struct serve_rec **at = &conn->recs;

	while (*at != rec)
		at = &(*at)->next;
	*at = rec->next;
	conn->n_recs--;
	free(rec->copy);
	free(rec);
}

void serve_recs_free(struct serve_conn *conn)
{
	while (conn->recs != NULL)
		rec_remove(conn, conn->recs);
}

bool serve_recs_orphaned(struct serve *s, struct serve_conn *conn)
{
	for (const struct serve_rec *rec = conn->recs; rec != NULL; rec = rec->next)
		if (rec->watching && !rec->watched)
			return false;
	for (const struct serve_rec *rec = conn->recs; rec != NULL; rec = rec->next)
		s->fig.orphan_silent += !rec->arrived && !rec->noted;
	serve_recs_free(conn);
	return true;
}

unsigned serve_recs_open(const struct serve *s)
{
	unsigned n = 0;

	for (unsigned i = 0; i < SERVE_MAX_CONNS; i++)
		for (const struct serve_rec *rec = s->conns[i].recs; rec != NULL; rec = rec->next)
			n += rec->planned && !rec->arrived && !rec->noted &&
			     rec->plan.generation == s->generation;
	return n;
}

/* Was this said before? Grows the table. */
static bool seen(struct serve_conn *conn, uint64_t tag, uint8_t flag)
{
	uint64_t seq = drv_tag_seq(tag);
	bool was;

	if (seq >= conn->n_seen) {
		uint64_t n = 2 * seq + 1024;

		conn->seen = realloc(conn->seen, n);
		if (conn->seen == NULL)
			drv_die("no memory for %llu tags", (unsigned long long)n);
		memset(conn->seen + conn->n_seen, 0, n - conn->n_seen);
		conn->n_seen = n;
	}
	was = conn->seen[seq] & flag;
	conn->seen[seq] |= flag;
	return was;
}

static bool rec_ok(const struct serve_rec *rec)
{
	return (rec->arrived && rec->arrival_status == KVXFER_OK) ||
	       (rec->noted && rec->note_status == KVXFER_OK);
}

/* Of a registration that is over: its cells were checked as a whole. */
static void rec_step_old(struct serve *s, struct serve_conn *conn, struct serve_rec *rec)
{
	if (!rec->checked && rec_ok(rec) && rec->copy != NULL)
		serve_check(s, conn, rec);
	if (!rec->noted)
		return;
	s->fig.unverified += !rec->checked && rec_ok(rec);
	rec_remove(conn, rec);
}

static void rec_begin(struct serve *s, struct serve_conn *conn, struct serve_rec *rec, uint64_t now)
{
	if (!rec->arrived && rec->note_status == KVXFER_OK) {
		if (rec->due_ns == 0)
			rec->due_ns = now + drv_ms(s->grace_ms);
		if (now < rec->due_ns || now < s->awake_ns + drv_ms(s->grace_ms))
			return;
		s->fig.arrivals_missing++;
		drv_say("bad=arrival_missing tag=%llx", (unsigned long long)rec->tag);
	}
	if (rec_ok(rec) && !rec->checked)
		serve_check(s, conn, rec);
	serve_watch(s, conn, rec);
}

static void rec_step(struct serve *s, struct serve_conn *conn, struct serve_rec *rec, uint64_t now)
{
	if (!rec->planned)
		return;
	if (rec->plan.generation != s->generation) {
		rec_step_old(s, conn, rec);
		return;
	}
	if (!s->up || (!rec->arrived && !rec->noted))
		return;
	if (!rec->watching)
		rec_begin(s, conn, rec, now);
	else if (!rec->checked && rec_ok(rec))
		serve_check_before(s, conn, rec);
	if (rec->watching && !rec->watched && now >= rec->due_ns)
		serve_watched(s, conn, rec);
	if (rec->watched && rec->noted) {
		if (rec->noted_ns > rec->due_ns)
			serve_watched(s, conn, rec); /* a node may have stood still meanwhile */
		drv_chan_send(&conn->chan, DRV_MSG_FREE, &rec->tag, sizeof(rec->tag));
		rec_remove(conn, rec);
	}
}

void serve_recs_tick(struct serve *s, struct serve_conn *conn, uint64_t now)
{
	struct serve_rec *next;

	for (struct serve_rec *rec = conn->recs; rec != NULL; rec = next) {
		next = rec->next;
		rec_step(s, conn, rec, now);
	}
}

/* The daemon is gone and the zone is about to be wiped: what was in flight is kept, because its
 * drive may have been told of a success. */
void serve_recs_keep(struct serve *s)
{
	for (unsigned c = 0; c < SERVE_MAX_CONNS; c++) {
		struct serve_conn *conn = &s->conns[c];

		for (struct serve_rec *rec = conn->recs; rec != NULL; rec = rec->next) {
			uint64_t bytes = 0;

			if (!rec->planned || rec->watching || rec->copy != NULL ||
			    rec->plan.generation != s->generation)
				continue;
			for (unsigned i = 0; i < rec->plan.n; i++)
				bytes += rec->plan.exts[i].len;
			rec->copy = malloc(bytes);
			if (rec->copy == NULL)
				drv_die("no memory for %llu bytes", (unsigned long long)bytes);
			bytes = 0;
			for (unsigned i = 0; i < rec->plan.n; i++) {
				memcpy(rec->copy + bytes,
				       serve_share(s, conn) + drv_ext_offset(&rec->plan.exts[i]),
				       rec->plan.exts[i].len);
				bytes += rec->plan.exts[i].len;
			}
		}
	}
}

static void check_verdicts(struct serve *s, const struct serve_rec *rec)
{
	if (!rec->arrived || !rec->noted ||
	    (rec->arrival_status == KVXFER_OK) == (rec->note_status == KVXFER_OK))
		return;
	s->fig.verdict_mismatch++;
	drv_say("verdicts tag=%llx here=%s there=%s", (unsigned long long)rec->tag,
		kvxfer_status_name(rec->arrival_status), kvxfer_status_name(rec->note_status));
}

static void on_arrival(struct serve *s, const struct kvxfer_event *event)
{
	struct serve_conn *conn = serve_conn_find(s, drv_tag_drive(event->tag));
	struct serve_rec *rec;

	s->fig.arrivals++;
	s->fig.arrivals_ok += event->status == KVXFER_OK;
	s->fig.arrivals_failed += event->status != KVXFER_OK;
	if (conn == NULL) {
		s->fig.arrivals_unknown++;
		return;
	}
	if (seen(conn, event->tag, SEEN_ARRIVAL)) {
		s->fig.arrivals_dup++;
		drv_say("bad=arrival_twice tag=%llx", (unsigned long long)event->tag);
		return;
	}
	if (event->status == KVXFER_OK &&
	    !drv_payload_good(event->payload, event->payload_bytes, event->tag)) {
		s->fig.payload_bad++;
		drv_say("bad=payload tag=%llx", (unsigned long long)event->tag);
	}
	if (!drv_tag_write(event->tag)) {
		s->fig.arrivals_read++;
		return;
	}
	/* Ended and given back already: the drive's note was first. */
	rec = rec_find(conn, event->tag);
	if (rec == NULL && drv_tag_seq(event->tag) < conn->n_seen &&
	    conn->seen[drv_tag_seq(event->tag)] & SEEN_NOTE)
		return;
	rec = rec_get(conn, event->tag);
	rec->arrived = true;
	rec->arrived_ns = drv_now_ns();
	rec->arrival_status = event->status;
	check_verdicts(s, rec);
	rec_step(s, conn, rec, drv_now_ns());
}

void serve_on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct serve *s = arg;

	switch (event->type) {
	case KVXFER_EVENT_ARRIVAL:
		on_arrival(s, event);
		break;
	case KVXFER_EVENT_REGION_LOST:
		s->fig.region_losses++;
		drv_say("event=region_lost text=%s", event->text);
		break;
	case KVXFER_EVENT_DAEMON_LOST:
		serve_daemon_lost(s);
		break;
	default:
		drv_say("event=%d status=%s text=%s", event->type,
			kvxfer_status_name(event->status), event->text);
		break;
	}
}

void serve_on_plan(struct serve *s, struct serve_conn *conn, const void *body, size_t len)
{
	struct serve_rec *rec;
	struct drv_plan plan;

	if (!drv_plan_unpack(&plan, body, len, s->share_cells))
		drv_die("%s sends a plan that is none", conn->name);
	rec = rec_get(conn, plan.tag);
	rec->planned = true;
	rec->planned_ns = drv_now_ns();
	rec->plan = plan;
	rec_step(s, conn, rec, drv_now_ns());
}

void serve_on_drop(struct serve *s, struct serve_conn *conn, uint64_t tag)
{
	struct serve_rec *rec = rec_find(conn, tag);

	if (rec != NULL)
		rec_remove(conn, rec);
}

void serve_on_note(struct serve *s, struct serve_conn *conn, const struct drv_note *note)
{
	struct serve_rec *rec;

	if (seen(conn, note->tag, SEEN_NOTE) || !drv_tag_write(note->tag))
		return;
	rec = rec_find(conn, note->tag);
	if (rec == NULL)
		drv_die("%s notes the end of what it has not announced", conn->name);
	rec->noted = true;
	rec->noted_ns = drv_now_ns();
	rec->note_status = note->status;
	check_verdicts(s, rec);
	rec_step(s, conn, rec, drv_now_ns());
}
