/* kvxferctl ping: round trips to a peer over the peer channel, as the daemon measures them. */
#include "ctl.h"

#include <json-c/json.h>

static const char *count_text;

unsigned kvx_cmd_ping_flags(struct kvx_ctl_flag *flags)
{
	flags[0] = (struct kvx_ctl_flag){"-c", KVX_FLAG_VALUE, NULL, &count_text};
	return 1;
}

int kvx_cmd_ping(struct kvx_ctl *ctl)
{
	struct json_object *obj;
	uint64_t count = 1;
	char buf[KVX_UNIT_BYTES];

	if (count_text && kvx_parse_u64(count_text, 1, 1000000, &count) != 0) {
		kvx_tool_error("-c needs a number, 1 to 1000000");
		return KVX_CTL_USAGE;
	}
	for (uint64_t i = 0; i < count; i++) {
		int rc;

		if (i > 0 && !kvx_ctl_sleep(1, false))
			break;
		rc = kvx_ctl_query(ctl, "ping", ctl->args[0], &obj);
		if (rc != KVX_CTL_OK)
			return rc;
		if (!kvx_ctl_pass_json(ctl, obj))
			printf("%s: %s\n", kvx_json_str(obj, "peer"),
			       kvx_unit_ns(buf, kvx_json_u64(obj, "rtt_ns")));
		json_object_put(obj);
	}
	return KVX_CTL_OK;
}
