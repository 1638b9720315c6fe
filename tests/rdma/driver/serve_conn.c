/* The connections of the drives: hello, plans and notes in; descriptors, freed cells and the
 * summary out. A drive that vanishes leaves its share to be checked as a whole. */
#include "serve.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MARK_WAIT_MS 5000u

struct serve_conn *serve_conn_find(struct serve *s, uint32_t id)
{
	for (unsigned i = 0; i < SERVE_MAX_CONNS; i++)
		if (s->conns[i].used && s->conns[i].id == id)
			return &s->conns[i];
	return NULL;
}

static bool share_taken(const struct serve *s, uint32_t share)
{
	for (unsigned i = 0; i < SERVE_MAX_CONNS; i++)
		if (s->conns[i].used && s->conns[i].share == share)
			return true;
	return false;
}

static void conn_drop(struct serve_conn *conn)
{
	drv_chan_close(&conn->chan);
	serve_recs_free(conn);
	free(conn->seen);
	free(conn->fills);
	memset(conn, 0, sizeof(*conn));
}

static uint32_t free_share(const struct serve *s)
{
	uint32_t share = 0;

	while (share < s->drives && share_taken(s, share))
		share++;
	return share;
}

/* Who comes when every share is taken stays in the socket's queue. */
bool serve_has_room(const struct serve *s)
{
	return free_share(s) < s->drives;
}

void serve_accept(struct serve *s)
{
	struct drv_chan chan;
	uint32_t share = free_share(s);

	for (unsigned i = 0; i < SERVE_MAX_CONNS; i++) {
		struct serve_conn *conn = &s->conns[i];

		if (conn->used)
			continue;
		drv_chan_accept(&chan, s->listen_fd);
		if (chan.fd < 0)
			return;
		conn->used = true;
		conn->chan = chan;
		conn->share = share;
		conn->id = ++s->next_conn;
		conn->fills = calloc(s->share_cells, sizeof(*conn->fills));
		if (conn->fills == NULL)
			drv_die("no memory for %u cells", s->share_cells);
		return;
	}
}

static void on_message(struct serve *s, struct serve_conn *conn, enum drv_msg type,
		       const void *body, size_t len)
{
	struct drv_note note;
	uint64_t tag;

	switch (type) {
	case DRV_MSG_HELLO:
		snprintf(conn->name, sizeof(conn->name), "%.*s", (int)len, (const char *)body);
		serve_announce(s, conn);
		break;
	case DRV_MSG_PLAN:
		serve_on_plan(s, conn, body, len);
		break;
	case DRV_MSG_DROP:
		if (len != sizeof(tag))
			drv_die("a message of a wrong length");
		memcpy(&tag, body, sizeof(tag));
		serve_on_drop(s, conn, tag);
		break;
	case DRV_MSG_NOTE:
		if (len != sizeof(note))
			drv_die("a message of a wrong length");
		memcpy(&note, body, sizeof(note));
		serve_on_note(s, conn, &note);
		break;
	case DRV_MSG_BYE:
		conn->bye = true;
		break;
	case DRV_MSG_MARKED:
		conn->marked = true;
		break;
	default:
		drv_die("a message of type %d", type);
	}
}

/* Tells every drive that the moment `name` has come, and waits until each has noted it. */
void serve_mark(struct serve *s, const char *name)
{
	uint64_t end = drv_now_ns() + drv_ms(MARK_WAIT_MS);

	for (unsigned i = 0; i < SERVE_MAX_CONNS; i++) {
		struct serve_conn *conn = &s->conns[i];

		if (!conn->used || conn->chan.fd < 0)
			continue;
		conn->marked = false;
		drv_chan_send(&conn->chan, DRV_MSG_MARK, name, strlen(name));
		while (conn->used && conn->chan.fd >= 0 && !conn->marked && drv_now_ns() < end)
			serve_conn_pump(s, conn);
	}
}

/* The whole share: nothing but the canary may be there. */
static uint64_t share_scan(struct serve *s, const struct serve_conn *conn)
{
	uint64_t bytes = (uint64_t)s->share_cells * DRV_CELL;
	uint64_t bad = drv_canary_bad(serve_share(s, conn), bytes);

	if (bad != 0) {
		drv_say("bad=zone drive=%s bytes=%llu", conn->name, (unsigned long long)bad);
		drv_canary_fill(serve_share(s, conn), bytes);
	}
	s->fig.zone_bytes += bad;
	return bad;
}

static void conn_summary(struct serve *s, struct serve_conn *conn)
{
	struct drv_report report = {.n = 0};
	char text[8192];
	size_t len;

	share_scan(s, conn);
	serve_report(s, &report);
	len = drv_report_text(&report, text, sizeof(text));
	drv_chan_send(&conn->chan, DRV_MSG_SUMMARY, text, len + 1);
	drv_chan_pump(&conn->chan);
	conn->bye = false;
	s->n_byes++;
}

static void conn_lost(struct serve *s, struct serve_conn *conn)
{
	if (conn->n_recs == 0 && conn->chan.in_len == conn->chan.in_used) {
		share_scan(s, conn);
		conn_drop(conn);
		return;
	}
	drv_say("event=drive_gone drive=%s open=%u", conn->name, conn->n_recs);
	drv_chan_close(&conn->chan);
	s->fig.orphans++;
	conn->orphan = true;
	conn->orphan_due_ns = drv_now_ns() + drv_ms(s->orphan_ms);
}

void serve_conn_pump(struct serve *s, struct serve_conn *conn)
{
	bool alive = drv_chan_pump(&conn->chan);
	enum drv_msg type;
	const void *body;
	size_t len;

	while ((body = drv_chan_next(&conn->chan, &type, &len)) != NULL)
		on_message(s, conn, type, body, len);
	if (!alive)
		conn_lost(s, conn);
}

/* First the bound after which nothing may land any more, then the canary, then the look. */
static void orphan_tick(struct serve *s, struct serve_conn *conn, uint64_t now)
{
	if (now < conn->orphan_due_ns)
		return;
	if (conn->recs != NULL) {
		if (!serve_recs_orphaned(s, conn))
			return;
		drv_canary_fill(serve_share(s, conn), (uint64_t)s->share_cells * DRV_CELL);
		conn->orphan_due_ns = now + drv_ms(s->trial_watch_ms);
		return;
	}
	s->fig.late_bytes += share_scan(s, conn);
	conn_drop(conn);
}

void serve_conns_tick(struct serve *s, uint64_t now)
{
	for (unsigned i = 0; i < SERVE_MAX_CONNS; i++) {
		struct serve_conn *conn = &s->conns[i];

		if (!conn->used)
			continue;
		serve_recs_tick(s, conn, now);
		if (conn->orphan)
			orphan_tick(s, conn, now);
		if (conn->used && conn->bye && conn->n_recs == 0)
			conn_summary(s, conn);
	}
}
