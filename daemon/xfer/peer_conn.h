/* Connections to peers, inside: one TCP connection each, dialed or accepted, in the clear or
 * through TLS. Shared by
 *
 *   peer_listen.c   the listening socket
 *   peer_dial.c     dialing: look-up, one address after the other
 *   peer_conn.c     making, failing, closing
 *   peer_conn_io.c  bytes: polling, reading, writing
 *   peer_frame.c    frames to and from protobuf; which frame is whose
 *   peer_hello.c    hello, duplicate connections, heartbeats
 *
 * Everything here belongs to the loop thread. */
#ifndef KVX_PEER_CONN_H
#define KVX_PEER_CONN_H

#include <netdb.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/roles.h"
#include "base/timer.h"
#include "proto/kvx_err.h"
#include "proto/kvx_wire.h"
#include "xfer/peer.h"

#define CONN_MAGIC 0x636f6e6eu

struct peer_conn;
struct peer_lookup; /* peer_dial.c */

/* A socket in the loop: lives until libuv has closed it. */
struct peer_sock {
	uv_poll_t poll;
	int fd;
	int events; /* what it polls for */
	struct kvx_peers *peers;
	struct peer_conn *conn; /* NULL: the listener, or the connection has let go of it */
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

/* peer_listen.c */
int conn_listen(struct kvx_peers *peers, struct kvx_why *why) KVX_ON_LOOP;
void conn_listen_stop(struct kvx_peers *peers) KVX_ON_LOOP;

/* peer_dial.c */
/* Starts dialing. peer NULL: a probe. -EINVAL, -EPERM, -ENOMEM, -EBUSY (too many at once). */
int conn_dial(struct kvx_peers *peers, struct kvx_peer *peer, const char *addr,
	      struct peer_conn **out_conn, struct kvx_why *why) KVX_ON_LOOP;
/* Its socket is connected, or has failed to. */
void dial_on_connected(struct peer_conn *conn) KVX_ON_LOOP;
void dial_stop(struct peer_conn *conn) KVX_ON_LOOP; /* no look-up, no address is left */

/* peer_conn.c */
/* Takes fd, also on failure. */
int sock_open(struct kvx_peers *peers, int fd, struct peer_conn *conn,
	      struct peer_sock **out_sock) KVX_ON_LOOP;
void sock_close(struct peer_sock *sock) KVX_ON_LOOP; /* NULL is fine */
int conn_create(struct kvx_peers *peers, const char *addr, struct peer_conn **out_conn) KVX_ON_LOOP;
/* Notes the first failure; the owner (peer_step(), or nobody) closes it. */
void conn_fail(struct peer_conn *conn, int status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4))) KVX_ON_LOOP;
/* Tells the other side why, and fails. */
void conn_refuse(struct peer_conn *conn, int status, const char *text) KVX_ON_LOOP;
/* fenced: nothing lands by any lane of ours to it any more. */
void conn_say_bye(struct peer_conn *conn, int status, const char *text, bool fenced) KVX_ON_LOOP;
void conn_close(struct peer_conn *conn) KVX_ON_LOOP;
void conn_set_up(struct peer_conn *conn) KVX_ON_LOOP; /* hello is done */
void conn_bury(struct kvx_peers *peers) KVX_ON_LOOP;  /* frees closed ones */

/* peer_conn_io.c */
/* The socket is there: from now on its bytes are TLS's, when that is configured. */
int conn_start(struct peer_conn *conn) KVX_ON_LOOP;
void conn_take_fd(struct peer_conn *conn, int fd) KVX_ON_LOOP; /* an accepted socket */
int conn_poll(struct peer_conn *conn, int events) KVX_ON_LOOP; /* an error fails it */
void conn_dirty(struct peer_conn *conn) KVX_ON_LOOP;           /* flush at the end of this turn */
void conn_flush(struct peer_conn *conn) KVX_ON_LOOP;
void conn_read(struct peer_conn *conn) KVX_ON_LOOP;    /* what the socket has */
void conn_receive(struct peer_conn *conn) KVX_ON_LOOP; /* frames that the reader has */

/* peer_frame.c */
int frame_send(struct peer_conn *conn, uint16_t type, const void *message) KVX_ON_LOOP;
int peer_send(struct kvx_peer *peer, uint16_t type, const void *message) KVX_ON_LOOP;
void frame_dispatch(struct peer_conn *conn, const struct kvx_msg *msg) KVX_ON_LOOP;
void frame_allocator_init(struct kvx_peers *peers);

#endif
