/* Random numbers of a test file: xorshift64, and whoever sets rng_state gets the same sequence
 * everywhere. One thread. */
#ifndef KVX_TEST_RNG_H
#define KVX_TEST_RNG_H

#include <stdint.h>

static uint64_t rng_state; /* the seed; not 0 */

static inline uint64_t rng(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state;
}

static inline uint32_t rng_below(uint32_t n)
{
	return (uint32_t)(rng() % n);
}

#endif
