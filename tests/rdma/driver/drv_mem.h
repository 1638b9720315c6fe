/* Memory that shows what was done to it: guard pages on both sides, the canary where nothing may
 * land, and content that tells for every byte which transfer it belongs to and where. */
#ifndef KVX_RDMA_DRV_MEM_H
#define KVX_RDMA_DRV_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DRV_CANARY      0xee
#define DRV_SPENT       0xdd /* source bytes after the terminal event: they must land nowhere */
#define DRV_GUARD_BYTES 65536u

struct drv_mem {
	int fd;       /* memfd: guard, the region, guard */
	uint8_t *map; /* all of it; stays mapped when the region is unregistered */
	uint8_t *data;
	uint64_t bytes;
};
void drv_mem_open(struct drv_mem *mem, uint64_t bytes);
void drv_mem_close(struct drv_mem *mem);
uint64_t drv_mem_guard_bad(const struct drv_mem *mem); /* guard bytes that are not the canary */

void drv_canary_fill(void *at, size_t len);
/* Bytes that are not the canary. */
uint64_t drv_canary_bad(const void *at, size_t len);

/* What an extent of a WRITE holds: a header and words that follow from the tag and from the offset
 * in the destination, so that content at the wrong place, of another transfer, or of an earlier one
 * is told from content that is right. len >= DRV_EXTENT_MIN. */
#define DRV_EXTENT_MIN 64u
enum drv_verdict { DRV_GOOD, DRV_MISSING, DRV_MISPLACED, DRV_CORRUPT };
void drv_extent_fill(void *at, size_t len, uint64_t tag, uint64_t offset);
enum drv_verdict drv_extent_check(const void *at, size_t len, uint64_t tag, uint64_t offset);

/* What a source of READs holds: words that follow from a seed and the offset. offset % 8 == 0. */
void drv_source_fill(void *at, size_t len, uint64_t seed, uint64_t offset);
enum drv_verdict drv_source_check(const void *at, size_t len, uint64_t seed, uint64_t offset);

/* Which transfer's extent begins here, and which offset of a source this word is; false: none. */
bool drv_extent_named(const void *at, uint64_t *out_tag, uint64_t *out_offset);
bool drv_source_named(const void *at, uint64_t seed, uint64_t *out_offset);

/* drv_diff.c: what is there instead of that, as key=value words. */
#define DRV_TELL_MAX 384u
void drv_extent_tell(char *buf, size_t size, const void *at, size_t len, uint64_t tag,
		     uint64_t offset);
void drv_source_tell(char *buf, size_t size, const void *at, size_t len, uint64_t seed,
		     uint64_t offset);

/* Payload of a transfer. */
void drv_payload_fill(void *at, size_t len, uint64_t tag);
int drv_payload_good(const void *at, size_t len, uint64_t tag);

#endif
