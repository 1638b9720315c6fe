/* kvxferctl status: the daemon at a glance. */
#include "ctl.h"

#include <json-c/json.h>

static void print_transports(struct json_object *obj)
{
	struct json_object *transports = kvx_json_array(obj, "transports");

	for (size_t i = 0; i < kvx_json_length(transports); i++) {
		struct json_object *t = kvx_json_at(transports, i);
		bool usable = kvx_json_bool(t, "usable");
		const char *reason = kvx_json_str(t, "reason");

		printf("%-14s %-8s %s%s%s%s%s\n", i == 0 ? "transports" : "",
		       kvx_json_str(t, "name"),
		       kvx_color_on(stdout, usable ? KVX_COLOR_GREEN : KVX_COLOR_YELLOW),
		       usable ? "usable" : "not usable", kvx_color_off(stdout), *reason ? ": " : "",
		       reason);
	}
}

static void print_tenants(struct json_object *obj)
{
	struct json_object *tenants = kvx_json_array(obj, "tenants");

	if (kvx_json_length(tenants) < 2)
		return; /* the default one: its socket is there already */
	for (size_t i = 0; i < kvx_json_length(tenants); i++) {
		struct json_object *t = kvx_json_at(tenants, i);

		printf("%-14s %-12s %s clients, %s\n", i == 0 ? "tenants" : "",
		       kvx_json_str(t, "name"), kvx_json_str(t, "clients"),
		       kvx_json_str(t, "socket"));
	}
}

static void print_limits(struct json_object *obj)
{
	struct json_object *limits = kvx_json_get(obj, "limits");
	const char *lead = "limits";

	if (!limits || !json_object_is_type(limits, json_type_object))
		return;
	json_object_object_foreach(limits, key, value)
	{
		char buf[KVX_UNIT_BYTES];
		uint64_t n = json_object_get_uint64(value);
		bool is_bytes = kvx_is_bytes_key(key);

		printf("%-14s %-24s %s\n", lead, key,
		       is_bytes ? kvx_unit_bytes(buf, n) : kvx_unit_count(buf, n));
		lead = "";
	}
}

int kvx_cmd_status(struct kvx_ctl *ctl)
{
	char age[KVX_UNIT_BYTES], bytes[KVX_UNIT_BYTES], regions[KVX_UNIT_BYTES],
	    transfers[KVX_UNIT_BYTES];
	struct json_object *obj;
	int rc = kvx_ctl_query(ctl, "status", NULL, &obj);

	if (rc != KVX_CTL_OK)
		return rc;
	if (!kvx_ctl_pass_json(ctl, obj)) {
		const char *state = kvx_json_str(obj, "state");
		bool running = state[0] == 'r';

		printf("%-14s %s%s%s, up %s, pid %s, version %s\n", "kvxferd",
		       kvx_color_on(stdout, running ? KVX_COLOR_GREEN : KVX_COLOR_YELLOW), state,
		       kvx_color_off(stdout), kvx_unit_age(age, kvx_json_u64(obj, "uptime_ns")),
		       kvx_json_str(obj, "pid"), kvx_json_str(obj, "version"));
		printf("%-14s %s, epoch %s\n", "node", kvx_json_str(obj, "node_id"),
		       kvx_json_str(obj, "epoch"));
		printf("%-14s %s\n", "socket", kvx_json_str(obj, "socket"));
		printf("%-14s %s\n", "peer address",
		       kvx_ctl_dash(kvx_json_str(obj, "peer_address")));
		printf("%-14s %s\n", "clients", kvx_json_str(obj, "clients"));
		printf("%-14s %s, %s\n", "regions",
		       kvx_unit_count(regions, kvx_json_u64(obj, "regions")),
		       kvx_unit_bytes(bytes, kvx_json_u64(obj, "region_bytes")));
		printf("%-14s %s running\n", "transfers",
		       kvx_unit_count(transfers, kvx_json_u64(obj, "transfers")));
		printf("%-14s %s of %s up\n", "peers", kvx_json_str(obj, "peers_up"),
		       kvx_json_str(obj, "peers"));
		print_tenants(obj);
		print_transports(obj);
		print_limits(obj);
	}
	json_object_put(obj);
	return KVX_CTL_OK;
}
