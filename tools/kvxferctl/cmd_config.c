/* kvxferctl config: check FILE reads a configuration file with the daemon's own reader, without a
 * daemon; show asks the running daemon for its values. */
#include "ctl.h"

#include <json-c/json.h>
#include <string.h>

#include "config.h"

static int config_check(struct kvx_ctl *ctl, const char *path)
{
	struct kvx_config config;
	struct kvx_why why = {.text = ""};
	int rc;

	kvx_config_defaults(&config);
	rc = kvx_config_load(path, &config, &why);
	if (rc == 0)
		rc = kvx_config_finish(&config, &why);
	if (rc != 0 && !why.text[0])
		snprintf(why.text, sizeof(why.text), "%s: %s", path, strerror(-rc));
	if (ctl->json) {
		struct json_object *obj = json_object_new_object();

		kvx_json_set_str(obj, "file", path);
		kvx_json_set_bool(obj, "ok", rc == 0);
		kvx_json_set_str(obj, "reason", rc == 0 ? "" : why.text);
		kvx_json_print(obj, stdout);
		json_object_put(obj);
	} else if (rc == 0) {
		printf("%s: ok\n", path);
	} else if (strncmp(why.text, path, strlen(path)) == 0) {
		kvx_tool_error("%s", why.text);
	} else { /* keys that contradict each other: of no one line */
		kvx_tool_error("%s: %s", path, why.text);
	}
	return rc == 0 ? KVX_CTL_OK : KVX_CTL_FAILED;
}

static int config_show(struct kvx_ctl *ctl)
{
	static const struct kvx_column columns[] = {{"KEY", KVX_LEFT, KVX_KEEP},
						    {"VALUE", KVX_LEFT, KVX_CUT}};
	struct json_object *obj, *values;
	struct kvx_table *table;
	int rc = kvx_ctl_query(ctl, "config", NULL, &obj);

	if (rc != KVX_CTL_OK)
		return rc;
	if (!kvx_ctl_pass_json(ctl, obj)) {
		values = kvx_json_get(obj, "config");
		table = kvx_table_create(columns, 2);
		if (values && json_object_is_type(values, json_type_object)) {
			json_object_object_foreach(values, key, value)
			{
				kvx_table_cell(table, "%s", key);
				kvx_table_cell(table, "%s", json_object_get_string(value));
			}
		}
		kvx_table_print(table, stdout);
		kvx_table_destroy(table);
	}
	json_object_put(obj);
	return KVX_CTL_OK;
}

int kvx_cmd_config(struct kvx_ctl *ctl)
{
	if (strcmp(ctl->args[0], "check") == 0 && ctl->n_args == 2)
		return config_check(ctl, ctl->args[1]);
	if (strcmp(ctl->args[0], "show") == 0 && ctl->n_args == 1)
		return config_show(ctl);
	kvx_tool_error("config takes: check FILE, or show");
	return KVX_CTL_USAGE;
}
