/* GPU memory for tests of the verbs backend on the stand-in for libibverbs: allocations of made-up
 * GPUs (1..) are files that two mappings show, one for the CPU and one, that nobody may touch,
 * whose address is the device's. Regions of several segments in them, with witnesses; and the table
 * by which a domain gets memory to flush by. One thread. */
#ifndef KVX_VERBS_GPU_RIG_H
#define KVX_VERBS_GPU_RIG_H

#include <stdatomic.h>
#include <sys/stat.h>

#include "mem/gpu.h"
#include "verbs_rig.h"

#define GPU_BYTES      (256u << 10) /* of a region */
#define GPU_MAX_ALLOCS 64u
#define GPU_SLACK      8192u /* of each file, behind what was asked for */
#define GPU_RW         (KVX_ACCESS_READ | KVX_ACCESS_WRITE)

struct gpu_alloc {
	int fd; /* -1: free */
	unsigned gpu;
	uint64_t len_bytes, fd_offset;
	uint8_t *bytes, *addr; /* of the allocation's begin */
	uint8_t *map, *map_addr;
	size_t map_len;
	ino_t ino;
};
static struct gpu_alloc gpu_allocs[GPU_MAX_ALLOCS];
static _Atomic unsigned n_flush_asked;
static bool gpu_has_flush;
static uint64_t gpu_flush_off; /* its dma-buf and address lead so much too far */
static int gpu_copier_error;
static unsigned gpu_busy; /* so many calls of the table say so first */
static _Atomic unsigned n_home_reads;
static struct gpu_alloc *gpu_flush_memory[8]; /* by GPU */

static inline unsigned gpu_of_fd(int fd)
{
	struct stat st;

	for (unsigned i = 0; i < GPU_MAX_ALLOCS; i++)
		if (gpu_allocs[i].fd >= 0 && fstat(fd, &st) == 0 && st.st_ino == gpu_allocs[i].ino)
			return gpu_allocs[i].gpu;
	return 0;
}

static inline unsigned gpu_of_addr(const void *addr, uint8_t **out_bytes)
{
	const uint8_t *at = addr;

	for (unsigned i = 0; i < GPU_MAX_ALLOCS; i++) {
		const struct gpu_alloc *a = &gpu_allocs[i];

		if (a->fd < 0 || at < a->map_addr || at >= a->map_addr + a->map_len)
			continue;
		*out_bytes = a->map + (at - a->map_addr);
		return a->gpu;
	}
	return 0;
}

static const struct fake_verbs_gpus gpu_table = {gpu_of_fd, gpu_of_addr};

static inline struct gpu_alloc *gpu_alloc(unsigned gpu, uint64_t len_bytes, uint64_t fd_offset)
{
	struct gpu_alloc *a = gpu_allocs;
	struct stat st;

	while (a->fd >= 0)
		a++;
	*a = (struct gpu_alloc){.gpu = gpu, .len_bytes = len_bytes, .fd_offset = fd_offset};
	a->map_len = (fd_offset + len_bytes + GPU_SLACK + 4095) & ~4095ull;
	a->fd = memfd_create("gpu", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(a->fd, (off_t)a->map_len), 0);
	a->map = mmap(NULL, a->map_len, PROT_READ | PROT_WRITE, MAP_SHARED, a->fd, 0);
	a->map_addr = mmap(NULL, a->map_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cr_assert(a->map != MAP_FAILED && a->map_addr != MAP_FAILED);
	a->bytes = a->map + fd_offset;
	a->addr = a->map_addr + fd_offset;
	cr_assert_eq(fstat(a->fd, &st), 0);
	a->ino = st.st_ino;
	return a;
}

static inline void gpu_free(struct gpu_alloc *a)
{
	munmap(a->map, a->map_len);
	munmap(a->map_addr, a->map_len);
	close(a->fd);
	a->fd = -1;
}

static inline bool gpu_rig_is_busy(void)
{
	return gpu_busy > 0 && gpu_busy-- > 0;
}

/* device: the number of the GPU, as a pointer. */
static inline int gpu_rig_flush(void *device, struct kvx_gpu_flush *out_flush)
{
	struct gpu_alloc **a = &gpu_flush_memory[(uintptr_t)device];

	if (gpu_rig_is_busy())
		return -EBUSY;
	n_flush_asked++;
	if (!gpu_has_flush)
		return -EOPNOTSUPP;
	if (*a == NULL) {
		*a = gpu_alloc((unsigned)(uintptr_t)device, 4096, 0);
		memset((*a)->bytes, 0x3c, KVX_GPU_FLUSH_MARK_BYTES);
	}
	*out_flush = (struct kvx_gpu_flush){.addr = (uintptr_t)(*a)->addr,
					    .len_bytes = 4096,
					    .fd = (*a)->fd,
					    .fd_offset = gpu_flush_off};
	if (gpu_flush_off > 0)
		out_flush->addr += gpu_flush_off;
	memset(out_flush->mark, 0x3c, sizeof(out_flush->mark));
	return 0;
}

/* What the home sees: copies that are done at once. */
static inline int gpu_rig_host_alloc(void *device, size_t bytes, void **out_addr)
{
	if (gpu_rig_is_busy())
		return -EBUSY;
	*out_addr = calloc(1, bytes);
	return *out_addr != NULL ? 0 : -ENOMEM;
}

static inline void gpu_rig_host_free(void *device, void *addr)
{
	free(addr);
}

static inline int gpu_rig_copier_open(void *device, unsigned n_tickets,
				      struct kvx_gpu_copier **out_copier)
{
	if (gpu_copier_error < 0 || gpu_rig_is_busy())
		return gpu_copier_error < 0 ? gpu_copier_error : -EBUSY;
	*out_copier = calloc(1, 1);
	return *out_copier != NULL ? 0 : -ENOMEM;
}

static inline void gpu_rig_copier_close(struct kvx_gpu_copier *copier)
{
	free(copier);
}

static inline int gpu_rig_copier_start(struct kvx_gpu_copier *copier,
				       const struct kvx_gpu_piece *pieces, unsigned n,
				       unsigned *out_ticket)
{
	for (unsigned i = 0; i < n; i++) {
		uint8_t *bytes = NULL;

		cr_assert_neq(gpu_of_addr((void *)(uintptr_t)pieces[i].src, &bytes), 0);
		memcpy((void *)(uintptr_t)pieces[i].dst, bytes, pieces[i].len_bytes);
		n_home_reads++;
	}
	*out_ticket = 0;
	return 0;
}

static inline int gpu_rig_copier_poll(struct kvx_gpu_copier *copier, unsigned ticket)
{
	return 1;
}

static const struct kvx_gpu_access gpu_rig_access = {.flush_memory = gpu_rig_flush,
						     .host_alloc = gpu_rig_host_alloc,
						     .host_free = gpu_rig_host_free,
						     .copier_open = gpu_rig_copier_open,
						     .copier_close = gpu_rig_copier_close,
						     .copier_start = gpu_rig_copier_start,
						     .copier_poll = gpu_rig_copier_poll};

/* After rig_reset() or fake_verbs_reset(). */
static inline void gpu_rig_init(void)
{
	for (unsigned i = 0; i < GPU_MAX_ALLOCS; i++)
		gpu_allocs[i].fd = -1;
	memset(gpu_flush_memory, 0, sizeof(gpu_flush_memory));
	n_flush_asked = 0;
	gpu_has_flush = true;
	gpu_flush_off = 0;
	gpu_copier_error = 0;
	gpu_busy = 0;
	n_home_reads = 0;
	fake_verbs_set_gpus(&gpu_table);
	kvx_log_set_level(KVX_LOG_ERROR); /* what is not taken is said so */
}

static inline void gpu_rig_fini(void)
{
	for (unsigned i = 0; i < GPU_MAX_ALLOCS; i++)
		if (gpu_allocs[i].fd >= 0)
			gpu_free(&gpu_allocs[i]);
}

/* A region. */
struct gmem {
	struct kvx_mem mem;
	struct gpu_alloc *allocs[GPU_MAX_ALLOCS];
	struct kvx_mr *mr;
	struct kvx_rkey *rkey; /* at the other side */
};

/* The byte at an offset, as the CPU may look at it. */
static inline uint8_t *gmem_at(const struct gmem *g, uint64_t offset)
{
	const struct kvx_gpu_segment *s =
	    &g->mem.gpu->segments[kvx_gpu_mem_find(g->mem.gpu, offset)];

	return g->allocs[s->base]->bytes + s->offset + (offset - s->start);
}

static inline void gmem_fill(const struct gmem *g, uint64_t seed)
{
	uint8_t *bytes = malloc(g->mem.len_bytes);

	test_fill(bytes, g->mem.len_bytes, seed);
	for (uint64_t i = 0; i < g->mem.len_bytes; i++)
		*gmem_at(g, i) = bytes[i];
	free(bytes);
}

/* What the owner sees at some places, the first and the last among them. */
static inline void gmem_witness(struct gmem *g)
{
	struct kvx_gpu_mem *gpu = g->mem.gpu;

	gpu->n_witnesses = KVX_GPU_MAX_WITNESSES;
	for (uint32_t i = 0; i < gpu->n_witnesses; i++) {
		struct kvx_gpu_witness *w = &gpu->witnesses[i];
		const struct kvx_gpu_segment *s =
		    &gpu->segments[(uint64_t)i * (gpu->n_segments - 1) / (gpu->n_witnesses - 1)];

		w->offset = s->start + (i % 2) * (s->len_bytes - KVX_GPU_WITNESS_BYTES);
		for (unsigned k = 0; k < KVX_GPU_WITNESS_BYTES; k++)
			w->bytes[k] = *gmem_at(g, w->offset + k);
	}
}

/* n_segments of unlike sizes in n_bases allocations of one GPU, with gaps between them; by
 * dma-buf. Segments of one allocation follow each other in the region when it has only one. */
static inline void gmem_make(struct gmem *g, unsigned gpu, uint32_t n_bases, uint32_t n_segments,
			     uint64_t gap)
{
	struct kvx_why why = {""};
	uint64_t left = GPU_BYTES, used[GPU_MAX_ALLOCS] = {0};

	memset(g, 0, sizeof(*g));
	kvx_mem_init(&g->mem, &kvx_mem_cuda_ops, -1, 0, GPU_BYTES);
	g->mem.gpu = kvx_gpu_mem_create(n_bases, n_segments);
	kvx_gpu_pci_normalise("0000:11:00.0", g->mem.gpu->id.pci);
	for (uint32_t i = 0; i < n_segments; i++) {
		uint32_t base = i % n_bases;
		uint64_t even = left / (n_segments - i);
		uint64_t len = i + 1 == n_segments ? left : even - even / 7;

		g->mem.gpu->segments[i] = (struct kvx_gpu_segment){
		    .base = base, .offset = 512 + used[base], .len_bytes = len};
		used[base] += len + gap;
		left -= len;
	}
	for (uint32_t i = 0; i < n_bases; i++) {
		struct gpu_alloc *a = gpu_alloc(gpu, used[i] + 1024, 256 * (uint64_t)i);

		g->allocs[i] = a;
		g->mem.gpu->bases[i] = (struct kvx_gpu_base){.len_bytes = a->len_bytes,
							     .addr = (uintptr_t)a->addr,
							     .fd = dup(a->fd),
							     .fd_offset = a->fd_offset};
	}
	g->mem.gpu->access = &gpu_rig_access;
	g->mem.gpu->device = (void *)(uintptr_t)gpu;
	cr_assert_eq(g->mem.ops->check(&g->mem, &why), 0, "%s", why.text);
	gmem_fill(g, 7 + gpu);
	gmem_witness(g);
}

/* No dma-bufs of it: by its address only. */
static inline void gmem_drop_fds(struct gmem *g)
{
	for (uint32_t i = 0; i < g->mem.gpu->n_bases; i++) {
		close(g->mem.gpu->bases[i].fd);
		g->mem.gpu->bases[i].fd = -1;
	}
}

static inline void gmem_free(struct gmem *g)
{
	for (uint32_t i = 0; i < g->mem.gpu->n_bases; i++)
		gpu_free(g->allocs[i]);
	kvx_mem_fini(&g->mem);
}

static inline int gmem_reg(struct gmem *g, struct side *s, uint32_t tenant, uint32_t rights)
{
	return T->mem_reg(s->dom, tenant, &g->mem, rights, &g->mr);
}

static inline void gmem_dereg(struct gmem *g)
{
	T->mem_dereg(g->mr);
	g->mr = NULL;
}

/* s learns of it. */
static inline void gmem_import(struct gmem *g, struct side *s)
{
	static uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	int len = T->mkey_pack(g->mr, mkey, sizeof(mkey));

	cr_assert_gt(len, 0);
	cr_assert_eq(T->rkey_unpack(s->ep, mkey, (size_t)len, &g->rkey), 0);
}

static inline void gmem_forget(struct gmem *g)
{
	T->rkey_free(g->rkey);
	g->rkey = NULL;
}

#endif
