/* The fabric backend's endpoints: how they come up and go down, the fence, the lease, and sleeping.
 */
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fabric_pair.h"
#include "fault_alloc.h"
#include "test_end.h"

Test(fabric_ep, fence_cancels_what_is_open)
{
	struct pair p;
	struct kvx_op ops[8];
	uint8_t *before = malloc(REGION_BYTES);
	int taken;

	pair_open(&p);
	memcpy(before, p.a.mem.addr, REGION_BYTES);
	for (unsigned i = 0; i < 8; i++) {
		ops[i] = make_op(&p.a, KVX_OP_READ, i * 65536, i * 65536, 65536);
		ops[i].cookie = i;
	}
	taken = T->post(p.a.ep, ops, 8);
	cr_assert_gt(taken, 0);
	side_pump(&p.b); /* the data is on its way */
	cr_assert_eq(T->fence(p.a.ep), 0);
	cr_assert_eq(T->fence(p.a.ep), 0, "idempotent");
	PUMP_UNTIL(&p, p.a.n_done == (unsigned)taken);
	cr_assert_eq(p.a.n_failed, (unsigned)taken);
	cr_assert_eq(p.a.status, -ECANCELED);
	cr_assert_eq(T->post(p.a.ep, ops, 1), -ECANCELED);
	PUMP_UNTIL(&p, p.b.down);
	cr_assert_eq(p.b.down_status, -EHOSTDOWN);
	cr_assert_arr_eq(p.a.mem.addr, before, REGION_BYTES, "nothing landed after the fence");
	free(before);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_ep, fence_with_rma_in_flight_takes_the_memory_back)
{
	struct pair p;
	struct kvx_op ops[8];
	int taken;

	pair_conf(&p, "tcp", 4096);
	pair_open_conf(&p);
	for (unsigned i = 0; i < 8; i++)
		ops[i] = make_op(&p.a, KVX_OP_WRITE, i * 65536, i * 65536, 65536);
	taken = T->post(p.a.ep, ops, 8);
	cr_assert_gt(taken, 0);
	T->fence(p.b.ep);
	memset(p.b.mem.addr, 0, REGION_BYTES);
	PUMP_UNTIL(&p, p.a.down && p.a.n_done == (unsigned)taken);
	cr_assert_eq(p.a.n_failed, (unsigned)taken);
	for (unsigned i = 0; i < REGION_BYTES; i++)
		cr_assert_eq(p.b.mem.addr[i], 0, "byte %u landed after the fence", i);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_ep, lease_over_lets_nothing_land_or_be_read)
{
	struct pair p;
	struct kvx_op op;
	uint8_t *before = malloc(REGION_BYTES);

	pair_open(&p);
	memcpy(before, p.b.mem.addr, REGION_BYTES);
	T->lease(p.b.ep, kvx_now_ns() - 1);
	op = make_op(&p.a, KVX_OP_WRITE, 0, 0, 4096);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -EHOSTDOWN);
	op = make_op(&p.a, KVX_OP_READ, 0, 0, 4096);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -EHOSTDOWN);
	cr_assert_arr_eq(p.b.mem.addr, before, REGION_BYTES);
	T->lease(p.b.ep, kvx_now_ns() + 100 * KVX_SEC);
	run_blocks(&p, KVX_OP_WRITE, 4096, 1);
	free(before);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_ep, lease_over_with_rma_closes_the_endpoint)
{
	struct pair p;
	struct kvx_op op;

	pair_conf(&p, "tcp", 4096);
	pair_open_conf(&p);
	memset(p.b.mem.addr, 0, REGION_BYTES);
	op = make_op(&p.a, KVX_OP_WRITE, 0, 0, 65536);
	cr_assert_eq(T->post(p.a.ep, &op, 1), 1);
	T->lease(p.b.ep, 0);
	PUMP_UNTIL(&p, p.b.down && p.a.down && p.a.n_done == 1);
	cr_assert_lt(p.a.status, 0);
	for (unsigned i = 0; i < 65536; i++)
		cr_assert_eq(p.b.mem.addr[i], 0);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_ep, peer_gone_is_told_and_ends_all_ops)
{
	struct pair p;
	struct kvx_op op;

	pair_open(&p);
	op = make_op(&p.a, KVX_OP_READ, 0, 0, 4096);
	cr_assert_eq(T->post(p.a.ep, &op, 1), 1);
	T->rkey_free(p.b.rkey);
	p.b.rkey = NULL;
	T->fence(p.b.ep);
	T->ep_close(p.b.ep);
	p.b.ep = NULL;
	PUMP_UNTIL(&p, p.a.down && p.a.n_done == 1);
	cr_assert_eq(p.a.status, -EHOSTDOWN);
	cr_assert_eq(p.a.down_status, -EHOSTDOWN);
	cr_assert_eq(T->post(p.a.ep, &op, 1), -EHOSTDOWN);
	T->rkey_free(p.a.rkey);
	T->mem_dereg(p.a.mr);
	T->ep_close(p.a.ep);
	T->close(p.a.dom);
	munmap(p.a.mem.addr, REGION_BYTES);
	T->mem_dereg(p.b.mr);
	T->close(p.b.dom);
	munmap(p.b.mem.addr, REGION_BYTES);
	KVX_TEST_END();
}

Test(fabric_ep, stranger_is_not_let_in)
{
	struct pair p;
	uint8_t forged[KVX_TRANSPORT_ADDR_MAX];
	struct side c = {0};

	pair_conf(&p, "tcp", UINT64_MAX);
	side_open(&p.a, &p.conf);
	side_open(&p.b, &p.conf);
	side_open(&c, &p.conf);
	/* c knows where a listens, but not its secret. Only who has the smaller secret connects. */
	memcpy(forged, p.a.addr, p.a.addr_len);
	memset(forged + 8, 0xff, 8);
	cr_assert_eq(T->connect(c.ep, forged, p.a.addr_len), 0);
	PUMP_UNTIL(&p, ({
		side_pump(&c);
		c.down;
	}));
	cr_assert_eq(c.down_status, -EHOSTUNREACH);
	sides_connect(&p);
	side_close(&c);
	pair_close(&p);
	KVX_TEST_END();
}

/* Whoever connects to the port without speaking the protocol must not hold up the others. */
Test(fabric_ep, silent_connection_blocks_nobody)
{
	struct pair p;
	struct sockaddr_in sin;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int fd2 = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	pair_conf(&p, "tcp", UINT64_MAX);
	side_open(&p.a, &p.conf);
	side_open(&p.b, &p.conf);
	memcpy(&sin, p.a.addr + 16, sizeof(sin));
	cr_assert_eq(connect(fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
	memcpy(&sin, p.b.addr + 16, sizeof(sin));
	cr_assert_eq(connect(fd2, (struct sockaddr *)&sin, sizeof(sin)), 0);
	cr_assert_eq(send(fd2, "x", 1, MSG_NOSIGNAL), 1);
	sides_connect(&p);
	close(fd);
	close(fd2);
	for (unsigned i = 0; i < 1000; i++)
		pump(&p);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_ep, nobody_there_ends_in_ep_down)
{
	struct pair p;

	pair_conf(&p, "tcp", UINT64_MAX);
	for (bool a_connects = false; !a_connects;) { /* a coin: whose secret is less */
		side_open(&p.a, &p.conf);
		side_open(&p.b, &p.conf);
		a_connects = memcmp(p.a.addr + 15, p.b.addr + 15, 1) < 0;
		side_close(&p.b);
		if (!a_connects)
			side_close(&p.a);
	}
	cr_assert_eq(T->connect(p.a.ep, p.b.addr, p.b.addr_len), 0);
	for (uint64_t end = kvx_now_ns() + WAIT_NS; !p.a.down;) {
		cr_assert_lt(kvx_now_ns(), end);
		side_pump(&p.a);
	}
	cr_assert_eq(p.a.down_status, -EHOSTUNREACH);
	side_close(&p.a);
	KVX_TEST_END();
}

Test(fabric_ep, bad_addresses_are_refused)
{
	struct pair p;
	uint8_t bad[KVX_TRANSPORT_ADDR_MAX];

	pair_conf(&p, "tcp", UINT64_MAX);
	side_open(&p.a, &p.conf);
	side_open(&p.b, &p.conf);
	for (size_t len = 0; len < p.b.addr_len; len++)
		cr_assert_eq(T->connect(p.a.ep, p.b.addr, len), -EINVAL);
	memcpy(bad, p.b.addr, p.b.addr_len);
	bad[0] = 9;
	cr_assert_eq(T->connect(p.a.ep, bad, p.b.addr_len), -EINVAL);
	cr_assert_eq(T->connect(p.a.ep, p.a.addr, p.a.addr_len), -EINVAL, "itself");
	sides_connect(&p);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_ep, fence_while_connecting_ends_it)
{
	struct pair p;

	pair_conf(&p, "tcp", UINT64_MAX);
	side_open(&p.a, &p.conf);
	side_open(&p.b, &p.conf);
	cr_assert_eq(T->connect(p.a.ep, p.b.addr, p.b.addr_len), 0);
	cr_assert_eq(T->fence(p.a.ep), 0);
	PUMP_UNTIL(&p, p.a.down);
	cr_assert_eq(p.a.down_status, -ECANCELED);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_ep, early_connection_waits_for_connect)
{
	struct pair p;

	pair_conf(&p, "tcp", UINT64_MAX);
	side_open(&p.a, &p.conf);
	side_open(&p.b, &p.conf);
	cr_assert_eq(T->connect(p.a.ep, p.b.addr, p.b.addr_len), 0);
	for (unsigned i = 0; i < 2000; i++)
		pump(&p);
	cr_assert_not(p.a.up || p.b.up);
	cr_assert_eq(T->connect(p.b.ep, p.a.addr, p.a.addr_len), 0);
	PUMP_UNTIL(&p, p.a.up && p.b.up);
	pair_close(&p);
	KVX_TEST_END();
}

/* Sleeps as a worker does, then makes progress. false: nothing was to do, nothing came in time. */
static bool sleep_and_pump(struct side *s, int timeout_ms)
{
	struct pollfd pfd = {.fd = s->limits.event_fd, .events = POLLIN};
	bool work = T->arm(s->dom) == -EAGAIN;

	if (!work)
		work = poll(&pfd, 1, timeout_ms) == 1;
	side_pump(s);
	return work;
}

static void pump_until_idle(struct side *s)
{
	unsigned i = 0;

	while (sleep_and_pump(s, 0))
		cr_assert_lt(i++, 1000, "never gets to sleep");
}

static void post_and_sleep(struct pair *p, enum kvx_op_kind kind, uint64_t len)
{
	struct kvx_op op = make_op(&p->a, kind, 0, 0, len);

	pump_until_idle(&p->a);
	pump_until_idle(&p->b);
	p->a.n_done = 0;
	cr_assert_eq(T->post(p->a.ep, &op, 1), 1);
	cr_assert(sleep_and_pump(&p->b, 5000), "b did not wake");
	for (unsigned i = 0; p->a.n_done == 0; i++) {
		cr_assert_lt(i, 50, "kind %d len %lu: nobody wakes", kind, (unsigned long)len);
		sleep_and_pump(&p->a, 20);
		sleep_and_pump(&p->b, 20);
	}
	cr_assert_eq(p->a.status, 0);
}

Test(fabric_ep, event_fd_wakes_a_sleeper)
{
	struct pair p;

	pair_open(&p);
	pump_until_idle(&p.a);
	pump_until_idle(&p.b);
	cr_assert_not(sleep_and_pump(&p.a, 50), "nothing happened, yet it woke");
	cr_assert_not(sleep_and_pump(&p.b, 50));
	for (unsigned i = 0; i < 5; i++) {
		post_and_sleep(&p, KVX_OP_WRITE, 256);
		post_and_sleep(&p, KVX_OP_READ, 256);
		post_and_sleep(&p, KVX_OP_WRITE, 65536);
		post_and_sleep(&p, KVX_OP_READ, 65536);
	}
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_ep, event_fd_tells_of_a_connection_that_ends)
{
	struct pair p;

	pair_open(&p);
	pump_until_idle(&p.a);
	T->fence(p.b.ep);
	for (unsigned i = 0; i < 10 && !p.a.down; i++)
		cr_assert(sleep_and_pump(&p.a, 5000));
	cr_assert(p.a.down);
	pair_close(&p);
	KVX_TEST_END();
}

/* A connection comes while the worker sleeps: both ends get there by their event fds alone. */
Test(fabric_ep, event_fd_carries_a_connection)
{
	struct pair p;

	pair_conf(&p, "tcp", UINT64_MAX);
	side_open(&p.a, &p.conf);
	side_open(&p.b, &p.conf);
	pump_until_idle(&p.a);
	pump_until_idle(&p.b);
	cr_assert_eq(T->connect(p.a.ep, p.b.addr, p.b.addr_len), 0);
	cr_assert_eq(T->connect(p.b.ep, p.a.addr, p.a.addr_len), 0);
	for (unsigned i = 0; !(p.a.up && p.b.up); i++) {
		cr_assert_lt(i, 100, "nobody wakes");
		sleep_and_pump(&p.a, 20);
		sleep_and_pump(&p.b, 20);
	}
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_ep, unknown_provider_is_refused_with_a_reason)
{
	struct kvx_dom_conf conf = {
	    .bind_host = "127.0.0.1", .provider = "no-such", .fabric_rma_min_bytes = UINT64_MAX};
	struct kvx_why why = {{0}};
	struct kvx_rail rail;

	cr_assert_eq(T->probe(&conf, &rail, 1, &why), -EOPNOTSUPP);
	cr_assert_not_null(strstr(why.text, "no-such"));
	conf.provider = "tcp";
	cr_assert_eq(T->probe(&conf, &rail, 1, &why), 1);
	conf.bind_host = "0.0.0.0";
	cr_assert_lt(T->probe(&conf, &rail, 1, &why), 0);
	KVX_TEST_END();
}

/* connect() may also say it later, with EP_DOWN. */
static void expect_no_memory(struct side *s, int rc, unsigned n)
{
	if (rc == 0) {
		side_pump(s);
		cr_assert(s->down, "allocation %u: nobody said anything", n);
		rc = s->down_status;
	}
	cr_assert_eq(rc, -ENOMEM, "allocation %u: %d", n, rc);
}

/* Whatever allocation fails, somebody says so and nothing is left behind. */
Test(fabric_ep, no_memory_leaves_nothing_behind)
{
	struct pair p;

	for (unsigned n = 1; n < 100; n++) {
		struct side a = {0}, b = {0};
		struct kvx_why why = {{0}};
		int rc;

		pair_conf(&p, "tcp", UINT64_MAX);
		side_open(&b, &p.conf);
		a.addr_len = sizeof(a.addr);
		fault_alloc_arm(n);
		rc = T->open(&p.conf, &a.dom, &a.limits, &why);
		if (rc == 0)
			rc = T->listen(a.dom, 0, &a.ep, a.addr, &a.addr_len);
		if (rc == 0)
			rc = T->connect(a.ep, b.addr, b.addr_len);
		if (rc == 0)
			rc = T->mem_reg(a.dom, 0,
					&(struct kvx_mem){.ops = &kvx_mem_host_ops,
							  .addr = a.addr,
							  .len_bytes = 16,
							  .page_bytes = 4096},
					KVX_ACCESS_READ, &a.mr);
		if (!fault_alloc_disarm())
			n = 100;
		else
			expect_no_memory(&a, rc, n);
		T->mem_dereg(a.mr);
		T->ep_close(a.ep);
		T->close(a.dom);
		side_close(&b);
		if (n == 100)
			cr_assert_eq(rc, 0);
	}
	KVX_TEST_END();
}
