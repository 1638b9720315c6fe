/* From ops to work requests, without a device: what shares a work request, what is cut, and that no
 * byte is lost or misplaced on the way. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mem/guard.h"
#include "test_end.h"
#include "test_memory.h"
#include "transport/verbs/verbs_priv.h"

#define LKEY(i)   (0x1000u + (i)*2)
#define RKEY(i)   (0x9000u + (i)*2)
#define MAX_BYTES (1u << 16)

struct rig {
	struct verbs_build build;
	struct verbs_build_limits limits;
	struct kvx_dom dom;
	struct kvx_ep ep;
	struct kvx_mr mr;
	struct kvx_rkey rkey;
	uint32_t l_shift, r_shift, l_base, r_base;
	struct verbs_piece l_pieces[VERBS_MAX_CHUNKS], r_pieces[VERBS_MAX_CHUNKS];
};

static uint32_t chunks_of(uint64_t base, uint64_t len, uint32_t shift)
{
	return shift >= 63 ? 1 : (uint32_t)(((base + len - 1) >> shift) + 1);
}

/* Cuts both regions anew, for other bases. */
static void rig_cut(struct rig *rig, uint64_t len, uint32_t l_base, uint32_t r_base)
{
	rig->l_base = l_base;
	rig->r_base = r_base;
	rig->mr.n_pieces = chunks_of(l_base, len, rig->l_shift);
	rig->rkey.n_pieces = chunks_of(r_base, len, rig->r_shift);
	cr_assert_leq(rig->mr.n_pieces, VERBS_MAX_CHUNKS);
	cr_assert_leq(rig->rkey.n_pieces, VERBS_MAX_CHUNKS);
	rig->mr.pieces = rig->l_pieces;
	rig->rkey.pieces = rig->r_pieces;
	verbs_chunks_fill(rig->l_pieces, rig->mr.n_pieces, len, l_base, rig->l_shift);
	verbs_chunks_fill(rig->r_pieces, rig->rkey.n_pieces, len, r_base, rig->r_shift);
	for (uint32_t i = 0; i < VERBS_MAX_CHUNKS; i++) {
		rig->l_pieces[i].key = LKEY(i);
		rig->r_pieces[i].key = RKEY(i);
	}
	rig->mr.hit = rig->l_pieces[0];
	rig->rkey.hit = rig->r_pieces[0];
}

static struct rig *rig_make(const struct verbs_build_limits *limits, uint64_t len, uint32_t l_shift,
			    uint32_t r_shift)
{
	struct rig *rig = calloc(1, sizeof(*rig));

	rig->limits = *limits;
	rig->l_shift = l_shift;
	rig->r_shift = r_shift;
	rig->ep.dom = &rig->dom;
	rig->mr = (struct kvx_mr){.dom = &rig->dom, .len_bytes = len};
	rig->rkey = (struct kvx_rkey){
	    .ep = &rig->ep, .len_bytes = len, .rights = KVX_ACCESS_READ | KVX_ACCESS_WRITE};
	rig_cut(rig, len, 0, 0);
	cr_assert_eq(verbs_build_init(&rig->build, limits), 0);
	return rig;
}

static void rig_free(struct rig *rig)
{
	verbs_build_fini(&rig->build);
	free(rig);
}

static struct kvx_op op_make(struct rig *rig, uint64_t local, uint64_t remote, uint64_t len)
{
	return (struct kvx_op){.local = &rig->mr,
			       .remote = &rig->rkey,
			       .local_offset = local,
			       .remote_offset = remote,
			       .len_bytes = len,
			       .cookie = 5,
			       .kind = KVX_OP_WRITE};
}

static unsigned chain(struct rig *rig, const struct kvx_op *ops, unsigned n, uint32_t room)
{
	int status;
	unsigned taken = verbs_build_chain(&rig->build, &rig->ep, ops, n, room, &status);

	cr_assert_eq(status, 0);
	return taken;
}

static const struct verbs_build_limits usual = {
    .max_wrs = 16, .max_sge = 4, .max_op_bytes = 8192, .chain_bytes = 1 << 20};

Test(verbs_build, neighbours_on_both_sides_become_one_piece)
{
	struct rig *rig = rig_make(&usual, MAX_BYTES, 63, 63);
	struct kvx_op ops[4];

	for (unsigned i = 0; i < 4; i++)
		ops[i] = op_make(rig, 100 + i * 512, 9000 + i * 512, 512);
	cr_assert_eq(chain(rig, ops, 4, 16), 4);
	cr_assert_eq(rig->build.n_wrs, 1);
	cr_assert_eq(rig->build.wrs[0].num_sge, 1);
	cr_assert_eq(rig->build.wrs[0].sg_list[0].length, 2048);
	cr_assert_eq(rig->build.wrs[0].wr.rdma.remote_addr, 9000);
	cr_assert_eq(rig->build.n_gathered, 3);
	rig_free(rig);
	KVX_TEST_END();
}

Test(verbs_build, neighbours_on_the_other_side_are_gathered_up_to_max_sge)
{
	struct rig *rig = rig_make(&usual, MAX_BYTES, 63, 63);
	struct kvx_op ops[9];

	for (unsigned i = 0; i < 9; i++)
		ops[i] = op_make(rig, i * 2000, 9000 + i * 512, 512);
	cr_assert_eq(chain(rig, ops, 9, 16), 9);
	cr_assert_eq(rig->build.n_wrs, 3);
	cr_assert_eq(rig->build.wrs[0].num_sge, 4);
	cr_assert_eq(rig->build.wrs[1].num_sge, 4);
	cr_assert_eq(rig->build.wrs[2].num_sge, 1);
	rig_free(rig);
	KVX_TEST_END();
}

Test(verbs_build, request_is_no_longer_than_an_op_may_be)
{
	struct rig *rig = rig_make(&usual, MAX_BYTES, 63, 63);
	struct kvx_op ops[3];

	for (unsigned i = 0; i < 3; i++)
		ops[i] = op_make(rig, i * 3000, i * 3000, 3000);
	cr_assert_eq(chain(rig, ops, 3, 16), 3);
	cr_assert_eq(rig->build.n_wrs, 2, "8192 is the most of one");
	rig_free(rig);
	KVX_TEST_END();
}

Test(verbs_build, chain_holds_one_kind_and_one_batch)
{
	struct rig *rig = rig_make(&usual, MAX_BYTES, 63, 63);
	struct kvx_op ops[3];

	for (unsigned i = 0; i < 3; i++)
		ops[i] = op_make(rig, i * 512, i * 512, 512);
	ops[1].kind = KVX_OP_READ;
	cr_assert_eq(chain(rig, ops, 3, 16), 1);
	cr_assert_eq(chain(rig, ops + 1, 2, 16), 1);
	cr_assert_eq(rig->build.wrs[0].opcode, IBV_WR_RDMA_READ);
	ops[1].kind = KVX_OP_WRITE;
	ops[2].cookie = 6;
	cr_assert_eq(chain(rig, ops, 3, 16), 2);
	rig_free(rig);
	KVX_TEST_END();
}

Test(verbs_build, chain_ends_where_room_ends)
{
	struct rig *rig = rig_make(&usual, MAX_BYTES, 63, 63);
	struct kvx_op ops[32];

	for (unsigned i = 0; i < 32; i++)
		ops[i] = op_make(rig, i * 1024, i * 1024, 512);
	cr_assert_eq(chain(rig, ops, 32, 1000), 16, "post_batch");
	cr_assert_eq(chain(rig, ops, 32, 5), 5, "room");
	cr_assert_eq(chain(rig, ops, 32, 0), 0);
	rig_free(rig);
	KVX_TEST_END();
}

Test(verbs_build, op_over_the_edge_of_a_chunk_is_cut)
{
	struct rig *rig = rig_make(&usual, MAX_BYTES, 12, 13);
	struct kvx_op op = op_make(rig, 4000, 8100, 200);

	cr_assert_eq(chain(rig, &op, 1, 16), 1);
	cr_assert_eq(rig->build.n_wrs, 2, "the remote edge needs a second request");
	cr_assert_eq(rig->build.wrs[0].wr.rdma.rkey, RKEY(0));
	cr_assert_eq(rig->build.wrs[0].sg_list[0].length, 92);
	cr_assert_eq(rig->build.wrs[0].sg_list[0].lkey, LKEY(0));
	cr_assert_eq(rig->build.wrs[1].wr.rdma.rkey, RKEY(1));
	cr_assert_eq(rig->build.wrs[1].wr.rdma.remote_addr, 8192);
	cr_assert_eq(rig->build.wrs[1].num_sge, 2, "the local edge a second piece");
	cr_assert_eq(rig->build.wrs[1].sg_list[0].length, 4);
	cr_assert_eq(rig->build.wrs[1].sg_list[1].lkey, LKEY(1));
	cr_assert_eq(rig->build.wrs[1].sg_list[1].addr, 4096);
	rig_free(rig);
	KVX_TEST_END();
}

Test(verbs_build, cut_op_fits_whole_or_not_at_all)
{
	struct rig *rig = rig_make(&usual, MAX_BYTES, 12, 13);
	struct kvx_op op = op_make(rig, 0, 8100, 200);

	cr_assert_eq(chain(rig, &op, 1, 1), 0);
	cr_assert_eq(chain(rig, &op, 1, 2), 1);
	rig_free(rig);
	KVX_TEST_END();
}

static int refusal(struct rig *rig, const struct kvx_op *op)
{
	int status = 0;

	cr_assert_eq(verbs_build_chain(&rig->build, &rig->ep, op, 1, 16, &status), 0);
	cr_assert_eq(rig->build.n_wrs, 0);
	return status;
}

Test(verbs_build, op_outside_of_what_is_allowed_is_refused)
{
	struct rig *rig = rig_make(&usual, MAX_BYTES, 63, 63);
	struct kvx_op good = op_make(rig, 0, 0, 512), op;
	struct kvx_ep other = {.dom = &rig->dom};

	op = good, op.local_offset = MAX_BYTES - 511;
	cr_assert_eq(refusal(rig, &op), -ERANGE);
	op = good, op.remote_offset = MAX_BYTES - 511;
	cr_assert_eq(refusal(rig, &op), -ERANGE);
	op = good, op.remote_offset = UINT64_MAX - 100;
	cr_assert_eq(refusal(rig, &op), -ERANGE);
	op = good, op.len_bytes = 0;
	cr_assert_eq(refusal(rig, &op), -EINVAL);
	op = good, op.len_bytes = usual.max_op_bytes + 1;
	cr_assert_eq(refusal(rig, &op), -EINVAL);
	op = good, op.kind = 3;
	cr_assert_eq(refusal(rig, &op), -EINVAL);
	rig->rkey.rights = KVX_ACCESS_READ;
	cr_assert_eq(refusal(rig, &good), -EACCES);
	rig->rkey.rights = KVX_ACCESS_WRITE;
	rig->mr.tenant = 1;
	cr_assert_eq(refusal(rig, &good), -EACCES, "another tenant's memory");
	rig->mr.tenant = 0;
	rig->rkey.ep = &other;
	cr_assert_eq(refusal(rig, &good), -EINVAL, "a key of another lane");
	rig_free(rig);
	KVX_TEST_END();
}

Test(verbs_build, chain_ends_before_an_op_that_is_refused)
{
	struct rig *rig = rig_make(&usual, MAX_BYTES, 63, 63);
	struct kvx_op ops[3];

	for (unsigned i = 0; i < 3; i++)
		ops[i] = op_make(rig, i * 512, i * 512, 512);
	ops[1].remote_offset = MAX_BYTES;
	cr_assert_eq(chain(rig, ops, 3, 16), 1);
	cr_assert_eq(refusal(rig, &ops[1]), -ERANGE);
	rig_free(rig);
	KVX_TEST_END();
}

Test(verbs_build, short_writes_carry_their_data)
{
	struct verbs_build_limits limits = usual;
	uint8_t *bytes = malloc(MAX_BYTES);
	struct kvx_op ops[4];
	struct rig *rig;

	cr_assert_eq(kvx_guard_install(), 0);
	test_fill(bytes, MAX_BYTES, 3);
	limits.inline_bytes = 64;
	rig = rig_make(&limits, MAX_BYTES, 63, 63);
	rig->mr.host = (uintptr_t)bytes;
	ops[0] = op_make(rig, 100, 1000, 20); /* two pieces of one request, together 64 */
	ops[1] = op_make(rig, 700, 1020, 44);
	ops[2] = op_make(rig, 0, 3000, 65); /* one byte too long */
	ops[3] = op_make(rig, 50, 5000, 1);
	cr_assert_eq(chain(rig, ops, 4, 16), 4);
	cr_assert_eq(rig->build.n_wrs, 3);
	cr_assert_eq(verbs_build_inline(&rig->build), 2);
	cr_assert(rig->build.wrs[0].send_flags & IBV_SEND_INLINE);
	cr_assert(!(rig->build.wrs[1].send_flags & IBV_SEND_INLINE));
	cr_assert(rig->build.wrs[2].send_flags & IBV_SEND_INLINE);
	cr_assert_eq(rig->build.wrs[0].num_sge, 1);
	cr_assert_eq(rig->build.wrs[0].sg_list[0].length, 64);
	cr_assert_arr_eq((void *)(uintptr_t)rig->build.wrs[0].sg_list[0].addr, bytes + 100, 20);
	cr_assert_arr_eq((void *)(uintptr_t)(rig->build.wrs[0].sg_list[0].addr + 20), bytes + 700,
			 44);
	rig_free(rig);
	free(bytes);
	KVX_TEST_END();
}

Test(verbs_build, memory_that_is_gone_is_left_to_the_device)
{
	struct verbs_build_limits limits = usual;
	uint8_t *bytes;
	struct kvx_op op;
	struct rig *rig;
	int fd = test_memfd(8192, 0);

	cr_assert_eq(kvx_guard_install(), 0);
	bytes = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert_eq(ftruncate(fd, 0), 0);
	limits.inline_bytes = 64;
	rig = rig_make(&limits, 8192, 63, 63);
	rig->mr.host = (uintptr_t)bytes;
	op = op_make(rig, 4096, 0, 64);
	cr_assert_eq(chain(rig, &op, 1, 16), 1);
	cr_assert_eq(verbs_build_inline(&rig->build), 0);
	cr_assert_eq(rig->build.wrs[0].send_flags, 0);
	cr_assert_eq(rig->build.wrs[0].sg_list[0].addr, 4096);
	rig_free(rig);
	munmap(bytes, 8192);
	close(fd);
	KVX_TEST_END();
}

/* --- the property --- */

/* What a device would do with a chain: to[i] is the local offset whose byte comes to remote offset
 * i, plus one. Checks what a device checks. */
static void chain_carry(const struct rig *rig, uint32_t *to)
{
	const struct verbs_build *build = &rig->build;

	for (uint32_t i = 0; i < build->n_wrs; i++) {
		const struct ibv_send_wr *wr = &build->wrs[i];
		uint64_t remote = wr->wr.rdma.remote_addr, len = 0;

		cr_assert(wr->num_sge >= 1 && (uint32_t)wr->num_sge <= rig->limits.max_sge);
		for (int k = 0; k < wr->num_sge; k++) {
			const struct ibv_sge *sge = &wr->sg_list[k];
			uint64_t first = sge->addr >> rig->l_shift;
			uint64_t last = (sge->addr + sge->length - 1) >> rig->l_shift;

			cr_assert_eq(first, last, "a piece over the edge of a chunk");
			cr_assert_eq(sge->lkey, LKEY((uint32_t)first));
			for (uint32_t b = 0; b < sge->length; b++)
				to[remote - rig->r_base + len + b] =
				    (uint32_t)(sge->addr - rig->l_base + b + 1);
			len += sge->length;
		}
		cr_assert_leq(len, rig->limits.max_op_bytes);
		cr_assert_eq(remote >> rig->r_shift, (remote + len - 1) >> rig->r_shift);
		cr_assert_eq(wr->wr.rdma.rkey, RKEY((uint32_t)(remote >> rig->r_shift)));
	}
}

/* Ops like those of block lists: often next to the one before, on one side or on both. No two of
 * them to the same place. */
static unsigned ops_random(struct rig *rig, struct kvx_op *ops, unsigned max, uint64_t *seed)
{
	uint64_t local = test_random(seed, 5000), remote = test_random(seed, 5000);
	unsigned n = 0;

	while (n < max) {
		uint64_t len = 1 + test_random(seed, test_random(seed, 3) == 0 ? 3000 : 300);

		if (test_random(seed, 2) == 0)
			local = test_random(seed, MAX_BYTES - 4096);
		if (test_random(seed, 3) == 0)
			remote += test_random(seed, 700);
		if (local + len > rig->mr.len_bytes || remote + len > rig->rkey.len_bytes)
			break;
		ops[n++] = op_make(rig, local, remote, len);
		local += len;
		remote += len;
	}
	return n;
}

static void property_once(uint64_t *seed)
{
	static uint32_t want[MAX_BYTES], got[MAX_BYTES];
	struct verbs_build_limits limits = {
	    .max_wrs = (uint32_t)(1 + test_random(seed, 20)),
	    .max_sge = (uint32_t)(1 + test_random(seed, 8)),
	    .max_op_bytes = 4096,
	    .chain_bytes = 1 + test_random(seed, 20000),
	};
	struct rig *rig =
	    rig_make(&limits, MAX_BYTES - 8192,
		     (uint32_t)(test_random(seed, 3) == 0 ? 63 : 12 + test_random(seed, 3)),
		     (uint32_t)(test_random(seed, 3) == 0 ? 63 : 12 + test_random(seed, 3)));
	struct kvx_op ops[100];
	unsigned n, at = 0;

	rig_cut(rig, MAX_BYTES - 8192, (uint32_t)test_random(seed, 4096),
		(uint32_t)test_random(seed, 4096));
	n = ops_random(rig, ops, 100, seed);
	memset(want, 0, sizeof(want));
	memset(got, 0, sizeof(got));
	for (unsigned i = 0; i < n; i++)
		for (uint64_t b = 0; b < ops[i].len_bytes; b++)
			want[ops[i].remote_offset + b] = (uint32_t)(ops[i].local_offset + b + 1);
	while (at < n) {
		uint32_t room = (uint32_t)(1 + test_random(seed, limits.max_wrs + VERBS_OP_WRS));
		unsigned taken = chain(rig, ops + at, n - at, room);

		cr_assert_leq(rig->build.n_wrs, room);
		cr_assert_eq(taken > 0, rig->build.n_ops > 0);
		if (taken > 0)
			chain_carry(rig, got);
		else
			cr_assert_leq(room, VERBS_OP_WRS, "one op fits");
		at += taken;
	}
	cr_assert_arr_eq(want, got, sizeof(want));
	rig_free(rig);
}

Test(verbs_build, random_ops_reach_their_place_and_no_other)
{
	uint64_t seed = 31;

	for (unsigned i = 0; i < 3000; i++)
		property_once(&seed);
	KVX_TEST_END();
}
