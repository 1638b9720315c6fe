/* Legs of a lane: commands to their endpoints and what comes back of them. One command of a kind
 * per leg at a time; the lane moves on when those of all legs are back. Loop thread; called by
 * peer_lane.c and peer_lane_down.c, endpoints are touched by the workers of their rails only. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"

static struct peer_leg *leg_of_cmd(struct kvx_cmd *cmd, size_t offset)
{
	struct peer_leg *leg = (struct peer_leg *)((char *)cmd - offset);

	kvx_assert_on_loop();
	KVX_CHECK_MAGIC(leg->lane, LANE_MAGIC);
	return leg;
}

bool leg_is_live(const struct peer_leg *leg)
{
	return leg->ep != NULL && !leg->over;
}

const char *leg_rail_name(const struct peer_leg *leg)
{
	return leg->rail != NULL ? leg->rail->rail.name : "";
}

static KVX_ON_LOOP void leg_submit(struct peer_leg *leg, struct kvx_cmd *cmd)
{
	cmd->ep = leg->ep;
	kvx_node_submit(leg->lane->peer->peers->conf.node, leg->rail->worker, cmd);
}

/* all of them */

unsigned legs_count(const struct peer_lane *lane)
{
	unsigned n = 0;

	for (unsigned i = 0; i < lane->n_slots; i++)
		n += leg_is_live(&lane->legs[i]);
	return n;
}

bool legs_busy_in_setup(const struct peer_lane *lane)
{
	for (unsigned i = 0; i < lane->n_slots; i++)
		if (lane->legs[i].setup_busy)
			return true;
	return false;
}

bool legs_are_busy(const struct peer_lane *lane)
{
	for (unsigned i = 0; i < lane->n_slots; i++)
		if (lane->legs[i].setup_busy || lane->legs[i].lease_busy || lane->legs[i].down_busy)
			return true;
	return false;
}

bool legs_lease_is_zero(const struct peer_lane *lane)
{
	for (unsigned i = 0; i < lane->n_slots; i++)
		if (leg_is_live(&lane->legs[i]) && !lane->legs[i].lease_zeroed)
			return false;
	return true;
}

bool legs_are_up(const struct peer_lane *lane)
{
	for (unsigned i = 0; i < lane->n_slots; i++)
		if (leg_is_live(&lane->legs[i]) && !lane->legs[i].up)
			return false;
	return true;
}

uint64_t legs_settle_ns(const struct peer_lane *lane)
{
	uint64_t settle_ns = 0;

	for (unsigned i = 0; i < lane->n_slots; i++) {
		const struct peer_leg *leg = &lane->legs[i];
		uint64_t ns;

		if (!leg_is_live(leg))
			continue;
		ns = kvx_worker_limits(leg->rail->worker)->settle_ns;
		if (ns > settle_ns)
			settle_ns = ns;
	}
	return settle_ns;
}

struct peer_leg *legs_find(struct peer_lane *lane, unsigned dom_index)
{
	for (unsigned i = 0; i < lane->n_slots; i++)
		if (leg_is_live(&lane->legs[i]) && lane->legs[i].rail->dom_index == dom_index)
			return &lane->legs[i];
	return NULL;
}

void legs_set_outlets(struct peer_lane *lane)
{
	unsigned n = 0;

	for (unsigned i = 0; i < lane->n_slots; i++) {
		const struct peer_leg *leg = &lane->legs[i];

		if (leg_is_live(leg))
			lane->lane.outlets[n++] = (struct kvx_outlet){
			    .worker = leg->rail->worker,
			    .ep = leg->ep,
			    .dom_index = leg->rail->dom_index,
			};
	}
	lane->lane.n_outlets = n;
}

void legs_clear(struct peer_lane *lane)
{
	kvx_assert(!legs_are_busy(lane));
	memset(lane->legs, 0, sizeof(lane->legs));
	memset(lane->lane.outlets, 0, sizeof(lane->lane.outlets));
	lane->lane.n_outlets = 0;
	lane->n_slots = 0;
	for (unsigned i = 0; i < KVX_MAX_RAILS; i++)
		lane->legs[i].lane = lane;
}

/* set-up */

static void listen_on_done(struct kvx_cmd *cmd)
{
	struct peer_leg *leg = leg_of_cmd(cmd, offsetof(struct peer_leg, cmd_setup));
	struct peer_lane *lane = leg->lane;

	kvx_assert_on_loop();
	leg->setup_busy = false;
	if (cmd->status == 0) {
		leg->ep = cmd->ep;
	} else {
		lane_note_error(lane, "%s%slisten: %s", leg_rail_name(leg),
				leg_rail_name(leg)[0] != '\0' ? ": " : "",
				cmd->text != NULL ? cmd->text : strerror(-cmd->status));
		lane->down_status = cmd->status;
		leg->rail = NULL;
	}
	lane_on_listened(lane);
}

void legs_listen(struct peer_lane *lane)
{
	for (unsigned i = 0; i < lane->n_slots; i++) {
		struct peer_leg *leg = &lane->legs[i];

		if (leg->rail == NULL || leg->ep != NULL || leg->setup_busy)
			continue;
		leg->cmd_setup = (struct kvx_cmd){
		    .work.kind = KVX_CMD_LISTEN,
		    .done = listen_on_done,
		    .tenant = lane->tenant,
		};
		leg->setup_busy = true;
		leg_submit(leg, &leg->cmd_setup);
	}
}

static void connect_on_done(struct kvx_cmd *cmd)
{
	struct peer_leg *leg = leg_of_cmd(cmd, offsetof(struct peer_leg, cmd_setup));

	kvx_assert_on_loop();
	leg->setup_busy = false;
	leg->up = cmd->status == 0;
	lane_on_connected(leg->lane, leg, cmd);
}

static void over_on_closed(struct kvx_cmd *cmd)
{
	struct peer_leg *leg = leg_of_cmd(cmd, offsetof(struct peer_leg, cmd_down));

	kvx_assert_on_loop();
	leg->down_busy = false;
	leg->ep = NULL;
	leg->rail = NULL;
	peer_wake(leg->lane->peer);
}

void legs_connect(struct peer_lane *lane)
{
	for (unsigned i = 0; i < lane->n_slots; i++) {
		struct peer_leg *leg = &lane->legs[i];
		const struct peer_leg_addr *remote = &lane->remote[i];

		if (!leg_is_live(leg))
			continue;
		if (i >= lane->n_remote || remote->addr_len == 0) {
			leg->over = true;
			leg->down_busy = true;
			leg->cmd_down =
			    (struct kvx_cmd){.work.kind = KVX_CMD_EP_CLOSE, .done = over_on_closed};
			leg_submit(leg, &leg->cmd_down);
			continue;
		}
		leg->cmd_setup = (struct kvx_cmd){
		    .work.kind = KVX_CMD_CONNECT,
		    .done = connect_on_done,
		    .len = remote->addr_len,
		};
		memcpy(leg->cmd_setup.bytes, remote->addr, remote->addr_len);
		leg->setup_busy = true;
		leg_submit(leg, &leg->cmd_setup);
	}
}

/* leases */

static KVX_ON_LOOP void leg_lease(struct peer_leg *leg);

static void lease_on_done(struct kvx_cmd *cmd)
{
	struct peer_leg *leg = leg_of_cmd(cmd, offsetof(struct peer_leg, cmd_lease));

	kvx_assert_on_loop();
	leg->lease_busy = false;
	if (leg->lease_sent_ns == 0)
		leg->lease_zeroed = true;
	if (leg->lane->lease_ns != leg->lease_sent_ns && leg_is_live(leg))
		leg_lease(leg);
	peer_wake(leg->lane->peer);
}

/* One command at a time, the newest value wins. */
static KVX_ON_LOOP void leg_lease(struct peer_leg *leg)
{
	if (leg->lease_busy)
		return;
	leg->lease_busy = true;
	leg->lease_zeroed = false;
	leg->lease_sent_ns = leg->lane->lease_ns;
	leg->cmd_lease = (struct kvx_cmd){
	    .work.kind = KVX_CMD_LEASE,
	    .done = lease_on_done,
	    .lease_ns = leg->lease_sent_ns,
	};
	leg_submit(leg, &leg->cmd_lease);
}

void legs_lease(struct peer_lane *lane, uint64_t lease_ns)
{
	lane->lease_ns = lease_ns;
	for (unsigned i = 0; i < lane->n_slots; i++)
		if (leg_is_live(&lane->legs[i]))
			leg_lease(&lane->legs[i]);
}

/* tear-down */

static void fence_on_done(struct kvx_cmd *cmd)
{
	struct peer_leg *leg = leg_of_cmd(cmd, offsetof(struct peer_leg, cmd_down));

	kvx_assert_on_loop();
	leg->down_busy = false;
	leg->fenced = cmd->status == 0;
	if (cmd->status < 0)
		kvx_error("peer %s: %s fence: %s", leg->lane->peer->name, leg_rail_name(leg),
			  cmd->text != NULL ? cmd->text : strerror(-cmd->status));
	peer_wake(leg->lane->peer);
}

static void close_on_done(struct kvx_cmd *cmd)
{
	struct peer_leg *leg = leg_of_cmd(cmd, offsetof(struct peer_leg, cmd_down));

	kvx_assert_on_loop();
	leg->down_busy = false;
	leg->ep = NULL;
	peer_wake(leg->lane->peer);
}

void legs_command(struct peer_lane *lane, enum kvx_work_kind kind)
{
	for (unsigned i = 0; i < lane->n_slots; i++) {
		struct peer_leg *leg = &lane->legs[i];

		if (!leg_is_live(leg) || (kind == KVX_CMD_FENCE && leg->fenced))
			continue;
		leg->cmd_down = (struct kvx_cmd){
		    .work.kind = kind,
		    .done = kind == KVX_CMD_FENCE ? fence_on_done : close_on_done,
		};
		leg->down_busy = true;
		leg_submit(leg, &leg->cmd_down);
	}
}
