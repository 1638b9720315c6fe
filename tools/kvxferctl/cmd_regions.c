/* kvxferctl regions: registered memory, its owner, rights and users. */
#include "ctl.h"

#include <json-c/json.h>
#include <string.h>

static const struct kvx_column columns[] = {
    {"ID", KVX_RIGHT, KVX_KEEP},        {"OWNER", KVX_RIGHT, KVX_KEEP},
    {"TENANT", KVX_LEFT, KVX_HIDE},     {"NAME", KVX_LEFT, KVX_CUT},
    {"PUBLISHED", KVX_LEFT, KVX_CUT},   {"KIND", KVX_LEFT, KVX_HIDE},
    {"GPU", KVX_LEFT, KVX_HIDE},        {"SIZE", KVX_RIGHT, KVX_KEEP},
    {"PAGES", KVX_RIGHT, KVX_HIDE},     {"ACCESS", KVX_LEFT, KVX_KEEP},
    {"STATE", KVX_LEFT, KVX_KEEP},      {"PLANES", KVX_RIGHT, KVX_HIDE},
    {"IN USE BY", KVX_RIGHT, KVX_KEEP},
};

static void region_row(struct kvx_table *table, struct json_object *r)
{
	char buf[KVX_UNIT_BYTES];
	const char *state = kvx_json_str(r, "state");

	kvx_table_cell(table, "%s", kvx_json_str(r, "id"));
	kvx_table_cell(table, "%s", kvx_json_str(r, "owner"));
	kvx_table_cell(table, "%s", kvx_json_str(r, "tenant"));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(r, "name")));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(r, "published")));
	kvx_table_cell(table, "%s", kvx_json_str(r, "kind"));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(r, "gpu")));
	kvx_table_cell(table, "%s", kvx_unit_bytes(buf, kvx_json_u64(r, "bytes")));
	kvx_table_cell(table, "%s", kvx_unit_bytes(buf, kvx_json_u64(r, "page_bytes")));
	kvx_table_cell(table, "%s", kvx_json_str(r, "access"));
	kvx_table_cell(table, "%s", state);
	if (strcmp(state, "failed") == 0)
		kvx_table_color(table, KVX_COLOR_RED);
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(r, "planes")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(r, "users")));
}

int kvx_cmd_regions(struct kvx_ctl *ctl)
{
	return kvx_ctl_list(ctl, "regions", columns, sizeof(columns) / sizeof(columns[0]),
			    region_row);
}
