/* Connections of the peer channel in TLS: see peer_tls.h. Loop thread; never blocks. What the nodes
 * prove themselves by is in peer_tls_ctx.c. */
#include "xfer/peer_tls_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/x509v3.h>

#define NODE_URI   "kvxfer:node:"
#define READ_BYTES 16384 /* one whole record, so that OpenSSL keeps none back */

struct peer_tls {
	struct peer_tls_ctx *ctx;
	SSL *ssl;
	bool wants_write;
	char error[KVX_WHY_BYTES];
};

int peer_tls_create(struct peer_tls_ctx *ctx, int fd, bool dialed, struct peer_tls **out_tls)
{
	struct peer_tls *tls = calloc(1, sizeof(*tls));

	if (tls == NULL)
		return -ENOMEM;
	tls->ctx = ctx;
	tls->ssl = SSL_new(ctx->ssl_ctx);
	if (tls->ssl == NULL || SSL_set_fd(tls->ssl, fd) != 1) {
		ERR_clear_error();
		peer_tls_destroy(tls);
		return -ENOMEM;
	}
	if (dialed)
		SSL_set_connect_state(tls->ssl);
	else
		SSL_set_accept_state(tls->ssl);
	*out_tls = tls;
	return 0;
}

void peer_tls_destroy(struct peer_tls *tls)
{
	if (tls == NULL)
		return;
	SSL_free(tls->ssl);
	free(tls);
}

static int tls_fail(struct peer_tls *tls)
{
	long verify = SSL_get_verify_result(tls->ssl);

	if (tls->ctx->psk == NULL && verify != X509_V_OK)
		snprintf(tls->error, sizeof(tls->error),
			 "TLS: certificate of the other side: %s: check peer.tls_ca and the dates",
			 X509_verify_cert_error_string(verify));
	else if (!SSL_is_init_finished(tls->ssl))
		snprintf(tls->error, sizeof(tls->error),
			 "TLS: %s: do both nodes have %s, and does the other side use TLS at all?",
			 peer_tls_reason(),
			 tls->ctx->psk != NULL ? "the same secret in peer.secret_file"
					       : "certificates of the same peer.tls_ca");
	else
		snprintf(tls->error, sizeof(tls->error), "TLS: %s", peer_tls_reason());
	ERR_clear_error();
	return -EPROTO;
}

/* What a call of OpenSSL that did not succeed means. */
static int tls_result(struct peer_tls *tls, int n)
{
	int saved = errno;

	switch (SSL_get_error(tls->ssl, n)) {
	case SSL_ERROR_WANT_READ:
		return -EINPROGRESS;
	case SSL_ERROR_WANT_WRITE:
		return -EAGAIN;
	case SSL_ERROR_ZERO_RETURN:
		return 0;
	case SSL_ERROR_SYSCALL:
		if (ERR_peek_error() == 0)
			return saved != 0 ? -saved : 0;
		return tls_fail(tls);
	default:
		return tls_fail(tls);
	}
}

/* The secret was used, not merely known to be configured. */
static bool tls_is_proven(const struct peer_tls *tls)
{
	return tls->ctx->psk == NULL || SSL_session_reused(tls->ssl) == 1;
}

int peer_tls_fill(struct peer_tls *tls, struct kvx_reader *reader)
{
	uint8_t bytes[READ_BYTES];
	int n, err;

	ERR_clear_error();
	errno = 0;
	n = SSL_read(tls->ssl, bytes, sizeof(bytes));
	tls->wants_write = false;
	if (n <= 0) {
		err = tls_result(tls, n);
		tls->wants_write = err == -EAGAIN;
		return err == -EINPROGRESS ? -EAGAIN : err;
	}
	if (!tls_is_proven(tls)) {
		snprintf(tls->error, sizeof(tls->error), "TLS: the secret was not used");
		return -EPROTO;
	}
	err = kvx_reader_feed(reader, bytes, (size_t)n);
	return err < 0 ? err : n;
}

int peer_tls_flush(struct peer_tls *tls, struct kvx_writer *writer)
{
	const void *bytes;
	size_t len;

	while (kvx_writer_peek(writer, &bytes, &len)) {
		int n, err;

		ERR_clear_error();
		errno = 0;
		n = SSL_write(tls->ssl, bytes, len < INT32_MAX ? (int)len : INT32_MAX);
		if (n <= 0) {
			err = tls_result(tls, n);
			return err == 0 ? -EPIPE : err;
		}
		kvx_writer_consume(writer, (size_t)n);
	}
	return 0;
}

bool peer_tls_wants_write(const struct peer_tls *tls)
{
	return tls->wants_write;
}

/* The node that a certificate names, in any of its URIs; false: it names none. */
static bool cert_names_node(const GENERAL_NAMES *names, const char *node, bool *out_is_this)
{
	bool names_one = false;

	*out_is_this = false;
	for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
		const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
		const char *uri;
		size_t len;

		if (name->type != GEN_URI)
			continue;
		uri = (const char *)ASN1_STRING_get0_data(name->d.uniformResourceIdentifier);
		len = (size_t)ASN1_STRING_length(name->d.uniformResourceIdentifier);
		if (len < strlen(NODE_URI) || memcmp(uri, NODE_URI, strlen(NODE_URI)) != 0)
			continue;
		names_one = true;
		if (len == strlen(NODE_URI) + strlen(node) &&
		    memcmp(uri + strlen(NODE_URI), node, strlen(node)) == 0)
			*out_is_this = true;
	}
	return names_one;
}

int peer_tls_check_node(const struct peer_tls *tls, const char *node, struct kvx_why *why)
{
	bool names_one = false, is_this = false;
	GENERAL_NAMES *names;
	X509 *cert;

	if (tls->ctx->psk != NULL)
		return 0;
	cert = SSL_get0_peer_certificate(tls->ssl);
	if (cert == NULL)
		return kvx_why(why, -EACCES, "TLS: no certificate");
	names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	if (names != NULL)
		names_one = cert_names_node(names, node, &is_this);
	GENERAL_NAMES_free(names);
	ERR_clear_error();
	if (names_one && !is_this)
		return kvx_why(why, -EACCES,
			       "TLS: the certificate is of another node than %s, which it says "
			       "that it is",
			       node);
	return 0;
}

const char *peer_tls_error(const struct peer_tls *tls)
{
	return tls->error;
}
