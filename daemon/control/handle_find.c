/* IMPORT_FIND: an import of a region by the name it was published under, here at once, on another
 * node through the peers. What comes of it is an import like any other. Loop thread. */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "control/control_priv.h"
#include "control/decode.h"

static KVX_ON_LOOP int find_here(struct kvx_import *imp, const char *name, struct kvx_why *why)
{
	const struct kvx_client *client = imp->client;
	struct kvx_node *node = client->control->conf.node;
	struct kvx_region *region =
	    kvx_region_find_published(kvx_node_regions(node), client->tenant, name);
	struct kvx_target *target;
	const void *note = NULL;
	uint32_t note_bytes;
	int err;

	if (region == NULL || region->state != KVX_REGION_LIVE)
		return kvx_why(why, -ENOENT,
			       "nobody has published %s on this node (yet): is its engine up?",
			       name);
	err = kvx_node_target_open(node, region, &target, why);
	if (err < 0)
		return err;
	note_bytes = kvx_region_note(region, &note);
	kvx_import_resolved(imp, target, note, note_bytes);
	return 0;
}

static void find_on_found(void *arg, const struct kvx_found *found)
{
	struct kvx_import *imp = arg;
	struct kvx_why why = {""};
	int err;

	kvx_assert_on_loop();
	imp->find = NULL;
	imp->client->n_finds--;
	if (found->status < 0) {
		kvx_import_refuse(imp, found->status, found->text);
		return;
	}
	if (!found->own) {
		kvx_import_resolved(imp, found->target, found->note, found->note_bytes);
		return;
	}
	err = find_here(imp, found->name, &why);
	if (err < 0)
		kvx_import_refuse(imp, err, why.text);
}

static KVX_ON_LOOP int find_start(struct kvx_import *imp, const Kvxp__ImportFind *req,
				  struct kvx_why *why)
{
	struct kvx_peers *peers = imp->client->control->conf.peers;
	const struct kvx_find_request request = {
	    .address = req->address,
	    .name = req->name,
	    .tenant = imp->client->tenant,
	};
	int err;

	if (req->address[0] == '\0' || (peers != NULL && kvx_peers_is_own(peers, req->address)))
		return find_here(imp, req->name, why);
	if (imp->client->n_finds >= KVX_CLIENT_FINDS_MAX)
		return kvx_why(why, -EDQUOT,
			       "%u names are being asked for at other nodes, the limit: wait for "
			       "answers before asking for more",
			       KVX_CLIENT_FINDS_MAX);
	if (peers == NULL)
		return kvx_why(why, -EHOSTUNREACH,
			       "the address is another node's, and this daemon has no peers "
			       "([peer] enable)");
	err = kvx_peers_find(peers, &request, KVX_RESOLVE_TIMEOUT_NS, find_on_found, imp,
			     &imp->find, why);
	if (err == 0)
		imp->client->n_finds++;
	return err;
}

void kvx_handle_import_find(struct kvx_client *client, struct kvx_msg *msg)
{
	struct kvx_why why = {""};
	struct kvx_import *imp = NULL;
	Kvxp__ImportFind *req;
	uint32_t request_id;
	int err;

	req = kvx_client_decode(client, &kvxp__import_find__descriptor, msg);
	if (req == NULL)
		return;
	request_id = req->request_id;
	err = kvx_decode_publish(req->name, &why);
	if (err == 0)
		err = kvx_import_create(client, request_id, req->check_region, &imp, &why);
	if (err == 0)
		err = find_start(imp, req, &why);
	if (err == 0)
		return;
	if (imp != NULL)
		kvx_import_refuse(imp, err, why.text);
	else
		kvx_client_reply_error(client, request_id, err, why.text);
}
