/* Reading and writing JSON objects without a check at every line: what is absent reads as nothing.
 */
#include "common/tool.h"

#include <json-c/json.h>
#include <stdlib.h>

struct json_object *kvx_json_get(struct json_object *obj, const char *key)
{
	struct json_object *value = NULL;

	if (!obj || !json_object_is_type(obj, json_type_object))
		return NULL;
	json_object_object_get_ex(obj, key, &value);
	return value;
}

const char *kvx_json_str(struct json_object *obj, const char *key)
{
	struct json_object *value = kvx_json_get(obj, key);

	return value ? json_object_get_string(value) : "";
}

uint64_t kvx_json_u64(struct json_object *obj, const char *key)
{
	struct json_object *value = kvx_json_get(obj, key);

	if (!value)
		return 0;
	if (json_object_is_type(value, json_type_string))
		return strtoull(json_object_get_string(value), NULL, 10);
	return json_object_get_uint64(value);
}

double kvx_json_double(struct json_object *obj, const char *key)
{
	struct json_object *value = kvx_json_get(obj, key);

	return value ? json_object_get_double(value) : 0;
}

bool kvx_json_bool(struct json_object *obj, const char *key)
{
	struct json_object *value = kvx_json_get(obj, key);

	return value && json_object_get_boolean(value);
}

struct json_object *kvx_json_array(struct json_object *obj, const char *key)
{
	struct json_object *value = kvx_json_get(obj, key);

	return value && json_object_is_type(value, json_type_array) ? value : NULL;
}

size_t kvx_json_length(struct json_object *array)
{
	return array ? json_object_array_length(array) : 0;
}

struct json_object *kvx_json_at(struct json_object *array, size_t i)
{
	return json_object_array_get_idx(array, i);
}

void kvx_json_set_str(struct json_object *obj, const char *key, const char *value)
{
	json_object_object_add(obj, key, json_object_new_string(value));
}

void kvx_json_set_u64(struct json_object *obj, const char *key, uint64_t value)
{
	json_object_object_add(obj, key, json_object_new_uint64(value));
}

void kvx_json_set_double(struct json_object *obj, const char *key, double value)
{
	char text[40];

	/* json-c prints 17 digits of a double: six are what these numbers have. */
	snprintf(text, sizeof(text), "%.6g", value);
	json_object_object_add(obj, key, json_object_new_double_s(value, text));
}

void kvx_json_set_bool(struct json_object *obj, const char *key, bool value)
{
	json_object_object_add(obj, key, json_object_new_boolean(value));
}

void kvx_json_print(struct json_object *obj, FILE *f)
{
	fprintf(f, "%s\n",
		json_object_to_json_string_ext(obj, JSON_C_TO_STRING_PRETTY |
							JSON_C_TO_STRING_NOSLASHESCAPE));
}
