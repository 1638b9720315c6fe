/* What the parts of the peer channel share. Everything here belongs to the loop thread.
 *
 *   peer.c          the table, one peer's step and timer, loss, closing
 *   peer_addr.c     "host:port" texts and socket addresses
 *   peer_listen.c   the listening socket
 *   peer_conn.c     connections: dial, read, write, close
 *   peer_frame.c    frames to and from protobuf; which frame is whose
 *   peer_hello.c    hello, duplicate connections, heartbeats
 *   peer_lanes.c    all lanes of a peer, one or two for each tenant, and news of their rails
 *   peer_lane.c ... one lane: see peer_lane.h
 *   peer_remote.c   regions of the peer that we use: targets, withdrawal
 *   peer_way.c      which of a tenant's two lanes a transfer goes by
 *   peer_keys.c     their keys, one for each leg of the lane
 *   peer_resolve.c  how a target is asked for and answered
 *   peer_answer.c   regions of ours: what a peer that resolves one is answered
 *   peer_inbound.c  regions of ours that the peer uses: exports, transfers, withdrawal
 *   peer_calls.c    messages and pings
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
#include "xfer/peer_lane.h"

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
#define CONN_MAGIC 0x636f6e6eu

struct peer_conn;

/* A socket in the loop: lives until libuv has closed it. */
struct peer_sock {
	uv_poll_t poll;
	int fd;
	int events; /* what it polls for */
	struct kvx_peers *peers;
	struct peer_conn *conn; /* NULL: the listener, or the connection has let go of it */
};

/* A name look-up: lives until libuv has answered. */
struct peer_lookup {
	uv_getaddrinfo_t req;
	struct kvx_peers *peers;
	struct peer_conn *conn; /* NULL: no longer wanted */
};

enum conn_state { CONN_LOOKUP, CONN_CONNECTING, CONN_HELLO, CONN_UP, CONN_CLOSED };

/* One TCP connection, dialed or accepted. Owned by its peer, or by the table before hello. */
struct peer_conn {
	uint32_t magic;
	struct kvx_peers *peers;
	struct kvx_peer *peer; /* NULL: accepted and no hello yet, or a probe */
	enum conn_state state;
	bool dialed;
	bool probe;
	bool who;         /* a probe that only asks who is there: for finds */
	bool said_fenced; /* the other side closed on purpose, having stopped its lanes */
	bool dirty;       /* frames wait for the end of this loop turn */
	int fail_status;
	char fail_text[KVX_WHY_BYTES];
	char try_text[KVX_WHY_BYTES];   /* why the newest address did not answer */
	char addr[KVX_PEER_ADDR_BYTES]; /* what was dialed, or where it came from */
	struct peer_sock *sock;
	struct peer_tls *tls; /* NULL: nodes are not authenticated, or no socket yet */
	struct peer_lookup *lookup;
	struct addrinfo *addrs, *next_addr; /* what is left to try */
	bool addrs_by_uv;
	struct kvx_reader *reader;
	struct kvx_writer *writer;
	struct kvx_timer timer; /* hello deadline */
	uint64_t hello_sent_ns;
	struct kvx_peer_call *probe_call;
	struct peer_conn *prev, *next;
};

enum target_state {
	TARGET_NEW,       /* to be resolved when the lane is up */
	TARGET_ASKED,     /* waits for PEER_RESOLVED */
	TARGET_UNPACKING, /* waits for RKEY_UNPACK */
	TARGET_READY,
	TARGET_ELSEWHERE, /* this generation of the lane does not reach it */
	TARGET_LOST,
};

struct target_key {
	uint64_t region;
	uint64_t lane; /* index; this wide, so that there is no padding */
	uint8_t token[KVX_TOKEN_BYTES];
};

/* A target's key for one leg. */
struct peer_key {
	struct peer_target *target;
	const struct kvx_node_rail *rail;
	struct kvx_cmd cmd;
};

/* A region of the peer by one lane. Imports know the one by the lane of their tenant; where the
 * region, or the local region of a transfer, is out of reach of that lane, this one keeps another
 * one of the same region by the bounce lane. Owned by the peer; freed in remote_step() only. */
struct peer_target {
	struct kvx_target target; /* first: released by it */
	struct kvx_peer *peer;
	struct peer_lane *lane;
	struct peer_target *bounce; /* that this one keeps, with a reference; NULL: none */
	struct peer_target *first;  /* who keeps this one; NULL: nobody (any more) */
	bool elsewhere; /* when it was asked last, the lane did not reach it: transfers go by
			   `bounce` */
	enum target_state state;
	struct kvx_target **list; /* which of the peer's it is on; NULL: none */
	struct target_key key;
	uint64_t epoch; /* of the descriptor */
	uint64_t request_id;
	uint64_t generation; /* of the lane, when it was asked */
	bool known;          /* resolved once: target is filled */
	bool fencing;        /* lost, and transfers of ours may not have ended */
	bool peer_lost; /* lost with the peer: who watches it is told after the inbound fence */
	struct lane_fence inbound; /* that one */
	bool withdrawing;          /* PEER_WITHDRAWN is owed */
	uint64_t idle_ns;          /* nobody has used it since; 0: used */
	struct kvx_resolve *waiters;
	struct peer_key *keys; /* of the legs, in their order */
	unsigned n_keys, n_keys_busy;
	int key_status; /* of the first that could not be unpacked */
	UT_hash_handle hh;
};

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

/* peer.c */
struct kvx_peer *peer_find(const struct kvx_peers *peers, const uint8_t id[KVX_NODE_ID_BYTES]);
/* Finds or makes it. -EDQUOT, -ENOMEM. */
int peer_get(struct kvx_peers *peers, const uint8_t id[KVX_NODE_ID_BYTES], const char *addr,
	     struct kvx_peer **out_peer, struct kvx_why *why) KVX_ON_LOOP;
void peer_wake(struct kvx_peer *peer) KVX_ON_LOOP; /* peer_step() soon */
void peer_note_error(struct kvx_peer *peer, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* The connection is gone: everything that depended on it ends. remote_fenced: the other side has
 * said that nothing lands there any more. */
void peer_lose(struct kvx_peer *peer, int status, const char *text, bool remote_fenced) KVX_ON_LOOP;
bool peer_is_lower(const struct kvx_peer *peer); /* our node id is lower than theirs */
uint64_t peer_now(const struct kvx_peers *peers);
uint64_t peer_backoff_ns(struct kvx_peers *peers, unsigned n_failed);
void peers_kick(struct kvx_peers *peers);
void peer_name(const uint8_t id[KVX_NODE_ID_BYTES], char out[2 * KVX_NODE_ID_BYTES + 1]);
/* Other addresses than loopback may be used. */
static inline bool peers_may_leave_node(const struct kvx_peers *peers)
{
	return peers->tls != NULL || peers->conf.insecure;
}
/* Copies text for people: cut, and without control characters. */
void peer_text(char *dst, size_t size, const char *src);

/* peer_addr.c */
int addr_split(const char *text, char *host, size_t host_bytes, char *port, size_t port_bytes);
bool addr_is_loopback(const struct sockaddr *addr);
bool addr_is_any(const struct sockaddr *addr);
void addr_format(const struct sockaddr *addr, char *out, size_t size);

/* Adds the default port where none is named. 0 or -EINVAL. */
int addr_complete(const char *text, char out[KVX_PEER_ADDR_BYTES]);

/* peer_listen.c */
int conn_listen(struct kvx_peers *peers, struct kvx_why *why) KVX_ON_LOOP;
void conn_listen_stop(struct kvx_peers *peers) KVX_ON_LOOP;

/* peer_conn.c */
/* Takes fd, also on failure. */
int sock_open(struct kvx_peers *peers, int fd, struct peer_conn *conn,
	      struct peer_sock **out_sock) KVX_ON_LOOP;
void sock_close(struct peer_sock *sock) KVX_ON_LOOP; /* NULL is fine */
int conn_create(struct kvx_peers *peers, const char *addr, struct peer_conn **out_conn) KVX_ON_LOOP;
void conn_take_fd(struct peer_conn *conn, int fd) KVX_ON_LOOP; /* an accepted socket */
/* Starts dialing. peer NULL: a probe. -EINVAL, -EPERM, -ENOMEM, -EBUSY (too many at once). */
int conn_dial(struct kvx_peers *peers, struct kvx_peer *peer, const char *addr,
	      struct peer_conn **out_conn, struct kvx_why *why) KVX_ON_LOOP;
/* Notes the first failure; the owner (peer_step(), or nobody) closes it. */
void conn_fail(struct peer_conn *conn, int status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4))) KVX_ON_LOOP;
/* Tells the other side why, and fails. */
void conn_refuse(struct peer_conn *conn, int status, const char *text) KVX_ON_LOOP;
/* fenced: nothing lands by any lane of ours to it any more. */
void conn_say_bye(struct peer_conn *conn, int status, const char *text, bool fenced) KVX_ON_LOOP;
void conn_close(struct peer_conn *conn) KVX_ON_LOOP;
void conn_set_up(struct peer_conn *conn) KVX_ON_LOOP; /* hello is done */
void conn_dirty(struct peer_conn *conn) KVX_ON_LOOP;  /* flush at the end of this turn */
void conn_flush(struct peer_conn *conn) KVX_ON_LOOP;
void conn_read(struct peer_conn *conn) KVX_ON_LOOP;    /* what the socket has */
void conn_receive(struct peer_conn *conn) KVX_ON_LOOP; /* frames that the reader has */
void conn_bury(struct kvx_peers *peers) KVX_ON_LOOP;   /* frees closed ones */

/* peer_frame.c */
int frame_send(struct peer_conn *conn, uint16_t type, const void *message) KVX_ON_LOOP;
int peer_send(struct kvx_peer *peer, uint16_t type, const void *message) KVX_ON_LOOP;
void frame_dispatch(struct peer_conn *conn, const struct kvx_msg *msg) KVX_ON_LOOP;
void frame_allocator_init(struct kvx_peers *peers);

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

/* peer_remote.c */
/* key.lane is set here. */
int target_create(struct peer_lane *lane, const struct target_key *key, uint64_t epoch,
		  struct peer_target **out_target) KVX_ON_LOOP;
void target_move(struct peer_target *t, enum target_state state) KVX_ON_LOOP;
void target_lose(struct peer_target *t, int status, const char *text) KVX_ON_LOOP;
void target_abandon(struct peer_target *t) KVX_ON_LOOP; /* nobody waits for it any more */
void remote_step(struct kvx_peer *peer) KVX_ON_LOOP;
uint64_t remote_next_ns(const struct kvx_peer *peer);
void remote_lose_all(struct kvx_peer *peer, int status, const char *text) KVX_ON_LOOP;
/* Fails resolves that wait for a lane, or for any. */
void remote_fail_waiting(struct peer_lane *lane, int status, const char *text) KVX_ON_LOOP;
void remote_fail_all_waiting(struct kvx_peer *peer, int status, const char *text) KVX_ON_LOOP;
/* Fails resolves that wait for an epoch other than the peer's. */
void remote_check_epoch(struct kvx_peer *peer) KVX_ON_LOOP;
bool remote_is_wanted(const struct kvx_peer *peer); /* a resolve waits */
unsigned remote_count(const struct kvx_peer *peer);
bool remote_is_empty(const struct kvx_peer *peer);          /* lost ones included */
void remote_stale_keys(struct peer_lane *lane) KVX_ON_LOOP; /* it is down: resolve anew */
void remote_free_keys(struct peer_lane *lane) KVX_ON_LOOP;  /* before its eps are closed */
int remote_on_withdraw(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;

/* peer_way.c */
/* struct kvx_target's. */
int way_route(struct kvx_target *target, const struct kvx_route_ask *ask,
	      struct kvx_target **out_target, struct kvx_why *why);
/* The lane does not reach the region: from now on it goes by the bounce lane. false: it cannot. */
bool way_go_elsewhere(struct peer_target *t) KVX_ON_LOOP;
void way_on_ready(struct peer_target *t) KVX_ON_LOOP; /* it has got keys */
/* Of a target that imports know: can its transfers be submitted, and by which lane do most of them
 * go? */
bool way_is_open(const struct peer_target *t);
struct peer_lane *way_lane(const struct peer_target *t);
/* t was lost: so is what hangs on it. */
void way_on_lost(struct peer_target *t, int status, const char *text) KVX_ON_LOOP;
void way_let_go(struct peer_target *t) KVX_ON_LOOP; /* of `bounce` */
/* Somebody uses it, or what it keeps. */
bool way_is_used(const struct peer_target *t);

/* peer_keys.c */
/* One key for each live leg of the target's lane, from the owner's answer. -EPROTO, -ENOMEM. */
int keys_unpack(struct peer_target *t, const Kvxp__PeerResolved *msg) KVX_ON_LOOP;
bool keys_are_busy(const struct peer_target *t); /* with workers */
bool keys_are_there(const struct peer_target *t);
void keys_free(struct peer_target *t) KVX_ON_LOOP; /* no batch of ours uses them any more */
void keys_fini(struct peer_target *t);             /* there are none */

/* peer_resolve.c */
void resolve_end_waiters(struct peer_target *t, int status, const char *text) KVX_ON_LOOP;
void resolve_ask(struct peer_target *t) KVX_ON_LOOP;
int resolve_on_resolved(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
/* Its keys are unpacked, or one of them is not: key_status. */
void resolve_on_keys(struct peer_target *t) KVX_ON_LOOP;

/* peer_answer.c */
int answer_on_resolve(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;

/* peer_inbound.c */
int inbound_add_export(struct peer_lane *lane, uint64_t region) KVX_ON_LOOP; /* 0 or -ENOMEM */
int inbound_on_release(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
int inbound_on_withdrawn(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
int inbound_on_open(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
int inbound_on_end(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
int inbound_on_message(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
void inbound_on_lost(struct kvx_peer *peer) KVX_ON_LOOP;
void inbound_step(struct kvx_peer *peer) KVX_ON_LOOP;
uint64_t inbound_next_ns(const struct kvx_peer *peer);
unsigned inbound_count(const struct kvx_peer *peer);
bool inbound_is_empty(const struct kvx_peer *peer);

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
