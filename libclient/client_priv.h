/* Inside libkvxfer-client: one client, what belongs to it, and what its source files offer each
 * other. Everything here is of the one thread that uses the client. */
#ifndef KVX_CL_CLIENT_PRIV_H
#define KVX_CL_CLIENT_PRIV_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>

/* The declarations of the public header are the library's exports; all else is hidden. */
#pragma GCC visibility push(default)
#include "kvxfer/client.h"
#pragma GCC visibility pop

#include "kvxfer.pb-c.h"
#include "proto/kvx_err.h"
#include "proto/kvx_wire.h"

struct kvx_gpu;

#define KVX_CL_PROTO_MIN 1u /* oldest and newest protocol version this library speaks */
#define KVX_CL_PROTO_MAX 1u

#define KVX_CL_DEFAULT_SOCKET     "/run/kvxfer/kvxferd.sock"
#define KVX_CL_DEFAULT_TIMEOUT_MS 10000
#define KVX_CL_MAX_TIMEOUT_MS     3600000
#define KVX_CL_NAME_BYTES         65 /* names of clients and regions, with the NUL */
#define KVX_CL_PLANE_NAME_MAX     32
#define KVX_CL_PUBLISH_MAX        128
#define KVX_CL_TRANSPORT_BYTES    32
#define KVX_CL_ERROR_BYTES        512
#define KVX_CL_HELLO_MAX_BYTES    4096u               /* largest frame taken before HELLO_REPLY */
#define KVX_CL_FRAME_MAX_BYTES    (64u * 1024 * 1024) /* largest frame taken after it: a query */
#define KVX_CL_KEPT_MAX_BYTES     (64u * 1024 * 1024) /* events kept while a set-up call waits */
#define KVX_CL_OUT_MAX_BYTES      (64u * 1024 * 1024) /* frames kept while the daemon does not read */
#define KVX_CL_ARENA_BYTES        16384u
/* Between the end of the stream and the loss of the daemon, when there is no pidfd to wait for. */
#define KVX_CL_LOSS_GRACE_MS 2000
#define KVX_CL_MSEC          UINT64_C(1000000)

/* UP -> EOF: the stream ended without a word. The daemon may be dying; its DMA is over when its
 *   pidfd is readable. Then -> LOST.
 * UP -> QUIT: the library said GOODBYE, because it is closed or because of what the daemon sent,
 *   and waits for the end of the stream, which comes after the fence. Then -> LOST or EOF.
 * UP -> LOST: FRAME_ERROR: the daemon has fenced before it sent it.
 * LOST -> UP: reconnect. */
enum kvx_cl_state { KVX_CL_UP, KVX_CL_EOF, KVX_CL_QUIT, KVX_CL_LOST };

/* ---- outstanding transfers (xfer_table.c): open addressing, grown only when half full */
struct kvx_cl_xfer {
	uint64_t id; /* 0: free slot */
	uint64_t tag;
	uint8_t op;
	bool open; /* streaming and not sealed */
};
struct kvx_cl_table {
	struct kvx_cl_xfer *slots;
	uint32_t n_slots; /* 0, or a power of two */
	uint32_t n;
};
/* Makes sure that one more fits. 0 or -ENOMEM. */
int kvx_cl_table_reserve(struct kvx_cl_table *table);
/* After a reserve; id != 0 and not in the table. */
void kvx_cl_table_add(struct kvx_cl_table *table, const struct kvx_cl_xfer *xfer);
struct kvx_cl_xfer *kvx_cl_table_find(const struct kvx_cl_table *table, uint64_t id);
/* true: *out_xfer was the entry, which is gone. */
bool kvx_cl_table_take(struct kvx_cl_table *table, uint64_t id, struct kvx_cl_xfer *out_xfer);
/* Moves the entries to slots[0..n) in the order of their ids; only clear may follow. */
void kvx_cl_table_line_up(struct kvx_cl_table *table);
void kvx_cl_table_clear(struct kvx_cl_table *table);
void kvx_cl_table_fini(struct kvx_cl_table *table);

/* ---- bodies of the data calls (encode.c). Each returns the length; out NULL: only that. */
struct kvx_cl_append {
	uint64_t xfer;
	const struct kvxfer_blocks *blocks;
	const struct kvxfer_ops *ops;
	uint64_t same_len;              /* all ops move this; 0: they differ, ops->lens has them */
	const struct kvxfer_wait *wait; /* NULL: none */
};
size_t kvx_cl_encode_submit(uint8_t *out, const struct kvxfer_transfer *transfer,
			    const struct kvx_cl_append *list);
size_t kvx_cl_encode_append(uint8_t *out, const struct kvx_cl_append *list);
size_t kvx_cl_encode_seal(uint8_t *out, uint64_t xfer, const void *payload, size_t payload_bytes);
size_t kvx_cl_encode_cancel(uint8_t *out, uint64_t xfer);

/* ---- layouts (layout.c) */
struct kvx_cl_planes {
	struct kvxfer_plane *planes; /* NULL: none; names lie behind the planes */
	uint32_t n_planes;
};
/* Both copy what they are given into one allocation. 0 or -ENOMEM. */
int kvx_cl_planes_copy(const struct kvxfer_layout *layout, struct kvx_cl_planes *out_planes);
int kvx_cl_planes_decode(const Kvxp__Layout *layout, struct kvx_cl_planes *out_planes);
bool kvx_cl_planes_equal(const struct kvx_cl_planes *a, const struct kvx_cl_planes *b);
void kvx_cl_planes_fini(struct kvx_cl_planes *planes);
/* For a message; free with free(3). NULL: -ENOMEM. */
Kvxp__Layout *kvx_cl_planes_encode(const struct kvx_cl_planes *planes);

/* ---- set-up calls (call.c) */
struct kvx_cl_request {
	uint32_t id;
	uint16_t type;      /* frame type of the request */
	bool unsent;        /* could not be queued: no reply will come */
	bool abandoned;     /* nobody waits any more: its reply is undone or kept, see call.c */
	bool told;          /* a find: nobody waits for its reply, which becomes an event */
	Kvxp__Reply *reply; /* NULL: not yet */
	struct kvx_cl_request *prev, *next;
};

/* A frame that becomes an event: of FRAME_EVENT, or the reply to a find. */
struct kvx_cl_kept {
	struct kvx_cl_kept *prev, *next;
	uint16_t type;
	uint32_t len_bytes;
	uint8_t body[];
};

struct kvx_cl_sink {
	kvxfer_event_cb cb;
	void *arg;
	int n;
};

struct kvxfer_region {
	struct kvxfer_client *client;
	uint64_t id; /* 0: none with this connection */
	int fd;
	uint64_t offset, len_bytes;
	void *map;              /* NULL: not mapped by the library */
	struct kvx_cl_gpu *gpu; /* NULL: host memory */
	uint32_t access;
	char name[KVX_CL_NAME_BYTES];
	char publish[KVX_CL_PUBLISH_MAX + 1]; /* "": not */
	void *note;                           /* NULL: none */
	size_t note_bytes;
	struct kvx_cl_planes layout;
	uint8_t *descriptor; /* NULL: not asked for yet */
	size_t descriptor_bytes;
	struct kvx_cl_request *closing; /* an unregistration without an answer yet */
	struct kvxfer_region *prev, *next;
};

struct kvxfer_import {
	struct kvxfer_client *client;
	uint64_t id;      /* 0: lost, or still to be found */
	uint32_t find_id; /* of the request that looks, or looked, for it; 0: it has a descriptor */
	bool finding;     /* it is not known yet whether somebody has published it */
	bool lost;        /* IMPORT_LOST was delivered */
	uint64_t len_bytes;
	struct kvx_cl_planes layout;
	char transport[KVX_CL_TRANSPORT_BYTES];
	size_t descriptor_bytes;
	uint8_t descriptor[KVXFER_DESCRIPTOR_MAX];
	struct kvx_cl_request *closing;
	uint32_t lost_status; /* not OK: an IMPORT_LOST is to be delivered */
	char lost_text[KVX_CL_ERROR_BYTES];
	struct kvxfer_import *prev, *next;
};

struct kvxfer_client {
	uint32_t *fork_cookie; /* on a page that fork() wipes; NULL: this kernel cannot */
	pid_t pid;             /* whose client it is, where there is no cookie */
	bool in_callback;
	/* connection */
	enum kvx_cl_state state;
	int sock;  /* -1: none */
	int pidfd; /* of the daemon; -1: not given */
	int timer; /* wakes at loss_at_ns or out_retry_ns; -1: none */
	int epoll; /* what the user polls: sock, wake, and in EOF the pidfd or the timer */
	int wake;  /* eventfd: readable while there is something that no socket tells */
	bool woken;
	bool out_armed;        /* EPOLLOUT is asked for */
	uint64_t out_retry_ns; /* the socket is writable, and yet takes no frame: when it is tried
				  again; 0: it is not so */
	bool out_dead;         /* the socket takes nothing any more; its end is about to be read */
	struct kvx_reader *reader;
	struct kvx_writer *writer;
	uint32_t max_frame_bytes;
	uint32_t max_region_fds; /* that the daemon takes: dma-bufs of one region */
	struct kvxfer_limits limits;
	uint32_t max_waits; /* 0: the daemon knows none */
	/* options */
	struct sockaddr_un address;
	socklen_t address_bytes;
	char socket_path[sizeof(((struct sockaddr_un *)0)->sun_path) + 1]; /* for people */
	char name[KVX_CL_NAME_BYTES];
	int timeout_ms;
	/* what was made of it */
	struct kvxfer_region *regions;
	struct kvxfer_import *imports;
	struct kvx_cl_table xfers;
	uint64_t last_xfer;
	uint32_t last_request;
	struct kvx_cl_request *requests;
	/* events */
	struct kvx_cl_sink *sink; /* of the dispatch that runs; NULL: none, events are kept */
	struct kvx_cl_kept *kept;
	size_t kept_bytes;
	unsigned n_imports_lost; /* IMPORT_LOST events of reconnect, to be delivered */
	bool loss_unread;        /* LOST, and not all of it delivered yet */
	uint32_t loss_told;      /* its terminal events delivered so far */
	uint64_t loss_at_ns;     /* EOF: when the daemon counts as gone without a proof; 0: never */
	bool said_goodbye;       /* on the user's wish: the end of the stream is the fence */
	int lost_status;         /* why the connection ended: told by FRAME_ERROR, or found */
	char lost_text[KVX_CL_ERROR_BYTES];
	char error[KVX_CL_ERROR_BYTES];
	struct kvx_cl_arena {
		size_t used;
		uint8_t bytes[KVX_CL_ARENA_BYTES] __attribute__((aligned(16)));
	} arena;
};

/* ---- client.c */
/* Writes the reason of a failure and returns neg_errno. */
int kvx_cl_fail(struct kvxfer_client *client, int neg_errno, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Is this a child that inherited the client by fork()? */
bool kvx_cl_forked(const struct kvxfer_client *client);
/* 0, or why a data call or a set-up call cannot be made now; the reason is written. No client:
 * -EINVAL. */
int kvx_cl_enter_data(struct kvxfer_client *client);
int kvx_cl_enter_setup(struct kvxfer_client *client);
uint64_t kvx_cl_now_ns(void);
uint64_t kvx_cl_deadline_ns(const struct kvxfer_client *client);
/* Copies a versioned struct: what the caller's is shorter is 0 here. -EINVAL. */
int kvx_cl_copy_options(void *out, size_t out_bytes, const void *options, struct kvx_why *why);
/* Makes out a name of at most 64 bytes; NULL is "". -EINVAL too long. */
int kvx_cl_copy_name(char out[KVX_CL_NAME_BYTES], const char *name);

/* ---- connect.c */
/* Connects and agrees with the daemon; the client is UP. On failure nothing is left of it and the
 * reason is written. */
int kvx_cl_connect(struct kvxfer_client *client, uint64_t deadline_ns);
/* Gives up a connection that could not be filled with the regions; LOST as before. */
void kvx_cl_undo_connect(struct kvxfer_client *client);
int kvx_cl_set_address(struct kvxfer_client *client, const char *path);

/* ---- conn.c */
/* Reads once and handles all whole frames. > 0: bytes; -EAGAIN: nothing there; 0: the stream ended,
 * or was given up: see state. */
int kvx_cl_read(struct kvxfer_client *client);
/* Handles the frames that are there without reading. */
void kvx_cl_take_frames(struct kvxfer_client *client);
/* As kvx_writer_flush(); what is left goes when the socket takes it. */
int kvx_cl_flush(struct kvxfer_client *client);
/* Blocks until there is something to read (or to be fenced), sending what waits, or until the
 * deadline (UINT64_MAX: none). 0 or -ETIMEDOUT. */
int kvx_cl_poll(struct kvxfer_client *client, uint64_t deadline_ns);
/* poll(2) of one fd (-1: only the time) to a deadline: revents, 0 when the time is over. */
int kvx_cl_poll_fd(int fd, short events, uint64_t deadline_ns);
/* In EOF and QUIT: finds out whether the daemon is gone by now. */
void kvx_cl_check_loss(struct kvxfer_client *client);
/* Gives the connection up because of what the daemon sent. */
void kvx_cl_quit(struct kvxfer_client *client, int status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Blocks until LOST. 0 or -ETIMEDOUT. */
int kvx_cl_wait_lost(struct kvxfer_client *client, uint64_t deadline_ns);
void kvx_cl_close_conn(struct kvxfer_client *client);
/* The polled fd becomes readable until the next dispatch. */
void kvx_cl_wake(struct kvxfer_client *client);
int kvx_cl_watch(struct kvxfer_client *client, int op, int fd, uint32_t events);
/* Room for one frame of a data call in the sending queue. -EMSGSIZE, -EAGAIN, -ENOMEM; the reason
 * is written. */
int kvx_cl_reserve(struct kvxfer_client *client, uint16_t type, size_t bytes, uint8_t **out_body);
/* Queues a protobuf message as a frame; fd -1: none. */
int kvx_cl_put(struct kvxfer_client *client, uint16_t type, const ProtobufCMessage *message,
	       int fd);
int kvx_cl_put_fds(struct kvxfer_client *client, uint16_t type, const ProtobufCMessage *message,
		   const int *fds, unsigned n_fds);

/* ---- event.c */
/* One FRAME_EVENT, or the REPLY to a find: delivered to the running dispatch, or kept. */
void kvx_cl_on_event(struct kvxfer_client *client, uint16_t type, const uint8_t *body,
		     uint32_t len_bytes);
void kvx_cl_drop_kept(struct kvxfer_client *client);

/* ---- call.c */
/* Makes a request and its id. NULL: -ENOMEM. */
struct kvx_cl_request *kvx_cl_request_create(struct kvxfer_client *client, uint16_t type);
/* Sends the request and blocks for its reply. 0: request->reply is there and OK; else -errno, with
 * the reason written. */
int kvx_cl_request_send(struct kvxfer_client *client, struct kvx_cl_request *request,
			const ProtobufCMessage *message, int fd);
int kvx_cl_request_send_fds(struct kvxfer_client *client, struct kvx_cl_request *request,
			    const ProtobufCMessage *message, const int *fds, unsigned n_fds);
/* Only the waiting. */
int kvx_cl_request_wait(struct kvxfer_client *client, struct kvx_cl_request *request,
			uint64_t deadline_ns);
/* The caller is through with it. Without a reply it stays as abandoned. */
void kvx_cl_request_end(struct kvxfer_client *client, struct kvx_cl_request *request);
void kvx_cl_on_reply(struct kvxfer_client *client, const uint8_t *body, uint32_t len_bytes);
/* No reply will come any more. */
void kvx_cl_drop_requests(struct kvxfer_client *client);
/* Unregisters a region or releases an import. 0: gone; -ECONNRESET: gone with the daemon; else it
 * stays. *closing keeps the request when no answer came in time. */
int kvx_cl_release(struct kvxfer_client *client, uint16_t type, uint64_t id,
		   struct kvx_cl_request **closing);

/* ---- memfd.c */
struct kvx_cl_memfd {
	int fd;
	uint64_t len_bytes; /* rounded up */
	void *map;
};
int kvx_cl_memfd_create(uint64_t len_bytes, bool huge, const char *name,
			struct kvx_cl_memfd *out_memfd, struct kvx_why *why);
/* Checks a user's memfd and its range, adds the seals, makes the pages exist, duplicates it. */
int kvx_cl_memfd_adopt(int fd, uint64_t offset, uint64_t len_bytes, int *out_fd,
		       struct kvx_why *why);

/* ---- gpu.c, gpu_witness.c: GPU memory */
/* What a region of GPU memory is made of, as the runtime exported it. 0, or the reason is written.
 */
int kvx_cl_gpu_create(struct kvxfer_client *client, const struct kvxfer_gpu_segment *segments,
		      uint32_t n_segments, struct kvx_cl_gpu **out_gpu, uint64_t *out_bytes);
void kvx_cl_gpu_destroy(struct kvx_cl_gpu *gpu); /* NULL is fine */
/* The runtime that the events of this client are of. 0, or the reason is written. */
int kvx_cl_gpu_runtime(struct kvxfer_client *client, struct kvx_gpu **out_gpu);
/* As kvx_cl_region_announce(). in_use: the memory must not be written, not even for a moment. */
int kvx_cl_gpu_announce(struct kvxfer_region *region, bool in_use);

/* ---- wait.c */
/* Copies what the caller gave, as far as it is long, and checks its form. *list_wait is NULL when
 * there is nothing to wait for. 0, or the reason is written. */
int kvx_cl_wait_take(struct kvxfer_client *client, const struct kvxfer_wait *wait,
		     struct kvxfer_wait *out_copy, const struct kvxfer_wait **list_wait);

/* ---- region.c, import.c: for reconnect and close */
/* Makes it known to the daemon; kind and fds are the memory's. */
struct kvx_cl_memory {
	uint32_t kind; /* 1 host, 3 hip, 4 cuda */
	Kvxp__GpuMemory *gpu;
	const int *fds;
	unsigned n_fds;
};
int kvx_cl_region_send(struct kvxfer_region *region, const struct kvx_cl_memory *memory);
int kvx_cl_region_announce(struct kvxfer_region *region);
void kvx_cl_region_destroy(struct kvxfer_region *region, bool fenced);
int kvx_cl_import_renew(struct kvxfer_import *import_);
void kvx_cl_import_destroy(struct kvxfer_import *import_);
/* What a reply tells of it; 0 or -ENOMEM, the reason is written. */
int kvx_cl_import_fill(struct kvxfer_import *import_, const Kvxp__Reply *reply);
/* An IMPORT_LOST is to be delivered by the next dispatch. */
void kvx_cl_import_lose(struct kvxfer_import *import_, uint32_t status, const char *text);
int kvx_cl_import_options(struct kvxfer_client *client, const struct kvxfer_import_options *options,
			  uint64_t *out_check_region);

/* ---- find.c */
/* The reply to a find has come: the import is up, or will never be. Its event is still to be told.
 */
void kvx_cl_find_on_reply(struct kvxfer_client *client, const Kvxp__Reply *reply);
/* Its event; false: the import was closed. Borrows from the reply. */
bool kvx_cl_find_event(const struct kvxfer_client *client, const Kvxp__Reply *reply,
		       struct kvxfer_event *out_event);
/* It is being closed: a reply that is still to come is nobody's. */
void kvx_cl_find_abandon(struct kvxfer_import *import_);
/* Can regions be published under it? */
bool kvx_cl_name_is_plain(const char *name);

#endif
