/* The one place that reads the clock. Any thread; a vDSO call, no syscall. Virtual time in tests is
 * handed to kvx_timers_create() instead. */
#include "base/clock.h"

#include <time.h>

uint64_t kvx_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * KVX_SEC + (uint64_t)ts.tv_nsec;
}
