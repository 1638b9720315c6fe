/* Values of the configuration that are lists: tenants, transports, devices. Takes them apart, says
 * what is wrong with one, and gives them as the daemon needs them. Pure functions. */
#include "config.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#include "config_keys.h"

#define NAME_CHARS     "abcdefghijklmnopqrstuvwxyz0123456789-"
#define DEVICE_CHARS   NAME_CHARS "ABCDEFGHIJKLMNOPQRSTUVWXYZ_."
#define DEFAULT_TENANT "default"

/* The next word of a list, and what is behind it; 0: there is none. */
static size_t list_next(const char **text, const char *separators, const char **out_word)
{
	const char *word = *text + strspn(*text, separators);
	size_t len = strcspn(word, separators);

	*out_word = word;
	*text = word + len;
	return len;
}

/* ---- tenants */

static int tenant_check_socket(const struct kvx_config_tenant *t, struct kvx_why *why)
{
	size_t max = sizeof(((struct sockaddr_un *)0)->sun_path) - sizeof(".lock") - 1;

	if (t->socket[0] != '/' && (t->socket[0] != '@' || t->socket[1] == '\0'))
		return kvx_why(why, -EINVAL, "tenant %s: '%.40s' is not an absolute path, or @name",
			       t->name, t->socket);
	if (strlen(t->socket) > max)
		return kvx_why(why, -EINVAL, "tenant %s: its socket is longer than %zu bytes",
			       t->name, max);
	return 0;
}

/* One word of the list. */
static int tenant_parse(const char *word, size_t len, struct kvx_config_tenant *out,
			struct kvx_why *why)
{
	const char *equals = memchr(word, '=', len);
	size_t name_len = equals != NULL ? (size_t)(equals - word) : len;

	memset(out, 0, sizeof(*out));
	if (name_len == 0 || name_len >= sizeof(out->name) || strspn(word, NAME_CHARS) < name_len)
		return kvx_why(why, -EINVAL,
			       "'%.*s' is not NAME=SOCKET with a name of 1 to %zu characters of "
			       "a-z, 0-9 and -",
			       (int)(len < 40 ? len : 40), word, sizeof(out->name) - 1);
	memcpy(out->name, word, name_len);
	if (strcmp(out->name, DEFAULT_TENANT) == 0)
		return kvx_why(why, -EINVAL, "tenant %s is always there, on daemon.socket",
			       DEFAULT_TENANT);
	if (equals == NULL)
		return 0;
	len -= name_len + 1;
	if (len >= sizeof(out->socket))
		len = sizeof(out->socket) - 1; /* far over the limit anyway */
	memcpy(out->socket, equals + 1, len);
	return tenant_check_socket(out, why);
}

static int tenant_check_unique(const struct kvx_config_tenant *tenants, unsigned n,
			       struct kvx_why *why)
{
	const struct kvx_config_tenant *last = &tenants[n];

	for (unsigned i = 0; i < n; i++) {
		if (strcmp(tenants[i].name, last->name) == 0)
			return kvx_why(why, -EINVAL, "tenant %s is given twice", last->name);
		if (last->socket[0] != '\0' && strcmp(tenants[i].socket, last->socket) == 0)
			return kvx_why(why, -EINVAL, "tenants %s and %s have the same socket",
				       tenants[i].name, last->name);
	}
	return 0;
}

/* Those of the list, behind the default one. Number or -EINVAL. */
static int tenants_parse(const char *text, const char *default_socket,
			 struct kvx_config_tenant out[KVX_MAX_TENANTS], struct kvx_why *why)
{
	const char *word;
	unsigned n = 1;
	size_t len;
	int err;

	memset(&out[0], 0, sizeof(out[0]));
	snprintf(out[0].name, sizeof(out[0].name), DEFAULT_TENANT);
	snprintf(out[0].socket, sizeof(out[0].socket), "%s", default_socket);
	while ((len = list_next(&text, " ", &word)) > 0) {
		if (n == KVX_MAX_TENANTS)
			return kvx_why(why, -EINVAL, "more than %d tenants", KVX_MAX_TENANTS - 1);
		err = tenant_parse(word, len, &out[n], why);
		if (err == 0)
			err = tenant_check_unique(out, n, why);
		if (err < 0)
			return err;
		n++;
	}
	return (int)n;
}

int kvx_config_check_tenants(const char *text, struct kvx_why *why)
{
	struct kvx_config_tenant tenants[KVX_MAX_TENANTS];
	int n = tenants_parse(text, "", tenants, why);

	return n < 0 ? n : 0;
}

int kvx_config_check_tenant_sockets(const struct kvx_config *config, struct kvx_why *why)
{
	struct kvx_config_tenant tenants[KVX_MAX_TENANTS];
	struct kvx_why reason = {.text = ""};
	int n = tenants_parse(config->tenants, config->socket, tenants, &reason);

	return n < 0 ? kvx_why(why, n, "daemon.tenants: %.200s", reason.text) : 0;
}

unsigned kvx_config_tenants(const struct kvx_config *config,
			    struct kvx_config_tenant out_tenants[KVX_MAX_TENANTS])
{
	int n = tenants_parse(config->tenants, config->socket, out_tenants, NULL);

	return n < 0 ? 1 : (unsigned)n; /* a finished configuration has none that is wrong */
}

/* ---- transports */

/* A transport between nodes is one that has a section with `enable`. */
static const struct kvx_config_key *transport_enable(const char *word, size_t len)
{
	char name[KVX_CONFIG_TRANSPORT_BYTES];

	if (len >= sizeof(name))
		return NULL;
	snprintf(name, sizeof(name), "%.*s", (int)len, word);
	return strcmp(name, "peer") == 0 ? NULL : kvx_config_key_find(name, "enable");
}

int kvx_config_check_names(const char *text, struct kvx_why *why)
{
	const struct kvx_config_key *seen[KVX_CONFIG_TRANSPORTS];
	const char *word;
	unsigned n = 0;
	size_t len;

	while ((len = list_next(&text, " ", &word)) > 0) {
		const struct kvx_config_key *key = transport_enable(word, len);

		if (key == NULL)
			return kvx_why(why, -EINVAL,
				       "'%.*s' is not a transport between nodes: verbs and fabric "
				       "are",
				       (int)(len < 40 ? len : 40), word);
		for (unsigned i = 0; i < n; i++)
			if (seen[i] == key)
				return kvx_why(why, -EINVAL, "%s is given twice", key->section);
		seen[n++] = key;
	}
	return n > 0 ? 0
		     : kvx_why(why, -EINVAL, "no transport is named; verbs and fabric are some");
}

unsigned kvx_config_transports(const struct kvx_config *config,
			       char out_names[KVX_CONFIG_TRANSPORTS][KVX_CONFIG_TRANSPORT_BYTES])
{
	const char *text = config->peer_transports, *word;
	unsigned n = 0;
	size_t len;

	while (n < KVX_CONFIG_TRANSPORTS && (len = list_next(&text, " ", &word)) > 0) {
		const struct kvx_config_key *key = transport_enable(word, len);

		if (key != NULL && *(const bool *)((const char *)config + key->offset))
			snprintf(out_names[n++], KVX_CONFIG_TRANSPORT_BYTES, "%s", key->section);
	}
	return n;
}

/* ---- devices */

static bool is_device(const char *word, size_t len)
{
	size_t name_len = strspn(word, DEVICE_CHARS);
	size_t digits;

	if (name_len == 0 || name_len >= KVX_RAIL_NAME_BYTES)
		return false;
	if (name_len >= len)
		return name_len == len;
	digits = strspn(word + name_len + 1, "0123456789");
	return word[name_len] == ':' && word[name_len + 1] != '0' && digits >= 1 && digits <= 3 &&
	       name_len + 1 + digits == len;
}

int kvx_config_check_devices(const char *text, struct kvx_why *why)
{
	const char *word = text + (text[0] == '^' ? 1 : 0);
	size_t len;

	if (text[0] == '\0')
		return 0;
	for (;; word += len + 1) {
		len = strcspn(word, ",");
		if (!is_device(word, len))
			return kvx_why(why, -EINVAL,
				       "'%.*s' is not DEVICE or DEVICE:PORT, such as mlx5_0 or "
				       "mlx5_0:1",
				       (int)(len < 40 ? len : 40), word);
		if (word[len] == '\0')
			return 0;
	}
}
