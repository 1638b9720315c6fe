/* Copiers and page-locked memory of a device that does not answer in time, or not at all: what was
 * begun is not undone twice, and what is given back needs no memory for it. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/clock.h"
#include "gpu_rig.h"
#include "transport/gpu/gpu_copier.h"

static struct rig r;

static void pause_ms(unsigned ms)
{
	const struct timespec pause = {ms / 1000, (long)(ms % 1000) * 1000000};

	nanosleep(&pause, NULL);
}

/* What becomes of a copy; 0: it is not over by then. */
static int wait_ticket(struct kvx_gpu_copier *copier, unsigned ticket, unsigned ms)
{
	int rc = gpu_copier_poll(copier, ticket);

	for (unsigned i = 0; rc == 0 && i < ms; i++) {
		pause_ms(1);
		rc = gpu_copier_poll(copier, ticket);
	}
	return rc;
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
	cr_assert_eq(gpu_copier_start(copier, &piece, 1, &ticket), 0);
	cr_assert_eq(wait_ticket(copier, ticket, 2000), -ENODEV);
	cr_assert(r.dom->lost);
	cr_assert_eq(gpu_copier_start(copier, &piece, 1, &ticket), -ENODEV);
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

/* ---- a device whose calls hang */

/* Nobody who uses a copier may have to wait for the runtime: who did would wait for longer. */
#define AT_ONCE_NS KVX_SEC
#define CALL_MS    2000

struct hung {
	struct kvx_gpu_copier *copier;
	uint8_t bytes[2][64];
	struct kvx_gpu_piece piece;
	unsigned ticket;
	unsigned n_before;
};

/* A copy whose `call` does not return. */
static void hung_begin(struct hung *h, enum fake_call call)
{
	uint64_t since;

	memset(h, 0, sizeof(*h));
	h->piece = (struct kvx_gpu_piece){(uintptr_t)h->bytes[0], (uintptr_t)h->bytes[1], 64};
	rig_open_patient(&r, 0, 0, CALL_MS);
	cr_assert_eq(gpu_copier_open(r.dom, 4, &h->copier), 0);
	h->n_before = fake.n[call];
	fake.hang[call] = true;
	since = kvx_now_ns();
	cr_assert_eq(gpu_copier_start(h->copier, &h->piece, 1, &h->ticket), 0);
	cr_assert_lt(kvx_now_ns() - since, AT_ONCE_NS, "a start waits for the runtime");
	for (unsigned i = 0; fake.n[call] == h->n_before && i < 2000; i++)
		pause_ms(1);
	cr_assert_gt(fake.n[call], h->n_before);
	since = kvx_now_ns();
	for (unsigned i = 0; i < 10; i++)
		cr_assert_eq(gpu_copier_poll(h->copier, h->ticket), 0);
	cr_assert_lt(kvx_now_ns() - since, AT_ONCE_NS, "a look waits for the runtime");
}

static void hung_goes_on(enum fake_call call)
{
	struct hung h;
	unsigned second;

	hung_begin(&h, call);
	cr_assert_eq(gpu_copier_start(h.copier, &h.piece, 1, &second), 0);
	fake.hang[call] = false;
	cr_assert_eq(wait_ticket(h.copier, h.ticket, 2000), 1);
	cr_assert_eq(wait_ticket(h.copier, second, 2000), 1);
	gpu_copier_close(h.copier);
	rig_close(&r);
}

Test(gpu_copier, calls_that_hang_hold_up_no_user)
{
	hung_goes_on(FAKE_BIND);
	hung_goes_on(FAKE_COPY);
	hung_goes_on(FAKE_EVENT_RECORD);
	hung_goes_on(FAKE_EVENT_QUERY);
	KVX_TEST_END();
}

/* The reset is the end of what was under way, whatever a call still does. */
static void hung_ends_with_the_reset(enum fake_call call)
{
	struct hung h;
	unsigned second, third;

	hung_begin(&h, call);
	cr_assert_eq(gpu_copier_start(h.copier, &h.piece, 1, &second), 0);
	gpu_copier_cut(h.copier);
	cr_assert_eq(gpu_copier_poll(h.copier, h.ticket), 0, "over before the reset");
	cr_assert_eq(gpu_copier_poll(h.copier, second), 0, "over before the reset");
	cr_assert_eq(gpu_copier_start(h.copier, &h.piece, 1, &third), -ENODEV);
	cr_assert(gpu_dom_wait_reset(r.dom));
	cr_assert_eq(gpu_copier_poll(h.copier, h.ticket), -ENODEV);
	cr_assert_eq(gpu_copier_poll(h.copier, second), -ENODEV);
	fake.hang[call] = false;
	gpu_copier_close(h.copier);
	rig_close(&r);
}

Test(gpu_copier, a_reset_ends_copies_whose_call_hangs, .timeout = 60)
{
	hung_ends_with_the_reset(FAKE_COPY);
	hung_ends_with_the_reset(FAKE_EVENT_QUERY);
	KVX_TEST_END();
}

/* A call that has not returned may look at memory that was given to it. */
Test(gpu_copier, a_call_that_hangs_keeps_the_memory_it_may_use)
{
	void *blocks[2] = {NULL, NULL};
	struct hung h;

	hung_begin(&h, FAKE_COPY);
	for (unsigned i = 0; i < 2; i++) {
		cr_assert_eq(gpu_host_alloc(r.dom, 4096, &blocks[i]), 0);
		memset(blocks[i], 0x55, 4096);
	}
	gpu_copier_cut(h.copier);
	cr_assert(gpu_dom_wait_reset(r.dom));
	cr_assert_eq(gpu_copier_poll(h.copier, h.ticket), -ENODEV);
	gpu_host_free(r.dom, blocks[0]);
	cr_assert_eq(msync(blocks[0], 4096, MS_ASYNC), 0, "it is not there any more");
	fake.hang[FAKE_COPY] = false;
	gpu_copier_close(h.copier);
	gpu_host_free(r.dom, blocks[1]);
	cr_assert_lt(msync(blocks[1], 4096, MS_ASYNC), 0, "it is there still");
	fake.n_pins = 0; /* went with the reset */
	rig_close(&r);
	KVX_TEST_END();
}

/* It is left, and with it all that the call may touch. */
Test(gpu_copier, a_close_does_not_wait_for_ever_for_a_call)
{
	struct hung h;
	uint64_t since;

	hung_begin(&h, FAKE_COPY);
	since = kvx_now_ns();
	gpu_copier_close(h.copier);
	cr_assert_lt(kvx_now_ns() - since, 10 * KVX_SEC);
	cr_assert(r.dom->lost);
	fake.hang[FAKE_COPY] = false;
	pause_ms(50); /* the call comes back to what is there still */
	T->ep_close(r.ep);
}
