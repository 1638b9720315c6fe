/* What is published here, told to peers that ask for it by name: for the tenants that both nodes
 * have. The half that asks is peer_find.c. Loop thread; frames come from peer_frame.c. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static KVX_ON_LOOP int find_here(const struct kvx_peer *peer, const Kvxp__PeerFind *msg,
				 struct kvx_region **out_region, struct kvx_why *why)
{
	const struct kvx_peers *peers = peer->peers;
	struct kvx_region *region;
	uint32_t tenant = 0;

	while (tenant < peers->n_tenants && strcmp(peers->tenants[tenant], msg->tenant) != 0)
		tenant++;
	if (tenant == peers->n_tenants || !peer->lanes[tenant]->wanted)
		return kvx_why(why, -EACCES, "the node does not have the tenant");
	region = kvx_region_find_published(kvx_node_regions(peers->conf.node), tenant, msg->name);
	if (region == NULL || region->state != KVX_REGION_LIVE)
		return kvx_why(why, -ENOENT,
			       "nobody has published that name on the node (yet): is its engine "
			       "up?");
	*out_region = region;
	return 0;
}

int find_on_find(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerFind *msg = (const Kvxp__PeerFind *)message;
	const struct kvx_peers *peers = peer->peers;
	Kvxp__PeerFound reply = KVXP__PEER_FOUND__INIT;
	uint8_t bytes[KVX_DESC_BYTES];
	struct kvx_why why = {.text = ""};
	struct kvx_region *region = NULL;
	struct kvx_desc desc;
	const void *note;
	int err = find_here(peer, msg, &region, &why);

	if (err == 0) {
		kvx_desc_of(&desc, region, peers->conf.node_id, peers->conf.epoch);
		snprintf(desc.addr, sizeof(desc.addr), "%s", peers->address);
		kvx_desc_pack(&desc, bytes);
		reply.descriptor = (ProtobufCBinaryData){sizeof(bytes), bytes};
		reply.note.len = kvx_region_note(region, &note);
		if (reply.note.len > 0)
			reply.note.data = (uint8_t *)(uintptr_t)note;
	}
	reply.request_id = msg->request_id;
	reply.status = (uint32_t)kvx_status_from_errno(err);
	reply.text = why.text;
	peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_FOUND, &reply);
	return 0;
}
