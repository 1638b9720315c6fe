/* Starting a thread, waiting for one; see thread.h. Any thread. */
#include "base/thread.h"

#include <signal.h>
#include <stddef.h>
#include <time.h>

#include "base/clock.h"

int kvx_thread_start(pthread_t *out_thread, const char *name, void *(*fn)(void *arg), void *arg)
{
	static const int faults[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS};
	sigset_t all, before;

	sigfillset(&all);
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
		sigdelset(&all, faults[i]);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int err = pthread_create(out_thread, NULL, fn, arg);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err != 0)
		return -err;
	pthread_setname_np(*out_thread, name); /* for people: it may fail */
	return 0;
}

bool kvx_sem_wait_step(sem_t *sem, uint64_t step_ns)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	uint64_t ns = (uint64_t)until.tv_nsec + step_ns;
	until.tv_sec += (time_t)(ns / KVX_SEC);
	until.tv_nsec = (long)(ns % KVX_SEC);
	return sem_timedwait(sem, &until) == 0;
}
