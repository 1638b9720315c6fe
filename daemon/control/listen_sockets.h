/* The listening sockets of all tenants: those that the service manager handed over, and one of the
 * daemon's own for each tenant that was handed none. Loop thread, start and end of the daemon. */
#ifndef KVX_LISTEN_SOCKETS_H
#define KVX_LISTEN_SOCKETS_H

#include "control/control_priv.h"
#include "control/socket_path.h"

#define KVX_LISTEN_SOCKETS (KVX_LISTEN_FDS + KVX_MAX_TENANTS)

struct kvx_listen_socket {
	int fd;
	uint32_t tenant;
	bool handed_over;
	struct kvx_socket sock;    /* not handed over */
	char path[KVX_CONFIG_STR]; /* for people; "": it has no name */
};

/* Fills out_sockets (KVX_LISTEN_SOCKETS) and returns how many; takes what was handed over, also on
 * failure. -EINVAL: a socket that was handed over names no tenant, or a tenant without a path was
 * handed none; else as kvx_socket_open(). */
int kvx_listen_sockets_open(const struct kvx_control *control,
			    struct kvx_listen_socket *out_sockets, struct kvx_why *why) KVX_ON_LOOP;
void kvx_listen_sockets_close(struct kvx_listen_socket *sockets, unsigned n) KVX_ON_LOOP;

#endif
