/* How bytes move in the copy backend: post() puts ops into a fixed ring, progress() copies a
 * bounded amount of them inside a SIGBUS guard, so that memory which a client took away fails that
 * client's batch only, and reports what is done. The worker that owns the domain. Never allocates,
 * never sleeps. */
#include "transport/copy/copy_priv.h"

#include <errno.h>
#include <string.h>

#include "mem/guard.h"
#include "mem/region.h"
#include "transport/copy_kernels.h"

/* What one progress() may copy before it lets the worker look at its rings: 50 to 100 us. */
#define TURN_BYTES COPY_MAX_OP_BYTES
#define TURN_OPS   128u

/* Measured, random blocks of cold memory: four blocks at a time with non-temporal stores gain 5 to
 * 30 % from 1 KiB to below 8 KiB, and prefetching the op after the next 30 to 50 % below 2 KiB;
 * longer ops gain from neither. */
#define QUAD_MIN_BYTES     1024u
#define QUAD_MAX_BYTES     8191u
#define PREFETCH_MAX_BYTES 2047u
#define PREFETCH_AHEAD     2u
#define PREFETCH_LINES     8u
#define LINE               64u

static struct copy_slot *dom_slot(struct kvx_dom *dom, uint32_t index)
{
	return &dom->ring[index % COPY_RING_OPS];
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
	if (op->len_bytes == 0 || op->len_bytes > COPY_MAX_OP_BYTES)
		return -EINVAL;
	if (op->local->id == 0 || remote->id == 0)
		return -EOWNERDEAD;
	if (!range_fits(op->local_offset, op->len_bytes, op->local->len_bytes) ||
	    !range_fits(op->remote_offset, op->len_bytes, remote->len_bytes))
		return -ERANGE;
	return (remote->rights & right) ? 0 : -EACCES;
}

int copy_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n)
{
	struct kvx_dom *dom = ep->dom;
	unsigned taken = 0;
	if (ep->fenced)
		return -ESHUTDOWN;
	for (; taken < n && dom->head - dom->tail < COPY_RING_OPS; taken++) {
		const struct kvx_op *op = &ops[taken];
		struct copy_slot *slot = dom_slot(dom, dom->head++);
		*slot = (struct copy_slot){.op = *op, .ep = ep, .remote = op->remote->mr};
		op->local->n_refs++;
		slot->remote->n_refs++;
		ep->n_open++;
	}
	return (int)taken;
}

/* Source and destination of a slot that op_check() has passed. */
static void slot_ends(const struct copy_slot *slot, uint8_t **out_dst, const uint8_t **out_src)
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

static void slot_copy(const struct kvx_dom *dom, const struct copy_slot *slot)
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

static void slot_prefetch(const struct kvx_dom *dom, const struct copy_slot *slot)
{
	uint64_t len = slot->op.len_bytes;
	uint8_t *dst;
	const uint8_t *src;
	if (slot->state == COPY_SLOT_DONE || len > PREFETCH_MAX_BYTES)
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
		const struct copy_slot *slot = dom_slot(dom, at + i);
		if (slot->state == COPY_SLOT_DONE || slot->op.len_bytes != len)
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
		struct copy_slot *slot = dom_slot(dom, at);
		if (slot->state == COPY_SLOT_DONE) {
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
		struct copy_slot *slot = dom_slot(dom, until++);
		slot->status = slot->ep->fenced ? -ECANCELED : op_check(&slot->op, slot->remote);
		if (slot->status == 0 && dom->blame && slot->op.cookie == dom->fault_cookie)
			slot->status = -EFAULT;
		slot->state = slot->status == 0 ? COPY_SLOT_WAITING : COPY_SLOT_DONE;
		bytes += slot->op.len_bytes;
	}
	dom->at = dom->copied;
	dom->until = until;
}

/* A fault at dom->at. Within a group of four any may be to blame: they are tried again alone. */
static void dom_fault(struct kvx_dom *dom)
{
	uint32_t at = dom->at;
	struct copy_slot *slot = dom_slot(dom, at);
	if ((int32_t)(dom->one_by_one - at) <= 0) {
		dom->one_by_one = at + 4;
		return;
	}
	dom->blame = true;
	dom->fault_cookie = slot->op.cookie;
	for (uint32_t i = at; i != dom->until; i++) {
		slot = dom_slot(dom, i);
		if (slot->state == COPY_SLOT_WAITING && slot->op.cookie == dom->fault_cookie) {
			slot->state = COPY_SLOT_DONE;
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
		struct copy_slot *slot = dom_slot(dom, dom->tail);
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
		copy_mr_unref(slot->op.local);
		copy_mr_unref(slot->remote);
	}
	if (dom->tail == dom->head)
		dom->blame = false; /* the cookie may be used for another batch from now on */
	return (int)n;
}

int copy_progress(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max)
{
	if (dom->head == dom->tail)
		return 0;
	if (dom->copied == dom->tail)
		dom_copy_turn(dom);
	return dom_report(dom, events, max);
}

int copy_arm(struct kvx_dom *dom)
{
	return dom->head == dom->tail ? 0 : -EAGAIN;
}
