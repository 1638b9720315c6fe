/* What the parts of the peer channel share. Everything here belongs to the loop thread.
 *
 *   peer_table.c    the table of peers: opening, closing
 *   peer.c          one peer's life: its step and timer, loss
 *   peer_addr.c     "host:port" texts and socket addresses
 *   peer_conn.c ... connections: see peer_conn.h
 *   peer_lanes.c    all lanes of a peer, one or two for each tenant, and news of their rails
 *   peer_lane.c ... one lane: see peer_lane.h
 *   peer_remote.c ... regions of the peer that we use: see peer_target.h
 *   peer_answer.c   regions of ours: what a peer that resolves one is answered
 *   peer_export.c   those that it has resolved, and withdrawal
 *   peer_inbound.c  its transfers to and from them
 *   peer_message.c  its messages to their owners
 *   peer_calls.c    messages and pings of ours
 *   peer_find.c     regions by name, asked for
 *   peer_publish.c  and answered
 *   peer_rows.c     all of it, for people
 *
 * A peer acts in peer_step(), which runs from its timer only; everything else notes what happened
 * and wakes it. Only there is a peer freed, so that callbacks may call anything. */
#ifndef KVX_PEER_PRIV_H
#define KVX_PEER_PRIV_H

#include <netdb.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
/* Without memory HASH_ADD adds nothing and leaves hh.tbl NULL. */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>
#include <uv.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/timer.h"
#include "peer.pb-c.h"
#include "proto/kvx_err.h"
#include "proto/kvx_wire.h"
#include "xfer/peer.h"
#include "xfer/peer_conn.h"
#include "xfer/peer_lane.h"
#include "xfer/peer_target.h"

#define PEER_VERSION_MIN      1u
#define PEER_VERSION_MAX      1u
#define PEER_HELLO_MAX_BYTES  4096u          /* longest frame before hello */
#define PEER_FRAME_MAX_BYTES  (1u << 20)     /* longest frame after it, unless configured */
#define PEER_UNPACK_MAX_BYTES (8u << 20)     /* memory that one decoded frame may take */
#define PEER_WRITE_MAX_BYTES  (64u << 20)    /* unread frames: then the peer is lost */
#define PEER_HELLO_NS         (5 * KVX_SEC)  /* connect and hello; all of a probe */
#define PEER_HALF_OPEN_MAX    64u            /* accepted, before hello; and dialing */
#define PEER_KEEP_NS          (60 * KVX_SEC) /* unused targets stay warm, lost peers wanted */
#define PEER_TARGETS_IDLE_MAX 16384u
#define PEER_INBOUND_MAX      262144u
#define PEER_PLANES_MAX       4096u
#define PEER_HEARTBEATS       16u  /* own heartbeats whose answer still counts */
#define PEER_STREAMS          512u /* of posted messages, the newest that were refused */

#define PEER_MAGIC 0x70656572u

/* A node's daemon. Owned by the table; freed in peer_step() when nobody needs it. */
struct kvx_peer {
	uint32_t magic;
	struct kvx_peers *peers;
	uint8_t id[KVX_NODE_ID_BYTES];
	char name[2 * KVX_NODE_ID_BYTES + 1];
	char addr[KVX_PEER_ADDR_BYTES]; /* where to dial; "": unknown */
	uint64_t epoch;                 /* of the newest hello; 0: none yet */
	const struct kvx_transport_ops *common[KVX_NODE_TRANSPORTS]; /* best first, as the side
									with the lower node id
									says */
	unsigned n_common;
	bool any_memory;        /* it knows bounce lanes, and keys that are empty */
	uint64_t lease_ns;      /* agreed bound on silence */
	struct peer_conn *conn; /* after hello, or NULL */
	struct peer_conn *dial; /* before hello, or NULL */
	/* heartbeats */
	uint64_t up_ns, last_rx_ns, rtt_ns;
	uint64_t last_beat_ns; /* newest receipt of a heartbeat or hello: their lease counts from
				  before it */
	uint64_t beat_due_ns, beat_seq, beat_echoed, beat_seen;
	uint64_t beat_sent_ns[PEER_HEARTBEATS];
	uint64_t lease_base_ns; /* sending of the newest own heartbeat that was answered; 0: none */
	/* dialing */
	unsigned n_failed;
	uint64_t redial_ns;
	uint64_t interest_ns; /* until then it is worth dialing */
	/* One for each tenant of ours, then the bounce lanes in the same order. */
	struct peer_lane *lanes[2 * KVX_MAX_TENANTS];
	unsigned n_lanes;
	/* their regions */
	struct peer_target *targets; /* hash of those that are not lost */
	struct kvx_target *fresh;    /* TARGET_NEW */
	struct kvx_target *asked;    /* TARGET_ASKED, oldest first */
	struct kvx_target *leaving;  /* TARGET_LOST, something is still to be done */
	struct kvx_target *gone;     /* TARGET_LOST, only references are left */
	unsigned n_fencing;
	uint64_t sweep_ns;
	/* our regions */
	struct peer_export *exports;  /* hash */
	struct peer_inbound *inbound; /* hash */
	struct peer_inbound *dying;   /* of a lost connection: told after the inbound fence */
	unsigned n_withdrawing;       /* exports that wait for PEER_WITHDRAWN */
	uint64_t *refused_streams;    /* ring of PEER_STREAMS; NULL: none yet */
	unsigned n_refused_streams;   /* ever */
	bool fence_owed;        /* the peer was lost, and inbound of some lane not yet stopped */
	struct kvx_find *finds; /* that it is asked, in this order; peer_find.c */
	bool stepping, woken;
	struct kvx_timer timer;
	char last_error[KVX_WHY_BYTES];
	uint64_t n_stale, n_ignored, n_connects, n_lost;
	UT_hash_handle hh;
};

struct kvx_peers {
	struct kvx_peers_conf conf;
	char version[32];
	char address[KVX_PEER_ADDR_BYTES]; /* advertised */
	const char *tenants[KVX_MAX_TENANTS];
	unsigned n_tenants;
	struct kvx_peer *table; /* hash by node id */
	struct peer_conn *conns;
	struct peer_conn *dead;   /* closed, to be freed by the kick */
	struct peer_tls_ctx *tls; /* NULL: nodes are not authenticated */
	unsigned n_accepted_half_open, n_dialing;
	unsigned n_handles; /* libuv handles and requests that are not closed */
	struct peer_sock *listener;
	struct kvx_timer accept_timer; /* runs while accepting is paused (no fds) */
	struct peer_shared *shared;    /* hash: regions of ours that peers have resolved */
	struct kvx_peer_call *calls;   /* hash */
	struct kvx_find *finds;
	struct find_walk *find_walks; /* under way; peer_find.c */
	struct kvx_xfers_watch watch; /* while n_fencing > 0 */
	unsigned n_fencing;
	uint64_t next_request, next_generation;
	ProtobufCAllocator allocator;
	size_t unpack_left;
	uv_async_t kick;
	uv_idle_t flush; /* runs while frames wait */
	bool kick_open, installed, closing;
	bool steps_owed; /* a peer's timer could not be started */
	uint64_t random;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* peer_table.c */
void peers_kick(struct kvx_peers *peers);
/* Other addresses than loopback may be used. */
static inline bool peers_may_leave_node(const struct kvx_peers *peers)
{
	return peers->tls != NULL || peers->conf.insecure;
}

/* peer.c */
struct kvx_peer *peer_find(const struct kvx_peers *peers, const uint8_t id[KVX_NODE_ID_BYTES]);
/* Finds or makes it. -EDQUOT, -ENOMEM. */
int peer_get(struct kvx_peers *peers, const uint8_t id[KVX_NODE_ID_BYTES], const char *addr,
	     struct kvx_peer **out_peer, struct kvx_why *why) KVX_ON_LOOP;
void peer_wake(struct kvx_peer *peer) KVX_ON_LOOP; /* peer_step() soon */
/* All that is due; again while that wakes it. Frees the peer when nobody needs it. */
void peer_step(struct kvx_peer *peer) KVX_ON_LOOP;
void peer_note_error(struct kvx_peer *peer, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* The connection is gone: everything that depended on it ends. remote_fenced: the other side has
 * said that nothing lands there any more. */
void peer_lose(struct kvx_peer *peer, int status, const char *text, bool remote_fenced) KVX_ON_LOOP;
bool peer_is_lower(const struct kvx_peer *peer); /* our node id is lower than theirs */
uint64_t peer_now(const struct kvx_peers *peers);
uint64_t peer_backoff_ns(struct kvx_peers *peers, unsigned n_failed);
void peer_name(const uint8_t id[KVX_NODE_ID_BYTES], char out[2 * KVX_NODE_ID_BYTES + 1]);
/* Copies text for people: cut, and without control characters. */
void peer_text(char *dst, size_t size, const char *src);

/* peer_addr.c */
int addr_split(const char *text, char *host, size_t host_bytes, char *port, size_t port_bytes);
bool addr_is_loopback(const struct sockaddr *addr);
bool addr_is_any(const struct sockaddr *addr);
void addr_format(const struct sockaddr *addr, char *out, size_t size);

/* Adds the default port where none is named. 0 or -EINVAL. */
int addr_complete(const char *text, char out[KVX_PEER_ADDR_BYTES]);

/* peer_hello.c */
int hello_send(struct peer_conn *conn) KVX_ON_LOOP;
void hello_on_frame(struct peer_conn *conn, const Kvxp__PeerHello *hello) KVX_ON_LOOP;
int beat_on_frame(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
void beat_step(struct kvx_peer *peer) KVX_ON_LOOP; /* sends what is due, sees silence */
uint64_t beat_next_ns(const struct kvx_peer *peer);

/* peer_lanes.c: all lanes of a peer. */
int lanes_create(struct kvx_peer *peer) KVX_ON_LOOP;
void lanes_destroy(struct kvx_peer *peer) KVX_ON_LOOP; /* also after a failed create */
/* The connection is lost: their transfers end once nothing of them lands any more, at the latest at
 * safe_ns. */
void lanes_lose(struct kvx_peer *peer, int status, const char *text, uint64_t safe_ns) KVX_ON_LOOP;
bool lanes_are_idle(const struct kvx_peer *peer);
bool lanes_inbound_is_stopped(const struct kvx_peer *peer);
bool peers_have_transport(const struct kvx_peers *peers); /* with a device that can be used */
void lanes_down(struct kvx_peer *peer, int status, const char *text) KVX_ON_LOOP;
struct peer_lane *lane_sibling(const struct peer_lane *lane); /* the tenant's other one, or NULL */
/* The bounce lane beside it; NULL: there is to be none. */
struct peer_lane *lane_bounce(const struct peer_lane *lane);
/* lanes: bit set of the tenant's lanes, LANES_BOTH or 1 << any_memory of one. */
void lanes_fence_begin(const struct peer_lane *lane, unsigned lanes, struct lane_fence *fence);
/* Stays so once it is. */
bool lanes_fence_is_over(const struct peer_lane *lane, struct lane_fence *fence);

/* peer_answer.c */
int answer_on_resolve(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;

/* peer_export.c */
int export_add(struct peer_lane *lane, uint64_t region) KVX_ON_LOOP; /* 0 or -ENOMEM */
/* The tenant's lane by which the peer uses a region of ours; NULL: it has not resolved it. */
struct peer_lane *export_lane(const struct kvx_peer *peer, uint64_t region, bool any_memory);
int export_on_release(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
int export_on_withdrawn(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
void exports_on_lost(struct kvx_peer *peer) KVX_ON_LOOP;
/* Ends those of a lost peer of which nothing lands any more; false: there are others yet. */
bool exports_finish_lost(struct kvx_peer *peer) KVX_ON_LOOP;
void exports_step(struct kvx_peer *peer) KVX_ON_LOOP;
uint64_t exports_next_ns(const struct kvx_peer *peer);

/* peer_inbound.c */
int inbound_on_open(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
int inbound_on_end(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
void inbound_on_lost(struct kvx_peer *peer) KVX_ON_LOOP;
void inbound_step(struct kvx_peer *peer) KVX_ON_LOOP;
unsigned inbound_count(const struct kvx_peer *peer);
bool inbound_is_empty(const struct kvx_peer *peer); /* exports included */

/* peer_message.c */
int message_on_frame(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
void message_on_lost(struct kvx_peer *peer) KVX_ON_LOOP;

/* peer_calls.c */
int calls_on_reply(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
void calls_on_ping(struct peer_conn *conn, const Kvxp__PeerPing *ping) KVX_ON_LOOP;
void calls_on_up(struct kvx_peer *peer) KVX_ON_LOOP; /* sends pings that waited */
void calls_on_probe_up(struct peer_conn *conn) KVX_ON_LOOP;
void calls_on_probe_failed(struct peer_conn *conn) KVX_ON_LOOP;
void calls_fail_all(struct kvx_peer *peer, int status, const char *text) KVX_ON_LOOP;
bool calls_is_wanted(const struct kvx_peer *peer);

/* peer_publish.c */
int find_on_find(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;

/* peer_find.c */
int find_on_found(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
void find_on_hello(struct peer_conn *conn, const Kvxp__PeerHello *hello) KVX_ON_LOOP;
void find_on_probe_failed(struct peer_conn *conn) KVX_ON_LOOP;
void find_on_up(struct kvx_peer *peer) KVX_ON_LOOP; /* asks for those that waited */
void find_fail_all(struct kvx_peer *peer, int status, const char *text) KVX_ON_LOOP;
bool find_is_wanted(const struct kvx_peer *peer);

#endif
