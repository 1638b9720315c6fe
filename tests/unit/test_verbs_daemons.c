/* Two whole daemons over the stand-in while its devices fail in every way they can: each transfer
 * that was accepted ends exactly once and in time, what is said to be there is there, nothing lands
 * after its end, and when the devices are well again so are the transfers. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "kvxfer/client.h"
#include "test_end.h"
#include "test_memory.h"
#include "verbs_daemons.h"

#define BLOCK     4096u
#define SLOTS     8u
#define SLOT_MAX  32u /* blocks of a transfer */
#define SOURCES   512u
#define CHAOS_NS  (5 * KVX_SEC)
#define DEADLINE  3000u /* ms */
#define LATE_NS   (200 * KVX_MS)
#define CANARY    0xee
#define CALM_RUNS 30u
#define DEVICES   4u /* fake0 and fake2 for one node, the others for the other */

/* --- the engine, in a process of its own: what fails here is its exit status --- */

#define EXPECT(cond, ...)                                                                          \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			fprintf(stderr, "engine: line %d: %s: ", __LINE__, #cond);                 \
			fprintf(stderr, __VA_ARGS__);                                              \
			fprintf(stderr, "\n");                                                     \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

struct slot {
	uint64_t transfer; /* 0: not open */
	uint64_t begin_ns;
	uint64_t free_ns; /* the canary stays until then; 0: free */
	int op;
	uint32_t n, src[SLOT_MAX], dst[SLOT_MAX];
};
struct engine {
	struct kvxfer_client *a, *b;
	struct kvxfer_region *from, *to;
	uint8_t *a_data, *b_data;
	struct kvxfer_import *import;
	struct slot slots[SLOTS];
	uint64_t seed;
	unsigned n_accepted, n_ok, n_failed, n_arrivals;
	int last_status;
	const char *require; /* NULL: any transport */
	char by[16];         /* transport of the last one that went well */
};

static struct kvxfer_region *region_make(struct kvxfer_client *client)
{
	struct kvxfer_plane plane = {.name = "kv",
				     .block_stride = BLOCK,
				     .block_bytes = BLOCK,
				     .n_blocks = SOURCES + SLOTS * SLOT_MAX};
	struct kvxfer_layout layout = {&plane, 1};
	struct kvxfer_region_options options = {.struct_bytes = sizeof(options),
						.access = KVXFER_ACCESS_WRITE | KVXFER_ACCESS_READ,
						.layout = &layout};
	struct kvxfer_region *region = NULL;
	int rc = kvxfer_region_alloc(client, (uint64_t)BLOCK * plane.n_blocks, &options, &region);

	EXPECT(rc == 0, "%d %s", rc, kvxfer_client_error(client));
	return region;
}

static struct kvxfer_client *client_open(const char *dir, unsigned i)
{
	char path[64];
	struct kvxfer_client_options options = {.struct_bytes = sizeof(options),
						.socket_path = verbs_daemons_socket(dir, i, path)};
	struct kvxfer_client *client = NULL;

	EXPECT(kvxfer_client_open(&options, &client) == 0, "%s", kvxfer_open_error());
	return client;
}

static void engine_open(struct engine *e, const char *dir)
{
	unsigned char descriptor[KVXFER_DESCRIPTOR_MAX];
	int n, rc;

	e->a = client_open(dir, 0);
	e->b = client_open(dir, 1);
	e->from = region_make(e->a);
	e->to = region_make(e->b);
	e->a_data = kvxfer_region_data(e->from);
	e->b_data = kvxfer_region_data(e->to);
	test_fill(e->a_data, SOURCES * BLOCK, 1);
	test_fill(e->b_data, SOURCES * BLOCK, 2);
	n = kvxfer_region_export(e->to, descriptor, sizeof(descriptor));
	rc = kvxfer_import_open(e->a, descriptor, (size_t)n, NULL, &e->import);
	EXPECT(rc == 0, "%d %s", rc, kvxfer_client_error(e->a));
	e->seed = 4711;
}

static uint8_t *slot_block(struct engine *e, const struct slot *s, unsigned i)
{
	uint8_t *data = s->op == KVXFER_WRITE ? e->b_data : e->a_data;

	return data + (size_t)s->dst[i] * BLOCK;
}

static bool block_is(const uint8_t *block, uint64_t seed, uint32_t src)
{
	for (uint32_t i = 0; i < BLOCK; i++)
		if (block[i] != test_byte(seed, (uint64_t)src * BLOCK + i))
			return false;
	return true;
}

static void slot_submit(struct engine *e, struct slot *s)
{
	struct kvxfer_blocks blocks = {.n_planes = 1};
	struct kvxfer_transfer t = {.struct_bytes = sizeof(t),
				    .region = e->from,
				    .import_ = e->import,
				    .blocks = &blocks,
				    .deadline_ms = DEADLINE,
				    .require = e->require};
	uint32_t place = SOURCES + (uint32_t)(s - e->slots) * SLOT_MAX;
	int rc;

	s->op = test_random(&e->seed, 2) == 0 ? KVXFER_WRITE : KVXFER_READ;
	s->n = (uint32_t)(1 + test_random(&e->seed, SLOT_MAX));
	for (uint32_t i = 0; i < s->n; i++) {
		s->src[i] = (uint32_t)test_random(&e->seed, SOURCES);
		s->dst[i] = place + i;
		memset(slot_block(e, s, i), 0, BLOCK);
	}
	blocks.n_blocks = s->n;
	blocks.local_blocks = s->op == KVXFER_WRITE ? s->src : s->dst;
	blocks.remote_blocks = s->op == KVXFER_WRITE ? s->dst : s->src;
	t.op = s->op;
	s->begin_ns = kvx_now_ns();
	rc = kvxfer_transfer_submit(e->a, &t, &s->transfer);
	EXPECT(rc == 0, "%d %s", rc, kvxfer_client_error(e->a));
	e->n_accepted++;
}

static void on_terminal(struct engine *e, const struct kvxfer_event *event)
{
	struct slot *s = e->slots;

	while (s < e->slots + SLOTS && s->transfer != event->transfer)
		s++;
	EXPECT(s < e->slots + SLOTS, "transfer %llu ends that was not open",
	       (unsigned long long)event->transfer);
	EXPECT(kvx_now_ns() - s->begin_ns < (DEADLINE + 3000) * KVX_MS, "too late: %s",
	       event->text);
	e->last_status = event->status;
	if (event->status == KVXFER_OK)
		snprintf(e->by, sizeof(e->by), "%s", event->transport);
	for (uint32_t i = 0; i < s->n; i++) {
		if (event->status == KVXFER_OK)
			EXPECT(
			    block_is(slot_block(e, s, i), s->op == KVXFER_WRITE ? 1 : 2, s->src[i]),
			    "block %u of a transfer that ended well", i);
		memset(slot_block(e, s, i), CANARY, BLOCK);
	}
	e->n_ok += event->status == KVXFER_OK;
	e->n_failed += event->status != KVXFER_OK;
	s->transfer = 0;
	s->free_ns = kvx_now_ns() + (event->status == KVXFER_OK ? 0 : LATE_NS);
}

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *event, void *arg)
{
	struct engine *e = arg;

	if (event->type == KVXFER_EVENT_TERMINAL)
		on_terminal(e, event);
	else if (event->type == KVXFER_EVENT_ARRIVAL)
		e->n_arrivals++;
	else
		EXPECT(false, "event %d: %s", event->type, event->text);
}

/* The time of the canary is over: nobody has touched it. */
static void slot_check_canary(struct engine *e, struct slot *s)
{
	for (uint32_t i = 0; i < s->n; i++)
		for (uint32_t k = 0; k < BLOCK; k++)
			EXPECT(slot_block(e, s, i)[k] == CANARY,
			       "byte %u of block %u landed after the end of op %d", k, i, s->op);
	s->free_ns = 0;
}

static void engine_turn(struct engine *e, unsigned max_open)
{
	for (struct slot *s = e->slots; s < e->slots + SLOTS; s++) {
		if (s->transfer != 0)
			continue;
		if (s->free_ns != 0 && kvx_now_ns() >= s->free_ns)
			slot_check_canary(e, s);
		if (s->free_ns == 0 && s < e->slots + max_open)
			slot_submit(e, s);
	}
	EXPECT(kvxfer_client_wait(e->a, 5, on_event, e) >= 0, "%s", kvxfer_client_error(e->a));
	EXPECT(kvxfer_client_dispatch(e->b, on_event, e) >= 0, "%s", kvxfer_client_error(e->b));
}

static bool engine_is_idle(const struct engine *e)
{
	for (unsigned i = 0; i < SLOTS; i++)
		if (e->slots[i].transfer != 0 || e->slots[i].free_ns != 0)
			return false;
	return true;
}

static void engine_drain(struct engine *e)
{
	for (uint64_t end = kvx_now_ns() + 20 * KVX_SEC; !engine_is_idle(e);) {
		engine_turn(e, 0);
		EXPECT(kvx_now_ns() < end, "transfers do not end");
	}
}

/* Soon so many transfers in a row go well, by this transport. */
static void engine_expect_well(struct engine *e, const char *by)
{
	uint64_t end = kvx_now_ns() + 20 * KVX_SEC;
	unsigned n_ok = 0;

	while (n_ok < CALM_RUNS) {
		unsigned before = e->n_ok, failed = e->n_failed;

		engine_turn(e, 1);
		n_ok = e->n_failed > failed || strcmp(e->by, by) != 0 ? 0 : n_ok + e->n_ok - before;
		EXPECT(kvx_now_ns() < end, "transfers do not get well: status %d by %s",
		       e->last_status, e->by);
	}
}

static void engine_close(struct engine *e)
{
	engine_drain(e);
	fprintf(stderr, "accepted %u, well %u, failed %u, arrivals %u\n", e->n_accepted, e->n_ok,
		e->n_failed, e->n_arrivals);
	kvxfer_client_close(e->a);
	kvxfer_client_close(e->b);
}

static void mark(int mark_fd, char what)
{
	EXPECT(write(mark_fd, &what, 1) == 1, "mark");
}

/* What engines do; they exit with 0 when all went well. */
static void engine_in_chaos(struct engine *e, int mark_fd)
{
	e->require = "verbs";
	mark(mark_fd, 'c');
	for (uint64_t end = kvx_now_ns() + CHAOS_NS; kvx_now_ns() < end;)
		engine_turn(e, SLOTS);
	mark(mark_fd, 'q');
	engine_drain(e);
	engine_expect_well(e, "verbs");
}

static void engine_of_dead_device(struct engine *e, int mark_fd)
{
	engine_expect_well(e, "verbs");
	for (unsigned i = 0; i < 5; i++)
		engine_turn(e, SLOTS);
	mark(mark_fd, 'f');
	engine_expect_well(e, "fabric");
}

/* --- the daemons, and what is done to their devices --- */

static unsigned n_faults;

struct chaos {
	struct verbs_daemons d;
	uv_timer_t timer;
	uint64_t seed;
	bool on;
	unsigned n_faults;
	unsigned down[DEVICES]; /* turns until the port comes back; 0: it is up */
	unsigned cut[DEVICES];
	unsigned held; /* turns until completions are shown again */
};

static void chaos_heal(struct chaos *c, bool now)
{
	for (unsigned i = 0; i < DEVICES; i++) {
		if (c->down[i] > 0 && (now || --c->down[i] == 0)) {
			c->down[i] = 0;
			fake_verbs_raise_port(fake_verbs_dev(i), 1, IBV_EVENT_PORT_ACTIVE);
		}
		if (c->cut[i] > 0 && (now || --c->cut[i] == 0)) {
			c->cut[i] = 0;
			fake_verbs_cut(fake_verbs_dev(i), 1, false);
		}
	}
	if (c->held > 0 && (now || --c->held == 0)) {
		c->held = 0;
		fake_verbs_hold_completions(false);
		fake_verbs_release(UINT32_MAX);
	}
}

static void chaos_fault(struct chaos *c)
{
	unsigned i = (unsigned)test_random(&c->seed, DEVICES);

	c->n_faults++;
	switch (test_random(&c->seed, 12)) {
	case 0:
		fake_verbs_raise_some(test_random(&c->seed, 1000), IBV_EVENT_QP_FATAL);
		break;
	case 1:
		fake_verbs_raise_some(test_random(&c->seed, 1000), IBV_EVENT_QP_ACCESS_ERR);
		break;
	case 2:
		fake_verbs_raise_some(test_random(&c->seed, 1000), IBV_EVENT_CQ_ERR);
		break;
	case 3:
		fake_verbs_raise_port(fake_verbs_dev(i), 1, IBV_EVENT_PORT_ERR);
		c->down[i] = 1 + (unsigned)test_random(&c->seed, 8);
		break;
	case 4:
		fake_verbs_cut(fake_verbs_dev(i), 1, true);
		c->cut[i] = 1 + (unsigned)test_random(&c->seed, 8);
		break;
	case 5:
		fake_verbs_post_limit((unsigned)test_random(&c->seed, 40));
		break;
	case 6:
		fake_verbs_fail(FV_POST_SEND, 1, test_random(&c->seed, 2) ? ENOMEM : EIO);
		break;
	case 7:
		fake_verbs_fail(FV_N_FNS, 1, ENOMEM); /* the next thing that is set up */
		break;
	case 8:
		fake_verbs_hold_completions(true);
		c->held = 1 + (unsigned)test_random(&c->seed, 5);
		break;
	default:
		fake_verbs_break(
		    (unsigned)(1 + test_random(&c->seed, 100)),
		    (enum ibv_wc_status)(1 + test_random(&c->seed, IBV_WC_GENERAL_ERR)), 0x42,
		    (enum fake_verbs_land)test_random(&c->seed, 3));
	}
}

static void on_tick(uv_timer_t *timer)
{
	struct chaos *c = timer->data;

	if (uv_is_closing((uv_handle_t *)&c->d.from_engine)) { /* the engine has ended early */
		uv_close((uv_handle_t *)timer, NULL);
		chaos_heal(c, true);
		return;
	}
	chaos_heal(c, false);
	if (c->on && test_random(&c->seed, 4) == 0)
		chaos_fault(c);
}

static void on_mark(struct verbs_daemons *d, char what)
{
	struct chaos *c = d->arg;

	if (what == 'f') {
		fake_verbs_raise_fatal(fake_verbs_dev(0));
		return;
	}
	c->on = what == 'c';
	if (c->on)
		return;
	chaos_heal(c, true);
	(void)fake_verbs_fired();
	(void)fake_verbs_broken();
	fake_verbs_post_limit(UINT32_MAX);
}

static void tune(struct kvx_config *config, unsigned i)
{
	config->heartbeat_ms = 200;
	config->lost_ms = 5000;
	config->reconnect_min_ms = 20;
	config->reconnect_max_ms = 200;
	config->fence_bound_ms = 500;
}

/* Two devices each: a lane has two legs. */
static void tune_rails(struct kvx_config *config, unsigned i)
{
	tune(config, i);
	snprintf(config->verbs.devices, sizeof(config->verbs.devices), "fake%u,fake%u", i, i + 2);
}

static void tune_both(struct kvx_config *config, unsigned i)
{
	tune(config, i);
	snprintf(config->peer_transports, sizeof(config->peer_transports), "verbs fabric");
}

static void daemons_run(uint64_t seed, void (*engine_do)(struct engine *e, int mark_fd),
			void (*how)(struct kvx_config *config, unsigned i))
{
	static struct engine engine;
	static struct chaos c;
	int status;
	pid_t pid;

	memset(&c, 0, sizeof(c));
	verbs_daemons_prepare(&c.d);
	pid = fork();
	cr_assert_geq(pid, 0);
	if (pid == 0) {
		close(c.d.mark_fd);
		close(c.d.ack_fd);
		verbs_daemons_wait(c.d.engine_ack_fd);
		engine_open(&engine, c.d.dir);
		engine_do(&engine, c.d.engine_mark_fd);
		engine_close(&engine);
		_exit(0);
	}
	kvx_role_set_loop();
	kvx_log_set_level(KVX_LOG_ERROR);
	fake_verbs_reset();
	fake_verbs_add("fake1");
	fake_verbs_add("fake2");
	fake_verbs_add("fake3");
	fake_verbs_mode(FV_HELD);
	fake_verbs_packet(4096);
	fake_verbs_late(true);
	fake_verbs_lifetime(50); /* half of verbs.settle_ms */
	fake_verbs_retry(100);
	fake_verbs_wire_start(seed);
	c.seed = seed;
	c.d.arg = &c;
	c.d.on_mark = on_mark;
	verbs_daemons_open(&c.d, how);
	uv_timer_init(&c.d.loop, &c.timer);
	c.timer.data = &c;
	uv_timer_start(&c.timer, on_tick, 20, 20);
	verbs_daemons_run(&c.d);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the engine's report: see stderr");
	n_faults = c.n_faults;
}

Test(verbs_daemons, devices_that_fail_cost_time_and_nothing_else, .timeout = 110)
{
	daemons_run(3, engine_in_chaos, tune);
	cr_assert_gt(n_faults, 10);
	FAKE_VERBS_END();
	KVX_TEST_END();
}

Test(verbs_daemons, devices_of_several_rails_fail_too, .timeout = 110)
{
	daemons_run(5, engine_in_chaos, tune_rails);
	cr_assert_gt(n_faults, 10);
	FAKE_VERBS_END();
	KVX_TEST_END();
}

/* The daemon stays, and its transfers take the other way. */
Test(verbs_daemons, device_that_dies_leaves_the_other_transport, .timeout = 110)
{
	daemons_run(4, engine_of_dead_device, tune_both);
	FAKE_VERBS_END();
	KVX_TEST_END();
}
