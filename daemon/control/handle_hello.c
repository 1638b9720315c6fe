/* HELLO: agrees on a version, tells the limits and hands over the daemon's pidfd. Loop thread;
 * called for the first frame of a client only. */
#include <errno.h>
#include <inttypes.h>

#include "base/log.h"
#include "control/control_priv.h"
#include "control/decode.h"

static KVX_ON_LOOP void client_send_hello_reply(struct kvx_client *client)
{
	struct kvx_control *control = client->control;
	const struct kvx_config *config = control->conf.config;
	Kvxp__HelloReply reply = KVXP__HELLO_REPLY__INIT;
	uint8_t body[512];
	size_t len;
	int err;

	reply.version = KVX_PROTOCOL_MAX;
	reply.node_id = (ProtobufCBinaryData){KVX_NODE_ID_BYTES, control->conf.node_id};
	reply.epoch = control->conf.epoch;
	reply.daemon_version = (char *)(uintptr_t)control->conf.version;
	reply.max_frame_bytes = config->frame_bytes;
	reply.max_ops = config->ops;
	reply.max_blocks = config->blocks;
	reply.max_planes = config->planes;
	reply.max_payload_bytes = KVX_PAYLOAD_MAX;
	reply.max_transfers = config->transfers_per_client;
	reply.max_waits = config->waits_per_client;
	reply.client_id = client->id;
	reply.tenant = control->tenants[client->tenant].name;
	reply.max_region_fds = kvx_control_takes_dmabufs(control) ? KVX_WIRE_MAX_FDS : 0;
	len = kvxp__hello_reply__get_packed_size(&reply);
	if (len > sizeof(body)) {
		kvx_client_fail(client, -ENOTRECOVERABLE, "hello reply of %zu bytes", len);
		return;
	}
	kvxp__hello_reply__pack(&reply, body);
	err = client->front->ops->put_fd(client->front, KVXP__FRAME_TYPE__FRAME_HELLO_REPLY, body,
					 (uint32_t)len, control->pidfd);
	if (err < 0)
		kvx_client_fail(client, err, "the answer to HELLO could not be queued");
}

void kvx_handle_hello(struct kvx_client *client, struct kvx_msg *msg)
{
	struct kvx_control *control = client->control;
	const struct kvx_config *config = control->conf.config;
	struct kvx_why why = {""};
	Kvxp__Hello *hello;

	hello = kvx_client_decode(client, &kvxp__hello__descriptor, msg);
	if (hello == NULL)
		return;
	if (hello->version_min > KVX_PROTOCOL_MAX || hello->version_max < KVX_PROTOCOL_MIN ||
	    hello->version_min > hello->version_max) {
		kvx_client_fail(client, -EPROTONOSUPPORT,
				"the client speaks protocol %" PRIu32 " to %" PRIu32
				", this daemon %u to %u: update the older of the two",
				hello->version_min, hello->version_max, KVX_PROTOCOL_MIN,
				KVX_PROTOCOL_MAX);
		return;
	}
	if (kvx_decode_text(hello->name, "client name", client->name, sizeof(client->name), &why) <
		0 ||
	    kvx_decode_text(hello->library, "library version", client->library,
			    sizeof(client->library), &why) < 0) {
		kvx_client_fail(client, -EINVAL, "%s", why.text);
		return;
	}
	if (client->over_limit) {
		control->stats.refused_connects++;
		kvx_client_fail(client, -EDQUOT,
				"client limit %" PRIu32 " reached ([limits] clients)",
				config->clients);
		return;
	}
	if (client->pid == 0) /* of another pid namespace */
		client->pid = (pid_t)hello->pid;
	kvx_timer_stop(control->conf.timers, &client->hello_timer);
	kvx_sm_move(&client->sm, KVX_CLIENT_READY);
	client->front->ops->set_max(client->front, config->frame_bytes);
	kvx_debug("client %" PRIu64 " (%s, pid %d): hello", client->id, client->name,
		  (int)client->pid);
	client_send_hello_reply(client);
}
