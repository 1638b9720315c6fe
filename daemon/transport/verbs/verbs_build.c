/* From ops to work requests: the pure part of posting. One chain is built at a time, in the
 * domain's scratch, from the first ops of what post() was given. Neighbours on the other side share
 * a work request (several local pieces are gathered into one write, or one read is scattered over
 * them), neighbours on both sides one piece of it; an op that crosses the edge of a piece of either
 * region is split. The last look before bytes move is here: whatever is above, or the other side,
 * got wrong, no request that its device would refuse (and break the queue pair for all) is posted.
 * Data thread; never allocates once it is set up, calls no verbs. Reads client
 * memory only for inline data, guarded. */
#include "transport/verbs/verbs_build.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mem/guard.h"
#include "transport/verbs/verbs_priv.h"

/* A run of bytes within one registration on either side. */
struct piece {
	uint64_t local; /* as the device addresses it */
	uint64_t remote;
	uint64_t len_bytes;
	uint32_t lkey;
	uint32_t rkey;
	const struct kvx_mr *mr;
};

/* The work request that is being filled. */
struct cursor {
	struct ibv_send_wr *wr; /* NULL: none yet */
	struct ibv_sge *sge;    /* its last piece */
	uint64_t local_end;
	uint64_t remote_end;
	uint64_t bytes;
	enum ibv_wr_opcode opcode;
	/* The pair that pair_check() has passed last: mostly that of the whole chain. */
	const struct kvx_mr *mr;
	const struct kvx_rkey *rkey;
};

int verbs_build_init(struct verbs_build *build, const struct verbs_build_limits *limits)
{
	bool inlines = limits->inline_bytes > 0;
	size_t n, n_sges;

	*build = (struct verbs_build){.limits = *limits};
	if (build->limits.op_wrs < limits->max_wrs + VERBS_OP_WRS)
		build->limits.op_wrs = limits->max_wrs + VERBS_OP_WRS;
	n = build->limits.op_wrs + 1;
	n_sges = n * limits->max_sge;
	build->wrs = calloc(n, sizeof(*build->wrs));
	build->sges = calloc(n_sges, sizeof(*build->sges));
	if (inlines) {
		build->hosts = calloc(n_sges, sizeof(*build->hosts));
		build->wr_bytes = calloc(n, sizeof(*build->wr_bytes));
		build->inlined = calloc(n, limits->inline_bytes);
	}
	if (build->wrs == NULL || build->sges == NULL ||
	    (inlines &&
	     (build->hosts == NULL || build->wr_bytes == NULL || build->inlined == NULL))) {
		verbs_build_fini(build);
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		build->wrs[i].sg_list = &build->sges[i * limits->max_sge];
		build->wrs[i].next = i + 1 < n ? &build->wrs[i + 1] : NULL;
	}
	return 0;
}

void verbs_build_fini(struct verbs_build *build)
{
	free(build->wrs);
	free(build->sges);
	free(build->hosts);
	free(build->wr_bytes);
	free(build->inlined);
	*build = (struct verbs_build){0};
}

static inline bool range_fits(uint64_t offset, uint64_t len, uint64_t have)
{
	return offset <= have && len <= have - offset;
}

/* May this memory meet that memory, on this ep? */
static int pair_check(const struct kvx_ep *ep, const struct kvx_op *op)
{
	uint32_t right = op->kind == KVX_OP_READ ? KVX_ACCESS_READ : KVX_ACCESS_WRITE;

	if (op->kind != KVX_OP_READ && op->kind != KVX_OP_WRITE)
		return -EINVAL;
	if (op->remote->ep != ep || op->local->dom != ep->dom)
		return -EINVAL;
	if (op->local->tenant != ep->tenant || (op->remote->rights & right) == 0)
		return -EACCES;
	return 0;
}

/* Are the bytes of both made visible in one and the same way? */
static bool flush_is_same(const struct kvx_mr *a, const struct kvx_mr *b, const struct kvx_rkey *c,
			  const struct kvx_rkey *d)
{
	return a->flush == b->flush && c->flush_by == d->flush_by &&
	       c->flush_addr == d->flush_addr && c->flush_rkey == d->flush_rkey;
}

/* May an op of this kind be in the chain? */
static inline int cursor_check(struct cursor *cursor, const struct kvx_ep *ep,
			       const struct kvx_op *op)
{
	int err;

	if (op->local == cursor->mr && op->remote == cursor->rkey)
		return 0;
	err = pair_check(ep, op);
	if (err < 0)
		return err;
	if (cursor->mr != NULL && !flush_is_same(op->local, cursor->mr, op->remote, cursor->rkey))
		return -EXDEV; /* it begins the next one */
	cursor->mr = op->local;
	cursor->rkey = op->remote;
	return 0;
}

static inline const uint8_t *piece_host(const struct piece *piece)
{
	const struct kvx_mr *mr = piece->mr;

	return mr->host != 0 ? (const uint8_t *)(mr->host + piece->local) : NULL;
}

static inline void cursor_add_sge(struct verbs_build *build, struct cursor *cursor,
				  const struct piece *piece)
{
	cursor->sge = &cursor->wr->sg_list[cursor->wr->num_sge++];
	cursor->sge->addr = piece->local;
	cursor->sge->length = (uint32_t)piece->len_bytes;
	cursor->sge->lkey = piece->lkey;
	if (piece->len_bytes <= build->limits.inline_bytes)
		build->hosts[cursor->sge - build->sges] = piece_host(piece);
}

/* Does it go on where the last one ended? Then it needs no work request of its own. */
static inline bool cursor_join(struct verbs_build *build, struct cursor *cursor,
			       const struct piece *piece)
{
	const struct verbs_build_limits *limits = &build->limits;

	if (cursor->wr == NULL || piece->remote != cursor->remote_end ||
	    piece->rkey != cursor->wr->wr.rdma.rkey ||
	    piece->len_bytes > limits->max_op_bytes - cursor->bytes)
		return false;
	if (piece->local == cursor->local_end && piece->lkey == cursor->sge->lkey)
		cursor->sge->length += (uint32_t)piece->len_bytes;
	else if ((uint32_t)cursor->wr->num_sge < limits->max_sge)
		cursor_add_sge(build, cursor, piece);
	else
		return false;
	return true;
}

/* False: it needs a work request, and the chain has max of them. */
static inline __attribute__((always_inline)) bool build_add_piece(struct verbs_build *build,
								  struct cursor *cursor,
								  const struct piece *piece,
								  uint32_t max, bool *out_joined)
{
	*out_joined = cursor_join(build, cursor, piece);
	if (!*out_joined) {
		if (build->n_wrs >= max)
			return false;
		cursor->wr = &build->wrs[build->n_wrs++];
		cursor->wr->num_sge = 0;
		cursor->wr->opcode = cursor->opcode;
		cursor->wr->send_flags = 0;
		cursor->wr->wr.rdma.remote_addr = piece->remote;
		cursor->wr->wr.rdma.rkey = piece->rkey;
		cursor->bytes = 0;
		cursor_add_sge(build, cursor, piece);
	}
	cursor->local_end = piece->local + piece->len_bytes;
	cursor->remote_end = piece->remote + piece->len_bytes;
	cursor->bytes += piece->len_bytes;
	if (build->wr_bytes != NULL)
		build->wr_bytes[build->n_wrs - 1] = cursor->bytes;
	return true;
}

/* The next run of bytes of an op, `done` into it: as far as both sides go without a gap. */
static struct piece op_piece(const struct kvx_op *op, uint64_t done)
{
	struct kvx_mr *mr = op->local;
	struct kvx_rkey *rkey = op->remote;
	uint64_t local = op->local_offset + done, remote = op->remote_offset + done;
	struct piece piece = {.len_bytes = op->len_bytes - done, .mr = mr};
	uint64_t left;

	verbs_piece_find(&mr->hit, mr->pieces, mr->n_pieces, local);
	verbs_piece_find(&rkey->hit, rkey->pieces, rkey->n_pieces, remote);
	left = mr->hit.len_bytes - (local - mr->hit.start);
	if (piece.len_bytes > left)
		piece.len_bytes = left;
	left = rkey->hit.len_bytes - (remote - rkey->hit.start);
	if (piece.len_bytes > left)
		piece.len_bytes = left;
	piece.local = local + mr->hit.delta;
	piece.remote = remote + rkey->hit.delta;
	piece.lkey = mr->hit.key;
	piece.rkey = rkey->hit.key;
	return piece;
}

static uint32_t op_count_pieces(const struct kvx_op *op)
{
	uint32_t n = 0;

	for (uint64_t done = 0; done < op->len_bytes; n++)
		done += op_piece(op, done).len_bytes;
	return n;
}

/* An op of several pieces: all of them or none. 1, 0: no room now, -EMSGSIZE: never. */
static int build_add_split(struct verbs_build *build, struct cursor *cursor,
			   const struct kvx_op *op, uint32_t max)
{
	uint32_t n = op_count_pieces(op);
	struct piece piece;
	bool joined;

	if (n > build->limits.op_wrs)
		return -EMSGSIZE;
	if (n + build->n_wrs > max)
		return 0;
	for (uint64_t done = 0; done < op->len_bytes; done += piece.len_bytes) {
		piece = op_piece(op, done);
		(void)build_add_piece(build, cursor, &piece, max, &joined);
	}
	return 1;
}

/* An op that is not where the last one was. 1, 0: no room, or an error. */
static int build_add_far(struct verbs_build *build, struct cursor *cursor, const struct kvx_op *op,
			 uint32_t room, uint32_t max)
{
	struct piece piece;
	bool joined;

	if (!range_fits(op->local_offset, op->len_bytes, op->local->len_bytes) ||
	    !range_fits(op->remote_offset, op->len_bytes, op->remote->len_bytes))
		return -ERANGE;
	piece = op_piece(op, 0);
	if (piece.len_bytes < op->len_bytes) {
		/* The first op of a chain may make it longer than it should be. */
		if (build->n_wrs == 0)
			max = room < build->limits.op_wrs ? room : build->limits.op_wrs;
		return build_add_split(build, cursor, op, max);
	}
	if (!build_add_piece(build, cursor, &piece, max, &joined))
		return 0;
	build->n_gathered += joined;
	return 1;
}

/* 1, 0: no room, or why it cannot be posted. Most ops are in the pieces of the one before, which
 * are pieces of the regions: nothing else has to be checked. */
static inline int build_add(struct verbs_build *build, struct cursor *cursor,
			    const struct kvx_op *op, uint32_t room)
{
	uint32_t max = room < build->limits.max_wrs ? room : build->limits.max_wrs;
	const struct verbs_piece *here = &op->local->hit, *there = &op->remote->hit;
	struct piece piece;
	bool joined;

	if (op->len_bytes == 0 || op->len_bytes > build->limits.max_op_bytes)
		return -EINVAL;
	if (!verbs_piece_has(here, op->local_offset, op->len_bytes) ||
	    !verbs_piece_has(there, op->remote_offset, op->len_bytes))
		return build_add_far(build, cursor, op, room, max);
	piece = (struct piece){.local = op->local_offset + here->delta,
			       .remote = op->remote_offset + there->delta,
			       .len_bytes = op->len_bytes,
			       .lkey = here->key,
			       .rkey = there->key,
			       .mr = op->local};
	if (!build_add_piece(build, cursor, &piece, max, &joined))
		return 0;
	build->n_gathered += joined;
	return 1;
}

unsigned verbs_build_chain(struct verbs_build *build, const struct kvx_ep *ep,
			   const struct kvx_op *ops, unsigned n, uint32_t room, int *out_status)
{
	struct cursor cursor = {.opcode = ops[0].kind == KVX_OP_READ ? IBV_WR_RDMA_READ
								     : IBV_WR_RDMA_WRITE};
	uint64_t shortest = UINT64_MAX;
	unsigned i = 0;
	int rc = 0;

	build->n_wrs = build->n_gathered = 0;
	build->bytes = 0;
	for (; i < n; i++) {
		const struct kvx_op *op = &ops[i];

		if (i > 0 && (op->cookie != ops[0].cookie || op->kind != ops[0].kind ||
			      build->bytes >= build->limits.chain_bytes))
			break;
		rc = cursor_check(&cursor, ep, op);
		if (rc == 0)
			rc = build_add(build, &cursor, op, room);
		if (rc <= 0)
			break;
		build->bytes += op->len_bytes;
		if (op->len_bytes < shortest)
			shortest = op->len_bytes;
	}
	build->shortest = shortest;
	build->n_ops = i;
	*out_status = i == 0 && rc < 0 ? rc : 0;
	return i;
}

static bool wr_can_inline(const struct verbs_build *build, uint32_t i)
{
	const struct ibv_send_wr *wr = &build->wrs[i];
	const uint8_t **hosts = &build->hosts[wr->sg_list - build->sges];

	if (wr->opcode != IBV_WR_RDMA_WRITE || build->wr_bytes[i] > build->limits.inline_bytes)
		return false;
	for (int k = 0; k < wr->num_sge; k++)
		if (hosts[k] == NULL)
			return false;
	return true;
}

static void wr_copy(struct verbs_build *build, uint32_t i)
{
	const struct ibv_send_wr *wr = &build->wrs[i];
	const uint8_t **hosts = &build->hosts[wr->sg_list - build->sges];
	uint8_t *to = build->inlined + (size_t)i * build->limits.inline_bytes;

	for (int k = 0; k < wr->num_sge; k++) {
		memcpy(to, hosts[k], wr->sg_list[k].length);
		to += wr->sg_list[k].length;
	}
}

/* In the guard: client memory may be gone. */
static void copy_guarded(void *arg)
{
	struct verbs_build *build = arg;

	for (uint32_t i = 0; i < build->n_wrs; i++) {
		if (!wr_can_inline(build, i))
			continue;
		wr_copy(build, i);
		build->wrs[i].send_flags = IBV_SEND_INLINE;
	}
}

static void inline_undo(struct verbs_build *build)
{
	for (uint32_t i = 0; i < build->n_wrs; i++)
		build->wrs[i].send_flags = 0;
}

unsigned verbs_build_inline(struct verbs_build *build)
{
	unsigned n = 0;

	/* The copy is ours, not the library's: a fault must not leave its locks held. Where the
	 * memory is gone the device reads the pages that were registered. */
	if (build->shortest > build->limits.inline_bytes)
		return 0;
	if (kvx_guard_run(copy_guarded, build) < 0) {
		inline_undo(build);
		return 0;
	}
	for (uint32_t i = 0; i < build->n_wrs; i++) {
		struct ibv_send_wr *wr = &build->wrs[i];

		if (wr->send_flags == 0)
			continue;
		wr->sg_list[0] = (struct ibv_sge){
		    .addr = (uintptr_t)(build->inlined + (size_t)i * build->limits.inline_bytes),
		    .length = (uint32_t)build->wr_bytes[i],
		};
		wr->num_sge = 1;
		n++;
	}
	return n;
}
