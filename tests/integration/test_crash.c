/* Processes that die or stop in the middle of transfers: clients, and daemons on either side.
 * Everybody else hears of it in time, hears it once, and goes on; the daemons are as before
 * afterwards. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pair.h"

#define WAIT_MS  10000
#define LOST_MS  8000 /* heartbeats lost (3 s), the fence bound (2 s), and a slow machine */
#define N_BLOCKS 128

static uint32_t ids[N_BLOCKS];
static const struct kvxfer_blocks everything = {
    .n_planes = 8, .n_blocks = N_BLOCKS, .local_blocks = ids, .remote_blocks = ids};

static void sleep_ms(long ms)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&ts, NULL);
}

static void open_big(struct pair *p, bool cross)
{
	for (uint32_t i = 0; i < N_BLOCKS; i++)
		ids[i] = (i * 29) % N_BLOCKS;
	pair_open(p, cross, NULL, 8, N_BLOCKS, 65536);
}

/* A process that is an engine: writes into `desc` again and again until it is killed. */
static pid_t spawn_writer(const struct test_node *node, const void *desc, size_t desc_len)
{
	pid_t parent = getpid();
	pid_t pid = fork();

	if (pid == 0) {
		static struct test_engine e;
		struct kvxfer_import *import_ = NULL;

		test_engine_open(&e, node, "victim", 8, N_BLOCKS, 65536, KVXFER_ACCESS_READ);
		if (kvxfer_import_open(e.client, desc, desc_len, NULL, &import_) != 0)
			_exit(1);
		while (getppid() == parent) {
			struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
						    .op = KVXFER_WRITE,
						    .region = e.region,
						    .import_ = import_,
						    .blocks = &everything};
			struct test_event ev;
			uint64_t id = 0;

			if (kvxfer_transfer_submit(e.client, &t, &id) != 0)
				_exit(2);
			if (!test_wait_maybe(&e, KVXFER_EVENT_TERMINAL, id, 60000, &ev))
				_exit(3);
		}
		_exit(0);
	}
	cr_assert_gt(pid, 0);
	return pid;
}

static void kill_clients(bool cross)
{
	enum { MOST_ROUNDS = 60 };
	/* A sanitizer maps more as it goes: there a leak must have more rounds to show itself. */
	const int rounds = getenv("KVX_SANITIZED") != NULL ? 24 : 12;
	static struct pair p;
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	struct test_node_base before, after;
	unsigned failed = 0;
	int len, round;

	open_big(&p, cross);
	len = kvxfer_region_export(p.decode.region, desc, sizeof(desc));
	sleep_ms(100);
	test_node_measure(&p.node[0], &before);
	for (round = 0; round < rounds || (failed == 0 && round < MOST_ROUNDS); round++) {
		pid_t pid = spawn_writer(pair_node(&p, 0), desc, (size_t)len);
		struct test_event ev;

		test_wait(&p.decode, KVXFER_EVENT_ARRIVAL, 0, WAIT_MS);
		sleep_ms(round % 12); /* before, in and after its next transfer */
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		while (test_wait_maybe(&p.decode, KVXFER_EVENT_ARRIVAL, 0, 300, &ev))
			failed += ev.status != KVXFER_OK;
		/* The neighbour still works. */
		struct kvxfer_transfer t = pair_read(&p);
		uint64_t id = 0;
		t.blocks = &everything;
		cr_assert_eq(kvxfer_transfer_submit(p.decode.client, &t, &id), 0);
		ev = test_wait(&p.decode, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
		cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	}
	fprintf(stderr, "# %u arrivals were told as failed\n", failed);
	cr_assert_gt(failed, 0, "no kill hit a transfer");
	cr_assert_eq(test_node_wait_number(&p.node[0], "status", "regions", cross ? 1 : 2, 5000),
		     cross ? 1 : 2);
	test_node_measure_after(&p.node[0], &before, &after);
	cr_assert_eq(after.fds, before.fds, "fds: %ld before, %ld after", before.fds, after.fds);
	/* Sanitizers and malloc map a little as they go; a region a round would be more. */
	cr_assert_lt(after.maps, before.maps + round - 2, "maps: %ld before, %ld after",
		     before.maps, after.maps);
	pair_close(&p);
}

Test(crash, killed_clients_are_cleaned_up_same_node)
{
	kill_clients(false);
}

Test(crash, killed_clients_are_cleaned_up_two_nodes)
{
	kill_clients(true);
}

/* A client that stops (SIGSTOP) with transfers outstanding hurts nobody; it goes on when it is
 * continued. */
Test(crash, stopped_client_hurts_nobody)
{
	static struct pair p;
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	pid_t pid;
	int len;

	open_big(&p, false);
	len = kvxfer_region_export(p.decode.region, desc, sizeof(desc));
	pid = spawn_writer(&p.node[0], desc, (size_t)len);
	test_wait(&p.decode, KVXFER_EVENT_ARRIVAL, 0, WAIT_MS);
	kill(pid, SIGSTOP);
	for (int i = 0; i < 20; i++) {
		struct kvxfer_transfer t = pair_read(&p);
		struct test_event ev;
		uint64_t id = 0;

		t.blocks = &everything;
		cr_assert_eq(kvxfer_transfer_submit(p.decode.client, &t, &id), 0);
		ev = test_wait(&p.decode, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
		cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	}
	struct test_event ev;
	while (test_wait_maybe(&p.decode, KVXFER_EVENT_ARRIVAL, 0, 200, &ev))
		;
	kill(pid, SIGCONT);
	test_wait(&p.decode, KVXFER_EVENT_ARRIVAL, 0, WAIT_MS);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	pair_close(&p);
}

/* Fills the pipeline from prefill to decode and returns the ids. */
static void submit_some(struct pair *p, uint64_t *out_ids, int n)
{
	for (int i = 0; i < n; i++) {
		struct kvxfer_transfer t = pair_write(p);

		t.blocks = &everything;
		t.tag = (uint64_t)i + 1;
		cr_assert_eq(kvxfer_transfer_submit(p->prefill.client, &t, &out_ids[i]), 0);
	}
}

/* The own daemon is killed: one terminal event each, DAEMON_LOST, and nothing lands any more. */
Test(crash, killed_daemon_is_told_once_for_each_transfer)
{
	enum { N = 12 };
	static struct pair p;
	uint64_t xfers[N];

	open_big(&p, false);
	submit_some(&p, xfers, N);
	sleep_ms(5);
	test_node_signal(&p.node[0], SIGKILL);
	for (int i = 0; i < N; i++) {
		struct test_event ev =
		    test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, xfers[i], WAIT_MS);

		cr_assert(ev.status == KVXFER_OK || ev.status == KVXFER_DAEMON_LOST, "%s",
			  kvxfer_status_name(ev.status));
	}
	test_wait(&p.prefill, KVXFER_EVENT_DAEMON_LOST, 0, WAIT_MS);
	test_wait(&p.decode, KVXFER_EVENT_DAEMON_LOST, 0, WAIT_MS);
	memset(p.decode.data, TEST_CANARY, p.decode.bytes);
	sleep_ms(50);
	for (uint32_t b = 0; b < N_BLOCKS; b++)
		cr_assert(test_block_is_canary(&p.decode, b & 7, b));
	for (int i = 0; i < N; i++)
		cr_assert_eq(test_count(&p.prefill, KVXFER_EVENT_TERMINAL, xfers[i]), 0);
	test_engine_close(&p.prefill);
	test_engine_close(&p.decode);
	test_node_fini(&p.node[0]);
}

/* Where a kill or a stop of a daemon hits is chance: again until one hits a transfer. */
#define MOST_SCENES 10

/* Waits until the node knows of transfers to its memory that run, and returns of how many. */
static unsigned wait_announced(const struct test_node *node)
{
	int64_t n = 0;

	for (int i = 0; i < WAIT_MS / 2 && n == 0; i++) {
		n = test_node_number(node, "transfers", "inbound");
		if (n == 0)
			sleep_ms(1);
	}
	return n > 0 ? (unsigned)n : 0;
}

/* Waits for the ends of transfers whose peer was lost; how many of them did not end before. */
static unsigned wait_lost(struct test_engine *e, const uint64_t *xfers, int n)
{
	unsigned lost = 0;

	for (int i = 0; i < n; i++) {
		struct test_event ev = test_wait(e, KVXFER_EVENT_TERMINAL, xfers[i], LOST_MS);

		cr_assert(ev.status == KVXFER_OK || ev.status == KVXFER_PEER_LOST ||
			      ev.status == KVXFER_TRANSPORT,
			  "%s", kvxfer_status_name(ev.status));
		lost += ev.status != KVXFER_OK;
	}
	return lost;
}

/* What the other engine is told: once of each transfer that its node knew of. */
struct told {
	unsigned n, n_failed, n_ok_after;
};

static struct told wait_told(struct test_engine *e, unsigned n_announced, int limit_ms)
{
	struct told told = {0};
	struct test_event ev;
	uint64_t tags = 0;

	while (test_wait_maybe(e, KVXFER_EVENT_ARRIVAL, 0,
			       told.n < n_announced || told.n_failed == 0 ? limit_ms : 500, &ev)) {
		cr_assert_eq(tags & (1ull << ev.tag), 0, "told twice of %d", (int)ev.tag);
		tags |= 1ull << ev.tag;
		told.n++;
		told.n_failed += ev.status != KVXFER_OK;
		told.n_ok_after += ev.status == KVXFER_OK && told.n_failed > 0;
	}
	cr_assert_geq(told.n, n_announced, "told of %u, announced were %u", told.n, n_announced);
	return told;
}

static unsigned kill_scene(int side)
{
	enum { N = 12 };
	static struct pair p;
	struct test_engine *far_e = side == 1 ? &p.decode : &p.prefill;
	struct timespec t0, t1;
	unsigned announced, hit;
	uint64_t xfers[N];

	open_big(&p, true);
	submit_some(&p, xfers, N);
	announced = wait_announced(&p.node[1]);
	sleep_ms(5); /* into its data */
	clock_gettime(CLOCK_MONOTONIC, &t0);
	test_node_signal(&p.node[side], SIGKILL);
	if (side == 1) {
		hit = wait_lost(&p.prefill, xfers, N);
		test_wait(&p.prefill, KVXFER_EVENT_IMPORT_LOST, 0, LOST_MS);
	} else {
		hit = wait_told(&p.decode, announced, LOST_MS).n_failed;
	}
	clock_gettime(CLOCK_MONOTONIC, &t1);
	fprintf(stderr, "# %u announced, %u hit, told after %ld ms\n", announced, hit,
		(t1.tv_sec - t0.tv_sec) * 1000 + (t1.tv_nsec - t0.tv_nsec) / 1000000);
	test_wait(far_e, KVXFER_EVENT_DAEMON_LOST, 0, WAIT_MS);
	cr_assert_eq(test_node_number(&p.node[1 - side], "status", "transfers"), 0);
	test_engine_close(&p.prefill);
	test_engine_close(&p.decode);
	test_node_fini(&p.node[0]);
	test_node_fini(&p.node[1]);
	return hit;
}

/* The other node's daemon is killed: PEER_LOST here in time, DAEMON_LOST there. */
static void kill_one_daemon(int side)
{
	unsigned hit = 0;

	for (int i = 0; i < MOST_SCENES && hit == 0; i++)
		hit = kill_scene(side);
	cr_assert_gt(hit, 0, "no kill hit a transfer");
}

Test(crash, killed_peer_daemon_is_peer_lost)
{
	kill_one_daemon(1);
}

Test(crash, killed_source_daemon_fails_the_arrivals)
{
	kill_one_daemon(0);
}

static uint64_t bytes_not_canary(const struct test_engine *e)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < e->bytes; i++)
		n += e->data[i] != TEST_CANARY;
	return n;
}

static unsigned stop_scene(void)
{
	enum { N = 12, MESSAGE_BYTES = 256 << 10 };
	static struct pair p;
	uint64_t xfers[N], late;
	struct told told = {0};
	unsigned announced;

	open_big(&p, true);
	submit_some(&p, xfers, N);
	announced = wait_announced(&p.node[1]);
	sleep_ms(5); /* into its data */
	test_node_signal(&p.node[1], SIGSTOP);
	if (wait_lost(&p.prefill, xfers, N) == 0) {
		pair_close(&p); /* continues it */
		return 0;
	}
	memset(p.decode.data, TEST_CANARY, p.decode.bytes);
	test_node_signal(&p.node[1], SIGCONT);
	/* Told of each transfer that was announced before the stop: those that were still queued
	 * never touched its memory. */
	told = wait_told(&p.decode, announced, WAIT_MS);
	cr_assert_eq(told.n_ok_after, 0, "%u arrivals after the first that failed",
		     told.n_ok_after);
	late = bytes_not_canary(&p.decode);
	fprintf(stderr, "# %u announced, %u hit, %llu bytes of the step that it was stopped in\n",
		announced, told.n_failed, (unsigned long long)late);
	cr_assert_leq(late, MESSAGE_BYTES);
	memset(p.decode.data, TEST_CANARY, p.decode.bytes);
	sleep_ms(300);
	cr_assert_eq(bytes_not_canary(&p.decode), 0, "bytes after the owner was told");
	pair_close(&p);
	return told.n_failed;
}

/* A daemon that stops (SIGSTOP) is lost for its peers in time. Continued after that, it may end the
 * one step that it was stopped in (a message at most), and nothing more; its own engine is told
 * after its own fence, and from then on nothing lands at all. */
Test(crash, stopped_peer_daemon_is_lost_and_lands_nothing_late)
{
	unsigned hit = 0;

	for (int i = 0; i < MOST_SCENES && hit == 0; i++)
		hit = stop_scene();
	cr_assert_gt(hit, 0, "no stop hit a transfer");
}

/* Traffic comes back on its own after the peer's daemon was restarted, with a new descriptor. */
Test(crash, restarted_peer_daemon_is_taken_back)
{
	static struct pair p;
	struct kvxfer_transfer t;
	struct test_event ev;
	uint64_t id = 0;

	open_big(&p, true);
	test_node_signal(&p.node[1], SIGKILL);
	test_node_restart(&p.node[1], NULL);
	test_wait(&p.decode, KVXFER_EVENT_DAEMON_LOST, 0, WAIT_MS);
	cr_assert_eq(kvxfer_client_reconnect(p.decode.client), 0, "%s",
		     kvxfer_client_error(p.decode.client));
	p.to_decode = test_engine_import(&p.prefill, &p.decode);
	t = pair_write(&p);
	t.blocks = &everything;
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
	ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_OK, "%s", ev.text);
	cr_assert(test_block_is(&p.decode, 1, 7, 3, 3));
	pair_close(&p);
}
