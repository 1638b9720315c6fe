/* Inside control: clients, their bookkeeping, and the seam between a client and the way in which
 * its frames come and go. */
#ifndef KVX_CONTROL_PRIV_H
#define KVX_CONTROL_PRIV_H

#include <sys/types.h>

#include "base/clock.h"
#include "base/sm.h"
#include "base/timer.h"
#include "control/arena.h"
#include "control/control.h"
#include "kvxfer.pb-c.h"
#include "proto/kvx_wire.h"
#include "worker/closer.h"

#define KVX_PROTOCOL_MIN       1u
#define KVX_PROTOCOL_MAX       1u
#define KVX_CLIENT_NAME_BYTES  65
#define KVX_HELLO_FRAME_BYTES  4096u /* largest frame before HELLO was accepted */
#define KVX_HELLO_TIMEOUT_NS   (10 * KVX_SEC)
#define KVX_RESOLVE_TIMEOUT_NS (8 * KVX_SEC) /* under the library's default of 10 s */
#define KVX_CLIENT_CALLS_MAX   1024u         /* unanswered messages and pings of one client */
#define KVX_CLIENT_FINDS_MAX   256u          /* names that other nodes have not answered yet */
/* A receiver that is gone is lost to its importers when its transfers have ended, which takes the
 * bounds of some fences: after this it is taken for lost whatever its daemon says. */
#define KVX_IMPORT_LOSS_NS (20 * KVX_SEC)
/* A receiver that is full and takes none of the messages that wait for it is given up then. */
#define KVX_POSTS_STUCK_NS     (20 * KVX_SEC)
#define KVX_CLIENTS_OVER_LIMIT 64u /* connections over the limit that are told so in words */
/* Descriptors of all clients of a user that wait to be closed; from then on it gets no new ones. */
#define KVX_USER_CLOSING_MAX (16 * KVX_WIRE_MAX_FDS)

struct kvx_client;
struct kvx_listener;

/* ---- front: how frames of one client come and go. Today a socket (conn.c); handlers know nothing
 * of it. */
struct kvx_front;
struct kvx_front_ops {
	/* Queues a frame and returns where its body goes; NULL: no memory. */
	uint8_t *(*reserve)(struct kvx_front *front, uint16_t type, uint32_t body_bytes);
	/* Queues a frame with a file descriptor, which is duplicated. */
	int (*put_fd)(struct kvx_front *front, uint16_t type, const void *body, uint32_t body_bytes,
		      int fd);
	size_t (*pending_bytes)(const struct kvx_front *front);
	/* The largest frame taken from now on. */
	void (*set_max)(struct kvx_front *front, uint32_t max_body_bytes);
	/* Takes no more frames from the client. */
	void (*stop)(struct kvx_front *front);
	/* Sends what is queued as far as that goes in bounded time, closes, and ends in
	 * kvx_client_destroy(). */
	void (*close)(struct kvx_front *front);
};
struct kvx_front {
	const struct kvx_front_ops *ops;
	struct kvx_closer_tab
	    *closing; /* its descriptors that wait to be closed; NULL: uncounted */
};

/* ---- one client */

/* Its messages that the receiver does not have yet (posts.c). */
struct kvx_post;
struct kvx_posts {
	struct kvx_post *first;  /* in order */
	struct kvx_post *unsent; /* from here on they wait; NULL: none */
	unsigned n_sent;         /* to another node, without an answer yet */
	unsigned room, room_max; /* how many may be */
	uint64_t stream;         /* for the other daemon; 0: none yet */
	bool refused;            /* one of the stream was, and with it all behind it */
	uint64_t progress_ns;    /* when the receiver took one, or the first one came */
	uint64_t pause_ns;       /* the next one */
	struct kvx_timer timer;  /* runs during a pause */
};

struct kvx_import {
	uint64_t id; /* of this client's imports */
	struct kvx_client *client;
	struct kvx_target *target; /* NULL while it is being resolved */
	struct kvx_target_watch watch;
	bool watching;
	struct kvx_resolve *resolve; /* being resolved; else NULL */
	struct kvx_find *find;       /* being looked for on another node; else NULL */
	uint32_t request_id;         /* of the import, or of its release */
	uint64_t check_region;
	bool releasing;
	struct kvx_posts posts;
	int loss_status; /* why it takes nothing more: the target is lost, or a posted message was
			    not delivered; 0: it does */
	char *loss_text; /* malloc'd; NULL: the status's own */
	struct kvx_timer loss_timer; /* runs while the loss waits for the target's */
	bool loss_due;               /* to be told once no transfer is left */
	bool told;                   /* IMPORT_LOST was sent */
	unsigned n_xfers;            /* unfinished transfers through it */
};

/* An unfinished transfer of a client. */
struct kvx_xrec {
	uint64_t number;
	struct kvx_xfer *xfer;
	struct kvx_import *import;
	struct kvx_xrec *next; /* of its bucket, or of the free ones */
};
struct kvx_xtable {
	struct kvx_xrec **buckets; /* NULL while nothing was ever put in */
	uint32_t n_buckets;        /* power of two */
	uint32_t n;
};
int kvx_xtable_put(struct kvx_xtable *table, struct kvx_xrec *rec); /* -ENOMEM */
struct kvx_xrec *kvx_xtable_find(const struct kvx_xtable *table, uint64_t number);
struct kvx_xrec *kvx_xtable_take(struct kvx_xtable *table, uint64_t number);
void kvx_xtable_fini(struct kvx_xtable *table);

/* A message or ping under way. */
struct kvx_client_call {
	struct kvx_client *client;
	uint32_t request_id;
	struct kvx_peer_call *peer_call;
	char who[80]; /* ping: whom; "" for a message */
	struct kvx_client_call *prev, *next;
};

enum kvx_client_state {
	KVX_CLIENT_NEW,     /* its first frame must be HELLO */
	KVX_CLIENT_READY,   /* requests are taken, events are sent */
	KVX_CLIENT_DOOMED,  /* to be ended at the next settle: nothing is taken or sent any more */
	KVX_CLIENT_FENCING, /* its transfers, regions and imports are being ended */
	KVX_CLIENT_CLOSED,  /* all fenced; the front is closing */
};

/* Owned by its front, which destroys it. Lives until everything in n_pending has come back. */
struct kvx_client {
	uint32_t magic;
	struct kvx_control *control;
	struct kvx_front *front;
	uint64_t id;
	struct kvx_sm sm;
	uint32_t tenant; /* index: 0 is the default one */
	uid_t uid;
	pid_t pid;
	bool over_limit; /* to be refused at HELLO */
	bool announced;  /* the log has it at level info: who only asks is not worth a line */
	char name[KVX_CLIENT_NAME_BYTES];
	char library[KVX_CLIENT_NAME_BYTES];
	uint64_t connected_ns;
	struct kvx_timer hello_timer;
	/* regions */
	struct kvx_region *regions; /* those that are not closing */
	uint32_t n_regions;         /* also opening and closing ones */
	uint64_t region_bytes;
	uint32_t n_dmabufs; /* of regions that are being registered */
	/* imports and transfers */
	struct kvx_idmap *imports; /* NULL before the first */
	struct kvx_xtable xfers;
	uint64_t last_number;
	uint64_t n_xfers_total;
	uint64_t bytes_total;
	/* messages and pings */
	struct kvx_client_call *calls;
	unsigned n_calls;      /* and messages among the posts that are answered */
	uint64_t posted_bytes; /* of messages that wait in its imports */
	unsigned n_finds;      /* that have no answer yet */
	/* Regions opening or closing and unfinished transfers: the client's memory and, for who
	 * waits for the fence, its life. Only kvx_client_unpend() takes from it. */
	unsigned n_pending;
	/* why it ends */
	int end_status;  /* 0: on its own wish or by loss: no FRAME_ERROR */
	int xfer_status; /* what its transfers end with */
	char end_text[KVX_WHY_BYTES];
	bool unsettled;
	struct kvx_client *prev_unsettled, *next_unsettled;
};

/* ---- the whole */

struct kvx_control_stats {
	uint64_t connects, refused_connects, disconnects, kicked, slow_readers;
	uint64_t frames, bad_frames, stale_requests;
	uint64_t events, arrivals_undelivered, messages;
	uint64_t refused_xfers;
};

struct kvx_conn;

struct kvx_control {
	uint32_t magic;
	struct kvx_control_conf conf;
	struct kvx_config_tenant tenants[KVX_MAX_TENANTS];
	unsigned n_tenants; /* at least the default one */
	struct kvx_listener *listener;
	int pidfd;                 /* -1: this kernel has none */
	struct kvx_closer *closer; /* of whatever came from a client: the loop closes none of it */
	struct kvx_arena *arena;
	struct kvx_idmap *clients;
	unsigned n_clients; /* with an id: connections included that have not said HELLO */
	unsigned n_over_limit;
	unsigned n_fronts; /* fronts open or closing */
	bool draining;
	bool closing;
	uint64_t start_ns;
	struct kvx_client *unsettled;
	struct kvx_conn *dirty;  /* connections with frames to send */
	uint64_t n_post_streams; /* ever; numbers of those that other daemons know */
	struct kvx_xrec *free_recs;
	struct kvx_xrec_slab *slabs;
	struct kvx_control_stats stats;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* control.c */
struct kvx_xrec *kvx_control_rec_get(struct kvx_control *control) KVX_ON_LOOP;
void kvx_control_rec_put(struct kvx_control *control, struct kvx_xrec *rec) KVX_ON_LOOP;
struct kvx_client *kvx_control_client(const struct kvx_control *control, uint64_t id) KVX_ON_LOOP;
/* A front is gone for good. */
void kvx_control_front_gone(struct kvx_control *control) KVX_ON_LOOP;

/* listener.c */
int kvx_listener_open(struct kvx_control *control, struct kvx_listener **out_listener,
		      struct kvx_why *why) KVX_ON_LOOP;
/* Stops listening at once; removes the socket that it made. */
void kvx_listener_close(struct kvx_listener *listener) KVX_ON_LOOP;
/* Where clients of a tenant connect, for people. */
const char *kvx_listener_path(const struct kvx_listener *listener, uint32_t tenant);

/* conn.c. fd: taken, also on failure. */
struct kvx_client_origin;
int kvx_conn_open(struct kvx_control *control, int fd,
		  const struct kvx_client_origin *origin) KVX_ON_LOOP;
void kvx_conn_flush_all(struct kvx_control *control) KVX_ON_LOOP;

/* client.c: for fronts */
struct kvx_client_origin {
	uint32_t tenant; /* index: of the socket that it came by */
	uid_t uid;
	pid_t pid;
};
int kvx_client_create(struct kvx_control *control, struct kvx_front *front,
		      const struct kvx_client_origin *origin,
		      struct kvx_client **out_client) KVX_ON_LOOP;
void kvx_client_destroy(struct kvx_client *client) KVX_ON_LOOP;
bool kvx_client_takes_frames(const struct kvx_client *client) KVX_ON_LOOP;
/* One frame. The caller disposes of the message. */
void kvx_client_frame(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
/* The other end is gone. */
void kvx_client_lost(struct kvx_client *client, const char *text) KVX_ON_LOOP;
/* The client has broken the rules (or the daemon stops): FRAME_ERROR after the fence, then the
 * end. Nothing happens before kvx_control_settle(), so that it may be called from anywhere. */
void kvx_client_fail(struct kvx_client *client, int status, const char *fmt, ...) KVX_ON_LOOP
    __attribute__((format(printf, 3, 4)));

/* client.c: for control and handlers */
void kvx_client_settle(struct kvx_client *client) KVX_ON_LOOP;
static inline void kvx_client_pend(struct kvx_client *client)
{
	client->n_pending++;
}
void kvx_client_unpend(struct kvx_client *client) KVX_ON_LOOP;

/* answer.c: the only way back to a client. Dropped when it is ending. */
void kvx_client_reply(struct kvx_client *client, const Kvxp__Reply *reply) KVX_ON_LOOP;
void kvx_client_reply_error(struct kvx_client *client, uint32_t request_id, int status,
			    const char *text) KVX_ON_LOOP;
void kvx_client_event(struct kvx_client *client, const Kvxp__Event *event) KVX_ON_LOOP;
void kvx_client_send_error(struct kvx_client *client, int status, const char *text) KVX_ON_LOOP;
/* Does it take no messages now? They have half of what it may leave unread: the other half is for
 * the ends of transfers, of which too many end the client. */
bool kvx_client_is_full(const struct kvx_client *client) KVX_ON_LOOP;

/* Handlers, one file per family. body_bytes has been checked against the limits. */
typedef void (*kvx_frame_handler)(struct kvx_client *client, struct kvx_msg *msg);

void kvx_handle_hello(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_region_register(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_region_unregister(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_region_export(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_import(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_import_find(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_import_release(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_xfer_submit(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_xfer_append(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_xfer_seal(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_xfer_cancel(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_message_send(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_message_post(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_query(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;
void kvx_handle_goodbye(struct kvx_client *client, struct kvx_msg *msg) KVX_ON_LOOP;

/* handle_region.c: for the end of a client */
void kvx_client_close_regions(struct kvx_client *client, int status, const char *text) KVX_ON_LOOP;
struct kvx_region *kvx_client_region(const struct kvx_client *client, uint64_t id) KVX_ON_LOOP;
/* handle_import.c */
struct kvx_import *kvx_client_import(const struct kvx_client *client, uint64_t id) KVX_ON_LOOP;
void kvx_client_release_imports(struct kvx_client *client) KVX_ON_LOOP;
void kvx_import_xfer_ended(struct kvx_import *import) KVX_ON_LOOP;
/* An import that is still to get its target; -EDQUOT, -ENOMEM. */
int kvx_import_create(struct kvx_client *client, uint32_t request_id, uint64_t check_region,
		      struct kvx_import **out_import, struct kvx_why *why) KVX_ON_LOOP;
/* It has one, whose reference it takes over: answers the request, also when it has to refuse. */
void kvx_import_resolved(struct kvx_import *import, struct kvx_target *target, const void *note,
			 uint32_t note_bytes) KVX_ON_LOOP;
/* It will have none: answers the request and frees it. */
void kvx_import_refuse(struct kvx_import *import, int status, const char *text) KVX_ON_LOOP;
/* A message posted through it was not delivered: it takes nothing more, its transfers end, then
 * its client is told (of a receiver that is gone when the target is lost, or has not been for
 * KVX_IMPORT_LOSS_NS). A second call adds nothing. */
void kvx_import_fail(struct kvx_import *import, int status, const char *text) KVX_ON_LOOP;
/* dmabufs.c: is there a rail that reaches GPU memory by them? */
bool kvx_control_takes_dmabufs(const struct kvx_control *control) KVX_ON_LOOP;
struct kvx_gpu_mem;
/* The fds of bases are indices into the frame's. The region may take those that are left: none
 * where nobody has a use for them, or while the client has too many with regions that are being
 * registered. */
void kvx_dmabufs_choose(const struct kvx_client *client, struct kvx_gpu_mem *gpu) KVX_ON_LOOP;
uint32_t kvx_dmabufs_count(const struct kvx_gpu_mem *gpu); /* NULL: 0 */
/* What the region has taken, and nobody has closed: somewhere else, as that may block. */
void kvx_client_close_fds(struct kvx_client *client, struct kvx_mem *mem) KVX_ON_LOOP;
/* The frame keeps them all. */
void kvx_dmabufs_forget(struct kvx_gpu_mem *gpu);
/* To the log: that some are missing, and why, where somebody has a use for them. */
void kvx_dmabufs_say_missing(const struct kvx_client *client, const Kvxp__RegionRegister *req,
			     const struct kvx_msg *msg) KVX_ON_LOOP;
/* handle_xfer.c */
void kvx_client_on_terminal(struct kvx_client *client, const struct kvx_xfer_end *end) KVX_ON_LOOP;
/* Cancels the client's transfers through an import. */
void kvx_client_cancel_import(struct kvx_client *client, struct kvx_import *import, int status,
			      const char *text) KVX_ON_LOOP;
/* handle_message.c */
int kvx_client_deliver_message(struct kvx_client *owner, const struct kvx_region *region,
			       const void *data, uint32_t len) KVX_ON_LOOP;
int kvx_message_local(struct kvx_control *control, const struct kvx_target *target,
		      const ProtobufCBinaryData *data, struct kvx_why *why) KVX_ON_LOOP;
void kvx_client_abandon_calls(struct kvx_client *client) KVX_ON_LOOP;
int kvx_client_ping(struct kvx_client *client, uint32_t request_id, const char *who,
		    struct kvx_why *why) KVX_ON_LOOP;

/* posts.c */
void kvx_posts_init(struct kvx_posts *posts);
/* Takes a message, which goes behind all that wait. request_id NULL: it is posted, and the import
 * fails when it cannot be delivered; else it is answered. An error: it was not taken. */
int kvx_posts_add(struct kvx_import *import, const ProtobufCBinaryData *data,
		  const uint32_t *request_id, struct kvx_why *why) KVX_ON_LOOP;
/* Those that wait are not delivered, those under way to another node may be. */
void kvx_posts_drop(struct kvx_import *import, int status, const char *text) KVX_ON_LOOP;

/* decode.c: unpacks a body of the given type into the arena; fails the client and returns NULL when
 * it is not one. Valid until the next frame. */
void *kvx_client_decode(struct kvx_client *client, const ProtobufCMessageDescriptor *type,
			const struct kvx_msg *msg) KVX_ON_LOOP;

#endif
