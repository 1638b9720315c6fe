/* Logging: one line per call, lower case, "module: object id: cause". Any thread; a line is one
 * write(2). error: the operator must act. warn: degraded. info: peers and clients come and go.
 * debug: per object. trace: per op. */
#ifndef KVX_LOG_H
#define KVX_LOG_H

#include <stdbool.h>

enum kvx_log_level { KVX_LOG_ERROR, KVX_LOG_WARN, KVX_LOG_INFO, KVX_LOG_DEBUG, KVX_LOG_TRACE };

/* To stderr, until told otherwise at level info. With journal_prefix each line begins with the
 * "<N>" priority that journald strips (sd-daemon(3)); without it, with a time stamp and the level's
 * name. */
void kvx_log_init(enum kvx_log_level level, bool journal_prefix);
void kvx_log_set_level(enum kvx_log_level level);
bool kvx_log_enabled(enum kvx_log_level level);
/* error..trace by name; -1 when unknown. */
int kvx_log_level_parse(const char *name);
/* Tests: number of lines logged at warn or error since the start. */
unsigned long kvx_log_count_warnings(void);

void kvx_log(enum kvx_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define kvx_log_at(level, ...)                                                                     \
	do {                                                                                       \
		if (kvx_log_enabled(level))                                                        \
			kvx_log(level, __VA_ARGS__);                                               \
	} while (0)
#define kvx_error(...) kvx_log_at(KVX_LOG_ERROR, __VA_ARGS__)
#define kvx_warn(...)  kvx_log_at(KVX_LOG_WARN, __VA_ARGS__)
#define kvx_info(...)  kvx_log_at(KVX_LOG_INFO, __VA_ARGS__)
#define kvx_debug(...) kvx_log_at(KVX_LOG_DEBUG, __VA_ARGS__)
#define kvx_trace(...) kvx_log_at(KVX_LOG_TRACE, __VA_ARGS__)

#endif
