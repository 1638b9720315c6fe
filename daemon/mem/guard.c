/* The SIGBUS guard: a process-wide handler and, per thread, the place to jump back to. Called by
 * whoever touches client memory with the CPU (copy workers, the fabric scatter, mapping). The
 * handler touches nothing but the thread's own variables, so it is safe wherever it interrupts.
 * Anything but a memory fault inside a guard stays fatal, with the default action's core dump. */
#include "mem/guard.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <ucontext.h>

#include "base/assert.h"

/* Where this thread jumps to; NULL: not in a guard. volatile: read by the handler. */
static _Thread_local sigjmp_buf *volatile guard_env;

static void guard_on_sigbus(int sig, siginfo_t *info, void *ucontext)
{
	/* si_code <= 0 was sent by kill(2): no memory failed, and no jump may hide it. */
	if (guard_env != NULL && info->si_code > 0) {
		/* The jump does not return from the signal: the mask is put back here, so that a
		 * guard that sees no fault makes no syscall. */
		const ucontext_t *interrupted = ucontext;
		pthread_sigmask(SIG_SETMASK, &interrupted->uc_sigmask, NULL);
		siglongjmp(*guard_env, 1);
	}
	signal(sig, SIG_DFL);
	if (info->si_code <= 0)
		raise(sig);
	/* A real fault runs its instruction again and dies of it, with the right core. */
}

int kvx_guard_install(void)
{
	struct sigaction act = {0};
	act.sa_sigaction = guard_on_sigbus;
	act.sa_flags = SA_SIGINFO;
	sigemptyset(&act.sa_mask);
	if (sigaction(SIGBUS, &act, NULL) < 0)
		return -errno;
	return 0;
}

int kvx_guard_run(void (*fn)(void *arg), void *arg)
{
	sigjmp_buf env;
	kvx_assert(guard_env == NULL);
	if (sigsetjmp(env, 0) != 0) {
		guard_env = NULL;
		return -EFAULT;
	}
	guard_env = &env;
	fn(arg);
	guard_env = NULL;
	return 0;
}
