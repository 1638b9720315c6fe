/* The copy kernels: one body per instruction set, chosen once at run time. Called on the workers of
 * backends that copy, and by the benchmark. They touch client memory without a check: the caller
 * holds the guard. A fault in the middle leaves nothing to undo. */
#include "transport/copy_kernels.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define KVX_COPY_X86 1
#else
#define KVX_COPY_X86 0
#endif

#define LINE 64u
#define PAGE 4096u

/* Copies n lines of 64 bytes of four streams, line by line in turn, with non-temporal
 * stores: dst[] is aligned to 64. */
typedef void (*quad_fn)(uint8_t *const dst[4], const uint8_t *const src[4], size_t n_lines);
/* The same for one stream. */
typedef void (*lines_fn)(uint8_t *dst, const uint8_t *src, size_t n_lines);

struct kernel {
	const char *isa;
	quad_fn quad_nt;
	lines_fn lines_nt;
};

#if KVX_COPY_X86

/* One definition per instruction set of the loops: LOAD and STREAM move BYTES at a time. */
#define DEFINE_KERNEL(ISA, TARGET, VEC, BYTES, LOAD, STREAM)                                       \
	__attribute__((target(TARGET))) static inline void line_nt_##ISA(uint8_t *d,               \
									 const uint8_t *s)         \
	{                                                                                          \
		for (size_t i = 0; i < LINE; i += BYTES)                                           \
			STREAM((VEC *)(void *)(d + i), LOAD((const VEC *)(const void *)(s + i)));  \
	}                                                                                          \
	__attribute__((target(TARGET))) static void quad_nt_##ISA(                                 \
	    uint8_t *const dst[4], const uint8_t *const src[4], size_t n_lines)                    \
	{                                                                                          \
		uint8_t *d0 = dst[0], *d1 = dst[1], *d2 = dst[2], *d3 = dst[3];                    \
		const uint8_t *s0 = src[0], *s1 = src[1], *s2 = src[2], *s3 = src[3];              \
		for (size_t at = 0; at < n_lines * LINE; at += LINE) {                             \
			line_nt_##ISA(d0 + at, s0 + at);                                           \
			line_nt_##ISA(d1 + at, s1 + at);                                           \
			line_nt_##ISA(d2 + at, s2 + at);                                           \
			line_nt_##ISA(d3 + at, s3 + at);                                           \
		}                                                                                  \
	}                                                                                          \
	__attribute__((target(TARGET))) static void lines_nt_##ISA(                                \
	    uint8_t *dst, const uint8_t *src, size_t n_lines)                                      \
	{                                                                                          \
		for (size_t at = 0; at < n_lines * LINE; at += LINE)                               \
			line_nt_##ISA(dst + at, src + at);                                         \
	}                                                                                          \
	static const struct kernel kernel_##ISA = {#ISA, quad_nt_##ISA, lines_nt_##ISA};

DEFINE_KERNEL(sse2, "sse2", __m128i, 16, _mm_loadu_si128, _mm_stream_si128)
DEFINE_KERNEL(avx2, "avx2", __m256i, 32, _mm256_loadu_si256, _mm256_stream_si256)
DEFINE_KERNEL(avx512, "avx512f", __m512i, 64, _mm512_loadu_si512, _mm512_stream_si512)

static const struct kernel *kernel_choose(void)
{
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx512f"))
		return &kernel_avx512;
	if (__builtin_cpu_supports("avx2"))
		return &kernel_avx2;
	return &kernel_sse2;
}

#else

static void quad_memcpy(uint8_t *const dst[4], const uint8_t *const src[4], size_t n_lines)
{
	for (unsigned k = 0; k < 4; k++)
		memcpy(dst[k], src[k], n_lines * LINE);
}

static void lines_memcpy(uint8_t *dst, const uint8_t *src, size_t n_lines)
{
	memcpy(dst, src, n_lines * LINE);
}

static const struct kernel kernel_memcpy = {"memcpy", quad_memcpy, lines_memcpy};

static const struct kernel *kernel_choose(void)
{
	return &kernel_memcpy;
}

#endif

/* The choice is the same whoever makes it, so a race of two first calls is harmless; the pointer is
 * atomic all the same. */
static const struct kernel *kernel(void)
{
	static const struct kernel *chosen;
	const struct kernel *k = __atomic_load_n(&chosen, __ATOMIC_RELAXED);
	if (k == NULL) {
		k = kernel_choose();
		__atomic_store_n(&chosen, k, __ATOMIC_RELAXED);
	}
	return k;
}

void kvx_copy_memcpy(void *dst, const void *src, size_t len)
{
	memcpy(dst, src, len);
}

void kvx_copy_hot_nt(void *dst, const void *src, size_t len)
{
	uint8_t *d = dst;
	const uint8_t *s = src;
	size_t head = (size_t)(-(uintptr_t)d & (LINE - 1));
	if (len < head + LINE) {
		memcpy(d, s, len);
		return;
	}
	size_t n_lines = (len - head) / LINE;
	size_t tail = head + n_lines * LINE;
	memcpy(d, s, head);
	kernel()->lines_nt(d + head, s + head, n_lines);
	memcpy(d + tail, s + tail, len - tail);
}

void kvx_copy_nt(void *dst, const void *src, size_t len)
{
	const struct kernel *k = kernel();
	uint8_t *d = dst;
	const uint8_t *s = src;
	size_t head = (size_t)(-(uintptr_t)d & (LINE - 1));
	if (len < head + 4 * LINE) {
		memcpy(d, s, len);
		return;
	}
	memcpy(d, s, head);
	d += head;
	s += head;
	len -= head;
	while (len >= 4 * LINE) {
		/* The last round is shorter: its four streams lie closer together. */
		size_t stride = len >= 4 * PAGE ? PAGE : (len / 4) & ~(size_t)(LINE - 1);
		uint8_t *const dst4[4] = {d, d + stride, d + 2 * stride, d + 3 * stride};
		const uint8_t *const src4[4] = {s, s + stride, s + 2 * stride, s + 3 * stride};
		k->quad_nt(dst4, src4, stride / LINE);
		d += 4 * stride;
		s += 4 * stride;
		len -= 4 * stride;
	}
	size_t n_lines = len / LINE;
	k->lines_nt(d, s, n_lines);
	memcpy(d + n_lines * LINE, s + n_lines * LINE, len % LINE);
}

void kvx_copy_quad_nt(uint8_t *const dst[4], const uint8_t *const src[4], size_t len)
{
	size_t head[4], most = 0;
	for (unsigned i = 0; i < 4; i++) {
		head[i] = (size_t)(-(uintptr_t)dst[i] & (LINE - 1));
		most = head[i] > most ? head[i] : most;
	}
	if (len < most + LINE) {
		for (unsigned i = 0; i < 4; i++)
			memcpy(dst[i], src[i], len);
		return;
	}
	uint8_t *d[4];
	const uint8_t *s[4];
	for (unsigned i = 0; i < 4; i++) {
		memcpy(dst[i], src[i], head[i]);
		d[i] = dst[i] + head[i];
		s[i] = src[i] + head[i];
	}
	size_t n_lines = (len - most) / LINE;
	kernel()->quad_nt(d, s, n_lines);
	for (unsigned i = 0; i < 4; i++) {
		size_t done = head[i] + n_lines * LINE;
		memcpy(dst[i] + done, src[i] + done, len - done);
	}
}

void kvx_copy_fence(void)
{
#if KVX_COPY_X86
	_mm_sfence();
#else
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
#endif
}

const char *kvx_copy_isa(void)
{
	return kernel()->isa;
}
