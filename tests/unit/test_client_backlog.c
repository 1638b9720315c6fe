/* Submits of the client library to a daemon that does not read: they wait in the library, in order
 * and bounded; and a daemon that keeps up costs no memory. */
#include "client_fixture.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "fault_alloc.h"
#include "test_end.h"

/* The daemon stops reading until released: what the socket does not take waits in the library. */
static enum fake_answer stop_reading(struct fake_daemon *d, uint16_t type)
{
	_Atomic int *gate = d->arg;

	while (type == KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT && *gate == 1)
		usleep(1000);
	return FAKE_DEFAULT;
}

Test(client_backlog, full_socket_keeps_order_and_loses_nothing)
{
	enum { N_OPS = 16384, N = 100 };
	uint64_t *offsets = calloc(N_OPS, sizeof(*offsets));
	struct kvxfer_ops ops = {N_OPS, offsets, offsets, NULL, 8};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t), .op = KVXFER_READ, .ops = &ops};
	_Atomic int gate = 1;
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};

	pair = start_pair(&d, stop_reading, &gate, 5000);
	t.region = pair.region;
	t.import_ = pair.import_;
	for (t.tag = 0; t.tag < N; t.tag++) /* 26 MB: more than any socket buffer */
		cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, NULL), 0);
	cr_assert_not(is_readable(kvxfer_client_fd(pair.client), 50));
	gate = 0;
	while (seen.n < N) { /* only by polling: the fd must tell when there is room to send */
		cr_assert(is_readable(kvxfer_client_fd(pair.client), 5000), "%u", seen.n);
		cr_assert_geq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 0);
	}
	for (unsigned i = 0; i < N; i++)
		cr_assert_eq(seen.events[i].tag, i);
	cr_assert_not(is_readable(kvxfer_client_fd(pair.client), 0));
	stop_pair(&d, &pair);
	free(offsets);
	KVX_TEST_END();
}

/* The kernel takes no more fds of this user: the socket is writable, and yet a frame with one does
 * not go. */
static _Atomic bool fds_are_refused;
static _Atomic unsigned n_refused;

ssize_t __real_sendmsg(int fd, const struct msghdr *mh, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *mh, int flags);

ssize_t __wrap_sendmsg(int fd, const struct msghdr *mh, int flags)
{
	if (!fds_are_refused || mh->msg_controllen == 0)
		return __real_sendmsg(fd, mh, flags);
	n_refused++;
	errno = ETOOMANYREFS;
	return -1;
}

static uint64_t cpu_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Its fd is no longer readable once everything is sent and read. */
static void wait_quiet(struct kvxfer_client *client, struct seen *seen)
{
	for (unsigned i = 0; i < 100 && is_readable(kvxfer_client_fd(client), 50); i++)
		cr_assert_geq(kvxfer_client_dispatch(client, seen_event, seen), 0);
	cr_assert_not(is_readable(kvxfer_client_fd(client), 50));
}

/* The same, and it goes on a while after it was released. */
static enum fake_answer read_on_later(struct fake_daemon *d, uint16_t type)
{
	_Atomic int *gate = d->arg;

	while (type == KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT && *gate == 1)
		usleep(1000);
	if (type == KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT && *gate == 2) {
		usleep(200000);
		*gate = 0;
	}
	return FAKE_DEFAULT;
}

/* A frame that cannot be taken back any more, for others are in front of it: it is tried again now
 * and then, by who waits for its answer and by who waits for events, and goes when it can. */
Test(client_backlog, a_frame_whose_fds_are_refused_is_tried_again_without_haste)
{
	enum { N_OPS = 16384, N = 40 };
	uint64_t *offsets = calloc(N_OPS, sizeof(*offsets)), cpu;
	struct kvxfer_ops ops = {N_OPS, offsets, offsets, NULL, 8};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t), .op = KVXFER_READ, .ops = &ops};
	struct kvxfer_region *region;
	_Atomic int gate = 1;
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};

	pair = start_pair(&d, read_on_later, &gate, 1000);
	t.region = pair.region;
	t.import_ = pair.import_;
	for (t.tag = 0; t.tag < N; t.tag++)
		cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, NULL), 0);
	fds_are_refused = true;
	gate = 2;
	cpu = cpu_ms();
	cr_assert_eq(kvxfer_region_alloc(pair.client, 4096, NULL, &region), -ETIMEDOUT);
	wait_events(pair.client, &seen, N);
	n_refused = 0;
	for (unsigned i = 0; i < 10; i++)
		kvxfer_client_wait(pair.client, 50, seen_event, &seen);
	cr_assert(n_refused >= 5 && n_refused <= 200, "tried %u times in 500 ms", n_refused);
	cr_assert_lt(cpu_ms() - cpu, 400);
	fds_are_refused = false;
	while (d.n_frames[KVXP__FRAME_TYPE__FRAME_REGION_REGISTER] < 2) { /* only by polling */
		cr_assert(is_readable(kvxfer_client_fd(pair.client), 2000));
		cr_assert_geq(kvxfer_client_dispatch(pair.client, seen_event, &seen), 0);
	}
	wait_quiet(pair.client, &seen);
	stop_pair(&d, &pair);
	free(offsets);
	KVX_TEST_END();
}

Test(client_backlog, backlog_is_bounded)
{
	enum { N_OPS = 32768 };
	uint64_t *offsets = calloc(N_OPS, sizeof(*offsets));
	struct kvxfer_ops ops = {N_OPS, offsets, offsets, NULL, 8};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t), .op = KVXFER_READ, .ops = &ops};
	_Atomic int gate = 1;
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	unsigned n = 0;
	int err;

	pair = start_pair(&d, stop_reading, &gate, 5000);
	t.region = pair.region;
	t.import_ = pair.import_;
	while ((err = kvxfer_transfer_submit(pair.client, &t, NULL)) == 0)
		cr_assert_lt(++n, 1000);
	cr_assert_eq(err, -EAGAIN);
	gate = 0;
	wait_events(pair.client, &seen, n);
	cr_assert_eq(kvxfer_transfer_submit(pair.client, &t, NULL), 0);
	wait_events(pair.client, &seen, n + 1);
	stop_pair(&d, &pair);
	free(offsets);
	KVX_TEST_END();
}

Test(client_backlog, steady_state_allocates_nothing)
{
	struct fake_daemon d;
	struct pair pair;
	struct seen seen = {0};
	int pid;

	fake_daemon_init(&d);
	pid = fake_daemon_fork(&d);
	pair = open_pair(&d, 2000);
	for (unsigned i = 0; i < 32; i++) {
		cr_assert_eq(submit_one(&pair, i, NULL), 0);
		wait_events(pair.client, &seen, i + 1);
	}
	fault_alloc_arm(1);
	for (unsigned i = 32; i < 300; i++) {
		cr_assert_eq(submit_one(&pair, i, NULL), 0);
		while (seen.n <= i && kvxfer_client_wait(pair.client, 2000, seen_event, &seen) > 0)
			;
	}
	cr_assert_not(fault_alloc_disarm());
	cr_assert_eq(seen.n, 300);
	kvxfer_client_close(pair.client);
	fake_daemon_reap(pid);
	KVX_TEST_END();
}
