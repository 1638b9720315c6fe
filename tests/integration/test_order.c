/* The order in which a loss is told: an engine that reads IMPORT_LOST because the other engine or
 * its node is gone gives its blocks to somebody else at once. So nothing of the dead may land in
 * them after that, and the arrivals of its transfers come before. Real processes and daemons are
 * killed in the middle of writes; the memory is filled with a canary in the moment in which the
 * loss is read. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pair.h"

#define N_PLANES    4
#define N_BLOCKS    256
#define BLOCK_BYTES 65536
#define IN_FLIGHT   6
#define WAIT_MS     20000
#define NEW_CANARY  0x5c

static uint32_t ids[N_BLOCKS];
static const struct kvxfer_blocks everything = {
    .n_planes = N_PLANES, .n_blocks = N_BLOCKS, .local_blocks = ids, .remote_blocks = ids};

struct seen {
	unsigned n_up, n_lost, n_failed;
	unsigned n_arrivals, n_late; /* arrivals after the loss */
	int lost_status;
};

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct seen *seen = arg;

	switch (event->type) {
	case KVXFER_EVENT_ARRIVAL:
		seen->n_arrivals++;
		seen->n_failed += event->status != KVXFER_OK;
		seen->n_late += seen->n_lost > 0;
		break;
	case KVXFER_EVENT_IMPORT_UP:
		seen->n_up++;
		break;
	case KVXFER_EVENT_IMPORT_LOST:
		seen->n_lost++;
		seen->lost_status = event->status;
		break;
	default:
		break;
	}
}

/* Dispatches until *count has reached n; fails the test when the time is over. */
static void until(struct test_engine *e, struct seen *seen, const unsigned *count, unsigned n)
{
	struct timespec now;
	time_t end;

	clock_gettime(CLOCK_MONOTONIC, &now);
	end = now.tv_sec + WAIT_MS / 1000;
	while (*count < n) {
		cr_assert_geq(kvxfer_client_wait(e->client, 100, on_event, seen), 0);
		clock_gettime(CLOCK_MONOTONIC, &now);
		cr_assert_leq(now.tv_sec, end, "%u of %u", *count, n);
	}
}

static void pass_ms(struct test_engine *e, struct seen *seen, int ms)
{
	struct timespec now;
	int64_t end;

	clock_gettime(CLOCK_MONOTONIC, &now);
	end = now.tv_sec * 1000 + now.tv_nsec / 1000000 + ms;
	do {
		kvxfer_client_wait(e->client, 20, on_event, seen);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec * 1000 + now.tv_nsec / 1000000 < end);
}

/* ---- the engine that dies: keeps IN_FLIGHT transfers to (or from) the other one under way. Its
 * region that the other one imports is not the one that they use. */

static void on_victims_event(struct kvxfer_client *client, const struct kvxfer_event *event,
			     void *arg)
{
	unsigned *n = arg;

	*n -= event->type == KVXFER_EVENT_TERMINAL;
}

static void victim_run(const struct test_node *node, const void *desc, size_t desc_len, int op)
{
	static struct test_engine e;
	const struct kvxfer_region_options other = {
	    .struct_bytes = sizeof(other), .access = KVXFER_ACCESS_READ, .publish = "victim"};
	struct kvxfer_import *import_ = NULL;
	struct kvxfer_region *region;
	pid_t parent = getppid();
	unsigned n = 0;

	test_engine_open(&e, node, "victim", N_PLANES, N_BLOCKS, BLOCK_BYTES, 0);
	if (kvxfer_import_open(e.client, desc, desc_len, NULL, &import_) != 0 ||
	    kvxfer_region_alloc(e.client, 4096, &other, &region) != 0)
		_exit(1);
	while (getppid() == parent) {
		struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
					    .op = op,
					    .region = e.region,
					    .import_ = import_,
					    .label = "victim's",
					    .blocks = &everything};

		for (; n < IN_FLIGHT; n++)
			if (kvxfer_transfer_submit(e.client, &t, NULL) != 0)
				_exit(0); /* its daemon is gone: as it should be */
		if (kvxfer_client_wait(e.client, 1000, on_victims_event, &n) < 0)
			_exit(0);
	}
	_exit(0);
}

static pid_t spawn_victim(const struct test_node *node, struct test_engine *target, int op)
{
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	int len = kvxfer_region_export(target->region, desc, sizeof(desc));
	pid_t pid;

	cr_assert_gt(len, 0);
	pid = fork();
	if (pid == 0)
		victim_run(node, desc, (size_t)len, op);
	cr_assert_gt(pid, 0);
	return pid;
}

/* ---- the engine that goes on */

static void find_victim(struct test_engine *e, const char *address, struct seen *seen,
			struct kvxfer_import **out_import)
{
	struct timespec pause = {0, 20000000};

	memset(seen, 0, sizeof(*seen));
	for (int i = 0; i < 500 && seen->n_up == 0; i++) {
		cr_assert_eq(kvxfer_import_find(e->client, address, "victim", NULL, out_import), 0);
		while (seen->n_up + seen->n_lost == 0)
			cr_assert_geq(kvxfer_client_wait(e->client, WAIT_MS, on_event, seen), 0);
		if (seen->n_up > 0)
			return;
		cr_assert_eq(kvxfer_import_close(*out_import), 0);
		seen->n_lost = 0;
		nanosleep(&pause, NULL);
	}
	cr_assert_fail("the victim is never found: %s", kvxfer_status_name(seen->lost_status));
}

static void peer_address(const struct test_node *node, char *out, size_t size)
{
	struct kvxfer_client *client = test_node_client(node, "asks");
	const char *at, *name = "\"peer_address\":\"";
	char *json = NULL;

	cr_assert_eq(kvxfer_client_query(client, "status", NULL, &json), 0);
	at = strstr(json, name);
	cr_assert_not_null(at);
	at += strlen(name);
	snprintf(out, size, "%.*s", (int)strcspn(at, "\""), at);
	free(json);
	kvxfer_client_close(client);
}

static bool memory_is(const struct test_engine *e, uint8_t value)
{
	return e->data[0] == value && memcmp(e->data, e->data + 1, e->bytes - 1) == 0;
}

struct death {
	bool cross;
	int op;
	void (*kill)(struct test_node *node, pid_t victim);
	void (*after)(struct test_node *node, pid_t victim); /* NULL: nothing */
	int lost_status;
	unsigned rounds;
	int watch_ms; /* for how long nothing may land */
};

/* One life and death of the victim. Returns how many of its transfers were told as failed. */
static unsigned one_death(const struct death *death, struct test_node *node, struct test_engine *e,
			  unsigned round)
{
	struct kvxfer_import *import_ = NULL;
	struct timespec pause = {0, (long)(round % 5) * 700000};
	struct seen seen;
	char address[128];
	pid_t victim = spawn_victim(node, e, death->op);

	peer_address(node, address, sizeof(address));
	find_victim(e, death->cross ? address : "", &seen, &import_);
	until(e, &seen, &seen.n_arrivals, seen.n_arrivals + 2);
	nanosleep(&pause, NULL);
	death->kill(node, victim);
	until(e, &seen, &seen.n_lost, 1);
	memset(e->data, NEW_CANARY, e->bytes);
	cr_assert_eq(seen.lost_status, death->lost_status, "%s",
		     kvxfer_status_name(seen.lost_status));
	cr_assert_eq(seen.n_late, 0, "round %u: %u arrivals came behind the loss", round,
		     seen.n_late);
	if (death->after != NULL)
		death->after(node, victim);
	pass_ms(e, &seen, death->watch_ms);
	cr_assert_eq(seen.n_late, 0, "round %u: %u arrivals came behind the loss", round,
		     seen.n_late);
	cr_assert_eq(seen.n_lost, 1, "told %u times", seen.n_lost);
	cr_assert(memory_is(e, NEW_CANARY), "round %u: bytes of the dead landed", round);
	cr_assert_eq(kvxfer_import_close(import_), 0);
	kill(victim, SIGKILL);
	waitpid(victim, NULL, 0);
	return seen.n_failed;
}

static void deaths(const struct death *death)
{
	static struct test_engine e;
	struct test_node node[2];
	struct test_node *theirs = &node[death->cross ? 1 : 0];
	unsigned n_failed = 0;

	for (uint32_t i = 0; i < N_BLOCKS; i++)
		ids[i] = (i * 29) % N_BLOCKS;
	test_node_start(&node[0], NULL);
	if (death->cross)
		test_node_start(&node[1], NULL);
	test_engine_open(&e, &node[0], "survivor", N_PLANES, N_BLOCKS, BLOCK_BYTES,
			 KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE);
	/* Where a death hits is chance: on until one hits a transfer. */
	for (unsigned i = 0; i < death->rounds || (n_failed == 0 && i < 5 * death->rounds); i++)
		n_failed += one_death(death, theirs, &e, i);
	cr_assert_gt(n_failed, 0, "no death hit a transfer");
	test_engine_close(&e);
	test_node_fini(&node[0]);
	if (death->cross)
		test_node_fini(&node[1]);
}

static void kill_client(struct test_node *node, pid_t victim)
{
	kill(victim, SIGKILL);
}

static void kill_daemon(struct test_node *node, pid_t victim)
{
	test_node_signal(node, SIGKILL);
}

static void restart_daemon(struct test_node *node, pid_t victim)
{
	test_node_restart(node, NULL);
}

static void stop_daemon(struct test_node *node, pid_t victim)
{
	test_node_signal(node, SIGSTOP);
}

static void continue_daemon(struct test_node *node, pid_t victim)
{
	test_node_signal(node, SIGCONT);
}

Test(order, killed_client_same_node)
{
	deaths(&(struct death){.op = KVXFER_WRITE,
			       .kill = kill_client,
			       .lost_status = KVXFER_CLIENT_LOST,
			       .rounds = 10,
			       .watch_ms = 200});
}

Test(order, killed_client_two_nodes)
{
	deaths(&(struct death){.cross = true,
			       .op = KVXFER_WRITE,
			       .kill = kill_client,
			       .lost_status = KVXFER_CLIENT_LOST,
			       .rounds = 10,
			       .watch_ms = 300});
}

/* The memory is only read, but who owns it must not fill it again while it is. */
Test(order, killed_client_that_reads_two_nodes)
{
	deaths(&(struct death){.cross = true,
			       .op = KVXFER_READ,
			       .kill = kill_client,
			       .lost_status = KVXFER_CLIENT_LOST,
			       .rounds = 6,
			       .watch_ms = 100});
}

Test(order, killed_daemon)
{
	deaths(&(struct death){.cross = true,
			       .op = KVXFER_WRITE,
			       .kill = kill_daemon,
			       .after = restart_daemon,
			       .lost_status = KVXFER_PEER_LOST,
			       .rounds = 4,
			       .watch_ms = 500});
}

/* What it had sent lies in sockets, and it goes on sending when it is continued. */
Test(order, silent_daemon_that_goes_on_later)
{
	deaths(&(struct death){.cross = true,
			       .op = KVXFER_WRITE,
			       .kill = stop_daemon,
			       .after = continue_daemon,
			       .lost_status = KVXFER_PEER_LOST,
			       .rounds = 2,
			       .watch_ms = 2500});
}

/* ---- memory that others read: its owner is told when that is over, and fills it again at once */

struct owner {
	struct test_engine *e;
	unsigned n;
	int status, op;
	uint64_t tag;
};

static void on_owners_event(struct kvxfer_client *client, const struct kvxfer_event *event,
			    void *arg)
{
	struct owner *owner = arg;

	if (event->type != KVXFER_EVENT_ARRIVAL)
		return;
	memset(owner->e->data, NEW_CANARY, owner->e->bytes);
	owner->n++;
	owner->status = event->status;
	owner->op = event->op;
	owner->tag = event->tag;
}

static void wait_owner(struct owner *owner)
{
	for (int i = 0; owner->n == 0; i++) {
		cr_assert_lt(i, WAIT_MS / 100, "the owner is not told");
		cr_assert_geq(kvxfer_client_wait(owner->e->client, 100, on_owners_event, owner), 0);
	}
	cr_assert_eq(owner->n, 1);
	cr_assert_eq(owner->op, KVXFER_READ);
}

/* Reads all, and cancels after that many microseconds; < 0: never. Returns how it ended. */
static int one_read(struct pair *p, uint64_t tag, long cancel_us)
{
	struct kvxfer_transfer t = pair_read(p);
	struct owner owner = {.e = &p->prefill};
	struct timespec pause = {0, cancel_us * 1000};
	struct test_event end;
	uint64_t id = 0;

	memset(p->prefill.data, 0x11, p->prefill.bytes);
	memset(p->decode.data, 0x22, p->decode.bytes);
	t.blocks = &everything;
	t.tag = tag;
	cr_assert_eq(kvxfer_transfer_submit(p->decode.client, &t, &id), 0);
	if (cancel_us >= 0) {
		nanosleep(&pause, NULL);
		cr_assert_eq(kvxfer_transfer_cancel(p->decode.client, id), 0);
	}
	wait_owner(&owner);
	end = test_wait(&p->decode, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert_eq(owner.status, end.status, "%s and %s", kvxfer_status_name(owner.status),
		     kvxfer_status_name(end.status));
	cr_assert_eq(owner.tag, tag);
	pause.tv_nsec = 20000000;
	nanosleep(&pause, NULL);
	cr_assert_null(memchr(p->decode.data, NEW_CANARY, p->decode.bytes),
		       "what the owner wrote after it was told was read");
	return end.status;
}

static void reads(bool cross)
{
	static struct pair p;
	unsigned n_cancelled = 0;

	for (uint32_t i = 0; i < N_BLOCKS; i++)
		ids[i] = (i * 29) % N_BLOCKS;
	pair_open(&p, cross, NULL, N_PLANES, N_BLOCKS, BLOCK_BYTES);
	cr_assert_eq(one_read(&p, 1, -1), KVXFER_OK);
	for (unsigned i = 0; i < 24; i++)
		n_cancelled += one_read(&p, 2 + i, (long)i * 400) == KVXFER_CANCELLED;
	cr_assert_gt(n_cancelled, 0, "no cancel hit a transfer");
	pair_close(&p);
}

Test(order, owner_of_memory_that_was_read_is_told_when_it_is_over_same_node)
{
	reads(false);
}

Test(order, owner_of_memory_that_was_read_is_told_when_it_is_over_two_nodes)
{
	reads(true);
}
