/* What of the configuration a device can do: queues that hold what is asked of them, and values cut
 * to what there is. */
#include "verbs_rig.h"

#include "transport/verbs/verbs_priv.h"

static void expect_sound(const struct kvx_dom *dom)
{
	const struct kvx_verbs_conf *conf = &dom->conf;

	cr_assert(conf->qps_per_lane >= 1 && conf->qps_per_lane <= VERBS_MAX_QPS);
	cr_assert(conf->post_batch >= 1);
	cr_assert_geq(conf->sq_depth, conf->post_batch + VERBS_OP_WRS + 1);
	cr_assert_leq(conf->sq_depth, (uint32_t)dom->device.max_qp_wr);
	cr_assert_eq(dom->ep_entries, conf->qps_per_lane * conf->sq_depth);
	cr_assert_geq(dom->cq_entries, dom->ep_entries);
	cr_assert_leq(dom->cq_entries, (uint32_t)dom->device.max_cqe);
	cr_assert(conf->max_sge >= 1 && conf->max_sge <= (uint32_t)dom->device.max_sge);
	cr_assert_leq(conf->max_sge, (uint32_t)dom->device.max_sge_rd);
	cr_assert_leq(conf->max_sge, VERBS_MAX_SGE);
	cr_assert_leq(conf->inline_bytes, VERBS_MAX_INLINE);
	cr_assert_leq(conf->max_rd_atomic, (uint32_t)dom->device.max_qp_init_rd_atom);
	cr_assert_geq(conf->max_rd_atomic, 1);
	cr_assert_leq(conf->stripe_bytes, dom->max_msg_bytes);
	cr_assert(conf->stripe_bytes >= 4096 && conf->timeout >= 1 && conf->timeout <= 31);
	cr_assert_eq(dom->limits.max_op_bytes, conf->stripe_bytes);
	cr_assert(conf->hop_limit >= 1 && conf->hop_limit <= 255);
}

static int number(uint64_t *seed, uint64_t most)
{
	uint64_t m = test_random(seed, 3) == 0 ? 8 : most;

	return (int)test_random(seed, m + 1);
}

Test(verbs_conf, random_values_come_out_sound_or_are_refused)
{
	struct kvx_dom *dom = calloc(1, sizeof(*dom));
	unsigned n_sound = 0;
	uint64_t seed = 41;

	kvx_log_set_level(KVX_LOG_ERROR);
	for (unsigned i = 0; i < 20000; i++) {
		struct kvx_why why = {{0}};
		struct kvx_verbs_conf conf = {
		    .qps_per_lane = (uint32_t)number(&seed, 40),
		    .sq_depth = (uint32_t)number(&seed, 70000),
		    .cq_depth = (uint32_t)number(&seed, 2000000),
		    .post_batch = (uint32_t)number(&seed, 5000),
		    .max_sge = (uint32_t)number(&seed, 64),
		    .inline_bytes = (uint32_t)number(&seed, 5000),
		    .stripe_bytes = test_random(&seed, 1ull << 34),
		    .max_rd_atomic = (uint32_t)number(&seed, 300),
		    .timeout = (uint32_t)number(&seed, 40),
		    .hop_limit = (uint32_t)number(&seed, 300),
		};

		dom->device = (struct ibv_device_attr){
		    .max_qp = 1 + number(&seed, 100000),
		    .max_qp_wr = 1 + number(&seed, 40000),
		    .max_cqe = 1 + number(&seed, 4000000),
		    .max_sge = 1 + number(&seed, 40),
		    .max_sge_rd = 1 + number(&seed, 40),
		    .max_qp_rd_atom = 1 + number(&seed, 200),
		    .max_qp_init_rd_atom = 1 + number(&seed, 200),
		};
		dom->max_msg_bytes = (uint32_t)test_random(&seed, 1ull << 31);
		if (verbs_conf_fit(dom, &conf, &why) == 0) {
			expect_sound(dom);
			n_sound++;
		} else {
			cr_assert_gt(strlen(why.text), 10);
		}
	}
	cr_assert_gt(n_sound, 5000);
	free(dom);
	KVX_TEST_END();
}

Test(verbs_conf, room_for_64_lanes_unless_told_otherwise)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct side s = {0};

	rig_reset();
	side_dom(&s, "fake0:1", &conf);
	cr_assert_eq(s.dom->cq_entries, 64 * 2 * 64);
	T->close(s.dom);
	FAKE_VERBS_END();
	KVX_TEST_END();
}

/* A completion queue that is full of lanes refuses one more, and takes it when another has gone. */
Test(verbs_conf, no_lane_beyond_what_the_completion_queue_holds)
{
	struct kvx_verbs_conf conf = rig_conf();
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t len = sizeof(addr);
	struct kvx_ep *eps[3], *more;
	struct kvx_tevent ev[4];
	struct side s = {0};

	rig_reset();
	conf.cq_depth = 3 * 128 + 100;
	side_dom(&s, "fake0:1", &conf);
	kvx_log_set_level(KVX_LOG_ERROR);
	for (unsigned i = 0; i < 3; i++, len = sizeof(addr))
		cr_assert_eq(T->listen(s.dom, 0, &eps[i], addr, &len), 0);
	cr_assert_eq(T->listen(s.dom, 0, &more, addr, &len), -EDQUOT);
	cr_assert_eq(T->fence(eps[1]), 0);
	T->ep_close(eps[1]);
	for (unsigned i = 0; i < 10; i++)
		cr_assert_eq(T->progress(s.dom, ev, 4), 0);
	len = sizeof(addr);
	cr_assert_eq(T->listen(s.dom, 0, &eps[1], addr, &len), 0);
	for (unsigned i = 0; i < 3; i++) {
		cr_assert_eq(T->fence(eps[i]), 0);
		T->ep_close(eps[i]);
	}
	T->close(s.dom);
	FAKE_VERBS_END();
	KVX_TEST_END();
}

Test(verbs_conf, smaller_mtu_of_the_two_sides_is_taken)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct kvx_op op;
	struct rig r;

	rig_reset();
	fake_verbs_dev(0)->ports[0].attr.active_mtu = IBV_MTU_4096;
	rig_open_conf(&r, &conf);
	op = make_op(&r.a, KVX_OP_WRITE, 0, 0, 65536);
	run_ops(&r, &op, 1);
	cr_assert_eq(r.a.n_failed, 0);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_conf, reads_fit_what_the_other_side_serves)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct kvx_op op;
	struct rig r;

	rig_reset();
	fake_verbs_dev(1)->attr.max_qp_rd_atom = 1;
	fake_verbs_dev(1)->attr.max_qp_init_rd_atom = 2;
	rig_open_conf(&r, &conf);
	op = make_op(&r.a, KVX_OP_READ, 0, 0, 65536);
	run_ops(&r, &op, 1);
	cr_assert_eq(r.a.n_failed, 0);
	rig_close(&r);
	KVX_TEST_END();
}

/* The other side has fewer queue pairs: those that both have are used. */
Test(verbs_conf, sides_with_different_numbers_of_queue_pairs_connect)
{
	struct kvx_verbs_conf one = rig_conf(), four = rig_conf();
	struct kvx_op ops[8];
	struct rig r;

	memset(&r, 0, sizeof(r));
	rig_reset();
	one.qps_per_lane = 1;
	four.qps_per_lane = 4;
	cr_assert_eq(kvx_guard_install(), 0);
	side_dom(&r.a, "fake0:1", &four);
	side_dom(&r.b, "fake1:1", &one);
	side_listen(&r.a, 0);
	side_listen(&r.b, 0);
	sides_connect(&r);
	side_map(&r.a, 0, 0, 1);
	side_map(&r.b, 0, KVX_ACCESS_WRITE, 2);
	side_import(&r.a, &r.b);
	for (unsigned i = 0; i < 8; i++)
		ops[i] = make_op(&r.a, KVX_OP_WRITE, i << 16, i << 16, 1 << 16);
	run_ops(&r, ops, 8);
	cr_assert_eq(r.a.n_failed, 0);
	cr_assert_arr_eq(r.b.mem.addr, r.a.mem.addr, 8 << 16);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_conf, infiniband_ports_connect_by_lid)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct kvx_op op;
	struct rig r;

	rig_reset();
	for (unsigned i = 0; i < 2; i++) {
		struct fake_verbs_port *port = &fake_verbs_dev(i)->ports[0];

		port->attr.link_layer = IBV_LINK_LAYER_INFINIBAND;
		port->attr.lid = (uint16_t)(7 + i);
		port->gids[0].gid_type = IBV_GID_TYPE_IB;
	}
	rig_open_conf(&r, &conf);
	op = make_op(&r.a, KVX_OP_WRITE, 0, 0, 65536);
	run_ops(&r, &op, 1);
	cr_assert_eq(r.a.n_failed, 0);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_conf, infiniband_and_ethernet_do_not_connect)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct rig r;

	memset(&r, 0, sizeof(r));
	rig_reset();
	fake_verbs_dev(0)->ports[0].attr.link_layer = IBV_LINK_LAYER_INFINIBAND;
	side_dom(&r.a, "fake0:1", &conf);
	side_dom(&r.b, "fake1:1", &conf);
	side_listen(&r.a, 0);
	side_listen(&r.b, 0);
	kvx_log_set_level(KVX_LOG_ERROR);
	cr_assert_eq(T->connect(r.a.ep, r.b.addr, r.b.addr_len), -EOPNOTSUPP);
	cr_assert_eq(T->connect(r.b.ep, r.a.addr, r.a.addr_len), -EOPNOTSUPP);
	rig_close(&r);
	KVX_TEST_END();
}

/* Where the queue pairs do not fit each other, the proof fails and the lane never comes up. */
Test(verbs_conf, lane_to_a_stranger_does_not_come_up)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct rig r;

	memset(&r, 0, sizeof(r));
	rig_reset();
	side_dom(&r.a, "fake0:1", &conf);
	side_dom(&r.b, "fake1:1", &conf);
	side_listen(&r.a, 0);
	side_listen(&r.b, 0);
	r.b.addr[36 + 4] ^= 1; /* the first packet's number of the first queue pair */
	cr_assert_eq(T->connect(r.a.ep, r.b.addr, r.b.addr_len), 0);
	cr_assert_eq(T->connect(r.b.ep, r.a.addr, r.a.addr_len), 0);
	PUMP_UNTIL(&r, r.b.n_downs == 1);
	cr_assert(!r.b.up);
	cr_assert_eq(r.b.down_status, -EHOSTUNREACH);
	rig_close(&r);
	KVX_TEST_END();
}

Test(verbs_conf, packet_numbers_are_random)
{
	struct kvx_verbs_conf conf = rig_conf();
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	uint32_t psn, last = 0, n_same = 0;
	size_t len = sizeof(addr);
	struct side s = {0};
	struct kvx_ep *ep;

	rig_reset();
	side_dom(&s, "fake0:1", &conf);
	for (unsigned i = 0; i < 8; i++) {
		struct verbs_addr decoded;

		len = sizeof(addr);
		cr_assert_eq(T->listen(s.dom, 0, &ep, addr, &len), 0);
		cr_assert_eq(verbs_addr_decode(addr, len, &decoded), 0);
		psn = decoded.qps[0].psn;
		n_same += psn == last;
		last = psn;
		cr_assert_neq(decoded.qps[0].psn, decoded.qps[1].psn);
		cr_assert_eq(T->fence(ep), 0);
		T->ep_close(ep);
	}
	cr_assert_eq(n_same, 0);
	T->close(s.dom);
	FAKE_VERBS_END();
	KVX_TEST_END();
}

Test(verbs_conf, inline_space_is_what_queue_pairs_have)
{
	struct kvx_verbs_conf conf = rig_conf();
	struct kvx_op op;
	struct rig r;

	rig_reset();
	conf.inline_bytes = 1024; /* the stand-in has 512 */
	rig_open_conf(&r, &conf);
	op = make_op(&r.a, KVX_OP_WRITE, 0, 0, 513);
	run_ops(&r, &op, 1);
	cr_assert_eq(fake_verbs_count().inlined, 0);
	op.len_bytes = 512;
	run_ops(&r, &op, 1);
	cr_assert_eq(fake_verbs_count().inlined, 1);
	rig_close(&r);
	KVX_TEST_END();
}
