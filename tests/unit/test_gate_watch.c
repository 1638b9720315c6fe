/* Gates with their threads: one that hangs holds up its own device only, nothing is told twice or
 * lost, and what hangs at the end does not keep the daemon. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "gate_fake.h"
#include "test_end.h"

#define CLIENT 5

static struct gate_fake gpu, gpu2;
static struct kvx_gates *gates;
static _Atomic unsigned n_bells;
static unsigned n_back[8];
static int last_status;

static bool no_threads;

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
			  void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
			  void *arg);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *),
			  void *arg)
{
	return no_threads ? EAGAIN : __real_pthread_create(thread, attr, fn, arg);
}

static void bell(void *arg)
{
	atomic_fetch_add(&n_bells, 1);
}

static void back(void *arg, int status, const char *text)
{
	n_back[(uintptr_t)arg]++;
	last_status = status;
}

static void setup(void)
{
	const struct kvx_gates_conf conf = {.threaded = true, .doorbell = bell};

	kvx_role_set_loop();
	gate_fake_init(&gpu);
	gate_fake_init(&gpu2);
	cr_assert_eq(kvx_gates_create(&conf, &gates), 0);
}

static struct kvx_gate *make(const struct kvx_wait *wait, const struct kvx_gate *after,
			     uintptr_t slot)
{
	struct kvx_gate *gate = NULL;
	struct kvx_why why = {""};
	const struct kvx_gate_conf conf = {CLIENT, wait, after, back, (void *)slot};
	int rc = kvx_gate_create(gates, &conf, &gate, &why);

	cr_assert_eq(rc, 0, "%d: %s", rc, why.text);
	return gate;
}

static void nap_us(long us)
{
	const struct timespec nap = {us / 1000000, us % 1000000 * 1000};

	nanosleep(&nap, NULL);
}

static bool until(bool (*is)(void))
{
	uint64_t end = kvx_now_ns() + 10 * KVX_SEC;

	while (!is()) {
		if (kvx_now_ns() > end)
			return false;
		kvx_gates_drain(gates);
		nap_us(50);
	}
	return true;
}

static bool first_is_back(void)
{
	return n_back[1] > 0;
}
static bool second_is_back(void)
{
	return n_back[2] > 0;
}
static bool hangs(void)
{
	return gpu.n_hanging > 0;
}
static bool both_hang(void)
{
	return gpu.n_hanging > 0 && gpu2.n_hanging > 0;
}
static bool is_open(void)
{
	return gpu.n_open == 1;
}
static bool none_is_out(void)
{
	return kvx_gates_count_client(gates, CLIENT) == 0;
}
static bool is_busy(void)
{
	return gpu.n_open > 20 && gpu2.n_open > 20;
}
static bool none_is_open(void)
{
	return gpu.n_open + gpu2.n_open == 0;
}

Test(gate_watch, tells_by_the_doorbell)
{
	setup();
	make(gate_fake_event(&gpu, 1), NULL, 1);
	nap_us(3000);
	cr_assert_eq(kvx_gates_drain(gates), 0);
	cr_assert_eq(n_bells, 0);
	gpu.state[1] = 1;
	for (unsigned i = 0; n_bells == 0 && i < 100000; i++)
		nap_us(50);
	cr_assert_eq(n_bells, 1);
	cr_assert_eq(kvx_gates_drain(gates), 1);
	cr_assert(n_back[1] == 1 && last_status == 0);
	cr_assert(kvx_gates_stop(gates));
	cr_assert_eq(gpu.n_open, 0);
	kvx_gates_destroy(gates);
	KVX_TEST_END();
}

Test(gate_watch, thread_that_cannot_be_made_refuses_the_wait_and_is_tried_again)
{
	struct kvx_gate *gate;
	struct kvx_why why = {""};
	setup();
	const struct kvx_gate_conf conf = {CLIENT, gate_fake_event(&gpu, 1), NULL, back,
					   (void *)(uintptr_t)1};
	no_threads = true;
	cr_assert_eq(kvx_gate_create(gates, &conf, &gate, &why), -EAGAIN);
	cr_assert_not_null(strstr(why.text, "no thread to look at it"), "%s", why.text);
	cr_assert_eq(kvx_gates_count(gates), 0);
	no_threads = false;
	gpu.state[1] = 1;
	make(gate_fake_event(&gpu, 1), NULL, 1);
	cr_assert(until(first_is_back));
	cr_assert_eq(last_status, 0);
	cr_assert(kvx_gates_stop(gates));
	kvx_gates_destroy(gates);
	KVX_TEST_END();
}

Test(gate_watch, sleeps_when_nothing_waits)
{
	setup();
	gpu.state[1] = 1;
	make(gate_fake_event(&gpu, 1), NULL, 1);
	cr_assert(until(first_is_back));
	unsigned queries = gpu.n_queries;
	nap_us(20000);
	cr_assert_eq(gpu.n_queries, queries);
	kvx_gates_destroy(gates);
	KVX_TEST_END();
}

/* What does not come is looked for less and less often, until something does. */
Test(gate_watch, waiting_for_long_costs_little)
{
	setup();
	make(gate_fake_event(&gpu, 1), NULL, 1);
	cr_assert(until(is_open));
	unsigned queries = gpu.n_queries;
	nap_us(1000000);
	cr_assert_lt(gpu.n_queries - queries, 4000, "%u looks in a second",
		     gpu.n_queries - queries);
	uint64_t least_ns = UINT64_MAX;
	for (unsigned i = 2; i < 8; i++) {
		gpu.state[i] = 1;
		make(gate_fake_event(&gpu, i), NULL, 2);
		uint64_t begin = kvx_now_ns();
		for (queries = gpu.n_queries; gpu.n_queries - queries < 200;)
			nap_us(100);
		uint64_t took_ns = kvx_now_ns() - begin;
		least_ns = took_ns < least_ns ? took_ns : least_ns;
		kvx_gates_drain(gates);
	}
	cr_assert_lt(least_ns, 150 * KVX_MS, "200 looks took %u us", (unsigned)(least_ns / 1000));
	cr_assert(n_back[1] == 0 && n_back[2] == 6);
	kvx_gates_destroy(gates);
	KVX_TEST_END();
}

Test(gate_watch, device_that_hangs_holds_up_its_own_gates_only)
{
	setup();
	gpu.hang = 1;
	struct kvx_gate *stuck = make(gate_fake_event(&gpu, 1), NULL, 1);
	cr_assert(until(hangs));
	gpu2.state[0] = 1;
	make(gate_fake_event(&gpu2, 0), NULL, 2);
	cr_assert(until(second_is_back));
	cr_assert_eq(n_back[1], 0);
	kvx_gate_drop(stuck); /* its transfer has ended */
	gpu.hang = 0;
	cr_assert(until(none_is_out));
	cr_assert_eq(n_back[1], 0);
	kvx_gates_forget(gates, CLIENT);
	cr_assert(until(none_is_open));
	kvx_gates_destroy(gates);
	KVX_TEST_END();
}

/* While its watchers are in the middle of looking at them. */
Test(gate_watch, client_that_ends_with_thousands_of_gates_holds_up_nobody)
{
	static struct kvx_gate *out[2500];
	struct kvx_why why = {""};
	struct kvx_gate *other;
	setup();
	for (unsigned i = 0; i < 2500; i++)
		out[i] = make(gate_fake_event(i % 2 ? &gpu : &gpu2, i % 400),
			      i >= 1000 ? out[i - 1000] : NULL, 0);
	cr_assert(until(is_busy));
	const struct kvx_gate_conf conf = {CLIENT + 1, gate_fake_event(&gpu, 500), NULL, back,
					   (void *)(uintptr_t)2};
	cr_assert_eq(kvx_gate_create(gates, &conf, &other, &why), 0);
	for (unsigned i = 0; i < 2500; i++)
		kvx_gate_drop(out[i]);
	kvx_gates_forget(gates, CLIENT);
	gpu.state[500] = 1;
	cr_assert(until(second_is_back));
	cr_assert(until(none_is_out));
	cr_assert(until(is_open), "events of the client that ended are open yet");
	cr_assert_eq(n_back[0], 0, "told of gates that it had dropped");
	cr_assert(kvx_gates_stop(gates));
	cr_assert_eq(gpu.n_open + gpu2.n_open, 0);
	kvx_gates_destroy(gates);
	KVX_TEST_END();
}

/* And touches nothing when it comes back: what it worked on is gone. */
Test(gate_watch, thread_that_hangs_is_left_at_the_end)
{
	setup();
	make(gate_fake_event(&gpu, 0), NULL, 2);
	cr_assert(until(is_open));
	gpu.hang = 1;
	kvx_gate_drop(make(gate_fake_event(&gpu, 1), NULL, 1));
	nap_us(2000);
	struct kvx_gate *gate = make(gate_fake_event(&gpu, 1), NULL, 1);
	cr_assert(until(hangs));
	kvx_gate_drop(gate);
	uint64_t begin = kvx_now_ns();
	cr_assert(!kvx_gates_stop(gates));
	kvx_gates_destroy(gates);
	cr_assert_lt(kvx_now_ns() - begin, 15 * KVX_SEC);
	cr_assert_eq(n_back[1], 0);
	unsigned bells = n_bells;
	gpu.hang = 0;
	while (gpu.n_hanging > 0)
		nap_us(100);
	nap_us(20000);
	cr_assert_eq(gpu.n_open, 1, "it has closed an event");
	cr_assert_eq(n_bells, bells, "it has rung");
	/* The thread, and what it holds, is left on purpose: no KVX_TEST_END(). */
}

Test(gate_watch, devices_that_hang_at_the_end_do_so_at_once)
{
	setup();
	gpu.hang = gpu2.hang = 1;
	make(gate_fake_event(&gpu, 1), NULL, 1);
	make(gate_fake_event(&gpu2, 1), NULL, 1);
	cr_assert(until(both_hang));
	uint64_t begin = kvx_now_ns();
	cr_assert(!kvx_gates_stop(gates));
	cr_assert_lt(kvx_now_ns() - begin, 5 * KVX_SEC); /* 3 s for each, one after the other: 6 */
	kvx_gates_destroy(gates);
}

/* Gates made, opened and dropped at random from the loop while the watchers look. */
Test(gate_watch, storm)
{
	enum { N = 256, ROUNDS = 20000 };
	static struct kvx_gate *live[N];
	static unsigned made, dropped;

	setup();
	srand(7);
	for (unsigned round = 0; round < ROUNDS; round++) {
		struct gate_fake *fake = rand() % 2 ? &gpu : &gpu2;
		unsigned i = (unsigned)rand() % N;

		if (live[i] == NULL) {
			live[i] = make(gate_fake_event(fake, i), NULL, 0);
			made++;
		} else if (rand() % 3 == 0) {
			kvx_gate_drop(live[i]);
			live[i] = NULL;
			dropped++;
		}
		if (rand() % 16 == 0)
			nap_us(1);
		kvx_gates_drain(gates);
		cr_assert_eq(n_back[0], 0, "a gate that is closed came back as open");
	}
	for (unsigned i = 0; i < N; i++) {
		gpu.state[i] = 1;
		gpu2.state[i] = 1;
	}
	cr_assert(until(none_is_out));
	cr_assert_eq(n_back[0], made - dropped);
	kvx_gates_forget(gates, CLIENT);
	cr_assert(until(none_is_open));
	kvx_gates_destroy(gates);
	KVX_TEST_END();
}
