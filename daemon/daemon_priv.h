/* Inside the daemon: its one struct, shared by the way up (daemon_open.c) and everything after it
 * (daemon.c). */
#ifndef KVX_DAEMON_PRIV_H
#define KVX_DAEMON_PRIV_H

#include <stdatomic.h>

#include "base/clock.h"
#include "base/timer.h"
#include "control/control.h"
#include "daemon.h"
#include "xfer/node.h"
#include "xfer/peer.h"

#define KVX_DAEMON_MAGIC 0x6b766461u /* "kvda" */

enum kvx_daemon_state { KVX_DAEMON_RUNNING, KVX_DAEMON_DRAINING, KVX_DAEMON_CLOSING };

struct kvx_daemon {
	uint32_t magic;
	struct kvx_daemon_conf conf;
	struct kvx_config config; /* the running one */
	enum kvx_daemon_state state;
	uint8_t node_id[KVX_NODE_ID_BYTES];
	int node_id_fd;
	uint64_t epoch;
	char peer_host[KVX_CONFIG_STR]; /* of the peer address, for the fabric */
	struct kvx_config_tenant tenants[KVX_MAX_TENANTS];
	const char *tenant_names[KVX_MAX_TENANTS + 1]; /* ended by NULL */
	uv_async_t doorbell;
	uv_prepare_t prepare;
	uv_check_t check;
	_Atomic bool asleep; /* the loop is about to wait or waits: workers must ring */
	uv_timer_t clock;    /* fires for the earliest of timers */
	uint64_t armed_ns;   /* what it is set to; UINT64_MAX: not */
	unsigned n_handles;
	struct kvx_timers *timers;
	struct kvx_node *node;
	struct kvx_peers *peers;
	struct kvx_control *control;
	struct kvx_timer stop_timer;
	struct kvx_timer watchdog;
	uint64_t watchdog_ns;
};

/* daemon.c: the loop's callbacks and the way down from any point of the way up */
void kvx_daemon_on_doorbell(uv_async_t *handle);
void kvx_daemon_on_prepare(uv_prepare_t *handle);
void kvx_daemon_on_check(uv_check_t *handle);
void kvx_daemon_on_watchdog(struct kvx_timer *timer);
void kvx_daemon_close_peers(struct kvx_daemon *daemon) KVX_ON_LOOP;
/* daemon_open.c */
void kvx_daemon_region_limits(const struct kvx_config *config, struct kvx_region_limits *out);

#endif
