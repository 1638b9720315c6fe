/* `rdma_engine drive`: the engine that submits transfers and keeps the books.
 *
 * It reads from and writes to the region of one `rdma_engine serve`, with many transfers of mixed
 * sizes and forms in flight, cancels some, gives some a deadline that cannot be met, and checks
 * that each accepted transfer has exactly one terminal event, in time, and that what was read is
 * right. After the terminal event the destination of a READ is filled with the canary and watched,
 * and the source of a WRITE is overwritten, so that a byte that still moves is seen. Main thread
 * only. */
#ifndef KVX_RDMA_DRIVE_H
#define KVX_RDMA_DRIVE_H

#include "drv.h"
#include "drv_chan.h"
#include "drv_mem.h"
#include "drv_plan.h"
#include "kvxfer/client.h"

#define DRIVE_MAX_MARKS  32
#define DRIVE_STATUSES   32
#define DRIVE_TRANSPORTS 4

enum drive_state { DRIVE_FREE, DRIVE_IN_FLIGHT, DRIVE_HELD, DRIVE_WATCHED };

struct drive_xfer {
	enum drive_state state;
	enum drv_form form;
	uint64_t tag, id;
	uint64_t submit_ns, cancel_ns, due_ns;
	uint64_t limit_ns; /* its deadline */
	uint64_t bytes;
	bool cancelled;
	struct drv_plan plan;               /* WRITE: where to, in this drive's share of the zone */
	struct drv_ext local[DRV_MAX_EXTS]; /* in the own region */
	uint64_t remote_offset[DRV_MAX_EXTS]; /* READ: from where, in the region of serve */
};

/* A moment that the harness names: a fault, or its end. */
struct drive_mark {
	char name[24];
	uint64_t at_ns;
	uint64_t outstanding, ended, failed; /* of those that were in flight then */
	uint64_t last_ns, last_fail_ns;      /* when the last of them ended, failed */
	uint64_t first_fail_ns, first_ok_ns; /* after it; ok: submitted after it, too */
	/* All that failed after it: how many, and the longest that one took, from its submission or
	 * from this moment, whichever was later. */
	uint64_t fails, worst_ns;
};

struct drive_figures {
	uint64_t accepted, completed, duplicated, overdue, refused, bytes_ok;
	uint64_t by_status[DRIVE_STATUSES];
	uint64_t reads_ok, writes_ok, streams, blocks, cancels_sent;
	uint64_t verified, verified_bytes, missing, misplaced, corrupt, edge_bytes;
	uint64_t late_transfers, late_bytes, wrong_bytes;
	uint64_t imports, import_failures, import_losses, daemon_losses, reconnects, chan_losses;
	uint64_t stalls;
	struct {
		char name[16];
		uint64_t n;
	} transports[DRIVE_TRANSPORTS];
};

struct drive {
	/* flags */
	const char *socket, *name, *peer, *require;
	uint64_t count, seconds, window, max_bytes, op_bytes_min, op_bytes_max, max_ops;
	uint64_t big_bytes, zone_bytes, watch_ms, gap_ms, fail_gap_ms, deadline_ms, cancel_max_ms,
	    limit_s;
	unsigned read_pct, cancel_pct, short_deadline_pct, form_pct, big_pct;
	bool reconnect, expect_ok;

	struct kvxfer_client *client;
	struct kvxfer_region *region;
	struct kvxfer_import *import_;
	struct drv_mem mem;
	struct drv_cells local, remote;
	struct drv_chan chan;
	struct drv_desc desc;
	uint8_t desc_bytes[KVXFER_DESCRIPTOR_MAX];
	bool desc_valid;  /* serve has a region for us */
	bool zone_empty;  /* it is a new one: of what was written to an old one nothing is there */
	bool import_good; /* transfers can be submitted */
	bool daemon_gone;
	uint64_t import_retry_ns, chan_retry_ns, daemon_retry_ns, next_submit_ns;
	char import_error[96];

	struct drv_random random;
	struct drv_control control;
	uint64_t seq;
	struct drive_xfer *xfers; /* n_xfers of them */
	unsigned n_xfers, n_in_flight, n_watched;
	uint8_t *ended; /* by sequence number */
	uint64_t n_ended;

	struct drive_mark marks[DRIVE_MAX_MARKS];
	unsigned n_marks;
	uint64_t start_ns, stop_ns;
	bool stop, paused, summary;
	char summary_text[8192];
	struct drive_figures fig;
	struct drv_samples ok_ms, failed_ms, cancel_ms; /* from submit, submit, cancel to the end */
};

/* drive_link.c: the channel to serve, the descriptor and its import, the loss of the own daemon. */
void drive_open(struct drive *d);
void drive_link_tick(struct drive *d, uint64_t now);
void drive_chan_pump(struct drive *d);
void drive_import_lost(struct drive *d, const char *text);
void drive_import_close(struct drive *d);

/* drive_submit.c: makes up a transfer and submits it; false: not now. */
bool drive_submit(struct drive *d, uint64_t now);

/* drive_event.c: ends, checks and watches. */
void drive_on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg);
void drive_on_free(struct drive *d, uint64_t tag);
void drive_xfers_tick(struct drive *d, uint64_t now);
void drive_forget_held(struct drive *d);
void drive_mark(struct drive *d, const char *name);

/* drive_report.c */
bool drive_report(struct drive *d);

int drive_main(struct drv_args *args);
int oob_main(struct drv_args *args);

#endif
