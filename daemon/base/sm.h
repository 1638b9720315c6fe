/* State machines as data: a table names each state and the states it may be left for; kvx_sm_move()
 * asserts it. */
#ifndef KVX_SM_H
#define KVX_SM_H

#include <stdint.h>

struct kvx_sm_state {
	const char *name;
	uint32_t next; /* bit set of the states that may follow */
};
struct kvx_sm_conf {
	const char *object; /* for the trace line */
	const struct kvx_sm_state *states;
	unsigned n_states; /* at most 32 */
};
struct kvx_sm {
	const struct kvx_sm_conf *conf;
	unsigned state;
};

void kvx_sm_init(struct kvx_sm *sm, const struct kvx_sm_conf *conf, unsigned state);
void kvx_sm_move(struct kvx_sm *sm, unsigned next);
const char *kvx_sm_name(const struct kvx_sm *sm);

#endif
