/* What tests of the stand-in begin and end with: a node of two GPUs. */
#ifndef KVX_STANDIN_RIG_H
#define KVX_STANDIN_RIG_H

#include <criterion/criterion.h>
#include <string.h>
#include <time.h>

#include "standin.h"
#include "test_gpu.h"

#define MIB (1ull << 20)

static inline void sleep_ms(long ms)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

static inline void node_open(void)
{
	standin_create(2, 64 * MIB);
}

static inline void node_close(void)
{
	cr_expect_eq(standin_n_violations(), 0, "%s", standin_violation());
	standin_destroy();
}

static inline bool all_are(const void *device_pointer, uint8_t value, size_t bytes)
{
	const uint8_t *at = standin_bytes(device_pointer);

	return at != NULL && at[0] == value && memcmp(at, at + 1, bytes - 1) == 0;
}

#endif
