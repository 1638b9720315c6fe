/* GPU memory over fabric, with devices made of host memory: bytes arrive where they should and
 * nowhere else, copies overlap, and nothing is done before its copy is. */
#include <poll.h>

#include "fabric_pair.h"

#include "fabric_gpu_fake.h"
#include "test_end.h"

/* n blocks of len bytes, from every place in turn to every place in reverse. */
static void move_blocks(struct gpu_pair *g, enum kvx_op_kind kind, uint64_t len, unsigned n)
{
	struct kvx_op *ops = calloc(n, sizeof(*ops));
	struct gpu_region *src = kind == KVX_OP_WRITE ? &g->ra : &g->rb;
	struct gpu_region *dst = kind == KVX_OP_WRITE ? &g->rb : &g->ra;
	uint8_t *from = gpu_region_image(src), *want = gpu_region_image(dst), *got;

	for (unsigned i = 0; i < n; i++) {
		ops[i] = make_op(&g->p.a, kind, i * len, (n - 1 - i) * len, len);
		ops[i].local = g->ra.mr;
		uint64_t at = kind == KVX_OP_WRITE ? i : n - 1 - i;
		memcpy(want + (n - 1 - at) * len, from + at * len, len);
	}
	run_ops(&g->p, ops, n);
	cr_assert_eq(g->p.a.n_failed, 0, "status %d", g->p.a.status);
	got = gpu_region_image(dst);
	for (unsigned i = 0; i < REGION_BYTES; i++)
		cr_assert_eq(got[i], want[i], "kind %d blocks of %lu: byte %u", kind,
			     (unsigned long)len, i);
	free(got);
	free(from);
	free(want);
	free(ops);
}

static void move_all_sizes(struct gpu_pair *g)
{
	static const struct {
		uint64_t len;
		unsigned n;
	} sizes[] = {{1, 1}, {333, 1000}, {4096, 500}, {16384, 200}, {65536, 60}, {262144, 15}};

	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		move_blocks(g, KVX_OP_WRITE, sizes[i].len, sizes[i].n);
		move_blocks(g, KVX_OP_READ, sizes[i].len, sizes[i].n);
	}
}

static void move_between(const char *provider, bool gpu_a, bool gpu_b, unsigned n_segments)
{
	struct gpu_pair g;

	gpu_pair_conf(&g, provider);
	gpu_pair_open(&g, gpu_a, gpu_b, n_segments);
	move_all_sizes(&g);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

Test(fabric_bounce, gpu_to_gpu)
{
	move_between("tcp", true, true, 1);
}

Test(fabric_bounce, gpu_to_gpu_in_many_segments)
{
	move_between("tcp", true, true, 301);
}

Test(fabric_bounce, host_to_gpu)
{
	move_between("tcp", false, true, 3);
}

Test(fabric_bounce, gpu_to_host)
{
	move_between("tcp", true, false, 3);
}

Test(fabric_bounce, without_placing)
{
	move_between("tcp;ofi_rxm", true, true, 3);
}

static struct kvx_op gpu_op(struct gpu_pair *g, enum kvx_op_kind kind, uint64_t local,
			    uint64_t remote, uint64_t len)
{
	struct kvx_op op = make_op(&g->p.a, kind, local, remote, len);

	op.local = g->ra.mr;
	return op;
}

/* One op each, and a cookie of its own: so many messages. Returns how many were taken in some turns
 * in which no copy ended. */
static unsigned post_messages(struct gpu_pair *g, enum kvx_op_kind kind, unsigned n, uint64_t len)
{
	unsigned taken = 0;

	for (unsigned turn = 0; turn < 3000; turn++) {
		struct kvx_op op = gpu_op(g, kind, taken * len, taken * len, len);

		op.cookie = taken;
		if (taken < n) {
			int rc = T->post(g->p.a.ep, &op, 1);
			cr_assert_geq(rc, 0);
			taken += (unsigned)rc;
		}
		if (turn % 64 == 0)
			pause_ms(1); /* helpers */
		pump(&g->p);
	}
	return taken;
}

Test(fabric_bounce, outbound_copies_are_as_many_as_slots)
{
	for (unsigned slots = 1; slots <= 4; slots += 3) {
		struct gpu_pair g;

		gpu_pair_conf(&g, "tcp");
		g.p.conf.gpu.bounce_slots = slots;
		gpu_pair_open(&g, true, false, 1);
		fake_hold(&g.ga);
		cr_assert_eq(post_messages(&g, KVX_OP_WRITE, 8, 32768), slots);
		cr_assert_eq(g.ga.n_out, slots);
		cr_assert_eq(g.p.a.n_done, 0, "done before it was copied");
		fake_release(&g.ga);
		PUMP_UNTIL(&g.p, g.p.a.n_done == slots);
		cr_assert_eq(g.p.a.n_failed, 0);
		gpu_pair_close(&g);
	}
	KVX_TEST_END();
}

static void inbound_as_many_as_slots(enum kvx_op_kind kind, uint64_t len)
{
	for (unsigned slots = 1; slots <= 4; slots += 3) {
		struct gpu_pair g;
		bool read = kind == KVX_OP_READ;
		struct fake_gpu *gpu;

		gpu_pair_conf(&g, "tcp");
		g.p.conf.gpu.bounce_slots = slots;
		gpu_pair_open(&g, read, !read, 1);
		gpu = read ? &g.ga : &g.gb;
		fake_hold(gpu);
		uint8_t *before = gpu_region_image(read ? &g.ra : &g.rb), *now;
		cr_assert_eq(post_messages(&g, kind, 8, len), 8, "what the peer takes is in time");
		PUMP_UNTIL(&g.p, gpu->n_out == slots); /* helpers are slow on a busy machine */
		cr_assert_eq(gpu->n_out, slots);
		cr_assert_eq(g.p.a.n_done, 0, "done before it was copied");
		now = gpu_region_image(read ? &g.ra : &g.rb);
		cr_assert_arr_eq(now, before, REGION_BYTES);
		gpu->n_may_end = 1;
		PUMP_UNTIL(&g.p, g.p.a.n_done == 1);
		fake_release(gpu);
		PUMP_UNTIL(&g.p, g.p.a.n_done == 8);
		cr_assert_eq(g.p.a.n_failed, 0);
		cr_assert_not(g.p.a.down || g.p.b.down);
		free(before);
		free(now);
		gpu_pair_close(&g);
	}
}

Test(fabric_bounce, a_write_is_answered_when_its_copy_is_done)
{
	inbound_as_many_as_slots(KVX_OP_WRITE, 4096);
	inbound_as_many_as_slots(KVX_OP_WRITE, 65536); /* announced ahead */
	KVX_TEST_END();
}

Test(fabric_bounce, a_read_is_done_when_its_copy_is)
{
	inbound_as_many_as_slots(KVX_OP_READ, 4096);
	inbound_as_many_as_slots(KVX_OP_READ, 65536);
	KVX_TEST_END();
}

Test(fabric_bounce, replies_wait_for_their_copies)
{
	struct gpu_pair g;

	gpu_pair_open_default(&g, false, true);
	fake_hold(&g.gb);
	cr_assert_eq(post_messages(&g, KVX_OP_READ, 8, 4096), 8);
	cr_assert_eq(g.gb.n_out, 4);
	cr_assert_eq(g.p.a.n_done, 0);
	fake_release(&g.gb);
	PUMP_UNTIL(&g.p, g.p.a.n_done == 8);
	cr_assert_eq(g.p.a.n_failed, 0);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* Ops of one message, in turn of b's GPU and of b's host memory. */
static void mixed(enum kvx_op_kind kind, uint64_t len)
{
	struct gpu_pair g;
	struct gpu_region host;
	struct side key = {.ep = NULL};
	struct kvx_op ops[16];

	gpu_pair_open_default(&g, false, true);
	gpu_region_open(&host, g.p.b.dom, NULL, 1, 5);
	key.ep = g.p.a.ep;
	side_know(&key, &g.p.b, &host);
	for (unsigned i = 0; i < 16; i++) {
		ops[i] = gpu_op(&g, kind, i * len, i * len, len);
		ops[i].remote = i % 2 ? key.rkey : g.p.a.rkey;
	}
	run_ops(&g.p, ops, 16);
	cr_assert_eq(g.p.a.n_failed, 0, "status %d", g.p.a.status);
	uint8_t *gpu = gpu_region_image(&g.rb);
	for (unsigned i = 0; i < 16; i++)
		cr_assert_arr_eq(g.ra.bytes + i * len, (i % 2 ? host.bytes : gpu) + i * len, len,
				 "op %u", i);
	free(gpu);
	T->rkey_free(key.rkey);
	gpu_region_close(&host);
	gpu_pair_close(&g);
}

Test(fabric_bounce, messages_of_host_and_gpu_memory)
{
	mixed(KVX_OP_WRITE, 1000);
	mixed(KVX_OP_READ, 1000);
	mixed(KVX_OP_WRITE, 65536);
	mixed(KVX_OP_READ, 65536);
	KVX_TEST_END();
}

/* Both sides ask for as much as they can at once, in both kinds, with hardly any buffers: nobody
 * may wait for the other, and no more than allowed is page-locked. */
static void both_full(const char *provider, uint64_t len, unsigned n)
{
	struct gpu_pair g;
	struct gpu_region *regions[2];
	struct side *sides[2];
	unsigned posted[2] = {0, 0};
	size_t limit = 1100 << 10; /* four of them */

	gpu_pair_conf(&g, provider);
	g.p.conf.gpu.bounce_bytes = limit;
	gpu_pair_open(&g, true, true, 3);
	sides[0] = &g.p.a;
	sides[1] = &g.p.b;
	regions[0] = &g.ra;
	regions[1] = &g.rb;
	PUMP_UNTIL(&g.p, ({
		for (unsigned s = 0; s < 2; s++) {
			struct kvx_op op =
			    make_op(sides[s], posted[s] % 3 ? KVX_OP_READ : KVX_OP_WRITE,
				    (2 + s) << 20, s << 20, len);

			op.local = regions[s]->mr;
			while (posted[s] < n && T->post(sides[s]->ep, &op, 1) == 1)
				posted[s]++;
		}
		g.p.a.n_done == n &&g.p.b.n_done == n;
	}));
	cr_assert_eq(g.p.a.n_failed + g.p.b.n_failed, 0);
	cr_assert_leq(g.ga.max_host_bytes, limit);
	cr_assert_leq(g.gb.max_host_bytes, limit);
	gpu_pair_close(&g);
}

Test(fabric_bounce, both_directions_full_make_progress)
{
	both_full("tcp", 65536, 600);
	both_full("tcp", 262144, 200);
	both_full("tcp", 16384, 600);
	both_full("tcp;ofi_rxm", 65536, 600);
	KVX_TEST_END();
}

/* What waits for the peer holds half of the buffers at most: what comes in always finds one. */
Test(fabric_bounce, half_of_the_buffers_is_for_what_comes_in)
{
	struct gpu_pair g;
	size_t limit = 1100 << 10; /* four of them */
	unsigned posted = 0;

	gpu_pair_conf(&g, "tcp");
	g.p.conf.gpu.bounce_bytes = limit;
	gpu_pair_open(&g, true, false, 1);
	fake_hold(&g.ga);
	cr_assert_eq(post_messages(&g, KVX_OP_WRITE, 4, 4096), 2);
	for (unsigned turn = 0; turn < 3000; turn++) {
		struct kvx_op op = make_op(&g.p.b, KVX_OP_WRITE, 0, 1 << 20, 4096);

		op.local = g.rb.mr;
		op.cookie = posted;
		if (posted < 4)
			posted += (unsigned)T->post(g.p.b.ep, &op, 1);
		if (turn % 64 == 0)
			pause_ms(1); /* helpers */
		pump(&g.p);
	}
	cr_assert_eq(posted, 4);
	cr_assert_eq(g.ga.n_out, 4, "%u copies under way", g.ga.n_out);
	cr_assert_leq(g.ga.max_host_bytes, limit);
	fake_release(&g.ga);
	PUMP_UNTIL(&g.p, g.p.a.n_done == 2 && g.p.b.n_done == 4);
	cr_assert_eq(g.p.a.n_failed + g.p.b.n_failed, 0);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* Memory of two devices shares the buffers that there may be. */
Test(fabric_bounce, devices_take_turns_at_the_last_buffers)
{
	struct gpu_pair g;
	struct fake_gpu second = {.hold_until_ns = 0};
	struct gpu_region other;
	unsigned posted = 0;

	pthread_mutex_init(&second.lock, NULL);
	gpu_pair_conf(&g, "tcp");
	g.p.conf.gpu.bounce_bytes = 1100 << 10;
	gpu_pair_open(&g, true, false, 1);
	gpu_region_open(&other, g.p.a.dom, &second, 1, 9);
	PUMP_UNTIL(&g.p, ({
		struct kvx_op op = gpu_op(&g, KVX_OP_WRITE, 0, 0, 65536);
		if ((posted / 10) % 2)
			op.local = other.mr;
		while (posted < 400 && T->post(g.p.a.ep, &op, 1) == 1)
			posted++;
		g.p.a.n_done == 400;
	}));
	cr_assert_eq(g.p.a.n_failed, 0);
	cr_assert_leq(atomic_load(&g.ga.max_host_bytes), 1100u << 10);
	cr_assert_gt(atomic_load(&second.max_host_bytes), 0);
	gpu_region_close(&other);
	gpu_pair_close(&g);
	cr_assert_eq(second.n_hosts + second.n_copiers, 0);
	KVX_TEST_END();
}

/* More pieces than copies may be under way: they go one after the other. */
Test(fabric_bounce, few_tickets_are_enough)
{
	struct gpu_pair g;

	gpu_pair_conf(&g, "tcp");
	gpu_pair_open(&g, true, true, 1999);
	g.ga.max_tickets = g.gb.max_tickets = 1;
	move_blocks(&g, KVX_OP_WRITE, 262144, 15);
	move_blocks(&g, KVX_OP_READ, 262144, 15);
	cr_assert_eq(g.ga.max_out, 1);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

Test(fabric_bounce, the_later_write_to_a_place_wins)
{
	struct gpu_pair g;
	struct kvx_op ops[4];

	gpu_pair_open_default(&g, true, true);
	for (unsigned i = 0; i < 4; i++) {
		ops[i] = gpu_op(&g, KVX_OP_WRITE, i * 4096, 0, 4096);
		ops[i].cookie = i;
	}
	run_ops(&g.p, ops, 4);
	uint8_t *from = gpu_region_image(&g.ra), *to = gpu_region_image(&g.rb);
	cr_assert_arr_eq(to, from + 3 * 4096, 4096);
	free(from);
	free(to);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* ---- sleeping */

/* Sleeps as a worker does, then makes progress. false: nothing came in time. */
static bool sleep_and_pump(struct side *s, int timeout_ms)
{
	struct pollfd pfd = {.fd = s->limits.event_fd, .events = POLLIN};
	bool work = T->arm(s->dom) == -EAGAIN;

	if (!work)
		work = poll(&pfd, 1, timeout_ms) == 1;
	side_pump(s);
	return work;
}

Test(fabric_bounce, a_sleeper_wakes_for_copies_and_does_not_spin)
{
	struct gpu_pair g;
	struct kvx_op op;
	unsigned n = 0;

	gpu_pair_open_default(&g, false, true);
	op = gpu_op(&g, KVX_OP_WRITE, 0, 0, 4096);
	run_ops(&g.p, &op, 1); /* all is there now */
	fake_hold(&g.gb);
	cr_assert_eq(T->post(g.p.a.ep, &op, 1), 1);
	PUMP_UNTIL(&g.p, g.gb.n_out == 1);
	g.gb.n_polls = 0;
	fake_hold_ms(&g.gb, 50);
	for (uint64_t end = kvx_now_ns() + 10 * KVX_SEC; g.p.a.n_done < 2; n++) {
		cr_assert_lt(kvx_now_ns(), end, "nobody wakes");
		cr_assert(sleep_and_pump(&g.p.b, 1000), "nothing wakes it");
		side_pump(&g.p.a);
	}
	cr_assert_lt(n, 50000 / 20 * 2, "%u turns in 50 ms", n);
	/* And then it sleeps as ever. */
	for (n = 0; sleep_and_pump(&g.p.b, 0); n++)
		cr_assert_lt(n, 1000, "never gets to sleep");
	cr_assert_not(sleep_and_pump(&g.p.b, 50), "nothing happened, yet it woke");
	gpu_pair_close(&g);
	KVX_TEST_END();
}

/* ---- what there may be too little of */

Test(fabric_bounce, no_page_locked_memory_fails_the_ops_until_there_is_some)
{
	struct gpu_pair g;
	struct kvx_op op;

	gpu_pair_open_default(&g, true, true);
	op = gpu_op(&g, KVX_OP_WRITE, 0, 0, 4096);
	atomic_store(&g.gb.fail_alloc, -ENOMEM);
	run_ops(&g.p, &op, 1);
	cr_assert_eq(g.p.a.status, -ENOMEM, "status %d", g.p.a.status);
	atomic_store(&g.ga.fail_alloc, -ENOMEM);
	cr_assert_not(g.p.a.down || g.p.b.down);
	atomic_store(&g.gb.fail_alloc, 0);
	pause_ms(550);
	run_ops(&g.p, &op, 1);
	cr_assert_eq(g.p.a.status, 0, "one buffer is there: what there is does");
	gpu_pair_close(&g);
	KVX_TEST_END();
}

Test(fabric_bounce, a_copier_that_does_not_open_is_tried_again)
{
	struct gpu_pair g;
	struct kvx_op op;

	gpu_pair_conf(&g, "tcp");
	atomic_store(&g.gb.fail_open, -ETIMEDOUT);
	gpu_pair_open(&g, false, true, 1);
	op = gpu_op(&g, KVX_OP_WRITE, 0, 0, 4096);
	run_ops(&g.p, &op, 1);
	cr_assert_eq(g.p.a.status, -EBUSY, "status %d", g.p.a.status);
	atomic_store(&g.gb.fail_open, 0);
	pause_ms(1050);
	run_ops(&g.p, &op, 1);
	cr_assert_eq(g.p.a.status, 0, "status %d", g.p.a.status);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

static void pump_until_gone(struct gpu_pair *g, struct fake_gpu *gpu)
{
	PUMP_UNTIL(&g->p, atomic_load(&gpu->n_hosts) == 0 && atomic_load(&gpu->n_copiers) == 0);
}

Test(fabric_bounce, with_the_last_region_all_is_given_back)
{
	struct gpu_pair g;
	struct kvx_op op;

	gpu_pair_open_default(&g, true, false);
	move_blocks(&g, KVX_OP_WRITE, 16384, 100);
	cr_assert_gt(g.ga.n_hosts, 0);
	cr_assert_eq(g.ga.n_copiers, 2, "one for each direction");
	gpu_region_close(&g.ra);
	pump_until_gone(&g, &g.ga);
	gpu_region_open(&g.ra, g.p.a.dom, &g.ga, 2, 4);
	op = gpu_op(&g, KVX_OP_WRITE, 0, 0, 4096);
	run_ops(&g.p, &op, 1);
	cr_assert_eq(g.p.a.status, 0);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

Test(fabric_bounce, memory_that_no_device_vouches_for_is_not_taken)
{
	struct gpu_pair g;
	struct kvx_mr *mr;

	gpu_pair_open_default(&g, false, true);
	g.rb.mem.gpu->access = NULL;
	cr_assert_eq(T->mem_reg(g.p.b.dom, 0, &g.rb.mem, KVX_ACCESS_READ, &mr), -EOPNOTSUPP);
	gpu_pair_close(&g);
	KVX_TEST_END();
}

Test(fabric_bounce, what_is_bounced_is_counted)
{
	struct gpu_pair g;

	gpu_pair_open_default(&g, true, false);
	move_blocks(&g, KVX_OP_WRITE, 4096, 100);
	cr_assert_eq(kvx_counter_get(&g.p.a.limits.counters->bounced_ops), 100);
	cr_assert_eq(kvx_counter_get(&g.p.a.limits.counters->bounced_bytes), 409600);
	cr_assert_eq(kvx_counter_get(&g.p.b.limits.counters->bounced_ops), 0);
	gpu_pair_close(&g);
	KVX_TEST_END();
}
