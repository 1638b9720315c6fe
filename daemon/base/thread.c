/* Starting a thread; see thread.h. Any thread. */
#include "base/thread.h"

#include <signal.h>
#include <stddef.h>

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
