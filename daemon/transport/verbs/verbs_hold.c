/* Who may use an ep's queue pairs, and how they end. Destroying a queue pair is the fence: it
 * returns when the device has let go of all memory (modifying it to an error state does not wait
 * for that). It may block for long, so helper threads do it; and it must never meet a thread that
 * is just posting. Any thread. See verbs_priv.h for the rules. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "transport/verbs/verbs_priv.h"

#define WAIT_NS 50000 /* destroying takes milliseconds */

bool verbs_ep_is_cut(const struct kvx_ep *ep)
{
	return (atomic_load_explicit(&ep->hold, memory_order_acquire) & VERBS_CUT) != 0;
}

/* Takes the pointer of one queue pair and destroys it. */
static int qp_end(struct kvx_ep *ep, struct verbs_qp *qp)
{
	struct ibv_qp *ibqp = atomic_exchange_explicit(&qp->ibqp, NULL, memory_order_acq_rel);
	int err;

	if (ibqp == NULL)
		return 0;
	err = verbs_qp_destroy(ibqp);
	if (err < 0) {
		atomic_store_explicit(&qp->ibqp, ibqp, memory_order_release);
		return err;
	}
	atomic_fetch_sub_explicit(&ep->n_alive, 1, memory_order_acq_rel);
	return 0;
}

static int ep_end_qps(struct kvx_ep *ep)
{
	int first = 0;

	for (uint32_t i = 0; i < ep->n_qps; i++) {
		int err = qp_end(ep, &ep->qps[i]);

		if (first == 0)
			first = err;
	}
	return first;
}

bool verbs_ep_enter(struct kvx_ep *ep)
{
	if (verbs_ep_is_cut(ep))
		return false;
	if (!(atomic_fetch_add_explicit(&ep->hold, 1, memory_order_acq_rel) & VERBS_CUT))
		return true;
	verbs_ep_leave(ep);
	return false;
}

void verbs_ep_leave(struct kvx_ep *ep)
{
	uint32_t was = atomic_fetch_sub_explicit(&ep->hold, 1, memory_order_acq_rel);

	if (was == (VERBS_CUT | 1))
		(void)ep_end_qps(ep); /* who waits for it tries again and gets the error */
}

void verbs_ep_cut(struct kvx_ep *ep)
{
	uint32_t was = atomic_fetch_or_explicit(&ep->hold, VERBS_CUT, memory_order_acq_rel);

	if ((was & ~VERBS_CUT) == 0)
		(void)ep_end_qps(ep);
}

int verbs_ep_wait_gone(struct kvx_ep *ep)
{
	const struct timespec pause = {.tv_nsec = WAIT_NS};

	kvx_assert(verbs_ep_is_cut(ep));
	for (;;) {
		int err = 0;

		if (atomic_load_explicit(&ep->hold, memory_order_acquire) == VERBS_CUT)
			err = ep_end_qps(ep);
		if (atomic_load_explicit(&ep->n_alive, memory_order_acquire) == 0)
			return 0;
		if (err < 0)
			return err;
		/* Another thread is at it: one that was posting, or the lease's end. */
		nanosleep(&pause, NULL);
	}
}
