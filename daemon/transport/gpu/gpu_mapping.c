/* Memory of a domain's own device: mapped, verified, and given back when its region goes (with what
 * the domain has page-locked, see gpu_pin.c). What may hang is a call of the control thread; such a
 * call works on copies only, because the region may be gone when it returns. [mem] helpers. */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

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
	} *bases;
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

int gpu_mr_map(struct kvx_mr *mr, struct kvx_gpu_mem *gpu)
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
			"%s is busy with earlier calls, or hangs in one: register again",
			dom->name);
	else if (err < 0)
		gpu->why = m->why;
	for (uint32_t i = 0; err == 0 && i < m->n_open; i++) {
		gpu->bases[i].addr = m->bases[i].map->addr;
		mr->maps[mr->n_maps++] = m->bases[i].map;
	}
	if (err == 0) {
		gpu->access = &gpu_access;
		gpu->device = dom;
	}
	map_call_free(m);
	return err;
}

/* ---- giving back */

static struct kvx_mr *mr_of_give_back(struct gpu_call *call)
{
	return (struct kvx_mr *)(void *)((char *)call - offsetof(struct kvx_mr, give_back));
}

static int give_back_maps(struct kvx_mr *mr)
{
	struct kvx_dom *dom = mr->dom;
	bool inside = gpu_dom_enter(dom); /* else there is nothing to close, only to forget */
	int err = 0;

	while (mr->n_maps > 0)
		err |= kvx_gpu_map_unref(dom->maps, mr->maps[--mr->n_maps]);
	if (err != 0)
		gpu_dom_lose(dom, kvx_gpu_code(), "a mapping cannot be closed");
	if (inside)
		gpu_dom_leave(dom);
	return 0;
}

/* Either the one or the other. */
static int give_back_run(struct gpu_call *call)
{
	struct kvx_mr *mr = mr_of_give_back(call);
	struct kvx_dom *dom = mr->dom;

	if (mr->pinned == NULL)
		return give_back_maps(mr);
	int err = gpu_dom_enter_bound(dom);
	if (err == 0) {
		err = gpu_dom_unpin(dom, mr->pinned);
		if (err == -ENODEV) /* its reset takes the lock away */
			gpu_dom_lose(dom, kvx_gpu_code(), "a region cannot be unlocked");
		gpu_dom_leave(dom);
	}
	mr->pinned = NULL;
	return err;
}

static void mr_free(struct kvx_mr *mr)
{
	free(mr->maps);
	free(mr);
}

static void give_back_late(struct gpu_call *call)
{
	give_back_run(call); /* where it never came to it */
	mr_free(mr_of_give_back(call));
}

/* By the order in which regions are retired nothing uses the memory any more: what is waited for is
 * that its owner can free it. */
void gpu_mr_give_back(struct kvx_mr *mr)
{
	struct kvx_dom *dom = mr->dom;

	mr->magic = 0;
	if (mr->n_maps == 0 && mr->pinned == NULL) {
		mr_free(mr);
		return;
	}
	mr->give_back = (struct gpu_call){.run = give_back_run, .late = give_back_late};
	bool pinned = mr->pinned != NULL;
	int err = gpu_control_call_always(
	    pinned ? gpu_pin_control(dom, mr->len_bytes) : dom->control, &mr->give_back,
	    pinned ? gpu_pin_timeout_ns(dom, mr->len_bytes) : dom->call_timeout_ns);
	if (err == -ETIMEDOUT) { /* mr is the thread's */
		kvx_error("gpu: %s: memory of a region that is gone stays mapped until the runtime "
			  "answers",
			  dom->name);
		return;
	}
	if (err < 0 && err != -ENODEV)
		kvx_warn("gpu: %s: unlocking memory: error %d of the runtime", dom->name, -err);
	mr_free(mr);
}
