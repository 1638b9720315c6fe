/* The daemon: builds its parts bottom-up (timers, node, peers, control), joins them, closes them
 * top-down. One per process, on the loop thread. */
#ifndef KVX_DAEMON_H
#define KVX_DAEMON_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/roles.h"
#include "config.h"
#include "control/control.h"
#include "xfer/desc.h"

struct kvx_daemon;

struct kvx_daemon_conf {
	uv_loop_t *loop;
	const struct kvx_config *config; /* finished; copied */
	bool make_socket_dir;            /* the socket's place is the default one */
	bool any_peer_port;              /* the peer address is the default one: when its port is
					    taken, another will do */
	const uint8_t *node_id;          /* NULL: from the configured file */
	const struct kvx_listen_fd *listen_fds;
	unsigned n_listen_fds;
	void (*closed)(void *arg); /* everything is gone: the loop ends */
	void *arg;
};

/* -EADDRINUSE: another daemon has the socket or the peer port; else -errno; all said in *why.
 * Nothing is left behind on failure. */
int kvx_daemon_open(const struct kvx_daemon_conf *conf, struct kvx_daemon **out_daemon,
		    struct kvx_why *why) KVX_ON_LOOP;
/* First call: no new transfers; waits for the running ones as long as the configuration says, then
 * cancels them; closes everything. Second call: does not wait. Ends in conf->closed. */
void kvx_daemon_stop(struct kvx_daemon *daemon) KVX_ON_LOOP;
/* Takes over what may change while running. */
void kvx_daemon_reload(struct kvx_daemon *daemon, const struct kvx_config *fresh) KVX_ON_LOOP;

#endif
