/* The daemon's way up: builds the parts bottom-up and joins them. What one part tells another
 * passes through the trampolines here; no part knows those above it. On the loop, once; what fails
 * half-way is taken down again before it returns. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/log.h"
#include "daemon_priv.h"
#include "node_id.h"
#include "service.h"

#define MAX_COPY_WORKERS 8u

/* ---- what the parts tell each other */

static void daemon_on_terminal(void *arg, const struct kvx_xfer_end *end)
{
	struct kvx_daemon *daemon = arg;

	kvx_assert_on_loop();
	kvx_control_on_terminal(daemon->control, end);
}

static void daemon_on_arrival(void *arg, const struct kvx_arrival *arrival)
{
	struct kvx_daemon *daemon = arg;

	kvx_assert_on_loop();
	if (daemon->control != NULL)
		kvx_control_on_arrival(daemon->control, arrival);
}

static int daemon_on_message(void *arg, struct kvx_region *region, const void *data, uint32_t len)
{
	struct kvx_daemon *daemon = arg;

	kvx_assert_on_loop();
	if (daemon->control == NULL)
		return -EPIPE;
	return kvx_control_on_message(daemon->control, region, data, len);
}

static void daemon_on_draining(void *arg, bool draining)
{
	kvx_service_status(draining ? "draining: no new transfers" : "running");
}

static void daemon_ring(void *arg) /* any thread */
{
	struct kvx_daemon *daemon = arg;

	atomic_thread_fence(memory_order_seq_cst); /* after what is rung for was published */
	if (atomic_exchange(&daemon->asleep, false))
		uv_async_send(&daemon->doorbell);
}

void kvx_daemon_region_limits(const struct kvx_config *config, struct kvx_region_limits *out)
{
	*out = (struct kvx_region_limits){
	    .max_regions = config->regions,
	    .max_regions_per_client = config->regions_per_client,
	    .max_bytes = config->bytes,
	    .max_bytes_per_client = config->bytes_per_client,
	};
}

/* ---- the beginning, bottom-up */

/* The host part of "host:port" or "[host]:port". */
static void address_host(const char *address, char out[KVX_CONFIG_STR])
{
	char *colon;

	snprintf(out, KVX_CONFIG_STR, "%s", address[0] == '[' ? address + 1 : address);
	colon = strrchr(out, ':');
	if (colon == NULL)
		return;
	*colon = '\0';
	if (colon > out && colon[-1] == ']')
		colon[-1] = '\0';
}

/* Endpoints of the fabric tell their address to other nodes: it must be one of this node, so that
 * for "all addresses" the advertised one is taken. */
static void daemon_find_host(struct kvx_daemon *daemon)
{
	const struct kvx_config *config = &daemon->config;

	address_host(config->peer_listen, daemon->peer_host);
	if (config->peer_advertise[0] != '\0' &&
	    (strcmp(daemon->peer_host, "0.0.0.0") == 0 || strcmp(daemon->peer_host, "::") == 0))
		address_host(config->peer_advertise, daemon->peer_host);
}

static KVX_ON_LOOP int daemon_open_node(struct kvx_daemon *daemon, struct kvx_why *why)
{
	const struct kvx_config *config = &daemon->config;
	struct kvx_node_conf conf = {
	    .epoch = daemon->epoch,
	    .timers = daemon->timers,
	    .threaded = true,
	    .doorbell = daemon_ring,
	    .doorbell_arg = daemon,
	    .copy_workers = config->copy_workers,
	    .copy_inline_max_bytes = config->copy_inline_max_bytes,
	    .fabric = config->peer_enable && config->fabric_enable,
	    .spin_us = config->spin_us,
	    .quantum_bytes = config->quantum_bytes,
	    .n_batches = config->batches,
	};

	daemon_find_host(daemon);
	memcpy(conf.node_id, daemon->node_id, sizeof(conf.node_id));
	if (conf.copy_workers > MAX_COPY_WORKERS)
		conf.copy_workers = MAX_COPY_WORKERS;
	conf.dom = (struct kvx_dom_conf){
	    .bind_host = daemon->peer_host,
	    .provider = config->fabric_provider,
	    .copy_nt_min_bytes = config->copy_nt_min_bytes,
	    .fabric_message_bytes = config->fabric_message_bytes,
	    .fabric_queue = config->fabric_queue,
	    .fabric_rma_min_bytes = config->fabric_rma_min_bytes,
	    .mem_kinds = 1u << KVX_MEM_HOST,
	};
	kvx_daemon_region_limits(config, &conf.region_limits);
	conf.xfers = (struct kvx_xfers_conf){
	    .max_xfers = UINT32_MAX, /* control checks the limit: it is reloadable */
	    .default_deadline_ns = config->deadline_ms * KVX_MS,
	    .fence_bound_ns = config->fence_bound_ms * KVX_MS,
	    .history = config->history,
	    .arg = daemon,
	    .on_terminal = daemon_on_terminal,
	    .on_arrival = daemon_on_arrival,
	};
	return kvx_node_open(&conf, &daemon->node, why);
}

static KVX_ON_LOOP int daemon_listen_peers(struct kvx_daemon *daemon, const char *address,
					   struct kvx_why *why)
{
	const struct kvx_config *config = &daemon->config;
	struct kvx_peers_conf conf = {
	    .loop = daemon->conf.loop,
	    .timers = daemon->timers,
	    .node = daemon->node,
	    .epoch = daemon->epoch,
	    .listen = address,
	    .advertise = config->peer_advertise,
	    .insecure = config->insecure_peers,
	    .version = KVX_VERSION,
	    .heartbeat_ms = config->heartbeat_ms,
	    .lost_ms = config->lost_ms,
	    .reconnect_min_ms = config->reconnect_min_ms,
	    .reconnect_max_ms = config->reconnect_max_ms,
	    .fence_bound_ms = config->fence_bound_ms,
	    .max_peers = config->peers,
	    .max_frame_bytes = config->frame_bytes,
	    .quantum_bytes = config->quantum_bytes,
	    .arg = daemon,
	    .on_arrival = daemon_on_arrival,
	    .on_message = daemon_on_message,
	};

	memcpy(conf.node_id, daemon->node_id, sizeof(conf.node_id));
	return kvx_peers_open(&conf, &daemon->peers, why);
}

static KVX_ON_LOOP int daemon_open_peers(struct kvx_daemon *daemon, struct kvx_why *why)
{
	const char *address = daemon->config.peer_listen;
	char any[KVX_CONFIG_STR];
	const char *colon = strrchr(address, ':');
	int err;

	if (!daemon->config.peer_enable)
		return 0;
	err = daemon_listen_peers(daemon, address, why);
	if (err == -EADDRINUSE && daemon->conf.any_peer_port && colon != NULL) {
		snprintf(any, sizeof(any), "%.*s:0", (int)(colon - address), address);
		kvx_info("daemon: the default peer port is taken (%s): using another one",
			 why->text);
		err = daemon_listen_peers(daemon, any, why);
	}
	if (err == 0)
		kvx_info("daemon: peers at %s", kvx_peers_address(daemon->peers));
	return err;
}

static KVX_ON_LOOP int daemon_open_control(struct kvx_daemon *daemon, struct kvx_why *why)
{
	struct kvx_control_conf conf = {
	    .loop = daemon->conf.loop,
	    .timers = daemon->timers,
	    .node = daemon->node,
	    .peers = daemon->peers,
	    .config = &daemon->config,
	    .epoch = daemon->epoch,
	    .version = KVX_VERSION,
	    .listen_fds = daemon->conf.listen_fds,
	    .n_listen_fds = daemon->conf.n_listen_fds,
	    .make_dir = daemon->conf.make_socket_dir,
	    .arg = daemon,
	    .on_draining = daemon_on_draining,
	};

	memcpy(conf.node_id, daemon->node_id, sizeof(conf.node_id));
	return kvx_control_open(&conf, &daemon->control, why);
}

static void daemon_name(struct kvx_daemon *daemon)
{
	char text[33];

	daemon->node_id_fd = -1;
	if (daemon->conf.node_id != NULL)
		memcpy(daemon->node_id, daemon->conf.node_id, sizeof(daemon->node_id));
	else
		kvx_node_id_get(daemon->config.node_id_file, daemon->node_id, &daemon->node_id_fd);
	daemon->epoch = kvx_node_epoch();
	kvx_node_id_format(daemon->node_id, text);
	kvx_info("daemon: kvxferd %s, node %s, pid %d", KVX_VERSION, text, (int)getpid());
}

static void daemon_on_unwound(void *arg)
{
}

/* A start that failed half-way: what is there goes the usual way down, within this call. */
static KVX_ON_LOOP void daemon_unwind(struct kvx_daemon *daemon)
{
	uv_loop_t *loop = daemon->conf.loop;

	daemon->state = KVX_DAEMON_CLOSING;
	daemon->conf.closed = daemon_on_unwound;
	kvx_daemon_close_peers(daemon);
	uv_run(loop, UV_RUN_DEFAULT);
}

static void daemon_open_handles(struct kvx_daemon *daemon)
{
	int err;

	err = uv_async_init(daemon->conf.loop, &daemon->doorbell, kvx_daemon_on_doorbell);
	kvx_assert(err == 0); /* the loop's own descriptors exist already */
	uv_prepare_init(daemon->conf.loop, &daemon->prepare);
	uv_check_init(daemon->conf.loop, &daemon->check);
	uv_timer_init(daemon->conf.loop, &daemon->clock);
	uv_prepare_start(&daemon->prepare, kvx_daemon_on_prepare);
	uv_check_start(&daemon->check, kvx_daemon_on_check);
	daemon->doorbell.data = daemon;
	daemon->prepare.data = daemon;
	daemon->check.data = daemon;
	daemon->clock.data = daemon;
	daemon->n_handles = 4;
}

int kvx_daemon_open(const struct kvx_daemon_conf *conf, struct kvx_daemon **out_daemon,
		    struct kvx_why *why)
{
	struct kvx_daemon *daemon = calloc(1, sizeof(*daemon));
	int err;

	if (daemon == NULL)
		return -ENOMEM;
	daemon->magic = KVX_DAEMON_MAGIC;
	daemon->conf = *conf;
	daemon->config = *conf->config;
	daemon->armed_ns = UINT64_MAX;
	err = kvx_timers_create(NULL, NULL, &daemon->timers);
	if (err < 0) {
		free(daemon);
		return err;
	}
	daemon_name(daemon);
	daemon_open_handles(daemon);
	err = daemon_open_node(daemon, why);
	if (err < 0)
		goto err_unwind;
	err = daemon_open_peers(daemon, why);
	if (err < 0)
		goto err_unwind;
	err = daemon_open_control(daemon, why);
	if (err < 0)
		goto err_unwind;
	daemon->watchdog_ns = kvx_service_watchdog_ns();
	if (daemon->watchdog_ns > 0)
		kvx_daemon_on_watchdog(&daemon->watchdog);
	kvx_service_ready("running");
	*out_daemon = daemon;
	return 0;

err_unwind:
	daemon_unwind(daemon);
	return err;
}
