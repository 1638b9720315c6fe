/* The --wrap side of fault_alloc.h: counts allocations and fails one of them. Any thread; the
 * counters are atomic. Not armed, it only passes calls on. */
#include "fault_alloc.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static _Atomic unsigned n_calls;
static _Atomic unsigned fail_at; /* 0: never */
static _Atomic bool fired;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *ptr, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
int __real_posix_memalign(void **out_ptr, size_t align, size_t size);
char *__real_strdup(const char *s);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *ptr, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);
int __wrap_posix_memalign(void **out_ptr, size_t align, size_t size);
char *__wrap_strdup(const char *s);

void fault_alloc_arm(unsigned n)
{
	n_calls = 0;
	fired = false;
	fail_at = n;
}

bool fault_alloc_disarm(void)
{
	fail_at = 0;
	return fired;
}

unsigned fault_alloc_count(void)
{
	return n_calls;
}

static bool alloc_fails(void)
{
	unsigned call = atomic_fetch_add(&n_calls, 1) + 1;

	if (fail_at == 0 || call != fail_at)
		return false;
	fired = true;
	errno = ENOMEM;
	return true;
}

void *__wrap_malloc(size_t size)
{
	return alloc_fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return alloc_fails() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *ptr, size_t size)
{
	return alloc_fails() ? NULL : __real_realloc(ptr, size);
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
	return alloc_fails() ? NULL : __real_aligned_alloc(align, size);
}

int __wrap_posix_memalign(void **out_ptr, size_t align, size_t size)
{
	return alloc_fails() ? ENOMEM : __real_posix_memalign(out_ptr, align, size);
}

char *__wrap_strdup(const char *s)
{
	return alloc_fails() ? NULL : __real_strdup(s);
}
