/* Always-on check of our own invariants; never for input of clients or peers. */
#ifndef KVX_ASSERT_H
#define KVX_ASSERT_H

void kvx_assert_fail(const char *expr, const char *file, int line, const char *func)
    __attribute__((noreturn, cold));

#define kvx_assert(expr) ((expr) ? (void)0 : kvx_assert_fail(#expr, __FILE__, __LINE__, __func__))

/* First field of every object that travels through a void *. Set at creation, zeroed at
 * destruction. */
#define KVX_CHECK_MAGIC(obj, value) kvx_assert((obj) != NULL && (obj)->magic == (value))

#endif
