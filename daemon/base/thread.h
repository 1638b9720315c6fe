/* Threads of the daemon. Signals are the loop's; faults stay where they arise. */
#ifndef KVX_THREAD_H
#define KVX_THREAD_H

#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>

/* name: at most 15 characters, for people. 0 or -errno. */
int kvx_thread_start(pthread_t *out_thread, const char *name, void *(*fn)(void *arg), void *arg);

/* Takes one from a semaphore, waiting for it for about so long; false: none has come, or a signal
 * has. A short step on the wall clock, which may be set meanwhile: whoever has a deadline looks at
 * kvx_now_ns() between two steps. */
bool kvx_sem_wait_step(sem_t *sem, uint64_t step_ns);

#endif
