/* State machines and thread roles: what is not allowed ends the process. */
#include "base/sm.h"

#include <pthread.h>
#include <signal.h>

#include "base/roles.h"
#include "test_end.h"

enum { OPEN, CLOSING, CLOSED, N_STATES };

static const struct kvx_sm_state door_states[N_STATES] = {
    [OPEN] = {"open", 1u << CLOSING},
    [CLOSING] = {"closing", 1u << CLOSED | 1u << OPEN},
    [CLOSED] = {"closed", 0},
};
static const struct kvx_sm_conf door_conf = {"door", door_states, N_STATES};

Test(sm, allowed_moves_change_the_state)
{
	struct kvx_sm sm;

	kvx_sm_init(&sm, &door_conf, OPEN);
	cr_assert_str_eq(kvx_sm_name(&sm), "open");
	kvx_sm_move(&sm, CLOSING);
	kvx_sm_move(&sm, OPEN);
	kvx_sm_move(&sm, CLOSING);
	kvx_sm_move(&sm, CLOSED);
	cr_assert_eq(sm.state, CLOSED);
	cr_assert_str_eq(kvx_sm_name(&sm), "closed");
	KVX_TEST_END();
}

Test(sm, forbidden_move_aborts, .signal = SIGABRT)
{
	struct kvx_sm sm;

	kvx_sm_init(&sm, &door_conf, OPEN);
	kvx_sm_move(&sm, CLOSED);
}

Test(sm, unknown_state_aborts, .signal = SIGABRT)
{
	struct kvx_sm sm;

	kvx_sm_init(&sm, &door_conf, CLOSING);
	kvx_sm_move(&sm, N_STATES);
}

Test(roles, nothing_is_checked_without_a_loop_thread)
{
	kvx_assert_on_loop();
	kvx_assert_on_worker();
	KVX_TEST_END();
}

static void *worker_main(void *arg)
{
	kvx_role_set_worker();
	kvx_assert_on_worker();
	return arg;
}

Test(roles, each_thread_has_its_own)
{
	pthread_t thread;

	kvx_role_set_loop();
	kvx_assert_on_loop();
	cr_assert_eq(pthread_create(&thread, NULL, worker_main, NULL), 0);
	cr_assert_eq(pthread_join(thread, NULL), 0);
	kvx_role_set_worker(); /* an inline worker */
	kvx_assert_on_worker();
	kvx_assert_on_loop();
	KVX_TEST_END();
}

Test(roles, loop_thread_is_no_worker, .signal = SIGABRT)
{
	kvx_role_set_loop();
	kvx_assert_on_worker();
}

static void *stranger_main(void *arg)
{
	kvx_assert_on_loop();
	return arg;
}

Test(roles, other_thread_is_not_the_loop, .signal = SIGABRT)
{
	pthread_t thread;

	kvx_role_set_loop();
	cr_assert_eq(pthread_create(&thread, NULL, stranger_main, NULL), 0);
	pthread_join(thread, NULL);
}
