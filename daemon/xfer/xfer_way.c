/* The way of a transfer: which outlets of its lane it may use, and the move to another target of
 * the same region when its lane's new generation does not reach one of its two sides. Loop thread;
 * called when a transfer begins and whenever its target has got keys. */
#include <errno.h>
#include <utlist.h>

#include "base/assert.h"
#include "xfer/xfer_priv.h"

void xfer_set_outlets(struct kvx_xfer *xfer)
{
	const struct kvx_xfers_conf *conf = &xfer->all->conf;
	const struct kvx_lane *lane = xfer->lane;
	uint32_t known = 0, near = 0, all = (1u << lane->n_outlets) - 1;
	uint64_t near_doms = 0;

	if (xfer->target->lane_generation != lane->generation || lane->n_outlets < 2)
		known = all; /* it gets no turn before its target has keys, and comes here then */
	else if (conf->near_doms != NULL)
		near_doms = conf->near_doms(conf->remote_arg, xfer->region);
	for (unsigned i = 0; known != all && i < lane->n_outlets; i++) {
		unsigned dom = lane->outlets[i].dom_index;

		if (xfer->region->reg[dom] == NULL || xfer->target->rkey[dom] == NULL)
			continue;
		known |= 1u << i;
		if (near_doms & 1ull << dom)
			near |= 1u << i;
	}
	if (near != 0)
		known = near;
	kvx_sched_set_outlets(&xfer->item, known == all ? 0 : known);
}

static KVX_ON_LOOP void xfer_move(struct kvx_xfer *xfer, struct kvx_target *to)
{
	kvx_assert(xfer->item.n_in_flight == 0 && xfer->target->region == NULL);
	kvx_sched_remove(&xfer->item);
	kvx_target_ref(to);
	kvx_target_unref(xfer->target);
	xfer->target = to;
	xfer->lane = to->lane;
}

/* 0, or it has failed. */
static KVX_ON_LOOP int xfer_reroute(struct kvx_xfer *xfer)
{
	const struct kvx_route_ask ask = {
	    .local = xfer->region,
	    .op = xfer->op,
	    .require = xfer->required != NULL ? xfer->required->name : "",
	};
	struct kvx_target *to = xfer->target;
	struct kvx_why why = {.text = ""};
	int err;

	if (to->route == NULL || xfer->item.n_in_flight > 0)
		return 0;
	err = to->route(xfer->target, &ask, &to, &why);
	if (err < 0)
		xfer_fail_status(xfer, err, why.text);
	else if (to != xfer->target)
		xfer_move(xfer, to);
	return err;
}

static KVX_ON_LOOP void xfer_go_on(struct kvx_xfer *xfer)
{
	xfer_set_outlets(xfer);
	if (kvx_sched_enqueue(xfer->lane->sched, &xfer->item) != 0)
		xfer_fail_status(xfer, -ENOMEM, "no memory to queue the transfer again");
}

void kvx_xfers_kick_target(struct kvx_xfers *all, const struct kvx_target *target)
{
	struct kvx_xfer *xfer;

	DL_FOREACH (all->live, xfer)
		if (xfer->target == target && !xfer->is_done && xfer->sm.state != XFER_ENDING)
			xfer_go_on(xfer);
}

void kvx_xfers_reroute_target(struct kvx_xfers *all, const struct kvx_target *target)
{
	struct kvx_xfer *xfer;

	DL_FOREACH (all->live, xfer) {
		if (xfer->target != target || xfer->is_done || xfer->sm.state == XFER_ENDING)
			continue;
		if (xfer_reroute(xfer) == 0)
			xfer_go_on(xfer);
	}
}
