/* Client memory may stop being there (a hole punched where no page is left, a failing DIMM):
 * touching it raises SIGBUS. Whoever touches client memory with the CPU does it inside a guard,
 * which turns the signal into -EFAULT. Per thread, not nestable. The daemon's own SIGBUS (outside
 * of a guard) stays fatal. */
#ifndef KVX_GUARD_H
#define KVX_GUARD_H

int kvx_guard_install(
    void); /* 0 or -errno; again is fine: the copy backend's open() calls it too */
/* Runs fn(arg). 0, or -EFAULT when it touched memory that is not there (fn was left in the middle:
 * it must hold no resources). Costs about as much as a function call. */
int kvx_guard_run(void (*fn)(void *arg), void *arg);

#endif
