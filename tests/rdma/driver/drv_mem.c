/* Guarded memory, canary and content. The content is cheap on purpose: guests run under software
 * emulation, so a word is one addition, and comparing all bytes is stronger than a checksum. */
#include "drv_mem.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "drv.h"

#define EXTENT_MAGIC 0x6b767865787431ull
#define WORD_STEP    0x9e3779b97f4a7c15ull

struct extent_hdr {
	uint64_t magic, tag, offset, len, check;
};

void drv_mem_open(struct drv_mem *mem, uint64_t bytes)
{
	uint64_t all = bytes + 2 * DRV_GUARD_BYTES;

	mem->fd = memfd_create("rdma_engine", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (mem->fd < 0 || ftruncate(mem->fd, (off_t)all) != 0)
		drv_die("memfd of %llu bytes: %s", (unsigned long long)all, strerror(errno));
	mem->map = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_SHARED, mem->fd, 0);
	if (mem->map == MAP_FAILED)
		drv_die("mmap of %llu bytes: %s", (unsigned long long)all, strerror(errno));
	mem->data = mem->map + DRV_GUARD_BYTES;
	mem->bytes = bytes;
	drv_canary_fill(mem->map, all);
}

void drv_mem_close(struct drv_mem *mem)
{
	munmap(mem->map, mem->bytes + 2 * DRV_GUARD_BYTES);
	close(mem->fd);
}

uint64_t drv_mem_guard_bad(const struct drv_mem *mem)
{
	return drv_canary_bad(mem->map, DRV_GUARD_BYTES) +
	       drv_canary_bad(mem->data + mem->bytes, DRV_GUARD_BYTES);
}

void drv_canary_fill(void *at, size_t len)
{
	memset(at, DRV_CANARY, len);
}

static bool all_equal(const uint8_t *at, size_t len, uint8_t value)
{
	/* Equal to itself one byte on: all bytes are like the first. */
	return len == 0 || (at[0] == value && memcmp(at, at + 1, len - 1) == 0);
}

uint64_t drv_canary_bad(const void *at, size_t len)
{
	const uint8_t *p = at;
	uint64_t bad = 0;

	if (all_equal(p, len, DRV_CANARY))
		return 0;
	for (size_t i = 0; i < len; i++)
		bad += p[i] != DRV_CANARY;
	return bad;
}

static void words_fill(uint8_t *at, size_t len, uint64_t word)
{
	size_t i = 0;

	for (; i + 8 <= len; i += 8, word += WORD_STEP)
		memcpy(at + i, &word, 8);
	memcpy(at + i, &word, len - i);
}

static bool words_are(const uint8_t *at, size_t len, uint64_t word)
{
	uint64_t diff = 0;
	size_t i = 0;

	for (; i + 8 <= len; i += 8, word += WORD_STEP) {
		uint64_t there;

		memcpy(&there, at + i, 8);
		diff |= there ^ word;
	}
	return diff == 0 && memcmp(at + i, &word, len - i) == 0;
}

static void extent_hdr_make(struct extent_hdr *hdr, size_t len, uint64_t tag, uint64_t offset)
{
	*hdr = (struct extent_hdr){EXTENT_MAGIC, tag, offset, len, 0};
	hdr->check = drv_mix(tag ^ drv_mix(offset ^ drv_mix(len)));
}

static bool hdr_is_one(const struct extent_hdr *hdr)
{
	return hdr->magic == EXTENT_MAGIC &&
	       hdr->check == drv_mix(hdr->tag ^ drv_mix(hdr->offset ^ drv_mix(hdr->len)));
}

void drv_extent_fill(void *at, size_t len, uint64_t tag, uint64_t offset)
{
	struct extent_hdr hdr;

	extent_hdr_make(&hdr, len, tag, offset);
	memcpy(at, &hdr, sizeof(hdr));
	words_fill((uint8_t *)at + sizeof(hdr), len - sizeof(hdr), drv_mix(hdr.check));
}

enum drv_verdict drv_extent_check(const void *at, size_t len, uint64_t tag, uint64_t offset)
{
	const uint8_t *body = (const uint8_t *)at + sizeof(struct extent_hdr);
	struct extent_hdr want;
	struct extent_hdr there;

	extent_hdr_make(&want, len, tag, offset);
	memcpy(&there, at, sizeof(there));
	if (memcmp(&want, &there, sizeof(want)) == 0 &&
	    words_are(body, len - sizeof(want), drv_mix(want.check)))
		return DRV_GOOD;
	if (all_equal(at, len, DRV_CANARY))
		return DRV_MISSING;
	if (hdr_is_one(&there) && (there.tag != tag || there.offset != offset))
		return DRV_MISPLACED;
	return DRV_CORRUPT;
}

bool drv_extent_named(const void *at, uint64_t *out_tag, uint64_t *out_offset)
{
	struct extent_hdr there;

	memcpy(&there, at, sizeof(there));
	if (!hdr_is_one(&there))
		return false;
	*out_tag = there.tag;
	*out_offset = there.offset;
	return true;
}

static uint64_t source_word(uint64_t seed, uint64_t offset)
{
	return drv_mix(seed) + offset / 8 * WORD_STEP;
}

void drv_source_fill(void *at, size_t len, uint64_t seed, uint64_t offset)
{
	words_fill(at, len, source_word(seed, offset));
}

enum drv_verdict drv_source_check(const void *at, size_t len, uint64_t seed, uint64_t offset)
{
	uint64_t there;

	if (words_are(at, len, source_word(seed, offset)))
		return DRV_GOOD;
	if (all_equal(at, len, DRV_CANARY))
		return DRV_MISSING;
	return drv_source_named(at, seed, &there) && there != offset ? DRV_MISPLACED : DRV_CORRUPT;
}

bool drv_source_named(const void *at, uint64_t seed, uint64_t *out_offset)
{
	uint64_t word;
	uint64_t steps;

	memcpy(&word, at, sizeof(word));
	steps = (word - drv_mix(seed)) * 0xf1de83e19937733dull; /* inverse of WORD_STEP */
	*out_offset = steps * 8;
	return steps < (1ull << 40) / 8;
}

void drv_payload_fill(void *at, size_t len, uint64_t tag)
{
	words_fill(at, len, drv_mix(~tag));
}

int drv_payload_good(const void *at, size_t len, uint64_t tag)
{
	return words_are(at, len, drv_mix(~tag));
}
