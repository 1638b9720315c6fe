/* What runs the wire of the verbs stand-in: the test by hand, or a thread of its own; and when it
 * breaks. */
#include "fake_verbs_priv.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

static pthread_t wire_thread;
static volatile bool wire_runs;

void fake_verbs_mode(enum fake_verbs_mode mode)
{
	fv_lock();
	fv.mode = mode;
	fv_unlock();
}

void fv_cq_step(struct fv_cq *cq)
{
	if (fv.mode != FV_AT_ONCE || fv.retry_ns == 0 || cq->n_open_wrs == 0)
		return;
	for (struct fv_object *obj = fv.objects; obj != NULL; obj = obj->next)
		if (obj->kind == FV_K_QP && !obj->dead && fv_qp_of(obj)->qp.send_cq == &cq->cq)
			while (fv_qp_step(fv_qp_of(obj)))
				;
}

void fake_verbs_retry(unsigned ms)
{
	fv_lock();
	fv.retry_ns = ms * UINT64_C(1000000);
	fv_unlock();
}

void fake_verbs_packet(uint32_t bytes)
{
	fv_lock();
	fv.packet_bytes = bytes;
	fv_unlock();
}

/* One packet of the k-th QP that has any, counted from the newest. */
static bool step_kth(uint64_t k)
{
	for (unsigned round = 0; round < 2; round++) {
		for (struct fv_object *obj = fv.objects; obj != NULL; obj = obj->next) {
			if (obj->kind != FV_K_QP || obj->dead)
				continue;
			if (k > 0)
				k--;
			else if (fv_qp_step(fv_qp_of(obj)))
				return true;
		}
		k = 0;
	}
	return false;
}

unsigned fake_verbs_run(unsigned n)
{
	unsigned done = 0;

	fv_lock();
	while (done < n && step_kth(fv.count.qps == 0 ? 0 : fv.turn++ % fv.count.qps))
		done++;
	fv_unlock();
	return done;
}

bool fake_verbs_run_one(uint64_t random)
{
	bool moved;

	fv_lock();
	moved = step_kth(fv.count.qps == 0 ? 0 : random % fv.count.qps);
	fv_unlock();
	return moved;
}

static void *wire_main(void *arg)
{
	uint64_t state = (uint64_t)(uintptr_t)arg * 2654435761u + 1;
	struct timespec nap = {0, 20000};

	while (wire_runs) {
		state = state * 6364136223846793005u + 1442695040888963407u;
		if (!fake_verbs_run_one(state >> 33) || (state >> 40) % 16 == 0)
			nanosleep(&nap, NULL);
		if ((state >> 45) % 64 == 0)
			fake_verbs_land_late();
	}
	return NULL;
}

void fake_verbs_wire_start(uint64_t seed)
{
	wire_runs = true;
	if (pthread_create(&wire_thread, NULL, wire_main, (void *)(uintptr_t)seed) != 0)
		abort();
}

void fake_verbs_wire_stop(void)
{
	if (!wire_runs)
		return;
	wire_runs = false;
	pthread_join(wire_thread, NULL);
}

void fake_verbs_break(unsigned nth, enum ibv_wc_status status, uint32_t vendor_err,
		      enum fake_verbs_land land)
{
	fv_lock();
	fv.brk = (struct fv_break){nth, status, vendor_err, land, false};
	fv_unlock();
}

bool fake_verbs_broken(void)
{
	bool fired;

	fv_lock();
	fired = fv.brk.fired;
	fv.brk = (struct fv_break){0};
	fv_unlock();
	return fired;
}
