/* Makes the n-th allocation of the code under test fail, once. Covers malloc, calloc, realloc,
 * aligned_alloc, posix_memalign and strdup called from our own (static) libraries, by -Wl,--wrap;
 * not what shared libraries allocate inside. A sweep:
 *
 *	for (unsigned n = 1;; n++) {
 *		fault_alloc_arm(n);
 *		err = kvx_thing_create(&thing);
 *		if (!fault_alloc_disarm())
 *			break;
 *		cr_assert_eq(err, -ENOMEM);
 *	}
 *	cr_assert_eq(err, 0);
 */
#ifndef KVX_FAULT_ALLOC_H
#define KVX_FAULT_ALLOC_H

#include <stdbool.h>

/* The n-th allocation from now on fails (1: the next). Any thread's allocations count. */
void fault_alloc_arm(unsigned n);
/* No more faults; true when the fault happened since it was armed. */
bool fault_alloc_disarm(void);
/* Allocations since the last arm. */
unsigned fault_alloc_count(void);

#endif
