/* Control: the front of the daemon. Owns the listening socket, the connections and the clients
 * behind them; turns their frames into calls on node and peers, and what those report into replies
 * and events. The only daemon code that sees the client protobuf. Loop thread. */
#ifndef KVX_CONTROL_H
#define KVX_CONTROL_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/roles.h"
#include "config.h"
#include "xfer/node.h"
#include "xfer/peer.h"

struct kvx_control;

/* A listening socket of the service manager. */
#define KVX_LISTEN_FDS        16
#define KVX_LISTEN_NAME_BYTES 64
struct kvx_listen_fd {
	int fd;
	char name[KVX_LISTEN_NAME_BYTES]; /* FileDescriptorName=: the tenant; "": none */
};

struct kvx_control_conf {
	uv_loop_t *loop;
	struct kvx_timers *timers;
	struct kvx_node *node;
	struct kvx_peers *peers;         /* NULL: no peers */
	const struct kvx_config *config; /* the running one: limits are read when they are needed,
					    so that a reload holds for what comes after */
	uint8_t node_id[KVX_NODE_ID_BYTES];
	uint64_t epoch;
	const char *version;
	const struct kvx_listen_fd *listen_fds; /* at most KVX_LISTEN_FDS; taken over, also on
						   failure */
	unsigned n_listen_fds; /* a tenant that has none of them gets a socket of its own */
	bool make_dir;         /* create the socket's directory when it is missing */
	void *arg;
	void (*on_draining)(void *arg, bool draining); /* an admin asked; after the change */
};

/* -EADDRINUSE: another daemon has the socket; -EACCES, -ENOENT, -ENAMETOOLONG, -EEXIST (something
 * else lies there), -EINVAL (a tenant without a socket), -ENOMEM; all said in *why. */
int kvx_control_open(const struct kvx_control_conf *conf, struct kvx_control **out_control,
		     struct kvx_why *why) KVX_ON_LOOP;
/* Takes no more connections, tells every client that the daemon stops, fences and closes each, then
 * removes the socket and frees; closed runs once when all is gone. */
void kvx_control_close(struct kvx_control *control, void (*closed)(void *arg),
		       void *arg) KVX_ON_LOOP;

/* Finishes what callbacks have left: ends of clients, frames to be sent. Called once per loop turn,
 * before the loop sleeps. */
void kvx_control_settle(struct kvx_control *control) KVX_ON_LOOP;

/* draining: new transfers are refused with DRAINING and every client is told once. */
void kvx_control_set_draining(struct kvx_control *control, bool draining) KVX_ON_LOOP;
bool kvx_control_is_draining(const struct kvx_control *control) KVX_ON_LOOP;
unsigned kvx_control_clients(const struct kvx_control *control) KVX_ON_LOOP;
/* Where it listens for the default tenant, for people. */
const char *kvx_control_socket(const struct kvx_control *control) KVX_ON_LOOP;

/* News of transfers and peers; see xfer.h, peer.h. None of them ends a client
 * before it returns. */
void kvx_control_on_terminal(struct kvx_control *control,
			     const struct kvx_xfer_end *end) KVX_ON_LOOP;
void kvx_control_on_arrival(struct kvx_control *control,
			    const struct kvx_arrival *arrival) KVX_ON_LOOP;
void kvx_control_on_region_lost(struct kvx_control *control, const struct kvx_region *region,
				int status, const char *text) KVX_ON_LOOP;
/* 0, -EPIPE (the owner is gone), -EDQUOT (it does not read its events). */
int kvx_control_on_message(struct kvx_control *control, struct kvx_region *region, const void *data,
			   uint32_t len) KVX_ON_LOOP;

#endif
