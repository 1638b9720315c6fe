/* Values of configuration keys from and to text. Pure functions, used while a configuration is
 * built; each refusal says what was expected. */
#include "config_keys.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

struct suffix {
	const char *text;
	uint64_t factor;
};

/* Of several that divide a value, the last one with the largest factor is printed. */
static const struct suffix suffixes_none[] = {{"", 1}, {NULL, 0}};
static const struct suffix suffixes_bytes[] = {
    {"", 1},           {"KiB", 1ull << 10}, {"K", 1ull << 10}, {"MiB", 1ull << 20},
    {"M", 1ull << 20}, {"GiB", 1ull << 30}, {"G", 1ull << 30}, {"T", 1ull << 40},
    {NULL, 0},
};
static const struct suffix suffixes_ms[] = {
    {"", 1}, {"ms", 1}, {"s", 1000}, {"m", 60000}, {NULL, 0}};
static const struct suffix suffixes_us[] = {
    {"", 1}, {"us", 1}, {"ms", 1000}, {"s", 1000000}, {NULL, 0}};

static const struct {
	const char *name;
	const struct suffix *suffixes; /* NULL: not a decimal number */
	const char *form;
} types[] = {
    [KVX_CONFIG_BOOL] = {"true or false", NULL, "true or false"},
    [KVX_CONFIG_COUNT] = {"number", suffixes_none, "a number"},
    [KVX_CONFIG_BYTES32] = {"bytes", suffixes_bytes, "a number of bytes, such as 65536 or 64K"},
    [KVX_CONFIG_BYTES] = {"bytes", suffixes_bytes, "a number of bytes, such as 65536 or 64K"},
    [KVX_CONFIG_MS] = {"milliseconds", suffixes_ms, "a time, such as 1500 (ms), 1500ms or 2s"},
    [KVX_CONFIG_US] = {"microseconds", suffixes_us, "a time, such as 50 (us), 50us or 1ms"},
    [KVX_CONFIG_MODE] = {"octal permissions", NULL, "octal permissions, such as 0660"},
    [KVX_CONFIG_TEXT] = {"text", NULL, NULL},
    [KVX_CONFIG_PATH] = {"path", NULL, "an absolute path"},
    [KVX_CONFIG_SOCKET] = {"path", NULL, "an absolute path, or @name"},
    [KVX_CONFIG_LEVEL] = {"level", NULL, "error, warn, info, debug or trace"},
    [KVX_CONFIG_ADDRESS] = {"address", NULL, "HOST:PORT, such as 127.0.0.1:7717 or [::1]:7717"},
    [KVX_CONFIG_AUTO] = {"auto or a number", suffixes_none, "auto or a number"},
    [KVX_CONFIG_TENANTS] = {"list of NAME=SOCKET", NULL, NULL},
    [KVX_CONFIG_NAMES] = {"list of names", NULL, NULL},
    [KVX_CONFIG_DEVICES] = {"list of devices", NULL, NULL},
};

const char *kvx_config_type_name(enum kvx_config_type type)
{
	return types[type].name;
}

static void *field_of(const struct kvx_config_key *key, struct kvx_config *config)
{
	return (char *)config + key->offset;
}

static const void *field_in(const struct kvx_config_key *key, const struct kvx_config *config)
{
	return (const char *)config + key->offset;
}

static uint64_t number_get(const struct kvx_config_key *key, const struct kvx_config *config)
{
	uint32_t v32;
	uint64_t v64;

	if (key->size == sizeof(v64)) {
		memcpy(&v64, field_in(key, config), sizeof(v64));
		return v64;
	}
	memcpy(&v32, field_in(key, config), sizeof(v32));
	return v32;
}

static void number_put(const struct kvx_config_key *key, uint64_t value, struct kvx_config *config)
{
	uint32_t v32 = (uint32_t)value;

	if (key->size == sizeof(value))
		memcpy(field_of(key, config), &value, sizeof(value));
	else
		memcpy(field_of(key, config), &v32, sizeof(v32));
}

static int refuse_form(const struct kvx_config_key *key, const char *text, struct kvx_why *why)
{
	return kvx_why(why, -EINVAL, "%s.%s: '%.40s' is not %s", key->section, key->name, text,
		       types[key->type].form);
}

/* Digits of a base up to the first other character; no sign, no overflow. */
static int digits_parse(const char *text, unsigned base, uint64_t *out_value, const char **out_end)
{
	uint64_t value = 0;
	const char *p = text;

	for (; *p >= '0' && *p < (char)('0' + base); p++)
		if (__builtin_mul_overflow(value, base, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*p - '0'), &value))
			return -ERANGE;
	if (p == text)
		return -EINVAL;
	*out_value = value;
	*out_end = p;
	return 0;
}

static int number_parse(const struct kvx_config_key *key, const char *text, uint64_t *out_value)
{
	const struct suffix *suffix = types[key->type].suffixes;
	const char *end;
	uint64_t value;
	int err = digits_parse(text, 10, &value, &end);

	if (err < 0)
		return err;
	while (*end == ' ')
		end++;
	for (; suffix->text != NULL; suffix++)
		if (strcmp(end, suffix->text) == 0)
			break;
	if (suffix->text == NULL)
		return -EINVAL;
	if (__builtin_mul_overflow(value, suffix->factor, &value))
		return -ERANGE;
	*out_value = value;
	return 0;
}

static int mode_parse(const char *text, uint64_t *out_value)
{
	const char *end;
	int err = digits_parse(text, 8, out_value, &end);

	return err < 0 ? err : *end == '\0' ? 0 : -EINVAL;
}

static bool is_auto(const struct kvx_config_key *key, const struct kvx_config *config)
{
	int value;

	memcpy(&value, field_in(key, config), sizeof(value));
	return value < 0;
}

static int number_set(const struct kvx_config_key *key, const char *text, struct kvx_config *config,
		      struct kvx_why *why)
{
	char min[32], max[32];
	uint64_t value = 0;
	int err = key->type == KVX_CONFIG_MODE ? mode_parse(text, &value)
					       : number_parse(key, text, &value);

	if (key->type == KVX_CONFIG_AUTO && strcmp(text, "auto") == 0) {
		number_put(key, UINT32_MAX, config);
		return 0;
	}
	if (err == -EINVAL)
		return refuse_form(key, text, why);
	if (err < 0 || value < key->min || value > key->max) {
		kvx_config_number_print(key->type, key->min, min, sizeof(min));
		kvx_config_number_print(key->type, key->max, max, sizeof(max));
		return kvx_why(why, -EINVAL, "%s.%s: '%.40s' is outside of %s to %s", key->section,
			       key->name, text, min, max);
	}
	number_put(key, value, config);
	return 0;
}

static int bool_set(const struct kvx_config_key *key, const char *text, struct kvx_config *config,
		    struct kvx_why *why)
{
	static const char *const words[][2] = {
	    {"false", "true"}, {"no", "yes"}, {"off", "on"}, {"0", "1"}};

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		for (int v = 0; v < 2; v++) {
			if (strcmp(text, words[i][v]) == 0) {
				*(bool *)field_of(key, config) = v;
				return 0;
			}
		}
	}
	return refuse_form(key, text, why);
}

/* HOST:PORT; an IPv6 address stands in brackets. Whether the host exists is for who listens. */
static bool is_address(const char *text)
{
	const char *colon = strrchr(text, ':'), *end;
	uint64_t port;

	if (colon == NULL || colon == text || digits_parse(colon + 1, 10, &port, &end) < 0)
		return false;
	if (*end != '\0' || port > 65535)
		return false;
	if (text[0] == '[')
		return colon - text > 2 && colon[-1] == ']';
	return strchr(text, ':') == colon && strpbrk(text, " \t[]/") == NULL;
}

static bool text_has_form(const struct kvx_config_key *key, const char *text)
{
	switch (key->type) {
	case KVX_CONFIG_PATH:
		return text[0] == '\0' || text[0] == '/';
	case KVX_CONFIG_SOCKET:
		return text[0] == '\0' || text[0] == '/' || (text[0] == '@' && text[1] != '\0');
	case KVX_CONFIG_LEVEL:
		return kvx_log_level_parse(text) >= 0;
	case KVX_CONFIG_ADDRESS:
		return (text[0] == '\0' && key->def[0] == '\0') || is_address(text);
	default:
		return true;
	}
}

static int list_check(const struct kvx_config_key *key, const char *text, struct kvx_why *why)
{
	struct kvx_why reason = {.text = ""};
	int err = 0;

	if (key->type == KVX_CONFIG_TENANTS)
		err = kvx_config_check_tenants(text, &reason);
	else if (key->type == KVX_CONFIG_NAMES)
		err = kvx_config_check_names(text, &reason);
	else if (key->type == KVX_CONFIG_DEVICES)
		err = kvx_config_check_devices(text, &reason);
	return err == 0 ? 0
			: kvx_why(why, err, "%s.%s: %.200s", key->section, key->name, reason.text);
}

static int text_set(const struct kvx_config_key *key, const char *text, struct kvx_config *config,
		    struct kvx_why *why)
{
	size_t len = strlen(text);
	int err;

	for (size_t i = 0; i < len; i++)
		if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
			return kvx_why(why, -EINVAL, "%s.%s: control character in the value",
				       key->section, key->name);
	if (text[0] == '"' || text[0] == '\'')
		return kvx_why(why, -EINVAL, "%s.%s: values are written without quotes",
			       key->section, key->name);
	if (strstr(text, " #") != NULL)
		return kvx_why(why, -EINVAL, "%s.%s: a comment needs a line of its own",
			       key->section, key->name);
	if (len >= key->size)
		return kvx_why(why, -EINVAL, "%s.%s: longer than %zu bytes", key->section,
			       key->name, key->size - 1);
	if (!text_has_form(key, text))
		return refuse_form(key, text, why);
	err = list_check(key, text, why);
	if (err < 0)
		return err;
	memset(field_of(key, config), 0, key->size);
	memcpy(field_of(key, config), text, len);
	return 0;
}

static bool is_number(enum kvx_config_type type)
{
	return types[type].suffixes != NULL || type == KVX_CONFIG_MODE;
}

int kvx_config_value_set(const struct kvx_config_key *key, const char *text,
			 struct kvx_config *config, struct kvx_why *why)
{
	if (key->type == KVX_CONFIG_BOOL)
		return bool_set(key, text, config, why);
	if (is_number(key->type))
		return number_set(key, text, config, why);
	return text_set(key, text, config, why);
}

void kvx_config_number_print(enum kvx_config_type type, uint64_t value, char *out_text, size_t size)
{
	const struct suffix *best = suffixes_none;

	if (type == KVX_CONFIG_MODE) {
		snprintf(out_text, size, "%04llo", (unsigned long long)value);
		return;
	}
	for (const struct suffix *s = types[type].suffixes; s->text != NULL; s++)
		if (value != 0 && value % s->factor == 0 && s->factor >= best->factor)
			best = s;
	snprintf(out_text, size, "%llu%s", (unsigned long long)(value / best->factor), best->text);
}

void kvx_config_value_get(const struct kvx_config_key *key, const struct kvx_config *config,
			  char out_text[KVX_CONFIG_VALUE_BYTES])
{
	if (key->type == KVX_CONFIG_BOOL)
		snprintf(out_text, KVX_CONFIG_VALUE_BYTES, "%s",
			 *(const bool *)field_in(key, config) ? "true" : "false");
	else if (key->type == KVX_CONFIG_AUTO && is_auto(key, config))
		snprintf(out_text, KVX_CONFIG_VALUE_BYTES, "auto");
	else if (is_number(key->type))
		kvx_config_number_print(key->type, number_get(key, config), out_text,
					KVX_CONFIG_VALUE_BYTES);
	else
		snprintf(out_text, KVX_CONFIG_VALUE_BYTES, "%s",
			 (const char *)field_in(key, config));
}

bool kvx_config_value_equal(const struct kvx_config_key *key, const struct kvx_config *a,
			    const struct kvx_config *b)
{
	char text_a[KVX_CONFIG_VALUE_BYTES], text_b[KVX_CONFIG_VALUE_BYTES];

	kvx_config_value_get(key, a, text_a);
	kvx_config_value_get(key, b, text_b);
	return strcmp(text_a, text_b) == 0;
}
