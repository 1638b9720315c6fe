/* A peer that lies: messages that the backend would never send, sent past it over its own
 * connection. Whatever comes, only what was granted may change, and the lane dies rather than
 * believe it. */
#include <unistd.h>

#include "fabric_pair.h"
#include "test_end.h"
#include "transport/fabric/fabric_priv.h"

#define BIG 65536u /* large enough to be announced ahead and placed */

/* Everything of b's region outside of [from, from + len) is as it was. */
struct watch {
	uint8_t *before;
};

static void watch_start(struct watch *w, const struct pair *p)
{
	w->before = malloc(REGION_BYTES);
	memcpy(w->before, p->b.mem.addr, REGION_BYTES);
}

static void watch_end(struct watch *w, const struct pair *p, uint64_t from, uint64_t len)
{
	memcpy(w->before + from, p->b.mem.addr + from, len);
	cr_assert_arr_eq(p->b.mem.addr, w->before, REGION_BYTES, "other bytes changed");
	free(w->before);
}

static void raw_send(struct pair *p, const void *buf, size_t len)
{
	struct iovec iov = {(void *)(uintptr_t)buf, len};
	void *desc = NULL;
	struct fi_msg msg = {.msg_iov = &iov, .desc = &desc, .iov_count = 1, .addr = p->a.ep->peer};

	cr_assert_eq(fi_sendmsg(p->a.ep->fid, &msg, FI_COMPLETION), 0);
}

/* The head of a request for one range of b's region; returns its length. */
static uint32_t raw_head(struct pair *p, uint8_t *out, enum kvx_pack_type type, uint64_t offset,
			 uint64_t len)
{
	struct kvx_pack_writer w;

	kvx_pack_begin(&w, out, KVX_PACK_MAX_OPS, UINT64_MAX);
	cr_assert_eq(kvx_pack_add(&w, &p->a.rkey->key, offset, len), 0);
	return kvx_pack_end(&w, type, p->a.ep->peer_secret, 0x100);
}

static void expect_broken(struct pair *p, int status)
{
	PUMP_UNTIL(p, p->b.down);
	cr_assert_eq(p->b.down_status, status, "status %d", p->b.down_status);
	PUMP_UNTIL(p, p->a.down);
}

Test(fabric_serve, garbage_ends_the_lane)
{
	struct pair p;
	struct watch w;

	pair_open(&p);
	watch_start(&w, &p);
	raw_send(&p, "what is this", 12);
	expect_broken(&p, -EPROTO);
	watch_end(&w, &p, 0, 0);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_serve, wrong_secret_ends_the_lane)
{
	struct pair p;
	struct watch w;
	uint8_t buf[KVX_PACK_HEAD_BYTES];
	uint32_t len;

	pair_open(&p);
	watch_start(&w, &p);
	len = raw_head(&p, buf, KVX_PACK_WRITE, 0, 8);
	buf[8] ^= 1;
	raw_send(&p, buf, len + 8);
	expect_broken(&p, -EPROTO);
	watch_end(&w, &p, 0, 0);
	pair_close(&p);
	KVX_TEST_END();
}

/* Anyone who knows its address can send to a connectionless endpoint. */
Test(fabric_serve, stranger_on_a_connectionless_endpoint_harms_nobody)
{
	struct pair p;
	struct watch w;
	uint8_t buf[KVX_PACK_HEAD_BYTES];
	uint32_t len;

	pair_conf(&p, "tcp;ofi_rxm", UINT64_MAX);
	pair_open_conf(&p);
	watch_start(&w, &p);
	len = raw_head(&p, buf, KVX_PACK_WRITE, 0, 8);
	buf[8] ^= 1;
	raw_send(&p, buf, len + 8);
	raw_send(&p, "what is this", 12);
	PUMP_UNTIL(&p, p.b.dom->n_bad == 2);
	watch_end(&w, &p, 0, 0);
	cr_assert_not(p.b.down);
	run_blocks(&p, KVX_OP_WRITE, 4096, 10);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_serve, second_hello_ends_the_lane)
{
	struct pair p;
	uint8_t buf[64];
	struct kvx_pack_hello hello = {1, 1, 1, 1};

	pair_open(&p);
	raw_send(&p, buf, kvx_pack_hello(buf, p.a.ep->peer_secret, &hello));
	expect_broken(&p, -EPROTO);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_serve, answers_to_nothing_end_the_lane)
{
	static const enum kvx_pack_type types[] = {KVX_PACK_ACK, KVX_PACK_DATA,
						   KVX_PACK_DATA_AHEAD};

	for (unsigned i = 0; i < 3; i++) {
		struct pair p;
		uint8_t buf[64] = {0};
		struct kvx_pack_ack ack = {0x101, 0};
		uint32_t len;

		pair_open(&p);
		if (types[i] == KVX_PACK_ACK)
			len = kvx_pack_acks(buf, sizeof(buf), p.a.ep->peer_secret, &ack, 1);
		else
			len = kvx_pack_data(buf, types[i], p.a.ep->peer_secret, 0x101, 8);
		raw_send(&p, buf, types[i] == KVX_PACK_DATA ? len + 8 : len);
		expect_broken(&p, -EPROTO);
		pair_close(&p);
	}
	KVX_TEST_END();
}

/* b reads; a answers with another number of bytes, or says that it is done without any. */
static void answer_a_read_with(enum kvx_pack_type type, uint32_t data_bytes)
{
	struct pair p;
	struct watch w;
	uint8_t buf[KVX_PACK_HDR_BYTES + 4096] = {0};
	struct kvx_pack_ack ack = {.status = 0};
	struct kvx_op op;
	uint32_t len;

	pair_open(&p);
	watch_start(&w, &p);
	op = make_op(&p.b, KVX_OP_READ, 0, 0, 2048);
	cr_assert_eq(T->post(p.b.ep, &op, 1), 1);
	ack.id = fab_req_id(&p.b.ep->reqs[0]);
	if (type == KVX_PACK_ACK)
		len = kvx_pack_acks(buf, sizeof(buf), p.a.ep->peer_secret, &ack, 1);
	else
		len = kvx_pack_data(buf, type, p.a.ep->peer_secret, ack.id, data_bytes);
	raw_send(&p, buf, type == KVX_PACK_DATA ? len + data_bytes : len);
	for (uint64_t end = kvx_now_ns() + WAIT_NS; !p.b.down;) { /* a does not answer itself */
		cr_assert_lt(kvx_now_ns(), end);
		side_pump(&p.b);
	}
	cr_assert_eq(p.b.down_status, -EPROTO);
	PUMP_UNTIL(&p, p.b.n_done == 1);
	cr_assert_lt(p.b.status, 0);
	watch_end(&w, &p, 0, 0);
	pair_close(&p);
}

Test(fabric_serve, wrong_answer_to_a_read_ends_the_lane)
{
	answer_a_read_with(KVX_PACK_DATA, 2047);
	answer_a_read_with(KVX_PACK_DATA, 4096);
	answer_a_read_with(KVX_PACK_DATA_AHEAD, 2049);
	answer_a_read_with(KVX_PACK_ACK, 0);
	KVX_TEST_END();
}

Test(fabric_serve, announcing_too_much_ends_the_lane)
{
	struct pair p;
	struct watch w;
	uint8_t buf[KVX_PACK_HEAD_BYTES];
	struct kvx_pack_writer wr;

	pair_open(&p);
	watch_start(&w, &p);
	/* Above the message size, though inside the region. */
	raw_send(&p, buf, raw_head(&p, buf, KVX_PACK_WRITE_AHEAD, 0, 1u << 20));
	expect_broken(&p, -EPROTO);
	watch_end(&w, &p, 0, 0);
	pair_close(&p);

	pair_open(&p);
	watch_start(&w, &p);
	kvx_pack_begin(&wr, buf, KVX_PACK_MAX_OPS, UINT64_MAX);
	for (unsigned i = 0; i < FAB_IOV_MAX + 1; i++)
		cr_assert_eq(kvx_pack_add(&wr, &p.a.rkey->key, i * 64, 64), 0);
	raw_send(&p, buf, kvx_pack_end(&wr, KVX_PACK_WRITE_AHEAD, p.a.ep->peer_secret, 1));
	expect_broken(&p, -EPROTO);
	watch_end(&w, &p, 0, 0);
	pair_close(&p);
	KVX_TEST_END();
}

/* What comes after the announcement is shorter or longer than it said. */
static void announce_and_send(uint32_t data_bytes)
{
	struct pair p;
	struct watch w;
	uint8_t head[KVX_PACK_HEAD_BYTES];
	uint8_t *data = calloc(1, data_bytes);

	pair_open(&p);
	watch_start(&w, &p);
	raw_send(&p, head, raw_head(&p, head, KVX_PACK_WRITE_AHEAD, 4096, BIG));
	raw_send(&p, data, data_bytes);
	PUMP_UNTIL(&p, p.b.down && p.a.down);
	watch_end(&w, &p, 4096, BIG);
	pair_close(&p);
	free(data);
}

Test(fabric_serve, data_of_another_length_stays_inside_its_range)
{
	announce_and_send(BIG - 1);
	announce_and_send(BIG + 1);
	announce_and_send(3 * BIG);
	KVX_TEST_END();
}

/* The announcement has come, the data has not; b is about to receive into its region. */
static void open_placing(struct pair *p, struct watch *w)
{
	uint8_t head[KVX_PACK_HEAD_BYTES];

	pair_open(p);
	watch_start(w, p);
	raw_send(p, head, raw_head(p, head, KVX_PACK_WRITE_AHEAD, 0, BIG));
	PUMP_UNTIL(p, p->b.ep->placing.active);
}

static void send_rest_and_check(struct pair *p, struct watch *w)
{
	uint8_t *data = calloc(1, BIG);

	if (p->a.ep->fid != NULL)
		raw_send(p, data, BIG);
	PUMP_UNTIL(p, p->b.down && p->a.down);
	watch_end(w, p, 0, 0);
	free(data);
}

Test(fabric_serve, memory_unregistered_while_placing_is_taken_back)
{
	struct pair p;
	struct watch w;

	open_placing(&p, &w);
	T->mem_dereg(p.b.mr);
	p.b.mr = NULL;
	side_pump(&p.b);
	cr_assert(p.b.down);
	cr_assert_eq(p.b.down_status, -ECANCELED);
	send_rest_and_check(&p, &w);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_serve, lease_over_while_placing_closes_the_endpoint)
{
	struct pair p;
	struct watch w;

	open_placing(&p, &w);
	T->lease(p.b.ep, 0);
	send_rest_and_check(&p, &w);
	cr_assert_eq(p.b.down_status, -EHOSTDOWN);
	pair_close(&p);
	KVX_TEST_END();
}

/* b closes the endpoint: a may still read what b has sent it. */
Test(fabric_serve, writes_of_the_side_that_closes_wait_for_its_fence)
{
	struct pair p;
	struct watch w;
	struct kvx_op op;

	open_placing(&p, &w);
	op = make_op(&p.b, KVX_OP_WRITE, 0, 0, 4096);
	cr_assert_eq(T->post(p.b.ep, &op, 1), 1);
	T->lease(p.b.ep, 0);
	for (unsigned i = 0; i < 100 && !p.b.down; i++)
		side_pump(&p.b);
	cr_assert(p.b.down);
	side_pump(&p.b);
	cr_assert_eq(p.b.n_done, 0);
	T->fence(p.b.ep);
	side_pump(&p.b);
	cr_assert_eq(p.b.n_failed, 1);
	T->fence(p.b.ep);
	side_pump(&p.b);
	cr_assert_eq(p.b.n_done, 1);
	send_rest_and_check(&p, &w);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_serve, fence_while_placing_takes_the_memory_back)
{
	struct pair p;
	struct watch w;

	open_placing(&p, &w);
	T->fence(p.b.ep);
	p.b.down = true;
	send_rest_and_check(&p, &w);
	pair_close(&p);
	KVX_TEST_END();
}

/* A large op that is refused: its data is dropped, the lane lives. */
Test(fabric_serve, refused_large_ops_leave_the_lane_alone)
{
	struct pair p;
	struct watch w;
	struct kvx_op op;

	pair_open(&p);
	watch_start(&w, &p);
	op = make_op(&p.a, KVX_OP_WRITE, 0, 0, BIG);
	p.a.rkey->key.nonce ^= 1;
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -EACCES);
	op.kind = KVX_OP_READ;
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -EACCES);
	p.a.rkey->key.nonce ^= 1;
	T->lease(p.b.ep, 0);
	op.kind = KVX_OP_WRITE;
	run_ops(&p, &op, 1);
	cr_assert_eq(p.a.status, -EHOSTDOWN);
	T->lease(p.b.ep, UINT64_MAX);
	watch_end(&w, &p, 0, 0);
	cr_assert_not(p.a.down || p.b.down);
	run_blocks(&p, KVX_OP_WRITE, 65536, 10);
	pair_close(&p);
	KVX_TEST_END();
}

Test(fabric_serve, large_read_into_unregistered_memory_is_dropped)
{
	struct pair p;
	struct kvx_op op;
	uint8_t *before = malloc(REGION_BYTES);

	pair_open(&p);
	memcpy(before, p.a.mem.addr, REGION_BYTES);
	op = make_op(&p.a, KVX_OP_READ, 0, 4096, BIG);
	cr_assert_eq(T->post(p.a.ep, &op, 1), 1);
	T->mem_dereg(p.a.mr);
	p.a.mr = NULL;
	PUMP_UNTIL(&p, p.a.n_done == 1);
	cr_assert_eq(p.a.status, -ECANCELED);
	cr_assert_not(p.a.down);
	cr_assert_arr_eq(p.a.mem.addr, before, REGION_BYTES);
	free(before);
	pair_close(&p);
	KVX_TEST_END();
}

/* Where memory is not there for a large op, the library's system call fails: the lane is lost, the
 * process lives. */
Test(fabric_serve, memory_fault_of_a_large_op_ends_the_lane)
{
	struct pair p;
	struct kvx_op op;
	int fd = memfd_create("hole", MFD_CLOEXEC);

	pair_open(&p);
	cr_assert_eq(ftruncate(fd, 4096), 0);
	cr_assert_neq(
	    mmap(p.b.mem.addr, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0),
	    MAP_FAILED);
	op = make_op(&p.a, KVX_OP_WRITE, 0, 0, BIG);
	cr_assert_eq(T->post(p.a.ep, &op, 1), 1);
	PUMP_UNTIL(&p, p.a.down && p.b.down && p.a.n_done == 1);
	cr_assert_lt(p.a.status, 0);
	close(fd);
	pair_close(&p);
	KVX_TEST_END();
}
