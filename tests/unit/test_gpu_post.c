/* The gpu backend's way of an op: bounds and rights, segments, the form of the copies. */
#include <errno.h>

#include "gpu_rig.h"

#define ALL_CAPS (KVX_GPU_CAP_BATCH | KVX_GPU_CAP_KERNEL)

struct pair {
	struct rig rig;
	struct rig_mem local, remote;
	struct kvx_mr *lmr, *rmr;
	struct kvx_rkey *rkey;
};

static void pair_open(struct pair *p, uint32_t caps, int gather, unsigned n_segments)
{
	rig_open_as(&p->rig, caps, gather);
	rig_gpu_mem(&p->local, 0, n_segments);
	rig_gpu_mem(&p->remote, 0, n_segments > 1 ? n_segments - 1 : 1);
	p->lmr = rig_reg(&p->rig, &p->local, 0);
	p->rmr = rig_reg(&p->rig, &p->remote, RIG_BOTH);
	p->rkey = rig_key(&p->rig, p->rmr);
}

static void pair_close(struct pair *p)
{
	T->rkey_free(p->rkey);
	T->mem_dereg(p->lmr);
	T->mem_dereg(p->rmr);
	rig_close(&p->rig);
	rig_mem_free(&p->local);
	rig_mem_free(&p->remote);
}

static struct kvx_op op(const struct pair *p, uint32_t kind, uint64_t local, uint64_t remote,
			uint64_t len)
{
	return (struct kvx_op){.local = p->lmr,
			       .remote = p->rkey,
			       .local_offset = local,
			       .remote_offset = remote,
			       .len_bytes = len,
			       .cookie = 7,
			       .kind = kind};
}

static void fill(struct rig_mem *m, uint8_t seed)
{
	for (uint64_t i = 0; i < RIG_BYTES; i++)
		*rig_at(m, i) = (uint8_t)(seed + i * 31 + (i >> 9));
}

Test(gpu_post, bytes_go_where_they_belong_in_both_directions)
{
	struct pair p;

	pair_open(&p, 0, 0, 1);
	fill(&p.local, 1);
	fill(&p.remote, 99);
	uint8_t before = *rig_at(&p.remote, 4999);
	struct kvx_op write = op(&p, KVX_OP_WRITE, 100, 5000, 3000);
	cr_assert_eq(rig_run(&p.rig, &write, 1), 0);
	for (unsigned i = 0; i < 3000; i++)
		cr_assert_eq(*rig_at(&p.remote, 5000 + i), *rig_at(&p.local, 100 + i));
	cr_assert_eq(*rig_at(&p.remote, 4999), before);
	struct kvx_op read = op(&p, KVX_OP_READ, 50000, 8000, 1);
	cr_assert_eq(rig_run(&p.rig, &read, 1), 0);
	cr_assert_eq(*rig_at(&p.local, 50000), *rig_at(&p.remote, 8000));
	pair_close(&p);
	KVX_TEST_END();
}

Test(gpu_post, what_leaves_a_region_or_its_rights_touches_nothing)
{
	struct pair p;

	pair_open(&p, 0, 0, 1);
	T->rkey_free(p.rkey);
	T->mem_dereg(p.rmr);
	p.rmr = rig_reg(&p.rig, &p.remote, KVX_ACCESS_READ);
	p.rkey = rig_key(&p.rig, p.rmr);
	const struct {
		struct kvx_op op;
		int err;
	} cases[] = {
	    {op(&p, KVX_OP_WRITE, 0, 0, 1), -EACCES},
	    {op(&p, KVX_OP_READ, 0, RIG_BYTES, 1), -ERANGE},
	    {op(&p, KVX_OP_READ, RIG_BYTES - 1, 0, 2), -ERANGE},
	    {op(&p, KVX_OP_READ, UINT64_MAX - 1, 0, 4), -ERANGE},
	    {op(&p, KVX_OP_READ, 0, 0, 0), -EINVAL},
	    {op(&p, 3, 0, 0, 1), -EINVAL},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		cr_assert_eq(rig_run(&p.rig, &cases[i].op, 1), cases[i].err, "case %zu", i);
	cr_assert_eq(fake.n[FAKE_COPY], 0u);
	pair_close(&p);
	KVX_TEST_END();
}

/* Against a copy of the two regions: whatever form the copies take, and wherever segments end. */
static void random_ops(uint32_t caps, int gather, unsigned n_segments, unsigned seed)
{
	static uint8_t want_local[RIG_BYTES], want_remote[RIG_BYTES];
	struct kvx_op ops[128];
	struct pair p;

	srand(seed);
	pair_open(&p, caps, gather, n_segments);
	fill(&p.local, 3);
	fill(&p.remote, 77);
	for (uint64_t i = 0; i < RIG_BYTES; i++) {
		want_local[i] = *rig_at(&p.local, i);
		want_remote[i] = *rig_at(&p.remote, i);
	}
	for (unsigned round = 0; round < 20; round++) {
		unsigned n = 1 + (unsigned)rand() % 128, kind = 1 + (unsigned)rand() % 2;
		uint64_t each = RIG_BYTES / n, width = 1 + (uint64_t)rand() % each;
		bool rows = rand() % 2 == 0;

		for (unsigned i = 0; i < n; i++) { /* destinations do not overlap */
			uint64_t len = rows ? width : 1 + (uint64_t)rand() % each;
			uint64_t at = i * each, other = rows ? at : (n - 1 - i) * each;
			ops[i] = op(&p, kind, at, other, len);
			if (kind == KVX_OP_WRITE)
				memcpy(want_remote + other, want_local + at, len);
			else
				memcpy(want_local + at, want_remote + other, len);
		}
		cr_assert_eq(rig_run(&p.rig, ops, n), 0);
	}
	for (uint64_t i = 0; i < RIG_BYTES; i++) {
		cr_assert_eq(*rig_at(&p.local, i), want_local[i], "local %llu",
			     (unsigned long long)i);
		cr_assert_eq(*rig_at(&p.remote, i), want_remote[i], "remote %llu",
			     (unsigned long long)i);
	}
	pair_close(&p);
}

Test(gpu_post, any_ops_in_any_form_of_copies)
{
	for (unsigned seed = 1; seed <= 4; seed++) {
		random_ops(0, 0, 1, seed);
		random_ops(KVX_GPU_CAP_BATCH, 0, 4, seed);
		random_ops(ALL_CAPS, 2048, 3, seed);
	}
	KVX_TEST_END();
}

static unsigned calls(enum fake_call call)
{
	return fake.n[call];
}

Test(gpu_post, scattered_ops_are_one_batch)
{
	struct kvx_op ops[100];
	struct pair p;

	pair_open(&p, KVX_GPU_CAP_BATCH, 0, 1);
	for (unsigned i = 0; i < 100; i++)
		ops[i] = op(&p, KVX_OP_WRITE, 2048ull * i, 2048ull * (i * 37 % 100), 1024);
	cr_assert_eq(T->post(p.rig.ep, ops, 100), 100);
	cr_assert_eq(calls(FAKE_COPY_BATCH), 1);
	cr_assert_eq(fake.n_pieces[FAKE_COPY_BATCH], 100u);
	cr_assert_eq(calls(FAKE_COPY) + calls(FAKE_COPY_RECT), 0);
	cr_assert_eq(rig_run(&p.rig, ops, 0), 0);
	struct kvx_tevent event;
	while (T->progress(p.rig.dom, &event, 1) == 0)
		;
	cr_assert_eq(event.n_ops, 100);
	pair_close(&p);
	KVX_TEST_END();
}

Test(gpu_post, without_batches_each_is_a_copy)
{
	struct kvx_op ops[3];
	struct pair p;

	pair_open(&p, 0, 0, 1);
	for (unsigned i = 0; i < 3; i++)
		ops[i] = op(&p, KVX_OP_WRITE, 2048ull * i, 4096ull * (2 - i), 1024);
	cr_assert_eq(rig_run(&p.rig, ops, 3), 0);
	cr_assert_eq(calls(FAKE_COPY), 3);
	pair_close(&p);
	KVX_TEST_END();
}

Test(gpu_post, a_batch_call_that_the_device_refuses_is_not_tried_again)
{
	struct kvx_op ops[3];
	struct pair p;

	pair_open(&p, KVX_GPU_CAP_BATCH, 0, 1);
	for (unsigned i = 0; i < 3; i++)
		ops[i] = op(&p, KVX_OP_WRITE, 2048ull * i, 4096ull * (2 - i), 1024);
	fake_fail(FAKE_COPY_BATCH, 1, 100, -EOPNOTSUPP);
	cr_assert_eq(rig_run(&p.rig, ops, 3), 0);
	cr_assert_eq(rig_run(&p.rig, ops, 3), 0);
	cr_assert_eq(calls(FAKE_COPY_BATCH), 1);
	cr_assert_eq(calls(FAKE_COPY), 6);
	pair_close(&p);
	KVX_TEST_END();
}

Test(gpu_post, equal_distances_are_one_rectangle)
{
	struct kvx_op ops[42];
	struct pair p;

	pair_open(&p, KVX_GPU_CAP_BATCH, 0, 1);
	for (unsigned i = 0; i < 40; i++)
		ops[i] = op(&p, KVX_OP_READ, 4096ull * i, 2000ull * i, 500);
	ops[40] = op(&p, KVX_OP_READ, 200000, 100000, 501);
	ops[41] = op(&p, KVX_OP_READ, 210000, 90000, 700);
	cr_assert_eq(rig_run(&p.rig, ops, 42), 0);
	cr_assert_eq(calls(FAKE_COPY_RECT), 1);
	cr_assert_eq(fake.n_pieces[FAKE_COPY_RECT], 40u);
	cr_assert_eq(fake.n_pieces[FAKE_COPY_BATCH], 2u);
	pair_close(&p);
	KVX_TEST_END();
}

Test(gpu_post, small_pieces_go_by_the_kernel_and_large_ones_do_not)
{
	struct kvx_op ops[20];
	struct pair p;

	pair_open(&p, ALL_CAPS, 4096, 1);
	for (unsigned i = 0; i < 20; i++)
		ops[i] = op(&p, KVX_OP_WRITE, 12000ull * i, 12000ull * (i * 7 % 20),
			    i % 2 ? 4096 : 4097);
	cr_assert_eq(rig_run(&p.rig, ops, 20), 0);
	cr_assert_eq(fake.n_pieces[FAKE_KERNEL_RUN], 10u);
	cr_assert_eq(fake.n_pieces[FAKE_COPY_BATCH], 10u);
	pair_close(&p);
	KVX_TEST_END();
}

/* What it costs to begin a copy is what the kernel saves. */
Test(gpu_post, the_kernel_is_taken_where_it_is_measured_to_be_faster)
{
	struct kvx_op small;
	struct pair p;

	fake_slow = FAKE_SLOW_COPIES;
	pair_open(&p, ALL_CAPS, -1, 1);
	small = op(&p, KVX_OP_WRITE, 0, 8192, 1024);
	unsigned before = calls(FAKE_KERNEL_RUN);
	cr_assert_eq(rig_run(&p.rig, &small, 1), 0);
	cr_assert_eq(calls(FAKE_KERNEL_RUN), before + 1);
	pair_close(&p);
	KVX_TEST_END();
}

Test(gpu_post, the_kernel_is_not_taken_where_copies_are_faster)
{
	struct kvx_op small;
	struct pair p;

	fake_slow = FAKE_SLOW_KERNEL;
	pair_open(&p, ALL_CAPS, -1, 1);
	small = op(&p, KVX_OP_WRITE, 0, 8192, 1024);
	unsigned before = calls(FAKE_KERNEL_RUN);
	cr_assert_eq(rig_run(&p.rig, &small, 1), 0);
	cr_assert_eq(calls(FAKE_KERNEL_RUN), before);
	pair_close(&p);
	KVX_TEST_END();
}

Test(gpu_post, a_copy_that_is_refused_fails_its_own_flight)
{
	struct kvx_op a, b;
	struct pair p;

	pair_open(&p, 0, 0, 1);
	a = op(&p, KVX_OP_WRITE, 0, 0, 100);
	b = op(&p, KVX_OP_WRITE, 1000, 1000, 100);
	b.cookie = 8;
	fake_fail(FAKE_COPY, 1, 1, -EINVAL);
	cr_assert_eq(rig_run(&p.rig, &a, 1), -EINVAL);
	cr_assert_eq(rig_run(&p.rig, &b, 1), 0);
	pair_close(&p);
	KVX_TEST_END();
}

Test(gpu_post, flights_are_bounded_and_come_back)
{
	struct kvx_op one;
	struct pair p;
	struct kvx_tevent events[64];
	unsigned n = 0, n_back = 0;

	pair_open(&p, 0, 0, 1);
	one = op(&p, KVX_OP_WRITE, 0, 0, 100);
	fake.hold = true;
	while (T->post(p.rig.ep, &one, 1) == 1)
		cr_assert_lt(++n, 1000);
	cr_assert_gt(n, 8);
	cr_assert_eq(T->progress(p.rig.dom, events, 64), 0);
	cr_assert_eq(T->arm(p.rig.dom), 0, "the timer has it look again");
	fake.hold = false;
	for (unsigned i = 0; i < 100 && n_back < n; i++)
		n_back += (unsigned)T->progress(p.rig.dom, events, 64);
	cr_assert_eq(n_back, n);
	cr_assert_eq(T->arm(p.rig.dom), 0);
	pair_close(&p);
	KVX_TEST_END();
}

Test(gpu_post, nothing_is_taken_behind_a_fence)
{
	struct kvx_op one;
	struct pair p;

	pair_open(&p, 0, 0, 1);
	one = op(&p, KVX_OP_WRITE, 0, 0, 100);
	cr_assert_eq(T->fence(p.rig.ep), 0);
	cr_assert_eq(T->post(p.rig.ep, &one, 1), -ESHUTDOWN);
	pair_close(&p);
	KVX_TEST_END();
}
