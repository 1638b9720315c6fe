/* kvxferctl transfers: the running ones and the last that ended: path, times, errors; and those
 * that other nodes have under way to and from memory here. */
#include "ctl.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>

#include "kvxfer/client.h"

static bool only_live, only_ended;
static const char *max_text;

static const struct kvx_column columns[] = {
    {"ID", KVX_RIGHT, KVX_KEEP},     {"CLIENT", KVX_RIGHT, KVX_KEEP},
    {"TENANT", KVX_LEFT, KVX_HIDE},  {"TAG", KVX_RIGHT, KVX_HIDE},
    {"LABEL", KVX_LEFT, KVX_CUT},    {"OP", KVX_LEFT, KVX_KEEP},
    {"STATE", KVX_LEFT, KVX_KEEP},   {"STATUS", KVX_LEFT, KVX_KEEP},
    {"BYTES", KVX_RIGHT, KVX_KEEP},  {"OF", KVX_RIGHT, KVX_HIDE},
    {"PIECES", KVX_RIGHT, KVX_HIDE}, {"RETRIES", KVX_RIGHT, KVX_HIDE},
    {"PATH", KVX_LEFT, KVX_KEEP},    {"PEER", KVX_LEFT, KVX_CUT},
    {"WAITED", KVX_RIGHT, KVX_HIDE}, {"TOOK", KVX_RIGHT, KVX_KEEP},
    {"RATE", KVX_RIGHT, KVX_KEEP},   {"CAUSE", KVX_LEFT, KVX_CUT},
};

unsigned kvx_cmd_transfers_flags(struct kvx_ctl_flag *flags)
{
	flags[0] = (struct kvx_ctl_flag){"--live", KVX_FLAG_PLAIN, &only_live, NULL};
	flags[1] = (struct kvx_ctl_flag){"--ended", KVX_FLAG_PLAIN, &only_ended, NULL};
	flags[2] = (struct kvx_ctl_flag){"-n", KVX_FLAG_VALUE, NULL, &max_text};
	return 3;
}

struct kvx_table *kvx_transfers_table(void)
{
	return kvx_table_create(columns, sizeof(columns) / sizeof(columns[0]));
}

/* Status is a name in some answers and a number in others: show the name. */
static const char *status_name(struct json_object *t)
{
	struct json_object *status = kvx_json_get(t, "status");

	if (!status)
		return "-";
	if (json_object_is_type(status, json_type_int))
		return kvxfer_status_name(json_object_get_int(status));
	return kvx_ctl_dash(json_object_get_string(status));
}

static void times_cells(struct kvx_table *table, struct json_object *t)
{
	char buf[KVX_UNIT_BYTES];
	uint64_t submit = kvx_json_u64(t, "submit_ns"), first = kvx_json_u64(t, "first_ns");
	uint64_t end = kvx_json_u64(t, "end_ns"), now = kvx_json_u64(t, "now_ns");
	uint64_t until = end ? end : now;

	if (first > submit)
		kvx_table_cell(table, "%s", kvx_unit_ns(buf, first - submit));
	else
		kvx_table_cell(table, "-");
	if (until <= submit) {
		kvx_table_cell(table, "-");
		kvx_table_cell(table, "-");
		return;
	}
	kvx_table_cell(table, "%s", kvx_unit_ns(buf, until - submit));
	kvx_table_cell(table, "%s",
		       kvx_unit_rate(buf, (double)kvx_json_u64(t, "bytes") /
					      ((double)(until - submit) / 1e9)));
}

/* Why it has ended, or what keeps it from going on. */
static void cause_cell(struct kvx_table *table, struct json_object *t)
{
	const char *waits_for = kvx_json_str(t, "waits_for");

	if (waits_for[0] == '\0')
		kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(t, "text")));
	else if (kvx_json_u64(t, "waits") > 1)
		kvx_table_cell(table, "waits for %s, and %" PRIu64 " more", waits_for,
			       kvx_json_u64(t, "waits") - 1);
	else
		kvx_table_cell(table, "waits for %s", waits_for);
}

void kvx_transfers_row(struct kvx_table *table, struct json_object *t)
{
	char buf[KVX_UNIT_BYTES];
	bool ended = kvx_json_u64(t, "end_ns") != 0;
	const char *status = ended ? status_name(t) : "-";

	kvx_table_cell(table, "%s", kvx_json_str(t, "id"));
	kvx_table_cell(table, "%s", kvx_json_str(t, "client"));
	kvx_table_cell(table, "%s", kvx_json_str(t, "tenant"));
	kvx_table_cell(table, "%s", kvx_json_str(t, "tag"));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(t, "label")));
	kvx_table_cell(table, "%s", kvx_json_str(t, "op"));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(t, "state")));
	kvx_table_cell(table, "%s", status);
	if (ended)
		kvx_table_color(table, strcmp(status, "OK") == 0 ? KVX_COLOR_GREEN : KVX_COLOR_RED);
	kvx_table_cell(table, "%s", kvx_unit_bytes(buf, kvx_json_u64(t, "bytes")));
	kvx_table_cell(table, "%s", kvx_unit_bytes(buf, kvx_json_u64(t, "bytes_planned")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(t, "pieces")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(t, "retries")));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(t, "transport")));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(t, "peer")));
	times_cells(table, t);
	cause_cell(table, t);
}

static void print_list(const char *title, struct json_object *list, uint64_t max)
{
	struct kvx_table *table = kvx_transfers_table();
	size_t n = kvx_json_length(list);

	for (size_t i = 0; i < n && i < max; i++)
		kvx_transfers_row(table, kvx_json_at(list, i));
	printf("%s%s: %zu%s\n", kvx_color_on(stdout, KVX_COLOR_BOLD), title, n,
	       kvx_color_off(stdout));
	if (n > 0)
		kvx_table_print(table, stdout);
	kvx_table_destroy(table);
}

static const struct kvx_column inbound_columns[] = {
    {"FROM NODE", KVX_LEFT, KVX_CUT}, {"TENANT", KVX_LEFT, KVX_HIDE},
    {"TAG", KVX_RIGHT, KVX_HIDE},     {"LABEL", KVX_LEFT, KVX_CUT},
    {"OP", KVX_LEFT, KVX_KEEP},       {"REGION", KVX_RIGHT, KVX_KEEP},
    {"SINCE", KVX_RIGHT, KVX_KEEP},
};

static void inbound_row(struct kvx_table *table, struct json_object *t)
{
	char buf[KVX_UNIT_BYTES];
	uint64_t open = kvx_json_u64(t, "open_ns"), now = kvx_json_u64(t, "now_ns");

	kvx_table_cell(table, "%s", kvx_json_str(t, "peer"));
	kvx_table_cell(table, "%s", kvx_json_str(t, "tenant"));
	kvx_table_cell(table, "%s", kvx_json_str(t, "tag"));
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(t, "label")));
	kvx_table_cell(table, "%s", kvx_json_str(t, "op"));
	kvx_table_cell(table, "%s", kvx_json_str(t, "region"));
	kvx_table_cell(table, "%s", kvx_unit_ns(buf, now > open ? now - open : 0));
}

/* Nothing where there is none: most nodes have no peers. */
static void print_inbound(struct json_object *list, uint64_t max)
{
	size_t n = kvx_json_length(list);
	struct kvx_table *table;

	if (n == 0)
		return;
	table =
	    kvx_table_create(inbound_columns, sizeof(inbound_columns) / sizeof(inbound_columns[0]));
	for (size_t i = 0; i < n && i < max; i++)
		inbound_row(table, kvx_json_at(list, i));
	printf("%srunning, of other nodes: %zu%s\n", kvx_color_on(stdout, KVX_COLOR_BOLD), n,
	       kvx_color_off(stdout));
	kvx_table_print(table, stdout);
	kvx_table_destroy(table);
}

static void json_cut(struct json_object *obj, const char *key, uint64_t max)
{
	struct json_object *list = kvx_json_array(obj, key);
	size_t n = kvx_json_length(list);

	if (n > max)
		json_object_array_del_idx(list, max, n - max);
}

int kvx_cmd_transfers(struct kvx_ctl *ctl)
{
	struct json_object *obj;
	uint64_t max = ctl->json ? UINT64_MAX : 20;
	int rc;

	if (max_text && kvx_parse_u64(max_text, 1, 1000000, &max) != 0) {
		kvx_tool_error("-n needs a number, 1 to 1000000");
		return KVX_CTL_USAGE;
	}
	if (only_live && only_ended) {
		kvx_tool_error("--live and --ended exclude each other");
		return KVX_CTL_USAGE;
	}
	rc = kvx_ctl_query(ctl, "transfers", NULL, &obj);
	if (rc != KVX_CTL_OK)
		return rc;
	if (only_live)
		json_object_object_del(obj, "ended");
	if (only_ended) {
		json_object_object_del(obj, "live");
		json_object_object_del(obj, "inbound");
	}
	if (ctl->json) {
		json_cut(obj, "live", max);
		json_cut(obj, "ended", max);
		json_cut(obj, "inbound", max);
	}
	if (!kvx_ctl_pass_json(ctl, obj)) {
		if (!only_ended)
			print_list("running", kvx_json_array(obj, "live"), max);
		if (!only_ended)
			print_inbound(kvx_json_array(obj, "inbound"), max);
		if (!only_live)
			print_list("ended or refused, newest first", kvx_json_array(obj, "ended"),
				   max);
	}
	json_object_put(obj);
	return KVX_CTL_OK;
}
