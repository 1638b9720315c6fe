/* Keys of regions: they never leave the process. Packed by [mem] helpers, unpacked and freed on the
 * loop: neither waits for the worker, which may stand in a call that does not return. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "transport/gpu/gpu_priv.h"

struct gpu_mkey {
	uint64_t magic;
	const struct kvx_dom *dom;
	struct kvx_mr *mr; /* the node frees keys before it deregisters */
};
_Static_assert(sizeof(struct gpu_mkey) <= KVX_TRANSPORT_MKEY_MAX, "an mkey must fit");

int gpu_mkey_pack(const struct kvx_mr *mr, void *buf, size_t buf_bytes)
{
	struct gpu_mkey mkey = {GPU_MKEY_MAGIC, mr->dom, (struct kvx_mr *)(uintptr_t)mr};

	if (buf_bytes < sizeof(mkey))
		return -ENOSPC;
	memcpy(buf, &mkey, sizeof(mkey));
	return (int)sizeof(mkey);
}

int gpu_rkey_unpack(struct kvx_ep *ep, const void *mkey, size_t len, struct kvx_rkey **out_rkey)
{
	struct gpu_mkey key;

	if (len != sizeof(key))
		return -EINVAL;
	memcpy(&key, mkey, sizeof(key));
	if (key.magic != GPU_MKEY_MAGIC || key.dom != ep->dom)
		return -EINVAL;
	KVX_CHECK_MAGIC(key.mr, GPU_MR_MAGIC);
	struct kvx_rkey *rkey = calloc(1, sizeof(*rkey));
	if (rkey == NULL)
		return -ENOMEM;
	rkey->mr = key.mr;
	atomic_fetch_add(&ep->dom->n_rkeys, 1);
	*out_rkey = rkey;
	return 0;
}

void gpu_rkey_free(struct kvx_rkey *rkey)
{
	atomic_fetch_sub(&rkey->mr->dom->n_rkeys, 1);
	free(rkey);
}
