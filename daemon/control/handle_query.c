/* QUERY: finds the verb, checks who asks, and answers with JSON. What the verbs say is in the files
 * query_*.c. Loop thread; a query reads, except for drain and undrain, which administrators give.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "control/control_priv.h"
#include "control/query.h"

static KVX_ON_LOOP void query_drain(const struct kvx_query *query, struct json_object *out)
{
	kvx_control_set_draining(query->control, true);
	kvx_json_text(out, "state", "draining");
}

static KVX_ON_LOOP void query_undrain(const struct kvx_query *query, struct json_object *out)
{
	kvx_control_set_draining(query->control, false);
	kvx_json_text(out, "state", "running");
}

static const struct query_verb {
	const char *name;
	bool admin;
	void (*fill)(const struct kvx_query *query, struct json_object *out); /* NULL: ping */
} query_verbs[] = {
    {"status", false, kvx_query_status},   {"clients", false, kvx_query_clients},
    {"regions", false, kvx_query_regions}, {"transfers", false, kvx_query_transfers},
    {"peers", false, kvx_query_peers},     {"lanes", false, kvx_query_lanes},
    {"stats", false, kvx_query_stats},     {"devices", false, kvx_query_devices},
    {"config", true, kvx_query_config},    {"drain", true, query_drain},
    {"undrain", true, query_undrain},      {"ping", true, NULL},
};

static const struct query_verb *query_find(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(query_verbs) / sizeof(query_verbs[0]); i++) {
		if (strcmp(query_verbs[i].name, name) == 0)
			return &query_verbs[i];
	}
	return NULL;
}

static bool client_is_admin(const struct kvx_client *client)
{
	return client->uid == 0 || client->uid == geteuid();
}

static KVX_ON_LOOP int query_answer(struct kvx_client *client, const struct query_verb *verb,
				    uint32_t request_id)
{
	const struct kvx_query query = {
	    .control = client->control,
	    .admin = client_is_admin(client),
	    .tenant = client->tenant,
	};
	struct json_object *out = json_object_new_object();
	Kvxp__Reply reply = KVXP__REPLY__INIT;

	if (out == NULL)
		return -ENOMEM;
	verb->fill(&query, out);
	reply.request_id = request_id;
	reply.text = (char *)(uintptr_t)json_object_to_json_string_ext(
	    out, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
	if (reply.text != NULL)
		kvx_client_reply(client, &reply);
	json_object_put(out);
	return reply.text != NULL ? 0 : -ENOMEM;
}

void kvx_handle_query(struct kvx_client *client, struct kvx_msg *msg)
{
	const struct query_verb *verb;
	struct kvx_why why = {""};
	Kvxp__Query *req;
	int err;

	req = kvx_client_decode(client, &kvxp__query__descriptor, msg);
	if (req == NULL)
		return;
	verb = query_find(req->verb);
	if (verb == NULL)
		err = kvx_why(&why, -EOPNOTSUPP,
			      "the query is not known: status, clients, regions, transfers, peers, "
			      "lanes, stats, devices, config, drain, undrain, ping are");
	else if (verb->admin && !client_is_admin(client))
		err = kvx_why(&why, -EACCES,
			      "%s needs root or the daemon's own user (uid %u), you are uid %u",
			      verb->name, (unsigned)geteuid(), (unsigned)client->uid);
	else if (verb->fill == NULL)
		err = kvx_client_ping(client, req->request_id, req->arg, &why);
	else
		err = query_answer(client, verb, req->request_id);
	if (err < 0)
		kvx_client_reply_error(client, req->request_id, err, why.text);
}
