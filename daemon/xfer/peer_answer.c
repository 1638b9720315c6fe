/* What the owner's side of a resolve answers: whether the peer may have keys of a region of ours,
 * and the keys, one for each leg of the lane that it asks for. They leave this node in this answer
 * only, for the tenant of the region, and only with the region's token. Loop thread; frames come
 * from peer_frame.c. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

/* The lane that a peer asks keys for; NULL: it is not there any more. */
static struct peer_lane *resolve_find_lane(const struct kvx_peer *peer, uint64_t generation)
{
	for (unsigned i = 0; i < peer->n_lanes; i++) {
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

/* The region's key for each live leg. One that does not reach the region is left empty, where the
 * peer knows what that means. */
static int resolved_keys(Kvxp__PeerResolved *msg, const struct peer_lane *lane,
			 const struct kvx_region *region, ProtobufCBinaryData keys[KVX_MAX_RAILS],
			 struct kvx_why *why)
{
	const char *missing = NULL;
	unsigned n = 0;

	for (unsigned i = 0; i < lane->n_slots; i++) {
		const struct peer_leg *leg = &lane->legs[i];
		const void *mkey = NULL;
		size_t len = 0;

		if (!leg_is_live(leg))
			continue;
		if (kvx_node_region_mkey(region, leg->rail->dom_index, &mkey, &len) < 0)
			missing = leg_rail_name(leg);
		else
			n++;
		keys[msg->n_rkeys].data = (uint8_t *)(uintptr_t)mkey;
		keys[msg->n_rkeys++].len = len;
	}
	msg->rkeys = keys;
	if (missing != NULL && (n == 0 || !lane->peer->any_memory))
		return kvx_why(why, -ENETUNREACH,
			       "the region is not registered for %s %s of its node",
			       lane->lane.ops->name, missing);
	return 0;
}

static void resolved_free(Kvxp__PeerResolved *msg)
{
	if (msg->n_planes > 0)
		free(msg->planes[0]);
	msg->n_planes = 0;
}

/* The peer would take a frame that is too long for an end of the connection. */
static int resolved_check(const Kvxp__PeerResolved *reply, const struct peer_lane *lane,
			  struct kvx_why *why)
{
	size_t bytes = protobuf_c_message_get_packed_size(&reply->base);
	uint32_t max_bytes = lane->peer->peers->conf.max_frame_bytes;
	char names[KVX_WHY_BYTES / 3];
	size_t used = 0;

	if (bytes <= max_bytes)
		return 0;
	names[0] = '\0';
	for (unsigned i = 0; i < lane->n_slots && used < sizeof(names); i++)
		if (leg_is_live(&lane->legs[i]))
			used += (size_t)snprintf(names + used, sizeof(names) - used, " %s",
						 leg_rail_name(&lane->legs[i]));
	return kvx_why(why, -EMSGSIZE,
		       "the region's keys for %s%s take %zu bytes with its layout, and a frame "
		       "between daemons %" PRIu32 ": raise limits.frame_bytes on both nodes, or "
		       "register fewer segments at once",
		       lane->lane.ops->name, names, bytes, max_bytes);
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
	if (resolved_fill(reply, region) < 0)
		return kvx_why(why, -ENOMEM, "out of memory");
	err = resolved_check(reply, lane, why);
	if (err < 0)
		return err;
	if (export_add(lane, region->id) < 0)
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
	reply.request_id = msg->request_id;
	err = resolve_answer(resolve_find_lane(peer, msg->generation), msg, &reply, keys, &why);
	if (err < 0) {
		kvx_debug("peer %s: resolve refused: %s", peer->name, why.text);
		reply.n_rkeys = 0;
		resolved_free(&reply);
	}
	reply.status = (uint32_t)kvx_status_from_errno(err);
	reply.text = why.text;
	peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_RESOLVED, &reply);
	resolved_free(&reply);
	return 0;
}
