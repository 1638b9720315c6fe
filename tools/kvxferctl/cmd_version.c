/* kvxferctl version: this program, the library it runs with and, when it answers, the daemon. */
#include "ctl.h"

#include <json-c/json.h>
#include <stdlib.h>

#include "kvxfer/client.h"

/* The daemon's version, "" when it does not answer: that is no failure here. */
static char *daemon_version(struct kvx_ctl *ctl)
{
	struct json_object *obj;
	char *text, *version;

	if (kvx_ctl_open(ctl) != 0 || kvxfer_client_query(ctl->client, "status", NULL, &text) != 0)
		return kvx_tool_strdup("");
	obj = json_tokener_parse(text);
	free(text);
	version = kvx_tool_strdup(kvx_json_str(obj, "version"));
	json_object_put(obj);
	return version;
}

int kvx_cmd_version(struct kvx_ctl *ctl)
{
	char *running = daemon_version(ctl);

	if (ctl->json) {
		struct json_object *obj = json_object_new_object();

		kvx_json_set_str(obj, "kvxferctl", KVX_VERSION);
		kvx_json_set_str(obj, "library", kvxfer_version());
		if (*running)
			kvx_json_set_str(obj, "daemon", running);
		else
			json_object_object_add(obj, "daemon", NULL);
		kvx_json_print(obj, stdout);
		json_object_put(obj);
	} else {
		printf("kvxferctl  %s\nlibrary    %s\n", KVX_VERSION, kvxfer_version());
		printf("daemon     %s\n", *running ? running : "not reachable");
	}
	free(running);
	return KVX_CTL_OK;
}
