/* The daemon while it runs and on its way down: owns the loop's callbacks, the one libuv timer
 * behind all timers, drain and stop, and the order in which everything ends. On the loop. */
#include "daemon.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/log.h"
#include "daemon_priv.h"
#include "service.h"

#define CLOSE_SLACK_NS (10 * KVX_SEC) /* beyond twice the fence bound: then it exits as it is */

/* ---- the loop */

static void daemon_begin_close(struct kvx_daemon *daemon);

static KVX_ON_LOOP void daemon_turn(struct kvx_daemon *daemon)
{
	if (daemon->node != NULL)
		kvx_node_drain(daemon->node);
	if (daemon->control != NULL)
		kvx_control_settle(daemon->control);
}

void kvx_daemon_on_doorbell(uv_async_t *handle)
{
	kvx_assert_on_loop();
	daemon_turn(handle->data);
}

static void daemon_on_clock(uv_timer_t *handle)
{
	struct kvx_daemon *daemon = handle->data;

	kvx_assert_on_loop();
	daemon->armed_ns = UINT64_MAX;
	kvx_timers_run(daemon->timers);
}

/* Sets the libuv timer to the earliest deadline. One that is set too early stays: it costs one
 * wake-up, setting it for every transfer would cost more. */
static void daemon_arm(struct kvx_daemon *daemon)
{
	uint64_t next = kvx_timers_next_ns(daemon->timers);
	uint64_t now;

	if (next == UINT64_MAX && daemon->armed_ns != UINT64_MAX) {
		uv_timer_stop(&daemon->clock);
		daemon->armed_ns = UINT64_MAX;
	}
	if (next >= daemon->armed_ns)
		return;
	now = kvx_now_ns();
	uv_timer_start(&daemon->clock, daemon_on_clock,
		       next > now ? (next - now + KVX_MS - 1) / KVX_MS : 0, 0);
	daemon->armed_ns = next;
}

/* Before the loop sleeps: nothing that could be done now is left. Workers ring only from the moment
 * in which asleep is set; what they finished before that is found by the turn after it. */
void kvx_daemon_on_prepare(uv_prepare_t *handle)
{
	struct kvx_daemon *daemon = handle->data;

	kvx_assert_on_loop();
	KVX_CHECK_MAGIC(daemon, KVX_DAEMON_MAGIC);
	daemon_turn(daemon);
	if (daemon->state == KVX_DAEMON_DRAINING &&
	    kvx_xfers_count(kvx_node_xfers(daemon->node)) == 0)
		daemon_begin_close(daemon);
	atomic_store(&daemon->asleep, true);
	atomic_thread_fence(memory_order_seq_cst);
	daemon_turn(daemon);
	daemon_arm(daemon);
}

void kvx_daemon_on_check(uv_check_t *handle)
{
	struct kvx_daemon *daemon = handle->data;

	kvx_assert_on_loop();
	atomic_store(&daemon->asleep, false);
}

void kvx_daemon_on_watchdog(struct kvx_timer *timer)
{
	struct kvx_daemon *daemon =
	    (struct kvx_daemon *)((char *)timer - offsetof(struct kvx_daemon, watchdog));

	kvx_assert_on_loop();
	kvx_service_alive();
	kvx_timer_start(daemon->timers, &daemon->watchdog, daemon->watchdog_ns,
			kvx_daemon_on_watchdog);
}

/* ---- the end, top-down */

static void daemon_free(struct kvx_daemon *daemon)
{
	kvx_timers_destroy(daemon->timers);
	if (daemon->node_id_fd >= 0)
		close(daemon->node_id_fd);
	daemon->magic = 0;
	free(daemon);
}

static void daemon_on_handle_closed(uv_handle_t *handle)
{
	struct kvx_daemon *daemon = handle->data;
	void (*closed)(void *arg) = daemon->conf.closed;
	void *arg = daemon->conf.arg;

	kvx_assert_on_loop();
	if (--daemon->n_handles > 0)
		return;
	daemon_free(daemon);
	closed(arg);
}

static KVX_ON_LOOP void daemon_close_node(struct kvx_daemon *daemon)
{
	if (daemon->node != NULL) {
		kvx_node_drain(daemon->node);
		kvx_node_close(daemon->node);
		daemon->node = NULL;
	}
	kvx_timer_stop(daemon->timers, &daemon->stop_timer);
	kvx_timer_stop(daemon->timers, &daemon->watchdog);
	uv_close((uv_handle_t *)&daemon->doorbell, daemon_on_handle_closed);
	uv_close((uv_handle_t *)&daemon->prepare, daemon_on_handle_closed);
	uv_close((uv_handle_t *)&daemon->check, daemon_on_handle_closed);
	uv_close((uv_handle_t *)&daemon->clock, daemon_on_handle_closed);
}

static void daemon_on_peers_closed(void *arg)
{
	struct kvx_daemon *daemon = arg;

	kvx_assert_on_loop();
	daemon->peers = NULL;
	daemon_close_node(daemon);
}

void kvx_daemon_close_peers(struct kvx_daemon *daemon)
{
	if (daemon->peers != NULL)
		kvx_peers_close(daemon->peers, daemon_on_peers_closed, daemon);
	else
		daemon_close_node(daemon);
}

static void daemon_on_control_closed(void *arg)
{
	struct kvx_daemon *daemon = arg;

	kvx_assert_on_loop();
	daemon->control = NULL;
	kvx_debug("daemon: all clients are gone");
	kvx_daemon_close_peers(daemon);
}

/* Every wait of the way down is bounded; should one not end all the same, the kernel ends it with
 * the process: a supervisor must never find a daemon that neither works nor goes. */
static void daemon_on_close_overdue(struct kvx_timer *timer)
{
	kvx_error("daemon: closing does not come to an end, exiting as it is");
	_exit(EXIT_FAILURE);
}

static KVX_ON_LOOP void daemon_begin_close(struct kvx_daemon *daemon)
{
	uint64_t bound = 2 * daemon->config.fence_bound_ms * KVX_MS + CLOSE_SLACK_NS;

	daemon->state = KVX_DAEMON_CLOSING;
	kvx_timer_start(daemon->timers, &daemon->stop_timer, bound, daemon_on_close_overdue);
	kvx_control_close(daemon->control, daemon_on_control_closed, daemon);
}

static void daemon_on_drain_overdue(struct kvx_timer *timer)
{
	struct kvx_daemon *daemon =
	    (struct kvx_daemon *)((char *)timer - offsetof(struct kvx_daemon, stop_timer));

	kvx_assert_on_loop();
	KVX_CHECK_MAGIC(daemon, KVX_DAEMON_MAGIC);
	kvx_warn("daemon: %u transfers have not ended within %u ms: cancelling them",
		 kvx_xfers_count(kvx_node_xfers(daemon->node)), daemon->config.drain_timeout_ms);
	daemon_begin_close(daemon);
}

void kvx_daemon_stop(struct kvx_daemon *daemon)
{
	unsigned n_xfers;

	KVX_CHECK_MAGIC(daemon, KVX_DAEMON_MAGIC);
	if (daemon->state == KVX_DAEMON_CLOSING)
		return;
	if (daemon->state == KVX_DAEMON_DRAINING) {
		kvx_info("daemon: not waiting any longer");
		daemon_begin_close(daemon);
		return;
	}
	n_xfers = kvx_xfers_count(kvx_node_xfers(daemon->node));
	kvx_info("daemon: stopping, %u transfers, %u clients", n_xfers,
		 kvx_control_clients(daemon->control));
	kvx_service_stopping("draining");
	daemon->state =
	    KVX_DAEMON_DRAINING; /* the prepare callback goes on when no transfer is left */
	kvx_control_set_draining(daemon->control, true);
	kvx_timer_start(daemon->timers, &daemon->stop_timer,
			daemon->config.drain_timeout_ms * KVX_MS, daemon_on_drain_overdue);
}

/* ---- reload */

void kvx_daemon_reload(struct kvx_daemon *daemon, const struct kvx_config *fresh)
{
	struct kvx_region_limits limits;
	struct kvx_why why = {""};
	unsigned n;

	KVX_CHECK_MAGIC(daemon, KVX_DAEMON_MAGIC);
	if (daemon->state == KVX_DAEMON_CLOSING)
		return;
	n = kvx_config_reload(&daemon->config, fresh, &why);
	if (n > 0)
		kvx_warn("daemon: %s", why.text);
	kvx_log_set_level(kvx_log_level_parse(daemon->config.log_level));
	kvx_daemon_region_limits(&daemon->config, &limits);
	kvx_regions_set_limits(kvx_node_regions(daemon->node), &limits);
	kvx_info("daemon: configuration reloaded");
}
