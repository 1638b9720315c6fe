/* Regions of ours that a peer has resolved (exports): which of its lanes have had keys of them, and
 * withdrawal when one is retired: the peer gives it up, or the lanes are fenced. Loop thread;
 * frames come from peer_frame.c. What a lost peer had is over only where inbound was stopped. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdlib.h>

#include "base/log.h"

/* A region of ours that peers have resolved. Owned by the table, lives while one has. */
struct peer_shared {
	uint64_t region;
	unsigned n_exports;
	void (*done_cb)(void *done_arg); /* it is being withdrawn */
	void *done_arg;
	UT_hash_handle hh;
};

/* One peer's part of it. */
struct peer_export {
	uint64_t region;
	struct peer_lane *lane; /* of the region's tenant, the first one that asked for it */
	struct peer_shared *shared;
	unsigned lanes;       /* bit set, 1 << any_memory: which of the tenant's lanes have had keys
				 of it; 0: only an earlier connection's */
	uint64_t deadline_ns; /* of PEER_WITHDRAWN; 0: not asked for */
	bool fencing;         /* past it: waits until inbound is stopped */
	bool lost;            /* the peer was lost: likewise */
	struct lane_fence fence, lost_fence;
	UT_hash_handle hh;
};

static struct peer_shared *shared_get(struct kvx_peers *peers, uint64_t region)
{
	struct peer_shared *shared;

	HASH_FIND(hh, peers->shared, &region, sizeof(region), shared);
	if (shared != NULL)
		return shared;
	shared = calloc(1, sizeof(*shared));
	if (shared == NULL)
		return NULL;
	shared->region = region;
	HASH_ADD(hh, peers->shared, region, sizeof(region), shared);
	if (shared->hh.tbl == NULL) {
		free(shared);
		return NULL;
	}
	return shared;
}

static void shared_put(struct kvx_peers *peers, struct peer_shared *shared)
{
	void (*done_cb)(void *done_arg) = shared->done_cb;
	void *done_arg = shared->done_arg;

	if (shared->n_exports > 0)
		return;
	HASH_DEL(peers->shared, shared);
	free(shared);
	if (done_cb != NULL)
		done_cb(done_arg);
}

static struct peer_export *export_find(const struct kvx_peer *peer, uint64_t region)
{
	struct peer_export *export;

	HASH_FIND(hh, peer->exports, &region, sizeof(region), export);
	return export;
}

int export_add(struct peer_lane *lane, uint64_t region)
{
	struct kvx_peer *peer = lane->peer;
	struct peer_export *export = export_find(peer, region);

	if (export != NULL) {
		export->lanes |= 1u << lane->any_memory;
		return 0;
	}
	export = calloc(1, sizeof(*export));
	if (export == NULL)
		return -ENOMEM;
	export->region = region;
	export->lane = lane;
	export->lanes = 1u << lane->any_memory;
	export->shared = shared_get(peer->peers, region);
	if (export->shared == NULL)
		goto err_free;
	HASH_ADD(hh, peer->exports, region, sizeof(region), export);
	if (export->hh.tbl == NULL)
		goto err_shared;
	export->shared->n_exports++;
	return 0;

err_shared:
	shared_put(peer->peers, export->shared);
err_free:
	free(export);
	return -ENOMEM;
}

/* May run the done callback of a withdrawal. */
static void export_free(struct kvx_peer *peer, struct peer_export *export)
{
	struct peer_shared *shared = export->shared;

	HASH_DEL(peer->exports, export);
	if (export->deadline_ns != 0)
		peer->n_withdrawing--;
	free(export);
	shared->n_exports--;
	shared_put(peer->peers, shared);
}

/* The peer has let go of it. What an earlier connection may have under way is still waited for. */
static void export_drop(struct kvx_peer *peer, struct peer_export *export)
{
	export->lanes = 0;
	if (!export->lost)
		export_free(peer, export);
}

struct peer_lane *export_lane(const struct kvx_peer *peer, uint64_t region, bool any_memory)
{
	const struct peer_export *export = export_find(peer, region);
	struct peer_lane *sibling;

	if (export == NULL || export->lanes == 0)
		return NULL;
	sibling = lane_sibling(export->lane);
	return sibling == NULL || export->lane->any_memory == any_memory ? export->lane : sibling;
}

int export_on_release(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerRelease *msg = (const Kvxp__PeerRelease *)message;
	struct peer_export *export = export_find(peer, msg->region);

	/* While it is being withdrawn only the answer to that counts. */
	if (export != NULL && export->deadline_ns == 0)
		export_drop(peer, export);
	return 0;
}

int export_on_withdrawn(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerWithdrawn *msg = (const Kvxp__PeerWithdrawn *)message;
	struct peer_export *export = export_find(peer, msg->region);

	if (export != NULL && export->deadline_ns != 0)
		export_drop(peer, export);
	else
		peer->n_stale++;
	return 0;
}

void kvx_peers_withdraw(void *arg, struct kvx_region *region, const struct kvx_withdrawal *why,
			void (*done_cb)(void *done_arg), void *done_arg)
{
	struct kvx_peers *peers = arg;
	Kvxp__PeerWithdraw msg = KVXP__PEER_WITHDRAW__INIT;
	uint64_t deadline_ns = peer_now(peers) + peers->conf.fence_bound_ms * KVX_MS;
	struct peer_shared *shared;
	struct peer_export *export;
	struct kvx_peer *peer;

	HASH_FIND(hh, peers->shared, &region->id, sizeof(region->id), shared);
	if (shared == NULL) {
		done_cb(done_arg);
		return;
	}
	kvx_assert(shared->done_cb == NULL);
	shared->done_cb = done_cb;
	shared->done_arg = done_arg;
	msg.region = region->id;
	msg.status = (uint32_t)kvx_status_from_errno(why->status);
	msg.text = (char *)(uintptr_t)why->text;
	for (peer = peers->table; peer != NULL; peer = peer->hh.next) {
		export = export_find(peer, region->id);
		if (export == NULL)
			continue;
		export->deadline_ns = deadline_ns;
		peer->n_withdrawing++;
		peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_WITHDRAW, &msg);
		peer_wake(peer);
	}
}

/* The lanes that have had keys of it. */
static KVX_ON_LOOP void export_fence(struct peer_export *export)
{
	struct peer_lane *sibling = lane_sibling(export->lane);

	lanes_fence_begin(export->lane, export->lanes, &export->fence);
	if (export->lanes & 1u << export->lane->any_memory)
		lane_down(export->lane, -EIO, "a region was not given up in time");
	if (sibling != NULL && export->lanes & 1u << sibling->any_memory)
		lane_down(sibling, -EIO, "a region was not given up in time");
}

/* No answer in time: the lane is fenced, and that will do as well. */
static KVX_ON_LOOP void export_check_deadline(struct kvx_peer *peer, struct peer_export *export)
{
	if (export->deadline_ns == 0 || export->lanes == 0 ||
	    peer_now(peer->peers) < export->deadline_ns)
		return; /* without lanes it waits for the lost ones alone */
	if (!export->fencing) {
		export->fencing = true;
		kvx_warn("peer %s: does not let go of region %llu: resetting the lane", peer->name,
			 (unsigned long long)export->region);
		export_fence(export);
	}
	if (lanes_fence_is_over(export->lane, &export->fence))
		export_drop(peer, export);
}

void exports_on_lost(struct kvx_peer *peer)
{
	struct peer_export *export;

	for (export = peer->exports; export != NULL; export = export->hh.next) {
		if (export->lost && export->lanes == 0)
			continue;
		export->lost = true;
		export->lanes = 0;
		lanes_fence_begin(export->lane, LANES_BOTH, &export->lost_fence);
	}
}

bool exports_finish_lost(struct kvx_peer *peer)
{
	struct peer_export *export, *tmp;
	bool all = true;

	HASH_ITER (hh, peer->exports, export, tmp) {
		if (!export->lost)
			continue;
		export->lost = !lanes_fence_is_over(export->lane, &export->lost_fence);
		if (export->lost)
			all = false;
		else if (export->lanes == 0)
			export_free(peer, export);
	}
	return all;
}

void exports_step(struct kvx_peer *peer)
{
	struct peer_export *export, *tmp;

	if (peer->n_withdrawing == 0)
		return;
	HASH_ITER (hh, peer->exports, export, tmp)
		export_check_deadline(peer, export);
}

/* The earliest deadline of a withdrawal; those that wait for the fence are woken by it. */
uint64_t exports_next_ns(const struct kvx_peer *peer)
{
	const struct peer_export *export;
	uint64_t next = UINT64_MAX;

	if (peer->n_withdrawing == 0)
		return next;
	for (export = peer->exports; export != NULL; export = export->hh.next)
		if (export->deadline_ns != 0 && !export->fencing && export->lanes != 0 &&
		    export->deadline_ns < next)
			next = export->deadline_ns;
	return next;
}
