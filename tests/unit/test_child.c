/* Asking in a child process: what it says, how it ends, and that nobody waits for one that does not
 * end, not even when it is killed. */
#include "base/child.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "test_end.h"

/* While it is set no child can be reaped, as one that sleeps in the kernel. */
static bool asleep;
static pid_t sleeper;

pid_t __real_waitpid(pid_t pid, int *status, int options);
pid_t __wrap_waitpid(pid_t pid, int *status, int options);
pid_t __wrap_waitpid(pid_t pid, int *status, int options)
{
	if (!asleep)
		return __real_waitpid(pid, status, options);
	sleeper = pid;
	if (options & WNOHANG)
		return 0;
	pause(); /* for ever: the test's time is over */
	return -1;
}

static struct kvx_child child;

static const char *ask(int (*body)(int fd, void *arg), unsigned limit_ms)
{
	static char buf[64];

	kvx_child_ask(body, NULL, limit_ms, buf, sizeof(buf), &child);
	return buf;
}

static int answers(int fd, void *arg)
{
	dprintf(fd, "seven\n");
	printf("hello\n");
	(void)fflush(stdout);
	return 0;
}

static int fails(int fd, void *arg)
{
	return 3;
}

static int crashes(int fd, void *arg)
{
	raise(SIGSEGV);
	return 0;
}

static int hangs(int fd, void *arg)
{
	dprintf(fd, "first\n");
	return pause(); /* until it is killed */
}

Test(child, ends_as_it_ends)
{
	cr_assert_str_eq(ask(answers, 5000), "seven\n");
	cr_assert_eq(child.end, KVX_CHILD_ANSWERED);
	cr_assert_str_eq(kvx_child_last_line(&child), "hello");
	ask(fails, 5000);
	cr_assert_eq(child.end, KVX_CHILD_FAILED);
	cr_assert_eq(child.number, 3);
	ask(crashes, 5000);
	cr_assert_eq(child.end, KVX_CHILD_CRASHED);
	cr_assert_eq(child.number, SIGSEGV);
	cr_assert_str_eq(ask(hangs, 1000), "first\n");
	cr_assert_eq(child.end, KVX_CHILD_HUNG);
	cr_assert_str_eq(child.left, "");
	cr_assert_eq(waitpid(-1, NULL, WNOHANG), -1, "none is left");
	KVX_TEST_END();
}

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void is_left_behind(int (*body)(int fd, void *arg))
{
	char pid[32];
	double begin = seconds();

	asleep = true;
	ask(body, 100);
	asleep = false;
	cr_assert_lt(seconds() - begin, 2.0 * KVX_CHILD_END_MS / 1000 + 2);
	cr_assert_eq(child.end, KVX_CHILD_HUNG);
	snprintf(pid, sizeof(pid), "process %d ", (int)sleeper);
	cr_assert_not_null(strstr(child.left, pid), "%s", child.left);
	cr_assert_not_null(strstr(child.left, "left behind"), "%s", child.left);
	cr_assert_eq(waitpid(sleeper, NULL, 0), sleeper);
}

Test(child, one_that_cannot_be_killed_is_left_behind)
{
	is_left_behind(hangs);
	KVX_TEST_END();
}

/* It has said all it had to say, and ends in the kernel. */
Test(child, so_is_one_that_does_not_end_after_its_answer)
{
	is_left_behind(answers);
	KVX_TEST_END();
}
