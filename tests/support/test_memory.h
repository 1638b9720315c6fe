/* Client memory for tests of the data plane: sealed memfds and kvx_mem made of them, as a client
 * would hand them over; and bytes that say where they belong. */
#ifndef KVX_TEST_MEMORY_H
#define KVX_TEST_MEMORY_H

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mem/mem.h"

#define TEST_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* A memfd of len bytes, all of them allocated, with these seals. */
static inline int test_memfd(size_t len, int seals)
{
	int fd = memfd_create("kvx-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	cr_assert_geq(fd, 0);
	cr_assert_eq(ftruncate(fd, (off_t)len), 0);
	cr_assert_eq(posix_fallocate(fd, 0, (off_t)len), 0);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

/* Checked and mapped memory of len bytes; end it with kvx_mem_fini(). */
static inline void test_mem_make(struct kvx_mem *mem, size_t len)
{
	struct kvx_why why;

	kvx_mem_init(mem, &kvx_mem_host_ops, test_memfd(len, TEST_SEALS), 0, len);
	cr_assert_eq(mem->ops->check(mem, &why), 0, "%s", why.text);
	cr_assert_eq(mem->ops->map(mem, &why), 0, "%s", why.text);
}

/* The byte at an offset of a region that was filled with a seed. */
static inline uint8_t test_byte(uint64_t seed, uint64_t offset)
{
	uint64_t x = (offset + 1) * 0x9e3779b97f4a7c15ull ^ seed * 0xff51afd7ed558ccdull;

	return (uint8_t)(x >> 56 ^ x >> 31);
}

static inline void test_fill(uint8_t *bytes, size_t len, uint64_t seed)
{
	for (size_t i = 0; i < len; i++)
		bytes[i] = test_byte(seed, i);
}

/* xorshift64*, seeded: the same sequence everywhere. */
static inline uint64_t test_random(uint64_t *state, uint64_t below)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return (*state * 0x2545f4914f6cdd1dull >> 16) % below;
}

#endif
