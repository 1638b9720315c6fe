/* Writes that were under way when their ep was fenced, as on a real link: they belong to nobody any
 * more and land when they are due, unless the other side has stopped them or they are older than
 * limits.settle_ns. Only with late_writes. The bytes are those of the moment of the fence. */
#include <stdlib.h>
#include <string.h>

#include <utlist.h>

#include "base/assert.h"
#include "transport/fake/fake_priv.h"

struct fake_late {
	struct fake_late *prev, *next;
	struct kvx_mr *remote;
	uint64_t remote_offset;
	uint64_t peer_id; /* the ep it arrives at */
	uint64_t due_ns;
	uint64_t until_ns; /* it does not land later than this */
	size_t len_bytes;
	uint8_t bytes[];
};

static void late_free(struct kvx_fake_script *script, struct fake_late *late)
{
	DL_DELETE(script->late, late);
	fake_mr_unref(late->remote);
	free(late);
}

static void late_add(struct kvx_ep *ep, const struct fake_op *fop)
{
	struct kvx_fake_script *script = ep->dom->script;
	const struct kvx_op *op = &fop->op;
	uint64_t settle_ns = script->limits.settle_ns;
	struct fake_late *late = malloc(sizeof(*late) + op->len_bytes);
	if (late == NULL)
		return; /* as if the link had lost it */
	late->remote = fop->remote;
	late->remote->n_refs++;
	late->remote_offset = op->remote_offset;
	late->peer_id = ep->peer_id;
	late->due_ns = fop->due_ns;
	late->until_ns = settle_ns == 0 || settle_ns > UINT64_MAX - script->now_ns
			     ? UINT64_MAX
			     : script->now_ns + settle_ns;
	late->len_bytes = op->len_bytes;
	memcpy(late->bytes, op->local->addr + op->local_offset, op->len_bytes);
	DL_APPEND(script->late, late);
}

void fake_late_keep(struct kvx_ep *ep)
{
	if (ep->state != FAKE_EP_UP)
		return;
	for (unsigned i = 0; i < ep->n_ops; i++) {
		const struct fake_op *fop = &ep->ops[i];
		if (fop->state == FAKE_OP_OPEN && fop->op.kind == KVX_OP_WRITE &&
		    fake_op_check(ep, fop) == 0)
			late_add(ep, fop);
	}
}

static bool late_may_land(const struct kvx_fake_script *script, const struct fake_late *late)
{
	const struct kvx_ep *peer = fake_ep_find(script, late->peer_id);
	return peer != NULL && !peer->fenced && script->now_ns < peer->lease_ns &&
	       late->due_ns <= late->until_ns && late->remote->id != 0;
}

void fake_late_settle(struct kvx_fake_script *script)
{
	struct fake_late *late, *next;
	DL_FOREACH_SAFE (script->late, late, next) {
		if (late->due_ns > script->now_ns)
			continue;
		if (late_may_land(script, late)) {
			memcpy(late->remote->addr + late->remote_offset, late->bytes,
			       late->len_bytes);
			script->n_landed++;
			script->n_late++;
		}
		late_free(script, late);
	}
}

uint64_t fake_late_next_ns(const struct kvx_fake_script *script)
{
	const struct fake_late *late;
	uint64_t next = UINT64_MAX;
	DL_FOREACH (script->late, late)
		next = late->due_ns < next ? late->due_ns : next;
	return next;
}

void fake_late_forget(struct kvx_fake_script *script, const struct kvx_dom *dom)
{
	struct fake_late *late, *next;
	DL_FOREACH_SAFE (script->late, late, next)
		if (late->remote->dom == dom)
			late_free(script, late);
}
