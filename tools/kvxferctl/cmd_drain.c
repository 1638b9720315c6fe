/* kvxferctl drain, undrain: whether the daemon takes new transfers. */
#include "ctl.h"

#include <json-c/json.h>

static int drain(struct kvx_ctl *ctl, const char *verb)
{
	struct json_object *obj;
	int rc = kvx_ctl_query(ctl, verb, NULL, &obj);

	if (rc != KVX_CTL_OK)
		return rc;
	if (!kvx_ctl_pass_json(ctl, obj))
		printf("%s\n", kvx_json_str(obj, "state"));
	json_object_put(obj);
	return KVX_CTL_OK;
}

int kvx_cmd_drain(struct kvx_ctl *ctl)
{
	return drain(ctl, "drain");
}

int kvx_cmd_undrain(struct kvx_ctl *ctl)
{
	return drain(ctl, "undrain");
}
