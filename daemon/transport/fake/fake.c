/* The fake backend: a complete transport inside of one process, with virtual time and faults by
 * script (fake.h). It reaches its own domain (loopback: an ep that was never connected) and other
 * domains of the same script (an ep connected to one of theirs). For tests; not in the registry.
 * Here are its domains and eps; everything runs on the thread that owns the script. */
#include "transport/fake/fake.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utlist.h>

#include "base/assert.h"
#include "transport/fake/fake_priv.h"

#define DEFAULT_OPS  256u
#define DEFAULT_SEED 0x9e3779b97f4a7c15ull

static unsigned n_rails(const struct kvx_fake_script *script)
{
	return script->n_rails > 0 ? script->n_rails : 1;
}

static int fake_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
		      struct kvx_why *why)
{
	if (conf->test == NULL)
		return kvx_why(why, -ENODEV, "fake: no script");
	struct kvx_fake_script *script = conf->test;
	int err = fake_script_call(script, KVX_FAKE_PROBE);
	if (err < 0)
		return kvx_why(why, err, "fake: probe fails as scripted");
	unsigned n = n_rails(script);
	for (unsigned i = 0; i < n && i < max; i++) {
		struct kvx_rail *rail = &rails[i];
		*rail = (struct kvx_rail){.numa_node = -1, .port = 1, .speed_mbps = 100000};
		rail->usable = !(script->bad_rails & 1u << i);
		snprintf(rail->name, sizeof(rail->name), "fake%u", i);
		snprintf(rail->device, sizeof(rail->device), "fake%u", i);
		if (!rail->usable)
			snprintf(rail->reason, sizeof(rail->reason),
				 "fake: rail %u is not usable as scripted", i);
	}
	return (int)(n < max ? n : max);
}

/* Which rail open() means; -ENODEV when it is none that can be used. */
static int rail_find(const struct kvx_fake_script *script, const struct kvx_rail *rail)
{
	char name[KVX_RAIL_NAME_BYTES];
	for (unsigned i = 0; i < n_rails(script); i++) {
		snprintf(name, sizeof(name), "fake%u", i);
		if (script->bad_rails & 1u << i || (rail != NULL && strcmp(rail->name, name) != 0))
			continue;
		return (int)i;
	}
	return -ENODEV;
}

static void limits_fill(const struct kvx_fake_script *script, struct kvx_transport_limits *limits)
{
	*limits = script->limits;
	if (limits->max_op_bytes == 0)
		limits->max_op_bytes = 1u << 20;
	if (limits->batch_bytes == 0)
		limits->batch_bytes = 1u << 20;
	if (limits->batch_ops == 0)
		limits->batch_ops = 128;
	if (limits->queue_batches == 0)
		limits->queue_batches = 4;
	if (limits->settle_ns == 0)
		limits->settle_ns = UINT64_MAX;
	limits->event_fd = -1;
}

static int fake_open(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
		     struct kvx_transport_limits *out_limits, struct kvx_why *why)
{
	struct kvx_fake_script *script = conf->test;
	if (script == NULL)
		return kvx_why(why, -EINVAL, "fake: no script");
	int err = fake_script_call(script, KVX_FAKE_OPEN);
	if (err < 0)
		return kvx_why(why, err, "fake: open fails as scripted");
	int rail = rail_find(script, conf->rail);
	if (rail < 0)
		return kvx_why(why, rail, "fake: no such rail, or it is not usable");
	struct kvx_dom *dom = calloc(1, sizeof(*dom));
	if (dom == NULL)
		return kvx_why(why, -ENOMEM, "fake: no memory for the domain");
	dom->script = script;
	dom->id = ++script->next_id;
	dom->rail = (unsigned)rail;
	dom->rng = script->seed * dom->id + DEFAULT_SEED;
	DL_APPEND(script->doms, dom);
	script->n_doms++;
	limits_fill(script, out_limits);
	*out_dom = dom;
	return 0;
}

static void fake_close(struct kvx_dom *dom)
{
	kvx_assert(dom->eps == NULL && dom->mrs == NULL);
	fake_late_forget(dom->script, dom);
	dom->script->n_doms--;
	DL_DELETE(dom->script->doms, dom);
	free(dom);
}

struct kvx_ep *fake_ep_find(const struct kvx_fake_script *script, uint64_t id)
{
	struct kvx_dom *dom;
	struct kvx_ep *ep;
	DL_FOREACH (script->doms, dom)
		DL_FOREACH (dom->eps, ep)
			if (ep->id == id)
				return ep;
	return NULL;
}

struct kvx_ep *fake_ep_peer(const struct kvx_ep *ep)
{
	struct kvx_ep *peer = fake_ep_find(ep->dom->script, ep->peer_id);
	if (peer == NULL || peer->fenced || peer->state == FAKE_EP_DOWN || peer->dom->lost)
		return NULL;
	return peer;
}

static int fake_listen(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
		       size_t *addr_len)
{
	struct kvx_fake_script *script = dom->script;
	unsigned queue_ops = script->queue_ops ? script->queue_ops : DEFAULT_OPS;
	int err = fake_script_call(script, KVX_FAKE_LISTEN);
	if (err < 0)
		return err;
	struct kvx_ep *ep = calloc(1, sizeof(*ep) + queue_ops * sizeof(ep->ops[0]));
	if (ep == NULL)
		return -ENOMEM;
	ep->dom = dom;
	ep->id = ++script->next_id;
	ep->queue_ops = queue_ops;
	ep->tenant = tenant;
	ep->lease_ns = UINT64_MAX;
	DL_APPEND(dom->eps, ep);
	script->n_eps++;
	struct fake_name name = {FAKE_NAME_MAGIC, dom->id, ep->id};
	memcpy(addr, &name, sizeof(name));
	*addr_len = sizeof(name);
	*out_ep = ep;
	return 0;
}

static int fake_connect(struct kvx_ep *ep, const void *addr, size_t addr_len)
{
	struct fake_name name;
	int err = fake_script_call(ep->dom->script, KVX_FAKE_CONNECT);
	if (err < 0)
		return err;
	if (ep->state != FAKE_EP_LOOPBACK || ep->n_ops > 0)
		return -EISCONN;
	if (addr_len != sizeof(name))
		return -EINVAL;
	memcpy(&name, addr, sizeof(name));
	if (name.magic != FAKE_NAME_MAGIC || name.id == ep->id)
		return -EINVAL;
	ep->peer_id = name.id;
	ep->state = FAKE_EP_CONNECTING;
	ep->up_ns = ep->dom->script->now_ns + ep->dom->script->latency_ns;
	return 0;
}

static void script_on_posted(struct kvx_fake_script *script, struct kvx_ep *ep)
{
	if (script->ep_down_at_op != 0 && script->n_ops == script->ep_down_at_op)
		fake_ep_lose(ep, -EHOSTDOWN);
	if (script->device_lost_at_op != 0 && script->n_ops == script->device_lost_at_op)
		fake_device_lose(script, ep->dom);
}

static int fake_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n)
{
	struct kvx_fake_script *script = ep->dom->script;
	unsigned taken = 0;
	int err = fake_script_call(script, KVX_FAKE_POST);
	if (err < 0)
		return err;
	if (ep->fenced)
		return -ESHUTDOWN;
	if (ep->dom->lost)
		return -ENODEV;
	if (ep->state == FAKE_EP_DOWN)
		return ep->down_status;
	if (ep->state == FAKE_EP_CONNECTING)
		return -ENOTCONN;
	if (script->post_max != 0 && n > script->post_max)
		n = script->post_max;
	while (taken < n && ep->n_ops < ep->queue_ops) {
		fake_ep_add_op(ep, &ops[taken++]);
		script_on_posted(script, ep);
		if (ep->state == FAKE_EP_DOWN || ep->dom->lost)
			break;
	}
	return (int)taken;
}

static int fake_progress(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max)
{
	struct kvx_fake_script *script = dom->script;
	struct kvx_ep *ep;
	unsigned n = 0;
	int err = fake_script_call(script, KVX_FAKE_PROGRESS);
	if (err < 0)
		return err;
	if (script->auto_advance) {
		uint64_t next = fake_next_ns(script);
		if (next != UINT64_MAX && next > script->now_ns)
			script->now_ns = next;
	}
	fake_dom_settle(dom);
	fake_late_settle(script);
	if (dom->tell_lost && n < max) {
		dom->tell_lost = false;
		events[n++] = (struct kvx_tevent){
		    .kind = KVX_TEV_DEVICE_LOST, .status = -ENODEV, .text = "fake: device lost"};
	}
	if (dom->tell_up && n < max) {
		dom->tell_up = false;
		events[n++] = (struct kvx_tevent){.kind = KVX_TEV_DEVICE_UP};
	}
	DL_FOREACH (dom->eps, ep)
		n = fake_ep_report(ep, events, n, max);
	return (int)n;
}

static int fake_arm(struct kvx_dom *dom)
{
	const struct kvx_ep *ep;
	int err = fake_script_call(dom->script, KVX_FAKE_ARM);
	if (err < 0)
		return err;
	if (dom->tell_lost || dom->tell_up)
		return -EAGAIN;
	DL_FOREACH (dom->eps, ep)
		if (ep->n_ops > 0 || ep->tell_up || ep->tell_down ||
		    ep->state == FAKE_EP_CONNECTING)
			return -EAGAIN;
	return 0;
}

static void ep_fence(struct kvx_ep *ep)
{
	if (ep->fenced)
		return;
	struct kvx_ep *peer = ep->state == FAKE_EP_UP ? fake_ep_peer(ep) : NULL;
	if (ep->dom->script->late_writes)
		fake_late_keep(ep);
	ep->fenced = true;
	fake_ep_cut(ep, -ECANCELED);
	if (peer != NULL && peer->peer_id == ep->id)
		fake_ep_lose(peer, -EHOSTDOWN);
}

static int fake_fence(struct kvx_ep *ep)
{
	int err = fake_script_call(ep->dom->script, KVX_FAKE_FENCE);
	if (err < 0)
		return err;
	ep_fence(ep);
	return 0;
}

static void fake_ep_close(struct kvx_ep *ep)
{
	ep->dom->script->calls[KVX_FAKE_EP_CLOSE]++;
	ep_fence(ep);           /* no-op but after a fence() that failed */
	while (ep->n_ops > 0) { /* cut by the fence; nobody asked for their completions */
		struct fake_op *fop = &ep->ops[--ep->n_ops];
		fake_mr_unref(fop->op.local);
		fake_mr_unref(fop->remote);
		ep->dom->script->n_open_ops--;
	}
	DL_DELETE(ep->dom->eps, ep);
	ep->dom->script->n_eps--;
	free(ep);
}

static void fake_lease(struct kvx_ep *ep, uint64_t deadline_ns)
{
	ep->dom->script->calls[deadline_ns == 0 ? KVX_FAKE_LEASE_STOP : KVX_FAKE_LEASE]++;
	ep->lease_ns = deadline_ns;
}

const struct kvx_transport_ops kvx_fake_ops = {
    .name = "fake",
    .caps = KVX_CAP_SAME_NODE | KVX_CAP_CROSS_NODE | KVX_CAP_CONNECT,
    .probe = fake_probe,
    .open = fake_open,
    .close = fake_close,
    .listen = fake_listen,
    .connect = fake_connect,
    .ep_close = fake_ep_close,
    .mem_reg = fake_mem_reg,
    .mem_dereg = fake_mem_dereg,
    .mkey_pack = fake_mkey_pack,
    .rkey_unpack = fake_rkey_unpack,
    .rkey_free = fake_rkey_free,
    .post = fake_post,
    .progress = fake_progress,
    .arm = fake_arm,
    .fence = fake_fence,
    .lease = fake_lease,
};
