/* The fabric backend: two domains in one process over the loopback address, pumped by hand. */
#include <criterion/criterion.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "mem/guard.h"
#include "mem/region.h"
#include "test_end.h"
#include "transport/transport.h"

#define REGION_BYTES (4u << 20)
#define WAIT_NS      (10 * KVX_SEC)

static const struct kvx_transport_ops *const T = &kvx_fabric_ops;

struct side {
	struct kvx_dom *dom;
	struct kvx_transport_limits limits;
	struct kvx_ep *ep;
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t addr_len;
	struct kvx_mem mem;
	struct kvx_mr *mr;
	struct kvx_rkey *rkey; /* of the other side's mr */
	bool up, down;
	int down_status;
	unsigned n_done;   /* ops */
	unsigned n_failed; /* ops, of these */
	int status;        /* of the last OP_DONE */
	uint64_t cookie;
};
struct pair {
	struct kvx_dom_conf conf;
	struct side a, b;
};

static void side_open(struct side *s, const struct kvx_dom_conf *conf)
{
	struct kvx_why why = {{0}};

	cr_assert_eq(T->open(conf, &s->dom, &s->limits, &why), 0, "%s", why.text);
	s->addr_len = sizeof(s->addr);
	cr_assert_eq(T->listen(s->dom, &s->ep, s->addr, &s->addr_len), 0);
}

static void side_map(struct side *s, uint32_t rights, int seed)
{
	void *p = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		       0);

	cr_assert_neq(p, MAP_FAILED);
	s->mem.ops = &kvx_mem_host_ops;
	s->mem.fd = -1;
	s->mem.addr = p;
	s->mem.len_bytes = REGION_BYTES;
	s->mem.page_bytes = 4096;
	for (size_t i = 0; i < REGION_BYTES; i++)
		s->mem.addr[i] = (uint8_t)((i * 2654435761u >> 13) + (unsigned)seed);
	cr_assert_eq(T->mem_reg(s->dom, &s->mem, rights, &s->mr), 0);
}

/* s: knows the other side's memory. */
static void side_import(struct side *s, const struct side *other)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	int len = T->mkey_pack(other->mr, mkey, sizeof(mkey));

	cr_assert_gt(len, 0);
	cr_assert_eq(T->rkey_unpack(s->ep, mkey, (size_t)len, &s->rkey), 0);
}

static void side_take(struct side *s, const struct kvx_tevent *ev)
{
	switch (ev->kind) {
	case KVX_TEV_EP_UP:
		s->up = true;
		break;
	case KVX_TEV_EP_DOWN:
		s->down = true;
		s->down_status = ev->status;
		break;
	case KVX_TEV_OP_DONE:
		s->n_done += ev->n_ops;
		s->n_failed += ev->status < 0 ? ev->n_ops : 0;
		s->status = ev->status;
		s->cookie = ev->cookie;
		break;
	default:
		cr_assert_fail("event %d", ev->kind);
	}
}

static void side_pump(struct side *s)
{
	struct kvx_tevent ev[8];
	int n = T->progress(s->dom, ev, 8);

	for (int i = 0; i < n; i++)
		side_take(s, &ev[i]);
}

static void pump(struct pair *p)
{
	side_pump(&p->a);
	side_pump(&p->b);
}

#define PUMP_UNTIL(p, cond)                                                                        \
	do {                                                                                       \
		uint64_t end_ = kvx_now_ns() + WAIT_NS;                                            \
		while (!(cond)) {                                                                  \
			cr_assert_lt(kvx_now_ns(), end_, "waited in vain for " #cond);             \
			pump(p);                                                                   \
		}                                                                                  \
	} while (0)

static void pair_connect(struct pair *p)
{
	cr_assert_eq(T->connect(p->a.ep, p->b.addr, p->b.addr_len), 0);
	cr_assert_eq(T->connect(p->b.ep, p->a.addr, p->a.addr_len), 0);
	PUMP_UNTIL(p, p->a.up && p->b.up);
}

static void pair_open_conf(struct pair *p)
{
	cr_assert_eq(kvx_guard_install(), 0);
	side_open(&p->a, &p->conf);
	side_open(&p->b, &p->conf);
	pair_connect(p);
	side_map(&p->a, KVX_ACCESS_READ | KVX_ACCESS_WRITE, 1);
	side_map(&p->b, KVX_ACCESS_READ | KVX_ACCESS_WRITE, 2);
	side_import(&p->a, &p->b);
	side_import(&p->b, &p->a);
}

static void pair_conf(struct pair *p, const char *provider, uint64_t rma_min_bytes)
{
	*p = (struct pair){.conf = {.bind_host = "127.0.0.1",
				    .provider = provider,
				    .fabric_message_bytes = 64 << 10,
				    .fabric_queue = 4,
				    .fabric_rma_min_bytes = rma_min_bytes,
				    .mem_kinds = 1u << KVX_MEM_HOST}};
}

static void pair_open(struct pair *p)
{
	pair_conf(p, "tcp", UINT64_MAX);
	pair_open_conf(p);
}

static void side_close(struct side *s)
{
	T->rkey_free(s->rkey);
	T->mem_dereg(s->mr);
	T->fence(s->ep);
	T->ep_close(s->ep);
	T->close(s->dom);
	if (s->mem.addr != NULL)
		munmap(s->mem.addr, REGION_BYTES);
}

static void pair_close(struct pair *p)
{
	side_close(&p->a);
	side_close(&p->b);
}

static struct kvx_op make_op(const struct side *s, enum kvx_op_kind kind, uint64_t local,
			     uint64_t remote, uint64_t len)
{
	return (struct kvx_op){.local = s->mr,
			       .remote = s->rkey,
			       .local_offset = local,
			       .remote_offset = remote,
			       .len_bytes = len,
			       .cookie = 77,
			       .kind = kind};
}

/* Posts all ops of side a and waits for them. */
static void run_ops(struct pair *p, const struct kvx_op *ops, unsigned n)
{
	unsigned posted = 0;

	p->a.n_done = 0;
	p->a.n_failed = 0;
	PUMP_UNTIL(p, ({
			   if (posted < n) {
				   int rc = T->post(p->a.ep, ops + posted, n - posted);

				   cr_assert_geq(rc, 0);
				   posted += (unsigned)rc;
			   }
			   p->a.n_done >= n;
		   }));
	cr_assert_eq(p->a.n_done, n);
}

/* n blocks of len bytes, from every place in turn to every place in reverse. */
static void run_blocks(struct pair *p, enum kvx_op_kind kind, uint64_t len, unsigned n)
{
	struct kvx_op *ops = calloc(n, sizeof(*ops));
	const struct side *src = kind == KVX_OP_WRITE ? &p->a : &p->b;
	const struct side *dst = kind == KVX_OP_WRITE ? &p->b : &p->a;

	for (unsigned i = 0; i < n; i++)
		ops[i] = make_op(&p->a, kind, i * len, (n - 1 - i) * len, len);
	run_ops(p, ops, n);
	cr_assert_eq(p->a.n_failed, 0, "status %d", p->a.status);
	for (unsigned i = 0; i < n; i++) {
		uint64_t from = kind == KVX_OP_WRITE ? ops[i].local_offset : ops[i].remote_offset;
		uint64_t to = kind == KVX_OP_WRITE ? ops[i].remote_offset : ops[i].local_offset;

		cr_assert_arr_eq(dst->mem.addr + to, src->mem.addr + from, len, "block %u", i);
	}
	free(ops);
}

static void run_all_sizes(struct pair *p)
{
	run_blocks(p, KVX_OP_WRITE, 1, 1);
	run_blocks(p, KVX_OP_WRITE, 256, 1000);
	run_blocks(p, KVX_OP_WRITE, 4096, 500);
	run_blocks(p, KVX_OP_WRITE, 16384, 200);
	run_blocks(p, KVX_OP_WRITE, 65536, 60);
	run_blocks(p, KVX_OP_READ, 1, 1);
	run_blocks(p, KVX_OP_READ, 333, 1000);
	run_blocks(p, KVX_OP_READ, 4096, 500);
	run_blocks(p, KVX_OP_READ, 16384, 200);
	run_blocks(p, KVX_OP_READ, 65536, 60);
}

Test(fabric, packed_ops_of_all_sizes_arrive)
{
	struct pair p;

	pair_open(&p);
	run_all_sizes(&p);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, rma_ops_of_all_sizes_arrive)
{
	struct pair p;

	pair_conf(&p, "tcp", 4096);
	pair_open_conf(&p);
	run_all_sizes(&p);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, connectionless_endpoints_work_too)
{
	struct pair p;

	pair_conf(&p, "tcp;ofi_rxm", 32768);
	pair_open_conf(&p);
	run_all_sizes(&p);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, random_ops_touch_their_bytes_only)
{
	struct pair p;
	uint8_t *want = malloc(REGION_BYTES);
	unsigned seed = 12345;

	pair_open(&p);
	memcpy(want, p.b.mem.addr, REGION_BYTES);
	for (unsigned round = 0; round < 20; round++) {
		struct kvx_op ops[64];
		uint64_t at = 0;

		for (unsigned i = 0; i < 64; i++) {
			uint64_t len = (uint64_t)(rand_r(&seed) % (i % 8 == 0 ? 60000 : 3000)) + 1;
			uint64_t from = (uint64_t)rand_r(&seed) % (REGION_BYTES - len);

			at += (uint64_t)(rand_r(&seed) % 100) + 1;
			ops[i] = make_op(&p.a, KVX_OP_WRITE, from, at, len);
			memcpy(want + at, p.a.mem.addr + from, len);
			at += len;
		}
		run_ops(&p, ops, 64);
		cr_assert_eq(p.a.n_failed, 0);
	}
	cr_assert_arr_eq(p.b.mem.addr, want, REGION_BYTES);
	free(want);
	pair_close(&p);
	KVX_TEST_END();
}

/* Both sides ask for as much as they can at once, in both kinds; nobody may wait for the other. */
Test(fabric, both_directions_full_make_progress)
{
	struct pair p;
	struct side *sides[2];
	unsigned posted[2] = {0, 0};

	pair_open(&p);
	sides[0] = &p.a;
	sides[1] = &p.b;
	PUMP_UNTIL(&p, ({
			   for (unsigned s = 0; s < 2; s++) {
				   struct kvx_op op = make_op(
				       sides[s], posted[s] % 3 ? KVX_OP_READ : KVX_OP_WRITE,
				       (2 + s) << 20, s << 20, 65536);

				   while (posted[s] < 600 && T->post(sides[s]->ep, &op, 1) == 1)
					   posted[s]++;
			   }
			   p.a.n_done == 600 && p.b.n_done == 600;
		   }));
	cr_assert_eq(p.a.n_failed + p.b.n_failed, 0);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, full_queue_is_a_short_count)
{
	struct pair p;
	struct kvx_op ops[64];
	int rc;

	pair_open(&p);
	for (unsigned i = 0; i < 64; i++)
		ops[i] = make_op(&p.a, KVX_OP_READ, i * 4096, i * 4096, 4096);
	for (unsigned i = 0; i < 64; i++)
		ops[i].cookie = i; /* a message each */
	rc = T->post(p.a.ep, ops, 64);
	cr_assert_eq(rc, 4, "took %d with a queue of 4", rc);
	cr_assert_eq(T->post(p.a.ep, ops + rc, 60), 0);
	PUMP_UNTIL(&p, p.a.n_done == 4);
	cr_assert_eq(p.a.n_failed, 0);
	pair_close(&p);
	KVX_TEST_END();
}

/* mkeys are the peer's input: a forged one must reach nothing. */
static int status_with_mkey(struct pair *p, enum kvx_op_kind kind, size_t at, uint8_t flip,
			    uint64_t len_field)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	int len = T->mkey_pack(p->b.mr, mkey, sizeof(mkey));
	struct kvx_rkey *rkey;
	struct kvx_op op;

	mkey[at] ^= flip;
	if (len_field != 0)
		memcpy(mkey + 24, &len_field, 8);
	cr_assert_eq(T->rkey_unpack(p->a.ep, mkey, (size_t)len, &rkey), 0);
	op = make_op(&p->a, kind, 0, len_field != 0 ? REGION_BYTES - 10 : 0, 100);
	op.remote = rkey;
	run_ops(p, &op, 1);
	T->rkey_free(rkey);
	return p->a.status;
}

Test(fabric, forged_keys_reach_nothing)
{
	struct pair p;
	uint8_t *before = malloc(REGION_BYTES);

	pair_open(&p);
	memcpy(before, p.b.mem.addr, REGION_BYTES);
	/* offsets of struct wire_mkey: id 8, nonce 16, length 24 */
	cr_assert_eq(status_with_mkey(&p, KVX_OP_WRITE, 8, 0xff, 0), -EOWNERDEAD);
	cr_assert_eq(status_with_mkey(&p, KVX_OP_WRITE, 12, 1, 0), -EOWNERDEAD);
	cr_assert_eq(status_with_mkey(&p, KVX_OP_WRITE, 16, 1, 0), -EACCES);
	cr_assert_eq(status_with_mkey(&p, KVX_OP_READ, 23, 0x80, 0), -EACCES);
	cr_assert_eq(status_with_mkey(&p, KVX_OP_WRITE, 0, 0, UINT64_MAX), -ERANGE);
	cr_assert_eq(status_with_mkey(&p, KVX_OP_READ, 0, 0, UINT64_MAX), -ERANGE);
	cr_assert_arr_eq(p.b.mem.addr, before, REGION_BYTES);
	cr_assert_not(p.a.down || p.b.down, "a refused op leaves the lane alone");
	run_blocks(&p, KVX_OP_WRITE, 4096, 10);
	free(before);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, offset_that_wraps_is_refused)
{
	struct pair p;
	struct kvx_op op;

	pair_open(&p);
	op = make_op(&p.a, KVX_OP_WRITE, 0, UINT64_MAX - 50, 100);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -ERANGE);
	op = make_op(&p.a, KVX_OP_READ, UINT64_MAX - 50, 0, 100);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -ERANGE);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, rights_are_checked_by_the_owner)
{
	struct pair p;
	struct kvx_op op;

	pair_conf(&p, "tcp", UINT64_MAX);
	kvx_guard_install();
	side_open(&p.a, &p.conf);
	side_open(&p.b, &p.conf);
	pair_connect(&p);
	side_map(&p.a, KVX_ACCESS_WRITE, 1);
	side_map(&p.b, KVX_ACCESS_READ, 2);
	side_import(&p.a, &p.b);
	side_import(&p.b, &p.a);
	op = make_op(&p.a, KVX_OP_WRITE, 0, 0, 100);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -EACCES);
	op = make_op(&p.a, KVX_OP_READ, 0, 0, 100);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, 0, "memory of a itself may be filled by a");
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, unregistered_memory_is_out_of_reach)
{
	struct pair p;
	struct kvx_op op;
	uint8_t *before = malloc(REGION_BYTES);

	pair_open(&p);
	memcpy(before, p.b.mem.addr, REGION_BYTES);
	/* The message is on its way when the memory goes. */
	op = make_op(&p.a, KVX_OP_WRITE, 0, 4096, 4096);
	cr_assert_eq(T->post(p.a.ep, &op, 1), 1);
	T->mem_dereg(p.b.mr);
	PUMP_UNTIL(&p, p.a.n_done == 1);
	cr_assert_eq(p.a.status, -EOWNERDEAD);
	/* Its place in the table is taken by other memory, of which the key knows nothing. */
	cr_assert_eq(T->mem_reg(p.b.dom, &p.b.mem, KVX_ACCESS_WRITE, &p.b.mr), 0);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -EOWNERDEAD);
	cr_assert_arr_eq(p.b.mem.addr, before, REGION_BYTES);
	free(before);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, read_into_unregistered_memory_is_dropped)
{
	struct pair p;
	struct kvx_op op;
	uint8_t *before = malloc(REGION_BYTES);

	pair_open(&p);
	memcpy(before, p.a.mem.addr, REGION_BYTES);
	op = make_op(&p.a, KVX_OP_READ, 0, 4096, 4096);
	cr_assert_eq(T->post(p.a.ep, &op, 1), 1);
	T->mem_dereg(p.a.mr);
	p.a.mr = NULL;
	PUMP_UNTIL(&p, p.a.n_done == 1);
	cr_assert_eq(p.a.status, -ECANCELED);
	cr_assert_arr_eq(p.a.mem.addr, before, REGION_BYTES);
	free(before);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, fence_cancels_what_is_open)
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

Test(fabric, fence_with_rma_in_flight_takes_the_memory_back)
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

Test(fabric, lease_over_lets_nothing_land_or_be_read)
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

Test(fabric, lease_over_with_rma_closes_the_endpoint)
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

Test(fabric, peer_gone_is_told_and_ends_all_ops)
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

/* Region memory that is not there any more: the op fails, the lane lives. */
Test(fabric, memory_fault_fails_the_op_only)
{
	struct pair p;
	struct kvx_op op;
	int fd = memfd_create("hole", MFD_CLOEXEC);
	void *old;

	pair_open(&p);
	cr_assert_eq(ftruncate(fd, 8192), 0);
	old = mmap(p.b.mem.addr, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	cr_assert_eq(old, p.b.mem.addr);
	op = make_op(&p.a, KVX_OP_WRITE, 0, 16384, 4096);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -EFAULT);
	op = make_op(&p.a, KVX_OP_READ, 0, 16384, 4096);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -EFAULT);
	op = make_op(&p.a, KVX_OP_WRITE, 0, 4096, 4096);
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, 0);
	close(fd);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, stranger_is_not_let_in)
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
	pair_connect(&p);
	side_close(&c);
	pair_close(&p);
	KVX_TEST_END();
}

/* Whoever connects to the port without speaking the protocol must not hold up the others. */
Test(fabric, silent_connection_blocks_nobody)
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
	pair_connect(&p);
	close(fd);
	close(fd2);
	for (unsigned i = 0; i < 1000; i++)
		pump(&p);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, nobody_there_ends_in_ep_down)
{
	struct pair p;
	bool a_connects;

	pair_conf(&p, "tcp", UINT64_MAX);
	side_open(&p.a, &p.conf);
	do { /* until a is the one that has to connect */
		side_open(&p.b, &p.conf);
		a_connects = memcmp(p.a.addr + 15, p.b.addr + 15, 1) < 0;
		T->fence(p.b.ep);
		T->ep_close(p.b.ep);
		T->close(p.b.dom);
	} while (!a_connects);
	cr_assert_eq(T->connect(p.a.ep, p.b.addr, p.b.addr_len), 0);
	for (uint64_t end = kvx_now_ns() + WAIT_NS; !p.a.down;) {
		cr_assert_lt(kvx_now_ns(), end);
		side_pump(&p.a);
	}
	cr_assert_eq(p.a.down_status, -EHOSTUNREACH);
	side_close(&p.a);
	KVX_TEST_END();
}

Test(fabric, bad_addresses_are_refused)
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
	pair_connect(&p);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric, fence_while_connecting_ends_it)
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

Test(fabric, early_connection_waits_for_connect)
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

Test(fabric, event_fd_wakes_a_sleeper)
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

Test(fabric, event_fd_tells_of_a_connection_that_ends)
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
Test(fabric, event_fd_carries_a_connection)
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

Test(fabric, unknown_provider_is_refused_with_a_reason)
{
	struct kvx_dom_conf conf = {
	    .bind_host = "127.0.0.1", .provider = "no-such", .fabric_rma_min_bytes = UINT64_MAX};
	struct kvx_why why = {{0}};

	cr_assert_eq(T->probe(&conf, &why), -EOPNOTSUPP);
	cr_assert_not_null(strstr(why.text, "no-such"));
	conf.provider = "tcp";
	cr_assert_eq(T->probe(&conf, &why), 0);
	conf.bind_host = "0.0.0.0";
	cr_assert_lt(T->probe(&conf, &why), 0);
	KVX_TEST_END();
}

Test(fabric, mkey_that_is_none_is_refused)
{
	struct pair p;
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	struct kvx_rkey *rkey;
	int len;

	pair_open(&p);
	len = T->mkey_pack(p.b.mr, mkey, sizeof(mkey));
	cr_assert_gt(len, 0);
	cr_assert_eq(T->mkey_pack(p.b.mr, mkey, (size_t)len - 1), -ENOSPC);
	for (int i = 0; i < len; i++)
		cr_assert_eq(T->rkey_unpack(p.a.ep, mkey, (size_t)i, &rkey), -EINVAL);
	mkey[0] = 200;
	cr_assert_eq(T->rkey_unpack(p.a.ep, mkey, (size_t)len, &rkey), -EINVAL);
	pair_close(&p);
	KVX_TEST_END();
}
