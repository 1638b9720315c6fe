/* Which transport and which rails the next generation of a lane uses. The side that offers takes
 * the best transport that both nodes have; after some failed set-ups in a row the next one, if that
 * is allowed, and all over again from the best after the last. A lane that could be better (it goes
 * by another transport than the best, or lacks a rail) is made anew now and then while nobody uses
 * it. Loop thread; called by peer_lane.c. Decides only: it starts and ends nothing. */
#include "xfer/peer_priv.h"

#include <string.h>

/* transports */

/* wants_ready: one that endpoints can be made on now. */
static bool transport_has(const struct kvx_node *node, const struct kvx_transport_ops *ops,
			  bool wants_ready)
{
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(node, &n);

	for (unsigned i = 0; i < n; i++)
		if (rails[i].ops == ops && rails[i].worker != NULL && !rails[i].lost &&
		    !(wants_ready && kvx_node_rail_waits(&rails[i]) != NULL))
			return true;
	return false;
}

bool transport_has_rail(const struct kvx_node *node, const struct kvx_transport_ops *ops)
{
	return transport_has(node, ops, false);
}

/* How many of its transports it may go by. */
static unsigned lane_levels(const struct peer_lane *lane)
{
	return lane->peer->peers->conf.fallback ? lane->n_common : lane->n_common > 0;
}

bool lane_has_transport(const struct peer_lane *lane)
{
	const struct kvx_node *node = lane->peer->peers->conf.node;

	for (unsigned i = 0; i < lane_levels(lane); i++)
		if (transport_has_rail(node, lane->common[i]))
			return true;
	return false;
}

const struct kvx_transport_ops *lane_pick_transport(struct peer_lane *lane)
{
	const struct kvx_node *node = lane->peer->peers->conf.node;
	unsigned n = lane_levels(lane);

	for (unsigned i = 0; i < n; i++) {
		unsigned level = (lane->level + i) % n;

		if (!transport_has(node, lane->common[level], true))
			continue;
		if (level != lane->level) {
			lane->level = level;
			lane->level_failed = 0;
		}
		return lane->common[level];
	}
	return NULL;
}

void lane_pick_failed(struct peer_lane *lane)
{
	unsigned n = lane_levels(lane);

	if (++lane->level_failed < lane->level_tries)
		return;
	lane->level_failed = 0;
	lane->level_tries = LANE_TRIES;
	if (n > 1)
		lane->level = (lane->level + 1) % n;
}

void lane_pick_reset(struct peer_lane *lane)
{
	lane->level = 0;
	lane->level_failed = 0;
	lane->level_tries = LANE_TRIES;
	lane->rails_suspect = lane->rails_avoid = 0;
	lane->n_renewals = 0;
	lane->renew_now = false;
}

/* rails */

struct rail_set {
	const struct kvx_node_rail *rails;
	unsigned n;
};

static struct rail_set lane_rails(const struct peer_lane *lane)
{
	struct rail_set set;

	set.rails = kvx_node_rails(lane->peer->peers->conf.node, &set.n);
	return set;
}

static uint64_t rail_bit(const struct rail_set *set, const struct kvx_node_rail *rail)
{
	return 1ull << (unsigned)(rail - set->rails);
}

/* Whether it can carry the lane's transport now. */
static bool rail_is_ready(const struct peer_lane *lane, const struct kvx_node_rail *rail)
{
	return rail->ops == lane->lane.ops && rail->worker != NULL && !rail->lost &&
	       kvx_node_rail_waits(rail) == NULL;
}

static bool rail_is_free(const struct peer_lane *lane, const struct rail_set *set,
			 const struct kvx_node_rail *rail)
{
	return rail_is_ready(lane, rail) &&
	       ((lane->rails_tried | lane->rails_avoid) & rail_bit(set, rail)) == 0;
}

/* The slots of an offer are the places of all rails of the transport, usable or not: so the same
 * device is in the same slot whatever is broken. */
unsigned lane_count_slots(const struct peer_lane *lane)
{
	const struct rail_set set = lane_rails(lane);
	unsigned n = 0;

	for (unsigned i = 0; i < set.n; i++)
		n += set.rails[i].ops == lane->lane.ops;
	return n < KVX_MAX_RAILS ? n : KVX_MAX_RAILS;
}

static const struct kvx_node_rail *rail_at(const struct peer_lane *lane, const struct rail_set *set,
					   unsigned slot)
{
	for (unsigned i = 0; i < set->n; i++)
		if (set->rails[i].ops == lane->lane.ops && slot-- == 0)
			return rail_is_free(lane, set, &set->rails[i]) ? &set->rails[i] : NULL;
	return NULL;
}

static const struct kvx_node_rail *rail_named(const struct peer_lane *lane,
					      const struct rail_set *set, const char *name)
{
	for (unsigned i = 0; i < set->n; i++)
		if (rail_is_free(lane, set, &set->rails[i]) && name[0] != '\0' &&
		    strcmp(set->rails[i].rail.name, name) == 0)
			return &set->rails[i];
	return NULL;
}

static const struct kvx_node_rail *rail_any(const struct peer_lane *lane,
					    const struct rail_set *set)
{
	for (unsigned i = 0; i < set->n; i++)
		if (rail_is_free(lane, set, &set->rails[i]))
			return &set->rails[i];
	return NULL;
}

enum pick_pass { PICK_NAME, PICK_PLACE, PICK_ANY, PICK_PASSES };

static const struct kvx_node_rail *pick_rail(const struct peer_lane *lane,
					     const struct rail_set *set, unsigned slot,
					     enum pick_pass pass)
{
	if (peer_is_lower(lane->peer))
		return pass == PICK_PLACE ? rail_at(lane, set, slot) : NULL;
	if (lane->remote[slot].addr_len == 0)
		return NULL;
	if (pass == PICK_NAME)
		return rail_named(lane, set, lane->remote[slot].rail);
	return pass == PICK_PLACE ? rail_at(lane, set, slot) : rail_any(lane, set);
}

/* An offer has its rails in their places. The answer prefers the rail of the same name, as nodes
 * are often wired alike and rails reach only their like; then the one in the same place; then any.
 */
unsigned lane_pick_rails(struct peer_lane *lane)
{
	const struct rail_set set = lane_rails(lane);
	unsigned n = 0;

	for (unsigned pass = 0; pass < PICK_PASSES; pass++) {
		for (unsigned slot = 0; slot < lane->n_slots; slot++) {
			struct peer_leg *leg = &lane->legs[slot];

			if (leg->rail != NULL)
				continue;
			leg->rail = pick_rail(lane, &set, slot, (enum pick_pass)pass);
			if (leg->rail == NULL)
				continue;
			lane->rails_tried |= rail_bit(&set, leg->rail);
			n++;
		}
	}
	return n;
}

/* A rail that did not connect twice in a row is left out while there are others: perhaps the other
 * side cannot be reached by it. */
void lane_pick_rail_failed(struct peer_lane *lane, const struct kvx_node_rail *rail)
{
	const struct rail_set set = lane_rails(lane);
	uint64_t bit = rail_bit(&set, rail), ready = 0;

	if ((lane->rails_suspect & bit) != 0)
		lane->rails_avoid |= bit;
	lane->rails_suspect |= bit;
	for (unsigned i = 0; i < set.n; i++)
		if (rail_is_ready(lane, &set.rails[i]))
			ready |= rail_bit(&set, &set.rails[i]);
	if ((ready & ~lane->rails_avoid) == 0)
		lane->rails_avoid &= ~ready;
}

/* what could be better */

/* The other side leaves legs of our offer out: it has no more rails. */
static bool lane_is_over(const struct peer_lane *lane)
{
	for (unsigned i = 0; i < lane->n_slots; i++)
		if (lane->legs[i].over)
			return true;
	return false;
}

static bool lane_lacks_rail(const struct peer_lane *lane)
{
	const struct rail_set set = lane_rails(lane);
	unsigned n_ready = 0, n_wanted = 0;

	for (unsigned i = 0; i < set.n; i++)
		n_ready += rail_is_ready(lane, &set.rails[i]);
	if (peer_is_lower(lane->peer))
		return !lane_is_over(lane) && legs_count(lane) < n_ready;
	for (unsigned i = 0; i < lane->n_slots; i++)
		n_wanted += lane->remote[i].addr_len > 0;
	return legs_count(lane) < (n_ready < n_wanted ? n_ready : n_wanted);
}

/* A side that only answers knows no more of a better transport than that its own port has come up.
 */
bool lane_could_be_better(const struct peer_lane *lane)
{
	const struct kvx_peer *peer = lane->peer;

	if (peer_is_lower(peer) || lane->renew_now)
		for (unsigned i = 0; i < lane->n_common && lane->common[i] != lane->lane.ops; i++)
			if (transport_has(peer->peers->conf.node, lane->common[i], true) &&
			    i < lane_levels(lane))
				return true;
	return lane_lacks_rail(lane);
}

void lane_pick_up(struct peer_lane *lane)
{
	const struct rail_set set = lane_rails(lane);
	uint64_t now = peer_now(lane->peer->peers);

	for (unsigned i = 0; i < lane->n_slots; i++)
		if (leg_is_live(&lane->legs[i]))
			lane->rails_suspect &= ~rail_bit(&set, lane->legs[i].rail);
	if (lane->n_common > 0 && lane->lane.ops != lane->common[0])
		lane->n_fallback++;
	if (!lane_could_be_better(lane))
		lane->n_renewals = 0;
	lane->renew_ns = now + (LANE_RENEW_NS << lane->n_renewals);
	lane->quiet_ns = now;
}

/* One try by the best transport; it may take the time of one failed set-up, no more. */
void lane_pick_renew(struct peer_lane *lane)
{
	if (lane->n_renewals < LANE_RENEW_MAX)
		lane->n_renewals++;
	lane->level_tries = lane->level > 0 && !lane->renew_now ? 1 : LANE_TRIES;
	lane->level = 0;
	lane->level_failed = 0;
	lane->rails_suspect = lane->rails_avoid = 0;
	lane->renew_now = false;
}

void lane_pick_device_up(struct peer_lane *lane, const struct kvx_node_rail *rail)
{
	const struct rail_set set = lane_rails(lane);

	lane->rails_suspect &= ~rail_bit(&set, rail);
	lane->rails_avoid &= ~rail_bit(&set, rail);
	lane->n_renewals = 0;
	lane->renew_now = true;
	/* Who only answers says so when the next generation is up, unless that has the rail. */
	if (lane->phase == LANE_IDLE && peer_is_lower(lane->peer))
		lane_pick_reset(lane);
}
