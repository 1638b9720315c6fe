/* How much a device has under way is bounded, whatever memory clients make up: an op of very many
 * pieces goes out by parts; and a fence waits as long as flights land. */
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "gpu_rig.h"

#define PAGE       4096u
#define N_SEGMENTS 3000u
#define BYTES      ((uint64_t)N_SEGMENTS * PAGE)
#define PART       1024u /* pieces that a flight has under way at most */

/* One allocation, its pages in reverse: no two segments are neighbours. */
static void paged_mem(struct rig_mem *m)
{
	struct kvx_why why = {""};

	memset(m, 0, sizeof(*m));
	kvx_mem_init(&m->mem, &kvx_mem_cuda_ops, -1, 0, BYTES);
	m->mem.gpu = kvx_gpu_mem_create(1, N_SEGMENTS);
	kvx_gpu_pci_normalise("0000:11:00.0", m->mem.gpu->id.pci);
	m->data[0] = fake_client_alloc(0, BYTES, m->mem.gpu->bases[0].ipc);
	m->mem.gpu->bases[0].len_bytes = BYTES;
	for (uint32_t i = 0; i < N_SEGMENTS; i++)
		m->mem.gpu->segments[i] = (struct kvx_gpu_segment){
		    .offset = (uint64_t)(N_SEGMENTS - 1 - i) * PAGE, .len_bytes = PAGE};
	cr_assert_eq(m->mem.ops->check(&m->mem, &why), 0, "%s", why.text);
}

static void paged_free(struct rig_mem *m)
{
	fake_client_free(m->data[0]);
	kvx_mem_fini(&m->mem);
}

struct bench {
	struct rig rig;
	struct rig_mem a, b;
	struct kvx_mr *local, *remote;
	struct kvx_rkey *rkey;
};

static void bench_open(struct bench *x)
{
	rig_open_as(&x->rig, 0, 0);
	paged_mem(&x->a);
	paged_mem(&x->b);
	x->local = rig_reg(&x->rig, &x->a, 0);
	x->remote = rig_reg(&x->rig, &x->b, RIG_BOTH);
	x->rkey = rig_key(&x->rig, x->remote);
}

static void bench_close(struct bench *x)
{
	T->rkey_free(x->rkey);
	T->mem_dereg(x->local);
	T->mem_dereg(x->remote);
	rig_close(&x->rig);
	paged_free(&x->a);
	paged_free(&x->b);
}

static struct kvx_op op(const struct bench *x, uint64_t offset, uint64_t len)
{
	return (struct kvx_op){.local = x->local,
			       .remote = x->rkey,
			       .local_offset = offset,
			       .remote_offset = offset,
			       .len_bytes = len,
			       .cookie = 7,
			       .kind = KVX_OP_WRITE};
}

Test(gpu_fence, an_op_of_many_pieces_goes_out_by_parts)
{
	struct kvx_tevent events[4];
	struct bench x;

	bench_open(&x);
	for (uint64_t i = 0; i < BYTES; i++)
		x.a.data[0][i] = (uint8_t)(i * 31 + (i >> 12));
	struct kvx_op ops[2] = {op(&x, 0, BYTES), op(&x, 0, PAGE)};
	fake.hold = true;
	cr_assert_eq(T->post(x.rig.ep, ops, 2), 1, "nothing behind it in its flight");
	cr_assert_eq(fake.n[FAKE_COPY], PART);
	cr_assert_eq(T->progress(x.rig.dom, events, 4), 0);
	cr_assert_eq(fake.n[FAKE_COPY], PART, "the first part has not landed");
	fake.let_through = 1;
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(T->progress(x.rig.dom, events, 4), 0);
	cr_assert_eq(fake.n[FAKE_COPY], 2 * PART);
	fake.hold = false;
	cr_assert_eq(rig_run(&x.rig, ops, 0), 0);
	unsigned n = 0;
	for (unsigned i = 0; i < 100 && n == 0; i++)
		n = (unsigned)T->progress(x.rig.dom, events, 4);
	cr_assert_eq(n, 1);
	cr_assert_eq(events[0].n_ops, 1);
	cr_assert_eq(events[0].cookie, 7);
	cr_assert_eq(events[0].status, 0);
	cr_assert_eq(fake.n[FAKE_COPY], N_SEGMENTS);
	cr_assert_eq(memcmp(x.a.data[0], x.b.data[0], BYTES), 0);
	bench_close(&x);
	KVX_TEST_END();
}

Test(gpu_fence, small_ops_fill_a_flight_up_to_the_bound)
{
	struct kvx_op ops[16];
	struct bench x;

	bench_open(&x);
	for (unsigned i = 0; i < 16; i++)
		ops[i] = op(&x, (uint64_t)i * 100 * PAGE, 100 * PAGE);
	fake.hold = true;
	cr_assert_eq(T->post(x.rig.ep, ops, 16), 11, "the eleventh is over the bound");
	cr_assert_eq(fake.n[FAKE_COPY], PART);
	fake.hold = false;
	struct kvx_tevent event;
	unsigned n = 0;
	for (unsigned i = 0; i < 100 && n == 0; i++)
		n = (unsigned)T->progress(x.rig.dom, &event, 1);
	cr_assert_eq(n, 1);
	cr_assert_eq(event.n_ops, 11);
	cr_assert_eq(fake.n[FAKE_COPY], 1100u);
	bench_close(&x);
	KVX_TEST_END();
}

Test(gpu_fence, what_has_not_gone_out_before_a_fence_never_goes)
{
	struct kvx_tevent event;
	struct bench x;

	bench_open(&x);
	struct kvx_op big = op(&x, 0, BYTES);
	cr_assert_eq(T->post(x.rig.ep, &big, 1), 1);
	cr_assert_eq(T->fence(x.rig.ep), 0);
	cr_assert_eq(T->progress(x.rig.dom, &event, 1), 1);
	cr_assert_eq(event.status, -ECANCELED);
	cr_assert_eq(event.n_ops, 1);
	cr_assert_eq(fake.n[FAKE_COPY], PART);
	bench_close(&x);
	KVX_TEST_END();
}

static void *fence_main(void *arg)
{
	return (void *)(intptr_t)T->fence(arg);
}

#define N_FLIGHTS 30u

/* fence_timeout_ms is 200 in the rig: 30 flights of 20 ms are three times that. */
Test(gpu_fence, a_fence_waits_as_long_as_flights_land)
{
	const struct timespec pause = {.tv_nsec = 20000000};
	struct kvx_tevent events[4];
	unsigned n_done = 0;
	pthread_t thread;
	struct bench x;
	void *err;

	bench_open(&x);
	struct kvx_op one = op(&x, 0, PAGE);
	fake.hold = true;
	for (unsigned i = 0; i < N_FLIGHTS; i++)
		cr_assert_eq(T->post(x.rig.ep, &one, 1), 1);
	cr_assert_eq(pthread_create(&thread, NULL, fence_main, x.rig.ep), 0);
	for (unsigned i = 0; i < N_FLIGHTS; i++) {
		nanosleep(&pause, NULL);
		fake.let_through = 1;
		for (unsigned turn = 0; turn < 3; turn++) {
			int n = T->progress(x.rig.dom, events, 4);

			for (int e = 0; e < n; e++) {
				cr_assert_eq(events[e].kind, KVX_TEV_OP_DONE);
				cr_assert_eq(events[e].status, 0);
				n_done++;
			}
		}
	}
	fake.hold = false;
	pthread_join(thread, &err);
	cr_assert_eq((intptr_t)err, 0);
	cr_assert_eq(fake.n[FAKE_RESET], 0u, "the device was well");
	cr_assert_geq(n_done, N_FLIGHTS - 3); /* the fence's own events are let through, too */
	while (n_done < N_FLIGHTS)
		n_done += (unsigned)T->progress(x.rig.dom, events, 4);
	bench_close(&x);
	KVX_TEST_END();
}
