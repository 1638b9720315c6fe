/* `rdma_engine serve`: the engine whose memory others write to and read from.
 *
 * Its region is a zone of cells that drives write to, each drive its share, and a source that they
 * read. Every transfer is announced over the drive's own connection; when this side is told of its
 * end, by its arrival or by the drive, the content is checked, the cells are filled with the canary
 * and watched; only then the drive gets them back. So bytes that come late, land elsewhere or are
 * missing are seen, whoever was told first. Main thread only. */
#ifndef KVX_RDMA_SERVE_H
#define KVX_RDMA_SERVE_H

#include "drv.h"
#include "drv_chan.h"
#include "drv_mem.h"
#include "drv_plan.h"
#include "kvxfer/client.h"

#define SERVE_MAX_CONNS 64

/* One WRITE that was announced, from its plan to the freeing of its cells. */
struct serve_rec {
	struct serve_rec *next;
	uint64_t tag;
	bool planned, arrived, noted; /* what has come in so far */
	int arrival_status, note_status;
	uint64_t planned_ns, arrived_ns, noted_ns;
	bool checked; /* its content was looked at */
	bool whole;   /* when its cells were filled with the canary all of it was there */
	bool watching, watched;
	uint64_t due_ns; /* of the wait for the arrival, then of the watch */
	uint8_t *copy;   /* its extents as they were when the daemon was lost */
	struct drv_plan plan;
};

/* What a cell was filled with the canary for the last time, at the end of which transfer. */
struct serve_fill {
	uint64_t tag, at_ns;
};

struct serve_conn {
	struct drv_chan chan;
	bool used;
	bool bye;
	bool marked; /* has noted the newest mark */
	bool orphan; /* the drive is gone without BYE: its share is checked as a whole */
	uint64_t orphan_due_ns;
	uint32_t id, share;
	uint8_t *seen; /* by sequence number: SEEN_* */
	uint64_t n_seen;
	char name[64];
	struct serve_rec *recs;
	unsigned n_recs;
	struct serve_fill *fills; /* by cell */
};
#define SEEN_ARRIVAL 1u
#define SEEN_NOTE    2u

struct serve_figures {
	uint64_t arrivals, arrivals_ok, arrivals_failed, arrivals_dup, arrivals_unknown;
	uint64_t arrivals_read, arrivals_missing, payload_bad, verdict_mismatch;
	uint64_t verified, verified_bytes, verified_before, unverified;
	uint64_t missing, misplaced, corrupt, edge_bytes;
	uint64_t late_transfers, late_bytes, zone_bytes, guard_bytes, source_bad;
	uint64_t trials, trials_hit, trial_late, trial_late_bytes, unregister_timeouts;
	uint64_t orphans, orphan_silent, daemon_losses, reconnects, region_losses;
};

struct serve {
	/* flags */
	const char *socket, *name, *listen;
	uint32_t drives; /* shares of the zone */
	uint64_t zone_bytes, source_bytes;
	uint32_t access;
	uint64_t watch_ms, grace_ms, orphan_ms, trial_watch_ms, trial_every_ms, max_trials;
	const char *trial;   /* "unregister", "close" or NULL */
	uint64_t exit_after; /* BYEs; 0: runs until told to stop */
	const char *desc_file;
	bool keeper;

	struct kvxfer_client *client;
	struct kvxfer_region *region;
	struct drv_mem mem;
	uint64_t generation, seed;
	uint32_t share_cells;
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	size_t desc_len;
	bool up; /* the region is registered and exported */
	uint64_t up_since_ns, retry_ns;

	int listen_fd;
	struct drv_control control;
	struct serve_conn conns[SERVE_MAX_CONNS];
	uint32_t next_conn;
	uint64_t n_byes;
	uint64_t turn_ns, awake_ns; /* newest turn; the end of the newest long time without one */
	bool stop;
	struct serve_figures fig;
	struct drv_samples fence_ms;
};

/* serve_region.c: the client, the region, and the fences of both. */
void serve_open(struct serve *s);
void serve_announce(struct serve *s, struct serve_conn *conn);
void serve_unregister_trial(struct serve *s);
void serve_close_trial(struct serve *s);
void serve_daemon_lost(struct serve *s);
void serve_region_tick(struct serve *s, uint64_t now);
uint8_t *serve_share(struct serve *s, const struct serve_conn *conn);

/* serve_check.c: looks at the memory of one transfer. */
void serve_check(struct serve *s, struct serve_conn *conn, struct serve_rec *rec); /* it is good */
/* It was told of as failed at first, and now as good. */
void serve_check_before(struct serve *s, struct serve_conn *conn, struct serve_rec *rec);
void serve_watch(struct serve *s, struct serve_conn *conn, struct serve_rec *rec);
void serve_watched(struct serve *s, struct serve_conn *conn, struct serve_rec *rec);

/* serve_rec.c: what becomes of each announced transfer. */
void serve_on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg);
void serve_on_plan(struct serve *s, struct serve_conn *conn, const void *body, size_t len);
void serve_on_drop(struct serve *s, struct serve_conn *conn, uint64_t tag);
void serve_on_note(struct serve *s, struct serve_conn *conn, const struct drv_note *note);
void serve_recs_tick(struct serve *s, struct serve_conn *conn, uint64_t now);
/* A drive that is gone: true once each record that has begun its watch has ended it; counts the
 * records of which no arrival was told, and forgets all. */
bool serve_recs_orphaned(struct serve *s, struct serve_conn *conn);
void serve_recs_free(struct serve_conn *conn);
void serve_recs_keep(struct serve *s);
unsigned serve_recs_open(const struct serve *s);

/* serve_conn.c: the connections of the drives. */
bool serve_has_room(const struct serve *s);
void serve_accept(struct serve *s);
void serve_conn_pump(struct serve *s, struct serve_conn *conn);
void serve_mark(struct serve *s, const char *name);
void serve_conns_tick(struct serve *s, uint64_t now);
struct serve_conn *serve_conn_find(struct serve *s, uint32_t id);

/* serve_keeper.c: --keeper 1: the program forks; the child is the engine, the parent has the same
 * memory and, should the child be killed, waits until the daemon has let go of the region and
 * then watches the zone. Returns in the child; *out_code: what the parent ends with. */
bool serve_keeper(struct serve *s, int *out_code);

/* serve.c */
void serve_report(struct serve *s, struct drv_report *report);
int serve_main(struct drv_args *args);

#endif
