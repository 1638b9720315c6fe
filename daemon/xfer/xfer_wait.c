/* Lists of a transfer that wait: each has a gate, and the plan does not walk past the first one
 * that is closed, whatever becomes of later ones. When gates open in another order than their lists
 * have (an event and a flag, say), the later one only is remembered as open. A gate that fails
 * fails the transfer; a transfer that ends drops its gates. Loop thread. */
#include <errno.h>
#include <stdlib.h>
#include <utlist.h>

#include "base/assert.h"
#include "xfer/xfer_priv.h"

struct xfer_wait {
	struct kvx_xfer *xfer;
	struct kvx_gate *gate; /* NULL: it is open, but an earlier one is not */
	enum kvx_wait_kind kind;
	const struct kvx_region *flag_region; /* FLAG: where it is */
	uint64_t since_ns;
	struct xfer_wait *prev, *next;
};

static void wait_remove(struct kvx_xfer *xfer, struct xfer_wait *wait)
{
	DL_DELETE(xfer->waits, wait);
	xfer->n_waits--;
	free(wait);
}

void xfer_waits_drop(struct kvx_xfer *xfer)
{
	while (xfer->waits != NULL) {
		if (xfer->waits->gate != NULL)
			kvx_gate_drop(xfer->waits->gate);
		wait_remove(xfer, xfer->waits);
	}
}

static void wait_on_gate(void *arg, int status, const char *text)
{
	struct xfer_wait *wait = arg;
	struct kvx_xfer *xfer = wait->xfer;
	struct kvx_xfers_stats *stats = &xfer->all->stats;

	kvx_assert_on_loop();
	wait->gate = NULL;
	wait->flag_region = NULL; /* nobody reads it any more, and it may go */
	if (status < 0) {
		xfer_fail_status(xfer, status, text);
		return;
	}
	stats->waits++;
	kvx_hist_add(&stats->wait_ns, kvx_timers_now(xfer->all->conf.timers) - wait->since_ns);
	if (wait != xfer->waits)
		return;
	while (xfer->waits != NULL && xfer->waits->gate == NULL) {
		kvx_plan_open_first(xfer->plan);
		wait_remove(xfer, xfer->waits);
	}
	if (kvx_sched_enqueue(xfer->lane->sched, &xfer->item) != 0)
		xfer_fail_status(xfer, -ENOMEM, "no memory to queue the transfer again");
}

int xfer_waits_add(struct kvx_xfer *xfer, const struct kvx_wait *for_what, struct kvx_why *why)
{
	struct kvx_gates *gates = xfer->all->conf.gates;
	struct xfer_wait *last = xfer->waits != NULL ? xfer->waits->prev : NULL;
	struct xfer_wait *wait;

	if (gates == NULL)
		return kvx_why(why, -EOPNOTSUPP, "wait: this daemon cannot wait");
	wait = calloc(1, sizeof(*wait));
	if (wait == NULL)
		return kvx_why(why, -ENOMEM, "no memory to wait for anything");
	wait->xfer = xfer;
	wait->kind = for_what->kind;
	wait->flag_region = for_what->kind == KVX_WAIT_FLAG ? for_what->region : NULL;
	wait->since_ns = kvx_timers_now(xfer->all->conf.timers);
	const struct kvx_gate_conf conf = {
	    .client = xfer->client,
	    .wait = for_what,
	    .after = last != NULL ? last->gate : NULL,
	    .cb = wait_on_gate,
	    .arg = wait,
	};
	int err = kvx_gate_create(gates, &conf, &wait->gate, why);
	if (err < 0) {
		free(wait);
		return err;
	}
	kvx_plan_close_last(xfer->plan);
	DL_APPEND(xfer->waits, wait);
	xfer->n_waits++;
	return 0;
}

bool xfer_waits_in(const struct kvx_xfer *xfer, const struct kvx_region *region)
{
	const struct xfer_wait *wait;

	DL_FOREACH (xfer->waits, wait)
		if (wait->flag_region == region)
			return true;
	return false;
}

enum kvx_wait_kind xfer_waits_for(const struct kvx_xfer *xfer)
{
	return xfer->waits != NULL ? xfer->waits->kind : KVX_WAIT_NONE;
}
