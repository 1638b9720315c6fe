/* Memory, messages and numbers of the command-line tools. Owns nothing; called from the one thread
 * of a tool. Lack of memory ends the program. */
#include "common/tool.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

const char *kvx_tool_program = "kvxfer";

void kvx_tool_error(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	fprintf(stderr, "%s: ", kvx_tool_program);
	vfprintf(stderr, fmt, args);
	fputc('\n', stderr);
	va_end(args);
}

static void die_no_memory(void)
{
	kvx_tool_error("out of memory");
	exit(1);
}

void *kvx_tool_alloc(size_t bytes)
{
	void *mem = calloc(1, bytes ? bytes : 1);

	if (!mem)
		die_no_memory();
	return mem;
}

void *kvx_tool_realloc(void *mem, size_t bytes)
{
	void *grown = realloc(mem, bytes ? bytes : 1);

	if (!grown)
		die_no_memory();
	return grown;
}

char *kvx_tool_strdup(const char *text)
{
	char *copy = strdup(text);

	if (!copy)
		die_no_memory();
	return copy;
}

char *kvx_tool_printf(const char *fmt, ...)
{
	char *text = NULL;
	va_list args;

	va_start(args, fmt);
	if (vasprintf(&text, fmt, args) < 0)
		die_no_memory();
	va_end(args);
	return text;
}

char *kvx_unit_bytes(char *buf, uint64_t n_bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
	double value = (double)n_bytes;
	unsigned unit = 0;

	while (value >= 1024 && unit < 5) {
		value /= 1024;
		unit++;
	}
	int digits = unit == 0 || fabs(value - round(value)) < 0.005 ? 0 : value < 10 ? 2 : 1;

	snprintf(buf, KVX_UNIT_BYTES, "%.*f %s", digits, value, units[unit]);
	return buf;
}

char *kvx_unit_ns(char *buf, uint64_t ns)
{
	double value = (double)ns;
	const char *unit = "ns";

	if (ns >= 1000000000ull) {
		value /= 1e9;
		unit = "s";
	} else if (ns >= 1000000ull) {
		value /= 1e6;
		unit = "ms";
	} else if (ns >= 1000ull) {
		value /= 1e3;
		unit = "us";
	}
	int digits = ns < 1000 ? 0 : value < 10 ? 2 : value < 100 ? 1 : 0;

	snprintf(buf, KVX_UNIT_BYTES, "%.*f %s", digits, value, unit);
	return buf;
}

char *kvx_unit_age(char *buf, uint64_t ns)
{
	uint64_t s = ns / 1000000000ull;

	if (s >= 86400)
		snprintf(buf, KVX_UNIT_BYTES, "%" PRIu64 "d %" PRIu64 "h", s / 86400,
			 s % 86400 / 3600);
	else if (s >= 3600)
		snprintf(buf, KVX_UNIT_BYTES, "%" PRIu64 "h %" PRIu64 "m", s / 3600, s % 3600 / 60);
	else if (s >= 60)
		snprintf(buf, KVX_UNIT_BYTES, "%" PRIu64 "m %" PRIu64 "s", s / 60, s % 60);
	else if (s >= 1)
		snprintf(buf, KVX_UNIT_BYTES, "%" PRIu64 " s", s);
	else
		kvx_unit_ns(buf, ns);
	return buf;
}

char *kvx_unit_count(char *buf, uint64_t n)
{
	char digits[24];
	int len = snprintf(digits, sizeof(digits), "%" PRIu64, n);
	char *out = buf;

	for (int i = 0; i < len; i++) {
		if (i > 0 && (len - i) % 3 == 0)
			*out++ = ',';
		*out++ = digits[i];
	}
	*out = '\0';
	return buf;
}

char *kvx_unit_rate(char *buf, double bytes_per_second)
{
	if (bytes_per_second >= 1e9)
		snprintf(buf, KVX_UNIT_BYTES, "%.2f GB/s", bytes_per_second / 1e9);
	else if (bytes_per_second >= 1e6)
		snprintf(buf, KVX_UNIT_BYTES, "%.1f MB/s", bytes_per_second / 1e6);
	else if (bytes_per_second >= 1e3)
		snprintf(buf, KVX_UNIT_BYTES, "%.1f kB/s", bytes_per_second / 1e3);
	else
		snprintf(buf, KVX_UNIT_BYTES, "%.0f B/s", bytes_per_second);
	return buf;
}

static bool name_ends(const char *name, const char *end)
{
	size_t len = strlen(name), end_len = strlen(end);

	return len >= end_len && strcmp(name + len - end_len, end) == 0;
}

bool kvx_is_ns_key(const char *name)
{
	return name_ends(name, "_ns");
}

bool kvx_is_bytes_key(const char *name)
{
	return strcmp(name, "bytes") == 0 || strncmp(name, "bytes_", 6) == 0 ||
	       strstr(name, "_bytes_") != NULL || name_ends(name, "_bytes");
}

int kvx_parse_double(const char *text, double min, double max, double *out_value)
{
	char *end;
	double value;

	errno = 0;
	value = strtod(text, &end);
	if (end == text || *end != '\0' || !isfinite(value))
		return -EINVAL;
	if (errno == ERANGE || value < min || value > max)
		return -ERANGE;
	*out_value = value;
	return 0;
}

int kvx_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *out_value)
{
	char *end;
	unsigned long long value;

	if (text[0] < '0' || text[0] > '9')
		return -EINVAL;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (*end != '\0')
		return -EINVAL;
	if (errno == ERANGE || value < min || value > max)
		return -ERANGE;
	*out_value = value;
	return 0;
}

int kvx_parse_bytes(const char *text, uint64_t *out_bytes)
{
	static const char letters[] = "kmgt";
	char *end;
	double value, scale = 1;

	if ((text[0] < '0' || text[0] > '9') && text[0] != '.')
		return -EINVAL;
	errno = 0;
	value = strtod(text, &end);
	if (end == text || !isfinite(value))
		return -EINVAL;
	if (*end != '\0') {
		char lower = (char)(*end | 0x20);
		const char *at = lower ? strchr(letters, lower) : NULL;

		if (at) {
			scale = (double)(1ull << (10 * (at - letters + 1)));
			end++;
		}
		if (strcasecmp(end, "") != 0 && strcasecmp(end, "b") != 0 &&
		    strcasecmp(end, "ib") != 0)
			return -EINVAL;
	}
	value *= scale;
	if (value > 9e15)
		return -ERANGE;
	*out_bytes = (uint64_t)value;
	return 0;
}
