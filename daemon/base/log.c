/* Log lines to stderr. Any thread: the level is atomic and each line is one write(2), so that lines
 * of several threads never mix. Never allocates. Control characters in a message are replaced,
 * because names and texts of clients and peers end up here. */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES 1024

static _Atomic int log_level = KVX_LOG_INFO;
static _Atomic bool log_journal = false;
static _Atomic unsigned long log_n_warnings = 0;

static const struct {
	const char *name;
	int priority; /* syslog(3) */
} log_levels[] = {
    [KVX_LOG_ERROR] = {"error", 3}, [KVX_LOG_WARN] = {"warn", 4},   [KVX_LOG_INFO] = {"info", 6},
    [KVX_LOG_DEBUG] = {"debug", 7}, [KVX_LOG_TRACE] = {"trace", 7},
};

void kvx_log_init(enum kvx_log_level level, bool journal_prefix)
{
	atomic_store_explicit(&log_journal, journal_prefix, memory_order_relaxed);
	kvx_log_set_level(level);
}

void kvx_log_set_level(enum kvx_log_level level)
{
	atomic_store_explicit(&log_level, (int)level, memory_order_relaxed);
}

bool kvx_log_enabled(enum kvx_log_level level)
{
	return (int)level <= atomic_load_explicit(&log_level, memory_order_relaxed);
}

int kvx_log_level_parse(const char *name)
{
	for (size_t i = 0; i < sizeof(log_levels) / sizeof(log_levels[0]); i++)
		if (strcmp(name, log_levels[i].name) == 0)
			return (int)i;
	return -1;
}

unsigned long kvx_log_count_warnings(void)
{
	return atomic_load_explicit(&log_n_warnings, memory_order_relaxed);
}

static size_t log_prefix(char *line, size_t size, enum kvx_log_level level)
{
	struct timespec ts;
	struct tm tm;
	int n;

	if (atomic_load_explicit(&log_journal, memory_order_relaxed)) {
		n = snprintf(line, size, "<%d>", log_levels[level].priority);
		return (size_t)n;
	}
	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	n = snprintf(line, size, "%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ %-5s ", tm.tm_year + 1900,
		     tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
		     ts.tv_nsec / 1000000, log_levels[level].name);
	return (size_t)n;
}

static void log_clean(char *text, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
			text[i] = '?';
}

void kvx_log(enum kvx_log_level level, const char *fmt, ...)
{
	int saved_errno = errno;
	char line[LINE_BYTES];
	size_t prefix, len;
	va_list ap;
	int n;

	if (level <= KVX_LOG_WARN)
		atomic_fetch_add_explicit(&log_n_warnings, 1, memory_order_relaxed);
	if (!kvx_log_enabled(level))
		return;
	prefix = log_prefix(line, sizeof(line), level);
	va_start(ap, fmt);
	n = vsnprintf(line + prefix, sizeof(line) - prefix, fmt, ap);
	va_end(ap);
	len = prefix + (n > 0 ? (size_t)n : 0);
	if (len > sizeof(line) - 2) {
		len = sizeof(line) - 2; /* room for the newline */
		memcpy(line + len - 3, "...", 3);
	}
	log_clean(line + prefix, len - prefix);
	line[len++] = '\n';
	while (write(STDERR_FILENO, line, len) < 0 && errno == EINTR)
		;
	errno = saved_errno;
}
