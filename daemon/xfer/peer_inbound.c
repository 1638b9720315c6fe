/* Transfers of a peer to and from regions of ours: opened, ended, lost. Loop thread; frames come
 * from peer_frame.c. A region's owner hears only of transfers with regions that the peer has
 * resolved (peer_export.c). When a peer is lost its transfers are reported as failed only after
 * inbound was stopped. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

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

int inbound_on_open(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerXferOpen *msg = (const Kvxp__PeerXferOpen *)message;
	struct peer_lane *lane = export_lane(peer, msg->region, msg->any_memory);
	struct peer_inbound *in;
	size_t label_bytes;

	if (msg->op != KVX_OP_READ && msg->op != KVX_OP_WRITE)
		return -EPROTO;
	HASH_FIND(hh, peer->inbound, &msg->xfer, sizeof(msg->xfer), in);
	if (in != NULL)
		return -EPROTO;
	if (lane == NULL || inbound_count(peer) >= PEER_INBOUND_MAX) {
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
	in->lane = lane;
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

void inbound_on_lost(struct kvx_peer *peer)
{
	struct peer_inbound *in, *tmp;

	peer->fence_owed = true;
	HASH_ITER (hh, peer->inbound, in, tmp) {
		inbound_close(peer, in);
		lanes_fence_begin(in->lane, LANES_BOTH, &in->fence);
		DL_APPEND(peer->dying, in);
	}
	exports_on_lost(peer);
}

/* Where nothing of the lost peer lands any more its transfers have failed and its exports are void:
 * tenant by tenant, as a lane may be up again before another one has stopped. */
static KVX_ON_LOOP void inbound_finish_lost(struct kvx_peer *peer)
{
	struct kvx_arrival arrival = {.status = -EHOSTDOWN, .text = peer->last_error};
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
	if (!exports_finish_lost(peer))
		peer->fence_owed = true;
}

void inbound_step(struct kvx_peer *peer)
{
	if (peer->fence_owed)
		inbound_finish_lost(peer);
	exports_step(peer);
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
