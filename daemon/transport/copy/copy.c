/* The copy backend: same-node copies between two mappings of this process, done by the CPU of the
 * worker that owns the domain. Everything runs on that worker. Its eps are loopbacks: up from the
 * start, never lost. post() puts ops into a fixed ring, progress() copies a bounded amount of them
 * inside a SIGBUS guard, so that memory which a client took away fails that client's batch only.
 * Never allocates on post or progress, never sleeps. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/idmap.h"
#include "base/log.h"
#include "mem/guard.h"
#include "mem/region.h"
#include "transport/copy_kernels.h"
#include "transport/transport.h"

#define DOM_MAGIC  0x6b7663646f6d3031ull
#define MKEY_MAGIC 0x6b7663706b657931ull

/* What one progress() may copy before it lets the worker look at its rings: 50 to 100 us. */
#define TURN_BYTES (512u * 1024u)
#define TURN_OPS   128u

/* A batch costs two wake-ups, some 5 us. All of them in flight are the time until a cancelled
 * transfer is out of the ring: 8 MiB, a few milliseconds. */
#define MAX_OP_BYTES  TURN_BYTES
#define BATCH_BYTES   (1024u * 1024u)
#define BATCH_OPS     128u
#define QUEUE_BATCHES 8u    /* 3 left a worker idle when the loop was late */
#define RING_OPS      1024u /* at least BATCH_OPS * QUEUE_BATCHES; a power of two */

/* Measured, random blocks of cold memory: four blocks at a time with non-temporal stores gain 5 to
 * 30 % from 1 KiB to below 8 KiB, and prefetching the op after the next 30 to 50 % below 2 KiB;
 * longer ops gain from neither. */
#define QUAD_MIN_BYTES     1024u
#define QUAD_MAX_BYTES     8191u
#define PREFETCH_MAX_BYTES 2047u
#define PREFETCH_AHEAD     2u
#define PREFETCH_LINES     8u
#define LINE               64u

struct kvx_mr {
	struct kvx_dom *dom;
	uint8_t *addr;
	uint64_t len_bytes;
	uint64_t id; /* in dom->mrs; 0: deregistered, kept only for the ops and rkeys below */
	uint32_t rights;
	unsigned n_refs; /* registration, rkeys, ops in the ring */
};

struct kvx_rkey {
	struct kvx_mr *mr;
};

struct kvx_ep {
	struct kvx_dom *dom;
	unsigned n_open; /* ops in the ring */
	bool fenced;
};

enum slot_state { SLOT_WAITING, SLOT_DONE };

struct slot {
	struct kvx_op op;
	struct kvx_ep *ep;
	struct kvx_mr *remote; /* the rkey may be freed before the op is reported */
	int status;
	enum slot_state state;
};

struct kvx_dom {
	uint64_t magic;
	uint64_t nt_min_bytes;
	struct kvx_idmap *mrs;
	unsigned n_eps;
	unsigned n_rkeys;
	/* Ring: [tail, copied) wait to be reported, [copied, head) to be copied. */
	uint32_t head, copied, tail;
	/* This turn, shared with the guarded function: volatile, as it may be left by a jump. */
	volatile uint32_t at, until;
	uint32_t one_by_one; /* ops up to this index are copied alone, to find the one that faults
			      */
	bool blame;          /* fault_cookie is set */
	uint64_t fault_cookie;
	struct slot ring[RING_OPS];
};

/* What an mkey of this backend is. It never leaves the process; it is checked all the same. */
struct mkey {
	uint64_t magic;
	uint64_t dom; /* the domain's address: to tell domains apart, never followed */
	uint64_t mr;  /* id in that domain */
};
_Static_assert(sizeof(struct mkey) <= KVX_TRANSPORT_MKEY_MAX, "an mkey must fit");

static struct slot *dom_slot(struct kvx_dom *dom, uint32_t index)
{
	return &dom->ring[index % RING_OPS];
}

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
	    .max_op_bytes = MAX_OP_BYTES,
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

static void mr_unref(struct kvx_mr *mr)
{
	if (--mr->n_refs == 0)
		free(mr);
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
	mr_unref(mr);
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
	mr_unref(rkey->mr);
	free(rkey);
}

static bool range_fits(uint64_t offset, uint64_t len, uint64_t have)
{
	return offset <= have && len <= have - offset;
}

/* The last check before bytes move: whatever is above got it wrong, nothing outside is touched. */
static int op_check(const struct kvx_op *op, const struct kvx_mr *remote)
{
	uint32_t right = op->kind == KVX_OP_READ ? KVX_ACCESS_READ : KVX_ACCESS_WRITE;
	if (op->kind != KVX_OP_READ && op->kind != KVX_OP_WRITE)
		return -EINVAL;
	if (op->len_bytes == 0 || op->len_bytes > MAX_OP_BYTES)
		return -EINVAL;
	if (op->local->id == 0 || remote->id == 0)
		return -EOWNERDEAD;
	if (!range_fits(op->local_offset, op->len_bytes, op->local->len_bytes) ||
	    !range_fits(op->remote_offset, op->len_bytes, remote->len_bytes))
		return -ERANGE;
	return (remote->rights & right) ? 0 : -EACCES;
}

static int copy_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n)
{
	struct kvx_dom *dom = ep->dom;
	unsigned taken = 0;
	if (ep->fenced)
		return -ESHUTDOWN;
	for (; taken < n && dom->head - dom->tail < RING_OPS; taken++) {
		const struct kvx_op *op = &ops[taken];
		struct slot *slot = dom_slot(dom, dom->head++);
		*slot = (struct slot){.op = *op, .ep = ep, .remote = op->remote->mr};
		op->local->n_refs++;
		slot->remote->n_refs++;
		ep->n_open++;
	}
	return (int)taken;
}

/* Source and destination of a slot that op_check() has passed. */
static void slot_ends(const struct slot *slot, uint8_t **out_dst, const uint8_t **out_src)
{
	uint8_t *local = slot->op.local->addr + slot->op.local_offset;
	uint8_t *remote = slot->remote->addr + slot->op.remote_offset;
	bool read = slot->op.kind == KVX_OP_READ;
	*out_dst = read ? local : remote;
	*out_src = read ? remote : local;
}

static bool ends_overlap(const uint8_t *dst, const uint8_t *src, uint64_t len)
{
	return (uintptr_t)dst < (uintptr_t)src + len && (uintptr_t)src < (uintptr_t)dst + len;
}

static void slot_copy(const struct kvx_dom *dom, const struct slot *slot)
{
	uint64_t len = slot->op.len_bytes;
	uint8_t *dst;
	const uint8_t *src;
	slot_ends(slot, &dst, &src);
	if (ends_overlap(dst, src, len))
		memmove(dst, src, len);
	else if (len >= dom->nt_min_bytes)
		kvx_copy_nt(dst, src, len);
	else
		kvx_copy_memcpy(dst, src, len);
}

static void slot_prefetch(const struct kvx_dom *dom, const struct slot *slot)
{
	uint64_t len = slot->op.len_bytes;
	uint8_t *dst;
	const uint8_t *src;
	if (slot->state == SLOT_DONE || len > PREFETCH_MAX_BYTES)
		return;
	slot_ends(slot, &dst, &src);
	for (uint64_t at = 0; at < len && at < (uint64_t)PREFETCH_LINES * LINE; at += LINE) {
		__builtin_prefetch(src + at, 0);
		__builtin_prefetch(dst + at, 1);
	}
}

/* Copies the four ops from `at` together if they are of a kind. */
static bool dom_copy_quad(struct kvx_dom *dom, uint32_t at)
{
	uint64_t len = dom_slot(dom, at)->op.len_bytes;
	uint8_t *dst[4];
	const uint8_t *src[4];
	if (len < QUAD_MIN_BYTES || len > QUAD_MAX_BYTES || dom->nt_min_bytes == UINT64_MAX)
		return false;
	if (dom->until - at < 4 || (int32_t)(dom->one_by_one - at) > 0)
		return false;
	for (unsigned i = 0; i < 4; i++) {
		const struct slot *slot = dom_slot(dom, at + i);
		if (slot->state == SLOT_DONE || slot->op.len_bytes != len)
			return false;
		slot_ends(slot, &dst[i], &src[i]);
		if (ends_overlap(dst[i], src[i], len))
			return false;
	}
	kvx_copy_quad_nt(dst, src, len);
	return true;
}

/* Runs in the guard: everything before dom->at is copied when a fault takes it out. */
static void dom_copy_guarded(void *arg)
{
	struct kvx_dom *dom = arg;
	while (dom->at != dom->until) {
		uint32_t at = dom->at;
		struct slot *slot = dom_slot(dom, at);
		if (slot->state == SLOT_DONE) {
			dom->at = at + 1;
			continue;
		}
		if (dom_copy_quad(dom, at)) {
			dom->at = at + 4;
			continue;
		}
		if (dom->until - at > PREFETCH_AHEAD)
			slot_prefetch(dom, dom_slot(dom, at + PREFETCH_AHEAD));
		slot_copy(dom, slot);
		dom->at = at + 1;
	}
}

/* Chooses this turn's ops, and settles those that need no copying. */
static void dom_begin_turn(struct kvx_dom *dom)
{
	uint64_t bytes = 0;
	uint32_t until = dom->copied;
	while (until != dom->head && until - dom->copied < TURN_OPS && bytes < TURN_BYTES) {
		struct slot *slot = dom_slot(dom, until++);
		slot->status = slot->ep->fenced ? -ECANCELED : op_check(&slot->op, slot->remote);
		if (slot->status == 0 && dom->blame && slot->op.cookie == dom->fault_cookie)
			slot->status = -EFAULT;
		slot->state = slot->status == 0 ? SLOT_WAITING : SLOT_DONE;
		bytes += slot->op.len_bytes;
	}
	dom->at = dom->copied;
	dom->until = until;
}

/* A fault at dom->at. Within a group of four any may be to blame: they are tried again alone. */
static void dom_fault(struct kvx_dom *dom)
{
	uint32_t at = dom->at;
	struct slot *slot = dom_slot(dom, at);
	if ((int32_t)(dom->one_by_one - at) <= 0) {
		dom->one_by_one = at + 4;
		return;
	}
	dom->blame = true;
	dom->fault_cookie = slot->op.cookie;
	for (uint32_t i = at; i != dom->until; i++) {
		slot = dom_slot(dom, i);
		if (slot->state == SLOT_WAITING && slot->op.cookie == dom->fault_cookie) {
			slot->state = SLOT_DONE;
			slot->status = -EFAULT;
		}
	}
}

static void dom_copy_turn(struct kvx_dom *dom)
{
	dom_begin_turn(dom);
	if ((int32_t)(dom->one_by_one - dom->copied) < 0)
		dom->one_by_one = dom->copied;
	while (dom->at != dom->until && kvx_guard_run(dom_copy_guarded, dom) < 0)
		dom_fault(dom);
	kvx_copy_fence();
	dom->copied = dom->until;
}

/* Reports what is copied, one event for each run of ops with the same cookie and status. */
static int dom_report(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max)
{
	unsigned n = 0;
	for (; dom->tail != dom->copied; dom->tail++) {
		struct slot *slot = dom_slot(dom, dom->tail);
		struct kvx_tevent *last = n > 0 ? &events[n - 1] : NULL;
		if (last != NULL && last->cookie == slot->op.cookie &&
		    last->status == slot->status) {
			last->n_ops++;
		} else {
			if (n == max)
				break;
			events[n++] = (struct kvx_tevent){
			    .kind = KVX_TEV_OP_DONE,
			    .status = slot->status,
			    .n_ops = 1,
			    .cookie = slot->op.cookie,
			    .ep = slot->ep,
			    .text = slot->status == -EFAULT
					? "memory of one of the two regions is gone"
					: NULL,
			};
		}
		slot->ep->n_open--;
		mr_unref(slot->op.local);
		mr_unref(slot->remote);
	}
	if (dom->tail == dom->head)
		dom->blame = false; /* the cookie may be used for another batch from now on */
	return (int)n;
}

static int copy_progress(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max)
{
	if (dom->head == dom->tail)
		return 0;
	if (dom->copied == dom->tail)
		dom_copy_turn(dom);
	return dom_report(dom, events, max);
}

static int copy_arm(struct kvx_dom *dom)
{
	return dom->head == dom->tail ? 0 : -EAGAIN;
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
