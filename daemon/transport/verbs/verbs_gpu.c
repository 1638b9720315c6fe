/* Regions of GPU memory: what their segments use of each allocation is registered with the device,
 * by its dma-buf or, where the kernel has a peer-memory module, by its address in this process;
 * then the device is made to show that it sees what the owner sees. A domain that cannot do that
 * refuses the region, and it goes by another transport: the log says once what is missing. [mem] */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/verbs/verbs_priv.h"

#define NO_MEMORY     "the daemon has no memory left"
#define BUSY_PAUSE_NS 5000000

struct ibv_mr *verbs_gpu_mr(struct kvx_dom *dom, struct ibv_pd *pd, struct verbs_gpu_ask *ask,
			    uint64_t *out_addr)
{
	const struct kvx_gpu_base *base = ask->base;
	/* Addresses of a dma-buf are its own offsets: so they are as well aligned as the device's
	 * pages are, and tell a peer nothing of this process. */
	uint64_t at = base->fd_offset + ask->offset;
	struct ibv_mr *ibmr = NULL;

	ask->fd_error = ask->addr_error = 0;
	errno = 0;
	if (base->fd >= 0)
		ibmr = ibv_reg_dmabuf_mr(pd, at, ask->len_bytes, at, base->fd, ask->access);
	if (ibmr == NULL && base->fd >= 0) {
		ask->fd_error = errno != 0 ? errno : ENOMEM;
		kvx_debug("verbs: %s: the dma-buf of GPU memory is refused: %s", dom->name,
			  strerror(ask->fd_error));
	}
	if (ibmr == NULL && base->addr != 0) {
		at = base->addr + ask->offset;
		errno = 0;
		ibmr = ibv_reg_mr(pd, (void *)(uintptr_t)at, ask->len_bytes, ask->access);
		if (ibmr == NULL)
			ask->addr_error = errno != 0 ? errno : ENOMEM;
	}
	*out_addr = at;
	return ibmr;
}

bool verbs_gpu_again(int err, uint64_t until_ns)
{
	static const struct timespec pause = {.tv_nsec = BUSY_PAUSE_NS};

	if (err != -EBUSY || kvx_now_ns() >= until_ns)
		return false;
	nanosleep(&pause, NULL);
	return true;
}

void verbs_gpu_complain(const struct kvx_dom *dom, uint64_t len_bytes, const char *what)
{
	kvx_warn("verbs: %s: %" PRIu64 " bytes of GPU memory are not reached by RDMA and go by "
		 "another transport: %s",
		 dom->name, len_bytes, what);
}

static void gpu_complain(const struct kvx_mr *mr, const char *what)
{
	verbs_gpu_complain(mr->dom, mr->len_bytes, what);
}

static int reg_refused(const struct kvx_mr *mr, const struct verbs_gpu_ask *ask)
{
	char text[KVX_WHY_BYTES], fd_text[80] = "there is no dma-buf of an allocation";

	if (ask->fd_error != 0)
		snprintf(fd_text, sizeof(fd_text), "the NIC refuses the dma-buf (%s)",
			 strerror(ask->fd_error));
	snprintf(text, sizeof(text),
		 "%s, and registering by address says: %s. dma-bufs need a driver and a NIC that "
		 "have them (`kvxferctl doctor`); addresses the module nvidia_peermem, or amdgpu "
		 "with peer memory",
		 fd_text,
		 ask->addr_error != 0 ? strerror(ask->addr_error) : "it has none in this process");
	gpu_complain(mr, text);
	return -EOPNOTSUPP;
}

/* Registers the spans; pieces get their keys and addresses. */
static int gpu_reg_spans(struct kvx_mr *mr, const struct kvx_gpu_mem *gpu, struct ibv_pd *pd,
			 struct verbs_gpu_span *spans)
{
	for (uint32_t i = 0; i < mr->n_mrs; i++) {
		struct verbs_gpu_span *span = &spans[i];
		struct verbs_gpu_ask ask = {.base = &gpu->bases[span->base],
					    .offset = span->begin,
					    .len_bytes = span->end - span->begin,
					    .access = verbs_reg_access(mr->rights)};
		uint64_t addr;

		mr->mrs[i] = verbs_gpu_mr(mr->dom, pd, &ask, &addr);
		if (mr->mrs[i] == NULL)
			return reg_refused(mr, &ask);
		span->delta = addr - span->begin;
	}
	for (uint32_t i = 0; i < mr->n_pieces; i++) {
		struct verbs_piece *piece = &mr->pieces[i];

		piece->delta += spans[piece->mr].delta;
		piece->key = mr->mrs[piece->mr]->lkey;
	}
	return 0;
}

/* Pieces and registrations, exactly as many as there are. */
static int gpu_make_arrays(struct kvx_mr *mr, uint32_t n_spans, const struct verbs_piece *pieces,
			   uint32_t n_pieces)
{
	mr->mrs = calloc(n_spans, sizeof(struct ibv_mr *));
	mr->pieces = calloc(n_pieces, sizeof(*mr->pieces));
	if (mr->mrs == NULL || mr->pieces == NULL)
		return -ENOMEM;
	memcpy(mr->pieces, pieces, n_pieces * sizeof(*pieces));
	mr->n_mrs = n_spans;
	mr->n_pieces = n_pieces;
	return 0;
}

struct gpu_plan {
	struct verbs_gpu_span spans[VERBS_MAX_PIECES];
	struct verbs_piece pieces[VERBS_MAX_PIECES];
};

/* An op over more pieces than a chain has room for could not be posted, and would have no other way
 * to go: half of the room is for the pieces of the other side. */
static bool ops_are_too_scattered(const struct kvx_mr *mr, const struct verbs_piece *pieces,
				  uint32_t n_pieces)
{
	const struct verbs_build_limits *limits = &mr->dom->limits;
	uint32_t most = limits->op_wrs / 2;
	char text[KVX_WHY_BYTES];

	if (verbs_pieces_shortest_op(pieces, n_pieces, most) > limits->max_op_bytes)
		return false;
	snprintf(text, sizeof(text),
		 "an op of verbs.stripe_bytes (%" PRIu64
		 ") would run over more than %u of its pieces: use larger allocations or lower "
		 "verbs.stripe_bytes; verbs.sq_depth allows for %u pieces, 256 at most",
		 (uint64_t)limits->max_op_bytes, most, limits->op_wrs);
	gpu_complain(mr, text);
	return true;
}

static int gpu_plan_and_reg(struct kvx_mr *mr, const struct kvx_gpu_mem *gpu, struct ibv_pd *pd,
			    struct gpu_plan *plan)
{
	int n_spans = verbs_spans_plan(gpu, mr->dom->max_mr_bytes, plan->spans, VERBS_MAX_PIECES);
	int n_pieces = n_spans > 0 ? verbs_pieces_plan(gpu, plan->spans, (uint32_t)n_spans,
						       plan->pieces, VERBS_MAX_PIECES)
				   : n_spans;
	int err;

	if (n_pieces <= 0) {
		gpu_complain(mr, "it is in more than 1024 pieces: fewer, larger allocations, or "
				 "neighbours in one allocation, make fewer");
		return -EOPNOTSUPP;
	}
	if (ops_are_too_scattered(mr, plan->pieces, (uint32_t)n_pieces))
		return -EOPNOTSUPP;
	err = gpu_make_arrays(mr, (uint32_t)n_spans, plan->pieces, (uint32_t)n_pieces);
	if (err < 0)
		gpu_complain(mr, NO_MEMORY);
	return err < 0 ? err : gpu_reg_spans(mr, gpu, pd, plan->spans);
}

static int gpu_show(struct kvx_mr *mr, const struct kvx_gpu_mem *gpu, struct ibv_pd *pd)
{
	struct kvx_why why = {.text = ""};
	char text[KVX_WHY_BYTES + 32];
	int err = verbs_gpu_verify(mr, gpu, pd, &why);

	if (err < 0) {
		snprintf(text, sizeof(text), "it was not verified: %s", why.text);
		gpu_complain(mr, text);
		return err;
	}
	err = verbs_flush_get(mr, gpu, pd, &why);
	if (err < 0)
		gpu_complain(mr, why.text);
	return err;
}

int verbs_gpu_reg(struct kvx_mr *mr, const struct kvx_mem *mem, struct ibv_pd *pd)
{
	const struct kvx_gpu_mem *gpu = mem->gpu;
	struct gpu_plan *plan;
	int err;

	if (mem->len_bytes == 0 || mem->len_bytes > UINT64_MAX / 2) {
		gpu_complain(mr, "its length is none");
		return -EINVAL;
	}
	plan = calloc(1, sizeof(*plan));
	if (plan == NULL) {
		gpu_complain(mr, NO_MEMORY);
		return -ENOMEM;
	}
	err = gpu_plan_and_reg(mr, gpu, pd, plan);
	free(plan);
	return err == 0 ? gpu_show(mr, gpu, pd) : err;
}
