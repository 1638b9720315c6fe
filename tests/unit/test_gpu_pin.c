/* Host memory that one device has page-locked and others use, when the one is lost: its reset takes
 * the lock away, and waits for those who are there. */
#include <errno.h>
#include <time.h>

#include "gpu_rig.h"

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
