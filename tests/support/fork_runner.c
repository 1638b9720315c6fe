/* Runs Criterion tests without Criterion's own runner, which cannot start under ThreadSanitizer:
 * the heap that it shares with its workers has a fixed address that TSan keeps for itself. Takes
 * the tests from the section where Test() puts them, forks for each one, and prints TAP. Defines
 * the few functions that test bodies call, so that those of the library are never reached. Linked
 * only in TSan builds; knows plain tests with init, fini, signal, exit_code, disabled and timeout.
 */
#include <criterion/criterion.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXIT_SKIPPED    77
#define DEFAULT_TIMEOUT 60
#define SLOWER          3 /* how much more time a test has: ThreadSanitizer costs as much */

extern struct criterion_test *__start_cr_tst[] __attribute__((weak, visibility("hidden")));
extern struct criterion_test *__stop_cr_tst[] __attribute__((weak, visibility("hidden")));

static const struct criterion_test *current;
static jmp_buf abort_point;
static volatile bool has_failed;

void criterion_internal_test_setup(void)
{
	if (current->data->init != NULL)
		current->data->init();
}

void criterion_internal_test_main(void (*fn)(void))
{
	if (setjmp(abort_point) == 0)
		fn();
}

void criterion_internal_test_teardown(void)
{
	if (current->data->fini != NULL)
		current->data->fini();
}

void criterion_abort_test(void)
{
	has_failed = true;
	longjmp(abort_point, 1);
}

void criterion_continue_test(void)
{
	has_failed = true;
}

void criterion_skip_test(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	_exit(EXIT_SKIPPED);
}

void criterion_send_assert(struct criterion_assert_stats *stats)
{
	fprintf(stderr, "%s:%u: %s\n", stats->file, stats->line, stats->message);
}

void cri_asserts_passed_incr(void)
{
}

static void test_run_child(const struct criterion_test *test, unsigned timeout_s)
{
	current = test;
	alarm(SLOWER * timeout_s);
	test->test();
	exit(has_failed ? 1 : test->data->exit_code);
}

static bool status_is_expected(const struct criterion_test *test, int status)
{
	if (WIFSIGNALED(status))
		return test->data->signal != 0 && WTERMSIG(status) == test->data->signal;
	return test->data->signal == 0 && WEXITSTATUS(status) == test->data->exit_code;
}

/* True unless the test failed. */
static bool test_run(const struct criterion_test *test, unsigned timeout_s)
{
	int status = 0;
	pid_t pid;

	if (test->data->disabled) {
		printf("ok - %s::%s # SKIP disabled\n", test->category, test->name);
		return true;
	}
	if (test->data->timeout > 0)
		timeout_s = (unsigned)test->data->timeout + 1;
	fflush(stdout);
	pid = fork();
	if (pid == 0)
		test_run_child(test, timeout_s);
	if (pid < 0 || waitpid(pid, &status, 0) != pid) {
		perror("fork_runner");
		exit(2);
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED) {
		printf("ok - %s::%s # SKIP see stderr\n", test->category, test->name);
		return true;
	}
	if (status_is_expected(test, status)) {
		printf("ok - %s::%s\n", test->category, test->name);
		return true;
	}
	printf("not ok - %s::%s\n# %s %d\n", test->category, test->name,
	       WIFSIGNALED(status) ? "ended by signal" : "exit status",
	       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	return false;
}

int main(int argc, char **argv)
{
	unsigned timeout_s = DEFAULT_TIMEOUT, n = 0;
	bool all_passed = true;

	for (int i = 1; i + 1 < argc; i++)
		if (strcmp(argv[i], "--timeout") == 0)
			timeout_s = (unsigned)atoi(argv[i + 1]);
	for (struct criterion_test **t = __start_cr_tst; t < __stop_cr_tst; t++)
		n += *t != NULL;
	printf("TAP version 13\n1..%u\n", n);
	for (struct criterion_test **t = __start_cr_tst; t < __stop_cr_tst; t++)
		if (*t != NULL && !test_run(*t, timeout_s))
			all_passed = false;
	return all_passed && n > 0 ? 0 : 1;
}
