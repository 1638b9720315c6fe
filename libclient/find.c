/* Imports by name: asked for without waiting. The reply to the request fills the import as soon as
 * it is read, and is told as an event: IMPORT_UP, or IMPORT_LOST. The user's thread, also inside
 * event callbacks. */
#include "libclient/client_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#define FIND_ADDRESS_MAX 127

bool kvx_cl_name_is_plain(const char *name)
{
	size_t n = 0;

	for (; name[n] != '\0'; n++)
		if (name[n] < '!' || name[n] > '~' || n == KVX_CL_PUBLISH_MAX)
			return false;
	return n > 0;
}

static int find_check(struct kvxfer_client *client, const char *address, const char *name)
{
	if (name == NULL || !kvx_cl_name_is_plain(name))
		return kvx_cl_fail(client, -EINVAL,
				   "a published name has 1 to %d characters of printable ASCII, "
				   "none of them blank",
				   KVX_CL_PUBLISH_MAX);
	if (strnlen(address, FIND_ADDRESS_MAX + 1) > FIND_ADDRESS_MAX)
		return kvx_cl_fail(client, -EINVAL, "the address is longer than %d bytes",
				   FIND_ADDRESS_MAX);
	return 0;
}

static int find_send(struct kvxfer_import *import_, const char *address, const char *name,
		     uint64_t check_region)
{
	Kvxp__ImportFind message = KVXP__IMPORT_FIND__INIT;
	struct kvxfer_client *client = import_->client;
	struct kvx_cl_request *request;
	uint8_t *body;
	int err;

	request = kvx_cl_request_create(client, KVXP__FRAME_TYPE__FRAME_IMPORT_FIND);
	if (request == NULL)
		return -ENOMEM;
	request->told = true;
	message.request_id = request->id;
	message.address = (char *)(uintptr_t)address;
	message.name = (char *)(uintptr_t)name;
	message.check_region = check_region;
	err = kvx_cl_reserve(client, request->type, kvxp__import_find__get_packed_size(&message),
			     &body);
	if (err < 0) {
		request->unsent = true;
		kvx_cl_request_end(client, request);
		return err;
	}
	kvxp__import_find__pack(&message, body);
	import_->find_id = request->id;
	import_->finding = true;
	kvx_cl_flush(client);
	return 0;
}

int kvxfer_import_find(struct kvxfer_client *client, const char *address, const char *name,
		       const struct kvxfer_import_options *options,
		       struct kvxfer_import **out_import)
{
	struct kvxfer_import *import_;
	uint64_t check_region;
	int err;

	err = kvx_cl_enter_data(client);
	if (err < 0)
		return err;
	if (out_import == NULL)
		return kvx_cl_fail(client, -EINVAL, "out_import is NULL");
	if (address == NULL)
		address = "";
	err = find_check(client, address, name);
	if (err == 0)
		err = kvx_cl_import_options(client, options, &check_region);
	if (err < 0)
		return err;
	import_ = calloc(1, sizeof(*import_));
	if (import_ == NULL)
		return kvx_cl_fail(client, -ENOMEM, "out of memory");
	import_->client = client;
	DL_APPEND(client->imports, import_);
	err = find_send(import_, address, name, check_region);
	if (err < 0) {
		kvx_cl_import_destroy(import_);
		return err;
	}
	*out_import = import_;
	return 0;
}

static struct kvxfer_import *find_import(const struct kvxfer_client *client, uint32_t request_id)
{
	struct kvxfer_import *import_ = NULL;

	DL_SEARCH_SCALAR(client->imports, import_, find_id, request_id);
	return import_;
}

void kvx_cl_find_on_reply(struct kvxfer_client *client, const Kvxp__Reply *reply)
{
	struct kvxfer_import *import_ = find_import(client, reply->request_id);

	if (import_ == NULL)
		return;
	import_->finding = false;
	if (reply->status != KVX_STATUS_OK)
		return;
	if (reply->id == 0)
		kvx_cl_quit(client, KVXFER_PROTOCOL, "the daemon gave the import no id");
	else if (kvx_cl_import_fill(import_, reply) < 0)
		kvx_cl_quit(client, KVXFER_NO_MEMORY, "no memory for the layout of an import");
}

bool kvx_cl_find_event(const struct kvxfer_client *client, const Kvxp__Reply *reply,
		       struct kvxfer_event *out_event)
{
	struct kvxfer_import *import_ = find_import(client, reply->request_id);
	bool up = reply->status == KVX_STATUS_OK;

	if (import_ == NULL || (up && import_->id == 0))
		return false;
	*out_event = (struct kvxfer_event){
	    .type = up ? KVXFER_EVENT_IMPORT_UP : KVXFER_EVENT_IMPORT_LOST,
	    .status = (int)reply->status,
	    .scope = (int)kvx_status_scope(reply->status),
	    .text = up || reply->text[0] != '\0' ? reply->text : kvx_status_text(reply->status),
	    .transport = "",
	    .import_ = import_,
	};
	if (up && reply->data.len > 0) {
		out_event->payload = reply->data.data;
		out_event->payload_bytes = reply->data.len;
	}
	return true;
}

void kvx_cl_find_abandon(struct kvxfer_import *import_)
{
	struct kvx_cl_request *request = NULL;

	DL_SEARCH_SCALAR(import_->client->requests, request, id, import_->find_id);
	if (request != NULL)
		request->abandoned = true;
	import_->finding = false;
}
