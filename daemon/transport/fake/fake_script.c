/* The script's side of the fake transport: what a test does to it while it runs. Virtual time,
 * losses. The thread that owns the script, or, with gates, any. */
#include <utlist.h>

#include "transport/fake/fake_priv.h"

int fake_script_call(struct kvx_fake_script *script, enum kvx_fake_slot slot)
{
	const struct kvx_fake_fault *fault = &script->faults[slot];
	unsigned nth = ++script->calls[slot];
	bool fails =
	    fault->nth != 0 && nth >= fault->nth && nth - fault->nth <= script->more_faults[slot];
	return fails ? fault->err : 0;
}

static uint64_t ep_next_ns(const struct kvx_ep *ep)
{
	uint64_t next = ep->state == FAKE_EP_CONNECTING ? ep->up_ns : UINT64_MAX;
	for (unsigned i = 0; i < ep->n_ops; i++)
		if (ep->ops[i].state == FAKE_OP_OPEN && ep->ops[i].due_ns < next)
			next = ep->ops[i].due_ns;
	return next;
}

uint64_t fake_next_ns(const struct kvx_fake_script *script)
{
	const struct kvx_dom *dom;
	const struct kvx_ep *ep;
	uint64_t next = fake_late_next_ns(script);
	DL_FOREACH (script->doms, dom) {
		if (dom->lost)
			continue;
		DL_FOREACH (dom->eps, ep) {
			uint64_t at = ep_next_ns(ep);
			next = at < next ? at : next;
		}
	}
	return next;
}

static void script_settle(struct kvx_fake_script *script)
{
	struct kvx_dom *dom;
	DL_FOREACH (script->doms, dom)
		fake_dom_settle(dom);
	fake_late_settle(script);
}

/* One step at a time, so that what lands does so in order of time over all domains. */
void kvx_fake_advance(struct kvx_fake_script *script, uint64_t ns)
{
	kvx_fake_lock(script);
	uint64_t until = script->now_ns + ns;
	for (;;) {
		uint64_t next = fake_next_ns(script);
		if (next > until)
			break;
		if (next > script->now_ns)
			script->now_ns = next;
		script_settle(script);
		if (fake_next_ns(script) <= script->now_ns)
			break; /* what is left is held by a lease */
	}
	script->now_ns = until;
	script_settle(script);
	kvx_fake_unlock(script);
}

uint64_t kvx_fake_next_ns(const struct kvx_fake_script *script)
{
	/* The lock is not part of what the script says. */
	kvx_fake_lock((struct kvx_fake_script *)script);
	uint64_t next = fake_next_ns(script);
	kvx_fake_unlock((struct kvx_fake_script *)script);
	return next;
}

void kvx_fake_ep_lose(struct kvx_ep *ep, int status)
{
	struct kvx_fake_script *script = ep->dom->script;
	kvx_fake_lock(script);
	fake_ep_lose(ep, status);
	kvx_fake_unlock(script);
}

void fake_device_lose(struct kvx_fake_script *script, struct kvx_dom *dom)
{
	struct kvx_dom *each;
	DL_FOREACH (script->doms, each) {
		if (dom != NULL && dom != each)
			continue;
		each->tell_lost = !each->lost;
		each->lost = true;
	}
}

void kvx_fake_device_lose(struct kvx_fake_script *script, struct kvx_dom *dom)
{
	kvx_fake_lock(script);
	fake_device_lose(script, dom);
	kvx_fake_unlock(script);
}

void kvx_fake_device_up(struct kvx_fake_script *script, struct kvx_dom *dom)
{
	struct kvx_dom *each;
	kvx_fake_lock(script);
	DL_FOREACH (script->doms, each)
		if (dom == NULL || dom == each)
			each->tell_up = true;
	kvx_fake_unlock(script);
}
