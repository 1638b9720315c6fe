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
#include "mem/gpu.h"

/* What control keeps of a region, from its registration to its end: closing needs no memory. */
struct region_record {
	struct kvx_client *client;
	uint32_t request_id; /* of the request under way */
	bool answer;         /* a request waits for it */
	uint64_t bytes;
	uint32_t n_dmabufs; /* until it is registered */
};

static struct kvx_node *client_node(const struct kvx_client *client)
{
	return client->control->conf.node;
}

static struct region_record *record_create(struct kvx_client *client, uint32_t request_id,
					   uint64_t bytes)
{
	struct region_record *record = malloc(sizeof(*record));

	if (record != NULL)
		*record = (struct region_record){
		    .client = client, .request_id = request_id, .answer = true, .bytes = bytes};
	return record;
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
static KVX_ON_LOOP void record_end(struct region_record *record)
{
	struct kvx_client *client = record->client;

	client->n_regions--;
	client->region_bytes -= record->bytes;
	free(record);
	kvx_client_unpend(client);
}

static void region_on_closed(void *arg, uint64_t region_id)
{
	struct region_record *record = arg;

	kvx_assert_on_loop();
	kvx_debug("client %" PRIu64 ": region %" PRIu64 " closed", record->client->id, region_id);
	if (record->answer)
		kvx_client_reply_error(record->client, record->request_id, 0, NULL);
	record_end(record);
}

/* Takes the region off the client's list and retires it. */
static KVX_ON_LOOP void region_close(struct kvx_region *region, int status, const char *text)
{
	struct region_record *record = region->record;
	struct kvx_client *client = record->client;
	int err;

	DL_DELETE(client->regions, region);
	kvx_client_pend(client);
	err = kvx_node_region_close(client_node(client), region, status, text, region_on_closed,
				    record);
	kvx_assert(err == 0); /* only listed regions come here, and each once */
}

static void region_on_open(void *arg, struct kvx_region *region, int status, const char *text)
{
	struct region_record *record = arg;
	struct kvx_client *client = record->client;
	Kvxp__Reply reply = KVXP__REPLY__INIT;

	kvx_assert_on_loop();
	client->n_dmabufs -= record->n_dmabufs;
	if (status < 0) {
		kvx_client_close_fds(client, &region->mem);
		kvx_region_remove(kvx_node_regions(client_node(client)), region);
		kvx_client_reply_error(client, record->request_id, status, text);
		record_end(record);
		return;
	}
	DL_APPEND(client->regions, region);
	record->answer = false;
	if (client->sm.state == KVX_CLIENT_READY) {
		kvx_debug("client %" PRIu64 ": region %" PRIu64 " (%s): %s, %" PRIu64
			  " bytes, live",
			  client->id, region->id, region->name, region->mem.ops->name,
			  region->mem.len_bytes);
		reply.request_id = record->request_id;
		reply.id = region->id;
		kvx_client_reply(client, &reply);
	} else { /* it left meanwhile */
		region_close(region, -EPIPE, client->end_text);
	}
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
	if (kvx_mem_kind_is_gpu(ops->kind) != (req->gpu != NULL))
		return kvx_why(why, -EINVAL, "memory kind %s %s a description of GPU memory",
			       ops->name, req->gpu != NULL ? "takes no" : "needs");
	if (msg->fds_lost && req->gpu == NULL)
		return kvx_why(why, -EDQUOT,
			       "the daemon has no free file descriptor for the memory: raise "
			       "LimitNOFILE in kvxferd.service");
	if (msg->n_fds != 1 && req->gpu == NULL)
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

/* Before the region has taken them its fds are indices, which nobody must close. */
static void gpu_drop(struct kvx_gpu_mem *gpu)
{
	if (gpu != NULL)
		kvx_dmabufs_forget(gpu);
	kvx_gpu_mem_destroy(gpu);
}

/* What the message had is the region's now. */
static void region_take_fds(struct kvx_region *region, struct kvx_msg *msg)
{
	struct kvx_gpu_mem *gpu = region->mem.gpu;

	if (gpu == NULL) {
		kvx_msg_take_fd(msg, 0);
		return;
	}
	for (uint32_t i = 0; i < gpu->n_bases; i++)
		if (gpu->bases[i].fd >= 0)
			gpu->bases[i].fd = kvx_msg_take_fd(msg, (unsigned)gpu->bases[i].fd);
}

static KVX_ON_LOOP int region_add(struct kvx_client *client, const Kvxp__RegionRegister *req,
				  struct kvx_msg *msg, struct kvx_region **out_region,
				  struct kvx_why *why)
{
	char name[KVX_REGION_NAME_BYTES];
	const struct kvx_mem_ops *ops = NULL;
	const struct kvx_config *config = client->control->conf.config;
	struct kvx_layout *layout = NULL;
	struct kvx_gpu_mem *gpu = NULL;
	struct kvx_region *region;
	int err;

	err = register_check(req, msg, &ops, why);
	if (err == 0)
		err = kvx_decode_text(req->name, "region name", name, sizeof(name), why);
	if (err == 0 && req->gpu != NULL)
		err = kvx_decode_gpu(config, req->gpu, msg, &gpu, why);
	if (err == 0 && gpu != NULL)
		kvx_dmabufs_choose(client, gpu);
	if (err == 0)
		err = kvx_decode_layout(config, req->layout, req->len, &layout, why);
	if (err < 0) {
		gpu_drop(gpu);
		return err;
	}
	const struct kvx_region_request request = {
	    .owner = client->id,
	    .tenant = client->tenant,
	    .ops = ops,
	    .fd = gpu != NULL ? -1 : msg->fds[0],
	    .gpu = gpu,
	    .fd_offset = req->fd_offset,
	    .len_bytes = req->len,
	    .access = req->access,
	    .owner_regions = client->n_regions,
	    .owner_bytes = client->region_bytes,
	    .layout = layout,
	};
	err = kvx_region_add(kvx_node_regions(client_node(client)), &request, &region, why);
	if (err < 0) {
		gpu_drop(gpu);
		return err;
	}
	if (gpu != NULL)
		kvx_dmabufs_say_missing(client, req, msg);
	region_take_fds(region, msg);
	memcpy(region->name, name, sizeof(name));
	*out_region = region;
	return 0;
}

/* Has another region the name? Not that of a client that is gone already, and whose end is only to
 * be settled: an engine that is started anew must not stumble over it. */
static KVX_ON_LOOP bool name_is_taken(const struct kvx_client *client, const char *name)
{
	struct kvx_regions *regions = kvx_node_regions(client_node(client));
	struct kvx_region *region = kvx_region_find_published(regions, client->tenant, name);
	const struct kvx_client *owner;

	if (region == NULL)
		return false;
	owner = kvx_control_client(client->control, region->owner);
	if (owner != NULL && owner->sm.state == KVX_CLIENT_READY)
		return true;
	kvx_region_unpublish(regions, region);
	return false;
}

/* What is wrong with what it is to be published as? Asked before the region takes the fd. */
static KVX_ON_LOOP int publish_check(const struct kvx_client *client,
				     const Kvxp__RegionRegister *req, struct kvx_why *why)
{
	int err;

	if (req->publish[0] == '\0')
		return req->note.len == 0
			   ? 0
			   : kvx_why(why, -EINVAL, "a note without a name to publish");
	err = kvx_decode_publish(req->publish, why);
	if (err == 0 && req->access == 0)
		err =
		    kvx_why(why, -EACCES, "a region without access for others cannot be published");
	if (err == 0)
		err = kvx_decode_payload(&req->note, why);
	if (err == 0 && name_is_taken(client, req->publish))
		err = kvx_why(why, -EEXIST,
			      "another region of the tenant is published as %s on this node",
			      req->publish);
	return err;
}

static KVX_ON_LOOP int region_publish(const struct kvx_client *client,
				      const Kvxp__RegionRegister *req, struct kvx_region *region,
				      struct kvx_why *why)
{
	struct kvx_regions *regions = kvx_node_regions(client_node(client));

	if (req->publish[0] == '\0')
		return 0;
	return kvx_region_publish(regions, region, req->publish, req->note.data,
				  (uint32_t)req->note.len, why);
}

void kvx_handle_region_register(struct kvx_client *client, struct kvx_msg *msg)
{
	struct kvx_why why = {""};
	struct kvx_region *region = NULL;
	struct region_record *record;
	Kvxp__RegionRegister *req;
	int err;

	req = kvx_client_decode(client, &kvxp__region_register__descriptor, msg);
	if (req == NULL)
		return;
	/* GPU memory does not count against what a client may have of the host's. */
	record = record_create(client, req->request_id, req->gpu != NULL ? 0 : req->len);
	if (record == NULL) {
		kvx_client_reply_error(client, req->request_id, -ENOMEM, NULL);
		return;
	}
	err = publish_check(client, req, &why);
	if (err == 0)
		err = region_add(client, req, msg, &region, &why);
	if (err < 0) {
		free(record);
		kvx_client_reply_error(client, req->request_id, err, why.text);
		return;
	}
	region->record = record;
	record->n_dmabufs = kvx_dmabufs_count(region->mem.gpu);
	err = region_publish(client, req, region, &why);
	if (err == 0)
		err = kvx_node_region_open(client_node(client), region, region_on_open, record);
	if (err < 0) {
		kvx_client_close_fds(client, &region->mem);
		kvx_region_remove(kvx_node_regions(client_node(client)), region);
		free(record);
		kvx_client_reply_error(client, req->request_id, err, why.text);
		return;
	}
	client->n_regions++;
	client->region_bytes += record->bytes;
	client->n_dmabufs += record->n_dmabufs;
	kvx_client_pend(client);
}

void kvx_handle_region_unregister(struct kvx_client *client, struct kvx_msg *msg)
{
	Kvxp__RegionUnregister *req;
	struct kvx_region *region;
	struct region_record *record;

	req = kvx_client_decode(client, &kvxp__region_unregister__descriptor, msg);
	if (req == NULL)
		return;
	region = kvx_client_region(client, req->region);
	if (region == NULL) {
		kvx_client_reply_error(client, req->request_id, -ENOENT,
				       "this client has no such region");
		return;
	}
	record = region->record;
	record->request_id = req->request_id;
	record->answer = true;
	region_close(region, -EOWNERDEAD, "the region was unregistered");
}

void kvx_handle_region_export(struct kvx_client *client, struct kvx_msg *msg)
{
	struct kvx_control *control = client->control;
	Kvxp__Reply reply = KVXP__REPLY__INIT;
	uint8_t bytes[KVX_DESC_BYTES];
	struct kvx_desc desc;
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
	kvx_desc_of(&desc, region, control->conf.node_id, control->conf.epoch);
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

/* Those that are still being mapped are closed by region_on_open(). */
void kvx_client_close_regions(struct kvx_client *client, int status, const char *text)
{
	struct kvx_region *region, *tmp;

	DL_FOREACH_SAFE (client->regions, region, tmp) {
		region_close(region, status, text);
	}
}
