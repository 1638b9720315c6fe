/* Target: the remote side of transfers, as an import resolved it: a region of this node, or one of
 * a peer. Ref-counted: every import and every transfer holds one. Loop thread. */
#ifndef KVX_TARGET_H
#define KVX_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/roles.h"
#include "mem/region.h"
#include "xfer/lane.h"

struct kvx_peer;

/* What a transfer wants of the way it takes. */
struct kvx_route_ask {
	const struct kvx_region *local; /* its other side */
	int op;                         /* enum kvx_op_kind */
	const char *require;            /* "" or NULL, or the only transport allowed */
};

/* Somebody who wants to know when a target is lost (an import): embedded. */
struct kvx_target_watch {
	void (*lost)(struct kvx_target_watch *watch, int status,
		     const char *text); /* once; may remove itself or others */
	struct kvx_target_watch *prev, *next;
};

struct kvx_target {
	unsigned n_refs;
	bool lost;       /* no new transfers; lost_status says why */
	bool told;       /* and who watches it knows */
	int lost_status; /* -errno */
	char lost_text[KVX_WHY_BYTES];
	uint64_t region_id; /* at its owner's daemon */
	uint8_t token[KVX_TOKEN_BYTES];
	uint64_t len_bytes;
	uint32_t access;           /* KVX_ACCESS_* */
	struct kvx_layout *layout; /* own copy, or NULL */
	struct kvx_region
	    *region;           /* same node: the region; NULL once it is gone, or on another node */
	struct kvx_peer *peer; /* other node; NULL on the same */
	const char *peer_name; /* its node id, 32 hex digits; NULL on the same node */
	struct kvx_lane *lane; /* where its transfers go */
	uint64_t lane_generation; /* rkeys belong to this generation of the lane; while it differs
				     from lane->generation transfers wait: set it with the new
				     rkeys, then call kvx_xfers_kick_target() */
	struct kvx_rkey *rkey[KVX_MAX_DOMAINS];     /* by outlet->dom_index */
	void (*release)(struct kvx_target *target); /* last ref gone: set by who made it (registry
						       of regions, or peer) */
	/* The target that such a transfer goes to: this one, or another one of the same region that
	 * this one keeps. NULL: this one for all. 0, -ENETUNREACH (no way between the two),
	 * -ENOMEM. That the way goes by another transport than the required one is for the caller
	 * to see. */
	int (*route)(struct kvx_target *target, const struct kvx_route_ask *ask,
		     struct kvx_target **out_target, struct kvx_why *why);
	struct kvx_target_watch *watches;
	struct kvx_target_watch *next_told; /* inside kvx_target_tell() */
	struct kvx_target *prev, *next;     /* of the maker's list */
};

static inline struct kvx_target *kvx_target_ref(struct kvx_target *t)
{
	t->n_refs++;
	return t;
}
void kvx_target_unref(struct kvx_target *target) KVX_ON_LOOP; /* NULL is fine */

void kvx_target_watch(struct kvx_target *target, struct kvx_target_watch *watch) KVX_ON_LOOP;
void kvx_target_unwatch(struct kvx_target *target, struct kvx_target_watch *watch) KVX_ON_LOOP;
/* Marks it lost: a second call adds nothing. Its transfers are the caller's to cancel; so is it to
 * tell of the loss when it is time: where the other client or its node is gone, not before all that
 * these had under way to and from memory here has ended. */
void kvx_target_lose(struct kvx_target *target, int status, const char *text);
/* Tells every watch of the loss, once. */
void kvx_target_tell(struct kvx_target *target) KVX_ON_LOOP;

#endif
