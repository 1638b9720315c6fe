/* The verbs backend's way with GPU memory on a real device without a GPU: host memory that says it
 * is a GPU's, in several segments, registered by its address as with a peer-memory module. Both
 * ends are domains of this process on one device, so all goes by loopback. Shown: a registration is
 * looked at through the device, other memory is found out, bytes come to their place over the ends
 * of pieces both ways, and reads wait for their flush.
 *
 * usage: rdma_gpu [DEVICE]     exit status 0: all held; 1: something did not; 77: no device */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/log.h"
#include "mem/gpu.h"
#include "mem/region.h"
#include "transport/transport.h"

#define N_SEGMENTS 5u
#define GAP        4096u
#define SPACE      (1u << 20) /* of an allocation */
#define ROUNDS     20u
#define WAIT_NS    (20 * KVX_SEC)

#define HOLD(cond)                                                                                 \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			fprintf(stderr, "rdma_gpu: line %d: %s\n", __LINE__, #cond);               \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static const struct kvx_transport_ops *const T = &kvx_verbs_ops;
static const uint64_t sizes[N_SEGMENTS] = {70000, 4096, 123457, 9000, 60001};
static uint8_t *flush_page;

struct end {
	struct kvx_dom *dom;
	struct kvx_transport_limits limits;
	struct kvx_ep *ep;
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t addr_len;
	struct kvx_mem mem;
	uint8_t *bytes[2]; /* of two allocations */
	struct kvx_mr *mr;
	struct kvx_rkey *rkey; /* of the other one's */
	bool up;
	unsigned n_done;
};

static int flush_memory(void *device, struct kvx_gpu_flush *out_flush)
{
	(void)device;
	*out_flush =
	    (struct kvx_gpu_flush){.addr = (uintptr_t)flush_page, .len_bytes = 4096, .fd = -1};
	return 0;
}

static const struct kvx_gpu_access access_table = {.flush_memory = flush_memory};

static uint8_t *at(const struct end *e, uint64_t offset)
{
	const struct kvx_gpu_segment *s =
	    &e->mem.gpu->segments[kvx_gpu_mem_find(e->mem.gpu, offset)];

	return e->bytes[s->base] + s->offset + (offset - s->start);
}

static void fill(struct end *e, uint64_t seed)
{
	for (uint64_t i = 0; i < e->mem.len_bytes; i++) {
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		*at(e, i) = (uint8_t)(seed >> 56);
	}
}

static void witness(struct end *e)
{
	struct kvx_gpu_mem *gpu = e->mem.gpu;

	gpu->n_witnesses = N_SEGMENTS;
	for (uint32_t i = 0; i < N_SEGMENTS; i++) {
		gpu->witnesses[i].offset =
		    gpu->segments[i].start + sizes[i] - KVX_GPU_WITNESS_BYTES;
		for (unsigned k = 0; k < KVX_GPU_WITNESS_BYTES; k++)
			gpu->witnesses[i].bytes[k] = *at(e, gpu->witnesses[i].offset + k);
	}
}

/* Segments in turn of two allocations. */
static void memory_make(struct end *e, uint64_t seed)
{
	struct kvx_gpu_mem *gpu = kvx_gpu_mem_create(2, N_SEGMENTS);
	uint64_t used[2] = {512, 8192}, len = 0;
	struct kvx_why why;

	for (unsigned i = 0; i < 2; i++) {
		e->bytes[i] =
		    mmap(NULL, SPACE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		HOLD(e->bytes[i] != MAP_FAILED);
		gpu->bases[i] = (struct kvx_gpu_base){
		    .len_bytes = SPACE, .addr = (uintptr_t)e->bytes[i], .fd = -1};
	}
	for (uint32_t i = 0; i < N_SEGMENTS; i++) {
		gpu->segments[i] = (struct kvx_gpu_segment){
		    .len_bytes = sizes[i], .offset = used[i % 2], .base = i % 2};
		used[i % 2] += sizes[i] + GAP;
		len += sizes[i];
	}
	kvx_gpu_pci_normalise("0000:11:00.0", gpu->id.pci);
	gpu->access = &access_table;
	gpu->device = flush_page;
	kvx_mem_init(&e->mem, &kvx_mem_cuda_ops, -1, 0, len);
	e->mem.gpu = gpu;
	HOLD(e->mem.ops->check(&e->mem, &why) == 0);
	fill(e, seed);
	witness(e);
}

static void end_open(struct end *e, const struct kvx_dom_conf *conf, uint64_t seed)
{
	const uint32_t rights = KVX_ACCESS_READ | KVX_ACCESS_WRITE;
	struct kvx_why why = {""};

	if (T->open(conf, &e->dom, &e->limits, &why) != 0) {
		fprintf(stderr, "rdma_gpu: %s\n", why.text);
		exit(77);
	}
	memory_make(e, seed);
	e->mem.gpu->witnesses[2].bytes[3] ^= 1;
	HOLD(T->mem_reg(e->dom, 0, &e->mem, rights, &e->mr) == -EFAULT);
	witness(e);
	HOLD(T->mem_reg(e->dom, 0, &e->mem, rights, &e->mr) == 0);
	e->addr_len = sizeof(e->addr);
	HOLD(T->listen(e->dom, 0, &e->ep, e->addr, &e->addr_len) == 0);
}

static void pump(struct end *e)
{
	struct kvx_tevent events[8];
	int n = T->progress(e->dom, events, 8);

	for (int i = 0; i < n; i++) {
		HOLD(events[i].kind != KVX_TEV_EP_DOWN && events[i].status == 0);
		e->up |= events[i].kind == KVX_TEV_EP_UP;
		if (events[i].kind == KVX_TEV_OP_DONE)
			e->n_done += events[i].n_ops;
	}
}

static void pump_until(struct end ends[2], unsigned n_done)
{
	uint64_t limit = kvx_now_ns() + WAIT_NS;

	while (!ends[0].up || !ends[1].up || ends[0].n_done < n_done) {
		HOLD(kvx_now_ns() < limit);
		pump(&ends[0]);
		pump(&ends[1]);
	}
}

static void keys_exchange(struct end *from, struct end *to)
{
	static uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	int len = T->mkey_pack(from->mr, mkey, sizeof(mkey));

	HOLD(len > 0);
	HOLD(T->rkey_unpack(to->ep, mkey, (size_t)len, &to->rkey) == 0);
}

/* The whole region, in ops that run over the ends of pieces. */
static void move(struct end ends[2], enum kvx_op_kind kind, uint64_t seed)
{
	struct end *src = kind == KVX_OP_WRITE ? &ends[0] : &ends[1];
	uint64_t len = ends[0].mem.len_bytes, done = 0;
	unsigned n = 0;

	fill(src, seed);
	ends[0].n_done = 0;
	while (done < len) {
		struct kvx_op op = {.local = ends[0].mr,
				    .remote = ends[0].rkey,
				    .local_offset = done,
				    .remote_offset = done,
				    .len_bytes = len - done < 30000 ? len - done : 30000,
				    .cookie = 7,
				    .kind = kind};
		int rc = T->post(ends[0].ep, &op, 1);

		HOLD(rc >= 0);
		n += (unsigned)rc;
		done += rc == 1 ? op.len_bytes : 0;
		pump(&ends[0]);
	}
	pump_until(ends, n);
	for (uint64_t i = 0; i < len; i++)
		HOLD(*at(&ends[0], i) == *at(&ends[1], i));
}

static void end_close(struct end *e)
{
	T->rkey_free(e->rkey);
	HOLD(T->fence(e->ep) == 0);
	T->ep_close(e->ep);
	T->mem_dereg(e->mr);
	HOLD(kvx_counter_get(&e->limits.counters->regs) == 0);
	T->close(e->dom);
	kvx_mem_fini(&e->mem);
	munmap(e->bytes[0], SPACE);
	munmap(e->bytes[1], SPACE);
}

int main(int argc, char **argv)
{
	static struct end ends[2];
	struct kvx_dom_conf conf = {.mem_kinds = 1u << KVX_MEM_HOST};
	struct kvx_rail rails[KVX_MAX_RAILS];
	struct kvx_why why = {""};

	conf.verbs = (struct kvx_verbs_conf){.gid_index = -1,
					     .qps_per_lane = 2,
					     .sq_depth = 64,
					     .post_batch = 8,
					     .stripe_bytes = 64 << 10,
					     .timeout = 14,
					     .retry_count = 7,
					     .rnr_retry = 7,
					     .min_rnr_timer = 12,
					     .hop_limit = 64,
					     .flush = true};
	if (argc > 1)
		snprintf(conf.verbs.devices, sizeof(conf.verbs.devices), "%s", argv[1]);
	kvx_log_init(KVX_LOG_ERROR, false);
	if (T->probe(&conf, rails, KVX_MAX_RAILS, &why) <= 0 || !rails[0].usable) {
		fprintf(stderr, "rdma_gpu: no usable device %s\n", why.text);
		return 77;
	}
	conf.rail = &rails[0];
	flush_page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	HOLD(flush_page != MAP_FAILED);
	end_open(&ends[0], &conf, 1);
	end_open(&ends[1], &conf, 2);
	HOLD(T->connect(ends[0].ep, ends[1].addr, ends[1].addr_len) == 0);
	HOLD(T->connect(ends[1].ep, ends[0].addr, ends[0].addr_len) == 0);
	pump_until(ends, 0);
	keys_exchange(&ends[1], &ends[0]);
	keys_exchange(&ends[0], &ends[1]);
	for (uint64_t i = 0; i < ROUNDS; i++)
		move(ends, i % 2 == 0 ? KVX_OP_WRITE : KVX_OP_READ, i + 3);
	printf("{\"rounds\": %u, \"bytes\": %llu, \"flushes\": %llu}\n", ROUNDS,
	       (unsigned long long)(ROUNDS * ends[0].mem.len_bytes),
	       (unsigned long long)kvx_counter_get(&ends[0].limits.counters->flushes));
	end_close(&ends[0]);
	end_close(&ends[1]);
	return 0;
}
