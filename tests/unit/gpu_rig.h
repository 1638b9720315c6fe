/* A gpu domain on the fake runtime, with regions of GPU and host memory, driven as a worker does
 * it: for the unit tests of transport/gpu. One thread; the domain's own threads are real. */
#ifndef KVX_TEST_GPU_RIG_H
#define KVX_TEST_GPU_RIG_H

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_fake.h"
#include "mem/gpu.h"
#include "mem/region.h"
#include "test_end.h"
#include "transport/transport.h"

#define T (&kvx_gpu_transport_ops)

#define RIG_BYTES (256u * 1024u)
#define RIG_BOTH  (KVX_ACCESS_READ | KVX_ACCESS_WRITE)

struct rig_mem {
	struct kvx_mem mem;
	uint8_t *data[8]; /* what the client has mapped, by segment */
	uint64_t bytes[8];
	unsigned n;
};

struct rig {
	struct kvx_dom_conf conf;
	struct kvx_rail rails[FAKE_DEVICES];
	struct kvx_dom *dom;
	struct kvx_transport_limits limits;
	struct kvx_ep *ep;
};

/* call_timeout_ms: for tests of what does not wait for a call. */
static inline void rig_open_patient(struct rig *r, uint32_t caps, int gather,
				    uint32_t call_timeout_ms)
{
	struct kvx_why why = {""};
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t addr_len = sizeof(addr);

	fake_gpu_init(caps);
	memset(r, 0, sizeof(*r));
	r->conf.gpu = (struct kvx_gpu_conf){.runtime = "auto",
					    .streams = 3,
					    .gather_max_bytes = gather,
					    .call_timeout_ms = call_timeout_ms,
					    .fence_timeout_ms = 200};
	cr_assert_eq(T->probe(&r->conf, r->rails, FAKE_DEVICES, &why), FAKE_DEVICES, "%s",
		     why.text);
	r->conf.rail = &r->rails[0];
	cr_assert_eq(T->open(&r->conf, &r->dom, &r->limits, &why), 0, "%s", why.text);
	cr_assert_eq(T->listen(r->dom, 0, &r->ep, addr, &addr_len), 0);
}

static inline void rig_open_as(struct rig *r, uint32_t caps, int gather)
{
	rig_open_patient(r, caps, gather, 200);
}

static inline void rig_close(struct rig *r)
{
	T->fence(r->ep);
	T->ep_close(r->ep);
	T->close(r->dom);
	cr_assert_eq(fake.n_maps, 0u);
	cr_assert_eq(fake.n_pins, 0u);
	cr_assert_eq(fake.n_allocs, 0u);
}

/* Memory of a device, in n pieces of sizes of its own, each in an allocation at an offset. */
static inline void rig_gpu_mem(struct rig_mem *m, int device, unsigned n)
{
	struct kvx_why why = {""};
	uint64_t left = RIG_BYTES;

	memset(m, 0, sizeof(*m));
	kvx_mem_init(&m->mem, &kvx_mem_cuda_ops, -1, 0, RIG_BYTES);
	m->mem.gpu = kvx_gpu_mem_create(n, n);
	kvx_gpu_pci_normalise(device == 0 ? "0000:11:00.0" : "0000:22:00.0", m->mem.gpu->id.pci);
	for (m->n = 0; m->n < n; m->n++) {
		uint64_t bytes = m->n + 1 == n ? left : left / (n - m->n) - 61 * (m->n + 1);
		uint64_t offset = 256 * (uint64_t)m->n;
		uint8_t *base =
		    fake_client_alloc(device, bytes + offset, m->mem.gpu->bases[m->n].ipc);

		m->mem.gpu->bases[m->n].len_bytes = bytes + offset;
		m->mem.gpu->segments[m->n] =
		    (struct kvx_gpu_segment){.base = m->n, .offset = offset, .len_bytes = bytes};
		m->data[m->n] = base + offset;
		m->bytes[m->n] = bytes;
		left -= bytes;
	}
	cr_assert_eq(m->mem.ops->check(&m->mem, &why), 0, "%s", why.text);
}

static inline void rig_host_mem(struct rig_mem *m)
{
	memset(m, 0, sizeof(*m));
	kvx_mem_init(&m->mem, &kvx_mem_host_ops, -1, 0, RIG_BYTES);
	m->mem.addr = calloc(1, RIG_BYTES);
	m->data[0] = m->mem.addr;
	m->bytes[0] = RIG_BYTES;
	m->n = 1;
}

static inline void rig_mem_free(struct rig_mem *m)
{
	if (m->mem.gpu == NULL) {
		free(m->mem.addr);
		m->mem.addr = NULL;
		return;
	}
	for (unsigned i = 0; i < m->n; i++)
		fake_client_free(m->data[i] - m->mem.gpu->segments[i].offset);
	kvx_mem_fini(&m->mem);
}

/* The byte at an offset of the region, as its owner sees it. */
static inline uint8_t *rig_at(struct rig_mem *m, uint64_t offset)
{
	unsigned i = 0;

	while (offset >= m->bytes[i])
		offset -= m->bytes[i++];
	return m->data[i] + offset;
}

static inline struct kvx_mr *rig_reg(struct rig *r, struct rig_mem *m, uint32_t rights)
{
	struct kvx_mr *mr = NULL;
	int err = T->mem_reg(r->dom, 0, &m->mem, rights, &mr);

	cr_assert_eq(err, 0, "%d %s", err, m->mem.gpu != NULL ? m->mem.gpu->why.text : "");
	return mr;
}

static inline struct kvx_rkey *rig_key(struct rig *r, const struct kvx_mr *mr)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	struct kvx_rkey *rkey = NULL;
	int len = T->mkey_pack(mr, mkey, sizeof(mkey));

	cr_assert_gt(len, 0);
	cr_assert_eq(T->rkey_unpack(r->ep, mkey, (size_t)len, &rkey), 0);
	return rkey;
}

/* Posts all and waits for all; the first error. */
static inline int rig_run(struct rig *r, const struct kvx_op *ops, unsigned n)
{
	unsigned n_posted = 0, n_done = 0, n_idle = 0;
	int status = 0;

	while (n_done < n && n_idle < 100000) {
		struct kvx_tevent events[16];
		int taken = n_posted < n ? T->post(r->ep, ops + n_posted, n - n_posted) : 0;

		cr_assert_geq(taken, 0);
		n_posted += (unsigned)taken;
		int n_events = T->progress(r->dom, events, 16);
		n_idle = taken + n_events > 0 ? 0 : n_idle + 1;
		for (int i = 0; i < n_events; i++) {
			if (events[i].kind != KVX_TEV_OP_DONE)
				continue;
			n_done += events[i].n_ops;
			status = status == 0 ? events[i].status : status;
		}
	}
	cr_assert_eq(n_done, n);
	return status;
}

#endif
