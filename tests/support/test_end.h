/* What every unit test ends with: no fd that the test opened is still open and, in a build with
 * AddressSanitizer, nothing it allocated is lost. A Criterion worker exits before LeakSanitizer
 * runs, so the check has to be asserted in the test's body. */
#ifndef KVX_TEST_END_H
#define KVX_TEST_END_H

#include <criterion/criterion.h>
#include <stddef.h>

/* Number of fds open now that were not open when the test's body began; what they are goes to text.
 */
unsigned kvx_test_count_new_fds(char *text, size_t size);
/* Nonzero when LeakSanitizer is there and finds a leak (it prints where from); 0 otherwise. */
int kvx_test_find_leaks(void);

#define KVX_TEST_END()                                                                             \
	do {                                                                                       \
		char new_fds_[1024];                                                               \
		unsigned n_new_fds_ = kvx_test_count_new_fds(new_fds_, sizeof(new_fds_));          \
                                                                                                   \
		cr_assert_eq(n_new_fds_, 0, "%u fds leaked:%s", n_new_fds_, new_fds_);             \
		cr_assert_eq(kvx_test_find_leaks(), 0, "memory leaked, see stderr");               \
	} while (0)

#endif
