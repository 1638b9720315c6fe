/* TLS of the peer channel over a real socket pair: who gets in, who does not, and that frames pass
 * whole in both directions however the bytes are cut. */
#include "xfer/peer_tls.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "test_end.h"

#define NODE_A "0123456789abcdef0123456789abcdef"
#define NODE_B "fedcba9876543210fedcba9876543210"

static char dir[] = "/tmp/kvx-tls-XXXXXX";

static const char *file(const char *name)
{
	static char paths[8][128];
	static unsigned at;
	char *path = paths[at++ % 8];

	snprintf(path, sizeof(paths[0]), "%s/%s", dir, name);
	return path;
}

static void set_up(void)
{
	signal(SIGPIPE, SIG_IGN);
	cr_assert_not_null(mkdtemp(dir));
}

static void tear_down(void)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -r %s", dir);
	cr_assert_eq(system(command), 0);
	OPENSSL_cleanup(); /* what it keeps for the process is no leak */
}

static const char *secret(const char *name, const char *text)
{
	const char *path = file(name);
	FILE *f = fopen(path, "w");

	fputs(text, f);
	fclose(f);
	cr_assert_eq(chmod(path, 0600), 0);
	return path;
}

#define SECRET_1 "correct horse battery staple, forty bytes or so"
#define SECRET_2 "a different secret of the same kind and of length"

/* One end of a connection. */
struct end {
	struct peer_tls_ctx *ctx;
	struct peer_tls *tls;
	struct kvx_reader *reader;
	struct kvx_writer *writer;
	int fd;
	int err; /* of the first call that failed */
};
struct link {
	struct end a, b; /* a has dialed */
};

static void end_open(struct end *end, const struct kvx_peer_auth *auth, int fd, bool dialed)
{
	struct kvx_why why = {.text = ""};

	memset(end, 0, sizeof(*end));
	cr_assert_eq(peer_tls_ctx_create(auth, &end->ctx, &why), 0, "%s", why.text);
	cr_assert_not_null(end->ctx);
	cr_assert_eq(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
	cr_assert_eq(peer_tls_create(end->ctx, fd, dialed, &end->tls), 0);
	cr_assert_eq(kvx_reader_create(1 << 20, &end->reader), 0);
	cr_assert_eq(kvx_writer_create(&end->writer), 0);
	end->fd = fd;
}

static void end_close(struct end *end)
{
	peer_tls_destroy(end->tls);
	peer_tls_ctx_destroy(end->ctx);
	kvx_reader_destroy(end->reader);
	kvx_writer_destroy(end->writer);
	close(end->fd);
}

static void link_open(struct link *link, const struct kvx_peer_auth *a,
		      const struct kvx_peer_auth *b)
{
	int fds[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	end_open(&link->a, a, fds[0], true);
	end_open(&link->b, b, fds[1], false);
}

static void link_close(struct link *link)
{
	end_close(&link->a);
	end_close(&link->b);
}

static void end_step(struct end *end)
{
	int n;

	if (end->err != 0)
		return;
	n = peer_tls_flush(end->tls, end->writer);
	if (n < 0 && n != -EAGAIN && n != -EINPROGRESS) {
		end->err = n;
		return;
	}
	while ((n = peer_tls_fill(end->tls, end->reader)) > 0)
		;
	if (n != -EAGAIN)
		end->err = n == 0 ? -EPIPE : n;
}

static void link_run(struct link *link)
{
	for (unsigned i = 0; i < 200; i++) {
		end_step(&link->a);
		end_step(&link->b);
	}
}

/* Sends one frame each way and says whether both arrived. */
static bool link_works(struct link *link)
{
	struct kvx_msg msg;
	bool ok;

	kvx_writer_put(link->a.writer, 7, "from a", 6, NULL, 0);
	kvx_writer_put(link->b.writer, 8, "from b", 6, NULL, 0);
	link_run(link);
	ok = kvx_reader_next(link->b.reader, &msg) == 1 && msg.type == 7 &&
	     memcmp(msg.body, "from a", 6) == 0;
	return kvx_reader_next(link->a.reader, &msg) == 1 && msg.type == 8 &&
	       memcmp(msg.body, "from b", 6) == 0 && ok;
}

Test(peer_tls, same_secret_lets_frames_through, .init = set_up, .fini = tear_down)
{
	struct kvx_peer_auth auth = {.secret_file = secret("s", SECRET_1)};
	struct link link;

	link_open(&link, &auth, &auth);
	cr_assert(link_works(&link));
	cr_assert_eq(link.a.err, 0);
	cr_assert_eq(link.b.err, 0);
	cr_assert_eq(peer_tls_check_node(link.a.tls, NODE_B, NULL), 0);
	link_close(&link);
}

/* As when the other daemon is killed: its loss, not a refusal. */
Test(peer_tls, broken_off_connection_is_an_end_of_stream, .init = set_up, .fini = tear_down)
{
	struct kvx_peer_auth auth = {.secret_file = secret("s", SECRET_1)};
	struct link link;

	link_open(&link, &auth, &auth);
	cr_assert(link_works(&link));
	cr_assert_eq(shutdown(link.b.fd, SHUT_RDWR), 0);
	cr_assert_eq(peer_tls_fill(link.a.tls, link.a.reader), 0, "%s", peer_tls_error(link.a.tls));
	link_close(&link);
	/* before the handshake, too */
	link_open(&link, &auth, &auth);
	cr_assert_eq(peer_tls_flush(link.a.tls, link.a.writer), 0);
	cr_assert_eq(shutdown(link.b.fd, SHUT_RDWR), 0);
	cr_assert_eq(peer_tls_fill(link.b.tls, link.b.reader), 0, "%s", peer_tls_error(link.b.tls));
	link_close(&link);
}

Test(peer_tls, large_frames_pass_whole, .init = set_up, .fini = tear_down)
{
	struct kvx_peer_auth auth = {.secret_file = secret("s", SECRET_1)};
	enum { BYTES = 1 << 20, FRAMES = 4 };
	uint8_t *body = malloc(BYTES);
	struct kvx_msg msg;
	struct link link;
	unsigned n = 0;

	for (unsigned i = 0; i < BYTES; i++)
		body[i] = (uint8_t)(i * 7 + i / 251);
	link_open(&link, &auth, &auth);
	for (unsigned i = 0; i < FRAMES; i++)
		kvx_writer_put(link.a.writer, (uint16_t)i, body, BYTES, NULL, 0);
	for (unsigned i = 0; i < 2000 && n < FRAMES; i++) {
		end_step(&link.a);
		end_step(&link.b);
		while (kvx_reader_next(link.b.reader, &msg) == 1) {
			cr_assert_eq(msg.type, n++);
			cr_assert_eq(msg.len_bytes, BYTES);
			cr_assert_eq(memcmp(msg.body, body, BYTES), 0);
		}
	}
	cr_assert_eq(n, FRAMES);
	cr_assert_eq(kvx_writer_pending_bytes(link.a.writer), 0);
	free(body);
	link_close(&link);
}

Test(peer_tls, other_secret_is_refused_on_both_sides, .init = set_up, .fini = tear_down)
{
	struct kvx_peer_auth a = {.secret_file = secret("s1", SECRET_1)};
	struct kvx_peer_auth b = {.secret_file = secret("s2", SECRET_2)};
	struct link link;

	link_open(&link, &a, &b);
	cr_assert_not(link_works(&link));
	cr_assert_eq(link.b.err, -EPROTO);
	cr_assert_not_null(strstr(peer_tls_error(link.b.tls), "the same secret"));
	cr_assert_neq(link.a.err, 0);
	link_close(&link);
}

Test(peer_tls, plain_bytes_are_refused, .init = set_up, .fini = tear_down)
{
	struct kvx_peer_auth auth = {.secret_file = secret("s", SECRET_1)};
	struct link link;

	for (unsigned dialed = 0; dialed < 2; dialed++) {
		struct end *end = dialed ? &link.a : &link.b;
		int other;

		link_open(&link, &auth, &auth);
		other = dialed ? link.b.fd : link.a.fd;
		cr_assert_gt(
		    write(other, "\x20\0\0\0\1\0\0\0 kvx hello in plain text, all of it", 40), 0);
		for (unsigned i = 0; i < 10; i++)
			end_step(end);
		cr_assert_eq(end->err, -EPROTO, "dialed %u: %d", dialed, end->err);
		cr_assert_not_null(strstr(peer_tls_error(end->tls), "use TLS at all"));
		link_close(&link);
	}
}

/* certificates */

static EVP_PKEY *key_make(const char *name)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	FILE *f = fopen(file(name), "w");

	cr_assert_not_null(key);
	cr_assert_eq(PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL), 1);
	fclose(f);
	return key;
}

static void cert_add_ext(X509 *cert, int nid, const char *value)
{
	X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, NULL, nid, value);

	cr_assert_not_null(ext);
	X509_add_ext(cert, ext, -1);
	X509_EXTENSION_free(ext);
}

/* A certificate NAME.pem with key NAME.key by issuer (NULL: by itself). */
static X509 *cert_make(const char *name, X509 *issuer, EVP_PKEY *issuer_key, EVP_PKEY **out_key,
		       const char *uri, long valid_s)
{
	char path[64];
	X509 *cert = X509_new();
	static long serial;
	EVP_PKEY *key;
	FILE *f;

	snprintf(path, sizeof(path), "%s.key", name);
	key = key_make(path);
	X509_set_version(cert, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(cert), ++serial);
	X509_gmtime_adj(X509_getm_notBefore(cert), -86400);
	X509_gmtime_adj(X509_getm_notAfter(cert), valid_s);
	X509_set_pubkey(cert, key);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
				   (const unsigned char *)name, -1, -1, 0);
	X509_set_issuer_name(cert, X509_get_subject_name(issuer != NULL ? issuer : cert));
	if (issuer == NULL)
		cert_add_ext(cert, NID_basic_constraints, "critical,CA:TRUE");
	if (uri != NULL)
		cert_add_ext(cert, NID_subject_alt_name, uri);
	cr_assert_gt(X509_sign(cert, issuer != NULL ? issuer_key : key, EVP_sha256()), 0);
	snprintf(path, sizeof(path), "%s.pem", name);
	f = fopen(file(path), "w");
	cr_assert_eq(PEM_write_X509(f, cert), 1);
	fclose(f);
	if (out_key != NULL)
		*out_key = key;
	else
		EVP_PKEY_free(key);
	return cert;
}

struct authority {
	X509 *cert;
	EVP_PKEY *key;
};

static void authority_make(struct authority *ca, const char *name)
{
	ca->cert = cert_make(name, NULL, NULL, &ca->key, NULL, 86400);
}

static void authority_sign(const struct authority *ca, const char *name, const char *uri,
			   long valid_s)
{
	X509_free(cert_make(name, ca->cert, ca->key, NULL, uri, valid_s));
}

static void authority_free(struct authority *ca)
{
	X509_free(ca->cert);
	EVP_PKEY_free(ca->key);
}

static struct kvx_peer_auth auth_of(const char *ca, const char *name)
{
	static char paths[4][3][128];
	static unsigned at;
	unsigned i = at++ % 4;

	snprintf(paths[i][0], 128, "%s/%s.pem", dir, ca);
	snprintf(paths[i][1], 128, "%s/%s.pem", dir, name);
	snprintf(paths[i][2], 128, "%s/%s.key", dir, name);
	return (struct kvx_peer_auth){
	    .tls_ca = paths[i][0], .tls_cert = paths[i][1], .tls_key = paths[i][2]};
}

Test(peer_tls, certificates_of_one_authority_let_each_other_in, .init = set_up, .fini = tear_down)
{
	struct kvx_why why = {.text = ""};
	struct authority ca;
	struct link link;

	authority_make(&ca, "ca");
	authority_sign(&ca, "a", NULL, 86400);
	authority_sign(&ca, "b", "URI:kvxfer:node:" NODE_B, 86400);
	struct kvx_peer_auth a = auth_of("ca", "a"), b = auth_of("ca", "b");
	link_open(&link, &a, &b);
	cr_assert(link_works(&link));
	/* One that names a node is good for that node only, one that names none for any. */
	cr_assert_eq(peer_tls_check_node(link.a.tls, NODE_B, &why), 0);
	cr_assert_eq(peer_tls_check_node(link.a.tls, NODE_A, &why), -EACCES);
	cr_assert_not_null(strstr(why.text, NODE_A));
	cr_assert_eq(peer_tls_check_node(link.b.tls, NODE_A, &why), 0);
	link_close(&link);
	authority_free(&ca);
}

Test(peer_tls, certificate_of_another_authority_or_out_of_date_is_refused, .init = set_up,
     .fini = tear_down)
{
	struct authority ca, other;

	authority_make(&ca, "ca");
	authority_make(&other, "other");
	authority_sign(&ca, "b", NULL, 86400);
	authority_sign(&other, "stranger", NULL, 86400);
	authority_sign(&ca, "expired", NULL, -3600);
	const char *names[] = {"stranger", "expired"};
	for (unsigned i = 0; i < 2; i++) {
		struct kvx_peer_auth a = auth_of("ca", names[i]), b = auth_of("ca", "b");
		struct link link;

		link_open(&link, &a, &b);
		cr_assert_not(link_works(&link), "%s", names[i]);
		cr_assert_eq(link.b.err, -EPROTO);
		cr_assert_not_null(strstr(peer_tls_error(link.b.tls), "certificate"));
		link_close(&link);
		link_open(&link, &b, &a); /* and the other way round */
		cr_assert_not(link_works(&link), "%s", names[i]);
		link_close(&link);
	}
	authority_free(&ca);
	authority_free(&other);
}

Test(peer_tls, secret_and_certificates_do_not_mix, .init = set_up, .fini = tear_down)
{
	struct authority ca;
	struct link link;

	authority_make(&ca, "ca");
	authority_sign(&ca, "b", NULL, 86400);
	struct kvx_peer_auth a = {.secret_file = secret("s", SECRET_1)};
	struct kvx_peer_auth b = auth_of("ca", "b");
	link_open(&link, &a, &b);
	cr_assert_not(link_works(&link));
	link_close(&link);
	link_open(&link, &b, &a);
	cr_assert_not(link_works(&link));
	link_close(&link);
	authority_free(&ca);
}

/* TLS 1.2 with the same certificates: nothing older than 1.3 is spoken. */
Test(peer_tls, older_versions_are_refused, .init = set_up, .fini = tear_down)
{
	struct authority ca;
	struct link link;
	SSL_CTX *old;
	SSL *ssl;

	authority_make(&ca, "ca");
	authority_sign(&ca, "b", NULL, 86400);
	struct kvx_peer_auth auth = auth_of("ca", "b");
	link_open(&link, &auth, &auth);
	old = SSL_CTX_new(TLS_method());
	SSL_CTX_set_max_proto_version(old, TLS1_2_VERSION);
	SSL_CTX_use_certificate_chain_file(old, auth.tls_cert);
	SSL_CTX_use_PrivateKey_file(old, auth.tls_key, SSL_FILETYPE_PEM);
	ssl = SSL_new(old);
	SSL_set_fd(ssl, link.a.fd);
	for (unsigned i = 0; i < 20; i++) {
		SSL_connect(ssl);
		end_step(&link.b);
	}
	cr_assert_eq(link.b.err, -EPROTO);
	SSL_free(ssl);
	SSL_CTX_free(old);
	link_close(&link);
	authority_free(&ca);
}

/* configuration */

static void expect_refused(const struct kvx_peer_auth *auth, int err, const char *words)
{
	struct kvx_why why = {.text = ""};
	struct peer_tls_ctx *ctx = NULL;

	cr_assert_eq(peer_tls_ctx_create(auth, &ctx, &why), err, "%s", why.text);
	cr_assert_null(ctx);
	cr_assert_not_null(strstr(why.text, words), "%s", why.text);
}

Test(peer_tls, wrong_files_are_refused_by_name, .init = set_up, .fini = tear_down)
{
	struct kvx_peer_auth none = {.secret_file = ""}, auth = none;
	struct peer_tls_ctx *ctx = (void *)1;
	struct kvx_why why;

	cr_assert_eq(peer_tls_ctx_create(&none, &ctx, &why), 0);
	cr_assert_null(ctx);
	auth.secret_file = secret("short", "too short");
	expect_refused(&auth, -EINVAL, "32 to 4096");
	auth.secret_file = file("missing");
	expect_refused(&auth, -ENOENT, "missing");
	auth.secret_file = secret("open", SECRET_1);
	cr_assert_eq(chmod(auth.secret_file, 0644), 0);
	expect_refused(&auth, -EPERM, "others may read it");
	auth.tls_ca = "x";
	expect_refused(&auth, -EINVAL, "not both");
	auth.secret_file = NULL;
	expect_refused(&auth, -EINVAL, "go together");
	auth.tls_cert = auth.tls_key = "x";
	expect_refused(&auth, -EIO, "peer.tls_ca");
}

Test(peer_tls, key_of_another_certificate_is_refused, .init = set_up, .fini = tear_down)
{
	struct authority ca;
	char key[128];

	authority_make(&ca, "ca");
	authority_sign(&ca, "a", NULL, 86400);
	authority_sign(&ca, "b", NULL, 86400);
	struct kvx_peer_auth auth = auth_of("ca", "a");
	snprintf(key, sizeof(key), "%s/b.key", dir);
	auth.tls_key = key;
	expect_refused(&auth, -EIO, "peer.tls_key");
	authority_free(&ca);
}
