/* Regions of a peer that clients here use: one target per (region, token, tenant), shared by all
 * clients of the tenant, and where it takes one another by the bounce lane (peer_way.c). Targets
 * outlive their users for a while (warm), follow the lane from generation to generation, and are
 * given up when the owner withdraws the region or the peer is lost. Loop thread; steps run from
 * peer_step(), and only there a target is freed. A withdrawal is answered only after every transfer
 * of ours to the region was fenced and its key is gone. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/log.h"

/* lists and states */

static void target_list(struct peer_target *t, struct kvx_target **list)
{
	if (t->list == list)
		return;
	if (t->list != NULL)
		DL_DELETE(*t->list, &t->target);
	t->list = list;
	if (list != NULL)
		DL_APPEND(*list, &t->target);
}

void target_move(struct peer_target *t, enum target_state state)
{
	struct kvx_peer *peer = t->peer;

	t->state = state;
	switch (state) {
	case TARGET_NEW:
		target_list(t, &peer->fresh);
		break;
	case TARGET_ASKED:
		target_list(t, &peer->asked);
		break;
	case TARGET_LOST:
		target_list(t, &peer->leaving);
		break;
	case TARGET_UNPACKING:
	case TARGET_READY:
	case TARGET_ELSEWHERE:
	default:
		target_list(t, NULL);
		break;
	}
}

/* Transfers have ended: perhaps a fence is complete. */
static KVX_ON_LOOP void remote_on_xfers_ended(struct kvx_xfers_watch *watch)
{
	struct kvx_peers *peers =
	    (struct kvx_peers *)((char *)watch - offsetof(struct kvx_peers, watch));
	struct kvx_peer *peer;

	for (peer = peers->table; peer != NULL; peer = peer->hh.next)
		if (peer->n_fencing > 0)
			peer_wake(peer);
}

static KVX_ON_LOOP void target_set_fencing(struct peer_target *t, bool fencing)
{
	struct kvx_peers *peers = t->peer->peers;
	struct kvx_xfers *xfers = kvx_node_xfers(peers->conf.node);

	if (t->fencing == fencing)
		return;
	t->fencing = fencing;
	if (fencing) {
		t->peer->n_fencing++;
		if (peers->n_fencing++ == 0) {
			peers->watch.ended = remote_on_xfers_ended;
			kvx_xfers_watch(xfers, &peers->watch);
		}
	} else {
		t->peer->n_fencing--;
		if (--peers->n_fencing == 0)
			kvx_xfers_unwatch(xfers, &peers->watch);
	}
}

/* The last user is gone: it stays warm for a while. */
static KVX_ON_LOOP void target_on_release(struct kvx_target *target)
{
	struct peer_target *t = (struct peer_target *)target;

	target_abandon(t);
}

void target_abandon(struct peer_target *t)
{
	if (t->target.n_refs > 0 || t->waiters != NULL)
		return;
	t->idle_ns = peer_now(t->peer->peers);
	if (t->idle_ns == 0)
		t->idle_ns = 1;
	if (t->state == TARGET_LOST)
		target_list(t, &t->peer->leaving); /* to be freed */
	else if (t->state == TARGET_NEW && !t->known)
		target_lose(t, -ECANCELED, "nobody waits for it");
	else
		return;
	peer_wake(t->peer);
}

void target_lose(struct peer_target *t, int status, const char *text)
{
	struct kvx_peer *peer = t->peer;

	if (t->state == TARGET_LOST)
		return;
	HASH_DEL(peer->targets, t);
	target_move(t, TARGET_LOST);
	target_set_fencing(t, t->known && t->target.n_refs > 0);
	peer_wake(peer);
	kvx_target_lose(&t->target, status, text); /* told of by a step, after the fences */
	way_on_lost(t, status, text);
	resolve_end_waiters(t, status, text);
}

int target_create(struct peer_lane *lane, const struct target_key *key, uint64_t epoch,
		  struct peer_target **out_target)
{
	struct kvx_peer *peer = lane->peer;
	struct peer_target *t = calloc(1, sizeof(*t));

	if (t == NULL)
		return -ENOMEM;
	t->peer = peer;
	t->lane = lane;
	t->key = *key;
	t->key.lane = lane->index;
	t->epoch = epoch;
	t->target.region_id = key->region;
	memcpy(t->target.token, key->token, KVX_TOKEN_BYTES);
	t->target.peer = peer;
	t->target.peer_name = peer->name;
	t->target.lane = &lane->lane;
	t->target.release = target_on_release;
	HASH_ADD(hh, peer->targets, key, sizeof(t->key), t);
	if (t->hh.tbl == NULL) {
		free(t);
		return -ENOMEM;
	}
	target_move(t, TARGET_NEW);
	*out_target = t;
	return 0;
}

unsigned remote_count(const struct kvx_peer *peer)
{
	return HASH_COUNT(peer->targets);
}

bool remote_is_empty(const struct kvx_peer *peer)
{
	return peer->targets == NULL && peer->leaving == NULL && peer->gone == NULL;
}

/* keys of a lane */

/* Its eps are about to be closed. */
void remote_free_keys(struct peer_lane *lane)
{
	struct kvx_peer *peer = lane->peer;
	struct peer_target *t, *tmp;
	struct kvx_target *gone;

	HASH_ITER (hh, peer->targets, t, tmp)
		if (t->lane == lane)
			keys_free(t);
	DL_FOREACH (peer->leaving, gone)
		if (((struct peer_target *)gone)->lane == lane)
			keys_free((struct peer_target *)gone);
}

/* It is down: everything has to be resolved anew on the next generation. */
void remote_stale_keys(struct peer_lane *lane)
{
	struct peer_target *t, *tmp;

	HASH_ITER (hh, lane->peer->targets, t, tmp)
		if (t->lane == lane && t->state != TARGET_UNPACKING)
			target_move(t, TARGET_NEW); /* else when the workers are done with it */
}

/* withdrawal by the owner */

static KVX_ON_LOOP void withdrawn_send(struct kvx_peer *peer, uint64_t region)
{
	Kvxp__PeerWithdrawn msg = KVXP__PEER_WITHDRAWN__INIT;

	msg.region = region;
	peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_WITHDRAWN, &msg);
}

/* The region is free of this target: the owner is told when it is of all of them. */
static KVX_ON_LOOP void target_withdrawn(struct peer_target *t)
{
	struct kvx_peer *peer = t->peer;
	struct kvx_target *leaving;

	t->withdrawing = false;
	DL_FOREACH (peer->leaving, leaving) {
		const struct peer_target *other = (struct peer_target *)leaving;

		if (other->withdrawing && other->key.region == t->key.region)
			return;
	}
	withdrawn_send(peer, t->key.region);
}

/* Before any of them is lost: each of a pair is lost with the other. */
static bool targets_begin_withdrawal(struct kvx_peer *peer, uint64_t region)
{
	struct kvx_target *leaving;
	struct peer_target *t;
	bool any = false;

	/* Lost with an earlier connection, and perhaps not yet fenced. */
	DL_FOREACH (peer->leaving, leaving) {
		t = (struct peer_target *)leaving;
		if (t->key.region == region && t->known)
			any = t->withdrawing = true;
	}
	for (t = peer->targets; t != NULL; t = t->hh.next)
		if (t->key.region == region && t->known)
			any = t->withdrawing = true;
	return any;
}

int remote_on_withdraw(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerWithdraw *msg = (const Kvxp__PeerWithdraw *)message;
	struct peer_target *t, *tmp;
	char text[KVX_WHY_BYTES];
	int status = kvx_status_to_errno(msg->status) == -EPIPE ? -EPIPE : -EOWNERDEAD;
	bool wait = targets_begin_withdrawal(peer, msg->region);

	peer_text(text, sizeof(text), msg->text[0] != '\0' ? msg->text : "the region is gone");
	HASH_ITER (hh, peer->targets, t, tmp)
		if (t->key.region == msg->region)
			target_lose(t, status, text);
	if (wait)
		peer_wake(peer);
	else
		withdrawn_send(peer, msg->region);
	return 0;
}

/* Has all that the peer had under way to and from regions here ended, as far as it matters to
 * clients of this target's tenant? inbound_step(), which tells of those, comes before. */
static bool target_inbound_is_over(struct peer_target *t)
{
	return !t->peer_lost || lanes_fence_is_over(t->lane, &t->inbound);
}

/* A lost target: its transfers are cancelled and fenced, by both lanes, who watches it is told, its
 * key is given back, the owner is told; then only its users' references are left. */
static KVX_ON_LOOP void target_step_leaving(struct peer_target *t)
{
	struct kvx_peer *peer = t->peer;
	struct kvx_xfers *xfers = kvx_node_xfers(peer->peers->conf.node);

	if (keys_are_busy(t))
		return;
	if (t->fencing && kvx_xfers_cancel_target(xfers, &t->target, t->target.lost_status,
						  t->target.lost_text) == 0) {
		target_set_fencing(t, false);
		peer_wake(peer); /* who keeps it may wait for that */
	}
	if (t->fencing || (t->bounce != NULL && t->bounce->fencing) || !target_inbound_is_over(t))
		return;
	kvx_target_tell(&t->target);
	way_let_go(t);
	if (keys_are_there(t)) {
		if (t->lane->phase == LANE_UP)
			keys_free(t); /* else they are freed with the lane */
		return;
	}
	if (t->withdrawing)
		target_withdrawn(t);
	if (t->target.n_refs > 0 || t->waiters != NULL) {
		target_list(t, &peer->gone);
		return;
	}
	target_list(t, NULL);
	keys_fini(t);
	kvx_layout_destroy(t->target.layout);
	free(t);
}

/* steps */

static KVX_ON_LOOP void target_retire(struct peer_target *t)
{
	Kvxp__PeerRelease msg = KVXP__PEER_RELEASE__INIT;

	msg.region = t->key.region;
	peer_send(t->peer, KVXP__PEER_FRAME_TYPE__PEER_RELEASE, &msg);
	target_lose(t, -ENOENT, "not used any more");
}

/* Gives up targets that nobody has used for long, with what they keep. */
static KVX_ON_LOOP void remote_sweep(struct kvx_peer *peer)
{
	uint64_t now = peer_now(peer->peers);
	bool many = HASH_COUNT(peer->targets) > PEER_TARGETS_IDLE_MAX;
	struct peer_target *t, *tmp;

	if (now < peer->sweep_ns)
		return;
	peer->sweep_ns = now + PEER_KEEP_NS / 4;
	HASH_ITER (hh, peer->targets, t, tmp) {
		if ((t->state != TARGET_READY && t->state != TARGET_ELSEWHERE) ||
		    t->first != NULL || t->idle_ns == 0 || way_is_used(t))
			continue;
		if (many || now - t->idle_ns >= PEER_KEEP_NS)
			target_retire(t);
	}
}

/* It has no keys of an older generation, and the lane can tell of new ones. */
static bool target_can_ask(const struct peer_target *t)
{
	return t->lane->phase == LANE_UP && t->generation != t->lane->lane.generation &&
	       !keys_are_busy(t) && !keys_are_there(t);
}

static bool remote_can_release(const struct kvx_peer *peer)
{
	return peer->targets != NULL && peer->conn != NULL;
}

void remote_step(struct kvx_peer *peer)
{
	struct kvx_target *target, *next;

	if (peer->conn != NULL) {
		DL_FOREACH_SAFE (peer->fresh, target, next)
			if (target_can_ask((struct peer_target *)target))
				resolve_ask((struct peer_target *)target);
	}
	if (remote_can_release(peer))
		remote_sweep(peer);
	DL_FOREACH_SAFE (peer->leaving, target, next)
		target_step_leaving((struct peer_target *)target);
}

uint64_t remote_next_ns(const struct kvx_peer *peer)
{
	return remote_can_release(peer) ? peer->sweep_ns : UINT64_MAX;
}

bool remote_is_wanted(const struct kvx_peer *peer)
{
	const struct peer_target *t;

	for (t = peer->targets; t != NULL; t = t->hh.next)
		if (t->waiters != NULL)
			return true;
	return false;
}

void remote_lose_all(struct kvx_peer *peer, int status, const char *text)
{
	struct peer_target *t;
	struct kvx_target *gone;

	/* First all are marked: each of a pair is lost with the other. */
	for (t = peer->targets; t != NULL; t = t->hh.next) {
		t->peer_lost = true;
		lanes_fence_begin(t->lane, LANES_BOTH, &t->inbound);
	}
	while (peer->targets != NULL)
		target_lose(peer->targets, status, text);
	DL_FOREACH (peer->leaving, gone)
		((struct peer_target *)gone)->withdrawing = false; /* who asked is gone, too */
}

void remote_fail_waiting(struct peer_lane *lane, int status, const char *text)
{
	struct peer_target *t, *tmp;

	HASH_ITER (hh, lane->peer->targets, t, tmp)
		if (t->waiters != NULL && way_lane(t) == lane)
			target_lose(t, status, text);
}

void remote_fail_all_waiting(struct kvx_peer *peer, int status, const char *text)
{
	for (unsigned i = 0; i < peer->n_lanes; i++)
		remote_fail_waiting(peer->lanes[i], status, text);
}

void remote_check_epoch(struct kvx_peer *peer)
{
	struct peer_target *t, *tmp;

	HASH_ITER (hh, peer->targets, t, tmp)
		if (t->waiters != NULL && t->epoch != peer->epoch)
			target_lose(t, -ESTALE, "descriptor of an earlier start of its daemon");
}
