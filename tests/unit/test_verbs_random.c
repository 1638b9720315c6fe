/* Random ops under random packets, held completions and faults, against a model of both memories:
 * every op is reported once, what is done is where it belongs, and nothing else changes; nor does
 * anything after the fences of a lane that ended. The stand-in watches the queues meanwhile. */
#include "verbs_rig.h"

#define HALF        (REGION_BYTES / 2)
#define MAX_BATCHES 64u
#define BATCH_OPS   40u
#define STEPS       6000u

/* Ops that share a cookie, which is their place in the table. */
struct batch {
	struct kvx_op ops[BATCH_OPS];
	unsigned n, n_posted;
	bool in_use;
};
struct world {
	struct rig r;
	uint64_t seed;
	struct batch batches[MAX_BATCHES];
	unsigned order[MAX_BATCHES], n_order; /* batches in use, oldest first */
	uint64_t at;                          /* where destinations go next */
	/* The lower half of each memory is read only, the upper half written. */
	uint8_t *model_a, *model_b;
	bool faulty;
	bool holding;
	unsigned n_lanes, n_batches, n_failed_batches;
};

static uint64_t rnd(struct world *w, uint64_t below)
{
	return test_random(&w->seed, below);
}

static bool is_write(const struct kvx_op *op)
{
	return op->kind == KVX_OP_WRITE;
}

static uint64_t op_to(const struct kvx_op *op)
{
	return is_write(op) ? op->remote_offset : op->local_offset;
}

/* Does [at, at + len) meet what an open op writes? */
static bool is_taken(const struct world *w, uint64_t at, uint64_t len)
{
	for (unsigned i = 0; i < w->n_order; i++) {
		const struct batch *b = &w->batches[w->order[i]];

		for (unsigned k = 0; k < b->n; k++)
			if (at < op_to(&b->ops[k]) + b->ops[k].len_bytes &&
			    op_to(&b->ops[k]) < at + len)
				return true;
	}
	return false;
}

static struct batch *batch_new(struct world *w)
{
	for (unsigned i = 0; i < MAX_BATCHES; i++) {
		struct batch *b = &w->batches[i];

		if (b->in_use)
			continue;
		memset(b, 0, sizeof(*b));
		b->in_use = true;
		w->order[w->n_order++] = i;
		w->r.a.done[i] = w->r.a.failed[i] = 0;
		w->n_batches++;
		return b;
	}
	return NULL;
}

/* Like a block list: runs of neighbours, on one side or on both. */
static void batch_fill(struct world *w, struct batch *b)
{
	enum kvx_op_kind kind = rnd(w, 2) == 0 ? KVX_OP_WRITE : KVX_OP_READ;
	unsigned n = (unsigned)(1 + rnd(w, BATCH_OPS));
	uint64_t from = rnd(w, HALF);

	while (b->n < n) {
		uint64_t len = 1 + rnd(w, rnd(w, 8) == 0 ? 16384 : 700);
		struct kvx_op *op = &b->ops[b->n];

		if (rnd(w, 3) == 0 || from + len > HALF)
			from = rnd(w, HALF - len);
		if (w->at + len > HALF)
			w->at = 0;
		if (is_taken(w, HALF + w->at, len))
			break;
		*op = kind == KVX_OP_WRITE ? make_op(&w->r.a, kind, from, HALF + w->at, len)
					   : make_op(&w->r.a, kind, HALF + w->at, from, len);
		op->cookie = (uint64_t)(b - w->batches);
		b->n++;
		from += len;
		w->at += len + (rnd(w, 4) == 0 ? rnd(w, 100) : 0);
	}
}

static void batch_forget(struct world *w, unsigned i)
{
	unsigned kept = 0;

	w->batches[i].in_use = false;
	for (unsigned k = 0; k < w->n_order; k++)
		if (w->order[k] != i)
			w->order[kept++] = w->order[k];
	w->n_order = kept;
}

/* All of a batch is done: its bytes are there. */
static void batch_check(struct world *w, const struct batch *b)
{
	const struct rig *r = &w->r;

	for (unsigned i = 0; i < b->n; i++) {
		const struct kvx_op *op = &b->ops[i];
		const uint8_t *src = is_write(op) ? r->a.mem.addr + op->local_offset
						  : r->b.mem.addr + op->remote_offset;
		const uint8_t *dst = (is_write(op) ? r->b.mem.addr : r->a.mem.addr) + op_to(op);

		cr_assert_arr_eq(dst, src, op->len_bytes, "op %u of a batch", i);
		memcpy((is_write(op) ? w->model_b : w->model_a) + op_to(op), src, op->len_bytes);
	}
}

static void batches_reap(struct world *w)
{
	for (unsigned i = 0; i < MAX_BATCHES; i++) {
		struct batch *b = &w->batches[i];

		if (!b->in_use)
			continue;
		cr_assert_leq(w->r.a.done[i], b->n_posted, "reported more than once");
		cr_assert_eq(w->r.a.failed[i], 0, "failed before the fence");
		if (b->n == 0 || w->r.a.done[i] < b->n)
			continue;
		batch_check(w, b);
		batch_forget(w, i);
	}
}

/* What no op is about to change is as the model has it. */
static void world_check(struct world *w)
{
	struct rig *r = &w->r;

	for (unsigned i = 0; i < w->n_order; i++) {
		const struct batch *b = &w->batches[w->order[i]];

		for (unsigned k = 0; k < b->n_posted; k++) {
			const struct kvx_op *op = &b->ops[k];
			uint8_t *model = is_write(op) ? w->model_b : w->model_a;
			const uint8_t *real = is_write(op) ? r->b.mem.addr : r->a.mem.addr;

			memcpy(model + op_to(op), real + op_to(op), op->len_bytes);
		}
	}
	cr_assert_arr_eq(r->a.mem.addr, w->model_a, REGION_BYTES, "something else has changed");
	cr_assert_arr_eq(r->b.mem.addr, w->model_b, REGION_BYTES, "something else has changed");
}

static void do_post(struct world *w)
{
	struct batch *b = NULL;
	int rc;

	for (unsigned i = 0; i < w->n_order && b == NULL; i++)
		if (w->batches[w->order[i]].n_posted < w->batches[w->order[i]].n)
			b = &w->batches[w->order[i]];
	if (b == NULL) {
		b = batch_new(w);
		if (b == NULL)
			return;
		batch_fill(w, b);
		if (b->n == 0) {
			batch_forget(w, (unsigned)(b - w->batches));
			return;
		}
	}
	rc = T->post(w->r.a.ep, b->ops + b->n_posted, b->n - b->n_posted);
	if (rc > 0)
		b->n_posted += (unsigned)rc;
	else if (rc < 0)
		cr_assert(w->faulty, "post %d", rc);
}

static void do_hold(struct world *w)
{
	w->holding = !w->holding;
	fake_verbs_hold_completions(w->holding);
	if (!w->holding)
		fake_verbs_release(UINT32_MAX);
}

static void do_fault(struct world *w)
{
	struct fake_verbs_dev *dev = fake_verbs_dev((unsigned)rnd(w, 2));
	unsigned n_qps = fake_verbs_n_qps();

	switch (rnd(w, 10)) {
	case 0:
		fake_verbs_raise_qp(fake_verbs_qp((unsigned)rnd(w, n_qps)), IBV_EVENT_QP_FATAL);
		break;
	case 1:
		fake_verbs_raise_port(dev, 1, IBV_EVENT_PORT_ERR);
		fake_verbs_raise_port(dev, 1, IBV_EVENT_PORT_ACTIVE);
		break;
	case 2:
		fake_verbs_raise_cq(fake_verbs_qp((unsigned)rnd(w, n_qps))->send_cq);
		break;
	case 3:
		T->lease(rnd(w, 2) == 0 ? w->r.a.ep : w->r.b.ep, 1);
		break;
	case 4:
		fake_verbs_post_limit((unsigned)rnd(w, 20));
		break;
	case 5:
		fake_verbs_fail(FV_POST_SEND, (unsigned)(1 + rnd(w, 5)), rnd(w, 2) ? ENOMEM : EIO);
		break;
	case 6:
		T->lease(w->r.b.ep, 0);
		break;
	default:
		fake_verbs_break((unsigned)(1 + rnd(w, 50)),
				 (enum ibv_wc_status)(1 + rnd(w, IBV_WC_GENERAL_ERR)),
				 (uint32_t)rnd(w, 256), (enum fake_verbs_land)rnd(w, 3));
	}
}

/* Fences both ends. What was open is reported, and its memory changes no more. */
static void lane_end(struct world *w)
{
	struct rig *r = &w->r;

	if (rnd(w, 2) == 0)
		fake_verbs_land_late();
	cr_assert_eq(T->fence(r->a.ep), 0);
	cr_assert_eq(T->fence(r->b.ep), 0);
	world_check(w);
	fake_verbs_land_late();
	fake_verbs_run(UINT32_MAX);
	if (rnd(w, 2) == 0) {
		fake_verbs_hold_completions(w->holding = false);
		fake_verbs_release(UINT32_MAX);
	}
	for (unsigned i = 0; i < 100; i++)
		pump(r);
	for (unsigned i = 0; i < MAX_BATCHES; i++) {
		struct batch *b = &w->batches[i];

		if (!b->in_use)
			continue;
		cr_assert_eq(r->a.done[i], b->n_posted, "%u of %u reported", r->a.done[i],
			     b->n_posted);
		if (r->a.failed[i] == 0 && b->n_posted == b->n)
			batch_check(w, b);
		w->n_failed_batches += r->a.failed[i] > 0;
		batch_forget(w, i);
	}
	world_check(w);
}

static void lane_new(struct world *w)
{
	struct rig *r = &w->r;

	(void)fake_verbs_fired();
	(void)fake_verbs_broken();
	fake_verbs_post_limit(UINT32_MAX);
	fake_verbs_hold_completions(w->holding = false);
	fake_verbs_release(UINT32_MAX);
	side_end_ep(&r->a);
	side_end_ep(&r->b);
	for (unsigned i = 0; i < 20; i++) { /* what the device said meanwhile */
		(void)T->arm(r->a.dom);
		(void)T->arm(r->b.dom);
		pump(r);
	}
	r->a.up = r->b.up = false;
	r->a.n_downs = r->b.n_downs = 0;
	side_listen(&r->a, 0);
	side_listen(&r->b, 0);
	fake_verbs_mode(FV_AT_ONCE);
	sides_connect(r);
	fake_verbs_mode(FV_HELD);
	side_import(&r->a, &r->b);
	w->n_lanes++;
}

static void step(struct world *w)
{
	struct rig *r = &w->r;

	switch (rnd(w, 16)) {
	case 0:
	case 1:
	case 2:
		do_post(w);
		break;
	case 3:
	case 4:
		side_pump(&r->a);
		break;
	case 5:
		side_pump(&r->b);
		break;
	case 6:
		(void)T->arm(r->a.dom);
		break;
	case 7:
		if (rnd(w, 10) == 0)
			do_hold(w);
		else
			fake_verbs_release((unsigned)rnd(w, 3));
		break;
	case 8:
		if (w->faulty && rnd(w, 60) == 0)
			do_fault(w);
		break;
	default:
		for (uint64_t n = rnd(w, 12); n > 0; n--)
			(void)fake_verbs_run_one(rnd(w, 1000));
	}
	batches_reap(w);
	if (r->a.n_downs + r->b.n_downs > 0) {
		cr_assert(w->faulty, "%d %s", r->a.down_status, r->a.down_text);
		lane_end(w);
		lane_new(w);
	}
}

static struct kvx_verbs_conf random_conf(struct world *w)
{
	struct kvx_verbs_conf conf = rig_conf();

	conf.qps_per_lane = (uint32_t)(1 + rnd(w, 4));
	conf.post_batch = (uint32_t)(1 + rnd(w, 12));
	conf.sq_depth = conf.post_batch + 5 + (uint32_t)rnd(w, 20);
	conf.cq_depth = conf.qps_per_lane * conf.sq_depth; /* not one entry more */
	conf.max_sge = (uint32_t)(1 + rnd(w, 8));
	conf.inline_bytes = (uint32_t)rnd(w, 300);
	conf.stripe_bytes = 16384;
	conf.flush = rnd(w, 4) != 0;
	return conf;
}

static void world_run(uint64_t seed, bool faulty)
{
	struct world *w = calloc(1, sizeof(*w));
	struct kvx_verbs_conf conf;

	w->seed = seed * 0x9e3779b97f4a7c15ull | 1;
	w->faulty = faulty;
	rig_reset();
	kvx_log_set_level(KVX_LOG_ERROR);
	for (unsigned i = 0; i < 2; i++) {
		fake_verbs_dev(i)->attr.max_mr_size =
		    rnd(w, 2) == 0 ? UINT64_MAX : REGION_BYTES / 8 + rnd(w, REGION_BYTES / 2);
		fake_verbs_dev(i)->keeps_dead = rnd(w, 2) == 0;
	}
	conf = random_conf(w);
	rig_open_conf(&w->r, &conf);
	w->model_a = malloc(REGION_BYTES);
	w->model_b = malloc(REGION_BYTES);
	memcpy(w->model_a, w->r.a.mem.addr, REGION_BYTES);
	memcpy(w->model_b, w->r.b.mem.addr, REGION_BYTES);
	fake_verbs_mode(FV_HELD);
	fake_verbs_packet((uint32_t)(200 + rnd(w, 4000)));
	fake_verbs_late(true);
	/* With a flush, done means visible even where the device keeps writes to itself. */
	fake_verbs_lazy_writes(conf.flush && rnd(w, 2) == 0);
	for (unsigned i = 0; i < STEPS; i++) {
		step(w);
		if (i % 500 == 0)
			world_check(w);
		cr_assert_eq(fake_verbs_n_violations(), 0, "seed %llu step %u: %s",
			     (unsigned long long)seed, i, fake_verbs_violation());
	}
	lane_end(w);
	cr_assert_gt(w->n_batches, 100);
	free(w->model_a);
	free(w->model_b);
	rig_close(&w->r);
	free(w);
}

Test(verbs_random, ops_under_pressure_all_arrive)
{
	for (uint64_t seed = 1; seed <= 25; seed++)
		world_run(seed, false);
	KVX_TEST_END();
}

Test(verbs_random, faults_lose_nothing_and_nothing_lands_late, .timeout = 100)
{
	for (uint64_t seed = 1; seed <= 40; seed++)
		world_run(seed + 1000, true);
	KVX_TEST_END();
}
