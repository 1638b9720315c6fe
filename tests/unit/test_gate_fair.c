/* Gates of several clients on one device: one with thousands of gates, with events that answer
 * errors, or whose calls hang, costs the others neither their transfers nor much time. Without
 * threads: each drain is one turn of every watcher. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "fault_alloc.h"
#include "gate_fake.h"
#include "test_end.h"

#define GREEDY 5
#define OTHER  6

static struct gate_fake gpu;
static struct kvx_gates *gates;
static struct kvx_region flags;
static uint64_t flag = 7;
static unsigned n_back[8];
static int last_status;

static void back(void *arg, int status, const char *text)
{
	n_back[(uintptr_t)arg]++;
	last_status = status;
}

static void setup(void)
{
	const struct kvx_gates_conf conf = {.threaded = false};

	kvx_role_set_loop();
	gate_fake_init(&gpu);
	flags.id = 9;
	flags.state = KVX_REGION_LIVE;
	flags.mem.ops = &kvx_mem_host_ops;
	flags.mem.addr = (uint8_t *)&flag;
	flags.mem.len_bytes = sizeof(flag);
	cr_assert_eq(kvx_gates_create(&conf, &gates), 0);
}

static void teardown(void)
{
	kvx_gates_forget(gates, GREEDY);
	kvx_gates_forget(gates, OTHER);
	kvx_gates_drain(gates);
	cr_assert_eq(gpu.n_open, 0);
	cr_assert_eq(flags.n_users, 0);
	kvx_gates_destroy(gates);
	KVX_TEST_END();
}

/* Told of in n_back[client]. */
static struct kvx_gate *make(uint64_t client, const struct kvx_wait *wait)
{
	struct kvx_gate *gate = NULL;
	struct kvx_why why = {""};
	const struct kvx_gate_conf conf = {client, wait, NULL, back, (void *)(uintptr_t)client};
	int rc = kvx_gate_create(gates, &conf, &gate, &why);

	cr_assert_eq(rc, 0, "%d: %s", rc, why.text);
	return gate;
}

/* How often a busy device may have been asked since then: every 5 ms. */
static unsigned most_tries(uint64_t since_ns)
{
	return 1 + (unsigned)((kvx_now_ns() - since_ns) / (5 * KVX_MS));
}

static void nap_ms(long ms)
{
	const struct timespec nap = {.tv_nsec = ms * 1000000};

	nanosleep(&nap, NULL);
}

/* The gate is refused or comes back with that; the next one is as if nothing had been. */
Test(gate_fair, every_allocation_of_a_gate_may_fail)
{
	const struct kvx_gates_conf conf = {.threaded = false};
	unsigned n_failed = 0;
	bool faulted = true;

	setup();
	kvx_gates_destroy(gates);
	for (unsigned n = 1; faulted; n++) {
		const struct kvx_gate_conf gate_conf = {GREEDY, gate_fake_event(&gpu, 1), NULL,
							back, (void *)(uintptr_t)GREEDY};
		struct kvx_why why = {""};
		struct kvx_gate *gate;
		int err;

		n_back[GREEDY] = n_back[OTHER] = 0;
		gpu.state[1] = 0;
		gates = NULL;
		fault_alloc_arm(n);
		err = kvx_gates_create(&conf, &gates);
		if (err == 0)
			err = kvx_gate_create(gates, &gate_conf, &gate, &why);
		if (gates != NULL)
			kvx_gates_drain(gates);
		faulted = fault_alloc_disarm();
		cr_assert(err == 0 || err == -ENOMEM, "allocation %u: %d", n, err);
		if (err == 0 && faulted) {
			cr_assert_eq(n_back[GREEDY], 1, "allocation %u: it never comes back", n);
			cr_assert_eq(last_status, -ENOMEM);
			n_failed++;
		}
		if (gates == NULL)
			continue;
		gpu.state[1] = 1;
		make(OTHER, gate_fake_event(&gpu, 1));
		kvx_gates_drain(gates);
		cr_assert_eq(n_back[OTHER], 1);
		cr_assert_eq(last_status, 0);
		kvx_gates_forget(gates, GREEDY);
		kvx_gates_forget(gates, OTHER);
		kvx_gates_drain(gates);
		cr_assert_eq(gpu.n_open, 0);
		kvx_gates_destroy(gates);
	}
	cr_assert_geq(n_failed, 2, "its client's and its event's memory");
	KVX_TEST_END();
}

Test(gate_fair, client_that_opens_hundreds_of_events_keeps_nobody)
{
	setup();
	for (unsigned i = 0; i < 400; i++)
		make(GREEDY, gate_fake_event(&gpu, i));
	gpu.state[500] = 1;
	make(OTHER, gate_fake_event(&gpu, 500));
	kvx_gates_drain(gates);
	cr_assert_eq(n_back[OTHER], 1);
	cr_assert_leq(gpu.n_opened, 16 + 1);
	for (unsigned i = 0; i < 400 / 16; i++)
		kvx_gates_drain(gates);
	cr_assert_eq(gpu.n_opened, 401, "%u", gpu.n_opened);
	for (unsigned i = 0; i < 400; i++)
		gpu.state[i] = 1;
	kvx_gates_drain(gates);
	cr_assert_eq(n_back[GREEDY], 400);
	teardown();
}

Test(gate_fair, client_with_thousands_of_gates_keeps_nobody)
{
	const struct kvx_wait wait = {KVX_WAIT_FLAG, &flags, NULL, 0, 8};
	setup();
	for (unsigned i = 0; i < 5000; i++)
		make(GREEDY, &wait);
	kvx_gates_drain(gates);
	make(OTHER, &wait);
	flag = 8;
	kvx_gates_drain(gates);
	cr_assert_eq(n_back[OTHER], 1);
	cr_assert_leq(n_back[GREEDY], 512);
	for (unsigned i = 0; i < 5000 / 512; i++)
		kvx_gates_drain(gates);
	cr_assert_eq(n_back[GREEDY], 5000);
	teardown();
}

/* Each of them comes to its turn: else one that is reached might never be seen. */
Test(gate_fair, all_gates_of_a_client_are_looked_at)
{
	struct kvx_wait wait = {KVX_WAIT_FLAG, &flags, NULL, 0, 8};
	setup();
	for (unsigned i = 0; i < 2000; i++) {
		wait.value = i == 1999 ? 7 : 8;
		make(i == 1999 ? OTHER : GREEDY, &wait);
	}
	wait.value = 7;
	make(GREEDY, &wait); /* the last of its 2000 */
	for (unsigned i = 0; i < 4; i++)
		kvx_gates_drain(gates);
	cr_assert_eq(n_back[GREEDY], 1);
	flag = 8;
	for (unsigned i = 0; i < 4; i++)
		kvx_gates_drain(gates);
	cr_assert_eq(n_back[GREEDY], 2000);
	teardown();
}

static bool came;
static void come(void)
{
	if (came)
		return;
	came = true;
	make(OTHER, gate_fake_event(&gpu, 500));
}

Test(gate_fair, who_comes_while_others_are_looked_at_is_in_the_same_turn)
{
	setup();
	gpu.on_query = come;
	gpu.state[500] = 1;
	make(GREEDY, gate_fake_event(&gpu, 0));
	kvx_gates_drain(gates);
	cr_assert_eq(n_back[OTHER], 1);
	cr_assert_eq(gpu.n_queries, 2);
	teardown();
}

Test(gate_fair, device_that_is_busy_fails_nobody)
{
	uint64_t begin = kvx_now_ns();

	setup();
	gpu.open_error = -EBUSY;
	gpu.state[1] = 1;
	for (unsigned i = 0; i < 20; i++)
		make(OTHER, gate_fake_event(&gpu, i));
	for (unsigned i = 0; i < 20; i++)
		kvx_gates_drain(gates);
	nap_ms(10);
	kvx_gates_drain(gates);
	cr_assert_eq(n_back[OTHER], 0, "a gate came back: %d", last_status);
	cr_assert(gpu.n_tries >= 2 && gpu.n_tries <= most_tries(begin), "%u tries", gpu.n_tries);
	gpu.open_error = 0;
	nap_ms(10);
	kvx_gates_drain(gates);
	cr_assert(n_back[OTHER] == 1 && last_status == 0);
	teardown();
}

Test(gate_fair, event_that_answered_an_error_is_opened_anew)
{
	setup();
	gpu.state[3] = -EIO;
	make(OTHER, gate_fake_event(&gpu, 3));
	make(OTHER, gate_fake_event(&gpu, 3));
	kvx_gates_drain(gates);
	cr_assert(n_back[OTHER] == 2 && last_status == -EIO);
	cr_assert_eq(gpu.n_open, 0, "it is kept open");
	gpu.state[3] = 1;
	make(OTHER, gate_fake_event(&gpu, 3));
	kvx_gates_drain(gates);
	cr_assert(n_back[OTHER] == 3 && last_status == 0);
	cr_assert_geq(gpu.n_opened, 2, "opened %u times", gpu.n_opened);
	teardown();
}

/* Its device is busy with other calls. */
Test(gate_fair, event_that_opens_slowly_keeps_no_other)
{
	setup();
	for (unsigned i = 0; i < 20; i++) {
		gpu.slow[i] = true;
		gpu.state[i] = 1;
		make(GREEDY, gate_fake_event(&gpu, i));
	}
	gpu.state[500] = 1;
	make(OTHER, gate_fake_event(&gpu, 500));
	for (unsigned i = 0; i < 3; i++)
		kvx_gates_drain(gates);
	cr_assert(n_back[OTHER] == 1 && last_status == 0);
	cr_assert_eq(n_back[GREEDY], 0);
	cr_assert_eq(gpu.n_opened, 4 + 1, "%u are in the way of other calls", gpu.n_opened);
	for (unsigned i = 0; i < 20; i++)
		gpu.slow[i] = false;
	for (unsigned i = 0; i < 3; i++)
		kvx_gates_drain(gates);
	cr_assert(n_back[GREEDY] == 20 && last_status == 0);
	cr_assert_eq(gpu.n_opened, 21);
	teardown();
}

Test(gate_fair, event_whose_opening_is_told_off_is_opened_again)
{
	uint64_t begin = kvx_now_ns();

	setup();
	gpu.state[1] = 1;
	gpu.ready_error = -EBUSY;
	make(OTHER, gate_fake_event(&gpu, 1));
	for (unsigned i = 0; i < 5; i++)
		kvx_gates_drain(gates);
	cr_assert_eq(n_back[OTHER], 0, "a gate came back: %d", last_status);
	cr_assert(gpu.n_tries >= 1 && gpu.n_tries <= most_tries(begin), "%u tries, at once",
		  gpu.n_tries);
	gpu.ready_error = 0;
	nap_ms(10);
	kvx_gates_drain(gates);
	cr_assert(n_back[OTHER] == 1 && last_status == 0);
	teardown();
}

Test(gate_fair, event_whose_opening_hangs_fails_those_that_wait_for_it)
{
	setup();
	gpu.ready_error = -ETIMEDOUT;
	make(OTHER, gate_fake_event(&gpu, 1));
	make(OTHER, gate_fake_event(&gpu, 1));
	kvx_gates_drain(gates);
	cr_assert(n_back[OTHER] == 2 && last_status == -EIO);
	gpu.ready_error = 0;
	gpu.state[1] = 1;
	make(OTHER, gate_fake_event(&gpu, 1));
	kvx_gates_drain(gates);
	cr_assert(n_back[OTHER] == 3 && last_status == 0);
	teardown();
}

Test(gate_fair, event_that_nobody_waits_for_any_more_is_not_kept_while_it_opens)
{
	setup();
	struct kvx_gate *gates_of[6];
	for (unsigned i = 0; i < 6; i++) {
		gpu.slow[i] = true;
		gates_of[i] = make(OTHER, gate_fake_event(&gpu, i));
	}
	kvx_gates_drain(gates);
	cr_assert_eq(gpu.n_open, 4);
	for (unsigned i = 0; i < 6; i++)
		kvx_gate_drop(gates_of[i]);
	kvx_gates_drain(gates);
	cr_assert_eq(gpu.n_open, 0);
	cr_assert_eq(kvx_gates_count(gates), 0);
	gpu.slow[1] = false;
	gpu.state[1] = 1;
	make(OTHER, gate_fake_event(&gpu, 1));
	kvx_gates_drain(gates);
	cr_assert(n_back[OTHER] == 1 && last_status == 0);
	teardown();
}
