/* The verbs stand-in's protection domains and memory: keys that differ for each side, ranges by
 * iova, dma-bufs (any fd that can be mapped). Any thread. */
#include "fake_verbs_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096u
#define ALLOWED                                                                                    \
	(IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |               \
	 IBV_ACCESS_RELAXED_ORDERING)

struct ibv_pd *ibv_alloc_pd(struct ibv_context *context)
{
	int err = fv_enter(FV_ALLOC_PD);
	struct fv_pd *pd;

	if (err == 0 && fv_dev_of(context)->fatal)
		err = EIO;
	if (err != 0)
		return fv_leave_null(err);
	pd = calloc(1, sizeof(*pd));
	if (pd == NULL)
		return fv_leave_null(ENOMEM);
	pd->pd.context = context;
	fv_object_init(&pd->obj, FV_K_PD);
	fv_ctx_of(context)->n_children++;
	fv.count.pds++;
	fv_unlock();
	return &pd->pd;
}

int ibv_dealloc_pd(struct ibv_pd *ibpd)
{
	struct fv_pd *pd = (struct fv_pd *)ibpd;
	int err = fv_enter(FV_DEALLOC_PD);

	if (!fv_alive(&pd->obj, FV_K_PD, "dealloc_pd"))
		return fv_leave(EINVAL);
	if (pd->n_users > 0) {
		fv_violate("dealloc_pd with %u MRs or QPs in it", pd->n_users);
		return fv_leave(EBUSY);
	}
	if (err != 0)
		return fv_leave(err);
	fv_ctx_of(pd->pd.context)->n_children--;
	fv.count.pds--;
	fv_object_end(&pd->obj);
	return fv_leave(0);
}

struct fv_mr *fv_key_find(uint32_t key, bool remote)
{
	uint32_t i = key >> 8;
	struct fv_mr *mr = i < FV_MAX_KEYS ? fv.keys[i] : NULL;

	if (mr == NULL || (remote ? mr->mr.rkey : mr->mr.lkey) != key)
		return NULL;
	return mr;
}

static int key_give(struct fv_mr *mr)
{
	for (uint32_t n = 0; n < FV_MAX_KEYS; n++) {
		uint32_t i = fv.n_keys++ % FV_MAX_KEYS;

		if (fv.keys[i] != NULL)
			continue;
		fv.next_tag = fv.next_tag * 1103515245u + 12345u;
		fv.keys[i] = mr;
		mr->mr.lkey = i << 8 | (fv.next_tag >> 16 & 0xfe);
		mr->mr.rkey = mr->mr.lkey | 1;
		return 0;
	}
	return ENOMEM;
}

static int mr_check(struct ibv_pd *pd, uint64_t length, uint64_t iova, unsigned access)
{
	struct fake_verbs_dev *dev = fv_dev_of(pd->context);

	if (!fv_alive(&((struct fv_pd *)pd)->obj, FV_K_PD, "reg_mr"))
		return EINVAL;
	if (dev->fatal)
		return EIO;
	if (length == 0 || length > dev->attr.max_mr_size || iova + length < iova)
		return EINVAL;
	if ((access & ~(unsigned)ALLOWED) != 0) {
		fv_violate("reg_mr with access 0x%x", access);
		return EINVAL;
	}
	if ((access & IBV_ACCESS_REMOTE_WRITE) && !(access & IBV_ACCESS_LOCAL_WRITE))
		return EINVAL;
	return 0;
}

static struct ibv_mr *mr_make(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova,
			      unsigned access)
{
	struct fv_mr *mr;
	int err = mr_check(pd, length, iova, access);

	if (err != 0)
		return fv_leave_null(err);
	mr = calloc(1, sizeof(*mr));
	if (mr == NULL)
		return fv_leave_null(ENOMEM);
	mr->mr.context = pd->context;
	mr->mr.pd = pd;
	mr->mr.addr = addr;
	mr->mr.length = length;
	mr->bytes = addr;
	mr->iova = iova;
	mr->access = (int)access;
	err = key_give(mr);
	if (err != 0) {
		free(mr);
		return fv_leave_null(err);
	}
	fv_object_init(&mr->obj, FV_K_MR);
	((struct fv_pd *)pd)->n_users++;
	fv.count.mrs++;
	fv_unlock();
	return &mr->mr;
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova,
				unsigned int access)
{
	int err = fv_enter(FV_REG_MR);
	uint8_t *bytes = addr;
	unsigned gpu = fv.gpus != NULL ? fv.gpus->of_addr(addr, &bytes) : 0;
	struct ibv_mr *mr;

	/* As the kernel has it. */
	if (err == 0 && (((uintptr_t)addr ^ iova) & (PAGE - 1)) != 0)
		err = EINVAL;
	if (err == 0 && gpu != 0 && !fv_dev_of(pd->context)->has_peermem)
		err = EFAULT;
	if (err != 0)
		return fv_leave_null(err);
	mr = mr_make(pd, addr, length, iova, access);
	if (mr == NULL)
		return NULL;
	((struct fv_mr *)mr)->bytes = bytes; /* nobody has its keys yet */
	((struct fv_mr *)mr)->gpu = gpu;
	return mr;
}

#undef ibv_reg_mr
struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access)
{
	return ibv_reg_mr_iova2(pd, addr, length, (uintptr_t)addr, (unsigned)access);
}

#undef ibv_reg_mr_iova
struct ibv_mr *ibv_reg_mr_iova(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova,
			       int access)
{
	return ibv_reg_mr_iova2(pd, addr, length, iova, (unsigned)access);
}

struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova,
				 int fd, int access)
{
	int err = fv_enter(FV_REG_DMABUF_MR);
	uint64_t off = fv_dev_of(pd->context)->dmabuf_off;
	uint64_t begin = (offset + off) & ~(uint64_t)(PAGE - 1);
	size_t map_len = length + (size_t)(offset + off - begin);
	unsigned gpu = fv.gpus != NULL ? fv.gpus->of_fd(fd) : 0;
	struct ibv_mr *mr;
	void *map;

	if (err == 0 && !fv_dev_of(pd->context)->has_dmabuf)
		err = EOPNOTSUPP;
	if (err == 0 && ((offset ^ iova) & (PAGE - 1)) != 0)
		err = EINVAL;
	if (err != 0)
		return fv_leave_null(err);
	map = mmap(NULL, map_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)begin);
	if (map == MAP_FAILED)
		return fv_leave_null(EBADF);
	mr = mr_make(pd, (uint8_t *)map + (offset + off - begin), length, iova, (unsigned)access);
	if (mr == NULL) {
		err = errno;
		munmap(map, map_len);
		errno = err;
		return NULL;
	}
	fv_lock();
	((struct fv_mr *)mr)->map = map;
	((struct fv_mr *)mr)->map_len = map_len;
	((struct fv_mr *)mr)->gpu = gpu;
	mr->addr = NULL;
	fv_unlock();
	return mr;
}

int ibv_dereg_mr(struct ibv_mr *ibmr)
{
	struct fv_mr *mr = (struct fv_mr *)ibmr;
	int err = fv_enter(FV_DEREG_MR);

	if (!fv_alive(&mr->obj, FV_K_MR, "dereg_mr"))
		return fv_leave(EINVAL);
	if (err != 0)
		return fv_leave(err);
	fv_wire_forget_mr(mr);
	fv.keys[mr->mr.lkey >> 8] = NULL;
	((struct fv_pd *)mr->mr.pd)->n_users--;
	fv.count.mrs--;
	if (mr->map != NULL)
		munmap(mr->map, mr->map_len);
	fv_object_end(&mr->obj);
	return fv_leave(0);
}

unsigned fake_verbs_gpu_mrs(void)
{
	unsigned n = 0;

	fv_lock();
	for (uint32_t i = 0; i < FV_MAX_KEYS; i++)
		n += fv.keys[i] != NULL && fv.keys[i]->gpu != 0;
	fv_unlock();
	return n;
}

void fake_verbs_set_gpus(const struct fake_verbs_gpus *gpus)
{
	fv_lock();
	fv.gpus = gpus;
	fv_unlock();
}

unsigned fake_verbs_access(const struct ibv_mr *mr)
{
	return (unsigned)((const struct fv_mr *)mr)->access;
}

unsigned fake_verbs_access_of_key(uint32_t rkey)
{
	unsigned access = 0;
	struct fv_mr *mr;

	fv_lock();
	mr = fv_key_find(rkey, true);
	if (mr != NULL)
		access = (unsigned)mr->access;
	fv_unlock();
	return access;
}

/* No compiler builtin and no libc: neither the sanitizers' interceptors nor their instrumentation
 * may see what a device does behind the CPU's back. */
void fv_dma(uint8_t *to, const uint8_t *from, uint64_t len)
{
#if defined(__x86_64__)
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(len) : : "memory");
#else
	volatile uint8_t *out = to;

	for (uint64_t i = 0; i < len; i++)
		out[i] = from[i];
#endif
}
