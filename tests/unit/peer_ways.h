/* Two nodes with two transports, "best" and "any", where "best" does not reach some regions: what
 * the tests of the two lanes of a tenant begin with. */
#ifndef KVX_PEER_WAYS_H
#define KVX_PEER_WAYS_H

#include <criterion/criterion.h>
#include <string.h>

#include "peer_pair.h"

#define BEST (&test_best_ops)
#define ANY  (&test_any_ops)

/* rig_init() or pair_init_slow() came before. Node a has a GPU. */
static inline void ways_init(void)
{
	rig.a.node_conf.peer_ops[0] = rig.b.node_conf.peer_ops[0] = BEST;
	rig.a.node_conf.peer_ops[1] = rig.b.node_conf.peer_ops[1] = ANY;
	rig.a.node_conf.gpu_ops = &test_gpu_ops;
	rig.a.conf.fallback = rig.b.conf.fallback = true;
}

/* A region that "best" does not reach, full of a byte. */
static inline KVX_ON_LOOP struct kvx_region *ways_far_region(struct rig_side *side, uint8_t value)
{
	struct test_rail *rail = test_rail(BEST, side == &rig.b, 0);
	struct kvx_region *region;

	rail->refuses = true;
	region = rig_region(side, LEN, RW, NULL);
	rail->refuses = false;
	memset(region->mem.addr, value, LEN);
	return region;
}

/* As pair_start(). */
static inline KVX_ON_LOOP void ways_start(void)
{
	rig_start(&rig);
	here = rig_region(&rig.a, LEN, RW, NULL);
	there = rig_region(&rig.b, LEN, RW, NULL);
	memset(here->mem.addr, 0x11, LEN);
	memset(there->mem.addr, 0x22, LEN);
	pair_resolve_again();
}

struct ways_walk {
	bool any_memory, found;
	struct kvx_lane_row *row;
};

static inline void ways_on_row(void *arg, const struct kvx_lane_row *row)
{
	struct ways_walk *walk = arg;

	if (row->any_memory != walk->any_memory)
		return;
	walk->found = true;
	*walk->row = *row;
}

/* Of a side's only peer; false: there is none. */
static inline bool ways_lane(const struct rig_side *side, bool any_memory,
			     struct kvx_lane_row *out_row)
{
	struct ways_walk walk = {any_memory, false, out_row};

	memset(out_row, 0, sizeof(*out_row));
	out_row->state = "none";
	if (side->peers != NULL)
		kvx_peers_walk_lanes(side->peers, ways_on_row, &walk);
	return walk.found;
}

static inline bool ways_lane_is(const struct rig_side *side, bool any_memory, const char *transport)
{
	struct kvx_lane_row row;

	return ways_lane(side, any_memory, &row) && strcmp(row.state, "up") == 0 &&
	       strcmp(row.transport, transport) == 0;
}

static inline bool ways_are_up(void)
{
	return ways_lane_is(&rig.a, false, "best") && ways_lane_is(&rig.b, false, "best") &&
	       ways_lane_is(&rig.a, true, "any") && ways_lane_is(&rig.b, true, "any");
}

static inline KVX_ON_LOOP struct rig_answer ways_resolve(struct rig_side *side,
							 const struct kvx_region *region)
{
	const struct kvx_desc desc = rig_desc(side == &rig.a ? &rig.b : &rig.a, region);

	return rig_resolve(side, &desc);
}

/* a's import of a region of b. */
static inline KVX_ON_LOOP struct kvx_target *ways_import(const struct kvx_region *region)
{
	struct rig_answer answer = ways_resolve(&rig.a, region);

	cr_assert_eq(answer.status, 0, "%d %s", answer.status, answer.text);
	return answer.target;
}

/* A write of all of `from`, by a: it ends well, by that transport, with its bytes there. */
static inline KVX_ON_LOOP void ways_assert_write(struct kvx_region *from, struct kvx_target *to,
						 struct kvx_region *at, const char *transport)
{
	unsigned n = rig.a.n_ends, n_arrivals = rig.b.n_arrivals;

	memset(at->mem.addr, 0x33, LEN);
	cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, from, to, LEN, 5000), 0);
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends > n, 6000), "no end");
	cr_assert_eq(rig.a.ends[n].end.status, 0, "%s", rig.a.ends[n].text);
	cr_assert_str_eq(rig.a.ends[n].end.transport, transport);
	cr_assert_eq(memcmp(at->mem.addr, from->mem.addr, LEN), 0);
	cr_assert(RIG_UNTIL(&rig, rig.b.n_arrivals > n_arrivals, 1000));
}

struct ways_watch {
	struct kvx_target_watch watch;
	unsigned n, ends_then, arrivals_then; /* of a, when it was told */
	int status;
};

static inline void ways_on_lost(struct kvx_target_watch *watch, int status, const char *text)
{
	struct ways_watch *w = (struct ways_watch *)watch;

	w->n++;
	w->ends_then = rig.a.n_ends;
	w->arrivals_then = rig.a.n_arrivals;
	w->status = status;
}

#endif
