/* kvxferctl peers: other nodes, whether they are up, and the lane that data takes to each. */
#include "ctl.h"

#include <json-c/json.h>
#include <string.h>

static const struct kvx_column columns[] = {
    {"NODE", KVX_LEFT, KVX_CUT},       {"ADDRESS", KVX_LEFT, KVX_KEEP},
    {"STATE", KVX_LEFT, KVX_KEEP},     {"FOR", KVX_RIGHT, KVX_KEEP},
    {"RTT", KVX_RIGHT, KVX_KEEP},      {"LANES", KVX_RIGHT, KVX_KEEP},
    {"LANE", KVX_LEFT, KVX_KEEP},      {"GEN", KVX_RIGHT, KVX_HIDE},
    {"MOVED", KVX_RIGHT, KVX_KEEP},    {"OPS", KVX_RIGHT, KVX_HIDE},
    {"BATCHES", KVX_RIGHT, KVX_HIDE},  {"RESETS", KVX_RIGHT, KVX_HIDE},
    {"TARGETS", KVX_RIGHT, KVX_HIDE},  {"INBOUND", KVX_RIGHT, KVX_HIDE},
    {"LOST", KVX_RIGHT, KVX_KEEP},     {"STALE", KVX_RIGHT, KVX_HIDE},
    {"LAST ERROR", KVX_LEFT, KVX_CUT},
};

static void lane_cells(struct kvx_table *table, struct json_object *lane)
{
	char buf[KVX_UNIT_BYTES];

	kvx_table_cell(table, "%s %s", kvx_ctl_dash(kvx_json_str(lane, "transport")),
		       kvx_json_str(lane, "state"));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(lane, "generation")));
	kvx_table_cell(table, "%s", kvx_unit_bytes(buf, kvx_json_u64(lane, "bytes")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(lane, "ops")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(lane, "batches")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(lane, "resets")));
}

static void peer_row(struct kvx_table *table, struct json_object *p)
{
	char buf[KVX_UNIT_BYTES];
	const char *state = kvx_json_str(p, "state");
	bool up = strcmp(state, "up") == 0;

	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(p, "node_id")));
	kvx_table_cell(table, "%s", kvx_json_str(p, "address"));
	kvx_table_cell(table, "%s", state);
	kvx_table_color(table, up ? KVX_COLOR_GREEN : KVX_COLOR_YELLOW);
	kvx_table_cell(table, "%s",
		       up ? kvx_unit_age(buf, kvx_ctl_since(kvx_json_u64(p, "up_ns"))) : "-");
	kvx_table_cell(table, "%s",
		       kvx_json_u64(p, "rtt_ns") ? kvx_unit_ns(buf, kvx_json_u64(p, "rtt_ns"))
						 : "-");
	kvx_table_cell(table, "%s of %s", kvx_json_str(p, "lanes_up"), kvx_json_str(p, "lanes"));
	lane_cells(table, kvx_json_get(p, "lane"));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(p, "targets")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(p, "inbound")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(p, "lost")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(p, "stale_dropped")));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(p, "last_error")));
}

int kvx_cmd_peers(struct kvx_ctl *ctl)
{
	return kvx_ctl_list(ctl, "peers", columns, sizeof(columns) / sizeof(columns[0]), peer_row);
}
