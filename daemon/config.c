/* Builds the configuration: defaults, one assignment, what depends on the machine, checks across
 * keys, reload, and the documented file. Main thread, at start and at SIGHUP; the result does not
 * change afterwards. Reads the environment ($XDG_RUNTIME_DIR) here and nowhere else. */
#include "config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/assert.h"
#include "config_keys.h"

#define FRAME_HEADROOM 8192u /* what a frame holds beside its arrays: payload, names */

void kvx_config_defaults(struct kvx_config *out_config)
{
	memset(out_config, 0, sizeof(*out_config));
	for (unsigned i = 0; i < kvx_config_n_keys; i++) {
		const struct kvx_config_key *key = &kvx_config_keys[i];
		int err = kvx_config_value_set(key, key->def, out_config, NULL);

		kvx_assert(err == 0);
	}
}

int kvx_config_set(struct kvx_config *config, const char *assignment, struct kvx_why *why)
{
	const char *equals = strchr(assignment, '='), *dot = strchr(assignment, '.');
	const struct kvx_config_key *key;
	char section[64], name[64];

	if (equals == NULL || dot == NULL || dot > equals)
		return kvx_why(why, -EINVAL, "'%.80s': expected section.key=value", assignment);
	snprintf(section, sizeof(section), "%.*s", (int)(dot - assignment), assignment);
	snprintf(name, sizeof(name), "%.*s", (int)(equals - dot - 1), dot + 1);
	key = kvx_config_key_find(section, name);
	if (key != NULL)
		return kvx_config_value_set(key, equals + 1, config, why);
	key = kvx_config_key_guess(section, name);
	if (key == NULL)
		return kvx_why(why, -EINVAL, "unknown key %s.%s", section, name);
	return kvx_why(why, -EINVAL, "unknown key %s.%s; did you mean %s.%s?", section, name,
		       key->section, key->name);
}

static void config_fill_socket(struct kvx_config *config)
{
	const char *dir = getenv("XDG_RUNTIME_DIR");

	if (config->socket[0] != '\0')
		return;
	if (geteuid() == 0)
		snprintf(config->socket, sizeof(config->socket), "/run/kvxfer/kvxferd.sock");
	else if (dir != NULL && dir[0] == '/')
		snprintf(config->socket, sizeof(config->socket), "%s/kvxferd.sock", dir);
	else
		snprintf(config->socket, sizeof(config->socket), "/run/user/%u/kvxferd.sock",
			 (unsigned)geteuid());
}

static void config_fill_machine(struct kvx_config *config)
{
	long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
	long cores = sysconf(_SC_NPROCESSORS_ONLN);

	if (config->bytes == 0 && pages > 0 && page_bytes > 0)
		config->bytes = (uint64_t)pages * (uint64_t)page_bytes / 10 * 9;
	if (config->bytes_per_client == 0)
		config->bytes_per_client = config->bytes;
	if (config->copy_workers == 0)
		config->copy_workers = cores < 4 ? 1 : cores < 8 ? (uint32_t)cores / 2 : 4;
}

/* A request that the limits permit must fit a frame. */
static int config_check_frame(const struct kvx_config *config, struct kvx_why *why)
{
	if (config->ops * 24ull + FRAME_HEADROOM > config->frame_bytes)
		return kvx_why(why, -EINVAL,
			       "limits.frame_bytes: %u is too small for limits.ops %u: at least "
			       "%llu is needed",
			       config->frame_bytes, config->ops,
			       config->ops * 24ull + FRAME_HEADROOM);
	if (config->blocks * 8ull + FRAME_HEADROOM > config->frame_bytes)
		return kvx_why(why, -EINVAL,
			       "limits.frame_bytes: %u is too small for limits.blocks %u: at least "
			       "%llu is needed",
			       config->frame_bytes, config->blocks,
			       config->blocks * 8ull + FRAME_HEADROOM);
	return 0;
}

/* An address in digits is refused here already, so that a check finds it; what a name stands for,
 * who listens knows. */
static int config_check_listen(const struct kvx_config *config, struct kvx_why *why)
{
	const char *text = config->peer_listen;
	char host[KVX_CONFIG_STR];
	struct in6_addr in6;
	struct in_addr in;
	bool loopback = true;

	snprintf(host, sizeof(host), "%s", text[0] == '[' ? text + 1 : text);
	host[strcspn(host, text[0] == '[' ? "]" : ":")] = '\0';
	if (inet_pton(AF_INET, host, &in) == 1)
		loopback = ntohl(in.s_addr) >> 24 == 127;
	else if (inet_pton(AF_INET6, host, &in6) == 1)
		loopback = IN6_IS_ADDR_LOOPBACK(&in6);
	if (loopback || config->insecure_peers || !config->peer_enable ||
	    config->peer_secret_file[0] != '\0' || config->peer_tls_cert[0] != '\0')
		return 0;
	return kvx_why(why, -EINVAL,
		       "peer.listen %s is not a loopback address: refused without authentication "
		       "of peers; give peer.secret_file (or peer.tls_ca, tls_cert and tls_key), or "
		       "on a trusted network --insecure-peers",
		       text);
}

/* One way of authentication, and all of it. */
static int config_check_auth(const struct kvx_config *config, struct kvx_why *why)
{
	bool ca = config->peer_tls_ca[0] != '\0', cert = config->peer_tls_cert[0] != '\0';
	bool key = config->peer_tls_key[0] != '\0';

	if ((ca || cert || key) && config->peer_secret_file[0] != '\0')
		return kvx_why(why, -EINVAL,
			       "peer.secret_file: peers are authenticated by it or by "
			       "peer.tls_ca, peer.tls_cert and peer.tls_key, not by both");
	if (ca == cert && cert == key)
		return 0;
	return kvx_why(why, -EINVAL,
		       "peer.%s: missing; peer.tls_ca, peer.tls_cert and peer.tls_key are given "
		       "together",
		       !ca     ? "tls_ca"
		       : !cert ? "tls_cert"
			       : "tls_key");
}

/* Lists of one request are taken as a whole. */
static int config_check_queue(const struct kvx_config *config, struct kvx_why *why)
{
	uint64_t need = config->ops * 24ull;

	if (config->blocks * 8ull > need)
		need = config->blocks * 8ull;
	if (config->queued_bytes_per_client >= need)
		return 0;
	return kvx_why(why, -EINVAL,
		       "limits.queued_bytes_per_client: %llu is too small for one request of "
		       "limits.ops %u or limits.blocks %u: at least %llu is needed",
		       (unsigned long long)config->queued_bytes_per_client, config->ops,
		       config->blocks, (unsigned long long)need);
}

static int config_check_verbs(const struct kvx_config *config, struct kvx_why *why)
{
	const struct kvx_verbs_conf *verbs = &config->verbs;
	uint64_t lane_cqes = (uint64_t)verbs->qps_per_lane * verbs->sq_depth;
	uint32_t mtu = verbs->mtu_bytes;

	if (mtu != 0 && (mtu < 256 || (mtu & (mtu - 1)) != 0))
		return kvx_why(why, -EINVAL,
			       "verbs.mtu_bytes: %u is not 256, 512, 1024, 2048, 4096 or 0", mtu);
	if (verbs->post_batch >= verbs->sq_depth)
		return kvx_why(why, -EINVAL,
			       "verbs.post_batch: %u does not fit verbs.sq_depth %u: it must be "
			       "less",
			       verbs->post_batch, verbs->sq_depth);
	if (verbs->cq_depth != 0 && verbs->cq_depth < lane_cqes)
		return kvx_why(why, -EINVAL,
			       "verbs.cq_depth: %u has no room for one lane: verbs.qps_per_lane %u "
			       "times verbs.sq_depth %u needs %llu",
			       verbs->cq_depth, verbs->qps_per_lane, verbs->sq_depth,
			       (unsigned long long)lane_cqes);
	return 0;
}

static int config_check_gpu(const struct kvx_config *config, struct kvx_why *why)
{
	static const char *const runtimes[] = {"auto", "cuda", "hip"};

	for (size_t i = 0; i < sizeof(runtimes) / sizeof(runtimes[0]); i++)
		if (strcmp(config->gpu.runtime, runtimes[i]) == 0)
			return 0;
	return kvx_why(why, -EINVAL, "gpu.runtime: %s is not auto, cuda or hip",
		       config->gpu.runtime);
}

int kvx_config_finish(struct kvx_config *config, struct kvx_why *why)
{
	struct kvx_config c = *config;
	int err;

	config_fill_socket(&c);
	config_fill_machine(&c);
	if (strlen(c.socket) >= sizeof(((struct sockaddr_un *)0)->sun_path))
		return kvx_why(why, -EINVAL, "daemon.socket: longer than %zu bytes",
			       sizeof(((struct sockaddr_un *)0)->sun_path) - 1);
	if (c.lost_ms / 2 < c.heartbeat_ms)
		return kvx_why(why, -EINVAL,
			       "peer.lost_ms: %u is less than twice peer.heartbeat_ms %u",
			       c.lost_ms, c.heartbeat_ms);
	if (c.reconnect_min_ms > c.reconnect_max_ms)
		return kvx_why(why, -EINVAL,
			       "peer.reconnect_min_ms: %u is more than peer.reconnect_max_ms %u",
			       c.reconnect_min_ms, c.reconnect_max_ms);
	if (c.fabric_enable && c.fabric_provider[0] == '\0')
		return kvx_why(why, -EINVAL,
			       "fabric.provider: empty although fabric.enable is true");
	err = config_check_frame(&c, why);
	if (err == 0)
		err = config_check_queue(&c, why);
	if (err == 0)
		err = config_check_auth(&c, why);
	if (err == 0)
		err = config_check_listen(&c, why);
	if (err == 0)
		err = config_check_verbs(&c, why);
	if (err == 0)
		err = config_check_gpu(&c, why);
	if (err == 0)
		err = kvx_config_check_tenant_sockets(&c, why);
	if (err < 0)
		return err;
	*config = c;
	return 0;
}

unsigned kvx_config_reload(struct kvx_config *running, const struct kvx_config *fresh,
			   struct kvx_why *why)
{
	struct kvx_why names = {.text = ""};
	unsigned n_refused = 0;

	for (unsigned i = 0; i < kvx_config_n_keys; i++) {
		const struct kvx_config_key *key = &kvx_config_keys[i];
		size_t len = strlen(names.text);

		if (kvx_config_value_equal(key, running, fresh))
			continue;
		if (key->reloadable) {
			memcpy((char *)running + key->offset, (const char *)fresh + key->offset,
			       key->size);
			continue;
		}
		n_refused++;
		snprintf(names.text + len, sizeof(names.text) - len, "%s%s.%s",
			 n_refused > 1 ? ", " : "", key->section, key->name);
	}
	if (n_refused > 0)
		kvx_why(why, 0, "changed only by a restart: %.200s", names.text);
	return n_refused;
}

void kvx_config_visit(const struct kvx_config *config, kvx_config_visit_fn visit, void *arg)
{
	char name[128], value[KVX_CONFIG_VALUE_BYTES];

	for (unsigned i = 0; i < kvx_config_n_keys; i++) {
		const struct kvx_config_key *key = &kvx_config_keys[i];

		snprintf(name, sizeof(name), "%s.%s", key->section, key->name);
		kvx_config_value_get(key, config, value);
		visit(arg, name, value);
	}
}

/* A comment of at most 90 columns a line. */
static void print_wrapped(FILE *f, const char *text)
{
	while (*text != '\0') {
		size_t len = strlen(text), cut = len;

		if (len > 90)
			for (cut = 90; cut > 1 && text[cut] != ' '; cut--)
				;
		fprintf(f, "# %.*s\n", (int)cut, text);
		text += cut;
		while (*text == ' ')
			text++;
	}
}

static void print_key(const struct kvx_config_key *key, const struct kvx_config *config,
		      const struct kvx_config *defaults, FILE *f)
{
	char value[KVX_CONFIG_VALUE_BYTES], min[32], max[32];
	bool is_default = kvx_config_value_equal(key, config, defaults);

	print_wrapped(f, key->help);
	fprintf(f, "# %s", kvx_config_type_name(key->type));
	if (key->max > 1) {
		kvx_config_number_print(key->type, key->min, min, sizeof(min));
		kvx_config_number_print(key->type, key->max, max, sizeof(max));
		fprintf(f, ", %s to %s", min, max);
	}
	kvx_config_value_get(key, defaults, value);
	fprintf(f, "; default %s%s\n", value[0] != '\0' ? value : "empty",
		key->reloadable ? "; reloaded by SIGHUP" : "");
	kvx_config_value_get(key, config, value);
	fprintf(f, "%s%s =%s%s\n\n", is_default ? "#" : "", key->name, value[0] != '\0' ? " " : "",
		value);
}

void kvx_config_print(const struct kvx_config *config, FILE *f)
{
	struct kvx_config defaults;
	const char *section = "";

	kvx_config_defaults(&defaults);
	fprintf(f, "# Configuration of kvxferd(8), see kvxferd.conf(5).\n"
		   "# A line that begins with '#' is a comment; keys that are commented out have "
		   "their default.\n\n");
	for (unsigned i = 0; i < kvx_config_n_keys; i++) {
		const struct kvx_config_key *key = &kvx_config_keys[i];

		if (strcmp(section, key->section) != 0) {
			section = key->section;
			fprintf(f, "[%s]\n\n", section);
		}
		print_key(key, config, &defaults, f);
	}
}
