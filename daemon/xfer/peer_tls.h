/* Authentication and encryption of the peer channel: TLS 1.3 and nothing older, on a non-blocking
 * socket. Both sides prove who they are, either by certificates of one authority (tls_ca, tls_cert,
 * tls_key) or by a secret that all nodes share (secret_file). Loop thread. SIGPIPE must be ignored.
 *
 * With certificates, one that names a node (subject alternative name "URI:kvxfer:node:" and the
 * node id, 32 hex digits) is good for that node only; one that names none is good for any. Host
 * names are not looked at: the authority is one of the operator's own, for these nodes. */
#ifndef KVX_PEER_TLS_H
#define KVX_PEER_TLS_H

#include <stdbool.h>

#include "proto/kvx_err.h"
#include "proto/kvx_wire.h"

/* Paths of files; all empty or NULL: no TLS. */
struct kvx_peer_auth {
	const char *secret_file; /* 32 to 4096 bytes, readable by its owner and group only */
	const char *tls_ca, *tls_cert, *tls_key; /* PEM; all three or none */
};

/* For all connections. *out_ctx is NULL when auth names nothing. -EINVAL (secret and certificates
 * both, some of the three missing, a secret too short or too long), -EPERM (a secret that others
 * may read), -ENOENT, -EACCES, -EIO (not PEM, key and certificate do not go together), -ENOMEM; all
 * said in *why. */
struct peer_tls_ctx;
int peer_tls_ctx_create(const struct kvx_peer_auth *auth, struct peer_tls_ctx **out_ctx,
			struct kvx_why *why);
void peer_tls_ctx_destroy(struct peer_tls_ctx *ctx); /* NULL is fine */

/* One connection; the handshake goes on inside of fill and flush. fd stays the caller's. */
struct peer_tls;
int peer_tls_create(struct peer_tls_ctx *ctx, int fd, bool dialed, struct peer_tls **out_tls);
void peer_tls_destroy(struct peer_tls *tls); /* NULL is fine */
/* As kvx_reader_fill(): > 0, 0: end of stream, -EAGAIN; -EPROTO: see peer_tls_error(). */
int peer_tls_fill(struct peer_tls *tls, struct kvx_reader *reader);
/* As kvx_writer_flush(): 0, -EAGAIN: when the socket can be written; -EINPROGRESS: after the next
 * fill; else -errno, -EPROTO: see peer_tls_error(). */
int peer_tls_flush(struct peer_tls *tls, struct kvx_writer *writer);
/* The socket must be writable before fill can go on (handshake only). */
bool peer_tls_wants_write(const struct peer_tls *tls);
/* Is the other side who it says it is? node: 32 hex digits. 0, or -EACCES with *why. */
int peer_tls_check_node(const struct peer_tls *tls, const char *node, struct kvx_why *why);
const char *peer_tls_error(const struct peer_tls *tls); /* for people, with what to do */

#endif
