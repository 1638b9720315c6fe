/* Options of the subcommands, from one table that also gives the help. Reads argv, changes what the
 * table points to, prints. */
#include "bench.h"

#include <inttypes.h>
#include <string.h>

static void option_default(const struct kvx_option *option, char *buf, size_t buf_bytes)
{
	char unit[KVX_UNIT_BYTES];

	buf[0] = '\0';
	if (option->kind == KVX_OPT_U64)
		snprintf(buf, buf_bytes, " (%" PRIu64 ")", *(const uint64_t *)option->out);
	else if (option->kind == KVX_OPT_BYTES && *(const uint64_t *)option->out)
		snprintf(buf, buf_bytes, " (%s)",
			 kvx_unit_bytes(unit, *(const uint64_t *)option->out));
	else if (option->kind == KVX_OPT_DOUBLE)
		snprintf(buf, buf_bytes, " (%g)", *(const double *)option->out);
	else if (option->kind == KVX_OPT_STR && *(const char *const *)option->out)
		snprintf(buf, buf_bytes, " (%s)", *(const char *const *)option->out);
}

static void options_help(const struct kvx_option *options, const char *command)
{
	printf("usage: kvxfer-bench %s [OPTIONS]\n\n", command);
	for (const struct kvx_option *o = options; o->name; o++) {
		char word[64], value[64];

		snprintf(word, sizeof(word), "--%s%s%s", o->name, o->label ? " " : "",
			 o->label ? o->label : "");
		option_default(o, value, sizeof(value));
		printf("  %-24s %s%s\n", word, o->help, value);
	}
}

static int option_set(const struct kvx_option *option, const char *value)
{
	double min = option->min, max = option->max > option->min ? option->max : 1e15;
	int rc = 0;

	switch (option->kind) {
	case KVX_OPT_FLAG:
		*(bool *)option->out = true;
		break;
	case KVX_OPT_STR:
		*(const char **)option->out = value;
		break;
	case KVX_OPT_U64:
		rc = kvx_parse_u64(value, (uint64_t)min, (uint64_t)max, option->out);
		break;
	case KVX_OPT_DOUBLE:
		rc = kvx_parse_double(value, min, max, option->out);
		break;
	case KVX_OPT_BYTES:
		rc = kvx_parse_bytes(value, option->out);
		if (rc == 0 && ((double)*(uint64_t *)option->out < min ||
				(double)*(uint64_t *)option->out > max))
			rc = -1;
		break;
	}
	if (rc != 0)
		kvx_tool_error("--%s: %s is not a value between %g and %g", option->name, value,
			       min, max);
	return rc;
}

int kvx_options_parse(const struct kvx_option *options, const char *command, int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		const char *word = argv[i], *value = NULL;
		const struct kvx_option *o = options;

		if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
			options_help(options, command);
			return -1;
		}
		if (strncmp(word, "--", 2) == 0) {
			size_t len = strcspn(word + 2, "=");

			while (o->name &&
			       (strlen(o->name) != len || strncmp(o->name, word + 2, len)))
				o++;
			value = word[2 + len] == '=' ? word + 3 + len : NULL;
		}
		if (strncmp(word, "--", 2) != 0 || !o->name || (o->kind == KVX_OPT_FLAG && value)) {
			kvx_tool_error("unknown option %s; see kvxfer-bench %s --help", word,
				       command);
			return KVX_BENCH_USAGE;
		}
		if (o->kind != KVX_OPT_FLAG && !value)
			value = ++i < argc ? argv[i] : NULL;
		if (o->kind != KVX_OPT_FLAG && !value) {
			kvx_tool_error("--%s needs a value", o->name);
			return KVX_BENCH_USAGE;
		}
		if (option_set(o, value) != 0)
			return KVX_BENCH_USAGE;
	}
	return 0;
}
