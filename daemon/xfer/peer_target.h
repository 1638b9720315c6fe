/* Regions of a peer that we use, inside: each is resolved once for each lane, shared by all
 * imports, and withdrawn when its owner says so. Shared by
 *
 *   peer_remote.c   a target's life: made, lost, withdrawn, freed
 *   peer_way.c      which of a tenant's two lanes a transfer goes by
 *   peer_keys.c     their keys, one for each leg of the lane
 *   peer_resolve.c  how a target is asked for and answered
 *
 * Everything here belongs to the loop thread. */
#ifndef KVX_PEER_TARGET_H
#define KVX_PEER_TARGET_H

#include <stdbool.h>
#include <stdint.h>
/* Without memory HASH_ADD adds nothing and leaves hh.tbl NULL. */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>

#include "base/roles.h"
#include "peer.pb-c.h"
#include "xfer/peer.h"
#include "xfer/peer_lane.h"

enum target_state {
	TARGET_NEW,       /* to be resolved when the lane is up */
	TARGET_ASKED,     /* waits for PEER_RESOLVED */
	TARGET_UNPACKING, /* waits for RKEY_UNPACK */
	TARGET_READY,
	TARGET_ELSEWHERE, /* this generation of the lane does not reach it */
	TARGET_LOST,
};

struct target_key {
	uint64_t region;
	uint64_t lane; /* index; this wide, so that there is no padding */
	uint8_t token[KVX_TOKEN_BYTES];
};

/* A target's key for one leg. */
struct peer_key {
	struct peer_target *target;
	const struct kvx_node_rail *rail;
	struct kvx_cmd cmd;
};

/* A region of the peer by one lane. Imports know the one by the lane of their tenant; where the
 * region, or the local region of a transfer, is out of reach of that lane, this one keeps another
 * one of the same region by the bounce lane. Owned by the peer; freed in remote_step() only. */
struct peer_target {
	struct kvx_target target; /* first: released by it */
	struct kvx_peer *peer;
	struct peer_lane *lane;
	struct peer_target *bounce; /* that this one keeps, with a reference; NULL: none */
	struct peer_target *first;  /* who keeps this one; NULL: nobody (any more) */
	bool elsewhere; /* when it was asked last, the lane did not reach it: transfers go by
			   `bounce` */
	enum target_state state;
	struct kvx_target **list; /* which of the peer's it is on; NULL: none */
	struct target_key key;
	uint64_t epoch; /* of the descriptor */
	uint64_t request_id;
	uint64_t generation; /* of the lane, when it was asked */
	bool known;          /* resolved once: target is filled */
	bool fencing;        /* lost, and transfers of ours may not have ended */
	bool peer_lost; /* lost with the peer: who watches it is told after the inbound fence */
	struct lane_fence inbound; /* that one */
	bool withdrawing;          /* PEER_WITHDRAWN is owed */
	uint64_t idle_ns;          /* nobody has used it since; 0: used */
	struct kvx_resolve *waiters;
	struct peer_key *keys; /* of the legs, in their order */
	unsigned n_keys, n_keys_busy;
	int key_status; /* of the first that could not be unpacked */
	UT_hash_handle hh;
};

/* peer_remote.c */
/* key.lane is set here. */
int target_create(struct peer_lane *lane, const struct target_key *key, uint64_t epoch,
		  struct peer_target **out_target) KVX_ON_LOOP;
void target_move(struct peer_target *t, enum target_state state) KVX_ON_LOOP;
void target_lose(struct peer_target *t, int status, const char *text) KVX_ON_LOOP;
void target_abandon(struct peer_target *t) KVX_ON_LOOP; /* nobody waits for it any more */
void remote_step(struct kvx_peer *peer) KVX_ON_LOOP;
uint64_t remote_next_ns(const struct kvx_peer *peer);
void remote_lose_all(struct kvx_peer *peer, int status, const char *text) KVX_ON_LOOP;
/* Fails resolves that wait for a lane, or for any. */
void remote_fail_waiting(struct peer_lane *lane, int status, const char *text) KVX_ON_LOOP;
void remote_fail_all_waiting(struct kvx_peer *peer, int status, const char *text) KVX_ON_LOOP;
/* Fails resolves that wait for an epoch other than the peer's. */
void remote_check_epoch(struct kvx_peer *peer) KVX_ON_LOOP;
bool remote_is_wanted(const struct kvx_peer *peer); /* a resolve waits */
unsigned remote_count(const struct kvx_peer *peer);
bool remote_is_empty(const struct kvx_peer *peer);          /* lost ones included */
void remote_stale_keys(struct peer_lane *lane) KVX_ON_LOOP; /* it is down: resolve anew */
void remote_free_keys(struct peer_lane *lane) KVX_ON_LOOP;  /* before its eps are closed */
int remote_on_withdraw(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;

/* peer_way.c */
/* struct kvx_target's. */
int way_route(struct kvx_target *target, const struct kvx_route_ask *ask,
	      struct kvx_target **out_target, struct kvx_why *why);
/* The lane does not reach the region: from now on it goes by the bounce lane. false: it cannot. */
bool way_go_elsewhere(struct peer_target *t) KVX_ON_LOOP;
void way_on_ready(struct peer_target *t) KVX_ON_LOOP; /* it has got keys */
/* Of a target that imports know: can its transfers be submitted, and by which lane do most of them
 * go? */
bool way_is_open(const struct peer_target *t);
struct peer_lane *way_lane(const struct peer_target *t);
/* t was lost: so is what hangs on it. */
void way_on_lost(struct peer_target *t, int status, const char *text) KVX_ON_LOOP;
void way_let_go(struct peer_target *t) KVX_ON_LOOP; /* of `bounce` */
/* Somebody uses it, or what it keeps. */
bool way_is_used(const struct peer_target *t);

/* peer_keys.c */
/* One key for each live leg of the target's lane, from the owner's answer. -EPROTO, -ENOMEM. */
int keys_unpack(struct peer_target *t, const Kvxp__PeerResolved *msg) KVX_ON_LOOP;
bool keys_are_busy(const struct peer_target *t); /* with workers */
bool keys_are_there(const struct peer_target *t);
void keys_free(struct peer_target *t) KVX_ON_LOOP; /* no batch of ours uses them any more */
void keys_fini(struct peer_target *t);             /* there are none */

/* peer_resolve.c */
void resolve_end_waiters(struct peer_target *t, int status, const char *text) KVX_ON_LOOP;
void resolve_ask(struct peer_target *t) KVX_ON_LOOP;
int resolve_on_resolved(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
/* Its keys are unpacked, or one of them is not: key_status. */
void resolve_on_keys(struct peer_target *t) KVX_ON_LOOP;

#endif
