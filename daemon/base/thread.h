/* Threads of the daemon. Signals are the loop's; faults stay where they arise. */
#ifndef KVX_THREAD_H
#define KVX_THREAD_H

#include <pthread.h>

/* name: at most 15 characters, for people. 0 or -errno. */
int kvx_thread_start(pthread_t *out_thread, const char *name, void *(*fn)(void *arg), void *arg);

#endif
