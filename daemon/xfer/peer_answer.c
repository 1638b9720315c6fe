/* What the owner's side of a resolve answers: whether the peer may have keys of a region of ours,
 * and the keys, one for each leg of the lane that it asks for. They leave this node in this answer
 * only, for the tenant of the region, and only with the region's token. Loop thread; frames come
 * from peer_frame.c. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

/* The lane that a peer asks keys for; NULL: it is not there any more. */
static struct peer_lane *resolve_find_lane(const struct kvx_peer *peer, uint64_t generation)
{
	for (unsigned i = 0; i < peer->peers->n_tenants; i++) {
		struct peer_lane *lane = peer->lanes[i];

		if (lane->wire_generation == generation && lane->phase >= LANE_CONNECTING &&
		    lane->phase <= LANE_UP)
			return lane;
	}
	return NULL;
}

static KVX_ON_LOOP int resolve_check(const struct peer_lane *lane, const Kvxp__PeerResolve *msg,
				     struct kvx_region **out_region, struct kvx_why *why)
{
	struct kvx_node *node = lane->peer->peers->conf.node;
	struct kvx_region *region = kvx_region_find(kvx_node_regions(node), msg->region);

	if (region == NULL)
		return kvx_why(why, -ENOENT,
			       "no such region: it was unregistered, or its engine "
			       "has ended");
	if (!kvx_region_token_equal(region, msg->token.data))
		return kvx_why(why, -EACCES, "wrong token: the descriptor was altered");
	if (region->tenant != lane->tenant)
		return kvx_why(why, -EACCES, "the region belongs to another tenant");
	if (region->access == 0)
		return kvx_why(why, -EACCES, "the region was registered without access for others");
	if (region->state != KVX_REGION_LIVE)
		return kvx_why(why, -EOWNERDEAD, "the region is being retired");
	*out_region = region;
	return 0;
}

/* The region's key for each live leg. */
static int resolved_keys(Kvxp__PeerResolved *msg, const struct peer_lane *lane,
			 const struct kvx_region *region, ProtobufCBinaryData keys[KVX_MAX_RAILS],
			 struct kvx_why *why)
{
	for (unsigned i = 0; i < lane->n_slots; i++) {
		const struct peer_leg *leg = &lane->legs[i];
		const void *mkey;
		size_t len;

		if (!leg_is_live(leg))
			continue;
		if (kvx_node_region_mkey(region, leg->rail->dom_index, &mkey, &len) < 0)
			return kvx_why(why, -ENETUNREACH,
				       "the region is not registered for %s %s of its node",
				       lane->lane.ops->name, leg_rail_name(leg));
		keys[msg->n_rkeys].data = (uint8_t *)(uintptr_t)mkey;
		keys[msg->n_rkeys++].len = len;
	}
	msg->rkeys = keys;
	return 0;
}

static int resolved_fill(Kvxp__PeerResolved *msg, const struct kvx_region *region)
{
	const struct kvx_layout *layout = region->layout;
	Kvxp__PeerPlane *planes;

	msg->len = region->mem.len_bytes;
	msg->access = region->access;
	if (layout == NULL || layout->n_planes == 0)
		return 0;
	planes = calloc(layout->n_planes, sizeof(*planes) + sizeof(planes));
	if (planes == NULL)
		return -ENOMEM;
	msg->planes = (Kvxp__PeerPlane **)(planes + layout->n_planes);
	msg->n_planes = layout->n_planes;
	for (uint32_t i = 0; i < layout->n_planes; i++) {
		kvxp__peer_plane__init(&planes[i]);
		planes[i].name = (char *)layout->planes[i].name;
		planes[i].offset = layout->planes[i].offset;
		planes[i].block_stride = layout->planes[i].block_stride;
		planes[i].block_bytes = layout->planes[i].block_bytes;
		planes[i].n_blocks = layout->planes[i].n_blocks;
		msg->planes[i] = &planes[i];
	}
	return 0;
}

static KVX_ON_LOOP int resolve_answer(struct peer_lane *lane, const Kvxp__PeerResolve *msg,
				      Kvxp__PeerResolved *reply,
				      ProtobufCBinaryData keys[KVX_MAX_RAILS], struct kvx_why *why)
{
	struct kvx_region *region = NULL;
	int err;

	if (lane == NULL)
		return kvx_why(why, -EHOSTDOWN, "the lane is down");
	err = resolve_check(lane, msg, &region, why);
	if (err < 0)
		return err;
	err = resolved_keys(reply, lane, region, keys, why);
	if (err < 0)
		return err;
	if (resolved_fill(reply, region) < 0 || inbound_add_export(lane, region->id) < 0)
		return kvx_why(why, -ENOMEM, "out of memory");
	return 0;
}

int answer_on_resolve(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerResolve *msg = (const Kvxp__PeerResolve *)message;
	Kvxp__PeerResolved reply = KVXP__PEER_RESOLVED__INIT;
	ProtobufCBinaryData keys[KVX_MAX_RAILS];
	struct kvx_why why = {.text = ""};
	int err;

	if (msg->token.len != KVX_TOKEN_BYTES)
		return -EPROTO;
	err = resolve_answer(resolve_find_lane(peer, msg->generation), msg, &reply, keys, &why);
	if (err < 0) {
		kvx_debug("peer %s: resolve refused: %s", peer->name, why.text);
		reply.n_rkeys = 0;
	}
	reply.request_id = msg->request_id;
	reply.status = (uint32_t)kvx_status_from_errno(err);
	reply.text = why.text;
	peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_RESOLVED, &reply);
	if (reply.n_planes > 0)
		free(reply.planes[0]);
	return 0;
}
