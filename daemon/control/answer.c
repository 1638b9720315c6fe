/* The way back to a client: replies, events and errors, packed straight into the front's send
 * buffer. Called by handlers and by what node and peers report. Never touches a socket, and never
 * ends a client at once: one that does not read is doomed here and ended by settle. */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "control/control_priv.h"
#include "control/event_pack.h"

#define EVENT_BYTES (KVX_PAYLOAD_MAX + 1024)

static uint64_t events_limit(const struct kvx_client *client)
{
	return client->control->conf.config->events_bytes;
}

bool kvx_client_is_full(const struct kvx_client *client)
{
	return client->front->ops->pending_bytes(client->front) > events_limit(client) / 2;
}

/* What is there before counts, not the new frame: a long answer to a query is no offence. */
static KVX_ON_LOOP bool client_may_queue(struct kvx_client *client)
{
	size_t pending = client->front->ops->pending_bytes(client->front);

	if (client->sm.state != KVX_CLIENT_NEW && client->sm.state != KVX_CLIENT_READY)
		return false;
	if (pending <= events_limit(client))
		return true;
	client->control->stats.slow_readers++;
	kvx_client_fail(client, -EDQUOT,
			"%zu bytes of events and replies are unread, %llu are allowed "
			"([limits] events_bytes): dispatch more often",
			pending, (unsigned long long)events_limit(client));
	return false;
}

static KVX_ON_LOOP void client_pack(struct kvx_client *client, uint16_t type,
				    const ProtobufCMessage *message)
{
	size_t len = protobuf_c_message_get_packed_size(message);
	uint8_t *body = NULL;

	if (len <= UINT32_MAX)
		body = client->front->ops->reserve(client->front, type, (uint32_t)len);
	if (body == NULL) {
		kvx_client_fail(client, -ENOMEM, "no memory for an answer of %zu bytes", len);
		return;
	}
	protobuf_c_message_pack(message, body);
}

void kvx_client_reply(struct kvx_client *client, const Kvxp__Reply *reply)
{
	if (client_may_queue(client))
		client_pack(client, KVXP__FRAME_TYPE__FRAME_REPLY, &reply->base);
}

void kvx_client_reply_error(struct kvx_client *client, uint32_t request_id, int status,
			    const char *text)
{
	Kvxp__Reply reply = KVXP__REPLY__INIT;

	reply.request_id = request_id;
	reply.status = kvx_status_from_errno(status);
	reply.text = (char *)(uintptr_t)(text != NULL ? text : "");
	if (reply.status != KVX_STATUS_OK && reply.text[0] == '\0')
		reply.text = (char *)(uintptr_t)kvx_status_text(reply.status);
	if (reply.status != KVX_STATUS_OK)
		kvx_debug("client %llu: request %u refused: %s: %s", (unsigned long long)client->id,
			  request_id, kvx_status_name(reply.status), reply.text);
	kvx_client_reply(client, &reply);
}

void kvx_client_event(struct kvx_client *client, const Kvxp__Event *event)
{
	uint8_t buf[EVENT_BYTES];
	uint8_t *body;
	size_t len;

	if (!client_may_queue(client))
		return;
	client->control->stats.events++;
	len = kvx_event_pack(event, buf, sizeof(buf));
	if (len == 0) { /* an endless text: the other way has room for everything */
		client_pack(client, KVXP__FRAME_TYPE__FRAME_EVENT, &event->base);
		return;
	}
	body = client->front->ops->reserve(client->front, KVXP__FRAME_TYPE__FRAME_EVENT,
					   (uint32_t)len);
	if (body == NULL)
		kvx_client_fail(client, -ENOMEM, "no memory for an event");
	else
		memcpy(body, buf, len);
}

/* The last frame of a client; unlike the others it goes out while the client is ending. */
void kvx_client_send_error(struct kvx_client *client, int status, const char *text)
{
	Kvxp__Error error = KVXP__ERROR__INIT;
	uint8_t *body;
	size_t len;

	error.status = kvx_status_from_errno(status);
	error.text = (char *)(uintptr_t)text;
	len = kvxp__error__get_packed_size(&error);
	body = client->front->ops->reserve(client->front, KVXP__FRAME_TYPE__FRAME_ERROR,
					   (uint32_t)len);
	if (body != NULL)
		kvxp__error__pack(&error, body);
}
