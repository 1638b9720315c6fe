/* Which of a tenant's two lanes to a peer a transfer goes by. Imports know a region's target by the
 * first lane. Where that lane's devices do not reach the region (its owner says so when it is asked
 * for keys), or do not reach the local side of a transfer, the target keeps a second one of the
 * same region, by the bounce lane. Each of the two follows its own lane from generation to
 * generation; they are lost together. Loop thread; called by peer_remote.c and peer_resolve.c, and
 * by transfers through struct kvx_target's route(). */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

struct peer_lane *way_lane(const struct peer_target *t)
{
	return t->elsewhere ? t->bounce->lane : t->lane;
}

bool way_is_open(const struct peer_target *t)
{
	return t->state == TARGET_READY || (t->elsewhere && t->bounce->state == TARGET_READY);
}

bool way_is_used(const struct peer_target *t)
{
	return t->target.n_refs > 0 || t->waiters != NULL ||
	       (t->bounce != NULL && t->bounce->target.n_refs > 1);
}

void way_let_go(struct peer_target *t)
{
	struct peer_target *bounce = t->bounce;

	if (bounce == NULL)
		return;
	t->bounce = NULL;
	bounce->first = NULL;
	kvx_target_unref(&bounce->target);
}

void way_on_lost(struct peer_target *t, int status, const char *text)
{
	struct peer_target *first = t->first;

	if (t->bounce != NULL)
		target_lose(t->bounce, status, text);
	t->elsewhere = false;
	if (first == NULL || first->state == TARGET_LOST)
		return;
	if (first->elsewhere)
		target_lose(first, status, text);
	else
		way_let_go(first); /* its own lane will do; the next one who needs it tries again */
}

/* What the first one knows of the region holds for the second one, too. */
static int way_copy(struct peer_target *bounce, const struct peer_target *t)
{
	const struct kvx_layout *layout = t->target.layout;

	if (!t->known)
		return 0;
	if (layout != NULL) {
		bounce->target.layout = kvx_layout_create(layout->n_planes);
		if (bounce->target.layout == NULL)
			return -ENOMEM;
		memcpy(bounce->target.layout->planes, layout->planes,
		       layout->n_planes * sizeof(layout->planes[0]));
	}
	bounce->target.len_bytes = t->target.len_bytes;
	bounce->target.access = t->target.access;
	bounce->known = true;
	return 0;
}

/* t->bounce, by this lane. -ENOMEM */
static KVX_ON_LOOP int way_make(struct peer_target *t, struct peer_lane *lane)
{
	struct peer_target *bounce;
	int err;

	if (t->bounce != NULL)
		return 0;
	err = target_create(lane, &t->key, t->epoch, &bounce);
	if (err < 0)
		return err;
	t->bounce = bounce;
	bounce->first = t;
	kvx_target_ref(&bounce->target);
	err = way_copy(bounce, t);
	if (err < 0)
		target_lose(bounce, err, "out of memory");
	peer_wake(t->peer);
	return err;
}

bool way_go_elsewhere(struct peer_target *t)
{
	struct peer_lane *lane = lane_bounce(t->lane);

	if (t->elsewhere) { /* as before; its bounce lane may be down for a while */
		target_move(t, TARGET_ELSEWHERE);
		return true;
	}
	if (lane == NULL || lane->lane.state == KVX_LANE_DOWN || way_make(t, lane) < 0)
		return false;
	t->elsewhere = true;
	t->target.lane = &lane->lane;
	target_move(t, TARGET_ELSEWHERE);
	kvx_xfers_reroute_target(kvx_node_xfers(t->peer->peers->conf.node), &t->target);
	if (way_is_open(t))
		resolve_end_waiters(t, 0, "");
	return true;
}

void way_on_ready(struct peer_target *t)
{
	t->elsewhere = false;
	t->target.lane = &t->lane->lane;
	kvx_xfers_reroute_target(kvx_node_xfers(t->peer->peers->conf.node), &t->target);
	if (t->first == NULL)
		resolve_end_waiters(t, 0, "");
	else if (t->first->elsewhere)
		resolve_end_waiters(t->first, 0, "");
}

/* routes */

static bool rail_reaches(const struct kvx_node_rail *rail, const struct kvx_region *local)
{
	return rail->worker != NULL && local->reg[rail->dom_index] != NULL;
}

/* Its rails are not known before it is set up: most likely they are those of its best transport. */
static bool lane_may_reach(const struct peer_lane *lane, const struct kvx_region *local)
{
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(lane->peer->peers->conf.node, &n);

	for (unsigned i = 0; i < n && lane->n_common > 0; i++)
		if (rails[i].ops == lane->common[0] && rail_reaches(&rails[i], local))
			return true;
	return lane->n_common == 0;
}

/* Is there a leg that both sides know? */
static bool lane_reaches(const struct peer_lane *lane, const struct peer_target *t,
			 const struct kvx_region *local)
{
	bool has_keys = t != NULL && t->state == TARGET_READY;

	for (unsigned i = 0; i < lane->n_slots; i++) {
		const struct peer_leg *leg = &lane->legs[i];

		if (leg_is_live(leg) && rail_reaches(leg->rail, local) &&
		    (!has_keys || t->target.rkey[leg->rail->dom_index] != NULL))
			return true;
	}
	return legs_count(lane) == 0 && lane_may_reach(lane, local);
}

static bool lane_is_allowed(const struct peer_lane *lane, const char *require)
{
	return require == NULL || require[0] == '\0' || strcmp(lane->lane.ops->name, require) == 0;
}

/* Can it be the bounce lane? */
static bool way_may_bounce(const struct peer_target *t, const struct peer_lane *lane,
			   const struct kvx_route_ask *ask)
{
	return lane != NULL && lane->lane.state != KVX_LANE_DOWN &&
	       lane_is_allowed(lane, ask->require) && lane_reaches(lane, t->bounce, ask->local);
}

static int way_refuse(const struct peer_target *t, const struct peer_lane *bounce,
		      const struct kvx_route_ask *ask, struct kvx_why *why)
{
	const char *name = t->lane->lane.ops->name;
	const char *memory =
	    kvx_mem_kind_is_gpu(ask->local->mem.ops->kind) ? "GPU memory" : "memory";

	if (bounce == NULL)
		return kvx_why(why, -ENETUNREACH,
			       "region %" PRIu64 " is %s that the transport %s does not reach "
			       "(the daemon's log says why), and there is no second way to the "
			       "peer: have fabric among the transports of both nodes, and daemons "
			       "of this version",
			       ask->local->id, memory, name);
	if (!lane_is_allowed(bounce, ask->require))
		return kvx_why(why, -ENETUNREACH,
			       "transport \"%.32s\" is required, but it does not reach %s: usable "
			       "is %s",
			       ask->require, t->elsewhere ? "the imported region" : memory,
			       bounce->lane.ops->name);
	if (bounce->lane.state == KVX_LANE_DOWN)
		return kvx_why(why, -ENETUNREACH,
			       "region %" PRIu64 " is %s that goes by %s only, which has no usable "
			       "device now",
			       ask->local->id, memory, bounce->lane.ops->name);
	return kvx_why(why, -ENETUNREACH,
		       "region %" PRIu64 " is %s that neither %s nor %s reaches: the daemon's log "
		       "says why",
		       ask->local->id, memory, name, bounce->lane.ops->name);
}

int way_route(struct kvx_target *target, const struct kvx_route_ask *ask,
	      struct kvx_target **out_target, struct kvx_why *why)
{
	kvx_assert_on_loop();
	struct peer_target *t = (struct peer_target *)target;
	struct peer_lane *bounce = lane_bounce(t->lane);
	bool reaches = !t->elsewhere && lane_reaches(t->lane, t, ask->local);

	*out_target = target;
	if (t->state == TARGET_LOST || (reaches && lane_is_allowed(t->lane, ask->require)))
		return 0;
	if (!way_may_bounce(t, bounce, ask))
		return reaches ? 0 : way_refuse(t, bounce, ask, why);
	if (way_make(t, bounce) < 0)
		return kvx_why(why, -ENOMEM, "no memory for a way to the region");
	*out_target = &t->bounce->target;
	return 0;
}
