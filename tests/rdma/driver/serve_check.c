/* The memory of one announced WRITE: is its content right, is nothing beside it, does anything come
 * after its end? What is wrong is printed with all that is known of the transfer. Main thread. */
#include "serve.h"

#include <stdio.h>
#include <string.h>

static uint8_t *ext_cells(struct serve *s, const struct serve_conn *conn, const struct drv_ext *ext)
{
	return serve_share(s, conn) + (uint64_t)ext->cell * DRV_CELL;
}

static double ago_ms(uint64_t at_ns)
{
	return at_ns != 0 ? drv_as_ms(drv_now_ns() - at_ns) : -1;
}

/* Who was told what of it, and when. */
static void rec_tell(const struct serve_rec *rec, char *buf, size_t size)
{
	snprintf(buf, size,
		 "here=%s there=%s planned_ms_ago=%.1f arrived_ms_ago=%.1f noted_ms_ago=%.1f "
		 "generation=%llu",
		 rec->arrived ? kvxfer_status_name(rec->arrival_status) : "untold",
		 rec->noted ? kvxfer_status_name(rec->note_status) : "untold",
		 ago_ms(rec->planned_ns), ago_ms(rec->arrived_ns), ago_ms(rec->noted_ns),
		 (unsigned long long)rec->plan.generation);
}

/* The newest fill of its cells with the canary, which was for another transfer: was that late? */
static void fill_tell(const struct serve_conn *conn, const struct drv_ext *ext, char *buf,
		      size_t size)
{
	const struct serve_fill *newest = &conn->fills[ext->cell];

	for (uint32_t i = 1; i < drv_ext_cells(ext); i++)
		if (conn->fills[ext->cell + i].at_ns > newest->at_ns)
			newest = &conn->fills[ext->cell + i];
	snprintf(buf, size, "filled_for=%llx filled_ms_ago=%.1f", (unsigned long long)newest->tag,
		 ago_ms(newest->at_ns));
}

static void count_verdict(struct serve *s, const struct serve_conn *conn, enum drv_verdict verdict,
			  const struct serve_rec *rec, unsigned i, const uint8_t *data)
{
	static const char *const names[] = {"good", "missing", "misplaced", "corrupt"};
	const struct drv_ext *ext = &rec->plan.exts[i];
	char what[DRV_TELL_MAX], who[256], fill[96];

	if (verdict == DRV_GOOD)
		return;
	s->fig.missing += verdict == DRV_MISSING;
	s->fig.misplaced += verdict == DRV_MISPLACED;
	s->fig.corrupt += verdict == DRV_CORRUPT;
	drv_extent_tell(what, sizeof(what), data, ext->len, rec->tag, drv_ext_offset(ext));
	rec_tell(rec, who, sizeof(who));
	fill_tell(conn, ext, fill, sizeof(fill));
	drv_say("bad=content verdict=%s tag=%llx op=write extent=%u of %u len=%u offset=%llu %s "
		"%s %s copy=%d",
		names[verdict], (unsigned long long)rec->tag, i, rec->plan.n, ext->len,
		(unsigned long long)drv_ext_offset(ext), what, who, fill, rec->copy != NULL);
}

/* Looks at what a successful transfer has left: in the zone, or in the copy of it. */
void serve_check(struct serve *s, struct serve_conn *conn, struct serve_rec *rec)
{
	const uint8_t *zone = serve_share(s, conn);
	const uint8_t *at = rec->copy;

	rec->checked = true;
	for (unsigned i = 0; i < rec->plan.n; i++) {
		const struct drv_ext *ext = &rec->plan.exts[i];
		const uint8_t *data = rec->copy != NULL ? at : zone + drv_ext_offset(ext);

		count_verdict(s, conn,
			      drv_extent_check(data, ext->len, rec->tag, drv_ext_offset(ext)), rec,
			      i, data);
		at += rec->copy != NULL ? ext->len : 0;
		s->fig.verified_bytes += ext->len;
	}
	s->fig.verified++;
}

static bool rec_is_whole(struct serve *s, const struct serve_conn *conn,
			 const struct serve_rec *rec)
{
	const uint8_t *zone = serve_share(s, conn);

	for (unsigned i = 0; i < rec->plan.n; i++) {
		const struct drv_ext *ext = &rec->plan.exts[i];
		uint64_t offset = drv_ext_offset(ext);

		if (drv_extent_check(zone + offset, ext->len, rec->tag, offset) != DRV_GOOD)
			return false;
	}
	return true;
}

/* One side was told of a failure, the other one later of a success, as a node was lost between the
 * two. The failure came after the fence: all that the success promises was there then. */
void serve_check_before(struct serve *s, struct serve_conn *conn, struct serve_rec *rec)
{
	char who[256];

	rec->checked = true;
	s->fig.verified_before++;
	if (rec->whole)
		return;
	s->fig.missing++;
	rec_tell(rec, who, sizeof(who));
	drv_say("bad=content verdict=never_whole drive=%s tag=%llx op=write extents=%u %s",
		conn->name, (unsigned long long)rec->tag, rec->plan.n, who);
}

/* Around its extents nothing may have landed, however it ended. */
static void check_edges(struct serve *s, struct serve_conn *conn, const struct serve_rec *rec)
{
	for (unsigned i = 0; i < rec->plan.n; i++) {
		const struct drv_ext *ext = &rec->plan.exts[i];
		const uint8_t *first = ext_cells(s, conn, ext);
		const uint8_t *end = first + (uint64_t)drv_ext_cells(ext) * DRV_CELL;
		const uint8_t *after = first + ext->edge + ext->len;
		uint64_t bad =
		    drv_canary_bad(first, ext->edge) + drv_canary_bad(after, (size_t)(end - after));
		char who[256];

		if (bad == 0)
			continue;
		s->fig.edge_bytes += bad;
		rec_tell(rec, who, sizeof(who));
		drv_say("bad=edge tag=%llx extent=%u offset=%llu len=%u bytes=%llu %s",
			(unsigned long long)rec->tag, i, (unsigned long long)drv_ext_offset(ext),
			ext->len, (unsigned long long)bad, who);
	}
}

void serve_watch(struct serve *s, struct serve_conn *conn, struct serve_rec *rec)
{
	uint64_t now;

	check_edges(s, conn, rec);
	rec->whole = rec->checked || rec_is_whole(s, conn, rec);
	now = drv_now_ns();
	for (unsigned i = 0; i < rec->plan.n; i++) {
		const struct drv_ext *ext = &rec->plan.exts[i];

		drv_canary_fill(ext_cells(s, conn, ext), (uint64_t)drv_ext_cells(ext) * DRV_CELL);
		for (uint32_t k = 0; k < drv_ext_cells(ext); k++)
			conn->fills[ext->cell + k] = (struct serve_fill){rec->tag, now};
	}
	rec->watching = true;
	rec->due_ns = drv_now_ns() + drv_ms(s->watch_ms);
}

/* The first cell of an extent that is not the canary any more, and which transfer is there. */
static void late_tell(struct serve *s, const struct serve_conn *conn, const struct serve_rec *rec,
		      char *buf, size_t size)
{
	for (unsigned i = 0; i < rec->plan.n; i++) {
		const struct drv_ext *ext = &rec->plan.exts[i];
		const uint8_t *at = ext_cells(s, conn, ext);
		uint64_t tag = 0, offset = 0;
		uint64_t bad = drv_canary_bad(at, (uint64_t)drv_ext_cells(ext) * DRV_CELL);
		bool named = drv_extent_named(at + ext->edge, &tag, &offset);

		if (bad == 0)
			continue;
		snprintf(buf, size, "extent=%u offset=%llu len=%u extent_bytes=%llu %s=%llx", i,
			 (unsigned long long)drv_ext_offset(ext), ext->len, (unsigned long long)bad,
			 named ? "holds_tag" : "unnamed", (unsigned long long)tag);
		return;
	}
}

void serve_watched(struct serve *s, struct serve_conn *conn, struct serve_rec *rec)
{
	char who[256], what[160] = "";
	uint64_t late = 0;

	late_tell(s, conn, rec, what, sizeof(what));
	for (unsigned i = 0; i < rec->plan.n; i++) {
		const struct drv_ext *ext = &rec->plan.exts[i];
		uint64_t len = (uint64_t)drv_ext_cells(ext) * DRV_CELL;
		uint8_t *at = ext_cells(s, conn, ext);
		uint64_t bad = drv_canary_bad(at, len);

		late += bad;
		if (bad != 0)
			drv_canary_fill(at, len);
	}
	rec->watched = true;
	if (late == 0)
		return;
	s->fig.late_transfers++;
	s->fig.late_bytes += late;
	rec_tell(rec, who, sizeof(who));
	drv_say("bad=late tag=%llx bytes=%llu %s %s", (unsigned long long)rec->tag,
		(unsigned long long)late, what, who);
}
