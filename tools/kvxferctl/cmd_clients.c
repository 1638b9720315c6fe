/* kvxferctl clients: connected engines, and what each holds. */
#include "ctl.h"

#include <json-c/json.h>

static const struct kvx_column columns[] = {
    {"ID", KVX_RIGHT, KVX_KEEP},        {"NAME", KVX_LEFT, KVX_CUT},
    {"TENANT", KVX_LEFT, KVX_HIDE},     {"PID", KVX_RIGHT, KVX_KEEP},
    {"UID", KVX_RIGHT, KVX_HIDE},       {"LIBRARY", KVX_LEFT, KVX_HIDE},
    {"AGE", KVX_RIGHT, KVX_KEEP},       {"REGIONS", KVX_RIGHT, KVX_KEEP},
    {"MEMORY", KVX_RIGHT, KVX_KEEP},    {"IMPORTS", KVX_RIGHT, KVX_HIDE},
    {"TRANSFERS", KVX_RIGHT, KVX_KEEP}, {"OF TOTAL", KVX_RIGHT, KVX_HIDE},
    {"MOVED", KVX_RIGHT, KVX_KEEP},     {"UNREAD", KVX_RIGHT, KVX_HIDE},
    {"QUEUED", KVX_RIGHT, KVX_HIDE},
};

static void client_row(struct kvx_table *table, struct json_object *c)
{
	char buf[KVX_UNIT_BYTES];

	kvx_table_cell(table, "%s", kvx_json_str(c, "id"));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(c, "name")));
	kvx_table_cell(table, "%s", kvx_json_str(c, "tenant"));
	kvx_table_cell(table, "%s", kvx_json_str(c, "pid"));
	kvx_table_cell(table, "%s", kvx_json_str(c, "uid"));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(c, "library")));
	kvx_table_cell(table, "%s",
		       kvx_unit_age(buf, kvx_ctl_since(kvx_json_u64(c, "connected_ns"))));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(c, "regions")));
	kvx_table_cell(table, "%s", kvx_unit_bytes(buf, kvx_json_u64(c, "region_bytes")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(c, "imports")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(c, "transfers")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(c, "transfers_total")));
	kvx_table_cell(table, "%s", kvx_unit_bytes(buf, kvx_json_u64(c, "bytes_total")));
	kvx_table_cell(table, "%s", kvx_unit_bytes(buf, kvx_json_u64(c, "events_pending_bytes")));
	kvx_table_cell(table, "%s", kvx_unit_bytes(buf, kvx_json_u64(c, "queued_bytes")));
}

int kvx_cmd_clients(struct kvx_ctl *ctl)
{
	return kvx_ctl_list(ctl, "clients", columns, sizeof(columns) / sizeof(columns[0]),
			    client_row);
}
