/* Timers of one thread on a clock that is handed in (real, or virtual in tests): a binary heap by
 * deadline. A timer is embedded in its owner's struct; starting a running timer moves it. */
#ifndef KVX_TIMER_H
#define KVX_TIMER_H

#include <stdbool.h>
#include <stdint.h>

struct kvx_timer;
typedef void (*kvx_timer_cb)(struct kvx_timer *timer);

struct kvx_timer {
	uint64_t deadline_ns;
	kvx_timer_cb cb;
	unsigned heap_index; /* 0: not running; else position + 1 */
};

struct kvx_timers;
typedef uint64_t (*kvx_clock_fn)(void *arg); /* ns */

int kvx_timers_create(kvx_clock_fn clock, void *clock_arg,
		      struct kvx_timers **out_timers); /* clock NULL: monotonic */
void kvx_timers_destroy(struct kvx_timers *timers);    /* asserts that none runs */
uint64_t kvx_timers_now(const struct kvx_timers *timers);
/* cb runs once, from kvx_timers_run(), at or after the deadline. 0 or -ENOMEM (only when the heap
 * must grow). */
int kvx_timer_start(struct kvx_timers *timers, struct kvx_timer *timer, uint64_t delay_ns,
		    kvx_timer_cb cb);
void kvx_timer_stop(struct kvx_timers *timers,
		    struct kvx_timer *timer); /* fine when it does not run */
bool kvx_timer_is_running(const struct kvx_timer *timer);
/* Runs what is due. Callbacks may start and stop timers. Returns how many ran. */
unsigned kvx_timers_run(struct kvx_timers *timers);
/* Earliest deadline, or UINT64_MAX. */
uint64_t kvx_timers_next_ns(const struct kvx_timers *timers);

#endif
