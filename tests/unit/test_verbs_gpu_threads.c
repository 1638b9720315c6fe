/* Regions of GPU memory come and go on the threads that register and deregister, two of each, while
 * the data thread moves bytes into GPU memory and flushes them. For ThreadSanitizer as much as by
 * itself. */
#include <pthread.h>
#include <stdatomic.h>

#include "verbs_gpu_rig.h"

#include "transport/verbs/verbs_priv.h"

#define N_REGIONS 3u
#define N_PAIRS   2u
#define ROUNDS    40u

/* Two helpers and what they are given. */
struct pair {
	struct gmem guests[N_REGIONS];
	pthread_t reg, dereg;
	_Atomic unsigned n_in, n_out; /* registered, deregistered */
};

static struct rig r;
static struct gmem mine, theirs;
static struct pair pairs[N_PAIRS];
static _Atomic bool failed;

/* The helper that registers: a guest is registered again when the other one is through with it. */
static void *reg_main(void *arg)
{
	struct pair *p = arg;

	for (unsigned i = 0; i < ROUNDS * N_REGIONS; i++) {
		while (atomic_load(&p->n_out) + N_REGIONS <= i)
			sched_yield();
		if (gmem_reg(&p->guests[i % N_REGIONS], &r.a, i % 2, GPU_RW) != 0)
			atomic_store(&failed, true);
		atomic_store(&p->n_in, i + 1);
	}
	return NULL;
}

static void *dereg_main(void *arg)
{
	struct pair *p = arg;

	for (unsigned i = 0; i < ROUNDS * N_REGIONS; i++) {
		while (atomic_load(&p->n_in) <= i)
			sched_yield();
		gmem_dereg(&p->guests[i % N_REGIONS]);
		atomic_store(&p->n_out, i + 1);
	}
	return NULL;
}

static void pair_make(struct pair *p)
{
	for (unsigned i = 0; i < N_REGIONS; i++)
		gmem_make(&p->guests[i], 1 + i % 2, 1 + i % 3, 4, 64);
}

static void pair_start(struct pair *p)
{
	cr_assert_eq(pthread_create(&p->reg, NULL, reg_main, p), 0);
	cr_assert_eq(pthread_create(&p->dereg, NULL, dereg_main, p), 0);
}

static void pair_end(struct pair *p)
{
	pthread_join(p->reg, NULL);
	pthread_join(p->dereg, NULL);
	for (unsigned i = 0; i < N_REGIONS; i++)
		gmem_free(&p->guests[i]);
}

static bool all_are_out(void)
{
	bool out = true;

	for (unsigned i = 0; i < N_PAIRS; i++)
		out &= atomic_load(&pairs[i].n_out) == ROUNDS * N_REGIONS;
	return out;
}

static void move_some(uint64_t *seed)
{
	struct kvx_op ops[4];

	for (unsigned i = 0; i < 4; i++)
		ops[i] = (struct kvx_op){.local = mine.mr,
					 .remote = theirs.rkey,
					 .local_offset = i * 9000,
					 .remote_offset = test_random(seed, GPU_BYTES - 9000),
					 .len_bytes = 9000,
					 .cookie = 3,
					 .kind = KVX_OP_READ};
	run_ops(&r, ops, 4);
	cr_assert_eq(r.a.n_failed, 0, "%s", r.a.text);
	for (unsigned i = 0; i < 4; i++)
		for (uint64_t k = 0; k < 9000; k += 97)
			cr_assert_eq(*gmem_at(&mine, i * 9000 + k),
				     *gmem_at(&theirs, ops[i].remote_offset + k));
}

Test(verbs_gpu_threads, regions_come_and_go_while_bytes_move)
{
	uint64_t seed = 3;

	rig_open(&r);
	gpu_rig_init();
	gmem_make(&mine, 1, 3, 13, 64);
	gmem_make(&theirs, 2, 2, 9, 128);
	cr_assert_eq(gmem_reg(&mine, &r.a, 0, GPU_RW), 0);
	cr_assert_eq(gmem_reg(&theirs, &r.b, 0, GPU_RW), 0);
	gmem_import(&theirs, &r.a);
	for (unsigned i = 0; i < N_PAIRS; i++)
		pair_make(&pairs[i]);
	/* The rig's table of allocations does not change from here on. */
	for (unsigned gpu = 1; gpu <= 2; gpu++)
		gpu_rig_flush((void *)(uintptr_t)gpu, &(struct kvx_gpu_flush){0});
	fake_verbs_gpu_delay(true);
	for (unsigned i = 0; i < N_PAIRS; i++)
		pair_start(&pairs[i]);
	while (!all_are_out())
		move_some(&seed);
	for (unsigned i = 0; i < N_PAIRS; i++)
		pair_end(&pairs[i]);
	cr_assert_not(failed);
	fake_verbs_gpu_delay(false);
	gmem_forget(&theirs);
	gmem_dereg(&mine);
	gmem_dereg(&theirs);
	gmem_free(&mine);
	gmem_free(&theirs);
	side_close(&r.a);
	side_close(&r.b);
	gpu_rig_fini();
	FAKE_VERBS_END();
	KVX_TEST_END();
}
