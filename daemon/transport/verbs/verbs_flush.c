/* What makes visible what RDMA wrote into GPU memory. The completion of an RDMA operation says
 * nothing of bytes that are still on their way over PCIe to the GPU; a read of the same GPU's
 * memory cannot overtake them. So each device has a little memory that holds nothing (see struct
 * kvx_gpu_access), registered for reading: peers read it after their writes, and this node reads it
 * by a loopback after its own reads (verbs_park.c). This file makes both and ends them. Helpers;
 * they may wait, but nobody inside of verbs_flush_enter() for a GPU. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/verbs/verbs_priv.h"

#define WAIT_NS     50000
#define WAIT_FOR_IT 400000u /* 20 s: more than a read may take */

static void flush_pause(void)
{
	static const struct timespec pause = {.tv_nsec = WAIT_NS};

	nanosleep(&pause, NULL);
}

void verbs_flush_enter(struct kvx_dom *dom)
{
	while (atomic_exchange_explicit(&dom->flush_taken, true, memory_order_acquire))
		flush_pause();
}

void verbs_flush_leave(struct kvx_dom *dom)
{
	atomic_store_explicit(&dom->flush_taken, false, memory_order_release);
}

/* --- loops */

static int loop_make(struct kvx_dom *dom, uint32_t tenant, struct verbs_loop *loop)
{
	struct ibv_pd *pd = verbs_dom_pd(dom, tenant);
	int err;

	if (pd == NULL)
		return -ENOMEM;
	verbs_pair_end(dom, &loop->pair);
	err = verbs_pair_make(dom, pd, dom->channel, VERBS_LOOP_DEPTH, IBV_ACCESS_LOCAL_WRITE,
			      &loop->pair);
	if (err < 0)
		return err;
	loop->n_flying = 0;
	atomic_store_explicit(&loop->ready, true, memory_order_release);
	return 0;
}

/* The tenant's loop, made at its first use. */
static int loop_get(struct kvx_dom *dom, uint32_t tenant, struct verbs_loop **out_loop)
{
	struct verbs_loop *loop = atomic_load_explicit(&dom->loops[tenant], memory_order_relaxed);
	int err = 0;

	if (loop == NULL) {
		loop = calloc(1, sizeof(*loop));
		if (loop == NULL)
			return -ENOMEM;
		atomic_store_explicit(&dom->loops[tenant], loop, memory_order_release);
	}
	if (!atomic_load_explicit(&loop->ready, memory_order_acquire))
		err = loop_make(dom, tenant, loop);
	if (err == 0)
		*out_loop = loop;
	return err;
}

static bool loop_is_needed(const struct kvx_dom *dom, uint32_t tenant)
{
	const struct verbs_flush *flush = dom->flushes;

	while (flush != NULL && flush->tenant != tenant)
		flush = flush->next;
	return flush != NULL;
}

void verbs_loop_mend(struct kvx_dom *dom, uint32_t tenant)
{
	struct verbs_loop *loop;
	int err = 0;

	if (atomic_load_explicit(&dom->loops[tenant], memory_order_acquire) == NULL)
		return;
	verbs_flush_enter(dom);
	if (loop_is_needed(dom, tenant))
		err = loop_get(dom, tenant, &loop);
	verbs_flush_leave(dom);
	if (err < 0)
		kvx_warn("verbs: %s: no loopback to flush reads into GPU memory by: %s; lanes with "
			 "such reads fail until there is one",
			 dom->name, strerror(-err));
}

void verbs_loops_close(struct kvx_dom *dom)
{
	for (unsigned i = 0; i < KVX_MAX_TENANTS; i++) {
		struct verbs_loop *loop = atomic_load(&dom->loops[i]);

		if (loop != NULL)
			verbs_pair_end(dom, &loop->pair);
		free(loop);
		atomic_store(&dom->loops[i], NULL);
	}
	verbs_pairs_close(dom);
}

/* --- flushes */

static struct verbs_flush *flush_find(struct kvx_dom *dom, const void *device, uint32_t tenant)
{
	struct verbs_flush *flush = dom->flushes;

	while (flush != NULL &&
	       (flush->mr == NULL || flush->device != device || flush->tenant != tenant))
		flush = flush->next;
	return flush;
}

/* Its registration is looked at like any other. */
static int flush_look(struct verbs_flush *flush, struct ibv_pd *pd,
		      const struct kvx_gpu_flush *memory)
{
	const struct verbs_piece piece = {
	    .len_bytes = memory->len_bytes, .delta = flush->addr, .key = flush->mr->lkey};
	struct kvx_why why = {.text = ""};
	int err = verbs_flush_verify(flush->dom, pd, &piece, memory->mark, &why);

	if (err == 0)
		return 0;
	kvx_warn("verbs: %s: memory of a GPU to flush by is not used: %s", flush->dom->name,
		 why.text);
	verbs_mr_end(flush->dom, flush->mr);
	flush->mr = NULL;
	return err;
}

/* Memory of the device, that every peer may read. */
static int flush_register(struct verbs_flush *flush, const struct kvx_gpu_mem *gpu,
			  struct ibv_pd *pd)
{
	struct kvx_gpu_flush memory = {.fd = -1};
	struct kvx_gpu_base base;
	struct verbs_gpu_ask ask = {.base = &base,
				    .access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ};
	uint64_t until = kvx_now_ns() + VERBS_GPU_BUSY_NS;
	int err = -EOPNOTSUPP;

	do
		if (gpu->access->flush_memory != NULL)
			err = gpu->access->flush_memory(gpu->device, &memory);
	while (verbs_gpu_again(err, until));
	if (err < 0)
		return err;
	if (memory.len_bytes < VERBS_FLUSH_READ_BYTES)
		return -EOPNOTSUPP;
	base = (struct kvx_gpu_base){.len_bytes = memory.len_bytes,
				     .addr = memory.addr,
				     .fd = memory.fd,
				     .fd_offset = memory.fd_offset};
	ask.len_bytes = memory.len_bytes;
	flush->mr = verbs_gpu_mr(flush->dom, pd, &ask, &flush->addr);
	if (flush->mr == NULL)
		return -EOPNOTSUPP;
	err = flush_look(flush, pd, &memory);
	if (err < 0)
		return err;
	flush->rkey = flush->mr->rkey;
	flush->device = gpu->device;
	return 0;
}

/* The region's own first bytes: as good, where others may read it. */
static int flush_borrow(struct verbs_flush *flush, const struct kvx_mr *mr, struct kvx_why *why)
{
	const struct verbs_piece *piece = &mr->pieces[0];

	if (!(mr->rights & KVX_ACCESS_READ) || piece->len_bytes < VERBS_FLUSH_READ_BYTES)
		return kvx_why(why, -EOPNOTSUPP,
			       "its GPU gives no memory to flush writes by (see the log of its "
			       "device), and the region's own may not be read by others");
	flush->addr = piece->start + piece->delta;
	flush->rkey = mr->mrs[piece->mr]->rkey;
	return 0;
}

static int flush_create(const struct kvx_mr *mr, const struct kvx_gpu_mem *gpu, struct ibv_pd *pd,
			struct verbs_flush **out_flush, struct kvx_why *why)
{
	struct verbs_flush *flush = calloc(1, sizeof(*flush));
	int err = 0;

	if (flush == NULL)
		return kvx_why(why, -ENOMEM, "out of memory");
	flush->dom = mr->dom;
	flush->tenant = mr->tenant;
	flush->n_users = 1;
	if (flush_register(flush, gpu, pd) < 0)
		err = flush_borrow(flush, mr, why);
	if (err < 0)
		free(flush);
	else
		*out_flush = flush;
	return err;
}

/* The tenant's loop, and the flush that is there already, if any, in mr->flush. */
static int flush_share(struct kvx_mr *mr, const struct kvx_gpu_mem *gpu,
		       struct verbs_loop **out_loop)
{
	int err = loop_get(mr->dom, mr->tenant, out_loop);

	if (err < 0)
		return err;
	mr->flush = flush_find(mr->dom, gpu->device, mr->tenant);
	if (mr->flush != NULL)
		mr->flush->n_users++;
	return 0;
}

/* Gives the one that is to be used: there may be one of the device and tenant by now. */
static struct verbs_flush *flush_add(struct verbs_flush *flush)
{
	struct kvx_dom *dom = flush->dom;
	struct verbs_flush *other = NULL;

	verbs_flush_enter(dom);
	if (flush->mr != NULL)
		other = flush_find(dom, flush->device, flush->tenant);
	if (other != NULL) {
		other->n_users++;
	} else {
		flush->id = ++dom->n_flushes;
		flush->next = dom->flushes;
		dom->flushes = flush;
	}
	verbs_flush_leave(dom);
	return other != NULL ? other : flush;
}

int verbs_flush_get(struct kvx_mr *mr, const struct kvx_gpu_mem *gpu, struct ibv_pd *pd,
		    struct kvx_why *why)
{
	struct kvx_dom *dom = mr->dom;
	struct verbs_flush *flush = NULL;
	struct verbs_loop *loop = NULL;
	int err;

	verbs_flush_enter(dom);
	err = flush_share(mr, gpu, &loop);
	verbs_flush_leave(dom);
	if (err < 0)
		return kvx_why(why, -EOPNOTSUPP, "there is no loopback to flush its memory by: %s",
			       strerror(-err));
	if (mr->flush != NULL)
		return 0;
	/* A device that hangs must not hold up lanes: outside. */
	err = flush_create(mr, gpu, pd, &flush, why);
	if (err < 0)
		return err;
	flush->loop = loop;
	mr->flush = flush_add(flush);
	if (mr->flush != flush) { /* another thread was first */
		verbs_mr_end(dom, flush->mr);
		free(flush);
	}
	return 0;
}

/* Whether it was the last user's. */
static bool flush_unlink(struct verbs_flush *flush)
{
	struct verbs_flush **at = &flush->dom->flushes;

	if (--flush->n_users > 0)
		return false;
	while (*at != flush)
		at = &(*at)->next;
	*at = flush->next;
	return true;
}

/* Chains that need it are gone with the ops; a read may still be on the way. */
static bool flush_wait(const struct verbs_flush *flush)
{
	for (unsigned i = 0; i < WAIT_FOR_IT; i++) {
		if (!atomic_load_explicit(&flush->busy, memory_order_acquire))
			return true;
		flush_pause();
	}
	return false;
}

void verbs_flush_put(struct verbs_flush *flush)
{
	struct kvx_dom *dom;
	bool last;

	if (flush == NULL)
		return;
	dom = flush->dom;
	verbs_flush_enter(dom);
	last = flush_unlink(flush);
	verbs_flush_leave(dom);
	if (!last)
		return;
	last = flush_wait(flush);
	verbs_mr_end(dom, flush->mr);
	if (last)
		free(flush);
	else
		kvx_error("verbs: %s: a flush of GPU memory does not end", dom->name);
}

bool verbs_flush_place(const struct verbs_flush *flush, uint64_t *out_addr, uint32_t *out_rkey)
{
	if (flush->mr == NULL)
		return false;
	*out_addr = flush->addr;
	*out_rkey = flush->rkey;
	return true;
}
