/* REGION_REGISTER, REGION_UNREGISTER, REGION_EXPORT, and the end of a client's regions. Checks and
 * books here, maps and retires through the node, which answers later on the loop; a request that
 * waits for it holds its client alive. It never touches memory of a client. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/assert.h"
#include "base/log.h"
#include "control/control_priv.h"
#include "control/decode.h"

/* A region on its way in or out. */
struct region_call {
	struct kvx_client *client;
	uint32_t request_id;
	bool answer; /* a request waits for it */
	uint64_t bytes;
};

static struct kvx_node *client_node(const struct kvx_client *client)
{
	return client->control->conf.node;
}

static struct region_call *region_call_create(struct kvx_client *client, uint32_t request_id,
					      uint64_t bytes)
{
	struct region_call *call = malloc(sizeof(*call));

	if (call != NULL)
		*call = (struct region_call){client, request_id, true, bytes};
	return call;
}

struct kvx_region *kvx_client_region(const struct kvx_client *client, uint64_t id)
{
	struct kvx_region *region = kvx_region_find(kvx_node_regions(client_node(client)), id);

	if (region == NULL || region->owner != client->id || region->state == KVX_REGION_MAPPING ||
	    region->state == KVX_REGION_CLOSING)
		return NULL;
	return region;
}

/* The region is gone: what it was booked with is free again. */
static KVX_ON_LOOP void region_call_end(struct region_call *call)
{
	struct kvx_client *client = call->client;

	client->n_regions--;
	client->region_bytes -= call->bytes;
	free(call);
	kvx_client_unpend(client);
}

static void region_on_closed(void *arg, uint64_t region_id)
{
	struct region_call *call = arg;

	kvx_assert_on_loop();
	kvx_debug("client %" PRIx64 ": region %" PRIx64 " closed", call->client->id, region_id);
	if (call->answer)
		kvx_client_reply_error(call->client, call->request_id, 0, NULL);
	region_call_end(call);
}

/* Takes the region off the client's list and retires it. */
static KVX_ON_LOOP void region_close(struct region_call *call, struct kvx_region *region,
				     int status, const char *text)
{
	int err;

	DL_DELETE(call->client->regions, region);
	err = kvx_node_region_close(client_node(call->client), region, status, text,
				    region_on_closed, call);
	kvx_assert(err == 0); /* only listed regions come here, and each once */
}

static void region_on_open(void *arg, struct kvx_region *region, int status, const char *text)
{
	struct region_call *call = arg;
	struct kvx_client *client = call->client;
	Kvxp__Reply reply = KVXP__REPLY__INIT;

	kvx_assert_on_loop();
	if (status < 0) {
		kvx_region_remove(kvx_node_regions(client_node(client)), region);
		kvx_client_reply_error(client, call->request_id, status, text);
		region_call_end(call);
		return;
	}
	DL_APPEND(client->regions, region);
	if (client->sm.state != KVX_CLIENT_READY) { /* it left meanwhile */
		call->answer = false;
		region_close(call, region, -EPIPE, client->end_text);
		return;
	}
	kvx_debug("client %" PRIx64 ": region %" PRIx64 " (%s): %s, %" PRIu64 " bytes, live",
		  client->id, region->id, region->name, region->mem.ops->name,
		  region->mem.len_bytes);
	reply.request_id = call->request_id;
	reply.id = region->id;
	kvx_client_reply(client, &reply);
	free(call);
	kvx_client_unpend(client);
}

/* What is wrong with the request itself? */
static int register_check(const Kvxp__RegionRegister *req, const struct kvx_msg *msg,
			  const struct kvx_mem_ops **out_ops, struct kvx_why *why)
{
	const struct kvx_mem_ops *ops = kvx_mem_ops_find(req->kind);

	if (ops == NULL)
		return kvx_why(why, -EOPNOTSUPP,
			       "memory kind %" PRIu32 " (%s) is not supported by this daemon on "
			       "this node",
			       req->kind, kvx_mem_kind_name(req->kind));
	if (msg->n_fds != 1)
		return kvx_why(why, -EBADF,
			       "a region is registered with exactly one file descriptor, %u came",
			       msg->n_fds);
	if ((req->access & ~(KVX_ACCESS_READ | KVX_ACCESS_WRITE)) != 0)
		return kvx_why(why, -EINVAL,
			       "access 0x%" PRIx32 ": only 1 (read) and 2 (write) "
			       "are known",
			       req->access);
	if (req->len == 0)
		return kvx_why(why, -EINVAL, "a region of 0 bytes");
	*out_ops = ops;
	return 0;
}

static KVX_ON_LOOP int region_add(struct kvx_client *client, const Kvxp__RegionRegister *req,
				  struct kvx_msg *msg, struct kvx_region **out_region,
				  struct kvx_why *why)
{
	char name[KVX_REGION_NAME_BYTES];
	const struct kvx_mem_ops *ops = NULL;
	struct kvx_layout *layout = NULL;
	struct kvx_region *region;
	int err;

	err = register_check(req, msg, &ops, why);
	if (err == 0)
		err = kvx_decode_text(req->name, "region name", name, sizeof(name), why);
	if (err == 0)
		err = kvx_decode_layout(client->control->conf.config, req->layout, req->len,
					&layout, why);
	if (err < 0)
		return err;
	err = kvx_region_add(kvx_node_regions(client_node(client)), client->id, ops,
			     kvx_msg_take_fd(msg, 0), req->fd_offset, req->len, client->n_regions,
			     client->region_bytes, layout, &region, why);
	if (err < 0)
		return err;
	memcpy(region->name, name, sizeof(name));
	region->access = req->access;
	*out_region = region;
	return 0;
}

void kvx_handle_region_register(struct kvx_client *client, struct kvx_msg *msg)
{
	struct kvx_why why = {""};
	struct kvx_region *region;
	struct region_call *call;
	Kvxp__RegionRegister *req;
	int err;

	req = kvx_client_decode(client, &kvxp__region_register__descriptor, msg);
	if (req == NULL)
		return;
	call = region_call_create(client, req->request_id, req->len);
	if (call == NULL) {
		kvx_client_reply_error(client, req->request_id, -ENOMEM, NULL);
		return;
	}
	err = region_add(client, req, msg, &region, &why);
	if (err < 0) {
		free(call);
		kvx_client_reply_error(client, req->request_id, err, why.text);
		return;
	}
	err = kvx_node_region_open(client_node(client), region, region_on_open, call);
	if (err < 0) {
		kvx_region_remove(kvx_node_regions(client_node(client)), region);
		free(call);
		kvx_client_reply_error(client, req->request_id, err, NULL);
		return;
	}
	client->n_regions++;
	client->region_bytes += call->bytes;
	kvx_client_pend(client);
}

void kvx_handle_region_unregister(struct kvx_client *client, struct kvx_msg *msg)
{
	Kvxp__RegionUnregister *req;
	struct kvx_region *region;
	struct region_call *call;

	req = kvx_client_decode(client, &kvxp__region_unregister__descriptor, msg);
	if (req == NULL)
		return;
	region = kvx_client_region(client, req->region);
	if (region == NULL) {
		kvx_client_reply_error(client, req->request_id, -ENOENT,
				       "this client has no such region");
		return;
	}
	call = region_call_create(client, req->request_id, region->mem.len_bytes);
	if (call == NULL) {
		kvx_client_reply_error(client, req->request_id, -ENOMEM, NULL);
		return;
	}
	kvx_client_pend(client);
	region_close(call, region, -EOWNERDEAD, "the region was unregistered");
}

void kvx_handle_region_export(struct kvx_client *client, struct kvx_msg *msg)
{
	struct kvx_control *control = client->control;
	Kvxp__Reply reply = KVXP__REPLY__INIT;
	uint8_t bytes[KVX_DESC_BYTES];
	struct kvx_desc desc = {.epoch = control->conf.epoch};
	Kvxp__RegionExport *req;
	struct kvx_region *region;

	req = kvx_client_decode(client, &kvxp__region_export__descriptor, msg);
	if (req == NULL)
		return;
	region = kvx_client_region(client, req->region);
	if (region == NULL || region->state != KVX_REGION_LIVE) {
		kvx_client_reply_error(client, req->request_id,
				       region == NULL ? -ENOENT : -EOWNERDEAD,
				       region == NULL ? "this client has no such region"
						      : "the region's memory has failed");
		return;
	}
	if (region->access == 0) {
		kvx_client_reply_error(client, req->request_id, -EACCES,
				       "the region was registered without access for others");
		return;
	}
	memcpy(desc.node_id, control->conf.node_id, sizeof(desc.node_id));
	desc.region = region->id;
	desc.len_bytes = region->mem.len_bytes;
	desc.access = region->access;
	desc.mem_kind = region->mem.ops->kind;
	memcpy(desc.token, region->token, sizeof(desc.token));
	if (control->conf.peers != NULL)
		snprintf(desc.addr, sizeof(desc.addr), "%s",
			 kvx_peers_address(control->conf.peers));
	kvx_desc_pack(&desc, bytes);
	reply.request_id = req->request_id;
	reply.id = region->id;
	reply.len = region->mem.len_bytes;
	reply.data = (ProtobufCBinaryData){sizeof(bytes), bytes};
	kvx_client_reply(client, &reply);
}

/* Those that are still being mapped are closed by region_on_open(). Without memory for the
 * bookkeeping the daemon could not keep its word that a dead client's memory is let go. */
void kvx_client_close_regions(struct kvx_client *client, int status, const char *text)
{
	struct kvx_region *region, *tmp;

	DL_FOREACH_SAFE (client->regions, region, tmp) {
		struct region_call *call = region_call_create(client, 0, region->mem.len_bytes);

		kvx_assert(call != NULL);
		call->answer = false;
		kvx_client_pend(client);
		region_close(call, region, status, text);
	}
}
