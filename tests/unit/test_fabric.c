/* The fabric backend's data path: what is posted arrives where it should, and nowhere else. */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fabric_pair.h"
#include "test_end.h"

Test(fabric, packed_ops_of_all_sizes_arrive)
{
	struct pair p;

	pair_open(&p);
	run_all_sizes(&p);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, rma_ops_of_all_sizes_arrive)
{
	struct pair p;

	pair_conf(&p, "tcp", 4096);
	pair_open_conf(&p);
	run_all_sizes(&p);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, connectionless_endpoints_work_too)
{
	struct pair p;

	pair_conf(&p, "tcp;ofi_rxm", 32768);
	pair_open_conf(&p);
	run_all_sizes(&p);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, random_ops_touch_their_bytes_only)
{
	struct pair p;
	uint8_t *want = malloc(REGION_BYTES);
	unsigned seed = 12345;

	pair_open(&p);
	memcpy(want, p.b.mem.addr, REGION_BYTES);
	for (unsigned round = 0; round < 20; round++) {
		struct kvx_op ops[64];
		uint64_t at = 0;

		for (unsigned i = 0; i < 64; i++) {
			uint64_t len = (uint64_t)(rand_r(&seed) % (i % 8 == 0 ? 60000 : 3000)) + 1;
			uint64_t from = (uint64_t)rand_r(&seed) % (REGION_BYTES - len);

			at += (uint64_t)(rand_r(&seed) % 100) + 1;
			ops[i] = make_op(&p.a, KVX_OP_WRITE, from, at, len);
			memcpy(want + at, p.a.mem.addr + from, len);
			at += len;
		}
		run_ops(&p, ops, 64);
		cr_assert_eq(p.a.n_failed, 0);
	}
	cr_assert_arr_eq(p.b.mem.addr, want, REGION_BYTES);
	free(want);
	pair_close(&p);
	KVX_TEST_END();
}

/* Both sides ask for as much as they can at once, in both kinds; nobody may wait for the other. */
Test(fabric, both_directions_full_make_progress)
{
	struct pair p;
	struct side *sides[2];
	unsigned posted[2] = {0, 0};

	pair_open(&p);
	sides[0] = &p.a;
	sides[1] = &p.b;
	PUMP_UNTIL(&p, ({
		for (unsigned s = 0; s < 2; s++) {
			struct kvx_op op =
			    make_op(sides[s], posted[s] % 3 ? KVX_OP_READ : KVX_OP_WRITE,
				    (2 + s) << 20, s << 20, 65536);

			while (posted[s] < 600 && T->post(sides[s]->ep, &op, 1) == 1)
				posted[s]++;
		}
		p.a.n_done == 600 && p.b.n_done == 600;
	}));
	cr_assert_eq(p.a.n_failed + p.b.n_failed, 0);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, full_queue_is_a_short_count)
{
	struct pair p;
	struct kvx_op ops[64];
	int rc;

	pair_open(&p);
	for (unsigned i = 0; i < 64; i++)
		ops[i] = make_op(&p.a, KVX_OP_READ, i * 4096, i * 4096, 4096);
	for (unsigned i = 0; i < 64; i++)
		ops[i].cookie = i; /* a message each */
	rc = T->post(p.a.ep, ops, 64);
	cr_assert_eq(rc, 4, "took %d with a queue of 4", rc);
	cr_assert_eq(T->post(p.a.ep, ops + rc, 60), 0);
	PUMP_UNTIL(&p, p.a.n_done == 4);
	cr_assert_eq(p.a.n_failed, 0);
	pair_close(&p);
	KVX_TEST_END();
}

/* mkeys are the peer's input: a forged one must reach nothing. */
static int status_with_mkey(struct pair *p, enum kvx_op_kind kind, size_t at, uint8_t flip,
			    uint64_t len_field)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	int len = T->mkey_pack(p->b.mr, mkey, sizeof(mkey));
	struct kvx_rkey *rkey;
	struct kvx_op op;

	mkey[at] ^= flip;
	if (len_field != 0)
		memcpy(mkey + 24, &len_field, 8);
	cr_assert_eq(T->rkey_unpack(p->a.ep, mkey, (size_t)len, &rkey), 0);
	op = make_op(&p->a, kind, 0, len_field != 0 ? REGION_BYTES - 10 : 0, 100);
	op.remote = rkey;
	run_ops(p, &op, 1);
	T->rkey_free(rkey);
	return p->a.status;
}

Test(fabric, forged_keys_reach_nothing)
{
	struct pair p;
	uint8_t *before = malloc(REGION_BYTES);

	pair_open(&p);
	memcpy(before, p.b.mem.addr, REGION_BYTES);
	/* offsets of struct wire_mkey: id 8, nonce 16, length 24 */
	cr_assert_eq(status_with_mkey(&p, KVX_OP_WRITE, 8, 0xff, 0), -EOWNERDEAD);
	cr_assert_eq(status_with_mkey(&p, KVX_OP_WRITE, 12, 1, 0), -EOWNERDEAD);
	cr_assert_eq(status_with_mkey(&p, KVX_OP_WRITE, 16, 1, 0), -EACCES);
	cr_assert_eq(status_with_mkey(&p, KVX_OP_READ, 23, 0x80, 0), -EACCES);
	cr_assert_eq(status_with_mkey(&p, KVX_OP_WRITE, 0, 0, UINT64_MAX), -ERANGE);
	cr_assert_eq(status_with_mkey(&p, KVX_OP_READ, 0, 0, UINT64_MAX), -ERANGE);
	cr_assert_arr_eq(p.b.mem.addr, before, REGION_BYTES);
	cr_assert_not(p.a.down || p.b.down, "a refused op leaves the lane alone");
	run_blocks(&p, KVX_OP_WRITE, 4096, 10);
	free(before);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, offset_that_wraps_is_refused)
{
	struct pair p;
	struct kvx_op op;

	pair_open(&p);
	op = make_op(&p.a, KVX_OP_WRITE, 0, UINT64_MAX - 50, 100);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -ERANGE);
	op = make_op(&p.a, KVX_OP_READ, UINT64_MAX - 50, 0, 100);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -ERANGE);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, rights_are_checked_by_the_owner)
{
	struct pair p;
	struct kvx_op op;

	pair_conf(&p, "tcp", UINT64_MAX);
	kvx_guard_install();
	side_open(&p.a, &p.conf);
	side_open(&p.b, &p.conf);
	sides_connect(&p);
	side_map(&p.a, KVX_ACCESS_WRITE, 1);
	side_map(&p.b, KVX_ACCESS_READ, 2);
	side_import(&p.a, &p.b);
	side_import(&p.b, &p.a);
	op = make_op(&p.a, KVX_OP_WRITE, 0, 0, 100);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -EACCES);
	op = make_op(&p.a, KVX_OP_READ, 0, 0, 100);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, 0, "memory of a itself may be filled by a");
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, unregistered_memory_is_out_of_reach)
{
	struct pair p;
	struct kvx_op op;
	uint8_t *before = malloc(REGION_BYTES);

	pair_open(&p);
	memcpy(before, p.b.mem.addr, REGION_BYTES);
	/* The message is on its way when the memory goes. */
	op = make_op(&p.a, KVX_OP_WRITE, 0, 4096, 4096);
	cr_assert_eq(T->post(p.a.ep, &op, 1), 1);
	T->mem_dereg(p.b.mr);
	PUMP_UNTIL(&p, p.a.n_done == 1);
	cr_assert_eq(p.a.status, -EOWNERDEAD);
	/* Its place in the table is taken by other memory, of which the key knows nothing. */
	cr_assert_eq(T->mem_reg(p.b.dom, 0, &p.b.mem, KVX_ACCESS_WRITE, &p.b.mr), 0);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -EOWNERDEAD);
	cr_assert_arr_eq(p.b.mem.addr, before, REGION_BYTES);
	free(before);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, read_into_unregistered_memory_is_dropped)
{
	struct pair p;
	struct kvx_op op;
	uint8_t *before = malloc(REGION_BYTES);

	pair_open(&p);
	memcpy(before, p.a.mem.addr, REGION_BYTES);
	op = make_op(&p.a, KVX_OP_READ, 0, 4096, 4096);
	cr_assert_eq(T->post(p.a.ep, &op, 1), 1);
	T->mem_dereg(p.a.mr);
	p.a.mr = NULL;
	PUMP_UNTIL(&p, p.a.n_done == 1);
	cr_assert_eq(p.a.status, -ECANCELED);
	cr_assert_arr_eq(p.a.mem.addr, before, REGION_BYTES);
	free(before);
	pair_close(&p);
	KVX_TEST_END();
}

/* Region memory that is not there any more: the op fails, the lane lives. */
Test(fabric, memory_fault_fails_the_op_only)
{
	struct pair p;
	struct kvx_op op;
	int fd = memfd_create("hole", MFD_CLOEXEC);
	void *old;

	pair_open(&p);
	cr_assert_eq(ftruncate(fd, 8192), 0);
	old = mmap(p.b.mem.addr, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	cr_assert_eq(old, p.b.mem.addr);
	op = make_op(&p.a, KVX_OP_WRITE, 0, 16384, 4096);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -EFAULT);
	op = make_op(&p.a, KVX_OP_READ, 0, 16384, 4096);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -EFAULT);
	op = make_op(&p.a, KVX_OP_WRITE, 0, 4096, 4096);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, 0);
	close(fd);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, mkey_that_is_none_is_refused)
{
	struct pair p;
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	struct kvx_rkey *rkey;
	int len;

	pair_open(&p);
	len = T->mkey_pack(p.b.mr, mkey, sizeof(mkey));
	cr_assert_gt(len, 0);
	cr_assert_eq(T->mkey_pack(p.b.mr, mkey, (size_t)len - 1), -ENOSPC);
	for (int i = 0; i < len; i++)
		cr_assert_eq(T->rkey_unpack(p.a.ep, mkey, (size_t)i, &rkey), -EINVAL);
	mkey[0] = 200;
	cr_assert_eq(T->rkey_unpack(p.a.ep, mkey, (size_t)len, &rkey), -EINVAL);
	pair_close(&p);
	KVX_TEST_END();
}

/* libfabric would start all that it was built for, broken ones too. */
Test(fabric, libfabric_is_told_to_load_no_gpu_runtime)
{
	cr_assert_str_eq(getenv("FI_HMEM"), "system");
	KVX_TEST_END();
}
