/* kvxferctl devices: what this node could reach other nodes by, and its GPUs, used or not and why.
 */
#include "ctl.h"

#include <json-c/json.h>
#include <string.h>

static const struct kvx_column columns[] = {
    {"DEVICE", KVX_LEFT, KVX_KEEP},  {"MODEL", KVX_LEFT, KVX_HIDE},
    {"PCI", KVX_LEFT, KVX_HIDE},     {"TRANSPORT", KVX_LEFT, KVX_KEEP},
    {"STATE", KVX_LEFT, KVX_KEEP},   {"LINK", KVX_LEFT, KVX_HIDE},
    {"SPEED", KVX_RIGHT, KVX_KEEP},  {"MTU", KVX_RIGHT, KVX_KEEP},
    {"GID", KVX_LEFT, KVX_CUT},      {"NETDEV", KVX_LEFT, KVX_HIDE},
    {"NUMA", KVX_RIGHT, KVX_HIDE},   {"FIRMWARE", KVX_LEFT, KVX_HIDE},
    {"LANES", KVX_RIGHT, KVX_KEEP},  {"REQUESTS", KVX_RIGHT, KVX_HIDE},
    {"ERRORS", KVX_RIGHT, KVX_KEEP}, {"LOST", KVX_RIGHT, KVX_HIDE},
    {"MEMORY", KVX_RIGHT, KVX_HIDE}, {"REASON", KVX_LEFT, KVX_CUT},
};

/* A link's speed in Mbit/s for people: "100 Gb/s". */
static void speed_cell(struct kvx_table *table, uint64_t mbps)
{
	if (mbps == 0)
		kvx_table_cell(table, "-");
	else if (mbps < 1000)
		kvx_table_cell(table, "%u Mb/s", (unsigned)mbps);
	else
		kvx_table_cell(table, "%.4g Gb/s", (double)mbps / 1000);
}

static void link_cells(struct kvx_table *table, struct json_object *d)
{
	const char *gid = kvx_json_str(d, "gid"), *numa = kvx_json_str(d, "numa_node");

	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(d, "link")));
	speed_cell(table, kvx_json_u64(d, "speed_mbps"));
	kvx_table_cell(table, "%s",
		       kvx_json_u64(d, "mtu_bytes") != 0 ? kvx_json_str(d, "mtu_bytes") : "-");
	if (*gid)
		kvx_table_cell(table, "%s (%s)", gid, kvx_json_str(d, "gid_index"));
	else
		kvx_table_cell(table, "-");
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(d, "netdev")));
	kvx_table_cell(table, "%s", *numa && *numa != '-' ? numa : "-");
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(d, "firmware")));
}

static void counter_cells(struct kvx_table *table, struct json_object *d)
{
	struct json_object *counters = kvx_json_get(d, "counters");
	char buf[KVX_UNIT_BYTES];

	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(d, "lanes")));
	if (!counters) {
		for (unsigned i = 0; i < 4; i++)
			kvx_table_cell(table, "-");
		return;
	}
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(counters, "wrs")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(counters, "errors")));
	kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(counters, "eps_lost")));
	kvx_table_cell(table, "%s", kvx_unit_bytes(buf, kvx_json_u64(counters, "reg_bytes")));
}

static void device_row(struct kvx_table *table, struct json_object *d)
{
	const char *state = kvx_json_str(d, "state"), *pci = kvx_json_str(d, "pci");

	/* What copies within the node has no device: stats shows it. */
	if (kvx_json_get(d, "device") == NULL)
		return;
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(d, "name")));
	/* A GPU's name says nothing of what it is; a NIC's is what everybody calls it. */
	kvx_table_cell(table, "%s", *pci ? kvx_ctl_dash(kvx_json_str(d, "device")) : "-");
	kvx_table_cell(table, "%s", kvx_ctl_dash(pci));
	kvx_table_cell(table, "%s", kvx_json_str(d, "transport"));
	kvx_table_cell(table, "%s", state);
	kvx_table_color(table, strcmp(state, "usable") == 0 ? KVX_COLOR_GREEN
			       : strcmp(state, "lost") == 0 ? KVX_COLOR_RED
							    : KVX_COLOR_YELLOW);
	link_cells(table, d);
	counter_cells(table, d);
	kvx_table_cell(table, "%s", kvx_ctl_dash(kvx_json_str(d, "reason")));
}

int kvx_cmd_devices(struct kvx_ctl *ctl)
{
	return kvx_ctl_list(ctl, "devices", columns, sizeof(columns) / sizeof(columns[0]),
			    device_row);
}
