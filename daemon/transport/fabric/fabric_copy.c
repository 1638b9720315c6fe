/* Moving bytes between regions and message buffers: the only code of this backend that touches
 * region memory with the CPU, always inside a guard. Called by fabric_msg.c and fabric_serve.c on
 * the worker thread. Checks nothing: pieces were checked against their region before. */
#include <errno.h>
#include <string.h>

#include "mem/guard.h"
#include "transport/copy_kernels.h"
#include "transport/fabric/fabric_priv.h"

/* Pieces from this size up are written around the cache: the reader is another process (or a
 * device), and a write that allocates cache lines reads each of them first. */
#define COPY_NT_MIN_BYTES 2048u

/* Between two looks at the lease: what a daemon that is stopped in the middle of a message and
 * continued after its lease is over may still place. */
#define COPY_LEASE_STEP_BYTES (16u << 10)

struct copy_args {
	uint8_t *run;
	const struct fab_place *places;
	uint32_t n;
	const struct kvx_ep *ep; /* scatter: whose lease allows it */
	int status;              /* scatter: out */
};

static void copy_gather(void *arg)
{
	const struct copy_args *a = arg;
	uint8_t *run = a->run;

	for (uint32_t i = 0; i < a->n; i++) {
		const struct fab_place *p = &a->places[i];

		memcpy(run, p->mr->addr + p->offset, p->len_bytes);
		run += p->len_bytes;
	}
}

static void copy_piece(uint8_t *dst, const uint8_t *src, uint64_t len)
{
	if (len >= COPY_NT_MIN_BYTES)
		kvx_copy_hot_nt(dst, src, len);
	else
		memcpy(dst, src, len);
}

static void copy_scatter(void *arg)
{
	struct copy_args *a = arg;
	const uint8_t *run = a->run;
	uint64_t left = 0; /* that the last look at the lease covers */

	for (uint32_t i = 0; i < a->n; i++) {
		const struct fab_place *p = &a->places[i];
		uint64_t step;

		for (uint64_t at = 0; at < p->len_bytes; at += step, run += step, left -= step) {
			if (left == 0) {
				if (fab_ep_lease_over(a->ep)) {
					a->status = -EHOSTDOWN;
					goto out;
				}
				left = COPY_LEASE_STEP_BYTES;
			}
			step = p->len_bytes - at < left ? p->len_bytes - at : left;
			copy_piece(p->mr->addr + p->offset + at, run, step);
		}
	}
out:
	kvx_copy_fence(); /* whoever hears of them must see them */
}

int fab_gather(uint8_t *dst, const struct fab_place *places, uint32_t n)
{
	struct copy_args args = {.run = dst, .places = places, .n = n};

	return n > 0 ? kvx_guard_run(copy_gather, &args) : 0;
}

int fab_scatter(const struct kvx_ep *ep, const uint8_t *src, const struct fab_place *places,
		uint32_t n)
{
	struct copy_args args = {
	    .run = (uint8_t *)(uintptr_t)src, .places = places, .n = n, .ep = ep};
	int rc = kvx_guard_run(copy_scatter, &args);

	return rc < 0 ? rc : args.status;
}

static void touch_pages(void *arg)
{
	const struct fab_place *p = arg;
	uint64_t end = p->offset + p->len_bytes;
	uint64_t at = p->offset;

	while (at < end) {
		(void)*(const volatile uint8_t *)(p->mr->addr + at);
		at = (at / p->mr->page_bytes + 1) * p->mr->page_bytes;
	}
}

/* Small pages come back as zeroes when they are touched; huge pages may have run out, and then the
 * library's system call would fail and take the whole endpoint with it. */
int fab_touch(const struct fab_place *place)
{
	struct fab_place p = *place;

	if (p.mr->page_bytes <= 4096)
		return 0;
	return kvx_guard_run(touch_pages, &p);
}
