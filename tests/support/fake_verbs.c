/* The verbs stand-in's middle: its lock, its faults, its violations, its objects. Any thread. */
#include "fake_verbs_priv.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WAIT_MS 2000

struct fv_state fv;
static atomic_flag locked = ATOMIC_FLAG_INIT;
static _Thread_local bool no_blocking;

void __asan_poison_memory_region(const volatile void *addr, size_t size) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void *addr, size_t size) __attribute__((weak));

/* Not a pthread mutex: ThreadSanitizer would see that one, and with it an order between threads
 * that the code under test has to make itself. */
void fv_lock(void)
{
	while (atomic_flag_test_and_set_explicit(&locked, memory_order_acquire))
		sched_yield();
}

void fv_unlock(void)
{
	atomic_flag_clear_explicit(&locked, memory_order_release);
}

static void sleep_ms(unsigned ms)
{
	struct timespec ts = {ms / 1000, (long)(ms % 1000) * 1000000};

	while (nanosleep(&ts, &ts) != 0)
		;
}

uint64_t fv_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

bool fv_wait(bool (*done)(void *arg), void *arg)
{
	for (unsigned i = 0; i < WAIT_MS; i++) {
		if (done(arg))
			return true;
		fv_unlock();
		sleep_ms(1);
		fv_lock();
	}
	return false;
}

/* What a sweep over all calls may fail: those from which an error is expected. */
static bool fn_is_fallible(enum fake_verbs_fn fn)
{
	switch (fn) {
	case FV_CLOSE_DEVICE:
	case FV_DEALLOC_PD:
	case FV_DEREG_MR:
	case FV_DESTROY_CHANNEL:
	case FV_DESTROY_CQ:
	case FV_DESTROY_QP:
	case FV_POLL_CQ:
	case FV_GET_CQ_EVENT:
	case FV_GET_ASYNC_EVENT:
	case FV_POST_SEND:
		return false;
	default:
		return true;
	}
}

static bool fn_blocks(enum fake_verbs_fn fn)
{
	return fn == FV_REG_MR || fn == FV_REG_DMABUF_MR || fn == FV_DEREG_MR ||
	       fn == FV_CREATE_QP || fn == FV_MODIFY_QP || fn == FV_DESTROY_QP ||
	       fn == FV_ALLOC_PD || fn == FV_DEALLOC_PD;
}

static int fault_take(enum fake_verbs_fn fn)
{
	struct fv_fault *fault = &fv.fault;
	bool hits = fault->fn == fn || (fault->fn == FV_N_FNS && fn_is_fallible(fn));

	if (fv.fail_all[fn] != 0)
		return fv.fail_all[fn];
	if (fault->left == 0 || !hits || --fault->left > 0)
		return 0;
	fault->fired = true;
	return fault->err;
}

int fv_enter(enum fake_verbs_fn fn)
{
	unsigned ms;
	int err;

	fv_lock();
	fv.calls[fn]++;
	if (no_blocking && fn_blocks(fn))
		fv_violate("a call that blocks (%d) on a thread that must not", (int)fn);
	err = fault_take(fn);
	ms = fv.delay_ms[fn];
	if (ms > 0) {
		fv_unlock();
		sleep_ms(ms);
		fv_lock();
	}
	fv.n_hanging[fn]++;
	while (fv.hangs[fn]) {
		fv_unlock();
		sleep_ms(1);
		fv_lock();
	}
	fv.n_hanging[fn]--;
	return err;
}

int fv_leave(int err)
{
	fv_unlock();
	errno = err;
	return err;
}

void *fv_leave_null(int err)
{
	fv_leave(err);
	return NULL;
}

void fv_violate(const char *format, ...)
{
	va_list ap;

	if (fv.n_violations++ > 0)
		return;
	va_start(ap, format);
	vsnprintf(fv.violation, sizeof(fv.violation), format, ap);
	va_end(ap);
}

int fv_fd_open(void)
{
	return (int)syscall(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_SEMAPHORE);
}

void fv_fd_close(int fd)
{
	(void)syscall(SYS_close, fd);
}

void fv_fd_add(int fd)
{
	uint64_t one = 1;

	if (syscall(SYS_write, fd, &one, sizeof(one)) != sizeof(one))
		fv_violate("write to an event fd: %s", strerror(errno));
}

void fv_fd_take(int fd)
{
	uint64_t one;

	if (syscall(SYS_read, fd, &one, sizeof(one)) != sizeof(one))
		fv_violate("read of an event fd: %s", strerror(errno));
}

void fv_object_init(struct fv_object *obj, enum fv_kind kind)
{
	*obj = (struct fv_object){.kind = kind, .next = fv.objects};
	fv.objects = obj;
}

bool fv_alive(const struct fv_object *obj, enum fv_kind kind, const char *what)
{
	if (obj->kind == kind && !obj->dead)
		return true;
	fv_violate("%s on %s", what, obj->dead ? "what was destroyed" : "something else");
	return false;
}

/* Where the user's view of an object begins, and what has to be freed. */
static void *object_begin(struct fv_object *obj, size_t *out_user_bytes)
{
	switch (obj->kind) {
	case FV_K_PD:
		*out_user_bytes = sizeof(struct ibv_pd);
		return (uint8_t *)obj - offsetof(struct fv_pd, obj);
	case FV_K_MR:
		*out_user_bytes = sizeof(struct ibv_mr);
		return (uint8_t *)obj - offsetof(struct fv_mr, obj);
	case FV_K_CHANNEL:
		*out_user_bytes = sizeof(struct ibv_comp_channel);
		return (uint8_t *)obj - offsetof(struct fv_channel, obj);
	case FV_K_CQ:
		*out_user_bytes = sizeof(struct ibv_cq);
		return (uint8_t *)obj - offsetof(struct fv_cq, obj);
	case FV_K_QP:
		*out_user_bytes = sizeof(struct ibv_qp);
		return (uint8_t *)obj - offsetof(struct fv_qp, obj);
	default:
		*out_user_bytes = 0;
		return obj;
	}
}

/* Its memory stays until fini: with AddressSanitizer a look at it is an error all the same. */
void fv_object_end(struct fv_object *obj)
{
	size_t user_bytes;
	void *begin = object_begin(obj, &user_bytes);

	obj->dead = true;
	if (__asan_poison_memory_region != NULL && user_bytes > 0)
		__asan_poison_memory_region(begin, user_bytes);
}

static void object_free(struct fv_object *obj)
{
	size_t user_bytes;
	void *begin = object_begin(obj, &user_bytes);

	if (__asan_unpoison_memory_region != NULL && user_bytes > 0)
		__asan_unpoison_memory_region(begin, user_bytes);
	if (obj->kind == FV_K_CQ)
		free(((struct fv_cq *)begin)->ring);
	if (obj->kind == FV_K_QP)
		free(((struct fv_qp *)begin)->sq);
	free(begin);
}

void fake_verbs_fini(void)
{
	struct fv_object *next;

	fake_verbs_wire_stop();
	fv_lock();
	for (struct fv_object *obj = fv.objects; obj != NULL; obj = next) {
		next = obj->next;
		object_free(obj);
	}
	for (unsigned i = 0; i < fv.n_late; i++)
		fv_late_free(&fv.late[i]);
	free(fv.trace);
	fv.objects = NULL;
	fv.trace = NULL;
	fv.tracing = false;
	fv.n_late = 0;
	fv_unlock();
	fake_verbs_remove_all();
}

void fake_verbs_reset(void)
{
	fake_verbs_fini();
	fv_lock();
	memset(&fv, 0, sizeof(fv));
	fv.post_limit = UINT32_MAX;
	fv.next_qpn = 0x11;
	fv.next_tag = 0x2f;
	fv_unlock();
	fake_verbs_add("fake0");
}

void fake_verbs_fail(enum fake_verbs_fn fn, unsigned nth, int err)
{
	fv_lock();
	fv.fault = (struct fv_fault){.fn = fn, .left = nth, .err = err};
	fv_unlock();
}

void fake_verbs_fail_all(enum fake_verbs_fn fn, int err)
{
	fv_lock();
	fv.fail_all[fn] = err;
	fv_unlock();
}

bool fake_verbs_fired(void)
{
	bool fired;

	fv_lock();
	fired = fv.fault.fired;
	fv.fault = (struct fv_fault){0};
	fv_unlock();
	return fired;
}

void fake_verbs_delay(enum fake_verbs_fn fn, unsigned ms)
{
	fv_lock();
	fv.delay_ms[fn] = ms;
	fv_unlock();
}

void fake_verbs_hang(enum fake_verbs_fn fn, bool on)
{
	fv_lock();
	fv.hangs[fn] = on;
	fv_unlock();
}

unsigned fake_verbs_hanging(enum fake_verbs_fn fn)
{
	unsigned n;

	fv_lock();
	n = fv.n_hanging[fn];
	fv_unlock();
	return n;
}

unsigned fake_verbs_calls(enum fake_verbs_fn fn)
{
	unsigned n;

	fv_lock();
	n = fv.calls[fn];
	fv_unlock();
	return n;
}

void fake_verbs_no_blocking_here(bool on)
{
	no_blocking = on;
}

unsigned fake_verbs_n_violations(void)
{
	unsigned n;

	fv_lock();
	n = fv.n_violations;
	fv_unlock();
	return n;
}

const char *fake_verbs_violation(void)
{
	return fv.violation;
}

void fake_verbs_forgive(void)
{
	fv_lock();
	fv.n_violations = 0;
	fv.violation[0] = '\0';
	fv_unlock();
}

struct fake_verbs_count fake_verbs_count(void)
{
	struct fake_verbs_count count;

	fv_lock();
	count = fv.count;
	fv_unlock();
	return count;
}
