/* The fake transport's link: when ops are due, what lands, what is lost, what is reported. Called
 * by fake.c and by tests through kvx_fake_advance(); the thread that owns the script. Bytes really
 * move, at the virtual moment of completion, so that a byte that lands too late is seen by the
 * test. */
#include <errno.h>
#include <string.h>

#include <utlist.h>

#include "base/assert.h"
#include "mem/region.h"
#include "transport/fake/fake_priv.h"

/* xorshift64*: good enough to shake an order, the same for a seed everywhere. */
static uint64_t dom_random(struct kvx_dom *dom, uint64_t below)
{
	dom->rng ^= dom->rng >> 12;
	dom->rng ^= dom->rng << 25;
	dom->rng ^= dom->rng >> 27;
	return below == 0 ? 0 : (dom->rng * 0x2545f4914f6cdd1dull >> 16) % below;
}

static uint64_t op_due(struct kvx_ep *ep, uint64_t len_bytes)
{
	const struct kvx_fake_script *script = ep->dom->script;
	uint64_t start = ep->link_free_ns > script->now_ns ? ep->link_free_ns : script->now_ns;
	uint64_t wire_ns = script->bytes_per_us ? len_bytes * 1000 / script->bytes_per_us : 0;
	ep->link_free_ns = start + wire_ns;
	uint64_t due = ep->link_free_ns + script->latency_ns;
	if (script->jitter_ns > 0)
		due += dom_random(ep->dom, script->jitter_ns + 1);
	if (!script->reorder && due < ep->last_due_ns)
		due = ep->last_due_ns;
	ep->last_due_ns = due;
	return due;
}

void fake_ep_add_op(struct kvx_ep *ep, const struct kvx_op *op)
{
	struct kvx_fake_script *script = ep->dom->script;
	kvx_assert(ep->n_ops < ep->queue_ops);
	ep->ops[ep->n_ops++] = (struct fake_op){
	    .op = *op,
	    .remote = op->remote->mr,
	    .due_ns = op_due(ep, op->len_bytes),
	    .nth = ++script->n_ops,
	};
	op->local->n_refs++;
	op->remote->mr->n_refs++;
	script->n_open_ops++;
}

static bool op_is_dropped(const struct kvx_fake_script *script, const struct fake_op *fop)
{
	return script->drop_nth_op != 0 && fop->nth >= script->drop_nth_op &&
	       fop->nth - script->drop_nth_op <= script->drop_ops;
}

static bool range_fits(uint64_t offset, uint64_t len, uint64_t have)
{
	return offset <= have && len <= have - offset;
}

/* An ep to another node reaches memory of its own tenant only, at both ends. */
static bool tenants_fit(const struct kvx_ep *ep, const struct fake_op *fop)
{
	const struct kvx_ep *peer;
	if (ep->state != FAKE_EP_UP)
		return true;
	peer = fake_ep_peer(ep);
	return fop->op.local->tenant == ep->tenant && peer != NULL &&
	       fop->remote->tenant == peer->tenant;
}

int fake_op_check(const struct kvx_ep *ep, const struct fake_op *fop)
{
	const struct kvx_op *op = &fop->op;
	uint32_t right = op->kind == KVX_OP_READ ? KVX_ACCESS_READ : KVX_ACCESS_WRITE;
	if ((op->kind != KVX_OP_READ && op->kind != KVX_OP_WRITE) || op->len_bytes == 0)
		return -EINVAL;
	if (op->local->id == 0 || fop->remote->id == 0)
		return -EOWNERDEAD;
	if (!range_fits(op->local_offset, op->len_bytes, op->local->len_bytes) ||
	    !range_fits(op->remote_offset, op->len_bytes, fop->remote->len_bytes))
		return -ERANGE;
	if (!tenants_fit(ep, fop))
		return -EACCES;
	return (fop->remote->rights & right) ? 0 : -EACCES;
}

static void op_move(const struct fake_op *fop, uint64_t len_bytes)
{
	uint8_t *local = fop->op.local->addr + fop->op.local_offset;
	uint8_t *remote = fop->remote->addr + fop->op.remote_offset;
	if (fop->op.kind == KVX_OP_READ)
		memmove(local, remote, len_bytes);
	else
		memmove(remote, local, len_bytes);
}

static void op_land(const struct kvx_ep *ep, struct fake_op *fop)
{
	struct kvx_fake_script *script = ep->dom->script;
	bool dropped = op_is_dropped(script, fop);
	fop->state = dropped ? FAKE_OP_DROPPED : FAKE_OP_LANDED;
	fop->status = fake_op_check(ep, fop);
	if (fop->status < 0)
		return;
	if (fop->nth == script->fail_nth_op) {
		op_move(fop, fop->op.len_bytes / 2);
		fop->status = script->fail_err;
		return;
	}
	if (dropped && !script->drop_lands)
		return;
	op_move(fop, fop->op.len_bytes);
	script->n_landed++;
}

/* May the other side let anything land or be read now? */
static bool ep_lease_holds(const struct kvx_ep *ep)
{
	if (ep->state != FAKE_EP_UP)
		return true;
	const struct kvx_ep *peer = fake_ep_peer(ep);
	return peer != NULL && ep->dom->script->now_ns < peer->lease_ns;
}

/* The open op that is due first, at the latest now. */
static struct fake_op *ep_next_due(struct kvx_ep *ep)
{
	struct fake_op *first = NULL;
	for (unsigned i = 0; i < ep->n_ops; i++) {
		struct fake_op *fop = &ep->ops[i];
		if (fop->state != FAKE_OP_OPEN || fop->due_ns > ep->dom->script->now_ns)
			continue;
		if (first == NULL || fop->due_ns < first->due_ns)
			first = fop;
	}
	return first;
}

static void ep_settle_connect(struct kvx_ep *ep)
{
	if (ep->state != FAKE_EP_CONNECTING || ep->up_ns > ep->dom->script->now_ns)
		return;
	if (fake_ep_peer(ep) == NULL) {
		fake_ep_lose(ep, -EHOSTUNREACH);
		return;
	}
	ep->state = FAKE_EP_UP;
	ep->tell_up = true;
}

void fake_dom_settle(struct kvx_dom *dom)
{
	struct kvx_ep *ep;
	if (dom->lost)
		return;
	DL_FOREACH (dom->eps, ep) {
		struct fake_op *fop;
		ep_settle_connect(ep);
		if (!ep_lease_holds(ep))
			continue;
		while ((fop = ep_next_due(ep)) != NULL)
			op_land(ep, fop);
	}
}

void fake_ep_cut(struct kvx_ep *ep, int status)
{
	for (unsigned i = 0; i < ep->n_ops; i++) {
		struct fake_op *fop = &ep->ops[i];
		if (fop->state == FAKE_OP_LANDED)
			continue;
		fop->state = FAKE_OP_LANDED;
		fop->status = status;
	}
}

void fake_ep_lose(struct kvx_ep *ep, int status)
{
	if (ep->state == FAKE_EP_DOWN)
		return;
	struct kvx_ep *peer = ep->state == FAKE_EP_UP ? fake_ep_peer(ep) : NULL;
	ep->state = FAKE_EP_DOWN;
	ep->down_status = status;
	ep->tell_down = true;
	ep->tell_up = false;
	fake_ep_cut(ep, status);
	if (peer != NULL && peer->peer_id == ep->id)
		fake_ep_lose(peer, -EHOSTDOWN);
}

static void ep_drop_op(struct kvx_ep *ep, unsigned i)
{
	struct fake_op *fop = &ep->ops[i];
	fake_mr_unref(fop->op.local);
	fake_mr_unref(fop->remote);
	ep->dom->script->n_open_ops--;
	ep->n_ops--;
	memmove(fop, fop + 1, (ep->n_ops - i) * sizeof(*fop));
}

/* Where calls block, what an ep had open when it was lost is reported once a fence is over. */
static bool ep_reports_nothing(const struct kvx_ep *ep)
{
	if (ep->dom->script->gates == NULL)
		return false;
	return (ep->fencing && ep->n_calls > 0) || (ep->state == FAKE_EP_DOWN && !ep->fenced);
}

/* Which op is reported next: -1: none. In order, an op waits for those before it. */
static int ep_next_report(const struct kvx_ep *ep)
{
	int best = -1;
	if (ep_reports_nothing(ep))
		return -1;
	for (unsigned i = 0; i < ep->n_ops; i++) {
		const struct fake_op *fop = &ep->ops[i];
		if (fop->state == FAKE_OP_OPEN && !ep->dom->script->reorder)
			break;
		if (fop->state != FAKE_OP_LANDED)
			continue;
		if (!ep->dom->script->reorder)
			return (int)i;
		if (best < 0 || fop->due_ns < ep->ops[best].due_ns)
			best = (int)i;
	}
	return best;
}

static bool event_takes(const struct kvx_tevent *event, const struct kvx_ep *ep,
			const struct fake_op *fop)
{
	return event->kind == KVX_TEV_OP_DONE && event->ep == ep &&
	       event->cookie == fop->op.cookie && event->status == fop->status;
}

unsigned fake_ep_report(struct kvx_ep *ep, struct kvx_tevent *events, unsigned n, unsigned max)
{
	bool split = ep->dom->script->split;
	int i;
	if (ep->tell_up && n < max) {
		ep->tell_up = false;
		events[n++] = (struct kvx_tevent){.kind = KVX_TEV_EP_UP, .ep = ep};
	}
	while ((i = ep_next_report(ep)) >= 0) {
		const struct fake_op *fop = &ep->ops[i];
		if (!split && n > 0 && event_takes(&events[n - 1], ep, fop)) {
			events[n - 1].n_ops++;
		} else {
			if (n == max)
				return n;
			events[n++] = (struct kvx_tevent){.kind = KVX_TEV_OP_DONE,
							  .status = fop->status,
							  .vendor_code = fop->status ? 4711 : 0,
							  .n_ops = 1,
							  .cookie = fop->op.cookie,
							  .ep = ep,
							  .text = fop->status ? "fake" : NULL};
		}
		ep_drop_op(ep, (unsigned)i);
	}
	if (ep->tell_down && n < max) {
		ep->tell_down = false;
		events[n++] = (struct kvx_tevent){.kind = KVX_TEV_EP_DOWN,
						  .status = ep->down_status,
						  .ep = ep,
						  .text = "fake: endpoint lost"};
	}
	return n;
}
