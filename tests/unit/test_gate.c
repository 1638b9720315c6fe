/* Transfers that wait, on a node with the fake transport and events that the test reaches by hand:
 * nothing of a list moves before its gate is open, lists go in order, and whatever ends a transfer
 * ends it while a gate is closed. */
#include "xfer/gate.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fault_alloc.h"
#include "gate_fake.h"
#include "mem/guard.h"
#include "test_end.h"
#include "xfer_pair.h"

#define KIB 1024u

static struct gate_fake gpu, gpu2;

static void setup(void)
{
	gate_fake_init(&gpu);
	gate_fake_init(&gpu2);
	rig_init(&pair.rig);
	pair_open(MIB);
	rig_turn(&pair.rig, 0); /* keys */
}

static void teardown(void)
{
	kvx_gates_forget(kvx_node_gates(pair.rig.node), ALICE);
	rig_turn(&pair.rig, 0);
	cr_expect_eq(gpu.n_open + gpu2.n_open, 0, "events are open yet");
	cr_expect_eq(kvx_gates_count_client(kvx_node_gates(pair.rig.node), ALICE), 0);
	pair_close();
}

static void turns(unsigned n)
{
	while (n-- > 0)
		rig_turn(&pair.rig, 20000);
}

/* [at, at + KIB) of both sides. */
static struct kvx_op_list list_at(uint64_t *at)
{
	static const uint64_t len = KIB;

	return (struct kvx_op_list){1, 1, at, at, &len};
}

static int try_submit(const struct kvx_wait *wait, struct kvx_xfer **out_xfer, struct kvx_why *why)
{
	uint64_t at = 0;
	struct kvx_op_list ops = list_at(&at);
	struct kvx_xfer_req req = pair.req;

	req.wait = wait;
	req.ops = &ops;
	return kvx_xfer_submit(pair_xfers(), &req, out_xfer, why);
}

static struct kvx_xfer *submit(const struct kvx_wait *wait)
{
	struct kvx_xfer *xfer = NULL;
	struct kvx_why why = {""};
	int rc = try_submit(wait, &xfer, &why);

	cr_assert_eq(rc, 0, "%d: %s", rc, why.text);
	pair.req.number++;
	return xfer;
}

static struct kvx_xfer *submit_open(void)
{
	pair.req.streaming = true;
	struct kvx_xfer *xfer = rig_submit(&pair.rig, &pair.req, 0);
	pair.req.streaming = false;
	pair.req.number++;
	return xfer;
}

static void append(struct kvx_xfer *xfer, unsigned kib, const struct kvx_wait *wait)
{
	uint64_t at = kib * KIB;
	struct kvx_op_list ops = list_at(&at);
	struct kvx_why why = {""};
	int rc = kvx_xfer_append(xfer, NULL, &ops, wait, &why);

	cr_assert_eq(rc, 0, "%d: %s", rc, why.text);
}

static bool moved(unsigned kib)
{
	return memcmp(pair.local->mem.addr + kib * KIB, pair.remote->mem.addr + kib * KIB, KIB) ==
	       0;
}

static struct kvx_xfer_row first_row;
static void row_keep(void *arg, const struct kvx_xfer_row *row)
{
	if (first_row.state == NULL)
		first_row = *row;
}
static const struct kvx_xfer_row *newest(void)
{
	first_row.state = NULL;
	kvx_xfers_walk(pair_xfers(), row_keep, NULL);
	return &first_row;
}

Test(gate, event_is_reached_then_the_list_moves)
{
	setup();
	submit(gate_fake_event(&gpu, 3));
	turns(20);
	cr_assert_eq(pair.rig.n_ends, 0);
	cr_assert_eq(pair.rig.script.n_ops, 0);
	cr_assert_str_eq(newest()->waits_for, "event");
	cr_assert_eq(newest()->n_waits, 1);
	gpu.state[3] = 1;
	cr_assert(rig_until_ends(&pair.rig, 1, 10000));
	pair_expect_end(0, 0);
	cr_assert(moved(0));
	cr_assert_str_eq(newest()->waits_for, "");
	cr_assert_eq(kvx_xfers_stats(pair_xfers())->waits, 1);
	teardown();
	KVX_TEST_END();
}

Test(gate, event_that_is_reached_already_costs_no_turn)
{
	setup();
	gpu.state[0] = 1;
	submit(gate_fake_event(&gpu, 0));
	cr_assert(rig_until_ends(&pair.rig, 1, 10000));
	pair_expect_end(0, 0);
	teardown();
	KVX_TEST_END();
}

Test(gate, lists_go_in_order_whatever_opens_first)
{
	setup();
	struct kvx_xfer *xfer = submit_open();
	append(xfer, 0, NULL);
	append(xfer, 1, gate_fake_event(&gpu, 1));
	append(xfer, 2, NULL);
	append(xfer, 3, gate_fake_event(&gpu2, 0)); /* another watcher: it may open first */
	append(xfer, 4, gate_fake_event(&gpu, 2));
	kvx_xfer_seal(xfer, NULL, 0, NULL);
	gpu2.state[0] = 1;
	gpu.state[2] = 1;
	turns(20);
	cr_assert(moved(0) && !moved(1) && !moved(2) && !moved(3) && !moved(4));
	cr_assert_eq(newest()->n_waits, 3);
	gpu.state[1] = 1;
	cr_assert(rig_until_ends(&pair.rig, 1, 10000));
	pair_expect_end(0, 0);
	cr_assert(moved(1) && moved(2) && moved(3) && moved(4));
	teardown();
	KVX_TEST_END();
}

Test(gate, each_layer_moves_as_its_event_is_reached)
{
	setup();
	struct kvx_xfer *xfer = submit_open();
	for (unsigned i = 0; i < 94; i++)
		append(xfer, i, gate_fake_event(&gpu, i));
	for (unsigned i = 0; i < 94; i++) {
		unsigned queries = gpu.n_queries;
		turns(3);
		cr_assert(!moved(i), "layer %u has moved before its event", i);
		/* Only the first closed list of a transfer is looked at. */
		cr_assert_leq(gpu.n_queries - queries, 24);
		gpu.state[i] = 1;
		turns(3);
		cr_assert(moved(i), "layer %u has not moved", i);
	}
	cr_assert_eq(pair.rig.n_ends, 0);
	kvx_xfer_seal(xfer, NULL, 0, NULL);
	cr_assert(rig_until_ends(&pair.rig, 1, 10000));
	pair_expect_end(0, 0);
	cr_assert_eq(gpu.n_opened, 94);
	teardown();
	KVX_TEST_END();
}

Test(gate, cancel_while_closed_ends_at_once)
{
	setup();
	struct kvx_xfer *xfer = submit(gate_fake_event(&gpu, 0));
	turns(2);
	kvx_xfer_cancel(xfer, -ECANCELED, "no longer wanted");
	rig_turn(&pair.rig, 0);
	pair_expect_end(0, -ECANCELED);
	gpu.state[0] = 1;
	turns(5);
	cr_assert_eq(pair.rig.script.n_ops, 0);
	teardown();
	KVX_TEST_END();
}

Test(gate, deadline_while_closed_says_what_it_waits_for)
{
	setup();
	pair.req.deadline_ns = 5000000;
	submit(gate_fake_event(&gpu, 0));
	cr_assert(rig_until_ends(&pair.rig, 1, 100000));
	pair_expect_end(0, -ETIMEDOUT);
	cr_assert_not_null(strstr(pair.rig.ends[0].text, "waits for an event"), "%s",
			   pair.rig.ends[0].text);
	teardown();
	KVX_TEST_END();
}

Test(gate, client_that_dies_leaves_nothing)
{
	setup();
	for (unsigned i = 0; i < 50; i++)
		submit(gate_fake_event(&gpu, i % 7));
	turns(2);
	cr_assert_eq(gpu.n_open, 7);
	kvx_xfers_cancel_client(pair_xfers(), ALICE, -EPIPE, "the client is gone");
	kvx_gates_forget(kvx_node_gates(pair.rig.node), ALICE);
	rig_turn(&pair.rig, 0);
	cr_assert_eq(pair.rig.n_ends, 50);
	cr_assert_eq(gpu.n_open, 0);
	cr_assert_eq(kvx_gates_count_client(kvx_node_gates(pair.rig.node), ALICE), 0);
	teardown();
	KVX_TEST_END();
}

static unsigned n_bob;
static void bob_is_back(void *arg, int status, const char *text)
{
	cr_assert_eq(status, 0, "%s", text);
	n_bob++;
}

/* More lists than a client may have by itself, behind events and behind a flag. */
Test(gate, client_that_dies_with_thousands_of_lists_that_wait_leaves_nothing)
{
	struct kvx_gates *gates;
	struct kvx_gate *gate;
	struct kvx_why why;
	setup();
	gates = kvx_node_gates(pair.rig.node);
	struct kvx_wait flag = {KVX_WAIT_FLAG, pair.local, NULL, 8, UINT64_MAX};
	unsigned users = pair.local->n_users;
	struct kvx_xfer *xfer = submit_open();
	for (unsigned i = 0; i < 5000; i++)
		append(xfer, i % 900, i % 3 == 0 ? &flag : gate_fake_event(&gpu, i % 400));
	for (unsigned i = 0; i < 60; i++)
		submit(gate_fake_event(&gpu, i));
	const struct kvx_gate_conf bob = {BOB, gate_fake_event(&gpu, 450), NULL, bob_is_back, NULL};
	cr_assert_eq(kvx_gate_create(gates, &bob, &gate, &why), 0);
	turns(2);
	cr_assert_eq(kvx_gates_count_client(gates, ALICE), 5060);
	cr_assert_gt(gpu.n_open, 20);
	cr_assert_gt(pair.local->n_users, users + 1600, "the flag's memory is in use");
	kvx_xfers_cancel_client(pair_xfers(), ALICE, -EPIPE, "the client is gone");
	kvx_gates_forget(gates, ALICE);
	gpu.state[450] = 1;
	turns(1);
	cr_assert_eq(n_bob, 1, "it waits for what is left of the other");
	cr_assert_eq(pair.rig.n_ends, 61);
	for (unsigned i = 0; i < 61; i++)
		pair_expect_end(i, -EPIPE);
	cr_assert_eq(kvx_gates_count_client(gates, ALICE), 0);
	cr_assert_eq(pair.local->n_users, users);
	cr_assert_eq(gpu.n_open, 1, "Bob's");
	kvx_gates_forget(gates, BOB);
	teardown();
	KVX_TEST_END();
}

Test(gate, thousands_of_gates_of_one_event_are_one_look)
{
	setup();
	for (unsigned i = 0; i < 900; i++)
		submit(gate_fake_event(&gpu, 5));
	struct kvx_xfer *xfer = submit_open();
	for (unsigned i = 0; i < 5000; i++)
		append(xfer, i % 900, gate_fake_event(&gpu, i % 400));
	turns(1);
	unsigned queries = gpu.n_queries, turn = 20;
	cr_assert_eq(kvx_gates_count_client(kvx_node_gates(pair.rig.node), ALICE), 5900);
	for (unsigned i = 0; i < turn; i++)
		kvx_xfers_pump(pair_xfers());
	cr_assert_leq(gpu.n_queries - queries, 2 * turn);
	for (unsigned i = 0; i < 400; i++)
		gpu.state[i] = 1;
	kvx_xfer_seal(xfer, NULL, 0, NULL);
	cr_assert(rig_until_ends(&pair.rig, 901, 10000));
	for (unsigned i = 0; i < 901; i++)
		pair_expect_end(i, 0);
	teardown();
	KVX_TEST_END();
}

Test(gate, events_that_nobody_waits_for_are_kept_up_to_a_limit)
{
	setup();
	for (unsigned i = 0; i < 300; i++) {
		gpu.state[i] = 1;
		submit(gate_fake_event(&gpu, i));
		cr_assert(rig_until_ends(&pair.rig, i + 1, 10000));
	}
	cr_assert_eq(gpu.n_open, 256);
	cr_assert_eq(gpu.n_opened, 300);
	submit(gate_fake_event(&gpu, 299)); /* it is still there */
	cr_assert(rig_until_ends(&pair.rig, 301, 10000));
	cr_assert_eq(gpu.n_opened, 300);
	submit(gate_fake_event(&gpu, 0)); /* the longest unused was closed */
	cr_assert(rig_until_ends(&pair.rig, 302, 10000));
	cr_assert_eq(gpu.n_opened, 301);
	teardown();
	KVX_TEST_END();
}

Test(gate, event_that_cannot_be_opened_fails_the_transfer)
{
	static const struct {
		int err, status;
		const char *says;
	} cases[] = {
	    {-ETIMEDOUT, -EIO, "hangs"},        {-ENODEV, -ENODEV, "lost"},
	    {-EBADF, -EINVAL, "interprocess"},  {-EINVAL, -EINVAL, "several"},
	    {-EOPNOTSUPP, -EOPNOTSUPP, "flag"},
	};
	setup();
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		gpu.open_error = cases[i].err;
		submit(gate_fake_event(&gpu, i));
		cr_assert(rig_until_ends(&pair.rig, i + 1, 10000));
		pair_expect_end(i, cases[i].status);
		cr_assert_not_null(strstr(pair.rig.ends[i].text, cases[i].says), "%s",
				   pair.rig.ends[i].text);
	}
	cr_assert_eq(pair.rig.script.n_ops, 0);
	teardown();
	KVX_TEST_END();
}

Test(gate, device_that_is_lost_while_it_is_waited_for_fails_the_rest)
{
	setup();
	struct kvx_xfer *xfer = submit_open();
	append(xfer, 0, NULL);
	append(xfer, 1, gate_fake_event(&gpu, 0));
	append(xfer, 2, gate_fake_event(&gpu, 1));
	turns(5);
	cr_assert(moved(0));
	gpu.state[0] = -ENODEV;
	gpu.state[1] = 1;
	cr_assert(rig_until_ends(&pair.rig, 1, 10000));
	pair_expect_end(0, -ENODEV);
	cr_assert(!moved(1) && !moved(2));
	teardown();
	KVX_TEST_END();
}

/* ---- flags */

static struct kvx_wait flag_in(struct kvx_region *region, uint64_t offset, uint64_t value)
{
	return (struct kvx_wait){
	    .kind = KVX_WAIT_FLAG, .region = region, .offset = offset, .value = value};
}

static void flag_set(struct kvx_region *region, uint64_t offset, uint64_t value)
{
	__atomic_store_n((uint64_t *)(void *)(region->mem.addr + offset), value, __ATOMIC_RELEASE);
}

Test(gate, flag_opens_at_its_value_and_above)
{
	setup();
	struct kvx_wait wait = flag_in(pair.local, MIB - 8, 7);
	flag_set(pair.local, MIB - 8, 6);
	submit(&wait);
	turns(5);
	cr_assert_eq(pair.rig.n_ends, 0);
	cr_assert_str_eq(newest()->waits_for, "flag");
	flag_set(pair.local, MIB - 8, UINT64_MAX);
	cr_assert(rig_until_ends(&pair.rig, 1, 10000));
	pair_expect_end(0, 0);
	cr_assert_eq(pair.local->n_users, 0);
	teardown();
	KVX_TEST_END();
}

Test(gate, region_of_a_flag_is_left_before_it_is_unmapped)
{
	setup();
	struct kvx_region *flags = rig_region(&pair.rig, ALICE, 4096, 0, NULL);
	struct kvx_wait wait = flag_in(flags, 64, 1);
	submit(&wait);
	turns(2);
	cr_assert_eq(flags->n_users, 1);
	rig_region_close(&pair.rig, flags); /* and waits for it */
	pair_expect_end(0, -EOWNERDEAD);
	teardown();
	KVX_TEST_END();
}

/* It is open, and only waits for an earlier list of the transfer. */
Test(gate, region_of_a_flag_that_was_reached_may_go)
{
	setup();
	struct kvx_region *flags = rig_region(&pair.rig, ALICE, 4096, 0, NULL);
	struct kvx_wait wait = flag_in(flags, 64, 1), later = flag_in(flags, 128, 1);
	struct kvx_xfer *xfer = submit_open();
	append(xfer, 0, gate_fake_event(&gpu, 0));
	append(xfer, 1, &wait);
	kvx_xfer_seal(xfer, NULL, 0, NULL);
	flag_set(flags, 64, 1);
	turns(3);
	cr_assert_eq(newest()->n_waits, 2);
	pair.req.number++;
	submit(&later); /* the region is still in use: by this one */
	turns(1);
	rig_region_close(&pair.rig, flags);
	cr_assert_eq(pair.rig.n_ends, 1);
	pair_expect_end(0, -EOWNERDEAD);
	gpu.state[0] = 1;
	cr_assert(rig_until_ends(&pair.rig, 2, 10000));
	pair_expect_end(1, 0);
	cr_assert(moved(0) && moved(1));
	teardown();
	KVX_TEST_END();
}

Test(gate, flag_whose_memory_is_gone_fails_the_transfer)
{
	setup();
	int fd = memfd_create("flags", MFD_CLOEXEC);
	cr_assert_eq(ftruncate(fd, 8192), 0);
	struct kvx_region flags = {.id = 9, .state = KVX_REGION_LIVE};
	flags.mem.ops = &kvx_mem_host_ops;
	flags.mem.len_bytes = 8192;
	flags.mem.addr = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	cr_assert_neq(flags.mem.addr, MAP_FAILED);
	cr_assert_eq(kvx_guard_install(), 0);
	struct kvx_wait gone = flag_in(&flags, 4096, 1), there = flag_in(&flags, 0, 1);
	submit(&gone);
	submit(&there);
	turns(2);
	cr_assert_eq(ftruncate(fd, 4096), 0);
	cr_assert(rig_until_ends(&pair.rig, 1, 10000));
	pair_expect_end(0, -EFAULT);
	cr_assert_not_null(strstr(pair.rig.ends[0].text, "flag"), "%s", pair.rig.ends[0].text);
	flag_set(&flags, 0, 1);
	cr_assert(rig_until_ends(&pair.rig, 2, 10000));
	pair_expect_end(1, 0);
	cr_assert_eq(flags.n_users, 0);
	munmap(flags.mem.addr, 8192);
	close(fd);
	teardown();
	KVX_TEST_END();
}

/* ---- refusals */

static void expect_refused(const struct kvx_wait *wait, int err, const char *says)
{
	struct kvx_xfer *xfer = NULL;
	struct kvx_why why = {""};
	int rc = try_submit(wait, &xfer, &why);

	cr_assert_eq(rc, err, "%d instead of %d: %s", rc, err, why.text);
	cr_assert_not_null(strstr(why.text, says), "\"%s\"", why.text);
	cr_assert_eq(kvx_gates_count_client(kvx_node_gates(pair.rig.node), ALICE), 0);
}

Test(gate, waits_that_cannot_be_are_refused)
{
	setup();
	struct kvx_wait wait = flag_in(pair.local, 4, 1);
	expect_refused(&wait, -EINVAL, "multiple of 8");
	wait = flag_in(pair.local, MIB, 1);
	expect_refused(&wait, -ERANGE, "leaves the region");
	wait = flag_in(pair.local, UINT64_MAX - 7, 1);
	expect_refused(&wait, -ERANGE, "leaves the region");
	wait = flag_in(&gpu.region, 0, 1);
	expect_refused(&wait, -EINVAL, "not host memory");
	wait = *gate_fake_event(&gpu, 0);
	wait.region = pair.local;
	expect_refused(&wait, -EINVAL, "host memory");
	gpu.region.state = KVX_REGION_FAILED;
	expect_refused(gate_fake_event(&gpu, 0), -ENODEV, "lost");
	gpu.region.state = KVX_REGION_CLOSING;
	expect_refused(gate_fake_event(&gpu, 0), -EOWNERDEAD, "not usable");
	gpu.region.state = KVX_REGION_LIVE;
	gpu.gpu.access = NULL;
	expect_refused(gate_fake_event(&gpu, 0), -EOPNOTSUPP, "cannot wait");
	struct kvx_xfer_req req = pair.req;
	struct kvx_why why = {""};
	struct kvx_xfer *xfer;
	req.streaming = true;
	req.wait = &wait;
	cr_assert_eq(kvx_xfer_submit(pair_xfers(), &req, &xfer, &why), -EINVAL);
	cr_assert_not_null(strstr(why.text, "without a block list"), "%s", why.text);
	cr_assert_eq(pair.local->n_users, 0);
	teardown();
	KVX_TEST_END();
}

Test(gate, append_that_cannot_wait_ends_the_transfer)
{
	setup();
	struct kvx_xfer *xfer = submit_open();
	append(xfer, 0, gate_fake_event(&gpu, 0));
	struct kvx_wait wait = flag_in(pair.local, 4, 1);
	uint64_t at = KIB;
	struct kvx_op_list ops = list_at(&at);
	cr_assert_eq(kvx_xfer_append(xfer, NULL, &ops, &wait, NULL), -EINVAL);
	cr_assert(rig_until_ends(&pair.rig, 1, 10000));
	pair_expect_end(0, -EINVAL);
	cr_assert_eq(pair.rig.script.n_ops, 0);
	teardown();
	KVX_TEST_END();
}

/* Refused whole, or accepted whole; what fails later, in the watcher, fails the transfer. */
Test(gate, every_allocation_of_a_submit_may_fail)
{
	struct kvx_xfer *xfer;
	unsigned n_ends = 0;
	int rc = -1;
	bool failed;
	setup();
	for (unsigned n = 1; n < 40; n++) {
		fault_alloc_arm(n);
		rc = try_submit(gate_fake_event(&gpu, 0), &xfer, NULL);
		if (rc == 0)
			turns(1);
		failed = fault_alloc_disarm();
		rig_turn(&pair.rig, 0);
		if (rc == 0 && failed) {
			pair_expect_end(n_ends++, -ENOMEM);
			pair.req.number++;
		} else if (rc == 0) {
			break;
		} else {
			cr_assert_eq(rc, -ENOMEM, "allocation %u: %d", n, rc);
		}
		cr_assert_eq(kvx_xfers_count(pair_xfers()), 0);
		cr_assert_eq(pair.local->n_users, 0);
	}
	cr_assert_eq(rc, 0);
	gpu.state[0] = 1;
	cr_assert(rig_until_ends(&pair.rig, n_ends + 1, 10000));
	pair_expect_end(n_ends, 0);
	teardown();
	KVX_TEST_END();
}
