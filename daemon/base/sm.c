/* State machines as data. Owns nothing; the thread of the object that embeds the struct calls it. A
 * move that the table does not allow is a broken invariant of ours and ends the process. */
#include "base/sm.h"

#include "base/assert.h"
#include "base/log.h"

void kvx_sm_init(struct kvx_sm *sm, const struct kvx_sm_conf *conf, unsigned state)
{
	kvx_assert(conf->n_states <= 32 && state < conf->n_states);
	sm->conf = conf;
	sm->state = state;
}

void kvx_sm_move(struct kvx_sm *sm, unsigned next)
{
	const struct kvx_sm_state *states = sm->conf->states;

	kvx_assert(next < sm->conf->n_states);
	kvx_assert((states[sm->state].next & (1u << next)) != 0);
	kvx_trace("sm: %s %p: %s to %s", sm->conf->object, (void *)sm, states[sm->state].name,
		  states[next].name);
	sm->state = next;
}

const char *kvx_sm_name(const struct kvx_sm *sm)
{
	return sm->conf->states[sm->state].name;
}
