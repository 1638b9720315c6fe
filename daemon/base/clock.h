/* Time: nanoseconds of CLOCK_MONOTONIC. */
#ifndef KVX_CLOCK_H
#define KVX_CLOCK_H

#include <stdint.h>

#define KVX_MS  1000000ull
#define KVX_SEC 1000000000ull

uint64_t kvx_now_ns(void);

#endif
