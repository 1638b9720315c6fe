/* The leak check at the end of a unit test. Linked with --wrap=criterion_internal_test_main: that
 * is the call which runs a test's body, so the wrapper sees which fds Criterion itself has open.
 * Runs in the forked worker of one test, on its only thread. */
#include "test_end.h"

#include <dirent.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define MAX_FDS 4096

static bool fds_seen;
static bool fds_at_start[MAX_FDS];

extern int __lsan_do_recoverable_leak_check(void) __attribute__((weak));
void __real_criterion_internal_test_main(void (*fn)(void));
void __wrap_criterion_internal_test_main(void (*fn)(void));

/* Calls visit(fd) for each open fd but the one that lists them. */
static void fds_walk(void (*visit)(int fd, void *arg), void *arg)
{
	DIR *dir = opendir("/proc/self/fd");
	const struct dirent *entry;

	if (dir == NULL)
		abort();
	while ((entry = readdir(dir)) != NULL) {
		int fd = atoi(entry->d_name);

		if (entry->d_name[0] != '.' && fd != dirfd(dir))
			visit(fd, arg);
	}
	closedir(dir);
}

static void fd_mark(int fd, void *arg)
{
	if (fd < MAX_FDS)
		fds_at_start[fd] = true;
}

void __wrap_criterion_internal_test_main(void (*fn)(void))
{
	fds_walk(fd_mark, NULL);
	fds_seen = true;
	__real_criterion_internal_test_main(fn);
}

struct report {
	unsigned n;
	char *text;
	size_t size;
	size_t len;
};

static void fd_report(int fd, void *arg)
{
	struct report *report = arg;
	char link[64], target[PATH_MAX];
	ssize_t n;

	if (fd < MAX_FDS && fds_at_start[fd])
		return;
	report->n++;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, target, sizeof(target) - 1);
	target[n < 0 ? 0 : n] = '\0';
	if (report->len < report->size)
		report->len += (size_t)snprintf(report->text + report->len,
						report->size - report->len, " %d (%s)", fd, target);
}

unsigned kvx_test_count_new_fds(char *text, size_t size)
{
	struct report report = {.text = text, .size = size};

	if (!fds_seen) {
		fprintf(stderr, "test_end: not linked with --wrap=criterion_internal_test_main\n");
		abort();
	}
	text[0] = '\0';
	fds_walk(fd_report, &report);
	return report.n;
}

int kvx_test_find_leaks(void)
{
	if (__lsan_do_recoverable_leak_check == NULL)
		return 0;
	return __lsan_do_recoverable_leak_check();
}
