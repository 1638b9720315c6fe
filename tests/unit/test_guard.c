/* The SIGBUS guard: faults become -EFAULT, in any thread, any number of times; everything else
 * stays fatal. */
#include "mem/guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test_end.h"

#define PAGE 4096u

/* Two pages of which the second has no file behind it any more. */
static uint8_t *torn_pages(void)
{
	int fd = memfd_create("torn", MFD_CLOEXEC);

	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, 2 * PAGE), 0);
	uint8_t *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert_neq(pages, MAP_FAILED);
	memset(pages, 1, 2 * PAGE);
	cr_assert_eq(ftruncate(fd, PAGE), 0);
	close(fd);
	return pages;
}

static void read_byte(void *arg)
{
	(void)*(volatile uint8_t *)arg;
}

static void write_pages(void *arg)
{
	memset(arg, 7, 2 * PAGE);
}

Test(guard, good_memory_gives_0)
{
	uint8_t byte = 3;

	cr_assert_eq(kvx_guard_install(), 0);
	cr_assert_eq(kvx_guard_run(read_byte, &byte), 0);
	KVX_TEST_END();
}

Test(guard, fault_gives_efault_every_time)
{
	uint8_t *pages = torn_pages();

	cr_assert_eq(kvx_guard_install(), 0);
	for (unsigned i = 0; i < 100; i++) {
		cr_assert_eq(kvx_guard_run(read_byte, pages + PAGE), -EFAULT);
		cr_assert_eq(kvx_guard_run(read_byte, pages), 0);
	}
	cr_assert_eq(kvx_guard_run(write_pages, pages), -EFAULT);
	munmap(pages, 2 * PAGE);
	KVX_TEST_END();
}

Test(guard, signal_mask_is_as_before)
{
	uint8_t *pages = torn_pages();
	sigset_t before, after;

	cr_assert_eq(kvx_guard_install(), 0);
	pthread_sigmask(SIG_SETMASK, NULL, &before);
	cr_assert_eq(kvx_guard_run(read_byte, pages + PAGE), -EFAULT);
	pthread_sigmask(SIG_SETMASK, NULL, &after);
	for (int sig = 1; sig < 32; sig++)
		cr_assert_eq(sigismember(&before, sig), sigismember(&after, sig), "signal %d", sig);
	munmap(pages, 2 * PAGE);
	KVX_TEST_END();
}

static void *fault_in_thread(void *arg)
{
	uintptr_t wrong = 0;

	for (unsigned i = 0; i < 200; i++) {
		uint8_t here = 0;

		wrong += kvx_guard_run(read_byte, (uint8_t *)arg + PAGE) != -EFAULT;
		wrong += kvx_guard_run(read_byte, &here) != 0;
	}
	return (void *)wrong;
}

Test(guard, threads_fault_independently)
{
	uint8_t *pages = torn_pages();
	pthread_t threads[4];

	cr_assert_eq(kvx_guard_install(), 0);
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, fault_in_thread, pages), 0);
	for (unsigned i = 0; i < 4; i++) {
		void *wrong;

		pthread_join(threads[i], &wrong);
		cr_assert_eq((uintptr_t)wrong, 0);
	}
	munmap(pages, 2 * PAGE);
	KVX_TEST_END();
}

static void raise_sigbus(void *arg)
{
	raise(SIGBUS);
}

/* Runs fn(arg) in a child, in a guard or not; returns the signal that it died of. */
static int child_dies_of(void (*fn)(void *), void *arg, int guarded)
{
	int status;
	pid_t pid = fork();

	cr_assert_geq(pid, 0);
	if (pid == 0) {
		struct rlimit none = {0, 0};

		setrlimit(RLIMIT_CORE, &none);
		if (guarded)
			kvx_guard_run(fn, arg);
		else
			fn(arg);
		_exit(0);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

Test(guard, fault_outside_of_a_guard_is_fatal)
{
	uint8_t *pages = torn_pages();

	cr_assert_eq(kvx_guard_install(), 0);
	cr_assert_eq(kvx_guard_run(read_byte, pages + PAGE), -EFAULT);
	cr_assert_eq(child_dies_of(read_byte, pages + PAGE, 0), SIGBUS);
	munmap(pages, 2 * PAGE);
	KVX_TEST_END();
}

Test(guard, sigbus_by_kill_is_fatal_inside_too)
{
	cr_assert_eq(kvx_guard_install(), 0);
	cr_assert_eq(child_dies_of(raise_sigbus, NULL, 1), SIGBUS);
	KVX_TEST_END();
}
