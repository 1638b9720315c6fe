/* The copy backend: same-node copies between two mappings of this process, done by the CPU of the
 * worker that owns the domain. Everything runs on that worker. This file has its objects: domains,
 * eps, which are loopbacks (up from the start, never lost), memory and its keys; copy_move.c moves
 * the bytes. */
#include "transport/copy/copy_priv.h"

#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "mem/guard.h"
#include "transport/copy_kernels.h"

#define DOM_MAGIC  0x6b7663646f6d3031ull
#define MKEY_MAGIC 0x6b7663706b657931ull

/* A batch costs two wake-ups, some 5 us. All of them in flight are the time until a cancelled
 * transfer is out of the ring: 8 MiB, a few milliseconds. */
#define BATCH_BYTES   (1024u * 1024u)
#define BATCH_OPS     128u
#define QUEUE_BATCHES 8u /* 3 left a worker idle when the loop was late */
_Static_assert(COPY_RING_OPS >= BATCH_OPS * QUEUE_BATCHES, "all that is in flight fits");

/* What an mkey of this backend is. It never leaves the process; it is checked all the same. */
struct mkey {
	uint64_t magic;
	uint64_t dom; /* the domain's address: to tell domains apart, never followed */
	uint64_t mr;  /* id in that domain */
};
_Static_assert(sizeof(struct mkey) <= KVX_TRANSPORT_MKEY_MAX, "an mkey must fit");

static int copy_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
		      struct kvx_why *why)
{
	if (max == 0)
		return 0;
	rails[0] = (struct kvx_rail){.numa_node = -1, .usable = true};
	return 1;
}

static int copy_open(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
		     struct kvx_transport_limits *out_limits, struct kvx_why *why)
{
	int err = kvx_guard_install();
	if (err < 0)
		return kvx_why(why, err, "copy: cannot install the SIGBUS handler");
	struct kvx_dom *dom = calloc(1, sizeof(*dom));
	if (dom == NULL)
		return kvx_why(why, -ENOMEM, "copy: no memory for the domain");
	err = kvx_idmap_create(UINT32_MAX, &dom->mrs);
	if (err < 0) {
		free(dom);
		return kvx_why(why, err, "copy: no memory for the memory table");
	}
	dom->magic = DOM_MAGIC;
	dom->nt_min_bytes = conf->copy_nt_min_bytes;
	*out_limits = (struct kvx_transport_limits){
	    .max_op_bytes = COPY_MAX_OP_BYTES,
	    .batch_bytes = BATCH_BYTES,
	    .batch_ops = BATCH_OPS,
	    .queue_batches = QUEUE_BATCHES,
	    .event_fd = -1,
	};
	*out_dom = dom;
	kvx_debug("copy: domain open, %s, non-temporal from %llu bytes", kvx_copy_isa(),
		  (unsigned long long)dom->nt_min_bytes);
	return 0;
}

static void copy_close(struct kvx_dom *dom)
{
	KVX_CHECK_MAGIC(dom, DOM_MAGIC);
	kvx_assert(dom->n_eps == 0 && dom->n_rkeys == 0 && dom->head == dom->tail);
	kvx_assert(kvx_idmap_count(dom->mrs) == 0);
	kvx_idmap_destroy(dom->mrs);
	dom->magic = 0;
	free(dom);
}

static int copy_listen(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
		       size_t *addr_len)
{
	KVX_CHECK_MAGIC(dom, DOM_MAGIC);
	struct kvx_ep *ep = calloc(1, sizeof(*ep));
	if (ep == NULL)
		return -ENOMEM;
	ep->dom = dom;
	dom->n_eps++;
	*addr_len = 0; /* nobody connects to a loopback */
	*out_ep = ep;
	return 0;
}

static int copy_connect(struct kvx_ep *ep, const void *addr, size_t addr_len)
{
	return -EOPNOTSUPP;
}

static void copy_ep_close(struct kvx_ep *ep)
{
	kvx_assert(ep->n_open == 0);
	ep->dom->n_eps--;
	free(ep);
}

static int copy_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem,
			uint32_t rights, struct kvx_mr **out_mr)
{
	KVX_CHECK_MAGIC(dom, DOM_MAGIC);
	if (mem->addr == NULL)
		return -EOPNOTSUPP; /* a kind of memory that the CPU does not reach */
	struct kvx_mr *mr = calloc(1, sizeof(*mr));
	if (mr == NULL)
		return -ENOMEM;
	int err = kvx_idmap_add(dom->mrs, mr, &mr->id);
	if (err < 0) {
		free(mr);
		return err;
	}
	mr->dom = dom;
	mr->addr = mem->addr;
	mr->len_bytes = mem->len_bytes;
	mr->rights = rights;
	mr->n_refs = 1;
	*out_mr = mr;
	return 0;
}

/* A fence by itself: ops in the ring that use the mr find it gone. */
static void copy_mem_dereg(struct kvx_mr *mr)
{
	void *removed = kvx_idmap_remove(mr->dom->mrs, mr->id);
	kvx_assert(removed == mr);
	mr->id = 0;
	mr->addr = NULL;
	copy_mr_unref(mr);
}

static int copy_mkey_pack(const struct kvx_mr *mr, void *buf, size_t buf_bytes)
{
	struct mkey mkey = {MKEY_MAGIC, (uintptr_t)mr->dom, mr->id};
	if (buf_bytes < sizeof(mkey))
		return -ENOSPC;
	memcpy(buf, &mkey, sizeof(mkey));
	return (int)sizeof(mkey);
}

static int copy_rkey_unpack(struct kvx_ep *ep, const void *mkey, size_t len,
			    struct kvx_rkey **out_rkey)
{
	struct mkey key;
	if (len != sizeof(key))
		return -EINVAL;
	memcpy(&key, mkey, sizeof(key));
	if (key.magic != MKEY_MAGIC || key.dom != (uintptr_t)ep->dom)
		return -EINVAL;
	struct kvx_mr *mr = kvx_idmap_find(ep->dom->mrs, key.mr);
	if (mr == NULL)
		return -EINVAL;
	struct kvx_rkey *rkey = calloc(1, sizeof(*rkey));
	if (rkey == NULL)
		return -ENOMEM;
	rkey->mr = mr;
	mr->n_refs++;
	ep->dom->n_rkeys++;
	*out_rkey = rkey;
	return 0;
}

static void copy_rkey_free(struct kvx_rkey *rkey)
{
	rkey->mr->dom->n_rkeys--;
	copy_mr_unref(rkey->mr);
	free(rkey);
}

/* Nothing moves outside of progress(), and progress() looks at the flag before each turn. */
static int copy_fence(struct kvx_ep *ep)
{
	ep->fenced = true;
	return 0;
}

static void copy_lease(struct kvx_ep *ep, uint64_t deadline_ns)
{
	/* Nothing arrives from other nodes. */
}

const struct kvx_transport_ops kvx_copy_ops = {
    .name = "copy",
    .caps = KVX_CAP_SAME_NODE | KVX_CAP_CPU_COPY,
    .probe = copy_probe,
    .open = copy_open,
    .close = copy_close,
    .listen = copy_listen,
    .connect = copy_connect,
    .ep_close = copy_ep_close,
    .mem_reg = copy_mem_reg,
    .mem_dereg = copy_mem_dereg,
    .mkey_pack = copy_mkey_pack,
    .rkey_unpack = copy_rkey_unpack,
    .rkey_free = copy_rkey_free,
    .post = copy_post,
    .progress = copy_progress,
    .arm = copy_arm,
    .fence = copy_fence,
    .lease = copy_lease,
};
