/* Imports: other clients' regions, as remote sides of transfers. The user's thread. Each keeps the
 * descriptor it was made of, so that it can be had anew from another daemon start. */
#include "libclient/client_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

/* Asks the daemon for the region behind the descriptor. 0: *out_reply is the answer, to be freed
 * with the request. */
static int import_ask(struct kvxfer_import *import_, uint64_t check_region,
		      struct kvx_cl_request **out_request)
{
	Kvxp__Import message = KVXP__IMPORT__INIT;
	struct kvxfer_client *client = import_->client;
	struct kvx_cl_request *request;
	int err;

	request = kvx_cl_request_create(client, KVXP__FRAME_TYPE__FRAME_IMPORT);
	if (request == NULL)
		return -ENOMEM;
	message.request_id = request->id;
	message.descriptor.data = import_->descriptor;
	message.descriptor.len = import_->descriptor_bytes;
	message.check_region = check_region;
	err = kvx_cl_request_send(client, request, &message.base, -1);
	if (err == 0 && request->reply->id == 0)
		err = kvx_cl_fail(client, -EPROTO, "the daemon gave the import no id");
	*out_request = request;
	return err;
}

int kvx_cl_import_fill(struct kvxfer_import *import_, const Kvxp__Reply *reply)
{
	if (kvx_cl_planes_decode(reply->layout, &import_->layout) < 0)
		return kvx_cl_fail(import_->client, -ENOMEM, "out of memory");
	import_->id = reply->id;
	import_->len_bytes = reply->len;
	snprintf(import_->transport, sizeof(import_->transport), "%s", reply->transport);
	return 0;
}

int kvx_cl_import_options(struct kvxfer_client *client, const struct kvxfer_import_options *options,
			  uint64_t *out_check_region)
{
	struct kvxfer_import_options opts = {0};
	struct kvx_why why;

	if (options != NULL && kvx_cl_copy_options(&opts, sizeof(opts), options, &why) < 0)
		return kvx_cl_fail(client, -EINVAL, "kvxfer_import_options: %s", why.text);
	if (opts.compare != NULL && opts.compare->client != client)
		return kvx_cl_fail(client, -EINVAL, "compare is a region of another client");
	*out_check_region = opts.compare != NULL ? opts.compare->id : 0;
	return 0;
}

int kvxfer_import_open(struct kvxfer_client *client, const void *descriptor,
		       size_t descriptor_bytes, const struct kvxfer_import_options *options,
		       struct kvxfer_import **out_import)
{
	struct kvx_cl_request *request = NULL;
	struct kvxfer_import *import_;
	uint64_t check_region;
	int err;

	err = kvx_cl_enter_setup(client);
	if (err < 0)
		return err;
	if (out_import == NULL || descriptor == NULL)
		return kvx_cl_fail(client, -EINVAL, "descriptor or out_import is NULL");
	if (descriptor_bytes == 0 || descriptor_bytes > KVXFER_DESCRIPTOR_MAX)
		return kvx_cl_fail(client, -EINVAL, "%zu bytes are not a descriptor",
				   descriptor_bytes);
	err = kvx_cl_import_options(client, options, &check_region);
	if (err < 0)
		return err;
	import_ = calloc(1, sizeof(*import_));
	if (import_ == NULL)
		return kvx_cl_fail(client, -ENOMEM, "out of memory");
	import_->client = client;
	import_->descriptor_bytes = descriptor_bytes;
	memcpy(import_->descriptor, descriptor, descriptor_bytes);
	DL_APPEND(client->imports, import_);
	err = import_ask(import_, check_region, &request);
	if (err == 0)
		err = kvx_cl_import_fill(import_, request->reply);
	if (request != NULL)
		kvx_cl_request_end(client, request);
	if (err < 0) {
		kvx_cl_import_destroy(import_);
		return err;
	}
	*out_import = import_;
	return 0;
}

void kvx_cl_import_destroy(struct kvxfer_import *import_)
{
	kvx_cl_planes_fini(&import_->layout);
	DL_DELETE(import_->client->imports, import_);
	free(import_);
}

void kvx_cl_import_lose(struct kvxfer_import *import_, uint32_t status, const char *text)
{
	struct kvxfer_client *client = import_->client;

	import_->id = 0;
	import_->lost_status = status;
	snprintf(import_->lost_text, sizeof(import_->lost_text), "%s", text);
	client->n_imports_lost++;
	kvx_cl_wake(client);
}

/* The planes that the user was told must stay true: another region under the same descriptor, which
 * no daemon should give, is none. */
static int import_refill(struct kvxfer_import *import_, const Kvxp__Reply *reply)
{
	struct kvx_cl_planes planes;
	bool same;

	if (kvx_cl_planes_decode(reply->layout, &planes) < 0)
		return kvx_cl_fail(import_->client, -ENOMEM, "out of memory");
	same = reply->len == import_->len_bytes && kvx_cl_planes_equal(&planes, &import_->layout);
	kvx_cl_planes_fini(&planes);
	if (!same) {
		kvx_cl_import_lose(import_, KVX_STATUS_LAYOUT,
				   "the region came back with another layout");
		return 0;
	}
	import_->id = reply->id;
	snprintf(import_->transport, sizeof(import_->transport), "%s", reply->transport);
	return 0;
}

/* After a reconnect. 0: it is there, or an IMPORT_LOST is queued; else the daemon did not answer.
 */
int kvx_cl_import_renew(struct kvxfer_import *import_)
{
	struct kvx_cl_request *request = NULL;
	int err;

	import_->id = 0;
	if (import_->find_id != 0) { /* by a name, which may be somebody else's by now */
		import_->finding = false;
		if (!import_->lost)
			kvx_cl_import_lose(import_, KVX_STATUS_DAEMON_LOST,
					   "it was found through the daemon that is gone: close it "
					   "and find it again");
		return 0;
	}
	import_->lost = false;
	err = import_ask(import_, 0, &request);
	if (err == 0) {
		err = import_refill(import_, request->reply);
	} else if (request != NULL && request->reply != NULL && request->reply->status != 0) {
		kvx_cl_import_lose(import_, request->reply->status, import_->client->error);
		err = 0;
	}
	if (request != NULL)
		kvx_cl_request_end(import_->client, request);
	return err;
}

int kvxfer_import_close(struct kvxfer_import *import_)
{
	struct kvxfer_client *client;
	int err;

	if (import_ == NULL)
		return -EINVAL;
	client = import_->client;
	if (import_->finding)
		kvx_cl_find_abandon(import_);
	err = kvx_cl_release(client, KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE, import_->id,
			     &import_->closing);
	if (err == 0 || err == -ECONNRESET) {
		if (import_->lost_status != KVXFER_OK)
			client->n_imports_lost--;
		kvx_cl_import_destroy(import_);
	}
	return err;
}

uint64_t kvxfer_import_bytes(const struct kvxfer_import *import_)
{
	return import_ != NULL ? import_->len_bytes : 0;
}

uint32_t kvxfer_import_planes(const struct kvxfer_import *import_)
{
	return import_ != NULL ? import_->layout.n_planes : 0;
}

int kvxfer_import_plane(const struct kvxfer_import *import_, uint32_t index,
			struct kvxfer_plane *out_plane)
{
	if (import_ == NULL || out_plane == NULL)
		return -EINVAL;
	if (index >= import_->layout.n_planes)
		return -ERANGE;
	*out_plane = import_->layout.planes[index];
	return 0;
}

const char *kvxfer_import_transport(const struct kvxfer_import *import_)
{
	return import_ != NULL ? import_->transport : "";
}
