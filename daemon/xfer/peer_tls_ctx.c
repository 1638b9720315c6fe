/* What a node proves itself by, for OpenSSL: the shared secret, or certificates. Loop thread;
 * blocks only to read the files, when the daemon starts. OpenSSL is used here and in peer_tls.c
 * alone. */
#include "xfer/peer_tls_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/evp.h>

#define SECRET_MIN_BYTES 32
#define SECRET_MAX_BYTES 4096
#define KEY_BYTES        32 /* of TLS_AES_128_GCM_SHA256's hash */
#define PSK_IDENTITY     "kvxfer"
#define PSK_CIPHERS      "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"

const char *peer_tls_reason(void)
{
	unsigned long code = ERR_peek_last_error();
	const char *reason = code != 0 ? ERR_reason_error_string(code) : NULL;

	ERR_clear_error();
	return reason != NULL ? reason : "unknown reason";
}

static int secret_open(const char *path, struct kvx_why *why)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return kvx_why(why, -errno, "peer.secret_file %s: %s", path, strerror(errno));
	if (fstat(fd, &st) == 0 && (st.st_mode & 0007) != 0) {
		close(fd);
		return kvx_why(why, -EPERM,
			       "peer.secret_file %s: others may read it: chmod o-rwx it", path);
	}
	return fd;
}

/* The key is a hash of the whole file, so that any text with enough randomness will do. */
static int secret_read(const char *path, uint8_t key[KEY_BYTES], struct kvx_why *why)
{
	uint8_t text[SECRET_MAX_BYTES + 1];
	unsigned int len = 0;
	ssize_t n;
	int err = 0, fd = secret_open(path, why);

	if (fd < 0)
		return fd;
	n = read(fd, text, sizeof(text));
	if (n < 0)
		err = kvx_why(why, -errno, "peer.secret_file %s: %s", path, strerror(errno));
	else if (n < SECRET_MIN_BYTES || n > SECRET_MAX_BYTES)
		err = kvx_why(why, -EINVAL,
			      "peer.secret_file %s: has to hold %d to %d bytes, for example of "
			      "\"openssl rand -base64 48\"",
			      path, SECRET_MIN_BYTES, SECRET_MAX_BYTES);
	else if (EVP_Digest(text, (size_t)n, key, &len, EVP_sha256(), NULL) != 1)
		err = kvx_why(why, -ENOMEM, "peer.secret_file: %s", peer_tls_reason());
	OPENSSL_cleanse(text, sizeof(text));
	close(fd);
	return err;
}

static struct peer_tls_ctx *ctx_of(const SSL *ssl)
{
	return SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
}

static int psk_for_dialer(SSL *ssl, const EVP_MD *md, const unsigned char **out_id,
			  size_t *out_id_len, SSL_SESSION **out_session)
{
	const struct peer_tls_ctx *ctx = ctx_of(ssl);

	*out_session = NULL;
	if (md != NULL && EVP_MD_get_type(md) != NID_sha256)
		return 1; /* a second hello for another hash: there is no secret for it */
	SSL_SESSION_up_ref(ctx->psk);
	*out_session = ctx->psk;
	*out_id = (const unsigned char *)PSK_IDENTITY;
	*out_id_len = strlen(PSK_IDENTITY);
	return 1;
}

static int psk_for_listener(SSL *ssl, const unsigned char *id, size_t id_len,
			    SSL_SESSION **out_session)
{
	const struct peer_tls_ctx *ctx = ctx_of(ssl);

	*out_session = NULL;
	if (id_len != strlen(PSK_IDENTITY) || memcmp(id, PSK_IDENTITY, id_len) != 0)
		return 1;
	SSL_SESSION_up_ref(ctx->psk);
	*out_session = ctx->psk;
	return 1;
}

/* An external key as OpenSSL wants it: a session with cipher, version and key. */
static int ctx_use_secret(struct peer_tls_ctx *ctx, const char *path, struct kvx_why *why)
{
	static const unsigned char aes128_gcm_sha256[] = {0x13, 0x01}; /* RFC 8446, B.4 */
	uint8_t key[KEY_BYTES];
	const SSL_CIPHER *cipher;
	SSL *ssl;
	int err = secret_read(path, key, why);

	if (err < 0)
		return err;
	err = kvx_why(why, -ENOMEM, "peer.secret_file: out of memory");
	ssl = SSL_new(ctx->ssl_ctx);
	if (ssl == NULL)
		goto out;
	cipher = SSL_CIPHER_find(ssl, aes128_gcm_sha256);
	ctx->psk = SSL_SESSION_new();
	if (cipher == NULL || ctx->psk == NULL ||
	    SSL_SESSION_set1_master_key(ctx->psk, key, sizeof(key)) != 1 ||
	    SSL_SESSION_set_cipher(ctx->psk, cipher) != 1 ||
	    SSL_SESSION_set_protocol_version(ctx->psk, TLS1_3_VERSION) != 1 ||
	    SSL_SESSION_set1_id_context(ctx->psk, (const unsigned char *)PSK_IDENTITY,
					sizeof(PSK_IDENTITY) - 1) != 1 ||
	    /* A secret belongs to one hash, and the cipher is chosen before the secret. */
	    SSL_CTX_set_ciphersuites(ctx->ssl_ctx, PSK_CIPHERS) != 1)
		goto out;
	SSL_CTX_set_psk_use_session_callback(ctx->ssl_ctx, psk_for_dialer);
	SSL_CTX_set_psk_find_session_callback(ctx->ssl_ctx, psk_for_listener);
	/* Without the secret there is no certificate that could stand in for it. */
	SSL_CTX_set_verify(ctx->ssl_ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	err = 0;
out:
	OPENSSL_cleanse(key, sizeof(key));
	SSL_free(ssl);
	return err;
}

static int ctx_use_certificates(SSL_CTX *ctx, const struct kvx_peer_auth *auth, struct kvx_why *why)
{
	if (SSL_CTX_load_verify_file(ctx, auth->tls_ca) != 1)
		return kvx_why(why, -EIO, "peer.tls_ca %s: %s", auth->tls_ca, peer_tls_reason());
	if (SSL_CTX_use_certificate_chain_file(ctx, auth->tls_cert) != 1)
		return kvx_why(why, -EIO, "peer.tls_cert %s: %s", auth->tls_cert,
			       peer_tls_reason());
	if (SSL_CTX_use_PrivateKey_file(ctx, auth->tls_key, SSL_FILETYPE_PEM) != 1)
		return kvx_why(why, -EIO, "peer.tls_key %s: %s", auth->tls_key, peer_tls_reason());
	if (SSL_CTX_check_private_key(ctx) != 1)
		return kvx_why(why, -EIO, "peer.tls_key %s is not the key of peer.tls_cert %s",
			       auth->tls_key, auth->tls_cert);
	SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	return 0;
}

static bool is_set(const char *path)
{
	return path != NULL && path[0] != '\0';
}

static int auth_check(const struct kvx_peer_auth *auth, struct kvx_why *why)
{
	unsigned n = is_set(auth->tls_ca) + is_set(auth->tls_cert) + is_set(auth->tls_key);

	if (n > 0 && is_set(auth->secret_file))
		return kvx_why(why, -EINVAL,
			       "peer.secret_file and peer.tls_*: one or the other, not both");
	if (n != 0 && n != 3)
		return kvx_why(why, -EINVAL,
			       "peer.tls_ca, peer.tls_cert and peer.tls_key go together");
	return 0;
}

int peer_tls_ctx_create(const struct kvx_peer_auth *auth, struct peer_tls_ctx **out_ctx,
			struct kvx_why *why)
{
	struct peer_tls_ctx *ctx;
	int err = auth_check(auth, why);

	*out_ctx = NULL;
	if (err < 0 || (!is_set(auth->secret_file) && !is_set(auth->tls_ca)))
		return err;
	ctx = calloc(1, sizeof(*ctx));
	if (ctx == NULL)
		return kvx_why(why, -ENOMEM, "out of memory");
	ctx->ssl_ctx = SSL_CTX_new(TLS_method());
	if (ctx->ssl_ctx == NULL) {
		free(ctx);
		return kvx_why(why, -ENOMEM, "TLS: %s", peer_tls_reason());
	}
	SSL_CTX_set_app_data(ctx->ssl_ctx, ctx);
	SSL_CTX_set_min_proto_version(ctx->ssl_ctx, TLS1_3_VERSION);
	/* A daemon that is killed says no goodbye in TLS: that is the end of the stream, not an
	 * attack. Frames know their length, and what is lost with a connection is lost either way.
	 */
	SSL_CTX_set_options(ctx->ssl_ctx, SSL_OP_IGNORE_UNEXPECTED_EOF);
	SSL_CTX_set_session_cache_mode(ctx->ssl_ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_num_tickets(ctx->ssl_ctx, 0); /* nothing is resumed */
	/* An external key counts as a session, and one without a context is refused. */
	SSL_CTX_set_session_id_context(ctx->ssl_ctx, (const unsigned char *)PSK_IDENTITY,
				       sizeof(PSK_IDENTITY) - 1);
	SSL_CTX_set_mode(ctx->ssl_ctx,
			 SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	err = is_set(auth->secret_file) ? ctx_use_secret(ctx, auth->secret_file, why)
					: ctx_use_certificates(ctx->ssl_ctx, auth, why);
	if (err < 0) {
		peer_tls_ctx_destroy(ctx);
		return err;
	}
	*out_ctx = ctx;
	return 0;
}

void peer_tls_ctx_destroy(struct peer_tls_ctx *ctx)
{
	if (ctx == NULL)
		return;
	SSL_SESSION_free(ctx->psk);
	SSL_CTX_free(ctx->ssl_ctx);
	free(ctx);
}
