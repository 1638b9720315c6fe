/* Set-up calls: a request, and blocking for its reply to the client's deadline. The user's thread.
 *
 * A request whose time was over is abandoned, not forgotten: if the daemon answers later, a region
 * registered or an import made in vain is released again, and the answer to a release is kept for
 * the caller's next attempt. */
#include "libclient/client_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <utlist.h>

static uint32_t next_request_id(struct kvxfer_client *client)
{
	if (++client->last_request == 0)
		client->last_request = 1;
	return client->last_request;
}

struct kvx_cl_request *kvx_cl_request_create(struct kvxfer_client *client, uint16_t type)
{
	struct kvx_cl_request *request = calloc(1, sizeof(*request));

	if (request == NULL) {
		kvx_cl_fail(client, -ENOMEM, "out of memory");
		return NULL;
	}
	request->id = next_request_id(client);
	request->type = type;
	DL_APPEND(client->requests, request);
	return request;
}

static void request_free(struct kvxfer_client *client, struct kvx_cl_request *request)
{
	DL_DELETE(client->requests, request);
	if (request->reply != NULL)
		kvxp__reply__free_unpacked(request->reply, NULL);
	free(request);
}

int kvx_cl_request_wait(struct kvxfer_client *client, struct kvx_cl_request *request,
			uint64_t deadline_ns)
{
	const Kvxp__Reply *reply;

	while (request->reply == NULL) {
		int n;

		if (client->state != KVX_CL_UP)
			return kvx_cl_fail(client, -ECONNRESET, "the daemon is gone: %s",
					   client->lost_text);
		n = kvx_cl_read(client);
		if (n == -EAGAIN ? kvx_cl_poll(client, deadline_ns) < 0
				 : kvx_cl_now_ns() >= deadline_ns && request->reply == NULL)
			return kvx_cl_fail(client, -ETIMEDOUT,
					   "the daemon did not answer within %d ms",
					   client->timeout_ms);
	}
	reply = request->reply;
	if (reply->status == KVX_STATUS_OK)
		return 0;
	return kvx_cl_fail(client, kvx_status_to_errno(reply->status), "%s",
			   reply->text[0] != '\0' ? reply->text : kvx_status_text(reply->status));
}

int kvx_cl_request_send(struct kvxfer_client *client, struct kvx_cl_request *request,
			const ProtobufCMessage *message, int fd)
{
	return kvx_cl_request_send_fds(client, request, message, &fd, fd >= 0);
}

static int request_unsent(struct kvxfer_client *client, struct kvx_cl_request *request, int err)
{
	request->unsent = true;
	switch (err) {
	case -EMSGSIZE:
		return kvx_cl_fail(client, err, "the request is longer than the daemon takes");
	case -EMFILE:
		return kvx_cl_fail(client, err,
				   "this process has no free file descriptor: raise its limit "
				   "(ulimit -n, RLIMIT_NOFILE)");
	case -ETOOMANYREFS:
		return kvx_cl_fail(client, -EMFILE,
				   "more file descriptors of this user are on their way between "
				   "processes than one process may have open: raise its limit "
				   "(ulimit -n, RLIMIT_NOFILE), or try again");
	default:
		return kvx_cl_fail(client, err, "the request could not be queued");
	}
}

int kvx_cl_request_send_fds(struct kvxfer_client *client, struct kvx_cl_request *request,
			    const ProtobufCMessage *message, const int *fds, unsigned n_fds)
{
	uint64_t deadline_ns = kvx_cl_deadline_ns(client);
	int err = kvx_cl_put_fds(client, request->type, message, fds, n_fds);

	if (err < 0)
		return request_unsent(client, request, err);
	if (kvx_cl_flush(client) == -ETOOMANYREFS && kvx_writer_unput(client->writer)) {
		kvx_cl_flush(client); /* for what was put before */
		return request_unsent(client, request, -ETOOMANYREFS);
	}
	return kvx_cl_request_wait(client, request, deadline_ns);
}

void kvx_cl_request_end(struct kvxfer_client *client, struct kvx_cl_request *request)
{
	if (request->reply == NULL && !request->unsent && client->state == KVX_CL_UP)
		request->abandoned = true;
	else
		request_free(client, request);
}

void kvx_cl_drop_requests(struct kvxfer_client *client)
{
	struct kvx_cl_request *request, *next;
	struct kvxfer_region *region;
	struct kvxfer_import *import_;

	DL_FOREACH (client->regions, region)
		region->closing = NULL;
	DL_FOREACH (client->imports, import_)
		import_->closing = NULL;
	/* One that is waited for is its caller's. */
	DL_FOREACH_SAFE (client->requests, request, next)
		if (request->abandoned || request->told)
			request_free(client, request);
}

/* Sends {request_id, id}: both messages are made of the same two fields. */
static int send_release(struct kvxfer_client *client, uint16_t type, uint32_t request_id,
			uint64_t id)
{
	Kvxp__RegionUnregister unregister = KVXP__REGION_UNREGISTER__INIT;
	Kvxp__ImportRelease release = KVXP__IMPORT_RELEASE__INIT;
	int err;

	if (type == KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER) {
		unregister.request_id = request_id;
		unregister.region = id;
		err = kvx_cl_put(client, type, &unregister.base, -1);
	} else {
		release.request_id = request_id;
		release.import = id;
		err = kvx_cl_put(client, type, &release.base, -1);
	}
	if (err == 0)
		kvx_cl_flush(client);
	return err;
}

/* The answer to a request whose caller has gone: undoes what was made for nobody. */
static void abandoned_on_reply(struct kvxfer_client *client, struct kvx_cl_request *request)
{
	uint64_t made = request->reply->status == KVX_STATUS_OK ? request->reply->id : 0;
	uint16_t type = request->type;

	if (type == KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER ||
	    type == KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE)
		return;
	request_free(client, request);
	if (made == 0)
		return;
	/* No request has this id: the answer is ignored. */
	if (type == KVXP__FRAME_TYPE__FRAME_REGION_REGISTER)
		send_release(client, KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER,
			     next_request_id(client), made);
	else if (type == KVXP__FRAME_TYPE__FRAME_IMPORT ||
		 type == KVXP__FRAME_TYPE__FRAME_IMPORT_FIND)
		send_release(client, KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE,
			     next_request_id(client), made);
}

void kvx_cl_on_reply(struct kvxfer_client *client, const uint8_t *body, uint32_t len_bytes)
{
	Kvxp__Reply *reply = kvxp__reply__unpack(NULL, len_bytes, body);
	struct kvx_cl_request *request = NULL;

	if (reply == NULL) {
		kvx_cl_quit(client, KVXFER_PROTOCOL, "a reply of the daemon cannot be decoded");
		return;
	}
	DL_SEARCH_SCALAR(client->requests, request, id, reply->request_id);
	if (request == NULL || request->reply != NULL) {
		kvxp__reply__free_unpacked(reply, NULL);
		return;
	}
	if (request->told && !request->abandoned) {
		request_free(client, request);
		kvx_cl_find_on_reply(client, reply);
		kvxp__reply__free_unpacked(reply, NULL);
		kvx_cl_on_event(client, KVXP__FRAME_TYPE__FRAME_REPLY, body, len_bytes);
		return;
	}
	request->reply = reply;
	if (request->abandoned)
		abandoned_on_reply(client, request);
}

/* Asks, or goes on waiting for the answer to an earlier attempt. */
static int release_ask(struct kvxfer_client *client, uint16_t type, uint64_t id,
		       struct kvx_cl_request **closing)
{
	struct kvx_cl_request *request = *closing;
	uint64_t deadline_ns = kvx_cl_deadline_ns(client);
	bool pending;
	int err = 0;

	*closing = NULL;
	if (request != NULL) {
		request->abandoned = false;
	} else {
		request = kvx_cl_request_create(client, type);
		if (request == NULL)
			return -ENOMEM;
		err = send_release(client, type, request->id, id);
		request->unsent = err < 0;
	}
	if (err == 0)
		err = kvx_cl_request_wait(client, request, deadline_ns);
	else
		kvx_cl_fail(client, err, "the request could not be queued");
	pending = request->reply == NULL && !request->unsent && client->state == KVX_CL_UP;
	kvx_cl_request_end(client, request);
	if (pending)
		*closing = request; /* abandoned, and still in the list */
	return err == -ECONNRESET && client->state == KVX_CL_UP ? -EPROTO : err;
}

int kvx_cl_release(struct kvxfer_client *client, uint16_t type, uint64_t id,
		   struct kvx_cl_request **closing)
{
	uint64_t deadline_ns = kvx_cl_deadline_ns(client);
	int err = kvx_cl_enter_setup(client);

	if (err < 0 && err != -ECONNRESET)
		return err;
	if (err == 0) {
		if (id == 0)
			return 0; /* this connection never had it */
		err = release_ask(client, type, id, closing);
		if (client->state == KVX_CL_UP)
			return err == -ENOENT ? 0 : err;
		if (err == 0)
			return 0;
	}
	/* The daemon is dying: only its death is the fence. */
	if (kvx_cl_wait_lost(client, deadline_ns) < 0)
		return kvx_cl_fail(
		    client, -ETIMEDOUT,
		    "the daemon closed the connection, but its process still exists: "
		    "not known to be fenced");
	return kvx_cl_fail(client, -ECONNRESET, "the daemon is gone, and all its DMA with it: %s",
			   client->lost_text);
}
