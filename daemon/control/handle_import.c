/* IMPORT and IMPORT_RELEASE: descriptors become targets, of this node at once, of another through
 * the peers. Owns the imports of a client and tells it once when one is lost. Loop thread. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/idmap.h"
#include "base/log.h"
#include "control/control_priv.h"

#define IMPORTS_EVER                                                                               \
	UINT32_MAX /* the limit of the configuration is checked here, not in the map               \
		    */

struct kvx_import *kvx_client_import(const struct kvx_client *client, uint64_t id)
{
	struct kvx_import *imp;

	if (client->imports == NULL)
		return NULL;
	imp = kvx_idmap_find(client->imports, id);
	return imp == NULL || imp->target == NULL || imp->releasing ? NULL : imp;
}

static KVX_ON_LOOP void import_free(struct kvx_import *imp)
{
	kvx_assert(imp->n_xfers == 0);
	kvx_timer_stop(imp->client->control->conf.timers, &imp->loss_timer);
	kvx_posts_drop(imp, -ECANCELED, NULL);
	if (imp->watching)
		kvx_target_unwatch(imp->target, &imp->watch);
	kvx_target_unref(imp->target);
	kvx_idmap_remove(imp->client->imports, imp->id);
	free(imp->loss_text);
	free(imp);
}

/* Once, and after the last of the client's transfers through it. */
static KVX_ON_LOOP void import_tell_loss(struct kvx_import *imp)
{
	Kvxp__Event event = KVXP__EVENT__INIT;

	if (!imp->loss_due || imp->n_xfers > 0 || imp->releasing || imp->told)
		return;
	imp->told = true;
	event.type = KVXP__EVENT_TYPE__EVENT_IMPORT_LOST;
	event.import = imp->id;
	event.status = kvx_status_from_errno(imp->loss_status);
	event.scope = kvx_status_scope(event.status);
	event.text = imp->loss_text != NULL ? imp->loss_text
					    : (char *)(uintptr_t)kvx_status_text(event.status);
	kvx_client_event(imp->client, &event);
}

static void import_set_loss(struct kvx_import *imp, int status, const char *text)
{
	free(imp->loss_text);
	imp->loss_text = text != NULL && text[0] != '\0' ? strdup(text) : NULL;
	imp->loss_status = status;
}

static void import_on_lost(struct kvx_target_watch *watch, int status, const char *text)
{
	struct kvx_import *imp =
	    (struct kvx_import *)((char *)watch - offsetof(struct kvx_import, watch));

	kvx_assert_on_loop();
	kvx_timer_stop(imp->client->control->conf.timers, &imp->loss_timer);
	if (imp->told)
		return;
	import_set_loss(imp, status, text);
	kvx_posts_drop(imp, status, text);
	imp->loss_due = true;
	import_tell_loss(imp);
}

/* That the receiver or its node is gone is told with the loss of the target, which comes after the
 * fence of all that they had under way. */
static bool loss_waits_for_target(int status)
{
	return status == -EPIPE || status == -EHOSTDOWN;
}

static KVX_ON_LOOP void import_end(struct kvx_import *imp)
{
	imp->loss_due = true;
	kvx_client_cancel_import(imp->client, imp, imp->loss_status, imp->loss_text);
}

/* The receiver was said to be gone, and yet its region was never taken back. */
static void import_on_loss_timer(struct kvx_timer *timer)
{
	struct kvx_import *imp =
	    (struct kvx_import *)((char *)timer - offsetof(struct kvx_import, loss_timer));

	kvx_assert_on_loop();
	kvx_warn("client %" PRIu64 ": import %" PRIu64 ": %s, and its region is not withdrawn: the "
		 "import ends without that",
		 imp->client->id, imp->id, imp->loss_text != NULL ? imp->loss_text : "lost");
	import_end(imp);
}

static KVX_ON_LOOP bool loss_timer_start(struct kvx_import *imp)
{
	return kvx_timer_start(imp->client->control->conf.timers, &imp->loss_timer,
			       KVX_IMPORT_LOSS_NS, import_on_loss_timer) == 0;
}

void kvx_import_fail(struct kvx_import *imp, int status, const char *text)
{
	struct kvx_why why;

	if (imp->loss_status != 0 || imp->releasing)
		return;
	kvx_why(&why, 0, "a posted message was not delivered: %s",
		text != NULL && text[0] != '\0' ? text
						: kvx_status_text(kvx_status_from_errno(status)));
	import_set_loss(imp, status, why.text);
	kvx_posts_drop(imp, status, why.text);
	if (imp->target->lost) /* and being told */
		return;
	if (!loss_waits_for_target(status) || !loss_timer_start(imp))
		import_end(imp);
}

/* ---- the answer */

/* The remote layout in the message's form; allocated in the arena. NULL: no memory. */
static Kvxp__Layout *import_layout(struct kvx_arena *arena, const struct kvx_layout *layout)
{
	Kvxp__Layout *pb = kvx_arena_alloc(arena, sizeof(*pb));
	Kvxp__Plane **rows = kvx_arena_alloc(arena, layout->n_planes * sizeof(*rows));
	Kvxp__Plane *planes = kvx_arena_alloc(arena, layout->n_planes * sizeof(*planes));
	uint32_t i;

	if (pb == NULL || rows == NULL || planes == NULL)
		return NULL;
	kvxp__layout__init(pb);
	pb->n_planes = layout->n_planes;
	pb->planes = rows;
	for (i = 0; i < layout->n_planes; i++) {
		const struct kvx_plane *from = &layout->planes[i];

		kvxp__plane__init(&planes[i]);
		planes[i].name = (char *)(uintptr_t)from->name;
		planes[i].offset = from->offset;
		planes[i].block_stride = from->block_stride;
		planes[i].block_bytes = from->block_bytes;
		planes[i].n_blocks = from->n_blocks;
		rows[i] = &planes[i];
	}
	return pb;
}

static KVX_ON_LOOP void import_reply(struct kvx_import *imp, const void *note, uint32_t note_bytes)
{
	struct kvx_client *client = imp->client;
	struct kvx_target *target = imp->target;
	Kvxp__Reply reply = KVXP__REPLY__INIT;

	reply.request_id = imp->request_id;
	reply.id = imp->id;
	reply.len = target->len_bytes;
	reply.data = (ProtobufCBinaryData){note_bytes, (uint8_t *)(uintptr_t)note};
	if (target->lane != NULL && target->lane->ops != NULL)
		reply.transport = (char *)(uintptr_t)target->lane->ops->name;
	if (target->layout != NULL) {
		kvx_arena_reset(client->control->arena,
				1024 + (size_t)target->layout->n_planes * 256);
		reply.layout = import_layout(client->control->arena, target->layout);
		if (reply.layout == NULL) {
			kvx_client_reply_error(client, imp->request_id, -ENOMEM, NULL);
			import_free(imp);
			return;
		}
	}
	kvx_client_reply(client, &reply);
}

/* Does the remote layout equal the one of the region that the client named? */
static KVX_ON_LOOP int import_check(const struct kvx_import *imp, struct kvx_why *why)
{
	const struct kvx_region *region;

	if (imp->check_region == 0)
		return 0;
	region = kvx_client_region(imp->client, imp->check_region);
	if (region == NULL)
		return kvx_why(why, -ENOENT,
			       "the region to compare with is not one of this client");
	if (region->layout == NULL || imp->target->layout == NULL)
		return kvx_why(why, -EMEDIUMTYPE, "the %s region has no layout",
			       region->layout == NULL ? "local" : "remote");
	return kvx_layout_compare(region->layout, imp->target->layout, why);
}

void kvx_import_refuse(struct kvx_import *imp, int status, const char *text)
{
	kvx_client_reply_error(imp->client, imp->request_id, status, text);
	import_free(imp);
}

void kvx_import_resolved(struct kvx_import *imp, struct kvx_target *target, const void *note,
			 uint32_t note_bytes)
{
	struct kvx_why why = {""};
	int err;

	imp->target = target;
	if (target->lost) {
		kvx_import_refuse(imp, target->lost_status,
				  "the region was lost while it was imported");
		return;
	}
	err = import_check(imp, &why);
	if (err < 0) {
		kvx_import_refuse(imp, err, why.text);
		return;
	}
	imp->watch.lost = import_on_lost;
	kvx_target_watch(target, &imp->watch);
	imp->watching = true;
	import_reply(imp, note, note_bytes);
}

static void import_on_resolve(void *arg, int status, const char *text, struct kvx_target *target)
{
	struct kvx_import *imp = arg;

	kvx_assert_on_loop();
	imp->resolve = NULL;
	if (status < 0)
		kvx_import_refuse(imp, status, text);
	else
		kvx_import_resolved(imp, target, NULL, 0);
}

/* ---- the request */

static KVX_ON_LOOP int import_local(const struct kvx_client *client, const struct kvx_desc *desc,
				    struct kvx_target **out_target, struct kvx_why *why)
{
	const struct kvx_control *control = client->control;
	struct kvx_region *region;

	if (desc->epoch != control->conf.epoch)
		return kvx_why(why, -ESTALE,
			       "the descriptor is of an earlier start of this daemon: export the "
			       "region again");
	region = kvx_region_find(kvx_node_regions(control->conf.node), desc->region);
	if (region == NULL || region->state == KVX_REGION_CLOSING)
		return kvx_why(why, -ENOENT, "the region of the descriptor is gone");
	if (!kvx_region_token_equal(region, desc->token))
		return kvx_why(why, -EACCES, "the descriptor's token is not the region's");
	if (region->tenant != client->tenant)
		return kvx_why(why, -EACCES,
			       "the region belongs to another tenant: this client is of tenant %s",
			       control->tenants[client->tenant].name);
	return kvx_node_target_open(control->conf.node, region, out_target, why);
}

int kvx_import_create(struct kvx_client *client, uint32_t request_id, uint64_t check_region,
		      struct kvx_import **out_import, struct kvx_why *why)
{
	uint32_t limit = client->control->conf.config->imports_per_client;
	struct kvx_import *imp;
	int err = 0;

	if (client->imports == NULL)
		err = kvx_idmap_create(IMPORTS_EVER, &client->imports);
	if (err < 0)
		return err;
	if (kvx_idmap_count(client->imports) >= limit)
		return kvx_why(why, -EDQUOT,
			       "import limit %" PRIu32 " reached ([limits] imports_per_client)",
			       limit);
	imp = calloc(1, sizeof(*imp));
	if (imp == NULL)
		return -ENOMEM;
	err = kvx_idmap_add(client->imports, imp, &imp->id);
	if (err < 0) {
		free(imp);
		return err;
	}
	imp->client = client;
	imp->request_id = request_id;
	imp->check_region = check_region;
	kvx_posts_init(&imp->posts);
	*out_import = imp;
	return 0;
}

static KVX_ON_LOOP int import_start(struct kvx_import *imp, const struct kvx_desc *desc,
				    struct kvx_why *why)
{
	struct kvx_control *control = imp->client->control;
	struct kvx_target *target;
	int err;

	if (memcmp(desc->node_id, control->conf.node_id, KVX_NODE_ID_BYTES) == 0) {
		err = import_local(imp->client, desc, &target, why);
		if (err == 0)
			kvx_import_resolved(imp, target, NULL, 0);
		return err;
	}
	if (control->conf.peers == NULL)
		return kvx_why(why, -EHOSTUNREACH,
			       "the region is on another node, and this daemon has no peers "
			       "([peer] enable)");
	return kvx_peers_resolve(control->conf.peers, desc, imp->client->tenant,
				 KVX_RESOLVE_TIMEOUT_NS, import_on_resolve, imp, &imp->resolve,
				 why);
}

void kvx_handle_import(struct kvx_client *client, struct kvx_msg *msg)
{
	struct kvx_why why = {""};
	struct kvx_import *imp = NULL;
	struct kvx_desc desc;
	Kvxp__Import *req;
	uint32_t request_id;
	int err;

	req = kvx_client_decode(client, &kvxp__import__descriptor, msg);
	if (req == NULL)
		return;
	request_id = req->request_id;
	err = kvx_desc_unpack(req->descriptor.data, req->descriptor.len, &desc, &why);
	if (err == 0)
		err = kvx_import_create(client, request_id, req->check_region, &imp, &why);
	if (err == 0)
		err = import_start(imp, &desc, &why);
	if (err == 0)
		return;
	if (imp != NULL)
		import_free(imp);
	kvx_client_reply_error(client, request_id, err, why.text);
}

/* ---- the release */

static KVX_ON_LOOP void import_release_done(struct kvx_import *imp)
{
	kvx_client_reply_error(imp->client, imp->request_id, 0, NULL);
	import_free(imp);
}

void kvx_import_xfer_ended(struct kvx_import *imp)
{
	kvx_assert(imp->n_xfers > 0);
	imp->n_xfers--;
	if (imp->n_xfers == 0 && imp->releasing)
		import_release_done(imp);
	else
		import_tell_loss(imp);
}

void kvx_handle_import_release(struct kvx_client *client, struct kvx_msg *msg)
{
	Kvxp__ImportRelease *req;
	struct kvx_import *imp;

	req = kvx_client_decode(client, &kvxp__import_release__descriptor, msg);
	if (req == NULL)
		return;
	imp = kvx_client_import(client, req->import);
	if (imp == NULL) {
		kvx_client_reply_error(client, req->request_id, -ENOENT,
				       "this client has no such import");
		return;
	}
	imp->releasing = true;
	imp->request_id = req->request_id;
	kvx_posts_drop(imp, -ECANCELED, "the import was released");
	if (imp->n_xfers == 0)
		import_release_done(imp);
	else
		kvx_client_cancel_import(client, imp, -ECANCELED, "the import was released");
}

/* Those with unfinished transfers go when the last of these has ended. */
void kvx_client_release_imports(struct kvx_client *client)
{
	struct kvx_import *imp;
	uint32_t cursor = 0;

	if (client->imports == NULL)
		return;
	while ((imp = kvx_idmap_next(client->imports, &cursor)) != NULL) {
		if (imp->resolve != NULL)
			kvx_resolve_abandon(imp->resolve);
		if (imp->find != NULL) {
			kvx_find_abandon(imp->find);
			client->n_finds--;
		}
		imp->resolve = NULL;
		imp->find = NULL;
		imp->releasing = true;
		kvx_posts_drop(imp, -ECANCELED, NULL);
		if (imp->n_xfers == 0)
			import_free(imp);
	}
}
