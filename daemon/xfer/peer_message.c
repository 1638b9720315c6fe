/* Messages of a peer to the owners of regions of ours: none is delivered behind one of its stream
 * that was refused. Loop thread; frames come from peer_frame.c. An owner hears only of regions that
 * the peer has resolved (peer_export.c). What this node sends is in peer_calls.c. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdlib.h>

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
	if (export_lane(peer, region->id, false) == NULL) /* which only its own tenant can */
		return kvx_why(why, -EACCES, "the sending node has not resolved the region");
	err = peers->conf.on_message(peers->conf.arg, region, msg->data.data,
				     (uint32_t)msg->data.len);
	if (err < 0)
		return kvx_why(why, err, "%s",
			       kvx_status_text((uint32_t)kvx_status_from_errno(err)));
	return 0;
}

int message_on_frame(struct kvx_peer *peer, const ProtobufCMessage *message)
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

/* Who comes next may use the numbers again. */
void message_on_lost(struct kvx_peer *peer)
{
	peer->n_refused_streams = 0;
}
