/* Memory of a domain. The first domain that a region comes to is its home, see transport.h: for
 * memory of this device that maps and verifies it, for memory of the host it page-locks it; every
 * other domain only notes where that is in this process, and makes sure that its device reaches it.
 * What may hang is a call of the control thread; such a call works on copies only, because the
 * region may be gone when it returns. [mem] helpers; keys: worker. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "transport/gpu/gpu_priv.h"

/* ---- mapping */

struct map_call {
	struct gpu_call call; /* first */
	struct kvx_dom *dom;
	struct kvx_why why;
	uint32_t n_bases, n_open, n_looks;
	struct map_base {
		uint8_t ipc[KVX_GPU_IPC_BYTES];
		uint64_t at_least;
		struct kvx_gpu_map *map;
	} * bases;
	struct map_look {
		uint32_t base;
		uint64_t offset; /* in the base */
		uint8_t bytes[KVX_GPU_WITNESS_BYTES];
	} looks[KVX_GPU_MAX_WITNESSES];
};

static struct map_call *map_of(struct gpu_call *call)
{
	return (struct map_call *)(void *)call;
}

static void map_call_free(struct map_call *m)
{
	free(m->bases);
	free(m);
}

static void map_undo(struct map_call *m)
{
	int err = 0;

	while (m->n_open > 0)
		err |= kvx_gpu_map_unref(m->dom->maps, m->bases[--m->n_open].map);
	if (err != 0)
		gpu_dom_lose(m->dom, kvx_gpu_code(), "a mapping cannot be closed");
}

static int map_verify(struct map_call *m)
{
	struct gpu_look looks[KVX_GPU_MAX_WITNESSES];

	for (uint32_t i = 0; i < m->n_looks; i++) {
		const struct map_look *look = &m->looks[i];

		looks[i].addr = m->bases[look->base].map->addr + look->offset;
		memcpy(looks[i].bytes, look->bytes, sizeof(looks[i].bytes));
	}
	return gpu_verify(m->dom, looks, m->n_looks, &m->why);
}

static int map_run(struct gpu_call *call)
{
	struct map_call *m = map_of(call);
	int err = 0;

	if (!gpu_dom_enter(m->dom))
		return -ENODEV;
	while (err == 0 && m->n_open < m->n_bases) {
		struct map_base *base = &m->bases[m->n_open];

		err = kvx_gpu_map_ref(m->dom->maps, base->ipc, base->at_least, &base->map, &m->why);
		if (err == 0)
			m->n_open++;
	}
	if (err == 0)
		err = map_verify(m);
	if (err < 0)
		map_undo(m);
	gpu_dom_leave(m->dom);
	return err;
}

/* Nobody waits for it any more: what it has opened is closed again. */
static void map_late(struct gpu_call *call)
{
	struct map_call *m = map_of(call);
	bool inside = gpu_dom_enter(m->dom);

	map_undo(m);
	if (inside)
		gpu_dom_leave(m->dom);
	map_call_free(m);
}

static struct map_call *map_call_create(struct kvx_dom *dom, const struct kvx_gpu_mem *gpu)
{
	struct map_call *m = calloc(1, sizeof(*m));

	if (m == NULL)
		return NULL;
	m->bases = calloc(gpu->n_bases > 0 ? gpu->n_bases : 1, sizeof(*m->bases));
	if (m->bases == NULL) {
		free(m);
		return NULL;
	}
	m->call.run = map_run;
	m->call.late = map_late;
	m->dom = dom;
	m->n_bases = gpu->n_bases;
	for (uint32_t i = 0; i < gpu->n_bases; i++) {
		memcpy(m->bases[i].ipc, gpu->bases[i].ipc, sizeof(m->bases[i].ipc));
		m->bases[i].at_least = gpu->bases[i].len_bytes;
	}
	m->n_looks = gpu->n_witnesses;
	for (uint32_t i = 0; i < gpu->n_witnesses; i++) {
		const struct kvx_gpu_witness *w = &gpu->witnesses[i];
		const struct kvx_gpu_segment *s = &gpu->segments[kvx_gpu_mem_find(gpu, w->offset)];

		m->looks[i].base = s->base;
		m->looks[i].offset = s->offset + (w->offset - s->start);
		memcpy(m->looks[i].bytes, w->bytes, sizeof(w->bytes));
	}
	return m;
}

/* Maps the allocations of a region and tells it where they are. */
static int mr_map(struct kvx_mr *mr, struct kvx_gpu_mem *gpu)
{
	struct kvx_dom *dom = mr->dom;
	struct map_call *m = map_call_create(dom, gpu);

	if (m == NULL)
		return -ENOMEM;
	mr->maps = calloc(gpu->n_bases, sizeof(struct kvx_gpu_map *));
	if (mr->maps == NULL) {
		map_call_free(m);
		return -ENOMEM;
	}
	int err = gpu_control_call(dom->control, &m->call, dom->call_timeout_ns);
	if (err == -ETIMEDOUT) {
		kvx_why(&gpu->why, 0,
			"mapping the memory of %s did not end within %" PRIu64
			" ms: was it freed meanwhile, or is the device hung?",
			dom->name, dom->call_timeout_ns / 1000000);
		return err;
	}
	if (err == -EBUSY)
		kvx_why(&gpu->why, 0,
			"%s hangs in an earlier call: it takes no registrations "
			"until that returns",
			dom->name);
	else if (err < 0)
		gpu->why = m->why;
	for (uint32_t i = 0; err == 0 && i < m->n_open; i++) {
		gpu->bases[i].addr = m->bases[i].map->addr;
		mr->maps[mr->n_maps++] = m->bases[i].map;
	}
	map_call_free(m);
	return err;
}

/* ---- undoing, and pinning */

struct give_back_call {
	struct gpu_call call; /* first */
	struct kvx_dom *dom;
	struct kvx_gpu_map **maps;
	uint32_t n_maps;
	void *pinned;
};

static struct give_back_call *give_back_of(struct gpu_call *call)
{
	return (struct give_back_call *)(void *)call;
}

static int give_back_run(struct gpu_call *call)
{
	struct give_back_call *g = give_back_of(call);
	struct kvx_gpu *gpu = g->dom->gpu;
	bool inside = gpu_dom_enter(g->dom); /* else there is nothing to close, only to forget */
	int err = 0;

	while (g->n_maps > 0)
		err |= kvx_gpu_map_unref(g->dom->maps, g->maps[--g->n_maps]);
	if (err != 0)
		gpu_dom_lose(g->dom, kvx_gpu_code(), "a mapping cannot be closed");
	err = 0;
	if (g->pinned != NULL && inside)
		err = gpu->ops->host_unpin(gpu, g->pinned);
	g->pinned = NULL;
	if (inside)
		gpu_dom_leave(g->dom);
	return err;
}

static void give_back_late(struct gpu_call *call)
{
	struct give_back_call *g = give_back_of(call);

	give_back_run(call); /* where it never came to it */
	free(g->maps);
	free(g);
}

/* By the order in which regions are retired nothing uses the memory any more: what is waited for is
 * that its owner can free it. */
static void mr_give_back(struct kvx_mr *mr)
{
	struct kvx_dom *dom = mr->dom;

	if (mr->n_maps == 0 && mr->pinned == NULL) {
		free(mr->maps);
		return;
	}
	struct give_back_call *g = calloc(1, sizeof(*g));
	kvx_assert(g != NULL); /* some bytes: without them the memory would stay mapped for good */
	*g = (struct give_back_call){
	    .call = {.run = give_back_run, .late = give_back_late},
	    .dom = dom,
	    .maps = mr->maps,
	    .n_maps = mr->n_maps,
	    .pinned = mr->pinned,
	};
	int err = gpu_control_call_always(dom->control, &g->call, dom->call_timeout_ns);
	if (err == -ETIMEDOUT) {
		kvx_error("gpu: %s: memory of a region that is gone stays mapped until the runtime "
			  "answers",
			  dom->name);
		return;
	}
	if (err < 0 && err != -ENODEV)
		kvx_warn("gpu: %s: unlocking memory: error %d of the runtime", dom->name, -err);
	free(g->maps);
	free(g);
}

struct pin_call {
	struct gpu_call call; /* first */
	struct kvx_dom *dom;
	void *addr;
	uint64_t len_bytes;
	int code;
	bool done;
};

static int pin_run(struct gpu_call *call)
{
	struct pin_call *p = (struct pin_call *)(void *)call;
	struct kvx_gpu *gpu = p->dom->gpu;

	if (!gpu_dom_enter(p->dom))
		return -ENODEV;
	int err = gpu->ops->host_pin(gpu, p->addr, p->len_bytes);
	p->code = kvx_gpu_code();
	p->done = err == 0;
	gpu_dom_leave(p->dom);
	return err;
}

/* The mapping may be gone by now, and with it what was locked: unlocking says so at worst. */
static void pin_late(struct gpu_call *call)
{
	struct pin_call *p = (struct pin_call *)(void *)call;

	if (p->done && gpu_dom_enter(p->dom)) {
		p->dom->gpu->ops->host_unpin(p->dom->gpu, p->addr);
		gpu_dom_leave(p->dom);
	}
	free(p);
}

static int mr_pin(struct kvx_mr *mr, const struct kvx_mem *mem)
{
	struct kvx_dom *dom = mr->dom;
	struct pin_call *p = calloc(1, sizeof(*p));

	if (p == NULL)
		return -ENOMEM;
	p->call = (struct gpu_call){.run = pin_run, .late = pin_late};
	p->dom = dom;
	p->addr = mem->addr;
	p->len_bytes = mem->len_bytes;
	/* Page tables of many gigabytes take their time: 1 GB/s on top. */
	int err = gpu_control_call(dom->control, &p->call, dom->call_timeout_ns + mem->len_bytes);
	if (err == -ETIMEDOUT) {
		kvx_warn("gpu: %s: page-locking %" PRIu64 " bytes did not end in time: copies "
			 "between GPUs and this memory are refused",
			 dom->name, mem->len_bytes);
		return err;
	}
	if (err == 0)
		mr->pinned = mem->addr;
	else
		kvx_warn("gpu: %s: page-locking %" PRIu64 " bytes: %s (%d): copies between GPUs "
			 "and this memory are refused",
			 dom->name, mem->len_bytes, kvx_gpu_code_name(dom->gpu, p->code), p->code);
	free(p);
	return err;
}

/* ---- peers */

struct peer_call {
	struct gpu_call call; /* first */
	struct kvx_dom *dom;
	int peer;
	bool direct;
};

static int peer_run(struct gpu_call *call)
{
	struct peer_call *p = (struct peer_call *)(void *)call;
	struct kvx_gpu *gpu = p->dom->gpu;

	if (!gpu_dom_enter(p->dom))
		return -ENODEV;
	int err = gpu->ops->peer_can(gpu, p->dom->device, p->peer, &p->direct);
	if (err == 0 && p->direct)
		err = gpu->ops->peer_enable(gpu, p->peer);
	gpu_dom_leave(p->dom);
	return err;
}

static void peer_late(struct gpu_call *call)
{
	free((struct peer_call *)(void *)call);
}

/* Once for each other device. Without it copies still work, by way of host memory. */
static void dom_reach_peer(struct kvx_dom *dom, int peer)
{
	uint32_t bit = 1u << (unsigned)peer;

	if (atomic_load(&dom->peers_tried) & bit)
		return;
	struct peer_call *p = calloc(1, sizeof(*p));
	if (p == NULL)
		return;
	p->call = (struct gpu_call){.run = peer_run, .late = peer_late};
	p->dom = dom;
	p->peer = peer;
	int err = gpu_control_call(dom->control, &p->call, dom->call_timeout_ns);
	if (err == -ETIMEDOUT || err == -EBUSY) {
		if (err == -EBUSY)
			free(p);
		return; /* the next region tries again */
	}
	atomic_fetch_or(&dom->peers_tried, bit);
	if (err == 0 && p->direct)
		atomic_fetch_or(&dom->peers_direct, bit);
	else
		kvx_warn("gpu: %s does not reach device %d directly%s: copies between them take "
			 "the way through host memory",
			 dom->name, peer, err < 0 ? " (peer access cannot be enabled)" : "");
	free(p);
}

/* ---- the region's entry in this domain */

static int reg_device_memory(struct kvx_mr *mr, const struct kvx_mem *mem)
{
	const struct gpu_shared *shared = gpu_shared();
	struct kvx_gpu_mem *gpu = mem->gpu;
	struct kvx_dom *dom = mr->dom;

	mr->on_device = true;
	mr->device = gpu_device_find(shared, &gpu->id);
	if (mem->ops->kind != (enum kvx_mem_kind)dom->gpu->ops->kind || mr->device < 0)
		return -EOPNOTSUPP;
	if (mr->device == dom->device) {
		int err = mr_map(mr, gpu);
		if (err < 0)
			return err;
	} else {
		if (gpu->bases[0].addr == 0)
			return -EOPNOTSUPP; /* its home has not mapped it */
		dom_reach_peer(dom, mr->device);
	}
	mr->segments = gpu;
	if (gpu->n_segments == 1)
		mr->addr = gpu->bases[gpu->segments[0].base].addr + gpu->segments[0].offset;
	return 0;
}

static int reg_host_memory(struct kvx_mr *mr, const struct kvx_mem *mem)
{
	mr->device = -1;
	mr->addr = (uintptr_t)mem->addr;
	if (mem->addr == NULL)
		return -EOPNOTSUPP;
	return mem->pinned ? 0 : mr_pin(mr, mem);
}

int gpu_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem, uint32_t rights,
		struct kvx_mr **out_mr)
{
	KVX_CHECK_MAGIC(dom, GPU_DOM_MAGIC);
	if (atomic_load(&dom->lost))
		return -ENODEV;
	struct kvx_mr *mr = calloc(1, sizeof(*mr));
	if (mr == NULL)
		return -ENOMEM;
	mr->magic = GPU_MR_MAGIC;
	mr->dom = dom;
	mr->len_bytes = mem->len_bytes;
	mr->rights = rights;
	int err = mem->gpu != NULL ? reg_device_memory(mr, mem) : reg_host_memory(mr, mem);
	if (err < 0) {
		mr_give_back(mr);
		free(mr);
		return err;
	}
	kvx_counter_add_shared(&dom->counters.regs, 1);
	kvx_counter_add_shared(&dom->counters.reg_bytes, mr->len_bytes);
	*out_mr = mr;
	return 0;
}

void gpu_mem_dereg(struct kvx_mr *mr)
{
	KVX_CHECK_MAGIC(mr, GPU_MR_MAGIC);
	/* The counters wrap around to what is registered now. */
	kvx_counter_add_shared(&mr->dom->counters.regs, (uint64_t)-1);
	kvx_counter_add_shared(&mr->dom->counters.reg_bytes, (uint64_t)0 - mr->len_bytes);
	mr_give_back(mr);
	mr->magic = 0;
	free(mr);
}

/* ---- keys: they never leave the process */

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
	ep->dom->n_rkeys++;
	*out_rkey = rkey;
	return 0;
}

void gpu_rkey_free(struct kvx_rkey *rkey)
{
	rkey->mr->dom->n_rkeys--;
	free(rkey);
}
