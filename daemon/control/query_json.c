/* Small pieces of JSON for the query_*.c files. Loop thread. Owns nothing: what is made belongs to
 * the object it is put into. Without memory json-c gives NULL, which becomes null in the answer. */
#include <inttypes.h>
#include <stdio.h>

#include "control/query.h"

void kvx_json_text(struct json_object *obj, const char *name, const char *value)
{
	json_object_object_add(obj, name, json_object_new_string(value != NULL ? value : ""));
}

void kvx_json_u64(struct json_object *obj, const char *name, uint64_t value)
{
	json_object_object_add(obj, name, json_object_new_uint64(value));
}

void kvx_json_int(struct json_object *obj, const char *name, int value)
{
	json_object_object_add(obj, name, json_object_new_int(value));
}

void kvx_json_bool(struct json_object *obj, const char *name, bool value)
{
	json_object_object_add(obj, name, json_object_new_boolean(value));
}

void kvx_json_id(struct json_object *obj, const char *name, uint64_t id)
{
	char text[24];

	snprintf(text, sizeof(text), "%" PRIu64, id);
	kvx_json_text(obj, name, text);
}

void kvx_json_node_id(struct json_object *obj, const char *name, const uint8_t *id)
{
	char text[2 * KVX_NODE_ID_BYTES + 1];
	unsigned i;

	for (i = 0; i < KVX_NODE_ID_BYTES; i++)
		snprintf(text + 2 * i, 3, "%02x", id[i]);
	kvx_json_text(obj, name, text);
}

struct json_object *kvx_json_list(struct json_object *obj, const char *name)
{
	struct json_object *list = json_object_new_array();

	json_object_object_add(obj, name, list);
	return list;
}

struct json_object *kvx_json_object(struct json_object *obj, const char *name)
{
	struct json_object *child = json_object_new_object();

	json_object_object_add(obj, name, child);
	return child;
}

struct json_object *kvx_json_row(struct json_object *list, uint64_t *omitted)
{
	struct json_object *row;

	if (list == NULL || json_object_array_length(list) >= KVX_QUERY_ROWS) {
		(*omitted)++;
		return NULL;
	}
	row = json_object_new_object();
	if (row == NULL || json_object_array_add(list, row) < 0) {
		json_object_put(row);
		(*omitted)++;
		return NULL;
	}
	return row;
}

void kvx_json_omitted(struct json_object *obj, uint64_t omitted)
{
	if (omitted > 0)
		kvx_json_u64(obj, "omitted", omitted);
}
