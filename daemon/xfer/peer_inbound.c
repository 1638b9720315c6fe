/* Regions of ours that a peer uses: which ones it has resolved (exports), its transfers to and from
 * them, messages to their owners, and withdrawal when a region is retired. Loop thread; frames come
 * from peer_frame.c. An owner hears only of regions that the peer has resolved. When a peer is lost
 * its transfers are reported as failed only after inbound was stopped. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

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

/* A transfer of the peer. */
struct peer_inbound {
	uint64_t xfer;
	uint64_t region;
	struct peer_lane *lane;
	uint64_t tag;
	int op;
	uint64_t open_ns;
	struct lane_fence fence; /* since the peer was lost */
	UT_hash_handle hh;
	struct peer_inbound *prev, *next; /* dying */
	char label[];                     /* for people */
};

/* exports */

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

int inbound_add_export(struct peer_lane *lane, uint64_t region)
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

int inbound_on_release(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerRelease *msg = (const Kvxp__PeerRelease *)message;
	struct peer_export *export = export_find(peer, msg->region);

	/* While it is being withdrawn only the answer to that counts. */
	if (export != NULL && export->deadline_ns == 0)
		export_drop(peer, export);
	return 0;
}

/* withdrawal */

int inbound_on_withdrawn(struct kvx_peer *peer, const ProtobufCMessage *message)
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

/* the peer's transfers */

static struct peer_lane *export_lane(const struct peer_export *export, bool any_memory)
{
	struct peer_lane *sibling = lane_sibling(export->lane);

	return sibling == NULL || export->lane->any_memory == any_memory ? export->lane : sibling;
}

int inbound_on_open(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerXferOpen *msg = (const Kvxp__PeerXferOpen *)message;
	const struct peer_export *export = export_find(peer, msg->region);
	struct peer_inbound *in;
	size_t label_bytes;

	if (msg->op != KVX_OP_READ && msg->op != KVX_OP_WRITE)
		return -EPROTO;
	HASH_FIND(hh, peer->inbound, &msg->xfer, sizeof(msg->xfer), in);
	if (in != NULL)
		return -EPROTO;
	if (export == NULL || export->lanes == 0 || inbound_count(peer) >= PEER_INBOUND_MAX) {
		peer->n_ignored++;
		return 0;
	}
	label_bytes = strnlen(msg->label, KVX_LABEL_BYTES - 1) + 1;
	in = calloc(1, sizeof(*in) + label_bytes);
	if (in == NULL)
		return -ENOMEM;
	peer_text(in->label, label_bytes, msg->label);
	in->open_ns = peer_now(peer->peers);
	in->xfer = msg->xfer;
	in->region = msg->region;
	in->tag = msg->tag;
	in->op = (int)msg->op;
	HASH_ADD(hh, peer->inbound, xfer, sizeof(in->xfer), in);
	if (in->hh.tbl == NULL) {
		free(in);
		return -ENOMEM;
	}
	in->lane = export_lane(export, msg->any_memory);
	in->lane->n_inbound++;
	in->lane->n_inbound_opened++;
	return 0;
}

/* Off the hash of those that are open. */
static void inbound_close(struct kvx_peer *peer, struct peer_inbound *in)
{
	HASH_DEL(peer->inbound, in);
	in->lane->n_inbound--;
}

/* Tells the region's owner, if the region is still there. */
static KVX_ON_LOOP void inbound_tell(struct kvx_peer *peer, const struct peer_inbound *in,
				     struct kvx_arrival *arrival)
{
	const struct kvx_peers *peers = peer->peers;
	const struct kvx_region *region =
	    kvx_region_find(kvx_node_regions(peers->conf.node), in->region);

	if (region == NULL)
		return;
	arrival->owner = region->owner;
	arrival->region = region->id;
	arrival->tag = in->tag;
	arrival->op = in->op;
	peers->conf.on_arrival(peers->conf.arg, arrival);
}

int inbound_on_end(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerXferEnd *msg = (const Kvxp__PeerXferEnd *)message;
	char text[KVX_WHY_BYTES], transport[32];
	struct kvx_arrival arrival = {.status = kvx_status_to_errno(msg->status)};
	struct peer_inbound *in;

	if (msg->payload.len > KVX_PAYLOAD_MAX)
		return -EPROTO;
	HASH_FIND(hh, peer->inbound, &msg->xfer, sizeof(msg->xfer), in);
	if (in == NULL) {
		peer->n_stale++;
		return 0;
	}
	peer_text(text, sizeof(text), msg->text);
	peer_text(transport, sizeof(transport), msg->transport);
	arrival.text = text;
	arrival.transport = transport;
	arrival.bytes = msg->bytes;
	if (arrival.status == 0) { /* a failed one has no payload */
		arrival.payload = msg->payload.data;
		arrival.payload_bytes = (uint32_t)msg->payload.len;
	}
	inbound_close(peer, in);
	inbound_tell(peer, in, &arrival);
	free(in);
	return 0;
}

/* loss */

void inbound_on_lost(struct kvx_peer *peer)
{
	struct peer_export *export;
	struct peer_inbound *in, *tmp;

	peer->fence_owed = true;
	peer->n_refused_streams = 0; /* who comes next may use the numbers again */
	HASH_ITER (hh, peer->inbound, in, tmp) {
		inbound_close(peer, in);
		lanes_fence_begin(in->lane, LANES_BOTH, &in->fence);
		DL_APPEND(peer->dying, in);
	}
	for (export = peer->exports; export != NULL; export = export->hh.next) {
		if (export->lost && export->lanes == 0)
			continue;
		export->lost = true;
		export->lanes = 0;
		lanes_fence_begin(export->lane, LANES_BOTH, &export->lost_fence);
	}
}

/* Where nothing of the lost peer lands any more its transfers have failed and its exports are void:
 * tenant by tenant, as a lane may be up again before another one has stopped. */
static KVX_ON_LOOP void inbound_finish_lost(struct kvx_peer *peer)
{
	struct kvx_arrival arrival = {.status = -EHOSTDOWN, .text = peer->last_error};
	struct peer_export *export, *tmp_export;
	struct peer_inbound *in, *tmp;

	peer->fence_owed = false;
	DL_FOREACH_SAFE (peer->dying, in, tmp) {
		if (!lanes_fence_is_over(in->lane, &in->fence)) {
			peer->fence_owed = true;
			continue;
		}
		arrival.transport = in->lane->lane.ops->name;
		DL_DELETE(peer->dying, in);
		inbound_tell(peer, in, &arrival);
		free(in);
	}
	HASH_ITER (hh, peer->exports, export, tmp_export) {
		if (!export->lost)
			continue;
		export->lost = !lanes_fence_is_over(export->lane, &export->lost_fence);
		if (export->lost)
			peer->fence_owed = true;
		else if (export->lanes == 0)
			export_free(peer, export);
	}
}

void inbound_step(struct kvx_peer *peer)
{
	struct peer_export *export, *tmp;

	if (peer->fence_owed)
		inbound_finish_lost(peer);
	if (peer->n_withdrawing == 0)
		return;
	HASH_ITER (hh, peer->exports, export, tmp)
		export_check_deadline(peer, export);
}

/* The earliest deadline of a withdrawal; those that wait for the fence are woken by it. */
uint64_t inbound_next_ns(const struct kvx_peer *peer)
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

unsigned inbound_count(const struct kvx_peer *peer)
{
	return HASH_COUNT(peer->inbound);
}

static void inbound_row(const struct kvx_peer *peer, const struct peer_inbound *in,
			struct kvx_inbound_row *out_row)
{
	*out_row = (struct kvx_inbound_row){
	    .peer = peer->name,
	    .tenant = in->lane->tenant,
	    .region = in->region,
	    .tag = in->tag,
	    .op = in->op,
	    .label = in->label,
	    .open_ns = in->open_ns,
	};
}

void kvx_peers_walk_inbound(const struct kvx_peers *peers,
			    void (*cb)(void *arg, const struct kvx_inbound_row *row), void *arg)
{
	const struct kvx_peer *peer;
	const struct peer_inbound *in;
	struct kvx_inbound_row row;

	for (peer = peers->table; peer != NULL; peer = peer->hh.next) {
		for (in = peer->inbound; in != NULL; in = in->hh.next) {
			inbound_row(peer, in, &row);
			cb(arg, &row);
		}
		DL_FOREACH (peer->dying, in) {
			inbound_row(peer, in, &row);
			cb(arg, &row);
		}
	}
}

bool inbound_is_empty(const struct kvx_peer *peer)
{
	return peer->exports == NULL && peer->inbound == NULL && peer->dying == NULL;
}

/* messages to owners */

/* The sender learns of the first refusal a while after it has sent more: that many streams at once
 * are not refused within that while. */
static bool stream_is_refused(const struct kvx_peer *peer, uint64_t stream)
{
	unsigned n =
	    peer->n_refused_streams < PEER_STREAMS ? peer->n_refused_streams : PEER_STREAMS;

	for (unsigned i = 0; i < n; i++)
		if (peer->refused_streams[i] == stream)
			return true;
	return false;
}

static int stream_refuse(struct kvx_peer *peer, uint64_t stream)
{
	if (peer->refused_streams == NULL)
		peer->refused_streams = calloc(PEER_STREAMS, sizeof(*peer->refused_streams));
	if (peer->refused_streams == NULL)
		return -ENOMEM;
	peer->refused_streams[peer->n_refused_streams++ % PEER_STREAMS] = stream;
	return 0;
}

static KVX_ON_LOOP int message_deliver(const struct kvx_peer *peer, const Kvxp__PeerMessage *msg,
				       struct kvx_why *why)
{
	const struct kvx_peers *peers = peer->peers;
	struct kvx_region *region =
	    kvx_region_find(kvx_node_regions(peers->conf.node), msg->region);
	int err;

	if (region == NULL)
		return kvx_why(why, -ENOENT,
			       "no such region: it was unregistered, or its engine "
			       "has ended");
	if (!kvx_region_token_equal(region, msg->token.data))
		return kvx_why(why, -EACCES, "wrong token");
	const struct peer_export *export = export_find(peer, region->id);

	if (export == NULL || export->lanes == 0) /* which only its own tenant can */
		return kvx_why(why, -EACCES, "the sending node has not resolved the region");
	err = peers->conf.on_message(peers->conf.arg, region, msg->data.data,
				     (uint32_t)msg->data.len);
	if (err < 0)
		return kvx_why(why, err, "%s",
			       kvx_status_text((uint32_t)kvx_status_from_errno(err)));
	return 0;
}

int inbound_on_message(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerMessage *msg = (const Kvxp__PeerMessage *)message;
	Kvxp__PeerMessageReply reply = KVXP__PEER_MESSAGE_REPLY__INIT;
	struct kvx_why why = {.text = ""};
	int err;

	if (msg->token.len != KVX_TOKEN_BYTES || msg->data.len > KVX_PAYLOAD_MAX)
		return -EPROTO;
	if (msg->stream != 0 && stream_is_refused(peer, msg->stream)) {
		err = kvx_why(&why, -ECANCELED, "an earlier message was refused");
	} else {
		err = message_deliver(peer, msg, &why);
		if (err < 0 && msg->stream != 0 && stream_refuse(peer, msg->stream) < 0)
			return -ENOMEM; /* which ends the connection: fail closed */
	}
	reply.request_id = msg->request_id;
	reply.status = (uint32_t)kvx_status_from_errno(err);
	reply.text = why.text;
	peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_MESSAGE_REPLY, &reply);
	return 0;
}
