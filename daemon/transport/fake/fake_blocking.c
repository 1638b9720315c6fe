/* The fake transport with calls that block (KVX_CAP_BLOCKING_CONTROL): the slots of kvx_fake_ops
 * under one lock, with gates at which tests hold those that may block. Sees to the promises that
 * workers make for such transports (transport.h) and counts what breaks them: one call per ep at a
 * time, nothing posted once a fence has begun, data on the thread that opened the domain. Any
 * thread. */
#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"
#include "transport/fake/fake_priv.h"

struct kvx_fake_gates {
	pthread_mutex_t lock; /* of the whole script */
	pthread_cond_t moved;
	enum kvx_fake_gate gate[KVX_FAKE_SLOTS];
	unsigned n_waiting[KVX_FAKE_SLOTS];
};

int kvx_fake_gates_open(struct kvx_fake_script *script)
{
	struct kvx_fake_gates *gates = calloc(1, sizeof(*gates));
	if (gates == NULL)
		return -ENOMEM;
	pthread_mutex_init(&gates->lock, NULL);
	pthread_cond_init(&gates->moved, NULL);
	script->gates = gates;
	return 0;
}

void kvx_fake_gates_close(struct kvx_fake_script *script)
{
	struct kvx_fake_gates *gates = script->gates;
	kvx_assert(script->n_doms == 0);
	script->gates = NULL;
	pthread_cond_destroy(&gates->moved);
	pthread_mutex_destroy(&gates->lock);
	free(gates);
}

void kvx_fake_lock(struct kvx_fake_script *script)
{
	if (script->gates != NULL)
		pthread_mutex_lock(&script->gates->lock);
}

void kvx_fake_unlock(struct kvx_fake_script *script)
{
	if (script->gates != NULL)
		pthread_mutex_unlock(&script->gates->lock);
}

void kvx_fake_gate(struct kvx_fake_script *script, enum kvx_fake_slot slot, enum kvx_fake_gate gate)
{
	kvx_fake_lock(script);
	script->gates->gate[slot] = gate;
	pthread_cond_broadcast(&script->gates->moved);
	kvx_fake_unlock(script);
}

unsigned kvx_fake_gate_waiting(struct kvx_fake_script *script, enum kvx_fake_slot slot)
{
	kvx_fake_lock(script);
	unsigned n = script->gates->n_waiting[slot];
	kvx_fake_unlock(script);
	return n;
}

/* With the lock, which is not held while it waits. */
static void gate_pass(struct kvx_dom *dom, enum kvx_fake_slot slot, enum kvx_fake_gate where)
{
	struct kvx_fake_gates *gates = dom->script->gates;
	if (where == KVX_FAKE_GATE_BEFORE && !pthread_equal(dom->owner, pthread_self()))
		dom->script->elsewhere[slot]++;
	gates->n_waiting[slot]++;
	while (gates->gate[slot] == where)
		pthread_cond_wait(&gates->moved, &gates->lock);
	gates->n_waiting[slot]--;
}

static void expect(struct kvx_fake_script *script, bool kept, const char *promise)
{
	if (kept)
		return;
	if (script->n_violations++ == 0)
		script->violation = promise;
}

static void expect_owner(struct kvx_dom *dom)
{
	expect(dom->script, pthread_equal(dom->owner, pthread_self()),
	       "data calls are made on the thread that opened the domain");
}

/* Locks. Calls of an ep between begin and end exclude each other. */
static struct kvx_fake_script *ep_begin(struct kvx_ep *ep)
{
	struct kvx_fake_script *script = ep->dom->script;
	kvx_fake_lock(script);
	expect(script, ep->n_calls++ == 0, "an ep has one call at a time");
	return script;
}

static void ep_end(struct kvx_ep *ep)
{
	struct kvx_fake_script *script = ep->dom->script;
	ep->n_calls--;
	kvx_fake_unlock(script);
}

static struct kvx_fake_script *dom_begin(struct kvx_dom *dom)
{
	kvx_fake_lock(dom->script);
	expect_owner(dom);
	return dom->script;
}

static int blocking_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
			  struct kvx_why *why)
{
	return kvx_fake_ops.probe(conf, rails, max, why);
}

static int blocking_open(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
			 struct kvx_transport_limits *out_limits, struct kvx_why *why)
{
	struct kvx_fake_script *script = conf->test;
	if (script == NULL || script->gates == NULL)
		return kvx_why(why, -EINVAL, "fake: no script, or one without gates");
	kvx_fake_lock(script);
	int err = kvx_fake_ops.open(conf, out_dom, out_limits, why);
	if (err == 0)
		(*out_dom)->owner = pthread_self();
	kvx_fake_unlock(script);
	return err;
}

static void blocking_close(struct kvx_dom *dom)
{
	struct kvx_fake_script *script = dom->script;
	kvx_fake_lock(script);
	kvx_fake_ops.close(dom);
	kvx_fake_unlock(script);
}

static int blocking_listen(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
			   size_t *addr_len)
{
	kvx_fake_lock(dom->script);
	gate_pass(dom, KVX_FAKE_LISTEN, KVX_FAKE_GATE_BEFORE);
	int err = kvx_fake_ops.listen(dom, tenant, out_ep, addr, addr_len);
	gate_pass(dom, KVX_FAKE_LISTEN, KVX_FAKE_GATE_AFTER);
	kvx_fake_unlock(dom->script);
	return err;
}

static int blocking_connect(struct kvx_ep *ep, const void *addr, size_t addr_len)
{
	ep_begin(ep);
	gate_pass(ep->dom, KVX_FAKE_CONNECT, KVX_FAKE_GATE_BEFORE);
	int err = kvx_fake_ops.connect(ep, addr, addr_len);
	gate_pass(ep->dom, KVX_FAKE_CONNECT, KVX_FAKE_GATE_AFTER);
	ep_end(ep);
	return err;
}

static void blocking_ep_close(struct kvx_ep *ep)
{
	struct kvx_fake_script *script = ep_begin(ep);
	expect_owner(ep->dom);
	kvx_fake_ops.ep_close(ep);
	kvx_fake_unlock(script);
}

static int blocking_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem,
			    uint32_t rights, struct kvx_mr **out_mr)
{
	kvx_fake_lock(dom->script);
	gate_pass(dom, KVX_FAKE_MEM_REG, KVX_FAKE_GATE_BEFORE);
	int err = kvx_fake_ops.mem_reg(dom, tenant, mem, rights, out_mr);
	if (err == 0)
		(*out_mr)->maker = pthread_self();
	gate_pass(dom, KVX_FAKE_MEM_REG, KVX_FAKE_GATE_AFTER);
	kvx_fake_unlock(dom->script);
	return err;
}

static void blocking_mem_dereg(struct kvx_mr *mr)
{
	struct kvx_dom *dom = mr->dom; /* outlives it */
	kvx_fake_lock(dom->script);
	gate_pass(dom, KVX_FAKE_MEM_DEREG, KVX_FAKE_GATE_BEFORE);
	kvx_fake_ops.mem_dereg(mr);
	gate_pass(dom, KVX_FAKE_MEM_DEREG, KVX_FAKE_GATE_AFTER);
	kvx_fake_unlock(dom->script);
}

static int blocking_mkey_pack(const struct kvx_mr *mr, void *buf, size_t buf_bytes)
{
	struct kvx_fake_script *script = mr->dom->script;
	kvx_fake_lock(script);
	expect(script, pthread_equal(mr->maker, pthread_self()),
	       "keys are packed on the thread that registered the memory");
	int len = kvx_fake_ops.mkey_pack(mr, buf, buf_bytes);
	kvx_fake_unlock(script);
	return len;
}

static int blocking_rkey_unpack(struct kvx_ep *ep, const void *mkey, size_t len,
				struct kvx_rkey **out_rkey)
{
	ep_begin(ep);
	expect_owner(ep->dom);
	int err = kvx_fake_ops.rkey_unpack(ep, mkey, len, out_rkey);
	ep_end(ep);
	return err;
}

static void blocking_rkey_free(struct kvx_rkey *rkey)
{
	struct kvx_fake_script *script = rkey->script;
	kvx_fake_lock(script);
	kvx_fake_ops.rkey_free(rkey);
	kvx_fake_unlock(script);
}

static int blocking_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n)
{
	struct kvx_fake_script *script = ep_begin(ep);
	expect_owner(ep->dom);
	expect(script, !ep->fencing, "nothing is posted to an ep whose fence has begun");
	int taken = kvx_fake_ops.post(ep, ops, n);
	ep_end(ep);
	return taken;
}

static int blocking_progress(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max)
{
	struct kvx_fake_script *script = dom_begin(dom);
	int n = kvx_fake_ops.progress(dom, events, max);
	kvx_fake_unlock(script);
	return n;
}

static int blocking_arm(struct kvx_dom *dom)
{
	struct kvx_fake_script *script = dom_begin(dom);
	int err = kvx_fake_ops.arm(dom);
	kvx_fake_unlock(script);
	return err;
}

static int blocking_fence(struct kvx_ep *ep)
{
	ep_begin(ep);
	ep->fencing = true;
	gate_pass(ep->dom, KVX_FAKE_FENCE, KVX_FAKE_GATE_BEFORE);
	int err = kvx_fake_ops.fence(ep);
	gate_pass(ep->dom, KVX_FAKE_FENCE, KVX_FAKE_GATE_AFTER);
	ep_end(ep);
	return err;
}

static void blocking_lease(struct kvx_ep *ep, uint64_t deadline_ns)
{
	if (deadline_ns != 0) { /* beside any other call */
		struct kvx_fake_script *script = dom_begin(ep->dom);
		kvx_fake_ops.lease(ep, deadline_ns);
		kvx_fake_unlock(script);
		return;
	}
	ep_begin(ep);
	gate_pass(ep->dom, KVX_FAKE_LEASE_STOP, KVX_FAKE_GATE_BEFORE);
	kvx_fake_ops.lease(ep, 0);
	gate_pass(ep->dom, KVX_FAKE_LEASE_STOP, KVX_FAKE_GATE_AFTER);
	ep_end(ep);
}

const struct kvx_transport_ops kvx_fake_blocking_ops = {
    .name = "fake",
    .caps = KVX_CAP_SAME_NODE | KVX_CAP_CROSS_NODE | KVX_CAP_CONNECT | KVX_CAP_BLOCKING_CONTROL,
    .probe = blocking_probe,
    .open = blocking_open,
    .close = blocking_close,
    .listen = blocking_listen,
    .connect = blocking_connect,
    .ep_close = blocking_ep_close,
    .mem_reg = blocking_mem_reg,
    .mem_dereg = blocking_mem_dereg,
    .mkey_pack = blocking_mkey_pack,
    .rkey_unpack = blocking_rkey_unpack,
    .rkey_free = blocking_rkey_free,
    .post = blocking_post,
    .progress = blocking_progress,
    .arm = blocking_arm,
    .fence = blocking_fence,
    .lease = blocking_lease,
};
