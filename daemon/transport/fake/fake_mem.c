/* Memory of the fake transport and its keys: an mkey names an mr, an rkey keeps it known after it
 * was deregistered. The thread that owns the script. */
#include "transport/fake/fake_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <utlist.h>

void fake_mr_unref(struct kvx_mr *mr)
{
	if (--mr->n_refs == 0)
		free(mr);
}

int fake_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem, uint32_t rights,
		 struct kvx_mr **out_mr)
{
	int err = fake_script_call(dom->script, KVX_FAKE_MEM_REG);
	if (err < 0)
		return err;
	if (dom->lost)
		return -ENODEV;
	struct kvx_mr *mr = calloc(1, sizeof(*mr));
	if (mr == NULL)
		return -ENOMEM;
	mr->dom = dom;
	mr->id = ++dom->script->next_id;
	mr->addr = mem->addr;
	mr->len_bytes = mem->len_bytes;
	mr->tenant = tenant;
	mr->rights = rights;
	mr->n_refs = 1;
	DL_APPEND(dom->mrs, mr);
	dom->script->n_mrs++;
	*out_mr = mr;
	return 0;
}

void fake_mem_dereg(struct kvx_mr *mr)
{
	mr->dom->script->calls[KVX_FAKE_MEM_DEREG]++;
	mr->dom->script->n_mrs--;
	DL_DELETE(mr->dom->mrs, mr);
	mr->id = 0;
	mr->addr = NULL;
	fake_mr_unref(mr);
}

int fake_mkey_pack(const struct kvx_mr *mr, void *buf, size_t buf_bytes)
{
	struct fake_name name = {FAKE_NAME_MAGIC, mr->dom->id, mr->id};
	int err = fake_script_call(mr->dom->script, KVX_FAKE_MKEY_PACK);
	if (err < 0)
		return err;
	if (buf_bytes < sizeof(name))
		return -ENOSPC;
	memcpy(buf, &name, sizeof(name));
	return (int)sizeof(name);
}

/* The domain whose memory an ep reaches; NULL: none now. */
static struct kvx_dom *ep_target(const struct kvx_ep *ep)
{
	if (ep->state == FAKE_EP_LOOPBACK)
		return ep->dom;
	if (ep->state == FAKE_EP_DOWN)
		return NULL;
	const struct kvx_ep *peer = fake_ep_peer(ep);
	return peer == NULL ? NULL : peer->dom;
}

int fake_rkey_unpack(struct kvx_ep *ep, const void *mkey, size_t len, struct kvx_rkey **out_rkey)
{
	struct fake_name name;
	struct kvx_mr *mr = NULL;
	int err = fake_script_call(ep->dom->script, KVX_FAKE_RKEY_UNPACK);
	if (err < 0)
		return err;
	if (len != sizeof(name))
		return -EINVAL;
	memcpy(&name, mkey, sizeof(name));
	struct kvx_dom *dom = ep_target(ep);
	if (dom == NULL)
		return -EHOSTDOWN;
	if (name.magic == FAKE_NAME_MAGIC && name.dom == dom->id)
		DL_SEARCH_SCALAR(dom->mrs, mr, id, name.id);
	if (mr == NULL)
		return -EINVAL;
	struct kvx_rkey *rkey = calloc(1, sizeof(*rkey));
	if (rkey == NULL)
		return -ENOMEM;
	rkey->mr = mr;
	rkey->script = dom->script;
	mr->n_refs++;
	dom->script->n_rkeys++;
	*out_rkey = rkey;
	return 0;
}

void fake_rkey_free(struct kvx_rkey *rkey)
{
	rkey->script->calls[KVX_FAKE_RKEY_FREE]++;
	rkey->script->n_rkeys--;
	fake_mr_unref(rkey->mr);
	free(rkey);
}
