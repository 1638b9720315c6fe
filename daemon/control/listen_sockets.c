/* See listen_sockets.h. A socket decides which tenant its clients are of, so that one whose tenant
 * is in doubt is refused. Blocking calls on local files; nothing is accepted here. */
#include "control/listen_sockets.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define UNIT_NAME "kvxferd.socket"

static void socket_read_path(struct kvx_listen_socket *s)
{
	struct sockaddr_un addr;
	socklen_t len = sizeof(addr);

	memset(&addr, 0, sizeof(addr));
	if (getsockname(s->fd, (struct sockaddr *)&addr, &len) < 0 ||
	    len <= offsetof(struct sockaddr_un, sun_path))
		return;
	if (addr.sun_path[0] == '\0')
		addr.sun_path[0] = '@';
	snprintf(s->path, sizeof(s->path), "%.*s",
		 (int)(len - offsetof(struct sockaddr_un, sun_path)), addr.sun_path);
}

/* systemd gives a socket without FileDescriptorName= the name of its unit, and says "unknown" where
 * there is none. */
static bool name_is_default(const struct kvx_control *control, const char *name)
{
	size_t len = strlen(name);

	if (len == 0 || strcmp(name, "unknown") == 0 || strcmp(name, UNIT_NAME) == 0)
		return true;
	return control->n_tenants == 1 && len > 7 && strcmp(name + len - 7, ".socket") == 0;
}

static int name_to_tenant(const struct kvx_control *control, const char *name, uint32_t *out_tenant,
			  struct kvx_why *why)
{
	for (uint32_t i = 0; i < control->n_tenants; i++) {
		if (strcmp(control->tenants[i].name, name) == 0) {
			*out_tenant = i;
			return 0;
		}
	}
	if (!name_is_default(control, name))
		return kvx_why(why, -EINVAL,
			       "the socket handed over as '%.40s' is of no tenant: set "
			       "FileDescriptorName= in its unit to one of daemon.tenants, or to "
			       "default",
			       name);
	*out_tenant = 0;
	return 0;
}

static int socket_bind(const struct kvx_control *control, uint32_t tenant,
		       struct kvx_listen_socket *out, struct kvx_why *why)
{
	const struct kvx_config *config = control->conf.config;
	const struct kvx_config_tenant *t = &control->tenants[tenant];
	struct kvx_socket_conf conf = {
	    .path = t->socket,
	    .mode = config->socket_mode,
	    .group = config->socket_group,
	    .make_dir = tenant == 0 && control->conf.make_dir,
	};
	int err;

	if (t->socket[0] == '\0')
		return kvx_why(why, -EINVAL,
			       "daemon.tenants: tenant %s has no path, and no socket was handed "
			       "over with FileDescriptorName=%s: write %s=SOCKET",
			       t->name, t->name, t->name);
	memset(out, 0, sizeof(*out));
	err = kvx_socket_open(&conf, &out->sock, why);
	if (err < 0)
		return err;
	out->fd = out->sock.fd;
	out->tenant = tenant;
	snprintf(out->path, sizeof(out->path), "%s", t->socket);
	return 0;
}

int kvx_listen_sockets_open(const struct kvx_control *control,
			    struct kvx_listen_socket *out_sockets, struct kvx_why *why)
{
	const struct kvx_control_conf *conf = &control->conf;
	bool has_one[KVX_MAX_TENANTS] = {false};
	unsigned n = 0;
	int err = 0;

	for (; n < conf->n_listen_fds && n < KVX_LISTEN_FDS; n++) {
		struct kvx_listen_socket *s = &out_sockets[n];

		*s = (struct kvx_listen_socket){.fd = conf->listen_fds[n].fd, .handed_over = true};
		socket_read_path(s);
		if (err == 0)
			err = name_to_tenant(control, conf->listen_fds[n].name, &s->tenant, why);
		if (err == 0)
			has_one[s->tenant] = true;
	}
	for (uint32_t t = 0; err == 0 && t < control->n_tenants; t++) {
		if (has_one[t])
			continue;
		err = socket_bind(control, t, &out_sockets[n], why);
		if (err == 0)
			n++;
	}
	if (err == 0)
		return (int)n;
	kvx_listen_sockets_close(out_sockets, n);
	return err;
}

void kvx_listen_sockets_close(struct kvx_listen_socket *sockets, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		if (sockets[i].handed_over)
			close(sockets[i].fd);
		else
			kvx_socket_close(&sockets[i].sock, sockets[i].path);
	}
}
