/* Timers of one thread: a binary heap of pointers into their owners, ordered by deadline. Owns the
 * heap only. The owner's thread starts, stops and runs them; nothing here sleeps: the loop or the
 * worker asks for the earliest deadline and waits by itself. */
#include "base/timer.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/clock.h"

#define FIRST_CAPACITY 16u

struct kvx_timers {
	kvx_clock_fn clock;
	void *clock_arg;
	struct kvx_timer **heap;
	unsigned n;
	unsigned capacity;
};

static uint64_t clock_monotonic(void *arg)
{
	return kvx_now_ns();
}

int kvx_timers_create(kvx_clock_fn clock, void *clock_arg, struct kvx_timers **out_timers)
{
	struct kvx_timers *timers = calloc(1, sizeof(*timers));

	if (timers == NULL)
		return -ENOMEM;
	timers->clock = clock != NULL ? clock : clock_monotonic;
	timers->clock_arg = clock_arg;
	*out_timers = timers;
	return 0;
}

void kvx_timers_destroy(struct kvx_timers *timers)
{
	if (timers == NULL)
		return;
	kvx_assert(timers->n == 0);
	free(timers->heap);
	free(timers);
}

uint64_t kvx_timers_now(const struct kvx_timers *timers)
{
	return timers->clock(timers->clock_arg);
}

static void heap_set(struct kvx_timers *timers, unsigned pos, struct kvx_timer *timer)
{
	timers->heap[pos] = timer;
	timer->heap_index = pos + 1;
}

static void heap_up(struct kvx_timers *timers, unsigned pos)
{
	struct kvx_timer *timer = timers->heap[pos];

	while (pos > 0) {
		unsigned parent = (pos - 1) / 2;

		if (timers->heap[parent]->deadline_ns <= timer->deadline_ns)
			break;
		heap_set(timers, pos, timers->heap[parent]);
		pos = parent;
	}
	heap_set(timers, pos, timer);
}

static void heap_down(struct kvx_timers *timers, unsigned pos)
{
	struct kvx_timer *timer = timers->heap[pos];

	for (;;) {
		unsigned child = 2 * pos + 1;

		if (child >= timers->n)
			break;
		if (child + 1 < timers->n &&
		    timers->heap[child + 1]->deadline_ns < timers->heap[child]->deadline_ns)
			child++;
		if (timers->heap[child]->deadline_ns >= timer->deadline_ns)
			break;
		heap_set(timers, pos, timers->heap[child]);
		pos = child;
	}
	heap_set(timers, pos, timer);
}

static int heap_reserve(struct kvx_timers *timers)
{
	unsigned capacity = timers->capacity == 0 ? FIRST_CAPACITY : timers->capacity * 2;
	struct kvx_timer **heap;

	if (timers->n < timers->capacity)
		return 0;
	heap = realloc(timers->heap, capacity * sizeof(*heap));
	if (heap == NULL)
		return -ENOMEM;
	timers->heap = heap;
	timers->capacity = capacity;
	return 0;
}

int kvx_timer_start(struct kvx_timers *timers, struct kvx_timer *timer, uint64_t delay_ns,
		    kvx_timer_cb cb)
{
	uint64_t now = kvx_timers_now(timers);
	int err;

	kvx_assert(cb != NULL);
	if (timer->heap_index == 0) {
		err = heap_reserve(timers);
		if (err < 0)
			return err;
		heap_set(timers, timers->n++, timer);
	}
	timer->cb = cb;
	timer->deadline_ns = delay_ns > UINT64_MAX - now ? UINT64_MAX : now + delay_ns;
	heap_up(timers, timer->heap_index - 1);
	heap_down(timers, timer->heap_index - 1);
	return 0;
}

void kvx_timer_stop(struct kvx_timers *timers, struct kvx_timer *timer)
{
	unsigned pos;

	if (timer->heap_index == 0)
		return;
	pos = timer->heap_index - 1;
	kvx_assert(pos < timers->n && timers->heap[pos] == timer);
	timer->heap_index = 0;
	timers->n--;
	if (pos == timers->n)
		return;
	heap_set(timers, pos, timers->heap[timers->n]);
	heap_up(timers, pos);
	heap_down(timers, timers->heap[pos]->heap_index - 1);
}

bool kvx_timer_is_running(const struct kvx_timer *timer)
{
	return timer->heap_index != 0;
}

unsigned kvx_timers_run(struct kvx_timers *timers)
{
	uint64_t now = kvx_timers_now(timers);
	unsigned max =
	    timers->n; /* a callback that starts a timer without delay must not hold us */
	unsigned n_run = 0;

	while (n_run < max && timers->n > 0 && timers->heap[0]->deadline_ns <= now) {
		struct kvx_timer *timer = timers->heap[0];

		kvx_timer_stop(timers, timer);
		n_run++;
		timer->cb(timer); /* may free the timer's owner */
	}
	return n_run;
}

uint64_t kvx_timers_next_ns(const struct kvx_timers *timers)
{
	return timers->n == 0 ? UINT64_MAX : timers->heap[0]->deadline_ns;
}
