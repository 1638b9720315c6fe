/* Which roles a thread has, at run time. Roles add up: the loop thread that pumps an inline worker
 * has both. Checked only once a loop thread exists, so that unit tests may call marked functions
 * from their only thread. Any thread. */
#include "base/roles.h"

#include <stdatomic.h>
#include <stdbool.h>

#include "base/assert.h"

enum { ROLE_LOOP = 1, ROLE_WORKER = 2 };

struct kvx_role kvx_role_loop;
struct kvx_role kvx_role_worker;

static _Thread_local unsigned thread_roles;
static _Atomic bool has_loop_thread;

void kvx_role_set_loop(void)
{
	thread_roles |= ROLE_LOOP;
	atomic_store_explicit(&has_loop_thread, true, memory_order_relaxed);
}

void kvx_role_set_worker(void)
{
	thread_roles |= ROLE_WORKER;
}

static void role_check(unsigned role)
{
	if (atomic_load_explicit(&has_loop_thread, memory_order_relaxed))
		kvx_assert((thread_roles & role) != 0);
}

void kvx_assert_on_loop(void)
{
	role_check(ROLE_LOOP);
}

void kvx_assert_on_worker(void)
{
	role_check(ROLE_WORKER);
}
