/* Every call of the device library, and every allocation, fails once, at every place of a domain's
 * and a lane's life: an error comes back, or the lane is down, and nothing is left behind. */
#include <stdio.h>

#include "fault_alloc.h"
#include "verbs_rig.h"

#define TURNS 20000u

/* The life of a lane, given up at the first error. -errno: some step failed. */
static int life_dom(struct side *s, const struct kvx_verbs_conf *conf, const char *device)
{
	struct kvx_why why = {{0}};

	s->conf = (struct kvx_dom_conf){.verbs = *conf, .mem_kinds = 1u << KVX_MEM_HOST};
	s->rail = (struct kvx_rail){.port = 1, .gid_index = 3, .usable = true};
	snprintf(s->rail.name, sizeof(s->rail.name), "%s:1", device);
	snprintf(s->rail.device, sizeof(s->rail.device), "%s", device);
	s->conf.rail = &s->rail;
	return T->open(&s->conf, &s->dom, &s->limits, &why);
}

static int life_side(struct side *s, const struct kvx_verbs_conf *conf, const char *device)
{
	int rc = life_dom(s, conf, device);

	if (rc < 0)
		return rc;
	s->addr_len = sizeof(s->addr);
	rc = T->listen(s->dom, 0, &s->ep, s->addr, &s->addr_len);
	if (rc < 0)
		return rc;
	return T->mem_reg(s->dom, 0, &s->mem, KVX_ACCESS_READ | KVX_ACCESS_WRITE, &s->mr);
}

static int life_import(struct side *s, const struct side *other)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	int len = T->mkey_pack(other->mr, mkey, sizeof(mkey));

	return len < 0 ? len : T->rkey_unpack(s->ep, mkey, (size_t)len, &s->rkey);
}

static int pump_for(struct rig *r, const bool *up, const unsigned *done)
{
	for (unsigned i = 0; i < TURNS; i++) {
		uint64_t end = kvx_now_ns() + KVX_MS;

		pump(r);
		if (r->a.n_downs + r->b.n_downs > 0)
			return r->a.n_downs > 0 ? r->a.down_status : r->b.down_status;
		if (r->a.lost || r->b.lost)
			return -ENODEV;
		if (up != NULL ? r->a.up && r->b.up : *done > 0)
			return 0;
		while (up != NULL && kvx_now_ns() < end)
			pump(r);
	}
	cr_assert_fail("neither up nor down");
	return 0;
}

static int life_connect(struct rig *r)
{
	int rc = T->connect(r->a.ep, r->b.addr, r->b.addr_len);

	if (rc == 0)
		rc = T->connect(r->b.ep, r->a.addr, r->a.addr_len);
	return rc < 0 ? rc : pump_for(r, &r->a.up, NULL);
}

static int life_op(struct rig *r)
{
	struct kvx_op op = make_op(&r->a, KVX_OP_WRITE, 0, 0, 4096);
	int rc;

	for (unsigned i = 0; i < 100; i++) {
		rc = T->post(r->a.ep, &op, 1);
		if (rc != 0)
			break;
	}
	cr_assert_neq(rc, 0, "no room for ever");
	if (rc < 0)
		return rc;
	rc = pump_for(r, NULL, &r->a.n_done);
	return rc < 0 ? rc : r->a.status;
}

static int life(struct rig *r, const struct kvx_verbs_conf *conf)
{
	int rc = life_side(&r->a, conf, "fake0");

	if (rc == 0)
		rc = life_side(&r->b, conf, "fake1");
	if (rc == 0)
		rc = life_connect(r);
	if (rc == 0)
		rc = life_import(&r->a, &r->b);
	if (rc == 0)
		rc = life_op(r);
	return rc;
}

static void side_undo(struct side *s)
{
	if (s->rkey != NULL)
		T->rkey_free(s->rkey);
	if (s->ep != NULL) {
		cr_assert_eq(T->fence(s->ep), 0);
		T->ep_close(s->ep);
	}
	if (s->mr != NULL)
		T->mem_dereg(s->mr);
	if (s->dom != NULL)
		T->close(s->dom);
}

static void rig_begin(struct rig *r, uint8_t *bytes)
{
	memset(r, 0, sizeof(*r));
	for (unsigned i = 0; i < 2; i++) {
		struct side *s = i == 0 ? &r->a : &r->b;

		s->mem = (struct kvx_mem){.ops = &kvx_mem_host_ops,
					  .fd = -1,
					  .addr = bytes + i * 65536,
					  .len_bytes = 65536,
					  .page_bytes = 4096};
	}
	memset(bytes, 0x11, 65536);
	memset(bytes + 65536, 0x22, 65536);
}

static struct kvx_verbs_conf sweep_conf(void)
{
	struct kvx_verbs_conf conf = rig_conf();

	conf.inline_bytes = 64;
	return conf;
}

static void rig_end(struct rig *r)
{
	side_undo(&r->a);
	side_undo(&r->b);
	FAKE_VERBS_END();
}

/* At least that many calls can fail on the way: else the sweep has stopped sweeping. */
static void sweep_calls(enum fake_verbs_fn fn, int err, unsigned at_least, unsigned at_most)
{
	struct kvx_verbs_conf conf = sweep_conf();
	uint8_t *bytes = aligned_alloc(4096, 2 * 65536);
	unsigned n;

	for (n = 1;; n++) {
		bool fired;
		struct rig r;
		int rc;

		rig_reset();
		kvx_log_set_level(KVX_LOG_ERROR);
		rig_begin(&r, bytes);
		fake_verbs_fail(fn, n, err);
		rc = life(&r, &conf);
		fired = fake_verbs_fired();
		if (!fired)
			cr_assert_eq(rc, 0, "%d", rc);
		if (rc == 0)
			cr_assert_arr_eq(bytes, bytes + 65536, 4096);
		rig_end(&r);
		if (!fired || n == at_most)
			break;
	}
	cr_assert_gt(n, at_least);
	free(bytes);
}

Test(verbs_sweep, each_call_fails_once_for_want_of_memory)
{
	sweep_calls(FV_N_FNS, ENOMEM, 30, UINT32_MAX);
	KVX_TEST_END();
}

Test(verbs_sweep, each_call_fails_once_with_an_odd_error)
{
	sweep_calls(FV_N_FNS, EIO, 30, UINT32_MAX);
	KVX_TEST_END();
}

Test(verbs_sweep, each_post_fails_once)
{
	sweep_calls(FV_POST_SEND, ENOMEM, 4, UINT32_MAX);
	sweep_calls(FV_POST_SEND, EINVAL, 4, UINT32_MAX);
	KVX_TEST_END();
}

/* There are as many polls as time allows: the first ones. */
Test(verbs_sweep, each_poll_fails_once)
{
	sweep_calls(FV_POLL_CQ, EIO, 5, 20);
	KVX_TEST_END();
}

Test(verbs_sweep, each_destruction_fails_once_and_is_tried_again)
{
	struct kvx_verbs_conf conf = sweep_conf();
	uint8_t *bytes = aligned_alloc(4096, 2 * 65536);

	for (unsigned n = 1; n <= 4; n++) {
		struct rig r;

		rig_reset();
		kvx_log_set_level(KVX_LOG_ERROR);
		rig_begin(&r, bytes);
		cr_assert_eq(life(&r, &conf), 0);
		fake_verbs_fail(FV_DESTROY_QP, n, EBUSY);
		for (unsigned i = 0; i < 3 && T->fence(r.a.ep) < 0; i++)
			;
		for (unsigned i = 0; i < 3 && T->fence(r.b.ep) < 0; i++)
			;
		cr_assert(fake_verbs_fired());
		rig_end(&r);
	}
	free(bytes);
	KVX_TEST_END();
}

Test(verbs_sweep, each_allocation_fails_once)
{
	struct kvx_verbs_conf conf = sweep_conf();
	uint8_t *bytes = aligned_alloc(4096, 2 * 65536);
	unsigned n;

	for (n = 1;; n++) {
		struct rig r;
		bool fired;
		int rc;

		rig_reset();
		kvx_log_set_level(KVX_LOG_ERROR);
		rig_begin(&r, bytes);
		fault_alloc_arm(n);
		rc = life(&r, &conf);
		fired = fault_alloc_disarm();
		if (!fired)
			cr_assert_eq(rc, 0);
		rig_end(&r);
		if (!fired)
			break;
	}
	cr_assert_gt(n, 20);
	free(bytes);
	KVX_TEST_END();
}
