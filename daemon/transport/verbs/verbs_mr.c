/* Memory of a domain: registers regions of host memory with the device, in chunks where it takes no
 * more at once, and deregisters all. Registering pins memory and may take seconds: [mem] threads.
 * The rights of remote ends are those that the region's owner gave, nothing else: no atomics, no
 * memory windows, no paging on demand. GPU memory: verbs_gpu.c. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/log.h"
#include "transport/verbs/verbs_priv.h"

#define DEREG_TRIES      100u
#define DEREG_PAUSE_NS   100000000
#define CAP_IPC_LOCK_BIT 14

/* CAP_IPC_LOCK lifts the limit. */
static bool may_lock_all(void)
{
	struct rlimit limit;
	FILE *file;
	char line[256];
	bool may = false;

	if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY)
		return true;
	file = fopen("/proc/self/status", "re");
	while (file != NULL && fgets(line, sizeof(line), file) != NULL)
		if (strncmp(line, "CapEff:", 7) == 0)
			may = (strtoull(line + 7, NULL, 16) >> CAP_IPC_LOCK_BIT & 1) != 0;
	if (file != NULL)
		fclose(file);
	return may;
}

static void reg_complain(const struct kvx_mr *mr, const struct kvx_mem *mem, int error)
{
	const char *cure = "";

	switch (error) {
	case ENOMEM:
	case EPERM:
	case EAGAIN:
		cure = may_lock_all()
			   ? ": the kernel or the device has no room for it: register less, or "
			     "memory of larger pages"
			   : ": the limit of locked memory: set LimitMEMLOCK=infinity in "
			     "kvxferd.service (or ulimit -l), or give it CAP_IPC_LOCK";
		break;
	case EFAULT:
		cure = ": the memory is not there: was it truncated, or a hole punched?";
		break;
	default:
		break;
	}
	kvx_error("verbs: %s: registering %" PRIu64 " bytes of %s memory failed: %s%s",
		  mr->dom->name, mr->len_bytes, mem->ops->name, strerror(error), cure);
}

/* LOCAL_WRITE always: the owner may read into its own memory, which no right tells. */
int verbs_reg_access(uint32_t rights)
{
	int access = IBV_ACCESS_LOCAL_WRITE;

	if (rights & KVX_ACCESS_READ)
		access |= IBV_ACCESS_REMOTE_READ;
	if (rights & KVX_ACCESS_WRITE)
		access |= IBV_ACCESS_REMOTE_WRITE;
	return access;
}

void verbs_mr_end(struct kvx_dom *dom, struct ibv_mr *ibmr)
{
	static const struct timespec pause = {.tv_nsec = DEREG_PAUSE_NS};
	int rc = ibmr != NULL ? -EBUSY : 0;

	for (unsigned n = 0; rc != 0 && n < DEREG_TRIES; n++) {
		if (n > 0)
			nanosleep(&pause, NULL);
		rc = verbs_err(ibv_dereg_mr(ibmr));
		if (rc == -EIO && verbs_device_is_gone(dom->context))
			rc = 0; /* the kernel has taken it down with the device */
	}
	if (rc == 0)
		return;
	/* The owner will be told that nobody reaches its memory any more. Only the end of the
	 * process makes that true now. */
	kvx_error("verbs: %s: ibv_dereg_mr: %s: memory stays open to the network, so the daemon "
		  "ends",
		  dom->name, strerror(-rc));
	kvx_assert(rc == 0);
}

static void mr_free(struct kvx_mr *mr)
{
	verbs_flush_put(mr->flush); /* first: it may be in one of them */
	for (uint32_t i = 0; i < mr->n_mrs; i++)
		verbs_mr_end(mr->dom, mr->mrs[i]);
	free(mr->mrs);
	free(mr->pieces);
	free(mr);
}

static int chunk_reg(struct kvx_mr *mr, const struct kvx_mem *mem, struct ibv_pd *pd, uint32_t i)
{
	struct verbs_piece *piece = &mr->pieces[i];
	uint64_t iova = piece->start + piece->delta;
	int access = verbs_reg_access(mr->rights);
	struct ibv_mr *ibmr;

	errno = 0;
	ibmr = ibv_reg_mr_iova(pd, mem->addr + piece->start, piece->len_bytes, iova, access);
	if (ibmr == NULL) {
		int error = errno != 0 ? errno : ENOMEM;

		reg_complain(mr, mem, error);
		return verbs_err(error);
	}
	mr->mrs[i] = ibmr;
	piece->key = ibmr->lkey;
	return 0;
}

static int host_plan(struct kvx_mr *mr, const struct kvx_mem *mem)
{
	int n;

	mr->base = (uint32_t)((uintptr_t)mem->addr & VERBS_PAGE_MASK);
	mr->host = (uintptr_t)mem->addr - mr->base;
	if (mem->len_bytes == 0 || mem->len_bytes > UINT64_MAX / 2)
		return -EINVAL;
	n = verbs_chunks_plan(mr->dom->max_mr_bytes, mr->base + mr->len_bytes, &mr->chunk_shift);
	if (n < 0) {
		kvx_error("verbs: %s: a region of %" PRIu64 " bytes is too large: the device "
			  "registers %" PRIu64 " at once, kvxfer %u such pieces",
			  mr->dom->name, mr->len_bytes, mr->dom->max_mr_bytes, VERBS_MAX_CHUNKS);
		return n;
	}
	mr->n_pieces = mr->n_mrs = (uint32_t)n;
	return 0;
}

static int host_reg(struct kvx_mr *mr, const struct kvx_mem *mem, struct ibv_pd *pd)
{
	int rc = host_plan(mr, mem);

	if (rc < 0)
		return rc;
	mr->pieces = calloc(mr->n_pieces, sizeof(*mr->pieces));
	mr->mrs = calloc(mr->n_mrs, sizeof(struct ibv_mr *));
	if (mr->pieces == NULL || mr->mrs == NULL) {
		mr->n_mrs = 0;
		return -ENOMEM;
	}
	verbs_chunks_fill(mr->pieces, mr->n_pieces, mr->len_bytes, mr->base, mr->chunk_shift);
	for (uint32_t i = 0; rc == 0 && i < mr->n_mrs; i++)
		rc = chunk_reg(mr, mem, pd, i);
	return rc;
}

/* May this memory be registered here? */
static bool mem_is_ours(const struct kvx_dom *dom, const struct kvx_mem *mem)
{
	if (mem->gpu != NULL)
		return mem->gpu->access != NULL; /* else its home has not mapped it */
	return (dom->mem_kinds & (1u << mem->ops->kind)) != 0 && mem->addr != NULL;
}

int verbs_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem, uint32_t rights,
		  struct kvx_mr **out_mr)
{
	struct kvx_mr *mr;
	struct ibv_pd *pd;
	int rc;

	if (!mem_is_ours(dom, mem))
		return -EOPNOTSUPP;
	pd = verbs_dom_pd(dom, tenant);
	mr = pd != NULL ? calloc(1, sizeof(*mr)) : NULL;
	if (mr == NULL) {
		if (mem->gpu != NULL)
			verbs_gpu_complain(dom, mem->len_bytes, "the daemon has no memory left");
		return -ENOMEM;
	}
	mr->dom = dom;
	mr->tenant = tenant;
	mr->rights = rights;
	mr->len_bytes = mem->len_bytes;
	rc = mem->gpu != NULL ? verbs_gpu_reg(mr, mem, pd) : host_reg(mr, mem, pd);
	if (rc < 0) {
		mr_free(mr);
		return rc;
	}
	mr->hit = mr->pieces[0];
	kvx_counter_add_shared(&dom->counters.regs, 1);
	kvx_counter_add_shared(&dom->counters.reg_bytes, mr->len_bytes);
	*out_mr = mr;
	return 0;
}

void verbs_mem_dereg(struct kvx_mr *mr)
{
	if (mr == NULL)
		return;
	/* The counters wrap around to what is registered now. */
	kvx_counter_add_shared(&mr->dom->counters.regs, (uint64_t)-1);
	kvx_counter_add_shared(&mr->dom->counters.reg_bytes, (uint64_t)0 - mr->len_bytes);
	mr_free(mr);
}
