/* Host memory that one device has page-locked and others use, when the one is lost: its reset takes
 * the lock away, and waits for those who are there. And locking much of it, which takes long. */
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "gpu_rig.h"
#include "transport/gpu/gpu_copier.h"

/* Two domains: the rig's has locked the memory, the other one copies. */
struct pair {
	struct rig rig;
	struct kvx_dom *other;
	struct kvx_transport_limits limits;
	struct kvx_ep *ep;
	struct rig_mem host, gpu, lost;
	struct kvx_mr *home, *near, *far, *doomed;
	struct kvx_rkey *rkey;
};

static struct kvx_mr *reg(struct kvx_dom *dom, struct rig_mem *m, uint32_t rights)
{
	struct kvx_mr *mr = NULL;

	cr_assert_eq(T->mem_reg(dom, 0, &m->mem, rights, &mr), 0);
	return mr;
}

static void pair_open(struct pair *p)
{
	uint8_t bytes[KVX_TRANSPORT_ADDR_MAX], *mkey = malloc(KVX_TRANSPORT_MKEY_MAX);
	size_t len = sizeof(bytes);
	struct kvx_why why = {""};

	rig_open_as(&p->rig, KVX_GPU_CAP_KERNEL | KVX_GPU_CAP_BATCH, 4096);
	struct kvx_dom_conf conf = p->rig.conf;
	conf.rail = &p->rig.rails[1];
	cr_assert_eq(T->open(&conf, &p->other, &p->limits, &why), 0, "%s", why.text);
	cr_assert_eq(T->listen(p->other, 0, &p->ep, bytes, &len), 0);
	rig_host_mem(&p->host);
	rig_gpu_mem(&p->gpu, 1, 1);
	rig_gpu_mem(&p->lost, 0, 1);
	p->home = reg(p->rig.dom, &p->host, RIG_BOTH);
	p->host.mem.pinned = p->home;
	p->far = reg(p->other, &p->host, RIG_BOTH);
	p->near = reg(p->other, &p->gpu, RIG_BOTH);
	p->doomed = reg(p->rig.dom, &p->lost, 0);
	int n = T->mkey_pack(p->far, mkey, KVX_TRANSPORT_MKEY_MAX);
	cr_assert_eq(T->rkey_unpack(p->ep, mkey, (size_t)n, &p->rkey), 0);
	free(mkey);
}

static void pair_close(struct pair *p)
{
	T->rkey_free(p->rkey);
	T->mem_dereg(p->far);
	T->mem_dereg(p->near);
	T->mem_dereg(p->home);
	cr_assert_eq(T->fence(p->ep), 0);
	T->ep_close(p->ep);
	T->close(p->other);
	fake.n_pins = 0; /* the fake's reset leaves the count to the unlocking */
	rig_close(&p->rig);
	rig_mem_free(&p->host);
	rig_mem_free(&p->gpu);
	rig_mem_free(&p->lost);
}

/* A mapping that does not close is only freed by a reset. */
static void lose_home(struct pair *p)
{
	fake_fail(FAKE_IPC_CLOSE, 1, 5, -EIO);
	T->mem_dereg(p->doomed);
}

static struct kvx_op op(const struct pair *p)
{
	return (struct kvx_op){.local = p->near,
			       .remote = p->rkey,
			       .len_bytes = 1000,
			       .cookie = 3,
			       .kind = KVX_OP_WRITE};
}

static void sleep_ms(long ms)
{
	const struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

static int run(struct pair *p)
{
	struct kvx_op one = op(p);
	struct kvx_tevent event;

	cr_assert_eq(T->post(p->ep, &one, 1), 1);
	for (unsigned i = 0; i < 2000; i++) {
		if (T->progress(p->other, &event, 1) == 1)
			return event.status;
		sleep_ms(1);
	}
	cr_assert_fail("the op does not end");
	return 0;
}

Test(gpu_pin, a_reset_waits_for_others_on_memory_that_it_locked)
{
	struct kvx_tevent event;
	struct pair p;

	pair_open(&p);
	struct kvx_op one = op(&p);
	fake.hold = true;
	cr_assert_eq(T->post(p.ep, &one, 1), 1);
	cr_assert_eq(fake.n[FAKE_KERNEL_RUN], 1u);
	lose_home(&p);
	sleep_ms(300);
	cr_assert_eq(fake.n[FAKE_RESET], 0u, "a kernel of the other device is in the memory");
	fake.hold = false;
	int n = 0;
	for (unsigned i = 0; i < 100 && n == 0; i++)
		n = T->progress(p.other, &event, 1);
	cr_assert_eq(n, 1);
	cr_assert_eq(event.status, 0);
	for (unsigned i = 0; i < 2000 && fake.n[FAKE_RESET] == 0; i++)
		sleep_ms(1);
	cr_assert_eq(fake.n[FAKE_RESET], 1u);
	pair_close(&p);
	KVX_TEST_END();
}

Test(gpu_pin, nobody_enters_it_while_the_reset_runs_and_plain_copies_do_behind_it)
{
	struct pair p;

	pair_open(&p);
	cr_assert_eq(run(&p), 0);
	unsigned n_kernels = fake.n[FAKE_KERNEL_RUN];
	fake.hang_reset = true;
	lose_home(&p);
	cr_assert_eq(run(&p), -ENODEV);
	fake.hang_reset = false;
	sem_post(&fake.let_go);
	int status = -ENODEV;
	for (unsigned i = 0; i < 2000 && status == -ENODEV; i++) {
		sleep_ms(1);
		status = run(&p);
	}
	cr_assert_eq(status, 0);
	cr_assert_eq(fake.n[FAKE_KERNEL_RUN], n_kernels, "a kernel would not survive it");
	pair_close(&p);
	KVX_TEST_END();
}

/* What is mapped there next would not be page-locked, and copies of GPUs not reach it. */
Test(gpu_pin, memory_whose_lock_does_not_go_is_unlocked_after_all)
{
	struct rig_mem host;
	struct rig r;

	rig_open_as(&r, KVX_GPU_CAP_BATCH, 0);
	rig_host_mem(&host);
	struct kvx_mr *mr = reg(r.dom, &host, RIG_BOTH);
	cr_assert_eq(fake.n_pins, 1u);
	fake_fail(FAKE_HOST_UNPIN, 1, 2, -EIO);
	T->mem_dereg(mr);
	cr_assert_eq(fake.n_pins, 0u);
	rig_close(&r);
	rig_mem_free(&host);
	KVX_TEST_END();
}

Test(gpu_pin, a_lock_of_what_was_there_before_gives_way)
{
	struct rig_mem host;
	struct rig r;

	rig_open_as(&r, KVX_GPU_CAP_BATCH, 0);
	rig_host_mem(&host);
	T->mem_dereg(reg(r.dom, &host, RIG_BOTH));
	unsigned n_unpins = fake.n[FAKE_HOST_UNPIN];
	fake.n_pins = 1; /* which nobody could take away */
	fake_fail(FAKE_HOST_PIN, 1, 1, -EEXIST);
	struct kvx_mr *mr = reg(r.dom, &host, RIG_BOTH);
	cr_assert_eq(fake.n[FAKE_HOST_UNPIN], n_unpins + 1);
	cr_assert_eq(fake.n_pins, 1u);
	T->mem_dereg(mr);
	cr_assert_eq(fake.n_pins, 0u);
	rig_close(&r);
	rig_mem_free(&host);
	KVX_TEST_END();
}

/* ---- much memory; call_timeout_ms is 200 in the rig, and 1 s for each GB */

#define GIB (1ull << 30)

struct large {
	struct rig_mem host;
	struct kvx_dom *dom;
	struct kvx_mr *mr;
	int status;
	pthread_t thread;
};

static void *large_main(void *arg)
{
	struct large *l = arg;

	kvx_role_set_worker();
	l->status = T->mem_reg(l->dom, 0, &l->host.mem, RIG_BOTH, &l->mr);
	return NULL;
}

/* Registers much memory (of which the fake looks at nothing), on a thread. */
static void large_start(struct large *l, struct kvx_dom *dom, uint64_t bytes)
{
	rig_host_mem(&l->host);
	l->host.mem.len_bytes = bytes;
	l->dom = dom;
	cr_assert_eq(pthread_create(&l->thread, NULL, large_main, l), 0);
}

static void until_pins(unsigned n)
{
	for (unsigned i = 0; i < 5000 && fake.n[FAKE_HOST_PIN] < n; i++)
		sleep_ms(1);
	cr_assert_eq(fake.n[FAKE_HOST_PIN], n);
}

static void large_end(struct large *l)
{
	pthread_join(l->thread, NULL);
	cr_assert_eq(l->status, 0, "%d", l->status);
	T->mem_dereg(l->mr);
	rig_mem_free(&l->host);
}

Test(gpu_pin, locking_much_memory_is_in_nobodys_way)
{
	struct kvx_gpu_copier *copier;
	struct kvx_gpu_flush flush;
	struct rig_mem small, gpu;
	struct large large;
	struct rig r;
	void *addr;

	rig_open_as(&r, KVX_GPU_CAP_BATCH, 0);
	rig_host_mem(&small);
	rig_gpu_mem(&gpu, 0, 1);
	fake.hang_pin_bytes = KVX_PIN_LONG_BYTES;
	large_start(&large, r.dom, 4 * GIB);
	until_pins(1);
	for (unsigned i = 0; i < 2; i++) { /* longer than what is short may take */
		cr_assert_eq(gpu_copier_open(r.dom, 4, &copier), 0);
		gpu_copier_close(copier);
		cr_assert_eq(gpu_host_alloc(r.dom, 4096, &addr), 0);
		gpu_host_free(r.dom, addr);
		cr_assert_eq(gpu_flush_memory(r.dom, &flush), 0);
		T->mem_dereg(reg(r.dom, &gpu, RIG_BOTH));
		T->mem_dereg(reg(r.dom, &small, RIG_BOTH));
		sleep_ms(250);
	}
	fake.hang_pin_bytes = 0;
	large_end(&large);
	rig_close(&r);
	rig_mem_free(&small);
	rig_mem_free(&gpu);
	KVX_TEST_END();
}

/* None of it is registered without the reach of GPUs because another client's took long. */
Test(gpu_pin, much_memory_waits_for_much_memory)
{
	struct large one, two;
	struct rig r;

	rig_open_as(&r, KVX_GPU_CAP_BATCH, 0);
	fake.hang_pin_bytes = KVX_PIN_LONG_BYTES;
	large_start(&one, r.dom, 4 * GIB);
	until_pins(1);
	large_start(&two, r.dom, KVX_PIN_LONG_BYTES);
	sleep_ms(500);
	fake.hang_pin_bytes = 0;
	pthread_join(two.thread, NULL);
	cr_assert_eq(two.status, 0, "%d", two.status);
	T->mem_dereg(two.mr);
	rig_mem_free(&two.host);
	large_end(&one);
	rig_close(&r);
	KVX_TEST_END();
}

Test(gpu_pin, much_memory_is_locked_by_its_own_device)
{
	struct large large;
	struct pair p;

	pair_open(&p);
	large_start(&large, p.other, GIB);
	pthread_join(large.thread, NULL);
	cr_assert_eq(large.status, 0);
	cr_assert_eq(fake.last_pin_device, 1);
	T->mem_dereg(large.mr);
	rig_mem_free(&large.host);
	T->mem_dereg(p.doomed);
	T->rkey_free(p.rkey);
	T->mem_dereg(p.far);
	T->mem_dereg(p.near);
	T->mem_dereg(p.home);
	T->ep_close(p.ep);
	T->close(p.other);
	rig_close(&p.rig);
	rig_mem_free(&p.host);
	rig_mem_free(&p.gpu);
	rig_mem_free(&p.lost);
	KVX_TEST_END();
}
