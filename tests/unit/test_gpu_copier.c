/* Copiers and page-locked memory of a device that does not answer in time, or not at all: what was
 * begun is not undone twice, and what is given back needs no memory for it. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "gpu_rig.h"
#include "transport/gpu/gpu_copier.h"

static struct rig r;

static void pause_ms(unsigned ms)
{
	const struct timespec pause = {ms / 1000, (long)(ms % 1000) * 1000000};

	nanosleep(&pause, NULL);
}

/* A closed copier is gone with all it has, though nobody waited for its end. */
Test(gpu_copier, a_close_that_is_given_up_undoes_once)
{
	struct kvx_gpu_copier *copier = NULL;
	unsigned n_events;

	rig_open_as(&r, 0, 0);
	n_events = fake.n_events;
	cr_assert_eq(gpu_copier_open(r.dom, 4, &copier), 0);
	cr_assert_eq(fake.n_events, n_events + 4);
	fake.hang_destroy = true;
	gpu_copier_close(copier); /* gives up after call_timeout_ms */
	fake.hang_destroy = false;
	sem_post(&fake.let_go);
	for (unsigned i = 0; fake.n_events != n_events && i < 2000; i++)
		pause_ms(1);
	pause_ms(20); /* what runs late would follow */
	cr_assert_eq(fake.n_events, n_events, "%d events too many are gone",
		     (int)(n_events - fake.n_events));
	rig_close(&r);
	KVX_TEST_END();
}

/* Behind a call that hangs it is not even begun: it still goes. */
Test(gpu_copier, a_close_behind_a_call_that_hangs_is_done_later)
{
	struct kvx_gpu_copier *copiers[2] = {NULL, NULL};
	void *block = NULL;
	unsigned n_events, n_pins;

	rig_open_as(&r, 0, 0);
	n_events = fake.n_events;
	n_pins = fake.n_pins;
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(gpu_copier_open(r.dom, 4, &copiers[i]), 0);
	cr_assert_eq(gpu_host_alloc(r.dom, 100000, &block), 0);
	memset(block, 0x55, 100000);
	cr_assert_eq(fake.n_pins, n_pins + 1);
	fake.hang_destroy = true;
	gpu_copier_close(copiers[0]);
	gpu_copier_close(copiers[1]);
	gpu_host_free(r.dom, block);
	fake.hang_destroy = false;
	sem_post(&fake.let_go);
	for (unsigned i = 0; (fake.n_events != n_events || fake.n_pins != n_pins) && i < 2000; i++)
		pause_ms(1);
	cr_assert_eq(fake.n_events, n_events);
	cr_assert_eq(fake.n_pins, n_pins);
	rig_close(&r);
	KVX_TEST_END();
}

/* A device that is gone is lost with the first who is told so. */
Test(gpu_copier, a_device_that_cannot_be_bound_is_lost)
{
	struct kvx_gpu_copier *copier = NULL;
	uint8_t bytes[2][64] = {{0}};
	struct kvx_gpu_piece piece = {(uintptr_t)bytes[0], (uintptr_t)bytes[1], 64};
	unsigned ticket;

	rig_open_as(&r, 0, 0);
	cr_assert_eq(gpu_copier_open(r.dom, 4, &copier), 0);
	fake.fail_at[FAKE_BIND] = fake.n[FAKE_BIND] + 1;
	fake.fail_times[FAKE_BIND] = 1;
	fake.fail_err[FAKE_BIND] = -ENODEV;
	cr_assert_eq(gpu_copier_start(copier, &piece, 1, &ticket), -ENODEV);
	cr_assert(r.dom->lost);
	gpu_copier_close(copier);
	rig_close(&r);
	KVX_TEST_END();
}

/* The runtime refuses to unlock a buffer, twice. */
Test(gpu_copier, what_is_not_given_back_at_once_is_asked_again)
{
	void *block = NULL;
	unsigned n_pins;

	rig_open_as(&r, 0, 0);
	n_pins = fake.n_pins;
	cr_assert_eq(gpu_host_alloc(r.dom, 4096, &block), 0);
	fake.fail_at[FAKE_HOST_UNPIN] = fake.n[FAKE_HOST_UNPIN] + 1;
	fake.fail_times[FAKE_HOST_UNPIN] = 2;
	fake.fail_err[FAKE_HOST_UNPIN] = -ENOMEM;
	gpu_host_free(r.dom, block);
	cr_assert_eq(fake.n_pins, n_pins);
	rig_close(&r);
	KVX_TEST_END();
}
