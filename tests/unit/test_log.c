/* Log lines: one write each, levels, prefixes, and nothing that a client's text could forge. */
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "test_end.h"

/* stderr becomes a pipe in packet mode: one read gives one write. */
static int stderr_capture(int *out_saved)
{
	int fds[2];

	cr_assert_eq(pipe2(fds, O_CLOEXEC | O_DIRECT | O_NONBLOCK), 0);
	*out_saved = dup(STDERR_FILENO);
	cr_assert_eq(dup2(fds[1], STDERR_FILENO), STDERR_FILENO);
	close(fds[1]);
	return fds[0];
}

static void stderr_restore(int saved, int fd)
{
	dup2(saved, STDERR_FILENO);
	close(saved);
	close(fd);
}

static size_t line_read(int fd, char *line, size_t size)
{
	ssize_t n = read(fd, line, size - 1);

	line[n < 0 ? 0 : n] = '\0';
	return n < 0 ? 0 : (size_t)n;
}

Test(log, a_line_is_one_write_with_the_journal_priority)
{
	char line[4096];
	int saved, fd = stderr_capture(&saved);

	kvx_log_init(KVX_LOG_INFO, true);
	kvx_error("verbs: peer %d: gone", 3);
	line_read(fd, line, sizeof(line));
	cr_expect_str_eq(line, "<3>verbs: peer 3: gone\n");
	kvx_info("control: client 1: connected");
	line_read(fd, line, sizeof(line));
	cr_expect_str_eq(line, "<6>control: client 1: connected\n");
	stderr_restore(saved, fd);
	KVX_TEST_END();
}

Test(log, without_the_journal_there_is_a_time_stamp_and_a_level)
{
	char line[4096], level[8], rest[64];
	int saved, fd = stderr_capture(&saved), year;

	kvx_warn("mem: region 7: slow");
	line_read(fd, line, sizeof(line));
	stderr_restore(saved, fd);
	cr_assert_eq(sscanf(line, "%d-%*d-%*dT%*d:%*d:%*[0-9.]Z %7s %63[^\n]", &year, level, rest),
		     3, "%s", line);
	cr_assert_geq(year, 2024);
	cr_assert_str_eq(level, "warn");
	cr_assert_str_eq(rest, "mem: region 7: slow");
	KVX_TEST_END();
}

Test(log, lower_levels_are_silent)
{
	char line[4096];
	int saved, fd = stderr_capture(&saved);

	kvx_log_init(KVX_LOG_WARN, true);
	kvx_info("base: not seen");
	cr_expect_eq(line_read(fd, line, sizeof(line)), 0);
	kvx_log_set_level(KVX_LOG_TRACE);
	kvx_trace("base: seen");
	cr_expect_gt(line_read(fd, line, sizeof(line)), 0);
	stderr_restore(saved, fd);
	KVX_TEST_END();
}

Test(log, control_characters_cannot_forge_a_line)
{
	char line[4096];
	int saved, fd = stderr_capture(&saved);

	kvx_log_init(KVX_LOG_INFO, true);
	kvx_info("control: client named %s", "x\n<0>daemon: fine\x1b[2J");
	line_read(fd, line, sizeof(line));
	stderr_restore(saved, fd);
	cr_assert_str_eq(line, "<6>control: client named x?<0>daemon: fine?[2J\n");
	KVX_TEST_END();
}

Test(log, long_lines_are_cut_and_still_end)
{
	char text[3000], line[4096];
	int saved, fd = stderr_capture(&saved);
	size_t len;

	memset(text, 'a', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	kvx_info("%s", text);
	len = line_read(fd, line, sizeof(line));
	stderr_restore(saved, fd);
	cr_assert_gt(len, 500);
	cr_assert_lt(len, sizeof(text));
	cr_assert_str_eq(line + len - 4, "...\n");
	KVX_TEST_END();
}

Test(log, warnings_are_counted_and_errno_is_kept)
{
	int saved, fd = stderr_capture(&saved);
	unsigned long before = kvx_log_count_warnings();

	errno = ENOTTY;
	kvx_warn("base: one");
	kvx_error("base: two");
	kvx_info("base: not one");
	cr_expect_eq(errno, ENOTTY);
	cr_expect_eq(kvx_log_count_warnings(), before + 2);
	stderr_restore(saved, fd);
	KVX_TEST_END();
}

Test(log, levels_have_names)
{
	cr_assert_eq(kvx_log_level_parse("error"), KVX_LOG_ERROR);
	cr_assert_eq(kvx_log_level_parse("trace"), KVX_LOG_TRACE);
	cr_assert_eq(kvx_log_level_parse("Trace"), -1);
	cr_assert_eq(kvx_log_level_parse(""), -1);
	KVX_TEST_END();
}
