/* Memory of a domain: its table of registered regions, the keys that name them to peers, and what
 * peers told of theirs. Owns struct kvx_mr and struct kvx_rkey. Called by the worker thread, but
 * for fabric_mkey_pack(): the [reg] helper calls it, of an mr that nobody else knows yet. The
 * provider hears of a region only if it must (RMA on, or it wants local buffers registered). Never
 * moves bytes. */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "mem/region.h"
#include "transport/fabric/fabric_gpu.h"

#define MKEY_VERSION 1u
#define MKEY_RMA     1u

/* As it travels; little-endian. */
struct wire_mkey {
	uint8_t version;
	uint8_t flags;
	uint16_t zero;
	uint32_t rights;
	uint64_t id;
	uint64_t nonce;
	uint64_t len_bytes;
	uint64_t rma_key;
	uint64_t rma_base;
};
_Static_assert(sizeof(struct wire_mkey) == 48, "mkey is 48 bytes on the wire");
_Static_assert(sizeof(struct wire_mkey) <= KVX_TRANSPORT_MKEY_MAX, "mkey fits its field");

static int mr_register_fid(struct kvx_mr *mr)
{
	struct kvx_dom *dom = mr->dom;
	uint64_t access = FI_SEND | FI_RECV;
	uint64_t want = 0;
	int rc;

	if (mr->dev != NULL || (!dom->rma && !dom->mr_local))
		return 0;
	if (dom->rma) {
		access |= FI_READ | FI_WRITE;
		if (mr->rights & KVX_ACCESS_READ)
			access |= FI_REMOTE_READ;
		if (mr->rights & KVX_ACCESS_WRITE)
			access |= FI_REMOTE_WRITE;
	}
	/* A key that cannot be guessed, where the provider lets us choose it. */
	if (!dom->mr_prov_key) {
		rc = fabric_random(&want, sizeof(want));
		if (rc < 0)
			return rc;
		if (dom->info->domain_attr->mr_key_size < sizeof(want))
			want &= (1ull << (8 * dom->info->domain_attr->mr_key_size)) - 1;
	}
	rc = fi_mr_reg(dom->domain, mr->addr, mr->len_bytes, access, 0, want, 0, &mr->fid, NULL);
	if (rc != 0)
		return fabric_err(rc);
	mr->desc = fi_mr_desc(mr->fid);
	return 0;
}

/* The counters wrap around to what is registered now. */
static void count_mr(const struct kvx_mr *mr, int sign)
{
	struct kvx_dom_counters *counters = &mr->dom->counters;

	kvx_counter_add(&counters->regs, (uint64_t)sign);
	kvx_counter_add(&counters->reg_bytes, (uint64_t)sign * mr->len_bytes);
}

/* GPU memory needs its device's help. */
static bool mr_takes(const struct kvx_dom *dom, const struct kvx_mem *mem)
{
	if (mem->gpu != NULL)
		return mem->gpu->access != NULL && mem->gpu->access->copier_open != NULL;
	return mem->addr != NULL && (dom->mem_kinds & (1u << mem->ops->kind));
}

int fab_mr_register(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem,
		    uint32_t rights, struct kvx_mr **out_mr)
{
	struct kvx_mr *mr;
	int rc;

	if (!mr_takes(dom, mem))
		return -EOPNOTSUPP;
	mr = calloc(1, sizeof(*mr));
	if (mr == NULL)
		return -ENOMEM;
	mr->dom = dom;
	mr->addr = mem->addr;
	mr->len_bytes = mem->len_bytes;
	mr->page_bytes = mem->page_bytes;
	mr->tenant = tenant;
	mr->rights = rights;
	rc = fabric_random(&mr->key.nonce, sizeof(mr->key.nonce));
	if (rc < 0)
		goto err_free;
	if (mem->gpu != NULL) {
		mr->gpu_mem = mem->gpu;
		rc = fab_dev_ref(dom, mem->gpu, &mr->dev);
		if (rc < 0)
			goto err_free;
	}
	rc = mr_register_fid(mr);
	if (rc < 0)
		goto err_dev;
	rc = kvx_idmap_add(dom->mrs, mr, &mr->key.id);
	if (rc < 0)
		goto err_close;
	count_mr(mr, 1);
	*out_mr = mr;
	return 0;

err_close:
	if (mr->fid != NULL)
		fi_close(&mr->fid->fid);
err_dev:
	if (mr->dev != NULL)
		fab_dev_unref(mr->dev);
err_free:
	free(mr);
	return rc;
}

/* Does the provider hold a pointer into mr on behalf of this ep? READs that are to fill mr are only
 * marked: their data is dropped when it comes. */
static bool ep_uses_mr(struct kvx_ep *ep, const struct kvx_mr *mr)
{
	bool uses = fab_place_uses(ep, mr);

	for (uint32_t i = 0; ep->reqs != NULL && i < ep->dom->queue; i++) {
		struct fab_req *req = &ep->reqs[i];

		if (!req->open)
			continue;
		for (uint32_t k = 0; k < req->n_places; k++) {
			if (req->places[k].mr != mr)
				continue;
			if (req->kind == FAB_REQ_READ)
				req->dead = true;
			else if (mr->dev == NULL) /* else it is sent from a buffer */
				uses |= req->sending;
		}
	}
	for (unsigned i = 0; i < FAB_N_REPLY; i++)
		for (unsigned k = 0; ep->replies[i].sending && k < ep->replies[i].n_direct; k++)
			uses |= ep->replies[i].direct[k] == mr;
	return uses;
}

void fab_mr_withdraw(struct kvx_mr *mr)
{
	struct kvx_dom *dom = mr->dom;

	kvx_assert(kvx_idmap_remove(dom->mrs, mr->key.id) == mr);
	fab_bounce_withdraw(mr);
	/* Normally nothing is under way any more. Where the other side did not let go in time, only
	 * closing the endpoint takes the memory back from the provider. */
	for (unsigned i = 0; i < dom->n_eps; i++)
		if (dom->eps[i] != NULL && ep_uses_mr(dom->eps[i], mr))
			fab_ep_break(dom->eps[i], -ECANCELED, 0,
				     "memory unregistered while in use: endpoint closed");
}

void fab_mr_free(struct kvx_mr *mr)
{
	fab_bounce_forget(mr);
	if (mr->fid != NULL) {
		int rc = fi_close(&mr->fid->fid);

		if (rc != 0)
			kvx_error("fabric: closing a memory region failed: %s", fi_strerror(-rc));
	}
	if (mr->dev != NULL)
		fab_dev_unref(mr->dev);
	count_mr(mr, -1);
	free(mr);
}

int fabric_mkey_pack(const struct kvx_mr *mr, void *buf, size_t buf_bytes)
{
	bool rma = mr->dom->rma && mr->fid != NULL;
	struct wire_mkey wire = {
	    .version = MKEY_VERSION,
	    .flags = rma ? MKEY_RMA : 0,
	    .rights = htole32(mr->rights),
	    .id = htole64(mr->key.id),
	    .nonce = htole64(mr->key.nonce),
	    .len_bytes = htole64(mr->len_bytes),
	};

	if (buf_bytes < sizeof(wire))
		return -ENOSPC;
	if (rma) {
		uint64_t base = mr->dom->mr_virt ? (uint64_t)(uintptr_t)mr->addr : 0;

		wire.rma_key = htole64(fi_mr_key(mr->fid));
		wire.rma_base = htole64(base);
	}
	memcpy(buf, &wire, sizeof(wire));
	return (int)sizeof(wire);
}

int fabric_rkey_unpack(struct kvx_ep *ep, const void *mkey, size_t len, struct kvx_rkey **out_rkey)
{
	struct wire_mkey wire;
	struct kvx_rkey *rkey;

	if (len != sizeof(wire))
		return -EINVAL;
	memcpy(&wire, mkey, sizeof(wire));
	if (wire.version != MKEY_VERSION || (wire.flags & ~MKEY_RMA) != 0 || wire.zero != 0 ||
	    wire.len_bytes == 0)
		return -EINVAL;
	rkey = calloc(1, sizeof(*rkey));
	if (rkey == NULL)
		return -ENOMEM;
	rkey->ep = ep;
	rkey->key.id = le64toh(wire.id);
	rkey->key.nonce = le64toh(wire.nonce);
	rkey->len_bytes = le64toh(wire.len_bytes);
	rkey->rights = le32toh(wire.rights);
	rkey->has_rma = (wire.flags & MKEY_RMA) != 0;
	rkey->rma_key = le64toh(wire.rma_key);
	rkey->rma_base = le64toh(wire.rma_base);
	*out_rkey = rkey;
	return 0;
}

void fabric_rkey_free(struct kvx_rkey *rkey)
{
	free(rkey);
}
