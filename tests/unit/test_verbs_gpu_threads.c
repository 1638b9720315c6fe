/* Regions of GPU memory come and go on the threads that register and deregister, while the data
 * thread moves bytes into GPU memory and flushes them. For ThreadSanitizer as much as by itself. */
#include <pthread.h>
#include <stdatomic.h>

#include "verbs_gpu_rig.h"

#include "transport/verbs/verbs_priv.h"

#define N_REGIONS 6u
#define ROUNDS    40u

static struct rig r;
static struct gmem mine, theirs, guests[N_REGIONS];
static _Atomic unsigned n_in, n_out; /* registered, deregistered */
static _Atomic bool failed;

/* The helper that registers: a guest is registered again when the other one is through with it. */
static void *reg_main(void *arg)
{
	(void)arg;
	for (unsigned i = 0; i < ROUNDS * N_REGIONS; i++) {
		while (atomic_load(&n_out) + N_REGIONS <= i)
			sched_yield();
		if (gmem_reg(&guests[i % N_REGIONS], &r.a, i % 2, GPU_RW) != 0)
			atomic_store(&failed, true);
		atomic_store(&n_in, i + 1);
	}
	return NULL;
}

static void *dereg_main(void *arg)
{
	(void)arg;
	for (unsigned i = 0; i < ROUNDS * N_REGIONS; i++) {
		while (atomic_load(&n_in) <= i)
			sched_yield();
		gmem_dereg(&guests[i % N_REGIONS]);
		atomic_store(&n_out, i + 1);
	}
	return NULL;
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
	pthread_t reg, dereg;
	uint64_t seed = 3;

	rig_open(&r);
	gpu_rig_init();
	gmem_make(&mine, 1, 3, 13, 64);
	gmem_make(&theirs, 2, 2, 9, 128);
	cr_assert_eq(gmem_reg(&mine, &r.a, 0, GPU_RW), 0);
	cr_assert_eq(gmem_reg(&theirs, &r.b, 0, GPU_RW), 0);
	gmem_import(&theirs, &r.a);
	for (unsigned i = 0; i < N_REGIONS; i++)
		gmem_make(&guests[i], 1 + i % 2, 1 + i % 3, 4, 64);
	/* The rig's table of allocations does not change from here on. */
	for (unsigned gpu = 1; gpu <= 2; gpu++)
		gpu_rig_flush((void *)(uintptr_t)gpu, &(struct kvx_gpu_flush){0});
	fake_verbs_gpu_delay(true);
	cr_assert_eq(pthread_create(&reg, NULL, reg_main, NULL), 0);
	cr_assert_eq(pthread_create(&dereg, NULL, dereg_main, NULL), 0);
	while (atomic_load(&n_out) < ROUNDS * N_REGIONS)
		move_some(&seed);
	pthread_join(reg, NULL);
	pthread_join(dereg, NULL);
	cr_assert_not(failed);
	fake_verbs_gpu_delay(false);
	gmem_forget(&theirs);
	gmem_dereg(&mine);
	gmem_dereg(&theirs);
	gmem_free(&mine);
	gmem_free(&theirs);
	for (unsigned i = 0; i < N_REGIONS; i++)
		gmem_free(&guests[i]);
	side_close(&r.a);
	side_close(&r.b);
	gpu_rig_fini();
	FAKE_VERBS_END();
	KVX_TEST_END();
}
