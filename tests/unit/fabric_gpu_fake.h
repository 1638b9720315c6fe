/* GPUs as the fabric backend sees them, made of host memory: a table whose copies are made when the
 * test lets them end, so that what is "under way" is under way, and nothing of it has landed. And a
 * fabric pair whose sides have memory of such devices. Include after fabric_pair.h. */
#ifndef FABRIC_GPU_FAKE_H
#define FABRIC_GPU_FAKE_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "mem/gpu.h"

#define FAKE_TICKETS 64u
#define FAKE_PIECES  128u
#define FAKE_HOSTS   256u

struct fake_ticket {
	bool out;
	unsigned n;
	struct kvx_gpu_piece pieces[FAKE_PIECES];
};
struct kvx_gpu_copier {
	struct fake_gpu *gpu;
	struct fake_ticket tickets[FAKE_TICKETS];
};

/* Knobs are set by the test while nothing else runs, but for the counts of what helpers do. */
struct fake_gpu {
	uint64_t hold_until_ns; /* copies end no sooner */
	unsigned n_may_end;     /* ... but so many of them may: any time */
	unsigned max_tickets;   /* 0: as opened */
	bool lost;              /* start says so at once, poll once it is reset */
	uint64_t reset_ns;      /* from when on */
	uint64_t reset_takes_ns;
	int fail_copy; /* the next copy ends so */
	_Atomic int fail_open, fail_alloc;
	bool block_alloc;
	_Atomic unsigned n_copiers, n_hosts, n_allocs;
	_Atomic size_t host_bytes, max_host_bytes;
	unsigned n_out, max_out, n_started, n_ended, n_polls, n_cuts;
	pthread_mutex_t lock;
	void *hosts[FAKE_HOSTS];
	size_t host_lens[FAKE_HOSTS];
};

static inline int fake_host_alloc(void *device, size_t bytes, void **out_addr)
{
	struct fake_gpu *gpu = device;
	unsigned i = 0;

	if (atomic_load(&gpu->fail_alloc) != 0)
		return atomic_load(&gpu->fail_alloc);
	pthread_mutex_lock(&gpu->lock);
	while (gpu->hosts[i] != NULL)
		i++;
	gpu->hosts[i] = aligned_alloc(4096, (bytes + 4095) & ~(size_t)4095);
	gpu->host_lens[i] = bytes;
	*out_addr = gpu->hosts[i];
	pthread_mutex_unlock(&gpu->lock);
	atomic_fetch_add(&gpu->n_hosts, 1);
	atomic_fetch_add(&gpu->n_allocs, 1);
	size_t now = atomic_fetch_add(&gpu->host_bytes, bytes) + bytes;
	if (now > atomic_load(&gpu->max_host_bytes))
		atomic_store(&gpu->max_host_bytes, now);
	return 0;
}

static inline void fake_host_free(void *device, void *addr)
{
	struct fake_gpu *gpu = device;
	unsigned i = 0;

	pthread_mutex_lock(&gpu->lock);
	while (i < FAKE_HOSTS && gpu->hosts[i] != addr)
		i++;
	cr_assert_lt(i, FAKE_HOSTS, "a buffer that is none is freed");
	atomic_fetch_sub(&gpu->host_bytes, gpu->host_lens[i]);
	gpu->hosts[i] = NULL;
	pthread_mutex_unlock(&gpu->lock);
	atomic_fetch_sub(&gpu->n_hosts, 1);
	memset(addr, 0xdd, 64); /* who still uses it sees it */
	free(addr);
}

static inline int fake_copier_open(void *device, unsigned n_tickets,
				   struct kvx_gpu_copier **out_copier)
{
	struct fake_gpu *gpu = device;

	cr_assert_leq(n_tickets, FAKE_TICKETS);
	if (atomic_load(&gpu->fail_open) != 0)
		return atomic_load(&gpu->fail_open);
	*out_copier = calloc(1, sizeof(**out_copier));
	(*out_copier)->gpu = gpu;
	atomic_fetch_add(&gpu->n_copiers, 1);
	return 0;
}

static inline void fake_copier_close(struct kvx_gpu_copier *copier)
{
	for (unsigned i = 0; i < FAKE_TICKETS; i++)
		cr_assert_not(copier->tickets[i].out, "closed under a copy");
	atomic_fetch_sub(&copier->gpu->n_copiers, 1);
	free(copier);
}

static inline int fake_copier_start(struct kvx_gpu_copier *copier,
				    const struct kvx_gpu_piece *pieces, unsigned n,
				    unsigned *out_ticket)
{
	struct fake_gpu *gpu = copier->gpu;
	unsigned max = gpu->max_tickets > 0 ? gpu->max_tickets : FAKE_TICKETS, i = 0;

	cr_assert(n > 0 && n <= FAKE_PIECES);
	if (gpu->lost)
		return -ENODEV;
	while (i < max && copier->tickets[i].out)
		i++;
	if (i == max)
		return -EAGAIN;
	copier->tickets[i].out = true;
	copier->tickets[i].n = n;
	memcpy(copier->tickets[i].pieces, pieces, n * sizeof(*pieces));
	gpu->n_started++;
	if (++gpu->n_out > gpu->max_out)
		gpu->max_out = gpu->n_out;
	*out_ticket = i;
	return 0;
}

/* One end of each piece is in a buffer that is still there. */
static inline void fake_check_piece(struct fake_gpu *gpu, const struct kvx_gpu_piece *piece)
{
	bool found = false;

	pthread_mutex_lock(&gpu->lock);
	for (unsigned i = 0; i < FAKE_HOSTS; i++) {
		uint64_t base = (uintptr_t)gpu->hosts[i], end = base + gpu->host_lens[i];

		if (base == 0)
			continue;
		found |= piece->dst >= base && piece->dst + piece->len_bytes <= end;
		found |= piece->src >= base && piece->src + piece->len_bytes <= end;
	}
	pthread_mutex_unlock(&gpu->lock);
	cr_assert(found, "a copy between memory that is not page-locked");
}

static inline int fake_end(struct fake_gpu *gpu, struct fake_ticket *t, int status)
{
	t->out = false;
	gpu->n_out--;
	gpu->n_ended++;
	for (unsigned i = 0; i < t->n && status > 0; i++) {
		fake_check_piece(gpu, &t->pieces[i]);
		memcpy((void *)(uintptr_t)t->pieces[i].dst,
		       (const void *)(uintptr_t)t->pieces[i].src, t->pieces[i].len_bytes);
	}
	return status;
}

static inline int fake_copier_poll(struct kvx_gpu_copier *copier, unsigned ticket)
{
	struct fake_gpu *gpu = copier->gpu;
	struct fake_ticket *t = &copier->tickets[ticket];
	int status = 1;

	cr_assert(t->out, "a ticket is polled that is not out");
	gpu->n_polls++;
	if (gpu->lost)
		return kvx_now_ns() < gpu->reset_ns ? 0 : fake_end(gpu, t, -ENODEV);
	if (gpu->n_may_end > 0)
		gpu->n_may_end--;
	else if (kvx_now_ns() < gpu->hold_until_ns)
		return 0;
	if (gpu->fail_copy != 0) {
		status = gpu->fail_copy;
		gpu->fail_copy = 0;
	}
	return fake_end(gpu, t, status);
}

static inline void fake_lose(struct fake_gpu *gpu)
{
	gpu->lost = true;
	gpu->reset_ns = kvx_now_ns() + gpu->reset_takes_ns;
}

static inline void fake_copier_cut(struct kvx_gpu_copier *copier)
{
	copier->gpu->n_cuts++;
	if (!copier->gpu->lost)
		fake_lose(copier->gpu);
}

static const struct kvx_gpu_access fake_access = {
    .host_alloc = fake_host_alloc,
    .host_free = fake_host_free,
    .copier_open = fake_copier_open,
    .copier_close = fake_copier_close,
    .copier_start = fake_copier_start,
    .copier_poll = fake_copier_poll,
    .copier_cut = fake_copier_cut,
};

#define FAKE_FOREVER UINT64_MAX

static inline void fake_hold(struct fake_gpu *gpu)
{
	gpu->hold_until_ns = FAKE_FOREVER;
}
static inline void fake_release(struct fake_gpu *gpu)
{
	gpu->hold_until_ns = 0;
}
static inline void fake_hold_ms(struct fake_gpu *gpu, unsigned ms)
{
	gpu->hold_until_ns = kvx_now_ns() + ms * KVX_MS;
}

/* ---- memory of it */

/* REGION_BYTES of device memory in n segments, which lie in it the other way round. */
struct gpu_region {
	struct kvx_mem mem;
	struct kvx_mr *mr;
	struct fake_gpu *gpu; /* NULL: memory of the host */
	uint8_t *bytes;
};

static inline void gpu_region_cut(struct gpu_region *r, unsigned n_segments)
{
	struct kvx_gpu_mem *gpu = kvx_gpu_mem_create(2, n_segments);
	uint64_t at = 0, end = REGION_BYTES;

	for (unsigned i = 0; i < n_segments; i++) {
		uint64_t len = i + 1 == n_segments
				   ? REGION_BYTES - at
				   : REGION_BYTES / n_segments + (i % 2 ? 661u : 0) - 331;

		end -= len;
		gpu->segments[i] = (struct kvx_gpu_segment){at, len, end, i % 2};
		if (i % 2 == 1)
			gpu->segments[i].offset += 4096; /* the second base begins before */
		at += len;
	}
	gpu->bases[0].addr = (uintptr_t)r->bytes;
	gpu->bases[1].addr = (uintptr_t)r->bytes - 4096;
	gpu->access = &fake_access;
	gpu->device = r->gpu;
	r->mem.gpu = gpu;
	r->mem.ops = &kvx_mem_cuda_ops;
}

/* gpu NULL: memory of the host. */
static inline void gpu_region_open(struct gpu_region *r, struct kvx_dom *dom, struct fake_gpu *gpu,
				   unsigned n_segments, int seed)
{
	memset(r, 0, sizeof(*r));
	r->gpu = gpu;
	r->bytes =
	    mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cr_assert_neq(r->bytes, MAP_FAILED);
	for (size_t i = 0; i < REGION_BYTES; i++)
		r->bytes[i] = (uint8_t)((i * 2654435761u >> 13) + (unsigned)seed);
	r->mem.fd = -1;
	r->mem.len_bytes = REGION_BYTES;
	r->mem.page_bytes = 4096;
	if (gpu != NULL) {
		gpu_region_cut(r, n_segments);
	} else {
		r->mem.ops = &kvx_mem_host_ops;
		r->mem.addr = r->bytes;
	}
	cr_assert_eq(T->mem_reg(dom, 0, &r->mem, KVX_ACCESS_READ | KVX_ACCESS_WRITE, &r->mr), 0);
}

static inline void gpu_region_close(struct gpu_region *r)
{
	if (r->mr != NULL)
		T->mem_dereg(r->mr);
	kvx_gpu_mem_destroy(r->mem.gpu);
	munmap(r->bytes, REGION_BYTES);
	memset(r, 0, sizeof(*r));
}

/* [offset, offset + len) of the region, to or from a run of bytes. */
static inline void gpu_region_move(struct gpu_region *r, uint64_t offset, uint8_t *run,
				   uint64_t len, bool out)
{
	while (len > 0) {
		uint64_t room = len;
		uint8_t *at = r->bytes + offset;

		if (r->gpu != NULL)
			at = (uint8_t *)(uintptr_t)kvx_gpu_mem_addr(r->mem.gpu, offset, &room);
		room = room < len ? room : len;
		memcpy(out ? run : at, out ? at : run, room);
		offset += room;
		run += room;
		len -= room;
	}
}

static inline uint8_t *gpu_region_image(struct gpu_region *r)
{
	uint8_t *image = malloc(REGION_BYTES);

	gpu_region_move(r, 0, image, REGION_BYTES, true);
	return image;
}

/* ---- a pair whose sides have memory of devices: a of `ga`, b of `gb`; NULL: of the host */

struct gpu_pair {
	struct pair p;
	struct fake_gpu ga, gb;
	struct gpu_region ra, rb;
};

static inline void gpu_pair_conf(struct gpu_pair *g, const char *provider)
{
	memset(g, 0, sizeof(*g));
	pair_conf(&g->p, provider, UINT64_MAX);
	g->p.conf.fabric_queue = 8;
	g->p.conf.gpu.bounce_bytes = 64 << 20;
	g->p.conf.gpu.bounce_slots = 4;
	g->p.conf.gpu.fence_timeout_ms = 5000;
	pthread_mutex_init(&g->ga.lock, NULL);
	pthread_mutex_init(&g->gb.lock, NULL);
}

static inline void side_know(struct side *s, struct side *other, struct gpu_region *theirs)
{
	other->mr = theirs->mr;
	side_import(s, other);
}

static inline void gpu_pair_open(struct gpu_pair *g, bool gpu_a, bool gpu_b, unsigned n_segments)
{
	struct pair *p = &g->p;

	cr_assert_eq(kvx_guard_install(), 0);
	side_open(&p->a, &p->conf);
	side_open(&p->b, &p->conf);
	sides_connect(p);
	gpu_region_open(&g->ra, p->a.dom, gpu_a ? &g->ga : NULL, n_segments, 1);
	gpu_region_open(&g->rb, p->b.dom, gpu_b ? &g->gb : NULL, n_segments, 2);
	side_know(&p->a, &p->b, &g->rb);
	side_know(&p->b, &p->a, &g->ra);
}

static inline void gpu_pair_open_default(struct gpu_pair *g, bool gpu_a, bool gpu_b)
{
	gpu_pair_conf(g, "tcp");
	gpu_pair_open(g, gpu_a, gpu_b, 3);
}

static inline void gpu_side_close(struct side *s, struct gpu_region *r)
{
	if (s->ep != NULL) {
		T->rkey_free(s->rkey);
		T->fence(s->ep);
	}
	gpu_region_close(r);
	if (s->ep != NULL)
		T->ep_close(s->ep);
	T->close(s->dom);
}

/* All that was made through the devices is gone with the domains. */
static inline void gpu_pair_close(struct gpu_pair *g)
{
	gpu_side_close(&g->p.a, &g->ra);
	gpu_side_close(&g->p.b, &g->rb);
	cr_assert_eq(g->ga.n_hosts + g->gb.n_hosts, 0, "buffers are left");
	cr_assert_eq(g->ga.n_copiers + g->gb.n_copiers, 0, "copiers are left");
	cr_assert_eq(g->ga.n_out + g->gb.n_out, 0);
}

static inline void pause_ms(unsigned ms)
{
	const struct timespec pause = {ms / 1000, (long)(ms % 1000) * 1000000};

	nanosleep(&pause, NULL);
}

#endif
