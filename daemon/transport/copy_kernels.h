/* Copy kernels: how backends move bytes with the CPU, and what `kvxfer-bench limits` measures as
 * this machine's limit, so that both are the same code. Any thread; no state but the choice of the
 * instruction set, made once at the first call. Nothing here checks memory: callers that copy
 * client memory do it inside kvx_guard_run(). */
#ifndef KVX_COPY_KERNELS_H
#define KVX_COPY_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Plain stores: the destination lands in the cache. Source and destination must not overlap. */
void kvx_copy_memcpy(void *dst, const void *src, size_t len);

/* Non-temporal stores, four streams a page apart at a time, so that four pages' worth of loads are
 * in flight. The destination bypasses the cache: call kvx_copy_fence() before telling anyone that
 * the bytes are there. Any alignment and length; must not overlap. */
void kvx_copy_nt(void *dst, const void *src, size_t len);

/* Non-temporal stores, one stream: for a source that is in the cache, whose loads need no help
 * (a message that has just arrived). kvx_copy_fence() as for kvx_copy_nt(). Any alignment and
 * length; must not overlap. */
void kvx_copy_hot_nt(void *dst, const void *src, size_t len);

/* Four blocks of one length at the same time, with non-temporal stores: the cache misses of small
 * scattered blocks overlap. kvx_copy_fence() as for kvx_copy_nt(). Any alignment and length; none
 * may overlap another. */
void kvx_copy_quad_nt(uint8_t *const dst[4], const uint8_t *const src[4], size_t len);

/* Makes non-temporal stores of this thread visible before anything that it stores later. */
void kvx_copy_fence(void);

/* "avx512", "avx2", "sse2", or "memcpy" where there is nothing better. */
const char *kvx_copy_isa(void);

#endif
