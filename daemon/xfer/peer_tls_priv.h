/* What the two parts of TLS on the peer channel share: what a node proves itself by
 * (peer_tls_ctx.c), and the connections (peer_tls.c). Loop thread. */
#ifndef KVX_PEER_TLS_PRIV_H
#define KVX_PEER_TLS_PRIV_H

#include <openssl/ssl.h>

#include "xfer/peer_tls.h"

struct peer_tls_ctx {
	SSL_CTX *ssl_ctx;
	SSL_SESSION *psk; /* NULL: certificates */
};

/* OpenSSL's newest reason, and none is left. */
const char *peer_tls_reason(void);

#endif
