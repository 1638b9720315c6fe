/* Memory of the gpu backend: mapped once for each allocation, verified, given back; host memory
 * page-locked by its home alone; calls that hang. */
#include <errno.h>
#include <time.h>

#include "fault_alloc.h"
#include "gpu_rig.h"

static void witness_add(struct rig_mem *m, uint64_t offset)
{
	struct kvx_gpu_witness *w = &m->mem.gpu->witnesses[m->mem.gpu->n_witnesses++];

	w->offset = offset;
	for (unsigned i = 0; i < KVX_GPU_WITNESS_BYTES; i++)
		w->bytes[i] = *rig_at(m, offset + i) = (uint8_t)(offset + 3 * i);
}

Test(gpu_reg, an_allocation_is_mapped_once_and_until_its_last_region_goes)
{
	struct rig_mem a, b;
	struct kvx_mr *first, *second;
	struct rig r;

	rig_open_as(&r, 0, 0);
	rig_gpu_mem(&a, 0, 3);
	rig_gpu_mem(&b, 0, 1);
	/* b becomes a second region of a's first allocation. */
	uint8_t *own = b.data[0];
	memcpy(b.mem.gpu->bases[0].ipc, a.mem.gpu->bases[0].ipc, KVX_GPU_IPC_BYTES);
	b.mem.gpu->bases[0].len_bytes = b.mem.gpu->segments[0].len_bytes = 1000;
	b.mem.len_bytes = 1000;
	first = rig_reg(&r, &a, 0);
	cr_assert_eq(fake.n_maps, 3u);
	second = rig_reg(&r, &b, 0);
	cr_assert_eq(fake.n_maps, 3u);
	cr_assert_eq(a.mem.gpu->bases[0].addr, b.mem.gpu->bases[0].addr);
	T->mem_dereg(first);
	cr_assert_eq(fake.n_maps, 1u);
	T->mem_dereg(second);
	cr_assert_eq(fake.n_maps, 0u);
	rig_close(&r);
	rig_mem_free(&a);
	fake_client_free(own);
	kvx_mem_fini(&b.mem);
	KVX_TEST_END();
}

Test(gpu_reg, a_mapping_that_shows_other_memory_is_refused)
{
	struct kvx_mr *mr = NULL;
	struct rig_mem m;
	struct rig r;

	rig_open_as(&r, 0, 0);
	rig_gpu_mem(&m, 0, 2);
	witness_add(&m, 0);
	witness_add(&m, RIG_BYTES - KVX_GPU_WITNESS_BYTES);
	T->mem_dereg(rig_reg(&r, &m, 0));
	*rig_at(&m, RIG_BYTES - 1) ^= 1;
	cr_assert_eq(T->mem_reg(r.dom, 0, &m.mem, 0, &mr), -EFAULT);
	cr_assert(strstr(m.mem.gpu->why.text, "not what its owner sees") != NULL, "%s",
		  m.mem.gpu->why.text);
	cr_assert_eq(fake.n_maps, 0u);
	rig_close(&r);
	rig_mem_free(&m);
	KVX_TEST_END();
}

/* A client's word for the size of its allocation would let it reach beyond. */
Test(gpu_reg, only_the_runtime_is_trusted_for_sizes_and_devices)
{
	struct kvx_mr *mr = NULL;
	struct rig_mem m, other;
	struct rig r;

	rig_open_as(&r, 0, 0);
	rig_gpu_mem(&m, 0, 1);
	rig_gpu_mem(&other, 1, 1);
	m.mem.gpu->bases[0].len_bytes++;
	cr_assert_eq(T->mem_reg(r.dom, 0, &m.mem, 0, &mr), -ERANGE);
	cr_assert_neq(m.mem.gpu->why.text[0], '\0');
	m.mem.gpu->bases[0].len_bytes--;
	uint8_t own[KVX_GPU_IPC_BYTES];
	memcpy(own, m.mem.gpu->bases[0].ipc, sizeof(own));
	memcpy(m.mem.gpu->bases[0].ipc, other.mem.gpu->bases[0].ipc, sizeof(own));
	cr_assert_eq(T->mem_reg(r.dom, 0, &m.mem, 0, &mr), -EXDEV);
	cr_assert_eq(fake.n_maps, 0u);
	rig_close(&r);
	rig_mem_free(&m);
	rig_mem_free(&other);
	KVX_TEST_END();
}

Test(gpu_reg, memory_of_another_device_is_taken_once_its_home_has_mapped_it)
{
	struct kvx_mr *mr = NULL;
	struct rig_mem m;
	struct rig r;

	rig_open_as(&r, 0, 0);
	rig_gpu_mem(&m, 1, 1);
	cr_assert_eq(T->mem_reg(r.dom, 0, &m.mem, 0, &mr), -EOPNOTSUPP);
	m.mem.gpu->bases[0].addr = (uintptr_t)m.data[0];
	mr = rig_reg(&r, &m, 0);
	cr_assert_eq(fake.n[FAKE_PEER_ENABLE], 1u);
	T->mem_dereg(mr);
	mr = rig_reg(&r, &m, 0);
	cr_assert_eq(fake.n[FAKE_PEER_ENABLE], 1u, "peer access is enabled once");
	T->mem_dereg(mr);
	rig_close(&r);
	rig_mem_free(&m);
	KVX_TEST_END();
}

Test(gpu_reg, memory_of_a_device_that_nobody_has_is_none_of_this_domain)
{
	struct kvx_mr *mr = NULL;
	struct rig_mem m;
	struct rig r;

	rig_open_as(&r, 0, 0);
	rig_gpu_mem(&m, 0, 1);
	kvx_gpu_pci_normalise("0000:99:00.0", m.mem.gpu->id.pci);
	cr_assert_eq(T->mem_reg(r.dom, 0, &m.mem, 0, &mr), -EOPNOTSUPP);
	rig_close(&r);
	rig_mem_free(&m);
	KVX_TEST_END();
}

Test(gpu_reg, host_memory_is_page_locked_by_its_home_alone)
{
	struct kvx_mr *home, *other;
	struct rig_mem m;
	struct rig r;

	rig_open_as(&r, 0, 0);
	rig_host_mem(&m);
	home = rig_reg(&r, &m, 0);
	cr_assert_eq(fake.n_pins, 1u);
	m.mem.pinned = home;
	other = rig_reg(&r, &m, 0);
	cr_assert_eq(fake.n_pins, 1u);
	T->mem_dereg(other);
	cr_assert_eq(fake.n_pins, 1u);
	T->mem_dereg(home);
	cr_assert_eq(fake.n_pins, 0u);
	fake_fail(FAKE_HOST_PIN, 1, 1, -ENOMEM);
	m.mem.pinned = NULL;
	cr_assert_eq(T->mem_reg(r.dom, 0, &m.mem, 0, &home), -ENOMEM);
	rig_close(&r);
	rig_mem_free(&m);
	KVX_TEST_END();
}

static void sleep_ms(long ms)
{
	const struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

/* call_timeout_ms is 200 in the rig. */
Test(gpu_reg, a_call_that_hangs_costs_registrations_and_nothing_else)
{
	struct rig_mem live, m;
	struct kvx_mr *mr = NULL, *before;
	struct kvx_rkey *rkey;
	struct rig r;

	rig_open_as(&r, 0, 0);
	rig_gpu_mem(&live, 0, 1);
	rig_gpu_mem(&m, 0, 1);
	before = rig_reg(&r, &live, RIG_BOTH);
	rkey = rig_key(&r, before);
	fake.hang_ipc = true;
	cr_assert_eq(T->mem_reg(r.dom, 0, &m.mem, 0, &mr), -ETIMEDOUT);
	cr_assert_eq(T->mem_reg(r.dom, 0, &m.mem, 0, &mr), -EBUSY, "at once");
	cr_assert_neq(m.mem.gpu->why.text[0], '\0');
	struct kvx_op op = {.local = before,
			    .remote = rkey,
			    .remote_offset = 1000,
			    .len_bytes = 500,
			    .kind = KVX_OP_WRITE};
	cr_assert_eq(rig_run(&r, &op, 1), 0, "copies go on");
	fake.hang_ipc = false;
	sem_post(&fake.let_go);
	for (unsigned i = 0; fake.n_maps != 1 && i < 1000; i++)
		sleep_ms(5);
	cr_assert_eq(fake.n_maps, 1u, "what came too late is closed");
	for (unsigned i = 0; mr == NULL && i < 1000; i++)
		if (T->mem_reg(r.dom, 0, &m.mem, 0, &mr) < 0)
			sleep_ms(5);
	cr_assert_not_null(mr, "the device takes registrations again");
	T->mem_dereg(mr);
	T->rkey_free(rkey);
	T->mem_dereg(before);
	rig_close(&r);
	rig_mem_free(&m);
	rig_mem_free(&live);
	KVX_TEST_END();
}

Test(gpu_reg, every_failing_call_leaves_nothing_mapped)
{
	static const enum fake_call calls[] = {FAKE_IPC_OPEN, FAKE_RANGE, FAKE_COPY};
	struct rig_mem m;
	struct rig r;

	rig_open_as(&r, 0, 0);
	rig_gpu_mem(&m, 0, 3);
	witness_add(&m, 0);
	witness_add(&m, 200000);
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		for (unsigned nth = 1; nth <= 4; nth++) {
			struct kvx_mr *mr = NULL;

			fake_fail(calls[i], nth, 1, -EIO);
			int err = T->mem_reg(r.dom, 0, &m.mem, 0, &mr);
			fake_fail(calls[i], 1, 0, 0);
			if (err == 0)
				T->mem_dereg(mr);
			else
				cr_assert_eq(err, -EIO);
			cr_assert_eq(fake.n_maps, 0u, "call %zu, %u", i, nth);
		}
	T->mem_dereg(rig_reg(&r, &m, 0));
	rig_close(&r);
	rig_mem_free(&m);
	KVX_TEST_END();
}

Test(gpu_reg, a_mapping_that_does_not_close_is_tried_again)
{
	struct rig_mem m;
	struct rig r;

	rig_open_as(&r, 0, 0);
	rig_gpu_mem(&m, 0, 1);
	struct kvx_mr *mr = rig_reg(&r, &m, 0);
	fake_fail(FAKE_IPC_CLOSE, 1, 2, -EIO);
	T->mem_dereg(mr);
	cr_assert_eq(fake.n_maps, 0u);
	cr_assert_eq(fake.n[FAKE_RESET], 0u);
	rig_close(&r);
	rig_mem_free(&m);
	KVX_TEST_END();
}

/* Who gives back has nobody to tell that it cannot. */
Test(gpu_reg, giving_back_needs_no_memory)
{
	struct kvx_mr *mr, *host;
	struct rig_mem m, h;
	struct rig r;

	rig_open_as(&r, 0, 0);
	rig_gpu_mem(&m, 0, 2);
	rig_host_mem(&h);
	mr = rig_reg(&r, &m, 0);
	host = rig_reg(&r, &h, 0);
	fault_alloc_arm(1);
	T->mem_dereg(mr);
	T->mem_dereg(host);
	cr_assert_not(fault_alloc_disarm());
	cr_assert_eq(fake.n_maps + fake.n_pins, 0u);
	rig_close(&r);
	rig_mem_free(&m);
	rig_mem_free(&h);
	KVX_TEST_END();
}

Test(gpu_reg, keys_of_others_are_none)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX] = {0};
	struct kvx_rkey *rkey;
	struct rig_mem m;
	struct rig r;

	rig_open_as(&r, 0, 0);
	rig_gpu_mem(&m, 0, 1);
	struct kvx_mr *mr = rig_reg(&r, &m, 0);
	int len = T->mkey_pack(mr, mkey, sizeof(mkey));
	cr_assert_gt(len, 0);
	cr_assert_eq(T->mkey_pack(mr, mkey, 4), -ENOSPC);
	cr_assert_eq(T->rkey_unpack(r.ep, mkey, (size_t)len - 1, &rkey), -EINVAL);
	mkey[0] ^= 1;
	cr_assert_eq(T->rkey_unpack(r.ep, mkey, (size_t)len, &rkey), -EINVAL);
	T->mem_dereg(mr);
	rig_close(&r);
	rig_mem_free(&m);
	KVX_TEST_END();
}
