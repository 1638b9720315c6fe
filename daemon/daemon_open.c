/* The daemon's way up: builds the parts bottom-up and joins them. What one part tells another
 * passes through the trampolines here; no part knows those above it. On the loop, once; what fails
 * half-way is taken down again before it returns. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
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

static void daemon_on_region_lost(void *arg, struct kvx_region *region, int status,
				  const char *text)
{
	struct kvx_daemon *daemon = arg;

	kvx_assert_on_loop();
	if (daemon->control != NULL)
		kvx_control_on_region_lost(daemon->control, region, status, text);
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
	    .max_gpu_bytes = config->gpu_bytes != 0 ? config->gpu_bytes : UINT64_MAX,
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

static_assert((int)KVX_CONFIG_TRANSPORTS <= (int)KVX_NODE_TRANSPORTS, "they are all handed on");

static void daemon_find_transports(const struct kvx_config *config, struct kvx_node_conf *conf)
{
	char names[KVX_CONFIG_TRANSPORTS][KVX_CONFIG_TRANSPORT_BYTES];
	unsigned n_names = config->peer_enable ? kvx_config_transports(config, names) : 0;
	unsigned n = 0;

	for (unsigned i = 0; i < n_names; i++) {
		conf->peer_ops[n] = kvx_transport_find(names[i]);
		if (conf->peer_ops[n] != NULL)
			n++;
		else
			kvx_warn("daemon: this kvxferd was built without the transport %s",
				 names[i]);
	}
}

static bool may_lock_memory(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	return syscall(SYS_capget, &header, data) == 0 &&
	       (data[0].effective & (1u << CAP_IPC_LOCK)) != 0;
}

/* Devices read and write memory that is locked: better to say at the start that there will not be
 * enough of it than when an engine registers its memory. */
static KVX_ON_LOOP void daemon_check_memlock(const struct kvx_daemon *daemon)
{
	struct rlimit limit;
	unsigned n, i = 0;
	const struct kvx_node_rail *rails = kvx_node_rails(daemon->node, &n);

	while (i < n && (rails[i].worker == NULL || rails[i].rail.link == KVX_RAIL_LINK_NONE))
		i++;
	if (i == n || getrlimit(RLIMIT_MEMLOCK, &limit) < 0 || may_lock_memory() ||
	    limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= daemon->config.bytes)
		return;
	kvx_warn("daemon: %" PRIu64 " KiB of memory may be locked, but limits.bytes lets clients "
		 "register %" PRIu64 " MiB: registrations for %s will fail beyond it; set "
		 "LimitMEMLOCK=infinity in the service unit, or 'ulimit -l unlimited' before the "
		 "daemon is started",
		 (uint64_t)limit.rlim_cur >> 10, daemon->config.bytes >> 20, rails[i].ops->name);
}

static KVX_ON_LOOP int daemon_open_node(struct kvx_daemon *daemon, struct kvx_why *why)
{
	const struct kvx_config *config = &daemon->config;
	int err;
	struct kvx_node_conf conf = {
	    .epoch = daemon->epoch,
	    .timers = daemon->timers,
	    .threaded = true,
	    .doorbell = daemon_ring,
	    .doorbell_arg = daemon,
	    .copy_workers = config->copy_workers,
	    .copy_inline_max_bytes = config->copy_inline_max_bytes,
	    .spin_us = config->spin_us,
	    .device_spin_us = config->verbs_spin_us,
	    .quantum_bytes = config->quantum_bytes,
	    .n_batches = config->batches,
	    .gpu_ops = config->gpu_enable ? kvx_transport_find("gpu") : NULL,
	    .gpu_spin_us = config->gpu_spin_us,
	    .gpu_pin_host = config->gpu_pin_host,
	    .region_arg = daemon,
	    .region_lost = daemon_on_region_lost,
	};

	daemon_find_host(daemon);
	daemon_find_transports(config, &conf);
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
	    .verbs = config->verbs,
	    .gpu = config->gpu,
	    .mem_kinds = 1u << KVX_MEM_HOST,
	};
	kvx_daemon_region_limits(config, &conf.region_limits);
	conf.xfers = (struct kvx_xfers_conf){
	    .max_xfers = UINT32_MAX, /* control checks the limit: it is reloadable */
	    .default_deadline_ns = config->deadline_ms * KVX_MS,
	    .fence_bound_ns = config->fence_bound_ms * KVX_MS,
	    .lane_retries = config->lane_retries,
	    .history = config->history,
	    .arg = daemon,
	    .on_terminal = daemon_on_terminal,
	    .on_arrival = daemon_on_arrival,
	};
	err = kvx_node_open(&conf, &daemon->node, why);
	if (err == 0)
		daemon_check_memlock(daemon);
	return err;
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
	    .auth = {.secret_file = config->peer_secret_file,
		     .tls_ca = config->peer_tls_ca,
		     .tls_cert = config->peer_tls_cert,
		     .tls_key = config->peer_tls_key},
	    .version = KVX_VERSION,
	    .heartbeat_ms = config->heartbeat_ms,
	    .lost_ms = config->lost_ms,
	    .reconnect_min_ms = config->reconnect_min_ms,
	    .reconnect_max_ms = config->reconnect_max_ms,
	    .fence_bound_ms = config->fence_bound_ms,
	    .max_peers = config->peers,
	    .max_frame_bytes = config->frame_bytes,
	    .quantum_bytes = config->quantum_bytes,
	    .tenants = daemon->tenant_names,
	    .fallback = config->peer_fallback,
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

/* Who it is, and who its tenants are. */
static void daemon_name(struct kvx_daemon *daemon)
{
	char text[33];
	unsigned n;

	daemon->node_id_fd = -1;
	if (daemon->conf.node_id != NULL)
		memcpy(daemon->node_id, daemon->conf.node_id, sizeof(daemon->node_id));
	else
		kvx_node_id_get(daemon->config.node_id_file, daemon->node_id, &daemon->node_id_fd);
	daemon->epoch = kvx_node_epoch();
	n = kvx_config_tenants(&daemon->config, daemon->tenants);
	for (unsigned i = 0; i < n; i++)
		daemon->tenant_names[i] = daemon->tenants[i].name;
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
