/* Memory that RDMA devices flush by: made for who first asks, cleared, the same for all, gone with
 * the domain; and what becomes of those who ask when it cannot be had. */
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "gpu_rig.h"

static struct rig r;
static const struct kvx_gpu_access *dev_access; /* as a region of the device is given them */
static void *device;

static void open_rig(uint32_t caps)
{
	struct rig_mem m;

	rig_open_as(&r, caps, 0);
	rig_gpu_mem(&m, 0, 1);
	T->mem_dereg(rig_reg(&r, &m, 0));
	dev_access = m.mem.gpu->access;
	device = m.mem.gpu->device;
	cr_assert_not_null(dev_access);
	rig_mem_free(&m);
	cr_assert_eq(fake.n_allocs, 0u, "nobody has asked");
}

static int ask(struct kvx_gpu_flush *flush)
{
	memset(flush, 0xff, sizeof(*flush));
	return dev_access->flush_memory(device, flush);
}

/* The fake's memory does not go with a reset. */
static void close_lost(void)
{
	T->fence(r.ep);
	T->ep_close(r.ep);
	T->close(r.dom);
	fake_client_free((uint8_t *)(uintptr_t)fake.last_alloc);
}

/* By an op that fails with the device; it ends when the reset is over. */
static void lose(const struct kvx_op *op)
{
	const struct timespec ms = {.tv_nsec = 1000000};
	struct kvx_tevent events[4];
	unsigned n_done = 0;

	cr_assert_eq(T->post(r.ep, op, 1), 1);
	for (unsigned i = 0; n_done == 0 && i < 10000; i++) {
		int n = T->progress(r.dom, events, 4);

		for (int e = 0; e < n; e++)
			n_done += events[e].kind == KVX_TEV_OP_DONE && events[e].status == -ENODEV;
		nanosleep(&ms, NULL);
	}
	cr_assert_eq(n_done, 1);
}

static bool is_clear(const uint8_t *p, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		if (p[i] != 0)
			return false;
	return true;
}

Test(gpu_flush, memory_is_made_once_and_clear)
{
	struct kvx_gpu_flush a, b;

	open_rig(KVX_GPU_CAP_DMABUF);
	cr_assert_eq(ask(&a), 0);
	cr_assert_eq(fake.n_allocs, 1u);
	cr_assert_eq(a.addr % 4096, 0);
	cr_assert_eq(a.len_bytes, 4096);
	cr_assert_eq(memcmp((const uint8_t *)(uintptr_t)a.addr, a.mark, sizeof(a.mark)), 0);
	cr_assert(is_clear((const uint8_t *)(uintptr_t)a.addr + sizeof(a.mark),
			   a.len_bytes - sizeof(a.mark)));
	cr_assert_eq(ask(&b), 0);
	cr_assert_eq(memcmp(&a, &b, sizeof(a)), 0);
	cr_assert_eq(fake.n_allocs, 1u);
	rig_close(&r);  /* all allocations are gone */
	KVX_TEST_END(); /* and all fds */
}

/* The fake's memory is clear anyhow: all of the page has to be written, and waited for. */
Test(gpu_flush, what_was_in_the_memory_is_not_shown)
{
	struct kvx_gpu_flush flush;

	open_rig(KVX_GPU_CAP_DMABUF);
	unsigned copies = fake.n[FAKE_COPY], syncs = fake.n[FAKE_STREAM_SYNC];
	cr_assert_eq(ask(&flush), 0);
	cr_assert_eq(fake.n[FAKE_COPY] - copies, 4096u / 256u + 1, "and the mark");
	cr_assert_eq(fake.n[FAKE_STREAM_SYNC] - syncs, 2u);
	rig_close(&r);
	KVX_TEST_END();
}

Test(gpu_flush, its_dmabuf_is_of_the_same_memory)
{
	struct kvx_gpu_flush flush;

	open_rig(KVX_GPU_CAP_DMABUF);
	cr_assert_eq(ask(&flush), 0);
	uint8_t *seen = mmap(NULL, 4096, PROT_READ, MAP_SHARED, flush.fd, (off_t)flush.fd_offset);
	cr_assert_neq((void *)seen, MAP_FAILED);
	memset((void *)(uintptr_t)flush.addr, 0x3c, 4096);
	cr_assert_eq(seen[4095], 0x3c);
	munmap(seen, 4096);
	rig_close(&r);
	KVX_TEST_END();
}

Test(gpu_flush, without_dmabufs_it_has_an_address)
{
	struct kvx_gpu_flush flush;

	open_rig(0);
	cr_assert_eq(ask(&flush), 0);
	cr_assert_neq(flush.addr, 0);
	cr_assert_eq(flush.fd, -1);
	rig_close(&r);
	open_rig(KVX_GPU_CAP_DMABUF);
	fake_fail(FAKE_DMABUF, 1, 1, -EOPNOTSUPP);
	cr_assert_eq(ask(&flush), 0);
	cr_assert_eq(flush.fd, -1);
	cr_assert_eq(ask(&flush), 0);
	cr_assert_eq(flush.fd, -1, "it is not tried again");
	rig_close(&r);
	KVX_TEST_END();
}

Test(gpu_flush, a_call_that_fails_leaves_nothing_and_the_next_one_tries_again)
{
	static const enum fake_call calls[] = {FAKE_MEM_ALLOC, FAKE_COPY};

	for (unsigned i = 0; i < 2; i++) {
		struct kvx_gpu_flush flush;

		open_rig(KVX_GPU_CAP_DMABUF);
		fake_fail(calls[i], fake.n[calls[i]] + 1, 1, -ENOMEM);
		cr_assert_eq(ask(&flush), -ENOMEM);
		cr_assert_eq(fake.n_allocs, 0u);
		cr_assert_eq(ask(&flush), 0);
		cr_assert_eq(fake.n_allocs, 1u);
		rig_close(&r);
		KVX_TEST_END();
	}
}

/* Nobody may be shown a page of which it is not known that it is clear. */
Test(gpu_flush, a_page_that_cannot_be_waited_for_loses_the_device)
{
	struct kvx_gpu_flush flush;

	open_rig(KVX_GPU_CAP_DMABUF);
	fake_fail(FAKE_STREAM_SYNC, fake.n[FAKE_STREAM_SYNC] + 1, 9, -EIO);
	cr_assert_eq(ask(&flush), -ENODEV);
	cr_assert_eq(ask(&flush), -ENODEV);
	close_lost();
	KVX_TEST_END();
}

Test(gpu_flush, of_a_lost_device_there_is_none)
{
	struct kvx_gpu_flush flush;
	struct rig_mem m;

	open_rig(KVX_GPU_CAP_DMABUF);
	cr_assert_eq(ask(&flush), 0);
	rig_gpu_mem(&m, 0, 1);
	struct kvx_mr *mr = rig_reg(&r, &m, RIG_BOTH);
	struct kvx_rkey *rkey = rig_key(&r, mr);
	struct kvx_op op = {.local = mr, .remote = rkey, .len_bytes = 8, .kind = KVX_OP_WRITE};
	fake_fail(FAKE_EVENT_QUERY, fake.n[FAKE_EVENT_QUERY] + 1, 100, -ENODEV);
	lose(&op);
	cr_assert_eq(ask(&flush), -ENODEV);
	T->rkey_free(rkey);
	T->mem_dereg(mr);
	close_lost();
	rig_mem_free(&m);
	KVX_TEST_END(); /* its dma-buf is closed */
}

Test(gpu_flush, who_asks_does_not_wait_for_a_device_that_hangs)
{
	struct kvx_gpu_flush flush;
	struct rig_mem m;
	struct kvx_mr *mr = NULL;
	int err = -EBUSY;

	open_rig(KVX_GPU_CAP_DMABUF);
	rig_gpu_mem(&m, 0, 1);
	fake.hang_ipc = true;
	cr_assert_eq(T->mem_reg(r.dom, 0, &m.mem, 0, &mr), -ETIMEDOUT);
	cr_assert_eq(ask(&flush), -EBUSY);
	fake.hang_ipc = false;
	sem_post(&fake.let_go);
	for (unsigned i = 0; err == -EBUSY && i < 1000; i++) {
		const struct timespec pause = {.tv_nsec = 5000000};

		err = ask(&flush);
		nanosleep(&pause, NULL);
	}
	cr_assert_eq(err, 0);
	rig_close(&r);
	rig_mem_free(&m);
	KVX_TEST_END();
}

static void *ask_thread(void *arg)
{
	struct kvx_gpu_flush *flush = arg;

	for (unsigned i = 0; i < 100; i++)
		if (ask(flush) < 0)
			return flush;
	return NULL;
}

Test(gpu_flush, all_who_ask_at_once_get_the_same)
{
	struct kvx_gpu_flush flush[4];
	pthread_t threads[4];

	open_rig(KVX_GPU_CAP_DMABUF);
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(pthread_create(&threads[i], NULL, ask_thread, &flush[i]), 0);
	for (unsigned i = 0; i < 4; i++) {
		void *failed;

		pthread_join(threads[i], &failed);
		cr_assert_null(failed);
		cr_assert_eq(memcmp(&flush[i], &flush[0], sizeof(flush[0])), 0);
	}
	cr_assert_eq(fake.n_allocs, 1u);
	rig_close(&r);
	KVX_TEST_END();
}
