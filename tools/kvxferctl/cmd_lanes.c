/* kvxferctl lanes: what data to each peer and tenant, and within the node to and from each GPU,
 * goes over, and how much of it is under way. */
#include "ctl.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

static const struct kvx_column columns[] = {
    {"PEER", KVX_LEFT, KVX_CUT},       {"TENANT", KVX_LEFT, KVX_KEEP},
    {"TRANSPORT", KVX_LEFT, KVX_KEEP}, {"KIND", KVX_LEFT, KVX_HIDE},
    {"STATE", KVX_LEFT, KVX_KEEP},     {"GEN", KVX_RIGHT, KVX_KEEP},
    {"FOR", KVX_RIGHT, KVX_KEEP},      {"LEGS", KVX_LEFT, KVX_CUT},
    {"DEPTH", KVX_RIGHT, KVX_HIDE},    {"IN FLIGHT", KVX_RIGHT, KVX_KEEP},
    {"MOVED", KVX_RIGHT, KVX_KEEP},    {"OPS", KVX_RIGHT, KVX_HIDE},
    {"BATCHES", KVX_RIGHT, KVX_HIDE},  {"ERRORS", KVX_RIGHT, KVX_KEEP},
    {"RESETS", KVX_RIGHT, KVX_KEEP},   {"FAILED", KVX_RIGHT, KVX_HIDE},
    {"FALLBACK", KVX_RIGHT, KVX_HIDE}, {"LAST ERROR", KVX_LEFT, KVX_CUT},
};

/* "mlx5_0:1>mlx5_0:1 mlx5_1:1>mlx5_1:1", within the node "gpu0"; "-" where there are no devices. */
static void legs_cell(struct kvx_table *table, struct json_object *legs, bool own)
{
	char *text = kvx_tool_strdup("");

	for (size_t i = 0; i < kvx_json_length(legs); i++) {
		struct json_object *leg = kvx_json_at(legs, i);
		char *longer;

		const char *rail = kvx_json_str(leg, "rail");
		const char *remote = kvx_json_str(leg, "remote_rail");

		if (!*rail && !*remote)
			continue;
		longer = kvx_tool_printf("%s%s%s%s%s", text, *text ? " " : "", kvx_ctl_dash(rail),
					 own ? "" : ">", own ? "" : kvx_ctl_dash(remote));
		free(text);
		text = longer;
	}
	kvx_table_cell(table, "%s", kvx_ctl_dash(text));
	free(text);
}

static void flight_cell(struct kvx_table *table, struct json_object *legs)
{
	uint64_t batches = 0, bytes = 0;
	char buf[KVX_UNIT_BYTES];

	for (size_t i = 0; i < kvx_json_length(legs); i++) {
		batches += kvx_json_u64(kvx_json_at(legs, i), "batches_in_flight");
		bytes += kvx_json_u64(kvx_json_at(legs, i), "bytes_in_flight");
	}
	if (batches > 0)
		kvx_table_cell(table, "%s in %u", kvx_unit_bytes(buf, bytes), (unsigned)batches);
	else
		kvx_table_cell(table, "-");
}

static void lane_row(struct kvx_table *table, struct json_object *lane)
{
	static const char *const counts[] = {"ops",    "batches", "errors",
					     "resets", "failed",  "fallback"};
	const char *state = kvx_json_str(lane, "state");
	struct json_object *legs = kvx_json_array(lane, "legs");
	bool up = strcmp(state, "up") == 0, own = !*kvx_json_str(lane, "peer");
	char buf[KVX_UNIT_BYTES];

	kvx_table_cell(table, "%s", own ? "(this node)" : kvx_json_str(lane, "peer"));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(lane, "tenant")));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(lane, "transport")));
	kvx_table_cell(table, "%s", kvx_json_bool(lane, "bounce") ? "bounce" : "-");
	kvx_table_cell(table, "%s", state);
	kvx_table_color(table, up ? KVX_COLOR_GREEN : KVX_COLOR_YELLOW);
	kvx_table_cell(table, "%s", kvx_json_str(lane, "generation"));
	kvx_table_cell(table, "%s",
		       up ? kvx_unit_age(buf, kvx_ctl_since(kvx_json_u64(lane, "up_ns"))) : "-");
	legs_cell(table, legs, own);
	kvx_table_cell(table, "%s", kvx_json_str(lane, "queue_batches"));
	flight_cell(table, legs);
	kvx_table_cell(table, "%s", kvx_unit_bytes(buf, kvx_json_u64(lane, "bytes")));
	for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
		kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(lane, counts[i])));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(lane, "last_error")));
}

int kvx_cmd_lanes(struct kvx_ctl *ctl)
{
	return kvx_ctl_list(ctl, "lanes", columns, sizeof(columns) / sizeof(columns[0]), lane_row);
}
