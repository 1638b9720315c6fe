/* The verbs stand-in's bytes under way: written now, when a read makes them visible, or late. Under
 * the lock. */
#include "fake_verbs_priv.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__asan_region_is_poisoned(void *addr, size_t size) __attribute__((weak));

/* Not malloc(): ThreadSanitizer knows who allocates and who frees, and not our lock. */
static uint8_t *buffer_get(uint64_t len)
{
	long at = syscall(SYS_mmap, NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);

	if (at == -1)
		abort();
	return (uint8_t *)at;
}

void fv_late_free(struct fv_late *late)
{
	(void)syscall(SYS_munmap, late->bytes, late->len);
}

static void bytes_land(uint8_t *to, const uint8_t *from, uint64_t len)
{
	if (__asan_region_is_poisoned != NULL && __asan_region_is_poisoned(to, len) != NULL) {
		fv_violate("%llu bytes would land in memory that was freed",
			   (unsigned long long)len);
		return;
	}
	fv_dma(to, from, len);
}

void fv_carry(const struct fv_late *packet, const uint8_t *from, enum fv_when when)
{
	struct fv_late *late = &fv.late[fv.n_late];

	if (fv.copies_not)
		return;
	if (fv.gpu_delay && packet->mr->gpu != 0 && when == FV_NOW)
		when = FV_LAZY;
	if (when == FV_NOW) {
		bytes_land(packet->to, from, packet->len);
		return;
	}
	if (fv.n_late == FV_MAX_LATE) {
		if (when == FV_LAZY)
			bytes_land(packet->to, from, packet->len);
		return;
	}
	*late = *packet;
	late->lazy = when == FV_LAZY;
	late->born_ns = fv_now_ns();
	late->bytes = buffer_get(packet->len);
	fv_dma(late->bytes, from, packet->len);
	fv.n_late++;
}

/* Lands or drops entry i; the last one takes its place. Order among lazy writes is kept by the
 * callers, who go from the first on and move the rest up. */
static uint64_t late_end(struct fv_late *late, bool lands)
{
	uint64_t len = late->len;

	if (lands)
		bytes_land(late->to, late->bytes, len);
	else
		fv.late_dropped += len;
	fv_late_free(late);
	return lands ? len : 0;
}

typedef bool (*late_match_fn)(const struct fv_late *late, const struct fv_qp *qp,
			      const struct fv_mr *mr);

static uint64_t late_sweep(late_match_fn match, const struct fv_qp *qp, const struct fv_mr *mr,
			   bool lands)
{
	unsigned kept = 0, n = fv.n_late;
	uint64_t bytes = 0;

	for (unsigned i = 0; i < n; i++) {
		if (match(&fv.late[i], qp, mr))
			bytes += late_end(&fv.late[i], lands);
		else
			fv.late[kept++] = fv.late[i];
	}
	fv.n_late = kept;
	return bytes;
}

static bool is_lazy_of(const struct fv_late *late, const struct fv_qp *qp, const struct fv_mr *mr)
{
	return late->lazy && ((qp == NULL && mr == NULL) || late->qp == qp || late->mr == mr);
}

/* A GPU's memory is behind a bus of its own: only a read of that by the same device counts. */
static bool is_before_read(const struct fv_late *late, const struct fv_qp *qp,
			   const struct fv_mr *mr)
{
	if (!late->lazy)
		return false;
	if (late->mr->gpu == 0)
		return qp != NULL && late->qp == qp && (mr == NULL || mr->gpu == 0);
	return mr != NULL && late->mr->gpu == mr->gpu && late->mr->mr.context == mr->mr.context;
}

static bool is_of(const struct fv_late *late, const struct fv_qp *qp, const struct fv_mr *mr)
{
	return late->qp == qp || late->mr == mr;
}

static bool is_lost(const struct fv_late *late, const struct fv_qp *qp, const struct fv_mr *mr)
{
	return !late->lazy && fv.lifetime_ns > 0 && fv_now_ns() - late->born_ns > fv.lifetime_ns;
}

static bool is_late(const struct fv_late *late, const struct fv_qp *qp, const struct fv_mr *mr)
{
	return !late->lazy;
}

void fv_land_lazy(const struct fv_qp *qp, const struct fv_mr *mr)
{
	if (fv.n_late > 0)
		late_sweep(is_lazy_of, qp, mr, true);
}

void fv_land_before_read(const struct fv_qp *responder, const struct fv_mr *mr)
{
	if (fv.n_late > 0)
		late_sweep(is_before_read, responder, mr, true);
}

void fv_wire_forget_qp(struct fv_qp *qp)
{
	fv_land_lazy(qp, NULL);
	late_sweep(is_of, qp, NULL, false);
	for (struct fv_object *obj = fv.objects; obj != NULL; obj = obj->next) {
		struct fv_qp *at = fv_qp_of(obj);

		if (obj->kind == FV_K_QP && at->other == qp)
			at->other = NULL;
	}
}

void fv_wire_forget_mr(struct fv_mr *mr)
{
	fv_land_lazy(NULL, mr);
	late_sweep(is_of, NULL, mr, false);
}

void fake_verbs_lifetime(unsigned ms)
{
	fv_lock();
	fv.lifetime_ns = ms * UINT64_C(1000000);
	fv_unlock();
}

void fake_verbs_late(bool on)
{
	fv_lock();
	fv.late_on = on;
	fv_unlock();
}

void fake_verbs_copy(bool on)
{
	fv_lock();
	fv.copies_not = !on;
	fv_unlock();
}

void fake_verbs_lazy_writes(bool on)
{
	fv_lock();
	fv.lazy_on = on;
	if (!on)
		fv_land_lazy(NULL, NULL);
	fv_unlock();
}

void fake_verbs_gpu_delay(bool on)
{
	fv_lock();
	fv.gpu_delay = on;
	if (!on)
		fv_land_lazy(NULL, NULL);
	fv_unlock();
}

void fake_verbs_gpu_mute(unsigned gpu)
{
	fv_lock();
	fv.mute_gpu = gpu;
	fv_unlock();
}

uint64_t fake_verbs_gpu_waiting(void)
{
	uint64_t bytes = 0;

	fv_lock();
	for (unsigned i = 0; i < fv.n_late; i++)
		if (fv.late[i].lazy && fv.late[i].mr->gpu != 0)
			bytes += fv.late[i].len;
	fv_unlock();
	return bytes;
}

uint64_t fake_verbs_land_late(void)
{
	uint64_t bytes;

	fv_lock();
	late_sweep(is_lost, NULL, NULL, false);
	bytes = late_sweep(is_late, NULL, NULL, true);
	fv_unlock();
	return bytes;
}

uint64_t fake_verbs_late_dropped(void)
{
	uint64_t bytes;

	fv_lock();
	bytes = fv.late_dropped;
	fv_unlock();
	return bytes;
}
