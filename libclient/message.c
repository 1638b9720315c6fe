/* Messages to other clients, and questions to the daemon about itself: set-up calls of one request
 * and one reply, but for the post, a data call. The user's thread. */
#include "libclient/client_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define QUERY_TEXT_MAX 256u

static int message_check(const struct kvxfer_import *import_, const void *data, size_t bytes)
{
	struct kvxfer_client *client = import_->client;

	if (data == NULL || bytes == 0)
		return kvx_cl_fail(client, -EINVAL, "the message is empty");
	if (bytes > client->limits.max_payload_bytes)
		return kvx_cl_fail(client, -EMSGSIZE, "a message of %zu bytes: the limit is %u",
				   bytes, client->limits.max_payload_bytes);
	if (import_->finding)
		return kvx_cl_fail(client, -EAGAIN,
				   "the import is not up yet: wait for KVXFER_EVENT_IMPORT_UP");
	if (import_->id == 0 || import_->lost)
		return kvx_cl_fail(client, -EPIPE, "the import was lost: close it");
	return 0;
}

int kvxfer_message_send(struct kvxfer_import *import_, const void *data, size_t bytes)
{
	Kvxp__MessageSend message = KVXP__MESSAGE_SEND__INIT;
	struct kvx_cl_request *request;
	struct kvxfer_client *client;
	int err;

	if (import_ == NULL)
		return -EINVAL;
	client = import_->client;
	err = kvx_cl_enter_setup(client);
	if (err < 0)
		return err;
	err = message_check(import_, data, bytes);
	if (err < 0)
		return err;
	request = kvx_cl_request_create(client, KVXP__FRAME_TYPE__FRAME_MESSAGE_SEND);
	if (request == NULL)
		return -ENOMEM;
	message.request_id = request->id;
	message.import = import_->id;
	message.data.data = (uint8_t *)(uintptr_t)data;
	message.data.len = bytes;
	err = kvx_cl_request_send(client, request, &message.base, -1);
	kvx_cl_request_end(client, request);
	return err;
}

int kvxfer_message_post(struct kvxfer_import *import_, const void *data, size_t bytes)
{
	Kvxp__MessagePost message = KVXP__MESSAGE_POST__INIT;
	struct kvxfer_client *client;
	uint8_t *body;
	int err;

	if (import_ == NULL)
		return -EINVAL;
	client = import_->client;
	err = kvx_cl_enter_data(client);
	if (err == 0)
		err = message_check(import_, data, bytes);
	if (err < 0)
		return err;
	message.import = import_->id;
	message.data.data = (uint8_t *)(uintptr_t)data;
	message.data.len = bytes;
	err = kvx_cl_reserve(client, KVXP__FRAME_TYPE__FRAME_MESSAGE_POST,
			     kvxp__message_post__get_packed_size(&message), &body);
	if (err < 0)
		return err;
	kvxp__message_post__pack(&message, body);
	kvx_cl_flush(client);
	return 0;
}

int kvxfer_client_query(struct kvxfer_client *client, const char *verb, const char *arg,
			char **out_json)
{
	Kvxp__Query message = KVXP__QUERY__INIT;
	struct kvx_cl_request *request;
	char *json;
	int err;

	err = kvx_cl_enter_setup(client);
	if (err < 0)
		return err;
	if (verb == NULL || out_json == NULL)
		return kvx_cl_fail(client, -EINVAL, "verb or out_json is NULL");
	if (strnlen(verb, QUERY_TEXT_MAX) == QUERY_TEXT_MAX ||
	    (arg != NULL && strnlen(arg, QUERY_TEXT_MAX) == QUERY_TEXT_MAX))
		return kvx_cl_fail(client, -EINVAL, "verb or arg is too long");
	request = kvx_cl_request_create(client, KVXP__FRAME_TYPE__FRAME_QUERY);
	if (request == NULL)
		return -ENOMEM;
	message.request_id = request->id;
	message.verb = (char *)(uintptr_t)verb;
	if (arg != NULL)
		message.arg = (char *)(uintptr_t)arg;
	err = kvx_cl_request_send(client, request, &message.base, -1);
	if (err == 0) {
		json = strdup(request->reply->text);
		if (json != NULL)
			*out_json = json;
		else
			err = kvx_cl_fail(client, -ENOMEM, "out of memory");
	}
	kvx_cl_request_end(client, request);
	return err;
}
