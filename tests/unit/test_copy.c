/* The copy backend: bytes, bounds, rights, fences, and memory that a client took away. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault_alloc.h"
#include "mem/guard.h"
#include "mem/region.h"
#include "test_end.h"
#include "test_memory.h"
#include "transport/transport.h"

#define REGION_BYTES (512u * 1024u)
#define PAGE         4096u
#define ALL_RIGHTS   (KVX_ACCESS_READ | KVX_ACCESS_WRITE)

/* A domain with a local and a remote region of the same size. */
struct bench {
	const struct kvx_transport_ops *ops;
	struct kvx_dom *dom;
	struct kvx_transport_limits limits;
	struct kvx_ep *ep;
	struct kvx_mem local_mem, remote_mem;
	struct kvx_mr *local, *remote;
	struct kvx_rkey *rkey;
};

static void bench_open(struct bench *b, uint64_t nt_min_bytes, uint32_t rights)
{
	struct kvx_dom_conf conf = {.copy_nt_min_bytes = nt_min_bytes};
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX], addr[KVX_TRANSPORT_ADDR_MAX];
	size_t addr_len = sizeof(addr);

	b->ops = &kvx_copy_ops;
	struct kvx_rail rail;
	cr_assert_eq(b->ops->probe(&conf, &rail, 1, NULL), 1);
	cr_assert_eq(b->ops->open(&conf, &b->dom, &b->limits, NULL), 0);
	cr_assert_eq(b->ops->listen(b->dom, 0, &b->ep, addr, &addr_len), 0);
	test_mem_make(&b->local_mem, REGION_BYTES);
	test_mem_make(&b->remote_mem, REGION_BYTES);
	test_fill(b->local_mem.addr, REGION_BYTES, 1);
	test_fill(b->remote_mem.addr, REGION_BYTES, 2);
	cr_assert_eq(b->ops->mem_reg(b->dom, 0, &b->local_mem, 0, &b->local), 0);
	cr_assert_eq(b->ops->mem_reg(b->dom, 0, &b->remote_mem, rights, &b->remote), 0);
	int len = b->ops->mkey_pack(b->remote, mkey, sizeof(mkey));
	cr_assert_gt(len, 0);
	cr_assert_eq(b->ops->rkey_unpack(b->ep, mkey, (size_t)len, &b->rkey), 0);
}

static void bench_close(struct bench *b)
{
	b->ops->rkey_free(b->rkey);
	cr_assert_eq(b->ops->fence(b->ep), 0);
	b->ops->ep_close(b->ep);
	if (b->remote != NULL)
		b->ops->mem_dereg(b->remote);
	if (b->local != NULL)
		b->ops->mem_dereg(b->local);
	b->ops->close(b->dom);
	kvx_mem_fini(&b->local_mem);
	kvx_mem_fini(&b->remote_mem);
}

static struct kvx_op op_make(const struct bench *b, enum kvx_op_kind kind, uint64_t local_offset,
			     uint64_t remote_offset, uint64_t len, uint64_t cookie)
{
	return (struct kvx_op){.local = b->local,
			       .remote = b->rkey,
			       .local_offset = local_offset,
			       .remote_offset = remote_offset,
			       .len_bytes = len,
			       .cookie = cookie,
			       .kind = kind};
}

/* Posts one op and runs it to its end. */
static int run_one(struct bench *b, const struct kvx_op *op)
{
	struct kvx_tevent event = {0};

	cr_assert_eq(b->ops->post(b->ep, op, 1), 1);
	cr_assert_eq(b->ops->arm(b->dom), -EAGAIN);
	cr_assert_eq(b->ops->progress(b->dom, &event, 1), 1);
	cr_assert_eq(event.kind, KVX_TEV_OP_DONE);
	cr_assert_eq(event.n_ops, 1);
	cr_assert_eq(event.cookie, op->cookie);
	cr_assert_eq(b->ops->arm(b->dom), 0);
	return event.status;
}

Test(copy, reads_and_writes)
{
	struct bench b;

	bench_open(&b, 16384, ALL_RIGHTS);
	struct kvx_op write = op_make(&b, KVX_OP_WRITE, 10, 5000, 100, 7);
	cr_assert_eq(run_one(&b, &write), 0);
	cr_assert_eq(memcmp(b.remote_mem.addr + 5000, b.local_mem.addr + 10, 100), 0);
	cr_assert_eq(b.remote_mem.addr[4999], test_byte(2, 4999));
	cr_assert_eq(b.remote_mem.addr[5100], test_byte(2, 5100));
	struct kvx_op read = op_make(&b, KVX_OP_READ, 70000, 90000, 40000, 8);
	cr_assert_eq(run_one(&b, &read), 0);
	for (unsigned i = 0; i < 40000; i++)
		cr_assert_eq(b.local_mem.addr[70000 + i], test_byte(2, 90000 + i));
	bench_close(&b);
	KVX_TEST_END();
}

/* Ops of one kind whose targets are disjoint within each four: those may be copied in any order. */
static void make_random_ops(const struct bench *b, uint64_t *rng, struct kvx_op *ops, unsigned n)
{
	static const uint64_t longest[] = {64, 1024, 4096, 4097, 8192, 16384, 100000};
	enum kvx_op_kind kind = test_random(rng, 2) ? KVX_OP_READ : KVX_OP_WRITE;

	for (unsigned i = 0; i < n; i++) {
		uint64_t len = 1 + test_random(rng, longest[test_random(rng, 7)]);

		if (i % 4 != 0 && test_random(rng, 4)) /* four of one length are copied together */
			len = ops[i - 1].len_bytes;
		uint64_t from = test_random(rng, REGION_BYTES - len + 1);
		uint64_t to = REGION_BYTES / 4 * (i % 4) + test_random(rng, REGION_BYTES / 4 - len);
		ops[i] = op_make(b, kind, kind == KVX_OP_READ ? to : from,
				 kind == KVX_OP_READ ? from : to, len, i / 3);
	}
}

static void run_all(struct bench *b, const struct kvx_op *ops, unsigned n_ops)
{
	struct kvx_tevent events[2];
	unsigned n_done = 0;

	cr_assert_eq(b->ops->post(b->ep, ops, n_ops), (int)n_ops);
	while (n_done < n_ops) {
		int n = b->ops->progress(b->dom, events, 2);

		cr_assert_gt(n, 0);
		for (int e = 0; e < n; e++) {
			cr_assert_eq(events[e].status, 0);
			n_done += events[e].n_ops;
		}
	}
	cr_assert_eq(n_done, n_ops);
}

/* Against a model: two plain buffers on which the same ops are done by memcpy. */
static void random_ops(uint64_t seed, uint64_t nt_min_bytes)
{
	uint8_t *local = malloc(REGION_BYTES), *remote = malloc(REGION_BYTES);
	struct kvx_op ops[4];
	struct bench b;
	uint64_t rng = seed;

	bench_open(&b, nt_min_bytes, ALL_RIGHTS);
	test_fill(local, REGION_BYTES, 1);
	test_fill(remote, REGION_BYTES, 2);
	for (unsigned round = 0; round < 100; round++) {
		make_random_ops(&b, &rng, ops, 4);
		run_all(&b, ops, 4);
		for (unsigned i = 0; i < 4; i++) {
			uint8_t *at_local = local + ops[i].local_offset;
			uint8_t *at_remote = remote + ops[i].remote_offset;

			if (ops[i].kind == KVX_OP_READ)
				memcpy(at_local, at_remote, ops[i].len_bytes);
			else
				memcpy(at_remote, at_local, ops[i].len_bytes);
		}
		cr_assert_eq(memcmp(local, b.local_mem.addr, REGION_BYTES), 0, "round %u", round);
		cr_assert_eq(memcmp(remote, b.remote_mem.addr, REGION_BYTES), 0, "round %u", round);
	}
	bench_close(&b);
	free(local);
	free(remote);
}

Test(copy, random_ops_move_exactly_their_bytes)
{
	for (uint64_t seed = 1; seed <= 12; seed++)
		random_ops(seed, seed % 3 == 0 ? UINT64_MAX : seed % 3 == 1 ? 16384 : 1);
	KVX_TEST_END();
}

Test(copy, overlapping_ends_behave_as_memmove)
{
	struct bench b;
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	uint8_t *model = malloc(REGION_BYTES);
	struct kvx_mr *both;
	struct kvx_rkey *self;

	bench_open(&b, 16384, ALL_RIGHTS);
	memcpy(model, b.local_mem.addr, REGION_BYTES);
	cr_assert_eq(b.ops->mem_reg(b.dom, 0, &b.local_mem, ALL_RIGHTS, &both), 0);
	int len = b.ops->mkey_pack(both, mkey, sizeof(mkey));
	cr_assert_eq(b.ops->rkey_unpack(b.ep, mkey, (size_t)len, &self), 0);
	for (uint64_t shift = 1; shift < 70000; shift *= 3) {
		struct kvx_op op = op_make(&b, KVX_OP_WRITE, 1000, 1000 + shift, 60000, 1);

		op.remote = self;
		memmove(model + 1000 + shift, model + 1000, 60000);
		cr_assert_eq(run_one(&b, &op), 0);
		cr_assert_eq(memcmp(model, b.local_mem.addr, REGION_BYTES), 0, "shift %lu", shift);
	}
	b.ops->rkey_free(self);
	b.ops->mem_dereg(both);
	bench_close(&b);
	free(model);
	KVX_TEST_END();
}

Test(copy, ops_outside_of_their_mr_touch_nothing)
{
	static const uint64_t bad[][3] = {
	    {REGION_BYTES - 99, 0, 100}, {0, REGION_BYTES - 99, 100}, {UINT64_MAX - 10, 0, 100},
	    {0, UINT64_MAX - 10, 100},   {REGION_BYTES, 0, 1},        {0, REGION_BYTES, 1},
	};
	struct bench b;

	bench_open(&b, 16384, ALL_RIGHTS);
	for (unsigned i = 0; i < 6; i++)
		for (enum kvx_op_kind kind = KVX_OP_READ; kind <= KVX_OP_WRITE; kind++) {
			struct kvx_op op = op_make(&b, kind, bad[i][0], bad[i][1], bad[i][2], 1);

			cr_assert_eq(run_one(&b, &op), -ERANGE, "case %u", i);
		}
	struct kvx_op empty = op_make(&b, KVX_OP_READ, 0, 0, 0, 1);
	cr_assert_eq(run_one(&b, &empty), -EINVAL);
	struct kvx_op longer = op_make(&b, KVX_OP_READ, 0, 0, b.limits.max_op_bytes + 1, 1);
	cr_assert_eq(run_one(&b, &longer), -EINVAL);
	struct kvx_op odd = op_make(&b, (enum kvx_op_kind)3, 0, 0, 10, 1);
	cr_assert_eq(run_one(&b, &odd), -EINVAL);
	for (unsigned i = 0; i < REGION_BYTES; i++) {
		cr_assert_eq(b.local_mem.addr[i], test_byte(1, i));
		cr_assert_eq(b.remote_mem.addr[i], test_byte(2, i));
	}
	bench_close(&b);
	KVX_TEST_END();
}

Test(copy, rights_are_kept)
{
	struct bench b;

	bench_open(&b, 16384, KVX_ACCESS_READ);
	struct kvx_op write = op_make(&b, KVX_OP_WRITE, 0, 0, 10, 1);
	struct kvx_op read = op_make(&b, KVX_OP_READ, 0, 0, 10, 1);
	cr_assert_eq(run_one(&b, &write), -EACCES);
	cr_assert_eq(b.remote_mem.addr[0], test_byte(2, 0));
	cr_assert_eq(run_one(&b, &read), 0);
	bench_close(&b);
	bench_open(&b, 16384, KVX_ACCESS_WRITE);
	write = op_make(&b, KVX_OP_WRITE, 0, 0, 10, 1);
	read = op_make(&b, KVX_OP_READ, 100, 100, 10, 1);
	cr_assert_eq(run_one(&b, &write), 0);
	cr_assert_eq(run_one(&b, &read), -EACCES);
	cr_assert_eq(b.local_mem.addr[100], test_byte(1, 100));
	bench_close(&b);
	KVX_TEST_END();
}

Test(copy, completions_are_coalesced_by_cookie)
{
	struct kvx_tevent events[8];
	struct kvx_op ops[10];
	struct bench b;

	bench_open(&b, 16384, ALL_RIGHTS);
	for (unsigned i = 0; i < 10; i++)
		ops[i] = op_make(&b, KVX_OP_WRITE, i * 64, i * 64, 64, i < 6 ? 100 : 101);
	cr_assert_eq(b.ops->post(b.ep, ops, 10), 10);
	cr_assert_eq(b.ops->progress(b.dom, events, 1), 1); /* room for one only */
	cr_assert_eq(events[0].cookie, 100);
	cr_assert_eq(events[0].n_ops, 6);
	cr_assert_eq(b.ops->arm(b.dom), -EAGAIN);
	cr_assert_eq(b.ops->progress(b.dom, events, 8), 1);
	cr_assert_eq(events[0].cookie, 101);
	cr_assert_eq(events[0].n_ops, 4);
	cr_assert_eq(b.ops->progress(b.dom, events, 8), 0);
	bench_close(&b);
	KVX_TEST_END();
}

Test(copy, a_full_ring_takes_a_short_count_and_one_turn_is_bounded)
{
	struct kvx_tevent events[8];
	struct bench b;
	unsigned taken = 0, done = 0, turns = 0;
	static struct kvx_op ops[256];

	bench_open(&b, 16384, ALL_RIGHTS);
	for (unsigned i = 0; i < 256; i++)
		ops[i] = op_make(&b, KVX_OP_WRITE, 0, 0, 64 * 1024, 5);
	for (;;) {
		int n = b.ops->post(b.ep, ops, 256);

		cr_assert_geq(n, 0);
		taken += (unsigned)n;
		if (n < 256)
			break;
	}
	cr_assert_geq(taken, b.limits.batch_ops * b.limits.queue_batches);
	while (done < taken) {
		int n = b.ops->progress(b.dom, events, 8);

		cr_assert_eq(n, 1);
		cr_assert_leq(events[0].n_ops * 65536ull, 1ull << 20);
		done += events[0].n_ops;
		turns++;
	}
	cr_assert_eq(done, taken);
	cr_assert_geq(turns, taken * 65536ull >> 20);
	bench_close(&b);
	KVX_TEST_END();
}

Test(copy, fence_cancels_what_is_open_and_moves_nothing_more)
{
	struct kvx_tevent event;
	struct bench b;

	bench_open(&b, 16384, ALL_RIGHTS);
	struct kvx_op op = op_make(&b, KVX_OP_WRITE, 0, 0, 100, 3);
	cr_assert_eq(b.ops->post(b.ep, &op, 1), 1);
	cr_assert_eq(b.ops->fence(b.ep), 0);
	cr_assert_eq(b.ops->fence(b.ep), 0); /* again is fine */
	cr_assert_eq(b.ops->progress(b.dom, &event, 1), 1);
	cr_assert_eq(event.status, -ECANCELED);
	cr_assert_eq(b.remote_mem.addr[0], test_byte(2, 0));
	cr_assert_lt(b.ops->post(b.ep, &op, 1), 0);
	bench_close(&b);
	KVX_TEST_END();
}

Test(copy, dereg_is_a_fence_for_ops_in_the_ring)
{
	struct kvx_tevent events[4];
	struct bench b;

	bench_open(&b, 16384, ALL_RIGHTS);
	struct kvx_op op = op_make(&b, KVX_OP_WRITE, 0, 0, 100, 3);
	cr_assert_eq(b.ops->post(b.ep, &op, 1), 1);
	b.ops->mem_dereg(b.remote);
	b.remote = NULL;
	cr_assert_eq(b.ops->post(b.ep, &op, 1), 1); /* its rkey still exists */
	cr_assert_eq(b.ops->progress(b.dom, events, 4), 1);
	cr_assert_eq(events[0].n_ops, 2);
	cr_assert_eq(events[0].status, -EOWNERDEAD);
	cr_assert_eq(b.remote_mem.addr[0], test_byte(2, 0));
	bench_close(&b);
	KVX_TEST_END();
}

Test(copy, strange_mkeys_are_refused)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	struct kvx_rkey *rkey;
	struct bench b;

	bench_open(&b, 16384, ALL_RIGHTS);
	int len = b.ops->mkey_pack(b.remote, mkey, sizeof(mkey));
	cr_assert_eq(b.ops->mkey_pack(b.remote, mkey, (size_t)len - 1), -ENOSPC);
	cr_assert_eq(b.ops->rkey_unpack(b.ep, mkey, (size_t)len - 1, &rkey), -EINVAL);
	for (int i = 0; i < len; i++) {
		mkey[i] ^= 0x10;
		cr_assert_eq(b.ops->rkey_unpack(b.ep, mkey, (size_t)len, &rkey), -EINVAL, "byte %d",
			     i);
		mkey[i] ^= 0x10;
	}
	cr_assert_eq(b.ops->rkey_unpack(b.ep, mkey, (size_t)len, &rkey), 0);
	b.ops->rkey_free(rkey);
	bench_close(&b);
	KVX_TEST_END();
}

/* A region whose second half is gone: its own ops fail, those of others beside them do not. */
static void torn_region(uint64_t op_bytes)
{
	struct kvx_tevent events[64];
	struct kvx_op ops[60];
	struct kvx_mem torn = {.ops = &kvx_mem_host_ops, .fd = -1, .page_bytes = PAGE};
	struct kvx_mr *mr;
	struct bench b;
	unsigned n_done = 0, n_efault = 0, n_good = 0;
	int fd = test_memfd(REGION_BYTES, 0);

	bench_open(&b, 16384, ALL_RIGHTS);
	torn.len_bytes = REGION_BYTES;
	torn.addr = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert_eq(ftruncate(fd, REGION_BYTES / 2), 0);
	cr_assert_eq(b.ops->mem_reg(b.dom, 0, &torn, 0, &mr), 0);
	for (unsigned i = 0; i < 60; i++) {
		ops[i] = op_make(&b, KVX_OP_WRITE, i * op_bytes, i * op_bytes, op_bytes, i / 10);
		if (i / 10 == 2) { /* the torn region's batch, faulting from its 4th op on */
			ops[i].local = mr;
			ops[i].local_offset = i < 23 ? 0 : REGION_BYTES / 2 + 8;
		}
	}
	cr_assert_eq(b.ops->post(b.ep, ops, 60), 60);
	while (n_done < 60) {
		int n = b.ops->progress(b.dom, events, 64);

		for (int e = 0; e < n; e++) {
			n_done += events[e].n_ops;
			if (events[e].status == 0) {
				n_good += events[e].n_ops;
				continue;
			}
			cr_assert_eq(events[e].cookie, 2);
			cr_assert_eq(events[e].status, -EFAULT);
			n_efault += events[e].n_ops;
		}
	}
	cr_assert_eq(n_efault, 7);
	cr_assert_eq(n_good, 53);
	for (unsigned i = 0; i < 60; i++)
		if (i / 10 != 2)
			cr_assert_eq(memcmp(b.remote_mem.addr + i * op_bytes,
					    b.local_mem.addr + i * op_bytes, op_bytes),
				     0, "op %u of %lu bytes", i, op_bytes);
	b.ops->mem_dereg(mr);
	munmap(torn.addr, REGION_BYTES);
	close(fd);
	bench_close(&b);
}

Test(copy, memory_taken_away_fails_its_own_batch_only)
{
	torn_region(64);
	torn_region(4096); /* copied four at a time */
	torn_region(8200);
	KVX_TEST_END();
}

Test(copy, out_of_memory_leaves_nothing_behind)
{
	struct kvx_dom_conf conf = {.copy_nt_min_bytes = 16384};
	struct kvx_transport_limits limits;
	struct kvx_mem mem;
	struct kvx_dom *dom = NULL;
	struct kvx_ep *ep = NULL;
	struct kvx_mr *mr = NULL;
	struct kvx_rkey *rkey = NULL;
	uint8_t bytes[KVX_TRANSPORT_ADDR_MAX];
	size_t len = sizeof(bytes);
	unsigned n;
	int err;

	test_mem_make(&mem, PAGE);
#define SWEEP(call)                                                                                \
	for (n = 1;; n++) {                                                                        \
		fault_alloc_arm(n);                                                                \
		err = call;                                                                        \
		if (!fault_alloc_disarm())                                                         \
			break;                                                                     \
		cr_assert_eq(err, -ENOMEM);                                                        \
	}                                                                                          \
	cr_assert_eq(err, 0);                                                                      \
	cr_assert_gt(n, 1)
	SWEEP(kvx_copy_ops.open(&conf, &dom, &limits, NULL));
	SWEEP(kvx_copy_ops.listen(dom, 0, &ep, bytes, &len));
	SWEEP(kvx_copy_ops.mem_reg(dom, 0, &mem, ALL_RIGHTS, &mr));
	int key_len = kvx_copy_ops.mkey_pack(mr, bytes, sizeof(bytes));
	SWEEP(kvx_copy_ops.rkey_unpack(ep, bytes, (size_t)key_len, &rkey));
#undef SWEEP
	kvx_copy_ops.rkey_free(rkey);
	kvx_copy_ops.mem_dereg(mr);
	kvx_copy_ops.fence(ep);
	kvx_copy_ops.ep_close(ep);
	kvx_copy_ops.close(dom);
	kvx_mem_fini(&mem);
	KVX_TEST_END();
}
