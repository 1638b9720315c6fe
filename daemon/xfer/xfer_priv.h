/* Transfers, inside: shared by xfer.c (from submit to the last op), xfer_end.c (from the first
 * failure or the last completion to the terminal event), xfer_retry.c (a lane torn down under it),
 * xfer_wait.c (lists that wait for something), xfer_way.c (which way to a peer they go by) and
 * xfer_table.c (all of them). */
#ifndef KVX_XFER_PRIV_H
#define KVX_XFER_PRIV_H

#define HASH_NONFATAL_OOM 1
#include <uthash.h>

#include "base/sm.h"
#include "xfer/xfer.h"

#define KVX_XFER_MAGIC 0x78666572u

enum xfer_state {
	XFER_OPEN,    /* streaming, more may be appended */
	XFER_RUNNING, /* all that belongs to it is known */
	XFER_ENDING,  /* failed or cancelled: nothing is pulled, batches in flight come back */
	XFER_ENDED,
};

/* A submitter: exists while it has transfers. */
struct xfer_owner {
	uint64_t client;
	unsigned n;
	uint64_t list_bytes;    /* of its transfers' plans */
	struct kvx_xfer *xfers; /* by owner_prev/next */
	UT_hash_handle hh;
};

/* Pieces that are to be sent again on the next generation of the lane. */
struct xfer_retry {
	struct kvx_span *spans;
	unsigned n, at, room;
	uint64_t bytes; /* of those not given out yet */
};

/* One accepted transfer. Owned by kvx_xfers, loop thread; workers see only its batches. */
struct kvx_xfer {
	uint32_t magic;
	struct kvx_sched_item item;
	struct kvx_timer timer; /* deadline; in ENDING: fence bound */
	struct kvx_sm sm;
	struct kvx_xfers *all;
	struct xfer_owner *owner;
	uint64_t uid;
	uint64_t client, number, tag;
	int op;
	struct kvx_region *region;
	struct kvx_target *target;
	struct kvx_lane *lane;
	struct kvx_plan *plan;
	uint64_t list_bytes;     /* of the plan, as its owner's sum has it */
	struct xfer_wait *waits; /* of its closed lists, in their order; DL */
	unsigned n_waits;
	void *payload;
	uint32_t payload_bytes;
	char label[KVX_LABEL_BYTES];
	bool told_open; /* remote_open ran */
	bool is_done;   /* in all->done */
	bool retrying;  /* its lane is being torn down, batches in flight come back */
	unsigned n_retries;
	struct xfer_retry retry;
	const struct kvx_transport_ops *required; /* NULL: any */
	const char *transport;                    /* of its newest op; "" before the first */
	int status;                               /* of the first failure */
	enum kvx_scope scope;
	int vendor_code;
	struct kvx_why why;
	uint64_t bytes_done, n_ops;
	uint64_t deadline_ns; /* as asked for */
	uint64_t submit_ns, first_ns, last_ns;
	struct kvx_xfer *prev, *next; /* all->live, newest first */
	struct kvx_xfer *owner_prev, *owner_next;
	struct kvx_xfer *done_next;
};

/* An ended or refused transfer, for people. */
struct xfer_past {
	struct kvx_xfer_row row;
	char text[KVX_WHY_BYTES];
	char peer[33];
	char label[KVX_LABEL_BYTES];
};
struct xfer_ring {
	struct xfer_past *rows; /* conf.history of them */
	unsigned n, at;         /* in use; the next one to be written */
};

struct kvx_xfers {
	struct kvx_xfers_conf conf;
	struct kvx_xfer *live;
	struct xfer_owner *owners;
	unsigned n_live;
	uint64_t next_uid;
	struct kvx_xfer *done, *done_last; /* over, not told yet */
	bool pumping;
	struct kvx_xfers_watch *watches, *next_told;
	struct xfer_ring past, refused;
	struct kvx_xfers_stats stats;
};

/* xfer_end.c */
struct xfer_failure {
	int status;
	enum kvx_scope scope;
	int vendor_code;
};
/* First failure decides, later ones add nothing. */
void xfer_fail(struct kvx_xfer *xfer, const struct xfer_failure *failure,
	       const char *text) KVX_ON_LOOP;
void xfer_fail_status(struct kvx_xfer *xfer, int status, const char *text) KVX_ON_LOOP;
void xfer_fail_batch(struct kvx_xfer *xfer, const struct kvx_batch *batch) KVX_ON_LOOP;
/* Over? Then it goes to the done list. */
void xfer_settle(struct kvx_xfer *xfer) KVX_ON_LOOP;
void xfer_on_deadline(struct kvx_timer *timer);
void xfer_tell_open(struct kvx_xfer *xfer);

/* xfer_retry.c */
/* A batch that failed while its lane is torn down: keeps its ops for the next generation. false:
 * the transfer has to fail. */
bool xfer_retry_keep(struct kvx_xfer *xfer, const struct kvx_batch *batch);
void xfer_retry_back(struct kvx_xfer *xfer); /* a batch is back */
/* As kvx_plan_next(), of what was kept. */
unsigned xfer_retry_next(struct kvx_xfer *xfer, uint64_t max_span, uint64_t max_bytes,
			 struct kvx_span *spans, unsigned max);

/* xfer_wait.c */
/* The list that the plan got last waits. 0; what kvx_gate_create() says: the list is not closed. */
int xfer_waits_add(struct kvx_xfer *xfer, const struct kvx_wait *wait,
		   struct kvx_why *why) KVX_ON_LOOP;
void xfer_waits_drop(struct kvx_xfer *xfer) KVX_ON_LOOP;
/* Is it waiting for a flag in the region? */
bool xfer_waits_in(const struct kvx_xfer *xfer, const struct kvx_region *region);
enum kvx_wait_kind xfer_waits_for(const struct kvx_xfer *xfer); /* its first list that waits */

/* xfer_way.c */
/* Its target has keys of the lane's generation, or it is about to be queued. */
void xfer_set_outlets(struct kvx_xfer *xfer) KVX_ON_LOOP;

/* xfer_table.c */
int xfers_link(struct kvx_xfers *all, struct kvx_xfer *xfer); /* 0 or -ENOMEM */
void xfers_unlink(struct kvx_xfers *all, struct kvx_xfer *xfer);
void xfers_count_lists(struct kvx_xfer *xfer); /* the plan has taken or walked lists */
void xfers_remember(struct kvx_xfers *all, const struct kvx_xfer *xfer,
		    const struct kvx_xfer_end *end);
void xfers_count_end(struct kvx_xfers *all, const struct kvx_xfer *xfer,
		     const struct kvx_xfer_end *end);
void xfer_describe(const struct kvx_xfer *xfer, struct kvx_xfer_row *out_row);

#endif
