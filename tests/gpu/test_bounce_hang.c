/* A GPU whose calls do not return, between two nodes over fabric's tcp: its own transfers end in
 * time and say why, and host memory and the other GPU, on the same lane of the same two daemons, go
 * on as if nothing was. On the stand-in for a GPU runtime only: real GPUs do not hang on demand. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "gpu_rig.h"

#define N_BLOCKS    16
#define N_PLANES    2
#define BLOCK_BYTES (16u * 1024)
/* A small transfer takes less, but for one in a hundred on a machine that has other things to do,
 * too; and none of them waits for the device, which takes at least a second. */
#define MOST_MS     200
#define HANG_MS     1000
#define DEADLINE_MS 1500
#define TORN_MS     5000 /* ... when its lane is torn down in the middle */
#define SOURCE_MS   4000 /* a deadline that comes long after the hang was seen */
#define BACK_MS     5000 /* until a device that is let go is used again */

static const char *const sets[] = {"gpu.call_timeout_ms=400ms", "gpu.fence_timeout_ms=1s", NULL};

static struct test_node near_node, far_node;

/* What moves between the two nodes: memory at each end, and how long it took at most. */
struct way {
	const char *name;
	struct gpu_engine near, far;
	struct kvxfer_import *import_;
	long most_ms;
	unsigned n, n_slow;
};
static struct way host, sound, hung;

static void way_open(struct way *w, const char *name, int near_dev, int far_dev)
{
	struct gpu_engine_conf conf = {.name = name,
				       .dev = near_dev,
				       .n_planes = N_PLANES,
				       .n_blocks = N_BLOCKS,
				       .block_bytes = BLOCK_BYTES};

	w->name = name;
	w->most_ms = 0;
	w->n = w->n_slow = 0;
	gpu_engine_open(&w->near, &near_node, &conf);
	conf.dev = far_dev;
	gpu_engine_open(&w->far, &far_node, &conf);
	test_fill(&w->near.e, 1);
	gpu_engine_put(&w->near);
	w->import_ = test_engine_import(&w->near.e, &w->far.e);
}

static void way_close(struct way *w)
{
	gpu_engine_close(&w->near);
	gpu_engine_close(&w->far);
}

static uint64_t way_submit(struct way *w, int op, uint32_t n, uint32_t deadline_ms)
{
	static uint32_t ids[N_BLOCKS];
	struct kvxfer_blocks blocks = {
	    .n_planes = N_PLANES, .n_blocks = n, .local_blocks = ids, .remote_blocks = ids};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .op = op,
				    .region = w->near.e.region,
				    .import_ = w->import_,
				    .blocks = &blocks,
				    .deadline_ms = deadline_ms};
	uint64_t id;

	for (uint32_t i = 0; i < N_BLOCKS; i++)
		ids[i] = i;
	cr_assert_eq(kvxfer_transfer_submit(w->near.e.client, &t, &id), 0);
	return id;
}

static struct test_event way_wait(struct way *w, uint64_t id)
{
	return test_wait(&w->near.e, KVXFER_EVENT_TERMINAL, id, RIG_WAIT_MS);
}

/* There and back. */
static void way_move(struct way *w)
{
	for (int op = KVXFER_READ; op <= KVXFER_WRITE; op++) {
		long since = rig_now_ms(), took;
		struct test_event ev = way_wait(w, way_submit(w, op, 2, 0));

		cr_assert_eq(ev.status, KVXFER_OK, "%s: %s %s", w->name,
			     kvxfer_status_name(ev.status), ev.text);
		cr_assert_str_eq(ev.transport, "fabric");
		took = rig_now_ms() - since;
		w->most_ms = took > w->most_ms ? took : w->most_ms;
		w->n_slow += took >= MOST_MS;
		w->n++;
	}
}

/* Its device was not lost: it moves again once the daemon has seen that it answers. */
static void way_expect_back(struct way *w)
{
	long end = rig_now_ms() + BACK_MS;

	while (way_wait(w, way_submit(w, KVXFER_WRITE, 2, 0)).status != KVXFER_OK &&
	       rig_now_ms() < end)
		rig_sleep_ms(20);
	way_move(w);
}

static void way_expect_quick(const struct way *w)
{
	fprintf(stderr, "# %s: %u transfers, %ld ms at most\n", w->name, w->n, w->most_ms);
	cr_assert_gt(w->n, 10);
	cr_assert_leq(w->n_slow, 1 + w->n / 100, "%s: %u of %u transfers were slow", w->name,
		      w->n_slow, w->n);
	cr_assert_lt(w->most_ms, HANG_MS, "%s: a transfer took %ld ms", w->name, w->most_ms);
}

static void others_move_for(long ms)
{
	for (long end = rig_now_ms() + ms; rig_now_ms() < end;) {
		way_move(&host);
		way_move(&sound);
	}
}

/* Others go on until the one that hangs has ended. */
static struct test_event others_move_until_end(uint64_t id)
{
	struct test_event ev;

	for (long end = rig_now_ms() + RIG_WAIT_MS; rig_now_ms() < end;) {
		if (test_wait_maybe(&hung.near.e, KVXFER_EVENT_TERMINAL, id, 0, &ev))
			return ev;
		way_move(&host);
		way_move(&sound);
	}
	return way_wait(&hung, id);
}

/* Device 0, of one node's daemon. */
static void block(const struct test_node *node, enum standin_call call, bool on)
{
	standin_block_on(call, node->pid, 0, on);
	if (call == STANDIN_COPY) {
		standin_block_on(STANDIN_COPY_BATCH, node->pid, 0, on);
		standin_block_on(STANDIN_LAUNCH, node->pid, 0, on);
	}
}

static bool begin(int near_dev, int far_dev)
{
	if (!rig_standin())
		return false;
	test_node_start(&near_node, sets);
	test_node_start(&far_node, sets);
	way_open(&host, "host memory", -1, -1);
	way_open(&sound, "the other GPU", 1, 1);
	way_open(&hung, "the GPU that hangs", near_dev, far_dev);
	for (unsigned i = 0; i < 3; i++) {
		way_move(&host);
		way_move(&sound);
		way_move(&hung);
	}
	host.most_ms = sound.most_ms = 0;
	host.n = sound.n = host.n_slow = sound.n_slow = 0;
	return true;
}

static void end(void)
{
	way_close(&host);
	way_close(&sound);
	way_close(&hung);
	cr_expect_eq(standin_n_violations(), 0, "%s", standin_violation());
	test_node_fini(&near_node);
	test_node_fini(&far_node);
	rig_end();
}

static const enum standin_call calls[] = {STANDIN_COPY, STANDIN_EVENT_RECORD, STANDIN_EVENT_QUERY};
#define N_CALLS (sizeof(calls) / sizeof(calls[0]))

/* Bytes that leave the device: what has not been sent is never sent, so its transfer can end. */
static void source_hangs(enum standin_call call)
{
	if (!begin(0, -1))
		return;
	block(&near_node, call, true);
	uint64_t id = way_submit(&hung, KVXFER_WRITE, 2, SOURCE_MS);
	long since = rig_now_ms();
	struct test_event ev = others_move_until_end(id);
	fprintf(stderr, "# %s hangs: after %ld ms %s: %s\n", standin_call_name(call),
		rig_now_ms() - since, kvxfer_status_name(ev.status), ev.text);
	cr_assert_eq(ev.status, KVXFER_TRANSPORT, "%s: %s", kvxfer_status_name(ev.status), ev.text);
	cr_assert(strstr(ev.text, "does not answer") != NULL, "%s", ev.text);
	cr_assert_lt(rig_now_ms() - since, SOURCE_MS + MOST_MS);
	others_move_for(300);
	way_expect_quick(&host);
	way_expect_quick(&sound);
	block(&near_node, call, false);
	way_expect_back(&hung);
	end();
}

Test(gpu_bounce_hang, a_source_that_hangs_holds_up_nobody_else, .timeout = 120)
{
	for (unsigned i = 0; i < N_CALLS; i++)
		source_hangs(calls[i]);
}

/* Bytes that may land at any time: their transfer ends with the reset of the device, for which
 * their lane is torn down. Whoever else is on it waits for that and then goes on. */
static void target_hangs(enum standin_call call)
{
	if (!begin(-1, 0))
		return;
	block(&far_node, call, true);
	long since = rig_now_ms();
	uint64_t id = way_submit(&hung, KVXFER_WRITE, 2, DEADLINE_MS);
	others_move_for(DEADLINE_MS);
	way_expect_quick(&host);
	way_expect_quick(&sound);
	struct test_event ev = others_move_until_end(id);
	fprintf(stderr, "# %s hangs: after %ld ms %s: %s\n", standin_call_name(call),
		rig_now_ms() - since, kvxfer_status_name(ev.status), ev.text);
	fprintf(stderr, "# others: %ld and %ld ms at most\n", host.most_ms, sound.most_ms);
	cr_assert_eq(ev.status, KVXFER_DEADLINE, "%s: %s", kvxfer_status_name(ev.status), ev.text);
	block(&far_node, call, false);
	way_move(&host);
	way_move(&sound);
	cr_assert_lt(host.most_ms, TORN_MS);
	cr_assert_lt(sound.most_ms, TORN_MS);
	hung.far.n_segments = 0; /* nothing there can be freed */
	end();
}

Test(gpu_bounce_hang, a_target_that_hangs_holds_up_nobody_else, .timeout = 120)
{
	for (unsigned i = 0; i < N_CALLS; i++)
		target_hangs(calls[i]);
}
